//! Static entries, limits and flapping stations, with guests on real sockets.

mod common;

use std::time::Duration;

use common::{BROADCAST, Port, SOON, TestSwitch, exchange, expect_frame, frame, mac, receive_traffic, settles};
use weft_dataplane::{Dataplane, NetworkSettings, PortSettings};
use weft_guest::Guest;
use weft_switch::guard::Protections;
use weft_switch::vlan::{PortRole, StaticStations, Trunk, Vlan, VlanId};
use weft_switch::{AtLimit, DropReason, FdbKind, FdbSettings, Flap, MacAddr, PortId, StationLimit};

fn limited(stations: u32, beyond: AtLimit) -> Protections {
    Protections { stations: Some(StationLimit { stations, beyond }), ..Protections::NONE }
}

fn plug(switch: &TestSwitch, protections: Protections) -> (Port, Guest) {
    let port = switch.add(PortSettings { protections, ..switch.settings() });
    let guest = switch.connect(&port, |builder| builder);
    (port, guest)
}

fn set_static(switch: &TestSwitch, stations: &[(u16, u16, PortId)]) {
    let mut by_vlan = StaticStations::new();
    for &(vlan, station, port) in stations {
        by_vlan.entry(Vlan::customer(VlanId::new(vlan).unwrap())).or_default().push((MacAddr(mac(station)), port));
    }
    let network = switch.network();
    switch.with(move |dataplane| dataplane.set_static_stations(network, by_vlan)).unwrap();
}

/// Asserts that nothing more has come, now that everything that was sent has been forwarded.
#[track_caller]
fn expect_nothing(switch: &TestSwitch, guest: &mut Guest) {
    switch.wait_asleep();
    assert_eq!(guest.receive(Duration::ZERO).unwrap(), None);
}

fn count(switch: &TestSwitch, port: &Port) -> u32 {
    let id = port.id;
    switch.with(move |dataplane| dataplane.port_stations(id)).unwrap().count
}

#[test]
fn what_is_for_a_static_entry_goes_there_whoever_claims_its_address() {
    let switch = TestSwitch::start();
    let ((port, mut victim), (_, mut friend), (_, mut thief)) =
        (switch.guest(|builder| builder), switch.guest(|builder| builder), switch.guest(|builder| builder));
    set_static(&switch, &[(1, 1, port.id)]);
    // It was never heard, and is known.
    let first = frame(mac(1), mac(2), 100);
    friend.send(&first).unwrap();
    expect_frame(&mut victim, &first);
    expect_nothing(&switch, &mut thief);
    for _ in 0..10 {
        let claim = frame(BROADCAST, mac(1), 60);
        thief.send(&claim).unwrap();
        expect_frame(&mut friend, &claim);
        expect_frame(&mut victim, &claim);
        exchange(&mut victim, mac(1), &mut friend, mac(2));
    }
    expect_nothing(&switch, &mut thief);
    let network = switch.network();
    let (entries, status) = switch.with(move |dataplane| (dataplane.fdb(network), dataplane.network_status(network).unwrap()));
    assert_eq!((status.fdb.claimed, status.fdb.moved), (10, 0));
    let fixed: Vec<_> = entries.iter().filter(|(_, entry)| entry.kind == FdbKind::Static).map(|(_, entry)| entry.port).collect();
    assert_eq!(fixed, [port.id]);
    // What was learned goes, and this stays.
    assert_eq!(switch.with(move |dataplane| dataplane.flush_fdb(network)), 1);
    friend.send(&first).unwrap();
    expect_frame(&mut victim, &first);
    expect_nothing(&switch, &mut thief);
}

