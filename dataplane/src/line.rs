//! Lines of ports in the path of a batch; [`weft_switch::line`] has the theory and the decisions.
//!
//! A port without lines comes here for nothing: whether it has one is asked once for a batch and receiver. What enters a line is copied into weft's own memory, and its
//! sender gets its buffers back at once: a frame that waits belongs to nobody who could change it or take it away.
//!
//! # Theory
//!
//! Frames that wait are in one queue for each line, in the order in which they leave. Any worker puts frames into it; one, the line's home, takes them out when they are due and
//! carries on with them where they stood: from a guest, with its port's protections; to a guest, with its ring. So they keep their order, and nobody holds a lock meanwhile.
//! When the next one is due stands beside the queue. The home looks at that in every round, and sleeps no longer. Whoever puts in a frame that leaves before all others
//! wakes the home, unless he is the home.
//!
//! A line is never changed. A port for which something else is declared gets another one, and what waits on the old one leaves at once.
//!
//! Lock order: a ring from a guest, or a gateway, then one line; nobody takes another lock while he has that.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::Waker;
use weft_switch::line::{Departure, Line, LineSettings, Lines, Moment};
use weft_switch::{DropReason, NetworkId, Offload, PortId, complete_checksum, segment};

use crate::counters::LiveCounters;
use crate::dataplane::{Dataplane, DataplaneError};
use crate::fabric::Fabric;
use crate::gateway::{Dispatch, Receivers};

/// The most memory for frames that wait on one line, in bytes: half a second at 1 Gbit/s.
const QUEUE_BYTES: usize = 64 << 20;
/// The most for those of all lines. No network has more of it than stays free, and no line more of its network's, so that something is left for whoever comes next.
const ALL_BYTES: usize = 256 << 20;
/// What each line has besides, whatever others took: four of the largest frames.
const OWN_BYTES: usize = 256 << 10;
/// What a frame costs beside its bytes.
const FRAME_COST: usize = 128;

/// The memory of all lines, or of a network's, which is part of that.
#[derive(Debug, Default)]
pub(crate) struct LineMemory {
    in_use: AtomicUsize,
    whole: Option<Arc<LineMemory>>,
}

impl LineMemory {
    /// That of a network.
    pub(crate) fn of_network(all: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self { in_use: AtomicUsize::new(0), whole: Some(Arc::clone(all)) })
    }

    /// How much of it somebody may use who uses so much now: as much as would stay free.
    fn share(&self, used: usize) -> usize {
        let in_use = self.in_use.load(Ordering::Relaxed);
        let all = self.whole.as_ref().map_or(ALL_BYTES, |whole| whole.share(in_use));
        all.saturating_sub(in_use.saturating_sub(used)) / 2
    }

    fn take(&self, bytes: usize) {
        self.in_use.fetch_add(bytes, Ordering::Relaxed);
        self.whole.iter().for_each(|whole| whole.take(bytes));
    }

    fn give_back(&self, bytes: usize) {
        self.in_use.fetch_sub(bytes, Ordering::Relaxed);
        self.whole.iter().for_each(|whole| whole.give_back(bytes));
    }
}

/// The lines of a port.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortLines {
    pub(crate) from_guest: Option<Arc<PortLine>>,
    pub(crate) to_guest: Option<Arc<PortLine>>,
    /// Lines that are not used any more, from which frames may still leave.
    retired: Vec<Arc<PortLine>>,
}

/// Where the frames go that leave a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    FromGuest,
    ToGuest,
}

/// One line of a port.
#[derive(Debug)]
pub(crate) struct PortLine {
    pub(crate) way: Way,
    /// The worker that lets frames leave.
    pub(crate) home: usize,
    waker: Arc<Waker>,
    settings: LineSettings,
    queue: Mutex<Queue>,
    /// When the next frame leaves, in nanoseconds; the largest number if none waits.
    due: AtomicU64,
}

/// The frames that wait on a line.
#[derive(Debug)]
struct Queue {
    line: Line,
    /// By when they leave; those that leave at the same time do so in the order in which they came.
    waiting: BTreeMap<(Moment, u64), (Vec<u8>, Offload)>,
    /// What they cost, which is part of what all lines use.
    bytes: usize,
    memory: Arc<LineMemory>,
    /// How many have come.
    count: u64,
    /// Kept for its memory: the segment at hand.
    part: Vec<u8>,
}

/// Frames on their way into a line.
pub(crate) struct Entrance<'a> {
    line: &'a PortLine,
    queue: MutexGuard<'a, Queue>,
    now: Moment,
    counters: &'a LiveCounters,
}

