//! Who gets which address, and when: RFC 2131, sections 3 and 4.3.

use super::*;

fn kind(reply: Option<Reply>) -> Option<u8> {
    reply.map(|reply| reply.kind())
}

#[test]
fn a_client_is_offered_an_address_and_gets_it_rfc_2131_3_1() {
    let mut bench = Bench::new();
    let ack = bench.lease(1);
    assert_eq!((ack.yiaddr, ack.xid, ack.chaddr), (FIRST, 0x1234_5601, mac(1).0));
    assert_eq!((ack.seconds(51), ack.seconds(58), ack.seconds(59)), (Some(43_200), Some(21_600), Some(37_800)));
    assert_eq!(ack.option(54), Some(&SERVER.octets()[..]));
    assert_eq!(bench.owners[&FIRST], Station { port: PortId(0), mac: mac(1) });
    assert_eq!(bench.lease(2).yiaddr, SECOND);
}

#[test]
fn an_offered_address_is_kept_for_a_while_and_then_offered_to_others() {
    let mut bench = Bench::with(DhcpSettings { pool: "10.77.0.10-10.77.0.10".parse().unwrap(), ..settings() });
    assert_eq!(bench.ask(&Message::new(1, DISCOVER)).unwrap().yiaddr, FIRST);
    assert_eq!(bench.ask_on(1, &Message::new(2, DISCOVER)), Err(DropReason::NoFreeAddress));
    bench.pass(Duration::from_secs(59));
    assert_eq!(bench.ask_on(1, &Message::new(2, DISCOVER)), Err(DropReason::NoFreeAddress));
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.ask_on(1, &Message::new(2, DISCOVER)).unwrap().unwrap().yiaddr, FIRST);
    let late = Message::new(1, REQUEST).asking_for(FIRST).naming(SERVER);
    assert_eq!(kind(bench.ask(&late)), Some(NAK));
}

#[test]
fn the_address_is_what_the_client_has_had_or_asks_for_or_any_rfc_2131_4_3_1() {
    let mut bench = Bench::new();
    assert_eq!(bench.ask(&Message::new(1, DISCOVER).asking_for(address(15))).unwrap().yiaddr, address(15));
    assert_eq!(bench.lease(2).yiaddr, FIRST);
    assert_eq!(bench.ask(&Message::new(2, DISCOVER).asking_for(address(16))).unwrap().yiaddr, FIRST, "it has one");
    bench.pass(Duration::from_secs(43_200));
    assert!(bench.owners.is_empty());
    assert_eq!(bench.lease(3).yiaddr, SECOND, "one that nobody ever had comes first");
    assert_eq!(bench.lease(2).yiaddr, FIRST, "it had one");
    for elsewhere in [address(9), SERVER, FIRST, Ipv4Addr::new(192, 0, 2, 1)] {
        assert_eq!(bench.ask(&Message::new(4, DISCOVER).asking_for(elsewhere)).unwrap().yiaddr, address(12));
    }
}

#[test]
fn a_client_that_picks_another_server_gets_silence_and_its_offer_is_withdrawn_rfc_2131_4_3_2() {
    let mut bench = Bench::with(DhcpSettings { pool: "10.77.0.10-10.77.0.10".parse().unwrap(), ..settings() });
    bench.ask(&Message::new(1, DISCOVER));
    let elsewhere = Message::new(1, REQUEST).asking_for(address(99)).naming(address(2));
    assert_eq!(bench.ask(&elsewhere), None);
    assert_eq!(bench.ask_on(1, &Message::new(2, DISCOVER)).unwrap().unwrap().yiaddr, FIRST);
}

