//! Multicast snooping in the path of a batch; [`weft_switch::multicast`] has the theory and the decisions.
//!
//! Only frames for many come here, of networks that snoop. Where they go stands in a [`View`], which is read without a lock: tables of immutable
//! buckets, of which whoever changed something replaces one. What hosts and routers say about groups is copied to private memory and shown to the
//! [`Snooper`], with one lock for all such frames of a batch; they go on from that copy. What time brings is done by the owner, whose queries go out by way of a worker.
//!
//! Lock order: a ring from a guest, then a snooper, and nothing else while it is held.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ahash::RandomState;
use arc_swap::ArcSwapOption;
use vmm_sys_util::eventfd::EventFd;
use weft_switch::guard::Isolation;
use weft_switch::multicast::{
    Arrival, Effects, Family, GroupMessage, News, Outbound, Passage, Scope, Snooper, SnoopingSettings, SnoopingStatus, concerns,
    scope,
};
use weft_switch::vlan::Vlan;
use weft_switch::{DropReason, EthernetHeader, MacKey, NetworkId, Offload, PortId, Timestamp, complete_checksum};

use crate::dataplane::{Dataplane, DataplaneError};
use crate::fabric::Fabric;
use crate::from_guest::{Batch, Frame};
use crate::gateway::{Dispatch, Receivers, private_copy};
use crate::lane::Lane;
use crate::snapshot::{NetworkLink, PortLink, Snapshot};
use crate::vlan::Stamp;

/// How long until the owner looks again whether there is room for queries.
const ROOM_INTERVAL: Duration = Duration::from_millis(1);
/// Buckets of a table: a power of two.
const BUCKETS: usize = 1024;

/// A snooper as a snapshot names it.
#[derive(Clone, Debug)]
pub(crate) struct SnooperLink {
    /// That of frames on a network without VLANs.
    default_vlan: Vlan,
    shared: Arc<SharedSnooper>,
}

/// What there is of a snooper.
#[derive(Debug)]
struct SharedSnooper {
    state: Mutex<Snooper>,
    view: View,
    /// When there is something to do, in milliseconds; the largest number if there is nothing.
    deadline: AtomicU64,
    /// Tells the owner that this is sooner than before.
    event: Arc<EventFd>,
}

/// Where frames for groups go.
#[derive(Debug)]
struct View {
    groups: Table<(Vlan, MacKey), Box<[PortId]>>,
    /// Who gets everything.
    domains: Table<(Vlan, Family), Vec<PortId>>,
}

/// A table that is read without a lock. Whoever writes has the snooper's.
#[derive(Debug)]
struct Table<K, V> {
    /// Who sends can't choose what collides.
    hashes: RandomState,
    buckets: Box<[ArcSwapOption<Bucket<K, V>>]>,
}

type Bucket<K, V> = Vec<(K, Arc<V>)>;

/// Who gets a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    Everybody,
    /// Those that were named.
    Named,
}

/// Where a frame for a group would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Foreseen {
    /// It is about groups: the snooper decides when it comes.
    Message,
    Everybody,
    /// To these.
    Named(Vec<PortId>),
}

impl<K: Copy + Eq + Hash, V> Table<K, V> {
    fn new() -> Self {
        Self { hashes: RandomState::new(), buckets: (0..BUCKETS).map(|_| ArcSwapOption::empty()).collect() }
    }

    #[inline]
    fn bucket(&self, key: &K) -> &ArcSwapOption<Bucket<K, V>> {
        &self.buckets[self.hashes.hash_one(key) as usize % BUCKETS]
    }

    /// Does something with what stands there.
    #[inline]
    fn with<T>(&self, key: &K, look: impl FnOnce(&V) -> T) -> Option<T> {
        let bucket = self.bucket(key).load();
        bucket.as_ref()?.iter().find(|(other, _)| other == key).map(|(_, value)| look(value))
    }

