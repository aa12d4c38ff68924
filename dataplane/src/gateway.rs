//! The gateway of a network, as workers and the owner share it.
//!
//! # Theory
//!
//! A gateway is a state machine ([`weft_switch::gateway`]) behind one lock. Whichever worker polls the ring from which a frame for it came
//! takes that lock once for all such frames of a batch, and hands the answers to the guests before it lets go, so that
//! they are in order. What the gateway looks at is a private copy of the whole frame; a frame that concerns others as well goes on from that copy.
//!
//! DHCP and DNS are served by the owner. Their messages wait in the gateway's [`Inbox`] until the owner fetches them; what it sends in return goes to
//! the gateway's home worker. What is for the gateway itself or the outside ends in [`GatewayState::receive_local`] and
//! [`GatewayState::receive_outside`].
//!
//! Lock order: a ring from a guest, then one gateway, then rings to guests, one at a time. The owner takes the lock of a gateway, and no other while it
//! has that.

use std::collections::BTreeMap;
use std::mem;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mio::{Events, Waker};
use vmm_sys_util::eventfd::EventFd;
use weft_switch::gateway::{Arrival, Gateway, Heard, LateDrop, Outcome, Packet, Refusal, SCREENED_LEN, Screen};
use weft_switch::vlan::{behind_priority_tags, is_priority_tag};
use weft_switch::{
    DropReason, Egress, EthernetHeader, NetworkId, Offload, Outgoing, PortId, SegmentKind, Station, TAG_LEN, Timestamp,
    UdpDatagram, is_fragment,
};

use crate::from_guest::{Batch, Frame};
use crate::lane::Lane;
use crate::memory::Segment;
use crate::nat::{Disposition, Engine, GuestPacket, GuestRings};
use crate::snapshot::Snapshot;
use crate::vlan::Stamp;

/// The most memory for messages that wait for the owner, in bytes; about half of it for one port.
const INBOX_BYTES: usize = 256 << 10;
/// As much of a frame as the gateway has to see of one for the outside: Ethernet, and the longest headers of IPv4 and TCP.
const HEAD_LEN: usize = EthernetHeader::LEN + 60 + GuestPacket::HEADER_LEN;
/// What a message costs beside its payload, in bytes, about.
const MESSAGE_COST: usize = 256;
/// How long after an ARP probe claims of its address are reported.
const PROBE_LASTS: Duration = Duration::from_secs(2);

/// Something that came to a gateway and is for one of its services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceMessage {
    /// A message for the DHCP server.
    Dhcp(UdpDatagram<'static>),
    /// A query for the DNS forwarder.
    Dns(UdpDatagram<'static>),
    /// A TCP segment for the DNS forwarder.
    DnsTcp {
        /// Who sent it.
        station: Station,
        /// The whole IPv4 packet. Its transport checksum was verified, or was left to us.
        packet: Vec<u8>,
    },
    /// Somebody has an address that was probed.
    Heard(Heard),
}

/// Where the data of a packet are.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// In the buffers of a frame, unless the packet came in fragments or behind tags.
    in_buffers: Option<(&'a Batch, &'a Frame)>,
    /// What is left to do about it.
    offload: Offload,
}

/// A frame in weft's own memory that goes to guests.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) to: Receivers,
    /// Who sent it, if it came from a guest.
    pub(crate) from: Option<PortId>,
    pub(crate) frame: Vec<u8>,
    pub(crate) offload: Offload,
    /// What was found out about it, if it came from a guest on a network with VLANs.
    pub(crate) stamp: Option<Stamp>,
}

/// Which ports of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Receivers {
    One(PortId),
    These(Box<[PortId]>),
    All,
    AllBut(PortId),
}

/// What becomes of a frame that the gateway has seen.
#[derive(Debug)]
pub(crate) enum Passage {
    /// The gateway has dealt with it.
    Taken,
    /// It concerns others as well; this is the copy that the gateway has checked, with what is left to do about it.
    On(Vec<u8>, Offload),
    Dropped(DropReason),
}

/// A gateway as a snapshot names it.
#[derive(Clone, Debug)]
pub(crate) struct GatewayLink {
    pub(crate) screen: Screen,
    /// The worker that sends what does not answer a guest's frame at once.
    pub(crate) home: usize,
    pub(crate) shared: Arc<SharedGateway>,
}

/// What there is of a gateway.
#[derive(Debug)]
pub(crate) struct SharedGateway {
    state: Mutex<GatewayState>,
    mail: Arc<Mail>,
    has_mail: AtomicBool,
    /// When the engine of the NAT is to be looked after, in milliseconds; the largest number if it isn't.
    nat_deadline: AtomicU64,
    /// The engine has sockets.
    nat_in_use: AtomicBool,
    /// Wakes the home worker.
    home: OnceLock<Arc<Waker>>,
}

