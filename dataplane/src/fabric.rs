//! What all ports share: the workers, the networks, and which worker polls which ring.
//!
//! # Theory
//!
//! Each ring from a guest has a home, the worker that polls it; its kick descriptor is registered there. A new ring goes to the
//! worker that has the fewest. When rings have gone and one worker has two more than another, one of them moves.
//!
//! A gateway has a home, too: the worker with the fewest gateways when it came. It stays there.
//!
//! A flow is the frames of one ring, so it is handled by one worker and keeps its order. Where a ring moves, its old
//! worker lets go of it, and has shown to the receivers what it took, before the new one gets it: that takes two
//! snapshots.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use weft_switch::vlan::{StaticStations, VlanId, VlanTables};
use weft_switch::{Fdb, FdbSettings, NetworkId};

use crate::from_guest::FromGuest;
use crate::gateway::{Dispatch, GatewayLink, SharedGateway};
use crate::line::LineMemory;
use crate::multicast::SnooperLink;
use crate::snapshot::{NetworkLink, PortLink, RingLink, Snapshot};
use crate::vlan::VlanLink;
use crate::worker::{KICK_TOKEN, WorkerHandle};
use crate::workers::{Injection, WorkerStuck, Workers};

/// What all ports share.
#[derive(Debug)]
pub(crate) struct Fabric {
    pub(crate) workers: Workers,
    /// By [`NetworkId::index`].
    pub(crate) networks: Vec<Option<Network>>,
    pub(crate) links: Vec<Option<Arc<PortLink>>>,
    /// Where each ring from a guest is polled, by [`RingLink::id`].
    homes: BTreeMap<u64, Home>,
    pub(crate) line_memory: Arc<LineMemory>,
}

/// What the ports of a network share.
#[derive(Debug)]
pub(crate) struct Network {
    /// What is declared about its forwarding database, or databases.
    pub(crate) settings: FdbSettings,
    /// The VLAN of ports without a role, and of the gateway, if there are VLANs.
    pub(crate) default_vlan: VlanId,
    /// With VLANs: that of the default one.
    pub(crate) fdb: Arc<Fdb>,
    pub(crate) vlans: Option<Arc<VlanTables>>,
    pub(crate) gateway: Option<GatewayLink>,
    /// The static entries.
    pub(crate) stations: StaticStations,
    /// Who listens to what is said about groups, if anybody does.
    pub(crate) snooper: Option<SnooperLink>,
    /// For the lines of its ports.
    pub(crate) line_memory: Arc<LineMemory>,
}

impl Network {
    pub(crate) fn new(
        settings: FdbSettings,
        default_vlan: VlanId,
        gateway: Option<GatewayLink>,
        line_memory: Arc<LineMemory>,
    ) -> Self {
        let fdb = Arc::new(Fdb::new(settings, &Arc::default()));
        let stations = StaticStations::new();
        Self { settings, default_vlan, fdb, vlans: None, gateway, stations, snooper: None, line_memory }
    }

    /// The network as workers see it, without members.
    fn link(&self) -> NetworkLink {
        let vlans = self.vlans.as_ref().map(VlanLink::new);
        let (gateway, snooper) = (self.gateway.clone(), self.snooper.clone());
        NetworkLink { fdb: Arc::clone(&self.fdb), gateway, vlans, snooper, members: Vec::new(), isolates: false }
    }
}

#[derive(Debug)]
struct Home {
    worker: usize,
    kick: Option<Arc<OwnedFd>>,
}

impl Fabric {
    pub(crate) fn new(workers: Workers) -> Self {
        Self { workers, networks: Vec::new(), links: Vec::new(), homes: BTreeMap::new(), line_memory: Arc::default() }
    }

