//! The gateway of a network: the router that guests see, as a pure state machine.
//!
//! # Theory
//!
//! It has an IP and a MAC address of its own, answers ARP and ping, knows which guest owns which address, checks what guests
//! send through it, and sorts the rest: to DHCP, to DNS, to a neighbour, to the outside. It serves none of these itself, and it
//! never sends or receives anything: [`Gateway::handle`] takes one frame, says in an [`Outcome`] what becomes of that frame,
//! and adds the frames that are to be sent in return to a list of [`Outgoing`].
//!
//! Not every frame comes here. Wherever frames pass, [`Screen::interest`] tells at a glance which of them concern the gateway.
//!
//! Nothing of what a guest sends is believed: addresses that were leased to another port or that are the gateway's own are
//! dropped, headers and checksums are verified, fragments are put together in bounded memory before anybody looks at them, and no
//! error is ever answered with an error. What a guest can make the gateway send goes to that guest, and is about as much as it sent;
//! the exceptions (an ARP request to find a neighbour, one to defend the gateway's address) are limited in rate.
//!
//! Everything is about IPv4 here. IPv6 will be another state machine beside this one, behind the same outcomes.

mod fragments;
mod icmp;
mod owners;
mod screen;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

pub use icmp::Refusal;
pub use screen::{Interest, SCREENED_LEN, Screen};

use self::fragments::{Abandoned, Fragments};
use self::icmp::RefusalLimit;
use self::owners::Owners;
use crate::subnet::is_host_address;
use crate::wire::{
    ArpOperation, ArpPacket, ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHERNET_LEN, ICMP, IcmpMessage, Ipv4Draft, LinkHeader, TCP,
    TcpHeader, UDP, UdpHeader,
};
use crate::{DropReason, Egress, Ipv4Packet, MacAddr, Outgoing, PortId, Station, Subnet, Timestamp, UdpDatagram};

/// How often the gateway defends its address (RFC 5227, section 1.1, `DEFEND_INTERVAL`).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// How often the owner of one address is asked for (RFC 1122, section 2.3.2.1).
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// The most addresses whose owners are asked for at a time.
const ASKED_MAX: usize = 256;
/// How often [`Gateway::tick`] has something to do, at most.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

const DHCP_SERVER: u16 = 67;
const DNS: u16 = 53;
const ECHO_REPLY: u8 = 0;

/// What a gateway is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    /// The network's subnet.
    pub subnet: Subnet,
    /// The gateway's address in it.
    pub address: Ipv4Addr,
    /// The gateway's MAC address: an individual one that no guest has.
    pub mac: MacAddr,
    /// The network's MTU, in bytes: at least 68.
    pub mtu: u16,
    /// DHCP is served: messages for a server come out as [`Outcome::Dhcp`].
    pub dhcp: bool,
    /// DNS is served: queries come out as [`Outcome::Dns`], and TCP to port 53 as [`Outcome::DnsTcp`].
    pub dns: bool,
    /// Guests may go to the host's loopback by the gateway's address. The gateway itself does nothing about it: see [`Outcome::Local`].
    pub host_access: bool,
}

/// Settings that don't go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewaySettingsError {
    /// The address is not one of the subnet's hosts.
    #[error(
        "the gateway's address {address} is not the address of a host in {subnet}: choose one between the first and the last"
    )]
    AddressNotInSubnet {
        /// The address.
        address: Ipv4Addr,
        /// The subnet.
        subnet: Subnet,
    },
    /// The MAC address is a group address, or zero.
    #[error("{0} can't be a gateway's MAC address: it is a group address or zero")]
    MacNotIndividual(MacAddr),
    /// The MTU is less than every host must take (RFC 791, section 3.2).
    #[error("an MTU of {0} bytes is too small: IPv4 needs at least 68")]
    MtuTooSmall(u16),
}

/// A frame that has come in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'f> {
    /// The port it came from.
    pub port: PortId,
    /// The whole frame, without FCS.
    pub frame: &'f [u8],
    /// The sender left the transport checksum to the device, so it can't be verified.
    pub checksum_pending: bool,
}