#[test]
fn a_request_for_what_was_not_offered_is_refused_rfc_2131_4_3_2() {
    let mut bench = Bench::new();
    bench.lease(1);
    bench.ask(&Message::new(2, DISCOVER));
    for wrong in [FIRST, SERVER, address(99), Ipv4Addr::new(192, 168, 1, 5)] {
        let nak = bench.ask(&Message::new(2, REQUEST).asking_for(wrong).naming(SERVER)).unwrap();
        let codes: Vec<_> = nak.options.iter().map(|(code, _)| *code).collect();
        assert_eq!((nak.kind(), nak.yiaddr, codes), (NAK, Ipv4Addr::UNSPECIFIED, vec![53, 54, 56]), "{wrong}");
    }
}

#[test]
fn a_client_that_comes_from_another_network_is_told_so_rfc_2131_4_3_2() {
    let mut bench = Bench::new();
    let foreign = Ipv4Addr::new(192, 168, 1, 5);
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).asking_for(foreign))), Some(NAK), "INIT-REBOOT");
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).from(foreign))), Some(NAK), "REBINDING");
}

#[test]
fn a_rebooting_client_gets_its_address_back_and_no_other_rfc_2131_4_3_2() {
    let mut bench = Bench::new();
    bench.lease(1);
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).asking_for(FIRST))), Some(ACK));
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).asking_for(SECOND))), Some(NAK));
    bench.pass(Duration::from_secs(50_000));
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).asking_for(FIRST))), Some(ACK), "after its lease had ended");
}

#[test]
fn a_rebooting_client_that_is_not_known_gets_silence_rfc_2131_4_3_2() {
    let mut bench = Bench::new();
    bench.lease(1);
    for asked in [FIRST, SECOND] {
        assert_eq!(bench.ask(&Message::new(2, REQUEST).asking_for(asked)), None);
    }
    assert_eq!(bench.ask_on(1, &Message::new(1, REQUEST).asking_for(FIRST)), Ok(None), "behind another port it is another");
}

#[test]
fn a_lease_is_renewed_by_ciaddr_and_ends_if_it_is_not_rfc_2131_4_4_5() {
    let mut bench = Bench::new();
    bench.lease(1);
    for _ in 0..5 {
        bench.pass(Duration::from_secs(40_000));
        let ack = bench.ask(&Message::new(1, REQUEST).from(FIRST)).unwrap();
        assert_eq!((ack.kind(), ack.yiaddr, ack.ciaddr), (ACK, FIRST, FIRST));
        assert_eq!((ack.to, ack.to_mac), (SocketAddrV4::new(FIRST, 68), mac(1)));
    }
    bench.pass(Duration::from_secs(43_199));
    assert!(bench.owners.contains_key(&FIRST));
    bench.pass(Duration::from_secs(1));
    assert!(bench.owners.is_empty());
    assert_eq!(bench.server.counters().expired, 1);
}

#[test]
fn nobody_renews_what_somebody_else_has() {
    let mut bench = Bench::new();
    bench.lease(1);
    assert_eq!(kind(bench.ask(&Message::new(2, REQUEST).from(FIRST))), Some(NAK));
    let same_name_elsewhere = bench.ask_on(1, &Message::new(1, REQUEST).from(FIRST)).unwrap();
    assert_eq!(kind(same_name_elsewhere), Some(NAK), "the same MAC address behind another port");
    assert_eq!(bench.owners[&FIRST].port, PortId(0));
}

#[test]
fn a_client_that_renews_what_nobody_knows_of_keeps_it_if_it_is_free() {
    let mut bench = Bench::new();
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).from(address(17)))), Some(ACK));
    assert_eq!(kind(bench.ask(&Message::new(2, REQUEST).from(address(99)))), Some(NAK), "not in the pool");
    assert_eq!(bench.lease(3).yiaddr, FIRST);
}

