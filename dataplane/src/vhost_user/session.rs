//! What a front-end has told us so far, and what follows from it.
//!
//! # Theory
//!
//! A session lives as long as its connection. Its caller hands it one request after another and sends what it returns. It never
//! touches a socket, and reaches the workers only through [`Host`], so that it can be tested with neither.
//!
//! Two things complicate it. First, a ring has two switches: it is *started* by its kick descriptor and stopped by
//! `GET_VRING_BASE`, and it is *enabled* by `SET_VRING_ENABLE`, which QEMU sends before everything else and only once. So
//! the wish is kept beside the ring, whether that runs or not. Second, whatever is acknowledged must be true:
//! [`Host::publish`] returns only when no worker uses what it replaces, and the reply is made after that.
//!
//! Whoever breaks the protocol is disconnected with a reason; nothing is repaired by guessing. A request that was not
//! negotiated is refused without harm if the front-end asked for an answer.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserConfig, VhostUserProtocolFeatures, VhostUserVringState};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::ByteValued;
use weft_switch::{MacAddr, OffloadFeatures};

use super::connection::RawMessage;
use super::descriptor::Received;
use super::message::{self, MessageError, Request, RingDescriptor};
use crate::from_guest::FromGuest;
use crate::memory::{GuestMemory, MAX_REGIONS, MemoryError, RegionSpec};
use crate::ring::{Base, Direction, MAX_RING_SIZE, Ring as Virtring, RingFault, RingFeatures, RingLayout, SetupError};
use crate::snapshot::{RingLink, RunningRings};
use crate::to_guest::ToGuest;
use crate::vhost_port::FrameFeatures;
use crate::workers::WorkerStuck;

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES_BIT: u64 = 1 << 30;
/// The smallest MTU that IPv4 allows (RFC 791); smaller ones are nonsense.
const MIN_MTU: u64 = 68;

/// Every virtio feature that is offered, with its name.
const FEATURES: [(u64, &str); 26] = [
    (1 << VIRTIO_NET_F_CSUM, "CSUM"),
    (1 << VIRTIO_NET_F_GUEST_CSUM, "GUEST_CSUM"),
    (1 << VIRTIO_NET_F_GUEST_TSO4, "GUEST_TSO4"),
    (1 << VIRTIO_NET_F_GUEST_TSO6, "GUEST_TSO6"),
    (1 << VIRTIO_NET_F_GUEST_ECN, "GUEST_ECN"),
    (1 << VIRTIO_NET_F_GUEST_UFO, "GUEST_UFO"),
    (1 << VIRTIO_NET_F_HOST_TSO4, "HOST_TSO4"),
    (1 << VIRTIO_NET_F_HOST_TSO6, "HOST_TSO6"),
    (1 << VIRTIO_NET_F_HOST_ECN, "HOST_ECN"),
    (1 << VIRTIO_NET_F_HOST_UFO, "HOST_UFO"),
    (1 << VIRTIO_NET_F_GUEST_USO4, "GUEST_USO4"),
    (1 << VIRTIO_NET_F_GUEST_USO6, "GUEST_USO6"),
    (1 << VIRTIO_NET_F_HOST_USO, "HOST_USO"),
    (1 << VIRTIO_NET_F_MTU, "MTU"),
    (1 << VIRTIO_NET_F_MAC, "MAC"),
    (1 << VIRTIO_NET_F_MRG_RXBUF, "MRG_RXBUF"),
    (1 << VIRTIO_NET_F_STATUS, "STATUS"),
    (1 << VIRTIO_NET_F_GUEST_ANNOUNCE, "GUEST_ANNOUNCE"),
    (1 << VIRTIO_NET_F_MQ, "MQ"),
    (1 << VIRTIO_RING_F_INDIRECT_DESC, "INDIRECT_DESC"),
    (1 << VIRTIO_RING_F_EVENT_IDX, "EVENT_IDX"),
    (PROTOCOL_FEATURES_BIT, "PROTOCOL_FEATURES"),
    (1 << VIRTIO_F_VERSION_1, "VERSION_1"),
    (1 << VIRTIO_F_RING_PACKED, "RING_PACKED"),
    (1 << VIRTIO_F_IN_ORDER, "IN_ORDER"),
    (1 << VIRTIO_F_RING_RESET, "RING_RESET"),
];

