use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;
use crate::MacAddr;

const A: PortId = PortId(0);
const B: PortId = PortId(1);

fn fdb(capacity: usize) -> Fdb {
    Fdb::new(FdbSettings::new(capacity, Duration::from_secs(300)), &Arc::default())
}

fn mac(number: u64) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | number)
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn count(fdb: &Fdb, port: PortId) -> usize {
    fdb.entries(at(0)).iter().filter(|entry| entry.port == port).count()
}

#[test]
fn a_station_is_found_where_it_was_last_heard() {
    let fdb = fdb(16);
    assert_eq!(fdb.lookup(at(0), mac(1)), None);
    assert_eq!(fdb.learn(at(0), mac(1), A), Learned::New);
    assert_eq!(fdb.learn(at(1), mac(1), A), Learned::Known);
    assert_eq!(fdb.lookup(at(1), mac(1)), Some(A));
    assert_eq!(fdb.learn(at(2), mac(1), B), Learned::Moved(A));
    assert_eq!(fdb.lookup(at(2), mac(1)), Some(B));
    assert_eq!(fdb.counters(), FdbCounters { learned: 1, moved: 1, ..FdbCounters::default() });
}

#[test]
fn with_less_room_each_port_keeps_its_fair_share() {
    for (before, after) in [(100, 70), (100, 20)] {
        let table = Arc::new(fdb(before));
        table.reserve(mac(9999), PortId::GATEWAY);
        for (number, port) in (0..5).map(|number| (number, B)).chain((100..190).map(|number| (number, A))) {
            table.learn(at(0), mac(number), port);
        }
        let smaller = table.with_settings(FdbSettings::new(after, Duration::from_secs(300)));
        assert_eq!((smaller.capacity(), smaller.len()), (after, after));
        assert_eq!((count(&smaller, B), count(&smaller, A)), (5, after - 5));
        assert_eq!(smaller.lookup(at(0), mac(9999)), Some(PortId::GATEWAY));
        smaller.release(mac(9999));
        smaller.audit();
    }
}

#[test]
fn a_silent_station_is_forgotten_after_the_ageing_time_and_a_speaking_one_is_not() {
    let fdb = fdb(16);
    fdb.learn(at(0), mac(1), A);
    fdb.learn(at(0), mac(2), A);
    fdb.learn(at(200), mac(2), A);
    assert_eq!(fdb.lookup(at(299), mac(1)), Some(A));
    assert_eq!(fdb.lookup(at(300), mac(1)), None, "found although it is too old");
    fdb.expire(at(300));
    assert_eq!(fdb.len(), 1);
    assert_eq!(fdb.lookup(at(300), mac(2)), Some(A));
    assert_eq!(fdb.counters().expired, 1);
}

#[test]
fn a_shorter_ageing_time_holds_for_what_was_learned_before() {
    let fdb = fdb(16);
    fdb.learn(at(0), mac(1), A);
    fdb.set_ageing(Duration::from_secs(10));
    assert_eq!(fdb.lookup(at(9), mac(1)), Some(A));
    assert_eq!(fdb.lookup(at(10), mac(1)), None);
}

#[test]
fn the_table_holds_its_capacity_and_no_more() {
    let fdb = fdb(10_000);
    for number in 0..10_000 {
        assert_eq!(fdb.learn(at(0), mac(number), A), Learned::New);
    }
    assert_eq!((fdb.len(), fdb.counters().evicted), (10_000, 0));
    assert!((0..10_000).all(|number| fdb.lookup(at(0), mac(number)) == Some(A)));
    fdb.learn(at(0), mac(10_000), A);
    assert_eq!((fdb.len(), fdb.counters().evicted), (10_000, 1));
}

#[test]
fn a_guest_that_floods_the_table_evicts_only_its_own() {
    let fdb = fdb(1000);
    for number in 0..400 {
        fdb.learn(at(0), mac(number), A);
    }
    for number in 1_000_000..1_100_000 {
        fdb.learn(at(0), mac(number), B);
    }
    assert_eq!((count(&fdb, A), count(&fdb, B)), (400, 600));
}