#[test]
fn a_released_address_is_free_and_remembered_rfc_2131_4_3_4() {
    let mut bench = Bench::new();
    bench.lease(1);
    assert_eq!(bench.ask(&Message::new(1, RELEASE).from(FIRST).naming(address(2))), None);
    assert_eq!(bench.ask_on(1, &Message::new(1, RELEASE).from(FIRST).naming(SERVER)), Ok(None));
    assert_eq!(bench.ask(&Message::new(2, RELEASE).from(FIRST).naming(SERVER)), None);
    assert!(bench.owners.contains_key(&FIRST), "only its own client, at its own port, can release it");
    assert_eq!(bench.ask(&Message::new(1, RELEASE).from(FIRST).naming(SERVER)), None);
    assert!(bench.owners.is_empty());
    assert_eq!((bench.lease(2).yiaddr, bench.lease(1).yiaddr), (SECOND, FIRST));
}

#[test]
fn a_declined_address_is_given_to_nobody_for_a_while_rfc_2131_4_3_3() {
    let mut bench = Bench::with(DhcpSettings { pool: "10.77.0.10-10.77.0.11".parse().unwrap(), ..settings() });
    bench.lease(1);
    assert_eq!(bench.ask_on(1, &Message::new(9, DECLINE).asking_for(FIRST).naming(SERVER)), Ok(None));
    assert!(bench.owners.contains_key(&FIRST), "it is not the one that has it");
    assert_eq!(bench.ask(&Message::new(1, DECLINE).asking_for(FIRST).naming(SERVER)), None);
    assert!(bench.owners.is_empty());
    assert_eq!(bench.events, [DhcpEvent::Declined { address: FIRST, station: Station { port: PortId(0), mac: mac(1) } }]);
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).from(FIRST))), Some(NAK));
    assert_eq!(bench.lease_on(1, 2).unwrap().yiaddr, SECOND);
    assert_eq!(bench.ask_on(2, &Message::new(3, DISCOVER)), Err(DropReason::NoFreeAddress));
    bench.pass(Duration::from_secs(600));
    assert_eq!(bench.lease_on(2, 3).unwrap().yiaddr, FIRST);
}

#[test]
fn a_client_with_an_address_from_elsewhere_is_told_parameters_without_a_lease_rfc_2131_4_3_5() {
    let mut bench = Bench::new();
    let reply = bench.ask(&Message::new(1, INFORM).from(address(200)).with(55, &[1, 3, 51, 58])).unwrap();
    assert_eq!((reply.kind(), reply.yiaddr, reply.ciaddr), (ACK, Ipv4Addr::UNSPECIFIED, address(200)));
    assert_eq!((reply.to, reply.to_mac), (SocketAddrV4::new(address(200), 68), mac(1)));
    let codes: Vec<_> = reply.options.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [53, 54, 1, 3]);
    assert_eq!(bench.ask_on(0, &Message::new(1, INFORM)), Err(DropReason::BadDhcp));
    assert!(bench.server.records().next().is_none());
}

#[test]
fn an_address_is_probed_before_it_is_offered_rfc_2131_3_1_2() {
    let mut bench = Bench::with(DhcpSettings { probe: Some(Duration::from_millis(250)), ..settings() });
    assert_eq!(bench.ask(&Message::new(1, DISCOVER)), None);
    assert_eq!(bench.ask(&Message { xid: 77, ..Message::new(1, DISCOVER) }), None, "while the probe is out");
    assert_eq!(bench.ask(&Message::new(1, REQUEST).asking_for(FIRST).naming(SERVER)), None, "what was not offered yet");
    assert_eq!(bench.probed, [FIRST]);
    assert_eq!(bench.server.next_tick(), Some(bench.now.after(Duration::from_millis(250))));
    bench.heard(FIRST, 0, mac(1));
    bench.pass(Duration::from_millis(250));
    let offer = bench.replies.pop().unwrap();
    assert_eq!((offer.kind(), offer.yiaddr, offer.xid), (OFFER, FIRST, 77), "that the client itself answers is no harm");
    let request = Message::new(1, REQUEST).asking_for(FIRST).naming(SERVER);
    assert_eq!(kind(bench.ask(&request)), Some(ACK));
    assert_eq!(kind(bench.ask(&Message::new(1, DISCOVER))), Some(OFFER), "what it has needs no probe");
    assert_eq!(bench.probed, [FIRST]);
}

