//! The decision about a frame: what learning and looking up cost, for few and for many stations.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weft_switch::{EthernetHeader, Fdb, FdbSettings, MacAddr, MacKey, PortId, Timestamp, forward};

const BATCH: u64 = 32;

fn station(number: u64) -> MacKey {
    MacAddr::from_u64(0x0200_0000_0000 | number).into()
}

/// `stations` behind each of two ports, all of them known.
fn fdb(stations: u64, now: Timestamp) -> Fdb {
    let fdb = Fdb::new(FdbSettings::new(16_384, Duration::from_secs(300)), &Arc::default());
    for number in 0..stations {
        fdb.learn(now, station(2 * number), PortId(0));
        fdb.learn(now, station(2 * number + 1), PortId(1));
    }
    fdb
}

fn known_stations(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward/known");
    group.throughput(Throughput::Elements(BATCH));
    let now = Timestamp::from_millis(1_000);
    for stations in [1, 1_000, 8_000] {
        let fdb = fdb(stations, now);
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(stations), |bencher| {
            bencher.iter(|| {
                for _ in 0..BATCH {
                    next = (next + 1) % stations;
                    let header = EthernetHeader { source: station(2 * next), destination: station(2 * next + 1) };
                    black_box(forward(now, PortId(0), black_box(&header), &fdb));
                }
            });
        });
    }
    group.finish();
}

fn invented_stations(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward/flood_of_new_stations");
    group.throughput(Throughput::Elements(BATCH));
    let now = Timestamp::from_millis(1_000);
    let fdb = fdb(8_192, now);
    let mut next = 1 << 20;
    group.bench_function("full_table", |bencher| {
        bencher.iter(|| {
            for _ in 0..BATCH {
                next += 1;
                let header = EthernetHeader { source: station(next), destination: station(1) };
                black_box(forward(now, PortId(0), black_box(&header), &fdb));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, known_stations, invented_stations);
criterion_main!(benches);
