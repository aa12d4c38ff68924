//! Requests of a vhost-user front-end, parsed once into types that can't be malformed.
//!
//! Layouts and numbers come from the `vhost` crate's public message types; what is added here is that every length and
//! count is checked before anything is believed.

use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion, VhostUserU64,
    VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;
use weft_switch::MacAddr;

use super::descriptor::Received;
use crate::memory::RegionSpec;

/// Bytes of a message header: request, flags, payload size, 32 bits each.
pub(crate) const HEADER_LEN: usize = 12;
/// The largest payload that any request here needs, in bytes: a configuration space of 256 with its header, or a memory
/// table of 8 regions; rounded up.
pub(crate) const MAX_PAYLOAD_LEN: usize = 1024;
/// The most descriptors that a message may carry: one for each region of a memory table.
pub(crate) const MAX_DESCRIPTORS: usize = 8;
/// The most bytes of configuration space that one request may ask for.
pub(crate) const MAX_CONFIG_LEN: usize = 256;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// In the payload of `SET_VRING_KICK`, `_CALL` and `_ERR`: no descriptor comes with it.
const NO_DESCRIPTOR: u64 = 1 << 8;
const RING_INDEX_MASK: u64 = 0xff;

/// A message header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) code: u32,
    pub(crate) need_reply: bool,
    pub(crate) payload_len: usize,
}

/// The front-end broke the protocol; the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("message header with flags {0:#x}: it is no request of protocol version {VERSION}")]
    Flags(u32),
    #[error("{name} announces a payload of {len} bytes; the most is {MAX_PAYLOAD_LEN}")]
    TooLong { name: String, len: u32 },
    #[error("{name} with a payload of {len} bytes")]
    PayloadLen { name: String, len: usize },
    #[error("{name} with {count} descriptors")]
    DescriptorCount { name: String, count: usize },
}

/// A ring index together with a descriptor, or with none on purpose.
#[derive(Debug)]
pub(crate) struct RingDescriptor {
    pub(crate) ring: usize,
    pub(crate) fd: Option<Received>,
}

/// What a front-end asks for. Names as in the protocol.
#[derive(Debug)]
pub(crate) enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetMemTable(Vec<(RegionSpec, Received)>),
    GetMaxMemSlots,
    AddMemReg(RegionSpec, Received),
    RemMemReg(RegionSpec, Option<Received>),
    SetVringNum {
        ring: usize,
        size: u32,
    },
    SetVringAddr {
        ring: usize,
        descriptors: u64,
        available: u64,
        used: u64,
    },
    SetVringBase {
        ring: usize,
        base: u32,
    },
    GetVringBase {
        ring: usize,
    },
    SetVringKick(RingDescriptor),
    SetVringCall(RingDescriptor),
    SetVringErr(RingDescriptor),
    SetVringEnable {
        ring: usize,
        enable: bool,
    },
    SendRarp(MacAddr),
    NetSetMtu(u64),
    GetConfig {
        offset: u32,
        len: usize,
    },
    ResetDevice,
    GetStatus,
    SetStatus(u64),
    /// Known to the protocol or not, but not to weft: it was not negotiated.
    Unsupported(Vec<Received>),
}

impl Header {
    pub(crate) fn parse(bytes: [u8; HEADER_LEN]) -> Result<Self, MessageError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (code, flags, len) = (word(0), word(4), word(8));
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(MessageError::Flags(flags));
        }
        let payload_len = len as usize;
        if payload_len > MAX_PAYLOAD_LEN {
            return Err(MessageError::TooLong { name: name(code), len });
        }
        Ok(Self { code, need_reply: flags & NEED_REPLY != 0, payload_len })
    }
}

