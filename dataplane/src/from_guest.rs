//! Frames taken from a guest.
//!
//! What a guest sends stays in its memory; only the Ethernet header is copied, and from then on the private copy is the
//! truth: it is what the decision is made on and what the receiver gets, whatever the guest writes in the meantime. Of frames
//! whose decision takes more than that, as much more is copied: [`Batch::screen`], [`Batch::hold`].

use std::net::Ipv4Addr;

use weft_switch::filter::Quick;
use weft_switch::gateway::SCREENED_LEN;
use weft_switch::guard::{Finding, GLANCED_LEN, Glance, INSPECTED_LEN, Sources};
use weft_switch::multicast::BEHIND_IPV6;
use weft_switch::vlan::{OuterTag, PortRole, TagKind, Vlan, pop};
use weft_switch::{DropReason, EthernetHeader, FlowHash, MAX_FRAME_LEN, Offload, OffloadFeatures, TAG_LEN, WireSize};

use crate::gateway::Dispatch;
use crate::lane::{bits, mask_of};
use crate::memory::Segment;
use crate::nat::part_of;
use crate::ring::{Chain, MAX_BUFFERS, Ring, RingFault, Virtqueue};
use crate::ring_copy::{Cursor, LINE_LEN, prefetch};
use crate::vhost_port::{BATCH, FrameFeatures, FrameMask, LONG_HEADER, SHORT_HEADER};
use crate::vlan::Stamp;

/// The longest frame with its virtio-net header.
const MAX_CHAIN_LEN: u32 = (LONG_HEADER + MAX_FRAME_LEN) as u32;

/// In a batch, that many bytes count as much as one more buffer: a batch holds little more than half a mebibyte.
const BYTES_PER_BUFFER: u32 = 512;

/// As much of a frame as is decided upon beside its Ethernet header, in bytes.
const HELD_LEN: usize = 64;
/// What is left of it when a tag has been taken off.
const HELD_UNTAGGED_LEN: usize = HELD_LEN - TAG_LEN;
const _: () = assert!(HELD_UNTAGGED_LEN >= SCREENED_LEN && HELD_UNTAGGED_LEN >= EthernetHeader::LEN + BEHIND_IPV6);
const _: () = assert!(HELD_LEN + TAG_LEN <= INSPECTED_LEN);

/// The private beginning of a frame, with room for a virtio-net header in front of it.
type Head = [u8; LONG_HEADER + INSPECTED_LEN];

/// A frame that was taken from a guest.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Its buffers.
    pub(crate) chain: Chain,
    /// Bytes of the frame, Ethernet header included; zero if it can't be used.
    pub(crate) len: usize,
    /// The private copy of the Ethernet header.
    pub(crate) header: [u8; EthernetHeader::LEN],
    /// Bytes of a tag that was taken off, which are still in the buffers behind the header: 0 or 4.
    skipped: u8,
    /// Why the frame goes no further.
    bad: Option<DropReason>,
    /// What its sender left undone, checked.
    pub(crate) offload: Offload,
}

impl Frame {
    const NONE: Self =
        Self { chain: Chain::NONE, len: 0, header: [0; EthernetHeader::LEN], skipped: 0, bad: None, offload: Offload::NONE };

    /// A frame in weft's own memory.
    fn private(bytes: &mut [u8], offload: Offload) -> Self {
        let header = bytes.first_chunk().copied();
        let bad = header.is_none().then_some(DropReason::TooShort);
        // No truncation: weft makes no longer frames than guests.
        let chain = Chain::of_one(0, bytes.as_mut_ptr(), bytes.len() as u32);
        Self { chain, len: bytes.len(), header: header.unwrap_or_default(), skipped: 0, bad, offload }
    }

    /// The private copy of the Ethernet header, or why the frame goes no further.
    #[inline(always)]
    pub(crate) fn header(&self) -> Result<&[u8; EthernetHeader::LEN], DropReason> {
        match self.bad {
            None => Ok(&self.header),
            Some(reason) => Err(reason),
        }
    }

