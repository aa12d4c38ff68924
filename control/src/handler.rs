//! The methods of the control socket, carried out on the running switch.

use std::collections::BTreeMap;

use tracing::debug;
use weft_dataplane::{Polling, WorkerStatus};
use weft_switch::PortId;

use crate::api::{
    Counters, FdbAdd, FdbCounts, FdbLine, FdbOf, Flushed, ForwardAdd, ForwardLine, ForwardOf, Handler, HelloAnswer, HelloParams,
    LeaseAdd, LeaseLine, LeaseOf, LineInfo, MappingPage, MappingsAsked, MaybeNetwork, Named, NatInfo, NetworkAdd, NetworkInfo,
    NetworkSet, Nothing, PROTOCOL, PortAdd, PortInfo, PortSet, PortStats, ProtectionInfo, RingInfo, Stats, Status, VERSION,
    VlanRole, Warning, WorkerInfo,
};
use crate::capture::{CaptureAsked, CaptureStarted, Streaming};
use crate::config::Config;
use crate::mirror_handler::{MirrorAdd, MirrorLine};
use crate::multicast::MulticastInfo;
use crate::refusal::Refusal;
use crate::render::duration;
use crate::rpc::RpcError;
use crate::switch::Switch;
use crate::trace::{TraceAnswer, TraceAsked};
use crate::values::{Name, PollingMode};

impl Handler for Switch {
    fn hello(&mut self, params: HelloParams) -> Result<HelloAnswer, RpcError> {
        debug!("hello from {}, protocol {}", params.client.as_deref().unwrap_or("a client without a name"), params.protocol);
        if params.protocol != PROTOCOL {
            return Err(RpcError::protocol_mismatch(params.protocol));
        }
        Ok(HelloAnswer { protocol: PROTOCOL, version: VERSION.to_owned(), pid: std::process::id() })
    }

    fn status(&mut self, _: Nothing) -> Result<Status, RpcError> {
        let infos = self.port_list(Nothing {})?;
        Ok(Status {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            run_dir: self.host.run_dir().to_owned(),
            config_file: self.config_file.clone(),
            saved_file: self.saved.as_ref().map(|saved| saved.file().to_owned()),
            uptime_seconds: self.started.elapsed().as_secs(),
            healthy: self.dataplane.is_healthy(),
            problems: self.problems(),
            ports: infos.len(),
            ports_up: infos.iter().filter(|port| port.state == "up").count(),
            networks: self.network_list(Nothing {})?,
            workers: self.worker_infos(),
        })
    }

    fn port_add(&mut self, params: PortAdd) -> Result<PortInfo, RpcError> {
        let PortAdd { name, settings } = params;
        let mut wanted = self.config.clone();
        if settings.address.is_some() {
            self.pin_subnet(&mut wanted, &settings.network);
        }
        if wanted.ports.insert(name.clone(), settings).is_some() {
            return Err(Refusal::Exists { what: "port", name }.into());
        }
        self.apply(&wanted)?;
        self.port_info(&name)
    }

    fn port_set(&mut self, params: PortSet) -> Result<PortInfo, RpcError> {
        let PortSet { name, settings } = params;
        let mut wanted = self.config.clone();
        let Some(port) = wanted.ports.get_mut(&name) else { return Err(self.no_port(&name).into()) };
        *port = port.with_changes(settings).map_err(|error| RpcError::bad_params(format!("settings.{error}")))?;
        self.apply(&wanted)?;
        self.port_info(&name)
    }

    fn port_list(&mut self, _: Nothing) -> Result<Vec<PortInfo>, RpcError> {
        self.config.ports.keys().map(|name| self.port_info(name)).collect()
    }

    fn port_show(&mut self, params: Named) -> Result<PortInfo, RpcError> {
        self.port_info(&params.name)
    }

    fn port_remove(&mut self, params: Named) -> Result<Named, RpcError> {
        let mut wanted = self.config.clone();
        if wanted.ports.remove(&params.name).is_none() {
            return Err(self.no_port(&params.name).into());
        }
        let mirrors = wanted.forget_mirrored(&params.name);
        wanted.networks.values_mut().for_each(|network| network.fdb.retain(|entry| entry.port != params.name));
        self.apply(&wanted)?;
        self.warnings.extend(mirrors.iter().map(|mirror| Warning {
            kind: Warning::MIRROR_GONE.to_owned(),
            message: format!("mirror {mirror} went with port {}", params.name),
        }));
        Ok(params)
    }

