//! Putting fragmented datagrams together (RFC 791, section 3.2; RFC 1122, section 3.3.2), in whatever order their parts come.
//!
//! # Theory
//!
//! Parts are kept in a list, sorted by where they belong. A part that overlaps another makes the whole datagram suspect (the old trick
//! to show a filter something else than the receiver sees), so all of it is dropped; the same part again, as a network may repeat
//! it, is not. Parts count as the same by place and length, and the first one wins.
//!
//! Bounds: what a port can hold here is limited by [`DATAGRAMS_PER_PORT`], and all ports together by [`BYTES`]. Whoever exceeds the
//! first loses its own oldest datagram; when the second is exceeded, the port that has the most bytes does.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::{DropReason, Ipv4Packet, MacAddr, PortId, Station, Timestamp};

/// The most incomplete datagrams of one port.
pub(super) const DATAGRAMS_PER_PORT: usize = 16;
/// The most parts of one datagram: 64 KiB in parts of 512 bytes, which is less than the smallest MTU anybody uses carries.
pub(super) const PARTS: usize = 128;
/// The most bytes of all incomplete datagrams together.
pub(super) const BYTES: usize = 16 << 20;
/// How long a datagram may take from its first part to its last.
pub(super) const COMPLETE_WITHIN: Duration = Duration::from_secs(30);
/// The most bytes of an IPv4 packet.
const PACKET_LEN_MAX: usize = 65_535;

/// Datagrams of which parts are missing.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    /// By port, the oldest datagram first.
    ports: BTreeMap<PortId, VecDeque<Datagram>>,
    bytes: usize,
}

/// What makes parts belong together (RFC 791, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    identification: u16,
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    since: Timestamp,
    mac: MacAddr,
    /// Sorted by offset, without overlaps.
    parts: Vec<Part>,
    /// The header of the first part, once it is there.
    header: Option<Vec<u8>>,
    /// Bytes of payload in all, once the last part is there.
    len: Option<usize>,
    bytes: usize,
}

#[derive(Debug)]
struct Part {
    offset: usize,
    payload: Vec<u8>,
}

/// Parts that were given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Abandoned {
    pub(super) port: PortId,
    pub(super) mac: MacAddr,
    /// How many frames died.
    pub(super) parts: u64,
    /// The first part as it came, but for what was behind its payload, if it had come.
    pub(super) first: Option<Vec<u8>>,
}

