//! Who watches what, as the owner knows it.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_switch::filter::Filter;
use weft_switch::vlan::VlanId;
use weft_switch::{DropReason, NetworkId, PortId};

use super::{Capture, CaptureQueue, MirrorCounters, PortTaps, Sink, Tap, VlanPick, Wants};
use crate::dataplane::{Dataplane, DataplaneError};

/// The most captures at a time.
const MAX_CAPTURES: usize = 16;
/// The most mirrors.
pub const MAX_MIRRORS: usize = 16;

/// Which frames somebody wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchSettings {
    /// On these ports.
    pub ports: Vec<PortId>,
    /// Those that their guests send.
    pub inward: bool,
    /// Those for their guests.
    pub outward: bool,
    /// Only those in this VLAN, whether or not they have a tag that says so.
    pub vlan: Option<VlanId>,
    /// Only those that it is about, as they are on the wire.
    pub filter: Filter,
}

/// Copies of frames for a monitor port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorSettings {
    /// By which its counters are kept from one call to the next.
    pub name: String,
    /// What is copied.
    pub watch: WatchSettings,
    /// Where it goes.
    pub to: PortId,
}

/// What a mirror has done since it was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorStatus {
    /// Copies that were handed to the monitor port's ring. Those that it had no room for are among its drops.
    pub frames: u64,
    /// Copies that were not even made: too many were waiting.
    pub lost: u64,
}

/// Who watches.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    captures: Vec<Watcher<Arc<CaptureQueue>>>,
    mirrors: Vec<(MirrorSettings, Watcher<Arc<MirrorCounters>>)>,
}

#[derive(Debug)]
struct Watcher<T> {
    settings: WatchSettings,
    wants: Arc<Wants>,
    sink: T,
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.captures.iter().for_each(|capture| capture.sink.end());
    }
}

impl Watches {
    pub(crate) fn is_empty(&self) -> bool {
        self.captures.is_empty() && self.mirrors.is_empty()
    }

    fn is_monitor(&self, port: PortId) -> bool {
        self.mirrors.iter().any(|(settings, _)| settings.to == port)
    }

    /// What watches a port; `vlan` says how one of its network's VLANs shows on its wire.
    fn taps(&self, port: PortId, vlan: impl Fn(VlanId) -> VlanPick) -> PortTaps {
        let shut = self.is_monitor(port).then_some(DropReason::MonitorPort);
        let mut taps = PortTaps { shut, ..PortTaps::default() };
        let mut add = |settings: &WatchSettings, wants: &Arc<Wants>, sink: &dyn Fn() -> Sink| {
            for (is_wanted, is_inward) in [(settings.inward, true), (settings.outward, false)] {
                let list = if is_inward { &mut taps.inward } else { &mut taps.outward };
                if is_wanted {
                    list.push(Tap { wants: Arc::clone(wants), vlan: settings.vlan.map(&vlan), is_inward, sink: sink() });
                }
            }
        };
        for Watcher { settings, wants, sink: queue } in &self.captures {
            if let Some(interface) = settings.ports.iter().position(|watched| *watched == port) {
                add(settings, wants, &|| Sink::Capture(Arc::clone(queue), interface));
            }
        }
        for (mirror, Watcher { settings, wants, sink: counters }) in &self.mirrors {
            // Copies of copies would have no end.
            if settings.ports.contains(&port) && !self.is_monitor(port) {
                add(settings, wants, &|| Sink::Port(mirror.to, Arc::clone(counters)));
            }
        }
        taps
    }
}

impl Dataplane {
    /// Captures frames. The capture ends when what it returns is dropped or stopped, when the last of its ports is removed, or with the switch.
    ///
    /// # Errors
    /// When there are too many already. When a worker is stuck; there is no capture then.
    pub fn capture(&mut self, settings: WatchSettings, snap_len: usize) -> Result<Capture, DataplaneError> {
        self.sweep_captures();
        if self.watches.captures.len() >= MAX_CAPTURES {
            return Err(DataplaneError::TooMany { what: "captures", limit: MAX_CAPTURES });
        }
        let capture = Capture::new(settings.ports.len(), snap_len, Arc::clone(&self.event));
        let wants = Wants::new(settings.filter.clone());
        self.watches.captures.push(Watcher { settings, wants, sink: Arc::clone(capture.queue()) });
        self.connect_watches()?;
        Ok(capture)
    }

