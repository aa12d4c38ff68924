//! What was measured: samples, and the medians and ratios that come of them.

use serde::{Deserialize, Serialize};

use crate::cores::is_steady;
use crate::load::Report;
use crate::scenario::{Figure, Scenario};
use crate::switches::Switch;

/// All that a comparison has found. This is what `--json` writes and `--from` reads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) seconds: f64,
    /// In the order of every table; the first is what the others are compared with.
    pub(crate) switches: Vec<SwitchInfo>,
    pub(crate) scenarios: Vec<ScenarioInfo>,
    /// What is missing, and why.
    pub(crate) missing: Vec<Missing>,
    /// Rounds in which the machine changed.
    pub(crate) unsteady: Vec<Unsteady>,
    /// What the samples come to.
    pub(crate) results: Vec<Outcome>,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) switch_core: usize,
    pub(crate) load_core: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SwitchInfo {
    pub(crate) name: String,
    pub(crate) about: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ScenarioInfo {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) figure: Figure,
}

/// A switch that does not take part, or only in some scenarios.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Missing {
    pub(crate) switch: String,
    pub(crate) scenario: Option<String>,
    pub(crate) reason: String,
    /// It should have worked.
    pub(crate) failed: bool,
}

/// A round of a scenario in which the machine was not the same for everybody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Unsteady {
    pub(crate) scenario: String,
    pub(crate) round: u32,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) scenario: String,
    pub(crate) size: u16,
    pub(crate) switch: String,
    pub(crate) round: u32,
    pub(crate) frames_per_second: f64,
    pub(crate) gbit_per_second: f64,
    pub(crate) load_waited_percent: f64,
    pub(crate) lost_percent: f64,
    pub(crate) p50_ns: Option<u64>,
    pub(crate) p99_ns: Option<u64>,
    /// From the core of the load to that of the switch and back, at that time.
    pub(crate) core_distance_ns: f64,
}

/// What the samples of one switch, in one scenario, with one size, come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) scenario: String,
    pub(crate) size: u16,
    pub(crate) switch: String,
    /// How many rounds it took part in.
    pub(crate) rounds: usize,
    pub(crate) frames_per_second: Spread,
    pub(crate) gbit_per_second: f64,
    pub(crate) load_waited_percent: f64,
    pub(crate) lost_percent: f64,
    pub(crate) p50_ns: Option<Spread>,
    pub(crate) p99_ns: Option<Spread>,
    /// The scenario's figure, divided by that of the first switch in the same round. Rounds in which the machine changed don't count
    /// as long as there are others.
    pub(crate) ratio: Option<Spread>,
}

/// Several values of the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl SwitchInfo {
    pub(crate) fn of(switch: &Switch) -> Self {
        Self { name: switch.name.clone(), about: switch.about.clone() }
    }
}

impl ScenarioInfo {
    pub(crate) fn of(scenario: &Scenario) -> Self {
        Self { name: scenario.name.to_owned(), title: scenario.title.to_owned(), figure: scenario.figure }
    }
}

impl Sample {
    pub(crate) fn new(scenario: &str, switch: &str, round: u32, report: &Report) -> Self {
        Self {
            scenario: scenario.to_owned(),
            size: report.size,
            switch: switch.to_owned(),
            round,
            frames_per_second: report.frames_per_second(),
            gbit_per_second: report.gbit_per_second(),
            load_waited_percent: report.load_waited_percent(),
            lost_percent: report.lost_percent(),
            p50_ns: report.latency.as_ref().map(|latency| latency.p50_ns),
            p99_ns: report.latency.as_ref().map(|latency| latency.p99_ns),
            core_distance_ns: 0.0,
        }
    }

    fn figure(&self, figure: Figure) -> Option<f64> {
        match figure {
            Figure::Rate => Some(self.frames_per_second),
            Figure::Latency => self.p50_ns.map(|nanos| nanos as f64),
        }
    }
}

impl Comparison {
    /// Works the results out of the samples.
    pub(crate) fn conclude(&mut self) {
        let mut results = Vec::new();
        for scenario in &self.scenarios {
            let mut sizes: Vec<_> = self.of_scenario(scenario).map(|sample| sample.size).collect();
            sizes.sort_unstable();
            sizes.dedup();
            for size in sizes {
                results.extend(self.switches.iter().filter_map(|switch| self.outcome(scenario, size, &switch.name)));
            }
        }
        self.results = results;
    }

