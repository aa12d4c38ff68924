//! What the workers see of the configuration, and how it is changed under them.
//!
//! # Theory
//!
//! A [`Snapshot`] never changes. The owner of the dataplane builds a new one from what it knows, [`Workers::publish`]es it,
//! and gets control back when every worker has finished the round in which it may have used an older one (each takes the
//! newest at the start of a round and notes its generation). From that moment on nobody touches what the new
//! snapshot no longer names, and the front-end can be told so.
//!
//! Memory safety does not hang on that wait: rings, and the memory below them, live as long as a snapshot that names them.
//!
//! Lock order: a worker holds one `from_guest` ring and then one `to_guest` ring, never two of a kind. The owner locks
//! one ring at a time, after it was taken out of the snapshot or to set its call descriptor.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::channel::Sender;
use crossbeam::sync::{Parker, Unparker};
use weft_switch::{Fdb, NetworkId, PortId};

use crate::counters::PortCounters;
use crate::vhost_port::{FromGuest, ToGuest};
use crate::worker::WorkerHandle;

/// How long a worker may take to pass a batch boundary before it counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// How long until a worker that does not answer is interrupted, in case it hangs in a system call.
const INTERRUPT_AFTER: Duration = Duration::from_millis(20);

/// Everything that a worker needs to know, as it is at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    generation: u64,
    /// By [`PortId::index`].
    ports: Vec<Option<Arc<PortLink>>>,
    /// By [`NetworkId::index`].
    networks: Vec<Option<NetworkLink>>,
    /// For each worker the rings that it polls.
    polled: Vec<Vec<PolledRing>>,
}

/// A network as workers see it.
#[derive(Debug)]
pub(crate) struct NetworkLink {
    pub(crate) fdb: Arc<Fdb>,
    /// The ports that can receive right now.
    pub(crate) members: Vec<PortId>,
}

/// A port as workers see it.
#[derive(Debug)]
pub(crate) struct PortLink {
    pub(crate) id: PortId,
    pub(crate) network: NetworkId,
    pub(crate) counters: Arc<PortCounters>,
    pub(crate) rings: RunningRings,
}

/// The rings of a port that run.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunningRings {
    pub(crate) from_guest: Vec<Arc<RingLink<FromGuest>>>,
    /// Where frames for the guest go: the first queue pair's.
    pub(crate) to_guest: Option<Arc<RingLink<ToGuest>>>,
}

/// A ring with its port.
#[derive(Debug)]
pub(crate) struct PolledRing {
    pub(crate) port: Arc<PortLink>,
    pub(crate) ring: Arc<RingLink<FromGuest>>,
}

/// A ring that runs.
#[derive(Debug)]
pub(crate) struct RingLink<R> {
    /// The ring's index in the vhost-user protocol.
    pub(crate) index: u16,
    /// Different for every ring that was ever started.
    pub(crate) id: u64,
    /// The front-end gave no kick descriptor: the ring must be looked at without being asked.
    pub(crate) without_kick: bool,
    enabled: AtomicBool,
    broken: AtomicBool,
    ring: Mutex<R>,
}

impl<R> RingLink<R> {
    pub(crate) fn new(index: u16, enabled: bool, without_kick: bool, ring: R) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            index,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            without_kick,
            enabled: AtomicBool::new(enabled),
            broken: AtomicBool::new(false),
            ring: Mutex::new(ring),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, R> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// True once a fault was found; nobody touches the ring again.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub(crate) fn set_broken(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }
}

