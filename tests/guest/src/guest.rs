//! A whole guest: its memory, its session and its rings.
//!
//! [`Builder::connect`] brings everything up. The steps it takes ([`Guest::open`], [`Guest::negotiate`],
//! [`Guest::start`]) are public, so that a test can stop between two of them or put something else there.
//!
//! Memory: one main region holds the rings and, for every descriptor of every ring, one slot that takes the largest
//! frame. Slots are sparse in the memory file, so only what is used costs anything. Regions added with
//! [`Builder::region`] are left to the test.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::builder::{Builder, MemoryBy, Order, Socket};
use crate::frames::Posted;
use crate::ring::RingFeatures;
use crate::session::Acknowledge;
use crate::{GuestAddr, GuestError, GuestMemory, RegionLayout, Request, Ring, Session, feature};

/// How long the guest waits for the back-end in one step.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// Where the region for rings and slots starts.
const MAIN_REGION: GuestAddr = GuestAddr(0x10_0000);
/// Bytes of a slot: header, the largest frame, and room for marks behind the pieces.
pub(crate) const SLOT_LEN: u64 = 0x12000;

const STATUS_DRIVER: u8 = 1 | 2;
const STATUS_FEATURES_OK: u8 = STATUS_DRIVER | 8;
const STATUS_DRIVER_OK: u8 = STATUS_DRIVER | 4;

/// A guest.
#[derive(Debug)]
pub struct Guest {
    pub(crate) setup: Builder,
    listener: Option<UnixListener>,
    session: Option<Session>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) rings: Vec<Ring>,
    pub(crate) slots: GuestAddr,
    features: u64,
    protocol_features: u64,
    /// The receive buffers that are out, by the index of their ring and the head of their chain.
    pub(crate) posted: HashMap<(usize, u16), Posted>,
    pub(crate) repost: bool,
    /// The pair that is looked at first for the next frame.
    pub(crate) next_pair: usize,
}

impl Builder {
    /// Makes the guest, which does not talk to anybody yet. One that listens, listens from here on.
    ///
    /// # Errors
    /// When the operating system gives no memory, descriptor or socket.
    pub fn build(self) -> Result<Guest, GuestError> {
        let rings = self.queue_pairs * 2;
        let ring_len = Ring::memory_len(self.ring_size);
        let rings_len = ring_len * u64::from(rings);
        let len = rings_len + SLOT_LEN * u64::from(self.ring_size) * u64::from(rings);
        let mut layouts = vec![RegionLayout::at(MAIN_REGION.0, len)];
        layouts.extend(&self.regions);
        let memory = Arc::new(GuestMemory::new(&layouts, self.sealed).map_err(GuestError::io("make guest memory", LIMIT))?);
        let ring = |index| Ring::new(Arc::clone(&memory), index, self.ring_size, MAIN_REGION + u64::from(index) * ring_len);
        let listener = match self.socket {
            Socket::Connect => None,
            Socket::Listen => Some(UnixListener::bind(&self.path).map_err(GuestError::io("listen for the back-end", LIMIT))?),
        };
        Ok(Guest {
            rings: (0..rings).map(ring).collect::<Result<_, _>>()?,
            slots: MAIN_REGION + rings_len,
            listener,
            session: None,
            memory,
            features: 0,
            protocol_features: 0,
            posted: HashMap::new(),
            repost: true,
            next_pair: 0,
            setup: self,
        })
    }

    /// Makes the guest, connects it and starts its rings, with receive buffers posted.
    ///
    /// # Errors
    /// When any step of it fails.
    pub fn connect(self) -> Result<Guest, GuestError> {
        let mut guest = self.build()?;
        guest.open()?;
        guest.negotiate()?;
        guest.post_at_start()?;
        guest.start()?;
        Ok(guest)
    }
}

impl Guest {
    /// A guest whose back-end is reached over the socket at `path`.
    #[must_use]
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    /// Opens the connection and says nothing yet.
    ///
    /// # Errors
    /// When nobody is there.
    pub fn open(&mut self) -> Result<(), GuestError> {
        self.session = None;
        let session = match &self.listener {
            None => Session::connect(&self.setup.path, LIMIT)?,
            Some(listener) => Session::accept(listener, LIMIT)?,
        };
        self.session = Some(session);
        Ok(())
    }

