//! Real guests on a network with VLANs: two on VLAN 100, two on VLAN 200, one in the native VLAN, and one on a trunk whose Linux tags for itself. Whoever may talk does,
//! whoever may not doesn't.
//!
//! `./test` runs these; by hand: `tests/e2e/setup && cargo test -p weft-tests --test vlan -- --ignored --test-threads=1`.

use std::time::Duration;

use weft_tests::wait::wait_until;
use weft_tests::{Guest, Weft};

/// How long iperf3 sends.
const SECONDS: u32 = 2;
/// Frames that are sent to all, and what guests say of themselves meanwhile (neighbour discovery, MLD).
const SENT: u64 = 30;
const CHATTER: u64 = 12;

/// A guest, its port, and the role of that.
struct Place {
    name: &'static str,
    role: &'static [&'static str],
    /// The last number of its addresses.
    host: u8,
}

const PLACES: [Place; 6] = [
    Place { name: "a1", role: &["--vlan", "100"], host: 1 },
    Place { name: "a2", role: &["--vlan", "blue"], host: 2 },
    Place { name: "b1", role: &["--vlan", "200"], host: 3 },
    Place { name: "b2", role: &["--vlan", "200"], host: 4 },
    Place { name: "plain", role: &[], host: 5 },
    Place { name: "trunk", role: &["--trunk", "blue,200", "--native", "1"], host: 9 },
];

struct Guests(Vec<Guest>);

impl Guests {
    /// All on one subnet, so that nothing but VLANs keeps them apart.
    fn boot(weft: &Weft) -> Self {
        weft.cli(&["network", "add", "lab", "--mode", "private", "--vlans", "blue=100"]);
        for Place { name, role, .. } in &PLACES {
            weft.cli(&[&["port", "add", name, "--network", "lab"], *role].concat());
        }
        let start = |place: &Place| Guest::builder(place.name, &weft.socket(place.name)).start();
        let guests = Self(PLACES.iter().map(start).collect());
        guests.0.iter().for_each(Guest::await_ready);
        for Place { name, host, .. } in &PLACES[..5] {
            guests.get(name).run(&format!("ip addr add 10.0.0.{host}/24 dev eth0; ip -6 addr add fd00::{host}/64 dev eth0"));
        }
        // The same subnet on three interfaces: each has the addresses of its own VLAN.
        let trunk = guests.get("trunk");
        trunk.run("echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad");
        // An address is answered for where it is, and not on all interfaces, as Linux does by itself.
        trunk.run("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore");
        for vlan in [100, 200] {
            trunk.run(&format!("ip link add link eth0 name eth0.{vlan} type vlan id {vlan} && ip link set eth0.{vlan} up"));
        }
        for (device, others) in [("eth0.100", [1, 2].as_slice()), ("eth0.200", &[3, 4]), ("eth0", &[5])] {
            // The number of the VLAN's first guest tells the trunk's addresses apart: 10.0.0.91, .93, .95.
            let own = 90 + others[0];
            trunk.run(&format!("ip addr add 10.0.0.{own}/32 dev {device}; ip -6 addr add fd00::{own}/128 dev {device}"));
            for other in others {
                trunk.run(&format!("ip route add 10.0.0.{other}/32 dev {device} src 10.0.0.{own}"));
                trunk.run(&format!("ip -6 route add fd00::{other}/128 dev {device}"));
            }
        }
        guests
    }

    fn get(&self, name: &str) -> &Guest {
        self.0.iter().find(|guest| guest.name() == name).expect("a guest of that name was booted")
    }
}

/// Replies to three pings.
fn replies(from: &Guest, to: &str) -> bool {
    let option = if to.contains(':') { "-6" } else { "-4" };
    let output = from.try_run(&format!("ping {option} -c 3 -i 0.2 -W 1 {to}"), Duration::from_secs(30));
    assert!(output.text.contains("3 packets transmitted"), "ping from {} to {to}:\n{}", from.name(), output.text);
    let all = output.text.contains(" 3 packets received");
    assert!(all || output.text.contains(" 0 packets received"), "ping from {} to {to}:\n{}", from.name(), output.text);
    all
}

/// Frames and bytes that a guest has sent.
fn sent(weft: &Weft, guest: &str) -> (u64, u64) {
    let counters = &weft.json(&["port", "show", guest])["counters"];
    let count = |name: &str| counters[name].as_u64().expect("a counter is a number");
    (count("from_guest_frames"), count("from_guest_bytes"))
}

