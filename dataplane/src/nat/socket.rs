//! Sockets as the NAT wants them: they never block, and say what happens to them through the worker's poll.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use rustix::process::{Resource, getrlimit};
use weft_switch::nat::tcp::SocketError;

use super::calls;

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A descriptor out of those that guests and clients may cause to be open, in all networks. The others are for sessions, the control socket and files.
#[derive(Debug)]
pub(super) struct Share(());

/// How many of them are open.
static OPEN: AtomicUsize = AtomicUsize::new(0);
/// One in so many is kept back.
const KEPT_BACK: usize = 4;

impl Share {
    pub(super) fn take() -> Result<Self, Errno> {
        if OPEN.fetch_add(1, Ordering::Relaxed) >= shares() {
            OPEN.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::MFILE);
        }
        Ok(Self(()))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many sockets NATs may have: as the limit of open files was when this was first asked.
pub(super) fn shares() -> usize {
    static SHARES: OnceLock<usize> = OnceLock::new();
    *SHARES.get_or_init(|| {
        let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
        limit - limit / KEPT_BACK
    })
}

/// A stream to the outside.
#[derive(Debug)]
pub(super) struct TcpSocket {
    fd: OwnedFd,
    _share: Share,
    /// From where the kernel peeks next; `None` where it has to be told with each call.
    peek_offset: Option<u32>,
}

/// How a connection began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connect {
    Done,
    UnderWay,
}

impl TcpSocket {
    /// A new socket, bound to one of `ports` or to none if that is refused. Bound for the first of an inside endpoint's connections
    /// (`shared: false`), the port is its own, so that nobody else has it; the others share it with that first one.
    pub(super) fn bound(ports: impl Iterator<Item = u16>, shared: bool, can_peek_at: bool) -> Result<(Self, Option<u16>), Errno> {
        let share = Share::take()?;
        let fd = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None)?;
        if shared {
            share_port(&fd)?;
        }
        let mut bound = None;
        for port in ports {
            if rustix::net::bind(&fd, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).is_ok() {
                bound = Some(port);
                break;
            }
        }
        if !shared && bound.is_some() {
            // From now on it can be shared with those that say the same.
            share_port(&fd)?;
        }
        Ok((Self::prepare(fd, share, can_peek_at)?, bound))
    }

    /// A connection that a listener has accepted.
    pub(super) fn accepted((fd, share): Accepted, can_peek_at: bool) -> Result<Self, Errno> {
        Self::prepare(fd, share, can_peek_at)
    }

    fn prepare(fd: OwnedFd, share: Share, can_peek_at: bool) -> Result<Self, Errno> {
        // The guest decides for itself when a segment is worth sending.
        sockopt::set_tcp_nodelay(&fd, true)?;
        // Urgent data stay in the stream.
        sockopt::set_socket_oobinline(&fd, true)?;
        sockopt::set_socket_keepalive(&fd, true)?;
        let mut socket = Self { fd, _share: share, peek_offset: None };
        if can_peek_at {
            calls::set_peek_offset(socket.fd(), 0)?;
            socket.peek_offset = Some(0);
        }
        Ok(socket)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn connect(&self, to: SocketAddrV4) -> Result<Connect, Errno> {
        match rustix::net::connect(&self.fd, &to) {
            Ok(()) => Ok(Connect::Done),
            Err(Errno::INPROGRESS) => Ok(Connect::UnderWay),
            Err(error) => Err(error),
        }
    }

    /// Bytes that a peek `offset` bytes behind the stream's first has to skip by itself.
    pub(super) fn peek_from(&mut self, offset: u32) -> Result<usize, Errno> {
        match self.peek_offset {
            Some(current) if current == offset => Ok(0),
            Some(_) => {
                // No overflow: an offset lies within a window.
                calls::set_peek_offset(self.fd(), offset as i32)?;
                self.peek_offset = Some(offset);
                Ok(0)
            }
            None => Ok(offset as usize),
        }
    }

    /// As many bytes were peeked at.
    pub(super) fn peeked(&mut self, len: usize) {
        if let Some(offset) = &mut self.peek_offset {
            *offset += len as u32;
        }
    }

    /// Takes bytes out of the stream.
    pub(super) fn discard(&mut self, len: u32) -> Result<(), Errno> {
        let mut left = len as usize;
        while left > 0 {
            // It stops at urgent data, for one.
            match calls::discard(self.fd(), left)? {
                0 => break,
                taken => left -= taken.min(left),
            }
        }
        if let Some(offset) = &mut self.peek_offset {
            *offset = offset.saturating_sub(len);
        }
        Ok(())
    }

    /// Ends the direction away from us.
    pub(super) fn shutdown(&self) -> Result<(), Errno> {
        rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write)
    }

    /// Closes it with a RST.
    pub(super) fn reset(self) {
        // Without it there is a FIN, which the far end will make of it what it can.
        let _ = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
    }

    /// What has gone wrong, if anything.
    pub(super) fn error(&self) -> Result<(), Errno> {
        sockopt::socket_error(&self.fd)?
    }
}

/// A socket for datagrams: of UDP, or of ICMP echo, where its port is an identifier.
#[derive(Debug)]
pub(super) struct DatagramSocket {
    fd: OwnedFd,
    _share: Share,
    pub(super) port: u16,
    dont_fragment: bool,
}

