//! All connections: who has which, what is gathered for them in a batch, what waits.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::io::Errno;
use weft_switch::gateway::Refusal;
use weft_switch::nat::audit::Closed;
use weft_switch::nat::error::{IcmpError, Subject};
use weft_switch::nat::frame;
use weft_switch::nat::tcp::{CloseReason, Connection, Flags, Segment as TcpSegment, Seq};
use weft_switch::nat::{Audit, FlowId, FlowTable, Protocol, ports};
use weft_switch::{DropReason, PortId, Station, Timestamp};

use super::calls::send_space;
use super::seam::{Disposition, GuestPacket, ToGuests};
use super::socket::{self, Connect, TcpSocket, socket_error};
use super::stream::{Ends, Stream};
use super::{
    ABSENT_RETRY, Common, Kind, MappingStatus, ROOM_RETRY, ROOM_RETRY_LATE, ROOM_SOON, Readiness, Ready, TIMERS, part_of,
};
use crate::memory::Segment;

/// The most ends of connections that are remembered in case the guest missed them: a part of the table.
const LINGERING_PART: usize = 8;

/// Data of one connection, from the segments of a batch.
#[derive(Debug)]
struct Gathered {
    id: FlowId,
    pieces: Vec<Segment>,
    len: usize,
}

/// The outside port of an inside endpoint, and how many connections have it.
#[derive(Clone, Copy, Debug)]
struct OutsidePort {
    port: u16,
    users: usize,
}

/// Connections that have something for a guest that had no room.
#[derive(Debug, Default)]
struct Blocked {
    /// Whose turn it is, the next one first.
    ids: VecDeque<FlowId>,
    /// When the next one is tried again.
    retry_at: Option<Timestamp>,
    /// Since when the guest has not taken anything, as far as it was asked.
    full_since: Option<Timestamp>,
}

/// All connections of an engine.
#[derive(Debug)]
pub(super) struct Streams {
    flows: FlowTable<Ends, Stream>,
    outside: HashMap<SocketAddrV4, OutsidePort, ahash::RandomState>,
    touched: Vec<FlowId>,
    gathered: Vec<Gathered>,
    gathered_len: usize,
    blocked: HashMap<PortId, Blocked, ahash::RandomState>,
    /// Ports whose guests may have room again.
    retried: Vec<PortId>,
    /// Ends that are remembered, oldest first.
    lingering: VecDeque<(FlowId, Ends)>,
    lingering_max: usize,
    pub(super) can_peek_at: bool,
}

