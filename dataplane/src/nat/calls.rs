//! System calls on sockets whose data are where a guest has them: sending from its buffers, receiving into them.
//!
//! These are here, and not the library's safe ones, because no Rust reference may point into guest memory. The kernel copies; whatever the
//! guest writes meanwhile is its own affair, and an address that is no longer backed by anything is an error (`EFAULT`), not a
//! signal. The rest are options and ancillary data that the library doesn't know.
//!
//! Safety rests on one thing: that the [`Segment`]s that come in here are mapped (or private memory of the caller's) for as long as the call
//! takes. A worker holds the ring, and with it the memory, from which it took them.

use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;

use rustix::io::Errno;

use crate::memory::Segment;

/// The most pieces that one call takes (`UIO_MAXIOV`).
pub(super) const PIECES_MAX: usize = 1024;
/// The most datagrams that one call takes.
pub(super) const DATAGRAMS: usize = 16;
/// Bytes of the largest datagram.
const DATAGRAM_LEN: usize = 65_535;
/// Bytes in front of each datagram that came in, for headers.
pub(super) const HEADROOM: usize = 64;
const SLOT_LEN: usize = HEADROOM + DATAGRAM_LEN;
/// Room for the ancillary data that are asked for.
const CONTROL_LEN: usize = 256;

/// What a packet should look like besides its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Its TTL, unless the host's own will do.
    pub(super) ttl: Option<u8>,
    /// Its type of service.
    pub(super) tos: u8,
    /// It stands for several datagrams, of this many bytes of payload each but the last.
    pub(super) segment: Option<u16>,
}

/// What the kernel says in a socket's error queue (`ip(7)`, `IP_RECVERR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueuedError {
    /// As `errno` would have it.
    pub(super) errno: i32,
    /// Who said it; `None` if it was this host.
    pub(super) from: Option<Ipv4Addr>,
    /// ICMP type and code, if somebody else said it.
    pub(super) kind: u8,
    pub(super) code: u8,
    /// The MTU, if it is about that.
    pub(super) info: u32,
    /// Where the packet was to go.
    pub(super) destination: SocketAddrV4,
    /// Bytes of its payload that came back, in the caller's buffer.
    pub(super) quoted: usize,
}

/// Datagrams that came in one piece.
#[derive(Clone, Copy, Debug)]
struct Arrived {
    from: SocketAddrV4,
    len: usize,
    /// Bytes of each but the last, if they are several.
    size: Option<u16>,
}

/// A control message buffer, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

/// Buffers that calls need, used again and again.
pub(super) struct Calls {
    pieces: Vec<libc::iovec>,
    /// Where bytes go that are read and not wanted.
    nowhere: Vec<u8>,
    /// Datagrams that came in, with who sent them and how long they are.
    datagrams: Vec<u8>,
    arrived: Vec<Arrived>,
}

// SAFETY: the pieces are addresses that are followed only within the call that sets them.
unsafe impl Send for Calls {}

impl std::fmt::Debug for Calls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Calls").finish_non_exhaustive()
    }
}

impl Calls {
    pub(super) fn new() -> Self {
        let datagrams = vec![0; DATAGRAMS * SLOT_LEN];
        Self { pieces: Vec::new(), nowhere: Vec::new(), datagrams, arrived: Vec::with_capacity(DATAGRAMS) }
    }

