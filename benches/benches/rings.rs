//! The way of frames from ring to ring, without a front-end that would be in the way: how long a worker takes for each, by layout
//! and size, beside a plain copy of as many bytes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weft_benches::rig::{Load, Rig};
use weft_guest::feature;

/// Frames that are timed at once.
const FRAMES: u16 = 256;

fn time_frames(rig: &mut Rig, laps: u64) -> Duration {
    let mut taken = Duration::ZERO;
    for _ in 0..laps {
        let rounds = rig.offer(FRAMES).expect("the rings are sound");
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(rig.poll());
        }
        taken += start.elapsed();
        rig.take().expect("the rings are sound");
    }
    taken
}

fn layouts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rings/64");
    group.throughput(Throughput::Elements(FRAMES.into()));
    let packed = feature::MRG_RXBUF | feature::RING_PACKED;
    for (name, load) in [
        ("split", Load::PLAIN),
        ("split_in_order", Load { features: feature::MRG_RXBUF | feature::IN_ORDER, ..Load::PLAIN }),
        ("packed", Load { features: packed, ..Load::PLAIN }),
        ("packed_in_order", Load { features: packed | feature::IN_ORDER, ..Load::PLAIN }),
        ("header_apart", Load { pieces: 2, ..Load::PLAIN }),
        ("stations_1000", Load { stations: 1000, ..Load::PLAIN }),
    ] {
        let mut rig = Rig::new(&load).expect("two guests on a switch");
        group.bench_function(name, |bencher| bencher.iter_custom(|laps| time_frames(&mut rig, laps)));
    }
    group.finish();
}

/// Frames of every size against copies of the same bytes between buffers as many and as large.
fn sizes(criterion: &mut Criterion) {
    for len in [508, 1514, 9014, 65_000] {
        let mut group = criterion.benchmark_group(format!("copies/{len}"));
        group.throughput(Throughput::Bytes(u64::from(FRAMES) * len as u64));
        // A switch whose buffers are of this size: one for each frame, so that nothing but the copy grows.
        let mut rig =
            Rig::new(&Load { frame_len: len, buffer_len: len as u32 + 12, ..Load::PLAIN }).expect("two guests on a switch");
        group.bench_function(BenchmarkId::from_parameter("frames"), |bencher| {
            bencher.iter_custom(|laps| time_frames(&mut rig, laps));
        });
        let from = vec![1_u8; len * usize::from(FRAMES)];
        let mut to = vec![0_u8; from.len()];
        group.bench_function(BenchmarkId::from_parameter("memcpy"), |bencher| {
            bencher.iter(|| {
                for (to, from) in to.chunks_exact_mut(len).zip(from.chunks_exact(len)) {
                    black_box(&mut *to).copy_from_slice(black_box(from));
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, layouts, sizes);
criterion_main!(benches);
