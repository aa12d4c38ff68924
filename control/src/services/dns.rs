//! A network's DNS forwarder with what it needs of the world: the gateway, guests' connections, sockets to upstreams, random bits.

use std::collections::VecDeque;
use std::net::SocketAddr;

use tracing::debug;
use weft_dataplane::Dataplane;
use weft_switch::dns::{Action, AttemptId, ClientTransport, DnsClient, DnsForwarder, LocalNames};
use weft_switch::{DropReason, NetworkId, PortId, Station, Timestamp, UdpDatagram};

use super::dns_tcp::{DnsTcp, Progress};
use super::host_resolver::HostResolver;
use super::upstreams::{Outcome, UpstreamSockets};
use crate::gateway_plan::DnsPlan;

const DNS_PORT: u16 = 53;

/// The DNS forwarder of one network.
#[derive(Debug)]
pub(super) struct DnsService {
    pub(super) forwarder: DnsForwarder,
    network: NetworkId,
    plan: DnsPlan,
    /// Made for the first segment that comes.
    tcp: Option<DnsTcp>,
    /// What is to be done. None of both between calls.
    actions: VecDeque<Action>,
    queries: VecDeque<(DnsClient, Vec<u8>)>,
}

/// What is around the forwarder.
pub(super) struct World<'a> {
    pub(super) names: &'a dyn LocalNames,
    pub(super) dataplane: &'a mut Dataplane,
    pub(super) sockets: &'a mut UpstreamSockets,
    pub(super) resolver: &'a mut HostResolver,
}

impl DnsService {
    pub(super) fn new(network: NetworkId, plan: DnsPlan) -> Self {
        let forwarder = DnsForwarder::new(plan.settings.clone());
        Self { forwarder, network, plan, tcp: None, actions: VecDeque::new(), queries: VecDeque::new() }
    }

    pub(super) fn reconfigure(&mut self, plan: DnsPlan) {
        if self.plan.settings != plan.settings {
            self.forwarder.reconfigure(plan.settings.clone());
        }
        self.plan = plan;
    }

    /// The servers that are asked.
    pub(super) fn upstreams(&self, resolver: &mut HostResolver) -> Vec<SocketAddr> {
        self.plan.upstreams.clone().unwrap_or_else(|| resolver.servers().to_vec())
    }

    /// Takes a query from a guest.
    pub(super) fn take(&mut self, datagram: &UdpDatagram<'_>, world: &mut World<'_>) -> Result<(), DropReason> {
        let UdpDatagram { station, source, payload, .. } = datagram;
        let client = DnsClient { station: *station, address: *source, transport: ClientTransport::Udp };
        let taken = self.query(client, payload, world);
        self.settle(world);
        taken
    }

    /// Takes a TCP segment from a guest.
    pub(super) fn take_segment(&mut self, station: Station, packet: Vec<u8>, world: &mut World<'_>) -> Result<(), DropReason> {
        let now = world.dataplane.now();
        let gateway = world.dataplane.with_gateway(self.network, |_, gateway, _| *gateway.settings());
        let Some(gateway) = gateway else { return Ok(()) };
        // Connections to an address that the gateway no longer has are over.
        let tcp = self.tcp.take().filter(|tcp| *tcp.gateway() == gateway);
        self.tcp = Some(tcp.unwrap_or_else(|| DnsTcp::new(gateway, now, random())));
        let mut received = Ok(());
        self.with_tcp(world, |tcp, progress| received = tcp.receive(now, station, packet, progress));
        self.settle(world);
        received
    }

