//! The server as clients meet it. Messages are written and answers read by code of the tests' own; `dhcproto` and `etherparse` are
//! asked for a second opinion on every answer.

mod life;
mod options;
mod requests;
mod restart;
mod shares;

use dhcproto::{Decodable, Decoder};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use std::net::SocketAddrV4;

use super::*;
use crate::gateway::Heard;
use crate::{DropReason, Egress, MacAddr, UdpDatagram};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const SERVER_MAC: MacAddr = MacAddr([2, 0x77, 0, 0, 0, 1]);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const START: Timestamp = Timestamp::from_millis(1_000_000);
const WALL: UnixSeconds = UnixSeconds(1_790_000_000);

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

fn settings() -> DhcpSettings {
    let pool = "10.77.0.10-10.77.0.19".parse().unwrap();
    DhcpSettings { probe: None, ..DhcpSettings::new("10.77.0.0/24".parse().unwrap(), SERVER, SERVER_MAC, pool) }
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, number])
}

/// A message from a client, field by field.
#[derive(Clone, Debug)]
struct Message {
    mac: MacAddr,
    xid: u32,
    broadcast: bool,
    ciaddr: Ipv4Addr,
    giaddr: Ipv4Addr,
    sname: Vec<u8>,
    file: Vec<u8>,
    options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    fn new(number: u8, kind: u8) -> Self {
        let none = Ipv4Addr::UNSPECIFIED;
        Self {
            mac: mac(number),
            xid: 0x1234_5600 + u32::from(number),
            broadcast: false,
            ciaddr: none,
            giaddr: none,
            sname: Vec::new(),
            file: Vec::new(),
            options: vec![(53, vec![kind])],
        }
    }

    fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    fn asking_for(self, address: Ipv4Addr) -> Self {
        self.with(50, &address.octets())
    }

    fn naming(self, server: Ipv4Addr) -> Self {
        self.with(54, &server.octets())
    }

    fn from(self, ciaddr: Ipv4Addr) -> Self {
        Self { ciaddr, ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![1, 1, 6, 0];
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend([0, 3, if self.broadcast { 0x80 } else { 0 }, 0]);
        for field in [self.ciaddr, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, self.giaddr] {
            bytes.extend(field.octets());
        }
        bytes.extend(self.mac.0);
        bytes.resize(44, 0);
        bytes.extend(&self.sname);
        bytes.resize(108, 0);
        bytes.extend(&self.file);
        bytes.resize(236, 0);
        bytes.extend([99, 130, 83, 99]);
        for (code, value) in &self.options {
            bytes.extend([*code, value.len() as u8]);
            bytes.extend(value);
        }
        bytes.push(255);
        bytes
    }
}

/// An answer of the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reply {
    port: PortId,
    to_mac: MacAddr,
    to: SocketAddrV4,
    xid: u32,
    broadcast: bool,
    ciaddr: Ipv4Addr,
    yiaddr: Ipv4Addr,
    giaddr: Ipv4Addr,
    chaddr: [u8; 6],
    /// In the order in which they came.
    options: Vec<(u8, Vec<u8>)>,
    payload_len: usize,
}

impl Reply {
    /// Reads a frame, and checks all that must be right in every answer.
    fn read(outgoing: &Outgoing) -> Self {
        let Outgoing { to: Egress::Port(port), frame } = outgoing else { panic!("{outgoing:?}") };
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
        let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("{packet:?}") };
        let (header, pseudo) = (ip.header().to_header(), (ip.header().source(), ip.header().destination()));
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        let checksum = udp.to_header().calc_checksum_ipv4_raw(pseudo.0, pseudo.1, udp.payload()).unwrap();
        assert_eq!(udp.checksum(), checksum, "dhclient drops what has a partial checksum");
        assert_eq!((udp.source_port(), ip.header().source_addr(), &frame[6..12]), (67, SERVER, &SERVER_MAC.0[..]));
        let bytes = udp.payload();
        let [op, kind, len, hops] = *bytes.first_chunk().unwrap();
        assert_eq!((op, kind, len, hops, &bytes[236..240]), (2, 1, 6, 0, &[99, 130, 83, 99][..]));
        assert_eq!((&bytes[20..24], &bytes[44..236]), (&[0; 4][..], &[0; 192][..]), "siaddr, sname and file");
        assert!(bytes.len() >= 300, "BOOTP's length");
        let ip_at = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
        let reply = Self {
            port: *port,
            to_mac: MacAddr(frame[..6].try_into().unwrap()),
            to: SocketAddrV4::new(ip.header().destination_addr(), udp.destination_port()),
            xid: u32::from_be_bytes(bytes[4..8].try_into().unwrap()),
            broadcast: bytes[10] & 0x80 != 0,
            ciaddr: ip_at(12),
            yiaddr: ip_at(16),
            giaddr: ip_at(24),
            chaddr: bytes[28..34].try_into().unwrap(),
            options: read_options(&bytes[240..]),
            payload_len: bytes.len(),
        };
        reply.compare(&dhcproto::v4::Message::decode(&mut Decoder::new(bytes)).unwrap());
        reply
    }

    /// Both parsers have read the same.
    fn compare(&self, other: &dhcproto::v4::Message) {
        assert_eq!((self.xid, self.yiaddr, self.ciaddr), (other.xid(), other.yiaddr(), other.ciaddr()));
        let mut ours: Vec<_> = self.options.iter().map(|(code, _)| *code).collect();
        let theirs: Vec<u8> = other.opts().iter().map(|(code, _)| u8::from(*code)).collect();
        ours.sort_unstable();
        assert_eq!(ours, theirs);
    }

    fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(other, _)| *other == code).map(|(_, value)| value.as_slice())
    }

    fn kind(&self) -> u8 {
        self.option(53).unwrap()[0]
    }

    fn seconds(&self, code: u8) -> Option<u32> {
        self.option(code).map(|value| u32::from_be_bytes(value.try_into().unwrap()))
    }
}

