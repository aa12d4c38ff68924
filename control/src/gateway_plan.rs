//! What a network's gateway and its services are to be: the declared values with all defaults filled in.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use weft_switch::dhcp::{DhcpSettings, Reservation, ReservationOwner};
use weft_switch::dns::DnsSettings;
use weft_switch::gateway::GatewaySettings;
use weft_switch::{AddressRange, Subnet};

use crate::addressing::{DhcpChoice, DnsChoice, StaticLease};
use crate::config::{Config, Conflict, NetworkConfig};
use crate::forward::ForwardHost;
use crate::host::Host;
use crate::values::{Name, NetworkMode};

/// Answers that a DNS forwarder keeps, and the memory for them in bytes.
const DNS_CACHE_ENTRIES: usize = 10_000;
const DNS_CACHE_BYTES: usize = 8 << 20;
/// The first addresses of a large subnet are left for hosts that are set up by hand.
const LEFT_ALONE: u32 = 10;
/// From this many addresses on it is a large one.
const LARGE: u32 = 256;

/// What a network's gateway and its services are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayPlan {
    /// The gateway.
    pub gateway: GatewaySettings,
    /// The DHCP server, if there is one.
    pub dhcp: Option<DhcpSettings>,
    /// The DNS forwarder, if there is one.
    pub dns: Option<DnsPlan>,
}

/// What a network's DNS forwarder is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsPlan {
    /// The forwarder.
    pub settings: DnsSettings,
    /// Whom it asks; `None`: the host's own resolvers.
    pub upstreams: Option<Vec<SocketAddr>>,
}

impl GatewayPlan {
    /// What `config` says about a network's gateway, when its subnet is `subnet`. `None` for a network without one.
    ///
    /// # Errors
    /// When what is said about the network and its ports doesn't go together.
    pub fn new(name: &Name, config: &Config, host: &Host, subnet: Option<Subnet>) -> Result<Option<Self>, Conflict> {
        let Some(network) = config.networks.get(name) else { return Ok(None) };
        if network.mode == NetworkMode::Private && matches!(network.dns, DnsChoice::Servers(_)) {
            return Err(Conflict::PrivateDns { network: name.clone() });
        }
        let mac = host.gateway_mac(name);
        let ports = || config.ports.iter().filter(|(_, port)| port.network == *name);
        let has_gateway = network.mode == NetworkMode::Nat || subnet.is_some();
        if let Some((port, _)) = ports().find(|(port, settings)| has_gateway && host.mac(port, settings) == mac) {
            return Err(Conflict::GatewayMac { port: port.clone(), network: name.clone(), mac });
        }
        let fixed: Vec<_> = ports().filter_map(|(port, settings)| Some((port, settings.address?))).collect();
        let Some(subnet) = subnet else {
            return match unplaced(network, !fixed.is_empty()) {
                Some(what) => Err(Conflict::NeedsSubnet { network: name.clone(), what }),
                None => Ok(None),
            };
        };
        let address = network.gateway.unwrap_or_else(|| host_address(subnet, 1));
        let has_dns = network.mode == NetworkMode::Nat && network.dns != DnsChoice::Off;
        let gateway = GatewaySettings {
            subnet,
            address,
            mac,
            mtu: network.mtu.value_u16(),
            dhcp: network.dhcp != DhcpChoice::Off,
            dns: has_dns,
            host_access: network.host_access || host.offers_access(name),
        };
        check_targets(name, network, &gateway)?;
        gateway.check().map_err(|source| Conflict::Gateway { network: name.clone(), source })?;
        let dns = has_dns.then(|| DnsPlan::new(network, &gateway));
        let dhcp = gateway.dhcp.then(|| dhcp_settings(network, &gateway, &fixed));
        if let (Some((port, _)), None) = (fixed.first(), &dhcp) {
            return Err(Conflict::AddressWithoutDhcp { port: (*port).clone(), network: name.clone() });
        }
        dhcp.as_ref().map_or(Ok(()), DhcpSettings::check).map_err(|source| Conflict::Dhcp { network: name.clone(), source })?;
        Ok(Some(Self { gateway, dhcp, dns }))
    }
}

impl DnsPlan {
    fn new(network: &NetworkConfig, gateway: &GatewaySettings) -> Self {
        let settings = DnsSettings {
            subnet: gateway.subnet,
            gateway: gateway.address,
            domain: network.domain.clone(),
            mtu: gateway.mtu,
            cache_entries: DNS_CACHE_ENTRIES,
            cache_bytes: DNS_CACHE_BYTES,
        };
        let upstreams = match &network.dns {
            DnsChoice::Servers(servers) => Some(servers.clone()),
            DnsChoice::Auto | DnsChoice::Off => None,
        };
        Self { settings, upstreams }
    }
}

/// Checks that forwards lead to where guests can be.
fn check_targets(name: &Name, network: &NetworkConfig, gateway: &GatewaySettings) -> Result<(), Conflict> {
    let subnet = gateway.subnet;
    for rule in &network.forwards {
        let address = match &rule.to.host {
            ForwardHost::Address(address) => *address,
            // As it is called in DNS.
            ForwardHost::Name(name) if name.as_str() == "gateway" => gateway.address,
            ForwardHost::Name(_) => continue,
        };
        let why = match address {
            _ if !subnet.contains(address) => format!("its guests have addresses of {subnet}"),
            _ if address == gateway.address => "that is its gateway, which is weft itself".to_owned(),
            _ if address == subnet.broadcast() => format!("that is the broadcast address of {subnet}"),
            _ if address == subnet.network() => format!("that is the address of {subnet} itself"),
            _ => continue,
        };
        let (network, from, to) = (name.clone(), rule.from, rule.to.host.clone());
        return Err(Conflict::ForwardOutside { network, from, to, why });
    }
    Ok(())
}

