//! The joint between the interface and the rings.
//!
//! # Theory
//!
//! One thread moves frames both ways, a bounded batch at a time, and sleeps when a round has moved nothing. Each frame
//! is one system call and one copy: the kernel reads and writes frames right in the memory that is shared with the back-end. For
//! that the guest's memory is mapped a second time, because its owner hands out bytes and not places.
//!
//! A TAP has a header of 10 bytes before a frame, the ring one of 12: its first ten bytes are the same, two more count receive
//! buffers. So frames are read and written two bytes into a buffer, and ten bytes move by two.
//!
//! Going to sleep: interrupts are asked for first, then the rings are looked at once more, so that nothing that came
//! in between is slept over. When the ring to the back-end is full, the interface is left alone, and its queue fills
//! and drops as that of any network card does.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::{Bytes, FileOffset, MmapRegion, ReadVolatile, VolatileMemory, VolatileMemoryError, VolatileSlice, WriteVolatile};
use weft_guest::{Buffer, Guest, GuestAddr, GuestError, Socket, Used, feature};

use crate::checksum::{self, Begun, DATA_VALID, NEEDS_CSUM};
use crate::life::{Life, LifeError};
use crate::tap::{GUEST_USO, HOST_USO, TAP_HEADER_LEN, Tap, TapError, TapSetup};

/// Frames that are moved one way before it is the other way's turn.
const BATCH: usize = 64;
/// The back-end is shown what was read when it is this much: it may begin while we go on.
const PUBLISH_BYTES: usize = 0x1_0000;
/// Bytes of a buffer that takes the largest frame with any header.
const BUFFER_LEN: u32 = 65_600;
/// Two for the header of 12 bytes.
const RING_HEADER_MAX: usize = 12;

/// How the guest is to be.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) socket: PathBuf,
    pub(crate) listen: bool,
    pub(crate) segmentation: bool,
    pub(crate) checksums: bool,
    pub(crate) mergeable: bool,
    pub(crate) packed: bool,
    pub(crate) buffer_len: Option<u32>,
    pub(crate) ring_size: u16,
    pub(crate) tap: TapSetup,
}

/// Why the joint came apart.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JointError {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Life(#[from] LifeError),
    #[error("the guest's memory can't be mapped a second time: {0}")]
    Map(#[source] io::Error),
    #[error("the interface can't be read: {0}")]
    Read(#[source] io::Error),
    #[error("cannot wait for frames: {0}")]
    Wait(#[source] io::Error),
}

/// Why it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// Somebody asked for it.
    Signal,
    /// The command has ended.
    Command(ExitStatus),
}

/// What went one way.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    frames: u64,
    bytes: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    sent: Count,
    received: Count,
    refused: u64,
    sleeps: u64,
}

/// A running guest.
pub(crate) struct Joint {
    guest: Guest,
    tap: Tap,
    window: Window,
    /// Interrupts of the ring to the guest and of the one from it.
    calls: [File; 2],
    /// Bytes by which the ring's header is longer than the TAP's.
    pad: usize,
    buffer_len: u32,
    /// A frame that came in several buffers is put together here.
    scratch: Vec<u8>,
    counters: Counters,
}

impl Joint {
    /// Connects the guest, makes its interface, and starts its rings.
    pub(crate) fn new(setup: &Setup) -> Result<Self, JointError> {
        let mut guest = Guest::builder(&setup.socket)
            .socket(if setup.listen { Socket::Listen } else { Socket::Connect })
            .features(feature::VERSION_1 | if setup.packed { feature::RING_PACKED } else { 0 })
            .features_if_offered(setup.features())
            .ring_size(setup.ring_size)
            .mtu(setup.tap.mtu)
            .receive_buffers(0)
            .build()?;
        guest.open()?;
        guest.negotiate()?;
        let tap = setup.tap.make(guest.features())?;
        let window = Window::onto(&guest).map_err(JointError::Map)?;
        let call = |guest: &mut Guest, ring| guest.ring(ring).call_fd().try_clone().map_err(JointError::Wait);
        let calls = [call(&mut guest, 0)?, call(&mut guest, 1)?];
        let pad = guest.header_len() - TAP_HEADER_LEN;
        let buffer_len = setup.buffer_len.unwrap_or(BUFFER_LEN);
        let mut joint = Self { guest, tap, window, calls, pad, buffer_len, scratch: Vec::new(), counters: Counters::default() };
        for _ in 0..setup.ring_size {
            joint.post()?;
        }
        joint.guest.start()?;
        joint.guest.to_guest().publish_and_kick()?;
        Ok(joint)
    }