    /// True for ARP (RFC 826), as the private copy of the header says.
    #[inline(always)]
    pub(crate) fn is_arp(&self) -> bool {
        self.header[12..] == [0x08, 0x06]
    }

    #[inline(always)]
    pub(crate) fn is_ipv4(&self) -> bool {
        self.header[12..] == [0x08, 0x00]
    }

    /// What a wire would carry for it.
    #[inline(always)]
    pub(crate) fn wire_size(&self) -> WireSize {
        self.offload.wire_size(self.len)
    }

    /// True if it is for a group or for everybody, as the private copy of the header says.
    #[inline(always)]
    pub(crate) fn is_for_many(&self) -> bool {
        self.header[0] & 1 == 1
    }

    /// True if a tag follows the addresses, as the private copy of the header says.
    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        TagKind::of(u16::from_be_bytes([self.header[12], self.header[13]])).is_some()
    }

    /// Bytes of the buffers' frame before its payload.
    #[inline(always)]
    pub(crate) fn headers_len(&self) -> usize {
        EthernetHeader::LEN + usize::from(self.skipped)
    }

    /// Reads both headers: to private memory, where they are in one piece with one move each.
    #[inline(always)]
    fn read_headers<const HEADER: usize>(&mut self, pieces: &[Segment], agreed: OffloadFeatures) {
        let both = if let Some(piece) = self.chain.single() {
            piece.read_at::<HEADER>(0).zip(piece.read_at(HEADER))
        } else {
            let mut cursor = Cursor::new(self.chain.pieces(pieces));
            cursor.read_array().zip(cursor.read_array())
        };
        self.bad = match both {
            _ if self.chain.bad.is_some() => self.chain.bad,
            None => Some(DropReason::TooShort),
            Some((virtio_header, header)) => {
                self.header = header;
                self.skipped = 0;
                self.len = self.chain.len as usize - HEADER;
                self.offload = Offload::NONE;
                self.read_offload(head(&virtio_header), agreed)
            }
        };
        if self.bad.is_some() {
            self.len = 0;
        }
    }

    /// Reads the beginning to `head`, behind `room` bytes. False for a frame that is short or in several pieces.
    #[inline(always)]
    fn glance(&self, head: &mut Head, room: usize) -> bool {
        const BEHIND: usize = GLANCED_LEN - EthernetHeader::LEN;
        let (link, rest) = head[LONG_HEADER..].split_at_mut(EthernetHeader::LEN);
        link.copy_from_slice(&self.header);
        let rest: &mut [u8; BEHIND] = rest.first_chunk_mut().expect("a glance is shorter than a look");
        self.chain.single().is_some_and(|piece| piece.read_into(room + EthernetHeader::LEN, rest))
    }

    /// The frame is as its glance says from now on.
    #[inline(always)]
    fn begin_glanced(&mut self, head: &mut Head, room: usize, pieces: &mut Vec<Segment>) {
        let first = Segment { ptr: head[LONG_HEADER - room..].as_mut_ptr(), len: room + GLANCED_LEN };
        if self.len == GLANCED_LEN {
            self.chain.move_to(first);
        } else {
            // It is in one piece.
            let ptr = self.chain.ptr().wrapping_add(first.len).cast_mut();
            pieces.push(first);
            pieces.push(Segment { ptr, len: self.len - GLANCED_LEN });
            self.chain.spread_over(pieces, 2);
        }
    }

    #[inline(always)]
    fn read_offload(&mut self, virtio_header: &[u8; SHORT_HEADER], agreed: OffloadFeatures) -> Option<DropReason> {
        if !Offload::is_asked_for(virtio_header) {
            return None;
        }
        match Offload::parse(*virtio_header, self.len, agreed) {
            Ok(offload) if !offload.fits(&self.header) => Some(DropReason::BadOffload),
            Ok(offload) => {
                self.offload = offload;
                None
            }
            Err(reason) => Some(reason),
        }
    }
}

/// What was seen of the frames of a batch that may pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screened {
    /// What a wire would carry for them.
    pub(crate) size: WireSize,
    /// There are some for more than one station.
    pub(crate) has_multicast: bool,
}

