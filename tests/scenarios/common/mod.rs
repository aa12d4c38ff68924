//! A switch in this process: the dataplane on a thread of its own, as the daemon drives it, and guests on real sockets.
#![allow(dead_code, reason = "every scenario takes the part of it that it needs")]

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};
use weft_dataplane::{Dataplane, DataplaneError, PortSettings, PortState, PortStatus, SocketRole, Trace, WorkerSettings};
use weft_guest::{Builder, Guest, Order, feature};
use weft_switch::guard::Protections;
use weft_switch::loops::is_probe;
use weft_switch::{DropReason, FdbSettings, MacAddr, NetworkId, PortId};

/// The longest that anything here is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// Long enough for a frame that should come, on a machine with more work than cores.
pub(crate) const SOON: Duration = Duration::from_secs(2);
/// EtherType for local experiments (IEEE 802-2014, 9.2.4).
pub(crate) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

const WAKE: Token = Token(0);

type Command = Box<dyn FnOnce(&mut Dataplane) + Send>;

/// A running switch with one network. Everything is undone when it is dropped.
pub(crate) struct TestSwitch {
    commands: Option<Sender<Command>>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
    network: NetworkId,
    ports: AtomicU16,
}

/// A port of a test switch.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) id: PortId,
    pub(crate) path: PathBuf,
    pub(crate) mac: MacAddr,
}

impl TestSwitch {
    pub(crate) fn start() -> Self {
        Self::start_with(&WorkerSettings::default())
    }

