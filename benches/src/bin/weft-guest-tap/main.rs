//! `weft-guest-tap`: a guest without a virtual machine.
//!
//! It joins a TAP interface in a network namespace to the driver side of a vhost-user socket. The Linux stack in that
//! namespace is the guest then, at native speed: real TCP, real programs, and none of the cost of emulation. It sleeps
//! when nothing happens.
//!
//! By default the namespace is its own and ends with it. A command that is given runs inside, and its end is the end of
//! all; without one, others enter with `nsenter --target PID --net`.
#![forbid(unsafe_code)]

mod checksum;
mod joint;
mod life;
mod namespace;
mod tap;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::joint::{End, Joint, Setup};
use crate::namespace::Namespace;
use crate::tap::{Address, TapSetup};

/// Makes a network namespace the guest behind a vhost-user socket.
#[derive(Debug, Parser)]
#[command(name = "weft-guest-tap", version)]
struct Arguments {
    /// The socket of the port that the guest plugs into
    socket: PathBuf,
    /// The socket is ours: listen, and let the back-end connect
    #[arg(long)]
    listen: bool,
    /// The named namespace (of `ip netns`) to be the guest; a new one that ends with this process unless given
    #[arg(long, value_name = "NAME")]
    netns: Option<String>,
    /// Name of the interface in it
    #[arg(long, default_value = "eth0", value_name = "NAME")]
    interface: String,
    /// Its MAC address, such as 02:00:00:00:00:01; the kernel chooses one unless given
    #[arg(long, value_parser = tap::parse_mac)]
    mac: Option<[u8; 6]>,
    /// An address for it, such as 10.0.0.1/24; may be given several times
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    address: Vec<Address>,
    /// Its MTU
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(68..=65_521))]
    mtu: u16,
    /// Frames that may wait in the interface for this process
    #[arg(long, default_value_t = 1000, value_name = "FRAMES")]
    tx_queue_len: u32,
    /// Don't negotiate segmentation, neither way: every frame fits the MTU
    #[arg(long)]
    no_tso: bool,
    /// Don't negotiate checksums either: every frame is complete
    #[arg(long)]
    no_csum: bool,
    /// Don't negotiate mergeable receive buffers
    #[arg(long)]
    no_mergeable: bool,
    /// Bytes of a receive buffer; one takes the largest frame unless said otherwise. Smaller ones need mergeable buffers
    #[arg(long, value_name = "BYTES", conflicts_with = "no_mergeable", value_parser = clap::value_parser!(u32).range(128..=65_562))]
    buffer_len: Option<u32>,
    /// Packed rings instead of split ones, which the back-end must offer
    #[arg(long)]
    packed: bool,
    /// Descriptors of each ring, a power of two
    #[arg(long, default_value_t = 256, value_parser = parse_ring_size)]
    ring_size: u16,
    /// A command to run in the namespace; this process ends with it, and with its exit status
    #[arg(last = true)]
    command: Vec<String>,
}

/// Everything that may stop it, in words for a person.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft-guest-tap: {}: {error}", arguments.socket.display());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let namespace = arguments.netns.as_ref().map_or(Namespace::New, |name| Namespace::Named(name.clone()));
    namespace.enter()?;
    let tap = TapSetup {
        name: arguments.interface.clone(),
        mac: arguments.mac,
        addresses: arguments.address.clone(),
        mtu: arguments.mtu,
        tx_queue_len: arguments.tx_queue_len,
    };
    let mut joint = Joint::new(&Setup {
        socket: arguments.socket.clone(),
        listen: arguments.listen,
        segmentation: !arguments.no_tso && !arguments.no_csum,
        checksums: !arguments.no_csum,
        mergeable: !arguments.no_mergeable,
        packed: arguments.packed,
        buffer_len: arguments.buffer_len,
        ring_size: arguments.ring_size,
        tap,
    })?;
    // Whoever started this process waits for this line.
    println!("ready: {} is up, {}", arguments.interface, joint.describe());
    let end = joint.run(&arguments.command)?;
    eprintln!("weft-guest-tap: {}", joint.counters());
    Ok(match end {
        End::Signal => ExitCode::SUCCESS,
        // A command that was ended by a signal has no code.
        End::Command(status) => status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from),
    })
}

fn parse_ring_size(text: &str) -> Result<u16, String> {
    let size: u16 = text.parse().map_err(|_| "not a number of descriptors".to_owned())?;
    // The smallest takes a burst of the largest frames, the largest is what QEMU allows.
    let fits = size.is_power_of_two() && (16..=1024).contains(&size);
    fits.then_some(size).ok_or_else(|| "must be a power of two from 16 to 1024".to_owned())
}
