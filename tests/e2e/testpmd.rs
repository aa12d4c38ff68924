//! Guests without a kernel: DPDK's virtio-user driver in every layout of its rings, on both sides of the socket.
//!
//! `./test` runs these; by hand: `tests/e2e/setup && cargo test --release -p weft-tests --test testpmd -- --ignored
//! --test-threads=1`. `WEFT_FRAMES` is the number of frames in each closed loop.
//!
//! testpmd counts frames and bytes but never looks into them. Whether every byte is right is for the other kind of test
//! in here: a guest in this process sends frames of noise, testpmd sends each back with the addresses exchanged, and
//! what comes back is compared.

use std::time::{Duration, Instant};

use weft_guest::{Guest, Order, Shape, feature};
use weft_tests::testpmd::PortStats;
use weft_tests::{Testpmd, VirtioUser, Weft};

/// Four layouts on both sides of the socket: with this, they see ten million frames in each kind of test.
const FRAMES_DEFAULT: u64 = 1_250_000;
/// Layouts of packed rings are more, and get this part of it each.
const PACKED_SHARE: u64 = 4;

const MAC1: &str = "02:00:00:00:00:01";
const MAC2: &str = "02:00:00:00:00:02";

/// The layouts that a split ring can have with this driver. Indirect descriptors are always negotiated; they are used for
/// frames of several segments, which is a test of its own.
const LAYOUTS: [&str; 4] =
    ["mrg_rxbuf=1,in_order=1", "mrg_rxbuf=0,in_order=1", "mrg_rxbuf=1,in_order=0", "mrg_rxbuf=0,in_order=0"];

/// The same for a packed ring, where the driver has code of its own for processors with AVX-512; elsewhere `vectorized` changes
/// nothing.
const PACKED_LAYOUTS: [&str; 6] = [
    "packed_vq=1,mrg_rxbuf=1,in_order=1",
    "packed_vq=1,mrg_rxbuf=0,in_order=1",
    "packed_vq=1,mrg_rxbuf=1,in_order=0",
    "packed_vq=1,mrg_rxbuf=0,in_order=0",
    "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
    "packed_vq=1,mrg_rxbuf=0,in_order=0,vectorized=1",
];

/// Buffers of 512 bytes less the headroom of 128, so 1,400 bytes take four of them.
const SMALL_BUFFERS: [&str; 4] = ["--mbuf-size=512", "--enable-scatter", "--tx-offloads=0x8000", "--max-pkt-len=1518"];

/// Buffers of 256 bytes less the headroom of 128, for packed rings: DPDK has to send a frame in eight pieces at least there.
///
/// Up to seven pieces it puts into an indirect table, whose first entry, the header, it marks as one for the device to write: it sets
/// `VIRTQ_DESC_F_WRITE` in every entry when it makes the tables, and leaves it in the first (`virtqueue_txq_indirect_header_init_packed` in
/// DPDK 26.11-rc0, `virtio_init_queue` in 22.11). Such a buffer is none to send from (virtio 1.2, section 2.8.7), so weft refuses the
/// frame. More pieces are a chain in the ring itself, which is right.
///
/// A frame takes up to twelve places of a ring, of which testpmd uses half unless it is told to use all.
const TINY_BUFFERS: [&str; 6] =
    ["--mbuf-size=256", "--enable-scatter", "--tx-offloads=0x8000", "--max-pkt-len=1518", "--rxd=1024", "--txd=1024"];
/// The first of these takes 128 bytes of a frame and the others 140, for they have no header in front.
const TINY_BUFFERS_SHORTEST: usize = 128 + 6 * 140 + 1;

/// What Ethernet allows, without the FCS.
const SHORTEST: usize = 60;
const LONGEST: usize = 1514;

/// How many frames are on their way to the echo and back at a time. With as many that were delivered and whose buffers are still to
/// come back, of twelve pieces each, they fit into a ring.
const ECHO_WINDOW: u64 = 32;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    /// weft listens, the guest connects.
    Server,
    /// weft connects, the guest listens.
    Client,
}

#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn no_frame_is_lost_in_a_closed_loop_where_weft_listens() {
    for layout in LAYOUTS {
        assert_closed_loop(Side::Server, layout, &[], None);
    }
}

#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn no_frame_is_lost_in_a_closed_loop_where_weft_connects() {
    for layout in LAYOUTS {
        assert_closed_loop(Side::Client, layout, &[], None);
    }
}

#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn no_frame_is_lost_in_a_closed_loop_of_packed_rings() {
    for layout in PACKED_LAYOUTS {
        assert_closed_loop(Side::Server, layout, &[], None);
    }
    assert_closed_loop(Side::Client, PACKED_LAYOUTS[0], &[], None);
}

