//! Good messages that are broken in every way, for each path on which bytes from guests or upstreams are read: IP and ARP at the gateway, DHCP,
//! DNS, IGMP and MLD, and the NAT's state machine for TCP. Nothing may panic, and nothing may be answered that can't be read.
//!
//! Each target runs for `WEFT_FUZZ_SECONDS` (half a second unless told) from `WEFT_FUZZ_SEED` (another one each time unless told), which it names when
//! it fails. Property tests beside the code know more about what is right; this one has the larger number of tries.

use std::any::Any;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Message as DhcpMessage, MessageType};
use dhcproto::{Encodable, v4};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, SlicedPacket};
use hickory_proto::op::{Message, MessageType as MessageKind, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use weft_switch::dhcp::{self, DhcpServer, DhcpSettings, LeaseBook, UnixSeconds};
use weft_switch::dns::{self, ClientTransport, DnsClient, DnsForwarder, DnsSettings, UpstreamTransport};
use weft_switch::gateway::{Arrival, Gateway, GatewaySettings, Outcome};
use weft_switch::multicast::{self, Effects, Family, Snooper, SnoopingSettings};
use weft_switch::nat::echo;
use weft_switch::nat::tcp::{Action, Connection, Flags, Segment, Seq, TcpSettings};
use weft_switch::vlan::{Vlan, VlanId};
use weft_switch::{MacAddr, Outgoing, PortId, Station, Timestamp, UdpDatagram};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0x77, 0, 0, 0, 1]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const STATION: Station = Station { port: PortId(3), mac: MacAddr([2, 0, 0, 0, 0, 0xa]) };
/// What one input may add to what is to be sent.
const ANSWERS_MAX: usize = 64;

/// Bits that only look like chance (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `end`, which is not zero.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True once in `times`.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Breaks a message: bits, bytes that are lengths or counts as often as not, its end, a part of it twice or not at all.
    fn spoil(&mut self, message: &mut Vec<u8>, others: &[Vec<u8>]) {
        for _ in 0..self.below(4) {
            if message.is_empty() {
                return;
            }
            let at = self.below(message.len());
            match self.below(8) {
                0 => message[at] ^= 1 << self.below(8),
                1 => message[at] = *self.pick(&[0, 1, 3, 4, 0x3f, 0x7f, 0x80, 0xc0, 0xfe, 0xff]),
                2 => message[at] = self.next() as u8,
                3 => message.truncate(at),
                4 => drop(message.drain(at..(at + self.below(16)).min(message.len()))),
                5 => {
                    let len = self.below(64);
                    message.splice(at..at, self.bytes(len));
                }
                6 => {
                    let part = message[at..(at + 40).min(message.len())].to_vec();
                    message.splice(at..at, part);
                }
                _ => {
                    let other = self.pick(others).clone();
                    message.truncate(at);
                    message.extend_from_slice(&other[at.min(other.len())..]);
                }
            }
        }
    }
}

/// Runs a target for as long as it has time.
fn fuzz(name: &str, mut target: impl FnMut(&mut Noise)) {
    let number = |variable: &str| std::env::var(variable).ok().map(|text| text.parse::<u64>().expect("a number"));
    let duration = number("WEFT_FUZZ_SECONDS").map_or(Duration::from_millis(500), Duration::from_secs);
    let fixed = number("WEFT_FUZZ_SEED");
    let first = fixed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let (start, mut cases) = (Instant::now(), 0_u64);
    while start.elapsed() < duration {
        for _ in 0..64 {
            let seed = first.wrapping_add(cases);
            let done = catch_unwind(AssertUnwindSafe(|| target(&mut Noise(seed))));
            if let Err(panic) = done {
                panic!("{name} with WEFT_FUZZ_SEED={seed}: {}", words(&*panic));
            }
            cases += 1;
        }
    }
    println!("{name}: {cases} cases from WEFT_FUZZ_SEED={first}");
    assert!(cases > 0);
}

