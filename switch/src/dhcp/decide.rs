//! What is done about each kind of message (RFC 2131, section 4.3).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::reply::{Answer, Grant};
use super::request::{Request, RequestKind};
use super::table::{Client, Entry, NoAddress, State};
use super::{
    Action, DhcpEvent, DhcpServer, PENDING_MAX, PENDING_PER_PORT, PROBES_MAX, Pending, Probe, ReservationOwner, lease::ClientId,
};
use crate::gateway::Heard;
use crate::{DropReason, HostName, MacAddr, Outgoing, Station, Timestamp, UdpDatagram};

/// How many addresses are tried for one client before it has to ask again.
const ATTEMPTS_MAX: u32 = 4;
/// How long it takes until it is said again that the pool is full, if it wasn't in between.
const SAY_FULL_INTERVAL: Duration = Duration::from_secs(600);
/// The shortest lease that a client may ask for, in seconds.
const LEASE_TIME_MIN: u32 = 60;

/// A client with what it asks for.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) client: Client,
    /// Port and MAC address of the client. The frame may have come from a relay agent, whose address is `frame_source`.
    pub(super) station: Station,
    frame_source: MacAddr,
    request: Request,
}

impl DhcpServer {
    /// Takes a message from a client. What is to be done is added to `actions`, also when the message is dropped.
    ///
    /// # Errors
    /// [`DropReason::BadDhcp`] for what can't be read, [`DropReason::GatewayClaimed`] for a client with the gateway's MAC address,
    /// [`DropReason::NoFreeAddress`] and [`DropReason::ShareExceeded`] when there is nothing to give, [`DropReason::ReceiverDown`]
    /// when the port is not attached. A message that needs no answer is no error.
    pub fn handle(&mut self, now: Timestamp, message: &UdpDatagram<'_>, actions: &mut Vec<Action>) -> Result<(), DropReason> {
        self.tick(now, actions);
        let port = self.ports.get(&message.station.port).ok_or(DropReason::ReceiverDown)?;
        let request = Request::parse(&message.payload)?;
        if request.mac == self.settings.server_mac {
            return Err(DropReason::GatewayClaimed);
        }
        let asker = Asker {
            client: Client { port: Arc::clone(port), id: request.client.clone() },
            station: Station { port: message.station.port, mac: request.mac },
            frame_source: message.station.mac,
            request,
        };
        if !self.is_for_this_subnet(&asker.request) {
            return Ok(());
        }
        match asker.request.kind {
            RequestKind::Discover => self.discover(now, asker, actions),
            RequestKind::Request => self.request(now, &asker, actions),
            RequestKind::Decline => self.decline(now, &asker, actions),
            RequestKind::Release => self.release(now, &asker, actions),
            RequestKind::Inform => self.inform(&asker, actions),
        }
    }

    /// A relay agent elsewhere, or a client that wants an address elsewhere, is not served (RFC 2131, section 4.3.1; RFC 3011).
    fn is_for_this_subnet(&self, request: &Request) -> bool {
        let subnet = self.settings.subnet;
        request.giaddr.is_none_or(|relay| subnet.is_host(relay)) && request.subnet.is_none_or(|wanted| wanted == subnet.network())
    }

    fn discover(&mut self, now: Timestamp, asker: Asker, actions: &mut Vec<Action>) -> Result<(), DropReason> {
        let address = self.choose(&asker, asker.request.requested).map_err(|why| self.no_address(now, why, actions))?;
        self.prepare_offer(now, asker, address, 1, actions);
        Ok(())
    }