    /// Says everything that comes before `SET_FEATURES`.
    ///
    /// # Errors
    /// When the back-end refuses, is gone, or lacks a feature.
    pub fn negotiate(&mut self) -> Result<(), GuestError> {
        let order = self.setup.order;
        if order == Order::VirtioUser {
            self.session().set_owner()?;
        }
        let offered = self.session().features()?;
        let wanted = self.setup.features;
        if wanted & !offered != 0 {
            return Err(GuestError::NotOffered { missing: wanted & !offered });
        }
        let protocol = if self.setup.knows_protocol_features { feature::PROTOCOL_FEATURES } else { 0 };
        let several = if self.setup.queue_pairs > 1 { feature::MQ } else { 0 };
        self.features = (wanted | self.setup.features_if_offered | protocol | several) & offered;
        if self.has(feature::PROTOCOL_FEATURES) {
            self.negotiate_protocol()?;
        }
        for ring in &mut self.rings {
            ring.set_features(RingFeatures::of(self.features));
        }
        if order == Order::Qemu {
            let session = self.session();
            session.set_owner()?;
            session.features()?;
            for ring in &self.rings {
                session.set_vring_descriptor(Request::SET_VRING_CALL, ring.index(), self.call_of(ring))?;
            }
            // Every further pair repeats the negotiation, as if it were a device of its own.
            for _ in 1..self.setup.queue_pairs {
                session.features()?;
                if self.has(feature::PROTOCOL_FEATURES) {
                    session.protocol_features()?;
                    session.set_protocol_features(self.protocol_features)?;
                }
            }
            self.set_enabled(true)?;
        }
        Ok(())
    }

    fn negotiate_protocol(&mut self) -> Result<(), GuestError> {
        let offered = self.session().protocol_features()?;
        self.protocol_features = offered & self.setup.protocol_features;
        self.session().set_protocol_features(self.protocol_features)?;
        let acknowledge = match (self.speaks(feature::PROTOCOL_REPLY_ACK), self.setup.order, self.setup.acknowledge_everything) {
            (false, ..) => Acknowledge::Nothing,
            (true, Order::Qemu, false) => Acknowledge::AsQemu,
            (true, ..) => Acknowledge::Everything,
        };
        self.session.as_mut().expect("a session is open").set_acknowledge(acknowledge);
        let session = self.session();
        if self.speaks(feature::PROTOCOL_MQ) {
            let request = Request::GET_QUEUE_NUM;
            let pairs = session.queue_pairs()?;
            if pairs < u64::from(self.setup.queue_pairs) {
                return Err(GuestError::BadReply { request, what: format!("offers {pairs} queue pairs") });
            }
        }
        if self.speaks(feature::PROTOCOL_CONFIGURE_MEM_SLOTS) {
            let request = Request::GET_MAX_MEM_SLOTS;
            let slots = session.memory_slots_max()?;
            if slots < self.memory.len() as u64 {
                return Err(GuestError::BadReply { request, what: format!("offers {slots} memory slots") });
            }
        }
        Ok(())
    }

