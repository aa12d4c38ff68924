//! The methods of the control socket and the types that they carry. One table, at the end of this file, is the only
//! place where a method is listed: dispatch, the client's types and the JSON Schema all come from it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_switch::MacAddr;

use crate::addressing::StaticLease;
use crate::capture::{CaptureAsked, CaptureStarted, Streaming};
use crate::config::{Changes, Config, NetworkConfig, PortConfig};
use crate::fdb::{AtMaxMacs, FdbFull, StaticEntry};
use crate::forward::{ForwardFrom, ForwardRule, ForwardTo};
use crate::lines::{Impair, Wait};
use crate::mirror_handler::{MirrorAdd, MirrorLine};
use crate::multicast::{MulticastInfo, MulticastMode};
use crate::protections::{AllowedParts, BitRate, StormRate};
use crate::rpc::RpcError;
use crate::trace::{TraceAnswer, TraceAsked};
use crate::values::{Name, NetworkMode, PollingMode, PortMac};
use crate::vlans::{DEFAULT_VLAN, VlanNames, VlanRef};
use crate::wording::plain;

/// The version of what is said on the control socket. It changes when an old client would misunderstand.
pub const PROTOCOL: u32 = 1;

/// The version of this weft.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A method: its name, what goes in and what comes out.
pub trait Method {
    /// The name on the wire.
    const NAME: &'static str;
    /// What goes in.
    type Params: Serialize + DeserializeOwned + JsonSchema;
    /// What comes out.
    type Answer: Serialize + DeserializeOwned + JsonSchema;
}

/// What is known about a method at run time.
#[derive(Debug)]
pub struct MethodInfo {
    /// The name on the wire.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// The schemas of what goes in and what comes out.
    pub schemas: fn(&mut SchemaGenerator) -> (Schema, Schema),
}

/// What there is to say about a request that was carried out. It stands beside the result, in `warnings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// `not_kept`, `until_restart`, `monitor_port` or `mirror_gone`.
    pub kind: String,
    /// For a person.
    pub message: String,
}

impl Warning {
    /// The change was made, and can't be kept for the next start though it should be.
    pub const NOT_KEPT: &str = "not_kept";
    /// The change was made, and the configuration file knows nothing of it.
    pub const UNTIL_RESTART: &str = "until_restart";
    /// A mirror leads to a port that has a guest, which is cut off by that.
    pub const MONITOR_PORT: &str = "monitor_port";
    /// A mirror has ended because a port was removed.
    pub const MIRROR_GONE: &str = "mirror_gone";
}

/// No parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Who the client is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HelloParams {
    /// The protocol version that the client speaks.
    pub protocol: u32,
    /// The client's name and version, for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// Who the switch is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HelloAnswer {
    /// The protocol version that the switch speaks.
    pub protocol: u32,
    /// The version of the switch.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
}

/// A port or a network, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// The name.
    pub name: Name,
}

/// One network, or all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaybeNetwork {
    /// The network; all of them if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
}

/// A port to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortAdd {
    /// The new port's name.
    pub name: Name,
    /// What is declared about it; the same keys as in the configuration file.
    #[serde(default)]
    pub settings: PortConfig,
}

/// What of a port is to change. A key that is left away stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSet {
    /// The port.
    pub name: Name,
    /// The keys of the configuration file that change, with their new values; `null` for what is there if nothing is said.
    pub settings: Changes,
}

/// A network to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkAdd {
    /// The new network's name.
    pub name: Name,
    /// What is declared about it; the same keys as in the configuration file.
    #[serde(default)]
    pub settings: NetworkConfig,
}

/// An address to keep for one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseAdd {
    /// The network.
    pub network: Name,
    /// The address and for whom it is kept; the same keys as in the configuration file.
    pub lease: StaticLease,
}

/// What of a network is to change. A key that is left away stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSet {
    /// The network.
    pub name: Name,
    /// The keys of the configuration file that change, with their new values; `null` for what is there if nothing is said.
    pub settings: Changes,
}

