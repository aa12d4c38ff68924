//! Asking others: which, how, how often, and whom to believe.

use super::*;

fn example() -> Message {
    query("example.com.", RecordType::A)
}

fn code(answers: &[(DnsClient, Vec<u8>)]) -> Vec<ResponseCode> {
    answers.iter().map(|(_, bytes)| Message::from_vec(bytes).unwrap().metadata.response_code).collect()
}

#[test]
fn a_silent_upstream_is_followed_by_the_next_and_shunned_for_a_while() {
    let mut bench = Bench::new();
    bench.ask(&example());
    assert_eq!(bench.asked().server, upstream(1));
    bench.pass(Duration::from_millis(999));
    assert!(bench.asked.is_empty());
    bench.pass(Duration::from_millis(1));
    let second = bench.asked();
    assert_eq!((second.server, bench.open.len()), (upstream(2), 1), "the first one's socket is closed");
    assert!(bench.reply(&second, &second.answer(&[a("example.com.", 60, 1)])).is_some());
    bench.ask(&query("example.org.", RecordType::A));
    assert_eq!(bench.asked().server, upstream(2));
    bench.pass(Duration::from_secs(31));
    bench.asked.clear();
    bench.ask(&query("example.net.", RecordType::A));
    assert_eq!(bench.asked().server, upstream(1));
}

#[test]
fn a_client_hears_within_five_seconds_that_nobody_answers() {
    for upstreams in [&[upstream(1)][..], &[upstream(1), upstream(2)]] {
        let mut bench = Bench::with(settings(), upstreams);
        bench.ask(&example());
        let mut waited = Duration::ZERO;
        while bench.answers.is_empty() {
            let next = bench.forwarder.next_tick().expect("somebody waits");
            waited += next.since(bench.now);
            bench.pass(next.since(bench.now));
        }
        assert_eq!((waited, code(&bench.answers)), (ANSWER_WITHIN, vec![ResponseCode::ServFail]));
        assert_eq!((bench.asked.len(), bench.open.len(), bench.forwarder.next_tick()), (5, 0, None));
        bench.answers.clear();
        assert_eq!(bench.ask(&example()).unwrap().metadata.response_code, ResponseCode::ServFail, "remembered (RFC 9520)");
        bench.asked.clear();
        bench.pass(Duration::from_secs(5));
        assert!(bench.ask(&example()).is_none(), "but not for long");
    }
}

#[test]
fn an_upstream_that_can_not_be_reached_is_followed_by_the_next_at_once() {
    let mut bench = Bench::new();
    bench.ask(&example());
    for expected in [1, 2, 1, 2, 1, 2] {
        let question = bench.asked();
        assert_eq!(question.server, upstream(expected));
        bench.break_socket(&question);
    }
    assert_eq!(code(&bench.answers), [ResponseCode::ServFail], "not for ever");
}

#[test]
fn without_upstreams_there_is_an_answer_and_with_the_first_one_it_is_another() {
    let mut bench = Bench::with(settings(), &[]);
    assert_eq!(bench.ask(&example()).unwrap().metadata.response_code, ResponseCode::ServFail);
    bench.forwarder.set_upstreams(&[upstream(1)]);
    assert!(bench.ask(&example()).is_none());
    let question = bench.asked();
    bench.forwarder.set_upstreams(&[]);
    assert!(bench.reply(&question, &question.answer(&[])).is_some(), "what is under way goes on");
}

#[test]
fn an_answer_that_does_not_fit_is_asked_for_over_tcp_rfc_1035_4_2_1() {
    let mut bench = Bench::new();
    bench.ask(&example());
    let question = bench.asked();
    let mut truncated = question.answer(&[a("example.com.", 60, 1)]);
    truncated.metadata.truncation = true;
    assert!(bench.reply(&question, &truncated).is_none());
    let over_tcp = bench.asked();
    assert_eq!((over_tcp.server, over_tcp.transport), (upstream(1), UpstreamTransport::Tcp));
    assert_ne!(over_tcp.message.metadata.id, question.message.metadata.id);
    let late = bench.reply(&question, &question.answer(&[a("example.com.", 60, 2)]));
    assert!(late.is_none(), "the socket of the datagram is closed");
    let answer = bench.reply(&over_tcp, &over_tcp.answer(&[a("example.com.", 60, 3)])).unwrap();
    assert_eq!(answer.answers, [a("example.com.", 60, 3)]);
    assert_eq!(bench.forwarder.counters().over_tcp, 1);
}

