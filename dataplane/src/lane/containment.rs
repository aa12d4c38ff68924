//! What is left of a worker when a fault in weft makes it panic over a guest's frames.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Lane;
use crate::ring::RingFault;
use crate::snapshot::PortLink;

impl Lane {
    /// Does what a port's guest has asked for. A panic ends this port and no other; then there is no result, and what was under way is
    /// forgotten: frames of it may be lost without being counted.
    pub(super) fn contain<T>(&mut self, port: &PortLink, work: impl FnOnce(&mut Self) -> T) -> Option<T> {
        // Of all that may be left half done, the lane alone is put right here. Who takes a lock asks nobody whether its last holder
        // panicked, and what is in rings and tables is checked where it is used.
        let done = catch_unwind(AssertUnwindSafe(|| work(self)));
        if done.is_err() {
            self.forget();
            port.rings.from_guest.iter().for_each(|ring| self.report(port, ring, RingFault::Panicked));
        }
        done.ok()
    }

    /// Lets go of everything but what receivers have already got and are still to be shown.
    #[cold]
    fn forget(&mut self) {
        let fresh = Self::new(self.worker, self.workers, self.clock, self.faults.clone());
        let (unshown, waiting) = (std::mem::take(&mut self.unshown), std::mem::take(&mut self.waiting));
        *self = Self { masks: vec![0; self.masks.len()], unshown, waiting, moved: self.moved, ..fresh };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_sys_util::eventfd::EventFd;
    use weft_switch::PortId;

    use super::*;
    use crate::fabric::tests::{port, ring};
    use crate::lane::FaultReports;
    use crate::worker::Clock;

    #[test]
    fn a_panic_over_a_ports_frames_ends_that_port_and_leaves_nothing_of_its_batch() {
        let (queue, reports) = crossbeam::channel::unbounded();
        let faults = FaultReports { queue, event: Arc::new(EventFd::new(0).unwrap()) };
        let mut lane = Lane::new(0, 1, Clock::start(), faults);
        (lane.masks, lane.unshown) = (vec![0; 3], vec![0; 3]);
        let (culprit, other) = (port(PortId(0), vec![ring(), ring()]), port(PortId(1), vec![ring()]));
        lane.remember_to_flush(PortId(2), 0);
        let done = lane.contain(&culprit, |lane| {
            lane.masks[1] = 0b11;
            lane.receivers.push(PortId(1));
            lane.for_gateway = 1;
            panic!("as a fault in weft does");
        });
        assert_eq!(done, None::<bool>);
        let of_culprit: Vec<_> = culprit.rings.from_guest.iter().map(|ring| (ring.id, RingFault::Panicked)).collect();
        assert_eq!(reports.try_iter().map(|report| (report.ring_id, report.fault)).collect::<Vec<_>>(), of_culprit);
        assert_eq!((&lane.masks, lane.receivers.len(), lane.for_gateway), (&vec![0; 3], 0, 0));
        assert_eq!(lane.waiting, [PortId(2)], "what a receiver got before is not forgotten");
        // The next port's turn.
        assert_eq!(lane.contain(&other, |_| true), Some(true));
        assert!(!other.rings.from_guest[0].is_broken() && reports.is_empty());
    }
}
