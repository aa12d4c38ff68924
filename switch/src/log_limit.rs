//! How often something may be logged that others can bring about.

use std::time::Duration;

use crate::Timestamp;

/// Keeps whoever does something in a loop from filling the log.
#[derive(Debug, Default)]
pub struct LogLimit {
    window_start: Timestamp,
    lines: u32,
}

impl LogLimit {
    const WINDOW: Duration = Duration::from_secs(10);
    const LINES: u32 = 20;

    /// True if one more line may be written. When lines may be written again, `suppressed` is told first how many were not.
    pub fn allows(&mut self, now: Timestamp, suppressed: impl FnOnce(u32)) -> bool {
        if now.since(self.window_start) >= Self::WINDOW {
            match self.lines.saturating_sub(Self::LINES) {
                0 => {}
                lines => suppressed(lines),
            }
            *self = Self { window_start: now, lines: 0 };
        }
        self.lines += 1;
        self.lines <= Self::LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_noisy_is_silenced_and_heard_again_later() {
        let mut log = LogLimit::default();
        let at = Timestamp::from_millis;
        let nothing = |lines| panic!("{lines} lines are said to be missing");
        let said = (0..1000).filter(|&line| log.allows(at(line), nothing)).count();
        assert_eq!(said, LogLimit::LINES as usize);
        let mut missing = 0;
        assert!(!log.allows(at(9_999), nothing) && log.allows(at(10_000), |lines| missing = lines));
        assert_eq!(missing, 1001 - LogLimit::LINES);
    }
}
