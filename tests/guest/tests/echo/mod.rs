//! A back-end that shares no code with weft: `vhost-user-backend` and `virtio-queue`, as an echo. It only speaks the order
//! of virtio-user.

use std::io::{Read, Result, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
use weft_guest::{Guest, feature};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The echo on a socket of its own; gone when the guest hangs up.
pub(crate) struct EchoServer {
    directory: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("echo.sock");
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut listener = vhost::vhost_user::Listener::new(&path, true).unwrap();
        let mut daemon = VhostUserDaemon::new("echo".to_owned(), Arc::new(RwLock::new(Echo::new())), memory).unwrap();
        let thread = std::thread::spawn(move || {
            daemon.start(&mut listener).unwrap();
            // The guest going away is how every test ends.
            daemon.wait().ok();
        });
        Self { directory, thread: Some(thread) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::join(self.directory.path(), "echo.sock")
    }

    pub(crate) fn stop(mut self, guest: Guest) {
        drop(guest);
        self.thread.take().unwrap().join().unwrap();
    }
}

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
