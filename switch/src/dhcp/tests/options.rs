//! What is read from a message and what stands in the answers: RFC 2132 and those that add to it.

use super::*;
use crate::DomainName;

fn codes(reply: &Reply) -> Vec<u8> {
    reply.options.iter().map(|(code, _)| *code).collect()
}

fn generous() -> DhcpSettings {
    DhcpSettings {
        ntp: vec![address(3), address(4)],
        domain: Some("weft.internal".parse().unwrap()),
        search: vec!["weft.internal".parse().unwrap(), "lab.weft.internal".parse().unwrap()],
        routes: vec![("192.0.2.0/24".parse().unwrap(), address(2)), ("10.0.0.0/9".parse().unwrap(), address(2))],
        mtu: 9000,
        ..settings()
    }
}

#[test]
fn every_parameter_that_is_asked_for_is_told_in_the_order_of_the_client_rfc_2132_9_8() {
    let mut bench = Bench::with(generous());
    let order = [28, 119, 42, 26, 15, 12, 6, 1, 3];
    let offer = bench.ask(&Message::new(1, DISCOVER).with(12, b"web").with(55, &order)).unwrap();
    assert_eq!(codes(&offer), [&[53, 54, 51][..], &order, &[58, 59]].concat());
    assert_eq!(offer.option(1), Some(&[255, 255, 255, 0][..]));
    assert_eq!(offer.option(3), Some(&SERVER.octets()[..]));
    assert_eq!(offer.option(6), Some(&SERVER.octets()[..]));
    assert_eq!(offer.option(12), Some(&b"web"[..]));
    assert_eq!(offer.option(15), Some(&b"weft.internal"[..]));
    assert_eq!(offer.option(26), Some(&9000u16.to_be_bytes()[..]));
    assert_eq!(offer.option(28), Some(&[10, 77, 0, 255][..]));
    assert_eq!(offer.option(42), Some(&[10, 77, 0, 3, 10, 77, 0, 4][..]));
    assert_eq!(offer.option(119), Some(&b"\x04weft\x08internal\0\x03lab\xc0\x00"[..]), "RFC 3397, section 2");
}

#[test]
fn the_mask_stands_before_the_router_rfc_2132_3_3() {
    let mut bench = Bench::new();
    let offer = bench.ask(&Message::new(1, DISCOVER).with(55, &[6, 3, 6, 1, 200, 3])).unwrap();
    assert_eq!(codes(&offer), [53, 54, 51, 6, 1, 3, 58, 59]);
}

#[test]
fn classless_routes_take_the_place_of_the_router_rfc_3442() {
    let mut bench = Bench::with(generous());
    let offer = bench.ask(&Message::new(1, DISCOVER).with(55, &[1, 121, 3])).unwrap();
    assert_eq!(codes(&offer), [53, 54, 51, 1, 121, 58, 59]);
    let routes = [24, 192, 0, 2, 10, 77, 0, 2, 9, 10, 0, 10, 77, 0, 2, 0, 10, 77, 0, 1];
    assert_eq!(offer.option(121), Some(&routes[..]), "the default route is the last of them");
    let mut without = Bench::new();
    let offer = without.ask(&Message::new(1, DISCOVER).with(55, &[1, 121, 3])).unwrap();
    assert_eq!(codes(&offer), [53, 54, 51, 1, 3, 58, 59], "without routes the router stays");
}

#[test]
fn who_asks_for_nothing_is_told_the_usual() {
    let mut bench = Bench::new();
    let offer = bench.ask(&Message::new(1, DISCOVER)).unwrap();
    assert_eq!(codes(&offer), [53, 54, 51, 1, 3, 6, 12, 26, 28, 58, 59]);
    let mut private = Bench::with(DhcpSettings { router: None, dns: Vec::new(), ..settings() });
    assert_eq!(codes(&private.ask(&Message::new(1, DISCOVER)).unwrap()), [53, 54, 51, 1, 12, 26, 28, 58, 59]);
}

#[test]
fn the_client_identifier_goes_back_in_every_answer_rfc_6842() {
    let mut bench = Bench::new();
    for id in [&b"\x01\x02\x00\x00\x00\x01\x09"[..], &[7; 255], &[9]] {
        let answers = [
            bench.ask(&Message::new(1, DISCOVER).with(61, id)),
            bench.ask(&Message::new(1, REQUEST).with(61, id).from(address(99))),
            bench.ask(&Message::new(1, INFORM).with(61, id).from(address(99))),
        ];
        for answer in answers {
            assert_eq!(answer.unwrap().option(61), Some(id));
        }
    }
}

#[test]
fn what_a_relay_agent_added_goes_back_last_rfc_3046_2_2() {
    let mut bench = Bench::new();
    let relayed = Message { giaddr: address(5), ..Message::new(1, DISCOVER).with(82, b"\x01\x03abc") };
    let offer = bench.ask(&relayed).unwrap();
    assert_eq!(offer.options.last(), Some(&(82, b"\x01\x03abc".to_vec())));
}

