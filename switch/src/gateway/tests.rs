//! The gateway as a guest meets it. `etherparse` builds what guests send and is the second opinion on what they get.

mod fragments;

use etherparse::{
    ArpHardwareId, ArpOperation as EtherArp, ArpPacket as EtherparseArp, EtherType, Icmpv4Slice, Icmpv4Type, IpFragOffset,
    IpNumber, Ipv4Header as EtherparseIpv4, NetSlice, PacketBuilder, SlicedPacket, TcpHeader as EtherparseTcp, TransportSlice,
    icmpv4::DestUnreachableHeader,
};
use proptest::prelude::*;

use super::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0x77, 0, 0, 0, 1]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const PORT: PortId = PortId(3);
const OTHER_PORT: PortId = PortId(4);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const OTHER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
const NOW: Timestamp = Timestamp::from_millis(60_000);
const ECHO_REQUEST: u8 = 8;

fn settings() -> GatewaySettings {
    GatewaySettings {
        subnet: "10.77.0.0/24".parse().unwrap(),
        address: GATEWAY,
        mac: GATEWAY_MAC,
        mtu: 1500,
        dhcp: true,
        dns: true,
        host_access: false,
    }
}

/// A gateway, and what it sent.
struct Bench {
    gateway: Gateway,
    out: Vec<Outgoing>,
}

impl Bench {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: GatewaySettings) -> Self {
        Self { gateway: Gateway::new(settings).unwrap(), out: Vec::new() }
    }

    fn at<'f>(&mut self, now: Timestamp, port: PortId, frame: &'f [u8]) -> Outcome<'f> {
        match self.gateway.handle(now, Arrival { port, frame, checksum_pending: false }, &mut self.out) {
            // As on a network without a way out.
            Outcome::Local(packet) if !self.gateway.settings().host_access => {
                self.gateway.refuse(now, &packet, Refusal::PortUnreachable, &mut self.out);
                Outcome::Drop(DropReason::NoListener)
            }
            outcome => outcome,
        }
    }

    fn take<'f>(&mut self, frame: &'f [u8]) -> Outcome<'f> {
        self.at(NOW, PORT, frame)
    }

    /// The only frame that was sent since the last call, which must be for the guest alone.
    fn reply(&mut self) -> Vec<u8> {
        assert_eq!(self.out.len(), 1, "{:?}", self.out);
        let Outgoing { to, frame } = self.out.remove(0);
        assert_eq!(to, Egress::Port(PORT));
        frame
    }

    fn expect_silence(&self) {
        assert_eq!(self.out, []);
    }
}

fn arp(operation: EtherArp, mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp_to(MacAddr::BROADCAST, operation, mac, sender, target)
}

fn arp_to(destination: MacAddr, operation: EtherArp, mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let [from, to] = [sender.octets(), target.octets()];
    let packet = EtherparseArp::new(ArpHardwareId::ETHERNET, EtherType::IPV4, operation, &mac.0, &from, &[0; 6], &to).unwrap();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac.0, destination.0).arp(packet).write(&mut frame).unwrap();
    frame.resize(60, 0);
    frame
}

