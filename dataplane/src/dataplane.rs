//! The dataplane as its owner sees it: networks and ports come and go, and everything about them can be asked.
//!
//! One thread owns a [`Dataplane`] and drives it from its own `mio` loop: [`Dataplane::handle`] for events with
//! tokens from [`Dataplane::FIRST_TOKEN`] on, [`Dataplane::tick`] when the time that it last returned has passed.
//! The workers run beside it and never wait for it.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::Receiver;
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use vmm_sys_util::eventfd::EventFd;
use weft_switch::gateway::GatewaySettingsError;
use weft_switch::guard::Protections;
use weft_switch::line::Lines;
use weft_switch::vlan::{PortRole, Vlan, VlanCounters};
use weft_switch::{DropReason, FdbCounters, FdbEntry, MacAddr, NetworkId, PortId, Timestamp};

use crate::endpoint::Endpoint;
use crate::fabric::{Fabric, Network};
use crate::gateway::Mail;
use crate::lane::{Fault, FaultReports};
use crate::loops::Loops;
use crate::port::{Port, Turn};
use crate::tap::Watches;
use crate::worker::{Clock, Worker, WorkerHandle};
use crate::workers::{WorkerSettings, WorkerStuck, Workers};

/// How often old addresses are forgotten.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);
/// How often gateways give up what has waited for too long.
const GATEWAY_INTERVAL: Duration = Duration::from_secs(1);
/// How often the workers are looked after.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// The most queue pairs of a port.
pub(crate) const MAX_QUEUE_PAIRS: usize = 16;

/// What a port is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSettings {
    /// For log lines only.
    pub name: String,
    /// The network that the port is a member of.
    pub network: NetworkId,
    /// What the port is to the network's VLANs. As soon as one port of a network has a role, those without one are access ports of its default VLAN.
    pub vlan: Option<PortRole>,
    /// What its guest may send.
    pub protections: Protections,
    /// What is between it and its guest.
    pub lines: Lines,
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Who listens on the socket.
    pub role: SocketRole,
    /// Queue pairs that the guest may use, 1 to 16.
    pub queue_pairs: u16,
    /// Given to front-ends that read the configuration space.
    pub mac: MacAddr,
    /// Given to front-ends that read the configuration space: largest payload of a frame, in bytes.
    pub mtu: u16,
}

/// Who listens on a port's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRole {
    /// weft listens, the guest connects.
    Server,
    /// The guest listens (`server=on`), weft connects and keeps trying.
    Client,
}

/// How a port is, right now.
#[derive(Clone, Debug)]
pub struct PortStatus {
    /// Where the port stands.
    pub state: PortState,
    /// The last reason why a guest's connection ended, if one ended by itself or by fault: a sentence for a person.
    pub last_stop: Option<String>,
    /// When that was.
    pub last_stop_at: Option<Timestamp>,
    /// How many times a guest has connected.
    pub connections: u64,
    /// Names of the negotiated virtio features; empty before negotiation.
    pub features: Vec<&'static str>,
    /// MTU that the front-end announced with `NET_SET_MTU`, in bytes.
    pub guest_mtu: Option<u16>,
    /// One entry a ring that runs, `from_guest` and `to_guest` apart.
    pub rings: Vec<RingStatus>,
    /// What passed since the port was added.
    pub counters: PortCounters,
    /// The port is paused, because its guest connects it with this one.
    pub loop_with: Option<PortId>,
}

/// Where a port stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum PortState {
    /// Server: waiting for a guest to connect.
    Listening,
    /// Client: trying to reach the guest's socket.
    Connecting,
    /// A front-end is connected; the guest's driver does not run yet.
    Connected,
    /// Frames can pass in both directions.
    Up,
    /// The port took itself out of service (see `last_stop`) and needs `remove` and `add`.
    Stopped,
}

/// One ring that runs.
#[derive(Clone, Debug)]
pub struct RingStatus {
    /// The ring's index in the vhost-user protocol: even ones go to the guest, odd ones come from it.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// Enabled by the front-end.
    pub enabled: bool,
}

