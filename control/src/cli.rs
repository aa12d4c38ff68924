//! The `weft` command: what can be typed, and what is printed. The work is done in `client` and `daemon`.

mod capture;
mod fdb;
mod leases;
mod lines;
mod man;
mod mirror;
mod multicast;
mod networks;
mod protections;
mod trace;
mod ways;

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use serde::Serialize;

use self::capture::{CaptureArgs, capture};
use self::fdb::{FdbCommand, fdb};
use self::leases::{LeaseCommand, lease};
use self::lines::LineArgs;
use self::mirror::{MirrorCommand, mirror};
use self::multicast::{MulticastCommand, multicast};
use self::networks::{NetworkCommand, network};
use self::protections::ProtectionArgs;
use self::trace::{TraceArgs, trace};
use self::ways::{ForwardCommand, NatCommand, forward, nat};
use crate::api::{self, Named, Nothing, PortAdd, PortInfo, PortSet, Stats, Warning};
use crate::client::{Client, ClientError};
use crate::config::{Changes, Config, PortConfig, WorkerOverrides};
use crate::config_file::{self, FileError};
use crate::daemon::{Daemon, DaemonError};
use crate::guest_line::{Memory, QemuAge, libvirt_xml, qemu_args, qemu_command, shell_words};
use crate::host::Host;
use crate::logging::{self, AuditTarget, LogError};
use crate::refusal::Refusal;
use crate::render::{self, Style, counted, wants_colours};
use crate::run_dir::{self, RunDirError};
use crate::state_dir;
use crate::values::{CpuList, Name, PollingMode, PortMac, Queues, SocketPath, ValueError, WorkerCount};
use crate::vlans::{VlanRef, VlanRefs};

/// How often `weft stats --watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// A virtual switch in one process: virtual machines plug into it through vhost-user sockets.
///
/// `weft run` starts it; the other commands steer the one that runs. The run directory, where its sockets are, is
/// --run-dir, or $WEFT_RUN_DIR, or $XDG_RUNTIME_DIR/weft, or /run/weft for root.
///
/// The exit status is 0 when it is done, 1 when it was refused, and 2 when the command was wrong.
#[derive(Debug, Parser)]
#[command(name = "weft", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// The run directory; $WEFT_RUN_DIR, $XDG_RUNTIME_DIR/weft, or /run/weft for root, if none is given.
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the switch, until SIGTERM or Ctrl-C.
    ///
    /// Without --config there is one network, `default`, with the ports `vm1` and `vm2`; what is changed then by the other commands is kept in
    /// the state directory, and there again at the next start. SIGHUP makes weft read its configuration file again and apply the difference. --workers, --cpus and --polling come before what the file says,
    /// then too; workers stay as they are until weft is started again.
    Run(RunArgs),
    /// Ports: the plugs for guests.
    #[command(subcommand)]
    Port(PortCommand),
    /// Networks: who can talk to whom.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// MAC addresses: which one is behind which port.
    #[command(subcommand)]
    Fdb(FdbCommand),
    /// Multicast: who wants which groups.
    #[command(subcommand)]
    Multicast(MulticastCommand),
    /// Leases: which address belongs to which client.
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Forwards: ports of this host by which guests can be reached.
    #[command(subcommand)]
    Forward(ForwardCommand),
    /// The way out: who is connected with what outside.
    #[command(subcommand)]
    Nat(NatCommand),
    /// Mirrors: copies of frames for another port, or for a file.
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// Say what the switch would do with a frame, and why, step by step. Nothing is sent or learned.
    ///
    /// weft trace vm1 --dst 02:00:00:00:00:02, or the whole frame with --frame
    Trace(TraceArgs),
    /// Write frames of ports to a pcapng file, or to standard output: weft capture vm1 -w - | wireshark -k -i -
    ///
    /// It ends with Ctrl-C, or with the first limit that is reached. How many frames were lost because they were written too slowly is in the file.
    Capture(CaptureArgs),
    /// Show how the switch is.
    Status,
    /// Show what passed through the ports, and how busy the workers were.
    Stats {
        /// Show what passes per second, and how busy the workers are, every second.
        #[arg(long)]
        watch: bool,
    },
    /// Print the QEMU arguments that plug a guest into a port.
    ///
    /// It prints the arguments only, quoted for a shell where they need it. In a shell:
    ///
    /// eval "qemu-system-x86_64 $(weft qemu-args vm1) -drive file=disk.qcow2"
    QemuArgs {
        /// The port.
        port: Name,
        /// The guest's memory.
        #[arg(long, default_value_t = Memory::default())]
        memory: Memory,
        /// For QEMU before 9.2, which takes `reconnect` instead of `reconnect-ms`.
        #[arg(long)]
        old_qemu: bool,
    },
    /// Print the libvirt XML that plugs a guest into a port.
    LibvirtXml {
        /// The port.
        port: Name,
    },
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The control socket's protocol.
    #[command(subcommand)]
    Api(ApiCommand),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands into a directory.
    Man {
        /// The directory; it is made if it is missing.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where leases are kept; $WEFT_STATE_DIR or $STATE_DIRECTORY, else DIR/state if the run directory DIR was chosen, /var/lib/weft for root,
    /// $XDG_STATE_HOME/weft or ~/.local/state/weft.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Let guests of network `default` reach what listens on this host's loopback, under the gateway's address.
    #[arg(long)]
    host_access: bool,
    /// Write down which guest was connected with what outside: FILE gets a line of JSON for each connection and mapping that is opened or closed;
    /// `log` has them in the log, `journal` in the system's journal [default: nowhere].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    audit: Option<AuditTarget>,
    /// What is logged: error, warn, info, debug, trace or off, or a list of MODULE=LEVEL.
    #[arg(long, value_name = "LEVEL", env = "WEFT_LOG")]
    log: Option<String>,
    /// How many workers move frames, 1 to 64 [default: what the file says, or 1].
    #[arg(long, value_name = "N")]
    workers: Option<WorkerCount>,
    /// The processors that workers are pinned to, in turn, as in 2,3 or 2-5,8; `any` for wherever the operating system
    /// puts them [default: what the file says, or any].
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,
    /// What a worker does that finds no frames: `adaptive` looks for a moment and sleeps, `always` looks for ever,
    /// `never` sleeps at once [default: what the file says, or adaptive].
    #[arg(long, value_name = "MODE", value_parser = polling_mode())]
    polling: Option<PollingMode>,
}

