//! The workers as their owner sees them: started, shown a new configuration, watched over, stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use weft_switch::PortId;

use crate::boundary::{Boundaries, Boundary};
use crate::counters::Counter;
use crate::lane::FaultReports;
use crate::snapshot::Snapshot;
use crate::worker::{Clock, Worker, WorkerHandle};

/// How long a worker may take to pass a batch boundary before it counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// How long until a worker that does not answer is interrupted, in case it hangs in a system call.
const INTERRUPT_AFTER: Duration = Duration::from_millis(20);
/// The same where nobody waits for the worker: it is interrupted in the second of these intervals at the latest.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// How many workers there are, where they run, and what they do when there is nothing to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSettings {
    /// How many, from 1 to [`Self::MAX_COUNT`].
    pub count: usize,
    /// The processors that they are pinned to, in turn; none: wherever the operating system puts them.
    pub cpus: Vec<usize>,
    /// What a worker does that finds no frames.
    pub polling: Polling,
}

impl WorkerSettings {
    /// The most workers.
    pub const MAX_COUNT: usize = 64;

    /// The processor of a worker.
    pub(crate) fn cpu(&self, worker: usize) -> Option<usize> {
        (!self.cpus.is_empty()).then(|| self.cpus[worker % self.cpus.len()])
    }
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self { count: 1, cpus: Vec::new(), polling: Polling::Adaptive }
    }
}

/// What a worker does that finds no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polling {
    /// It goes on looking for [`Self::SPIN`], then sleeps until a guest kicks.
    Adaptive,
    /// It goes on looking for ever: a frame never waits for it to wake up, and it takes a whole processor.
    Always,
    /// It sleeps at once, and takes the least processor time.
    Never,
}

impl Polling {
    /// How long an adaptive worker looks for more. Covers the time in which a busy guest prepares its next batch.
    pub const SPIN: Duration = Duration::from_micros(50);

    /// How long a worker looks for more; `None`: for ever.
    pub(crate) fn patience(self) -> Option<Duration> {
        match self {
            Self::Adaptive => Some(Self::SPIN),
            Self::Always => None,
            Self::Never => Some(Duration::ZERO),
        }
    }
}

/// What one worker tells the owner.
#[derive(Debug)]
pub(crate) struct WorkerShared {
    pub(crate) rounds: Counter,
    pub(crate) busy_rounds: Counter,
    pub(crate) sleeps: Counter,
    /// It waits for a kick, a snapshot or a command, and touches nothing.
    pub(crate) asleep: AtomicBool,
    /// The worker is to end.
    pub(crate) stop: AtomicBool,
    pub(crate) boundary: Boundary,
}

impl WorkerShared {
    pub(crate) fn new(boundary: Boundary) -> Self {
        Self {
            rounds: Counter::default(),
            busy_rounds: Counter::default(),
            sleeps: Counter::default(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            boundary,
        }
    }
}

/// A worker did not pass a batch boundary in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker did not pass a batch boundary within {STUCK_AFTER:?}")]
pub struct WorkerStuck;

/// All workers, as their owner sees them.
#[derive(Debug)]
pub(crate) struct Workers {
    snapshot: Arc<ArcSwap<Snapshot>>,
    generation: u64,
    boundaries: Boundaries,
    pub(crate) handles: Vec<WorkerHandle>,
    _watch: Watch,
}

/// A thread that looks whether workers hang in a system call. Not the owner's, because the owner may wait for a ring that such a
/// worker has locked.
#[derive(Debug)]
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(workers: &[WorkerHandle]) -> io::Result<Self> {
        let mut watched: Vec<_> =
            workers.iter().map(|worker| (Arc::clone(&worker.shared), Arc::clone(&worker.thread), 0)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("weft-watch".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                std::thread::park_timeout(WATCH_INTERVAL);
                for (shared, thread, last_rounds) in &mut watched {
                    let rounds = shared.rounds.value();
                    if rounds == *last_rounds && !shared.asleep.load(Ordering::Relaxed) {
                        thread.interrupt();
                    }
                    *last_rounds = rounds;
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has no way to panic, and nothing depends on how it ended.
            let _ = thread.join();
        }
    }
}

/// A frame that weft made.
#[derive(Debug)]
pub(crate) enum Injection {
    /// To be forwarded as if a port had sent it.
    From { port: PortId, frame: Vec<u8> },
    /// For the guest on a port.
    To { port: PortId, frame: Vec<u8> },
}

impl Injection {
    pub(crate) fn port(&self) -> PortId {
        match self {
            Self::From { port, .. } | Self::To { port, .. } => *port,
        }
    }
}

impl Workers {
    /// Starts the workers.
    pub(crate) fn start(settings: &WorkerSettings, clock: Clock, faults: &FaultReports) -> io::Result<Self> {
        let (workers, idle) = Self::new(settings, clock, faults)?;
        workers.handles.iter().zip(idle).try_for_each(|(handle, worker)| handle.run(worker))?;
        Ok(workers)
    }

    /// Makes the workers, which are to be run by the caller.
    pub(crate) fn new(settings: &WorkerSettings, clock: Clock, faults: &FaultReports) -> io::Result<(Self, Vec<Worker>)> {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let boundaries = Boundaries::new();
        let new = |number| {
            let shared = Arc::new(WorkerShared::new(boundaries.add()));
            WorkerHandle::new(number, settings, Arc::clone(&snapshot), shared, clock, faults.clone())
        };
        let (handles, idle): (Vec<_>, Vec<_>) = (0..settings.count).map(new).collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
        let watch = Watch::start(&handles)?;
        Ok((Self { snapshot, generation: 0, boundaries, handles, _watch: watch }, idle))
    }

    pub(crate) fn count(&self) -> usize {
        self.handles.len()
    }

    /// Replaces the snapshot and waits until no worker uses an older one.
    ///
    /// # Errors
    /// When a worker does not pass a batch boundary in time. The new snapshot is in place all the same.
    pub(crate) fn publish(&mut self, snapshot: Snapshot) -> Result<(), WorkerStuck> {
        // Kept until the end, so that what it alone still holds is freed here and not by a worker.
        let old = self.show(snapshot);
        let has_passed = |worker: &WorkerHandle| worker.shared.boundary.is_passed(self.generation);
        let interrupt = |waited| {
            if waited > STUCK_AFTER {
                return Err(WorkerStuck);
            }
            self.handles.iter().filter(|worker| !has_passed(worker)).for_each(|worker| worker.thread.interrupt());
            Ok(())
        };
        self.boundaries.wait(|| self.handles.iter().all(has_passed), INTERRUPT_AFTER, interrupt)?;
        drop(old);
        Ok(())
    }

    /// Replaces the snapshot and waits for nobody; gives the old one, which workers may still use.
    pub(crate) fn show(&mut self, mut snapshot: Snapshot) -> Arc<Snapshot> {
        self.generation += 1;
        snapshot.generation = self.generation;
        let old = self.snapshot.swap(Arc::new(snapshot));
        self.handles.iter().for_each(WorkerHandle::wake);
        old
    }

    /// Hands a frame to a worker. One that has too many already does not get it.
    pub(crate) fn inject(&self, worker: usize, injection: Injection) {
        self.handles[worker].inject(injection);
    }

    /// What the workers are shown now.
    #[cfg(test)]
    pub(crate) fn seen(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// False when one has died.
    pub(crate) fn are_alive(&self) -> bool {
        self.handles.iter().all(|worker| worker.thread.is_alive())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.handles {
            worker.stop();
        }
    }
}
