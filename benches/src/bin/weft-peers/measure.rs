//! The rounds: every switch in turn, started for each measurement and ended after it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::sleep;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::comparison::{Comparison, Missing, Sample};
use crate::load::{Load, LoadError};
use crate::process::{Interrupt, LOOK_EVERY};
use crate::scenario::{Figure, Scenario};
use crate::switches::{Bench, Switch, SwitchError};

/// What is to be measured.
pub(crate) struct Plan<'a> {
    pub(crate) switches: &'a [Switch],
    pub(crate) scenarios: &'a [Scenario],
    pub(crate) sizes: &'a [u16],
    pub(crate) rounds: u32,
    pub(crate) load: &'a Load,
    pub(crate) bench: &'a Bench,
    /// Locked while a scenario's turn lasts.
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
    #[error("{path} can't be locked: {source}")]
    Lock { path: PathBuf, source: std::io::Error },
}

impl Plan<'_> {
    /// Runs all rounds and puts what was found into `found`. What fails is noted and not tried again.
    pub(crate) fn run(&self, found: &mut Comparison) -> Result<(), RoundsError> {
        let turns = self.rounds as usize * self.scenarios.len() * self.switches.len();
        let mut turn = 0;
        for round in 1..=self.rounds {
            for scenario in self.scenarios {
                let _lock = self.lock.map(|path| take_lock(path, &self.bench.interrupt)).transpose()?;
                for switch in self.switches {
                    turn += 1;
                    if found.missing.iter().any(|missing| missing.is_of(switch, scenario)) {
                        continue;
                    }
                    eprint!("[{turn:3}/{turns}] round {round}  {:<10}  {:<12}", scenario.name, switch.name);
                    self.turn(round, scenario, switch, found)?;
                }
            }
        }
        Ok(())
    }

    fn turn(&self, round: u32, scenario: &Scenario, switch: &Switch, found: &mut Comparison) -> Result<(), RoundsError> {
        let mut missing = Missing {
            switch: switch.name.clone(),
            scenario: Some(scenario.name.to_owned()),
            reason: "it does not switch".to_owned(),
            failed: false,
        };
        if !switch.kind.takes_part(scenario) {
            eprintln!("  {}", missing.reason);
            found.missing.push(missing);
            return Ok(());
        }
        match self.measure_twice_if_need_be(round, scenario, switch) {
            Ok(samples) => {
                eprintln!("  {}", summary(scenario.figure, &samples));
                found.samples.extend(samples);
            }
            Err(_) if self.bench.interrupt.is_requested() => return Err(RoundsError::Interrupted),
            Err(error) => {
                eprintln!("  failed: {error}");
                missing.reason = error.to_string();
                missing.failed = true;
                found.missing.push(missing);
            }
        }
        Ok(())
    }

    /// A shared machine may keep somebody waiting too long once; twice in a row is no accident.
    fn measure_twice_if_need_be(&self, round: u32, scenario: &Scenario, switch: &Switch) -> Result<Vec<Sample>, MeasureError> {
        self.measure(round, scenario, switch).or_else(|error| {
            if self.bench.interrupt.is_requested() {
                return Err(error);
            }
            eprint!("  failed: {error}\n          once more");
            self.measure(round, scenario, switch)
        })
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

impl Missing {
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

/// The lock goes with the file.
fn take_lock(path: &Path, interrupt: &Interrupt) -> Result<File, RoundsError> {
    let failed = |source| RoundsError::Lock { path: path.to_owned(), source };
    let file = File::options().create(true).append(true).open(path).map_err(failed)?;
    let mut waiting = false;
    // A call that blocks would not end with Ctrl-C: system calls are restarted after signals.
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if interrupt.is_requested() => return Err(RoundsError::Interrupted),
            Err(Errno::WOULDBLOCK) if !waiting => eprintln!("waiting for the lock on {}", path.display()),
            Err(Errno::WOULDBLOCK) => sleep(LOOK_EVERY),
            Err(error) => return Err(failed(error.into())),
        }
        waiting = true;
    }
}
