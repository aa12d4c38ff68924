//! A port as its owner keeps it: its socket, the front-end on it, and what the workers are told about its rings.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Interest, Registry, Token};
use vmm_sys_util::eventfd::EventFd;
use weft_switch::guard::{Isolation, Protections};
use weft_switch::line::Lines;
use weft_switch::vlan::PortRole;
use weft_switch::{DropReason, LogLimit, MacAddr, NetworkId, PortId, Timestamp};

use crate::counters::LiveCounters;
use crate::dataplane::{PortCounters, PortSettings, PortState, PortStatus, RingStatus};
use crate::disposal::Disposal;
use crate::endpoint::{Endpoint, Listener};
use crate::fabric::Fabric;
use crate::from_guest::FromGuest;
use crate::guard::PortGuard;
use crate::lane::Fault;
use crate::line::PortLines;
use crate::loops::LoopSign;
use crate::ring::RingFault;
use crate::snapshot::{PortLink, RingLink, RunningRings};
use crate::tap::PortTaps;
use crate::vhost_user::connection::{Connection, ConnectionError};
use crate::vhost_user::session::{Host, Identity, Session, SessionError};
use crate::workers::{Injection, WorkerStuck};

/// The most messages of one front-end that are handled before others get their turn.
const MESSAGES_PER_TURN: usize = 64;
/// The same as a time, after which the message at hand is the last one: some take ten thousand times as long as others.
const TURN: Duration = Duration::from_millis(5);
/// The most connections that are accepted, or refused, before others get their turn.
const ACCEPTS_PER_TURN: usize = 16;
/// How long until a client looks again whether its last guest is gone for good.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Ethertype of RARP, its opcode "request reverse" (RFC 903), and the length that Ethernet pads to.
const RARP_ETHERTYPE: u16 = 0x8035;
const RARP_REQUEST: u16 = 3;
const MIN_PADDED_FRAME: usize = 60;

/// A port.
#[derive(Debug)]
pub(crate) struct Port {
    wiring: Wiring,
    pub(crate) settings: PortSettings,
    pub(crate) endpoint: Endpoint,
    guest: Option<Guest>,
    connections: u64,
    last_stop: Option<(Timestamp, String)>,
    log: PortLog,
}

/// What of a port its sessions and the workers need, whoever is connected.
#[derive(Debug)]
struct Wiring {
    port: PortId,
    network: NetworkId,
    role: Option<Arc<PortRole>>,
    guard: Option<Arc<PortGuard>>,
    isolation: Isolation,
    lines: PortLines,
    taps: Option<Arc<PortTaps>>,
    /// Its guest connects it with another one.
    paused: bool,
    loop_sign: Arc<LoopSign>,
    counters: Arc<LiveCounters>,
    disposal: Disposal,
}

impl Wiring {
    /// The port as workers see it, with these rings.
    fn link(&self, rings: RunningRings) -> Arc<PortLink> {
        let (role, counters, loop_sign) = (self.role.clone(), Arc::clone(&self.counters), Arc::clone(&self.loop_sign));
        let (guard, taps) = if self.paused {
            (Some(Arc::new(PortGuard::barrier())), Some(Arc::new(PortTaps::paused(self.taps.as_deref()))))
        } else {
            (self.guard.clone(), self.taps.clone())
        };
        let Self { port: id, network, isolation, .. } = *self;
        let lines = self.lines.clone();
        Arc::new(PortLink { id, network, role, guard, isolation, lines, taps, loop_sign, counters, rings })
    }
}

/// A connected front-end.
#[derive(Debug)]
struct Guest {
    connection: Connection,
    session: Session,
}

/// Why a guest's connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopReason {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("ring {ring}: {fault}")]
    Ring { ring: u16, fault: RingFault },
    #[error("the connection could not be watched: {0}")]
    Watch(io::Error),
}

