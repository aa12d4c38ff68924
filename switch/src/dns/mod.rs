//! The DNS forwarder of a network, as a pure state machine.
//!
//! # Theory
//!
//! [`DnsForwarder::query`] takes a query from a guest. The network's own names are answered at once, and so is what is in the cache;
//! the rest is asked of the host's own resolvers. What is to be sent comes out as [`Action`]s.
//!
//! Each question to an upstream is an *attempt* with a socket of its own ([`Action::Ask`]) from a port that the operating system
//! picks, and with a random id, so that an answer can't be guessed from outside (RFC 5452, section 9). What comes in on that socket goes to
//! [`DnsForwarder::upstream_answer`], errors of it to [`DnsForwarder::upstream_failed`]; after [`Action::Close`] it is not needed any
//! more. An attempt that fails or takes too long is followed by one with the next server, an answer that doesn't fit into a datagram by
//! one over TCP, and a server that doesn't know EDNS is asked without. All of that takes at most [`ANSWER_WITHIN`],
//! less than the five seconds for which clients wait.
//!
//! Guests that ask the same at the same time share one attempt. How many answers a port may wait for depends on how many others wait: as
//! many as there is still room for, so that one guest can't use up the table.
//!
//! Randomness comes in as an argument, like time: a source of random bits that can't be foretold.

mod cache;
mod local;
mod message;
mod resolv_conf;
mod tcp;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use hickory_proto::op::ResponseCode;

pub use local::LocalNames;
pub use resolv_conf::parse_resolv_conf;
pub use tcp::{TcpFrames, tcp_frame};

use self::cache::{Cache, Key};
use self::local::Zones;
use self::message::{Asked, FromUpstream, Response, Unread};
use self::upstream::Upstreams;
use crate::{DomainName, DropReason, PortId, Station, Subnet, Timestamp};

/// The most servers that are asked.
pub const UPSTREAMS_MAX: usize = 8;
/// The most queries that wait for an answer.
pub const WAITERS_MAX: usize = 1024;
/// Every query has an answer after this time, if only that there is none.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(4_500);
/// How long to wait for an answer to a datagram …
const UDP_TIMEOUT: Duration = Duration::from_secs(1);
/// … and for one over TCP.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);
/// The most attempts for one question.
const ATTEMPTS_MAX: usize = 6;

/// What a forwarder is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// The network's subnet: nobody else is answered.
    pub subnet: Subnet,
    /// The gateway's address, known as `gateway.` with the domain.
    pub gateway: Ipv4Addr,
    /// The domain of the network's hosts.
    pub domain: DomainName,
    /// The network's MTU, in bytes: answers over UDP fit into one packet.
    pub mtu: u16,
    /// The most answers that are kept.
    pub cache_entries: usize,
    /// The most memory for them, in bytes, about.
    pub cache_bytes: usize,
}

/// Who has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsClient {
    /// Port and MAC address.
    pub station: Station,
    /// IP address and port.
    pub address: SocketAddrV4,
    /// How the question came.
    pub transport: ClientTransport,
}

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientTransport {
    /// In a datagram.
    Udp,
    /// Over a connection that the caller knows by this number.
    Tcp(u64),
}

/// How to ask an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamTransport {
    /// In a datagram.
    Udp,
    /// Over a connection, with [`tcp_frame`] around it.
    Tcp,
}

/// Names one question to one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to the guest that has asked. Over TCP it needs [`tcp_frame`] around it.
    Answer {
        /// Who.
        to: DnsClient,
        /// The message.
        message: Vec<u8>,
    },
    /// Send this to an upstream, from a new socket that takes answers from nobody else.
    Ask {
        /// For [`DnsForwarder::upstream_answer`] and [`DnsForwarder::upstream_failed`].
        attempt: AttemptId,
        /// The upstream.
        server: SocketAddr,
        /// How.
        transport: UpstreamTransport,
        /// The message.
        message: Vec<u8>,
    },
    /// The socket of this attempt is not needed any more.
    Close {
        /// Which.
        attempt: AttemptId,
    },
}

