//! What networks with a gateway offer their guests, driven by the owner's loop: DHCP and DNS.
//!
//! The servers themselves are state machines of `weft_switch`; here they get messages from the gateways, time, random bits, sockets and
//! a disk. Nothing in here waits: leases are written by a thread of their own (`lease_store`), and upstream sockets (`upstreams`) don't block.
//!
//! Order of events: `Services::serve` after every turn of the loop, `Services::handle` for events of ours, `Services::tick` when the time that
//! `Services::due` named has come.

mod dhcp;
mod dns;
mod dns_tcp;
mod host_resolver;
mod lease_store;
mod upstreams;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mio::event::Event;
use mio::{Registry, Token, Waker};
use tracing::debug;
use weft_dataplane::{Dataplane, ServiceMessage};
use weft_switch::dhcp::{DhcpServer, LeaseBook};
use weft_switch::dns::{DnsForwarder, LocalNames};
use weft_switch::{HostName, NetworkId, PortId, Subnet};

use self::dhcp::DhcpService;
pub(crate) use self::dhcp::wall_clock;
use self::dns::{DnsService, World};
use self::host_resolver::HostResolver;
pub(crate) use self::lease_store::LEASES_FILE;
pub use self::lease_store::LeaseStoreError;
use self::lease_store::{LeaseStore, ServerId};
use self::upstreams::UpstreamSockets;
use crate::gateway_plan::GatewayPlan;
use crate::values::Name;

/// The host's resolver configuration (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The services of all networks.
#[derive(Debug)]
pub struct Services {
    networks: BTreeMap<NetworkId, NetworkServices>,
    state_dir: PathBuf,
    /// Opened for the first DHCP server.
    leases: Option<LeaseStore>,
    sockets: UpstreamSockets,
    resolver: HostResolver,
    waker: Arc<Waker>,
    servers: u64,
}

/// The services of one network.
#[derive(Debug)]
struct NetworkServices {
    dhcp: Option<DhcpService>,
    dns: Option<DnsService>,
}

/// What `Services::install` needs and may not be had.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// The leases that a new DHCP server begins with.
    book: Option<LeaseBook>,
}

impl Services {
    /// Tokens from here on, below those of the dataplane, belong to the services.
    pub const FIRST_TOKEN: usize = 1 << 24;
    const WRITTEN: Token = Token(Self::FIRST_TOKEN);

    /// No services yet. What they keep is below `state_dir`.
    ///
    /// # Errors
    /// When the operating system gives no descriptor.
    pub fn new(registry: &Registry, state_dir: &Path) -> io::Result<Self> {
        Ok(Self {
            networks: BTreeMap::new(),
            state_dir: state_dir.to_owned(),
            leases: None,
            sockets: UpstreamSockets::new(registry.try_clone()?, Self::FIRST_TOKEN + 1),
            resolver: HostResolver::new(Path::new(RESOLV_CONF)),
            waker: Arc::new(Waker::new(registry, Self::WRITTEN)?),
            servers: 0,
        })
    }

    /// True if an event with this token is for the services.
    #[must_use]
    pub fn owns(token: Token) -> bool {
        (Self::FIRST_TOKEN..Dataplane::FIRST_TOKEN).contains(&token.0)
    }

    /// Does what can fail of [`Self::install`]; `id` is the network's, if it is there already.
    pub(crate) fn prepare(
        &mut self,
        id: Option<NetworkId>,
        name: &Name,
        plan: Option<&GatewayPlan>,
    ) -> Result<Prepared, LeaseStoreError> {
        let has_server = id.and_then(|id| self.networks.get(&id)).is_some_and(|network| network.dhcp.is_some());
        if has_server || plan.is_none_or(|plan| plan.dhcp.is_none()) {
            return Ok(Prepared::default());
        }
        Ok(Prepared { book: Some(self.open_store()?.book(name)?) })
    }

    fn open_store(&mut self) -> Result<&LeaseStore, LeaseStoreError> {
        match &mut self.leases {
            Some(leases) => Ok(leases),
            none => Ok(none.insert(LeaseStore::open(&self.state_dir, Arc::clone(&self.waker))?)),
        }
    }

