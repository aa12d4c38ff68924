//! Long lives and hostile messages, by the thousand.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::AddressRange;

const CLIENTS: u8 = 12;
const PORTS: u16 = 4;

/// What a client, or the world, may do.
#[derive(Clone, Debug)]
enum Step {
    Discover { client: u8, wish: Option<u8> },
    Select { client: u8 },
    SelectAnything { client: u8, last: u8 },
    Reboot { client: u8, last: u8 },
    Renew { client: u8 },
    RenewAnything { client: u8, last: u8 },
    Release { client: u8 },
    Decline { client: u8 },
    Pass { seconds: u32 },
    Claim { port: u16, last: u8 },
    Confirm,
    Fail,
    Restart,
    Reserve { client: u8, last: u8 },
    Shrink { last: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    let last = 8..22u8;
    prop_oneof![
        6 => (client.clone(), prop::option::of(last.clone())).prop_map(|(client, wish)| Step::Discover { client, wish }),
        6 => client.clone().prop_map(|client| Step::Select { client }),
        2 => (client.clone(), last.clone()).prop_map(|(client, last)| Step::SelectAnything { client, last }),
        2 => (client.clone(), last.clone()).prop_map(|(client, last)| Step::Reboot { client, last }),
        4 => client.clone().prop_map(|client| Step::Renew { client }),
        2 => (client.clone(), last.clone()).prop_map(|(client, last)| Step::RenewAnything { client, last }),
        2 => client.clone().prop_map(|client| Step::Release { client }),
        1 => client.clone().prop_map(|client| Step::Decline { client }),
        4 => prop_oneof![Just(1), Just(61), 0..5000u32, Just(43_200)].prop_map(|seconds| Step::Pass { seconds }),
        1 => (0..PORTS, last.clone()).prop_map(|(port, last)| Step::Claim { port, last }),
        3 => Just(Step::Confirm),
        1 => Just(Step::Fail),
        1 => Just(Step::Restart),
        1 => (client, last.clone()).prop_map(|(client, last)| Step::Reserve { client, last }),
        1 => last.prop_map(|last| Step::Shrink { last }),
    ]
}

/// What the clients believe: a lease lasts from the acknowledgement to its end, or until the client gives it up or is told to.
#[derive(Default)]
struct Beliefs {
    leases: BTreeMap<u8, (Ipv4Addr, Timestamp)>,
    offers: BTreeMap<u8, Ipv4Addr>,
}

impl Beliefs {
    fn hear(&mut self, now: Timestamp, reply: &Reply) {
        let client = reply.chaddr[5];
        assert_eq!(reply.port, port_of(client), "an answer goes to whoever asked");
        match reply.kind() {
            OFFER => drop(self.offers.insert(client, reply.yiaddr)),
            ACK => {
                let until = now.after(Duration::from_secs(reply.seconds(51).unwrap().into()));
                self.leases.insert(client, (reply.yiaddr, until));
            }
            NAK => drop(self.leases.remove(&client)),
            other => panic!("type {other}"),
        }
    }