/// What passed through a port. Directions are the guest's: `from_guest` is what the guest sent.
#[derive(Clone, Debug, Default)]
pub struct PortCounters {
    /// Frames taken from the guest, dropped ones included.
    pub from_guest_frames: u64,
    /// Their bytes, without virtio-net headers.
    pub from_guest_bytes: u64,
    /// Those of the frames that were for a group, but not for everybody.
    pub from_guest_multicast: u64,
    /// Those for everybody.
    pub from_guest_broadcast: u64,
    /// Frames handed to the guest.
    pub to_guest_frames: u64,
    /// Their bytes, without virtio-net headers.
    pub to_guest_bytes: u64,
    /// Those of the frames that were for a group, but not for everybody. One that had to be cut counts once.
    pub to_guest_multicast: u64,
    /// Those for everybody, in the same way.
    pub to_guest_broadcast: u64,
    /// Interrupts sent to the guest.
    pub notifications: u64,
    /// Every reason, with how many frames died of it here.
    pub drops: Vec<(DropReason, u64)>,
}

/// How a network is, right now.
#[derive(Clone, Debug)]
pub struct NetworkStatus {
    /// MAC addresses in the forwarding database.
    pub fdb_entries: usize,
    /// What the forwarding database did since the network was added.
    pub fdb: FdbCounters,
}

/// What a worker did since it started.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// Rounds over its rings.
    pub rounds: u64,
    /// Rounds in which at least one frame moved.
    pub busy_rounds: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// It sleeps right now, and every guest was asked to kick.
    pub asleep: bool,
    /// The processor that it is pinned to.
    pub cpu: Option<usize>,
    /// Rings from guests that it polls.
    pub rings: usize,
}

/// The dataplane refused something.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// A path is too long for a Unix socket address.
    #[error("socket path {path:?} has {len} bytes; a Unix socket takes at most {max}: use a shorter --run-dir or --socket")]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// The most that fits.
        max: usize,
    },
    /// Somebody listens there already.
    #[error("another process already listens on {path:?}: choose another --socket, or stop that process")]
    SocketTaken {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error("{path:?} exists and is not a socket: choose another --socket, or remove it")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {what} {path:?}: {source}{}", way_out(path, source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A table of the dataplane is full.
    #[error("no more {what} fit: the limit is {limit}; end or remove another first")]
    TooMany {
        /// What.
        what: &'static str,
        /// How many there can be.
        limit: usize,
    },
    /// There must be some of these, but not too many.
    #[error("{given} {what} can't be: choose 1 to {limit}")]
    NumberOutOfRange {
        /// What.
        what: &'static str,
        /// How many were asked for.
        given: usize,
        /// How many there can be.
        limit: usize,
    },
    /// A gateway's settings contradict each other.
    #[error(transparent)]
    Gateway(#[from] GatewaySettingsError),
    /// A NAT needs a descriptor, and there is none.
    #[error("the NAT of a network can't be started: {0}")]
    Nat(std::io::Error),
    /// A worker did not answer in time.
    #[error("{0}: restart weft")]
    WorkerStuck(WorkerStuck),
    /// The dataplane could not be started.
    #[error("cannot start the dataplane: {0}")]
    Start(std::io::Error),
}

/// What to do about an error of the operating system, where that is known: a socket is made, its directory is not.
fn way_out(path: &Path, error: &std::io::Error) -> String {
    match path.parent() {
        Some(directory) if error.kind() == std::io::ErrorKind::NotFound => format!("; create the directory {directory:?} first"),
        _ => String::new(),
    }
}

impl From<WorkerStuck> for DataplaneError {
    fn from(stuck: WorkerStuck) -> Self {
        Self::WorkerStuck(stuck)
    }
}

/// A running switch: its workers, its networks and its ports.
#[derive(Debug)]
pub struct Dataplane {
    pub(crate) fabric: Fabric,
    pub(crate) ports: Vec<Option<Port>>,
    registry: Registry,
    pub(crate) clock: Clock,
    pub(crate) watches: Watches,
    pub(crate) mail: Arc<Mail>,
    faults: Receiver<Fault>,
    /// Raised by whoever has news.
    pub(crate) event: Arc<EventFd>,
    /// Ports that had more to do than their turn allowed.
    unfinished: VecDeque<Task>,
    /// Ports that wait for something; they get their turn with the next news or watch.
    postponed: VecDeque<Task>,
    next_expiry: Timestamp,
    next_gateways: Timestamp,
    next_watch: Timestamp,
    pub(crate) loops: Loops,
    healthy: bool,
}

/// A worker without a thread. See [`Dataplane::start_by_hand`].
#[doc(hidden)]
pub struct HandWorker {
    worker: Worker,
    clock: Clock,
}

impl HandWorker {
    /// One round over the rings: at most one batch from each. True if a frame moved.
    pub fn poll(&mut self) -> bool {
        self.worker.poll_all(self.clock.now())
    }
}

/// What the dataplane does for a port when its socket says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Accept(PortId),
    Serve(PortId),
}

