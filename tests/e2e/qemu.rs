//! Real guests: QEMU, a Linux kernel and its virtio driver, plugged into a running weft.
//!
//! They boot under emulation, which is slow but everywhere the same. `./test` runs these; by hand:
//! `tests/e2e/setup && cargo test -p weft-tests --test qemu -- --ignored --test-threads=1`.

use std::time::{Duration, Instant};

use weft_tests::wait::wait_until;
use weft_tests::{Guest, GuestBuilder, Weft};

/// How soon guests talk again after weft was killed and started again.
const RECOVERY_LIMIT: Duration = Duration::from_secs(3);
/// How often QEMU tries to connect again, where the test has it connect.
const RECONNECT_MS: u32 = 500;

const IP1: &str = "10.0.0.1";
const IP2: &str = "10.0.0.2";
const IP3: &str = "10.0.0.3";

#[test]
#[ignore = "boots guests: ./test runs it"]
fn two_guests_talk_without_any_configuration() {
    let weft = Weft::start();
    let [one, two] = boot([
        Guest::builder("vm1", &weft.socket("vm1")).ip(&net(IP1)),
        Guest::builder("vm2", &weft.socket("vm2")).ip(&net(IP2)),
    ]);

    ping(&one, IP2);
    ping(&two, IP1);

    two.run("iperf3 --server --daemon");
    await_iperf_server(&two);
    let tcp = one.run(&format!("iperf3 --client {IP2} --time 3 --format m"));
    println!("TCP\n{tcp}");
    assert!(mbits(&tcp, "receiver") > 10.0, "TCP hardly moves:\n{tcp}");
    let back = one.run(&format!("iperf3 --client {IP2} --time 3 --format m --reverse"));
    println!("TCP, the other way\n{back}");
    assert!(mbits(&back, "receiver") > 10.0, "TCP hardly moves the other way:\n{back}");
    // Slow enough for an emulated receiver, so that what is missing was lost on the way.
    let udp = one.run(&format!("iperf3 --client {IP2} --time 3 --format m --udp --bitrate 10M"));
    println!("UDP\n{udp}");
    assert!(mbits(&udp, "receiver") > 9.0, "UDP gets lost:\n{udp}");
}

