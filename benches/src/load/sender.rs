//! The sending half of a guest.
//!
//! The frames of a ring are the conversations with all other guests in turn. If the ring holds a whole turn, they are written
//! once and only go round; otherwise, and when the receivers check them, each is written again before it is sent.

use weft_guest::{GuestAddr, GuestError, GuestMemory, PreparedSend};

use super::check::write_payload;
use super::guests::Guests;
use super::options::{Options, Until};
use super::traffic::{Headers, Traffic};
use super::{BURST, LoadError};

/// The sending half of a guest.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) guest: usize,
    /// Frames that the switch was offered.
    pub(super) sent: u64,
    /// Looks at which frames were to be sent and the ring had no room.
    pub(super) waits: u64,
    /// Frames that may be sent in all.
    limit: u64,
    rings: Vec<PreparedSend>,
    /// The pair whose turn it is.
    turn: usize,
    frames: Frames,
}

/// Which frame follows which.
#[derive(Debug)]
struct Frames {
    from: usize,
    others: Vec<usize>,
    traffic: Traffic,
    queues: u64,
    /// Frames that a ring holds.
    chains: u64,
    rewrite: bool,
    check: bool,
    /// Frames sent over each pair.
    sent: Vec<u64>,
    /// Frames sent in each stream to each other guest, if they are counted for a check.
    streams: Vec<Vec<u64>>,
}

impl Sender {
    pub(super) fn new(
        guest: usize,
        others: Vec<usize>,
        rings: Vec<PreparedSend>,
        chains: u16,
        options: &Options,
        traffic: &Traffic,
    ) -> Self {
        let limit = match options.until {
            Until::Elapsed(_) => u64::MAX,
            Until::Frames(frames) => frames,
        };
        let frames = Frames::new(guest, others, rings.len(), chains, options.check, traffic);
        Self { guest, sent: 0, waits: 0, limit, rings, turn: 0, frames }
    }

    pub(super) fn ring(&self, pair: usize) -> &PreparedSend {
        &self.rings[pair]
    }

    /// The headers of the `nth` frame of a pair.
    pub(super) fn headers(&self, pair: usize, nth: u64) -> Headers {
        let (to, conversation) = self.frames.nth(pair, nth);
        self.frames.traffic.headers(self.guest, self.frames.others[to], conversation)
    }

    /// True when everything was sent that is to be sent.
    pub(super) fn is_done(&self) -> bool {
        self.sent >= self.limit
    }

    /// Offers a burst, as far as there is room; returns how many frames.
    pub(super) fn send(&mut self, guests: &mut Guests, room: u64) -> Result<u64, LoadError> {
        let burst = room.min(BURST.into()).min(self.limit - self.sent) as u16;
        if burst == 0 {
            return Ok(0);
        }
        let pair = self.turn;
        self.turn = if pair + 1 == self.rings.len() { 0 } else { pair + 1 };
        let (ring, frames) = (&mut self.rings[pair], &mut self.frames);
        let sent = guests.with(self.guest, |guest| -> Result<u16, GuestError> {
            if frames.rewrite {
                ring.send_each(guest, burst, |memory, at| frames.write_next(pair, memory, at))
            } else {
                let sent = ring.send(guest, burst)?;
                frames.sent[pair] += u64::from(sent);
                Ok(sent)
            }
        })?;
        self.waits += u64::from(sent == 0);
        self.sent += u64::from(sent);
        Ok(sent.into())
    }

    /// Frames that were sent to each other guest.
    pub(super) fn sent_to(&self) -> Vec<(usize, u64)> {
        self.frames.sent_to()
    }
}

impl Frames {
    fn new(from: usize, others: Vec<usize>, queues: usize, chains: u16, check: bool, traffic: &Traffic) -> Self {
        let queues_u64 = queues as u64;
        let streams = if check { traffic.conversations() as usize * queues } else { 0 };
        let mut frames = Self {
            from,
            streams: vec![vec![0; streams]; others.len()],
            others,
            traffic: traffic.clone(),
            queues: queues_u64,
            chains: chains.into(),
            rewrite: check,
            check,
            sent: vec![0; queues],
        };
        frames.rewrite |= frames.turn_len() > frames.chains;
        frames
    }

    /// After how many frames of a pair the same ones come again.
    fn turn_len(&self) -> u64 {
        let conversations = u64::from(self.traffic.conversations());
        self.others.len() as u64 * conversations / gcd(conversations, self.queues)
    }

    /// To which of the others the `nth` frame of a pair goes, and in which conversation.
    fn nth(&self, pair: usize, nth: u64) -> (usize, u32) {
        let others = self.others.len() as u64;
        let turn = nth / others * self.queues + pair as u64;
        ((nth % others) as usize, (turn % u64::from(self.traffic.conversations())) as u32)
    }

    fn write_next(&mut self, pair: usize, memory: &GuestMemory, at: GuestAddr) {
        let (to, conversation) = self.nth(pair, self.sent[pair]);
        self.sent[pair] += 1;
        let headers = self.traffic.headers(self.from, self.others[to], conversation);
        memory.write(at, headers.bytes());
        if self.check {
            let stream = pair as u32 * self.traffic.conversations() + conversation;
            let place = &mut self.streams[to][stream as usize];
            let headers_len = headers.bytes().len();
            write_payload(memory, at + headers_len as u64, self.traffic.frame_len() - headers_len, stream, *place);
            *place += 1;
        }
    }

    fn sent_to(&self) -> Vec<(usize, u64)> {
        let others = self.others.len() as u64;
        // Frames that are never rewritten begin again with every lap of the ring.
        let lap = if self.rewrite { u64::MAX } else { self.chains };
        let up_to = |frames: u64, to: u64| frames / others + u64::from(frames % others > to);
        let count = |to: usize| {
            let to_u64 = to as u64;
            self.sent.iter().map(|&sent| sent / lap * up_to(lap, to_u64) + up_to(sent % lap, to_u64)).sum()
        };
        (0..self.others.len()).map(|to| (self.others[to], count(to))).collect()
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
