//! The virtio-net header that stands before every frame (virtio 1.2, 5.1.6).

/// The header's fields. `num_buffers` is only there in the 12-byte form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// `NEEDS_CSUM` (1), `DATA_VALID` (2).
    pub flags: u8,
    /// Kind of segmentation, 0 for none.
    pub gso_type: u8,
    /// Length of the headers that every segment repeats.
    pub hdr_len: u16,
    /// Payload of each segment.
    pub gso_size: u16,
    /// Where checksumming starts.
    pub csum_start: u16,
    /// Where the checksum belongs, counted from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers that the frame fills.
    pub num_buffers: u16,
}

impl Header {
    /// `flags`: the checksum is not complete.
    pub const NEEDS_CSUM: u8 = 1;
    /// `gso_type`: TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// `gso_type`: UDP that IP is to fragment.
    pub const GSO_UDP: u8 = 3;
    /// `gso_type`: UDP datagrams of one size.
    pub const GSO_UDP_L4: u8 = 5;
    /// `gso_type`: TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;

    /// The first `len` bytes of the header, 10 or 12.
    #[must_use]
    pub fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![self.flags, self.gso_type];
        for field in [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Reads a header from its 10 or 12 bytes; `num_buffers` is 0 if it is not there.
    ///
    /// # Panics
    /// When there are fewer than 10 bytes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let field = |at: usize| bytes.get(at..at + 2).map_or(0, |pair| u16::from_le_bytes([pair[0], pair[1]]));
        assert!(bytes.len() >= 10, "a virtio-net header has 10 or 12 bytes, not {}", bytes.len());
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
            num_buffers: field(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_fields_are_the_same_header() {
        let header =
            Header { flags: 1, gso_type: 3, hdr_len: 54, gso_size: 1448, csum_start: 34, csum_offset: 16, num_buffers: 2 };
        assert_eq!(Header::parse(&header.bytes(12)), header);
        assert_eq!(Header::parse(&header.bytes(10)), Header { num_buffers: 0, ..header });
    }
}
