//! Blocks of a pcapng file (draft-ietf-opsawg-pcapng), as far as weft writes them: a section, its interfaces, packets, and statistics at the end.
//!
//! Everything is written with the byte order of this machine, as section 3.1 has it, and times are in nanoseconds since 1970.

use weft_dataplane::{CaptureCounters, CapturedFrame};
use weft_switch::MacAddr;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
/// How every such file begins, whatever its byte order.
pub(super) const MAGIC: [u8; 4] = SECTION_HEADER.to_ne_bytes();
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Link type: Ethernet.
const ETHERNET: u16 = 1;
/// Of packets: where they came from (section 4.3.1, `epb_flags`).
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// Times are in billionths of a second.
const NANOSECONDS: u8 = 9;

/// What is said about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) mac: MacAddr,
    pub(super) filter: String,
    /// At most so many bytes of a frame are there; `None`: all.
    pub(super) snap_len: Option<u32>,
}

/// The beginning of a file: a section of any length, and its interfaces.
pub(super) fn begin(into: &mut Vec<u8>, interfaces: &[Interface]) {
    block(into, SECTION_HEADER, |body| {
        body.extend(BYTE_ORDER_MAGIC.to_ne_bytes());
        body.extend(1_u16.to_ne_bytes());
        body.extend(0_u16.to_ne_bytes());
        body.extend((-1_i64).to_ne_bytes());
        option(body, 4, concat!("weft ", env!("CARGO_PKG_VERSION")).as_bytes());
        end_of_options(body);
    });
    for interface in interfaces {
        block(into, INTERFACE_DESCRIPTION, |body| {
            body.extend(ETHERNET.to_ne_bytes());
            body.extend([0; 2]);
            body.extend(interface.snap_len.unwrap_or(0).to_ne_bytes());
            option(body, 2, interface.name.as_bytes());
            option(body, 3, interface.description.as_bytes());
            option(body, 6, &interface.mac.0);
            option(body, 9, &[NANOSECONDS]);
            if !interface.filter.is_empty() {
                // The first byte says that it is a text.
                option(body, 11, &[&[0], interface.filter.as_bytes()].concat());
            }
            end_of_options(body);
        });
    }
}

/// A frame.
pub(super) fn packet(into: &mut Vec<u8>, frame: &CapturedFrame<'_>) {
    block(into, ENHANCED_PACKET, |body| {
        // No truncation: there are at most as many interfaces as ports, and no longer frames than can be carried.
        body.extend((frame.interface as u32).to_ne_bytes());
        time(body, frame.at_ns);
        body.extend((frame.bytes.len() as u32).to_ne_bytes());
        body.extend((frame.len as u32).to_ne_bytes());
        body.extend(frame.bytes);
        pad(body);
        let direction = if frame.is_inward { INBOUND } else { OUTBOUND };
        option(body, 2, &direction.to_ne_bytes());
        if frame.lost > 0 {
            option(body, 4, &frame.lost.to_ne_bytes());
        }
        end_of_options(body);
    });
}

/// The end of a file: what became of the frames of each interface.
pub(super) fn end(into: &mut Vec<u8>, counters: &[CaptureCounters], (from_ns, to_ns): (u64, u64)) {
    for (interface, counters) in counters.iter().enumerate() {
        block(into, INTERFACE_STATISTICS, |body| {
            body.extend((interface as u32).to_ne_bytes());
            time(body, to_ns);
            for (code, at) in [(2, from_ns), (3, to_ns)] {
                let mut bytes = Vec::with_capacity(8);
                time(&mut bytes, at);
                option(body, code, &bytes);
            }
            let CaptureCounters { seen, picked, lost } = *counters;
            // isb_ifrecv, isb_ifdrop, isb_filteraccept, isb_usrdeliv.
            for (code, count) in [(4, seen), (5, lost), (6, picked), (8, picked.saturating_sub(lost))] {
                option(body, code, &count.to_ne_bytes());
            }
            end_of_options(body);
        });
    }
}

/// Its length stands before the body and behind it.
fn block(into: &mut Vec<u8>, kind: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let start = into.len();
    into.extend(kind.to_ne_bytes());
    into.extend([0; 4]);
    write(into);
    // No truncation: a frame and a few options.
    let len = (into.len() - start + 4) as u32;
    into.extend(len.to_ne_bytes());
    into[start + 4..start + 8].copy_from_slice(&len.to_ne_bytes());
}

/// The upper half comes first, whatever the byte order.
fn time(body: &mut Vec<u8>, at_ns: u64) {
    body.extend(((at_ns >> 32) as u32).to_ne_bytes());
    body.extend((at_ns as u32).to_ne_bytes());
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    // No truncation: names, and filters of at most 2,048 bytes.
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    body.extend(value);
    pad(body);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

/// Everything begins at a multiple of four; blocks themselves have such a length.
fn pad(body: &mut Vec<u8>) {
    while !body.len().is_multiple_of(4) {
        body.push(0);
    }
}

/// Looks at a file as it goes by in parts.
#[derive(Debug, Default)]
pub(crate) struct Passing {
    bytes: u64,
    frames: u64,
    has_end: bool,
    /// The beginning of a block, as far as it has come: its type and its length, both in this machine's order, as they were written.
    head: Vec<u8>,
    /// What is left of the block at hand.
    rest: usize,
}

impl Passing {
    /// The next part of the file.
    pub(crate) fn pass(&mut self, mut part: &[u8]) {
        self.bytes += part.len() as u64;
        while !part.is_empty() {
            part = &part[take(&mut self.rest, part.len())..];
            let (head, behind) = part.split_at(part.len().min(8 - self.head.len()));
            self.head.extend_from_slice(head);
            part = behind;
            if let [kind @ .., _, _, _, _] = &self.head[..]
                && let (Ok(kind), Some(len)) = (kind.try_into().map(u32::from_ne_bytes), self.head.last_chunk())
            {
                self.frames += u64::from(kind == ENHANCED_PACKET);
                self.has_end |= kind == INTERFACE_STATISTICS;
                self.rest = (u32::from_ne_bytes(*len) as usize).saturating_sub(8);
                self.head.clear();
            }
        }
    }

    /// The bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The frames so far.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// True if its statistics were there, and all of the last block.
    pub(crate) fn is_complete(&self) -> bool {
        self.has_end && self.rest == 0 && self.head.is_empty()
    }
}

/// Takes at most `most` from a number; says how many.
fn take(number: &mut usize, most: usize) -> usize {
    let taken = most.min(*number);
    *number -= taken;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_looked_at_in_whatever_parts_it_comes() {
        let block = |kind: u32, len: u32| [&kind.to_ne_bytes()[..], &len.to_ne_bytes(), &vec![6; len as usize - 8]].concat();
        let file =
            [block(SECTION_HEADER, 28), block(1, 20), block(ENHANCED_PACKET, 96), block(ENHANCED_PACKET, 1500), block(5, 24)];
        for size in [1, 3, 7, 8, 9, 64, 5000] {
            let mut passing = Passing::default();
            let whole = file.concat();
            whole.chunks(size).for_each(|part| passing.pass(part));
            assert_eq!(
                (passing.frames(), passing.bytes(), passing.is_complete()),
                (2, whole.len() as u64, true),
                "in parts of {size}"
            );
            let mut passing = Passing::default();
            whole[..whole.len() - 1].chunks(size).for_each(|part| passing.pass(part));
            assert!(!passing.is_complete());
        }
    }
}
