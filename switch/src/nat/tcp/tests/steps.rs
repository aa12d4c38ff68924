//! One step after the other.

use std::time::Duration;

use super::*;

const SPACE: u32 = 100_000;
const START: Timestamp = Timestamp::from_millis(1_000);

/// A connection, and the time.
struct Bench {
    connection: Connection,
    now: Timestamp,
}

impl Bench {
    fn connecting() -> Self {
        Self { connection: Connection::accept(START, &syn(), ISS, &TcpSettings::new(1500)), now: START }
    }

    /// The guest has sent its SYN, the socket is connected, and the guest has acknowledged that.
    fn open() -> Self {
        let mut bench = Self::connecting();
        bench.connection.connected(START, SPACE);
        let answer = bench.sent();
        assert_eq!(answer.flags, Flags::SYN.and(Flags::ACK));
        bench.give(&ack());
        bench.expect_rest();
        bench
    }

    fn give(&mut self, segment: &Segment) -> Take {
        self.connection.segment(self.now, segment)
    }

    /// Gives a segment whose data the socket takes.
    fn give_data(&mut self, segment: &Segment) {
        let Take { len, .. } = self.give(segment);
        assert!(len > 0);
        self.connection.written(self.now, len);
        self.connection.space(self.now, SPACE);
    }

    fn next(&mut self) -> Option<Action> {
        self.connection.next_action(self.now)
    }

    fn sent(&mut self) -> Segment {
        match self.next() {
            Some(Action::Send(segment)) => segment,
            other => panic!("{other:?}"),
        }
    }

    fn expect_rest(&mut self) {
        assert_eq!(self.next(), None);
    }

    /// The socket has `len` bytes, which go to the guest.
    fn deliver(&mut self, len: u32) -> Segment {
        self.connection.readable();
        match self.next() {
            Some(Action::SendData { from, limit, .. }) if limit >= len => self.connection.sent(self.now, from, len, true),
            other => panic!("{other:?}"),
        }
    }

    /// Lets time pass until the connection wants to be called.
    fn wait(&mut self) {
        self.now = self.connection.deadline();
        self.connection.tick(self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.connection.tick(self.now);
    }

    fn expect_reset_to_guest(&mut self) {
        let reset = self.sent();
        assert!(reset.flags.has(Flags::RST.and(Flags::ACK)), "{reset:?}");
        assert_eq!(self.next(), Some(Action::Reset));
        assert!(self.connection.is_over());
    }
}

fn ack() -> Segment {
    Segment { seq: GUEST_ISS.plus(1), ack: ISS.plus(1), flags: Flags::ACK, window: 500, ..Segment::default() }
}

fn data(offset: u32, len: u32) -> Segment {
    Segment { seq: GUEST_ISS.plus(1 + offset), payload_len: len, ..ack() }
}

fn fin(offset: u32) -> Segment {
    let seq = GUEST_ISS.plus(1 + offset);
    Segment { seq, flags: Flags::ACK.and(Flags::FIN), ..ack() }
}

#[test]
fn a_guest_hears_nothing_until_the_far_end_has_answered() {
    let mut bench = Bench::connecting();
    bench.expect_rest();
    bench.give(&syn());
    bench.expect_rest();
    bench.connection.connected(START, SPACE);
    let answer = bench.sent();
    assert_eq!((answer.seq, answer.ack, answer.flags), (ISS, GUEST_ISS.plus(1), Flags::SYN.and(Flags::ACK)));
    assert_eq!((answer.mss, answer.window_shift, answer.window), (Some(1460), Some(7), 65_535));
}

#[test]
fn a_refused_connection_is_refused_as_on_the_wire() {
    let mut bench = Bench::connecting();
    bench.connection.failed(SocketError::Refused);
    let reset = bench.sent();
    assert_eq!((reset.flags, reset.ack), (Flags::RST.and(Flags::ACK), GUEST_ISS.plus(1)));
    assert_eq!(bench.next(), Some(Action::Reset));
    assert_eq!((bench.connection.is_over(), bench.connection.reason()), (true, Some(CloseReason::Refused)));
}

#[test]
fn an_unreachable_far_end_is_an_icmp_error_rfc_5382_req_9() {
    let errors = [
        (SocketError::HostUnreachable, Refusal::HostUnreachable),
        (SocketError::NetUnreachable, Refusal::NetUnreachable),
        (SocketError::Prohibited, Refusal::Prohibited),
    ];
    for (error, refusal) in errors {
        let mut bench = Bench::connecting();
        bench.connection.failed(error);
        assert_eq!(bench.next(), Some(Action::Tell(refusal)));
        assert_eq!(bench.next(), Some(Action::Reset));
        bench.expect_rest();
        assert!(bench.connection.is_over());
    }
}

#[test]
fn a_far_end_that_does_not_answer_is_silence() {
    let mut bench = Bench::connecting();
    bench.connection.failed(SocketError::TimedOut);
    assert_eq!((bench.next(), bench.next()), (Some(Action::Reset), None));
    assert!(bench.connection.is_over());
}

#[test]
fn a_connection_that_opens_is_given_up_after_four_minutes_and_not_before_rfc_5382_req_5() {
    let mut bench = Bench::connecting();
    bench.pass(Duration::from_secs(239));
    assert_eq!(bench.connection.reason(), None);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.connection.reason(), Some(CloseReason::PeerTimeout));
}

