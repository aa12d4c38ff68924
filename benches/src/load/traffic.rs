//! What the frames say: addresses, tags and headers, from nothing but the number of a conversation.
//!
//! A *conversation* goes from one guest to another and has a station at each end, perhaps a VLAN and perhaps a flow of UDP or TCP.
//! Whoever knows the two guests and the conversation's number knows every byte of its headers, so the receiver can check them.

use weft_guest::Header;

use super::options::{Options, Payload};

/// Bytes of an 802.1Q tag.
pub const TAG_LEN: usize = 4;
/// Bytes of an untagged Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// The shortest frame on a wire, without FCS.
const MIN_FRAME_LEN: usize = 60;
const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
const TCP_LEN: usize = 20;
/// The longest headers: Ethernet, a tag, IPv4 and TCP.
const MAX_HEADERS_LEN: usize = ETHERNET_LEN + TAG_LEN + IPV4_LEN + TCP_LEN;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_VLAN: u16 = 0x8100;
/// For local experiments (IEEE 802-2014, 9.2.4).
const ETHERTYPE_EXPERIMENTAL: u16 = 0x88b5;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// The discard service (RFC 863): whoever gets such a frame by mistake does nothing with it.
const PORT_DISCARD: u16 = 9;
/// What an introduction says, to be told from everything else.
const INTRODUCTION: &[u8] = b"a station of weft-load is here";
/// Source ports go round this many from here on.
const PORT_FIRST: u32 = 1024;
const PORTS: u32 = 50_000;

/// The headers of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    bytes: [u8; MAX_HEADERS_LEN],
    len: usize,
}

impl Headers {
    fn new() -> Self {
        Self { bytes: [0; MAX_HEADERS_LEN], len: 0 }
    }

    /// The bytes, from the destination address on.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn push_u16(&mut self, value: u16) {
        self.push(&value.to_be_bytes());
    }
}

/// Which conversations there are, and how their frames look.
#[derive(Clone, Debug)]
pub struct Traffic {
    payload: Payload,
    frame_len: usize,
    stations: u16,
    flows: u32,
    vlans: Vec<u16>,
    trunk: Option<u16>,
}

impl Traffic {
    /// What the options ask for.
    #[must_use]
    pub fn of(options: &Options) -> Self {
        let Options { payload, frame_len, stations, flows, trunk, .. } = *options;
        Self { payload, frame_len, stations, flows, vlans: options.vlans.clone(), trunk }
    }

    /// Conversations from one guest to one other. Each has its own number from 0 on; it determines station, flow and VLAN.
    #[must_use]
    pub fn conversations(&self) -> u32 {
        u32::from(self.stations).max(self.flows).max(self.vlans.len() as u32)
    }

    /// Bytes of a frame, without FCS.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        self.frame_len
    }

    /// Bytes before the payload.
    #[must_use]
    pub fn headers_len(&self) -> usize {
        self.ip_at()
            + match self.payload {
                Payload::Plain => 0,
                Payload::Udp => IPV4_LEN + UDP_LEN,
                Payload::Tcp { .. } => IPV4_LEN + TCP_LEN,
            }
    }

    /// Where the checksum of TCP lies in the frame, if there is TCP.
    #[must_use]
    pub fn tcp_checksum_at(&self) -> Option<usize> {
        matches!(self.payload, Payload::Tcp { .. }).then(|| self.ip_at() + IPV4_LEN + 16)
    }

    /// The virtio-net header before every frame.
    #[must_use]
    pub fn virtio_header(&self) -> Header {
        match self.payload {
            Payload::Plain | Payload::Udp => Header::default(),
            Payload::Tcp { segment_len } => Header {
                flags: Header::NEEDS_CSUM,
                gso_type: Header::GSO_TCPV4,
                hdr_len: self.headers_len() as u16,
                gso_size: segment_len,
                csum_start: (self.ip_at() + IPV4_LEN) as u16,
                csum_offset: 16,
                num_buffers: 0,
            },
        }
    }

    /// The headers of a conversation's frames.
    #[must_use]
    pub fn headers(&self, from: usize, to: usize, conversation: u32) -> Headers {
        let mut headers = Headers::new();
        let number = (conversation % u32::from(self.stations)) as u16;
        push_ethernet(&mut headers, station(to, number), station(from, number), self.vlan(conversation));
        let transport_len = self.frame_len.saturating_sub(self.ip_at() + IPV4_LEN);
        let flow = conversation % self.flows.max(1);
        let source_port = (PORT_FIRST + flow % PORTS) as u16;
        match self.payload {
            Payload::Plain => headers.push_u16(ETHERTYPE_EXPERIMENTAL),
            Payload::Udp => {
                headers.push_u16(ETHERTYPE_IPV4);
                push_ipv4(&mut headers, PROTOCOL_UDP, transport_len as u16, address(from, flow), address(to, flow));
                // A checksum of zero says that there is none (RFC 768).
                [source_port, PORT_DISCARD, transport_len as u16, 0].into_iter().for_each(|field| headers.push_u16(field));
            }
            Payload::Tcp { .. } => {
                headers.push_u16(ETHERTYPE_IPV4);
                let (source, destination) = (address(from, flow), address(to, flow));
                push_ipv4(&mut headers, PROTOCOL_TCP, transport_len as u16, source, destination);
                let pseudo = pseudo_header_sum(source, destination, transport_len as u16);
                // Sequence and acknowledgement number are 1; five words of header, ACK; a full window; no urgent data.
                let fields = [source_port, PORT_DISCARD, 0, 1, 0, 1, 0x5010, 0xffff, fold(pseudo), 0];
                fields.into_iter().for_each(|field| headers.push_u16(field));
            }
        }
        headers
    }

    /// A short frame from every station of a guest in every VLAN that it speaks in, for the switch to learn.
    #[must_use]
    pub fn introductions(&self, from: usize, to: usize) -> Vec<Vec<u8>> {
        let mut pairs: Vec<(u16, Option<u16>)> = (0..self.conversations())
            .map(|conversation| ((conversation % u32::from(self.stations)) as u16, self.vlan(conversation)))
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        let trunk = self.trunk.filter(|_| from != 0);
        let frame = |(number, vlan): (u16, Option<u16>)| {
            let mut headers = Headers::new();
            push_ethernet(&mut headers, station(to, 0), station(from, number), vlan.or(trunk));
            headers.push_u16(ETHERTYPE_EXPERIMENTAL);
            let mut frame = [headers.bytes(), INTRODUCTION].concat();
            frame.resize(MIN_FRAME_LEN, 0);
            frame
        };
        pairs.into_iter().map(frame).collect()
    }

    fn vlan(&self, conversation: u32) -> Option<u16> {
        let count = self.vlans.len() as u32;
        (count > 0).then(|| self.vlans[(conversation % count) as usize])
    }

    /// Where the payload of Ethernet begins.
    fn ip_at(&self) -> usize {
        ETHERNET_LEN + if self.vlans.is_empty() { 0 } else { TAG_LEN }
    }
}

