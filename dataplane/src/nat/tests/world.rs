//! A guest, its gateway, and the engine between it and the host.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Token};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint, IpListenEndpoint};
use weft_switch::gateway::{Arrival, Gateway, GatewaySettings, Outcome, Packet};
use weft_switch::nat::tcp::TcpSettings;
use weft_switch::nat::udp::UdpSettings;
use weft_switch::{
    DropReason, Egress, Ipv4Packet, MacAddr, Offload, OffloadFeatures, Outgoing, PortId, Station, Timestamp, complete_checksum,
    segment,
};

use super::super::seam::NoRoom;
use super::super::{Disposition, Engine, EngineSettings, GuestPacket, ToGuests};
use crate::memory::Segment;

pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
pub(super) const PORT: PortId = PortId(3);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0x77, 0, 0, 0, 1]);
const GUEST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
/// The guest.
pub(super) const ME: Station = Station { port: PORT, mac: GUEST_MAC };
/// How long a condition is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a guest agreed to, and what its ring is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestKind {
    pub(super) offloads: OffloadFeatures,
    /// Frames that its ring holds before it looks at them.
    pub(super) ring: usize,
    /// Bytes of one of its buffers.
    pub(super) buffer: usize,
    pub(super) mtu: u16,
}

impl Default for GuestKind {
    fn default() -> Self {
        let offloads = OffloadFeatures { checksum: true, tcp4: true, ..OffloadFeatures::default() };
        Self { offloads, ring: 256, buffer: 1526, mtu: 1500 }
    }
}

/// The guest's receive ring: buffers of its own, in which frames come in pieces.
pub(super) struct Ring {
    kind: GuestKind,
    reserved: Option<Vec<u8>>,
    pub(super) frames: VecDeque<Vec<u8>>,
    /// All frames that came, and those that were larger than the MTU.
    pub(super) count: usize,
    pub(super) large: usize,
    pub(super) bytes: usize,
    pub(super) dropped: usize,
    /// How often there was no room.
    pub(super) full: usize,
    /// Frames of the guest's own that were dropped after all.
    pub(super) late: Vec<(DropReason, u64)>,
    pub(super) present: bool,
}

impl Ring {
    fn deliver(&mut self, frame: Vec<u8>, offload: &Offload) {
        assert!(self.kind.offloads.cover(offload), "{offload:?}");
        self.count += 1;
        self.bytes += frame.len();
        match (offload.checksum, offload.segmentation) {
            (Some(checksum), Some(segmentation)) => {
                self.large += 1;
                let frames = &mut self.frames;
                let push = |part: &[u8]| {
                    frames.push_back(part.to_vec());
                    true
                };
                assert_eq!(segment(&frame, checksum, segmentation, &mut Vec::new(), push), Ok(0));
            }
            (Some(checksum), None) => {
                let mut frame = frame;
                complete_checksum(&mut frame, checksum);
                self.frames.push_back(frame);
            }
            (None, _) => self.frames.push_back(frame),
        }
        let most = 14 + usize::from(self.kind.mtu);
        assert!(self.frames.back().is_none_or(|frame| frame.len() <= most), "larger than the MTU");
    }
}

impl ToGuests for Ring {
    fn offloads(&mut self, port: PortId) -> OffloadFeatures {
        assert_eq!(port, PORT);
        self.kind.offloads
    }

    fn reserve(&mut self, port: PortId, len: usize, pieces: &mut Vec<Segment>) -> Result<usize, NoRoom> {
        assert_eq!((port, pieces.len()), (PORT, 0));
        assert!(self.reserved.is_none());
        if !self.present {
            return Err(NoRoom::Never);
        }
        if self.frames.len() >= self.kind.ring {
            self.full += 1;
            return Err(NoRoom::Full);
        }
        let mut bytes = vec![0; len];
        pieces.extend(bytes.chunks_mut(self.kind.buffer).map(|piece| Segment { ptr: piece.as_mut_ptr(), len: piece.len() }));
        self.reserved = Some(bytes);
        Ok(len)
    }

