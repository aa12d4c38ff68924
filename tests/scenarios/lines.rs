//! Lines between the switch and its guests: shaping and impairment, as guests meet them. How exact rates and chances are is tested where they are made, in `switch/src/line`,
//! with a clock of its own; here nothing depends on how fast the machine is.

mod common;

use std::time::{Duration, Instant};

use common::{
    BROADCAST, Port, RINGS, SOON, TestSwitch, assert_same, eventually, exchange, expect_frame, frame, mac, number, numbered,
    settles,
};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use weft_dataplane::{PortSettings, WorkerSettings};
use weft_guest::{Builder, Guest, Header, Shape as Buffers, feature};
use weft_switch::guard::Limit;
use weft_switch::line::{Chance, Impairment, LineSettings, Lines, Shape};
use weft_switch::vlan::{PortRole, Trunk, VlanId};
use weft_switch::{DropReason, MacAddr};

const ALWAYS: Chance = Chance::from_millionths(Chance::ALWAYS);
const HOUR: Duration = Duration::from_secs(3600);

fn shaped(bits: u64, burst: u64, queue: Duration) -> LineSettings {
    LineSettings { shape: Some(Shape { limit: Limit { bits, burst }, queue }), impairment: None }
}

fn impaired(impairment: Impairment) -> LineSettings {
    LineSettings { shape: None, impairment: Some(impairment) }
}

fn delayed(delay: Duration) -> LineSettings {
    impaired(Impairment { delay, ..Impairment::default() })
}

fn to_guest(settings: LineSettings) -> Lines {
    Lines { to_guest: settings, ..Lines::NONE }
}

fn from_guest(settings: LineSettings) -> Lines {
    Lines { from_guest: settings, ..Lines::NONE }
}

fn set(switch: &TestSwitch, port: &Port, lines: Lines) {
    let id = port.id;
    switch.with(move |dataplane| dataplane.set_lines(id, &lines)).unwrap();
}

fn plug(switch: &TestSwitch, lines: Lines, shape: impl FnOnce(Builder) -> Builder) -> (Port, Guest) {
    let port = switch.add(PortSettings { lines, ..switch.settings() });
    let guest = switch.connect(&port, shape);
    (port, guest)
}

/// A guest on a port with these lines, and one on a port without, which know each other.
fn scene(switch: &TestSwitch, lines: Lines) -> ((Port, Guest), (Port, Guest)) {
    let (mut a, mut b) = (plug(switch, Lines::NONE, |builder| builder), switch.guest(|builder| builder));
    exchange(&mut a.1, mac(1), &mut b.1, mac(2));
    set(switch, &a.0, lines);
    (a, b)
}

/// The numbers of all frames that come, until so many came or were dropped at this port.
fn numbers_of(switch: &TestSwitch, guest: &mut Guest, port: &Port, sent: u64) -> Vec<u32> {
    let mut numbers = Vec::new();
    let mut all = || {
        numbers.extend(std::iter::from_fn(|| guest.receive(Duration::ZERO).unwrap()).map(|frame| number(&frame)));
        let dropped: u64 = switch.all_drops(port).iter().map(|(_, count)| count).sum();
        numbers.len() as u64 + dropped >= sent
    };
    assert!(eventually(&mut all), "not all {sent} frames came or were dropped: {:?}", switch.all_drops(port));
    numbers
}

#[test]
fn what_is_shaped_comes_in_order_and_never_faster_than_its_rate() {
    // A byte takes a microsecond.
    let line = shaped(8_000_000, 1514, HOUR);
    for lines in [to_guest(line), from_guest(impaired(Impairment { rate: Some(8_000_000), ..Impairment::default() }))] {
        let switch = TestSwitch::start();
        let ((_, mut a), (_, mut b)) = scene(&switch, lines);
        let (sender, receiver, from, to) = if lines == to_guest(line) { (&mut b, &mut a, 2, 1) } else { (&mut a, &mut b, 1, 2) };
        let began = Instant::now();
        for number in 0..60 {
            let mut sent = frame(mac(to), mac(from), 1000);
            sent[14..18].copy_from_slice(&u32::to_be_bytes(number));
            sender.send(&sent).unwrap();
        }
        for expected in 0..60 {
            let received = receiver.receive(SOON).unwrap().expect("it waits for its turn");
            assert_eq!((number(&received), received.len()), (expected, 1000));
        }
        assert!(began.elapsed() >= Duration::from_micros(60_000 - 1514));
    }
}

