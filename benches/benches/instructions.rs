//! Instructions for a ring full of frames, from the look at the sender's ring to the publication in the receiver's, counted under
//! valgrind: the same on every machine, so that a line can be held.
#![allow(missing_docs)] // What gungraun's macros make is public and has none.

use std::hint::black_box;

use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use weft_benches::rig::{Load, RING_SIZE, Rig, Vlans};
use weft_guest::feature;

/// A rig with frames on offer, and the rounds that it takes to forward them.
fn loaded(load: Load) -> (Rig, u16) {
    let mut rig = Rig::new(&load).expect("guests on a switch");
    rig.poll();
    let rounds = rig.offer(FRAMES / load.pieces).expect("the rings are sound");
    (rig, rounds)
}

/// Frames in one piece that are forwarded: the counts divided by this are what one costs.
const FRAMES: u16 = RING_SIZE;

const PACKED: u64 = feature::MRG_RXBUF | feature::RING_PACKED;

/// What a buffer that is sent, which is a frame or half of one, may cost at most: what it did when this was written, and a twentieth more. Whoever makes it cheaper writes the new
/// number here; whoever has a reason to spend more says so in the commit.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let limit = instructions * u64::from(FRAMES) * 21 / 20;
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, limit)]));
    config
}

#[library_benchmark]
#[bench::split_64(args = (loaded(Load::PLAIN)), config = at_most(469))]
#[bench::split_512(args = (loaded(Load { frame_len: 508, ..Load::PLAIN })), config = at_most(531))]
#[bench::split_1518(args = (loaded(Load { frame_len: 1514, ..Load::PLAIN })), config = at_most(627))]
#[bench::split_in_order_64(args = (loaded(Load { features: feature::MRG_RXBUF | feature::IN_ORDER, ..Load::PLAIN })), config = at_most(461))]
#[bench::packed_64(args = (loaded(Load { features: PACKED, ..Load::PLAIN })), config = at_most(531))]
#[bench::packed_in_order_64(args = (loaded(Load { features: PACKED | feature::IN_ORDER, ..Load::PLAIN })), config = at_most(510))]
#[bench::stations_1000(args = (loaded(Load { stations: 1000, ..Load::PLAIN })), config = at_most(474))]
#[bench::guests_16(args = (loaded(Load { guests: 16, ..Load::PLAIN })), config = at_most(569))]
#[bench::gateway_64(args = (loaded(Load { gateway: true, ..Load::PLAIN })), config = at_most(485))]
#[bench::access_64(args = (loaded(Load { vlans: Vlans::Access, ..Load::PLAIN })), config = at_most(505))]
#[bench::access_to_trunk_64(args = (loaded(Load { vlans: Vlans::ToTrunk, ..Load::PLAIN })), config = at_most(517))]
#[bench::access_to_trunk_1518(args = (loaded(Load { vlans: Vlans::ToTrunk, frame_len: 1514, ..Load::PLAIN })), config = at_most(673))]
#[bench::packed_access_to_trunk_64(args = (loaded(Load { vlans: Vlans::ToTrunk, features: PACKED, ..Load::PLAIN })), config = at_most(578))]
#[bench::trunk_to_access_64(args = (loaded(Load { vlans: Vlans::FromTrunk, ..Load::PLAIN })), config = at_most(633))]
#[bench::nat_udp_64(args = (loaded(Load { nat: true, ..Load::PLAIN })), config = at_most(2_084))]
#[bench::nat_udp_1518(args = (loaded(Load { nat: true, frame_len: 1514, ..Load::PLAIN })), config = at_most(3_162))]
#[bench::protected_64(args = (loaded(Load { protected: true, ..Load::PLAIN })), config = at_most(604))]
#[bench::protected_1518(args = (loaded(Load { protected: true, frame_len: 1514, ..Load::PLAIN })), config = at_most(858))]
#[bench::watched_host_64(args = (loaded(Load { watched: Some("host 203.0.113.9"), ..Load::PLAIN })), config = at_most(507))]
#[bench::watched_host_twice_64(args = (loaded(Load { watched: Some("host 203.0.113.9"), watched_ports: 2, ..Load::PLAIN })), config = at_most(511))]
#[bench::watched_port_64(args = (loaded(Load { watched: Some("tcp port 443"), ..Load::PLAIN })), config = at_most(528))]
#[bench::watched_ether_64(args = (loaded(Load { watched: Some("ether host 02:99:99:99:99:99"), ..Load::PLAIN })), config = at_most(493))]
#[bench::two_pieces(args = (loaded(Load { pieces: 2, ..Load::PLAIN })), config = at_most(533))]
#[bench::packed_two_pieces(args = (loaded(Load { pieces: 2, features: PACKED, ..Load::PLAIN })), config = at_most(583))]
fn forward((mut rig, rounds): (Rig, u16)) -> Rig {
    for _ in 0..rounds {
        assert!(black_box(rig.poll()), "there are frames left");
    }
    rig
}

library_benchmark_group!(name = path; benchmarks = forward);
main!(library_benchmark_groups = path);
