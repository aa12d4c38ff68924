//! The methods of the control socket that are about leases, and what is shown of a network's services.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use weft_switch::NetworkId;
use weft_switch::dhcp::{ClientId, DhcpCounters, DhcpServer, LeaseRecord, LeaseState, ReservationOwner};
use weft_switch::dns::DnsCounters;

use crate::addressing::server_list;
use crate::api::{DhcpInfo, DnsInfo, LeaseAdd, LeaseLine, LeaseOf, MaybeNetwork};
use crate::config::Config;
use crate::refusal::Refusal;
use crate::routes::is_free;
use crate::rpc::RpcError;
use crate::services::wall_clock;
use crate::switch::Switch;
use crate::values::Name;

impl Switch {
    pub(crate) fn list_leases(&self, params: &MaybeNetwork) -> Result<Vec<LeaseLine>, RpcError> {
        let chosen = self.chosen(params)?;
        Ok(chosen.iter().flat_map(|network| self.leases_of(network).into_values()).collect())
    }

    pub(crate) fn add_lease(&mut self, params: LeaseAdd) -> Result<LeaseLine, RpcError> {
        let LeaseAdd { network: name, lease } = params;
        let (address, hostname) = (lease.address, lease.hostname.clone());
        let mut wanted = self.config.clone();
        let Some(network) = wanted.networks.get_mut(&name) else { return Err(self.no_network(&name).into()) };
        if network.leases.iter().any(|other| other.address == address) {
            return Err(Refusal::LeaseExists { network: name, address }.into());
        }
        network.leases.push(lease);
        let Some(dhcp) = self.networks.get(&name).and_then(|id| self.services.dhcp(*id)) else {
            return Err(Refusal::NoDhcp { network: name }.into());
        };
        if let Some(hostname) = &hostname
            && let Some(other) = dhcp.address_of(hostname).filter(|other| *other != address)
        {
            return Err(Refusal::HostNameTaken { network: name, hostname: hostname.clone(), address: other }.into());
        }
        self.pin_subnet(&mut wanted, &name);
        self.apply(&wanted)?;
        let line = self.leases_of(&name).remove(&address);
        line.ok_or_else(|| RpcError::internal(format!("the lease of {address} is not there")))
    }

    /// An address may be kept on a network whose subnet weft chose: that one is declared from now on.
    pub(crate) fn pin_subnet(&self, wanted: &mut Config, name: &Name) {
        if let Some(network) = wanted.networks.get_mut(name) {
            network.subnet = network.subnet.or_else(|| self.subnets.get(name).copied());
        }
    }

    /// A subnet that weft chose stays what it is when another network is to have the same: at the next start it would have to make way.
    pub(crate) fn pin_overlapped(&self, wanted: &mut Config, name: &Name) {
        let Some(subnet) = wanted.networks.get(name).and_then(|network| network.subnet) else { return };
        let others = self.subnets.iter().filter(|(other, taken)| *other != name && !is_free(subnet, &[], &[**taken]));
        others.for_each(|(other, _)| self.pin_subnet(wanted, other));
    }

    pub(crate) fn remove_lease(&mut self, params: LeaseOf) -> Result<LeaseOf, RpcError> {
        let LeaseOf { network: name, address } = &params;
        let Some(&id) = self.networks.get(name) else { return Err(self.no_network(name).into()) };
        if !self.leases_of(name).contains_key(address) {
            return Err(Refusal::NoLease { network: name.clone(), address: *address }.into());
        }
        let mut on_network = self.config.ports.iter().filter(|(_, port)| port.network == *name);
        if let Some((port, _)) = on_network.find(|(_, port)| port.address == Some(*address)) {
            return Err(Refusal::PortLease { network: name.clone(), address: *address, port: port.clone() }.into());
        }
        let mut wanted = self.config.clone();
        if let Some(network) = wanted.networks.get_mut(name) {
            network.leases.retain(|lease| lease.address != *address);
        }
        self.apply(&wanted)?;
        self.services.end_lease(&mut self.dataplane, id, *address);
        Ok(params)
    }

