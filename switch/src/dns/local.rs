//! What the forwarder knows by itself: the network's own names, and names that must not leave it.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::message::{Response, fully_qualified};
use crate::dhcp::DhcpServer;
use crate::{DomainName, HostName, Subnet};

/// How long clients may remember where a host is, in seconds: leases come and go.
const TTL: u32 = 60;
/// How long clients may remember that there is no such host, in seconds: it may get its lease in a moment (RFC 2308, section 5).
const NEGATIVE_TTL: u32 = 5;
const GATEWAY: &str = "gateway";

/// Who knows which host has which address.
pub trait LocalNames {
    /// The address of the host of this name.
    fn address_of(&self, name: &HostName) -> Option<Ipv4Addr>;
    /// The name of the host that has this address.
    fn name_of(&self, address: Ipv4Addr) -> Option<HostName>;
}

/// A network without names.
impl LocalNames for () {
    fn address_of(&self, _: &HostName) -> Option<Ipv4Addr> {
        None
    }

    fn name_of(&self, _: Ipv4Addr) -> Option<HostName> {
        None
    }
}

impl LocalNames for DhcpServer {
    fn address_of(&self, name: &HostName) -> Option<Ipv4Addr> {
        Self::address_of(self, name)
    }

    fn name_of(&self, address: Ipv4Addr) -> Option<HostName> {
        Self::name_of(self, address).cloned()
    }
}

/// The network's own zones.
#[derive(Debug)]
pub(super) struct Zones {
    subnet: Subnet,
    gateway: Ipv4Addr,
    domain: Name,
    gateway_name: Name,
}

/// Where a name lies, as far as it matters here.
enum Place {
    /// It is for the upstreams to know.
    Elsewhere,
    /// The network's domain itself.
    Domain,
    /// A host of the network, or a name that one could have.
    Host(Option<Ipv4Addr>),
    /// The reverse name of an address of the network.
    Reverse(Ipv4Addr),
    /// The machine itself (RFC 6761, section 6.3).
    Localhost,
    /// The reverse name of the machine itself (RFC 6303, section 4.2).
    LocalhostReverse,
    /// It never exists (RFC 6761, section 6.4; RFC 7686, section 2).
    Never,
    /// It has no records here, so that clients stay with this resolver (RFC 9462, section 6.4).
    Empty,
}

impl Zones {
    pub(super) fn new(subnet: Subnet, gateway: Ipv4Addr, domain: &DomainName) -> Self {
        let gateway_name = fully_qualified(&format!("{GATEWAY}.{domain}"));
        Self { subnet, gateway, domain: fully_qualified(domain.as_str()), gateway_name }
    }

