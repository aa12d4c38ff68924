//! What hosts and routers say about groups: IGMP (RFC 1112, RFC 2236, RFC 3376), MLD (RFC 2710, RFC 3810) and the hello of PIM (RFC 7761, section 4.9.2).
//!
//! `etherparse` reads IGMP, and not MLD. Reports of both look the same but for the length of addresses, so one reader is here for both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::{Family, group_mac};
use crate::vlan::{behind_priority_tags, is_priority_tag};
use crate::wire::{
    ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, FRAGMENT, HOP_BY_HOP, ICMPV6, Ipv4Packet, LinkHeader, MAX_EXTENSIONS, extension_len,
    internet_checksum, is_extension,
};
use crate::{DropReason, MacAddr};

pub(super) const IGMP: u8 = 2;
pub(super) const PIM: u8 = 103;
pub(super) const QUERY_V4: u8 = 0x11;
pub(super) const QUERY_V6: u8 = 130;
pub(super) const ALL_HOSTS_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
pub(super) const ALL_HOSTS_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The most records of a report: more than any port has groups.
const MAX_RECORDS: u16 = 512;
/// What routers of IGMPv3 and MLDv2 listen to.
const REPORTS_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);
const REPORTS_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
/// The router alert option of IPv6 for MLD (RFC 2711, section 2.1).
pub(super) const ROUTER_ALERT: [u8; 4] = [5, 2, 0, 0];
const BAD: DropReason = DropReason::BadGroupMessage;

/// What a frame says about groups, in which anything may stand.
#[derive(Clone, Debug)]
pub struct GroupMessage {
    pub(super) source: MacAddr,
    pub(super) family: Family,
    pub(super) message: Result<Message, DropReason>,
}

/// A frame, as far as groups are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A router asks.
    Query(Query),
    /// A host says what has changed, or how things are.
    Report(Vec<Record>),
    /// A router of PIM is here.
    RouterHello,
    /// Something else.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) source: IpAddr,
    /// The group that is asked for; all if there is none.
    pub(super) group: Option<IpAddr>,
    /// In which time hosts answer.
    pub(super) response: Duration,
    /// Only some sources of the group are asked for.
    pub(super) of_sources: bool,
}

/// What a host says about a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) group: IpAddr,
    pub(super) change: Change,
    /// 1 to 3 of IGMP, of which MLD's are 2 and 3.
    pub(super) version: u8,
}

/// A record, when sources are not told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It wants the group, whatever the sources.
    Join,
    /// It wants nothing of the group any more.
    Leave,
    /// It wants less of the group than before, and maybe nothing (RFC 3376, section 5.1: `BLOCK_OLD_SOURCES`).
    Narrow,
}

impl GroupMessage {
    /// Reads a whole frame, without its VLAN's tag. Its checksums are complete, unless it is still to be cut into segments: then it is none that a host would send.
    #[must_use]
    pub fn read(frame: &[u8], is_cut: bool) -> Self {
        let (link, rest) = match LinkHeader::parse(frame) {
            Ok(parts) => parts,
            Err(reason) => return Self { source: MacAddr([0; 6]), family: Family::V4, message: Err(reason) },
        };
        // Whoever gets a tag that names no VLAN takes it off.
        let (ether_type, rest) = behind_priority_tags(link.ether_type, rest);
        let (family, message) = match ether_type {
            ETHER_TYPE_IPV4 => (Family::V4, Message::parse_v4(link.destination, rest)),
            ETHER_TYPE_IPV6 => (Family::V6, Message::parse_v6(link.destination, rest)),
            // More tags than anybody needs, and IP in a form that nobody sends.
            _ if is_snap(ether_type, rest) => (Family::V4, Err(BAD)),
            _ if is_priority_tag(ether_type, rest) => (Family::V4, Err(BAD)),
            _ => (Family::V4, Ok(Message::Other)),
        };
        let message = if is_cut && message != Ok(Message::Other) { Err(BAD) } else { message };
        Self { source: link.source, family, message }
    }

