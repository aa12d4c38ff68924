//! The daemon under test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Process, find_program};
use crate::wait::wait_for;

/// A start answers in milliseconds; a machine that compiles something at the same time needs more.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// The user and group of that name.
const NOBODY: u32 = 65_534;
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A running `weft run` in a run directory of its own.
///
/// It may be killed and started again on the same directory, as an operator or a crash would.
#[derive(Debug)]
pub struct Weft {
    binary: PathBuf,
    /// What starts it, with arguments of its own before those of weft.
    launcher: Option<PathBuf>,
    args: Vec<String>,
    process: Option<Process>,
    // Dropped after the process, which has its log in there and prints it when a test fails.
    dir: TempDir,
}

impl Weft {
    /// Starts it without a configuration file: one network `default`, ports `vm1` and `vm2`.
    pub fn start() -> Weft {
        Weft::start_with(&[])
    }

    /// Starts it with more arguments behind `weft run --run-dir DIR`.
    pub fn start_with(args: &[&str]) -> Weft {
        let mut weft = Weft::prepare();
        weft.args.extend(args.iter().map(|&arg| arg.to_owned()));
        weft.start_again();
        weft
    }

    /// Starts it with more arguments as a user who may do nothing: nobody, without any capability. Without the right to be somebody else, as
    /// the user who runs the test.
    pub fn start_unprivileged(args: &[&str]) -> Weft {
        let mut weft = Weft::prepare();
        if rustix::process::geteuid().is_root() {
            // What runs must be reachable for nobody, wherever it was built.
            let binary = weft.dir.path().join("weft");
            fs::copy(&weft.binary, &binary).expect("the binary can be copied");
            let set_mode = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
            set_mode(weft.dir.path()).and_then(|()| set_mode(&binary)).expect("modes can be set in a folder of our own");
            std::os::unix::fs::chown(weft.run_dir(), Some(NOBODY), Some(NOBODY)).expect("root can give a folder away");
            let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
            let rights = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL", "--"];
            let before = ids.into_iter().chain(rights.map(str::to_owned)).chain([binary.display().to_string()]);
            weft.args = before.chain(weft.args).collect();
            weft.launcher = Some(find_program("setpriv"));
        }
        weft.args.extend(args.iter().map(|&arg| arg.to_owned()));
        weft.start_again();
        weft
    }

    fn prepare() -> Weft {
        // Under /tmp, not in the target folder: the path of a socket has 107 bytes.
        let dir = tempfile::Builder::new().prefix("weft-").tempdir_in("/tmp").expect("/tmp takes a folder");
        let run_dir = dir.path().join("run");
        fs::create_dir(&run_dir).expect("a folder in our own folder can be made");
        Weft {
            binary: binary(),
            launcher: None,
            args: vec!["run".to_owned(), "--run-dir".to_owned(), run_dir.display().to_string()],
            dir,
            process: None,
        }
    }

    /// Starts it again after [`Weft::kill9`] or [`Weft::stop`], on the same run directory, and waits until it answers.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "weft is running already");
        let log = self.dir.path().join("weft.log");
        self.process = Some(Process::spawn("weft", self.launcher.as_ref().unwrap_or(&self.binary), &self.args, &log));
        wait_for("weft to answer `weft status`", READY_LIMIT, || {
            self.process.as_mut().expect("it was started above").assert_alive();
            self.try_cli(&["status"]).status.success().then_some(())
        });
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        self.process.take().expect("weft is running").kill9();
    }

    /// SIGTERM; returns how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        self.process.take().expect("weft is running").terminate(STOP_LIMIT)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// The CPU time that the daemon has used since it started.
    pub fn cpu_time(&self) -> Duration {
        self.process().cpu_time()
    }

    /// Whatever it has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("weft.log")).unwrap_or_default()
    }

    /// Panics when it is not running any more.
    pub fn assert_alive(&mut self) {
        self.process.as_mut().expect("weft is running").assert_alive();
    }

    /// The program that runs, which is the command, too.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The socket that weft listens on for `port`.
    pub fn socket(&self, port: &str) -> PathBuf {
        self.run_dir().join(format!("{port}.sock"))
    }

    /// A path for a socket that the guest listens on, for ports that weft connects from.
    pub fn guest_socket(&self, port: &str) -> PathBuf {
        self.dir.path().join(format!("{port}-guest.sock"))
    }

    /// Runs a `weft` command against this daemon and returns what it printed; panics when it is refused.
    pub fn cli(&self, args: &[&str]) -> String {
        let output = self.try_cli(args);
        assert!(
            output.status.success(),
            "`weft {}` failed ({}):\n{}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same with `--json`, parsed.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.cli(&[args, &["--json"]].concat());
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("`weft {} --json` printed no JSON ({error}):\n{text}", args.join(" ")))
    }

    /// Runs a `weft` command against this daemon, whatever comes of it.
    pub fn try_cli(&self, args: &[&str]) -> Output {
        Command::new(&self.binary)
            .args(args)
            .env("WEFT_RUN_DIR", self.run_dir())
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{} can't be run: {error}", self.binary.display()))
    }

    /// Adds a port that weft listens on, and returns its socket.
    pub fn add_port(&self, port: &str) -> PathBuf {
        self.cli(&["port", "add", port]);
        self.socket(port)
    }

    /// Adds a port that connects to a socket of the guest's, and returns that socket.
    pub fn add_client_port(&self, port: &str) -> PathBuf {
        let socket = self.guest_socket(port);
        let path = socket.display().to_string();
        self.cli(&["port", "add", port, "--client", "--socket", &path]);
        socket
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("weft is running")
    }
}

/// The binary under test: `WEFT_BIN`, or the one that was built beside this test.
fn binary() -> PathBuf {
    let path = std::env::var_os("WEFT_BIN").map_or_else(built_beside, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is not there: run `cargo build -p weft`, or point WEFT_BIN at the binary to test",
        path.display()
    );
    path
}

fn built_beside() -> PathBuf {
    // target/PROFILE/deps/TEST → target/PROFILE/weft
    let test = std::env::current_exe().expect("a test knows its own path");
    test.parent().and_then(Path::parent).expect("a test lies two folders deep").join("weft")
}
