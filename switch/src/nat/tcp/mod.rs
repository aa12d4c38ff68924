//! One TCP connection of a guest, spliced to a socket of the host (RFC 9293), as a pure state machine.
//!
//! # Theory
//!
//! To the guest the NAT *is* the far end: it takes part in the handshake, acknowledges, retransmits, keeps windows. The true far
//! end is at the other side of an ordinary socket. A [`Connection`] keeps the two in step, and holds not one byte of data itself:
//!
//! - **From the guest.** What comes in order is written to the socket from where it lies in the guest's memory ([`Take`]); what the
//!   kernel took, and only that, is acknowledged. The window that the guest is told is the room that the socket has. So a slow far end
//!   stops a fast guest.
//! - **To the guest.** Data are read from the socket straight into the guest's buffers, but stay in the socket until the guest has
//!   acknowledged them; to send them again is to read them again. So a slow guest stops a fast far end.
//! - **The ends.** The guest's SYN is answered when the socket is connected; if it can't be, the guest meets what it would have met
//!   on the wire: a RST, an ICMP error, silence. FIN and half-close, RST and errors pass in both directions.
//!
//! Nothing is done here. Events come in as calls ([`Connection::segment`], [`Connection::readable`], …); what is to be done comes out of
//! [`Connection::next_action`], which is to be asked until it says `None`, once after all events that came together. So there is one
//! acknowledgment for all segments of a batch.
//!
//! There is no congestion control towards the guest: there is no network in between, and a guest's ring that is full is waited for, not
//! overrun. Losses inside the guest are made good by fast retransmission (RFC 5681, 6582) and a timer (RFC 6298). Segments that come out of
//! order are not kept. Urgent data lose their urgency and nothing else: they stay in the stream. Timestamps and selective
//! acknowledgments are not offered.

mod from_guest;
mod rtt;
pub(crate) mod segment;
mod seq;
mod settings;
mod to_guest;

use std::time::Duration;

pub use from_guest::Take;
pub use segment::{Flags, Segment};
pub use seq::Seq;
pub use settings::{CloseReason, SocketError, TcpSettings};

use self::from_guest::{FromGuest, Place};
use self::to_guest::{Expiry, ToGuest};
use crate::Timestamp;
use crate::gateway::Refusal;

/// How long to wait before a socket without room is looked at again, if nobody says that it has some.
const SPACE_RETRY: Duration = Duration::from_millis(10);
/// How often an idle guest is asked whether it is still there, and how far apart (RFC 9293, section 3.8.4, does not say).
const PROBES: u8 = 9;
const PROBE_INTERVAL: Duration = Duration::from_secs(75);

/// What is to be done for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to the guest.
    Send(Segment),
    /// Send data to the guest, at most `limit` bytes, read (and left) in the socket `offset` bytes behind its first. Then say what was
    /// found: [`Connection::sent`], [`Connection::drained`], [`Connection::ended`], [`Connection::blocked`] or
    /// [`Connection::failed`].
    SendData {
        /// The number of the first byte, for [`Connection::sent`].
        from: Seq,
        /// Bytes.
        offset: u32,
        /// Bytes, more than none.
        limit: u32,
        /// Bytes of data for one segment on the wire.
        mss: u32,
    },
    /// Tell the guest in an ICMP error about its SYN.
    Tell(Refusal),
    /// Take this many bytes out of the socket, and throw them away.
    Discard(u32),
    /// End the socket's direction away from us.
    Shutdown,
    /// See to it that [`Connection::space`] is called when the socket has room.
    Watch,
    /// Close the socket; what is in it still goes out.
    Close,
    /// Close the socket with a RST to the far end.
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest wants a connection, the socket doesn't have it yet.
    Connecting,
    /// The socket has it, the guest is told (SYN-RECEIVED).
    Answering,
    /// The far end wants a connection, the guest is asked (SYN-SENT).
    Calling,
    /// Both have it, until both have ended it.
    Open,
    /// All is done; the guest may have missed our last word (TIME-WAIT).
    Lingering,
    /// All is done.
    Over,
}

