//! The running switch as the control side sees it: the dataplane, and the declared value that it was brought to.
//!
//! [`Switch::apply`] is the only way in which anything changes. It takes the steps between what runs and what is
//! wanted; when one of them fails, it takes the steps back to where it began, by the same function.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mio::event::Event;
use tracing::{error, info};
use weft_dataplane::{Dataplane, NetworkSettings, PortSettings, SocketRole};
use weft_switch::dhcp::DhcpServer;
use weft_switch::gateway::GatewaySettings;
use weft_switch::vlan::PortRole;
use weft_switch::{MacAddr, NetworkId, PortId, Subnet};

use crate::addressing::DhcpChoice;
use crate::api::Warning;
use crate::audit::AuditTrail;
use crate::capture::{Captures, Streaming};
use crate::config::{Config, Conflict, NetworkConfig, PortConfig, WorkersConfig};
use crate::fdb_handler::FlapReport;
use crate::gateway_plan::GatewayPlan;
use crate::host::Host;
use crate::mirror_handler::FileMirrors;
use crate::plan::{Step, steps};
use crate::refusal::{FailedStep, Refusal, StepError};
use crate::routes;
use crate::saved::{SaveError, SavedConfig};
use crate::services::Services;
use crate::values::{Name, NetworkMode};
use crate::ways_in::WaysIn;

/// A running switch.
pub struct Switch {
    pub(crate) dataplane: Dataplane,
    pub(crate) services: Services,
    pub(crate) ways_in: WaysIn,
    pub(crate) audit: AuditTrail,
    /// Nobody waits for an answer: what can be done later does not keep the rest from being done.
    pub(crate) unattended: bool,
    pub(crate) config: Config,
    pub(crate) host: Host,
    pub(crate) config_file: Option<PathBuf>,
    /// Where the configuration is kept when there is no file.
    pub(crate) saved: Option<SavedConfig>,
    /// What runs now could not be kept.
    pub(crate) not_kept: Option<NotKept>,
    /// The last time that the configuration file was read again, if it was of no use.
    pub(crate) failed_reload: Option<FailedReload>,
    /// What there is to say about the request that is being carried out.
    pub(crate) warnings: Vec<Warning>,
    pub(crate) started: Instant,
    pub(crate) networks: BTreeMap<Name, NetworkId>,
    /// The subnets of networks that have one, declared or chosen.
    pub(crate) subnets: BTreeMap<Name, Subnet>,
    pub(crate) ports: BTreeMap<Name, Plugged>,
    pub(crate) flaps: FlapReport,
    /// What becomes of the connection by which the request came that is being carried out.
    pub(crate) streaming: Option<Streaming>,
    /// Behind the dataplane, whose end is theirs.
    pub(crate) captures: Captures,
    pub(crate) file_mirrors: FileMirrors,
}

impl fmt::Debug for Switch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Switch").field("config", &self.config).finish_non_exhaustive()
    }
}

/// How often weft tries to keep what it could not.
const KEEP_INTERVAL: Duration = Duration::from_secs(2);

/// A configuration that could not be kept.
#[derive(Debug)]
pub(crate) struct NotKept {
    pub(crate) why: String,
    /// When it is tried again.
    retry_at: Instant,
}

/// A reload that changed nothing.
#[derive(Debug)]
pub(crate) struct FailedReload {
    pub(crate) at: Instant,
    pub(crate) why: String,
}

/// What the dataplane was told about a port.
#[derive(Debug)]
pub(crate) struct Plugged {
    pub(crate) id: PortId,
    pub(crate) socket: PathBuf,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u16,
}

impl Switch {
    /// A switch without networks and ports, whose dataplane was started with `workers`.
    #[must_use]
    pub fn new(
        dataplane: Dataplane,
        services: Services,
        workers: WorkersConfig,
        host: Host,
        config_file: Option<PathBuf>,
    ) -> Self {
        Self {
            dataplane,
            services,
            ways_in: WaysIn::default(),
            audit: AuditTrail::default(),
            unattended: false,
            config: Config { workers, ..Config::default() },
            host,
            config_file,
            saved: None,
            not_kept: None,
            failed_reload: None,
            warnings: Vec::new(),
            started: Instant::now(),
            networks: BTreeMap::new(),
            flaps: FlapReport::default(),
            streaming: None,
            captures: Captures::default(),
            file_mirrors: FileMirrors::default(),
            subnets: BTreeMap::new(),
            ports: BTreeMap::new(),
        }
    }

