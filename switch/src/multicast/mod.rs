//! Multicast snooping with a querier: a stream goes to who asked for it.
//!
//! # Theory
//!
//! Hosts say with IGMP and MLD which groups they want, and say it again whenever a querier asks. A [`Snooper`] listens (RFC 4541): it knows for each
//! group of a VLAN which ports want it, for as long as they keep saying so, and behind which ports routers are, which want everything. It is a state machine
//! behind somebody's lock: [`Snooper::receive`] takes what was said, [`Snooper::tick`] what time brings. What both change of where frames go comes out as
//! [`News`], so that whoever forwards frames can keep a table that takes no lock.
//!
//! **What is snooped.** Frames are told apart by their MAC address ([`scope`]), which is all that is looked at when a frame is forwarded: 32 groups of IPv4
//! share one, and what is for one of them goes to who asked for any. Sources are not told apart either: a host that wants a group from one source
//! gets it from all, and drops the others itself, as on every network whose switches do not snoop. Exact lists of sources would need a table for every
//! pair of group and source that a guest can make up. Always flooded are `224.0.0.0/24` and what shares its MAC addresses (RFC 4541, section 2.1.2), `ff02::xx` and
//! `ff02::1:xx` in the same way (there routers, DHCPv6, mDNS and MLD itself are), and solicited-node groups (`ff02::1:ff00:0/104`): neighbour discovery must not
//! hang on a table with a bound, and every guest would take several places of it. Frames with another tag are flooded, since nobody sees the reports behind it.
//!
//! **Nothing is lost.** A group goes only where it was asked for, and where nobody can ask again that would be nowhere after a while. So a VLAN is flooded as long as
//! nobody queries there. A port that has just come up may have guests that joined long ago (weft was restarted, a guest came over): it is asked, and gets everything
//! until it had the time to answer; so does everybody after the first query of another querier. A port whose groups there is no room for because
//! *others* have filled the table gets everything, too. One that has filled its own share hurts nobody else: its report is refused.
//!
//! **The querier.** weft asks with IGMPv3 and MLDv2, from the gateway's address where there is one, else from 0.0.0.0, which takes no part in elections
//! (RFC 4541, section 2.1.1), and for MLD from the link-local address of the network's MAC address. When somebody with a lower address asks (with any, if its own
//! is 0.0.0.0), that is the querier until it has not asked for all groups for the other-querier-present interval (RFC 3376, section 8.5), and weft goes on asking beside it, from 0.0.0.0. An
//! election presumes that the winner asks so that everybody hears it and answers. A guest may win with questions that only weft takes for one, and if weft went silent all memberships would run out: so
//! what somebody else asks is never counted on, unless weft is told not to ask. Then who is elected does matter, and an isolated port does not win: not everybody hears it. A port that may be no router
//! is no querier either.
//!
//! **Leaving.** A port that leaves is asked twice whether somebody behind it still wants the group; so is one that blocks sources, which may be all that it wanted. With
//! fast leave it is not asked. Where weft does not ask, the querier does, and its question is what shortens the time.
//!
//! **Work.** What comes of a message costs its guest: a report has at most 512 records, a port has at most some five hundred messages a second (with many records, fewer), and what has changed is told once for each
//! message, however often it did.

mod message;
mod query;
mod snooper;
mod status;
mod table;
mod timers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

pub use message::GroupMessage;
pub use status::{GroupStatus, PortTime, QuerierStatus, SnoopingCounters, SnoopingStatus};

use table::Groups;
use timers::Timers;

use crate::rate::PortRate;
use crate::vlan::{PortRole, Vlan};
use crate::wire::{HOP_BY_HOP, ICMPV6, TCP, UDP, is_extension, link_local};
use crate::{DropReason, MacAddr, MacKey, PartialChecksum, PortId, Timestamp};

/// The most groups that one port can be a member of, in all VLANs.
pub const GROUPS_PER_PORT: usize = 256;
/// The most memberships of a network: ports, counted once for each of their groups.
pub const MEMBERSHIPS: usize = 16_384;
/// How many bytes behind the Ethernet header [`concerns`] wants to see of every frame.
pub const GLANCED_LEN: usize = 14;
/// And of one of IPv6: a tag, the header, and the first byte behind it.
pub const BEHIND_IPV6: usize = 45;
/// How many times each message counts (RFC 3376, section 8.1).
pub(crate) const ROBUSTNESS: u8 = 2;