/// Tells the owner that messages wait.
#[derive(Debug)]
pub(crate) struct Mail {
    waiting: AtomicBool,
    event: Arc<EventFd>,
}

#[derive(Debug)]
pub(crate) struct GatewayState {
    pub(crate) gateway: Gateway,
    inbox: Inbox,
    /// The addresses that were probed, and until when claims of them are reported.
    probed: BTreeMap<Ipv4Addr, Timestamp>,
    /// Kept for their memory: the private copy of the frame at hand, and what answers it.
    scratch: Vec<u8>,
    answers: Vec<Outgoing>,
    /// The way outside, if there is one.
    pub(crate) nat: Option<Box<Engine>>,
    /// Packets that had come in fragments, until the engine has done with them.
    kept: Vec<Vec<u8>>,
    /// Where the data of a packet are.
    pieces: Vec<Segment>,
}

/// Messages that wait for the owner, in bounded memory: a port can have as much of it as stays free.
#[derive(Debug, Default)]
struct Inbox {
    messages: Vec<ServiceMessage>,
    bytes: usize,
    by_port: BTreeMap<PortId, usize>,
}

impl Mail {
    pub(crate) fn new(event: Arc<EventFd>) -> Self {
        Self { waiting: AtomicBool::new(false), event }
    }

    /// True if messages wait since this was last asked.
    pub(crate) fn take(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) && self.waiting.swap(false, Ordering::Acquire)
    }

    fn announce(&self) {
        if !self.waiting.swap(true, Ordering::Release) {
            // Can't fail while the owner lives, and without it nobody wants to know.
            let _ = self.event.write(1);
        }
    }
}

