//! The load itself: guests, rings that were written once, and the loop that moves their indexes.
//!
//! [`options`] says what is to be sent, [`traffic`] what a frame looks like, [`check`] whether it arrived unharmed and
//! [`report`] what came of it all.

pub mod check;
mod guests;
pub mod options;
mod receiver;
pub mod report;
mod sender;
pub mod traffic;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use weft_guest::GuestError;

use check::Findings;
use guests::Guests;
use options::{Options, OptionsError, Pace, Until};
use receiver::Receiver;
use report::{Direction, GuestReport, Latency, Report};
use sender::Sender;
use traffic::Traffic;

/// Frames that are offered at once, as a driver under load does.
const BURST: u16 = 32;
/// Rounds between two looks at the clock.
const ROUNDS_PER_LOOK: u32 = 64;
/// A frame that takes longer is lost.
const FRAME_TIME_MAX: Duration = Duration::from_secs(2);
/// With nothing arriving for so long after the last was sent, what is under way is lost.
const SILENCE: Duration = Duration::from_millis(500);
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Why there is no report, or what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not everything goes with everything.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A switch that closes the connection before it has begun.
    #[error(
        "{socket}: the switch closed the connection at once: another guest is on this port, most likely; give weft-load ports of its own"
    )]
    TurnedAway {
        /// Its socket.
        socket: PathBuf,
    },
    /// A guest and the switch don't understand each other.
    #[error("{socket}: {source}")]
    Guest {
        /// Whose.
        socket: PathBuf,
        /// What went wrong.
        source: GuestError,
    },
    /// Nothing comes through.
    #[error("no frame came through: are all ports on one network?")]
    Silence,
    /// Frames are missing although no more were under way than fit.
    #[error("{0} frames were lost in a closed loop")]
    Lost(u64),
    /// Frames came that are not what was sent.
    #[error(
        "the switch changed what was sent: {damaged} frames damaged, {duplicated} duplicated, {reordered} out of order, {lost} lost"
    )]
    Wrong {
        /// Frames with other bytes than were sent.
        damaged: u64,
        /// Frames that came twice.
        duplicated: u64,
        /// Frames that were overtaken within their stream.
        reordered: u64,
        /// Frames that did not come.
        lost: u64,
    },
}

/// How far a run has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Since the first frame.
    pub elapsed: Duration,
    /// Frames sent so far.
    pub sent: u64,
    /// Frames that have arrived.
    pub received: u64,
}

/// Sends as told and counts. `progress` is called every second.
///
/// # Errors
/// When the options contradict each other, a guest can't connect, or the switch breaks a ring.
pub fn run(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Report, LoadError> {
    options.validate()?;
    let traffic = Traffic::of(options);
    let mut guests = Guests::connect(options)?;
    guests.introduce(&traffic)?;
    let mut run = Run::prepare(guests, options, &traffic)?;
    let clock = Clock { start: Instant::now(), told: Duration::ZERO, progress };
    match options.pace {
        Pace::OneAtATime => run.one_at_a_time(clock)?,
        Pace::Open | Pace::Closed(_) => run.stream(clock)?,
    }
    Ok(run.report())
}

/// A run that is prepared, under way or over.
struct Run<'a> {
    options: &'a Options,
    guests: Guests,
    /// In the same order as the receivers of their frames if there are two guests.
    senders: Vec<Sender>,
    receivers: Vec<Receiver>,
    looks: u64,
    idle_looks: u64,
    received_in_time: u64,
    elapsed: Duration,
    latency: Option<Latency>,
}

/// The time of a run, and who is told of it.
struct Clock<'a> {
    start: Instant,
    told: Duration,
    progress: &'a mut dyn FnMut(Progress),
}

impl Clock<'_> {
    /// The time since the start; tells the progress when it is time for that.
    fn look(&mut self, run: &Run<'_>) -> Duration {
        let elapsed = self.start.elapsed();
        if elapsed - self.told >= PROGRESS_EVERY {
            self.told = elapsed;
            (self.progress)(Progress { elapsed, sent: run.sent(), received: run.received() });
        }
        elapsed
    }
}

