//! Leases survive: what is written down comes before what the client hears.

use super::*;

#[test]
fn a_client_hears_of_its_lease_when_it_is_written_down_and_not_before() {
    let mut bench = Bench::new();
    let offer = bench.ask(&Message::new(1, DISCOVER)).unwrap();
    bench.unconfirmed = Some(Vec::new());
    let request = Message::new(1, REQUEST).asking_for(offer.yiaddr).naming(SERVER);
    assert_eq!(bench.ask(&request), None);
    assert!(bench.owners.is_empty());
    let tickets = bench.unconfirmed.take().unwrap();
    bench.act(|server, now, actions| server.confirm(now, tickets[0], actions));
    assert_eq!((bench.owners.len(), bench.replies.len()), (1, 1));
    bench.act(|server, now, actions| server.confirm(now, tickets[0], actions));
    assert_eq!(bench.replies.len(), 1, "once");
}

#[test]
fn one_confirmation_stands_for_all_changes_before_it() {
    let mut bench = Bench::new();
    bench.unconfirmed = Some(Vec::new());
    for number in 0..4 {
        bench.ask(&Message::new(number, REQUEST).from(address(10 + number)));
    }
    let tickets = bench.unconfirmed.take().unwrap();
    assert!(tickets.is_sorted());
    bench.act(|server, now, actions| server.confirm(now, tickets[2], actions));
    assert_eq!(bench.replies.iter().map(|reply| reply.yiaddr.octets()[3]).collect::<Vec<_>>(), [10, 11, 12]);
}

#[test]
fn a_lease_that_can_not_be_written_down_is_not_given() {
    let mut bench = Bench::new();
    bench.unconfirmed = Some(Vec::new());
    bench.ask(&Message::new(1, REQUEST).from(FIRST));
    let ticket = bench.unconfirmed.take().unwrap()[0];
    bench.server.fail(ticket);
    bench.act(|server, now, actions| server.confirm(now, ticket, actions));
    assert_eq!(bench.replies, []);
    assert_eq!(bench.ask(&Message::new(2, REQUEST).from(FIRST)).unwrap().kind(), NAK, "the address stays the client's");
    assert_eq!(bench.ask(&Message::new(1, REQUEST).from(FIRST)).unwrap().kind(), ACK, "which asks again");
}

#[test]
fn a_request_that_is_repeated_is_answered_once_and_a_release_overtakes_it() {
    let mut bench = Bench::new();
    bench.unconfirmed = Some(Vec::new());
    for _ in 0..3 {
        bench.ask(&Message::new(1, REQUEST).from(FIRST));
    }
    let last = *bench.unconfirmed.as_ref().unwrap().last().unwrap();
    bench.act(|server, now, actions| server.confirm(now, last, actions));
    assert_eq!(bench.replies.drain(..).count(), 1);
    bench.ask(&Message::new(1, REQUEST).from(FIRST));
    bench.ask(&Message::new(1, RELEASE).from(FIRST));
    let last = *bench.unconfirmed.as_ref().unwrap().last().unwrap();
    bench.act(|server, now, actions| server.confirm(now, last, actions));
    assert_eq!(bench.replies, []);
}

#[test]
fn what_waits_to_be_confirmed_is_bounded() {
    let (pool, subnet) = ("10.77.0.10-10.77.63.250".parse().unwrap(), "10.77.0.0/18".parse().unwrap());
    let mut bench = Bench::with(DhcpSettings { pool, subnet, leases_per_port: Some(u32::MAX), ..settings() });
    bench.unconfirmed = Some(Vec::new());
    let mut ask = |port: u16, number: u16| {
        let [high, low] = number.to_be_bytes();
        let mac = MacAddr([2, 0, 0, 0, high, low]);
        let ciaddr = Ipv4Addr::from_bits(pool_first().to_bits() + u32::from(number));
        bench.ask_on(port, &Message { mac, ..Message::new(0, REQUEST).from(ciaddr) })
    };
    for number in 0..PENDING_PER_PORT as u16 {
        assert_eq!(ask(0, number), Ok(None));
    }
    assert_eq!(ask(0, 9_999), Err(DropReason::ShareExceeded));
    assert_eq!(ask(1, 10_000), Ok(None), "others are not disturbed");
}

fn pool_first() -> Ipv4Addr {
    FIRST
}

#[test]
fn leases_quarantines_and_names_survive_a_restart() {
    let mut bench = Bench::new();
    let web = Message::new(1, REQUEST).with(12, b"web").with(61, b"\xff\0\0\0\x01duid").from(FIRST);
    bench.ask(&web);
    bench.lease(2);
    bench.lease(3);
    bench.ask(&Message::new(2, DECLINE).asking_for(SECOND).naming(SERVER));
    bench.ask(&Message::new(3, RELEASE).from(address(12)));
    let written = serde_json::to_string(&bench.book).unwrap();
    let read: LeaseBook = serde_json::from_str(&written).unwrap();
    let mut after = Bench::restarted(settings(), read, UnixSeconds(WALL.0 + 300));
    assert_eq!(after.owners.into_iter().collect::<Vec<_>>(), [(FIRST, Station { port: PortId(0), mac: mac(1) })]);
    after.owners = BTreeMap::new();
    assert_eq!(after.server.address_of(&"web".parse().unwrap()), Some(FIRST));
    assert_eq!(after.lease(3).yiaddr, address(12), "what it had is remembered");
    assert_eq!(after.lease(4).yiaddr, address(13), "neither leased nor quarantined");
    assert_eq!(after.ask(&web).unwrap().kind(), ACK);
    after.pass(Duration::from_secs(299));
    assert_eq!(after.lease_on(1, 5).unwrap().yiaddr, address(14));
    after.pass(Duration::from_secs(1));
    assert_eq!(
        after.ask_on(1, &Message::new(6, DISCOVER).asking_for(SECOND)).unwrap().unwrap().yiaddr,
        SECOND,
        "the quarantine is over"
    );
}

#[test]
fn leases_end_while_nobody_is_there_and_a_clock_that_was_set_back_makes_none_longer() {
    let mut bench = Bench::new();
    bench.lease(1);
    let later = Bench::restarted(settings(), bench.book.clone(), UnixSeconds(WALL.0 + 50_000));
    assert!(later.owners.is_empty());
    let mut back = Bench::restarted(settings(), bench.book, UnixSeconds(WALL.0 - 1_000_000));
    assert_eq!(back.owners.len(), 1);
    back.pass(Duration::from_secs(43_200));
    assert!(back.owners.is_empty());
}

#[test]
fn what_is_written_down_about_addresses_elsewhere_is_left_alone() {
    let mut bench = Bench::new();
    bench.lease(1);
    let elsewhere = DhcpSettings { pool: "10.77.0.100-10.77.0.110".parse().unwrap(), ..settings() };
    let mut moved = Bench::restarted(elsewhere, bench.book, WALL);
    assert!(moved.owners.is_empty());
    assert_eq!(moved.lease(1).yiaddr, address(100));
    assert_eq!(moved.book.records().count(), 2);
}

#[test]
fn what_the_server_knows_is_what_is_written_down() {
    let mut bench = Bench::new();
    bench.lease(1);
    bench.ask(&Message::new(2, DISCOVER));
    bench.lease(3);
    bench.ask(&Message::new(3, RELEASE).from(address(12)));
    assert_eq!(bench.server.records().collect::<Vec<_>>(), bench.book.records().cloned().collect::<Vec<_>>());
}
