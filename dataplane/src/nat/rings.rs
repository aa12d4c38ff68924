//! The guests' receive rings, as a worker hands them to the engine.

use std::net::Ipv4Addr;
use std::sync::{Arc, MutexGuard};

use mio::{Registry, Token};
use weft_switch::gateway::Gateway;
use weft_switch::{DropReason, NetworkId, Offload, OffloadFeatures, Outgoing, PortId, Station, Timestamp};

use super::seam::{NoRoom, ToGuests};
use crate::lane::Lane;
use crate::line::PortLine;
use crate::memory::Segment;
use crate::snapshot::{PortLink, RingLink, Snapshot};
use crate::tap::Written;
use crate::to_guest::{Tally, ToGuest, TransmitError, VlanTag};
use crate::vhost_port::BATCH;

/// What a worker has for the engine of one network. At most one ring is locked at a time.
pub(crate) struct GuestRings<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) network: NetworkId,
    pub(crate) lane: &'a mut Lane,
    pub(crate) gateway: &'a mut Gateway,
    /// What the gateway sends to find guests.
    pub(crate) answers: &'a mut Vec<Outgoing>,
    pub(crate) reserved: Option<Reserved<'a>>,
}

/// Buffers that wait for a frame.
pub(crate) struct Reserved<'a> {
    port: &'a PortLink,
    ring: &'a RingLink<ToGuest>,
    at: usize,
    tag: Option<VlanTag>,
    place: Place<'a>,
}

/// Where these are.
enum Place<'a> {
    /// In the ring, and, if somebody watches the port, in these pieces.
    Ring(MutexGuard<'a, ToGuest>, Vec<Segment>),
    /// In front of the port's line, in weft's own memory.
    Line(&'a PortLine, Vec<u8>),
}

/// Where the engine writes for a port: the ring, its place, and the tag that frames need.
type Target<'a> = (&'a PortLink, &'a RingLink<ToGuest>, usize, Option<VlanTag>);

impl<'a> GuestRings<'a> {
    /// The ring of `port` to which the engine writes: one and the same, so that frames keep their order.
    fn ring(&self, port: PortId) -> Option<Target<'a>> {
        let port = self.snapshot.port(port).filter(|port| port.network == self.network && port.receives())?;
        let tag = match &self.snapshot.network(self.network)?.vlans {
            None => None,
            Some(vlans) => vlans.tag_of_gateway(port)?,
        };
        let at = 0;
        let ring = port.rings.to_guest.get(at)?;
        (ring.is_enabled() && !ring.is_broken()).then_some((port, ring, at, tag))
    }

    fn failed(&self, port: &PortLink, ring: &RingLink<ToGuest>, error: TransmitError) -> NoRoom {
        match error {
            TransmitError::Dropped(DropReason::ReceiverFull) => NoRoom::Full,
            TransmitError::Dropped(reason) => {
                port.counters.drop_frames(reason, 1);
                NoRoom::Never
            }
            TransmitError::Fault(fault) => {
                self.lane.report(port, ring, fault);
                NoRoom::Never
            }
        }
    }

    fn done(&mut self, port: &PortLink, ring: &RingLink<ToGuest>, at: usize, mut guard: MutexGuard<'a, ToGuest>, tally: Tally) {
        if guard.unshown() >= BATCH {
            let notified = guard.flush();
            drop(guard);
            self.lane.count_notification(port, ring, notified);
        } else {
            drop(guard);
            self.lane.remember_to_flush(port.id, at);
        }
        port.counters.to_guest_frames.add(tally.frames);
        port.counters.to_guest_bytes.add(tally.bytes);
    }
}

