//! How the owner learns that no worker uses an older snapshot any more.
//!
//! # Theory
//!
//! Every worker has a [`Boundary`], where it notes the generation of the newest snapshot that it took up; what it did with
//! older ones lies before. The owner puts a new snapshot in place, wakes the workers, and waits until all have passed.
//!
//! What a worker did with an older snapshot happens before what the owner does afterwards: the note is a release, the look
//! an acquire. And no wake-up is lost, because a parker keeps one. A worker notes, then unparks; the owner looks, then parks. When a
//! look comes too early for a note, the unparking comes after that look, and ends the parking or keeps it from beginning. The
//! other way round the same holds for a worker that falls asleep as a new snapshot comes, with its poll in the place of the parker.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::sync::{AtomicU64, Parker, Unparker};

/// Where one worker says how far it is.
#[derive(Debug)]
pub(crate) struct Boundary {
    generation: AtomicU64,
    owner: Unparker,
}

impl Boundary {
    /// Says that every snapshot older than this generation is out of use, once and for all. True if it is a new one. Only for the
    /// worker itself.
    pub(crate) fn pass(&self, generation: u64) -> bool {
        let new = self.generation.load(Ordering::Relaxed) != generation;
        if new {
            self.generation.store(generation, Ordering::Release);
            self.owner.unpark();
        }
        new
    }

    /// True when the worker uses nothing older than this generation.
    pub(crate) fn is_passed(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Acquire) >= generation
    }
}

/// Where the owner waits for the workers.
#[derive(Debug)]
pub(crate) struct Boundaries {
    parker: Parker,
}

impl Boundaries {
    pub(crate) fn new() -> Self {
        Self { parker: Parker::new() }
    }

    /// The boundary of one more worker, which has used nothing yet.
    pub(crate) fn add(&self) -> Boundary {
        Boundary { generation: AtomicU64::new(0), owner: self.parker.unparker().clone() }
    }

    /// Waits until all have passed. When that takes longer than `patience`, `late` is told how long it has taken, and again after as
    /// much; an error from it ends the wait.
    pub(crate) fn wait<E>(
        &self,
        all_passed: impl Fn() -> bool,
        patience: Duration,
        late: impl Fn(Duration) -> Result<(), E>,
    ) -> Result<(), E> {
        let began = Instant::now();
        while !all_passed() {
            let waited = began.elapsed();
            if waited > patience {
                late(waited)?;
            }
            self.parker.park_timeout(patience);
        }
        Ok(())
    }
}

#[cfg(all(test, loom))]
#[allow(clippy::arc_with_non_send_sync, reason = "the model checker watches over what is shared, and runs one thread at a time")]
mod models {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use weft_model::{AtomicUsize, UnsafeCell, outcomes, thread};

    use super::*;

    /// How often the owner publishes.
    const GENERATIONS: usize = 2;

    /// What a worker and its owner share.
    struct Shared {
        /// Which snapshot is the newest.
        newest: AtomicUsize,
        /// What belongs to each: whoever uses it while another takes it away is found out.
        snapshots: [UnsafeCell<()>; GENERATIONS + 1],
    }

    /// As [`crate::worker::Worker`] goes round: it takes the newest snapshot, passes its boundary, uses what it took, and sleeps if it
    /// does. Returns how many rounds there were.
    fn work(shared: &Shared, boundary: &Boundary, sleep: impl Fn()) -> usize {
        for round in 1.. {
            let newest = shared.newest.load(Ordering::Acquire);
            boundary.pass(newest as u64);
            shared.snapshots[newest].with(|_| ());
            if newest == GENERATIONS {
                return round;
            }
            sleep();
        }
        unreachable!("the last snapshot comes")
    }

    fn publish(shared: &Shared, owner: &Boundaries, workers: &[(Arc<Boundary>, Unparker)]) {
        for newest in 1..=GENERATIONS {
            shared.newest.store(newest, Ordering::Release);
            workers.iter().for_each(|(_, waker)| waker.unpark());
            let all_passed = || workers.iter().all(|(boundary, _)| boundary.is_passed(newest as u64));
            owner.wait(all_passed, Duration::MAX, |_| Err("nobody is late")).unwrap();
            shared.snapshots[newest - 1].with_mut(|_| ());
        }
    }

    fn rounds(preemptions: usize, workers: usize) -> BTreeSet<Vec<usize>> {
        outcomes(preemptions, move || {
            let shared = Arc::new(Shared { newest: AtomicUsize::new(0), snapshots: Default::default() });
            let owner = Boundaries::new();
            let start = |_| {
                let (shared, boundary, parker) = (Arc::clone(&shared), Arc::new(owner.add()), Parker::new());
                let seen_by_owner = (Arc::clone(&boundary), parker.unparker().clone());
                (seen_by_owner, thread::spawn(move || work(&shared, &boundary, || parker.park())))
            };
            let (workers, threads): (Vec<_>, Vec<_>) = (0..workers).map(start).unzip();
            publish(&shared, &owner, &workers);
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// A lost wake-up would be a deadlock.
    #[test]
    fn nobody_uses_what_was_replaced_and_no_wake_up_is_lost() {
        let seen = rounds(3, 1);
        assert!(seen.contains(&vec![GENERATIONS]) && seen.contains(&vec![GENERATIONS + 1]), "{seen:?}");
    }

    #[test]
    fn the_owner_waits_for_the_last_worker() {
        let seen = rounds(2, 2);
        assert!(seen.contains(&vec![GENERATIONS; 2]), "{seen:?}");
    }
}
