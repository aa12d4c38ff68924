//! NAT from guests to the host's own sockets: where the state machines of [`weft_switch::nat`] meet the kernel.
//!
//! # Theory
//!
//! An [`Engine`] belongs to one network and to the worker that is the network's home. It is called with the batch:
//!
//! 1. [`Engine::receive`] for each packet that the gateway found to be for the outside. A datagram leaves at once, straight from the
//!    guest's buffers; those that follow it, and data of connections, are only noted.
//! 2. [`Engine::flush`], while the batch still has its buffers: one `sendmsg` for all datagrams in a row to the same place, or all segments
//!    of a connection, and then one acknowledgment for them.
//! 3. [`Engine::ready`] for each event of the worker's poll, and [`Engine::poll`] in each round:
//!    what sockets have goes straight into the guests' buffers, timers run out, guests without room are tried again.
//!
//! Nothing here blocks, and nothing is kept of what is on its way: data wait in the guest's memory or in the kernel's buffers. A guest that
//! does not take what comes for it makes the far end wait; others get on, because a round serves each connection with a bounded number of frames.
//!
//! The guests' rings are behind [`ToGuests`]; so the whole engine can be tested with memory of the tests' own.

#[allow(unsafe_code)]
mod calls;
mod datagrams;
mod forwards;
mod rings;
mod runs;
mod seam;
mod socket;
mod stream;
mod streams;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mio::event::Event;
use mio::{Registry, Token};
use rustix::io::Errno;
use weft_switch::gateway::{GatewaySettings, Packet};
use weft_switch::nat::error::{IcmpError, Subject};
use weft_switch::nat::frame::{self, Link};
use weft_switch::nat::tcp::{CloseReason, TcpSettings};
use weft_switch::nat::udp::UdpSettings;
use weft_switch::nat::{Audit, AuditLog, FlowId, FlowTable, Protocol};
use weft_switch::{DropReason, MacAddr, Offload, PortId, PortRate, Station, Subnet, Timestamp};

use self::calls::Calls;
use self::datagrams::Datagrams;
pub use self::forwards::{Forward, ForwardError};
pub(crate) use self::rings::GuestRings;
pub(crate) use self::seam::{Disposition, GuestPacket, ToGuests};
use self::socket::Shares;
use self::stream::Ends;
use self::streams::Streams;
use crate::memory::Segment;

/// Tokens of an engine's sockets have this bit; below are the engine's number, the kind of socket, its generation and its number.
const TOKEN: usize = 1 << 62;
const ENGINE_SHIFT: u32 = 48;
const KIND_SHIFT: u32 = 44;
const GENERATION_SHIFT: u32 = 32;
const GENERATIONS: u16 = FlowTable::<(), ()>::GENERATIONS;
const ENGINES: usize = 1 << (62 - ENGINE_SHIFT);
/// Protocols, as IANA numbers them.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// ICMP errors and resets for one port: in a row, and how far apart they are over a while (RFC 1812, section 4.3.2.8).
const ERRORS: u32 = 50;
const ERROR_INTERVAL: Duration = Duration::from_millis(20);
/// How soon a guest without room is looked at again, and one that is not there.
const ROOM_RETRY: Duration = Duration::from_millis(1);
/// The same if it tells when it has room: in case it doesn't.
const ROOM_RETRY_LATE: Duration = Duration::from_millis(20);
/// For how long it is looked at in each round before that.
const ROOM_SOON: Duration = Duration::from_millis(2);
const ABSENT_RETRY: Duration = Duration::from_millis(250);
/// After so many bytes for guests a round ends: guests that talk to each other don't wait until all that came from outside was copied. One connection or mapping more
/// may begin before that shows, and brings as much as it may in a round: 2 MiB and 4 MiB.
const ROUND_BYTES: usize = 4 << 20;
/// The most timers that run out in a round.
const TIMERS: usize = 1024;

