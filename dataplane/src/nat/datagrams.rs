//! Mappings of UDP and ICMP echo: a socket for each endpoint inside.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::ipproto;
use weft_switch::gateway::Refusal;
use weft_switch::nat::audit::Closed;
use weft_switch::nat::error::{IcmpError, Subject};
use weft_switch::nat::frame::{self, UDP_HEADERS_LEN};
use weft_switch::nat::tcp::CloseReason;
use weft_switch::nat::{Audit, FlowId, FlowTable, Protocol, echo, ports, udp};
use weft_switch::{DropReason, Offload, PortId, Station, Timestamp, complete_checksum};

use super::calls::{self, DATAGRAMS, HEADROOM, Marks, QueuedError};
use super::runs::{self, Run};
use super::seam::{Disposition, GuestPacket, ToGuests};
use super::socket::{self, DatagramSocket};
use super::{Common, EXPIRED, Kind, MappingStatus, Readiness, Ready, TIMERS, part_of};
use crate::memory::Segment;

const UDP_HEADER_LEN: usize = 8;
const ETHERNET_LEN: usize = 14;
/// The most callers of a forwarded endpoint that are remembered, and for how long (RFC 4787, REQ-5).
const CALLERS: usize = 256;
const CALLER_TIMEOUT: Duration = Duration::from_secs(300);
/// How often a socket is asked for more in one round.
const BATCHES: usize = 4;
/// The most errors of a socket that are looked at in one round.
const ERRORS: usize = 16;
/// Bytes of a packet that errors are asked for.
const QUOTED: usize = 576;
/// TTLs below this are the guest's own: it traces a route. Others are the host's, which costs less.
const TTL_TRACED: u8 = 32;

#[derive(Debug)]
enum Carrier {
    Udp(udp::Mapping),
    Echo(echo::Mapping),
}

/// A mapping with its socket.
#[derive(Debug)]
struct Mapped {
    carrier: Carrier,
    socket: DatagramSocket,
    /// Whose it is, as far as it is known.
    station: Option<Station>,
    port: PortId,
    inside: SocketAddrV4,
    remote: SocketAddrV4,
    since: Timestamp,
    /// The rule that made it, which also keeps it.
    forwarded: bool,
    queued: bool,
    has_errors: bool,
    /// Where the last datagram should have gone that was longer than the way to there takes.
    too_long_for: Option<SocketAddrV4>,
    callers: Callers,
}

/// Ports of the host's loopback from which a forwarded endpoint was sent something, by which of its addresses, and when last. The guest sees them under the gateway's address, where it may
/// go for nothing else.
#[derive(Debug, Default)]
struct Callers(HashMap<u16, (Ipv4Addr, Timestamp), ahash::RandomState>);

type Key = (Protocol, SocketAddrV4);

/// Who has the mappings that forwards make.
const FORWARDED: PortId = PortId(u16::MAX);

/// All such mappings of an engine.
#[derive(Debug)]
pub(super) struct Datagrams {
    flows: FlowTable<Key, Mapped>,
    /// Datagrams of a batch that have not left yet.
    run: Run,
    /// It was said already that this host does not let us ping.
    told_of_ping: bool,
}

impl Datagrams {
    pub(super) fn new(capacity: u32) -> Self {
        Self { flows: FlowTable::new(capacity), run: Run::default(), told_of_ping: false }
    }