#[test]
fn a_newcomer_finds_room_in_a_table_that_another_guest_has_filled() {
    let fdb = fdb(1000);
    for number in 0..1000 {
        fdb.learn(at(0), mac(number), A);
    }
    for number in 1_000_000..1_000_300 {
        fdb.learn(at(0), mac(number), B);
    }
    assert_eq!((count(&fdb, A), count(&fdb, B)), (700, 300));
}

#[test]
fn the_station_not_heard_of_for_longest_makes_way() {
    let fdb = fdb(4);
    for number in 0..4 {
        fdb.learn(at(0), mac(number), A);
    }
    for number in [0, 1, 3] {
        fdb.learn(at(5), mac(number), A);
    }
    fdb.learn(at(6), mac(9), A);
    assert_eq!(fdb.lookup(at(6), mac(2)), None);
    assert!([0, 1, 3, 9].iter().all(|&number| fdb.lookup(at(6), mac(number)) == Some(A)));
}

#[test]
fn forgetting_a_port_leaves_the_others() {
    let fdb = fdb(100);
    for number in 0..50 {
        fdb.learn(at(0), mac(number), if number % 2 == 0 { A } else { B });
    }
    fdb.forget_port(A);
    assert_eq!((fdb.len(), count(&fdb, B)), (25, 25));
    assert_eq!(fdb.flush(), 25);
    assert!(fdb.is_empty() && fdb.entries(at(0)).is_empty());
}

#[test]
fn a_reserved_address_stays_whatever_happens_to_the_others() {
    let fdb = fdb(100);
    fdb.learn(at(0), mac(7), A);
    fdb.reserve(mac(7), PortId::GATEWAY);
    fdb.reserve(mac(7), PortId::GATEWAY);
    assert_eq!((fdb.len(), fdb.entries(at(0)).len()), (0, 0), "it is no entry");
    for number in 0..5_000 {
        let learned = fdb.learn(at(number / 10), mac(number), B);
        assert_eq!(learned == Learned::Reserved, number == 7, "{number}: {learned:?}");
    }
    fdb.expire(at(100_000));
    fdb.forget_port(B);
    fdb.flush();
    assert_eq!(fdb.lookup(at(100_000), mac(7)), Some(PortId::GATEWAY));
    fdb.release(mac(7));
    fdb.release(mac(8));
    assert_eq!(fdb.lookup(at(100_000), mac(7)), None);
    assert_eq!(fdb.learn(at(100_000), mac(7), A), Learned::New);
    fdb.release(mac(7));
    assert_eq!((fdb.lookup(at(100_000), mac(7)), fdb.len()), (Some(A), 1), "what was learned can't be released");
}

#[test]
fn a_table_of_one_works() {
    let fdb = fdb(1);
    fdb.learn(at(0), mac(1), A);
    fdb.learn(at(0), mac(2), B);
    assert_eq!((fdb.lookup(at(0), mac(1)), fdb.lookup(at(0), mac(2))), (None, Some(B)));
}

