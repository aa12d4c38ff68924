//! Loops of guests that connect two of their ports: probes, and the ports that are paused; [`weft_switch::loops`] has the theory.
//!
//! A worker that meets a probe notes it at the port by which it came ([`LoopSign`]) and sends it nowhere. The owner looks there while a port is suspected. A paused
//! port gets a [`PortGuard`] that lets nothing in, and is no member of its network any more.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use weft_switch::loops::{LoopRound, LoopWatch, probe};
use weft_switch::{Flap, PortId, Timestamp};

use crate::dataplane::Dataplane;
use crate::workers::Injection;

/// Where a worker leaves the token of a probe that came in by a port; zero if there is none.
#[derive(Debug, Default)]
pub(crate) struct LoopSign(AtomicU64);

impl LoopSign {
    pub(crate) fn leave(&self, token: u64) {
        self.0.store(token, Ordering::Relaxed);
    }

    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// What the owner knows about loops.
#[derive(Debug, Default)]
pub(crate) struct Loops {
    watch: LoopWatch,
    /// Its key, from the operating system, is what nobody can guess.
    random: RandomState,
    sent: u64,
}

impl Loops {
    /// When to look again, at the latest.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.watch.next_round()
    }

    pub(crate) fn forget(&mut self, port: PortId) {
        self.watch.forget(port);
    }

    pub(crate) fn paused(&self, port: PortId) -> Option<PortId> {
        self.watch.paused(port)
    }

    fn round(&mut self, now: Timestamp) -> LoopRound {
        let (random, sent) = (&self.random, &mut self.sent);
        self.watch.round(now, || {
            *sent += 1;
            // Zero would be none.
            random.hash_one(*sent).max(1)
        })
    }
}

impl Dataplane {
    /// Addresses have moved between ports too often: these may be in a loop.
    pub(crate) fn suspect_loops(&mut self, flaps: &[Flap]) {
        let now = self.clock.now();
        flaps.iter().for_each(|flap| self.loops.watch.suspect(now, [flap.stays, flap.heard]));
    }

    /// Looks for loops as far as it is time to: pauses ports that are in one, and lets others go on.
    pub(crate) fn look_for_loops(&mut self, now: Timestamp) {
        if self.loops.watch.is_idle() {
            return;
        }
        let links = self.fabric.links.iter().flatten();
        let seen: Vec<_> = links.map(|link| (link.id, link.loop_sign.take())).filter(|(_, token)| *token != 0).collect();
        for (port, token) in seen {
            if let Some(other) = self.loops.watch.came_back(now, port, token) {
                self.pause(port, other);
            }
        }
        let LoopRound { probes, resumed } = self.loops.round(now);
        for port in resumed {
            tracing::info!("port \"{}\" is in no loop any more, and goes on", self.port_name(port));
            self.set_paused(port, false);
            self.refresh_leases(port);
        }
        for (port, token) in probes {
            self.fabric.inject(Injection::To { port, frame: probe(port, token).to_vec() });
        }
    }

    fn pause(&mut self, port: PortId, other: PortId) {
        tracing::warn!(
            "port \"{}\" is paused: what is sent to port \"{}\" comes back there, so a guest connects the two. It goes on when that has ended",
            self.port_name(port),
            self.port_name(other),
        );
        self.set_paused(port, true);
        // Stations of others were taken for theirs.
        for end in [port, other] {
            let network = self.fabric.links.get(end.index()).and_then(Option::as_ref).map(|link| link.network);
            if let Some(network) = network.and_then(|network| self.fabric.network(network)) {
                network.forget_port(end);
            }
        }
    }

    fn set_paused(&mut self, id: PortId, paused: bool) {
        let Some(port) = self.ports.get_mut(id.index()).and_then(Option::as_mut) else { return };
        port.set_paused(paused, &mut self.fabric);
        if let Err(stuck) = self.fabric.publish() {
            tracing::error!("port \"{}\": {stuck}", self.port_name(id));
        }
    }

    fn port_name(&self, id: PortId) -> &str {
        self.ports.get(id.index()).and_then(Option::as_ref).map_or("?", |port| port.settings.name.as_str())
    }
}
