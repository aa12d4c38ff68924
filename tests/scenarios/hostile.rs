//! A guest may do what it likes; the worst that happens is that its own port stops.
//!
//! Every test here is a [`siege::Siege`]. Between them they replay each input that is known to have broken other
//! back-ends, through the real socket.

mod common;
#[path = "hostile/disposal.rs"]
mod disposal;
#[path = "hostile/messages.rs"]
mod messages;
#[path = "hostile/packed.rs"]
mod packed;
#[path = "hostile/packed_places.rs"]
mod packed_places;
#[path = "hostile/rings.rs"]
mod rings;
#[path = "hostile/siege.rs"]
mod siege;
#[path = "hostile/turns.rs"]
mod turns;