/// What the NAT of a network is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatSettings {
    /// The most connections, of all guests. One guest may have half of what is free.
    pub connections: u32,
    /// The most mappings of UDP and ICMP echo, in the same way. Each of both takes a file descriptor.
    pub mappings: u32,
    /// After how long an idle connection's guest is asked whether it is still there: at least 2 h 4 min (RFC 5382, REQ-5).
    pub tcp_established: Duration,
    /// After how long a connection that is being opened or closed is given up: at least 4 min (RFC 5382, REQ-5).
    pub tcp_transitory: Duration,
    /// Times and rules of UDP.
    pub udp: UdpSettings,
    /// How long an echo identifier is kept: at least a minute (RFC 5508, REQ-2).
    pub echo_timeout: Duration,
}

impl Default for NatSettings {
    fn default() -> Self {
        let TcpSettings { established, transitory, .. } = TcpSettings::new(1500);
        Self {
            connections: 32_768,
            mappings: 8_192,
            tcp_established: established,
            tcp_transitory: transitory,
            udp: UdpSettings::default(),
            echo_timeout: weft_switch::nat::echo::TIMEOUT,
        }
    }
}

impl EngineSettings {
    pub(crate) fn new(gateway: &GatewaySettings, nat: &NatSettings) -> Self {
        let (established, transitory) = (nat.tcp_established, nat.tcp_transitory);
        Self {
            subnet: gateway.subnet,
            gateway: gateway.address,
            gateway_mac: gateway.mac,
            host_access: gateway.host_access,
            mtu: gateway.mtu,
            tcp: TcpSettings { established, transitory, ..TcpSettings::new(gateway.mtu) },
            udp: nat.udp,
            echo_timeout: nat.echo_timeout,
            connections: nat.connections,
            mappings: nat.mappings,
            round_bytes: ROUND_BYTES,
        }
    }
}

/// What an engine is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineSettings {
    /// The network's addresses.
    pub(crate) subnet: Subnet,
    /// The gateway's.
    pub(crate) gateway: Ipv4Addr,
    pub(crate) gateway_mac: MacAddr,
    /// Guests may go to the host's loopback, under the gateway's address.
    pub(crate) host_access: bool,
    /// The network's MTU, in bytes.
    pub(crate) mtu: u16,
    pub(crate) tcp: TcpSettings,
    pub(crate) udp: UdpSettings,
    /// How long an echo identifier is kept.
    pub(crate) echo_timeout: Duration,
    /// The most connections, and the most mappings of UDP and echo. Each takes a file descriptor.
    pub(crate) connections: u32,
    pub(crate) mappings: u32,
    /// See [`ROUND_BYTES`].
    pub(crate) round_bytes: usize,
}

impl EngineSettings {
    /// Connections and mappings for which there are descriptors, so that fair shares are shares of what there is.
    fn affordable(&self) -> (u32, u32) {
        let shares = u32::try_from(Shares::most()).unwrap_or(u32::MAX);
        let mappings = self.mappings.min(shares / 4);
        (self.connections.min(shares - mappings), mappings)
    }
}

/// A mapping, for whoever wants to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingStatus {
    /// Whose it is.
    pub port: PortId,
    /// What it carries.
    pub protocol: Protocol,
    /// The guest's end; for echo its port is the identifier.
    pub inside: SocketAddrV4,
    /// The host's port.
    pub outside: Option<u16>,
    /// The far end; of UDP and echo the first.
    pub remote: SocketAddrV4,
    /// The far end asked for it, by a forward.
    pub forwarded: bool,
    /// When it was opened.
    pub since: Timestamp,
    /// Bytes of payload from the guest.
    pub from_guest: u64,
    /// Bytes of payload to it.
    pub to_guest: u64,
}

/// The NAT of one network.
#[derive(Debug)]
pub(crate) struct Engine {
    common: Common,
    streams: Streams,
    datagrams: Datagrams,
    forwards: forwards::Forwards,
}

