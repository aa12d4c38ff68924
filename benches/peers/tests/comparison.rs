//! `weft-peers` end to end, with weft as its own peer: whether it measures, writes and cleans up, not how fast anything is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Nothing here takes this long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// `weft-peers` with a folder of its own for everything temporary.
struct Peers {
    dir: TempDir,
    command: Command,
}

impl Peers {
    /// Two names for one weft, frames of 64 bytes. None when there are no two cores to do it on.
    fn new() -> Option<Self> {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let cores: Vec<_> = (0..1024).filter(|&core| allowed.is_set(core)).map(|core| core.to_string()).collect();
        let [load_core, switch_core, ..] = cores.as_slice() else {
            eprintln!("NOT TESTED: a comparison needs two cores, and only {} may be used here", cores.len());
            return None;
        };
        let weft = weft();
        // A short path: sockets are made below it.
        let dir = tempfile::Builder::new().prefix("wp-").tempdir_in("/tmp").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-peers"));
        command.env("TMPDIR", dir.path()).current_dir(dir.path()).stdin(Stdio::null());
        command.args(["--peers", "none", "--sizes", "64", "--switch-core", switch_core, "--load-core", load_core]);
        for name in ["a", "b"] {
            command.args(["--weft".to_owned(), format!("{name}='{}'", weft.display())]);
        }
        Some(Self { dir, command })
    }

    /// Runs it; it must succeed. Returns what it printed.
    fn run(&mut self, args: &[&str]) -> String {
        let output = self.command.args(args).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{errors}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// What it has left behind: folders, and processes that have something to do with them.
    fn leftovers(&self) -> Vec<String> {
        let files = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name().display().to_string());
        let folders = files.filter(|name| name.starts_with("weft-peers-"));
        folders.chain(processes_of(self.dir.path())).collect()
    }
}

#[test]
fn weft_is_compared_with_itself() {
    let Some(mut peers) = Peers::new() else { return };
    let args = ["--rounds", "2", "--seconds", "0.2", "--scenarios", "plain,latency"];
    let outputs = ["--json", "found.json", "--svg", "chart.svg", "--markdown", "table.md"];
    let printed = peers.run(&[args.as_slice(), &outputs].concat());
    assert!(printed.contains("against a") && printed.contains("1.00 ×"), "{printed}");
    assert_eq!(peers.leftovers(), Vec::<String>::new());

    let found: Value = serde_json::from_str(&peers.read("found.json")).unwrap();
    assert_eq!(found["missing"], serde_json::json!([]), "{found:#}");
    // Two rounds, two scenarios, two names.
    assert_eq!(found["samples"].as_array().unwrap().len(), 8);
    let results = found["results"].as_array().unwrap();
    let names: Vec<_> = results.iter().map(|result| format!("{} {}", result["scenario"], result["switch"])).collect();
    assert_eq!(names, [r#""plain" "a""#, r#""plain" "b""#, r#""latency" "a""#, r#""latency" "b""#]);
    for result in results {
        assert!(result["frames_per_second"]["median"].as_f64().unwrap() > 0.0, "{result:#}");
        assert!(result["ratio"]["median"].as_f64().unwrap() > 0.0, "{result:#}");
        assert_eq!((&result["size"], &result["rounds"]), (&Value::from(64), &Value::from(2)));
        assert_eq!(result["p50_ns"].is_null(), result["scenario"] == "plain");
    }
    assert!(peers.read("chart.svg").contains("</svg>"));
    assert!(peers.read("table.md").contains("![The tables below as a bar chart](chart.svg)"));
}

#[test]
fn what_was_found_can_be_shown_again() {
    let Some(mut peers) = Peers::new() else { return };
    let printed = peers.run(&["--rounds", "1", "--seconds", "0.2", "--scenarios", "plain", "--json", "found.json"]);
    let Some(mut again) = Peers::new() else { return };
    assert_eq!(again.run(&["--from", &peers.file("found.json").display().to_string()]), printed);
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let Some(mut peers) = Peers::new() else { return };
    let command = peers.command.args(["--seconds", "600", "--scenarios", "plain"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let dir = peers.dir.path().to_owned();
    wait_until("the load to run", || processes_of(&dir).iter().any(|process| process.contains("weft-load")));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    wait_until("weft-peers to end", || child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
    assert_eq!(peers.leftovers(), Vec::<String>::new());
}

/// `WEFT_BIN`, or the one that was built beside this test.
fn weft() -> PathBuf {
    let beside = || Path::new(env!("CARGO_BIN_EXE_weft-peers")).with_file_name("weft");
    let path = std::env::var_os("WEFT_BIN").map_or_else(beside, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is not there: run `cargo build -p weft`, or point WEFT_BIN at the binary to test",
        path.display()
    );
    path
}

/// The command lines of all processes that name something below `dir`.
fn processes_of(dir: &Path) -> Vec<String> {
    let below = format!("{}/weft-peers-", dir.display());
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    processes.filter(|line| line.contains(&below)).collect()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        sleep(Duration::from_millis(5));
    }
}
