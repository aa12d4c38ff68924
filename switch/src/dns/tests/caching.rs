//! What is remembered, for how long, and how much of it: RFC 1035, RFC 2181, RFC 2308.

use super::*;

/// For how many seconds an answer is remembered.
fn kept(kind: RecordType, answer: impl FnOnce(&Question) -> Message) -> u64 {
    let mut bench = Bench::new();
    let ask = query("example.com.", kind);
    bench.resolve(&ask, answer);
    let mut seconds = 0;
    while seconds < 200_000 && bench.ask(&ask).is_some() {
        let step = if seconds < 1_000 { 1 } else { 100 };
        bench.pass(Duration::from_secs(step));
        seconds += step;
    }
    seconds
}

#[test]
fn an_answer_is_kept_for_its_shortest_time_to_live_and_gets_older() {
    let mut bench = Bench::new();
    let ask = query("example.com.", RecordType::A);
    let alias = Record::from_rdata(name("example.com."), 100, RData::CNAME(CNAME(name("web.example.com."))));
    bench.resolve(&ask, |question| {
        let answer = question.answer(&[alias, a("web.example.com.", 60, 1)]);
        changed(answer, |answer| answer.additionals = vec![a("ns.example.com.", 40, 9)])
    });
    bench.pass(Duration::from_millis(39_900));
    let answer = bench.ask(&ask).unwrap();
    let times: Vec<_> = answer.all_sections().map(|record| record.ttl).collect();
    assert_eq!(times, [61, 21, 1]);
    bench.pass(Duration::from_millis(20_000));
    assert_eq!(
        bench.ask(&ask).unwrap().all_sections().map(|record| record.ttl).collect::<Vec<_>>(),
        [41, 1],
        "what is over is left away"
    );
    bench.pass(Duration::from_millis(100));
    assert!(bench.ask(&ask).is_none());
    assert_eq!(bench.forwarder.counters().cached, 2);
}

#[test]
fn no_answer_is_kept_for_more_than_a_day_or_without_a_time_to_live() {
    assert_eq!(kept(RecordType::A, |question| question.answer(&[a("example.com.", 7 * 86_400, 1)])), 86_400);
    assert_eq!(kept(RecordType::A, |question| question.answer(&[a("example.com.", 0, 1)])), 0);
    assert_eq!(kept(RecordType::A, |question| question.answer(&[a("example.com.", 0x8000_0000, 1)])), 0, "RFC 2181, section 8");
}

#[test]
fn that_there_is_nothing_is_kept_as_long_as_the_zone_says_rfc_2308_5() {
    let nothing = |code, authorities: Vec<Record>| {
        move |question: &Question| changed(question.fail(code), |answer| answer.authorities = authorities)
    };
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        assert_eq!(kept(RecordType::A, nothing(code, vec![soa("com.", 300, 60)])), 60, "the SOA's minimum");
        assert_eq!(kept(RecordType::A, nothing(code, vec![soa("com.", 30, 60)])), 30, "its time to live");
        assert_eq!(kept(RecordType::A, nothing(code, vec![soa("com.", 86_400, 86_400)])), 3 * 3600, "three hours at most");
        assert_eq!(kept(RecordType::A, nothing(code, Vec::new())), 0, "not at all without an SOA");
        assert_eq!(kept(RecordType::A, nothing(code, vec![a("ns.com.", 60, 1)])), 0);
    }
    let alias = Record::from_rdata(name("example.com."), 20, RData::CNAME(CNAME(name("nowhere.example.com."))));
    let to_nothing =
        |question: &Question| changed(question.answer(&[alias]), |answer| answer.authorities = vec![soa("com.", 300, 60)]);
    assert_eq!(kept(RecordType::A, to_nothing), 20, "an alias to nothing");
}

#[test]
fn failures_are_kept_for_seconds_and_refusals_not_at_all_rfc_2308_7() {
    let alone = |code| {
        let mut bench = Bench::with(settings(), &[upstream(1)]);
        let ask = query("example.com.", RecordType::A);
        bench.resolve(&ask, |question| question.fail(code));
        (0..10)
            .take_while(|_| {
                let known = bench.ask(&ask).is_some();
                bench.pass(Duration::from_secs(1));
                known
            })
            .count()
    };
    assert_eq!((alone(ResponseCode::ServFail), alone(ResponseCode::Refused)), (5, 0));
}