    pub(crate) fn start_with(workers: &WorkerSettings) -> Self {
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).unwrap());
        let mut dataplane = Dataplane::start(poll.registry(), workers).unwrap();
        let network = dataplane.add_network(FDB).unwrap();
        let (commands, inbox) = channel::<Command>();
        let thread = std::thread::Builder::new().name("switch".to_owned()).spawn(move || {
            let mut events = Events::with_capacity(64);
            loop {
                let pause = dataplane.tick();
                match poll.poll(&mut events, Some(pause)) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    outcome => outcome.unwrap(),
                }
                for event in &events {
                    if event.token() != WAKE {
                        dataplane.handle(event);
                    }
                }
                loop {
                    match inbox.try_recv() {
                        Ok(command) => command(&mut dataplane),
                        Err(std::sync::mpsc::TryRecvError::Empty) => break,
                        Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                    }
                }
            }
        });
        let directory = tempfile::tempdir().unwrap();
        Self { commands: Some(commands), waker, thread: Some(thread.unwrap()), directory, network, ports: AtomicU16::new(0) }
    }

    /// What would become of a frame that the guest on a port sends.
    pub(crate) fn trace(&self, port: PortId, frame: &[u8]) -> Trace {
        let frame = frame.to_vec();
        self.with(move |dataplane| dataplane.trace(port, &frame, &|id| format!("{id:?}"))).unwrap()
    }

    /// Runs something on the thread that owns the dataplane.
    pub(crate) fn with<T: Send + 'static>(&self, action: impl FnOnce(&mut Dataplane) -> T + Send + 'static) -> T {
        let (reply, answer) = channel();
        let command = Box::new(move |dataplane: &mut Dataplane| {
            reply.send(action(dataplane)).ok();
        });
        self.commands.as_ref().unwrap().send(command).expect("the switch runs");
        self.waker.wake().unwrap();
        answer.recv_timeout(4 * LIMIT).expect("the switch answers")
    }

    pub(crate) fn network(&self) -> NetworkId {
        self.network
    }

    pub(crate) fn add_network(&self) -> NetworkId {
        self.with(|dataplane| dataplane.add_network(FDB)).unwrap()
    }

    /// What a port on this switch's first network is made of; each call gives another socket and MAC address.
    pub(crate) fn settings(&self) -> PortSettings {
        let nth = self.ports.fetch_add(1, Ordering::Relaxed) + 1;
        PortSettings {
            name: format!("vm{nth}"),
            network: self.network,
            vlan: None,
            protections: Protections::NONE,
            lines: weft_switch::line::Lines::NONE,
            socket: self.directory.path().join(format!("vm{nth}.sock")),
            role: SocketRole::Server,
            queue_pairs: 1,
            mac: MacAddr(mac(nth)),
            mtu: 1500,
        }
    }

    pub(crate) fn try_add(&self, settings: PortSettings) -> Result<Port, DataplaneError> {
        let (path, mac) = (settings.socket.clone(), settings.mac);
        let id = self.with(move |dataplane| dataplane.add_port(settings))?;
        Ok(Port { id, path, mac })
    }

    pub(crate) fn add(&self, settings: PortSettings) -> Port {
        self.try_add(settings).unwrap()
    }

    pub(crate) fn add_port(&self) -> Port {
        self.add(self.settings())
    }

    pub(crate) fn add_port_on(&self, network: NetworkId) -> Port {
        self.add(PortSettings { network, ..self.settings() })
    }

    pub(crate) fn remove(&self, port: &Port) {
        let id = port.id;
        self.with(move |dataplane| dataplane.remove_port(id)).unwrap();
    }

    /// A new port with a guest on it that the builder was told about, running.
    pub(crate) fn guest(&self, shape: impl FnOnce(Builder) -> Builder) -> (Port, Guest) {
        let port = self.add_port();
        let guest = self.connect(&port, shape);
        (port, guest)
    }

    /// Connects a guest to a port and waits until frames can pass.
    pub(crate) fn connect(&self, port: &Port, shape: impl FnOnce(Builder) -> Builder) -> Guest {
        let guest = shape(Guest::builder(&port.path)).connect().unwrap();
        self.wait_up(port);
        guest
    }

    pub(crate) fn status(&self, port: &Port) -> PortStatus {
        let id = port.id;
        self.with(move |dataplane| dataplane.port_status(id)).expect("the port is there")
    }

    pub(crate) fn drops(&self, port: &Port, reason: DropReason) -> u64 {
        self.status(port).counters.drops.iter().find(|(name, _)| *name == reason).map_or(0, |(_, count)| *count)
    }

    /// All drops of a port that are not zero.
    pub(crate) fn all_drops(&self, port: &Port) -> Vec<(DropReason, u64)> {
        self.status(port).counters.drops.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Waits until a port's drops under one reason are `count`, and asserts that they get no further.
    #[track_caller]
    pub(crate) fn expect_drops(&self, port: &Port, reason: DropReason, count: u64) {
        let reached = eventually(|| self.drops(port, reason) >= count);
        assert!(
            reached && self.drops(port, reason) == count,
            "{reason:?} should be {count}; drops are {:?}",
            self.all_drops(port)
        );
    }

    #[track_caller]
    pub(crate) fn wait_status(&self, port: &Port, what: &str, condition: impl Fn(&PortStatus) -> bool) -> PortStatus {
        assert!(eventually(|| condition(&self.status(port))), "{what} did not happen: {:?}", self.status(port));
        self.status(port)
    }

    #[track_caller]
    pub(crate) fn wait_up(&self, port: &Port) {
        self.wait_status(port, "the port coming up", |status| status.state == PortState::Up);
    }

    #[track_caller]
    pub(crate) fn wait_listening(&self, port: &Port) -> PortStatus {
        self.wait_status(port, "the port listening again", |status| status.state == PortState::Listening)
    }

    /// The port behind which a station was last heard.
    pub(crate) fn station(&self, mac: [u8; 6]) -> Option<PortId> {
        let network = self.network;
        let entries = self.with(move |dataplane| dataplane.fdb(network));
        entries.into_iter().find(|(_, entry)| entry.mac == MacAddr(mac)).map(|(_, entry)| entry.port)
    }

    /// Waits until every worker sleeps, so that its rings are armed.
    #[track_caller]
    pub(crate) fn wait_asleep(&self) {
        let sleeping = || {
            let workers = self.with(|dataplane| dataplane.worker_status());
            workers.iter().all(|worker| worker.asleep).then(|| workers.iter().map(|worker| worker.rounds).sum::<u64>())
        };
        // A kick that is under way still shows the worker asleep: so it is looked at twice, a while apart.
        let asleep = eventually(|| {
            let before = sleeping();
            std::thread::sleep(Duration::from_millis(5));
            before.is_some() && sleeping() == before
        });
        assert!(asleep, "the workers never went to sleep");
    }
}

impl Drop for TestSwitch {
    fn drop(&mut self) {
        self.commands = None;
        self.waker.wake().ok();
        let outcome = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            outcome.expect("the switch ran").expect("the switch did not panic");
        }
    }
}

const FDB: FdbSettings = FdbSettings::new(16_384, Duration::from_secs(300));

/// The n-th station.
pub(crate) fn mac(nth: u16) -> [u8; 6] {
    let [high, low] = nth.to_be_bytes();
    [2, 0, 0, 0, high, low]
}

pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame of `len` bytes whose payload differs from byte to byte.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &ETHERTYPE].concat();
    let start = u8::try_from(len % 256).unwrap();
    frame.extend((0..len.saturating_sub(14)).map(|at| start.wrapping_add(u8::try_from(at % 251).unwrap())));
    frame.truncate(len);
    frame
}

/// A frame with a number in it.
pub(crate) fn numbered(to: [u8; 6], from: [u8; 6], number: u32) -> Vec<u8> {
    let mut frame = frame(to, from, 60);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

/// The number in a frame.
pub(crate) fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes([frame[14], frame[15], frame[16], frame[17]])
}

