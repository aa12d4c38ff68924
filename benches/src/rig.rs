//! A switch whose worker the caller runs, with guests that cost next to nothing: what one frame costs, apart from clocks, caches
//! and whatever else the machine does.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, ScopedJoinHandle};
use std::time::Duration;

use etherparse::PacketBuilder;
use mio::{Events, Poll, Token, Waker};
use tempfile::TempDir;
use weft_dataplane::{
    Dataplane, DataplaneError, HandWorker, NatSettings, NetworkSettings, PortSettings, SocketRole, WatchSettings,
};
use weft_guest::{Guest, GuestError, Header, PreparedReceive, PreparedSend, Shape, feature};
use weft_switch::gateway::GatewaySettings;
use weft_switch::guard::{IpLock, Limit, Protections, StormLimits, Volume};
use weft_switch::vlan::{PortRole, Trunk, VlanId};
use weft_switch::{FdbSettings, MacAddr};

use crate::load::traffic::station;

/// The token of the owner's waker.
const WAKE: Token = Token(0);
/// Descriptors of each ring.
pub const RING_SIZE: u16 = 1024;
/// Frames that a worker takes from a ring in a round.
const BATCH: u16 = 32;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0x77, 0, 0, 0, 1]);
/// More than any frame has.
const WHOLE: usize = 1 << 20;
/// Bytes of the headers in front of what a datagram carries.
const UDP_HEADERS_LEN: usize = 42;

/// What is to be forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Guests; each sends to all others in turn.
    pub guests: usize,
    /// Bytes of a frame, without FCS.
    pub frame_len: usize,
    /// Stations behind each port.
    pub stations: u16,
    /// Descriptors over which each frame is spread.
    pub pieces: u16,
    /// Bytes of a receive buffer.
    pub buffer_len: u32,
    /// Features that the guests negotiate, beside `VERSION_1`.
    pub features: u64,
    /// Their network has a gateway, which none of the frames is for.
    pub gateway: bool,
    /// What their ports are to VLANs.
    pub vlans: Vlans,
    /// It has a NAT as well, and all frames are datagrams for somebody behind that.
    pub nat: bool,
    /// Their ports have every protection there is, with limits that are not reached.
    pub protected: bool,
    /// The ports of the first [`Self::watched_ports`] are captured, with a filter that is about none of the frames.
    pub watched: Option<&'static str>,
    /// How many ports are captured then, from the first on.
    pub watched_ports: usize,
}

/// What the ports of all guests are to VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vlans {
    /// Nothing: their network has none.
    None,
    /// Access ports of one.
    Access,
    /// The first one is an access port, the others are trunks.
    ToTrunk,
    /// The first one is a trunk, the others are access ports.
    FromTrunk,
}

/// The VLAN of all frames.
const VLAN: u16 = 100;

impl Load {
    /// Frames of 60 bytes from one station to another, each in one piece, through split rings.
    pub const PLAIN: Self = Self {
        guests: 2,
        frame_len: 60,
        stations: 1,
        pieces: 1,
        buffer_len: 2048,
        features: feature::MRG_RXBUF,
        gateway: false,
        vlans: Vlans::None,
        nat: false,
        protected: false,
        watched: None,
        watched_ports: 1,
    };

    /// What the port of a guest is to VLANs.
    fn role(&self, guest: usize) -> Option<PortRole> {
        let vlan = VlanId::new(VLAN)?;
        let is_trunk = match (self.vlans, guest) {
            (Vlans::None, _) => return None,
            (Vlans::Access, _) => false,
            (Vlans::ToTrunk, number) => number != 0,
            (Vlans::FromTrunk, number) => number == 0,
        };
        let trunk = || PortRole::Trunk(Trunk { allowed: [vlan].into_iter().collect(), native: None });
        Some(if is_trunk { trunk() } else { PortRole::Access(vlan) })
    }

    /// A frame as a guest sends it, with a tag where its port is a trunk.
    fn frame(&self, guest: usize, destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
        let tag = match self.role(guest) {
            Some(PortRole::Trunk(_)) => &[0x81, 0, 0, VLAN as u8][..],
            _ => &[],
        };
        // IPv4 with TCP where that is looked into; else of the EtherType for local experiments (IEEE 802-2014, 9.2.4).
        let total_len = ((self.frame_len - 14) as u16).to_be_bytes();
        let ip =
            [&[8, 0, 0x45, 0][..], &total_len, &[0, 0, 0, 0, 64, 6, 0, 0], &address(guest).octets(), &[10, 77, 0, 99]].concat();
        let rest = if self.protected || self.watched.is_some() { &ip[..] } else { &[0x88, 0xb5] };
        let mut frame = [&destination, &source, tag, rest].concat();
        frame.resize(self.frame_len, 0);
        frame
    }

