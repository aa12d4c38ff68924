//! Names for guests: their own at once, all others from whom the operator says.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};

use crate::client::Client;
use crate::weft::Weft;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

/// A DNS server on the loopback: knows `short.example`, and `long.example` over TCP only.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _threads: [JoinHandle<()>; 2],
}

impl Upstream {
    fn start() -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        // They end with the process.
        let over_udp = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok((len, from)) = udp.recv_from(&mut bytes) {
                count.fetch_add(1, Ordering::Relaxed);
                udp.send_to(&answer(&bytes[..len], false), from).unwrap();
            }
        });
        let over_tcp = std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let mut len = [0; 2];
                stream.read_exact(&mut len).unwrap();
                let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
                stream.read_exact(&mut query).unwrap();
                let answer = answer(&query, true);
                stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
        Self { address, asked, _threads: [over_udp, over_tcp] }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(query: &[u8], over_tcp: bool) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    let question = message.queries[0].clone();
    let record = |data| Record::from_rdata(question.name.clone(), 300, data);
    match (question.name.to_ascii().as_str(), over_tcp) {
        ("short.example.", _) => drop(message.add_answer(record(RData::A(A(ADDRESS))))),
        ("long.example.", true) => drop(message.add_answer(record(RData::TXT(TXT::new(vec!["over TCP".to_owned()]))))),
        ("long.example.", false) => message.metadata.truncation = true,
        _ => message.metadata.response_code = ResponseCode::NXDomain,
    }
    message.to_vec().unwrap()
}

fn start(dns: &str) -> (Weft, Client) {
    let weft = Weft::start_with_config(&format!("[networks.default]\nsubnet = \"10.78.9.0/24\"\ndns = \"{dns}\"\n[ports.vm1]\n"));
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    guest.lease();
    (weft, guest)
}

#[test]
fn names_outside_are_asked_of_the_servers_and_kept() {
    let upstream = Upstream::start();
    let (weft, mut guest) = start(&upstream.address.to_string());
    assert_eq!(guest.look_up("short.example", RecordType::A), [ADDRESS.to_string()]);
    assert_eq!(guest.look_up("Short.Example", RecordType::A), [ADDRESS.to_string()]);
    assert_eq!(upstream.asked(), 1, "the second answer was kept");
    assert_eq!(guest.resolve("nobody.example", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(guest.look_up("long.example", RecordType::TXT), ["over TCP"]);
    let dns = weft.json(&["network", "show", "default"])["dns"].clone();
    assert_eq!((&dns["servers"][0], &dns["counters"]["over_tcp"]), (&upstream.address.to_string().into(), &1.into()));
    assert_eq!((&dns["counters"]["queries"], &dns["counters"]["cached"]), (&4.into(), &1.into()));
}

#[test]
fn a_server_that_does_not_answer_is_passed_over() {
    let upstream = Upstream::start();
    // A port that was free a moment ago: nobody answers, and the kernel says so.
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (weft, mut guest) = start(&format!("{nobody},{}", upstream.address));
    assert_eq!(guest.look_up("short.example", RecordType::A), [ADDRESS.to_string()]);
    assert_eq!(weft.json(&["network", "show", "default"])["dns"]["counters"]["upstream_failures"], 1);
}

#[test]
fn the_names_of_the_network_are_known_without_anybody_outside() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_weft, mut guest) = start(&nobody.to_string());
    assert_eq!(guest.look_up("gateway.weft.internal", RecordType::A), ["10.78.9.1"]);
    assert_eq!(guest.look_up("vm1.weft.internal", RecordType::A), [guest.address.to_string()]);
    assert_eq!(guest.look_up("10.9.78.10.in-addr.arpa", RecordType::PTR), ["vm1.weft.internal."]);
    assert_eq!(guest.look_up("vm1.weft.internal", RecordType::AAAA), [""; 0]);
    assert_eq!(guest.resolve("short.example", RecordType::A).metadata.response_code, ResponseCode::ServFail);
}
