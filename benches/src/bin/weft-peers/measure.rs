//! The rounds: every switch in turn, started for each measurement and ended after it.

use std::path::Path;

use crate::comparison::{Comparison, Missing, Sample, Unsteady};
use crate::cores::{self, is_steady};
use crate::load::{Load, LoadError};
use crate::lock::{Lock, LockError};
use crate::scenario::{Figure, Scenario};
use crate::switches::{Bench, Switch, SwitchError};

/// How often everybody has a turn in a round, when the machine changes while they have it.
const UNSTEADY_TRIES: u32 = 3;
/// How often a turn is tried.
const FAILURE_TRIES: u32 = 4;

/// What is to be measured.
pub(crate) struct Plan<'a> {
    pub(crate) switches: &'a [Switch],
    pub(crate) scenarios: &'a [Scenario],
    pub(crate) sizes: &'a [u16],
    pub(crate) rounds: u32,
    pub(crate) load: &'a Load,
    pub(crate) bench: &'a Bench,
    /// Locked while anything is measured.
    pub(crate) lock: Option<&'a Path>,
}

/// Why a measurement came to nothing.
#[derive(Debug, thiserror::Error)]
enum MeasureError {
    #[error(transparent)]
    Switch(#[from] SwitchError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("a temporary folder can't be made: {0}")]
    Folder(std::io::Error),
}

/// Why measuring ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoundsError {
    #[error("interrupted; everything that was started is gone")]
    Interrupted,
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the distance between the cores can't be measured: {0}")]
    Cores(std::io::Error),
}

/// Everybody's turn in one scenario.
#[derive(Default)]
struct Turns {
    samples: Vec<Sample>,
    /// Between the cores, before and after each.
    distances_ns: Vec<f64>,
}

impl Plan<'_> {
    /// Runs all rounds and puts what was found into `found`.
    pub(crate) fn run(&self, found: &mut Comparison) -> Result<(), RoundsError> {
        let mut lock = self.lock.map(Lock::new);
        for round in 1..=self.rounds {
            for scenario in self.scenarios {
                let mut turns = self.turns(round, scenario, &mut lock, found)?;
                for _ in 1..UNSTEADY_TRIES {
                    if is_steady(&turns.distances_ns) {
                        break;
                    }
                    eprintln!("The machine changed meanwhile ({}); once more.", turns.distances());
                    turns = self.turns(round, scenario, &mut lock, found)?;
                }
                if !is_steady(&turns.distances_ns) {
                    eprintln!("The machine changed meanwhile ({}); it is left at that.", turns.distances());
                    found.unsteady.push(Unsteady { scenario: scenario.name.to_owned(), round });
                }
                found.samples.extend(turns.samples);
            }
        }
        Ok(())
    }

    fn turns(
        &self,
        round: u32,
        scenario: &Scenario,
        lock: &mut Option<Lock>,
        found: &mut Comparison,
    ) -> Result<Turns, RoundsError> {
        if let Some(lock) = lock {
            lock.take(&self.bench.interrupt)?;
        }
        let mut turns = Turns::default();
        for switch in self.switches {
            if found.missing.iter().any(|missing| missing.is_of(switch, scenario)) {
                continue;
            }
            if !switch.kind.takes_part(scenario) {
                found.missing.push(Missing::of(switch, scenario, "it does not switch", false));
                continue;
            }
            eprint!("round {round} of {}  {:<10} {:<12}", self.rounds, scenario.name, switch.name);
            let before = self.distance_ns()?;
            match self.try_hard(round, scenario, switch) {
                Ok(samples) => {
                    let distances_ns = [before, self.distance_ns()?];
                    let apart = distances_ns[1];
                    eprintln!("  {} (cores {apart:.0} ns apart)", summary(scenario.figure, &samples));
                    let core_distance_ns = distances_ns.into_iter().fold(0.0, f64::max);
                    turns.distances_ns.extend(distances_ns);
                    turns.samples.extend(samples.into_iter().map(|sample| Sample { core_distance_ns, ..sample }));
                }
                Err(_) if self.bench.interrupt.is_requested() => return Err(RoundsError::Interrupted),
                Err(error) => {
                    eprintln!("  failed: {error}");
                    found.missing.push(Missing::of(switch, scenario, &error.to_string(), true));
                }
            }
        }
        Ok(turns)
    }

    fn distance_ns(&self) -> Result<f64, RoundsError> {
        cores::distance_ns(self.bench.switch_core, self.bench.load_core).map_err(RoundsError::Cores)
    }

    /// A shared machine may keep somebody waiting too long, and some switches lose the first frames after a start.
    fn try_hard(&self, round: u32, scenario: &Scenario, switch: &Switch) -> Result<Vec<Sample>, MeasureError> {
        for _ in 1..FAILURE_TRIES {
            match self.measure(round, scenario, switch) {
                Err(error) if !self.bench.interrupt.is_requested() => eprint!("  failed, once more ({error})"),
                measured => return measured,
            }
        }
        self.measure(round, scenario, switch)
    }

    fn measure(&self, round: u32, scenario: &Scenario, switch: &Switch) -> Result<Vec<Sample>, MeasureError> {
        // Not in the target folder: the path of a socket has 107 bytes.
        let dir = tempfile::Builder::new().prefix("weft-peers-").tempdir().map_err(MeasureError::Folder)?;
        let mut started = switch.kind.start(scenario, dir.path(), self.bench)?;
        let sizes = scenario.sizes(self.sizes);
        let reports = self.load.run(scenario, sizes, &mut started, dir.path(), self.bench)?;
        Ok(reports.iter().map(|report| Sample::new(scenario.name, &switch.name, round, report)).collect())
    }
}

impl Turns {
    fn distances(&self) -> String {
        let nanos: Vec<_> = self.distances_ns.iter().map(|nanos| format!("{nanos:.0}")).collect();
        format!("from core to core and back: {} ns", nanos.join(", "))
    }
}

impl Missing {
    fn of(switch: &Switch, scenario: &Scenario, reason: &str, failed: bool) -> Self {
        let scenario = Some(scenario.name.to_owned());
        Self { switch: switch.name.clone(), scenario, reason: reason.to_owned(), failed }
    }

    fn is_of(&self, switch: &Switch, scenario: &Scenario) -> bool {
        self.switch == switch.name && self.scenario.as_deref().is_none_or(|name| name == scenario.name)
    }
}

/// For whoever watches.
fn summary(figure: Figure, samples: &[Sample]) -> String {
    let one = |sample: &Sample| match figure {
        Figure::Rate => format!("{} B {:.2} M/s", sample.size, sample.frames_per_second / 1e6),
        Figure::Latency => format!("{} B {} ns", sample.size, sample.p50_ns.unwrap_or_default()),
    };
    samples.iter().map(one).collect::<Vec<_>>().join(", ")
}