    /// The address for a client that has none (section 4.3.1): what is reserved for it, what it has or had, what it asks for,
    /// any.
    fn choose(&mut self, asker: &Asker, requested: Option<Ipv4Addr>) -> Result<Ipv4Addr, NoAddress> {
        if let Some(reserved) = self.reserved_for(asker).filter(|address| self.may_take(asker, *address)) {
            return Ok(reserved);
        }
        let port = &asker.client.port;
        let current = self.table.address_of(&asker.client).filter(|address| self.table.is_dynamic(*address));
        if let Some(current) = current.filter(|address| self.may_take(asker, *address)) {
            return match self.table.is_free(current) {
                true => self.table.has_room(port).map(|()| current),
                false => Ok(current),
            };
        }
        let free = |address: &Ipv4Addr| self.table.is_dynamic(*address) && self.table.is_free(*address);
        match requested.filter(free) {
            Some(requested) => self.table.has_room(port).map(|()| requested),
            None => self.table.find_free(port),
        }
    }

    /// The address that is kept for a client.
    fn reserved_for(&self, asker: &Asker) -> Option<Ipv4Addr> {
        let by_id = match &asker.client.id {
            ClientId::Identifier(identifier) => Some(ReservationOwner::ClientId(identifier.clone())),
            ClientId::Mac(_) => None,
        };
        let by_mac = ReservationOwner::Mac(asker.station.mac);
        let by_port = ReservationOwner::Port(asker.client.port.as_ref().to_owned());
        by_id.into_iter().chain([by_mac, by_port]).find_map(|owner| self.reserved.get(&owner)).copied()
    }

    /// True if nobody else has the address. One machine behind one port may be several clients in turn (firmware, then an operating
    /// system): an address that is kept for it goes from one to the next.
    fn may_take(&self, asker: &Asker, address: Ipv4Addr) -> bool {
        self.table.entry(address).is_none_or(|entry| match entry.state {
            State::Free { .. } => true,
            State::Quarantined { .. } => false,
            State::Offered { .. } | State::Leased { .. } => {
                let same_machine = entry.client.port == asker.client.port && entry.mac == asker.station.mac;
                entry.client == asker.client || same_machine && !self.table.is_dynamic(address)
            }
        })
    }

    /// Offers an address at once, or after a probe (section 4.3.1) unless the client has it already.
    fn prepare_offer(&mut self, now: Timestamp, asker: Asker, address: Ipv4Addr, attempt: u32, actions: &mut Vec<Action>) {
        if let Some(probe) = self.probes.get_mut(&address).filter(|probe| probe.asker.client == asker.client) {
            // It asks again while the probe is out: the newest question gets the answer.
            probe.asker = asker;
            return;
        }
        let entry = self.table.entry(address).filter(|entry| entry.client == asker.client);
        let is_leased = entry.is_some_and(|entry| matches!(entry.state, State::Leased { .. }));
        let is_known = entry.is_some_and(|entry| !matches!(entry.state, State::Quarantined { .. }));
        let wait = self.settings.probe.filter(|_| !is_known && self.probes.len() < PROBES_MAX);
        if !is_leased {
            let until = now.after(self.settings.offer_time + wait.unwrap_or_default());
            self.replace(address, &asker, State::Offered { until }, None, actions);
        }
        if let Some(wait) = wait {
            self.probes.insert(address, Probe { asker, until: now.after(wait), attempt });
            actions.push(Action::Probe(address));
        } else {
            self.offer(&asker, address, actions);
        }
    }

    fn offer(&mut self, asker: &Asker, address: Ipv4Addr, actions: &mut Vec<Action>) {
        let left = self.left_by(&asker.client, address);
        let hostname = self.names.choose(address, &left, &asker.client.port, asker.request.hostname.as_ref());
        let grant = Grant { address, lease_time: self.lease_time(&asker.request), hostname };
        self.counters.offers += 1;
        self.reply(asker, &Answer::Offer(grant), actions);
    }

