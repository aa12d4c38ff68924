//! Real guests on the network that weft has by itself: addresses, names and a gateway, for guests that know nothing beforehand.
//!
//! `./test` runs these; by hand: `tests/e2e/setup && cargo test -p weft-tests --test nat -- --ignored --test-threads=1`.

use std::io::Read;
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use weft_tests::process::{Process, find_program};
use weft_tests::wait::{wait_for, wait_until};
use weft_tests::{Guest, Weft};

/// What `udhcpc` calls when it has a lease: what a distribution would do about it.
const SCRIPT: &str = r#"#!/bin/sh\n[ $1 = bound ] || [ $1 = renew ] || exit 0\nip addr flush dev $interface\nip addr add $ip/$mask dev $interface\nip route add default via $router\necho search $domain >/etc/resolv.conf\necho nameserver $dns >>/etc/resolv.conf\n"#;

/// A guest that has got everything from the network.
fn with_lease(name: &str, socket: &Path) -> Guest {
    let guest = Guest::builder(name, socket).boot();
    guest.run(&format!("printf '{SCRIPT}' >/tmp/script; chmod 755 /tmp/script"));
    guest.run(&format!("udhcpc -i eth0 -s /tmp/script -x hostname:{name} -t 10 -T 1 -n -b"));
    guest
}

fn ping(from: &Guest, to: &str) {
    let text = from.run(&format!("ping -c 3 -i 0.1 -W 2 {to}"));
    assert!(text.contains("3 packets received"), "ping from {} to {to}:\n{text}", from.name());
}

/// The addresses that a name has, as the guest's resolver says.
fn resolve(guest: &Guest, name: &str) -> String {
    let answer = guest.run(&format!("nslookup -type=a {name}"));
    let lines: Vec<_> = answer.lines().skip_while(|line| !line.starts_with("Name:")).collect();
    lines.join("\n")
}

/// A DNS server on the loopback that has the same answer to everything; lives as long as the test.
fn upstream() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("the loopback has a free port");
    let address = socket.local_addr().expect("a bound socket has an address");
    std::thread::spawn(move || {
        let mut query = [0; 4096];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            // RFC 1035, section 4: a header of 12 bytes, the name, type and class; what comes after them is left away.
            let name_len = query[12..len].iter().position(|&byte| byte == 0).expect("a name ends") + 1;
            let question = &query[12..12 + name_len + 4];
            let header = [&query[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
            let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7];
            socket.send_to(&[&header, question, &record].concat(), from).expect("the loopback takes a datagram");
        }
    });
    address.to_string()
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn a_guest_with_nothing_but_a_dhcp_client_is_on_the_network() {
    let mut weft = Weft::start_unprivileged(&[]);
    let servers = upstream();
    weft.cli(&["network", "add", "lab", "--subnet", "10.78.9.0/24", "--dns", &servers]);
    for port in ["vm8", "vm9"] {
        weft.cli(&["port", "add", port, "--network", "lab"]);
    }
    let one = with_lease("web", &weft.socket("vm8"));
    let two = with_lease("db", &weft.socket("vm9"));

    let shown = one.run("ip addr show eth0; ip route; cat /etc/resolv.conf");
    println!("{shown}");
    for expected in ["inet 10.78.9.10/24", "default via 10.78.9.1", "nameserver 10.78.9.1", "search weft.internal"] {
        assert!(shown.contains(expected), "{expected} is missing:\n{shown}");
    }
    ping(&one, "10.78.9.1");
    ping(&one, "10.78.9.11");
    ping(&two, "10.78.9.10");
    assert!(resolve(&one, "example.com").contains("192.0.2.7"));
    assert!(resolve(&one, "db.weft.internal").contains("10.78.9.11"));
    assert!(resolve(&two, "web").contains("10.78.9.10"));
    assert!(resolve(&two, "gateway").contains("10.78.9.1"));
    let traced = one.run("traceroute -n -w 2 -m 3 192.0.2.9");
    assert!(traced.contains(" 1  10.78.9.1"), "the gateway is the first on the way:\n{traced}");

    // Whoever has a lease keeps it when weft dies, and goes on as if nothing had happened when it is there again.
    let leases = |weft: &Weft| {
        let leases = weft.json(&["lease", "list", "--network", "lab"]);
        leases
            .as_array()
            .expect("a list")
            .iter()
            .map(|lease| (lease["address"].clone(), lease["mac"].clone()))
            .collect::<Vec<_>>()
    };
    let before = leases(&weft);
    assert_eq!(before.len(), 2);
    two.run("kill -USR2 $(pidof udhcpc)");
    wait_until("the lease to be given back", Duration::from_secs(10), || leases(&weft).len() == 1);
    weft.assert_alive();
}

