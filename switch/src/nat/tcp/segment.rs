//! TCP headers (RFC 9293, section 3.1), as far as the NAT reads and writes them.

use std::net::SocketAddrV4;

use etherparse::{TcpHeaderSlice, TcpOptionElement};

use super::seq::Seq;
use crate::DropReason;
use crate::wire::{TCP, internet_checksum};

/// The largest shift of a window (RFC 7323, section 2.3).
const SHIFT_MAX: u8 = 14;
/// Bytes of a header without options.
const HEADER_LEN: usize = 20;
/// Bytes from a header's start to its checksum.
pub(crate) const CHECKSUM_AT: usize = 16;

/// The control bits of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub(super) u8);

impl Flags {
    /// No more data will come.
    pub const FIN: Self = Self(0x01);
    /// Numbers are to be synchronized.
    pub const SYN: Self = Self(0x02);
    /// The connection is gone.
    pub const RST: Self = Self(0x04);
    /// The receiver should not wait for more.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment number counts.
    pub const ACK: Self = Self(0x10);

    /// These and those.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if all of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A segment without its data: what came from a guest, or is to go there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The number of its first byte.
    pub seq: Seq,
    /// The number that its sender expects next.
    pub ack: Seq,
    /// Its control bits.
    pub flags: Flags,
    /// The window as the header has it, not shifted yet.
    pub window: u16,
    /// The largest segment that its sender takes, in bytes of data (only with SYN; RFC 9293, section 3.7.1).
    pub mss: Option<u16>,
    /// By how many bits its sender shifts windows (only with SYN; RFC 7323, section 2).
    pub window_shift: Option<u8>,
    /// Bytes of data.
    pub payload_len: u32,
}

impl Segment {
    /// Reads a header. `segment` begins with it; the whole segment has `len` bytes, of which those behind the header may be elsewhere.
    /// Says also how long the header is. The urgent pointer is not looked at: urgent data stay where they are in the stream.
    ///
    /// # Errors
    /// [`DropReason::BadTransport`] for a header that is cut short, or a combination of SYN, FIN and RST that nobody sends.
    pub fn parse(segment: &[u8], len: usize) -> Result<(Self, usize), DropReason> {
        let header = TcpHeaderSlice::from_slice(segment).map_err(|_| DropReason::BadTransport)?;
        let header_len = header.slice().len();
        let flags = Flags(segment[13]);
        let contradicts = flags.has(Flags::SYN) && (flags.has(Flags::FIN) || flags.has(Flags::RST));
        if header_len > len || contradicts {
            return Err(DropReason::BadTransport);
        }
        let mut parsed = Self {
            seq: Seq(header.sequence_number()),
            ack: Seq(header.acknowledgment_number()),
            flags,
            window: header.window_size(),
            mss: None,
            window_shift: None,
            // A packet has at most 65,535 bytes.
            payload_len: (len - header_len) as u32,
        };
        if flags.has(Flags::SYN) {
            // What stands behind an option that can't be read is not looked at.
            for option in header.options_iterator().map_while(Result::ok) {
                match option {
                    TcpOptionElement::MaximumSegmentSize(mss) => parsed.mss = Some(mss),
                    TcpOptionElement::WindowScale(shift) => parsed.window_shift = Some(shift.min(SHIFT_MAX)),
                    _ => {}
                }
            }
        }
        Ok((parsed, header_len))
    }

    /// Appends the header. The checksum field holds the sum of the pseudo-header only, for whoever completes it
    /// ([`crate::complete_checksum`], or a guest that agreed to); a segment without data is complete if `finished`.
    pub(crate) fn write(&self, source: SocketAddrV4, destination: SocketAddrV4, finished: bool, into: &mut Vec<u8>) {
        let start = into.len();
        into.extend_from_slice(&source.port().to_be_bytes());
        into.extend_from_slice(&destination.port().to_be_bytes());
        into.extend_from_slice(&self.seq.0.to_be_bytes());
        into.extend_from_slice(&self.ack.0.to_be_bytes());
        into.extend_from_slice(&[0, self.flags.0]);
        into.extend_from_slice(&self.window.to_be_bytes());
        into.extend_from_slice(&[0; 4]);
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            into.extend_from_slice(&[2, 4, high, low]);
        }
        if let Some(shift) = self.window_shift {
            // A "no operation" keeps the length a multiple of four.
            into.extend_from_slice(&[1, 3, 3, shift]);
        }
        let header_len = into.len() - start;
        into[start + 12] = (header_len as u8 / 4) << 4;
        let len = (header_len as u32 + self.payload_len) as u16;
        let pseudo = [0, TCP, (len >> 8) as u8, len as u8];
        let addresses = (source.ip().octets(), destination.ip().octets());
        let sum = if finished {
            internet_checksum(&[&addresses.0, &addresses.1, &pseudo, &into[start..]])
        } else {
            !internet_checksum(&[&addresses.0, &addresses.1, &pseudo])
        };
        into[start + CHECKSUM_AT..start + CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// Bytes of the header as [`Self::write`] writes it.
    pub(crate) fn header_len(&self) -> usize {
        HEADER_LEN + if self.mss.is_some() { 4 } else { 0 } + if self.window_shift.is_some() { 4 } else { 0 }
    }

    /// What it takes of the numbers: its data, SYN and FIN count.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.payload_len + u32::from(self.flags.has(Flags::SYN)) + u32::from(self.flags.has(Flags::FIN))
    }

