//! What is to be sent: every choice as one value, and which choices don't go together.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::traffic::{ETHERNET_LEN, TAG_LEN};

/// Guests that a run may have: their number is one byte of their stations' addresses.
const MAX_GUESTS: usize = 255;
/// The largest IP packet.
const MAX_PACKET_LEN: usize = 65_535;
/// Room that a switch may need to push tags.
const ROOM_FOR_TAGS: usize = 2 * TAG_LEN;
/// The length of a virtio-net header.
const VIRTIO_HEADER_LEN: usize = 12;
/// A receive buffer that a frame of any ordinary Ethernet size fits into, or a part of a larger one.
const BUFFER_LEN: usize = 2048;

/// What is to be sent.
#[derive(Clone, Debug, Serialize)]
pub struct Options {
    /// The ports of the guests, two or more.
    pub sockets: Vec<PathBuf>,
    /// The guests listen on them, and the switch connects.
    pub listen: bool,
    /// Bytes of a frame, without FCS.
    pub frame_len: usize,
    /// What the frames carry.
    pub payload: Payload,
    /// When to stop.
    pub until: Until,
    /// When the next frame is sent.
    pub pace: Pace,
    /// With two guests: also from the second to the first. With more, each sends to every other anyway.
    pub both_ways: bool,
    /// Stations behind each port.
    pub stations: u16,
    /// Flows from each guest to each other one. Only [`Payload::Udp`] and [`Payload::Tcp`] have any.
    pub flows: u32,
    /// The VLANs of the frames, in turn; none for frames without tags.
    pub vlans: Vec<u16>,
    /// All guests but the first are behind trunks: they introduce themselves in this VLAN, by a tag.
    pub trunk: Option<u16>,
    /// Every byte of every frame is compared.
    pub check: bool,
    /// How the rings are to be.
    pub rings: Rings,
}

/// How the rings of each guest are to be.
#[derive(Clone, Debug, Serialize)]
pub struct Rings {
    /// Descriptors of each.
    pub size: u16,
    /// Queue pairs.
    pub queues: u16,
    /// Packed instead of split.
    pub packed: bool,
    /// Negotiate `IN_ORDER`.
    pub in_order: bool,
    /// Negotiate `MRG_RXBUF`.
    pub mergeable: bool,
    /// Descriptors of frames that are sent stand in indirect tables.
    pub indirect: bool,
    /// Descriptors of a frame that is sent.
    pub chain: u16,
    /// Bytes of guest memory that buffers are spread over.
    pub spread: Option<u64>,
}

/// What frames carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// An EtherType for experiments, and bytes.
    Plain,
    /// IPv4 and UDP.
    Udp,
    /// IPv4 and TCP, to be cut into segments, checksums not complete.
    Tcp {
        /// Bytes of payload in each segment.
        segment_len: u16,
    },
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// When this much time is over.
    Elapsed(Duration),
    /// When each guest that sends has sent this many frames.
    Frames(u64),
}

/// When the next frame is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Whenever the ring has room. What the receiver can't take is lost.
    Open,
    /// While fewer than this many are under way: in each direction between two guests, in all between more.
    Closed(u32),
    /// When the one before has arrived; each is timed.
    OneAtATime,
}

/// Choices that don't go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// Too few or too many sockets.
    #[error("{0} sockets: name two or more, at most {MAX_GUESTS}")]
    Sockets(usize),
    /// Two guests can't share a port.
    #[error("the socket {0} is named twice: each guest needs a port of its own")]
    SameSocket(PathBuf),
    /// Between more than two guests there is no single direction to time.
    #[error("--latency times frames between two sockets, not between {0}")]
    LatencyOfMany(usize),
    /// More than two guests all send.
    #[error("--both is for two sockets: with {0}, every guest sends to every other anyway")]
    BothOfMany(usize),
    /// Split rings have sizes that are powers of two (virtio 1.2, 2.7).
    #[error("--ring-size {0} is no power of two, as a ring without --packed needs")]
    RingSize(u16),
    /// Prepared chains must fill the ring.
    #[error("--chain {chain} does not divide the ring's {size} descriptors: choose one that does, or --indirect")]
    Chain {
        /// Descriptors of a frame.
        chain: u16,
        /// Descriptors of the ring.
        size: u16,
    },
    /// An indirect table is no longer than the ring (virtio 1.2, 2.7.5.3.1).
    #[error("--chain {chain} with --indirect is more than the ring's {size} descriptors")]
    Table {
        /// Descriptors of a frame.
        chain: u16,
        /// Descriptors of the ring.
        size: u16,
    },
    /// A descriptor has at least one byte.
    #[error("--chain {chain} cuts a frame of {bytes} bytes, header included, into more descriptors than it has bytes")]
    Pieces {
        /// Descriptors of a frame.
        chain: u16,
        /// Bytes that there are.
        bytes: usize,
    },
    /// The ring that a frame comes from must hold what is to be under way.
    #[error("--closed {frames} is more than the {room} receive buffers of a guest, so frames would be lost")]
    Closed {
        /// Frames under way.
        frames: u32,
        /// Frames that a guest has buffers for.
        room: u32,
    },
    /// The frame does not fit an IP packet.
    #[error("a frame of {len} bytes is too long: it may have {most}, since an IP packet has at most {MAX_PACKET_LEN}")]
    FrameTooLong {
        /// Bytes of a frame.
        len: usize,
        /// Bytes that it may have.
        most: usize,
    },
    /// A frame that fits one segment needs no segmentation.
    #[error("--tso {len} is one segment: it takes more than {most} bytes to need two")]
    OneSegment {
        /// Bytes of a frame.
        len: usize,
        /// Bytes of a frame with one full segment.
        most: usize,
    },
    /// The buffers don't fit.
    #[error("--spread {bytes} has no room for {needed} bytes of buffers")]
    Spread {
        /// Bytes to spread over.
        bytes: u64,
        /// Bytes that the buffers take, each from the start of a page.
        needed: u64,
    },
}