/// How a network's multicast is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnoopingSettings {
    /// From which MAC address queries come.
    pub mac: MacAddr,
    /// From which address IGMP's come in the default VLAN: the gateway's. Without one from 0.0.0.0.
    pub address: Option<Ipv4Addr>,
    /// The VLAN of the gateway and of ports without a role.
    pub default_vlan: Vlan,
    /// weft asks when nobody else does.
    pub querier: bool,
    /// How often.
    pub query_interval: Duration,
    /// In which time hosts answer: at most 12.7 s.
    pub response_interval: Duration,
    /// The same when somebody has left a group: at most 12.7 s.
    pub last_member_interval: Duration,
    /// Whoever leaves is believed at once.
    pub fast_leave: bool,
}

/// A kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, with IGMP.
    V4,
    /// IPv6, with MLD.
    V6,
}

/// What is to be done about a frame with a group address, as its MAC address and type say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// It goes to everybody.
    Everybody,
    /// It goes to who asked for it.
    Members(Family),
}

/// A frame that may be about groups.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Where it came from.
    pub port: PortId,
    /// Its VLAN.
    pub vlan: Vlan,
    /// There may be a router behind the port.
    pub may_route: bool,
    /// What the port sends does not reach everybody: not all would answer its questions, so it is not the querier.
    pub is_isolated: bool,
    /// What it says about groups.
    pub message: &'a GroupMessage,
}

/// What becomes of such a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It is like any other: it goes where its address says.
    Ordinary,
    /// It goes to everybody in its VLAN.
    Everybody,
    /// It goes to these, of which the sender may be one.
    To(Vec<PortId>),
    /// It goes nowhere.
    Drop(DropReason),
}

/// A query that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// In which VLAN.
    pub vlan: Vlan,
    /// To one port, or to all of the VLAN.
    pub to: Option<PortId>,
    /// The frame, without a tag.
    pub frame: Vec<u8>,
}

/// What has changed about where frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// These ports want what is for an address in a VLAN; none any more if there are none.
    Group(Vlan, MacKey, Vec<PortId>),
    /// These ports get all groups of a kind in a VLAN in which somebody queries; all are flooded if nobody does.
    Domain(Vlan, Family, Option<Vec<PortId>>),
}

/// What a snooper wants done.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Frames to be sent.
    pub frames: Vec<Outbound>,
    /// Changes to be made, in this order.
    pub news: Vec<News>,
}

/// Who wants what on a network. See the [module](self).
#[derive(Debug)]
pub struct Snooper {
    settings: SnoopingSettings,
    /// The ports that can receive, with what they are to VLANs; without a role they are access ports of the default VLAN.
    ports: BTreeMap<PortId, Option<Arc<PortRole>>>,
    domains: BTreeMap<(Vlan, Family), Domain>,
    groups: Groups,
    timers: Timers,
    rate: PortRate,
    counters: SnoopingCounters,
    /// What is to be told at the end of the call. Nothing between two.
    changed: Changed,
}

/// Where frames may go elsewhere than before.
#[derive(Debug, Default)]
struct Changed {
    groups: BTreeSet<(Vlan, MacAddr)>,
    domains: BTreeSet<(Vlan, Family)>,
}

/// One kind of address in one VLAN.
#[derive(Debug, Default)]
struct Domain {
    /// Who asks in weft's place.
    other: Option<Other>,
    /// When weft asks.
    next_query: Option<Timestamp>,
    /// How many more times it asks often.
    startup: u8,
    /// The ports behind which routers are, and until when that is believed.
    routers: BTreeMap<PortId, Timestamp>,
    /// Ports that get everything, and until when; those that are still to be asked have no time.
    unsettled: BTreeMap<PortId, Option<Timestamp>>,
}

/// A querier that is not weft.
#[derive(Clone, Copy, Debug)]
struct Other {
    address: IpAddr,
    port: PortId,
    until: Timestamp,
}

impl SnoopingSettings {
    /// What RFC 3376, section 8, proposes.
    #[must_use]
    pub const fn new(mac: MacAddr, default_vlan: Vlan) -> Self {
        Self {
            mac,
            address: None,
            default_vlan,
            querier: true,
            query_interval: Duration::from_secs(125),
            response_interval: Duration::from_secs(10),
            last_member_interval: Duration::from_secs(1),
            fast_leave: false,
        }
    }

    /// How long a membership lasts (RFC 3376, section 8.4).
    #[must_use]
    pub fn membership(&self) -> Duration {
        self.query_interval * u32::from(ROBUSTNESS) + self.response_interval
    }

    /// How long somebody else is the querier (RFC 3376, section 8.5).
    fn other_querier(&self) -> Duration {
        self.query_interval * u32::from(ROBUSTNESS) + self.response_interval / 2
    }

