//! The receiving half of a guest.

use std::sync::atomic::Ordering;

use weft_guest::{Arrived, GuestMemory, Header, PreparedReceive};

use super::LoadError;
use super::check::Checker;
use super::guests::Guests;

/// Where `num_buffers` stands in a virtio-net header that has it.
const NUM_BUFFERS_AT: u64 = 10;
/// The length of a header with `num_buffers`.
const LONG_HEADER_LEN: usize = 12;

/// The receiving half of a guest.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) guest: usize,
    /// Frames that arrived.
    pub(super) received: u64,
    /// Looks at which nothing had arrived.
    pub(super) waits: u64,
    rings: Vec<PreparedReceive>,
    look: Look,
}

/// How closely it looks at what arrives.
#[derive(Debug)]
enum Look {
    /// Every buffer is a frame, so they are only counted.
    Count,
    /// A frame may fill several buffers. For each pair, how many of them are yet to come.
    Headers(Vec<u16>),
    /// Every byte is compared.
    Bytes { checker: Box<Checker>, parts: Vec<Parts>, header_len: usize },
}

/// A frame whose buffers have not all come.
#[derive(Clone, Debug, Default)]
struct Parts {
    bytes: Vec<u8>,
    missing: u16,
}

impl Receiver {
    /// `several` says that a frame may fill more than one buffer.
    pub(super) fn new(
        guest: usize,
        rings: Vec<PreparedReceive>,
        header_len: usize,
        several: bool,
        checker: Option<Checker>,
    ) -> Self {
        let look = match checker {
            Some(checker) => Look::Bytes { checker: Box::new(checker), parts: vec![Parts::default(); rings.len()], header_len },
            None if several => Look::Headers(vec![0; rings.len()]),
            None => Look::Count,
        };
        Self { guest, received: 0, waits: 0, rings, look }
    }

    pub(super) fn checker(&self) -> Option<&Checker> {
        match &self.look {
            Look::Bytes { checker, .. } => Some(checker),
            Look::Count | Look::Headers(_) => None,
        }
    }

    /// Takes what has arrived and offers the buffers again; returns how many frames.
    pub(super) fn receive(&mut self, guests: &mut Guests) -> Result<u64, LoadError> {
        let (rings, look) = (&mut self.rings, &mut self.look);
        let received = guests.with(self.guest, |guest| {
            let mut frames = 0;
            for (pair, ring) in rings.iter_mut().enumerate() {
                match look {
                    Look::Count => frames += u64::from(ring.receive(guest)?),
                    Look::Headers(missing) => {
                        ring.receive_each(guest, |memory, arrived| frames += count(&mut missing[pair], memory, arrived))?;
                    }
                    Look::Bytes { checker, parts, header_len } => {
                        let parts = &mut parts[pair];
                        ring.receive_each(guest, |memory, arrived| {
                            if parts.take(memory, arrived, *header_len) {
                                check(checker, &parts.bytes, *header_len);
                                frames += 1;
                            }
                        })?;
                    }
                }
            }
            Ok(frames)
        })?;
        self.received += received;
        Ok(received)
    }
}

/// One if this buffer is the last of a frame, else zero.
fn count(missing: &mut u16, memory: &GuestMemory, arrived: Arrived) -> u64 {
    *missing = if *missing > 0 { *missing } else { num_buffers(memory, arrived) } - 1;
    u64::from(*missing == 0)
}

/// Buffers that the frame fills which begins here.
fn num_buffers(memory: &GuestMemory, arrived: Arrived) -> u16 {
    memory.load_u16(arrived.place + NUM_BUFFERS_AT, Ordering::Relaxed).max(1)
}

impl Parts {
    /// Takes one buffer; true if that completes the frame.
    fn take(&mut self, memory: &GuestMemory, arrived: Arrived, header_len: usize) -> bool {
        if self.missing == 0 {
            self.bytes.clear();
            self.missing = if header_len == LONG_HEADER_LEN { num_buffers(memory, arrived) } else { 1 };
        }
        let before = self.bytes.len();
        self.bytes.resize(before + arrived.len as usize, 0);
        memory.read(arrived.place, &mut self.bytes[before..]);
        self.missing -= 1;
        self.missing == 0
    }
}

fn check(checker: &mut Checker, bytes: &[u8], header_len: usize) {
    match bytes.split_at_checked(header_len) {
        Some((header, frame)) => checker.check(&Header::parse(header), frame),
        // What has no whole header has no frame either.
        None => checker.check(&Header::default(), &[]),
    }
}