fn words(panic: &dyn Any) -> &str {
    panic.downcast_ref::<String>().map_or_else(|| panic.downcast_ref::<&str>().copied().unwrap_or("?"), String::as_str)
}

fn gateway() -> Gateway {
    let subnet = "10.77.0.0/24".parse().unwrap();
    let settings =
        GatewaySettings { subnet, address: GATEWAY, mac: GATEWAY_MAC, mtu: 1500, dhcp: true, dns: true, host_access: true };
    Gateway::new(settings).unwrap()
}

fn frames() -> Vec<Vec<u8>> {
    let ip = |to: Ipv4Addr| PacketBuilder::ethernet2(STATION.mac.0, GATEWAY_MAC.0).ipv4(GUEST.octets(), to.octets(), 64);
    let mut frames = vec![Vec::new(); 7];
    ip(GATEWAY).icmpv4_echo_request(7, 1).write(&mut frames[0], &[7; 40]).unwrap();
    ip(OUTSIDE).udp(5000, 53).write(&mut frames[1], &[1; 60]).unwrap();
    ip(OUTSIDE).tcp(40_000, 80, 1000, 60_000).syn().write(&mut frames[2], &[]).unwrap();
    ip(GATEWAY).udp(5000, 53).write(&mut frames[3], &questions()[0]).unwrap();
    ip(GATEWAY).udp(68, 67).write(&mut frames[4], &dhcp_messages()[0]).unwrap();
    let [from, to] = [GUEST.octets(), GATEWAY.octets()];
    let (hardware, kind) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    let arp = ArpPacket::new(hardware, kind, ArpOperation::REQUEST, &STATION.mac.0, &from, &[0; 6], &to).unwrap();
    PacketBuilder::ethernet2(STATION.mac.0, [0xff; 6]).arp(arp).write(&mut frames[5]).unwrap();
    // A fragment: "more fragments" and an offset.
    frames[6] = frames[1].clone();
    frames[6][20..22].copy_from_slice(&[0x20, 3]);
    frames
}

