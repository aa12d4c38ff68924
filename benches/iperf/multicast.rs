//! Linux's own IGMP and MLD in namespaces that are guests of a running weft: a stream reaches who asked for it, and neighbours find each other.
//!
//! They need root. By hand: `cargo build --release -p weft -p weft-benches && cargo test --release -p weft-benches --test native_multicast -- --ignored
//! --test-threads=1`.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use serde_json::Value;
use weft_tests::Weft;
use weft_tests::native::{inside, native_guest};
use weft_tests::process::Process;
use weft_tests::wait::wait_until;

const READY_LIMIT: Duration = Duration::from_secs(20);
/// Longer than a membership that nobody renews: two intervals, and the time for answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const PORT: u16 = 5001;
/// No more than fit in a socket that nobody reads meanwhile.
const DATAGRAMS: usize = 100;
const GROUPS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(239, 1, 2, 3)), IpAddr::V6(Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 1, 0x203))];

/// A weft that asks often, with three guests.
struct Bench {
    weft: Weft,
    guests: [Process; 3],
    _dir: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let config = dir.path().join("weft.toml");
        fs::write(&config, "[networks.default]\nquery_interval_seconds = 4\n[ports.vm1]\n[ports.vm2]\n[ports.vm3]\n")
            .expect("a file can be written in a folder of our own");
        let weft = Weft::start_with(&["--config", config.to_str().expect("a path of ours")]);
        let guests = [1, 2, 3].map(|nth| guest(&weft.socket(&format!("vm{nth}")), nth));
        let bench = Self { weft, guests, _dir: dir };
        wait_until("every guest to be asked", READY_LIMIT, || {
            let queriers = bench.multicast()["queriers"].as_array().cloned().unwrap_or_default();
            queriers.len() == 2 && queriers.iter().all(|line| line["unsettled"].as_array().is_some_and(Vec::is_empty))
        });
        bench
    }

    fn multicast(&self) -> Value {
        self.weft.json(&["multicast", "list", "default"])[0].clone()
    }

    /// In which protocols a port has asked for a group.
    fn protocols(&self, port: &str, group: IpAddr) -> Vec<String> {
        let info = self.multicast();
        let lines = info["members"].as_array().expect("a list").iter();
        let wanted = lines.filter(|line| line["port"] == port && line["group"] == group.to_string());
        wanted.map(|line| line["protocol"].as_str().expect("a text").to_owned()).collect()
    }

    fn reports(&self) -> u64 {
        self.multicast()["counters"]["reports"].as_u64().expect("a number")
    }

    fn frames(&self, port: &str) -> u64 {
        self.weft.json(&["port", "show", port])["counters"]["to_guest_frames"].as_u64().expect("a number")
    }

    /// A socket of a guest that is a member of a group.
    fn join(&self, nth: usize, group: IpAddr) -> UdpSocket {
        inside(&self.guests[nth], || {
            let socket = UdpSocket::bind(SocketAddr::new(group, PORT)).expect("the port is free");
            let joined = match group {
                IpAddr::V4(group) => socket.join_multicast_v4(&group, &Ipv4Addr::new(10, 77, 0, 101 + nth as u8)),
                IpAddr::V6(group) => socket.join_multicast_v6(&group, if_nametoindex("eth0").expect("the guest has it")),
            };
            joined.expect("the guest's stack joins");
            socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket takes a limit");
            socket
        })
    }

    /// A stream of the first guest's.
    fn send(&self, group: IpAddr) {
        inside(&self.guests[0], || {
            // In IPv4 without a route for it, the interface is that of the socket's address.
            let own: IpAddr = if group.is_ipv4() { Ipv4Addr::new(10, 77, 0, 101).into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((own, 0)).expect("there is a free port");
            let to = match group {
                IpAddr::V4(_) => SocketAddr::new(group, PORT),
                // Which interface is said by the scope.
                IpAddr::V6(group) => {
                    std::net::SocketAddrV6::new(group, PORT, 0, if_nametoindex("eth0").expect("it is there")).into()
                }
            };
            for _ in 0..DATAGRAMS {
                socket.send_to(&[7; 1000], to).expect("the guest's stack sends");
                thread::sleep(Duration::from_micros(500));
            }
        });
    }
}

