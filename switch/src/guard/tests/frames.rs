//! Frames by hand.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::MacAddr;

pub(super) const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
pub(super) const OTHER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
pub(super) const OWN_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
pub(super) const LEASED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);
pub(super) const OTHER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 6);
pub(super) const OWN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);
pub(super) const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 6);
pub(super) const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
/// Of [`MAC`].
pub(super) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const ICMPV6: u8 = 58;

pub(super) fn ethernet(source: MacAddr, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&[0x33, 0x33, 0, 0, 0, 1][..], &source.0, &ether_type.to_be_bytes(), payload].concat()
}

pub(super) fn tagged(types: &[u16], frame: &[u8]) -> Vec<u8> {
    let tags = types.iter().flat_map(|kind| [kind.to_be_bytes(), [0, 7]]).flatten();
    frame[..12].iter().copied().chain(tags).chain(frame[12..].iter().copied()).collect()
}

pub(super) fn arp(operation: u8, sender: MacAddr, address: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    ethernet(MAC, 0x0806, &[&head[..], &sender.0, &address.octets(), &[0; 6], &target.octets(), &[0; 18]].concat())
}

pub(super) fn ipv4(source: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    fragment_v4(source, protocol, 0, payload)
}

/// `fragment` is flags and offset.
pub(super) fn fragment_v4(source: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let [high, low] = fragment.to_be_bytes();
    let head = [0x45, 0, len[0], len[1], 0, 0, high, low, 64, protocol, 0, 0];
    ethernet(MAC, 0x0800, &[&head[..], &source.octets(), &[10, 0, 0, 9], payload].concat())
}

pub(super) fn with_total_len(mut frame: Vec<u8>, len: u16) -> Vec<u8> {
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame
}

pub(super) fn ipv6(source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let head = [0x60, 0, 0, 0, len[0], len[1], next, 255];
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    ethernet(MAC, 0x86dd, &[&head[..], &source.octets(), &all_nodes.octets(), payload].concat())
}

/// `offset` is in bytes.
pub(super) fn fragment_v6(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (offset | u16::from(more)).to_be_bytes();
    [&[next, 0, high, low, 0, 0, 0, 1][..], payload].concat()
}

pub(super) fn udp(source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

/// A message of neighbour discovery about a target.
pub(super) fn nd(kind: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat()
}

pub(super) fn link_layer(kind: u8, mac: MacAddr) -> Vec<u8> {
    [&[kind, 1][..], &mac.0].concat()
}
