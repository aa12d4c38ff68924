//! What the command line says about a port's protections.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::lines::LineArgs;
use crate::config::{Changes, PortConfig};
use crate::fdb::{AtMaxMacs, MaxMacs};
use crate::protections::{AllowedParts, BitRate, Burst, IsolationGroup, StormRate};
use crate::values::PortMac;

/// What the guest may send. What is not said is as it was, and for a new port not limited.
#[derive(Debug, Args)]
#[command(next_help_heading = "Protections")]
pub(super) struct ProtectionArgs {
    /// The sane set for a guest that nobody trusts: --lock-mac --lock-ip --allow none, and storms of at most 1000 frames a second each.
    /// Whatever else is said goes first.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    untrusted: Option<bool>,
    /// The guest may use the port's MAC address and those of --allow-mac, and no others.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    lock_mac: Option<bool>,
    /// More MAC addresses that the guest may use, at most 16; "" for none.
    #[arg(long, value_name = "MAC,…", value_parser = list::<PortMac>)]
    allow_mac: Option<List<PortMac>>,
    /// The guest may use the IP addresses that DHCP leases to it and those of --allow-ip, and no others.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    lock_ip: Option<bool>,
    /// More IP addresses that the guest may use, at most 16; "" for none.
    #[arg(long, value_name = "IP,…", value_parser = addresses)]
    allow_ip: Option<List<IpAddr>>,
    /// What the guest may be beside a host: dhcp-server, router, both, or none [default: none with --untrusted or --lock-ip, else both].
    #[arg(long, value_name = "PART,…")]
    allow: Option<AllowedParts>,
    /// The guest reaches only ports that are not isolated, and the gateway.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    isolated: Option<bool>,
    /// The same, and the other ports of this group (1 to 65535); "none" for no group.
    #[arg(long, value_name = "N", value_parser = or_none::<IsolationGroup>)]
    isolation_group: Option<Maybe<IsolationGroup>>,
    /// How much broadcast the guest may send a second: frames, as in 1000, bytes, as in 2MB, or off.
    #[arg(long, value_name = "RATE")]
    storm_broadcast: Option<StormRate>,
    /// The same for multicast.
    #[arg(long, value_name = "RATE")]
    storm_multicast: Option<StormRate>,
    /// The same for what is sent to addresses that nobody knows, so that everybody gets it.
    #[arg(long, value_name = "RATE")]
    storm_unknown: Option<StormRate>,
    /// How much the guest may send in all, in bits a second, as in 200M or 1G; "none" for no limit.
    #[arg(long, value_name = "RATE", value_parser = or_none::<BitRate>)]
    limit_in: Option<Maybe<BitRate>>,
    /// How many bytes of that may come at once, 65557 to 1073741824; "none" for those of 10 ms.
    #[arg(long, value_name = "BYTES", value_parser = or_none::<Burst>)]
    burst_in: Option<Maybe<Burst>>,
    /// How many MAC addresses may be behind the port, 0 to 262144, static ones not counted; "none" for no limit.
    #[arg(long, value_name = "N", value_parser = or_none::<MaxMacs>)]
    max_macs: Option<Maybe<MaxMacs>>,
    /// What becomes of frames from others: `forward` them without learning where they came from, or `drop` them; "none" as if nothing is said: forward.
    #[arg(long, value_name = "WHAT", value_parser = at_max)]
    at_max_macs: Option<Maybe<AtMaxMacs>>,
}

/// Several, which are one value.
#[derive(Clone, Debug)]
struct List<T>(Vec<T>);

/// A value, or what is there if nothing is said.
#[derive(Clone, Debug)]
pub(super) struct Maybe<T>(pub(super) Option<T>);

fn list<T: std::str::FromStr>(text: &str) -> Result<List<T>, T::Err> {
    each(text, str::parse)
}

fn addresses(text: &str) -> Result<List<IpAddr>, String> {
    each(text, |part| part.parse().map_err(|_| format!("{part:?} is no IP address: write each, as in 192.0.2.7,2001:db8::7")))
}

fn each<T, E>(text: &str, read: impl Fn(&str) -> Result<T, E>) -> Result<List<T>, E> {
    text.split(',').filter(|part| !part.is_empty()).map(read).collect::<Result<_, _>>().map(List)
}

pub(super) fn or_none<T: std::str::FromStr>(text: &str) -> Result<Maybe<T>, T::Err> {
    if text == "none" { Ok(Maybe(None)) } else { text.parse().map(|value| Maybe(Some(value))) }
}

fn at_max(text: &str) -> Result<Maybe<AtMaxMacs>, String> {
    let unknown = |_| "write forward or drop, or none for what is there if nothing is said".to_owned();
    if text == "none" { Ok(Maybe(None)) } else { AtMaxMacs::from_str(text, false).map(|what| Maybe(Some(what))).map_err(unknown) }
}

impl ProtectionArgs {
    /// The keys of the configuration file that change.
    pub(super) fn changes(self) -> Changes {
        // What belongs to a limit goes with it.
        let unlimited = matches!(self.limit_in, Some(Maybe(None))).then_some(Value::Null);
        let anywhere = matches!(self.max_macs, Some(Maybe(None))).then_some(Value::Null);
        let said = [
            ("untrusted", self.untrusted.map(|untrusted| json!(untrusted))),
            ("lock_mac", self.lock_mac.map(|lock| json!(lock))),
            ("allow_mac", self.allow_mac.map(|List(macs)| json!(macs))),
            ("lock_ip", self.lock_ip.map(|lock| json!(lock))),
            ("allow_ip", self.allow_ip.map(|List(addresses)| json!(addresses))),
            ("allow", self.allow.map(|allow| json!(allow))),
            ("isolated", self.isolated.map(|isolated| json!(isolated))),
            ("isolation_group", self.isolation_group.map(|Maybe(group)| json!(group))),
            ("storm_broadcast", self.storm_broadcast.map(|rate| json!(rate))),
            ("storm_multicast", self.storm_multicast.map(|rate| json!(rate))),
            ("storm_unknown", self.storm_unknown.map(|rate| json!(rate))),
            ("limit_in", self.limit_in.map(|Maybe(rate)| json!(rate))),
            ("burst_in", self.burst_in.map(|Maybe(burst)| json!(burst)).or(unlimited)),
            ("max_macs", self.max_macs.map(|Maybe(max)| json!(max))),
            ("at_max_macs", self.at_max_macs.map(|Maybe(what)| json!(what)).or(anywhere)),
        ];
        said.into_iter().filter_map(|(key, value): (_, Option<Value>)| Some((key.to_owned(), value?))).collect()
    }

    /// A new port with these protections and lines.
    pub(super) fn port(self, lines: LineArgs) -> PortConfig {
        let changes = self.changes().into_iter().chain(lines.changes()).collect();
        PortConfig::default().with_changes(changes).expect("what was read from the command line are values of these keys")
    }
}