    /// Replaces all mirrors. The ports that copies go to are monitor ports from then on, and members of their networks no longer.
    ///
    /// # Errors
    /// When there are too many, and nothing has changed. When a worker is stuck; the change is made all the same.
    pub fn set_mirrors(&mut self, mirrors: Vec<MirrorSettings>) -> Result<(), DataplaneError> {
        if mirrors.len() > MAX_MIRRORS {
            return Err(DataplaneError::TooMany { what: "mirrors", limit: MAX_MIRRORS });
        }
        if mirrors.is_empty() && self.watches.mirrors.is_empty() && self.watches.captures.is_empty() {
            return Ok(());
        }
        let mut before = std::mem::take(&mut self.watches.mirrors);
        for settings in mirrors {
            let kept = before.iter().position(|(other, _)| other.name == settings.name).map(|at| before.swap_remove(at).1.sink);
            let wants = Wants::new(settings.watch.filter.clone());
            let watcher = Watcher { settings: settings.watch.clone(), wants, sink: kept.unwrap_or_default() };
            self.watches.mirrors.push((settings, watcher));
        }
        self.connect_watches()
    }

    /// What a mirror has done, if it is there.
    #[must_use]
    pub fn mirror_status(&self, name: &str) -> Option<MirrorStatus> {
        let (_, Watcher { sink, .. }) = self.watches.mirrors.iter().find(|(settings, _)| settings.name == name)?;
        Some(MirrorStatus { frames: sink.frames.value(), lost: sink.lost.value() })
    }

    /// Whether a port gets copies only, and what its guest sends goes nowhere.
    #[must_use]
    pub fn is_monitor(&self, port: PortId) -> bool {
        self.watches.is_monitor(port)
    }

    /// Takes captures away that nobody reads any more.
    pub(crate) fn sweep_captures(&mut self) {
        let count = self.watches.captures.len();
        self.watches.captures.retain(|capture| !capture.sink.is_closed());
        if self.watches.captures.len() < count
            && let Err(error) = self.connect_watches()
        {
            tracing::error!(%error, "while a capture ended");
        }
    }

    /// Nobody watches a port any more that is about to be removed, and no copies go there; the caller connects the rest.
    pub(crate) fn forget_watched(&mut self, port: PortId) {
        let place_of = |settings: &WatchSettings| settings.ports.iter().position(|watched| *watched == port);
        for Watcher { settings, sink, .. } in &mut self.watches.captures {
            if let Some(place) = place_of(settings) {
                // The others keep their places, and no port has this number.
                settings.ports[place] = PortId::GATEWAY;
            }
            if settings.ports.iter().all(|watched| *watched == PortId::GATEWAY) {
                sink.end();
            }
        }
        self.watches.mirrors.retain(|(settings, _)| settings.to != port);
        for (mirror, Watcher { settings, .. }) in &mut self.watches.mirrors {
            mirror.watch.ports.retain(|watched| *watched != port);
            settings.ports.retain(|watched| *watched != port);
        }
    }

    /// Connects everybody who watches with the ports as they are now.
    ///
    /// # Errors
    /// When a worker is stuck; the change is made all the same.
    pub(crate) fn connect_watches(&mut self) -> Result<(), DataplaneError> {
        let mut monitors: BTreeSet<(NetworkId, PortId)> = BTreeSet::new();
        for port in self.ports.iter_mut().flatten() {
            let network = self.fabric.network(port.settings.network);
            let default = network.filter(|network| network.vlans.is_some()).map(|network| network.default_vlan);
            let untagged = match (&port.settings.vlan, default) {
                (Some(role), _) => role.untagged().map(weft_switch::vlan::Vlan::id),
                (None, default) => default,
            };
            let pick = |vlan: VlanId| VlanPick { number: vlan.number(), untagged: untagged == Some(vlan) };
            let taps = self.watches.taps(port.id(), pick);
            if taps.is_monitor() {
                monitors.insert((port.settings.network, port.id()));
            }
            port.watch((!taps.is_empty()).then(|| Arc::new(taps)), &mut self.fabric);
        }
        let published = self.fabric.publish();
        // Stations that were behind it before are somewhere else, or nowhere.
        for (network, port) in monitors {
            if let Some(network) = self.fabric.network(network) {
                network.forget_port(port);
            }
        }
        Ok(published?)
    }
}
