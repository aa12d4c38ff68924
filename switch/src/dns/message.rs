//! DNS messages (RFC 1035, section 4) with EDNS (RFC 6891): what a client asks, and answers that fit.
//!
//! `hickory-proto` reads and writes them. Headers are looked at before it gets to see a message, because it makes room for as many
//! questions as the header promises.

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::DropReason;

/// Bytes of a header.
const HEADER_LEN: usize = 12;
/// The longest query that is read: a question is at most 260 bytes, and options don't take much more.
const QUERY_LEN_MAX: usize = 4096;
/// The most additional records of a query: one for EDNS, and some that are ignored.
const QUERY_ADDITIONALS_MAX: u16 = 8;
/// What every client can take over UDP (RFC 1035, section 4.2.1).
pub(super) const UDP_LEN_MIN: usize = 512;
/// What is asked for over UDP, and said to be taken: it fits into a packet nearly everywhere, so answers aren't fragmented.
pub(super) const EDNS_PAYLOAD: u16 = 1232;
const UDP_AND_IP_LEN: u16 = 28;
const TRUNCATED: u8 = 0x02;

/// What a client asks.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: u16,
    pub(super) question: Query,
    /// The client wants the forwarder to ask others if it doesn't know (RD).
    pub(super) recursion_desired: bool,
    /// The client checks signatures itself (CD; RFC 4035, section 3.2.2).
    pub(super) checking_disabled: bool,
    /// The client wants to know whether the answer was checked (AD; RFC 6840, section 5.7).
    wants_authentic: bool,
    edns: Option<AskedEdns>,
}

#[derive(Clone, Copy, Debug)]
struct AskedEdns {
    payload: u16,
    dnssec_ok: bool,
}

/// A query that is answered without looking at what it asks.
#[derive(Debug)]
pub(super) enum Unread {
    /// It isn't answered at all.
    Drop(DropReason),
    /// This is the answer.
    Answer(Vec<u8>),
}