#[test]
fn an_answer_that_was_lost_is_sent_again_and_not_for_ever() {
    let mut bench = Bench::connecting();
    bench.connection.connected(START, SPACE);
    let first = bench.sent();
    bench.give(&syn());
    assert_eq!(bench.sent(), first);
    for _ in 0..5 {
        bench.wait();
        assert_eq!(bench.sent(), first);
    }
    bench.wait();
    assert_eq!(bench.connection.reason(), Some(CloseReason::GuestTimeout));
    bench.expect_reset_to_guest();
}

#[test]
fn a_guest_that_changes_its_mind_resets_the_far_end() {
    let mut bench = Bench::connecting();
    bench.give(&Segment { flags: Flags::RST, ..data(0, 0) });
    assert_eq!((bench.next(), bench.next()), (Some(Action::Reset), None));
    assert_eq!(bench.connection.reason(), Some(CloseReason::GuestReset));
}

#[test]
fn two_syns_that_cross_make_one_connection_rfc_5382_req_2() {
    let mut bench = Bench { connection: Connection::call(START, ISS, SPACE, &TcpSettings::new(1500)), now: START };
    assert_eq!(bench.sent().flags, Flags::SYN);
    bench.give(&syn());
    let answer = bench.sent();
    assert_eq!((answer.flags, answer.seq), (Flags::SYN.and(Flags::ACK), ISS));
    bench.give(&Segment { flags: Flags::SYN.and(Flags::ACK), ack: ISS.plus(1), ..syn() });
    assert_eq!(bench.sent().flags, Flags::ACK);
    bench.give_data(&data(0, 10));
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(11));
}

#[test]
fn a_call_that_the_guest_refuses_resets_the_far_end() {
    let mut bench = Bench { connection: Connection::call(START, ISS, SPACE, &TcpSettings::new(1500)), now: START };
    bench.sent();
    bench.give(&Segment { flags: Flags::RST.and(Flags::ACK), ack: ISS.plus(7), ..Segment::default() });
    assert_eq!(bench.connection.reason(), None, "not the answer to our SYN");
    bench.give(&Segment { flags: Flags::RST.and(Flags::ACK), ack: ISS.plus(1), ..Segment::default() });
    assert_eq!((bench.next(), bench.next()), (Some(Action::Reset), None));
    assert_eq!(bench.connection.reason(), Some(CloseReason::Refused));
}

#[test]
fn only_what_the_socket_took_is_acknowledged() {
    let mut bench = Bench::open();
    assert_eq!(bench.give(&data(0, 1000)), Take { skip: 0, len: 1000 });
    assert_eq!(bench.give(&data(1000, 1000)), Take { skip: 0, len: 1000 });
    bench.connection.written(bench.now, 1500);
    bench.connection.space(bench.now, 0);
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(1501));
    bench.expect_rest();
    // As soon as there is room, the guest hears that it may send the rest again, and need not wait for its timer.
    bench.connection.space(bench.now, SPACE);
    let first = bench.sent();
    assert_eq!(first.ack, GUEST_ISS.plus(1501));
    assert_eq!([bench.sent(), bench.sent(), bench.sent()], [first; 3]);
    bench.expect_rest();
    // The guest sends the rest again, and more.
    assert_eq!(bench.give(&data(1000, 1000)), Take { skip: 500, len: 500 });
}

