//! Wakes a worker to the microsecond: a poll's own timeout is in whole milliseconds.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};

/// A timer that is registered with a worker's poll, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<OwnedFd>);

impl Alarm {
    /// Reports `token` when so much time has passed, and no longer what was asked for before. False if the operating system has no timer.
    pub(crate) fn set(&mut self, after: Duration, registry: &Registry, token: Token) -> bool {
        if self.0.is_none() {
            self.0 = make(registry, token);
        }
        let Some(timer) = &self.0 else { return false };
        // Nothing at all would disarm it.
        let after = Timespec::try_from(after.max(Duration::from_nanos(1)));
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        after.is_ok_and(|it_value| {
            timerfd_settime(timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: none, it_value }).is_ok()
        })
    }
}

/// Nobody reads it: it is reported once whenever it goes off, and to set it anew forgets that.
fn make(registry: &Registry, token: Token) -> Option<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).ok()?;
    registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE).ok()?;
    Some(timer)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mio::{Events, Poll};

    use super::*;

    #[test]
    fn it_goes_off_again_and_again_and_not_before_its_time() {
        let (mut poll, mut events, mut alarm) = (Poll::new().unwrap(), Events::with_capacity(8), Alarm::default());
        for _ in 0..3 {
            let began = Instant::now();
            let after = Duration::from_micros(1500);
            // What was set first is forgotten.
            assert!(alarm.set(Duration::from_secs(3600), poll.registry(), Token(7)));
            assert!(alarm.set(after, poll.registry(), Token(7)));
            poll.poll(&mut events, Some(Duration::from_secs(60))).unwrap();
            assert!(events.iter().map(mio::event::Event::token).eq([Token(7)]));
            assert!(began.elapsed() >= after);
        }
    }
}