/// What the models prove step by step, with real threads and many entries: one floods a full table, so that entries
/// are evicted and make room for each other all the time, one roams from port to port, one ages and forgets.
#[test]
fn readers_are_never_misled_by_what_others_learn() {
    const RESIDENTS: u64 = 40;
    const FLOOD: u64 = 4000;
    const STEPS: u64 = 50_000;
    let fdb = fdb(512);
    let resident = |number: u64| mac(0xa0_0000 + number);
    let flooder = |number: u64| (mac(0xf0_0000 + number), PortId(1 + (number % 7) as u16));
    let roamer = mac(0xb0_0000);
    let has_gone_on = |fdb: &Fdb| {
        let FdbCounters { learned, moved, evicted, .. } = fdb.counters();
        learned > FLOOD && moved > 0 && evicted > 0
    };
    (0..RESIDENTS).for_each(|number| assert_eq!(fdb.learn(at(0), resident(number), A), Learned::New));
    let stop = AtomicBool::new(false);
    let going = || !stop.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // However this thread ends: the others wait for it.
            let _end = StopAtEnd(&stop);
            // On a busy machine others may hold the lock for most of the first steps.
            for step in (0..1000 * STEPS).take_while(|&step| step < STEPS || !has_gone_on(&fdb)) {
                let (mac, port) = flooder(step * 1009 % FLOOD);
                assert!(!matches!(fdb.learn(at(0), mac, port), Learned::Moved(_)));
            }
        });
        scope.spawn(|| {
            // Ports that nobody else has, so that who goes back in time is found out.
            for port in (100..u16::MAX).take_while(|_| going()) {
                // Slowly enough that it is not held.
                while fdb.learn(at(u64::from(port) * 10), roamer, PortId(port)) == Learned::Later {
                    if !going() {
                        return;
                    }
                }
                assert!(fdb.lookup(at(0), roamer).is_none_or(|found| found.0 == port));
            }
        });
        scope.spawn(|| {
            for port in (1..8).cycle().take_while(|_| going()) {
                fdb.expire(at(0));
                fdb.forget_port(PortId(port));
                // A pace, nothing that is waited for.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let mut newest = 0;
                for step in (0..u64::MAX).take_while(|_| going()) {
                    assert_eq!(fdb.lookup(at(0), resident(step % RESIDENTS)), Some(A), "a resident was missed");
                    let (mac, port) = flooder(step % FLOOD);
                    assert!(fdb.lookup(at(0), mac).is_none_or(|found| found == port), "the port of another address");
                    let found = fdb.lookup(at(0), roamer).map_or(newest, |port| port.0);
                    assert!(found >= newest, "found at {found} after {newest}");
                    newest = found;
                }
            });
        }
    });
    fdb.audit();
    assert!(has_gone_on(&fdb), "{:?}: nothing went on", fdb.counters());
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

proptest! {
    /// With room for all, the table agrees with a map.
    #[test]
    fn the_table_agrees_with_a_map(events in prop::collection::vec((0..40_u64, 0..5_u16), 1..300)) {
        let settings = FdbSettings::new(64, Duration::from_secs(10_000));
        let (fdb, mut model) = (Fdb::new(settings, &Arc::default()), HashMap::new());
        for ((number, port), second) in events.into_iter().zip((0..).step_by(10)) {
            // Slowly enough that nobody is held.
            fdb.learn(at(second), mac(number), PortId(port));
            model.insert(number, PortId(port));
        }
        prop_assert_eq!(fdb.len(), model.len());
        for (number, port) in model {
            prop_assert_eq!(fdb.lookup(at(0), mac(number)), Some(port));
        }
    }

    /// Crowded buckets cost no entry.
    #[test]
    fn a_small_full_table_holds_its_capacity(numbers in prop::collection::btree_set(0..100_000_u64, 120..300)) {
        let fdb = fdb(100);
        for &number in &numbers {
            fdb.learn(at(0), mac(number), A);
        }
        prop_assert_eq!((fdb.len(), fdb.counters().evicted), (100, numbers.len() as u64 - 100));
        prop_assert_eq!(fdb.entries(at(0)).len(), 100);
    }

    /// No port falls below its fair share because of another.
    #[test]
    fn a_full_table_is_shared_fairly(events in prop::collection::vec((0..500_u64, 0..4_u16), 400..1500)) {
        let fdb = fdb(100);
        let mut heard = [const { BTreeSet::new() }; 4];
        for (number, port) in events {
            fdb.learn(at(0), mac(1000 * u64::from(port) + number), PortId(port));
            heard[usize::from(port)].insert(number);
        }
        prop_assert!(fdb.len() <= 100);
        for (port, heard) in heard.iter().enumerate() {
            let kept = count(&fdb, PortId(port as u16));
            prop_assert!(kept >= heard.len().min(25), "port {} keeps {} of {}", port, kept, heard.len());
        }
    }
}
