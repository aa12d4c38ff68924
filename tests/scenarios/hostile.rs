//! A guest may do what it likes; the worst that happens is that its own port stops.
//!
//! Every test is a [`Siege`]: a switch with one port under attack, a witness on the same network, and a pair of guests
//! on another network whose frames must keep going to and fro the whole time. At the end a well-behaved guest uses the
//! attacked port, and no descriptor or mapping is left over.

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{
    BROADCAST, Background, LIMIT, Numbers, Port, SOON, TestSwitch, alone, eventually, exchange, expect_frame, frame, guest_mappings, mac,
    numbered, open_descriptors, settles,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost::vhost_user::message::{
    VhostUserConfig, VhostUserConfigFlags, VhostUserInflight, VhostUserLog, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserSingleMemoryRegion, VhostUserVringState,
};
use vm_memory::ByteValued;
use weft_dataplane::{PortSettings, PortState};
use weft_guest::{
    Buffer, Builder, Descriptor, Guest, GuestAddr, GuestError, Header, Order, RegionLayout, Request, RingPlace, Session, Shape, UserAddr,
    feature,
};
use weft_switch::DropReason;

const GOOD: [u8; 6] = [2, 0, 0, 0, 0xee, 1];
const WITNESS: [u8; 6] = [2, 0, 0, 0, 0xee, 2];
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;

struct Siege {
    switch: TestSwitch,
    port: Port,
    witness: Guest,
    others: Option<Background<(Guest, Guest)>>,
    rounds: u32,
    descriptors: usize,
    mappings: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Siege {
    fn begin() -> Self {
        let alone = alone();
        let switch = TestSwitch::start();
        let (_, witness) = switch.guest(|builder| builder);
        let elsewhere = switch.add_network("elsewhere");
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
            Self { switch, port, witness,  others: Some(others), rounds: 0, descriptors: 0, mappings: 0, _alone: alone };
        siege.visit();
        // What the visitor had is given up when the worker has gone round.
        siege.while_others_exchange(10);
        (siege.descriptors, siege.mappings) = (open_descriptors(), guest_mappings());
        siege.rounds = siege.others().rounds();
        siege
    }

    /// A guest on the attacked port that connects only; nothing was said yet.
    fn intruder(&self) -> Guest {
        let mut guest = Guest::builder(&self.port.path).build().unwrap();
        guest.open().unwrap();
        guest
    }

    /// A guest on the attacked port that runs, without receive buffers.
    fn attacker(&self, shape: impl FnOnce(Builder) -> Builder) -> Guest {
        self.switch.connect(&self.port, |builder| shape(builder.receive_buffers(0)))
    }

    /// Asserts that the switch ends the connection and says why, and gives the reason.
    #[track_caller]
    fn expect_repelled(&mut self, guest: Guest, what: &str) -> String {
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

    /// A well-behaved guest uses the attacked port.
    #[track_caller]
    fn visit(&mut self) {
        self.switch.wait_listening(&self.port);
        let mut guest = self.switch.connect(&self.port, |builder| builder);
        self.forget_frames();
        exchange(&mut guest, GOOD, &mut self.witness, WITNESS);
        guest.disconnect().unwrap();
        self.switch.wait_listening(&self.port);
    }

    /// Asserts that a guest on the attacked port still gets its frames through.
    #[track_caller]
    fn expect_unharmed(&mut self, guest: &mut Guest, what: &str) {
        self.forget_frames();
        let sent = frame(WITNESS, GOOD, 99);
        guest.send(&sent).unwrap();
        let received = self.witness.receive(SOON).unwrap();
        assert_eq!(received, Some(sent), "{what}: the ring does not go on; drops are {:?}", self.switch.all_drops(&self.port));
    }

    fn forget_frames(&mut self) {
        self.witness.flush().unwrap();
        while self.witness.receive(Duration::ZERO).unwrap().is_some() {}
    }

    fn others(&self) -> &Background<(Guest, Guest)> {
        self.others.as_ref().expect("the others run until the end")
    }

    /// Waits until the others have exchanged this many frames more.
    #[track_caller]
    fn while_others_exchange(&self, frames: u32) {
        let start = self.others().rounds();
        assert!(eventually(|| self.others().rounds() > start + frames), "the others are held up");
    }

    fn end(mut self) {
        self.while_others_exchange(10);
        self.visit();
        assert!(self.others().rounds() > self.rounds + 10, "the traffic of others went on");
        settles("open descriptors", self.descriptors, open_descriptors);
        settles("mappings of guest memory", self.mappings, guest_mappings);
        self.others.take().expect("the others run until the end").stop();
        assert!(self.switch.with(|dataplane| dataplane.is_healthy()));
    }
}

type MessageAttack = (&'static str, fn(&Session, &Guest));

/// Tries each attack on a fresh connection and on a running guest; each must end the connection.
fn each_ends_the_connection(attacks: &[MessageAttack]) {
    let mut siege = Siege::begin();
    for (what, attack) in attacks {
        let intruder = siege.intruder();
        attack(intruder.session(), &intruder);
        siege.expect_repelled(intruder, what);
        let attacker = siege.attacker(|builder| builder);
        attack(attacker.session(), &attacker);
        let reason = siege.expect_repelled(attacker, what);
        println!("{what}: {reason}");
    }
    siege.end();
}

fn state(ring: u32, num: u32) -> Vec<u8> {
    VhostUserVringState::new(ring, num).as_slice().to_vec()
}

/// Sends a request without asking for an answer. The connection may already be gone after the one before.
fn say(session: &Session, request: Request, payload: &[u8], files: &[RawFd]) {
    match session.request(request, false, payload, files) {
        Ok(()) | Err(GuestError::Closed) => {}
        Err(error) => panic!("{error}"),
    }
}

fn raw(session: &Session, words: [u32; 3], payload: &[u8]) {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(payload);
    match session.send_bytes(&bytes, &[]) {
        Ok(()) | Err(GuestError::Closed) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn malformed_headers_end_the_connection() {
    each_ends_the_connection(&[
        ("version 0", |session, _| raw(session, [1, 0, 0], &[])),
        ("version 2", |session, _| raw(session, [1, 2, 0], &[])),
        ("a reply instead of a request", |session, _| raw(session, [1, 5, 8], &[0; 8])),
        ("a payload of 4 GiB", |session, _| raw(session, [2, 1, u32::MAX], &[0; 64])),
        ("a payload of 2 GiB", |session, _| raw(session, [5, 1, 1 << 31], &[0; 64])),
        ("a request that does not exist", |session, _| raw(session, [1000, 1, 0], &[])),
        ("request 0", |session, _| raw(session, [0, 1, 0], &[])),
        ("noise", |session, _| raw(session, [0xdead_beef, 0xdead_beef, 0xdead_beef], &[0xa5; 4096])),
    ]);
}

#[test]
fn payloads_of_the_wrong_length_end_the_connection() {
    each_ends_the_connection(&[
        ("SET_FEATURES, none", |session, _| say(session, Request::SET_FEATURES, &[], &[])),
        ("SET_FEATURES, 4", |session, _| say(session, Request::SET_FEATURES, &[0; 4], &[])),
        ("SET_FEATURES, 16", |session, _| say(session, Request::SET_FEATURES, &[0; 16], &[])),
        ("SET_VRING_NUM, 7", |session, _| say(session, Request::SET_VRING_NUM, &[0; 7], &[])),
        ("SET_VRING_ADDR, 8", |session, _| say(session, Request::SET_VRING_ADDR, &[0; 8], &[])),
        ("SET_VRING_KICK, 4", |session, _| say(session, Request::SET_VRING_KICK, &[0; 4], &[])),
        ("GET_VRING_BASE, none", |session, _| say(session, Request::GET_VRING_BASE, &[], &[])),
        ("SET_MEM_TABLE, none", |session, _| say(session, Request::SET_MEM_TABLE, &[], &[])),
        ("SET_MEM_TABLE, 4", |session, _| say(session, Request::SET_MEM_TABLE, &[1, 0, 0, 0], &[])),
        ("ADD_MEM_REG, 8", |session, guest| {
            say(session, Request::ADD_MEM_REG, &[0; 8], &[guest.memory().file(0).as_raw_fd()]);
        }),
        ("GET_CONFIG, none", |session, _| say(session, Request::GET_CONFIG, &[], &[])),
        ("GET_CONFIG, more announced than sent", |session, _| {
            let head = VhostUserConfig::new(0, 200, VhostUserConfigFlags::empty());
            say(session, Request::GET_CONFIG, head.as_slice(), &[]);
        }),
        ("GET_CONFIG, 4 GiB announced", |session, _| {
            let head = VhostUserConfig::new(0, u32::MAX, VhostUserConfigFlags::empty());
            say(session, Request::GET_CONFIG, head.as_slice(), &[]);
        }),
    ]);
}

#[test]
fn descriptors_where_none_belong_are_closed_and_end_the_connection() {
    fn with_files(request: Request, payload: &[u8], session: &Session, count: usize) {
        let file = tempfile::tempfile().unwrap();
        say(session, request, payload, &vec![file.as_raw_fd(); count]);
    }
    each_ends_the_connection(&[
        ("GET_FEATURES", |session, _| with_files(Request::GET_FEATURES, &[], session, 1)),
        ("SET_OWNER", |session, _| with_files(Request::SET_OWNER, &[], session, 8)),
        ("SET_FEATURES", |session, _| with_files(Request::SET_FEATURES, &[0; 8], session, 8)),
        ("SET_VRING_NUM", |session, _| with_files(Request::SET_VRING_NUM, &state(1, 256), session, 2)),
        ("SET_VRING_ENABLE", |session, _| with_files(Request::SET_VRING_ENABLE, &state(1, 1), session, 8)),
        ("SEND_RARP", |session, _| with_files(Request::SEND_RARP, &[2, 0, 0, 0, 0, 1, 0, 0], session, 1)),
        ("NET_SET_MTU", |session, _| with_files(Request::NET_SET_MTU, &1500_u64.to_ne_bytes(), session, 1)),
        ("SET_VRING_CALL with several", |session, _| with_files(Request::SET_VRING_CALL, &1_u64.to_ne_bytes(), session, 3)),
        ("SET_VRING_CALL that says it has none", |session, _| {
            with_files(Request::SET_VRING_CALL, &0x101_u64.to_ne_bytes(), session, 1);
        }),
        ("SET_VRING_KICK that says it has one", |session, _| say(session, Request::SET_VRING_KICK, &1_u64.to_ne_bytes(), &[])),
        ("GET_FEATURES with as many as a message can carry", |session, _| with_files(Request::GET_FEATURES, &[], session, 253)),
        ("SET_MEM_TABLE with more than regions", |session, guest| {
            let payload = [VhostUserMemory::new(1).as_slice(), guest.memory().message(0).as_slice()].concat();
            say(session, Request::SET_MEM_TABLE, &payload, &[guest.memory().file(0).as_raw_fd(); 8]);
        }),
        ("an unknown request with descriptors", |session, _| {
            let file = tempfile::tempfile().unwrap();
            let header: Vec<u8> = [99_u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
            session.send_bytes(&header, &[file.as_raw_fd(); 8]).unwrap();
        }),
        ("descriptors in the middle of a message", |session, _| {
            let file = tempfile::tempfile().unwrap();
            let header: Vec<u8> = [2_u32, 1, 8].iter().flat_map(|word| word.to_ne_bytes()).collect();
            session.send_bytes(&header, &[file.as_raw_fd(); 4]).unwrap();
            for at in 0..8 {
                if session.send_bytes(&[at], &[file.as_raw_fd(); 4]).is_err() {
                    return;
                }
            }
        }),
    ]);
}

/// Descriptors that stay with a message which never comes to its end are closed with the connection.
#[test]
fn descriptors_of_an_unfinished_message_are_closed() {
    let mut siege = Siege::begin();
    for _ in 0..20 {
        let intruder = siege.intruder();
        let header: Vec<u8> = [5_u32, 1, 40].iter().flat_map(|word| word.to_ne_bytes()).collect();
        intruder.session().send_bytes(&header, &[intruder.memory().file(0).as_raw_fd(); 8]).unwrap();
        siege.while_others_exchange(1);
        drop(intruder);
        siege.visit();
    }
    siege.end();
}

#[test]
fn a_memory_table_that_can_not_be_ends_the_connection() {
    fn table(session: &Session, guest: &Guest, change: impl FnOnce(&mut VhostUserMemoryRegion)) {
        let mut region = guest.memory().message(0);
        change(&mut region);
        let payload = [VhostUserMemory::new(1).as_slice(), region.as_slice()].concat();
        say(session, Request::SET_MEM_TABLE, &payload, &[guest.memory().file(0).as_raw_fd()]);
    }
    fn counted(session: &Session, guest: &Guest, count: u32, sent: usize, files: usize) {
        let mut payload = VhostUserMemory::new(count).as_slice().to_vec();
        for nth in 0..sent as u64 {
            let region = VhostUserMemoryRegion::new(nth << 20, 1 << 16, nth << 20, 0);
            payload.extend_from_slice(region.as_slice());
        }
        say(session, Request::SET_MEM_TABLE, &payload, &vec![guest.memory().file(0).as_raw_fd(); files]);
    }
    fn pair(session: &Session, guest: &Guest, first: (u64, u64, u64), second: (u64, u64, u64)) {
        let regions = [first, second].map(|(guest, user, size)| VhostUserMemoryRegion::new(guest, size, user, 0));
        let payload = [VhostUserMemory::new(2).as_slice(), regions[0].as_slice(), regions[1].as_slice()].concat();
        say(session, Request::SET_MEM_TABLE, &payload, &[guest.memory().file(0).as_raw_fd(); 2]);
    }
    fn instead(session: &Session, file: &impl AsRawFd) {
        let region = VhostUserMemoryRegion::new(0, 4096, 0x1000, 0);
        let payload = [VhostUserMemory::new(1).as_slice(), region.as_slice()].concat();
        say(session, Request::SET_MEM_TABLE, &payload, &[file.as_raw_fd()]);
    }
    each_ends_the_connection(&[
        ("size 0", |session, guest| table(session, guest, |region| region.memory_size = 0)),
        ("size 2^64 - 1", |session, guest| table(session, guest, |region| region.memory_size = u64::MAX)),
        ("size 2^63", |session, guest| table(session, guest, |region| region.memory_size = 1 << 63)),
        ("larger than its file", |session, guest| table(session, guest, |region| region.memory_size += 4096)),
        ("guest address that wraps", |session, guest| table(session, guest, |region| region.guest_phys_addr = u64::MAX - 4096)),
        ("user address that wraps", |session, guest| table(session, guest, |region| region.user_addr = u64::MAX - 4096)),
        ("offset past the end", |session, guest| table(session, guest, |region| region.mmap_offset = region.memory_size)),
        ("offset far past the end", |session, guest| table(session, guest, |region| region.mmap_offset = 1 << 50)),
        ("offset that wraps", |session, guest| table(session, guest, |region| region.mmap_offset = !4095)),
        ("offset that is not on a page", |session, guest| {
            table(session, guest, |region| {
                region.mmap_offset = 0x1001;
                region.memory_size = u64::MAX - 0x1000;
            });
        }),
        ("more regions than sent", |session, guest| counted(session, guest, 2, 1, 2)),
        ("4 Gi regions", |session, guest| counted(session, guest, u32::MAX, 1, 1)),
        ("fewer descriptors than regions", |session, guest| counted(session, guest, 3, 3, 1)),
        ("more regions than a message takes", |session, guest| counted(session, guest, 30, 30, 30)),
        ("no descriptors at all", |session, guest| counted(session, guest, 1, 1, 0)),
        ("the same region twice", |session, guest| pair(session, guest, (0, 0, 0x1_0000), (0, 0, 0x1_0000))),
        ("regions that overlap for the guest", |session, guest| {
            pair(session, guest, (0, 0x10_0000, 0x1_0000), (0xf000, 0x20_0000, 0x1_0000));
        }),
        ("a region inside another", |session, guest| pair(session, guest, (0, 0x10_0000, 0x1_0000), (0x4000, 0x20_0000, 0x1000))),
        ("a pipe", |session, _| instead(session, &std::io::pipe().unwrap().0)),
        ("a directory", |session, _| instead(session, &File::open("/").unwrap())),
        ("a device", |session, _| instead(session, &File::open("/dev/zero").unwrap())),
        ("an eventfd", |session, _| instead(session, &eventfd(0, EventfdFlags::empty()).unwrap())),
        ("a socket", |session, _| instead(session, session.stream())),
        ("an empty file", |session, _| instead(session, &tempfile::tempfile().unwrap())),
        ("a file that is only for reading", |session, _| instead(session, &File::open("/proc/self/exe").unwrap())),
    ]);
}

#[test]
fn a_region_that_can_not_be_added_or_removed_ends_the_connection() {
    fn add(session: &Session, guest: &Guest, region: VhostUserMemoryRegion) {
        let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset } = region;
        let payload = VhostUserSingleMemoryRegion::new(guest_phys_addr, memory_size, user_addr, mmap_offset);
        say(session, Request::ADD_MEM_REG, payload.as_slice(), &[guest.memory().file(0).as_raw_fd()]);
    }
    each_ends_the_connection(&[
        ("added without a descriptor", |session, _| {
            let payload = VhostUserSingleMemoryRegion::new(1 << 40, 4096, 1 << 40, 0);
            say(session, Request::ADD_MEM_REG, payload.as_slice(), &[]);
        }),
        ("added with size 0", |session, guest| add(session, guest, VhostUserMemoryRegion::new(1 << 40, 0, 1 << 40, 0))),
        ("added with size 2^64 - 1", |session, guest| add(session, guest, VhostUserMemoryRegion::new(1 << 40, u64::MAX, 1 << 40, 0))),
        ("added twice", |session, guest| {
            add(session, guest, VhostUserMemoryRegion::new(1 << 40, 4096, 1 << 40, 0));
            add(session, guest, VhostUserMemoryRegion::new(1 << 40, 4096, 1 << 40, 0));
        }),
        ("more regions than there are slots", |session, guest| {
            for nth in 0..1000 {
                add(session, guest, VhostUserMemoryRegion::new((1 << 40) + (nth << 20), 4096, (1 << 40) + (nth << 20), 0));
            }
        }),
        ("a region removed that is not there", |session, _| {
            let payload = VhostUserSingleMemoryRegion::new(1 << 41, 4096, 1 << 41, 0);
            say(session, Request::REM_MEM_REG, payload.as_slice(), &[]);
        }),
    ]);
}

#[test]
fn ring_numbers_and_sizes_are_not_cut_to_fewer_bits() {
    each_ends_the_connection(&[
        ("size of ring 2", |session, _| say(session, Request::SET_VRING_NUM, &state(2, 256), &[])),
        ("size of ring 256", |session, _| say(session, Request::SET_VRING_NUM, &state(256, 256), &[])),
        ("size of ring 65536", |session, _| say(session, Request::SET_VRING_NUM, &state(0x1_0000, 256), &[])),
        ("size of ring 2^32 - 1", |session, _| say(session, Request::SET_VRING_NUM, &state(u32::MAX, 256), &[])),
        ("base of ring 65537", |session, _| say(session, Request::SET_VRING_BASE, &state(0x1_0001, 0), &[])),
        ("base of ring 257", |session, _| say(session, Request::GET_VRING_BASE, &state(257, 0), &[])),
        ("enabling ring 65536", |session, _| say(session, Request::SET_VRING_ENABLE, &state(0x1_0000, 1), &[])),
        ("kick for ring 255", |session, guest| {
            let kick = eventfd(0, EventfdFlags::empty()).unwrap();
            say(session, Request::SET_VRING_KICK, &255_u64.to_ne_bytes(), &[kick.as_raw_fd()]);
            let _ = guest;
        }),
        ("call for ring 4 Gi", |session, _| {
            let call = eventfd(0, EventfdFlags::empty()).unwrap();
            say(session, Request::SET_VRING_CALL, &(1_u64 << 32 | 0xfe).to_ne_bytes(), &[call.as_raw_fd()]);
        }),
        ("size 0", |session, _| say(session, Request::SET_VRING_NUM, &state(1, 0), &[])),
        ("size 3", |session, _| say(session, Request::SET_VRING_NUM, &state(1, 3), &[])),
        ("size 65536", |session, _| say(session, Request::SET_VRING_NUM, &state(1, 0x1_0000), &[])),
        ("size 65536 + 256", |session, _| say(session, Request::SET_VRING_NUM, &state(1, 0x1_0100), &[])),
        ("base 65536", |session, _| say(session, Request::SET_VRING_BASE, &state(1, 0x1_0000), &[])),
    ]);
}

#[test]
fn what_was_not_offered_or_makes_no_sense_ends_the_connection() {
    each_ends_the_connection(&[
        ("features that were not offered", |session, _| say(session, Request::SET_FEATURES, &u64::MAX.to_ne_bytes(), &[])),
        ("segmentation that was not offered", |session, _| {
            say(session, Request::SET_FEATURES, &(feature::VERSION_1 | feature::HOST_TSO).to_ne_bytes(), &[]);
        }),
        ("an announcement of a group address", |session, _| say(session, Request::SEND_RARP, &[1, 0, 0, 0, 0, 1, 0, 0], &[])),
        ("an announcement of nobody", |session, _| say(session, Request::SEND_RARP, &[0; 8], &[])),
        ("an MTU of 0", |session, _| say(session, Request::NET_SET_MTU, &0_u64.to_ne_bytes(), &[])),
        ("an MTU of 2^16 + 1500", |session, _| say(session, Request::NET_SET_MTU, &(0x1_0000_u64 + 1500).to_ne_bytes(), &[])),
        ("a kick before there is memory", |session, guest| {
            session.reset_device().ok();
            say(session, Request::SET_VRING_NUM, &state(1, 64), &[]);
            let place = RingPlace { descriptors: UserAddr(0x1000), avail: UserAddr(0x2000), used: UserAddr(0x3000) };
            session.set_vring_addr(1, place).ok();
            let kick = eventfd(0, EventfdFlags::empty()).unwrap();
            say(session, Request::SET_VRING_KICK, &1_u64.to_ne_bytes(), &[kick.as_raw_fd()]);
            let _ = guest;
        }),
    ]);
}

/// Log, inflight, postcopy and the rest were not offered.
#[test]
fn requests_that_were_not_negotiated_are_refused_without_harm() {
    let inflight = |queues| VhostUserInflight::new(4096, 0, queues, 1024).as_slice().to_vec();
    let requests = [
        (Request::SET_LOG_BASE, VhostUserLog::new(u64::MAX - 4095, 4096).as_slice().to_vec(), 1),
        (Request::SET_LOG_BASE, VhostUserLog::new(4096, 0).as_slice().to_vec(), 1),
        (Request::SET_LOG_FD, vec![], 1),
        (Request::GET_INFLIGHT_FD, inflight(1), 0),
        (Request::GET_INFLIGHT_FD, inflight(u16::MAX), 0),
        (Request::SET_INFLIGHT_FD, inflight(u16::MAX), 1),
        (Request::SET_BACKEND_REQ_FD, vec![], 1),
        (Request::IOTLB_MSG, vec![0; 32], 0),
        (Request::SET_VRING_ENDIAN, state(1, 1), 0),
        (Request::SET_CONFIG, vec![0; 12 + 6], 0),
        (Request::POSTCOPY_ADVISE, vec![], 0),
        (Request::POSTCOPY_LISTEN, vec![], 0),
        (Request::VRING_KICK, state(1, 0), 0),
        (Request::GET_SHARED_OBJECT, vec![0; 16], 0),
        (Request::SET_DEVICE_STATE_FD, vec![0; 8], 1),
        (Request::CREATE_CRYPTO_SESSION, vec![0; 64], 0),
    ];
    let mut siege = Siege::begin();
    for (request, payload, files) in &requests {
        let mut guest = siege.attacker(|builder| builder);
        let files = vec![guest.memory().file(0).as_raw_fd(); *files];
        for _ in 0..50 {
            guest.session().request(*request, true, payload, &files).unwrap();
            match guest.session().acknowledgement(*request) {
                Err(GuestError::Refused { .. }) => {}
                outcome => panic!("{request:?}: {outcome:?}"),
            }
        }
        siege.expect_unharmed(&mut guest, &format!("{request:?}"));
        // Who does not ask for an answer would wait for one for ever: the connection ends.
        guest.session().request(*request, false, payload, &files).unwrap();
        siege.expect_repelled(guest, &format!("{request:?} without NEED_REPLY"));
    }
    siege.end();
}

#[test]
fn ring_addresses_that_can_not_be_end_the_connection() {
    type Change = fn(RingPlace, &Guest) -> RingPlace;
    let changes: [(&str, Change); 11] = [
        ("unaligned descriptors", |place, _| RingPlace { descriptors: place.descriptors + 8, ..place }),
        ("unaligned available ring", |place, _| RingPlace { avail: place.avail + 1, ..place }),
        ("unaligned used ring", |place, _| RingPlace { used: place.used + 2, ..place }),
        ("descriptors outside memory", |place, _| RingPlace { descriptors: UserAddr(0x10), ..place }),
        ("available ring outside memory", |place, _| RingPlace { avail: UserAddr(0x10), ..place }),
        ("used ring outside memory", |place, _| RingPlace { used: UserAddr(!0xfff), ..place }),
        ("a guest address instead of a user address", |place, _| RingPlace {
            descriptors: UserAddr(place.descriptors.0 - 0x7000_0000_0000),
            ..place
        }),
        ("descriptors that end outside memory", |place, guest| RingPlace { descriptors: end_of_memory(guest, 16), ..place }),
        ("available ring that ends outside memory", |place, guest| RingPlace { avail: end_of_memory(guest, 8), ..place }),
        ("used ring that ends outside memory", |place, guest| RingPlace { used: end_of_memory(guest, 8), ..place }),
        ("used ring whose event index is outside memory", |place, guest| RingPlace { used: end_of_memory(guest, 4 + 8 * 256), ..place }),
    ];
    let mut siege = Siege::begin();
    for (what, change) in changes {
        for ring in [TO_GUEST, FROM_GUEST] {
            let mut guest = siege.attacker(|builder| builder);
            guest.stop().unwrap();
            let place = change(guest.ring(ring).place(), &guest);
            let index = u16::try_from(ring).unwrap();
            // Either the address or the start of the ring is refused.
            let refused = guest.session().set_vring_addr(index, place).and_then(|()| {
                let kick = guest.ring(ring).kick_fd().try_clone().unwrap();
                guest.session().set_vring_descriptor(Request::SET_VRING_KICK, index, Some(&kick))
            });
            assert!(matches!(refused, Ok(()) | Err(GuestError::Closed)), "{what}: {refused:?}");
            let reason = siege.expect_repelled(guest, what);
            println!("{what}: {reason}");
        }
    }
    siege.end();
}

fn end_of_memory(guest: &Guest, before: u64) -> UserAddr {
    let layout = guest.memory().layout(0);
    UserAddr(layout.user.0 + layout.size - before)
}

/// A guest that lays its rings over each other, or over itself, hurts only itself.
#[test]
fn rings_inside_other_rings_harm_nobody() {
    let mut siege = Siege::begin();
    let mut numbers = Numbers::from(2);
    for round in 0..40 {
        let mut guest = siege.attacker(|builder| builder);
        guest.stop().unwrap();
        let places = [guest.ring(TO_GUEST).place(), guest.ring(FROM_GUEST).place()];
        let bases = [places[0].descriptors, places[0].avail, places[0].used, places[1].descriptors, places[1].avail, places[1].used];
        for index in 0..2 {
            let mut pick = || bases[numbers.below(6)] + 16 * (numbers.below(64) as u64);
            let place = RingPlace { descriptors: pick(), avail: pick(), used: pick() };
            guest.session().set_vring_addr(index, place).ok();
            let kick = guest.ring(usize::from(index)).kick_fd().try_clone().unwrap();
            guest.session().set_vring_descriptor(Request::SET_VRING_KICK, index, Some(&kick)).ok();
        }
        let noise: Vec<u8> = (0..4096).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
        let base = guest.ring(round % 2).descriptor_address(0);
        guest.memory().write(base, &noise);
        guest.from_guest().kick().unwrap();
        for _ in 0..20 {
            siege.witness.send(&frame(BROADCAST, WITNESS, 200)).unwrap();
        }
        siege.while_others_exchange(2);
        drop(guest);
        siege.switch.wait_listening(&siege.port);
        siege.forget_frames();
    }
    siege.end();
}

#[test]
fn descriptors_that_are_no_eventfds_end_the_connection() {
    fn set(session: &Session, request: Request, file: &impl AsRawFd) {
        say(session, request, &1_u64.to_ne_bytes(), &[file.as_raw_fd()]);
    }
    each_ends_the_connection(&[
        ("a pipe to kick", |session, _| set(session, Request::SET_VRING_KICK, &std::io::pipe().unwrap().0)),
        ("a regular file to kick", |session, _| set(session, Request::SET_VRING_KICK, &tempfile::tempfile().unwrap())),
        ("a device to kick", |session, _| set(session, Request::SET_VRING_KICK, &File::open("/dev/zero").unwrap())),
        ("the socket itself to kick", |session, _| set(session, Request::SET_VRING_KICK, session.stream())),
        ("a pipe to call", |session, _| set(session, Request::SET_VRING_CALL, &std::io::pipe().unwrap().1)),
        ("a regular file to call", |session, _| set(session, Request::SET_VRING_CALL, &tempfile::tempfile().unwrap())),
        ("a device to call", |session, _| set(session, Request::SET_VRING_CALL, &File::create("/dev/full").unwrap())),
        ("guest memory to call", |session, guest| set(session, Request::SET_VRING_CALL, guest.memory().file(0))),
    ]);
}

/// An eventfd whose counter is as full as it gets. Writing one more to it blocks, or fails.
fn full_counter() -> File {
    let counter = File::from(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    (&counter).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    counter
}

#[test]
fn a_full_call_counter_holds_nobody_up() {
    let mut siege = Siege::begin();
    let mut guest = siege.switch.connect(&siege.port, Builder::acknowledge_everything);
    let call = full_counter();
    for ring in 0..2 {
        guest.session().set_vring_descriptor(Request::SET_VRING_CALL, ring, Some(&call)).unwrap();
    }
    for _ in 0..10 {
        guest.to_guest().arm_interrupt();
        guest.from_guest().arm_interrupt();
        siege.witness.send(&frame(BROADCAST, WITNESS, 60)).unwrap();
        siege.expect_unharmed(&mut guest, "a full call counter");
        assert!(guest.to_guest().poll_used(SOON));
        guest.receive(SOON).unwrap();
        siege.while_others_exchange(2);
    }
    drop(guest);
    siege.end();
}

/// The flag that makes a write block belongs to the open file, which both sides share: it can be cleared later. Who does
/// that holds the worker up for a moment, and is not let in again.
#[test]
fn a_call_descriptor_that_blocks_stops_the_port_for_good() {
    let mut siege = Siege::begin();
    let mut guest = siege.switch.connect(&siege.port, Builder::acknowledge_everything);
    let call = full_counter();
    for ring in 0..2 {
        guest.session().set_vring_descriptor(Request::SET_VRING_CALL, ring, Some(&call)).unwrap();
    }
    let flags = fcntl_getfl(&call).unwrap();
    fcntl_setfl(&call, flags & !OFlags::NONBLOCK).unwrap();
    guest.to_guest().arm_interrupt();
    guest.from_guest().arm_interrupt();
    siege.witness.send(&frame(BROADCAST, WITNESS, 60)).unwrap();
    guest.send(&frame(BROADCAST, GOOD, 60)).unwrap();
    siege.while_others_exchange(20);
    assert!(guest.session().is_closed_within(LIMIT).unwrap());
    drop((guest, call));
    let status = siege.switch.wait_status(&siege.port, "the port stopping", |status| status.state == PortState::Stopped);
    assert!(status.last_stop.is_some());
    siege.switch.remove(&siege.port);
    siege.port = siege.switch.add(PortSettings { socket: siege.port.path.clone(), ..siege.switch.settings() });
    siege.end();
}

#[test]
fn endless_kicks_hold_nobody_up() {
    let siege = Siege::begin();
    let mut guest = siege.attacker(|builder| builder);
    let semaphore = File::from(eventfd(0, EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK).unwrap());
    (&semaphore).write_all(&(1_u64 << 40).to_ne_bytes()).unwrap();
    guest.stop().unwrap();
    guest.start_ring(TO_GUEST).unwrap();
    guest.start_ring(FROM_GUEST).unwrap();
    guest.session().set_vring_descriptor(Request::SET_VRING_KICK, 1, Some(&semaphore)).unwrap();
    for _ in 0..20 {
        for _ in 0..1000 {
            (&semaphore).write_all(&1_u64.to_ne_bytes()).unwrap();
        }
        siege.while_others_exchange(1);
    }
    drop(guest);
    siege.end();
}

#[test]
fn a_flood_of_requests_holds_nobody_up() {
    let mut siege = Siege::begin();
    let mut guest = siege.attacker(|builder| builder);
    guest.stop().unwrap();
    for nth in 0..20_000_u32 {
        guest.session().request(Request::SET_VRING_NUM, false, &state(nth % 2, 256), &[]).unwrap();
    }
    siege.while_others_exchange(5);
    guest.session().features().unwrap();
    guest.start_ring(TO_GUEST).unwrap();
    guest.start_ring(FROM_GUEST).unwrap();
    siege.expect_unharmed(&mut guest, "20,000 requests");
    siege.while_others_exchange(10);
    let descriptors = open_descriptors();
    for nth in 0..500_u16 {
        let call = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        guest.session().set_vring_descriptor(Request::SET_VRING_CALL, nth % 2, Some(&call)).unwrap();
    }
    guest.session().features().unwrap();
    settles("open descriptors", descriptors, open_descriptors);
    drop(guest);
    siege.end();
}

#[test]
fn a_guest_that_never_reads_replies_is_let_go() {
    let mut siege = Siege::begin();
    let guest = siege.intruder();
    let flood: Vec<u8> = [1_u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>().repeat(1000);
    let mut let_go = false;
    for _ in 0..1000 {
        match guest.session().send_bytes(&flood, &[]) {
            Ok(()) => {}
            Err(GuestError::Closed) => {
                let_go = true;
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(let_go, "a million replies were kept for a guest that does not read");
    siege.expect_repelled(guest, "replies not read");
    siege.end();
}

#[test]
fn half_a_message_and_silence_holds_nobody_up() {
    let siege = Siege::begin();
    let whole: Vec<u8> = [2_u32, 1, 8, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    for sent in 1..whole.len() {
        let guest = siege.intruder();
        guest.session().send_bytes(&whole[..sent], &[]).unwrap();
        siege.while_others_exchange(1);
        drop(guest);
        siege.switch.wait_listening(&siege.port);
    }
    // A message that comes byte by byte is a message.
    let guest = siege.intruder();
    for byte in [1_u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()) {
        guest.session().send_bytes(&[byte], &[]).unwrap();
    }
    assert_eq!(guest.session().reply(Request::GET_FEATURES).unwrap().len(), 8);
    drop(guest);
    siege.end();
}

#[test]
fn connecting_in_a_loop_holds_nobody_up() {
    let mut siege = Siege::begin();
    let guest = Guest::builder(&siege.port.path).build().unwrap();
    for round in 0..1000 {
        if let Ok(session) = Session::connect(&siege.port.path, LIMIT)
            && round % 2 == 0
        {
            session.request(Request::GET_FEATURES, false, &[], &[]).ok();
        }
    }
    siege.while_others_exchange(5);
    drop(guest);
    siege.visit();
    siege.end();
}

#[test]
fn a_second_front_end_does_not_disturb_the_first() {
    let mut siege = Siege::begin();
    let mut first = siege.switch.connect(&siege.port, |builder| builder);
    for _ in 0..100 {
        if let Ok(second) = Session::connect(&siege.port.path, LIMIT) {
            second.request(Request::SET_MEM_TABLE, false, &[0; 8], &[]).ok();
            assert!(second.is_closed_within(LIMIT).unwrap());
        }
    }
    siege.expect_unharmed(&mut first, "a hundred second front-ends");
    drop(first);
    siege.end();
}

type RingAttack = (&'static str, fn(&mut Guest, usize));

/// Puts descriptors into the table and offers the first of them.
fn offer(guest: &mut Guest, ring: usize, descriptors: &[Descriptor]) {
    for (at, descriptor) in descriptors.iter().enumerate() {
        guest.ring(ring).write_descriptor(u16::try_from(at).unwrap(), *descriptor);
    }
    offer_head(guest, ring, 0);
}

fn offer_head(guest: &mut Guest, ring: usize, head: u16) {
    let ring = guest.ring(ring);
    let index = ring.avail_index();
    ring.write_avail_entry(index, head);
    ring.write_avail_index(index.wrapping_add(1));
    ring.kick().unwrap();
}

/// A descriptor of this ring's direction whose buffer lies in the slot of the entry.
fn good(guest: &Guest, ring: usize, len: u32, flags: u16, next: u16) -> Descriptor {
    let direction = if ring == TO_GUEST { Descriptor::WRITE } else { 0 };
    Descriptor { address: guest.slot(ring, 0).0, len, flags: direction | flags, next }
}

/// Puts descriptors into the indirect table of entry 0 and offers it with the length and flags given.
fn offer_indirect(guest: &mut Guest, ring: usize, table: &[Descriptor], len: u32, flags: u16) {
    let address = guest.ring(ring).indirect_table(0);
    for (at, descriptor) in table.iter().enumerate() {
        guest.memory().write(address + 16 * at as u64, &descriptor.bytes());
    }
    offer(guest, ring, &[Descriptor { address: address.0, len, flags: Descriptor::INDIRECT | flags, next: 1 }]);
}

const NEXT: u16 = Descriptor::NEXT;

const STRUCTURAL: &[RingAttack] = &[
    ("available index one too far", |guest, ring| {
        let size = guest.ring(ring).size();
        guest.ring(ring).write_avail_index(size + 1);
        guest.ring(ring).kick().unwrap();
    }),
    ("available index half way round", |guest, ring| {
        guest.ring(ring).write_avail_index(0x8000);
        guest.ring(ring).kick().unwrap();
    }),
    ("available index that goes back", |guest, ring| {
        guest.ring(ring).write_avail_index(u16::MAX);
        guest.ring(ring).kick().unwrap();
    }),
    ("head beyond the ring", |guest, ring| offer_head(guest, ring, 256)),
    ("head far beyond the ring", |guest, ring| offer_head(guest, ring, u16::MAX)),
    ("next beyond the table", |guest, ring| offer(guest, ring, &[good(guest, ring, 40, NEXT, 256)])),
    ("next far beyond the table", |guest, ring| offer(guest, ring, &[good(guest, ring, 40, NEXT, u16::MAX)])),
    ("a descriptor that is its own next", |guest, ring| offer(guest, ring, &[good(guest, ring, 1, NEXT, 0)])),
    ("a loop of two", |guest, ring| {
        offer(guest, ring, &[good(guest, ring, 1, NEXT, 1), good(guest, ring, 1, NEXT, 0)]);
    }),
    ("a loop of the whole ring", |guest, ring| {
        let descriptors: Vec<_> = (0..256).map(|at| good(guest, ring, 1, NEXT, (at + 1) % 256)).collect();
        offer(guest, ring, &descriptors);
    }),
    ("an indirect table inside an indirect table", |guest, ring| {
        let inner = Descriptor { flags: Descriptor::INDIRECT, ..good(guest, ring, 16, 0, 0) };
        offer_indirect(guest, ring, &[inner], 16, 0);
    }),
    ("an indirect table that goes on", |guest, ring| {
        offer_indirect(guest, ring, &[good(guest, ring, 100, 0, 0)], 16, NEXT);
    }),
    ("an indirect table of 0 bytes", |guest, ring| offer_indirect(guest, ring, &[], 0, 0)),
    ("an indirect table of 15 bytes", |guest, ring| offer_indirect(guest, ring, &[good(guest, ring, 100, 0, 0)], 15, 0)),
    ("an indirect table of 17 bytes", |guest, ring| offer_indirect(guest, ring, &[good(guest, ring, 100, 0, 0)], 17, 0)),
    ("an indirect table of 4 GiB", |guest, ring| offer_indirect(guest, ring, &[good(guest, ring, 100, 0, 0)], !15, 0)),
    ("an indirect table outside memory", |guest, ring| {
        offer(guest, ring, &[Descriptor { address: 1 << 50, len: 16, flags: Descriptor::INDIRECT, next: 0 }]);
    }),
    ("an indirect table at the end of the address space", |guest, ring| {
        offer(guest, ring, &[Descriptor { address: u64::MAX - 15, len: 32, flags: Descriptor::INDIRECT, next: 0 }]);
    }),
    ("an indirect table that ends outside memory", |guest, ring| {
        let layout = guest.memory().layout(0);
        let address = layout.guest.0 + layout.size - 16;
        guest.memory().write(GuestAddr(address), &good(guest, ring, 20, NEXT, 1).bytes());
        offer(guest, ring, &[Descriptor { address, len: 32, flags: Descriptor::INDIRECT, next: 0 }]);
    }),
    ("a loop in an indirect table", |guest, ring| {
        offer_indirect(guest, ring, &[good(guest, ring, 1, NEXT, 1), good(guest, ring, 1, NEXT, 0)], 32, 0);
    }),
    ("next beyond an indirect table", |guest, ring| {
        offer_indirect(guest, ring, &[good(guest, ring, 20, NEXT, 2), good(guest, ring, 20, 0, 0)], 32, 0);
    }),
];

#[test]
fn a_broken_ring_ends_the_connection() {
    let mut siege = Siege::begin();
    for (what, attack) in STRUCTURAL {
        for ring in [FROM_GUEST, TO_GUEST] {
            let mut guest = siege.attacker(|builder| builder);
            attack(&mut guest, ring);
            let reason = siege.expect_repelled(guest, &format!("{what}, ring {ring}"));
            println!("{what}: {reason}");
            siege.forget_frames();
        }
    }
    siege.end();
}

#[test]
fn an_indirect_table_that_was_not_agreed_on_ends_the_connection() {
    let mut siege = Siege::begin();
    for ring in [FROM_GUEST, TO_GUEST] {
        let mut guest = siege.attacker(|builder| builder.features(feature::VERSION_1 | feature::MRG_RXBUF));
        let table = [good(&guest, ring, 100, 0, 0)];
        offer_indirect(&mut guest, ring, &table, 16, 0);
        siege.expect_repelled(guest, "an indirect table");
    }
    siege.end();
}

/// The chain is given back unused, the frame is counted, and the ring goes on.
#[test]
fn a_bad_frame_is_dropped_and_the_ring_goes_on() {
    type Chain = fn(&Guest) -> Vec<Buffer>;
    fn slot(guest: &Guest) -> GuestAddr {
        guest.slot(FROM_GUEST, 200)
    }
    fn end(guest: &Guest, before: u64) -> GuestAddr {
        let layout = guest.memory().layout(0);
        layout.guest + (layout.size - before)
    }
    fn readable(address: GuestAddr, len: u32) -> Buffer {
        Buffer::readable(address, len)
    }
    use DropReason::{BadAddress, BadDescriptor, TooLong, TooShort};
    let chains: [(&str, DropReason, Chain); 22] = [
        ("address 0", BadAddress, |_| vec![readable(GuestAddr(0), 100)]),
        ("an address outside memory", BadAddress, |_| vec![readable(GuestAddr(1 << 50), 100)]),
        ("the last address", BadAddress, |_| vec![readable(GuestAddr(u64::MAX), 100)]),
        ("a range that wraps", BadAddress, |_| vec![readable(GuestAddr(u64::MAX - 50), 100)]),
        ("a range that ends outside memory", BadAddress, |guest| vec![readable(end(guest, 99), 100)]),
        ("a range that begins before memory", BadAddress, |guest| {
            vec![readable(GuestAddr(guest.memory().layout(0).guest.0 - 1), 100)]
        }),
        ("a second buffer outside memory", BadAddress, |guest| vec![readable(slot(guest), 50), readable(GuestAddr(1 << 50), 100)]),
        ("4 GiB - 1 bytes", TooLong, |guest| vec![readable(slot(guest), u32::MAX)]),
        ("the user address instead of the guest's", BadAddress, |guest| {
            vec![readable(GuestAddr(guest.memory().user_address(slot(guest)).0), 100)]
        }),
        ("no bytes", BadDescriptor, |guest| vec![readable(slot(guest), 0)]),
        ("no bytes at first", BadDescriptor, |guest| vec![readable(slot(guest), 0), readable(slot(guest), 100)]),
        ("no bytes in the middle", BadDescriptor, |guest| {
            vec![readable(slot(guest), 12), readable(slot(guest), 0), readable(slot(guest), 100)]
        }),
        ("no bytes at last", BadDescriptor, |guest| vec![readable(slot(guest), 100), readable(slot(guest), 0)]),
        ("a buffer to write", BadDescriptor, |guest| vec![Buffer::writable(slot(guest), 100)]),
        ("a buffer to write at last", BadDescriptor, |guest| vec![readable(slot(guest), 100), Buffer::writable(slot(guest), 100)]),
        ("a buffer to write at first", BadDescriptor, |guest| vec![Buffer::writable(slot(guest), 100), readable(slot(guest), 100)]),
        ("one byte", TooShort, |guest| vec![readable(slot(guest), 1)]),
        ("part of a header", TooShort, |guest| vec![readable(slot(guest), 11)]),
        ("nothing but a header", TooShort, |guest| vec![readable(slot(guest), 12)]),
        ("a header in twelve pieces and nothing else", TooShort, |guest| vec![readable(slot(guest), 1); 12]),
        ("a header and part of the addresses", TooShort, |guest| vec![readable(slot(guest), 12), readable(slot(guest), 13)]),
        ("200 times 64 KiB", TooLong, |guest| vec![readable(slot(guest), 0x1_0000); 200]),
    ];
    let mut siege = Siege::begin();
    for order in [Order::Qemu, Order::VirtioUser] {
        let mut guest = siege.attacker(|builder| builder.order(order));
        for (what, reason, chain) in &chains {
            for indirect in [false, true] {
                let before = siege.switch.drops(&siege.port, *reason);
                let buffers = chain(&guest);
                let head = guest.send_buffers(&buffers, indirect).unwrap();
                let used = guest.flush().unwrap();
                assert_eq!(used, [weft_guest::Used { head, len: 0 }], "{what}");
                siege.switch.expect_drops(&siege.port, *reason, before + 1);
                siege.expect_unharmed(&mut guest, what);
                guest.flush().unwrap();
            }
        }
        assert!(!guest.session().is_closed_within(Duration::ZERO).unwrap());
        drop(guest);
        siege.switch.wait_listening(&siege.port);
    }
    siege.end();
}

/// Unusable receive buffers cost the guest that offered them the frame, and nobody else anything.
#[test]
fn a_bad_receive_buffer_is_given_back_and_the_ring_goes_on() {
    use DropReason::{BadAddress, BadDescriptor};
    type Chain = fn(&Guest) -> Vec<Buffer>;
    fn slot(guest: &Guest) -> GuestAddr {
        guest.slot(TO_GUEST, 200)
    }
    let chains: [(&str, DropReason, Chain); 8] = [
        ("address 0", BadAddress, |_| vec![Buffer::writable(GuestAddr(0), 2000)]),
        ("an address outside memory", BadAddress, |_| vec![Buffer::writable(GuestAddr(1 << 50), 2000)]),
        ("a range that wraps", BadAddress, |_| vec![Buffer::writable(GuestAddr(u64::MAX - 50), 2000)]),
        ("a range that ends outside memory", BadAddress, |guest| {
            let layout = guest.memory().layout(0);
            vec![Buffer::writable(layout.guest + (layout.size - 1999), 2000)]
        }),
        ("a second buffer outside memory", BadAddress, |guest| {
            vec![Buffer::writable(slot(guest), 20), Buffer::writable(GuestAddr(1 << 50), 2000)]
        }),
        ("no bytes", BadDescriptor, |guest| vec![Buffer::writable(slot(guest), 0)]),
        ("a buffer to read", BadDescriptor, |guest| vec![Buffer::readable(slot(guest), 2000)]),
        ("a buffer to read at first", BadDescriptor, |guest| {
            vec![Buffer::readable(slot(guest), 20), Buffer::writable(slot(guest), 2000)]
        }),
    ];
    let mut siege = Siege::begin();
    for features in [feature::DEFAULT, feature::VERSION_1 | feature::INDIRECT_DESC] {
        let mut guest = siege.attacker(|builder| builder.features(features));
        guest.set_repost(false);
        for (what, reason, chain) in &chains {
            for indirect in [false, true] {
                let before = siege.switch.drops(&siege.port, *reason);
                let buffers = chain(&guest);
                let head = guest.to_guest().add(&buffers, indirect).unwrap();
                guest.to_guest().publish_and_kick().unwrap();
                siege.witness.send(&frame(BROADCAST, WITNESS, 60)).unwrap();
                siege.switch.expect_drops(&siege.port, *reason, before + 1);
                assert!(guest.to_guest().wait_used(SOON).unwrap(), "{what}: the chain does not come back");
                assert_eq!(guest.to_guest().take_used().unwrap(), Some(weft_guest::Used { head, len: 0 }), "{what}");
                guest.post(1, 2000, &Shape::one()).unwrap();
                let sent = frame(BROADCAST, WITNESS, 61);
                siege.witness.send(&sent).unwrap();
                assert_eq!(guest.receive(SOON).unwrap(), Some(sent), "{what}: the ring does not go on");
            }
        }
        drop(guest);
        siege.switch.wait_listening(&siege.port);
        siege.forget_frames();
    }
    siege.end();
}

#[test]
fn receive_buffers_smaller_than_the_header_harm_nobody() {
    let mut siege = Siege::begin();
    for len in [1, 9, 10, 11, 12, 13] {
        for features in [feature::DEFAULT, feature::VERSION_1] {
            let mut guest = siege.attacker(|builder| builder.features(features));
            for nth in 0..100 {
                let slot = guest.slot(TO_GUEST, nth);
                guest.to_guest().add(&[Buffer::writable(slot, len)], false).unwrap();
            }
            guest.to_guest().publish_and_kick().unwrap();
            for _ in 0..20 {
                siege.witness.send(&frame(BROADCAST, WITNESS, 60)).unwrap();
            }
            siege.while_others_exchange(2);
            drop(guest);
            siege.switch.wait_listening(&siege.port);
            siege.forget_frames();
        }
    }
    siege.end();
}

#[test]
fn offloads_that_were_not_agreed_on_are_dropped() {
    let headers = [
        ("a checksum to complete", Header { flags: Header::NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Header::default() }),
        ("csum_start beyond the frame", Header { flags: Header::NEEDS_CSUM, csum_start: u16::MAX, csum_offset: 16, ..Header::default() }),
        ("csum_offset beyond the frame", Header { flags: Header::NEEDS_CSUM, csum_start: 34, csum_offset: u16::MAX, ..Header::default() }),
        ("a segment to cut", Header { gso_type: Header::GSO_TCPV4, gso_size: 1448, hdr_len: 54, ..Header::default() }),
        ("gso_size 0", Header { gso_type: Header::GSO_TCPV4, hdr_len: 54, ..Header::default() }),
        ("hdr_len beyond the frame", Header { gso_type: Header::GSO_TCPV4, gso_size: 1448, hdr_len: u16::MAX, ..Header::default() }),
        ("a gso_type that does not exist", Header { gso_type: 0x7f, gso_size: 1448, hdr_len: 54, ..Header::default() }),
        ("ECN alone", Header { gso_type: 0x80, ..Header::default() }),
    ];
    let mut siege = Siege::begin();
    for features in [feature::DEFAULT, 0] {
        let mut guest = siege.attacker(|builder| builder.features(features));
        for (what, header) in &headers {
            for shape in [Shape::one(), Shape::pieces(&[1; 30])] {
                let before = siege.switch.drops(&siege.port, DropReason::UnagreedOffload);
                guest.send_with_header(header, &frame(WITNESS, GOOD, 1000), &shape).unwrap();
                guest.flush().unwrap();
                siege.switch.expect_drops(&siege.port, DropReason::UnagreedOffload, before + 1);
                siege.expect_unharmed(&mut guest, what);
            }
        }
        drop(guest);
        siege.switch.wait_listening(&siege.port);
    }
    siege.end();
}

/// The longest chains that there can be: a ring of 32,768 descriptors, all of 64 KiB, and an indirect table of a
/// million.
#[test]
fn chains_of_many_times_64_kib_hold_nobody_up() {
    let mut siege = Siege::begin();
    let big = RegionLayout::at(0x100_0000_0000, 32 << 20);
    let mut guest = siege.attacker(|builder| builder.ring_size(1024).region(big));
    let buffer = guest.slot(FROM_GUEST, 0);
    for len in [1, 0x1_0000, u32::MAX] {
        let buffers = vec![Buffer::readable(buffer, len); 1024];
        for indirect in [false, true] {
            guest.from_guest().add(&buffers, indirect).unwrap();
            guest.from_guest().publish_and_kick().unwrap();
            guest.flush().unwrap();
            siege.while_others_exchange(1);
        }
    }
    siege.expect_unharmed(&mut guest, "chains of 1,024 descriptors");
    let mut table = Vec::with_capacity(16 << 20);
    for at in 0..1_u32 << 20 {
        // `next` has 16 bits: the chain goes round in the first 65,536 entries.
        let next = u16::try_from((at + 1) % 0x1_0000).unwrap();
        table.extend_from_slice(&Descriptor { address: buffer.0, len: 0x1_0000, flags: NEXT, next }.bytes());
    }
    guest.memory().write(big.guest, &table);
    guest.flush().unwrap();
    offer(&mut guest, FROM_GUEST, &[Descriptor { address: big.guest.0, len: 16 << 20, flags: Descriptor::INDIRECT, next: 0 }]);
    siege.while_others_exchange(20);
    drop(guest);
    siege.end();
}

/// Lengths, addresses, flags and links change while the switch reads them.
#[test]
fn descriptors_that_change_while_they_are_read_harm_nobody() {
    let mut siege = Siege::begin();
    for ring in [FROM_GUEST, TO_GUEST] {
        for seed in 0..5 {
            let mut guest = siege.attacker(|builder| builder);
            let table = guest.ring(ring).descriptor_address(0);
            let memory = Arc::clone(guest.memory());
            let slot = guest.slot(ring, 0).0;
            let flipper = Background::start(Numbers::from(seed), move |numbers, _| {
                let at = table + 16 * numbers.below(64) as u64;
                match numbers.below(4) {
                    0 => memory.store_u32(at + 8, [0, 1, 60, 2000, 0x1_0000, u32::MAX][numbers.below(6)], Ordering::Relaxed),
                    1 => memory.write(at, &[slot, 0, u64::MAX, slot + 0x1000][numbers.below(4)].to_le_bytes()),
                    2 => memory.store_u16(at + 12, u16::try_from(numbers.below(4)).unwrap(), Ordering::Relaxed),
                    _ => memory.store_u16(at + 14, u16::try_from(numbers.below(64)).unwrap(), Ordering::Relaxed),
                }
            });
            for nth in 0..3000_u16 {
                offer_head(&mut guest, ring, nth % 64);
                if nth % 50 == 0 {
                    siege.witness.send(&frame(BROADCAST, WITNESS, 1000)).unwrap();
                }
            }
            siege.while_others_exchange(5);
            flipper.stop();
            drop(guest);
            siege.switch.wait_listening(&siege.port);
            siege.forget_frames();
        }
    }
    siege.end();
}

/// Decided on one address, delivered with another: that must not be.
#[test]
fn a_frame_is_delivered_with_the_addresses_that_were_decided_on() {
    let siege = Siege::begin();
    let (port_x, mut x) = siege.switch.guest(|builder| builder);
    let (port_y, mut y) = siege.switch.guest(|builder| builder);
    let (mac_x, mac_y) = (mac(0x0101), mac(0x0202));
    for (guest, station) in [(&mut x, mac_x), (&mut y, mac_y)] {
        guest.send(&frame(BROADCAST, station, 60)).unwrap();
        guest.flush().unwrap();
    }
    assert!(eventually(|| siege.switch.station(mac_x).is_some() && siege.switch.station(mac_y).is_some()));
    for guest in [&mut x, &mut y] {
        while guest.receive(Duration::from_millis(20)).unwrap().is_some() {}
    }
    let mut guest = siege.attacker(|builder| builder);
    let memory = Arc::clone(guest.memory());
    let slot = guest.slot(FROM_GUEST, 0);
    guest.memory().write(slot, &[&[0; 12][..], &frame(mac_x, GOOD, 60)].concat());
    let flipper = Background::start((), move |(), nth| {
        let [_, _, _, _, high, low] = if nth % 2 == 0 { mac_x } else { mac_y };
        // One store, so that the address is always one of the two.
        memory.store_u16(slot + 12 + 4, u16::from_le_bytes([high, low]), Ordering::Relaxed);
    });
    let mut received = [0, 0];
    let deadline = std::time::Instant::now() + 4 * LIMIT;
    let mut sent = 0;
    while sent < 20_000 || received.contains(&0) {
        assert!(std::time::Instant::now() < deadline, "{sent} sent, received {received:?}");
        guest.reclaim().unwrap();
        while guest.from_guest().free() > 0 && guest.from_guest().in_flight() < 32 {
            guest.from_guest().add(&[Buffer::readable(slot, 72)], false).unwrap();
            sent += 1;
        }
        guest.from_guest().publish_and_kick().unwrap();
        for (nth, (receiver, station)) in [(&mut x, mac_x), (&mut y, mac_y)].into_iter().enumerate() {
            while let Some(frame) = receiver.receive(Duration::ZERO).unwrap() {
                assert_eq!(frame[..6], station, "a frame for somebody else arrived");
                received[nth] += 1;
            }
        }
    }
    flipper.stop();
    drop(guest);
    siege.switch.wait_listening(&siege.port);
    // The two receivers have left when the siege ends, as if they had never been there.
    for (port, receiver) in [(&port_x, x), (&port_y, y)] {
        drop(receiver);
        siege.switch.remove(port);
    }
    siege.end();
}

#[test]
fn a_memory_file_that_is_cut_ends_the_connection() {
    type Cut = fn(&mut Guest);
    let cuts: [(&str, Cut); 5] = [
        ("to nothing, then a kick", |guest| {
            guest.memory().truncate_file(0, 0).unwrap();
            guest.from_guest().kick().unwrap();
        }),
        ("to nothing, and a frame comes", |guest| guest.memory().truncate_file(0, 0).unwrap()),
        ("below a frame that is offered", |guest| {
            guest.queue(&frame(WITNESS, GOOD, 1500)).unwrap();
            cut_slots(guest);
            guest.from_guest().publish();
            guest.from_guest().kick().unwrap();
        }),
        ("below the payload of a frame that is offered", |guest| {
            let layout = guest.memory().layout(0);
            let edge = guest.slot(FROM_GUEST, 100).0 & !0xfff;
            let start = GuestAddr(edge - 100);
            guest.memory().write(start, &[&[0; 12][..], &frame(WITNESS, GOOD, 1500)].concat());
            guest.from_guest().add(&[Buffer::readable(start, 1512)], false).unwrap();
            guest.memory().truncate_file(0, edge - layout.guest.0).unwrap();
            guest.from_guest().publish();
            guest.from_guest().kick().unwrap();
        }),
        ("below the receive buffers", |guest| {
            for nth in 0..50 {
                let slot = guest.slot(TO_GUEST, nth);
                guest.to_guest().add(&[Buffer::writable(slot, 2000)], false).unwrap();
            }
            cut_slots(guest);
            guest.to_guest().publish();
            guest.to_guest().kick().unwrap();
        }),
    ];
    let mut siege = Siege::begin();
    for round in 0..3 {
        for (what, cut) in cuts {
            let order = if round % 2 == 0 { Order::Qemu } else { Order::VirtioUser };
            let mut guest = siege.attacker(|builder| builder.order(order));
            cut(&mut guest);
            let reason = siege.expect_repelled(guest, what);
            println!("{what}: {reason}");
            siege.forget_frames();
        }
    }
    siege.end();
}

/// Cuts everything but the rings.
fn cut_slots(guest: &Guest) {
    let layout = guest.memory().layout(0);
    let first = guest.slot(TO_GUEST, 0).0;
    guest.memory().truncate_file(0, first - layout.guest.0).unwrap();
}

/// Sealed files can't be cut, and work like any other.
#[test]
fn sealed_memory_is_taken() {
    let mut siege = Siege::begin();
    let mut guest = siege.attacker(Builder::sealed);
    assert!(guest.memory().truncate_file(0, 0).is_err());
    siege.expect_unharmed(&mut guest, "sealed memory");
    drop(guest);
    siege.end();
}

/// Bytes that look random, as messages and as memory.
#[test]
fn noise_of_every_kind_harms_nobody() {
    let mut siege = Siege::begin();
    let mut numbers = Numbers::from(3);
    for _ in 0..200 {
        let guest = siege.intruder();
        for _ in 0..20 {
            let len = numbers.below(64);
            let mut bytes: Vec<u8> = (0..len).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
            let request = u32::try_from(numbers.below(45)).unwrap();
            let header = [request, 1 | (u32::try_from(numbers.below(2)).unwrap() * 8), u32::try_from(len).unwrap()];
            let mut message: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
            message.append(&mut bytes);
            let files = vec![guest.memory().file(0).as_raw_fd(); numbers.below(3)];
            if guest.session().send_bytes(&message, &files).is_err() {
                break;
            }
        }
        drop(guest);
        siege.switch.wait_listening(&siege.port);
    }
    for _ in 0..50 {
        let mut guest = siege.attacker(|builder| builder);
        for ring in [FROM_GUEST, TO_GUEST] {
            let noise: Vec<u8> = (0..4096).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
            let place = [guest.ring(ring).descriptor_address(0), guest.ring(ring).avail_address(), guest.ring(ring).used_address()];
            guest.memory().write(place[numbers.below(3)], &noise);
            guest.ring(ring).kick().unwrap();
        }
        siege.witness.send(&frame(BROADCAST, WITNESS, 60)).unwrap();
        siege.while_others_exchange(1);
        drop(guest);
        siege.switch.wait_listening(&siege.port);
        siege.forget_frames();
    }
    siege.end();
}