/// The next frame that was sent by a guest: no probe for loops.
pub(crate) fn receive_traffic(guest: &mut Guest, limit: Duration) -> Option<Vec<u8>> {
    loop {
        let frame = guest.receive(limit).unwrap()?;
        if !is_probe(frame.first_chunk().unwrap()) {
            return Some(frame);
        }
    }
}

/// Asserts that the next frame to come is this one.
#[track_caller]
pub(crate) fn expect_frame(guest: &mut Guest, expected: &[u8]) {
    match guest.receive(SOON).unwrap() {
        None => panic!("a frame of {} bytes did not come", expected.len()),
        Some(frame) => assert_same(&frame, expected),
    }
}

/// Compares frames and names the first difference, not all 65,535 bytes.
#[track_caller]
pub(crate) fn assert_same(frame: &[u8], expected: &[u8]) {
    let difference = frame.iter().zip(expected).position(|(a, b)| a != b);
    assert!(
        frame == expected,
        "got {} bytes for {to:02x?}, expected {} bytes for {for_:02x?}; first difference at {difference:?}",
        frame.len(),
        expected.len(),
        to = &frame[..frame.len().min(14)],
        for_ = &expected[..expected.len().min(14)],
    );
}

/// Sends one frame each way.
#[track_caller]
pub(crate) fn exchange(a: &mut Guest, a_mac: [u8; 6], b: &mut Guest, b_mac: [u8; 6]) {
    let there = frame(b_mac, a_mac, 100);
    a.send(&there).unwrap();
    expect_frame(b, &there);
    let back = frame(a_mac, b_mac, 200);
    b.send(&back).unwrap();
    expect_frame(a, &back);
}

/// Tries a condition again and again until it holds or the time is over.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LIMIT;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Asserts that a value becomes what it should be.
#[track_caller]
#[allow(clippy::needless_pass_by_value, reason = "calls read better without references")]
pub(crate) fn settles<T: PartialEq + Debug>(what: &str, expected: T, value: impl Fn() -> T) {
    assert!(eventually(|| value() == expected), "{what}: expected {expected:?}, it is {:?}", value());
}

/// Asserts that a count goes back to what it was. It may go below: closing takes a while, and some of it may not have been done
/// yet when `before` was taken.
#[track_caller]
pub(crate) fn at_most(what: &str, before: usize, count: impl Fn() -> usize) {
    assert!(eventually(|| count() <= before), "{what}: they were {before} before, they are {}", count());
}

/// What a guest with packed rings takes, without and with `IN_ORDER`.
pub(crate) const PACKED: [u64; 2] =
    [feature::DEFAULT | feature::RING_PACKED, feature::DEFAULT | feature::RING_PACKED | feature::IN_ORDER];
/// The same for every kind of ring: split and packed.
pub(crate) const RINGS: [u64; 4] = [feature::DEFAULT, feature::DEFAULT | feature::IN_ORDER, PACKED[0], PACKED[1]];

/// Both orders of messages.
pub(crate) const ORDERS: [Order; 2] = [Order::Qemu, Order::VirtioUser];

/// Descriptors that this process has open. Only meaningful while [`alone`] is held.
pub(crate) fn open_descriptors() -> usize {
    // The directory that is being read is open too, every time.
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Descriptors that this process watches with epoll, once for each handle on that epoll. One that was closed here counts as
/// long as a guest has it open. Only meaningful while [`alone`] is held.
pub(crate) fn watched_descriptors() -> usize {
    let watched_by = |path: PathBuf| {
        // Whatever is closed while we look was not one of ours that stay.
        let info = std::fs::read_to_string(path).unwrap_or_default();
        info.lines().filter(|line| line.starts_with("tfd:")).count()
    };
    std::fs::read_dir("/proc/self/fdinfo").unwrap().map(|entry| watched_by(entry.unwrap().path())).sum()
}

/// Mappings of guest memory in this process, the guests' own included.
pub(crate) fn guest_mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains("memfd:weft-guest")).count()
}

/// Tests that count what the process holds run one after the other.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that a thread does again and again until it is stopped or dropped.
pub(crate) struct Background<T> {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU32>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Background<T> {
    pub(crate) fn start(mut subject: T, mut action: impl FnMut(&mut T, u32) + Send + 'static) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                action(&mut subject, count.load(Ordering::Relaxed));
                count.fetch_add(1, Ordering::Relaxed);
            }
            subject
        });
        Self { stop, rounds, thread: Some(thread) }
    }

    /// Rounds that are over.
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(mut self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is stopped once");
        thread.join().expect("it went well to the end")
    }
}

impl<T> Drop for Background<T> {
    /// Nothing is left running when a test fails.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn from(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `bound` (SplitMix64).
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}
