//! Where things go whose end may take long: descriptors of unknown kind, sockets, guest memory.
//!
//! # Theory
//!
//! Closing a descriptor can block: a TCP socket may linger, a file on FUSE asks its server. A front-end can send any descriptor
//! attached to any message, and the kernel closes those that were sent but never received together with the socket. So the
//! owner closes nothing that came from a front-end, unless it was seen to be an eventfd or memory. Unmapping memory does not
//! block but takes a while: about a second for each 8 GiB if nobody else holds it.
//!
//! Each port has one thread at most for this, made when needed. While it is busy the port takes no new guest; and once anything waits
//! behind it, nothing more is read or accepted there, since any message may bring more to get rid of. Whoever makes it wait waits for himself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

type Thing = Box<dyn Send>;

/// A port's way to get rid of things.
pub(crate) struct Disposal {
    waiting: Vec<Thing>,
    /// True while a thread is at work.
    busy: Arc<AtomicBool>,
    /// Raised when the thread is done.
    done: Arc<EventFd>,
}

impl fmt::Debug for Disposal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Disposal").field("waiting", &self.waiting.len()).field("busy", &self.busy).finish()
    }
}

impl Disposal {
    /// `done` tells the owner to look again at the ports that wait.
    pub(crate) fn new(done: Arc<EventFd>) -> Self {
        Self { waiting: Vec::new(), busy: Arc::default(), done }
    }

    /// Takes a thing and sees to its end, in time.
    pub(crate) fn put(&mut self, thing: impl Send + 'static) {
        self.waiting.push(Box::new(thing));
        self.sweep();
    }

    /// True when nothing waits and nothing is being closed.
    pub(crate) fn is_idle(&mut self) -> bool {
        self.sweep();
        !self.busy.load(Ordering::Acquire)
    }

    /// True while something waits for what is being closed: no more should be taken on that may end here.
    pub(crate) fn is_behind(&mut self) -> bool {
        self.sweep();
        !self.waiting.is_empty()
    }

    /// Starts on what waits, if the thread is free. To be called when `done` was raised.
    pub(crate) fn sweep(&mut self) {
        if self.waiting.is_empty() || self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let things = std::mem::take(&mut self.waiting);
        let (busy, done) = (Arc::clone(&self.busy), Arc::clone(&self.done));
        let thread = std::thread::Builder::new().name("weft-disposal".to_owned()).spawn(move || {
            drop(things);
            busy.store(false, Ordering::Release);
            // Without an owner to tell, there is nobody who waits.
            let _ = done.write(1);
        });
        if let Err(error) = thread {
            // The things went with the closure, here and now: better late than never.
            self.busy.store(false, Ordering::Release);
            tracing::warn!(%error, "no thread to close a guest's descriptors: the switch may have paused");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes as long to end as a test likes.
    struct Slow(mpsc::Receiver<()>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    #[test]
    fn what_ends_slowly_holds_up_only_what_comes_after_it() {
        let done = Arc::new(EventFd::new(0).unwrap());
        let mut disposal = Disposal::new(Arc::clone(&done));
        assert!(disposal.is_idle());
        let (end, slow) = mpsc::channel();
        disposal.put(Slow(slow));
        assert!(!disposal.is_behind() && !disposal.is_idle());
        disposal.put(());
        assert!(disposal.is_behind() && !disposal.is_idle());
        drop(end);
        // Twice: for the slow one and for what waited behind it.
        while !disposal.is_idle() {
            done.read().unwrap();
        }
        assert!(!disposal.is_behind());
    }
}
