//! IPv6: what stands between its header and the rest of a packet (RFC 8200, section 4).

use std::net::Ipv6Addr;

use crate::MacAddr;

pub(crate) const ETHER_TYPE_IPV6: u16 = 0x86dd;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const FRAGMENT: u8 = 44;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;
/// Extension headers that are looked behind.
pub(crate) const MAX_EXTENSIONS: usize = 8;

/// True for the number of an extension header: another header follows.
#[inline(always)]
pub(crate) const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6)
}

/// Bytes of an extension header, in whose second byte `len` stands. Nothing if it is none.
#[inline]
pub(crate) fn extension_len(next: u8, len: u8) -> Option<usize> {
    match next {
        FRAGMENT => Some(8),
        // RFC 4302, section 2.2.
        AUTHENTICATION => Some((usize::from(len) + 2) * 4),
        next => is_extension(next).then_some((usize::from(len) + 1) * 8),
    }
}

/// The link-local address that follows from a MAC address (RFC 4291, section 2.5.6 and appendix A).
pub(crate) fn link_local(MacAddr([a, b, c, d, e, f]): MacAddr) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
