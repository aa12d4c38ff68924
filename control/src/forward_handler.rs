//! The methods of the control socket that are about ways in and out: forwards, and the mappings of NAT.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use weft_dataplane::{MappingStatus, NatSettings, PortState};
use weft_switch::nat::Protocol;
use weft_switch::{NetworkId, PortId};

use crate::api::{
    ForwardAdd, ForwardLine, ForwardOf, MappingLine, MappingPage, MappingsAsked, MaybeNetwork, Named, NatInfo, NatPort,
};
use crate::forward::{ForwardHost, ForwardRule};
use crate::reach;
use crate::refusal::Refusal;
use crate::rpc::RpcError;
use crate::switch::Switch;
use crate::values::Name;
use crate::ways_in::WayIn;

/// Mappings in one answer: about a third of what a client may leave unread.
const PAGE_MAX: usize = 1000;

impl Switch {
    pub(crate) fn add_forward(&mut self, params: ForwardAdd) -> Result<ForwardLine, RpcError> {
        let ForwardAdd { network: name, forward } = params;
        let mut wanted = self.config.clone();
        let Some(network) = wanted.networks.get_mut(&name) else { return Err(self.no_network(&name).into()) };
        let from = forward.from;
        let names_address = matches!(forward.to.host, ForwardHost::Address(_));
        network.forwards.push(forward);
        if names_address {
            self.pin_subnet(&mut wanted, &name);
        }
        self.apply(&wanted)?;
        let found = self.forwards_of(&name).into_iter().find(|line| line.from == from);
        found.ok_or_else(|| RpcError::internal(format!("the forward of {from} is not there")))
    }

    pub(crate) fn list_forwards(&mut self, params: &MaybeNetwork) -> Result<Vec<ForwardLine>, RpcError> {
        Ok(self.chosen(params)?.iter().flat_map(|name| self.forwards_of(name)).collect())
    }

    pub(crate) fn remove_forward(&mut self, params: ForwardOf) -> Result<ForwardOf, RpcError> {
        let mut wanted = self.config.clone();
        let Some(network) = wanted.networks.get_mut(&params.network) else {
            return Err(self.no_network(&params.network).into());
        };
        let Some(place) = network.forwards.iter().position(|rule| rule.from == params.from) else {
            return Err(Refusal::NoForward { network: params.network, from: params.from }.into());
        };
        let rule = network.forwards.remove(place);
        if params.to.as_ref().is_some_and(|to| !rule.leads_to(to)) {
            return Err(Refusal::ForwardElsewhere { network: params.network, from: rule.from, to: rule.to }.into());
        }
        self.apply(&wanted)?;
        Ok(params)
    }

    fn forwards_of(&mut self, name: &Name) -> Vec<ForwardLine> {
        let Some(&id) = self.networks.get(name) else { return Vec::new() };
        let ways = self.ways_in.of(id).to_vec();
        let ports: BTreeMap<_, _> = self.port_names().into_iter().map(|(id, name)| (id, name.to_string())).collect();
        let line = |way: &WayIn| {
            let (state, reason) = match (way.guest, way.failed) {
                (None, _) => ("waiting", Some(format!("no guest is called {}", way.rule.to.host))),
                (Some(_), Some(error)) => ("failed", Some(error.to_string())),
                (Some(guest), None) => ("open", self.absence(id, guest, &ports)),
            };
            let ForwardRule { from, to } = way.rule.clone();
            ForwardLine { network: name.clone(), from, to, guest: way.guest, state: state.to_owned(), reason }
        };
        ways.iter().map(line).collect()
    }

    /// Why nobody answers at this address, if that is known. If not, guests are asked who has it, for the next time.
    fn absence(&mut self, id: NetworkId, address: Ipv4Addr, ports: &BTreeMap<PortId, String>) -> Option<String> {
        let owner = self.dataplane.with_gateway(id, |now, gateway, frames| gateway.resolve(now, address, frames)).flatten();
        let Some(owner) = owner else { return Some(format!("nobody has {address} yet")) };
        let is_up = self.dataplane.port_status(owner.port).is_some_and(|status| status.state == PortState::Up);
        let port = ports.get(&owner.port).map_or("its port", String::as_str);
        (!is_up).then(|| format!("{address} belongs to port {port}, where no guest is running"))
    }

