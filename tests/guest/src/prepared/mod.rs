//! Rings that cost a load generator next to nothing: everything is written once, then the chains go round and round.
//!
//! The descriptors keep their contents for ever, so these need a back-end that completes in order; that is checked as far as
//! the ring shows it. Going round costs one index for each burst in a split ring, and eight bytes for each descriptor in a packed
//! one. The book-keeping of [`Ring`](crate::Ring) is bypassed: a ring that was prepared belongs to its owner here until the
//! guest is reset. Nobody waits for interrupts, so they are switched off.

mod packed;
mod split;

use packed::PackedLaps;
use split::SplitLaps;

use crate::{Buffer, Guest, GuestAddr, GuestError, GuestMemory, Header, Ring, Shape};

/// The chains of a ring, numbered from 0 in the order of the ring, as they go round.
#[derive(Debug)]
enum Laps {
    Split(SplitLaps),
    Packed(PackedLaps),
}

impl Laps {
    fn new(ring: &mut Ring, chains: &[Vec<Buffer>], indirect: bool) -> Self {
        ring.disarm_interrupt();
        if ring.is_packed() {
            Self::Packed(PackedLaps::new(ring, chains, indirect))
        } else {
            Self::Split(SplitLaps::new(ring, chains, indirect))
        }
    }

    /// How many chains the back-end does not hold, as far as is known.
    #[inline]
    fn idle(&self) -> u16 {
        match self {
            Self::Split(laps) => laps.idle(),
            Self::Packed(laps) => laps.idle(),
        }
    }

    /// The next chain to be offered.
    fn next(&self) -> u16 {
        match self {
            Self::Split(laps) => laps.next(),
            Self::Packed(laps) => laps.next(),
        }
    }

    /// Hands the next chains to the back-end, as many as are idle at most, and kicks it if it wants that.
    fn offer(&mut self, ring: &mut Ring, count: u16) -> Result<(), GuestError> {
        let kick = match self {
            Self::Split(laps) => laps.offer(ring, count),
            Self::Packed(laps) => laps.offer(ring, count),
        };
        if kick { ring.kick() } else { Ok(()) }
    }

    /// Takes back what the back-end has finished with. `visit` gets the number of each chain, and the length that the back-end
    /// gave for it unless it skipped the chain. Returns how many there were.
    fn finish(&mut self, ring: &Ring, visit: impl FnMut(u16, Option<u32>)) -> Result<u16, GuestError> {
        let finished = match self {
            Self::Split(laps) => laps.finish(ring, visit),
            Self::Packed(laps) => laps.finish(ring, visit),
        };
        finished.map_err(|what| ring.broken(what))
    }

    /// The same without a look at each chain, which is cheaper where the ring allows it.
    #[inline]
    fn finish_unseen(&mut self, ring: &Ring) -> Result<u16, GuestError> {
        let finished = match self {
            Self::Split(laps) => laps.finish_unseen(ring),
            Self::Packed(laps) => laps.finish(ring, |_, _| ()),
        };
        finished.map_err(|what| ring.broken(what))
    }
}

/// A ring full of frames of one length, to be sent round and round.
#[derive(Debug)]
pub struct PreparedSend {
    ring: usize,
    laps: Laps,
    header_len: usize,
    places: Vec<GuestAddr>,
}

impl PreparedSend {
    /// Prepares the sending ring of a pair for frames of `frame_len` bytes, each cut by `shape`; header included, it lies at
    /// one of these places. The ring must not have been used. The frames are yet to be written.
    ///
    /// # Panics
    /// Unless there is a place for each chain that the ring has room for ([`PreparedSend::chains`]), and they fill the ring.
    pub fn new(guest: &mut Guest, pair: usize, frame_len: usize, shape: &Shape, places: &[GuestAddr]) -> Self {
        let ring = pair * 2 + 1;
        let header_len = guest.header_len();
        let lengths = shape.cut(header_len + frame_len);
        let chain = |&place: &GuestAddr| {
            let mut at = place;
            let mut chain = Vec::with_capacity(lengths.len());
            for &len in &lengths {
                chain.push(Buffer::readable(at, u32::try_from(len).expect("a frame is small")));
                at = at + len as u64;
            }
            chain
        };
        let chains: Vec<_> = places.iter().map(chain).collect();
        let laps = Laps::new(guest.ring(ring), &chains, shape.is_indirect());
        Self { ring, laps, header_len, places: places.to_vec() }
    }

