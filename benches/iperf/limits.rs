//! A guest that takes what it can from the NAT, beside one that only downloads. Each attack is watched: what the other guest still gets, what
//! memory and descriptors it costs weft, and that all of it is free again afterwards. `docs/threat-model.md` has the bounds.
//!
//! Needs root and `benches/iperf/setup`. By hand: `cargo build --release -p weft -p weft-benches && cargo test --release -p weft-benches --test
//! nat_limits -- --ignored --nocapture`.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, SlicedPacket, TcpHeader, TransportSlice};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use weft_guest::Guest;
use weft_switch::MacAddr;
use weft_tests::Weft;
use weft_tests::native::{inside, native_guest};
use weft_tests::process::Process;
use weft_tests::wait::{wait_for, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
/// Descriptors are for connections here, not for mappings.
const CONFIG: &str = "[networks.default]\nhost_access = true\n[networks.default.nat]\nmappings = 256\n[ports.vm1]\n[ports.vm2]\n[ports.vm3]\n[ports.vm4]\n";
/// How many connections are open at once, and of how many guests: one alone gets about half of what weft may open, which is too little for that where
/// a process may have 20,000 descriptors.
const HELD: usize = 10_000;
const HOLDERS: usize = 3;
/// What one guest gets at least while it is the only one that wants many.
const MANY: usize = 5_000;
const CHURNED: u64 = 100_000;
const CLIENTS: u64 = 8;
/// Connections that get data and do nothing with them.
const SILENT: usize = 200;
/// What weft may grow by, whatever a guest does (`docs/threat-model.md`), in KiB.
const MEMORY_MAX: u64 = 32 * 1024;
/// What the other guest must get at least, of what it had before: both guests, both far ends and weft share two processors here.
const SHARE_MIN: f64 = 0.1;

/// The world: weft, a guest that downloads, and what is known of the quiet time.
struct World {
    weft: Weft,
    downloaded: Arc<AtomicU64>,
    rate: f64,
    rss: u64,
    descriptors: usize,
}

#[test]
#[ignore = "needs root"]
fn whatever_a_guest_takes_others_go_on_and_everything_comes_back() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("as many descriptors as are allowed");
    let mut config = tempfile::NamedTempFile::new().expect("a file can be made");
    config.write_all(CONFIG.as_bytes()).expect("it can be written");
    let weft = Weft::start_with(&["--config", &config.path().display().to_string()]);
    let network = weft.json(&["network", "show", "default"]);
    let gateway: Ipv4Addr = network["gateway"].as_str().expect("a gateway").parse().expect("an address");
    let gateway_mac: MacAddr = network["gateway_mac"].as_str().expect("a gateway").parse().expect("an address");
    let [a, b, c, _] = gateway.octets();
    let (one, two) = (guest(&weft, "vm1", Ipv4Addr::new(a, b, c, 10)), guest(&weft, "vm2", Ipv4Addr::new(a, b, c, 11)));
    let holders = [guest(&weft, "vm3", Ipv4Addr::new(a, b, c, 13)), guest(&weft, "vm4", Ipv4Addr::new(a, b, c, 14))];

    let downloaded = Arc::new(AtomicU64::new(0));
    let (source, answering) = (source(), answerer());
    let (_keeper, held) = keeper(&weft);
    let stream = inside(&one, || TcpStream::connect((gateway, source)).expect("the host is reached"));
    let counter = Arc::clone(&downloaded);
    thread::spawn(move || download(stream, &counter));
    let mut world = World { weft, downloaded, rate: 0.0, rss: 0, descriptors: 0 };
    world.rate = world.rate_over(Duration::from_secs(2));
    (world.rss, world.descriptors) = (world.memory(), world.open());
    println!("alone: {:.2} Gbit/s, {} KiB, {} descriptors", world.rate / 1e9, world.rss, world.descriptors);

    world.attack("10,000 connections at once, of three guests", || {
        let hold = || (0..HELD.div_ceil(HOLDERS)).map(|_| TcpStream::connect((gateway, held))).collect::<Vec<_>>();
        let all: Vec<_> = [&two].into_iter().chain(&holders).flat_map(|guest| inside(guest, hold)).collect();
        assert!(all.iter().filter(|stream| stream.is_ok()).count() >= HELD);
        all
    });
    drop(holders);
    let gone = |port: &str| world.weft.json(&["port", "show", port])["state"] == "listening";
    wait_until("their guests to be gone", LIMIT, || gone("vm3") && gone("vm4"));
    world.descriptors = world.open();
    world.attack("100,000 connections opened and closed", || {
        inside(&two, || {
            thread::scope(|scope| {
                for _ in 0..CLIENTS {
                    scope.spawn(|| (0..CHURNED / CLIENTS).for_each(|_| ask(gateway, answering).expect("an answer")));
                }
            });
        });
    });
    world.attack("a scan of all ports", || {
        let namespace = format!("--net=/proc/{}/ns/net", two.pid());
        let words = ["nmap", "-sT", "-Pn", "-n", "-T5", "--max-retries", "1", "--host-timeout", "120s", "-p-", "-oG", "-"];
        let found = Command::new("nsenter").arg(namespace).args(words).arg(gateway.to_string()).stdin(Stdio::null()).output();
        let found = String::from_utf8_lossy(&found.expect("nmap is there: run benches/iperf/setup").stdout).into_owned();
        assert!(found.contains(&format!("{held}/open")), "{found}");
    });
    world.attack("connections until one is refused", || {
        let all = inside(&two, || open_all(gateway, held));
        println!("    {} were opened", all.len());
        assert!(all.len() > MANY, "a guest may have half of what is free");
        all
    });
    world.attack("a guest that never reads", || {
        let connect = || TcpStream::connect((gateway, source)).expect("the host is reached");
        let all: Vec<_> = inside(&two, || (0..SILENT).map(|_| connect()).collect());
        thread::sleep(Duration::from_secs(2));
        all
    });
    drop(two);
    world.attack("a guest that never acknowledges", || {
        let mut guest = Guest::builder(world.weft.socket("vm2")).connect().expect("the port takes another guest");
        open_and_be_silent(&mut guest, (gateway, gateway_mac), source);
        thread::sleep(Duration::from_secs(2));
        // It would be asked again for some minutes; its port's end is the end of that.
        RemovesPort { weft: &world.weft, _guest: guest }
    });
}

