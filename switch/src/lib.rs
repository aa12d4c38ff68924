//! What to do with a frame.
//!
//! This crate sees private copies of headers and gives verdicts. It never does I/O, never reads a clock (`now` comes
//! in as an argument) and holds no unsafe code, so every behaviour in it can be tested on a laptop in a microsecond.
//!
//! Start with [`forward()`]: it decides about one frame. [`Fdb`] is the table that it learns into. A network may have a [`gateway`],
//! which answers for itself.
#![forbid(unsafe_code)]

pub mod dhcp;
pub mod dns;
mod drop_reason;
mod ethernet;
mod fdb;
pub mod filter;
mod flow;
mod forward;
pub mod gateway;
pub mod guard;
mod host_name;
mod id;
pub mod line;
mod log_limit;
pub mod loops;
mod mac;
pub mod multicast;
pub mod nat;
mod offload;
mod rate;
mod subnet;
mod sync;
mod time;
pub mod vlan;
mod wire;

pub use drop_reason::DropReason;
pub use ethernet::{EthernetHeader, MAX_FRAME_LEN, TAG_LEN};
pub use fdb::{
    AtLimit, Census, FLAP_HOLD, Fdb, FdbCounters, FdbEntry, FdbKind, FdbSettings, Flap, Learned, PortStations, StationLimit,
};
pub use flow::FlowHash;
pub use forward::{Verdict, foresee, forward};
pub use host_name::{DomainName, HostName, NameError};
pub use id::{NetworkId, PortId};
pub use log_limit::LogLimit;
pub use mac::{MacAddr, MacKey, ParseMacError};
pub use offload::{Offload, OffloadFeatures, PartialChecksum, SegmentKind, Segmentation, WireSize, complete_checksum, segment};
pub use rate::{PortRate, Rate};
pub use subnet::{AddressRange, Subnet, SubnetError};
pub use time::Timestamp;
pub use wire::{Egress, Ipv4Header, Ipv4Packet, Outgoing, Station, UdpDatagram, is_fragment};
