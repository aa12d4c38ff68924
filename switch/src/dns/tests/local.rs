//! The network's own names, and those that don't leave it.

use std::net::Ipv6Addr;

use hickory_proto::rr::rdata::{AAAA, PTR};

use super::*;
use crate::dhcp::{DhcpServer, DhcpSettings, LeaseBook, Reservation, ReservationOwner, UnixSeconds};

/// The answer to a question that must not reach an upstream.
fn answer(text: &str, kind: RecordType) -> Message {
    let mut bench = Bench::new();
    let answer = bench.ask(&query(text, kind)).unwrap_or_else(|| panic!("{text} was asked of an upstream"));
    assert!(answer.metadata.recursion_available && answer.queries == query(text, kind).queries);
    answer
}

fn data(text: &str, kind: RecordType) -> Vec<RData> {
    let answer = answer(text, kind);
    assert_eq!((answer.metadata.response_code, answer.metadata.authoritative), (ResponseCode::NoError, true));
    answer.answers.into_iter().map(|record| record.data).collect()
}

/// Code and the zone from which it is known.
fn nothing(text: &str, kind: RecordType) -> (ResponseCode, String) {
    let answer = answer(text, kind);
    assert!(answer.answers.is_empty());
    let [soa] = &answer.authorities[..] else { panic!("without an SOA, clients can't keep it (RFC 2308, section 3)") };
    assert!(matches!(&soa.data, RData::SOA(data) if data.minimum <= 5 && soa.ttl <= 5), "a lease may come in a moment");
    assert!(name(text).to_lowercase() == soa.name || soa.name.zone_of(&name(text)) || name(text).num_labels() == 1);
    (answer.metadata.response_code, soa.name.to_string())
}

fn is_forwarded(text: &str, kind: RecordType) -> bool {
    let mut bench = Bench::new();
    bench.ask(&query(text, kind)).is_none() && bench.asked().message.queries[0].name == name(text)
}

#[test]
fn hosts_and_the_gateway_have_addresses() {
    for text in ["web.weft.internal.", "WEB.Weft.Internal.", "web."] {
        assert_eq!(data(text, RecordType::A), [RData::A(A(WEB))], "{text}");
    }
    assert_eq!(data("gateway.weft.internal.", RecordType::A), [RData::A(A(GATEWAY))]);
    assert_eq!(data("gateway.", RecordType::ANY), [RData::A(A(GATEWAY))]);
}

#[test]
fn what_a_host_does_not_have_is_answered_with_nothing_and_not_with_silence() {
    for kind in
        [RecordType::AAAA, RecordType::HTTPS, RecordType::MX, RecordType::TXT, RecordType::SOA, RecordType::Unknown(65_280)]
    {
        assert_eq!(nothing("web.weft.internal.", kind), (ResponseCode::NoError, "weft.internal.".to_owned()), "{kind}");
    }
    assert_eq!(nothing("web.", RecordType::AAAA).0, ResponseCode::NoError);
}

#[test]
fn names_that_nobody_has_do_not_exist() {
    for text in ["db.weft.internal.", "a.web.weft.internal.", "_x.weft.internal.", "*.weft.internal.", "db."] {
        for kind in [RecordType::A, RecordType::AAAA] {
            assert_eq!(nothing(text, kind), (ResponseCode::NXDomain, "weft.internal.".to_owned()), "{text}");
        }
    }
}

#[test]
fn a_name_of_any_bytes_does_not_exist() {
    let mut bench = Bench::new();
    let mut ask = query("ab.weft.internal.", RecordType::A).to_vec().unwrap();
    ask[13..15].copy_from_slice(&[0xff, 0]);
    bench.send(client(1), &ask).unwrap();
    let (_, answer) = bench.answers.pop().unwrap();
    assert_eq!((answer[3] & 0xf, &answer[12..34]), (3, &ask[12..34]), "NXDOMAIN, with the question as it was");
}

#[test]
fn the_domain_itself_has_an_soa_and_a_server() {
    assert!(
        matches!(&data("weft.internal.", RecordType::SOA)[..], [RData::SOA(soa)] if soa.mname == name("gateway.weft.internal."))
    );
    assert!(
        matches!(&data("weft.internal.", RecordType::NS)[..], [RData::NS(server)] if server.0 == name("gateway.weft.internal."))
    );
    assert_eq!(nothing("weft.internal.", RecordType::A).0, ResponseCode::NoError);
}

