//! Several workers, and guests with several queue pairs: who polls what, where frames go, and that nothing gets out of order.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::{BROADCAST, Background, LIMIT, Port, SOON, TestSwitch, alone, eventually, exchange, expect_frame, settles};
use etherparse::PacketBuilder;
use mio::Poll;
use weft_dataplane::{Dataplane, Polling, PortSettings, WorkerSettings};
use weft_guest::{Guest, Header, Shape, feature};

const PAIRS: u16 = 4;
/// The most frames of one flow on the way, so that none may be lost.
const WINDOW: u32 = 64;

fn workers(count: usize) -> WorkerSettings {
    WorkerSettings { count, ..WorkerSettings::default() }
}

fn guest_with_pairs(switch: &TestSwitch, pairs: u16, features: u64) -> (Port, Guest) {
    let port = switch.add(PortSettings { queue_pairs: pairs, ..switch.settings() });
    let guest = switch.connect(&port, |builder| builder.queue_pairs(pairs).features_if_offered(feature::MQ | features));
    (port, guest)
}

/// A UDP datagram of a flow, with a number.
fn datagram(to: [u8; 6], from: [u8; 6], flow: u16, number: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(from, to).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1000 + flow, 53);
    builder.write(&mut frame, &number.to_be_bytes()).unwrap();
    frame
}

/// The flow and the number in a datagram.
fn read(frame: &[u8]) -> (u16, u32) {
    let flow = u16::from_be_bytes([frame[34], frame[35]]) - 1000;
    (flow, u32::from_be_bytes([frame[42], frame[43], frame[44], frame[45]]))
}

/// Whatever has arrived, with the pair on which it came.
fn received(guest: &mut Guest) -> Vec<(usize, u16, u32)> {
    let mut all = Vec::new();
    for pair in 0..guest.pairs() {
        while let Some(received) = guest.receive_on(pair, Duration::ZERO).unwrap() {
            let (flow, number) = read(&received.frame);
            all.push((pair, flow, number));
        }
    }
    all
}

/// How many frames were waiting.
fn drain(guest: &mut Guest) -> usize {
    std::iter::from_fn(|| guest.receive(Duration::ZERO).unwrap()).count()
}

#[test]
fn frames_pass_whatever_the_numbers_of_workers_and_queues() {
    for count in [1, 2, 3, 5] {
        let switch = TestSwitch::start_with(&workers(count));
        for pairs in [1, 2, 3, 16] {
            for features in [0, feature::RING_PACKED | feature::IN_ORDER] {
                let (port_a, mut a) = guest_with_pairs(&switch, pairs, features);
                let (port_b, mut b) = guest_with_pairs(&switch, 1, features);
                exchange(&mut a, port_a.mac.0, &mut b, port_b.mac.0);
                for pair in 0..a.pairs() {
                    let sent = datagram(port_b.mac.0, port_a.mac.0, 7, 1);
                    a.send_on(pair, &sent).unwrap();
                    assert_eq!(b.receive(SOON).unwrap().as_ref(), Some(&sent), "{count} workers, pair {pair} of {pairs}");
                }
                switch.remove(&port_a);
                switch.remove(&port_b);
            }
        }
    }
}

#[test]
fn flows_are_spread_over_a_receivers_queues_and_each_stays_on_one() {
    for count in [1, 2] {
        let switch = TestSwitch::start_with(&workers(count));
        let (port_a, mut a) = guest_with_pairs(&switch, 1, 0);
        let (port_b, mut b) = guest_with_pairs(&switch, PAIRS, 0);
        exchange(&mut a, port_a.mac.0, &mut b, port_b.mac.0);
        for number in 0..4 {
            for flow in 0..50 {
                a.send(&datagram(port_b.mac.0, port_a.mac.0, flow, number)).unwrap();
            }
        }
        let mut seen = Vec::new();
        assert!(eventually(|| {
            seen.extend(received(&mut b));
            seen.len() == 200
        }));
        let mut pairs_of: BTreeMap<u16, BTreeSet<usize>> = BTreeMap::new();
        seen.iter().for_each(|(pair, flow, _)| {
            pairs_of.entry(*flow).or_default().insert(*pair);
        });
        assert!(pairs_of.values().all(|pairs| pairs.len() == 1), "{pairs_of:?}");
        let used: BTreeSet<_> = pairs_of.values().flatten().collect();
        // One sender's ring is polled by one worker, which has its share of the queues.
        assert_eq!(used.len(), usize::from(PAIRS) / count);
    }
}

#[test]
fn a_queue_that_the_guest_disabled_gets_no_frames() {
    let switch = TestSwitch::start();
    let (port_a, mut a) = guest_with_pairs(&switch, 1, 0);
    let (port_b, mut b) = guest_with_pairs(&switch, PAIRS, 0);
    exchange(&mut a, port_a.mac.0, &mut b, port_b.mac.0);
    b.set_pair_enabled(1, false).unwrap();
    b.set_pair_enabled(3, false).unwrap();
    // Answered when everything before has been done.
    b.session().features().unwrap();
    (0..50).for_each(|flow| a.send(&datagram(port_b.mac.0, port_a.mac.0, flow, 0)).unwrap());
    let mut seen = Vec::new();
    assert!(eventually(|| {
        seen.extend(received(&mut b));
        seen.len() == 50
    }));
    let used: BTreeSet<_> = seen.iter().map(|(pair, ..)| *pair).collect();
    assert_eq!(used, BTreeSet::from([0, 2]));
    assert_eq!(switch.all_drops(&port_b), vec![]);
}

