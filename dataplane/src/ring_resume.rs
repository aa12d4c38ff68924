//! Where a packed ring stands, read from its descriptors' flags.
//!
//! # Theory
//!
//! A packed ring has no index in memory, and front-ends forget: after a crash of the back-end QEMU tells the next one where the
//! ring stood when it was last stopped in good order, which may be many laps ago. Both sides would wait for each other for ever.
//!
//! But the ring itself knows. When the driver makes a descriptor available it sets USED to the opposite of its wrap counter, and
//! when the device has used it, it sets USED to that counter (virtio 1.2, section 2.8.1). On the next lap the counter is flipped, so
//! the driver leaves USED as it is: the device alone ever changes it. Going round the ring, with the counter flipped at its end,
//! USED therefore changes in one place, which is where the device goes on; from there on a run of descriptors may be available, and
//! all others are used.
//!
//! Complications:
//!
//! * Of a chain only the first descriptor becomes used, with `IN_ORDER` even only the first of a batch. What the device passed over
//!   still looks available. So it is only believed that the front-end is wrong where no passed over descriptors can explain what it
//!   says: the last descriptor of a chain has the id that was returned for its first. Where USED changes in more places nothing is believed; drivers with `INDIRECT_DESC` hardly ever have such rings.
//! * The device writes the first descriptor of a batch last. Killed in the middle of that, it leaves the others used behind a gap,
//!   at which the driver waits. The gap has to be closed, and the device goes on behind the others.
//! * The driver runs while we look. It makes descriptors available in their order, which a look in the order of the table may miss;
//!   then nothing is found.

use crate::ring::NEXT;
use crate::ring_packed::{AVAIL, Place, USED};

/// What a descriptor tells here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slot {
    pub(crate) flags: u16,
    pub(crate) id: u16,
}

/// Where a ring stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) place: Place,
    /// A descriptor before that which was not made used although others behind it were.
    pub(crate) gap: Option<u16>,
}

/// What a look at a ring has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It may well stand where it was said to.
    AsTold,
    /// It can't, and stands here.
    At(Standing),
    /// Nothing: the driver may have changed it meanwhile.
    Unclear,
}

/// Where a ring of these stands, which is said to stand at `told`. With `skips`, any number of chains may have been passed over.
pub(crate) fn find_place(slots: &[Slot], told: Place, skips: bool) -> Finding {
    let flags: Vec<u16> = slots.iter().map(|slot| slot.flags).collect();
    let Some(found) = find(&flags) else { return Finding::Unclear };
    // No truncation: at most 32,768 descriptors.
    let size = slots.len() as u16;
    let ahead = (told.linear(size) + 2 * u32::from(size) - found.place.linear(size)) % (2 * u32::from(size));
    let run = available_from(&flags, found.place).count();
    if ahead as usize > run {
        return Finding::At(found);
    }
    // What lies between is available, or the rest of a chain: then it goes on up to the last one.
    let between: Vec<usize> = available_from(&flags, found.place).take(ahead as usize).collect();
    let is_rest = between.split_last().is_none_or(|(&last, others)| {
        let returned = slots[(usize::from(found.place.index) + slots.len() - 1) % slots.len()];
        // Once something else is available there, nobody knows what was returned.
        let may_be_of_it = slots[last].id == returned.id || looks_available(returned.flags);
        flags[last] & NEXT == 0 && may_be_of_it && others.iter().all(|&index| flags[index] & NEXT != 0)
    });
    if is_rest || skips { Finding::AsTold } else { Finding::At(found) }
}

