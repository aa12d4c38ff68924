//! A look at the beginning of a frame: is it from whom it says it is from, and may that one say what it says?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Protections;
use crate::ethernet::MAX_TAGS;
use crate::vlan::TagKind;
use crate::wire::{
    ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_RARP, FRAGMENT, ICMP, ICMPV6, MAX_EXTENSIONS, TCP, UDP,
    extension_len, is_extension, is_fragment, link_local,
};
use crate::{DropReason, EthernetHeader, MacAddr, MacKey, Offload};

/// As much of a frame as nearly every look needs, in bytes, and as short as Ethernet's frames are (IEEE 802.3-2018, 3.2.7, without FCS): the headers up to TCP's
/// and UDP's of IPv4, or ARP.
pub const GLANCED_LEN: usize = 60;
/// As much of a frame as is ever looked at, in bytes. Headers that go on behind this can't be checked.
pub const INSPECTED_LEN: usize = 244;

/// Below are lengths of IEEE 802.2 frames (IEEE 802.3-2018, 3.2.6), in which an IP packet can hide (RFC 1042).
const FIRST_ETHER_TYPE: u16 = 0x600;
/// Tags of two sorts that 802.1Q does not know, and some devices do.
const ODD_TAGS: [u16; 3] = [0x9100, 0x9200, 0x9300];

/// Options of a message of neighbour discovery that are looked at.
const MAX_OPTIONS: usize = 16;

const IGMP: u8 = 2;
/// Reports and "leave" of all versions of IGMP (RFC 3376, section 4).
const IGMP_REPORTS: [u8; 4] = [0x12, 0x16, 0x17, 0x22];

/// UDP ports (RFC 2131, section 4.1; RFC 8415, section 7.2).
const DHCP: Parties = Parties { server: 67, client: 68 };
const DHCPV6: Parties = Parties { server: 547, client: 546 };

/// ICMPv6 types (RFC 4861, section 4; RFC 2710; RFC 3810; RFC 2894).
mod icmpv6 {
    pub(super) const MLD_QUERY: u8 = 130;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    pub(super) const ROUTER_RENUMBERING: u8 = 138;
    /// Reports and "done" of both versions of MLD.
    pub(super) const MLD: [u8; 3] = [131, 132, 143];
}

struct Parties {
    server: u16,
    client: u16,
}

/// Who a port's guest may say it is.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Nothing if it may have any.
    macs: Option<Vec<MacKey>>,
    /// Those of the list; nothing if it may have any.
    ips: Option<Listed>,
    dhcp_server: bool,
    router: bool,
}

#[derive(Clone, Debug, Default)]
struct Listed {
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing is wrong with it.
    Pass,
    /// It goes no further.
    Drop(DropReason),
    /// Not enough of the frame was shown.
    NeedsMore,
}

/// Why the look at a frame ends before everything was seen.
enum Stop {
    Drop(DropReason),
    NeedsMore,
}

const UNVERIFIABLE: Stop = Stop::Drop(DropReason::Unverifiable);

/// What is known of a frame.
#[derive(Clone, Copy)]
struct View<'a> {
    bytes: &'a [u8],
    /// Of the whole frame.
    len: usize,
    /// Its source MAC address.
    mac: [u8; 6],
    /// Where a checksum is still to be written.
    pending: Option<usize>,
    /// It is still to be cut.
    stands_for_many: bool,
    leases: &'a [Ipv4Addr],
}

/// What [`Sources::passes_at_a_glance`] looks at, which is the same in most frames of a batch. Words are as they are in memory.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    /// Source MAC address and type.
    link: u64,
    /// The first byte of an IPv4 header, and what makes a fragment.
    ip: u64,
    /// Protocol and source address.
    source: u64,
    ports: u32,
    /// The packet is long enough for a UDP header.
    holds_ports: bool,
}

