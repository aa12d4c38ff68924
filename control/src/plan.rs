//! The steps between two configurations. A pure function: what runs is a value, what is wanted is a value, and the
//! difference is a list. A port or network that is the same in both is never named. There are no steps for workers, which
//! stay as they are while weft runs.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::config::{Config, NetworkConfig, PortConfig};
use crate::values::Name;

/// One change to a running switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Unplug a guest.
    RemovePort(Name),
    /// Remove a network, which has no ports any more.
    RemoveNetwork(Name),
    /// Add a network.
    AddNetwork(Name, NetworkConfig),
    /// Change a network; its ports stay plugged in.
    ChangeNetwork(Name, NetworkConfig),
    /// Change what a port's guest may send; it stays plugged in.
    ProtectPort(Name, PortConfig),
    /// Add a port to a network that is there.
    AddPort(Name, PortConfig),
}

/// The steps that lead from `old` to `new`, in an order in which each is possible. A changed port is removed and added, unless only
/// its protections are others; it is changed, too, if the VLANs
/// that it names have other numbers now.
#[must_use]
pub fn steps(old: &Config, new: &Config) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(changed_ports(old, new).map(|(name, _)| Step::RemovePort(name.clone())));
    let gone = old.networks.keys().filter(|name| !new.networks.contains_key(*name));
    steps.extend(gone.cloned().map(Step::RemoveNetwork));
    steps.extend(missing(&new.networks, &old.networks, |name, network| {
        if old.networks.contains_key(&name) { Step::ChangeNetwork(name, network) } else { Step::AddNetwork(name, network) }
    }));
    steps.extend(changed_ports(new, old).map(|(name, port)| Step::AddPort(name.clone(), port.clone())));
    let protected = new.ports.iter().filter(|(name, port)| is_like(new, old, name) && old.ports.get(*name) != Some(*port));
    steps.extend(protected.map(|(name, port)| Step::ProtectPort(name.clone(), port.clone())));
    steps
}

/// The ports of `here` that are not the same in `there`, whatever their protections.
fn changed_ports<'a>(here: &'a Config, there: &'a Config) -> impl Iterator<Item = (&'a Name, &'a PortConfig)> {
    here.ports.iter().filter(move |(name, _)| !is_like(here, there, name))
}

/// True if a port is the same in both, but for its protections.
fn is_like(here: &Config, there: &Config, name: &Name) -> bool {
    let port = |config: &Config| config.ports.get(name).map(PortConfig::unprotected);
    port(here) == port(there) && here.role(name) == there.role(name)
}

/// The entries of `here` that are not the same in `there`.
fn missing<'a, T: PartialEq + Clone>(
    here: &'a BTreeMap<Name, T>,
    there: &'a BTreeMap<Name, T>,
    step: impl Fn(Name, T) -> Step + 'a,
) -> impl Iterator<Item = Step> + 'a {
    here.iter()
        .filter(|(name, value)| there.get(*name) != Some(*value))
        .map(move |(name, value)| step(name.clone(), value.clone()))
}

/// The keys that have other values.
fn changed_keys<T: Serialize>(before: &T, after: &T) -> Vec<String> {
    let keys = |value: &T| serde_json::to_value(value).ok().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let (before, after) = (keys(before), keys(after));
    let mut all: Vec<_> = before.keys().chain(after.keys()).collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().filter(|key| before.get(*key) != after.get(*key)).cloned().collect()
}

impl Config {
    /// Which keys a step changes of what is there: the end of a line that names the step.
    #[must_use]
    pub(crate) fn what_changes(&self, step: &Step) -> String {
        match step {
            Step::ChangeNetwork(name, network) => self.networks.get(name).map(|before| changed_keys(before, network)),
            Step::ProtectPort(name, port) => self.ports.get(name).map(|before| changed_keys(before, port)),
            Step::RemovePort(_) | Step::RemoveNetwork(_) | Step::AddNetwork(..) | Step::AddPort(..) => None,
        }
        .map_or_else(String::new, |keys| format!(": {}", keys.join(", ")))
    }

