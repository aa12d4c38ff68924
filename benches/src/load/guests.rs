//! The guests of a run: connected, known to the switch, and with their rings prepared.

use std::collections::HashMap;
use std::path::PathBuf;

use weft_guest::{Guest, GuestAddr, GuestError, PreparedReceive, PreparedSend, RegionLayout, Shape, Socket, feature};

use super::LoadError;
use super::check::Checker;
use super::options::{Options, Payload};
use super::receiver::Receiver;
use super::sender::Sender;
use super::traffic::Traffic;

/// Where the memory lies that buffers are spread over: far above everything else that a guest has.
const SPREAD_AT: u64 = 1 << 40;

/// The guests, and whom to blame.
#[derive(Debug)]
pub(super) struct Guests {
    pub(super) guests: Vec<Guest>,
    sockets: Vec<PathBuf>,
}

impl Guests {
    pub(super) fn connect(options: &Options) -> Result<Self, LoadError> {
        let guests = options.sockets.iter().map(|socket| {
            let connected = connect(socket, options);
            connected.map_err(|source| match source {
                GuestError::Closed => LoadError::TurnedAway { socket: socket.clone() },
                source => LoadError::Guest { socket: socket.clone(), source },
            })
        });
        Ok(Self { guests: guests.collect::<Result<_, _>>()?, sockets: options.sockets.clone() })
    }

    /// Lets the switch learn every station, and starts the rings anew, because prepared ones must not have been used.
    pub(super) fn introduce(&mut self, traffic: &Traffic) -> Result<(), LoadError> {
        let count = self.guests.len();
        for from in 0..count {
            let frames = traffic.introductions(from, (from + 1) % count);
            self.with(from, |guest| {
                frames.iter().try_for_each(|frame| guest.send(frame))?;
                // When the buffers come back, the switch has seen the frames.
                guest.flush().map(drop)
            })?;
        }
        (0..count).try_for_each(|index| self.with(index, restart))
    }

    /// The sending half of a guest, prepared.
    pub(super) fn sender(&mut self, from: usize, others: Vec<usize>, options: &Options, traffic: &Traffic) -> Sender {
        let guest = &mut self.guests[from];
        let pieces = if options.rings.indirect { 1 } else { options.rings.chain };
        let chains = PreparedSend::chains(options.rings.size, pieces);
        let shape = shape(options, guest.header_len() + options.frame_len);
        let places = places(guest, options);
        let mut rings = Vec::new();
        for (pair, places) in places.from_guest.iter().enumerate() {
            rings.push(PreparedSend::new(guest, pair, options.frame_len, &shape, &places[..chains.into()]));
        }
        let sender = Sender::new(from, others, rings, chains, options, traffic);
        for (pair, number) in
            (0..usize::from(options.rings.queues)).flat_map(|pair| (0..chains).map(move |number| (pair, number)))
        {
            let mut frame = sender.headers(pair, number.into()).bytes().to_vec();
            frame.resize(options.frame_len, 0);
            sender.ring(pair).write(guest, number, &traffic.virtio_header(), &frame);
        }
        sender
    }

    /// The receiving half of a guest, prepared.
    pub(super) fn receiver(&mut self, to: usize, options: &Options, traffic: &Traffic) -> Result<Receiver, LoadError> {
        let guests = self.guests.len();
        self.with(to, |guest| {
            let buffer_len = options.buffer_len(guest.features() & feature::MRG_RXBUF != 0);
            let places = places(guest, options);
            let prepare = |(pair, places): (usize, &Vec<GuestAddr>)| {
                PreparedReceive::new(guest, pair, u32::try_from(buffer_len).expect("a buffer is small"), places)
            };
            let rings = places.to_guest.iter().enumerate().map(prepare).collect::<Result<_, _>>()?;
            let checker = options.check.then(|| Checker::new(traffic.clone(), to, guests, options.rings.queues));
            let several = guest.header_len() + options.frame_len > buffer_len;
            Ok(Receiver::new(to, rings, guest.header_len(), several, checker))
        })
    }

    /// Does something with a guest; what goes wrong is told with its socket.
    #[inline]
    pub(super) fn with<T>(
        &mut self,
        index: usize,
        action: impl FnOnce(&mut Guest) -> Result<T, GuestError>,
    ) -> Result<T, LoadError> {
        match action(&mut self.guests[index]) {
            Ok(value) => Ok(value),
            Err(source) => Err(self.blame(index, source)),
        }
    }