    /// A datagram of a guest's. Its checksum is not looked at: the way from the guest to here does not damage anything, and from here on the
    /// kernel makes a new one.
    pub(super) fn receive_udp(&mut self, common: &mut Common, now: Timestamp, packet: &GuestPacket<'_>) -> Disposition {
        let Some(&[a, b, c, d, e, f, ..]) = packet.head.first_chunk::<UDP_HEADER_LEN>() else {
            return Disposition::Drop(DropReason::BadTransport);
        };
        let len = usize::from(u16::from_be_bytes([e, f]));
        if len < UDP_HEADER_LEN || len > packet.len {
            return Disposition::Drop(DropReason::BadTransport);
        }
        let inside = SocketAddrV4::new(packet.ip.source, u16::from_be_bytes([a, b]));
        let remote = SocketAddrV4::new(packet.ip.destination, u16::from_be_bytes([c, d]));
        if remote.port() == 0 {
            return Disposition::Drop(DropReason::BadTransport);
        }
        let id = match self.mapping(common, now, packet.station, (Protocol::Udp, inside), remote) {
            Ok(id) => id,
            Err(disposition) => return disposition,
        };
        let Some(mapped) = self.flows.value_mut(id) else { return Disposition::Taken };
        let mut to = common.outward(remote);
        if mapped.forwarded && to.ip().is_loopback() {
            to.set_ip(mapped.callers.find(now, to.port()).unwrap_or(*to.ip()));
        }
        if let Carrier::Udp(mapping) = &mut mapped.carrier {
            mapping.outbound(now, *to.ip(), len - UDP_HEADER_LEN);
        }
        let kind = runs::Kind { id, to, marks: marks_of(packet), dont_fragment: packet.ip.dont_fragment };
        let size = packet.segment.map(usize::from).filter(|size| *size < len - UDP_HEADER_LEN);
        if let Some(size) = size {
            return self.add_all(common, kind, packet.pieces, len - UDP_HEADER_LEN, size);
        }
        if self.run.add(kind, packet.pieces, UDP_HEADER_LEN, len - UDP_HEADER_LEN) {
            return Disposition::Taken;
        }
        self.send_one(common, kind, packet.pieces, UDP_HEADER_LEN, len - UDP_HEADER_LEN)
    }

    /// Sends a datagram at once, and what came before it. Those that follow to the same place may be gathered.
    fn send_one(&mut self, common: &mut Common, kind: runs::Kind, pieces: &[Segment], skip: usize, len: usize) -> Disposition {
        self.finish_run(common);
        common.window.clear();
        part_of(pieces, skip, len, &mut common.window);
        let Some(mapped) = self.flows.value_mut(kind.id) else { return Disposition::Taken };
        let sent = mapped.send(common, &kind);
        if sent.is_ok() {
            self.run.begin(kind);
        }
        self.sent(common, kind.id, sent)
    }

    /// Datagrams that the guest has left to be cut apart, of `size` bytes each.
    fn add_all(&mut self, common: &mut Common, kind: runs::Kind, pieces: &[Segment], len: usize, size: usize) -> Disposition {
        for at in (0..len).step_by(size) {
            let (skip, here) = (UDP_HEADER_LEN + at, size.min(len - at));
            if self.run.add(kind, pieces, skip, here) {
                continue;
            }
            self.finish_run(common);
            self.run.begin(kind);
            if !self.run.add(kind, pieces, skip, here) {
                // It fits into no run.
                let disposition = self.send_one(common, kind, pieces, skip, here);
                if disposition != Disposition::Taken {
                    return disposition;
                }
            }
        }
        Disposition::Taken
    }

    /// Sends the datagrams of a batch that have not left yet.
    pub(super) fn finish_run(&mut self, common: &mut Common) {
        let mut run = std::mem::take(&mut self.run);
        if let Some(kind) = run.kind()
            && run.count() > 0
            && let Some(mapped) = self.flows.value_mut(kind.id)
        {
            mapped.send_run(common, &kind, &run);
        }
        run.clear();
        self.run = run;
    }

    /// An ICMP message of a guest's: queries are passed on (RFC 5508, REQ-1), errors are not, since those that a guest has to send are about
    /// what the kernel has delivered already.
    pub(super) fn receive_icmp(&mut self, common: &mut Common, now: Timestamp, packet: &GuestPacket<'_>) -> Disposition {
        let message = if packet.head.len() >= packet.len { &packet.head[..packet.len] } else { &[] };
        let request = match echo::Request::parse(message) {
            Ok(request) => request,
            Err(reason) => return Disposition::Drop(reason),
        };
        let inside = SocketAddrV4::new(packet.ip.source, request.identifier);
        let remote = SocketAddrV4::new(packet.ip.destination, 0);
        let id = match self.mapping(common, now, packet.station, (Protocol::Icmp, inside), remote) {
            Ok(id) => id,
            Err(disposition) => return disposition,
        };
        let Some(mapped) = self.flows.value_mut(id) else { return Disposition::Taken };
        if let Carrier::Echo(mapping) = &mut mapped.carrier {
            mapping.outbound(now, *remote.ip(), message.len());
        }
        // The kernel puts the identifier and the checksum in.
        let to = common.outward(remote);
        common.window.clear();
        common.window.push(Segment { ptr: message.as_ptr().cast_mut(), len: message.len() });
        let kind = runs::Kind { id, to, marks: marks_of(packet), dont_fragment: packet.ip.dont_fragment };
        let sent = mapped.send(common, &kind);
        self.sent(common, id, sent)
    }