/// What a forwarder did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsCounters {
    /// Queries that were taken.
    pub queries: u64,
    /// Answered from the network's own names.
    pub local: u64,
    /// Answered from the cache.
    pub cached: u64,
    /// Questions to upstreams.
    pub attempts: u64,
    /// Of these, over TCP because the answer did not fit.
    pub over_tcp: u64,
    /// Upstreams that did not answer in time, or could not be asked.
    pub upstream_failures: u64,
    /// What came to a socket and was no answer to its question.
    pub foreign_answers: u64,
    /// Queries that nobody could answer.
    pub unanswered: u64,
    /// Queries of ports that had their share.
    pub share_exceeded: u64,
}

/// The DNS forwarder of one network.
#[derive(Debug)]
pub struct DnsForwarder {
    settings: DnsSettings,
    zones: Zones,
    cache: Cache,
    upstreams: Upstreams,
    /// What is being asked, by question.
    pending: BTreeMap<Key, Pending>,
    attempts: BTreeMap<AttemptId, Key>,
    deadlines: BTreeSet<(Timestamp, AttemptId)>,
    waiting: BTreeMap<PortId, usize>,
    last_attempt: u64,
    counters: DnsCounters,
}

/// A question that is being asked.
#[derive(Debug)]
struct Pending {
    asked: Asked,
    waiters: Vec<Waiter>,
    answer_until: Timestamp,
    /// Whom it was asked, the last one included.
    tried: Vec<SocketAddr>,
    attempt: Attempt,
}

#[derive(Debug)]
struct Waiter {
    client: DnsClient,
    asked: Asked,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    id: AttemptId,
    way: Way,
    /// The id of the message.
    message_id: u16,
    since: Timestamp,
    until: Timestamp,
}

/// Whom to ask, and how.
#[derive(Clone, Copy, Debug)]
struct Way {
    server: SocketAddr,
    transport: UpstreamTransport,
    edns: bool,
}

/// What every step needs: the time, random bits, and a place for what is to be done.
struct Step<'a> {
    now: Timestamp,
    random: Random<'a>,
    actions: &'a mut Vec<Action>,
}

/// A source of random bits.
type Random<'a> = &'a mut dyn FnMut() -> u64;

impl DnsForwarder {
    /// A forwarder without upstreams.
    #[must_use]
    pub fn new(settings: DnsSettings) -> Self {
        Self {
            zones: Zones::new(settings.subnet, settings.gateway, &settings.domain),
            cache: Cache::new(settings.cache_entries, settings.cache_bytes),
            settings,
            upstreams: Upstreams::default(),
            pending: BTreeMap::new(),
            attempts: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            waiting: BTreeMap::new(),
            last_attempt: 0,
            counters: DnsCounters::default(),
        }
    }

    /// Changes the settings. What is being asked goes on; what is kept is forgotten.
    pub fn reconfigure(&mut self, settings: DnsSettings) {
        self.zones = Zones::new(settings.subnet, settings.gateway, &settings.domain);
        self.cache = Cache::new(settings.cache_entries, settings.cache_bytes);
        self.settings = settings;
    }

    /// The servers to ask, in the order in which the administrator wants them asked; more than [`UPSTREAMS_MAX`] are ignored. With other
    /// servers, other answers may be right, so what is kept is forgotten.
    pub fn set_upstreams(&mut self, servers: &[SocketAddr]) {
        if self.upstreams.replace(&servers[..servers.len().min(UPSTREAMS_MAX)]) {
            self.cache.clear();
        }
    }

