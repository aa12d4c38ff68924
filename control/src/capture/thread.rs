//! The thread of a capture: takes frames, writes them down, ends when it is time.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tracing::debug;
use weft_dataplane::Capture;

use super::pcapng::{self, Interface};

/// How long it waits for frames before it looks whether somebody still wants them.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes that are written at once, and those of a frame more.
const CHUNK: usize = 256 * 1024;

/// When a capture ends by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    pub(super) count: Option<u64>,
    pub(super) time: Option<Duration>,
    /// Of the file, but for its statistics.
    pub(super) bytes: Option<u64>,
}

/// A capture that has begun, and what is said about its interfaces.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) capture: Capture,
    pub(super) interfaces: Vec<Interface>,
}

impl Recording {
    /// Writes to a client, behind what it was not sent yet.
    pub(super) fn stream(self, stream: &UnixStream, unsent: &[u8], limits: &Limits) {
        let wants_more = || match rustix::net::recv(stream, &mut [0; 64][..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => false,
            // Whatever it says now, it is not asked anything.
            Ok(_) => true,
            Err(errno) => matches!(errno, Errno::AGAIN | Errno::INTR),
        };
        let mut to = stream;
        let begun = stream.set_nonblocking(false).and_then(|()| to.write_all(unsent));
        let written = begun.and_then(|()| self.write(to, limits, wants_more));
        if let Err(error) = written {
            debug!("the client of a capture is gone: {error}");
        }
    }

    /// Writes to a file. True if it has become as large as it may be.
    pub(super) fn write_to(self, file: File, limits: &Limits) -> io::Result<bool> {
        let used = file.metadata()?.len();
        let left = limits.bytes.map(|bytes| bytes.saturating_sub(used));
        self.write(file, &Limits { bytes: left, ..*limits }, || true)
    }

    /// True if it ended because of its limits.
    fn write(mut self, mut to: impl Write, limits: &Limits, wants_more: impl Fn() -> bool) -> io::Result<bool> {
        let start = Instant::now();
        let start_ns = now_ns();
        let (mut frames, mut bytes) = (0_u64, 0_u64);
        let mut out = Vec::with_capacity(2 * CHUNK);
        pcapng::begin(&mut out, &self.interfaces);
        let mut reached = false;
        let mut stopped = false;
        loop {
            bytes += out.len() as u64;
            to.write_all(&out)?;
            out.clear();
            let left = limits.time.map_or(LOOK_INTERVAL, |time| time.saturating_sub(start.elapsed()));
            reached |= left.is_zero() || limits.count.is_some_and(|count| frames >= count);
            if reached {
                break;
            }
            if !stopped && !wants_more() {
                // What waits already is still written.
                stopped = true;
                self.capture.stopper().stop();
            }
            if !self.capture.wait(left.min(LOOK_INTERVAL)) {
                break;
            }
            for frame in self.capture.frames() {
                let before = out.len();
                if limits.count.is_some_and(|count| frames >= count) {
                    reached = true;
                    break;
                }
                pcapng::packet(&mut out, &frame);
                if limits.bytes.is_some_and(|most| bytes + out.len() as u64 > most) {
                    out.truncate(before);
                    reached = true;
                    break;
                }
                frames += 1;
                if out.len() >= CHUNK {
                    bytes += out.len() as u64;
                    to.write_all(&out)?;
                    out.clear();
                }
            }
        }
        pcapng::end(&mut out, &self.capture.counters(), (start_ns, now_ns()));
        to.write_all(&out)?;
        Ok(reached)
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
