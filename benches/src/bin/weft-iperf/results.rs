//! Samples, and the medians and ratios that come of them.

use serde::Serialize;

use crate::measure::Rate;
use crate::plan::{BackEnd, Case, Direction, Load, Protocol, Setting, Table};

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    #[serde(flatten)]
    pub(crate) table: Table,
    #[serde(flatten)]
    pub(crate) case: Case,
    pub(crate) back_end: BackEnd,
    /// Counted from 1.
    pub(crate) round: u32,
    #[serde(flatten)]
    pub(crate) rate: Rate,
    /// Cores that the back-end kept busy.
    pub(crate) back_end_cores: Option<f64>,
}

/// Something that has no figure, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Missing {
    #[serde(flatten)]
    pub(crate) table: Option<Table>,
    #[serde(flatten)]
    pub(crate) load: Option<Load>,
    pub(crate) back_end: BackEnd,
    pub(crate) reason: String,
    /// It should have worked.
    pub(crate) failed: bool,
}

/// A back-end that takes part.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Contender {
    pub(crate) back_end: BackEnd,
    pub(crate) about: String,
}

/// Everything that a run has found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: String,
    pub(crate) rounds: u32,
    pub(crate) seconds: u64,
    pub(crate) congestion: String,
    pub(crate) contenders: Vec<Contender>,
    pub(crate) missing: Vec<Missing>,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) targets: Vec<Target>,
    pub(crate) samples: Vec<Sample>,
}

/// What the samples of one back-end for one line of a table come to: medians.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) table: Table,
    #[serde(flatten)]
    pub(crate) case: Case,
    pub(crate) back_end: BackEnd,
    pub(crate) rounds: usize,
    /// Gbit/s, or connections a second.
    pub(crate) speed: f64,
    pub(crate) lost_percent: Option<f64>,
    pub(crate) retransmits: Option<f64>,
    pub(crate) back_end_cores: Option<f64>,
    /// The first back-end of the table, divided by this one in the same round.
    pub(crate) first_is_faster: Option<f64>,
}

/// What the project wants to see.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) wanted: f64,
    pub(crate) found: f64,
}

/// The targets: setting, peer, and how many times faster weft is to be with one TCP stream at an MTU of 1500.
const TARGETS: [(Setting, BackEnd, f64); 3] = [
    (Setting::Native, BackEnd::TestpmdTso, 1.2),
    (Setting::Native, BackEnd::Testpmd, 6.0),
    (Setting::Qemu, BackEnd::OvsDpdk, 3.0),
];

/// The targets of the NAT: MTU, and how many times as fast as the other's better direction weft's worse one is to be (the same direction at the
/// largest MTU).
const WAYS_OUT: [(u16, f64); 2] = [(1500, 3.0), (65_520, 1.0)];
const NAT_PEER: BackEnd = BackEnd::Passt;

impl Results {
    /// Works out medians and ratios.
    pub(crate) fn conclude(&mut self) {
        let mut outcomes: Vec<Outcome> = Vec::new();
        for sample in &self.samples {
            let is_known = |outcome: &Outcome| (outcome.table, outcome.case, outcome.back_end) == sample.key();
            if !outcomes.iter().any(is_known) {
                outcomes.extend(self.outcome(sample));
            }
        }
        self.outcomes = outcomes;
        let stacks = TARGETS.iter().filter_map(|&(setting, peer, wanted)| self.target(setting, peer, wanted));
        let ways_out = WAYS_OUT.iter().filter_map(|&(mtu, wanted)| self.way_out(mtu, wanted));
        let connections = WAYS_OUT.iter().filter_map(|&(mtu, _)| self.connections(mtu));
        self.targets = stacks.chain(ways_out).chain(connections).collect();
    }

