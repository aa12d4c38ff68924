//! Descriptors from a front-end, until it is known what they are.
//!
//! A front-end can attach any descriptor to any message. Asking most of them anything, or closing them, may block (see
//! `disposal`). So a [`Received`] is only ever asked two things that the kernel answers by itself: whether it is an eventfd, and
//! whether it is memory. What is neither ends in the connection's [`Bin`], unclosed, and with it the connection.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// The descriptors of a connection that may block when they are closed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bin(Arc<Mutex<Vec<OwnedFd>>>);

impl Bin {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn put(&self, fd: OwnedFd) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(fd);
    }
}

/// A descriptor of unknown kind.
#[derive(Debug)]
pub(crate) struct Received {
    fd: Option<OwnedFd>,
    bin: Bin,
}

impl Received {
    pub(crate) fn new(fd: OwnedFd, bin: &Bin) -> Self {
        Self { fd: Some(fd), bin: bin.clone() }
    }

    /// The descriptor, if it is an eventfd.
    pub(crate) fn eventfd(mut self) -> Option<OwnedFd> {
        self.take_if(|fd| crate::sys::is_eventfd(fd.as_fd()))
    }

    /// The descriptor, if it is a memfd or a file on tmpfs or hugetlbfs: only those have seals (fcntl(2), `F_GET_SEALS`).
    pub(crate) fn memory(mut self) -> Option<Arc<File>> {
        self.take_memory()
    }

    /// For requests that are refused: closes the descriptor if it is an eventfd, gives it if it is memory.
    pub(crate) fn close(mut self) -> Option<Arc<File>> {
        drop(self.take_if(|fd| crate::sys::is_eventfd(fd.as_fd())));
        self.take_memory()
    }

    fn take_memory(&mut self) -> Option<Arc<File>> {
        self.take_if(|fd| rustix::fs::fcntl_get_seals(fd).is_ok()).map(|fd| Arc::new(fd.into()))
    }

    fn take_if(&mut self, is_so: impl FnOnce(&OwnedFd) -> bool) -> Option<OwnedFd> {
        if self.fd.as_ref().is_some_and(is_so) { self.fd.take() } else { None }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.bin.put(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn kinds(make: impl Fn() -> OwnedFd) -> (bool, bool, bool) {
        let bin = Bin::default();
        let eventfd = Received::new(make(), &bin).eventfd().is_some();
        let memory = Received::new(make(), &bin).memory().is_some();
        (eventfd, memory, bin.is_empty())
    }

    #[test]
    fn only_eventfds_and_memory_are_ever_taken_for_what_they_are() {
        assert_eq!(kinds(|| eventfd(0, EventfdFlags::CLOEXEC).unwrap()), (true, false, false));
        assert_eq!(kinds(|| memfd_create("guest", MemfdFlags::CLOEXEC).unwrap()), (false, true, false));
        assert_eq!(kinds(|| rustix::pipe::pipe().unwrap().0), (false, false, false));
        let bin = Bin::default();
        drop(Received::new(rustix::pipe::pipe().unwrap().0, &bin));
        assert!(!bin.is_empty());
        let bin = Bin::default();
        drop(Received::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap(), &bin).eventfd());
        assert!(bin.is_empty());
        assert!(Received::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap(), &bin).close().is_none());
        assert!(Received::new(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap(), &bin).close().is_some());
        assert!(bin.is_empty());
        assert!(Received::new(rustix::pipe::pipe().unwrap().0, &bin).close().is_none());
        assert!(!bin.is_empty());
    }
}