/// A way in to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardAdd {
    /// The network.
    pub network: Name,
    /// From where to where; the same keys as in the configuration file.
    pub forward: ForwardRule,
}

/// A way in, by network and ports of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardOf {
    /// The network.
    pub network: Name,
    /// The ports, as they were given.
    pub from: ForwardFrom,
    /// Where they lead, to be sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<ForwardTo>,
}

/// A way in, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardLine {
    /// The network.
    pub network: Name,
    /// The ports of the host.
    pub from: ForwardFrom,
    /// The guest's end.
    pub to: ForwardTo,
    /// The guest's address, if it has one.
    pub guest: Option<Ipv4Addr>,
    /// `open`, `waiting` (no guest has that name now), or `failed`.
    pub state: String,
    /// Why it is not open; or, if it is, that nobody is known to have the guest's address.
    pub reason: Option<String>,
}

/// Which mappings are to be listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MappingsAsked {
    /// Only those of this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// Only those of the guest on this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Name>,
    /// How many are left out, from the oldest on.
    #[serde(default)]
    pub skip: usize,
    /// How many are listed; at most 1,000, as if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
}

/// Some mappings, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MappingPage {
    /// How many there are in all.
    pub total: usize,
    /// Those of this answer.
    pub mappings: Vec<MappingLine>,
}

/// A connection or the like of a guest with the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MappingLine {
    /// The network.
    pub network: Name,
    /// The guest's port; none if that has gone.
    pub port: Option<Name>,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The guest's end; for `icmp` its port is the identifier.
    #[schemars(with = "String")]
    pub inside: SocketAddrV4,
    /// The port of the host by which it is known outside.
    pub outside: Option<u16>,
    /// The far end; for `udp` and `icmp` the first.
    #[schemars(with = "String")]
    pub remote: SocketAddrV4,
    /// The far end asked for it, by a forward.
    pub forwarded: bool,
    /// How long it has been there.
    pub age_seconds: u64,
    /// Bytes of payload from the guest.
    pub from_guest_bytes: u64,
    /// Bytes of payload to the guest.
    pub to_guest_bytes: u64,
}

/// The way out of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatInfo {
    /// The network.
    pub network: Name,
    /// Guests reach this host's loopback under the gateway's address.
    pub host_access: bool,
    /// Why guests can't ping the outside, if they can't.
    #[serde(default)]
    pub ping_refused: Option<String>,
    /// TCP connections that there are.
    pub tcp: usize,
    /// Mappings of UDP that there are.
    pub udp: usize,
    /// Mappings of ICMP echo that there are.
    pub icmp: usize,
    /// The most TCP connections.
    pub tcp_max: u32,
    /// The most mappings of UDP and ICMP echo.
    pub udp_and_icmp_max: u32,
    /// After how many idle seconds the guest of a connection is asked whether it is still there.
    pub tcp_established_seconds: u64,
    /// After how many seconds a connection that is being opened or closed is given up.
    pub tcp_transitory_seconds: u64,
    /// For how many seconds a mapping of UDP outlives the guest's last datagram.
    pub udp_seconds: u64,
    /// The same for ICMP echo.
    pub icmp_seconds: u64,
    /// What each port has.
    pub ports: BTreeMap<Name, NatPort>,
}

/// What a port has of its network's NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatPort {
    /// TCP connections.
    pub tcp: usize,
    /// Mappings of UDP.
    pub udp: usize,
    /// Mappings of ICMP echo.
    pub icmp: usize,
    /// Bytes of payload from the guest, by those that there are now.
    #[serde(default)]
    pub from_guest_bytes: u64,
    /// Bytes of payload to the guest, by the same.
    #[serde(default)]
    pub to_guest_bytes: u64,
}

