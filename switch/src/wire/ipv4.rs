//! IPv4 packets (RFC 791), checked as RFC 1812, section 5.2.2, asks of a router.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use etherparse::Ipv4HeaderSlice;

use super::internet_checksum;
use crate::DropReason;

/// The shortest header, in bytes.
pub(crate) const HEADER_LEN_MIN: usize = 20;
const CHECKSUM_AT: usize = 10;
const TTL_AT: usize = 8;

/// What a valid IPv4 header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Header {
    /// Who sent it.
    pub source: Ipv4Addr,
    /// Whom it is for.
    pub destination: Ipv4Addr,
    /// What the payload is (IANA's protocol numbers).
    pub protocol: u8,
    /// How many routers it may still pass.
    pub ttl: u8,
    /// The type of service: DSCP and ECN (RFC 2474, RFC 3168).
    pub tos: u8,
    /// What fragments of one datagram share.
    pub identification: u16,
    /// It must not be fragmented.
    pub dont_fragment: bool,
    /// Fragments of the same datagram follow.
    pub more_fragments: bool,
    /// Where the payload belongs in its datagram, in bytes.
    pub fragment_offset: u16,
    /// Bytes of the header, options included: 20 to 60.
    pub header_len: u8,
    /// Bytes of the whole packet.
    pub total_len: u16,
}

/// An IPv4 packet without anything behind it, whose header is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv4Packet<'a> {
    header: Ipv4Header,
    bytes: Cow<'a, [u8]>,
}

/// True if a packet whose header has this word of flags and offset is only a part of a datagram (RFC 791, section 3.1).
#[inline]
#[must_use]
pub const fn is_fragment(word: u16) -> bool {
    word & 0x3fff != 0
}

impl<'a> Ipv4Packet<'a> {
    /// Reads a packet; what lies behind its end (Ethernet pads short frames) is left away.
    ///
    /// # Errors
    /// [`DropReason::BadIpv4`] for a wrong version, length, checksum or option, [`DropReason::SourceRouted`] for a packet that brings
    /// its own route.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DropReason> {
        Self::parse_beginning(bytes, bytes.len())
    }

    /// The same for a packet of which only the beginning is at hand, with all of its header: `available` is how many bytes there are in all.
    /// [`Self::bytes`] and [`Self::payload`] end where what is at hand does.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_beginning(bytes: &'a [u8], available: usize) -> Result<Self, DropReason> {
        let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| DropReason::BadIpv4)?;
        let len = usize::from(header.total_len());
        if len < header.slice().len() || len > available || internet_checksum(&[header.slice()]) != 0 {
            return Err(DropReason::BadIpv4);
        }
        check_options(header.options())?;
        let header = Ipv4Header {
            source: header.source_addr(),
            destination: header.destination_addr(),
            protocol: header.protocol().0,
            ttl: header.ttl(),
            tos: bytes[1],
            identification: header.identification(),
            dont_fragment: header.dont_fragment(),
            more_fragments: header.more_fragments(),
            fragment_offset: header.fragments_offset().value() * 8,
            header_len: header.slice().len() as u8,
            total_len: len as u16,
        };
        Ok(Self { header, bytes: Cow::Borrowed(&bytes[..len.min(bytes.len())]) })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Ipv4Header {
        &self.header
    }

    /// The whole packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What follows the header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[usize::from(self.header.header_len)..]
    }

    /// What follows the header, for as long as the frame lives.
    pub(crate) fn into_payload(self) -> Cow<'a, [u8]> {
        let at = usize::from(self.header.header_len);
        match self.bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[at..]),
            Cow::Owned(mut bytes) => Cow::Owned(bytes.split_off(at)),
        }
    }

    /// True if all of the packet is at hand.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bytes.len() == usize::from(self.header.total_len)
    }

    /// True if this is only a part of a datagram.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.header.more_fragments || self.header.fragment_offset != 0
    }

    /// A whole datagram: the header of its first fragment, without what made it one, and all payloads. The caller has seen to it
    /// that it isn't longer than 65,535 bytes.
    pub(crate) fn reassembled(first: &[u8], payload: &[u8]) -> Result<Ipv4Packet<'static>, DropReason> {
        let mut bytes = [first, payload].concat();
        let len = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes[6..8].fill(0);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
        let checksum = internet_checksum(&[&bytes[..first.len()]]);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&checksum.to_be_bytes());
        let header = Ipv4Packet::parse(&bytes)?.header;
        Ok(Ipv4Packet { header, bytes: Cow::Owned(bytes) })
    }

    /// The bytes of the header.
    pub(crate) fn header_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.header.header_len)]
    }

    /// The header as it looks one router further on, without its options, which stay as they are: the TTL one less, the checksum
    /// adjusted (RFC 1624, section 3). The gateway has checked that the TTL is more than one.
    #[must_use]
    pub fn forwarded_header(&self) -> [u8; HEADER_LEN_MIN] {
        let mut header = super::field::<HEADER_LEN_MIN>(&self.bytes, 0);
        header[TTL_AT] = header[TTL_AT].saturating_sub(1);
        let [high, low] = [header[CHECKSUM_AT], header[CHECKSUM_AT + 1]];
        // The word that holds the TTL got smaller by 0x100, so the checksum gets larger by as much, in ones' complement.
        let sum = u32::from(u16::from_be_bytes([high, low])) + 0x100;
        // All ones are zero, which is the form that a whole computation gives.
        let sum = if sum >= 0xffff { sum - 0xffff } else { sum };
        header[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        header
    }
}

/// Walks over the options (RFC 791, section 3.1). Only their form matters, but for source routes, which no host here has a use for
/// and which lead around filters (RFC 1812, section 5.3.13.4).
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    while let [kind, rest @ ..] = options {
        options = match (*kind, rest) {
            (END, _) => return Ok(()),
            (NO_OPERATION, rest) => rest,
            (LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, _) => return Err(DropReason::SourceRouted),
            // The length counts kind and length, too.
            (_, [len, ..]) if *len >= 2 => options.get(usize::from(*len)..).ok_or(DropReason::BadIpv4)?,
            _ => return Err(DropReason::BadIpv4),
        };
    }
    Ok(())
}
