//! NAT from guests to the host's own sockets, as pure state machines.
//!
//! # Theory
//!
//! Nothing here needs privileges, because nothing sends packets of its own making to the outside: what a guest sends comes out of an
//! ordinary socket, and what that socket gets goes back to the guest. The kernel does everything that is to be done out there: routes, path MTUs,
//! congestion. The table of mappings is a table of sockets.
//!
//! | protocol | one socket for | what is here |
//! |---|---|---|
//! | TCP | a connection | [`tcp`]: the guest's end of it |
//! | UDP | an address and port inside ([`udp`]) | who may send to it, and for how long |
//! | ICMP echo | an address and identifier inside ([`echo`]) | the same |
//!
//! What the three have in common is [`FlowTable`]: bounded, each port with a fair share, timers. What a guest gets to see of the outside
//! is written by [`frame`] and [`error`]; [`Audit`] says who had which mapping.
//!
//! # What the requirements become when there are sockets
//!
//! * *Mapping* (RFC 4787, REQ-1; RFC 5382, REQ-1): the sockets of one inside endpoint have one outside port. For UDP and echo that is
//!   one socket; for TCP the first binds it, and those that follow share it.
//! * *No overloading* (REQ-3; REQ-7): the first is bound exclusively, so the kernel keeps everybody else away from its port.
//! * *Parity and preservation* (REQ-4): [`ports::candidates`].
//! * *Filtering* (REQ-8): address-dependent for UDP: who was never spoken to can't speak. For TCP it is the kernel's: a segment that
//!   belongs to no socket is answered with a RST, where RFC 5382, REQ-4 asks for six seconds of silence. A socket can't have that.
//! * *Errors* (REQ-12; RFC 5382, REQ-10; RFC 5508, REQ-6): the kernel reports them beside the data. They are told to the guest, and
//!   neither end a mapping nor keep it alive.
//! * *Identification* (RFC 7857, section 9): the kernel's.

pub mod audit;
pub mod echo;
pub mod error;
mod flows;
pub mod frame;
pub mod ports;
pub mod tcp;
pub mod udp;

pub use audit::{Audit, AuditLog, Protocol};
pub use flows::{FlowId, FlowTable, TableFull};
