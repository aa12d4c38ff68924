//! NAT from guests to the host's own sockets, as pure state machines: see [`tcp`] for connections.

pub mod tcp;