impl Task {
    /// Each port has two tokens, after the one of the fault reports.
    fn token(self) -> Token {
        let offset = match self {
            Self::Accept(port) => 2 * port.index(),
            Self::Serve(port) => 2 * port.index() + 1,
        };
        Token(Dataplane::FIRST_TOKEN + 1 + offset)
    }

    fn of(token: Token) -> Option<Self> {
        let offset = token.0.checked_sub(Dataplane::FIRST_TOKEN + 1)?;
        let port = PortId(u16::try_from(offset / 2).ok()?);
        Some(if offset.is_multiple_of(2) { Self::Accept(port) } else { Self::Serve(port) })
    }
}

impl Dataplane {
    /// Tokens from here on belong to the dataplane; the owner uses smaller ones.
    pub const FIRST_TOKEN: usize = 1 << 32;
    /// The most ports.
    pub const MAX_PORTS: usize = 4096;
    /// The most networks.
    pub const MAX_NETWORKS: usize = 1024;

    /// Starts the workers. Sockets are registered with `registry`.
    ///
    /// # Errors
    /// When the operating system gives no thread or descriptor, or has no such processor for a worker, or the number of workers can't be.
    pub fn start(registry: &Registry, settings: &WorkerSettings) -> Result<Self, DataplaneError> {
        check_number("workers", settings.count, WorkerSettings::MAX_COUNT)?;
        Self::start_with(registry, |clock, reports| Ok((Workers::start(settings, clock, reports)?, ())))
            .map(|(started, ())| started)
    }

    /// Like [`Self::start`], with a worker that the caller runs: for benchmarks that count instructions. While a port
    /// changes, somebody has to poll it.
    ///
    /// # Errors
    /// As those of [`Self::start`].
    #[doc(hidden)]
    pub fn start_by_hand(registry: &Registry) -> Result<(Self, HandWorker), DataplaneError> {
        Self::start_with(registry, |clock, reports| {
            let (workers, mut idle) = Workers::new(&WorkerSettings::default(), clock, reports)?;
            let worker = idle.pop().ok_or(std::io::ErrorKind::NotFound)?;
            Ok((workers, HandWorker { worker, clock }))
        })
    }

