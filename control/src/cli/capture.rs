//! `weft capture`.

use std::fs::File;
use std::io::{self, BufRead, ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use weft_switch::MAX_FRAME_LEN;

use super::{CliError, Output};
use crate::api;
use crate::capture::{CaptureAsked, Direction, FilterText, Passing};
use crate::client::Client;
use crate::render::counted;
use crate::values::Name;
use crate::vlans::VlanRef;

#[derive(Debug, Args)]
pub(super) struct CaptureArgs {
    /// The ports; without one, all of them.
    ports: Vec<Name>,
    /// All ports of this network.
    #[arg(long, conflicts_with = "ports")]
    network: Option<Name>,
    /// The file, or `-` for standard output.
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// Which frames, as tcpdump takes it: 'tcp port 443 and host 10.77.0.5'.
    #[arg(short, long, value_name = "EXPRESSION", default_value = "")]
    filter: FilterText,
    /// Which way they go: from the guest into the switch, out to the guest, or both.
    #[arg(long, value_enum, default_value_t)]
    direction: Direction,
    /// Only those in this VLAN, with a tag or without.
    #[arg(long)]
    vlan: Option<VlanRef>,
    /// At most so many bytes of each frame [default: all].
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    snaplen: Option<u32>,
    /// End after so many frames.
    #[arg(short, long, value_name = "FRAMES", value_parser = whole::<1_000_000_000_000>)]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = whole::<1_000_000_000_000>)]
    duration: Option<u64>,
    /// End before the file has more mebibytes than that.
    #[arg(long, value_name = "MIB", value_parser = whole::<1_000_000_000_000>)]
    max_size: Option<u64>,
}

/// Without a unit, which stands in the help.
fn whole<const MAX: u64>(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX).contains(number));
    number.ok_or_else(|| format!("write a whole number from 1 to {MAX}, without a unit"))
}

pub(super) fn capture(args: CaptureArgs, mut client: Client, output: &Output) -> Result<(), CliError> {
    let CaptureArgs { ports, network, write, filter, direction, vlan, snaplen, count, duration, max_size } = args;
    let is_stdout = write == Path::new("-");
    if is_stdout && io::stdout().is_terminal() {
        return Err(CliError::CaptureToTerminal);
    }
    let max_bytes = max_size.map(|mebibytes| mebibytes << 20);
    let asked = CaptureAsked { ports, network, direction, vlan, filter, snap_len: snaplen, count, seconds: duration, max_bytes };
    let started = client.call::<api::StartCapture>(&asked)?;
    // A file that is there already stays as it is until there is something to write.
    let failed =
        |source| if is_stdout { CliError::Output(source) } else { CliError::CaptureFile { file: write.clone(), source } };
    let mut to: Box<dyn Write> =
        if is_stdout { Box::new(io::stdout().lock()) } else { Box::new(File::create(&write).map_err(failed)?) };
    let mut stream = client.into_stream()?;
    let told = end_with_signals(stream.get_ref())?;
    let _ = writeln!(io::stderr(), "weft: capturing on {}; Ctrl-C ends it", counted(started.ports.len(), "port"));
    let (mut passing, start) = (Passing::default(), Instant::now());
    loop {
        let bytes = stream.fill_buf().map_err(CliError::CaptureGone)?;
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        passing.pass(bytes);
        // Whoever looks at it live does not wait for a buffer to be full.
        to.write_all(bytes).and_then(|()| to.flush()).map_err(failed)?;
        stream.consume(len);
    }
    let _ = writeln!(io::stderr(), "weft: captured {}", counted(passing.frames(), "frame"));
    if output.json && !is_stdout {
        output.show(&Captured { frames: passing.frames(), bytes: passing.bytes() }, |_, _| String::new())?;
    }
    let has_reached_limit = count.is_some_and(|count| passing.frames() >= count)
        || duration.is_some_and(|seconds| start.elapsed() + SLACK >= Duration::from_secs(seconds))
        || max_bytes.is_some_and(|most| passing.bytes() + MAX_FRAME_LEN as u64 + SLACK_BYTES >= most);
    match () {
        () if !passing.is_complete() => Err(CliError::CaptureGone(ErrorKind::UnexpectedEof.into())),
        () if has_reached_limit || told.load(Ordering::Relaxed) => Ok(()),
        () => Err(CliError::CaptureEnded),
    }
}

/// What `--json` says of a capture that went to a file.
#[derive(Debug, Serialize)]
struct Captured {
    frames: u64,
    /// Of the file.
    bytes: u64,
}

/// How much sooner a capture may end than it is told to, as seen from here.
const SLACK: Duration = Duration::from_millis(500);
/// What stands around a frame, and at a file's end.
const SLACK_BYTES: u64 = 64 << 10;

/// Ctrl-C ends the capture, whose last bytes are still to come. What is returned is true from then on.
fn end_with_signals(stream: &UnixStream) -> io::Result<Arc<AtomicBool>> {
    let (mut told, tells) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, tells.try_clone()?)?;
    }
    let (stream, was_told) = (stream.try_clone()?, Arc::new(AtomicBool::new(false)));
    let tell = Arc::clone(&was_told);
    std::thread::spawn(move || {
        // An error ends it as well.
        let _ = told.read(&mut [0]);
        tell.store(true, Ordering::Relaxed);
        let _ = stream.shutdown(Shutdown::Write);
    });
    Ok(was_told)
}