fn ipv4_to(destination: MacAddr, header: &EtherparseIpv4, payload: &[u8]) -> Vec<u8> {
    let mut header = header.clone();
    header.set_payload_len(payload.len()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut frame = [destination.0.as_slice(), &MAC.0, &[8, 0]].concat();
    header.write(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

fn header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> EtherparseIpv4 {
    EtherparseIpv4 {
        time_to_live: 64,
        protocol: IpNumber(protocol),
        source: source.octets(),
        destination: destination.octets(),
        ..EtherparseIpv4::default()
    }
}

fn echo(data: &[u8]) -> Vec<u8> {
    let rest = [&[0xab, 0xcd, 0, 1], data].concat();
    Ipv4Draft::icmp(GUEST, GATEWAY, ECHO_REQUEST, 0, &rest).payload
}

fn ping(destination: Ipv4Addr) -> Vec<u8> {
    ipv4_to(GATEWAY_MAC, &header(GUEST, destination, ICMP), &echo(b"are you there?"))
}

fn udp(destination: SocketAddrV4, data: &[u8]) -> Vec<u8> {
    udp_from(SocketAddrV4::new(GUEST, 4000), destination, data)
}

fn udp_from(source: SocketAddrV4, destination: SocketAddrV4, data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let [from, to] = [source.ip().octets(), destination.ip().octets()];
    let builder = PacketBuilder::ethernet2(MAC.0, GATEWAY_MAC.0).ipv4(from, to, 64);
    builder.udp(source.port(), destination.port()).write(&mut frame, data).unwrap();
    frame
}

fn tcp(destination: SocketAddrV4, change: impl FnOnce(&mut EtherparseTcp)) -> Vec<u8> {
    let mut header = EtherparseTcp::new(4000, destination.port(), 1_000, 65_535);
    change(&mut header);
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MAC.0, GATEWAY_MAC.0).ipv4(GUEST.octets(), destination.ip().octets(), 64);
    builder.tcp_header(header).write(&mut frame, &[]).unwrap();
    frame
}

/// Fragments of one datagram to the gateway, each `step` bytes of payload (a multiple of eight).
fn fragments(identification: u16, payload: &[u8], step: usize) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(step);
    let part = |(index, part): (usize, &[u8])| {
        let mut header = header(GUEST, GATEWAY, ICMP);
        header.identification = identification;
        header.more_fragments = index + 1 < count;
        header.fragment_offset = IpFragOffset::try_new((index * step / 8) as u16).unwrap();
        ipv4_to(GATEWAY_MAC, &header, part)
    };
    payload.chunks(step).enumerate().map(part).collect()
}

/// Parses a frame of the gateway's and checks everything in it that can be wrong.
fn check(frame: &[u8]) -> SlicedPacket<'_> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    assert_eq!(frame[6..12], GATEWAY_MAC.0);
    match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(frame.len(), ETHERNET_LEN + usize::from(header.total_len));
            let pseudo = (ip.header().source(), ip.header().destination());
            match packet.transport.as_ref() {
                Some(TransportSlice::Icmpv4(icmp)) => assert_eq!(internet_checksum(icmp.slice()), 0),
                Some(TransportSlice::Udp(udp)) => {
                    let right = udp.to_header().calc_checksum_ipv4_raw(pseudo.0, pseudo.1, udp.payload()).unwrap();
                    assert_eq!((udp.checksum(), udp.checksum() == 0), (right, false));
                }
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(pseudo.0, pseudo.1).unwrap());
                }
                _ => assert!(header.fragment_offset.value() > 0 || header.more_fragments, "{packet:?}"),
            }
        }
        NetSlice::Arp(_) => assert_eq!(frame.len(), 42),
        NetSlice::Ipv6(_) => panic!("{packet:?}"),
    }
    packet
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    crate::wire::internet_checksum(&[bytes])
}

fn icmp<'a>(packet: &SlicedPacket<'a>) -> Icmpv4Slice<'a> {
    match packet.transport.as_ref() {
        Some(TransportSlice::Icmpv4(icmp)) => icmp.clone(),
        other => panic!("{other:?}"),
    }
}

fn arp_fields(frame: &[u8]) -> (EtherArp, [u8; 6], Ipv4Addr, [u8; 6], Ipv4Addr) {
    let Some(NetSlice::Arp(arp)) = check(frame).net else { panic!("not ARP: {frame:?}") };
    let arp = arp.to_packet().try_eth_ipv4().unwrap();
    (arp.operation, arp.sender_mac, arp.sender_ipv4.into(), arp.target_mac, arp.target_ipv4.into())
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    for address in [[10, 77, 0, 0], [10, 77, 0, 255], [10, 78, 0, 1]] {
        assert!(Gateway::new(GatewaySettings { address: address.into(), ..settings() }).is_err());
    }
    assert!(Gateway::new(GatewaySettings { mac: MacAddr::BROADCAST, ..settings() }).is_err());
    assert!(Gateway::new(GatewaySettings { mtu: 67, ..settings() }).is_err());
}

