//! How many workers there are, where they run and how they poll: from the file, from the command line, and never changed while
//! weft runs.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity};
use serde_json::{Value, json};

use crate::weft::{PATIENCE, Weft, command, run};

/// The processors that this test may run on; weft may use all of them.
fn cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect()
}

/// A processor that no machine has on which these tests run.
const NOWHERE: &str = "1023";

fn declared(weft: &Weft) -> Value {
    weft.json(&["config", "show"])["workers"].clone()
}

#[test]
fn without_a_word_about_workers_there_is_one_that_is_not_pinned() {
    let weft = Weft::start();
    assert_eq!(declared(&weft), json!({ "count": 1, "cpus": "any", "polling": "adaptive" }));
    assert_eq!(weft.cpus_of_workers().len(), 1);
}

#[test]
fn the_file_says_how_many_workers_there_are_and_where_they_run() {
    let cpu = cpus()[0].to_string();
    let weft = Weft::start_with_config(&format!("[workers]\ncount = 3\ncpus = \"{cpu}\"\npolling = \"never\"\n[ports.a]\n"));
    assert_eq!(declared(&weft), json!({ "count": 3, "cpus": cpu, "polling": "never" }));
    assert_eq!(weft.cpus_of_workers(), [cpu.as_str(), &cpu, &cpu]);
    assert!(weft.log().contains("3 workers share 1 processor"), "{}", weft.log());
}

#[test]
fn the_command_line_comes_before_the_file() {
    let cpu = cpus().pop().unwrap().to_string();
    let file = format!("[workers]\ncount = 3\ncpus = \"{NOWHERE}\"\npolling = \"never\"\n");
    let weft = Weft::start_with_config_and(&file, &["--workers", "2", "--cpus", &cpu]);
    assert_eq!(declared(&weft), json!({ "count": 2, "cpus": cpu, "polling": "never" }));
    assert_eq!(weft.cpus_of_workers(), [cpu.as_str(), &cpu]);
    let weft = Weft::start_with_config_and(&file, &["--cpus", "any", "--polling", "adaptive"]);
    assert_eq!(declared(&weft), json!({ "count": 3, "cpus": "any", "polling": "adaptive" }));
}

#[test]
fn the_command_line_needs_no_file() {
    let weft = Weft::start_in(tempfile::tempdir().unwrap(), &["--workers", "2"]);
    assert_eq!(weft.cpus_of_workers().len(), 2);
    assert!(weft.at("vm1.sock").exists());
}

#[test]
fn what_the_command_line_says_about_workers_holds_after_a_reload() {
    let weft = Weft::start_with_config_and("[workers]\ncount = 1\n[ports.a]\n", &["--workers", "2"]);
    let before = declared(&weft);
    weft.reload("[workers]\ncount = 3\n[ports.a]\n[ports.b]\n");
    assert!(weft.at("b.sock").exists(), "what the file says about workers doesn't hold, and got in the way: {}", weft.log());
    assert_eq!(declared(&weft), before);
    weft.reload("[workers]\ncount = 3\npolling = \"never\"\n[ports.a]\n");
    assert!(weft.at("b.sock").exists() && weft.log().contains("polling from adaptive to never"), "{}", weft.log());
    assert_eq!(declared(&weft), before);
}

#[test]
fn a_reload_with_other_workers_is_refused_as_a_whole() {
    let weft = Weft::start_with_config("[ports.a]\n");
    let before = weft.json(&["config", "show"]);
    weft.reload("[workers]\ncount = 2\npolling = \"never\"\n[networks.default]\nmtu = 9000\n[ports.b]\n");
    assert_eq!(weft.json(&["config", "show"]), before);
    assert!(weft.at("a.sock").exists() && !weft.at("b.sock").exists());
    assert_eq!(weft.cpus_of_workers().len(), 1);
    let refusal = "weft.toml is not applied: it takes a restart to change workers.count from 1 to 2, workers.polling from adaptive \
                   to never: restart weft, or take this change back to have the rest applied";
    assert!(weft.log().contains(refusal), "{}", weft.log());
    weft.reload("[workers]\ncount = 1\n[ports.b]\n");
    assert!(!weft.at("a.sock").exists() && weft.at("b.sock").exists(), "the rest is not applied either: {}", weft.log());
}

