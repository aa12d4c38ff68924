//! The run directory: where it is, and that at most one live weft has it.
//!
//! A lock on `weft.lock` in it says who that is. The lock goes with the process, however it ends, so whoever gets
//! it knows that sockets left behind are stale. The file itself stays, so that no two processes lock two files of the same name; only a start
//! that came to nothing removes what it made itself, and whoever gets the lock sees to it that the file is still there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mio::net::UnixStream;
use rustix::fs::{FlockOperation, OFlags, flock};
use tracing::{info, warn};

use crate::services::LEASES_FILE;
use crate::state_dir;

/// File name of the lock in the run directory.
pub const LOCK_FILE: &str = "weft.lock";

/// The run directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Nothing says where it is.
    #[error("no run directory: give --run-dir DIR, or set WEFT_RUN_DIR or XDG_RUNTIME_DIR")]
    Unknown,
    /// The path can't be shown to other programs.
    #[error("the run directory {0:?} is not UTF-8: choose another --run-dir")]
    NotUtf8(PathBuf),
    /// Its parent is missing.
    #[error(
        "cannot make the run directory {0:?}: the directory it would be in is not there; create that first, or choose another --run-dir"
    )]
    NoParent(PathBuf),
    /// Something else has its name.
    #[error("the run directory {0:?} is not a directory: choose another --run-dir")]
    NotADirectory(PathBuf),
    /// Not ours to write.
    #[error("no permission to write to the run directory {0:?}: choose another --run-dir, or change its owner")]
    NotWritable(PathBuf),
    /// Another weft has it.
    #[error("another weft{} runs on {run_dir:?}: stop it, or choose another --run-dir", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Taken {
        /// The run directory.
        run_dir: PathBuf,
        /// The process that has it, if it has written that down already.
        pid: Option<u32>,
    },
    /// The operating system refused.
    #[error("cannot {what} {path:?}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Where the run directory can be, best first.
///
/// # Errors
/// When nothing says where it is.
pub fn candidates(option: Option<&Path>) -> Result<Vec<PathBuf>, RunDirError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = option.map(Path::to_owned).or_else(|| variable("WEFT_RUN_DIR")) {
        return Ok(vec![absolute(path)?]);
    }
    let mut found = Vec::new();
    if let Some(path) = variable("XDG_RUNTIME_DIR") {
        found.push(absolute(path.join("weft"))?);
    }
    if rustix::process::geteuid().is_root() {
        found.push(PathBuf::from("/run/weft"));
    }
    if found.is_empty() { Err(RunDirError::Unknown) } else { Ok(found) }
}

/// A run directory that is ours until this value is dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// It was not there before, and goes again if nothing comes of the start.
    is_trial: bool,
    _lock: File,
}

impl RunDir {
    /// Makes the directory if it is missing, and takes it.
    ///
    /// # Errors
    /// When another live weft has it, or it can't be made or written.
    pub fn take(path: &Path) -> Result<Self, RunDirError> {
        let is_new = make_directory(path)?;
        let lock_path = path.join(LOCK_FILE);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&lock_path)
            .map_err(|source| refused("open", path, &lock_path, source))?;
        // Whoever has it, or has just given up and taken it away.
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() || !is_at(&lock, &lock_path) {
            return Err(RunDirError::Taken { run_dir: path.to_owned(), pid: read_pid(&mut lock) });
        }
        write_pid(&mut lock).map_err(|source| RunDirError::Io { what: "write", path: lock_path, source })?;
        Ok(Self { path: path.to_owned(), is_trial: is_new, _lock: lock })
    }

    /// The start has succeeded: the directory stays from now on, whatever becomes of this value.
    pub fn settle(&mut self) {
        self.is_trial = false;
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the sockets that a dead weft left behind: the control socket and `*.sock` where nobody listens.
    /// Sockets in `kept` belong to guests that listen themselves; not even a trial connection disturbs them.
    ///
    /// # Errors
    /// When the directory can't be read or a stale socket can't be removed.
    pub fn remove_stale_sockets(&self, kept: &[PathBuf]) -> Result<(), RunDirError> {
        let io_error = |what, path: &Path, source| RunDirError::Io { what, path: path.to_owned(), source };
        for entry in std::fs::read_dir(&self.path).map_err(|source| io_error("read", &self.path, source))? {
            let entry = entry.map_err(|source| io_error("read", &self.path, source))?;
            let path = entry.path();
            let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
            let is_named_so = path.extension().is_some_and(|extension| extension == "sock");
            if !is_socket || !is_named_so || kept.contains(&path) {
                continue;
            }
            if is_dead(&path) {
                info!("removing the stale socket {}", path.display());
                std::fs::remove_file(&path).map_err(|source| io_error("remove", &path, source))?;
            }
        }
        Ok(())
    }
}

