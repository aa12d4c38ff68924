//! The running switch as the control side sees it: the dataplane, and the declared value that it was brought to.
//!
//! [`Switch::apply`] is the only way in which anything changes. It takes the steps between what runs and what is
//! wanted; when one of them fails, it takes the steps back to where it began, by the same function.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use tracing::{error, info};
use weft_dataplane::{Dataplane, DataplaneError, PortSettings, SocketRole};
use weft_switch::{MacAddr, NetworkId, PortId};

use crate::config::{Config, PortConfig, WorkersConfig};
use crate::host::Host;
use crate::plan::{Step, steps};
use crate::refusal::{FailedStep, Refusal};
use crate::values::Name;

/// A running switch.
#[derive(Debug)]
pub struct Switch {
    pub(crate) dataplane: Dataplane,
    pub(crate) config: Config,
    pub(crate) host: Host,
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) started: Instant,
    pub(crate) networks: BTreeMap<Name, NetworkId>,
    pub(crate) ports: BTreeMap<Name, Plugged>,
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
    pub fn new(dataplane: Dataplane, workers: WorkersConfig, host: Host, config_file: Option<PathBuf>) -> Self {
        Self {
            dataplane,
            config: Config { workers, ..Config::default() },
            host,
            config_file,
            started: Instant::now(),
            networks: BTreeMap::new(),
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
        let plan = steps(&before, wanted);
        let count = plan.len();
        for step in plan {
            if let Err(source) = self.take(step.clone()) {
                return Err(self.take_back(&before, step, source));
            }
        }
        Ok(count)
    }

    /// Goes on at the first failure of a step back: the other ports shall be as they were.
    fn take_back(&mut self, before: &Config, step: Step, source: DataplaneError) -> Refusal {
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
    fn take(&mut self, step: Step) -> Result<(), DataplaneError> {
        let line = step.to_string();
        let outcome = match &step {
            Step::RemovePort(name) => self.ports.remove(name).map_or(Ok(()), |port| self.dataplane.remove_port(port.id)),
            Step::RemoveNetwork(name) => self.networks.remove(name).map_or(Ok(()), |id| self.dataplane.remove_network(id)),
            Step::ChangeNetwork(name, network) => {
                self.networks.get(name).map_or(Ok(()), |&id| self.dataplane.set_network(id, network.fdb()))
            }
            Step::AddNetwork(name, network) => {
                let id = self.dataplane.add_network(network.fdb())?;
                self.networks.insert(name.clone(), id);
                Ok(())
            }
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

    fn plug(&mut self, name: &Name, port: &PortConfig) -> Result<Plugged, DataplaneError> {
        let (socket, mac) = (self.host.socket(name, port), self.host.mac(name, port));
        let mtu = self.config.networks[&port.network].mtu.value_u16();
        let id = self.dataplane.add_port(PortSettings {
            name: name.to_string(),
            network: self.networks[&port.network],
            socket: socket.clone(),
            role: if port.client { SocketRole::Client } else { SocketRole::Server },
            queue_pairs: port.queues.value_u16(),
            mac,
            mtu,
        })?;
        Ok(Plugged { id, socket, mac, mtu })
    }
}
