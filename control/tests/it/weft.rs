//! A running weft with a run directory of its own, and commands for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing here takes this long, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running weft. Killed when it is dropped.
pub(crate) struct Weft {
    pub(crate) dir: TempDir,
    child: Child,
    manager: Manager,
    /// What it said on stdout when it was ready.
    pub(crate) greeting: String,
}

/// The service manager's end of sd_notify.
struct Manager {
    socket: UnixDatagram,
}

/// What a command did.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A connection to the control socket.
pub(crate) struct Connection {
    pub(crate) stream: BufReader<UnixStream>,
}

/// Waits until it is so.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Weft {
    /// Without a configuration file.
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), &[])
    }

    /// With a configuration file.
    pub(crate) fn start_with_config(config: &str) -> Self {
        Self::start_with_config_and(config, &[])
    }

    /// With a configuration file and more arguments.
    pub(crate) fn start_with_config_and(config: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weft.toml");
        std::fs::write(&file, config).unwrap();
        Self::start_in(dir, &[&["--config", file.to_str().unwrap()], args].concat())
    }

    /// In a directory that may have been another weft's.
    pub(crate) fn start_in(dir: TempDir, args: &[&str]) -> Self {
        let manager = Manager::new(&dir.path().join("notify"));
        let mut child = command()
            .args(["run", "--run-dir"])
            .arg(dir.path().join("run"))
            .args(args)
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .stdout(Stdio::piped())
            .stderr(File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        // The greeting ends where the loop begins; READY comes after it.
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        if stdout.read_line(&mut greeting).unwrap() == 0 {
            panic!("weft did not start: {}", std::fs::read_to_string(dir.path().join("log")).unwrap());
        }
        manager.wait_for("READY=1");
        child.stdout = Some(stdout.into_inner());
        Self { dir, child, manager, greeting }
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A file in the run directory.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.run_dir().join(name)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The processors that its workers may run on, as the kernel writes them; the first worker's first.
    pub(crate) fn cpus_of_workers(&self) -> Vec<String> {
        let field = |path: PathBuf, name: &str| {
            let status = std::fs::read_to_string(path).unwrap();
            status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned())).unwrap()
        };
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let named = threads.map(|thread| thread.unwrap().path().join("status")).map(|status| {
            let name = field(status.clone(), "Name:");
            let number = name.strip_prefix("weft-worker-").map(|number| number.parse::<usize>().unwrap());
            (number, field(status, "Cpus_allowed_list:"))
        });
        let workers: BTreeMap<usize, String> = named.filter_map(|(number, cpus)| Some((number?, cpus))).collect();
        workers.into_values().collect()
    }

    /// Waits until it has logged `text`.
    pub(crate) fn wait_for_log(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "weft did not log {text:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Runs a `weft` command on this switch.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::from(command().arg("--run-dir").arg(self.run_dir()).args(args).output().unwrap())
    }

    /// Runs a `weft` command with `--json`, which must succeed.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(&[&["--json"], args].concat());
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "weft {args:?}");
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Runs a `weft` command that must be refused, with nothing changed; returns what it said.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let before = self.json(&["config", "show"]);
        let ran = self.run(args);
        assert_eq!(ran.status, 1, "weft {args:?} gave {:?} {:?}", ran.stdout, ran.stderr);
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert_eq!(self.json(&["config", "show"]), before, "weft {args:?} changed something");
        ran.stderr
    }

    /// A connection that has said hello.
    pub(crate) fn connect(&self) -> Connection {
        let mut connection = self.connect_silently();
        let answer = connection.call("hello", &json!({ "protocol": 1 }));
        assert_eq!(answer["result"]["protocol"], 1, "{answer}");
        connection
    }

    /// A connection that has said nothing yet.
    pub(crate) fn connect_silently(&self) -> Connection {
        let stream = UnixStream::connect(self.at("control.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Connection { stream: BufReader::new(stream) }
    }

    /// From now on it gets only `count` descriptors more.
    pub(crate) fn limit_descriptors(&self, count: u64) {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let highest = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap()).max().unwrap();
        let limit = Rlimit { current: Some(highest + 1 + count), maximum: Some(highest + 1 + count) };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Changes the configuration file and waits until weft has taken or refused it.
    pub(crate) fn reload(&self, config: &str) {
        std::fs::write(self.dir.path().join("weft.toml"), config).unwrap();
        self.signal(Signal::HUP);
        self.manager.wait_for("RELOADING=1");
        self.manager.wait_for("READY=1");
    }

    /// Stops it and gives back its directory.
    pub(crate) fn stop(mut self, signal: Signal) -> (ExitStatus, TempDir) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        (status, dir)
    }

    /// What it told the service manager since the last look, up to a message that contains `text`.
    pub(crate) fn wait_for_notification(&self, text: &str) -> String {
        self.manager.wait_for(text)
    }
}

impl Drop for Weft {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Manager {
    fn new(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }

    fn wait_for(&self, text: &str) -> String {
        let mut message = [0; 4096];
        loop {
            let count = self.socket.recv(&mut message).unwrap_or_else(|error| panic!("weft did not send {text}: {error}"));
            let message = String::from_utf8_lossy(&message[..count]).into_owned();
            if message.contains(text) {
                return message;
            }
        }
    }
}

impl Connection {
    pub(crate) fn send(&mut self, line: &str) {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?} is no answer: {error}"))
    }

    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        self.send(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string());
        self.receive()
    }

    /// True when the other side has closed the connection and nothing more came.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("a signal ended weft"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The `weft` binary, with nothing of the test's environment that it would listen to.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    for name in [
        "WEFT_RUN_DIR",
        "WEFT_LOG",
        "WEFT_STATE_DIR",
        "STATE_DIRECTORY",
        "XDG_RUNTIME_DIR",
        "NO_COLOR",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "JOURNAL_STREAM",
    ] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a `weft` command without a running switch.
pub(crate) fn run(args: &[&str]) -> Ran {
    Ran::from(command().args(args).output().unwrap())
}
