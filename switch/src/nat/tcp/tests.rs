//! A connection, step by step, as RFC 9293 and RFC 5382 ask for it.

mod model;
mod steps;

use super::*;

const GUEST_ISS: Seq = Seq(u32::MAX - 1000);
const ISS: Seq = Seq(u32::MAX - 50);

fn syn() -> Segment {
    Segment { seq: GUEST_ISS, flags: Flags::SYN, window: 64_000, mss: Some(1460), window_shift: Some(7), ..Segment::default() }
}