    /// Takes a query. What is to be done is added to `actions`, also when the query is dropped.
    ///
    /// # Errors
    /// [`DropReason::SpoofedSource`] for a client that is not of the network: this is no open resolver. [`DropReason::BadDns`] for what
    /// can't be read or is no query, [`DropReason::ShareExceeded`] when too many of the port's queries wait already; these clients
    /// are told so if that is possible.
    pub fn query(
        &mut self,
        now: Timestamp,
        client: DnsClient,
        message: &[u8],
        names: &dyn LocalNames,
        random: Random<'_>,
        actions: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        if !self.settings.subnet.is_host(*client.address.ip()) {
            return Err(DropReason::SpoofedSource);
        }
        let asked = match Asked::parse(message) {
            Ok(asked) => asked,
            Err(Unread::Drop(reason)) => return Err(reason),
            Err(Unread::Answer(message)) => {
                actions.push(Action::Answer { to: client, message });
                return Err(DropReason::BadDns);
            }
        };
        self.counters.queries += 1;
        let waiter = Waiter { client, asked };
        let len_max = self.len_max(&waiter);
        if let Some(response) = self.zones.answer(&waiter.asked.question, names) {
            self.counters.local += 1;
            actions.push(waiter.answer(&response, 0, len_max));
            return Ok(());
        }
        let key = Key::new(&waiter.asked);
        if let Some((response, age)) = self.cache.find(now, &key) {
            self.counters.cached += 1;
            actions.push(waiter.answer(response, age, len_max));
            return Ok(());
        }
        if !waiter.asked.recursion_desired {
            actions.push(waiter.fail(ResponseCode::Refused));
            return Ok(());
        }
        self.wait(key, waiter, &mut Step { now, random, actions })
    }

    /// Something came on the socket of an attempt; over TCP, without its length.
    pub fn upstream_answer(
        &mut self,
        now: Timestamp,
        attempt: AttemptId,
        message: &[u8],
        random: Random<'_>,
        actions: &mut Vec<Action>,
    ) {
        let Some((key, pending)) = self.attempts.get(&attempt).and_then(|key| self.pending.get_key_value(key)) else { return };
        let Attempt { way, message_id, .. } = pending.attempt;
        let answer = FromUpstream::parse(message, message_id, &pending.asked.question, way.edns);
        let is_last = !self.upstreams.has_other(&pending.tried);
        if !matches!(answer, FromUpstream::Foreign) {
            self.upstreams.answered(now, way.server);
        }
        let (key, step) = (key.clone(), &mut Step { now, random, actions });
        match (answer, way.transport) {
            (FromUpstream::Foreign, UpstreamTransport::Udp) => self.counters.foreign_answers += 1,
            (FromUpstream::Foreign | FromUpstream::Truncated, UpstreamTransport::Tcp) => self.fail(&key, step),
            (FromUpstream::Truncated, UpstreamTransport::Udp) => {
                self.counters.over_tcp += 1;
                self.ask_again(&key, Way { transport: UpstreamTransport::Tcp, ..way }, step);
            }
            (FromUpstream::NoEdns, _) => self.ask_again(&key, Way { edns: false, ..way }, step),
            (FromUpstream::Response(response), _) if response.is_answer() || is_last => {
                self.finish(&key, step, |waiter, len_max| waiter.answer(&response, 0, len_max));
                self.cache.insert(now, key, response);
            }
            // Another one may know better.
            (FromUpstream::Response(_), _) => self.retry(&key, step),
            (FromUpstream::Opaque, _) => {
                self.finish(&key, step, |waiter, len_max| waiter.send(waiter.asked.relay(message, len_max)));
            }
        }
    }

    /// The socket of an attempt has failed: the upstream is unreachable, refuses, or has closed the connection.
    pub fn upstream_failed(&mut self, now: Timestamp, attempt: AttemptId, random: Random<'_>, actions: &mut Vec<Action>) {
        if let Some(key) = self.attempts.get(&attempt).cloned() {
            self.fail(&key, &mut Step { now, random, actions });
        }
    }

    /// A guest's connection is gone: nobody waits for answers on it any more.
    pub fn disconnect(&mut self, connection: u64, actions: &mut Vec<Action>) {
        self.forget_waiters(|client| client.transport == ClientTransport::Tcp(connection), actions);
    }