#[derive(Debug, Subcommand)]
enum PortCommand {
    /// Add a port and print how to start a guest on it.
    Add {
        /// The new port's name.
        name: Name,
        /// The network that it is a member of.
        #[arg(long, default_value = Config::DEFAULT_NETWORK)]
        network: Name,
        /// Its vhost-user socket; NAME.sock in the run directory if none is given.
        #[arg(long, value_name = "PATH", value_parser = socket_path, value_hint = ValueHint::AnyPath)]
        socket: Option<SocketPath>,
        /// The guest listens on the socket (QEMU's server=on), and weft connects.
        #[arg(long)]
        client: bool,
        /// Queue pairs that the guest may use, 1 to 16.
        #[arg(long, value_name = "N", default_value = "1")]
        queues: Queues,
        /// The guest's address; derived from the host and the names if none is given.
        #[arg(long)]
        mac: Option<PortMac>,
        /// The IP address that DHCP keeps for the guest; any that is free if none is given.
        #[arg(long, value_name = "IP")]
        address: Option<Ipv4Addr>,
        #[command(flatten)]
        vlans: VlanArgs,
        #[command(flatten)]
        protections: ProtectionArgs,
        #[command(flatten)]
        lines: Box<LineArgs>,
    },
    /// Change what a port's guest may send, and what is between it and the switch; it stays connected.
    ///
    /// What else there is of a port, such as its VLANs, is changed by removing it and adding it anew, which disconnects the guest for a moment.
    Set {
        /// The port.
        name: Name,
        #[command(flatten)]
        protections: ProtectionArgs,
        #[command(flatten)]
        lines: Box<LineArgs>,
    },
    /// List all ports.
    List,
    /// Show one port.
    Show {
        /// The port.
        name: Name,
    },
    /// Remove a port; its guest is disconnected.
    Remove {
        /// The port.
        name: Name,
    },
}

