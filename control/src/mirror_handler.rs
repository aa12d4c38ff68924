//! The methods of the control socket that are about mirrors, and what is done about them after each change.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::{error, info};
use weft_dataplane::MirrorSettings;

use crate::api::{Named, Warning};
use crate::capture::FileCapture;
use crate::mirror::{MaxSizeMib, MirrorConfig, MirrorError};
use crate::refusal::Refusal;
use crate::rpc::RpcError;
use crate::switch::Switch;
use crate::values::Name;

/// How large the file of a mirror may become if nothing is said.
const MAX_SIZE_MIB: MaxSizeMib = MaxSizeMib::of::<1_024>();

/// A mirror to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorAdd {
    /// The new mirror's name.
    pub name: Name,
    /// What is declared about it; the same keys as in the configuration file.
    pub settings: MirrorConfig,
}

/// A mirror, and what it has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MirrorLine {
    /// Its name.
    pub name: Name,
    /// What is declared about it.
    #[serde(flatten)]
    pub settings: MirrorConfig,
    /// Copies that were handed to the ring of the monitor port, or written to the file.
    pub frames: u64,
    /// Copies that were lost before that.
    pub lost: u64,
    /// Why it does nothing, if it does not.
    pub problem: Option<String>,
}

/// The mirrors that lead into files.
#[derive(Debug, Default)]
pub(crate) struct FileMirrors(BTreeMap<Name, FileMirror>);

#[derive(Debug)]
struct FileMirror {
    config: MirrorConfig,
    /// As the dataplane calls them.
    ports: Vec<weft_switch::PortId>,
    capture: Result<FileCapture, String>,
}

impl Switch {
    pub(crate) fn add_mirror(&mut self, params: MirrorAdd) -> Result<MirrorLine, RpcError> {
        let MirrorAdd { name, settings } = params;
        let mut wanted = self.config.clone();
        if wanted.mirrors.insert(name.clone(), settings.clone()).is_some() {
            return Err(Refusal::Exists { what: "mirror", name }.into());
        }
        // Said about the new one, whichever of the two comes first.
        if let Some((other, _)) =
            self.config.mirrors.iter().find(|(_, mirror)| mirror.file().is_some_and(|file| settings.file() == Some(file)))
        {
            let problem = MirrorError::SameFile(other.clone()).to_string();
            return Err(Refusal::Mirror { name, problem }.into());
        }
        let before = self.config.clone();
        self.apply(&wanted)?;
        if let Some(problem) = self.mirror_problem(&name) {
            // Nobody would look for a mirror that never was one.
            self.apply(&before)?;
            return Err(Refusal::Mirror { name, problem }.into());
        }
        if let Some(port) = settings.port().filter(|port| before.monitored(port).next().is_none()) {
            let in_use = self.ports.get(port).and_then(|plugged| self.dataplane.port_status(plugged.id));
            let message =
                format!("a guest is on port {port}: it gets nothing but copies from now on, and what it sends goes nowhere");
            let warning = Warning { kind: Warning::MONITOR_PORT.to_owned(), message };
            self.warnings.extend(in_use.filter(|status| status.connections > 0 && !status.rings.is_empty()).map(|_| warning));
        }
        Ok(self.mirror_line(&name, settings))
    }

    pub(crate) fn list_mirrors(&self) -> Vec<MirrorLine> {
        self.config.mirrors.iter().map(|(name, mirror)| self.mirror_line(name, mirror.clone())).collect()
    }

    pub(crate) fn remove_mirror(&mut self, params: Named) -> Result<Named, RpcError> {
        let mut wanted = self.config.clone();
        if wanted.mirrors.remove(&params.name).is_none() {
            let known = self.config.mirrors.keys().cloned().collect();
            return Err(Refusal::NotThere { what: "mirror", name: params.name, known }.into());
        }
        self.apply(&wanted)?;
        Ok(params)
    }

    /// Brings the dataplane's mirrors to what is declared, after that or ports have changed.
    pub(crate) fn sync_mirrors(&mut self) {
        let mut to_ports = Vec::new();
        let mut to_files = Vec::new();
        for (name, mirror) in self.config.mirrors.clone() {
            let vlan = mirror.vlan.as_ref().and_then(|vlan| self.vlan_of_ports(&mirror.from, vlan).ok());
            let watch = self.watch_settings(&mirror.from, mirror.direction, vlan, mirror.filter.filter());
            match mirror.port() {
                Some(port) => {
                    let to = self.ports.get(port).map(|port| port.id);
                    to_ports.extend(to.map(|to| MirrorSettings { name: name.to_string(), watch, to }));
                }
                None => to_files.push((name, mirror, watch)),
            }
        }
        if let Err(error) = self.dataplane.set_mirrors(to_ports) {
            error!("mirrors: {error}");
        }
        let is_wanted = |name: &Name, running: &mut FileMirror| {
            let same = |(other, config, watch): &(Name, MirrorConfig, weft_dataplane::WatchSettings)| {
                name == other && running.config == *config && running.ports == watch.ports && running.capture.is_ok()
            };
            to_files.iter().any(same)
        };
        self.file_mirrors.0.retain(is_wanted);
        for (name, config, watch) in to_files {
            let (Some(file), false) = (config.file(), self.file_mirrors.0.contains_key(&name)) else { continue };
            let ports = watch.ports.clone();
            let max_bytes = u64::from(config.max_size_mib.unwrap_or(MAX_SIZE_MIB).value()) << 20;
            let capture = self.capture_to_file((file, &name), (&config.from, watch), max_bytes);
            if let Err(error) = &capture {
                error!("mirror \"{name}\": {error}");
            }
            self.file_mirrors.0.insert(name, FileMirror { config, ports, capture });
        }
    }

    fn mirror_problem(&self, name: &Name) -> Option<String> {
        match &self.file_mirrors.0.get(name)?.capture {
            Ok(capture) => capture.ended().cloned(),
            Err(problem) => Some(problem.clone()),
        }
    }

    /// The mirrors that do nothing, and why.
    pub(crate) fn idle_mirrors(&self) -> impl Iterator<Item = String> {
        self.config.mirrors.keys().filter_map(|name| Some(format!("mirror \"{name}\": {}", self.mirror_problem(name)?)))
    }

    /// Puts into the log which mirrors have come and gone.
    pub(crate) fn log_mirrors(&self, before: &BTreeMap<Name, MirrorConfig>) {
        let now = &self.config.mirrors;
        for (name, _) in before.iter().filter(|(name, mirror)| now.get(*name) != Some(*mirror)) {
            let what = if now.contains_key(name) { "change" } else { "remove" };
            info!("done: {what} mirror \"{name}\"");
        }
        for (name, mirror) in now.iter().filter(|(name, _)| !before.contains_key(*name)) {
            info!("done: add mirror \"{name}\", to {}", mirror.to);
        }
    }

    fn mirror_line(&self, name: &Name, settings: MirrorConfig) -> MirrorLine {
        let problem = self.mirror_problem(name);
        let of_port = self.dataplane.mirror_status(name.as_str()).map(|status| (status.frames, status.lost));
        let of_file = || {
            let capture = self.file_mirrors.0.get(name)?.capture.as_ref().ok()?;
            let counters = capture.stopper.counters();
            Some((counters.iter().map(|of| of.picked - of.lost).sum(), counters.iter().map(|of| of.lost).sum()))
        };
        let (frames, lost) = of_port.or_else(of_file).unwrap_or_default();
        MirrorLine { name: name.clone(), settings, frames, lost, problem }
    }
}
