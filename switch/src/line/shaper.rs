//! How fast frames may go: a token bucket that knows when a frame's turn is.

use std::time::Duration;

use super::{Moment, nanos};
use crate::guard::Limit;
use crate::{DropReason, MAX_FRAME_LEN};

const BITS: u64 = 8;
const NANOS: u64 = 1_000_000_000;

/// How fast frames may enter a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The rate, and how much may pass at once.
    pub limit: Limit,
    /// How long a frame may wait for its turn; whatever would wait for longer is dropped.
    pub queue: Duration,
}

impl Shape {
    /// Below so many bits a second, frames that stand for many are taken apart: one of 64 KiB would take the line for more than 2.6 ms, and a second would hold only a few.
    pub(super) const SLOW: u64 = 200_000_000;
    /// The smallest burst, in bytes: a frame of Ethernet's usual length.
    pub const MIN_BURST: u64 = 1514;

    /// How long a frame may wait if nothing else was said: 50 ms, and as long as two of the largest take at least.
    #[must_use]
    pub fn usual_queue(bits: u64) -> Duration {
        let two_frames = 2 * MAX_FRAME_LEN as u64 * BITS * NANOS / bits.max(1);
        Duration::from_nanos(two_frames.max(50_000_000))
    }

    /// The burst if nothing else was said, in bytes: what comes in 2 ms, and ten frames of Ethernet's usual length at least. Frames that wait leave in time without any.
    #[must_use]
    pub fn usual_burst(bits: u64) -> u64 {
        (bits / BITS / 500).clamp(10 * Self::MIN_BURST, Limit::MAX_BURST)
    }
}

/// A token bucket for frames that are sent in the order in which they came: over any time `t` never more than rate × `t` + burst.
///
/// A frame that is longer than a burst waits until its bytes have been paid for, like any other one.
///
/// What is kept is the moment in which the bucket is empty, given that all frames so far leave on time; it lies in the past by as much as the bucket holds. A frame moves it
/// on by the time that its bytes take, and leaves when it has come. What a division leaves over goes to the next frame, so nothing is ever lost by rounding.
#[derive(Clone, Debug)]
pub struct Shaper {
    /// Bits a second.
    rate: u64,
    /// What the bucket holds, in nanoseconds at that rate.
    burst: i64,
    /// In nanoseconds.
    queue: u64,
    /// Nanoseconds since the caller's start, which may lie before that.
    empty_at: i64,
    /// Of a nanosecond, in parts of `rate`.
    remainder: u64,
}

impl Shaper {
    /// One whose bucket is full.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let rate = shape.limit.bits.max(1);
        let burst = u128::from(shape.limit.burst.min(Limit::MAX_BURST)) * u128::from(BITS * NANOS) / u128::from(rate);
        let burst = i64::try_from(burst).unwrap_or(i64::MAX / 2);
        Self { rate, burst, queue: nanos(shape.queue), empty_at: -burst, remainder: 0 }
    }

    /// One without a bucket: each frame takes the time that its bytes take, and leaves with the last of them.
    #[must_use]
    pub fn wire(bits: u64) -> Self {
        Self { rate: bits.max(1), burst: 0, queue: nanos(Shape::usual_queue(bits)), empty_at: 0, remainder: 0 }
    }

    /// A frame of `len` bytes, no longer than the largest one: says when it leaves. A clock that goes backwards brings nothing.
    ///
    /// # Errors
    /// [`DropReason::ShaperFull`] when it would have to wait for too long. It takes nothing then.
    pub fn admit(&mut self, now: Moment, len: usize) -> Result<Moment, DropReason> {
        let full_at = now.nanos() as i64 - self.burst;
        let (empty_at, remainder) = if self.empty_at < full_at { (full_at, 0) } else { (self.empty_at, self.remainder) };
        // No overflow: a frame has less than 2^17 bytes, and a remainder is less than a second's bits.
        let parts = len as u64 * BITS * NANOS + remainder;
        let empty_at = empty_at.saturating_add((parts / self.rate) as i64);
        let leaves = Moment::from_nanos(u64::try_from(empty_at).unwrap_or(0)).max(now);
        if leaves.nanos() - now.nanos() > self.queue {
            return Err(DropReason::ShaperFull);
        }
        (self.empty_at, self.remainder) = (empty_at, parts % self.rate);
        Ok(leaves)
    }

    /// False when more than half of the time is taken for which frames may wait.
    pub(super) fn has_room(&self, now: Moment) -> bool {
        self.empty_at.saturating_sub(now.nanos() as i64) <= (self.queue / 2) as i64
    }
}
