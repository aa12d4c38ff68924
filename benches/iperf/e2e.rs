//! Guests without a virtual machine: Linux stacks in namespaces of their own, plugged into a running weft.
//!
//! They need root. By hand: `cargo build --release -p weft -p weft-benches && cargo test --release -p weft-benches --test
//! native_stack -- --ignored --test-threads=1`, after `benches/iperf/setup`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use weft_tests::Weft;
use weft_tests::native::{inside, native_guest, start_native_guest};
use weft_tests::process::Process;
use weft_tests::wait::wait_until;

const IP1: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const IP2: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Enough to fill every ring and buffer on the way many times over.
const STREAM_LEN: usize = 64 << 20;
/// The longest frame without segmentation at an MTU of 1500.
const ETHERNET_MAX: u64 = 1514;

#[test]
#[ignore = "needs root"]
fn tcp_goes_in_large_segments_when_they_are_agreed() {
    let weft = Weft::start();
    let [one, two] = boot(&weft, &[]);
    assert!(one.log().contains("TSO out, TSO in"), "{}", one.log());
    assert_streams_both_ways(&one, &two);
    // A mean far beyond a frame of the network says that most of it was not cut on the way.
    let mean = mean_frame_len(&weft);
    assert!(mean > 8 * ETHERNET_MAX, "the frames to vm2 have {mean} bytes on average");
}

#[test]
#[ignore = "needs root"]
fn tcp_goes_in_frames_of_the_mtu_without_segmentation() {
    for option in ["--no-tso", "--no-csum"] {
        let weft = Weft::start();
        let [one, two] = boot(&weft, &[option]);
        assert!(!one.log().contains("TSO"), "{}", one.log());
        assert_streams_both_ways(&one, &two);
        let mean = mean_frame_len(&weft);
        assert!(mean <= ETHERNET_MAX, "{option}: the frames to vm2 have {mean} bytes on average");
    }
}

#[test]
#[ignore = "needs root"]
fn tcp_goes_from_a_guest_with_segmentation_to_one_without() {
    let weft = Weft::start();
    let one = native(&weft.socket("vm1"), IP1, &[]);
    let two = native(&weft.socket("vm2"), IP2, &["--no-csum"]);
    assert_streams_both_ways(&one, &two);
}

#[test]
#[ignore = "needs root"]
fn tcp_goes_in_every_kind_of_receive_buffer() {
    for options in [&["--buffer-len", "2048", "--ring-size", "1024"][..], &["--no-mergeable"], &["--mtu", "65520"]] {
        let weft = Weft::start();
        let [one, two] = boot(&weft, options);
        assert_streams_both_ways(&one, &two);
    }
}

#[test]
#[ignore = "needs root"]
fn tcp_goes_over_packed_rings() {
    let weft = Weft::start();
    let one = native(&weft.socket("vm1"), IP1, &["--packed"]);
    assert!(one.log().contains("packed rings"), "{}", one.log());
    let two = native(&weft.socket("vm2"), IP2, &["--packed", "--buffer-len", "2048"]);
    assert_streams_both_ways(&one, &two);
}

#[test]
#[ignore = "needs root"]
fn a_guest_that_listens_is_reached() {
    let weft = Weft::start();
    let socket = weft.add_client_port("vm9");
    let one = native(&socket, IP1, &["--listen"]);
    let two = native(&weft.socket("vm2"), IP2, &[]);
    assert_streams_both_ways(&one, &two);
}

#[test]
#[ignore = "needs root"]
fn a_command_in_the_guest_decides_when_it_ends_and_how() {
    let weft = Weft::start();
    let command = ["--", "sh", "-c", "ip -brief address show dev eth0; exit 7"];
    let guest = start(&weft.socket("vm1"), IP1, &command);
    wait_until("the guest to end with its command", READY_LIMIT, || guest.log().contains("slept"));
    assert!(guest.log().contains("10.0.0.1/24"), "{}", guest.log());
    // It has ended already; this takes its status.
    assert_eq!(guest.terminate(READY_LIMIT).code(), Some(7));
}

