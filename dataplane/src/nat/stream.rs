//! One connection: the state machine, and the socket that it drives.

use std::net::SocketAddrV4;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use weft_switch::nat::error::{IcmpError, Subject};
use weft_switch::nat::frame::{self, TCP_HEADERS_LEN};
use weft_switch::nat::tcp::{Action, Connection, Flags, Seq};
use weft_switch::{Offload, PortId, Station, Timestamp, complete_checksum, segment};

use super::calls::{Marks, PIECES_MAX, send_space};
use super::seam::{NoRoom, ToGuests};
use super::socket::{TcpSocket, socket_error};
use super::{Common, Readiness, part_of};
use crate::memory::Segment;

/// The most frames with data that one connection sends in a round.
const FRAMES: usize = 32;

/// What identifies a connection: both ends as the guest knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub(super) inside: SocketAddrV4,
    pub(super) remote: SocketAddrV4,
}

/// A connection with its socket.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) connection: Connection,
    pub(super) socket: Option<TcpSocket>,
    pub(super) station: Station,
    pub(super) ends: Ends,
    /// The number of the guest's SYN, for errors about it.
    pub(super) syn: Seq,
    pub(super) outside: Option<u16>,
    /// The port is shared by all connections of its inside endpoint.
    pub(super) shares_port: bool,
    pub(super) since: Timestamp,
    pub(super) forwarded: bool,
    pub(super) connecting: bool,
    /// The far end uses urgent data: then a short read says nothing.
    pub(super) urgent: bool,
    /// Waits for the socket to have room.
    pub(super) watching: bool,
    /// It is among those that have had segments in this batch.
    pub(super) touched: bool,
    /// It has a place in the next round.
    pub(super) queued: bool,
    pub(super) blocked: bool,
    /// When it was last looked for, the guest was not there.
    pub(super) absent: bool,
    /// The guest has got data since this was last looked at.
    pub(super) progressed: bool,
    /// Where its data are gathered in this batch.
    pub(super) gathered: Option<usize>,
}

impl Stream {
    /// A connection of which nothing has happened yet.
    pub(super) fn new(now: Timestamp, station: Station, ends: Ends, syn: Seq, connection: Connection, socket: TcpSocket) -> Self {
        Self {
            connection,
            socket: Some(socket),
            station,
            ends,
            syn,
            outside: None,
            shares_port: false,
            since: now,
            forwarded: false,
            connecting: false,
            urgent: false,
            watching: false,
            touched: false,
            queued: false,
            blocked: false,
            absent: false,
            progressed: false,
            gathered: None,
        }
    }

    /// Writes what was gathered, and tells the connection how much of it the socket took.
    pub(super) fn write(&mut self, common: &mut Common, now: Timestamp, pieces: &[Segment]) {
        let Some(socket) = &self.socket else { return };
        match common.calls.send(socket.fd(), None, pieces, Marks::default()) {
            Ok(len) => self.connection.written(now, len as u32),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => self.connection.written(now, 0),
            Err(error) => {
                self.connection.failed(socket_error(error));
                return;
            }
        }
        self.note_space(now);
    }

    fn note_space(&mut self, now: Timestamp) {
        if let Some(socket) = &self.socket {
            self.connection.space(now, send_space(socket.fd()).unwrap_or(0));
        }
    }

    pub(super) fn ready(&mut self, now: Timestamp, readiness: Readiness) {
        let Some(socket) = &self.socket else { return };
        self.urgent |= readiness.urgent;
        if readiness.error || self.connecting {
            match socket.error() {
                Err(error) => {
                    self.connection.failed(socket_error(error));
                    return;
                }
                Ok(()) if self.connecting && readiness.writable => {
                    self.connecting = false;
                    self.connection.connected(now, send_space(socket.fd()).unwrap_or(0));
                }
                Ok(()) => {}
            }
        }
        if readiness.readable {
            self.connection.readable();
        }
        if readiness.hangup {
            self.connection.hangup();
        }
        if readiness.writable && std::mem::take(&mut self.watching) {
            self.note_space(now);
        }
    }

    /// Does what the connection wants done. False if there is more than fits into a round.
    pub(super) fn work(&mut self, common: &mut Common, now: Timestamp, guests: &mut impl ToGuests) -> bool {
        let mut frames = 0;
        while let Some(action) = self.connection.next_action(now) {
            match action {
                Action::Send(segment) => {
                    let (link, Ends { inside, remote }) = (common.link(self.station), self.ends);
                    let offload = frame::tcp(link, remote, inside, &segment, u32::MAX, &mut common.frame);
                    if !send_whole(common, guests, self.station.port, &offload) && segment.flags == Flags::ACK {
                        // Nobody would send it again, and the guest may wait for it.
                        self.connection.unsent();
                        return true;
                    }
                }
                Action::SendData { .. } if common.is_laden() => return false,
                Action::SendData { from, offset, limit, mss } => {
                    self.send_data(common, now, guests, (from, offset, limit, mss));
                    frames += 1;
                    if frames == FRAMES {
                        return false;
                    }
                }
                Action::Tell(refusal) => {
                    let error = IcmpError::of_refusal(common.settings.gateway, refusal);
                    let ends = (self.ends.inside, self.ends.remote);
                    common.tell(now, self.station, &error, ends, Subject::Tcp(self.syn.0));
                }
                Action::Discard(len) => {
                    if let Some(socket) = &mut self.socket
                        && let Err(error) = socket.discard(len)
                    {
                        self.connection.failed(socket_error(error));
                    }
                }
                Action::Shutdown => {
                    // If the far end is gone, an event says so.
                    let _ = self.socket.as_ref().map(TcpSocket::shutdown);
                }
                Action::Watch => self.watch(now),
                Action::Close => self.socket = None,
                Action::Reset => {
                    if let Some(socket) = self.socket.take() {
                        socket.reset();
                    }
                }
            }
        }
        true
    }

