//! A lock between people who measure on one machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::spawn;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::process::{Interrupt, LOOK_EVERY};

/// Whoever has held the lock for so long lets others have a turn, at the next occasion.
const TURN: Duration = Duration::from_secs(40);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("{path} can't be locked: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("interrupted")]
    Interrupted,
}

/// A file that is locked (`flock`) while somebody measures.
#[derive(Debug)]
pub(crate) struct Lock<'a> {
    path: &'a Path,
    /// The lock goes with the file.
    held: Option<(File, Instant)>,
}

impl<'a> Lock<'a> {
    pub(crate) fn new(path: &'a Path) -> Self {
        Self { path, held: None }
    }

    /// Takes the lock, or keeps it unless others should have a turn.
    pub(crate) fn take(&mut self, interrupt: &Interrupt) -> Result<(), LockError> {
        if self.held.as_ref().is_some_and(|(_, since)| since.elapsed() > TURN) {
            self.held = None;
        }
        if self.held.is_none() {
            self.held = Some((self.wait(interrupt)?, Instant::now()));
        }
        Ok(())
    }

    fn wait(&self, interrupt: &Interrupt) -> Result<File, LockError> {
        let failed = |source| LockError::File { path: self.path.to_owned(), source };
        let file = File::options().create(true).append(true).open(self.path).map_err(failed)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(file);
        }
        eprintln!("waiting for the lock on {}", self.path.display());
        // Who only tries again and again would always come after those who stand in line, and a wait in line does not end with
        // Ctrl-C, since system calls are restarted after signals. So a thread waits, and ends with this program at the latest.
        let (sender, receiver) = channel();
        spawn(move || sender.send(flock(&file, FlockOperation::LockExclusive).map(|()| file)));
        loop {
            match receiver.recv_timeout(LOOK_EVERY) {
                Ok(locked) => return locked.map_err(|error| failed(error.into())),
                Err(_) if interrupt.is_requested() => return Err(LockError::Interrupted),
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_held_is_kept_until_its_turn_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let other = File::create(&path).unwrap();
        let mut lock = Lock::new(&path);
        for _ in 0..2 {
            lock.take(&Interrupt::default()).unwrap();
            assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        }
        drop(lock);
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }

    #[test]
    fn whoever_waits_gets_it_when_the_other_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let other = File::create(&path).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::new(&path).take(&Interrupt::default()));
            drop(other);
            waiting.join().unwrap().unwrap();
        });
    }
}
