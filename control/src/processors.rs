//! Which processors workers can be pinned to. Asked before anything is started, so that the operator reads which of those that
//! were named are the wrong ones, and which there are.

use std::io;
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::values::{CpuList, cpu_ranges};

/// Workers can't be pinned to the processors that were named.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// Some are not there, or a cpuset keeps weft from them.
    #[error(
        "no worker can run on {}: {} not there, or weft may not use {}; name others with --cpus, or with cpus in [workers]; weft can use {}",
        processors(unusable),
        if unusable.len() == 1 { "it is" } else { "they are" },
        if unusable.len() == 1 { "it" } else { "them" },
        processors(usable)
    )]
    Unusable {
        /// Those of the named ones that can't be used.
        unusable: Vec<u16>,
        /// All that can be used.
        usable: Vec<u16>,
    },
    /// The operating system does not say.
    #[error("cannot find out which processors weft can use: {0}; leave out --cpus, and cpus in [workers]")]
    Unknown(io::Error),
}

/// Makes sure that a worker can run on each of the processors, those included for which there is no worker.
///
/// # Errors
/// When it can't.
pub(crate) fn check(cpus: &CpuList) -> Result<(), ProcessorError> {
    if cpus.cpus().is_empty() {
        return Ok(());
    }
    let usable = usable().map_err(ProcessorError::Unknown)?;
    let unusable: Vec<_> = cpus.cpus().iter().copied().filter(|cpu| !usable.contains(cpu)).collect();
    if unusable.is_empty() { Ok(()) } else { Err(ProcessorError::Unusable { unusable, usable }) }
}

/// The processors that a thread of ours may choose, which can be more than those that it was started on: `taskset` and
/// `CPUAffinity=` say where to begin, a cpuset says where to stay.
fn usable() -> io::Result<Vec<u16>> {
    thread::scope(|scope| {
        let asking = thread::Builder::new().name("weft-processors".to_owned()).spawn_scoped(scope, || {
            let mut all = CpuSet::new();
            (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
            // The kernel takes what is possible of it (sched_setaffinity(2)). The thread ends here, so nothing is left of it.
            sched_setaffinity(None, &all)?;
            let granted = sched_getaffinity(None)?;
            Ok((0..=CpuList::CPU_MAX).filter(|&cpu| granted.is_set(cpu.into())).collect())
        })?;
        asking.join().unwrap_or_else(|_| Err(io::Error::other("the thread that asked has died")))
    })
}

fn processors(cpus: &[u16]) -> String {
    format!("processor{} {}", if cpus.len() == 1 { "" } else { "s" }, cpu_ranges(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_weft_runs_on_can_be_used() {
        let here = sched_getaffinity(None).unwrap();
        for cpu in (0..=CpuList::CPU_MAX).filter(|&cpu| here.is_set(cpu.into())) {
            assert!(usable().unwrap().contains(&cpu), "processor {cpu}");
        }
    }

    #[test]
    fn asking_moves_nobody_else() {
        let mut one = CpuSet::new();
        let here = sched_getaffinity(None).unwrap();
        one.set((0..CpuSet::MAX_CPU).find(|&cpu| here.is_set(cpu)).unwrap());
        sched_setaffinity(None, &one).unwrap();
        let usable = usable().unwrap();
        assert!(sched_getaffinity(None).unwrap() == one);
        sched_setaffinity(None, &here).unwrap();
        assert!(usable.len() >= here.count() as usize, "a thread can have more than those that it was started on");
    }

    #[test]
    fn processors_that_can_not_be_used_are_all_named() {
        let message = |unusable: &[u16], usable: &[u16]| {
            ProcessorError::Unusable { unusable: unusable.into(), usable: usable.into() }.to_string()
        };
        assert_eq!(
            message(&[7], &[0, 1]),
            "no worker can run on processor 7: it is not there, or weft may not use it; name others with --cpus, or with cpus in \
             [workers]; weft can use processors 0-1"
        );
        assert!(message(&[7, 8, 11], &[3]).contains("processors 7-8,11: they are not there, or weft may not use them;"));
    }
}
