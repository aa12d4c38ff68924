//! The half of a connection that goes from the socket to the guest.
//!
//! Data stay in the socket until the guest has acknowledged them: what is sent, or sent again, is read without being taken out. So the
//! kernel's buffer is the only one there is, and what the guest doesn't take makes the far end wait.

use std::time::Duration;

use super::TcpSettings;
use super::rtt::Rtt;
use super::segment::Segment;
use super::seq::Seq;
use crate::Timestamp;

/// Acknowledged data are taken out of the socket when they are as much as this. Less may wait a little: that is a system call less for each
/// small answer.
const DISCARD_AT: u32 = 32 * 1024;
/// But what came in pieces as large as this must not wait once the guest has all: the kernel counts whole buffers, and a few bytes left in a
/// large one may keep the far end from sending.
const BULK: u32 = 4096;
const DISCARD_AFTER: Duration = Duration::from_millis(10);
/// The most bytes that are sent at a time: what fits into an IPv4 packet with its headers.
pub(super) const BURST_MAX: u32 = 65_535 - 40;

/// Data for a guest, from the socket on.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToGuest {
    /// The first number that isn't acknowledged.
    pub(super) una: Seq,
    /// The number that is sent next.
    pub(super) nxt: Seq,
    /// The number behind all that was ever sent.
    pub(super) max: Seq,
    /// Bytes that the guest takes from `una` on, and the most that it ever took.
    window: u32,
    window_max: u32,
    /// By how many bits the guest shifts its windows.
    pub(super) shift: u8,
    /// The segment that brought the window (RFC 9293, section 3.10.7.4).
    wl1: Seq,
    wl2: Seq,
    /// The most data in one segment to the guest.
    pub(super) mss: u32,
    /// There may be data in the socket that were not looked at.
    pub(super) readable: bool,
    /// The far end has ended its side, perhaps behind data that were not looked at.
    pub(super) hangup: bool,
    /// The number of our FIN, once it is known.
    fin_at: Option<Seq>,
    /// The guest has no room for more.
    pub(super) blocked: bool,
    /// Bytes before `una` that are still in the socket, when they have been there for long enough, and whether they must not wait.
    held: u32,
    pub(super) discard_at: Option<Timestamp>,
    bulk: bool,
    /// The segment at `una` is to be sent again.
    resend: bool,
    dup_acks: u8,
    /// Up to where numbers must be acknowledged for a recovery to be over (RFC 6582).
    recover: Option<Seq>,
    /// The most that may be on its way: small after a loss, and doubled with each answer.
    flight_max: u32,
    rtt: Rtt,
    /// What is timed: a number, and when what is before it was sent.
    timing: Option<(Seq, Timestamp)>,
    /// When something is sent again, or the guest is asked for a window.
    pub(super) timer: Option<Timestamp>,
    /// How often the timer ran out without an answer.
    pub(super) unanswered: u8,
}

/// What the timer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// Nothing yet.
    None,
    /// What is on its way is sent again.
    Resend,
    /// The guest is asked for its window.
    Probe,
}

impl ToGuest {
    pub(super) fn new(iss: Seq, settings: &TcpSettings) -> Self {
        Self {
            una: iss,
            nxt: iss,
            max: iss,
            window: 0,
            window_max: 0,
            shift: 0,
            wl1: Seq(0),
            wl2: Seq(0),
            mss: u32::from(settings.mss),
            readable: false,
            hangup: false,
            fin_at: None,
            blocked: false,
            held: 0,
            discard_at: None,
            bulk: false,
            resend: false,
            dup_acks: 0,
            recover: None,
            flight_max: u32::MAX,
            rtt: Rtt::new(settings.timeout_initial, settings.timeout_min),
            timing: None,
            timer: None,
            unanswered: 0,
        }
    }

    /// What the guest's SYN says. `RFC 9293, section 3.7.1`: who names no size takes 536 bytes.
    pub(super) fn note_syn(&mut self, syn: &Segment) {
        const MSS_DEFAULT: u16 = 536;
        const MSS_MIN: u16 = 64;
        self.mss = self.mss.min(syn.mss.unwrap_or(MSS_DEFAULT).max(MSS_MIN).into());
        self.shift = syn.window_shift.unwrap_or(0);
        (self.wl1, self.wl2) = (syn.seq, syn.ack);
        // Never shifted in a SYN.
        self.window = syn.window.into();
        self.window_max = self.window;
    }