#[test]
fn changed_settings_hold_at_once_and_owners_stay_while_the_subnet_does() {
    let mut bench = Bench::new();
    let station = Station { port: PORT, mac: MAC };
    bench.gateway.lease(GUEST, station);
    let gateway = &mut bench.gateway;
    gateway.reconfigure(GatewaySettings { address: OTHER, ..settings() }).unwrap();
    assert_eq!(gateway.resolve(NOW, GUEST, &mut bench.out), Some(station));
    assert!(gateway.reconfigure(GatewaySettings { mtu: 67, ..settings() }).is_err());
    assert_eq!((gateway.settings().mtu, gateway.screen().address), (1500, OTHER));
    let subnet = "10.77.0.0/25".parse().unwrap();
    gateway.reconfigure(GatewaySettings { subnet, ..settings() }).unwrap();
    assert_eq!(gateway.resolve(NOW, GUEST, &mut bench.out), None);
}

#[test]
fn an_arp_request_for_the_gateway_is_answered_to_the_asker_alone_rfc_826() {
    let mut bench = Bench::new();
    let request = arp(EtherArp::REQUEST, MAC, GUEST, GATEWAY);
    let heard = Heard { address: GUEST, station: Station { port: PORT, mac: MAC } };
    assert_eq!(bench.take(&request), Outcome::Arp(heard));
    let reply = bench.reply();
    assert_eq!(reply[..6], MAC.0);
    assert_eq!(arp_fields(&reply), (EtherArp::REPLY, GATEWAY_MAC.0, GATEWAY, MAC.0, GUEST));
    assert_eq!(bench.gateway.resolve(NOW, GUEST, &mut bench.out), Some(heard.station));
}

#[test]
fn a_probe_for_the_gateways_address_is_answered_and_teaches_nothing_rfc_5227_2_1_1() {
    let mut bench = Bench::new();
    let probe = arp(EtherArp::REQUEST, MAC, Ipv4Addr::UNSPECIFIED, GATEWAY);
    assert_eq!(bench.take(&probe), Outcome::NotForGateway);
    assert_eq!(arp_fields(&bench.reply()).2, GATEWAY);
    let other = arp(EtherArp::REQUEST, MAC, Ipv4Addr::UNSPECIFIED, OTHER);
    assert_eq!(bench.take(&other), Outcome::NotForGateway);
    bench.expect_silence();
}

#[test]
fn an_announcement_is_learned_and_not_answered_rfc_5227_2_3() {
    let mut bench = Bench::new();
    let announcement = arp(EtherArp::REQUEST, MAC, GUEST, GUEST);
    assert!(matches!(bench.take(&announcement), Outcome::Arp(Heard { address: GUEST, .. })));
    bench.expect_silence();
    assert_eq!(bench.gateway.resolve(NOW, GUEST, &mut bench.out).map(|station| station.mac), Some(MAC));
}

#[test]
fn a_guest_that_claims_the_gateways_address_is_dropped_and_the_address_defended_once_in_a_while_rfc_5227_2_4() {
    let mut bench = Bench::new();
    for operation in [EtherArp::REQUEST, EtherArp::REPLY] {
        let claim = arp(operation, MAC, GATEWAY, GATEWAY);
        assert_eq!(bench.take(&claim), Outcome::Drop(DropReason::GatewayClaimed));
    }
    let Outgoing { to, frame } = bench.out.remove(0);
    assert_eq!((to, &frame[..6]), (Egress::All, &MacAddr::BROADCAST.0[..]));
    assert_eq!(arp_fields(&frame), (EtherArp::REQUEST, GATEWAY_MAC.0, GATEWAY, [0; 6], GATEWAY));
    bench.expect_silence();
    let claim = arp(EtherArp::REPLY, MAC, GATEWAY, GUEST);
    bench.at(NOW.after(DEFEND_INTERVAL), PORT, &claim);
    assert_eq!(bench.out.len(), 1);
}

#[test]
fn a_frame_with_the_gateways_mac_or_ip_address_as_its_source_is_dropped() {
    let mut bench = Bench::new();
    let mut from_mac = ping(GATEWAY);
    from_mac[6..12].copy_from_slice(&GATEWAY_MAC.0);
    assert_eq!(bench.take(&from_mac), Outcome::Drop(DropReason::GatewayClaimed));
    let to_guest = ipv4_to(OTHER_MAC, &header(GATEWAY, OTHER, ICMP), &echo(b""));
    assert_eq!(bench.gateway.screen().interest(&to_guest), Interest::Own);
    assert_eq!(bench.take(&to_guest), Outcome::Drop(DropReason::GatewayClaimed));
    bench.expect_silence();
}