/// The bytes of a reply.
pub(crate) fn reply(code: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    for word in [code, VERSION | REPLY, payload.len() as u32] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// The name of a request, for a person.
pub(crate) fn name(code: u32) -> String {
    FrontendReq::try_from(code).map_or_else(|_| format!("message {code}"), |request| format!("{request:?}"))
}

impl Request {
    /// Parses a request. Descriptors that it does not take are an error.
    pub(crate) fn parse(code: u32, payload: &[u8], fds: Vec<Received>) -> Result<Self, MessageError> {
        use FrontendReq as Code;
        let message = Message { code, payload, fds };
        let Ok(code) = FrontendReq::try_from(code) else {
            return Ok(Self::Unsupported(message.fds));
        };
        match code {
            Code::GET_FEATURES => message.empty(Self::GetFeatures),
            Code::SET_FEATURES => message.number().map(Self::SetFeatures),
            Code::SET_OWNER => message.empty(Self::SetOwner),
            Code::RESET_OWNER => message.empty(Self::ResetOwner),
            Code::GET_PROTOCOL_FEATURES => message.empty(Self::GetProtocolFeatures),
            Code::SET_PROTOCOL_FEATURES => message.number().map(Self::SetProtocolFeatures),
            Code::GET_QUEUE_NUM => message.empty(Self::GetQueueNum),
            Code::SET_MEM_TABLE => message.memory_table(),
            Code::GET_MAX_MEM_SLOTS => message.empty(Self::GetMaxMemSlots),
            Code::ADD_MEM_REG => message.add_region(),
            Code::REM_MEM_REG => message.remove_region(),
            Code::SET_VRING_NUM => message.ring_state(|ring, size| Self::SetVringNum { ring, size }),
            Code::SET_VRING_ADDR => message.ring_address(),
            Code::SET_VRING_BASE => message.ring_state(|ring, base| Self::SetVringBase { ring, base }),
            Code::GET_VRING_BASE => message.ring_state(|ring, _| Self::GetVringBase { ring }),
            Code::SET_VRING_KICK => message.ring_descriptor().map(Self::SetVringKick),
            Code::SET_VRING_CALL => message.ring_descriptor().map(Self::SetVringCall),
            Code::SET_VRING_ERR => message.ring_descriptor().map(Self::SetVringErr),
            Code::SET_VRING_ENABLE => message.ring_state(|ring, enable| Self::SetVringEnable { ring, enable: enable != 0 }),
            Code::SEND_RARP => message.number().map(|value| Self::SendRarp(mac_of(value))),
            Code::NET_SET_MTU => message.number().map(Self::NetSetMtu),
            Code::GET_CONFIG => message.config(),
            Code::RESET_DEVICE => message.empty(Self::ResetDevice),
            Code::GET_STATUS => message.empty(Self::GetStatus),
            Code::SET_STATUS => message.number().map(Self::SetStatus),
            _ => Ok(Self::Unsupported(message.fds)),
        }
    }
}

struct Message<'a> {
    code: u32,
    payload: &'a [u8],
    fds: Vec<Received>,
}