/// Small receive buffers and frames of several segments: chains and indirect tables one way, merged buffers the other.
#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn no_frame_is_lost_when_it_takes_several_buffers() {
    for in_order in [1, 0] {
        let layout = format!("mrg_rxbuf=1,in_order={in_order}");
        assert_closed_loop(Side::Server, &layout, &SMALL_BUFFERS, Some("100,300,300,300,300,100"));
    }
    // The receive buffers hold a whole frame here, only what is sent is in pieces.
    assert_closed_loop(Side::Server, "mrg_rxbuf=0", &["--tx-offloads=0x8000"], Some("64,200,1000"));
}

/// The same with packed rings: see [`TINY_BUFFERS`].
#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn no_frame_is_lost_when_it_takes_several_packed_buffers() {
    for in_order in [1, 0] {
        let layout = format!("packed_vq=1,mrg_rxbuf=1,in_order={in_order}");
        assert_closed_loop(Side::Server, &layout, &TINY_BUFFERS, Some("60,120,120,120,120,120,120,120,120,120"));
    }
}

#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn every_byte_comes_back_where_weft_listens() {
    for layout in LAYOUTS {
        assert_echo(Side::Server, layout, &[]);
    }
}

#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn every_byte_comes_back_where_weft_connects() {
    for layout in LAYOUTS {
        assert_echo(Side::Client, layout, &[]);
    }
}

#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn every_byte_comes_back_over_packed_rings() {
    for layout in PACKED_LAYOUTS {
        assert_echo(Side::Server, layout, &[]);
    }
    assert_echo(Side::Client, PACKED_LAYOUTS[0], &[]);
}

/// testpmd receives into small buffers and sends what it received, piece by piece: merged buffers to it, chains from it.
#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn every_byte_comes_back_when_it_takes_several_buffers() {
    for in_order in [1, 0] {
        assert_echo(Side::Server, &format!("mrg_rxbuf=1,in_order={in_order}"), &SMALL_BUFFERS);
    }
}

/// The same with packed rings: see [`TINY_BUFFERS`].
#[test]
#[ignore = "needs DPDK: ./test runs it"]
fn every_byte_comes_back_when_it_takes_several_packed_buffers() {
    for in_order in [1, 0] {
        let layout = format!("packed_vq=1,mrg_rxbuf=1,in_order={in_order}");
        assert_echo_of(TINY_BUFFERS_SHORTEST, Side::Server, &layout, &TINY_BUFFERS);
    }
}

/// Sends noise of every length to a testpmd that sends it back, and compares.
fn assert_echo(side: Side, layout: &str, args: &[&str]) {
    assert_echo_of(SHORTEST, side, layout, args);
}

/// The same with noise of every length from `shortest` on.
fn assert_echo_of(shortest: usize, side: Side, layout: &str, args: &[&str]) {
    let frames = frames_for(layout);
    let weft = Weft::start();
    // What comes is compared, and weft's own questions about groups are none of it.
    weft.cli(&["network", "set", "default", "--multicast", "flood"]);
    let echo = match side {
        Side::Server => VirtioUser::new(&weft.socket("vm2"), MAC2).options(layout),
        Side::Client => VirtioUser::new(&weft.add_client_port("vm9"), MAC2).options(layout).listens(),
    };
    let mut testpmd = Testpmd::start(&[echo], &[&["--forward-mode=macswap", "--port-topology=loop"], args].concat());
    testpmd.command("start");
    let mut guest = Guest::builder(weft.socket("vm1"))
        .order(Order::VirtioUser)
        .features(features_for(layout))
        .connect()
        .expect("weft takes a guest on vm1");

    let noise = Noise::new(shortest);
    // From our side, too, frames come in every legal cut. The header has 12 bytes.
    let shapes =
        [Shape::one(), Shape::header_apart(12), Shape::pieces(&[12, 14, 1, 30]), Shape::pieces(&[7, 30, 1, 1]).indirect()];
    let (mut sent, mut received) = (0_u64, 0_u64);
    let mut frame = Vec::new();
    let start = Instant::now();
    while received < frames {
        // Never more under way than the smallest ring on the way takes at once.
        while sent < frames && sent - received < ECHO_WINDOW {
            noise.frame(sent, MAC2, MAC1, &mut frame);
            let shape = &shapes[usize::try_from(sent % 4).expect("less than four")];
            guest.send_shaped(&frame, shape).expect("weft takes frames");
            sent += 1;
        }
        let came = guest.receive(Duration::from_secs(5)).expect("weft hands over whole frames");
        let Some(came) = came else {
            panic!("{side:?}, {layout}: frame {received} of {sent} sent was lost\n{}\nweft:\n{}", testpmd.log(), weft.log());
        };
        noise.frame(received, MAC1, MAC2, &mut frame);
        assert!(came == frame, "{side:?}, {layout}: frame {received} came back as\n{came:02x?}\ninstead of\n{frame:02x?}");
        received += 1;
    }
    println!("{side:?}, {layout}: {frames} frames compared in {:?}", start.elapsed());
    assert!(guest.receive(Duration::ZERO).expect("the ring is sound").is_none(), "{side:?}, {layout}: a frame came twice");
    let stats = testpmd.drain()[0];
    assert_eq!((stats.received, stats.sent, stats.errors), (frames, frames, 0), "{side:?}, {layout}: {}", testpmd.log());
}