#[test]
fn arp_that_lies_about_its_sender_or_is_cut_short_is_dropped() {
    let mut bench = Bench::new();
    let request = arp(EtherArp::REQUEST, MAC, GUEST, GATEWAY);
    let mut other_sender = request.clone();
    other_sender[22..28].copy_from_slice(&OTHER_MAC.0);
    let (mut hardware, mut operation) = (request.clone(), request.clone());
    hardware[15] = 6;
    operation[21] = 3;
    for frame in [&other_sender, &hardware, &operation, &request[..41], &request[..14]] {
        assert_eq!(bench.take(frame), Outcome::Drop(DropReason::BadArp));
    }
    assert_eq!(bench.take(&request[..13]), Outcome::Drop(DropReason::TooShort));
    bench.expect_silence();
}

#[test]
fn a_leased_address_can_not_be_claimed_from_another_port() {
    let mut bench = Bench::new();
    bench.gateway.lease(GUEST, Station { port: OTHER_PORT, mac: OTHER_MAC });
    let claim = arp(EtherArp::REPLY, MAC, GUEST, OTHER);
    assert_eq!(bench.take(&claim), Outcome::Drop(DropReason::SpoofedSource));
    assert_eq!(bench.take(&ping(GATEWAY)), Outcome::Drop(DropReason::SpoofedSource));
    assert_eq!(bench.take(&ping(REMOTE)), Outcome::Drop(DropReason::SpoofedSource));
    bench.expect_silence();
    bench.gateway.end_lease(GUEST);
    assert_eq!(bench.take(&ping(GATEWAY)), Outcome::Done);
}

#[test]
fn a_ping_is_answered_with_the_same_bytes_rfc_1122_3_2_2_6() {
    let mut bench = Bench::new();
    assert_eq!(bench.take(&ping(GATEWAY)), Outcome::Done);
    let reply = bench.reply();
    let packet = check(&reply);
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
    assert_eq!((ip.header().source_addr(), ip.header().destination_addr()), (GATEWAY, GUEST));
    let icmp = icmp(&packet);
    assert!(matches!(icmp.icmp_type(), Icmpv4Type::EchoReply(echo) if (echo.id, echo.seq) == (0xabcd, 1)));
    assert_eq!(icmp.payload(), b"are you there?");
}

#[test]
fn a_ping_with_a_wrong_checksum_is_dropped() {
    let mut bench = Bench::new();
    let mut frame = ping(GATEWAY);
    *frame.last_mut().unwrap() ^= 1;
    assert_eq!(bench.take(&frame), Outcome::Drop(DropReason::BadTransport));
    bench.expect_silence();
}

#[test]
fn a_packet_whose_header_is_wrong_is_dropped_rfc_1812_5_2_2() {
    let good = ping(GATEWAY);
    let spoil = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        Bench::new().take(&frame) == Outcome::Drop(DropReason::BadIpv4)
    };
    assert!(spoil(&|frame| frame[14] = 0x65), "version");
    assert!(spoil(&|frame| frame[14] = 0x44), "header length");
    assert!(spoil(&|frame| frame[14] = 0x4f), "header longer than its packet's checksum says");
    assert!(spoil(&|frame| frame[24] ^= 1), "checksum");
    assert!(spoil(&|frame| frame.truncate(14 + 30)), "total length");
    assert!(spoil(&|frame| frame.truncate(14 + 19)), "no whole header");
    assert!(spoil(&|frame| frame[17] = 19), "total length below header length");
}

#[test]
fn padding_behind_a_packet_is_not_part_of_it() {
    let mut frame = ipv4_to(GATEWAY_MAC, &header(GUEST, GATEWAY, ICMP), &echo(b""));
    frame.resize(60, 0xff);
    let mut bench = Bench::new();
    assert_eq!(bench.take(&frame), Outcome::Done);
    assert_eq!(bench.reply().len(), 14 + 20 + 8);
}

