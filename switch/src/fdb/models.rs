//! The forwarding database under a model checker: everything that readers may see while the table changes under them, and what
//! it is like afterwards.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_model::{outcomes, thread};

use super::*;

const A: PortId = PortId(0);
const B: PortId = PortId(1);
const NOW: Timestamp = Timestamp::from_millis(5_000);
const LATER: Timestamp = Timestamp::from_millis(6_000);

/// Readers are a few steps long and writers some dozens: what can go wrong between two threads does with two preemptions, a slot
/// that changes hands twice included.
const PREEMPTIONS: usize = 2;

fn fdb(capacity: usize) -> Fdb {
    // The same in every execution.
    let hash = ahash::RandomState::with_seeds(1, 2, 3, 4);
    Fdb::with_hash(FdbSettings::new(capacity, Duration::from_secs(300)), &Arc::default(), hash)
}

/// The `nth` address whose buckets are these.
fn station(fdb: &Fdb, buckets: [usize; 2], nth: usize) -> MacKey {
    let stands_there = |mac: &MacKey| fdb.buckets_of(Key::new(*mac)) == buckets;
    // Even numbers: others are groups.
    (1..).map(|number| MacKey::from_u64(2 * number)).filter(stands_there).nth(nth).expect("there are many")
}

/// What two threads return that share a table, which is sound in the end.
fn together<L: Ord + Send + 'static, R: Ord + Send + 'static>(
    table: impl Fn() -> Fdb + Send + Sync + 'static,
    left: impl Fn(&Fdb) -> L + Send + Sync + Copy + 'static,
    right: impl Fn(&Fdb) -> R + Send + Sync + Copy + 'static,
) -> BTreeSet<(L, R)> {
    outcomes(PREEMPTIONS, move || {
        let fdb = Arc::new(table());
        let other = thread::spawn({
            let fdb = Arc::clone(&fdb);
            move || right(&fdb)
        });
        let left = left(&fdb);
        let right = other.join().expect("a model that panics ends everything");
        fdb.audit();
        (left, right)
    })
}

/// What a reader may return beside a writer.
fn reader_beside<R: Ord + Send + 'static>(
    table: impl Fn() -> Fdb + Send + Sync + 'static,
    write: impl Fn(&Fdb) + Send + Sync + Copy + 'static,
    read: impl Fn(&Fdb) -> R + Send + Sync + Copy + 'static,
) -> BTreeSet<R> {
    together(table, read, write).into_iter().map(|(read, ())| read).collect()
}

/// A table with room for one.
fn table_of_one() -> Fdb {
    let fdb = fdb(1);
    fdb.learn(NOW, first(&fdb), A);
    fdb
}

/// Two addresses that stand in the same slot, each when the other does not.
fn first(fdb: &Fdb) -> MacKey {
    station(fdb, [0, 1], 0)
}
fn second(fdb: &Fdb) -> MacKey {
    station(fdb, [0, 1], 1)
}

#[test]
fn an_address_never_has_the_port_of_the_one_whose_slot_it_gets() {
    let seen = reader_beside(
        table_of_one,
        |fdb| {
            fdb.learn(NOW, second(fdb), B);
        },
        |fdb| (fdb.lookup(NOW, first(fdb)), fdb.lookup(NOW, second(fdb))),
    );
    assert_eq!(seen, BTreeSet::from([(Some(A), None), (Some(A), Some(B)), (None, None), (None, Some(B))]));
}

#[test]
fn a_slot_that_comes_back_to_an_address_shows_nothing_of_who_had_it_in_between() {
    let seen = reader_beside(
        table_of_one,
        |fdb| {
            fdb.learn(NOW, second(fdb), B);
            fdb.learn(NOW, first(fdb), A);
        },
        |fdb| fdb.lookup(NOW, first(fdb)),
    );
    assert_eq!(seen, BTreeSet::from([None, Some(A)]));
}

