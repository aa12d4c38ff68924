//! What this host lets weft do for guests of networks with a way out: sockets may be kept from a process by its service manager, and ping by the
//! kernel.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

/// What stands in the way of all traffic with the outside, as a sentence with the way out; `None` if nothing does.
#[must_use]
pub fn doubt() -> Option<String> {
    ipv4().err().map(no_ipv4)
}

/// Whether guests' pings can go outside.
///
/// # Errors
/// A sentence with the way out, when they can't.
pub fn ping() -> Result<(), String> {
    ipv4().map_err(no_ipv4)?;
    let opened = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::ICMP));
    opened.map(drop).map_err(no_ping)
}

fn ipv4() -> Result<(), Errno> {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map(drop)
}

fn no_ipv4(error: Errno) -> String {
    format!(
        "weft can't open IPv4 sockets, so guests reach nothing outside and nothing is forwarded to them: {error}; in a service unit, \
         RestrictAddressFamilies= has to name AF_INET"
    )
}

fn no_ping(error: Errno) -> String {
    format!("this host does not let weft send pings ({error}): sysctl -w net.ipv4.ping_group_range=\"0 2147483647\" does")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_way_has_a_way_out() {
        let message = no_ipv4(Errno::AFNOSUPPORT);
        assert!(message.contains("Address family not supported") && message.contains("AF_INET"), "{message}");
        assert!(no_ping(Errno::ACCESS).contains("ping_group_range"));
    }
}
