//! Which of a receiver's rings a worker writes to.

/// Which of a receiver's rings a worker writes to. Each has its own where there are enough: then no two workers wait for each
/// other, and the flows of one sender, which one worker polls, stay in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingChoice {
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
    pub(super) fn new(rings: usize, worker: usize, workers: usize) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::MAX_QUEUE_PAIRS;

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