    /// What is known about the addresses of a network.
    fn leases_of(&self, network: &Name) -> BTreeMap<Ipv4Addr, LeaseLine> {
        let Some(server) = self.networks.get(network).and_then(|id| self.services.dhcp(*id)) else { return BTreeMap::new() };
        let mut lines: BTreeMap<_, _> = server
            .settings()
            .reservations
            .iter()
            .map(|reservation| {
                let (client, mac, port) = match &reservation.owner {
                    ReservationOwner::Mac(mac) => (Some(mac.to_string()), Some(*mac), None),
                    ReservationOwner::ClientId(id) => (Some(id.to_string()), None, None),
                    ReservationOwner::Port(port) => (None, None, Some(port.clone())),
                };
                let line = LeaseLine {
                    network: network.clone(),
                    address: reservation.address,
                    state: "reserved".to_owned(),
                    fixed: true,
                    client,
                    mac,
                    port,
                    hostname: reservation.hostname.as_ref().map(ToString::to_string),
                    seconds_left: None,
                    kept_for: None,
                };
                (reservation.address, line)
            })
            .collect();
        let now = wall_clock();
        for record in server.records().filter(|record| record.until > now) {
            let kept = server.settings().reservations.iter().find(|reservation| reservation.address == record.address);
            let other_owner = kept.filter(|reservation| !is_for(&reservation.owner, &record));
            let line = LeaseLine {
                network: network.clone(),
                address: record.address,
                state: match record.state {
                    LeaseState::Leased => "leased",
                    LeaseState::Quarantined => "quarantined",
                }
                .to_owned(),
                fixed: kept.is_some() && other_owner.is_none(),
                client: Some(record.client.to_string()),
                mac: Some(record.mac),
                port: Some(record.port),
                hostname: server.name_of(record.address).map(ToString::to_string),
                seconds_left: Some(record.until.0 - now.0),
                kept_for: other_owner.map(|kept| owner_text(&kept.owner)),
            };
            lines.insert(record.address, line);
        }
        lines
    }

    pub(crate) fn dhcp_info(&self, id: NetworkId) -> Option<DhcpInfo> {
        let server: &DhcpServer = self.services.dhcp(id)?;
        let DhcpCounters { offers, leases, naks, informs, releases, declines, in_use, expired, pool_full, share_exceeded } =
            server.counters();
        Some(DhcpInfo {
            range: server.settings().pool.to_string(),
            free: server.free_addresses(),
            lease_seconds: server.settings().lease_time.as_secs(),
            counters: named(&[
                ("offers", offers),
                ("leases", leases),
                ("naks", naks),
                ("informs", informs),
                ("releases", releases),
                ("declines", declines),
                ("in_use", in_use),
                ("expired", expired),
                ("pool_full", pool_full),
                ("share_exceeded", share_exceeded),
            ]),
        })
    }

    pub(crate) fn dns_info(&mut self, name: &Name, id: NetworkId) -> Option<DnsInfo> {
        let domain = self.config.networks.get(name)?.domain.to_string();
        let (forwarder, servers) = self.services.dns(id)?;
        let DnsCounters {
            queries,
            local,
            cached,
            attempts,
            over_tcp,
            upstream_failures,
            foreign_answers,
            unanswered,
            share_exceeded,
        } = forwarder.counters();
        Some(DnsInfo {
            domain,
            servers: servers.iter().map(|server| server_list(&[*server])).collect(),
            cached: forwarder.cached(),
            counters: named(&[
                ("queries", queries),
                ("local", local),
                ("cached", cached),
                ("attempts", attempts),
                ("over_tcp", over_tcp),
                ("upstream_failures", upstream_failures),
                ("foreign_answers", foreign_answers),
                ("unanswered", unanswered),
                ("share_exceeded", share_exceeded),
            ]),
        })
    }
}

/// True if the client with this lease is the one for whom its address is kept.
fn is_for(owner: &ReservationOwner, lease: &LeaseRecord) -> bool {
    match owner {
        ReservationOwner::Mac(mac) => lease.mac == *mac,
        ReservationOwner::ClientId(id) => lease.client == ClientId::Identifier(id.clone()),
        ReservationOwner::Port(port) => lease.port == *port,
    }
}

fn owner_text(owner: &ReservationOwner) -> String {
    match owner {
        ReservationOwner::Mac(mac) => mac.to_string(),
        ReservationOwner::ClientId(id) => id.to_string(),
        ReservationOwner::Port(port) => format!("port {port}"),
    }
}

fn named(counters: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}