    /// The answer to a question, if it is known here.
    pub(super) fn answer(&self, question: &Query, names: &dyn LocalNames) -> Option<Response> {
        let name = &question.name;
        let wants_address = matches!(question.query_type, RecordType::A | RecordType::ANY);
        Some(match self.place(question, names) {
            Place::Elsewhere => return None,
            Place::Domain => match question.query_type {
                RecordType::SOA => found(name, RData::SOA(self.soa())),
                RecordType::NS => found(name, RData::NS(NS(self.gateway_name.clone()))),
                _ => self.nothing(ResponseCode::NoError, &self.domain),
            },
            Place::Host(None) => self.nothing(ResponseCode::NXDomain, &self.domain),
            Place::Host(Some(address)) if wants_address => found(name, RData::A(A(address))),
            // AAAA among them: without an answer, clients would ask again and wait.
            Place::Host(Some(_)) => self.nothing(ResponseCode::NoError, &self.domain),
            Place::Reverse(address) => {
                let host = self.host_at(address, names).map(|host| RData::PTR(PTR(host)));
                self.pointer(question, host, &name.base_name())
            }
            Place::Localhost if wants_address => found(name, RData::A(A(Ipv4Addr::LOCALHOST))),
            Place::Localhost if question.query_type == RecordType::AAAA => found(name, RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
            Place::Localhost => self.nothing(ResponseCode::NoError, name),
            Place::LocalhostReverse => self.pointer(question, Some(RData::PTR(PTR(fully_qualified("localhost")))), name),
            Place::Never => self.nothing(ResponseCode::NXDomain, &name.trim_to(1)),
            Place::Empty => self.nothing(ResponseCode::NoError, &name.trim_to(2)),
        })
    }

    fn place(&self, question: &Query, names: &dyn LocalNames) -> Place {
        let name = question.name.to_lowercase();
        let labels: Vec<&[u8]> = name.iter().collect();
        if name == self.domain {
            return Place::Domain;
        }
        if self.domain.zone_of(&name) {
            let is_host = labels.len() == usize::from(self.domain.num_labels()) + 1;
            return Place::Host(labels.first().filter(|_| is_host).and_then(|label| self.host(label, names)));
        }
        match labels[..] {
            [.., b"localhost"] => Place::Localhost,
            [.., b"invalid" | b"onion"] => Place::Never,
            [.., b"resolver", b"arpa"] => Place::Empty,
            [b"1", b"0", b"0", b"127", b"in-addr", b"arpa"] => Place::LocalhostReverse,
            [d, c, b, a, b"in-addr", b"arpa"] => {
                let address = address_of([a, b, c, d]).filter(|address| self.subnet.contains(*address));
                address.map_or(Place::Elsewhere, Place::Reverse)
            }
            // Names without a domain are this network's or nobody's, but for what servers of top-level domains are asked.
            [label] => match (self.host(label, names), question.query_type) {
                (None, RecordType::A | RecordType::AAAA) => Place::Host(None),
                (None, _) => Place::Elsewhere,
                (found, _) => Place::Host(found),
            },
            _ => Place::Elsewhere,
        }
    }

    /// The address of the host that is called this.
    fn host(&self, label: &[u8], names: &dyn LocalNames) -> Option<Ipv4Addr> {
        let name: HostName = std::str::from_utf8(label).ok()?.parse().ok()?;
        if name.as_str() == GATEWAY { Some(self.gateway) } else { names.address_of(&name) }
    }

    /// The name of the host that has this address.
    fn host_at(&self, address: Ipv4Addr, names: &dyn LocalNames) -> Option<Name> {
        if address == self.gateway {
            return Some(self.gateway_name.clone());
        }
        self.domain.prepend_label(names.name_of(address)?.as_str()).ok()
    }

    fn pointer(&self, question: &Query, pointer: Option<RData>, zone: &Name) -> Response {
        match (pointer, question.query_type) {
            (None, _) => self.nothing(ResponseCode::NXDomain, zone),
            (Some(pointer), RecordType::PTR | RecordType::ANY) => found(&question.name, pointer),
            (Some(_), _) => self.nothing(ResponseCode::NoError, zone),
        }
    }

    /// There is no such name, or no such record; that is known from `zone` (RFC 2308, section 3).
    fn nothing(&self, code: ResponseCode, zone: &Name) -> Response {
        let authorities = vec![Record::from_rdata(zone.clone(), NEGATIVE_TTL, RData::SOA(self.soa()))];
        Response { authoritative: true, authorities, ..Response::new(code) }
    }

    fn soa(&self) -> SOA {
        let responsible = self.domain.prepend_label("hostmaster").unwrap_or_default();
        SOA::new(self.gateway_name.clone(), responsible, 1, 3600, 600, 86_400, NEGATIVE_TTL)
    }
}

fn found(name: &Name, data: RData) -> Response {
    let answers = vec![Record::from_rdata(name.clone(), TTL, data)];
    Response { authoritative: true, answers, ..Response::new(ResponseCode::NoError) }
}

/// The address with these decimal numbers, written as everybody writes them.
fn address_of(labels: [&[u8]; 4]) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    for (octet, label) in octets.iter_mut().zip(labels) {
        let plain = label.iter().all(u8::is_ascii_digit) && (label.len() == 1 || label.first() != Some(&b'0'));
        *octet = std::str::from_utf8(label).ok().filter(|_| plain)?.parse().ok()?;
    }
    Some(octets.into())
}
