//! What is not learned as usual: static entries, stations that there is no room for, stations that move too often.

use proptest::prelude::*;

use super::slot::STATIC_SECS;
use super::*;
use crate::{DropReason, MacAddr};

const A: PortId = PortId(0);
const B: PortId = PortId(1);
const C: PortId = PortId(2);
const PORTS: [PortId; 3] = [A, B, C];
const AGEING: Duration = Duration::from_secs(300);

fn fdb(capacity: usize) -> Fdb {
    Fdb::new(FdbSettings::new(capacity, AGEING), &Arc::default())
}

fn mac(number: u64) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | number)
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn limit(stations: u32, beyond: AtLimit) -> Option<StationLimit> {
    Some(StationLimit { stations, beyond })
}

#[test]
fn a_static_entry_is_where_it_was_put_whoever_claims_it_and_however_long_nobody_does() {
    let fdb = fdb(64);
    fdb.learn(at(0), mac(1), B);
    assert_eq!(fdb.set_static([(mac(1), A), (mac(2), B)]), []);
    assert_eq!((fdb.lookup(at(0), mac(1)), fdb.len(), fdb.census().port(B).count), (Some(A), 0, 0));
    assert_eq!(fdb.learn(at(1), mac(1), A), Learned::Known);
    for learned in [fdb.learn(at(1), mac(1), B), fdb.learn(at(2), mac(1), C)] {
        assert_eq!((learned, learned.drop_reason()), (Learned::Static, None));
    }
    assert_eq!((fdb.counters().claimed, fdb.counters().moved), (2, 0));
    fdb.expire(at(1_000_000));
    fdb.forget_port(A);
    assert_eq!(fdb.flush(), 0);
    for number in 100..1000 {
        fdb.learn(at(0), mac(number), A);
    }
    assert_eq!((fdb.lookup(at(1_000_000), mac(1)), fdb.lookup(at(1_000_000), mac(2))), (Some(A), Some(B)));
    let shown = |fdb: &Fdb| fdb.entries(at(1_000_000)).into_iter().filter(|entry| entry.kind == FdbKind::Static).count();
    assert_eq!(shown(&fdb), 2);
    fdb.audit();

    assert_eq!(fdb.set_static([(mac(2), C)]), []);
    assert_eq!((fdb.lookup(at(0), mac(1)), fdb.lookup(at(0), mac(2)), shown(&fdb)), (None, Some(C), 1));
    assert_eq!(fdb.learn(at(0), mac(1), B), Learned::New);
    fdb.audit();
}

#[test]
fn a_static_entry_does_not_get_the_address_that_is_reserved() {
    let fdb = fdb(64);
    fdb.reserve(mac(1), PortId::GATEWAY);
    assert_eq!(fdb.set_static([(mac(1), A)]), [MacKey::from(mac(1))]);
    assert_eq!(fdb.lookup(at(0), mac(1)), Some(PortId::GATEWAY));
    fdb.set_static([(mac(2), A)]);
    fdb.reserve(mac(2), PortId::GATEWAY);
    assert_eq!(fdb.lookup(at(0), mac(2)), Some(PortId::GATEWAY));
}

/// With a fixed hash, addresses can be found whose buckets are the same two.
#[test]
fn where_eight_static_entries_stand_there_is_no_room_and_nobody_makes_way() {
    let hash = ahash::RandomState::with_seeds(1, 2, 3, 4);
    let fdb = Fdb::with_hash(FdbSettings::new(64, AGEING), &Arc::default(), hash);
    let key = |number: &u64| Key::new(mac(*number).into());
    let of_these = |number: &u64| matches!(fdb.buckets_of(key(number)), [3, 7] | [7, 3]);
    let crowd: Vec<MacAddr> = (0..).filter(of_these).map(mac).take(11).collect();
    fdb.learn(at(0), crowd[8], B);
    // One that was learned makes way.
    assert_eq!(fdb.set_static(crowd[..8].iter().map(|mac| (*mac, A))), []);
    assert_eq!(fdb.lookup(at(0), crowd[8]), None);
    assert_eq!(fdb.set_static(crowd[..9].iter().map(|mac| (*mac, A))).len(), 1);
    assert!(crowd[..8].iter().filter(|mac| fdb.lookup(at(0), **mac) == Some(A)).count() >= 7);
    assert_eq!(fdb.learn(at(0), crowd[9], B), Learned::TableFull(AtLimit::Forward));
    assert_eq!((fdb.len(), fdb.census().port(B).count, fdb.counters().refused), (0, 0, 1));
    fdb.reserve(crowd[10], PortId::GATEWAY);
    assert_eq!(fdb.lookup(at(0), crowd[10]), Some(PortId::GATEWAY));
    fdb.audit();
}