    /// Our SYN goes out, for the first time or again.
    pub(super) fn syn_sent(&mut self, now: Timestamp) {
        (self.nxt, self.max) = (self.una.plus(1), self.una.plus(1));
        self.timer = Some(now.after(self.rtt.timeout()));
    }

    /// The guest has acknowledged our SYN.
    pub(super) fn greeted(&mut self, segment: &Segment) {
        (self.una, self.nxt) = (self.max, self.max);
        (self.timer, self.unanswered) = (None, 0);
        self.rtt.relax();
        (self.wl1, self.wl2) = (segment.seq, segment.ack);
        if !segment.flags.has(super::Flags::SYN) {
            self.window = u32::from(segment.window) << self.shift;
            self.window_max = self.window_max.max(self.window);
        }
    }

    /// Bytes on their way to the guest; our SYN and FIN count.
    pub(super) fn outstanding(&self) -> u32 {
        self.max.beyond(self.una)
    }

    /// True once the guest has acknowledged our FIN.
    pub(super) fn is_done(&self) -> bool {
        self.fin_at.is_some_and(|fin| self.una.is_after(fin))
    }

    /// True once our FIN was sent.
    pub(super) fn has_ended(&self) -> bool {
        self.fin_at.is_some_and(|fin| self.max.is_after(fin))
    }

    /// Takes an acknowledgment and the window that comes with it. False for one of something that was never sent.
    pub(super) fn acknowledge(&mut self, now: Timestamp, segment: &Segment) -> bool {
        let ack = segment.ack;
        if ack.is_after(self.max) {
            return false;
        }
        let window_before = self.window;
        let is_newer = segment.seq.is_after(self.wl1) || (segment.seq == self.wl1 && !self.wl2.is_after(ack));
        if is_newer && !self.una.is_after(ack) {
            (self.wl1, self.wl2) = (segment.seq, ack);
            self.window = u32::from(segment.window) << self.shift;
            self.window_max = self.window_max.max(self.window);
        }
        if ack.is_after(self.una) {
            self.advance(now, ack);
        } else if ack == self.una {
            if self.outstanding() == 0 || self.window == 0 {
                self.unanswered = 0;
            }
            if self.window > window_before && self.outstanding() == 0 {
                // It was closed.
                self.timer = None;
                self.rtt.relax();
            }
            // RFC 5681, section 2.
            if segment.is_empty() && self.window == window_before && self.outstanding() > 0 {
                self.count_duplicate();
            }
        }
        true
    }

    fn advance(&mut self, now: Timestamp, ack: Seq) {
        let fin = u32::from(self.fin_at.is_some_and(|fin| ack.is_after(fin)));
        let acked = ack.beyond(self.una);
        self.held += acked - fin;
        self.una = ack;
        if self.held > 0 {
            self.discard_at.get_or_insert(now.after(DISCARD_AFTER));
        }
        self.nxt = self.nxt.max(ack);
        self.dup_acks = 0;
        self.resend = false;
        if let Some((number, since)) = self.timing
            && !number.is_after(ack)
        {
            self.rtt.sample(now.since(since));
            self.timing = None;
        }
        match self.recover {
            Some(recover) if recover.is_after(ack) => self.resend = true,
            _ => self.recover = None,
        }
        self.flight_max = self.flight_max.saturating_mul(2);
        self.rtt.relax();
        self.unanswered = 0;
        self.timer = (self.outstanding() > 0).then(|| now.after(self.rtt.timeout()));
    }

    /// RFC 5681, section 3.2: three of them say that a segment is lost.
    fn count_duplicate(&mut self) {
        self.dup_acks = self.dup_acks.saturating_add(1);
        if self.dup_acks == 3 && self.recover.is_none() {
            self.recover = Some(self.max);
            self.resend = true;
            self.timing = None;
        }
    }

