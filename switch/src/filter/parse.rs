//! From text to an expression: the grammar of pcap-filter(7), as far as it goes.
//!
//! ```text
//! expression = operand { ("and" | "&&" | "or" | "||") operand }        both bind alike, from the left
//! operand    = ("not" | "!") operand | "(" expression ")" | primitive
//! primitive  = { protocol | direction | type } value | word
//! ```
//!
//! A value without words in front of it takes those of the one before: `host 192.0.2.1 or 192.0.2.2`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{AddressKind, Filter, IpVersion, Node, Side, Test, protocol};
use crate::MacAddr;
use crate::wire::{ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_RARP};

/// A text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseFilterError {
    /// It is too long.
    #[error("a filter has at most {} characters", Filter::MAX_LEN)]
    TooLong,
    /// It asks for too much.
    #[error("a filter has at most {} tests", Filter::MAX_TESTS)]
    TooManyTests,
    /// It is nested too deeply.
    #[error("a filter has parentheses in at most {} levels", Filter::MAX_DEPTH)]
    TooDeep,
    /// It ends where more should come.
    #[error("the filter ends where {0} should come")]
    Ends(&'static str),
    /// Something else should be there.
    #[error("{found:?} stands where {wanted} should come")]
    Unexpected {
        /// What is there.
        found: String,
        /// What should be.
        wanted: &'static str,
    },
    /// A word that nobody knows.
    #[error(
        "{0:?} is not among the words of a filter: there are host, net, port, portrange, src, dst, ether, ip, ip6, arp, rarp, tcp, udp, sctp, icmp, icmp6, \
         igmp, proto, vlan, broadcast, multicast, less, greater, and, or, not"
    )]
    UnknownWord(String),
    /// Words that do not go together.
    #[error("{0:?} can't be said of {1}")]
    Contradiction(String, &'static str),
    /// A number is out of its range.
    #[error("{0:?} is no {1}")]
    NoNumber(String, &'static str),
    /// An address is none.
    #[error("{0:?} is no {1}; names are not looked up")]
    NoAddress(String, &'static str),
}

type Parsed<T> = Result<T, ParseFilterError>;

pub(super) fn parse(text: &str) -> Parsed<Option<Node>> {
    if text.len() > Filter::MAX_LEN {
        return Err(ParseFilterError::TooLong);
    }
    let spaced = text.replace("&&", " && ").replace("||", " || ").replace('(', " ( ").replace(')', " ) ").replace('!', " ! ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    if words.is_empty() {
        return Ok(None);
    }
    let mut parser = Parser { words: &words, tests: 0, qualifiers: Qualifiers::default() };
    let root = parser.expression(0)?;
    match parser.words.first() {
        None => Ok(Some(root)),
        Some(word) => Err(unexpected(word, "\"and\" or \"or\"")),
    }
}

struct Parser<'a> {
    /// Those that are left.
    words: &'a [&'a str],
    tests: usize,
    /// Of the last value.
    qualifiers: Qualifiers,
}

/// The words in front of a value.
#[derive(Clone, Copy, Debug, Default)]
struct Qualifiers {
    protocol: Option<Protocol>,
    side: Side,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Ether,
    Ip,
    Ip6,
    Arp,
    Rarp,
    Transport(Option<IpVersion>, u8),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Host,
    Net,
    Port,
    PortRange,
    Protocol,
}

impl<'a> Parser<'a> {
    fn expression(&mut self, depth: usize) -> Parsed<Node> {
        if depth > Filter::MAX_DEPTH {
            return Err(ParseFilterError::TooDeep);
        }
        let mut first = self.operand(depth)?;
        // Each operand holds a test, so this ends as they do.
        while let Some(&word) = self.words.first() {
            let join = match word {
                "and" | "&&" => Node::And,
                "or" | "||" => Node::Or,
                _ => break,
            };
            self.words = &self.words[1..];
            let second = self.operand(depth)?;
            first = join(Box::new(first), Box::new(second));
        }
        Ok(first)
    }