    /// A port is gone.
    pub fn forget_port(&mut self, port: PortId, actions: &mut Vec<Action>) {
        self.forget_waiters(|client| client.station.port == port, actions);
    }

    /// When [`Self::tick`] wants to be called, if anything is there to wait for.
    #[must_use]
    pub fn next_tick(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(until, _)| *until)
    }

    /// Goes on with what was not answered in time.
    pub fn tick(&mut self, now: Timestamp, random: Random<'_>, actions: &mut Vec<Action>) {
        let step = &mut Step { now, random, actions };
        while let Some((_, attempt)) = self.deadlines.first().filter(|(until, _)| *until <= now).copied() {
            match self.attempts.get(&attempt).cloned() {
                Some(key) => self.fail(&key, step),
                None => drop(self.deadlines.pop_first()),
            }
        }
    }

    /// How many answers are kept.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.cache.len()
    }

    /// What the forwarder did since it was made.
    #[must_use]
    pub fn counters(&self) -> DnsCounters {
        self.counters
    }

    /// Lets a query wait for an upstream's answer.
    fn wait(&mut self, key: Key, waiter: Waiter, step: &mut Step<'_>) -> Result<(), DropReason> {
        let port = waiter.client.station.port;
        let (all, of_port) = (self.waiting.values().sum::<usize>(), self.waiting.get(&port).copied().unwrap_or(0));
        let room = WAITERS_MAX.saturating_sub(all);
        if room == 0 || of_port > 0 && of_port >= room {
            self.counters.share_exceeded += 1;
            step.actions.push(waiter.fail(ResponseCode::ServFail));
            return Err(DropReason::ShareExceeded);
        }
        if let Some(pending) = self.pending.get_mut(&key) {
            // A client that repeats its question still gets one answer.
            if !pending.waiters.iter().any(|other| other.client == waiter.client && other.asked.id == waiter.asked.id) {
                pending.waiters.push(waiter);
                *self.waiting.entry(port).or_default() += 1;
            }
            return Ok(());
        }
        let Some(server) = self.upstreams.pick(step.now, &[]) else {
            self.counters.unanswered += 1;
            step.actions.push(waiter.fail(ResponseCode::ServFail));
            return Ok(());
        };
        *self.waiting.entry(port).or_default() += 1;
        let answer_until = step.now.after(ANSWER_WITHIN);
        let asked = waiter.asked.clone();
        let attempt = self.ask(&key, &asked, Way::first(server), answer_until, step);
        self.pending.insert(key, Pending { asked, waiters: vec![waiter], answer_until, tried: vec![server], attempt });
        Ok(())
    }

    /// Sends a question to a server.
    fn ask(&mut self, key: &Key, asked: &Asked, way: Way, answer_until: Timestamp, step: &mut Step<'_>) -> Attempt {
        self.last_attempt += 1;
        self.counters.attempts += 1;
        let timeout = match way.transport {
            UpstreamTransport::Udp => UDP_TIMEOUT,
            UpstreamTransport::Tcp => TCP_TIMEOUT,
        };
        let id = AttemptId(self.last_attempt);
        let until = step.now.after(timeout).min(answer_until);
        let message_id = (step.random)() as u16;
        self.attempts.insert(id, key.clone());
        self.deadlines.insert((until, id));
        let Way { server, transport, edns } = way;
        step.actions.push(Action::Ask { attempt: id, server, transport, message: asked.upstream_query(message_id, edns) });
        Attempt { id, way, message_id, since: step.now, until }
    }

    /// The server did not answer: it comes after the others for a while, and another one is asked.
    fn fail(&mut self, key: &Key, step: &mut Step<'_>) {
        if let Some(pending) = self.pending.get(key) {
            self.counters.upstream_failures += 1;
            self.upstreams.failed(step.now, pending.attempt.way.server, pending.attempt.since);
            self.retry(key, step);
        }
    }

    /// Ends the attempt that is under way and asks another server, if there is time.
    fn retry(&mut self, key: &Key, step: &mut Step<'_>) {
        let Some(pending) = self.pending.get(key) else { return };
        let over = step.now >= pending.answer_until || pending.tried.len() >= ATTEMPTS_MAX;
        match self.upstreams.pick(step.now, &pending.tried).filter(|_| !over) {
            Some(server) => self.go_on(key, Way::first(server), step),
            None => {
                self.counters.unanswered += 1;
                let response = Response::new(ResponseCode::ServFail);
                self.finish(key, step, |waiter, len_max| waiter.answer(&response, 0, len_max));
                self.cache.insert(step.now, key.clone(), response);
            }
        }
    }

    /// Asks the same server in another way.
    fn ask_again(&mut self, key: &Key, way: Way, step: &mut Step<'_>) {
        let is_over = self.pending.get(key).is_none_or(|pending| pending.tried.len() >= ATTEMPTS_MAX);
        if is_over { self.retry(key, step) } else { self.go_on(key, way, step) }
    }

    /// The next attempt takes the place of the one that is under way.
    fn go_on(&mut self, key: &Key, way: Way, step: &mut Step<'_>) {
        let Some(mut pending) = self.pending.remove(key) else { return };
        self.close(pending.attempt, step.actions);
        pending.tried.push(way.server);
        pending.attempt = self.ask(key, &pending.asked, way, pending.answer_until, step);
        self.pending.insert(key.clone(), pending);
    }

    /// Answers everybody who waits for this question.
    fn finish(&mut self, key: &Key, step: &mut Step<'_>, answer: impl Fn(&Waiter, usize) -> Action) {
        let Some(pending) = self.pending.remove(key) else { return };
        self.close(pending.attempt, step.actions);
        for waiter in &pending.waiters {
            self.release(waiter.client.station.port);
            step.actions.push(answer(waiter, self.len_max(waiter)));
        }
    }

    fn close(&mut self, Attempt { id, until, .. }: Attempt, actions: &mut Vec<Action>) {
        self.attempts.remove(&id);
        self.deadlines.remove(&(until, id));
        actions.push(Action::Close { attempt: id });
    }

    /// A query of this port waits no longer.
    fn release(&mut self, port: PortId) {
        if let Some(waiting) = self.waiting.get_mut(&port) {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(&port);
            }
        }
    }

    /// What nobody else waits for isn't asked any longer: who comes and goes keeps no more sockets open than it may have queries.
    fn forget_waiters(&mut self, gone: impl Fn(&DnsClient) -> bool, actions: &mut Vec<Action>) {
        let (mut ports, mut unwanted) = (Vec::new(), Vec::new());
        self.pending.retain(|_, pending| {
            let left = pending.waiters.extract_if(.., |waiter| gone(&waiter.client));
            ports.extend(left.map(|waiter| waiter.client.station.port));
            if pending.waiters.is_empty() {
                unwanted.push(pending.attempt);
            }
            !pending.waiters.is_empty()
        });
        ports.into_iter().for_each(|port| self.release(port));
        unwanted.into_iter().for_each(|attempt| self.close(attempt, actions));
    }

    /// The longest answer that a client can take, in bytes.
    fn len_max(&self, waiter: &Waiter) -> usize {
        match waiter.client.transport {
            ClientTransport::Udp => waiter.asked.udp_len_max(self.settings.mtu),
            ClientTransport::Tcp(_) => usize::from(u16::MAX),
        }
    }
}

impl Way {
    /// How a server is asked first.
    fn first(server: SocketAddr) -> Self {
        Self { server, transport: UpstreamTransport::Udp, edns: true }
    }
}

impl Waiter {
    fn answer(&self, response: &Response, age: u32, len_max: usize) -> Action {
        self.send(self.asked.encode(response, age, len_max))
    }

    fn fail(&self, code: ResponseCode) -> Action {
        self.send(self.asked.fail(code))
    }

    fn send(&self, message: Vec<u8>) -> Action {
        Action::Answer { to: self.client, message }
    }
}

#[cfg(test)]
mod tests;
