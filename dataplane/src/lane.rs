//! The path of a batch, from one guest's ring to those of the receivers.
//!
//! [`Lane::poll_ring`], top to bottom: receive a batch from the guest that sends, decide about each frame, transmit to each receiver
//! in turn. [`Lane::flush`] ends the round: receivers are shown what they got.

mod containment;
mod lines;
mod ring_choice;
mod sending;

use std::sync::Arc;

use crossbeam::channel::Sender;
use vmm_sys_util::eventfd::EventFd;
use weft_switch::gateway::Interest;
use weft_switch::guard::Allowance;
use weft_switch::loops::is_probe;
use weft_switch::vlan::{Vlan, VlanCounters, VlanTraffic};
use weft_switch::{DropReason, EthernetHeader, Fdb, FlowHash, NetworkId, Offload, PortId, Timestamp, Verdict, forward};

use crate::dataplane::MAX_QUEUE_PAIRS;
use crate::from_guest::{Batch, Frame};
use crate::gateway::{Dispatch, Receivers};
use crate::guard::PortGuard;
use crate::ring::RingFault;
use crate::snapshot::{NetworkLink, PolledRing, PortLink, RingLink, Snapshot};
use crate::tap::{Contents, Copies};
use crate::to_guest::{Tally, tags};
use crate::vhost_port::{BATCH, FrameMask};
use crate::vlan::{Stamp, VlanLink};
use crate::worker::Clock;
use ring_choice::RingChoice;

/// A ring in which a worker found a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) port: PortId,
    /// [`RingLink::id`].
    pub(crate) ring_id: u64,
    pub(crate) ring_index: u16,
    pub(crate) fault: RingFault,
}

/// Where workers report faults: a queue and the event that tells the owner to look.
#[derive(Clone, Debug)]
pub(crate) struct FaultReports {
    pub(crate) queue: Sender<Fault>,
    pub(crate) event: Arc<EventFd>,
}

/// After so many bytes a round ends, wherever it is: guests with small frames don't wait until all others had a batch of large ones.
const ROUND_BYTES: u64 = 4 << 20;

/// What a worker needs to forward a batch, apart from the batch itself.
pub(crate) struct Lane {
    /// The worker, and how many there are: they share the receivers' rings.
    worker: usize,
    workers: usize,
    flows: FlowHash,
    /// For each port the frames of the batch that go there. All zero between batches.
    masks: Vec<FrameMask>,
    /// The ports whose mask is not zero, in the order in which they were found.
    receivers: Vec<PortId>,
    /// The frames of the batch that the gateway sees before anybody else does. Zero between batches.
    for_gateway: FrameMask,
    /// Those that are about groups.
    pub(crate) for_snooper: FrameMask,
    /// How many frames of the batch may go to everybody because nobody knows their destination, if that is limited.
    unknown: Option<Allowance>,
    /// Frames in weft's own memory that are to be sent on a network. None between rounds.
    pub(crate) dispatches: Vec<Dispatch>,
    pub(crate) dispatched_on: NetworkId,
    pub(crate) own_batch: Option<Box<Batch>>,
    /// None between rounds.
    pub(crate) copies: Copies,
    /// Kept for its memory: what goes to a capture.
    pub(crate) captured: Contents,
    /// The frames that leave a line. None between rounds.
    departing: Vec<Dispatch>,
    line_batch: Option<Box<Batch>>,
    clock: Clock,
    /// For each port the rings to its guest that hold frames which the guest was not shown. All zero between rounds.
    unshown: Vec<RingMask>,
    /// The ports whose rings these are.
    waiting: Vec<PortId>,
    /// Bytes that were handed out in this round, and those that were finished for it.
    moved: u64,
    faults: FaultReports,
}

/// Some rings to a guest, by their place in [`RunningRings::to_guest`].
type RingMask = u16;
const _: () = assert!(MAX_QUEUE_PAIRS <= RingMask::BITS as usize);

