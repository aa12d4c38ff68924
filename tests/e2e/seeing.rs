//! Captures in the eyes of others: what tshark says of one that was made under full load, and whether tcpdump picks the frames that weft does.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use weft_guest::{Guest, Header, Shape, feature};
use weft_switch::filter::{Facts, Filter};
use weft_tests::Weft;

const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const B: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HERE: [u8; 4] = [10, 77, 0, 2];
const THERE: [u8; 4] = [192, 0, 2, 1];
const HERE6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const THERE6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];

fn built(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame);
    frame
}

/// One of each kind that there is much of.
fn traffic() -> Vec<Vec<u8>> {
    let ipv4 = || PacketBuilder::ethernet2(A, B).ipv4(HERE, THERE, 64);
    let ipv6 = || PacketBuilder::ethernet2(A, B).ipv6(HERE6, THERE6, 64);
    let mut arp = [&[0xff; 6][..], &A, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &A, &HERE, &[0; 6], &THERE].concat();
    arp.resize(60, 0);
    vec![
        built(|frame| ipv4().udp(50_000, 5_001).write(frame, &[7; 1_400]).unwrap()),
        built(|frame| ipv4().tcp(50_001, 5_002, 1, 1).write(frame, &[7; 64]).unwrap()),
        built(|frame| ipv4().tcp(5_003, 50_000, 9, 1).syn().write(frame, &[]).unwrap()),
        built(|frame| ipv4().icmpv4_echo_request(1, 2).write(frame, &[7; 56]).unwrap()),
        built(|frame| ipv6().udp(50_000, 5_001).write(frame, &[7; 200]).unwrap()),
        built(|frame| ipv6().tcp(50_001, 5_002, 1, 1).write(frame, &[7; 900]).unwrap()),
        built(|frame| ipv6().icmpv6_echo_request(1, 2).write(frame, &[7; 56]).unwrap()),
        arp,
    ]
}

/// `weft capture`, into a file.
fn capture(weft: &Weft, file: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(weft.binary());
    command.arg("--run-dir").arg(weft.run_dir()).args(["capture", "vm1", "vm2", "-w"]).arg(file).args(args);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("weft capture starts");
    // What it says first is that it captures.
    std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut [0; 5]).expect("the capture begins");
    child
}

/// What a program prints.
fn output_of(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs tshark and tcpdump, which tests/e2e/setup installs: ./test runs it"]
fn a_capture_under_full_load_has_nothing_malformed_in_it() {
    let weft = Weft::start();
    let connect = |port, features| Guest::builder(weft.socket(port)).features(features).connect().expect("weft takes a guest");
    let (mut one, mut two) =
        (connect("vm1", feature::DEFAULT | feature::CSUM | feature::HOST_TSO), connect("vm2", feature::DEFAULT));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("load.pcapng");
    let path = file.to_str().unwrap();
    let child = capture(&weft, &file, &["--max-size", "200", "--duration", "20"]);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                two.receive(Duration::from_millis(1)).unwrap();
            }
        });
        let frames = traffic();
        // A TCP frame of 40 kB that is left to be cut and summed.
        let mut whole = built(|frame| {
            let packet = PacketBuilder::ethernet2(A, B).ipv4(HERE, THERE, 64);
            packet.tcp(50_002, 5_004, 1, 1).write(frame, &[7; 40_000]).unwrap();
        });
        // Where the checksum belongs stands the sum of the pseudo-header, as drivers leave it (virtio 1.2, 5.1.6.2).
        let len = (whole.len() - 34) as u16;
        let words = HERE.chunks(2).chain(THERE.chunks(2)).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum = words.sum::<u32>() + 6 + u32::from(len);
        whole[50..52].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
        let header = Header {
            flags: Header::NEEDS_CSUM,
            gso_type: Header::GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1_460,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        };
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            for frame in &frames {
                one.send(frame).unwrap();
            }
            one.send_with_header(&header, &whole, &Shape::one()).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    let packets = output_of("tshark", &["-r", path, "-T", "fields", "-e", "frame.number"]).lines().count();
    assert!(packets > 10_000, "{packets} are no load");
    let checks = ["-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"];
    let complaints =
        "_ws.malformed || ip.checksum.status == 0 || udp.checksum.status == 0 || tcp.checksum.status == 0 || _ws.short";
    let malformed = output_of("tshark", &[&["-r", path, "-Y", complaints][..], &checks].concat());
    assert_eq!(malformed.lines().take(5).collect::<Vec<_>>(), [""; 0], "of {packets} frames");
    let interfaces = output_of("tshark", &["-r", path, "-c", "1000", "-T", "fields", "-e", "frame.interface_name"]);
    assert!(interfaces.lines().all(|name| ["vm1", "vm2"].contains(&name)), "{interfaces}");
    println!("{packets} frames, {} bytes", file.metadata().unwrap().len());
}

#[test]
#[ignore = "needs tshark and tcpdump, which tests/e2e/setup installs: ./test runs it"]
fn filters_pick_what_those_of_tcpdump_do() {
    let weft = Weft::start();
    let connect = |port| Guest::builder(weft.socket(port)).connect().expect("weft takes a guest");
    let (mut one, mut two) = (connect("vm1"), connect("vm2"));
    let dir = tempfile::tempdir().unwrap();
    let all = dir.path().join("all.pcapng");
    let frames = traffic();
    let count = (2 * frames.len()).to_string();
    let child = capture(&weft, &all, &["--count", &count]);
    for frame in &frames {
        one.send(frame).unwrap();
        assert!(two.receive(Duration::from_secs(2)).unwrap().is_some());
    }
    assert!(child.wait_with_output().unwrap().status.success());
    let path = all.to_str().unwrap();
    for expression in [
        "ip",
        "ip6",
        "arp",
        "tcp",
        "udp",
        "icmp",
        "icmp6",
        "not ip",
        "host 10.77.0.2",
        "src host 192.0.2.1",
        "dst 192.0.2.1",
        "net 10.77.0.0/16",
        "src and dst net 10.0.0.0/8",
        "ip host 192.0.2.1",
        "arp host 10.77.0.2",
        "host fd00::3",
        "net fc00::/7",
        "port 5001",
        "udp port 5001",
        "tcp port 5001",
        "src port 50000",
        "dst port 50000",
        "portrange 5002-5003",
        "tcp and dst port 5002 or arp",
        "arp or tcp and port 5003",
        "arp or (tcp and port 5003)",
        "port 5001 or 5003",
        "not port 5001 and ip",
        "ether src 02:00:00:00:00:01",
        "ether broadcast",
        "multicast",
        "less 100",
        "greater 900",
        "ether proto 0x86dd",
        "ip proto 17",
        "ip6 proto 6",
        "proto 1",
    ] {
        let theirs =
            output_of("tcpdump", &["-n", "-t", "-r", path, expression]).lines().filter(|line| !line.starts_with('\t')).count();
        let filter: Filter = expression.parse().unwrap();
        let is_meant =
            |frame: &&Vec<u8>| filter.matches(&Facts::of(&frame[..frame.len().min(Filter::LOOKS_AT)], frame.len(), None));
        // Each is there twice: on its way in and on its way out.
        assert_eq!(theirs, 2 * frames.iter().filter(is_meant).count(), "{expression}");
    }
}
