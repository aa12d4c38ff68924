//! The host's resolver configuration, resolv.conf(5), as far as it names servers.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::UPSTREAMS_MAX;

const PORT: u16 = 53;

/// The servers that a text in the format of resolv.conf(5) names, in their order, each once. Lines that can't be read are skipped, as the
/// C library does. An IPv6 address may have a scope, which must be a number.
#[must_use]
pub fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(server) = words.next().and_then(parse_server)
            && !servers.contains(&server)
            && servers.len() < UPSTREAMS_MAX
        {
            servers.push(server);
        }
    }
    servers
}

fn parse_server(word: &str) -> Option<SocketAddr> {
    let server = match word.split_once('%') {
        Some((address, scope)) => {
            let (address, scope): (Ipv6Addr, u32) = (address.parse().ok()?, scope.parse().ok()?);
            SocketAddrV6::new(address, PORT, 0, scope).into()
        }
        None => SocketAddr::new(word.parse::<IpAddr>().ok()?, PORT),
    };
    (!server.ip().is_unspecified() && !server.ip().is_multicast()).then_some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_taken_in_their_order_and_the_rest_is_skipped() {
        let text = "# made by hand\nsearch example.com\nnameserver 192.0.2.1\n\tnameserver\t2001:db8::1  \nnameserver 192.0.2.1\n\
            nameserver fe80::1%3\nnameserver fe80::1%eth0\nnameserver\nnameserver example.com\n;nameserver 192.0.2.9\n\
            nameserver 0.0.0.0\nnameserver 127.0.0.53 # local\noptions edns0";
        let servers: Vec<_> = parse_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%3]:53", "127.0.0.53:53"]);
    }

    #[test]
    fn there_may_be_none_and_not_too_many() {
        assert_eq!(parse_resolv_conf(""), []);
        let many: String = (0..100).map(|last| format!("nameserver 192.0.2.{last}\n")).collect();
        assert_eq!(parse_resolv_conf(&many).len(), UPSTREAMS_MAX);
    }
}
