//! Frames in weft's own memory: what the gateway makes of those that concern it, and what is sent on anybody's behalf.

use std::sync::Arc;

use mio::Events;
use weft_switch::{EthernetHeader, NetworkId, Offload, PortId, Timestamp, Verdict, forward};

use super::Lane;
use crate::from_guest::{Batch, Frame};
use crate::gateway::{Dispatch, GatewayLink, Passage, Receivers};
use crate::snapshot::{NetworkLink, PortLink, Snapshot};
use crate::vhost_port::BATCH;
use crate::vlan::Stamp;

impl Lane {
    /// Shows the gateway the frames that concern it, and sends what comes of that.
    #[cold]
    #[inline(never)]
    pub(super) fn pass_gateway(
        &mut self,
        snapshot: &Snapshot,
        (network, gateway): (&NetworkLink, &GatewayLink),
        ingress: &PortLink,
        batch: &Batch,
        now: Timestamp,
    ) {
        self.dispatched_on = ingress.network;
        let mut frames = std::mem::take(&mut self.for_gateway);
        let mut state = gateway.shared.lock();
        while frames != 0 {
            let stamp = network.vlans.as_ref().map(|_| batch.stamp(frames.trailing_zeros() as usize));
            let frame = batch.next_of(&mut frames);
            match state.receive(now, ingress.id, batch, frame, &mut self.dispatches) {
                Passage::Taken => {}
                Passage::Dropped(reason) => ingress.counters.drop_frames(reason, 1),
                Passage::On(copy, offload) => self.pass_on(network, ingress, frame, (copy, offload, stamp), now),
            }
        }
        state.finish_batch(now, ingress.network, snapshot, self);
        gateway.shared.announce_mail(&state);
        gateway.shared.note_nat(now, &state, gateway.home == self.worker);
        // Still locked: what the gateway sends keeps its order.
        self.finish_sending(snapshot);
    }

    /// Looks after the NAT of a network: events of its sockets, and timers. True if there was anything to do.
    pub(crate) fn serve_nat(
        &mut self,
        snapshot: &Snapshot,
        (network, gateway): &(NetworkId, GatewayLink),
        events: &Events,
        now: Timestamp,
    ) -> bool {
        self.fit(snapshot);
        let mut state = gateway.shared.lock();
        let busy = state.serve_nat(now, *network, snapshot, self, events);
        gateway.shared.note_nat(now, &state, true);
        self.finish_sending(snapshot);
        busy
    }

    /// A frame that the gateway leaves to the others, in the form in which it has seen it.
    fn pass_on(
        &mut self,
        network: &NetworkLink,
        ingress: &PortLink,
        frame: &Frame,
        (copy, offload, stamp): (Vec<u8>, Offload, Option<Stamp>),
        now: Timestamp,
    ) {
        let to = match forward(now, ingress.id, &EthernetHeader::parse(&frame.header), &network.fdb) {
            Verdict::To(PortId::GATEWAY) => return,
            Verdict::To(port) => Receivers::One(port),
            Verdict::Flood => Receivers::AllBut(ingress.id),
            Verdict::Drop(reason) => return ingress.counters.drop_frames(reason, 1),
        };
        self.dispatches.push(Dispatch { to, from: Some(ingress.id), frame: copy, offload, stamp });
    }

    /// Sends a frame of a network's gateway, at the latest with [`Self::finish_sending`].
    pub(crate) fn send(&mut self, snapshot: &Snapshot, network: NetworkId, frame: impl Into<Dispatch>) {
        if self.dispatched_on != network || self.dispatches.len() >= BATCH {
            self.finish_sending(snapshot);
            self.dispatched_on = network;
        }
        self.dispatches.push(frame.into());
    }

    /// Sends a frame to a port's guest, as one without a tag where that has a meaning.
    pub(crate) fn send_to(&mut self, snapshot: &Snapshot, port: PortId, frame: Vec<u8>) {
        let Some(link) = snapshot.port(port) else { return };
        let vlans = snapshot.network(link.network).and_then(|network| network.vlans.as_ref());
        let stamp = vlans.and_then(|vlans| vlans.role(link).untagged()).map(Stamp::of);
        self.send(
            snapshot,
            link.network,
            Dispatch { to: Receivers::One(port), from: None, frame, offload: Offload::NONE, stamp },
        );
    }

    /// Sends all frames that are in weft's own memory.
    pub(crate) fn finish_sending(&mut self, snapshot: &Snapshot) {
        let id = self.dispatched_on;
        while !self.dispatches.is_empty() {
            self.fit(snapshot);
            let count = self.dispatches.len().min(BATCH);
            let network = snapshot.network(id);
            // What comes from the gateway is in the default VLAN.
            let vlans = network.and_then(|network| network.vlans.as_ref()).map(|vlans| (vlans, vlans.tables.default_vlan()));
            if let Some(network) = network {
                for bit in 0..count {
                    let but = match std::mem::replace(&mut self.dispatches[bit].to, Receivers::All) {
                        // To a port that has gone since, nothing is sent.
                        Receivers::One(port) => {
                            self.add_if_there(port, bit);
                            continue;
                        }
                        Receivers::These(ports) => {
                            ports.iter().for_each(|port| {
                                self.add_if_there(*port, bit);
                            });
                            continue;
                        }
                        Receivers::All => None,
                        Receivers::AllBut(port) => Some(port),
                    };
                    match vlans {
                        None => self.add_all(network, but, bit),
                        Some((vlans, vlan)) => {
                            let vlan = self.dispatches[bit].stamp.map_or(vlan, |stamp| stamp.vlan);
                            self.add_each(vlans.members(vlan), but, bit)
                        }
                    };
                }
            }
            if network.is_some_and(|network| network.isolates) {
                let dispatches = std::mem::take(&mut self.dispatches);
                self.isolate(snapshot, |bit| snapshot.port(dispatches[bit].from?).map(Arc::as_ref));
                self.dispatches = dispatches;
            }
            let mut batch = self.own_batch.take().unwrap_or_else(|| Box::new(Batch::new()));
            batch.fill_private(self.dispatches.drain(..count), vlans.map_or(Stamp::NONE, |(_, vlan)| Stamp::of(vlan)));
            match vlans {
                None => self.transmit_batch(snapshot, id, &batch),
                Some((vlans, _)) => self.transmit_by_vlan(snapshot, id, vlans, &batch),
            };
            self.own_batch = Some(batch);
        }
        self.send_copies(snapshot);
    }
}
