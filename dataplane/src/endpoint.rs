//! The socket at which a port and its guest meet: made, taken over from a dead owner, unlinked.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::net::{UnixListener, UnixStream};
use weft_switch::Timestamp;

use crate::dataplane::{DataplaneError, SocketRole};

/// The most bytes of a path in a Unix socket address: 108 with the final zero (unix(7)).
const MAX_PATH_LEN: usize = 107;
/// How long until a client tries again: a guest that starts, or starts again, is found at once by a person's measure.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_millis(500);
/// How long until a client tries again after its guest broke the protocol.
const RETRY_AFTER_FAULT: Duration = Duration::from_secs(1);

/// One end of a port's socket.
#[derive(Debug)]
pub(crate) enum Endpoint {
    Server(Listener),
    Client(Dialer),
    /// Out of service for good.
    Closed,
}

/// A listening socket and the file that leads to it.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: UnixListener,
    pub(crate) file: SocketFile,
}

/// A socket's file, unlinked when it goes.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that nobody else's file is unlinked.
    identity: Option<(u64, u64)>,
}

/// Connects to a guest that listens, again and again.
#[derive(Debug)]
pub(crate) struct Dialer {
    path: PathBuf,
    due: Timestamp,
    pause: Duration,
}

impl Endpoint {
    pub(crate) fn open(path: &Path, role: SocketRole, now: Timestamp) -> Result<Self, DataplaneError> {
        let len = path.as_os_str().as_bytes().len();
        if len > MAX_PATH_LEN {
            return Err(DataplaneError::SocketPathTooLong { path: path.to_owned(), len, max: MAX_PATH_LEN });
        }
        match role {
            SocketRole::Server => Listener::bind(path).map(Self::Server),
            SocketRole::Client => Ok(Self::Client(Dialer { path: path.to_owned(), due: now, pause: FIRST_RETRY })),
        }
    }
}

impl Listener {
    fn bind(path: &Path) -> Result<Self, DataplaneError> {
        let io_error = |what| move |source| DataplaneError::Io { what, path: path.to_owned(), source };
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            result => result,
        }
        .map_err(io_error("listen on"))?;
        Ok(Self { socket, file: SocketFile { path: path.to_owned(), identity: identity(path).ok() } })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some()
            && identity(&self.path).ok() == self.identity
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

impl Dialer {
    /// When to try next.
    pub(crate) fn due(&self) -> Timestamp {
        self.due
    }

    /// Tries once; plans the next attempt in case this one, or the connection that it makes, fails.
    pub(crate) fn dial(&mut self, now: Timestamp) -> io::Result<UnixStream> {
        let result = UnixStream::connect(&self.path);
        self.pause = if result.is_ok() { FIRST_RETRY } else { LAST_RETRY.min(self.pause * 2) };
        self.due = now.after(self.pause);
        result
    }

    /// The connection ended; `by_fault` when the guest broke the protocol.
    pub(crate) fn hung_up(&mut self, now: Timestamp, by_fault: bool) {
        self.due = now.after(if by_fault { RETRY_AFTER_FAULT } else { FIRST_RETRY });
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path) -> Result<(), DataplaneError> {
    let io_error = |what| move |source| DataplaneError::Io { what, path: path.to_owned(), source };
    let metadata = std::fs::symlink_metadata(path).map_err(io_error("look at"))?;
    if !metadata.file_type().is_socket() {
        return Err(DataplaneError::NotASocket { path: path.to_owned() });
    }
    // mio connects without blocking, should the backlog be full.
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io_error("remove the stale socket"))
        }
        // Accepted, or its backlog is full: somebody is there.
        _ => Err(DataplaneError::SocketTaken { path: path.to_owned() }),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as BlockingStream;

    use super::*;

    fn open(path: &Path) -> Result<Endpoint, DataplaneError> {
        Endpoint::open(path, SocketRole::Server, Timestamp::default())
    }

    #[test]
    fn a_socket_left_by_a_dead_owner_is_taken_over_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm1.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = open(&path).unwrap();
        assert!(matches!(open(&path), Err(DataplaneError::SocketTaken { .. })));
        assert!(BlockingStream::connect(&path).is_ok());
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm1.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(open(&path), Err(DataplaneError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_that_no_socket_address_holds_is_refused_with_its_length() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(103)));
        assert!(matches!(open(&path), Err(DataplaneError::SocketPathTooLong { len: 108, max: 107, .. })));
    }

    #[test]
    fn a_socket_that_somebody_else_put_there_is_not_unlinked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm1.sock");
        let ours = open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }
}