/// A lease, by network and address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseOf {
    /// The network.
    pub network: Name,
    /// The address.
    pub address: Ipv4Addr,
}

/// An address that a client has, or that is kept for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseLine {
    /// The network.
    pub network: Name,
    /// The address.
    pub address: Ipv4Addr,
    /// `leased`, `quarantined` (somebody uses it without a lease, and nobody gets it for a while), or `reserved` (kept for a client that
    /// does not have it now).
    pub state: String,
    /// It is kept for one client, as declared.
    pub fixed: bool,
    /// What the client is known by: a MAC address, or its client identifier in hexadecimal.
    pub client: Option<String>,
    /// The client's MAC address.
    #[schemars(with = "Option<String>")]
    pub mac: Option<MacAddr>,
    /// The port behind which it is.
    pub port: Option<String>,
    /// What the host is called.
    pub hostname: Option<String>,
    /// Until it ends, in seconds.
    pub seconds_left: Option<u64>,
    /// For whom the address is kept, if that is another than who has it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_for: Option<String>,
}

/// The switch as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The version of the switch.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
    /// Its run directory.
    pub run_dir: PathBuf,
    /// The configuration file that it re-reads on SIGHUP.
    pub config_file: Option<PathBuf>,
    /// Without such a file: where changes are kept for the next start.
    #[serde(default)]
    pub saved_file: Option<PathBuf>,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// False when a worker has died.
    pub healthy: bool,
    /// What else an operator should look after: a configuration that could not be kept, or not be read again.
    #[serde(default)]
    pub problems: Vec<String>,
    /// How many ports there are.
    pub ports: usize,
    /// How many of them are up.
    pub ports_up: usize,
    /// The networks.
    pub networks: Vec<NetworkInfo>,
    /// The workers.
    pub workers: Vec<WorkerInfo>,
}

/// A worker, and what it did since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerInfo {
    /// Its number, from 0 on; its thread is `weft-worker-NUMBER`.
    #[serde(default)]
    pub number: usize,
    /// The processor that it is pinned to; none: wherever the operating system puts it.
    pub cpu: Option<usize>,
    /// What it does when it finds no frames.
    #[serde(default)]
    pub polling: PollingMode,
    /// With `adaptive` polling: how long it goes on looking before it sleeps, in microseconds.
    pub spin_us: Option<u64>,
    /// Rings from guests that it polls.
    #[serde(default)]
    pub rings: usize,
    /// Rounds over its rings.
    pub rounds: u64,
    /// Rounds in which at least one frame moved.
    pub busy_rounds: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// It sleeps right now.
    #[serde(default)]
    pub asleep: bool,
}

/// A port, as declared and as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortInfo {
    /// Its name.
    pub name: Name,
    /// Its network.
    pub network: Name,
    /// What it is to the VLANs of its network; nothing on a network without any.
    #[serde(default)]
    pub vlan: Option<VlanRole>,
    /// What its guest may send.
    #[serde(default)]
    pub protections: ProtectionInfo,
    /// What is between the switch and the guest.
    #[serde(default)]
    pub lines: LineInfo,
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// True: the guest listens on the socket, and weft connects.
    pub client: bool,
    /// Queue pairs that the guest may use.
    pub queues: u16,
    /// The guest's address.
    #[schemars(with = "String")]
    pub mac: MacAddr,
    /// The MTU that the guest is told, in bytes.
    pub mtu: u16,
    /// Where it stands: `listening`, `connecting`, `connected`, `up` or `stopped`.
    pub state: String,
    /// The mirrors that lead to it: it is a monitor port, which gets their copies and nothing else.
    #[serde(default)]
    pub monitors: Vec<Name>,
    /// The port is paused, because its guest connects it with this one.
    #[serde(default)]
    pub loop_with: Option<Name>,
    /// Why the last connection ended.
    pub last_stop: Option<String>,
    /// How long ago that was.
    #[serde(default)]
    pub last_stop_seconds: Option<u64>,
    /// How many times a guest has connected.
    pub connections: u64,
    /// The negotiated virtio features.
    pub features: Vec<String>,
    /// The MTU that the front-end announced, in bytes.
    pub guest_mtu: Option<u16>,
    /// The rings that run.
    pub rings: Vec<RingInfo>,
    /// What passed.
    pub counters: Counters,
    /// The stations behind it.
    #[serde(default)]
    pub stations: StationInfo,
}