    /// What the guest behind a port may send.
    fn protections(&self, guest: usize) -> Protections {
        if !self.protected {
            return Protections::NONE;
        }
        let volume = Some(Volume::Frames(1000));
        Protections {
            macs: Some(vec![MacAddr(station(guest, 0))]),
            ips: Some(IpLock { listed: vec![address(guest).into()], leased: true }),
            dhcp_server: false,
            router: false,
            storm: StormLimits { broadcast: volume, multicast: volume, unknown: volume },
            limit_in: Some(Limit { bits: 100_000_000_000, burst: Limit::MAX_BURST }),
            ..Protections::NONE
        }
    }

    fn shape(&self) -> Shape {
        // The virtio-net header alone, then as many parts as are left, which is how drivers cut frames.
        let len = self.frame_len / usize::from(self.pieces).saturating_sub(1).max(1);
        match self.pieces {
            1 => Shape::one(),
            2 => Shape::header_apart(LONG_HEADER),
            pieces => Shape::pieces(&[&[LONG_HEADER][..], &vec![len; usize::from(pieces) - 2]].concat()),
        }
    }
}

/// Bytes of the virtio-net header of every guest here.
const LONG_HEADER: usize = 12;

/// Guests on a switch.
pub struct Rig {
    worker: HandWorker,
    guests: Vec<Guest>,
    sends: Vec<PreparedSend>,
    receives: Vec<PreparedReceive>,
    owner: Owner,
    /// Where datagrams go that leave through the NAT. Nobody reads them, so most are thrown away by the kernel.
    _sink: UdpSocket,
}

/// The thread that owns the dataplane, and the directory of its sockets.
struct Owner {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    sockets: TempDir,
}

/// Why there is no rig.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The switch refused.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// A guest and the switch don't understand each other.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl Rig {
    /// Starts a switch with a guest on each port. Every station is learned.
    ///
    /// # Errors
    /// When the operating system or the switch refuses something.
    pub fn new(load: &Load) -> Result<Self, RigError> {
        let (owner, mut worker) = Owner::start(load)?;
        let sink = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = sink.local_addr()?.port();
        let (guests, sends, receives) = polled(&mut worker, || plug_in(&owner, load, port))?;
        let mut rig = Self { worker, guests, sends, receives, owner, _sink: sink };
        if load.nat {
            // What counts is the way of a datagram, and not how its mapping begins.
            let rounds = rig.offer(BATCH)?;
            for _ in 0..rounds {
                rig.poll();
            }
        }
        Ok(rig)
    }

    /// Offers this many frames, the same number from each guest that sends; returns the rounds that it takes to forward them. With
    /// two guests only the first one sends.
    ///
    /// # Errors
    /// When the switch broke a ring.
    ///
    /// # Panics
    /// When the rings have not as much room.
    pub fn offer(&mut self, count: u16) -> Result<u16, RigError> {
        // No truncation: a handful of guests.
        let each = count / self.sends.len() as u16;
        for (send, guest) in self.sends.iter_mut().zip(&mut self.guests) {
            assert_eq!(send.send(guest, each)?, each, "the ring has room");
        }
        Ok(each.div_ceil(BATCH))
    }

    /// One round of the worker: up to 32 frames of each guest. True if one moved.
    pub fn poll(&mut self) -> bool {
        self.worker.poll()
    }

    /// Takes what has arrived, and offers the buffers again; returns how many there were.
    ///
    /// # Errors
    /// When the switch broke a ring.
    pub fn take(&mut self) -> Result<u16, RigError> {
        let received = self.receives.iter_mut().zip(&mut self.guests).map(|(receive, guest)| receive.receive(guest));
        Ok(received.sum::<Result<u16, _>>()?)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let Self { worker, owner, .. } = self;
        owner.stop.store(true, Ordering::Relaxed);
        let Some(thread) = owner.thread.take() else { return };
        // Without the wake-up it ends when its next tick is due.
        let _ = owner.waker.wake();
        // Ports leave only when the worker has seen it.
        while !thread.is_finished() {
            worker.poll();
        }
        // It has nothing to say, and a panic has been printed.
        let _ = thread.join();
    }
}