    /// Looks whether the socket has room; if it hasn't, the kernel tells when it has, because it was asked.
    fn watch(&mut self, now: Timestamp) {
        let Some(socket) = &self.socket else { return };
        let fd = socket.fd();
        let mut polled = [PollFd::new(&fd, PollFlags::OUT)];
        if poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0) {
            self.watching = true;
        } else {
            self.note_space(now);
        }
    }

    /// Brings data from the socket to the guest: one frame.
    fn send_data(
        &mut self,
        common: &mut Common,
        now: Timestamp,
        guests: &mut impl ToGuests,
        (from, offset, limit, mss): (Seq, u32, u32, u32),
    ) {
        let port = self.station.port;
        let offloads = guests.offloads(port);
        let limit = if offloads.checksum && !offloads.tcp4 { limit.min(mss) } else { limit } as usize;
        common.pieces.clear();
        let room = match guests.reserve(port, TCP_HEADERS_LEN + limit, &mut common.pieces) {
            Ok(room) if room > TCP_HEADERS_LEN => room,
            Ok(_) => {
                guests.cancel();
                self.connection.blocked();
                return;
            }
            Err(why) => {
                self.absent = why == NoRoom::Never;
                self.connection.blocked();
                return;
            }
        };
        common.window.clear();
        let wanted = if offloads.checksum {
            part_of(&common.pieces, TCP_HEADERS_LEN, room - TCP_HEADERS_LEN, &mut common.window);
            if common.window.len() < PIECES_MAX {
                room - TCP_HEADERS_LEN
            } else {
                // One call takes no more, and what it leaves is no sign that the socket is empty.
                common.window.truncate(PIECES_MAX - 1);
                common.window.iter().map(|piece| piece.len).sum()
            }
        } else {
            // The guest has to be spared work that needs all the data: they come to private memory first.
            guests.cancel();
            common.whole.resize(TCP_HEADERS_LEN + limit, 0);
            let data = &mut common.whole[TCP_HEADERS_LEN..];
            common.window.push(Segment { ptr: data.as_mut_ptr(), len: data.len() });
            limit
        };
        let read = self.peek(common, offset);
        let len = match read {
            Ok(len) if len > 0 => len,
            other => {
                if offloads.checksum {
                    guests.cancel();
                }
                match other {
                    Ok(_) => self.connection.ended(from),
                    Err(Errno::AGAIN | Errno::INTR) => self.connection.drained(from),
                    Err(error) => self.connection.failed(socket_error(error)),
                }
                return;
            }
        };
        // No truncation: at most a packet.
        let segment = self.connection.sent(now, from, len as u32, len < wanted && !self.urgent);
        self.progressed = true;
        common.moved += len;
        let (link, Ends { inside, remote }) = (common.link(self.station), self.ends);
        let offload = frame::tcp(link, remote, inside, &segment, mss, &mut common.frame);
        if offloads.checksum {
            guests.commit(&common.frame, TCP_HEADERS_LEN + len, &offload);
            return;
        }
        common.whole.truncate(TCP_HEADERS_LEN + len);
        common.whole[..TCP_HEADERS_LEN].copy_from_slice(&common.frame);
        send_finished(common, guests, port, &offload);
    }

    fn peek(&mut self, common: &mut Common, offset: u32) -> Result<usize, Errno> {
        let Some(socket) = &mut self.socket else { return Err(Errno::BADF) };
        let skip = socket.peek_from(offset)?;
        let read = common.calls.peek(socket.fd(), skip, &common.window)?;
        socket.peeked(read);
        Ok(read)
    }
}

/// Sends the frame in `common.frame`. False if the guest has no room for it; whatever matters is sent again.
fn send_whole(common: &mut Common, guests: &mut impl ToGuests, port: PortId, offload: &Offload) -> bool {
    let len = common.frame.len();
    common.pieces.clear();
    match guests.reserve(port, len, &mut common.pieces) {
        Ok(room) if room == len => guests.commit(&common.frame, len, offload),
        Ok(_) => guests.cancel(),
        Err(NoRoom::Never) => {}
        Err(NoRoom::Full) => return false,
    }
    true
}

/// Sends the frame in `common.whole`, whose guest takes it finished only.
fn send_finished(common: &mut Common, guests: &mut impl ToGuests, port: PortId, offload: &Offload) {
    let mut send = |frame: &[u8]| {
        // What a guest has no room for is lost, and sent again; `send` has counted it.
        let _ = guests.send(port, frame, &Offload::NONE);
        true
    };
    match (offload.checksum, offload.segmentation) {
        (Some(checksum), Some(segmentation)) => {
            let cut = segment(&common.whole, checksum, segmentation, &mut common.part, &mut send);
            debug_assert!(cut.is_ok(), "our own headers are right");
        }
        (checksum, _) => {
            if let Some(checksum) = checksum {
                complete_checksum(&mut common.whole, checksum);
            }
            send(&common.whole);
        }
    }
}
