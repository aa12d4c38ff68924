//! One connection to a back-end: messages out, checked replies back.
//!
//! Every request is a method. Beneath them lie [`Session::request`] for payloads that no method would send, and
//! [`Session::send_bytes`] for bytes that are no message at all.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use vhost::vhost_user::message::{
    VhostUserConfig, VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserSingleMemoryRegion, VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::ByteValued;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::{GuestError, Request, RingPlace};

/// The bit of a kick, call or error message that says "no descriptor comes with this".
pub const NO_DESCRIPTOR: u64 = 1 << 8;

const HEADER_LEN: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = VhostUserHeaderFlag::REPLY.bits();
const NEED_REPLY: u32 = VhostUserHeaderFlag::NEED_REPLY.bits();

/// A connection to a back-end. Every wait ends after the limit given at the start.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    limit: Duration,
    acknowledge: Acknowledge,
}

/// For which requests, of those that have no reply of their own, an acknowledgement is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledge {
    Nothing,
    AsQemu,
    Everything,
}

impl Session {
    /// Connects to a listening back-end.
    ///
    /// # Errors
    /// When nobody listens there, or nobody accepts in time.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, GuestError> {
        let io = |what| GuestError::io(what, limit);
        let address = SocketAddrUnix::new(path).map_err(|error| io("name the socket")(error.into()))?;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|error| io("make a socket")(error.into()))?;
        let stream = UnixStream::from(socket);
        // The limit on sending is also the limit on waiting for room in the listener's backlog.
        stream.set_write_timeout(Some(limit)).map_err(io("set a time limit"))?;
        connect(&stream, &address).map_err(|error| io("connect to the back-end")(error.into()))?;
        Self::over(stream, limit)
    }

    /// Takes the next connection of a back-end that connects to us.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn accept(listener: &UnixListener, limit: Duration) -> Result<Self, GuestError> {
        let what = "a connection from the back-end";
        if !readable(listener, limit).map_err(GuestError::io(what, limit))? {
            return Err(GuestError::TimedOut { what, limit });
        }
        let (stream, _) = listener.accept().map_err(GuestError::io(what, limit))?;
        Self::over(stream, limit)
    }

    fn over(stream: UnixStream, limit: Duration) -> Result<Self, GuestError> {
        let io = |what| GuestError::io(what, limit);
        stream.set_nonblocking(false).map_err(io("make the socket blocking"))?;
        stream.set_write_timeout(Some(limit)).map_err(io("set a time limit"))?;
        stream.set_read_timeout(Some(limit)).map_err(io("set a time limit"))?;
        Ok(Self { stream, limit, acknowledge: Acknowledge::Nothing })
    }

    pub(crate) fn set_acknowledge(&mut self, acknowledge: Acknowledge) {
        self.acknowledge = acknowledge;
    }

    /// The socket itself.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// `GET_FEATURES`.
    ///
    /// # Errors
    /// When the reply does not come or is wrong.
    pub fn features(&self) -> Result<u64, GuestError> {
        self.question(Request::GET_FEATURES)
    }

    /// `SET_FEATURES`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_features(&self, features: u64) -> Result<(), GuestError> {
        self.order(Request::SET_FEATURES, &features.to_ne_bytes(), &[])
    }

    /// `GET_PROTOCOL_FEATURES`.
    ///
    /// # Errors
    /// When the reply does not come or is wrong.
    pub fn protocol_features(&self) -> Result<u64, GuestError> {
        self.question(Request::GET_PROTOCOL_FEATURES)
    }

    /// `SET_PROTOCOL_FEATURES`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_protocol_features(&self, features: u64) -> Result<(), GuestError> {
        self.order(Request::SET_PROTOCOL_FEATURES, &features.to_ne_bytes(), &[])
    }

    /// `GET_QUEUE_NUM`: queue pairs, for a net device.
    ///
    /// # Errors
    /// When the reply does not come or is wrong.
    pub fn queue_pairs(&self) -> Result<u64, GuestError> {
        self.question(Request::GET_QUEUE_NUM)
    }

    /// `GET_MAX_MEM_SLOTS`.
    ///
    /// # Errors
    /// When the reply does not come or is wrong.
    pub fn memory_slots_max(&self) -> Result<u64, GuestError> {
        self.question(Request::GET_MAX_MEM_SLOTS)
    }

    /// `SET_OWNER`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_owner(&self) -> Result<(), GuestError> {
        self.order(Request::SET_OWNER, &[], &[])
    }

    /// `RESET_DEVICE`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn reset_device(&self) -> Result<(), GuestError> {
        self.order(Request::RESET_DEVICE, &[], &[])
    }

    /// `SET_MEM_TABLE`, one file a region.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_mem_table(&self, regions: &[(VhostUserMemoryRegion, &File)]) -> Result<(), GuestError> {
        let count = u32::try_from(regions.len()).expect("a handful of regions");
        let mut payload = VhostUserMemory::new(count).as_slice().to_vec();
        for (region, _) in regions {
            payload.extend_from_slice(region.as_slice());
        }
        let files: Vec<RawFd> = regions.iter().map(|(_, file)| file.as_raw_fd()).collect();
        self.order(Request::SET_MEM_TABLE, &payload, &files)
    }

    /// `ADD_MEM_REG`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn add_mem_reg(&self, region: VhostUserMemoryRegion, file: &File) -> Result<(), GuestError> {
        self.order(Request::ADD_MEM_REG, single(region).as_slice(), &[file.as_raw_fd()])
    }

    /// `REM_MEM_REG`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn rem_mem_reg(&self, region: VhostUserMemoryRegion) -> Result<(), GuestError> {
        self.order(Request::REM_MEM_REG, single(region).as_slice(), &[])
    }

    /// `SET_VRING_NUM`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_vring_num(&self, ring: u16, size: u16) -> Result<(), GuestError> {
        self.vring_state(Request::SET_VRING_NUM, ring, u32::from(size))
    }

    /// `SET_VRING_BASE`, in the form that [`crate::Ring::base`] describes.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_vring_base(&self, ring: u16, base: u32) -> Result<(), GuestError> {
        self.vring_state(Request::SET_VRING_BASE, ring, base)
    }

    /// `SET_VRING_ENABLE`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_vring_enable(&self, ring: u16, enabled: bool) -> Result<(), GuestError> {
        self.vring_state(Request::SET_VRING_ENABLE, ring, u32::from(enabled))
    }

    /// `SET_VRING_ADDR`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_vring_addr(&self, ring: u16, place: RingPlace) -> Result<(), GuestError> {
        let flags = VhostUserVringAddrFlags::empty();
        let addr = VhostUserVringAddr::new(u32::from(ring), flags, place.descriptors.0, place.used.0, place.avail.0, 0);
        self.order(Request::SET_VRING_ADDR, addr.as_slice(), &[])
    }

    /// `SET_VRING_KICK`, `SET_VRING_CALL` or `SET_VRING_ERR`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_vring_descriptor(&self, request: Request, ring: u16, descriptor: Option<&impl AsRawFd>) -> Result<(), GuestError> {
        match descriptor {
            Some(descriptor) => self.order(request, &u64::from(ring).to_ne_bytes(), &[descriptor.as_raw_fd()]),
            None => self.order(request, &(u64::from(ring) | NO_DESCRIPTOR).to_ne_bytes(), &[]),
        }
    }

    /// `GET_VRING_BASE`: stops the ring and gives where it goes on, in the form that [`crate::Ring::base`] describes.
    ///
    /// # Errors
    /// When the reply does not come or is wrong.
    pub fn vring_base(&self, ring: u16) -> Result<u32, GuestError> {
        let request = Request::GET_VRING_BASE;
        let payload = VhostUserVringState::new(u32::from(ring), 0);
        self.request(request, false, payload.as_slice(), &[])?;
        let reply = self.reply(request)?;
        let mut state = VhostUserVringState::default();
        if reply.len() != size_of::<VhostUserVringState>() {
            return Err(bad_reply(request, format!("has {} bytes of payload", reply.len())));
        }
        state.as_mut_slice().copy_from_slice(&reply);
        let (index, num) = ({ state.index }, { state.num });
        if index != u32::from(ring) {
            return Err(bad_reply(request, format!("is about ring {index}, not {ring}")));
        }
        Ok(num)
    }

    /// `SET_STATUS`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_status(&self, status: u8) -> Result<(), GuestError> {
        self.order(Request::SET_STATUS, &u64::from(status).to_ne_bytes(), &[])
    }

    /// `GET_STATUS`.
    ///
    /// # Errors
    /// When the reply does not come or is wrong.
    pub fn status(&self) -> Result<u8, GuestError> {
        let value = self.question(Request::GET_STATUS)?;
        u8::try_from(value).map_err(|_| bad_reply(Request::GET_STATUS, format!("has the status {value:#x}")))
    }

    /// `NET_SET_MTU`.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), GuestError> {
        self.order(Request::NET_SET_MTU, &u64::from(mtu).to_ne_bytes(), &[])
    }

    /// `SEND_RARP`: the guest with this address is here now.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn send_rarp(&self, mac: [u8; 6]) -> Result<(), GuestError> {
        let [a, b, c, d, e, f] = mac;
        self.order(Request::SEND_RARP, &[a, b, c, d, e, f, 0, 0], &[])
    }

    /// `GET_CONFIG`: `len` bytes of the configuration space from `offset` on.
    ///
    /// # Errors
    /// When the reply does not come or is wrong.
    pub fn config(&self, offset: u32, len: u32) -> Result<Vec<u8>, GuestError> {
        let request = Request::GET_CONFIG;
        let head = VhostUserConfig::new(offset, len, VhostUserConfigFlags::empty());
        let mut payload = head.as_slice().to_vec();
        payload.resize(payload.len() + len as usize, 0);
        self.request(request, false, &payload, &[])?;
        let reply = self.reply(request)?;
        if reply.len() != payload.len() {
            return Err(bad_reply(request, format!("has {} bytes of payload, not {}", reply.len(), payload.len())));
        }
        let (reply_head, bytes) = reply.split_at(size_of::<VhostUserConfig>());
        if reply_head[..8] != payload[..8] {
            return Err(bad_reply(request, "is about another range".to_owned()));
        }
        Ok(bytes.to_vec())
    }

    /// Sends a request, with any payload and any descriptors, and does not wait.
    ///
    /// # Errors
    /// When the back-end is gone or does not read.
    pub fn request(&self, request: Request, need_reply: bool, payload: &[u8], files: &[RawFd]) -> Result<(), GuestError> {
        let flags = VERSION | if need_reply { NEED_REPLY } else { 0 };
        let size = u32::try_from(payload.len()).expect("a payload of less than 4 GiB");
        let mut message = message_header(request as u32, flags, size).to_vec();
        message.extend_from_slice(payload);
        self.send_bytes(&message, files)
    }

    /// Sends bytes, the descriptors with the first of them.
    ///
    /// # Errors
    /// When the back-end is gone or does not read.
    pub fn send_bytes(&self, bytes: &[u8], files: &[RawFd]) -> Result<(), GuestError> {
        let mut done = 0;
        let mut files = files;
        while done < bytes.len() {
            let sent = self.stream.send_with_fds(&[&bytes[done..]], files);
            let sent =
                sent.map_err(|error| GuestError::io("send a message", self.limit)(io::Error::from_raw_os_error(error.errno())))?;
            done += sent;
            files = &[];
        }
        Ok(())
    }

    /// Sends a request that has no reply of its own, and takes the acknowledgement if one is due.
    ///
    /// # Errors
    /// When the back-end refuses or is gone.
    pub fn order(&self, request: Request, payload: &[u8], files: &[RawFd]) -> Result<(), GuestError> {
        let need_reply = self.acknowledge.asks(request);
        self.request(request, need_reply, payload, files)?;
        if need_reply { self.acknowledgement(request) } else { Ok(()) }
    }

    /// Takes the acknowledgement of a request that asked for one.
    ///
    /// # Errors
    /// When it does not come, is wrong, or says no.
    pub fn acknowledgement(&self, request: Request) -> Result<(), GuestError> {
        match self.reply_u64(request)? {
            0 => Ok(()),
            code => Err(GuestError::Refused { request, code }),
        }
    }

    /// Takes the reply to a request and gives its payload.
    ///
    /// # Errors
    /// When it does not come, or its header is wrong.
    pub fn reply(&self, request: Request) -> Result<Vec<u8>, GuestError> {
        let what = "a reply from the back-end";
        let mut header = [0; HEADER_LEN];
        (&self.stream).read_exact(&mut header).map_err(GuestError::io(what, self.limit))?;
        let field = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (code, flags, size) = (field(0), field(4), field(8));
        if code != request as u32 {
            return Err(bad_reply(request, format!("names request {code}")));
        }
        if flags != VERSION | REPLY {
            return Err(bad_reply(request, format!("has the flags {flags:#x}")));
        }
        if size > 4096 {
            return Err(bad_reply(request, format!("has {size} bytes of payload")));
        }
        let mut payload = vec![0; size as usize];
        (&self.stream).read_exact(&mut payload).map_err(GuestError::io(what, self.limit))?;
        Ok(payload)
    }

    /// True once the back-end has closed the connection; false if it has not within `limit`. Whatever it still sent
    /// is read and forgotten.
    ///
    /// # Errors
    /// When the operating system refuses to wait.
    pub fn is_closed_within(&self, limit: Duration) -> Result<bool, GuestError> {
        let what = "wait for the end of the connection";
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable(&self.stream, left).map_err(GuestError::io(what, limit))? {
                return Ok(false);
            }
            match (&self.stream).read(&mut [0; 4096]) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
                Err(error) => return Err(GuestError::io(what, limit)(error)),
            }
        }
    }

    fn question(&self, request: Request) -> Result<u64, GuestError> {
        self.request(request, false, &[], &[])?;
        self.reply_u64(request)
    }

    fn reply_u64(&self, request: Request) -> Result<u64, GuestError> {
        let payload = self.reply(request)?;
        let bytes = payload
            .try_into()
            .map_err(|payload: Vec<u8>| bad_reply(request, format!("has {} bytes of payload", payload.len())))?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn vring_state(&self, request: Request, ring: u16, num: u32) -> Result<(), GuestError> {
        self.order(request, VhostUserVringState::new(u32::from(ring), num).as_slice(), &[])
    }
}