/// A sender of several flows, each on a pair of its own, and their receiver.
struct Stream {
    from: Guest,
    to: Guest,
    addresses: ([u8; 6], [u8; 6]),
    sent: Vec<u32>,
    received: Vec<u32>,
}

impl Stream {
    fn start(switch: &TestSwitch, receiving_pairs: u16, features: u64) -> Self {
        let (port_b, mut to) = guest_with_pairs(switch, receiving_pairs, features);
        let (port_a, mut from) = guest_with_pairs(switch, PAIRS, features);
        exchange(&mut from, port_a.mac.0, &mut to, port_b.mac.0);
        let flows = usize::from(PAIRS);
        Self { from, to, addresses: (port_b.mac.0, port_a.mac.0), sent: vec![0; flows], received: vec![0; flows] }
    }

    /// Sends a few frames of each flow and checks those that have come: each flow's in their order, none missing.
    fn step(&mut self) {
        for flow in 0..self.sent.len() {
            for _ in 0..8.min(WINDOW - (self.sent[flow] - self.received[flow])) {
                let (to, from) = self.addresses;
                let frame = datagram(to, from, u16::try_from(flow).unwrap(), self.sent[flow]);
                self.from.queue_whole_on(flow, &Header::default(), &frame, &Shape::one()).unwrap();
                self.sent[flow] += 1;
            }
            self.from.ring(2 * flow + 1).publish_and_kick().unwrap();
        }
        self.check();
    }

    fn check(&mut self) {
        for (pair, flow, number) in received(&mut self.to) {
            let expected = &mut self.received[usize::from(flow)];
            assert_eq!(number, *expected, "flow {flow}, on pair {pair}");
            *expected += 1;
        }
    }

    fn finish(mut self) {
        let deadline = Instant::now() + LIMIT;
        while self.received != self.sent {
            assert!(Instant::now() < deadline, "sent {:?}, received {:?}", self.sent, self.received);
            self.check();
        }
    }
}

#[test]
fn flows_keep_their_order_with_several_workers() {
    for (count, features) in [(1, 0), (2, 0), (2, feature::RING_PACKED | feature::IN_ORDER), (3, 0), (8, 0)] {
        let switch = TestSwitch::start_with(&workers(count));
        let mut stream = Stream::start(&switch, PAIRS, features);
        assert!(eventually(|| {
            stream.step();
            stream.sent.iter().all(|&sent| sent > 1000)
        }));
        stream.finish();
    }
}

/// Rings that each worker polls.
fn rings(switch: &TestSwitch) -> Vec<usize> {
    switch.with(|dataplane| dataplane.worker_status().into_iter().map(|worker| worker.rings).collect())
}

#[test]
fn rings_are_spread_evenly_and_move_when_others_go() {
    let switch = TestSwitch::start_with(&workers(3));
    assert_eq!(rings(&switch), [0, 0, 0]);
    let mut guests: Vec<_> = (0..3).map(|_| guest_with_pairs(&switch, PAIRS, 0)).collect();
    assert_eq!(rings(&switch), [4, 4, 4]);
    guests.extend([guest_with_pairs(&switch, 1, 0), guest_with_pairs(&switch, 1, 0)]);
    assert_eq!(rings(&switch), [5, 5, 4]);
    for left in [10, 6, 2, 1] {
        let (port, guest) = guests.remove(0);
        drop(guest);
        switch.wait_listening(&port);
        let mut spread = rings(&switch);
        spread.sort_unstable();
        assert_eq!(spread.iter().sum::<usize>(), left);
        assert!(spread[2] - spread[0] <= 1, "{spread:?}");
        // What was flooded to them before, while stations were not known yet.
        guests.iter_mut().for_each(|(_, guest)| {
            drain(guest);
        });
        if let [(port_a, a), (port_b, b), ..] = &mut guests[..] {
            exchange(a, port_a.mac.0, b, port_b.mac.0);
        }
    }
}

#[test]
fn rings_that_move_under_traffic_lose_and_reorder_nothing() {
    for _ in 0..5 {
        let switch = TestSwitch::start_with(&workers(2));
        // One ring each, in turn on the first and on the second worker.
        let crowd: Vec<_> = (0..5).map(|_| guest_with_pairs(&switch, 1, 0)).collect();
        // With one ring to the receiver, which both workers write to, what it sees is the order in which they wrote.
        let stream = Background::start(Stream::start(&switch, 1, 0), |stream, _| stream.step());
        assert!(eventually(|| stream.rounds() > 50));
        assert_eq!(rings(&switch), [5, 5]);
        let (leaving, _staying): (Vec<_>, Vec<_>) = crowd.into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
        for (_, (port, guest)) in leaving {
            drop(guest);
            switch.wait_listening(&port);
        }
        assert_eq!(rings(&switch), [3, 4], "one of the sender's rings, which are the latest, has moved");
        let then = stream.rounds();
        assert!(eventually(|| stream.rounds() > then + 50));
        stream.stop().finish();
    }
}

