//! `weft-load`: frames through any vhost-user net back-end, from guests that cost next to nothing.
//!
//! Guests in this process plug into the sockets of a switch. Their rings are written once, and then only what a lap of the ring
//! needs moves; so one core of load is enough to find the limit of one core of switch. How often the generator found nothing to
//! do is reported: if that is never, it was the bottleneck and not the switch.
#![forbid(unsafe_code)]

mod arguments;
mod output;

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use arguments::Arguments;
use clap::Parser;
use weft_benches::load;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every size in turn. A bad end of one keeps the next from running, but its report is printed.
fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    // All of them before the first frame: nobody wants to wait for a mistake.
    let runs: Vec<_> = arguments.runs();
    runs.iter().try_for_each(|(_, options)| options.validate())?;
    for (size, options) in runs {
        let mut meter = output::Meter::new();
        let outcome = load::run(&options, &mut |progress| meter.show(progress));
        meter.clear();
        let report = outcome?;
        // Not `println!`, which panics when the other end of the pipe is gone. Then nobody wants to know more, except how it went.
        let mut out = std::io::stdout().lock();
        let written = if arguments.json {
            output::write_json(&mut out, size, &report)
        } else {
            output::write_text(&mut out, size, &report)
        };
        report.verdict()?;
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}
