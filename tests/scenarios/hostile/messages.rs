//! Attacks over the socket: bytes, requests and descriptors that a front-end should not send.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfig, VhostUserConfigFlags, VhostUserInflight, VhostUserLog, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserSingleMemoryRegion, VhostUserVringState,
};
use vm_memory::ByteValued;
use weft_dataplane::{PortSettings, PortState};
use weft_guest::{Buffer, Builder, Guest, GuestError, MemoryBy, RegionLayout, Request, RingPlace, Session, UserAddr, feature};
use weft_switch::DropReason;

use crate::common::{BROADCAST, LIMIT, Numbers, SOON, at_most, expect_frame, frame, open_descriptors, watched_descriptors};
use crate::siege::{FROM_GUEST, GOOD, Siege, TO_GUEST, WITNESS};

// Reasons that several attacks are given.
const BAD_RANGE: &str = "no bytes, or its end lies beyond the address space";
const TOO_MUCH: &str = "more than 1024 GiB of memory";
const FILE_TOO_SHORT: &str = "bytes of its file, which has";
const NO_FILE: &str = "is no memfd, and no file on tmpfs or hugetlbfs";
// A ring of 256 has a descriptor table, an available ring and a used ring of these lengths.
const DESCRIPTORS_OUTSIDE: &str = "(4096 bytes) does not lie within one memory region";
const AVAILABLE_OUTSIDE: &str = "(518 bytes) does not lie within one memory region";
const USED_OUTSIDE: &str = "(2054 bytes) does not lie within one memory region";
const NO_EVENTFD_TO_KICK: &str = "ring 1: the kick descriptor is no eventfd";
const NO_EVENTFD_TO_CALL: &str = "ring 1: the call descriptor is no eventfd";

/// What is tried, part of the reason that must be given, and how.
type MessageAttack = (&'static str, &'static str, fn(&Session, &Guest));

/// Tries each attack on a fresh connection and on a running guest; each must end the connection.
fn each_ends_the_connection(attacks: &[MessageAttack]) {
    let mut siege = Siege::begin();
    for (what, reason, attack) in attacks {
        let intruder = siege.intruder();
        attack(intruder.session(), &intruder);
        siege.expect_repelled_because(intruder, what, reason);
        let attacker = siege.attacker(|builder| builder);
        attack(attacker.session(), &attacker);
        siege.expect_repelled_because(attacker, what, reason);
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
        ("version 0", "flags 0x0:", |session, _| raw(session, [1, 0, 0], &[])),
        ("version 2", "flags 0x2:", |session, _| raw(session, [1, 2, 0], &[])),
        ("a reply instead of a request", "flags 0x5:", |session, _| raw(session, [1, 5, 8], &[0; 8])),
        ("a payload of 4 GiB", "SET_FEATURES announces a payload of 4294967295 bytes", |session, _| {
            raw(session, [2, 1, u32::MAX], &[0; 64]);
        }),
        ("a payload of 2 GiB", "SET_MEM_TABLE announces a payload of 2147483648 bytes", |session, _| {
            raw(session, [5, 1, 1 << 31], &[0; 64]);
        }),
        ("a request that does not exist", "message 1000 was not negotiated", |session, _| raw(session, [1000, 1, 0], &[])),
        ("request 0", "message 0 was not negotiated", |session, _| raw(session, [0, 1, 0], &[])),
        ("noise", "flags 0xdeadbeef:", |session, _| raw(session, [0xdead_beef, 0xdead_beef, 0xdead_beef], &[0xa5; 4096])),
    ]);
}

