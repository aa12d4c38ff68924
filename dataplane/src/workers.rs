//! The workers as their owner sees them: started, shown a new configuration, watched over, stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::sync::{Parker, Unparker};
use weft_switch::PortId;

use crate::counters::Counter;
use crate::snapshot::{Snapshot, worker_of};
use crate::worker::{Clock, FaultReports, WorkerHandle};

/// How long a worker may take to pass a batch boundary before it counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// How long until a worker that does not answer is interrupted, in case it hangs in a system call.
const INTERRUPT_AFTER: Duration = Duration::from_millis(20);

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
    /// The generation of the only snapshot that it may be using.
    generation: AtomicU64,
    unparker: Unparker,
}

impl WorkerShared {
    pub(crate) fn new(unparker: Unparker) -> Self {
        Self {
            rounds: Counter::default(),
            busy_rounds: Counter::default(),
            sleeps: Counter::default(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            unparker,
        }
    }

    /// Says that every older snapshot is out of use. True if this one is new.
    pub(crate) fn note_generation(&self, generation: u64) -> bool {
        let new = self.generation.load(Ordering::Relaxed) != generation;
        if new {
            self.generation.store(generation, Ordering::Release);
            self.unparker.unpark();
        }
        new
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
    parker: Parker,
    pub(crate) handles: Vec<WorkerHandle>,
    /// Rounds of each worker when it was last looked at.
    watched_rounds: Vec<u64>,
}

/// A frame that weft made, to be forwarded as if `port` had sent it.
#[derive(Debug)]
pub(crate) struct Injection {
    pub(crate) port: PortId,
    pub(crate) frame: Vec<u8>,
}

impl Workers {
    /// Starts `count` workers.
    pub(crate) fn start(count: usize, clock: Clock, faults: &FaultReports) -> io::Result<Self> {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let parker = Parker::new();
        let start = |number| {
            let shared = Arc::new(WorkerShared::new(parker.unparker().clone()));
            WorkerHandle::start(number, Arc::clone(&snapshot), shared, clock, faults.clone())
        };
        let handles = (0..count).map(start).collect::<io::Result<_>>()?;
        Ok(Self { snapshot, generation: 0, parker, handles, watched_rounds: vec![0; count] })
    }

    pub(crate) fn count(&self) -> usize {
        self.handles.len()
    }

    /// Replaces the snapshot and waits until no worker uses an older one.
    ///
    /// # Errors
    /// When a worker does not pass a batch boundary in time. The new snapshot is in place all the same.
    pub(crate) fn publish(&mut self, mut snapshot: Snapshot) -> Result<(), WorkerStuck> {
        self.generation += 1;
        snapshot.generation = self.generation;
        // Kept until the end, so that what it alone still holds is freed here and not by a worker.
        let old = self.snapshot.swap(Arc::new(snapshot));
        let began = Instant::now();
        for worker in &self.handles {
            worker.wake();
        }
        let behind = |worker: &WorkerHandle| worker.shared.generation.load(Ordering::Acquire) < self.generation;
        while self.handles.iter().any(behind) {
            if began.elapsed() > STUCK_AFTER {
                return Err(WorkerStuck);
            }
            if began.elapsed() > INTERRUPT_AFTER {
                self.handles.iter().filter(|worker| behind(worker)).for_each(WorkerHandle::interrupt);
            }
            self.parker.park_timeout(INTERRUPT_AFTER);
        }
        drop(old);
        Ok(())
    }

    /// Hands a frame to the worker that polls its port. A worker that has too many already does not get it.
    pub(crate) fn inject(&self, injection: Injection) {
        self.handles[worker_of(injection.port, self.count())].inject(injection);
    }

    /// Interrupts every worker that has neither slept nor finished a round since the last call. False when one has died.
    pub(crate) fn watch(&mut self) -> bool {
        for (worker, watched) in self.handles.iter().zip(&mut self.watched_rounds) {
            let rounds = worker.shared.rounds.value();
            if rounds == *watched && !worker.shared.asleep.load(Ordering::Relaxed) {
                worker.interrupt();
            }
            *watched = rounds;
        }
        self.handles.iter().all(WorkerHandle::is_alive)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.handles {
            worker.stop();
        }
    }
}
