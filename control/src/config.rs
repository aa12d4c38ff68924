//! The declared value: what networks and ports there should be. The file, the control socket and the command line
//! all produce this value; `plan` compares two of them, and nothing else changes a running switch.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weft_dataplane::{NatSettings, Polling, WorkerSettings};
use weft_switch::{DomainName, FdbSettings, Subnet};

use crate::addressing::{DhcpChoice, DnsChoice, StaticLease};
pub use crate::conflict::Conflict;
use crate::fdb::{AtMaxMacs, FdbFull, MaxMacs, StaticEntry};
use crate::forward::{ForwardRule, PORTS_MAX};
use crate::gateway_plan::GatewayPlan;
use crate::host::Host;
use crate::lines::{BurstOut, Impair, Wait};
use crate::mirror::MirrorConfig;
use crate::multicast::{MulticastMode, QueryInterval};
use crate::nat_config::NatConfig;
use crate::protections::{AllowedParts, BitRate, Burst, IsolationGroup, StormRate};
use crate::render::counted;
use crate::values::{
    AgeingSeconds, CpuList, FdbCapacity, LeaseSeconds, Mtu, Name, NetworkMode, PollingMode, PortMac, Queues, SocketPath,
    WorkerCount, cpu_ranges,
};
use crate::vlans::{DEFAULT_VLAN, VlanNames, VlanRef, VlanRefs};
use crate::wording::plain;

/// Everything that is declared about a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The workers. A change takes a restart.
    pub workers: WorkersConfig,
    /// The networks, by name.
    pub networks: BTreeMap<Name, NetworkConfig>,
    /// The ports, by name.
    pub ports: BTreeMap<Name, PortConfig>,
    /// The mirrors, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mirrors: BTreeMap<Name, MirrorConfig>,
}

/// What is declared about the workers, which move the frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkersConfig {
    /// How many there are.
    pub count: WorkerCount,
    /// The processors that they are pinned to, in turn; `any`: wherever the operating system puts them.
    pub cpus: CpuList,
    /// What a worker does that finds no frames: `adaptive`, `always` or `never`.
    pub polling: PollingMode,
}

/// What the command line says about the workers, instead of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerOverrides {
    /// How many there are.
    pub count: Option<WorkerCount>,
    /// The processors that they are pinned to.
    pub cpus: Option<CpuList>,
    /// What a worker does that finds no frames.
    pub polling: Option<PollingMode>,
}

/// What is declared about a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// What kind of network it is.
    pub mode: NetworkMode,
    /// The addresses of its hosts; a network with a way out gets one that is free if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub subnet: Option<Subnet>,
    /// The gateway's address; the first of the subnet's hosts if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Which addresses are given out by DHCP.
    pub dhcp: DhcpChoice,
    /// How long an address is leased, in seconds.
    pub lease_seconds: LeaseSeconds,
    /// Whom the DNS forwarder asks.
    pub dns: DnsChoice,
    /// The domain of its hosts.
    #[schemars(with = "String")]
    pub domain: DomainName,
    /// After how many seconds of silence a MAC address is forgotten.
    pub ageing_seconds: AgeingSeconds,
    /// How many MAC addresses are kept.
    pub fdb_capacity: FdbCapacity,
    /// What becomes of a station that there is no room for: `evict`, `forward` or `drop`.
    pub fdb_full: FdbFull,
    /// Stations that are behind a port, whatever frames say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fdb: Vec<StaticEntry>,
    /// The MTU that guests are told, in bytes. A change holds for ports that are added afterwards.
    pub mtu: Mtu,
    /// To whom frames for groups go: `snoop` (who asked for them) or `flood` (everybody).
    pub multicast: MulticastMode,
    /// weft asks who wants which groups, where nobody else does.
    pub querier: bool,
    /// How often, in seconds.
    pub query_interval_seconds: QueryInterval,
    /// Who leaves a group is believed at once: there is one host behind each port.
    pub fast_leave: bool,
    /// Limits and times of the way out.
    #[serde(skip_serializing_if = "NatConfig::is_default")]
    pub nat: NatConfig,
    /// The VLAN of ports without a role and of the gateway, as soon as a port has a role.
    pub default_vlan: VlanRef,
    /// The numbers of VLANs, by name.
    #[serde(skip_serializing_if = "VlanNames::is_empty")]
    pub vlans: VlanNames,
    /// Addresses that are kept for one client each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<StaticLease>,
    /// Guests reach what listens on this host's loopback, under the gateway's address.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_access: bool,
    /// Ports of the host by which the outside reaches a guest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<ForwardRule>,
}