    /// Sends `pieces` in order: as one datagram to `to`, or as much as fits into the stream of a connected socket.
    ///
    /// # Errors
    /// [`Errno::MSGSIZE`] for a datagram in more than [`PIECES_MAX`] pieces; a stream takes them with several calls.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        to: Option<SocketAddrV4>,
        pieces: &[Segment],
        marks: Marks,
    ) -> Result<usize, Errno> {
        if pieces.len() <= PIECES_MAX {
            return self.send_at_once(socket, to, pieces, marks);
        }
        if to.is_some() {
            return Err(Errno::MSGSIZE);
        }
        let (mut sent, mut offered) = (0, 0);
        for some in pieces.chunks(PIECES_MAX) {
            let wanted: usize = some.iter().map(|piece| piece.len).sum();
            match self.send_at_once(socket, None, some, marks) {
                Ok(len) => sent += len,
                // What is wrong is heard again by whoever comes next.
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error),
            }
            offered += wanted;
            if sent < offered {
                break;
            }
        }
        Ok(sent)
    }

    fn send_at_once(
        &mut self,
        socket: BorrowedFd<'_>,
        to: Option<SocketAddrV4>,
        pieces: &[Segment],
        marks: Marks,
    ) -> Result<usize, Errno> {
        self.pieces.clear();
        self.pieces.extend(pieces.iter().map(iovec));
        let mut address = to.map(sockaddr);
        // SAFETY: all zeros are a valid, empty message header.
        let mut message: libc::msghdr = unsafe { zeroed() };
        if let Some(address) = &mut address {
            message.msg_name = (&raw mut *address).cast();
            message.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
        }
        message.msg_iov = self.pieces.as_mut_ptr();
        message.msg_iovlen = self.pieces.len();
        let mut control = Control([0; CONTROL_LEN]);
        marks.write(&mut message, &mut control);
        // SAFETY: the header points to buffers that live until the call returns, as the module's description says of the pieces.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        result(sent)
    }

    /// Reads from the stream into `pieces` what lies `skip` bytes behind its first, and leaves it there. Zero is the end of the stream.
    /// `skip` is for sockets that don't know an offset themselves ([`set_peek_offset`]).
    pub(super) fn peek(&mut self, socket: BorrowedFd<'_>, skip: usize, pieces: &[Segment]) -> Result<usize, Errno> {
        self.pieces.clear();
        if skip > 0 {
            if self.nowhere.len() < skip {
                self.nowhere.resize(skip, 0);
            }
            self.pieces.push(libc::iovec { iov_base: self.nowhere.as_mut_ptr().cast(), iov_len: skip });
        }
        let room = PIECES_MAX - self.pieces.len();
        self.pieces.extend(pieces.iter().take(room).map(iovec));
        // SAFETY: all zeros are a valid, empty message header.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = self.pieces.as_mut_ptr();
        message.msg_iovlen = self.pieces.len();
        // SAFETY: as in `send`; the pieces were offered for writing.
        let read = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
        match result(read)? {
            read if read > skip => Ok(read - skip),
            // Everything is skipped: whether more may come, only a look at the end can say.
            read if read > 0 && skip > 0 => Err(Errno::AGAIN),
            read => Ok(read),
        }
    }

    /// Takes the datagrams that have come, [`DATAGRAMS`] at most; [`Self::arrived`] has them then.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        self.arrived.clear();
        let buffers = self.datagrams.as_mut_ptr();
        // SAFETY: all zeros are valid for these plain structures of the kernel's.
        let mut addresses: [libc::sockaddr_in; DATAGRAMS] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; DATAGRAMS] = unsafe { zeroed() };
        let mut pieces = [libc::iovec { iov_base: null_mut(), iov_len: DATAGRAM_LEN }; DATAGRAMS];
        let mut controls = [Control([0; CONTROL_LEN]); DATAGRAMS];
        for (at, message) in messages.iter_mut().enumerate() {
            // SAFETY: `datagrams` has `DATAGRAMS` times `SLOT_LEN` bytes.
            pieces[at].iov_base = unsafe { buffers.add(at * SLOT_LEN + HEADROOM) }.cast();
            message.msg_hdr.msg_iov = &raw mut pieces[at];
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = (&raw mut addresses[at]).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            message.msg_hdr.msg_control = controls[at].0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL_LEN;
        }
        let (socket, count) = (socket.as_raw_fd(), DATAGRAMS as u32);
        // SAFETY: each message points to buffers of its own that live until the call returns.
        let read = unsafe { libc::recvmmsg(socket, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT, null_mut()) };
        let read = result(read as isize)?;
        let arrived = addresses.iter().zip(&messages).take(read);
        self.arrived.extend(arrived.map(|(address, message)| Arrived {
            from: socket_address(address),
            len: message.msg_len as usize,
            size: segment_size(&message.msg_hdr),
        }));
        Ok(read)
    }

    /// Who sent the `at`-th datagram that [`Self::receive`] found, and what it is, with [`HEADROOM`] bytes in front. It may be several: then
    /// it says also how many bytes each has.
    pub(super) fn arrived(&mut self, at: usize) -> (SocketAddrV4, &mut [u8], Option<u16>) {
        let Arrived { from, len, size } = self.arrived[at];
        (from, &mut self.datagrams[at * SLOT_LEN..][..HEADROOM + len], size)
    }
}

impl Marks {
    /// Adds these to a message.
    fn write(self, message: &mut libc::msghdr, control: &mut Control) {
        let ip = |value: u8| i32::from(value).to_ne_bytes();
        let wanted = [
            self.ttl.map(|ttl| (libc::IPPROTO_IP, libc::IP_TTL, ip(ttl), 4)),
            (self.tos != 0).then(|| (libc::IPPROTO_IP, libc::IP_TOS, ip(self.tos), 4)),
            self.segment.map(|size| {
                let [one, other] = size.to_ne_bytes();
                (libc::SOL_UDP, libc::UDP_SEGMENT, [one, other, 0, 0], 2)
            }),
        ];
        let mut used = 0;
        for (level, kind, value, len) in wanted.into_iter().flatten() {
            // SAFETY: `CMSG_SPACE` and `CMSG_LEN` only compute; three messages of at most four bytes fit into the buffer, which is aligned
            // for their headers.
            unsafe {
                let header: *mut libc::cmsghdr = control.0.as_mut_ptr().add(used).cast();
                (*header).cmsg_level = level;
                (*header).cmsg_type = kind;
                (*header).cmsg_len = libc::CMSG_LEN(len) as usize;
                libc::CMSG_DATA(header).copy_from_nonoverlapping(value.as_ptr(), len as usize);
                used += libc::CMSG_SPACE(len) as usize;
            }
        }
        if used > 0 {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = used;
        }
    }
}