    fn operand(&mut self, depth: usize) -> Parsed<Node> {
        let mut negated = false;
        while self.takes("not") || self.takes("!") {
            negated = !negated;
        }
        let node = if self.takes("(") {
            let inner = self.expression(depth + 1)?;
            match self.next("\")\"")? {
                ")" => inner,
                other => return Err(unexpected(other, "\"and\", \"or\" or \")\"")),
            }
        } else {
            self.primitive()?
        };
        Ok(if negated { Node::Not(Box::new(node)) } else { node })
    }

    fn primitive(&mut self) -> Parsed<Node> {
        let mut qualifiers = Qualifiers::default();
        let mut qualified = false;
        let mut kind = None;
        while let Some(&word) = self.words.first() {
            match word {
                "ether" => qualifiers.protocol = Some(Protocol::Ether),
                "ip" => qualifiers.protocol = Some(Protocol::Ip),
                "ip6" => qualifiers.protocol = Some(Protocol::Ip6),
                "arp" => qualifiers.protocol = Some(Protocol::Arp),
                "rarp" => qualifiers.protocol = Some(Protocol::Rarp),
                "tcp" => qualifiers.protocol = Some(Protocol::Transport(None, protocol::TCP)),
                "udp" => qualifiers.protocol = Some(Protocol::Transport(None, protocol::UDP)),
                "sctp" => qualifiers.protocol = Some(Protocol::Transport(None, protocol::SCTP)),
                "icmp" => qualifiers.protocol = Some(Protocol::Transport(Some(IpVersion::V4), protocol::ICMP)),
                "igmp" => qualifiers.protocol = Some(Protocol::Transport(Some(IpVersion::V4), protocol::IGMP)),
                "icmp6" => qualifiers.protocol = Some(Protocol::Transport(Some(IpVersion::V6), protocol::ICMP6)),
                "src" | "dst" => {
                    self.words = &self.words[1..];
                    qualifiers.side = self.side(word);
                    qualified = true;
                    continue;
                }
                "host" => kind = Some(Kind::Host),
                "net" => kind = Some(Kind::Net),
                "port" => kind = Some(Kind::Port),
                "portrange" => kind = Some(Kind::PortRange),
                "proto" => kind = Some(Kind::Protocol),
                _ => break,
            }
            qualified = true;
            self.words = &self.words[1..];
        }
        let value = self.words.first().copied().filter(|word| !is_joint(word));
        match value {
            Some("vlan" | "broadcast" | "multicast" | "less" | "greater") => self.word(&qualifiers, kind),
            None => match (qualifiers.protocol, kind, qualifiers.side) {
                (Some(protocol), None, Side::Either) => {
                    self.test(protocol.alone().ok_or(ParseFilterError::Ends("host, proto, broadcast or multicast"))?)
                }
                _ => Err(self.words.first().map_or(ParseFilterError::Ends("a value"), |word| unexpected(word, "a value"))),
            },
            Some(value) => {
                self.words = &self.words[1..];
                let is_value = value.starts_with(|first: char| first.is_ascii_hexdigit() || first == ':')
                    && value.contains(|digit: char| digit.is_ascii_digit() || digit == ':');
                if !is_value && kind.is_none() && qualifiers.side == Side::Either {
                    return Err(ParseFilterError::UnknownWord(value.to_owned()));
                }
                if qualified {
                    qualifiers.kind = kind.unwrap_or_default();
                } else {
                    qualifiers = self.qualifiers;
                }
                self.qualifiers = qualifiers;
                self.value(qualifiers, value)
            }
        }
    }

    /// What follows `src` or `dst`: the other side may be meant as well.
    fn side(&mut self, first: &str) -> Side {
        if let [joint @ ("or" | "and" | "||" | "&&"), other @ ("src" | "dst"), rest @ ..] = self.words
            && *other != first
        {
            self.words = rest;
            return if matches!(*joint, "or" | "||") { Side::Either } else { Side::Both };
        }
        if first == "src" { Side::Source } else { Side::Destination }
    }

