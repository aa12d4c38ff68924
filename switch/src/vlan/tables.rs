//! The forwarding databases of a network with VLANs: one for each (IEEE 802.1Q-2018, 8.8: independent learning).
//!
//! # Theory
//!
//! What a network's forwarding database may hold is divided among its VLANs, by how many ports they have. So whoever floods one VLAN
//! with addresses takes nothing away from the others. A VLAN that ports can send in with a tag only has a small share, and each has [`SMALLEST`] entries, which is what
//! the sum may exceed the network's capacity by. The memory of a table comes with its first address.
//!
//! When ports come or go, shares change. A table takes what it has learned with it, as far as that has room.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use super::{PortRole, Vlan, VlanCounters, VlanId, VlanSet, VlanTraffic};
use crate::{Census, Fdb, FdbCounters, FdbEntry, FdbSettings, MacAddr, PortId, Timestamp};

/// Addresses for which there is room in every VLAN, unless the network has less for all.
pub(super) const SMALLEST: usize = 32;
/// A port whose frames without a tag are in a VLAN counts as many that can name it in a tag.
const AT_HOME: u64 = 16;
const NO_TABLE: u16 = u16::MAX;

/// How many addresses are to be expected in each VLAN, in proportion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights(BTreeMap<Vlan, u64>);

/// The forwarding databases of a network, by VLAN.
#[derive(Debug)]
pub struct VlanTables {
    default: Vlan,
    /// By [`Vlan::index`]: the place of its table, or [`NO_TABLE`].
    places: Box<[u16; Vlan::COUNT]>,
    tables: Vec<Table>,
    census: Arc<Census>,
}

#[derive(Debug)]
struct Table {
    vlan: Vlan,
    settings: FdbSettings,
    fdb: OnceLock<Arc<Fdb>>,
    traffic: Arc<VlanTraffic>,
}

/// The static entries of a network, by VLAN.
pub type StaticStations = BTreeMap<Vlan, Vec<(MacAddr, PortId)>>;

impl Weights {
    /// The weights of all VLANs that these ports, or the default one, make use of.
    #[must_use]
    pub fn of<'a>(default: VlanId, roles: impl IntoIterator<Item = &'a PortRole>) -> Self {
        let mut weights = vec![0_u64; Vlan::COUNT];
        weights[Vlan::customer(default).index()] = 1;
        // Trunks mostly have their lists in common.
        let mut lists: HashMap<&VlanSet, u64> = HashMap::new();
        for role in roles {
            if let Some(vlan) = role.untagged() {
                weights[vlan.index()] += AT_HOME;
            }
            if let PortRole::Trunk(trunk) = role {
                *lists.entry(&trunk.allowed).or_default() += 1;
            }
        }
        for (allowed, count) in lists {
            for id in allowed.iter() {
                weights[Vlan::customer(id).index()] += count;
                weights[Vlan::service(id).index()] += count;
            }
        }
        let all = VlanId::all().flat_map(|id| [Vlan::customer(id), Vlan::service(id)]);
        Self(all.map(|vlan| (vlan, weights[vlan.index()])).filter(|(_, weight)| *weight > 0).collect())
    }

    /// The VLANs, in order.
    pub fn vlans(&self) -> impl Iterator<Item = Vlan> {
        self.0.keys().copied()
    }

    /// What each VLAN gets of `capacity`.
    pub(super) fn shares(&self, capacity: usize) -> impl Iterator<Item = (Vlan, usize)> {
        let total: u64 = self.0.values().sum();
        self.0.iter().map(move |(&vlan, weight)| {
            // No truncation: at most the capacity.
            let share = (capacity as u64 * weight / total.max(1)) as usize;
            (vlan, share.max(SMALLEST.min(capacity)))
        })
    }
}

impl VlanTables {
    /// Divides `settings.capacity`. What `old` has learned is kept for VLANs that are still there; without it, what `undivided` has learned, when the network
    /// had no VLANs, belongs to the default one. There is room for `stations`, too, twice.
    #[must_use]
    pub fn new(
        settings: FdbSettings,
        default: VlanId,
        (weights, stations): (&Weights, &StaticStations),
        old: Option<&Self>,
        undivided: &Arc<Fdb>,
    ) -> Self {
        let default = Vlan::customer(default);
        let before = |vlan: Vlan| match old {
            Some(old) => old.table(vlan).and_then(|table| table.fdb.get()),
            None => Some(undivided).filter(|_| vlan == default),
        };
        let mut places = Box::new([NO_TABLE; Vlan::COUNT]);
        let mut tables = Vec::new();
        for (vlan, capacity) in weights.shares(settings.capacity) {
            let capacity = capacity.max(2 * stations.get(&vlan).map_or(0, Vec::len));
            let settings = FdbSettings { capacity, ..settings };
            // No truncation: there are fewer than `NO_TABLE`.
            places[vlan.index()] = tables.len() as u16;
            let fdb = before(vlan).map_or_else(OnceLock::new, |fdb| OnceLock::from(fdb.with_settings(settings)));
            let traffic = old.and_then(|old| old.table(vlan)).map(|table| Arc::clone(&table.traffic)).unwrap_or_default();
            tables.push(Table { vlan, settings, fdb, traffic });
        }
        Self { default, places, tables, census: Arc::clone(undivided.census()) }
    }