impl Glance {
    const IP: u64 = u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0x3f, 0xff]);
    const SOURCE: u64 = u64::from_ne_bytes([0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    /// Without options, and no fragment.
    const PLAIN_IP: u64 = u64::from_ne_bytes([0x45, 0, 0, 0, 0, 0, 0, 0]);
    /// Of an IPv4 and a UDP header.
    const LEAST_LEN: u16 = 28;

    /// What no frame looks like that passes.
    pub const NOTHING: Self = Self { link: 0, ip: 0, source: 0, ports: 0, holds_ports: false };

    /// True if both are the same, compared without a branch.
    #[must_use]
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let ports = (self.ports ^ other.ports) | u32::from(self.holds_ports != other.holds_ports);
        (self.link ^ other.link) | (self.ip ^ other.ip) | (self.source ^ other.source) | u64::from(ports) == 0
    }

    /// A glance at a frame's beginning.
    #[must_use]
    #[inline(always)]
    pub fn at(bytes: &[u8; GLANCED_LEN]) -> Self {
        let word = |at: usize| u64::from_ne_bytes(*bytes[at..].first_chunk().expect("it is within a glance"));
        Self {
            link: word(6),
            ip: word(14) & Self::IP,
            source: word(22) & Self::SOURCE,
            ports: u32::from_ne_bytes(*bytes[34..].first_chunk().expect("it is within a glance")),
            holds_ports: u16::from_be_bytes([bytes[16], bytes[17]]) >= Self::LEAST_LEN,
        }
    }

    fn link([a, b, c, d, e, f]: [u8; 6], ether_type: u16) -> u64 {
        let [g, h] = ether_type.to_be_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}

/// What is behind the extension headers of an IPv6 packet.
struct Upper {
    protocol: u8,
    at: usize,
    /// It is a fragment, and if so, not the first.
    fragment: Option<bool>,
}

impl Sources {
    /// What these protections say of sources.
    #[must_use]
    pub fn new(protections: &Protections) -> Self {
        let listed = protections.ips.as_ref().map(|lock| {
            let mut listed = Listed::default();
            for address in &lock.listed {
                match address {
                    IpAddr::V4(address) => listed.ipv4.push(*address),
                    IpAddr::V6(address) => listed.ipv6.push(*address),
                }
            }
            listed
        });
        Self {
            macs: protections.macs.as_ref().map(|macs| macs.iter().copied().map(MacKey::from).collect()),
            ips: listed,
            dhcp_server: protections.dhcp_server,
            router: protections.router,
        }
    }

    /// True if there is anything to check.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.macs.is_some() || self.inspects_ip()
    }

    /// Checks the source MAC address.
    ///
    /// # Errors
    /// [`DropReason::MacNotAllowed`].
    #[inline]
    pub fn check_mac(&self, header: &EthernetHeader) -> Result<(), DropReason> {
        match &self.macs {
            Some(macs) if !macs.contains(&header.source) => Err(DropReason::MacNotAllowed),
            _ => Ok(()),
        }
    }

    /// True if [`Self::inspect`] has to see more of a frame than this. Of one that it does not want it would say that nothing is wrong.
    #[inline]
    #[must_use]
    pub fn wants(&self, header: &[u8; EthernetHeader::LEN]) -> bool {
        match u16::from_be_bytes([header[12], header[13]]) {
            ETHER_TYPE_IPV4 => self.inspects_ip(),
            _ => self.is_needed(),
        }
    }

    /// True for what nearly every frame is: IPv4 without tags and options, no fragment, TCP or UDP with ports that are no servers', from addresses that may be used. No
    /// checksum that [fits](crate::Offload::fits) is written over any of that. Of others nothing is said: [`Self::check_mac`] and [`Self::inspect`] know. `leases` are the addresses that were leased to the port, sorted.
    #[must_use]
    #[inline]
    pub fn passes_at_a_glance(&self, glance: &Glance, leases: &[Ipv4Addr]) -> bool {
        let Glance { link, ip, source, ports, holds_ports } = *glance;
        let [mac @ .., _, _] = link.to_ne_bytes();
        let [_, protocol, _, _, source @ ..] = source.to_ne_bytes();
        let is_harmless = match protocol {
            TCP => true,
            UDP => {
                let [a, b, c, d] = ports.to_ne_bytes();
                let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                holds_ports && (self.dhcp_server || DHCP.refuse_server(ports).is_ok())
            }
            _ => false,
        };
        // The type is compared with the address in front of it.
        link == Glance::link(mac, ETHER_TYPE_IPV4)
            && ip == Glance::PLAIN_IP
            && is_harmless
            && self.macs.as_ref().is_none_or(|macs| macs.contains(&MacKey::from(MacAddr(mac))))
            && self.allows_ipv4(Ipv4Addr::from(source), leases)
    }

    /// Looks at a frame of `len` bytes that begins with `bytes`. What is looked at must not be what `offload` still changes. `leases` are the addresses that were leased to the
    /// port, sorted.
    ///
    /// [`Finding::NeedsMore`] is never said of a whole frame, or of [`INSPECTED_LEN`] bytes.
    #[must_use]
    #[inline(never)]
    pub fn inspect(&self, bytes: &[u8], len: usize, offload: &Offload, leases: &[Ipv4Addr]) -> Finding {
        let Some((link, _)) = bytes.split_first_chunk::<{ EthernetHeader::LEN }>() else {
            return Finding::Drop(DropReason::TooShort);
        };
        let [_, _, _, _, _, _, mac @ .., _, _] = *link;
        let (pending, stands_for_many) = (offload.checksum.map(|checksum| checksum.field()), offload.segmentation.is_some());
        match self.look(View { bytes, len, mac, pending, stands_for_many, leases }) {
            Ok(()) => Finding::Pass,
            Err(Stop::Drop(reason)) => Finding::Drop(reason),
            Err(Stop::NeedsMore) => Finding::NeedsMore,
        }
    }

    /// True if IP packets are looked into.
    #[must_use]
    #[inline]
    pub fn inspects_ip(&self) -> bool {
        self.ips.is_some() || !self.dhcp_server || !self.router
    }

    #[inline]
    fn look(&self, view: View<'_>) -> Result<(), Stop> {
        if !self.is_needed() {
            return Ok(());
        }
        let (mut at, mut tags) = (EthernetHeader::LEN - 2, 0);
        let mut ether_type = view.number(at)?;
        while TagKind::of(ether_type).is_some() {
            tags += 1;
            if tags > MAX_TAGS {
                return Err(UNVERIFIABLE);
            }
            at += crate::TAG_LEN;
            ether_type = view.number(at)?;
        }
        match ether_type {
            ETHER_TYPE_IPV4 => self.look_at_ipv4(view, at + 2),
            ETHER_TYPE_IPV6 => self.look_at_ipv6(view, at + 2),
            ETHER_TYPE_ARP | ETHER_TYPE_RARP => self.look_at_arp(view, at + 2, ether_type == ETHER_TYPE_RARP),
            _ if ether_type < FIRST_ETHER_TYPE || ODD_TAGS.contains(&ether_type) => Err(UNVERIFIABLE),
            _ => Ok(()),
        }
    }

    /// ARP (RFC 826) and RARP (RFC 903).
    fn look_at_arp(&self, view: View<'_>, at: usize, reverse: bool) -> Result<(), Stop> {
        if self.macs.is_none() && self.ips.is_none() {
            return Ok(());
        }
        let packet: &[u8; 28] = view.array(at)?;
        let is_request = match (packet[7], reverse) {
            (1, false) | (3, true) => true,
            (2, false) => false,
            _ => return Err(Stop::Drop(DropReason::BadArp)),
        };
        // Ethernet and IPv4, and their lengths.
        if packet[..7] != [0, 1, 8, 0, 6, 4, 0] {
            return Err(Stop::Drop(DropReason::BadArp));
        }
        if packet[8..14] != view.mac {
            return Err(Stop::Drop(DropReason::SpoofedArp));
        }
        let (sender, target) = (ipv4(packet, 14), ipv4(packet, 24));
        let allowed = match sender {
            // A probe says "I want this address" (RFC 5227, section 2.1.1), so it has to be one that the guest may have.
            Ipv4Addr::UNSPECIFIED if is_request => reverse || self.allows_ipv4(target, view.leases),
            _ => self.allows_ipv4(sender, view.leases),
        };
        if allowed { Ok(()) } else { Err(Stop::Drop(DropReason::SpoofedArp)) }
    }

    fn look_at_ipv4(&self, view: View<'_>, at: usize) -> Result<(), Stop> {
        if !self.inspects_ip() {
            return Ok(());
        }
        let header: &[u8; 20] = view.array(at)?;
        let header_len = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || header_len < header.len() {
            return Err(UNVERIFIABLE);
        }
        let view = view.until(at + usize::from(u16::from_be_bytes([header[2], header[3]])));
        let (protocol, source) = (header[9], ipv4(header, 12));
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let (offset, is_fragment) = (fragment & 0x1fff, is_fragment(fragment));
        // Whoever cuts it may make whole packets of it.
        if is_fragment && view.stands_for_many {
            return Err(UNVERIFIABLE);
        }
        let ports = |view: View<'_>| Ok((view.number(at + header_len)?, view.number(at + header_len + 2)?));
        if !self.allows_ipv4(source, view.leases) {
            // Who has no address yet asks for one (RFC 2131, section 4.1), and says nothing else.
            let asks = source.is_unspecified() && protocol == UDP && !is_fragment && ports(view)? == (DHCP.client, DHCP.server);
            return if asks { Ok(()) } else { Err(Stop::Drop(DropReason::IpNotAllowed)) };
        }
        match protocol {
            _ if offset != 0 => Ok(()),
            UDP if !self.dhcp_server => DHCP.refuse_server(ports(view)?),
            // Redirects (RFC 792) and router advertisements (RFC 1256).
            ICMP if !self.router && matches!(view.byte(at + header_len)?, 5 | 9) => Err(Stop::Drop(DropReason::RouterNotAllowed)),
            // Queries (RFC 3376, section 4.1), which a host takes from its own address, too.
            IGMP if !self.router && view.byte(at + header_len)? == 0x11 => Err(Stop::Drop(DropReason::RouterNotAllowed)),
            // To one host alone, so that it keeps quiet.
            IGMP if !view.is_for_many() && IGMP_REPORTS.contains(&view.byte(at + header_len)?) => {
                Err(Stop::Drop(DropReason::BadGroupMessage))
            }
            _ => Ok(()),
        }
    }

    fn look_at_ipv6(&self, view: View<'_>, at: usize) -> Result<(), Stop> {
        let header: &[u8; 40] = view.array(at)?;
        if header[0] >> 4 != 6 {
            return Err(UNVERIFIABLE);
        }
        let source = ipv6(header, 8);
        let has_none_yet = self.ips.is_some() && source.is_unspecified();
        if !has_none_yet && !self.allows_ipv6(source, view.mac) {
            return Err(Stop::Drop(DropReason::IpNotAllowed));
        }
        let end = at + header.len() + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let view = view.until(end);
        let upper = Upper::find(view, at + header.len(), header[6])?;
        if upper.fragment.is_some() && view.stands_for_many {
            return Err(UNVERIFIABLE);
        }
        if has_none_yet && (upper.protocol != ICMPV6 || upper.fragment.is_some()) {
            return Err(Stop::Drop(DropReason::IpNotAllowed));
        }
        match upper.protocol {
            _ if upper.fragment == Some(true) => Ok(()),
            UDP if !self.dhcp_server => DHCPV6.refuse_server((view.number(upper.at)?, view.number(upper.at + 2)?)),
            ICMPV6 => self.look_at_icmpv6(view, &upper, source, end),
            _ => Ok(()),
        }
    }

    /// `end` is where the packet ends, as its header says.
    fn look_at_icmpv6(&self, view: View<'_>, upper: &Upper, source: Ipv6Addr, end: usize) -> Result<(), Stop> {
        use icmpv6::*;
        let kind = view.byte(upper.at)?;
        // Neither may discovery be fragmented, nor would its options be here (RFC 6980, section 5).
        if upper.fragment.is_some() && (ROUTER_SOLICITATION..=REDIRECT).contains(&kind) {
            return Err(UNVERIFIABLE);
        }
        if matches!(kind, MLD_QUERY | ROUTER_ADVERTISEMENT | REDIRECT | ROUTER_RENUMBERING) && !self.router {
            return Err(Stop::Drop(DropReason::RouterNotAllowed));
        }
        if MLD.contains(&kind) && !view.is_for_many() {
            return Err(Stop::Drop(DropReason::BadGroupMessage));
        }
        if self.ips.is_some()
            && source.is_unspecified()
            && !matches!(kind, ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION)
            && !MLD.contains(&kind)
        {
            return Err(Stop::Drop(DropReason::IpNotAllowed));
        }
        if self.macs.is_none() && self.ips.is_none() {
            return Ok(());
        }
        // Where options begin (RFC 4861, sections 4.1 to 4.4).
        let (has_target, options) = match kind {
            ROUTER_SOLICITATION => (false, upper.at + 8),
            ROUTER_ADVERTISEMENT => (false, upper.at + 16),
            // Whom anybody looks for is not for us to say, but who looks for an address without having one claims it (RFC 4862, section 5.4).
            NEIGHBOUR_SOLICITATION => (source.is_unspecified(), upper.at + 24),
            NEIGHBOUR_ADVERTISEMENT => (true, upper.at + 24),
            _ => return Ok(()),
        };
        if has_target && !self.allows_ipv6(ipv6(view.array::<16>(upper.at + 8)?, 0), view.mac) {
            return Err(Stop::Drop(DropReason::SpoofedNd));
        }
        look_at_options(view, options, end)
    }

    #[inline]
    fn allows_ipv4(&self, address: Ipv4Addr, leases: &[Ipv4Addr]) -> bool {
        match &self.ips {
            None => true,
            Some(listed) => listed.ipv4.contains(&address) || leases.binary_search(&address).is_ok(),
        }
    }

    fn allows_ipv6(&self, address: Ipv6Addr, mac: [u8; 6]) -> bool {
        match &self.ips {
            None => true,
            Some(listed) => address == link_local(MacAddr(mac)) || listed.ipv6.contains(&address),
        }
    }
}