impl SharedGateway {
    pub(crate) fn new(gateway: Gateway, mail: Arc<Mail>) -> Arc<Self> {
        let state = GatewayState {
            gateway,
            inbox: Inbox::default(),
            probed: BTreeMap::new(),
            scratch: Vec::new(),
            answers: Vec::new(),
            nat: None,
            kept: Vec::new(),
            pieces: Vec::new(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            mail,
            has_mail: AtomicBool::new(false),
            nat_deadline: AtomicU64::new(u64::MAX),
            nat_in_use: AtomicBool::new(false),
            home: OnceLock::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, GatewayState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the owner know of what waits, if anything does.
    pub(crate) fn announce_mail(&self, state: &GatewayState) {
        if !state.inbox.messages.is_empty() && !self.has_mail.swap(true, Ordering::Release) {
            self.mail.announce();
        }
    }

    /// Who is to be woken when the engine has something to do.
    pub(crate) fn set_home(&self, home: Arc<Waker>) {
        // A gateway has one home for all its life.
        let _ = self.home.set(home);
    }

    /// When the engine of the NAT is to be looked after.
    pub(crate) fn nat_deadline(&self) -> Option<Timestamp> {
        Some(self.nat_deadline.load(Ordering::Relaxed)).filter(|at| *at != u64::MAX).map(Timestamp::from_millis)
    }

    /// True if events of the engine's sockets may come.
    pub(crate) fn nat_in_use(&self) -> bool {
        self.nat_in_use.load(Ordering::Relaxed)
    }

    /// Notes what the engine has still to do. Whoever isn't the home worker has to wake that.
    pub(crate) fn note_nat(&self, now: Timestamp, state: &GatewayState, is_home: bool) {
        let deadline = state.nat.as_ref().and_then(|nat| nat.deadline(now));
        let millis = deadline.map_or(u64::MAX, |at| at.since(Timestamp::default()).as_millis() as u64);
        self.nat_in_use.store(state.nat.as_ref().is_some_and(|nat| nat.is_in_use()), Ordering::Relaxed);
        if millis < self.nat_deadline.swap(millis, Ordering::Relaxed)
            && !is_home
            && let Some(home) = self.home.get()
            && let Err(error) = home.wake()
        {
            tracing::error!(%error, "cannot wake a worker");
        }
    }

    /// Takes what waits for the owner.
    pub(crate) fn take_mail(&self) -> Vec<ServiceMessage> {
        if !self.has_mail.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut state = self.lock();
        self.has_mail.store(false, Ordering::Release);
        mem::take(&mut state.inbox).messages
    }
}

impl GatewayLink {
    /// What a glance at a frame says.
    pub(crate) fn interest(&self, batch: &Batch, frame: &Frame) -> weft_switch::gateway::Interest {
        let mut bytes = [0; SCREENED_LEN];
        let len = bytes.len().min(frame.len);
        bytes[..EthernetHeader::LEN].copy_from_slice(&frame.header);
        let copied = batch.payload(frame).read(&mut bytes[EthernetHeader::LEN..len]);
        debug_assert!(copied, "a frame has the length that was counted");
        self.screen.interest(&bytes[..len])
    }
}

impl GatewayState {
    /// Takes a frame from `port`; what is to be sent is added to `out`.
    pub(crate) fn receive(
        &mut self,
        now: Timestamp,
        port: PortId,
        batch: &Batch,
        frame: &Frame,
        out: &mut Vec<Dispatch>,
    ) -> Passage {
        let checksum_pending = frame.offload.checksum.is_some();
        let mut answers = mem::take(&mut self.answers);
        let mut head = [0; HEAD_LEN];
        if self.nat.is_some() && self.is_for_outside(batch, frame, &mut head) {
            let head = &head[..HEAD_LEN.min(frame.len)];
            let arrival = Arrival { port, frame: head, checksum_pending };
            let passage = match self.gateway.handle_beginning(now, arrival, frame.len, &mut answers) {
                Outcome::Outside(packet) => self.receive_outside(
                    now,
                    &packet,
                    Place { in_buffers: Some((batch, frame)), offload: frame.offload },
                    &mut answers,
                ),
                Outcome::Drop(reason) => Passage::Dropped(reason),
                // Nothing else becomes of such a packet.
                _ => Passage::Taken,
            };
            out.extend(answers.drain(..).map(Dispatch::from));
            self.answers = answers;
            return passage;
        }
        let mut bytes = mem::take(&mut self.scratch);
        private_copy(batch, frame, &mut bytes);
        let offload = match take_off_priority_tags(&mut bytes, frame.offload) {
            Ok(offload) => offload,
            Err(reason) => {
                (self.scratch, self.answers) = (bytes, answers);
                return Passage::Dropped(reason);
            }
        };
        let place = |packet: &Packet<'_>| {
            // Not put together from fragments.
            let is_whole = bytes.as_ptr_range().contains(&packet.ip.bytes().as_ptr());
            let in_buffers = Some((batch, frame)).filter(|_| is_whole && bytes.len() == frame.len);
            Place { in_buffers, offload: if is_whole { offload } else { Offload::NONE } }
        };
        let outcome = self.gateway.handle(now, Arrival { port, frame: &bytes, checksum_pending }, &mut answers);
        let passage = match outcome {
            Outcome::Done => Some(Passage::Taken),
            Outcome::Drop(reason) => Some(Passage::Dropped(reason)),
            Outcome::NotForGateway => None,
            Outcome::Arp(heard) => {
                if self.probed.get(&heard.address).is_some_and(|until| now <= *until) {
                    // Whoever has its share of messages waiting already can't make an address look used.
                    let _ = self.inbox.push(port, 0, ServiceMessage::Heard(heard));
                }
                None
            }
            Outcome::Dhcp(datagram) => Some(self.deliver(datagram, ServiceMessage::Dhcp)),
            Outcome::Dns(datagram) => Some(self.deliver(datagram, ServiceMessage::Dns)),
            Outcome::DnsTcp(packet) => {
                let (station, packet) = (packet.station, packet.ip.bytes().to_vec());
                let pushed = self.inbox.push(port, packet.len(), ServiceMessage::DnsTcp { station, packet });
                Some(pushed.map_or_else(Passage::Dropped, |()| Passage::Taken))
            }
            Outcome::Local(packet) => Some(self.receive_local(now, &packet, place(&packet), &mut answers)),
            Outcome::Outside(packet) => Some(self.receive_outside(now, &packet, place(&packet), &mut answers)),
            Outcome::Neighbour { to, headers, packet } => {
                // What is to be done to the frame was checked for the whole of it: it keeps what follows the packet.
                let offload = if packet.checksum_pending { offload } else { Offload::NONE };
                let frame = [&headers, &bytes[headers.len()..]].concat();
                out.push(Dispatch { to: Receivers::One(to.port), from: Some(port), frame, offload, stamp: None });
                Some(Passage::Taken)
            }
        };
        out.extend(answers.drain(..).map(Dispatch::from));
        self.answers = answers;
        if let Some(passage) = passage {
            self.scratch = bytes;
            return passage;
        }
        Passage::On(bytes, offload)
    }

    /// TCP or UDP for the gateway's own address that none of its services takes: for the host's loopback, if guests may go there or are being
    /// asked from there.
    fn receive_local(&mut self, now: Timestamp, packet: &Packet<'_>, place: Place<'_>, answers: &mut Vec<Outgoing>) -> Passage {
        let allowed = self.gateway.settings().host_access;
        if self.nat.as_ref().is_some_and(|nat| allowed || nat.is_answer(now, packet)) {
            return self.receive_outside(now, packet, place, answers);
        }
        self.gateway.refuse(now, packet, Refusal::PortUnreachable, answers);
        Passage::Dropped(DropReason::NoListener)
    }

    /// A packet for the outside. Where nothing leads there, its sender is told that it is not allowed (RFC 5508, section 8). `place` is
    /// where its data are.
    fn receive_outside(&mut self, now: Timestamp, packet: &Packet<'_>, place: Place<'_>, answers: &mut Vec<Outgoing>) -> Passage {
        let Some(nat) = &mut self.nat else {
            self.gateway.refuse(now, packet, Refusal::Prohibited, answers);
            return Passage::Dropped(DropReason::Unreachable);
        };
        let ip = *packet.ip.header();
        let len = usize::from(ip.total_len) - usize::from(ip.header_len);
        self.pieces.clear();
        if let Some((batch, frame)) = place.in_buffers {
            batch.pieces_of(frame, EthernetHeader::LEN + usize::from(ip.header_len), len, &mut self.pieces);
        } else {
            self.kept.push(packet.ip.payload().to_vec());
            let kept = self.kept.last().map_or(&[][..], Vec::as_slice);
            self.pieces.push(Segment { ptr: kept.as_ptr().cast_mut(), len: kept.len() });
        }
        let (station, head) = (packet.station, packet.ip.payload());
        let segment = datagram_size(&place.offload);
        match nat.receive(now, &GuestPacket { station, ip, head, pieces: &self.pieces, len, segment }) {
            Disposition::Taken => Passage::Taken,
            Disposition::Drop(reason) => Passage::Dropped(reason),
            Disposition::Refuse(reason, refusal) => {
                self.gateway.refuse(now, packet, refusal, answers);
                Passage::Dropped(reason)
            }
        }
    }

    /// Copies the headers of a frame to `head`. True if they are all that the gateway needs: it is whole and TCP or UDP for the outside.
    fn is_for_outside(&self, batch: &Batch, frame: &Frame, head: &mut [u8; HEAD_LEN]) -> bool {
        let head = &mut head[..HEAD_LEN.min(frame.len)];
        let (link, rest) = head.split_at_mut(EthernetHeader::LEN);
        link.copy_from_slice(&frame.header);
        let copied = batch.payload(frame).read(rest);
        debug_assert!(copied, "a frame has the length that was counted");
        let Some(ip) = rest.first_chunk::<20>() else { return false };
        let destination = Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]);
        let is_fragment = is_fragment(u16::from_be_bytes([ip[6], ip[7]]));
        let settings = self.gateway.settings();
        frame.is_ipv4()
            && link[..6] == settings.mac.0
            && !is_fragment
            && matches!(ip[9], 6 | 17)
            && !settings.subnet.contains(destination)
            && !destination.is_broadcast()
    }