#[test]
fn a_station_that_moves_is_found_at_the_old_port_or_at_the_new_one_and_does_not_go_back() {
    let seen = reader_beside(
        table_of_one,
        |fdb| {
            fdb.learn(NOW, first(fdb), B);
        },
        |fdb| (fdb.lookup(NOW, first(fdb)), fdb.lookup(NOW, first(fdb))),
    );
    assert_eq!(seen, BTreeSet::from([(Some(A), Some(A)), (Some(A), Some(B)), (Some(B), Some(B))]));
}

/// A table in which an entry behind A has to move so that another can be learned: from its first bucket to its second, or back.
/// Everything else that stands in its way has both its buckets in one place, and can't.
fn crowded_table(back: bool) -> Fdb {
    let fdb = fdb(9);
    let learn = |buckets, count, port| {
        (0..count).for_each(|nth| assert_eq!(fdb.learn(NOW, station(&fdb, buckets, nth), port), Learned::New));
    };
    if back {
        learn([0, 0], 1, B);
        learn([0, 1], 1, A);
        fdb.forget_port(B);
    } else {
        learn([1, 0], 1, A);
    }
    learn([1, 1], 3, B);
    learn([2, 2], 4, B);
    fdb
}

fn an_entry_that_makes_room_is_never_missed(back: bool) {
    let seen = reader_beside(
        move || crowded_table(back),
        move |fdb| {
            let bucket_of_mover = || fdb.find(Key::new(mover(fdb, back))).map(|found| found.index / WAYS);
            assert_eq!(bucket_of_mover(), Some(1));
            assert_eq!(fdb.learn(NOW, newcomer(fdb), B), Learned::New);
            assert_eq!((bucket_of_mover(), fdb.counters().evicted), (Some(0), 0));
        },
        move |fdb| (fdb.lookup(NOW, mover(fdb, back)), fdb.lookup(NOW, newcomer(fdb))),
    );
    assert_eq!(seen, BTreeSet::from([(Some(A), None), (Some(A), Some(B))]));
}

fn mover(fdb: &Fdb, back: bool) -> MacKey {
    station(fdb, if back { [0, 1] } else { [1, 0] }, 0)
}

fn newcomer(fdb: &Fdb) -> MacKey {
    station(fdb, [1, 2], 0)
}

#[test]
fn an_entry_that_makes_room_in_its_first_bucket_is_never_missed() {
    an_entry_that_makes_room_is_never_missed(false);
}

#[test]
fn an_entry_that_makes_room_in_its_second_bucket_is_never_missed() {
    an_entry_that_makes_room_is_never_missed(true);
}

#[test]
fn a_static_entry_that_makes_room_is_never_missed_and_never_learned_by_another() {
    let seen = reader_beside(
        || {
            let fdb = crowded_table(false);
            assert_eq!(fdb.set_static([(mover(&fdb, false), A)]), []);
            fdb
        },
        |fdb| {
            assert_eq!(fdb.learn(NOW, newcomer(fdb), B), Learned::New);
            assert_eq!(fdb.find(Key::new(mover(fdb, false))).map(|found| found.index / WAYS), Some(0));
        },
        |fdb| {
            // Who finds it on the move, and the table busy, learns nothing either.
            let learned = fdb.learn(NOW, mover(fdb, false), B);
            assert!(matches!(learned, Learned::Static | Learned::Later), "{learned:?}");
            fdb.lookup(NOW, mover(fdb, false))
        },
    );
    assert_eq!(seen, BTreeSet::from([Some(A)]));
}

#[test]
fn of_two_that_come_to_a_port_with_room_for_one_only_one_is_learned() {
    let seen = together(
        || {
            let fdb = fdb(4);
            fdb.census().set_limit(A, Some(StationLimit { stations: 1, beyond: AtLimit::Drop }));
            fdb
        },
        |fdb| fdb.learn(NOW, first(fdb), A) == Learned::New,
        |fdb| {
            let learned = fdb.learn(NOW, second(fdb), A) == Learned::New;
            assert!(fdb.census().port(A).count <= 1);
            learned
        },
    );
    assert_eq!(seen, BTreeSet::from([(true, false), (false, true)]));
}