    /// What becomes of a packet that a socket took or did not take.
    fn sent(&mut self, common: &mut Common, id: FlowId, sent: Result<(), Errno>) -> Disposition {
        match sent {
            Ok(()) => Disposition::Taken,
            Err(Errno::MSGSIZE) => {
                // The queue says what would have passed.
                self.queue(common, id, true);
                Disposition::Drop(DropReason::Unreachable)
            }
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Disposition::Drop(DropReason::HostBusy),
            Err(Errno::ACCESS | Errno::PERM) => Disposition::Refuse(DropReason::Unreachable, Refusal::Prohibited),
            Err(Errno::NETUNREACH) => Disposition::Refuse(DropReason::Unreachable, Refusal::NetUnreachable),
            Err(_) => Disposition::Refuse(DropReason::Unreachable, Refusal::HostUnreachable),
        }
    }

    /// The mapping of an inside endpoint: the one that is there, whatever is sent where (RFC 4787, REQ-1), or a new one.
    fn mapping(
        &mut self,
        common: &mut Common,
        now: Timestamp,
        station: Station,
        key: Key,
        remote: SocketAddrV4,
    ) -> Result<FlowId, Disposition> {
        const FULL: Disposition = Disposition::Refuse(DropReason::ShareExceeded, Refusal::Prohibited);
        if let Some(id) = self.flows.find(&key) {
            // Who answers for a forwarded endpoint is the owner of its address, whoever sends from there.
            if let Some(mapped) = self.flows.value_mut(id).filter(|mapped| !mapped.forwarded) {
                mapped.station = Some(station);
            }
            return Ok(id);
        }
        if common.is_closed(remote) {
            return Err(Disposition::Refuse(DropReason::NoListener, Refusal::PortUnreachable));
        }
        if !self.flows.has_room(station.port) {
            return Err(FULL);
        }
        let protocol = (key.0 == Protocol::Icmp).then_some(ipproto::ICMP);
        let socket = DatagramSocket::bound(protocol, ports::candidates(key.1, &common.hasher)).map_err(|error| match error {
            Errno::ACCESS | Errno::PERM if key.0 == Protocol::Icmp => {
                self.tell_of_ping();
                Disposition::Refuse(DropReason::Unreachable, Refusal::Prohibited)
            }
            _ => FULL,
        })?;
        let carrier = match key.0 {
            Protocol::Icmp => Carrier::Echo(echo::Mapping::new(now, common.settings.echo_timeout)),
            Protocol::Udp | Protocol::Tcp => Carrier::Udp(udp::Mapping::new(now, &common.settings.udp)),
        };
        let (port, inside) = (station.port, key.1);
        let mapped = Mapped {
            carrier,
            socket,
            station: Some(station),
            port,
            inside,
            remote,
            since: now,
            forwarded: false,
            queued: false,
            has_errors: false,
            callers: Callers::default(),
            too_long_for: None,
        };
        self.add(common, now, key, mapped).map_err(|_| FULL)
    }

    fn tell_of_ping(&mut self) {
        if !std::mem::replace(&mut self.told_of_ping, true) {
            tracing::warn!(
                "guests can't ping the outside: this host does not let weft's group do so. Allow it with: sysctl -w \
                 net.ipv4.ping_group_range=\"0 2147483647\""
            );
        }
    }

