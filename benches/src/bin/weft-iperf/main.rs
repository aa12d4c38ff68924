//! `weft-iperf`: iperf3 between real network stacks, through weft and through its peers, in turns.
//!
//! The guests are network namespaces (`weft-guest-tap`) or QEMU guests under emulation. Back-ends take turns within every round,
//! because a shared machine moves from one minute to the next; what counts are medians, and ratios within a round.
//! Everything that is started ends with this program, however that ends.
#![forbid(unsafe_code)]

mod back_end;
mod child;
mod hugepages;
mod lock;
mod measure;
mod net;
mod plan;
mod render;
mod results;
mod run;
mod stop;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum as _};

use crate::back_end::Programs;
use crate::net::Workshop;
use crate::plan::{BackEnd, Direction, Load, Plan, Protocol, Setting, Table};
use crate::render::Style;
use crate::results::Results;
use crate::run::Run;
use crate::stop::Stop;

/// Measures TCP and UDP between real network stacks, through weft and its peers.
#[derive(Debug, Parser)]
#[command(name = "weft-iperf", version)]
struct Arguments {
    /// Who talks to whom
    #[arg(long, value_delimiter = ',', default_values_t = [Setting::Native, Setting::Qemu, Setting::NativeHost, Setting::QemuHost], value_enum)]
    settings: Vec<Setting>,
    /// What carries the frames; everything that there is unless given
    #[arg(long, value_delimiter = ',', value_enum)]
    back_ends: Vec<BackEnd>,
    /// MTUs of the guests
    #[arg(long, value_delimiter = ',', default_values_t = [1500, 65_520], value_parser = clap::value_parser!(u16).range(576..=65_521))]
    mtu: Vec<u16>,
    /// Numbers of streams at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8], value_parser = clap::value_parser!(u16).range(1..=128))]
    streams: Vec<u16>,
    #[arg(long, value_delimiter = ',', default_values_t = [Protocol::Tcp, Protocol::Udp], value_enum)]
    protocols: Vec<Protocol>,
    /// Bytes of payload of UDP datagrams; as many as iperf3 thinks fit unless given
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(16..=65_507))]
    datagrams: Vec<u16>,
    #[arg(long, value_delimiter = ',', default_values_t = [Direction::Forward, Direction::Back], value_enum)]
    directions: Vec<Direction>,
    /// How often each back-end gets its turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement; one more at its start is not counted
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// TCP congestion control of every sender
    #[arg(long, default_value = "cubic", value_name = "NAME")]
    congestion: String,
    /// The weft to measure; the one beside this program unless given
    #[arg(long, value_name = "PATH")]
    weft: Option<PathBuf>,
    /// Write everything that was found to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Hold a lock on this file while all back-ends have a turn, on a machine that others measure on
    #[arg(long, value_name = "FILE", env = "WEFT_IPERF_LOCK")]
    lock: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft-iperf: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True if everything that should have worked did.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    if !rustix::process::geteuid().is_root() {
        return Err("namespaces and TAP interfaces need root: run this as root".into());
    }
    let stop = Stop::on_signals()?;
    let plan = plan(arguments);
    let workshop = workshop(arguments)?;
    let results = Results {
        machine: machine(),
        rounds: plan.rounds,
        seconds: arguments.seconds,
        congestion: arguments.congestion.clone(),
        ..Results::default()
    };
    let mut run = Run { plan: &plan, workshop: &workshop, stop: stop.clone(), lock: arguments.lock.clone(), results };
    run.measure()?;
    let results = run.results;
    // What was found before a signal came is still worth a look.
    println!("{}", render::render(&results, &plan, Style::Terminal));
    let write = |path: &Path, text: String| fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()));
    if let Some(path) = &arguments.json {
        write(path, serde_json::to_string_pretty(&results)? + "\n")?;
    }
    if let Some(path) = &arguments.markdown {
        write(path, render::render(&results, &plan, Style::Markdown))?;
    }
    if stop.is_wanted() {
        return Err("stopped by a signal".into());
    }
    Ok(!results.has_failures())
}

fn plan(arguments: &Arguments) -> Plan {
    let tables = arguments.settings.iter().flat_map(|&setting| arguments.mtu.iter().map(move |&mtu| Table { setting, mtu }));
    let all = BackEnd::value_variants();
    Plan {
        tables: tables.collect(),
        back_ends: if arguments.back_ends.is_empty() { all.to_vec() } else { arguments.back_ends.clone() },
        loads: Load::all(&arguments.protocols, &arguments.streams, &arguments.datagrams),
        directions: arguments.directions.clone(),
        rounds: arguments.rounds,
        duration: Duration::from_secs(arguments.seconds),
    }
}

fn workshop(arguments: &Arguments) -> Result<Workshop, Box<dyn Error>> {
    let here = std::env::current_exe()?;
    let beside = |program: &str| here.with_file_name(program);
    let (guest_tap, crr) = (beside("weft-guest-tap"), beside("weft-crr"));
    for program in [&guest_tap, &crr] {
        if !program.is_file() {
            return Err(
                format!("{} is not there: build it with `cargo build --release -p weft-benches`", program.display()).into()
            );
        }
    }
    for program in ["iperf3", "ip", "ethtool", "nsenter", "setpriv"] {
        if child::find_program(program).is_none() {
            return Err(format!("{program} is not here: run benches/iperf/setup").into());
        }
    }
    let built = std::env::var_os("WEFT_IPERF_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/iperf"), PathBuf::from);
    let programs = Programs { weft: arguments.weft.clone().unwrap_or_else(|| beside("weft")), built };
    Ok(Workshop { programs, guest_tap, crr, congestion: arguments.congestion.clone() })
}

/// What it was measured on.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores of {}, Linux {}", model.unwrap_or("an unknown processor"), kernel.trim())
}