#[test]
fn source_routes_are_dropped_and_other_options_skipped_rfc_1812_5_3_13() {
    let with_options = |options: &[u8]| {
        let mut header = header(GUEST, GATEWAY, ICMP);
        header.options = options.try_into().unwrap();
        Bench::new().take(&ipv4_to(GATEWAY_MAC, &header, &echo(b""))) == Outcome::Done
    };
    assert!(with_options(&[7, 7, 4, 0, 0, 0, 0, 0]), "record route");
    assert!(with_options(&[1, 1, 1, 0]) && with_options(&[0, 9, 9, 9]));
    for route in [[131, 7, 4, 192], [137, 7, 4, 192]] {
        let mut header = header(GUEST, GATEWAY, ICMP);
        header.options = [1, route[0], route[1], route[2], route[3], 0, 2, 9].into();
        let frame = ipv4_to(GATEWAY_MAC, &header, &echo(b""));
        assert_eq!(Bench::new().take(&frame), Outcome::Drop(DropReason::SourceRouted));
    }
    for lie in [[7, 5, 4, 0], [7, 1, 4, 0], [7, 0, 0, 0], [1, 1, 1, 7]] {
        assert!(!with_options(&lie), "{lie:?} was taken");
    }
}

#[test]
fn sources_that_no_host_has_are_dropped_and_foreign_ones_too_rfc_1812_5_3_7() {
    let outcome =
        |source: [u8; 4]| Bench::new().take(&ipv4_to(GATEWAY_MAC, &header(source.into(), REMOTE, UDP), &[0; 8])).clone_drop();
    for source in
        [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255], [10, 77, 0, 255], [10, 77, 0, 0], [169, 254, 1, 1]]
    {
        assert_eq!(outcome(source), Some(DropReason::BadIpSource), "{source:?}");
    }
    for source in [[10, 77, 1, 10], [192, 0, 2, 1]] {
        assert_eq!(outcome(source), Some(DropReason::SpoofedSource), "{source:?}");
    }
    assert_eq!(outcome([10, 77, 0, 1]), Some(DropReason::GatewayClaimed));
}

impl Outcome<'_> {
    fn clone_drop(&self) -> Option<DropReason> {
        match self {
            Self::Drop(reason) => Some(*reason),
            _ => None,
        }
    }
}

#[test]
fn what_is_for_the_outside_is_handed_over_whole_and_its_sender_remembered() {
    let mut bench = Bench::new();
    let frame = udp(SocketAddrV4::new(REMOTE, 123), b"time?");
    let Outcome::Outside(packet) = bench.take(&frame) else { panic!() };
    assert_eq!(packet.station, Station { port: PORT, mac: MAC });
    assert_eq!(packet.ip.bytes(), &frame[14..]);
    assert_eq!(bench.gateway.resolve(NOW, GUEST, &mut bench.out), Some(packet.station));
    bench.expect_silence();
}

#[test]
fn a_packet_that_may_not_pass_another_router_is_answered_from_the_gateway_so_traceroute_works() {
    let mut bench = Bench::new();
    for ttl in [0, 1] {
        let mut header = header(GUEST, REMOTE, UDP);
        header.time_to_live = ttl;
        let frame = ipv4_to(GATEWAY_MAC, &header, &[0x82, 0x9a, 0x82, 0x9b, 0, 12, 0, 0, 1, 2, 3, 4]);
        assert_eq!(bench.take(&frame), Outcome::Drop(DropReason::TtlExceeded));
        let reply = bench.reply();
        let packet = check(&reply);
        let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
        assert_eq!(ip.header().source_addr(), GATEWAY);
        assert_eq!(ip.header().slice()[1], 0xc0, "precedence 6 (RFC 1812, section 4.3.2.5)");
        let icmp = icmp(&packet);
        assert_eq!((icmp.type_u8(), icmp.code_u8()), (11, 0));
        assert_eq!(icmp.payload(), &frame[14..], "the packet goes back with the error");
    }
}