    /// The first number of what is to be sent next, and how many bytes the guest and the network allow.
    pub(super) fn next_data(&self) -> Option<(Seq, u32)> {
        if self.blocked {
            return None;
        }
        let end_of_data = self.fin_at.unwrap_or(self.max);
        if self.resend && end_of_data.is_after(self.una) {
            return Some((self.una, end_of_data.beyond(self.una).min(BURST_MAX)));
        }
        let again = end_of_data.beyond(self.nxt);
        let is_possible = again > 0 || (self.readable && self.fin_at.is_none());
        let usable = self.usable();
        // RFC 9293, section 3.8.6.2.1: what is left of the window may be too little to be worth it.
        let is_silly = usable < self.mss && usable < self.window_max / 2 && self.nxt != self.una;
        (is_possible && usable > 0 && !is_silly).then_some((self.nxt, usable.min(BURST_MAX)))
    }

    fn usable(&self) -> u32 {
        let on_its_way = self.nxt.beyond(self.una);
        self.window.min(self.flight_max).saturating_sub(on_its_way)
    }

    /// Where in the socket's data a number is.
    pub(super) fn offset_of(&self, number: Seq) -> u32 {
        self.held + number.beyond(self.una)
    }

    /// `len` bytes from number `from` on went to the guest.
    pub(super) fn sent(&mut self, now: Timestamp, from: Seq, len: u32) {
        let end = from.plus(len);
        if from == self.una {
            self.resend = false;
        }
        if self.timing.is_none() && from == self.max && self.recover.is_none() {
            self.timing = Some((end, now));
        }
        self.nxt = self.nxt.max(end);
        self.max = self.max.max(end);
        self.bulk |= len >= BULK;
        if self.timer.is_none() {
            self.timer = Some(now.after(self.rtt.timeout()));
        }
    }

    /// The socket had no data where some were looked for.
    pub(super) fn nothing_there(&mut self) {
        self.readable = false;
        self.resend = false;
        self.nxt = self.max;
    }

    /// The socket has no data behind `number`, and never will.
    pub(super) fn ended_at(&mut self, number: Seq) {
        self.readable = false;
        self.fin_at.get_or_insert(number);
    }

    /// The number of a FIN that is to be sent now.
    pub(super) fn next_fin(&self) -> Option<Seq> {
        let fin = self.fin_at?;
        let again = self.resend && self.una == fin;
        (!self.blocked && ((fin == self.nxt && self.usable() > 0) || again)).then_some(fin)
    }

    /// A number that the guest expects, for segments that take none.
    pub(super) fn number(&self) -> Seq {
        self.max
    }

    /// Bytes to take out of the socket now, which then count as taken out. All of them if `finally`.
    pub(super) fn discard(&mut self, now: Timestamp, finally: bool) -> Option<u32> {
        let is_late = self.discard_at.is_some_and(|at| at <= now);
        let must = finally || is_late || (self.bulk && self.una == self.max);
        if self.held < DISCARD_AT && !(must && self.held > 0) {
            return None;
        }
        self.discard_at = None;
        self.bulk &= self.una != self.max;
        Some(std::mem::take(&mut self.held))
    }

    /// Starts the timer where only a larger window can help: nobody promises to tell of it.
    pub(super) fn wait_for_window(&mut self, now: Timestamp) {
        let has_more = self.readable || self.fin_at.is_some_and(|fin| fin == self.nxt);
        if self.timer.is_none() && has_more && self.outstanding() == 0 && self.window == 0 && !self.blocked {
            self.timer = Some(now.after(self.rtt.timeout()));
        }
    }

    /// The timer, if it has run out. `again` is for one of a handshake.
    pub(super) fn expire(&mut self, now: Timestamp) -> Expiry {
        if self.timer.is_none_or(|timer| timer > now) {
            return Expiry::None;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        self.rtt.double();
        self.timer = Some(now.after(self.rtt.timeout()));
        if self.outstanding() == 0 {
            return Expiry::Probe;
        }
        self.timing = None;
        self.recover = None;
        self.resend = false;
        self.dup_acks = 0;
        if self.window == 0 {
            return Expiry::Probe;
        }
        self.nxt = self.una;
        self.flight_max = self.mss;
        Expiry::Resend
    }
}
