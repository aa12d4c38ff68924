//! The load itself: two guests, rings that were written once, and the loop that moves their indexes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use weft_guest::{Guest, GuestError, Header, PreparedReceive, PreparedSend, Shape, Socket, feature};

/// Frames that are offered at once, as a driver under load does.
const BURST: u16 = 32;
/// Rounds between two looks at the clock.
const ROUNDS_PER_LOOK: u32 = 64;
/// How long the last frames of a closed loop may take.
const DRAIN: Duration = Duration::from_secs(2);
/// The shortest frame on a wire, without FCS.
const MIN_FRAME_LEN: usize = 60;
/// Where a receive buffer ends: a frame of any Ethernet size and its header.
const BUFFER_LEN: u32 = 2048;

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Options {
    /// The ports of the two guests.
    pub sockets: [PathBuf; 2],
    /// Who listens on them.
    pub socket: Socket,
    /// Bytes of a frame, without FCS.
    pub frame_len: usize,
    /// How long to send.
    pub duration: Duration,
    /// Stations behind each port.
    pub stations: u16,
    /// Also from the second guest to the first.
    pub both_ways: bool,
    /// When the next frame is sent.
    pub pace: Loop,
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// Negotiate MRG_RXBUF.
    pub mergeable: bool,
}

/// When the next frame is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// Whenever the ring has room. What the receiver can't take is lost.
    Open,
    /// While fewer than this many are under way.
    Closed(u32),
    /// When the one before has arrived; each is timed.
    OneAtATime,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Frames that the switch took.
    pub sent: u64,
    /// Frames that arrived.
    pub received: u64,
    /// From the first to the last.
    pub seconds: f64,
    /// Looks at the rings.
    pub looks: u64,
    /// Looks that found neither room to send nor a frame.
    pub idle_looks: u64,
    /// Of [`Loop::OneAtATime`].
    pub latency: Option<Latency>,
}

impl Report {
    /// How often the generator had to wait. Near zero means that the switch was not the bottleneck.
    #[must_use]
    pub fn idle_percent(&self) -> f64 {
        100.0 * self.idle_looks as f64 / self.looks.max(1) as f64
    }
}

/// One-way times, in nanoseconds, from the store that offers a frame to the load that sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// The median.
    pub p50_ns: u64,
    /// Ninety-nine in a hundred were faster.
    pub p99_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A guest and the switch don't understand each other.
    #[error("{socket}: {source}")]
    Guest {
        /// Whose.
        socket: PathBuf,
        /// What went wrong.
        source: GuestError,
    },
    /// Nothing comes through.
    #[error("no frame came through: are both ports on one network?")]
    Silence,
    /// Frames are missing although no more were under way than fit.
    #[error("{0} frames were lost in a closed loop")]
    Lost(u64),
}

/// Frames from one guest to the other.
struct Lane {
    from: usize,
    to: usize,
    send: PreparedSend,
    receive: PreparedReceive,
    sent: u64,
    received: u64,
}

/// The guests, and whom to blame.
struct Guests {
    guests: [Guest; 2],
    sockets: [PathBuf; 2],
}

/// Sends as told and counts.
///
/// # Errors
/// When a guest can't connect, the switch breaks a ring, or a closed loop loses a frame.
pub fn run(options: &Options) -> Result<Report, LoadError> {
    let mut guests = Guests::connect(options)?;
    guests.introduce(options)?;
    let mut lanes = vec![guests.lane(0, 1, options)?];
    if options.both_ways {
        lanes.push(guests.lane(1, 0, options)?);
    }
    let report = match options.pace {
        Loop::OneAtATime => one_at_a_time(&mut guests, &mut lanes[0], options.duration),
        Loop::Open => stream(&mut guests, &mut lanes, u64::MAX, options.duration),
        Loop::Closed(frames) => stream(&mut guests, &mut lanes, frames.into(), options.duration),
    }?;
    match report.sent - report.received {
        _ if report.received == 0 => Err(LoadError::Silence),
        lost if lost > 0 && options.pace != Loop::Open => Err(LoadError::Lost(lost)),
        _ => Ok(report),
    }
}

