//! Instructions for a ring full of frames, from the look at the sender's ring to the publication in the receiver's, counted under
//! valgrind: the same on every machine, so that a line can be held.
#![allow(missing_docs)] // What gungraun's macros make is public and has none.

use std::hint::black_box;

use gungraun::{library_benchmark, library_benchmark_group, main};
use weft_benches::rig::{Load, RING_SIZE, Rig};
use weft_guest::feature;

/// Frames in a round.
const BATCH: u16 = 32;

/// A rig with a full sending ring.
fn loaded(frame_len: usize, stations: u16, features: u64) -> Rig {
    let mut rig = Rig::new(&Load { frame_len, stations, features }).expect("two guests on a switch");
    rig.poll();
    assert_eq!(rig.offer(RING_SIZE).expect("the ring is sound"), RING_SIZE);
    rig
}

// Forwards 1,024 frames; the count divided by that is what one costs.
#[library_benchmark]
#[bench::split_64(loaded(60, 1, feature::MRG_RXBUF))]
#[bench::split_1518(loaded(1514, 1, feature::MRG_RXBUF))]
#[bench::split_64_1000_stations(loaded(60, 1000, feature::MRG_RXBUF))]
fn forward_1024(mut rig: Rig) -> Rig {
    for _ in 0..RING_SIZE / BATCH {
        assert!(black_box(rig.poll()), "there are frames left");
    }
    rig
}

library_benchmark_group!(name = path; benchmarks = forward_1024);
main!(library_benchmark_groups = path);
