//! A network's DNS forwarder with what it needs of the world: the gateway, sockets to upstreams, random bits.

use std::collections::VecDeque;
use std::net::SocketAddr;

use tracing::debug;
use weft_dataplane::Dataplane;
use weft_switch::dns::{Action, AttemptId, ClientTransport, DnsClient, DnsForwarder, LocalNames};
use weft_switch::{DropReason, NetworkId, UdpDatagram};

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
}

impl DnsService {
    pub(super) fn new(network: NetworkId, plan: DnsPlan) -> Self {
        Self { forwarder: DnsForwarder::new(plan.settings.clone()), network, plan }
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
    pub(super) fn take(
        &mut self,
        datagram: &UdpDatagram<'_>,
        names: &dyn LocalNames,
        dataplane: &mut Dataplane,
        sockets: &mut UpstreamSockets,
        resolver: &mut HostResolver,
    ) -> Result<(), DropReason> {
        let UdpDatagram { station, source, payload, .. } = datagram;
        let client = DnsClient { station: *station, address: *source, transport: ClientTransport::Udp };
        match &self.plan.upstreams {
            Some(servers) => self.forwarder.set_upstreams(servers),
            None => self.forwarder.set_upstreams(resolver.servers()),
        }
        let mut actions = Vec::new();
        let taken = self.forwarder.query(dataplane.now(), client, payload, names, &mut random, &mut actions);
        self.act(actions, dataplane, sockets);
        taken
    }

    /// Something happened on the socket of an attempt.
    pub(super) fn take_outcomes(
        &mut self,
        attempt: AttemptId,
        outcomes: Vec<Outcome>,
        dataplane: &mut Dataplane,
        sockets: &mut UpstreamSockets,
    ) {
        let now = dataplane.now();
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
        self.act(actions, dataplane, sockets);
    }

    pub(super) fn tick(&mut self, dataplane: &mut Dataplane, sockets: &mut UpstreamSockets) {
        let mut actions = Vec::new();
        self.forwarder.tick(dataplane.now(), &mut random, &mut actions);
        self.act(actions, dataplane, sockets);
    }

    /// An attempt that can't even begin may lead to the next one; there are few of them for each question.
    fn act(&mut self, actions: Vec<Action>, dataplane: &mut Dataplane, sockets: &mut UpstreamSockets) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Answer { to, message } => self.answer(to, &message, dataplane),
                Action::Ask { attempt, server, transport, message } => {
                    if let Err(error) = sockets.ask(self.network, attempt, server, transport, &message) {
                        debug!("the DNS server {server} can't be asked: {error}");
                        let mut more = Vec::new();
                        self.forwarder.upstream_failed(dataplane.now(), attempt, &mut random, &mut more);
                        actions.extend(more);
                    }
                }
                Action::Close { attempt } => sockets.close(self.network, attempt),
            }
        }
    }

    fn answer(&self, to: DnsClient, message: &[u8], dataplane: &mut Dataplane) {
        match to.transport {
            ClientTransport::Udp => {
                dataplane.with_gateway(self.network, |_, gateway, frames| {
                    gateway.send_udp(to.station, DNS_PORT, to.address, message, frames);
                });
            }
            // Guests' connections end in the gateway as long as nothing of it speaks TCP.
            ClientTransport::Tcp(connection) => debug!("connection {connection} is not there any more"),
        }
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
