//! A capture: the buffer that workers fill, and the end from which a thread of its own empties it.
//!
//! There are two buffers of the same size. Workers fill one of them, under a lock that each takes once for a batch and only if it has picked something. The reader
//! takes it and leaves its own in place, which is empty by then, so it holds the lock for three moves. Their memory is reserved once; what is not used is not there.
//!
//! What does not fit is lost, and counted twice: in all, and before the next frame of the same interface that does fit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam::sync::{Parker, Unparker};
use vmm_sys_util::eventfd::EventFd;
use weft_switch::{PartialChecksum, complete_checksum};

use super::WireFrame;
use crate::counters::Counter;

/// Bytes and frames that wait for the reader.
const BUFFER_BYTES: usize = 16 << 20;
const BUFFER_FRAMES: usize = 64 << 10;

/// What workers know of a capture.
#[derive(Debug)]
pub(crate) struct CaptureQueue {
    snap_len: usize,
    interfaces: Vec<InterfaceCounters>,
    filling: Mutex<Filling>,
    /// Something did not fit, and the reader has taken nothing since.
    full: AtomicBool,
    reader: Unparker,
    /// Nothing comes any more.
    ended: AtomicBool,
    /// Nobody reads any more.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct InterfaceCounters {
    seen: Counter,
    picked: Counter,
    lost: Counter,
}

#[derive(Debug)]
struct Filling {
    contents: Contents,
    /// By interface: since the last frame that did fit.
    lost: Vec<u64>,
}

/// Frames in weft's own memory.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    records: Vec<Record>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    interface: usize,
    is_inward: bool,
    at_ns: u64,
    len: usize,
    captured: usize,
    lost: u64,
    checksum: Option<PartialChecksum>,
}

impl Contents {
    fn new() -> Self {
        Self { records: Vec::with_capacity(BUFFER_FRAMES), bytes: Vec::with_capacity(BUFFER_BYTES) }
    }

    /// Copies a frame, as much of it as that.
    fn copy(&mut self, mut frame: WireFrame<'_>, snap_len: usize) {
        let (start, captured) = (self.bytes.len(), frame.len.min(snap_len));
        self.bytes.resize(start + captured, 0);
        frame.read(&mut self.bytes[start..]);
        let (len, checksum) = (frame.len, frame.offload.checksum);
        self.records.push(Record { interface: 0, is_inward: false, at_ns: 0, len, captured, lost: 0, checksum });
    }

    /// False if it does not fit.
    fn add(&mut self, record: Record, bytes: &[u8]) -> bool {
        let fits = self.records.len() < BUFFER_FRAMES && self.bytes.len() + bytes.len() <= BUFFER_BYTES;
        if fits {
            self.bytes.extend_from_slice(bytes);
            self.records.push(record);
        }
        fits
    }

    fn iter(&self) -> impl Iterator<Item = (&Record, &[u8])> {
        let mut rest = &self.bytes[..];
        self.records.iter().map(move |record| {
            let (bytes, behind) = rest.split_at(record.captured);
            rest = behind;
            (record, bytes)
        })
    }

    fn clear(&mut self) {
        self.records.clear();
        self.bytes.clear();
    }
}

impl CaptureQueue {
    /// Frames of one interface were looked at.
    pub(super) fn count_seen(&self, interface: usize, frames: u64) {
        self.interfaces[interface].seen.add(frames);
    }

    /// Takes frames in, of one interface and direction, all with the time at which they are handed over. They are copied to `copies` first: nobody waits for the lock
    /// while a guest's memory is read.
    pub(super) fn push<'a>(
        &self,
        (interface, is_inward): (usize, bool),
        frames: impl Iterator<Item = WireFrame<'a>>,
        copies: &mut Contents,
    ) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        copies.clear();
        if self.full.load(Ordering::Relaxed) {
            let count = frames.count() as u64;
            self.lock().lost[interface] += count;
            self.interfaces[interface].picked.add(count);
            self.interfaces[interface].lost.add(count);
            return;
        }
        frames.for_each(|frame| copies.copy(frame, self.snap_len));
        let mut filling = self.lock();
        let Filling { contents, lost } = &mut *filling;
        let was_empty = contents.records.is_empty();
        // Under the lock, so that no frame is older than the one before it.
        let at_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let mut lost_now = 0;
        for (record, bytes) in copies.iter() {
            if contents.add(Record { interface, is_inward, at_ns, lost: lost[interface], ..*record }, bytes) {
                lost[interface] = 0;
            } else {
                lost[interface] += 1;
                lost_now += 1;
                self.full.store(true, Ordering::Relaxed);
            }
        }
        let has_news = was_empty && !contents.records.is_empty();
        drop(filling);
        self.interfaces[interface].picked.add(copies.records.len() as u64);
        self.interfaces[interface].lost.add(lost_now);
        if has_news {
            self.reader.unpark();
        }
    }

    /// Nothing comes any more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.reader.unpark();
    }

    fn counters(&self) -> Vec<CaptureCounters> {
        let of = |counters: &InterfaceCounters| CaptureCounters {
            seen: counters.seen.value(),
            picked: counters.picked.value(),
            lost: counters.lost.value(),
        };
        self.interfaces.iter().map(of).collect()
    }

    /// Nobody reads any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Filling> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a capture from which frames are read. When it is dropped, the capture ends.
