//! Token buckets, in whole numbers.

use crate::Timestamp;

/// What a bucket counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volume {
    /// Frames, however long.
    Frames(u64),
    /// Bytes, without FCS.
    Bytes(u64),
}

/// Gives so much in a second, and what was left over from before up to a bound: over any time `t` never more than rate × `t` + burst.
///
/// Who takes more at once than a bucket holds gets it when there is anything, and what was missing is owed.
///
/// Time is in milliseconds, so a level is kept in thousandths: what comes in a millisecond is the rate, and nothing is ever rounded. A burst that is less than
/// what comes between two looks at the clock makes the rate smaller; a few milliseconds' worth are enough.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Thousandths of a token in a millisecond.
    rate: u64,
    /// Thousandths.
    capacity: i64,
    /// Less than nothing is owed.
    level: i64,
    filled: Timestamp,
}

impl TokenBucket {
    /// Thousandths of a token.
    const WHOLE: u64 = 1000;
    /// The highest rate, in tokens a second, and the largest burst.
    pub const MAX: u64 = 1 << 50;

    /// A full one. Both are bounded by [`Self::MAX`].
    #[must_use]
    pub fn new(rate: u64, burst: u64) -> Self {
        let capacity = thousandths(burst);
        Self { rate: rate.min(Self::MAX), capacity, level: capacity, filled: Timestamp::default() }
    }

    /// Takes `count` tokens of what is there, all or none: for what need not go together. A clock that goes backwards brings none.
    #[inline]
    pub fn take_of_level(&mut self, now: Timestamp, count: u64) -> bool {
        self.fill(now);
        let wanted = thousandths(count);
        let enough = wanted <= self.level;
        if enough {
            self.level -= wanted;
        }
        enough
    }

    /// The same for one thing, which passes however large it is.
    #[inline]
    pub fn take(&mut self, now: Timestamp, count: u64) -> bool {
        self.fill(now);
        let wanted = thousandths(count);
        let enough = if wanted > self.capacity { self.level > 0 } else { wanted <= self.level };
        if enough {
            self.level -= wanted;
        }
        enough
    }

    /// Takes out as many whole tokens as there are, at most `count`, to be shared out elsewhere. What is left of them is to be [settled](Self::settle).
    pub fn draw(&mut self, now: Timestamp, count: u64) -> Draw {
        self.fill(now);
        let whole = Self::WHOLE as i64;
        let left = (thousandths(count).min(self.level) / whole).max(0);
        self.level -= left * whole;
        Draw { left, capacity: self.capacity / whole }
    }

    /// Puts back what was not used, or takes what is owed.
    pub fn settle(&mut self, draw: Draw) {
        self.level = self.level.saturating_add(draw.left.saturating_mul(Self::WHOLE as i64)).min(self.capacity);
    }

    #[inline]
    fn fill(&mut self, now: Timestamp) {
        if now == self.filled {
            return;
        }
        // No truncation: a clock that counts milliseconds in 64 bits.
        let millis = now.since(self.filled).as_millis() as u64;
        if millis > 0 {
            let more = i64::try_from(self.rate.saturating_mul(millis)).unwrap_or(i64::MAX);
            self.level = self.level.saturating_add(more).min(self.capacity);
            self.filled = now;
        }
    }
}

/// Whole tokens, taken out of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    left: i64,
    capacity: i64,
}

impl Draw {
    /// As [`TokenBucket::take`].
    #[inline]
    pub fn take(&mut self, count: u64) -> bool {
        let wanted = i64::try_from(count).unwrap_or(i64::MAX);
        let enough = if wanted > self.capacity { self.left > 0 } else { wanted <= self.left };
        if enough {
            self.left -= wanted;
        }
        enough
    }
}

