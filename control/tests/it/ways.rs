//! Ways out and in: what guests reach, who reaches them, and what is written down about it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use hickory_proto::rr::RecordType;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::Client;
use crate::weft::{PATIENCE, Weft};

const LAB: &str = "[networks.default]\nsubnet = \"10.78.9.0/24\"\n[ports.vm1]\n[ports.vm2]\n";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 78, 9, 1);

/// A port of the loopback that nobody has, for UDP and TCP.
fn free_port() -> u16 {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Waits until something is as it should be.
#[track_caller]
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not come about");
        std::thread::yield_now();
    }
}

/// The outside asks a guest something by a forwarded port, and gets its answer.
#[track_caller]
fn talk(guest: &mut Client, port: u16) {
    let outside = socket();
    outside.connect(("127.0.0.1", port)).unwrap();
    // The first may come before the guest's address is known.
    let (from, to, question) = wait_for("a question at the guest", || {
        outside.send(b"question").unwrap();
        guest.receive_udp()
    });
    assert_eq!((from.ip(), to, question.as_slice()), (&GATEWAY, SocketAddrV4::new(guest.address, 7), b"question".as_slice()));
    guest.send_udp_to(to, from, b"answer");
    let mut buffer = [0; 100];
    let len = outside.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"answer");
}

#[test]
fn the_outside_reaches_a_guest_by_address_and_by_name_until_the_forward_is_gone() {
    let weft = Weft::start_with_config(LAB);
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    guest.hostname = Some("web".to_owned());
    let (first, second) = (free_port(), free_port());
    let (by_address, by_name) = (format!("udp:127.0.0.1:{first}"), format!("udp:127.0.0.1:{second}"));
    let added = weft.json(&["forward", "add", "default", &by_name, "web:7"]);
    assert_eq!((&added["state"], &added["reason"]), (&json!("waiting"), &json!("no guest is called web")));
    guest.lease();
    wait_for("the forward to a name", || (weft.json(&["forward", "list"])[0]["state"] == "open").then_some(()));
    assert_eq!(weft.json(&["forward", "list"])[0]["guest"], json!(guest.address));
    talk(&mut guest, second);
    // A guest's UDP port can have one forward.
    let refused = weft.refused(&["forward", "add", "default", &by_address, &format!("{}:7", guest.address)]);
    assert!(refused.contains("can have one forward"), "{refused}");
    weft.json(&["forward", "remove", "default", &by_name]);
    assert_eq!(weft.json(&["forward", "list"]), json!([]));
    weft.json(&["forward", "add", "default", &by_address, &format!("{}:7", guest.address)]);
    talk(&mut guest, first);
    let shown = weft.run(&["forward", "list"]).stdout;
    assert!(shown.contains(&by_address) && shown.contains("open"), "{shown}");

    weft.json(&["forward", "remove", "default", &by_address]);
    assert!(UdpSocket::bind(("127.0.0.1", first)).is_ok(), "a port that is not forwarded any more is free");
    let named = weft.json(&["forward", "add", "default", &by_name, "web:7"]);
    assert_eq!(named["state"], "open");
    guest.release();
    wait_for("the forward to close", || (weft.json(&["forward", "list"])[0]["state"] == "waiting").then_some(()));
}

#[test]
fn a_forward_to_a_ports_name_reaches_the_guest_behind_it_whatever_that_calls_itself() {
    let weft = Weft::start_with_config(LAB);
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    guest.hostname = Some("debian".to_owned());
    guest.lease();
    let port = free_port();
    let added = weft.json(&["forward", "add", "default", &format!("udp:127.0.0.1:{port}"), "vm1:7"]);
    assert_eq!((&added["state"], &added["guest"]), (&json!("open"), &json!(guest.address)));
    talk(&mut guest, port);
    assert_eq!(guest.look_up("vm1", RecordType::A), [guest.address.to_string()]);
}