/// What becomes of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    InUse,
    ToClose,
    ToReset,
    Gone,
}

/// Things that were found to be necessary and not done yet.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each stands for a thing of its own")]
struct Due {
    syn: bool,
    ack: bool,
    /// So many acknowledgments that say nothing new: the guest understands that something is missing (RFC 5681, section 3.2).
    duplicates: u8,
    probe: bool,
    reset: bool,
    shutdown: bool,
    watch: bool,
    tell: Option<Refusal>,
}

/// A connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    settings: TcpSettings,
    state: State,
    socket: Socket,
    due: Due,
    from_guest: FromGuest,
    to_guest: ToGuest,
    /// Bytes that went to the guest, those that were sent again not counted twice.
    delivered: u64,
    /// The window shift was agreed to.
    scaled: bool,
    /// We have asked to be told when the socket has room.
    watching: bool,
    watch_again: Option<Timestamp>,
    active: Timestamp,
    probes: u8,
    reason: Option<CloseReason>,
}

impl Connection {
    /// A guest wants a connection: `syn` is its first segment, `iss` a number that nobody can guess (RFC 6528). The caller lets a
    /// socket connect.
    #[must_use]
    pub fn accept(now: Timestamp, syn: &Segment, iss: Seq, settings: &TcpSettings) -> Self {
        let scaled = syn.window_shift.is_some();
        let mut connection = Self::new(now, State::Connecting, iss, settings);
        connection.from_guest = FromGuest::new(syn.seq.plus(1), 0, if scaled { settings.window_shift } else { 0 });
        connection.to_guest.note_syn(syn);
        connection.scaled = scaled;
        connection
    }

    /// The far end wants a connection: the caller has accepted a socket for which the guest is now asked. `space` is as in
    /// [`Self::space`].
    #[must_use]
    pub fn call(now: Timestamp, iss: Seq, space: u32, settings: &TcpSettings) -> Self {
        let mut connection = Self::new(now, State::Calling, iss, settings);
        connection.from_guest = FromGuest::new(Seq(0), space, settings.window_shift);
        connection.due.syn = true;
        connection.scaled = true;
        connection
    }

    fn new(now: Timestamp, state: State, iss: Seq, settings: &TcpSettings) -> Self {
        Self {
            settings: *settings,
            state,
            socket: Socket::InUse,
            due: Due::default(),
            from_guest: FromGuest::new(Seq(0), 0, 0),
            to_guest: ToGuest::new(iss, settings),
            delivered: 0,
            scaled: false,
            watching: false,
            watch_again: None,
            active: now,
            probes: 0,
            reason: None,
        }
    }

    /// A segment came from the guest. The answer says which part of its data is to be written to the socket; after the last
    /// segment of a batch, [`Self::written`] is to be told how much of all that the socket took.
    pub fn segment(&mut self, now: Timestamp, segment: &Segment) -> Take {
        let taken = match self.state {
            State::Connecting => self.segment_while_connecting(segment),
            State::Answering => self.segment_while_answering(now, segment),
            State::Calling => self.segment_while_calling(now, segment),
            State::Open => self.segment_while_open(now, segment),
            State::Lingering => {
                // It missed our last word (RFC 9293, section 3.10.7.4), or a window that it asks for without data.
                let missed = !segment.is_empty() || segment.seq != self.from_guest.next();
                if missed && !segment.flags.has(Flags::RST) {
                    (self.due.ack, self.active) = (true, now);
                }
                None
            }
            State::Over => None,
        };
        taken.unwrap_or_default()
    }

    /// Nothing that the guest says matters yet, but that it has changed its mind.
    fn segment_while_connecting(&mut self, segment: &Segment) -> Option<Take> {
        if segment.flags.has(Flags::RST) && segment.seq == self.from_guest.next() {
            self.abort(CloseReason::GuestReset, false);
        }
        None
    }