    fn network_add(&mut self, params: NetworkAdd) -> Result<NetworkInfo, RpcError> {
        let NetworkAdd { name, settings } = params;
        let mut wanted = self.config.clone();
        if wanted.networks.insert(name.clone(), settings).is_some() {
            return Err(Refusal::Exists { what: "network", name }.into());
        }
        self.pin_overlapped(&mut wanted, &name);
        self.apply(&wanted)?;
        self.network_info(&name)
    }

    fn network_list(&mut self, _: Nothing) -> Result<Vec<NetworkInfo>, RpcError> {
        let names: Vec<_> = self.config.networks.keys().cloned().collect();
        names.iter().map(|name| self.network_info(name)).collect()
    }

    fn network_show(&mut self, params: Named) -> Result<NetworkInfo, RpcError> {
        self.network_info(&params.name)
    }

    fn network_remove(&mut self, params: Named) -> Result<Named, RpcError> {
        let mut wanted = self.config.clone();
        if wanted.networks.remove(&params.name).is_none() {
            return Err(self.no_network(&params.name).into());
        }
        let ports: Vec<_> = self.config.ports_of(&params.name).cloned().collect();
        if !ports.is_empty() {
            return Err(Refusal::NetworkInUse { network: params.name, ports }.into());
        }
        self.apply(&wanted)?;
        Ok(params)
    }

    fn fdb_list(&mut self, params: MaybeNetwork) -> Result<Vec<FdbLine>, RpcError> {
        self.list_fdb(&params)
    }

    fn multicast_list(&mut self, params: MaybeNetwork) -> Result<Vec<MulticastInfo>, RpcError> {
        self.list_multicast(&params)
    }

    fn fdb_add(&mut self, params: FdbAdd) -> Result<FdbLine, RpcError> {
        self.add_static_entry(params)
    }

    fn fdb_remove(&mut self, params: FdbOf) -> Result<FdbOf, RpcError> {
        self.remove_static_entry(params)
    }

    fn fdb_flush(&mut self, params: MaybeNetwork) -> Result<Flushed, RpcError> {
        let chosen = self.chosen(&params)?;
        let entries = chosen.iter().map(|network| self.dataplane.flush_fdb(self.networks[network])).sum();
        Ok(Flushed { entries })
    }

    fn lease_list(&mut self, params: MaybeNetwork) -> Result<Vec<LeaseLine>, RpcError> {
        self.list_leases(&params)
    }

    fn lease_add(&mut self, params: LeaseAdd) -> Result<LeaseLine, RpcError> {
        self.add_lease(params)
    }

    fn lease_remove(&mut self, params: LeaseOf) -> Result<LeaseOf, RpcError> {
        self.remove_lease(params)
    }

    fn network_set(&mut self, params: NetworkSet) -> Result<NetworkInfo, RpcError> {
        let NetworkSet { name, settings } = params;
        let mut wanted = self.config.clone();
        let Some(network) = wanted.networks.get_mut(&name) else { return Err(self.no_network(&name).into()) };
        if settings.get("host_access") == Some(&false.into()) && self.host.offers_access(&name) {
            return Err(Refusal::HostAccessGiven { network: name }.into());
        }
        *network = network.with_changes(settings).map_err(|error| RpcError::bad_params(format!("settings.{error}")))?;
        self.pin_overlapped(&mut wanted, &name);
        self.apply(&wanted)?;
        self.network_info(&name)
    }

    fn forward_add(&mut self, params: ForwardAdd) -> Result<ForwardLine, RpcError> {
        self.add_forward(params)
    }

    fn forward_list(&mut self, params: MaybeNetwork) -> Result<Vec<ForwardLine>, RpcError> {
        self.list_forwards(&params)
    }

    fn forward_remove(&mut self, params: ForwardOf) -> Result<ForwardOf, RpcError> {
        self.remove_forward(params)
    }

    fn nat_list(&mut self, params: MappingsAsked) -> Result<MappingPage, RpcError> {
        self.list_mappings(&params)
    }

