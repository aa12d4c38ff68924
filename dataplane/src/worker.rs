//! The thread that moves frames: polls its rings while there is traffic, sleeps when there is none.
//!
//! What happens to the frames of a round is in [`crate::lane`].
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
use weft_switch::line::Moment;
use weft_switch::{NetworkId, Timestamp};

use crate::alarm::Alarm;
use crate::from_guest::Batch;
use crate::gateway::Dispatch;
use crate::lane::{FaultReports, Lane};
use crate::nat::Engine;
use crate::snapshot::{PolledRing, Snapshot};
use crate::workers::{Injection, WorkerSettings, WorkerShared};

/// How long a worker sleeps at most while a ring has no kick descriptor and must be looked at.
const NAP_WITHOUT_KICK: Duration = Duration::from_millis(1);
/// The most frames of weft's own that wait for a worker. A lost announcement is made up for by the station's next frame.
const INJECTIONS: usize = 64;
/// The most frames of gateways that wait for their home worker. What the services lose, clients ask for again.
const GATEWAY_FRAMES: usize = 1024;
/// The most events that are fetched at a time.
const EVENTS: usize = 256;
/// How often a worker that is busy looks for events.
const LOOK_INTERVAL: Duration = Duration::from_micros(10);
/// How long an adaptive worker looks for more at most after sockets had something: what they wait for is other processes of this host, which may
/// need the processor.
const SPIN_BESIDE_SOCKETS: Duration = Duration::from_micros(5);
/// The token of a worker's own waker; kick descriptors use [`KICK_TOKEN`], since whoever kicks, all rings are looked at.
const WAKE_TOKEN: Token = Token(0);
pub(crate) const KICK_TOKEN: Token = Token(1);
/// That of a worker's alarm.
const ALARM_TOKEN: Token = Token(2);

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

    /// The same in nanoseconds.
    pub(crate) fn moment(self) -> Moment {
        Moment::from_nanos(self.0.elapsed().as_nanos() as u64)
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
    pub(crate) waker: Arc<Waker>,
    injections: Sender<Injection>,
    gateway_frames: Sender<(NetworkId, Dispatch)>,
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
        let waker = Arc::new(Waker::new(poll.registry(), WAKE_TOKEN)?);
        let (injections, injected) = crossbeam::channel::bounded(INJECTIONS);
        let (gateway_frames, from_gateways) = crossbeam::channel::bounded(GATEWAY_FRAMES);
        let worker = Worker {
            number,
            patience: settings.polling.patience(),
            clock,
            snapshots: Cache::new(snapshots),
            injected,
            from_gateways,
            poll,
            events: Events::with_capacity(EVENTS),
            looked: Instant::now(),
            alarm: Alarm::default(),
            shared: Arc::clone(&shared),
            batch: Batch::new(),
            first: 0,
            moved: Vec::new(),
            lane: Lane::new(number, settings.count, clock, faults),
            losses: 0,
            served_sockets: false,
        };
        let cpu = settings.cpu(number);
        Ok((Self { shared, registry, waker, injections, gateway_frames, thread: Arc::default(), cpu }, worker))
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

    /// Hands over frames of a gateway; returns those for which there is no room.
    pub(crate) fn send(&self, network: NetworkId, frames: Vec<Dispatch>) -> Vec<Dispatch> {
        let mut lost = Vec::new();
        for frame in frames {
            if let Err(error) = self.gateway_frames.try_send((network, frame)) {
                lost.push(error.into_inner().1);
            }
        }
        self.wake();
        lost
    }

    /// False when so many frames of gateways wait that whoever can wait with sending had better do so.
    pub(crate) fn has_room(&self) -> bool {
        self.gateway_frames.len() < GATEWAY_FRAMES / 2
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
    from_gateways: Receiver<(NetworkId, Dispatch)>,
    poll: Poll,
    /// Those that were not dealt with yet.
    events: Events,
    /// Goes off when a frame leaves a line.
    alarm: Alarm,
    /// When events were last asked for.
    looked: Instant,
    shared: Arc<WorkerShared>,
    batch: Batch,
    /// The ring that comes first in the next round.
    first: usize,
    /// The rings that moved in this round, by their place among those that are polled.
    moved: Vec<usize>,
    lane: Lane,
    /// What `sys::losses` said when memory was last checked.
    losses: usize,
    /// Since it slept last, NATs' sockets had something.
    served_sockets: bool,
}

impl Worker {
    fn run(mut self) {
        let mut idle_since = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            self.look_for_events(now);
            if self.poll_all(self.clock.at(now)) {
                idle_since = now;
            } else if self.patience().is_none_or(|patience| now.duration_since(idle_since) < patience) {
                std::hint::spin_loop();
            } else {
                self.served_sockets = false;
                self.sleep();
                idle_since = Instant::now();
            }
        }
    }

    /// How long it goes on looking now.
    fn patience(&self) -> Option<Duration> {
        if self.served_sockets { self.patience.map(|patience| patience.min(SPIN_BESIDE_SOCKETS)) } else { self.patience }
    }

    /// One round over the rings: at most one batch from each. True if a frame moved.
    pub(crate) fn poll_all(&mut self, now: Timestamp) -> bool {
        let snapshot = self.snapshots.load();
        let polled = snapshot.polled_by(self.number);
        let mut busy = false;
        // Before the generation is noted: whoever waits for that may rely on all of them having been forwarded. At most as many as
        // fit are there.
        for injection in self.injected.try_iter().take(INJECTIONS) {
            match injection {
                Injection::From { port, frame } => self.lane.inject(snapshot, port, frame, now),
                Injection::To { port, frame } => self.lane.send_to(snapshot, port, frame),
            }
            busy = true;
        }
        for (network, frame) in self.from_gateways.try_iter().take(GATEWAY_FRAMES) {
            self.lane.send(snapshot, network, frame);
            busy = true;
        }
        self.lane.finish_sending(snapshot);
        let new_snapshot = self.shared.boundary.pass(snapshot.generation);
        if new_snapshot {
            let whole = polled.iter().filter(|polled| !polled.ring.is_broken());
            whole.for_each(|polled| self.lane.notify_if_owed(polled));
        }
        // The ring where the round before ended comes first.
        let first = std::mem::take(&mut self.first).min(polled.len());
        for at in (first..polled.len()).chain(0..first) {
            if self.lane.poll_ring(snapshot, &polled[at], &mut self.batch, now) {
                self.moved.push(at);
                if self.lane.is_laden() {
                    self.first = at + 1;
                    break;
                }
            }
        }
        let has_events = self.events.iter().any(|event| Engine::is_one(event.token()));
        for gateway in snapshot.gateways_at(self.number) {
            let shared = &gateway.1.shared;
            if has_events || shared.nat_deadline().is_some_and(|at| at <= now) {
                let served = self.lane.serve_nat(snapshot, gateway, &self.events, now);
                self.served_sockets |= served;
                busy |= served;
            }
        }
        self.events.clear();
        busy |= self.lane.release_lines(snapshot, now);
        self.lane.flush(snapshot);
        busy |= !self.moved.is_empty();
        // After their frames were shown to the receivers: what came back to a guest has been delivered.
        for PolledRing { port, ring } in self.moved.drain(..).map(|at| &polled[at]).filter(|polled| !polled.ring.is_broken()) {
            self.lane.count_notification(port, ring, ring.lock().flush());
        }
        let losses = crate::sys::losses();
        if new_snapshot || losses != self.losses {
            self.losses = losses;
            polled.iter().for_each(|polled| self.lane.check_memory(polled));
        }
        self.shared.rounds.add(1);
        self.shared.busy_rounds.add(busy.into());
        busy
    }

    /// Asks for events of NATs' sockets while there is no sleep in which they would come by themselves.
    fn look_for_events(&mut self, now: Instant) {
        let snapshot = self.snapshots.load();
        let in_use = snapshot.gateways_at(self.number).iter().any(|(_, gateway)| gateway.shared.nat_in_use());
        if in_use && self.events.is_empty() && now.duration_since(self.looked) >= LOOK_INTERVAL {
            self.looked = now;
            // An error will be there when it goes to sleep, too.
            let _ = self.poll.poll(&mut self.events, Some(Duration::ZERO));
        }
    }

    fn sleep(&mut self) {
        let snapshot = self.snapshots.load();
        let rings = snapshot.polled_by(self.number);
        let mut nap = None;
        let mut offered = false;
        let now = self.clock.now();
        for deadline in snapshot.gateways_at(self.number).iter().filter_map(|(_, gateway)| gateway.shared.nat_deadline()) {
            offered |= deadline <= now;
            // Time is in whole milliseconds: one more, so that it has come then.
            let left = deadline.since(now) + Duration::from_millis(1);
            nap = Some(nap.map_or(left, |nap: Duration| nap.min(left)));
        }
        if let Some(left) = self.lane.next_departure(snapshot) {
            offered |= left.is_zero();
            if !self.alarm.set(left, self.poll.registry(), ALARM_TOKEN) {
                let left = left + Duration::from_millis(1);
                nap = Some(nap.map_or(left, |nap| nap.min(left)));
            }
        }
        for PolledRing { port, ring } in rings.iter().filter(|polled| !polled.ring.is_broken()) {
            if ring.kick.is_none() {
                nap = Some(nap.map_or(NAP_WITHOUT_KICK, |nap| nap.min(NAP_WITHOUT_KICK)));
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