/// Link-layer addresses in options have to be that of the frame (RFC 4861, section 4.6.1).
fn look_at_options(view: View<'_>, mut at: usize, end: usize) -> Result<(), Stop> {
    if end < at || end > view.len {
        return Err(UNVERIFIABLE);
    }
    for _ in 0..MAX_OPTIONS {
        if at == end {
            return Ok(());
        }
        let [kind, len]: [u8; 2] = *view.array(at)?;
        let len = usize::from(len) * 8;
        if len == 0 || at + len > end {
            return Err(UNVERIFIABLE);
        }
        if matches!(kind, 1 | 2) && (len != 8 || *view.array::<6>(at + 2)? != view.mac) {
            return Err(Stop::Drop(DropReason::SpoofedNd));
        }
        at += len;
    }
    Err(UNVERIFIABLE)
}

impl Upper {
    /// Walks along the extension headers (RFC 8200, section 4).
    fn find(view: View<'_>, mut at: usize, mut protocol: u8) -> Result<Self, Stop> {
        let mut fragment = None;
        for _ in 0..=MAX_EXTENSIONS {
            if !is_extension(protocol) {
                return Ok(Self { protocol, at, fragment });
            }
            if protocol == FRAGMENT {
                let follows = view.number(at + 2)? & 0xfff8 != 0;
                if follows {
                    return Ok(Self { protocol: view.byte(at)?, at: at + 8, fragment: Some(true) });
                }
                fragment = Some(false);
            }
            let len = extension_len(protocol, view.byte(at + 1)?).ok_or(UNVERIFIABLE)?;
            protocol = view.byte(at)?;
            at += len;
        }
        Err(UNVERIFIABLE)
    }
}