    fn start_with<T>(
        registry: &Registry,
        start: impl FnOnce(Clock, &FaultReports) -> std::io::Result<(Workers, T)>,
    ) -> Result<(Self, T), DataplaneError> {
        let failed = DataplaneError::Start;
        crate::sys::install_signal_handlers().map_err(failed)?;
        crate::sys::raise_descriptor_limit();
        let registry = registry.try_clone().map_err(failed)?;
        let event = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(failed)?);
        let token = Token(Self::FIRST_TOKEN);
        registry.register(&mut SourceFd(&event.as_raw_fd()), token, Interest::READABLE).map_err(failed)?;
        let clock = Clock::start();
        let (queue, faults) = crossbeam::channel::unbounded();
        let reports = FaultReports { queue, event: Arc::clone(&event) };
        let (workers, started) = start(clock, &reports).map_err(failed)?;
        let dataplane = Self {
            fabric: Fabric::new(workers),
            ports: Vec::new(),
            registry,
            clock,
            watches: Watches::default(),
            mail: Arc::new(Mail::new(Arc::clone(&event))),
            faults,
            event,
            unfinished: VecDeque::new(),
            postponed: VecDeque::new(),
            next_expiry: clock.now().after(EXPIRY_INTERVAL),
            next_gateways: clock.now().after(GATEWAY_INTERVAL),
            next_watch: clock.now().after(WATCH_INTERVAL),
            loops: Loops::default(),
            healthy: true,
        };
        Ok((dataplane, started))
    }

    /// Adds a port: when this returns, its socket listens (or is being connected to).
    ///
    /// # Errors
    /// When the socket can't be made, there are too many ports, or the number of queue pairs can't be. Nothing is left behind then.
    pub fn add_port(&mut self, settings: PortSettings) -> Result<PortId, DataplaneError> {
        check_number("queue pairs of a port", settings.queue_pairs.into(), MAX_QUEUE_PAIRS)?;
        let limit = Self::MAX_PORTS;
        let place = free_place(&mut self.ports, limit).ok_or(DataplaneError::TooMany { what: "ports", limit })?;
        let id = PortId(place as u16);
        let mut endpoint = Endpoint::open(&settings.socket, settings.role, self.clock.now())?;
        if let Endpoint::Server(listener) = &mut endpoint {
            self.registry
                .register(&mut listener.socket, Task::Accept(id).token(), Interest::READABLE)
                .map_err(|source| DataplaneError::Io { what: "watch", path: settings.socket.clone(), source })?;
        }
        let (network, stations, lines) = (settings.network, settings.protections.stations, settings.lines);
        let mut port = Port::new(id, settings, endpoint, &self.event);
        port.set_lines(&lines, &mut self.fabric);
        if self.fabric.links.len() <= place {
            self.fabric.links.resize(place + 1, None);
        }
        self.fabric.links[place] = Some(port.idle_link());
        self.ports[place] = Some(port);
        self.fabric.limit_stations(network, id, stations);
        self.fabric.divide(network);
        if let Err(stuck) = self.fabric.publish() {
            self.fabric.links[place] = None;
            self.ports[place] = None;
            self.fabric.forget_stations(network, id);
            self.fabric.divide(network);
            return Err(stuck.into());
        }
        Ok(id)
    }

    /// Removes a port: its guest is disconnected, its socket unlinked, what was learned behind it forgotten.
    ///
    /// # Errors
    /// When a worker is stuck; the port is gone all the same.
    pub fn remove_port(&mut self, id: PortId) -> Result<(), DataplaneError> {
        let Some(port) = self.ports.get_mut(id.index()).and_then(Option::take) else {
            return Ok(());
        };
        let is_quiet = self.watches.is_empty();
        self.forget_watched(id);
        let network = port.settings.network;
        let removed = port.remove(&self.registry, &mut self.fabric);
        self.fabric.links[id.index()] = None;
        self.loops.forget(id);
        self.fabric.forget_stations(network, id);
        self.fabric.divide(network);
        // Others may have copied their frames to it.
        let published = if is_quiet { self.fabric.publish().map_err(Into::into) } else { self.connect_watches() };
        if let Some(gateway) = self.fabric.gateway(network) {
            let now = self.clock.now();
            let mut state = gateway.shared.lock();
            state.forget_port(now, id);
            gateway.shared.note_nat(now, &state, false);
        }
        removed.map_err(Into::into).and(published)
    }

    /// How a port is, or `None` if there is no such port.
    #[must_use]
    pub fn port_status(&self, id: PortId) -> Option<PortStatus> {
        let port = self.ports.get(id.index())?.as_ref()?;
        Some(PortStatus { loop_with: self.loops.paused(id), ..port.status() })
    }

    /// How a network is, or `None` if there is no such network.
    #[must_use]
    pub fn network_status(&self, id: NetworkId) -> Option<NetworkStatus> {
        let (fdb_entries, fdb) = self.fabric.network(id)?.learned();
        Some(NetworkStatus { fdb_entries, fdb })
    }

    /// What has come into each VLAN of a network, in order. Nothing on a network without VLANs.
    #[must_use]
    pub fn vlan_counters(&self, id: NetworkId) -> Vec<(Vlan, VlanCounters)> {
        let vlans = self.fabric.network(id).and_then(|network| network.vlans.as_ref());
        vlans.map(|tables| tables.traffic_counters()).unwrap_or_default()
    }

    /// The forwarding database of a network, or those of its VLANs, in no particular order.
    #[must_use]
    pub fn fdb(&self, id: NetworkId) -> Vec<(Option<Vlan>, FdbEntry)> {
        self.fabric.network(id).map(|network| network.entries(self.clock.now())).unwrap_or_default()
    }

    /// Forgets everything that a network learned; returns how many entries there were.
    pub fn flush_fdb(&mut self, id: NetworkId) -> usize {
        self.fabric.network(id).map_or(0, Network::flush)
    }

    /// One entry a worker.
    #[must_use]
    pub fn worker_status(&self) -> Vec<WorkerStatus> {
        let status = |(worker, rings): (&WorkerHandle, usize)| WorkerStatus {
            rounds: worker.shared.rounds.value(),
            busy_rounds: worker.shared.busy_rounds.value(),
            sleeps: worker.shared.sleeps.value(),
            asleep: worker.shared.asleep.load(Ordering::Relaxed),
            cpu: worker.cpu,
            rings,
        };
        self.fabric.workers.handles.iter().zip(self.fabric.rings_of_each()).map(status).collect()
    }

    /// Handles one event whose token is at or above [`Self::FIRST_TOKEN`]. [`Self::take_messages`] comes after it.
    pub fn handle(&mut self, event: &Event) {
        match Task::of(event.token()) {
            // Its turn comes anyway.
            Some(task) if self.unfinished.contains(&task) || self.postponed.contains(&task) => {}
            Some(task) => self.run(task),
            None => self.handle_news(),
        }
    }

    /// Does what is due (reconnects, ageing, the watch over the workers) and says after how long to call again at the latest.
    pub fn tick(&mut self) -> Duration {
        for _ in 0..self.unfinished.len() {
            if let Some(task) = self.unfinished.pop_front() {
                self.run(task);
            }
        }
        let now = self.clock.now();
        if now >= self.next_expiry {
            self.next_expiry = now.after(EXPIRY_INTERVAL);
            self.fabric.networks.iter().flatten().for_each(|network| network.expire(now));
        }
        if now >= self.next_gateways {
            self.next_gateways = now.after(GATEWAY_INTERVAL);
            self.tick_gateways(now);
        }
        if now >= self.next_watch {
            self.next_watch = now.after(WATCH_INTERVAL);
            self.healthy = self.fabric.workers.are_alive();
            self.resume();
        }
        self.look_for_loops(now);
        let mut next = self.next_expiry.min(self.next_gateways).min(self.next_watch);
        next = self.loops.due().map_or(next, |due| next.min(due));
        for port in self.ports.iter_mut().flatten() {
            if let Some(due) = port.dial(&self.registry, Task::Serve(port.id()).token(), now) {
                next = next.min(due);
            }
        }
        next = self.tick_snoopers(now).map_or(next, |at| next.min(at));
        if self.unfinished.is_empty() { next.since(now) } else { Duration::ZERO }
    }

    /// False when a worker has died: the owner then stops feeding its watchdog.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    fn run(&mut self, task: Task) {
        let (Task::Accept(id) | Task::Serve(id)) = task;
        let Some(port) = self.ports.get_mut(id.index()).and_then(Option::as_mut) else {
            return;
        };
        let now = self.clock.now();
        let turn = match task {
            Task::Accept(_) => port.accept(&self.registry, Task::Serve(id).token(), now, &mut self.fabric),
            Task::Serve(_) => port.serve(&self.registry, now, &mut self.fabric),
        };
        let waiting = match turn {
            Turn::Done => return,
            Turn::More => &mut self.unfinished,
            Turn::Later => &mut self.postponed,
        };
        if !waiting.contains(&task) {
            waiting.push_back(task);
        }
    }

    /// What was postponed gets its turn, once.
    fn resume(&mut self) {
        for task in std::mem::take(&mut self.postponed) {
            if !self.unfinished.contains(&task) {
                self.unfinished.push_back(task);
            }
        }
    }

    /// A worker found a fault, or a port has got rid of something.
    fn handle_news(&mut self) {
        // Only to lower the event; how often it was raised does not matter.
        let _ = self.event.read();
        self.ports.iter_mut().flatten().for_each(Port::sweep);
        self.resume();
        self.sweep_captures();
        let now = self.clock.now();
        while let Ok(fault) = self.faults.try_recv() {
            if let Some(port) = self.ports.get_mut(fault.port.index()).and_then(Option::as_mut) {
                port.fault(&fault, &self.registry, now, &mut self.fabric);
            }
        }
    }
}

