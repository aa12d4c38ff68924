//! Received frames whose checksum somebody else has vouched for.
//!
//! `DATA_VALID` in the header of a received frame says: do not verify the checksum, and perhaps it isn't even there (virtio
//! 1.2, 5.1.6.4.1). A TAP does not know that flag and would have the stack verify. It does know `NEEDS_CSUM`, a checksum that is only
//! begun, and doesn't verify such a frame either. So one is made of the other: the checksum field gets the sum of the pseudo-header, and
//! the header says where it is.

/// Bytes of a frame that are enough to find the checksum: Ethernet, two tags, the longest IPv4 header, TCP.
pub(crate) const HEADERS_LEN: usize = 14 + 8 + 60 + 20;

pub(crate) const NEEDS_CSUM: u8 = 1;
pub(crate) const DATA_VALID: u8 = 2;

const ETHERNET_LEN: usize = 14;
const TAG_LEN: usize = 4;
const IPV6_LEN: usize = 40;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_TAGS: [u16; 2] = [0x8100, 0x88a8];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Everything of IPv4's fragment field but "don't fragment".
const FRAGMENT: u16 = 0xbfff;

/// A checksum that is only begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    /// Bytes from the frame's start to the transport header.
    pub(crate) start: u16,
    /// Bytes from there to the checksum.
    pub(crate) offset: u16,
    /// What belongs into the field.
    pub(crate) pseudo_sum: u16,
}

impl Begun {
    /// Reads the headers at the start of a frame. `None` if it is no whole TCP or UDP packet right behind IP.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let mut at = ETHERNET_LEN;
        let mut ethertype = u16_at(frame, at - 2)?;
        while ETHERTYPE_TAGS.contains(&ethertype) {
            at += TAG_LEN;
            ethertype = u16_at(frame, at - 2)?;
        }
        let (protocol, header_len, packet_len, addresses) = match ethertype {
            ETHERTYPE_IPV4 => {
                let header_len = usize::from(frame.get(at)? & 0x0f) * 4;
                if u16_at(frame, at + 6)? & FRAGMENT != 0 {
                    return None;
                }
                (*frame.get(at + 9)?, header_len, usize::from(u16_at(frame, at + 2)?), frame.get(at + 12..at + 20)?)
            }
            ETHERTYPE_IPV6 => {
                let packet_len = IPV6_LEN + usize::from(u16_at(frame, at + 4)?);
                (*frame.get(at + 6)?, IPV6_LEN, packet_len, frame.get(at + 8..at + 40)?)
            }
            _ => return None,
        };
        let offset = match protocol {
            TCP => 16,
            UDP => 6,
            _ => return None,
        };
        let start = at + header_len;
        let transport_len = u16::try_from(packet_len.checked_sub(header_len)?).ok()?;
        // The field must be there.
        frame.get(start + offset..start + offset + 2)?;
        let words = addresses.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        let sum: u32 = words.chain([u16::from(protocol), transport_len]).map(u32::from).sum();
        Some(Self { start: u16::try_from(start).ok()?, offset: offset as u16, pseudo_sum: fold(sum) })
    }
}

/// The sum of at most 2^16 words as one word, with the carries added (RFC 1071).
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, fragment: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.resize(ETHERNET_LEN + 40, 0);
        frame
    }

    #[test]
    fn a_tcp_checksum_is_found_behind_ipv4_and_tags() {
        let plain = ipv4(TCP, 0x4000);
        let expected = Begun { start: 34, offset: 16, pseudo_sum: 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 6 + 20 };
        assert_eq!(Begun::of(&plain), Some(expected));
        let tagged = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
        assert_eq!(Begun::of(&tagged), Some(Begun { start: 38, ..expected }));
    }

    #[test]
    fn a_udp_checksum_is_found_behind_ipv6() {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, UDP, 64]);
        frame.extend([0xff; 32]);
        frame.extend([0; 8]);
        // Sixteen words of ones are sixteen times minus nothing: only protocol and length remain.
        assert_eq!(Begun::of(&frame), Some(Begun { start: 54, offset: 6, pseudo_sum: 17 + 8 }));
    }

    #[test]
    fn what_is_no_whole_packet_has_no_checksum_to_find() {
        for fragment in [0x2000, 0x0001] {
            assert_eq!(Begun::of(&ipv4(TCP, fragment)), None);
        }
        assert_eq!(Begun::of(&ipv4(1, 0)), None);
        let whole = ipv4(TCP, 0);
        for len in 0..ETHERNET_LEN + 20 + 18 {
            assert_eq!(Begun::of(&whole[..len]), None, "{len} bytes");
        }
    }
}