impl DatagramSocket {
    /// A socket with one of `ports`, or with one that the kernel chooses.
    pub(super) fn bound(protocol: Option<Protocol>, ports: impl Iterator<Item = u16>) -> Result<Self, Errno> {
        let addresses = ports.chain([0]).map(|port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
        Self::new(protocol, addresses)
    }

    /// A socket with this address and no other.
    pub(super) fn bound_to(address: SocketAddrV4) -> Result<Self, Errno> {
        Self::new(None, [address].into_iter())
    }

    fn new(protocol: Option<Protocol>, addresses: impl Iterator<Item = SocketAddrV4>) -> Result<Self, Errno> {
        let share = Share::take()?;
        let fd = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, protocol)?;
        calls::set_error_queue(fd.as_fd())?;
        if protocol.is_none() {
            // Without it they come one by one.
            let _ = calls::set_receive_offload(fd.as_fd());
        }
        let mut last = Err(Errno::ADDRINUSE);
        for address in addresses {
            last = rustix::net::bind(&fd, &address);
            if last.is_ok() {
                break;
            }
        }
        last?;
        let port = local_port(&fd)?;
        let socket = Self { fd, _share: share, port, dont_fragment: false };
        socket.set_discovery(false)?;
        Ok(socket)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether datagrams may be fragmented on their way (RFC 4787, REQ-13).
    pub(super) fn set_dont_fragment(&mut self, dont: bool) -> Result<(), Errno> {
        if self.dont_fragment != dont {
            self.set_discovery(dont)?;
            self.dont_fragment = dont;
        }
        Ok(())
    }

    fn set_discovery(&self, dont: bool) -> Result<(), Errno> {
        let how = if dont { Ipv4PathMtuDiscovery::DO } else { Ipv4PathMtuDiscovery::DONT };
        sockopt::set_ip_mtu_discover(&self.fd, how)
    }

    /// Takes the error that the next call would report instead of doing its work; the queue has the details.
    pub(super) fn clear_error(&self) {
        // Nothing to do about an error about an error.
        let _ = sockopt::socket_error(&self.fd);
    }
}

/// A socket for connections from outside.
#[derive(Debug)]
pub(super) struct Listener {
    fd: OwnedFd,
}

impl Listener {
    pub(super) fn bound(address: SocketAddrV4) -> Result<Self, Errno> {
        let fd = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None)?;
        // Connections that this port had before must not stand in the way of a restart.
        sockopt::set_socket_reuseaddr(&fd, true)?;
        rustix::net::bind(&fd, &address)?;
        rustix::net::listen(&fd, BACKLOG)?;
        Ok(Self { fd })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn address(&self) -> Result<SocketAddrV4, Errno> {
        local_address(&self.fd)
    }

    /// The next connection that waits, and who wants it.
    pub(super) fn accept(&self) -> Result<(Accepted, SocketAddrV4), Errno> {
        let share = Share::take()?;
        let (fd, from) = rustix::net::acceptfrom_with(&self.fd, FLAGS)?;
        let from = from.and_then(|from| SocketAddrV4::try_from(from).ok()).ok_or(Errno::AFNOSUPPORT)?;
        Ok(((fd, share), from))
    }
}

/// A connection from outside, and its share of descriptors.
pub(super) type Accepted = (OwnedFd, Share);

/// True if the kernel can peek at a stream from anywhere (Linux 6.9).
pub(super) fn can_peek_at() -> bool {
    rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None)
        .is_ok_and(|fd| calls::set_peek_offset(fd.as_fd(), 0).is_ok())
}

/// Lets other sockets that say the same have the same port. Either option would do; but a port whose first socket did not say so from the beginning is
/// compared with all its sockets at each `bind` unless they have `SO_REUSEPORT`, too: then the kernel remembers that they match.
fn share_port(fd: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_socket_reuseaddr(fd, true)?;
    sockopt::set_socket_reuseport(fd, true)
}

/// Lets the worker's poll tell of a socket, whenever something about it changes.
pub(super) fn register(registry: &Registry, fd: BorrowedFd<'_>, token: Token, writable: bool) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let interest = if writable { Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY } else { Interest::READABLE };
    let registered = registry.register(&mut SourceFd(&fd.as_raw_fd()), token, interest);
    registered.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

pub(super) fn local_address(fd: impl AsFd) -> Result<SocketAddrV4, Errno> {
    SocketAddrV4::try_from(rustix::net::getsockname(fd)?).map_err(|_| Errno::AFNOSUPPORT)
}

pub(super) fn local_port(fd: impl AsFd) -> Result<u16, Errno> {
    local_address(fd).map(|address| address.port())
}

/// What a guest is to be told of an error.
pub(super) fn socket_error(errno: Errno) -> SocketError {
    match errno {
        Errno::CONNREFUSED => SocketError::Refused,
        Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED | Errno::NOTCONN => SocketError::Reset,
        Errno::HOSTUNREACH | Errno::HOSTDOWN => SocketError::HostUnreachable,
        Errno::NETUNREACH | Errno::NETDOWN | Errno::NONET => SocketError::NetUnreachable,
        Errno::TIMEDOUT => SocketError::TimedOut,
        Errno::ACCESS | Errno::PERM => SocketError::Prohibited,
        _ => SocketError::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_may_share_a_port_and_whoever_wants_one_of_its_own_does_not_get_it() {
        let Ok((_first, Some(port))) = TcpSocket::bound(32_768.., false, false) else { panic!("no port is free") };
        let others: Vec<_> = (0..100).map(|_| TcpSocket::bound([port].into_iter(), true, false).unwrap()).collect();
        assert!(others.iter().all(|(_, bound)| *bound == Some(port)));
        assert!(TcpSocket::bound([port].into_iter(), false, false).is_ok_and(|(_, bound)| bound.is_none()));
    }
}