    /// Lets the engine do what is to be done at the end of a batch.
    pub(crate) fn finish_batch(&mut self, now: Timestamp, network: NetworkId, snapshot: &Snapshot, lane: &mut Lane) {
        self.with_nat(network, snapshot, lane, |nat, guests| nat.flush(now, guests));
        self.kept.clear();
    }

    /// Lets the engine serve its sockets.
    pub(crate) fn serve_nat(
        &mut self,
        now: Timestamp,
        network: NetworkId,
        snapshot: &Snapshot,
        lane: &mut Lane,
        events: &Events,
    ) -> bool {
        let mut busy = false;
        self.with_nat(network, snapshot, lane, |nat, guests| {
            events.iter().for_each(|event| nat.ready(now, event));
            busy = nat.poll(now, guests);
        });
        busy
    }

    fn with_nat(
        &mut self,
        network: NetworkId,
        snapshot: &Snapshot,
        lane: &mut Lane,
        work: impl FnOnce(&mut Engine, &mut GuestRings<'_>),
    ) {
        let Some(nat) = &mut self.nat else { return };
        let mut answers = mem::take(&mut self.answers);
        let gateway = &mut self.gateway;
        work(nat, &mut GuestRings { snapshot, network, lane, gateway, answers: &mut answers, reserved: None });
        for frame in answers.drain(..) {
            lane.send(snapshot, network, frame);
        }
        self.answers = answers;
    }

    /// For the next seconds, whoever claims the address is reported.
    pub(crate) fn expect_claims(&mut self, now: Timestamp, address: Ipv4Addr) {
        self.probed.insert(address, now.after(PROBE_LASTS));
    }

    /// Gives up what has waited for too long; what died of it is added to `late`.
    pub(crate) fn tick(&mut self, now: Timestamp, answers: &mut Vec<Outgoing>, late: &mut Vec<LateDrop>) {
        self.gateway.tick(now, answers);
        self.probed.retain(|_, until| now <= *until);
        late.extend(self.gateway.late_drops());
    }

    /// Forgets everything that came from a port which is gone.
    pub(crate) fn forget_port(&mut self, now: Timestamp, port: PortId) {
        self.gateway.forget_port(port);
        self.inbox.forget_port(port);
        if let Some(nat) = &mut self.nat {
            nat.forget(now, Some(port));
        }
    }

    fn deliver(&mut self, datagram: UdpDatagram<'_>, message: impl FnOnce(UdpDatagram<'static>) -> ServiceMessage) -> Passage {
        let (port, len) = (datagram.station.port, datagram.payload.len());
        match self.inbox.push(port, len, message(datagram.into_owned())) {
            Ok(()) => Passage::Taken,
            Err(reason) => Passage::Dropped(reason),
        }
    }
}

