//! The servers that are asked, and in which order.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Timestamp;

/// How long a server that did not answer comes after the others.
const SHUNNED_FOR: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Upstreams {
    servers: Vec<Server>,
}

#[derive(Clone, Copy, Debug)]
struct Server {
    address: SocketAddr,
    failed: Option<Timestamp>,
    answered: Option<Timestamp>,
}

impl Upstreams {
    /// Replaces the servers; what is known of those that stay is kept. True if anything has changed.
    pub(super) fn replace(&mut self, addresses: &[SocketAddr]) -> bool {
        let changed = !self.servers.iter().map(|server| &server.address).eq(addresses);
        let known = |address| self.servers.iter().find(|server| server.address == address).copied();
        let unknown = |address| Server { address, failed: None, answered: None };
        self.servers = addresses.iter().map(|address| known(*address).unwrap_or_else(|| unknown(*address))).collect();
        changed
    }

    /// The server to ask next for somebody who has asked those in `tried`: one that he hasn't asked yet, rather one that answers, rather an
    /// earlier one (the order is the administrator's). After the last it is the first one's turn again.
    pub(super) fn pick(&self, now: Timestamp, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let times = |server: &Server| tried.iter().filter(|address| **address == server.address).count();
        let shunned = |server: &Server| server.failed.is_some_and(|failed| now.since(failed) < SHUNNED_FOR);
        self.servers.iter().min_by_key(|server| (times(server), shunned(server))).map(|server| server.address)
    }

    /// True if there is a server that is not in `tried`.
    pub(super) fn has_other(&self, tried: &[SocketAddr]) -> bool {
        self.servers.iter().any(|server| !tried.contains(&server.address))
    }

    /// A server has answered.
    pub(super) fn answered(&mut self, now: Timestamp, address: SocketAddr) {
        if let Some(server) = self.find(address) {
            (server.answered, server.failed) = (Some(now), None);
        }
    }

    /// A server has not answered what it was asked at `since`. If it has answered something else meanwhile, that one name is slow, and not the server.
    pub(super) fn failed(&mut self, now: Timestamp, address: SocketAddr, since: Timestamp) {
        if let Some(server) = self.find(address).filter(|server| server.answered.is_none_or(|answered| answered < since)) {
            server.failed = Some(now);
        }
    }

    fn find(&mut self, address: SocketAddr) -> Option<&mut Server> {
        self.servers.iter_mut().find(|server| server.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_take_turns_and_one_that_is_silent_comes_last_for_a_while() {
        let [a, b, c] = [1, 2, 3].map(|last| SocketAddr::from(([192, 0, 2, last], 53)));
        let mut upstreams = Upstreams::default();
        let now = Timestamp::from_millis(5_000);
        assert_eq!(upstreams.pick(now, &[]), None);
        assert!(upstreams.replace(&[a, b, c]) && !upstreams.replace(&[a, b, c]));
        assert_eq!([&[][..], &[a], &[a, b], &[a, b, c]].map(|tried| upstreams.pick(now, tried)), [a, b, c, a].map(Some));
        upstreams.failed(now, a, now);
        assert_eq!([&[][..], &[b], &[b, c]].map(|tried| upstreams.pick(now, tried)), [b, c, a].map(Some));
        assert!(upstreams.replace(&[a, c]));
        assert_eq!(upstreams.pick(now, &[]), Some(c), "it is remembered");
        assert_eq!(upstreams.pick(now.after(SHUNNED_FOR), &[]), Some(a));
        upstreams.answered(now, c);
        upstreams.failed(now.after(Duration::from_secs(1)), c, now);
        assert_eq!(upstreams.pick(now, &[]), Some(c), "only one answer did not come");
        assert!(upstreams.has_other(&[a]) && !upstreams.has_other(&[a, c]));
    }
}
