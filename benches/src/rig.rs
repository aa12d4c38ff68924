//! A switch whose worker the caller runs, with guests that cost next to nothing: what one frame costs, apart from clocks, caches
//! and whatever else the machine does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, ScopedJoinHandle};
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};
use tempfile::TempDir;
use weft_dataplane::{Dataplane, DataplaneError, HandWorker, PortSettings, SocketRole};
use weft_guest::{Guest, GuestError, PreparedReceive, PreparedSend, feature};
use weft_switch::{FdbSettings, MacAddr};

use crate::load::{frame, station};

/// The token of the owner's waker.
const WAKE: Token = Token(0);
/// Descriptors of each ring, and so the most frames between two calls of [`Rig::renew`].
pub const RING_SIZE: u16 = 1024;
/// Bytes of a receive buffer.
const BUFFER_LEN: u32 = 2048;

/// What is to be forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes of a frame, without FCS.
    pub frame_len: usize,
    /// Stations behind each port.
    pub stations: u16,
    /// Features that the guests negotiate, beside `VERSION_1`.
    pub features: u64,
}

/// Two guests on a switch; the first sends, the second receives.
pub struct Rig {
    worker: HandWorker,
    guests: [Guest; 2],
    send: PreparedSend,
    receive: PreparedReceive,
    owner: Owner,
}

/// The thread that owns the dataplane, and the directory of its sockets.
struct Owner {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    sockets: TempDir,
}

/// Why there is no rig.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The switch refused.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// A guest and the switch don't understand each other.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl Rig {
    /// Starts a switch with two ports and a guest on each. Every station is learned.
    ///
    /// # Errors
    /// When the operating system or the switch refuses something.
    pub fn new(load: &Load) -> Result<Self, RigError> {
        let (owner, mut worker) = Owner::start()?;
        let (guests, send, receive) = polled(&mut worker, || plug_in(&owner, load))?;
        Ok(Self { worker, guests, send, receive, owner })
    }

    /// Offers this many frames, as far as the ring has room.
    ///
    /// # Errors
    /// When the switch broke the ring.
    pub fn offer(&mut self, count: u16) -> Result<u16, RigError> {
        Ok(self.send.send(&mut self.guests[0], count)?)
    }

    /// One round of the worker: up to 32 frames. True if one moved.
    pub fn poll(&mut self) -> bool {
        self.worker.poll()
    }

    /// Takes what has arrived and offers the buffers again.
    ///
    /// # Errors
    /// When the switch broke the ring.
    pub fn take(&mut self) -> Result<u16, RigError> {
        Ok(self.receive.receive(&mut self.guests[1])?)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let Self { worker, owner, .. } = self;
        owner.stop.store(true, Ordering::Relaxed);
        let Some(thread) = owner.thread.take() else { return };
        // Without the wake-up it ends when its next tick is due.
        let _ = owner.waker.wake();
        // Ports leave only when the worker has seen it.
        while !thread.is_finished() {
            worker.poll();
        }
        // It has nothing to say, and a panic has been printed.
        let _ = thread.join();
    }
}

impl Owner {
    fn start() -> Result<(Self, HandWorker), RigError> {
        let sockets = tempfile::tempdir()?;
        let mut poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let (mut dataplane, mut worker) = Dataplane::start_by_hand(poll.registry())?;
        polled(&mut worker, || {
            let settings = FdbSettings { capacity: 16_384, ageing: Duration::from_secs(300) };
            let network = dataplane.add_network(settings)?;
            for number in 0..2 {
                dataplane.add_port(PortSettings {
                    name: format!("guest{number}"),
                    network,
                    socket: sockets.path().join(number.to_string()),
                    role: SocketRole::Server,
                    queue_pairs: 1,
                    mac: MacAddr(station(number, 0)),
                    mtu: 1500,
                })?;
            }
            Ok::<_, RigError>(())
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_capacity(16);
            while !stopped.load(Ordering::Relaxed) {
                let due = dataplane.tick();
                if poll.poll(&mut events, Some(due)).is_ok() {
                    events.iter().filter(|event| event.token() != WAKE).for_each(|event| dataplane.handle(event));
                }
            }
        });
        Ok((Self { stop, waker, thread: Some(thread), sockets }, worker))
    }
}

/// Runs something that waits for the worker, while another thread polls it.
fn polled<T, E: From<RigError>>(worker: &mut HandWorker, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let poller: ScopedJoinHandle<'_, ()> = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                worker.poll();
                std::thread::yield_now();
            }
        });
        let result = act();
        done.store(true, Ordering::Relaxed);
        // A panic has been printed, and what hangs on it fails next.
        let _ = poller.join();
        result
    })
}

fn plug_in(owner: &Owner, load: &Load) -> Result<([Guest; 2], PreparedSend, PreparedReceive), RigError> {
    let connect = |number: usize| {
        let builder = Guest::builder(owner.sockets.path().join(number.to_string())).ring_size(RING_SIZE).receive_buffers(0);
        builder.features(feature::VERSION_1 | load.features).connect()
    };
    let mut guests = [connect(0)?, connect(1)?];
    for (from, to) in [(0, 1), (1, 0)] {
        for number in 0..load.stations {
            guests[from].send(&frame(station(to, 0), station(from, number), load.frame_len))?;
        }
        guests[from].flush()?;
    }
    for guest in &mut guests {
        guest.stop()?;
        guest.reset()?;
        (0..2).try_for_each(|ring| guest.start_ring(ring))?;
        guest.session().features()?;
    }
    let send = PreparedSend::new(&mut guests[0], &frame(station(1, 0), station(0, 0), load.frame_len));
    for slot in 0..RING_SIZE {
        let at = PreparedSend::frame_address(&guests[0], slot);
        let number = slot % load.stations;
        guests[0].memory().write(at, &[station(1, number), station(0, number)].concat());
    }
    let receive = PreparedReceive::new(&mut guests[1], BUFFER_LEN)?;
    Ok((guests, send, receive))
}
