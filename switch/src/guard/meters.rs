//! How much a port may send: storm control and policing. A frame that stands for many counts for what a wire would carry.

use super::{Draw, TokenBucket, Volume};
use crate::{DropReason, EthernetHeader, MAX_FRAME_LEN, MacAddr, MacKey, Timestamp, WireSize};

/// How much may be sent to many, each in frames or bytes a second. What stays nothing has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StormLimits {
    /// To `ff:ff:ff:ff:ff:ff`.
    pub broadcast: Option<Volume>,
    /// To other group addresses.
    pub multicast: Option<Volume>,
    /// To addresses of which nobody knows where they are, so that everybody gets it.
    pub unknown: Option<Volume>,
}

/// How much may be sent in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In bits a second: of frames without FCS, preamble and gap.
    pub bits: u64,
    /// In bytes.
    pub burst: u64,
}

impl Limit {
    /// The smallest burst: the largest frame has to fit.
    pub const MIN_BURST: u64 = MAX_FRAME_LEN as u64;
    /// The largest.
    pub const MAX_BURST: u64 = 1 << 30;

    /// What can come between two looks at the clock, in bytes, and some more: with a smaller burst than this the rate is not reached.
    #[must_use]
    pub fn least_burst(bits: u64) -> u64 {
        (bits / 8 / 500).max(Self::MIN_BURST)
    }

    /// The burst if nothing else was said, in bytes: 10 ms at the full rate, and two of the largest frames at least.
    #[must_use]
    pub fn usual_burst(bits: u64) -> u64 {
        (bits / 8 / 100).clamp(2 * Self::MIN_BURST, Self::MAX_BURST)
    }
}

/// What a port has left of each limit.
#[derive(Clone, Debug, Default)]
pub struct Meters {
    broadcast: Option<Meter>,
    multicast: Option<Meter>,
    unknown: Option<Meter>,
    limit_in: Option<Meter>,
}

/// Part of what a port has left for addresses that nobody knows: taken out for a batch, so that it is not asked for frame by frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    drawn: Draw,
    /// What a frame costs, and a byte of it.
    frame: u64,
    byte: u64,
}

#[derive(Clone, Debug)]
struct Meter {
    bucket: TokenBucket,
    frame: u64,
    byte: u64,
}

impl Meters {
    /// Nothing was used up yet.
    #[must_use]
    pub fn new(storm: &StormLimits, limit_in: Option<Limit>) -> Self {
        let limit_in = limit_in.map(|Limit { bits, burst }| Meter {
            bucket: TokenBucket::new(bits, burst.min(Limit::MAX_BURST) * 8),
            frame: 0,
            byte: 8,
        });
        let storm_meter = |volume: Option<Volume>| volume.map(Meter::of_storm);
        Self {
            broadcast: storm_meter(storm.broadcast),
            multicast: storm_meter(storm.multicast),
            unknown: storm_meter(storm.unknown),
            limit_in,
        }
    }

    /// True if there is anything to ask [`Self::admit`] for.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.broadcast.is_some() || self.multicast.is_some() || self.limit_in.is_some()
    }

    /// True if frames to addresses that nobody knows are counted.
    #[must_use]
    pub fn limits_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    /// Counts a frame.
    ///
    /// # Errors
    /// [`DropReason::BroadcastStorm`], [`DropReason::MulticastStorm`] or [`DropReason::OverLimit`] when there was too much.
    #[inline]
    pub fn admit(&mut self, now: Timestamp, header: &EthernetHeader, size: WireSize) -> Result<(), DropReason> {
        if header.destination.is_multicast() {
            let (storm, reason) = if header.destination == MacKey::from(MacAddr::BROADCAST) {
                (&mut self.broadcast, DropReason::BroadcastStorm)
            } else {
                (&mut self.multicast, DropReason::MulticastStorm)
            };
            take(storm, now, size, reason)?;
        }
        take(&mut self.limit_in, now, size, DropReason::OverLimit)
    }

    /// Counts all frames of a batch that go to one station each. False when there was too much: then none is counted, and
    /// [`Self::admit`] says which may pass.
    pub fn admit_all(&mut self, now: Timestamp, size: WireSize) -> bool {
        self.limit_in.as_mut().is_none_or(|Meter { bucket, frame, byte }| bucket.take_of_level(now, cost(size, *frame, *byte)))
    }

    /// Takes out what frames of this size need if nobody knows whom they are for, or what there is. Nothing if there is no limit.
    pub fn draw_unknown(&mut self, now: Timestamp, size: WireSize) -> Option<Allowance> {
        let Meter { bucket, frame, byte } = self.unknown.as_mut()?;
        Some(Allowance { drawn: bucket.draw(now, cost(size, *frame, *byte)), frame: *frame, byte: *byte })
    }

    /// Puts back what was left.
    pub fn return_unknown(&mut self, allowance: Allowance) {
        if let Some(meter) = &mut self.unknown {
            meter.bucket.settle(allowance.drawn);
        }
    }
}

impl Allowance {
    /// Counts a frame for an address that nobody knows.
    ///
    /// # Errors
    /// [`DropReason::UnknownStorm`] when there was too much.
    pub fn take(&mut self, size: WireSize) -> Result<(), DropReason> {
        if self.drawn.take(cost(size, self.frame, self.byte)) { Ok(()) } else { Err(DropReason::UnknownStorm) }
    }
}

impl Meter {
    /// The fewest frames that may come at once.
    const FRAMES_AT_ONCE: u64 = 16;

    /// Bursts of a tenth of a second.
    fn of_storm(volume: Volume) -> Self {
        let (rate, least, frame, byte) = match volume {
            Volume::Frames(rate) => (rate, Self::FRAMES_AT_ONCE, 1, 0),
            Volume::Bytes(rate) => (rate, Limit::MIN_BURST, 0, 1),
        };
        Self { bucket: TokenBucket::new(rate, (rate / 10).max(least)), frame, byte }
    }
}

/// What frames cost, each so much, and each of their bytes.
#[inline]
const fn cost(size: WireSize, frame: u64, byte: u64) -> u64 {
    frame * size.frames as u64 + byte * size.bytes as u64
}

#[inline]
fn take(meter: &mut Option<Meter>, now: Timestamp, size: WireSize, reason: DropReason) -> Result<(), DropReason> {
    match meter {
        None => Ok(()),
        Some(Meter { bucket, frame, byte }) => {
            if bucket.take(now, cost(size, *frame, *byte)) {
                Ok(())
            } else {
                Err(reason)
            }
        }
    }
}
