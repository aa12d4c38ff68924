//! Captures and mirrors, with guests on real sockets.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{
    BROADCAST, Numbers, Port, SOON, TestSwitch, assert_same, eventually, exchange, expect_frame, frame, mac, number, numbered,
    settles,
};
use etherparse::PacketBuilder;
use weft_dataplane::{Capture, CaptureCounters, MirrorSettings, PortSettings, WatchSettings};
use weft_guest::{Guest, Header, Shape, feature};
use weft_switch::guard::{Isolation, Protections};
use weft_switch::line::{Chance, Impairment, LineSettings, Lines};
use weft_switch::vlan::{PortRole, Trunk, Vlan, VlanId};
use weft_switch::{DropReason, MacAddr, PortId};

/// More than any frame has.
const WHOLE: usize = 1 << 20;

/// All frames of some ports.
fn all(ports: &[&Port]) -> WatchSettings {
    WatchSettings { ports: ports.iter().map(|port| port.id).collect(), inward: true, outward: true, ..WatchSettings::default() }
}

fn capture(switch: &TestSwitch, watch: WatchSettings, snap_len: usize) -> Capture {
    switch.with(move |dataplane| dataplane.capture(watch, snap_len)).unwrap()
}

fn mirror(switch: &TestSwitch, watch: WatchSettings, to: &Port) {
    let mirror = MirrorSettings { name: "m".to_owned(), watch, to: to.id };
    switch.with(move |dataplane| dataplane.set_mirrors(vec![mirror])).unwrap();
}