    fn add(&mut self, common: &mut Common, now: Timestamp, key: Key, mapped: Mapped) -> Result<FlowId, Errno> {
        let event = mapped.audit(now, None);
        let deadline = mapped.deadline();
        let id = self.flows.insert(mapped.port, key, mapped).map_err(|_| Errno::NOBUFS)?;
        let token = common.token(Kind::Datagrams, id.0, self.flows.generation(id).unwrap_or_default());
        let Some(mapped) = self.flows.value_mut(id) else { return Err(Errno::NOBUFS) };
        if let Err(error) = socket::register(&common.registry, mapped.socket.fd(), token, false) {
            self.flows.remove(id);
            return Err(error);
        }
        if let Some(deadline) = deadline {
            self.flows.schedule(id, deadline);
        }
        common.audit.add(event);
        Ok(id)
    }

    /// Lets everybody send to an inside endpoint by an outside address, for as long as [`Self::close_forward`] is not called.
    pub(super) fn open_forward(
        &mut self,
        common: &mut Common,
        now: Timestamp,
        bind: SocketAddrV4,
        target: SocketAddrV4,
    ) -> Result<SocketAddrV4, Errno> {
        let key = (Protocol::Udp, target);
        if let Some(id) = self.flows.find(&key) {
            if self.flows.value(id).is_some_and(|mapped| mapped.forwarded) {
                return Err(Errno::EXIST);
            }
            // What the guest had from there so far comes from the forwarded port from now on.
            self.close(common, now, id, CloseReason::Abandoned);
        }
        let socket = DatagramSocket::bound_to(bind)?;
        let address = socket::local_address(socket.fd())?;
        let filtering = udp::Filtering::EndpointIndependent;
        let settings = udp::UdpSettings { filtering, ..common.settings.udp };
        let mapped = Mapped {
            carrier: Carrier::Udp(udp::Mapping::new(now, &settings)),
            socket,
            station: None,
            // Whoever has that address: rules are the operator's and count for no guest.
            port: FORWARDED,
            inside: target,
            remote: address,
            since: now,
            forwarded: true,
            queued: false,
            has_errors: false,
            callers: Callers::default(),
            too_long_for: None,
        };
        self.add(common, now, key, mapped)?;
        Ok(address)
    }

    /// True if somebody on the host's loopback has sent something from that port to an inside endpoint lately, by a forward.
    pub(super) fn was_asked(&self, now: Timestamp, inside: SocketAddrV4, by: u16) -> bool {
        let mapped = self.flows.find(&(Protocol::Udp, inside)).and_then(|id| self.flows.value(id));
        mapped.and_then(|mapped| mapped.callers.find(now, by)).is_some()
    }

    /// Takes that back.
    pub(super) fn close_forward(&mut self, common: &mut Common, now: Timestamp, target: SocketAddrV4) {
        if let Some(id) = self.flows.find(&(Protocol::Udp, target)) {
            self.close(common, now, id, CloseReason::Abandoned);
        }
    }

    /// An event of a mapping's socket.
    pub(super) fn ready(&mut self, common: &mut Common, (id, generation): (FlowId, u16), readiness: Readiness) {
        if self.flows.generation(id) != Some(generation) {
            return;
        }
        self.queue(common, id, readiness.error);
    }

    fn queue(&mut self, common: &mut Common, id: FlowId, has_errors: bool) {
        let Some(mapped) = self.flows.value_mut(id) else { return };
        mapped.has_errors |= has_errors;
        if !std::mem::replace(&mut mapped.queued, true) {
            common.ready.push_back(Ready::Datagrams(id));
        }
    }

