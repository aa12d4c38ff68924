//! `weft-peers`: weft against other switches, on the same machine, in the same minutes, under the same load.
//!
//! Machines differ, and a shared one differs from hour to hour. So nobody is compared with a figure from elsewhere: all switches
//! take turns, A B C A B C, each on one core, with `weft-load` on another; what counts are medians, and ratios within a round.
//! A switch is started for each of its turns and ended after it, because those that poll would take the core from the others.
#![forbid(unsafe_code)]

mod chart;
mod comparison;
mod cores;
mod hugepages;
mod load;
mod lock;
mod measure;
mod process;
mod render;
mod scenario;
mod switches;

use std::collections::HashSet;
use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use comparison::{Comparison, Machine, Missing, ScenarioInfo, SwitchInfo};
use hugepages::Hugepages;
use load::Load;
use measure::Plan;
use process::Interrupt;
use scenario::{Scenario, TABLE};
use switches::{Bench, DPDK_MEMORY_MIB, Ovs, Switch, Testpmd, Weft, WeftArgument};

/// Compares weft with other switches, or builds of weft with each other.
#[derive(Debug, Parser)]
#[command(name = "weft-peers", version)]
struct Arguments {
    /// A weft to measure, with a name and with arguments for `weft run` if wanted; may be given several times. The first is what
    /// everybody is compared with [default: the weft beside this program]
    #[arg(long, value_name = "[NAME=]PATH [ARGUMENT…]")]
    weft: Vec<WeftArgument>,
    /// The other switches
    #[arg(long, value_delimiter = ',', default_values_t = [Peer::Ovs, Peer::Testpmd])]
    peers: Vec<Peer>,
    /// What is compared [default: all]
    #[arg(long, value_delimiter = ',', value_parser = Scenario::parser())]
    scenarios: Vec<Scenario>,
    /// Frame sizes in bytes, the 4 bytes of FCS included
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512, 1518], value_parser = clap::value_parser!(u16).range(64..=2040))]
    sizes: Vec<u16>,
    /// Seconds for each size
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// How often everybody has a turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The core of the switch
    #[arg(long, default_value_t = 1)]
    switch_core: usize,
    /// The core of the load generator
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// The weft-load to use [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    load: Option<PathBuf>,
    /// Where benches/peers/setup has put what it does not install
    #[arg(long, value_name = "DIR", env = "WEFT_PEERS_DIR", default_value = "target/peers")]
    peers_dir: PathBuf,
    /// Lock this file (flock) while anything is measured, for machines on which several people do; never for much more than a minute
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Measure nothing; show what --json has written before
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Write everything that was found as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables as Markdown; in a file that has a place for them, only that is replaced
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draw a bar chart; the Markdown shows it
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    /// Open vSwitch with DPDK
    #[value(name = "ovs-dpdk")]
    Ovs,
    /// DPDK's vhost ports wired together
    Testpmd,
    /// Nobody
    None,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ovs => "ovs-dpdk",
            Self::Testpmd => "testpmd",
            Self::None => "none",
        })
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("weft-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let comparison = match &arguments.from {
        Some(path) => read(path)?,
        None => compare(arguments)?,
    };
    // Not `print!`, which panics when the other end of the pipe is gone.
    std::io::stdout().write_all(render::terminal(&comparison).as_bytes())?;
    if let Some(path) = &arguments.json {
        write(path, &(serde_json::to_string_pretty(&comparison)? + "\n"))?;
    }
    if let Some(path) = &arguments.svg {
        write(path, &chart::svg(&comparison))?;
    }
    if let Some(path) = &arguments.markdown {
        let document =
            if path.exists() { std::fs::read_to_string(path).map_err(|error| told(path, error))? } else { String::new() };
        let chart = arguments.svg.as_deref().map(|chart| seen_from(path, chart));
        let fragment = render::markdown(&comparison, chart.as_deref());
        write(path, &render::insert(&document, &fragment).map_err(|error| told(path, error))?)?;
    }
    Ok(if comparison.has_failures() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn compare(arguments: &Arguments) -> Result<Comparison, Box<dyn Error>> {
    cores::check(arguments.switch_core, arguments.load_core)?;
    let interrupt = Interrupt::catch()?;
    let bench = Bench { switch_core: arguments.switch_core, load_core: arguments.load_core, interrupt };
    let binary = arguments.load.clone().map_or_else(|| beside("weft-load"), Ok)?;
    let load = Load { binary, seconds: arguments.seconds };
    let scenarios = if arguments.scenarios.is_empty() { TABLE } else { &arguments.scenarios };
    let mut found = Comparison {
        machine: machine(&bench),
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        scenarios: scenarios.iter().map(ScenarioInfo::of).collect(),
        ..Comparison::default()
    };
    let mut switches = wefts(&arguments.weft)?;
    check_names(&switches)?;
    let (peers, _hugepages) = find_peers(&arguments.peers, &arguments.peers_dir, &mut found);
    switches.extend(peers);
    found.switches = switches.iter().map(SwitchInfo::of).collect();
    let plan = Plan {
        switches: &switches,
        scenarios,
        sizes: &arguments.sizes,
        rounds: arguments.rounds,
        load: &load,
        bench: &bench,
        lock: arguments.lock.as_deref(),
    };
    plan.run(&mut found)?;
    found.conclude();
    Ok(found)
}

/// The path of `file` as a link in `document` has it: its name alone when they are neighbours.
fn seen_from(document: &Path, file: &Path) -> String {
    let neighbour = file.file_name().filter(|_| file.parent() == document.parent());
    neighbour.map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn read(path: &Path) -> Result<Comparison, Box<dyn Error>> {
    let text = std::fs::read_to_string(path).map_err(|error| told(path, error))?;
    Ok(serde_json::from_str(&text).map_err(|error| told(path, error))?)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| told(path, error))
}

fn told(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

fn wefts(arguments: &[WeftArgument]) -> Result<Vec<Switch>, Box<dyn Error>> {
    let mut arguments = arguments.to_vec();
    if arguments.is_empty() {
        arguments.push(WeftArgument { name: "weft".to_owned(), binary: beside("weft")?, args: Vec::new() });
    }
    Ok(arguments.into_iter().map(Weft::find).collect::<Result<_, _>>()?)
}

/// Results go by name.
fn check_names(wefts: &[Switch]) -> Result<(), String> {
    let mut names: HashSet<_> = [Peer::Ovs, Peer::Testpmd].map(|peer| peer.to_string()).into();
    match wefts.iter().find(|weft| !names.insert(weft.name.clone())) {
        Some(twice) => Err(format!("two are called {}: give each a name of its own, as in --weft NAME=PATH", twice.name)),
        None => Ok(()),
    }
}

fn seconds(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|seconds| (0.01..=3600.0).contains(seconds)).ok_or("give a number from 0.01 to 3600")
}

/// Those that can be run, and their memory. Those that can't are noted.
fn find_peers(wanted: &[Peer], dir: &Path, found: &mut Comparison) -> (Vec<Switch>, Option<Hugepages>) {
    let mut peers = Vec::new();
    for peer in wanted {
        let switch = match peer {
            Peer::Ovs => Ovs::find(&dir.join("root")),
            Peer::Testpmd => Testpmd::find(),
            Peer::None => continue,
        };
        match switch {
            Ok(switch) => peers.push(switch),
            Err(reason) => miss(found, &peer.to_string(), reason),
        }
    }
    if peers.is_empty() {
        return (peers, None);
    }
    match Hugepages::reserve(DPDK_MEMORY_MIB) {
        Ok(hugepages) => (peers, Some(hugepages)),
        Err(error) => {
            for peer in peers {
                miss(found, &peer.name, error.to_string());
            }
            (Vec::new(), None)
        }
    }
}

fn miss(found: &mut Comparison, switch: &str, reason: String) {
    eprintln!("without {switch}: {reason}");
    found.missing.push(Missing { switch: switch.to_owned(), scenario: None, reason, failed: false });
}

/// A program that was built together with this one.
fn beside(program: &str) -> Result<PathBuf, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(program);
    if !path.is_file() {
        return Err(format!("{} is not there: benches/peers/run builds everything", path.display()).into());
    }
    Ok(path)
}

fn machine(bench: &Bench) -> Machine {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Machine {
        cpu: model.unwrap_or("unknown").to_owned(),
        kernel: kernel.trim().to_owned(),
        switch_core: bench.switch_core,
        load_core: bench.load_core,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn seconds_are_a_sensible_number() {
        assert_eq!(seconds("0.2"), Ok(0.2));
        for text in ["0", "-1", "NaN", "much", "1e9"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_chart_is_linked_from_where_the_document_is() {
        assert_eq!(seen_from(Path::new("docs/performance.md"), Path::new("docs/chart.svg")), "chart.svg");
        assert_eq!(seen_from(Path::new("docs/performance.md"), Path::new("/tmp/chart.svg")), "/tmp/chart.svg");
    }
}