/// What the kernel says about the datagrams that it has put together (`UDP_GRO`).
fn segment_size(message: &libc::msghdr) -> Option<u16> {
    // SAFETY: the kernel has filled the header and what it points to.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: `header` is one that the walk over the message found.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if (level, kind) == (libc::SOL_UDP, libc::UDP_GRO) {
            // SAFETY: the data of such a message are an `int`.
            let size = unsafe { libc::CMSG_DATA(header).cast::<i32>().read_unaligned() };
            return u16::try_from(size).ok().filter(|size| *size > 0);
        }
        // SAFETY: as for the first one.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

/// Takes the next error that the kernel has kept for this socket, if there is one. The beginning of the packet's payload goes to `quoted`.
pub(super) fn queued_error(socket: BorrowedFd<'_>, quoted: &mut [u8]) -> Option<QueuedError> {
    let mut piece = libc::iovec { iov_base: quoted.as_mut_ptr().cast(), iov_len: quoted.len() };
    let mut control = Control([0; CONTROL_LEN]);
    // SAFETY: all zeros are valid for these plain structures of the kernel's.
    let (mut address, mut message): (libc::sockaddr_in, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_LEN;
    // SAFETY: the header points to buffers that live until the call returns.
    let read = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    let quoted = result(read).ok()?;
    // SAFETY: the kernel has filled the header and what it points to.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: `header` is one that the walk over the message found.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR) {
            // SAFETY: the data of such a message are this structure, and behind it the address of who said it.
            let error = unsafe { libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned() };
            // SAFETY: as above.
            let offender = unsafe {
                let after = libc::CMSG_DATA(header).add(size_of::<libc::sock_extended_err>());
                after.cast::<libc::sockaddr_in>().read_unaligned()
            };
            let from = (error.ee_origin == libc::SO_EE_ORIGIN_ICMP).then(|| *socket_address(&offender).ip());
            return Some(QueuedError {
                errno: error.ee_errno as i32,
                from,
                kind: error.ee_type,
                code: error.ee_code,
                info: error.ee_info,
                destination: socket_address(&address),
                quoted,
            });
        }
        // SAFETY: as for the first one.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    None
}

/// Takes `len` bytes out of a stream and throws them away; says how many there were.
pub(super) fn discard(socket: BorrowedFd<'_>, len: usize) -> Result<usize, Errno> {
    // SAFETY: with `MSG_TRUNC`, the kernel writes nothing for a stream (`tcp(7)`).
    let read = unsafe { libc::recv(socket.as_raw_fd(), null_mut(), len, libc::MSG_TRUNC | libc::MSG_DONTWAIT) };
    result(read)
}

/// Bytes that a stream would take now: half of what is left by the measure that the kernel itself uses, which counts what it needs to
/// keep them, too, and whatever it still has to cut.
pub(super) fn send_space(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    const SNDBUF: usize = 3;
    const WMEM_QUEUED: usize = 5;
    let mut info = [0_u32; 9];
    let mut len = size_of_val(&info) as libc::socklen_t;
    let (place, socket) = (info.as_mut_ptr().cast(), socket.as_raw_fd());
    // SAFETY: `info` has `len` bytes.
    let got = unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, place, &raw mut len) };
    result(got as isize)?;
    Ok(info[SNDBUF].saturating_sub(info[WMEM_QUEUED]) / 2)
}

/// From where on a stream is peeked at next (`SO_PEEK_OFF`): fails where the kernel knows it for other sockets only.
pub(super) fn set_peek_offset(socket: BorrowedFd<'_>, offset: i32) -> Result<(), Errno> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
}

/// Lets the kernel put datagrams in a row together (`UDP_GRO`, Linux 5.0).
pub(super) fn set_receive_offload(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Asks for a queue of errors (`IP_RECVERR`).
pub(super) fn set_error_queue(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set_option(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
}

fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> Result<(), Errno> {
    let (place, len) = ((&raw const value).cast(), size_of::<i32>() as libc::socklen_t);
    // SAFETY: the option is an `int`.
    result(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, place, len) } as isize).map(drop)
}

fn iovec(piece: &Segment) -> libc::iovec {
    libc::iovec { iov_base: piece.ptr.cast(), iov_len: piece.len }
}

fn sockaddr(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn socket_address(address: &libc::sockaddr_in) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)), u16::from_be(address.sin_port))
}

fn result(returned: isize) -> Result<usize, Errno> {
    usize::try_from(returned).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_stream_takes_more_pieces_than_one_call_does() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        let mut data: Vec<u8> = (0..3000_u32).map(|at| at as u8).collect();
        let pieces: Vec<_> = data.iter_mut().map(|byte| Segment { ptr: byte, len: 1 }).collect();
        let sent = Calls::new().send(near.as_fd(), None, &pieces, Marks::default());
        assert_eq!(sent, Ok(data.len()));
        let mut read = vec![0; data.len()];
        far.read_exact(&mut read).unwrap();
        assert_eq!(read, data);
    }
}
