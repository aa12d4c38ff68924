//! `weft-load` as its users see it: the program, plugged into a running weft.
//!
//! A switch that is right gives a checker nothing to find. So in some of these a relay stands in the middle, a guest with a foot in
//! each of two networks, that does to frames what a broken switch might.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use weft_guest::Guest;
use weft_tests::Weft;

/// What one run of the program left behind.
struct Ran {
    success: bool,
    reports: Vec<Value>,
    stderr: String,
}

/// Runs weft-load with `--json` and these arguments.
fn load(sockets: &[PathBuf], arguments: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-load"));
    let Output { status, stdout, stderr } =
        command.args(sockets).args(arguments.split_whitespace()).arg("--json").output().expect("weft-load can be run");
    let stdout = String::from_utf8(stdout).unwrap();
    let reports =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    Ran { success: status.success(), reports, stderr: String::from_utf8(stderr).unwrap() }
}

/// The report of a single run that must go well.
#[track_caller]
fn report(sockets: &[PathBuf], arguments: &str) -> Value {
    let mut ran = load(sockets, arguments);
    assert!(ran.success && ran.stderr.is_empty(), "{arguments}: {}", ran.stderr);
    assert_eq!(ran.reports.len(), 1, "{arguments}");
    ran.reports.remove(0)
}

/// Of a network that asks nobody for groups: what a guest receives is what others have sent.
fn ports(weft: &Weft) -> Vec<PathBuf> {
    weft.json(&["network", "set", "default", "--multicast", "flood"]);
    vec![weft.socket("vm1"), weft.socket("vm2")]
}

fn intact(frames: u64) -> Value {
    json!({ "intact": frames, "damaged": 0, "duplicated": 0, "reordered": 0, "retagged": 0 })
}

#[test]
fn every_frame_arrives_intact_whatever_it_looks_like() {
    let weft = Weft::start();
    let sockets = ports(&weft);
    for options in [
        "",
        "--sizes 1518",
        "--sizes 9018",
        "--no-mergeable",
        "--sizes 9018 --no-mergeable",
        "--ring-size 64 --closed 50",
        "--flows 10",
        "--flows 5000",
        "--stations 3",
        "--stations 3000",
        "--vlan 7",
        "--vlan 1,2,4094 --stations 5 --flows 7",
        "--chain 4",
        "--chain 64 --sizes 1518",
        "--chain 3 --indirect",
        "--chain 2 --indirect --sizes 1518",
        "--spread 64M",
        "--tso 65549 --closed 8",
        "--tso 9000 --closed 8 --flows 3 --vlan 9 --chain 2",
        "--tso 40000 --closed 100 --no-mergeable --spread 1G",
        "--packed",
        "--in-order",
        "--packed --in-order --sizes 1518",
        "--packed --ring-size 512 --chain 4 --no-mergeable",
        "--packed --in-order --chain 3 --indirect --flows 5000",
        "--packed --tso 65549 --closed 8 --chain 2",
    ] {
        let closed = if options.contains("--closed") { "" } else { "--closed 100" };
        let size = if options.contains("--sizes") || options.contains("--tso") { "" } else { "--sizes 64" };
        let report = report(&sockets, &format!("--check --frames 5000 {closed} {size} {options}"));
        assert_eq!(report["check"], intact(5000), "{options}");
        assert_eq!((&report["sent"], &report["lost"]), (&json!(5000), &json!(0)), "{options}");
    }
}

#[test]
fn behind_a_trunk_the_receiver_is_known_and_gets_frames_with_a_tag() {
    let weft = Weft::start();
    weft.json(&["port", "add", "access", "--vlan", "7"]);
    weft.json(&["port", "add", "trunk", "--trunk", "7"]);
    let sockets = [weft.socket("access"), weft.socket("trunk")];
    let report = report(&sockets, "--check --frames 5000 --closed 100 --sizes 64 --trunk 7");
    assert_eq!(report["check"], json!({ "intact": 5000, "damaged": 0, "duplicated": 0, "reordered": 0, "retagged": 5000 }));
    let network = weft.json(&["network", "show", "default"]);
    assert_eq!(network["fdb"]["learned"], 2, "the receiver, too: {network}");
}

