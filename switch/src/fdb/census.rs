//! How many stations each port of a network has, and what became of those that it may not have.
//!
//! # Theory
//!
//! A network with VLANs has a forwarding database for each, and a port may be in all of them. So what is counted for a port is counted here, once for
//! all tables of the network: whoever enters a station asks here first, and whoever takes one out says so. Frames of stations that are known come here for nothing.
//!
//! Lock order: a table's lock, then this one. Whoever holds it does a few steps and takes no other, so workers may wait for it.

use std::sync::PoisonError;

use crate::sync::{Mutex, MutexGuard};
use crate::{MacAddr, PortId};

/// Stations that moved too often, which wait to be reported.
const FLAPS: usize = 64;

/// What becomes of a frame from a station that there is no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtLimit {
    /// It goes on, and its station is not learned: what is sent to that goes to everybody.
    #[default]
    Forward,
    /// It is dropped.
    Drop,
}

/// How many stations a port may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StationLimit {
    /// The most that are learned at the same time, in all VLANs. Static entries don't count.
    pub stations: u32,
    /// What becomes of frames from others.
    pub beyond: AtLimit,
}

/// What is known of a port's stations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStations {
    /// Those that it has now.
    pub count: u32,
    /// How many it may have.
    pub limit: Option<StationLimit>,
    /// Stations that came to it from another port.
    pub moved: u64,
    /// Frames from stations that it had no room for.
    pub refused: u64,
}

/// A station that moved too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flap {
    /// The station.
    pub mac: MacAddr,
    /// The port behind which it stays for now.
    pub stays: PortId,
    /// The port behind which it was heard then.
    pub heard: PortId,
}

/// The stations of all ports of a network. Shared by its tables.
#[derive(Debug, Default)]
pub struct Census {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By [`PortId::index`].
    ports: Vec<PortStations>,
    flaps: Vec<Flap>,
    /// Those for which there was no room.
    flaps_lost: u64,
}

impl Census {
    /// Says how many stations a port may have from now on. Those that it has stay until [`crate::Fdb::trim`].
    pub fn set_limit(&self, port: PortId, limit: Option<StationLimit>) {
        self.lock().port(port).limit = limit;
    }

    /// What is known of a port.
    #[must_use]
    pub fn port(&self, port: PortId) -> PortStations {
        self.lock().ports.get(port.index()).copied().unwrap_or_default()
    }

    /// The port is gone, and another may have its number.
    pub fn forget(&self, port: PortId) {
        let mut state = self.lock();
        let port = state.port(port);
        // A table that is about to go may still have some.
        *port = PortStations { count: port.count, ..PortStations::default() };
    }

    /// The stations that moved too often since this was last asked, and how many more there were: at most 64 are kept.
    #[must_use]
    pub fn take_flaps(&self) -> (Vec<Flap>, u64) {
        let mut state = self.lock();
        (std::mem::take(&mut state.flaps), std::mem::take(&mut state.flaps_lost))
    }

    /// A station is to be entered.
    pub(super) fn enter(&self, port: PortId) -> Result<(), AtLimit> {
        self.lock().enter(port)
    }

    /// A station is to be entered that is behind another port so far.
    pub(super) fn transfer(&self, from: PortId, to: PortId) -> Result<(), AtLimit> {
        let mut state = self.lock();
        state.enter(to)?;
        state.port(to).moved += 1;
        state.leave(from);
        Ok(())
    }

    /// A station was taken out.
    pub(super) fn leave(&self, port: PortId) {
        self.lock().leave(port);
    }

    /// A station is to be entered, and nobody can do so now: says if it would be refused, and counts that.
    pub(super) fn refuse(&self, port: PortId) -> Option<AtLimit> {
        let mut state = self.lock();
        let port = state.port(port);
        let limit = port.limit.filter(|limit| port.count >= limit.stations)?;
        port.refused += 1;
        Some(limit.beyond)
    }

    /// True if a port has more than it may, after that has changed.
    pub(super) fn is_over(&self, port: PortId) -> bool {
        let port = self.port(port);
        port.limit.is_some_and(|limit| port.count > limit.stations)
    }

    pub(super) fn report(&self, flap: Flap) {
        let mut state = self.lock();
        if state.flaps.len() < FLAPS { state.flaps.push(flap) } else { state.flaps_lost += 1 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn port(&mut self, port: PortId) -> &mut PortStations {
        let place = port.index();
        if place >= self.ports.len() {
            self.ports.resize(place + 1, PortStations::default());
        }
        &mut self.ports[place]
    }

    fn enter(&mut self, port: PortId) -> Result<(), AtLimit> {
        let port = self.port(port);
        if let Some(limit) = port.limit.filter(|limit| port.count >= limit.stations) {
            port.refused += 1;
            return Err(limit.beyond);
        }
        port.count += 1;
        Ok(())
    }

    fn leave(&mut self, port: PortId) {
        let port = self.port(port);
        debug_assert!(port.count > 0, "a port without stations loses one");
        port.count = port.count.saturating_sub(1);
    }
}
