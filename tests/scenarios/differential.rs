//! The same driver actions against weft and against a back-end that others wrote must give the same result.
//!
//! The other back-end is an echo, so one guest on it does what two guests on weft do: one sends, the other receives. What is
//! compared is everything that a driver can see: frames, headers, how many buffers, and every length in the used
//! rings.
//!
//! The other back-end knows split rings alone, so weft with the other kinds is compared with weft with split ones.

mod common;
#[path = "../guest/tests/echo/mod.rs"]
mod echo;

use common::{BROADCAST, Numbers, RINGS, SOON, TestSwitch, alone, frame, mac};
use echo::EchoServer;
use weft_guest::{Builder, Guest, Header, Order, Shape, feature};

/// What one exchange looks like to the driver.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    header: Header,
    frame: Vec<u8>,
    received_lengths: Vec<u32>,
    sent_lengths: Vec<u32>,
}

/// A sequence of frames with their shapes, and the receive buffers that wait for them.
struct Script {
    features: u64,
    buffers: Vec<(usize, Shape)>,
    frames: Vec<(Vec<u8>, Shape)>,
}

impl Script {
    fn write(seed: u64) -> Self {
        let mut numbers = Numbers::from(seed);
        let mut features = feature::INDIRECT_DESC;
        for bit in [feature::VERSION_1, feature::MRG_RXBUF, feature::EVENT_IDX] {
            features |= bit * numbers.below(2) as u64;
        }
        let mergeable = features & feature::MRG_RXBUF != 0;
        let mut shape = |most: usize| {
            let pieces: Vec<usize> = (0..numbers.below(6)).map(|_| 1 + numbers.below(most)).collect();
            let shape = Shape::pieces(&pieces);
            if numbers.below(2) == 0 { shape } else { shape.indirect() }
        };
        let shapes: Vec<Shape> = (0..80).map(|_| shape(400)).collect();
        let mut shapes = shapes.into_iter();
        let mut next_shape = move || shapes.next().expect("there are enough shapes");
        let buffers = (0..30).map(|_| (if mergeable { 200 + numbers.below(2000) } else { 12 + 3000 }, next_shape())).collect();
        let frames = (0..30).map(|_| (frame(BROADCAST, mac(1), 14 + numbers.below(2900)), next_shape())).collect();
        Self { features, buffers, frames }
    }

    fn shape(&self, builder: Builder) -> Builder {
        builder.order(Order::VirtioUser).features(self.features).ring_size(512).receive_buffers(0)
    }

    fn post(&self, receiver: &mut Guest) {
        for (len, shape) in &self.buffers {
            receiver.post(1, *len, shape).unwrap();
        }
    }
}

fn sent(guest: &mut Guest, frame: &[u8], shape: &Shape) -> Vec<u32> {
    guest.send_shaped(frame, shape).unwrap();
    guest.flush().unwrap().iter().map(|used| used.len).collect()
}

fn seen(receiver: &mut Guest, sent_lengths: Vec<u32>) -> Seen {
    let received = receiver.receive_whole(SOON).unwrap().expect("the frame comes");
    let received_lengths = received.chains.iter().map(|used| used.len).collect();
    Seen { header: received.header, frame: received.frame, received_lengths, sent_lengths }
}

#[test]
fn a_driver_sees_the_same_as_with_another_back_end() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    for seed in 0..50 {
        let script = Script::write(seed);
        let echo = EchoServer::start();
        let mut other = script.shape(Guest::builder(echo.path())).connect().unwrap();
        let mut a = switch.connect(&port_a, |builder| script.shape(builder));
        let mut b = switch.connect(&port_b, |builder| script.shape(builder));
        script.post(&mut other);
        script.post(&mut b);
        for (nth, (frame, shape)) in script.frames.iter().enumerate() {
            let theirs = sent(&mut other, frame, shape);
            let theirs = seen(&mut other, theirs);
            let ours = sent(&mut a, frame, shape);
            let ours = seen(&mut b, ours);
            assert_eq!(ours, theirs, "script {seed}, frame {nth}, sent as {shape:?}, features {:#x}", script.features);
        }
        echo.stop(other);
        drop((a, b));
        switch.wait_listening(&port_a);
        switch.wait_listening(&port_b);
    }
}

#[test]
fn a_driver_sees_the_same_with_every_kind_of_ring() {
    let _alone = alone();
    let switch = TestSwitch::start();
    let (port_a, port_b) = (switch.add_port(), switch.add_port());
    for seed in 0..100 {
        let script = Script::write(seed);
        // Modern drivers alone have packed rings, of any size.
        let kinds =
            RINGS.map(|kind| (script.features | feature::VERSION_1 | kind & (feature::RING_PACKED | feature::IN_ORDER), kind));
        let mut seen_by_kind = kinds.map(|(features, kind)| {
            let size = if kind & feature::RING_PACKED == 0 { 512 } else { 300 + u16::try_from(seed).unwrap() };
            let shape = |builder| script.shape(builder).features(features).ring_size(size);
            let (mut a, mut b) = (switch.connect(&port_a, shape), switch.connect(&port_b, shape));
            script.post(&mut b);
            let seen: Vec<Seen> = script
                .frames
                .iter()
                .map(|(frame, shape)| {
                    let sent_lengths = sent(&mut a, frame, shape);
                    seen(&mut b, sent_lengths)
                })
                .collect();
            drop((a, b));
            switch.wait_listening(&port_a);
            switch.wait_listening(&port_b);
            (features, seen)
        });
        let (_, split) = std::mem::take(&mut seen_by_kind[0]);
        for (features, seen) in &seen_by_kind[1..] {
            for (nth, (seen, split)) in seen.iter().zip(&split).enumerate() {
                assert_eq!(seen, split, "script {seed}, frame {nth}, sent as {:?}, features {features:#x}", script.frames[nth].1);
            }
        }
    }
}
