//! DNS over TCP for the guests of one network (RFC 7766): connections to the gateway's port 53.
//!
//! smoltcp keeps the connections; it gets the guests' segments and gives its own, and there are no other sockets behind it. What a guest can
//! have of it is bounded: connections as long as more are left for others, and in each of them a few queries that wait for their answers, beyond which
//! nothing more is read.
//!
//! A fault in smoltcp must not end weft. So it is stopped at this module's edge: all connections of the network are lost then, and a line in the
//! log says so.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use tracing::error;
use weft_switch::dns::{ClientTransport, DnsClient, TcpFrames, tcp_frame};
use weft_switch::gateway::GatewaySettings;
use weft_switch::{DropReason, Egress, Outgoing, PortId, Station, Timestamp};

const PORT: u16 = 53;
/// The most connections of a network.
const CONNECTIONS_MAX: usize = 64;
/// What is kept of a connection that its guest has not read or that was not read of it, in bytes.
const SEND_BUFFER: usize = 16 * 1024;
const RECEIVE_BUFFER: usize = 4 * 1024;
/// Answers that wait for room in the send buffer, in bytes: one of the longest, and a little more.
const UNSENT_MAX: usize = 80 * 1024;
/// About how many queries of a connection wait for an answer, each of which may be as long as a message can be.
const QUERIES_MAX: usize = 4;
/// How much is read at a time, in bytes: no more than the shortest query with its length, so that few too many are read.
const CHUNK: usize = 14;
/// A connection on which nothing happens for this long is closed (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
const ETHERNET_LEN: usize = 14;
const IPV4_MIN: usize = 20;

/// The connections of one network.
pub(super) struct DnsTcp {
    gateway: GatewaySettings,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    connections: BTreeMap<u64, Connection>,
    listener: Option<SocketHandle>,
    last_connection: u64,
    /// When smoltcp wants to be polled.
    next_poll: Option<Timestamp>,
}

struct Connection {
    handle: SocketHandle,
    station: Station,
    client: SocketAddrV4,
    frames: TcpFrames,
    unsent: VecDeque<u8>,
    /// Queries that wait for an answer.
    waiting: usize,
    /// When something last happened.
    active: Timestamp,
}

/// What came of a segment, or of time.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Queries.
    pub(super) queries: Vec<(DnsClient, Vec<u8>)>,
    /// Connections that are gone.
    pub(super) closed: Vec<u64>,
    /// Frames for guests.
    pub(super) frames: Vec<Outgoing>,
}

impl DnsTcp {
    pub(super) fn new(gateway: GatewaySettings, now: Timestamp, seed: u64) -> Self {
        let mut wire = Wire { mtu: gateway.mtu.into(), ..Wire::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, instant(now));
        interface.update_ip_addrs(|addresses| {
            // There is room for one at least.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(gateway.address), gateway.subnet.prefix_len()));
        });
        Self {
            gateway,
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            connections: BTreeMap::new(),
            listener: None,
            last_connection: 0,
            next_poll: None,
        }
    }

    /// The gateway that it speaks for.
    pub(super) fn gateway(&self) -> &GatewaySettings {
        &self.gateway
    }

    /// Takes a segment from a guest.
    ///
    /// # Errors
    /// [`DropReason::ShareExceeded`] for one that would begin a connection beyond the port's share.
    pub(super) fn receive(
        &mut self,
        now: Timestamp,
        station: Station,
        packet: Vec<u8>,
        progress: &mut Progress,
    ) -> Result<(), DropReason> {
        let Some(client) = endpoint(&packet, 12, 0) else { return Err(DropReason::BadTransport) };
        let known = self.connections.values().any(|connection| connection.client == client);
        if !known && !self.has_room(station.port) {
            return Err(DropReason::ShareExceeded);
        }
        if self.listener.is_none() {
            self.listen();
        }
        self.wire.incoming = Some(packet);
        self.go_on(now, Some((station, client)), progress);
        Ok(())
    }

