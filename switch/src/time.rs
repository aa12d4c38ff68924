//! Time as the switch knows it: whole milliseconds since some start that the caller chose.

use std::time::Duration;

/// A point in time, in milliseconds since the caller's own start. Monotonic by the caller's promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The point `millis` milliseconds after the start.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Whole seconds since the start. Wraps after 136 years.
    #[must_use]
    pub const fn as_secs(self) -> u32 {
        (self.0 / 1000) as u32
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This point moved later by `by`.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0 + u64::try_from(by.as_millis()).unwrap_or(u64::MAX))
    }
}