/// True for a frame that only let the switch learn a station. A slow one may bring it when the rings have started anew.
#[must_use]
pub fn is_introduction(frame: &[u8]) -> bool {
    let (_, tags_len) = tags(frame);
    frame.get(ETHERNET_LEN + tags_len..).is_some_and(|payload| payload.starts_with(INTRODUCTION))
}

/// True for a frame with which a switch asks all hosts what groups they want (IGMP, MLD): it is none of ours.
#[must_use]
pub fn is_question(frame: &[u8]) -> bool {
    frame.starts_with(&[1, 0, 0x5e, 0, 0, 1]) || frame.starts_with(&[0x33, 0x33, 0, 0, 0, 1])
}

/// The address of a station behind a guest's port.
#[must_use]
pub fn station(guest: usize, number: u16) -> [u8; 6] {
    let [high, low] = number.to_be_bytes();
    [0x02, 0, 0, guest as u8, high, low]
}

/// The guest that a station's address belongs to.
#[must_use]
pub fn guest_of(station: &[u8]) -> Option<usize> {
    (station[..3] == [0x02, 0, 0]).then(|| usize::from(station[3]))
}

/// The tags of a frame: priority and VLAN of the outermost, and how many bytes there are of all.
#[must_use]
pub fn tags(frame: &[u8]) -> (Option<u16>, usize) {
    let mut outermost = None;
    let mut len = 0;
    while let Some(tag) = frame.get(ETHERNET_LEN - 2 + len..ETHERNET_LEN + 2 + len)
        && matches!(u16::from_be_bytes([tag[0], tag[1]]), ETHERTYPE_VLAN | 0x88a8)
    {
        outermost = outermost.or(Some(u16::from_be_bytes([tag[2], tag[3]])));
        len += TAG_LEN;
    }
    (outermost, len)
}

/// The sum of a range of big-endian words that a checksum is made of; an odd last byte counts as if a zero followed (RFC 1071).
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let even: u64 = pairs.iter().map(|&pair| u64::from(u16::from_be_bytes(pair))).sum();
    even + rest.first().map_or(0, |&byte| u64::from(byte) << 8)
}

/// Folds a sum into 16 bits, carries added (RFC 1071).
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Everything before the EtherType of the payload.
fn push_ethernet(headers: &mut Headers, destination: [u8; 6], source: [u8; 6], vlan: Option<u16>) {
    headers.push(&destination);
    headers.push(&source);
    if let Some(vlan) = vlan {
        headers.push_u16(ETHERTYPE_VLAN);
        headers.push_u16(vlan);
    }
}

fn push_ipv4(headers: &mut Headers, protocol: u8, payload_len: u16, source: [u8; 4], destination: [u8; 4]) {
    let start = headers.len;
    headers.push(&[0x45, 0]);
    headers.push_u16(IPV4_LEN as u16 + payload_len);
    // No identification, don't fragment, 64 hops.
    headers.push(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    headers.push(&source);
    headers.push(&destination);
    let checksum = !fold(sum(&headers.bytes[start..headers.len]));
    headers.bytes[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// The address of a flow's end at a guest.
fn address(guest: usize, flow: u32) -> [u8; 4] {
    let [high, low] = (flow as u16).to_be_bytes();
    [10, guest as u8, high, low]
}

fn pseudo_header_sum(source: [u8; 4], destination: [u8; 4], len: u16) -> u64 {
    sum(&source) + sum(&destination) + u64::from(PROTOCOL_TCP) + u64::from(len)
}