/// The IPv4 header's checksum made right again, lest all that is broken should be found by it.
fn mend(frame: &mut [u8]) {
    let Some(header) = frame.get_mut(14..34) else { return };
    header[10..12].fill(0);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn expect_readable(out: &[Outgoing]) {
    assert!(out.len() <= ANSWERS_MAX, "{} frames", out.len());
    for Outgoing { frame, .. } in out {
        SlicedPacket::from_ethernet(frame).expect("an answer can be read");
    }
}

/// IGMP with one of two groups, in all its versions, with the checksums of the header and of the message.
fn group_messages() -> Vec<Vec<u8>> {
    let message = |to: [u8; 4], igmp: &[u8]| {
        let mut frame = [&[1, 0, 0x5e, to[1] & 0x7f, to[2], to[3]][..], &STATION.mac.0, &[8, 0, 0x45, 0, 0]].concat();
        frame.extend([20 + igmp.len() as u8, 0, 0, 0, 0, 1, 2, 0, 0]);
        [&frame[..], &GUEST.octets(), &to, igmp].concat()
    };
    let report = [0x22, 0, 0, 0, 0, 0, 0, 2, 4, 0, 0, 0, 239, 1, 2, 3, 5, 0, 0, 1, 239, 1, 2, 4, 192, 0, 2, 9];
    vec![
        message([239, 1, 2, 3], &[0x12, 0, 0, 0, 239, 1, 2, 3]),
        message([239, 1, 2, 3], &[0x16, 0, 0, 0, 239, 1, 2, 3]),
        message([224, 0, 0, 2], &[0x17, 0, 0, 0, 239, 1, 2, 3]),
        message([224, 0, 0, 22], &report),
        message([224, 0, 0, 1], &[0x11, 10, 0, 0, 0, 0, 0, 0, 2, 20, 0, 0]),
        message([239, 1, 2, 3], &[0x11, 10, 0, 0, 239, 1, 2, 3, 2, 20, 0, 1, 192, 0, 2, 9]),
    ]
}

/// IGMP's checksum made right again.
fn mend_igmp(frame: &mut [u8]) {
    let Some(igmp) = frame.get_mut(34..).filter(|igmp| igmp.len() >= 4) else { return };
    igmp[2..4].fill(0);
    let sum: u32 = igmp.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    igmp[2..4].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn groups() {
    let messages = group_messages();
    let vlan = Vlan::customer(VlanId::DEFAULT);
    fuzz("groups", |noise| {
        let mut snooper = Snooper::new(SnoopingSettings::new(GATEWAY_MAC, vlan));
        let (mut effects, mut now) = (Effects::default(), Timestamp::from_millis(1_000_000));
        snooper.set_ports((0..3).map(|port| (PortId(port), None)).collect(), &mut effects);
        for _ in 0..1 + noise.below(24) {
            let mut frame = noise.pick(&messages).clone();
            if noise.once_in(2) {
                noise.spoil(&mut frame, &messages);
            }
            if !noise.once_in(4) {
                mend_igmp(&mut frame);
                mend(&mut frame);
            }
            now = now.after(Duration::from_millis(noise.below(100_000) as u64));
            let mut effects = Effects::default();
            let arrival = multicast::Arrival {
                port: PortId(noise.below(3) as u16),
                vlan,
                may_route: true,
                is_isolated: false,
                message: &multicast::GroupMessage::read(&frame, false),
            };
            let _ = snooper.receive(now, &arrival, &mut effects);
            snooper.tick(now, &mut effects);
            assert!(effects.frames.len() <= 300, "{} queries", effects.frames.len());
            for query in &effects.frames {
                SlicedPacket::from_ethernet(&query.frame).expect("a question can be read");
            }
            let status = snooper.status(now);
            assert!(status.groups.iter().all(|group| group.members.iter().all(|(time, _)| time.port.index() < 3)));
            assert!(status.queriers.iter().filter(|querier| querier.family == Family::V4).count() <= 1);
        }
    });
}

#[test]
fn packets() {
    let frames = frames();
    fuzz("packets", |noise| {
        let (mut gateway, mut now) = (gateway(), Timestamp::from_millis(1_000_000));
        for _ in 0..1 + noise.below(12) {
            let mut frame = noise.pick(&frames).clone();
            noise.spoil(&mut frame, &frames);
            if !noise.once_in(4) {
                mend(&mut frame);
            }
            now = now.after(Duration::from_millis(noise.below(3000) as u64));
            let mut out = Vec::new();
            let arrival = Arrival { port: STATION.port, frame: &frame, checksum_pending: noise.once_in(3) };
            if let Outcome::Outside(packet) | Outcome::Local(packet) = gateway.handle(now, arrival, &mut out) {
                let payload = packet.ip.payload();
                let _ = echo::Request::parse(payload);
                let shown = payload.len().min(20 + noise.below(60));
                if let Ok((segment, header_len)) = Segment::parse(&payload[..shown], payload.len()) {
                    assert_eq!(header_len + segment.payload_len as usize, payload.len());
                }
            }
            gateway.tick(now, &mut out);
            expect_readable(&out);
        }
    });
}

fn dhcp_messages() -> Vec<Vec<u8>> {
    let kinds = [MessageType::Discover, MessageType::Request, MessageType::Inform, MessageType::Release, MessageType::Decline];
    let message = |kind| {
        let mut message = DhcpMessage::default();
        message.set_chaddr(&STATION.mac.0).set_xid(7);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClientIdentifier(vec![1, 2, 0, 0, 0, 0, 0xa]));
        options.insert(DhcpOption::ParameterRequestList(vec![v4::OptionCode::SubnetMask, v4::OptionCode::Router]));
        options.insert(DhcpOption::Hostname("web".to_owned()));
        options.insert(DhcpOption::MaxMessageSize(1500));
        if kind != MessageType::Discover {
            options.insert(DhcpOption::RequestedIpAddress(GUEST));
            options.insert(DhcpOption::ServerIdentifier(GATEWAY));
        }
        message.to_vec().unwrap()
    };
    kinds.map(message).to_vec()
}

#[test]
fn dhcp() {
    let messages = dhcp_messages();
    fuzz("dhcp", |noise| {
        let mut now = Timestamp::from_millis(1_000_000);
        let pool = "10.77.0.10-10.77.0.19".parse().unwrap();
        let mut settings = DhcpSettings::new("10.77.0.0/24".parse().unwrap(), GATEWAY, GATEWAY_MAC, pool);
        settings.probe = None;
        let mut server = DhcpServer::new(settings, now, UnixSeconds(1_790_000_000), &LeaseBook::default()).unwrap();
        for _ in 0..1 + noise.below(12) {
            let mut payload = noise.pick(&messages).clone();
            noise.spoil(&mut payload, &messages);
            now = now.after(Duration::from_millis(noise.below(100_000) as u64));
            let source = SocketAddrV4::new(*noise.pick(&[Ipv4Addr::UNSPECIFIED, GUEST]), 68);
            let destination = SocketAddrV4::new(*noise.pick(&[Ipv4Addr::BROADCAST, GATEWAY]), 67);
            let datagram = UdpDatagram { station: STATION, source, destination, payload: payload.into() };
            let mut actions = Vec::new();
            let _ = server.handle(now, &datagram, &mut actions);
            server.tick(now, &mut actions);
            while let Some(action) = actions.pop() {
                match action {
                    dhcp::Action::Send(frame) => expect_readable(&[frame]),
                    dhcp::Action::Persist { ticket, .. } => server.confirm(now, ticket, &mut actions),
                    _ => {}
                }
            }
            assert!(server.records().count() <= 10);
        }
    });
}

fn questions() -> Vec<Vec<u8>> {
    let ask = |name: &str, kind| {
        let mut message = Message::new(7, MessageKind::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    };
    vec![
        ask("www.example.", RecordType::A),
        ask("gateway.weft.internal.", RecordType::AAAA),
        ask("1.0.77.10.in-addr.arpa.", RecordType::PTR),
    ]
}

/// A good answer to a question.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let asked = Message::from_vec(question).ok()?;
    let mut answer = asked.clone().into_response();
    let name = asked.queries.first()?.name.clone();
    answer.add_answers((0..3).map(|last| Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, last)))));
    answer.to_vec().ok()
}

