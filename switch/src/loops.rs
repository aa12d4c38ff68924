//! Loops: a guest that connects two of its ports brings back whatever goes to both.
//!
//! # Theory
//!
//! What is sent to all ports of a network comes back through such a guest, is sent to all again, and never ends. It shows at once: every address is heard behind
//! one port, then behind another ([`crate::Flap`]). But addresses also move where two guests have the same one, so ports are only *suspected* then: for a while each of
//! the two is sent a probe, which says nothing to a guest and which a bridge passes on as it does any frame for many. A probe that comes in by another port proves
//! the loop, and the port by which it came is paused: nothing goes in or out there but probes, which show when the loop has gone. Nothing is ever sent where nobody is
//! suspected.
//!
//! A guest knows only the probes that it was sent, and each can be answered for a few seconds. So it can have a port paused only by sending there itself what another
//! port was sent, and has to be behind both, or to be helped by who is. It can hide a loop of its own by not passing the probes on, or by drowning them in some that it has made up:
//! then it keeps up its own storm, which is what limits for storms are for.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{EthernetHeader, PortId, Timestamp};

/// A probe's bytes, without FCS: the least that Ethernet takes.
pub const PROBE_LEN: usize = 60;
/// How often suspected ports are sent a probe.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long they are suspected, and how long a port stays paused after the last probe that came back.
const SUSPICION: Duration = Duration::from_secs(10);
/// How long an answer to a probe is taken.
const VALIDITY: Duration = Duration::from_secs(5);
/// The most probes of a round. Where more ports are suspected, rounds follow each other faster, and each port has its turn.
const PROBES: usize = 64;

/// A group address of weft's own, which bridges pass on (IEEE 802.1Q-2018, 8.6.3 has those that they don't).
const DESTINATION: [u8; 6] = [0x03, b'w', b'e', b'f', b't', 0];
/// For local experiments (IEEE 802-2014, 9.2.4).
const ETHER_TYPE: [u8; 2] = [0x88, 0xb6];

/// What to do about loops.
#[derive(Debug, Default)]
pub struct LoopWatch {
    /// Until when.
    suspects: BTreeMap<PortId, Timestamp>,
    paused: BTreeMap<PortId, Paused>,
    /// Probes that may come back: to which port they went, and when.
    probes: BTreeMap<u64, (PortId, Timestamp)>,
    next: Timestamp,
    /// The ports after this one are next.
    last: Option<PortId>,
}

#[derive(Clone, Copy, Debug)]
struct Paused {
    /// The port by which the probe left.
    other: PortId,
    /// When the last probe came back.
    seen: Timestamp,
}

/// What is due.
#[derive(Debug, Default)]
pub struct LoopRound {
    /// Where probes go, with what is in them.
    pub probes: Vec<(PortId, u64)>,
    /// Ports that are in no loop any more.
    pub resumed: Vec<PortId>,
}

impl LoopWatch {
    /// An address has moved between these ports too often.
    pub fn suspect(&mut self, now: Timestamp, ports: [PortId; 2]) {
        for port in ports {
            self.suspects.insert(port, now.after(SUSPICION));
        }
    }

    /// A probe has come in by `port`. Returns the port at the loop's other end if `port` is to be paused now.
    pub fn came_back(&mut self, now: Timestamp, port: PortId, token: u64) -> Option<PortId> {
        let (other, sent) = self.probes.get(&token).copied()?;
        if now.since(sent) > VALIDITY {
            return None;
        }
        // Either end shows that the loop is still there.
        if let Some(paused) = [port, other].into_iter().find(|end| self.paused.contains_key(end)) {
            self.paused.entry(paused).and_modify(|paused| paused.seen = now);
            return None;
        }
        self.paused.insert(port, Paused { other, seen: now });
        Some(other)
    }

