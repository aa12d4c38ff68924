//! A network's DHCP server with what it needs of the world: the gateway, the disk, the clock, the log.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{debug, error, info, warn};
use weft_dataplane::Dataplane;
use weft_switch::dhcp::{Action, DhcpEvent, DhcpServer, DhcpSettings, LeaseBook, UnixSeconds};
use weft_switch::gateway::Heard;
use weft_switch::{DropReason, LogLimit, NetworkId, PortId, Timestamp, UdpDatagram};

use super::lease_store::{LeaseStore, ServerId, Written};
use crate::values::Name;

/// The DHCP server of one network.
#[derive(Debug)]
pub(super) struct DhcpService {
    pub(super) id: ServerId,
    pub(super) server: DhcpServer,
    network: NetworkId,
    name: Name,
    log: LogLimit,
}

impl DhcpService {
    /// A server that knows the leases in `book`. The settings were checked before; if they contradict each other all the same, there is
    /// none.
    pub(super) fn new(
        id: ServerId,
        network: NetworkId,
        name: &Name,
        settings: DhcpSettings,
        book: &LeaseBook,
        dataplane: &Dataplane,
    ) -> Option<Self> {
        match DhcpServer::new(settings, dataplane.now(), wall_clock(), book) {
            Ok(server) => Some(Self { id, server, network, name: name.clone(), log: LogLimit::default() }),
            Err(contradiction) => {
                error!("network {name} has no DHCP: {contradiction}");
                None
            }
        }
    }

    pub(super) fn reconfigure(&mut self, settings: DhcpSettings, dataplane: &mut Dataplane, leases: &LeaseStore) {
        if *self.server.settings() == settings {
            return;
        }
        let mut actions = Vec::new();
        let changed = self.server.reconfigure(dataplane.now(), settings, &mut actions);
        if let Err(contradiction) = changed {
            error!("DHCP of network {} stays as it is: {contradiction}", self.name);
        }
        self.act(actions, dataplane, leases);
    }

    pub(super) fn attach(&mut self, port: PortId, name: &Name, dataplane: &mut Dataplane, leases: &LeaseStore) {
        self.step(dataplane, leases, |server, _, actions| server.attach(port, name.as_str(), actions));
    }

    /// Takes a message from a client.
    pub(super) fn take(
        &mut self,
        datagram: &UdpDatagram<'_>,
        dataplane: &mut Dataplane,
        leases: &LeaseStore,
    ) -> Result<(), DropReason> {
        self.step(dataplane, leases, |server, now, actions| server.handle(now, datagram, actions))
    }

    pub(super) fn heard(&mut self, heard: Heard, dataplane: &mut Dataplane, leases: &LeaseStore) {
        self.step(dataplane, leases, |server, now, actions| server.heard(now, heard, actions));
    }

    /// Changes are on disk, or will never be.
    pub(super) fn confirm(&mut self, written: Written, dataplane: &mut Dataplane, leases: &LeaseStore) {
        if written.done {
            self.step(dataplane, leases, |server, now, actions| server.confirm(now, written.ticket, actions));
        } else {
            self.server.fail(written.ticket);
        }
    }

    pub(super) fn end_lease(&mut self, address: Ipv4Addr, dataplane: &mut Dataplane, leases: &LeaseStore) {
        self.step(dataplane, leases, |server, now, actions| server.end_lease(now, address, actions));
    }

    pub(super) fn tick(&mut self, dataplane: &mut Dataplane, leases: &LeaseStore) {
        self.step(dataplane, leases, DhcpServer::tick);
    }

    fn step<T>(
        &mut self,
        dataplane: &mut Dataplane,
        leases: &LeaseStore,
        work: impl FnOnce(&mut DhcpServer, Timestamp, &mut Vec<Action>) -> T,
    ) -> T {
        let mut actions = Vec::new();
        let done = work(&mut self.server, dataplane.now(), &mut actions);
        self.act(actions, dataplane, leases);
        done
    }

    fn act(&mut self, actions: Vec<Action>, dataplane: &mut Dataplane, leases: &LeaseStore) {
        let mut frames = Vec::new();
        for action in actions {
            match action {
                Action::Send(frame) => frames.push(frame),
                Action::Probe(address) => dataplane.probe(self.network, address),
                Action::Persist { ticket, change } => {
                    if !leases.write(self.id, &self.name, ticket, change) {
                        if self.may_log(dataplane.now()) {
                            warn!("network {}: the disk does not keep up with DHCP; clients will ask again", self.name);
                        }
                        self.server.fail(ticket);
                    }
                }
                Action::Leased { address, station } => {
                    debug!("network {}: {address} belongs to {} behind {:?}", self.name, station.mac, station.port);
                    dataplane.lease(self.network, address, station);
                }
                Action::Ended { address } => {
                    debug!("network {}: the lease of {address} has ended", self.name);
                    dataplane.end_lease(self.network, address);
                }
                Action::Log(event) if self.may_log(dataplane.now()) => self.log_event(&event),
                Action::Log(_) => {}
            }
        }
        dataplane.send_from_gateway(self.network, frames);
    }

    /// Guests that decline addresses in a loop don't fill the log.
    fn may_log(&mut self, now: Timestamp) -> bool {
        let name = &self.name;
        self.log.allows(now, |lines| warn!("{lines} lines about DHCP of network {name} were not logged"))
    }

    fn log_event(&self, event: &DhcpEvent) {
        let name = &self.name;
        match event {
            DhcpEvent::PoolFull => warn!("network {name}: no address is free; make its dhcp range larger, or lease_seconds less"),
            DhcpEvent::Declined { address, station } => {
                info!("network {name}: {} found {address} in use by somebody else; nobody gets it for a while", station.mac);
            }
            DhcpEvent::InUse { address, station } => {
                info!("network {name}: {} uses {address} without a lease; nobody gets it for a while", station.mac);
            }
        }
    }
}

/// The time of day, which is what the disk knows.
pub(crate) fn wall_clock() -> UnixSeconds {
    UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
