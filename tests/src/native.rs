//! Network namespaces as guests: `weft-guest-tap` joins one to a port, and what runs inside uses the kernel's own stack. All of it needs root.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::process::Process;
use crate::wait::wait_until;

const READY_LIMIT: Duration = Duration::from_secs(60);

/// Starts a guest on a port's socket. `program` is `weft-guest-tap`, which belongs to another package.
pub fn start_native_guest(program: &str, socket: &Path, options: &[&str]) -> Process {
    let log = socket.with_extension("guest.log");
    let arguments: Vec<_> =
        std::iter::once(socket.display().to_string()).chain(options.iter().map(ToString::to_string)).collect();
    Process::spawn("weft-guest-tap", Path::new(program), &arguments, &log)
}

/// The same, and the guest is up.
pub fn native_guest(program: &str, socket: &Path, options: &[&str]) -> Process {
    let mut guest = start_native_guest(program, socket, options);
    wait_until("the guest to be ready", READY_LIMIT, || {
        guest.assert_alive();
        guest.log().contains("ready: ")
    });
    guest
}

/// Does something in a process's network namespace. A socket stays in the one that it was made in, whoever uses it.
pub fn inside<T: Send>(process: &Process, make: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/proc/{}/ns/net", process.pid())).expect("the process runs");
    let make = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
        make()
    };
    // Only the thread that enters is there.
    thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