#[test]
fn an_address_that_somebody_uses_is_not_offered_and_another_is_looked_for() {
    let mut bench = Bench::with(DhcpSettings { probe: Some(Duration::from_millis(250)), ..settings() });
    bench.ask(&Message::new(1, DISCOVER));
    bench.heard(FIRST, 3, mac(99));
    assert_eq!(bench.events, [DhcpEvent::InUse { address: FIRST, station: Station { port: PortId(3), mac: mac(99) } }]);
    bench.heard(FIRST, 3, mac(99));
    assert_eq!(bench.probed, [FIRST, SECOND]);
    bench.pass(Duration::from_millis(250));
    assert_eq!(bench.replies.pop().unwrap().yiaddr, SECOND);
    assert_eq!(bench.events.len(), 1);
}

#[test]
fn probes_are_bounded_and_without_one_more_an_address_is_offered_at_once() {
    let pool = "10.77.0.10-10.77.3.250".parse().unwrap();
    let subnet = "10.77.0.0/22".parse().unwrap();
    let probe = Some(Duration::from_millis(250));
    let mut bench = Bench::with(DhcpSettings { probe, pool, subnet, leases_per_port: Some(1000), ..settings() });
    for number in 0..300u16 {
        let mac = MacAddr([2, 0, 0, 0, (number >> 8) as u8, number as u8]);
        bench.send_bytes(0, mac, &Message { mac, ..Message::new(0, DISCOVER) }.bytes()).unwrap();
    }
    assert_eq!((bench.probed.len(), bench.replies.len()), (PROBES_MAX, 300 - PROBES_MAX));
    bench.pass(Duration::from_millis(250));
    assert_eq!(bench.replies.len(), 300);
}

#[test]
fn clients_are_told_apart_by_what_they_call_themselves_rfc_2131_4_2_and_rfc_4361() {
    let mut bench = Bench::new();
    let named = |id: &[u8], kind| Message::new(1, kind).with(61, id);
    assert_eq!(bench.ask(&named(b"\xff\0\0\0\x01duid-a", DISCOVER)).unwrap().yiaddr, FIRST);
    assert_eq!(bench.ask(&named(b"\xff\0\0\0\x02duid-b", DISCOVER)).unwrap().yiaddr, SECOND);
    let moved = Message { mac: mac(7), ..named(b"\xff\0\0\0\x01duid-a", DISCOVER) };
    assert_eq!(bench.ask(&moved).unwrap().yiaddr, FIRST, "the identifier counts, not the MAC address");
    assert_eq!(bench.ask(&Message::new(1, DISCOVER)).unwrap().yiaddr, address(12));
}

#[test]
fn reserved_addresses_are_for_their_owner_alone() {
    let reservation = |owner, last| Reservation { owner, address: address(last), hostname: None };
    let reservations = vec![
        reservation(ReservationOwner::Mac(mac(1)), 10),
        reservation(ReservationOwner::ClientId("00:77:65:62".parse().unwrap()), 200),
        reservation(ReservationOwner::Port("vm3".to_owned()), 201),
    ];
    let mut bench = Bench::with(DhcpSettings { reservations, ..settings() });
    assert_eq!(bench.lease(2).yiaddr, SECOND, "10 is kept");
    assert_eq!(bench.ask(&Message::new(4, DISCOVER).asking_for(FIRST)).unwrap().yiaddr, address(12));
    assert_eq!(bench.lease(1).yiaddr, FIRST);
    assert_eq!(bench.ask(&Message::new(5, DISCOVER).with(61, b"\0web")).unwrap().yiaddr, address(200));
    assert_eq!(bench.lease_on(3, 6).unwrap().yiaddr, address(201));
    assert_eq!(bench.lease_on(3, 7).unwrap().yiaddr, address(13), "one at a time");
    assert_eq!(kind(bench.ask(&Message::new(8, REQUEST).from(address(200)))), Some(NAK));
    assert_eq!(kind(bench.ask(&Message::new(8, REQUEST).asking_for(FIRST).naming(SERVER))), Some(NAK));
}