impl Options {
    /// Checks what single options can't tell by themselves.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let guests = self.sockets.len();
        if !(2..=MAX_GUESTS).contains(&guests) {
            return Err(OptionsError::Sockets(guests));
        }
        if let Some((_, twice)) = self.sockets.iter().enumerate().find(|(at, socket)| self.sockets[..*at].contains(socket)) {
            return Err(OptionsError::SameSocket(twice.clone()));
        }
        match (guests, self.pace) {
            (3.., Pace::OneAtATime) => return Err(OptionsError::LatencyOfMany(guests)),
            (3.., _) if self.both_ways => return Err(OptionsError::BothOfMany(guests)),
            _ => {}
        }
        self.validate_frames()?;
        self.validate_rings()
    }

    fn validate_frames(&self) -> Result<(), OptionsError> {
        let ethernet_len = ETHERNET_LEN + if self.vlans.is_empty() { 0 } else { TAG_LEN };
        let most = MAX_PACKET_LEN + ethernet_len;
        if self.frame_len > most {
            return Err(OptionsError::FrameTooLong { len: self.frame_len, most });
        }
        if let Payload::Tcp { segment_len } = self.payload {
            let most = ethernet_len + 40 + usize::from(segment_len);
            if self.frame_len <= most {
                return Err(OptionsError::OneSegment { len: self.frame_len, most });
            }
        }
        Ok(())
    }

    fn validate_rings(&self) -> Result<(), OptionsError> {
        let Rings { size, chain, .. } = self.rings;
        if !self.rings.packed && !size.is_power_of_two() {
            return Err(OptionsError::RingSize(size));
        }
        if self.rings.indirect && chain > size {
            return Err(OptionsError::Table { chain, size });
        }
        if !self.rings.indirect && !size.is_multiple_of(chain) {
            return Err(OptionsError::Chain { chain, size });
        }
        // Without VERSION_1 and MRG_RXBUF a header has two bytes fewer.
        let bytes = self.frame_len + VIRTIO_HEADER_LEN - 2;
        if usize::from(chain) > bytes {
            return Err(OptionsError::Pieces { chain, bytes });
        }
        if let Pace::Closed(frames) = self.pace {
            let room = (usize::from(size) / self.buffers_per_frame(self.rings.mergeable)) as u32 * u32::from(self.rings.queues);
            if frames > room {
                return Err(OptionsError::Closed { frames, room });
            }
        }
        if let Some(bytes) = self.rings.spread {
            let needed = self.buffers() * self.place_len();
            if needed > bytes {
                return Err(OptionsError::Spread { bytes, needed });
            }
        }
        Ok(())
    }

    /// Bytes of each receive buffer, with mergeable ones or without.
    #[must_use]
    pub fn buffer_len(&self, mergeable: bool) -> usize {
        if mergeable { BUFFER_LEN } else { BUFFER_LEN.max(VIRTIO_HEADER_LEN + self.frame_len + ROOM_FOR_TAGS) }
    }

    /// Receive buffers that a frame fills.
    fn buffers_per_frame(&self, mergeable: bool) -> usize {
        (VIRTIO_HEADER_LEN + self.frame_len).div_ceil(self.buffer_len(mergeable))
    }

    /// Buffers of one guest: one for each descriptor of its rings, at most.
    #[must_use]
    pub fn buffers(&self) -> u64 {
        2 * u64::from(self.rings.queues) * u64::from(self.rings.size)
    }

    /// Bytes from the start of one buffer to where the next may start when they are spread: whole pages.
    #[must_use]
    pub fn place_len(&self) -> u64 {
        let sent = VIRTIO_HEADER_LEN + self.frame_len;
        // Whether the back-end agrees to mergeable buffers is not known yet.
        (self.buffer_len(false).max(sent) as u64).next_multiple_of(4096)
    }
}