    fn segment_while_answering(&mut self, now: Timestamp, segment: &Segment) -> Option<Take> {
        let repeats_syn = segment.flags.has(Flags::SYN) && segment.seq.plus(1) == self.from_guest.next();
        if repeats_syn && segment.flags.has(Flags::ACK) && self.acks_syn(segment) {
            // Both have sent SYN at the same time, and this is the answer to ours (RFC 9293, figure 7).
            self.due.ack = true;
            return self.open(now, segment);
        }
        if repeats_syn {
            // Ours was lost.
            self.due.syn = true;
            return None;
        }
        if segment.flags.has(Flags::RST) {
            return self.take_reset(segment);
        }
        if !segment.flags.has(Flags::ACK) || !self.acks_syn(segment) {
            return None;
        }
        self.open(now, segment);
        self.segment_while_open(now, segment)
    }

    fn segment_while_calling(&mut self, now: Timestamp, segment: &Segment) -> Option<Take> {
        let is_answer = segment.flags.has(Flags::ACK) && self.acks_syn(segment);
        if segment.flags.has(Flags::RST) {
            if is_answer {
                self.abort(CloseReason::Refused, false);
            }
            return None;
        }
        if !segment.flags.has(Flags::SYN) || (segment.flags.has(Flags::ACK) && !is_answer) {
            return None;
        }
        self.scaled = segment.window_shift.is_some();
        let shift = if self.scaled { self.settings.window_shift } else { 0 };
        let mut from_guest = FromGuest::new(segment.seq.plus(1), 0, shift);
        from_guest.note_space(self.from_guest.space());
        self.from_guest = from_guest;
        self.to_guest.note_syn(segment);
        if is_answer {
            self.due.ack = true;
            self.open(now, segment)
        } else {
            // Both have sent SYN at the same time (RFC 9293, figure 7).
            (self.state, self.due.syn) = (State::Answering, true);
            None
        }
    }

    /// True for an acknowledgment of our SYN.
    fn acks_syn(&self, segment: &Segment) -> bool {
        self.to_guest.outstanding() == 1 && segment.ack == self.to_guest.max
    }

    fn open(&mut self, now: Timestamp, segment: &Segment) -> Option<Take> {
        (self.state, self.active) = (State::Open, now);
        self.to_guest.greeted(segment);
        self.due.syn = false;
        None
    }

    /// RFC 9293, section 3.10.7.4.
    fn segment_while_open(&mut self, now: Timestamp, segment: &Segment) -> Option<Take> {
        if segment.flags.has(Flags::RST) {
            return self.take_reset(segment);
        }
        if segment.flags.has(Flags::SYN) || !segment.flags.has(Flags::ACK) {
            // RFC 5961, section 4.2, for SYN.
            self.due.ack |= segment.flags.has(Flags::SYN);
            return None;
        }
        if !self.to_guest.acknowledge(now, segment) {
            self.due.ack = true;
            return None;
        }
        (self.active, self.probes) = (now, 0);
        if segment.is_empty() {
            // A probe for whether we are there, or for our window.
            self.due.ack |= segment.seq != self.from_guest.expected() && !segment.seq.is_after(self.from_guest.next());
            self.finish_if_done(now);
            return None;
        }
        match self.from_guest.offer(segment) {
            Place::New(take) => {
                if take.len == 0 && self.from_guest.expected() == self.from_guest.next() {
                    // A FIN alone needs no write.
                    self.written(now, 0);
                }
                Some(take)
            }
            Place::Early => {
                self.miss(segment.payload_len);
                None
            }
            Place::Useless => {
                self.due.ack = true;
                self.finish_if_done(now);
                None
            }
        }
    }

    /// Something is missing in front of `len` bytes: the guest is told as often as it would be by a network that had cut them into segments.
    fn miss(&mut self, len: u32) {
        const ENOUGH: u8 = 3;
        let segments = len.div_ceil(self.to_guest.mss).min(ENOUGH.into()) as u8;
        self.due.ack = true;
        self.due.duplicates = (self.due.duplicates + segments).min(ENOUGH);
    }