#[test]
fn what_would_wait_for_too_long_is_dropped_and_counted() {
    let switch = TestSwitch::start();
    let ((port, mut a), (_, mut b)) = scene(&switch, to_guest(shaped(1_000, 6_000, Duration::from_millis(1))));
    for number in 0..200 {
        b.send(&numbered(mac(1), mac(2), number)).unwrap();
    }
    let numbers = numbers_of(&switch, &mut a, &port, 200);
    let dropped = switch.drops(&port, DropReason::ShaperFull);
    // The burst is a hundred frames; another frame takes half a second.
    assert!((100..120).contains(&numbers.len()) && numbers.len() as u64 + dropped == 200 && numbers.is_sorted());
    assert_eq!(switch.all_drops(&port), [(DropReason::ShaperFull, dropped)]);
}

#[test]
fn each_way_takes_its_delay() {
    let delay = Duration::from_millis(20);
    for polling in [weft_dataplane::Polling::Adaptive, weft_dataplane::Polling::Never, weft_dataplane::Polling::Always] {
        let switch = TestSwitch::start_with(&WorkerSettings { polling, ..WorkerSettings::default() });
        let lines = Lines { from_guest: delayed(delay), to_guest: delayed(delay) };
        let ((_, mut a), (_, mut b)) = scene(&switch, lines);
        for len in [14, 60, 1514, 9014, 65_535] {
            let began = Instant::now();
            exchange(&mut a, mac(1), &mut b, mac(2));
            assert!(began.elapsed() >= 2 * delay);
            let sent = frame(mac(2), mac(1), len);
            a.send(&sent).unwrap();
            expect_frame(&mut b, &sent);
        }
    }
}

#[test]
fn every_kind_of_ring_and_buffer_works_behind_a_line() {
    for features in RINGS {
        let switch = TestSwitch::start();
        let lines = Lines { from_guest: delayed(Duration::from_millis(1)), to_guest: delayed(Duration::from_millis(1)) };
        let (_, mut a) = plug(&switch, lines, |builder| builder.features(features));
        let (_, mut b) = switch.guest(|builder| builder.features(features));
        exchange(&mut a, mac(1), &mut b, mac(2));
        for shape in [Buffers::one(), Buffers::pieces(&[12, 14, 100, 400]), Buffers::pieces(&[12, 600])] {
            let sent = frame(mac(2), mac(1), 520);
            a.send_shaped(&sent, &shape).unwrap();
            expect_frame(&mut b, &sent);
            let answer = frame(mac(1), mac(2), 520);
            b.send_shaped(&answer, &shape).unwrap();
            expect_frame(&mut a, &answer);
        }
    }
}

#[test]
fn the_same_seed_loses_the_same_frames() {
    let lose = |seed| {
        let switch = TestSwitch::start();
        let bad = Impairment { loss: Chance::from_millionths(300_000), seed: Some(seed), ..Impairment::default() };
        let ((port, mut a), (_, mut b)) = scene(&switch, to_guest(impaired(bad)));
        for number in 0..200 {
            b.send(&numbered(mac(1), mac(2), number)).unwrap();
        }
        let numbers = numbers_of(&switch, &mut a, &port, 200);
        let lost = switch.drops(&port, DropReason::ImpairmentLoss);
        assert!((30..90).contains(&lost) && numbers.is_sorted());
        assert_eq!(switch.all_drops(&port), [(DropReason::ImpairmentLoss, lost)]);
        numbers
    };
    assert_eq!(lose(1), lose(1));
    assert_ne!(lose(1), lose(2));
}

