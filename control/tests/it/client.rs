//! A guest in this process that speaks DHCP, DNS and ping.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use hickory_proto::op::{Message as DnsMessage, MessageType as DnsType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use weft_guest::Guest;

use crate::weft::PATIENCE;

const BROADCAST: [u8; 6] = [0xff; 6];
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const EVERYBODY: Ipv4Addr = Ipv4Addr::BROADCAST;

/// A guest with what it was given.
pub(crate) struct Client {
    guest: Guest,
    pub(crate) mac: [u8; 6],
    pub(crate) hostname: Option<String>,
    pub(crate) address: Ipv4Addr,
    server: Ipv4Addr,
    /// Of the gateway, when it is known.
    gateway_mac: [u8; 6],
    transaction: u32,
}

impl Client {
    /// Plugs a guest into a socket of weft's.
    pub(crate) fn plug(socket: &Path, last: u8) -> Self {
        let guest = Guest::builder(socket).connect().unwrap();
        let mac = [2, 0, 0, 0, 0, last];
        Self { guest, mac, hostname: None, address: ANY, server: ANY, gateway_mac: [0; 6], transaction: u32::from(last) << 16 }
    }

    /// Gets a lease and learns where the gateway is; returns the acknowledgement.
    #[track_caller]
    pub(crate) fn lease(&mut self) -> Message {
        let offer = self.ask(MessageType::Discover, &[]).expect("an offer");
        assert_eq!(kind(&offer), MessageType::Offer);
        let Some(DhcpOption::ServerIdentifier(server)) = offer.opts().get(OptionCode::ServerIdentifier) else {
            panic!("{offer:?}")
        };
        let choice = [DhcpOption::RequestedIpAddress(offer.yiaddr()), DhcpOption::ServerIdentifier(*server)];
        let ack = self.ask(MessageType::Request, &choice).expect("an acknowledgement");
        self.accept(&ack);
        ack
    }

    /// Asks for an address that it remembers.
    pub(crate) fn reboot(&mut self, address: Ipv4Addr) -> Option<Message> {
        self.ask(MessageType::Request, &[DhcpOption::RequestedIpAddress(address)])
    }

    /// Takes what an acknowledgement gives.
    #[track_caller]
    pub(crate) fn accept(&mut self, ack: &Message) {
        assert_eq!(kind(ack), MessageType::Ack, "{ack:?}");
        let Some(DhcpOption::ServerIdentifier(server)) = ack.opts().get(OptionCode::ServerIdentifier) else { panic!("{ack:?}") };
        (self.address, self.server) = (ack.yiaddr(), *server);
        self.gateway_mac = self.find(self.server).expect("the gateway answers ARP");
    }

    /// Gives the lease back; there is no answer to that.
    pub(crate) fn release(&mut self) {
        let mut message = self.message(MessageType::Release, &[DhcpOption::ServerIdentifier(self.server)]);
        message.set_ciaddr(self.address);
        let (from, to) = (SocketAddrV4::new(self.address, 68), SocketAddrV4::new(self.server, 67));
        self.send_udp(self.gateway_mac, from, to, &message.to_vec().unwrap());
        self.address = ANY;
    }

    /// Sends a message as a client without an address, and waits for its answer: for a while if there is to be none.
    pub(crate) fn ask(&mut self, kind: MessageType, options: &[DhcpOption]) -> Option<Message> {
        let message = self.message(kind, options);
        self.send_udp(BROADCAST, SocketAddrV4::new(ANY, 68), SocketAddrV4::new(EVERYBODY, 67), &message.to_vec().unwrap());
        let transaction = message.xid();
        self.wait(PATIENCE, move |packet| {
            let (_, to, data) = udp(packet)?;
            let answer = Message::decode(&mut Decoder::new(data)).ok()?;
            (to.port() == 68 && answer.xid() == transaction).then_some(answer)
        })
    }

    fn message(&mut self, kind: MessageType, options: &[DhcpOption]) -> Message {
        self.transaction += 1;
        let none = ANY;
        let mut message = Message::new_with_id(self.transaction, none, none, none, none, &self.mac);
        message.set_opcode(Opcode::BootRequest).set_flags(Flags::default());
        let parameters = [
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::DomainName,
            OptionCode::Hostname,
            OptionCode::InterfaceMtu,
        ];
        let hostname = self.hostname.clone().map(DhcpOption::Hostname);
        let usual = [DhcpOption::MessageType(kind), DhcpOption::ParameterRequestList(parameters.to_vec())];
        for option in usual.into_iter().chain(hostname).chain(options.iter().cloned()) {
            message.opts_mut().insert(option);
        }
        message
    }

