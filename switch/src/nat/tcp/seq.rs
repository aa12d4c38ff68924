//! Sequence numbers (RFC 9293, section 3.4): a circle of 2^32 places.

/// A sequence number. Compared by the shorter way around the circle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seq(pub u32);

impl Seq {
    /// The place `count` bytes further on.
    #[must_use]
    pub const fn plus(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// The place `count` bytes before.
    #[must_use]
    pub const fn minus(self, count: u32) -> Self {
        Self(self.0.wrapping_sub(count))
    }

    /// How far this lies behind `earlier`; negative if it lies before it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> i32 {
        self.0.wrapping_sub(earlier.0) as i32
    }

    /// How far this lies behind `earlier`; zero if it lies before it.
    #[must_use]
    pub const fn beyond(self, earlier: Self) -> u32 {
        let distance = self.since(earlier);
        if distance > 0 { distance as u32 } else { 0 }
    }

    /// True if this lies behind `other`.
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        self.since(other) > 0
    }

    /// Whichever of the two lies further on.
    #[must_use]
    pub const fn max(self, other: Self) -> Self {
        if self.is_after(other) { self } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_goes_on_where_the_numbers_wrap() {
        let before = Seq(u32::MAX - 1);
        let after = before.plus(4);
        assert_eq!(after, Seq(2));
        assert!(after.is_after(before) && !before.is_after(after) && !after.is_after(after));
        assert_eq!((after.since(before), before.since(after)), (4, -4));
        assert_eq!((after.beyond(before), before.beyond(after)), (4, 0));
        assert_eq!((before.max(after), after.max(before), after.minus(4)), (after, after, before));
    }
}