#[test]
fn a_port_has_no_more_stations_than_it_may_and_those_that_it_has_go_on() {
    for beyond in [AtLimit::Forward, AtLimit::Drop] {
        let fdb = fdb(64);
        fdb.census().set_limit(A, limit(2, beyond));
        assert_eq!([1, 2].map(|number| fdb.learn(at(0), mac(number), A)), [Learned::New; 2]);
        fdb.learn(at(0), mac(4), B);
        for stranger in [3, 4] {
            let learned = fdb.learn(at(1), mac(stranger), A);
            let reason = (beyond == AtLimit::Drop).then_some(DropReason::MacLimit);
            assert_eq!((learned, learned.drop_reason()), (Learned::PortFull(beyond), reason));
        }
        assert_eq!((fdb.lookup(at(1), mac(3)), fdb.lookup(at(1), mac(4))), (None, Some(B)));
        assert_eq!([1, 2].map(|number| fdb.learn(at(299), mac(number), A)), [Learned::Known; 2]);
        assert_eq!(fdb.learn(at(299), mac(5), B), Learned::New, "others are not limited");
        let PortStations { count, refused, .. } = fdb.census().port(A);
        assert_eq!((count, refused, fdb.counters().refused), (2, 2, 2));
        // Who moves away, ages or is forgotten makes room.
        assert_eq!(fdb.learn(at(300), mac(1), B), Learned::Moved(A));
        assert_eq!(fdb.learn(at(300), mac(3), A), Learned::New);
        fdb.expire(at(599));
        assert_eq!(fdb.learn(at(599), mac(6), A), Learned::New);
        assert_eq!(fdb.learn(at(599), mac(7), A), Learned::PortFull(beyond));
        assert_eq!(fdb.census().port(B).moved, 1);
        fdb.audit();
    }
}

#[test]
fn a_limit_holds_over_all_tables_of_a_network_also_those_that_are_copied_or_gone() {
    let first = Arc::new(fdb(64));
    let second = Arc::new(Fdb::new(FdbSettings::new(64, AGEING), first.census()));
    let census = Arc::clone(first.census());
    census.set_limit(A, limit(3, AtLimit::Drop));
    assert_eq!([first.learn(at(0), mac(1), A), second.learn(at(0), mac(1), A)], [Learned::New; 2]);
    let larger = second.with_settings(FdbSettings::new(1024, AGEING));
    assert_eq!(census.port(A).count, 2);
    // A worker that does not know of the copy yet learns nothing that would be counted.
    assert_eq!(second.learn(at(0), mac(2), A), Learned::Later);
    assert_eq!((second.learn(at(0), mac(1), A), second.flush()), (Learned::Known, 1));
    drop(second);
    assert_eq!(census.port(A).count, 2);
    assert_eq!(larger.learn(at(0), mac(2), A), Learned::New);
    assert_eq!(first.learn(at(0), mac(3), A), Learned::PortFull(AtLimit::Drop));
    drop(larger);
    assert_eq!(census.port(A).count, 1);
    assert_eq!(first.learn(at(0), mac(3), A), Learned::New);
}

#[test]
fn with_a_lower_limit_those_go_that_were_not_heard_of_for_longest() {
    let fdb = fdb(64);
    for number in 0..10 {
        fdb.learn(at(number), mac(number), A);
    }
    // This one was the first, and is heard again.
    fdb.learn(at(10), mac(0), A);
    fdb.census().set_limit(A, limit(3, AtLimit::Forward));
    fdb.trim(A);
    assert!((0..10).all(|number| fdb.lookup(at(10), mac(number)).is_some() == [0, 8, 9].contains(&number)));
    fdb.census().set_limit(A, limit(0, AtLimit::Drop));
    fdb.trim(A);
    assert_eq!((fdb.len(), fdb.learn(at(9), mac(1), A)), (0, Learned::PortFull(AtLimit::Drop)));
    fdb.census().set_limit(A, None);
    assert_eq!(fdb.learn(at(9), mac(1), A), Learned::New);
}

