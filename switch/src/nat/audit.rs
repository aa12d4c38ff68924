//! Who had which mapping, for whoever has to know later.

use std::net::SocketAddrV4;
use std::time::Duration;

use super::tcp::CloseReason;
use crate::{PortId, PortRate, Timestamp};

/// The most events that wait to be fetched.
const WAITING_MAX: usize = 16_384;
/// Events of one port in a row, and how far apart they are over a while: a thousand a second.
const BURST: u32 = 1024;
const INTERVAL: Duration = Duration::from_millis(1);

/// What a mapping carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo; ports are identifiers.
    Icmp,
}

/// A mapping that was opened or closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// When.
    pub at: Timestamp,
    /// Whose it is.
    pub port: PortId,
    /// What it carries.
    pub protocol: Protocol,
    /// The guest's end.
    pub inside: SocketAddrV4,
    /// The host's end, once it is known: its address may be unspecified, its port says by what the mapping is known outside.
    pub outside: Option<SocketAddrV4>,
    /// The far end. UDP and echo: the first.
    pub remote: SocketAddrV4,
    /// The far end asked for it, by a forwarding rule.
    pub forwarded: bool,
    /// For a mapping that was closed.
    pub closed: Option<Closed>,
}

/// What became of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Why it was closed.
    pub reason: CloseReason,
    /// Bytes of payload from the guest.
    pub from_guest: u64,
    /// Bytes of payload to it.
    pub to_guest: u64,
    /// How long it was open.
    pub lasted: Duration,
}

/// Events that wait to be fetched. Bounded in number, and for each port in rate; what does not get in is counted.
#[derive(Debug)]
pub struct AuditLog {
    waiting: Vec<Audit>,
    rate: PortRate,
    lost: u64,
}

impl Default for AuditLog {
    fn default() -> Self {
        Self { waiting: Vec::new(), rate: PortRate::new(INTERVAL, BURST), lost: 0 }
    }
}

impl AuditLog {
    /// Adds an event.
    pub fn add(&mut self, event: Audit) {
        if self.waiting.len() < WAITING_MAX && self.rate.allow(event.at, event.port) {
            self.waiting.push(event);
        } else {
            self.lost += 1;
        }
    }

    /// Forgets a port that is gone; what is there to be reported about it stays.
    pub fn forget_port(&mut self, port: PortId) {
        self.rate.forget_port(port);
    }

    /// Takes all events, and the number of those that were lost since this was last asked.
    pub fn take(&mut self) -> (Vec<Audit>, u64) {
        (std::mem::take(&mut self.waiting), std::mem::take(&mut self.lost))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_flood_of_events_is_counted_and_not_kept_and_leaves_the_other_ports_theirs() {
        let endpoint = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        let event = |port, at| Audit {
            at: Timestamp::from_millis(at),
            port: PortId(port),
            protocol: Protocol::Tcp,
            inside: endpoint,
            outside: None,
            remote: endpoint,
            forwarded: false,
            closed: None,
        };
        let mut log = AuditLog::default();
        (0..10_000).for_each(|_| log.add(event(1, 1)));
        log.add(event(2, 1));
        let (events, lost) = log.take();
        assert_eq!((events.len(), lost, events[1024].port), (1025, 8976, PortId(2)));
        (0..100).for_each(|_| log.add(event(1, 11)));
        let (events, lost) = log.take();
        assert_eq!((events.len(), lost), (10, 90));
    }
}
