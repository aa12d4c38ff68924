//! Answers that were heard lately (RFC 1035, section 7.4; RFC 2308; RFC 9520).
//!
//! An answer is kept for the question that it answered and for nothing else, so whatever an upstream adds to it can't take the
//! place of what somebody else would have said.
//!
//! Bounded in entries and bytes; when either is exceeded, what was not asked for the longest goes.

use std::collections::BTreeMap;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};

use super::message::{Asked, Response, ttl};
use crate::Timestamp;

/// Nothing is kept for longer, in seconds.
const TTL_MAX: u32 = 86_400;
/// That something doesn't exist isn't believed for longer, in seconds (RFC 2308, section 5).
const NEGATIVE_TTL_MAX: u32 = 3 * 3600;
/// How long it is remembered that nobody answers, in seconds (RFC 2308, section 7; RFC 9520, section 3.2).
const FAILURE_TTL: u32 = 5;
/// What an entry takes beside its records, in bytes, about.
const ENTRY_LEN: usize = 256;

/// What makes two questions the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// In lower case.
    name: Name,
    kind: u16,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl Key {
    pub(super) fn new(asked: &Asked) -> Self {
        Self {
            name: asked.question.name.to_lowercase(),
            kind: asked.question.query_type.into(),
            dnssec_ok: asked.dnssec_ok(),
            checking_disabled: asked.checking_disabled,
        }
    }
}

#[derive(Debug)]
pub(super) struct Cache {
    entries_max: usize,
    bytes_max: usize,
    entries: BTreeMap<Key, Entry>,
    /// Keys by when they were last asked for.
    by_use: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    response: Response,
    learned: Timestamp,
    /// In seconds after that.
    ttl: u32,
    last_use: u64,
    size: usize,
}

impl Cache {
    pub(super) fn new(entries_max: usize, bytes_max: usize) -> Self {
        Self { entries_max, bytes_max, entries: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0 }
    }

    /// The answer to a question and its age in seconds, if it is known.
    pub(super) fn find(&mut self, now: Timestamp, key: &Key) -> Option<(&Response, u32)> {
        let entry = self.entries.get(key)?;
        if now.since(entry.learned) >= Duration::from_secs(entry.ttl.into()) {
            self.remove(key);
            return None;
        }
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        self.by_use.remove(&entry.last_use);
        self.by_use.insert(self.uses, key.clone());
        entry.last_use = self.uses;
        Some((&entry.response, now.since(entry.learned).as_secs() as u32))
    }

    /// Keeps an answer for as long as it says that it holds.
    pub(super) fn insert(&mut self, now: Timestamp, key: Key, response: Response) {
        let ttl = lifetime(&key, &response);
        let size = response.size() + ENTRY_LEN;
        self.remove(&key);
        if ttl == 0 || size > self.bytes_max || self.entries_max == 0 {
            return;
        }
        self.uses += 1;
        self.bytes += size;
        self.by_use.insert(self.uses, key.clone());
        self.entries.insert(key, Entry { response, learned: now, ttl, last_use: self.uses, size });
        while self.entries.len() > self.entries_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.by_use.first_key_value().map(|(_, key)| key.clone()) else { return };
            self.remove(&oldest);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.entries_max, self.bytes_max);
    }

    /// How many answers are kept.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.last_use);
            self.bytes -= entry.size;
        }
    }
}

/// How long an answer may be kept, in seconds.
fn lifetime(key: &Key, response: &Response) -> u32 {
    match response.code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        ResponseCode::ServFail => return FAILURE_TTL,
        _ => return 0,
    }
    let shortest = response.answers.iter().map(ttl).min();
    let is_wanted = |kind: RecordType| u16::from(kind) == key.kind || key.kind == u16::from(RecordType::ANY);
    let found = response.answers.iter().any(|record| is_wanted(record.record_type()));
    if found && response.code == ResponseCode::NoError {
        return shortest.unwrap_or(0).min(TTL_MAX);
    }
    // RFC 2308, section 5: without the zone's SOA it is not known for how long there is nothing.
    let soa = response.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(ttl(record).min(soa.minimum)),
        _ => None,
    });
    soa.map_or(0, |soa| soa.min(shortest.unwrap_or(u32::MAX)).min(NEGATIVE_TTL_MAX))
}