impl Acknowledge {
    fn asks(self, request: Request) -> bool {
        match self {
            Self::Nothing => false,
            Self::AsQemu => matches!(
                request,
                Request::SET_MEM_TABLE
                    | Request::ADD_MEM_REG
                    | Request::REM_MEM_REG
                    | Request::SET_VRING_ENABLE
                    | Request::NET_SET_MTU
            ),
            Self::Everything => true,
        }
    }
}

/// The twelve bytes before a payload, for whatever they are worth.
pub(crate) fn message_header(request: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    for (at, field) in [request, flags, size].into_iter().enumerate() {
        header[at * 4..at * 4 + 4].copy_from_slice(&field.to_ne_bytes());
    }
    header
}

/// Waits until a descriptor can be read, or its other end is gone.
pub(crate) fn readable(descriptor: &impl AsFd, limit: Duration) -> io::Result<bool> {
    any_readable(&[descriptor.as_fd()], limit)
}

/// Waits until one of these descriptors can be read, or its other end is gone.
pub(crate) fn any_readable(descriptors: &[BorrowedFd<'_>], limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    let mut polled: Vec<_> = descriptors.iter().map(|&descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn single(region: VhostUserMemoryRegion) -> VhostUserSingleMemoryRegion {
    VhostUserSingleMemoryRegion::new(region.guest_phys_addr, region.memory_size, region.user_addr, region.mmap_offset)
}

fn bad_reply(request: Request, what: String) -> GuestError {
    GuestError::BadReply { request, what }
}