#[test]
fn a_truncated_answer_is_not_kept_rfc_2181_9() {
    let mut bench = Bench::new();
    let ask = query("example.com.", RecordType::A);
    bench.ask(&ask);
    let question = bench.asked();
    let mut truncated = question.answer(&[a("example.com.", 60, 1)]);
    truncated.metadata.truncation = true;
    bench.reply(&question, &truncated);
    assert_eq!(bench.forwarder.cached(), 0);
}

#[test]
fn an_answer_counts_for_its_own_question_only() {
    let mut bench = Bench::new();
    bench.resolve(&query("Example.com.", RecordType::A), |question| {
        let poison = vec![a("bank.example.", 86_400, 66), a("www.example.com.", 86_400, 66)];
        changed(question.answer(&[a("example.com.", 60, 1)]), |answer| answer.additionals = poison)
    });
    assert!(bench.ask(&query("eXAMPLE.com.", RecordType::A)).is_some(), "letters are the same in either case");
    for (text, kind) in
        [("bank.example.", RecordType::A), ("www.example.com.", RecordType::A), ("example.com.", RecordType::AAAA)]
    {
        assert!(bench.ask(&query(text, kind)).is_none());
    }
}

#[test]
fn the_cache_is_bounded_in_entries_and_keeps_what_is_asked_for() {
    let mut bench = Bench::with(DnsSettings { cache_entries: 10, ..settings() }, &[upstream(1)]);
    let ask = |number: usize| query(&format!("{number}.example."), RecordType::A);
    for number in 0..30 {
        bench.resolve(&ask(number), |question| question.answer(&[a("a.example.", 600, 1)]));
        assert!(bench.ask(&ask(0)).is_some(), "it is asked for all the time");
    }
    assert_eq!(bench.forwarder.cached(), 10);
    assert!(bench.ask(&ask(29)).is_some() && bench.ask(&ask(21)).is_some() && bench.ask(&ask(20)).is_none());
}

#[test]
fn the_cache_is_bounded_in_bytes() {
    let mut bench = Bench::with(DnsSettings { cache_entries: 1_000_000, cache_bytes: 20_000, ..settings() }, &[upstream(1)]);
    let text = |len: usize| Record::from_rdata(name("a.example."), 600, RData::TXT(TXT::new(vec!["x".repeat(200); len])));
    for number in 0..100 {
        let ask = query(&format!("{number}.example."), RecordType::TXT);
        bench.resolve(&ask, |question| question.answer(&[text(4)]));
    }
    assert!((10..20_000 / 800).contains(&bench.forwarder.cached()), "{}", bench.forwarder.cached());
    let from = DnsClient { transport: ClientTransport::Tcp(1), ..client(1) };
    bench.ask_as(from, &query("large.example.", RecordType::TXT));
    let question = bench.asked();
    let before = bench.forwarder.cached();
    let bytes = question.answer(&[text(100)]).to_vec().unwrap();
    bench.reply_bytes(&question, &bytes).unwrap();
    assert_eq!(bench.forwarder.cached(), before, "what would fill it alone is not kept");
    let mut without = Bench::with(DnsSettings { cache_entries: 0, ..settings() }, &[upstream(1)]);
    without.resolve(&query("a.example.", RecordType::A), |question| question.answer(&[a("a.example.", 600, 1)]));
    assert_eq!(without.forwarder.cached(), 0);
}

#[test]
fn other_upstreams_may_know_other_things() {
    let mut bench = Bench::new();
    let ask = query("example.com.", RecordType::A);
    bench.resolve(&ask, |question| question.answer(&[a("example.com.", 600, 1)]));
    bench.forwarder.set_upstreams(&[upstream(1), upstream(2)]);
    assert!(bench.ask(&ask).is_some(), "they are the same");
    bench.forwarder.set_upstreams(&[upstream(3)]);
    assert!(bench.ask(&ask).is_none());
    assert_eq!(bench.forwarder.cached(), 0);
}