#[test]
fn a_machine_that_boots_in_stages_keeps_the_address_of_its_port() {
    let owner = ReservationOwner::Port("vm0".to_owned());
    let reservations = vec![Reservation { owner, address: address(50), hostname: None }];
    let mut bench = Bench::with(DhcpSettings { reservations, ..settings() });
    assert_eq!(bench.lease(1).yiaddr, address(50), "firmware");
    let system = Message::new(1, DISCOVER).with(61, b"\xff\0\0\0\x01duid");
    assert_eq!(bench.ask(&system).unwrap().yiaddr, address(50), "the operating system, which calls itself something else");
    let request = Message::new(1, REQUEST).with(61, b"\xff\0\0\0\x01duid").asking_for(address(50)).naming(SERVER);
    assert_eq!(kind(bench.ask(&request)), Some(ACK));
    assert_eq!(kind(bench.ask(&Message::new(1, RELEASE).from(address(50)))), None);
    assert!(bench.owners.contains_key(&address(50)), "the firmware's lease is over");
}

#[test]
fn a_client_moves_to_the_address_that_is_reserved_for_it_meanwhile() {
    let mut bench = Bench::new();
    bench.lease(1);
    let reservations = vec![Reservation { owner: ReservationOwner::Mac(mac(1)), address: address(50), hostname: None }];
    bench.act(|server, now, actions| server.reconfigure(now, DhcpSettings { reservations, ..settings() }, actions)).unwrap();
    assert!(bench.owners.contains_key(&FIRST));
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).from(FIRST))), Some(NAK));
    assert_eq!(bench.lease(1).yiaddr, address(50));
}

#[test]
fn a_client_that_moves_leaves_its_old_address_and_takes_its_name_along_rfc_2131_2_1() {
    let mut bench = Bench::new();
    let named = |kind, name: &[u8]| Message::new(1, kind).with(12, name);
    assert_eq!(kind(bench.ask(&named(REQUEST, b"web").from(FIRST))), Some(ACK));
    let reservations = vec![Reservation { owner: ReservationOwner::Mac(mac(1)), address: address(50), hostname: None }];
    bench.act(|server, now, actions| server.reconfigure(now, DhcpSettings { reservations, ..settings() }, actions)).unwrap();
    assert_eq!(kind(bench.ask(&named(REQUEST, b"web").from(FIRST))), Some(NAK));
    assert_eq!(bench.ask(&named(DISCOVER, b"web")).unwrap().yiaddr, address(50));
    assert_eq!(kind(bench.ask(&named(REQUEST, b"web").asking_for(address(50)).naming(SERVER))), Some(ACK));
    assert_eq!(bench.owners.keys().collect::<Vec<_>>(), [&address(50)]);
    assert_eq!(bench.server.address_of(&"web".parse().unwrap()), Some(address(50)));
    assert_eq!(bench.book.records().map(|record| record.address).collect::<Vec<_>>(), [address(50)]);
}

#[test]
fn leases_outside_of_changed_settings_end_and_the_others_stay() {
    let mut bench = Bench::new();
    bench.lease(1);
    bench.lease(2);
    let pool = "10.77.0.11-10.77.0.30".parse().unwrap();
    bench.act(|server, now, actions| server.reconfigure(now, DhcpSettings { pool, ..settings() }, actions)).unwrap();
    assert_eq!(bench.owners.keys().collect::<Vec<_>>(), [&SECOND]);
    assert_eq!(bench.book.records().map(|record| record.address).collect::<Vec<_>>(), [SECOND]);
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).from(FIRST))), Some(NAK));
    assert_eq!(kind(bench.ask(&Message::new(2, REQUEST).from(SECOND))), Some(ACK));
    assert_eq!(bench.lease(3).yiaddr, address(12));
    let bad = DhcpSettings { mtu: 1, ..settings() };
    assert!(bench.act(|server, now, actions| server.reconfigure(now, bad, actions)).is_err());
}

