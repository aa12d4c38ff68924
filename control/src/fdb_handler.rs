//! The methods of the control socket that are about forwarding databases, and what is reported of them.

use std::time::{Duration, Instant};

use tracing::{error, warn};
use weft_switch::vlan::{StaticStations, Vlan};
use weft_switch::{FdbKind, Flap, LogLimit};

use crate::api::{FdbAdd, FdbLine, FdbOf, MaybeNetwork, StationInfo};
use crate::refusal::Refusal;
use crate::rpc::RpcError;
use crate::switch::Switch;
use crate::values::Name;

/// How often it is asked which stations have moved too often.
const FLAP_INTERVAL: Duration = Duration::from_secs(1);

/// Tells of stations that move too often.
#[derive(Debug, Default)]
pub(crate) struct FlapReport {
    /// When it is asked again.
    due: Option<Instant>,
    log: LogLimit,
}

impl Switch {
    pub(crate) fn list_fdb(&self, params: &MaybeNetwork) -> Result<Vec<FdbLine>, RpcError> {
        let names = self.port_names();
        let mut lines = Vec::new();
        for network in self.chosen(params)? {
            // An entry of a port that is gone by now is of no use to anybody.
            lines.extend(self.dataplane.fdb(self.networks[&network]).into_iter().filter_map(|(vlan, entry)| {
                let port = (*names.get(&entry.port)?).clone();
                let vlan = vlan.map(|vlan| vlan.to_string());
                let (kind, age, moves, held) = match entry.kind {
                    FdbKind::Dynamic { age, moves, held } => ("dynamic", Some(age), moves, held),
                    FdbKind::Static => ("static", None, 0, None),
                };
                Some(FdbLine {
                    network: network.clone(),
                    vlan,
                    mac: entry.mac,
                    port,
                    kind: kind.to_owned(),
                    age_seconds: age.map(|age| age.as_secs()),
                    moves,
                    held_seconds: held.map(|held| held.as_secs()),
                })
            }));
        }
        lines.sort_by(|a, b| (&a.network, a.mac, &a.vlan).cmp(&(&b.network, b.mac, &b.vlan)));
        Ok(lines)
    }

    pub(crate) fn add_static_entry(&mut self, params: FdbAdd) -> Result<FdbLine, RpcError> {
        let FdbAdd { network, entry } = params;
        let Some(port) = self.config.ports.get(&entry.port) else { return Err(self.no_port(&entry.port).into()) };
        let network = network.unwrap_or_else(|| port.network.clone());
        let mut wanted = self.config.clone();
        let Some(declared) = wanted.networks.get_mut(&network) else { return Err(self.no_network(&network).into()) };
        declared.fdb.push(entry.clone());
        self.apply(&wanted)?;
        let vlan = wanted.networks.get(&network).and_then(|declared| wanted.vlan_of(&network, declared, &entry).ok());
        let has_vlans = wanted.roles_of(&network).is_some();
        Ok(FdbLine {
            network,
            vlan: vlan.filter(|_| has_vlans).map(|vlan| vlan.to_string()),
            mac: entry.mac.address(),
            port: entry.port,
            kind: "static".to_owned(),
            age_seconds: None,
            moves: 0,
            held_seconds: None,
        })
    }

    pub(crate) fn remove_static_entry(&mut self, params: FdbOf) -> Result<FdbOf, RpcError> {
        let chosen = self.chosen(&MaybeNetwork { network: params.network.clone() })?;
        let mac = params.mac.address();
        let mut found: Vec<(Name, Vlan)> = Vec::new();
        for name in &chosen {
            let id = match &params.vlan {
                // A name that this network does not have is for another.
                Some(vlan) => match self.config.networks[name].vlans.resolve(vlan) {
                    Ok(id) => Some(id),
                    Err(_) => continue,
                },
                None => None,
            };
            let entries =
                self.config.static_entries(name).filter(|(vlan, at, _)| *at == mac && id.is_none_or(|id| vlan.id() == id));
            found.extend(entries.map(|(vlan, ..)| (name.clone(), vlan)));
        }
        let [(network, vlan)] = &found[..] else {
            let error = if found.is_empty() { Refusal::NoStaticEntry { mac } } else { Refusal::SeveralStaticEntries { mac } };
            return Err(error.into());
        };
        let mut wanted = self.config.clone();
        if let Some(declared) = wanted.networks.get_mut(network) {
            declared.fdb.retain(|entry| {
                entry.mac.address() != mac || self.config.vlan_of(network, &self.config.networks[network], entry) != Ok(*vlan)
            });
        }
        self.apply(&wanted)?;
        Ok(FdbOf { network: Some(network.clone()), ..params })
    }

    /// Tells the dataplane of the static entries, after networks or ports have changed.
    pub(crate) fn sync_fdb(&mut self) {
        for (name, id) in self.networks.clone() {
            let mut stations = StaticStations::new();
            for (vlan, mac, port) in self.config.static_entries(&name) {
                if let Some(port) = self.ports.get(port) {
                    stations.entry(vlan).or_default().push((mac, port.id));
                }
            }
            if let Err(error) = self.dataplane.set_static_stations(id, stations) {
                error!("the static entries of network \"{name}\": {error}");
            }
        }
    }

    /// What is said of the stations behind a port.
    pub(crate) fn station_info(&self, name: &Name) -> StationInfo {
        let known = self.ports.get(name).and_then(|port| self.dataplane.port_stations(port.id)).unwrap_or_default();
        StationInfo {
            count: known.count,
            max: known.limit.map(|limit| limit.stations),
            at_max: known.limit.map(|limit| limit.beyond.into()),
            moved: known.moved,
            refused: known.refused,
        }
    }

    /// Writes down which stations have moved too often.
    pub(crate) fn report_flaps(&mut self) {
        let now = Instant::now();
        if self.flaps.due.is_some_and(|due| now < due) {
            return;
        }
        self.flaps.due = Some(now + FLAP_INTERVAL);
        let at = self.dataplane.now();
        for (id, flaps, more) in self.dataplane.take_flaps() {
            let names = self.ports.iter().map(|(name, port)| (port.id, name)).collect::<std::collections::BTreeMap<_, _>>();
            let Some(network) = self.networks.iter().find(|(_, other)| **other == id).map(|(name, _)| name) else { continue };
            for Flap { mac, stays, heard } in flaps {
                let (Some(stays), Some(heard)) = (names.get(&stays), names.get(&heard)) else { continue };
                let suppressed = |lines| warn!("{lines} lines about stations that move too often were left out");
                if self.flaps.log.allows(at, suppressed) {
                    warn!(
                        "network \"{network}\": {mac} moves between ports too often, last from \"{stays}\" to \"{heard}\": it stays at \"{stays}\" for {} s. \
                         Two guests have the same address, or one of them connects two ports",
                        weft_switch::FLAP_HOLD.as_secs()
                    );
                }
            }
            if more > 0 && self.flaps.log.allows(at, |_| ()) {
                warn!("network \"{network}\": {more} more stations move between ports too often");
            }
        }
    }
}
