//! The thread that moves frames: polls its rings while there is traffic, sleeps when there is none.
//!
//! One frame's path is [`Lane::poll_ring`], top to bottom: receive a batch from the guest that sends, decide about each frame,
//! transmit to each receiver in turn, give the buffers back.
//!
//! Going to sleep follows one rule: first ask every guest for kicks, then look once more, then sleep. Whoever offers a frame
//! after that look kicks; whoever did before is seen by it. Everything else that a worker waits for (a snapshot, a
//! command) comes with a wake-up through the same poll.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use crossbeam::channel::{Receiver, Sender};
use mio::{Events, Poll, Registry, Token, Waker};
use rustix::thread::CpuSet;
use vmm_sys_util::eventfd::EventFd;
use weft_switch::{DropReason, EthernetHeader, FlowHash, PortId, Timestamp, Verdict, forward};

use crate::dataplane::MAX_QUEUE_PAIRS;
use crate::ring::RingFault;
use crate::snapshot::{PolledRing, PortLink, RingLink, Snapshot};
use crate::vhost_port::{BATCH, Batch, FrameMask, Tally};
use crate::workers::{Injection, WorkerSettings, WorkerShared};

/// How long a worker sleeps at most while a ring has no kick descriptor and must be looked at.
const NAP_WITHOUT_KICK: Duration = Duration::from_millis(1);
/// The most frames of weft's own that wait for a worker. A lost announcement is made up for by the station's next frame.
const INJECTIONS: usize = 64;
/// The token of a worker's own waker; kick descriptors use [`KICK_TOKEN`], since whoever kicks, all rings are looked at.
const WAKE_TOKEN: Token = Token(0);
pub(crate) const KICK_TOKEN: Token = Token(1);

/// A ring in which a worker found a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) port: PortId,
    /// [`RingLink::id`].
    pub(crate) ring_id: u64,
    pub(crate) ring_index: u16,
    pub(crate) fault: RingFault,
}

/// Where workers report faults: a queue and the event that tells the owner to look.
#[derive(Clone, Debug)]
pub(crate) struct FaultReports {
    pub(crate) queue: Sender<Fault>,
    pub(crate) event: Arc<EventFd>,
}

/// Time as workers and the owner share it: milliseconds since the dataplane started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Timestamp {
        self.at(Instant::now())
    }

    fn at(self, instant: Instant) -> Timestamp {
        Timestamp::from_millis(instant.duration_since(self.0).as_millis() as u64)
    }
}

/// A running worker, as its owner sees it.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    pub(crate) shared: Arc<WorkerShared>,
    /// Where kick descriptors are registered.
    pub(crate) registry: Registry,
    waker: Waker,
    injections: Sender<Injection>,
    pub(crate) thread: Arc<WorkerThread>,
    /// The processor that it is pinned to.
    pub(crate) cpu: Option<usize>,
}

impl WorkerHandle {
    /// Makes worker `number`, which does nothing yet.
    pub(crate) fn new(
        number: usize,
        settings: &WorkerSettings,
        snapshots: Arc<ArcSwap<Snapshot>>,
        shared: Arc<WorkerShared>,
        clock: Clock,
        faults: FaultReports,
    ) -> io::Result<(Self, Worker)> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waker = Waker::new(poll.registry(), WAKE_TOKEN)?;
        let (injections, injected) = crossbeam::channel::bounded(INJECTIONS);
        let worker = Worker {
            number,
            patience: settings.polling.patience(),
            clock,
            snapshots: Cache::new(snapshots),
            injected,
            poll,
            events: Events::with_capacity(64),
            shared: Arc::clone(&shared),
            batch: Batch::new(),
            moved: Vec::new(),
            lane: Lane::new(number, settings.count, faults),
            losses: 0,
        };
        let cpu = settings.cpu(number);
        Ok((Self { shared, registry, waker, injections, thread: Arc::default(), cpu }, worker))
    }

    /// Gives the worker a thread, on its processor.
    pub(crate) fn run(&self, worker: Worker) -> io::Result<()> {
        let name = format!("weft-worker-{}", worker.number);
        let (cpu, (ready, started)) = (self.cpu, crossbeam::channel::bounded(1));
        *self.thread.lock() = Some(std::thread::Builder::new().name(name).spawn(move || {
            let pinned = cpu.map_or(Ok(()), pin);
            let is_pinned = pinned.is_ok();
            // Somebody waits for it.
            let _ = ready.send(pinned);
            if is_pinned {
                worker.run();
            }
        })?);
        started.recv().unwrap_or_else(|_| Err(io::Error::other("a worker ended before it began")))
    }

    /// Lets the worker start a round soon, if it sleeps.
    pub(crate) fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake a worker");
        }
    }

    pub(crate) fn inject(&self, injection: Injection) {
        if self.injections.try_send(injection).is_ok() {
            self.wake();
        }
    }

    pub(crate) fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wake();
        let Some(thread) = self.thread.lock().take() else { return };
        while !thread.is_finished() {
            crate::sys::interrupt(&thread);
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if thread.join().is_err() {
            tracing::error!("a worker ended with a panic");
        }
    }
}

