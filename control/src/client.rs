//! The client's side of the control socket: one connection, one request after the other.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{Hello, HelloParams, Method, PROTOCOL, VERSION, Warning};
use crate::host::CONTROL_SOCKET;
use crate::rpc::RpcError;

/// The switch answers within milliseconds, unless it waits for a stuck worker.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The request did not come through, or was refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no weft runs on {}: start one with `weft run`, or say where it runs with --run-dir", paths(.0))]
    NotRunning(Vec<PathBuf>),
    /// Not our socket.
    #[error("no permission to open {0:?}: weft runs as another user")]
    NotPermitted(PathBuf),
    /// Not our directory.
    #[error(
        "no permission to look into {0:?}, so it can't be told whether weft runs there: use sudo, or the user that weft runs as"
    )]
    NotVisible(PathBuf),
    /// The connection failed.
    #[error("the connection to weft at {path:?} failed: {source}")]
    Io {
        /// The control socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What came back is no answer.
    #[error("weft at {path:?} gave an answer that is none: {what}")]
    NotAnAnswer {
        /// The control socket.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The switch refused.
    #[error("{0}")]
    Refused(RpcError),
}

/// A connection to a running switch that speaks our protocol version.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    next_id: u64,
    /// Hears what the switch has to say beside a result.
    tell: fn(&Warning),
}

#[derive(Deserialize)]
struct Response {
    id: Value,
    #[serde(default)]
    warnings: Vec<Warning>,
    result: Option<Value>,
    error: Option<RpcError>,
}

impl Client {
    /// Connects to the first of `run_dirs` on which a weft listens, and makes sure of the protocol version.
    ///
    /// # Errors
    /// When no weft listens, or it speaks another version.
    pub fn connect(run_dirs: &[PathBuf]) -> Result<Self, ClientError> {
        for run_dir in run_dirs {
            let path = run_dir.join(CONTROL_SOCKET);
            match UnixStream::connect(&path) {
                Ok(stream) => return Self::greet(path, stream),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(not_permitted(run_dir, path)),
                Err(source) => return Err(ClientError::Io { path, source }),
            }
        }
        Err(ClientError::NotRunning(run_dirs.to_vec()))
    }

    /// The same connection, which tells of what the switch has to say beside a result.
    #[must_use]
    pub fn telling(self, tell: fn(&Warning)) -> Self {
        Self { tell, ..self }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// When the connection fails or the switch refuses.
    pub fn call<M: Method>(&mut self, params: &M::Params) -> Result<M::Answer, ClientError> {
        self.next_id += 1;
        let request = json!({ "jsonrpc": "2.0", "id": self.next_id, "method": M::NAME, "params": params });
        let line =
            self.exchange(&format!("{request}\n")).map_err(|source| ClientError::Io { path: self.path.clone(), source })?;
        let response: Response = serde_json::from_str(&line).map_err(|error| self.not_an_answer(&error))?;
        if let Some(error) = response.error {
            return Err(ClientError::Refused(error));
        }
        if response.id != self.next_id {
            return Err(self.not_an_answer(&format!("it belongs to request {}", response.id)));
        }
        response.warnings.iter().for_each(self.tell);
        serde_json::from_value(response.result.unwrap_or_default()).map_err(|error| self.not_an_answer(&error))
    }

    /// What comes after the answer to a request that makes the connection something else: bytes until it is closed, and as slowly as it pleases.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn into_stream(self) -> Result<BufReader<UnixStream>, ClientError> {
        let Self { path, stream, .. } = self;
        stream.get_ref().set_read_timeout(None).map_err(|source| ClientError::Io { path, source })?;
        Ok(stream)
    }

    fn greet(path: PathBuf, stream: UnixStream) -> Result<Self, ClientError> {
        let timeouts = stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
        timeouts.map_err(|source| ClientError::Io { path: path.clone(), source })?;
        let mut client = Self { path, stream: BufReader::new(stream), next_id: 0, tell: |_| {} };
        client.call::<Hello>(&HelloParams { protocol: PROTOCOL, client: Some(format!("weft {VERSION}")) })?;
        Ok(client)
    }

    fn exchange(&mut self, request: &str) -> io::Result<String> {
        // A switch that turns us away closes at once; what it said first is still there to be read.
        let written = self.stream.get_mut().write_all(request.as_bytes());
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(written.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(line),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", TIMEOUT.as_secs())))
            }
            Err(error) => Err(error),
        }
    }

    fn not_an_answer(&self, what: &dyn std::fmt::Display) -> ClientError {
        ClientError::NotAnAnswer { path: self.path.clone(), what: what.to_string() }
    }
}

/// The system gives the same error for a socket that is not ours to open and for a directory that hides it.
fn not_permitted(run_dir: &Path, path: PathBuf) -> ClientError {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => ClientError::NotVisible(run_dir.to_owned()),
        _ => ClientError::NotPermitted(path),
    }
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path: &PathBuf| Path::display(path).to_string()).collect::<Vec<_>>().join(" or ")
}