    /// RFC 5961, section 3.2: a guess into the window is not enough.
    fn take_reset(&mut self, segment: &Segment) -> Option<Take> {
        let (expected, next) = (self.from_guest.expected(), self.from_guest.next());
        if segment.seq == expected || segment.seq == next {
            self.abort(CloseReason::GuestReset, false);
        } else if self.from_guest.covers(segment.seq) {
            self.due.ack = true;
        }
        None
    }

    /// The socket took `len` bytes of the data that the last segments were found to have.
    pub fn written(&mut self, now: Timestamp, len: u32) {
        self.due.ack = true;
        self.active = now;
        if self.from_guest.written(len) {
            self.due.shutdown = true;
            self.finish_if_done(now);
        }
    }

    /// The socket is connected, and would take `space` bytes.
    pub fn connected(&mut self, now: Timestamp, space: u32) {
        if self.state == State::Connecting {
            self.from_guest.note_space(space);
            (self.state, self.active, self.due.syn) = (State::Answering, now, true);
        }
    }

    /// The socket would take `space` bytes by now. To be told after each [`Self::written`], and when it was asked for
    /// ([`Action::Watch`]).
    pub fn space(&mut self, now: Timestamp, space: u32) {
        self.from_guest.note_space(space);
        if self.state != State::Open {
            return;
        }
        let grown = self.from_guest.has_grown(self.to_guest.mss);
        self.due.ack |= grown;
        if self.from_guest.misses(self.to_guest.mss) {
            // It need not wait for its timer.
            self.miss(u32::MAX);
        }
        if std::mem::take(&mut self.watching) && !grown && self.from_guest.is_starved(self.to_guest.mss) {
            self.watch_again = Some(now.after(SPACE_RETRY));
        }
    }

    /// There may be data in the socket.
    pub fn readable(&mut self) {
        self.to_guest.readable = true;
    }

    /// The far end has ended its side, behind the data that are in the socket.
    pub fn hangup(&mut self) {
        self.to_guest.readable = true;
        self.to_guest.hangup = true;
    }

    /// The guest has room again.
    pub fn room(&mut self) {
        self.to_guest.blocked = false;
    }

