//! Moving frames: vhost-user ports and the workers that poll them.
//!
//! [`Dataplane`] is the way in. Behind it one thread, its owner's, keeps sockets and sessions, and workers move frames; what
//! they share is described in `snapshot`.
//!
//! Unsafe code lives in `memory`, `ring` and `sys` only.
#![deny(unsafe_code)]

mod counters;
mod dataplane;
mod disposal;
mod endpoint;
mod fabric;
#[allow(unsafe_code)]
mod memory;
mod port;
#[allow(unsafe_code)]
mod ring;
#[allow(unsafe_code)]
mod ring_copy;
#[allow(unsafe_code)]
mod ring_packed;
#[allow(unsafe_code)]
mod ring_split;
mod snapshot;
#[allow(unsafe_code)]
mod sys;
mod vhost_port;
mod vhost_user;
mod worker;
mod workers;

pub use dataplane::{
    Dataplane, DataplaneError, HandWorker, NetworkStatus, PortCounters, PortSettings, PortState, PortStatus, RingStatus,
    SocketRole, WorkerStatus,
};
pub use workers::{Polling, WorkerSettings, WorkerStuck};