    pub(crate) fn find(&self, table: Table, case: Case, back_end: BackEnd) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| (outcome.table, outcome.case, outcome.back_end) == (table, case, back_end))
    }

    pub(crate) fn has_failures(&self) -> bool {
        self.missing.iter().any(|missing| missing.failed)
    }

    fn of(&self, key: (Table, Case, BackEnd)) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.key() == key)
    }

    fn outcome(&self, of: &Sample) -> Option<Outcome> {
        let (table, case, back_end) = of.key();
        let first = table.setting.back_ends()[0];
        let ratios = self.of(of.key()).filter_map(|sample| {
            let other = self.of((table, case, first)).find(|other| other.round == sample.round)?;
            Some(other.rate.speed() / sample.rate.speed())
        });
        Some(Outcome {
            table,
            case,
            back_end,
            rounds: self.of(of.key()).count(),
            speed: median(self.of(of.key()).map(|sample| sample.rate.speed()))?,
            lost_percent: median(self.of(of.key()).filter_map(|sample| sample.rate.lost_percent)),
            retransmits: median(self.of(of.key()).filter_map(|sample| sample.rate.retransmits).map(|count| count as f64)),
            back_end_cores: median(self.of(of.key()).filter_map(|sample| sample.back_end_cores)),
            first_is_faster: median(ratios),
        })
    }

    /// The worse of both directions, if there are two.
    fn target(&self, setting: Setting, peer: BackEnd, wanted: f64) -> Option<Target> {
        let table = Table { setting, mtu: 1500 };
        let load = Load { protocol: Protocol::Tcp, streams: 1, datagram: None };
        let ratios = [Direction::Forward, Direction::Back]
            .into_iter()
            .filter_map(|direction| self.find(table, Case { load, direction }, peer)?.first_is_faster);
        let found = ratios.reduce(f64::min)?;
        Some(Target { what: format!("{}, one TCP stream: weft against {}", table.title(), peer.name()), wanted, found })
    }
}

impl Results {
    fn way_out(&self, mtu: u16, wanted: f64) -> Option<Target> {
        let table = Table { setting: Setting::NativeHost, mtu };
        let load = Load { protocol: Protocol::Tcp, streams: 1, datagram: None };
        let speeds = |back_end| {
            let of = |direction| Some(self.find(table, Case { load, direction }, back_end)?.speed);
            Some([of(Direction::Forward)?, of(Direction::Back)?])
        };
        let (ours, theirs) = (speeds(BackEnd::Weft)?, speeds(NAT_PEER)?);
        let (found, whose) = if wanted > 1.0 {
            (ours[0].min(ours[1]) / theirs[0].max(theirs[1]), "worse direction against the better of")
        } else {
            ((ours[0] / theirs[0]).min(ours[1] / theirs[1]), "each direction against")
        };
        Some(Target { what: format!("{}, one TCP stream: weft's {whose} {}", table.title(), NAT_PEER.name()), wanted, found })
    }

    fn connections(&self, mtu: u16) -> Option<Target> {
        let table = Table { setting: Setting::NativeHost, mtu };
        let of_table = |outcome: &&Outcome| outcome.table == table && outcome.case.load.protocol == Protocol::Crr;
        let against = self.outcomes.iter().filter(of_table).filter(|outcome| outcome.back_end == NAT_PEER);
        let found = against.filter_map(|outcome| outcome.first_is_faster).reduce(f64::min)?;
        Some(Target { what: format!("{}, TCP connections: weft against {}", table.title(), NAT_PEER.name()), wanted: 1.0, found })
    }
}

impl Sample {
    fn key(&self) -> (Table, Case, BackEnd) {
        (self.table, self.case, self.back_end)
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TABLE: Table = Table { setting: Setting::Native, mtu: 1500 };
    pub(crate) const LOAD: Load = Load { protocol: Protocol::Tcp, streams: 1, datagram: None };
    pub(crate) const CASE: Case = Case { load: LOAD, direction: Direction::Forward };

    /// A machine that is half as fast in every round as in the one before.
    pub(crate) fn example() -> Results {
        let mut results = Results { rounds: 3, seconds: 1, ..Results::default() };
        for (round, speed) in [(1, 1.0), (2, 0.5), (3, 0.25)] {
            for (back_end, gbit_per_second) in [(BackEnd::Weft, 16.0), (BackEnd::TestpmdTso, 8.0), (BackEnd::Testpmd, 1.6)] {
                let gbit_per_second = Some(gbit_per_second * speed);
                let rate = Rate { gbit_per_second, connections_per_second: None, lost_percent: None, retransmits: Some(3) };
                results.samples.push(Sample { table: TABLE, case: CASE, back_end, round, rate, back_end_cores: Some(0.5) });
            }
        }
        results.conclude();
        results
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let results = example();
        let ratio = |back_end| results.find(TABLE, CASE, back_end).unwrap().first_is_faster;
        assert_eq!([BackEnd::Weft, BackEnd::TestpmdTso, BackEnd::Testpmd].map(ratio), [Some(1.0), Some(2.0), Some(10.0)]);
        assert_eq!(results.find(TABLE, CASE, BackEnd::Weft).unwrap().speed, 8.0);
    }

    #[test]
    fn targets_are_those_that_were_measured() {
        let found: Vec<(f64, f64)> = example().targets.iter().map(|target| (target.wanted, target.found)).collect();
        assert_eq!(found, [(1.2, 2.0), (6.0, 10.0)]);
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median([f64::INFINITY].into_iter()), None);
    }
}