/// What of a network names addresses, although it has no subnet.
fn unplaced(network: &NetworkConfig, fixed_ports: bool) -> Option<&'static str> {
    let said = [
        (network.gateway.is_some(), "a gateway"),
        (matches!(network.dhcp, DhcpChoice::Range(_)), "a range for DHCP"),
        (!network.leases.is_empty(), "static leases"),
        (network.forwards.iter().any(|rule| matches!(rule.to.host, ForwardHost::Address(_))), "forwards to addresses"),
        (fixed_ports, "ports with addresses"),
    ];
    said.iter().find(|(is_said, _)| *is_said).map(|(_, what)| *what)
}

fn dhcp_settings(network: &NetworkConfig, gateway: &GatewaySettings, fixed: &[(&Name, Ipv4Addr)]) -> DhcpSettings {
    let &GatewaySettings { subnet, address, mac, mtu, .. } = gateway;
    let pool = match network.dhcp {
        DhcpChoice::Range(range) => range,
        DhcpChoice::Auto | DhcpChoice::Off => usual_pool(subnet),
    };
    let of_port = |(port, address): &(&Name, Ipv4Addr)| Reservation {
        owner: ReservationOwner::Port(port.to_string()),
        address: *address,
        hostname: None,
    };
    DhcpSettings {
        reservations: network.leases.iter().map(StaticLease::reservation).chain(fixed.iter().map(of_port)).collect(),
        lease_time: Duration::from_secs(network.lease_seconds.value().into()),
        router: (network.mode == NetworkMode::Nat).then_some(address),
        dns: if gateway.dns { vec![address] } else { Vec::new() },
        domain: Some(network.domain.clone()),
        search: vec![network.domain.clone()],
        mtu,
        ..DhcpSettings::new(subnet, address, mac, pool)
    }
}

/// The addresses that are given out if nothing else is said.
fn usual_pool(subnet: Subnet) -> AddressRange {
    let len = subnet.broadcast().to_bits() - subnet.network().to_bits() + 1;
    let first = host_address(subnet, if len >= LARGE { LEFT_ALONE } else { 1 });
    let last = subnet.broadcast().to_bits() - 1;
    let last = last.min(first.to_bits() + (AddressRange::LEN_MAX - 1));
    AddressRange::new(first, Ipv4Addr::from_bits(last))
        .expect("a subnet has two hosts at least, and the range is no longer than one can be")
}

/// The subnet's address of this number.
fn host_address(subnet: Subnet, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.network().to_bits() + number)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::PortConfig;

    fn plan(text: &str, subnet: &str) -> Option<GatewayPlan> {
        let config: Config = toml::from_str(text).unwrap();
        let host = Host::new(Path::new("/run/weft"), "test");
        GatewayPlan::new(&"lab".parse().unwrap(), &config, &host, subnet.parse().ok()).unwrap()
    }

    #[test]
    fn a_network_with_a_way_out_has_everything() {
        let plan = plan("[networks.lab]\n", "10.77.0.0/24").unwrap();
        let gateway = Ipv4Addr::new(10, 77, 0, 1);
        let dhcp = plan.dhcp.unwrap();
        assert_eq!((plan.gateway.address, dhcp.server, dhcp.router), (gateway, gateway, Some(gateway)));
        assert_eq!((dhcp.pool.to_string().as_str(), dhcp.dns), ("10.77.0.10-10.77.0.254", vec![gateway]));
        assert_eq!(dhcp.search, ["weft.internal".parse().unwrap()]);
        assert_eq!(plan.dns.unwrap().upstreams, None);
    }

    #[test]
    fn pools_fit_into_small_and_large_subnets() {
        for (subnet, pool) in [
            ("10.77.0.0/30", "10.77.0.1-10.77.0.2"),
            ("10.77.0.0/25", "10.77.0.1-10.77.0.126"),
            ("10.77.0.0/16", "10.77.0.10-10.77.255.254"),
            ("10.0.0.0/8", "10.0.0.10-10.1.0.9"),
        ] {
            let dhcp = plan("[networks.lab]\n", subnet).unwrap().dhcp.unwrap();
            assert_eq!(dhcp.pool.to_string(), pool);
        }
    }

    #[test]
    fn guests_of_a_private_network_are_told_no_way_out() {
        assert_eq!(plan("[networks.lab]\nmode = \"private\"\n", ""), None);
        let plan = plan("[networks.lab]\nmode = \"private\"\nsubnet = \"10.77.0.0/24\"\n", "10.77.0.0/24").unwrap();
        let dhcp = plan.dhcp.unwrap();
        assert_eq!((dhcp.router, dhcp.dns, plan.dns, plan.gateway.dns), (None, vec![], None, false));
    }

    #[test]
    fn addresses_are_kept_for_clients_and_for_ports() {
        let text = "[networks.lab]\nleases = [{ address = \"10.77.0.9\", client_id = \"01:02\", hostname = \"web\" }]\n\
            [ports.db]\nnetwork = \"lab\"\naddress = \"10.77.0.8\"\n[ports.other]\naddress = \"10.77.0.7\"\n";
        let reservations = plan(text, "10.77.0.0/24").unwrap().dhcp.unwrap().reservations;
        let shown: Vec<_> = reservations.iter().map(|reservation| reservation.address.to_string()).collect();
        assert_eq!(shown, ["10.77.0.9", "10.77.0.8"]);
        assert_eq!(reservations[1].owner, ReservationOwner::Port("db".to_owned()));
        assert_eq!(PortConfig::default().address, None);
    }
}