    /// True if it says nothing about groups: the frame is like any other.
    #[must_use]
    pub fn is_other(&self) -> bool {
        self.message == Ok(Message::Other)
    }
}

impl Message {
    /// Fails with [`DropReason::BadGroupMessage`] for a message that contradicts itself, or that its RFC says to ignore; and with what is wrong with IPv4.
    fn parse_v4(to: MacAddr, bytes: &[u8]) -> Result<Self, DropReason> {
        if !matches!(bytes.get(9), Some(&(IGMP | PIM))) {
            return Ok(Self::Other);
        }
        let packet = Ipv4Packet::parse(bytes)?;
        let (ip, payload) = (packet.header(), packet.payload());
        let is_whole = !ip.more_fragments && ip.fragment_offset == 0;
        if ip.protocol == PIM && !is_whole {
            return Ok(Self::Other);
        }
        if !is_whole || !is_sent_to(to, ip.destination.into()) {
            return Err(BAD);
        }
        if ip.protocol == PIM {
            return Ok(if is_hello(payload, internet_checksum(&[payload])) { Self::RouterHello } else { Self::Other });
        }
        if internet_checksum(&[payload]) != 0 {
            return Err(BAD);
        }
        let &[kind, code, _, _, a, b, c, d, ref rest @ ..] = payload else { return Err(BAD) };
        let group = Ipv4Addr::new(a, b, c, d);
        let about = |change, version| checked_record(group.into(), change, version).map(|record| Self::Report(vec![record]));
        match kind {
            QUERY_V4 => {
                // IGMPv1 has no time, and its hosts take ten seconds (RFC 2236, section 4).
                let code = if code == 0 && rest.is_empty() { 100 } else { code };
                let (response, of_sources) = asked::<4>(code.into(), 4, rest)?;
                let response = Duration::from_millis(u64::from(response) * 100);
                query(ip.source.into(), group.into(), ip.destination.into(), (response, of_sources))
            }
            0x12 | 0x16 if ip.destination == group => about(Change::Join, if kind == 0x12 { 1 } else { 2 }),
            // To all routers; some say it to the group (RFC 2236, section 6).
            0x17 => about(Change::Leave, 2),
            0x22 if ip.destination == REPORTS_V4 => records::<4>(c, d, rest),
            // What is newer is for those who know it.
            0x12 | 0x16 | 0x22 => Err(BAD),
            _ => Ok(Self::Other),
        }
    }

    fn parse_v6(to: MacAddr, bytes: &[u8]) -> Result<Self, DropReason> {
        let Some((ip, rest)) = bytes.split_first_chunk::<40>() else { return Ok(Self::Other) };
        let payload = rest.get(..usize::from(u16::from_be_bytes([ip[4], ip[5]]))).ok_or(BAD)?;
        let [source, destination] = [8, 24].map(|at| Ipv6Addr::from(crate::wire::field::<16>(ip, at)));
        let Some(Upper { protocol, message, is_fragment }) = Upper::find(ip[6], payload)? else { return Ok(Self::Other) };
        if protocol == PIM {
            return Ok(if is_hello(message, checksum_v6(ip, PIM, message)) { Self::RouterHello } else { Self::Other });
        }
        if protocol != ICMPV6 || !message.first().is_some_and(|kind| is_mld(*kind)) {
            return Ok(Self::Other);
        }
        let options = match *payload {
            [_, len, ..] if ip[6] == HOP_BY_HOP => payload.get(2..8 + 8 * usize::from(len)),
            _ => None,
        };
        // RFC 3810, sections 5, 5.1.14 and 5.2.13: version 6, hop limit 1, a router alert, from a link-local address, or from none as long as a host has none (RFC 3590).
        let is_query = message[0] == QUERY_V6;
        let from_nobody = source.is_unspecified() && !is_query;
        let is_local = source.is_unicast_link_local() || from_nobody;
        let fits = ip[0] >> 4 == 6 && ip[7] == 1 && is_local && is_sent_to(to, destination.into()) && !is_fragment;
        if !fits || !options.is_some_and(has_router_alert) || checksum_v6(ip, ICMPV6, message) != 0 {
            return Err(BAD);
        }
        let &[kind, _, _, _, high, low, c, d, ref body @ ..] = message else { return Err(BAD) };
        if kind == 143 {
            return if destination == REPORTS_V6 { records::<16>(c, d, body) } else { Err(BAD) };
        }
        let (group, rest) = body.split_first_chunk::<16>().ok_or(BAD)?;
        let group = Ipv6Addr::from(*group);
        let about = |change| checked_record(group.into(), change, 2).map(|record| Self::Report(vec![record]));
        match kind {
            QUERY_V6 => {
                let code = u16::from_be_bytes([high, low]);
                let (response, of_sources) = asked::<16>(code, 12, rest)?;
                let response = Duration::from_millis(response.into());
                query(source.into(), group.into(), destination.into(), (response, of_sources))
            }
            131 if destination == group => about(Change::Join),
            131 => Err(BAD),
            _ => about(Change::Leave),
        }
    }
}

