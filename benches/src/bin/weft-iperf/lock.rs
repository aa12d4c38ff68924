//! A lock file, for machines that several people measure on: only one does at a time.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::stop::{InVain, Stop};

/// Why it can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("the lock file {path} can't be locked: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("stopped by a signal")]
    Stopped,
}

/// Held until it goes away.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "closing it releases the lock")] File);

impl Lock {
    /// Waits until nobody else holds it.
    pub(crate) fn take(path: &Path, stop: &Stop) -> Result<Self, LockError> {
        let failed = |source| LockError::File { path: path.to_owned(), source };
        let file = File::options().create(true).append(true).open(path).map_err(failed)?;
        let (locked, wait) = mpsc::channel();
        // A thread waits, because the wait itself does not end with a signal.
        thread::spawn(move || locked.send(file.lock().map(|()| file)));
        match stop.wait_for(Duration::MAX, || wait.try_recv().ok()) {
            Ok(file) => file.map(Self).map_err(failed),
            Err(InVain::Stopped | InVain::TooLate) => Err(LockError::Stopped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lock = Lock::take(file.path(), &Stop::default()).unwrap();
        assert!(file.as_file().try_lock().is_err());
        drop(lock);
        file.as_file().try_lock().unwrap();
    }
}