    /// What is due, if anything is. `random` gives tokens that nobody can guess.
    pub fn round(&mut self, now: Timestamp, mut random: impl FnMut() -> u64) -> LoopRound {
        let mut round = LoopRound::default();
        if self.is_idle() || now < self.next {
            return round;
        }
        self.suspects.retain(|_, until| *until > now);
        self.probes.retain(|_, (_, sent)| now.since(*sent) <= VALIDITY);
        let over = |paused: &Paused| now.since(paused.seen) > SUSPICION;
        round.resumed = self.paused.iter().filter(|(_, paused)| over(paused)).map(|(port, _)| *port).collect();
        for port in &round.resumed {
            if let Some(Paused { other, .. }) = self.paused.remove(port) {
                // If it begins again, that is to be seen soon.
                self.suspect(now, [*port, other]);
            }
        }
        let paused = self.paused.iter().flat_map(|(port, paused)| [*port, paused.other]);
        let mut ports: Vec<_> = self.suspects.keys().copied().chain(paused).collect();
        ports.sort_unstable();
        ports.dedup();
        let rounds = u32::try_from(ports.len().div_ceil(PROBES)).unwrap_or(u32::MAX).max(1);
        self.next = now.after(INTERVAL / rounds);
        let behind = ports.partition_point(|port| Some(*port) <= self.last);
        ports.rotate_left(behind);
        ports.truncate(PROBES);
        self.last = ports.last().copied();
        for port in ports {
            let token = random();
            self.probes.insert(token, (port, now));
            round.probes.push((port, token));
        }
        round
    }

    /// True if nobody is suspected and no port is paused.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.suspects.is_empty() && self.paused.is_empty()
    }

    /// When the next round is due, if one is.
    #[must_use]
    pub fn next_round(&self) -> Option<Timestamp> {
        (!self.is_idle()).then_some(self.next)
    }

    /// With which port this one is in a loop, if it is paused for that.
    #[must_use]
    pub fn paused(&self, port: PortId) -> Option<PortId> {
        self.paused.get(&port).map(|paused| paused.other)
    }

    /// A port has gone. One that was paused because of it goes on when its time has come.
    pub fn forget(&mut self, port: PortId) {
        self.suspects.remove(&port);
        self.paused.remove(&port);
        self.probes.retain(|_, (sent_to, _)| *sent_to != port);
    }
}

/// A probe for a port.
#[must_use]
pub fn probe(port: PortId, token: u64) -> [u8; PROBE_LEN] {
    let [high, low] = port.0.to_be_bytes();
    let source = [0x02, b'w', b'e', b'f', high, low];
    let mut frame = [0; PROBE_LEN];
    let parts = [&DESTINATION[..], &source, &ETHER_TYPE, &token.to_be_bytes()].concat();
    frame[..parts.len()].copy_from_slice(&parts);
    frame
}

