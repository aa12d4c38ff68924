//! Attacks through memory: rings, chains, frames and the memory files themselves.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use weft_guest::{Buffer, Builder, Descriptor, Guest, GuestAddr, GuestError, Header, RegionLayout, Shape, feature};
use weft_switch::DropReason;

use crate::common::{BROADCAST, Background, LIMIT, Numbers, ORDERS, RINGS, SOON, eventually, frame, mac};
use crate::siege::{FROM_GUEST, GOOD, Siege, TO_GUEST, WITNESS};

/// What is tried, part of the reason that must be given beside the ring, and how.
type RingAttack = (&'static str, &'static str, fn(&mut Guest, usize));

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
    ("available index one too far", "jumped by 257, more than the ring's 256 entries", |guest, ring| {
        let size = guest.ring(ring).size();
        guest.ring(ring).write_avail_index(size + 1);
        guest.ring(ring).kick().unwrap();
    }),
    ("available index half way round", "jumped by 32768, more than the ring's 256 entries", |guest, ring| {
        guest.ring(ring).write_avail_index(0x8000);
        guest.ring(ring).kick().unwrap();
    }),
    ("available index that goes back", "jumped by 65535, more than the ring's 256 entries", |guest, ring| {
        guest.ring(ring).write_avail_index(u16::MAX);
        guest.ring(ring).kick().unwrap();
    }),
    ("head beyond the ring", "descriptor 256 is beyond the table's 256 entries", |guest, ring| offer_head(guest, ring, 256)),
    ("head far beyond the ring", "descriptor 65535 is beyond the table's 256 entries", |guest, ring| {
        offer_head(guest, ring, u16::MAX);
    }),
    ("next beyond the table", "descriptor 256 is beyond the table's 256 entries", |guest, ring| {
        offer(guest, ring, &[good(guest, ring, 40, NEXT, 256)]);
    }),
    ("next far beyond the table", "descriptor 65535 is beyond the table's 256 entries", |guest, ring| {
        offer(guest, ring, &[good(guest, ring, 40, NEXT, u16::MAX)]);
    }),
    ("a descriptor that is its own next", "so it has a loop", |guest, ring| offer(guest, ring, &[good(guest, ring, 1, NEXT, 0)])),
    ("a loop of two", "so it has a loop", |guest, ring| {
        offer(guest, ring, &[good(guest, ring, 1, NEXT, 1), good(guest, ring, 1, NEXT, 0)]);
    }),
    ("a loop of the whole ring", "so it has a loop", |guest, ring| {
        let descriptors: Vec<_> = (0..256).map(|at| good(guest, ring, 1, NEXT, (at + 1) % 256)).collect();
        offer(guest, ring, &descriptors);
    }),
    ("an indirect table inside an indirect table", "with NEXT, or inside an indirect table", |guest, ring| {
        let inner = Descriptor { flags: Descriptor::INDIRECT, ..good(guest, ring, 16, 0, 0) };
        offer_indirect(guest, ring, &[inner], 16, 0);
    }),
    ("an indirect table that goes on", "with NEXT, or inside an indirect table", |guest, ring| {
        offer_indirect(guest, ring, &[good(guest, ring, 100, 0, 0)], 16, NEXT);
    }),
    ("an indirect table of 0 bytes", "an indirect table of 0 bytes", |guest, ring| offer_indirect(guest, ring, &[], 0, 0)),
    ("an indirect table of 15 bytes", "an indirect table of 15 bytes", |guest, ring| {
        offer_indirect(guest, ring, &[good(guest, ring, 100, 0, 0)], 15, 0);
    }),
    ("an indirect table of 17 bytes", "an indirect table of 17 bytes", |guest, ring| {
        offer_indirect(guest, ring, &[good(guest, ring, 100, 0, 0)], 17, 0);
    }),
    ("an indirect table of 4 GiB", "an indirect table of 4294967280 bytes", |guest, ring| {
        offer_indirect(guest, ring, &[good(guest, ring, 100, 0, 0)], !15, 0);
    }),
    ("an indirect table outside memory", "an indirect table of 16 bytes at 0x4000000000000", |guest, ring| {
        offer(guest, ring, &[Descriptor { address: 1 << 50, len: 16, flags: Descriptor::INDIRECT, next: 0 }]);
    }),
    (
        "an indirect table at the end of the address space",
        "an indirect table of 32 bytes at 0xfffffffffffffff0",
        |guest, ring| {
            offer(guest, ring, &[Descriptor { address: u64::MAX - 15, len: 32, flags: Descriptor::INDIRECT, next: 0 }]);
        },
    ),
    ("an indirect table that ends outside memory", "an indirect table of 32 bytes", |guest, ring| {
        let layout = guest.memory().layout(0);
        let address = layout.guest.0 + layout.size - 16;
        guest.memory().write(GuestAddr(address), &good(guest, ring, 20, NEXT, 1).bytes());
        offer(guest, ring, &[Descriptor { address, len: 32, flags: Descriptor::INDIRECT, next: 0 }]);
    }),
    ("a loop in an indirect table", "so it has a loop", |guest, ring| {
        offer_indirect(guest, ring, &[good(guest, ring, 1, NEXT, 1), good(guest, ring, 1, NEXT, 0)], 32, 0);
    }),
    ("next beyond an indirect table", "descriptor 2 is beyond the table's 2 entries", |guest, ring| {
        offer_indirect(guest, ring, &[good(guest, ring, 20, NEXT, 2), good(guest, ring, 20, 0, 0)], 32, 0);
    }),
];