/// Where USED changes, if the rest of the ring bears that out.
fn find(flags: &[u16]) -> Option<Standing> {
    let size = flags.len();
    let used = |flags: &u16| flags & USED != 0;
    // Each but the first against the one before; at the end the first one in its next lap.
    let inside = flags.windows(2).zip(1..).filter(|(pair, _)| used(&pair[0]) != used(&pair[1])).map(|(_, at)| at);
    let at_the_end = flags.first().zip(flags.last()).filter(|(first, last)| used(first) == used(last)).map(|_| size);
    let mut changes = inside.chain(at_the_end);
    let (first, more) = (changes.next()?, [changes.next(), changes.next()]);
    if changes.next().is_some() {
        return None;
    }
    let (next, gap) = match more {
        [Some(second), Some(third)] => {
            let (next, gap) = behind_gap([first, second, third], size)?;
            (next, Some(gap))
        }
        _ => (first, None),
    };
    // A gap that is a chain could be closed only if its end were known to belong to it.
    if gap.is_some_and(|gap| !looks_available(flags[gap]) || flags[gap] & NEXT != 0) {
        return None;
    }
    let index = next % size;
    // No truncation, here and below: at most 32,768 descriptors.
    let place = Place::new(index as u16, flags[index] & USED == 0);
    let run = available_from(flags, place).count();
    let others = (run..size).map(|nth| around(index + nth, size)).filter(|&at| Some(at) != gap);
    others.map(|at| flags[at]).all(|flags| !looks_available(flags)).then_some(Standing { place, gap: gap.map(|at| at as u16) })
}

/// Of three changes, two around a gap and the one behind what was used after it: the third, and where the gap is. The gap and what
/// comes after it are the smaller part of the ring.
fn behind_gap([a, b, c]: [usize; 3], size: usize) -> Option<(usize, usize)> {
    let ways = [[a, b, c], [b, c, a + size], [c, a + size, b + size]];
    let mut likely = ways.into_iter().filter(|[gap, behind, next]| *behind == gap + 1 && next - gap <= size / 2);
    match (likely.next(), likely.next()) {
        (Some([gap, _, next]), None) => Some((next, gap % size)),
        _ => None,
    }
}

/// The run of descriptors that look available, from a place on.
fn available_from(flags: &[u16], place: Place) -> impl Iterator<Item = usize> + '_ {
    let all = (0..flags.len()).map(move |nth| around(usize::from(place.index) + nth, flags.len()));
    all.take_while(|&index| looks_available(flags[index]))
}

/// The index of what is less than a lap beyond the end. A remainder would take most of the time of a look.
fn around(at: usize, size: usize) -> usize {
    if at < size { at } else { at - size }
}