#[test]
fn addresses_of_the_network_have_names_or_none_and_do_not_leave_it() {
    let pointer = |text: &str| vec![RData::PTR(PTR(name(text)))];
    assert_eq!(data("10.0.77.10.in-addr.arpa.", RecordType::PTR), pointer("web.weft.internal."));
    assert_eq!(data("1.0.77.10.IN-ADDR.arpa.", RecordType::PTR), pointer("gateway.weft.internal."));
    let zone = "0.77.10.in-addr.arpa.".to_owned();
    assert_eq!(nothing("11.0.77.10.in-addr.arpa.", RecordType::PTR), (ResponseCode::NXDomain, zone.clone()));
    assert_eq!(nothing("10.0.77.10.in-addr.arpa.", RecordType::A), (ResponseCode::NoError, zone));
    for elsewhere in
        ["10.1.77.10.in-addr.arpa.", "8.8.8.8.in-addr.arpa.", "010.0.77.10.in-addr.arpa.", "256.0.77.10.in-addr.arpa."]
    {
        assert!(is_forwarded(elsewhere, RecordType::PTR), "{elsewhere}");
    }
}

#[test]
fn special_names_are_what_their_rfcs_say() {
    for text in ["localhost.", "a.localhost."] {
        assert_eq!(data(text, RecordType::A), [RData::A(A(Ipv4Addr::LOCALHOST))], "RFC 6761, section 6.3");
        assert_eq!(data(text, RecordType::AAAA), [RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))]);
        assert_eq!(nothing(text, RecordType::MX).0, ResponseCode::NoError);
    }
    assert_eq!(data("1.0.0.127.in-addr.arpa.", RecordType::PTR), [RData::PTR(PTR(name("localhost.")))], "RFC 6303, section 4.2");
    assert_eq!(nothing("a.b.invalid.", RecordType::A), (ResponseCode::NXDomain, "invalid.".to_owned()), "RFC 6761, section 6.4");
    assert_eq!(nothing("a.onion.", RecordType::A), (ResponseCode::NXDomain, "onion.".to_owned()), "RFC 7686, section 2");
    let dns = RecordType::SVCB;
    assert_eq!(
        nothing("_dns.resolver.arpa.", dns),
        (ResponseCode::NoError, "resolver.arpa.".to_owned()),
        "RFC 9462, section 6.4"
    );
}

#[test]
fn everything_else_is_asked_of_upstreams() {
    for text in ["example.com.", "weft.internal.example.com.", "internal.", "xweft.internal.", "."] {
        assert!(is_forwarded(text, RecordType::NS), "{text}");
    }
    assert!(is_forwarded("internal.weft.", RecordType::A));
}

#[test]
fn local_names_are_answered_without_any_upstream_and_without_recursion() {
    let mut bench = Bench::with(settings(), &[]);
    let mut ask = query("web.weft.internal.", RecordType::A);
    ask.metadata.recursion_desired = false;
    assert_eq!(bench.ask(&ask).unwrap().answers.len(), 1);
    assert_eq!(bench.forwarder.counters().local, 1);
}

#[test]
fn another_domain_takes_the_place_of_the_old_one() {
    let mut bench = Bench::new();
    bench.forwarder.reconfigure(DnsSettings { domain: "lab.example".parse().unwrap(), ..settings() });
    assert_eq!(bench.ask(&query("web.lab.example.", RecordType::A)).unwrap().answers.len(), 1);
    assert!(bench.ask(&query("web.weft.internal.", RecordType::A)).is_none());
}

#[test]
fn a_host_is_found_as_soon_as_the_dhcp_server_knows_it() {
    let (subnet, pool) = ("10.77.0.0/24".parse().unwrap(), "10.77.0.10-10.77.0.20".parse().unwrap());
    let owner = ReservationOwner::Port("vm1".to_owned());
    let mail = Reservation { owner, address: Ipv4Addr::new(10, 77, 0, 50), hostname: Some("mail".parse().unwrap()) };
    let mut dhcp = DhcpSettings::new(subnet, GATEWAY, MacAddr([2; 6]), pool);
    dhcp.reservations = vec![mail];
    let server = DhcpServer::new(dhcp, START, UnixSeconds(0), &LeaseBook::default()).unwrap();
    let mut bench = Bench::new();
    let question = query("mail.weft.internal.", RecordType::A).to_vec().unwrap();
    let reverse = query("50.0.77.10.in-addr.arpa.", RecordType::PTR).to_vec().unwrap();
    for bytes in [question, reverse] {
        bench.act(|forwarder, now, random, actions| forwarder.query(now, client(1), &bytes, &server, random, actions)).unwrap();
        let (_, answer) = bench.answers.pop().unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    }
}