    /// Sends an answer to a query of a connection, if that is still there.
    pub(super) fn answer(&mut self, now: Timestamp, connection: u64, message: &[u8], progress: &mut Progress) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.waiting = connection.waiting.saturating_sub(1);
            connection.unsent.extend(tcp_frame(message));
            connection.active = now;
            self.go_on(now, None, progress);
        }
    }

    /// Ends a connection on which something came that is not DNS.
    pub(super) fn abort(&mut self, now: Timestamp, connection: u64, progress: &mut Progress) {
        if let Some(connection) = self.connections.get(&connection) {
            self.sockets.get_mut::<Socket<'_>>(connection.handle).abort();
            self.go_on(now, None, progress);
        }
    }

    /// Ends the connections of a port that is gone.
    pub(super) fn forget_port(&mut self, port: PortId) {
        for connection in self.connections.values().filter(|connection| connection.station.port == port) {
            self.sockets.get_mut::<Socket<'_>>(connection.handle).abort();
        }
    }

    /// When [`Self::tick`] wants to be called.
    pub(super) fn next_tick(&self) -> Option<Timestamp> {
        let idle = self.connections.values().map(|connection| connection.active.after(IDLE)).min();
        idle.into_iter().chain(self.next_poll).min()
    }

    /// Repeats what was lost, and closes what is idle.
    pub(super) fn tick(&mut self, now: Timestamp, progress: &mut Progress) {
        for connection in self.connections.values_mut().filter(|connection| now.since(connection.active) >= IDLE) {
            connection.active = now;
            self.sockets.get_mut::<Socket<'_>>(connection.handle).abort();
        }
        self.go_on(now, None, progress);
    }

    /// As many connections for a port as are left for the others.
    fn has_room(&self, port: PortId) -> bool {
        let of_port = self.connections.values().filter(|connection| connection.station.port == port).count();
        let left = CONNECTIONS_MAX.saturating_sub(self.connections.len());
        left > 0 && (of_port == 0 || of_port < left)
    }

    fn listen(&mut self) {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; RECEIVE_BUFFER]), SocketBuffer::new(vec![0; SEND_BUFFER]));
        socket.set_nagle_enabled(false);
        // A new socket can listen.
        let _ = socket.listen(PORT);
        self.listener = Some(self.sockets.add(socket));
    }

    /// Lets smoltcp work until nothing changes any more.
    fn go_on(&mut self, now: Timestamp, from: Option<(Station, SocketAddrV4)>, progress: &mut Progress) {
        let worked = catch_unwind(AssertUnwindSafe(|| self.work(now, from, progress)));
        if worked.is_err() {
            error!("the TCP connections to a network's DNS are lost: a fault in weft, please report it");
            progress.closed.extend(self.connections.keys());
            let seed = self.last_connection ^ self.gateway.mac.as_u64();
            *self = Self { last_connection: self.last_connection, ..Self::new(self.gateway, now, seed) };
        }
    }

    fn work(&mut self, now: Timestamp, from: Option<(Station, SocketAddrV4)>, progress: &mut Progress) {
        // Twice: what was read makes room for answers, and what was written is sent. The rest comes with time, or with the next segment.
        for _ in 0..2 {
            self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
            self.take_new(now, from);
            for (number, connection) in &mut self.connections {
                let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
                connection.write(now, socket);
                connection.read(now, *number, socket, &mut progress.queries);
            }
        }
        self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
        self.send(from, &mut progress.frames);
        let sockets = &mut self.sockets;
        self.connections.retain(|number, connection| {
            let is_open = sockets.get::<Socket<'_>>(connection.handle).is_open();
            if !is_open {
                sockets.remove(connection.handle);
                progress.closed.push(*number);
            }
            is_open
        });
        let next = self.interface.poll_at(instant(now), &self.sockets);
        // Not at once: whatever could be done was done.
        self.next_poll =
            next.map(|next| Timestamp::from_millis(next.total_millis().unsigned_abs()).max(now.after(Duration::from_millis(1))));
    }

    /// A listener that has got a connection is that connection.
    fn take_new(&mut self, now: Timestamp, from: Option<(Station, SocketAddrV4)>) {
        let Some((handle, (station, client))) = self.listener.zip(from) else { return };
        if self.sockets.get::<Socket<'_>>(handle).state() == State::Listen {
            return;
        }
        self.listener = None;
        self.last_connection += 1;
        let connection = Connection {
            handle,
            station,
            client,
            frames: TcpFrames::default(),
            unsent: VecDeque::new(),
            waiting: 0,
            active: now,
        };
        self.connections.insert(self.last_connection, connection);
    }

    /// Puts what smoltcp sends into frames for the guests.
    fn send(&mut self, from: Option<(Station, SocketAddrV4)>, frames: &mut Vec<Outgoing>) {
        for packet in self.wire.outgoing.drain(..) {
            let Some(to) = endpoint(&packet, 16, 2) else { continue };
            let known = self.connections.values().find(|connection| connection.client == to).map(|connection| connection.station);
            // A reset goes to whoever sent what it refuses.
            let Some(station) = known.or(from.filter(|(_, client)| *client == to).map(|(station, _)| station)) else { continue };
            let mut frame = Vec::with_capacity(ETHERNET_LEN + packet.len());
            frame.extend_from_slice(&station.mac.0);
            frame.extend_from_slice(&self.gateway.mac.0);
            frame.extend_from_slice(&[0x08, 0x00]);
            frame.extend_from_slice(&packet);
            frames.push(Outgoing { to: Egress::Port(station.port), frame });
        }
    }
}

