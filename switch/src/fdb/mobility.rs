//! When a station that moves from port to port is made to stay.
//!
//! A guest that migrates moves once. A station that moves again and again is in two places: two guests have the same address, one claims the other's, or
//! a guest connects two ports. Each move costs all workers a write, and neither place gets what it is sent. So it stays where it is for a while.

use std::time::Duration;

/// How long a station that moved too often stays where it is.
pub const FLAP_HOLD: Duration = Duration::from_secs(Mobility::HOLD_SECS as u64);

/// What is known of a station's moves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mobility {
    /// All of them.
    pub(super) moves: u32,
    /// The second of the first of those that count.
    since_secs: u32,
    /// Those that count.
    recent: u32,
    /// It stays until then.
    held_until_secs: u32,
}

/// What becomes of a station that is heard behind another port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Motion {
    Moves,
    /// This was once too often.
    Flaps,
    /// As was said before.
    Held,
}

impl Mobility {
    /// So many moves are let pass, in [`Self::WINDOW_SECS`].
    pub(super) const MOVES: u32 = 5;
    pub(super) const WINDOW_SECS: u32 = 10;
    /// It stays for so long.
    pub(super) const HOLD_SECS: u32 = 30;

    /// Notes that the station was heard behind another port.
    pub(super) fn note(&mut self, now_secs: u32) -> Motion {
        if self.is_held(now_secs) {
            return Motion::Held;
        }
        if self.recent == 0 || now_secs.saturating_sub(self.since_secs) >= Self::WINDOW_SECS {
            (self.since_secs, self.recent) = (now_secs, 0);
        }
        if self.recent == Self::MOVES {
            (self.recent, self.held_until_secs) = (0, now_secs.saturating_add(Self::HOLD_SECS));
            return Motion::Flaps;
        }
        self.recent += 1;
        self.moves = self.moves.saturating_add(1);
        Motion::Moves
    }

    pub(super) fn is_held(&self, now_secs: u32) -> bool {
        self.held_for(now_secs).is_some()
    }

    /// How long it stays where it is.
    pub(super) fn held_for(&self, now_secs: u32) -> Option<Duration> {
        let left = self.held_until_secs.saturating_sub(now_secs);
        (left > 0).then(|| Duration::from_secs(left.into()))
    }
}
