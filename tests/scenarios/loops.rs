//! Guests that connect two of their ports.

mod common;

use std::time::Duration;

use common::{BROADCAST, Background, Port, SOON, TestSwitch, eventually, frame, mac, receive_traffic};
use weft_dataplane::PortSettings;
use weft_guest::Guest;
use weft_switch::vlan::{PortRole, VlanId};
use weft_switch::{DropReason, loops};

/// What a bridge does, without looking at anything.
fn pass_on([a, b]: &mut [Guest; 2]) {
    while let Some(frame) = a.receive(Duration::ZERO).unwrap() {
        b.send(&frame).unwrap();
    }
    while let Some(frame) = b.receive(Duration::ZERO).unwrap() {
        a.send(&frame).unwrap();
    }
}

fn bridge(guests: [Guest; 2]) -> Background<[Guest; 2]> {
    Background::start(guests, |guests, _| pass_on(guests))
}

/// As the daemon does every second.
fn report(switch: &TestSwitch) {
    drop(switch.with(weft_dataplane::Dataplane::take_flaps));
}

fn is_paused(switch: &TestSwitch, port: &Port) -> bool {
    switch.status(port).loop_with.is_some()
}

type Plugged = (Port, Guest);

/// A switch with the two guests of a bridge, and two others.
fn world(settings: impl Fn(&TestSwitch) -> PortSettings) -> (TestSwitch, [Plugged; 2], [Plugged; 2]) {
    let switch = TestSwitch::start();
    let plug = || {
        let port = switch.add(settings(&switch));
        let guest = switch.connect(&port, |builder| builder);
        (port, guest)
    };
    let (ends, others) = ([plug(), plug()], [plug(), plug()]);
    (switch, ends, others)
}

fn a_loop_is_cut_and_healed(settings: impl Fn(&TestSwitch) -> PortSettings) {
    let (switch, [(one, a), (two, b)], [(_, mut c), (_, mut d)]) = world(settings);
    let bridge = bridge([a, b]);
    c.send(&frame(BROADCAST, mac(3), 60)).unwrap();
    let paused = || [&one, &two].into_iter().filter(|port| is_paused(&switch, port)).count();
    assert!(eventually(|| {
        report(&switch);
        paused() == 1
    }));
    let (lame, sound) = if is_paused(&switch, &one) { (&one, &two) } else { (&two, &one) };
    assert_eq!(switch.status(lame).loop_with, Some(sound.id));
    // What was under way comes to an end.
    while receive_traffic(&mut d, Duration::from_millis(50)).is_some() {}
    while receive_traffic(&mut c, Duration::from_millis(50)).is_some() {}
    // Everybody is heard again, once, and where they are.
    let (hello, answer) = (frame(BROADCAST, mac(3), 100), frame(mac(3), mac(4), 100));
    c.send(&hello).unwrap();
    assert_eq!(receive_traffic(&mut d, SOON).unwrap(), hello);
    d.send(&answer).unwrap();
    assert_eq!(receive_traffic(&mut c, SOON).unwrap(), answer);
    assert_eq!(receive_traffic(&mut d, Duration::from_millis(200)), None, "no second copy");
    assert!(switch.drops(lame, DropReason::LoopPaused) > 0);
    // As long as it lasts.
    let guests = bridge.stop();
    assert_eq!(paused(), 1);
    assert!((0..20).any(|_| eventually(|| paused() == 0)), "it goes on when the loop has gone");
    let [mut a, mut b] = guests;
    for guest in [&mut a, &mut b] {
        while guest.receive(Duration::ZERO).unwrap().is_some() {}
    }
    c.send(&hello).unwrap();
    for guest in [&mut a, &mut b, &mut d] {
        assert_eq!(receive_traffic(guest, SOON).unwrap(), hello);
    }
}

#[test]
fn a_loop_through_a_guest_is_cut_and_healed() {
    a_loop_is_cut_and_healed(TestSwitch::settings);
}

#[test]
fn so_is_one_in_a_vlan() {
    a_loop_is_cut_and_healed(|switch| PortSettings {
        vlan: Some(PortRole::Access(VlanId::new(100).unwrap())),
        ..switch.settings()
    });
}

#[test]
fn two_guests_with_one_address_are_no_loop_and_nobody_can_have_them_paused() {
    let (switch, [(one, mut a), (two, mut b)], [(three, mut c), _]) = world(TestSwitch::settings);
    // What somebody makes up says nothing.
    let forged = loops::probe(one.id, 1);
    let claim = frame(BROADCAST, mac(9), 60);
    let mut probe = None;
    assert!(eventually(|| {
        a.send(&claim).unwrap();
        b.send(&claim).unwrap();
        c.send(&forged).unwrap();
        report(&switch);
        probe = a.receive(Duration::from_millis(10)).unwrap().filter(|frame| loops::is_probe(frame.first_chunk().unwrap()));
        probe.is_some()
    }));
    assert!(eventually(|| switch.drops(&three, DropReason::LoopProbe) > 0));
    assert!([&one, &two, &three].into_iter().all(|port| !is_paused(&switch, port)));
    // Who sends back its own is paused itself.
    a.send(&probe.unwrap()).unwrap();
    assert!(eventually(|| is_paused(&switch, &one)));
    assert!([&two, &three].into_iter().all(|port| !is_paused(&switch, port)));
}