/// What is declared about a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PortConfig {
    /// The network that the port is a member of.
    pub network: Name,
    /// The vhost-user socket; `PORT.sock` in the run directory if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<SocketPath>,
    /// True: the guest listens on the socket (QEMU's `server=on`), and weft connects.
    pub client: bool,
    /// Queue pairs that the guest may use.
    pub queues: Queues,
    /// The guest's address; derived from the host and the names if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<PortMac>,
    /// The IP address that DHCP keeps for the guest; any that is free if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The port is an access port of this VLAN: its guest knows nothing of tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanRef>,
    /// The port is a trunk: its guest tells these VLANs apart by tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trunk: Option<VlanRefs>,
    /// The VLAN of frames without a tag on a trunk; without it there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native: Option<VlanRef>,
    /// The guest's frames get an outer tag of this service VLAN, whatever tags they have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qinq: Option<VlanRef>,
    /// The sane set for a guest that nobody trusts: its addresses are locked, it may be neither DHCP server nor router, and storms are limited. What else is said goes first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
    /// The guest may use the port's MAC address and those of `allow_mac`; yes for one that is untrusted, if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock_mac: Option<bool>,
    /// More MAC addresses that the guest may use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_mac: Vec<PortMac>,
    /// The guest may use the IP addresses that are leased to it and those of `allow_ip`; yes for one that is untrusted, if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock_ip: Option<bool>,
    /// More IP addresses that the guest may use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_ip: Vec<IpAddr>,
    /// What the guest may be beside a host; if nothing is said, neither if it is untrusted or its IP addresses are locked, and else both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowedParts>,
    /// The guest reaches only ports that are not isolated, and the gateway.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
    /// The same, and the other ports of this group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation_group: Option<IsolationGroup>,
    /// How much broadcast the guest may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm_broadcast: Option<StormRate>,
    /// How much multicast the guest may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm_multicast: Option<StormRate>,
    /// How much the guest may send to addresses that nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm_unknown: Option<StormRate>,
    /// How much the guest may send in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_in: Option<BitRate>,
    /// How many bytes of that may come at once; those of 10 ms if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_in: Option<Burst>,
    /// How much the guest gets at most; more than that waits for its turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_out: Option<BitRate>,
    /// How many bytes of that may come at once; those of 2 ms if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_out: Option<BurstOut>,
    /// How long a frame may wait for its turn; beyond, it is dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_out: Option<Wait>,
    /// What a bad network does to frames that the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impair_in: Option<Impair>,
    /// The same for those that it gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impair_out: Option<Impair>,
    /// How many stations may be behind the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_macs: Option<MaxMacs>,
    /// What becomes of frames from others: `forward` or `drop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_max_macs: Option<AtMaxMacs>,
}

impl Config {
    /// The network that a port is on if nothing else is said.
    pub const DEFAULT_NETWORK: &'static str = "default";

    /// What runs without a configuration file: one network and two ports.
    #[must_use]
    pub fn built_in() -> Self {
        let ports = ["vm1", "vm2"].map(|port| (plain_name(port), PortConfig::default()));
        Self { networks: default_networks(), ports: ports.into(), ..Self::default() }
    }

    /// The same value, with network `default` if no network at all is declared.
    #[must_use]
    pub fn with_default_network(mut self) -> Self {
        if self.networks.is_empty() {
            self.networks = default_networks();
        }
        self
    }

    /// The same value, with what the command line says about the workers.
    #[must_use]
    pub fn with_overrides(mut self, overrides: &WorkerOverrides) -> Self {
        self.workers = overrides.over(self.workers);
        self
    }