impl StopReason {
    /// True unless the front-end just left.
    fn is_fault(&self) -> bool {
        !matches!(self, Self::Connection(ConnectionError::Closed))
    }
}

/// Whether a port has more to do than its turn allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Done,
    More,
    /// The operating system has no room for it now.
    Later,
}

/// What is left of a port's turn for messages, and for looks whether there is one.
struct Allowance {
    messages: usize,
    end: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { messages: MESSAGES_PER_TURN, end: Instant::now() + TURN }
    }

    fn take(&mut self) -> bool {
        let left = self.messages.checked_sub(1).filter(|_| Instant::now() < self.end);
        self.messages = left.unwrap_or(0);
        left.is_some()
    }
}

/// One port's way to the workers.
struct PortHost<'a> {
    fabric: &'a mut Fabric,
    wiring: &'a mut Wiring,
}

impl Host for PortHost<'_> {
    fn publish(&mut self, rings: RunningRings) -> Result<(), WorkerStuck> {
        self.fabric.links[self.wiring.port.index()] = Some(self.wiring.link(rings));
        self.fabric.publish()
    }

    fn take_in(&mut self, ring: &RingLink<FromGuest>) -> io::Result<()> {
        self.fabric.take_in(ring)
    }

    fn turn_out(&mut self, ring: u64) {
        self.fabric.turn_out(ring);
    }

    fn announce(&mut self, station: MacAddr) {
        self.fabric.inject(Injection::From { port: self.wiring.port, frame: rarp_request(station) });
    }

    fn dispose(&mut self, memory: impl Send + 'static) {
        self.wiring.disposal.put(memory);
    }
}

impl Port {
    /// `disposed` is raised when a guest that made the next one wait is gone for good.
    pub(crate) fn new(id: PortId, settings: PortSettings, endpoint: Endpoint, disposed: &Arc<EventFd>) -> Self {
        let disposal = Disposal::new(Arc::clone(disposed));
        let role = settings.vlan.clone().map(Arc::new);
        let guard = PortGuard::new(&settings.protections).map(Arc::new);
        let (network, isolation) = (settings.network, settings.protections.isolation);
        let wiring = Wiring {
            port: id,
            network,
            role,
            guard,
            isolation,
            lines: PortLines::default(),
            taps: None,
            paused: false,
            loop_sign: Arc::default(),
            counters: Arc::default(),
            disposal,
        };
        Self { wiring, settings, endpoint, guest: None, connections: 0, last_stop: None, log: PortLog::default() }
    }

    pub(crate) fn id(&self) -> PortId {
        self.wiring.port
    }

    /// Changes what its guest may send; the caller publishes.
    pub(crate) fn protect(&mut self, protections: Protections, fabric: &mut Fabric) {
        self.wiring.guard = PortGuard::new(&protections).map(Arc::new);
        self.wiring.isolation = protections.isolation;
        self.settings.protections = protections;
        self.relink(fabric);
    }

    /// Changes what is between it and its guest; the caller publishes.
    pub(crate) fn set_lines(&mut self, lines: &Lines, fabric: &mut Fabric) {
        self.wiring.lines = self.wiring.lines.replaced((self.wiring.port, self.wiring.network), lines, fabric);
        self.settings.lines = *lines;
        self.relink(fabric);
    }

    /// Lets nothing in or out, or ends that; the caller publishes.
    pub(crate) fn set_paused(&mut self, paused: bool, fabric: &mut Fabric) {
        self.wiring.paused = paused;
        self.relink(fabric);
    }

    fn relink(&self, fabric: &mut Fabric) {
        if let Some(link) = fabric.links.get_mut(self.wiring.port.index()).and_then(Option::as_mut) {
            *link = self.wiring.link(link.rings.clone());
        }
    }

