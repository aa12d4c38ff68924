//! Networks and their gateways as the owner sees them: settings, messages for the services, frames from them.

use std::sync::Arc;

use weft_switch::gateway::{Gateway, GatewaySettings};
use weft_switch::multicast::SnoopingSettings;
use weft_switch::nat::Audit;
use weft_switch::vlan::VlanId;
use weft_switch::{DropReason, FdbSettings, NetworkId, Outgoing, PortId, Timestamp};

use crate::dataplane::{Dataplane, DataplaneError, free_place};
use crate::fabric::Network;
use crate::gateway::{Dispatch, GatewayLink, GatewayState, Receivers, ServiceMessage, SharedGateway};
use crate::line::LineMemory;
use crate::nat::{Engine, EngineSettings, Forward, ForwardError, MappingStatus, NatSettings};

/// What a network is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Its forwarding database.
    pub fdb: FdbSettings,
    /// The VLAN of ports without a role, and of the gateway, as soon as a port has a role.
    pub default_vlan: VlanId,
    /// Its gateway, if it has one.
    pub gateway: Option<GatewaySettings>,
    /// The gateway's way outside, if it has one: through the host's own sockets.
    pub nat: Option<NatSettings>,
    /// How its multicast is treated; it goes to everybody if nothing is said.
    pub multicast: Option<SnoopingSettings>,
}

impl From<FdbSettings> for NetworkSettings {
    /// A network without a gateway.
    fn from(fdb: FdbSettings) -> Self {
        Self { fdb, default_vlan: VlanId::DEFAULT, gateway: None, nat: None, multicast: None }
    }
}

impl Dataplane {
    /// Adds a network.
    ///
    /// # Errors
    /// When there are too many, the gateway's settings contradict each other, or a worker is stuck. Nothing is left behind then.
    pub fn add_network(&mut self, settings: impl Into<NetworkSettings>) -> Result<NetworkId, DataplaneError> {
        let NetworkSettings { fdb, default_vlan, gateway, nat, multicast } = settings.into();
        let gateway = gateway.map(|settings| self.new_gateway(settings, nat)).transpose()?;
        let limit = Self::MAX_NETWORKS;
        let place = free_place(&mut self.fabric.networks, limit).ok_or(DataplaneError::TooMany { what: "networks", limit })?;
        self.fabric.networks[place] =
            Some(Network::new(fdb, default_vlan, gateway, LineMemory::of_network(&self.fabric.line_memory)));
        self.set_snooping(NetworkId(place as u16), multicast);
        self.fabric.divide(NetworkId(place as u16));
        if let Err(stuck) = self.fabric.publish() {
            self.fabric.networks[place] = None;
            return Err(stuck.into());
        }
        Ok(NetworkId(place as u16))
    }

    /// Changes a network in place; its ports are not disturbed. What was learned stays, as far as it still has room. A gateway with other addresses announces itself.
    ///
    /// # Errors
    /// When the gateway's settings contradict each other, nothing is changed. When a worker is stuck, the change is made all the same.
    pub fn set_network(&mut self, id: NetworkId, settings: impl Into<NetworkSettings>) -> Result<(), DataplaneError> {
        let settings = settings.into();
        let multicast = settings.multicast;
        self.change_network(id, settings)?;
        self.apply_snooping(id, multicast)
    }

    fn change_network(&mut self, id: NetworkId, settings: NetworkSettings) -> Result<(), DataplaneError> {
        let NetworkSettings { fdb, default_vlan, gateway, nat, .. } = settings;
        let Some(old) = self.fabric.network(id).and_then(|network| network.gateway.clone()) else {
            let gateway = gateway.map(|settings| self.new_gateway(settings, nat)).transpose()?;
            return self.replace_network(id, fdb, default_vlan, gateway);
        };
        let Some(settings) = gateway else { return self.replace_network(id, fdb, default_vlan, None) };
        let (before, screen) = {
            let mut state = old.shared.lock();
            let before = *state.gateway.settings();
            state.gateway.reconfigure(settings)?;
            self.set_nat(&mut state, &old, nat)?;
            old.shared.note_nat(self.clock.now(), &state, false);
            (before, state.gateway.screen())
        };
        let gateway = GatewayLink { screen, ..old };
        self.replace_network(id, fdb, default_vlan, Some(gateway))?;
        if (before.address, before.mac) != (settings.address, settings.mac) {
            self.with_gateway(id, |_, gateway, frames| gateway.announce(frames));
        }
        Ok(())
    }

