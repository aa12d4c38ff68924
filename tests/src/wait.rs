//! Waiting for a condition, with a limit.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a condition is looked at. Short against everything that is measured, long enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks at `condition` until it has a value, and returns it; panics with `what` when `limit` passes first.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        sleep(LOOK_EVERY);
    }
}

/// Waits until `condition` is true; panics with `what` when `limit` passes first.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}
