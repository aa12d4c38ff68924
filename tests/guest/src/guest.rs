//! A whole guest: its memory, its session and its rings, with frames in and frames out.
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
use std::time::{Duration, Instant};

use crate::builder::{Builder, MemoryBy, Order, Socket};
use crate::session::Acknowledge;
use crate::{Buffer, GuestAddr, GuestError, GuestMemory, Header, RegionLayout, Request, Ring, Session, Shape, Used, feature};

/// How long the guest waits for the back-end in one step.
const LIMIT: Duration = Duration::from_secs(5);
/// Where the region for rings and slots starts.
const MAIN_REGION: GuestAddr = GuestAddr(0x10_0000);
/// Bytes of a slot: header, the largest frame, and room for marks behind the pieces.
const SLOT_LEN: u64 = 0x12000;
/// Stands behind every piece of a receive buffer and must still be there when the frame has come.
const MARK: [u8; 8] = *b"untouchd";
/// What a receive buffer has to take at least where frames can't span several: header and 65,535 bytes.
const WHOLE_FRAME: usize = 12 + 65_535;
/// Receive buffers where frames may span several.
const MERGEABLE_BUFFER: usize = 2048;

const STATUS_DRIVER: u8 = 1 | 2;
const STATUS_FEATURES_OK: u8 = STATUS_DRIVER | 8;
const STATUS_DRIVER_OK: u8 = STATUS_DRIVER | 4;

/// A frame that came, and how it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The virtio-net header before it.
    pub header: Header,
    /// The frame.
    pub frame: Vec<u8>,
    /// The chains it came in, in order.
    pub chains: Vec<Used>,
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    setup: Builder,
    listener: Option<UnixListener>,
    session: Option<Session>,
    memory: Arc<GuestMemory>,
    rings: Vec<Ring>,
    /// Where each ring is to go on at the next start.
    bases: Vec<u16>,
    slots: GuestAddr,
    features: u64,
    protocol_features: u64,
    /// The receive buffers that are out, by the head of their chain.
    posted: HashMap<u16, Posted>,
    repost: bool,
}

#[derive(Clone, Debug)]
struct Posted {
    buffers: Vec<Buffer>,
    indirect: bool,
    marked: bool,
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
            bases: vec![0; usize::from(rings)],
            slots: MAIN_REGION + rings_len,
            listener,
            session: None,
            memory,
            features: 0,
            protocol_features: 0,
            posted: HashMap::new(),
            repost: true,
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

