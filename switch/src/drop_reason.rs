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
    /// The frame claims the gateway's MAC or IP address.
    GatewayClaimed,
    /// An ARP packet that is cut short, about other kinds of addresses, or names another sender than its frame.
    BadArp,
    /// An IPv4 header with a wrong version, length, checksum or option.
    BadIpv4,
    /// An IPv4 packet that brings its own route.
    SourceRouted,
    /// An IPv4 source that no host can have.
    BadIpSource,
    /// An IPv4 source that belongs to another port, or does not belong to the network.
    SpoofedSource,
    /// A fragment that contradicts itself or the other fragments of its datagram.
    BadFragment,
    /// A fragment for which there was no room, or that came on top of too many of its datagram.
    FragmentsFull,
    /// A fragment whose datagram was not complete in time.
    FragmentTimeout,
    /// A UDP, TCP or ICMP header with a wrong length or checksum.
    BadTransport,
    /// Something for the gateway of a kind that it does not speak.
    UnsupportedProtocol,
    /// The gateway has no service on that port or for that protocol.
    NoListener,
    /// The packet may not pass another router.
    TtlExceeded,
    /// Nothing leads to the destination.
    Unreachable,
    /// A DHCP message that can't be read or contradicts itself.
    BadDhcp,
    /// A DNS message that can't be read or is no query.
    BadDns,
    /// A client asks for an address, and none is free.
    NoFreeAddress,
    /// The port has its share of a table already.
    ShareExceeded,
    /// A socket of the host does not take it now.
    HostBusy,
    /// Too many messages wait for the network's DHCP and DNS already.
    ServicesBusy,
    /// A tag that names a VLAN, on a port that takes none.
    TagNotAdmitted,
    /// No tag that names a VLAN, on a trunk without a native VLAN.
    UntaggedNotAdmitted,
    /// The port is no member of the frame's VLAN.
    VlanNotAllowed,
    /// A tag with the number 4095, which is for no VLAN.
    ReservedVlan,
    /// The frame would leave without its tag, and another is behind it; or it comes to a gateway behind more tags than may be in a row.
    HiddenTag,
    /// The source MAC address is none of those that the port is locked to.
    MacNotAllowed,
    /// The source IP address is none of those that the port is locked to.
    IpNotAllowed,
    /// An ARP packet from a port with locked addresses says that another address is here.
    SpoofedArp,
    /// The same of neighbour discovery.
    SpoofedNd,
    /// An answer of a DHCP server, from a port that may be none.
    DhcpServerNotAllowed,
    /// An advertisement or redirect of a router, from a port that may be none.
    RouterNotAllowed,
    /// Headers that the port's protections have to check are hidden or missing.
    Unverifiable,
    /// The ports are isolated from each other.
    Isolated,
    /// More broadcast than the port may send.
    BroadcastStorm,
    /// More multicast than the port may send.
    MulticastStorm,
    /// More for addresses that nobody knows than the port may send.
    UnknownStorm,
    /// More than the port may send in all.
    OverLimit,
    /// One of weft's own probes or queries, which came back: the guest connects two ports.
    LoopProbe,
    /// The port is paused, because the guest connects it with another one.
    LoopPaused,
    /// The source is a station that the port has no room for.
    MacLimit,
    /// The source is a station that the forwarding database has no room for.
    FdbFull,
    /// The port is the end of a mirror: what its guest sends goes nowhere, and it gets nothing but copies.
    MonitorPort,
    /// The frame would wait for too long until its turn comes.
    ShaperFull,
    /// More frames wait on the line than there is memory for.
    LineFull,
    /// Lost on an impaired line.
    ImpairmentLoss,
    /// A message about groups (IGMP, MLD) that contradicts itself, or that its RFC says to ignore.
    BadGroupMessage,
    /// A report of a port that is a member of too many groups already.
    GroupLimit,
    /// Nobody has asked for the group that the frame is for.
    NoMember,
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