    /// Something happened on the socket of an attempt.
    pub(super) fn take_outcomes(&mut self, attempt: AttemptId, outcomes: Vec<Outcome>, world: &mut World<'_>) {
        let now = world.dataplane.now();
        let mut actions = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Message(message) => {
                    self.forwarder.upstream_answer(now, attempt, &message, &mut random, &mut actions);
                }
                Outcome::Failed(error) => {
                    debug!("an upstream DNS server can't be asked: {error}");
                    self.forwarder.upstream_failed(now, attempt, &mut random, &mut actions);
                }
            }
        }
        self.actions.extend(actions);
        self.settle(world);
    }

    /// A port is gone.
    pub(super) fn forget_port(&mut self, port: PortId, sockets: &mut UpstreamSockets) {
        let mut actions = Vec::new();
        self.forwarder.forget_port(port, &mut actions);
        for action in actions {
            if let Action::Close { attempt } = action {
                sockets.close(self.network, attempt);
            }
        }
        if let Some(tcp) = &mut self.tcp {
            tcp.forget_port(port);
        }
    }

    /// When [`Self::tick`] wants to be called, if anything is there to wait for.
    pub(super) fn next_tick(&self) -> Option<Timestamp> {
        let tcp = self.tcp.as_ref().and_then(DnsTcp::next_tick);
        self.forwarder.next_tick().into_iter().chain(tcp).min()
    }

    pub(super) fn tick(&mut self, world: &mut World<'_>) {
        let now = world.dataplane.now();
        let mut actions = Vec::new();
        self.forwarder.tick(now, &mut random, &mut actions);
        self.actions.extend(actions);
        self.with_tcp(world, |tcp, progress| tcp.tick(now, progress));
        self.settle(world);
    }

    /// Does what is to be done, and what follows from that. It ends, because nothing new comes from guests or upstreams meanwhile.
    fn settle(&mut self, world: &mut World<'_>) {
        loop {
            if let Some(action) = self.actions.pop_front() {
                self.act(action, world);
            } else if let Some((client, message)) = self.queries.pop_front() {
                if let Err(reason) = self.query(client, &message, world) {
                    world.dataplane.count_drop(client.station.port, reason);
                }
            } else {
                return;
            }
        }
    }

    fn query(&mut self, client: DnsClient, message: &[u8], world: &mut World<'_>) -> Result<(), DropReason> {
        match &self.plan.upstreams {
            Some(servers) => self.forwarder.set_upstreams(servers),
            None => self.forwarder.set_upstreams(world.resolver.servers()),
        }
        let (now, mut actions) = (world.dataplane.now(), Vec::new());
        let taken = self.forwarder.query(now, client, message, world.names, &mut random, &mut actions);
        // Who speaks something else, or for somebody else, gets no answer, and waits for none.
        if let (Err(_), true, ClientTransport::Tcp(connection)) = (taken, actions.is_empty(), client.transport) {
            self.with_tcp(world, |tcp, progress| tcp.abort(now, connection, progress));
        }
        self.actions.extend(actions);
        taken
    }

    fn act(&mut self, action: Action, world: &mut World<'_>) {
        match action {
            Action::Answer { to, message } => self.answer(to, &message, world),
            Action::Ask { attempt, server, transport, message } => {
                if let Err(error) = world.sockets.ask(self.network, attempt, server, transport, &message) {
                    debug!("the DNS server {server} can't be asked: {error}");
                    let mut actions = Vec::new();
                    self.forwarder.upstream_failed(world.dataplane.now(), attempt, &mut random, &mut actions);
                    self.actions.extend(actions);
                }
            }
            Action::Close { attempt } => world.sockets.close(self.network, attempt),
        }
    }

    fn answer(&mut self, to: DnsClient, message: &[u8], world: &mut World<'_>) {
        let now = world.dataplane.now();
        match to.transport {
            ClientTransport::Udp => {
                world.dataplane.with_gateway(self.network, |_, gateway, frames| {
                    gateway.send_udp(to.station, DNS_PORT, to.address, message, frames);
                });
            }
            ClientTransport::Tcp(connection) => {
                self.with_tcp(world, |tcp, progress| tcp.answer(now, connection, message, progress));
            }
        }
    }

    /// Lets TCP do something, and takes what comes of it.
    fn with_tcp(&mut self, world: &mut World<'_>, work: impl FnOnce(&mut DnsTcp, &mut Progress)) {
        let Some(tcp) = &mut self.tcp else { return };
        let mut progress = Progress::default();
        work(tcp, &mut progress);
        world.dataplane.send_from_gateway(self.network, progress.frames);
        let mut actions = Vec::new();
        progress.closed.into_iter().for_each(|connection| self.forwarder.disconnect(connection, &mut actions));
        self.actions.extend(actions);
        self.queries.extend(progress.queries);
    }
}

/// Bits that can't be foretold.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    // getrandom(2): so few bytes are given whole, and without an error once the system has started.
    assert_eq!(filled, Ok(bytes.len()), "the kernel gives random bytes");
    u64::from_ne_bytes(bytes)
}