#[test]
fn nobody_gets_through_a_limit_because_the_table_is_busy_and_who_is_known_does() {
    let fdb = Fdb::new(FdbSettings { when_full: Some(AtLimit::Drop), ..FdbSettings::new(2, AGEING) }, &Arc::default());
    fdb.census().set_limit(A, limit(1, AtLimit::Drop));
    fdb.learn(at(0), mac(1), A);
    {
        let _busy = fdb.lock();
        assert_eq!(fdb.learn(at(0), mac(2), A), Learned::PortFull(AtLimit::Drop));
        assert_eq!(fdb.learn(at(0), mac(2), B), Learned::Later);
        assert_eq!(fdb.learn(at(0), mac(1), A), Learned::Known);
    }
    fdb.learn(at(0), mac(2), B);
    let _busy = fdb.lock();
    assert_eq!(fdb.learn(at(0), mac(3), B), Learned::TableFull(AtLimit::Drop));
}

#[test]
fn a_full_table_refuses_what_is_new_if_it_is_told_to_and_lets_stations_move() {
    for beyond in [AtLimit::Forward, AtLimit::Drop] {
        let settings = FdbSettings { when_full: Some(beyond), ..FdbSettings::new(2, AGEING) };
        let fdb = Arc::new(Fdb::new(settings, &Arc::default()));
        assert_eq!([1, 2].map(|number| fdb.learn(at(0), mac(number), A)), [Learned::New; 2]);
        let learned = fdb.learn(at(0), mac(3), B);
        let reason = (beyond == AtLimit::Drop).then_some(DropReason::FdbFull);
        assert_eq!((learned, learned.drop_reason()), (Learned::TableFull(beyond), reason));
        assert_eq!(fdb.learn(at(0), mac(2), B), Learned::Moved(A));
        assert_eq!((fdb.counters().evicted, fdb.counters().refused), (0, 1));
        let same = fdb.with_settings(FdbSettings::new(2, AGEING));
        assert_eq!((same.learn(at(0), mac(3), B), same.counters().evicted), (Learned::New, 1));
    }
}