#[test]
fn a_forward_says_when_nobody_is_there() {
    let weft = Weft::start_with_config(LAB);
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    guest.lease();
    weft.json(&["lease", "add", "default", "10.78.9.200", "--mac", "02:00:00:00:00:09", "--hostname", "absent"]);
    for to in [format!("{}:7", guest.address), "absent:7".to_owned()] {
        weft.json(&["forward", "add", "default", &format!("udp:127.0.0.1:{}", free_port()), &to]);
    }
    let reasons =
        || weft.json(&["forward", "list"]).as_array().unwrap().iter().map(|line| line["reason"].clone()).collect::<Vec<_>>();
    assert_eq!(reasons(), [Value::Null, json!("nobody has 10.78.9.200 yet")]);
    let address = guest.address;
    drop(guest);
    let gone = json!(format!("{address} belongs to port vm1, where no guest is running"));
    wait_for("the forward to say so", || (reasons()[0] == gone).then_some(()));
}

#[test]
fn forwards_that_cannot_be_are_refused_and_nothing_changes() {
    let config = format!("{LAB}[networks.lab]\nmode = \"private\"\n");
    let weft = Weft::start_with_config(&config);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let add = |from: &str, to: &str| weft.refused(&["forward", "add", "default", from, to]);
    assert!(add(&format!("tcp:127.0.0.1:{port}"), "10.78.9.10:80").contains("is taken"));
    // All or nothing: the port before it is free again.
    let from = format!("tcp:127.0.0.1:{}-{port}", port - 1);
    assert!(add(&from, "10.78.9.10:80").contains("can't be forwarded"));
    assert!(TcpListener::bind(("127.0.0.1", port - 1)).is_ok());
    assert!(add("tcp:192.0.2.200:8080", "10.78.9.10").contains("not an address of this host"));
    // So it is if there is no guest of that name yet.
    assert!(add(&format!("tcp:127.0.0.1:{port}"), "web:80").contains("is taken"));
    assert!(add(&from, "web:80").contains("is taken"));
    assert!(add("udp:192.0.2.200:8080", "web").contains("not an address of this host"));
    assert!(add("tcp:8080", "10.79.0.10:80").contains("no guest of network \"default\" can be"));
    assert!(add("tcp:8080", "10.78.9.1:80").contains("its gateway"));
    assert!(add("tcp:8080", "gateway:80").contains("its gateway"));
    assert!(add("tcp:8080", "10.78.9.255:80").contains("broadcast address"));
    assert!(add("tcp:8080", "10.78.9.0:80").contains("10.78.9.0/24 itself"));
    assert!(weft.refused(&["forward", "add", "lab", "tcp:8080", "web:80"]).contains("only a network of mode nat"));
    assert!(weft.refused(&["forward", "add", "nowhere", "tcp:8080", "web:80"]).contains("is not there"));
    assert!(weft.refused(&["forward", "remove", "default", "tcp:8080"]).contains("does not forward tcp:8080"));
    let free = format!("tcp:127.0.0.1:{}", free_port());
    weft.json(&["forward", "add", "default", &free, "10.78.9.10:80"]);
    assert!(add(&free, "10.78.9.11:80").contains("has, too"));
    let elsewhere = weft.refused(&["forward", "remove", "default", &free, "10.78.9.11:80"]);
    assert!(elsewhere.contains("to 10.78.9.10:80, and not there"), "{elsewhere}");
    weft.json(&["forward", "remove", "default", &free, "10.78.9.10:80"]);
    let wrong = weft.run(&["forward", "add", "default", "8080", "10.78.9.10:80"]);
    assert_eq!(wrong.status, 2);
    assert!(wrong.stderr.contains("tcp:8080"), "{}", wrong.stderr);
}