/// What is known in answer to a question, from wherever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) code: ResponseCode,
    /// It comes from here.
    pub(super) authoritative: bool,
    /// The upstream says that its signatures are right.
    pub(super) authentic: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Asked {
    /// Reads a query.
    ///
    /// # Errors
    /// What to do instead: responses are dropped so that nobody can make two servers talk to each other for ever; what isn't an ordinary
    /// query gets NOTIMP, what can't be read FORMERR (RFC 1035, section 4.1.1; RFC 9619), a later version of EDNS
    /// BADVERS (RFC 6891, section 6.1.3).
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Unread> {
        let header = Header::read(&mut BinDecoder::new(bytes)).map_err(|_| Unread::Drop(DropReason::BadDns))?;
        if header.message_type == MessageType::Response {
            return Err(Unread::Drop(DropReason::BadDns));
        }
        let refuse = |code| Unread::Answer(bare(&bytes[..HEADER_LEN], code));
        if header.op_code != OpCode::Query {
            return Err(refuse(ResponseCode::NotImp));
        }
        let counts = header.counts;
        let usual = counts.queries == 1 && counts.answers == 0 && counts.authorities == 0;
        if !usual || counts.additionals > QUERY_ADDITIONALS_MAX || bytes.len() > QUERY_LEN_MAX {
            return Err(refuse(ResponseCode::FormErr));
        }
        let message = Message::from_vec(bytes).map_err(|_| refuse(ResponseCode::FormErr))?;
        let edns = message.edns.as_ref();
        let asked = Self {
            id: message.metadata.id,
            question: message.queries.first().cloned().ok_or_else(|| refuse(ResponseCode::FormErr))?,
            recursion_desired: message.metadata.recursion_desired,
            checking_disabled: message.metadata.checking_disabled,
            wants_authentic: message.metadata.authentic_data,
            edns: edns.map(|edns| AskedEdns { payload: edns.max_payload(), dnssec_ok: edns.flags().dnssec_ok }),
        };
        if edns.is_some_and(|edns| edns.version() != 0) {
            return Err(Unread::Answer(asked.fail(ResponseCode::BADVERS)));
        }
        match (asked.question.query_class, asked.question.query_type) {
            (_, RecordType::OPT) => Err(Unread::Answer(asked.fail(ResponseCode::FormErr))),
            // Whole zones, and what servers say about themselves, are nobody's business here.
            (DNSClass::IN, RecordType::AXFR | RecordType::IXFR) => Err(Unread::Answer(asked.fail(ResponseCode::Refused))),
            (DNSClass::IN, _) => Ok(asked),
            _ => Err(Unread::Answer(asked.fail(ResponseCode::Refused))),
        }
    }

    /// The client wants records that prove others (DO; RFC 3225).
    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The longest answer that the client takes over UDP on a network of this MTU, in bytes (RFC 6891, section 6.2.3).
    pub(super) fn udp_len_max(&self, mtu: u16) -> usize {
        let packet = usize::from(mtu.saturating_sub(UDP_AND_IP_LEN));
        self.edns.map_or(UDP_LEN_MIN, |edns| usize::from(edns.payload).min(packet).max(UDP_LEN_MIN))
    }

    /// An answer that only says what went wrong.
    pub(super) fn fail(&self, code: ResponseCode) -> Vec<u8> {
        self.encode(&Response::new(code), 0, usize::from(u16::MAX))
    }

    /// The answer to this question, `age` seconds after `response` was learned, in at most `len_max` bytes. If it doesn't fit without the
    /// records that nobody asked for, it says that it is truncated (RFC 2181, section 9), and the client comes back over TCP.
    pub(super) fn encode(&self, response: &Response, age: u32, len_max: usize) -> Vec<u8> {
        let mut message = self.message(response, age);
        if let Some(bytes) = encode_within(&message, len_max) {
            return bytes;
        }
        message.additionals.clear();
        if let Some(bytes) = encode_within(&message, len_max) {
            return bytes;
        }
        self.truncated(response.code, len_max)
    }

    /// An answer without records that sends the client to TCP. Header, question and EDNS fit into 512 bytes.
    fn truncated(&self, code: ResponseCode, len_max: usize) -> Vec<u8> {
        let mut message = self.message(&Response::new(code), 0);
        message.metadata.truncation = true;
        encode_within(&message, len_max).unwrap_or_default()
    }

    fn message(&self, response: &Response, age: u32) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        let metadata = &mut message.metadata;
        metadata.authoritative = response.authoritative;
        metadata.recursion_desired = self.recursion_desired;
        metadata.recursion_available = true;
        metadata.checking_disabled = self.checking_disabled;
        // RFC 6840, section 5.8.
        metadata.authentic_data = response.authentic && (self.wants_authentic || self.dnssec_ok());
        metadata.response_code = response.code;
        message.queries = vec![self.question.clone()];
        message.answers = aged(&response.answers, age);
        message.authorities = aged(&response.authorities, age);
        message.additionals = aged(&response.additionals, age);
        message.edns = self.edns.map(|edns| own_edns(edns.dnssec_ok));
        message
    }

    /// The question as it goes upstream. `edns` is false for an upstream that doesn't know it.
    pub(super) fn upstream_query(&self, id: u16, edns: bool) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.authentic_data = true;
        message.queries = vec![self.question.clone()];
        message.edns = edns.then(|| own_edns(self.dnssec_ok()));
        // A name and a type that were read can be written.
        message.to_vec().unwrap_or_default()
    }

    /// An answer that can't be read here, as it is but for the id; or that it is truncated, if it is too long.
    pub(super) fn relay(&self, answer: &[u8], len_max: usize) -> Vec<u8> {
        if answer.len() > len_max {
            return self.truncated(ResponseCode::NoError, len_max);
        }
        [&self.id.to_be_bytes(), &answer[2..]].concat()
    }
}