    /// From where weft asks in a VLAN.
    fn address(&self, vlan: Vlan, family: Family) -> IpAddr {
        match (family, self.address) {
            (Family::V4, Some(address)) if vlan == self.default_vlan => address.into(),
            (Family::V4, _) => Ipv4Addr::UNSPECIFIED.into(),
            (Family::V6, _) => link_local(self.mac).into(),
        }
    }
}

/// Whether a frame with this MAC address, which is a group's, and this type is for members only.
#[inline]
#[must_use]
pub fn scope(header: &[u8; 14]) -> Scope {
    match *header {
        [1, 0, 0x5e, 0, 0, _, .., 8, 0] => Scope::Everybody,
        [1, 0, 0x5e, high, .., 8, 0] if high < 0x80 => Scope::Members(Family::V4),
        [0x33, 0x33, 0, 0 | 1, 0, _, .., 0x86, 0xdd] => {
            // ff02::1:xx is 33:33:00:01:00:xx.
            Scope::Everybody
        }
        [0x33, 0x33, 0xff, .., 0x86, 0xdd] => Scope::Everybody,
        [0x33, 0x33, .., 0x86, 0xdd] => Scope::Members(Family::V6),
        _ => Scope::Everybody,
    }
}

/// True if a [`GroupMessage`] may be in a frame for many with this header and these bytes after it, of which `more` has the first ones once more; nothing if there are fewer.
/// It may become one when a `pending` checksum is written, which is behind its IP header.
///
/// To which of the group addresses it was sent does not matter: hosts take what is for a group of theirs from any of them, and from broadcast.
#[inline]
#[must_use]
pub fn concerns(
    header: &[u8; 14],
    rest: [u8; GLANCED_LEN],
    pending: Option<PartialChecksum>,
    more: impl FnOnce() -> Option<[u8; BEHIND_IPV6]>,
) -> bool {
    match [header[12], header[13]] {
        [8, 0] => is_about_groups(rest[9]),
        [0x86, 0xdd] => concerns_ipv6(rest[6], 40, pending, more),
        // A tag that names no VLAN, which hosts take off.
        [0x81, 0] | [0x88, 0xa8] if rest[0] & 0xf == 0 && rest[1] == 0 => match [rest[2], rest[3]] {
            [8, 0] => is_about_groups(rest[13]),
            [0x86, 0xdd] => concerns_ipv6(rest[10], 44, pending, more),
            [0x81, 0] | [0x88, 0xa8] => true,
            [high, low] => message::is_snap(u16::from_be_bytes([high, low]), &rest[4..]),
        },
        [high, low] => message::is_snap(u16::from_be_bytes([high, low]), &rest),
    }
}

#[inline]
fn is_about_groups(protocol: u8) -> bool {
    protocol == message::IGMP || protocol == message::PIM
}

/// What is behind the IPv6 header begins at `at`.
#[inline]
fn concerns_ipv6(
    next: u8,
    at: usize,
    pending: Option<PartialChecksum>,
    more: impl FnOnce() -> Option<[u8; BEHIND_IPV6]>,
) -> bool {
    let changes = || pending.is_some_and(|checksum| checksum.field() <= 14 + at);
    match next {
        ICMPV6 => changes() || more().is_some_and(|rest| message::is_mld(rest[at])),
        message::PIM => true,
        // Hosts read what is behind extension headers. Streams may be cut, and have options.
        _ if is_extension(next) => changes() || more().is_some_and(|rest| next == HOP_BY_HOP || !matches!(rest[at], TCP | UDP)),
        _ => false,
    }
}

/// The MAC address of a group (RFC 1112, section 6.4; RFC 2464, section 7).
#[must_use]
pub fn group_mac(group: IpAddr) -> MacAddr {
    match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = group.octets();
            MacAddr([1, 0, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(group) => {
            let [.., a, b, c, d] = group.octets();
            MacAddr([0x33, 0x33, a, b, c, d])
        }
    }
}

impl Family {
    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn ether_type(self) -> [u8; 2] {
        match self {
            Self::V4 => [8, 0],
            Self::V6 => [0x86, 0xdd],
        }
    }
}

/// True if the frames of a group go to everybody anyway.
fn is_for_everybody(group: IpAddr) -> bool {
    let mut header = [0; 14];
    header[..6].copy_from_slice(&group_mac(group).0);
    header[12..].copy_from_slice(&Family::of(group).ether_type());
    scope(&header) == Scope::Everybody
}
