//! The control socket: lines in, lines out, for up to 64 clients.
//!
//! Nothing that a client does holds up the switch or another client. Reads and writes never block; a request has a
//! greatest length; a client that leaves its answers lying is dropped; and in one turn a client gets a bounded
//! number of requests carried out before the next one's turn.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::Value;
use tracing::{debug, warn};

use crate::api::Handler;
use crate::capture::Streaming;
use crate::rpc::{LINE_MAX, RpcError, Session, error_line};

/// How many clients can be connected at once.
pub(crate) const CLIENTS_MAX: usize = 64;

/// A client that has this many bytes of answers lying when it sends the next request is dropped.
pub(crate) const UNREAD_MAX: usize = 1024 * 1024;

/// How many reads and requests of one client are done before the others' turn.
const TURN_MAX: usize = 32;

/// How many connections the kernel keeps for us between two turns.
const BACKLOG: i32 = 128;

/// The control socket can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The path is too long for a Unix socket address.
    #[error("the control socket's path {path:?} has {} bytes, more than a Unix socket takes: use a shorter --run-dir", path.as_os_str().len())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something is there that is no socket.
    #[error("{path:?} is there and is not a socket: remove it, or choose another --run-dir")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot make the control socket {path:?}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// The listening socket and its clients.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    token: Token,
    clients: Vec<Option<Client>>,
    /// Connections wait that could not be taken; there were no descriptors left.
    accept_again: bool,
}

struct Client {
    stream: UnixStream,
    session: Session,
    from_client: Vec<u8>,
    to_client: VecDeque<u8>,
    /// No more requests are read; the connection ends when the answers are written.
    ending: bool,
    /// There may be more to read or carry out than the last turn allowed.
    unfinished: bool,
    /// What becomes of the connection, which is not for requests any more.
    streaming: Option<Streaming>,
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("stream", &self.stream).field("ending", &self.ending).finish_non_exhaustive()
    }
}

/// What becomes of a client after its turn.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Goes,
}