impl Connection {
    fn write(&mut self, now: Timestamp, socket: &mut Socket<'_>) {
        while socket.can_send() && !self.unsent.is_empty() {
            let (first, _) = self.unsent.as_slices();
            let Ok(sent @ 1..) = socket.send_slice(first) else { return };
            self.unsent.drain(..sent);
            self.active = now;
        }
        let done = self.waiting == 0 && self.unsent.is_empty();
        // The guest says nothing more, and has all its answers.
        if done && socket.state() == State::CloseWait && !socket.can_recv() {
            socket.close();
        }
    }

    fn read(&mut self, now: Timestamp, number: u64, socket: &mut Socket<'_>, queries: &mut Vec<(DnsClient, Vec<u8>)>) {
        let mut chunk = [0; CHUNK];
        while socket.can_recv() && self.unsent.len() < UNSENT_MAX && self.waiting < QUERIES_MAX {
            let Ok(len @ 1..) = socket.recv_slice(&mut chunk) else { return };
            self.active = now;
            let client = DnsClient { station: self.station, address: self.client, transport: ClientTransport::Tcp(number) };
            let waiting = &mut self.waiting;
            let fed = self.frames.feed(&chunk[..len], |message| {
                *waiting += 1;
                queries.push((client, message.to_vec()));
            });
            if fed.is_err() {
                socket.abort();
            }
        }
    }
}

impl std::fmt::Debug for DnsTcp {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("DnsTcp")
            .field("gateway", &self.gateway)
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

fn instant(now: Timestamp) -> Instant {
    Instant::from_millis(i64::try_from(now.since(Timestamp::default()).as_millis()).unwrap_or(i64::MAX))
}

/// Address and TCP port of an end of an IPv4 packet: at `address` in its header, and at `port` behind it.
fn endpoint(packet: &[u8], address: usize, port: usize) -> Option<SocketAddrV4> {
    let header_len = usize::from(packet.first()? & 0xf) * 4;
    let address: [u8; 4] = packet.get(address..address + 4)?.try_into().ok()?;
    let port: [u8; 2] = packet.get(header_len.max(IPV4_MIN) + port..)?.first_chunk().copied()?;
    Some(SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes(port)))
}

/// What smoltcp takes for a network: at most one packet in, any number out. Those are bounded by the connections' windows.
#[derive(Debug, Default)]
struct Wire {
    mtu: usize,
    incoming: Option<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Incoming(Vec<u8>);
struct OutgoingSlot<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = OutgoingSlot<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, OutgoingSlot<'_>)> {
        Some((Incoming(self.incoming.take()?), OutgoingSlot(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<OutgoingSlot<'_>> {
        Some(OutgoingSlot(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // The gateway has verified what comes in, as far as its sender had filled it in.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for OutgoingSlot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let written = write(&mut packet);
        self.0.push(packet);
        written
    }
}

#[cfg(test)]
#[path = "dns_tcp_tests.rs"]
mod tests;