    /// True if the guest had no room for what is to be sent.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.to_guest.blocked
    }

    /// The socket failed.
    pub fn failed(&mut self, error: SocketError) {
        let connecting = self.state == State::Connecting;
        let (reason, tell) = match (connecting, error) {
            (true, SocketError::HostUnreachable) => (CloseReason::Unreachable, Some(Refusal::HostUnreachable)),
            (true, SocketError::NetUnreachable) => (CloseReason::Unreachable, Some(Refusal::NetUnreachable)),
            (true, SocketError::Prohibited) => (CloseReason::Refused, Some(Refusal::Prohibited)),
            (true, SocketError::Refused | SocketError::Reset) => (CloseReason::Refused, None),
            // As on the wire: nobody answers.
            (true, SocketError::TimedOut) => {
                self.abort(CloseReason::PeerTimeout, false);
                return;
            }
            (true, SocketError::Other) | (false, SocketError::Prohibited | SocketError::Other) => (CloseReason::HostError, None),
            (false, SocketError::TimedOut) => (CloseReason::PeerTimeout, None),
            (false, SocketError::HostUnreachable | SocketError::NetUnreachable) => (CloseReason::Unreachable, None),
            (false, SocketError::Refused | SocketError::Reset) => (CloseReason::PeerReset, None),
        };
        self.abort(reason, tell.is_none());
        self.due.tell = tell;
    }

    /// Ends the connection at once, with a RST to the far end and, if `tell_guest`, one to the guest.
    pub fn abort(&mut self, reason: CloseReason, tell_guest: bool) {
        if self.state == State::Over {
            return;
        }
        self.state = State::Over;
        self.reason.get_or_insert(reason);
        self.due = Due { reset: tell_guest, ..Due::default() };
        if self.socket == Socket::InUse {
            self.socket = Socket::ToReset;
        }
    }

    /// To be called when [`Self::deadline`] has come; earlier does no harm.
    pub fn tick(&mut self, now: Timestamp) {
        if self.watch_again.is_some_and(|at| at <= now) {
            self.watch_again = None;
            self.due.watch = true;
        }
        if !matches!(self.state, State::Connecting | State::Lingering | State::Over) {
            self.expire(now);
        }
        if self.idle_deadline() > now {
            return;
        }
        match self.state {
            State::Connecting => self.abort(CloseReason::PeerTimeout, false),
            State::Answering | State::Calling => self.abort(CloseReason::GuestTimeout, true),
            State::Open if self.is_closing() || self.probes >= PROBES => self.abort(CloseReason::Idle, true),
            State::Open => {
                self.probes += 1;
                self.due.probe = true;
            }
            State::Lingering => self.state = State::Over,
            State::Over => {}
        }
    }

    fn expire(&mut self, now: Timestamp) {
        let greeting = self.state != State::Open;
        let retries = match self.state {
            State::Calling => self.settings.call_retries,
            _ if greeting => self.settings.syn_retries,
            _ => self.settings.retries,
        };
        match self.to_guest.expire(now) {
            Expiry::None => {}
            _ if self.to_guest.unanswered > retries => self.abort(CloseReason::GuestTimeout, true),
            Expiry::Resend => self.due.syn = greeting,
            Expiry::Probe if greeting => self.due.syn = true,
            Expiry::Probe => self.due.probe = true,
        }
    }

    /// When [`Self::tick`] is to be called, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        let idle = self.idle_deadline();
        if matches!(self.state, State::Connecting | State::Lingering | State::Over) {
            return idle;
        }
        [self.to_guest.timer, self.to_guest.discard_at, self.watch_again].into_iter().flatten().fold(idle, Timestamp::min)
    }

    /// True if both sides have ended, and only acknowledgments are missing.
    fn is_closing(&self) -> bool {
        self.from_guest.ended && self.to_guest.has_ended()
    }

    fn idle_deadline(&self) -> Timestamp {
        let TcpSettings { established, transitory, linger, .. } = self.settings;
        match self.state {
            State::Open if !self.is_closing() => self.active.after(established + PROBE_INTERVAL * u32::from(self.probes)),
            State::Connecting | State::Answering | State::Calling | State::Open => self.active.after(transitory),
            State::Lingering => self.active.after(linger),
            State::Over => self.active,
        }
    }

    fn finish_if_done(&mut self, now: Timestamp) {
        if self.state != State::Open || !self.from_guest.ended || !self.to_guest.is_done() {
            return;
        }
        // Whoever ends first waits (RFC 9293, section 3.6); if it was the guest, it does so itself.
        self.state = State::Lingering;
        self.active = now;
        self.reason = Some(CloseReason::Finished);
        self.socket = Socket::ToClose;
    }

    /// True when nothing is left of the connection and it can be forgotten.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over && self.socket == Socket::Gone && !self.due.reset && self.due.tell.is_none()
    }

    /// True if it is only remembered for the case that the guest missed our last word: a new connection may take its place.
    #[must_use]
    pub fn is_lingering(&self) -> bool {
        self.state == State::Lingering && self.socket == Socket::Gone
    }

    /// True for a SYN that begins another connection than this one.
    #[must_use]
    pub fn is_superseded_by(&self, segment: &Segment) -> bool {
        let is_syn = segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK);
        match self.state {
            State::Connecting | State::Answering => is_syn && segment.seq.plus(1) != self.from_guest.next(),
            State::Lingering | State::Over => is_syn,
            State::Calling | State::Open => false,
        }
    }

    /// Why it ended, once it has.
    #[must_use]
    pub fn reason(&self) -> Option<CloseReason> {
        self.reason
    }

    /// Bytes of data that the far end got from the guest, and the guest from the far end.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.from_guest.bytes, self.delivered)
    }
}

mod act;

#[cfg(test)]
mod tests;