    fn set(&self, key: K, value: Option<V>) {
        let place = self.bucket(&key);
        let mut bucket: Bucket<K, V> = place.load().as_deref().cloned().unwrap_or_default();
        bucket.retain(|(other, _)| *other != key);
        bucket.extend(value.map(|value| (key, Arc::new(value))));
        place.store((!bucket.is_empty()).then(|| Arc::new(bucket)));
    }
}

impl View {
    /// Names the ports that get a frame for a group's address, some of them twice, or says that everybody does.
    fn audience(&self, vlan: Vlan, group: MacKey, family: Family, mut name: impl FnMut(PortId)) -> Audience {
        let found = self.domains.with(&(vlan, family), |always| {
            self.groups.with(&(vlan, group), |ports| ports.iter().copied().for_each(&mut name));
            always.iter().copied().for_each(&mut name);
            Audience::Named
        });
        found.unwrap_or(Audience::Everybody)
    }

    fn apply(&self, news: Vec<News>) {
        for news in news {
            match news {
                News::Group(vlan, mac, ports) => {
                    self.groups.set((vlan, mac), (!ports.is_empty()).then(|| ports.into_boxed_slice()));
                }
                News::Domain(vlan, family, domain) => self.domains.set((vlan, family), domain),
            }
        }
    }
}

impl SnooperLink {
    pub(crate) fn new(settings: SnoopingSettings, event: Arc<EventFd>) -> Self {
        let (state, view) = (Mutex::new(Snooper::new(settings)), View { groups: Table::new(), domains: Table::new() });
        let shared = SharedSnooper { state, view, deadline: AtomicU64::new(u64::MAX), event };
        Self { default_vlan: settings.default_vlan, shared: Arc::new(shared) }
    }

    /// Does something with the snooper; what comes of it holds when this returns. The frames are to be sent.
    fn with<T>(&self, work: impl FnOnce(&mut Snooper, &mut Effects) -> T) -> (T, Vec<Outbound>) {
        let mut effects = Effects::default();
        let mut state = self.shared.lock();
        let done = work(&mut state, &mut effects);
        self.shared.view.apply(effects.news);
        let deadline = state.deadline().map_or(u64::MAX, |at| at.since(Timestamp::default()).as_millis() as u64);
        if deadline < self.shared.deadline.swap(deadline, Ordering::Relaxed) {
            // Can't fail while the owner lives, and without it nobody wants to know.
            let _ = self.shared.event.write(1);
        }
        (done, effects.frames)
    }

    fn deadline(&self) -> Option<Timestamp> {
        Some(self.shared.deadline.load(Ordering::Relaxed)).filter(|at| *at != u64::MAX).map(Timestamp::from_millis)
    }

    /// What [`Lane::carry_group`] would do with a frame that begins like this, on a network with VLANs in this one.
    pub(crate) fn foresee(&self, frame: &[u8], vlan: Option<Vlan>) -> Foreseen {
        let Some(header) = frame.first_chunk() else { return Foreseen::Everybody };
        let rest = &frame[EthernetHeader::LEN..];
        if rest.first_chunk().is_some_and(|first| concerns(header, *first, None, || rest.first_chunk().copied())) {
            return Foreseen::Message;
        }
        self.shared.named(vlan.unwrap_or(self.default_vlan), header).map_or(Foreseen::Everybody, Foreseen::Named)
    }

    fn vlan(&self, network: &NetworkLink, batch: &Batch, at: usize) -> Vlan {
        if network.vlans.is_some() { batch.stamp(at).vlan } else { self.default_vlan }
    }
}

impl SharedSnooper {
    fn lock(&self) -> MutexGuard<'_, Snooper> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who gets a frame with this header, in order; nothing: everybody.
    fn named(&self, vlan: Vlan, header: &[u8; EthernetHeader::LEN]) -> Option<Vec<PortId>> {
        let Scope::Members(family) = scope(header) else { return None };
        let mut ports = Vec::new();
        let audience = self.view.audience(vlan, EthernetHeader::parse(header).destination, family, |port| ports.push(port));
        ports.sort_unstable();
        ports.dedup();
        (audience == Audience::Named).then_some(ports)
    }
}