/// A guest that takes its port along.
struct RemovesPort<'a> {
    weft: &'a Weft,
    _guest: Guest,
}

impl Drop for RemovesPort<'_> {
    fn drop(&mut self) {
        self.weft.cli(&["port", "remove", "vm2"]);
    }
}

impl World {
    /// Lets somebody do something, and looks at what it does to others while it lasts and when it is over.
    fn attack<T>(&self, what: &str, attack: impl FnOnce() -> T) {
        let (start, before) = (Instant::now(), self.downloaded.load(Ordering::Relaxed));
        let (over, peak_rss, peak_open) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let held = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    peak_rss.fetch_max(self.memory(), Ordering::Relaxed);
                    peak_open.fetch_max(self.open() as u64, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let held = attack();
            // What it has done is there now: that time counts as well.
            thread::sleep(Duration::from_millis(500));
            over.store(true, Ordering::Relaxed);
            held
        });
        let rate = (self.downloaded.load(Ordering::Relaxed) - before) as f64 * 8.0 / start.elapsed().as_secs_f64();
        let took = start.elapsed();
        drop(held);
        wait_until("its descriptors to be free again", LIMIT, || self.open() <= self.descriptors);
        // Ends are remembered for ten seconds.
        let all_gone = || ["vm2", "vm3", "vm4"].into_iter().all(|port| self.mappings_of(port) == 0);
        wait_until("its mappings to be forgotten", LIMIT, all_gone);
        println!(
            "{what}: {:.1} s; the other guest {:.2} Gbit/s ({:.0} %); at the peak {} KiB more and {} descriptors; afterwards {} KiB more",
            took.as_secs_f64(),
            rate / 1e9,
            100.0 * rate / self.rate,
            peak_rss.load(Ordering::Relaxed).saturating_sub(self.rss),
            peak_open.load(Ordering::Relaxed),
            self.memory().saturating_sub(self.rss),
        );
        assert!(peak_rss.load(Ordering::Relaxed) <= self.rss + MEMORY_MAX);
        assert!(rate >= self.rate * SHARE_MIN, "the other guest had {rate} bit/s of {}", self.rate);
    }

    fn rate_over(&self, time: Duration) -> f64 {
        thread::sleep(Duration::from_secs(1));
        let before = self.downloaded.load(Ordering::Relaxed);
        thread::sleep(time);
        (self.downloaded.load(Ordering::Relaxed) - before) as f64 * 8.0 / time.as_secs_f64()
    }

    /// Memory of weft's own in KiB; that of guests, which it maps, is shared.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.weft.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    fn mappings_of(&self, port: &str) -> usize {
        let mappings = self.weft.json(&["nat", "list"]);
        mappings.as_array().map_or(0, |all| all.iter().filter(|mapping| mapping["port"] == port).count())
    }

    fn open(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.weft.pid())).map_or(0, Iterator::count)
    }
}