    /// Brings the switch to `wanted`, disturbing nothing that is the same in both. Returns how many steps it took.
    ///
    /// # Errors
    /// When the value contradicts itself, has other workers, or the dataplane refuses a step; what was done is taken back then.
    pub fn apply(&mut self, wanted: &Config) -> Result<usize, Refusal> {
        if wanted.workers != self.config.workers {
            return Err(Refusal::Workers(self.config.workers.difference(&wanted.workers)));
        }
        wanted.check(&self.host)?;
        let before = self.config.clone();
        let old_subnets = self.subnets.clone();
        self.subnets = self.choose_subnets(wanted)?;
        let plan = steps(&before, wanted);
        let count = plan.len() + usize::from(before.mirrors != wanted.mirrors);
        for step in plan {
            if let Err(source) = self.take(step.clone()) {
                self.subnets = old_subnets;
                let refusal = self.take_back(&before, step, source);
                self.sync_services();
                self.sync_fdb();
                self.sync_mirrors();
                return Err(refusal);
            }
        }
        self.config.mirrors.clone_from(&wanted.mirrors);
        self.sync_services();
        self.sync_fdb();
        self.sync_mirrors();
        self.log_mirrors(&before.mirrors);
        self.remember_subnets(wanted, &old_subnets);
        let gone = before.networks.keys().filter(|name| !wanted.networks.contains_key(*name));
        gone.for_each(|name| self.services.forget(name));
        if count > 0 && !self.unattended {
            self.keep();
        }
        Ok(count)
    }

    /// Keeps a change for the next start, and says if that is not so.
    fn keep(&mut self) {
        let warning = match (&self.saved, &self.config_file) {
            (Some(saved), _) => {
                let failed = saved.save(&self.config).err();
                if let Some(error) = &failed {
                    error!("what was changed is not kept for the next start: {error}");
                }
                self.not_kept = failed.as_ref().map(NotKept::now);
                failed.map(|error| (Warning::NOT_KEPT, format!("this is done, but not kept for the next start: {error}")))
            }
            (None, Some(file)) => {
                let file = file.display();
                let message = format!(
                    "this holds until a restart, or until {file} is read again: to keep it, write it there (weft config show)"
                );
                Some((Warning::UNTIL_RESTART, message))
            }
            (None, None) => None,
        };
        self.warnings.extend(warning.map(|(kind, message)| Warning { kind: kind.to_owned(), message }));
    }

    /// Tries to keep what could not be kept, when it is time, and says when that is next.
    fn keep_again(&mut self) -> Duration {
        let Some(NotKept { retry_at, .. }) = self.not_kept else { return Duration::MAX };
        if let Some(saved) = self.saved.as_ref().filter(|_| retry_at <= Instant::now()) {
            self.not_kept = saved.save(&self.config).err().as_ref().map(NotKept::now);
            if self.not_kept.is_none() {
                info!("what was changed is kept for the next start by now");
            }
        }
        self.not_kept.as_ref().map_or(Duration::MAX, |not_kept| not_kept.retry_at.saturating_duration_since(Instant::now()))
    }