#[test]
fn answers_go_where_rfc_2131_4_1_says() {
    let mut bench = Bench::new();
    let everybody = (SocketAddrV4::new(Ipv4Addr::BROADCAST, 68), MacAddr::BROADCAST);
    let unicast = bench.ask(&Message::new(1, DISCOVER)).unwrap();
    assert_eq!((unicast.to, unicast.to_mac), (SocketAddrV4::new(FIRST, 68), mac(1)), "straight to who can't answer ARP yet");
    let flagged = bench.ask(&Message { broadcast: true, ..Message::new(1, DISCOVER) }).unwrap();
    assert_eq!((flagged.to, flagged.to_mac, flagged.broadcast), (everybody.0, everybody.1, true));
    let nak = bench.ask(&Message::new(1, REQUEST).from(address(99))).unwrap();
    assert_eq!((nak.to, nak.to_mac), everybody, "a NAK, even with ciaddr");
    let relayed = Message { giaddr: address(5), ..Message::new(1, DISCOVER) };
    bench.send_bytes(0, mac(55), &relayed.bytes()).unwrap();
    let reply = bench.replies.pop().unwrap();
    assert_eq!((reply.to, reply.to_mac, reply.giaddr), (SocketAddrV4::new(address(5), 67), mac(55), address(5)));
    let nak = bench.ask(&Message { giaddr: address(5), ..Message::new(1, REQUEST).from(address(99)) }).unwrap();
    assert_eq!((nak.to.ip(), nak.broadcast), (&address(5), true), "the relay agent is to broadcast it");
}

#[test]
fn whoever_wants_an_address_elsewhere_is_not_served_rfc_2131_4_3_1_and_rfc_3011() {
    let mut bench = Bench::new();
    let elsewhere = Ipv4Addr::new(192, 0, 2, 1);
    assert_eq!(bench.ask(&Message { giaddr: elsewhere, ..Message::new(1, DISCOVER) }), None);
    assert_eq!(bench.ask(&Message::new(1, DISCOVER).with(118, &[192, 0, 2, 0])), None);
    let here = bench.ask(&Message::new(1, DISCOVER).with(118, &[10, 77, 0, 0])).unwrap();
    assert_eq!(here.option(118), Some(&[10, 77, 0, 0][..]));
}

#[test]
fn an_operator_can_end_a_lease() {
    let mut bench = Bench::new();
    bench.lease(1);
    bench.act(|server, now, actions| server.end_lease(now, FIRST, actions));
    assert!(bench.owners.is_empty() && bench.book.records().next().is_none());
    bench.act(|server, now, actions| server.end_lease(now, address(99), actions));
}

#[test]
fn a_client_that_claims_the_gateways_mac_address_is_not_served() {
    let mut bench = Bench::new();
    let message = Message { mac: SERVER_MAC, ..Message::new(1, DISCOVER) };
    assert_eq!(bench.ask_on(0, &message), Err(DropReason::GatewayClaimed));
    assert_eq!(bench.ask_on(77, &Message::new(1, DISCOVER)), Err(DropReason::ReceiverDown), "a port that is gone");
}

#[test]
fn a_client_that_gets_its_address_while_it_is_probed_is_not_offered_it_as_well() {
    let mut bench = Bench::with(DhcpSettings { probe: Some(Duration::from_millis(250)), ..settings() });
    bench.ask(&Message::new(1, DISCOVER));
    assert_eq!(kind(bench.ask(&Message::new(1, REQUEST).from(FIRST))), Some(ACK));
    bench.pass(Duration::from_millis(250));
    assert_eq!((bench.replies.len(), bench.server.next_tick()), (0, Some(START.after(Duration::from_secs(43_200)))));
}