    fn wait_for_room(&mut self, _: PortId, _: &Arc<Registry>, _: Token) -> Option<bool> {
        None
    }

    fn commit(&mut self, headers: &[u8], len: usize, offload: &Offload) {
        let mut bytes = self.reserved.take().unwrap();
        bytes[..headers.len()].copy_from_slice(headers);
        bytes.truncate(len);
        self.deliver(bytes, offload);
    }

    fn cancel(&mut self) {
        assert!(self.reserved.take().is_some());
    }

    fn count_drop(&mut self, port: PortId, reason: DropReason, frames: u64) {
        assert_eq!(port, PORT);
        self.late.push((reason, frames));
    }

    fn station(&mut self, _now: Timestamp, address: Ipv4Addr) -> Option<Station> {
        (address == GUEST).then_some(Station { port: PORT, mac: GUEST_MAC })
    }

    fn send(&mut self, port: PortId, frame: &[u8], offload: &Offload) -> Result<(), NoRoom> {
        assert_eq!(port, PORT);
        if self.frames.len() >= self.kind.ring {
            self.dropped += 1;
            return Err(NoRoom::Full);
        }
        self.deliver(frame.to_vec(), offload);
        Ok(())
    }
}

/// The guest's network card, as its stack sees it.
struct Card {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

struct ToSend<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, ToSend<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((Received(frame), ToSend(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<ToSend<'_>> {
        (self.outgoing.len() < 64).then_some(ToSend(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

/// A guest on a network with a gateway that lets it reach the host.
pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) ring: Ring,
    pub(super) sockets: SocketSet<'static>,
    gateway: Gateway,
    poll: Poll,
    events: Events,
    start: Instant,
    card: Card,
    interface: Interface,
    /// The next packet stands for several datagrams of this size.
    pub(super) segment: Option<u16>,
    /// Bytes of each buffer in which the guest's packets lie; else they are in two.
    pub(super) piece: Option<usize>,
    /// The most bytes that it got in one round of the engine's.
    pub(super) most_at_once: usize,
    /// The guest does not look at its ring.
    pub(super) paused: bool,
    /// What became of packets that the engine did not take.
    pub(super) refused: Vec<Disposition>,
    next_port: u16,
}

pub(super) fn settings(mtu: u16) -> EngineSettings {
    EngineSettings {
        subnet: "10.77.0.0/24".parse().unwrap(),
        gateway: GATEWAY,
        gateway_mac: GATEWAY_MAC,
        host_access: true,
        mtu,
        tcp: TcpSettings { linger: Duration::from_millis(50), ..TcpSettings::new(mtu) },
        udp: UdpSettings::default(),
        echo_timeout: weft_switch::nat::echo::TIMEOUT,
        connections: 4096,
        mappings: 256,
        round_bytes: usize::MAX,
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(GuestKind::default(), settings(1500))
    }

    pub(super) fn with(kind: GuestKind, settings: EngineSettings) -> Self {
        let gateway = Gateway::new(GatewaySettings {
            subnet: settings.subnet,
            address: GATEWAY,
            mac: GATEWAY_MAC,
            mtu: kind.mtu,
            dhcp: false,
            dns: false,
            host_access: true,
        });
        let poll = Poll::new().unwrap();
        let engine = Engine::new(settings, poll.registry().try_clone().unwrap());
        let mut card = Card { incoming: VecDeque::new(), outgoing: VecDeque::new(), mtu: kind.mtu.into() };
        let config = Config::new(EthernetAddress(GUEST_MAC.0).into());
        let mut interface = Interface::new(config, &mut card, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Self {
            engine,
            ring: Ring {
                kind,
                reserved: None,
                frames: VecDeque::new(),
                count: 0,
                large: 0,
                bytes: 0,
                dropped: 0,
                full: 0,
                late: Vec::new(),
                present: true,
            },
            sockets: SocketSet::new(Vec::new()),
            gateway: gateway.unwrap(),
            poll,
            events: Events::with_capacity(256),
            start: Instant::now(),
            card,
            interface,
            segment: None,
            piece: None,
            most_at_once: 0,
            paused: false,
            refused: Vec::new(),
            next_port: 40_000,
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_millis(1 + self.start.elapsed().as_millis() as u64)
    }

    /// One round of everything.
    pub(super) fn round(&mut self) {
        let now = self.now();
        if !self.paused {
            self.card.incoming.extend(self.ring.frames.drain(..));
        }
        let time = smoltcp::time::Instant::from_millis(self.start.elapsed().as_millis() as i64);
        self.interface.poll(time, &mut self.card, &mut self.sockets);
        let frames: Vec<_> = self.card.outgoing.drain(..).collect();
        for batch in frames.chunks(32) {
            for frame in batch {
                self.give(now, frame);
            }
            self.engine.flush(now, &mut self.ring);
        }
        self.poll.poll(&mut self.events, Some(Duration::from_micros(if frames.is_empty() { 200 } else { 0 }))).unwrap();
        for event in &self.events {
            assert!(Engine::is_one(event.token()));
            self.engine.ready(now, event);
        }
        let before = self.ring.bytes;
        self.engine.poll(now, &mut self.ring);
        self.most_at_once = self.most_at_once.max(self.ring.bytes - before);
    }

    /// A frame of the guest's, in a place where it stays until the engine has done with it.
    fn give(&mut self, now: Timestamp, frame: &[u8]) {
        let mut out = Vec::new();
        let arrival = Arrival { port: PORT, frame, checksum_pending: false };
        match self.gateway.handle(now, arrival, &mut out) {
            Outcome::Local(packet) | Outcome::Outside(packet) => self.pass(now, &packet, &mut out),
            Outcome::Done | Outcome::Arp(_) | Outcome::NotForGateway => {}
            Outcome::Drop(DropReason::UnsupportedProtocol) => {}
            other => panic!("{other:?}"),
        }
        for Outgoing { to, frame } in out {
            assert!(matches!(to, Egress::Port(PORT) | Egress::All));
            let _ = self.ring.send(PORT, &frame, &Offload::NONE);
        }
    }

    /// A packet of the guest's that its stack would not send.
    pub(super) fn give_ip(&mut self, protocol: u8, destination: Ipv4Addr, payload: &[u8]) {
        self.give_from(ME, GUEST, protocol, destination, payload);
    }

    /// The same from somebody else, or with an address that is not the guest's.
    pub(super) fn give_from(&mut self, station: Station, source: Ipv4Addr, protocol: u8, destination: Ipv4Addr, payload: &[u8]) {
        self.give_batch(station, source, protocol, destination, &[payload]);
    }

    /// Several of them in one batch.
    pub(super) fn give_batch(
        &mut self,
        station: Station,
        source: Ipv4Addr,
        protocol: u8,
        destination: Ipv4Addr,
        payloads: &[&[u8]],
    ) {
        let now = self.now();
        let packets: Vec<_> = payloads.iter().map(|payload| ip_packet(source, protocol, destination, payload)).collect();
        for bytes in &packets {
            let packet = Packet { station, ip: Ipv4Packet::parse(bytes).unwrap(), checksum_pending: false };
            self.pass(now, &packet, &mut Vec::new());
        }
        self.engine.flush(now, &mut self.ring);
    }

    fn pass(&mut self, now: Timestamp, packet: &Packet<'_>, out: &mut Vec<Outgoing>) {
        let bytes = packet.ip.payload();
        // In two pieces, as a driver may have it, or in many.
        let (one, other) = bytes.split_at(bytes.len() / 3);
        let pieces = self.piece.map_or_else(|| vec![one, other], |len| bytes.chunks(len).collect());
        let pieces: Vec<_> = pieces.iter().map(|piece| Segment { ptr: piece.as_ptr().cast_mut(), len: piece.len() }).collect();
        let (station, ip, len) = (packet.station, *packet.ip.header(), bytes.len());
        let disposition = self
            .engine
            .receive(now, &GuestPacket { station, ip, head: bytes, pieces: &pieces, len, segment: self.segment.take() });
        if let Disposition::Refuse(_, refusal) = disposition {
            self.gateway.refuse(now, packet, refusal, out);
        }
        if disposition != Disposition::Taken {
            self.refused.push(disposition);
        }
    }

    /// Goes on until `done` says so.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
            self.round();
        }
    }

    /// A connection of the guest's under way to a port of the host's loopback.
    pub(super) fn connect(&mut self, port: u16) -> SocketHandle {
        self.next_port += 1;
        self.connect_from(self.next_port, port)
    }

    pub(super) fn connect_from(&mut self, from: u16, port: u16) -> SocketHandle {
        self.connect_to(from, SocketAddrV4::new(GATEWAY, port))
    }

    pub(super) fn connect_to(&mut self, from: u16, to: SocketAddrV4) -> SocketHandle {
        let handle = self.sockets.add(tcp_socket(200_000));
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let local = IpListenEndpoint { addr: Some(GUEST.into()), port: from };
        let to = IpEndpoint::new((*to.ip()).into(), to.port());
        socket.connect(self.interface.context(), to, local).unwrap();
        handle
    }

    /// The same, connected, with both ends.
    pub(super) fn connected(&mut self) -> (SocketHandle, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let handle = self.connect(listener.local_addr().unwrap().port());
        listener.set_nonblocking(true).unwrap();
        let mut far = None;
        self.until("a connection", |world| {
            far = far.take().or_else(|| listener.accept().ok());
            far.is_some() && world.tcp(handle).state() == tcp::State::Established
        });
        let far = far.unwrap().0;
        far.set_nonblocking(true).unwrap();
        (handle, far)
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(super) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// A UDP socket of the guest's.
    pub(super) fn udp_socket(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 100_000]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// What a UDP socket of the guest's gets.
    pub(super) fn receive(&mut self, handle: SocketHandle) -> (SocketAddrV4, Vec<u8>) {
        let mut received = None;
        self.until("a datagram", |world| {
            received = world.udp(handle).recv().ok().map(|(data, from)| (endpoint(from.endpoint), data.to_vec()));
            received.is_some()
        });
        received.unwrap()
    }

    /// Lets the guest listen.
    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = tcp_socket(200_000);
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    /// A frame that was not what was looked for.
    pub(super) fn give_back(&mut self, frame: Vec<u8>) {
        self.card.incoming.push_back(frame);
        self.round();
    }

    /// Reads what a frame in the ring is, before the guest does. The guest is paused for that.
    pub(super) fn next_frame(&mut self, what: &str) -> Vec<u8> {
        self.paused = true;
        self.until(what, |world| !world.ring.frames.is_empty());
        self.paused = false;
        self.ring.frames.pop_front().unwrap()
    }
}

fn ip_packet(source: Ipv4Addr, protocol: u8, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = etherparse::Ipv4Header::new(payload.len() as u16, 64, protocol.into(), source.octets(), destination.octets());
    header.unwrap().write(&mut bytes).unwrap();
    bytes.extend_from_slice(payload);
    bytes
}

fn tcp_socket(buffer: usize) -> tcp::Socket<'static> {
    let mut socket = tcp::Socket::new(tcp::SocketBuffer::new(vec![0; buffer]), tcp::SocketBuffer::new(vec![0; buffer]));
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    socket
}

pub(super) fn endpoint(endpoint: IpEndpoint) -> SocketAddrV4 {
    let smoltcp::wire::IpAddress::Ipv4(address) = endpoint.addr;
    SocketAddrV4::new(address, endpoint.port)
}

/// A UDP socket at the far end.
pub(super) fn far_udp(address: &str) -> (UdpSocket, u16) {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// Bytes that can be told apart.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