    /// Where an address is, as ARP says.
    pub(crate) fn find(&mut self, address: Ipv4Addr) -> Option<[u8; 6]> {
        let (sender, target) = (self.address.octets(), address.octets());
        let operation = ArpOperation::REQUEST;
        let packet =
            ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, operation, &self.mac, &sender, &[0; 6], &target).unwrap();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.mac, BROADCAST).arp(packet).write(&mut frame).unwrap();
        self.guest.send(&frame).unwrap();
        self.wait(Duration::from_secs(2), |packet| match &packet.net {
            Some(NetSlice::Arp(arp)) if arp.sender_protocol_addr() == target => arp.sender_hw_addr().try_into().ok(),
            _ => None,
        })
    }

    /// True if the gateway answers a ping.
    pub(crate) fn ping_gateway(&mut self) -> bool {
        let builder = PacketBuilder::ethernet2(self.mac, self.gateway_mac).ipv4(self.address.octets(), self.server.octets(), 64);
        let mut frame = Vec::new();
        builder.icmpv4_echo_request(1, 1).write(&mut frame, b"are you there?").unwrap();
        self.guest.send(&frame).unwrap();
        let answer = |packet: &SlicedPacket<'_>| match &packet.transport {
            Some(TransportSlice::Icmpv4(icmp)) => Some(icmp.payload() == b"are you there?"),
            _ => None,
        };
        self.wait(Duration::from_secs(2), answer).unwrap_or(false)
    }

    /// Asks the gateway for records of a name.
    #[track_caller]
    pub(crate) fn resolve(&mut self, name: &str, kind: RecordType) -> DnsMessage {
        self.transaction += 1;
        let id = self.transaction as u16;
        let mut query = DnsMessage::new(id, DnsType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let (from, to) = (SocketAddrV4::new(self.address, 40_000), SocketAddrV4::new(self.server, 53));
        self.send_udp(self.gateway_mac, from, to, &query.to_vec().unwrap());
        let answer = self.wait(PATIENCE, |packet| {
            let (from, _, data) = udp(packet)?;
            let answer = DnsMessage::from_vec(data).ok()?;
            (from.port() == 53 && answer.metadata.id == id).then_some(answer)
        });
        answer.unwrap_or_else(|| panic!("no answer to {name} {kind}"))
    }

    /// The data of the answers to such a question.
    #[track_caller]
    pub(crate) fn look_up(&mut self, name: &str, kind: RecordType) -> Vec<String> {
        self.resolve(name, kind).answers.iter().map(|record| record.data.to_string()).collect()
    }

    /// Sends a datagram by way of the gateway.
    pub(crate) fn send_udp_to(&mut self, from: SocketAddrV4, to: SocketAddrV4, data: &[u8]) {
        self.send_udp(self.gateway_mac, from, to, data);
    }

    /// The next datagram that is none of DHCP's, if one comes soon.
    pub(crate) fn receive_udp(&mut self) -> Option<(SocketAddrV4, SocketAddrV4, Vec<u8>)> {
        self.wait(Duration::from_millis(100), |packet| {
            let (from, to, data) = udp(packet)?;
            (to.port() != 68).then(|| (from, to, data.to_vec()))
        })
    }

    /// True if an ICMP error comes that says a destination is unreachable.
    pub(crate) fn receive_unreachable(&mut self) -> bool {
        let error = |packet: &SlicedPacket<'_>| match &packet.transport {
            Some(TransportSlice::Icmpv4(icmp)) => (icmp.type_u8() == 3).then_some(()),
            _ => None,
        };
        self.wait(PATIENCE, error).is_some()
    }

    fn send_udp(&mut self, mac: [u8; 6], from: SocketAddrV4, to: SocketAddrV4, data: &[u8]) {
        let builder = PacketBuilder::ethernet2(self.mac, mac).ipv4(from.ip().octets(), to.ip().octets(), 64);
        let mut frame = Vec::new();
        builder.udp(from.port(), to.port()).write(&mut frame, data).unwrap();
        self.guest.send(&frame).unwrap();
    }

    /// The first packet that `find` finds something in.
    fn wait<T>(&mut self, patience: Duration, find: impl Fn(&SlicedPacket<'_>) -> Option<T>) -> Option<T> {
        let until = Instant::now() + patience;
        loop {
            let frame = self.guest.receive(until.saturating_duration_since(Instant::now())).unwrap()?;
            let Ok(packet) = SlicedPacket::from_ethernet(&frame) else { continue };
            if let Some(found) = find(&packet) {
                return Some(found);
            }
        }
    }
}

pub(crate) fn kind(message: &Message) -> MessageType {
    message.opts().msg_type().expect("a type of message")
}

fn udp<'p>(packet: &'p SlicedPacket<'_>) -> Option<(SocketAddrV4, SocketAddrV4, &'p [u8])> {
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else { return None };
    let header = ip.header();
    let from = SocketAddrV4::new(header.source_addr(), udp.source_port());
    Some((from, SocketAddrV4::new(header.destination_addr(), udp.destination_port()), udp.payload()))
}
