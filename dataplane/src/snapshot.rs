//! What the workers see of the configuration, and how it is changed under them.
//!
//! # Theory
//!
//! A [`Snapshot`] never changes. The owner of the dataplane builds a new one from what it knows, [`crate::workers::Workers::publish`]es it,
//! and gets control back when every worker has finished the round in which it may have used an older one (each takes the
//! newest at the start of a round and notes its generation). From that moment on nobody touches what the new
//! snapshot no longer names, and the front-end can be told so.
//!
//! Memory safety does not hang on that wait: rings, and the memory below them, live as long as a snapshot that names them.
//!
//! Lock order: a worker holds one `from_guest` ring, then one [guard](crate::guard) and lets it go, or one [gateway](crate::gateway), then one `to_guest` ring or one [line](crate::line), never two of a kind. Only its home's worker takes
//! the lock of a ring from a guest; a ring to a guest is shared by workers only where there are fewer of them than workers. The owner locks
//! one ring at a time, after it was taken out of the snapshot or to set its call descriptor.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use weft_switch::guard::Isolation;
use weft_switch::vlan::PortRole;
use weft_switch::{DropReason, Fdb, NetworkId, PortId};

use crate::counters::LiveCounters;
use crate::from_guest::FromGuest;
use crate::gateway::GatewayLink;
use crate::guard::PortGuard;
use crate::line::{PortLine, PortLines, Way};
use crate::loops::LoopSign;
use crate::multicast::SnooperLink;
use crate::tap::PortTaps;
use crate::to_guest::ToGuest;
use crate::vlan::VlanLink;

/// Everything that a worker needs to know, as it is at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Given when it is published.
    pub(crate) generation: u64,
    /// By [`PortId::index`].
    ports: Vec<Option<Arc<PortLink>>>,
    /// By [`NetworkId::index`].
    networks: Vec<Option<NetworkLink>>,
    /// For each worker the rings that it polls.
    polled: Vec<Vec<PolledRing>>,
    /// For each worker the gateways that have it for a home.
    gateways: Vec<Vec<(NetworkId, GatewayLink)>>,
    /// For each worker the lines that have it for a home; those from guests come first, so that a frame may pass one after the other in one round.
    lines: Vec<Vec<(Arc<PortLink>, Arc<PortLine>)>>,
}

/// A network as workers see it.
#[derive(Debug)]
pub(crate) struct NetworkLink {
    /// With VLANs: that of the default one.
    pub(crate) fdb: Arc<Fdb>,
    pub(crate) gateway: Option<GatewayLink>,
    pub(crate) vlans: Option<VlanLink>,
    /// Who is asked where multicast goes, unless it goes to everybody.
    pub(crate) snooper: Option<SnooperLink>,
    /// The ports that can receive right now.
    pub(crate) members: Vec<PortId>,
    /// Some of its ports are isolated from others.
    pub(crate) isolates: bool,
}

/// A port as workers see it.
#[derive(Debug)]
pub(crate) struct PortLink {
    pub(crate) id: PortId,
    pub(crate) network: NetworkId,
    /// What it is to the network's VLANs.
    pub(crate) role: Option<Arc<PortRole>>,
    /// What its guest's frames have to pass, if anything.
    pub(crate) guard: Option<Arc<PortGuard>>,
    /// Which ports it hears, and which hear from it.
    pub(crate) isolation: Isolation,
    /// What is between it and its guest, if anything.
    pub(crate) lines: PortLines,
    /// Who watches it, if anybody does.
    pub(crate) taps: Option<Arc<PortTaps>>,
    pub(crate) loop_sign: Arc<LoopSign>,
    pub(crate) counters: Arc<LiveCounters>,
    pub(crate) rings: RunningRings,
}

impl PortLink {
    /// Frames for everybody go there.
    pub(crate) fn receives(&self) -> bool {
        !self.rings.to_guest.is_empty() && self.shut().is_none()
    }

    /// Why nothing that others send goes to its guest, if that is so.
    pub(crate) fn shut(&self) -> Option<DropReason> {
        self.taps.as_ref().and_then(|taps| taps.shut)
    }
}

/// The rings of a port that run.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunningRings {
    pub(crate) from_guest: Vec<Arc<RingLink<FromGuest>>>,
    /// Where frames for the guest go: those that are enabled.
    pub(crate) to_guest: Vec<Arc<RingLink<ToGuest>>>,
}

/// A ring with its port.
#[derive(Debug)]
pub(crate) struct PolledRing {
    pub(crate) port: Arc<PortLink>,
    pub(crate) ring: Arc<RingLink<FromGuest>>,
}

