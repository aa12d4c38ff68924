//! Protections of a port in the path of a batch; [`weft_switch::guard`] has the theory and the decisions.
//!
//! A port without protections comes here for nothing: which way a batch goes is chosen once. On one that has them, the frames of a batch are looked into before
//! anything is decided about them, and what was seen of a frame stays in private memory until the receiver has it ([`Batch::screen`]).
//!
//! What a port has left of its limits, and the addresses that are leased to it, are behind one lock. Workers take it once for a batch, and once more if frames to
//! nobody in particular are limited; the owner takes it when a lease comes or goes. Nobody takes another lock meanwhile.

use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use weft_switch::filter::Facts;
use weft_switch::guard::{Allowance, Finding, INSPECTED_LEN, Meters, Protections, Sources};
use weft_switch::{DropReason, EthernetHeader, NetworkId, Offload, PortId, Station, Timestamp, WireSize};

use crate::dataplane::{Dataplane, DataplaneError};
use crate::from_guest::Batch;

/// What the frames of a port's guest have to pass.
#[derive(Debug)]
pub(crate) struct PortGuard {
    sources: Sources,
    /// Leased addresses are among those that the guest may use.
    wants_leases: bool,
    /// There may be a router behind the port.
    pub(crate) may_route: bool,
    /// Nothing passes: the guest connects its port with another one.
    pub(crate) bars: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    meters: Meters,
    /// In order.
    leases: Vec<Ipv4Addr>,
}

impl PortGuard {
    /// Nothing if there is nothing to pass.
    pub(crate) fn new(protections: &Protections) -> Option<Self> {
        let sources = Sources::new(protections);
        let meters = Meters::new(&protections.storm, protections.limit_in);
        let is_needed = sources.is_needed() || meters.is_needed() || meters.limits_unknown();
        let wants_leases = protections.ips.as_ref().is_some_and(|lock| lock.leased);
        is_needed.then(|| Self {
            sources,
            wants_leases,
            may_route: protections.router,
            bars: false,
            state: Mutex::new(State { meters, leases: Vec::new() }),
        })
    }

    /// What lets nothing pass.
    pub(crate) fn barrier() -> Self {
        let sources = Sources::new(&Protections::NONE);
        let state = Mutex::new(State { meters: Meters::default(), leases: Vec::new() });
        Self { sources, wants_leases: false, may_route: false, bars: true, state }
    }

    /// Looks at what has come from the guest. Returns how many frames to addresses that nobody knows may go on, if that is limited; what is left of that is to be
    /// [given back](Self::give_back).
    pub(crate) fn screen(&self, batch: &mut Batch, now: Timestamp) -> Option<Allowance> {
        let mut state = self.lock();
        let State { meters, leases } = &mut *state;
        let screened = batch.screen(&self.sources, leases);
        if meters.is_needed() && (screened.has_multicast || !meters.admit_all(now, screened.size)) {
            batch.meter(|header, size| meters.admit(now, header, size));
        }
        if !meters.limits_unknown() {
            return None;
        }
        let mut all = WireSize::default();
        batch.frames().iter().for_each(|frame| all += frame.wire_size());
        meters.draw_unknown(now, all)
    }

    /// What [`Self::screen`] would say about a frame now, step by step; nothing is used up.
    pub(crate) fn foresee(
        &self,
        frame: &[u8],
        now: Timestamp,
        mut step: impl FnMut(&str, Result<(), DropReason>),
    ) -> Result<(), DropReason> {
        let state = self.lock();
        let Some(bytes) = frame.first_chunk() else { return Err(DropReason::TooShort) };
        let header = EthernetHeader::parse(bytes);
        let mac = self.sources.check_mac(&header);
        step("the source MAC address", mac);
        mac?;
        if self.sources.wants(bytes) {
            let seen = &frame[..frame.len().min(INSPECTED_LEN)];
            let found = match self.sources.inspect(seen, frame.len(), &Offload::NONE, &state.leases) {
                Finding::Pass => Ok(()),
                Finding::Drop(reason) => Err(reason),
                Finding::NeedsMore => Err(DropReason::Unverifiable),
            };
            let says_from = Facts::of(seen, frame.len(), None).addresses.map(|(source, _)| format!(", from {source}"));
            step(&format!("what is inside{}", says_from.unwrap_or_default()), found);
            found?;
        }
        let metered = state.meters.clone().admit(now, &header, WireSize { frames: 1, bytes: frame.len() });
        step("the limits", metered);
        metered
    }

    /// Whether one more frame to nobody in particular would pass now.
    pub(crate) fn foresee_unknown(&self, len: usize, now: Timestamp) -> Result<(), DropReason> {
        let mut meters = self.lock().meters.clone();
        let size = WireSize { frames: 1, bytes: len };
        meters.draw_unknown(now, size).map_or(Ok(()), |mut allowance| allowance.take(size))
    }

    pub(crate) fn give_back(&self, allowance: Allowance) {
        self.lock().meters.return_unknown(allowance);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dataplane {
    /// Changes the protections of a port, whose guest is not disturbed. Limits begin anew.
    ///
    /// # Errors
    /// When a worker is stuck; the change is made all the same.
    pub fn protect_port(&mut self, id: PortId, protections: Protections) -> Result<(), DataplaneError> {
        let Some(port) = self.ports.get_mut(id.index()).and_then(Option::as_mut) else { return Ok(()) };
        let (network, stations) = (port.settings.network, protections.stations);
        port.protect(protections, &mut self.fabric);
        self.fabric.limit_stations(network, id, stations);
        self.refresh_leases(id);
        Ok(self.fabric.publish()?)
    }

    /// The DHCP server has leased `address` to `station`: from now on it belongs to nobody else.
    pub fn lease(&mut self, network: NetworkId, address: Ipv4Addr, station: Station) {
        let before = self.with_gateway(network, |_, gateway, _| {
            let before = gateway.lessee(address);
            gateway.lease(address, station);
            before
        });
        self.refresh_leases(station.port);
        if let Some(before) = before.flatten().filter(|before| *before != station.port) {
            self.refresh_leases(before);
        }
    }

    /// The lease of `address` has ended.
    pub fn end_lease(&mut self, network: NetworkId, address: Ipv4Addr) {
        let before = self.with_gateway(network, |_, gateway, _| {
            let before = gateway.lessee(address);
            gateway.end_lease(address);
            before
        });
        if let Some(before) = before.flatten() {
            self.refresh_leases(before);
        }
    }

    /// Tells the guards of a network's ports what is leased to them, after its gateway has become another one.
    pub(crate) fn refresh_all_leases(&self, network: NetworkId) {
        self.fabric.links.iter().flatten().filter(|link| link.network == network).for_each(|link| self.refresh_leases(link.id));
    }

    /// Tells a port's guard what is leased to it.
    pub(crate) fn refresh_leases(&self, id: PortId) {
        let Some(link) = self.fabric.links.get(id.index()).and_then(Option::as_ref) else { return };
        if let Some(guard) = link.guard.as_ref().filter(|guard| guard.wants_leases) {
            let gateway = self.fabric.gateway(link.network);
            let leases = gateway.map(|gateway| gateway.shared.lock().gateway.leases_of(id).collect());
            guard.lock().leases = leases.unwrap_or_default();
        }
    }
}