fn looks_available(flags: u16) -> bool {
    (flags & AVAIL != 0) != (flags & USED != 0)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A ring with both its sides, as far as the flags go.
    #[derive(Debug)]
    struct Model {
        slots: Vec<Slot>,
        driver: Place,
        device: Place,
        /// How many descriptors the chains have that are out, and their ids.
        out: VecDeque<(u16, u16)>,
        /// No two have the same until all were had.
        id: u16,
        free: u16,
    }

    impl Model {
        fn new(size: u16) -> Self {
            let start = Place::new(0, true);
            let slots = vec![Slot::default(); size.into()];
            Self { slots, driver: start, device: start, out: VecDeque::new(), id: 1, free: size }
        }

        fn size(&self) -> u16 {
            self.slots.len() as u16
        }

        /// Makes a chain available if there is room for it.
        fn offer(&mut self, len: u16) {
            if len > self.free {
                return;
            }
            for nth in 0..len {
                let turn = if self.driver.wrap() { AVAIL } else { USED };
                let flags = turn | if nth + 1 < len { NEXT } else { 0 };
                self.slots[usize::from(self.driver.index)] = Slot { flags, id: self.id };
                self.driver = self.driver.advance(1, self.size());
            }
            self.free -= len;
            self.out.push_back((len, self.id));
            self.id = self.id.wrapping_add(1);
        }

        /// Uses as many chains as are out, at most `count`; with `skips`, only the first is marked. Returns where those are
        /// that were marked.
        fn complete(&mut self, count: usize, skips: bool) -> Vec<u16> {
            let mut marked = Vec::new();
            for nth in 0..count.min(self.out.len()) {
                let (len, id) = self.out.pop_front().unwrap();
                if nth == 0 || !skips {
                    let flags = if self.device.wrap() { AVAIL | USED } else { 0 };
                    self.slots[usize::from(self.device.index)] = Slot { flags, id };
                    marked.push(self.device.index);
                }
                self.device = self.device.advance(len, self.size());
                self.free += len;
            }
            marked
        }

        fn place(&self, nth: u32) -> Place {
            let size = u32::from(self.size());
            Place::new((nth % size) as u16, (nth / size).is_multiple_of(2))
        }
    }

    fn steps() -> impl Strategy<Value = Vec<(u16, usize)>> {
        prop::collection::vec((0..12_u16, 0..8_usize), 0..60)
    }

    proptest! {
        /// Whatever chains there were, and whatever was passed over.
        #[test]
        fn a_front_end_that_is_right_is_believed(
            size in 1..40_u16,
            steps in prop::collection::vec((1..5_u16, 0..6_u16, 0..6_usize), 0..60),
            skips in any::<bool>(),
        ) {
            let mut ring = Model::new(size);
            for (len, offered, completed) in steps {
                (0..offered).for_each(|_| ring.offer(len));
                ring.complete(completed, skips);
                let found = find_place(&ring.slots, ring.device, skips);
                prop_assert!(!matches!(found, Finding::At(_)), "{:?} in {:?}", found, ring);
            }
        }

        #[test]
        fn where_chains_have_one_descriptor_the_place_is_found_whatever_is_said(
            size in 1..40_u16,
            steps in steps(),
            told in 0..80_u32,
        ) {
            let mut ring = Model::new(size);
            for (offered, completed) in steps {
                (0..offered).for_each(|_| ring.offer(1));
                ring.complete(completed, false);
            }
            let told = ring.place(told);
            // With everything available, one that was passed over can't be told from the others.
            let is_in_doubt = told == ring.device.advance(1, size) && ring.free == 0;
            let standing = Standing { place: ring.device, gap: None };
            let expected = if told == ring.device || is_in_doubt { Finding::AsTold } else { Finding::At(standing) };
            prop_assert_eq!(find_place(&ring.slots, told, false), expected, "{:?}", ring);
        }

        /// What lies behind the returned one may be the rest of its chain: the ids are the same.
        #[test]
        fn where_there_is_doubt_the_front_end_is_believed(size in 2..40_u16) {
            let mut ring = Model::new(size);
            ring.offer(1);
            ring.complete(1, false);
            ring.id = 1;
            ring.offer(1);
            let told = ring.device.advance(1, size);
            prop_assert_eq!(find_place(&ring.slots, told, false), Finding::AsTold, "{:?}", ring);
        }

        #[test]
        fn a_gap_is_found_with_the_place_behind_it(
            size in 8..40_u16,
            steps in steps(),
            last in 2..4_usize,
            told in 0..80_u32,
        ) {
            let mut ring = Model::new(size);
            for (offered, completed) in steps {
                (0..offered).for_each(|_| ring.offer(1));
                ring.complete(completed, false);
            }
            (0..last).for_each(|_| ring.offer(1));
            let gap = ring.device.index;
            let before = ring.slots[usize::from(gap)];
            prop_assume!(ring.complete(last, false).len() == last);
            ring.slots[usize::from(gap)] = before;
            let told = ring.place(told);
            prop_assume!(told != ring.device && !(told == ring.device.advance(1, size) && ring.free == 0));
            prop_assert_eq!(find_place(&ring.slots, told, false), Finding::At(Standing { place: ring.device, gap: Some(gap) }), "{:?}", ring);
        }

        #[test]
        fn any_flags_lead_to_a_place_in_the_ring(seen in prop::collection::vec(any::<(u16, u16)>(), 1..40), told in 0..80_u32) {
            let slots: Vec<Slot> = seen.into_iter().map(|(flags, id)| Slot { flags, id }).collect();
            let size = slots.len() as u16;
            let told = Place::new((told % u32::from(size)) as u16, (told / u32::from(size)).is_multiple_of(2));
            if let Finding::At(Standing { place, gap }) = find_place(&slots, told, false) {
                prop_assert!(place.index < size && gap.is_none_or(|gap| gap < size));
            }
        }
    }
}