#[derive(Debug)]
pub struct Capture {
    queue: Arc<CaptureQueue>,
    parker: Parker,
    contents: Contents,
    /// Tells the owner.
    event: Arc<EventFd>,
}

/// Wakes the thread that waits for a capture's frames, and ends its waiting for good.
#[derive(Clone, Debug)]
pub struct CaptureStopper(Arc<CaptureQueue>);

impl CaptureStopper {
    /// Nothing comes any more but what waits already.
    pub fn stop(&self) {
        self.0.end();
    }

    /// What became of the frames of each port, in the order in which they were given.
    #[must_use]
    pub fn counters(&self) -> Vec<CaptureCounters> {
        self.0.counters()
    }
}

/// A frame that was captured.
#[derive(Clone, Copy, Debug)]
pub struct CapturedFrame<'a> {
    /// Which of the ports, in the order in which they were given.
    pub interface: usize,
    /// True if the port's guest has sent it, false if it is for the guest.
    pub is_inward: bool,
    /// Nanoseconds since 1970: when those were copied that were moved together with it, at most 32.
    pub at_ns: u64,
    /// Bytes of the frame on the wire.
    pub len: usize,
    /// How many were lost since the one before, of the same port.
    pub lost: u64,
    /// As much of it as the snap length says.
    pub bytes: &'a [u8],
}

/// What became of the frames of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureCounters {
    /// Those that passed.
    pub seen: u64,
    /// Those of them that the filter is about.
    pub picked: u64,
    /// Those of them for which there was no room, because the reader was slow.
    pub lost: u64,
}

impl Capture {
    pub(super) fn new(interfaces: usize, snap_len: usize, event: Arc<EventFd>) -> Self {
        let parker = Parker::new();
        let queue = CaptureQueue {
            snap_len,
            interfaces: std::iter::repeat_with(InterfaceCounters::default).take(interfaces).collect(),
            filling: Mutex::new(Filling { contents: Contents::new(), lost: vec![0; interfaces] }),
            full: AtomicBool::new(false),
            reader: parker.unparker().clone(),
            ended: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        Self { queue: Arc::new(queue), parker, contents: Contents::new(), event }
    }

    pub(super) fn queue(&self) -> &Arc<CaptureQueue> {
        &self.queue
    }

    /// Something with which another thread ends the capture.
    #[must_use]
    pub fn stopper(&self) -> CaptureStopper {
        CaptureStopper(Arc::clone(&self.queue))
    }

    /// Waits for frames, at most so long; forgets those that it had. Returns false when there will be none any more.
    pub fn wait(&mut self, limit: Duration) -> bool {
        self.contents.clear();
        // Before the look: what came before the end is not left behind.
        let mut has_ended = self.queue.ended.load(Ordering::Acquire);
        if !self.swap() && !has_ended {
            self.parker.park_timeout(limit);
            has_ended = self.queue.ended.load(Ordering::Acquire);
            self.swap();
        }
        self.finish_checksums();
        !self.contents.records.is_empty() || !has_ended
    }

    /// The frames that the last [`Self::wait`] has brought.
    pub fn frames(&self) -> impl Iterator<Item = CapturedFrame<'_>> {
        self.contents.iter().map(|(record, bytes)| {
            let Record { interface, is_inward, at_ns, len, lost, .. } = *record;
            CapturedFrame { interface, is_inward, at_ns, len, lost, bytes }
        })
    }

    /// What became of the frames of each port, in the order in which they were given.
    #[must_use]
    pub fn counters(&self) -> Vec<CaptureCounters> {
        self.queue.counters()
    }

    fn swap(&mut self) -> bool {
        let mut filling = self.queue.lock();
        std::mem::swap(&mut filling.contents, &mut self.contents);
        self.queue.full.store(false, Ordering::Relaxed);
        drop(filling);
        !self.contents.records.is_empty()
    }

    /// Checksums that were left to the device: in the capture they are as they would be on a cable.
    fn finish_checksums(&mut self) {
        let mut rest = &mut self.contents.bytes[..];
        for record in &self.contents.records {
            let (frame, behind) = std::mem::take(&mut rest).split_at_mut(record.captured);
            if let Some(checksum) = record.checksum.filter(|_| record.captured == record.len) {
                complete_checksum(frame, checksum);
            }
            rest = behind;
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.queue.closed.store(true, Ordering::Relaxed);
        // Fails only if it was raised so often that the owner looks anyway.
        let _ = self.event.write(1);
    }
}