/// Options up to the one that ends them, each once (if it is long, in parts that follow each other: RFC 3396), nothing but padding behind.
fn read_options(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut options: Vec<(u8, Vec<u8>)> = Vec::new();
    loop {
        let [code, rest @ ..] = bytes else { panic!("the options have no end") };
        if *code == 255 {
            assert!(rest.iter().all(|byte| *byte == 0), "{rest:?} behind the end");
            return options;
        }
        let (value, rest) = rest[1..].split_at(rest[0].into());
        match options.last_mut() {
            Some((last, before)) if last == code && before.len() % 255 == 0 => before.extend_from_slice(value),
            _ => {
                assert!(options.iter().all(|(other, _)| other != code), "option {code} twice");
                options.push((*code, value.to_vec()));
            }
        }
        bytes = rest;
    }
}

/// A server whose actions are carried out at once.
struct Bench {
    server: DhcpServer,
    now: Timestamp,
    book: LeaseBook,
    /// What the gateway was told.
    owners: BTreeMap<Ipv4Addr, Station>,
    probed: Vec<Ipv4Addr>,
    events: Vec<DhcpEvent>,
    replies: Vec<Reply>,
    /// Changes are written down, but that isn't said yet.
    unconfirmed: Option<Vec<Ticket>>,
}

impl Bench {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: DhcpSettings) -> Self {
        Self::restarted(settings, LeaseBook::default(), WALL)
    }

    fn restarted(settings: DhcpSettings, book: LeaseBook, wall: UnixSeconds) -> Self {
        let mut server = DhcpServer::new(settings, START, wall, &book).unwrap();
        let mut leased = Vec::new();
        (0..10u16).for_each(|port| server.attach(PortId(port), &format!("vm{port}"), &mut leased));
        let mut bench = Self {
            server,
            now: START,
            book,
            owners: BTreeMap::new(),
            probed: Vec::new(),
            events: Vec::new(),
            replies: Vec::new(),
            unconfirmed: None,
        };
        bench.carry_out(leased);
        bench
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(outgoing) => self.replies.push(Reply::read(&outgoing)),
                Action::Probe(address) => self.probed.push(address),
                Action::Persist { ticket, change } => {
                    self.book.apply(change);
                    match &mut self.unconfirmed {
                        Some(tickets) => tickets.push(ticket),
                        None => {
                            self.act(|server, now, actions| server.confirm(now, ticket, actions));
                        }
                    }
                }
                Action::Leased { address, station } => drop(self.owners.insert(address, station)),
                Action::Ended { address } => drop(self.owners.remove(&address)),
                Action::Log(event) => self.events.push(event),
            }
        }
    }

    /// Sends a message from behind port 0, and returns the only answer, if there is one.
    fn ask(&mut self, message: &Message) -> Option<Reply> {
        self.ask_on(0, message).unwrap()
    }

    fn ask_on(&mut self, port: u16, message: &Message) -> Result<Option<Reply>, DropReason> {
        self.send_bytes(port, message.mac, &message.bytes())?;
        assert!(self.replies.len() <= 1, "{:?}", self.replies);
        Ok(self.replies.pop())
    }

    fn send_bytes(&mut self, port: u16, mac: MacAddr, bytes: &[u8]) -> Result<(), DropReason> {
        let datagram = UdpDatagram {
            station: Station { port: PortId(port), mac },
            source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            destination: SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
            payload: bytes.into(),
        };
        self.act(|server, now, actions| server.handle(now, &datagram, actions))
    }

    /// Calls the server and carries out what it says.
    fn act<T>(&mut self, call: impl FnOnce(&mut DhcpServer, Timestamp, &mut Vec<Action>) -> T) -> T {
        let mut actions = Vec::new();
        let result = call(&mut self.server, self.now, &mut actions);
        self.carry_out(actions);
        result
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.act(DhcpServer::tick);
    }

    /// The whole conversation of a client that wants any address.
    fn lease(&mut self, number: u8) -> Reply {
        self.lease_on(0, number).unwrap()
    }

    fn lease_on(&mut self, port: u16, number: u8) -> Result<Reply, DropReason> {
        let offer = self.ask_on(port, &Message::new(number, DISCOVER))?.unwrap();
        assert_eq!(offer.kind(), OFFER);
        let request = Message::new(number, REQUEST).asking_for(offer.yiaddr).naming(SERVER);
        let ack = self.ask_on(port, &request)?.unwrap();
        assert_eq!((ack.kind(), ack.yiaddr), (ACK, offer.yiaddr));
        Ok(ack)
    }

    fn heard(&mut self, address: Ipv4Addr, port: u16, mac: MacAddr) {
        let station = Station { port: PortId(port), mac };
        self.act(|server, now, actions| server.heard(now, Heard { address, station }, actions));
    }
}