    fn of_scenario<'a>(&'a self, scenario: &'a ScenarioInfo) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(|sample| sample.scenario == scenario.name)
    }

    fn outcome(&self, scenario: &ScenarioInfo, size: u16, switch: &str) -> Option<Outcome> {
        let of = |switch: &str| -> Vec<&Sample> {
            self.of_scenario(scenario).filter(|sample| sample.size == size && sample.switch == switch).collect()
        };
        let samples = of(switch);
        let first = self.switches.first().map(|first| of(&first.name)).unwrap_or_default();
        let pairs: Vec<_> = samples
            .iter()
            .filter_map(|sample| Some((*sample, *first.iter().find(|other| other.round == sample.round)?)))
            .collect();
        let is_fair = |(one, other): &&(&Sample, &Sample)| is_steady(&[one.core_distance_ns, other.core_distance_ns]);
        let fair: Vec<_> = pairs.iter().filter(is_fair).copied().collect();
        let ratios = if fair.is_empty() { pairs } else { fair };
        let ratios = ratios.iter().filter_map(|(one, other)| Some(one.figure(scenario.figure)? / other.figure(scenario.figure)?));
        let spread = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(|sample| value(sample)));
        let times = |value: fn(&Sample) -> Option<u64>| {
            Spread::of(samples.iter().filter_map(|sample| value(sample)).map(|nanos| nanos as f64))
        };
        Some(Outcome {
            scenario: scenario.name.clone(),
            size,
            switch: switch.to_owned(),
            rounds: samples.len(),
            frames_per_second: spread(|sample| sample.frames_per_second)?,
            gbit_per_second: spread(|sample| sample.gbit_per_second)?.median,
            load_waited_percent: spread(|sample| sample.load_waited_percent)?.median,
            lost_percent: spread(|sample| sample.lost_percent)?.median,
            p50_ns: times(|sample| sample.p50_ns),
            p99_ns: times(|sample| sample.p99_ns),
            ratio: Spread::of(ratios),
        })
    }

    /// The results of a scenario, sizes one after the other, switches in their order.
    pub(crate) fn results_of<'a>(&'a self, scenario: &'a ScenarioInfo) -> impl Iterator<Item = &'a Outcome> {
        self.results.iter().filter(|result| result.scenario == scenario.name)
    }

    /// True when something that should have worked did not.
    pub(crate) fn has_failures(&self) -> bool {
        self.missing.iter().any(|missing| missing.failed)
    }
}

impl Spread {
    /// None of nothing.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn sample(scenario: &str, switch: &str, round: u32, frames_per_second: f64) -> Sample {
        Sample {
            scenario: scenario.to_owned(),
            size: 64,
            switch: switch.to_owned(),
            round,
            frames_per_second,
            gbit_per_second: frames_per_second * 64.0 * 8.0 / 1e9,
            load_waited_percent: 97.0,
            lost_percent: 0.0,
            p50_ns: (scenario == "latency").then_some(frames_per_second as u64),
            p99_ns: (scenario == "latency").then_some(2 * frames_per_second as u64),
            core_distance_ns: 100.0,
        }
    }

    /// Two switches: a rate, where the machine slows down from round to round, and a time.
    pub(crate) fn example() -> Comparison {
        let mut comparison = Comparison {
            rounds: 3,
            seconds: 1.0,
            switches: ["weft", "ovs-dpdk"]
                .map(|name| SwitchInfo { name: name.to_owned(), about: format!("{name} 1.0") })
                .to_vec(),
            scenarios: [("plain", Figure::Rate), ("latency", Figure::Latency)]
                .map(|(name, figure)| ScenarioInfo { name: name.to_owned(), title: format!("What {name} is"), figure })
                .to_vec(),
            ..Comparison::default()
        };
        for (round, speed) in [(1, 1.0), (2, 0.8), (3, 0.5)] {
            comparison.samples.push(sample("plain", "weft", round, 20e6 * speed));
            comparison.samples.push(sample("plain", "ovs-dpdk", round, 10e6 * speed));
            comparison.samples.push(sample("latency", "weft", round, 300.0));
            comparison.samples.push(sample("latency", "ovs-dpdk", round, 450.0));
        }
        comparison.conclude();
        comparison
    }

    #[test]
    fn the_median_is_the_middle_one_or_the_mean_of_two() {
        let median = |values: &[f64]| Spread::of(values.iter().copied()).map(|spread| spread.median);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0].into_iter()), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let comparison = example();
        let ratios: Vec<_> =
            comparison.results.iter().map(|result| (result.switch.as_str(), result.ratio.unwrap().median)).collect();
        assert_eq!(ratios, [("weft", 1.0), ("ovs-dpdk", 0.5), ("weft", 1.0), ("ovs-dpdk", 1.5)]);
    }

    #[test]
    fn a_round_in_which_the_machine_changed_gives_no_ratio_unless_there_is_no_other() {
        let mut comparison = example();
        for (sample, slow) in comparison.samples.iter_mut().zip([true, false].into_iter().cycle()).skip(4) {
            sample.core_distance_ns = if slow { 300.0 } else { 100.0 };
        }
        comparison.samples[1].frames_per_second = 4e6;
        comparison.conclude();
        assert_eq!(comparison.results[1].ratio, Some(Spread { median: 0.2, min: 0.2, max: 0.2 }));
        comparison.samples.retain(|sample| sample.round > 1);
        comparison.conclude();
        assert_eq!(comparison.results[1].ratio.map(|ratio| ratio.median), Some(0.5));
    }

    #[test]
    fn a_switch_that_missed_the_first_ones_rounds_has_no_ratio() {
        let mut comparison = example();
        comparison.samples.retain(|sample| sample.switch != "weft");
        comparison.conclude();
        assert_eq!(comparison.results.len(), 2);
        assert!(comparison.results.iter().all(|result| result.ratio.is_none() && result.rounds == 3));
    }

    #[test]
    fn a_comparison_survives_being_written_and_read() {
        let written = serde_json::to_string(&example()).unwrap();
        let read: Comparison = serde_json::from_str(&written).unwrap();
        assert_eq!(read.results, example().results);
        assert_eq!(read.samples, example().samples);
    }
}