/// What all parts of an engine need.
#[derive(Debug)]
struct Common {
    settings: EngineSettings,
    /// Different for every engine that there ever was, or nearly.
    number: usize,
    registry: Arc<Registry>,
    calls: Calls,
    audit: AuditLog,
    shares: Shares,
    /// Errors and resets for guests.
    errors: PortRate,
    /// Frames that are to be sent at the next opportunity.
    outbox: Vec<(PortId, Vec<u8>)>,
    /// Frames of guests that went no further after all.
    drops: Vec<(PortId, DropReason, u64)>,
    /// Work for the next round.
    ready: VecDeque<Ready>,
    /// Bytes that guests have got since the last round began.
    moved: usize,
    hasher: ahash::RandomState,
    /// The headers, and the buffers, of the frame at hand.
    frame: Vec<u8>,
    pieces: Vec<Segment>,
    window: Vec<Segment>,
    /// A frame that has to be finished for its guest, and a segment of it.
    whole: Vec<u8>,
    part: Vec<u8>,
    identification: u16,
}

/// A socket that has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Stream(FlowId),
    Datagrams(FlowId),
    Listener(u32),
}

/// The kinds of sockets, in their tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stream = 0,
    Datagrams = 1,
    Listener = 2,
    /// None: a guest's ring. Its number is the port's.
    Room = 3,
}

/// What an event says.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a bit of its own")]
struct Readiness {
    readable: bool,
    writable: bool,
    hangup: bool,
    error: bool,
    urgent: bool,
}

impl From<&Event> for Readiness {
    fn from(event: &Event) -> Self {
        Self {
            readable: event.is_readable(),
            writable: event.is_writable(),
            hangup: event.is_read_closed(),
            error: event.is_error(),
            urgent: event.is_priority(),
        }
    }
}