impl Streams {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            flows: FlowTable::new(capacity),
            outside: HashMap::default(),
            touched: Vec::new(),
            gathered: Vec::new(),
            gathered_len: 0,
            blocked: HashMap::default(),
            retried: Vec::new(),
            lingering: VecDeque::new(),
            lingering_max: capacity as usize / LINGERING_PART,
            can_peek_at: socket::can_peek_at(),
        }
    }

    /// A segment of a guest's.
    pub(super) fn receive(&mut self, common: &mut Common, now: Timestamp, packet: &GuestPacket<'_>) -> Disposition {
        let (segment, header_len) = match TcpSegment::parse(packet.head, packet.len) {
            Ok(parsed) => parsed,
            Err(reason) => return Disposition::Drop(reason),
        };
        let [a, b, c, d, ..] = *packet.head else { return Disposition::Drop(DropReason::BadTransport) };
        let inside = SocketAddrV4::new(packet.ip.source, u16::from_be_bytes([a, b]));
        let remote = SocketAddrV4::new(packet.ip.destination, u16::from_be_bytes([c, d]));
        let ends = Ends { inside, remote };
        let known = self.flows.find(&ends);
        if let Some(id) = known.filter(|id| self.is_superseded(*id, &segment)) {
            self.give_up(common, now, id);
        }
        let id = match self.flows.find(&ends) {
            Some(id) => id,
            None if segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK) => {
                return self.open(common, now, packet.station, ends, &segment);
            }
            None => {
                reject(common, now, packet.station, ends, &segment);
                return Disposition::Taken;
            }
        };
        let Some(stream) = self.flows.value_mut(id) else { return Disposition::Taken };
        stream.station = packet.station;
        let take = stream.connection.segment(now, &segment);
        if !std::mem::replace(&mut stream.touched, true) {
            self.touched.push(id);
        }
        if take.len > 0 {
            self.gather(id, packet.pieces, header_len + take.skip as usize, take.len as usize);
        }
        Disposition::Taken
    }

    fn is_superseded(&self, id: FlowId, segment: &TcpSegment) -> bool {
        self.flows.value(id).is_some_and(|stream| stream.connection.is_superseded_by(segment))
    }

    /// Notes where data are that the socket is to get.
    fn gather(&mut self, id: FlowId, pieces: &[Segment], skip: usize, len: usize) {
        let Some(stream) = self.flows.value_mut(id) else { return };
        let at = *stream.gathered.get_or_insert_with(|| {
            if self.gathered.len() == self.gathered_len {
                self.gathered.push(Gathered { id, pieces: Vec::new(), len: 0 });
            }
            self.gathered_len += 1;
            let gathered = &mut self.gathered[self.gathered_len - 1];
            (gathered.id, gathered.len) = (id, 0);
            gathered.pieces.clear();
            self.gathered_len - 1
        });
        let gathered = &mut self.gathered[at];
        part_of(pieces, skip, len, &mut gathered.pieces);
        gathered.len += len;
    }

    /// The end of a batch: what was gathered is written, and all who had segments are served.
    pub(super) fn flush(&mut self, common: &mut Common, now: Timestamp, guests: &mut impl ToGuests) {
        for at in 0..std::mem::take(&mut self.gathered_len) {
            let Gathered { id, pieces, len } = &self.gathered[at];
            let Some(stream) = self.flows.value_mut(*id).filter(|_| *len > 0) else { continue };
            stream.gathered = None;
            stream.write(common, now, pieces);
        }
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            self.work(common, now, id, guests);
        }
        self.touched = touched;
    }

    /// A guest's first segment.
    fn open(&mut self, common: &mut Common, now: Timestamp, station: Station, ends: Ends, syn: &TcpSegment) -> Disposition {
        const FULL: Disposition = Disposition::Refuse(DropReason::ShareExceeded, Refusal::Prohibited);
        if common.is_closed(ends.remote) {
            return Disposition::Refuse(DropReason::NoListener, Refusal::PortUnreachable);
        }
        if !self.make_room(common, now, station.port) {
            return FULL;
        }
        let mut connection = Connection::accept(now, syn, initial_number(common, now, ends), &common.settings.tcp);
        let (socket, outside, shares_port, begun) = match self.connect(common, ends) {
            Ok(connected) => connected,
            Err(error) if super::is_exhausted(error) => return FULL,
            Err(error) => {
                let error = IcmpError::of_refusal(common.settings.gateway, refusal_of(error));
                common.tell(now, station, &error, (ends.inside, ends.remote), Subject::Tcp(syn.seq.0));
                return Disposition::Drop(DropReason::Unreachable);
            }
        };
        match begun {
            Ok(Connect::Done) => connection.connected(now, send_space(socket.fd()).unwrap_or(0)),
            Ok(Connect::UnderWay) => {}
            Err(error) => connection.failed(socket_error(error)),
        }
        let connecting = begun == Ok(Connect::UnderWay);
        let stream = Stream::new(now, station, ends, syn.seq, connection, socket);
        self.add(common, now, Stream { outside, shares_port, connecting, ..stream })
    }

    /// The far end wants a connection: `socket` is its, `ends` as the guest is to see them.
    pub(super) fn call(
        &mut self,
        common: &mut Common,
        now: Timestamp,
        station: Station,
        ends: Ends,
        accepted: socket::Accepted,
    ) -> Result<(), Errno> {
        if self.flows.find(&ends).is_some() {
            return Err(Errno::ADDRINUSE);
        }
        if !self.make_room(common, now, station.port) {
            return Err(Errno::NOBUFS);
        }
        let socket = TcpSocket::accepted(accepted, self.can_peek_at)?;
        let outside = socket::local_port(socket.fd()).ok();
        let number = initial_number(common, now, ends);
        let connection = Connection::call(now, number, send_space(socket.fd())?, &common.settings.tcp);
        let stream = Stream::new(now, station, ends, number, connection, socket);
        let _ = self.add(common, now, Stream { outside, forwarded: true, ..stream });
        Ok(())
    }

    fn add(&mut self, common: &mut Common, now: Timestamp, stream: Stream) -> Disposition {
        let (port, ends, outside, forwarded) = (stream.station.port, stream.ends, stream.outside, stream.forwarded);
        let Ok(id) = self.flows.insert(port, ends, stream) else {
            return Disposition::Refuse(DropReason::ShareExceeded, Refusal::Prohibited);
        };
        let token = common.token(Kind::Stream, id.0, self.flows.generation(id).unwrap_or_default());
        if let Some(stream) = self.flows.value_mut(id)
            && let Some(socket) = &stream.socket
            && let Err(error) = socket::register(&common.registry, socket.fd(), token, true)
        {
            stream.connection.failed(socket_error(error));
        }
        common.audit.add(Audit {
            at: now,
            port,
            protocol: Protocol::Tcp,
            inside: ends.inside,
            outside: outside.map(|port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)),
            remote: ends.remote,
            forwarded,
            closed: None,
        });
        self.queue(common, id);
        Disposition::Taken
    }

    /// A socket on its way to the far end, from the outside port that the inside endpoint has, or gets now.
    #[allow(clippy::type_complexity, reason = "taken apart at once")]
    fn connect(&mut self, common: &Common, ends: Ends) -> Result<(TcpSocket, Option<u16>, bool, Result<Connect, Errno>), Errno> {
        let (to, shares) = (common.outward(ends.remote), &common.shares);
        let known = self.outside.get(&ends.inside).map(|outside| outside.port);
        // A socket that is bound to a port of this host, and connects to that, would be connected with itself.
        let is_other = |port: &u16| *port != to.port();
        let (socket, bound) = match known {
            Some(port) => TcpSocket::bound(shares, [port].into_iter().filter(is_other), true, self.can_peek_at)?,
            None => {
                let ports = ports::candidates(ends.inside, &common.hasher).filter(is_other);
                TcpSocket::bound(shares, ports, false, self.can_peek_at)?
            }
        };
        let begun = socket.connect(to);
        if let (Err(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE), Some(_)) = (begun, bound) {
            // The far end has not forgotten the last connection from that port: better another port than none.
            let (socket, _) = TcpSocket::bound(shares, std::iter::empty(), false, self.can_peek_at)?;
            let begun = socket.connect(to);
            let outside = socket::local_port(socket.fd()).ok();
            return Ok((socket, outside, false, begun));
        }
        if let Some(port) = bound {
            self.outside.entry(ends.inside).or_insert(OutsidePort { port, users: 0 }).users += 1;
        }
        let outside = bound.or_else(|| socket::local_port(socket.fd()).ok());
        Ok((socket, outside, bound.is_some(), begun))
    }

    /// Makes room for one more connection of `port`, if it may have one: remembered ends make way.
    fn make_room(&mut self, common: &mut Common, now: Timestamp, port: PortId) -> bool {
        while !self.flows.has_room(port) || self.lingering.len() > self.lingering_max {
            let Some((id, ends)) = self.lingering.pop_front() else { return false };
            if self.flows.key(id) == Some(ends) && self.flows.value(id).is_some_and(|stream| stream.connection.is_lingering()) {
                self.give_up(common, now, id);
            }
        }
        true
    }

    /// An event of a connection's socket.
    pub(super) fn ready(&mut self, common: &mut Common, now: Timestamp, (id, generation): (FlowId, u16), readiness: Readiness) {
        if self.flows.generation(id) != Some(generation) {
            return;
        }
        let Some(stream) = self.flows.value_mut(id) else { return };
        stream.ready(now, readiness);
        self.queue(common, id);
    }

    /// Gives a connection a place in the next round.
    fn queue(&mut self, common: &mut Common, id: FlowId) {
        if let Some(stream) = self.flows.value_mut(id)
            && !std::mem::replace(&mut stream.queued, true)
        {
            common.ready.push_back(Ready::Stream(id));
        }
    }

    /// Does what a connection wants done.
    pub(super) fn work(&mut self, common: &mut Common, now: Timestamp, id: FlowId, guests: &mut impl ToGuests) {
        let Some(stream) = self.flows.value_mut(id) else { return };
        (stream.touched, stream.queued) = (false, false);
        let had_socket = stream.socket.is_some();
        let finished = stream.work(common, now, guests);
        if !finished {
            stream.queued = true;
            common.ready.push_back(Ready::Stream(id));
        }
        let port = stream.station.port;
        if std::mem::take(&mut stream.progressed)
            && let Some(blocked) = self.blocked.get_mut(&port)
        {
            blocked.full_since = None;
        }
        if stream.connection.is_blocked() && !std::mem::replace(&mut stream.blocked, true) {
            let blocked = self.blocked.entry(port).or_default();
            let token = common.token(Kind::Room, port.0.into(), 0);
            let told = if stream.absent { None } else { guests.wait_for_room(port, &common.registry, token) };
            // A guest that is at work makes room within microseconds; one that is not need not keep anybody awake.
            let retry_at = match told {
                _ if stream.absent => now.after(ABSENT_RETRY),
                Some(true) => now,
                Some(false) => now.after(ROOM_RETRY_LATE),
                None if now.since(*blocked.full_since.get_or_insert(now)) >= ROOM_SOON => now.after(ROOM_RETRY),
                None => now,
            };
            blocked.ids.push_back(id);
            blocked.retry_at = Some(blocked.retry_at.map_or(retry_at, |at| at.min(retry_at)));
        }
        let (deadline, is_over) = (stream.connection.deadline(), stream.connection.is_over());
        if had_socket && stream.socket.is_none() {
            let (ends, lingering) = (stream.ends, stream.connection.is_lingering());
            self.closed(common, now, id);
            if lingering {
                self.lingering.push_back((id, ends));
            }
        }
        if is_over {
            self.flows.remove(id);
        } else {
            self.flows.schedule(id, deadline);
        }
    }

    /// The socket of a connection is gone: so is the mapping.
    fn closed(&mut self, common: &mut Common, now: Timestamp, id: FlowId) {
        let Some(stream) = self.flows.value_mut(id) else { return };
        let (from_guest, to_guest) = stream.connection.bytes();
        let reason = stream.connection.reason().unwrap_or(CloseReason::Abandoned);
        common.audit.add(Audit {
            at: now,
            port: stream.station.port,
            protocol: Protocol::Tcp,
            inside: stream.ends.inside,
            outside: stream.outside.map(|port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)),
            remote: stream.ends.remote,
            forwarded: stream.forwarded,
            closed: Some(Closed { reason, from_guest, to_guest, lasted: now.since(stream.since) }),
        });
        if !std::mem::take(&mut stream.shares_port) {
            return;
        }
        let inside = stream.ends.inside;
        if let Some(outside) = self.outside.get_mut(&inside) {
            outside.users -= 1;
            if outside.users == 0 {
                self.outside.remove(&inside);
            }
        }
    }

    /// Ends a connection at once, without a word to the guest.
    fn give_up(&mut self, common: &mut Common, now: Timestamp, id: FlowId) {
        let Some(stream) = self.flows.value_mut(id) else { return };
        stream.connection.abort(CloseReason::Abandoned, false);
        if let Some(at) = stream.gathered {
            self.gathered[at].len = 0;
        }
        if let Some(socket) = stream.socket.take() {
            socket.reset();
            self.closed(common, now, id);
        }
        self.flows.remove(id);
    }

    /// Timers, and guests that may have room again. True if there was anything to do.
    pub(super) fn tick(&mut self, common: &mut Common, now: Timestamp, guests: &mut impl ToGuests) -> bool {
        let mut busy = false;
        for _ in 0..TIMERS {
            let Some(id) = self.flows.due(now) else { break };
            busy = true;
            if let Some(stream) = self.flows.value_mut(id) {
                stream.connection.tick(now);
            }
            self.work(common, now, id, guests);
        }
        while let Some((id, ends)) = self.lingering.front() {
            if self.flows.key(*id) == Some(*ends) {
                break;
            }
            self.lingering.pop_front();
        }
        self.retry(common, now, guests);
        busy
    }

    /// Guests that may have room again. Where the first connection finds none, the others of the port don't look: they may be many.
    fn retry(&mut self, common: &mut Common, now: Timestamp, guests: &mut impl ToGuests) {
        let mut retried = std::mem::take(&mut self.retried);
        let due = |(port, blocked): (&PortId, &Blocked)| blocked.retry_at.filter(|at| *at <= now).map(|_| *port);
        retried.extend(self.blocked.iter().filter_map(due));
        for port in retried.drain(..) {
            let Some(blocked) = self.blocked.get_mut(&port) else { continue };
            blocked.retry_at = None;
            for _ in 0..blocked.ids.len() {
                let Some(id) = self.blocked.get_mut(&port).and_then(|blocked| blocked.ids.pop_front()) else { break };
                let Some(stream) = self.flows.value_mut(id).filter(|stream| stream.blocked) else { continue };
                stream.blocked = false;
                stream.connection.room();
                self.work(common, now, id, guests);
                if self.flows.value(id).is_some_and(|stream| stream.blocked) {
                    break;
                }
            }
            if self.blocked.get(&port).is_some_and(|blocked| blocked.ids.is_empty()) {
                self.blocked.remove(&port);
            }
        }
        self.retried = retried;
    }

    /// A guest that had no room has some.
    pub(super) fn room(&mut self, now: Timestamp, port: PortId) {
        if let Some(blocked) = self.blocked.get_mut(&port) {
            blocked.retry_at = Some(now);
        }
    }

    pub(super) fn knows(&self, ends: &Ends) -> bool {
        self.flows.find(ends).is_some()
    }

    /// True if nothing is kept of any connection.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.flows.is_empty()
            && self.outside.is_empty()
            && self.touched.is_empty()
            && self.gathered_len == 0
            && self.blocked.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.blocked.values().map(|blocked| blocked.retry_at).chain([self.flows.deadline()]).flatten().min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    pub(super) fn set_capacity(&mut self, capacity: u32) {
        self.flows.set_capacity(capacity);
        self.lingering_max = capacity as usize / LINGERING_PART;
    }

    pub(super) fn forget(&mut self, common: &mut Common, port: Option<PortId>) {
        for id in self.flows.ids(port).collect::<Vec<_>>() {
            if let Some(stream) = self.flows.value_mut(id) {
                stream.connection.abort(CloseReason::Abandoned, true);
            }
            self.queue(common, id);
        }
    }

    /// Ends what goes to the host's loopback, but for what was asked for from there.
    pub(super) fn leave_host(&mut self, common: &mut Common) {
        for id in self.flows.ids(None).collect::<Vec<_>>() {
            if let Some(stream) =
                self.flows.value_mut(id).filter(|stream| !stream.forwarded && common.is_closed(stream.ends.remote))
            {
                stream.connection.abort(CloseReason::Abandoned, true);
                self.queue(common, id);
            }
        }
    }

    pub(super) fn list(&self) -> impl Iterator<Item = MappingStatus> {
        self.flows.ids(None).filter_map(|id| self.flows.value(id)).map(|stream| {
            let (from_guest, to_guest) = stream.connection.bytes();
            MappingStatus {
                port: stream.station.port,
                protocol: Protocol::Tcp,
                inside: stream.ends.inside,
                outside: stream.outside,
                remote: stream.ends.remote,
                forwarded: stream.forwarded,
                since: stream.since,
                from_guest,
                to_guest,
            }
        })
    }
}

/// A segment of a connection that nobody knows (any more).
fn reject(common: &mut Common, now: Timestamp, station: Station, ends: Ends, segment: &TcpSegment) {
    if let Some(reset) = segment.reset()
        && common.errors.allow(now, station.port)
    {
        let mut frame = Vec::new();
        frame::tcp(common.link(station), ends.remote, ends.inside, &reset, u32::MAX, &mut frame);
        common.outbox.push((station.port, frame));
    }
}

/// A number that nobody can guess, and that grows with time (RFC 6528, section 3).
fn initial_number(common: &Common, now: Timestamp, ends: Ends) -> Seq {
    let secret = common.hasher.hash_one(ends) as u32;
    let ticks = now.since(Timestamp::default()).as_micros() / 4;
    Seq(secret.wrapping_add(ticks as u32))
}

fn refusal_of(error: Errno) -> Refusal {
    match error {
        Errno::ACCESS | Errno::PERM => Refusal::Prohibited,
        Errno::NETUNREACH => Refusal::NetUnreachable,
        _ => Refusal::HostUnreachable,
    }
}
