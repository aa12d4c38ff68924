//! The rounds: every back-end gets its turn in each, with everything started anew.

use std::io;
use std::path::PathBuf;

use crate::child::{ChildError, Nursery};
use crate::lock::{Lock, LockError};
use crate::net::{NetError, Workshop};
use crate::plan::{BackEnd, Load, Plan, Table};
use crate::render;
use crate::results::{Contender, Missing, Results, Sample};
use crate::stop::Stop;

/// One comparison under way.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) workshop: &'a Workshop,
    pub(crate) stop: Stop,
    pub(crate) lock: Option<PathBuf>,
    pub(crate) results: Results,
}

/// Why it can't go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("no folder can be made in /tmp: {0}")]
    Folder(#[source] io::Error),
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl Run<'_> {
    /// Measures everything, or as much as there is time for until somebody stops it.
    pub(crate) fn measure(&mut self) -> Result<(), RunError> {
        self.look_around()?;
        for &table in &self.plan.tables {
            self.leave_out(table);
            for round in 1..=self.plan.rounds {
                for &load in &self.plan.loads {
                    self.turns(table, load, round)?;
                }
            }
        }
        self.results.conclude();
        Ok(())
    }

    /// One turn for everybody, close together: their figures are compared.
    fn turns(&mut self, table: Table, load: Load, round: u32) -> Result<(), RunError> {
        let turns: Vec<BackEnd> = self.plan.turns(table, round - 1);
        let turns: Vec<BackEnd> = turns.into_iter().filter(|&back_end| !self.is_out(table, load, back_end)).collect();
        if turns.is_empty() || self.stop.is_wanted() {
            return Ok(());
        }
        let _lock = match self.lock.as_ref().map(|path| Lock::take(path, &self.stop)).transpose() {
            Err(LockError::Stopped) => return Ok(()),
            lock => lock?,
        };
        for back_end in turns {
            self.turn(table, load, back_end, round)?;
        }
        Ok(())
    }

    /// Finds out who takes part.
    fn look_around(&mut self) -> Result<(), RunError> {
        let dir = folder()?;
        let nursery = Nursery { dir: dir.path().to_owned(), stop: self.stop.clone(), inside: None };
        let is_wanted =
            |back_end: &BackEnd| self.plan.tables.iter().any(|&table| self.plan.back_ends_of(table).any(|one| one == *back_end));
        for &back_end in self.plan.back_ends.iter().filter(|back_end| is_wanted(back_end)) {
            match self.workshop.programs.look_for(back_end, &nursery) {
                Ok(about) => self.results.contenders.push(Contender { back_end, about }),
                Err(reason) => {
                    eprintln!("{} is left out: {reason}", back_end.name());
                    self.results.missing.push(Missing { table: None, load: None, back_end, reason, failed: false });
                }
            }
        }
        Ok(())
    }

    /// Notes who can't take part in this table.
    fn leave_out(&mut self, table: Table) {
        for back_end in self.plan.back_ends_of(table) {
            if let Some(reason) = back_end.does_not_apply(table.mtu) {
                let missing = Missing { table: Some(table), load: None, back_end, reason: reason.to_owned(), failed: false };
                self.results.missing.push(missing);
            }
        }
    }

    fn is_out(&self, table: Table, load: Load, back_end: BackEnd) -> bool {
        self.results.missing.iter().any(|missing| {
            missing.back_end == back_end
                && missing.table.is_none_or(|its| its == table)
                && missing.load.is_none_or(|its| its == load)
        })
    }

    /// One back-end's turn. When it fails, it is out for the rest of this load's rounds.
    fn turn(&mut self, table: Table, load: Load, back_end: BackEnd, round: u32) -> Result<(), RunError> {
        let dir = folder()?;
        let nursery = Nursery { dir: dir.path().to_owned(), stop: self.stop.clone(), inside: None };
        match self.turn_in(table, load, back_end, round, nursery) {
            Ok(()) | Err(NetError::Child(ChildError::Stopped)) => {}
            // Whatever else a signal has broken is no failure.
            Err(_) if self.stop.is_wanted() => {}
            Err(error) => {
                let missing = Missing { table: Some(table), load: Some(load), back_end, reason: error.to_string(), failed: true };
                eprintln!("round {round}, {}: {}", table.title(), render::missing_line(&missing));
                self.results.missing.push(missing);
            }
        }
        Ok(())
    }

    fn turn_in(&mut self, table: Table, load: Load, back_end: BackEnd, round: u32, nursery: Nursery) -> Result<(), NetError> {
        let net = self.workshop.build(table, back_end, nursery)?;
        for case in self.plan.cases_of(load) {
            let measured = net.measure(case, self.plan.duration)?;
            eprintln!("{}", render::progress(table, round, back_end, case, &measured));
            let (rate, back_end_cores) = (measured.rate, measured.back_end_cores);
            self.results.samples.push(Sample { table, case, back_end, round, rate, back_end_cores });
        }
        Ok(())
    }
}

fn folder() -> Result<tempfile::TempDir, RunError> {
    // Under /tmp, because the path of a socket has 107 bytes.
    tempfile::Builder::new().prefix("weft-iperf-").tempdir_in("/tmp").map_err(RunError::Folder)
}