    /// Sends a frame in one descriptor, header included.
    ///
    /// # Errors
    /// When the back-end doesn't take frames in time, or breaks the ring.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), GuestError> {
        self.send_shaped(frame, &Shape::one())
    }

    /// Sends a frame cut into descriptors.
    ///
    /// # Errors
    /// When the back-end doesn't take frames in time, or breaks the ring.
    pub fn send_shaped(&mut self, frame: &[u8], shape: &Shape) -> Result<(), GuestError> {
        self.send_with_header(&Header::default(), frame, shape)
    }

    /// Sends a frame behind a header of the caller's making.
    ///
    /// # Errors
    /// When the back-end doesn't take frames in time, or breaks the ring.
    pub fn send_with_header(&mut self, header: &Header, frame: &[u8], shape: &Shape) -> Result<(), GuestError> {
        self.queue_with_header(header, frame, shape)?;
        self.from_guest().publish_and_kick()
    }

    /// Puts a frame into the ring without showing it to the back-end yet.
    ///
    /// # Errors
    /// When the back-end doesn't make room in time, or breaks the ring.
    pub fn queue(&mut self, frame: &[u8]) -> Result<(), GuestError> {
        self.queue_with_header(&Header::default(), frame, &Shape::one())
    }

    fn queue_with_header(&mut self, header: &Header, frame: &[u8], shape: &Shape) -> Result<(), GuestError> {
        let mut bytes = header.bytes(self.header_len());
        bytes.extend_from_slice(frame);
        let lengths = shape.cut(bytes.len());
        let needed = if shape.is_indirect() { 1 } else { lengths.len() };
        self.wait_for_room(needed)?;
        let ring = &mut self.rings[1];
        // The head that `add` will take decides which slot is free.
        let slot = slot(self.slots, ring, ring.next_head());
        self.memory.write(slot, &bytes);
        let mut at = 0;
        let mut buffers = Vec::with_capacity(lengths.len());
        for len in lengths {
            buffers.push(Buffer::readable(slot + at, u32::try_from(len).expect("a frame is small")));
            at += len as u64;
        }
        ring.add(&buffers, shape.is_indirect())?;
        Ok(())
    }

    /// Sends a chain of the caller's making.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn send_buffers(&mut self, buffers: &[Buffer], indirect: bool) -> Result<u16, GuestError> {
        let head = self.from_guest().add(buffers, indirect)?;
        self.from_guest().publish_and_kick()?;
        Ok(head)
    }

    /// Waits until the back-end has finished with everything sent, and gives what it said about each chain.
    ///
    /// # Errors
    /// When that takes too long, or the back-end breaks the ring.
    pub fn flush(&mut self) -> Result<Vec<Used>, GuestError> {
        let mut done = self.reclaim()?;
        let deadline = Instant::now() + LIMIT;
        while self.rings[1].in_flight() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.wait(1, left)? {
                return Err(GuestError::TimedOut { what: "the end of sending", limit: LIMIT });
            }
            done.extend(self.reclaim()?);
        }
        Ok(done)
    }

    /// Takes back the chains of the sending ring that the back-end has finished with.
    ///
    /// # Errors
    /// When the back-end breaks the ring.
    pub fn reclaim(&mut self) -> Result<Vec<Used>, GuestError> {
        let mut done = Vec::new();
        while let Some(used) = self.rings[1].take_used()? {
            done.push(used);
        }
        Ok(done)
    }

    fn wait_for_room(&mut self, needed: usize) -> Result<(), GuestError> {
        let deadline = Instant::now() + LIMIT;
        self.reclaim()?;
        while self.rings[1].free() < needed {
            self.rings[1].publish_and_kick()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.wait(1, left)? {
                return Err(GuestError::TimedOut { what: "room in the sending ring", limit: LIMIT });
            }
            self.reclaim()?;
        }
        Ok(())
    }

    /// Waits for a frame, at most `limit`.
    ///
    /// # Errors
    /// When the frame, its header or the ring is not as it must be.
    pub fn receive(&mut self, limit: Duration) -> Result<Option<Vec<u8>>, GuestError> {
        Ok(self.receive_whole(limit)?.map(|received| received.frame))
    }

    /// Waits for a frame, at most `limit`, and tells how it came. Its buffers are posted again.
    ///
    /// # Errors
    /// When the frame, its header or the ring is not as it must be.
    pub fn receive_whole(&mut self, limit: Duration) -> Result<Option<Received>, GuestError> {
        if !self.rings[0].has_used() && !self.wait(0, limit)? {
            return Ok(None);
        }
        let (first, mut bytes) = self.take_received()?;
        let header_len = self.header_len();
        if bytes.len() < header_len {
            return Err(GuestError::BadFrame(format!("{} bytes came, the header alone has {header_len}", bytes.len())));
        }
        let header = Header::parse(&bytes[..header_len]);
        self.check_header(&header)?;
        let mut chains = vec![first];
        for missing in (1..header.num_buffers).rev() {
            if !self.rings[0].has_used() {
                return Err(GuestError::BadFrame(format!("{missing} of its {} buffers are missing", header.num_buffers)));
            }
            let (used, more) = self.take_received()?;
            bytes.extend(more);
            chains.push(used);
        }
        self.rings[0].publish_and_kick()?;
        Ok(Some(Received { header, frame: bytes.split_off(header_len), chains }))
    }

    fn take_received(&mut self) -> Result<(Used, Vec<u8>), GuestError> {
        let used = self.rings[0].take_used()?.expect("the caller has seen that a chain is there");
        let posted = self.posted.remove(&used.head).expect("every receive chain is in the table");
        let mut left = used.len as usize;
        let mut bytes = Vec::with_capacity(left);
        for buffer in &posted.buffers {
            let part = left.min(buffer.len as usize);
            bytes.extend(self.memory.bytes(buffer.address, part));
            left -= part;
            if posted.marked && self.memory.bytes(buffer.address + u64::from(buffer.len), MARK.len()) != MARK {
                return Err(GuestError::BadFrame("something was written behind a receive buffer".to_owned()));
            }
        }
        if left > 0 {
            return Err(GuestError::BadFrame(format!("the used length {} is {left} more than the chain holds", used.len)));
        }
        if self.repost {
            self.add_receive(posted)?;
        }
        Ok((used, bytes))
    }

    fn check_header(&self, header: &Header) -> Result<(), GuestError> {
        let count = header.num_buffers;
        let count_expected = match (self.has(feature::MRG_RXBUF), self.has(feature::VERSION_1)) {
            (true, _) => count >= 1,
            (false, true) => count == 1,
            (false, false) => count == 0,
        };
        if !count_expected {
            return Err(GuestError::BadFrame(format!("num_buffers is {count}")));
        }
        let offload = Header { num_buffers: 0, ..*header };
        if !self.has(feature::GUEST_CSUM) && offload != Header::default() {
            return Err(GuestError::BadFrame(format!("no offload was negotiated and the header is {header:?}")));
        }
        Ok(())
    }

    /// Posts receive buffers: the whole slot of each is cut by `shape`, `len` bytes in all.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn post(&mut self, count: usize, len: usize, shape: &Shape) -> Result<(), GuestError> {
        for _ in 0..count {
            let ring = &self.rings[0];
            let base = slot(self.slots, ring, ring.next_head());
            let lengths = shape.cut(len);
            let marked = len + lengths.len() * MARK.len() <= SLOT_LEN as usize;
            let mut at = 0;
            let mut buffers = Vec::with_capacity(lengths.len());
            for len in lengths {
                buffers.push(Buffer::writable(base + at, u32::try_from(len).expect("a buffer is small")));
                at += len as u64;
                if marked {
                    self.memory.write(base + at, &MARK);
                    at += MARK.len() as u64;
                }
            }
            self.add_receive(Posted { buffers, indirect: shape.is_indirect(), marked })?;
        }
        self.to_guest().publish_and_kick()
    }

    /// Posts one receive chain of the caller's making.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn post_buffers(&mut self, buffers: &[Buffer], indirect: bool) -> Result<(), GuestError> {
        self.add_receive(Posted { buffers: buffers.to_vec(), indirect, marked: false })?;
        self.to_guest().publish_and_kick()
    }

    /// Whether receive buffers are posted again once their frame was read.
    pub fn set_repost(&mut self, repost: bool) {
        self.repost = repost;
    }

    fn add_receive(&mut self, posted: Posted) -> Result<(), GuestError> {
        let head = self.rings[0].add(&posted.buffers, posted.indirect)?;
        self.posted.insert(head, posted);
        Ok(())
    }

    /// Posts the receive buffers that the builder asked for.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn post_at_start(&mut self) -> Result<(), GuestError> {
        let mergeable = self.has(feature::MRG_RXBUF);
        let len = if mergeable && self.setup.receive_shape.is_none() { MERGEABLE_BUFFER } else { WHOLE_FRAME };
        let shape = self.setup.receive_shape.clone().unwrap_or_else(Shape::one);
        let descriptors = if shape.is_indirect() { 1 } else { shape.cut(len).len() };
        let count = self.setup.receive_buffers.unwrap_or(usize::from(self.setup.ring_size) / descriptors);
        self.post(count, len, &shape)
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
        self.features = (wanted | self.setup.features_if_offered | protocol) & offered;
        if self.has(feature::PROTOCOL_FEATURES) {
            self.negotiate_protocol()?;
        }
        for ring in &mut self.rings {
            ring.set_event_idx(self.features & feature::EVENT_IDX != 0);
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
        session.set_vring_base(ring.index(), self.bases[index])?;
        session.set_vring_addr(ring.index(), ring.place())?;
        session.set_vring_descriptor(Request::SET_VRING_KICK, ring.index(), self.setup.kick.then(|| ring.kick_fd()))?;
        session.set_vring_descriptor(Request::SET_VRING_CALL, ring.index(), self.call_of(ring))
    }

    /// Enables or disables every ring, if the back-end knows the difference.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_enabled(&self, enabled: bool) -> Result<(), GuestError> {
        if self.has(feature::PROTOCOL_FEATURES) {
            for ring in &self.rings {
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
            self.bases[index] = self.session().vring_base(self.rings[index].index())?;
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

    /// Closes the connection without a word. The rings go on at the used index, as after a crash of the back-end.
    pub fn hang_up(&mut self) {
        self.session = None;
        for (base, ring) in self.bases.iter_mut().zip(&self.rings) {
            *base = ring.used_index();
        }
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
        self.bases.fill(0);
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

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn speaks(&self, feature: u64) -> bool {
        self.protocol_features & feature != 0
    }

    fn call_of<'a>(&self, ring: &'a Ring) -> Option<&'a File> {
        self.setup.call.then(|| ring.call_fd())
    }

    fn wait(&mut self, ring: usize, limit: Duration) -> Result<bool, GuestError> {
        if self.setup.call { self.rings[ring].wait_used(limit) } else { Ok(self.rings[ring].poll_used(limit)) }
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

fn slot(slots: GuestAddr, ring: &Ring, head: u16) -> GuestAddr {
    let nth = u64::from(ring.index()) * u64::from(ring.size()) + u64::from(head);
    slots + nth * SLOT_LEN
}