#[test]
#[ignore = "needs root"]
fn idle_guests_cost_next_to_nothing() {
    let weft = Weft::start();
    let [one, two] = boot(&weft, &[]);
    assert_streams_both_ways(&one, &two);
    // A share of time needs a span to be a share of.
    let span = Duration::from_secs(3);
    let before = one.cpu_time() + two.cpu_time();
    thread::sleep(span);
    let used = one.cpu_time() + two.cpu_time() - before;
    assert!(used * 100 < span, "two idle guests used {used:?} in {span:?}");
}

/// Two guests on the ports that weft has by itself.
fn boot(weft: &Weft, options: &[&str]) -> [Process; 2] {
    [("vm1", IP1), ("vm2", IP2)].map(|(port, ip)| native(&weft.socket(port), ip, options))
}

/// A guest that is up.
fn native(socket: &Path, ip: Ipv4Addr, options: &[&str]) -> Process {
    let address = format!("{ip}/24");
    native_guest(env!("CARGO_BIN_EXE_weft-guest-tap"), socket, &[&["--address", &address], options].concat())
}

fn start(socket: &Path, ip: Ipv4Addr, options: &[&str]) -> Process {
    start_native_guest(env!("CARGO_BIN_EXE_weft-guest-tap"), socket, &[&["--address", &format!("{ip}/24")], options].concat())
}

/// Bytes of the frames that vm2 got, on average.
fn mean_frame_len(weft: &Weft) -> u64 {
    let counters = &weft.json(&["port", "show", "vm2"])["counters"];
    let counter = |name: &str| counters[name].as_u64().unwrap_or_else(|| panic!("no {name} in {counters}"));
    counter("to_guest_bytes") / counter("to_guest_frames")
}

fn assert_streams_both_ways(one: &Process, two: &Process) {
    assert_stream(one, two, IP2);
    assert_stream(two, one, IP1);
}

/// Sends noise over TCP and compares every byte.
fn assert_stream(from: &Process, to: &Process, ip: Ipv4Addr) {
    let noise = noise();
    let listener = inside(to, || TcpListener::bind((ip, 0)).expect("the guest has its address"));
    let port = listener.local_addr().expect("a bound socket has an address").port();
    let stream = inside(from, || TcpStream::connect((ip, port)).expect("the other guest is reached"));
    thread::scope(|scope| {
        scope.spawn(|| receive(&listener, &noise));
        send(stream, &noise);
    });
}

fn send(mut stream: TcpStream, noise: &[u8]) {
    stream.set_write_timeout(Some(READY_LIMIT)).expect("a socket takes a limit");
    let mut left = STREAM_LEN;
    while left > 0 {
        let part = &noise[..left.min(noise.len())];
        stream.write_all(part).expect("the other guest takes what is sent");
        left -= part.len();
    }
    stream.shutdown(Shutdown::Write).expect("a connection can be closed");
    // Its answer says that all has arrived.
    assert_eq!(stream.read(&mut [0]).expect("the other guest closes the connection"), 0);
}

fn receive(listener: &TcpListener, noise: &[u8]) {
    let (mut stream, _) = listener.accept().expect("the other guest connects");
    stream.set_read_timeout(Some(READY_LIMIT)).expect("a socket takes a limit");
    let mut buffer = vec![0; noise.len()];
    let mut left = STREAM_LEN;
    while left > 0 {
        let part = left.min(noise.len());
        stream.read_exact(&mut buffer[..part]).expect("everything arrives");
        assert!(buffer[..part] == noise[..part], "{left} bytes before the end, other bytes came than were sent");
        left -= part;
    }
    assert_eq!(stream.read(&mut [0]).expect("the end arrives"), 0, "more came than was sent");
}

/// Bytes without a pattern, the same in every run; their number shares no factor with any frame's length.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(1_000_003).collect()
}
