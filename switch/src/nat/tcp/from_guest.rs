//! The half of a connection that goes from the guest to the socket: what was accepted, and what may still come.

use super::segment::Segment;
use super::seq::Seq;

/// Data from a guest, up to the socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct FromGuest {
    /// The number that is expected next: everything before it is in the socket.
    next: Seq,
    /// Bytes behind it that are on their way into the socket.
    pending: u32,
    fin_pending: bool,
    /// The guest has ended its side, and the socket knows all.
    pub(super) ended: bool,
    /// Up to where the guest was told that it may send. Never moved back.
    edge: Seq,
    /// Bytes that the socket would take, as was last heard.
    space: u32,
    /// The most that it ever would have.
    space_max: u32,
    /// The socket did not take all that was promised, so that the guest has to send some of it again.
    lost: bool,
    /// By how many bits the windows that the guest is told are shifted.
    shift: u8,
    /// Bytes that the socket took.
    pub(super) bytes: u64,
}

/// Which part of a segment's data is to be written to the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Take {
    /// Bytes at the beginning that the socket has already.
    pub skip: u32,
    /// Bytes behind these to be written.
    pub len: u32,
}

/// How a segment lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Some of it is new and follows what is there.
    New(Take),
    /// There is a gap before it: the guest is to be told what is missing.
    Early,
    /// All of it is old: the guest is to be told what is expected.
    Useless,
}

impl FromGuest {
    /// `next` is the number behind the guest's SYN.
    pub(super) fn new(next: Seq, space: u32, shift: u8) -> Self {
        let (pending, bytes) = (0, 0);
        let (fin_pending, ended, lost) = (false, false, false);
        Self { next, pending, fin_pending, ended, edge: next, space, space_max: space, lost, shift, bytes }
    }

    /// The number that is expected next, as the guest is told.
    pub(super) fn next(&self) -> Seq {
        self.next
    }

    /// The number that is expected next, if the socket takes all that it was offered.
    pub(super) fn expected(&self) -> Seq {
        self.next.plus(self.pending)
    }

    /// True for a number that lies within the window (RFC 9293, section 3.4).
    pub(super) fn covers(&self, seq: Seq) -> bool {
        let distance = seq.since(self.next);
        distance >= 0 && (distance == 0 || distance < self.edge.since(self.next))
    }

    /// Takes the data of a segment, as far as they are new and in order.
    pub(super) fn offer(&mut self, segment: &Segment) -> Place {
        let skip = self.expected().since(segment.seq);
        let is_fin = segment.flags.has(super::Flags::FIN);
        if self.ended || self.fin_pending {
            return Place::Useless;
        }
        if skip < 0 {
            return Place::Early;
        }
        let skip = skip as u32;
        if skip > segment.payload_len || (skip == segment.payload_len && !is_fin) {
            return Place::Useless;
        }
        let len = segment.payload_len - skip;
        self.pending += len;
        self.fin_pending = is_fin;
        Place::New(Take { skip, len })
    }

    /// The socket took `len` bytes of what is on its way. What it did not take, the guest has to send again. True if the guest's side
    /// ends with that.
    pub(super) fn written(&mut self, len: u32) -> bool {
        let len = len.min(self.pending);
        let ends = self.fin_pending && len == self.pending;
        self.next = self.next.plus(len);
        self.bytes += u64::from(len);
        self.lost |= len < self.pending;
        self.space = if len < self.pending { 0 } else { self.space.saturating_sub(len) };
        (self.pending, self.fin_pending) = (0, false);
        if ends {
            self.next = self.next.plus(1);
            self.ended = true;
        }
        // Data beyond what was promised came and was taken.
        self.edge = self.edge.max(self.next);
        ends
    }

    /// Bytes that the socket would take, as was last heard.
    pub(super) fn space(&self) -> u32 {
        self.space
    }

    /// The socket would take `space` bytes.
    pub(super) fn note_space(&mut self, space: u32) {
        self.space = space;
        self.space_max = self.space_max.max(space);
    }

    /// The window field of a segment that goes to the guest now, with which it is promised. `is_syn`: such windows aren't shifted.
    pub(super) fn promise(&mut self, mss: u32, is_syn: bool) -> u16 {
        if self.growth() >= self.worthwhile(mss) {
            self.edge = self.candidate();
        }
        let window = self.edge.beyond(self.next);
        if is_syn {
            let window = window.min(0xffff);
            self.edge = self.next.plus(window);
            return window as u16;
        }
        // Rounded up, lest the window should shrink by what the shift cuts off.
        window.div_ceil(1 << self.shift).min(0xffff) as u16
    }

    /// True, once, if the guest has to send something again that there is room for now.
    pub(super) fn misses(&mut self, mss: u32) -> bool {
        let misses = self.lost && (self.space >= mss || self.space >= self.space_max / 2);
        self.lost &= !misses;
        misses
    }

    /// True if the window should be told to the guest for its own sake.
    pub(super) fn has_grown(&self, mss: u32) -> bool {
        !self.ended && self.is_starved(mss) && self.growth() >= self.worthwhile(mss)
    }

    /// True if the guest may be waiting for a larger window.
    pub(super) fn is_starved(&self, mss: u32) -> bool {
        !self.ended && self.edge.beyond(self.next) < (mss * 2).min(self.space_max / 2).max(1)
    }

    /// RFC 9293, section 3.8.6.2.2: small steps aren't worth a word.
    fn worthwhile(&self, mss: u32) -> u32 {
        mss.min(self.space_max / 4).max(1)
    }

    fn growth(&self) -> u32 {
        self.candidate().beyond(self.edge)
    }

    fn candidate(&self) -> Seq {
        self.next.plus(self.space.min(0xffff << self.shift))
    }
}
