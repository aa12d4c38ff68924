//! How long to wait for an acknowledgment (RFC 6298).

use std::time::Duration;

/// The longest wait.
const MAX: Duration = Duration::from_secs(60);

/// What is known of the time that a guest takes to answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rtt {
    /// Smoothed time and its variation, in milliseconds times eight and times four.
    smoothed: Option<(u32, u32)>,
    initial: Duration,
    min: Duration,
    /// How often the wait was doubled since the last sign of life.
    doublings: u8,
}

impl Rtt {
    pub(super) fn new(initial: Duration, min: Duration) -> Self {
        Self { smoothed: None, initial, min, doublings: 0 }
    }

    /// A segment that was sent once was acknowledged after this time.
    pub(super) fn sample(&mut self, took: Duration) {
        let took = u32::try_from(took.as_millis()).unwrap_or(u32::MAX).min(MAX.as_millis() as u32);
        self.smoothed = Some(match self.smoothed {
            // Section 2.2.
            None => (took * 8, took * 2),
            // Section 2.3: 1/8 and 1/4 are what these are scaled by.
            Some((mean, variation)) => {
                let error = (mean / 8).abs_diff(took);
                (mean - mean / 8 + took, variation - variation / 4 + error)
            }
        });
    }

    /// How long to wait now.
    pub(super) fn timeout(&self) -> Duration {
        let base = self.smoothed.map_or(self.initial, |(mean, variation)| {
            Duration::from_millis(u64::from(mean / 8 + variation.max(1))).max(self.min)
        });
        (base * (1 << self.doublings.min(16))).min(MAX)
    }

    /// Nobody answered (section 5.5).
    pub(super) fn double(&mut self) {
        self.doublings = self.doublings.saturating_add(1);
    }

    /// Somebody did.
    pub(super) fn relax(&mut self) {
        self.doublings = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn rtt() -> Rtt {
        Rtt::new(1000 * MS, 200 * MS)
    }

    #[test]
    fn waits_follow_what_was_measured_rfc_6298_2() {
        let mut rtt = rtt();
        assert_eq!(rtt.timeout(), 1000 * MS);
        rtt.sample(400 * MS);
        assert_eq!(rtt.timeout(), 1200 * MS);
        for _ in 0..100 {
            rtt.sample(400 * MS);
        }
        assert!(rtt.timeout() < 450 * MS, "{:?}", rtt.timeout());
        for _ in 0..100 {
            rtt.sample(Duration::ZERO);
        }
        assert_eq!(rtt.timeout(), 200 * MS);
    }

    #[test]
    fn waits_double_up_to_a_minute_and_relax_rfc_6298_5_5() {
        let mut rtt = rtt();
        rtt.double();
        assert_eq!(rtt.timeout(), 2000 * MS);
        for _ in 0..300 {
            rtt.double();
        }
        assert_eq!(rtt.timeout(), MAX);
        rtt.relax();
        assert_eq!(rtt.timeout(), 1000 * MS);
    }

    #[test]
    fn no_measurement_overflows() {
        let mut rtt = rtt();
        for took in [Duration::MAX, Duration::ZERO, Duration::MAX] {
            rtt.sample(took);
            assert!(rtt.timeout() <= MAX);
        }
    }
}
