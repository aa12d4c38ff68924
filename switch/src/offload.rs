//! Work that a sender left to the device: completing checksums and cutting large frames into segments.
//!
//! # Theory
//!
//! A driver that negotiated it may send a frame whose transport checksum is only begun (the field holds the sum of the
//! pseudo-header), and one frame that stands for many (up to 64 KiB of TCP or UDP payload under one set of headers). The
//! virtio-net header says which (virtio 1.2, section 5.1.6). A receiver that agreed to such frames gets them as they are: that
//! is where the speed of TCP between guests comes from. For any other receiver the work is done here.
//!
//! The sender is not believed: [`Offload::parse`] checks every field against the frame and against what was
//! negotiated, and [`segment`] reads the headers itself.

use crate::DropReason;
use crate::ethernet::{MAX_TAGS, TAG_LEN};
use crate::vlan::TagKind;
use crate::wire::{ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_RARP, is_fragment};

/// The most segments that one frame may stand for: 64 KiB at an MSS of 256, below which only an MTU under 296 leads. Without it a guest could ask
/// for segments of one byte, and a batch would take as long as it likes.
const MAX_SEGMENTS: usize = 256;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

const ETHERNET_LEN: usize = 14;
/// Without options.
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// Source and destination, with which each transport header begins that has a checksum to be completed.
const PORTS_LEN: u16 = 4;
/// Without options, with timestamps (RFC 7323, appendix A), and with as many options as it can have.
const TCP_LEN: usize = 20;
const USUAL_TCP_LEN: usize = 32;
const MAX_TCP_LEN: usize = 60;
/// Nobody who wants to get far sends smaller segments (RFC 9293, section 3.7.1).
const LEAST_USUAL_MSS: u16 = 536;
/// The most that a frame that can be cut has in front of its payload: two tags, the longest headers of IPv4 and TCP. Whoever says that there is more does not use up others' rate.
const MAX_HEADERS: usize = ETHERNET_LEN + MAX_TAGS * TAG_LEN + 60 + MAX_TCP_LEN;
const UDP_LEN: usize = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Bytes from a transport header's start to its checksum.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const FRAGMENT_HEADER_LEN: usize = 8;
/// The last place where a transport header may begin.
const MAX_START: usize = u16::MAX as usize - TAG_LEN;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
const MORE_FRAGMENTS: u16 = 0x2000;

/// A transport checksum that has to be completed (section 5.1.6.2, `csum_start` and `csum_offset`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Bytes from the frame's start to the transport header.
    pub start: u16,
    /// Bytes from the transport header's start to the checksum field.
    pub offset: u16,
}

/// How a frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// A UDP datagram that is to be fragmented by IP.
    UdpFragments,
    /// Several UDP datagrams of the same size.
    Udp,
}

/// A frame that stands for many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// How it is to be cut.
    pub kind: SegmentKind,
    /// Bytes of payload in each segment but the last; never zero.
    pub size: u16,
    /// The first segment reports a reduced congestion window (RFC 3168, section 6.1.2).
    pub ecn: bool,
}

/// What is left to do about a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its checksum is to be completed.
    pub checksum: Option<PartialChecksum>,
    /// It is to be cut. Then its checksum is to be completed as well.
    pub segmentation: Option<Segmentation>,
}

/// Which kinds of unfinished frames one side agreed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a feature bit of its own")]
pub struct OffloadFeatures {
    /// Partial checksums.
    pub checksum: bool,
    /// TCP segmentation over IPv4.
    pub tcp4: bool,
    /// TCP segmentation over IPv6.
    pub tcp6: bool,
    /// TCP segmentation of frames that report congestion.
    pub ecn: bool,
    /// UDP fragmentation.
    pub udp_fragments: bool,
    /// UDP segmentation.
    pub udp: bool,
}

impl OffloadFeatures {
    /// True if a frame with this left to do may be handed over as it is.
    #[must_use]
    pub fn cover(self, offload: &Offload) -> bool {
        let cut = offload.segmentation.is_none_or(|segmentation| {
            let kind = match segmentation.kind {
                SegmentKind::Tcp4 => self.tcp4,
                SegmentKind::Tcp6 => self.tcp6,
                SegmentKind::UdpFragments => self.udp_fragments,
                SegmentKind::Udp => self.udp,
            };
            kind && (self.ecn || !segmentation.ecn)
        });
        cut && (self.checksum || offload.checksum.is_none())
    }
}

