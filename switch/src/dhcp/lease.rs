//! Leases as a value: what is written down, and read after a restart.
//!
//! Times are Unix seconds here, because nothing else means the same after a restart. The server itself counts from its own start.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{HostName, MacAddr};

/// A point in time in seconds since 1970 (POSIX).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixSeconds(pub u64);

/// What a client calls itself in option 61: type and identifier as they came, 2 to 255 bytes (RFC 2132, section 9.14; RFC 4361).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientIdentifier(Box<[u8]>);

/// Who a client is: what it calls itself, or else its MAC address (RFC 2131, section 4.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientId {
    /// Option 61.
    Identifier(ClientIdentifier),
    /// The field `chaddr`.
    Mac(MacAddr),
}

/// What was written down about one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The address.
    pub address: Ipv4Addr,
    /// What it is used for, or was until `until`.
    pub state: LeaseState,
    /// The client that has it, had it, or declined it.
    pub client: ClientId,
    /// That client's MAC address.
    pub mac: MacAddr,
    /// The name of the port behind which it is.
    pub port: String,
    /// What the client calls itself, if that could be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<HostName>,
    /// When the lease or the quarantine ends. A lease that has ended is kept, so that the client gets the same address again.
    pub until: UnixSeconds,
}

/// What an address is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// A client has it.
    Leased,
    /// Nobody gets it, because somebody was found to use it.
    Quarantined,
}

/// A change of what is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseChange {
    /// This record takes the place of whatever there was about its address.
    Put(LeaseRecord),
    /// Nothing is known about this address any more.
    Remove(Ipv4Addr),
}

/// All that is written down, by address. It is the caller's: the server says in [`LeaseChange`]s what is to change in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenBook", into = "WrittenBook")]
pub struct LeaseBook {
    records: BTreeMap<Ipv4Addr, LeaseRecord>,
}

/// The form in which a [`LeaseBook`] is written.
#[derive(Clone, Serialize, Deserialize)]
struct WrittenBook {
    version: u32,
    leases: Vec<LeaseRecord>,
}

/// A lease book that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseBookError {
    /// A later weft wrote it.
    #[error("the leases were written in version {0} of their format; this weft reads version {current}", current = LeaseBook::VERSION)]
    Version(u32),
    /// One address stands in it twice.
    #[error("the leases contain {0} twice")]
    Twice(Ipv4Addr),
}

/// A text is not a client identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a client identifier: write its 2 to 255 bytes in hexadecimal, as in 01:02:00:00:00:00:0a")]
pub struct ParseClientIdError(String);

impl LeaseBook {
    /// The version of the format that is written.
    pub const VERSION: u32 = 1;

    /// Makes a change.
    pub fn apply(&mut self, change: LeaseChange) {
        match change {
            LeaseChange::Put(record) => drop(self.records.insert(record.address, record)),
            LeaseChange::Remove(address) => drop(self.records.remove(&address)),
        }
    }

    /// Every record, in the order of addresses.
    pub fn records(&self) -> impl Iterator<Item = &LeaseRecord> {
        self.records.values()
    }
}

impl TryFrom<WrittenBook> for LeaseBook {
    type Error = LeaseBookError;

    fn try_from(written: WrittenBook) -> Result<Self, Self::Error> {
        if written.version != Self::VERSION {
            return Err(LeaseBookError::Version(written.version));
        }
        let mut book = Self::default();
        for record in written.leases {
            let address = record.address;
            if book.records.insert(address, record).is_some() {
                return Err(LeaseBookError::Twice(address));
            }
        }
        Ok(book)
    }
}

impl From<LeaseBook> for WrittenBook {
    fn from(book: LeaseBook) -> Self {
        Self { version: LeaseBook::VERSION, leases: book.records.into_values().collect() }
    }
}

impl ClientIdentifier {
    /// An identifier of these bytes, if there are 2 to 255.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (2..=255).contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    /// The bytes, type first.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for ClientIdentifier {
    type Err = ParseClientIdError;

    /// Pairs of hexadecimal digits, with `:` between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let byte = |pair: &str| {
            let digits = pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(pair, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        bytes.and_then(|bytes| Self::new(&bytes)).ok_or_else(|| ParseClientIdError(text.chars().take(100).collect()))
    }
}

impl TryFrom<String> for ClientIdentifier {
    type Error = ParseClientIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClientIdentifier> for String {
    fn from(identifier: ClientIdentifier) -> Self {
        identifier.to_string()
    }
}

impl fmt::Display for ClientIdentifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(formatter, "{separator}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClientIdentifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identifier(identifier) => identifier.fmt(formatter),
            Self::Mac(mac) => mac.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(last: u8, client: ClientId) -> LeaseRecord {
        LeaseRecord {
            address: Ipv4Addr::new(10, 77, 0, last),
            state: LeaseState::Leased,
            client,
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            port: "vm1".to_owned(),
            hostname: Some("web".parse().unwrap()),
            until: UnixSeconds(1_800_000_000),
        }
    }

    fn book() -> LeaseBook {
        let mut book = LeaseBook::default();
        book.apply(LeaseChange::Put(record(10, ClientId::Mac(MacAddr([2, 0, 0, 0, 0, 10])))));
        book.apply(LeaseChange::Put(record(11, ClientId::Identifier("ff:00:01:02".parse().unwrap()))));
        book
    }

    #[test]
    fn what_is_written_down_is_read_back() {
        let text = serde_json::to_string(&book()).unwrap();
        assert!(
            text.starts_with(r#"{"version":1,"leases":[{"address":"10.77.0.10","state":"leased","client":{"mac":"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<LeaseBook>(&text).unwrap(), book());
        let change = LeaseChange::Remove(Ipv4Addr::new(10, 77, 0, 10));
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(serde_json::from_str::<LeaseChange>(&text).unwrap(), change);
    }

    #[test]
    fn a_change_replaces_or_removes_what_is_known_about_its_address() {
        let mut book = book();
        book.apply(LeaseChange::Put(record(10, ClientId::Mac(MacAddr([2, 0, 0, 0, 0, 99])))));
        book.apply(LeaseChange::Remove(Ipv4Addr::new(10, 77, 0, 11)));
        let records: Vec<_> = book.records().map(|record| record.client.to_string()).collect();
        assert_eq!(records, ["02:00:00:00:00:63"]);
    }

    #[test]
    fn a_book_of_another_version_or_with_contradictions_is_refused() {
        let text = serde_json::to_string(&book()).unwrap();
        let error = |text: &str| serde_json::from_str::<LeaseBook>(text).unwrap_err().to_string();
        assert!(error(&text.replace(r#""version":1"#, r#""version":2"#)).contains("version 2"));
        assert!(error(&text.replace("10.77.0.11", "10.77.0.10")).contains("twice"));
        for text in ["", "{}", "[]", r#"{"version":1}"#, r#"{"version":1,"leases":[{}]}"#] {
            assert!(serde_json::from_str::<LeaseBook>(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn client_identifiers_are_two_bytes_or_more() {
        assert_eq!("01:0A".parse::<ClientIdentifier>().unwrap().bytes(), [1, 10]);
        let too_long = "01:".repeat(255) + "01";
        for text in ["", "01", "01:", "1:02", "01:+2", "01-02", too_long.as_str()] {
            assert!(text.parse::<ClientIdentifier>().is_err(), "{text} was taken");
        }
        assert!(too_long[3..].parse::<ClientIdentifier>().is_ok());
    }
}