impl Lane {
    pub(crate) fn new(worker: usize, workers: usize, clock: Clock, faults: FaultReports) -> Self {
        Self {
            worker,
            workers,
            flows: FlowHash::default(),
            masks: Vec::new(),
            receivers: Vec::new(),
            for_gateway: 0,
            for_snooper: 0,
            unknown: None,
            dispatches: Vec::new(),
            dispatched_on: NetworkId(0),
            own_batch: None,
            copies: Copies::default(),
            captured: Contents::default(),
            departing: Vec::new(),
            line_batch: None,
            clock,
            unshown: Vec::new(),
            waiting: Vec::new(),
            moved: 0,
            faults,
        }
    }

    /// Moves at most one batch out of a ring, to wherever its frames go. True if there was one.
    pub(crate) fn poll_ring(&mut self, snapshot: &Snapshot, polled: &PolledRing, batch: &mut Batch, now: Timestamp) -> bool {
        if polled.ring.is_broken() {
            return false;
        }
        let moved = self.contain(&polled.port, |lane| lane.forward_ring(snapshot, polled, batch, now));
        if moved.is_none() {
            *batch = Batch::new();
        }
        moved.unwrap_or(false)
    }

    fn forward_ring(&mut self, snapshot: &Snapshot, polled: &PolledRing, batch: &mut Batch, now: Timestamp) -> bool {
        let PolledRing { port, ring } = polled;
        let mut from_guest = ring.lock();
        let received = from_guest.receive(batch);
        if !batch.frames().is_empty() {
            count_received(port, batch);
            let goes_on = port.taps.as_ref().is_none_or(|taps| self.watch_inward(snapshot, port, taps, batch));
            if !goes_on {
                // It was counted.
            } else if ring.is_enabled() {
                match &port.lines.from_guest {
                    None => self.take_in(snapshot, port, batch, now),
                    Some(line) => self.hold_batch(port, line, batch),
                }
            } else {
                port.counters.drop_frames(DropReason::RingDisabled, batch.frames().len() as u64);
            }
            from_guest.complete(batch);
        }
        if let Err(fault) = received {
            self.report(port, ring, fault);
        }
        !batch.frames().is_empty()
    }

    /// Wakes a guest whose rings are new to us and who may have missed an interrupt. Those to a guest belong to no worker in
    /// particular: the one of its first ring from the guest does it.
    pub(crate) fn notify_if_owed(&self, PolledRing { port, ring }: &PolledRing) {
        self.count_notification(port, ring, ring.lock().ring.queue().base_mut().notify_if_owed());
        if port.rings.from_guest.first().is_some_and(|first| Arc::ptr_eq(first, ring)) {
            for ring in port.rings.to_guest.iter().filter(|ring| !ring.is_broken()) {
                self.count_notification(port, ring, ring.lock().ring.queue().base_mut().notify_if_owed());
            }
        }
    }

    /// Stops a port whose memory was taken away, even if none of its rings moves any more. All of a port's rings are on the same
    /// memory.
    pub(crate) fn check_memory(&self, PolledRing { port, ring }: &PolledRing) {
        if let Err(fault) = ring.lock().ring.queue().base().check_memory() {
            self.report(port, ring, fault);
        }
    }

    pub(crate) fn count_notification<R>(&self, port: &PortLink, ring: &RingLink<R>, notified: Result<bool, RingFault>) {
        match notified {
            Ok(notified) => port.counters.notifications.add(notified.into()),
            Err(fault) => self.report(port, ring, fault),
        }
    }

    /// Forwards a frame that weft made itself, as if `port` had sent it.
    pub(crate) fn inject(&mut self, snapshot: &Snapshot, port: PortId, frame: Vec<u8>, now: Timestamp) {
        if let Some(port) = snapshot.port(port) {
            let mut batch = Batch::new();
            let dispatch = Dispatch { to: Receivers::All, from: None, frame, offload: Offload::NONE, stamp: None };
            batch.fill_private([dispatch].into_iter(), Stamp::NONE);
            self.forward_batch(snapshot, port, &mut batch, now);
        }
    }