#[test]
fn what_is_lost_on_the_way_from_a_guest_is_counted_there_and_reaches_nobody() {
    let switch = TestSwitch::start();
    let ((port, mut a), (_, mut b)) = scene(&switch, from_guest(impaired(Impairment { loss: ALWAYS, ..Impairment::default() })));
    for _ in 0..10 {
        a.send(&frame(BROADCAST, mac(1), 100)).unwrap();
    }
    switch.expect_drops(&port, DropReason::ImpairmentLoss, 10);
    // The other way is as it was.
    b.send(&frame(mac(1), mac(2), 100)).unwrap();
    expect_frame(&mut a, &frame(mac(1), mac(2), 100));
    assert_eq!(b.receive(Duration::ZERO).unwrap(), None);
}

#[test]
fn duplicates_come_behind_one_another_and_corrupt_frames_have_one_bit_wrong() {
    let switch = TestSwitch::start();
    let ((port, mut a), (_, mut b)) =
        scene(&switch, to_guest(impaired(Impairment { duplicate: ALWAYS, ..Impairment::default() })));
    for number in 0..50 {
        b.send(&numbered(mac(1), mac(2), number)).unwrap();
    }
    let expected: Vec<u32> = (0..50).flat_map(|number| [number, number]).collect();
    assert_eq!(numbers_of(&switch, &mut a, &port, 100), expected);
    set(&switch, &port, to_guest(impaired(Impairment { corrupt: ALWAYS, ..Impairment::default() })));
    for len in [15, 60, 1514] {
        let sent = frame(mac(1), mac(2), len);
        b.send(&sent).unwrap();
        let received = a.receive(SOON).unwrap().expect("a corrupt frame comes all the same");
        assert_same(&received[..14], &sent[..14]);
        let wrong: u32 = received.iter().zip(&sent).map(|(got, sent)| (got ^ sent).count_ones()).sum();
        assert_eq!((received.len(), wrong), (len, 1));
    }
}

/// TCP from the second station to the first, with the checksum of a guest that leaves it to us.
fn unfinished(len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ethernet2(mac(2), mac(1)).ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64).tcp(1000, 2000, 5, 4000).ack(7);
    packet.write(&mut bytes, &vec![0x5a; len]).unwrap();
    let words = bytes[26..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>() + 6 + (bytes.len() - 34) as u32;
    let folded = (sum & 0xffff) + (sum >> 16);
    bytes[50..52].copy_from_slice(&((folded & 0xffff) as u16 + (folded >> 16) as u16).to_be_bytes());
    bytes
}

const PARTIAL: Header =
    Header { flags: Header::NEEDS_CSUM, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 34, csum_offset: 16, num_buffers: 0 };
const LARGE: Header = Header { gso_type: Header::GSO_TCPV4, gso_size: 1460, hdr_len: 54, ..PARTIAL };

/// Guests that take any frame unfinished, the first of them on a port with these lines.
fn eager(switch: &TestSwitch, lines: Lines) -> ((Port, Guest), (Port, Guest)) {
    const EAGER: u64 = feature::DEFAULT | feature::CSUM | feature::HOST_TSO | feature::GUEST_CSUM | feature::GUEST_TSO;
    let mut a = plug(switch, Lines::NONE, |builder| builder.features(EAGER));
    let mut b = switch.guest(|builder| builder.features(EAGER));
    exchange(&mut a.1, mac(1), &mut b.1, mac(2));
    set(switch, &a.0, lines);
    (a, b)
}