    /// Removes a network. Its ports must have been removed before.
    ///
    /// # Errors
    /// When a worker is stuck; the network is gone all the same.
    pub fn remove_network(&mut self, id: NetworkId) -> Result<(), DataplaneError> {
        if let Some(place) = self.fabric.networks.get_mut(id.index()) {
            *place = None;
        }
        Ok(self.fabric.publish()?)
    }

    /// The time by which the gateways go. It starts with the dataplane.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Does something with a network's gateway, and sends the frames that are added to the list. Workers wait meanwhile, so it has to be
    /// quick. `None` if there is no such network, or no gateway in it.
    pub fn with_gateway<T>(
        &mut self,
        id: NetworkId,
        work: impl FnOnce(Timestamp, &mut Gateway, &mut Vec<Outgoing>) -> T,
    ) -> Option<T> {
        let mut frames = Vec::new();
        let done = work(self.clock.now(), &mut self.fabric.gateway(id)?.shared.lock().gateway, &mut frames);
        self.send_from_gateway(id, frames);
        Some(done)
    }

    /// Sends frames as from a network's gateway. Those for which there is no room are counted on the ports that they were for.
    pub fn send_from_gateway(&mut self, id: NetworkId, frames: Vec<Outgoing>) {
        if frames.is_empty() {
            return;
        }
        for lost in self.fabric.send(id, frames.into_iter().map(Dispatch::from).collect()) {
            if let Receivers::One(port) = lost.to {
                self.count_drop(port, DropReason::ServicesBusy);
            }
        }
    }

    /// Sends an ARP probe for an address; whoever claims it within two seconds is reported as [`ServiceMessage::Heard`].
    pub fn probe(&mut self, id: NetworkId, address: std::net::Ipv4Addr) {
        let mut frames = Vec::new();
        let now = self.clock.now();
        if let Some(gateway) = self.fabric.gateway(id) {
            let mut state = gateway.shared.lock();
            state.expect_claims(now, address);
            state.gateway.probe(address, &mut frames);
        }
        self.send_from_gateway(id, frames);
    }

    /// Takes what has come for the services of all networks, in the order in which it came to each. There is something after an event.
    pub fn take_messages(&mut self) -> Vec<(NetworkId, ServiceMessage)> {
        if !self.mail.take() {
            return Vec::new();
        }
        let mut all = Vec::new();
        for (place, network) in self.fabric.networks.iter().enumerate() {
            let gateway = network.as_ref().and_then(|network| network.gateway.as_ref());
            let messages = gateway.map(|gateway| gateway.shared.take_mail()).unwrap_or_default();
            all.extend(messages.into_iter().map(|message| (NetworkId(place as u16), message)));
        }
        all
    }

    /// Counts a message that a service has dropped, on the port from which it came.
    pub fn count_drop(&self, port: PortId, reason: DropReason) {
        if let Some(link) = self.fabric.links.get(port.index()).and_then(Option::as_ref) {
            link.counters.drop_frames(reason, 1);
        }
    }

    /// Lets every gateway give up what has waited for too long.
    pub(crate) fn tick_gateways(&mut self, now: Timestamp) {
        for place in 0..self.fabric.networks.len() {
            let id = NetworkId(place as u16);
            let (mut frames, mut late) = (Vec::new(), Vec::new());
            if let Some(gateway) = self.fabric.gateway(id) {
                gateway.shared.lock().tick(now, &mut frames, &mut late);
            }
            self.send_from_gateway(id, frames);
            for drop in late {
                if let Some(link) = self.fabric.links.get(drop.port.index()).and_then(Option::as_ref) {
                    link.counters.drop_frames(drop.reason, drop.frames);
                }
            }
        }
    }

