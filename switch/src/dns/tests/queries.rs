//! What clients send, and what fits into their answers.

use super::*;

fn refusal(query: &Message) -> ResponseCode {
    let mut bench = Bench::new();
    assert_eq!(bench.send(client(1), &query.to_vec().unwrap()), Err(DropReason::BadDns));
    let (_, answer) = bench.answers.pop().unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.message_type), (1, MessageType::Response));
    answer.metadata.response_code
}

#[test]
fn an_answer_has_the_clients_id_and_question_rfc_1035_4_1_1() {
    let mut bench = Bench::new();
    let mut ask = query("WWW.Example.com.", RecordType::A);
    ask.metadata.id = 0xbeef;
    let answer = bench.resolve(&ask, |question| {
        assert_ne!(question.message.metadata.id, 0xbeef, "the id upstream is another");
        question.answer(&[a("www.example.com.", 300, 1)])
    });
    assert_eq!(
        (answer.metadata.id, answer.metadata.recursion_desired, answer.metadata.recursion_available),
        (0xbeef, true, true)
    );
    assert!(answer.queries[0].name.eq_case(&name("WWW.Example.com.")), "in the client's own letters");
    assert_eq!((answer.answers, answer.edns), (vec![a("www.example.com.", 300, 1)], None));
}

#[test]
fn whoever_is_not_of_the_network_gets_nothing() {
    for foreign in [[192, 0, 2, 1], [10, 77, 1, 1], [10, 77, 0, 255], [10, 77, 0, 0]] {
        let mut bench = Bench::new();
        let from = DnsClient { address: SocketAddrV4::new(foreign.into(), 53), ..client(1) };
        let bytes = query("web.weft.internal.", RecordType::A).to_vec().unwrap();
        assert_eq!(bench.send(from, &bytes), Err(DropReason::SpoofedSource));
        assert!(bench.answers.is_empty() && bench.asked.is_empty());
    }
}

#[test]
fn what_is_no_ordinary_query_is_refused() {
    let good = query("example.com.", RecordType::A);
    let spoilt = |change: &dyn Fn(&mut Message)| refusal(&changed(good.clone(), change));
    assert_eq!(spoilt(&|query| query.queries.push(good.queries[0].clone())), ResponseCode::FormErr, "RFC 9619");
    assert_eq!(spoilt(&|query| query.queries.clear()), ResponseCode::FormErr);
    assert_eq!(spoilt(&|query| query.answers.push(a("a.", 1, 1))), ResponseCode::FormErr);
    assert_eq!(spoilt(&|query| query.authorities.push(a("a.", 1, 1))), ResponseCode::FormErr);
    assert_eq!(spoilt(&|query| query.additionals = vec![a("a.", 1, 1); 9]), ResponseCode::FormErr);
    for op_code in [OpCode::Notify, OpCode::Update, OpCode::Status] {
        assert_eq!(spoilt(&|query| query.metadata.op_code = op_code), ResponseCode::NotImp, "{op_code:?}");
    }
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(refusal(&query("example.com.", kind)), ResponseCode::Refused);
    }
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(refusal(&chaos), ResponseCode::Refused);
}

#[test]
fn a_later_version_of_edns_is_refused_with_badvers_rfc_6891_6_1_3() {
    let mut bench = Bench::new();
    let mut ask = with_edns(query("web.", RecordType::A), 1232);
    ask.edns.as_mut().unwrap().set_version(1);
    assert_eq!(bench.send(client(1), &ask.to_vec().unwrap()), Err(DropReason::BadDns));
    let answer = Message::from_vec(&bench.answers.pop().unwrap().1).unwrap();
    assert_eq!((u16::from(answer.metadata.response_code), answer.edns.unwrap().version()), (16, 0));
}

#[test]
fn answers_and_what_is_too_short_are_not_answered_at_all() {
    let mut bench = Bench::new();
    let answer = query("web.", RecordType::A).into_response().to_vec().unwrap();
    for bytes in [&answer[..], &answer[..11], &[]] {
        assert_eq!(bench.send(client(1), bytes), Err(DropReason::BadDns));
    }
    assert!(bench.answers.is_empty());
    let cut = query("web.", RecordType::A).to_vec().unwrap();
    for len in 12..cut.len() {
        assert_eq!(bench.send(client(1), &cut[..len]), Err(DropReason::BadDns));
        let (_, answer) = bench.answers.pop().unwrap();
        assert_eq!((answer.len(), answer[3] & 0xf), (12, 1), "FORMERR");
    }
}