fn stream(guests: &mut Guests, lanes: &mut [Lane], under_way: u64, duration: Duration) -> Result<Report, LoadError> {
    let (mut looks, mut idle_looks) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < duration {
        for _ in 0..ROUNDS_PER_LOOK {
            for lane in &mut *lanes {
                let room = under_way.saturating_sub(lane.sent - lane.received);
                let moved = lane.send(guests, room)? + lane.receive(guests)?;
                looks += 1;
                idle_looks += u64::from(moved == 0);
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let end = Instant::now();
    for lane in &mut *lanes {
        while lane.received < lane.sent && under_way != u64::MAX && end.elapsed() < DRAIN {
            lane.receive(guests)?;
        }
    }
    let sum = |count: fn(&Lane) -> u64| lanes.iter().map(count).sum();
    Ok(Report { sent: sum(|lane| lane.sent), received: sum(|lane| lane.received), seconds, looks, idle_looks, latency: None })
}

fn one_at_a_time(guests: &mut Guests, lane: &mut Lane, duration: Duration) -> Result<Report, LoadError> {
    let mut times = Histogram::<u64>::new_with_bounds(1, DRAIN.as_nanos() as u64, 3).expect("the bounds are in order");
    let (mut looks, mut idle_looks) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < duration {
        let sent_at = Instant::now();
        lane.send(guests, 1)?;
        looks += 1;
        while lane.receive(guests)? == 0 {
            looks += 1;
            idle_looks += 1;
            if sent_at.elapsed() > DRAIN {
                return Err(LoadError::Silence);
            }
        }
        times.saturating_record(sent_at.elapsed().as_nanos() as u64);
    }
    let latency = Latency { p50_ns: times.value_at_quantile(0.5), p99_ns: times.value_at_quantile(0.99), max_ns: times.max() };
    let seconds = start.elapsed().as_secs_f64();
    Ok(Report { sent: lane.sent, received: lane.received, seconds, looks, idle_looks, latency: Some(latency) })
}

impl Lane {
    /// Offers a burst, as far as there is room; returns how many frames.
    fn send(&mut self, guests: &mut Guests, room: u64) -> Result<u64, LoadError> {
        let burst = room.min(BURST.into()) as u16;
        let sent = self.send.send(&mut guests.guests[self.from], burst).map_err(|source| guests.blame(self.from, source))?;
        self.sent += u64::from(sent);
        Ok(sent.into())
    }

    /// Takes what has arrived and offers the buffers again; returns how many frames.
    fn receive(&mut self, guests: &mut Guests) -> Result<u64, LoadError> {
        let received = self.receive.receive(&mut guests.guests[self.to]).map_err(|source| guests.blame(self.to, source))?;
        self.received += u64::from(received);
        Ok(received.into())
    }
}

impl Guests {
    fn connect(options: &Options) -> Result<Self, LoadError> {
        let mergeable = if options.mergeable { feature::MRG_RXBUF } else { 0 };
        let connect = |socket: &PathBuf| {
            let builder = Guest::builder(socket).socket(options.socket).features_if_offered(feature::VERSION_1 | mergeable);
            let connected = builder.ring_size(options.ring_size).receive_buffers(0).connect();
            connected.map_err(|source| LoadError::Guest { socket: socket.clone(), source })
        };
        let [first, second] = &options.sockets;
        Ok(Self { guests: [connect(first)?, connect(second)?], sockets: options.sockets.clone() })
    }

    /// Lets the switch learn every station, and starts the rings anew, because prepared ones must not have been used.
    fn introduce(&mut self, options: &Options) -> Result<(), LoadError> {
        for (from, to) in [(0, 1), (1, 0)] {
            for number in 0..options.stations {
                let frame = frame(station(to, 0), station(from, number), MIN_FRAME_LEN);
                let guest = &mut self.guests[from];
                // When the buffer comes back, the switch has seen the frame.
                guest.send(&frame).and_then(|()| guest.flush()).map_err(|source| self.blame(from, source))?;
            }
        }
        for guest in 0..2 {
            let this = &mut self.guests[guest];
            let renewed =
                this.stop().and_then(|()| this.reset()).and_then(|()| (0..2).try_for_each(|ring| this.start_ring(ring)));
            // Starting a ring has no answer; when this one comes, it has started.
            let started = renewed.and_then(|()| this.session().features());
            started.map_err(|source| self.blame(guest, source))?;
        }
        Ok(())
    }

    fn lane(&mut self, from: usize, to: usize, options: &Options) -> Result<Lane, LoadError> {
        let sender = &mut self.guests[from];
        let places = sender.slots(1, options.ring_size);
        let send = PreparedSend::new(sender, 0, options.frame_len, &Shape::one(), &places);
        for chain in 0..options.ring_size {
            let number = chain % options.stations;
            let frame = frame(station(to, number), station(from, number), options.frame_len);
            send.write(sender, chain, &Header::default(), &frame);
        }
        let places = self.guests[to].slots(0, options.ring_size);
        let receive =
            PreparedReceive::new(&mut self.guests[to], 0, BUFFER_LEN, &places).map_err(|source| self.blame(to, source))?;
        Ok(Lane { from, to, send, receive, sent: 0, received: 0 })
    }

    fn blame(&self, guest: usize, source: GuestError) -> LoadError {
        LoadError::Guest { socket: self.sockets[guest].clone(), source }
    }
}

/// The address of a station behind a guest's port.
fn station(guest: usize, number: u16) -> [u8; 6] {
    let [high, low] = number.to_be_bytes();
    [0x02, 0, 0, guest as u8, high, low]
}

fn frame(destination: [u8; 6], source: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [destination.as_slice(), &source, &[0x88, 0xb5]].concat();
    frame.resize(len, 0);
    frame
}
