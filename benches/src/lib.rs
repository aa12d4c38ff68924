//! Benchmarks of the switch: see `benches/`.