    /// A word that is a primitive by itself.
    fn word(&mut self, qualifiers: &Qualifiers, kind: Option<Kind>) -> Parsed<Node> {
        let word = self.next("a word")?;
        if kind.is_some() || qualifiers.side != Side::Either {
            return Err(unexpected(word, "a value"));
        }
        match (word, qualifiers.protocol) {
            ("broadcast", None | Some(Protocol::Ether)) => self.test(Test::Mac(Side::Destination, MacAddr::BROADCAST)),
            ("multicast", None | Some(Protocol::Ether)) => self.test(Test::Multicast),
            ("vlan", None) => {
                let number = self.words.first().and_then(|word| word.parse::<u16>().ok());
                match number {
                    Some(number) if number > 4095 => {
                        Err(ParseFilterError::NoNumber(number.to_string(), "VLAN, of which the highest is 4095"))
                    }
                    Some(number) => {
                        self.words = &self.words[1..];
                        self.test(Test::Vlan(Some(number)))
                    }
                    None => self.test(Test::Vlan(None)),
                }
            }
            ("less" | "greater", None) => {
                let text = self.next("a length")?;
                let len = text.parse().map_err(|_| ParseFilterError::NoNumber(text.to_owned(), "length"))?;
                self.test(if word == "less" { Test::AtMost(len) } else { Test::AtLeast(len) })
            }
            (word, _) => Err(ParseFilterError::Contradiction(word.to_owned(), "a protocol")),
        }
    }

    fn value(&mut self, Qualifiers { protocol, side, kind }: Qualifiers, value: &str) -> Parsed<Node> {
        match kind {
            Kind::Host | Kind::Net if protocol == Some(Protocol::Ether) => {
                let mac = value.parse().map_err(|_| ParseFilterError::NoAddress(value.to_owned(), "MAC address"))?;
                self.test(Test::Mac(side, mac))
            }
            Kind::Host | Kind::Net => {
                let net = address(kind, value)?;
                let of = match protocol {
                    None => None,
                    Some(Protocol::Ip) if net.addr().is_ipv4() => Some(AddressKind::Ip),
                    Some(Protocol::Ip6) if net.addr().is_ipv6() => Some(AddressKind::Ip),
                    Some(Protocol::Arp | Protocol::Rarp) if net.addr().is_ipv4() => Some(AddressKind::Arp),
                    Some(_) => return Err(ParseFilterError::Contradiction(value.to_owned(), "this protocol")),
                };
                let about_address = self.test(Test::Address(of, side, net))?;
                match protocol {
                    Some(Protocol::Arp) => self.both(Test::EtherType(ETHER_TYPE_ARP), about_address),
                    Some(Protocol::Rarp) => self.both(Test::EtherType(ETHER_TYPE_RARP), about_address),
                    _ => Ok(about_address),
                }
            }
            Kind::Port | Kind::PortRange => {
                let range = ports(kind, value)?;
                let (version, of) = match protocol {
                    None => (None, None),
                    Some(Protocol::Ip) => (Some(ETHER_TYPE_IPV4), None),
                    Some(Protocol::Ip6) => (Some(ETHER_TYPE_IPV6), None),
                    Some(Protocol::Transport(None, number)) => (None, Some(number)),
                    Some(_) => return Err(ParseFilterError::Contradiction("port".to_owned(), "this protocol")),
                };
                let about_port = self.test(Test::Port(of, side, range))?;
                match version {
                    None => Ok(about_port),
                    Some(version) => self.both(Test::EtherType(version), about_port),
                }
            }
            Kind::Protocol => {
                let number = || number(value).ok_or_else(|| ParseFilterError::NoNumber(value.to_owned(), "protocol number"));
                let of_ip =
                    || u8::try_from(number()?).map_err(|_| ParseFilterError::NoNumber(value.to_owned(), "protocol number"));
                match protocol {
                    Some(Protocol::Ether) => self.test(Test::EtherType(number()?)),
                    None => self.test(Test::Protocol(None, of_ip()?)),
                    Some(Protocol::Ip) => self.test(Test::Protocol(Some(IpVersion::V4), of_ip()?)),
                    Some(Protocol::Ip6) => self.test(Test::Protocol(Some(IpVersion::V6), of_ip()?)),
                    Some(_) => Err(ParseFilterError::Contradiction("proto".to_owned(), "this protocol")),
                }
            }
        }
    }