    /// The same for a configuration that nobody has just asked for, at the start and when its file is read again: ports of the host that can't be forwarded
    /// now are tried again later.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_unattended(&mut self, wanted: &Config) -> Result<usize, Refusal> {
        self.unattended = true;
        let applied = self.apply(wanted);
        self.unattended = false;
        applied
    }

    /// Does what is due, and says after how long to call again at the latest.
    pub(crate) fn tick(&mut self) -> Duration {
        self.services.tick(&mut self.dataplane);
        self.follow_names();
        self.report_flaps();
        let due = self.dataplane.tick();
        due.min(self.services.due(&self.dataplane)).min(self.write_audit()).min(self.keep_again())
    }

    /// Handles an event of the services.
    pub(crate) fn handle(&mut self, event: &Event) {
        self.services.handle(&mut self.dataplane, event);
        self.follow_names();
    }

    /// Deals with what guests have sent to the services.
    pub(crate) fn serve(&mut self) {
        self.services.serve(&mut self.dataplane);
        self.follow_names();
    }

    /// The subnets of the networks that are wanted. One that has been chosen stays as long as its network does, whatever routes the host gets.
    ///
    /// # Errors
    /// When the host reaches something else by the addresses of a network that is new or has another subnet now.
    fn choose_subnets(&mut self, wanted: &Config) -> Result<BTreeMap<Name, Subnet>, Refusal> {
        let mut subnets = BTreeMap::new();
        let mut chosen_later = Vec::new();
        let mut routes = None;
        for (name, network) in &wanted.networks {
            let current = self.subnets.get(name).copied();
            match (network.subnet, network.mode) {
                (Some(subnet), _) if current == Some(subnet) => drop(subnets.insert(name.clone(), subnet)),
                (Some(subnet), _) => {
                    let routes = routes.get_or_insert_with(routes::of_this_host);
                    if let Some(route) = routes::overlapping(subnet, routes) {
                        let (to, device) = (route.to, route.device.clone());
                        let suggestion = routes::free_subnet(routes, &declared_subnets(wanted));
                        let network = name.clone();
                        return Err(Conflict::SubnetTaken { network, subnet, route: to, device, suggestion }.into());
                    }
                    subnets.insert(name.clone(), subnet);
                }
                (None, NetworkMode::Nat) => match current.filter(|_| was_chosen(self.config.networks.get(name))) {
                    Some(current) => drop(subnets.insert(name.clone(), current)),
                    None => chosen_later.push(name),
                },
                (None, NetworkMode::Private) => {}
            }
        }
        for name in chosen_later {
            let taken: Vec<_> = subnets.values().copied().collect();
            let routes = routes.get_or_insert_with(routes::of_this_host);
            // Where leases are kept, so is the subnet that they are of.
            let has_leases = wanted.networks[name].dhcp != DhcpChoice::Off;
            let remembered = if has_leases { self.services.remembered_subnet(name)? } else { None };
            let chosen = remembered.filter(|subnet| routes::is_free(*subnet, routes, &taken));
            let chosen = chosen.or_else(|| routes::free_subnet(routes, &taken));
            subnets.insert(name.clone(), chosen.ok_or_else(|| Conflict::NoFreeSubnet { network: name.clone() })?);
        }
        Ok(subnets)
    }

    /// Has the subnets written down that were chosen.
    fn remember_subnets(&mut self, config: &Config, before: &BTreeMap<Name, Subnet>) {
        for (name, subnet) in &self.subnets {
            if was_chosen(config.networks.get(name)) && before.get(name) != Some(subnet) {
                self.services.remember_subnet(name, *subnet);
            }
        }
    }

    /// What is to be of a network's gateway, as things are declared now.
    pub(crate) fn gateway_plan(&self, name: &Name) -> Option<GatewayPlan> {
        let planned = GatewayPlan::new(name, &self.config, &self.host, self.subnets.get(name).copied());
        planned.unwrap_or_else(|conflict| {
            // It was checked before anything was done, but for a subnet that weft chose itself.
            error!("network \"{name}\" has no gateway: {conflict}");
            None
        })
    }

    /// Tells DHCP servers of the addresses that are kept for ports, after ports have come or gone.
    fn sync_services(&mut self) {
        for (name, id) in self.networks.clone() {
            let (plan, ports) = (self.gateway_plan(&name), self.ports_on(&name));
            let wanted = plan.as_ref().and_then(|plan| plan.dhcp.as_ref());
            if self.services.dhcp(id).map(DhcpServer::settings) == wanted {
                continue;
            }
            match self.services.prepare(Some(id), &name, plan.as_ref()) {
                Ok(prepared) => self.services.install(&mut self.dataplane, id, &name, plan.as_ref(), prepared, &ports),
                Err(error) => error!("network \"{name}\" has no DHCP: {error}"),
            }
        }
    }

    /// The ports that are plugged into a network.
    fn ports_on(&self, network: &Name) -> Vec<(PortId, Name)> {
        let plugged = |name: &Name| self.ports.get(name).map(|port| (port.id, name.clone()));
        self.config.ports_of(network).filter_map(plugged).collect()
    }

    /// Goes on at the first failure of a step back: the other ports shall be as they were.
    fn take_back(&mut self, before: &Config, step: Step, source: StepError) -> Refusal {
        let mut failed = None;
        for undo in steps(&self.config, before) {
            if let Err(error) = self.take(undo.clone()) {
                error!("cannot {undo}, to take back a failed change: {error}");
                failed.get_or_insert(FailedStep { step: undo, source: error });
            }
        }
        let first = Box::new(FailedStep { step, source });
        match failed {
            None => Refusal::Step(first),
            Some(undo) => Refusal::HalfUndone { failed: first, undo: Box::new(undo) },
        }
    }

    /// Takes one step, and records it if it happened. A step that removes or changes something happens even when a
    /// stuck worker makes it fail: what was removed is out of our hands, and the worker may still look at it.
    fn take(&mut self, step: Step) -> Result<(), StepError> {
        let line = format!("{step}{}", self.config.what_changes(&step));
        let outcome = match &step {
            Step::RemovePort(name) => self.unplug(name),
            Step::RemoveNetwork(name) => self.remove_network(name),
            Step::ChangeNetwork(name, network) => self.set_network(name, network),
            Step::AddNetwork(name, network) => {
                self.config.networks.insert(name.clone(), network.clone());
                let added = self.add_network(name, network);
                if added.is_err() {
                    self.config.networks.remove(name);
                }
                added?;
                Ok(())
            }
            Step::ProtectPort(name, port) => match self.ports.get(name) {
                Some(Plugged { id, mac, .. }) => {
                    let protected = self.dataplane.protect_port(*id, port.protections(*mac));
                    protected.and_then(|()| self.dataplane.set_lines(*id, &port.lines())).map_err(StepError::from)
                }
                None => Ok(()),
            },
            Step::AddPort(name, port) => {
                let plugged = self.plug(name, port)?;
                self.ports.insert(name.clone(), plugged);
                Ok(())
            }
        };
        if outcome.is_ok() {
            info!("done: {line}");
        }
        self.config.record(step);
        outcome
    }

    fn add_network(&mut self, name: &Name, network: &NetworkConfig) -> Result<(), StepError> {
        let plan = self.gateway_plan(name);
        let prepared = self.services.prepare(None, name, plan.as_ref())?;
        let gateway = plan.as_ref().map(|plan| plan.gateway);
        let id = self.dataplane.add_network(self.network_settings(name, network, gateway))?;
        self.networks.insert(name.clone(), id);
        self.services.install(&mut self.dataplane, id, name, plan.as_ref(), prepared, &[]);
        if let Err(error) = self.open_ways_in(id, network) {
            self.remove_network(name)?;
            return Err(error);
        }
        Ok(())
    }

    fn set_network(&mut self, name: &Name, network: &NetworkConfig) -> Result<(), StepError> {
        let Some(&id) = self.networks.get(name) else { return Ok(()) };
        // Recorded as taken whatever comes of it, so that it is taken back.
        self.config.networks.insert(name.clone(), network.clone());
        let (plan, ports) = (self.gateway_plan(name), self.ports_on(name));
        let prepared = self.services.prepare(Some(id), name, plan.as_ref())?;
        let gateway = plan.as_ref().map(|plan| plan.gateway);
        self.dataplane.set_network(id, self.network_settings(name, network, gateway))?;
        self.services.install(&mut self.dataplane, id, name, plan.as_ref(), prepared, &ports);
        self.open_ways_in(id, network)
    }

    fn network_settings(&self, name: &Name, network: &NetworkConfig, gateway: Option<GatewaySettings>) -> NetworkSettings {
        let (default_vlan, mac) = (self.config.default_vlan(name), self.host.gateway_mac(name));
        let multicast = network.snooping(mac, gateway.map(|gateway| gateway.address), default_vlan);
        NetworkSettings { fdb: network.fdb(), default_vlan, gateway, nat: network.nat(), multicast }
    }

    fn remove_network(&mut self, name: &Name) -> Result<(), StepError> {
        let Some(id) = self.networks.remove(name) else { return Ok(()) };
        self.services.remove(id);
        self.ways_in.remove(id);
        Ok(self.dataplane.remove_network(id)?)
    }

    fn unplug(&mut self, name: &Name) -> Result<(), StepError> {
        let Some(port) = self.ports.remove(name) else { return Ok(()) };
        if let Some(&network) = self.config.ports.get(name).and_then(|config| self.networks.get(&config.network)) {
            self.services.detach(network, port.id);
        }
        Ok(self.dataplane.remove_port(port.id)?)
    }

    /// What a port that is about to be added is to VLANs.
    fn declared_role(&self, name: &Name, port: &PortConfig) -> Result<Option<PortRole>, Conflict> {
        let networks = [(port.network.clone(), self.config.networks[&port.network].clone())].into();
        Config { networks, ports: [(name.clone(), port.clone())].into(), ..Config::default() }.role(name)
    }

    fn plug(&mut self, name: &Name, port: &PortConfig) -> Result<Plugged, StepError> {
        let (socket, mac) = (self.host.socket(name, port), self.host.mac(name, port));
        let mtu = self.config.networks[&port.network].mtu.value_u16();
        let vlan = self.declared_role(name, port)?;
        let id = self.dataplane.add_port(PortSettings {
            name: name.to_string(),
            network: self.networks[&port.network],
            vlan,
            protections: port.protections(mac),
            lines: port.lines(),
            socket: socket.clone(),
            role: if port.client { SocketRole::Client } else { SocketRole::Server },
            queue_pairs: port.queues.value_u16(),
            mac,
            mtu,
        })?;
        self.services.attach(&mut self.dataplane, self.networks[&port.network], id, name);
        self.audit.attach(self.dataplane.now(), id, name);
        Ok(Plugged { id, socket, mac, mtu })
    }
}

impl NotKept {
    fn now(error: &SaveError) -> Self {
        Self { why: format!("changes are not kept for the next start: {error}"), retry_at: Instant::now() + KEEP_INTERVAL }
    }
}

/// The subnets that are declared.
fn declared_subnets(config: &Config) -> Vec<Subnet> {
    config.networks.values().filter_map(|network| network.subnet).collect()
}

/// True for a network whose subnet weft chose.
fn was_chosen(network: Option<&NetworkConfig>) -> bool {
    network.is_some_and(|network| network.subnet.is_none())
}