impl Engine {
    /// An engine without mappings, whose sockets report to the poll behind `registry`.
    pub(crate) fn new(settings: EngineSettings, registry: Registry) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let common = Common {
            settings,
            number: NUMBER.fetch_add(1, Ordering::Relaxed) % ENGINES,
            registry: Arc::new(registry),
            calls: Calls::new(),
            audit: AuditLog::default(),
            shares: Shares::default(),
            errors: PortRate::new(ERROR_INTERVAL, ERRORS),
            outbox: Vec::new(),
            drops: Vec::new(),
            ready: VecDeque::new(),
            moved: 0,
            hasher: ahash::RandomState::new(),
            frame: Vec::new(),
            pieces: Vec::new(),
            window: Vec::new(),
            whole: Vec::new(),
            part: Vec::new(),
            identification: 0,
        };
        let (connections, mappings) = settings.affordable();
        let (streams, datagrams) = (Streams::new(connections), Datagrams::new(mappings));
        Self { common, streams, datagrams, forwards: forwards::Forwards::default() }
    }

    /// True if an event is for any engine.
    pub(crate) fn is_one(token: Token) -> bool {
        token.0 & TOKEN != 0 && token.0 >> 63 == 0
    }

    /// True if an event is for this engine.
    fn owns(&self, token: Token) -> bool {
        token.0 >> ENGINE_SHIFT == (TOKEN >> ENGINE_SHIFT) | self.common.number
    }

    /// Changes the settings. What is there stays, with the times that it has begun with; but for what went to the host's loopback, if that is not allowed any more.
    pub(crate) fn reconfigure(&mut self, settings: EngineSettings) {
        self.common.settings = settings;
        if !settings.host_access {
            self.streams.leave_host(&mut self.common);
        }
        let (connections, mappings) = settings.affordable();
        self.streams.set_capacity(connections);
        self.datagrams.set_capacity(mappings);
    }

    /// True if it has any socket.
    pub(crate) fn is_in_use(&self) -> bool {
        !(self.streams.is_empty() && self.datagrams.is_empty() && self.forwards.is_empty())
    }

    /// Takes a packet of a guest's. Its buffers must stay until [`Self::flush`].
    pub(crate) fn receive(&mut self, now: Timestamp, packet: &GuestPacket<'_>) -> Disposition {
        match packet.ip.protocol {
            TCP => self.streams.receive(&mut self.common, now, packet),
            UDP => self.datagrams.receive_udp(&mut self.common, now, packet),
            ICMP => self.datagrams.receive_icmp(&mut self.common, now, packet),
            _ => Disposition::Drop(DropReason::UnsupportedProtocol),
        }
    }

    /// True for a packet to somebody who was the first to speak, by a forward. What would begin a connection is none.
    pub(crate) fn is_answer(&self, now: Timestamp, packet: &Packet<'_>) -> bool {
        let header = packet.ip.header();
        let Some(&[a, b, c, d]) = packet.ip.payload().first_chunk() else { return false };
        let inside = SocketAddrV4::new(header.source, u16::from_be_bytes([a, b]));
        let remote = SocketAddrV4::new(header.destination, u16::from_be_bytes([c, d]));
        match header.protocol {
            TCP => !begins_connection(packet.ip.payload()) && self.streams.knows(&Ends { inside, remote }),
            UDP => self.datagrams.was_asked(now, inside, remote.port()),
            _ => false,
        }
    }

    /// Sends what was noted in [`Self::receive`], and answers. To be called at the end of each batch.
    pub(crate) fn flush(&mut self, now: Timestamp, guests: &mut impl ToGuests) {
        self.streams.flush(&mut self.common, now, guests);
        self.datagrams.finish_run(&mut self.common);
        self.common.send_waiting(guests);
    }

    /// Notes an event of the worker's poll, if it is for this engine.
    pub(crate) fn ready(&mut self, now: Timestamp, event: &Event) {
        if !self.owns(event.token()) {
            return;
        }
        let token = event.token().0;
        let id = token as u32;
        let generation = (token >> GENERATION_SHIFT) as u16 % GENERATIONS;
        match (token >> KIND_SHIFT) & 0xf {
            0 => self.streams.ready(&mut self.common, now, (FlowId(id), generation), Readiness::from(event)),
            1 => self.datagrams.ready(&mut self.common, (FlowId(id), generation), Readiness::from(event)),
            2 => self.common.ready.push_back(Ready::Listener(id)),
            // No truncation: it is a port's number.
            _ => self.streams.room(now, PortId(id as u16)),
        }
    }

    /// One round: serves sockets that have something, timers, and guests that have room again. True if there was anything to do.
    pub(crate) fn poll(&mut self, now: Timestamp, guests: &mut impl ToGuests) -> bool {
        let mut busy = !self.common.ready.is_empty();
        self.common.moved = 0;
        // What becomes ready meanwhile has its turn in the next round.
        for _ in 0..self.common.ready.len() {
            if self.common.is_laden() {
                break;
            }
            match self.common.ready.pop_front() {
                Some(Ready::Stream(id)) => self.streams.work(&mut self.common, now, id, guests),
                Some(Ready::Datagrams(id)) => self.datagrams.work(&mut self.common, now, id, guests),
                Some(Ready::Listener(id)) => self.forwards.accept(&mut self.common, now, id),
                None => break,
            }
        }
        self.forwards.call_guests(&mut self.common, &mut self.streams, now, guests);
        busy |= self.streams.tick(&mut self.common, now, guests);
        busy |= self.datagrams.tick(&mut self.common, now);
        self.common.send_waiting(guests);
        busy
    }

    /// When [`Self::poll`] is to be called, if nothing happens before.
    pub(crate) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        if !self.common.ready.is_empty() {
            return Some(now);
        }
        [self.streams.deadline(), self.datagrams.deadline(), self.forwards.deadline(now)].into_iter().flatten().min()
    }

    /// Ends everything that a port has, or everything there is: far ends and, where they are still there, guests are told. The next
    /// [`Self::poll`] does it.
    pub(crate) fn forget(&mut self, now: Timestamp, port: Option<PortId>) {
        self.streams.forget(&mut self.common, port);
        self.datagrams.forget(&mut self.common, now, port);
        if let Some(port) = port {
            self.common.errors.forget_port(port);
            self.common.audit.forget_port(port);
        }
    }

    /// Who opened and closed which mapping since this was last asked, and how many such events were lost.
    pub(crate) fn audit(&mut self) -> (Vec<Audit>, u64) {
        self.common.audit.take()
    }

    /// All mappings.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = MappingStatus> {
        self.streams.list().chain(self.datagrams.list())
    }

    /// Lets the outside reach a guest.
    ///
    /// # Errors
    /// When the address or port can't be had.
    pub(crate) fn add_forward(&mut self, now: Timestamp, forward: Forward) -> Result<SocketAddrV4, ForwardError> {
        self.forwards.add(&mut self.common, &mut self.datagrams, now, forward)
    }

    /// Takes that back. Connections that were made stay. False if there is no such rule.
    pub(crate) fn remove_forward(&mut self, now: Timestamp, forward: &Forward) -> bool {
        self.forwards.remove(&mut self.common, &mut self.datagrams, now, forward)
    }
}