const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::MTU)
    .union(VhostUserProtocolFeatures::RARP)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::STATUS);

/// What a session needs from the outside.
pub(crate) trait Host {
    /// Makes these the port's running rings; returns when no worker uses any other of this port.
    fn publish(&mut self, rings: RunningRings) -> Result<(), WorkerStuck>;
    /// Gives a ring a worker, which is woken whenever it is kicked.
    fn take_in(&mut self, ring: &RingLink<FromGuest>) -> io::Result<()>;
    /// The opposite.
    fn turn_out(&mut self, ring: u64);
    /// Tells the network that this station is now behind this port.
    fn announce(&mut self, station: MacAddr);
    /// Lets go of memory that no worker uses any more, mapped or not: freeing it takes long.
    fn dispose(&mut self, memory: impl Send + 'static);
}

/// What the device is, for the configuration space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) queue_pairs: u16,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u16,
}

/// The front-end broke the protocol, or its wish can't be fulfilled. The connection ends with this reason.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("{0} was not negotiated")]
    NotNegotiated(String),
    #[error("features {0:#x} were not offered")]
    FeaturesNotOffered(u64),
    #[error("the features changed while a ring was running")]
    FeaturesChanged,
    #[error("ring {ring} is beyond the {rings} rings of this port (two for each queue pair)")]
    NoSuchRing { ring: usize, rings: usize },
    #[error("ring {ring}: the size {size} is no number from 1 to {MAX_RING_SIZE}, in a split ring a power of two")]
    RingSize { ring: usize, size: u32 },
    #[error("ring {ring}: {what} while it runs")]
    RingRuns { ring: usize, what: &'static str },
    #[error("ring {ring}: its base {base} has more than 16 bits")]
    RingBase { ring: usize, base: u32 },
    #[error("ring {ring}: {fault}")]
    Ring { ring: usize, fault: RingFault },
    #[error(
        "the guest shares no memory with weft: start it with memory-backend-memfd,share=on (weft qemu-args prints the whole line)"
    )]
    NoMemory,
    #[error("ring {ring} cannot start: {source}")]
    RingSetup { ring: usize, source: SetupError },
    #[error("ring {ring}: the {what} descriptor is no eventfd")]
    NotAnEventFd { ring: usize, what: &'static str },
    #[error("ring {ring}: the {what} descriptor is not usable: {source}")]
    Descriptor { ring: usize, what: &'static str, source: io::Error },
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("{0} is no MTU: it must be from {MIN_MTU} to 65535")]
    Mtu(u64),
    #[error("{0} is no station's address")]
    Station(MacAddr),
    #[error(transparent)]
    Stuck(#[from] WorkerStuck),
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    identity: Identity,
    features: u64,
    protocol_features: u64,
    status: u8,
    guest_mtu: Option<u16>,
    memory: Arc<GuestMemory>,
    rings: Vec<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    layout: RingLayout,
    base: u32,
    /// What `SET_VRING_ENABLE` said last, if it was ever sent.
    enable: Option<bool>,
    kick: Option<Arc<OwnedFd>>,
    call: Option<Arc<OwnedFd>>,
    running: Option<Running>,
}

#[derive(Clone, Debug)]
enum Running {
    FromGuest(Arc<RingLink<FromGuest>>),
    ToGuest(Arc<RingLink<ToGuest>>),
}

/// What to answer.
enum Answer {
    /// Success, said only if the front-end asked for an acknowledgement.
    Done,
    /// Refused without harm, said likewise; a front-end that did not ask is disconnected.
    NotSupported,
    /// A payload that the front-end waits for.
    Payload(Vec<u8>),
}

impl Session {
    pub(crate) fn new(identity: Identity) -> Self {
        let rings = (0..2 * identity.queue_pairs).map(|_| Ring::default()).collect();
        Self { identity, features: 0, protocol_features: 0, status: 0, guest_mtu: None, memory: Arc::default(), rings }
    }

    /// Does what one message asks for; returns the reply to send, if there is one.
    pub(crate) fn handle(&mut self, raw: RawMessage, host: &mut impl Host) -> Result<Option<Vec<u8>>, SessionError> {
        let code = raw.header.code;
        let acknowledge = raw.header.need_reply && self.has_protocol_feature(VhostUserProtocolFeatures::REPLY_ACK);
        let request = Request::parse(code, &raw.payload, raw.fds)?;
        let acknowledgement = |value: u64| Some(message::reply(code, &value.to_le_bytes()));
        match self.obey(request, host)? {
            Answer::Payload(payload) => Ok(Some(message::reply(code, &payload))),
            Answer::Done if acknowledge => Ok(acknowledgement(0)),
            Answer::Done => Ok(None),
            Answer::NotSupported if acknowledge => Ok(acknowledgement(1)),
            Answer::NotSupported => Err(SessionError::NotNegotiated(message::name(code))),
        }
    }

    /// Stops every ring, as it must be done when the connection ends.
    pub(crate) fn end(&mut self, host: &mut impl Host) -> Result<(), WorkerStuck> {
        for ring in &mut self.rings {
            ring.stop(host);
        }
        self.publish(host)
    }

    /// True when frames can pass in both directions.
    pub(crate) fn is_up(&self) -> bool {
        self.rings.iter().take(2).all(|ring| ring.running.as_ref().is_some_and(Running::is_enabled))
    }

    /// True if the ring of this id runs.
    pub(crate) fn runs(&self, ring_id: u64) -> bool {
        self.rings.iter().filter_map(|ring| ring.running.as_ref()).any(|running| running.id() == ring_id)
    }

    /// Index, size and "enabled" of every ring that runs.
    pub(crate) fn running(&self) -> impl Iterator<Item = (u16, u16, bool)> {
        let with_index = self.rings.iter().enumerate();
        with_index.filter_map(|(index, ring)| Some((index as u16, ring.layout.size, ring.running.as_ref()?.is_enabled())))
    }

    /// Names of the features that the driver acknowledged.
    pub(crate) fn feature_names(&self) -> Vec<&'static str> {
        FEATURES.iter().filter(|(bit, _)| self.features & bit != 0).map(|&(_, name)| name).collect()
    }

    /// What `NET_SET_MTU` said, in bytes.
    pub(crate) fn guest_mtu(&self) -> Option<u16> {
        self.guest_mtu
    }

    fn obey(&mut self, request: Request, host: &mut impl Host) -> Result<Answer, SessionError> {
        match request {
            Request::GetFeatures => Ok(number(offered_features())),
            Request::SetFeatures(features) => self.set_features(features),
            Request::SetOwner => Ok(Answer::Done),
            Request::GetProtocolFeatures => Ok(number(PROTOCOL_FEATURES.bits())),
            Request::SetProtocolFeatures(features) => self.set_protocol_features(features),
            Request::GetQueueNum => Ok(number(self.identity.queue_pairs.into())),
            Request::SetMemTable(regions) => {
                let memory = with_regions(GuestMemory::default(), regions, host)?;
                self.set_memory(memory, host)
            }
            Request::GetMaxMemSlots => Ok(number(MAX_REGIONS as u64)),
            Request::AddMemReg(spec, fd) => {
                let memory = with_regions(GuestMemory::clone(&self.memory), vec![(spec, fd)], host)?;
                // All that was shared before still is, so there is nothing to free.
                self.exchange_memory(memory, host).1
            }
            Request::RemMemReg(spec, fd) => {
                // It may come along.
                if let Some(fd) = fd {
                    host.dispose(memory_file(&spec, fd)?);
                }
                self.set_memory(self.memory.without_region(&spec)?, host)
            }
            Request::SetVringNum { ring, size } => self.set_ring_size(ring, size),
            Request::SetVringAddr { ring, descriptors, available, used } => {
                let size = self.ring(ring)?.layout.size;
                self.set_ring_address(ring, RingLayout { size, descriptors, available, used }, host)
            }
            Request::SetVringBase { ring, base } => self.set_ring_base(ring, base),
            Request::GetVringBase { ring } => self.stop_ring(ring, host),
            Request::SetVringKick(kick) => self.start_ring(kick, host),
            Request::SetVringCall(call) => self.set_call(call),
            Request::SetVringErr(err) => {
                self.ring(err.ring)?;
                eventfd(err, "err").map(|_| Answer::Done)
            }
            Request::SetVringEnable { ring, enable } => self.enable_ring(ring, enable, host),
            Request::SendRarp(station) => announce(station, host),
            Request::NetSetMtu(mtu) => self.set_mtu(mtu),
            Request::GetConfig { offset, len } => Ok(self.configuration(offset, len)),
            Request::ResetDevice => self.reset(true, host),
            Request::ResetOwner => self.reset(false, host),
            Request::GetStatus => Ok(number(self.status.into())),
            Request::SetStatus(status) => self.set_status(status, host),
            Request::Unsupported(fds) => {
                fds.into_iter().filter_map(Received::close).for_each(|memory| host.dispose(memory));
                Ok(Answer::NotSupported)
            }
        }
    }

    fn set_features(&mut self, features: u64) -> Result<Answer, SessionError> {
        let unknown = features & !offered_features();
        if unknown != 0 {
            return Err(SessionError::FeaturesNotOffered(unknown));
        }
        // QEMU repeats the same features for each queue pair, while the rings of the first run already.
        if features != self.features && self.rings.iter().any(|ring| ring.running.is_some()) {
            return Err(SessionError::FeaturesChanged);
        }
        self.features = features;
        Ok(Answer::Done)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<Answer, SessionError> {
        let unknown = features & !PROTOCOL_FEATURES.bits();
        if unknown != 0 {
            return Err(SessionError::FeaturesNotOffered(unknown));
        }
        self.protocol_features = features;
        Ok(Answer::Done)
    }

    fn set_memory(&mut self, memory: GuestMemory, host: &mut impl Host) -> Result<Answer, SessionError> {
        let (old, outcome) = self.exchange_memory(memory, host);
        host.dispose(old);
        outcome
    }

    /// Gives the old memory, too.
    fn exchange_memory(&mut self, memory: GuestMemory, host: &mut impl Host) -> (Arc<GuestMemory>, Result<Answer, SessionError>) {
        let old = std::mem::replace(&mut self.memory, Arc::new(memory));
        (old, self.set_up_again(0..self.rings.len(), host))
    }

    fn set_ring_size(&mut self, ring: usize, size: u32) -> Result<Answer, SessionError> {
        let packed = self.has(VIRTIO_F_RING_PACKED);
        let state = self.stopped_ring(ring, "SET_VRING_NUM")?;
        let fits = |size: &u16| (1..=MAX_RING_SIZE).contains(size) && (packed || size.is_power_of_two());
        state.layout.size = u16::try_from(size).ok().filter(fits).ok_or(SessionError::RingSize { ring, size })?;
        Ok(Answer::Done)
    }

    fn set_ring_address(&mut self, ring: usize, layout: RingLayout, host: &mut impl Host) -> Result<Answer, SessionError> {
        let state = self.ring(ring)?;
        let moves = state.running.is_some() && state.layout != layout;
        state.layout = layout;
        if moves { self.set_up_again(ring..ring + 1, host) } else { Ok(Answer::Done) }
    }

    /// A split ring goes on where its used index stands, and its base is only remembered; a packed ring goes on there.
    fn set_ring_base(&mut self, ring: usize, base: u32) -> Result<Answer, SessionError> {
        let packed = self.has(VIRTIO_F_RING_PACKED);
        let state = self.stopped_ring(ring, "SET_VRING_BASE")?;
        if !packed && base > u16::MAX.into() {
            return Err(SessionError::RingBase { ring, base });
        }
        state.base = base;
        Ok(Answer::Done)
    }

    fn start_ring(&mut self, kick: RingDescriptor, host: &mut impl Host) -> Result<Answer, SessionError> {
        let ring = kick.ring;
        self.halt(ring, host)?;
        self.rings[ring].kick = eventfd(kick, "kick")?.map(Arc::new);
        let running = self.set_up(ring)?;
        // Last, because a ring that does not run is not turned out. Only what comes from the guest is looked at.
        if let Running::FromGuest(link) = &running {
            host.take_in(link).map_err(|source| SessionError::Descriptor { ring, what: "kick", source })?;
        }
        self.rings[ring].running = Some(running);
        self.publish(host)?;
        Ok(Answer::Done)
    }

    fn stop_ring(&mut self, ring: usize, host: &mut impl Host) -> Result<Answer, SessionError> {
        self.halt(ring, host)?;
        let state = VhostUserVringState::new(ring as u32, self.rings[ring].base);
        Ok(Answer::Payload(state.as_slice().to_vec()))
    }

    /// Stops a ring if it runs, and notes where it stands.
    fn halt(&mut self, ring: usize, host: &mut impl Host) -> Result<(), SessionError> {
        if let Some(running) = self.ring(ring)?.stop(host) {
            self.publish(host)?;
            self.rings[ring].base = running.position();
        }
        Ok(())
    }

    fn set_call(&mut self, call: RingDescriptor) -> Result<Answer, SessionError> {
        let ring = call.ring;
        self.ring(ring)?;
        let call = eventfd(call, "call")?;
        if let Some(fd) = &call {
            // A full counter must not hold a worker up. See `sys` for a front-end that clears this again.
            let unusable = |source: rustix::io::Errno| SessionError::Descriptor { ring, what: "call", source: source.into() };
            let flags = rustix::fs::fcntl_getfl(fd).map_err(unusable)?;
            rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK).map_err(unusable)?;
        }
        let call = call.map(Arc::new);
        if let Some(running) = &self.rings[ring].running {
            running.set_call(call.clone());
        }
        self.rings[ring].call = call;
        Ok(Answer::Done)
    }

    fn enable_ring(&mut self, ring: usize, enable: bool, host: &mut impl Host) -> Result<Answer, SessionError> {
        let state = self.ring(ring)?;
        state.enable = Some(enable);
        if let Some(running) = &state.running {
            running.set_enabled(enable);
            self.publish(host)?;
        }
        Ok(Answer::Done)
    }

    fn set_mtu(&mut self, mtu: u64) -> Result<Answer, SessionError> {
        let fits = u16::try_from(mtu).ok().filter(|_| mtu >= MIN_MTU);
        self.guest_mtu = Some(fits.ok_or(SessionError::Mtu(mtu))?);
        Ok(Answer::Done)
    }

    /// Part of `struct virtio_net_config` (virtio 1.2, section 5.1.4); zeros where it ends.
    fn configuration(&self, offset: u32, len: usize) -> Answer {
        let mut space = Vec::from(self.identity.mac.0);
        for field in [VIRTIO_NET_S_LINK_UP as u16, self.identity.queue_pairs, self.identity.mtu] {
            space.extend_from_slice(&field.to_le_bytes());
        }
        let rest = space.get(offset as usize..).unwrap_or_default();
        let mut config = VhostUserConfig { offset, size: len as u32, flags: 0 }.as_slice().to_vec();
        config.extend(rest.iter().copied().chain(std::iter::repeat(0)).take(len));
        Answer::Payload(config)
    }

    fn set_status(&mut self, status: u64, host: &mut impl Host) -> Result<Answer, SessionError> {
        self.status = status as u8;
        if self.status == 0 { self.reset(false, host) } else { Ok(Answer::Done) }
    }

    /// Stops every ring; what was negotiated stays. `disable` also forgets which rings were enabled; QEMU does not repeat that
    /// after a status of zero.
    fn reset(&mut self, disable: bool, host: &mut impl Host) -> Result<Answer, SessionError> {
        self.end(host)?;
        if disable {
            self.rings.iter_mut().for_each(|ring| ring.enable = None);
        }
        self.status = 0;
        Ok(Answer::Done)
    }

    /// Sets running rings up anew, on the memory and at the addresses that are valid now. Each is replaced under its own
    /// lock, so at a batch boundary: no worker uses the old memory afterwards, and no frame is lost.
    fn set_up_again(&self, rings: Range<usize>, host: &mut impl Host) -> Result<Answer, SessionError> {
        for ring in rings {
            if let Some(running) = &self.rings[ring].running {
                running.with_ring(|old| {
                    // What the worker has not shown yet would be lost with the old one.
                    old.queue().publish().map_err(|fault| SessionError::Ring { ring, fault })?;
                    *old = self.virtqueue(ring, old.queue().position())?;
                    Ok::<_, SessionError>(())
                })?;
            }
        }
        // A new ring asks for no kicks; the worker may sleep, and has to look and ask again.
        self.publish(host)?;
        Ok(Answer::Done)
    }

    fn virtqueue(&self, ring: usize, position: u32) -> Result<Virtring, SessionError> {
        if self.memory.is_empty() {
            return Err(SessionError::NoMemory);
        }
        let state = &self.rings[ring];
        let features = RingFeatures {
            event_idx: self.has(VIRTIO_RING_F_EVENT_IDX),
            indirect: self.has(VIRTIO_RING_F_INDIRECT_DESC),
            packed: self.has(VIRTIO_F_RING_PACKED),
            in_order: self.has(VIRTIO_F_IN_ORDER),
        };
        let base = Base::new(&self.memory, features, direction(ring), state.call.clone());
        Virtring::new(state.layout, position, base).map_err(|source| SessionError::RingSetup { ring, source })
    }

    fn set_up(&self, ring: usize) -> Result<Running, SessionError> {
        let state = &self.rings[ring];
        let mergeable = self.has(VIRTIO_NET_F_MRG_RXBUF);
        let frames = FrameFeatures {
            long_header: mergeable || self.has(VIRTIO_F_VERSION_1),
            mergeable,
            offloads_from_guest: self.offloads_from_guest(),
            offloads_to_guest: self.offloads_to_guest(),
        };
        let mut virtqueue = self.virtqueue(ring, state.base)?;
        virtqueue.go_on_where_it_stands();
        // Without protocol features there is no SET_VRING_ENABLE, and rings start enabled.
        let enabled = state.enable.unwrap_or(self.features & PROTOCOL_FEATURES_BIT == 0);
        let (index, kick) = (ring as u16, state.kick.clone());
        Ok(match direction(ring) {
            Direction::FromGuest => Running::FromGuest(RingLink::new(index, enabled, kick, FromGuest::new(virtqueue, frames))),
            Direction::ToGuest => Running::ToGuest(RingLink::new(index, enabled, kick, ToGuest::new(virtqueue, frames))),
        })
    }

    fn publish(&self, host: &mut impl Host) -> Result<(), WorkerStuck> {
        let mut rings = RunningRings::default();
        for running in self.rings.iter().filter_map(|ring| ring.running.clone()) {
            match running {
                Running::FromGuest(link) => rings.from_guest.push(link),
                Running::ToGuest(link) if link.is_enabled() => rings.to_guest.push(link),
                Running::ToGuest(_) => {}
            }
        }
        host.publish(rings)
    }

    fn ring(&mut self, ring: usize) -> Result<&mut Ring, SessionError> {
        let rings = self.rings.len();
        self.rings.get_mut(ring).ok_or(SessionError::NoSuchRing { ring, rings })
    }

    fn stopped_ring(&mut self, ring: usize, what: &'static str) -> Result<&mut Ring, SessionError> {
        let state = self.ring(ring)?;
        if state.running.is_some() { Err(SessionError::RingRuns { ring, what }) } else { Ok(state) }
    }

    /// What the driver may leave undone (virtio 1.2, section 5.1.3).
    fn offloads_from_guest(&self) -> OffloadFeatures {
        OffloadFeatures {
            checksum: self.has(VIRTIO_NET_F_CSUM),
            tcp4: self.has(VIRTIO_NET_F_HOST_TSO4),
            tcp6: self.has(VIRTIO_NET_F_HOST_TSO6),
            ecn: self.has(VIRTIO_NET_F_HOST_ECN),
            udp_fragments: self.has(VIRTIO_NET_F_HOST_UFO),
            udp: self.has(VIRTIO_NET_F_HOST_USO),
        }
    }

    /// What the driver takes unfinished.
    fn offloads_to_guest(&self) -> OffloadFeatures {
        OffloadFeatures {
            checksum: self.has(VIRTIO_NET_F_GUEST_CSUM),
            tcp4: self.has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: self.has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: self.has(VIRTIO_NET_F_GUEST_ECN),
            udp_fragments: self.has(VIRTIO_NET_F_GUEST_UFO),
            udp: self.has(VIRTIO_NET_F_GUEST_USO4) && self.has(VIRTIO_NET_F_GUEST_USO6),
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }

    fn has_protocol_feature(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol_features & feature.bits() != 0
    }
}

impl Ring {
    /// Takes the ring out of service; the caller publishes.
    fn stop(&mut self, host: &mut impl Host) -> Option<Running> {
        self.kick = None;
        if let Some(Running::FromGuest(link)) = &self.running {
            host.turn_out(link.id);
        }
        self.running.take()
    }
}

impl Running {
    fn id(&self) -> u64 {
        match self {
            Self::FromGuest(link) => link.id,
            Self::ToGuest(link) => link.id,
        }
    }

    fn is_enabled(&self) -> bool {
        match self {
            Self::FromGuest(link) => link.is_enabled(),
            Self::ToGuest(link) => link.is_enabled(),
        }
    }

    fn set_enabled(&self, enabled: bool) {
        match self {
            Self::FromGuest(link) => link.set_enabled(enabled),
            Self::ToGuest(link) => link.set_enabled(enabled),
        }
    }

    fn with_ring<T>(&self, act: impl FnOnce(&mut Virtring) -> T) -> T {
        match self {
            Self::FromGuest(link) => act(&mut link.lock().ring),
            Self::ToGuest(link) => act(&mut link.lock().ring),
        }
    }

    fn set_call(&self, call: Option<Arc<OwnedFd>>) {
        self.with_ring(|ring| ring.queue().base_mut().set_call(call));
    }

    fn position(&self) -> u32 {
        self.with_ring(|ring| ring.queue().position())
    }
}

/// Even rings go to the guest, odd ones come from it (virtio 1.2, section 5.1.2).
fn direction(ring: usize) -> Direction {
    if ring.is_multiple_of(2) { Direction::ToGuest } else { Direction::FromGuest }
}

fn offered_features() -> u64 {
    FEATURES.iter().fold(0, |bits, (bit, _)| bits | bit)
}

fn number(value: u64) -> Answer {
    Answer::Payload(value.to_le_bytes().to_vec())
}

/// The descriptor that came for a ring, if one came.
fn eventfd(received: RingDescriptor, what: &'static str) -> Result<Option<OwnedFd>, SessionError> {
    let RingDescriptor { ring, fd } = received;
    fd.map(|fd| fd.eventfd().ok_or(SessionError::NotAnEventFd { ring, what })).transpose()
}

fn memory_file(spec: &RegionSpec, fd: Received) -> Result<Arc<File>, MemoryError> {
    fd.memory().ok_or(MemoryError::NotMemory(spec.guest))
}

/// This memory and more regions. When one can't be had, all that came is disposed of.
fn with_regions(
    memory: GuestMemory,
    regions: Vec<(RegionSpec, Received)>,
    host: &mut impl Host,
) -> Result<GuestMemory, MemoryError> {
    let mut files = Vec::new();
    let grown = regions.into_iter().try_fold(memory, |memory, (spec, fd)| {
        let file = memory_file(&spec, fd)?;
        // Nothing that was mapped and is dropped on the way was touched, or is the last to hold the file.
        files.push(Arc::clone(&file));
        memory.with_region(spec, file)
    });
    if grown.is_err() {
        host.dispose(files);
    }
    grown
}

fn announce(station: MacAddr, host: &mut impl Host) -> Result<Answer, SessionError> {
    if station.is_multicast() || station.is_zero() {
        return Err(SessionError::Station(station));
    }
    host.announce(station);
    Ok(Answer::Done)
}