/// What is behind the extension headers of an IPv6 packet.
struct Upper<'a> {
    protocol: u8,
    message: &'a [u8],
    /// It is the first part of it.
    is_fragment: bool,
}

impl<'a> Upper<'a> {
    /// Walks along them (RFC 8200, section 4). Nothing for a fragment that is not the first: what it is a part of stands in that one, whole (RFC 7112).
    fn find(mut next: u8, mut rest: &'a [u8]) -> Result<Option<Self>, DropReason> {
        let mut is_fragment = false;
        for _ in 0..=MAX_EXTENSIONS {
            if !is_extension(next) {
                // The whole of what decides has to be in the first fragment (RFC 7112).
                if is_fragment && rest.len() < 8 {
                    return Err(BAD);
                }
                return Ok(Some(Self { protocol: next, message: rest, is_fragment }));
            }
            let &[following, len, high, low, ..] = rest else { return Err(BAD) };
            if next == FRAGMENT {
                is_fragment = true;
                if u16::from_be_bytes([high, low]) >= 8 {
                    return Ok(None);
                }
            }
            rest = extension_len(next, len).and_then(|len| rest.get(len..)).ok_or(BAD)?;
            next = following;
        }
        Err(BAD)
    }
}

/// The queries and reports of MLD (RFC 2710, section 3.1; RFC 3810, section 5).
pub(super) const fn is_mld(kind: u8) -> bool {
    matches!(kind, QUERY_V6 | 131 | 132 | 143)
}

/// True for an IP packet in a frame of IEEE 802.2 (RFC 1042), which some hosts take.
pub(super) fn is_snap(len: u16, rest: &[u8]) -> bool {
    len < 0x600 && matches!(rest, [0xaa, 0xaa, 3, 0, 0, 0, 8, 0, ..] | [0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd, ..])
}

/// A query with its group; one for all of them goes to all hosts (RFC 3376, section 4.1.12).
fn query(
    source: IpAddr,
    group: IpAddr,
    destination: IpAddr,
    (response, of_sources): (Duration, bool),
) -> Result<Message, DropReason> {
    let all = if group.is_ipv4() { IpAddr::V4(ALL_HOSTS_V4) } else { ALL_HOSTS_V6.into() };
    let group = (!group.is_unspecified()).then_some(group);
    let fits = match group {
        Some(group) => group.is_multicast() && (destination == group || destination == all),
        None => destination == all && !of_sources,
    };
    if fits && is_askers(source) { Ok(Message::Query(Query { source, group, response, of_sources })) } else { Err(BAD) }
}

/// False for a source of which no host takes a question, because nobody has that address (RFC 1122, section 3.2.1.3; RFC 6890). That of MLD was checked before.
fn is_askers(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => source.is_unspecified() || !(source.is_loopback() || matches!(source.octets()[0], 0 | 224..)),
        IpAddr::V6(_) => true,
    }
}

