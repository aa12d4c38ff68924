//! What a bad network does to frames.

use std::time::Duration;

use fastrand::Rng;

use super::{Departure, Fate, Moment, Shaper, in_order, nanos};
use crate::{DropReason, EthernetHeader};

/// How likely something is, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance(u32);

impl Chance {
    /// What never happens.
    pub const NEVER: Self = Self(0);
    /// What always happens, in millionths.
    pub const ALWAYS: u32 = 1_000_000;

    /// `millionths` of a certainty, at most [`Self::ALWAYS`].
    #[must_use]
    pub const fn from_millionths(millionths: u32) -> Self {
        Self(if millionths < Self::ALWAYS { millionths } else { Self::ALWAYS })
    }

    /// In millionths.
    #[must_use]
    pub const fn millionths(self) -> u32 {
        self.0
    }

    fn happens(self, random: &mut Rng) -> bool {
        self.0 > 0 && random.u32(0..Self::ALWAYS) < self.0
    }
}

/// How bad a line is. Every frame is asked about anew, whatever became of those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// Frames that get lost.
    pub loss: Chance,
    /// Frames that come twice; the second one is on its own from there on.
    pub duplicate: Chance,
    /// Frames of which one bit behind the Ethernet header, any of them, comes as another one.
    pub corrupt: Chance,
    /// Bits a second that the line takes, of frames without FCS, preamble and gap.
    pub rate: Option<u64>,
    /// How long each frame takes, apart from that.
    pub delay: Duration,
    /// By how much that is more or less: any time up to it is as likely as another. No longer than [`Self::delay`].
    pub jitter: Duration,
    /// Frames that take no such time, and overtake those that do.
    pub reorder: Chance,
    /// What all chances follow from; one that nobody knows if there is none.
    pub seed: Option<u64>,
}

/// An impairment at work.
#[derive(Clone, Debug)]
pub(super) struct Impairer {
    settings: Impairment,
    rate: Option<Shaper>,
    random: Rng,
}

impl Impairer {
    pub(super) fn new(settings: &Impairment, seed: u64) -> Self {
        let random = Rng::with_seed(settings.seed.unwrap_or(seed));
        Self { settings: *settings, rate: settings.rate.map(Shaper::wire), random }
    }

    pub(super) fn rate(&self) -> Option<&Shaper> {
        self.rate.as_ref()
    }

    /// See [`super::Line::admit`]; the frame enters the line at `at`.
    pub(super) fn admit(&mut self, at: Moment, len: usize, last: &mut Moment) -> (Fate, Option<Fate>) {
        if self.settings.loss.happens(&mut self.random) {
            return (Err(DropReason::ImpairmentLoss), None);
        }
        let twice = self.settings.duplicate.happens(&mut self.random);
        let first = self.pass(at, len, last);
        (first, twice.then(|| self.pass(at, len, last)))
    }

    fn pass(&mut self, at: Moment, len: usize, last: &mut Moment) -> Fate {
        let first_bit = 8 * EthernetHeader::LEN;
        let flips = 8 * len > first_bit && self.settings.corrupt.happens(&mut self.random);
        let flipped = flips.then(|| self.random.usize(first_bit..8 * len));
        let sent = match &mut self.rate {
            None => at,
            Some(rate) => rate.admit(at, len)?,
        };
        if self.settings.reorder.happens(&mut self.random) {
            return Ok(Departure { at: sent, flipped });
        }
        let at = in_order(last, sent.after(self.delay()));
        Ok(Departure { at, flipped })
    }

    fn delay(&mut self) -> Duration {
        let (delay, jitter) = (nanos(self.settings.delay), nanos(self.settings.jitter.min(self.settings.delay)));
        if jitter == 0 {
            self.settings.delay
        } else {
            Duration::from_nanos(self.random.u64(delay - jitter..=delay.saturating_add(jitter)))
        }
    }
}
