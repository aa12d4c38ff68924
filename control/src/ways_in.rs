//! The ways in that are open: forwards as they are declared, and what the dataplane was told about them.
//!
//! A forward may name a guest that is not there yet, or gets another address one day. Its ports are open while the guest has one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use tracing::{info, warn};
use weft_dataplane::{Dataplane, ForwardError};
use weft_switch::{NetworkId, Timestamp};

use crate::config::NetworkConfig;
use crate::forward::{ForwardHost, ForwardRule};
use crate::refusal::StepError;
use crate::services::Services;
use crate::switch::Switch;

/// How often a forward that could not be opened is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The ways into all networks.
#[derive(Debug, Default)]
pub(crate) struct WaysIn {
    networks: BTreeMap<NetworkId, Vec<WayIn>>,
    /// When those that failed are tried again.
    retry_at: Timestamp,
}

/// A forward, and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WayIn {
    pub(crate) rule: ForwardRule,
    /// The guest's address, if it has one.
    pub(crate) guest: Option<Ipv4Addr>,
    /// Why it can't be opened.
    pub(crate) failed: Option<ForwardError>,
}

impl WaysIn {
    pub(crate) fn of(&self, id: NetworkId) -> &[WayIn] {
        self.networks.get(&id).map_or(&[], Vec::as_slice)
    }

    /// A network is gone, and all ways into it.
    pub(crate) fn remove(&mut self, id: NetworkId) {
        self.networks.remove(&id);
    }

    /// Brings the ways into a network to what is declared. What stays as it is is not touched, and connections that were made by a way that
    /// is closed stay, too. Returns those that could not be opened.
    fn bring_to(
        &mut self,
        dataplane: &mut Dataplane,
        services: &Services,
        id: NetworkId,
        rules: &[ForwardRule],
    ) -> Vec<(ForwardRule, ForwardError)> {
        let old = self.networks.remove(&id).unwrap_or_default();
        let wanted: Vec<_> = rules.iter().map(|rule| (rule, address_of(services, id, rule))).collect();
        let is_wanted = |way: &WayIn| wanted.contains(&(&way.rule, way.guest));
        // First what goes: what comes may have its ports.
        old.iter().filter(|way| !is_wanted(way)).for_each(|way| way.close(dataplane, id));
        old.iter().filter(|way| !rules.contains(&way.rule)).for_each(|way| info!("{} is not forwarded any more", way.rule.from));
        let mut failed = Vec::new();
        let mut ways = Vec::new();
        for (rule, guest) in wanted {
            if let Some(same) = old.iter().find(|way| way.rule == *rule && way.guest == guest && way.failed.is_none()) {
                ways.push(same.clone());
                continue;
            }
            let way = WayIn::open(dataplane, id, rule, guest);
            // What can't be had is known now, even if there is no guest yet to whom it would lead.
            let is_new = || !old.iter().any(|way| way.rule == *rule);
            let probed = if guest.is_none() && is_new() { probe(rule) } else { Ok(()) };
            let ForwardRule { from, to } = rule;
            match (way.failed.or(probed.err()), guest) {
                (Some(error), _) => failed.push((rule.clone(), error)),
                (None, Some(_)) => info!("{from} is forwarded to {to}"),
                (None, None) => info!("{from} will be forwarded to {to} as soon as a guest has that name"),
            }
            ways.push(way);
        }
        if !ways.is_empty() {
            self.networks.insert(id, ways);
        }
        failed
    }

    /// Notes where guests that forwards name are by now, and tries those again that failed.
    fn follow_names(&mut self, dataplane: &mut Dataplane, services: &Services) {
        let now = dataplane.now();
        let retries = now >= self.retry_at;
        if retries {
            self.retry_at = now.after(RETRY_INTERVAL);
        }
        for (id, ways) in &mut self.networks {
            for way in ways.iter_mut().filter(|way| way.failed.is_some() || matches!(way.rule.to.host, ForwardHost::Name(_))) {
                let guest = address_of(services, *id, &way.rule);
                if guest == way.guest {
                    if retries && way.failed.is_some() {
                        *way = WayIn::open(dataplane, *id, &way.rule, guest);
                        if way.failed.is_none() {
                            info!("{} is forwarded to {} now", way.rule.from, way.rule.to);
                        }
                    }
                    continue;
                }
                way.close(dataplane, *id);
                *way = WayIn::open(dataplane, *id, &way.rule, guest);
                let ForwardRule { from, to } = &way.rule;
                match (guest, way.failed) {
                    (_, Some(error)) => warn!("{from} can't be forwarded to {to}: {error}"),
                    (Some(guest), None) => info!("{from} is forwarded to {to}, which is {guest} now"),
                    (None, None) => info!("{from} is not forwarded any more, since {to} has no address"),
                }
            }
        }
    }
}

impl WayIn {
    /// Opens all ports of a forward, or none.
    fn open(dataplane: &mut Dataplane, id: NetworkId, rule: &ForwardRule, guest: Option<Ipv4Addr>) -> Self {
        let mut way = Self { rule: rule.clone(), guest, failed: None };
        let Some(address) = guest else { return way };
        for forward in rule.forwards(address) {
            if let Err(error) = dataplane.add_forward(id, forward) {
                // Those before it; the others are not there.
                rule.forwards(address).take_while(|other| *other != forward).for_each(|other| {
                    dataplane.remove_forward(id, &other);
                });
                way.failed = Some(error);
                break;
            }
        }
        way
    }

    fn close(&self, dataplane: &mut Dataplane, id: NetworkId) {
        let Some(guest) = self.guest.filter(|_| self.failed.is_none()) else { return };
        for forward in self.rule.forwards(guest) {
            dataplane.remove_forward(id, &forward);
        }
    }
}

impl Switch {
    /// Opens the ways in that are declared for a network, and closes those that are not any more.
    pub(crate) fn open_ways_in(&mut self, id: NetworkId, network: &NetworkConfig) -> Result<(), StepError> {
        for (ForwardRule { from, to }, source) in
            self.ways_in.bring_to(&mut self.dataplane, &self.services, id, &network.forwards)
        {
            if !self.unattended {
                return Err(StepError::Forward { from, source });
            }
            // Whoever has its port must not keep all guests from their networks.
            warn!("{from} can't be forwarded to {to}, and is tried again until it can: {source}");
        }
        Ok(())
    }

    /// Lets forwards follow the guests that they name.
    pub(crate) fn follow_names(&mut self) {
        self.ways_in.follow_names(&mut self.dataplane, &self.services);
    }
}

/// Finds out whether all ports of the host that a forward wants can be had.
fn probe(rule: &ForwardRule) -> Result<(), ForwardError> {
    // Whose guest it would lead to is all the same.
    rule.forwards(Ipv4Addr::UNSPECIFIED).try_for_each(|forward| forward.probe())
}

fn address_of(services: &Services, id: NetworkId, rule: &ForwardRule) -> Option<Ipv4Addr> {
    match &rule.to.host {
        ForwardHost::Address(address) => Some(*address),
        ForwardHost::Name(name) => services.address_of(id, name),
    }
}
