//! What a forwarding database is given, and what it says.

use std::time::Duration;

use super::AtLimit;
use crate::{DropReason, MacAddr, PortId};

/// Size and ageing of a forwarding database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbSettings {
    /// The most MAC addresses that are kept, 1 to 2^20.
    pub capacity: usize,
    /// An address that was not heard of for this long is forgotten. Counted in whole seconds.
    pub ageing: Duration,
    /// What becomes of frames from stations for which there is no room any more; without it, older stations make way, fairly.
    pub when_full: Option<AtLimit>,
}

impl FdbSettings {
    /// Those of a table in which older stations make way.
    #[must_use]
    pub const fn new(capacity: usize, ageing: Duration) -> Self {
        Self { capacity, ageing, when_full: None }
    }
}

/// What a forwarding database did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FdbCounters {
    /// New addresses.
    pub learned: u64,
    /// Addresses that appeared on another port.
    pub moved: u64,
    /// Addresses that made way for others because the table was full.
    pub evicted: u64,
    /// Addresses that were not heard of for too long.
    pub expired: u64,
    /// Frames whose source was not learned because its port, or the table, had no room for it.
    pub refused: u64,
    /// Frames with the source of a static entry that came from another port.
    pub claimed: u64,
    /// Times that a station moved too often, and was made to stay for a while.
    pub flapped: u64,
}

impl std::ops::Add for FdbCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            learned: self.learned + other.learned,
            moved: self.moved + other.moved,
            evicted: self.evicted + other.evicted,
            expired: self.expired + other.expired,
            refused: self.refused + other.refused,
            claimed: self.claimed + other.claimed,
            flapped: self.flapped + other.flapped,
        }
    }
}

/// How a line came into a forwarding database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdbKind {
    /// It was learned.
    Dynamic {
        /// How long ago the station was last heard, in whole seconds.
        age: Duration,
        /// How often it has moved to another port since it was learned.
        moves: u32,
        /// It moved too often: for how much longer it stays where it is.
        held: Option<Duration>,
    },
    /// It was declared.
    Static,
}

/// One line of a forwarding database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The station.
    pub mac: MacAddr,
    /// The port behind which it was last heard, or is.
    pub port: PortId,
    /// How that is known.
    pub kind: FdbKind,
}

/// What learning did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The address was there, behind this port.
    Known,
    /// The address is new.
    New,
    /// The address was behind this other port until now.
    Moved(PortId),
    /// Somebody else is changing the table; the next frame will teach it.
    Later,
    /// The address is reserved for somebody who is not a station of this port.
    Reserved,
    /// The address is that of a static entry of another port, where it stays.
    Static,
    /// The address has moved too often, and stays where it is for a while.
    Held,
    /// The port has as many stations as it may.
    PortFull(AtLimit),
    /// The table is full, and nobody makes way.
    TableFull(AtLimit),
}

impl Learned {
    /// Why the frame that this was learned from goes no further, if so.
    #[must_use]
    pub const fn drop_reason(self) -> Option<DropReason> {
        match self {
            Self::Reserved => Some(DropReason::GatewayClaimed),
            Self::PortFull(AtLimit::Drop) => Some(DropReason::MacLimit),
            Self::TableFull(AtLimit::Drop) => Some(DropReason::FdbFull),
            _ => None,
        }
    }
}