#[test]
fn segments_of_one_batch_have_one_acknowledgment() {
    let mut bench = Bench::open();
    (0..10).for_each(|at| assert_eq!(bench.give(&data(at * 1460, 1460)).len, 1460));
    bench.connection.written(bench.now, 14_600);
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(14_601));
    bench.expect_rest();
}

#[test]
fn a_gap_is_answered_with_what_is_expected_so_that_the_guest_sends_it_at_once() {
    let mut bench = Bench::open();
    for at in 1..4 {
        assert_eq!(bench.give(&data(at * 100, 100)), Take::default());
    }
    // One, and three that say the same: as many as make a guest send again (RFC 5681, section 3.2).
    let first = bench.sent();
    assert_eq!(first.ack, GUEST_ISS.plus(1));
    assert_eq!([bench.sent(), bench.sent(), bench.sent()], [first; 3]);
    bench.expect_rest();
    assert_eq!(bench.give(&data(0, 100)).len, 100);
}

#[test]
fn a_window_is_what_the_socket_takes_and_is_reopened_when_it_takes_more() {
    let mut bench = Bench::open();
    bench.give_data(&data(0, 1000));
    let window = u32::from(bench.sent().window) << 7;
    assert!((SPACE..SPACE + 128).contains(&window), "{window}");
    // All that was promised comes, and the socket takes it, but nothing else.
    for at in 0..2 {
        bench.give(&data(1000 + at * 50_000, 50_000));
        bench.connection.written(bench.now, 50_000);
        bench.connection.space(bench.now, 50_000 - at * 50_000);
    }
    assert_eq!(bench.sent().window, 0);
    assert_eq!(bench.next(), Some(Action::Watch));
    bench.expect_rest();
    // A little room is not worth a word (RFC 9293, section 3.8.6.2.2) …
    bench.connection.space(bench.now, 100);
    bench.expect_rest();
    // … so that it is looked at again.
    bench.wait();
    assert_eq!(bench.next(), Some(Action::Watch));
    bench.connection.space(bench.now, 50_000);
    assert_eq!(u32::from(bench.sent().window) << 7, 50_048);
    bench.expect_rest();
}

#[test]
fn a_promised_window_is_never_taken_back() {
    let mut bench = Bench::open();
    bench.give_data(&data(0, 1000));
    let promised = u32::from(bench.sent().window) << 7;
    bench.give(&data(1000, 1000));
    bench.connection.written(bench.now, 1000);
    bench.connection.space(bench.now, 10);
    let window = u32::from(bench.sent().window) << 7;
    assert!(window + 1000 >= promised - 128, "{window}");
}

#[test]
fn data_go_out_as_far_as_the_guests_window_reaches() {
    let mut bench = Bench::open();
    bench.connection.readable();
    let Some(Action::SendData { from, offset: 0, limit, mss: 1460 }) = bench.next() else { panic!() };
    assert_eq!((from, limit), (ISS.plus(1), 500 << 7));
    bench.connection.sent(bench.now, from, limit, false);
    bench.expect_rest();
    // It has opened by as much as was acknowledged.
    bench.give(&Segment { ack: ISS.plus(1 + 10_000), ..ack() });
    let Some(Action::SendData { from, offset: 64_000, limit: 10_000, .. }) = bench.next() else { panic!() };
    assert_eq!(from, ISS.plus(1 + 64_000));
}

#[test]
fn what_was_acknowledged_is_taken_out_of_the_socket_in_large_pieces() {
    let mut bench = Bench::open();
    bench.deliver(60_000);
    bench.give(&Segment { ack: ISS.plus(1 + 1_000), ..ack() });
    bench.expect_rest();
    bench.give(&Segment { ack: ISS.plus(1 + 40_000), ..ack() });
    assert_eq!(bench.next(), Some(Action::Discard(40_000)));
    bench.connection.readable();
    let Some(Action::SendData { from, offset, .. }) = bench.next() else { panic!() };
    assert_eq!(offset, 20_000);
    bench.connection.drained(from);
    // Nothing of a large piece stays.
    bench.give(&Segment { ack: ISS.plus(1 + 60_000), ..ack() });
    assert_eq!(bench.next(), Some(Action::Discard(20_000)));
    bench.expect_rest();
}

