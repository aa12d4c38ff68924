//! `weft-load`: frames through any vhost-user net back-end, from guests that cost next to nothing.
//!
//! Two guests in this process plug into two sockets of a switch. Their rings are written once, and then only indexes move; so one
//! core of load is enough to find the limit of one core of switch. How often the generator found nothing to do is
//! reported: if that is never, it was the bottleneck and not the switch.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use weft_benches::load::{self, LoadError, Loop, Options, Report};
use weft_guest::Socket;

/// Sends frames through a vhost-user switch and reports how many arrive.
#[derive(Debug, Parser)]
#[command(name = "weft-load", version)]
struct Arguments {
    /// The socket of the sending guest's port
    sender: PathBuf,
    /// The socket of the receiving guest's port
    receiver: PathBuf,
    /// Frame sizes in bytes, the 4 bytes of FCS included
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512, 1518], value_parser = clap::value_parser!(u16).range(64..=2040))]
    sizes: Vec<u16>,
    /// Seconds for each size
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Stations behind each port; frames go from each to each in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    stations: u16,
    /// Send in both directions at once
    #[arg(long)]
    both: bool,
    /// Keep at most this many frames under way, so that none may be lost; otherwise send whatever fits
    #[arg(long, value_name = "FRAMES")]
    closed: Option<u32>,
    /// Send one frame at a time and report how long each takes
    #[arg(long, conflicts_with_all = ["both", "closed"])]
    latency: bool,
    /// The sockets are ours: listen, and let the switch connect
    #[arg(long)]
    listen: bool,
    /// Descriptors of each ring
    #[arg(long, default_value_t = 1024)]
    ring_size: u16,
    /// Don't negotiate mergeable receive buffers
    #[arg(long)]
    no_mergeable: bool,
    /// Print JSON, one object a size
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), LoadError> {
    for &size in &arguments.sizes {
        let report = load::run(&Options {
            sockets: [arguments.sender.clone(), arguments.receiver.clone()],
            socket: if arguments.listen { Socket::Listen } else { Socket::Connect },
            frame_len: usize::from(size) - 4,
            duration: Duration::from_secs_f64(arguments.seconds),
            stations: arguments.stations,
            both_ways: arguments.both,
            pace: match (arguments.latency, arguments.closed) {
                (true, _) => Loop::OneAtATime,
                (false, Some(frames)) => Loop::Closed(frames),
                (false, None) => Loop::Open,
            },
            ring_size: arguments.ring_size,
            mergeable: !arguments.no_mergeable,
        })?;
        print(size, &report, arguments.json);
    }
    Ok(())
}

fn print(size: u16, report: &Report, json: bool) {
    if json {
        let mut value = serde_json::to_value(report).expect("a report is plain numbers");
        value["size"] = size.into();
        println!("{value}");
        return;
    }
    let rate = report.received as f64 / report.seconds;
    print!("{size:5} B  {:7.3} M frames/s  {:7.2} Gbit/s", rate / 1e6, rate * f64::from(size) * 8.0 / 1e9);
    print!("  {} lost  {:4.1} % of looks found nothing", report.sent - report.received, report.idle_percent());
    match &report.latency {
        Some(latency) => println!("  one way p50 {} ns, p99 {} ns, max {} ns", latency.p50_ns, latency.p99_ns, latency.max_ns),
        None => println!(),
    }
}