    /// Moves frames until a signal, the end of `command`, or the end of the connection.
    pub(crate) fn run(&mut self, command: &[String]) -> Result<End, JointError> {
        let mut life = Life::start(command)?;
        loop {
            if let Some(end) = life.end()? {
                return Ok(end);
            }
            let sent = self.send_batch()?;
            let received = self.receive_batch()?;
            if sent + received == 0 {
                self.sleep(&life)?;
            }
        }
    }

    /// The negotiated offloads in words.
    pub(crate) fn describe(&self) -> String {
        let features = self.guest.features();
        let known = [
            (feature::CSUM | feature::GUEST_CSUM, "checksums"),
            (feature::HOST_TSO, "TSO out"),
            (feature::GUEST_TSO, "TSO in"),
            (HOST_USO, "USO out"),
            (GUEST_USO, "USO in"),
            (feature::MRG_RXBUF, "mergeable buffers"),
            (feature::RING_PACKED, "packed rings"),
            (feature::EVENT_IDX, "event index"),
        ];
        let agreed: Vec<&str> = known.iter().filter(|(bits, _)| features & bits == *bits).map(|&(_, name)| name).collect();
        if agreed.is_empty() { "without offloads".to_owned() } else { format!("with {}", agreed.join(", ")) }
    }

    /// What happened so far.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Frames from the interface to the back-end; the number of them.
    fn send_batch(&mut self) -> Result<usize, JointError> {
        while self.guest.from_guest().take_used()?.is_some() {}
        let (mut frames, mut unpublished) = (0, 0);
        while frames < BATCH && self.guest.from_guest().free() > 0 {
            let head = self.guest.from_guest().next_head();
            let slot = self.guest.slot(1, head);
            let Some(len) = self.read_frame(slot)? else { break };
            self.guest.from_guest().add(&[Buffer::readable(slot, len as u32)], false)?;
            frames += 1;
            unpublished += len;
            self.counters.sent.add(len - self.guest.header_len());
            if unpublished >= PUBLISH_BYTES {
                self.guest.from_guest().publish_and_kick()?;
                unpublished = 0;
            }
        }
        if unpublished > 0 {
            self.guest.from_guest().publish_and_kick()?;
        }
        Ok(frames)
    }

    /// Reads a frame of the interface into a slot, behind the ring's header. The length is that of both.
    fn read_frame(&self, slot: GuestAddr) -> Result<Option<usize>, JointError> {
        let buffer = self.window.slice(slot, BUFFER_LEN as usize);
        let mut place = buffer.offset(self.pad).expect("a header is shorter than a slot");
        let read = match (&self.tap.file).read_volatile(&mut place) {
            Ok(read) => read,
            Err(error) => {
                let error = io_error(error);
                let later = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                return if later { Ok(None) } else { Err(JointError::Read(error)) };
            }
        };
        let mut header = [0; RING_HEADER_MAX];
        place.read_slice(&mut header[..TAP_HEADER_LEN], 0).expect("the header is in the slot");
        // The only flag that a driver may set (5.1.6.2.1).
        header[0] &= NEEDS_CSUM;
        buffer.write_slice(&header[..TAP_HEADER_LEN + self.pad], 0).expect("the header is in the slot");
        Ok(Some(self.pad + read))
    }

