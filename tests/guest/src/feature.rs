//! Feature bits as masks: those of the virtio-net device and those of the vhost-user protocol.

use vhost::vhost_user::VhostUserProtocolFeatures;
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// The modern interface; without it the legacy one is spoken.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// A received frame may span several receive buffers.
pub const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// A descriptor may name a table of descriptors.
pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Notifications are asked for by ring index instead of by flag.
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Rings are packed instead of split.
pub const RING_PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
/// Chains are finished in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
/// The device has several queue pairs.
pub const MQ: u64 = 1 << VIRTIO_NET_F_MQ;
/// The guest takes frames without a complete checksum.
pub const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
/// The guest may send frames without a complete checksum.
pub const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
/// The guest takes segments of TCP over IPv4 that are longer than the MTU.
pub const GUEST_TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
/// The guest may send segments of TCP over IPv4 that are longer than the MTU.
pub const HOST_TSO4: u64 = 1 << VIRTIO_NET_F_HOST_TSO4;
/// The guest takes TCP segments that are longer than the MTU.
pub const GUEST_TSO: u64 = GUEST_TSO4 | (1 << VIRTIO_NET_F_GUEST_TSO6);
/// The guest may send TCP segments that are longer than the MTU.
pub const HOST_TSO: u64 = HOST_TSO4 | (1 << VIRTIO_NET_F_HOST_TSO6);
/// The guest may send UDP datagrams that are to be fragmented.
pub const HOST_UFO: u64 = 1 << VIRTIO_NET_F_HOST_UFO;
/// The guest may send several UDP datagrams as one frame (virtio 1.2, section 5.1.3).
pub const HOST_USO: u64 = 1 << 56;
/// The back-end knows vhost-user protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What the guest asks for unless it is told otherwise.
pub const DEFAULT: u64 = VERSION_1 | MRG_RXBUF | INDIRECT_DESC | EVENT_IDX;

/// Protocol features that the guest takes when they are offered, unless it is told otherwise.
pub const PROTOCOL_DEFAULT: u64 = VhostUserProtocolFeatures::MQ.bits()
    | VhostUserProtocolFeatures::RARP.bits()
    | VhostUserProtocolFeatures::REPLY_ACK.bits()
    | VhostUserProtocolFeatures::MTU.bits()
    | VhostUserProtocolFeatures::CONFIG.bits()
    | VhostUserProtocolFeatures::RESET_DEVICE.bits()
    | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS.bits()
    | VhostUserProtocolFeatures::STATUS.bits();
/// Several queue pairs.
pub const PROTOCOL_MQ: u64 = VhostUserProtocolFeatures::MQ.bits();
/// Every request can ask for an acknowledgement.
pub const PROTOCOL_REPLY_ACK: u64 = VhostUserProtocolFeatures::REPLY_ACK.bits();
/// Memory comes and goes region by region.
pub const PROTOCOL_CONFIGURE_MEM_SLOTS: u64 = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS.bits();
/// The back-end keeps the device status.
pub const PROTOCOL_STATUS: u64 = VhostUserProtocolFeatures::STATUS.bits();
/// The back-end is told the MTU.
pub const PROTOCOL_MTU: u64 = VhostUserProtocolFeatures::MTU.bits();

/// The features that have a name here, in the order of their bits.
const NAMES: [(u64, &str); 16] = [
    (CSUM, "CSUM"),
    (GUEST_CSUM, "GUEST_CSUM"),
    (GUEST_TSO4, "GUEST_TSO4"),
    (1 << VIRTIO_NET_F_GUEST_TSO6, "GUEST_TSO6"),
    (HOST_TSO4, "HOST_TSO4"),
    (1 << VIRTIO_NET_F_HOST_TSO6, "HOST_TSO6"),
    (HOST_UFO, "HOST_UFO"),
    (MRG_RXBUF, "MRG_RXBUF"),
    (MQ, "MQ"),
    (INDIRECT_DESC, "INDIRECT_DESC"),
    (EVENT_IDX, "EVENT_IDX"),
    (PROTOCOL_FEATURES, "PROTOCOL_FEATURES"),
    (VERSION_1, "VERSION_1"),
    (RING_PACKED, "RING_PACKED"),
    (IN_ORDER, "IN_ORDER"),
    (HOST_USO, "HOST_USO"),
];

/// The names of those features of a mask that have one in this module.
#[must_use]
pub fn names(features: u64) -> Vec<&'static str> {
    NAMES.into_iter().filter(|(bit, _)| features & bit != 0).map(|(_, name)| name).collect()
}