/// The frames that one ring gave in one round, with the places of their bytes. Reused from round to round.
#[derive(Debug)]
pub(crate) struct Batch {
    frames: [Frame; BATCH],
    count: usize,
    /// The frames that are for more than one station, as [`Self::note_groups`] has found out.
    groups: FrameMask,
    /// Of the frames that are spread over several.
    pieces: Vec<Segment>,
    /// Of the frames that were admitted to a VLAN.
    stamps: [Stamp; BATCH],
    /// See [`Self::is_uniform`] and [`Self::lost_tags`].
    uniform: bool,
    lost_tags: bool,
    /// Bytes in the buffers before the Ethernet header.
    pub(crate) header_len: usize,
    /// The bytes of frames that come from weft itself.
    private: Vec<Vec<u8>>,
    /// The beginnings of frames that were inspected; none as long as no port asks for that.
    heads: Vec<Head>,
    /// Kept for its memory.
    parts: Vec<Segment>,
    /// What a glance at all frames was for, and those that it has not ruled out. None as soon as what it saw may be something else: the guest writes what it
    /// likes until a frame begins in private memory.
    pub(crate) glanced: Option<(Quick, FrameMask)>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            frames: [const { Frame::NONE }; BATCH],
            count: 0,
            groups: 0,
            pieces: Vec::new(),
            stamps: [Stamp::NONE; BATCH],
            uniform: false,
            lost_tags: false,
            header_len: 0,
            private: Vec::new(),
            heads: Vec::new(),
            parts: Vec::new(),
            glanced: None,
        }
    }

    /// Fills the batch with frames in weft's own memory, at most [`BATCH`]. Those that came from no guest get this stamp.
    pub(crate) fn fill_private(&mut self, frames: impl Iterator<Item = Dispatch>, own: Stamp) {
        self.private.clear();
        self.pieces.clear();
        self.header_len = 0;
        self.count = 0;
        self.glanced = None;
        (self.uniform, self.lost_tags) = (false, false);
        for ((place, stamp), mut dispatch) in self.frames.iter_mut().zip(&mut self.stamps).zip(frames) {
            *place = Frame::private(&mut dispatch.frame, dispatch.offload);
            *stamp = dispatch.stamp.unwrap_or(own);
            self.private.push(dispatch.frame);
            self.count += 1;
        }
        self.note_groups();
    }

    /// Finds out which frames are for more than one station, and how many bytes there are in all.
    #[inline(always)]
    pub(crate) fn note_groups(&mut self) -> u64 {
        let (mut groups, mut bytes) = (0, 0);
        for frame in self.frames().iter().rev() {
            groups = groups << 1 | FrameMask::from(frame.header[0] & 1);
            bytes += frame.len as u64;
        }
        self.groups = groups;
        bytes
    }

    /// The frames that are for more than one station.
    #[inline(always)]
    pub(crate) fn groups(&self) -> FrameMask {
        self.groups
    }

    /// Those of some frames that are for everybody.
    pub(crate) fn broadcasts(&self, frames: FrameMask) -> FrameMask {
        let is_one = |at: &usize| frames & 1 << at != 0 && self.frames[*at].header[..6] == [0xff; 6];
        mask_of((0..self.count).filter(is_one))
    }

    /// All frames.
    #[inline(always)]
    pub(crate) fn all(&self) -> FrameMask {
        FrameMask::MAX.checked_shr((BATCH - self.count) as u32).unwrap_or(0)
    }

    #[inline(always)]
    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames[..self.count]
    }

    /// What was found out about a frame that was admitted to a VLAN.
    #[inline(always)]
    pub(crate) fn stamp(&self, at: usize) -> Stamp {
        self.stamps[at % BATCH]
    }

    /// True if a frame has lost the tag that it came with.
    #[inline(always)]
    pub(crate) fn lost_tags(&self) -> bool {
        self.lost_tags
    }

    /// True if all frames have the same stamp, but for their priority.
    #[inline(always)]
    pub(crate) fn is_uniform(&self) -> bool {
        self.uniform
    }

    /// Looks whether the frames are from whom they say they are from. One that was looked into begins in private memory from then on: what was seen is what
    /// the receiver gets. A frame that may not pass is one that can't be used.
    #[inline(never)]
    pub(crate) fn screen(&mut self, sources: &Sources, leases: &[Ipv4Addr]) -> Screened {
        self.glanced = None;
        let mut heads = std::mem::take(&mut self.heads);
        heads.resize(BATCH, [0; size_of::<Head>()]);
        let mut screened = Screened { size: WireSize::default(), has_multicast: false };
        let (looks, room) = (sources.inspects_ip(), self.header_len);
        let mut closely: FrameMask = 0;
        let mut passed = Glance::NOTHING;
        let frames = self.frames[..self.count].iter_mut();
        for (at, (frame, head)) in frames.zip(&mut heads).enumerate().filter(|(_, (frame, _))| frame.bad.is_none()) {
            screened.has_multicast |= frame.header[0] & 1 == 1;
            screened.size += frame.wire_size();
            if !(looks && frame.glance(head, room)) {
                closely |= 1 << at;
                continue;
            }
            // What passes does so as the frame before did, mostly.
            let glance = Glance::at(head[LONG_HEADER..].first_chunk().expect("a glance is shorter than a look"));
            if glance.is(&passed) || sources.passes_at_a_glance(&glance, leases) {
                passed = glance;
                frame.begin_glanced(head, room, &mut self.pieces);
            } else {
                closely |= 1 << at;
            }
        }
        while closely != 0 {
            let at = closely.trailing_zeros() as usize;
            closely &= closely - 1;
            if let Err(reason) = self.look(at, &mut heads[at], sources, leases) {
                screened.size -= self.frames[at].wire_size();
                self.frames[at].bad = Some(reason);
            }
        }
        self.heads = heads;
        screened
    }

    /// Asks about every frame that can be used whether it can.
    pub(crate) fn meter(&mut self, mut admit: impl FnMut(&EthernetHeader, WireSize) -> Result<(), DropReason>) {
        for frame in self.frames[..self.count].iter_mut().filter(|frame| frame.bad.is_none()) {
            frame.bad = admit(&EthernetHeader::parse(&frame.header), frame.wire_size()).err();
        }
    }

    /// A close look at a frame, as far as it takes one. What was seen of it is in `head` from then on.
    #[inline(never)]
    fn look(&mut self, at: usize, head: &mut Head, sources: &Sources, leases: &[Ipv4Addr]) -> Result<(), DropReason> {
        let frame = &self.frames[at];
        sources.check_mac(&EthernetHeader::parse(&frame.header))?;
        if !sources.wants(&frame.header) {
            return Ok(());
        }
        let seen = frame.len.min(INSPECTED_LEN);
        self.read_beginning(frame, head, seen);
        match sources.inspect(&head[LONG_HEADER..][..seen], frame.len, &frame.offload, leases) {
            Finding::Pass => {
                self.begin_in(at, head, seen);
                Ok(())
            }
            Finding::Drop(reason) => Err(reason),
            Finding::NeedsMore => Err(DropReason::Unverifiable),
        }
    }

    /// Those of some frames that have a tag begin in private memory from now on: what is behind it is not in the private copy of the header.
    #[inline(always)]
    pub(crate) fn hold_tagged(&mut self, frames: FrameMask) {
        if self.frames().iter().fold(false, |any, frame| any | frame.is_tagged()) {
            let is_one = |at: &usize| frames & 1 << at != 0 && self.frames[*at].is_tagged();
            self.hold(mask_of((0..self.count).filter(is_one)));
        }
    }

    /// Frames begin in private memory from now on, if they don't yet: what is found out about them stays true, whatever the guest writes.
    #[inline(never)]
    pub(crate) fn hold(&mut self, frames: FrameMask) {
        self.glanced = None;
        let mut heads = std::mem::take(&mut self.heads);
        heads.resize(BATCH, [0; size_of::<Head>()]);
        for at in bits(frames & self.all()) {
            let (frame, head) = (&self.frames[at], &mut heads[at]);
            // A whole frame, or its first piece.
            let ptr = frame.chain.pieces(&self.pieces).first().map_or(frame.chain.ptr(), |first| first.ptr.cast_const());
            let is_held = head.as_ptr_range().contains(&ptr);
            if frame.bad.is_some() || is_held {
                continue;
            }
            let len = frame.len.min(HELD_LEN);
            self.read_beginning(frame, head, len);
            self.begin_in(at, head, len);
        }
        self.heads = heads;
    }

    /// Copies the first `len` bytes of a frame to where they are in its buffers: behind a tag that was taken off, the Ethernet header is of no meaning.
    #[inline(never)]
    fn read_beginning(&self, frame: &Frame, head: &mut Head, len: usize) {
        let body = &mut head[LONG_HEADER..];
        body[..EthernetHeader::LEN].copy_from_slice(&frame.header);
        let skipped = usize::from(frame.skipped);
        let copied = self.payload(frame).read(&mut body[EthernetHeader::LEN + skipped..len + skipped]);
        debug_assert!(copied, "a frame has the length that was counted");
    }

    /// The first `len` bytes of a frame are in `head` from now on, the others where they were.
    fn begin_in(&mut self, at: usize, head: &mut Head, len: usize) {
        let (room, left) = (self.header_len, self.frames[at].len - len);
        let len = len + usize::from(self.frames[at].skipped);
        let chain = &mut self.frames[at].chain;
        let private = &mut head[LONG_HEADER - room..LONG_HEADER + len];
        let first = Segment { ptr: private.as_mut_ptr(), len: private.len() };
        if left == 0 {
            chain.move_to(first);
            return;
        }
        let before = self.pieces.len();
        match chain.single() {
            Some(piece) => {
                self.pieces.push(first);
                part_of(&[piece], first.len, left, &mut self.pieces);
            }
            None => {
                self.parts.clear();
                part_of(chain.pieces(&self.pieces), first.len, left, &mut self.parts);
                self.pieces.push(first);
                self.pieces.append(&mut self.parts);
            }
        }
        chain.spread_over(&self.pieces, self.pieces.len() - before);
    }

    /// Finds out to which VLAN each frame belongs that came in by a port of this role, and gives it its stamp. A tag that says so is no part of the frame any
    /// more. Returns those that are admitted; `refuse` hears why others are not.
    #[inline(always)]
    pub(crate) fn admit(&mut self, role: &PortRole, refuse: impl FnMut(DropReason)) -> FrameMask {
        let untagged = role.admit(None).map(Stamp::from);
        let all_usable = self.frames().iter().fold(true, |usable, frame| usable & (frame.bad.is_none() & !frame.is_tagged()));
        match untagged {
            Ok(stamp) if all_usable => {
                self.stamps[..self.count].fill(stamp);
                (self.uniform, self.lost_tags) = (true, false);
                FrameMask::MAX.checked_shr((BATCH - self.count) as u32).unwrap_or(0)
            }
            _ => self.admit_each(role, untagged, refuse),
        }
    }

    #[inline(never)]
    fn admit_each(
        &mut self,
        role: &PortRole,
        untagged: Result<Stamp, DropReason>,
        mut refuse: impl FnMut(DropReason),
    ) -> FrameMask {
        let (mut admitted, mut first): (FrameMask, Option<Stamp>) = (0, None);
        let mut at_hand = None;
        (self.uniform, self.lost_tags) = (true, false);
        for at in 0..self.count {
            let frame = &self.frames[at];
            let stamp = match frame.bad {
                Some(reason) => Err(reason),
                None if frame.is_tagged() => self.admit_tagged(at, role, &mut at_hand),
                None => untagged,
            };
            match stamp {
                Ok(stamp) => {
                    self.stamps[at] = stamp;
                    self.uniform &= first.get_or_insert(stamp).is_like(stamp);
                    admitted |= 1 << at;
                }
                Err(reason) => refuse(reason),
            }
        }
        admitted
    }

    /// A VLAN, and which of some frames, of which there is one at least, are in it.
    #[inline(always)]
    pub(crate) fn of_one_vlan(&self, frames: FrameMask) -> (Vlan, FrameMask) {
        let Stamp { vlan, .. } = self.stamp(frames.trailing_zeros() as usize);
        if self.uniform {
            return (vlan, frames);
        }
        let others = self.stamps.iter().enumerate().filter(|(_, stamp)| stamp.vlan != vlan);
        (vlan, others.fold(frames, |frames, (at, _)| frames & !(1 << at)))
    }

    /// `at_hand` is the tag of the frame before, with what the role says about it.
    #[inline(always)]
    fn admit_tagged(
        &mut self,
        at: usize,
        role: &PortRole,
        at_hand: &mut Option<(OuterTag, Stamp, bool)>,
    ) -> Result<Stamp, DropReason> {
        let tag = self.tag_of(&self.frames[at])?;
        let (stamp, taken_off) = match *at_hand {
            Some((before, stamp, taken_off)) if before == tag => (stamp, taken_off),
            _ => {
                let admitted = role.admit(Some(tag))?;
                let (stamp, taken_off) = (Stamp::from(admitted), admitted.taken_off);
                *at_hand = Some((tag, stamp, taken_off));
                (stamp, taken_off)
            }
        };
        if taken_off {
            let frame = &mut self.frames[at];
            if !frame.offload.is_none() {
                frame.offload = frame.offload.without_tag()?;
                if !frame.offload.fits(&pop(&frame.header, tag)) {
                    return Err(DropReason::BadOffload);
                }
            }
            frame.header = pop(&frame.header, tag);
            frame.skipped = TAG_LEN as u8;
            frame.len -= TAG_LEN;
            self.lost_tags = true;
        }
        Ok(stamp)
    }

    /// The outermost tag of a frame that has one.
    #[inline(always)]
    fn tag_of(&self, frame: &Frame) -> Result<OuterTag, DropReason> {
        let rest = match frame.chain.single() {
            Some(piece) => piece.read_at(self.header_len + EthernetHeader::LEN),
            None => self.payload(frame).read_array(),
        };
        let ether_type = u16::from_be_bytes([frame.header[12], frame.header[13]]);
        rest.and_then(|rest| OuterTag::of(ether_type, rest)).ok_or(DropReason::TooShort)
    }

    /// The frame of the lowest bit, which is then no longer set.
    #[inline(always)]
    pub(crate) fn next_of(&self, frames: &mut FrameMask) -> &Frame {
        let at = frames.trailing_zeros() as usize % BATCH;
        *frames &= frames.wrapping_sub(1);
        &self.frames[at]
    }

    /// Takes chains until the batch is full, or holds as many buffers or bytes as may be looked at. The frames' own first bytes are
    /// asked for meanwhile.
    #[inline(never)]
    fn fill(&mut self, queue: &mut impl Virtqueue) -> Result<(), RingFault> {
        let mut cost = 0;
        self.count = 0;
        self.glanced = None;
        self.pieces.clear();
        queue.prefetch();
        for frame in &mut self.frames {
            if cost >= MAX_BUFFERS as u32 {
                break;
            }
            match queue.take(MAX_CHAIN_LEN, &mut self.pieces, &mut frame.chain) {
                Ok(true) => {}
                Ok(false) => break,
                Err(fault) => return Err(queue.base().explain(fault)),
            }
            prefetch(frame.chain.ptr());
            prefetch(frame.chain.ptr().wrapping_add(LINE_LEN));
            cost += frame.chain.cost + frame.chain.len / BYTES_PER_BUFFER;
            self.count += 1;
        }
        Ok(())
    }

    /// Reads the headers of all frames.
    #[inline(never)]
    fn read_headers(&mut self, features: FrameFeatures) {
        self.header_len = features.header_len();
        let (frames, pieces) = (&mut self.frames[..self.count], self.pieces.as_slice());
        if features.long_header {
            frames.iter_mut().for_each(|frame| frame.read_headers::<LONG_HEADER>(pieces, features.offloads_from_guest));
        } else {
            frames.iter_mut().for_each(|frame| frame.read_headers::<SHORT_HEADER>(pieces, features.offloads_from_guest));
        }
    }

    /// Shows the Ethernet header of a frame and a private copy of what follows it, as far as it says which flow this is.
    pub(crate) fn with_flow_bytes<T>(&self, frame: &Frame, look: impl FnOnce(&[u8; EthernetHeader::LEN], &[u8]) -> T) -> T {
        let mut rest = [0; FlowHash::LOOKS_AT];
        let len = rest.len().min(frame.len.saturating_sub(EthernetHeader::LEN));
        let copied = self.payload(frame).read(&mut rest[..len]);
        debug_assert!(copied, "a frame has the length that was counted");
        look(&frame.header, &rest[..len])
    }

    /// Where `len` bytes of a frame are, `skip` bytes behind its first.
    pub(crate) fn pieces_of(&self, frame: &Frame, skip: usize, len: usize, into: &mut Vec<Segment>) {
        let skip = self.header_len + usize::from(frame.skipped) + skip;
        match frame.chain.single() {
            Some(piece) => part_of(&[piece], skip, len, into),
            None => part_of(frame.chain.pieces(&self.pieces), skip, len, into),
        }
    }

    /// The two pieces that a frame is in, if they are two and its Ethernet header is in the first.
    #[inline(always)]
    pub(crate) fn two_pieces(&self, frame: &Frame) -> Option<(Segment, Segment)> {
        match frame.chain.pieces(&self.pieces) {
            [first, second] if first.len >= self.header_len + frame.headers_len() => Some((*first, *second)),
            _ => None,
        }
    }

    /// The eight bytes from a place behind the Ethernet header of a frame on, if they can be had at once.
    #[inline(always)]
    pub(crate) fn word(&self, frame: &Frame, at: usize) -> Option<[u8; 8]> {
        frame.chain.single()?.read_at(self.header_len + usize::from(frame.skipped) + at)
    }

    /// What follows the Ethernet header of a frame.
    pub(crate) fn payload(&self, frame: &Frame) -> Cursor<'_> {
        let cursor = match frame.chain.single() {
            Some(piece) => Cursor::of_one(piece),
            None => Cursor::new(frame.chain.pieces(&self.pieces)),
        };
        cursor.skip(self.header_len + frame.headers_len())
    }
}

