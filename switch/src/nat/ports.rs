//! Which outside port an inside endpoint gets.

use std::hash::BuildHasher;
use std::net::SocketAddrV4;

/// How many ports are tried before the kernel chooses.
pub const CANDIDATES: usize = 8;
/// Ports below are the host's own: what listens there, or is to be forwarded from there, can't be taken away by a guest (IANA's dynamic ports begin at 49152, Linux's at
/// 32768).
const DYNAMIC: u16 = 32_768;

/// The ports to try for an inside endpoint, best first: its own if that is a dynamic one, then others with the same parity (RFC 4787, REQ-4). The same endpoint always
/// gets the same ones from a `hasher` (REQ-11), and nobody else can know them (RFC 6056). Identifiers of ICMP echo are ports, too.
pub fn candidates(inside: SocketAddrV4, hasher: &impl BuildHasher) -> impl Iterator<Item = u16> {
    let own = Some(inside.port()).filter(|port| *port >= DYNAMIC);
    let others = (0..CANDIDATES).map(move |nth| {
        let places = u64::from(u16::MAX - DYNAMIC).div_ceil(2);
        // No truncation: there are fewer places than ports.
        let place = (hasher.hash_one((inside, nth)) % places) as u16;
        (DYNAMIC + place * 2) | (inside.port() & 1)
    });
    own.into_iter().chain(others).take(CANDIDATES)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn of(port: u16) -> Vec<u16> {
        let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
        candidates(SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 10), port), &hasher).collect()
    }

    #[test]
    fn a_dynamic_port_is_kept_and_its_parity_otherwise_rfc_4787_req_4() {
        for port in [50_000, 50_001, 32_768, u16::MAX, 32_767, 53, 68, 0] {
            let ports = of(port);
            assert_eq!(ports.len(), CANDIDATES);
            assert!(ports.iter().all(|other| other % 2 == port % 2 && *other >= 32_768), "{port}: {ports:?}");
            assert_eq!(ports[0] == port, port >= 32_768);
        }
    }

    #[test]
    fn the_same_endpoint_gets_the_same_ports_rfc_4787_req_11() {
        assert_eq!(of(53), of(53));
        assert_ne!(of(53), of(55));
    }
}
