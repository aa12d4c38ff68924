//! A model checker for what threads share: it runs a test in every order, and with every value that a load may see by the memory
//! model. It is [`loom`] with a hole closed.
//!
//! # Theory
//!
//! Loom leaves out orders that can't matter. For that it remembers the last access to each atomic, of whichever thread, and tries
//! another order where two accesses of different threads conflict. But a load replaces the load before it: when a thread
//! loads what another has loaded and then stores there, the store is never tried before the other's load (loom's
//! issues 166 and 392). Whoever looks a key up before replacing it does just that, so a model of a table would run once and find
//! nothing.
//!
//! The atomics here first store to a companion that nobody reads. Two stores always conflict, so every access to an atomic is tried
//! before and after those of other threads to it. That costs time and hides nothing: a relaxed store that is never read orders nothing.
//!
//! A model still covers less than everything: at most so many preemptions as it says, no load that sees a store which
//! happens later (load buffering), and orderings of single accesses up to `AcqRel`; only fences are sequentially consistent.
#![deny(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use loom::cell::UnsafeCell;
pub use loom::sync::atomic::fence;
pub use loom::sync::{Condvar, Mutex, MutexGuard};
pub use loom::thread;

/// Longer than any model here; loom's own limit is for loops that never end.
const MAX_BRANCHES: usize = 20_000;

/// Everything that `model` may return, with at most `preemptions` switches from a thread that could have gone on.
///
/// `model` may be run very often. It must do the same each time, but for the order of its threads. What it shares lives no
/// longer than one run.
pub fn outcomes<T: Ord + Send + 'static>(preemptions: usize, model: impl Fn() -> T + Send + Sync + 'static) -> BTreeSet<T> {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = MAX_BRANCHES;
    let seen = Arc::new(std::sync::Mutex::new((0_usize, BTreeSet::new())));
    let seeing = Arc::clone(&seen);
    builder.check(move || {
        let outcome = model();
        let mut seen = seeing.lock().expect("a model that panics ends everything");
        seen.0 += 1;
        seen.1.insert(outcome);
    });
    let mut seen = seen.lock().expect("a model that panics ends everything");
    println!("{} executions", seen.0);
    std::mem::take(&mut seen.1)
}

macro_rules! atomics {
    ($($name:ident: $value:ty),*) => {$(
        /// As in the standard library, for models.
        #[derive(Debug)]
        pub struct $name {
            companion: loom::sync::atomic::AtomicBool,
            value: loom::sync::atomic::$name,
        }

        #[allow(missing_docs, reason = "as in the standard library")]
        impl $name {
            pub fn new(value: $value) -> Self {
                Self { companion: loom::sync::atomic::AtomicBool::new(false), value: loom::sync::atomic::$name::new(value) }
            }

            /// Stands for what is at this place of the memory that a guest shares. It begins with zero, whatever stands there, and
            /// nothing is written there.
            ///
            /// # Safety
            /// There is nothing to take care of.
            #[allow(unsafe_code, reason = "declared as in the standard library, and does nothing unsafe")]
            pub unsafe fn from_ptr<'a>(ptr: *mut $value) -> &'a Self {
                loom::lazy_static! {
                    static ref PLACES: std::sync::Mutex<BTreeMap<usize, &'static $name>> = Default::default();
                }
                let mut places = PLACES.lock().expect("a model that panics ends everything");
                // Left behind by each execution: some bytes.
                places.entry(ptr.addr()).or_insert_with(|| Box::leak(Box::new(Self::new(0))))
            }

            fn conflict(&self) -> &loom::sync::atomic::$name {
                self.companion.store(true, Ordering::Relaxed);
                &self.value
            }

            pub fn load(&self, ordering: Ordering) -> $value {
                self.conflict().load(ordering)
            }

            pub fn store(&self, value: $value, ordering: Ordering) {
                self.conflict().store(value, ordering);
            }

            pub fn fetch_max(&self, value: $value, ordering: Ordering) -> $value {
                self.conflict().fetch_max(value, ordering)
            }

            pub fn fetch_add(&self, value: $value, ordering: Ordering) -> $value {
                self.conflict().fetch_add(value, ordering)
            }

            pub fn fetch_sub(&self, value: $value, ordering: Ordering) -> $value {
                self.conflict().fetch_sub(value, ordering)
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new(0)
            }
        }
    )*};
}

