//! Which flow a frame belongs to, as a number: so that several queues can share the work, and each flow keeps its order.

use crate::EthernetHeader;
use crate::ethernet::{MAX_TAGS, TAG_LEN};
use crate::wire::{ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, is_fragment};

/// Tags of IEEE 802.1Q-2018, 9.6.
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// Protocols whose header begins with two ports.
const WITH_PORTS: [u8; 3] = [6, 17, 132];

/// Tells flows apart, with keys of its own: who sends can't choose what collides.
#[derive(Debug, Default)]
pub struct FlowHash(ahash::RandomState);

impl FlowHash {
    /// Bytes after the Ethernet header that matter: two tags, an IPv6 header, two ports.
    pub const LOOKS_AT: usize = MAX_TAGS * TAG_LEN + 40 + 4;

    /// The same number for every frame of a flow: one with the same addresses, and of TCP, UDP and SCTP over IP the same ports
    /// (not in fragments, of which only the first has them). `rest` is what follows the Ethernet header; [`Self::LOOKS_AT`]
    /// bytes of it are enough, fewer do no harm.
    #[must_use]
    pub fn hash(&self, header: &[u8; EthernetHeader::LEN], rest: &[u8]) -> u64 {
        let [addresses @ .., high, low] = header;
        let (ethertype, packet) = untag(u16::from_be_bytes([*high, *low]), rest);
        match (ethertype, flow_of_ipv4(packet), flow_of_ipv6(packet)) {
            (ETHER_TYPE_IPV4, Some(flow), _) => self.0.hash_one(flow),
            (ETHER_TYPE_IPV6, _, Some(flow)) => self.0.hash_one(flow),
            _ => self.0.hash_one(addresses),
        }
    }
}

/// The type and the packet behind at most two tags.
fn untag(mut ethertype: u16, mut rest: &[u8]) -> (u16, &[u8]) {
    for _ in 0..MAX_TAGS {
        match rest {
            [_, _, high, low, packet @ ..] if TAGS.contains(&ethertype) => {
                (ethertype, rest) = (u16::from_be_bytes([*high, *low]), packet);
            }
            _ => break,
        }
    }
    (ethertype, rest)
}

/// Addresses, protocol and ports (RFC 791, 3.1).
fn flow_of_ipv4(packet: &[u8]) -> Option<(&[u8], u8, [u8; 4])> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let is_fragment = is_fragment(u16::from_be_bytes([header[6], header[7]]));
    let ports = ports(packet, usize::from(header[0] & 0xf) * 4, header[9]).filter(|_| !is_fragment);
    Some((&header[12..], header[9], ports.unwrap_or_default()))
}

/// The same (RFC 8200, 3). Packets with extension headers are told apart by their addresses alone.
fn flow_of_ipv6(packet: &[u8]) -> Option<(&[u8], u8, [u8; 4])> {
    let header: &[u8; 40] = packet.first_chunk()?;
    Some((&header[8..], header[6], ports(packet, header.len(), header[6]).unwrap_or_default()))
}

fn ports(packet: &[u8], at: usize, protocol: u8) -> Option<[u8; 4]> {
    packet.get(at..)?.first_chunk().copied().filter(|_| WITH_PORTS.contains(&protocol))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn hash(flows: &FlowHash, frame: &[u8]) -> u64 {
        let (header, rest) = frame.split_first_chunk().unwrap();
        let hash = flows.hash(header, rest);
        assert_eq!(hash, flows.hash(header, &rest[..rest.len().min(FlowHash::LOOKS_AT)]), "what it says it looks at is enough");
        hash
    }

    fn udp4(source: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source, [10, 0, 0, 2], 64).udp(port, 53);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    }

    fn tcp6(port: u16, tag: Option<u16>) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frame = Vec::new();
        let payload = [7; 20];
        match tag {
            Some(tag) => {
                let builder = builder.single_vlan(tag.try_into().unwrap()).ipv6([1; 16], [2; 16], 64);
                builder.tcp(port, 80, 1, 2).write(&mut frame, &payload).unwrap();
            }
            None => builder.ipv6([1; 16], [2; 16], 64).tcp(port, 80, 1, 2).write(&mut frame, &payload).unwrap(),
        }
        frame
    }

    #[test]
    fn a_flow_has_one_number_whatever_its_frames_carry() {
        let flows = FlowHash::default();
        assert_eq!(hash(&flows, &udp4([10, 0, 0, 1], 1000, b"a")), hash(&flows, &udp4([10, 0, 0, 1], 1000, &[9; 700])));
        assert_eq!(hash(&flows, &tcp6(1000, Some(5))), hash(&flows, &tcp6(1000, None)));
    }

    #[test]
    fn flows_that_differ_in_a_port_or_an_address_spread_evenly() {
        let flows = FlowHash::default();
        let of_ports = (0..1000).map(|port| hash(&flows, &udp4([10, 0, 0, 1], port, b"")));
        let of_addresses = (0..1000_u16).map(|n| hash(&flows, &udp4([10, 0, (n >> 8) as u8, n as u8], 1, b"")));
        let of_ipv6 = (0..1000).map(|port| hash(&flows, &tcp6(port, None)));
        for hashes in [of_ports.collect::<Vec<_>>(), of_addresses.collect(), of_ipv6.collect()] {
            let mut counts = [0; 4];
            hashes.iter().for_each(|hash| counts[*hash as usize % 4] += 1);
            // 250 of 1,000 each, and eight times the standard deviation of about 14.
            assert!(counts.iter().all(|&count| (140..=360).contains(&count)), "{counts:?}");
        }
    }

    #[test]
    fn all_fragments_of_a_packet_stay_together() {
        let flows = FlowHash::default();
        let mut first = udp4([10, 0, 0, 1], 1000, &[0; 64]);
        let mut second = udp4([10, 0, 0, 1], 2000, &[1; 64]);
        assert_ne!(hash(&flows, &first), hash(&flows, &second));
        first[20] = 0x20;
        second[21] = 100;
        assert_eq!(hash(&flows, &first), hash(&flows, &second));
    }

    #[test]
    fn frames_that_end_early_have_a_number_too() {
        let flows = FlowHash::default();
        let whole = tcp6(1000, Some(5));
        for len in 14..whole.len() {
            hash(&flows, &whole[..len]);
        }
    }
}