/// The stations behind a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StationInfo {
    /// Those that were learned and are known now, in all VLANs.
    pub count: u32,
    /// How many there may be; nothing if there is no limit.
    pub max: Option<u32>,
    /// What becomes of frames from others.
    pub at_max: Option<AtMaxMacs>,
    /// Stations that came to it from another port.
    pub moved: u64,
    /// Frames from stations that it had no room for.
    pub refused: u64,
}

/// What the guest behind a port may send.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProtectionInfo {
    /// Nobody trusts it.
    pub untrusted: bool,
    /// The MAC addresses that it may use; nothing if it may use any.
    #[schemars(with = "Option<Vec<String>>")]
    pub macs: Option<Vec<MacAddr>>,
    /// The IP addresses that it may use, beside those that are leased to it; nothing if it may use any.
    pub ips: Option<Vec<IpAddr>>,
    /// What it may be beside a host.
    pub allow: AllowedParts,
    /// It reaches only ports that are not isolated.
    pub isolated: bool,
    /// The same, and the others of this group.
    pub isolation_group: Option<u16>,
    /// How much broadcast it may send; nothing if there is no limit.
    pub storm_broadcast: Option<StormRate>,
    /// The same of multicast.
    pub storm_multicast: Option<StormRate>,
    /// The same of what is for addresses that nobody knows.
    pub storm_unknown: Option<StormRate>,
    /// How much it may send in all, in bits a second; nothing if there is no limit.
    pub limit_in: Option<BitRate>,
    /// How many bytes of that may come at once.
    pub burst_in: Option<u64>,
}

/// What is between the switch and the guest behind a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LineInfo {
    /// How much the guest gets at most, in bits a second; nothing if there is no limit.
    pub limit_out: Option<BitRate>,
    /// How many bytes of that may come at once.
    pub burst_out: Option<u64>,
    /// How long a frame may wait for its turn.
    pub queue_out: Option<Wait>,
    /// What a bad network does to frames that the guest sends; nothing if it is a good one.
    pub impair_in: Option<Impair>,
    /// The same for those that it gets.
    pub impair_out: Option<Impair>,
}

/// What a port is to the VLANs of its network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VlanRole {
    /// `access`, `trunk` or `qinq`.
    pub role: String,
    /// The VLAN of an access port; the service VLAN with `qinq`.
    pub vlan: Option<u16>,
    /// What that VLAN is called.
    pub name: Option<String>,
    /// The VLANs of a trunk, as in `10,20,100-199`.
    pub trunk: Option<String>,
    /// The VLAN of a trunk's frames without a tag.
    pub native: Option<u16>,
    /// Nothing was said about the port, so it is in the default VLAN.
    pub by_default: bool,
}

/// VLANs of which the same is to be said: who their members are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VlanLine {
    /// The number of the first one.
    pub first: u16,
    /// The number of the last one.
    pub last: u16,
    /// They are those of service tags (802.1ad), not those of customers.
    pub service: bool,
    /// What it is called, if it is one.
    pub name: Option<String>,
    /// It is the default VLAN, and the network's gateway is in it.
    pub default: bool,
    /// The ports by which its frames leave without a tag that names it.
    pub untagged: Vec<Name>,
    /// The ports by which they leave with one.
    pub tagged: Vec<Name>,
}