impl PortLines {
    fn new((id, network): (PortId, NetworkId), lines: &Lines, fabric: &Fabric) -> Self {
        let home = id.index() % fabric.workers.count();
        // A port without a network shares with everybody.
        let memory = fabric.network(network).map_or(&fabric.line_memory, |network| &network.line_memory);
        let line = |way, settings: &LineSettings| {
            let waker = Arc::clone(&fabric.workers.handles[home].waker);
            (!settings.is_none()).then(|| Arc::new(PortLine::new(way, home, waker, settings, memory)))
        };
        Self {
            from_guest: line(Way::FromGuest, &lines.from_guest),
            to_guest: line(Way::ToGuest, &lines.to_guest),
            retired: Vec::new(),
        }
    }

    /// The lines that are to be there now instead of these. One that stays the same goes on.
    pub(crate) fn replaced(&self, port: (PortId, NetworkId), lines: &Lines, fabric: &Fabric) -> Self {
        let mut new = Self::new(port, lines, fabric);
        new.retired = self.retired.iter().filter(|line| line.due() != Moment::NEVER).cloned().collect();
        for (old, new_line) in [(&self.from_guest, &mut new.from_guest), (&self.to_guest, &mut new.to_guest)] {
            match (old, new_line) {
                (Some(old), Some(new_line)) if old.settings == new_line.settings => *new_line = Arc::clone(old),
                (Some(old), _) => new.retired.push(Arc::clone(old)),
                (None, _) => {}
            }
        }
        new
    }

    /// What waits on lines that are not used any more leaves at once.
    pub(crate) fn let_go(&self) {
        self.retired.iter().for_each(|line| line.empty());
    }

    /// Those from which frames may leave.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<PortLine>> {
        self.retired.iter().chain(&self.from_guest).chain(&self.to_guest)
    }
}

impl PortLine {
    fn new(way: Way, home: usize, waker: Arc<Waker>, settings: &LineSettings, memory: &Arc<LineMemory>) -> Self {
        // What no one can foretell, if nobody says what it is to be.
        let line = Line::new(settings, RandomState::new().hash_one(way as usize));
        let memory = Arc::clone(memory);
        let queue = Queue { line, waiting: BTreeMap::new(), bytes: 0, memory, count: 0, part: Vec::new() };
        Self { way, home, waker, settings: *settings, queue: Mutex::new(queue), due: AtomicU64::new(u64::MAX) }
    }

    /// When the next frame leaves.
    #[inline]
    pub(crate) fn due(&self) -> Moment {
        Moment::from_nanos(self.due.load(Ordering::Relaxed))
    }

    /// Opens the line for frames of a port with these counters. To be [left](Entrance::leave).
    pub(crate) fn enter<'a>(&'a self, now: Moment, counters: &'a LiveCounters) -> Entrance<'a> {
        Entrance { line: self, queue: self.lock(), now, counters }
    }

    /// False when so much waits that whoever can wait with sending had better do so.
    pub(crate) fn has_room(&self, now: Moment) -> bool {
        let queue = self.lock();
        queue.bytes <= queue.limit() / 2 && queue.line.has_room(now)
    }

    /// Takes at most `count` frames that are due.
    pub(crate) fn take_due(&self, now: Moment, count: usize, into: &mut Vec<Dispatch>) {
        let mut queue = self.lock();
        for _ in 0..count {
            let Some(first) = queue.waiting.first_entry().filter(|first| first.key().0 <= now) else { break };
            let (frame, offload) = first.remove();
            queue.give_back(frame.len() + FRAME_COST);
            into.push(Dispatch { to: Receivers::All, from: None, frame, offload, stamp: None });
        }
        self.due.store(queue.due().nanos(), Ordering::Relaxed);
    }

    /// Whatever waits goes nowhere. Returns how many frames that were.
    pub(crate) fn discard(&self) -> usize {
        let mut queue = self.lock();
        let waiting = std::mem::take(&mut queue.waiting);
        let bytes = queue.bytes;
        queue.give_back(bytes);
        self.due.store(u64::MAX, Ordering::Relaxed);
        waiting.len()
    }