/// The station is heard behind A and B in turn, at these seconds: M it moves, H it stays.
#[test]
fn a_station_that_moves_too_often_stays_for_a_while() {
    for (seconds, expected) in [
        // Now and then is not too often.
        (vec![0, 10, 20, 30, 40, 50, 60, 70], "MMMMMMMM"),
        (vec![0, 0, 0, 0, 0], "MMMMM"),
        // The sixth time in ten seconds.
        (vec![0, 1, 2, 3, 4, 9], "MMMMMH"),
        (vec![0, 1, 2, 3, 4, 10], "MMMMMM"),
        // It stays for thirty seconds, however often it tries.
        (vec![0, 0, 0, 0, 0, 0, 1, 15, 29, 30], "MMMMMHHHHM"),
        // It may try again as often as before.
        (vec![0, 0, 0, 0, 0, 0, 30, 30, 30, 30, 30, 30, 59, 60], "MMMMMHMMMMMHHM"),
    ] {
        let fdb = fdb(64);
        fdb.learn(at(0), mac(1), B);
        let mut seen = String::new();
        for second in &seconds {
            let here = fdb.lookup(at(*second), mac(1)).unwrap();
            let there = if here == A { B } else { A };
            seen.push(match fdb.learn(at(*second), mac(1), there) {
                Learned::Moved(from) if from == here => 'M',
                Learned::Held => 'H',
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(seen, expected, "{seconds:?}");
        let moves = expected.matches('M').count();
        assert_eq!(fdb.counters().moved as usize, moves);
        let FdbKind::Dynamic { moves: shown, .. } = fdb.entries(at(0))[0].kind else { panic!("it was learned") };
        assert_eq!(shown as usize, moves);
        fdb.audit();
    }
}

#[test]
fn a_flapping_station_is_reported_once_each_time_and_not_without_bound() {
    let fdb = fdb(1024);
    let flap = |number: u64| {
        let last = (0..20).map(|step| fdb.learn(at(0), mac(number), PORTS[step % 2])).last();
        assert_eq!(last, Some(Learned::Known));
    };
    flap(1);
    assert_eq!(fdb.census().take_flaps(), (vec![Flap { mac: mac(1), stays: B, heard: A }], 0));
    let FdbKind::Dynamic { held, .. } = fdb.entries(at(10))[0].kind else { panic!("it was learned") };
    assert_eq!(held, Some(Duration::from_secs(20)));
    assert_eq!(fdb.census().take_flaps(), (vec![], 0));
    (2..102).for_each(flap);
    let (reported, more) = fdb.census().take_flaps();
    assert_eq!((reported.len(), more, fdb.counters().flapped), (64, 36, 101));
}

/// What can happen to two tables of a network.
#[derive(Clone, Debug)]
enum Event {
    Learn(bool, u64, usize),
    Static(bool, Vec<(u64, usize)>),
    Limit(usize, Option<u32>, bool),
    Resize(bool, usize),
    Forget(usize),
    Flush(bool),
    Expire(bool),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let statics = prop::collection::vec((0..40_u64, 0..3_usize), 0..6);
    prop_oneof![
        20 => (any::<bool>(), 0..40_u64, 0..3_usize).prop_map(|(table, number, port)| Event::Learn(table, number, port)),
        2 => (any::<bool>(), statics).prop_map(|(table, stations)| Event::Static(table, stations)),
        1 => (0..3_usize, prop::option::of(0..8_u32), any::<bool>()).prop_map(|(port, max, drop)| Event::Limit(port, max, drop)),
        1 => (any::<bool>(), 12..40_usize).prop_map(|(table, capacity)| Event::Resize(table, capacity)),
        1 => (0..3_usize).prop_map(Event::Forget),
        1 => any::<bool>().prop_map(Event::Flush),
        1 => any::<bool>().prop_map(Event::Expire),
        3 => (0..200_u64).prop_map(Event::Wait),
    ]
}

proptest! {
    /// Whatever happens, the count of a port is what stands in the tables and no more than its limit, and static entries are where they were put.
    #[test]
    fn counts_are_exact_limits_hold_and_static_entries_stay(events in prop::collection::vec(event(), 1..200)) {
        let census = Arc::new(Census::default());
        let mut tables = [20, 30].map(|capacity| Arc::new(Fdb::new(FdbSettings::new(capacity, AGEING), &census)));
        let mut declared = [vec![], vec![]];
        let mut now = 0;
        for event in events {
            match event {
                Event::Learn(table, number, port) => {
                    tables[usize::from(table)].learn(at(now), mac(number), PORTS[port]);
                }
                Event::Static(table, stations) => {
                    let stations: std::collections::HashMap<_, _> = stations.into_iter().collect();
                    let list: Vec<_> = stations.into_iter().map(|(number, port)| (mac(number), PORTS[port])).collect();
                    prop_assert_eq!(tables[usize::from(table)].set_static(list.clone()), []);
                    declared[usize::from(table)] = list;
                }
                Event::Limit(port, max, drop) => {
                    let beyond = if drop { AtLimit::Drop } else { AtLimit::Forward };
                    census.set_limit(PORTS[port], max.and_then(|max| limit(max, beyond)));
                    tables.iter().for_each(|table| table.trim(PORTS[port]));
                }
                Event::Resize(table, capacity) => {
                    let table = &mut tables[usize::from(table)];
                    *table = table.with_settings(FdbSettings::new(capacity, AGEING));
                }
                Event::Forget(port) => tables.iter().for_each(|table| table.forget_port(PORTS[port])),
                Event::Flush(table) => {
                    tables[usize::from(table)].flush();
                }
                Event::Expire(table) => tables[usize::from(table)].expire(at(now)),
                Event::Wait(seconds) => now += seconds,
            }
            tables.iter().for_each(|table| table.audit());
            for port in PORTS {
                let listed = |table: &Arc<Fdb>| table.lock().count(port);
                let PortStations { count, limit, .. } = census.port(port);
                prop_assert_eq!(count as usize, tables.iter().map(listed).sum::<usize>());
                prop_assert!(limit.is_none_or(|limit| count <= limit.stations));
            }
            for (table, stations) in tables.iter().zip(&declared) {
                for (mac, port) in stations {
                    prop_assert_eq!(table.lookup(at(now), *mac), Some(*port));
                }
                let fixed = (0..table.slots()).filter(|&index| table.slot(index).seen_secs() == STATIC_SECS && !table.slot(index).is_free());
                prop_assert_eq!(fixed.count(), stations.len());
            }
        }
    }

    /// Whoever goes on trying gets through at the latest when the time is over, and never more often than six times in ten seconds.
    #[test]
    fn damping_ends_and_holds(waits in prop::collection::vec(0..5_u64, 1..200)) {
        let fdb = fdb(64);
        fdb.learn(at(0), mac(1), C);
        let (mut now, mut moved, mut held_since) = (0, Vec::new(), None);
        for (step, wait) in waits.into_iter().enumerate() {
            now += wait;
            match fdb.learn(at(now), mac(1), PORTS[step % 2]) {
                Learned::Moved(_) => {
                    moved.push(now);
                    prop_assert!(held_since.take().is_none_or(|since| now - since >= 30));
                }
                Learned::Held => prop_assert!(now - *held_since.get_or_insert(now) < 30, "held at {}", now),
                Learned::Known => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
        // Five in one span, and five in the next one.
        prop_assert!(moved.windows(11).all(|moves| moves[10] - moves[0] >= 10), "{:?}", moved);
    }
}
