//! Moving bytes between guests, and between guests and private memory.
//!
//! A frame is copied once, from the sender's buffers into the receiver's. Most are one piece on both sides: [`write_frame`] is for
//! those. Whatever is spread over several takes a [`Cursor`] on each side.

use crate::memory::Segment;

/// Up to this length a few moves in line are quicker than the C library's dispatch.
const SHORT: usize = 256;
const BLOCK: usize = 32;
/// Bytes of a cache line.
pub(crate) const LINE_LEN: usize = 64;

/// Asks for the first bytes at `ptr`, which are to be read soon.
#[inline(always)]
pub(crate) fn prefetch(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which may name any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

impl Segment {
    /// The first `N` bytes from `offset` on, if there are as many.
    #[inline(always)]
    pub(crate) fn read_at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if self.len < offset + N {
            return None;
        }
        let mut bytes = [0; N];
        // SAFETY: the piece is mapped memory with at least `N` bytes from `offset` on; private memory can't overlap it.
        unsafe { self.ptr.add(offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), N) };
        Some(bytes)
    }

    /// Copies `N` bytes from `offset` on to private memory; false when there are not as many.
    #[inline(always)]
    pub(crate) fn read_into<const N: usize>(&self, offset: usize, into: &mut [u8; N]) -> bool {
        if self.len < offset + N {
            return false;
        }
        // SAFETY: the piece is mapped memory with at least `N` bytes from `offset` on; private memory can't overlap it.
        unsafe { self.ptr.add(offset).copy_to_nonoverlapping(into.as_mut_ptr(), N) };
        true
    }
}

/// Puts two private headers and `len` bytes, copied from `offset` on in another guest's piece, into a piece. False when either
/// piece has not as many bytes.
#[inline(always)]
pub(crate) fn write_frame<const A: usize, const B: usize>(
    to: &Segment,
    headers: (&[u8; A], &[u8; B]),
    from: &Segment,
    offset: usize,
    len: usize,
) -> bool {
    if from.len < offset + len || to.len < A + B + len {
        return false;
    }
    // SAFETY: both pieces are mapped memory with as many bytes, `to` offered for writing, and private memory can't overlap it.
    // The pieces belong to different ports and so to different mappings, which can't overlap in our address space; a guest that
    // shares one page twice only garbles its own data, as its own writes do anyway.
    unsafe {
        copy(from.ptr.add(offset), to.ptr.add(A + B), len);
        to.ptr.copy_from_nonoverlapping(headers.0.as_ptr(), A);
        to.ptr.add(A).copy_from_nonoverlapping(headers.1.as_ptr(), B);
    }
    true
}

/// The same for a frame in two pieces: what follows `offset` in the first, and all of the second.
#[inline(always)]
pub(crate) fn write_two_pieces<const A: usize, const B: usize>(
    to: &Segment,
    headers: (&[u8; A], &[u8; B]),
    (first, offset): (&Segment, usize),
    second: &Segment,
) -> bool {
    let Some(len) = first.len.checked_sub(offset) else { return false };
    if to.len < A + B + len + second.len {
        return false;
    }
    // SAFETY: as above; either piece may be private memory as well.
    unsafe {
        copy(first.ptr.add(offset), to.ptr.add(A + B), len);
        copy(second.ptr, to.ptr.add(A + B + len), second.len);
        to.ptr.copy_from_nonoverlapping(headers.0.as_ptr(), A);
        to.ptr.add(A).copy_from_nonoverlapping(headers.1.as_ptr(), B);
    }
    true
}

/// # Safety
/// `len` bytes must be mapped at both, and must not overlap.
#[inline(always)]
unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
    if !(BLOCK..=SHORT).contains(&len) {
        // SAFETY: the caller's promise.
        unsafe { target.copy_from_nonoverlapping(source, len) };
        return;
    }
    // Whole blocks, then the last one, which may overlap the one before.
    let mut done = 0;
    while done + BLOCK < len {
        // SAFETY: `done + BLOCK` is below `len`.
        unsafe { target.add(done).copy_from_nonoverlapping(source.add(done), BLOCK) };
        done += BLOCK;
    }
    let last = len - BLOCK;
    // SAFETY: the last `BLOCK` of at least as many bytes.
    unsafe { target.add(last).copy_from_nonoverlapping(source.add(last), BLOCK) };
}

/// A place in a list of pieces of guest memory, from which bytes are taken or to which they are given, in order.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    /// What is left of the first piece.
    piece: Segment,
    /// The others.
    rest: &'a [Segment],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(pieces: &'a [Segment]) -> Self {
        Self { piece: Segment::EMPTY, rest: pieces }
    }

    pub(crate) fn of_one(piece: Segment) -> Self {
        Self { piece, rest: &[] }
    }

    /// This cursor, `len` bytes further on.
    pub(crate) fn skip(mut self, mut len: usize) -> Self {
        while let Some(run) = (len > 0).then(|| self.next_run(len)).flatten() {
            len -= run.len;
        }
        self
    }

    /// Copies the next `N` bytes to private memory.
    pub(crate) fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes).then_some(bytes)
    }

    /// Copies the next `into.len()` bytes to private memory; false when there are not that many.
    #[inline]
    pub(crate) fn read(&mut self, mut into: &mut [u8]) -> bool {
        while !into.is_empty() {
            let Some(here) = self.next_run(into.len()) else { return false };
            let (now, later) = into.split_at_mut(here.len);
            // SAFETY: `here` is mapped guest memory, and private memory can't overlap it.
            unsafe { here.ptr.copy_to_nonoverlapping(now.as_mut_ptr(), here.len) };
            into = later;
        }
        true
    }

    /// Copies private bytes to the next place; false when there is not enough room.
    #[inline]
    pub(crate) fn write(&mut self, mut from: &[u8]) -> bool {
        while !from.is_empty() {
            let Some(here) = self.next_run(from.len()) else { return false };
            let (now, later) = from.split_at(here.len);
            // SAFETY: `here` is mapped guest memory that the guest offered for writing; private memory can't overlap it.
            unsafe { here.ptr.copy_from_nonoverlapping(now.as_ptr(), here.len) };
            from = later;
        }
        true
    }

    /// Copies the next `len` bytes of another guest's memory to the next place; false when either ends before.
    #[inline]
    pub(crate) fn copy_from(&mut self, other: &mut Cursor<'_>, mut len: usize) -> bool {
        while len > 0 {
            let Some(source) = other.next_run(len) else { return false };
            let mut done = 0;
            while done < source.len {
                let Some(target) = self.next_run(source.len - done) else {
                    return false;
                };
                // SAFETY: both are mapped guest memory, `target` offered for writing. They belong to different ports and
                // so to different mappings, which can't overlap in our address space; a guest that shares one
                // page twice only garbles its own data, as `copy` and the guest's own writes do anyway.
                unsafe { target.ptr.copy_from_nonoverlapping(source.ptr.add(done), target.len) };
                done += target.len;
            }
            len -= source.len;
        }
        true
    }

    /// The next contiguous piece, at most `len` bytes long and never empty; it counts as done afterwards.
    #[inline]
    fn next_run(&mut self, len: usize) -> Option<Segment> {
        while self.piece.len == 0 {
            (self.piece, self.rest) = self.rest.split_first().map(|(piece, rest)| (*piece, rest))?;
        }
        let run = Segment { ptr: self.piece.ptr, len: len.min(self.piece.len) };
        // SAFETY: `run.len` is at most the piece's length.
        self.piece = Segment { ptr: unsafe { self.piece.ptr.add(run.len) }, len: self.piece.len - run.len };
        Some(run)
    }
}
