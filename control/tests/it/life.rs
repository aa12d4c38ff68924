//! How weft starts, stops, and takes over from another.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use rustix::process::Signal;

use crate::weft::{Weft, command, run};

#[test]
fn without_a_file_two_guests_can_be_plugged_in() {
    let weft = Weft::start();
    let ports = weft.json(&["port", "list"]);
    assert_eq!(ports.as_array().unwrap().len(), 2);
    for port in ["vm1", "vm2"] {
        assert!(weft.at(&format!("{port}.sock")).exists());
    }
    assert!(weft.greeting.contains("weft is running"));
}

#[test]
fn a_program_that_starts_it_gets_its_status() {
    let weft = Weft::start_in(tempfile::tempdir().unwrap(), &["--json"]);
    let told: serde_json::Value = serde_json::from_str(&weft.greeting).unwrap();
    assert_eq!(told["pid"], weft.json(&["status"])["pid"]);
}

#[test]
fn only_its_own_user_can_reach_a_switch() {
    let weft = Weft::start();
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(weft.run_dir()), 0o700);
    assert_eq!(mode(weft.at("control.sock")), 0o600);
}

#[test]
fn a_signal_stops_it_and_its_sockets_are_gone() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let weft = Weft::start();
        let (status, dir) = weft.stop(signal);
        assert_eq!(status.code(), Some(0));
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(log.contains(&format!("stopping: {name}")), "{log}");
        let entries = std::fs::read_dir(dir.path().join("run")).unwrap();
        let mut left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["state", "weft.lock"]);
    }
}

#[test]
fn a_second_switch_on_the_same_run_directory_is_refused() {
    let weft = Weft::start();
    let pid = weft.json(&["status"])["pid"].to_string();
    let second = weft.run(&["run"]);
    assert_eq!(second.status, 1);
    assert!(second.stderr.contains("another weft") && second.stderr.contains(&pid), "{}", second.stderr);
    assert_eq!(weft.run(&["status"]).status, 0, "the first one was harmed");
    assert!(weft.at("vm1.sock").exists());
}

#[test]
fn a_start_that_fails_leaves_no_run_directory_that_was_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weft.toml");
    std::fs::write(&file, "[ports.vm1]\nsocket = \"/nowhere/vm1.sock\"\n").unwrap();
    let run_dir = dir.path().join("run");
    let start = || run(&["run", "--run-dir", run_dir.to_str().unwrap(), "--config", file.to_str().unwrap()]);
    let ran = start();
    assert!(ran.status == 1 && ran.stderr.contains("/nowhere"), "{}", ran.stderr);
    assert!(!run_dir.exists());
    std::fs::create_dir(&run_dir).unwrap();
    assert_eq!(start().status, 1);
    assert!(run_dir.exists());
}

#[test]
fn the_stale_sockets_of_a_dead_switch_are_taken_over() {
    let weft = Weft::start();
    assert_eq!(weft.run(&["port", "add", "extra"]).status, 0);
    let (_, dir) = weft.stop(Signal::KILL);
    for name in ["control.sock", "vm1.sock", "extra.sock"] {
        assert!(dir.path().join("run").join(name).exists(), "{name} is not stale, it is gone");
    }
    let alive = UnixListener::bind(dir.path().join("run/guest.sock")).unwrap();
    // One that knows nothing of the other's ports.
    let state = dir.path().join("another-state").to_str().unwrap().to_owned();
    let weft = Weft::start_in(dir, &["--state-dir", &state]);
    assert_eq!(weft.run(&["port", "show", "vm1"]).status, 0);
    assert!(!weft.at("extra.sock").exists(), "nobody listens there any more");
    assert!(weft.at("guest.sock").exists(), "somebody listens there");
    drop(alive);
}

#[test]
fn a_guest_keeps_its_address_over_a_restart() {
    let weft = Weft::start();
    let mac = weft.json(&["port", "show", "vm1"])["mac"].clone();
    let (_, dir) = weft.stop(Signal::TERM);
    assert_eq!(Weft::start_in(dir, &[]).json(&["port", "show", "vm1"])["mac"], mac);
}

#[test]
fn a_reload_changes_what_differs_and_nothing_else() {
    let weft = Weft::start_with_config("[ports.a]\n[ports.b]\n");
    // An inode number alone may be given to the next file.
    let identity = |name: &str| {
        let metadata = std::fs::metadata(weft.at(name)).unwrap();
        (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
    };
    let (a, b) = (identity("a.sock"), identity("b.sock"));
    weft.reload("[networks.default]\nageing_seconds = 60\n[ports.a]\n[ports.b]\nqueues = 2\n[ports.c]\n");
    assert_eq!(identity("a.sock"), a, "a port that does not differ was touched");
    assert_ne!(identity("b.sock"), b, "a port that differs was not made anew");
    assert!(weft.at("c.sock").exists());
    assert_eq!(weft.json(&["network", "show", "default"])["ageing_seconds"], 60);
    assert_eq!(weft.json(&["port", "show", "b"])["queues"], 2);
    weft.reload("[ports.a]\n");
    assert!(weft.at("a.sock").exists() && !weft.at("b.sock").exists() && !weft.at("c.sock").exists());
}

#[test]
fn a_reload_without_a_file_is_harmless() {
    let weft = Weft::start();
    weft.signal(Signal::HUP);
    weft.wait_for_log("SIGHUP, but there is no configuration file");
    assert_eq!(weft.run(&["status"]).status, 0);
}

#[test]
fn the_service_manager_hears_how_it_goes() {
    let weft = Weft::start();
    weft.signal(Signal::TERM);
    weft.wait_for_notification("STOPPING=1");
}

#[test]
fn the_watchdog_is_fed() {
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(crate::weft::PATIENCE)).unwrap();
    let mut child = command()
        .args(["run", "--run-dir"])
        .arg(dir.path().join("run"))
        .env("NOTIFY_SOCKET", &notify)
        .env("WATCHDOG_USEC", "200000")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut fed = 0;
    let mut message = [0; 4096];
    while fed < 3 {
        let count = manager.recv(&mut message).unwrap();
        fed += usize::from(String::from_utf8_lossy(&message[..count]).contains("WATCHDOG=1"));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_run_directory_comes_from_the_environment() {
    let weft = Weft::start();
    let ran = command().arg("status").env("WEFT_RUN_DIR", weft.run_dir()).output().unwrap();
    assert!(ran.status.success());
    // $XDG_RUNTIME_DIR/weft, made to be the same directory.
    std::os::unix::fs::symlink(weft.run_dir(), weft.dir.path().join("weft")).unwrap();
    let ran = command().arg("status").env("XDG_RUNTIME_DIR", weft.dir.path()).output().unwrap();
    assert!(ran.status.success());
}

#[test]
fn a_log_level_that_is_none_is_wrong_usage() {
    let parent = tempfile::tempdir().unwrap();
    for level in ["bogus", "a=b=c"] {
        let ran = run(&["run", "--run-dir", parent.path().to_str().unwrap(), "--log", level]);
        assert_eq!(ran.status, 2);
        assert!(ran.stderr.contains("no log level"), "{}", ran.stderr);
    }
}