/// What has come into a VLAN from its ports, whatever became of it, since some port is a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VlanCounterLine {
    /// Its number.
    pub vlan: u16,
    /// It is one of service tags (802.1ad), not of customers.
    pub service: bool,
    /// What it is called, if it is.
    pub name: Option<String>,
    /// Frames.
    pub frames: u64,
    /// Their bytes, without a tag that was taken off.
    pub bytes: u64,
    /// Those of the frames that were for a group, but not for everybody.
    pub multicast: u64,
    /// Those for everybody.
    pub broadcast: u64,
}

/// A ring that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RingInfo {
    /// Index in the vhost-user protocol: even ones go to the guest, odd ones come from it.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// Enabled by the front-end.
    pub enabled: bool,
}

/// What passed through a port. Directions are the guest's: `from_guest` is what the guest sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counters {
    /// Frames taken from the guest, dropped ones included.
    pub from_guest_frames: u64,
    /// Their bytes.
    pub from_guest_bytes: u64,
    /// Those of the frames that were for a group, but not for everybody.
    #[serde(default)]
    pub from_guest_multicast: u64,
    /// Those for everybody.
    #[serde(default)]
    pub from_guest_broadcast: u64,
    /// Frames handed to the guest.
    pub to_guest_frames: u64,
    /// Their bytes.
    pub to_guest_bytes: u64,
    /// Those of the frames that were for a group, but not for everybody. One that had to be cut counts once.
    #[serde(default)]
    pub to_guest_multicast: u64,
    /// Those for everybody, in the same way.
    #[serde(default)]
    pub to_guest_broadcast: u64,
    /// Interrupts sent to the guest.
    pub notifications: u64,
    /// Dropped frames by reason; reasons without any are left out.
    pub drops: BTreeMap<String, u64>,
}

/// A network, as declared and as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkInfo {
    /// Its name.
    pub name: Name,
    /// What kind of network it is.
    pub mode: NetworkMode,
    /// After how many seconds of silence a MAC address is forgotten.
    pub ageing_seconds: u32,
    /// How many MAC addresses are kept.
    pub fdb_capacity: u32,
    /// The MTU that guests are told, in bytes.
    pub mtu: u16,
    /// Its subnet, if it has one.
    #[serde(default)]
    pub subnet: Option<String>,
    /// The gateway's address.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// The gateway's MAC address.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub gateway_mac: Option<MacAddr>,
    /// What DHCP does there, if it is served.
    #[serde(default)]
    pub dhcp: Option<DhcpInfo>,
    /// What DNS does there, if it is served.
    #[serde(default)]
    pub dns: Option<DnsInfo>,
    /// Its ports.
    pub ports: Vec<Name>,
    /// Guests reach this host's loopback under the gateway's address.
    #[serde(default)]
    pub host_access: bool,
    /// Its VLANs that have members; none as long as no port has a role.
    #[serde(default)]
    pub vlans: Vec<VlanLine>,
    /// What has come into each VLAN; those that nothing has come into are left out.
    #[serde(default)]
    pub vlan_counters: Vec<VlanCounterLine>,
    /// MAC addresses that are known now.
    pub fdb_entries: usize,
    /// What becomes of a station that there is no room for.
    #[serde(default)]
    pub fdb_full: FdbFull,
    /// Static entries.
    #[serde(default)]
    pub fdb_static: usize,
    /// To whom frames for groups go.
    #[serde(default)]
    pub multicast: MulticastMode,
    /// weft asks who wants which groups, where nobody else does.
    #[serde(default)]
    pub querier: bool,
    /// How often, in seconds.
    #[serde(default)]
    pub query_interval_seconds: u32,
    /// Who leaves a group is believed at once.
    #[serde(default)]
    pub fast_leave: bool,
    /// The VLAN of the gateway and of ports without a role, as soon as a port has a role.
    #[serde(default = "default_vlan")]
    pub default_vlan: VlanRef,
    /// The numbers of VLANs, by name.
    #[serde(default)]
    pub vlan_names: VlanNames,
    /// What its forwarding database did.
    pub fdb: FdbCounts,
}