#[test]
fn both_directions_are_reported_apart() {
    let weft = Weft::start();
    let report = report(&ports(&weft), "--check --frames 3000 --closed 64 --both --sizes 512");
    assert_eq!(report["check"], intact(6000));
    let direction =
        |from, to| json!({ "from": from, "to": to, "sent": 3000, "received": 3000, "lost": 0, "check": intact(3000) });
    assert_eq!(report["directions"], json!([direction(0, 1), direction(1, 0)]));
}

#[test]
fn with_more_ports_everybody_sends_to_everybody() {
    let weft = Weft::start();
    let mut sockets = ports(&weft);
    for (port, name) in [(3, "vm3"), (4, "vm4")] {
        sockets.push(weft.add_port(name));
        let frames = 3000 - 3000 % (port - 1);
        for options in ["--check", "--check --flows 2000 --vlan 3,4", ""] {
            let report = report(&sockets, &format!("--frames {frames} --closed 64 --sizes 64 {options}"));
            let directions = report["directions"].as_array().unwrap();
            assert_eq!(directions.len() as u64, port * (port - 1));
            let each = frames / (port - 1);
            for direction in directions {
                if options.is_empty() {
                    // Frames that are written once go round with the ring, whose laps need not be whole turns.
                    let sent = direction["sent"].as_u64().unwrap();
                    assert!(sent.abs_diff(each) <= frames / 1024 + 1, "{port} ports: {direction}");
                    assert_eq!(direction["received"], Value::Null, "nobody has looked at who sent what");
                } else {
                    assert_eq!(
                        (&direction["sent"], &direction["check"]),
                        (&json!(each), &intact(each)),
                        "{port} ports: {direction}"
                    );
                }
            }
            assert_eq!(directions.iter().map(|direction| direction["sent"].as_u64().unwrap()).sum::<u64>(), frames * port);
            assert_eq!(report["received"], json!(frames * port));
        }
    }
}

#[test]
fn several_queue_pairs_are_used_in_turn() {
    let weft = Weft::start();
    let sockets = ["multi1", "multi2"].map(|port| {
        weft.cli(&["port", "add", port, "--queues", "4"]);
        weft.socket(port)
    });
    for rings in ["", "--packed", "--packed --in-order"] {
        let arguments = format!("--check --frames 4000 --closed 64 --both --queues 4 --flows 64 --sizes 64 {rings}");
        let report = report(&sockets, &arguments);
        assert_eq!(report["check"], intact(8000), "{rings}");
        assert!(report["guests"][0]["features"].as_array().unwrap().contains(&json!("MQ")));
    }
}

#[test]
fn weft_may_be_the_one_that_connects() {
    let weft = Weft::start();
    let sockets = ["client1", "client2"].map(|port| weft.add_client_port(port));
    assert_eq!(report(&sockets, "--listen --check --frames 1000 --closed 64 --sizes 64")["check"], intact(1000));
}

#[test]
fn a_report_says_what_was_asked_and_who_waited() {
    let weft = Weft::start();
    let sockets = ports(&weft);
    let report = report(&sockets, "--seconds 0.2 --sizes 64 --no-mergeable --vlan 5 --flows 9");
    let asked = &report["asked"];
    assert_eq!(asked["sockets"], json!(sockets));
    assert_eq!((&asked["payload"], &asked["vlans"], &asked["flows"]), (&json!("udp"), &json!([5]), &json!(9)));
    assert_eq!((&asked["pace"], &asked["rings"]["mergeable"]), (&json!("open"), &json!(false)));
    assert!((0.2..2.0).contains(&report["seconds"].as_f64().unwrap()), "{report}");
    assert!(report["frames_per_second"].as_f64().unwrap() > 1000.0, "{report}");
    assert!(report["looks"].as_u64().unwrap() >= report["idle_looks"].as_u64().unwrap());
    let [from, to] = &report["guests"].as_array().unwrap()[..] else { panic!("two guests: {report}") };
    assert_eq!((&from["sent"], &to["received"]), (&report["sent"], &report["received"]));
    assert!(!from["features"].as_array().unwrap().contains(&json!("MRG_RXBUF")), "{from}");
    assert!(from["features"].as_array().unwrap().contains(&json!("VERSION_1")), "{from}");
    // At least at the first look nothing can have arrived.
    assert!(to["receive_waits"].as_u64().unwrap() > 0 && from["send_waits"].is_u64(), "{report}");
}