#[test]
fn dns() {
    let questions = questions();
    fuzz("dns", |noise| {
        let mut now = Timestamp::from_millis(1_000_000);
        let settings = DnsSettings {
            subnet: "10.77.0.0/24".parse().unwrap(),
            gateway: GATEWAY,
            domain: "weft.internal".parse().unwrap(),
            mtu: 1500,
            cache_entries: 100,
            cache_bytes: 100_000,
        };
        let mut forwarder = DnsForwarder::new(settings);
        forwarder.set_upstreams(&[SocketAddr::from((OUTSIDE, 53)), SocketAddr::from((OUTSIDE, 5353))]);
        let client = DnsClient { station: STATION, address: SocketAddrV4::new(GUEST, 5000), transport: ClientTransport::Udp };
        let mut bits = Noise(noise.next());
        for _ in 0..1 + noise.below(6) {
            let mut question = noise.pick(&questions).clone();
            noise.spoil(&mut question, &questions);
            let mut actions = Vec::new();
            let _ = forwarder.query(now, client, &question, &(), &mut || bits.next(), &mut actions);
            let mut steps = 0;
            while let Some(action) = actions.pop() {
                steps += 1;
                assert!(steps < 1000, "a question has an end");
                match action {
                    dns::Action::Ask { attempt, message, transport, .. } => {
                        let mut reply = answer(&message).expect("we ask what can be read");
                        noise.spoil(&mut reply, std::slice::from_ref(&message));
                        if transport == UpstreamTransport::Tcp && noise.once_in(3) {
                            forwarder.upstream_failed(now, attempt, &mut || bits.next(), &mut actions);
                        } else {
                            forwarder.upstream_answer(now, attempt, &reply, &mut || bits.next(), &mut actions);
                        }
                    }
                    dns::Action::Answer { message, .. } => assert!(message.len() >= 12, "an answer has a header"),
                    dns::Action::Close { .. } => {}
                }
            }
            now = now.after(Duration::from_millis(noise.below(5000) as u64));
            forwarder.tick(now, &mut || bits.next(), &mut actions);
        }
    });
}

