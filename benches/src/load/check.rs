//! Whether what arrives is what was sent, to the last byte.
//!
//! Every frame carries the number of its *stream* and its place in it; from these and the two guests follow all its bytes. A
//! stream is what a switch must keep in order: one conversation over one queue pair of the sender. The payload behind
//! the numbers is a piece of a fixed noise, from another place for every frame, so a frame that got bytes of its
//! neighbour, of the one before in the same buffer, or of none is found out.
//!
//! What comes can be wrong in four ways that exclude each other: damaged, a duplicate, for somebody else, or out of order. What
//! did not come at all is the difference to what was sent, and none of the checker's business.

use std::sync::LazyLock;

use serde::Serialize;
use weft_guest::{GuestAddr, GuestMemory, Header};

use super::traffic::{ETHERNET_LEN, Traffic, fold, guest_of, is_introduction, is_question, sum, tags};

/// The stream's number and the place in it, at the start of the payload.
pub const MARK_LEN: usize = 12;
/// How far behind the newest frame of a stream a late one is still told from a duplicate.
const WINDOW: u64 = 256;
/// Noise starts within this many bytes, a prime, so that the places where it starts come round late.
const STARTS: u64 = 65_521;

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u64;
    let word = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    std::iter::repeat_with(word).take((STARTS as usize + 65_536) / 8 + 1).flat_map(u64::to_ne_bytes).collect()
});

/// What is left of a payload of `len` bytes behind the mark of a frame.
fn noise(stream: u32, place: u64, len: usize) -> &'static [u8] {
    let start = place.wrapping_mul(7919).wrapping_add(u64::from(stream).wrapping_mul(104_729)) % STARTS;
    &NOISE[start as usize..start as usize + len]
}

fn mark(stream: u32, place: u64) -> [u8; MARK_LEN] {
    let mut mark = [0; MARK_LEN];
    mark[..4].copy_from_slice(&stream.to_le_bytes());
    mark[4..].copy_from_slice(&place.to_le_bytes());
    mark
}

/// Writes the payload of a frame.
pub fn write_payload(memory: &GuestMemory, at: GuestAddr, len: usize, stream: u32, place: u64) {
    memory.write(at, &mark(stream, place));
    memory.write(at + MARK_LEN as u64, noise(stream, place, len - MARK_LEN));
}

/// What was found wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Frames that arrived whole, each once, whatever their order.
    pub intact: u64,
    /// Frames with a byte or a length that was not sent.
    pub damaged: u64,
    /// Frames that had arrived before.
    pub duplicated: u64,
    /// Frames that came after a later one of the same stream.
    pub reordered: u64,
    /// Frames whose VLAN tag came, went or changed on the way, which a switch may do.
    pub retagged: u64,
}

impl Findings {
    /// True if nothing is there that a switch must not do.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damaged == 0 && self.duplicated == 0 && self.reordered == 0
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            intact: self.intact + other.intact,
            damaged: self.damaged + other.damaged,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
            retagged: self.retagged + other.retagged,
        }
    }
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The place behind the newest frame.
    next: u64,
    /// Which of the places before it have been seen, at their number modulo the window.
    seen: [u64; (WINDOW / 64) as usize],
}

/// How a frame's place compares with those before it.
enum Order {
    Next,
    Late,
    Duplicate,
}

impl Stream {
    fn see(&mut self, place: u64) -> Order {
        let bit = |place: u64| ((place % WINDOW / 64) as usize, 1_u64 << (place % 64));
        if place >= self.next {
            // What is passed over, or falls out of the window, has not been seen.
            for skipped in self.next.max(place.saturating_sub(WINDOW))..place {
                let (word, mask) = bit(skipped);
                self.seen[word] &= !mask;
            }
            let (word, mask) = bit(place);
            self.seen[word] |= mask;
            self.next = place + 1;
            return Order::Next;
        }
        let (word, mask) = bit(place);
        if self.next - place <= WINDOW && self.seen[word] & mask != 0 {
            return Order::Duplicate;
        }
        self.seen[word] |= if self.next - place <= WINDOW { mask } else { 0 };
        Order::Late
    }
}

/// Checks everything that arrives at one guest.
#[derive(Debug)]
pub struct Checker {
    me: usize,
    traffic: Traffic,
    streams_max: u32,
    /// The streams and the findings by the guest that they come from.
    senders: Vec<(Vec<Stream>, Findings)>,
    /// Frames for another guest, as a switch sends them to all that does not know where that is.
    strays: u64,
    /// Damaged frames whose sender can't be told.
    unknown: u64,
    expected: Vec<u8>,
}