#[test]
fn workers_that_are_only_written_in_another_way_are_no_change() {
    let [first, .., last] = cpus()[..] else {
        eprintln!("there is one processor, and no two ways to write it");
        return;
    };
    let weft = Weft::start_with_config(&format!("[workers]\ncount = 2\ncpus = \"{first},{last}\"\n"));
    weft.reload(&format!("[workers]\ncount = 2\ncpus = \"{first}-{first},{last}\"\npolling = \"adaptive\"\n[ports.a]\n"));
    assert!(weft.at("a.sock").exists(), "{}", weft.log());
    assert_eq!(weft.cpus_of_workers(), [first.to_string(), last.to_string()]);
}

#[test]
fn the_workers_that_are_shown_can_be_used_as_a_file() {
    let cpu = cpus()[0].to_string();
    let options = ["--workers", "2", "--cpus", cpu.as_str(), "--polling", "never"];
    let weft = Weft::start_with_config_and("[networks.default]\nsubnet = \"10.78.9.0/24\"\n[ports.a]\n", &options);
    let shown = weft.run(&["config", "show"]).stdout;
    let again = Weft::start_with_config(&shown);
    assert_eq!(again.json(&["config", "show"]), weft.json(&["config", "show"]));
    again.reload(&shown);
    again.wait_for_log("says what runs already");
    weft.reload(&shown);
    weft.wait_for_log("says what runs already");
}

#[test]
fn a_processor_that_is_not_there_is_named_and_nothing_starts() {
    let parent = tempfile::tempdir().unwrap();
    let (run_dir, file) = (parent.path().join("run"), parent.path().join("weft.toml"));
    let here = cpus()[0];
    // One worker, and it could run: an operator who names a processor means it.
    std::fs::write(&file, format!("[workers]\ncpus = \"{here},{NOWHERE}\"\n")).unwrap();
    let list = format!("{here},{NOWHERE}");
    for args in [["--config", file.to_str().unwrap()].as_slice(), &["--cpus", &list], &["--cpus", &list, "--workers", "2"]] {
        let ran = run(&[&["run", "--run-dir", run_dir.to_str().unwrap()], args].concat());
        assert_eq!(ran.status, 1, "{}", ran.stderr);
        let expected = format!("weft: no worker can run on processor {NOWHERE}: it is not there, or weft may not use it; ");
        assert!(ran.stderr.starts_with(&expected), "{}", ran.stderr);
        assert!(ran.stderr.contains("--cpus") && ran.stderr.contains("cpus in [workers]"), "{}", ran.stderr);
        assert!(ran.stderr.contains("weft can use processor"), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(!run_dir.exists(), "something was left behind");
    }
}

#[test]
fn workers_that_can_not_be_are_wrong_usage() {
    for (option, value, expected) in [
        ("--workers", "0", "from 1 to 64"),
        ("--workers", "65", "from 1 to 64"),
        ("--workers", "two", "from 1 to 64"),
        ("--cpus", "5-2", "write 2-5"),
        ("--cpus", "2,2", "twice"),
        ("--cpus", "all", "2-5,8"),
        ("--cpus", "1024", "from 0 to 1023"),
        ("--polling", "on", "adaptive, always, never"),
    ] {
        let ran = run(&["run", option, value]);
        assert_eq!(ran.status, 2, "{option} {value} gave {:?}", ran.stderr);
        assert!(ran.stderr.contains(expected) && ran.stderr.contains(option), "{}", ran.stderr);
    }
}

#[test]
fn a_file_with_bad_workers_is_refused_with_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weft.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        run(&["config", "check", file.to_str().unwrap()])
    };
    let bad = check("[ports.a]\n[workers]\ncpus = \"2-5,3\"\n");
    assert_eq!(bad.status, 1);
    assert!(bad.stderr.contains(":3:8: workers.cpus: processor 3 is there twice"), "{}", bad.stderr);
    // Another machine's processors, perhaps: whether they are there is seen when weft starts.
    let good = check(&format!("[ports.a]\n[workers]\ncount = 2\ncpus = \"{NOWHERE}\"\n"));
    assert_eq!(good.status, 0, "{}", good.stderr);
    assert!(good.stdout.ends_with("weft.toml is good: 1 network, 1 port, 2 workers\n"), "{}", good.stdout);
}