atomics!(AtomicU16: u16, AtomicU32: u32, AtomicU64: u64, AtomicUsize: usize);

/// A thread's rest, as in `crossbeam`: a wake-up is kept until it is taken. But no time-out ends it, so that a lost wake-up is found.
#[derive(Debug, Default)]
pub struct Parker {
    unparker: Unparker,
}

impl Parker {
    /// A parker that nobody has woken.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What wakes it.
    #[must_use]
    pub fn unparker(&self) -> &Unparker {
        &self.unparker
    }

    /// Waits for a wake-up.
    ///
    /// # Panics
    /// Never.
    pub fn park(&self) {
        let (token, changed) = &*self.unparker.0;
        let mut token = token.lock().expect("loom's locks are not poisoned");
        while !*token {
            token = changed.wait(token).expect("loom's locks are not poisoned");
        }
        *token = false;
    }

    /// Waits for a wake-up, however long that takes.
    pub fn park_timeout(&self, _: Duration) {
        self.park();
    }
}

/// What wakes a [`Parker`].
#[derive(Clone, Debug, Default)]
pub struct Unparker(Arc<(Mutex<bool>, Condvar)>);

impl Unparker {
    /// Wakes it.
    ///
    /// # Panics
    /// Never.
    pub fn unpark(&self) {
        let (token, changed) = &*self.0;
        *token.lock().expect("loom's locks are not poisoned") = true;
        changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Ordering::{Acquire, Relaxed, Release, SeqCst};

    /// What loom alone does not find.
    #[test]
    fn a_store_behind_a_load_is_tried_before_the_load_of_another_thread() {
        let seen = outcomes(2, || {
            let word = Arc::new(AtomicU64::new(0));
            let writer = thread::spawn({
                let word = Arc::clone(&word);
                move || {
                    word.load(Relaxed);
                    word.store(1, Relaxed);
                }
            });
            let seen = word.load(Relaxed);
            writer.join().unwrap();
            seen
        });
        assert_eq!(seen, BTreeSet::from([0, 1]));
    }

    fn message_passing(store: Ordering) -> BTreeSet<(u64, u64)> {
        outcomes(2, move || {
            let words = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
            let writer = thread::spawn({
                let words = Arc::clone(&words);
                move || {
                    words.0.store(1, Relaxed);
                    words.1.store(1, store);
                }
            });
            let seen = (words.1.load(Acquire), words.0.load(Relaxed));
            writer.join().unwrap();
            seen
        })
    }

    #[test]
    fn the_companion_orders_nothing() {
        assert_eq!(message_passing(Relaxed), BTreeSet::from([(0, 0), (0, 1), (1, 0), (1, 1)]));
        assert_eq!(message_passing(Release), BTreeSet::from([(0, 0), (0, 1), (1, 1)]));
    }

    fn store_buffering(fences: bool) -> BTreeSet<(u64, u64)> {
        outcomes(2, move || {
            let words = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
            let exchange = move |mine: &AtomicU64, yours: &AtomicU64| {
                mine.store(1, Relaxed);
                if fences {
                    fence(SeqCst);
                }
                yours.load(Relaxed)
            };
            let other = thread::spawn({
                let words = Arc::clone(&words);
                move || exchange(&words.0, &words.1)
            });
            let seen = exchange(&words.1, &words.0);
            (seen, other.join().unwrap())
        })
    }

    #[test]
    fn a_store_waits_for_a_load_without_a_fence_only() {
        assert!(store_buffering(false).contains(&(0, 0)));
        assert_eq!(store_buffering(true), BTreeSet::from([(0, 1), (1, 0), (1, 1)]));
    }
}