    /// Section 4.3.2: which of its states the client is in follows from what it fills in.
    fn request(&mut self, now: Timestamp, asker: &Asker, actions: &mut Vec<Action>) -> Result<(), DropReason> {
        match (asker.request.server, asker.request.ciaddr, asker.request.requested) {
            (Some(server), _, _) if server != self.settings.server => {
                self.withdraw_offer(asker);
                Ok(())
            }
            // SELECTING.
            (Some(_), None, Some(address)) => {
                let is_probed = self.probes.contains_key(&address);
                if is_probed { Ok(()) } else { self.lease_or_refuse(now, asker, address, actions) }
            }
            // INIT-REBOOT.
            (None, None, Some(address)) => self.reboot(now, asker, address, actions),
            // RENEWING and REBINDING, and clients that name the server all the same.
            (_, Some(address), _) => self.lease_or_refuse(now, asker, address, actions),
            (_, None, None) => Err(DropReason::BadDhcp),
        }
    }

    /// The client has picked another server.
    fn withdraw_offer(&mut self, asker: &Asker) {
        let Some(address) = self.table.address_of(&asker.client) else { return };
        let Some(entry) = self.table.entry(address).filter(|entry| matches!(entry.state, State::Offered { .. })).cloned() else {
            return;
        };
        self.probes.remove(&address);
        self.table.set(address, Entry { state: State::Free { since: Timestamp::default() }, ..entry });
    }

    /// A client that remembers an address. Without a record of it the server has to be silent.
    fn reboot(&mut self, now: Timestamp, asker: &Asker, address: Ipv4Addr, actions: &mut Vec<Action>) -> Result<(), DropReason> {
        if !self.settings.subnet.is_host(address) {
            self.refuse(asker, "the address is not of this network", actions);
            return Ok(());
        }
        match self.table.address_of(&asker.client).or_else(|| self.reserved_for(asker)) {
            None => Ok(()),
            Some(known) if known != address && self.reserved_for(asker) != Some(address) => {
                self.refuse(asker, "the client has another address", actions);
                Ok(())
            }
            Some(_) => self.lease_or_refuse(now, asker, address, actions),
        }
    }

    fn lease_or_refuse(
        &mut self,
        now: Timestamp,
        asker: &Asker,
        address: Ipv4Addr,
        actions: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        match self.check_grant(asker, address) {
            Ok(()) => self.lease(now, asker, address, actions),
            Err(why) => {
                self.refuse(asker, why, actions);
                Ok(())
            }
        }
    }

