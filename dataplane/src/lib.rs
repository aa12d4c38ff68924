//! Moving frames: vhost-user ports and the workers that poll them.
//!
//! [`Dataplane`] is the way in. Behind it one thread, its owner's, keeps sockets and sessions, and workers move frames; what
//! they share is described in `snapshot`.
//!
//! Unsafe code lives in `memory`, `ring` and `sys` only.

mod counters;
mod dataplane;
mod endpoint;
mod memory;
mod port;
mod ring;
mod snapshot;
mod sys;
mod vhost_port;
mod vhost_user;
mod worker;

pub use dataplane::{
    Dataplane, DataplaneError, NetworkSettings, NetworkStatus, PortCounters, PortSettings, PortState, PortStatus, RingStatus,
    SocketRole, WorkerStatus,
};
pub use snapshot::WorkerStuck;