/// A ring that runs.
#[derive(Debug)]
pub(crate) struct RingLink<R> {
    /// The ring's index in the vhost-user protocol.
    pub(crate) index: u16,
    /// Different for every ring that was ever started.
    pub(crate) id: u64,
    /// What the guest kicks. Without it the ring must be looked at without being asked.
    pub(crate) kick: Option<Arc<OwnedFd>>,
    enabled: AtomicBool,
    broken: AtomicBool,
    /// Whoever waits for the guest's kicks besides the worker that polls the ring.
    watch: OnceLock<Watch>,
    ring: Mutex<R>,
}

/// A kick descriptor that is registered somewhere, until this goes away.
#[derive(Debug)]
struct Watch {
    registry: Arc<Registry>,
    kick: Arc<OwnedFd>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It is no longer there if the poll has ended.
        let _ = self.registry.deregister(&mut SourceFd(&self.kick.as_raw_fd()));
    }
}

impl<R> RingLink<R> {
    pub(crate) fn new(index: u16, enabled: bool, kick: Option<Arc<OwnedFd>>, ring: R) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            index,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            kick,
            enabled: AtomicBool::new(enabled),
            broken: AtomicBool::new(false),
            watch: OnceLock::new(),
            ring: Mutex::new(ring),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, R> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets kicks be reported under `token`, for as long as the ring runs. False if they can't be.
    pub(crate) fn watch(&self, registry: &Arc<Registry>, token: Token) -> bool {
        let Some(kick) = &self.kick else { return false };
        if let Some(watch) = self.watch.get() {
            return Arc::ptr_eq(&watch.registry, registry);
        }
        // A descriptor that is another ring's as well is registered already, under another token.
        registry.register(&mut SourceFd(&kick.as_raw_fd()), token, Interest::READABLE).is_ok()
            && self.watch.set(Watch { registry: Arc::clone(registry), kick: Arc::clone(kick) }).is_ok()
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// True once a fault was found; nobody touches the ring again.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub(crate) fn set_broken(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }
}

impl Snapshot {
    /// Puts together what the workers are to see. `networks` and `ports` are indexed by their ids; `home` says which worker, if
    /// any, polls the ring of a [`RingLink::id`].
    pub(crate) fn new(
        networks: impl Iterator<Item = Option<NetworkLink>>,
        ports: Vec<Option<Arc<PortLink>>>,
        workers: usize,
        home: impl Fn(u64) -> Option<usize>,
    ) -> Self {
        let mut networks: Vec<_> = networks.collect();
        let mut polled: Vec<Vec<PolledRing>> = (0..workers).map(|_| Vec::new()).collect();
        for port in ports.iter().flatten() {
            if let Some(Some(network)) = networks.get_mut(port.network.index()) {
                network.isolates |= port.isolation != Isolation::None;
                if port.receives() {
                    network.members.push(port.id);
                    if let Some(vlans) = &mut network.vlans {
                        vlans.add_member(port);
                    }
                }
            }
            for ring in &port.rings.from_guest {
                if let Some(worker) = home(ring.id) {
                    polled[worker].push(PolledRing { port: Arc::clone(port), ring: Arc::clone(ring) });
                }
            }
        }
        let mut gateways: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        for (place, network) in networks.iter().enumerate() {
            if let Some(gateway) = network.as_ref().and_then(|network| network.gateway.as_ref()) {
                gateways[gateway.home].push((NetworkId(place as u16), gateway.clone()));
            }
        }
        let mut lines: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        for way in [Way::FromGuest, Way::ToGuest] {
            for port in ports.iter().flatten() {
                let those = port.lines.all().filter(|line| line.way == way);
                those.for_each(|line| lines[line.home].push((Arc::clone(port), Arc::clone(line))));
            }
        }
        Self { generation: 0, ports, networks, polled, gateways, lines }
    }

    pub(crate) fn port(&self, id: PortId) -> Option<&Arc<PortLink>> {
        self.ports.get(id.index())?.as_ref()
    }

    /// One more than the highest port index.
    pub(crate) fn port_places(&self) -> usize {
        self.ports.len()
    }

    pub(crate) fn network(&self, id: NetworkId) -> Option<&NetworkLink> {
        self.networks.get(id.index())?.as_ref()
    }

    /// The gateways that have a worker for a home.
    pub(crate) fn gateways_at(&self, worker: usize) -> &[(NetworkId, GatewayLink)] {
        self.gateways.get(worker).map_or(&[], Vec::as_slice)
    }

    /// The lines that have a worker for a home, with their ports.
    #[inline]
    pub(crate) fn lines_at(&self, worker: usize) -> &[(Arc<PortLink>, Arc<PortLine>)] {
        self.lines.get(worker).map_or(&[], Vec::as_slice)
    }

    /// The rings that a worker polls.
    pub(crate) fn polled_by(&self, worker: usize) -> &[PolledRing] {
        self.polled.get(worker).map_or(&[], Vec::as_slice)
    }
}