    /// Whether the client can have the address, and why not.
    fn check_grant(&self, asker: &Asker, address: Ipv4Addr) -> Result<(), &'static str> {
        let reserved = self.reserved_for(asker);
        if !self.settings.subnet.is_host(address) {
            return Err("the address is not of this network");
        }
        if reserved.is_some_and(|reserved| reserved != address && self.may_take(asker, reserved)) {
            return Err("another address is reserved for the client");
        }
        if reserved != Some(address) && !self.table.is_dynamic(address) {
            return Err("the address is not available");
        }
        if !self.may_take(asker, address) {
            return Err("the address is in use");
        }
        if self.table.is_dynamic(address) && self.table.is_free(address) {
            self.table.has_room(&asker.client.port).map_err(|_| "no more addresses are available")?;
        }
        Ok(())
    }

    /// Gives or renews a lease. The client hears of it when it is written down.
    fn lease(&mut self, now: Timestamp, asker: &Asker, address: Ipv4Addr, actions: &mut Vec<Action>) -> Result<(), DropReason> {
        let left = self.left_by(&asker.client, address);
        self.pending.retain(|pending| pending.client != asker.client);
        let of_port = self.pending.iter().filter(|pending| pending.station.port == asker.station.port).count();
        if self.pending.len() >= PENDING_MAX || of_port >= PENDING_PER_PORT {
            self.counters.share_exceeded += 1;
            return Err(DropReason::ShareExceeded);
        }
        let known =
            self.table.entry(address).filter(|entry| entry.client == asker.client).and_then(|entry| entry.hostname.clone());
        let wanted = asker.request.hostname.clone().or(known);
        let hostname = self.names.choose(address, &left, &asker.client.port, wanted.as_ref());
        let lease_time = self.lease_time(&asker.request);
        let until = now.after(Duration::from_secs(lease_time.into()));
        self.replace(address, asker, State::Leased { until }, hostname.clone(), actions);
        self.counters.leases += 1;
        let ticket = self.persist_entry(address, actions);
        let frames = self.frames(asker, &Answer::Ack(Grant { address, lease_time, hostname }));
        self.pending.push_back(Pending { ticket, address, left, client: asker.client.clone(), station: asker.station, frames });
        Ok(())
    }

    /// What the client has had and has no more when it hears that this address is its own.
    fn left_by(&self, client: &Client, address: Ipv4Addr) -> Vec<Ipv4Addr> {
        let pending = self.pending.iter().filter(|pending| pending.client == *client).flat_map(|pending| &pending.left).copied();
        pending.chain(self.table.lease_of(client)).filter(|left| *left != address).collect()
    }

    /// Section 4.3.3: the client found somebody else at the address.
    fn decline(&mut self, now: Timestamp, asker: &Asker, actions: &mut Vec<Action>) -> Result<(), DropReason> {
        let address = asker.request.requested.ok_or(DropReason::BadDhcp)?;
        if !self.is_held_by(asker, address) {
            return Ok(());
        }
        self.counters.declines += 1;
        self.pending.retain(|pending| pending.client != asker.client);
        let until = now.after(self.settings.quarantine);
        self.replace(address, asker, State::Quarantined { until }, None, actions);
        self.persist_entry(address, actions);
        actions.push(Action::Log(DhcpEvent::Declined { address, station: asker.station }));
        Ok(())
    }

    /// Section 4.3.4: the address is free, and remembered for the client.
    fn release(&mut self, now: Timestamp, asker: &Asker, actions: &mut Vec<Action>) -> Result<(), DropReason> {
        let address = asker.request.ciaddr.ok_or(DropReason::BadDhcp)?;
        if !self.is_held_by(asker, address) {
            return Ok(());
        }
        self.counters.releases += 1;
        self.pending.retain(|pending| pending.client != asker.client);
        self.replace(address, asker, State::Free { since: now }, None, actions);
        self.persist_entry(address, actions);
        Ok(())
    }

    /// True if the client was offered the address or has it, and speaks to this server about it.
    fn is_held_by(&self, asker: &Asker, address: Ipv4Addr) -> bool {
        let entry = self.table.entry(address).filter(|entry| entry.client == asker.client);
        let held = entry.is_some_and(|entry| matches!(entry.state, State::Offered { .. } | State::Leased { .. }));
        held && asker.request.server.is_none_or(|server| server == self.settings.server)
    }

    /// Section 4.3.5: parameters for a client that has its address from elsewhere.
    fn inform(&mut self, asker: &Asker, actions: &mut Vec<Action>) -> Result<(), DropReason> {
        if !asker.request.ciaddr.is_some_and(|address| self.settings.subnet.is_host(address)) {
            return Err(DropReason::BadDhcp);
        }
        self.counters.informs += 1;
        self.reply(asker, &Answer::Inform, actions);
        Ok(())
    }

    /// Somebody says in ARP that it has an address. If that address is about to be offered, it isn't, and another one is looked for.
    pub fn heard(&mut self, now: Timestamp, heard: Heard, actions: &mut Vec<Action>) {
        let Heard { address, station } = heard;
        // The client may still have the address from some earlier time, and answer for it.
        let foreign = |probe: &Probe| probe.asker.station.mac != station.mac;
        let Some(port) = self.ports.get(&station.port).cloned() else { return };
        // Who has claimed its share already isn't believed any more, else it could make all addresses unusable.
        if !self.probes.get(&address).is_some_and(foreign) || self.table.has_room(&port) == Err(NoAddress::ShareExceeded) {
            return;
        }
        let Some(probe) = self.probes.remove(&address) else { return };
        self.counters.in_use += 1;
        let until = now.after(self.settings.quarantine);
        let client = Client { port, id: ClientId::Mac(station.mac) };
        self.table.set(address, Entry { client, mac: station.mac, hostname: None, state: State::Quarantined { until } });
        self.persist_entry(address, actions);
        actions.push(Action::Log(DhcpEvent::InUse { address, station }));
        if probe.attempt >= ATTEMPTS_MAX {
            return;
        }
        match self.choose(&probe.asker, None) {
            Ok(other) => self.prepare_offer(now, probe.asker, other, probe.attempt + 1, actions),
            // Nobody asks right now, so there is no frame to drop.
            Err(why) => drop(self.no_address(now, why, actions)),
        }
    }

    /// Sends offers whose probes were not answered, and ends what has had its time. To be called when [`Self::next_tick`] says so.
    pub fn tick(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let due: Vec<_> = self.probes.iter().filter(|(_, probe)| probe.until <= now).map(|(address, _)| *address).collect();
        for address in due {
            if let Some(probe) = self.probes.remove(&address) {
                self.offer(&probe.asker, address, actions);
            }
        }
        while let Some((address, entry)) = self.table.expire(now) {
            self.counters.expired += u64::from(matches!(entry.state, State::Leased { .. }));
            self.end(address, &entry, actions);
        }
        let full_again = |said: &Timestamp| self.table.free_count() == 0 || now.since(*said) < SAY_FULL_INTERVAL;
        self.said_full = self.said_full.filter(full_again);
    }

    /// Puts the client's entry in the place of whatever there was about an address, and keeps names and gateway in step.
    fn replace(&mut self, address: Ipv4Addr, asker: &Asker, state: State, hostname: Option<HostName>, actions: &mut Vec<Action>) {
        if !matches!(state, State::Offered { .. }) {
            self.probes.remove(&address);
        }
        if let Some(before) = self.table.entry(address).cloned() {
            let stays = before.client == asker.client && matches!(state, State::Leased { .. });
            match stays {
                // Only the name may be another.
                true => before.hostname.iter().for_each(|name| self.names.remove(name, address)),
                false => self.end(address, &before, actions),
            }
        }
        if let Some(name) = &hostname {
            self.names.add(name.clone(), address);
        }
        self.table.set(address, Entry { client: asker.client.clone(), mac: asker.station.mac, hostname, state });
    }

    fn no_address(&mut self, now: Timestamp, why: NoAddress, actions: &mut Vec<Action>) -> DropReason {
        match why {
            NoAddress::PoolFull => {
                self.counters.pool_full += 1;
                if self.said_full.is_none() {
                    self.said_full = Some(now);
                    actions.push(Action::Log(DhcpEvent::PoolFull));
                }
                DropReason::NoFreeAddress
            }
            NoAddress::ShareExceeded => {
                self.counters.share_exceeded += 1;
                DropReason::ShareExceeded
            }
        }
    }

    fn refuse(&mut self, asker: &Asker, why: &'static str, actions: &mut Vec<Action>) {
        self.counters.naks += 1;
        self.reply(asker, &Answer::Nak(why), actions);
    }

    fn reply(&mut self, asker: &Asker, answer: &Answer, actions: &mut Vec<Action>) {
        let frames = self.frames(asker, answer);
        actions.extend(frames.into_iter().map(Action::Send));
    }

    fn frames(&mut self, asker: &Asker, answer: &Answer) -> Vec<Outgoing> {
        self.identification = self.identification.wrapping_add(1);
        answer.frames(&self.settings, &asker.request, asker.station.port, asker.frame_source, self.identification).collect()
    }

    /// What the client asks for in seconds, as far as it may (section 3.3).
    fn lease_time(&self, request: &Request) -> u32 {
        // The settings are checked to fit.
        let longest = self.settings.lease_time.as_secs() as u32;
        request.lease_time.map_or(longest, |wanted| wanted.clamp(LEASE_TIME_MIN, longest))
    }
}
