//! What the end-to-end tests stand on: the real `weft` binary, and the real programs that plug into it.
//!
//! [`Weft`] is the daemon in a run directory of its own, [`Guest`] a virtual machine under QEMU, [`Testpmd`] a DPDK
//! process whose virtio-user ports are guests without a kernel. Each is one child process that is killed when its value
//! goes away, and whose log is printed when that happens in a failing test.
//!
//! Nothing here sleeps for a while and hopes: every wait names a condition and a time limit ([`wait`]), and a limit that
//! passes is a panic that says what was waited for. The harness is for tests alone, so a panic is how it reports.
//!
//! What the guests and DPDK need on the machine is installed by `tests/e2e/setup`.

#![forbid(unsafe_code)]

pub mod native;
pub mod process;
pub mod qemu;
pub mod testpmd;
pub mod wait;
pub mod weft;

pub use qemu::{Guest, GuestBuilder};
pub use testpmd::{Testpmd, VirtioUser};
pub use weft::Weft;
