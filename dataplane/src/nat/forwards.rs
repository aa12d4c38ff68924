//! Ways in: addresses of the host by which the outside reaches a guest.
//!
//! The guest sees who is there: a client's own address and port are what its connection comes from, as far as they mean something to the
//! guest. A client on the loopback, or one with an address of the guest's own network, is seen under the gateway's address, so that the answer finds its way
//! back. Another guest that came out and in again (hairpinning, RFC 4787, REQ-9) is seen as the outside sees it.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::Duration;

use rustix::io::Errno;
use slab::Slab;
use weft_switch::Timestamp;

use super::datagrams::Datagrams;
use super::seam::ToGuests;
use super::socket::{self, Accepted, DatagramSocket, Listener};
use super::stream::Ends;
use super::streams::Streams;
use super::{Common, Kind};

/// The most connections that a listener gives in one round.
const ACCEPTED: usize = 64;
/// The most that wait for their guest to be found, and for how long.
const CALLING: usize = 256;
/// How many of them may have come by one rule, at most.
const CALLING_OF_RULE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(3);
/// How soon one is looked for again, and how soon a listener that could not accept is tried.
const CALLING_RETRY: Duration = Duration::from_millis(1);
const STARVED_RETRY: Duration = Duration::from_millis(50);
/// How many ports of the gateway are tried for a client that can't be seen under its own.
const PORTS: u32 = 16;

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// UDP; else TCP.
    pub udp: bool,
    /// The host's end; an unspecified address is all of the host's, port zero any that is free.
    pub bind: SocketAddrV4,
    /// The guest's end.
    pub target: SocketAddrV4,
}

/// Why a way in can't be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The network has no NAT.
    #[error("the network has no way outside, and so none inside")]
    NoNat,
    /// Another program or forward has it.
    #[error("{0} is taken: another program or another forward listens there")]
    Taken(SocketAddrV4),
    /// Two UDP forwards to one port.
    #[error("{0} is already forwarded to by UDP: a guest's port can have one forward")]
    TargetTaken(SocketAddrV4),
    /// A port for which weft lacks the privilege.
    #[error(
        "ports below 1024 need a privilege: let weft have CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start to {0}"
    )]
    Privileged(u16),
    /// An address of another host.
    #[error("{0} is not an address of this host")]
    NotLocal(SocketAddrV4),
    /// Something else.
    #[error("{bind} can't be listened on: {error}")]
    Other {
        /// Where it should listen.
        bind: SocketAddrV4,
        /// Why it can't, as the operating system calls it.
        error: Errno,
    },
}

/// Ports below this one are privileged, unless the system says otherwise.
const UNPRIVILEGED: u16 = 1024;

impl ForwardError {
    fn new(forward: &Forward, error: Errno) -> Self {
        let bind = forward.bind;
        match error {
            Errno::ADDRINUSE => Self::Taken(bind),
            Errno::EXIST => Self::TargetTaken(forward.target),
            // Other ports are refused by something else, a security module for one.
            Errno::ACCESS | Errno::PERM if bind.port() < UNPRIVILEGED => Self::Privileged(bind.port()),
            Errno::ADDRNOTAVAIL => Self::NotLocal(bind),
            error => Self::Other { bind, error },
        }
    }
}

impl Forward {
    /// Finds out whether the host's end can be had, and leaves it as it was.
    ///
    /// # Errors
    /// When it can't.
    pub fn probe(&self) -> Result<(), ForwardError> {
        let bound = if self.udp { DatagramSocket::bound_to(self.bind).map(drop) } else { Listener::bound(self.bind).map(drop) };
        bound.map_err(|error| ForwardError::new(self, error))
    }
}

#[derive(Debug)]
struct Listening {
    forward: Forward,
    /// `None` for UDP, which needs none.
    listener: Option<Listener>,
    /// When it is tried again, if the host had no descriptor for the next connection or too many clients wait.
    starved: Option<Timestamp>,
}

/// A client that waits for its guest to be found.
#[derive(Debug)]
struct Calling {
    client: Accepted,
    from: SocketAddrV4,
    target: SocketAddrV4,
    /// The rule by which it came.
    rule: u32,
    until: Timestamp,
}

/// All ways in of an engine.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    rules: Slab<Listening>,
    calling: VecDeque<Calling>,
}

