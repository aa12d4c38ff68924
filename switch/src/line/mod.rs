//! The line between the switch and a guest: how fast frames pass it, and what happens to them on the way.
//!
//! # Theory
//!
//! A port has two lines, one for each direction. Each frame that enters one is asked about once, when it comes: [`Line::admit`] says when it leaves, or why it never does. Nothing
//! here holds a frame; whoever does needs no more than a queue in the order of departures.
//!
//! That is possible because a line is first in, first out. A [`Shaper`] is a token bucket, which knows the moment in which the bucket will have what a frame
//! needs after those before it have had theirs. Time is in nanoseconds: at 10 Gbit/s a frame takes about one microsecond, and what is sent in a millisecond would be a
//! burst of a megabyte.
//!
//! [`Impairment`] makes a bad network of it, in the order of a real one: what waits to enter the line (shaping) has not been on it yet, and what is lost on it takes no
//! part in what follows.
//!
//! ```text
//! shaper → loss → duplication → corruption → rate → delay, with jitter; or none, for a frame that overtakes
//! ```
//!
//! Jitter alone changes no order: a frame that is faster than the one before arrives right behind it. Only `reorder` lets frames overtake.
//!
//! Every random choice comes from one generator with a seed, so what a line does can be done again.

mod impairment;
mod shaper;

pub use impairment::{Chance, Impairment};
pub use shaper::{Shape, Shaper};

use std::time::Duration;

use crate::DropReason;
use impairment::Impairer;

/// A point in time, in nanoseconds since the caller's own start: what a line needs, for which milliseconds are too coarse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// One that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The point `nanos` nanoseconds after the start.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This point moved later by `by`.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

/// What a line does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineSettings {
    /// How fast frames may enter it.
    pub shape: Option<Shape>,
    /// How bad it is.
    pub impairment: Option<Impairment>,
}

/// Both lines of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// For what the guest sends.
    pub from_guest: LineSettings,
    /// For what the guest gets.
    pub to_guest: LineSettings,
}

/// How a frame leaves a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// When.
    pub at: Moment,
    /// The bit, counted from the frame's first, that is another one then.
    pub flipped: Option<usize>,
}

/// What becomes of a frame.
pub type Fate = Result<Departure, DropReason>;

/// A line, and what was sent through it.
#[derive(Clone, Debug)]
pub struct Line {
    shaper: Option<Shaper>,
    impairer: Option<Impairer>,
    wants_segments: bool,
    /// When the last frame leaves that did not overtake.
    last: Moment,
}

impl LineSettings {
    /// True if frames pass the line as if it weren't there.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.shape.is_none() && self.impairment.is_none()
    }
}

impl Lines {
    /// As if they weren't there.
    pub const NONE: Self = Self {
        from_guest: LineSettings { shape: None, impairment: None },
        to_guest: LineSettings { shape: None, impairment: None },
    };
}

impl Line {
    /// One through which nothing was sent yet. `seed` is what its chances follow from, unless the settings have one.
    #[must_use]
    pub fn new(settings: &LineSettings, seed: u64) -> Self {
        Self {
            shaper: settings.shape.as_ref().map(Shaper::new),
            impairer: settings.impairment.as_ref().map(|impairment| Impairer::new(impairment, seed)),
            wants_segments: settings.impairment.is_some() || settings.shape.is_some_and(|shape| shape.limit.bits < Shape::SLOW),
            last: Moment::default(),
        }
    }

    /// True if frames have to be as they would be on a wire: each finished, none of them standing for several.
    #[must_use]
    pub fn wants_segments(&self) -> bool {
        self.wants_segments
    }

    /// False when more than half of the time is taken for which frames may wait. Who can wait with sending had better do so.
    #[must_use]
    pub fn has_room(&self, now: Moment) -> bool {
        self.shaper.iter().chain(self.impairer.iter().filter_map(Impairer::rate)).all(|shaper| shaper.has_room(now))
    }

    /// A frame of `len` bytes enters the line: says what becomes of it, and of its duplicate if it gets one.
    ///
    /// # Errors
    /// In either: [`DropReason::ShaperFull`], [`DropReason::ImpairmentLoss`].
    pub fn admit(&mut self, now: Moment, len: usize) -> (Fate, Option<Fate>) {
        let entered = match &mut self.shaper {
            None => Ok(now),
            Some(shaper) => shaper.admit(now, len),
        };
        match (entered, &mut self.impairer) {
            (Err(reason), _) => (Err(reason), None),
            (Ok(at), None) => (Ok(Departure { at: in_order(&mut self.last, at), flipped: None }), None),
            (Ok(at), Some(impairer)) => impairer.admit(at, len, &mut self.last),
        }
    }
}

/// Not before the last one.
fn in_order(last: &mut Moment, at: Moment) -> Moment {
    *last = at.max(*last);
    *last
}

/// A time that is no longer than 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