    /// Forwards what came in by a port.
    #[inline(always)]
    fn take_in(&mut self, snapshot: &Snapshot, port: &PortLink, batch: &mut Batch, now: Timestamp) {
        match &port.guard {
            None => self.forward_batch(snapshot, port, batch, now),
            Some(guard) => self.forward_guarded(snapshot, (port, guard), batch, now),
        }
    }

    /// The same for a port with protections.
    #[inline(never)]
    fn forward_guarded(
        &mut self,
        snapshot: &Snapshot,
        (port, guard): (&PortLink, &PortGuard),
        batch: &mut Batch,
        now: Timestamp,
    ) {
        if guard.bars {
            port.counters.drop_frames(DropReason::LoopPaused, batch.frames().len() as u64);
            batch.frames().iter().filter(|frame| is_probe(&frame.header)).for_each(|frame| note_probe(port, batch, frame));
            return;
        }
        self.unknown = guard.screen(batch, now);
        self.forward_batch(snapshot, port, batch, now);
        if let Some(left) = self.unknown.take() {
            guard.give_back(left);
        }
    }

    fn forward_batch(&mut self, snapshot: &Snapshot, ingress: &PortLink, batch: &mut Batch, now: Timestamp) {
        let Some(network) = snapshot.network(ingress.network) else {
            ingress.counters.drop_frames(DropReason::NoOtherPort, batch.frames().len() as u64);
            return;
        };
        self.fit(snapshot);
        if network.snooper.is_some() && batch.groups() != 0 {
            batch.hold(batch.groups());
        }
        match (&network.vlans, &network.gateway) {
            (None, None) => self.decide::<false>(network, ingress, batch, now),
            (None, Some(_)) => self.decide::<true>(network, ingress, batch, now),
            (Some(vlans), _) => self.decide_by_vlan(network, vlans, ingress, batch, now),
        }
        if network.isolates {
            self.isolate(snapshot, |_| Some(ingress));
        }
        let down = match &network.vlans {
            None => self.transmit_batch(snapshot, ingress.network, batch),
            Some(vlans) => self.transmit_by_vlan(snapshot, ingress.network, vlans, batch),
        };
        if down > 0 {
            ingress.counters.drop_frames(DropReason::ReceiverDown, down);
        }
        if let Some(gateway) = network.gateway.as_ref().filter(|_| self.for_gateway != 0) {
            self.pass_gateway(snapshot, (network, gateway), ingress, batch, now);
        }
        if let Some(snooper) = network.snooper.as_ref().filter(|_| self.for_snooper != 0) {
            self.pass_snooper(snapshot, (network, snooper), ingress, batch, now);
        }
    }

    /// Makes room for what is kept for each port.
    #[inline]
    pub(crate) fn fit(&mut self, snapshot: &Snapshot) {
        if self.masks.len() < snapshot.port_places() {
            self.masks.resize(snapshot.port_places(), 0);
            self.unshown.resize(snapshot.port_places(), 0);
        }
    }

    /// Hands the frames of a batch to the receivers that were found. Returns how often there was none after all: a port that has
    /// gone, or whose number another network's port has by now, is as good as down.
    fn transmit_batch(&mut self, snapshot: &Snapshot, network: NetworkId, batch: &Batch) -> u64 {
        let mut receivers = std::mem::take(&mut self.receivers);
        let mut down = 0;
        for &receiver in &receivers {
            let frames = std::mem::take(&mut self.masks[receiver.index()]);
            match snapshot.port(receiver).filter(|port| port.network == network) {
                Some(port) => self.transmit::<{ tags::NONE }>(snapshot, port, batch, frames, 0),
                None => down += u64::from(frames.count_ones()),
            }
        }
        receivers.clear();
        self.receivers = receivers;
        down
    }