#[test]
fn a_broken_ring_ends_the_connection() {
    let mut siege = Siege::begin();
    for (what, reason, attack) in STRUCTURAL {
        for ring in [FROM_GUEST, TO_GUEST] {
            let mut guest = siege.attacker(|builder| builder);
            attack(&mut guest, ring);
            let given = siege.expect_repelled_because(guest, what, reason);
            assert!(given.starts_with(&format!("ring {ring}: ")), "{what}, ring {ring}: {given}");
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
        siege.expect_repelled_because(guest, "an indirect table", "INDIRECT_DESC was not negotiated");
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
        ("a second buffer outside memory", BadAddress, |guest| {
            vec![readable(slot(guest), 50), readable(GuestAddr(1 << 50), 100)]
        }),
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
        ("a buffer to write at last", BadDescriptor, |guest| {
            vec![readable(slot(guest), 100), Buffer::writable(slot(guest), 100)]
        }),
        ("a buffer to write at first", BadDescriptor, |guest| {
            vec![Buffer::writable(slot(guest), 100), readable(slot(guest), 100)]
        }),
        ("one byte", TooShort, |guest| vec![readable(slot(guest), 1)]),
        ("part of a header", TooShort, |guest| vec![readable(slot(guest), 11)]),
        ("nothing but a header", TooShort, |guest| vec![readable(slot(guest), 12)]),
        ("a header in twelve pieces and nothing else", TooShort, |guest| vec![readable(slot(guest), 1); 12]),
        ("a header and part of the addresses", TooShort, |guest| vec![readable(slot(guest), 12), readable(slot(guest), 13)]),
        ("200 times 64 KiB", TooLong, |guest| vec![readable(slot(guest), 0x1_0000); 200]),
    ];
    let mut siege = Siege::begin();
    for (order, features) in ORDERS.into_iter().flat_map(|order| RINGS.map(|features| (order, features))) {
        let mut guest = siege.attacker(|builder| builder.order(order).features(features));
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
        siege.leave(guest);
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
    for features in RINGS.into_iter().flat_map(|features| [features, features & !feature::MRG_RXBUF]) {
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
        siege.leave(guest);
    }
    siege.end();
}

#[test]
fn receive_buffers_smaller_than_the_header_harm_nobody() {
    let mut siege = Siege::begin();
    for len in [1, 9, 10, 11, 12, 13] {
        for features in RINGS.into_iter().flat_map(|features| [features, features & !feature::MRG_RXBUF]) {
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
            siege.leave(guest);
        }
    }
    siege.end();
}

#[test]
fn offloads_that_were_not_agreed_on_are_dropped() {
    let headers = [
        ("a checksum to complete", Header { flags: Header::NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Header::default() }),
        (
            "csum_start beyond the frame",
            Header { flags: Header::NEEDS_CSUM, csum_start: u16::MAX, csum_offset: 16, ..Header::default() },
        ),
        (
            "csum_offset beyond the frame",
            Header { flags: Header::NEEDS_CSUM, csum_start: 34, csum_offset: u16::MAX, ..Header::default() },
        ),
        ("a segment to cut", Header { gso_type: Header::GSO_TCPV4, gso_size: 1448, hdr_len: 54, ..Header::default() }),
        ("gso_size 0", Header { gso_type: Header::GSO_TCPV4, hdr_len: 54, ..Header::default() }),
        (
            "hdr_len beyond the frame",
            Header { gso_type: Header::GSO_TCPV4, gso_size: 1448, hdr_len: u16::MAX, ..Header::default() },
        ),
        ("a gso_type that does not exist", Header { gso_type: 0x7f, gso_size: 1448, hdr_len: 54, ..Header::default() }),
        ("ECN alone", Header { gso_type: 0x80, ..Header::default() }),
    ];
    let mut siege = Siege::begin();
    for features in [feature::DEFAULT, 0] {
        let mut guest = siege.attacker(|builder| builder.features(features));
        for (what, header) in &headers {
            // What does not exist can't be agreed on.
            let exists = matches!(header.gso_type, 0 | Header::GSO_TCPV4);
            let reason = if exists { DropReason::UnagreedOffload } else { DropReason::BadOffload };
            for shape in [Shape::one(), Shape::pieces(&[1; 30])] {
                let before = siege.switch.drops(&siege.port, reason);
                guest.send_with_header(header, &frame(WITNESS, GOOD, 1000), &shape).unwrap();
                guest.flush().unwrap();
                siege.switch.expect_drops(&siege.port, reason, before + 1);
                siege.expect_unharmed(&mut guest, what);
            }
        }
        siege.leave(guest);
    }
    siege.end();
}

/// A full ring of 1,024 descriptors, and an indirect table of a million, whose buffers are up to 64 KiB or 4 GiB each.
#[test]
fn chains_of_many_times_64_kib_hold_nobody_up() {
    let mut siege = Siege::begin();
    for features in RINGS {
        let mut guest = siege.attacker(|builder| builder.ring_size(1024).features(features));
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
        siege.leave(guest);
    }
    let big = RegionLayout::at(0x100_0000_0000, 32 << 20);
    let mut guest = siege.attacker(|builder| builder.region(big));
    let buffer = guest.slot(FROM_GUEST, 0);
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

/// Every chain of a full ring leads through a table of 32,768 buffers of one byte, again and again.
#[test]
fn long_chains_one_after_the_other_hold_nobody_up() {
    let mut siege = Siege::begin();
    let table = RegionLayout::at(0x100_0000_0000, 1 << 20);
    let mut guest = siege.attacker(|builder| builder.region(table));
    let buffer = guest.slot(FROM_GUEST, 0);
    for at in 0..0x8000_u16 {
        let flags = if at == 0x7fff { 0 } else { NEXT };
        let entry = Descriptor { address: buffer.0, len: 1, flags, next: at.wrapping_add(1) };
        guest.memory().write(table.guest + u64::from(at) * 16, &entry.bytes());
    }
    let entry = Descriptor { address: table.guest.0, len: 0x8_0000, flags: Descriptor::INDIRECT, next: 0 };
    for at in 0..256 {
        guest.from_guest().write_descriptor(at, entry);
        guest.from_guest().write_avail_entry(at, at);
    }
    let attack = Background::start(guest, |guest, _| {
        // A ring that is always full, and a frame whenever one has gone.
        let ring = guest.from_guest();
        ring.write_avail_index(ring.used_index().wrapping_add(256));
        ring.kick().ok();
        std::thread::yield_now();
    });
    let start = std::time::Instant::now();
    siege.while_others_exchange(20);
    let elapsed = start.elapsed();
    siege.leave(attack.stop());
    assert!(elapsed < Duration::from_secs(1), "20 exchanges of others took {elapsed:?}");
    siege.end();
}

/// Whoever writes to it would be busy with one byte after the other, while everybody waits.
#[test]
fn of_a_batch_a_guest_with_tiny_buffers_gets_no_more_than_is_quickly_done() {
    let mut siege = Siege::begin();
    let table = RegionLayout::at(0x100_0000_0000, 1 << 20);
    let mut guest = siege.attacker(|builder| builder.region(table));
    let buffer = guest.slot(TO_GUEST, 0);
    for at in 0..1000_u16 {
        let flags = Descriptor::WRITE | if at == 999 { 0 } else { NEXT };
        let entry = Descriptor { address: buffer.0 + u64::from(at), len: 1, flags, next: at + 1 };
        guest.memory().write(table.guest + u64::from(at) * 16, &entry.bytes());
    }
    let entry = Descriptor { address: table.guest.0, len: 16_000, flags: Descriptor::INDIRECT, next: 0 };
    for at in 0..256 {
        guest.to_guest().write_descriptor(at, entry);
        guest.to_guest().write_avail_entry(at, at);
    }
    guest.to_guest().write_avail_index(256);
    // One batch, each frame of which takes 988 buffers and its header twelve.
    for _ in 0..32 {
        siege.witness.queue(&frame(BROADCAST, WITNESS, 988)).unwrap();
    }
    siege.witness.from_guest().publish_and_kick().unwrap();
    siege.switch.expect_drops(&siege.port, DropReason::ReceiverBufferTooSmall, 27);
    siege.leave(guest);
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
            siege.leave(guest);
        }
    }
    siege.end();
}

/// Decided on one address, delivered with another: that must not be.
#[test]
fn a_frame_is_delivered_with_the_addresses_that_were_decided_on() {
    let mut siege = Siege::begin();
    for features in RINGS {
        change_addresses_while_sending(&mut siege, features);
    }
    siege.end();
}

fn change_addresses_while_sending(siege: &mut Siege, features: u64) {
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
    let mut guest = siege.attacker(|builder| builder.features(features));
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
    while sent < 10_000 || received.contains(&0) {
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
    siege.leave(guest);
    // The two receivers have left when the siege ends, as if they had never been there.
    for (port, receiver) in [(&port_x, x), (&port_y, y)] {
        drop(receiver);
        siege.switch.remove(port);
    }
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
    for (round, features) in RINGS.into_iter().enumerate() {
        for (what, cut) in cuts {
            let mut guest = siege.attacker(|builder| builder.order(ORDERS[round % 2]).features(features));
            cut(&mut guest);
            siege.expect_repelled_because(guest, what, "the front-end shortened the file behind its memory");
            siege.forget_frames();
        }
    }
    siege.end();
}

#[test]
fn a_memory_file_that_is_cut_before_its_rings_start_ends_the_connection() {
    let mut siege = Siege::begin();
    for (order, features) in ORDERS.into_iter().flat_map(|order| RINGS.map(|features| (order, features))) {
        let mut guest = Guest::builder(&siege.port.path).order(order).features(features).build().unwrap();
        guest.open().unwrap();
        guest.negotiate().unwrap();
        guest.session().set_features(guest.features()).unwrap();
        guest.share_memory().unwrap();
        guest.memory().truncate_file(0, 0).unwrap();
        // Whether the ring starts or not: the port must not stay with memory that is gone.
        let started =
            guest.start_ring(TO_GUEST).and_then(|()| guest.start_ring(FROM_GUEST)).and_then(|()| guest.set_enabled(true));
        assert!(matches!(started, Ok(()) | Err(GuestError::Closed)), "{started:?}");
        guest.from_guest().kick().unwrap();
        siege.expect_repelled(guest, "memory cut before the start");
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
        siege.leave(guest);
    }
    for _ in 0..50 {
        let mut guest = siege.attacker(|builder| builder);
        for ring in [FROM_GUEST, TO_GUEST] {
            let noise: Vec<u8> = (0..4096).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
            let place =
                [guest.ring(ring).descriptor_address(0), guest.ring(ring).avail_address(), guest.ring(ring).used_address()];
            guest.memory().write(place[numbers.below(3)], &noise);
            guest.ring(ring).kick().unwrap();
        }
        siege.witness.send(&frame(BROADCAST, WITNESS, 60)).unwrap();
        siege.while_others_exchange(1);
        siege.leave(guest);
    }
    siege.end();
}