    /// Changes who watches it; the caller publishes.
    pub(crate) fn watch(&mut self, taps: Option<Arc<PortTaps>>, fabric: &mut Fabric) {
        if taps.is_none() && self.wiring.taps.is_none() {
            return;
        }
        self.wiring.taps = taps;
        self.relink(fabric);
    }

    /// The port as workers see it while no guest is there.
    pub(crate) fn idle_link(&self) -> Arc<PortLink> {
        self.wiring.link(RunningRings::default())
    }

    /// Takes the guests that wait at the listening socket: the first one in, the others out.
    pub(crate) fn accept(&mut self, registry: &Registry, token: Token, now: Timestamp, fabric: &mut Fabric) -> Turn {
        let mut allowance = Allowance::new();
        for _ in 0..ACCEPTS_PER_TURN {
            // The one that is there may have left already, with the news still unread.
            match self.serve_within(&mut allowance, registry, now, fabric) {
                Turn::Done => {}
                waiting => return waiting,
            }
            let Endpoint::Server(listener) = &self.endpoint else {
                return Turn::Done;
            };
            let disposal = &mut self.wiring.disposal;
            let has_room = if self.guest.is_some() { !disposal.is_behind() } else { disposal.is_idle() };
            if !has_room {
                return Turn::Later;
            }
            match listener.socket.accept() {
                Ok((stream, _)) if self.guest.is_some() => {
                    self.log.warn(now, &self.settings.name, "a second front-end was refused: this port has one already");
                    hang_up(&stream);
                    self.wiring.disposal.put(stream);
                }
                Ok((stream, _)) => self.connect(stream, registry, token, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Done,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.log.warn(now, &self.settings.name, &format!("cannot accept a front-end yet: {error}"));
                    return Turn::Later;
                }
            }
        }
        Turn::More
    }

    /// Tries to reach a guest that listens, if that is due. Returns when to try again.
    pub(crate) fn dial(&mut self, registry: &Registry, token: Token, now: Timestamp) -> Option<Timestamp> {
        let Endpoint::Client(dialer) = &mut self.endpoint else {
            return None;
        };
        if self.guest.is_some() {
            return None;
        }
        if !self.wiring.disposal.is_idle() {
            return Some(now.after(LOOK_AGAIN));
        }
        if dialer.due() > now {
            return Some(dialer.due());
        }
        let result = dialer.dial(now);
        let due = dialer.due();
        match result {
            Ok(stream) => {
                self.connect(stream, registry, token, now);
                return None;
            }
            Err(error) => {
                let reason = format!("cannot connect to {}: {error}", self.settings.socket.display());
                // Nobody is there yet: what a client is made to wait for.
                let is_expected = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
                // It is tried again and again, but said only when it is news.
                if !is_expected && self.last_stop.as_ref().is_none_or(|(_, last)| *last != reason) {
                    self.log.warn(now, &self.settings.name, &reason);
                }
                self.last_stop = Some((now, reason));
            }
        }
        Some(due)
    }

    /// Handles what the front-end has sent.
    pub(crate) fn serve(&mut self, registry: &Registry, now: Timestamp, fabric: &mut Fabric) -> Turn {
        self.serve_within(&mut Allowance::new(), registry, now, fabric)
    }

    fn serve_within(&mut self, allowance: &mut Allowance, registry: &Registry, now: Timestamp, fabric: &mut Fabric) -> Turn {
        loop {
            let Some(guest) = &mut self.guest else { return Turn::Done };
            // Each message may leave as much memory behind as a guest has.
            if self.wiring.disposal.is_behind() {
                return Turn::Later;
            }
            if !allowance.take() {
                return Turn::More;
            }
            let mut host = PortHost { fabric, wiring: &mut self.wiring };
            match guest.serve_one(&mut host) {
                Ok(true) => {}
                Ok(false) => return Turn::Done,
                Err(reason) => {
                    self.disconnect(&reason, registry, now, fabric);
                    return Turn::Done;
                }
            }
        }
    }