fn vlan(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

/// A frame that was captured: of which interface, whether from its guest, its length on the wire, its bytes.
type Seen = (usize, bool, usize, Vec<u8>);

/// The next frames of a capture.
#[track_caller]
fn next(capture: &mut Capture, count: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut last = 0;
    let came = eventually(|| {
        assert!(capture.wait(SOON), "the capture goes on");
        for frame in capture.frames() {
            assert!(frame.at_ns >= last && frame.at_ns > 1_500_000_000_000_000_000, "in order, by the host's clock");
            last = frame.at_ns;
            seen.push((frame.interface, frame.is_inward, frame.len, frame.bytes.to_vec()));
        }
        seen.len() >= count
    });
    assert!(came && seen.len() == count, "{} frames of {count}", seen.len());
    seen
}

/// A tagged frame.
fn tagged(mut frame: Vec<u8>, vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    frame.splice(12..12, [0x81, 0, high, low]);
    frame
}

#[test]
fn a_capture_has_every_frame_in_order_as_both_sides_see_it() {
    let switch = TestSwitch::start();
    let ((a_port, mut a), (b_port, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    exchange(&mut a, mac(1), &mut b, mac(2));
    let mut capture = capture(&switch, all(&[&a_port, &b_port]), WHOLE);
    let frames: Vec<_> = [60, 61, 128, 1514, 300].iter().map(|len| frame(mac(2), mac(1), *len)).collect();
    for frame in &frames {
        a.send(frame).unwrap();
        expect_frame(&mut b, frame);
    }
    let seen = next(&mut capture, 10);
    for (pair, frame) in seen.chunks(2).zip(&frames) {
        for ((interface, is_inward, len, bytes), expected) in pair.iter().zip([(0, true), (1, false)]) {
            assert_eq!(((*interface, *is_inward), *len), (expected, frame.len()));
            assert_same(bytes, frame);
        }
    }
    let each = CaptureCounters { seen: 5, picked: 5, lost: 0 };
    assert_eq!(capture.counters(), [each, each]);
}

#[test]
fn a_filter_a_direction_and_a_snap_length_say_what_is_captured() {
    let switch = TestSwitch::start();
    let ((a_port, mut a), (_, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    let filter = "ether src 02:00:00:00:00:02 and greater 100".parse().unwrap();
    let watch = WatchSettings { inward: false, filter, ..all(&[&a_port]) };
    let mut capture = capture(&switch, watch, 20);
    exchange(&mut a, mac(1), &mut b, mac(2));
    let short = frame(mac(1), mac(2), 99);
    b.send(&short).unwrap();
    expect_frame(&mut a, &short);
    assert_eq!(next(&mut capture, 1), [(0, false, 200, frame(mac(1), mac(2), 200)[..20].to_vec())]);
    assert_eq!(capture.counters(), [CaptureCounters { seen: 2, picked: 1, lost: 0 }]);
}

#[test]
fn a_filter_for_several_ports_finds_what_comes_from_others() {
    let switch = TestSwitch::start();
    let ((a_port, mut a), (b_port, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    let (_, mut c) = switch.guest(|builder| builder);
    exchange(&mut a, mac(1), &mut b, mac(2));
    let filter = "ether src 02:00:00:00:00:03".parse().unwrap();
    let mut capture = capture(&switch, WatchSettings { filter, ..all(&[&a_port, &b_port]) }, WHOLE);
    let meant = frame(mac(2), mac(3), 64);
    let mut deliver = |sender: &mut Guest, frame: &[u8]| {
        sender.send(frame).unwrap();
        expect_frame(&mut b, frame);
    };
    deliver(&mut a, &frame(mac(2), mac(1), 64));
    deliver(&mut c, &meant);
    deliver(&mut a, &meant);
    let seen = next(&mut capture, 3);
    assert_eq!(
        seen.iter().map(|(interface, is_inward, ..)| (*interface, *is_inward)).collect::<Vec<_>>(),
        [(1, false), (0, true), (1, false)]
    );
    assert!(seen.iter().all(|(.., bytes)| *bytes == meant));
}

#[test]
fn a_guest_hides_nothing_from_a_filter_behind_a_checksum_that_is_to_be_written() {
    let switch = TestSwitch::start();
    let ((a_port, mut a), (_, mut b)) =
        (switch.guest(|builder| builder.features(feature::DEFAULT | feature::CSUM)), switch.guest(|builder| builder));
    let watch = WatchSettings { outward: false, filter: "tcp port 22".parse().unwrap(), ..all(&[&a_port]) };
    let mut capture = capture(&switch, watch, WHOLE);
    let packet = PacketBuilder::ethernet2(mac(1), mac(2)).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let mut sent = Vec::new();
    packet.tcp(40_000, 80, 1, 1).write(&mut sent, &[0; 20]).unwrap();
    // With an option of four bytes.
    sent[14] = 0x46;
    sent.splice(34..34, [1; 4]);
    // To port 80, which its checksum makes something else of; then one that leaves the port alone.
    let pending = |csum_start| Header { flags: Header::NEEDS_CSUM, csum_start, csum_offset: 6, ..Header::default() };
    for header in [pending(34), pending(38)] {
        a.send_with_header(&header, &sent, &Shape::one()).unwrap();
    }
    let got = [(); 2].map(|()| b.receive(SOON).unwrap().expect("it is for all"));
    assert_eq!(next(&mut capture, 1), [(0, true, got[0].len(), got[0].clone())]);
    assert_ne!(got[0][40..42], sent[40..42]);
    assert_eq!(capture.counters(), [CaptureCounters { seen: 2, picked: 1, lost: 0 }]);
}

#[test]
fn what_enters_a_line_and_what_leaves_it_is_captured_on_its_guests_side() {
    const SENT: u32 = 200;
    let switch = TestSwitch::start();
    let ((a_port, mut a), (b_port, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    exchange(&mut a, mac(1), &mut b, mac(2));
    let bad = |seed| {
        let impairment = Impairment { loss: Chance::from_millionths(300_000), seed: Some(seed), ..Impairment::default() };
        LineSettings { impairment: Some(impairment), ..LineSettings::default() }
    };
    for (port, lines) in
        [(&a_port, Lines { from_guest: bad(1), ..Lines::NONE }), (&b_port, Lines { to_guest: bad(2), ..Lines::NONE })]
    {
        let id = port.id;
        switch.with(move |dataplane| dataplane.set_lines(id, &lines)).unwrap();
    }
    let mut capture = capture(&switch, all(&[&a_port, &b_port]), WHOLE);
    let mut got = Vec::new();
    for nth in 0..SENT {
        a.send(&numbered(mac(2), mac(1), nth)).unwrap();
    }
    let lost = || [&a_port, &b_port].map(|port| switch.drops(port, DropReason::ImpairmentLoss));
    assert!(eventually(|| {
        got.extend(std::iter::from_fn(|| b.receive(Duration::ZERO).unwrap()).map(|frame| number(&frame)));
        got.len() as u64 + lost().iter().sum::<u64>() == u64::from(SENT)
    }));
    assert!(lost().iter().all(|lost| (20..100).contains(lost)), "{:?}", lost());
    let seen = next(&mut capture, SENT as usize + got.len());
    let numbers = |inward| seen.iter().filter(|seen| seen.1 == inward).map(|seen| number(&seen.3)).collect::<Vec<_>>();
    assert_eq!(numbers(true), (0..SENT).collect::<Vec<_>>(), "what the guest has sent");
    assert_eq!(numbers(false), got, "what the guest has got");
    let mut frame = numbered(mac(2), mac(1), 0);
    frame.truncate(60);
    let trace = switch.trace(a_port.id, &frame);
    assert_eq!(trace.steps.iter().filter(|step| step.stage == "line").count(), 2, "{trace:?}");
}

#[test]
fn a_slow_reader_loses_frames_which_are_counted_and_no_guest_notices() {
    let switch = TestSwitch::start();
    let ((a_port, mut a), (_, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    exchange(&mut a, mac(1), &mut b, mac(2));
    let mut capture = capture(&switch, WatchSettings { outward: false, ..all(&[&a_port]) }, WHOLE);
    // More than the buffer of a capture has room for.
    let (count, len) = (300_u32, 60_000);
    let mut sent = frame(mac(2), mac(1), len);
    for nth in 0..count {
        sent[14..18].copy_from_slice(&nth.to_be_bytes());
        a.send(&sent).unwrap();
        expect_frame(&mut b, &sent);
    }
    let lost = |capture: &Capture| capture.counters()[0].lost;
    settles("frames seen", u64::from(count), || capture.counters()[0].seen);
    assert!(lost(&capture) > 0 && capture.counters()[0].picked == u64::from(count), "{:?}", capture.counters());
    // What there was room for is there, and the next one says how many are missing.
    let missing = lost(&capture);
    let kept = next(&mut capture, (u64::from(count) - missing) as usize);
    assert!(kept.iter().enumerate().all(|(nth, seen)| number(&seen.3) == nth as u32));
    a.send(&sent).unwrap();
    let mut said = Vec::new();
    assert!(eventually(|| {
        capture.wait(SOON);
        said.extend(capture.frames().map(|frame| frame.lost));
        !said.is_empty()
    }));
    assert_eq!(said, [missing]);
}

#[test]
fn a_capture_that_nobody_reads_any_more_is_gone_and_so_is_one_without_ports() {
    let switch = TestSwitch::start();
    let ((a_port, mut a), (b_port, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    // One at a time, many more than there can be at once.
    for _ in 0..40 {
        let watch = all(&[&a_port]);
        let started = eventually(|| {
            let watch = watch.clone();
            switch.with(move |dataplane| dataplane.capture(watch, 64)).is_ok()
        });
        assert!(started);
    }
    let captures: Vec<_> = (0..16).map(|_| capture(&switch, all(&[&a_port]), 64)).collect();
    let watch = all(&[&a_port]);
    let refusal = switch.with(move |dataplane| dataplane.capture(watch, 64).err().map(|error| error.to_string()));
    assert_eq!(refusal.as_deref(), Some("no more captures fit: the limit is 16; end or remove another first"));
    drop(captures);
    let mut of_both = capture(&switch, all(&[&a_port, &b_port]), 64);
    exchange(&mut a, mac(1), &mut b, mac(2));
    switch.remove(&b_port);
    next(&mut of_both, 4);
    // It goes on with the port that is left.
    a.send(&frame(BROADCAST, mac(1), 60)).unwrap();
    next(&mut of_both, 1);
    switch.remove(&a_port);
    assert!(eventually(|| !of_both.wait(Duration::from_millis(10))), "without ports it ends");
}

#[test]
fn a_mirror_copies_to_a_port_that_is_nobody_else_any_more() {
    let switch = TestSwitch::start();
    let ((a_port, mut a), (_, mut b), (c_port, mut monitor)) =
        (switch.guest(|builder| builder), switch.guest(|builder| builder), switch.guest(|builder| builder));
    exchange(&mut a, mac(1), &mut b, mac(2));
    expect_frame(&mut monitor, &frame(mac(2), mac(1), 100));
    // It is a station like any other until it is a monitor port.
    let hello = frame(BROADCAST, mac(3), 60);
    monitor.send(&hello).unwrap();
    expect_frame(&mut a, &hello);
    expect_frame(&mut b, &hello);
    settles("where the station is", Some(c_port.id), || switch.station(mac(3)));
    mirror(&switch, all(&[&a_port]), &c_port);
    assert_eq!(switch.station(mac(3)), None);
    let (there, back, to_all) = (frame(mac(2), mac(1), 100), frame(mac(1), mac(2), 200), frame(BROADCAST, mac(2), 90));
    a.send(&there).unwrap();
    expect_frame(&mut b, &there);
    b.send(&back).unwrap();
    expect_frame(&mut a, &back);
    // Once, and not as a member.
    b.send(&to_all).unwrap();
    expect_frame(&mut a, &to_all);
    for frame in [&there, &back, &to_all] {
        expect_frame(&mut monitor, frame);
    }
    monitor.send(&hello).unwrap();
    switch.expect_drops(&c_port, DropReason::MonitorPort, 1);
    switch.wait_asleep();
    assert_eq!((monitor.receive(Duration::ZERO).unwrap(), a.receive(Duration::ZERO).unwrap()), (None, None));
    assert_eq!(switch.with(|dataplane| dataplane.mirror_status("m")).map(|status| status.frames), Some(3));
    // And back.
    switch.with(|dataplane| dataplane.set_mirrors(Vec::new())).unwrap();
    exchange(&mut a, mac(1), &mut monitor, mac(3));
}

#[test]
fn a_monitor_port_gets_nothing_but_copies_whatever_is_for_its_address() {
    let switch = TestSwitch::start();
    let ((a_port, mut a), (b_port, mut b), (c_port, mut monitor)) =
        (switch.guest(|builder| builder), switch.guest(|builder| builder), switch.guest(|builder| builder));
    exchange(&mut a, mac(1), &mut b, mac(2));
    expect_frame(&mut monitor, &frame(mac(2), mac(1), 100));
    let (network, id) = (switch.network(), c_port.id);
    let stations = [(Vlan::customer(vlan(1)), vec![(MacAddr(mac(3)), id)])].into_iter().collect();
    switch.with(move |dataplane| dataplane.set_static_stations(network, stations)).unwrap();
    mirror(&switch, WatchSettings { outward: false, ..all(&[&a_port]) }, &c_port);
    let for_it = frame(mac(3), mac(2), 100);
    b.send(&for_it).unwrap();
    switch.expect_drops(&c_port, DropReason::MonitorPort, 1);
    let trace = switch.trace(b_port.id, &for_it);
    assert_eq!((trace.receivers.len(), trace.drops), (0, vec![(id, DropReason::MonitorPort)]));
    let copied = frame(mac(2), mac(1), 70);
    a.send(&copied).unwrap();
    expect_frame(&mut monitor, &copied);
    switch.wait_asleep();
    assert_eq!(monitor.receive(Duration::ZERO).unwrap(), None);
}

#[test]
fn mirrors_of_monitor_ports_and_of_each_other_make_no_loop() {
    let switch = TestSwitch::start();
    let guests: Vec<(Port, Guest)> = (0..4).map(|_| switch.guest(|builder| builder)).collect();
    let [(a, mut a_guest), (b, mut b_guest), (c, mut c_guest), (d, mut d_guest)] =
        <[(Port, Guest); 4]>::try_from(guests).unwrap_or_else(|_| unreachable!("there are four"));
    let to = |name: &str, from: &[&Port], to: &Port| MirrorSettings { name: name.to_owned(), watch: all(from), to: to.id };
    // Each monitors the other, and everything.
    let mirrors = vec![to("one", &[&a, &b, &c, &d], &c), to("two", &[&a, &b, &c, &d], &d)];
    switch.with(move |dataplane| dataplane.set_mirrors(mirrors)).unwrap();
    let mut seen_by_monitor = capture(&switch, all(&[&c]), WHOLE);
    let sent = numbered(mac(2), mac(1), 7);
    a_guest.send(&sent).unwrap();
    expect_frame(&mut b_guest, &sent);
    // On the way in and on the way out.
    for monitor in [&mut c_guest, &mut d_guest] {
        expect_frame(monitor, &sent);
        expect_frame(monitor, &sent);
    }
    switch.wait_asleep();
    assert_eq!((c_guest.receive(Duration::ZERO).unwrap(), d_guest.receive(Duration::ZERO).unwrap()), (None, None));
    assert_eq!(next(&mut seen_by_monitor, 2), [(0, false, 60, sent.clone()), (0, false, 60, sent)]);
}

#[test]
fn a_vlan_is_seen_with_its_tags_where_there_are_tags() {
    let switch = TestSwitch::start();
    let plug = |role| {
        let port = switch.add(PortSettings { vlan: Some(role), ..switch.settings() });
        let guest = switch.connect(&port, |builder| builder);
        (port, guest)
    };
    let trunk = PortRole::Trunk(Trunk { allowed: [vlan(10), vlan(20)].into_iter().collect(), native: None });
    let ((ten, mut in_ten), (_, mut in_twenty), (trunk, mut on_trunk)) =
        (plug(PortRole::Access(vlan(10))), plug(PortRole::Access(vlan(20))), plug(trunk));
    let (monitor, mut watcher) = switch.guest(|builder| builder);
    mirror(&switch, WatchSettings { vlan: Some(vlan(10)), ..all(&[&ten, &trunk]) }, &monitor);
    let mut of_trunk = capture(&switch, WatchSettings { filter: "vlan 20".parse().unwrap(), ..all(&[&trunk]) }, WHOLE);
    let (one, other) = (frame(BROADCAST, mac(1), 80), frame(BROADCAST, mac(2), 90));
    in_ten.send(&one).unwrap();
    expect_frame(&mut on_trunk, &tagged(one.clone(), 10));
    in_twenty.send(&other).unwrap();
    expect_frame(&mut on_trunk, &tagged(other.clone(), 20));
    // As the access port has sent it, and as the trunk has got it.
    expect_frame(&mut watcher, &one);
    expect_frame(&mut watcher, &tagged(one, 10));
    let from_trunk = tagged(frame(BROADCAST, mac(3), 70), 20);
    on_trunk.send(&from_trunk).unwrap();
    in_twenty.receive(SOON).unwrap().expect("it is a member");
    let other = tagged(other, 20);
    assert_eq!(next(&mut of_trunk, 2), [(0, false, other.len(), other), (0, true, from_trunk.len(), from_trunk)]);
    switch.wait_asleep();
    assert_eq!(watcher.receive(Duration::ZERO).unwrap(), None);
}

#[test]
fn the_end_of_a_mirror_that_is_removed_is_a_port_like_others_afterwards() {
    let switch = TestSwitch::start();
    let ((a_port, mut a), (_, mut b)) = (switch.guest(|builder| builder), switch.guest(|builder| builder));
    let (monitor, watcher) = switch.guest(|builder| builder);
    mirror(&switch, all(&[&a_port]), &monitor);
    drop(watcher);
    switch.remove(&monitor);
    exchange(&mut a, mac(1), &mut b, mac(2));
    // Another port has its number.
    let (again, mut guest) = switch.guest(|builder| builder);
    assert_eq!(again.id, monitor.id);
    exchange(&mut a, mac(1), &mut guest, mac(4));
    while b.receive(Duration::ZERO).unwrap().is_some() {}
    let private = frame(mac(2), mac(1), 99);
    a.send(&private).unwrap();
    expect_frame(&mut b, &private);
    switch.wait_asleep();
    assert_eq!(guest.receive(Duration::ZERO).unwrap(), None, "what is for others");
    let is_monitor = switch.with(move |dataplane| dataplane.is_monitor(again.id));
    assert!(!is_monitor && again.id != PortId::GATEWAY);
}

/// Where frames were dropped so far, and why.
fn all_drops(switch: &TestSwitch, ports: &[Port]) -> BTreeMap<(PortId, DropReason), u64> {
    ports.iter().flat_map(|port| switch.all_drops(port).into_iter().map(|(reason, count)| ((port.id, reason), count))).collect()
}

#[test]
fn a_trace_says_what_then_happens() {
    let switch = TestSwitch::start();
    let trunk = PortRole::Trunk(Trunk { allowed: [vlan(10), vlan(20)].into_iter().collect(), native: Some(vlan(20)) });
    let locked = Protections { macs: Some(vec![MacAddr(mac(4))]), ..Protections::NONE };
    let isolated = || Protections { isolation: Isolation::Isolated, ..Protections::NONE };
    let settings = [
        (PortRole::Access(vlan(10)), isolated()),
        (PortRole::Access(vlan(10)), isolated()),
        (PortRole::Access(vlan(20)), Protections::NONE),
        (PortRole::Access(vlan(10)), locked),
        (trunk, Protections::NONE),
        (PortRole::Qinq(vlan(30)), Protections::NONE),
    ];
    let (mut ports, mut guests) = (Vec::new(), Vec::new());
    for (role, protections) in settings {
        let port = switch.add(PortSettings { vlan: Some(role), protections, ..switch.settings() });
        guests.push(switch.connect(&port, |builder| builder));
        ports.push(port);
    }
    // One that has no guest.
    ports.push(switch.add(PortSettings { vlan: Some(PortRole::Access(vlan(10))), ..switch.settings() }));
    let mut numbers = Numbers::from(9);
    let (mut delivered, mut dropped) = (0, BTreeSet::new());
    for number in 0..400_u32 {
        let from = numbers.below(guests.len());
        let (nth, other) = (numbers.below(7) as u16 + 1, numbers.below(8) as u16 + 1);
        let source = match numbers.below(12) {
            0 => mac(nth),
            1 => BROADCAST,
            _ => mac(from as u16 + 1),
        };
        let destination =
            [mac(other), mac(nth), BROADCAST, [0x33, 0x33, 0, 0, 0, 1], [1, 0x80, 0xc2, 0, 0, 0], mac(other)][numbers.below(6)];
        let mut sent = numbered(destination, source, number);
        for _ in 0..[0, 0, 0, 1, 1, 2][numbers.below(6)] {
            sent = tagged(sent, [0, 10, 20, 40, 4095][numbers.below(5)]);
        }
        let mark = sent[sent.len() - 8..].to_vec();
        sent.extend(number.to_be_bytes());
        let before = all_drops(&switch, &ports);
        let trace = switch.trace(ports[from].id, &sent);
        assert_eq!(all_drops(&switch, &ports), before, "a trace counts nothing");
        guests[from].send(&sent).unwrap();
        for receiver in &trace.receivers {
            let place = ports.iter().position(|port| port.id == receiver.port).unwrap();
            let got = guests[place].receive(SOON).unwrap().unwrap_or_else(|| panic!("{number}: nothing came; {trace:?}"));
            assert_eq!((&got[got.len() - 4..], &got[..12]), (&number.to_be_bytes()[..], &sent[..12]), "{trace:?}");
            if let Some(tag) = receiver.tag {
                assert_eq!(&got[12..16], &tag.bytes(), "{trace:?}");
            }
            assert!(got.windows(mark.len()).any(|bytes| bytes == mark));
            delivered += 1;
        }
        let mut expected = before;
        for (port, reason) in &trace.drops {
            *expected.entry((*port, *reason)).or_default() += 1;
            dropped.insert(*reason);
        }
        settles(&format!("{number}: what is dropped, {trace:?}"), expected, || all_drops(&switch, &ports));
    }
    // Nobody got more than was said.
    switch.wait_asleep();
    for guest in &mut guests {
        assert_eq!(guest.receive(Duration::ZERO).unwrap(), None);
    }
    assert!(delivered > 100 && dropped.len() >= 8, "{delivered} were delivered, and dropped by {dropped:?}");
}