    /// The subnet that was chosen for a network of this name.
    pub(crate) fn remembered_subnet(&mut self, name: &Name) -> Result<Option<Subnet>, LeaseStoreError> {
        self.open_store()?.subnet(name)
    }

    /// Remembers the subnet that was chosen for a network, where its leases are kept.
    pub(crate) fn remember_subnet(&mut self, name: &Name, subnet: Subnet) {
        if let Some(leases) = &self.leases {
            leases.remember(name, subnet);
        }
    }

    /// Brings a network's services to what the plan says. Its gateway is there already.
    pub(crate) fn install(
        &mut self,
        dataplane: &mut Dataplane,
        id: NetworkId,
        name: &Name,
        plan: Option<&GatewayPlan>,
        prepared: Prepared,
        ports: &[(PortId, Name)],
    ) {
        let old = self.networks.remove(&id);
        let (old_dhcp, old_dns) = old.map_or((None, None), |network| (network.dhcp, network.dns));
        let dhcp = plan.and_then(|plan| plan.dhcp.clone()).and_then(|settings| {
            let leases = self.leases.as_ref()?;
            let mut service = match old_dhcp {
                Some(mut service) => {
                    service.reconfigure(settings, dataplane, leases);
                    service
                }
                None => {
                    self.servers += 1;
                    DhcpService::new(ServerId(self.servers), id, name, settings, &prepared.book.unwrap_or_default(), dataplane)?
                }
            };
            ports.iter().for_each(|(port, name)| service.attach(*port, name, dataplane, leases));
            Some(service)
        });
        let dns = plan.and_then(|plan| plan.dns.clone()).map(|plan| match old_dns {
            Some(mut service) => {
                service.reconfigure(plan);
                service
            }
            None => DnsService::new(id, plan),
        });
        if dns.is_none() {
            self.sockets.forget(id);
        }
        if plan.is_some() {
            self.networks.insert(id, NetworkServices { dhcp, dns });
        }
    }

    /// A network is gone.
    pub(crate) fn remove(&mut self, id: NetworkId) {
        self.networks.remove(&id);
        self.sockets.forget(id);
    }

    /// What was kept for a network of this name is of no use any more.
    pub(crate) fn forget(&mut self, name: &Name) {
        if let Some(leases) = &self.leases {
            leases.forget(name);
        }
    }

    /// A port is there.
    pub(crate) fn attach(&mut self, dataplane: &mut Dataplane, id: NetworkId, port: PortId, name: &Name) {
        let dhcp = self.networks.get_mut(&id).and_then(|network| network.dhcp.as_mut());
        if let (Some(dhcp), Some(leases)) = (dhcp, &self.leases) {
            dhcp.attach(port, name, dataplane, leases);
        }
    }

    /// A port is about to go.
    pub(crate) fn detach(&mut self, id: NetworkId, port: PortId) {
        let Some(network) = self.networks.get_mut(&id) else { return };
        if let Some(dhcp) = &mut network.dhcp {
            dhcp.server.detach(port);
        }
        if let Some(dns) = &mut network.dns {
            dns.forget_port(port, &mut self.sockets);
        }
    }

    /// The DHCP server of a network.
    pub(crate) fn dhcp(&self, id: NetworkId) -> Option<&DhcpServer> {
        Some(&self.networks.get(&id)?.dhcp.as_ref()?.server)
    }

    /// The address that a guest of a network has, as its DHCP server knows it by name.
    pub(crate) fn address_of(&self, id: NetworkId, name: &HostName) -> Option<Ipv4Addr> {
        self.dhcp(id)?.address_of(name)
    }

    /// The DNS forwarder of a network, and the servers that it asks.
    pub(crate) fn dns(&mut self, id: NetworkId) -> Option<(&DnsForwarder, Vec<SocketAddr>)> {
        let service = self.networks.get(&id)?.dns.as_ref()?;
        Some((&service.forwarder, service.upstreams(&mut self.resolver)))
    }

    /// Ends the lease of an address.
    pub(crate) fn end_lease(&mut self, dataplane: &mut Dataplane, id: NetworkId, address: Ipv4Addr) {
        let dhcp = self.networks.get_mut(&id).and_then(|network| network.dhcp.as_mut());
        if let (Some(dhcp), Some(leases)) = (dhcp, &self.leases) {
            dhcp.end_lease(address, dataplane, leases);
        }
    }