    fn check(&mut self, now: Timestamp) {
        self.leases.retain(|_, (_, until)| *until > now);
        let mut seen = BTreeMap::new();
        for (client, (address, _)) in &self.leases {
            assert_eq!(seen.insert(address, client), None, "two clients hold {address}");
        }
    }
}

fn port_of(client: u8) -> PortId {
    PortId(u16::from(client) % PORTS)
}

fn message(client: u8, step: &Step, beliefs: &Beliefs) -> Option<Message> {
    let has = beliefs.leases.get(&client).map(|(address, _)| *address);
    Some(match step {
        Step::Discover { wish, .. } => {
            let message = Message::new(client, DISCOVER);
            wish.map_or(message.clone(), |last| message.asking_for(address(last)))
        }
        Step::Select { .. } => Message::new(client, REQUEST).asking_for(*beliefs.offers.get(&client)?).naming(SERVER),
        Step::SelectAnything { last, .. } => Message::new(client, REQUEST).asking_for(address(*last)).naming(SERVER),
        Step::Reboot { last, .. } => Message::new(client, REQUEST).asking_for(address(*last)),
        Step::Renew { .. } => Message::new(client, REQUEST).from(has?),
        Step::RenewAnything { last, .. } => Message::new(client, REQUEST).from(address(*last)),
        Step::Release { .. } => Message::new(client, RELEASE).from(has?).naming(SERVER),
        Step::Decline { .. } => Message::new(client, DECLINE).asking_for(has?).naming(SERVER),
        _ => return None,
    })
}

fn live(bench: &mut Bench, beliefs: &mut Beliefs, step: &Step) {
    match step {
        Step::Discover { client, .. }
        | Step::Select { client }
        | Step::SelectAnything { client, .. }
        | Step::Reboot { client, .. }
        | Step::Renew { client }
        | Step::RenewAnything { client, .. }
        | Step::Release { client }
        | Step::Decline { client } => {
            if let Some(message) = message(*client, step, beliefs) {
                if matches!(step, Step::Release { .. } | Step::Decline { .. }) {
                    beliefs.leases.remove(client);
                }
                let _ = bench.send_bytes(port_of(*client).0, message.mac, &message.bytes());
            }
        }
        Step::Pass { seconds } => bench.pass(Duration::from_secs(u64::from(*seconds))),
        Step::Claim { port, last } => bench.heard(address(*last), *port, mac(200 + *port as u8)),
        Step::Confirm => {
            let tickets = bench.unconfirmed.replace(Vec::new()).unwrap();
            tickets.last().iter().for_each(|last| bench.act(|server, now, actions| server.confirm(now, **last, actions)));
        }
        Step::Fail => {
            let tickets = bench.unconfirmed.replace(Vec::new()).unwrap();
            tickets.last().iter().for_each(|last| bench.server.fail(**last));
        }
        Step::Restart => {
            let (now, passed) = (bench.now, bench.now.since(START).as_secs());
            let book = std::mem::take(&mut bench.book);
            let settings = bench.server.settings().clone();
            let wall = UnixSeconds(WALL.0 + passed);
            bench.server = DhcpServer::new(settings, now, wall, &book).unwrap();
            bench.book = book;
            for port in 0..PORTS {
                bench.act(|server, _, actions| server.attach(PortId(port), &format!("vm{port}"), actions));
            }
            bench.unconfirmed = Some(Vec::new());
        }
        Step::Reserve { client, last } => {
            let owner = ReservationOwner::Mac(mac(*client));
            let reservations = vec![Reservation { owner, address: address(*last), hostname: None }];
            change(bench, beliefs, |settings| settings.reservations = reservations);
        }
        Step::Shrink { last } => {
            let pool = AddressRange::new(address(8), address(*last)).unwrap();
            change(bench, beliefs, |settings| settings.pool = pool);
        }
    }
}

/// An operator who takes an address from the settings takes it from its client as well.
fn change(bench: &mut Bench, beliefs: &mut Beliefs, change: impl FnOnce(&mut DhcpSettings)) {
    let mut settings = bench.server.settings().clone();
    change(&mut settings);
    let mut actions = Vec::new();
    bench.server.reconfigure(bench.now, settings, &mut actions).unwrap();
    for action in &actions {
        if let Action::Ended { address } = action {
            beliefs.leases.retain(|_, (other, _)| other != address);
        }
    }
    bench.carry_out(actions);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever clients do, in whatever order, with restarts and changes in between.
    #[test]
    fn no_two_clients_ever_hold_the_same_address(
        steps in prop::collection::vec(step(), 1..120),
        probe in any::<bool>(),
    ) {
        let probe = probe.then_some(Duration::from_millis(250));
        let mut bench = Bench::with(DhcpSettings { probe, leases_per_port: Some(8), ..settings() });
        bench.unconfirmed = Some(Vec::new());
        let mut beliefs = Beliefs::default();
        for step in &steps {
            live(&mut bench, &mut beliefs, step);
            for reply in bench.replies.drain(..) {
                beliefs.hear(bench.now, &reply);
            }
            beliefs.check(bench.now);
        }
    }

    #[test]
    fn garbage_is_refused_or_answered_and_never_harms(
        messages in prop::collection::vec((0..9u8, prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            prop::collection::vec((any::<Index>(), any::<u8>()), 0..6), any::<Index>(), any::<bool>()), 1..30),
    ) {
        let mut bench = Bench::new();
        for (kind, options, changes, cut, whole) in messages {
            let mut message = Message::new(kind, kind).from(FIRST);
            message.options.extend(options);
            let mut bytes = message.bytes();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            let _ = bench.send_bytes(0, message.mac, &bytes);
            bench.replies.clear();
            bench.pass(Duration::from_secs(30));
        }
    }

    #[test]
    fn bytes_without_any_sense_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        let _ = Bench::new().send_bytes(0, mac(1), &bytes);
    }
}

#[test]
fn a_day_in_the_life_of_a_hundred_clients() {
    let pool = "10.77.0.10-10.77.0.250".parse().unwrap();
    let mut bench = Bench::with(DhcpSettings { pool, lease_time: Duration::from_secs(3600), ..settings() });
    let mut addresses = BTreeMap::new();
    for client in 0..100u8 {
        addresses.insert(client, bench.lease_on(u16::from(client) % 10, client).unwrap().yiaddr);
    }
    for minute in 0..24 * 60u32 {
        bench.pass(Duration::from_secs(60));
        // Each renews at T1; every tenth is off at noon for two hours.
        for (client, address) in &addresses {
            let off = client % 10 == 3 && (12 * 60..14 * 60).contains(&minute);
            if (minute + u32::from(*client)) % 30 == 0 && !off {
                let renewal = Message::new(*client, REQUEST).from(*address);
                let reply = bench.ask_on(u16::from(*client) % 10, &renewal).unwrap().unwrap();
                assert_eq!((reply.kind(), reply.yiaddr), (ACK, *address));
            }
        }
    }
    assert_eq!((bench.owners.len(), bench.server.counters().naks), (100, 0));
    assert_eq!(bench.server.counters().expired, 10);
    bench.pass(Duration::from_secs(3600));
    assert!(bench.owners.is_empty());
    assert_eq!(bench.server.next_tick(), None);
}
