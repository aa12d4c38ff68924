//! A vhost-user port, as far as frames care: what was agreed to, and the numbers that both directions share. Frames that come
//! from a guest are in [`crate::from_guest`], frames for it in [`crate::to_guest`].

use weft_switch::OffloadFeatures;

/// The most frames in a batch.
pub(crate) const BATCH: usize = 32;
/// Some frames of a batch: one bit each.
pub(crate) type FrameMask = u32;
const _: () = assert!(BATCH == FrameMask::BITS as usize);
/// Length of a virtio-net header with `num_buffers` (virtio 1.2, section 5.1.6.1).
pub(crate) const LONG_HEADER: usize = 12;
/// The same without, for drivers that negotiated neither VERSION_1 nor MRG_RXBUF.
pub(crate) const SHORT_HEADER: usize = 10;

/// What the driver agreed to, as far as frames care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameFeatures {
    /// Frames carry the long virtio-net header.
    pub(crate) long_header: bool,
    /// A frame for the guest may be spread over several chains.
    pub(crate) mergeable: bool,
    /// What the driver may leave undone in frames that it sends.
    pub(crate) offloads_from_guest: OffloadFeatures,
    /// What may be left undone in frames for it.
    pub(crate) offloads_to_guest: OffloadFeatures,
}

impl FrameFeatures {
    pub(crate) fn header_len(self) -> usize {
        if self.long_header { LONG_HEADER } else { SHORT_HEADER }
    }
}
