//! Datagrams of one guest in a row, sent with one call.
//!
//! The first of a kind leaves at once, so that a single one waits for nothing, and what the kernel says about it is heard. Those of the same batch
//! that follow it to the same place are gathered, and the kernel cuts them apart again (`UDP_SEGMENT`): all but the last have the same
//! length.

use std::net::SocketAddrV4;

use weft_switch::nat::FlowId;

use super::calls::{Marks, PIECES_MAX};
use super::part_of;
use crate::memory::Segment;

/// The most datagrams of one call (`UDP_MAX_SEGMENTS` of older kernels), and their bytes.
const DATAGRAMS: usize = 64;
const BYTES: usize = 65_000;

/// What datagrams of a run have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) id: FlowId,
    pub(super) to: SocketAddrV4,
    pub(super) marks: Marks,
    pub(super) dont_fragment: bool,
}

/// Datagrams that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Run {
    kind: Option<Kind>,
    pieces: Vec<Segment>,
    /// Where in `pieces` each datagram ends.
    ends: Vec<usize>,
    /// Bytes of each but the last.
    size: usize,
    len: usize,
    /// The last one was shorter.
    closed: bool,
}

impl Run {
    /// Begins with a datagram that is sent already.
    pub(super) fn begin(&mut self, kind: Kind) {
        self.clear();
        self.kind = Some(kind);
    }

    /// Adds a datagram, the `len` bytes that lie `skip` bytes behind the first of `pieces`. False if it does not belong to this run, or
    /// does not fit.
    pub(super) fn add(&mut self, kind: Kind, pieces: &[Segment], skip: usize, len: usize) -> bool {
        let is_first = self.ends.is_empty();
        let fits = len > 0 && self.ends.len() < DATAGRAMS && self.len + len <= BYTES;
        if self.kind != Some(kind) || !fits || self.closed || (!is_first && len > self.size) {
            return false;
        }
        let before = self.pieces.len();
        part_of(pieces, skip, len, &mut self.pieces);
        if self.pieces.len() > PIECES_MAX {
            // The kernel would refuse them all.
            self.pieces.truncate(before);
            return false;
        }
        if is_first {
            self.size = len;
        }
        self.closed = len < self.size;
        self.len += len;
        self.ends.push(self.pieces.len());
        true
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.ends.len()
    }

    /// All of them, and the length at which they are to be cut.
    pub(super) fn all(&self) -> (&[Segment], u16) {
        // No truncation: at most `BYTES`.
        (&self.pieces, self.size as u16)
    }

    /// One after the other.
    pub(super) fn each(&self) -> impl Iterator<Item = &[Segment]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.pieces[start..*end])
    }

    pub(super) fn clear(&mut self) {
        self.kind = None;
        self.pieces.clear();
        self.ends.clear();
        (self.len, self.size, self.closed) = (0, 0, false);
    }
}