    /// The same on a network with VLANs: a port that is no member of a frame's does not get it.
    #[inline(never)]
    fn transmit_by_vlan(&mut self, snapshot: &Snapshot, network: NetworkId, vlans: &VlanLink, batch: &Batch) -> u64 {
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
                (frames, 0) if !batch.lost_tags() => self.transmit::<{ tags::NONE }>(snapshot, port, batch, frames, 0),
                (frames, tagged) if frames == tagged => self.transmit::<{ tags::ALL }>(snapshot, port, batch, frames, tagged),
                (frames, tagged) => self.transmit::<{ tags::SOME }>(snapshot, port, batch, frames, tagged),
            }
        }
        receivers.clear();
        self.receivers = receivers;
        down
    }

    /// Finds the receivers of each frame. Where there is a gateway, every ARP packet is for it, too: nobody takes its address away with one.
    #[inline(never)]
    fn decide<const GATEWAY: bool>(&mut self, network: &NetworkLink, ingress: &PortLink, batch: &mut Batch, now: Timestamp) {
        let mut tagged = 0;
        for (bit, frame) in batch.frames().iter().enumerate() {
            if GATEWAY && !frame.is_ipv4() && frame.is_tagged() {
                tagged |= 1 << bit;
            } else {
                self.decide_one::<GATEWAY>(network, ingress, (batch, frame, bit), frame.is_arp(), now);
            }
        }
        if GATEWAY && tagged != 0 {
            self.decide_tagged(network, ingress, (batch, tagged), now);
        }
    }

    /// The same for frames that have a tag. One that names no VLAN hides nothing from the gateway.
    #[cold]
    #[inline(never)]
    fn decide_tagged(
        &mut self,
        network: &NetworkLink,
        ingress: &PortLink,
        (batch, frames): (&mut Batch, FrameMask),
        now: Timestamp,
    ) {
        batch.hold(frames);
        for bit in bits(frames) {
            let frame = &batch.frames()[bit];
            // Of one that can't be used there may be nothing to look at.
            let is_shared = frame.header().is_ok() && concerns_gateway(network, batch, frame);
            self.decide_one::<true>(network, ingress, (batch, frame, bit), is_shared, now);
        }
    }

    #[inline(always)]
    fn decide_one<const GATEWAY: bool>(
        &mut self,
        network: &NetworkLink,
        ingress: &PortLink,
        (batch, frame, bit): (&Batch, &Frame, usize),
        is_shared: bool,
        now: Timestamp,
    ) {
        let verdict = match frame.header() {
            Ok(header) => forward(now, ingress.id, &EthernetHeader::parse(header), &network.fdb),
            Err(reason) => Verdict::Drop(reason),
        };
        let flood = |lane: &mut Self| lane.add_all(network, Some(ingress.id), bit);
        self.carry_out::<GATEWAY>(verdict, network, ingress, (batch, frame, bit), is_shared, flood);
    }

    /// The same on a network with VLANs, one VLAN after the other. The gateway is in the default one.
    #[inline(never)]
    fn decide_by_vlan(&mut self, network: &NetworkLink, vlans: &VlanLink, ingress: &PortLink, batch: &mut Batch, now: Timestamp) {
        let mut left = batch.admit(vlans.role(ingress), |reason| ingress.counters.drop_frames(reason, 1));
        while left != 0 {
            let (vlan, frames) = batch.of_one_vlan(left);
            left &= !frames;
            let Some(fdb) = vlans.fdb(vlan) else {
                ingress.counters.drop_frames(DropReason::VlanNotAllowed, frames.count_ones().into());
                continue;
            };
            if let Some(traffic) = vlans.tables.traffic(vlan) {
                count_admitted(traffic, batch, frames);
            }
            if network.gateway.is_some() && vlan == vlans.tables.default_vlan() {
                batch.hold_tagged(frames);
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
            let is_shared = GATEWAY && shares_with_gateway(network, batch, frame);
            self.carry_out::<GATEWAY>(verdict, network, ingress, (batch, frame, bit), is_shared, flood);
        }
    }

    /// Notes the receivers of a frame; `flood` notes all of them, and says whether there are any.
    #[inline(always)]
    fn carry_out<const GATEWAY: bool>(
        &mut self,
        verdict: Verdict,
        network: &NetworkLink,
        ingress: &PortLink,
        (batch, frame, bit): (&Batch, &Frame, usize),
        is_shared: bool,
        flood: impl FnOnce(&mut Self) -> bool,
    ) {
        match verdict {
            Verdict::To(_) if GATEWAY && is_shared => self.for_gateway |= 1 << bit,
            Verdict::To(port) if port.index() < self.masks.len() => self.add_receiver(port, bit),
            Verdict::To(PortId::GATEWAY) if GATEWAY => self.for_gateway |= 1 << bit,
            Verdict::To(_) => ingress.counters.drop_frames(DropReason::ReceiverDown, 1),
            Verdict::Flood if is_probe(&frame.header) => {
                ingress.counters.drop_frames(DropReason::LoopProbe, 1);
                note_probe(ingress, batch, frame);
            }
            Verdict::Flood if self.unknown.is_some() && self.is_too_much(frame) => {
                ingress.counters.drop_frames(DropReason::UnknownStorm, 1);
            }
            Verdict::Flood if GATEWAY && concerns_gateway(network, batch, frame) => self.for_gateway |= 1 << bit,
            Verdict::Flood => {
                let is_snooped = network.snooper.is_some() && frame.is_for_many();
                let has_receivers = is_snooped && self.carry_group(network, ingress, (batch, frame, bit));
                if !has_receivers && !flood(self) {
                    ingress.counters.drop_frames(DropReason::NoOtherPort, 1);
                }
            }
            Verdict::Drop(reason) => ingress.counters.drop_frames(reason, 1),
        }
    }

    /// Counts a frame that would go to everybody. True if nobody knows where its destination is, and there were too many of those.
    #[cold]
    fn is_too_much(&mut self, frame: &Frame) -> bool {
        let is_unknown = !EthernetHeader::parse(&frame.header).destination.is_multicast();
        is_unknown && self.unknown.as_mut().is_some_and(|left| left.take(frame.wire_size()).is_err())
    }

    /// Takes frames away from receivers that are isolated from where they came from, which `origin` says by frame. One of which nobody else gets a copy is counted there.
    #[inline(never)]
    fn isolate<'s>(&mut self, snapshot: &'s Snapshot, origin: impl Fn(usize) -> Option<&'s PortLink>) {
        let (mut kept, mut taken) = (self.for_gateway | self.for_snooper, 0);
        let masks = &mut self.masks;
        self.receivers.retain(|receiver| {
            let mask = &mut masks[receiver.index()];
            if let Some(to) = snapshot.port(*receiver) {
                for bit in bits(*mask) {
                    if origin(bit).is_some_and(|from| !from.isolation.reaches(to.isolation)) {
                        *mask &= !(1 << bit);
                        taken |= 1 << bit;
                    }
                }
            }
            kept |= *mask;
            *mask != 0
        });
        for from in bits(taken & !kept).filter_map(origin) {
            from.counters.drop_frames(DropReason::Isolated, 1);
        }
    }

    /// The frame is for every port of the network but one. True if there is any.
    #[inline]
    fn add_all(&mut self, network: &NetworkLink, but: Option<PortId>, bit: usize) -> bool {
        self.add_each(network.members.iter().copied(), but, bit)
    }

    #[inline]
    fn add_each(&mut self, members: impl Iterator<Item = PortId>, but: Option<PortId>, bit: usize) -> bool {
        let mut found = false;
        for member in members.filter(|&member| Some(member) != but) {
            self.add_receiver(member, bit);
            found = true;
        }
        found
    }

    /// As [`Self::add_receiver`], for a port that may be gone. True if it may be there.
    #[inline]
    pub(crate) fn add_if_there(&mut self, port: PortId, bit: usize) -> bool {
        let is_there = port.index() < self.masks.len();
        if is_there {
            self.add_receiver(port, bit);
        }
        is_there
    }

    #[inline]
    fn add_receiver(&mut self, port: PortId, bit: usize) {
        let mask = &mut self.masks[port.index()];
        if *mask == 0 {
            self.receivers.push(port);
        }
        *mask |= 1 << bit;
    }

    /// Hands the frames of a mask to one receiver. `TAGS` says which of them leave with a tag: one of [`tags`].
    #[inline(always)]
    fn transmit<const TAGS: u8>(
        &mut self,
        snapshot: &Snapshot,
        port: &PortLink,
        batch: &Batch,
        frames: FrameMask,
        tagged: FrameMask,
    ) {
        match &port.lines.to_guest {
            // What would wait for a guest that is not there would be for the next one.
            Some(line) if !port.rings.to_guest.is_empty() => self.hold(port, line, batch, frames, tagged),
            _ => self.hand_over::<TAGS>(snapshot, port, batch, frames, tagged),
        }
    }

    /// The same, past the line to the receiver.
    #[inline(always)]
    fn hand_over<const TAGS: u8>(
        &mut self,
        snapshot: &Snapshot,
        port: &PortLink,
        batch: &Batch,
        frames: FrameMask,
        tagged: FrameMask,
    ) {
        let frames = match &port.taps {
            None => frames,
            Some(taps) => self.watch_outward::<TAGS>(snapshot, (port, taps), batch, frames, tagged),
        };
        self.deliver::<TAGS>(port, batch, frames, tagged);
    }

    /// The same without anybody who watches.
    #[inline(always)]
    pub(crate) fn deliver<const TAGS: u8>(&mut self, port: &PortLink, batch: &Batch, frames: FrameMask, tagged: FrameMask) {
        match RingChoice::new(port.rings.to_guest.len(), self.worker, self.workers) {
            RingChoice::None => port.counters.drop_frames(DropReason::ReceiverDown, frames.count_ones().into()),
            RingChoice::One(at) => self.transmit_to::<TAGS>(port, at, batch, frames, tagged),
            RingChoice::Some { first, step, count } => {
                let mut masks = [0; MAX_QUEUE_PAIRS];
                for (bit, frame) in batch.frames().iter().enumerate().filter(|(bit, _)| frames & 1 << bit != 0) {
                    let flow = batch.with_flow_bytes(frame, |header, rest| self.flows.hash(header, rest));
                    masks[first + step * (flow as usize % count)] |= 1 << bit;
                }
                for (at, &frames) in masks.iter().enumerate().filter(|(_, frames)| **frames != 0) {
                    self.transmit_to::<TAGS>(port, at, batch, frames, tagged);
                }
            }
        }
    }

    /// Hands frames to one of a receiver's rings, with one lock. The guest is shown them now if they are many, and at the end of
    /// the round otherwise: then those of other senders have come to them.
    fn transmit_to<const TAGS: u8>(&mut self, port: &PortLink, at: usize, batch: &Batch, frames: FrameMask, tagged: FrameMask) {
        let ring = &port.rings.to_guest[at];
        if !ring.is_enabled() || ring.is_broken() {
            port.counters.drop_frames(DropReason::ReceiverDown, frames.count_ones().into());
            return;
        }
        let mut to_guest = ring.lock();
        let mut tally = Tally::default();
        if let Err(fault) = to_guest.transmit::<TAGS>(batch, frames, tagged, &port.counters, &mut tally) {
            port.counters.drop_frames(DropReason::ReceiverDown, (frames.count_ones() - tally.handled).into());
            self.report(port, ring, fault);
        }
        if to_guest.unshown() >= BATCH {
            self.count_notification(port, ring, to_guest.flush());
        } else {
            self.remember_to_flush(port.id, at);
        }
        port.counters.to_guest_frames.add(tally.frames);
        port.counters.to_guest_bytes.add(tally.bytes);
        if batch.groups() & frames != 0 {
            let handled = bits(frames).take(tally.handled as usize).fold(0, |mask, at| mask | 1 << at);
            port.counters.to_guest_groups.add(batch, batch.groups() & handled & !tally.dropped);
        }
        self.moved += tally.bytes + tally.finished;
    }

    pub(crate) fn remember_to_flush(&mut self, port: PortId, at: usize) {
        let rings = &mut self.unshown[port.index()];
        if *rings == 0 {
            self.waiting.push(port);
        }
        *rings |= 1 << at;
    }

    /// True when so much was moved in this round that it is time to show it.
    #[inline(always)]
    pub(crate) fn is_laden(&self) -> bool {
        self.moved >= ROUND_BYTES
    }

    /// Shows every guest what it got in this round, which was forwarded with this snapshot.
    pub(crate) fn flush(&mut self, snapshot: &Snapshot) {
        self.moved = 0;
        while let Some(id) = self.waiting.pop() {
            let mut rings = std::mem::take(&mut self.unshown[id.index()]);
            let Some(port) = snapshot.port(id) else { continue };
            while rings != 0 {
                let ring = &port.rings.to_guest[rings.trailing_zeros() as usize];
                rings &= rings - 1;
                if !ring.is_broken() {
                    let notified = ring.lock().flush();
                    self.count_notification(port, ring, notified);
                }
            }
        }
    }

    /// Takes a broken ring out of service and tells the owner.
    #[cold]
    pub(crate) fn report<R>(&self, port: &PortLink, ring: &RingLink<R>, fault: RingFault) {
        if ring.is_broken() {
            return;
        }
        ring.set_broken();
        let report = Fault { port: port.id, ring_id: ring.id, ring_index: ring.index, fault };
        // Neither can fail while the owner lives, and without it nobody wants to know.
        let _ = self.faults.queue.send(report);
        let _ = self.faults.event.write(1);
    }
}