impl Fragments {
    /// Takes a part; returns the whole when it was the last that was missing. Datagrams that had to make way are added to
    /// `abandoned`.
    ///
    /// # Errors
    /// [`DropReason::BadFragment`], and with it the whole datagram is gone: those of its parts that were kept are in `abandoned`.
    /// [`DropReason::FragmentsFull`] for one part too many.
    pub(super) fn add(
        &mut self,
        now: Timestamp,
        Station { port, mac }: Station,
        packet: &Ipv4Packet<'_>,
        abandoned: &mut Vec<Abandoned>,
    ) -> Result<Option<Ipv4Packet<'static>>, DropReason> {
        let header = packet.header();
        let (offset, payload) = (usize::from(header.fragment_offset), packet.payload());
        let end = offset + payload.len();
        let uneven = header.more_fragments && !payload.len().is_multiple_of(8);
        if payload.is_empty() || uneven || usize::from(header.header_len) + end > PACKET_LEN_MAX {
            return Err(DropReason::BadFragment);
        }
        let key = Key {
            source: header.source,
            destination: header.destination,
            protocol: header.protocol,
            identification: header.identification,
        };
        let datagrams = self.ports.entry(port).or_default();
        let index = datagrams.iter().position(|datagram| datagram.key == key).unwrap_or_else(|| {
            datagrams.push_back(Datagram::new(key, now, mac));
            datagrams.len() - 1
        });
        let before = datagrams[index].bytes;
        let added = datagrams[index].add(packet, offset, end);
        self.bytes += datagrams[index].bytes - before;
        match added {
            Err(DropReason::BadFragment) => {
                abandoned.extend(self.remove(port, index).map(|datagram| datagram.abandon(port)));
                Err(DropReason::BadFragment)
            }
            Err(reason) => Err(reason),
            Ok(false) => {
                self.keep_bounds(port, abandoned);
                Ok(None)
            }
            Ok(true) => self.remove(port, index).map(Datagram::complete).transpose(),
        }
    }

    /// Gives up the datagrams that took too long.
    pub(super) fn expire(&mut self, now: Timestamp, abandoned: &mut Vec<Abandoned>) {
        let is_late = |datagram: &Datagram| now.since(datagram.since) >= COMPLETE_WITHIN;
        let ports: Vec<_> = self.ports.keys().copied().collect();
        for port in ports {
            while self.ports.get(&port).and_then(VecDeque::front).is_some_and(is_late) {
                abandoned.extend(self.remove(port, 0).map(|datagram| datagram.abandon(port)));
            }
        }
    }

    /// Forgets all parts that came from `port`.
    pub(super) fn forget_port(&mut self, port: PortId) {
        let gone = self.ports.remove(&port).unwrap_or_default();
        self.bytes -= gone.iter().map(|datagram| datagram.bytes).sum::<usize>();
    }

    /// True if nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    fn keep_bounds(&mut self, port: PortId, abandoned: &mut Vec<Abandoned>) {
        if self.ports.get(&port).is_some_and(|datagrams| datagrams.len() > DATAGRAMS_PER_PORT) {
            abandoned.extend(self.remove(port, 0).map(|datagram| datagram.abandon(port)));
        }
        while self.bytes > BYTES {
            let bytes = |datagrams: &VecDeque<Datagram>| datagrams.iter().map(|datagram| datagram.bytes).sum::<usize>();
            let Some(most) = self.ports.iter().max_by_key(|(_, datagrams)| bytes(datagrams)).map(|(port, _)| *port) else {
                return;
            };
            abandoned.extend(self.remove(most, 0).map(|datagram| datagram.abandon(most)));
        }
    }

    fn remove(&mut self, port: PortId, index: usize) -> Option<Datagram> {
        let datagrams = self.ports.get_mut(&port)?;
        let datagram = datagrams.remove(index)?;
        self.bytes -= datagram.bytes;
        if datagrams.is_empty() {
            self.ports.remove(&port);
        }
        Some(datagram)
    }
}

impl Datagram {
    fn new(key: Key, since: Timestamp, mac: MacAddr) -> Self {
        Self { key, since, mac, parts: Vec::new(), header: None, len: None, bytes: 0 }
    }

    /// Adds a part; true if nothing is missing any more.
    fn add(&mut self, packet: &Ipv4Packet<'_>, offset: usize, end: usize) -> Result<bool, DropReason> {
        let at = self.parts.partition_point(|part| part.offset < offset);
        if self.parts.get(at).is_some_and(|part| part.offset == offset && part.end() == end) {
            return Ok(false);
        }
        let overlaps = at.checked_sub(1).is_some_and(|before| self.parts[before].end() > offset)
            || self.parts.get(at).is_some_and(|part| part.offset < end);
        let last = !packet.header().more_fragments;
        let beyond =
            self.len.is_some_and(|len| end > len || last) || last && self.parts.last().is_some_and(|part| part.end() > end);
        if overlaps || beyond {
            return Err(DropReason::BadFragment);
        }
        if self.parts.len() >= PARTS {
            return Err(DropReason::FragmentsFull);
        }
        if last {
            self.len = Some(end);
        }
        if offset == 0 {
            self.header = Some(packet.header_bytes().to_vec());
        }
        self.parts.insert(at, Part { offset, payload: packet.payload().to_vec() });
        self.bytes += end - offset;
        // Without overlaps, as many bytes as there are in all is all of them.
        Ok(self.len == Some(self.bytes))
    }

    fn complete(self) -> Result<Ipv4Packet<'static>, DropReason> {
        let payload = self.parts.iter().map(|part| part.payload.as_slice()).collect::<Vec<_>>().concat();
        let header = self.header.ok_or(DropReason::BadFragment)?;
        if header.len() + payload.len() > PACKET_LEN_MAX {
            return Err(DropReason::BadFragment);
        }
        Ipv4Packet::reassembled(&header, &payload)
    }

    fn abandon(self, port: PortId) -> Abandoned {
        let parts = self.parts.len() as u64;
        let first = self.header.zip(self.parts.first()).map(|(header, part)| [&header, part.payload.as_slice()].concat());
        Abandoned { port, mac: self.mac, parts, first }
    }
}

impl Part {
    fn end(&self) -> usize {
        self.offset + self.payload.len()
    }
}