impl Parties {
    /// A server sends from its port, and to that of clients, who don't look where a message comes from.
    #[inline]
    fn refuse_server(&self, (source, destination): (u16, u16)) -> Result<(), Stop> {
        if source == self.server || destination == self.client {
            return Err(Stop::Drop(DropReason::DhcpServerNotAllowed));
        }
        Ok(())
    }
}

impl<'a> View<'a> {
    /// Without what is behind the packet: padding, which nobody who puts fragments together looks at.
    fn until(self, end: usize) -> Self {
        Self { bytes: &self.bytes[..end.min(self.bytes.len())], len: self.len.min(end), ..self }
    }

    /// As its MAC address says.
    fn is_for_many(&self) -> bool {
        self.bytes.first().is_some_and(|first| first & 1 == 1)
    }

    #[inline]
    fn array<const N: usize>(&self, at: usize) -> Result<&'a [u8; N], Stop> {
        if self.pending.is_some_and(|field| field < at + N && at < field + 2) {
            return Err(UNVERIFIABLE);
        }
        match self.bytes.get(at..).and_then(|rest| rest.first_chunk()) {
            Some(array) => Ok(array),
            None if at + N > self.len.min(INSPECTED_LEN) => Err(UNVERIFIABLE),
            None => Err(Stop::NeedsMore),
        }
    }

    #[inline]
    fn byte(&self, at: usize) -> Result<u8, Stop> {
        self.array::<1>(at).map(|[byte]| *byte)
    }

    #[inline]
    fn number(&self, at: usize) -> Result<u16, Stop> {
        self.array(at).map(|bytes| u16::from_be_bytes(*bytes))
    }
}

/// The address at a place where there is one.
fn ipv4(bytes: &[u8], at: usize) -> Ipv4Addr {
    bytes[at..].first_chunk::<4>().copied().map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from)
}

fn ipv6(bytes: &[u8], at: usize) -> Ipv6Addr {
    bytes[at..].first_chunk::<16>().copied().map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from)
}