#[test]
fn errors_are_small_and_there_are_none_about_errors_fragments_or_many_rfc_1812_4_3_2() {
    let mut bench = Bench::new();
    let mut expired = header(GUEST, REMOTE, UDP);
    expired.time_to_live = 1;
    bench.take(&ipv4_to(GATEWAY_MAC, &expired, &[0; 1400]));
    assert_eq!(bench.reply().len(), ETHERNET_LEN + 576);
    expired.protocol = IpNumber(ICMP);
    for kind in [3, 4, 5, 11, 12] {
        let error = Ipv4Draft::icmp(GUEST, REMOTE, kind, 0, &[0; 32]).payload;
        assert_eq!(bench.take(&ipv4_to(GATEWAY_MAC, &expired, &error)), Outcome::Drop(DropReason::TtlExceeded));
    }
    let multicast = ipv4_to(GATEWAY_MAC, &header(GUEST, Ipv4Addr::new(224, 0, 0, 9), UDP), &[0; 8]);
    let station = Station { port: PORT, mac: MAC };
    let packet = Packet { station, ip: Ipv4Packet::parse(&multicast[14..]).unwrap(), checksum_pending: false };
    bench.gateway.refuse(NOW, &packet, Refusal::NetUnreachable, &mut bench.out);
    bench.expect_silence();
}

#[test]
fn a_flood_that_provokes_errors_gets_a_bounded_number_of_them() {
    let mut bench = Bench::new();
    let frame = udp(SocketAddrV4::new(GATEWAY, 9), b"");
    for _ in 0..1000 {
        assert_eq!(bench.take(&frame), Outcome::Drop(DropReason::NoListener));
    }
    assert_eq!(bench.out.len(), icmp::BURST as usize);
}

#[test]
fn what_nobody_listens_to_is_refused_as_on_any_host_rfc_1122_3_2_2_1() {
    let mut bench = Bench::new();
    assert_eq!(bench.take(&udp(SocketAddrV4::new(GATEWAY, 9), b"")), Outcome::Drop(DropReason::NoListener));
    let reply = bench.reply();
    let unreachable = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
    assert_eq!(icmp(&check(&reply)).icmp_type(), unreachable);
    let frame = ipv4_to(GATEWAY_MAC, &header(GUEST, GATEWAY, 47), &[0; 8]);
    assert_eq!(bench.take(&frame), Outcome::Drop(DropReason::NoListener));
    let reply = bench.reply();
    assert_eq!((icmp(&check(&reply)).type_u8(), icmp(&check(&reply)).code_u8()), (3, 2));
}

#[test]
fn a_connection_to_the_gateway_is_reset_rfc_9293_3_10_7_1() {
    let mut bench = Bench::new();
    let reset = |bench: &mut Bench, frame: &[u8]| {
        assert_eq!(bench.take(frame), Outcome::Drop(DropReason::NoListener));
        let reply = bench.reply();
        let Some(TransportSlice::Tcp(tcp)) = check(&reply).transport else { panic!("{reply:?}") };
        assert!(tcp.rst());
        (tcp.source_port(), tcp.destination_port(), tcp.sequence_number(), tcp.ack(), tcp.acknowledgment_number())
    };
    let to = SocketAddrV4::new(GATEWAY, 22);
    assert_eq!(reset(&mut bench, &tcp(to, |header| header.syn = true)), (22, 4000, 0, true, 1_001));
    let with_ack = tcp(to, |header| {
        header.ack = true;
        header.acknowledgment_number = 77;
    });
    assert_eq!(reset(&mut bench, &with_ack), (22, 4000, 77, false, 0));
    bench.take(&tcp(to, |header| header.rst = true));
    bench.expect_silence();
}

#[test]
fn services_get_what_is_theirs_and_nothing_when_they_are_off() {
    let dns = udp(SocketAddrV4::new(GATEWAY, 53), b"query");
    let dns_tcp = tcp(SocketAddrV4::new(GATEWAY, 53), |header| header.syn = true);
    let ntp = udp(SocketAddrV4::new(GATEWAY, 123), b"");
    let mut bench = Bench::new();
    assert!(matches!(bench.take(&dns), Outcome::Dns(query) if *query.payload == *b"query" && query.source.port() == 4000));
    assert!(matches!(bench.take(&dns_tcp), Outcome::DnsTcp(_)));
    let mut off = Bench::with(GatewaySettings { dns: false, ..settings() });
    assert_eq!(off.take(&dns), Outcome::Drop(DropReason::NoListener));
    let mut open = Bench::with(GatewaySettings { host_access: true, ..settings() });
    assert!(matches!(open.take(&ntp), Outcome::Local(_)));
}