impl Snapshot {
    /// Puts together what the workers are to see. `networks` and `ports` are indexed by their ids.
    pub(crate) fn new(networks: Vec<Option<Arc<Fdb>>>, ports: Vec<Option<Arc<PortLink>>>, workers: usize) -> Self {
        let receives = |port: &PortLink| port.rings.to_guest.as_ref().is_some_and(|ring| ring.is_enabled());
        let members = |network: usize| {
            let in_network = ports.iter().flatten().filter(|port| port.network.index() == network);
            in_network.filter(|port| receives(port)).map(|port| port.id).collect()
        };
        let network_link = |(index, fdb): (usize, Option<Arc<Fdb>>)| Some(NetworkLink { fdb: fdb?, members: members(index) });
        let networks = networks.into_iter().enumerate().map(network_link).collect();
        let mut polled: Vec<Vec<PolledRing>> = (0..workers).map(|_| Vec::new()).collect();
        for port in ports.iter().flatten() {
            for ring in &port.rings.from_guest {
                polled[worker_of(port.id, workers)].push(PolledRing { port: Arc::clone(port), ring: Arc::clone(ring) });
            }
        }
        Self { generation: 0, ports, networks, polled }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn port(&self, id: PortId) -> Option<&Arc<PortLink>> {
        self.ports.get(id.index())?.as_ref()
    }

    /// One more than the highest port index.
    pub(crate) fn port_places(&self) -> usize {
        self.ports.len()
    }

    pub(crate) fn network(&self, id: NetworkId) -> Option<&NetworkLink> {
        self.networks.get(id.index())?.as_ref()
    }

    /// The rings that a worker polls.
    pub(crate) fn polled_by(&self, worker: usize) -> &[PolledRing] {
        self.polled.get(worker).map_or(&[], Vec::as_slice)
    }
}

/// The worker that polls a port's rings.
pub(crate) fn worker_of(port: PortId, workers: usize) -> usize {
    port.index() % workers
}

/// What one worker tells the owner.
#[derive(Debug)]
pub(crate) struct WorkerShared {
    pub(crate) rounds: AtomicU64,
    pub(crate) busy_rounds: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    /// It waits for a kick, a snapshot or a command, and touches nothing.
    pub(crate) asleep: AtomicBool,
    /// The generation of the only snapshot that it may be using.
    generation: AtomicU64,
    unparker: Unparker,
}

impl WorkerShared {
    pub(crate) fn new(unparker: Unparker) -> Self {
        Self {
            rounds: AtomicU64::new(0),
            busy_rounds: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
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

/// Something to be done by a worker at the start of its next round.
#[derive(Debug)]
pub(crate) enum Command {
    /// Forward this frame as if `port` had sent it.
    Inject { port: PortId, frame: Vec<u8> },
    /// End.
    Stop,
}

impl Workers {
    /// `start` makes a worker's handle from the snapshots that it is to follow and its number.
    pub(crate) fn start<E>(
        count: usize,
        start: impl Fn(usize, Arc<ArcSwap<Snapshot>>, Unparker) -> Result<WorkerHandle, E>,
    ) -> Result<Self, E> {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let parker = Parker::new();
        let handles: Result<Vec<_>, E> =
            (0..count).map(|worker| start(worker, Arc::clone(&snapshot), parker.unparker().clone())).collect();
        Ok(Self { snapshot, generation: 0, parker, handles: handles?, watched_rounds: vec![0; count] })
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
        let deadline = Instant::now();
        for worker in &self.handles {
            worker.wake();
        }
        let behind = |worker: &WorkerHandle| worker.shared.generation.load(Ordering::Acquire) < self.generation;
        while self.handles.iter().any(behind) {
            if deadline.elapsed() > STUCK_AFTER {
                return Err(WorkerStuck);
            }
            if deadline.elapsed() > INTERRUPT_AFTER {
                self.handles.iter().filter(|worker| behind(worker)).for_each(WorkerHandle::interrupt);
            }
            self.parker.park_timeout(INTERRUPT_AFTER);
        }
        drop(old);
        Ok(())
    }

    /// Hands a command to the worker that polls `port`.
    pub(crate) fn command(&self, port: PortId, command: Command) {
        let worker = &self.handles[worker_of(port, self.count())];
        worker.send(command);
    }

    /// Interrupts every worker that has neither slept nor finished a round since the last call. False when one has died.
    pub(crate) fn watch(&mut self) -> bool {
        for (worker, watched) in self.handles.iter().zip(&mut self.watched_rounds) {
            let rounds = worker.shared.rounds.load(Ordering::Relaxed);
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

/// The owner's end of a worker's commands.
pub(crate) type Commands = Sender<Command>;