/// What a network's DHCP server does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DhcpInfo {
    /// The addresses that are given to whoever asks.
    pub range: String,
    /// How many of them nobody has.
    pub free: u32,
    /// How long a lease lasts, in seconds.
    pub lease_seconds: u64,
    /// What it did since it started.
    pub counters: BTreeMap<String, u64>,
}

/// What a network's DNS forwarder does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsInfo {
    /// The domain of the network's hosts.
    pub domain: String,
    /// The servers that it asks.
    pub servers: Vec<String>,
    /// Answers that are kept now.
    pub cached: usize,
    /// What it did since it started.
    pub counters: BTreeMap<String, u64>,
}

/// What a forwarding database did since the network was added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbCounts {
    /// New addresses.
    pub learned: u64,
    /// Addresses that appeared on another port.
    pub moved: u64,
    /// Addresses that made way for others because the table was full.
    pub evicted: u64,
    /// Addresses that were not heard of for too long.
    pub expired: u64,
    /// Frames whose source was not learned, because its port or the network had no room for it.
    #[serde(default)]
    pub refused: u64,
    /// Frames with the source of a static entry that came from another port.
    #[serde(default)]
    pub claimed: u64,
    /// Times that an address moved too often, and was made to stay for a while.
    #[serde(default)]
    pub flapped: u64,
}

/// One line of a forwarding database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbLine {
    /// The network.
    pub network: Name,
    /// The VLAN, on a network with VLANs: its number, with an `s` in front of it for one of service tags.
    #[serde(default)]
    pub vlan: Option<String>,
    /// The station.
    #[schemars(with = "String")]
    pub mac: MacAddr,
    /// The port behind which it was last heard, or is.
    pub port: Name,
    /// `dynamic`: it was learned. `static`: it was declared.
    #[serde(default)]
    pub kind: String,
    /// How long ago a dynamic one was heard.
    pub age_seconds: Option<u64>,
    /// How often it has moved to another port since it was learned.
    #[serde(default)]
    pub moves: u32,
    /// It moved too often: for how much longer it stays where it is.
    #[serde(default)]
    pub held_seconds: Option<u64>,
}

/// A static entry to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbAdd {
    /// The network; that of the port if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// Who is where; the same keys as in the configuration file.
    pub entry: StaticEntry,
}

/// A static entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbOf {
    /// The network; the only one that has such an entry if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// The station.
    pub mac: PortMac,
    /// The VLAN; the only one in which it has an entry if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanRef>,
}

/// What was forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flushed {
    /// How many MAC addresses.
    pub entries: usize,
}

/// The counters of all ports and workers at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// The moment, in milliseconds since the switch started.
    pub uptime_ms: u64,
    /// One entry a port.
    pub ports: Vec<PortStats>,
    /// One entry a worker.
    #[serde(default)]
    pub workers: Vec<WorkerInfo>,
}

/// A port's counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortStats {
    /// The port.
    pub name: Name,
    /// Its network.
    pub network: Name,
    /// What passed.
    pub counters: Counters,
}

/// The JSON Schema of every method, as one document.
#[must_use]
pub fn schema() -> Value {
    let mut generator = SchemaGenerator::default();
    let methods: serde_json::Map<_, _> = METHODS
        .iter()
        .map(|method| {
            let (params, result) = (method.schemas)(&mut generator);
            (method.name.to_owned(), json!({ "description": method.about.trim(), "params": params, "result": result }))
        })
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "weft control socket",
        "protocol": PROTOCOL,
        "methods": methods,
        "$defs": generator.take_definitions(true),
    })
}