impl Checker {
    /// A checker for guest `me` of `guests`, each of which sends over `queues` pairs.
    #[must_use]
    pub fn new(traffic: Traffic, me: usize, guests: usize, queues: u16) -> Self {
        let streams_max = traffic.conversations() * u32::from(queues);
        Self { me, traffic, streams_max, senders: vec![Default::default(); guests], strays: 0, unknown: 0, expected: Vec::new() }
    }

    /// What was found wrong with the frames from a guest.
    #[must_use]
    pub fn findings(&self, from: usize) -> Findings {
        self.senders[from].1
    }

    /// Frames for another guest.
    #[must_use]
    pub fn strays(&self) -> u64 {
        self.strays
    }

    /// Damaged frames whose sender can't be told.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Checks one frame. True if it is one of those that are to arrive here, damaged or not: no stray, no duplicate
    /// and no introduction.
    pub fn check(&mut self, header: &Header, frame: &[u8]) -> bool {
        if frame.len() < ETHERNET_LEN {
            self.unknown += 1;
            return true;
        }
        if is_introduction(frame) || is_question(frame) {
            return false;
        }
        let sender = guest_of(&frame[6..12]).filter(|&from| from != self.me && from < self.senders.len());
        match (sender, guest_of(&frame[..6])) {
            (None, _) => {
                self.unknown += 1;
                true
            }
            (Some(from), Some(to)) if to != self.me && to != from && to < self.senders.len() => {
                self.strays += 1;
                false
            }
            (Some(from), _) => self.check_from(from, header, frame),
        }
    }

    fn check_from(&mut self, from: usize, header: &Header, frame: &[u8]) -> bool {
        let (tag, tags_len) = tags(frame);
        let Some((stream, place)) = self.compare(from, header, frame, tags_len) else {
            self.senders[from].1.damaged += 1;
            return true;
        };
        let sent = self.traffic.headers(from, self.me, stream % self.traffic.conversations());
        let (streams, findings) = &mut self.senders[from];
        if streams.len() <= stream as usize {
            streams.resize(stream as usize + 1, Stream::default());
        }
        match streams[stream as usize].see(place) {
            Order::Next => {}
            Order::Late => findings.reordered += 1,
            Order::Duplicate => {
                findings.duplicated += 1;
                return false;
            }
        }
        findings.intact += 1;
        findings.retagged += u64::from((tag, tags_len) != tags(sent.bytes()));
        true
    }

    /// The stream of a frame and its place there, if every byte of it is right, but for tags.
    fn compare(&mut self, from: usize, header: &Header, frame: &[u8], tags_len: usize) -> Option<(u32, u64)> {
        let headers_len = self.traffic.headers_len();
        let first = self.traffic.headers(from, self.me, 0);
        let (_, sent_tags_len) = tags(first.bytes());
        if frame.len() - tags_len != self.traffic.frame_len() - sent_tags_len {
            return None;
        }
        // Where the payload begins in this frame: tags may have come or gone.
        let payload = &frame[headers_len - sent_tags_len + tags_len..];
        let (stream, place) = payload.split_first_chunk()?;
        let (stream, place) = (u32::from_le_bytes(*stream), u64::from_le_bytes(*place.first_chunk()?));
        if stream >= self.streams_max || payload[MARK_LEN..] != *noise(stream, place, payload.len() - MARK_LEN) {
            return None;
        }
        let sent = self.traffic.headers(from, self.me, stream % self.traffic.conversations());
        self.expected.clear();
        self.expected.extend_from_slice(&sent.bytes()[..ETHERNET_LEN - 2]);
        self.expected.extend_from_slice(&frame[ETHERNET_LEN - 2..][..tags_len]);
        self.expected.extend_from_slice(&sent.bytes()[ETHERNET_LEN - 2 + sent_tags_len..]);
        self.expect_offload(header, payload, tags_len)?;
        (frame[..self.expected.len()] == self.expected[..]).then_some((stream, place))
    }