impl Common {
    /// The round has brought enough.
    fn is_laden(&self) -> bool {
        self.moved >= self.settings.round_bytes
    }

    fn token(&self, kind: Kind, id: u32, generation: u16) -> Token {
        let generation = usize::from(generation) << GENERATION_SHIFT;
        Token(TOKEN | self.number << ENGINE_SHIFT | (kind as usize) << KIND_SHIFT | generation | id as usize)
    }

    fn link(&self, station: Station) -> Link {
        Link { gateway: self.settings.gateway_mac, guest: station.mac }
    }

    /// Where the host finds what a guest calls `address`: the gateway's address is the host's loopback. Whether a guest may go there, the gateway
    /// has decided.
    fn outward(&self, address: SocketAddrV4) -> SocketAddrV4 {
        let ip = if *address.ip() == self.settings.gateway { Ipv4Addr::LOCALHOST } else { *address.ip() };
        SocketAddrV4::new(ip, address.port())
    }

    /// True for the gateway's address, where guests may not go by themselves.
    fn is_closed(&self, remote: SocketAddrV4) -> bool {
        !self.settings.host_access && *remote.ip() == self.settings.gateway
    }

    /// The reverse.
    fn inward(&self, address: SocketAddrV4) -> SocketAddrV4 {
        let ip = if address.ip().is_loopback() { self.settings.gateway } else { *address.ip() };
        SocketAddrV4::new(ip, address.port())
    }

    /// Tells a guest of an error about what it had sent from `source` to `destination`, if it wasn't told too much lately.
    fn tell(
        &mut self,
        now: Timestamp,
        station: Station,
        error: &IcmpError,
        (source, destination): (SocketAddrV4, SocketAddrV4),
        subject: Subject<'_>,
    ) {
        if error.is_passed_on() && self.errors.allow(now, station.port) {
            let frame = frame::error(self.link(station), error, source, destination, subject);
            self.outbox.push((station.port, frame));
        }
    }

    fn send_waiting(&mut self, guests: &mut impl ToGuests) {
        for (port, reason, frames) in self.drops.drain(..) {
            guests.count_drop(port, reason, frames);
        }
        for (port, frame) in self.outbox.drain(..) {
            // What a guest has no room for is lost, as on any network; `send` has counted it.
            let _ = guests.send(port, &frame, &Offload::NONE);
        }
    }

    fn next_identification(&mut self) -> u16 {
        self.identification = self.identification.wrapping_add(1);
        self.identification
    }
}

/// True for a SYN without an acknowledgment, and for whatever is too short to tell.
fn begins_connection(segment: &[u8]) -> bool {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    segment.get(13).is_none_or(|flags| flags & (SYN | ACK) == SYN)
}

/// The places of `len` bytes, `skip` bytes behind the first of `pieces`.
pub(crate) fn part_of(pieces: &[Segment], mut skip: usize, mut len: usize, into: &mut Vec<Segment>) {
    for piece in pieces {
        if len == 0 {
            break;
        }
        if skip >= piece.len {
            skip -= piece.len;
            continue;
        }
        let here = len.min(piece.len - skip);
        into.push(Segment { ptr: piece.ptr.wrapping_add(skip), len: here });
        (skip, len) = (0, len - here);
    }
}

/// Whether a host without descriptors or memory is to blame.
fn is_exhausted(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRINUSE | Errno::ADDRNOTAVAIL)
}

/// Why a mapping of datagrams ended.
const EXPIRED: CloseReason = CloseReason::Idle;

#[cfg(test)]
mod tests;