    /// Frames from the back-end to the interface; the number of them.
    fn receive_batch(&mut self) -> Result<usize, JointError> {
        let mut frames = 0;
        while frames < BATCH {
            let Some(used) = self.guest.to_guest().take_used()? else { break };
            self.deliver(used)?;
            frames += 1;
        }
        if frames > 0 {
            self.guest.to_guest().publish_and_kick()?;
        }
        Ok(frames)
    }

    /// Hands the frame that starts in this chain to the interface, and posts its buffers again.
    fn deliver(&mut self, first: Used) -> Result<(), JointError> {
        let len = self.check_len(first)?;
        let header_len = self.guest.header_len();
        if len < header_len {
            return Err(GuestError::BadFrame(format!("{len} bytes came, the header alone has {header_len}")).into());
        }
        let buffer = self.window.slice(self.guest.slot(0, first.head), len);
        let (place, buffers) = as_tap_wants_it(&buffer, header_len);
        let (written, frame_len) = if buffers <= 1 {
            let written = (&self.tap.file).write_volatile(&place).map_err(io_error);
            self.post()?;
            (written, len - header_len)
        } else {
            self.scratch.resize(place.len(), 0);
            place.copy_to(&mut self.scratch);
            self.post()?;
            self.gather(buffers - 1)?;
            ((&self.tap.file).write(&self.scratch), self.scratch.len() - TAP_HEADER_LEN)
        };
        // A stack that doesn't take a frame is no reason to stop.
        match written {
            Ok(_) => self.counters.received.add(frame_len),
            Err(_) => self.counters.refused += 1,
        }
        Ok(())
    }

    /// Puts the rest of a frame behind what is in the scratch buffer, and posts its buffers again.
    fn gather(&mut self, buffers: u16) -> Result<(), JointError> {
        for missing in (1..=buffers).rev() {
            let Some(used) = self.guest.to_guest().take_used()? else {
                return Err(GuestError::BadFrame(format!("{missing} of its buffers are missing")).into());
            };
            let len = self.check_len(used)?;
            let part = self.window.slice(self.guest.slot(0, used.head), len);
            let before = self.scratch.len();
            self.scratch.resize(before + len, 0);
            part.copy_to(&mut self.scratch[before..]);
            self.post()?;
        }
        Ok(())
    }

    fn check_len(&self, used: Used) -> Result<usize, GuestError> {
        if used.len <= self.buffer_len {
            return Ok(used.len as usize);
        }
        Err(GuestError::BadFrame(format!("the used length {} is more than the {} of the buffer", used.len, self.buffer_len)))
    }

    /// Posts one receive buffer.
    fn post(&mut self) -> Result<(), JointError> {
        let head = self.guest.to_guest().next_head();
        let slot = self.guest.slot(0, head);
        let buffer = Buffer::writable(slot, self.buffer_len);
        self.guest.to_guest().add(&[buffer], false)?;
        Ok(())
    }

    /// Waits until there is something to do.
    fn sleep(&mut self, life: &Life) -> Result<(), JointError> {
        let full = self.guest.from_guest().free() == 0;
        self.guest.to_guest().arm_interrupt();
        if full {
            self.guest.from_guest().arm_interrupt();
        }
        let came_meanwhile = self.guest.to_guest().has_used() || full && self.guest.from_guest().has_used();
        if !came_meanwhile {
            self.counters.sleeps += 1;
            self.wait(life, full)?;
        }
        self.guest.to_guest().disarm_interrupt();
        self.guest.from_guest().disarm_interrupt();
        Ok(())
    }

