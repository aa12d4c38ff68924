//! Guests and upstreams that do anything, by the thousand.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Ask { client: u8, name: u8, edns: Option<u16>, tcp: bool },
    Answer { which: Index, how: How },
    Pass { millis: u32 },
    Disconnect { client: u8 },
    Upstreams { count: u8 },
}

/// What an upstream does with a question.
#[derive(Clone, Debug)]
enum How {
    Records(u8),
    Nothing,
    Code(u8),
    Truncated,
    OtherId,
    Garbage(Vec<u8>),
    Changed(Index, u8),
    Cut(Index),
    Break,
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        4 => (0..120u8).prop_map(How::Records),
        2 => Just(How::Nothing),
        2 => (0..12u8).prop_map(How::Code),
        2 => Just(How::Truncated),
        1 => Just(How::OtherId),
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(How::Garbage),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, value)| How::Changed(at, value)),
        1 => any::<Index>().prop_map(How::Cut),
        2 => Just(How::Break),
    ];
    prop_oneof![
        6 => (0..6u8, 0..8u8, prop::option::of(any::<u16>()), any::<bool>())
            .prop_map(|(client, name, edns, tcp)| Step::Ask { client, name, edns, tcp }),
        6 => (any::<Index>(), how).prop_map(|(which, how)| Step::Answer { which, how }),
        3 => (0..3_000u32).prop_map(|millis| Step::Pass { millis }),
        1 => (0..6u8).prop_map(|client| Step::Disconnect { client }),
        1 => (0..3u8).prop_map(|count| Step::Upstreams { count }),
    ]
}

/// Guests that count their questions and answers.
struct World {
    bench: Bench,
    next_id: u16,
    /// Questions without an answer, and since when.
    unanswered: BTreeMap<u16, (DnsClient, Timestamp, usize)>,
}

impl World {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Ask { client: number, name, edns, tcp } => self.ask(*number, *name, *edns, *tcp),
            Step::Answer { which, how } => {
                let open: Vec<_> = self.bench.open.values().cloned().collect();
                if !open.is_empty() {
                    self.answer(&open[which.index(open.len())], how);
                }
            }
            Step::Pass { millis } => {
                for _ in 0..*millis / 100 {
                    self.bench.pass(Duration::from_millis(100));
                    self.check();
                }
            }
            Step::Disconnect { client: number } => {
                self.bench.act(|forwarder, _, _, actions| forwarder.disconnect(u64::from(*number), actions));
                let gone = ClientTransport::Tcp(u64::from(*number));
                self.unanswered.retain(|_, (client, _, _)| client.transport != gone);
            }
            Step::Upstreams { count } => {
                let upstreams: Vec<_> = (0..*count).map(upstream).collect();
                self.bench.forwarder.set_upstreams(&upstreams);
            }
        }
        self.check();
    }

    fn ask(&mut self, number: u8, name: u8, edns: Option<u16>, tcp: bool) {
        self.next_id += 1;
        let transport = if tcp { ClientTransport::Tcp(number.into()) } else { ClientTransport::Udp };
        let from = DnsClient { transport, ..client(number) };
        let mut ask = query(&format!("{name}.example."), RecordType::A);
        ask.metadata.id = self.next_id;
        let ask = edns.map_or(ask.clone(), |payload| with_edns(ask, payload));
        let len_max = match (tcp, edns) {
            (true, _) => 65_535,
            (false, payload) => usize::from(payload.unwrap_or(512).clamp(512, 1472)),
        };
        self.unanswered.insert(self.next_id, (from, self.bench.now, len_max));
        self.bench.send(from, &ask.to_vec().unwrap()).unwrap();
    }

    fn answer(&mut self, question: &Question, how: &How) {
        let mut message = question.answer(&[]);
        let owner = message.queries[0].name.to_ascii();
        let records = |count: u8| (0..count).map(|last| a(&owner, 3, last)).collect();
        match how {
            How::Records(count) => message.answers = records(*count),
            How::Code(code) => message.metadata.response_code = ResponseCode::from(0, *code),
            How::Truncated => message.metadata.truncation = true,
            How::OtherId => message.metadata.id = message.metadata.id.wrapping_add(1),
            How::Break => return self.bench.break_socket(question),
            How::Nothing => message.authorities = vec![soa("example.", 3, 2)],
            How::Garbage(_) | How::Changed(..) | How::Cut(_) => message.answers = records(3),
        }
        let mut bytes = message.to_vec().unwrap();
        match how {
            How::Garbage(garbage) => bytes.clone_from(garbage),
            How::Changed(at, value) => {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            How::Cut(at) => bytes.truncate(at.index(bytes.len())),
            _ => {}
        }
        self.bench
            .act(|forwarder, now, random, actions| forwarder.upstream_answer(now, question.attempt, &bytes, random, actions));
    }

    /// Everybody gets one answer, in time, that fits.
    fn check(&mut self) {
        for (to, bytes) in self.bench.answers.drain(..) {
            let id = u16::from_be_bytes([bytes[0], bytes[1]]);
            let (client, _, len_max) = self.unanswered.remove(&id).expect("one answer for a question");
            assert_eq!(to, client);
            assert!(bytes.len() <= len_max && bytes[2] & 0x80 != 0, "{} of {len_max} bytes", bytes.len());
        }
        for (_, asked, _) in self.unanswered.values() {
            assert!(self.bench.now.since(*asked) < Duration::from_secs(5), "a client waits for five seconds");
        }
        let waiting: usize = self.bench.forwarder.waiting.values().sum();
        assert_eq!(waiting, self.unanswered.len());
        assert_eq!(self.bench.open.len(), self.bench.forwarder.pending.len());
        self.bench.asked.clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_upstreams_do_every_question_is_answered_once_and_in_time(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World { bench: Bench::new(), next_id: 0, unanswered: BTreeMap::new() };
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Pass { millis: 5_000 });
        prop_assert!(world.unanswered.is_empty() && world.bench.open.is_empty());
        prop_assert_eq!(world.bench.forwarder.next_tick(), None);
    }

    #[test]
    fn whatever_clients_send_it_is_refused_or_answered(
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        which in 0..4u8,
    ) {
        let mut bench = Bench::new();
        let mut bytes = match which {
            0 => noise.clone(),
            1 => query("web.weft.internal.", RecordType::A).to_vec().unwrap(),
            2 => with_edns(query("a.b.c.example.", RecordType::TXT), 4096).to_vec().unwrap(),
            _ => [query("10.0.77.10.in-addr.arpa.", RecordType::PTR).to_vec().unwrap(), noise].concat(),
        };
        for (at, value) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        let _ = bench.send(client(1), &bytes);
        prop_assert!(bench.answers.len() + bench.asked.len() <= 1);
        for (_, answer) in &bench.answers {
            prop_assert!(answer.len() >= 12 && answer[2] & 0x80 != 0 && answer[..2] == bytes[..2]);
        }
    }
}
