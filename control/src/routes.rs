//! The routes of this host, so that no network gets addresses by which the host reaches something else.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use weft_switch::Subnet;

/// Where the kernel tells its IPv4 routes (proc_pid_net(5)): those of the main table.
const ROUTES: &str = "/proc/net/route";
/// Shorter prefixes are ways to everywhere (some VPNs have two, of one bit each), and lead to no network in particular.
const PREFIX_LEN_MIN: u8 = 8;

/// A route of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub to: Ipv4Net,
    /// The interface.
    pub device: String,
}

/// The routes of this host; none where the kernel doesn't tell.
#[must_use]
pub fn of_this_host() -> Vec<Route> {
    match std::fs::read_to_string(Path::new(ROUTES)) {
        Ok(text) => parse(&text),
        Err(error) => {
            tracing::warn!("cannot read {ROUTES}, so subnets are not compared with this host's routes: {error}");
            Vec::new()
        }
    }
}

/// The route with which a subnet overlaps.
#[must_use]
pub fn overlapping(subnet: Subnet, routes: &[Route]) -> Option<&Route> {
    routes.iter().find(|route| overlap(net(subnet), route.to))
}

/// A subnet that overlaps with none of these routes and subnets, if there is one among those that weft would choose.
#[must_use]
pub fn free_subnet(routes: &[Route], taken: &[Subnet]) -> Option<Subnet> {
    let third = |first, second| (0..=255).map(move |third| Ipv4Addr::new(first, second, third, 0));
    // Rarely used parts of the private addresses (RFC 1918).
    let candidates = third(10, 77).chain(third(172, 30)).chain(third(192, 168).skip(77)).chain(third(10, 212));
    candidates.filter_map(|network| Subnet::new(network, 24).ok()).find(|subnet| is_free(*subnet, routes, taken))
}

/// True if a subnet overlaps with none of these routes and subnets.
#[must_use]
pub fn is_free(subnet: Subnet, routes: &[Route], taken: &[Subnet]) -> bool {
    overlapping(subnet, routes).is_none() && !taken.iter().any(|other| overlap(net(subnet), net(*other)))
}

fn net(subnet: Subnet) -> Ipv4Net {
    Ipv4Net::new_assert(subnet.network(), subnet.prefix_len())
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The routes in the text of `/proc/net/route`: hexadecimal numbers in the host's byte order. Ways to everywhere are left out.
fn parse(text: &str) -> Vec<Route> {
    let address = |word: &str| u32::from_str_radix(word, 16).ok().map(|number| Ipv4Addr::from(number.to_ne_bytes()));
    let route = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (device, to, mask) = (words.first()?, address(words.get(1)?)?, address(words.get(7)?)?);
        let to = Ipv4Net::with_netmask(to, mask).ok()?;
        (to.prefix_len() >= PREFIX_LEN_MIN).then(|| Route { to: to.trunc(), device: (*device).to_owned() })
    };
    text.lines().skip(1).filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(to: &str) -> Route {
        Route { to: to.parse().unwrap(), device: "eth0".to_owned() }
    }

    #[test]
    fn routes_are_read_and_ways_to_everywhere_are_left_out() {
        let number = |address: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(address));
        let line = |to, mask| format!("eth0\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", number(to), number(mask));
        let text = [
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n".to_owned(),
            line([0, 0, 0, 0], [0, 0, 0, 0]),
            line([128, 0, 0, 0], [128, 0, 0, 0]),
            line([192, 0, 2, 0], [255, 255, 255, 0]),
            line([10, 0, 0, 0], [255, 0, 0, 0]),
            "eth0\tnonsense\n".to_owned(),
        ]
        .concat();
        assert_eq!(parse(&text), [route("192.0.2.0/24"), route("10.0.0.0/8")]);
    }

    #[test]
    fn a_subnet_is_free_if_neither_a_route_nor_another_network_has_any_of_it() {
        let free = |routes: &[Route], taken: &[Subnet]| free_subnet(routes, taken).map(|subnet| subnet.to_string());
        assert_eq!(free(&[], &[]).unwrap(), "10.77.0.0/24");
        assert_eq!(free(&[route("10.77.0.128/25")], &["10.77.0.0/23".parse().unwrap()]).unwrap(), "10.77.2.0/24");
        let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"].map(route);
        assert_eq!(free(&private[..1], &[]).unwrap(), "172.30.0.0/24");
        assert_eq!(free(&private[..2], &[]).unwrap(), "192.168.77.0/24");
        assert_eq!(free(&private, &[]), None);
        let subnet = "10.77.0.0/24".parse().unwrap();
        assert_eq!(overlapping(subnet, &private), Some(&private[0]));
        assert_eq!(overlapping(subnet, &private[1..]), None);
    }
}