#[test]
fn dhcp_is_taken_from_clients_with_any_address_or_none() {
    let mut bench = Bench::new();
    let client = |source: [u8; 4], destination: Ipv4Addr, mac: MacAddr| {
        let mut frame = udp_from(SocketAddrV4::new(source.into(), 68), SocketAddrV4::new(destination, 67), b"discover");
        frame[..6].copy_from_slice(&mac.0);
        frame
    };
    for (source, destination, mac) in [
        ([0, 0, 0, 0], Ipv4Addr::BROADCAST, MacAddr::BROADCAST),
        ([192, 168, 1, 5], Ipv4Addr::BROADCAST, MacAddr::BROADCAST),
        ([10, 77, 0, 10], Ipv4Addr::new(10, 77, 0, 255), MacAddr::BROADCAST),
        ([10, 77, 0, 10], GATEWAY, GATEWAY_MAC),
    ] {
        let frame = client(source, destination, mac);
        assert_eq!(bench.gateway.screen().interest(&frame), Interest::Own);
        assert!(matches!(bench.take(&frame), Outcome::Dhcp(message) if *message.payload == *b"discover"), "{source:?}");
    }
    let elsewhere = client([0, 0, 0, 0], Ipv4Addr::BROADCAST, MacAddr::BROADCAST);
    let mut off = Bench::with(GatewaySettings { dhcp: false, ..settings() });
    assert_eq!(off.gateway.screen().interest(&elsewhere), Interest::Foreign);
    assert_eq!(off.take(&elsewhere), Outcome::NotForGateway);
}

#[test]
fn a_udp_checksum_is_verified_unless_there_is_none_or_it_was_left_to_the_device_rfc_768() {
    let mut bench = Bench::new();
    let mut frame = udp(SocketAddrV4::new(GATEWAY, 53), b"query");
    frame[40] ^= 1;
    assert_eq!(bench.take(&frame), Outcome::Drop(DropReason::BadTransport));
    let pending = Arrival { port: PORT, frame: &frame, checksum_pending: true };
    assert!(matches!(bench.gateway.handle(NOW, pending, &mut bench.out), Outcome::Dns(_)));
    frame[40..42].fill(0);
    assert!(matches!(bench.take(&frame), Outcome::Dns(_)));
    frame[39] += 1;
    assert_eq!(bench.take(&frame), Outcome::Drop(DropReason::BadTransport));
    frame[39] = 7;
    assert_eq!(bench.take(&frame), Outcome::Drop(DropReason::BadTransport));
}

#[test]
fn a_neighbour_is_reached_through_the_gateway_and_asked_for_if_unknown() {
    let mut bench = Bench::new();
    let frame = ping(OTHER);
    for _ in 0..3 {
        assert_eq!(bench.take(&frame), Outcome::Drop(DropReason::Unreachable));
    }
    let Outgoing { to, frame: request } = bench.out.remove(0);
    assert_eq!(to, Egress::All);
    assert_eq!(arp_fields(&request), (EtherArp::REQUEST, GATEWAY_MAC.0, GATEWAY, [0; 6], OTHER));
    bench.expect_silence();
    let reply = arp_to(GATEWAY_MAC, EtherArp::REPLY, OTHER_MAC, OTHER, GATEWAY);
    bench.at(NOW, OTHER_PORT, &reply);
    let Outcome::Neighbour { to, headers, packet } = bench.take(&frame) else { panic!() };
    assert_eq!(to, Station { port: OTHER_PORT, mac: OTHER_MAC });
    let mut sent = headers.to_vec();
    sent.extend_from_slice(&packet.ip.bytes()[20..]);
    let Some(NetSlice::Ipv4(ip)) = check(&sent).net else { panic!() };
    assert_eq!((&sent[..6], ip.header().ttl()), (&OTHER_MAC.0[..], 63));
}