    /// Checks that the declarations go together on `host`.
    ///
    /// # Errors
    /// The first conflict, ports in the order of their names.
    pub fn check(&self, host: &Host) -> Result<(), Conflict> {
        let mut sockets = BTreeMap::new();
        let mut macs = BTreeMap::new();
        for (name, port) in &self.ports {
            let (network, path, mac) = (&port.network, host.socket(name, port), host.mac(name, port));
            if !self.networks.contains_key(network) {
                let known = self.networks.keys().cloned().collect();
                return Err(Conflict::NoSuchNetwork { port: name.clone(), network: network.clone(), known });
            }
            if path == host.control_socket() {
                return Err(Conflict::ControlSocket { port: name.clone(), path });
            }
            if let Some(other) = macs.insert((network, mac), name) {
                return Err(Conflict::SameMac { port: name.clone(), other: other.clone(), network: network.clone(), mac });
            }
            if let Some(other) = sockets.insert(path.clone(), name) {
                return Err(Conflict::SameSocket { port: name.clone(), other: other.clone(), path });
            }
        }
        self.check_forwards()?;
        self.check_vlans()?;
        self.check_fdb(host)?;
        self.check_mirrors()?;
        let mut has_dhcp = Vec::new();
        for (name, network) in &self.networks {
            let plan = GatewayPlan::new(name, self, host, network.subnet)?;
            // A subnet that weft chooses itself is chosen later.
            let is_later = plan.is_none() && network.mode == NetworkMode::Nat && network.dhcp != DhcpChoice::Off;
            if is_later || plan.is_some_and(|plan| plan.dhcp.is_some()) {
                has_dhcp.push(name);
            }
        }
        self.check_protections(&has_dhcp)
    }

    /// Checks that every forward can be, and that no two want the same port of the host.
    fn check_forwards(&self) -> Result<(), Conflict> {
        let mut all: Vec<(&Name, &ForwardRule)> = Vec::new();
        for (name, network) in &self.networks {
            if network.mode != NetworkMode::Nat && !network.forwards.is_empty() {
                return Err(Conflict::NeedsNat { network: name.clone(), what: "forwards" });
            }
            if network.mode != NetworkMode::Nat && network.host_access {
                return Err(Conflict::NeedsNat { network: name.clone(), what: "host access" });
            }
            if network.forwards.iter().map(|rule| rule.from.count()).sum::<usize>() > PORTS_MAX {
                return Err(Conflict::TooManyForwards { network: name.clone() });
            }
            for rule in &network.forwards {
                rule.check().map_err(|source| Conflict::Forward { network: name.clone(), source })?;
                if let Some((other, earlier)) = all.iter().find(|(_, earlier)| earlier.from.overlaps(&rule.from)) {
                    let (from, other, earlier) = (rule.from, (*other).clone(), earlier.from);
                    return Err(Conflict::SameForward { network: name.clone(), from, other, earlier });
                }
                all.push((name, rule));
            }
        }
        Ok(())
    }

    /// The ports of a network.
    pub fn ports_of<'a>(&'a self, network: &'a Name) -> impl Iterator<Item = &'a Name> {
        self.ports.iter().filter(move |(_, port)| port.network == *network).map(|(name, _)| name)
    }
}

impl WorkersConfig {
    /// The workers that are declared.
    #[must_use]
    pub fn settings(&self) -> WorkerSettings {
        WorkerSettings {
            count: self.count.value() as usize,
            cpus: self.cpus.cpus().iter().copied().map(usize::from).collect(),
            polling: match self.polling {
                PollingMode::Adaptive => Polling::Adaptive,
                PollingMode::Always => Polling::Always,
                PollingMode::Never => Polling::Never,
            },
        }
    }

    /// What is possible but hardly meant, where weft may use `available` processors: a sentence for a person.
    #[must_use]
    pub fn doubt(&self, available: usize) -> Option<String> {
        let (count, cpus) = (self.count.value() as usize, self.cpus.cpus());
        let processors = if cpus.is_empty() { available } else { cpus.len() };
        if let Some(idle @ [_, ..]) = cpus.get(count..) {
            return Some(format!(
                "there are fewer workers than processors for them, and {} stays without one: workers.count or --workers gives more",
                cpu_ranges(idle)
            ));
        }
        (count > processors).then(|| {
            format!(
                "{count} workers share {}, and hold one another up: give each a processor of its own, or have fewer",
                counted(processors, "processor")
            )
        })
    }