/// Each guest with another set of options. Debian's kernel does not know IN_ORDER, so that one is only offered to it.
#[test]
#[ignore = "boots guests: ./test runs it"]
fn guests_with_packed_rings_talk() {
    let weft = Weft::start();
    weft.cli(&["port", "add", "vm3", "--queues", "2"]);
    let guests = boot([
        Guest::builder("vm1", &weft.socket("vm1")).device_flag("packed=on").ip(&net(IP1)),
        Guest::builder("vm2", &weft.socket("vm2")).device_flag("packed=on").device_flag("in_order=on").ip(&net(IP2)),
        Guest::builder("vm3", &weft.socket("vm3")).device_flag("packed=on").queues(2).ip(&net(IP3)),
    ]);
    for (guest, port) in guests.iter().zip(["vm1", "vm2", "vm3"]) {
        let shown = weft.cli(&["port", "show", port]);
        assert!(shown.contains("RING_PACKED"), "{} has split rings:\n{shown}", guest.name());
        for ip in [IP1, IP2, IP3] {
            ping(guest, ip);
        }
    }
    let [one, two, three] = &guests;
    two.run("iperf3 --server --daemon");
    await_iperf_server(two);
    for (guest, streams) in [(one, 1), (three, 4)] {
        for direction in ["", "--reverse"] {
            let tcp = guest.run(&format!("iperf3 --client {IP2} --time 2 --format m --parallel {streams} {direction}"));
            println!("TCP of {} {direction}\n{tcp}", guest.name());
            assert!(mbits(&tcp, "receiver") > 10.0, "TCP hardly moves:\n{tcp}");
        }
    }
    // Every byte is covered by the answer's checksum, and the longest takes many frames and several laps of the rings.
    for size in [0, 1472, 1473, 60_000] {
        let text = one.run(&format!("ping -c 10 -i 0.02 -W 2 -s {size} {IP3}"));
        assert!(text.contains("10 packets received"), "{size} bytes:\n{text}");
    }
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn the_qemu_arguments_that_weft_prints_work_as_they_are() {
    let weft = Weft::start();
    weft.add_client_port("vm8");
    weft.cli(&["port", "add", "vm9", "--queues", "2"]);
    let printed = |port: &str| -> Vec<String> {
        let args = weft.json(&["qemu-args", port, "--memory", "256M"]);
        let words = args.as_array().unwrap_or_else(|| panic!("no list of words: {args}"));
        words.iter().map(|word| word.as_str().expect("a word").to_owned()).collect()
    };
    // One for each kind of port: weft listens, weft connects, several queues.
    let guests = boot(
        [("vm1", IP1), ("vm8", IP2), ("vm9", IP3)]
            .map(|(port, ip)| Guest::builder(port, &weft.socket(port)).plug(printed(port)).ip(&net(ip))),
    );
    for guest in &guests {
        for ip in [IP1, IP2, IP3] {
            ping(guest, ip);
        }
    }
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn frames_of_every_size_arrive_intact() {
    let weft = Weft::start();
    let [one, two] = boot([
        Guest::builder("vm1", &weft.socket("vm1")).ip(&net(IP1)),
        // Without mergeable buffers the driver posts another kind of receive chain.
        Guest::builder("vm2", &weft.socket("vm2")).ip(&net(IP2)).device_flag("mrg_rxbuf=off"),
    ]);
    // ICMP is covered by a checksum over the whole payload, so an answer proves every byte. 1472 fills a frame,
    // 1473 makes the first fragment full and the second tiny, 60000 is forty fragments in a row.
    for size in [0, 1, 17, 18, 63, 1000, 1471, 1472, 1473, 8000, 60_000] {
        for (guest, peer) in [(&one, IP2), (&two, IP1)] {
            let text = guest.run(&format!("ping -c 3 -i 0.05 -W 2 -s {size} {peer}"));
            assert!(text.contains("3 packets received"), "{size} bytes from {}:\n{text}", guest.name());
        }
    }
    // A whole file, compared by digest.
    let digest =
        one.run("mkdir /tmp/www; dd if=/dev/urandom of=/tmp/www/file bs=1M count=8 2>/dev/null; sha256sum < /tmp/www/file");
    one.run("httpd -h /tmp/www");
    let copy = two.try_run(&format!("wget -q -O - http://{IP1}/file | sha256sum"), Duration::from_secs(60));
    assert_eq!(copy.text, digest, "the file arrived as it was sent");
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn a_guest_may_reboot_or_die_and_the_others_notice_nothing() {
    let weft = Weft::start();
    weft.add_port("vm3");
    let unlucky = Guest::builder("vm1", &weft.socket("vm1")).ip(&net(IP1));
    let [first, two, three] = boot([
        unlucky.clone(),
        Guest::builder("vm2", &weft.socket("vm2")).ip(&net(IP2)),
        Guest::builder("vm3", &weft.socket("vm3")).ip(&net(IP3)),
    ]);
    ping(&first, IP2);
    ping(&two, IP3);

    let watch = PingWatch::start(&two, IP3);
    first.reboot();
    ping(&first, IP2);
    watch.assert_nothing_lost("while a neighbour rebooted");

    let watch = PingWatch::start(&two, IP3);
    first.kill9();
    let second = unlucky.boot();
    ping(&second, IP2);
    ping(&two, IP1);
    watch.assert_nothing_lost("while a neighbour's QEMU was killed and a new one came");
    drop(three);
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn qemu_may_listen_and_weft_connects() {
    let weft = Weft::start();
    let listening = Guest::builder("vm8", &weft.add_client_port("vm8")).listens().ip(&net(IP2));
    // One of each kind: a guest that listens and one that connects meet in the middle.
    let [one, two] = boot([Guest::builder("vm1", &weft.socket("vm1")).ip(&net(IP1)), listening.clone()]);
    ping(&one, IP2);
    ping(&two, IP1);

    two.reboot();
    ping(&two, IP1);

    two.kill9();
    let two = listening.boot();
    ping(&one, IP2);
    ping(&two, IP1);
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn guests_that_connect_survive_a_killed_weft() {
    let mut weft = Weft::start();
    let [one, two] = boot([
        Guest::builder("vm1", &weft.socket("vm1")).reconnect_ms(RECONNECT_MS).ip(&net(IP1)),
        Guest::builder("vm2", &weft.socket("vm2")).reconnect_ms(RECONNECT_MS).ip(&net(IP2)),
    ]);
    assert_survives_kills(&mut weft, &one, &two);
}

#[test]
#[ignore = "boots guests: ./test runs it"]
fn guests_that_listen_survive_a_killed_weft() {
    let mut weft = Weft::start();
    let [socket1, socket2] = ["vm8", "vm9"].map(|port| weft.add_client_port(port));
    let [one, two] =
        boot([Guest::builder("vm8", &socket1).listens().ip(&net(IP1)), Guest::builder("vm9", &socket2).listens().ip(&net(IP2))]);
    assert_survives_kills(&mut weft, &one, &two);
}

/// QEMU does not know where packed rings stand: it says again where they were started.
#[test]
#[ignore = "boots guests: ./test runs it"]
fn guests_with_packed_rings_survive_a_killed_weft() {
    let mut weft = Weft::start();
    let [one, two] = boot([("vm1", IP1), ("vm2", IP2)].map(|(port, ip)| {
        Guest::builder(port, &weft.socket(port)).reconnect_ms(RECONNECT_MS).device_flag("packed=on").ip(&net(ip))
    }));
    assert_survives_kills(&mut weft, &one, &two);
}

/// Kills weft at rest and under load; the guests must talk again each time, without anybody touching them.
fn assert_survives_kills(weft: &mut Weft, one: &Guest, two: &Guest) {
    ping(one, IP2);
    two.run("iperf3 --server --daemon");
    await_iperf_server(two);
    for load in ["at rest", "under load"] {
        if load == "under load" {
            // The client is still sending when the switch dies, with descriptors taken and not given back.
            one.run(&format!("iperf3 --client {IP2} --time 60 --forceflush > /tmp/iperf.log 2>&1 &"));
            wait_until("iperf3 to be under way", Duration::from_secs(20), || {
                one.run("cat /tmp/iperf.log").matches("bits/sec").count() >= 2
            });
        }
        weft.kill9();
        let killed = Instant::now();
        weft.start_again();
        for (from, to) in [(one, IP2), (two, IP1)] {
            wait_until(&format!("{} to reach {to} after weft was killed {load}", from.name()), RECOVERY_LIMIT * 5, || {
                from.try_run(&format!("ping -c 1 -W 1 {to}"), Duration::from_secs(10)).status == 0
            });
        }
        let took = killed.elapsed();
        println!("weft killed {load}: both guests talk again after {took:?}");
        assert!(took < RECOVERY_LIMIT, "weft killed {load}: the guests talk again only after {took:?}");
        one.try_run("killall -9 iperf3", Duration::from_secs(10));
    }
}

/// A ping every 20 ms in the background of a guest.
struct PingWatch<'a> {
    guest: &'a Guest,
}

impl<'a> PingWatch<'a> {
    fn start(guest: &'a Guest, peer: &str) -> Self {
        guest.run(&format!("ping -i 0.02 {peer} > /tmp/watch.log 2>&1 & echo $! > /tmp/watch.pid"));
        let watch = PingWatch { guest };
        wait_until("the first answer", Duration::from_secs(10), || watch.log().contains(" bytes from "));
        watch
    }

    fn log(&self) -> String {
        self.guest.run("cat /tmp/watch.log")
    }

    fn assert_nothing_lost(self, when: &str) {
        // The last request may still be under way when ping is told to end. The sequence numbers tell: every
        // answer up to the last one seen must be there, in its place.
        self.guest.run("kill -INT $(cat /tmp/watch.pid)");
        let log = self.log();
        let answered: Vec<u64> =
            log.lines().filter_map(|line| line.split("seq=").nth(1)?.split(' ').next()?.parse().ok()).collect();
        println!("{} pings answered {when}", answered.len());
        assert!(answered.len() > 50, "too few to tell {when}:\n{log}");
        let all: Vec<u64> = (0..answered.len() as u64).collect();
        assert_eq!(answered, all, "answers are missing {when}:\n{log}");
    }
}

/// Boots all at the same time.
fn boot<const N: usize>(guests: [GuestBuilder; N]) -> [Guest; N] {
    let guests = guests.map(GuestBuilder::start);
    for guest in &guests {
        guest.await_ready();
    }
    guests
}

fn net(ip: &str) -> String {
    format!("{ip}/24")
}

fn ping(from: &Guest, to: &str) {
    let text = from.run(&format!("ping -c 5 -i 0.1 -W 2 {to}"));
    assert!(text.contains("5 packets received"), "ping from {} to {to}:\n{text}", from.name());
}

fn await_iperf_server(guest: &Guest) {
    wait_until("iperf3 to listen", Duration::from_secs(10), || guest.run("netstat -ltn").contains(":5201 "));
}

/// The rate in the summary line that ends with `who`.
fn mbits(report: &str, who: &str) -> f64 {
    let line = report.lines().rfind(|line| line.trim_end().ends_with(who)).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = words.iter().position(|&word| word == "Mbits/sec");
    unit.and_then(|at| words[at - 1].parse().ok()).unwrap_or_else(|| panic!("no rate of the {who} in:\n{report}"))
}
