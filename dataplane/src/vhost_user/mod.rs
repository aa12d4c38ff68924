//! The vhost-user protocol, back-end side.
//!
//! [`message`] turns bytes into requests that can't be malformed, [`connection`] moves them over a socket together with their
//! descriptors, [`session`] is the state machine that answers them. Why this is not left to a crate: see
//! `docs/decisions/0001`.

pub(crate) mod connection;
pub(crate) mod descriptor;
pub(crate) mod message;
pub(crate) mod session;