impl Lane {
    /// Notes the receivers of a frame for a group. False if it is for everybody.
    #[inline(never)]
    pub(crate) fn carry_group(
        &mut self,
        network: &NetworkLink,
        ingress: &PortLink,
        (batch, frame, bit): (&Batch, &Frame, usize),
    ) -> bool {
        let Some(snooper) = &network.snooper else { return false };
        let first = batch.payload(frame).read_array();
        let pending = frame.offload.checksum;
        if first.is_some_and(|first| concerns(&frame.header, first, pending, || batch.payload(frame).read_array())) {
            self.for_snooper |= 1 << bit;
            return true;
        }
        let group = EthernetHeader::parse(&frame.header).destination;
        let mut found = false;
        let audience = match scope(&frame.header) {
            Scope::Everybody => Audience::Everybody,
            Scope::Members(family) => {
                let vlan = snooper.vlan(network, batch, bit);
                snooper
                    .shared
                    .view
                    .audience(vlan, group, family, |port| found |= port != ingress.id && self.add_if_there(port, bit))
            }
        };
        if audience == Audience::Named && !found {
            ingress.counters.drop_frames(DropReason::NoMember, 1);
        }
        audience == Audience::Named
    }

    /// Shows the snooper what hosts and routers say about groups, and sends what comes of that.
    #[cold]
    #[inline(never)]
    pub(crate) fn pass_snooper(
        &mut self,
        snapshot: &Snapshot,
        (network, snooper): (&NetworkLink, &SnooperLink),
        ingress: &PortLink,
        batch: &Batch,
        now: Timestamp,
    ) {
        self.dispatched_on = ingress.network;
        let mut frames = std::mem::take(&mut self.for_snooper);
        let may_route = ingress.guard.as_ref().is_none_or(|guard| guard.may_route);
        let is_isolated = ingress.isolation != Isolation::None;
        let mut copies = Vec::with_capacity(frames.count_ones() as usize);
        while frames != 0 {
            let at = frames.trailing_zeros() as usize;
            let frame = batch.next_of(&mut frames);
            let mut bytes = Vec::new();
            private_copy(batch, frame, &mut bytes);
            let mut offload = frame.offload;
            if let (Some(partial), None) = (offload.checksum, offload.segmentation) {
                complete_checksum(&mut bytes, partial);
                offload = Offload::NONE;
            }
            let message = GroupMessage::read(&bytes, offload.segmentation.is_some());
            copies.push((
                snooper.vlan(network, batch, at),
                message,
                Dispatch {
                    to: Receivers::AllBut(ingress.id),
                    from: Some(ingress.id),
                    frame: bytes,
                    offload,
                    stamp: network.vlans.as_ref().map(|_| batch.stamp(at)),
                },
            ));
        }
        // What only looked like a message needs no lock.
        let mut queries = Vec::new();
        let mut passages = vec![Passage::Ordinary; copies.len()];
        if copies.iter().any(|(_, message, _)| !message.is_other()) {
            ((), queries) = snooper.with(|state, effects| {
                for (passage, (vlan, message, _)) in passages.iter_mut().zip(&copies).filter(|(_, copy)| !copy.1.is_other()) {
                    let arrival = Arrival { port: ingress.id, vlan: *vlan, may_route, is_isolated, message };
                    *passage = state.receive(now, &arrival, effects);
                }
            });
        }
        for (passage, (vlan, _, mut dispatch)) in passages.into_iter().zip(copies) {
            let to = match passage {
                Passage::Drop(reason) => {
                    ingress.counters.drop_frames(reason, 1);
                    continue;
                }
                Passage::Everybody => None,
                Passage::To(ports) => Some(ports),
                Passage::Ordinary => match dispatch.frame.first_chunk().and_then(|header| snooper.shared.named(vlan, header)) {
                    Some(ports) if !ports.iter().any(|port| *port != ingress.id) => {
                        ingress.counters.drop_frames(DropReason::NoMember, 1);
                        continue;
                    }
                    ports => ports,
                },
            };
            if let Some(ports) = to {
                dispatch.to = Receivers::These(ports.into_iter().filter(|port| *port != ingress.id).collect());
            }
            self.dispatches.push(dispatch);
        }
        self.dispatches.extend(queries.into_iter().map(Dispatch::from));
        self.finish_sending(snapshot);
    }
}