    /// How many frames the ring takes at once if each is cut into `pieces` descriptors of the ring.
    ///
    /// # Panics
    /// When that many pieces don't fill the ring evenly.
    #[must_use]
    pub fn chains(ring_size: u16, pieces: u16) -> u16 {
        assert!(ring_size.is_multiple_of(pieces), "{pieces} descriptors a frame don't fill a ring of {ring_size} evenly");
        ring_size / pieces
    }

    /// Writes the frame of a chain, and the header before it.
    pub fn write(&self, guest: &Guest, chain: u16, header: &Header, frame: &[u8]) {
        let place = self.places[usize::from(chain)];
        guest.memory().write(place, &header.bytes(self.header_len));
        guest.memory().write(place + self.header_len as u64, frame);
    }

    /// Sends the next frames as they are, as many as are back, at most `count`; the number of them is returned.
    ///
    /// # Errors
    /// When the back-end breaks the ring, or can't be kicked.
    #[inline]
    pub fn send(&mut self, guest: &mut Guest, count: u16) -> Result<u16, GuestError> {
        self.send_each(guest, count, |_, _| ())
    }

    /// Sends the next frames, as many as are back, at most `count`; the number of them is returned. `write` gets the address
    /// of each, behind its header, before it is sent.
    ///
    /// # Errors
    /// When the back-end breaks the ring, or can't be kicked.
    pub fn send_each(
        &mut self,
        guest: &mut Guest,
        count: u16,
        mut write: impl FnMut(&GuestMemory, GuestAddr),
    ) -> Result<u16, GuestError> {
        if self.laps.idle() < count {
            self.laps.finish_unseen(&guest.rings[self.ring])?;
        }
        let count = count.min(self.laps.idle());
        if count > 0 {
            let first = usize::from(self.laps.next());
            let (after, before) = self.places.split_at(first);
            for &place in before.iter().chain(after).take(count.into()) {
                write(&guest.memory, place + self.header_len as u64);
            }
            self.laps.offer(&mut guest.rings[self.ring], count)?;
        }
        Ok(count)
    }
}

/// A buffer that came back, to be read before it is posted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Where it starts: at the virtio-net header if it is the first of a frame.
    pub place: GuestAddr,
    /// Bytes written into it.
    pub len: u32,
}

/// A ring full of receive buffers that go straight back when a frame has come.
#[derive(Debug)]
pub struct PreparedReceive {
    ring: usize,
    laps: Laps,
    buffer_len: u32,
    places: Vec<GuestAddr>,
}

impl PreparedReceive {
    /// Posts a buffer of `len` bytes at each of these places on a pair's receiving ring. The ring must not have been used.
    ///
    /// # Errors
    /// When the back-end can't be kicked.
    ///
    /// # Panics
    /// Unless there is a place for each descriptor.
    pub fn new(guest: &mut Guest, pair: usize, len: u32, places: &[GuestAddr]) -> Result<Self, GuestError> {
        let ring = pair * 2;
        let chains: Vec<_> = places.iter().map(|&place| vec![Buffer::writable(place, len)]).collect();
        let mut laps = Laps::new(guest.ring(ring), &chains, false);
        laps.offer(guest.ring(ring), u16::try_from(places.len()).expect("no more than the ring has"))?;
        Ok(Self { ring, laps, buffer_len: len, places: places.to_vec() })
    }

    /// Buffers that came back since the last call; they are posted again. Without mergeable buffers that is one a
    /// frame.
    ///
    /// # Errors
    /// When the back-end breaks the ring, or can't be kicked.
    #[inline]
    pub fn receive(&mut self, guest: &mut Guest) -> Result<u16, GuestError> {
        let count = self.laps.finish_unseen(&guest.rings[self.ring])?;
        if count > 0 {
            self.laps.offer(&mut guest.rings[self.ring], count)?;
        }
        Ok(count)
    }

    /// Buffers that came back since the last call; each is shown to `read`, in order, before they are posted again.
    ///
    /// # Errors
    /// When the back-end breaks the ring, or can't be kicked.
    pub fn receive_each(&mut self, guest: &mut Guest, mut read: impl FnMut(&GuestMemory, Arrived)) -> Result<u16, GuestError> {
        let ring = &guest.rings[self.ring];
        let count = self.laps.finish(ring, |chain, len| {
            // What was skipped counts as filled (2.7.9).
            let arrived = Arrived { place: self.places[usize::from(chain)], len: len.unwrap_or(self.buffer_len) };
            read(&guest.memory, arrived);
        })?;
        if count > 0 {
            self.laps.offer(&mut guest.rings[self.ring], count)?;
        }
        Ok(count)
    }
}