/// The ring in which a guest offers frames to send.
#[derive(Debug)]
pub(crate) struct FromGuest {
    pub(crate) ring: Ring,
    features: FrameFeatures,
}

impl FromGuest {
    pub(crate) fn new(ring: Ring, features: FrameFeatures) -> Self {
        Self { ring, features }
    }

    /// Takes up to [`BATCH`] frames; fewer, if they are spread over very many buffers. What was taken before a fault is
    /// in the batch all the same.
    pub(crate) fn receive(&mut self, batch: &mut Batch) -> Result<(), RingFault> {
        let filled = match &mut self.ring {
            Ring::Split(queue) => batch.fill(queue),
            Ring::Packed(queue) => batch.fill(queue),
        };
        batch.read_headers(self.features);
        filled
    }

    /// Gives the chains of a batch back. Seen by the guest after [`Self::flush`].
    pub(crate) fn complete(&mut self, batch: &Batch) {
        // Nothing was written into them (virtio 1.2, section 2.7.8.2).
        let chains = batch.frames().iter().map(|frame| &frame.chain);
        match &mut self.ring {
            Ring::Split(queue) => queue.complete_unwritten(chains),
            Ring::Packed(queue) => queue.complete_unwritten(chains),
        }
    }

    /// Lets the guest see what it got back. True if it was notified.
    pub(crate) fn flush(&mut self) -> Result<bool, RingFault> {
        self.ring.queue().publish()
    }
}

/// The first `N` of `M` bytes.
fn head<const N: usize, const M: usize>(bytes: &[u8; M]) -> &[u8; N] {
    bytes.first_chunk().expect("N is at most M")
}

#[cfg(all(test, not(loom)))]
#[path = "from_guest_tests.rs"]
mod tests;