    /// Says `SET_FEATURES` and everything after it: memory and rings.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn start(&mut self) -> Result<(), GuestError> {
        let session = self.session();
        let status = self.speaks(feature::PROTOCOL_STATUS);
        if let (Some(mtu), true) = (self.setup.mtu, self.speaks(feature::PROTOCOL_MTU)) {
            session.set_mtu(mtu)?;
        }
        if self.setup.order == Order::VirtioUser {
            for ring in &self.rings {
                session.set_vring_descriptor(Request::SET_VRING_CALL, ring.index(), self.call_of(ring))?;
            }
        }
        session.set_features(self.features)?;
        if status {
            session.status()?;
            session.set_status(STATUS_FEATURES_OK)?;
        }
        self.share_memory()?;
        for index in 0..self.rings.len() {
            self.start_ring(index)?;
        }
        if self.setup.order == Order::VirtioUser {
            self.set_enabled(true)?;
        }
        if status {
            session.set_status(STATUS_FEATURES_OK | STATUS_DRIVER_OK)?;
        }
        // Not every request has an answer: after the answer to this one, all of them were handled.
        session.features()?;
        Ok(())
    }

    /// Tells the back-end of all memory.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn share_memory(&self) -> Result<(), GuestError> {
        let session = self.session();
        let regions: Vec<_> = (0..self.memory.len()).map(|index| (self.memory.message(index), self.memory.file(index))).collect();
        let slots = self.speaks(feature::PROTOCOL_CONFIGURE_MEM_SLOTS);
        match (self.setup.memory_by, self.setup.order) {
            (Some(MemoryBy::Slots), _) => add_regions(session, &regions),
            (None, Order::Qemu) if slots => add_regions(session, &regions),
            _ => session.set_mem_table(&regions),
        }
    }

    /// Starts one ring at its base. It is enabled apart from this.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn start_ring(&self, index: usize) -> Result<(), GuestError> {
        let session = self.session();
        let ring = &self.rings[index];
        session.set_vring_num(ring.index(), ring.size())?;
        session.set_vring_base(ring.index(), ring.base())?;
        session.set_vring_addr(ring.index(), ring.place())?;
        session.set_vring_descriptor(Request::SET_VRING_KICK, ring.index(), self.setup.kick.then(|| ring.kick_fd()))?;
        session.set_vring_descriptor(Request::SET_VRING_CALL, ring.index(), self.call_of(ring))
    }

    /// Enables or disables every ring, if the back-end knows the difference.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_enabled(&self, enabled: bool) -> Result<(), GuestError> {
        (0..self.pairs()).try_for_each(|pair| self.set_pair_enabled(pair, enabled))
    }

    /// Enables or disables the rings of one pair, if the back-end knows the difference.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_pair_enabled(&self, pair: usize, enabled: bool) -> Result<(), GuestError> {
        if self.has(feature::PROTOCOL_FEATURES) {
            for ring in &self.rings[pair * 2..pair * 2 + 2] {
                self.session().set_vring_enable(ring.index(), enabled)?;
            }
        }
        Ok(())
    }

    /// Stops every ring and keeps where it was.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn stop(&mut self) -> Result<(), GuestError> {
        for index in 0..self.rings.len() {
            let base = self.session().vring_base(self.rings[index].index())?;
            let ring = &mut self.rings[index];
            if !ring.is_packed() && base > u32::from(u16::MAX) {
                let what = format!("has the base {base:#x} for a split ring");
                return Err(GuestError::BadReply { request: Request::GET_VRING_BASE, what });
            }
            ring.set_base(base);
        }
        Ok(())
    }

    /// Stops every ring and closes the connection.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn disconnect(&mut self) -> Result<(), GuestError> {
        self.stop()?;
        self.session = None;
        Ok(())
    }

    /// Closes the connection without a word. The rings go on at the end of what was used, as after a crash of the back-end.
    pub fn hang_up(&mut self) {
        self.session = None;
        self.rings.iter_mut().for_each(Ring::set_base_from_memory);
    }

    /// Connects again, with the rings as they are: the guest has not noticed anything.
    ///
    /// # Errors
    /// When any step of connecting fails.
    pub fn reconnect(&mut self) -> Result<(), GuestError> {
        if self.session.is_some() {
            self.hang_up();
        }
        self.open()?;
        self.negotiate()?;
        self.start()
    }

    /// Begins again as a freshly booted driver: empty rings, receive buffers posted. The back-end must not be
    /// using the rings.
    ///
    /// # Errors
    /// When there is no room for the receive buffers.
    pub fn reset(&mut self) -> Result<(), GuestError> {
        self.rings.iter_mut().for_each(Ring::reset);
        self.posted.clear();
        self.post_at_start()
    }

    /// The open session.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.session.as_ref().expect("a session is open")
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Queue pairs: their rings to the guest have even indexes, those from it odd ones.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.rings.len() / 2
    }

    /// The ring that frames of the first pair come from.
    pub fn from_guest(&mut self) -> &mut Ring {
        &mut self.rings[1]
    }

    /// The ring that frames of the first pair go to.
    pub fn to_guest(&mut self) -> &mut Ring {
        &mut self.rings[0]
    }

    /// A ring by its index in the vhost-user protocol.
    pub fn ring(&mut self, index: usize) -> &mut Ring {
        &mut self.rings[index]
    }

    /// The slot of memory that belongs to a descriptor of a ring.
    #[must_use]
    pub fn slot(&self, ring: usize, head: u16) -> GuestAddr {
        slot(self.slots, &self.rings[ring], head)
    }

    /// The slots of the first `count` descriptors of a ring.
    #[must_use]
    pub fn slots(&self, ring: usize, count: u16) -> Vec<GuestAddr> {
        (0..count).map(|head| self.slot(ring, head)).collect()
    }

    /// Negotiated virtio features.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Negotiated protocol features.
    #[must_use]
    pub fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// Length of the virtio-net header with the negotiated features.
    #[must_use]
    pub fn header_len(&self) -> usize {
        if self.has(feature::VERSION_1) || self.has(feature::MRG_RXBUF) { 12 } else { 10 }
    }

    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn speaks(&self, feature: u64) -> bool {
        self.protocol_features & feature != 0
    }

    fn call_of<'a>(&self, ring: &'a Ring) -> Option<&'a File> {
        self.setup.call.then(|| ring.call_fd())
    }
}

impl Drop for Guest {
    /// A guest that listened takes its socket away.
    fn drop(&mut self) {
        if self.listener.is_some() {
            std::fs::remove_file(&self.setup.path).ok();
        }
    }
}

fn add_regions(
    session: &Session,
    regions: &[(vhost::vhost_user::message::VhostUserMemoryRegion, &File)],
) -> Result<(), GuestError> {
    regions.iter().try_for_each(|&(region, file)| session.add_mem_reg(region, file))
}

pub(crate) fn slot(slots: GuestAddr, ring: &Ring, head: u16) -> GuestAddr {
    let nth = u64::from(ring.index()) * u64::from(ring.size()) + u64::from(head);
    slots + nth * SLOT_LEN
}