    fn both(&mut self, first: Test, second: Node) -> Parsed<Node> {
        Ok(Node::And(Box::new(self.test(first)?), Box::new(second)))
    }

    fn test(&mut self, test: Test) -> Parsed<Node> {
        self.tests += 1;
        if self.tests > Filter::MAX_TESTS { Err(ParseFilterError::TooManyTests) } else { Ok(Node::Test(test)) }
    }

    fn takes(&mut self, word: &str) -> bool {
        let is_next = self.words.first() == Some(&word);
        if is_next {
            self.words = &self.words[1..];
        }
        is_next
    }

    fn next(&mut self, wanted: &'static str) -> Parsed<&'a str> {
        let (word, rest) = self.words.split_first().ok_or(ParseFilterError::Ends(wanted))?;
        self.words = rest;
        Ok(word)
    }
}

impl Protocol {
    /// What the word says where no value follows.
    fn alone(self) -> Option<Test> {
        match self {
            Self::Ether => None,
            Self::Ip => Some(Test::EtherType(ETHER_TYPE_IPV4)),
            Self::Ip6 => Some(Test::EtherType(ETHER_TYPE_IPV6)),
            Self::Arp => Some(Test::EtherType(ETHER_TYPE_ARP)),
            Self::Rarp => Some(Test::EtherType(ETHER_TYPE_RARP)),
            Self::Transport(version, number) => Some(Test::Protocol(version, number)),
        }
    }
}

fn is_joint(word: &str) -> bool {
    matches!(word, "and" | "&&" | "or" | "||" | ")" | "(" | "not" | "!")
}

fn unexpected(found: &str, wanted: &'static str) -> ParseFilterError {
    ParseFilterError::Unexpected { found: found.to_owned(), wanted }
}

fn address(kind: Kind, value: &str) -> Parsed<IpNet> {
    let single = value.parse::<IpAddr>().map(IpNet::from);
    match kind {
        Kind::Net => {
            let refused = |_| ParseFilterError::NoAddress(value.to_owned(), "net, as 192.0.2.0/24 is");
            value.parse::<IpNet>().map(|net| net.trunc()).or(single).map_err(refused)
        }
        _ => single.map_err(|_| ParseFilterError::NoAddress(value.to_owned(), "IP address")),
    }
}

fn ports(kind: Kind, value: &str) -> Parsed<std::ops::RangeInclusive<u16>> {
    let no_port = || {
        ParseFilterError::NoNumber(
            value.to_owned(),
            if kind == Kind::Port {
                "port: write its number, as in port 443, at most 65535"
            } else {
                "range of ports, as 5000-5010 is"
            },
        )
    };
    let port = |text: &str| text.parse::<u16>().map_err(|_| no_port());
    match (kind, value.split_once('-')) {
        (Kind::PortRange, Some((first, last))) => {
            let range = port(first)?..=port(last)?;
            if range.is_empty() { Err(no_port()) } else { Ok(range) }
        }
        _ => port(value).map(|port| port..=port),
    }
}

/// Decimal, or hexadecimal after `0x`.
fn number(text: &str) -> Option<u16> {
    text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |digits| u16::from_str_radix(digits, 16).ok())
}
