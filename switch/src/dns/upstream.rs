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

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    failed: Option<Timestamp>,
}

impl Upstreams {
    /// Replaces the servers; what is known of those that stay is kept. True if anything has changed.
    pub(super) fn replace(&mut self, addresses: &[SocketAddr]) -> bool {
        let changed = !self.servers.iter().map(|server| &server.address).eq(addresses);
        let failed =
            |address: &SocketAddr| self.servers.iter().find(|server| server.address == *address).and_then(|server| server.failed);
        self.servers = addresses.iter().map(|address| Server { address: *address, failed: failed(address) }).collect();
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

    /// A server has answered, or has not.
    pub(super) fn note(&mut self, address: SocketAddr, failed: Option<Timestamp>) {
        if let Some(server) = self.servers.iter_mut().find(|server| server.address == address) {
            server.failed = failed;
        }
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
        upstreams.note(a, Some(now));
        assert_eq!([&[][..], &[b], &[b, c]].map(|tried| upstreams.pick(now, tried)), [b, c, a].map(Some));
        assert!(upstreams.replace(&[a, c]));
        assert_eq!(upstreams.pick(now, &[]), Some(c), "it is remembered");
        assert_eq!(upstreams.pick(now.after(SHUNNED_FOR), &[]), Some(a));
        assert!(upstreams.has_other(&[a]) && !upstreams.has_other(&[a, c]));
    }
}