    /// As [`Fdb::set_static`], for all VLANs. Returns those for which there is no room, or no such VLAN.
    pub fn set_static(&self, stations: &StaticStations) -> Vec<(Vlan, MacAddr)> {
        for (_, fdb) in self.in_use().filter(|(vlan, _)| !stations.contains_key(vlan)) {
            fdb.set_static::<MacAddr>([]);
        }
        let mut left_out = Vec::new();
        for (&vlan, stations) in stations {
            match self.fdb(vlan) {
                Some(fdb) => {
                    let without_room = fdb.set_static(stations.iter().copied());
                    left_out.extend(without_room.into_iter().map(|mac| (vlan, mac.into())));
                }
                None => left_out.extend(stations.iter().map(|(mac, _)| (vlan, *mac))),
            }
        }
        left_out
    }

    /// As [`Fdb::trim`], one VLAN after the other.
    pub fn trim(&self, port: PortId) {
        self.in_use().for_each(|(_, fdb)| fdb.trim(port));
    }

    /// The VLAN of ports without a role, and of the gateway.
    #[must_use]
    pub fn default_vlan(&self) -> Vlan {
        self.default
    }

    /// The forwarding database of a VLAN that some port is a member of.
    #[inline(always)]
    #[must_use]
    pub fn fdb(&self, vlan: Vlan) -> Option<&Arc<Fdb>> {
        self.table(vlan).map(|table| table.fdb(&self.census))
    }

    /// Where it is counted what comes into a VLAN that some port is a member of.
    #[must_use]
    pub fn traffic(&self, vlan: Vlan) -> Option<&VlanTraffic> {
        self.table(vlan).map(|table| &*table.traffic)
    }

    /// What has come into each VLAN, in order; those that nothing has come into are left out.
    #[must_use]
    pub fn traffic_counters(&self) -> Vec<(Vlan, VlanCounters)> {
        let counters = self.tables.iter().map(|table| (table.vlan, table.traffic.counters()));
        counters.filter(|(_, counters)| counters.frames > 0).collect()
    }

    /// Forgets every address behind `port`.
    pub fn forget_port(&self, port: PortId) {
        self.in_use().for_each(|(_, fdb)| fdb.forget_port(port));
    }

    /// As [`Fdb::expire`].
    pub fn expire(&self, now: Timestamp) {
        self.in_use().for_each(|(_, fdb)| fdb.expire(now));
    }

    /// As [`Fdb::flush`].
    pub fn flush(&self) -> usize {
        self.in_use().map(|(_, fdb)| fdb.flush()).sum()
    }

    /// As [`Fdb::entries`], each with its VLAN.
    #[must_use]
    pub fn entries(&self, now: Timestamp) -> Vec<(Vlan, FdbEntry)> {
        let of = |(vlan, fdb): (Vlan, &Arc<Fdb>)| fdb.entries(now).into_iter().map(move |entry| (vlan, entry));
        self.in_use().flat_map(of).collect()
    }

    /// How many addresses are in all tables.
    #[must_use]
    pub fn len(&self) -> usize {
        self.in_use().map(|(_, fdb)| fdb.len()).sum()
    }

    /// True if nothing was learned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What all tables did.
    #[must_use]
    pub fn counters(&self) -> FdbCounters {
        self.in_use().map(|(_, fdb)| fdb.counters()).fold(FdbCounters::default(), std::ops::Add::add)
    }

    #[inline(always)]
    fn table(&self, vlan: Vlan) -> Option<&Table> {
        self.tables.get(usize::from(self.places[vlan.index() % Vlan::COUNT]))
    }

    /// The tables in which something was learned at some time.
    fn in_use(&self) -> impl Iterator<Item = (Vlan, &Arc<Fdb>)> {
        self.tables.iter().filter_map(|table| table.fdb.get().map(|fdb| (table.vlan, fdb)))
    }
}

impl Table {
    #[inline(always)]
    fn fdb(&self, census: &Arc<Census>) -> &Arc<Fdb> {
        self.fdb.get_or_init(|| Arc::new(Fdb::new(self.settings, census)))
    }
}