#[test]
fn a_static_entry_goes_with_its_port_and_with_the_declaration() {
    let switch = TestSwitch::start();
    let ((port, victim), (_, mut friend), (_, mut third)) =
        (switch.guest(|builder| builder), switch.guest(|builder| builder), switch.guest(|builder| builder));
    let network = switch.network();
    let statics = || switch.with(move |dataplane| dataplane.fdb(network)).len();
    set_static(&switch, &[(1, 1, port.id), (1, 5, port.id)]);
    assert_eq!(statics(), 2);
    set_static(&switch, &[(1, 1, port.id)]);
    assert_eq!(statics(), 1);
    drop(victim);
    let id = port.id;
    switch.with(move |dataplane| dataplane.remove_port(id)).unwrap();
    assert_eq!(statics(), 0);
    // Whoever gets the port's number has nothing of it.
    let (again, mut other) = plug(&switch, Protections::NONE);
    assert_eq!(again.id, id);
    let lost = frame(mac(1), mac(2), 100);
    friend.send(&lost).unwrap();
    expect_frame(&mut third, &lost);
    expect_frame(&mut other, &lost);
}

#[test]
fn a_flood_of_addresses_ends_at_the_limit_of_its_port() {
    let switch = TestSwitch::start();
    let (port, mut attacker) = plug(&switch, limited(8, AtLimit::Drop));
    let ((_, mut victim), (_, mut friend)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    exchange(&mut victim, mac(2), &mut friend, mac(3));
    expect_frame(&mut attacker, &frame(mac(3), mac(2), 100));
    for number in 0..1000 {
        attacker.send(&frame(mac(2), mac(10_000 + number), 60)).unwrap();
    }
    for number in 0..8 {
        expect_frame(&mut victim, &frame(mac(2), mac(10_000 + number), 60));
    }
    switch.expect_drops(&port, DropReason::MacLimit, 992);
    expect_nothing(&switch, &mut victim);
    assert_eq!(count(&switch, &port), 8);
    exchange(&mut victim, mac(2), &mut friend, mac(3));
    // Those that are known go on, and another's address does not come over.
    exchange(&mut attacker, mac(10_003), &mut victim, mac(2));
    attacker.send(&frame(mac(2), mac(3), 60)).unwrap();
    switch.expect_drops(&port, DropReason::MacLimit, 993);
    exchange(&mut victim, mac(2), &mut friend, mac(3));
}

#[test]
fn without_dropping_strangers_are_forwarded_and_not_learned() {
    let switch = TestSwitch::start();
    let (port, mut guest) = plug(&switch, limited(1, AtLimit::Forward));
    let ((_, mut friend), (_, mut third)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    exchange(&mut guest, mac(1), &mut friend, mac(2));
    expect_frame(&mut third, &frame(mac(2), mac(1), 100));
    let stranger = frame(mac(2), mac(9), 100);
    guest.send(&stranger).unwrap();
    expect_frame(&mut friend, &stranger);
    let answer = frame(mac(9), mac(2), 100);
    friend.send(&answer).unwrap();
    expect_frame(&mut guest, &answer);
    expect_frame(&mut third, &answer);
    assert_eq!(switch.all_drops(&port), []);
    // The limit can be changed while the guest is there, and what is more than that goes.
    let id = port.id;
    switch.with(move |dataplane| dataplane.protect_port(id, Protections::NONE)).unwrap();
    guest.send(&stranger).unwrap();
    expect_frame(&mut friend, &stranger);
    settles("stations", 2, || count(&switch, &port));
    switch.with(move |dataplane| dataplane.protect_port(id, limited(1, AtLimit::Drop))).unwrap();
    assert_eq!(count(&switch, &port), 1);
}

#[test]
fn a_limit_counts_the_stations_of_all_vlans_of_a_trunk() {
    let switch = TestSwitch::start();
    let vlans = [10, 20].map(|vlan| VlanId::new(vlan).unwrap());
    let trunk = Trunk { allowed: vlans.into_iter().collect(), native: None };
    let role = Some(PortRole::Trunk(trunk));
    let port = switch.add(PortSettings { vlan: role.clone(), protections: limited(3, AtLimit::Drop), ..switch.settings() });
    let mut guest = switch.connect(&port, |builder| builder);
    let tagged = |vlan: u8, station: u16| {
        [&frame(BROADCAST, mac(station), 60)[..12], &[0x81, 0, 0, vlan], &[0x88, 0xb5], &[0; 46]].concat()
    };
    for (vlan, station) in [(10, 1), (20, 1), (10, 2), (20, 2), (10, 3)] {
        guest.send(&tagged(vlan, station)).unwrap();
    }
    switch.expect_drops(&port, DropReason::MacLimit, 2);
    assert_eq!(count(&switch, &port), 3);
    // Tables are made anew when ports come, and the count stays right.
    switch.add(PortSettings { vlan: role, ..switch.settings() });
    guest.send(&tagged(20, 3)).unwrap();
    switch.expect_drops(&port, DropReason::MacLimit, 3);
    let network = switch.network();
    assert_eq!(switch.with(move |dataplane| dataplane.flush_fdb(network)), 3);
    assert_eq!(count(&switch, &port), 0);
}

#[test]
fn a_full_network_refuses_newcomers_if_it_is_told_to() {
    let switch = TestSwitch::start();
    let ((port, mut guest), (_, mut friend)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    let network = switch.network();
    let fdb = FdbSettings { when_full: Some(AtLimit::Drop), ..FdbSettings::new(2, Duration::from_secs(300)) };
    switch.with(move |dataplane| dataplane.set_network(network, NetworkSettings::from(fdb))).unwrap();
    exchange(&mut guest, mac(1), &mut friend, mac(2));
    guest.send(&frame(mac(2), mac(3), 60)).unwrap();
    switch.expect_drops(&port, DropReason::FdbFull, 1);
    exchange(&mut guest, mac(1), &mut friend, mac(2));
}

#[test]
fn a_station_in_two_places_stays_in_one_and_is_reported() {
    let switch = TestSwitch::start();
    let ((first, mut a), (second, mut b), (_, mut friend)) =
        (switch.guest(|builder| builder), switch.guest(|builder| builder), switch.guest(|builder| builder));
    friend.send(&frame(BROADCAST, mac(3), 60)).unwrap();
    expect_frame(&mut a, &frame(BROADCAST, mac(3), 60));
    expect_frame(&mut b, &frame(BROADCAST, mac(3), 60));
    let network = switch.network();
    // Well within ten seconds, or it is tried again: five moves are let pass, and the sixth is not.
    let hello = frame(mac(3), mac(1), 60);
    let mut reported = Vec::new();
    for _ in 0..20 {
        for guest in [&mut a, &mut b] {
            guest.send(&hello).unwrap();
            expect_frame(&mut friend, &hello);
        }
        reported.extend(switch.with(Dataplane::take_flaps));
        if !reported.is_empty() {
            break;
        }
    }
    let [(at, flaps, 0)] = &reported[..] else { panic!("{reported:?}") };
    let [Flap { mac: flapping, stays, heard }] = flaps[..] else { panic!("{flaps:?}") };
    assert_eq!((*at, flapping), (network, MacAddr(mac(1))));
    assert!((stays, heard) == (first.id, second.id) || (stays, heard) == (second.id, first.id));
    let (here, there) = if stays == first.id { (&mut a, &mut b) } else { (&mut b, &mut a) };
    for _ in 0..10 {
        there.send(&hello).unwrap();
        expect_frame(&mut friend, &hello);
        let answer = frame(mac(1), mac(3), 60);
        friend.send(&answer).unwrap();
        // Where an address flaps, there may be a loop: probes go out there, too.
        assert_eq!(receive_traffic(here, SOON).unwrap(), answer);
    }
    switch.wait_asleep();
    assert_eq!(receive_traffic(there, Duration::ZERO), None);
    let (entries, status) = switch.with(move |dataplane| (dataplane.fdb(network), dataplane.network_status(network).unwrap()));
    let entry = entries.iter().find(|(_, entry)| entry.mac == flapping).unwrap().1;
    assert!(matches!(entry.kind, FdbKind::Dynamic { moves, held: Some(_), .. } if u64::from(moves) == status.fdb.moved));
    assert_eq!((entry.port, status.fdb.flapped), (stays, 1));
}
