//! Bounded rates: a burst, and then a steady flow.

use std::collections::HashMap;
use std::time::Duration;

use crate::{PortId, Timestamp};

/// How often something may happen.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    interval: Duration,
    burst: u32,
    used_until: Timestamp,
}

impl Rate {
    /// `burst` times in a row, and once in each `interval` over a while.
    #[must_use]
    pub fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, used_until: Timestamp::default() }
    }

    /// True if it may happen now, which then counts.
    pub fn allow(&mut self, now: Timestamp) -> bool {
        if self.used_until.since(now) > self.interval * self.burst.saturating_sub(1) {
            return false;
        }
        self.used_until = now.max(self.used_until).after(self.interval);
        true
    }
}

/// The same for each port.
#[derive(Debug)]
pub struct PortRate {
    rate: Rate,
    ports: HashMap<PortId, Rate, ahash::RandomState>,
}

impl PortRate {
    /// As [`Rate::new`], for each port.
    #[must_use]
    pub fn new(interval: Duration, burst: u32) -> Self {
        Self { rate: Rate::new(interval, burst), ports: HashMap::default() }
    }

    /// As [`Rate::allow`], for `port`.
    pub fn allow(&mut self, now: Timestamp, port: PortId) -> bool {
        self.ports.entry(port).or_insert(self.rate).allow(now)
    }

    /// Forgets a port that is gone.
    pub fn forget_port(&mut self, port: PortId) {
        self.ports.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_a_burst_and_then_a_steady_flow() {
        let mut rate = PortRate::new(Duration::from_millis(20), 50);
        let start = Timestamp::from_millis(10_000);
        let allowed = |rate: &mut PortRate, now, port| (0..1000).filter(|_| rate.allow(now, PortId(port))).count();
        assert_eq!([allowed(&mut rate, start, 1), allowed(&mut rate, start, 2)], [50, 50]);
        assert_eq!(allowed(&mut rate, start.after(Duration::from_millis(60)), 1), 3);
        rate.forget_port(PortId(2));
        assert_eq!(allowed(&mut rate, start, 2), 50);
    }
}
