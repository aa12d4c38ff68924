//! Benchmarks: what `weft-load` measures with, and criterion benches in `benches/`.
#![forbid(unsafe_code)]

pub mod load;
pub mod rig;