#[test]
fn a_name_that_points_to_itself_harms_nobody() {
    let mut bench = Bench::new();
    let mut bytes = query("a.", RecordType::A).to_vec().unwrap();
    bytes.splice(12..15, [0xc0, 12]);
    assert_eq!(bench.send(client(1), &bytes), Err(DropReason::BadDns));
    let promises = [0, 1, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(bench.send(client(1), &promises), Err(DropReason::BadDns), "as many records as can be promised");
}

#[test]
fn without_recursion_only_what_is_known_is_answered_rfc_1034_4_3_1() {
    let mut bench = Bench::new();
    let mut ask = query("example.com.", RecordType::A);
    ask.metadata.recursion_desired = false;
    assert_eq!(bench.ask(&ask).unwrap().metadata.response_code, ResponseCode::Refused);
    bench.resolve(&query("example.com.", RecordType::A), |question| question.answer(&[a("example.com.", 300, 1)]));
    assert_eq!(bench.ask(&ask).unwrap().answers.len(), 1);
}

fn many(count: u8) -> Vec<Record> {
    (0..count).map(|last| a("example.com.", 300, last)).collect()
}

#[test]
fn an_answer_fits_into_what_the_client_takes_or_says_that_it_is_truncated_rfc_6891_6_2_3() {
    // A header and a question are 29 bytes, EDNS 11, and each address 16.
    for (payload, most) in [(None, 30), (Some(100), 29), (Some(512), 29), (Some(1232), 74), (Some(65_535), 89)] {
        let limit = payload.map_or(512, |payload: u16| payload.clamp(512, 1472));
        for (count, whole) in [(most, true), (most + 1, false)] {
            let mut bench = Bench::new();
            let plain = query("example.com.", RecordType::A);
            let ask = payload.map_or(plain.clone(), |payload| with_edns(plain, payload));
            assert!(bench.ask(&ask).is_none());
            let question = bench.asked();
            let answer = question.answer(&many(count)).to_vec().unwrap();
            let bytes = bench.reply_bytes(&question, &answer).unwrap();
            assert!(bytes.len() <= limit.into(), "{} bytes for {payload:?}", bytes.len());
            let answer = Message::from_vec(&bytes).unwrap();
            assert_eq!((answer.metadata.truncation, answer.answers.len()), if whole { (false, count.into()) } else { (true, 0) });
            assert_eq!((answer.queries.len(), answer.edns.is_some()), (1, payload.is_some()));
        }
    }
}

#[test]
fn what_nobody_asked_for_is_left_away_before_an_answer_is_truncated_rfc_2181_9() {
    let mut bench = Bench::new();
    let answer = bench.resolve(&query("example.com.", RecordType::A), |question| {
        changed(question.answer(&many(10)), |answer| answer.additionals = many(30))
    });
    assert_eq!((answer.metadata.truncation, answer.answers.len(), answer.additionals.len()), (false, 10, 0));
}

#[test]
fn over_tcp_an_answer_may_be_as_long_as_any_rfc_7766() {
    let mut bench = Bench::new();
    let from = DnsClient { transport: ClientTransport::Tcp(5), ..client(1) };
    assert!(bench.ask_as(from, &query("example.com.", RecordType::TXT)).is_none());
    let question = bench.asked();
    let text = |number: u8| {
        Record::from_rdata(name("example.com."), 60, RData::TXT(TXT::new(vec![format!("{number}-{}", "x".repeat(250))])))
    };
    let records: Vec<_> = (0..200).map(text).collect();
    let bytes = question.answer(&records).to_vec().unwrap();
    let answer = Message::from_vec(&bench.reply_bytes(&question, &bytes).unwrap()).unwrap();
    assert_eq!((answer.metadata.truncation, answer.answers.len()), (false, 200));
    let datagram = bench.ask(&query("example.com.", RecordType::TXT)).unwrap();
    assert!(datagram.metadata.truncation, "the same from the cache, over UDP");
}

#[test]
fn a_client_gets_edns_if_it_uses_it_rfc_6891_6_1_1_and_signatures_if_it_wants_them() {
    let mut bench = Bench::new();
    let mut ask = with_edns(query("example.com.", RecordType::A), 4096);
    ask.edns.as_mut().unwrap().set_dnssec_ok(true);
    ask.metadata.checking_disabled = true;
    let answer = bench.resolve(&ask, |question| {
        assert!(question.message.edns.as_ref().unwrap().flags().dnssec_ok && question.message.metadata.checking_disabled);
        assert_eq!(question.message.max_payload(), 1232);
        let mut answer = question.answer(&[a("example.com.", 300, 1)]);
        answer.metadata.authentic_data = true;
        answer
    });
    let edns = answer.edns.as_ref().unwrap();
    assert!(edns.flags().dnssec_ok && answer.metadata.authentic_data && answer.metadata.checking_disabled);
    assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
    let plain = bench.resolve(&query("example.com.", RecordType::A), |question| {
        assert!(!question.message.edns.as_ref().unwrap().flags().dnssec_ok, "another question, because its answer is another");
        let mut answer = question.answer(&[a("example.com.", 300, 1)]);
        answer.metadata.authentic_data = true;
        answer
    });
    assert!(!plain.metadata.authentic_data, "not for who didn't ask (RFC 6840, section 5.8)");
}