impl From<Outbound> for Dispatch {
    fn from(Outbound { vlan, to, frame }: Outbound) -> Self {
        let to = to.map_or(Receivers::All, Receivers::One);
        Self { to, from: None, frame, offload: Offload::NONE, stamp: Some(Stamp::of(vlan)) }
    }
}

impl Fabric {
    /// Tells snoopers which ports can receive, before workers see them.
    pub(crate) fn sync_snoopers(&self) {
        let mut ports: Vec<_> =
            self.networks.iter().map(|network| network.as_ref()?.snooper.as_ref().map(|_| BTreeMap::new())).collect();
        for link in self.links.iter().flatten().filter(|link| link.receives()) {
            if let Some(Some(ports)) = ports.get_mut(link.network.index()) {
                ports.insert(link.id, link.role.clone());
            }
        }
        for (network, ports) in self.networks.iter().zip(ports) {
            if let (Some(snooper), Some(ports)) = (network.as_ref().and_then(|network| network.snooper.as_ref()), ports) {
                // It sends nothing.
                let _ = snooper.with(|state, effects| state.set_ports(ports, effects));
            }
        }
    }
}

impl Dataplane {
    /// Begins to snoop on a network, goes on with other settings, or ends it; the change holds when workers have been shown the network. True if they have to be.
    pub(crate) fn set_snooping(&mut self, id: NetworkId, settings: Option<SnoopingSettings>) -> bool {
        let event = Arc::clone(&self.event);
        let Some(network) = self.fabric.networks.get_mut(id.index()).and_then(Option::as_mut) else { return false };
        match (&mut network.snooper, settings) {
            (None, None) => false,
            (Some(snooper), Some(settings)) => {
                if *snooper.shared.lock().settings() == settings {
                    return false;
                }
                let ((), _) = snooper.with(|state, effects| state.reconfigure(settings, effects));
                std::mem::replace(&mut snooper.default_vlan, settings.default_vlan) != settings.default_vlan
            }
            (place, settings) => {
                *place = settings.map(|settings| SnooperLink::new(settings, event));
                true
            }
        }
    }

    /// How multicast is on a network; nothing if nobody snoops there.
    #[must_use]
    pub fn snooping_status(&self, id: NetworkId) -> Option<SnoopingStatus> {
        let snooper = self.fabric.network(id)?.snooper.as_ref()?;
        Some(snooper.shared.lock().status(self.clock.now()))
    }

    /// Does what is due on all networks, and says when that is next.
    pub(crate) fn tick_snoopers(&mut self, now: Timestamp) -> Option<Timestamp> {
        let mut next: Option<Timestamp> = None;
        for (place, network) in self.fabric.networks.iter().enumerate() {
            let Some(snooper) = network.as_ref().and_then(|network| network.snooper.as_ref()) else { continue };
            let id = NetworkId(place as u16);
            if snooper.deadline().is_some_and(|at| at <= now) {
                // Those who wait for an answer of DHCP or DNS come first.
                if !self.fabric.sender(id).has_room() {
                    next = Some(now.after(ROOM_INTERVAL));
                    continue;
                }
                let ((), queries) = snooper.with(|state, effects| state.tick(now, effects));
                // There is room for all: a tick has fewer than half of what may wait.
                let _ = self.fabric.send(id, queries.into_iter().map(Dispatch::from).collect());
            }
            next = [next, snooper.deadline()].into_iter().flatten().min();
        }
        next
    }

    /// As [`Self::set_snooping`], with the workers.
    ///
    /// # Errors
    /// When a worker is stuck; the change is made all the same.
    pub(crate) fn apply_snooping(&mut self, id: NetworkId, settings: Option<SnoopingSettings>) -> Result<(), DataplaneError> {
        if self.set_snooping(id, settings) { Ok(self.fabric.publish()?) } else { Ok(()) }
    }
}
