//! The guest against a back-end that others wrote: `vhost-user-backend` and `virtio-queue`, as an echo.
//!
//! If the guest and weft agreed on the same mistake, tests between the two would not see it. This back-end shares no
//! code with either. It only speaks the order of virtio-user.

use std::io::{Read, Result, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
use weft_guest::{Guest, Order, Shape, feature};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

const SECOND: Duration = Duration::from_secs(1);

/// Sends every frame back to where it came from.
struct Echo {
    memory: Option<Memory>,
    features: u64,
    event_idx: bool,
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
}

impl Echo {
    fn new() -> Self {
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).unwrap();
        Self { memory: None, features: 0, event_idx: false, exit: Mutex::new(Some(exit)) }
    }

    fn header_len(&self) -> usize {
        if self.features & (feature::VERSION_1 | feature::MRG_RXBUF) != 0 { 12 } else { 10 }
    }

    fn echo(&self, vrings: &[VringRwLock]) {
        let memory = self.memory.as_ref().unwrap().memory();
        let (to_guest, from_guest) = (&vrings[0], &vrings[1]);
        loop {
            let chain = from_guest.get_mut().get_queue_mut().iter(memory.clone()).unwrap().next();
            let Some(chain) = chain else { break };
            let head = chain.head_index();
            let mut bytes = Vec::new();
            chain.reader(&memory).unwrap().read_to_end(&mut bytes).unwrap();
            from_guest.add_used(head, 0).unwrap();
            self.answer(to_guest, &mut bytes);
        }
        for vring in [from_guest, to_guest] {
            if vring.needs_notification().unwrap() {
                vring.signal_used_queue().unwrap();
            }
        }
    }

    /// Writes the frame into as many receive chains as it takes.
    fn answer(&self, to_guest: &VringRwLock, bytes: &mut [u8]) {
        let memory = self.memory.as_ref().unwrap().memory();
        let mut vring = to_guest.get_mut();
        let queue = vring.get_queue_mut();
        let mut chains = Vec::new();
        let mut room = 0;
        while room < bytes.len() {
            let chain = queue.iter(memory.clone()).unwrap().next().expect("a receive buffer");
            let writer = chain.clone().writer(&memory).unwrap();
            room += writer.available_bytes();
            chains.push((chain.head_index(), writer));
        }
        if self.header_len() == 12 {
            bytes[10..12].copy_from_slice(&u16::try_from(chains.len()).unwrap().to_le_bytes());
        }
        let mut at = 0;
        let mut used = Vec::new();
        for (head, mut writer) in chains {
            let part = writer.available_bytes().min(bytes.len() - at);
            writer.write_all(&bytes[at..at + part]).unwrap();
            at += part;
            used.push((head, u32::try_from(part).unwrap()));
        }
        for (head, len) in used {
            vring.add_used(head, len).unwrap();
        }
    }
}