#[test]
fn payloads_of_the_wrong_length_end_the_connection() {
    each_ends_the_connection(&[
        ("SET_FEATURES, none", "SET_FEATURES with a payload of 0 bytes", |session, _| {
            say(session, Request::SET_FEATURES, &[], &[]);
        }),
        ("SET_FEATURES, 4", "SET_FEATURES with a payload of 4 bytes", |session, _| {
            say(session, Request::SET_FEATURES, &[0; 4], &[]);
        }),
        ("SET_FEATURES, 16", "SET_FEATURES with a payload of 16 bytes", |session, _| {
            say(session, Request::SET_FEATURES, &[0; 16], &[]);
        }),
        ("SET_VRING_NUM, 7", "SET_VRING_NUM with a payload of 7 bytes", |session, _| {
            say(session, Request::SET_VRING_NUM, &[0; 7], &[]);
        }),
        ("SET_VRING_ADDR, 8", "SET_VRING_ADDR with a payload of 8 bytes", |session, _| {
            say(session, Request::SET_VRING_ADDR, &[0; 8], &[]);
        }),
        ("SET_VRING_KICK, 4", "SET_VRING_KICK with a payload of 4 bytes", |session, _| {
            say(session, Request::SET_VRING_KICK, &[0; 4], &[]);
        }),
        ("GET_VRING_BASE, none", "GET_VRING_BASE with a payload of 0 bytes", |session, _| {
            say(session, Request::GET_VRING_BASE, &[], &[]);
        }),
        ("SET_MEM_TABLE, none", "SET_MEM_TABLE with a payload of 0 bytes", |session, _| {
            say(session, Request::SET_MEM_TABLE, &[], &[]);
        }),
        ("SET_MEM_TABLE, 4", "SET_MEM_TABLE with a payload of 4 bytes", |session, _| {
            say(session, Request::SET_MEM_TABLE, &[1, 0, 0, 0], &[]);
        }),
        ("ADD_MEM_REG, 8", "ADD_MEM_REG with a payload of 8 bytes", |session, guest| {
            say(session, Request::ADD_MEM_REG, &[0; 8], &[guest.memory().file(0).as_raw_fd()]);
        }),
        ("GET_CONFIG, none", "GET_CONFIG with a payload of 0 bytes", |session, _| say(session, Request::GET_CONFIG, &[], &[])),
        ("GET_CONFIG, more announced than sent", "GET_CONFIG with a payload of 12 bytes", |session, _| {
            let head = VhostUserConfig::new(0, 200, VhostUserConfigFlags::empty());
            say(session, Request::GET_CONFIG, head.as_slice(), &[]);
        }),
        ("GET_CONFIG, 4 GiB announced", "GET_CONFIG with a payload of 12 bytes", |session, _| {
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
        ("GET_FEATURES", "GET_FEATURES with 1 descriptors", |session, _| with_files(Request::GET_FEATURES, &[], session, 1)),
        ("SET_OWNER", "SET_OWNER with 8 descriptors", |session, _| with_files(Request::SET_OWNER, &[], session, 8)),
        ("SET_FEATURES", "SET_FEATURES with 8 descriptors", |session, _| with_files(Request::SET_FEATURES, &[0; 8], session, 8)),
        ("SET_VRING_NUM", "SET_VRING_NUM with 2 descriptors", |session, _| {
            with_files(Request::SET_VRING_NUM, &state(1, 256), session, 2);
        }),
        ("SET_VRING_ENABLE", "SET_VRING_ENABLE with 8 descriptors", |session, _| {
            with_files(Request::SET_VRING_ENABLE, &state(1, 1), session, 8);
        }),
        ("SEND_RARP", "SEND_RARP with 1 descriptors", |session, _| {
            with_files(Request::SEND_RARP, &[2, 0, 0, 0, 0, 1, 0, 0], session, 1);
        }),
        ("NET_SET_MTU", "NET_SET_MTU with 1 descriptors", |session, _| {
            with_files(Request::NET_SET_MTU, &1500_u64.to_ne_bytes(), session, 1);
        }),
        ("SET_VRING_CALL with several", "SET_VRING_CALL with 3 descriptors", |session, _| {
            with_files(Request::SET_VRING_CALL, &1_u64.to_ne_bytes(), session, 3);
        }),
        ("SET_VRING_CALL that says it has none", "SET_VRING_CALL with 1 descriptors", |session, _| {
            with_files(Request::SET_VRING_CALL, &0x101_u64.to_ne_bytes(), session, 1);
        }),
        ("SET_VRING_KICK that says it has one", "SET_VRING_KICK with 0 descriptors", |session, _| {
            say(session, Request::SET_VRING_KICK, &1_u64.to_ne_bytes(), &[]);
        }),
        ("GET_FEATURES with as many as a message can carry", "more than 8 descriptors in one message", |session, _| {
            with_files(Request::GET_FEATURES, &[], session, 253);
        }),
        ("SET_MEM_TABLE with more than regions", "SET_MEM_TABLE with 8 descriptors", |session, guest| {
            let payload = [VhostUserMemory::new(1).as_slice(), guest.memory().message(0).as_slice()].concat();
            say(session, Request::SET_MEM_TABLE, &payload, &[guest.memory().file(0).as_raw_fd(); 8]);
        }),
        ("an unknown request with descriptors", "message 99 was not negotiated", |session, _| {
            let file = tempfile::tempfile().unwrap();
            let header: Vec<u8> = [99_u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
            session.send_bytes(&header, &[file.as_raw_fd(); 8]).unwrap();
        }),
        ("descriptors in the middle of a message", "more than 8 descriptors in one message", |session, _| {
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
        ("size 0", BAD_RANGE, |session, guest| table(session, guest, |region| region.memory_size = 0)),
        ("size 2^64 - 1", BAD_RANGE, |session, guest| table(session, guest, |region| region.memory_size = u64::MAX)),
        ("size 2^63", TOO_MUCH, |session, guest| table(session, guest, |region| region.memory_size = 1 << 63)),
        ("larger than its file", FILE_TOO_SHORT, |session, guest| table(session, guest, |region| region.memory_size += 4096)),
        ("guest address that wraps", BAD_RANGE, |session, guest| {
            table(session, guest, |region| region.guest_phys_addr = u64::MAX - 4096);
        }),
        ("user address that wraps", BAD_RANGE, |session, guest| {
            table(session, guest, |region| region.user_addr = u64::MAX - 4096);
        }),
        ("offset past the end", FILE_TOO_SHORT, |session, guest| {
            table(session, guest, |region| region.mmap_offset = region.memory_size);
        }),
        ("offset far past the end", FILE_TOO_SHORT, |session, guest| {
            table(session, guest, |region| region.mmap_offset = 1 << 50);
        }),
        ("offset that wraps", BAD_RANGE, |session, guest| table(session, guest, |region| region.mmap_offset = !4095)),
        ("offset and size that wrap together", BAD_RANGE, |session, guest| {
            table(session, guest, |region| {
                region.mmap_offset = 0x1001;
                region.memory_size = u64::MAX - 0x1000;
            });
        }),
        ("one byte past the end from an offset that is not on a page", FILE_TOO_SHORT, |session, guest| {
            table(session, guest, |region| {
                region.mmap_offset = 0x1001;
                region.memory_size -= 0x1000;
            });
        }),
        // Aligned for the guest, and not where weft has mapped it.
        ("rings on an odd offset", "must be aligned to 16 bytes", |session, guest| {
            table(session, guest, |region| {
                region.mmap_offset = 0x1001;
                region.memory_size -= 0x1001;
            });
            let base = guest.memory().layout(0).user;
            say(session, Request::SET_VRING_NUM, &state(0, 256), &[]);
            session.set_vring_addr(0, RingPlace { descriptors: base + 0x1000, avail: base + 0x3000, used: base + 0x4000 }).ok();
            let kick = eventfd(0, EventfdFlags::empty()).unwrap();
            say(session, Request::SET_VRING_KICK, &0_u64.to_ne_bytes(), &[kick.as_raw_fd()]);
        }),
        ("more regions than sent", "SET_MEM_TABLE with a payload of 40 bytes", |session, guest| counted(session, guest, 2, 1, 2)),
        ("4 Gi regions", "SET_MEM_TABLE with a payload of 40 bytes", |session, guest| counted(session, guest, u32::MAX, 1, 1)),
        ("fewer descriptors than regions", "SET_MEM_TABLE with 1 descriptors", |session, guest| counted(session, guest, 3, 3, 1)),
        ("more regions than a message takes", "more than 8 descriptors in one message", |session, guest| {
            counted(session, guest, 30, 30, 30);
        }),
        ("no descriptors at all", "SET_MEM_TABLE with 0 descriptors", |session, guest| counted(session, guest, 1, 1, 0)),
        ("the same region twice", "region at 0x0 overlaps another", |session, guest| {
            pair(session, guest, (0, 0, 0x1_0000), (0, 0, 0x1_0000));
        }),
        ("regions that overlap for the guest", "region at 0xf000 overlaps another", |session, guest| {
            pair(session, guest, (0, 0x10_0000, 0x1_0000), (0xf000, 0x20_0000, 0x1_0000));
        }),
        ("a region inside another", "region at 0x4000 overlaps another", |session, guest| {
            pair(session, guest, (0, 0x10_0000, 0x1_0000), (0x4000, 0x20_0000, 0x1000));
        }),
        ("a pipe", NO_FILE, |session, _| instead(session, &std::io::pipe().unwrap().0)),
        ("a directory", NO_FILE, |session, _| instead(session, &File::open("/").unwrap())),
        ("a device", NO_FILE, |session, _| instead(session, &File::open("/dev/zero").unwrap())),
        ("an eventfd", NO_FILE, |session, _| instead(session, &eventfd(0, EventfdFlags::empty()).unwrap())),
        ("a socket", NO_FILE, |session, _| instead(session, session.stream())),
        ("a file on another file system", NO_FILE, |session, _| instead(session, &File::open("/proc/version").unwrap())),
        ("an empty memfd", FILE_TOO_SHORT, |session, _| instead(session, &memfd_create("m", MemfdFlags::CLOEXEC).unwrap())),
        ("a memfd that is only for reading", "cannot map memory region at 0x0: Permission denied", |session, guest| {
            let path = format!("/proc/self/fd/{}", guest.memory().file(0).as_raw_fd());
            instead(session, &File::open(path).unwrap());
        }),
    ]);
}

/// A region may begin anywhere in its file, although mappings begin on pages; what the guest means by an address must be
/// what weft reads there.
#[test]
fn an_offset_that_is_not_on_a_page_is_taken_to_the_byte() {
    const OFFSET: u64 = 0x1235;
    let whole = RegionLayout::at(0x9000_0000, 0x1_0000);
    let part = RegionLayout { size: whole.size - OFFSET, mmap_offset: OFFSET, ..RegionLayout::at(0xa000_0000, 0) };
    let mut siege = Siege::begin();
    let mut guest = siege.attacker(|builder| builder.region(whole).memory_by(MemoryBy::Slots));
    let region = VhostUserMemoryRegion::new(part.guest.0, part.size, part.user.0, part.mmap_offset);
    guest.session().add_mem_reg(region, guest.memory().file(1)).unwrap();
    let sent = frame(WITNESS, GOOD, 500);
    let bytes = [&[0; 12][..], &sent].concat();
    let len = u32::try_from(bytes.len()).unwrap();
    // At the start, and up to the last byte of the file.
    for at in [0, part.size - u64::from(len)] {
        guest.memory().write(whole.guest + (OFFSET + at), &bytes);
        guest.send_buffers(&[Buffer::readable(part.guest + at, len)], false).unwrap();
        expect_frame(&mut siege.witness, &sent);
        guest.flush().unwrap();
    }
    guest.send_buffers(&[Buffer::readable(part.guest + (part.size - u64::from(len) + 1), len)], false).unwrap();
    siege.switch.expect_drops(&siege.port, DropReason::BadAddress, 1);
    drop(guest);
    siege.end();
}

#[test]
fn a_region_that_can_not_be_added_or_removed_ends_the_connection() {
    fn add(session: &Session, guest: &Guest, region: VhostUserMemoryRegion) {
        let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset } = region;
        let payload = VhostUserSingleMemoryRegion::new(guest_phys_addr, memory_size, user_addr, mmap_offset);
        say(session, Request::ADD_MEM_REG, payload.as_slice(), &[guest.memory().file(0).as_raw_fd()]);
    }
    each_ends_the_connection(&[
        ("added without a descriptor", "ADD_MEM_REG with 0 descriptors", |session, _| {
            let payload = VhostUserSingleMemoryRegion::new(1 << 40, 4096, 1 << 40, 0);
            say(session, Request::ADD_MEM_REG, payload.as_slice(), &[]);
        }),
        ("added with size 0", BAD_RANGE, |session, guest| {
            add(session, guest, VhostUserMemoryRegion::new(1 << 40, 0, 1 << 40, 0));
        }),
        ("added with size 2^64 - 1", BAD_RANGE, |session, guest| {
            add(session, guest, VhostUserMemoryRegion::new(1 << 40, u64::MAX, 1 << 40, 0));
        }),
        ("added twice", "region at 0x10000000000 overlaps another", |session, guest| {
            add(session, guest, VhostUserMemoryRegion::new(1 << 40, 4096, 1 << 40, 0));
            add(session, guest, VhostUserMemoryRegion::new(1 << 40, 4096, 1 << 40, 0));
        }),
        ("more regions than there are slots", "more than 256 memory regions", |session, guest| {
            for nth in 0..1000 {
                add(session, guest, VhostUserMemoryRegion::new((1 << 40) + (nth << 20), 4096, (1 << 40) + (nth << 20), 0));
            }
        }),
        ("a region removed that is not there", "no memory region at 0x20000000000", |session, _| {
            let payload = VhostUserSingleMemoryRegion::new(1 << 41, 4096, 1 << 41, 0);
            say(session, Request::REM_MEM_REG, payload.as_slice(), &[]);
        }),
    ]);
}

#[test]
fn ring_numbers_and_sizes_are_not_cut_to_fewer_bits() {
    fn say_of_stopped_ring(session: &Session, request: Request, num: u32) {
        session.vring_base(1).unwrap();
        say(session, request, &state(1, num), &[]);
    }
    each_ends_the_connection(&[
        ("size of ring 2", "ring 2 is beyond the 2 rings", |session, _| {
            say(session, Request::SET_VRING_NUM, &state(2, 256), &[]);
        }),
        ("size of ring 256", "ring 256 is beyond", |session, _| say(session, Request::SET_VRING_NUM, &state(256, 256), &[])),
        ("size of ring 65536", "ring 65536 is beyond", |session, _| {
            say(session, Request::SET_VRING_NUM, &state(0x1_0000, 256), &[]);
        }),
        ("size of ring 2^32 - 1", "ring 4294967295 is beyond", |session, _| {
            say(session, Request::SET_VRING_NUM, &state(u32::MAX, 256), &[]);
        }),
        ("base of ring 65537", "ring 65537 is beyond", |session, _| {
            say(session, Request::SET_VRING_BASE, &state(0x1_0001, 0), &[]);
        }),
        ("base of ring 257", "ring 257 is beyond", |session, _| say(session, Request::GET_VRING_BASE, &state(257, 0), &[])),
        ("enabling ring 65536", "ring 65536 is beyond", |session, _| {
            say(session, Request::SET_VRING_ENABLE, &state(0x1_0000, 1), &[]);
        }),
        ("kick for ring 255", "ring 255 is beyond", |session, guest| {
            let kick = eventfd(0, EventfdFlags::empty()).unwrap();
            say(session, Request::SET_VRING_KICK, &255_u64.to_ne_bytes(), &[kick.as_raw_fd()]);
            let _ = guest;
        }),
        ("call for ring 254, beside bits that mean nothing", "ring 254 is beyond", |session, _| {
            let call = eventfd(0, EventfdFlags::empty()).unwrap();
            say(session, Request::SET_VRING_CALL, &(1_u64 << 32 | 0xfe).to_ne_bytes(), &[call.as_raw_fd()]);
        }),
        ("size 0", "the size 0 is no number", |session, _| say_of_stopped_ring(session, Request::SET_VRING_NUM, 0)),
        ("size 3", "the size 3 is no number", |session, _| say_of_stopped_ring(session, Request::SET_VRING_NUM, 3)),
        ("size 65536", "the size 65536 is no number from 1 to 32768", |session, _| {
            say_of_stopped_ring(session, Request::SET_VRING_NUM, 0x1_0000);
        }),
        ("size 65536 + 256", "the size 65792 is no number", |session, _| {
            say_of_stopped_ring(session, Request::SET_VRING_NUM, 0x1_0100);
        }),
        ("base 65536", "base 65536 has more than 16 bits", |session, _| {
            say_of_stopped_ring(session, Request::SET_VRING_BASE, 0x1_0000);
        }),
    ]);
}

/// Even where nothing would change.
#[test]
fn a_ring_that_runs_takes_no_size_and_no_base() {
    let mut siege = Siege::begin();
    for (request, num) in [(Request::SET_VRING_NUM, 256), (Request::SET_VRING_NUM, 3), (Request::SET_VRING_BASE, 0)] {
        let attacker = siege.attacker(|builder| builder);
        say(attacker.session(), request, &state(1, num), &[]);
        siege.expect_repelled_because(attacker, &format!("{request:?} of {num}"), &format!("ring 1: {request:?} while it runs"));
    }
    siege.end();
}

#[test]
fn what_was_not_offered_or_makes_no_sense_ends_the_connection() {
    each_ends_the_connection(&[
        ("features that were not offered", "were not offered", |session, _| {
            say(session, Request::SET_FEATURES, &u64::MAX.to_ne_bytes(), &[]);
        }),
        ("an IOMMU, which was not offered", "features 0x200000000 were not offered", |session, _| {
            say(session, Request::SET_FEATURES, &(feature::VERSION_1 | 1 << 33).to_ne_bytes(), &[]);
        }),
        ("an announcement of a group address", "01:00:00:00:00:01 is no station's address", |session, _| {
            say(session, Request::SEND_RARP, &[1, 0, 0, 0, 0, 1, 0, 0], &[]);
        }),
        ("an announcement of nobody", "00:00:00:00:00:00 is no station's address", |session, _| {
            say(session, Request::SEND_RARP, &[0; 8], &[]);
        }),
        ("an MTU of 0", "0 is no MTU", |session, _| say(session, Request::NET_SET_MTU, &0_u64.to_ne_bytes(), &[])),
        ("an MTU of 2^16 + 1500", "67036 is no MTU", |session, _| {
            say(session, Request::NET_SET_MTU, &(0x1_0000_u64 + 1500).to_ne_bytes(), &[]);
        }),
    ]);
}

const RING_WITHOUT_MEMORY: &str = "the guest shares no memory with weft";

fn kick_without_memory(session: &Session, kick: &OwnedFd) {
    session.reset_device().ok();
    say(session, Request::SET_VRING_NUM, &state(1, 64), &[]);
    let place = RingPlace { descriptors: UserAddr(0x1000), avail: UserAddr(0x2000), used: UserAddr(0x3000) };
    session.set_vring_addr(1, place).ok();
    say(session, Request::SET_VRING_KICK, &1_u64.to_ne_bytes(), &[kick.as_raw_fd()]);
}

/// epoll keeps to the open file, not to the descriptor: what a guest still has open would be watched for ever.
#[test]
fn what_a_guest_leaves_open_is_no_longer_watched() {
    let mut siege = Siege::begin();
    let before = watched_descriptors();
    let kicks: Vec<OwnedFd> = (0..10).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    for kick in &kicks {
        let intruder = siege.intruder();
        kick_without_memory(intruder.session(), kick);
        siege.expect_repelled_because(intruder, "a kick before there is memory", RING_WITHOUT_MEMORY);
    }
    at_most("watched descriptors after kicks before there was memory", before, watched_descriptors);

    let mut guest = siege.attacker(|builder| builder);
    assert!(watched_descriptors() > before, "what is in use is watched, and counted");
    for round in 0..50 {
        if round % 2 == 0 {
            guest.disconnect().unwrap();
        } else {
            guest.hang_up();
        }
        siege.switch.wait_listening(&siege.port);
        guest.reconnect().unwrap();
        siege.switch.wait_up(&siege.port);
    }
    guest.hang_up();
    siege.switch.wait_listening(&siege.port);
    at_most("watched descriptors after 50 connections", before, watched_descriptors);
    drop((guest, kicks));
    siege.end();
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
        siege.expect_repelled_because(guest, &format!("{request:?} without NEED_REPLY"), "was not negotiated");
    }
    siege.end();
}

#[test]
fn ring_addresses_that_can_not_be_end_the_connection() {
    type Change = fn(RingPlace, &Guest) -> RingPlace;
    let changes: [(&str, &str, Change); 11] = [
        ("unaligned descriptors", "must be aligned to 16 bytes", |place, _| RingPlace {
            descriptors: place.descriptors + 8,
            ..place
        }),
        ("unaligned available ring", "must be aligned to 2 bytes", |place, _| RingPlace { avail: place.avail + 1, ..place }),
        ("unaligned used ring", "must be aligned to 4 bytes", |place, _| RingPlace { used: place.used + 2, ..place }),
        ("descriptors outside memory", DESCRIPTORS_OUTSIDE, |place, _| RingPlace { descriptors: UserAddr(0x10), ..place }),
        ("available ring outside memory", AVAILABLE_OUTSIDE, |place, _| RingPlace { avail: UserAddr(0x10), ..place }),
        ("used ring outside memory", USED_OUTSIDE, |place, _| RingPlace { used: UserAddr(!0xfff), ..place }),
        ("a guest address instead of a user address", DESCRIPTORS_OUTSIDE, |place, _| RingPlace {
            descriptors: UserAddr(place.descriptors.0 - 0x7000_0000_0000),
            ..place
        }),
        ("descriptors that end outside memory", DESCRIPTORS_OUTSIDE, |place, guest| RingPlace {
            descriptors: end_of_memory(guest, 16),
            ..place
        }),
        ("available ring that ends outside memory", AVAILABLE_OUTSIDE, |place, guest| RingPlace {
            avail: end_of_memory(guest, 8),
            ..place
        }),
        ("used ring that ends outside memory", USED_OUTSIDE, |place, guest| RingPlace { used: end_of_memory(guest, 8), ..place }),
        ("used ring whose event index is outside memory", USED_OUTSIDE, |place, guest| RingPlace {
            used: end_of_memory(guest, 4 + 8 * 256),
            ..place
        }),
    ];
    let mut siege = Siege::begin();
    for (what, reason, change) in changes {
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
            siege.expect_repelled_because(guest, what, reason);
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
        siege.leave(guest);
    }
    siege.end();
}

#[test]
fn descriptors_that_are_no_eventfds_end_the_connection() {
    fn set(session: &Session, request: Request, file: &impl AsRawFd) {
        say(session, request, &1_u64.to_ne_bytes(), &[file.as_raw_fd()]);
    }
    each_ends_the_connection(&[
        ("a pipe to kick", NO_EVENTFD_TO_KICK, |session, _| set(session, Request::SET_VRING_KICK, &std::io::pipe().unwrap().0)),
        ("a regular file to kick", NO_EVENTFD_TO_KICK, |session, _| {
            set(session, Request::SET_VRING_KICK, &tempfile::tempfile().unwrap());
        }),
        ("a device to kick", NO_EVENTFD_TO_KICK, |session, _| {
            set(session, Request::SET_VRING_KICK, &File::open("/dev/zero").unwrap());
        }),
        ("the socket itself to kick", NO_EVENTFD_TO_KICK, |session, _| set(session, Request::SET_VRING_KICK, session.stream())),
        ("a pipe to call", NO_EVENTFD_TO_CALL, |session, _| set(session, Request::SET_VRING_CALL, &std::io::pipe().unwrap().1)),
        ("a regular file to call", NO_EVENTFD_TO_CALL, |session, _| {
            set(session, Request::SET_VRING_CALL, &tempfile::tempfile().unwrap());
        }),
        ("a device to call", NO_EVENTFD_TO_CALL, |session, _| {
            set(session, Request::SET_VRING_CALL, &File::create("/dev/full").unwrap());
        }),
        ("guest memory to call", NO_EVENTFD_TO_CALL, |session, guest| {
            set(session, Request::SET_VRING_CALL, guest.memory().file(0));
        }),
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
    at_most("open descriptors", descriptors, open_descriptors);
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
    siege.expect_repelled_because(guest, "replies not read", "does not read our replies");
    siege.end();
}

#[test]
fn half_a_message_and_silence_holds_nobody_up() {
    let mut siege = Siege::begin();
    let whole: Vec<u8> = [2_u32, 1, 8, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    for sent in 1..whole.len() {
        let guest = siege.intruder();
        guest.session().send_bytes(&whole[..sent], &[]).unwrap();
        siege.while_others_exchange(1);
        siege.leave(guest);
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