    /// Deals with what has come from guests.
    pub(crate) fn serve(&mut self, dataplane: &mut Dataplane) {
        for (id, message) in dataplane.take_messages() {
            self.take(dataplane, id, message);
        }
    }

    fn take(&mut self, dataplane: &mut Dataplane, id: NetworkId, message: ServiceMessage) {
        let Some(network) = self.networks.get_mut(&id) else { return };
        let port = message.port();
        let NetworkServices { dhcp, dns } = network;
        let taken = match (message, dhcp, dns, &self.leases) {
            (ServiceMessage::Dhcp(datagram), Some(dhcp), _, Some(leases)) => dhcp.take(&datagram, dataplane, leases),
            (ServiceMessage::Heard(heard), Some(dhcp), _, Some(leases)) => {
                dhcp.heard(heard, dataplane, leases);
                Ok(())
            }
            (ServiceMessage::Dns(datagram), dhcp, Some(dns), _) => {
                let (sockets, resolver) = (&mut self.sockets, &mut self.resolver);
                dns.take(&datagram, &mut World { names: names_of(dhcp.as_ref()), dataplane, sockets, resolver })
            }
            (ServiceMessage::DnsTcp { station, packet }, dhcp, Some(dns), _) => {
                let (sockets, resolver) = (&mut self.sockets, &mut self.resolver);
                dns.take_segment(station, packet, &mut World { names: names_of(dhcp.as_ref()), dataplane, sockets, resolver })
            }
            // The service was switched off since.
            _ => Ok(()),
        };
        if let Err(reason) = taken {
            debug!("a message from {port:?} is dropped: {}", reason.name());
            dataplane.count_drop(port, reason);
        }
    }

    /// Handles an event whose token [`Self::owns`] says is ours.
    pub(crate) fn handle(&mut self, dataplane: &mut Dataplane, event: &Event) {
        if event.token() != Self::WRITTEN {
            let Some((id, attempt, outcomes)) = self.sockets.handle(event) else { return };
            let Some(NetworkServices { dhcp, dns: Some(dns) }) = self.networks.get_mut(&id) else { return };
            let (names, sockets, resolver) = (names_of(dhcp.as_ref()), &mut self.sockets, &mut self.resolver);
            dns.take_outcomes(attempt, outcomes, &mut World { names, dataplane, sockets, resolver });
            return;
        }
        let Some(leases) = &self.leases else { return };
        for written in leases.written() {
            let mut services = self.networks.values_mut().filter_map(|network| network.dhcp.as_mut());
            if let Some(dhcp) = services.find(|dhcp| dhcp.id == written.server) {
                dhcp.confirm(written, dataplane, leases);
            }
        }
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, dataplane: &mut Dataplane) {
        let now = dataplane.now();
        for network in self.networks.values_mut() {
            if let (Some(dhcp), Some(leases)) = (&mut network.dhcp, &self.leases)
                && dhcp.server.next_tick().is_some_and(|due| due <= now)
            {
                dhcp.tick(dataplane, leases);
            }
            if let Some(dns) = &mut network.dns
                && dns.next_tick().is_some_and(|due| due <= now)
            {
                let (names, sockets, resolver) = (names_of(network.dhcp.as_ref()), &mut self.sockets, &mut self.resolver);
                dns.tick(&mut World { names, dataplane, sockets, resolver });
            }
        }
    }

    /// How long until [`Self::tick`] has something to do.
    pub(crate) fn due(&self, dataplane: &Dataplane) -> Duration {
        let now = dataplane.now();
        let of = |network: &NetworkServices| {
            let dhcp = network.dhcp.as_ref().and_then(|dhcp| dhcp.server.next_tick());
            let dns = network.dns.as_ref().and_then(DnsService::next_tick);
            dhcp.into_iter().chain(dns).min()
        };
        self.networks.values().filter_map(of).min().map_or(Duration::MAX, |due| due.since(now))
    }
}

/// Who knows the names of a network's hosts.
fn names_of(dhcp: Option<&DhcpService>) -> &dyn LocalNames {
    dhcp.map_or(&(), |dhcp| &dhcp.server)
}
