//! The decision about one frame.

use crate::{DropReason, EthernetHeader, Fdb, Learned, PortId, Timestamp};

/// What is to happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver to one port, or to the network's gateway ([`PortId::GATEWAY`]).
    To(PortId),
    /// Deliver to every port of the network but the one it came from.
    Flood,
    /// Deliver to nobody.
    Drop(DropReason),
}

/// Learns where the frame came from and decides where it goes (IEEE 802.1Q-2018, 8.6 and 8.7).
///
/// `fdb` belongs to the network of `ingress`, so a verdict never names a port of another network. A frame is never
/// sent back to where it came from.
#[inline(always)]
pub fn forward(now: Timestamp, ingress: PortId, header: &EthernetHeader, fdb: &Fdb) -> Verdict {
    decide(ingress, header, &mut Live { now, fdb })
}

/// What [`forward`] would say now, and what would be learned; nothing is learned or counted.
#[must_use]
pub fn foresee(now: Timestamp, ingress: PortId, header: &EthernetHeader, fdb: &Fdb) -> (Verdict, Option<Learned>) {
    let mut table = Foreseen { now, fdb, learned: None };
    (decide(ingress, header, &mut table), table.learned)
}

/// What a decision asks a forwarding database. A trait, because closures would not be inlined.
trait Table {
    fn learn(&mut self, header: &EthernetHeader, ingress: PortId) -> Learned;
    fn lookup(&mut self, header: &EthernetHeader, ingress: PortId) -> Option<PortId>;
}

struct Live<'a> {
    now: Timestamp,
    fdb: &'a Fdb,
}

struct Foreseen<'a> {
    now: Timestamp,
    fdb: &'a Fdb,
    learned: Option<Learned>,
}

impl Table for Live<'_> {
    #[inline(always)]
    fn learn(&mut self, header: &EthernetHeader, ingress: PortId) -> Learned {
        self.fdb.learn(self.now, header.source, ingress)
    }

    #[inline(always)]
    fn lookup(&mut self, header: &EthernetHeader, _: PortId) -> Option<PortId> {
        self.fdb.lookup(self.now, header.destination)
    }
}

impl Table for Foreseen<'_> {
    fn learn(&mut self, header: &EthernetHeader, ingress: PortId) -> Learned {
        *self.learned.insert(self.fdb.foresee(self.now, header.source, ingress))
    }

    fn lookup(&mut self, header: &EthernetHeader, ingress: PortId) -> Option<PortId> {
        // A station that would just have been learned would be found.
        let is_itself = header.destination == header.source && matches!(self.learned, Some(Learned::New | Learned::Moved(_)));
        if is_itself { Some(ingress) } else { self.fdb.lookup(self.now, header.destination) }
    }
}

#[inline(always)]
fn decide(ingress: PortId, header: &EthernetHeader, table: &mut impl Table) -> Verdict {
    if header.source.is_multicast() || header.source.is_zero() {
        return Verdict::Drop(DropReason::BadSource);
    }
    let learned = table.learn(header, ingress);
    if learned != Learned::Known
        && let Some(reason) = learned.drop_reason()
    {
        return Verdict::Drop(reason);
    }
    if header.destination.is_multicast() {
        if header.destination.is_link_local() {
            return Verdict::Drop(DropReason::LinkLocal);
        }
        return Verdict::Flood;
    }
    match table.lookup(header, ingress) {
        Some(port) if port == ingress => Verdict::Drop(DropReason::SamePort),
        Some(port) => Verdict::To(port),
        None => Verdict::Flood,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::{FdbSettings, MacAddr};

    const A: PortId = PortId(0);
    const B: PortId = PortId(1);
    const MAC_A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
    const MAC_B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
    const NOW: Timestamp = Timestamp::from_millis(5_000);

    fn fdb() -> Fdb {
        Fdb::new(FdbSettings::new(64, Duration::from_secs(300)), &Arc::default())
    }

    fn frame(source: MacAddr, destination: MacAddr) -> EthernetHeader {
        EthernetHeader { destination: destination.into(), source: source.into() }
    }

    #[test]
    fn an_unknown_destination_is_flooded_and_a_learned_one_is_not() {
        let fdb = fdb();
        assert_eq!(forward(NOW, A, &frame(MAC_A, MAC_B), &fdb), Verdict::Flood);
        assert_eq!(forward(NOW, B, &frame(MAC_B, MAC_A), &fdb), Verdict::To(A));
        assert_eq!(forward(NOW, A, &frame(MAC_A, MAC_B), &fdb), Verdict::To(B));
    }

    #[test]
    fn a_frame_never_goes_back_to_where_it_came_from() {
        let fdb = fdb();
        forward(NOW, A, &frame(MAC_A, MacAddr::BROADCAST), &fdb);
        forward(NOW, A, &frame(MAC_B, MacAddr::BROADCAST), &fdb);
        assert_eq!(forward(NOW, A, &frame(MAC_A, MAC_B), &fdb), Verdict::Drop(DropReason::SamePort));
        assert_eq!(forward(NOW, A, &frame(MAC_A, MAC_A), &fdb), Verdict::Drop(DropReason::SamePort));
    }

    #[test]
    fn broadcast_and_multicast_are_flooded() {
        let fdb = fdb();
        assert_eq!(forward(NOW, A, &frame(MAC_A, MacAddr::BROADCAST), &fdb), Verdict::Flood);
        assert_eq!(forward(NOW, A, &frame(MAC_A, MacAddr([0x33, 0x33, 0, 0, 0, 1])), &fdb), Verdict::Flood);
    }

    #[test]
    fn frames_for_the_bridge_group_are_not_forwarded_but_their_sender_is_learned() {
        let fdb = fdb();
        let lldp = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0e]);
        assert_eq!(forward(NOW, A, &frame(MAC_A, lldp), &fdb), Verdict::Drop(DropReason::LinkLocal));
        assert_eq!(forward(NOW, B, &frame(MAC_B, MAC_A), &fdb), Verdict::To(A));
    }

    #[test]
    fn frames_for_the_gateway_go_there_and_nobody_else_can_have_its_address() {
        let fdb = fdb();
        fdb.reserve(MAC_B, PortId::GATEWAY);
        assert_eq!(forward(NOW, A, &frame(MAC_A, MAC_B), &fdb), Verdict::To(PortId::GATEWAY));
        assert_eq!(forward(NOW, A, &frame(MAC_B, MAC_A), &fdb), Verdict::Drop(DropReason::GatewayClaimed));
        assert_eq!(forward(NOW, A, &frame(MAC_A, MAC_B), &fdb), Verdict::To(PortId::GATEWAY));
    }

    #[test]
    fn a_source_that_no_station_can_own_is_dropped_and_not_learned() {
        let fdb = fdb();
        for source in [MacAddr::BROADCAST, MacAddr([1, 0, 0, 0, 0, 1]), MacAddr([0; 6])] {
            assert_eq!(forward(NOW, A, &frame(source, MAC_B), &fdb), Verdict::Drop(DropReason::BadSource));
        }
        assert_eq!(fdb.len(), 0);
    }
}