#[test]
fn an_upstream_without_tcp_is_followed_by_another() {
    let mut bench = Bench::new();
    bench.ask(&example());
    let question = bench.asked();
    let mut truncated = question.answer(&[]);
    truncated.metadata.truncation = true;
    bench.reply(&question, &truncated);
    let over_tcp = bench.asked();
    bench.pass(Duration::from_secs(2));
    assert_eq!((bench.asked().server, bench.open.contains_key(&over_tcp.attempt)), (upstream(2), false));
}

#[test]
fn an_upstream_that_does_not_know_edns_is_asked_without_rfc_6891_7() {
    for answer in [ResponseCode::FormErr, ResponseCode::NotImp] {
        for with_question in [true, false] {
            let mut bench = Bench::new();
            bench.ask(&example());
            let question = bench.asked();
            let refusal = changed(question.fail(answer), |refusal| {
                refusal.edns = None;
                refusal.queries.truncate(usize::from(with_question));
            });
            assert!(bench.reply(&question, &refusal).is_none());
            let plain = bench.asked();
            assert_eq!((plain.server, plain.message.edns.is_some()), (upstream(1), false));
            assert!(bench.reply(&plain, &plain.answer(&[a("example.com.", 60, 1)])).is_some());
        }
    }
    let mut bench = Bench::new();
    bench.ask(&example());
    let question = bench.asked();
    bench.reply(&question, &question.fail(ResponseCode::BADVERS));
    assert!(bench.asked().message.edns.is_none());
}

#[test]
fn only_the_answer_to_the_question_is_believed_rfc_5452() {
    let mut bench = Bench::new();
    bench.ask(&example());
    let question = bench.asked();
    let good = question.answer(&[a("example.com.", 60, 66)]);
    let spoil = |change: &dyn Fn(&mut Message)| changed(good.clone(), change);
    for forged in [
        spoil(&|message| message.metadata.id ^= 1),
        spoil(&|message| message.metadata.message_type = MessageType::Query),
        spoil(&|message| message.metadata.op_code = OpCode::Notify),
        spoil(&|message| message.queries[0].name = name("example.org.")),
        spoil(&|message| message.queries[0].query_type = RecordType::AAAA),
        spoil(&|message| message.queries[0].query_class = DNSClass::CH),
        spoil(&|message| message.queries.clear()),
        spoil(&|message| message.queries.push(example().queries[0].clone())),
    ] {
        assert!(bench.reply(&question, &forged).is_none());
    }
    assert!(bench.reply_bytes(&question, &[0; 5]).is_none());
    assert_eq!(bench.forwarder.counters().foreign_answers, 9);
    assert!(bench.reply(&question, &good).is_some(), "the right one still counts");
    assert!(bench.reply(&question, &good).is_none(), "once");
}

#[test]
fn ids_are_as_random_as_their_source() {
    let mut bench = Bench::new();
    let mut ids = BTreeSet::new();
    for number in 0..100 {
        bench.ask(&query(&format!("{number}.example."), RecordType::A));
        ids.insert(bench.asked().message.metadata.id);
    }
    assert!(ids.len() > 95, "{} ids of 100", ids.len());
}

#[test]
fn an_upstream_that_can_not_or_will_not_is_followed_by_the_next_and_the_last_one_counts() {
    for first in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        let mut bench = Bench::new();
        bench.ask(&example());
        let question = bench.asked();
        assert!(bench.reply(&question, &question.fail(first)).is_none());
        let next = bench.asked();
        assert_eq!(next.server, upstream(2));
        let answer = bench.reply(&next, &next.fail(ResponseCode::Refused)).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
        bench.ask(&query("example.org.", RecordType::A));
        assert_eq!(bench.asked().server, upstream(1), "it did answer, so it is not shunned");
    }
}

#[test]
fn an_answer_that_can_not_be_read_is_passed_on_as_it_is() {
    let mut bench = Bench::new();
    let mut ask = example();
    ask.metadata.id = 0xabcd;
    bench.ask(&ask);
    let question = bench.asked();
    let mut bytes = question.answer(&[a("example.com.", 60, 1)]).to_vec().unwrap();
    // An address of no bytes: hickory-proto refuses it.
    let at = bytes.windows(6).position(|window| window == [0, 4, 203, 0, 113, 1]).unwrap();
    bytes.splice(at..at + 6, [0, 0]);
    assert!(Message::from_vec(&bytes).is_err());
    let answer = bench.reply_bytes(&question, &bytes).unwrap();
    assert_eq!((&answer[..2], &answer[2..]), (&[0xab, 0xcd][..], &bytes[2..]));
    assert!(bench.ask(&example()).is_none(), "and not kept");
}