impl Inbox {
    fn push(&mut self, port: PortId, len: usize, message: ServiceMessage) -> Result<(), DropReason> {
        let cost = len + MESSAGE_COST;
        let of_port = self.by_port.entry(port).or_default();
        if self.bytes + *of_port + 2 * cost > INBOX_BYTES {
            return Err(DropReason::ServicesBusy);
        }
        *of_port += cost;
        self.bytes += cost;
        self.messages.push(message);
        Ok(())
    }

    /// What it cost is free again when the owner has fetched the rest.
    fn forget_port(&mut self, port: PortId) {
        self.messages.retain(|message| message.port() != port);
    }
}

impl ServiceMessage {
    /// The port from which it came.
    #[must_use]
    pub fn port(&self) -> PortId {
        match self {
            Self::Dhcp(datagram) | Self::Dns(datagram) => datagram.station.port,
            Self::DnsTcp { station, .. } => station.port,
            Self::Heard(heard) => heard.station.port,
        }
    }
}

impl From<Outgoing> for Dispatch {
    fn from(Outgoing { to, frame }: Outgoing) -> Self {
        let to = match to {
            Egress::Port(port) => Receivers::One(port),
            Egress::All => Receivers::All,
        };
        Self { to, from: None, frame, offload: Offload::NONE, stamp: None }
    }
}

/// Bytes of each datagram, if a frame stands for several.
fn datagram_size(offload: &Offload) -> Option<u16> {
    offload.segmentation.filter(|segmentation| segmentation.kind == SegmentKind::Udp).map(|segmentation| segmentation.size)
}

/// The frame as a host sees it. Returns what is left to do about it.
///
/// # Errors
/// [`DropReason::HiddenTag`] for more tags than may be in a row, [`DropReason::BadOffload`] if what is left to do can't be done without them.
fn take_off_priority_tags(frame: &mut Vec<u8>, mut offload: Offload) -> Result<Offload, DropReason> {
    const TYPE: usize = EthernetHeader::LEN - 2;
    let (header, rest) = frame.split_first_chunk::<{ EthernetHeader::LEN }>().ok_or(DropReason::TooShort)?;
    let (ether_type, behind) = behind_priority_tags(u16::from_be_bytes([header[TYPE], header[TYPE + 1]]), rest);
    if is_priority_tag(ether_type, behind) {
        return Err(DropReason::HiddenTag);
    }
    let tags_len = rest.len() - behind.len();
    for _ in 0..tags_len / TAG_LEN {
        offload = offload.without_tag()?;
    }
    frame.drain(TYPE..TYPE + tags_len);
    let fits = tags_len == 0 || frame.first_chunk().is_some_and(|header| offload.fits(header));
    if fits { Ok(offload) } else { Err(DropReason::BadOffload) }
}

/// Copies the whole frame to private memory; it has at most [`weft_switch::MAX_FRAME_LEN`] bytes.
pub(crate) fn private_copy(batch: &Batch, frame: &Frame, bytes: &mut Vec<u8>) {
    bytes.resize(frame.len, 0);
    let (header, payload) = bytes.split_at_mut(EthernetHeader::LEN);
    header.copy_from_slice(&frame.header);
    let copied = batch.payload(frame).read(payload);
    debug_assert!(copied, "a frame has the length that was counted");
}