/// A glance at a frame for many, on a network with a gateway.
#[inline(never)]
fn concerns_gateway(network: &NetworkLink, batch: &Batch, frame: &Frame) -> bool {
    network.gateway.as_ref().is_some_and(|gateway| gateway.interest(batch, frame) != Interest::Foreign)
}

/// True for ARP, and for what a tag that names no VLAN hides.
#[inline(always)]
fn shares_with_gateway(network: &NetworkLink, batch: &Batch, frame: &Frame) -> bool {
    !frame.is_ipv4() && (frame.is_arp() || frame.is_tagged() && concerns_gateway(network, batch, frame))
}

/// The owner is to see that a probe has come in here.
#[cold]
fn note_probe(ingress: &PortLink, batch: &Batch, frame: &Frame) {
    if let Some(token) = batch.payload(frame).read_array() {
        ingress.loop_sign.leave(u64::from_be_bytes(token));
    }
}

/// The places of the frames in a mask.
pub(crate) fn bits(mut mask: FrameMask) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then_some(mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(bit)
    })
}

/// The mask of the frames at these places.
#[inline(always)]
pub(crate) fn mask_of(places: impl Iterator<Item = usize>) -> FrameMask {
    places.fold(0, |mask, at| mask | 1 << at)
}

#[inline(always)]
fn count_received(port: &PortLink, batch: &mut Batch) {
    let bytes = batch.note_groups();
    port.counters.from_guest_frames.add(batch.frames().len() as u64);
    port.counters.from_guest_bytes.add(bytes);
    if batch.groups() != 0 {
        port.counters.from_guest_groups.add(batch, batch.groups());
    }
}

/// Counts frames that come into a VLAN.
#[inline(always)]
fn count_admitted(traffic: &VlanTraffic, batch: &Batch, frames: FrameMask) {
    let groups = batch.groups() & frames;
    let broadcast = if groups == 0 { 0 } else { batch.broadcasts(groups).count_ones().into() };
    traffic.add(VlanCounters {
        frames: frames.count_ones().into(),
        bytes: bits(frames).map(|at| batch.frames()[at].len as u64).sum(),
        multicast: u64::from(groups.count_ones()) - broadcast,
        broadcast,
    });
}
