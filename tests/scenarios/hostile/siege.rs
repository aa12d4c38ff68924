//! A switch with one port under attack, a witness on the same network, and a pair of guests on another network whose frames
//! must keep going to and fro the whole time. At the end a well-behaved guest uses the attacked port, and no descriptor
//! or mapping is left over.

use std::sync::MutexGuard;
use std::time::Duration;

use weft_guest::{Builder, Guest};

use crate::common::{
    BROADCAST, Background, Port, SOON, TestSwitch, alone, at_most, eventually, exchange, expect_frame, frame, guest_mappings,
    mac, numbered, open_descriptors,
};

pub(crate) const GOOD: [u8; 6] = [2, 0, 0, 0, 0xee, 1];
pub(crate) const WITNESS: [u8; 6] = [2, 0, 0, 0, 0xee, 2];
pub(crate) const TO_GUEST: usize = 0;
pub(crate) const FROM_GUEST: usize = 1;

pub(crate) struct Siege {
    /// Dropped first, while there still is a switch between them.
    others: Option<Background<(Guest, Guest)>>,
    pub(crate) switch: TestSwitch,
    pub(crate) port: Port,
    pub(crate) witness: Guest,
    rounds: u32,
    descriptors: usize,
    mappings: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Siege {
    pub(crate) fn begin() -> Self {
        let alone = alone();
        let switch = TestSwitch::start();
        let (_, witness) = switch.guest(|builder| builder);
        let elsewhere = switch.add_network();
        let ports = [switch.add_port_on(elsewhere), switch.add_port_on(elsewhere)];
        let [a, b] = ports.each_ref().map(|port| switch.connect(port, |builder| builder));
        let others = Background::start((a, b), |(a, b), nth| {
            let (there, back) = (numbered(mac(2), mac(1), nth), numbered(mac(1), mac(2), nth));
            a.send(&there).unwrap();
            expect_frame(b, &there);
            b.send(&back).unwrap();
            expect_frame(a, &back);
        });
        let port = switch.add_port();
        let mut siege =
            Self { switch, port, witness, others: Some(others), rounds: 0, descriptors: 0, mappings: 0, _alone: alone };
        siege.visit();
        // What the visitor had is given up when the worker has gone round.
        siege.while_others_exchange(10);
        (siege.descriptors, siege.mappings) = (open_descriptors(), guest_mappings());
        siege.rounds = siege.others().rounds();
        siege
    }

    /// A guest on the attacked port that connects only; nothing was said yet.
    pub(crate) fn intruder(&self) -> Guest {
        let mut guest = Guest::builder(&self.port.path).build().unwrap();
        guest.open().unwrap();
        guest
    }

    /// A guest on the attacked port that runs, without receive buffers.
    pub(crate) fn attacker(&self, shape: impl FnOnce(Builder) -> Builder) -> Guest {
        self.switch.connect(&self.port, |builder| shape(builder.receive_buffers(0)))
    }

    /// Asserts that the switch ends the connection and says why, and gives the reason.
    #[track_caller]
    pub(crate) fn expect_repelled(&mut self, guest: Guest, what: &str) -> String {
        let closed = eventually(|| {
            // Whatever the attack was waiting for: something to deliver, too large for a chain's first few buffers.
            self.witness.send(&frame(BROADCAST, WITNESS, 1000)).unwrap();
            guest.session().is_closed_within(Duration::from_millis(5)).unwrap()
        });
        assert!(closed, "{what}: the connection goes on; drops are {:?}", self.switch.all_drops(&self.port));
        let status = self.switch.wait_listening(&self.port);
        drop(guest);
        status.last_stop.unwrap_or_else(|| panic!("{what}: no reason is given"))
    }

    /// The same, and the reason must contain this.
    #[track_caller]
    pub(crate) fn expect_repelled_because(&mut self, guest: Guest, what: &str, reason: &str) -> String {
        let given = self.expect_repelled(guest, what);
        assert!(given.contains(reason), "{what}: the reason should be {reason:?}, it is {given:?}");
        given
    }

    /// A guest leaves the attacked port, and nothing of it is left for the next one.
    #[track_caller]
    pub(crate) fn leave(&mut self, guest: Guest) {
        drop(guest);
        self.switch.wait_listening(&self.port);
        self.forget_frames();
    }

    /// A well-behaved guest uses the attacked port.
    #[track_caller]
    pub(crate) fn visit(&mut self) {
        self.switch.wait_listening(&self.port);
        let mut guest = self.switch.connect(&self.port, |builder| builder);
        self.forget_frames();
        exchange(&mut guest, GOOD, &mut self.witness, WITNESS);
        guest.disconnect().unwrap();
        self.switch.wait_listening(&self.port);
    }

    /// Asserts that a guest on the attacked port still gets its frames through.
    #[track_caller]
    pub(crate) fn expect_unharmed(&mut self, guest: &mut Guest, what: &str) {
        self.forget_frames();
        let sent = frame(WITNESS, GOOD, 99);
        guest.send(&sent).unwrap();
        let received = self.witness.receive(SOON).unwrap();
        assert_eq!(received, Some(sent), "{what}: the ring does not go on; drops are {:?}", self.switch.all_drops(&self.port));
    }

    pub(crate) fn forget_frames(&mut self) {
        self.witness.flush().unwrap();
        while self.witness.receive(Duration::ZERO).unwrap().is_some() {}
    }

    pub(crate) fn others(&self) -> &Background<(Guest, Guest)> {
        self.others.as_ref().expect("the others run until the end")
    }

    /// Waits until the others have exchanged this many frames more.
    #[track_caller]
    pub(crate) fn while_others_exchange(&self, frames: u32) {
        let start = self.others().rounds();
        assert!(eventually(|| self.others().rounds() > start + frames), "the others are held up");
    }

    pub(crate) fn end(mut self) {
        self.while_others_exchange(10);
        self.visit();
        assert!(self.others().rounds() > self.rounds + 10, "the traffic of others went on");
        at_most("open descriptors", self.descriptors, open_descriptors);
        at_most("mappings of guest memory", self.mappings, guest_mappings);
        self.others.take().expect("the others run until the end").stop();
        assert!(self.switch.with(|dataplane| dataplane.is_healthy()));
    }
}