    #[cold]
    fn blame(&self, index: usize, source: GuestError) -> LoadError {
        LoadError::Guest { socket: self.sockets[index].clone(), source }
    }
}

fn connect(socket: &PathBuf, options: &Options) -> Result<Guest, GuestError> {
    let rings = &options.rings;
    let when = |condition: bool, feature: u64| if condition { feature } else { 0 };
    let offloads = feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::GUEST_TSO4;
    let needed = when(rings.packed, feature::RING_PACKED | feature::VERSION_1)
        | when(rings.in_order, feature::IN_ORDER)
        | when(rings.indirect, feature::INDIRECT_DESC)
        | when(matches!(options.payload, Payload::Tcp { .. }), offloads);
    let wanted = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC | when(rings.mergeable, feature::MRG_RXBUF);
    let builder = Guest::builder(socket)
        .socket(if options.listen { Socket::Listen } else { Socket::Connect })
        .features(needed)
        .features_if_offered(wanted)
        .ring_size(rings.size)
        .queue_pairs(rings.queues)
        .receive_buffers(0);
    match rings.spread {
        Some(bytes) => builder.region(RegionLayout::at(SPREAD_AT, bytes.next_multiple_of(4096))).connect(),
        None => builder.connect(),
    }
}

/// Stops all rings of a guest and starts them empty.
fn restart(guest: &mut Guest) -> Result<(), GuestError> {
    guest.stop()?;
    guest.reset()?;
    (0..guest.pairs() * 2).try_for_each(|ring| guest.start_ring(ring))?;
    guest.set_enabled(true)?;
    // Starting a ring has no answer; when this one comes, it has started.
    guest.session().features().map(drop)
}

/// Cuts a frame of `len` bytes, header included, into as many equal pieces as were asked for.
fn shape(options: &Options, len: usize) -> Shape {
    let chain = usize::from(options.rings.chain);
    let shape = Shape::pieces(&vec![len / chain; chain - 1]);
    if options.rings.indirect { shape.indirect() } else { shape }
}

/// Where the buffers of a guest lie, by queue pair.
struct Places {
    to_guest: Vec<Vec<GuestAddr>>,
    from_guest: Vec<Vec<GuestAddr>>,
}

fn places(guest: &Guest, options: &Options) -> Places {
    let size = options.rings.size;
    let pairs = 0..guest.pairs();
    let Some(bytes) = options.rings.spread else {
        let slots = |ring| guest.slots(ring, size);
        let (to_guest, from_guest) = pairs.map(|pair| (slots(pair * 2), slots(pair * 2 + 1))).unzip();
        return Places { to_guest, from_guest };
    };
    let mut scattered = Scatter::new(bytes / options.place_len()).map(|nth| GuestAddr(SPREAD_AT + nth * options.place_len()));
    let mut take = || scattered.by_ref().take(size.into()).collect();
    let (to_guest, from_guest) = pairs.map(|_| (take(), take())).unzip();
    Places { to_guest, from_guest }
}

/// The numbers below a limit, each once, in an order that looks random and is the same every time (Fisher and Yates, with a
/// table of what was exchanged).
struct Scatter {
    limit: u64,
    given: u64,
    exchanged: HashMap<u64, u64>,
    state: u64,
}

impl Scatter {
    fn new(limit: u64) -> Self {
        Self { limit, given: 0, exchanged: HashMap::new(), state: 1 }
    }
}

impl Iterator for Scatter {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let left = self.limit.checked_sub(self.given).filter(|&left| left > 0)?;
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let chosen = self.given + self.state % left;
        let at = |table: &HashMap<u64, u64>, place| table.get(&place).copied().unwrap_or(place);
        let (value, displaced) = (at(&self.exchanged, chosen), at(&self.exchanged, self.given));
        self.exchanged.insert(chosen, displaced);
        self.given += 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_numbers_come_once_each_and_not_in_order() {
        let numbers: Vec<u64> = Scatter::new(1000).collect();
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        let neighbours = numbers.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
        assert!(neighbours < 20, "{neighbours} of 999 are next to each other");
    }
}