/// A worker's thread, as long as it was not stopped. Shared with whoever watches over it.
#[derive(Debug, Default)]
pub(crate) struct WorkerThread(Mutex<Option<JoinHandle<()>>>);

impl WorkerThread {
    /// Ends a system call in which the worker may hang.
    pub(crate) fn interrupt(&self) {
        if let Some(thread) = &*self.lock() {
            crate::sys::interrupt(thread);
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.lock().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn lock(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the calling thread run on one processor only.
fn pin(cpu: usize) -> io::Result<()> {
    let refused = |error: io::Error| io::Error::new(error.kind(), format!("a worker cannot run on processor {cpu}: {error}"));
    if cpu >= CpuSet::MAX_CPU {
        return Err(refused(io::ErrorKind::InvalidInput.into()));
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    rustix::thread::sched_setaffinity(None, &cpus).map_err(|error| refused(error.into()))
}

/// What polls rings.
pub(crate) struct Worker {
    number: usize,
    /// How long it looks for more before it goes to sleep; `None`: for ever.
    patience: Option<Duration>,
    clock: Clock,
    snapshots: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    injected: Receiver<Injection>,
    poll: Poll,
    events: Events,
    shared: Arc<WorkerShared>,
    batch: Batch,
    /// The rings that moved in this round, by their place among those that are polled.
    moved: Vec<usize>,
    lane: Lane,
    /// What `sys::losses` said when memory was last checked.
    losses: usize,
}

impl Worker {
    fn run(mut self) {
        let mut idle_since = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if self.poll_all(self.clock.at(now)) {
                idle_since = now;
            } else if self.patience.is_none_or(|patience| now.duration_since(idle_since) < patience) {
                std::hint::spin_loop();
            } else {
                self.sleep();
                idle_since = Instant::now();
            }
        }
    }

    /// One round over the rings: at most one batch from each. True if a frame moved.
    pub(crate) fn poll_all(&mut self, now: Timestamp) -> bool {
        let snapshot = self.snapshots.load();
        let polled = snapshot.polled_by(self.number);
        let mut busy = false;
        // Before the generation is noted: whoever waits for that may rely on all of them having been forwarded. At most as many as
        // fit are there.
        for Injection { port, frame } in self.injected.try_iter().take(INJECTIONS) {
            self.lane.inject(snapshot, port, frame, now);
            busy = true;
        }
        let new_snapshot = self.shared.note_generation(snapshot.generation);
        if new_snapshot {
            polled.iter().for_each(|polled| self.lane.notify_if_owed(&polled.port));
        }
        for (at, polled) in polled.iter().enumerate() {
            if self.lane.poll_ring(snapshot, polled, &mut self.batch, now) {
                self.moved.push(at);
            }
        }
        self.lane.flush(snapshot);
        busy |= !self.moved.is_empty();
        // After their frames were shown to the receivers: what came back to a guest has been delivered.
        for PolledRing { port, ring } in self.moved.drain(..).map(|at| &polled[at]).filter(|polled| !polled.ring.is_broken()) {
            self.lane.count_notification(port, ring, ring.lock().flush());
        }
        let losses = crate::sys::losses();
        if new_snapshot || losses != self.losses {
            self.losses = losses;
            polled.iter().for_each(|polled| self.lane.check_memory(&polled.port));
        }
        self.shared.rounds.add(1);
        self.shared.busy_rounds.add(busy.into());
        busy
    }

    fn sleep(&mut self) {
        let snapshot = self.snapshots.load();
        let rings = snapshot.polled_by(self.number);
        let mut nap = None;
        let mut offered = false;
        for PolledRing { port, ring } in rings.iter().filter(|polled| !polled.ring.is_broken()) {
            if ring.kick.is_none() {
                nap = Some(NAP_WITHOUT_KICK);
            }
            let armed = ring.lock().ring.queue().enable_kicks();
            match armed {
                Ok(more) => offered |= more,
                Err(fault) => self.lane.report(port, ring, fault),
            }
        }
        if !offered {
            self.shared.sleeps.add(1);
            self.shared.asleep.store(true, Ordering::Relaxed);
            if let Err(error) = self.poll.poll(&mut self.events, nap)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "a worker cannot wait for events");
            }
            self.shared.asleep.store(false, Ordering::Relaxed);
        }
        for PolledRing { ring, .. } in rings.iter().filter(|polled| !polled.ring.is_broken()) {
            ring.lock().ring.queue().disable_kicks();
        }
    }
}

/// What a worker needs to forward a batch, apart from the batch itself.
struct Lane {
    /// The worker, and how many there are: they share the receivers' rings.
    worker: usize,
    workers: usize,
    flows: FlowHash,
    /// For each port the frames of the batch that go there. All zero between batches.
    masks: Vec<FrameMask>,
    /// The ports whose mask is not zero, in the order in which they were found.
    receivers: Vec<PortId>,
    /// For each port the rings to its guest that hold frames which the guest was not shown. All zero between rounds.
    unshown: Vec<RingMask>,
    /// The ports whose rings these are.
    waiting: Vec<PortId>,
    faults: FaultReports,
}

/// Some rings to a guest, by their place in [`RunningRings::to_guest`].
type RingMask = u16;
const _: () = assert!(MAX_QUEUE_PAIRS <= RingMask::BITS as usize);

impl Lane {
    fn new(worker: usize, workers: usize, faults: FaultReports) -> Self {
        Self {
            worker,
            workers,
            flows: FlowHash::default(),
            masks: Vec::new(),
            receivers: Vec::new(),
            unshown: Vec::new(),
            waiting: Vec::new(),
            faults,
        }
    }

    /// Moves at most one batch out of a ring, to wherever its frames go. True if there was one.
    fn poll_ring(&mut self, snapshot: &Snapshot, polled: &PolledRing, batch: &mut Batch, now: Timestamp) -> bool {
        let PolledRing { port, ring } = polled;
        if ring.is_broken() {
            return false;
        }
        let mut from_guest = ring.lock();
        let received = from_guest.receive(batch);
        if !batch.frames().is_empty() {
            count_received(port, batch);
            if ring.is_enabled() {
                self.forward_batch(snapshot, port, batch, now);
            } else {
                port.counters.drop_frames(DropReason::RingDisabled, batch.frames().len() as u64);
            }
            from_guest.complete(batch);
        }
        if let Err(fault) = received {
            self.report(port, ring, fault);
        }
        !batch.frames().is_empty()
    }

    /// Wakes a guest whose rings are new to us and who may have missed an interrupt.
    fn notify_if_owed(&self, port: &PortLink) {
        for ring in port.rings.from_guest.iter().filter(|ring| !ring.is_broken()) {
            let notified = ring.lock().ring.queue().base_mut().notify_if_owed();
            self.count_notification(port, ring, notified);
        }
        for ring in port.rings.to_guest.iter().filter(|ring| !ring.is_broken()) {
            let notified = ring.lock().ring.queue().base_mut().notify_if_owed();
            self.count_notification(port, ring, notified);
        }
    }

    /// Stops a port whose memory was taken away, even if none of its rings moves any more.
    fn check_memory(&self, port: &PortLink) {
        for ring in &port.rings.from_guest {
            if let Err(fault) = ring.lock().ring.queue().base().check_memory() {
                self.report(port, ring, fault);
            }
        }
        for ring in &port.rings.to_guest {
            if let Err(fault) = ring.lock().ring.queue().base().check_memory() {
                self.report(port, ring, fault);
            }
        }
    }

    fn count_notification<R>(&self, port: &PortLink, ring: &RingLink<R>, notified: Result<bool, RingFault>) {
        match notified {
            Ok(notified) => port.counters.notifications.add(notified.into()),
            Err(fault) => self.report(port, ring, fault),
        }
    }

    /// Forwards a frame that weft made itself, as if `port` had sent it.
    fn inject(&mut self, snapshot: &Snapshot, port: PortId, frame: Vec<u8>, now: Timestamp) {
        if let Some(port) = snapshot.port(port) {
            self.forward_batch(snapshot, port, &Batch::of_private(frame), now);
        }
    }

    fn forward_batch(&mut self, snapshot: &Snapshot, ingress: &PortLink, batch: &Batch, now: Timestamp) {
        self.decide(snapshot, ingress, batch, now);
        let mut receivers = std::mem::take(&mut self.receivers);
        for &receiver in &receivers {
            let frames = std::mem::take(&mut self.masks[receiver.index()]);
            // A port that has gone, or whose number another network's port has by now, is as good as down.
            match snapshot.port(receiver).filter(|port| port.network == ingress.network) {
                Some(port) => self.transmit(port, batch, frames),
                None => ingress.counters.drop_frames(DropReason::ReceiverDown, frames.count_ones().into()),
            }
        }
        receivers.clear();
        self.receivers = receivers;
    }

    /// Finds the receivers of each frame.
    fn decide(&mut self, snapshot: &Snapshot, ingress: &PortLink, batch: &Batch, now: Timestamp) {
        let Some(network) = snapshot.network(ingress.network) else {
            ingress.counters.drop_frames(DropReason::NoOtherPort, batch.frames().len() as u64);
            return;
        };
        if self.masks.len() < snapshot.port_places() {
            self.masks.resize(snapshot.port_places(), 0);
            self.unshown.resize(snapshot.port_places(), 0);
        }
        for (bit, frame) in batch.frames().iter().enumerate() {
            let verdict = match frame.header() {
                Ok(header) => forward(now, ingress.id, &EthernetHeader::parse(header), &network.fdb),
                Err(reason) => Verdict::Drop(reason),
            };
            match verdict {
                Verdict::To(port) if port.index() < self.masks.len() => self.add_receiver(port, bit),
                Verdict::To(_) => ingress.counters.drop_frames(DropReason::ReceiverDown, 1),
                Verdict::Flood => {
                    let mut others = network.members.iter().filter(|&&member| member != ingress.id).peekable();
                    if others.peek().is_none() {
                        ingress.counters.drop_frames(DropReason::NoOtherPort, 1);
                    }
                    others.for_each(|&member| self.add_receiver(member, bit));
                }
                Verdict::Drop(reason) => ingress.counters.drop_frames(reason, 1),
            }
        }
    }

    #[inline]
    fn add_receiver(&mut self, port: PortId, bit: usize) {
        let mask = &mut self.masks[port.index()];
        if *mask == 0 {
            self.receivers.push(port);
        }
        *mask |= 1 << bit;
    }

    /// Hands the frames of a mask to one receiver.
    fn transmit(&mut self, port: &PortLink, batch: &Batch, frames: FrameMask) {
        match RingChoice::new(port.rings.to_guest.len(), self.worker, self.workers) {
            RingChoice::None => port.counters.drop_frames(DropReason::ReceiverDown, frames.count_ones().into()),
            RingChoice::One(at) => self.transmit_to(port, at, batch, frames),
            RingChoice::Some { first, step, count } => {
                let mut masks = [0; MAX_QUEUE_PAIRS];
                for (bit, frame) in batch.frames().iter().enumerate().filter(|(bit, _)| frames & 1 << bit != 0) {
                    let flow = batch.with_flow_bytes(frame, |header, rest| self.flows.hash(header, rest));
                    masks[first + step * (flow as usize % count)] |= 1 << bit;
                }
                for (at, &frames) in masks.iter().enumerate().filter(|(_, frames)| **frames != 0) {
                    self.transmit_to(port, at, batch, frames);
                }
            }
        }
    }

    /// Hands frames to one of a receiver's rings, with one lock. The guest is shown them now if they are many, and at the end of
    /// the round otherwise: then those of other senders have come to them.
    fn transmit_to(&mut self, port: &PortLink, at: usize, batch: &Batch, frames: FrameMask) {
        let ring = &port.rings.to_guest[at];
        if !ring.is_enabled() || ring.is_broken() {
            port.counters.drop_frames(DropReason::ReceiverDown, frames.count_ones().into());
            return;
        }
        let mut to_guest = ring.lock();
        let mut tally = Tally::default();
        if let Err(fault) = to_guest.transmit(batch, frames, &port.counters, &mut tally) {
            port.counters.drop_frames(DropReason::ReceiverDown, (frames.count_ones() - tally.handled).into());
            self.report(port, ring, fault);
        }
        if to_guest.unshown() >= BATCH {
            self.count_notification(port, ring, to_guest.flush());
        } else {
            self.remember_to_flush(port.id, at);
        }
        port.counters.to_guest_frames.add(tally.frames);
        port.counters.to_guest_bytes.add(tally.bytes);
    }

    fn remember_to_flush(&mut self, port: PortId, at: usize) {
        let rings = &mut self.unshown[port.index()];
        if *rings == 0 {
            self.waiting.push(port);
        }
        *rings |= 1 << at;
    }

    /// Shows every guest what it got in this round, which was forwarded with this snapshot.
    fn flush(&mut self, snapshot: &Snapshot) {
        while let Some(id) = self.waiting.pop() {
            let mut rings = std::mem::take(&mut self.unshown[id.index()]);
            let Some(port) = snapshot.port(id) else { continue };
            while rings != 0 {
                let ring = &port.rings.to_guest[rings.trailing_zeros() as usize];
                rings &= rings - 1;
                if !ring.is_broken() {
                    let notified = ring.lock().flush();
                    self.count_notification(port, ring, notified);
                }
            }
        }
    }

    /// Takes a broken ring out of service and tells the owner.
    #[cold]
    fn report<R>(&self, port: &PortLink, ring: &RingLink<R>, fault: RingFault) {
        if ring.is_broken() {
            return;
        }
        ring.set_broken();
        let report = Fault { port: port.id, ring_id: ring.id, ring_index: ring.index, fault };
        // Neither can fail while the owner lives, and without it nobody wants to know.
        let _ = self.faults.queue.send(report);
        let _ = self.faults.event.write(1);
    }
}

/// Which of a receiver's rings a worker writes to. Each has its own where there are enough: then no two workers wait for each
/// other, and the flows of one sender, which one worker polls, stay in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RingChoice {
    None,
    One(usize),
    /// `count` of them, from `first` on: each `step`-th. A flow always takes the same.
    Some {
        first: usize,
        step: usize,
        count: usize,
    },
}

impl RingChoice {
    #[inline(always)]
    fn new(rings: usize, worker: usize, workers: usize) -> Self {
        match rings {
            0 => Self::None,
            1 => Self::One(0),
            _ if rings <= workers => Self::One(worker % rings),
            _ => match (rings - worker).div_ceil(workers) {
                1 => Self::One(worker),
                count => Self::Some { first: worker, step: workers, count },
            },
        }
    }
}

fn count_received(port: &PortLink, batch: &Batch) {
    let bytes: usize = batch.frames().iter().map(crate::vhost_port::Frame::len).sum();
    port.counters.from_guest_frames.add(batch.frames().len() as u64);
    port.counters.from_guest_bytes.add(bytes as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ring_is_used_and_none_is_shared_where_there_are_enough() {
        for workers in 1..=8 {
            for rings in 1..=MAX_QUEUE_PAIRS {
                let mut users = vec![0; rings];
                for worker in 0..workers {
                    match RingChoice::new(rings, worker, workers) {
                        RingChoice::None => panic!("{rings} rings are some"),
                        RingChoice::One(at) => users[at] += 1,
                        RingChoice::Some { first, step, count } => (0..count).for_each(|nth| users[first + step * nth] += 1),
                    }
                }
                let most = if rings >= workers { 1 } else { workers.div_ceil(rings) };
                assert!(users.iter().all(|&users| (1..=most).contains(&users)), "{workers} workers on {rings} rings: {users:?}");
            }
        }
    }
}
