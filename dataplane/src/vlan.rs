//! VLANs in the path of a batch; [`weft_switch::vlan`] has the theory and the decisions.
//!
//! A network without VLANs comes here for nothing. On one that has them, a tag that names a frame's VLAN is taken off when the frame is admitted, which
//! moves no byte ([`Batch::admit`]), and put on when it is written to a receiver, with the other headers ([`crate::to_guest`]). In between the
//! frame looks as it would without VLANs.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_switch::vlan::{Admitted, PortRole, Release, Vlan, VlanId, VlanTables, Weights};
use weft_switch::{Fdb, NetworkId, PortId};

use crate::fabric::{Fabric, Network};
use crate::from_guest::Batch;
use crate::snapshot::PortLink;
use crate::to_guest::VlanTag;
use crate::vhost_port::FrameMask;

/// What was found out about a frame that was admitted to a VLAN: one word, since every frame gets one.
#[derive(Clone, Copy, Debug)]
#[repr(align(8))]
pub(crate) struct Stamp {
    pub(crate) vlan: Vlan,
    /// The tag with which it leaves, where it leaves with one.
    pub(crate) tag: VlanTag,
    hides_tag: bool,
}

impl Stamp {
    /// Stands where nobody looks.
    pub(crate) const NONE: Self = Self::of(Vlan::customer(VlanId::DEFAULT));

    /// True if the same is to be said of two frames, but for their priority.
    #[inline(always)]
    pub(crate) fn is_like(self, other: Self) -> bool {
        (self.vlan, self.hides_tag) == (other.vlan, other.hides_tag)
    }

    /// Of a frame that came without a tag.
    pub(crate) const fn of(vlan: Vlan) -> Self {
        let admitted = Admitted::untagged(vlan);
        Self { vlan, tag: admitted.tag().bytes(), hides_tag: false }
    }
}

impl From<Admitted> for Stamp {
    #[inline(always)]
    fn from(admitted: Admitted) -> Self {
        Self { vlan: admitted.vlan, tag: admitted.tag().bytes(), hides_tag: admitted.hides_tag }
    }
}

/// The VLANs of a network, as workers see them.
#[derive(Clone, Debug)]
pub(crate) struct VlanLink {
    pub(crate) tables: Arc<VlanTables>,
    /// What a port without a role is.
    role: PortRole,
    /// The ports that can receive: those of one VLAN, and those of several.
    at_home: BTreeMap<Vlan, Vec<PortId>>,
    trunks: Vec<(PortId, Arc<PortRole>)>,
}

impl VlanLink {
    /// Without members.
    pub(crate) fn new(tables: &Arc<VlanTables>) -> Self {
        let role = PortRole::Access(tables.default_vlan().id());
        Self { tables: Arc::clone(tables), role, at_home: BTreeMap::new(), trunks: Vec::new() }
    }

    /// Takes in a port that can receive.
    pub(crate) fn add_member(&mut self, port: &PortLink) {
        match (&port.role, self.role(port).untagged()) {
            (Some(role), _) if matches!(**role, PortRole::Trunk(_)) => self.trunks.push((port.id, Arc::clone(role))),
            (_, Some(vlan)) => self.at_home.entry(vlan).or_default().push(port.id),
            (_, None) => {}
        }
    }

    #[inline(always)]
    pub(crate) fn role<'a>(&'a self, port: &'a PortLink) -> &'a PortRole {
        port.role.as_deref().unwrap_or(&self.role)
    }

    /// The forwarding database of a VLAN.
    #[inline(always)]
    pub(crate) fn fdb(&self, vlan: Vlan) -> Option<&Arc<Fdb>> {
        self.tables.fdb(vlan)
    }

    /// The members of a VLAN that can receive.
    pub(crate) fn members(&self, vlan: Vlan) -> impl Iterator<Item = PortId> {
        let at_home = self.at_home.get(&vlan).map_or(&[][..], Vec::as_slice);
        let trunks = self.trunks.iter().filter(move |(_, role)| role.membership(vlan).is_some());
        at_home.iter().copied().chain(trunks.map(|(port, _)| *port))
    }

    /// The tag with which frames of the gateway leave by a port, or that they leave without one; nothing if the port is no member of the default VLAN.
    pub(crate) fn tag_of_gateway(&self, port: &PortLink) -> Option<Option<VlanTag>> {
        let default = self.tables.default_vlan();
        self.role(port).membership(default).map(|release| match release {
            Release::Untagged => None,
            Release::Tagged => Some(Stamp::of(default).tag),
        })
    }

    /// Which frames leave by a port, and which of them with a tag. The others are counted as dropped there.
    #[inline(always)]
    pub(crate) fn release(&self, port: &PortLink, batch: &Batch, mut frames: FrameMask) -> (FrameMask, FrameMask) {
        let role = self.role(port);
        let (mut released, mut tagged) = (0, 0);
        while frames != 0 {
            let at = frames.trailing_zeros();
            let alike = if batch.is_uniform() { frames } else { 1 << at };
            frames &= !alike;
            let Stamp { vlan, hides_tag, .. } = batch.stamp(at as usize);
            match role.release(vlan, hides_tag) {
                Ok(Release::Untagged) => released |= alike,
                Ok(Release::Tagged) => (released, tagged) = (released | alike, tagged | alike),
                Err(reason) => port.counters.drop_frames(reason, alike.count_ones().into()),
            }
        }
        (released, tagged)
    }
}

impl Network {
    /// Divides the network, or puts it together again, after ports, their roles or the settings have changed. `roles` are those of all its ports.
    fn divide(&mut self, roles: &[Option<Arc<PortRole>>]) {
        let before = self.vlans.as_ref().map(|tables| tables.default_vlan());
        if roles.iter().any(Option::is_some) {
            let default = PortRole::Access(self.default_vlan);
            let weights = Weights::of(self.default_vlan, roles.iter().map(|role| role.as_deref().unwrap_or(&default)));
            let tables =
                VlanTables::new(self.settings, self.default_vlan, (&weights, &self.stations), self.vlans.as_deref(), &self.fdb);
            if let Some(fdb) = tables.fdb(tables.default_vlan()) {
                self.fdb = Arc::clone(fdb);
            }
            self.vlans = Some(Arc::new(tables));
        } else {
            self.fdb = self.fdb.with_settings(self.settings);
            self.vlans = None;
        }
        if let Some(gateway) = &self.gateway {
            self.fdb.reserve(gateway.screen.mac, PortId::GATEWAY);
            let moved_from = before.filter(|before| self.vlans.as_ref().is_some_and(|tables| tables.default_vlan() != *before));
            if let Some(fdb) = moved_from.and_then(|vlan| self.vlans.as_ref()?.fdb(vlan)) {
                fdb.release(gateway.screen.mac);
            }
        }
        self.fix_stations();
    }
}

impl Fabric {
    /// As [`Network::divide`]; the caller publishes.
    pub(crate) fn divide(&mut self, id: NetworkId) {
        let of_network = self.links.iter().flatten().filter(|link| link.network == id);
        let roles: Vec<_> = of_network.map(|link| link.role.clone()).collect();
        if let Some(network) = self.networks.get_mut(id.index()).and_then(Option::as_mut) {
            network.divide(&roles);
        }
    }
}
