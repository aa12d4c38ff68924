//! The mapping of one UDP endpoint inside: who may send to it from the outside, and how long it lives (RFC 4787).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::Timestamp;

/// The most outside addresses that one mapping remembers; whom it has not spoken to for the longest time is forgotten first.
pub const PEERS_MAX: usize = 256;

/// Who may send to a mapping from the outside (RFC 4787, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody.
    EndpointIndependent,
    /// Whoever has an address to which the guest has sent something from there.
    AddressDependent,
}

/// Times and rules of UDP mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpSettings {
    /// How long a mapping lives after the guest's last datagram. At least 2 min, 5 min recommended (RFC 4787, REQ-5).
    pub timeout: Duration,
    /// Who may send to it.
    pub filtering: Filtering,
}

impl Default for UdpSettings {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(300), filtering: Filtering::AddressDependent }
    }
}

/// A mapping.
#[derive(Debug)]
pub struct Mapping {
    settings: UdpSettings,
    /// When the guest last sent something.
    used: Timestamp,
    peers: HashMap<Ipv4Addr, Timestamp, ahash::RandomState>,
    /// Whom the guest sent to last: most have only one.
    last_peer: Ipv4Addr,
    /// Opened by a forwarding rule, so that everybody may send to it.
    open: bool,
    bytes: (u64, u64),
}

impl Mapping {
    /// The mapping of a guest that is about to send.
    #[must_use]
    pub fn new(now: Timestamp, settings: &UdpSettings) -> Self {
        let open = settings.filtering == Filtering::EndpointIndependent;
        let (peers, last_peer) = (HashMap::default(), Ipv4Addr::UNSPECIFIED);
        Self { settings: *settings, used: now, peers, last_peer, open, bytes: (0, 0) }
    }

    /// The guest sends `len` bytes. It keeps the mapping alive (RFC 4787, REQ-6).
    pub fn outbound(&mut self, now: Timestamp, to: Ipv4Addr, len: usize) {
        self.bytes.0 += len as u64;
        if (self.used, self.last_peer) == (now, to) {
            return;
        }
        (self.used, self.last_peer) = (now, to);
        if self.open {
            return;
        }
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&to) {
            let oldest = self.peers.iter().min_by_key(|(_, used)| **used).map(|(peer, _)| *peer);
            oldest.map(|peer| self.peers.remove(&peer));
        }
        self.peers.insert(to, now);
    }

    /// True if `len` bytes from there may go to the guest. They keep nothing alive: else anybody could (RFC 4787, REQ-6).
    pub fn inbound(&mut self, now: Timestamp, from: Ipv4Addr, len: usize) -> bool {
        let allowed = self.open
            || from == self.last_peer
            || self.peers.get(&from).is_some_and(|used| now.since(*used) < self.settings.timeout);
        if allowed {
            self.bytes.1 += len as u64;
        }
        allowed
    }

    /// True if an error about a datagram to `peer` concerns the guest: it changes nothing else (RFC 4787, REQ-12).
    #[must_use]
    pub fn concerns(&self, peer: SocketAddrV4) -> bool {
        self.open || *peer.ip() == self.last_peer || self.peers.contains_key(peer.ip())
    }

    /// When it ends, if the guest stays silent.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.used.after(self.settings.timeout)
    }

    /// Bytes of payload from and to the guest.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_000);
    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn mapping() -> Mapping {
        let mut mapping = Mapping::new(START, &UdpSettings::default());
        mapping.outbound(START, PEER, 10);
        mapping
    }

    #[test]
    fn only_the_guest_keeps_a_mapping_alive_rfc_4787_req_5_and_6() {
        let mut mapping = mapping();
        assert_eq!(mapping.deadline().since(START), Duration::from_secs(300));
        let later = START.after(Duration::from_secs(200));
        assert!(mapping.inbound(later, PEER, 10));
        assert!(mapping.concerns(SocketAddrV4::new(PEER, 1)));
        assert_eq!(mapping.deadline().since(START), Duration::from_secs(300));
        mapping.outbound(later, PEER, 10);
        assert_eq!(mapping.deadline().since(START), Duration::from_secs(500));
        assert_eq!(mapping.bytes(), (20, 10));
    }

    #[test]
    fn who_was_not_spoken_to_can_not_speak_whatever_port_it_uses_rfc_4787_req_8() {
        let mut mapping = mapping();
        assert!(mapping.inbound(START, PEER, 1));
        assert!(!mapping.inbound(START, OTHER, 1));
        mapping.outbound(START, OTHER, 1);
        assert!(mapping.inbound(START, OTHER, 1) && mapping.inbound(START, PEER, 1));
        // Each has its own time.
        let late = START.after(Duration::from_secs(299));
        mapping.outbound(late, OTHER, 1);
        let later = late.after(Duration::from_secs(2));
        assert!(mapping.inbound(later, OTHER, 1) && !mapping.inbound(later, PEER, 1));
    }

    #[test]
    fn filtering_can_be_left_away_rfc_4787_req_8() {
        let settings = UdpSettings { filtering: Filtering::EndpointIndependent, ..UdpSettings::default() };
        assert!(Mapping::new(START, &settings).inbound(START, OTHER, 1));
    }

    #[test]
    fn whom_a_guest_talks_to_is_remembered_in_bounds() {
        let mut mapping = mapping();
        for n in 0..10_000_u32 {
            mapping.outbound(START.after(Duration::from_millis(n.into())), Ipv4Addr::from(0x0a00_0000 + n), 1);
            assert!(mapping.peers.len() <= PEERS_MAX);
        }
        let now = START.after(Duration::from_secs(10));
        assert!(mapping.inbound(now, Ipv4Addr::from(0x0a00_0000 + 9_999), 1));
        assert!(mapping.inbound(now, Ipv4Addr::from(0x0a00_0000 + 9_800), 1));
        assert!(!mapping.inbound(now, Ipv4Addr::from(0x0a00_0000 + 9_000), 1));
    }
}