/// An address under which this host is known outside. Nothing is sent to find it.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("any port will do");
    socket.connect("192.0.2.9:9").expect("a host with guests has a default route");
    socket.local_addr().expect("a bound socket has an address").ip()
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn a_guest_reaches_the_outside_through_the_hosts_own_sockets() {
    let mut weft = Weft::start_unprivileged(&[]);
    let guest = with_lease("web", &weft.socket("vm1"));
    let (address, port) = (own_address(), "5209");
    let directory = tempfile::tempdir().expect("a directory for a log");
    let words = ["--server", "--forceflush", "--bind", &address.to_string(), "--port", port].map(str::to_owned);
    let server = Process::spawn("iperf3", &find_program("iperf3"), &words, &directory.path().join("iperf.log"));
    wait_until("iperf3 to listen", Duration::from_secs(10), || server.log().contains("Server listening"));
    for kind in ["", "--reverse", "--parallel 4", "--udp --bitrate 10M", "--udp --bitrate 10M --reverse"] {
        let text = guest.run(&format!("iperf3 --client {address} --port {port} --time 2 --format m {kind}"));
        println!("{text}");
        assert!(text.contains("receiver"), "iperf3 {kind}:\n{text}");
    }
    let refused = guest.run(&format!("nc -w 10 {address} 9 2>&1; true"));
    assert!(refused.contains("refused"), "{refused}");
    weft.assert_alive();
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn leases_and_forwards_outlive_weft_and_connections_are_reset() {
    let mut weft = Weft::start_unprivileged(&[]);
    let guest = Guest::builder("vm1", &weft.socket("vm1")).reconnect_ms(500).boot();
    guest.run(&format!("printf '{SCRIPT}' >/tmp/script; chmod 755 /tmp/script"));
    guest.run("udhcpc -i eth0 -s /tmp/script -t 10 -T 1 -n -b");
    let address = |guest: &Guest| guest.run("ip -4 addr show eth0 | grep inet");
    let before = (address(&guest), weft.json(&["lease", "list"])[0]["mac"].clone());
    let gateway = guest.run("ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'").trim().to_owned();
    ping(&guest, &gateway);

    // A way in, and a connection on the way out.
    let outside = TcpListener::bind((own_address(), 0)).expect("the host has a free port");
    let (at, to) = (outside.local_addr().expect("it is bound"), before.0.split(['/', ' ']).find(|word| word.starts_with("10.")));
    let guests_address = to.expect("the guest has an address").to_owned();
    let forwarded =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("the loopback has a free port");
    weft.cli(&["forward", "add", "default", &format!("tcp:{forwarded}"), &format!("{guests_address}:7000")]);
    guest.run("while :; do echo hello | nc -l -p 7000; done >/tmp/nc.log 2>&1 &");
    let ask = || {
        let mut client = TcpStream::connect_timeout(&forwarded, Duration::from_secs(2)).ok()?;
        client.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        client.shutdown(Shutdown::Write).ok()?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    };
    assert_eq!(wait_for("the guest to answer by the forwarded port", Duration::from_secs(20), ask), "hello\n");
    guest.run(&format!(
        "mkfifo /tmp/f; (sleep 1000 >/tmp/f) & (nc {} {} </tmp/f; echo ended >/tmp/ended) >/tmp/out.log 2>&1 &",
        at.ip(),
        at.port()
    ));
    guest.run("echo one >/tmp/f");
    let (mut far, _) = outside.accept().expect("the guest connects");
    let mut word = [0; 4];
    far.read_exact(&mut word).expect("the guest sends a word");

    weft.kill9();
    assert!(far.read(&mut word).map_or(true, |len| len == 0), "the far end hears of it at once");
    weft.start_again();
    assert_eq!(weft.json(&["lease", "list"])[0]["mac"], before.1);
    wait_until("the gateway to answer again", Duration::from_secs(10), || {
        guest.try_run(&format!("ping -c 1 -W 1 {gateway}"), Duration::from_secs(10)).status == 0
    });
    assert_eq!(wait_for("the forward to be back", Duration::from_secs(20), ask), "hello\n");
    // What the guest sends on the old connection is answered with a reset.
    // If it has heard already, nobody reads that any more.
    guest.run("echo two >/tmp/f &");
    wait_until("the guest's connection to end", Duration::from_secs(10), || {
        guest.try_run("cat /tmp/ended", Duration::from_secs(10)).text.contains("ended")
    });
    // A client that asks anew gets what it had.
    guest.run("kill $(pidof udhcpc); udhcpc -i eth0 -s /tmp/script -t 10 -T 1 -n -q");
    assert_eq!(address(&guest), before.0);
    weft.assert_alive();
}

#[test]
#[ignore = "boots a guest: ./test runs it"]
fn firmware_that_boots_from_the_network_gets_a_lease() {
    let weft = Weft::start_unprivileged(&[]);
    let directory = tempfile::tempdir().expect("a directory for a log");
    let chardev = format!("socket,id=c,path={}", weft.socket("vm1").display());
    // No disk and no kernel: the ROM of the network card, which is iPXE, is all that there is to boot. Its real mode is more than some nested KVM can do.
    let words = [
        ["-nographic", "-m", "256M", "-object", "memory-backend-memfd,id=mem,size=256M,share=on"].as_slice(),
        &["-machine", "q35,memory-backend=mem,accel=tcg", "-chardev", &chardev, "-netdev", "vhost-user,id=n,chardev=c"],
        &["-device", "virtio-net-pci,netdev=n,bootindex=1,mac=02:00:00:00:00:77"],
    ]
    .concat();
    let words: Vec<_> = words.into_iter().map(str::to_owned).collect();
    let firmware = Process::spawn("iPXE", &find_program("qemu-system-x86_64"), &words, &directory.path().join("console.log"));
    wait_until("iPXE to have an address", Duration::from_secs(60), || firmware.log().contains("gw 10."));
    let lease = &weft.json(&["lease", "list"])[0];
    assert_eq!((&lease["state"], &lease["mac"]), (&"leased".into(), &"02:00:00:00:00:77".into()));
    let address = lease["address"].as_str().expect("a lease has an address");
    assert!(firmware.log().contains(&format!("net0: {address}/255.255.255.0")), "{}", firmware.log());
}
