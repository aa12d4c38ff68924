//! Shaping and impairment against what theory says, with Linux stacks as guests: ping, iperf3 over UDP and TCP. `docs/impairment.md` has the figures.
//!
//! Needs root and `benches/iperf/setup`. By hand: `cargo build --release -p weft -p weft-benches && cargo test --release -p weft-benches --test
//! lines -- --ignored --nocapture --test-threads=1`, which takes a few minutes.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use weft_tests::Weft;
use weft_tests::native::native_guest;
use weft_tests::process::Process;
use weft_tests::wait::wait_until;

const IP1: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const IP2: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Seconds of each stream, and how many of TCP's first are left out. (iperf3's own `--omit` counts datagrams that were lost in them all the same.)
const SECONDS: &str = "22";
const OMITTED: usize = 2;
/// Bytes of payload in a full frame with TCP timestamps, and of that frame.
const PAYLOAD: f64 = 1448.0;
const FRAME: f64 = 1514.0;

/// Two guests, the first of them behind the line; the second one sends.
struct World {
    weft: Weft,
    one: Process,
    two: Process,
}

#[test]
#[ignore = "needs root"]
fn ping_takes_the_delay_of_both_ways_and_loses_what_it_should() {
    let world = World::boot();
    for (impairment, delay, deviation) in [("delay=1ms", 2.0, 0.0), ("delay=20ms", 40.0, 0.0), ("delay=20ms±5ms", 40.0, 4.08)] {
        world.set(&["--impair", impairment]);
        let (_, [mean, spread]) = world.ping("500");
        println!(
            "{impairment}: round trip {mean:.2} ms instead of {delay}, standard deviation {spread:.2} ms instead of {deviation}"
        );
        assert!((delay..delay + 1.5).contains(&mean) && (spread - deviation).abs() < 1.0);
    }
    world.set(&["--impair", "loss=5%"]);
    let (lost, _) = world.ping("5000");
    let expected = 100.0 * (1.0 - 0.95_f64.powi(2));
    println!("loss=5%: {lost:.2} % of pings got no answer instead of {expected:.2} %");
    // Four standard deviations.
    assert!((lost - expected).abs() < 1.7);
}

#[test]
#[ignore = "needs root"]
fn datagrams_are_lost_as_they_should_be() {
    let world = World::boot();
    for percent in [0.1, 1.0, 10.0] {
        world.set(&["--impair", "none", "--impair-out", &format!("loss={percent}%")]);
        let sum = world.iperf(&["--udp", "--bitrate", "100M", "--length", "1400"]);
        let (lost, of) = (sum["lost_percent"].as_f64().unwrap(), sum["packets"].as_f64().unwrap());
        println!("loss={percent}%: {lost:.3} % of {of} datagrams");
        let deviation = 100.0 * (percent / 100.0 * (1.0 - percent / 100.0) / of).sqrt();
        assert!((lost - percent).abs() < 4.0 * deviation);
    }
}

#[test]
#[ignore = "needs root"]
fn shaped_streams_have_their_rate() {
    let world = World::boot();
    for (rate, bits) in [("10M", 1e7), ("100M", 1e8), ("1G", 1e9), ("10G", 1e10)] {
        world.set(&["--impair", "none", "--limit-out", rate]);
        let [tcp, lowest, highest] = world.tcp("cubic");
        let expected = bits * PAYLOAD / FRAME;
        println!(
            "--limit-out {rate}: TCP {:.1} % of what its payload can have, {:.1} to {:.1} % in each second",
            100.0 * tcp / expected,
            100.0 * lowest / expected,
            100.0 * highest / expected
        );
        // The fastest depends on what the machine has left for the stacks.
        assert!(bits > 5e9 || (0.97..1.03).contains(&(tcp / expected)), "{tcp} instead of {expected}");
        // Stacks send no faster than some 0.7 Gbit/s of datagrams on a small machine.
        if bits > 5e8 {
            continue;
        }
        let offered = format!("{}", 1.2 * bits);
        let sum = world.iperf(&["--udp", "--bitrate", &offered, "--length", "1400"]);
        let got = sum["bits_per_second"].as_f64().unwrap() * (1.0 - sum["lost_percent"].as_f64().unwrap() / 100.0);
        let expected = bits * 1400.0 / 1442.0;
        println!("--limit-out {rate}: UDP {:.1} %", 100.0 * got / expected);
        // What fits into the queue beside.
        assert!((0.97..1.03).contains(&(got / expected)), "{got} instead of {expected}");
    }
}

