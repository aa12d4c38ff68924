//! How a guest is to be: every choice that a test or a bench has, with what is usual as the default.

use std::path::{Path, PathBuf};

use crate::{RegionLayout, Shape, feature};

/// In which order the messages of a session come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As QEMU 10 for its net device: `SET_VRING_ENABLE` before `SET_FEATURES`, and never again.
    Qemu,
    /// As DPDK's virtio-user: `SET_VRING_ENABLE` last.
    VirtioUser,
}

/// How the back-end hears of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBy {
    /// `SET_MEM_TABLE`.
    Table,
    /// `ADD_MEM_REG`, which needs `CONFIGURE_MEM_SLOTS`.
    Slots,
}

/// Who listens on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// The back-end listens, the guest connects.
    Connect,
    /// The guest listens, the back-end connects.
    Listen,
}

/// How a guest is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) path: PathBuf,
    pub(crate) socket: Socket,
    pub(crate) order: Order,
    pub(crate) features: u64,
    pub(crate) features_if_offered: u64,
    pub(crate) protocol_features: u64,
    pub(crate) memory_by: Option<MemoryBy>,
    pub(crate) regions: Vec<RegionLayout>,
    pub(crate) sealed: bool,
    pub(crate) ring_size: u16,
    pub(crate) queue_pairs: u16,
    pub(crate) receive_shape: Option<Shape>,
    pub(crate) receive_buffers: Option<usize>,
    pub(crate) kick: bool,
    pub(crate) call: bool,
    pub(crate) acknowledge_everything: bool,
    pub(crate) knows_protocol_features: bool,
    pub(crate) mtu: Option<u16>,
    pub(crate) accepts_no_num_buffers: bool,
}

impl Builder {
    /// How a guest is unless it is told otherwise.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            socket: Socket::Connect,
            order: Order::Qemu,
            features: feature::DEFAULT,
            features_if_offered: 0,
            protocol_features: feature::PROTOCOL_DEFAULT,
            memory_by: None,
            regions: Vec::new(),
            sealed: false,
            ring_size: 256,
            queue_pairs: 1,
            receive_shape: None,
            receive_buffers: None,
            kick: true,
            call: true,
            acknowledge_everything: false,
            knows_protocol_features: true,
            mtu: None,
            accepts_no_num_buffers: false,
        }
    }

    /// Who listens; the back-end unless said otherwise.
    #[must_use]
    pub fn socket(self, socket: Socket) -> Self {
        Self { socket, ..self }
    }

    /// The order of messages; QEMU's unless said otherwise.
    #[must_use]
    pub fn order(self, order: Order) -> Self {
        Self { order, ..self }
    }

    /// The virtio features to negotiate, each of which the back-end must offer; [`feature::DEFAULT`] unless said
    /// otherwise. With [`feature::RING_PACKED`] the rings are packed.
    #[must_use]
    pub fn features(self, features: u64) -> Self {
        Self { features, features_if_offered: 0, ..self }
    }

    /// More virtio features, to be taken if the back-end offers them.
    #[must_use]
    pub fn features_if_offered(self, features: u64) -> Self {
        Self { features_if_offered: features, ..self }
    }

    /// The protocol features to take if offered; [`feature::PROTOCOL_DEFAULT`] unless said otherwise.
    #[must_use]
    pub fn protocol_features(self, features: u64) -> Self {
        Self { protocol_features: features, ..self }
    }

    /// How the back-end hears of memory; as the chosen front-end does it unless said otherwise.
    #[must_use]
    pub fn memory_by(self, memory_by: MemoryBy) -> Self {
        Self { memory_by: Some(memory_by), ..self }
    }

    /// One more region, for the test to use.
    #[must_use]
    pub fn region(mut self, layout: RegionLayout) -> Self {
        self.regions.push(layout);
        self
    }

    /// Memory files that can't change their size.
    #[must_use]
    pub fn sealed(self) -> Self {
        Self { sealed: true, ..self }
    }

    /// Descriptors of each ring, a power of two if the rings are split; 256 unless said otherwise.
    #[must_use]
    pub fn ring_size(self, ring_size: u16) -> Self {
        Self { ring_size, ..self }
    }

    /// Queue pairs; one unless said otherwise. With several, [`feature::MQ`] is taken if it is offered.
    #[must_use]
    pub fn queue_pairs(self, queue_pairs: u16) -> Self {
        Self { queue_pairs, ..self }
    }

    /// The shape of the receive buffers posted at the start.
    #[must_use]
    pub fn receive_shape(self, shape: Shape) -> Self {
        Self { receive_shape: Some(shape), ..self }
    }

    /// How many receive buffers are posted at the start; as many as fit unless said otherwise.
    #[must_use]
    pub fn receive_buffers(self, count: usize) -> Self {
        Self { receive_buffers: Some(count), ..self }
    }

    /// No kick descriptors: the back-end has to look at the rings by itself.
    #[must_use]
    pub fn without_kick(self) -> Self {
        Self { kick: false, ..self }
    }

    /// No call descriptors: this guest looks at the rings by itself.
    #[must_use]
    pub fn without_call(self) -> Self {
        Self { call: false, ..self }
    }

    /// Asks for an acknowledgement of every request, whatever the chosen front-end does.
    #[must_use]
    pub fn acknowledge_everything(self) -> Self {
        Self { acknowledge_everything: true, ..self }
    }

    /// A front-end from before protocol features: rings start enabled, nothing is acknowledged.
    #[must_use]
    pub fn without_protocol_features(self) -> Self {
        Self { knows_protocol_features: false, ..self }
    }

    /// Announces this MTU, if the back-end wants to hear it.
    #[must_use]
    pub fn mtu(self, mtu: u16) -> Self {
        Self { mtu: Some(mtu), ..self }
    }

    /// Takes frames whose `num_buffers` is 0 where it must be 1 (virtio 1.2, 5.1.6.4.1): without `MRG_RXBUF`, DPDK leaves
    /// it out.
    #[must_use]
    pub fn accepts_no_num_buffers(self) -> Self {
        Self { accepts_no_num_buffers: true, ..self }
    }
}