macro_rules! methods {
    ($(#[doc = $about:literal] $name:literal => $method:ident, $verb:ident($params:ty) -> $answer:ty;)*) => {
        $(
            #[doc = $about]
            #[derive(Debug)]
            pub enum $method {}

            impl Method for $method {
                const NAME: &'static str = $name;
                type Params = $params;
                type Answer = $answer;
            }
        )*

        /// Carries out the methods.
        pub trait Handler {
            $(
                #[doc = $about]
                ///
                /// # Errors
                /// When it is refused.
                fn $verb(&mut self, params: $params) -> Result<$answer, RpcError>;
            )*

            /// Takes what there is to say about the request that was carried out last.
            fn take_warnings(&mut self) -> Vec<Warning>;

            /// Takes what becomes of the connection after the answer, if it is not for requests any more.
            fn take_streaming(&mut self) -> Option<Streaming> {
                None
            }
        }

        /// Every method, in the order of the documentation.
        pub const METHODS: &[MethodInfo] = &[$(
            MethodInfo {
                name: $name,
                about: $about,
                schemas: |generator| (generator.subschema_for::<$params>(), generator.subschema_for::<$answer>()),
            },
        )*];

        /// Finds the method, reads its parameters and carries it out.
        ///
        /// # Errors
        /// When there is no such method, its parameters are others, or it is refused.
        pub fn dispatch(handler: &mut dyn Handler, method: &str, params: Value) -> Result<Value, RpcError> {
            match method {
                $($name => write(handler.$verb(read(params)?)?),)*
                _ => Err(RpcError::no_such_method(method)),
            }
        }
    };
}

methods! {
    /// Tells the versions of both sides; the first request on every connection.
    "hello" => Hello, hello(HelloParams) -> HelloAnswer;
    /// The switch as a whole: health, networks, workers.
    "status" => GetStatus, status(Nothing) -> Status;
    /// Adds a port; its socket listens when the answer comes.
    "port.add" => AddPort, port_add(PortAdd) -> PortInfo;
    /// Changes a port; its guest stays connected if only protections change.
    "port.set" => SetPort, port_set(PortSet) -> PortInfo;
    /// All ports, by name.
    "port.list" => ListPorts, port_list(Nothing) -> Vec<PortInfo>;
    /// One port.
    "port.show" => ShowPort, port_show(Named) -> PortInfo;
    /// Removes a port; its guest is disconnected.
    "port.remove" => RemovePort, port_remove(Named) -> Named;
    /// Adds a network.
    "network.add" => AddNetwork, network_add(NetworkAdd) -> NetworkInfo;
    /// All networks, by name.
    "network.list" => ListNetworks, network_list(Nothing) -> Vec<NetworkInfo>;
    /// One network.
    "network.show" => ShowNetwork, network_show(Named) -> NetworkInfo;
    /// Changes a network; its ports stay plugged in.
    "network.set" => SetNetwork, network_set(NetworkSet) -> NetworkInfo;
    /// Removes a network that has no ports.
    "network.remove" => RemoveNetwork, network_remove(Named) -> Named;
    /// The MAC addresses that were learned or declared, and where.
    "fdb.list" => ListFdb, fdb_list(MaybeNetwork) -> Vec<FdbLine>;
    /// Keeps a MAC address behind one port.
    "fdb.add" => AddFdb, fdb_add(FdbAdd) -> FdbLine;
    /// Keeps a MAC address behind that port no longer.
    "fdb.remove" => RemoveFdb, fdb_remove(FdbOf) -> FdbOf;
    /// Forgets the MAC addresses that were learned.
    "fdb.flush" => FlushFdb, fdb_flush(MaybeNetwork) -> Flushed;
    /// Who wants which multicast groups, and who asks for that.
    "multicast.list" => ListMulticast, multicast_list(MaybeNetwork) -> Vec<MulticastInfo>;
    /// The addresses that clients have, and those that are kept for one.
    "lease.list" => ListLeases, lease_list(MaybeNetwork) -> Vec<LeaseLine>;
    /// Keeps an address for one client.
    "lease.add" => AddLease, lease_add(LeaseAdd) -> LeaseLine;
    /// Ends a lease, and keeps the address for nobody any more.
    "lease.remove" => RemoveLease, lease_remove(LeaseOf) -> LeaseOf;
    /// Lets the outside reach a guest by ports of the host.
    "forward.add" => AddForward, forward_add(ForwardAdd) -> ForwardLine;
    /// The ports of the host by which guests can be reached.
    "forward.list" => ListForwards, forward_list(MaybeNetwork) -> Vec<ForwardLine>;
    /// Takes a forward back; connections that were made stay.
    "forward.remove" => RemoveForward, forward_remove(ForwardOf) -> ForwardOf;
    /// The connections of guests with the outside, the oldest first.
    "nat.list" => ListMappings, nat_list(MappingsAsked) -> MappingPage;
    /// The way out of a network: what is in use, and its limits and times.
    "nat.show" => ShowNat, nat_show(Named) -> NatInfo;
    /// What would become of a frame that a guest sent now, and why; nothing is sent or learned.
    "trace" => TraceFrame, trace(TraceAsked) -> TraceAnswer;
    /// Copies frames of ports to another port, or into a file.
    "mirror.add" => AddMirror, mirror_add(MirrorAdd) -> MirrorLine;
    /// The mirrors, and what they have done.
    "mirror.list" => ListMirrors, mirror_list(Nothing) -> Vec<MirrorLine>;
    /// Copies no longer.
    "mirror.remove" => RemoveMirror, mirror_remove(Named) -> Named;
    /// Captures frames; what comes on this connection after the answer is a pcapng file.
    "capture.start" => StartCapture, capture_start(CaptureAsked) -> CaptureStarted;
    /// The counters of all ports and workers.
    "stats" => GetStats, stats(Nothing) -> Stats;
    /// The declared value that runs, with the subnets that weft has chosen; as TOML it is a configuration file.
    "config.show" => ShowConfig, config_show(Nothing) -> Config;
}

/// Of a weft that does not say.
fn default_vlan() -> VlanRef {
    DEFAULT_VLAN
}

fn read<P: DeserializeOwned>(params: Value) -> Result<P, RpcError> {
    serde_path_to_error::deserialize(params).map_err(|error| {
        let path = error.path().to_string();
        let inner = plain(&error.into_inner().to_string());
        RpcError::bad_params(if path == "." { inner } else { format!("{path}: {inner}") })
    })
}

fn write(answer: impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(answer).map_err(|error| RpcError::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_has_every_method_and_no_dangling_reference() {
        let schema = schema();
        assert_eq!(schema["methods"].as_object().unwrap().len(), METHODS.len());
        let text = schema.to_string();
        for reference in text.split("\"$ref\":\"#/$defs/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schema["$defs"].get(name).is_some(), "{name} is not defined");
        }
    }

    #[test]
    fn the_answers_of_an_older_weft_are_understood() {
        let worker = r#"{"rounds":3,"busy_rounds":2,"sleeps":1}"#;
        let worker: WorkerInfo = serde_json::from_str(worker).unwrap();
        assert_eq!(worker, WorkerInfo { rounds: 3, busy_rounds: 2, sleeps: 1, ..WorkerInfo::default() });
        assert!(serde_json::from_str::<Stats>(r#"{"uptime_ms":1,"ports":[]}"#).unwrap().workers.is_empty());
        assert_eq!(serde_json::from_str::<Config>(r#"{"networks":{},"ports":{}}"#).unwrap(), Config::default());
    }

    #[test]
    fn every_method_is_documented() {
        let docs = include_str!("../../docs/control-api.md");
        for method in METHODS {
            assert!(docs.contains(&format!("\n### `{}`\n", method.name)), "docs/control-api.md lacks {}", method.name);
        }
        let documented = docs.lines().filter(|line| line.starts_with("### `")).count();
        assert_eq!(documented, METHODS.len(), "docs/control-api.md has a method that is not there");
    }
}