    /// Brings what has come to the guest.
    pub(super) fn work(&mut self, common: &mut Common, now: Timestamp, id: FlowId, guests: &mut impl ToGuests) {
        let Some(mapped) = self.flows.value_mut(id) else { return };
        mapped.queued = false;
        if std::mem::take(&mut mapped.has_errors) {
            mapped.pass_errors_on(common, now);
        }
        for _ in 0..BATCHES {
            match common.calls.receive(mapped.socket.fd()) {
                Ok(count) => {
                    (0..count).for_each(|at| mapped.deliver(common, now, at, guests));
                    if count < DATAGRAMS {
                        return;
                    }
                    if common.is_laden() {
                        break;
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                // An error that is waiting in the queue, too.
                Err(_) => mapped.pass_errors_on(common, now),
            }
        }
        self.queue(common, id, false);
    }

    /// Ends what the guests no longer use. True if there was anything to do.
    pub(super) fn tick(&mut self, common: &mut Common, now: Timestamp) -> bool {
        let mut busy = false;
        for _ in 0..TIMERS {
            let Some(id) = self.flows.due(now) else { break };
            busy = true;
            match self.flows.value(id).and_then(Mapped::deadline) {
                Some(deadline) if deadline <= now => self.close(common, now, id, EXPIRED),
                Some(deadline) => self.flows.schedule(id, deadline),
                None => {}
            }
        }
        busy
    }

    fn close(&mut self, common: &mut Common, now: Timestamp, id: FlowId, reason: CloseReason) {
        if let Some((_, mapped)) = self.flows.remove(id) {
            common.audit.add(mapped.audit(now, Some(reason)));
        }
    }

    pub(super) fn forget(&mut self, common: &mut Common, now: Timestamp, port: Option<PortId>) {
        for id in self.flows.ids(port).collect::<Vec<_>>() {
            if port.is_none() || self.flows.value(id).is_some_and(|mapped| !mapped.forwarded) {
                self.close(common, now, id, CloseReason::Abandoned);
            }
        }
        // Forwarded endpoints belong to no port, and may have been this one's.
        for id in self.flows.ids(Some(FORWARDED)).collect::<Vec<_>>() {
            if let Some(mapped) = self.flows.value_mut(id).filter(|mapped| mapped.station.map(|station| station.port) == port) {
                mapped.station = None;
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.flows.deadline()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    pub(super) fn set_capacity(&mut self, capacity: u32) {
        self.flows.set_capacity(capacity);
    }

    pub(super) fn list(&self) -> impl Iterator<Item = MappingStatus> {
        self.flows.ids(None).filter_map(|id| self.flows.value(id)).map(|mapped| {
            let (from_guest, to_guest) = mapped.bytes();
            MappingStatus {
                port: mapped.port,
                protocol: mapped.protocol(),
                inside: mapped.inside,
                outside: Some(mapped.socket.port),
                remote: mapped.remote,
                forwarded: mapped.forwarded,
                since: mapped.since,
                from_guest,
                to_guest,
            }
        })
    }
}

impl Mapped {
    /// Sends the datagram that `common.window` has.
    fn send(&mut self, common: &mut Common, kind: &runs::Kind) -> Result<(), Errno> {
        let window = std::mem::take(&mut common.window);
        let sent = self.send_pieces(common, kind, kind.marks, &window);
        common.window = window;
        sent
    }

    fn send_pieces(&mut self, common: &mut Common, kind: &runs::Kind, marks: Marks, pieces: &[Segment]) -> Result<(), Errno> {
        self.socket.set_dont_fragment(kind.dont_fragment)?;
        let sent = common.calls.send(self.socket.fd(), Some(kind.to), pieces, marks);
        match sent {
            Err(Errno::MSGSIZE) => {
                self.too_long_for = Some(kind.to);
                sent
            }
            Err(Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::PROTO | Errno::CONNRESET) => {
                // That was about an earlier one: errors end nothing (RFC 4787, REQ-12).
                self.has_errors = true;
                self.socket.clear_error();
                common.calls.send(self.socket.fd(), Some(kind.to), pieces, marks)
            }
            other => other,
        }
        .map(drop)
    }

    /// Sends several datagrams: with one call, or one by one if the kernel does not want them together.
    fn send_run(&mut self, common: &mut Common, kind: &runs::Kind, run: &Run) {
        let (pieces, size) = run.all();
        let marks = Marks { segment: (run.count() > 1).then_some(size), ..kind.marks };
        match self.send_pieces(common, kind, marks, pieces) {
            Ok(()) => return,
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {
                common.drops.push((self.port, DropReason::HostBusy, run.count() as u64));
                return;
            }
            Err(_) => {}
        }
        let failed = run.each().filter(|pieces| self.send_pieces(common, kind, kind.marks, pieces).is_err()).count();
        if failed > 0 {
            self.has_errors = true;
            common.drops.push((self.port, DropReason::Unreachable, failed as u64));
        }
    }

    /// The `at`-th datagram that has just come.
    fn deliver(&mut self, common: &mut Common, now: Timestamp, at: usize, guests: &mut impl ToGuests) {
        let (from, slot, size) = common.calls.arrived(at);
        let len = slot.len() - HEADROOM;
        common.moved += len;
        let size = size.map_or(len, usize::from).max(1);
        let source = if from.ip().is_loopback() { SocketAddrV4::new(common.settings.gateway, from.port()) } else { from };
        if self.forwarded {
            self.station = guests.station(now, *self.inside.ip());
        }
        let Some(station) = self.station else { return };
        if from.ip().is_loopback() && !self.forwarded && !common.settings.host_access {
            return;
        }
        if common.settings.subnet.contains(*from.ip()) {
            // The outside has none of the network's addresses.
            guests.count_drop(station.port, DropReason::BadIpSource, 1);
            return;
        }
        let mtu = common.settings.mtu;
        let link = frame::Link { gateway: common.settings.gateway_mac, guest: station.mac };
        match &mut self.carrier {
            Carrier::Udp(mapping) => {
                if !mapping.inbound(now, *from.ip(), len) {
                    return;
                }
                if self.forwarded && from.ip().is_loopback() {
                    self.callers.note(now, from);
                }
                let fits = size + UDP_HEADERS_LEN - ETHERNET_LEN <= usize::from(mtu);
                let offloads = guests.offloads(station.port);
                if fits && (len <= size || (offloads.udp && offloads.checksum)) {
                    // As it came: one datagram, or several that the guest cuts apart.
                    let offload = frame::udp(link, source, self.inside, len, size, &mut common.frame);
                    let start = HEADROOM - common.frame.len();
                    slot[start..HEADROOM].copy_from_slice(&common.frame);
                    send_udp(guests, station.port, &mut slot[start..], &offload);
                    return;
                }
                for datagram in slot[HEADROOM..].chunks(size) {
                    if !fits {
                        let identification = common.identification.wrapping_add(1);
                        common.identification = identification;
                        let frames = frame::udp_fragments(link, source, self.inside, datagram, mtu, identification);
                        send_all(guests, station.port, &frames);
                        continue;
                    }
                    let offload = frame::udp(link, source, self.inside, datagram.len(), size, &mut common.frame);
                    common.frame.extend_from_slice(datagram);
                    send_udp(guests, station.port, &mut common.frame, &offload);
                }
            }
            Carrier::Echo(mapping) => {
                let Some(reply) = echo::reply(&slot[HEADROOM..], self.inside.port()) else { return };
                mapping.inbound(reply.len());
                let identification = common.next_identification();
                let frames = frame::icmp(link, *source.ip(), *self.inside.ip(), &reply, mtu, identification);
                send_all(guests, station.port, &frames);
            }
        }
    }

    /// Tells the guest what became of earlier packets (RFC 5508, REQ-4). Nothing else changes by that.
    fn pass_errors_on(&mut self, common: &mut Common, now: Timestamp) {
        let mut quoted = [0; QUOTED];
        self.socket.clear_error();
        for _ in 0..ERRORS {
            let Some(mut error) = calls::queued_error(self.socket.fd(), &mut quoted) else { return };
            if let Some(to) = self.too_long_for.filter(|to| error.destination == SocketAddrV4::new(*to.ip(), 0)) {
                // Of what did not even leave, the kernel knows no port.
                error.destination = to;
            }
            let (Some(station), Some(icmp)) = (self.station, icmp_error(&error, common.settings.gateway)) else { continue };
            let payload = &mut quoted[..error.quoted];
            let subject = match &self.carrier {
                Carrier::Udp(mapping) if mapping.concerns(error.destination) => Subject::Udp(payload),
                Carrier::Udp(_) => continue,
                Carrier::Echo(_) => {
                    if let Some(identifier) = payload.get_mut(4..6) {
                        identifier.copy_from_slice(&self.inside.port().to_be_bytes());
                    }
                    Subject::Icmp(payload)
                }
            };
            let destination = common.inward(error.destination);
            common.tell(now, station, &icmp, (self.inside, destination), subject);
        }
        self.has_errors = true;
    }

    fn protocol(&self) -> Protocol {
        match self.carrier {
            Carrier::Udp(_) => Protocol::Udp,
            Carrier::Echo(_) => Protocol::Icmp,
        }
    }

    fn bytes(&self) -> (u64, u64) {
        match &self.carrier {
            Carrier::Udp(mapping) => mapping.bytes(),
            Carrier::Echo(mapping) => mapping.bytes(),
        }
    }

    /// When it ends, unless it is a rule's.
    fn deadline(&self) -> Option<Timestamp> {
        let deadline = match &self.carrier {
            Carrier::Udp(mapping) => mapping.deadline(),
            Carrier::Echo(mapping) => mapping.deadline(),
        };
        (!self.forwarded).then_some(deadline)
    }

    fn audit(&self, now: Timestamp, closed: Option<CloseReason>) -> Audit {
        let (from_guest, to_guest) = self.bytes();
        Audit {
            at: now,
            port: self.port,
            protocol: self.protocol(),
            inside: self.inside,
            outside: Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, self.socket.port)),
            remote: self.remote,
            forwarded: self.forwarded,
            closed: closed.map(|reason| Closed { reason, from_guest, to_guest, lasted: now.since(self.since) }),
        }
    }
}

impl Callers {
    fn note(&mut self, now: Timestamp, from: SocketAddrV4) {
        if self.0.len() >= CALLERS && !self.0.contains_key(&from.port()) {
            let oldest = self.0.iter().min_by_key(|(_, (_, last))| *last).map(|(port, _)| *port);
            oldest.map(|port| self.0.remove(&port));
        }
        self.0.insert(from.port(), (*from.ip(), now));
    }

    /// By which address of the loopback somebody has called from this port lately.
    fn find(&self, now: Timestamp, port: u16) -> Option<Ipv4Addr> {
        self.0.get(&port).filter(|(_, last)| now.since(*last) < CALLER_TIMEOUT).map(|(address, _)| *address)
    }
}

/// Sends a datagram whose checksum is only begun, unless its guest wants it finished.
fn send_udp(guests: &mut impl ToGuests, port: PortId, frame: &mut [u8], offload: &Offload) {
    let finished = offload.checksum.filter(|_| !guests.offloads(port).checksum);
    let offload = finished.map_or(*offload, |checksum| {
        complete_checksum(frame, checksum);
        Offload::NONE
    });
    // What a guest has no room for is lost, as on any network; `send` has counted it.
    let _ = guests.send(port, frame, &offload);
}

/// How a packet is to look outside. A guest that traces a route has its own TTL, one less for the router that weft is.
fn marks_of(packet: &GuestPacket<'_>) -> Marks {
    let ttl = packet.ip.ttl.saturating_sub(1).max(1);
    Marks { ttl: (ttl < TTL_TRACED).then_some(ttl), tos: packet.ip.tos, segment: None }
}

fn send_all(guests: &mut impl ToGuests, port: PortId, frames: &[Vec<u8>]) {
    for frame in frames {
        // What a guest has no room for is lost, as on any network; `send` has counted it.
        let _ = guests.send(port, frame, &Offload::NONE);
    }
}

/// What a guest is told of an error; `None` for those that say nothing to it.
fn icmp_error(error: &QueuedError, gateway: Ipv4Addr) -> Option<IcmpError> {
    // No truncation of what matters: no MTU is larger.
    let mtu = error.info.min(u32::from(u16::MAX)) as u16;
    if let Some(from) = error.from {
        let from = if from.is_loopback() { gateway } else { from };
        let mtu = if (error.kind, error.code) == (3, 4) { mtu } else { 0 };
        return Some(IcmpError { from, kind: error.kind, code: error.code, mtu });
    }
    let refusal = match Errno::from_raw_os_error(error.errno) {
        Errno::MSGSIZE => Refusal::FragmentationNeeded { mtu },
        Errno::HOSTUNREACH => Refusal::HostUnreachable,
        Errno::NETUNREACH => Refusal::NetUnreachable,
        _ => return None,
    };
    Some(IcmpError::of_refusal(gateway, refusal))
}
