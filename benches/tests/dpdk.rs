//! `weft-load` against DPDK's vhost library, which others wrote: every byte of every frame is compared, in every layout of a ring.
//!
//! To run these: `tests/e2e/setup && cargo test --release -p weft-benches --test dpdk -- --ignored --test-threads=1`.

#[path = "../../tests/guest/tests/wire/mod.rs"]
mod wire;

use std::process::Command;

use serde_json::{Value, json};
use wire::Wire;

const FRAMES: u64 = 100_000;

/// Runs weft-load over a wire of its own; every frame must arrive intact.
#[track_caller]
fn assert_intact(queue_pairs: usize, arguments: &str) {
    let wire = Wire::start(queue_pairs);
    let output = Command::new(env!("CARGO_BIN_EXE_weft-load"))
        .args([wire.socket(0), wire.socket(1)])
        .args(["--check", "--both", "--json", "--frames", &FRAMES.to_string(), "--queues", &queue_pairs.to_string()])
        .args(arguments.split_whitespace())
        .output()
        .expect("weft-load can be run");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = &report["check"];
    assert_eq!((&check["intact"], &check["retagged"]), (&json!(2 * FRAMES), &json!(0)), "{arguments}: {report}");
    let features = report["guests"][0]["features"].as_array().unwrap();
    for (option, feature) in [("--packed", "RING_PACKED"), ("--in-order", "IN_ORDER")] {
        assert_eq!(features.contains(&json!(feature)), arguments.contains(option), "{arguments}: {features:?}");
    }
}

#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn every_frame_arrives_intact_in_every_layout() {
    for rings in ["", "--packed", "--in-order", "--packed --in-order"] {
        for frames in [
            "--sizes 64 --closed 100",
            "--sizes 1518 --closed 100 --no-mergeable",
            "--sizes 256 --closed 100 --chain 4 --flows 100 --spread 64M",
            "--sizes 1518 --closed 100 --chain 3 --indirect --vlan 1,2",
            "--sizes 5000 --closed 50 --flows 3",
        ] {
            assert_intact(1, &format!("{rings} {frames}"));
        }
    }
}

#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn packed_rings_may_have_any_size() {
    assert_intact(1, "--packed --sizes 64 --ring-size 1000 --chain 5 --closed 100");
    assert_intact(1, "--packed --in-order --sizes 64 --ring-size 99 --chain 3 --closed 30");
}

#[test]
#[ignore = "needs DPDK: the head of this file says how to run it"]
fn every_pair_carries_frames() {
    for rings in ["", "--packed", "--packed --in-order"] {
        assert_intact(3, &format!("{rings} --sizes 64 --closed 100 --flows 30"));
    }
}
