use weft_switch::PortId;

use super::*;
use crate::gateway::{Receivers, private_copy};

/// A batch of one frame of `len` bytes, of which `skipped` are of a tag that was taken off, in pieces of at most that many bytes.
fn batch_of(len: usize, skipped: usize, piece: usize) -> Batch {
    let frame = (0..len + skipped).map(|at| at as u8).collect();
    let dispatch = Dispatch { to: Receivers::One(PortId::GATEWAY), from: None, frame, offload: Offload::NONE, stamp: None };
    let mut batch = Batch::new();
    batch.fill_private([dispatch].into_iter(), Stamp::NONE);
    let bytes = &mut batch.private[0];
    batch.pieces.extend(bytes.chunks_mut(piece).map(|part| Segment { ptr: part.as_mut_ptr(), len: part.len() }));
    let frame = &mut batch.frames[0];
    (frame.len, frame.skipped) = (len, skipped as u8);
    if batch.pieces.len() > 1 {
        frame.chain.spread_over(&batch.pieces, batch.pieces.len());
    }
    batch
}

#[test]
fn what_is_held_stays_as_it_was_and_the_rest_is_where_it_was() {
    for (len, skipped, piece) in
        [(14, 0, 99), (20, 4, 99), (64, 0, 10), (65, 0, 70), (200, 4, 30), (1514, 0, 2000), (1514, 4, 700)]
    {
        let mut batch = batch_of(len, skipped, piece);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        private_copy(&batch, &batch.frames[0], &mut before);
        batch.hold(1);
        // Once is enough.
        let pieces = batch.pieces.len();
        batch.hold(FrameMask::MAX);
        assert_eq!(batch.pieces.len(), pieces);
        batch.private[0].fill(0xee);
        private_copy(&batch, &batch.frames[0], &mut after);
        let held = len.min(HELD_LEN);
        assert_eq!(after[..held], before[..held], "{len} {skipped} {piece}");
        assert!(after.len() == len && after[held..].iter().all(|byte| *byte == 0xee));
    }
}

#[test]
fn only_what_has_a_tag_is_held_for_its_tag() {
    let mut batch = batch_of(100, 0, 200);
    batch.hold_tagged(1);
    assert!(batch.heads.is_empty());
    batch.frames[0].header[12..].copy_from_slice(&[0x81, 0]);
    batch.hold_tagged(0);
    assert!(batch.frames[0].chain.single().is_some());
    batch.hold_tagged(1);
    assert!(batch.frames[0].chain.single().is_none());
}