impl Response {
    /// A response without records.
    pub(super) fn new(code: ResponseCode) -> Self {
        let (answers, authorities, additionals) = (Vec::new(), Vec::new(), Vec::new());
        Self { code, authoritative: false, authentic: false, answers, authorities, additionals }
    }

    /// True if it says whether there is something, and not that the server can't or won't.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self.code, ResponseCode::NoError | ResponseCode::NXDomain)
    }

    /// How many bytes the records take, about.
    pub(super) fn size(&self) -> usize {
        let mut message = Message::response(0, OpCode::Query);
        message.answers = self.answers.clone();
        message.authorities = self.authorities.clone();
        message.additionals = self.additionals.clone();
        message.to_vec().map_or(usize::from(u16::MAX), |bytes| bytes.len())
    }
}

/// What an upstream sent in answer to a question.
#[derive(Debug)]
pub(super) enum FromUpstream {
    /// It isn't an answer to the question: somebody guesses.
    Foreign,
    /// It doesn't fit into a datagram.
    Truncated,
    /// The upstream doesn't know EDNS, or not this question with it (RFC 6891, section 7).
    NoEdns,
    /// An answer.
    Response(Response),
    /// An answer with records that can't be read here. The client may know better.
    Opaque,
}

impl FromUpstream {
    /// Reads what came in answer to `question`, which was asked with this id.
    pub(super) fn parse(bytes: &[u8], id: u16, question: &Query, edns: bool) -> Self {
        let mut decoder = BinDecoder::new(bytes);
        let Ok(header) = Header::read(&mut decoder) else { return Self::Foreign };
        if header.message_type != MessageType::Response || header.id != id || header.op_code != OpCode::Query {
            return Self::Foreign;
        }
        let unknown = edns && matches!(header.response_code, ResponseCode::FormErr | ResponseCode::NotImp);
        match header.counts.queries {
            // Names are compared without regard to case.
            1 if Query::read(&mut decoder).is_ok_and(|answered| answered == *question) => {}
            // Some servers leave it away when they can't read the query.
            0 if unknown => return Self::NoEdns,
            _ => return Self::Foreign,
        }
        if header.truncation {
            return Self::Truncated;
        }
        let Ok(message) = Message::from_vec(bytes) else { return Self::Opaque };
        // 16 is BADVERS here, and BADSIG where signatures of messages are spoken of.
        if edns && (unknown && message.edns.is_none() || u16::from(message.metadata.response_code) == 16) {
            return Self::NoEdns;
        }
        Self::Response(Response {
            code: message.metadata.response_code,
            authoritative: false,
            authentic: message.metadata.authentic_data,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        })
    }
}

fn own_edns(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_PAYLOAD).set_dnssec_ok(dnssec_ok);
    edns
}

/// Records with the time that is left to them; those whose time is over are left away (RFC 1035, section 3.2.1).
fn aged(records: &[Record], age: u32) -> Vec<Record> {
    let fresh = records.iter().filter(|record| age == 0 || ttl(record) > age);
    fresh
        .map(|record| {
            let mut record = record.clone();
            record.ttl = ttl(&record).saturating_sub(age);
            record
        })
        .collect()
}

/// The time to live of a record in seconds; one with its highest bit set is none (RFC 2181, section 8).
pub(super) fn ttl(record: &Record) -> u32 {
    if record.ttl > i32::MAX as u32 { 0 } else { record.ttl }
}

fn encode_within(message: &Message, len_max: usize) -> Option<Vec<u8>> {
    message.to_vec().ok().filter(|bytes| bytes.len() <= len_max)
}

/// An answer of nothing but a header: that of the query, with what went wrong.
fn bare(header: &[u8], code: ResponseCode) -> Vec<u8> {
    const RESPONSE: u8 = 0x80;
    let mut answer = header.to_vec();
    answer[2] = RESPONSE | answer[2] & !TRUNCATED;
    answer[3] = code.low();
    answer[4..].fill(0);
    answer
}

/// A name of labels that could be host names, which are always good.
pub(super) fn fully_qualified(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap_or_default();
    name.set_fqdn(true);
    name
}
