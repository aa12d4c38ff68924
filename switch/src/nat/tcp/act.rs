//! What a connection wants done, in the order in which it has to be done.

use super::{Action, Connection, Flags, Segment, Seq, Socket, State};
use crate::Timestamp;

impl Connection {
    /// The next thing to do; `None` until something happens.
    pub fn next_action(&mut self, now: Timestamp) -> Option<Action> {
        match self.state {
            State::Connecting => None,
            State::Answering | State::Calling => std::mem::take(&mut self.due.syn).then(|| Action::Send(self.syn(now))),
            State::Open => self.next_while_open(now),
            State::Lingering | State::Over => self.next_at_the_end(now),
        }
    }

    fn next_while_open(&mut self, now: Timestamp) -> Option<Action> {
        if std::mem::take(&mut self.due.shutdown) {
            return Some(Action::Shutdown);
        }
        if let Some(bytes) = self.to_guest.discard(now, false) {
            return Some(Action::Discard(bytes));
        }
        if let Some((from, limit)) = self.to_guest.next_data() {
            let offset = self.to_guest.offset_of(from);
            return Some(Action::SendData { from, offset, limit, mss: self.to_guest.mss });
        }
        if let Some(fin) = self.to_guest.next_fin() {
            self.to_guest.sent(now, fin, 1);
            return Some(Action::Send(self.outgoing(fin, Flags::FIN, 0)));
        }
        if std::mem::take(&mut self.due.probe) {
            // A number that the guest has acknowledged already makes it answer (RFC 9293, sections 3.8.4 and 3.10.7.4).
            let probe = self.outgoing(self.to_guest.una.minus(1), Flags::default(), 0);
            return Some(Action::Send(probe));
        }
        if std::mem::take(&mut self.due.ack) {
            return Some(Action::Send(self.outgoing(self.to_guest.number(), Flags::default(), 0)));
        }
        if self.due.duplicates > 0 {
            self.due.duplicates -= 1;
            return Some(Action::Send(self.outgoing(self.to_guest.number(), Flags::default(), 0)));
        }
        if std::mem::take(&mut self.due.watch) {
            self.watching = true;
            return Some(Action::Watch);
        }
        self.to_guest.wait_for_window(now);
        None
    }

    fn next_at_the_end(&mut self, now: Timestamp) -> Option<Action> {
        if let Some(refusal) = self.due.tell.take() {
            return Some(Action::Tell(refusal));
        }
        if std::mem::take(&mut self.due.reset) {
            return Some(Action::Send(self.outgoing(self.to_guest.number(), Flags::RST, 0)));
        }
        if self.state == State::Lingering && std::mem::take(&mut self.due.ack) {
            return Some(Action::Send(self.outgoing(self.to_guest.number(), Flags::default(), 0)));
        }
        match self.socket {
            Socket::InUse | Socket::Gone => None,
            Socket::ToReset => {
                self.socket = Socket::Gone;
                Some(Action::Reset)
            }
            Socket::ToClose => {
                if std::mem::take(&mut self.due.shutdown) {
                    return Some(Action::Shutdown);
                }
                // Data that were left in the socket would make a RST of its end (RFC 9293, section 3.10.4 calls for that).
                if let Some(bytes) = self.to_guest.discard(now, true) {
                    return Some(Action::Discard(bytes));
                }
                self.socket = Socket::Gone;
                Some(Action::Close)
            }
        }
    }

    fn syn(&mut self, now: Timestamp) -> Segment {
        self.to_guest.syn_sent(now);
        let ack = if self.state == State::Answering { Flags::ACK } else { Flags::default() };
        Segment {
            seq: self.to_guest.una,
            ack: if self.state == State::Answering { self.from_guest.next() } else { Seq(0) },
            flags: Flags::SYN.and(ack),
            window: self.from_guest.promise(self.to_guest.mss, true),
            mss: Some(self.settings.mss),
            window_shift: self.scaled.then_some(self.settings.window_shift),
            payload_len: 0,
        }
    }

    /// A segment with everything that is to be said by the way.
    fn outgoing(&mut self, seq: Seq, flags: Flags, payload_len: u32) -> Segment {
        self.due.ack = false;
        let mss = self.to_guest.mss;
        let window = self.from_guest.promise(mss, false);
        if self.from_guest.is_starved(mss) && !self.watching && self.watch_again.is_none() {
            self.due.watch = true;
        }
        let (ack, flags) = (self.from_guest.next(), flags.and(Flags::ACK));
        Segment { seq, ack, flags, window, mss: None, window_shift: None, payload_len }
    }

    /// `len` bytes from number `from` on are ready for the guest: what stands in front of them. `drained`: the socket had no more.
    pub fn sent(&mut self, now: Timestamp, from: Seq, len: u32, drained: bool) -> Segment {
        let before = self.to_guest.max;
        let end = from.plus(len);
        self.active = now;
        let mut flags = Flags::default();
        let mut taken = len;
        if drained && end.since(self.to_guest.max) >= 0 {
            flags = Flags::PSH;
            self.to_guest.readable = false;
            if self.to_guest.hangup {
                self.to_guest.ended_at(end);
                flags = flags.and(Flags::FIN);
                taken += 1;
            }
        }
        self.to_guest.sent(now, from, taken);
        self.delivered += u64::from(end.beyond(before));
        self.outgoing(from, flags, len)
    }

    /// The socket had nothing for [`Action::SendData`] with this `from`, for now.
    pub fn drained(&mut self, from: Seq) {
        if self.to_guest.hangup && from == self.to_guest.max {
            self.to_guest.ended_at(from);
        } else {
            self.to_guest.nothing_there();
        }
    }

    /// The socket had nothing for [`Action::SendData`] with this `from`, and never will: the far end has ended its side.
    pub fn ended(&mut self, from: Seq) {
        self.to_guest.ended_at(from);
    }

    /// The guest has no room for the acknowledgment that [`Action::Send`] was about.
    pub fn unsent(&mut self) {
        self.due.ack = true;
        self.to_guest.blocked = true;
    }

    /// The guest has no room for what was to be sent.
    pub fn blocked(&mut self) {
        self.to_guest.blocked = true;
    }
}
