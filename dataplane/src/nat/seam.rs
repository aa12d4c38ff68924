//! What the engine and the rest of the dataplane want of each other.

use std::net::Ipv4Addr;
use std::sync::Arc;

use mio::{Registry, Token};
use weft_switch::gateway::Refusal;
use weft_switch::{DropReason, Ipv4Header, Offload, OffloadFeatures, PortId, Station, Timestamp};

use crate::memory::Segment;

/// A packet of a guest's for the outside, checked by the gateway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuestPacket<'a> {
    /// Who sent it.
    pub(crate) station: Station,
    /// Its IP header. It is no fragment.
    pub(crate) ip: Ipv4Header,
    /// A private copy of what follows the IP header: all of it, or at least its first [`Self::HEADER_LEN`] bytes.
    pub(crate) head: &'a [u8],
    /// Where all that follows the IP header is, the copied part included. Valid until [`super::Engine::flush`].
    pub(crate) pieces: &'a [Segment],
    /// Bytes behind the IP header.
    pub(crate) len: usize,
    /// It stands for several datagrams, of this many bytes of payload each but the last; never zero.
    pub(crate) segment: Option<u16>,
}

impl GuestPacket<'_> {
    /// As much of a packet as has to be copied at least: the longest TCP header.
    pub(crate) const HEADER_LEN: usize = 60;
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Disposition {
    /// The engine has it.
    Taken,
    /// It goes no further.
    Drop(DropReason),
    /// The same, and its sender is told.
    Refuse(DropReason, Refusal),
}

/// Why a guest got nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// It offers no buffers now.
    Full,
    /// It is not there, or will never have as much.
    Never,
}

/// The guests' receive rings, as the engine sees them.
pub(crate) trait ToGuests {
    /// What may be left undone in frames for `port`.
    fn offloads(&mut self, port: PortId) -> OffloadFeatures;

    /// Takes buffers of `port` for a frame of at most `len` bytes. `pieces`, which is empty, gets where these are, from the first byte
    /// of the Ethernet header on; says how many bytes there are, which may be fewer. To be followed by [`Self::commit`] or
    /// [`Self::cancel`], before anything else.
    fn reserve(&mut self, port: PortId, len: usize, pieces: &mut Vec<Segment>) -> Result<usize, NoRoom>;

    /// Sees to it that `token` is reported to `registry` when `port` offers buffers again. True if it has done so already, `None` if nobody
    /// can tell.
    fn wait_for_room(&mut self, port: PortId, registry: &Arc<Registry>, token: Token) -> Option<bool>;

    /// The buffers hold a frame of `len` bytes, of which the first, `headers`, are yet to be written.
    fn commit(&mut self, headers: &[u8], len: usize, offload: &Offload);

    /// The buffers are not needed after all.
    fn cancel(&mut self);

    /// Who has this address of the network's. If nobody knows, it is found out, and a later call may know.
    fn station(&mut self, now: Timestamp, address: Ipv4Addr) -> Option<Station>;

    /// Counts frames of `port` that went no further after all.
    fn count_drop(&mut self, port: PortId, reason: DropReason, frames: u64);

    /// Copies a frame to `port`. What does not fit is lost, and counted.
    fn send(&mut self, port: PortId, frame: &[u8], offload: &Offload) -> Result<(), NoRoom>;
}