impl Drop for Dataplane {
    /// Disconnects every guest and unlinks every socket of ours.
    fn drop(&mut self) {
        for port in std::mem::take(&mut self.ports).into_iter().flatten() {
            if let Err(error) = port.remove(&self.registry, &mut self.fabric) {
                tracing::error!(%error, "while stopping");
            }
        }
    }
}

/// Refuses none, and more than there can be.
fn check_number(what: &'static str, given: usize, limit: usize) -> Result<(), DataplaneError> {
    if (1..=limit).contains(&given) { Ok(()) } else { Err(DataplaneError::NumberOutOfRange { what, given, limit }) }
}

/// The first free place in a table of at most `limit`, which grows by one if there is none.
pub(crate) fn free_place<T>(table: &mut Vec<Option<T>>, limit: usize) -> Option<usize> {
    if let Some(place) = table.iter().position(Option::is_none) {
        return Some(place);
    }
    (table.len() < limit).then(|| {
        table.push(None);
        table.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_gives_freed_places_again_and_ends_at_its_limit() {
        let mut table = vec![Some('a'), None];
        assert_eq!(free_place(&mut table, 3), Some(1));
        table[1] = Some('b');
        assert_eq!(free_place(&mut table, 3), Some(2));
        table[2] = Some('c');
        assert_eq!(free_place(&mut table, 3), None);
    }
}