#[test]
fn small_answers_are_taken_out_of_the_socket_together_and_soon() {
    let mut bench = Bench::open();
    for nth in 1..=10 {
        bench.deliver(100);
        bench.give(&Segment { ack: ISS.plus(1 + 100 * nth), ..ack() });
        bench.expect_rest();
    }
    let before = bench.now;
    bench.wait();
    assert_eq!(bench.now.since(before), Duration::from_millis(10));
    assert_eq!(bench.next(), Some(Action::Discard(1_000)));
    bench.expect_rest();
}

#[test]
fn three_equal_acknowledgments_bring_a_segment_again_rfc_5681_3_2() {
    let mut bench = Bench::open();
    bench.deliver(30_000);
    for _ in 0..2 {
        bench.give(&ack());
        bench.expect_rest();
    }
    bench.give(&ack());
    let Some(Action::SendData { from, offset: 0, limit, .. }) = bench.next() else { panic!() };
    assert_eq!((from, limit), (ISS.plus(1), 30_000));
    bench.connection.sent(bench.now, from, 1460, false);
    bench.expect_rest();
    // What else was lost is sent as soon as that is known (RFC 6582, section 3.2).
    bench.give(&Segment { ack: ISS.plus(1 + 1460), ..ack() });
    let Some(Action::SendData { from, .. }) = bench.next() else { panic!() };
    assert_eq!(from, ISS.plus(1 + 1460));
}

#[test]
fn what_is_not_acknowledged_is_sent_again_more_and_more_slowly_and_given_up_rfc_6298() {
    let mut bench = Bench::open();
    bench.deliver(3_000);
    let mut waits = Vec::new();
    for _ in 0..12 {
        let before = bench.now;
        bench.wait();
        waits.push(bench.now.since(before).as_millis());
        let Some(Action::SendData { from, offset: 0, limit: 1460, .. }) = bench.next() else { panic!() };
        bench.connection.sent(bench.now, from, 1460, false);
        bench.expect_rest();
    }
    assert_eq!(waits[..4], [1000, 2000, 4000, 8000]);
    assert!(waits.iter().sum::<u128>() >= 100_000, "RFC 9293, section 3.8.3: R2 is at least 100 s");
    bench.wait();
    assert_eq!(bench.connection.reason(), Some(CloseReason::GuestTimeout));
    bench.expect_reset_to_guest();
}

#[test]
fn a_closed_window_is_asked_for_as_long_as_the_guest_answers_rfc_9293_3_8_6_1() {
    let mut bench = Bench::open();
    bench.give(&Segment { window: 0, ..ack() });
    bench.connection.readable();
    bench.expect_rest();
    for _ in 0..100 {
        bench.wait();
        assert_eq!(bench.sent().seq, ISS, "a number that the guest has acknowledged already");
        bench.give(&Segment { window: 0, ..ack() });
        bench.expect_rest();
    }
    bench.give(&ack());
    assert!(matches!(bench.next(), Some(Action::SendData { .. })));
}

#[test]
fn a_guest_that_does_not_answer_for_its_window_is_given_up() {
    let mut bench = Bench::open();
    bench.give(&Segment { window: 0, ..ack() });
    bench.connection.readable();
    bench.expect_rest();
    for _ in 0..12 {
        bench.wait();
        bench.sent();
    }
    bench.wait();
    assert_eq!(bench.connection.reason(), Some(CloseReason::GuestTimeout));
}

#[test]
fn a_guest_without_room_stops_the_flow_until_it_has_some() {
    let mut bench = Bench::open();
    bench.connection.readable();
    assert!(matches!(bench.next(), Some(Action::SendData { .. })));
    bench.connection.blocked();
    bench.expect_rest();
    bench.connection.room();
    assert!(matches!(bench.next(), Some(Action::SendData { .. })));
}

#[test]
fn an_acknowledgment_for_which_the_guest_has_no_room_is_said_later() {
    let mut bench = Bench::open();
    bench.give_data(&data(0, 100));
    let first = bench.sent();
    bench.connection.unsent();
    assert!(bench.connection.is_blocked());
    bench.connection.room();
    assert_eq!(bench.sent(), first);
    bench.expect_rest();
}

