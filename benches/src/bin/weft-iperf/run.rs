//! The rounds: every back-end gets its turn in each, with everything started anew.

use std::io;
use std::path::PathBuf;

use crate::child::{ChildError, Nursery};
use crate::lock::{Lock, LockError};
use crate::net::{NetError, Workshop};
use crate::plan::{BackEnd, Plan, Table};
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
                for back_end in self.plan.turns(table, round - 1) {
                    if self.stop.is_wanted() {
                        break;
                    }
                    if !self.is_out(table, back_end) {
                        self.turn(table, back_end, round)?;
                    }
                }
            }
        }
        self.results.conclude();
        Ok(())
    }

    /// Finds out who takes part.
    fn look_around(&mut self) -> Result<(), RunError> {
        let dir = folder()?;
        let nursery = Nursery { dir: dir.path().to_owned(), stop: self.stop.clone() };
        let is_wanted =
            |back_end: &BackEnd| self.plan.tables.iter().any(|&table| self.plan.back_ends_of(table).any(|one| one == *back_end));
        for &back_end in self.plan.back_ends.iter().filter(|back_end| is_wanted(back_end)) {
            match self.workshop.programs.look_for(back_end, &nursery) {
                Ok(about) => self.results.contenders.push(Contender { back_end, about }),
                Err(reason) => {
                    eprintln!("{} is left out: {reason}", back_end.name());
                    self.results.missing.push(Missing { table: None, back_end, reason, failed: false });
                }
            }
        }
        Ok(())
    }

    /// Notes who can't take part in this table.
    fn leave_out(&mut self, table: Table) {
        for back_end in self.plan.back_ends_of(table) {
            if let Some(reason) = back_end.does_not_apply(table.mtu) {
                let missing = Missing { table: Some(table), back_end, reason: reason.to_owned(), failed: false };
                self.results.missing.push(missing);
            }
        }
    }

    fn is_out(&self, table: Table, back_end: BackEnd) -> bool {
        let of_this = |missing: &&Missing| missing.back_end == back_end && missing.table.is_none_or(|its| its == table);
        self.results.missing.iter().any(|missing| of_this(&missing))
    }

    /// One back-end's turn. When it fails, it is out for the rest of the table.
    fn turn(&mut self, table: Table, back_end: BackEnd, round: u32) -> Result<(), RunError> {
        let dir = folder()?;
        let nursery = Nursery { dir: dir.path().to_owned(), stop: self.stop.clone() };
        let _lock = match self.lock.as_ref().map(|path| Lock::take(path, &self.stop)).transpose() {
            Err(LockError::Stopped) => return Ok(()),
            lock => lock?,
        };
        match self.turn_in(table, back_end, round, nursery) {
            Ok(()) | Err(NetError::Child(ChildError::Stopped)) => {}
            Err(error) => {
                let reason = error.to_string();
                eprintln!("round {round}, {}, {} failed: {reason}", table.title(), back_end.name());
                self.results.missing.push(Missing { table: Some(table), back_end, reason, failed: true });
            }
        }
        Ok(())
    }

    fn turn_in(&mut self, table: Table, back_end: BackEnd, round: u32, nursery: Nursery) -> Result<(), NetError> {
        let net = self.workshop.build(table, back_end, nursery)?;
        for &case in &self.plan.cases {
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