/// An IPv4 packet from a guest, its header and its source checked, whole if it came in fragments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'f> {
    /// Who sent it.
    pub station: Station,
    /// The packet.
    pub ip: Ipv4Packet<'f>,
    /// As in [`Arrival`].
    pub checksum_pending: bool,
}

/// A guest that says in ARP that it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The address, one of the subnet.
    pub address: Ipv4Addr,
    /// The guest.
    pub station: Station,
}

/// What becomes of a frame. The frames that answer it are not in here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<'f> {
    /// It does not concern the gateway after all.
    NotForGateway,
    /// The gateway has dealt with it.
    Done,
    /// It goes no further.
    Drop(DropReason),
    /// It was ARP, and says who has an address: whoever probes for free addresses wants to know.
    Arp(Heard),
    /// A message for the DHCP server.
    Dhcp(UdpDatagram<'f>),
    /// A query for the DNS forwarder.
    Dns(UdpDatagram<'f>),
    /// A TCP segment for the DNS forwarder.
    DnsTcp(Packet<'f>),
    /// TCP or UDP for the gateway's own address, and for none of its services.
    Local(Packet<'f>),
    /// For another guest of the same network: the caller sends it on with these new headers in front of what follows the first 34
    /// bytes of the frame. A fragment passes as it is.
    Neighbour {
        /// Where to.
        to: Station,
        /// Ethernet header and the first 20 bytes of the IPv4 header, the TTL one less.
        headers: [u8; ETHERNET_LEN + 20],
        /// The packet as it came.
        packet: Packet<'f>,
    },
    /// For the outside. Its TTL is at least two.
    Outside(Packet<'f>),
}

/// Frames that were kept for a while and died after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateDrop {
    /// The port they came from.
    pub port: PortId,
    /// Why.
    pub reason: DropReason,
    /// How many.
    pub frames: u64,
}

/// The gateway of one network.
#[derive(Debug)]
pub struct Gateway {
    settings: GatewaySettings,
    owners: Owners,
    fragments: Fragments,
    refusals: RefusalLimit,
    /// For which addresses an owner was asked, and when.
    asked: BTreeMap<Ipv4Addr, Timestamp>,
    defended: Option<Timestamp>,
    identification: u16,
    late_drops: BTreeMap<(PortId, DropReason), u64>,
    next_tick: Timestamp,
}

impl GatewaySettings {
    /// Checks that the settings go together.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), GatewaySettingsError> {
        let Self { subnet, address, mac, mtu, .. } = *self;
        if !subnet.is_host(address) {
            return Err(GatewaySettingsError::AddressNotInSubnet { address, subnet });
        }
        if mac.is_multicast() || mac.is_zero() {
            return Err(GatewaySettingsError::MacNotIndividual(mac));
        }
        if mtu < 68 {
            return Err(GatewaySettingsError::MtuTooSmall(mtu));
        }
        Ok(())
    }
}

impl Gateway {
    /// A gateway that knows nobody yet.
    ///
    /// # Errors
    /// When the settings contradict each other.
    pub fn new(settings: GatewaySettings) -> Result<Self, GatewaySettingsError> {
        settings.check()?;
        Ok(Self {
            settings,
            owners: Owners::default(),
            fragments: Fragments::default(),
            refusals: RefusalLimit::default(),
            asked: BTreeMap::new(),
            defended: None,
            identification: 0,
            late_drops: BTreeMap::new(),
            next_tick: Timestamp::default(),
        })
    }

    /// Changes the settings. Who owns which address is only forgotten when the subnet is another one. The caller
    /// [`announce`](Self::announce)s a new address.
    ///
    /// # Errors
    /// When the settings contradict each other; nothing is changed then.
    pub fn reconfigure(&mut self, settings: GatewaySettings) -> Result<(), GatewaySettingsError> {
        settings.check()?;
        if settings.subnet != self.settings.subnet {
            self.owners = Owners::default();
        }
        self.settings = settings;
        Ok(())
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &GatewaySettings {
        &self.settings
    }

    /// What tells at a glance which frames [`Self::handle`] is to see.
    #[must_use]
    pub fn screen(&self) -> Screen {
        let GatewaySettings { mac, address, dhcp, .. } = self.settings;
        Screen { mac, address, dhcp }
    }

    /// Takes a frame; says what becomes of it, and adds what is to be sent to `out`.
    pub fn handle<'f>(&mut self, now: Timestamp, arrival: Arrival<'f>, out: &mut Vec<Outgoing>) -> Outcome<'f> {
        self.handle_beginning(now, arrival, arrival.frame.len(), out)
    }

    /// The same for a frame of `len` bytes, of which `arrival` has only the beginning: the headers, up to that of TCP or UDP. That is enough for a
    /// packet to the outside that is no fragment; whatever needs more is dropped.
    pub fn handle_beginning<'f>(
        &mut self,
        now: Timestamp,
        arrival: Arrival<'f>,
        len: usize,
        out: &mut Vec<Outgoing>,
    ) -> Outcome<'f> {
        self.receive(now, arrival, len, out).unwrap_or_else(Outcome::Drop)
    }

    /// Tells the sender of a packet why it goes no further, if that is allowed and it wasn't told too often lately.
    pub fn refuse(&mut self, now: Timestamp, packet: &Packet<'_>, why: Refusal, out: &mut Vec<Outgoing>) {
        let Some(draft) = why.draft(self.settings.address, &packet.ip) else { return };
        if self.refusals.allow(now, packet.station.port) {
            self.send(packet.station, &draft, out);
        }
    }

    /// Sends a UDP datagram from one of the gateway's services, in fragments if the MTU asks for it.
    pub fn send_udp(&mut self, to: Station, source_port: u16, destination: SocketAddrV4, data: &[u8], out: &mut Vec<Outgoing>) {
        let source = SocketAddrV4::new(self.settings.address, source_port);
        self.send(to, &Ipv4Draft::udp(source, destination, data), out);
    }

    /// Where `address` can be reached. If nobody knows, its owner is asked for, once a second at most, and a later call may know.
    pub fn resolve(&mut self, now: Timestamp, address: Ipv4Addr, out: &mut Vec<Outgoing>) -> Option<Station> {
        let found = self.owners.find(now, address);
        if found.is_none() && self.settings.subnet.is_host(address) && self.may_ask(now, address) {
            out.push(self.arp_request(self.settings.address, address));
        }
        found
    }

    /// Adds an ARP probe for `address` to `out` (RFC 5227, section 2.1.1): whoever has it will be heard, nobody's cache changes.
    pub fn probe(&self, address: Ipv4Addr, out: &mut Vec<Outgoing>) {
        out.push(self.arp_request(Ipv4Addr::UNSPECIFIED, address));
    }

    /// Adds an announcement of the gateway's own address to `out` (RFC 5227, section 2.3), for guests that knew another gateway.
    pub fn announce(&self, out: &mut Vec<Outgoing>) {
        out.push(self.arp_request(self.settings.address, self.settings.address));
    }

    /// The DHCP server has leased `address` to `station`: from now on it belongs to nobody else.
    pub fn lease(&mut self, address: Ipv4Addr, station: Station) {
        self.owners.lease(address, station);
    }

    /// The lease of `address` has ended.
    pub fn end_lease(&mut self, address: Ipv4Addr) {
        self.owners.forget(address);
    }

    /// The port to which `address` is leased.
    #[must_use]
    pub fn lessee(&self, address: Ipv4Addr) -> Option<PortId> {
        self.owners.lessee(address)
    }

    /// The addresses that are leased to `port`, in order.
    pub fn leases_of(&self, port: PortId) -> impl Iterator<Item = Ipv4Addr> {
        self.owners.leases_of(port)
    }

    /// Forgets everything that came from `port`, which is gone.
    pub fn forget_port(&mut self, port: PortId) {
        self.owners.forget_port(port);
        self.fragments.forget_port(port);
        self.refusals.forget_port(port);
        self.late_drops.retain(|(from, _), _| *from != port);
    }

    /// When [`Self::tick`] wants to be called, if it does.
    #[must_use]
    pub fn next_tick(&self) -> Option<Timestamp> {
        (!self.fragments.is_empty()).then_some(self.next_tick)
    }

    /// Gives up what has waited for too long. To be called about once a second, or as [`Self::next_tick`] says; more often costs nothing.
    pub fn tick(&mut self, now: Timestamp, out: &mut Vec<Outgoing>) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now.after(TICK_INTERVAL);
        self.owners.expire(now);
        self.asked.retain(|_, when| now.since(*when) < ASK_INTERVAL);
        let mut abandoned = Vec::new();
        self.fragments.expire(now, &mut abandoned);
        for late in abandoned {
            self.count_late(&late, DropReason::FragmentTimeout);
            // RFC 1122, section 3.3.2: the sender is told, if the first part has come.
            if let Some(Ok(ip)) = late.first.as_deref().map(Ipv4Packet::parse) {
                let station = Station { port: late.port, mac: late.mac };
                self.refuse(now, &Packet { station, ip, checksum_pending: false }, Refusal::ReassemblyTimeout, out);
            }
        }
    }

    /// Takes the frames that died after they were kept for a while, since this was last asked.
    pub fn late_drops(&mut self) -> impl Iterator<Item = LateDrop> {
        std::mem::take(&mut self.late_drops).into_iter().map(|((port, reason), frames)| LateDrop { port, reason, frames })
    }

    fn receive<'f>(
        &mut self,
        now: Timestamp,
        arrival: Arrival<'f>,
        len: usize,
        out: &mut Vec<Outgoing>,
    ) -> Result<Outcome<'f>, DropReason> {
        let (link, rest) = LinkHeader::parse(arrival.frame)?;
        if link.source == self.settings.mac {
            return Err(DropReason::GatewayClaimed);
        }
        let station = Station { port: arrival.port, mac: link.source };
        let for_gateway = link.destination == self.settings.mac;
        match link.ether_type {
            ETHER_TYPE_ARP => self.receive_arp(now, station, &ArpPacket::parse(&link, rest)?, out),
            ETHER_TYPE_IPV4 => {
                let ip = Ipv4Packet::parse_beginning(rest, len.saturating_sub(ETHERNET_LEN))?;
                if ip.header().source == self.settings.address {
                    return Err(DropReason::GatewayClaimed);
                }
                let packet = Packet { station, ip, checksum_pending: arrival.checksum_pending };
                if self.is_dhcp(&packet.ip) {
                    let udp = UdpHeader::parse(&packet.ip, packet.checksum_pending)?;
                    return Ok(Outcome::Dhcp(udp.datagram(packet.station, packet.ip)));
                }
                if for_gateway { self.receive_ipv4(now, packet, out) } else { Ok(Outcome::NotForGateway) }
            }
            _ if for_gateway => Err(DropReason::UnsupportedProtocol),
            _ => Ok(Outcome::NotForGateway),
        }
    }

    /// RFC 826, with RFC 5227 for probes, announcements and conflicts.
    fn receive_arp<'f>(
        &mut self,
        now: Timestamp,
        station: Station,
        arp: &ArpPacket,
        out: &mut Vec<Outgoing>,
    ) -> Result<Outcome<'f>, DropReason> {
        let GatewaySettings { subnet, address, mac, .. } = self.settings;
        if arp.sender == address {
            self.defend(now, out);
            return Err(DropReason::GatewayClaimed);
        }
        let heard = subnet.is_host(arp.sender).then_some(Heard { address: arp.sender, station });
        if let Some(Heard { address, .. }) = heard {
            self.owners.hear(now, address, station)?;
            self.asked.remove(&address);
        }
        if arp.operation == ArpOperation::Request && arp.target == address {
            let reply = ArpPacket {
                operation: ArpOperation::Reply,
                sender_mac: mac,
                sender: address,
                target_mac: arp.sender_mac,
                target: arp.sender,
            };
            out.push(Outgoing { to: Egress::Port(station.port), frame: reply.frame(arp.sender_mac) });
        }
        Ok(heard.map_or(Outcome::NotForGateway, Outcome::Arp))
    }

    /// RFC 5227, section 2.4 (c): an address that everybody relies on is defended for ever, but not in a loop.
    fn defend(&mut self, now: Timestamp, out: &mut Vec<Outgoing>) {
        if self.defended.is_none_or(|last| now.since(last) >= DEFEND_INTERVAL) {
            self.defended = Some(now);
            self.announce(out);
        }
    }

    /// True for a message to the DHCP server. It may come in a frame for everybody or for the gateway, and from whatever address: a
    /// client that comes from another network still has one of there.
    fn is_dhcp(&self, packet: &Ipv4Packet<'_>) -> bool {
        let header = packet.header();
        let to_port = packet.payload().get(2..4);
        let for_server = header.protocol == UDP && !packet.is_fragment() && to_port == Some(&DHCP_SERVER.to_be_bytes());
        self.settings.dhcp && for_server && self.is_own(header.destination)
    }

    /// A packet in a frame for the gateway.
    fn receive_ipv4<'f>(
        &mut self,
        now: Timestamp,
        packet: Packet<'f>,
        out: &mut Vec<Outgoing>,
    ) -> Result<Outcome<'f>, DropReason> {
        self.check_source(now, packet.station, packet.ip.header().source)?;
        let destination = packet.ip.header().destination;
        let is_local = destination == self.settings.address;
        // What only passes is left as it is (RFC 1812, section 4.2.2.7): its receiver puts it together.
        let passes = !is_local && self.settings.subnet.is_host(destination);
        let packet = match packet.ip.is_fragment() && !passes {
            true if !packet.ip.is_whole() => return Err(DropReason::BadFragment),
            true => match self.reassemble(now, &packet)? {
                Some(ip) => Packet { station: packet.station, ip, checksum_pending: false },
                None => return Ok(Outcome::Done),
            },
            false => packet,
        };
        if is_local {
            return self.receive_local(now, packet, out);
        }
        if destination == self.settings.subnet.broadcast() || destination == self.settings.subnet.network() {
            return Err(DropReason::Unreachable);
        }
        // RFC 1812, section 5.3.7, and RFC 3927, section 2.7. It also keeps guests from the metadata services of clouds.
        if !is_host_address(destination) {
            return Err(DropReason::Unreachable);
        }
        if packet.ip.header().ttl <= 1 {
            self.refuse(now, &packet, Refusal::TtlExceeded, out);
            return Err(DropReason::TtlExceeded);
        }
        if self.settings.subnet.contains(destination) {
            if !packet.ip.is_whole() {
                return Err(DropReason::BadIpv4);
            }
            return self.pass_on(now, packet, out);
        }
        Ok(Outcome::Outside(packet))
    }

    /// RFC 1812, sections 4.2.2.11 and 5.3.8: a source is one host's, and here it is the sender's own.
    fn check_source(&mut self, now: Timestamp, station: Station, source: Ipv4Addr) -> Result<(), DropReason> {
        let subnet = self.settings.subnet;
        if !is_host_address(source) || source == subnet.network() || source == subnet.broadcast() {
            return Err(DropReason::BadIpSource);
        }
        if !subnet.contains(source) {
            return Err(DropReason::SpoofedSource);
        }
        self.owners.hear(now, source, station)
    }

    fn reassemble(&mut self, now: Timestamp, packet: &Packet<'_>) -> Result<Option<Ipv4Packet<'static>>, DropReason> {
        let mut abandoned = Vec::new();
        let whole = self.fragments.add(now, packet.station, &packet.ip, &mut abandoned);
        let reason = whole.as_ref().err().copied().unwrap_or(DropReason::FragmentsFull);
        for late in abandoned {
            self.count_late(&late, reason);
        }
        whole
    }

    /// A whole datagram for the gateway's own address.
    fn receive_local<'f>(
        &mut self,
        now: Timestamp,
        packet: Packet<'f>,
        out: &mut Vec<Outgoing>,
    ) -> Result<Outcome<'f>, DropReason> {
        let refusal = match packet.ip.header().protocol {
            ICMP => return self.receive_icmp(&packet, out),
            UDP => {
                let udp = UdpHeader::parse(&packet.ip, packet.checksum_pending)?;
                if udp.destination_port == DNS && self.settings.dns {
                    return Ok(Outcome::Dns(udp.datagram(packet.station, packet.ip)));
                }
                Refusal::PortUnreachable
            }
            TCP => {
                let tcp = TcpHeader::parse(&packet.ip, packet.checksum_pending)?;
                if tcp.destination_port == DNS && self.settings.dns {
                    return Ok(Outcome::DnsTcp(packet));
                }
                Refusal::PortUnreachable
            }
            _ => Refusal::ProtocolUnreachable,
        };
        if refusal == Refusal::PortUnreachable {
            return Ok(Outcome::Local(packet));
        }
        self.refuse(now, &packet, refusal, out);
        Err(DropReason::NoListener)
    }

    /// RFC 1122, section 3.2.2: echo is answered, errors are for whoever caused them, the rest is silently discarded.
    fn receive_icmp<'f>(&mut self, packet: &Packet<'_>, out: &mut Vec<Outgoing>) -> Result<Outcome<'f>, DropReason> {
        match IcmpMessage::parse(packet.ip.payload())? {
            IcmpMessage::EchoRequest(rest) => {
                let source = packet.ip.header().source;
                let mut draft = Ipv4Draft::icmp(self.settings.address, source, ECHO_REPLY, 0, rest);
                draft.tos = packet.ip.header().tos;
                self.send(packet.station, &draft, out);
                Ok(Outcome::Done)
            }
            IcmpMessage::EchoReply | IcmpMessage::Error => Ok(Outcome::Done),
            IcmpMessage::Other => Err(DropReason::UnsupportedProtocol),
        }
    }

    /// For another guest of the subnet, which the sender reaches through the gateway for reasons of its own.
    fn pass_on<'f>(&mut self, now: Timestamp, packet: Packet<'f>, out: &mut Vec<Outgoing>) -> Result<Outcome<'f>, DropReason> {
        // As long as the answer to an ARP request may still come, the sender isn't told that there is nobody.
        let to = self.resolve(now, packet.ip.header().destination, out).ok_or(DropReason::Unreachable)?;
        let link = LinkHeader { destination: to.mac, source: self.settings.mac, ether_type: ETHER_TYPE_IPV4 };
        let mut headers = [0; ETHERNET_LEN + 20];
        headers[..ETHERNET_LEN].copy_from_slice(&link.to_bytes());
        headers[ETHERNET_LEN..].copy_from_slice(&packet.ip.forwarded_header());
        Ok(Outcome::Neighbour { to, headers, packet })
    }

    /// True for the addresses at which the gateway takes DHCP messages.
    fn is_own(&self, address: Ipv4Addr) -> bool {
        address.is_broadcast() || address == self.settings.address || address == self.settings.subnet.broadcast()
    }

    fn may_ask(&mut self, now: Timestamp, address: Ipv4Addr) -> bool {
        if self.asked.len() >= ASKED_MAX {
            self.asked.retain(|_, when| now.since(*when) < ASK_INTERVAL);
        }
        let recently = self.asked.get(&address).is_some_and(|when| now.since(*when) < ASK_INTERVAL);
        if recently || self.asked.len() >= ASKED_MAX {
            return false;
        }
        self.asked.insert(address, now);
        true
    }

    fn arp_request(&self, sender: Ipv4Addr, target: Ipv4Addr) -> Outgoing {
        let request = ArpPacket {
            operation: ArpOperation::Request,
            sender_mac: self.settings.mac,
            sender,
            target_mac: MacAddr([0; 6]),
            target,
        };
        Outgoing { to: Egress::All, frame: request.frame(MacAddr::BROADCAST) }
    }

    fn send(&mut self, to: Station, draft: &Ipv4Draft, out: &mut Vec<Outgoing>) {
        self.identification = self.identification.wrapping_add(1);
        let frames = draft.frames(self.settings.mac, to.mac, self.settings.mtu, self.identification);
        out.extend(frames.into_iter().map(|frame| Outgoing { to: Egress::Port(to.port), frame }));
    }

    fn count_late(&mut self, late: &Abandoned, reason: DropReason) {
        *self.late_drops.entry((late.port, reason)).or_default() += late.parts;
    }
}

#[cfg(test)]
mod tests;
