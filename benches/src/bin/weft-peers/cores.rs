//! The two cores of a comparison: whether they may be used, and how far they are from each other.
//!
//! Every frame travels between the core of the load and the core of the switch, so the time that a cache line takes from one to
//! the other decides much of every figure here. On a virtual machine it is not a constant: the host moves the virtual cores about,
//! from neighbours in one cluster to strangers on two dies and back, for seconds or minutes at a time, and everybody's figures move by
//! half. A round in which that happens compares two machines, not two switches. So the distance is measured around every turn.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Exchanges of which the time is taken together.
const EXCHANGES: u64 = 500;
/// How often it is taken; the median counts.
const TIMES: usize = 21;
/// No more times are taken after this: somebody else has the cores.
const LIMIT: Duration = Duration::from_millis(200);
/// Distances that differ by less are the same: 70 to 130 ns between neighbours here, and more than 400 between strangers.
const SAME: f64 = 2.0;

/// One of the two does not play any more.
const GONE: u64 = u64::MAX;

/// Why the cores can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CoresError {
    #[error("core {0} may not be used here: choose others with --switch-core and --load-core")]
    NotAllowed(usize),
    #[error("core {0} can't do both: choose two with --switch-core and --load-core")]
    Same(usize),
    #[error("which cores may be used can't be told: {0}")]
    Unknown(#[from] io::Error),
}

/// One counter in a cache line of its own.
#[repr(align(128))]
struct Ball(AtomicU64);

/// A switch that shared its core with the load would be measured at nothing.
pub(crate) fn check(switch: usize, load: usize) -> Result<(), CoresError> {
    let allowed = sched_getaffinity(None).map_err(io::Error::from)?;
    if let Some(core) = [switch, load].into_iter().find(|&core| core >= CpuSet::MAX_CPU || !allowed.is_set(core)) {
        return Err(CoresError::NotAllowed(core));
    }
    if switch == load { Err(CoresError::Same(switch)) } else { Ok(()) }
}

/// The time that a cache line takes from one core to the other and back, in nanoseconds.
pub(crate) fn distance_ns(switch: usize, load: usize) -> io::Result<f64> {
    let ball = Ball(AtomicU64::new(0));
    let on = |core, game: fn(&AtomicU64) -> Vec<f64>| {
        let times = pin(core).map(|()| game(&ball.0));
        // Whoever leaves, for whatever reason, ends the game for the other as well.
        ball.0.store(GONE, Ordering::Release);
        times
    };
    std::thread::scope(|scope| {
        let away = scope.spawn(|| on(switch, play_back));
        let home = scope.spawn(|| on(load, play));
        let times = home.join().expect("it does not panic");
        away.join().expect("it does not panic")?;
        let mut times = times?;
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().ok_or_else(|| io::Error::other("the cores did not meet"))
    })
}

/// True when a machine with these distances was one and the same machine all the time.
pub(crate) fn is_steady(distances_ns: &[f64]) -> bool {
    let min = distances_ns.iter().copied().fold(f64::INFINITY, f64::min);
    let max = distances_ns.iter().copied().fold(0.0, f64::max);
    max <= min * SAME
}

fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

/// Makes the counter odd and waits until it is even, again and again. At least one time is taken.
fn play(ball: &AtomicU64) -> Vec<f64> {
    let begin = Instant::now();
    let mut times = Vec::with_capacity(TIMES);
    while times.len() < TIMES && (times.is_empty() || begin.elapsed() < LIMIT) {
        let start = Instant::now();
        let mut exchanges = 0;
        while exchanges < EXCHANGES {
            match ball.load(Ordering::Acquire) {
                GONE => return times,
                count if count % 2 == 0 => exchanges += u64::from(count_on(ball, count)),
                _ => {}
            }
        }
        times.push(start.elapsed().as_nanos() as f64 / EXCHANGES as f64);
    }
    times
}

/// Makes it even again.
fn play_back(ball: &AtomicU64) -> Vec<f64> {
    loop {
        match ball.load(Ordering::Acquire) {
            GONE => return Vec::new(),
            count if count % 2 == 1 => drop(count_on(ball, count)),
            _ => {}
        }
    }
}

/// Not a plain store, which could overwrite that the other is gone.
fn count_on(ball: &AtomicU64, count: u64) -> bool {
    ball.compare_exchange(count, count + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> Vec<usize> {
        let allowed = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect()
    }

    #[test]
    fn one_core_can_not_do_both() {
        let core = allowed()[0];
        assert!(matches!(check(core, core), Err(CoresError::Same(_))));
        assert!(matches!(check(core, usize::MAX), Err(CoresError::NotAllowed(usize::MAX))));
    }

    #[test]
    fn two_cores_are_some_way_from_each_other() {
        let [first, second, ..] = allowed()[..] else { return };
        check(first, second).unwrap();
        assert!(distance_ns(first, second).unwrap() > 1.0);
    }

    #[test]
    fn a_core_that_is_not_there_is_an_error_and_no_endless_wait() {
        let core = allowed()[0];
        for (switch, load) in [(core, CpuSet::MAX_CPU - 1), (CpuSet::MAX_CPU - 1, core)] {
            assert!(distance_ns(switch, load).is_err());
        }
    }

    #[test]
    fn a_machine_is_steady_when_its_distances_are_alike() {
        assert!(is_steady(&[90.0, 100.0, 95.0]));
        assert!(!is_steady(&[90.0, 300.0, 95.0]));
    }
}
