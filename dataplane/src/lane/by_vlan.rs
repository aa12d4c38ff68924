//! The path of a batch on a network with VLANs, where it differs from the others'.

use weft_switch::vlan::Vlan;
use weft_switch::{DropReason, EthernetHeader, Fdb, NetworkId, Timestamp, forward};

use super::Lane;
use crate::from_guest::Batch;
use crate::snapshot::{NetworkLink, PortLink, Snapshot};
use crate::to_guest::tags;
use crate::vhost_port::FrameMask;
use crate::vlan::VlanLink;

impl Lane {
    /// Finds the receivers of each frame, one VLAN after the other. The gateway is in the default one.
    #[inline(never)]
    pub(super) fn decide_by_vlan(
        &mut self,
        network: &NetworkLink,
        vlans: &VlanLink,
        ingress: &PortLink,
        batch: &mut Batch,
        now: Timestamp,
    ) {
        let mut left = batch.admit(vlans.role(ingress), |reason| ingress.counters.drop_frames(reason, 1));
        while left != 0 {
            let (vlan, frames) = batch.of_one_vlan(left);
            left &= !frames;
            let Some(fdb) = vlans.fdb(vlan) else {
                ingress.counters.drop_frames(DropReason::VlanNotAllowed, frames.count_ones().into());
                continue;
            };
            if network.gateway.is_some() && vlan == vlans.tables.default_vlan() {
                self.decide_in::<true>(network, (vlans, vlan, fdb), ingress, (batch, frames), now);
            } else {
                self.decide_in::<false>(network, (vlans, vlan, fdb), ingress, (batch, frames), now);
            }
        }
    }

    /// Finds the receivers of those frames of a batch that are in one VLAN.
    #[inline(always)]
    fn decide_in<const GATEWAY: bool>(
        &mut self,
        network: &NetworkLink,
        (vlans, vlan, fdb): (&VlanLink, Vlan, &Fdb),
        ingress: &PortLink,
        (batch, frames): (&Batch, FrameMask),
        now: Timestamp,
    ) {
        for (bit, frame) in batch.frames().iter().enumerate().filter(|(bit, _)| frames & 1 << bit != 0) {
            let verdict = forward(now, ingress.id, &EthernetHeader::parse(&frame.header), fdb);
            let flood = |lane: &mut Self| lane.add_each(vlans.members(vlan), Some(ingress.id), bit);
            self.carry_out::<GATEWAY>(verdict, network, ingress, (batch, frame, bit), flood);
        }
    }

    /// As [`Self::transmit_batch`], but a port that is no member of a frame's VLAN does not get it.
    #[inline(never)]
    pub(super) fn transmit_by_vlan(&mut self, snapshot: &Snapshot, network: NetworkId, vlans: &VlanLink, batch: &Batch) -> u64 {
        let mut receivers = std::mem::take(&mut self.receivers);
        let mut down = 0;
        for &receiver in &receivers {
            let frames = std::mem::take(&mut self.masks[receiver.index()]);
            let Some(port) = snapshot.port(receiver).filter(|port| port.network == network) else {
                down += u64::from(frames.count_ones());
                continue;
            };
            match vlans.release(port, batch, frames) {
                (0, _) => {}
                // As they came, so there is nothing to look at.
                (frames, 0) if !batch.lost_tags() => self.transmit::<{ tags::NONE }>(port, batch, frames, 0),
                (frames, tagged) if frames == tagged => self.transmit::<{ tags::ALL }>(port, batch, frames, tagged),
                (frames, tagged) => self.transmit::<{ tags::SOME }>(port, batch, frames, tagged),
            }
        }
        receivers.clear();
        self.receivers = receivers;
        down
    }
}
