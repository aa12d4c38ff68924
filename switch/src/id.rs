//! The numbers that stand for a port and a network on the hot path. Names live in the control crate.

/// A port of the switch. Dense and reused: an index into the worker's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// A network: one broadcast domain. Dense and reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub u16);

impl PortId {
    /// Stands for the gateway of whichever network it is about. No port has this number.
    pub const GATEWAY: Self = Self(u16::MAX);

    /// The place of this port in tables that hold one entry a port.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl NetworkId {
    /// The place of this network in tables that hold one entry a network.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}