    /// Checks the virtio-net header. What is to be cut into segments must say so still; its checksum may have been completed.
    fn expect_offload(&mut self, header: &Header, payload: &[u8], tags_len: usize) -> Option<()> {
        let sent = self.traffic.virtio_header();
        let Some(at) = self.traffic.tcp_checksum_at() else {
            return (*header == Header { num_buffers: header.num_buffers, ..sent }).then_some(());
        };
        if (header.gso_type, header.gso_size) != (sent.gso_type, sent.gso_size) {
            return None;
        }
        let (_, sent_tags_len) = tags(self.traffic.headers(0, 1, 0).bytes());
        let at = at - sent_tags_len + tags_len;
        if header.flags & Header::NEEDS_CSUM != 0 {
            let start = at - usize::from(sent.csum_offset);
            return ((header.csum_start, header.csum_offset) == (start as u16, sent.csum_offset)).then_some(());
        }
        // The field holds the sum of the pseudo header, so the sum over everything is that of the whole.
        let tcp = at - usize::from(sent.csum_offset);
        let complete = !fold(sum(&self.expected[tcp..]) + sum(payload));
        self.expected[at..at + 2].copy_from_slice(&complete.to_be_bytes());
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::options::{Options, Pace, Payload, Rings, Until};

    const TCP: Payload = Payload::Tcp { segment_len: 1460 };

    fn traffic(payload: Payload, frame_len: usize, vlans: &[u16]) -> Traffic {
        Traffic::of(&Options {
            sockets: Vec::new(),
            listen: false,
            frame_len,
            payload,
            until: Until::Frames(1),
            pace: Pace::Open,
            both_ways: false,
            stations: 3,
            flows: 5,
            vlans: vlans.to_vec(),
            trunk: None,
            check: true,
            rings: Rings {
                size: 256,
                queues: 2,
                packed: false,
                in_order: false,
                mergeable: true,
                indirect: false,
                chain: 1,
                spread: None,
            },
        })
    }

    fn frame(traffic: &Traffic, stream: u32, place: u64) -> Vec<u8> {
        let headers = traffic.headers(0, 1, stream % traffic.conversations());
        let payload_len = traffic.frame_len() - headers.bytes().len();
        [headers.bytes(), &mark(stream, place), noise(stream, place, payload_len - MARK_LEN)].concat()
    }

    fn checker(traffic: &Traffic) -> Checker {
        Checker::new(traffic.clone(), 1, 3, 2)
    }

    /// What a checker says of frames that all come with the header that they were sent with.
    fn findings(traffic: &Traffic, frames: &[Vec<u8>]) -> Findings {
        let mut checker = checker(traffic);
        for frame in frames {
            checker.check(&traffic.virtio_header(), frame);
        }
        checker.findings(0)
    }

    fn every_kind() -> [Traffic; 5] {
        [
            traffic(Payload::Plain, 60, &[]),
            traffic(Payload::Plain, 60, &[7, 8]),
            traffic(Payload::Udp, 60, &[7]),
            traffic(Payload::Udp, 1514, &[]),
            traffic(TCP, 3000, &[7]),
        ]
    }

    #[test]
    fn what_was_sent_is_intact() {
        for traffic in every_kind() {
            let frames: Vec<_> = (0..1000).map(|nth| frame(&traffic, nth % 10, u64::from(nth / 10))).collect();
            assert_eq!(findings(&traffic, &frames), Findings { intact: 1000, ..Findings::default() }, "{traffic:?}");
        }
    }

    #[test]
    fn one_wrong_bit_anywhere_is_damage() {
        for traffic in every_kind() {
            let good = frame(&traffic, 4, 99);
            for at in 0..good.len() {
                for bit in [0, 7] {
                    let mut bad = good.clone();
                    bad[at] ^= 1 << bit;
                    let mut checker = checker(&traffic);
                    checker.check(&traffic.virtio_header(), &bad);
                    let found = checker.findings(0);
                    // Another guest's address makes it a stray, another sender's that sender's.
                    let reported = found.damaged + checker.unknown() + checker.strays() + checker.findings(2).damaged;
                    // The VLAN and its priority may be changed by a switch.
                    let retagged = found.retagged == 1 && (14..16).contains(&at);
                    assert!(reported == 1 || retagged, "{traffic:?}, byte {at}, bit {bit}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn a_frame_that_is_cut_or_grows_is_damaged() {
        for traffic in every_kind() {
            let good = frame(&traffic, 4, 99);
            let longer = [&good[..], &[0]].concat();
            let bad = [good[..good.len() - 1].to_vec(), longer, good[..20].to_vec(), good[..14].to_vec()];
            assert_eq!(findings(&traffic, &bad), Findings { damaged: 4, ..Findings::default() }, "{traffic:?}");
            let mut checker = checker(&traffic);
            checker.check(&Header::default(), &good[..13]);
            assert_eq!(checker.unknown(), 1);
        }
    }

    #[test]
    fn frames_with_each_other_s_bytes_are_damaged() {
        let traffic = traffic(Payload::Udp, 1514, &[]);
        let (a, b) = (frame(&traffic, 4, 99), frame(&traffic, 4, 100));
        for cut in [60, 64, 100, 1500] {
            let mixed = [&a[..cut], &b[cut..]].concat();
            assert_eq!(findings(&traffic, &[mixed]).damaged, 1, "cut at {cut}");
        }
    }

    #[test]
    fn late_frames_and_duplicates_are_told_apart() {
        let traffic = traffic(Payload::Plain, 60, &[]);
        let order = |places: &[u64]| {
            let frames: Vec<_> = places.iter().map(|&place| frame(&traffic, 3, place)).collect();
            let Findings { intact, duplicated, reordered, .. } = findings(&traffic, &frames);
            (intact, duplicated, reordered)
        };
        assert_eq!(order(&[0, 1, 2, 3]), (4, 0, 0));
        assert_eq!(order(&[0, 5, 9]), (3, 0, 0), "what is missing is not out of order");
        assert_eq!(order(&[0, 2, 1, 3]), (4, 0, 1));
        assert_eq!(order(&[0, 1, 1, 2, 0]), (3, 2, 0));
        assert_eq!(order(&[0, 2, 1, 1, 2]), (3, 2, 1));
        assert_eq!(order(&[10, 400, 399, 300, 10, 399]), (5, 1, 3), "what is far behind counts as late");
        assert_eq!(order(&[0, 256, 0, 512, 256]), (5, 0, 2), "a place in the window is not mistaken for an older one");
    }

    #[test]
    fn streams_are_independent() {
        let traffic = traffic(Payload::Plain, 60, &[]);
        let frames: Vec<_> =
            [(0, 5), (1, 0), (2, 3), (1, 1), (0, 6)].map(|(stream, place)| frame(&traffic, stream, place)).into();
        assert_eq!(findings(&traffic, &frames), Findings { intact: 5, ..Findings::default() });
    }

    #[test]
    fn a_switch_may_push_and_pop_tags() {
        let tag = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 9], &frame[12..]].concat();
        for (traffic, retag) in [
            (traffic(Payload::Udp, 100, &[]), tag as fn(&[u8]) -> Vec<u8>),
            (traffic(Payload::Udp, 100, &[7]), |frame| [&frame[..12], &frame[16..]].concat()),
            (traffic(Payload::Udp, 100, &[7]), tag),
        ] {
            let frames = [retag(&frame(&traffic, 0, 0)), frame(&traffic, 0, 1)];
            assert_eq!(findings(&traffic, &frames), Findings { intact: 2, retagged: 1, ..Findings::default() }, "{traffic:?}");
        }
    }

    #[test]
    fn questions_of_the_switch_are_no_findings() {
        let mut checker = checker(&traffic(Payload::Plain, 60, &[]));
        for to in [[1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            let question = [&to[..], &[2, 1, 2, 3, 4, 5], &[0; 40]].concat();
            assert!(!checker.check(&Header::default(), &question));
        }
        assert_eq!(checker.unknown(), 0);
    }

    #[test]
    fn introductions_that_come_late_are_no_findings() {
        for traffic in every_kind() {
            let mut checker = checker(&traffic);
            for introduction in traffic.introductions(0, 1) {
                assert!(!checker.check(&Header::default(), &introduction));
            }
            assert_eq!((checker.findings(0), checker.unknown(), checker.strays()), (Findings::default(), 0, 0));
        }
    }

    #[test]
    fn frames_for_others_are_strays() {
        let traffic = traffic(Payload::Plain, 60, &[]);
        let mut other = frame(&traffic, 0, 0);
        other[3] = 2;
        let mut checker = checker(&traffic);
        assert!(!checker.check(&Header::default(), &other));
        assert_eq!((checker.strays(), checker.findings(0)), (1, Findings::default()));
    }

    #[test]
    fn an_offload_must_arrive_as_it_was_asked_for() {
        let traffic = traffic(TCP, 3000, &[]);
        let good = frame(&traffic, 0, 0);
        let sent = traffic.virtio_header();
        let outcome = |header: Header, frame: &[u8]| {
            let mut checker = checker(&traffic);
            checker.check(&header, frame);
            checker.findings(0)
        };
        assert_eq!(outcome(Header { num_buffers: 2, ..sent }, &good).intact, 1);
        assert_eq!(outcome(Header { gso_size: 1459, ..sent }, &good).damaged, 1);
        assert_eq!(outcome(Header { gso_type: 0, ..sent }, &good).damaged, 1);
        assert_eq!(outcome(Header { csum_start: 30, ..sent }, &good).damaged, 1);
        // A completed checksum is as good as one that is still asked for.
        let mut complete = good.clone();
        let checksum = !fold(sum(&good[34..]));
        complete[50..52].copy_from_slice(&checksum.to_be_bytes());
        let flags = 0;
        assert_eq!(outcome(Header { flags, ..sent }, &complete).intact, 1);
        assert_eq!(outcome(Header { flags, ..sent }, &good).damaged, 1);
    }
}