    pub(crate) fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(id.index())?.as_ref()
    }

    pub(crate) fn gateway(&self, id: NetworkId) -> Option<&GatewayLink> {
        self.network(id)?.gateway.as_ref()
    }

    /// Gives a gateway a home.
    pub(crate) fn link_gateway(&self, shared: Arc<SharedGateway>) -> GatewayLink {
        let mut counts = vec![0; self.workers.count()];
        self.networks
            .iter()
            .flatten()
            .filter_map(|network| network.gateway.as_ref())
            .for_each(|gateway| counts[gateway.home] += 1);
        let home = (0..counts.len()).min_by_key(|&worker| counts[worker]).unwrap_or(0);
        shared.set_home(Arc::clone(&self.workers.handles[home].waker));
        let screen = shared.lock().gateway.screen();
        GatewayLink { screen, home, shared }
    }

    /// Gives a ring a home, whose worker is woken by its kicks from now on. It is polled when it is published.
    pub(crate) fn take_in(&mut self, ring: &RingLink<FromGuest>) -> io::Result<()> {
        let counts = self.rings_of_each();
        let worker = (0..counts.len()).min_by_key(|&worker| counts[worker]).unwrap_or(0);
        let home = Home { worker, kick: ring.kick.clone() };
        watch(self.registry(worker), &home)?;
        self.homes.insert(ring.id, home);
        Ok(())
    }

    /// The opposite; the caller publishes.
    pub(crate) fn turn_out(&mut self, ring: u64) {
        if let Some(home) = self.homes.remove(&ring) {
            unwatch(self.registry(home.worker), &home);
        }
    }

    /// Shows the workers the networks and ports as they are now; returns when none uses anything older.
    ///
    /// # Errors
    /// When a worker is stuck. The others are shown everything all the same, and no ring moves.
    pub(crate) fn publish(&mut self) -> Result<(), WorkerStuck> {
        self.sync_snoopers();
        let moves = self.moves();
        if !moves.is_empty() {
            let staying = self.snapshot(|ring| !moves.contains_key(&ring));
            if let Err(stuck) = self.workers.publish(staying) {
                // One of those that are to move may be what it is stuck with. None may be left to nobody.
                self.workers.show(self.snapshot_now());
                return Err(stuck);
            }
            moves.into_iter().for_each(|(ring, worker)| self.move_home(ring, worker));
        }
        let all = self.snapshot_now();
        self.workers.publish(all)
    }

    /// Hands a frame to a worker, as if a port had sent it. A worker that has too many already does not get it.
    pub(crate) fn inject(&self, injection: Injection) {
        let first_ring =
            self.links.get(injection.port().index()).and_then(Option::as_ref).and_then(|link| link.rings.from_guest.first());
        let home = first_ring.and_then(|ring| self.homes.get(&ring.id));
        self.workers.inject(home.map_or(0, |home| home.worker), injection);
    }

    /// Hands frames of weft's own to the worker that sends those of a network: its gateway's home, if it has one. Returns those for which there is no room.
    pub(crate) fn send(&self, network: NetworkId, frames: Vec<Dispatch>) -> Vec<Dispatch> {
        if frames.is_empty() { frames } else { self.sender(network).send(network, frames) }
    }

    /// The worker that sends weft's own frames on a network.
    pub(crate) fn sender(&self, network: NetworkId) -> &WorkerHandle {
        let home = self.gateway(network).map_or(network.index() % self.workers.count(), |gateway| gateway.home);
        &self.workers.handles[home]
    }

    /// How many rings each worker polls.
    pub(crate) fn rings_of_each(&self) -> Vec<usize> {
        let mut counts = vec![0; self.workers.count()];
        self.homes.values().for_each(|home| counts[home.worker] += 1);
        counts
    }

    /// The rings that have to move so that no worker has two more than another, and where to.
    fn moves(&self) -> BTreeMap<u64, usize> {
        let mut rings: Vec<Vec<u64>> = vec![Vec::new(); self.workers.count()];
        self.homes.iter().for_each(|(&ring, home)| rings[home.worker].push(ring));
        let mut moves = BTreeMap::new();
        loop {
            let by_count = |&worker: &usize| rings[worker].len();
            let (Some(least), Some(most)) = ((0..rings.len()).min_by_key(by_count), (0..rings.len()).max_by_key(by_count)) else {
                return moves;
            };
            if rings[most].len() < rings[least].len() + 2 {
                return moves;
            }
            if let Some(ring) = rings[most].pop() {
                rings[least].push(ring);
                moves.insert(ring, least);
            }
        }
    }

    /// A ring whose kicks the new worker can't be woken by stays where it is.
    fn move_home(&mut self, ring: u64, worker: usize) {
        let Some(home) = self.homes.get(&ring) else { return };
        if let Err(error) = watch(self.registry(worker), home) {
            tracing::warn!(%error, "a ring stays with its worker");
            return;
        }
        unwatch(self.registry(home.worker), home);
        if let Some(home) = self.homes.get_mut(&ring) {
            home.worker = worker;
        }
    }

    /// What the workers see.
    pub(crate) fn snapshot_now(&self) -> Snapshot {
        self.snapshot(|_| true)
    }

    /// What the workers are to see; of the rings from guests, those that are chosen.
    fn snapshot(&self, chosen: impl Fn(u64) -> bool) -> Snapshot {
        let home = |ring: u64| self.homes.get(&ring).filter(|_| chosen(ring)).map(|home| home.worker);
        let networks = self.networks.iter().map(|place| place.as_ref().map(Network::link));
        Snapshot::new(networks, self.links.clone(), self.workers.count(), home)
    }

    pub(crate) fn registry(&self, worker: usize) -> &Registry {
        &self.workers.handles[worker].registry
    }
}