impl<'a> Run<'a> {
    fn prepare(mut guests: Guests, options: &'a Options, traffic: &Traffic) -> Result<Self, LoadError> {
        let all = 0..guests.guests.len();
        let (sending, receiving): (Vec<_>, Vec<_>) = match (all.len(), options.both_ways) {
            (2, false) => (vec![0], vec![1]),
            (2, true) => (vec![0, 1], vec![1, 0]),
            _ => (all.clone().collect(), all.clone().collect()),
        };
        let mut senders = Vec::new();
        for from in sending {
            let others = all.clone().filter(|&to| to != from).collect();
            senders.push(guests.sender(from, others, options, traffic));
        }
        let receivers = receiving.into_iter().map(|to| guests.receiver(to, options, traffic)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            options,
            guests,
            senders,
            receivers,
            looks: 0,
            idle_looks: 0,
            received_in_time: 0,
            elapsed: Duration::ZERO,
            latency: None,
        })
    }

    fn stream(&mut self, mut clock: Clock<'_>) -> Result<(), LoadError> {
        let limit = match self.options.pace {
            Pace::Closed(frames) => frames.into(),
            Pace::Open | Pace::OneAtATime => u64::MAX,
        };
        let end = match self.options.until {
            Until::Elapsed(end) => end,
            Until::Frames(_) => Duration::MAX,
        };
        let mut stalled_since = Duration::ZERO;
        let mut received = 0;
        loop {
            for _ in 0..ROUNDS_PER_LOOK {
                self.round(limit)?;
            }
            self.elapsed = clock.look(self);
            if std::mem::replace(&mut received, self.received()) != received {
                stalled_since = self.elapsed;
            }
            // Whoever waits for frames that were lost in a closed loop would wait for ever.
            let stalled = self.elapsed - stalled_since >= FRAME_TIME_MAX && end == Duration::MAX;
            if self.elapsed >= end || stalled || self.senders.iter().all(Sender::is_done) {
                break;
            }
        }
        self.received_in_time = received;
        self.drain(&mut clock)
    }

    /// One look at every ring.
    fn round(&mut self, limit: u64) -> Result<(), LoadError> {
        let mut moved = 0;
        let between_two = self.guests.guests.len() == 2;
        let under_way = if between_two { 0 } else { self.sent().saturating_sub(self.received()) };
        for (at, sender) in self.senders.iter_mut().enumerate() {
            let under_way = if between_two { sender.sent.saturating_sub(self.receivers[at].received) } else { under_way + moved };
            moved += sender.send(&mut self.guests, limit.saturating_sub(under_way))?;
        }
        for receiver in &mut self.receivers {
            let received = receiver.receive(&mut self.guests)?;
            receiver.waits += u64::from(received == 0);
            moved += received;
        }
        self.looks += 1;
        self.idle_looks += u64::from(moved == 0);
        Ok(())
    }

    /// Takes in what is still under way. With a number of frames to send, these count for the rate too.
    fn drain(&mut self, clock: &mut Clock<'_>) -> Result<(), LoadError> {
        let mut last = clock.start.elapsed();
        while self.received() < self.sent() {
            let mut arrived = 0;
            for receiver in &mut self.receivers {
                arrived += receiver.receive(&mut self.guests)?;
            }
            let now = clock.look(self);
            if arrived > 0 {
                last = now;
            }
            if now - last > SILENCE {
                break;
            }
        }
        if let Until::Frames(_) = self.options.until {
            (self.elapsed, self.received_in_time) = (last, self.received());
        }
        Ok(())
    }

    fn one_at_a_time(&mut self, mut clock: Clock<'_>) -> Result<(), LoadError> {
        let mut times =
            Histogram::<u64>::new_with_bounds(1, FRAME_TIME_MAX.as_nanos() as u64, 3).expect("the bounds are in order");
        let end = match self.options.until {
            Until::Elapsed(end) => end,
            Until::Frames(_) => Duration::MAX,
        };
        loop {
            self.elapsed = clock.look(self);
            let [sender] = &mut self.senders[..] else { unreachable!("one way between two guests") };
            if self.elapsed >= end || sender.is_done() {
                break;
            }
            let sent_at = Instant::now();
            sender.send(&mut self.guests, 1)?;
            self.looks += 1;
            while self.receivers[0].receive(&mut self.guests)? == 0 {
                self.looks += 1;
                self.idle_looks += 1;
                self.receivers[0].waits += 1;
                if sent_at.elapsed() > FRAME_TIME_MAX {
                    return Err(LoadError::Silence);
                }
            }
            times.saturating_record(sent_at.elapsed().as_nanos() as u64);
        }
        self.received_in_time = self.received();
        self.latency = Some(Latency::of(&times));
        Ok(())
    }

    fn sent(&self) -> u64 {
        self.senders.iter().map(|sender| sender.sent).sum()
    }

    fn received(&self) -> u64 {
        self.receivers.iter().map(|receiver| receiver.received).sum()
    }

    fn report(mut self) -> Report {
        let directions: Vec<Direction> = self.senders.iter().flat_map(|sender| self.directions(sender)).collect();
        let guests = (0..self.guests.guests.len()).map(|index| self.guest(index)).collect();
        let check = self.options.check.then(|| {
            let all = directions.iter().filter_map(|direction| direction.check);
            all.fold(Findings::default(), Findings::plus)
        });
        Report {
            asked: self.options.clone(),
            sent: self.sent(),
            received: self.received(),
            received_in_time: self.received_in_time,
            seconds: self.elapsed.as_secs_f64(),
            looks: self.looks,
            idle_looks: self.idle_looks,
            latency: self.latency,
            directions,
            guests,
            check,
        }
    }

    fn directions(&self, sender: &Sender) -> Vec<Direction> {
        let direction = |(to, sent): (usize, u64)| {
            let receiver = self.receivers.iter().find(|receiver| receiver.guest == to).expect("who is sent to receives");
            let check = receiver.checker().map(|checker| checker.findings(sender.guest));
            let received = match check {
                Some(check) => Some(check.intact + check.damaged),
                None => (self.guests.guests.len() == 2).then_some(receiver.received),
            };
            Direction {
                from: sender.guest,
                to,
                sent,
                received,
                lost: received.map(|arrived| sent.saturating_sub(arrived)),
                check,
            }
        };
        sender.sent_to().into_iter().map(direction).collect()
    }

    fn guest(&mut self, index: usize) -> GuestReport {
        let sender = self.senders.iter().find(|sender| sender.guest == index);
        let receiver = self.receivers.iter().find(|receiver| receiver.guest == index);
        let checker = receiver.and_then(Receiver::checker);
        let guest = &mut self.guests.guests[index];
        GuestReport {
            socket: self.options.sockets[index].clone(),
            features: weft_guest::feature::names(guest.features()),
            sent: sender.map_or(0, |sender| sender.sent),
            received: receiver.map_or(0, |receiver| receiver.received),
            send_waits: sender.map_or(0, |sender| sender.waits),
            receive_waits: receiver.map_or(0, |receiver| receiver.waits),
            kicks: (0..guest.pairs()).map(|pair| guest.ring(pair * 2 + 1).kicks()).sum(),
            strays: checker.map(check::Checker::strays),
            unknown: checker.map(check::Checker::unknown),
        }
    }
}