    /// A worker found one of this port's rings broken.
    pub(crate) fn fault(&mut self, report: &Fault, registry: &Registry, now: Timestamp, fabric: &mut Fabric) {
        // The ring may have been replaced since.
        if self.guest.as_ref().is_some_and(|guest| guest.session.runs(report.ring_id)) {
            let reason = StopReason::Ring { ring: report.ring_index, fault: report.fault };
            self.disconnect(&reason, registry, now, fabric);
            if report.fault.is_final() {
                self.close_endpoint(registry);
            }
        }
    }

    /// Takes the port out of the workers' sight and closes its socket.
    pub(crate) fn remove(mut self, registry: &Registry, fabric: &mut Fabric) -> Result<(), WorkerStuck> {
        let ended = self.guest.take().map_or(Ok(()), |guest| self.let_go(guest, registry, fabric));
        self.close_endpoint(registry);
        ended
    }

    pub(crate) fn status(&self) -> PortStatus {
        let session = self.guest.as_ref().map(|guest| &guest.session);
        let (last_stop_at, last_stop) = self.last_stop.clone().unzip();
        PortStatus {
            state: self.state(),
            last_stop,
            last_stop_at,
            connections: self.connections,
            features: session.map(Session::feature_names).unwrap_or_default(),
            guest_mtu: session.and_then(Session::guest_mtu),
            rings: session.map(ring_statuses).unwrap_or_default(),
            counters: self.counters_view(),
            loop_with: None,
        }
    }

    fn state(&self) -> PortState {
        match (&self.guest, &self.endpoint) {
            (Some(guest), _) if guest.session.is_up() => PortState::Up,
            (Some(_), _) => PortState::Connected,
            (None, Endpoint::Server(_)) => PortState::Listening,
            (None, Endpoint::Client(_)) => PortState::Connecting,
            (None, Endpoint::Closed) => PortState::Stopped,
        }
    }

    fn counters_view(&self) -> PortCounters {
        let counters = &self.wiring.counters;
        PortCounters {
            from_guest_frames: counters.from_guest_frames.value(),
            from_guest_bytes: counters.from_guest_bytes.value(),
            from_guest_multicast: counters.from_guest_groups.multicast.value(),
            from_guest_broadcast: counters.from_guest_groups.broadcast.value(),
            to_guest_frames: counters.to_guest_frames.value(),
            to_guest_bytes: counters.to_guest_bytes.value(),
            to_guest_multicast: counters.to_guest_groups.multicast.value(),
            to_guest_broadcast: counters.to_guest_groups.broadcast.value(),
            notifications: counters.notifications.value(),
            drops: counters.drops(),
        }
    }

    fn connect(&mut self, mut stream: mio::net::UnixStream, registry: &Registry, token: Token, now: Timestamp) {
        if let Err(error) = registry.register(&mut stream, token, Interest::READABLE) {
            self.last_stop = Some((now, StopReason::Watch(error).to_string()));
            return;
        }
        let PortSettings { queue_pairs, mac, mtu, .. } = self.settings;
        let session = Session::new(Identity { queue_pairs, mac, mtu });
        self.guest = Some(Guest { connection: Connection::new(stream), session });
        self.connections += 1;
        self.log.info(now, &self.settings.name, "a front-end connected");
    }

    fn disconnect(&mut self, reason: &StopReason, registry: &Registry, now: Timestamp, fabric: &mut Fabric) {
        let Some(guest) = self.guest.take() else { return };
        if let Err(stuck) = self.let_go(guest, registry, fabric) {
            self.log.warn(now, &self.settings.name, &stuck.to_string());
        }
        if let Endpoint::Client(dialer) = &mut self.endpoint {
            dialer.hung_up(now, reason.is_fault());
        }
        if reason.is_fault() {
            self.log.warn(now, &self.settings.name, &format!("the port stopped: {reason}"));
        } else {
            self.log.info(now, &self.settings.name, &reason.to_string());
        }
        self.last_stop = Some((now, reason.to_string()));
    }