#[test]
fn an_address_is_never_missed_while_others_come_and_go() {
    let seen = reader_beside(
        || {
            let fdb = fdb(2);
            fdb.learn(NOW, first(&fdb), A);
            fdb.learn(NOW, second(&fdb), B);
            fdb
        },
        |fdb| {
            assert_eq!(fdb.learn(NOW, station(fdb, [0, 1], 2), B), Learned::New);
            fdb.forget_port(B);
            fdb.expire(LATER);
        },
        |fdb| (fdb.lookup(NOW, first(fdb)), fdb.learn(LATER, first(fdb), A) == Learned::Known),
    );
    assert_eq!(seen, BTreeSet::from([(Some(A), true)]));
}

#[test]
fn of_two_that_learn_news_at_once_one_does_and_the_other_may_have_to_do_it_later() {
    let empty = || fdb(1);
    let name = |learned| match learned {
        Learned::Known => "known",
        Learned::New => "new",
        Learned::Moved(_) => "moved",
        Learned::Later => "later",
        Learned::Reserved => "reserved",
        Learned::Static | Learned::Held | Learned::PortFull(_) | Learned::TableFull(_) => "refused",
    };
    let seen = together(empty, move |fdb| name(fdb.learn(NOW, first(fdb), A)), move |fdb| name(fdb.learn(NOW, first(fdb), B)));
    assert_eq!(seen, BTreeSet::from([("new", "moved"), ("moved", "new"), ("new", "later"), ("later", "new")]));
    let seen = together(empty, move |fdb| name(fdb.learn(NOW, first(fdb), A)), move |fdb| name(fdb.learn(NOW, second(fdb), B)));
    assert_eq!(seen, BTreeSet::from([("new", "new"), ("new", "later"), ("later", "new")]));
}

/// Whoever refreshes an entry may find another in its slot by the time he writes.
#[test]
fn a_refreshment_changes_nothing_but_an_age() {
    let seen = together(
        table_of_one,
        |fdb| fdb.learn(LATER, first(fdb), A) == Learned::Known,
        |fdb| {
            fdb.learn(LATER, second(fdb), B);
            let kind = FdbKind::Dynamic { age: Duration::ZERO, moves: 0, held: None };
            let entry = FdbEntry { mac: second(fdb).into(), port: B, kind };
            (fdb.lookup(LATER, second(fdb)), fdb.entries(LATER) == [entry])
        },
    );
    // Unless the first is back by then, or the second has to come later.
    assert!(seen.contains(&(true, (Some(B), true))), "{seen:?}");
    assert!(seen.iter().all(|(_, (port, _))| port.is_none_or(|port| port == B)), "{seen:?}");
}

#[test]
fn an_address_that_is_refreshed_is_not_too_old() {
    let seen = reader_beside(
        table_of_one,
        |fdb| {
            fdb.learn(LATER, first(fdb), A);
        },
        |fdb| {
            fdb.set_ageing(Duration::from_secs(1));
            let before = fdb.lookup(LATER, first(fdb)).is_some();
            (before, fdb.lookup(LATER, first(fdb)).is_some())
        },
    );
    assert_eq!(seen, BTreeSet::from([(false, false), (false, true), (true, true)]));
}

#[test]
fn a_port_that_is_forgotten_while_others_learn_leaves_a_sound_table() {
    let seen = together(
        || {
            let fdb = fdb(2);
            fdb.learn(NOW, first(&fdb), A);
            fdb
        },
        |fdb| fdb.learn(LATER, second(fdb), B) == Learned::New,
        |fdb| {
            fdb.forget_port(A);
            fdb.lookup(LATER, first(fdb))
        },
    );
    assert_eq!(seen, BTreeSet::from([(false, None), (true, None)]));
}