impl Server {
    /// Listens at `path`. `token` is the listener's, and the [`CLIENTS_MAX`] after it are the clients'.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub(crate) fn listen(path: &Path, registry: &Registry, token: Token) -> Result<Self, ServerError> {
        let io_error = |source: io::Error| ServerError::Io { path: path.to_owned(), source };
        let mut listener = bind(path)?;
        registry.register(&mut listener, token, Interest::READABLE).map_err(io_error)?;
        let clients = std::iter::repeat_with(|| None).take(CLIENTS_MAX).collect();
        Ok(Self { listener, path: path.to_owned(), token, clients, accept_again: false })
    }

    /// True for tokens of the listener and its clients.
    pub(crate) fn owns(&self, token: Token) -> bool {
        (self.token.0..=self.token.0 + CLIENTS_MAX).contains(&token.0)
    }

    /// Handles one event of ours.
    pub(crate) fn handle(&mut self, event: &Event, registry: &Registry, handler: &mut dyn Handler) {
        match event.token().0 - self.token.0 {
            0 => self.accept(registry),
            number => self.serve(number - 1, registry, handler),
        }
    }

    /// True when [`Self::finish`] has something to do at once.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.clients.iter().flatten().any(|client| client.unfinished)
    }

    /// True when connections wait for descriptors: [`Self::finish`] should be called again soon.
    pub(crate) fn accepts_again(&self) -> bool {
        self.accept_again
    }

    /// Gives every client with unfinished business a turn.
    pub(crate) fn finish(&mut self, registry: &Registry, handler: &mut dyn Handler) {
        if self.accept_again {
            self.accept(registry);
        }
        for index in 0..self.clients.len() {
            if self.clients[index].as_ref().is_some_and(|client| client.unfinished) {
                self.serve(index, registry, handler);
            }
        }
    }

    fn accept(&mut self, registry: &Registry) {
        self.accept_again = false;
        // No more than the kernel keeps, so that a flood of connections ends the loop too.
        for _ in 0..BACKLOG {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream, registry),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted || error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    warn!("cannot take a control connection: {error}");
                    break;
                }
            }
        }
        self.accept_again = true;
    }

    fn welcome(&mut self, mut stream: UnixStream, registry: &Registry) {
        let Some(index) = self.clients.iter().position(Option::is_none) else {
            warn!("a control client is turned away: {CLIENTS_MAX} are connected already");
            let line = error_line(&Value::Null, &RpcError::too_many_clients(CLIENTS_MAX)) + "\n";
            // If not even this fits into an empty socket, closing says enough.
            let _ = stream.write(line.as_bytes());
            return;
        };
        let token = Token(self.token.0 + 1 + index);
        if let Err(error) = registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE) {
            warn!("cannot watch a control connection: {error}");
            return;
        }
        self.clients[index] = Some(Client::new(stream));
    }

    fn serve(&mut self, index: usize, registry: &Registry, handler: &mut dyn Handler) {
        let Some(client) = &mut self.clients[index] else { return };
        if client.serve(handler) == Fate::Goes {
            self.clients[index] = None;
        } else if let Some(streaming) = client.streaming.take()
            && let Some(Client { mut stream, to_client, .. }) = self.clients[index].take()
        {
            // Somebody else's from now on; fails only where watching failed.
            let _ = registry.deregister(&mut stream);
            streaming(OwnedFd::from(stream).into(), to_client.into());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!("cannot remove the control socket {}: {error}", self.path.display());
        }
    }
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            session: Session::default(),
            from_client: Vec::new(),
            to_client: VecDeque::new(),
            ending: false,
            unfinished: true,
            streaming: None,
        }
    }

    /// One turn: writes what can be written, reads what can be read, carries out what is complete.
    fn serve(&mut self, handler: &mut dyn Handler) -> Fate {
        self.unfinished = true;
        for _ in 0..TURN_MAX {
            match self.step(handler) {
                Ok(true) => {}
                Ok(false) => {
                    self.unfinished = false;
                    break;
                }
                Err(error) => {
                    debug!("a control client is dropped: {error}");
                    return Fate::Goes;
                }
            }
        }
        if self.ending && self.to_client.is_empty() { Fate::Goes } else { Fate::Stays }
    }

    /// The next thing to do. False when there is nothing until the next event.
    fn step(&mut self, handler: &mut dyn Handler) -> io::Result<bool> {
        self.write()?;
        if let Some(line) = self.take_line() {
            if self.to_client.len() > UNREAD_MAX {
                warn!("a control client is dropped: it does not read its answers");
                return Err(io::Error::other("it does not read its answers"));
            }
            if let Some(answer) = self.session.answer(&line, handler) {
                self.queue(&answer);
            }
            self.streaming = handler.take_streaming();
            return Ok(self.streaming.is_none());
        }
        if self.ending {
            return Ok(false);
        }
        if self.from_client.len() >= LINE_MAX {
            self.queue(&error_line(&Value::Null, &RpcError::too_long()));
            self.from_client = Vec::new();
            self.ending = true;
            return Ok(true);
        }
        self.read()
    }

    /// The next complete line, without its newline. Blank lines are skipped: people type them.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.from_client.iter().take(LINE_MAX).position(|&byte| byte == b'\n')?;
            let mut line: Vec<u8> = self.from_client.drain(..=end).collect();
            line.pop();
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }

    fn queue(&mut self, line: &str) {
        self.to_client.extend(line.as_bytes());
        self.to_client.push_back(b'\n');
    }

    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => {
                // The client may have closed its sending side only, and still wait for answers.
                self.ending = true;
                Ok(true)
            }
            Ok(count) => {
                self.from_client.extend_from_slice(&chunk[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.to_client.is_empty() {
            match self.stream.write(self.to_client.as_slices().0) {
                Ok(count) => drop(self.to_client.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A listening socket that nobody but our user could open at any moment.
///
/// Linux gives the file the mode of the socket that is bound (unix(7) leaves it to the umask, which can only take
/// away): setting it before `bind` leaves no gap, and the umask of the process alone.
fn bind(path: &Path) -> Result<UnixListener, ServerError> {
    let io_error = |source: io::Error| ServerError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path).map_err(io_error)?,
        Ok(_) => return Err(ServerError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(error)),
    }
    let address = SocketAddrUnix::new(path).map_err(|errno| match errno {
        Errno::NAMETOOLONG => ServerError::PathTooLong { path: path.to_owned() },
        other => io_error(other.into()),
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(|errno| io_error(errno.into()))?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|errno| io_error(errno.into()))?;
    rustix::net::bind(&socket, &address).map_err(|errno| io_error(errno.into()))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|errno| io_error(errno.into()))?;
    Ok(UnixListener::from_std(socket.into()))
}