    /// Records that a step was taken.
    pub fn record(&mut self, step: Step) {
        match step {
            Step::RemovePort(name) => drop(self.ports.remove(&name)),
            Step::RemoveNetwork(name) => drop(self.networks.remove(&name)),
            Step::AddNetwork(name, network) | Step::ChangeNetwork(name, network) => drop(self.networks.insert(name, network)),
            Step::AddPort(name, port) | Step::ProtectPort(name, port) => drop(self.ports.insert(name, port)),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemovePort(name) => write!(formatter, "remove port \"{name}\""),
            Self::RemoveNetwork(name) => write!(formatter, "remove network \"{name}\""),
            Self::AddNetwork(name, _) => write!(formatter, "add network \"{name}\""),
            Self::ChangeNetwork(name, _) => write!(formatter, "change network \"{name}\""),
            Self::AddPort(name, _) => write!(formatter, "add port \"{name}\""),
            Self::ProtectPort(name, _) => write!(formatter, "change the protections of port \"{name}\""),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_change_is_named_by_its_keys() {
        let name: Name = "lab".parse().unwrap();
        let mut config = Config::default();
        config.record(Step::AddNetwork(name.clone(), NetworkConfig::default()));
        let ageing_seconds = AgeingSeconds::try_from(20).unwrap();
        let step = Step::ChangeNetwork(name, NetworkConfig { ageing_seconds, host_access: true, ..NetworkConfig::default() });
        assert_eq!(format!("{step}{}", config.what_changes(&step)), "change network \"lab\": ageing_seconds, host_access");
    }

    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;
    use crate::values::AgeingSeconds;

    /// Few names and few values, so that any two configurations have much in common.
    fn config() -> impl Strategy<Value = Config> {
        let networks = btree_map("[a-d]", 10..13_i128, 1..4).prop_map(|networks| {
            let network =
                |seconds| NetworkConfig { ageing_seconds: AgeingSeconds::try_from(seconds).unwrap(), ..NetworkConfig::default() };
            networks.into_iter().map(|(name, seconds)| (name.parse().unwrap(), network(seconds))).collect::<BTreeMap<Name, _>>()
        });
        (networks, btree_map("[p-u]", (any::<prop::sample::Index>(), any::<bool>(), any::<bool>()), 0..6)).prop_map(
            |(networks, ports)| {
                let names: Vec<_> = networks.keys().cloned().collect();
                let port = |(index, client, untrusted): (prop::sample::Index, bool, bool)| PortConfig {
                    network: index.get(&names).clone(),
                    client,
                    untrusted,
                    ..PortConfig::default()
                };
                let ports = ports.into_iter().map(|(name, values)| (name.parse().unwrap(), port(values))).collect();
                Config { networks, ports, ..Config::default() }
            },
        )
    }

    /// Takes a step the way a strict switch would, which accepts only what is possible at that moment.
    fn take(config: &mut Config, step: Step) {
        match &step {
            Step::RemovePort(name) => assert!(config.ports.contains_key(name)),
            Step::RemoveNetwork(name) => {
                assert!(config.networks.contains_key(name));
                assert_eq!(config.ports_of(name).count(), 0, "a network with ports is removed");
            }
            Step::AddNetwork(name, _) => assert!(!config.networks.contains_key(name)),
            Step::ChangeNetwork(name, network) => assert_ne!(config.networks.get(name).unwrap(), network),
            Step::AddPort(name, port) => {
                assert!(!config.ports.contains_key(name));
                assert!(config.networks.contains_key(&port.network), "a port is added to a network that is not there");
            }
            Step::ProtectPort(name, port) => {
                let before = &config.ports[name];
                assert_ne!(before, port);
                assert_eq!(PortConfig { untrusted: port.untrusted, ..before.clone() }, *port, "more than protections is changed");
            }
        }
        config.record(step);
    }

    proptest! {
        #[test]
        fn the_steps_lead_from_the_old_value_to_the_new_one(old in config(), new in config()) {
            let mut now = old.clone();
            for step in steps(&old, &new) {
                take(&mut now, step);
            }
            prop_assert_eq!(now, new);
        }

        #[test]
        fn the_way_back_leads_from_any_point_of_the_way_to_the_old_value(old in config(), new in config(), stop in 0..12_usize) {
            let mut now = old.clone();
            for step in steps(&old, &new).into_iter().take(stop) {
                take(&mut now, step);
            }
            for step in steps(&now.clone(), &old) {
                take(&mut now, step);
            }
            prop_assert_eq!(now, old);
        }

        #[test]
        fn equal_values_have_no_steps_between_them(value in config()) {
            prop_assert_eq!(steps(&value, &value.clone()), []);
        }

        #[test]
        fn what_does_not_differ_is_never_named(old in config(), new in config()) {
            for step in steps(&old, &new) {
                match step {
                    Step::RemovePort(name) | Step::AddPort(name, _) | Step::ProtectPort(name, _) => prop_assert_ne!(old.ports.get(&name), new.ports.get(&name)),
                    Step::RemoveNetwork(name) | Step::AddNetwork(name, _) | Step::ChangeNetwork(name, _) => {
                        prop_assert_ne!(old.networks.get(&name), new.networks.get(&name));
                    }
                }
            }
        }
    }
}