    fn nat_show(&mut self, params: Named) -> Result<NatInfo, RpcError> {
        self.show_nat(&params)
    }

    fn stats(&mut self, _: Nothing) -> Result<Stats, RpcError> {
        let ports = self.port_list(Nothing {})?;
        let stats = |port: PortInfo| PortStats { name: port.name, network: port.network, counters: port.counters };
        Ok(Stats {
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ports: ports.into_iter().map(stats).collect(),
            workers: self.worker_infos(),
        })
    }

    fn config_show(&mut self, _: Nothing) -> Result<Config, RpcError> {
        // As a file it shall be what runs here, the subnets that weft has chosen included.
        let mut shown = self.config.clone();
        self.subnets.keys().for_each(|name| self.pin_subnet(&mut shown, name));
        Ok(shown)
    }

    fn trace(&mut self, params: TraceAsked) -> Result<TraceAnswer, RpcError> {
        self.trace_frame(&params)
    }

    fn mirror_add(&mut self, params: MirrorAdd) -> Result<MirrorLine, RpcError> {
        self.add_mirror(params)
    }

    fn mirror_list(&mut self, _: Nothing) -> Result<Vec<MirrorLine>, RpcError> {
        Ok(self.list_mirrors())
    }

    fn mirror_remove(&mut self, params: Named) -> Result<Named, RpcError> {
        self.remove_mirror(params)
    }

    fn capture_start(&mut self, params: CaptureAsked) -> Result<CaptureStarted, RpcError> {
        self.start_capture(&params)
    }

    fn take_streaming(&mut self) -> Option<Streaming> {
        self.streaming.take()
    }

    fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }
}

impl Switch {
    /// What an operator should look after.
    fn problems(&self) -> Vec<String> {
        let reload = self.failed_reload.as_ref().map(|failed| {
            let ago = duration(failed.at.elapsed().as_secs());
            format!("the configuration file was read again {ago} ago, and nothing of it applied: {}", failed.why)
        });
        self.not_kept.iter().map(|not_kept| not_kept.why.clone()).chain(reload).chain(self.idle_mirrors()).collect()
    }

    fn port_info(&self, name: &Name) -> Result<PortInfo, RpcError> {
        let (Some(config), Some(plugged)) = (self.config.ports.get(name), self.ports.get(name)) else {
            return Err(self.no_port(name).into());
        };
        let Some(status) = self.dataplane.port_status(plugged.id) else {
            return Err(RpcError::internal(format!("the dataplane does not know port {name:?}")));
        };
        let now = self.dataplane.now();
        let rings = status.rings.iter().map(|ring| RingInfo { index: ring.index, size: ring.size, enabled: ring.enabled });
        Ok(PortInfo {
            name: name.clone(),
            network: config.network.clone(),
            vlan: self.vlan_role(name),
            protections: ProtectionInfo::new(config, plugged.mac),
            lines: LineInfo::new(config),
            socket: plugged.socket.clone(),
            client: config.client,
            queues: config.queues.value_u16(),
            mac: plugged.mac,
            mtu: plugged.mtu,
            state: <&'static str>::from(status.state).to_owned(),
            monitors: self.config.monitored(name).cloned().collect(),
            loop_with: status.loop_with.and_then(|other| self.port_names().get(&other).map(|name| (*name).clone())),
            last_stop: status.last_stop,
            last_stop_seconds: status.last_stop_at.map(|at| now.since(at).as_secs()),
            connections: status.connections,
            features: status.features.into_iter().map(str::to_owned).collect(),
            guest_mtu: status.guest_mtu,
            rings: rings.collect(),
            stations: self.station_info(name),
            counters: counters(&status.counters),
        })
    }

    /// What a port is to the VLANs of its network, if that has any.
    fn vlan_role(&self, name: &Name) -> Option<VlanRole> {
        let network = &self.config.ports.get(name)?.network;
        let (roles, config) = (self.config.roles_of(network)?, self.config.networks.get(network)?);
        let (_, role) = roles.into_iter().find(|(port, _)| port == name)?;
        let by_default = self.config.role(name).ok().flatten().is_none();
        Some(VlanRole::new(&role, &config.vlans, by_default))
    }