    /// Where `wanted` differs, for a sentence.
    #[must_use]
    pub fn difference(&self, wanted: &Self) -> String {
        let differs = |key: &str, here: &dyn fmt::Display, there: &dyn fmt::Display| {
            let (here, there) = (here.to_string(), there.to_string());
            (here != there).then(|| format!("workers.{key} from {here} to {there}"))
        };
        let Self { count, cpus, polling } = wanted;
        let all =
            [differs("count", &self.count, count), differs("cpus", &self.cpus, cpus), differs("polling", &self.polling, polling)];
        all.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl WorkerOverrides {
    /// What holds, when the file says `declared`.
    #[must_use]
    pub fn over(&self, declared: WorkersConfig) -> WorkersConfig {
        WorkersConfig {
            count: self.count.unwrap_or(declared.count),
            cpus: self.cpus.clone().unwrap_or(declared.cpus),
            polling: self.polling.unwrap_or(declared.polling),
        }
    }
}

impl NetworkConfig {
    /// The domain of hosts if nothing else is said. `internal` is for such (ICANN Board resolution 2024.07.29.06), nobody has it outside.
    pub const DOMAIN: &'static str = "weft.internal";

    /// The way outside, if its mode has one.
    #[must_use]
    pub fn nat(&self) -> Option<NatSettings> {
        (self.mode == NetworkMode::Nat).then(|| self.nat.settings())
    }

    /// The same network with other values for these keys; `null` is the value that a key has if nothing is said.
    ///
    /// # Errors
    /// When a key is not there, or a value is none for it: both by name.
    pub fn with_changes(&self, changes: Changes) -> Result<Self, String> {
        with_changes(self, changes)
    }

    /// The forwarding database that is declared.
    #[must_use]
    pub fn fdb(&self) -> FdbSettings {
        FdbSettings {
            capacity: self.fdb_capacity.value() as usize,
            ageing: Duration::from_secs(u64::from(self.ageing_seconds.value())),
            when_full: self.fdb_full.at_limit(),
        }
    }
}

impl PortConfig {
    /// The same port with other values for these keys; `null` is the value that a key has if nothing is said.
    ///
    /// # Errors
    /// When a key is not there, or a value is none for it: both by name.
    pub fn with_changes(&self, changes: Changes) -> Result<Self, String> {
        with_changes(self, changes)
    }
}

/// New values of some keys.
pub type Changes = serde_json::Map<String, serde_json::Value>;

fn with_changes<T: Serialize + DeserializeOwned>(value: &T, changes: Changes) -> Result<T, String> {
    let mut whole = serde_json::to_value(value).map_err(|error| error.to_string())?;
    if let Some(keys) = whole.as_object_mut() {
        for (key, value) in changes {
            if value.is_null() {
                keys.remove(&key);
            } else {
                keys.insert(key, value);
            }
        }
    }
    serde_path_to_error::deserialize(whole).map_err(|error| format!("{}: {}", error.path(), plain(&error.inner().to_string())))
}

impl fmt::Display for WorkersConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, cpus, polling } = self;
        write!(formatter, "{} (cpus {cpus}, polling {polling})", counted(count.value(), "worker"))
    }
}

impl Default for WorkersConfig {
    fn default() -> Self {
        Self { count: WorkerCount::of::<1>(), cpus: CpuList::default(), polling: PollingMode::default() }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            mode: NetworkMode::default(),
            subnet: None,
            gateway: None,
            dhcp: DhcpChoice::default(),
            lease_seconds: LeaseSeconds::of::<43_200>(),
            dns: DnsChoice::default(),
            domain: Self::DOMAIN.parse().expect("the domain in the source is a good one"),
            ageing_seconds: AgeingSeconds::of::<300>(),
            fdb_capacity: FdbCapacity::of::<16_384>(),
            fdb_full: FdbFull::default(),
            fdb: Vec::new(),
            mtu: Mtu::of::<1500>(),
            multicast: MulticastMode::default(),
            querier: true,
            query_interval_seconds: QueryInterval::of::<125>(),
            fast_leave: false,
            nat: NatConfig::default(),
            default_vlan: DEFAULT_VLAN,
            vlans: VlanNames::default(),
            leases: Vec::new(),
            host_access: false,
            forwards: Vec::new(),
        }
    }
}

impl Default for PortConfig {
    fn default() -> Self {
        let network = plain_name(Config::DEFAULT_NETWORK);
        Self {
            network,
            socket: None,
            client: false,
            queues: Queues::of::<1>(),
            mac: None,
            address: None,
            vlan: None,
            trunk: None,
            native: None,
            qinq: None,
            untrusted: false,
            lock_mac: None,
            allow_mac: Vec::new(),
            lock_ip: None,
            allow_ip: Vec::new(),
            allow: None,
            isolated: false,
            isolation_group: None,
            storm_broadcast: None,
            storm_multicast: None,
            storm_unknown: None,
            limit_in: None,
            burst_in: None,
            limit_out: None,
            burst_out: None,
            queue_out: None,
            impair_in: None,
            impair_out: None,
            max_macs: None,
            at_max_macs: None,
        }
    }
}

