//! What happened, as numbers and as a verdict.

use std::path::PathBuf;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::LoadError;
use super::check::Findings;
use super::options::{Options, Pace};

/// What happened.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked for.
    pub asked: Options,
    /// Frames that the switch was offered.
    pub sent: u64,
    /// Frames that arrived.
    pub received: u64,
    /// Frames that had arrived when the time was over, which the rate counts.
    pub received_in_time: u64,
    /// The time, in seconds. With a number of frames to send: from the first to the last arrival.
    pub seconds: f64,
    /// Looks at the rings.
    pub looks: u64,
    /// Looks that found neither room to send nor a frame.
    pub idle_looks: u64,
    /// Of [`Pace::OneAtATime`].
    pub latency: Option<Latency>,
    /// What went from each guest to each other one.
    pub directions: Vec<Direction>,
    /// What each guest did, in the order of the sockets.
    pub guests: Vec<GuestReport>,
    /// What a check of every frame found; the sum over all directions.
    pub check: Option<Findings>,
}

/// What went from one guest to another.
#[derive(Clone, Debug, Serialize)]
pub struct Direction {
    /// The sender's place among the sockets, from 0.
    pub from: usize,
    /// The receiver's.
    pub to: usize,
    /// Frames that the switch was offered.
    pub sent: u64,
    /// Frames that arrived. Between more than two guests that is only known if they are checked.
    pub received: Option<u64>,
    /// Frames that did not arrive, likewise.
    pub lost: Option<u64>,
    /// What a check found.
    pub check: Option<Findings>,
}

/// What one guest did.
#[derive(Clone, Debug, Serialize)]
pub struct GuestReport {
    /// Its port.
    pub socket: PathBuf,
    /// Virtio features that were negotiated.
    pub features: Vec<&'static str>,
    /// Frames that it sent.
    pub sent: u64,
    /// Frames that arrived at it.
    pub received: u64,
    /// Looks at which it had a frame to send and the ring had no room: the switch takes fewer than are offered.
    pub send_waits: u64,
    /// Looks at which nothing had arrived: the switch brings fewer than could be taken.
    pub receive_waits: u64,
    /// Times that the switch had to be woken to send.
    pub kicks: u64,
    /// Frames for somebody else, seen by a check: the switch did not know where that is.
    pub strays: Option<u64>,
    /// Damaged frames whose sender can't be told, seen by a check.
    pub unknown: Option<u64>,
}

/// One-way times, in nanoseconds, from the store that offers a frame to the load that sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// The median.
    pub p50_ns: u64,
    /// Ninety in a hundred were faster.
    pub p90_ns: u64,
    /// Ninety-nine in a hundred.
    pub p99_ns: u64,
    /// 999 in a thousand.
    pub p99_9_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

impl Latency {
    pub(super) fn of(times: &Histogram<u64>) -> Self {
        let at = |quantile| times.value_at_quantile(quantile);
        Self { p50_ns: at(0.5), p90_ns: at(0.9), p99_ns: at(0.99), p99_9_ns: at(0.999), max_ns: times.max() }
    }
}

impl Report {
    /// How often the generator had to wait. Near zero means that the switch was not the bottleneck.
    #[must_use]
    pub fn idle_percent(&self) -> f64 {
        100.0 * self.idle_looks as f64 / self.looks.max(1) as f64
    }

    /// Frames that arrived in time, per second.
    #[must_use]
    pub fn frames_per_second(&self) -> f64 {
        self.received_in_time as f64 / self.seconds
    }

    /// Frames that did not arrive.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let duplicated = self.check.map_or(0, |check| check.duplicated);
        let strays: u64 = self.guests.iter().filter_map(|guest| guest.strays).sum();
        self.sent.saturating_sub(self.received.saturating_sub(duplicated + strays))
    }

    /// Damaged frames, whoever sent them.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        let unknown: u64 = self.guests.iter().filter_map(|guest| guest.unknown).sum();
        self.check.map_or(0, |check| check.damaged) + unknown
    }

    /// Whether the switch did what it must: bring something, lose nothing in a closed loop, and change nothing.
    ///
    /// # Errors
    /// When it did not.
    pub fn verdict(&self) -> Result<(), LoadError> {
        let (lost, damaged) = (self.lost(), self.damaged());
        match self.check {
            _ if self.received == 0 => Err(LoadError::Silence),
            Some(Findings { duplicated, reordered, .. }) if damaged + duplicated + reordered > 0 => {
                Err(LoadError::Wrong { damaged, duplicated, reordered, lost })
            }
            _ if lost > 0 && self.asked.pace != Pace::Open => Err(LoadError::Lost(lost)),
            _ => Ok(()),
        }
    }
}