#[test]
fn the_status_shows_each_worker() {
    let cpu = cpus()[0];
    let cpu_text = cpu.to_string();
    let options = ["--workers", "2", "--cpus", cpu_text.as_str()];
    let weft = Weft::start_in(tempfile::tempdir().unwrap(), &options);
    for command in ["status", "stats"] {
        let workers = weft.json(&[command])["workers"].clone();
        for (number, worker) in workers.as_array().unwrap().iter().enumerate() {
            let known = [&worker["number"], &worker["cpu"], &worker["polling"], &worker["spin_us"], &worker["rings"]];
            assert_eq!(json!(known), json!([number, cpu, "adaptive", 50, 0]));
            for counter in ["rounds", "busy_rounds", "sleeps"] {
                assert!(worker[counter].is_u64(), "{counter}: {worker}");
            }
            assert!(worker["asleep"].is_boolean(), "{worker}");
        }
        assert_eq!(workers.as_array().unwrap().len(), 2);
        let text = weft.run(&[command]).stdout;
        let table: Vec<_> = text.lines().skip_while(|line| !line.contains("WORKER")).collect();
        assert_eq!(table.len(), 3, "{text}");
        assert!(table[1].contains("adaptive, 50 µs") && table[1].contains(" % "), "{text}");
        assert!(table.iter().all(|line| line.chars().count() <= 100), "{text}");
    }
}

fn first_worker(weft: &Weft) -> Value {
    weft.json(&["status"])["workers"][0].clone()
}

/// Asks until the first worker is as wanted.
fn wait_for_first_worker(weft: &Weft, wanted: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let worker = first_worker(weft);
        if wanted(&worker) {
            return worker;
        }
        assert!(Instant::now() < until, "it stays like this: {worker}");
    }
}

#[test]
fn a_worker_that_always_polls_never_sleeps() {
    let weft = Weft::start_in(tempfile::tempdir().unwrap(), &["--polling", "always"]);
    let before = first_worker(&weft)["rounds"].as_u64().unwrap();
    let worker = wait_for_first_worker(&weft, |worker| worker["rounds"].as_u64().unwrap() > before + 1000);
    assert_eq!(worker["polling"], "always");
    assert_eq!((&worker["sleeps"], &worker["asleep"], &worker["spin_us"]), (&json!(0), &json!(false), &Value::Null));
}

#[test]
fn a_worker_that_has_nothing_to_do_sleeps_and_is_not_woken_by_questions() {
    for (mode, spin_us) in [("adaptive", json!(50)), ("never", Value::Null)] {
        let weft = Weft::start_in(tempfile::tempdir().unwrap(), &["--polling", mode]);
        let asleep = wait_for_first_worker(&weft, |worker| worker["asleep"] == true);
        assert_eq!((&asleep["polling"], &asleep["spin_us"]), (&json!(mode), &spin_us));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(first_worker(&weft), asleep);
    }
}

#[test]
fn watched_statistics_show_how_busy_each_worker_was() {
    use std::io::{BufRead, BufReader};
    let weft = Weft::start_in(tempfile::tempdir().unwrap(), &["--workers", "2"]);
    let mut child = command().args(["stats", "--watch", "--run-dir"]).arg(weft.run_dir()).stdout(Stdio::piped()).spawn().unwrap();
    let lines: Vec<_> = BufReader::new(child.stdout.take().unwrap()).lines().take(7).map(Result::unwrap).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lines[4].contains("ROUNDS/s") && lines[4].contains("BUSY") && lines[4].contains("SLEEPS/s"), "{lines:#?}");
    // Nobody is there who could send a frame.
    assert!(lines[5..].iter().all(|line| line.contains(" 0.0 %")), "{lines:#?}");
}
