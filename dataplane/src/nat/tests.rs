//! The whole way of a guest's packets, with sockets of this host at the far end: frames go through a gateway into the engine, and
//! the guest is `smoltcp`, a TCP/IP stack by others.

mod connections;
mod datagrams;
mod limits;
mod ways_in;
mod world;