/// Mathis, Semke, Mahdavi, Ott: The Macroscopic Behavior of the TCP Congestion Avoidance Algorithm (1997). Rate = MSS / RTT × C / √p, where C is 1.22 if each segment is
/// acknowledged, and 0.87 if every second one is.
#[test]
#[ignore = "needs root"]
fn reno_has_the_rate_that_loss_and_delay_leave_it() {
    let world = World::boot();
    for percent in [0.01_f64, 0.1, 1.0] {
        world.set(&["--impair-in", "delay=20ms", "--impair-out", &format!("delay=20ms,loss={percent}%")]);
        let [rate, ..] = world.tcp("reno");
        let bound = |c: f64| PAYLOAD * 8.0 / 0.040 * c / (percent / 100.0).sqrt();
        println!(
            "delay=20ms each way, loss={percent}%: {:.2} Mbit/s; theory says {:.2} to {:.2}",
            rate / 1e6,
            bound(0.87) / 1e6,
            bound(1.22) / 1e6
        );
        assert!((bound(0.87) * 0.7..bound(1.22) * 1.3).contains(&rate));
    }
}

impl World {
    fn boot() -> Self {
        let weft = Weft::start();
        let [one, two] = [("vm1", IP1), ("vm2", IP2)].map(|(port, ip)| {
            native_guest(env!("CARGO_BIN_EXE_weft-guest-tap"), &weft.socket(port), &["--address", &format!("{ip}/24")])
        });
        Self { weft, one, two }
    }

    fn set(&self, options: &[&str]) {
        self.weft.json(&[&["port", "set", "vm1"], options].concat());
    }

    /// Something that runs in the second guest, or the first.
    fn command(guest: &Process, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &guest.pid().to_string(), "--net", program]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Percent that got no answer, the mean of the others in milliseconds, and their standard deviation.
    fn ping(&self, count: &str) -> (f64, [f64; 2]) {
        let ip = IP1.to_string();
        let output = Self::command(&self.two, "ping", &["-q", "-i", "0.004", "-c", count, &ip]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let before =
            |word: &str| text.split(word).next().and_then(|text| text.split(' ').next_back()).unwrap_or_default().to_owned();
        let lost = before("% packet loss").parse().unwrap_or_else(|_| panic!("{text}"));
        let times = text.split(" = ").nth(1).map(|times| times.trim_end_matches(" ms\n").split('/')).into_iter().flatten();
        let times: Vec<f64> = times.filter_map(|time| time.split(',').next()?.trim_end_matches(" ms").parse().ok()).collect();
        let [_, mean, _, spread] = times[..] else { panic!("{text}") };
        (lost, [mean, spread])
    }

    /// What the receiver of a stream from the second guest to the first says in the end.
    fn iperf(&self, options: &[&str]) -> Value {
        self.report(options)["end"]["sum"].clone()
    }

    /// What TCP brought, in bits a second: over all, and in the worst and the best second.
    fn tcp(&self, congestion: &str) -> [f64; 3] {
        let report = self.report(&["--congestion", congestion, "--get-server-output"]);
        let bits = |value: &Value| value["bits_per_second"].as_f64().unwrap_or_else(|| panic!("no rate in {value}"));
        let seconds = report["server_output_json"]["intervals"].as_array().unwrap_or_else(|| panic!("no intervals in {report}"));
        let whole = |sum: &&Value| sum["seconds"].as_f64().is_some_and(|seconds| seconds > 0.9);
        let rates: Vec<f64> = seconds.iter().map(|second| &second["sum"]).filter(whole).map(bits).skip(OMITTED).collect();
        let (lowest, highest) = rates.iter().fold((f64::MAX, 0.0_f64), |(low, high), rate| (low.min(*rate), high.max(*rate)));
        [rates.iter().sum::<f64>() / rates.len() as f64, lowest, highest]
    }

    fn report(&self, options: &[&str]) -> Value {
        let ip = IP1.to_string();
        let mut server = Self::command(&self.one, "iperf3", &["--server", "--one-off", "--json"]).spawn().unwrap();
        let common = ["--client", &ip, "--json", "--time", SECONDS];
        let mut report = Value::Null;
        wait_until("the server to listen", READY_LIMIT, || {
            let output = Self::command(&self.two, "iperf3", &[&common[..], options].concat()).output().unwrap();
            report = serde_json::from_slice(&output.stdout).unwrap_or_default();
            report["error"].is_null()
        });
        server.wait().unwrap();
        report
    }
}