#[test]
fn connections() {
    const ISS: Seq = Seq(0xffff_ff00);
    const THEIRS: Seq = Seq(0x7fff_ff00);
    fuzz("connections", |noise| {
        let mut now = Timestamp::from_millis(1_000_000);
        let settings = TcpSettings::new(*noise.pick(&[576, 1500, 65_520]));
        let mut syn = Segment {
            seq: THEIRS,
            ack: Seq(0),
            flags: Flags::SYN,
            window: 60_000,
            mss: None,
            window_shift: None,
            payload_len: 0,
        };
        if noise.once_in(2) {
            (syn.mss, syn.window_shift) = (Some(noise.next() as u16), Some(noise.below(15) as u8));
        }
        let mut connection = if noise.once_in(4) {
            Connection::call(now, ISS, 100_000, &settings)
        } else {
            Connection::accept(now, &syn, ISS, &settings)
        };
        for _ in 0..noise.below(60) {
            now = now.after(Duration::from_millis(*noise.pick(&[0, 1, 10, 300, 70_000, 8_000_000])));
            match noise.below(12) {
                0 => connection.connected(now, noise.below(300_000) as u32),
                1 => connection.readable(),
                2 => connection.hangup(),
                3 => connection.space(now, noise.below(300_000) as u32),
                4 => connection.room(),
                5 => connection.tick(now),
                _ => take_segment(noise, &mut connection, now, (ISS, THEIRS)),
            }
            carry_out(noise, &mut connection, now);
        }
    });
}

/// A segment that lies near the window, as often as not.
fn take_segment(noise: &mut Noise, connection: &mut Connection, now: Timestamp, (ours, theirs): (Seq, Seq)) {
    const FLAGS: [Flags; 5] = [Flags::ACK, Flags::FIN, Flags::SYN, Flags::RST, Flags::PSH];
    let near = |noise: &mut Noise| if noise.once_in(8) { noise.next() as u32 } else { noise.below(3000) as u32 };
    let (seq, ack) = (theirs.plus(near(noise)), ours.plus(near(noise)));
    let flags = if noise.once_in(3) { noise.pick(&FLAGS).and(*noise.pick(&FLAGS)) } else { Flags::ACK };
    let payload_len = noise.below(3) as u32 * noise.below(65_000) as u32 / 2;
    let window = noise.next() as u16;
    let segment = Segment { seq, ack, flags, window, mss: None, window_shift: None, payload_len };
    let take = connection.segment(now, &segment);
    assert!(take.skip + take.len <= payload_len, "{take:?} of {segment:?}");
    if take.len > 0 {
        connection.written(now, noise.below(take.len as usize + 1) as u32);
    }
}

fn carry_out(noise: &mut Noise, connection: &mut Connection, now: Timestamp) {
    let mut actions = 0;
    while let Some(action) = connection.next_action(now) {
        actions += 1;
        assert!(actions < 1000, "{connection:?} wants {action:?} for ever");
        if let Action::SendData { from, limit, .. } = action {
            assert!(limit > 0);
            match noise.below(5) {
                0 => connection.drained(from),
                1 => connection.ended(from),
                2 => connection.blocked(),
                _ => drop(connection.sent(now, from, 1 + noise.below(limit as usize) as u32, noise.once_in(2))),
            }
        }
    }
}