    pub(crate) fn list_mappings(&self, params: &MappingsAsked) -> Result<MappingPage, RpcError> {
        let names = self.port_names();
        if let Some(port) = params.port.as_ref().filter(|port| !self.ports.contains_key(port)) {
            return Err(self.no_port(port).into());
        }
        let mut all = Vec::new();
        for network in self.chosen(&MaybeNetwork { network: params.network.clone() })? {
            let mappings = self.networks.get(&network).map(|id| self.dataplane.mappings(*id)).unwrap_or_default();
            all.extend(mappings.into_iter().map(|mapping| (network.clone(), mapping)));
        }
        if let Some(asked) = params.port.as_ref().and_then(|port| self.ports.get(port)) {
            all.retain(|(_, mapping)| mapping.port == asked.id);
        }
        // So that what comes next does not change the order of what was there before.
        all.sort_by_key(|(_, mapping)| mapping.since);
        let total = all.len();
        let now = self.dataplane.now();
        let line = |(network, mapping): (Name, MappingStatus)| MappingLine {
            network,
            port: names.get(&mapping.port).map(|name| (*name).clone()),
            protocol: <&'static str>::from(mapping.protocol).to_owned(),
            inside: mapping.inside,
            outside: mapping.outside,
            remote: mapping.remote,
            forwarded: mapping.forwarded,
            age_seconds: now.since(mapping.since).as_secs(),
            from_guest_bytes: mapping.from_guest,
            to_guest_bytes: mapping.to_guest,
        };
        let count = params.count.map_or(PAGE_MAX, |count| count.min(PAGE_MAX));
        Ok(MappingPage { total, mappings: all.into_iter().skip(params.skip).take(count).map(line).collect() })
    }

    pub(crate) fn show_nat(&self, params: &Named) -> Result<NatInfo, RpcError> {
        let name = &params.name;
        let (Some(network), Some(&id)) = (self.config.networks.get(name), self.networks.get(name)) else {
            return Err(self.no_network(name).into());
        };
        let Some(settings) = network.nat() else {
            return Err(Refusal::NoNat { network: name.clone(), mode: network.mode }.into());
        };
        Ok(self.nat_info(name, id, &settings))
    }

    fn nat_info(&self, name: &Name, id: NetworkId, settings: &NatSettings) -> NatInfo {
        let names = self.port_names();
        let mut ports: BTreeMap<Name, NatPort> = BTreeMap::new();
        let (mut tcp, mut udp, mut icmp) = (0, 0, 0);
        for mapping in self.dataplane.mappings(id) {
            let mut count = |all: &mut usize, of: fn(&mut NatPort) -> &mut usize| {
                *all += 1;
                if let Some(name) = names.get(&mapping.port) {
                    let port = ports.entry((*name).clone()).or_default();
                    *of(port) += 1;
                    port.from_guest_bytes += mapping.from_guest;
                    port.to_guest_bytes += mapping.to_guest;
                }
            };
            match mapping.protocol {
                Protocol::Tcp => count(&mut tcp, |port| &mut port.tcp),
                Protocol::Udp => count(&mut udp, |port| &mut port.udp),
                Protocol::Icmp => count(&mut icmp, |port| &mut port.icmp),
            }
        }
        NatInfo {
            network: name.clone(),
            host_access: self.gateway_plan(name).is_some_and(|plan| plan.gateway.host_access),
            ping_refused: reach::ping().err(),
            tcp,
            udp,
            icmp,
            tcp_max: settings.connections,
            udp_and_icmp_max: settings.mappings,
            tcp_established_seconds: settings.tcp_established.as_secs(),
            tcp_transitory_seconds: settings.tcp_transitory.as_secs(),
            udp_seconds: settings.udp.timeout.as_secs(),
            icmp_seconds: settings.echo_timeout.as_secs(),
            ports,
        }
    }
}