/// What a port is to the VLANs of its network. As soon as one port of a network has a role, those without one are access ports of its
/// default VLAN.
#[derive(Debug, Args)]
struct VlanArgs {
    /// An access port: its guest is in this VLAN (1 to 4094, or a name) and knows nothing of tags.
    #[arg(long, conflicts_with_all = ["trunk", "qinq"])]
    vlan: Option<VlanRef>,
    /// A trunk: its guest tells these VLANs apart by tags, as in 10,100-199,tenant-a.
    #[arg(long, value_name = "VLAN,…", conflicts_with = "qinq")]
    trunk: Option<VlanRefs>,
    /// The VLAN of a trunk's frames without a tag.
    #[arg(long, value_name = "VLAN", requires = "trunk")]
    native: Option<VlanRef>,
    /// The guest's frames get an outer tag (802.1ad) of this service VLAN, whatever tags they have.
    #[arg(long, value_name = "VLAN")]
    qinq: Option<VlanRef>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the configuration that runs, as a configuration file.
    Show,
    /// Check a configuration file.
    Check {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum ApiCommand {
    /// Print the JSON Schema of all methods.
    Schema,
}

/// The command was not done.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Refusal(#[from] Refusal),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot resolve the path of the state directory: {0}")]
    StateDir(io::Error),
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The command itself was wrong.
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("cannot write the manual pages to {dir:?}: {source}")]
    Man { dir: PathBuf, source: io::Error },
    #[error("a capture is no text for a terminal: give -w a file, or pipe it to wireshark -k -i -")]
    CaptureToTerminal,
    #[error("cannot write to {file:?}: {source}")]
    CaptureFile { file: PathBuf, source: io::Error },
    #[error("the capture has ended before it was told to: its ports are gone, or weft has stopped")]
    CaptureEnded,
    #[error("the capture has no end, since weft is gone: {0}")]
    CaptureGone(io::Error),
    #[error("nothing is to be changed of port {name:?}: say what, as in --limit-in 1G; weft port set --help has the rest")]
    NothingToChange { name: Name },
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
}