fn received(socket: &UdpSocket) -> usize {
    let mut count = 0;
    loop {
        match socket.recv(&mut [0; 2000]) {
            Ok(_) => count += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_stream_reaches_who_asked_and_goes_on_as_long_as_it_is_wanted() {
    let bench = Bench::start();
    for (group, protocol) in GROUPS.into_iter().zip(["IGMPv3", "MLDv2"]) {
        let socket = bench.join(1, group);
        wait_until("the group to be known", READY_LIMIT, || bench.protocols("vm2", group) == [protocol]);
        let before = bench.frames("vm3");
        bench.send(group);
        assert_eq!(received(&socket), DATAGRAMS, "{group}");
        let others = bench.frames("vm3") - before;
        assert!(others < DATAGRAMS as u64 / 10, "{others} frames went to one who did not ask");
        // The guest's stack answers when it is asked, so it stays a member for longer than one report makes it.
        let reports = bench.reports();
        wait_until("reports in answer to questions", ANSWER_LIMIT, || bench.reports() >= reports + 8);
        assert_eq!(bench.protocols("vm2", group), [protocol]);
        bench.send(group);
        assert_eq!(received(&socket), DATAGRAMS, "{group}");
        // And it leaves when its program ends.
        drop(socket);
        wait_until("the group to be left", ANSWER_LIMIT, || bench.protocols("vm2", group).is_empty());
        let before = bench.frames("vm2");
        bench.send(group);
        let others = bench.frames("vm2") - before;
        assert!(others < DATAGRAMS as u64 / 10, "{others} frames went to one who has left");
    }
}

#[test]
#[ignore = "needs root"]
fn hosts_of_the_versions_before_are_understood() {
    let bench = Bench::start();
    // /proc/sys/net is that of the namespace of whoever looks.
    let text = run(
        &bench.guests[2],
        "set -e; cd /proc/sys/net; echo 2 >ipv4/conf/eth0/force_igmp_version; echo 1 >ipv6/conf/eth0/force_mld_version",
    );
    assert_eq!(text, "");
    for (group, protocol) in GROUPS.into_iter().zip(["IGMPv2", "MLDv1"]) {
        let socket = bench.join(2, group);
        wait_until("the group to be known", READY_LIMIT, || bench.protocols("vm3", group) == [protocol]);
        bench.send(group);
        assert_eq!(received(&socket), DATAGRAMS, "{group}");
        drop(socket);
        wait_until("the group to be left", ANSWER_LIMIT, || bench.protocols("vm3", group).is_empty());
    }
}

#[test]
#[ignore = "needs root"]
fn neighbours_are_found_by_ipv6() {
    let bench = Bench::start();
    for (from, to) in [(0, 2), (1, 3), (2, 1)] {
        let text = run(&bench.guests[from], &format!("ip -6 neigh flush dev eth0; ping -6 -c 2 -i 0.2 -W 2 fd00:77::{to}"));
        assert!(text.contains(" 0% packet loss"), "{text}");
    }
}

/// Runs a shell line in a guest, and returns what it printed.
fn run(guest: &Process, line: &str) -> String {
    let output = inside(guest, || Command::new("sh").args(["-c", line]).output().expect("there is a shell"));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A guest that is up.
fn guest(socket: &Path, nth: u8) -> Process {
    let (v4, v6) = (format!("10.77.0.10{nth}/24"), format!("fd00:77::{nth}/64"));
    native_guest(env!("CARGO_BIN_EXE_weft-guest-tap"), socket, &["--address", &v4, "--address", &v6])
}