/// Bytes without a pattern, the same in every run: a piece that is misplaced, repeated or left out can't look right.
struct Noise {
    bytes: Vec<u8>,
    shortest: usize,
}

impl Noise {
    /// Frames of all lengths that Ethernet has from `shortest` on.
    fn new(shortest: usize) -> Self {
        // xorshift64, from a fixed seed.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Noise { bytes: bytes.take(8192).flatten().collect(), shortest }
    }

    /// Frame `number`: its own length and content, numbered.
    fn frame(&self, number: u64, to: &str, from: &str, frame: &mut Vec<u8>) {
        let step = usize::try_from(number % 65_521).expect("less than 2^16");
        // In an order that mixes long and short; 337 is a prime.
        let len = self.shortest + step * 337 % (LONGEST + 1 - self.shortest);
        let at = step * 31 % (self.bytes.len() - 2048);
        frame.clear();
        frame.extend(mac_bytes(to));
        frame.extend(mac_bytes(from));
        // An EtherType that is set aside for experiments.
        frame.extend([0x88, 0xb5]);
        frame.extend(number.to_be_bytes());
        frame.extend_from_slice(&self.bytes[at..at + len - frame.len()]);
    }
}

fn mac_bytes(mac: &str) -> impl Iterator<Item = u8> + '_ {
    mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("an address in hexadecimal"))
}

fn frames_for(layout: &str) -> u64 {
    let frames = std::env::var("WEFT_FRAMES")
        .map_or(FRAMES_DEFAULT, |text| text.parse().unwrap_or_else(|_| panic!("WEFT_FRAMES is {text:?}, not a number")));
    if is_packed(layout) { frames / PACKED_SHARE } else { frames }
}

/// What our own guest takes, to talk with one of this layout: the same kind of rings.
fn features_for(layout: &str) -> u64 {
    let in_order = if layout.contains("in_order=1") { feature::IN_ORDER } else { 0 };
    if is_packed(layout) { feature::DEFAULT | feature::RING_PACKED | in_order } else { feature::DEFAULT }
}

fn is_packed(layout: &str) -> bool {
    layout.contains("packed_vq=1")
}

/// Sends frames round between two ports of one testpmd until enough have gone by, then counts what is missing.
fn assert_closed_loop(side: Side, layout: &str, args: &[&str], segments: Option<&str>) {
    let frames = frames_for(layout);
    let weft = Weft::start();
    // What comes is compared, and weft's own questions about groups are none of it.
    weft.cli(&["network", "set", "default", "--multicast", "flood"]);
    let frame_len: u64 = segments.map_or(64, |list| list.split(',').map(|len| len.parse::<u64>().expect("a length")).sum());
    let ports = match side {
        Side::Server => {
            [("vm1", MAC1), ("vm2", MAC2)].map(|(port, mac)| VirtioUser::new(&weft.socket(port), mac).options(layout))
        }
        Side::Client => [("vm8", MAC1), ("vm9", MAC2)]
            .map(|(port, mac)| VirtioUser::new(&weft.add_client_port(port), mac).options(layout).listens()),
    };
    // Whatever arrives on one port leaves on the other, with that port's own address and its peer's: a circle each way.
    let mut testpmd = Testpmd::start(&ports, &[&["--forward-mode=mac"], args].concat());
    testpmd.command(&format!("set eth-peer 0 {MAC2}"));
    testpmd.command(&format!("set eth-peer 1 {MAC1}"));
    if let Some(segments) = segments {
        testpmd.command(&format!("set txpkts {segments}"));
    }
    let start = Instant::now();
    // So many bursts of 32 from each side stay in circulation. That never fills a ring, not even while senders still wait for what was
    // delivered already, so nothing has a reason to be lost.
    let bursts = if args == TINY_BUFFERS { 1 } else { 4 };
    testpmd.command(&format!("start tx_first {bursts}"));
    testpmd.await_received(frames, Duration::from_secs(600));
    let took = start.elapsed();
    let [one, two]: [PortStats; 2] = testpmd.drain().try_into().expect("two ports");

    println!("{side:?}, {layout}: {} frames in {took:?}", one.received + two.received);
    assert_eq!(one.sent_bytes, one.sent * frame_len, "{side:?}, {layout}: the frames have another size than asked for");
    assert_eq!(one.errors + two.errors, 0, "{side:?}, {layout}: errors\n{}", testpmd.log());
    assert_eq!(
        [two.received, two.received_bytes, one.received, one.received_bytes],
        [one.sent, one.sent_bytes, two.sent, two.sent_bytes],
        "{side:?}, {layout}: frames and bytes received against sent\n{}\nweft:\n{}",
        testpmd.log(),
        weft.log()
    );
}
