//! What is told to connections, and what they tell of their ends.

use std::time::Duration;

/// Limits and times of TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// The most data in one segment to a guest, in bytes: the network's MTU less 40.
    pub mss: u16,
    /// By how many bits windows for guests are shifted: 64 KiB times two to the power of this is the largest.
    pub window_shift: u8,
    /// An open connection on which nothing happens is asked after this time whether it is still there. At least 2 h 4 min
    /// (RFC 5382, REQ-5).
    pub established: Duration,
    /// A connection that is being opened or closed is given up after this time. At least 4 min (RFC 5382, REQ-5).
    pub transitory: Duration,
    /// How long the end of a connection is remembered that the far end closed first.
    pub linger: Duration,
    /// How long to wait for the first acknowledgment (RFC 6298, section 2.1) …
    pub timeout_initial: Duration,
    /// … and for any, at least.
    pub timeout_min: Duration,
    /// How often a segment is sent again before the guest counts as gone (RFC 9293, section 3.8.3).
    pub retries: u8,
    /// The same for SYN.
    pub syn_retries: u8,
    /// The same for SYN where the far end calls the guest: with three, the caller is given up after 15 s, because it holds a descriptor and has been told that it is
    /// connected.
    pub call_retries: u8,
}

impl TcpSettings {
    /// What RFC 5382 asks for, in a network with this MTU (in bytes, at least 68).
    #[must_use]
    pub fn new(mtu: u16) -> Self {
        Self {
            mss: mtu.saturating_sub(40).max(1),
            window_shift: 7,
            established: Duration::from_secs(2 * 3600 + 4 * 60),
            transitory: Duration::from_secs(240),
            linger: Duration::from_secs(10),
            timeout_initial: Duration::from_secs(1),
            timeout_min: Duration::from_millis(200),
            retries: 12,
            syn_retries: 5,
            call_retries: 3,
        }
    }
}

/// Why something about a socket failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketError {
    /// The far end refused the connection.
    Refused,
    /// The far end reset the connection.
    Reset,
    /// Nobody there has that address.
    HostUnreachable,
    /// No way leads there.
    NetUnreachable,
    /// Nobody answered.
    TimedOut,
    /// The host does not allow it, or something on the way doesn't.
    Prohibited,
    /// Something else.
    Other,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum CloseReason {
    /// Both sides were done.
    Finished,
    /// The guest reset it.
    GuestReset,
    /// The far end reset it, or the guest refused what came from there.
    PeerReset,
    /// The far end did not accept it.
    Refused,
    /// There is no way to the far end.
    Unreachable,
    /// The far end did not answer.
    PeerTimeout,
    /// The guest did not answer.
    GuestTimeout,
    /// Nothing happened for too long.
    Idle,
    /// It was given up: the guest's port has gone, the engine stopped, or a newer connection took its place.
    Abandoned,
    /// The host did not do what was asked of it.
    HostError,
}