    fn new_gateway(&self, settings: GatewaySettings, nat: Option<NatSettings>) -> Result<GatewayLink, DataplaneError> {
        let gateway = Gateway::new(settings)?;
        let link = self.fabric.link_gateway(SharedGateway::new(gateway, Arc::clone(&self.mail)));
        self.set_nat(&mut link.shared.lock(), &link, nat)?;
        Ok(link)
    }

    /// Gives a gateway a way outside, changes it, or takes it away with all that goes through it.
    fn set_nat(&self, state: &mut GatewayState, link: &GatewayLink, nat: Option<NatSettings>) -> Result<(), DataplaneError> {
        let settings = nat.map(|nat| EngineSettings::new(state.gateway.settings(), &nat));
        match (settings, &mut state.nat) {
            (Some(settings), Some(engine)) => engine.reconfigure(settings),
            (Some(settings), none) => {
                let registry = self.fabric.registry(link.home).try_clone().map_err(DataplaneError::Nat)?;
                *none = Some(Box::new(Engine::new(settings, registry)));
            }
            (None, _) => state.nat = None,
        }
        Ok(())
    }

    /// Does something with the NAT of a network. `None` if there is none.
    fn with_nat<T>(&self, id: NetworkId, work: impl FnOnce(Timestamp, &mut Engine) -> T) -> Option<T> {
        let gateway = self.fabric.gateway(id)?;
        let now = self.clock.now();
        let mut state = gateway.shared.lock();
        let done = work(now, state.nat.as_mut()?);
        gateway.shared.note_nat(now, &state, false);
        Some(done)
    }

    /// Lets the outside reach a guest of a network; says under which address of the host.
    ///
    /// # Errors
    /// When that address can't be had, or the network has no NAT.
    pub fn add_forward(&mut self, id: NetworkId, forward: Forward) -> Result<std::net::SocketAddrV4, ForwardError> {
        self.with_nat(id, |now, nat| nat.add_forward(now, forward)).unwrap_or(Err(ForwardError::NoNat))
    }

    /// Takes that back; connections that were made stay. False if there was no such forward.
    pub fn remove_forward(&mut self, id: NetworkId, forward: &Forward) -> bool {
        self.with_nat(id, |now, nat| nat.remove_forward(now, forward)).unwrap_or(false)
    }

    /// All mappings of a network's NAT. Workers wait meanwhile.
    #[must_use]
    pub fn mappings(&self, id: NetworkId) -> Vec<MappingStatus> {
        self.with_nat(id, |_, nat| nat.mappings().collect()).unwrap_or_default()
    }

    /// Who opened and closed which mapping of a network since this was last asked, and how many such events were lost: at most 4,096
    /// wait.
    pub fn take_audit(&mut self, id: NetworkId) -> (Vec<Audit>, u64) {
        self.with_nat(id, |_, nat| nat.audit()).unwrap_or_default()
    }

    /// Puts another gateway in the place of the one that there is, and other forwarding databases if they are to have another size or default VLAN.
    fn replace_network(
        &mut self,
        id: NetworkId,
        fdb: FdbSettings,
        default_vlan: VlanId,
        gateway: Option<GatewayLink>,
    ) -> Result<(), DataplaneError> {
        let Some(network) = self.fabric.networks.get_mut(id.index()).and_then(Option::as_mut) else { return Ok(()) };
        let mac = |gateway: &Option<GatewayLink>| gateway.as_ref().map(|gateway| gateway.screen);
        let same = mac(&network.gateway) == mac(&gateway) && (network.settings, network.default_vlan) == (fdb, default_vlan);
        if let Some(old) = &network.gateway {
            network.fdb.release(old.screen.mac);
        }
        (network.settings, network.default_vlan, network.gateway) = (fdb, default_vlan, gateway);
        self.fabric.divide(id);
        self.refresh_all_leases(id);
        if same { Ok(()) } else { Ok(self.fabric.publish()?) }
    }
}