/// True for the header of a probe, whoever sent it.
#[inline]
#[must_use]
pub fn is_probe(header: &[u8; EthernetHeader::LEN]) -> bool {
    header[..6] == DESTINATION && header[12..] == ETHER_TYPE
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PortId = PortId(3);
    const B: PortId = PortId(7);
    const C: PortId = PortId(9);

    struct Bench {
        watch: LoopWatch,
        now: Timestamp,
        tokens: u64,
    }

    impl Bench {
        fn suspecting() -> Self {
            let mut bench = Self { watch: LoopWatch::default(), now: Timestamp::from_millis(1000), tokens: 0 };
            bench.watch.suspect(bench.now, [A, B]);
            bench
        }

        fn round(&mut self) -> LoopRound {
            let tokens = &mut self.tokens;
            self.watch.round(self.now, || {
                *tokens += 1;
                *tokens
            })
        }

        fn pass(&mut self, seconds: u64) {
            self.now = self.now.after(Duration::from_secs(seconds));
        }
    }

    #[test]
    fn nothing_is_sent_where_nobody_is_suspected() {
        let mut watch = LoopWatch::default();
        assert!(watch.is_idle() && watch.next_round().is_none());
        assert!(watch.round(Timestamp::from_millis(5000), || 1).probes.is_empty());
    }

    #[test]
    fn suspected_ports_are_sent_a_probe_a_second_for_a_while() {
        let mut bench = Bench::suspecting();
        let mut sent = Vec::new();
        for _ in 0..20 {
            sent.extend(bench.round().probes.into_iter().map(|(port, _)| port));
            assert!(bench.round().probes.is_empty(), "not twice in a second");
            bench.pass(1);
        }
        assert_eq!((sent.len(), sent.iter().filter(|port| **port == A).count()), (20, 10));
        assert!(bench.watch.is_idle());
    }

    #[test]
    fn a_port_is_paused_while_probes_come_back_and_goes_on_afterwards() {
        let mut bench = Bench::suspecting();
        let probes = bench.round().probes;
        assert_eq!(bench.watch.came_back(bench.now, B, probes[0].1), Some(A));
        assert_eq!((bench.watch.paused(B), bench.watch.paused(A)), (Some(A), None));
        // The other half of the loop is no news.
        assert_eq!(bench.watch.came_back(bench.now, A, probes[1].1), None);
        for _ in 0..60 {
            bench.pass(1);
            let round = bench.round();
            assert_eq!((round.resumed.len(), round.probes.len()), (0, 2));
            assert_eq!(bench.watch.came_back(bench.now, A, round.probes[1].1), None);
        }
        bench.pass(10);
        assert!(bench.round().resumed.is_empty());
        bench.pass(1);
        let round = bench.round();
        assert_eq!((round.resumed, round.probes.len()), (vec![B], 2), "it is watched for some time");
        assert_eq!(bench.watch.paused(B), None);
    }

    #[test]
    fn what_is_no_probe_of_ours_or_an_old_one_pauses_nobody() {
        let mut bench = Bench::suspecting();
        let token = bench.round().probes[0].1;
        assert_eq!(bench.watch.came_back(bench.now, C, token + 100), None);
        bench.pass(6);
        assert_eq!(bench.watch.came_back(bench.now, B, token), None);
        assert!([A, B, C].into_iter().all(|port| bench.watch.paused(port).is_none()));
    }

    #[test]
    fn who_sends_back_its_own_probe_pauses_itself() {
        let mut bench = Bench::suspecting();
        let token = bench.round().probes[0].1;
        assert_eq!(bench.watch.came_back(bench.now, A, token), Some(A));
    }

    #[test]
    fn probes_are_bounded_whoever_is_suspected_and_ports_that_have_gone_are_forgotten() {
        let (mut watch, mut token, mut probed) = (LoopWatch::default(), 0, Vec::new());
        (0..1000).for_each(|port| watch.suspect(Timestamp::default(), [PortId(port), PortId(port + 1)]));
        for milli in 0..1000 {
            let round = watch.round(Timestamp::from_millis(milli), || {
                token += 1;
                token
            });
            assert!(round.probes.len() <= PROBES);
            probed.extend(round.probes);
        }
        let mut ports: Vec<_> = probed.iter().map(|(port, _)| port.0).collect();
        ports.truncate(1001);
        ports.sort_unstable();
        assert_eq!(ports, (0..=1000).collect::<Vec<_>>(), "each has had its turn in a second, whoever else is suspected");
        assert!(probed.len() < 1001 + 2 * PROBES);
        assert_eq!(watch.came_back(Timestamp::default(), PortId(1), probed[0].1), Some(PortId(0)));
        (0..=1000).for_each(|port| watch.forget(PortId(port)));
        assert!(watch.is_idle() && watch.probes.is_empty());
    }

    #[test]
    fn a_probe_is_told_by_its_header_and_says_nothing_of_the_switch_but_its_token() {
        let frame = probe(A, 0x0102_0304_0506_0708);
        assert!(is_probe(frame.first_chunk().unwrap()));
        assert_eq!(frame[14..22], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(frame[22..].iter().all(|byte| *byte == 0));
        assert!(!is_probe(&[0xff; 14]));
    }
}