#[test]
fn one_side_may_end_while_the_other_goes_on() {
    let mut bench = Bench::open();
    bench.give(&fin(0));
    assert_eq!(bench.next(), Some(Action::Shutdown));
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(2));
    bench.deliver(10_000);
    bench.give(&Segment { seq: GUEST_ISS.plus(2), ack: ISS.plus(10_001), ..ack() });
    assert_eq!(bench.next(), Some(Action::Discard(10_000)));
    bench.pass(Duration::from_secs(3600));
    bench.deliver(10_000);
    bench.give(&Segment { seq: GUEST_ISS.plus(2), ack: ISS.plus(20_001), ..ack() });
    assert_eq!(bench.next(), Some(Action::Discard(10_000)));
    // The far end ends, too.
    bench.connection.hangup();
    let Some(Action::SendData { from, .. }) = bench.next() else { panic!() };
    bench.connection.ended(from);
    assert!(bench.sent().flags.has(Flags::FIN));
    bench.give(&Segment { seq: GUEST_ISS.plus(2), ack: ISS.plus(20_002), ..ack() });
    assert_eq!(bench.next(), Some(Action::Close));
    assert!(bench.connection.is_lingering());
    assert_eq!((bench.connection.reason(), bench.connection.bytes()), (Some(CloseReason::Finished), (0, 20_000)));
    bench.wait();
    assert!(bench.connection.is_over());
}

#[test]
fn the_end_of_the_far_side_travels_with_its_last_data() {
    let mut bench = Bench::open();
    bench.connection.hangup();
    let Some(Action::SendData { from, .. }) = bench.next() else { panic!() };
    let segment = bench.connection.sent(bench.now, from, 100, true);
    assert_eq!((segment.flags, segment.payload_len), (Flags::FIN.and(Flags::PSH).and(Flags::ACK), 100));
    bench.expect_rest();
    bench.give(&Segment { ack: ISS.plus(102), ..ack() });
    bench.give(&Segment { ack: ISS.plus(102), ..fin(0) });
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(2));
    assert_eq!(
        [bench.next(), bench.next(), bench.next()].map(Option::unwrap),
        [Action::Shutdown, Action::Discard(100), Action::Close]
    );
    // The guest missed our last word.
    bench.give(&Segment { ack: ISS.plus(102), ..fin(0) });
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(2));
    assert!(bench.connection.is_lingering() && bench.connection.is_superseded_by(&syn()));
    // So it did if it asks, without data, whether there is room for more; who has understood everything is not answered.
    bench.give(&Segment { ack: ISS.plus(102), ..ack() });
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(2));
    bench.give(&Segment { seq: GUEST_ISS.plus(2), ack: ISS.plus(102), ..ack() });
    bench.expect_rest();
}

#[test]
fn an_end_behind_data_that_the_socket_did_not_take_comes_again() {
    let mut bench = Bench::open();
    bench.give(&Segment { flags: Flags::ACK.and(Flags::FIN), ..data(0, 1000) });
    bench.connection.written(bench.now, 400);
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(401));
    bench.give_data(&Segment { flags: Flags::ACK.and(Flags::FIN), ..data(400, 600) });
    assert_eq!(bench.next(), Some(Action::Shutdown));
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(1002));
}

#[test]
fn a_reset_passes_from_the_guest_to_the_far_end_rfc_7857_2() {
    let mut bench = Bench::open();
    bench.give(&Segment { flags: Flags::RST, ..data(0, 0) });
    assert_eq!((bench.next(), bench.next()), (Some(Action::Reset), None));
    assert_eq!(bench.connection.reason(), Some(CloseReason::GuestReset));
    assert!(bench.connection.is_over());
}

#[test]
fn a_reset_passes_from_the_far_end_to_the_guest_rfc_7857_2() {
    let mut bench = Bench::open();
    bench.connection.failed(SocketError::Reset);
    bench.expect_reset_to_guest();
    assert_eq!(bench.connection.reason(), Some(CloseReason::PeerReset));
}

#[test]
fn a_reset_or_syn_that_only_falls_into_the_window_is_challenged_rfc_5961() {
    let mut bench = Bench::open();
    bench.give(&Segment { flags: Flags::RST, ..data(1000, 0) });
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(1));
    bench.give(&Segment { flags: Flags::SYN, ..data(1000, 0) });
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(1));
    bench.give(&Segment { flags: Flags::RST, ..data(10_000_000, 0) });
    bench.expect_rest();
    assert_eq!(bench.connection.reason(), None);
}

