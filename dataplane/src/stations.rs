//! The forwarding databases of a network as its owner sees them: what is in them, what is declared to be, and what ports may have.

use weft_switch::vlan::{StaticStations, Vlan};
use weft_switch::{FdbCounters, FdbEntry, Flap, NetworkId, PortId, PortStations, StationLimit, Timestamp};

use crate::dataplane::{Dataplane, DataplaneError};
use crate::fabric::{Fabric, Network};

impl Network {
    /// Forgets every address behind `port`.
    pub(crate) fn forget_port(&self, port: PortId) {
        match &self.vlans {
            Some(tables) => tables.forget_port(port),
            None => self.fdb.forget_port(port),
        }
    }

    /// Forgets addresses that are too old.
    pub(crate) fn expire(&self, now: Timestamp) {
        match &self.vlans {
            Some(tables) => tables.expire(now),
            None => self.fdb.expire(now),
        }
    }

    /// Forgets everything; returns how many addresses there were.
    pub(crate) fn flush(&self) -> usize {
        self.vlans.as_ref().map_or_else(|| self.fdb.flush(), |tables| tables.flush())
    }

    /// Every address that was learned, with its VLAN if there are any.
    pub(crate) fn entries(&self, now: Timestamp) -> Vec<(Option<Vlan>, FdbEntry)> {
        match &self.vlans {
            Some(tables) => tables.entries(now).into_iter().map(|(vlan, entry)| (Some(vlan), entry)).collect(),
            None => self.fdb.entries(now).into_iter().map(|entry| (None, entry)).collect(),
        }
    }

    /// How many addresses there are, and what became of others.
    pub(crate) fn learned(&self) -> (usize, FdbCounters) {
        match &self.vlans {
            Some(tables) => (tables.len(), tables.counters()),
            None => (self.fdb.len(), self.fdb.counters()),
        }
    }

    /// Puts the static entries where they belong, and tells of those that have no place.
    pub(crate) fn fix_stations(&self) {
        let left_out = match &self.vlans {
            Some(tables) => tables.set_static(&self.stations),
            None => {
                let all = self.stations.values().flatten().copied();
                let default = Vlan::customer(self.default_vlan);
                self.fdb.set_static(all).into_iter().map(|mac| (default, mac.into())).collect()
            }
        };
        for (vlan, mac) in left_out {
            tracing::error!("the static entry of {mac} in VLAN {} has no place in the forwarding database", vlan.id());
        }
    }

    /// A port may have fewer stations than before.
    fn trim(&self, port: PortId) {
        match &self.vlans {
            Some(tables) => tables.trim(port),
            None => self.fdb.trim(port),
        }
    }
}

impl Fabric {
    /// Says how many stations a port may have.
    pub(crate) fn limit_stations(&self, id: NetworkId, port: PortId, limit: Option<StationLimit>) {
        if let Some(network) = self.network(id) {
            network.fdb.census().set_limit(port, limit);
            network.trim(port);
        }
    }

    /// A port has gone: what is declared of its stations and counted of it goes with it.
    pub(crate) fn forget_stations(&mut self, id: NetworkId, port: PortId) {
        if let Some(network) = self.networks.get_mut(id.index()).and_then(Option::as_mut) {
            network.stations.values_mut().for_each(|stations| stations.retain(|(_, at)| *at != port));
            network.stations.retain(|_, stations| !stations.is_empty());
            network.fdb.census().forget(port);
        }
    }
}

impl Dataplane {
    /// Makes these the static entries of a network: who is behind which port, in each VLAN; on a network without VLANs they are all in the
    /// one table. Where a VLAN has none of them, its size does not change.
    ///
    /// # Errors
    /// When a worker is stuck; the change is made all the same.
    pub fn set_static_stations(&mut self, id: NetworkId, stations: StaticStations) -> Result<(), DataplaneError> {
        let Some(network) = self.fabric.networks.get_mut(id.index()).and_then(Option::as_mut) else { return Ok(()) };
        if network.stations == stations {
            return Ok(());
        }
        network.stations = stations;
        self.fabric.divide(id);
        Ok(self.fabric.publish()?)
    }

    /// What is known of the stations behind a port; nothing if there is no such port.
    #[must_use]
    pub fn port_stations(&self, id: PortId) -> Option<PortStations> {
        let link = self.fabric.links.get(id.index())?.as_ref()?;
        Some(self.fabric.network(link.network)?.fdb.census().port(id))
    }

    /// The stations that moved too often since this was last asked, and how many more there were than could be kept. Their ports are looked at: they may be in a
    /// loop.
    pub fn take_flaps(&mut self) -> Vec<(NetworkId, Vec<Flap>, u64)> {
        let networks = self.fabric.networks.iter().enumerate().filter_map(|(place, network)| Some((place, network.as_ref()?)));
        let all = networks.map(|(place, network)| {
            let (flaps, more) = network.fdb.census().take_flaps();
            // No truncation: there are at most as many as that can number.
            (NetworkId(place as u16), flaps, more)
        });
        let all: Vec<_> = all.filter(|(_, flaps, _)| !flaps.is_empty()).collect();
        all.iter().for_each(|(_, flaps, _)| self.suspect_loops(flaps));
        all
    }
}