/// Frames that were handed to each guest.
fn delivered(weft: &Weft) -> Vec<u64> {
    let count = |place: &Place| {
        let shown = weft.json(&["port", "show", place.name]);
        shown["counters"]["to_guest_frames"].as_u64().expect("a counter is a number")
    };
    PLACES.iter().map(count).collect()
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn guests_talk_within_their_vlan_and_through_a_trunk_and_no_further() {
    let weft = Weft::start();
    let guests = Guests::boot(&weft);
    println!("{}", weft.cli(&["network", "show", "lab"]));

    // Unicast, over IPv4 and IPv6, and with it broadcast (ARP) and multicast (neighbour discovery).
    for (from, to, may) in [
        ("a1", 2, true),
        ("b1", 4, true),
        ("trunk", 1, true),
        ("trunk", 2, true),
        ("trunk", 3, true),
        ("trunk", 4, true),
        ("trunk", 5, true),
        ("a1", 91, true),
        ("b2", 93, true),
        ("plain", 95, true),
        ("a1", 3, false),
        ("a2", 5, false),
        ("b1", 1, false),
        ("plain", 2, false),
        ("a1", 93, false),
        ("b1", 91, false),
        ("plain", 91, false),
    ] {
        for to in [format!("10.0.0.{to}"), format!("fd00::{to}")] {
            assert_eq!(replies(guests.get(from), &to), may, "from {from} to {to}");
        }
    }

    // What is for all, is for all of the VLAN: requests for an address that nobody has, and pings to all nodes.
    for (from, members) in [("a1", ["a2", "trunk"]), ("b2", ["b1", "trunk"]), ("plain", ["trunk", "trunk"])] {
        for to_all in [
            "for i in $(seq 30); do arping -q -c 1 -w 1 -I eth0 10.0.0.77 & done; wait",
            "ping -6 -c 30 -i 0.05 -W 1 ff02::1%eth0",
        ] {
            let before = delivered(&weft);
            guests.get(from).try_run(to_all, Duration::from_secs(60));
            let grown: Vec<_> = delivered(&weft).iter().zip(&before).map(|(now, before)| now - before).collect();
            for (Place { name, .. }, grown) in PLACES.iter().zip(grown).filter(|(place, _)| place.name != from) {
                if members.contains(name) {
                    assert!(grown >= SENT, "{name} got {grown} of {SENT} frames from {from}: {to_all}");
                } else {
                    assert!(grown <= CHATTER, "{name} got {grown} frames while {from} sent {SENT} to its own VLAN: {to_all}");
                }
            }
        }
    }

    // TCP, with frames of 64 KiB as far as the guests' drivers go, from access port to access port and over the trunk, both ways.
    for (server, ip, clients) in [("a2", "10.0.0.2", ["a1", "trunk"]), ("trunk", "10.0.0.93", ["b1", "b2"])] {
        let server = guests.get(server);
        server.run("iperf3 --server --daemon");
        wait_until("the iperf3 server to listen", Duration::from_secs(10), || {
            server.try_run("netstat -ltn | grep -q :5201", Duration::from_secs(10)).status == 0
        });
        for client in clients {
            for (direction, sender) in [("", client), ("--reverse", server.name())] {
                let before = sent(&weft, sender);
                let text = guests.get(client).run(&format!("iperf3 --client {ip} --time {SECONDS} --format m {direction}"));
                println!("TCP of {client} with {ip} {direction}\n{text}");
                assert!(mbits(&text) > 10.0, "TCP hardly moves:\n{text}");
                // Larger than any frame on a wire: what the driver left to be cut went through as it was, tag or not.
                let (frames, bytes) = (sent(&weft, sender).0 - before.0, sent(&weft, sender).1 - before.1);
                println!("{sender} sent {frames} frames with {bytes} bytes");
                assert!(bytes / frames > 3000, "{sender} sent {frames} frames with {bytes} bytes");
            }
        }
    }

    // Every byte is covered by the answer's checksum; 1,472 is a full frame, and a tag more on the trunk.
    for size in [0, 1472, 1473, 60_000] {
        let text = guests.get("trunk").run(&format!("ping -c 5 -i 0.05 -W 2 -s {size} 10.0.0.1"));
        assert!(text.contains("5 packets received"), "{size} bytes:\n{text}");
    }

    // A guest that tags for itself on an access port gets nowhere, and weft says why.
    let hopper = guests.get("a1");
    hopper.run(
        "ip link add link eth0 name eth0.200 type vlan id 200 && ip link set eth0.200 up && ip addr add 10.1.0.1/24 dev eth0.200",
    );
    guests.get("b1").run("ip addr add 10.1.0.2/24 dev eth0");
    assert!(!replies(hopper, "10.1.0.2"));
    let shown = weft.json(&["port", "show", "a1"]);
    assert!(shown["counters"]["drops"]["tag_not_admitted"].as_u64() > Some(0), "{shown}");

    let learned = weft.cli(&["fdb", "list", "--network", "lab"]);
    println!("{learned}");
    for vlan in ["100", "200"] {
        let is_learned = |line: &str| line.split_whitespace().nth(1) == Some(vlan) && line.contains("trunk");
        assert!(learned.lines().any(is_learned), "the trunk's station is not known in VLAN {vlan}:\n{learned}");
    }
}

/// The rate that iperf3 measured at the receiver.
fn mbits(text: &str) -> f64 {
    let line = text.lines().rfind(|line| line.contains("receiver")).unwrap_or_else(|| panic!("no result:\n{text}"));
    let words: Vec<_> = line.split_whitespace().collect();
    let unit = words.iter().position(|word| *word == "Mbits/sec").unwrap_or_else(|| panic!("no rate in {line}"));
    words[unit - 1].parse().expect("a rate is a number")
}
