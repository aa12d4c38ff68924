//! Moving frames: vhost-user ports and the workers that poll them.
//!
//! [`Dataplane`] is the way in. Behind it one thread, its owner's, keeps sockets and sessions, and workers move frames; what
//! they share is described in `snapshot`.
//!
//! Unsafe code lives in the modules that are marked below; ARCHITECTURE.md says what for.
#![deny(unsafe_code)]

mod alarm;
mod boundary;
mod counters;
mod dataplane;
mod disposal;
mod endpoint;
mod fabric;
mod from_guest;
mod gateway;
mod guard;
mod lane;
mod line;
mod loops;
#[allow(unsafe_code)]
mod memory;
mod multicast;
mod nat;
mod port;
#[allow(unsafe_code)]
mod ring;
#[allow(unsafe_code)]
mod ring_copy;
#[allow(unsafe_code)]
mod ring_packed;
mod ring_resume;
#[allow(unsafe_code)]
mod ring_split;
mod services;
mod snapshot;
mod stations;
mod sync;
#[allow(unsafe_code)]
mod sys;
mod tap;
mod to_guest;
mod trace;
mod vhost_port;
mod vhost_user;
mod vlan;
mod worker;
mod workers;

pub use dataplane::{
    Dataplane, DataplaneError, HandWorker, NetworkStatus, PortCounters, PortSettings, PortState, PortStatus, RingStatus,
    SocketRole, WorkerStatus,
};
pub use gateway::ServiceMessage;
pub use nat::{Forward, ForwardError, MappingStatus, NatSettings};
pub use services::NetworkSettings;
pub use tap::{
    Capture, CaptureCounters, CaptureStopper, CapturedFrame, MAX_MIRRORS, MirrorSettings, MirrorStatus, WatchSettings,
};
pub use trace::{Trace, TraceReceiver, TraceStep};
pub use workers::{Polling, WorkerSettings, WorkerStuck};