impl Forwards {
    pub(super) fn add(
        &mut self,
        common: &mut Common,
        datagrams: &mut Datagrams,
        now: Timestamp,
        forward: Forward,
    ) -> Result<SocketAddrV4, ForwardError> {
        let failed = |error| ForwardError::new(&forward, error);
        if forward.udp {
            let address = datagrams.open_forward(common, now, forward.bind, forward.target).map_err(failed)?;
            self.rules.insert(Listening { forward, listener: None, starved: None });
            return Ok(address);
        }
        let listener = Listener::bound(forward.bind).map_err(failed)?;
        let address = listener.address().map_err(failed)?;
        let place = self.rules.vacant_entry();
        // No truncation: each has a descriptor.
        let token = common.token(Kind::Listener, place.key() as u32, 0);
        socket::register(&common.registry, listener.fd(), token, false).map_err(failed)?;
        place.insert(Listening { forward, listener: Some(listener), starved: None });
        Ok(address)
    }

    pub(super) fn remove(&mut self, common: &mut Common, datagrams: &mut Datagrams, now: Timestamp, forward: &Forward) -> bool {
        let Some(place) = self.rules.iter().find(|(_, rule)| rule.forward == *forward).map(|(place, _)| place) else {
            return false;
        };
        self.rules.remove(place);
        if forward.udp {
            datagrams.close_forward(common, now, forward.target);
        }
        true
    }

    /// A listener has clients.
    pub(super) fn accept(&mut self, common: &mut Common, now: Timestamp, id: u32) {
        // Those whose guest is not there take nothing from the others.
        let share = (CALLING / self.rules.len().max(1)).clamp(1, CALLING_OF_RULE);
        let Some(rule) = self.rules.get_mut(id as usize) else { return };
        let Some(listener) = &rule.listener else { return };
        rule.starved = None;
        for _ in 0..ACCEPTED {
            let of_rule = self.calling.iter().filter(|call| call.rule == id).count();
            if self.calling.len() >= CALLING || of_rule >= share {
                rule.starved = Some(now.after(STARVED_RETRY));
                return;
            }
            match listener.accept() {
                Ok((client, from)) => {
                    let (target, until) = (rule.forward.target, now.after(PATIENCE));
                    self.calling.push_back(Calling { client, from, target, rule: id, until });
                }
                // Whoever gave up meanwhile.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    rule.starved = Some(now.after(STARVED_RETRY));
                    return;
                }
            }
        }
        common.ready.push_back(super::Ready::Listener(id));
    }

    /// Asks the guests for the connections that clients want, as soon as it is known where they are.
    pub(super) fn call_guests(&mut self, common: &mut Common, streams: &mut Streams, now: Timestamp, guests: &mut impl ToGuests) {
        for _ in 0..self.calling.len() {
            let Some(call) = self.calling.pop_front() else { break };
            let Some(station) = guests.station(now, *call.target.ip()) else {
                if now < call.until {
                    self.calling.push_back(call);
                }
                // Else it is closed: nobody is there.
                continue;
            };
            // If there is no room for one more, the client finds itself disconnected.
            if let Some(ends) = ends_of(common, streams, &call) {
                let _ = streams.call(common, now, station, ends, call.client);
            }
        }
        for (id, rule) in self.rules.iter_mut().filter(|(_, rule)| rule.starved.is_some_and(|at| at <= now)) {
            rule.starved = None;
            common.ready.push_back(super::Ready::Listener(id as u32));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.calling.is_empty()
    }

    /// When somebody who waits has to be thought of.
    pub(super) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        let calling = (!self.calling.is_empty()).then(|| now.after(CALLING_RETRY));
        self.rules.iter().filter_map(|(_, rule)| rule.starved).chain(calling).min()
    }
}

/// The ends of a connection, as the guest is to see them.
fn ends_of(common: &Common, streams: &Streams, call: &Calling) -> Option<Ends> {
    let inside = call.target;
    let means_something = !call.from.ip().is_loopback() && !common.settings.subnet.contains(*call.from.ip());
    let own = Some(call.from).filter(|_| means_something);
    let gateway = (0..PORTS).map(|nth| {
        let port = if nth == 0 { call.from.port() } else { common.hasher.hash_one((call.from, nth)) as u16 | 1024 };
        SocketAddrV4::new(common.settings.gateway, port)
    });
    own.into_iter().chain(gateway).map(|remote| Ends { inside, remote }).find(|ends| !streams.knows(ends))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_without_a_name_of_ours_has_that_of_the_operating_system() {
        let message = |port, error| {
            let end = SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, port);
            ForwardError::new(&Forward { udp: false, bind: end, target: end }, error).to_string()
        };
        let refused = message(8080, Errno::AFNOSUPPORT);
        assert!(refused.contains("0.0.0.0:8080") && refused.contains("Address family not supported"), "{refused}");
        assert!(message(8080, Errno::ACCESS).contains("Permission denied"));
        assert!(message(80, Errno::ACCESS).contains("CAP_NET_BIND_SERVICE"));
    }
}