/// Frames as a wire would carry them, of which none stands for several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireSize {
    /// How many.
    pub frames: usize,
    /// Their bytes, without FCS.
    pub bytes: usize,
}

impl std::ops::AddAssign for WireSize {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

impl std::ops::SubAssign for WireSize {
    #[inline]
    fn sub_assign(&mut self, other: Self) {
        self.frames -= other.frames;
        self.bytes -= other.bytes;
    }
}

impl PartialChecksum {
    /// The first of the two bytes that are written.
    #[inline]
    #[must_use]
    pub fn field(&self) -> usize {
        usize::from(self.start) + usize::from(self.offset)
    }
}

impl Offload {
    /// Nothing is left to do.
    pub const NONE: Self = Self { checksum: None, segmentation: None };

    /// True if a virtio-net header asks for anything at all: a glance that spares most frames the rest.
    #[inline]
    #[must_use]
    pub fn is_asked_for(header: &[u8; 10]) -> bool {
        header[0] & NEEDS_CSUM != 0 || header[1] != 0
    }

    /// True if nothing is left to do. Segmentation always comes with a checksum.
    #[inline]
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.checksum.is_none()
    }

    /// Reads the first ten bytes of a virtio-net header in front of a frame of `frame_len` bytes.
    ///
    /// # Errors
    /// [`DropReason::UnagreedOffload`] for what `agreed` does not cover, [`DropReason::BadOffload`] for what contradicts
    /// itself or the frame.
    pub fn parse(header: [u8; 10], frame_len: usize, agreed: OffloadFeatures) -> Result<Self, DropReason> {
        if !Self::is_asked_for(&header) {
            return Ok(Self::NONE);
        }
        let [flags, gso_type, _, _, size_low, size_high, start_low, start_high, offset_low, offset_high] = header;
        let checksum = (flags & NEEDS_CSUM != 0).then(|| PartialChecksum {
            start: u16::from_le_bytes([start_low, start_high]),
            offset: u16::from_le_bytes([offset_low, offset_high]),
        });
        let kind = match gso_type & !GSO_ECN {
            0 if gso_type == 0 => None,
            GSO_TCPV4 => Some(SegmentKind::Tcp4),
            GSO_TCPV6 => Some(SegmentKind::Tcp6),
            GSO_UDP => Some(SegmentKind::UdpFragments),
            GSO_UDP_L4 => Some(SegmentKind::Udp),
            _ => return Err(DropReason::BadOffload),
        };
        let size = u16::from_le_bytes([size_low, size_high]);
        let segmentation = kind.map(|kind| Segmentation { kind, size, ecn: gso_type & GSO_ECN != 0 });
        let offload = Self { checksum, segmentation };
        if !agreed.cover(&offload) {
            return Err(DropReason::UnagreedOffload);
        }
        // Section 5.1.6.2: whoever asks for segments asks for checksums too.
        let Some(PartialChecksum { start, offset }) = checksum else { return Err(DropReason::BadOffload) };
        let field = usize::from(start) + usize::from(offset);
        // A tag more has to fit before it.
        let within = (ETHERNET_LEN..=MAX_START).contains(&start.into()) && field + 2 <= frame_len;
        // Fragments are cut in units of eight bytes.
        let unit = |kind| if kind == SegmentKind::UdpFragments { 8 } else { 1 };
        let cuttable = |Segmentation { kind, size, .. }| match size - size % unit(kind) {
            0 => false,
            size => frame_len.div_ceil(size.into()) <= MAX_SEGMENTS,
        };
        if !within || segmentation.is_some_and(|segmentation| !cuttable(segmentation)) {
            return Err(DropReason::BadOffload);
        }
        Ok(offload)
    }

    /// False if a frame with this header has no transport header there, or the checksum would be written over the ports in it: a guest would change what was decided upon.
    /// With options, or behind tags, it still might.
    #[inline]
    #[must_use]
    pub fn fits(&self, header: &[u8; ETHERNET_LEN]) -> bool {
        let Some(PartialChecksum { start, offset }) = self.checksum else { return true };
        let first = match u16::from_be_bytes([header[12], header[13]]) {
            ETHER_TYPE_ARP | ETHER_TYPE_RARP => return false,
            ETHER_TYPE_IPV6 => ETHERNET_LEN + IPV6_LEN,
            ether_type if TagKind::of(ether_type).is_some() => ETHERNET_LEN + TAG_LEN + IPV4_LEN,
            _ => ETHERNET_LEN + IPV4_LEN,
        };
        usize::from(start) >= first && offset >= PORTS_LEN
    }