#[test]
fn every_size_has_a_report_of_its_own() {
    let weft = Weft::start();
    let ran = load(&ports(&weft), "--frames 100 --closed 10 --sizes 64,100,1518");
    assert!(ran.success, "{}", ran.stderr);
    assert_eq!(ran.reports.iter().map(|report| report["size"].as_u64().unwrap()).collect::<Vec<_>>(), [64, 100, 1518]);
}

#[test]
fn nobody_who_reads_is_no_failure() {
    let weft = Weft::start();
    for format in [&["--json"][..], &[]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-load"));
        command.args(ports(&weft)).args(["--frames", "1000", "--sizes", "64,512"]).args(format);
        let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("weft-load can be run");
        drop(running.stdout.take());
        let ended = running.wait_with_output().expect("weft-load ends");
        assert!(ended.status.success(), "{}", ended.status);
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    }
}

#[test]
fn latency_has_its_percentiles() {
    let weft = Weft::start();
    let report = report(&ports(&weft), "--latency --frames 2000 --sizes 64");
    let times = ["p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "max_ns"].map(|name| report["latency"][name].as_u64().unwrap());
    assert!(times[0] > 0 && times.is_sorted(), "{times:?}");
    assert_eq!(report["received"], json!(2000));
}

#[test]
fn what_can_not_be_is_said_before_anything_is_sent() {
    let weft = Weft::start();
    let sockets = ports(&weft);
    for (arguments, message) in [
        ("--chain 3", "weft-load: --chain 3 does not divide the ring's 1024 descriptors: choose one that does, or --indirect\n"),
        ("--queues 2", "offers 1 queue pairs"),
        ("--latency --both", "'--latency' cannot be used with '--both'"),
    ] {
        let ran = load(&sockets, arguments);
        assert!(!ran.success && ran.reports.is_empty(), "{arguments}");
        assert!(ran.stderr.contains(message), "{arguments}: {}", ran.stderr);
    }
    let nobody = weft.run_dir().join("nobody.sock");
    let ran = load(&[sockets[0].clone(), nobody], "");
    assert!(ran.stderr.contains("nobody.sock: cannot connect to the back-end"), "{}", ran.stderr);
    let _guest = UnixStream::connect(&sockets[0]).unwrap();
    let ran = load(&sockets, "--frames 1");
    assert!(ran.stderr.contains("vm1.sock: the switch closed the connection at once: another guest"), "{}", ran.stderr);
}

/// Two networks, `default` with vm1 and `other` with the returned socket; frames get from one to the other by the relay alone.
fn apart(weft: &Weft) -> (Vec<PathBuf>, [PathBuf; 2]) {
    weft.cli(&["network", "add", "other"]);
    for port in ["far", "relay2"] {
        weft.cli(&["port", "add", port, "--network", "other"]);
    }
    (vec![weft.socket("vm1"), weft.socket("far")], [weft.socket("vm2"), weft.socket("relay2")])
}

/// A guest in two networks that passes frames on.
struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What a relay does with the n-th long frame from the first network: gives the frames that go on.
type Mischief = fn(u64, Vec<u8>, &mut Vec<Vec<u8>>) -> Vec<Vec<u8>>;

impl Relay {
    fn start(sockets: &[PathBuf; 2], mischief: Mischief) -> Self {
        let [mut left, mut right] = sockets.each_ref().map(|socket| Guest::builder(socket).connect().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut count, mut held) = (0, Vec::new());
            let moment = Duration::from_micros(100);
            while !until.load(Ordering::Relaxed) {
                if let Some(frame) = left.receive(moment).unwrap() {
                    // The short ones introduce the stations.
                    let frames = if frame.len() <= 60 {
                        vec![frame]
                    } else {
                        count += 1;
                        mischief(count, frame, &mut held)
                    };
                    frames.iter().for_each(|frame| right.send(frame).unwrap());
                }
                if let Some(frame) = right.receive(Duration::ZERO).unwrap() {
                    left.send(&frame).unwrap();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.thread.take().expect("it is stopped once").join();
        if !std::thread::panicking() {
            outcome.expect("the relay ran to the end");
        }
    }
}

/// Runs 1,000 frames over a relay that does this, and gives the report and what was said.
#[track_caller]
fn over_relay(mischief: Mischief) -> Ran {
    let weft = Weft::start();
    let (sockets, feet) = apart(&weft);
    let relay = Relay::start(&feet, mischief);
    let ran = load(&sockets, "--check --frames 1000 --closed 8 --sizes 256 --flows 3");
    drop(relay);
    assert_eq!(ran.reports.len(), 1, "what was found is reported, good or bad: {}", ran.stderr);
    ran
}

fn findings(ran: &Ran) -> [u64; 5] {
    let report = &ran.reports[0];
    let check = |name: &str| report["check"][name].as_u64().unwrap();
    [check("intact"), check("damaged"), check("duplicated"), check("reordered"), report["lost"].as_u64().unwrap()]
}

#[test]
fn an_honest_relay_leaves_nothing_to_find() {
    let ran = over_relay(|_, frame, _| vec![frame]);
    assert!(ran.success, "{}", ran.stderr);
    assert_eq!(findings(&ran), [1000, 0, 0, 0, 0]);
}

#[test]
fn a_damaged_frame_is_found() {
    let ran = over_relay(|nth, mut frame, _| {
        if nth % 50 == 0 {
            // Anywhere behind the addresses, which the switch needs to bring it here.
            let at = 12 + nth as usize % (frame.len() - 12);
            frame[at] ^= 0x10;
        }
        vec![frame]
    });
    assert_eq!(findings(&ran), [980, 20, 0, 0, 0]);
    assert!(!ran.success && ran.stderr.contains("20 frames damaged"), "{}", ran.stderr);
}

#[test]
fn a_frame_that_is_too_short_is_found() {
    let ran = over_relay(|nth, mut frame, _| {
        frame.truncate(frame.len() - usize::from(nth == 77));
        vec![frame]
    });
    assert_eq!(findings(&ran), [999, 1, 0, 0, 0]);
    assert!(!ran.success);
}

#[test]
fn a_lost_frame_is_found() {
    let ran = over_relay(|nth, frame, _| if nth == 700 || nth == 1000 { Vec::new() } else { vec![frame] });
    assert_eq!(findings(&ran), [998, 0, 0, 0, 2]);
    assert!(!ran.success && ran.stderr.contains("2 frames were lost in a closed loop"), "{}", ran.stderr);
}

#[test]
fn a_frame_that_comes_twice_is_found() {
    let ran = over_relay(|nth, frame, _| if nth % 100 == 0 { vec![frame.clone(), frame] } else { vec![frame] });
    assert_eq!(findings(&ran), [1000, 0, 10, 0, 0]);
    assert!(!ran.success && ran.stderr.contains("10 duplicated"), "{}", ran.stderr);
}

#[test]
fn a_frame_that_is_overtaken_is_found() {
    // Three flows take turns, so the next frame of the same flow is the third from here.
    let ran = over_relay(|nth, frame, held| match nth % 100 {
        0 => {
            held.push(frame);
            Vec::new()
        }
        3 if nth > 3 => vec![frame, held.pop().unwrap()],
        _ => vec![frame],
    });
    // The tenth is held when all others have come, and lost.
    assert_eq!(findings(&ran), [999, 0, 0, 9, 1]);
    assert!(!ran.success && ran.stderr.contains("9 out of order"), "{}", ran.stderr);
}