#[test]
fn a_corrupt_frame_has_a_checksum_that_says_so() {
    let switch = TestSwitch::start();
    let ((_, mut a), (_, mut b)) =
        eager(&switch, to_guest(impaired(Impairment { corrupt: ALWAYS, seed: Some(1), ..Impairment::default() })));
    let mut looked_at = 0;
    for _ in 0..20 {
        b.send_with_header(&PARTIAL, &unfinished(1000), &Buffers::one()).unwrap();
        let received = a.receive_whole(SOON).unwrap().unwrap();
        assert_eq!(received.header.flags, 0, "nobody trusts it");
        let Ok(packet) = SlicedPacket::from_ethernet(&received.frame) else { continue };
        // Where the IP header is whole, the checksum of either has to be wrong.
        if let (Some(etherparse::NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) {
            let header = ip.header().to_header();
            let tcp_is_right = Ok(tcp.checksum()) == tcp.calc_checksum_ipv4(header.source, header.destination);
            assert!(header.header_checksum != header.calc_header_checksum() || !tcp_is_right);
            looked_at += 1;
        }
    }
    assert!(looked_at >= 10, "{looked_at}");
}

#[test]
fn large_frames_are_taken_apart_where_they_would_not_be_what_a_wire_carries() {
    const LEN: usize = 40 * 1460;
    let fast = to_guest(shaped(1_000_000_000, 100_000, HOUR));
    let slow = to_guest(shaped(100_000_000, 100_000, HOUR));
    for (lines, frames) in [(fast, 1), (slow, 40), (to_guest(delayed(Duration::from_millis(1))), 40)] {
        let switch = TestSwitch::start();
        let ((_, mut a), (_, mut b)) = eager(&switch, lines);
        b.send_with_header(&LARGE, &unfinished(LEN), &Buffers::one()).unwrap();
        for nth in 0..frames {
            let received = a.receive_whole(SOON).unwrap().expect("a part of it");
            assert_eq!(received.header.gso_type, if frames == 1 { Header::GSO_TCPV4 } else { 0 });
            let packet = SlicedPacket::from_ethernet(&received.frame).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { panic!("not TCP") };
            assert_eq!((tcp.payload().len(), tcp.sequence_number() as usize), (LEN / frames, 5 + nth * 1460));
        }
    }
}

#[test]
fn what_waits_takes_no_more_memory_than_its_bound_and_holds_up_nobody() {
    const LEN: usize = 60_000;
    const ROOM: u64 = (64 << 20) / (LEN as u64 + 128);
    for way in [to_guest, from_guest] {
        let switch = TestSwitch::start();
        let ((port, mut a), (_, mut b)) = scene(&switch, way(delayed(HOUR)));
        let (_, mut c) = switch.guest(|builder| builder);
        let (sender, from, to) = if way(delayed(HOUR)) == to_guest(delayed(HOUR)) { (&mut b, 2, 1) } else { (&mut a, 1, 2) };
        for _ in 0..ROOM + 100 {
            sender.send(&frame(mac(to), mac(from), LEN)).unwrap();
        }
        switch.expect_drops(&port, DropReason::LineFull, 100);
        if from == 2 {
            exchange(&mut b, mac(2), &mut c, mac(3));
        }
        let before = switch.all_drops(&port);
        assert_eq!(before, [(DropReason::LineFull, 100)]);
        // What waits leaves at once, as far as the receiver has room for it.
        set(&switch, &port, Lines::NONE);
        let (receiver, receiving) = if from == 2 { (&mut a, 1) } else { (&mut b, 2) };
        let mut came = 0;
        let full = |switch: &TestSwitch| -> u64 {
            switch.with(move |dataplane| {
                let drops = |id| dataplane.port_status(id).map(|status| status.counters.drops).unwrap_or_default();
                let all = (0..4).map(weft_switch::PortId).flat_map(drops);
                all.filter(|(reason, _)| *reason == DropReason::ReceiverFull).map(|(_, count)| count).sum()
            })
        };
        assert!(
            eventually(|| {
                came += std::iter::from_fn(|| receiver.receive(Duration::ZERO).unwrap())
                    .filter(|frame| frame.len() == LEN)
                    .count() as u64;
                came + full(&switch) == ROOM
            }),
            "{came} came, {} were dropped, of {ROOM}",
            full(&switch)
        );
        assert!(came > 0);
        switch.expect_drops(&port, DropReason::LineFull, 100);
        let sent = frame(mac(receiving), mac(9), 100);
        c.send(&sent).unwrap();
        // Perhaps behind what two others said to each other when they were not known yet, which has waited, too.
        assert!(std::iter::from_fn(|| receiver.receive(SOON).unwrap()).any(|frame| frame == sent));
    }
}

#[test]
fn a_line_that_changes_lets_everything_go_and_the_new_one_holds_from_then_on() {
    let switch = TestSwitch::start();
    let ((port, mut a), (_, mut b)) = scene(&switch, to_guest(delayed(HOUR)));
    for number in 0..100 {
        b.send(&numbered(mac(1), mac(2), number)).unwrap();
    }
    // Another delay, none, and then all is lost.
    for (lines, more) in [
        (to_guest(delayed(2 * HOUR)), 100..150),
        (Lines::NONE, 150..160),
        (to_guest(impaired(Impairment { loss: ALWAYS, ..Impairment::default() })), 160..170),
    ] {
        let waiting = more.start
            - if lines == Lines::NONE {
                50
            } else if more.start == 160 {
                10
            } else {
                100
            };
        switch.wait_asleep();
        set(&switch, &port, lines);
        for expected in waiting..more.start {
            let received = a.receive(SOON).unwrap().expect("it need not wait any more");
            assert_eq!(number(&received), expected);
        }
        for number in more {
            b.send(&numbered(mac(1), mac(2), number)).unwrap();
        }
    }
    switch.expect_drops(&port, DropReason::ImpairmentLoss, 10);
    assert_eq!(a.receive(Duration::ZERO).unwrap(), None);
}

/// The same settings are no change, and other protections leave a line as it is.
#[test]
fn a_line_that_does_not_change_goes_on() {
    let switch = TestSwitch::start();
    let lines = to_guest(delayed(HOUR));
    let ((port, mut a), (_, mut b)) = scene(&switch, lines);
    b.send(&numbered(mac(1), mac(2), 1)).unwrap();
    switch.wait_asleep();
    set(&switch, &port, lines);
    set(&switch, &port, Lines { from_guest: delayed(Duration::from_millis(1)), ..lines });
    let id = port.id;
    switch.with(move |dataplane| dataplane.protect_port(id, weft_switch::guard::Protections::NONE)).unwrap();
    a.send(&numbered(mac(2), mac(1), 2)).unwrap();
    expect_frame(&mut b, &numbered(mac(2), mac(1), 2));
    switch.wait_asleep();
    assert_eq!(a.receive(Duration::ZERO).unwrap(), None);
    set(&switch, &port, Lines::NONE);
    expect_frame(&mut a, &numbered(mac(1), mac(2), 1));
}

#[test]
fn a_port_goes_with_what_waits_for_it_and_a_guest_that_left_gets_nothing() {
    let switch = TestSwitch::start();
    let ((port, a), (_, mut b)) = scene(&switch, to_guest(delayed(HOUR)));
    let (_, mut c) = switch.guest(|builder| builder);
    for number in 0..100 {
        b.send(&numbered(mac(1), mac(2), number)).unwrap();
    }
    switch.wait_asleep();
    drop(a);
    switch.wait_listening(&port);
    switch.expect_drops(&port, DropReason::ReceiverDown, 100);
    let mut a = switch.connect(&port, |builder| builder);
    let hello = frame(BROADCAST, mac(2), 61);
    b.send(&hello).unwrap();
    switch.wait_asleep();
    set(&switch, &port, Lines::NONE);
    expect_frame(&mut a, &hello);
    assert_eq!(a.receive(Duration::ZERO).unwrap(), None);
    set(&switch, &port, to_guest(delayed(HOUR)));
    b.send(&hello).unwrap();
    switch.wait_asleep();
    drop(a);
    switch.remove(&port);
    while c.receive(Duration::ZERO).unwrap().is_some() {}
    // The next port has its number.
    let (next, mut d) = plug(&switch, Lines::NONE, |builder| builder);
    assert_eq!(next.id, port.id);
    exchange(&mut c, mac(3), &mut d, mac(4));
    assert_eq!(d.receive(Duration::ZERO).unwrap(), None);
}

#[test]
fn tags_are_put_on_and_taken_off_on_either_side_of_a_line() {
    let vlan = VlanId::new(100).unwrap();
    let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 100], &frame[12..]].concat();
    let lines = Lines { from_guest: delayed(Duration::from_millis(1)), to_guest: delayed(Duration::from_millis(1)) };
    let switch = TestSwitch::start();
    let trunk = PortRole::Trunk(Trunk { allowed: "100".parse().unwrap(), native: None });
    let mut guests = [PortRole::Access(vlan), trunk].map(|role| {
        let port = switch.add(PortSettings { vlan: Some(role), lines, ..switch.settings() });
        switch.connect(&port, |builder| builder)
    });
    let [a, b] = &mut guests;
    for (to, len) in [(BROADCAST, 60), (mac(2), 60), (mac(2), 1514)] {
        let sent = frame(to, mac(1), len);
        a.send(&sent).unwrap();
        expect_frame(b, &tagged(&sent));
        let answer = frame(mac(1), mac(2), len);
        b.send(&tagged(&answer)).unwrap();
        expect_frame(a, &answer);
    }
}