#[test]
fn a_worker_that_always_polls_never_sleeps() {
    let switch = TestSwitch::start_with(&WorkerSettings { polling: Polling::Always, ..workers(1) });
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (port_b, mut b) = switch.guest(|builder| builder);
    exchange(&mut a, port_a.mac.0, &mut b, port_b.mac.0);
    let status = || switch.with(|dataplane| dataplane.worker_status().remove(0));
    let rounds = status().rounds;
    assert!(eventually(|| status().rounds > rounds + 100_000), "it looks all the time");
    assert_eq!((status().sleeps, status().asleep), (0, false));
}

#[test]
fn a_worker_that_never_polls_sleeps_after_each_frame() {
    let switch = TestSwitch::start_with(&WorkerSettings { polling: Polling::Never, ..workers(1) });
    let (port_a, mut a) = switch.guest(|builder| builder);
    let (port_b, mut b) = switch.guest(|builder| builder);
    exchange(&mut a, port_a.mac.0, &mut b, port_b.mac.0);
    switch.wait_asleep();
    let status = || switch.with(|dataplane| dataplane.worker_status().remove(0));
    let before = status();
    (0..100).for_each(|_| exchange(&mut a, port_a.mac.0, &mut b, port_b.mac.0));
    switch.wait_asleep();
    let after = status();
    let (sleeps, rounds) = (after.sleeps - before.sleeps, after.rounds - before.rounds);
    // For each of 200 frames a round that moves it, one that finds nothing, and perhaps a kick that came late.
    assert!(sleeps > 20 && rounds < 1000, "{rounds} rounds, {sleeps} times asleep");
}

/// The processors on which a thread of this process may run.
fn processors(thread: &str) -> Option<String> {
    let of_task = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
        (name.trim() == thread).then_some(allowed)
    };
    std::fs::read_dir("/proc/self/task").unwrap().find_map(|task| of_task(task.unwrap()))
}

#[test]
fn workers_run_on_the_processors_that_they_are_pinned_to() {
    let _alone = alone();
    let settings = WorkerSettings { cpus: vec![0], ..workers(7) };
    let switch = TestSwitch::start_with(&settings);
    // No other test here has as many.
    settles("the last worker's processors", Some("0".to_owned()), || processors("weft-worker-6"));
    assert!(switch.with(|dataplane| dataplane.worker_status()).iter().all(|worker| worker.cpu == Some(0)));
}

#[test]
fn a_processor_that_is_not_there_is_refused() {
    let poll = Poll::new().unwrap();
    for cpu in [1023, 1024, usize::MAX] {
        let settings = WorkerSettings { cpus: vec![cpu], ..workers(1) };
        let message = Dataplane::start(poll.registry(), &settings).unwrap_err().to_string();
        assert!(message.contains(&format!("a worker cannot run on processor {cpu}")), "{message}");
    }
}

#[test]
fn a_station_that_sends_on_one_worker_is_found_by_all() {
    let switch = TestSwitch::start_with(&workers(4));
    let mut guests: Vec<_> = (0..4).map(|_| guest_with_pairs(&switch, 1, 0)).collect();
    for sender in 0..4 {
        let hello = datagram(BROADCAST, guests[sender].0.mac.0, 0, 0);
        guests[sender].1.send(&hello).unwrap();
        for receiver in (0..4).filter(|receiver| *receiver != sender) {
            expect_frame(&mut guests[receiver].1, &hello);
        }
    }
    for sender in 0..4 {
        for receiver in (0..4).filter(|receiver| *receiver != sender) {
            let [(port_a, a), (port_b, b)] = guests.get_disjoint_mut([sender, receiver]).unwrap();
            exchange(a, port_a.mac.0, b, port_b.mac.0);
        }
    }
    let strays: Vec<_> = guests.iter_mut().map(|(_, guest)| drain(guest)).collect();
    assert_eq!(strays, [0; 4], "frames that came to those for whom they were not");
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let poll = Poll::new().unwrap();
    for count in [0, WorkerSettings::MAX_COUNT + 1] {
        let refusal = Dataplane::start(poll.registry(), &workers(count)).unwrap_err().to_string();
        assert_eq!(refusal, format!("{count} workers can't be: choose 1 to 64"));
    }
    let switch = TestSwitch::start();
    for queue_pairs in [0, 17] {
        let refusal = switch.try_add(PortSettings { queue_pairs, ..switch.settings() }).unwrap_err().to_string();
        assert_eq!(refusal, format!("{queue_pairs} queue pairs of a port can't be: choose 1 to 16"));
    }
}
