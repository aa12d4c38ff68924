//! What needs the operating system's signals: memory that its owner takes away, and system calls that never end.
//!
//! # Theory
//!
//! **A shared file can be shortened after it was mapped.** Touching the lost pages raises `SIGBUS`. The handler here
//! looks the address up in a table of ranges that hold guest memory, puts empty private memory over the whole range
//! and returns: the worker goes on, reads zeros, finds the range marked as lost at the end of its round, and stops
//! the port. An address outside every range is our own fault: the default action (death) is restored.
//!
//! **A write to an eventfd can block** when its counter is full and somebody cleared `O_NONBLOCK` on the shared file
//! description after we had set it. [`interrupt`] sends a worker a signal whose handler does nothing and that does not
//! restart system calls, so that the write ends with `EINTR`.
//!
//! The table is static, fixed in size and made of atomics, because a signal handler may use nothing else.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::mm::{MapFlags, ProtFlags};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// The most regions of guest memory, over all ports.
pub(crate) const MAX_RANGES: usize = 32_768;

/// How often memory was taken away, over all ranges.
static LOSSES: AtomicUsize = AtomicUsize::new(0);
static RANGES: [Range; MAX_RANGES] = [const { Range::empty() }; MAX_RANGES];

struct Range {
    taken: AtomicBool,
    start: AtomicUsize,
    /// One past the last byte; zero while the range is not in use.
    end: AtomicUsize,
    lost: AtomicBool,
}

impl Range {
    const fn empty() -> Self {
        Self { taken: AtomicBool::new(false), start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicBool::new(false) }
    }
}

impl Range {
    /// The addresses, unless the range is not in use. Read so that a range which is given up and taken again meanwhile is
    /// never seen half old, half new.
    fn bounds(&self) -> Option<std::ops::Range<usize>> {
        let end = self.end.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Acquire);
        (end != 0 && self.end.load(Ordering::Acquire) == end).then_some(start..end)
    }
}

/// A range of addresses whose loss is survived and noticed. Give it up before the range is unmapped.
#[derive(Debug)]
pub(crate) struct GuardedRange(usize);

impl GuardedRange {
    /// Guards `len` bytes from `start`, a mapping of its own. `None` when the table is full.
    pub(crate) fn new(start: *mut u8, len: usize) -> Option<Self> {
        let claim = |range: &Range| range.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let index = RANGES.iter().position(claim)?;
        let range = &RANGES[index];
        range.lost.store(false, Ordering::Relaxed);
        range.start.store(start as usize, Ordering::Release);
        range.end.store(start as usize + len, Ordering::Release);
        Some(Self(index))
    }

    /// True once the memory behind the range was taken away.
    pub(crate) fn is_lost(&self) -> bool {
        RANGES[self.0].lost.load(Ordering::Relaxed)
    }
}

impl Drop for GuardedRange {
    fn drop(&mut self) {
        let range = &RANGES[self.0];
        range.end.store(0, Ordering::Release);
        range.taken.store(false, Ordering::Release);
    }
}

/// Changes whenever a range is lost, so that whoever watches many need not look at each.
pub(crate) fn losses() -> usize {
    LOSSES.load(Ordering::Relaxed)
}

/// Installs the handlers, once a process.
///
/// # Errors
/// When the operating system refuses them.
pub(crate) fn install_signal_handlers() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        let installed = register_signal_handler(libc::SIGBUS, on_sigbus)
            .and_then(|()| register_signal_handler(interrupt_signal(), on_interrupt));
        result = installed.map_err(|error| io::Error::from_raw_os_error(error.errno()));
    });
    result
}

/// Each guest takes a handful of descriptors, so as many as allowed are allowed.
pub(crate) fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

/// Ends a system call in which `thread` may hang.
pub(crate) fn interrupt<T>(thread: &JoinHandle<T>) {
    // The thread may have ended by itself; then there is nothing to interrupt.
    let _ = thread.kill(interrupt_signal());
}

/// True if `fd` is an eventfd: the only kind of descriptor whose `write` of eight bytes is known to do nothing else.
pub(crate) fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    std::fs::read_link(link).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

fn interrupt_signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn on_interrupt(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

extern "C" fn on_sigbus(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` for a handler installed with SA_SIGINFO, and SIGBUS sets `si_addr`.
    let address = unsafe { (*info).si_addr() } as usize;
    let hit = RANGES.iter().find_map(|range| Some((range, range.bounds()?)).filter(|(_, bounds)| bounds.contains(&address)));
    let replaced = hit.is_some_and(|(range, bounds)| {
        let (start, len) = (bounds.start, bounds.len());
        range.lost.store(true, Ordering::Relaxed);
        LOSSES.fetch_add(1, Ordering::Relaxed);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range is a mapping of guest memory that this process made and still owns (its guard is given up
        // before it is unmapped). Only raw pointers lead into it, and they stay valid: the same addresses are
        // mapped again. `mmap` is a bare system call here, so it may be used in a signal handler.
        unsafe { rustix::mm::mmap_anonymous(start as *mut c_void, len, protection, flags) }.is_ok()
    });
    if !replaced {
        // SAFETY: restoring the default action is allowed in a handler; the access then faults again and ends the process.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_an_eventfd_is_taken_for_one() {
        let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        // SAFETY: the descriptor is open for as long as `event` lives.
        assert!(is_eventfd(unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }));
        assert!(!is_eventfd(tempfile::tempfile().unwrap().as_fd()));
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(!is_eventfd(reader.as_fd()) && !is_eventfd(writer.as_fd()));
    }
}