/// The records of a report (RFC 3376, section 4.2; RFC 3810, section 5.2), with addresses of `N` bytes.
fn records<const N: usize>(high: u8, low: u8, mut rest: &[u8]) -> Result<Message, DropReason> {
    let (mut records, count) = (Vec::new(), u16::from_be_bytes([high, low]));
    if count > MAX_RECORDS {
        return Err(BAD);
    }
    for _ in 0..count {
        let &[kind, words, many, few, ref body @ ..] = rest else { return Err(BAD) };
        let (group, body) = body.split_first_chunk::<N>().ok_or(BAD)?;
        let sources = usize::from(u16::from_be_bytes([many, few]));
        rest = body.get(sources * N + usize::from(words) * 4..).ok_or(BAD)?;
        let change = match (kind, sources) {
            // An empty list of sources to be included is nothing.
            (1 | 3, 0) => Change::Leave,
            // Nothing has changed; and unknown ones are ignored (RFC 3376, section 4.2.12).
            (5 | 6, 0) => continue,
            (1..=5, _) => Change::Join,
            (6, _) => Change::Narrow,
            _ => continue,
        };
        let group = match group.first_chunk::<16>() {
            Some(long) => Ipv6Addr::from(*long).into(),
            None => Ipv4Addr::new(group[0], group[1], group[2], group[3]).into(),
        };
        records.push(checked_record(group, change, 3)?);
    }
    Ok(Message::Report(records))
}

fn checked_record(group: IpAddr, change: Change, version: u8) -> Result<Record, DropReason> {
    if group.is_multicast() { Ok(Record { group, change, version }) } else { Err(BAD) }
}

/// In how many units of time hosts answer, which begins to have an exponent at this bit, and whether only some sources are asked for, of `N` bytes each. A query of the older
/// version ends before that.
fn asked<const N: usize>(code: u16, exponent_at: u32, rest: &[u8]) -> Result<(u32, bool), DropReason> {
    match rest {
        [] => Ok((code.into(), false)),
        [_, _, high, low, sources @ ..] => {
            let count = usize::from(u16::from_be_bytes([*high, *low]));
            if sources.len() < count * N { Err(BAD) } else { Ok((spread(code, exponent_at), count > 0)) }
        }
        _ => Err(BAD),
    }
}

/// The number behind a code whose exponent stands at bit `at`: 4 of 8 bits, 12 of 16 (RFC 3376, section 4.1.1; RFC 3810, section 5.1.3).
fn spread(code: u16, at: u32) -> u32 {
    let code = u32::from(code);
    if code >> (at + 3) == 0 {
        return code;
    }
    ((code & ((1 << at) - 1)) | 1 << at) << ((code >> at & 7) + 3)
}

/// True if the frame's address is that of the packet's group.
fn is_sent_to(mac: MacAddr, group: IpAddr) -> bool {
    group.is_multicast() && group_mac(group) == mac
}

/// The hello of PIM version 2: type 0, with the right checksum.
fn is_hello(pim: &[u8], checksum: u16) -> bool {
    pim.first() == Some(&0x20) && checksum == 0
}

/// Zero for an upper-layer message with its right checksum (RFC 8200, section 8.1).
pub(super) fn checksum_v6(ip: &[u8; 40], protocol: u8, message: &[u8]) -> u16 {
    // No truncation: a packet is shorter.
    let len = (message.len() as u32).to_be_bytes();
    internet_checksum(&[&ip[8..], &len, &[0, 0, 0, protocol], message])
}

/// True if hosts are told to look, and find nothing among the options for which they drop the packet (RFC 8200, section 4.2: unknown ones whose first two bits are not zero).
fn has_router_alert(mut options: &[u8]) -> bool {
    let mut found = false;
    loop {
        match options {
            [] => return found,
            [0, rest @ ..] => options = rest,
            [kind, len, rest @ ..] => {
                let Some((option, rest)) = rest.split_at_checked(usize::from(*len)) else { return false };
                match (kind, option) {
                    (5, [0, 0]) => found = true,
                    (0x40.., _) => return false,
                    _ => {}
                }
                options = rest;
            }
            _ => return false,
        }
    }
}