#[test]
fn an_acknowledgment_of_what_was_never_sent_changes_nothing_rfc_9293_3_10_7_4() {
    let mut bench = Bench::open();
    bench.deliver(100);
    assert_eq!(bench.give(&Segment { ack: ISS.plus(500), ..data(0, 10) }), Take::default());
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(1));
}

#[test]
fn a_guests_keepalive_is_answered_rfc_9293_3_8_4() {
    let mut bench = Bench::open();
    bench.give(&Segment { seq: GUEST_ISS, ..ack() });
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(1));
    bench.give(&Segment { seq: GUEST_ISS, payload_len: 1, ..ack() });
    assert_eq!(bench.sent().ack, GUEST_ISS.plus(1));
    bench.give(&ack());
    bench.expect_rest();
}

#[test]
fn an_idle_connection_lives_as_long_as_the_guest_says_so_rfc_5382_req_5() {
    let mut bench = Bench::open();
    for _ in 0..3 {
        bench.pass(Duration::from_secs(2 * 3600 + 4 * 60 - 1));
        bench.expect_rest();
        bench.pass(Duration::from_secs(1));
        assert_eq!(bench.sent().seq, ISS);
        bench.give(&ack());
        bench.expect_rest();
    }
    bench.pass(Duration::from_secs(2 * 3600 + 4 * 60));
    bench.sent();
    for _ in 0..8 {
        bench.wait();
        bench.sent();
    }
    bench.wait();
    assert_eq!(bench.connection.reason(), Some(CloseReason::Idle));
    bench.expect_reset_to_guest();
}

#[test]
fn errors_on_the_way_do_not_end_what_was_open_until_the_kernel_gives_up_rfc_5382_req_10() {
    // Errors that pass never come here: the kernel keeps them to itself. What comes here is final.
    let mut bench = Bench::open();
    bench.connection.failed(SocketError::TimedOut);
    bench.expect_reset_to_guest();
    assert_eq!(bench.connection.reason(), Some(CloseReason::PeerTimeout));
}

#[test]
fn segments_for_a_guest_are_not_larger_than_it_takes() {
    for (offered, expected) in [(Some(536), 536), (None, 536), (Some(9000), 1460), (Some(0), 64)] {
        let syn = Segment { mss: offered, ..syn() };
        let mut connection = Connection::accept(START, &syn, ISS, &TcpSettings::new(1500));
        connection.connected(START, SPACE);
        connection.next_action(START);
        connection.segment(START, &ack());
        connection.readable();
        let Some(Action::SendData { mss, .. }) = connection.next_action(START) else { panic!() };
        assert_eq!(mss, expected);
    }
}

#[test]
fn windows_are_not_shifted_unless_both_agree_rfc_7323_2_2() {
    let mut connection = Connection::accept(START, &Segment { window_shift: None, ..syn() }, ISS, &TcpSettings::new(1500));
    connection.connected(START, 1_000_000);
    let Some(Action::Send(answer)) = connection.next_action(START) else { panic!() };
    assert_eq!(answer.window_shift, None);
    connection.segment(START, &ack());
    assert_eq!(connection.segment(START, &data(0, 2000)).len, 2000);
    connection.written(START, 2000);
    connection.space(START, 1_000_000);
    let Some(Action::Send(answer)) = connection.next_action(START) else { panic!() };
    assert_eq!(answer.window, 65_535);
    connection.readable();
    let Some(Action::SendData { limit: 500, .. }) = connection.next_action(START) else { panic!() };
}

#[test]
fn a_call_that_the_guest_does_not_answer_is_given_up_after_fifteen_seconds() {
    let mut bench = Bench { connection: Connection::call(START, ISS, SPACE, &TcpSettings::new(1500)), now: START };
    let mut asked = Vec::new();
    while bench.connection.reason().is_none() {
        while let Some(Action::Send(segment)) = bench.next() {
            assert_eq!(segment.flags, Flags::SYN);
            asked.push(bench.now.since(START).as_secs());
        }
        bench.now = bench.connection.deadline();
        bench.connection.tick(bench.now);
    }
    assert_eq!((asked, bench.now.since(START).as_secs()), (vec![0, 1, 3, 7], 15));
    assert_eq!(bench.connection.reason(), Some(CloseReason::GuestTimeout));
    assert!(matches!(bench.next(), Some(Action::Send(Segment { flags, .. })) if flags.has(Flags::RST)));
    assert_eq!(bench.next(), Some(Action::Reset));
}
