//! Instructions for a ring full of frames, from the look at the sender's ring to the publication in the receiver's, counted under
//! valgrind: the same on every machine, so that a line can be held.
#![allow(missing_docs)] // What gungraun's macros make is public and has none.

use std::hint::black_box;

use gungraun::{library_benchmark, library_benchmark_group, main};
use weft_benches::rig::{Load, RING_SIZE, Rig};
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

#[library_benchmark]
#[bench::split_64(loaded(Load::PLAIN))]
#[bench::split_512(loaded(Load { frame_len: 508, ..Load::PLAIN }))]
#[bench::split_1518(loaded(Load { frame_len: 1514, ..Load::PLAIN }))]
#[bench::split_in_order_64(loaded(Load { features: feature::MRG_RXBUF | feature::IN_ORDER, ..Load::PLAIN }))]
#[bench::packed_64(loaded(Load { features: PACKED, ..Load::PLAIN }))]
#[bench::packed_in_order_64(loaded(Load { features: PACKED | feature::IN_ORDER, ..Load::PLAIN }))]
#[bench::stations_1000(loaded(Load { stations: 1000, ..Load::PLAIN }))]
#[bench::guests_16(loaded(Load { guests: 16, ..Load::PLAIN }))]
#[bench::two_pieces(loaded(Load { pieces: 2, ..Load::PLAIN }))]
#[bench::packed_two_pieces(loaded(Load { pieces: 2, features: PACKED, ..Load::PLAIN }))]
fn forward((mut rig, rounds): (Rig, u16)) -> Rig {
    for _ in 0..rounds {
        assert!(black_box(rig.poll()), "there are frames left");
    }
    rig
}

library_benchmark_group!(name = path; benchmarks = forward);
main!(library_benchmark_groups = path);
