//! Queries that weft sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{ALL_HOSTS_V4, ALL_HOSTS_V6, IGMP, QUERY_V4, QUERY_V6, ROUTER_ALERT, checksum_v6};
use super::{Family, ROBUSTNESS, SnoopingSettings, group_mac};
use crate::MacAddr;
use crate::wire::{ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, HOP_BY_HOP, ICMPV6, LinkHeader, internet_checksum, link_local};

/// Asks for one group, or for all. `source` is that of IGMP; MLD's is always the link-local address.
pub(super) fn query(settings: &SnoopingSettings, family: Family, group: Option<IpAddr>, source: Ipv4Addr) -> Vec<u8> {
    let response = if group.is_some() { settings.last_member_interval } else { settings.response_interval };
    let seconds = u32::try_from(settings.query_interval.as_secs()).unwrap_or(u32::MAX);
    let to = group.unwrap_or(match family {
        Family::V4 => ALL_HOSTS_V4.into(),
        Family::V6 => ALL_HOSTS_V6.into(),
    });
    let (millis, interval) = (u32::try_from(response.as_millis()).unwrap_or(u32::MAX), code(seconds));
    match to {
        IpAddr::V4(to) => query_v4(settings.mac, source, to, group.is_some(), [code(millis / 100), interval]),
        // One millisecond less than what would need an exponent: the intervals are shorter (RFC 3810, section 5.1.3).
        IpAddr::V6(to) => query_v6(settings.mac, to, group.is_some(), millis.min(0x7fff) as u16, interval),
    }
}

/// IGMPv3 (RFC 3376, section 4.1), with a router alert; hosts of older versions understand it (section 7.2.1).
fn query_v4(mac: MacAddr, source: Ipv4Addr, to: Ipv4Addr, of_group: bool, [response, interval]: [u8; 2]) -> Vec<u8> {
    let group = if of_group { to } else { Ipv4Addr::UNSPECIFIED }.octets();
    let mut igmp = [QUERY_V4, response, 0, 0, group[0], group[1], group[2], group[3], ROBUSTNESS, interval, 0, 0];
    let sum = internet_checksum(&[&igmp]).to_be_bytes();
    igmp[2..4].copy_from_slice(&sum);
    // Version 4, six words; internetwork control; TTL 1.
    let mut ip = [0x46, 0xc0, 0, 36, 0, 0, 0, 0, 1, IGMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x94, 4, 0, 0];
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let sum = internet_checksum(&[&ip]).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    let link = LinkHeader { destination: group_mac(to.into()), source: mac, ether_type: ETHER_TYPE_IPV4 };
    [&link.to_bytes()[..], &ip, &igmp].concat()
}

/// MLDv2 (RFC 3810, section 5.1), from the MAC address's link-local one.
fn query_v6(mac: MacAddr, to: Ipv6Addr, of_group: bool, response: u16, interval: u8) -> Vec<u8> {
    let group = if of_group { to } else { Ipv6Addr::UNSPECIFIED };
    let [high, low] = response.to_be_bytes();
    let mut mld = [&[QUERY_V6, 0, 0, 0, high, low, 0, 0][..], &group.octets(), &[ROBUSTNESS, interval, 0, 0]].concat();
    let mut ip = [0; 40];
    // 36 bytes follow: 8 of options, 28 of MLD.
    ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 36, HOP_BY_HOP, 1]);
    ip[8..24].copy_from_slice(&link_local(mac).octets());
    ip[24..].copy_from_slice(&to.octets());
    let sum = checksum_v6(&ip, ICMPV6, &mld).to_be_bytes();
    mld[2..4].copy_from_slice(&sum);
    let [a, b, c, d] = ROUTER_ALERT;
    // The last two are padding.
    let options = [ICMPV6, 0, a, b, c, d, 1, 0];
    let link = LinkHeader { destination: group_mac(to.into()), source: mac, ether_type: ETHER_TYPE_IPV6 };
    [&link.to_bytes()[..], &ip, &options, &mld].concat()
}

/// The code of a number: itself below 128, else the largest with exponent that is not more (RFC 3376, section 4.1.1).
fn code(number: u32) -> u8 {
    if number < 128 {
        return number as u8;
    }
    let number = number.min(0x1f << 10);
    let exponent = number.ilog2() - 7;
    // No truncation: four bits of the number below its highest, three of the exponent.
    (0x80 | exponent << 4 | (number >> (exponent + 3) & 0xf)) as u8
}