    /// True if it takes none of the numbers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The answer to this segment where there is no connection (RFC 9293, section 3.10.7.1); none to a RST.
    #[must_use]
    pub fn reset(&self) -> Option<Self> {
        let reset = match self.flags {
            flags if flags.has(Flags::RST) => return None,
            flags if flags.has(Flags::ACK) => Self { seq: self.ack, flags: Flags::RST, ..Self::default() },
            _ => Self { ack: self.seq.plus(self.len()), flags: Flags::RST.and(Flags::ACK), ..Self::default() },
        };
        Some(reset)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const FROM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 80);
    const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 10), 40_000);

    fn syn() -> Segment {
        Segment {
            seq: Seq(0xdead_beef),
            ack: Seq(77),
            flags: Flags::SYN.and(Flags::ACK),
            window: 5000,
            mss: Some(1460),
            window_shift: Some(7),
            payload_len: 0,
        }
    }

    #[test]
    fn what_is_written_can_be_read_and_has_the_right_checksum() {
        let mut bytes = Vec::new();
        syn().write(FROM, TO, true, &mut bytes);
        assert_eq!(Segment::parse(&bytes, bytes.len()), Ok((syn(), 28)));
        assert_eq!(bytes.len(), syn().header_len());
        let header = TcpHeaderSlice::from_slice(&bytes).unwrap();
        assert_eq!((header.source_port(), header.destination_port()), (80, 40_000));
        let sum = header.calc_checksum_ipv4_raw(FROM.ip().octets(), TO.ip().octets(), &[]).unwrap();
        assert_eq!(sum, header.checksum());
    }

    #[test]
    fn a_checksum_that_was_only_begun_is_completed_over_the_data() {
        let payload = b"seventeen bytes..";
        let segment = Segment { payload_len: payload.len() as u32, flags: Flags::ACK, mss: None, window_shift: None, ..syn() };
        let mut frame = vec![0; 34];
        segment.write(FROM, TO, false, &mut frame);
        frame.extend_from_slice(payload);
        crate::complete_checksum(&mut frame, crate::PartialChecksum { start: 34, offset: CHECKSUM_AT as u16 });
        let header = TcpHeaderSlice::from_slice(&frame[34..]).unwrap();
        assert_eq!(header.calc_checksum_ipv4_raw(FROM.ip().octets(), TO.ip().octets(), payload).unwrap(), header.checksum());
    }

    #[test]
    fn a_header_may_be_all_that_is_at_hand_of_a_segment() {
        let mut bytes = Vec::new();
        Segment { flags: Flags::ACK, mss: None, window_shift: None, ..syn() }.write(FROM, TO, true, &mut bytes);
        let (segment, header_len) = Segment::parse(&bytes, 60_020).unwrap();
        assert_eq!((segment.payload_len, header_len), (60_000, 20));
        assert_eq!(Segment::parse(&bytes, 19), Err(DropReason::BadTransport));
    }

    #[test]
    fn a_reset_is_what_the_sender_will_believe_rfc_9293_3_10_7_1() {
        let with_ack = Segment { payload_len: 10, ..syn() }.reset().unwrap();
        assert_eq!((with_ack.seq, with_ack.flags), (Seq(77), Flags::RST));
        let without = Segment { flags: Flags::SYN, payload_len: 10, ..syn() }.reset().unwrap();
        assert_eq!((without.seq, without.ack), (Seq(0), Seq(0xdead_beef).plus(11)));
        assert_eq!(Segment { flags: Flags::RST, ..syn() }.reset(), None);
    }

    proptest! {
        #[test]
        fn whatever_a_guest_sends_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), len in 0..70_000_usize) {
            if let Ok((segment, header_len)) = Segment::parse(&bytes, len) {
                prop_assert!(header_len >= 20 && header_len <= bytes.len());
                prop_assert_eq!(segment.payload_len as usize, len - header_len);
                prop_assert!(segment.window_shift.is_none_or(|shift| shift <= 14));
            }
        }
    }
}
