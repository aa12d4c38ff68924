//! The real `weft`, as its operator and its clients see it.

mod bad_input;
mod client;
mod commands;
mod control_socket;
mod dns;
mod fdb;
mod kept;
mod leases;
mod life;
mod lines;
mod multicast;
mod seeing;
mod ways;
mod weft;
mod workers;