#[test]
fn guests_that_ask_the_same_share_one_question() {
    let mut bench = Bench::new();
    for number in 1..=5 {
        let mut ask = example();
        ask.metadata.id = number.into();
        bench.ask_as(client(number), &ask);
        bench.ask_as(client(number), &ask);
    }
    let question = bench.asked();
    let bytes = question.answer(&[a("example.com.", 60, 1)]).to_vec().unwrap();
    bench.act(|forwarder, now, random, actions| forwarder.upstream_answer(now, question.attempt, &bytes, random, actions));
    let ids: Vec<_> = bench.answers.iter().map(|(to, bytes)| (to.station.port.0, bytes[1])).collect();
    assert_eq!(ids, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)], "each its own answer, and one");
}

#[test]
fn a_guest_that_asks_for_ever_leaves_room_for_the_others() {
    let mut bench = Bench::new();
    let ask = |bench: &mut Bench, port: u8, number: usize| {
        let bytes = query(&format!("{number}.{port}.example."), RecordType::A).to_vec().unwrap();
        bench.send(client(port), &bytes)
    };
    let taken = |bench: &mut Bench, port| (0..2000).filter(|number| ask(bench, port, *number).is_ok()).count();
    assert_eq!((taken(&mut bench, 1), taken(&mut bench, 2)), (WAITERS_MAX / 2, WAITERS_MAX / 4));
    assert_eq!(ask(&mut bench, 3, 0), Ok(()));
    assert_eq!(ask(&mut bench, 1, 9999), Err(DropReason::ShareExceeded));
    assert_eq!(code(&bench.answers[bench.answers.len() - 1..]), [ResponseCode::ServFail], "it is told");
    assert!(bench.open.len() <= WAITERS_MAX);
    for _ in 0..5 {
        bench.pass(Duration::from_secs(1));
    }
    assert!(bench.open.is_empty() && bench.forwarder.waiting.is_empty());
    assert_eq!(ask(&mut bench, 1, 10_000), Ok(()), "everything is free again");
}

#[test]
fn nobody_is_answered_on_a_connection_or_a_port_that_is_gone() {
    let mut bench = Bench::new();
    let connected = DnsClient { transport: ClientTransport::Tcp(9), ..client(1) };
    bench.ask_as(connected, &example());
    bench.ask_as(client(2), &example());
    bench.ask_as(client(3), &example());
    bench.act(|forwarder, _, _, actions| {
        forwarder.disconnect(9, actions);
        forwarder.forget_port(PortId(2), actions);
    });
    let question = bench.asked();
    let bytes = question.answer(&[a("example.com.", 60, 1)]).to_vec().unwrap();
    bench.act(|forwarder, now, random, actions| forwarder.upstream_answer(now, question.attempt, &bytes, random, actions));
    assert_eq!(bench.answers.iter().map(|(to, _)| to.station.port.0).collect::<Vec<_>>(), [3]);
    assert!(bench.forwarder.waiting.is_empty());
}

#[test]
fn what_nobody_waits_for_any_more_is_not_asked_any_longer() {
    let mut bench = Bench::new();
    for number in 0..20_000 {
        let connected = DnsClient { transport: ClientTransport::Tcp(number), ..client(1) };
        let ask = query(&format!("{number}.example."), RecordType::A);
        bench.send(connected, &ask.to_vec().unwrap()).unwrap();
        bench.act(|forwarder, _, _, actions| forwarder.disconnect(number, actions));
        assert!(bench.open.is_empty(), "a socket was left open");
    }
    bench.ask(&example());
    bench.act(|forwarder, _, _, actions| forwarder.forget_port(PortId(1), actions));
    assert!(bench.open.is_empty() && bench.forwarder.pending.is_empty() && bench.forwarder.next_tick().is_none());
}

#[test]
fn one_name_that_is_slow_does_not_turn_all_others_to_the_next_upstream() {
    let mut bench = Bench::new();
    bench.ask(&query("slow.example.", RecordType::A));
    assert_eq!(bench.asked().server, upstream(1));
    bench.pass(Duration::from_millis(500));
    bench.resolve(&query("a.example.", RecordType::A), |question| question.answer(&[a("a.example.", 60, 1)]));
    bench.pass(Duration::from_millis(500));
    assert_eq!(bench.asked().server, upstream(2), "for the slow one another is asked");
    bench.ask(&query("b.example.", RecordType::A));
    assert_eq!(bench.asked().server, upstream(1));
}