    fn wait(&mut self, life: &Life, full: bool) -> Result<(), JointError> {
        let [to_guest, from_guest] = &self.calls;
        let frames = if full { from_guest } else { &self.tap.file };
        let mut descriptors = [
            PollFd::from_borrowed_fd(frames.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(to_guest.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(life.wake_up(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.guest.session().stream().as_fd(), PollFlags::IN),
        ];
        match poll(&mut descriptors, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(JointError::Wait(error.into())),
        }
        let spoken_to = !descriptors[3].revents().is_empty();
        self.guest.to_guest().calls();
        self.guest.from_guest().calls();
        if spoken_to && self.guest.session().is_closed_within(Duration::ZERO)? {
            return Err(GuestError::Closed.into());
        }
        Ok(())
    }
}

impl Setup {
    /// What to negotiate as far as it is offered.
    fn features(&self) -> u64 {
        let wanted = [
            (true, feature::EVENT_IDX),
            (self.mergeable, feature::MRG_RXBUF),
            (self.checksums, feature::CSUM | feature::GUEST_CSUM),
            (self.segmentation, feature::HOST_TSO | feature::GUEST_TSO | HOST_USO | GUEST_USO),
        ];
        wanted.iter().filter(|&&(wanted, _)| wanted).map(|&(_, bits)| bits).sum()
    }
}

impl Count {
    fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, received, refused, sleeps } = self;
        write!(
            formatter,
            "{} frames ({} bytes) sent, {} ({} bytes) received, ",
            sent.frames, sent.bytes, received.frames, received.bytes
        )?;
        write!(formatter, "{refused} refused by the stack, slept {sleeps} times")
    }
}

/// The guest's main region, mapped once more.
struct Window {
    mapping: MmapRegion<()>,
    start: GuestAddr,
}

impl Window {
    fn onto(guest: &Guest) -> io::Result<Self> {
        let memory = guest.memory();
        let layout = memory.layout(0);
        let file = FileOffset::new(memory.file(0).try_clone()?, layout.mmap_offset);
        let len = usize::try_from(layout.size).map_err(io::Error::other)?;
        Ok(Self { mapping: MmapRegion::from_file(file, len).map_err(io::Error::other)?, start: layout.guest })
    }

    fn slice(&self, at: GuestAddr, len: usize) -> VolatileSlice<'_> {
        let offset = (at.0 - self.start.0) as usize;
        self.mapping.get_slice(offset, len).expect("every slot lies in the main region")
    }
}

/// Turns the ring's header at the start of a buffer into the TAP's: where that starts, and in how many buffers the frame came.
fn as_tap_wants_it<'a>(buffer: &VolatileSlice<'a>, header_len: usize) -> (VolatileSlice<'a>, u16) {
    let in_slot = "the header is in the slot";
    let mut header = [0; RING_HEADER_MAX];
    buffer.read_slice(&mut header[..header_len], 0).expect(in_slot);
    let buffers = u16::from_le_bytes([header[10], header[11]]);
    if header[0] & DATA_VALID != 0 {
        vouch(&mut header, &buffer.offset(header_len).expect(in_slot));
    }
    let place = buffer.offset(header_len - TAP_HEADER_LEN).expect(in_slot);
    place.write_slice(&header[..TAP_HEADER_LEN], 0).expect(in_slot);
    (place, buffers)
}

/// Tells the stack not to verify this frame, in the words that a TAP understands. A frame that they can't be said of is verified.
fn vouch(header: &mut [u8; RING_HEADER_MAX], frame: &VolatileSlice<'_>) {
    header[0] &= !DATA_VALID;
    if header[0] & NEEDS_CSUM != 0 {
        return;
    }
    let mut headers = [0; checksum::HEADERS_LEN];
    let len = frame.copy_to(&mut headers);
    let Some(begun) = Begun::of(&headers[..len]) else { return };
    header[0] |= NEEDS_CSUM;
    header[6..8].copy_from_slice(&begun.start.to_le_bytes());
    header[8..10].copy_from_slice(&begun.offset.to_le_bytes());
    let field = usize::from(begun.start + begun.offset);
    frame.write_slice(&begun.pseudo_sum.to_be_bytes(), field).expect("the field was found in the frame");
}

fn io_error(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}