#[test]
fn a_guest_that_asks_for_every_address_leaves_room_for_the_others_questions() {
    let mut bench = Bench::with(GatewaySettings { subnet: "10.77.0.0/16".parse().unwrap(), ..settings() });
    let from = |port, source: Ipv4Addr, destination: u16| {
        let destination = Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 1, 0).to_bits() + u32::from(destination));
        (PortId(port), ipv4_to(GATEWAY_MAC, &header(source, destination, ICMP), &echo(b"are you there?")))
    };
    for nth in 0..5_000 {
        let (port, frame) = from(3, GUEST, nth);
        bench.at(NOW, port, &frame);
    }
    let asked = bench.out.len();
    assert!((1..100).contains(&asked), "{asked}");
    let (port, frame) = from(9, Ipv4Addr::new(10, 77, 0, 99), 6_000);
    bench.at(NOW, port, &frame);
    assert_eq!(bench.out.len(), asked + 1);
    let (port, frame) = from(3, GUEST, 7_000);
    bench.at(NOW.after(Duration::from_secs(1)), port, &frame);
    assert_eq!(bench.out.len(), asked + 2, "later it may ask again");
}

#[test]
fn nothing_goes_to_addresses_that_are_no_host_s() {
    for destination in
        [[127, 0, 0, 1], [169, 254, 169, 254], [0, 1, 2, 3], [224, 0, 0, 1], [10, 77, 0, 255], [10, 77, 0, 0], [240, 0, 0, 1]]
    {
        let mut bench = Bench::new();
        assert_eq!(bench.take(&ping(destination.into())), Outcome::Drop(DropReason::Unreachable), "{destination:?}");
        bench.expect_silence();
    }
}

#[test]
fn what_the_gateway_does_not_speak_is_counted_and_what_is_not_for_it_is_left_alone() {
    let mut bench = Bench::new();
    let mut ipv6 = ping(GATEWAY);
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    assert_eq!(bench.take(&ipv6), Outcome::Drop(DropReason::UnsupportedProtocol));
    ipv6[..6].copy_from_slice(&OTHER_MAC.0);
    assert_eq!(bench.take(&ipv6), Outcome::NotForGateway);
    assert_eq!(bench.gateway.screen().interest(&ipv6), Interest::Foreign);
    assert_eq!(bench.gateway.screen().interest(&arp(EtherArp::REQUEST, MAC, GUEST, OTHER)), Interest::Shared);
    let timestamp = Ipv4Draft::icmp(GUEST, GATEWAY, 13, 0, &[0; 16]).payload;
    let frame = ipv4_to(GATEWAY_MAC, &header(GUEST, GATEWAY, ICMP), &timestamp);
    assert_eq!(bench.take(&frame), Outcome::Drop(DropReason::UnsupportedProtocol));
}

proptest! {
    #[test]
    fn whatever_comes_the_gateway_stays_whole_and_answers_correctly(
        frames in prop::collection::vec((0..4u8, prop::collection::vec(any::<u8>(), 0..120), any::<(u8, u16)>()), 0..40),
        mtu in 68..2000u16,
    ) {
        let mut bench = Bench::with(GatewaySettings { mtu, ..settings() });
        let templates = [ping(GATEWAY), udp(SocketAddrV4::new(REMOTE, 1), &[1; 40]), arp(EtherArp::REQUEST, MAC, GUEST, GATEWAY),
            fragments(1, &echo(&[7; 40]), 16).remove(1)];
        for (index, (kind, noise, (value, at))) in frames.iter().enumerate() {
            // Garbage, and good frames of which a byte is changed or the end cut off.
            let mut frame = templates[usize::from(*kind)].clone();
            let at = usize::from(*at) % frame.len();
            frame[at] = *value;
            match value % 3 {
                0 => frame.truncate(at),
                1 => frame.extend_from_slice(noise),
                _ => frame = [&frame[..at.min(34)], noise].concat(),
            }
            bench.at(NOW.after(Duration::from_secs(index as u64)), PORT, &frame);
            bench.gateway.tick(NOW.after(Duration::from_secs(index as u64)), &mut bench.out);
        }
        for Outgoing { to, frame } in &bench.out {
            let packet = check(frame);
            prop_assert!(frame.len() <= ETHERNET_LEN + usize::from(mtu));
            prop_assert!(*to == Egress::Port(PORT) || matches!(packet.net, Some(NetSlice::Arp(_))));
        }
    }
}