    /// Stops the rings; what was learned behind them is forgotten, so that frames look for the stations anew.
    fn end_session(&mut self, session: &mut Session, fabric: &mut Fabric) -> Result<(), WorkerStuck> {
        let mut host = PortHost { fabric, wiring: &mut self.wiring };
        let ended = session.end(&mut host);
        // What was on its way to this guest is not for the next one.
        if let Some(line) = &self.wiring.lines.to_guest {
            self.wiring.counters.drop_frames(DropReason::ReceiverDown, line.discard() as u64);
        }
        if let Some(network) = fabric.network(self.wiring.network) {
            network.forget_port(self.wiring.port);
        }
        ended
    }

    /// Ends a guest's session and connection.
    fn let_go(&mut self, mut guest: Guest, registry: &Registry, fabric: &mut Fabric) -> Result<(), WorkerStuck> {
        // Fails only where watching failed.
        let _ = registry.deregister(&mut guest.connection.stream);
        let ended = self.end_session(&mut guest.session, fabric);
        hang_up(&guest.connection.stream);
        self.wiring.disposal.put(guest);
        ended
    }

    /// Goes on getting rid of things.
    pub(crate) fn sweep(&mut self) {
        self.wiring.disposal.sweep();
    }

    fn close_endpoint(&mut self, registry: &Registry) {
        if let Endpoint::Server(Listener { mut socket, file }) = std::mem::replace(&mut self.endpoint, Endpoint::Closed) {
            let _ = registry.deregister(&mut socket);
            drop(file);
            // With whoever waits there, and what they have sent already.
            self.wiring.disposal.put(socket);
        }
    }
}

impl Guest {
    /// Handles the next message. False when it is not there yet.
    fn serve_one(&mut self, host: &mut PortHost<'_>) -> Result<bool, StopReason> {
        let Some(message) = self.connection.receive()? else {
            return Ok(false);
        };
        if let Some(reply) = self.session.handle(message, host)? {
            self.connection.send(&reply)?;
        }
        Ok(true)
    }
}

/// Lets the front-end know at once, while what it may have sent is closed when there is time.
fn hang_up(stream: &mio::net::UnixStream) {
    // Fails only when the other side has hung up already.
    let _ = stream.shutdown(Shutdown::Both);
}

fn ring_statuses(session: &Session) -> Vec<RingStatus> {
    session.running().map(|(index, size, enabled)| RingStatus { index, size, enabled }).collect()
}

/// The frame that tells a network where a station has moved (RFC 903): a reverse ARP request from it, about itself, to all.
fn rarp_request(station: MacAddr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(MIN_PADDED_FRAME);
    frame.extend(MacAddr::BROADCAST.0);
    frame.extend(station.0);
    frame.extend(RARP_ETHERTYPE.to_be_bytes());
    // Ethernet, IPv4, address lengths 6 and 4.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(RARP_REQUEST.to_be_bytes());
    for _sender_and_target in 0..2 {
        frame.extend(station.0);
        frame.extend([0; 4]);
    }
    frame.resize(MIN_PADDED_FRAME, 0);
    frame
}

/// What is said about a port: a guest that comes and goes in a loop does not fill the log.
#[derive(Debug, Default)]
struct PortLog(LogLimit);

impl PortLog {
    fn info(&mut self, now: Timestamp, port: &str, message: &str) {
        if self.allows(now, port) {
            tracing::info!(port, "{message}");
        }
    }

    fn warn(&mut self, now: Timestamp, port: &str, message: &str) {
        if self.allows(now, port) {
            tracing::warn!(port, "{message}");
        }
    }

    fn allows(&mut self, now: Timestamp, port: &str) -> bool {
        self.0.allows(now, |lines| tracing::warn!(port, "{lines} lines about this port were not logged"))
    }
}
