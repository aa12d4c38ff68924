//! Why a frame went no further. A drop is a result with a name and a counter, never silent and never an error.

use strum::{EnumCount, EnumIter, IntoStaticStr};

/// Why a frame was not delivered. Counted on the port where the frame died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EnumCount, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub enum DropReason {
    /// The destination is known to be behind the port the frame came from.
    SamePort,
    /// The source address is a group address or all zeros: no station can own it.
    BadSource,
    /// The destination is one of the addresses that a bridge never forwards (IEEE 802.1Q-2018, table 8-1).
    LinkLocal,
    /// Nobody else on the network can receive right now.
    NoOtherPort,
    /// Shorter than an Ethernet header.
    TooShort,
    /// Longer than the largest IP packet with its Ethernet header and two tags, or spread over more than 1,024 buffers.
    TooLong,
    /// A buffer of the chain has length zero, or a direction that its ring doesn't allow.
    BadDescriptor,
    /// A buffer of the chain lies outside the memory that the guest shared.
    BadAddress,
    /// The frame asks for an offload (checksum or segmentation) that was not negotiated.
    UnagreedOffload,
    /// The frame asks for an offload that its own headers contradict, or that cuts it into more than 256 segments.
    BadOffload,
    /// The receiving guest offered no free buffer.
    ReceiverFull,
    /// The frame is larger than the buffer that the receiving guest offered, and it did not agree to several; or it would need
    /// more than 1,024 of them.
    ReceiverBufferTooSmall,
    /// The receiving guest is not connected, or its driver is not running.
    ReceiverDown,
    /// The sending ring is disabled: its frames are consumed and discarded, as the vhost-user protocol demands.
    RingDisabled,
}

impl DropReason {
    /// The name used in counters, logs and the control protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The place of this reason in tables with one entry a reason, [`DropReason::COUNT`] in all.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn every_reason_is_explained_to_users() {
        let document = include_str!("../../docs/drop-reasons.md");
        for reason in DropReason::iter() {
            assert!(document.contains(&format!("| `{}` |", reason.name())), "{} is not in docs/drop-reasons.md", reason.name());
        }
    }
}
