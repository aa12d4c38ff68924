//! Attacks over the socket: bytes, requests and descriptors that a front-end should not send.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost::vhost_user::message::{
    VhostUserConfig, VhostUserConfigFlags, VhostUserInflight, VhostUserLog, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserSingleMemoryRegion, VhostUserVringState,
};
use vm_memory::ByteValued;
use weft_dataplane::{PortSettings, PortState};
use weft_guest::{Builder, Guest, GuestError, Request, RingPlace, Session, UserAddr, feature};

use crate::common::{BROADCAST, LIMIT, Numbers, SOON, frame, open_descriptors, settles};
use crate::siege::{FROM_GUEST, GOOD, Siege, TO_GUEST, WITNESS};

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
        ("added with size 2^64 - 1", |session, guest| {
            add(session, guest, VhostUserMemoryRegion::new(1 << 40, u64::MAX, 1 << 40, 0));
        }),
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
        ("call for ring 254, beside bits that mean nothing", |session, _| {
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
        ("used ring whose event index is outside memory", |place, guest| RingPlace {
            used: end_of_memory(guest, 4 + 8 * 256),
            ..place
        }),
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
        let bases =
            [places[0].descriptors, places[0].avail, places[0].used, places[1].descriptors, places[1].avail, places[1].used];
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
    drop((guest, call));
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
    drop((guest, semaphore));
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
