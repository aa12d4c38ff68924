//! What a DHCP server is told to serve.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::lease::ClientIdentifier;
use super::names::TAKEN;
use crate::{AddressRange, DomainName, HostName, MacAddr, Subnet};

/// What a DHCP server is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpSettings {
    /// The network's subnet.
    pub subnet: Subnet,
    /// The server's own address, which is the gateway's.
    pub server: Ipv4Addr,
    /// The server's own MAC address, which is the gateway's.
    pub server_mac: MacAddr,
    /// The addresses that are given to whoever asks, but for the server's own and those in `reservations`.
    pub pool: AddressRange,
    /// Addresses that are kept for one client each; they may lie inside or outside of the pool.
    pub reservations: Vec<Reservation>,
    /// How long a lease lasts, in whole seconds: 60 to 2^31. T1 is half of it, T2 seven eighths.
    pub lease_time: Duration,
    /// How long an offered address is kept for the client that it was offered to.
    pub offer_time: Duration,
    /// How long an address that a client declined, or that somebody else was heard to use, is given to nobody.
    pub quarantine: Duration,
    /// How long to wait for an answer after an ARP probe before an address is offered; `None` to offer without a probe.
    pub probe: Option<Duration>,
    /// How many addresses the clients behind one port may hold. `None`: as many as are still free, so that a newcomer finds some.
    pub leases_per_port: Option<u32>,
    /// The way out (option 3); `None` where there is none.
    pub router: Option<Ipv4Addr>,
    /// Resolvers (option 6), at most [`DhcpSettings::LIST_MAX`].
    pub dns: Vec<Ipv4Addr>,
    /// Time servers (option 42), at most [`DhcpSettings::LIST_MAX`].
    pub ntp: Vec<Ipv4Addr>,
    /// The domain of the network's hosts (option 15).
    pub domain: Option<DomainName>,
    /// Domains in which names are looked up (option 119), at most [`DhcpSettings::LIST_MAX`].
    pub search: Vec<DomainName>,
    /// The network's MTU in bytes (option 26), at least 68.
    pub mtu: u16,
    /// Routes beside the one to the router: network and next hop (option 121), at most [`DhcpSettings::LIST_MAX`].
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
}

/// An address that is kept for one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// For whom.
    #[serde(rename = "for")]
    pub owner: ReservationOwner,
    /// The address.
    pub address: Ipv4Addr,
    /// What the host is called; resolvable whether it is there or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<HostName>,
}

/// For whom an address is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReservationOwner {
    /// Whoever calls itself this (option 61).
    ClientId(ClientIdentifier),
    /// Whoever has this MAC address.
    Mac(MacAddr),
    /// Whoever is behind the port of this name, one client at a time.
    Port(String),
}

/// Settings that don't go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DhcpSettingsError {
    /// An address that must be a host's isn't.
    #[error("{what} {address} is not the address of a host in {subnet}")]
    NotInSubnet {
        /// What the address is for.
        what: &'static str,
        /// The address.
        address: Ipv4Addr,
        /// The subnet.
        subnet: Subnet,
    },
    /// A reservation of the server's own address.
    #[error("{0} can't be reserved: it is the gateway's own")]
    ReservedServer(Ipv4Addr),
    /// Two reservations of one address, or for one client.
    #[error("{address} and {other} are reserved for the same client: keep one of them")]
    SameOwner {
        /// The earlier one.
        other: Ipv4Addr,
        /// The later one.
        address: Ipv4Addr,
    },
    /// Two reservations of one address.
    #[error("{0} is reserved twice: keep one of the reservations")]
    SameAddress(Ipv4Addr),
    /// Two reservations with one name.
    #[error("two reservations are named {0}: give one of them another name")]
    SameName(HostName),
    /// A reservation with a name that has a meaning of its own.
    #[error("{0} can't be a host's name, because it means another: choose another name")]
    TakenName(HostName),
    /// Too many reservations.
    #[error("{0} reservations are too many: at most {max}", max = DhcpSettings::RESERVATIONS_MAX)]
    TooManyReservations(usize),
    /// A list that does not fit into a message.
    #[error("{len} {what} are too many: at most {max}", max = DhcpSettings::LIST_MAX)]
    ListTooLong {
        /// Of what.
        what: &'static str,
        /// How many.
        len: usize,
    },
    /// A lease time that DHCP can't express, or that would keep clients busy with nothing else.
    #[error("a lease time of {0:?} is not possible: give 60 seconds to 68 years")]
    LeaseTime(Duration),
    /// The MTU is less than every host must take (RFC 791, section 3.2).
    #[error("an MTU of {0} bytes is too small: IPv4 needs at least 68")]
    MtuTooSmall(u16),
}

impl DhcpSettings {
    /// The most entries of a list: a message has room for them all.
    pub const LIST_MAX: usize = 8;
    /// The most reservations.
    pub const RESERVATIONS_MAX: usize = 4096;