#[test]
fn a_lease_is_as_long_as_the_client_wants_if_that_is_not_too_long_or_short_rfc_2131_3_3() {
    let mut bench = Bench::new();
    let lease_time =
        |bench: &mut Bench, wanted: u32| bench.ask(&Message::new(1, DISCOVER).with(51, &wanted.to_be_bytes())).unwrap();
    let offer = lease_time(&mut bench, 3600);
    assert_eq!((offer.seconds(51), offer.seconds(58), offer.seconds(59)), (Some(3600), Some(1800), Some(3150)));
    assert_eq!(lease_time(&mut bench, u32::MAX).seconds(51), Some(43_200));
    assert_eq!(lease_time(&mut bench, 0).seconds(51), Some(60));
}

#[test]
fn an_answer_is_as_long_as_the_client_takes_and_no_longer_rfc_2132_9_10() {
    let long = |index: usize| format!("{}.example{index}.internal", "x".repeat(60)).parse().unwrap();
    let search: Vec<DomainName> = (0..8).map(long).collect();
    let mut bench = Bench::with(DhcpSettings { search, ..settings() });
    let ask = Message::new(1, DISCOVER).with(55, &[119, 1, 3]);
    let offer = bench.ask(&ask).unwrap();
    assert_eq!(codes(&offer), [53, 54, 51, 1, 3, 58, 59], "576 bytes with headers unless something else is said");
    let offer = bench.ask(&ask.clone().with(57, &100u16.to_be_bytes())).unwrap();
    assert!(offer.option(119).is_none(), "less than 576 bytes can't be asked for");
    let offer = bench.ask(&ask.with(57, &1500u16.to_be_bytes())).unwrap();
    let names = offer.option(119).expect("there is room now");
    assert!(names.len() > 255 && offer.payload_len <= 1500 - 28, "in two parts (RFC 3396)");
}

pub(super) fn datagram(message: &Message) -> UdpDatagram<'static> {
    UdpDatagram {
        station: Station { port: PortId(0), mac: message.mac },
        source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        destination: SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
        payload: message.bytes().into(),
    }
}

#[test]
fn every_answer_has_the_length_of_bootp_at_least() {
    let mut bench = Bench::new();
    let nak = bench.ask(&Message::new(1, REQUEST).from(address(99))).unwrap();
    assert_eq!(nak.payload_len, 300);
}

#[test]
fn options_in_file_and_sname_are_read_after_the_others_rfc_2131_4_1() {
    let mut bench = Bench::new();
    let mut message = Message::new(1, REQUEST).with(52, &[3]);
    message.file = [&[50, 4][..], &address(13).octets(), &[61, 2, 1], &[255]].concat();
    message.file[6..].copy_from_slice(&[0, 0, 0, 255]);
    message.sname = [&[54, 4][..], &SERVER.octets(), &[255]].concat();
    message.file = [&[50, 4][..], &address(13).octets(), &[255]].concat();
    assert_eq!(bench.ask(&message).unwrap().yiaddr, address(13));
    message.options[1].1 = vec![0];
    assert_eq!(bench.ask_on(0, &message), Err(DropReason::BadDhcp), "they are not options unless option 52 says so");
}

#[test]
fn an_option_in_several_parts_is_one_rfc_3396() {
    let mut bench = Bench::new();
    let message = Message::new(1, DISCOVER).with(61, b"\0abc").with(200, b"x").with(61, b"def").with(55, &[1]).with(55, &[3]);
    let offer = bench.ask(&message).unwrap();
    assert_eq!((offer.option(61), codes(&offer)), (Some(&b"\0abcdef"[..]), vec![53, 54, 51, 61, 1, 3, 58, 59]));
}

#[test]
fn unknown_options_are_skipped_and_padding_too() {
    let mut bench = Bench::new();
    let mut message = Message::new(1, DISCOVER).with(200, &[1, 2, 3]).with(254, &[]).with(80, &[1]).with(93, &[0]).with(151, &[]);
    message.options.insert(0, (81, vec![0]));
    let mut bytes = message.bytes();
    bytes.splice(240..240, [0, 0, 0]);
    bench.send_bytes(0, message.mac, &bytes).unwrap();
    assert_eq!(bench.replies.pop().unwrap().kind(), OFFER);
    bytes.pop();
    bench.send_bytes(0, message.mac, &bytes).unwrap();
    assert_eq!(bench.replies.pop().unwrap().kind(), OFFER, "without the end option");
}

