//! A guest in a process: the driver side of vhost-user, for any net back-end.
//!
//! Tests and benches need guests that do exactly what they are told, also what no real guest would do. [`Guest`] is
//! one: it owns memory files that it shares, speaks vhost-user over a real socket in the order of a chosen front-end,
//! and drives split or packed rings. Everything that comes back is checked, because a back-end that answers wrongly should
//! fail the test that sees it first.
//!
//! ```no_run
//! use std::time::Duration;
//! use weft_guest::{Guest, Order, feature};
//!
//! let mut guest = Guest::builder("/run/weft/vm1.sock").order(Order::Qemu).features(feature::VERSION_1).connect()?;
//! guest.send(&[0xff; 60])?;
//! let answer: Option<Vec<u8>> = guest.receive(Duration::from_secs(1))?;
//! # Ok::<(), weft_guest::GuestError>(())
//! ```
//!
//! The layers, from the top: [`Guest`] (frames), [`Ring`] (chains), [`Session`] (messages), [`GuestMemory`] (bytes).
//! A hostile test takes the layer that it wants to lie on; every one of them is public. There is no unsafe code
//! here: memory is only reached through the volatile slices of `vm-memory`.
#![forbid(unsafe_code)]

mod builder;
mod error;
pub mod feature;
mod frames;
mod guest;
mod header;
mod memory;
mod prepared;
mod ring;
mod session;
mod shape;

pub use builder::{Builder, MemoryBy, Order, Socket};
pub use error::GuestError;
pub use frames::Received;
pub use guest::Guest;
pub use header::Header;
pub use memory::{GuestAddr, GuestMemory, RegionLayout, UserAddr};
pub use prepared::{Arrived, PreparedReceive, PreparedSend};
pub use ring::{Buffer, Descriptor, EventSuppression, PackedDescriptor, Ring, RingAreas, RingPlace, Used};
pub use session::{NO_DESCRIPTOR, Session};
pub use shape::Shape;
pub use vhost::vhost_user::message::FrontendReq as Request;