/// Parses the command line, does what it says, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    match execute(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough, as `head` does.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // Where stderr is closed there is nobody to tell, and the status says it.
            let _ = writeln!(io::stderr(), "weft: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

impl CliError {
    const fn exit_status(&self) -> u8 {
        match self {
            Self::Log(_) | Self::Value(_) | Self::CaptureToTerminal | Self::NothingToChange { .. } => 2,
            _ => 1,
        }
    }
}

fn execute(cli: Cli, output: &Output) -> Result<(), CliError> {
    let run_dirs = || run_dir::candidates(cli.run_dir.as_deref());
    let tell = if output.json { tell_program } else { tell_person };
    let connect = || -> Result<Client, CliError> { Ok(Client::connect(&run_dirs()?)?.telling(tell)) };
    match cli.command {
        Command::Run(args) => {
            let was_chosen = cli.run_dir.is_some() || std::env::var_os("WEFT_RUN_DIR").is_some_and(|dir| !dir.is_empty());
            run(args, &run_dirs()?[0], was_chosen, output)
        }
        Command::Port(command) => port(command, &mut connect()?, output),
        Command::Network(command) => network(command, &mut connect()?, output),
        Command::Fdb(command) => fdb(command, &mut connect()?, output),
        Command::Multicast(command) => multicast(command, &mut connect()?, output),
        Command::Lease(command) => lease(command, &mut connect()?, output),
        Command::Forward(command) => forward(command, &mut connect()?, output),
        Command::Nat(command) => nat(command, &mut connect()?, output),
        Command::Mirror(command) => mirror(command, &mut connect()?, output),
        Command::Trace(args) => trace(&args, &mut connect()?, output),
        Command::Capture(args) => capture(args, connect()?, output),
        Command::Status => output.show(&connect()?.call::<api::GetStatus>(&Nothing {})?, render::status),
        Command::Stats { watch: false } => {
            output.show(&connect()?.call::<api::GetStats>(&Nothing {})?, |style, stats| render::stats(style, stats, None))
        }
        Command::Stats { watch: true } => watch(&mut connect()?, output),
        Command::QemuArgs { port, memory, old_qemu } => {
            let info = connect()?.call::<api::ShowPort>(&Named { name: port })?;
            let age = if old_qemu { QemuAge::Before9_2 } else { QemuAge::Current };
            output.show(&qemu_args(&info, &memory, age), |_, words| shell_words(words) + "\n")
        }
        Command::LibvirtXml { port } => {
            let info = connect()?.call::<api::ShowPort>(&Named { name: port })?;
            output.show(&serde_json::json!({ "xml": libvirt_xml(&info) }), |_, _| libvirt_xml(&info))
        }
        Command::Config(ConfigCommand::Show) => output.show(&connect()?.call::<api::ShowConfig>(&Nothing {})?, config_text),
        Command::Config(ConfigCommand::Check { file }) => check(&file, cli.run_dir.as_deref(), output),
        Command::Api(ApiCommand::Schema) => print_text(&format!("{:#}\n", api::schema())),
        Command::Completions { shell } => completions(shell),
        Command::Man { dir } => manual(dir),
    }
}

/// Where stderr is closed there is nobody to tell.
fn tell_person(warning: &Warning) {
    let _ = writeln!(io::stderr(), "weft: {}", warning.message);
}

/// Programs know whether they gave weft a file.
fn tell_program(warning: &Warning) {
    if warning.kind != Warning::UNTIL_RESTART {
        tell_person(warning);
    }
}

fn run(args: RunArgs, run_dir: &Path, run_dir_was_chosen: bool, output: &Output) -> Result<(), CliError> {
    let _audit = logging::start(args.log.as_deref(), args.audit.as_ref())?;
    let overrides = WorkerOverrides { count: args.workers, cpus: args.cpus, polling: args.polling };
    let state_dir = state_dir::find(args.state_dir.as_deref(), run_dir, run_dir_was_chosen).map_err(CliError::StateDir)?;
    let mut daemon = Daemon::start(run_dir, &state_dir, args.config, overrides, args.host_access)?;
    let told = if output.json {
        daemon.status().map_or(Ok(()), |status| print_line(&status))
    } else {
        print_text(&greeting(&daemon.ports()))
    };
    // The switch runs whether or not somebody listens to what it says.
    if let Err(error) = told {
        tracing::debug!("{error}");
    }
    Ok(daemon.run()?)
}

fn greeting(ports: &[PortInfo]) -> String {
    let mut text = String::from("weft is running; Ctrl-C stops it.\n");
    for port in ports {
        text += &guest_text(port);
    }
    if ports.is_empty() {
        text += "There are no ports yet. Add one with: weft port add NAME\n";
    }
    text
}

/// How to start a guest on a port, for a person.
fn guest_text(port: &PortInfo) -> String {
    format!(
        "\nA guest on port {} (network {}); add its disk, and before QEMU 9.2 see weft qemu-args --old-qemu:\n  {}\n",
        port.name,
        port.network,
        qemu_command(port, &Memory::default())
    )
}

fn port(command: PortCommand, client: &mut Client, output: &Output) -> Result<(), CliError> {
    match command {
        PortCommand::Add { name, network, socket, client: is_client, queues, mac, address, vlans, protections, lines } => {
            let VlanArgs { vlan, trunk, native, qinq } = vlans;
            let settings = PortConfig {
                network,
                socket,
                client: is_client,
                queues,
                mac,
                address,
                vlan,
                trunk,
                native,
                qinq,
                ..protections.port(*lines)
            };
            let info = client.call::<api::AddPort>(&PortAdd { name, settings })?;
            output.show(&info, |_, info| format!("Port {} is there.\n{}", info.name, guest_text(info)))
        }
        PortCommand::Set { name, protections, lines } => {
            let settings: Changes = protections.changes().into_iter().chain(lines.changes()).collect();
            if settings.is_empty() {
                return Err(CliError::NothingToChange { name });
            }
            let info = client.call::<api::SetPort>(&PortSet { name, settings })?;
            output.show(&info, |_, info| format!("Port {} is changed.\n", info.name))
        }
        PortCommand::List => {
            output.show(&client.call::<api::ListPorts>(&Nothing {})?, |style, ports| render::ports(style, ports))
        }
        PortCommand::Show { name } => output.show(&client.call::<api::ShowPort>(&Named { name })?, render::port),
        PortCommand::Remove { name } => output
            .show(&client.call::<api::RemovePort>(&Named { name })?, |_, removed| format!("Port {} is gone.\n", removed.name)),
    }
}

/// One line of JSON a second, or a table that is drawn anew. Ends with the pipe, the switch, or Ctrl-C.
fn watch(client: &mut Client, output: &Output) -> Result<(), CliError> {
    let mut before: Option<Stats> = None;
    loop {
        let now = client.call::<api::GetStats>(&Nothing {})?;
        if output.json {
            print_line(&now)?;
        } else if before.is_some() {
            // Home, and clear to the end: ECMA-48, CUP and ED.
            let clear = if output.is_terminal { "\u{1b}[H\u{1b}[2J" } else { "" };
            print_text(&format!("{clear}{}", render::stats(output.style(), &now, before.as_ref())))?;
        }
        before = Some(now);
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn check(file: &Path, run_dir: Option<&Path>, output: &Output) -> Result<(), CliError> {
    // Sockets are compared by where they would be; without a run directory any other does for that.
    let run_dir = run_dir::candidates(run_dir).map_or_else(|_| PathBuf::from("/run/weft"), |mut found| found.swap_remove(0));
    let config = config_file::read(file, &Host::this(&run_dir))?;
    output.show(&config, |_, config| {
        let (networks, ports) = (counted(config.networks.len(), "network"), counted(config.ports.len(), "port"));
        let workers = counted(config.workers.count.value(), "worker");
        format!("{} is good: {networks}, {ports}, {workers}\n", file.display())
    })
}

fn config_text(_: Style, config: &Config) -> String {
    toml::to_string_pretty(config).unwrap_or_else(|error| format!("# {error}\n"))
}

fn completions(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
    print(&script)
}

fn manual(dir: Option<PathBuf>) -> Result<(), CliError> {
    match dir {
        Some(dir) => man::write_all(Cli::command(), &dir).map_err(|source| CliError::Man { dir, source }),
        None => print(&man::page(Cli::command())?),
    }
}

/// The possible values are for the help and the shell's completion.
fn polling_mode() -> impl TypedValueParser<Value = PollingMode> {
    PossibleValuesParser::new(PollingMode::NAMES).try_map(|name| name.parse::<PollingMode>())
}

/// A relative path is meant from here, not from where the switch runs.
fn socket_path(text: &str) -> Result<SocketPath, Box<dyn Error + Send + Sync>> {
    text.parse::<SocketPath>()?;
    let absolute = std::path::absolute(text)?;
    let text = absolute.to_str().ok_or("the directory that it is relative to is not UTF-8")?;
    Ok(text.parse()?)
}

/// Standard output, as the operator wants it.
struct Output {
    json: bool,
    is_terminal: bool,
}

impl Output {
    fn new(json: bool) -> Self {
        Self { json, is_terminal: io::stdout().is_terminal() }
    }

    fn style(&self) -> Style {
        Style { colours: wants_colours(self.is_terminal), wrapped: self.is_terminal }
    }

    /// A value as JSON, or as text for people.
    fn show<T: Serialize>(&self, value: &T, render: impl FnOnce(Style, &T) -> String) -> Result<(), CliError> {
        if self.json {
            let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
            return print((text + "\n").as_bytes());
        }
        print(render(self.style(), value).as_bytes())
    }
}

/// A value as one line of JSON.
fn print_line<T: Serialize>(value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(io::Error::from)?;
    print((text + "\n").as_bytes())
}

fn print_text(text: &str) -> Result<(), CliError> {
    print(text.as_bytes())
}

/// Not `print!`, which panics when the other end of the pipe is gone.
fn print(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
