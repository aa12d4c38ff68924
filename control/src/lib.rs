//! The value that describes a switch, the control socket, the daemon and the `weft` command.
//!
//! A request takes this way: `client` writes a line, `server` reads it, `rpc` understands it, `handler` carries it out
//! by making a new `config` value, `plan` finds the steps from the old value to the new one, and `switch` takes them.
#![forbid(unsafe_code)]

pub mod addressing;
pub mod api;
mod audit;
pub mod capture;
pub mod cli;
pub mod client;
pub mod config;
pub mod config_file;
pub mod conflict;
pub mod daemon;
pub mod fdb;
mod fdb_handler;
pub mod forward;
mod forward_handler;
pub mod gateway_plan;
pub mod guest_line;
mod handler;
pub mod host;
mod lease_handler;
pub mod lines;
mod logging;
pub mod mirror;
pub mod mirror_handler;
pub mod multicast;
mod multicast_handler;
pub mod nat_config;
pub mod plan;
pub mod processors;
pub mod protections;
pub mod reach;
pub mod refusal;
mod render;
pub mod routes;
pub mod rpc;
pub mod run_dir;
pub mod saved;
mod server;
pub mod services;
pub mod state_dir;
pub mod switch;
pub mod trace;
pub mod values;
pub mod vlans;
mod ways_in;
mod wording;