    /// Usual settings: leases of 12 hours, the server is router and resolver.
    #[must_use]
    pub fn new(subnet: Subnet, server: Ipv4Addr, server_mac: MacAddr, pool: AddressRange) -> Self {
        Self {
            subnet,
            server,
            server_mac,
            pool,
            reservations: Vec::new(),
            lease_time: Duration::from_secs(12 * 3600),
            offer_time: Duration::from_secs(60),
            quarantine: Duration::from_secs(600),
            probe: Some(Duration::from_millis(250)),
            leases_per_port: None,
            router: Some(server),
            dns: vec![server],
            ntp: Vec::new(),
            domain: None,
            search: Vec::new(),
            mtu: 1500,
            routes: Vec::new(),
        }
    }

    /// Checks that the settings go together.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), DhcpSettingsError> {
        let in_subnet = |what, address| {
            let subnet = self.subnet;
            if subnet.is_host(address) { Ok(()) } else { Err(DhcpSettingsError::NotInSubnet { what, address, subnet }) }
        };
        in_subnet("the server's address", self.server)?;
        in_subnet("the pool's first address", self.pool.first())?;
        in_subnet("the pool's last address", self.pool.last())?;
        self.router.map_or(Ok(()), |router| in_subnet("the router", router))?;
        for (what, len) in [
            ("resolvers", self.dns.len()),
            ("time servers", self.ntp.len()),
            ("search domains", self.search.len()),
            ("routes", self.routes.len()),
        ] {
            if len > Self::LIST_MAX {
                return Err(DhcpSettingsError::ListTooLong { what, len });
            }
        }
        if !(60..=1 << 31).contains(&self.lease_time.as_secs()) {
            return Err(DhcpSettingsError::LeaseTime(self.lease_time));
        }
        if self.mtu < 68 {
            return Err(DhcpSettingsError::MtuTooSmall(self.mtu));
        }
        self.reservations.iter().try_for_each(|reservation| in_subnet("the reserved address", reservation.address))?;
        self.check_reservations()
    }

    fn check_reservations(&self) -> Result<(), DhcpSettingsError> {
        if self.reservations.len() > Self::RESERVATIONS_MAX {
            return Err(DhcpSettingsError::TooManyReservations(self.reservations.len()));
        }
        let (mut owners, mut addresses, mut names) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for Reservation { owner, address, hostname } in &self.reservations {
            if *address == self.server {
                return Err(DhcpSettingsError::ReservedServer(*address));
            }
            if addresses.insert(address, ()).is_some() {
                return Err(DhcpSettingsError::SameAddress(*address));
            }
            if let Some(other) = owners.insert(owner, *address) {
                return Err(DhcpSettingsError::SameOwner { other, address: *address });
            }
            if let Some(name) = hostname.as_ref().filter(|name| TAKEN.contains(&name.as_str())) {
                return Err(DhcpSettingsError::TakenName(name.clone()));
            }
            if let Some(name) = hostname
                && names.insert(name, ()).is_some()
            {
                return Err(DhcpSettingsError::SameName(name.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> DhcpSettings {
        let pool = "10.77.0.10-10.77.0.200".parse().unwrap();
        DhcpSettings::new("10.77.0.0/24".parse().unwrap(), Ipv4Addr::new(10, 77, 0, 1), MacAddr([2, 0, 0, 0, 0, 1]), pool)
    }

    fn reservation(owner: ReservationOwner, last: u8, hostname: Option<&str>) -> Reservation {
        let hostname = hostname.map(|name| name.parse().unwrap());
        Reservation { owner, address: Ipv4Addr::new(10, 77, 0, last), hostname }
    }

    #[test]
    fn settings_that_go_together_are_taken() {
        assert_eq!(settings().check(), Ok(()));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let refused = |change: &dyn Fn(&mut DhcpSettings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.check().is_err()
        };
        assert!(refused(&|settings| settings.server = Ipv4Addr::new(10, 77, 0, 255)));
        assert!(refused(&|settings| settings.pool = "10.77.0.10-10.77.0.255".parse().unwrap()));
        assert!(refused(&|settings| settings.pool = "10.77.0.0-10.77.0.20".parse().unwrap()));
        assert!(refused(&|settings| settings.router = Some(Ipv4Addr::new(192, 0, 2, 1))));
        assert!(refused(&|settings| settings.dns = vec![settings.server; 9]));
        assert!(refused(&|settings| settings.lease_time = Duration::from_secs(59)));
        assert!(refused(&|settings| settings.mtu = 67));
        let (a, b) = (ReservationOwner::Port("a".to_owned()), ReservationOwner::Mac(MacAddr([2, 0, 0, 0, 0, 9])));
        for pair in [
            [reservation(a.clone(), 20, None), reservation(b.clone(), 20, None)],
            [reservation(a.clone(), 20, None), reservation(a.clone(), 21, None)],
            [reservation(a.clone(), 20, Some("web")), reservation(b.clone(), 21, Some("WEB"))],
            [reservation(a.clone(), 20, Some("gateway")), reservation(b.clone(), 21, None)],
            [reservation(a.clone(), 1, None), reservation(b.clone(), 21, None)],
            [reservation(a.clone(), 255, None), reservation(b, 21, None)],
        ] {
            assert!(refused(&|settings| settings.reservations = pair.to_vec()), "{pair:?}");
        }
        assert!(refused(&|settings| settings.reservations = vec![reservation(a.clone(), 20, None); 4097]));
    }
}