fn guest(weft: &Weft, port: &str, ip: Ipv4Addr) -> Process {
    native_guest(env!("CARGO_BIN_EXE_weft-guest-tap"), &weft.socket(port), &["--address", &format!("{ip}/24")])
}

fn serve(each: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || listener.incoming().flatten().for_each(each));
    port
}

/// Sends zeros to everybody.
fn source() -> u16 {
    serve(|mut stream| drop(thread::spawn(move || while stream.write_all(&[0; 0x1_0000]).is_ok() {})))
}

/// Keeps every connection until the other side ends it: a process of its own, because it takes as many descriptors as the guest's side does.
fn keeper(weft: &Weft) -> (Process, u16) {
    let args = ["keep", "127.0.0.1:0"].map(str::to_owned);
    let log = weft.run_dir().join("keeper.log");
    let keeper = Process::spawn("weft-crr", Path::new(env!("CARGO_BIN_EXE_weft-crr")), &args, &log);
    let said = || keeper.log().lines().find_map(|line| line.strip_prefix("ready: 127.0.0.1:")?.trim().parse().ok());
    let port = wait_for("the keeper to listen", LIMIT, said);
    (keeper, port)
}

/// Answers a byte with a byte and ends the connection.
fn answerer() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    for _ in 0..16 {
        let listener = listener.try_clone().expect("there are descriptors");
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut byte = [0];
                let _ = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
            }
        });
    }
    port
}

fn ask(gateway: Ipv4Addr, port: u16) -> io::Result<()> {
    let mut stream = TcpStream::connect((gateway, port))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])?;
    // The other side ends it first.
    stream.read(&mut [0]).map(drop)
}

fn download(mut stream: TcpStream, counter: &AtomicU64) {
    let mut buffer = vec![0; 0x2_0000];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        counter.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// As many connections as there are.
fn open_all(gateway: Ipv4Addr, port: u16) -> Vec<TcpStream> {
    let target = SocketAddrV4::new(gateway, port).into();
    let connect = |_| TcpStream::connect_timeout(&target, Duration::from_secs(5)).ok();
    (0..40_000).map_while(connect).collect()
}

/// Opens connections, as far as it must to be sent something, and says no more.
fn open_and_be_silent(guest: &mut Guest, (gateway, gateway_mac): (Ipv4Addr, MacAddr), to: u16) {
    let [a, b, c, _] = gateway.octets();
    let (ip, mac) = ([a, b, c, 12], [2, 0, 0, 0, 0, 12]);
    for from in (40_000..).take(SILENT) {
        let send = |guest: &mut Guest, change: &dyn Fn(&mut TcpHeader)| {
            let mut header = TcpHeader::new(from, to, 1000, 60_000);
            change(&mut header);
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2(mac, gateway_mac.0).ipv4(ip, gateway.octets(), 64);
            builder.tcp_header(header).write(&mut frame, &[]).expect("a frame can be built");
            guest.send(&frame).expect("the port takes it");
        };
        send(guest, &|header| header.syn = true);
        let deadline = Instant::now() + LIMIT;
        loop {
            assert!(Instant::now() < deadline, "no answer to a SYN");
            let Some(frame) = guest.receive(Duration::from_millis(100)).expect("the port is there") else { continue };
            let Ok(packet) = SlicedPacket::from_ethernet(&frame) else { continue };
            let Some(TransportSlice::Tcp(answer)) = packet.transport else { continue };
            if answer.syn() && answer.destination_port() == from {
                let number = answer.sequence_number().wrapping_add(1);
                send(guest, &|header| (header.ack, header.sequence_number, header.acknowledgment_number) = (true, 1001, number));
                break;
            }
        }
    }
}
