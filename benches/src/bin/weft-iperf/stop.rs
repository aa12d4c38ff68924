//! Ctrl-C: noticed wherever something is waited for, so that everything is cleaned up on the way out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a condition is looked at. Short against everything that is measured, long enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Whether somebody wants this program to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

/// Why waiting was in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InVain {
    /// This program is to end.
    Stopped,
    /// The time is up.
    TooLate,
}

impl Stop {
    /// From here on the signals that end a program only set this.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop.0))?;
        }
        Ok(stop)
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Looks at `condition` until it has a value.
    pub(crate) fn wait_for<T>(&self, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T, InVain> {
        let start = Instant::now();
        loop {
            if self.is_wanted() {
                return Err(InVain::Stopped);
            }
            if let Some(value) = condition() {
                return Ok(value);
            }
            if start.elapsed() > limit {
                return Err(InVain::TooLate);
            }
            sleep(LOOK_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_a_value_the_time_or_a_wish_to_stop() {
        let stop = Stop::default();
        let mut looks = 0;
        let third = stop.wait_for(Duration::MAX, || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(third, Ok(3));
        assert_eq!(stop.wait_for(Duration::ZERO, || None::<()>), Err(InVain::TooLate));
        stop.0.store(true, Ordering::Relaxed);
        assert_eq!(stop.wait_for(Duration::MAX, || None::<()>), Err(InVain::Stopped));
    }
}