    /// What a wire would carry for a frame of `len` bytes: each segment has headers of its own. TCP's are taken to have timestamps (32 bytes), and in
    /// segments smaller than 536 bytes as many options as can be (60): whoever lies about them gains little.
    #[inline(always)]
    #[must_use]
    pub fn wire_size(&self, len: usize) -> WireSize {
        match self.segmentation {
            None => WireSize { frames: 1, bytes: len },
            Some(segmentation) => self.size_of_segments(segmentation, len),
        }
    }

    #[inline(never)]
    fn size_of_segments(&self, Segmentation { kind, size, .. }: Segmentation, len: usize) -> WireSize {
        // Whoever asks for segments asks for checksums too.
        let start = self.checksum.map_or(0, |checksum| checksum.start);
        // Fragments have no transport header (RFC 791, section 3.2), but one of their own (RFC 8200, section 4.5), and come in units of eight bytes.
        let (transport_len, repeated_len, size) = match kind {
            SegmentKind::Tcp4 | SegmentKind::Tcp6 if size < LEAST_USUAL_MSS => (TCP_LEN, MAX_TCP_LEN, size),
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => (TCP_LEN, USUAL_TCP_LEN, size),
            SegmentKind::Udp => (UDP_LEN, UDP_LEN, size),
            SegmentKind::UdpFragments => (0, FRAGMENT_HEADER_LEN, size & !7),
        };
        let start = usize::from(start).min(MAX_HEADERS - MAX_TCP_LEN);
        let segments = len.saturating_sub(start + transport_len).div_ceil(usize::from(size).max(1)).max(1);
        WireSize { frames: segments, bytes: len + (segments - 1) * (start + repeated_len) }
    }

    /// The same for the frame with one tag more in front.
    #[inline]
    #[must_use]
    pub fn with_tag(mut self) -> Self {
        if let Some(checksum) = &mut self.checksum {
            checksum.start += TAG_LEN as u16;
        }
        self
    }

    /// The same for the frame without its outermost tag.
    ///
    /// # Errors
    /// [`DropReason::BadOffload`] when the transport header would begin within that tag.
    #[inline]
    pub fn without_tag(mut self) -> Result<Self, DropReason> {
        if let Some(checksum) = &mut self.checksum {
            if usize::from(checksum.start) < ETHERNET_LEN + TAG_LEN {
                return Err(DropReason::BadOffload);
            }
            checksum.start -= TAG_LEN as u16;
        }
        Ok(self)
    }