#[test]
fn guests_reach_the_hosts_loopback_only_if_they_may() {
    let weft = Weft::start_with_config(LAB);
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    guest.lease();
    let host = socket();
    let SocketAddr::V4(at) = host.local_addr().unwrap() else { unreachable!() };
    let (from, to) = (SocketAddrV4::new(guest.address, 5000), SocketAddrV4::new(GATEWAY, at.port()));
    guest.send_udp_to(from, to, b"early");
    // Refused by the gateway itself: nobody is asked outside.
    assert!(guest.receive_unreachable());
    assert_eq!(weft.json(&["nat", "list"]), json!([]));

    let shown = weft.json(&["network", "set", "default", "--host-access"]);
    assert_eq!(shown["host_access"], true);
    guest.send_udp_to(from, to, b"allowed");
    let mut buffer = [0; 100];
    let (len, sender) = host.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"allowed");
    host.send_to(b"yes", sender).unwrap();
    let answer = wait_for("an answer", || guest.receive_udp());
    assert_eq!(answer, (to, from, b"yes".to_vec()));

    let mappings = weft.json(&["nat", "list", "--port", "vm1"]);
    let one = &mappings[0];
    assert_eq!((&one["protocol"], &one["inside"], &one["remote"]), (&json!("udp"), &json!(from), &json!(to)));
    assert_eq!((&one["from_guest_bytes"], &one["to_guest_bytes"]), (&json!(7), &json!(3)));
    assert_eq!(weft.json(&["nat", "list", "--port", "vm2"]), json!([]));
    let nat = weft.json(&["nat", "show"]);
    assert_eq!((&nat["udp"], &nat["ports"]["vm1"]["udp"], &nat["host_access"]), (&json!(1), &json!(1), &json!(true)));
    let of_port = &nat["ports"]["vm1"];
    assert_eq!((&of_port["from_guest_bytes"], &of_port["to_guest_bytes"]), (&json!(7), &json!(3)));
    let shown = weft.run(&["nat", "show"]).stdout;
    assert!(shown.contains("7 bytes out, 3 bytes in"), "{shown}");
    assert!(shown.contains(nat["ping_refused"].as_str().unwrap_or("works")), "{shown}");
    assert!(weft.run(&["nat", "list"]).stdout.contains("10.78.9.1:"));
    weft.json(&["network", "set", "default", "--host-access=false"]);
    guest.send_udp_to(from, to, b"late");
    assert!(guest.receive_unreachable());
}

#[test]
fn every_mapping_is_written_down() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let weft = Weft::start_with_config_and(LAB, &["--audit", path, "--host-access", "--log", "error"]);
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    guest.lease();
    let host = socket();
    let SocketAddr::V4(at) = host.local_addr().unwrap() else { unreachable!() };
    let (from, to) = (SocketAddrV4::new(guest.address, 5000), SocketAddrV4::new(GATEWAY, at.port()));
    guest.send_udp_to(from, to, b"hello");
    host.recv_from(&mut [0; 100]).unwrap();
    assert!(weft.refused(&["network", "set", "default", "--host-access=false"]).contains("started with --host-access"));
    weft.json(&["port", "remove", "vm1"]);
    let events = wait_for("two events", || {
        let text = std::fs::read_to_string(path).unwrap();
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (events.len() >= 2).then_some(events)
    });
    let essence = |event: &Value| ["message", "network", "port", "protocol", "inside"].map(|key| event[key].clone());
    let of = |what: &str| [what, "default", "vm1", "udp", &from.to_string()].map(|text| json!(text));
    assert_eq!((essence(&events[0]), essence(&events[1])), (of("opened"), of("closed")));
    assert_eq!((&events[1]["reason"], &events[1]["from_guest_bytes"]), (&json!("abandoned"), &json!(5)));
    assert!(events[0]["at_unix_ms"].as_u64().unwrap() > 1_700_000_000_000);
    assert!(!weft.log().contains("opened"), "the audit is not in the log: {}", weft.log());
}

#[test]
fn what_was_changed_is_there_after_a_crash() {
    let weft = Weft::start();
    let port = free_port();
    let forward = format!("tcp:127.0.0.1:{port}");
    weft.json(&["network", "add", "lab", "--subnet", "10.78.9.0/24"]);
    weft.json(&["port", "add", "web", "--network", "lab"]);
    weft.json(&["forward", "add", "lab", &forward, "10.78.9.10:80"]);
    weft.json(&["port", "remove", "vm2"]);
    let before = weft.json(&["config", "show"]);
    let (_, dir) = weft.stop(Signal::KILL);
    let weft = Weft::start_in(dir, &["--workers", "2"]);
    let mut after = weft.json(&["config", "show"]);
    assert_eq!(after["workers"]["count"], 2);
    after["workers"] = before["workers"].clone();
    assert_eq!(after, before);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "the forwarded port is open again");
    // What the command line said is not kept.
    weft.json(&["port", "add", "vm2"]);
    let (_, dir) = weft.stop(Signal::TERM);
    let weft = Weft::start_in(dir, &[]);
    assert_eq!(weft.json(&["config", "show"])["workers"], before["workers"]);
}