impl Message<'_> {
    fn empty(self, request: Request) -> Result<Request, MessageError> {
        self.without_descriptors()?;
        // Some front-ends pad requests that have no payload; nothing is read from it.
        Ok(request)
    }

    fn number(self) -> Result<u64, MessageError> {
        self.without_descriptors()?;
        Ok(self.payload_as::<VhostUserU64>()?.value)
    }

    fn ring_state(self, request: impl Fn(usize, u32) -> Request) -> Result<Request, MessageError> {
        self.without_descriptors()?;
        let VhostUserVringState { index, num } = self.payload_as()?;
        Ok(request(index as usize, num))
    }

    fn ring_address(self) -> Result<Request, MessageError> {
        self.without_descriptors()?;
        let address: VhostUserVringAddr = self.payload_as()?;
        Ok(Request::SetVringAddr {
            ring: address.index as usize,
            descriptors: address.descriptor,
            available: address.available,
            used: address.used,
        })
    }

    fn ring_descriptor(mut self) -> Result<RingDescriptor, MessageError> {
        let value = self.payload_as::<VhostUserU64>()?.value;
        let expected = usize::from(value & NO_DESCRIPTOR == 0);
        self.with_descriptors(expected)?;
        Ok(RingDescriptor { ring: (value & RING_INDEX_MASK) as usize, fd: self.fds.pop() })
    }

    fn memory_table(self) -> Result<Request, MessageError> {
        const TABLE_LEN: usize = size_of::<VhostUserMemory>();
        const REGION_LEN: usize = size_of::<VhostUserMemoryRegion>();
        let (table, regions) = self.payload.split_at_checked(TABLE_LEN).ok_or_else(|| self.bad_payload())?;
        let mut parsed = VhostUserMemory::default();
        parsed.as_mut_slice().copy_from_slice(table);
        let count = parsed.num_regions as usize;
        // Front-ends may send the whole table of eight, of which `count` are filled.
        if count > MAX_DESCRIPTORS || regions.len() < count * REGION_LEN || !regions.len().is_multiple_of(REGION_LEN) {
            return Err(self.bad_payload());
        }
        self.with_descriptors(count)?;
        let specs: Vec<_> = regions.chunks_exact(REGION_LEN).take(count).map(region_spec).collect();
        Ok(Request::SetMemTable(specs.into_iter().zip(self.fds).collect()))
    }

    fn add_region(mut self) -> Result<Request, MessageError> {
        self.with_descriptors(1)?;
        let spec = self.single_region()?;
        let fd = self.fds.pop().expect("one descriptor was counted");
        Ok(Request::AddMemReg(spec, fd))
    }

    fn remove_region(mut self) -> Result<Request, MessageError> {
        // The front-end may send the region's descriptor along (vhost-user, `REM_MEM_REG`).
        if self.fds.len() > 1 {
            return Err(self.bad_descriptors());
        }
        Ok(Request::RemMemReg(self.single_region()?, self.fds.pop()))
    }

    fn single_region(&self) -> Result<RegionSpec, MessageError> {
        let padding = size_of::<VhostUserSingleMemoryRegion>() - size_of::<VhostUserMemoryRegion>();
        if self.payload.len() != size_of::<VhostUserSingleMemoryRegion>() {
            return Err(self.bad_payload());
        }
        Ok(region_spec(&self.payload[padding..]))
    }

    fn config(self) -> Result<Request, MessageError> {
        self.without_descriptors()?;
        let (header, data) = self.payload.split_at_checked(size_of::<VhostUserConfig>()).ok_or_else(|| self.bad_payload())?;
        let mut config = VhostUserConfig::default();
        config.as_mut_slice().copy_from_slice(header);
        let len = config.size as usize;
        if len > MAX_CONFIG_LEN || data.len() != len {
            return Err(self.bad_payload());
        }
        Ok(Request::GetConfig { offset: config.offset, len })
    }

    fn payload_as<T: ByteValued + Default>(&self) -> Result<T, MessageError> {
        let mut value = T::default();
        if self.payload.len() != size_of::<T>() {
            return Err(self.bad_payload());
        }
        value.as_mut_slice().copy_from_slice(self.payload);
        Ok(value)
    }

    fn without_descriptors(&self) -> Result<(), MessageError> {
        self.with_descriptors(0)
    }

    fn with_descriptors(&self, count: usize) -> Result<(), MessageError> {
        if self.fds.len() == count { Ok(()) } else { Err(self.bad_descriptors()) }
    }

    fn bad_payload(&self) -> MessageError {
        MessageError::PayloadLen { name: name(self.code), len: self.payload.len() }
    }

    fn bad_descriptors(&self) -> MessageError {
        MessageError::DescriptorCount { name: name(self.code), count: self.fds.len() }
    }
}

fn region_spec(bytes: &[u8]) -> RegionSpec {
    let mut region = VhostUserMemoryRegion::default();
    region.as_mut_slice().copy_from_slice(bytes);
    RegionSpec { guest: region.guest_phys_addr, len: region.memory_size, user: region.user_addr, file_offset: region.mmap_offset }
}

/// The MAC address in the first six bytes of a `SEND_RARP` payload.
fn mac_of(value: u64) -> MacAddr {
    let [a, b, c, d, e, f, ..] = value.to_le_bytes();
    MacAddr([a, b, c, d, e, f])
}