fn default_networks() -> BTreeMap<Name, NetworkConfig> {
    [(plain_name(Config::DEFAULT_NETWORK), NetworkConfig::default())].into()
}

/// A name that stands in this source file.
fn plain_name(text: &'static str) -> Name {
    text.parse().expect("the name in the source is a good one")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use schemars::schema_for;

    use super::*;

    fn host() -> Host {
        Host::new(Path::new("/run/weft"), "test")
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn with_ports(ports: &[(&str, PortConfig)]) -> Config {
        let ports = ports.iter().map(|(text, port)| (name(text), port.clone())).collect();
        Config { networks: default_networks(), ports, ..Config::default() }
    }

    #[test]
    fn without_a_file_two_guests_can_be_plugged_in() {
        let config = Config::built_in();
        assert_eq!(config.check(&host()), Ok(()));
        assert_eq!(config.ports.keys().map(Name::as_str).collect::<Vec<_>>(), ["vm1", "vm2"]);
        assert_eq!(config.ports_of(&name("default")).count(), 2);
    }

    #[test]
    fn a_port_on_a_network_that_is_not_there_is_refused_and_told_which_are() {
        let config = with_ports(&[("a", PortConfig { network: name("lab"), ..PortConfig::default() })]);
        let message = config.check(&host()).unwrap_err().to_string();
        assert_eq!(message, r#"port "a" names network "lab", which is not there; there are: default"#);
    }

    #[test]
    fn two_guests_of_a_network_can_not_share_an_address() {
        let mac = PortConfig { mac: Some("02:00:00:00:00:01".parse().unwrap()), ..PortConfig::default() };
        let mut config = with_ports(&[("a", mac.clone()), ("b", mac)]);
        assert!(matches!(config.check(&host()), Err(Conflict::SameMac { .. })));
        config.networks.insert(name("lab"), NetworkConfig::default());
        config.ports.get_mut(&name("b")).unwrap().network = name("lab");
        assert_eq!(config.check(&host()), Ok(()));
    }

    #[test]
    fn the_derived_address_of_another_guest_can_not_be_taken() {
        let derived = host().mac(&name("a"), &PortConfig::default());
        let taken = PortConfig { mac: Some(PortMac::try_from(derived).unwrap()), ..PortConfig::default() };
        let config = with_ports(&[("a", PortConfig::default()), ("b", taken)]);
        assert!(matches!(config.check(&host()), Err(Conflict::SameMac { .. })));
    }

    #[test]
    fn two_ports_can_not_share_a_socket_however_it_is_written() {
        for socket in ["a.sock", "./a.sock", "/run/weft/a.sock", "/run//weft/a.sock"] {
            let other = PortConfig { socket: Some(socket.parse().unwrap()), ..PortConfig::default() };
            let config = with_ports(&[("a", PortConfig::default()), ("b", other)]);
            assert!(matches!(config.check(&host()), Err(Conflict::SameSocket { .. })), "{socket} was taken");
        }
    }

    #[test]
    fn a_port_can_not_take_the_control_socket() {
        let config = with_ports(&[("control", PortConfig::default())]);
        assert!(matches!(config.check(&host()), Err(Conflict::ControlSocket { .. })));
    }

    #[test]
    fn addresses_need_a_subnet() {
        let address = Some(Ipv4Addr::new(10, 77, 0, 9));
        let lease = r#"{"address":"10.77.0.9","mac":"02:00:00:00:00:09"}"#;
        let networks = [
            NetworkConfig { gateway: address, ..NetworkConfig::default() },
            NetworkConfig { dhcp: "10.77.0.10-10.77.0.19".parse().unwrap(), ..NetworkConfig::default() },
            NetworkConfig { leases: vec![serde_json::from_str(lease).unwrap()], ..NetworkConfig::default() },
        ];
        for network in networks {
            let mut config = Config { networks: [(name("lab"), network)].into(), ..Config::default() };
            assert!(matches!(config.check(&host()), Err(Conflict::NeedsSubnet { .. })), "{config:?}");
            config.networks.get_mut(&name("lab")).unwrap().subnet = Some("10.77.0.0/24".parse().unwrap());
            assert_eq!(config.check(&host()), Ok(()), "{config:?}");
        }
        let port = PortConfig { address, ..PortConfig::default() };
        assert!(matches!(with_ports(&[("a", port)]).check(&host()), Err(Conflict::NeedsSubnet { .. })));
    }

    #[test]
    fn what_a_network_has_no_use_for_is_refused() {
        let lab = |network| Config { networks: [(name("lab"), network)].into(), ..Config::default() };
        let private = NetworkConfig { mode: NetworkMode::Private, dns: "192.0.2.1".parse().unwrap(), ..NetworkConfig::default() };
        assert!(matches!(lab(private).check(&host()), Err(Conflict::PrivateDns { .. })));
        let subnet = Some("10.77.0.0/24".parse().unwrap());
        let outside = NetworkConfig { subnet, gateway: Some(Ipv4Addr::new(10, 78, 0, 1)), ..NetworkConfig::default() };
        assert!(matches!(lab(outside).check(&host()), Err(Conflict::Gateway { .. })));
        let outside = NetworkConfig { subnet, dhcp: "10.78.0.1-10.78.0.9".parse().unwrap(), ..NetworkConfig::default() };
        assert!(matches!(lab(outside).check(&host()), Err(Conflict::Dhcp { .. })));
        let mac = PortMac::try_from(host().gateway_mac(&name("default"))).unwrap();
        let gateways = with_ports(&[("a", PortConfig { mac: Some(mac), ..PortConfig::default() })]);
        assert!(matches!(gateways.check(&host()), Err(Conflict::GatewayMac { .. })));
        let mut config = with_ports(&[("a", PortConfig { address: Some(Ipv4Addr::new(10, 77, 0, 9)), ..PortConfig::default() })]);
        *config.networks.get_mut(&name("default")).unwrap() =
            NetworkConfig { subnet, dhcp: DhcpChoice::Off, ..NetworkConfig::default() };
        assert!(matches!(config.check(&host()), Err(Conflict::AddressWithoutDhcp { .. })));
    }

    #[test]
    fn every_key_is_documented() {
        let docs = include_str!("../../docs/configuration.md");
        let schemas = [
            schema_for!(WorkersConfig),
            schema_for!(NetworkConfig),
            schema_for!(NatConfig),
            schema_for!(PortConfig),
            schema_for!(MirrorConfig),
        ];
        let keys: Vec<_> =
            schemas.iter().flat_map(|schema| schema.get("properties").unwrap().as_object().unwrap().keys()).collect();
        for key in &keys {
            assert!(docs.contains(&format!("\n| `{key}` | ")), "docs/configuration.md lacks {key}");
        }
        let documented = docs.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(documented, keys.len(), "docs/configuration.md has a key that is not there");
    }

    #[test]
    fn the_examples_of_the_documentation_are_good_ones() {
        let docs = include_str!("../../docs/configuration.md");
        let examples: Vec<_> = docs.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
        assert_eq!(examples.len(), 2);
        for example in examples {
            crate::config_file::parse(example, Path::new("example.toml"), &host()).unwrap();
        }
    }

    fn workers(count: i128, cpus: &str) -> WorkersConfig {
        let count = WorkerCount::try_from(count).unwrap();
        WorkersConfig { count, cpus: cpus.parse().unwrap(), ..WorkersConfig::default() }
    }

    #[test]
    fn the_defaults_are_those_of_the_dataplane() {
        assert_eq!(WorkersConfig::default().settings(), WorkerSettings::default());
    }

    #[test]
    fn what_the_command_line_says_about_workers_wins_and_the_rest_stays() {
        let file = workers(4, "2-5");
        assert_eq!(WorkerOverrides::default().over(file.clone()), file);
        let count = WorkerOverrides { count: Some(WorkerCount::of::<2>()), ..WorkerOverrides::default() };
        assert_eq!(count.over(file.clone()), workers(2, "2-5"));
        let cpus = WorkerOverrides { cpus: Some(CpuList::default()), ..WorkerOverrides::default() };
        assert_eq!(cpus.over(file), workers(4, "any"));
    }

    #[test]
    fn workers_and_processors_that_hardly_go_together_are_remarked_on() {
        for fine in [workers(1, "any"), workers(4, "any"), workers(4, "2-5")] {
            assert_eq!(fine.doubt(4), None, "{fine:?}");
        }
        assert!(workers(1, "2-5").doubt(8).unwrap().contains("3-5 stays without one"));
        assert_eq!(
            workers(4, "2,3").doubt(8).unwrap(),
            "4 workers share 2 processors, and hold one another up: give each a processor of its own, or have fewer"
        );
        assert_eq!(
            workers(2, "any").doubt(1).unwrap(),
            "2 workers share 1 processor, and hold one another up: give each a processor of its own, or have fewer"
        );
    }
}