    /// The first ten bytes of a virtio-net header that says the same. `headers_len` is what a receiver may copy before it
    /// looks at the payload.
    #[must_use]
    pub fn header(&self, headers_len: u16) -> [u8; 10] {
        let mut header = [0; 10];
        if let Some(PartialChecksum { start, offset }) = self.checksum {
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        if let Some(Segmentation { kind, size, ecn }) = self.segmentation {
            let kind = match kind {
                SegmentKind::Tcp4 => GSO_TCPV4,
                SegmentKind::Tcp6 => GSO_TCPV6,
                SegmentKind::UdpFragments => GSO_UDP,
                SegmentKind::Udp => GSO_UDP_L4,
            };
            header[1] = kind | if ecn { GSO_ECN } else { 0 };
            header[2..4].copy_from_slice(&headers_len.to_le_bytes());
            header[4..6].copy_from_slice(&size.to_le_bytes());
        }
        header
    }
}

/// Completes a transport checksum in place: the sum from `start` to the frame's end replaces the field (section 5.1.6.2.1).
///
/// The field lies within the frame, which [`Offload::parse`] has made sure of; a frame of which that isn't true stays as it is.
pub fn complete_checksum(frame: &mut [u8], PartialChecksum { start, offset }: PartialChecksum) {
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    let whole = field + 2 <= frame.len();
    debug_assert!(whole, "a checksum at {field} in a frame of {} bytes", frame.len());
    if whole {
        let sum = transport_checksum(sum_of(&frame[start..]), offset == UDP_CHECKSUM);
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Where the headers of a frame are.
#[derive(Clone, Copy, Debug)]
struct Layout {
    network: usize,
    transport: usize,
    payload: usize,
    is_ipv6: bool,
}

impl Layout {
    /// Reads the headers of a frame that is to be cut. The transport header is where the checksum starts, and has to be
    /// where the IP header says, too.
    fn of(frame: &[u8], kind: SegmentKind, transport: usize) -> Option<Self> {
        let mut network = ETHERNET_LEN;
        let mut ether_type = read_u16(frame, 12)?;
        // Each segment gets a copy of them all, so there are no more than the switch carries.
        for _ in 0..MAX_TAGS {
            if matches!(ether_type, 0x8100 | 0x88a8) {
                ether_type = read_u16(frame, network + 2)?;
                network += TAG_LEN;
            }
        }
        let protocol;
        let is_ipv6 = match ether_type {
            ETHER_TYPE_IPV4 => {
                let first = *frame.get(network)?;
                let header_len = usize::from(first & 0xf) * 4;
                protocol = *frame.get(network + 9)?;
                // Fragments would become whole packets, or others.
                let is_fragment = is_fragment(read_u16(frame, network + 6)?);
                if first >> 4 != 4 || is_fragment || header_len < IPV4_LEN || network + header_len != transport {
                    return None;
                }
                false
            }
            ETHER_TYPE_IPV6 => {
                protocol = *frame.get(network + 6)?;
                // Extension headers are left to guests: none of them sends any in frames like these.
                if frame.get(network)? >> 4 != 6 || network + IPV6_LEN != transport {
                    return None;
                }
                true
            }
            _ => return None,
        };
        let (expected, header_len) = match kind {
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => (TCP, usize::from(frame.get(transport + 12)? >> 4) * 4),
            SegmentKind::UdpFragments | SegmentKind::Udp => (UDP, UDP_LEN),
        };
        let right_version = match kind {
            SegmentKind::Tcp4 => !is_ipv6,
            SegmentKind::Tcp6 => is_ipv6,
            SegmentKind::UdpFragments | SegmentKind::Udp => true,
        };
        let shortest = if expected == TCP { TCP_LEN } else { UDP_LEN };
        let payload = transport + header_len;
        let fits = protocol == expected && right_version && header_len >= shortest && payload <= frame.len();
        fits.then_some(Self { network, transport, payload, is_ipv6 })
    }
}

/// Cuts a frame into the segments that it stands for, each finished; `deliver` gets them in order, in one buffer that is
/// used again for each, and says whether it wants another. Returns how many it did not want.
///
/// # Errors
/// [`DropReason::BadOffload`] when the frame's headers are not what its offload says.
pub fn segment(
    frame: &[u8],
    checksum: PartialChecksum,
    segmentation: Segmentation,
    buffer: &mut Vec<u8>,
    mut deliver: impl FnMut(&[u8]) -> bool,
) -> Result<usize, DropReason> {
    let Segmentation { kind, size, .. } = segmentation;
    let layout = Layout::of(frame, kind, checksum.start.into()).ok_or(DropReason::BadOffload)?;
    if kind == SegmentKind::UdpFragments {
        return fragment(frame, layout, size, buffer, deliver);
    }
    let (headers, payload) = frame.split_at(layout.payload);
    let count = payload.len().div_ceil(size.into()).max(1);
    for index in 0..count {
        let from = index * usize::from(size);
        let to = payload.len().min(from + usize::from(size));
        buffer.clear();
        buffer.extend_from_slice(headers);
        buffer.extend_from_slice(&payload[from..to]);
        finish_network(buffer, layout, index as u16);
        if kind == SegmentKind::Udp {
            let len = (buffer.len() - layout.transport) as u16;
            write_u16(buffer, layout.transport + 4, len);
            finish_transport(buffer, layout, UDP, UDP_CHECKSUM);
        } else {
            finish_tcp(buffer, layout, from as u32, index == 0, index + 1 == count);
            finish_transport(buffer, layout, TCP, TCP_CHECKSUM);
        }
        if !deliver(buffer) {
            return Ok(count - index - 1);
        }
    }
    Ok(0)
}

/// Sequence number and flags of one segment: what only the first or the last may say is taken from the others.
fn finish_tcp(segment: &mut [u8], layout: Layout, from: u32, is_first: bool, is_last: bool) {
    let at = layout.transport + 4;
    let mut sequence = [0; 4];
    sequence.copy_from_slice(&segment[at..at + 4]);
    let sequence = u32::from_be_bytes(sequence).wrapping_add(from);
    segment[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
    let flags = &mut segment[layout.transport + 13];
    if !is_last {
        *flags &= !(FIN | PSH);
    }
    if !is_first {
        *flags &= !CWR;
    }
}

/// Lengths, identification and checksum of one segment's IP header.
fn finish_network(segment: &mut [u8], layout: Layout, index: u16) {
    let network = layout.network;
    if layout.is_ipv6 {
        let len = (segment.len() - network - IPV6_LEN) as u16;
        write_u16(segment, network + 4, len);
        return;
    }
    let id = read_u16(segment, network + 4).unwrap_or_default().wrapping_add(index);
    let len = (segment.len() - network) as u16;
    write_u16(segment, network + 2, len);
    write_u16(segment, network + 4, id);
    finish_ipv4_checksum(segment, layout);
}

fn finish_ipv4_checksum(segment: &mut [u8], layout: Layout) {
    write_u16(segment, layout.network + 10, 0);
    let sum = !fold(sum_of(&segment[layout.network..layout.transport]));
    write_u16(segment, layout.network + 10, sum);
}

/// The whole transport checksum, pseudo-header included (RFC 9293, section 3.1; RFC 768; RFC 8200, section 8.1).
fn finish_transport(segment: &mut [u8], layout: Layout, protocol: u8, offset: u16) {
    let addresses = if layout.is_ipv6 { 8..40 } else { 12..20 };
    let field = layout.transport + usize::from(offset);
    write_u16(segment, field, 0);
    let pseudo = sum_of(&segment[layout.network..][addresses]) + u64::from(protocol) + (segment.len() - layout.transport) as u64;
    let sum = transport_checksum(pseudo + sum_of(&segment[layout.transport..]), protocol == UDP);
    write_u16(segment, field, sum);
}

/// A checksum from its sum. UDP sends a computed zero as all ones, because zero says that there is none (RFC 768); TCP does not.
fn transport_checksum(sum: u64, is_udp: bool) -> u16 {
    match !fold(sum) {
        0 if is_udp => 0xffff,
        checksum => checksum,
    }
}

/// Fragments one UDP datagram (RFC 791, section 3.2; RFC 8200, section 4.5), its checksum completed before.
fn fragment(
    frame: &[u8],
    layout: Layout,
    size: u16,
    buffer: &mut Vec<u8>,
    mut deliver: impl FnMut(&[u8]) -> bool,
) -> Result<usize, DropReason> {
    let mut whole = frame.to_vec();
    let len = (frame.len() - layout.transport) as u16;
    write_u16(&mut whole, layout.transport + 4, len);
    finish_transport(&mut whole, layout, UDP, UDP_CHECKSUM);
    let (headers, payload) = whole.split_at(layout.transport);
    // Fragments are counted in units of eight bytes.
    let size = usize::from(size & !7);
    if size == 0 {
        return Err(DropReason::BadOffload);
    }
    let count = payload.len().div_ceil(size);
    for (index, part) in payload.chunks(size).enumerate() {
        let (offset, is_last) = ((index * size / 8) as u16, index + 1 == count);
        buffer.clear();
        buffer.extend_from_slice(headers);
        if layout.is_ipv6 {
            let next = std::mem::replace(&mut buffer[layout.network + 6], 44);
            let place = offset << 3 | u16::from(!is_last);
            // The identification only has to differ between datagrams of one pair of hosts: the checksum does, mostly.
            let id = u32::from(read_u16(&whole, layout.transport + 6).unwrap_or_default()) | (payload.len() as u32) << 16;
            let mut header = [0; FRAGMENT_HEADER_LEN];
            header[0] = next;
            header[2..4].copy_from_slice(&place.to_be_bytes());
            header[4..8].copy_from_slice(&id.to_be_bytes());
            buffer.extend_from_slice(&header);
        } else {
            write_u16(buffer, layout.network + 6, offset | if is_last { 0 } else { MORE_FRAGMENTS });
        }
        buffer.extend_from_slice(part);
        // Fragments share their identification.
        finish_network(buffer, layout, 0);
        if !deliver(buffer) {
            return Ok(count - index - 1);
        }
    }
    Ok(0)
}

/// The sum of 16-bit words in network order (RFC 1071), not folded yet. An odd byte counts as the high one of its word.
fn sum_of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    // Words of 32 bits give the same folded sum, in half the additions.
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
#[path = "offload_tests.rs"]
mod tests;
