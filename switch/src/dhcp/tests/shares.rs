//! No guest can take the pool from the others.

use super::*;

fn large() -> DhcpSettings {
    DhcpSettings { pool: "10.77.0.10-10.77.0.109".parse().unwrap(), ..settings() }
}

/// How many addresses a guest gets that never has enough.
fn grab(bench: &mut Bench, port: u16) -> usize {
    (0..200).filter(|number| bench.lease_on(port, *number).is_ok()).count()
}

#[test]
fn a_guest_that_wants_everything_leaves_half_and_the_next_a_third() {
    let mut bench = Bench::with(large());
    assert_eq!(grab(&mut bench, 1), 50);
    assert_eq!(grab(&mut bench, 2), 25);
    for port in 3..9 {
        assert!(bench.lease_on(port, 1).is_ok(), "there is one for each of the others");
    }
    assert_eq!(bench.ask_on(1, &Message::new(201, DISCOVER)), Err(DropReason::ShareExceeded));
    assert!(bench.server.counters().share_exceeded > 0);
}

#[test]
fn a_fixed_limit_holds_instead_if_there_is_one() {
    let mut bench = Bench::with(DhcpSettings { leases_per_port: Some(3), ..large() });
    assert_eq!((grab(&mut bench, 1), grab(&mut bench, 2)), (3, 3));
    let mut open = Bench::with(DhcpSettings { leases_per_port: Some(u32::MAX), ..large() });
    assert_eq!(grab(&mut open, 1), 100);
}

#[test]
fn a_pool_of_one_serves_one() {
    let mut bench = Bench::with(DhcpSettings { pool: "10.77.0.10-10.77.0.10".parse().unwrap(), ..settings() });
    assert_eq!(bench.lease(1).yiaddr, FIRST);
    assert_eq!(bench.ask_on(1, &Message::new(2, DISCOVER)), Err(DropReason::NoFreeAddress));
}

#[test]
fn offers_and_declined_addresses_count_like_leases() {
    let mut bench = Bench::with(large());
    let offers = (0..200).filter(|number| bench.ask_on(1, &Message::new(*number, DISCOVER)).is_ok()).count();
    assert_eq!(offers, 50);
    let mut declines = 0;
    for number in 0..200 {
        if let Ok(Some(offer)) = bench.ask_on(2, &Message::new(number, DISCOVER)) {
            bench.ask_on(2, &Message::new(number, DECLINE).asking_for(offer.yiaddr).naming(SERVER)).unwrap();
            declines += 1;
        }
    }
    assert_eq!(declines, 25);
    assert!(bench.lease_on(3, 1).is_ok());
}

#[test]
fn a_guest_that_claims_every_address_by_arp_is_not_believed_for_ever() {
    let mut bench = Bench::with(DhcpSettings { probe: Some(Duration::from_millis(250)), ..large() });
    let mut served = 0;
    for number in 0..60 {
        let _ = bench.ask_on(1, &Message::new(number, DISCOVER));
        let mut answered = 0;
        while answered < bench.probed.len() {
            let probed = bench.probed[answered];
            bench.heard(probed, 2, mac(200));
            answered += 1;
        }
        bench.probed.clear();
        bench.pass(Duration::from_millis(250));
        served += bench.replies.drain(..).count();
    }
    let lost = bench.server.counters().in_use;
    assert!((30..=50).contains(&lost), "{lost} of 100 addresses are lost to it, for a while");
    assert!(served >= 30, "{served}");
}

#[test]
fn a_guest_that_claims_every_address_by_arp_does_not_keep_a_newcomer_waiting() {
    let probe = Some(Duration::from_millis(250));
    let (subnet, pool) = ("10.77.0.0/16".parse().unwrap(), "10.77.0.10-10.77.255.254".parse().unwrap());
    let mut bench = Bench::with(DhcpSettings { probe, subnet, pool, ..settings() });
    for number in 0..20 {
        bench.ask_on(1, &Message::new(number, DISCOVER)).unwrap();
        let mut answered = 0;
        while answered < bench.probed.len() {
            let probed = bench.probed[answered];
            bench.heard(probed, 2, mac(200));
            bench.heard(probed, 2, mac(201));
            answered += 1;
        }
        assert_eq!(bench.probed.drain(..).count(), 2, "it is believed once");
        bench.pass(Duration::from_millis(250));
        assert_eq!(bench.replies.pop().unwrap().kind(), OFFER);
    }
    bench.ask_on(1, &Message::new(99, DISCOVER)).unwrap();
    for port in 2..6 {
        let probed = *bench.probed.last().unwrap();
        bench.heard(probed, port, mac(200));
    }
    assert_eq!(bench.probed.len(), 4, "several are believed, up to a limit");
}

#[test]
fn a_full_pool_is_logged_once_and_counted_every_time() {
    let mut bench = Bench::with(DhcpSettings { leases_per_port: Some(100), ..settings() });
    assert_eq!(grab(&mut bench, 1), 10);
    assert_eq!(bench.events, [DhcpEvent::PoolFull]);
    assert_eq!(bench.server.counters().pool_full, 190);
    bench.ask_on(1, &Message::new(1, RELEASE).from(SECOND)).unwrap();
    grab(&mut bench, 1);
    assert_eq!(bench.events.len(), 1, "so soon after");
    bench.pass(Duration::from_secs(600));
    bench.ask_on(1, &Message::new(1, RELEASE).from(SECOND)).unwrap();
    bench.pass(Duration::from_secs(1));
    grab(&mut bench, 1);
    assert_eq!(bench.events.len(), 2);
}

#[test]
fn a_client_that_asks_for_ever_costs_the_same_when_the_pool_is_full() {
    let (pool, subnet) = ("10.64.0.0-10.64.63.255".parse().unwrap(), "10.0.0.0/8".parse().unwrap());
    let server = Ipv4Addr::new(10, 0, 0, 1);
    let mut bench = Bench::with(DhcpSettings { pool, subnet, server, leases_per_port: Some(u32::MAX), ..settings() });
    let discover =
        |number: u32| Message { mac: MacAddr::from_u64(0x0200_0000_0000 | u64::from(number)), ..Message::new(0, DISCOVER) };
    let mut actions = Vec::new();
    for number in 0..16_384 {
        let message = discover(number);
        bench.server.handle(bench.now, &options::datagram(&message), &mut actions).unwrap();
    }
    let began = std::time::Instant::now();
    for number in 16_384..26_384 {
        let refused = bench.server.handle(bench.now, &options::datagram(&discover(number)), &mut actions);
        assert_eq!(refused, Err(DropReason::NoFreeAddress));
    }
    assert_eq!(actions.len(), 16_384 + 1, "an offer each, and one line in the log");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?} for 10,000 messages", began.elapsed());
}
