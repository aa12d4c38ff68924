//! One front-end's socket: whole messages in, replies out, never waiting.
//!
//! Bytes and descriptors of at most one message are held. A message is read as its header and then exactly its payload,
//! so that descriptors, which the kernel delivers with the first byte that they were sent with, stay with their message.

use std::io;
use std::mem::MaybeUninit;

use mio::net::UnixStream;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};

use super::descriptor::{Bin, Received};
use super::message::{HEADER_LEN, Header, MAX_DESCRIPTORS, MAX_PAYLOAD_LEN, MessageError};

/// The most descriptors that the kernel lets anybody attach to one write (unix(7), `SCM_RIGHTS`). There is room for all of
/// them, because the kernel closes here and now what does not fit.
const MAX_SENT_DESCRIPTORS: usize = 253;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The front-end closed it.
    #[error("the front-end closed the connection")]
    Closed,
    #[error("the front-end closed the connection in the middle of a message")]
    ClosedMidMessage,
    #[error("the front-end does not read our replies")]
    RepliesNotRead,
    #[error("more than {MAX_DESCRIPTORS} descriptors in one message")]
    TooManyDescriptors,
    #[error("a descriptor that is neither an eventfd nor memory, or that its message does not take")]
    UnknownDescriptor,
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// A message as it came: its header, its payload and its descriptors.
#[derive(Debug)]
pub(crate) struct RawMessage {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<Received>,
}

/// A connected front-end.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: UnixStream,
    bytes: [u8; HEADER_LEN + MAX_PAYLOAD_LEN],
    filled: usize,
    header: Option<Header>,
    fds: Vec<Received>,
    bin: Bin,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, bytes: [0; HEADER_LEN + MAX_PAYLOAD_LEN], filled: 0, header: None, fds: Vec::new(), bin: Bin::default() }
    }

    /// The next whole message, or `None` when it has not arrived yet. Fails if a descriptor of the one before was not taken
    /// for what it must be.
    pub(crate) fn receive(&mut self) -> Result<Option<RawMessage>, ConnectionError> {
        if !self.bin.is_empty() {
            return Err(ConnectionError::UnknownDescriptor);
        }
        loop {
            let wanted = HEADER_LEN + self.header.map_or(0, |header| header.payload_len);
            if self.filled < wanted {
                if !self.fill(wanted)? {
                    return Ok(None);
                }
                continue;
            }
            let Some(header) = self.header.take() else {
                let header = self.bytes.first_chunk().copied().expect("the buffer holds a header");
                self.header = Some(Header::parse(header)?);
                continue;
            };
            self.filled = 0;
            let payload = self.bytes[HEADER_LEN..wanted].to_vec();
            return Ok(Some(RawMessage { header, payload, fds: std::mem::take(&mut self.fds) }));
        }
    }

    /// Sends a reply whole. A front-end that has left so many replies unread that this one does not fit is given up.
    pub(crate) fn send(&mut self, reply: &[u8]) -> Result<(), ConnectionError> {
        match rustix::net::send(&self.stream, reply, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) if sent == reply.len() => Ok(()),
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Err(ConnectionError::RepliesNotRead),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(ConnectionError::Closed),
            Err(error) => Err(ConnectionError::Socket(error.into())),
        }
    }

    /// Reads towards `wanted` bytes. False when nothing is there to read now.
    fn fill(&mut self, wanted: usize) -> Result<bool, ConnectionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [io::IoSliceMut::new(&mut self.bytes[self.filled..wanted])];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match rustix::net::recvmsg(&self.stream, &mut buffers, &mut ancillary, flags) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::CONNRESET) => return Err(ConnectionError::Closed),
                Err(error) => return Err(ConnectionError::Socket(error.into())),
            }
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds.map(|fd| Received::new(fd, &self.bin)));
            }
        }
        if self.fds.len() > MAX_DESCRIPTORS || received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ConnectionError::TooManyDescriptors);
        }
        if received.bytes == 0 {
            return Err(if self.filled == 0 { ConnectionError::Closed } else { ConnectionError::ClosedMidMessage });
        }
        self.filled += received.bytes;
        Ok(true)
    }
}
