//! The real `weft`, as its operator and its clients see it.

mod bad_input;
mod commands;
mod control_socket;
mod life;
mod weft;
mod workers;
