//! The forwarder between guests and upstreams, both played by the tests.

mod caching;
mod local;
mod queries;
mod upstreams;
mod world;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::*;
use crate::{HostName, MacAddr};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const WEB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const START: Timestamp = Timestamp::from_millis(1_000_000);

fn settings() -> DnsSettings {
    DnsSettings {
        subnet: "10.77.0.0/24".parse().unwrap(),
        gateway: GATEWAY,
        domain: "weft.internal".parse().unwrap(),
        mtu: 1500,
        cache_entries: 100,
        cache_bytes: 100_000,
    }
}

fn upstream(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 53))
}

fn client(number: u8) -> DnsClient {
    DnsClient {
        station: Station { port: PortId(number.into()), mac: MacAddr([2, 0, 0, 0, 0, number]) },
        address: SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100 + number), 40_000),
        transport: ClientTransport::Udp,
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// A query with id 1 for `text` of a type, as a simple client sends it.
fn query(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(name(text), kind)];
    message
}

fn changed(mut message: Message, change: impl FnOnce(&mut Message)) -> Message {
    change(&mut message);
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.edns = Some(edns);
    message
}

fn a(text: &str, ttl: u32, last: u8) -> Record {
    Record::from_rdata(name(text), ttl, RData::A(A::new(203, 0, 113, last)))
}

fn soa(zone: &str, ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(name("ns.example."), name("admin.example."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name(zone), ttl, RData::SOA(data))
}

/// One host, "web".
struct OneHost;

impl LocalNames for OneHost {
    fn address_of(&self, name: &HostName) -> Option<Ipv4Addr> {
        (name.as_str() == "web").then_some(WEB)
    }

    fn name_of(&self, address: Ipv4Addr) -> Option<HostName> {
        (address == WEB).then(|| "web".parse().unwrap())
    }
}

/// A question that an upstream got.
#[derive(Clone, Debug)]
struct Question {
    attempt: AttemptId,
    server: SocketAddr,
    transport: UpstreamTransport,
    message: Message,
}

impl Question {
    /// An answer to it, to be changed.
    fn answer(&self, answers: &[Record]) -> Message {
        let mut message = Message::response(self.message.metadata.id, OpCode::Query);
        message.metadata.recursion_available = true;
        message.queries = self.message.queries.clone();
        message.answers = answers.to_vec();
        message.edns = self.message.edns.clone();
        message
    }

    fn fail(&self, code: ResponseCode) -> Message {
        let mut message = self.answer(&[]);
        message.metadata.response_code = code;
        message
    }
}

struct Bench {
    forwarder: DnsForwarder,
    now: Timestamp,
    random: u64,
    /// Questions whose sockets are open.
    open: BTreeMap<AttemptId, Question>,
    /// In the order in which they were asked, since the last call of `asked`.
    asked: Vec<Question>,
    answers: Vec<(DnsClient, Vec<u8>)>,
}

impl Bench {
    fn new() -> Self {
        Self::with(settings(), &[upstream(1), upstream(2)])
    }

    fn with(settings: DnsSettings, upstreams: &[SocketAddr]) -> Self {
        let mut forwarder = DnsForwarder::new(settings);
        forwarder.set_upstreams(upstreams);
        Self { forwarder, now: START, random: 7, open: BTreeMap::new(), asked: Vec::new(), answers: Vec::new() }
    }

    fn act<T>(&mut self, call: impl FnOnce(&mut DnsForwarder, Timestamp, Random<'_>, &mut Vec<Action>) -> T) -> T {
        let mut actions = Vec::new();
        let random = &mut self.random;
        let mut source = || {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *random >> 33
        };
        let result = call(&mut self.forwarder, self.now, &mut source, &mut actions);
        for action in actions {
            match action {
                Action::Answer { to, message } => self.answers.push((to, message)),
                Action::Ask { attempt, server, transport, message } => {
                    let message = Message::from_vec(&message).unwrap();
                    let question = Question { attempt, server, transport, message };
                    assert!(self.open.insert(attempt, question.clone()).is_none());
                    self.asked.push(question);
                }
                Action::Close { attempt } => assert!(self.open.remove(&attempt).is_some(), "closed twice"),
            }
        }
        result
    }

    fn send(&mut self, from: DnsClient, bytes: &[u8]) -> Result<(), DropReason> {
        self.act(|forwarder, now, random, actions| forwarder.query(now, from, bytes, &OneHost, random, actions))
    }

    /// Client 1 asks; returns the answer if it comes at once.
    fn ask(&mut self, query: &Message) -> Option<Message> {
        self.ask_as(client(1), query).map(|bytes| Message::from_vec(&bytes).unwrap())
    }

    fn ask_as(&mut self, from: DnsClient, query: &Message) -> Option<Vec<u8>> {
        self.send(from, &query.to_vec().unwrap()).unwrap();
        assert!(self.answers.len() <= 1);
        self.answers.pop().map(|(to, bytes)| {
            assert_eq!(to, from);
            bytes
        })
    }

    /// The only question that was asked of an upstream since the last call.
    fn asked(&mut self) -> Question {
        assert_eq!(self.asked.len(), 1, "{:?}", self.asked);
        self.asked.remove(0)
    }

    /// An upstream answers; returns what the only client gets, if it gets something.
    fn reply(&mut self, question: &Question, message: &Message) -> Option<Message> {
        self.reply_bytes(question, &message.to_vec().unwrap()).map(|bytes| Message::from_vec(&bytes).unwrap())
    }

    fn reply_bytes(&mut self, question: &Question, bytes: &[u8]) -> Option<Vec<u8>> {
        self.act(|forwarder, now, random, actions| forwarder.upstream_answer(now, question.attempt, bytes, random, actions));
        assert!(self.answers.len() <= 1, "{:?}", self.answers);
        self.answers.pop().map(|(_, bytes)| bytes)
    }

    fn break_socket(&mut self, question: &Question) {
        self.act(|forwarder, now, random, actions| forwarder.upstream_failed(now, question.attempt, random, actions));
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.act(|forwarder, now, random, actions| forwarder.tick(now, random, actions));
    }

    /// Asks, and has the first upstream answer.
    fn resolve(&mut self, query: &Message, answer: impl FnOnce(&Question) -> Message) -> Message {
        assert!(self.ask(query).is_none(), "it was known already");
        let question = self.asked();
        let answer = answer(&question);
        self.reply(&question, &answer).expect("an answer to the client")
    }
}