    fn worker_infos(&self) -> Vec<WorkerInfo> {
        let polling = self.config.workers.polling;
        let spin_us = (polling == PollingMode::Adaptive).then_some(Polling::SPIN.as_micros() as u64);
        let info = |(number, worker): (usize, WorkerStatus)| WorkerInfo {
            number,
            cpu: worker.cpu,
            polling,
            spin_us,
            rings: worker.rings,
            rounds: worker.rounds,
            busy_rounds: worker.busy_rounds,
            sleeps: worker.sleeps,
            asleep: worker.asleep,
        };
        self.dataplane.worker_status().into_iter().enumerate().map(info).collect()
    }

    fn network_info(&mut self, name: &Name) -> Result<NetworkInfo, RpcError> {
        let (Some(config), Some(&id)) = (self.config.networks.get(name).cloned(), self.networks.get(name)) else {
            return Err(self.no_network(name).into());
        };
        let Some(status) = self.dataplane.network_status(id) else {
            return Err(RpcError::internal(format!("the dataplane does not know network {name:?}")));
        };
        let fdb = status.fdb;
        let gateway = self.gateway_plan(name).map(|plan| plan.gateway);
        Ok(NetworkInfo {
            name: name.clone(),
            mode: config.mode,
            ageing_seconds: config.ageing_seconds.value(),
            fdb_capacity: config.fdb_capacity.value(),
            mtu: config.mtu.value_u16(),
            subnet: gateway.map(|gateway| gateway.subnet.to_string()),
            gateway: gateway.map(|gateway| gateway.address),
            gateway_mac: gateway.map(|gateway| gateway.mac),
            dhcp: self.dhcp_info(id),
            dns: self.dns_info(name, id),
            host_access: gateway.is_some_and(|gateway| gateway.host_access),
            ports: self.config.ports_of(name).cloned().collect(),
            vlans: self.config.vlan_lines(name),
            vlan_counters: self.vlan_counters(name),
            fdb_entries: status.fdb_entries,
            fdb_full: config.fdb_full,
            fdb_static: config.fdb.len(),
            multicast: config.multicast,
            querier: config.querier,
            query_interval_seconds: config.query_interval_seconds.value(),
            fast_leave: config.fast_leave,
            default_vlan: config.default_vlan,
            vlan_names: config.vlans,
            fdb: FdbCounts {
                learned: fdb.learned,
                moved: fdb.moved,
                evicted: fdb.evicted,
                expired: fdb.expired,
                refused: fdb.refused,
                claimed: fdb.claimed,
                flapped: fdb.flapped,
            },
        })
    }

    /// The network that was asked for, or all of them.
    pub(crate) fn chosen(&self, params: &MaybeNetwork) -> Result<Vec<Name>, Refusal> {
        match &params.network {
            None => Ok(self.networks.keys().cloned().collect()),
            Some(name) if self.networks.contains_key(name) => Ok(vec![name.clone()]),
            Some(name) => Err(self.no_network(name)),
        }
    }

    /// The names of ports, by what the dataplane calls them.
    pub(crate) fn port_names(&self) -> BTreeMap<PortId, &Name> {
        self.ports.iter().map(|(name, port)| (port.id, name)).collect()
    }

    pub(crate) fn no_port(&self, name: &Name) -> Refusal {
        Refusal::NotThere { what: "port", name: name.clone(), known: self.config.ports.keys().cloned().collect() }
    }

    pub(crate) fn no_network(&self, name: &Name) -> Refusal {
        Refusal::NotThere { what: "network", name: name.clone(), known: self.config.networks.keys().cloned().collect() }
    }
}

fn counters(counters: &weft_dataplane::PortCounters) -> Counters {
    let drops = counters.drops.iter().filter(|(_, count)| *count > 0);
    Counters {
        from_guest_frames: counters.from_guest_frames,
        from_guest_bytes: counters.from_guest_bytes,
        from_guest_multicast: counters.from_guest_multicast,
        from_guest_broadcast: counters.from_guest_broadcast,
        to_guest_frames: counters.to_guest_frames,
        to_guest_bytes: counters.to_guest_bytes,
        to_guest_multicast: counters.to_guest_multicast,
        to_guest_broadcast: counters.to_guest_broadcast,
        notifications: counters.notifications,
        drops: drops.map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
    }
}