#[test]
fn a_network_changes_in_place() {
    let weft = Weft::start_with_config(LAB);
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    guest.lease();
    let shown = weft.json(&["network", "set", "default", "--ageing", "60", "--dns", "off"]);
    assert_eq!((&shown["ageing_seconds"], &shown["dns"], &shown["subnet"]), (&json!(60), &json!(null), &json!("10.78.9.0/24")));
    assert!(guest.ping_gateway());
    assert!(weft.refused(&["network", "set", "nowhere", "--ageing", "60"]).contains("is not there"));
    assert!(weft.refused(&["network", "set", "default", "--gateway", "10.79.0.1"]).contains("10.79.0.1"));
    assert_eq!(weft.run(&["network", "set", "default"]).status, 2);
    let mut connection = weft.connect();
    let answer = connection.call("network.set", &json!({ "name": "default", "settings": { "agein_seconds": 5 } }));
    assert!(answer["error"]["message"].as_str().unwrap().contains("agein_seconds"), "{answer}");
    let answer =
        connection.call("network.set", &json!({ "name": "default", "settings": { "nat": { "udp_seconds": 60 }, "dns": null } }));
    assert_eq!(answer["result"]["ageing_seconds"], 60, "{answer}");
    let nat = weft.json(&["nat", "show", "default"]);
    assert_eq!(nat["udp_seconds"], 60);
}

#[test]
fn a_port_that_somebody_has_keeps_no_guest_from_its_network() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let from = format!("tcp:{}", taken.local_addr().unwrap());
    let foreign = "{ from = \"tcp:192.0.2.200:80\", to = \"10.78.9.10:80\" }, { from = \"udp:192.0.2.200:80\", to = \"web\" }";
    let config =
        LAB.replace("subnet", &format!("forwards = [{{ from = \"{from}\", to = \"10.78.9.10:80\" }}, {foreign}]\nsubnet"));
    let weft = Weft::start_with_config(&config);
    let line = &weft.json(&["forward", "list"])[0];
    assert_eq!((&line["state"], line["reason"].as_str().unwrap().contains("is taken")), (&json!("failed"), true));
    for from in [&from, "tcp:192.0.2.200:80", "udp:192.0.2.200:80"] {
        assert!(weft.log().contains(&format!("{from} can't be forwarded")), "{}", weft.log());
    }
    assert_eq!(Client::plug(&weft.at("vm1.sock"), 1).lease().yiaddr(), Ipv4Addr::new(10, 78, 9, 10));
    drop(taken);
    wait_for("the forward", || (weft.json(&["forward", "list"])[0]["state"] == "open").then_some(()));
}

#[test]
fn a_forward_whose_guest_is_not_there_says_for_whom_it_waits() {
    let weft = Weft::start_with_config(LAB);
    let (by_address, by_name) = (format!("tcp:127.0.0.1:{}", free_port()), format!("udp:127.0.0.1:{}", free_port()));
    let added = weft.run(&["forward", "add", "default", &by_address, "10.78.9.10:80"]).stdout;
    assert!(added.contains("but nobody has 10.78.9.10 yet"), "{added}");
    weft.json(&["forward", "add", "default", &by_name, "vm2:80"]);
    let lines = weft.json(&["forward", "list"]);
    assert_eq!((&lines[0]["state"], &lines[0]["reason"]), (&json!("open"), &json!("nobody has 10.78.9.10 yet")));
    assert_eq!((&lines[1]["state"], &lines[1]["reason"]), (&json!("waiting"), &json!("no guest is called vm2")));
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    assert_eq!(guest.lease().yiaddr(), Ipv4Addr::new(10, 78, 9, 10));
    assert_eq!(weft.json(&["forward", "list"])[0]["reason"], json!(null));
}
