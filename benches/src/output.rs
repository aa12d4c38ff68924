//! What people and programs get to read.

use std::io::{self, IsTerminal, Write};

use weft_benches::load::Progress;
use weft_benches::load::report::Report;

/// Says how far a run has come, in a line that is written over, if anybody is there to read it.
#[derive(Debug)]
pub(crate) struct Meter {
    on: bool,
    shown: bool,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self { on: std::io::stderr().is_terminal(), shown: false }
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        if self.on {
            let Progress { elapsed, sent, received } = progress;
            let (seconds, millions) = (elapsed.as_secs_f64(), received as f64 / 1e6);
            eprint!("\r\x1b[K{seconds:4.0} s  {sent} frames sent, {received} arrived, {:.3} M frames/s", millions / seconds);
            // A terminal that is gone is no reason to stop measuring.
            std::io::stderr().flush().ok();
            self.shown = true;
        }
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// One object with everything.
pub(crate) fn write_json(out: &mut impl Write, size: u32, report: &Report) -> io::Result<()> {
    let mut value = serde_json::to_value(report).expect("a report is plain data");
    value["size"] = size.into();
    value["frames_per_second"] = report.frames_per_second().into();
    value["gbit_per_second"] = gbit_per_second(size, report).into();
    value["idle_percent"] = report.idle_percent().into();
    value["lost"] = report.lost().into();
    writeln!(out, "{value}")
}

/// One line, and one more for each thing that not every run has.
pub(crate) fn write_text(out: &mut impl Write, size: u32, report: &Report) -> io::Result<()> {
    write!(out, "{size:5} B  {:7.3} M frames/s  {:7.2} Gbit/s", report.frames_per_second() / 1e6, gbit_per_second(size, report))?;
    writeln!(out, "  {} lost  {:4.1} % of looks found nothing", report.lost(), report.idle_percent())?;
    if let Some(latency) = &report.latency {
        writeln!(
            out,
            "         one way p50 {} ns, p90 {} ns, p99 {} ns, p99.9 {} ns, max {} ns",
            latency.p50_ns, latency.p90_ns, latency.p99_ns, latency.p99_9_ns, latency.max_ns
        )?;
    }
    if let Some(check) = &report.check {
        write!(out, "         checked: {} intact, {} damaged, {} duplicated", check.intact, report.damaged(), check.duplicated)?;
        writeln!(out, ", {} out of order, {} with another tag", check.reordered, check.retagged)?;
    }
    if report.directions.len() > 1 {
        for direction in &report.directions {
            write!(out, "         {} to {}: {} sent", direction.from + 1, direction.to + 1, direction.sent)?;
            match (direction.received, direction.lost) {
                (Some(received), Some(lost)) => writeln!(out, ", {received} arrived, {lost} lost")?,
                _ => writeln!(out)?,
            }
        }
    }
    write_waits(out, report)
}

/// Who waited for whom: a full sending ring waits for the switch to take frames, an empty receiving ring for it to bring some.
fn write_waits(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let percent = |waits: u64| 100.0 * waits as f64 / report.looks.max(1) as f64;
    let sending = report.guests.iter().map(|guest| percent(guest.send_waits)).fold(0.0, f64::max);
    let receiving = report.guests.iter().map(|guest| percent(guest.receive_waits)).fold(0.0, f64::max);
    writeln!(out, "         waited for room to send at {sending:.1} % of looks, for frames at {receiving:.1} %")
}

fn gbit_per_second(size: u32, report: &Report) -> f64 {
    report.frames_per_second() * f64::from(size) * 8.0 / 1e9
}