impl Drop for RunDir {
    /// A directory that was made for a start that came to nothing goes again with what this start has put there, unless something else is in it.
    fn drop(&mut self) {
        if self.is_trial {
            let state_dir = self.path.join(state_dir::IN_RUN_DIR);
            // What is not there or can't be removed does no harm: the next weft takes it over.
            let _ = std::fs::remove_file(state_dir.join(LEASES_FILE));
            let _ = std::fs::remove_dir(&state_dir);
            let _ = std::fs::remove_file(self.path.join(LOCK_FILE));
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, RunDirError> {
    let path = std::path::absolute(&path).map_err(|source| RunDirError::Io { what: "resolve", path, source })?;
    if path.to_str().is_none() { Err(RunDirError::NotUtf8(path)) } else { Ok(path) }
}

/// True if it was not there.
fn make_directory(path: &Path) -> Result<bool, RunDirError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RunDirError::NoParent(path.to_owned())),
        Err(source) => return Err(refused("make the run directory", path, path, source)),
    }
    let metadata = std::fs::metadata(path).map_err(|source| refused("look at", path, path, source))?;
    if !metadata.is_dir() {
        return Err(RunDirError::NotADirectory(path.to_owned()));
    }
    if metadata.mode() & 0o022 != 0 {
        warn!("others can write to the run directory {}: they can put sockets of their own there", path.display());
    }
    Ok(false)
}

/// True if this open file is the one that has the name.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata().map(identity), path.symlink_metadata().map(identity)), (Ok(open), Ok(named)) if open == named)
}

fn refused(what: &'static str, run_dir: &Path, path: &Path, source: io::Error) -> RunDirError {
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => RunDirError::NotWritable(run_dir.to_owned()),
        io::ErrorKind::NotADirectory => RunDirError::NotADirectory(run_dir.to_owned()),
        _ => RunDirError::Io { what, path: path.to_owned(), source },
    }
}

/// The connection is one that doesn't block: somebody whose backlog is full is alive.
fn is_dead(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn read_pid(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_one_can_have_it_until_it_is_given_back() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let mut first = RunDir::take(&path).unwrap();
        first.settle();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let message = RunDir::take(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        drop(first);
        RunDir::take(&path).unwrap();
    }

    #[test]
    fn a_start_that_came_to_nothing_takes_away_what_it_made_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        drop(RunDir::take(&path).unwrap());
        assert!(!path.exists());
        let run_dir = RunDir::take(&path).unwrap();
        std::fs::create_dir(path.join("state")).unwrap();
        std::fs::write(path.join("state/config.toml"), "").unwrap();
        drop(run_dir);
        assert!(path.join("state/config.toml").exists());
        drop(RunDir::take(&path).unwrap());
        assert!(path.join(LOCK_FILE).exists(), "the directory was there before");
    }

    #[test]
    fn only_dead_sockets_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        let run_dir = RunDir::take(parent.path()).unwrap();
        let _alive = UnixListener::bind(at("alive.sock")).unwrap();
        for name in ["dead.sock", "kept.sock", "control.sock", "other.socket"] {
            drop(UnixListener::bind(at(name)).unwrap());
        }
        std::fs::write(at("file.sock"), "").unwrap();
        run_dir.remove_stale_sockets(&[at("kept.sock")]).unwrap();
        assert!(["alive.sock", "kept.sock", "other.socket", "file.sock"].iter().all(|name| at(name).exists()));
        assert!(!at("dead.sock").exists() && !at("control.sock").exists());
    }

    #[test]
    fn what_can_not_be_a_run_directory_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let missing = parent.path().join("a/b");
        assert!(matches!(RunDir::take(&missing), Err(RunDirError::NoParent(path)) if path == missing));
        let file = parent.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(RunDir::take(&file), Err(RunDirError::NotADirectory(_))));
        assert!(matches!(RunDir::take(&file.join("x")), Err(RunDirError::NotADirectory(_))));
    }
}
