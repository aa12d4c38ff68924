//! Sockets to upstream DNS servers: one for each attempt, so that an answer can't be guessed from outside (RFC 5452, section 9).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::event::Event;
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use weft_switch::NetworkId;
use weft_switch::dns::{AttemptId, TcpFrames, UpstreamTransport, tcp_frame};

/// The most datagrams that are read of one attempt: who sends more is not the server, or not sane.
const DATAGRAMS_MAX: usize = 32;
/// The longest datagram.
const DATAGRAM_LEN_MAX: usize = 65_535;
/// How much is read from a connection at a time.
const CHUNK: usize = 16 * 1024;

/// The sockets of all networks.
#[derive(Debug)]
pub(super) struct UpstreamSockets {
    registry: Registry,
    first_token: usize,
    places: Vec<Option<Attempt>>,
    /// The places of attempts that are under way, and those that are free.
    by_attempt: BTreeMap<(NetworkId, AttemptId), usize>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

/// What happened on a socket.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A message came.
    Message(Vec<u8>),
    /// Nothing comes any more.
    Failed(io::Error),
}

#[derive(Debug)]
struct Attempt {
    key: (NetworkId, AttemptId),
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Udp { socket: UdpSocket, datagrams: usize },
    Tcp { stream: TcpStream, unsent: Vec<u8>, frames: TcpFrames },
}

impl UpstreamSockets {
    /// No sockets yet; their tokens are from `first_token` on.
    pub(super) fn new(registry: Registry, first_token: usize) -> Self {
        let buffer = vec![0; DATAGRAM_LEN_MAX];
        Self { registry, first_token, places: Vec::new(), by_attempt: BTreeMap::new(), free: Vec::new(), buffer }
    }

    /// Sends a message to a server. What comes of it comes as events.
    pub(super) fn ask(
        &mut self,
        network: NetworkId,
        attempt: AttemptId,
        server: SocketAddr,
        transport: UpstreamTransport,
        message: &[u8],
    ) -> io::Result<()> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let opened = Socket::open(server, transport, message, &self.registry, Token(self.first_token + place));
        match opened {
            Ok(socket) => {
                let key = (network, attempt);
                self.places[place] = Some(Attempt { key, socket });
                self.by_attempt.insert(key, place);
                Ok(())
            }
            Err(error) => {
                self.free.push(place);
                Err(error)
            }
        }
    }

    /// Closes the socket of an attempt, if it is still open.
    pub(super) fn close(&mut self, network: NetworkId, attempt: AttemptId) {
        if let Some(place) = self.by_attempt.remove(&(network, attempt)) {
            self.places[place] = None;
            self.free.push(place);
        }
    }

    /// Closes all sockets of a network.
    pub(super) fn forget(&mut self, network: NetworkId) {
        let of_network = (network, AttemptId(0))..=(network, AttemptId(u64::MAX));
        let attempts: Vec<_> = self.by_attempt.range(of_network).map(|((_, attempt), _)| *attempt).collect();
        attempts.into_iter().for_each(|attempt| self.close(network, attempt));
    }

    /// Reads and writes what the event says is possible. The caller closes what has failed.
    pub(super) fn handle(&mut self, event: &Event) -> Option<(NetworkId, AttemptId, Vec<Outcome>)> {
        let place = event.token().0.checked_sub(self.first_token)?;
        // An event may come for a socket that was closed in the same turn.
        let Attempt { key: (network, attempt), socket } = self.places.get_mut(place)?.as_mut()?;
        let mut outcomes = Vec::new();
        if let Err(error) = socket.exchange(&mut self.buffer, &mut outcomes) {
            outcomes.push(Outcome::Failed(error));
        }
        Some((*network, *attempt, outcomes))
    }
}

impl Socket {
    fn open(
        server: SocketAddr,
        transport: UpstreamTransport,
        message: &[u8],
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        match transport {
            UpstreamTransport::Udp => {
                let any = match server {
                    SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                };
                // Port zero: the kernel picks one at random. Connected: it takes answers from nobody else.
                let mut socket = UdpSocket::bind(any)?;
                socket.connect(server)?;
                registry.register(&mut socket, token, Interest::READABLE)?;
                socket.send(message)?;
                Ok(Self::Udp { socket, datagrams: 0 })
            }
            UpstreamTransport::Tcp => {
                let mut stream = TcpStream::connect(server)?;
                registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
                Ok(Self::Tcp { stream, unsent: tcp_frame(message), frames: TcpFrames::default() })
            }
        }
    }

    /// Goes on until it would have to wait.
    fn exchange(&mut self, buffer: &mut [u8], outcomes: &mut Vec<Outcome>) -> io::Result<()> {
        match self {
            Self::Udp { socket, datagrams } => {
                while let Some(len) = unless_blocked(socket.recv(buffer))? {
                    *datagrams += 1;
                    if *datagrams > DATAGRAMS_MAX {
                        return Err(io::Error::other("too many datagrams came"));
                    }
                    outcomes.push(Outcome::Message(buffer[..len].to_vec()));
                }
                Ok(())
            }
            Self::Tcp { stream, unsent, frames } => {
                if let Some(error) = stream.take_error()? {
                    return Err(error);
                }
                while !unsent.is_empty() {
                    match stream.write(unsent) {
                        Ok(len) => drop(unsent.drain(..len)),
                        // Not connected yet, or its buffer is full.
                        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
                            return Ok(());
                        }
                        Err(error) => return Err(error),
                    }
                }
                while let Some(len) = unless_blocked(stream.read(&mut buffer[..CHUNK]))? {
                    if len == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let fed = frames.feed(&buffer[..len], |message| outcomes.push(Outcome::Message(message.to_vec())));
                    fed.map_err(|_| io::Error::other("what came is not DNS"))?;
                    if !outcomes.is_empty() {
                        // One answer is all there is to it.
                        return Ok(());
                    }
                }
                Ok(())
            }
        }
    }
}

/// `None` when there is nothing for now.
fn unless_blocked(read: io::Result<usize>) -> io::Result<Option<usize>> {
    match read {
        Ok(len) => Ok(Some(len)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