#[test]
fn frames_of_each_sender_keep_their_order_with_several_workers() {
    for count in 1..=3 {
        let switch = TestSwitch::start_with(&WorkerSettings { count, ..WorkerSettings::default() });
        let jitter = Duration::from_millis(2);
        let line = impaired(Impairment { delay: jitter, jitter, ..Impairment::default() });
        let (port, mut a) = plug(&switch, Lines { from_guest: line, to_guest: line }, |builder| builder);
        let mut others: Vec<_> = (0..3).map(|_| plug(&switch, from_guest(line), |builder| builder).1).collect();
        a.send(&frame(BROADCAST, mac(1), 60)).unwrap();
        others.iter_mut().for_each(|other| expect_frame(other, &frame(BROADCAST, mac(1), 60)));
        for number in 0..60 {
            for (nth, other) in others.iter_mut().enumerate() {
                other.send(&numbered(mac(1), mac(nth as u16 + 2), number)).unwrap();
            }
        }
        let mut next = [0; 3];
        for _ in 0..180 {
            let received = a.receive(SOON).unwrap().expect("none is lost");
            let sender = &mut next[usize::from(received[11]) - 2];
            assert_eq!(number(&received), std::mem::replace(sender, *sender + 1));
        }
        assert_eq!(switch.all_drops(&port), []);
    }
}

/// The line lies in front of a port's protections: what they let through is what they have seen.
#[test]
fn protections_see_what_has_come_over_the_line() {
    let switch = TestSwitch::start();
    let protections =
        weft_switch::guard::Protections { macs: Some(vec![MacAddr(mac(1))]), ..weft_switch::guard::Protections::NONE };
    let port =
        switch.add(PortSettings { protections, lines: from_guest(delayed(Duration::from_millis(1))), ..switch.settings() });
    let mut a = switch.connect(&port, |builder| builder);
    let (_, mut b) = switch.guest(|builder| builder);
    a.send(&frame(BROADCAST, mac(7), 60)).unwrap();
    a.send(&frame(BROADCAST, mac(1), 60)).unwrap();
    expect_frame(&mut b, &frame(BROADCAST, mac(1), 60));
    switch.expect_drops(&port, DropReason::MacNotAllowed, 1);
    settles("frames from the guest", 2, || switch.status(&port).counters.from_guest_frames);
}
