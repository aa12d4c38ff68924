//! A glance at every frame of a network that has a gateway: is it for the gateway?

use std::net::Ipv4Addr;

use crate::MacAddr;
use crate::ethernet::{MAX_TAGS, TAG_LEN};
use crate::vlan::{behind_priority_tags, is_priority_tag};
use crate::wire::{ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHERNET_LEN, UDP};

/// How much of a frame [`Screen::interest`] wants to see, in bytes: the headers up to UDP's, without IP options, behind two tags.
pub const SCREENED_LEN: usize = ETHERNET_LEN + MAX_TAGS * TAG_LEN + 20 + 8;

/// Who is to see a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// It does not concern the gateway: it is forwarded as on any network.
    Foreign,
    /// [`Gateway::handle`](super::Gateway::handle) sees it first; unless it says to drop the frame, it is forwarded as well.
    Shared,
    /// It is for [`Gateway::handle`](super::Gateway::handle) alone.
    Own,
}

/// What must be known to tell which frames concern a gateway. A copy of it can be wherever frames pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// The gateway's MAC address.
    pub mac: MacAddr,
    /// The gateway's IP address.
    pub address: Ipv4Addr,
    /// The gateway serves DHCP. Then guests don't see each other's requests, so none of them can answer in its place.
    pub dhcp: bool,
}

impl Screen {
    /// Who is to see a frame that begins with `bytes` ([`SCREENED_LEN`] of them, or the whole frame if it is shorter).
    ///
    /// Whoever uses the gateway's MAC or IP address as a source is of interest too, whomever the frame is for: `handle` will drop it. Tags that name no VLAN hide nothing, since
    /// hosts take them off; `handle` has to be given the frame without them.
    #[inline]
    #[must_use]
    pub fn interest(&self, bytes: &[u8]) -> Interest {
        let Some((link, rest)) = bytes.split_first_chunk::<ETHERNET_LEN>() else { return Interest::Foreign };
        if link[..6] == self.mac.0 || link[6..12] == self.mac.0 {
            return Interest::Own;
        }
        let (ether_type, rest) = behind_priority_tags(u16::from_be_bytes([link[12], link[13]]), rest);
        match ether_type {
            // More of them than anybody needs: who knows what is behind them.
            _ if is_priority_tag(ether_type, rest) => Interest::Shared,
            ETHER_TYPE_ARP => Interest::Shared,
            ETHER_TYPE_IPV4 if rest.get(12..16) == Some(&self.address.octets()) => Interest::Own,
            ETHER_TYPE_IPV4 if self.dhcp && link[..6] == MacAddr::BROADCAST.0 && is_for_dhcp_server(rest) => Interest::Own,
            _ => Interest::Foreign,
        }
    }
}

/// True for UDP to port 67, as far as a glance can tell.
fn is_for_dhcp_server(packet: &[u8]) -> bool {
    let header_len = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    packet.get(9) == Some(&UDP) && packet.get(header_len + 2..header_len + 4) == Some(&[0, 67])
}