#[test]
fn what_can_not_be_read_is_dropped() {
    let good = Message::new(1, DISCOVER);
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.bytes();
        change(&mut bytes);
        Bench::new().send_bytes(0, good.mac, &bytes) == Err(DropReason::BadDhcp)
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|bytes| bytes.truncate(239)), "cut short");
    assert!(refused(&|bytes| bytes.truncate(241)), "an option without its length");
    assert!(refused(&|bytes| bytes.truncate(242)), "an option without its value");
    assert!(refused(&|bytes| bytes[241] = 200), "an option longer than the message");
    assert!(refused(&|bytes| bytes[241] = 0), "a type of message without a value");
    assert!(refused(&|bytes| bytes[0] = 2), "from a server");
    assert!(refused(&|bytes| bytes[1] = 6), "not Ethernet");
    assert!(refused(&|bytes| bytes[2] = 5) && refused(&|bytes| bytes[2] = 255), "the address has another length");
    assert!(refused(&|bytes| bytes[28] = 1), "a group address");
    assert!(refused(&|bytes| bytes[28..34].fill(0)), "no address");
    assert!(refused(&|bytes| bytes[236] = 0), "no magic cookie");
    assert!(refused(&|bytes| bytes.truncate(240)), "BOOTP");
    for kind in [0, OFFER, ACK, NAK, 9, 10, 255] {
        assert!(refused(&|bytes| bytes[242] = kind), "type {kind}");
    }
    for (code, value) in [(50, &[10, 77, 0][..]), (54, &[1]), (51, &[0, 0, 0]), (57, &[2]), (118, &[0; 5]), (52, &[1, 1])] {
        assert!(refused(&|bytes| *bytes = good.clone().with(code, value).bytes()), "option {code} with {} bytes", value.len());
    }
    let parts = (0..3).fold(good.clone(), |message, _| message.with(61, &[1; 100]));
    assert!(refused(&|bytes| *bytes = parts.bytes()), "an identifier that is too long to go back");
}

#[test]
fn a_host_is_known_by_its_name_as_soon_as_it_has_its_lease() {
    let mut bench = Bench::new();
    let named = |number, name: &[u8]| Message::new(number, REQUEST).with(12, name);
    let name = |text: &str| text.parse::<HostName>().unwrap();
    bench.ask(&named(1, b"Web.example.com").from(FIRST));
    assert_eq!(bench.server.address_of(&name("web")), Some(FIRST));
    assert_eq!(bench.server.name_of(FIRST), Some(&name("web")));
    bench.ask(&Message::new(1, REQUEST).from(FIRST));
    assert_eq!(bench.server.address_of(&name("web")), Some(FIRST), "it may be left away when renewing");
    bench.ask(&named(1, b"db").from(FIRST));
    assert_eq!((bench.server.address_of(&name("web")), bench.server.address_of(&name("db"))), (None, Some(FIRST)));
    bench.ask(&Message::new(1, RELEASE).from(FIRST));
    assert_eq!((bench.server.address_of(&name("db")), bench.server.name_of(FIRST)), (None, None));
}

#[test]
fn a_guest_is_found_by_its_ports_name_too_unless_there_are_several() {
    let mut bench = Bench::new();
    let name = |text: &str| text.parse::<HostName>().unwrap();
    let request = Message::new(1, REQUEST).with(12, b"debian").from(FIRST);
    bench.ask_on(3, &request).unwrap();
    assert_eq!(bench.server.address_of(&name("debian")), Some(FIRST));
    assert_eq!(bench.server.address_of(&name("vm3")), Some(FIRST));
    assert_eq!(bench.server.address_of(&name("vm4")), None);
    let another = Message::new(2, REQUEST).with(12, b"inner").from(SECOND);
    bench.ask_on(3, &another).unwrap();
    assert_eq!(bench.server.address_of(&name("vm3")), None, "which of the two is meant?");
    bench.ask_on(3, &Message::new(2, RELEASE).from(SECOND)).unwrap();
    assert_eq!(bench.server.address_of(&name("vm3")), Some(FIRST));
}

#[test]
fn names_belong_to_one_host_each_and_some_to_no_guest() {
    let reserved =
        Reservation { owner: ReservationOwner::Mac(mac(9)), address: address(100), hostname: Some("mail".parse().unwrap()) };
    let mut bench = Bench::with(DhcpSettings { reservations: vec![reserved], ..settings() });
    let name = |text: &str| text.parse::<HostName>().unwrap();
    assert_eq!(bench.server.address_of(&name("mail")), Some(address(100)), "reserved names are known at once");
    let asks = |bench: &mut Bench, port: u16, number: u8, wanted: &[u8]| {
        let ask = Message::new(number, REQUEST).with(12, wanted).with(55, &[12]).from(address(10 + number));
        let ack = bench.ask_on(port, &ask).unwrap().unwrap();
        ack.option(12).map(|name| String::from_utf8(name.to_vec()).unwrap())
    };
    assert_eq!(asks(&mut bench, 0, 0, b"web").as_deref(), Some("web"));
    assert_eq!(asks(&mut bench, 1, 1, b"WEB").as_deref(), Some("vm1"), "taken, so the port's name");
    assert_eq!(asks(&mut bench, 2, 2, b"mail").as_deref(), Some("vm2"), "reserved for another");
    assert_eq!(asks(&mut bench, 3, 3, b"vm4").as_deref(), Some("vm3"), "another port's");
    assert_eq!(asks(&mut bench, 4, 4, b"wpad").as_deref(), Some("vm4"), "looked up unasked for");
    assert_eq!(asks(&mut bench, 5, 5, b"not a name").as_deref(), Some("vm5"));
    assert_eq!(asks(&mut bench, 5, 6, b"gateway"), None, "the port's name is taken too, by the one before");
    assert_eq!(bench.server.address_of(&name("web")), Some(address(10)));
}