fn watch(registry: &Registry, home: &Home) -> io::Result<()> {
    let Some(kick) = &home.kick else { return Ok(()) };
    registry.register(&mut SourceFd(&kick.as_raw_fd()), KICK_TOKEN, Interest::READABLE)
}

/// Fails only where watching failed.
fn unwatch(registry: &Registry, home: &Home) {
    if let Some(kick) = &home.kick {
        let _ = registry.deregister(&mut SourceFd(&kick.as_raw_fd()));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vmm_sys_util::eventfd::EventFd;
    use weft_switch::PortId;

    use super::*;
    use crate::counters::LiveCounters;
    use crate::lane::FaultReports;
    use crate::line::PortLines;
    use crate::memory::{GuestMemory, RegionSpec};
    use crate::ring::{Base, Direction, Ring, RingFeatures, RingLayout};
    use crate::snapshot::RunningRings;
    use crate::vhost_port::FrameFeatures;
    use crate::worker::Clock;
    use crate::workers::WorkerSettings;

    pub(crate) fn ring() -> Arc<RingLink<FromGuest>> {
        let spec = RegionSpec { guest: 0, len: 0x1000, user: 0, file_offset: 0 };
        let file = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, spec.len).unwrap();
        let memory = Arc::new(GuestMemory::default().with_region(spec, Arc::new(file.into())).unwrap());
        let base = Base::new(&memory, RingFeatures::default(), Direction::FromGuest, None);
        let layout = RingLayout { size: 4, descriptors: 0, available: 0x100, used: 0x200 };
        RingLink::new(1, true, None, FromGuest::new(Ring::new(layout, 0, base).unwrap(), FrameFeatures::default()))
    }

    pub(crate) fn port(id: PortId, from_guest: Vec<Arc<RingLink<FromGuest>>>) -> PortLink {
        PortLink {
            id,
            network: NetworkId(0),
            role: None,
            guard: None,
            isolation: weft_switch::guard::Isolation::None,
            lines: PortLines::default(),
            taps: None,
            loop_sign: Arc::default(),
            counters: Arc::new(LiveCounters::default()),
            rings: RunningRings { from_guest, to_guest: Vec::new() },
        }
    }

    /// A worker without a thread stands for one that hangs.
    #[test]
    fn while_a_worker_is_stuck_rings_that_were_to_move_are_polled_where_they_were() {
        let reports = FaultReports { queue: crossbeam::channel::unbounded().0, event: Arc::new(EventFd::new(0).unwrap()) };
        let settings = WorkerSettings { count: 2, ..WorkerSettings::default() };
        let (workers, mut idle) = Workers::new(&settings, Clock::start(), &reports).unwrap();
        let mut fabric = Fabric::new(workers);
        let rings: Vec<_> = (0..3).map(|_| ring()).collect();
        for ring in &rings {
            fabric.take_in(ring).unwrap();
        }
        // The first and the last are with the first worker; when the other one is gone, one of them is to move.
        let link = port(PortId(0), vec![Arc::clone(&rings[0]), Arc::clone(&rings[2])]);
        fabric.links = vec![Some(Arc::new(link))];
        fabric.turn_out(rings[1].id);
        assert!(fabric.publish().is_err());
        let polled = |fabric: &Fabric| -> Vec<Vec<u64>> {
            let seen = fabric.workers.seen();
            (0..2).map(|worker| seen.polled_by(worker).iter().map(|polled| polled.ring.id).collect()).collect()
        };
        assert_eq!(polled(&fabric), [vec![rings[0].id, rings[2].id], vec![]]);
        assert_eq!(fabric.rings_of_each(), [2, 0]);
        // They move when nobody is stuck any more.
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    idle.iter_mut().for_each(|worker| {
                        worker.poll_all(weft_switch::Timestamp::default());
                    });
                }
            });
            let published = fabric.publish();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(published.is_ok());
        });
        assert_eq!(polled(&fabric), [vec![rings[0].id], vec![rings[2].id]]);
    }
}