    /// Whatever waits leaves at once, in the order in which it would have.
    fn empty(&self) {
        let mut queue = self.lock();
        let waiting = std::mem::take(&mut queue.waiting);
        queue.waiting = (0..).zip(waiting.into_values()).map(|(nth, frame)| ((Moment::default(), nth), frame)).collect();
        self.due.store(queue.due().nanos(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entrance<'_> {
    /// A whole frame enters the line. Its memory is no larger than it is, since that is what is counted.
    pub(crate) fn put(&mut self, mut frame: Vec<u8>, offload: Offload) {
        frame.shrink_to_fit();
        let cut = offload.segmentation.filter(|_| self.queue.line.wants_segments()).zip(offload.checksum);
        let Some((segmentation, checksum)) = cut else {
            self.queue.admit(self.now, frame, offload, self.counters);
            return;
        };
        let mut part = std::mem::take(&mut self.queue.part);
        let (queue, now, counters) = (&mut *self.queue, self.now, self.counters);
        let each = |part: &[u8]| {
            queue.admit(now, part.to_vec(), Offload::NONE, counters);
            true
        };
        if let Err(reason) = segment(&frame, checksum, segmentation, &mut part, each) {
            self.counters.drop_frames(reason, 1);
        }
        self.queue.part = part;
    }

    /// No more frames come now. `worker` has brought these.
    pub(crate) fn leave(self, worker: usize) {
        let due = self.queue.due().nanos();
        let before = self.line.due.swap(due, Ordering::Relaxed);
        let line = self.line;
        drop(self.queue);
        if due < before
            && worker != line.home
            && let Err(error) = line.waker.wake()
        {
            tracing::error!(%error, "cannot wake a worker");
        }
    }
}

impl Queue {
    fn due(&self) -> Moment {
        self.waiting.first_key_value().map_or(Moment::NEVER, |((at, _), _)| *at)
    }

    fn admit(&mut self, now: Moment, frame: Vec<u8>, offload: Offload, counters: &LiveCounters) {
        if !self.has_memory(&frame, 1) {
            counters.drop_frames(DropReason::LineFull, 1);
            return;
        }
        let (first, second) = self.line.admit(now, offload.wire_size(frame.len()).bytes);
        if let Some(second) = second {
            match second {
                Ok(departure) if self.has_memory(&frame, 2) => self.put(departure, 1, frame.clone(), offload),
                Ok(_) => counters.drop_frames(DropReason::LineFull, 1),
                Err(reason) => counters.drop_frames(reason, 1),
            }
        }
        match first {
            Ok(departure) => self.put(departure, 0, frame, offload),
            Err(reason) => counters.drop_frames(reason, 1),
        }
        self.count += 2;
    }

    fn has_memory(&self, frame: &[u8], copies: usize) -> bool {
        self.bytes + copies * (frame.len() + FRAME_COST) <= self.limit()
    }

    /// What its frames may cost.
    fn limit(&self) -> usize {
        self.memory.share(self.bytes).clamp(OWN_BYTES, QUEUE_BYTES)
    }

    fn take(&mut self, cost: usize) {
        self.bytes += cost;
        self.memory.take(cost);
    }

    fn give_back(&mut self, cost: usize) {
        self.bytes -= cost;
        self.memory.give_back(cost);
    }

    /// `offset` is 1 for a duplicate.
    fn put(&mut self, Departure { at, flipped }: Departure, offset: u64, mut frame: Vec<u8>, mut offload: Offload) {
        if let Some(bit) = flipped {
            // Whoever looks at the checksum is to see that it is wrong now.
            if let Some(checksum) = offload.checksum.filter(|_| offload.segmentation.is_none()) {
                complete_checksum(&mut frame, checksum);
                offload.checksum = None;
            }
            frame[bit / 8] ^= 0x80 >> (bit % 8);
        }
        self.take(frame.len() + FRAME_COST);
        self.waiting.insert((at, self.count + offset), (frame, offload));
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

impl Dataplane {
    /// Changes the lines of a port, whose guest is not disturbed. What waits on a line that changes leaves at once.
    ///
    /// # Errors
    /// When a worker is stuck; the change is made all the same.
    pub fn set_lines(&mut self, id: PortId, lines: &Lines) -> Result<(), DataplaneError> {
        let Some(port) = self.ports.get_mut(id.index()).and_then(Option::as_mut) else { return Ok(()) };
        if port.settings.lines == *lines {
            return Ok(());
        }
        port.set_lines(lines, &mut self.fabric);
        // Nobody puts anything into the old ones any more once this returns.
        let published = self.fabric.publish();
        if let Some(link) = self.fabric.links.get(id.index()).and_then(Option::as_ref) {
            link.lines.let_go();
        }
        self.fabric.workers.handles.iter().for_each(crate::worker::WorkerHandle::wake);
        Ok(published?)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "line_tests.rs"]
mod tests;
