//! What can go wrong between a guest and its back-end.

use std::io;
use std::time::Duration;

use crate::Request;

/// The back-end, the socket or the operating system did not do what the guest needed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The operating system refused.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The back-end closed the connection.
    #[error("the back-end closed the connection")]
    Closed,
    /// Something did not happen in time.
    #[error("{what} did not happen within {limit:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// The back-end acknowledged a request with an error.
    #[error("the back-end refused {request:?} with {code}")]
    Refused {
        /// The request.
        request: Request,
        /// The value in the acknowledgement, which is not zero.
        code: u64,
    },
    /// A reply breaks the protocol.
    #[error("the reply to {request:?} {what}")]
    BadReply {
        /// The request.
        request: Request,
        /// What is wrong with its reply.
        what: String,
    },
    /// A feature that this guest insists on is not offered.
    #[error("the back-end does not offer {} (features {missing:#x})", crate::feature::names(*.missing).join(", "))]
    NotOffered {
        /// The bits.
        missing: u64,
    },
    /// The back-end broke the rules of the ring.
    #[error("ring {ring}: {what}")]
    BadRing {
        /// The ring's index in the vhost-user protocol.
        ring: u16,
        /// The rule that it broke.
        what: String,
    },
    /// A received frame or its virtio-net header is not what the negotiated features allow.
    #[error("received frame: {0}")]
    BadFrame(String),
    /// There are not enough free descriptors for a chain.
    #[error("ring {ring} has {free} free descriptors and the chain needs {needed}")]
    RingFull {
        /// The ring's index in the vhost-user protocol.
        ring: u16,
        /// Free descriptors.
        free: usize,
        /// Descriptors that the chain needs.
        needed: usize,
    },
}

impl GuestError {
    /// Wraps an error of the operating system; the two that mean "connection gone" and "time over" get their own names.
    pub(crate) fn io(what: &'static str, limit: Duration) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut { what, limit },
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io { what, source },
        }
    }
}