impl ToGuests for GuestRings<'_> {
    fn offloads(&mut self, port: PortId) -> OffloadFeatures {
        self.ring(port).map(|(_, ring, ..)| ring.lock().offloads()).unwrap_or_default()
    }

    fn reserve(&mut self, port: PortId, len: usize, pieces: &mut Vec<Segment>) -> Result<usize, NoRoom> {
        let (port, ring, at, tag) = self.ring(port).ok_or(NoRoom::Never)?;
        if let Some(line) = &port.lines.to_guest {
            // Neither the engine nor what it reads from slows down by itself.
            if !self.lane.has_room(line) {
                return Err(NoRoom::Full);
            }
            let mut frame = vec![0; len];
            pieces.push(Segment { ptr: frame.as_mut_ptr(), len });
            self.reserved = Some(Reserved { port, ring, at, tag, place: Place::Line(line, frame) });
            return Ok(len);
        }
        let mut guard = ring.lock();
        let before = pieces.len();
        match guard.reserve(len, tag, pieces) {
            Ok(room) => {
                guard.stop_waiting();
                let pieces = if port.taps.is_some() { pieces[before..].to_vec() } else { Vec::new() };
                self.reserved = Some(Reserved { port, ring, at, tag, place: Place::Ring(guard, pieces) });
                Ok(room)
            }
            Err(error) => {
                drop(guard);
                Err(self.failed(port, ring, error))
            }
        }
    }

    fn wait_for_room(&mut self, port: PortId, registry: &Arc<Registry>, token: Token) -> Option<bool> {
        let (port, ring, ..) = self.ring(port)?;
        if port.lines.to_guest.is_some() {
            // Half of what a line lets wait lasts for longer than it takes until somebody looks again.
            return Some(false);
        }
        if !ring.watch(registry, token) {
            return None;
        }
        let waiting = ring.lock().wait_for_room();
        match waiting {
            Ok(has_room) => Some(has_room),
            Err(fault) => {
                self.lane.report(port, ring, fault);
                None
            }
        }
    }

    fn commit(&mut self, headers: &[u8], len: usize, offload: &Offload) {
        let Some(Reserved { port, ring, at, tag, place }) = self.reserved.take() else { return };
        match place {
            Place::Ring(mut guard, pieces) => {
                let mut tally = Tally::default();
                guard.commit(headers, tag, len, offload, &mut tally);
                if let Some(taps) = &port.taps {
                    self.lane.watch_written(taps, &Written { pieces: &pieces, len, headers, tag, offload });
                }
                self.done(port, ring, at, guard, tally);
            }
            Place::Line(line, mut frame) => {
                frame[..headers.len()].copy_from_slice(headers);
                frame.truncate(len);
                self.lane.hold_private(port, line, frame, tag, offload);
            }
        }
    }

    fn cancel(&mut self) {
        if let Some(Reserved { place: Place::Ring(mut guard, _), .. }) = self.reserved.take() {
            guard.cancel();
        }
    }

    fn station(&mut self, now: Timestamp, address: Ipv4Addr) -> Option<Station> {
        self.gateway.resolve(now, address, self.answers)
    }

    fn count_drop(&mut self, port: PortId, reason: DropReason, frames: u64) {
        if let Some(port) = self.snapshot.port(port).filter(|port| port.network == self.network) {
            port.counters.drop_frames(reason, frames);
        }
    }

    fn send(&mut self, port: PortId, frame: &[u8], offload: &Offload) -> Result<(), NoRoom> {
        let (port, ring, at, tag) = self.ring(port).ok_or(NoRoom::Never)?;
        if let Some(line) = &port.lines.to_guest {
            self.lane.hold_private(port, line, frame.to_vec(), tag, offload);
            return Ok(());
        }
        let mut guard = ring.lock();
        let mut tally = Tally::default();
        match guard.send(frame, tag, offload, &mut tally) {
            Ok(()) => {
                if let Some(taps) = &port.taps {
                    let pieces = [Segment { ptr: frame.as_ptr().cast_mut(), len: frame.len() }];
                    self.lane.watch_written(taps, &Written { pieces: &pieces, len: frame.len(), headers: frame, tag, offload });
                }
                self.done(port, ring, at, guard, tally);
                Ok(())
            }
            Err(error) => {
                drop(guard);
                let why = self.failed(port, ring, error);
                if why == NoRoom::Full {
                    port.counters.drop_frames(DropReason::ReceiverFull, 1);
                }
                Err(why)
            }
        }
    }
}