impl Owner {
    fn start(load: &Load) -> Result<(Self, HandWorker), RigError> {
        let sockets = tempfile::tempdir()?;
        let mut poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let (mut dataplane, mut worker) = Dataplane::start_by_hand(poll.registry())?;
        let capture = polled(&mut worker, || {
            let fdb = FdbSettings::new(16_384, Duration::from_secs(300));
            let network = dataplane.add_network(NetworkSettings {
                gateway: (load.gateway || load.nat).then(|| gateway(load.nat)),
                nat: load.nat.then(NatSettings::default),
                ..NetworkSettings::from(fdb)
            })?;
            let mut ports = Vec::new();
            for number in 0..load.guests {
                ports.push(dataplane.add_port(PortSettings {
                    name: format!("guest{number}"),
                    network,
                    vlan: load.role(number),
                    protections: load.protections(number),
                    lines: weft_switch::line::Lines::NONE,
                    socket: sockets.path().join(number.to_string()),
                    role: SocketRole::Server,
                    queue_pairs: 1,
                    mac: MacAddr(station(number, 0)),
                    mtu: 1500,
                })?);
            }
            let filter = load.watched.map(|filter| filter.parse().expect("the filter in the source is a good one"));
            let watch = |filter| WatchSettings {
                ports: ports[..load.watched_ports].to_vec(),
                inward: true,
                outward: true,
                filter,
                ..WatchSettings::default()
            };
            Ok::<_, RigError>(filter.map(|filter| dataplane.capture(watch(filter), WHOLE)).transpose()?)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_capacity(16);
            // It lasts as long as this does.
            let _capture = capture;
            while !stopped.load(Ordering::Relaxed) {
                let due = dataplane.tick();
                if poll.poll(&mut events, Some(due)).is_ok() {
                    events.iter().filter(|event| event.token() != WAKE).for_each(|event| dataplane.handle(event));
                }
            }
        });
        Ok((Self { stop, waker, thread: Some(thread), sockets }, worker))
    }
}

/// The IPv4 address of a guest.
fn address(guest: usize) -> Ipv4Addr {
    // No truncation: a handful of guests.
    Ipv4Addr::new(10, 77, 0, 10 + guest as u8)
}

fn gateway(host_access: bool) -> GatewaySettings {
    GatewaySettings {
        subnet: "10.77.0.0/24".parse().expect("the subnet in the source is a good one"),
        address: GATEWAY,
        mac: GATEWAY_MAC,
        mtu: 1500,
        dhcp: true,
        dns: true,
        host_access,
    }
}

/// Runs something that waits for the worker, while another thread polls it.
fn polled<T, E: From<RigError>>(worker: &mut HandWorker, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let poller: ScopedJoinHandle<'_, ()> = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                worker.poll();
                std::thread::yield_now();
            }
        });
        let result = act();
        done.store(true, Ordering::Relaxed);
        // A panic has been printed, and what hangs on it fails next.
        let _ = poller.join();
        result
    })
}

type Plugged = (Vec<Guest>, Vec<PreparedSend>, Vec<PreparedReceive>);

fn plug_in(owner: &Owner, load: &Load, port: u16) -> Result<Plugged, RigError> {
    let connect = |number: usize| {
        let builder = Guest::builder(owner.sockets.path().join(number.to_string())).ring_size(RING_SIZE).receive_buffers(0);
        builder.features(feature::VERSION_1 | load.features).connect()
    };
    let mut guests = (0..load.guests).map(connect).collect::<Result<Vec<_>, _>>()?;
    for (from, guest) in guests.iter_mut().enumerate() {
        for number in 0..load.stations {
            guest.send(&load.frame(from, [0xff; 6], station(from, number)))?;
        }
        guest.flush()?;
    }
    for guest in &mut guests {
        guest.stop()?;
        guest.reset()?;
        (0..2).try_for_each(|ring| guest.start_ring(ring))?;
        guest.session().features()?;
    }
    let senders = if load.guests == 2 { 1 } else { load.guests };
    let sends = guests.iter_mut().enumerate().take(senders).map(|(from, guest)| prepare_send(from, guest, load, port)).collect();
    let places = |guest: &Guest| (0..RING_SIZE).map(|at| guest.slot(0, at)).collect::<Vec<_>>();
    let receive = |guest: &mut Guest| PreparedReceive::new(guest, 0, load.buffer_len, &places(guest));
    let receives = guests.iter_mut().map(receive).collect::<Result<_, _>>()?;
    Ok((guests, sends, receives))
}

/// A ring full of frames: from each station in turn, to each of the other guests in turn.
fn prepare_send(from: usize, guest: &mut Guest, load: &Load, port: u16) -> PreparedSend {
    let chains = PreparedSend::chains(RING_SIZE, load.pieces);
    let places: Vec<_> = (0..chains).map(|at| guest.slot(1, at)).collect();
    let send = PreparedSend::new(guest, 0, load.frame_len, &load.shape(), &places);
    for chain in 0..chains {
        let to = (from + 1 + usize::from(chain) % (load.guests - 1)) % load.guests;
        let number = chain % load.stations;
        let source = station(from, number);
        let frame = if load.nat { datagram(source, port, load.frame_len) } else { load.frame(from, station(to, number), source) };
        send.write(guest, chain, &Header::default(), &frame);
    }
    send
}

/// A datagram for a port of the host's loopback, which guests reach under the gateway's address.
fn datagram(source: [u8; 6], port: u16, len: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(source, GATEWAY_MAC.0).ipv4([10, 77, 0, 10], GATEWAY.octets(), 64);
    let mut frame = Vec::with_capacity(len);
    let data = vec![0; len - UDP_HEADERS_LEN];
    builder.udp(5000, port).write(&mut frame, &data).expect("a frame can be written to memory");
    frame
}