impl VhostUserBackendMut for Echo {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        feature::DEFAULT | feature::PROTOCOL_FEATURES
    }

    fn acked_features(&mut self, features: u64) {
        self.features = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn update_memory(&mut self, memory: Memory) -> Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.lock().unwrap().take()
    }

    fn handle_event(&mut self, event: u16, _events: EventSet, vrings: &[VringRwLock], _thread: usize) -> Result<()> {
        if event == 1 {
            loop {
                vrings[1].disable_notification().unwrap();
                self.echo(vrings);
                if !vrings[1].enable_notification().unwrap() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// The echo on a socket of its own; gone when the guest hangs up.
struct EchoServer {
    directory: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("echo.sock");
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut listener = vhost::vhost_user::Listener::new(&path, true).unwrap();
        let mut daemon = VhostUserDaemon::new("echo".to_owned(), Arc::new(std::sync::RwLock::new(Echo::new())), memory).unwrap();
        let thread = std::thread::spawn(move || {
            daemon.start(&mut listener).unwrap();
            // The guest going away is how every test ends.
            daemon.wait().ok();
        });
        Self { directory, thread: Some(thread) }
    }

    fn path(&self) -> std::path::PathBuf {
        Path::join(self.directory.path(), "echo.sock")
    }

    fn stop(mut self, guest: Guest) {
        drop(guest);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn connect(server: &EchoServer, features: u64) -> Guest {
    Guest::builder(server.path()).order(Order::VirtioUser).features(features).connect().unwrap()
}

#[test]
fn every_feature_combination_echoes_every_size() {
    for combination in 0..16_u64 {
        let mut features = 0;
        for (bit, feature) in
            [feature::VERSION_1, feature::MRG_RXBUF, feature::INDIRECT_DESC, feature::EVENT_IDX].into_iter().enumerate()
        {
            features |= if combination >> bit & 1 == 1 { feature } else { 0 };
        }
        let server = EchoServer::start();
        let mut guest = connect(&server, features);
        for len in [14, 60, 1514, 9000, 65_535] {
            guest.send(&frame(len)).unwrap();
            let received = guest.receive(SECOND).unwrap();
            assert_eq!(received.as_deref(), Some(&*frame(len)), "{len} bytes with features {features:#x}");
        }
        guest.flush().unwrap();
        server.stop(guest);
    }
}

#[test]
fn frames_may_be_cut_in_any_way() {
    let server = EchoServer::start();
    let mut guest = connect(&server, feature::DEFAULT);
    let every_byte = vec![1; 72];
    for shape in [Shape::header_apart(12), Shape::pieces(&[5, 4, 3]), Shape::pieces(&every_byte), Shape::pieces(&[13, 700])] {
        for shape in [shape.clone(), shape.indirect()] {
            guest.send_shaped(&frame(1000), &shape).unwrap();
            assert_eq!(guest.receive(SECOND).unwrap().as_deref(), Some(&*frame(1000)), "{shape:?}");
        }
    }
    for used in guest.flush().unwrap() {
        assert_eq!(used.len, 0);
    }
    server.stop(guest);
}

#[test]
fn a_large_frame_comes_in_as_many_buffers_as_it_fills() {
    let server = EchoServer::start();
    let mut guest = connect(&server, feature::DEFAULT);
    guest.send(&frame(5000)).unwrap();
    let received = guest.receive_whole(SECOND).unwrap().unwrap();
    assert_eq!(received.header.num_buffers, 3);
    assert_eq!(received.chains.iter().map(|used| used.len).collect::<Vec<_>>(), [2048, 2048, 12 + 5000 - 4096]);
    server.stop(guest);
}

#[test]
fn many_more_frames_than_descriptors_go_round() {
    let server = EchoServer::start();
    let mut guest = connect(&server, feature::DEFAULT);
    for round in 0..2000_u32 {
        let mut sent = frame(64);
        sent[..4].copy_from_slice(&round.to_le_bytes());
        guest.send(&sent).unwrap();
        assert_eq!(guest.receive(SECOND).unwrap(), Some(sent));
    }
    server.stop(guest);
}

#[test]
fn a_stopped_ring_gives_the_index_where_it_goes_on() {
    let server = EchoServer::start();
    let mut guest = connect(&server, feature::DEFAULT);
    for _ in 0..300 {
        guest.send(&frame(60)).unwrap();
        guest.receive(SECOND).unwrap().unwrap();
    }
    guest.flush().unwrap();
    assert_eq!(guest.session().vring_base(1).unwrap(), 300);
    assert_eq!(guest.session().vring_base(0).unwrap(), 300);
    server.stop(guest);
}

#[test]
fn prepared_rings_move_frames_by_their_indexes_alone() {
    let server = EchoServer::start();
    let mut guest = Guest::builder(server.path()).order(Order::VirtioUser).receive_buffers(0).connect().unwrap();
    let mut receiver = weft_guest::PreparedReceive::new(&mut guest, 2048).unwrap();
    let mut sender = weft_guest::PreparedSend::new(&mut guest, &frame(60));
    let (mut sent, mut received) = (0_u32, 0_u32);
    let deadline = std::time::Instant::now() + 10 * SECOND;
    while received < 3000 {
        assert!(std::time::Instant::now() < deadline, "{sent} sent, {received} came back");
        if sent - received < 64 {
            sent += u32::from(sender.send(&mut guest, 32).unwrap());
        }
        received += u32::from(receiver.receive(&mut guest).unwrap());
    }
    server.stop(guest);
}

#[test]
fn a_session_that_breaks_the_protocol_is_closed() {
    let server = EchoServer::start();
    let mut guest = Guest::builder(server.path()).build().unwrap();
    guest.open().unwrap();
    guest.session().send_bytes(&[0xff; 12], &[]).unwrap();
    assert!(guest.session().is_closed_within(5 * SECOND).unwrap());
    server.stop(guest);
}
