//! `weft-load`: frames through any vhost-user net back-end, from guests that cost next to nothing.
//!
//! Guests in this process plug into the sockets of a switch. Their rings are written once, and then only what a lap of the ring
//! needs moves; so one core of load is enough to find the limit of one core of switch. How often the generator found nothing to
//! do is reported: if that is never, it was the bottleneck and not the switch.
#![forbid(unsafe_code)]

mod arguments;
mod output;

use std::process::ExitCode;

use arguments::Arguments;
use clap::Parser;
use weft_benches::load::{self, LoadError};

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
fn run(arguments: &Arguments) -> Result<(), LoadError> {
    // All of them before the first frame: nobody wants to wait for a mistake.
    let runs: Vec<_> = arguments.runs();
    runs.iter().try_for_each(|(_, options)| options.validate())?;
    for (size, options) in runs {
        let mut meter = output::Meter::new();
        let outcome = load::run(&options, &mut |progress| meter.show(progress));
        meter.clear();
        let report = outcome?;
        if arguments.json {
            output::print_json(size, &report);
        } else {
            output::print_text(size, &report);
        }
        report.verdict()?;
    }
    Ok(())
}