/// No overflow: what can be counted is less than a thousandth of what fits.
fn thousandths(tokens: u64) -> i64 {
    (tokens.min(TokenBucket::MAX) * TokenBucket::WHOLE) as i64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const MBIT: u64 = 1_000_000;

    /// What a sender of frames of `len` bytes gets through in a second, if it never stops sending; `looks` is how many milliseconds lie between two batches.
    fn bits_in_a_second(rate: u64, burst_bytes: u64, len: u64, looks: u64) -> u64 {
        let mut bucket = TokenBucket::new(rate, burst_bytes * 8);
        let start = Timestamp::from_millis(1_000_000);
        while bucket.take(start, len * 8) {}
        let mut bits = 0;
        for millis in (looks..=1000).step_by(looks as usize) {
            while bucket.take(start.after(Duration::from_millis(millis)), len * 8) {
                bits += len * 8;
            }
        }
        bits
    }

    #[test]
    fn a_rate_is_kept_within_three_percent_over_a_second() {
        for rate in [10 * MBIT, 1000 * MBIT, 10_000 * MBIT] {
            for len in [60, 1514, 9014] {
                for looks in [1, 2, 5] {
                    let bits = bits_in_a_second(rate, (rate / 8 / 100).max(66_000), len, looks);
                    assert!(
                        bits.abs_diff(rate) * 100 <= rate * 3,
                        "{bits} instead of {rate} in frames of {len}, every {looks} ms"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_there_takes_nothing_and_what_is_not_used_can_be_taken_again() {
        let mut bucket = TokenBucket::new(1, 10);
        assert!(bucket.take(Timestamp::default(), 10) && !bucket.take(Timestamp::from_millis(999), 1));
        assert!(bucket.take(Timestamp::from_millis(1000), 1));
        let later = Timestamp::from_millis(6000);
        let mut draw = bucket.draw(later, 100);
        assert!(draw.take(2) && !draw.take(4));
        bucket.settle(draw);
        assert!(bucket.take(later, 3) && !bucket.take(later, 1));
    }

    #[test]
    fn who_takes_more_than_there_can_be_gets_it_and_owes_the_rest() {
        let mut bucket = TokenBucket::new(1000, 10);
        assert!(bucket.take(Timestamp::default(), 1));
        // However little is left beside those who take less.
        assert!(bucket.take(Timestamp::default(), 8) && !bucket.take_of_level(Timestamp::default(), 100));
        assert!(bucket.take(Timestamp::default(), 100) && !bucket.take(Timestamp::default(), 100));
        assert!(!bucket.take(Timestamp::from_millis(99), 1) && bucket.take(Timestamp::from_millis(100), 1));
        let mut draw = bucket.draw(Timestamp::from_millis(1000), 50);
        assert!(draw.take(50) && !draw.take(1));
        bucket.settle(draw);
        assert!(!bucket.take(Timestamp::from_millis(1040), 1) && bucket.take(Timestamp::from_millis(1041), 1));
    }

    #[test]
    fn a_clock_that_goes_backwards_brings_nothing() {
        let mut bucket = TokenBucket::new(1000, 10);
        assert!(bucket.take(Timestamp::from_millis(100), 10));
        assert!(!bucket.take(Timestamp::from_millis(50), 1) && !bucket.take(Timestamp::from_millis(100), 1));
        assert!(bucket.take(Timestamp::from_millis(101), 1) && !bucket.take(Timestamp::from_millis(101), 1));
    }

    proptest! {
        #[test]
        fn no_span_of_time_gives_more_than_rate_and_burst(
            rate in 0..20_000_000_000_u64,
            burst in 0..10_000_000_u64,
            steps in prop::collection::vec((0..50_u64, 0..2_000_000_u64, any::<bool>()), 1..60),
        ) {
            let mut bucket = TokenBucket::new(rate, burst);
            let (mut millis, mut taken, most) = (5_000, Vec::new(), steps.iter().map(|(_, count, _)| *count).max());
            let burst = burst + most.unwrap_or_default();
            for (wait, count, all) in steps {
                millis += wait;
                let now = Timestamp::from_millis(millis);
                let got = if all {
                    u64::from(bucket.take(now, count)) * count
                } else {
                    let mut draw = bucket.draw(now, count);
                    let got = u64::from(draw.take(count / 2)) * (count / 2) + u64::from(draw.take(count - count / 2)) * (count - count / 2);
                    bucket.settle(draw);
                    got
                };
                taken.push((millis, u128::from(got)));
            }
            for (first, (start, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (end, got) in &taken[first..] {
                    sum += got;
                    prop_assert!(sum * 1000 <= u128::from(rate) * u128::from(end - start) + u128::from(burst) * 1000);
                }
            }
        }
    }
}
