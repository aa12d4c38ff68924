//! What the command line says about the lines between the switch and a port's guest.

use clap::Args;
use serde_json::{Value, json};

use super::protections::{Maybe, or_none};
use crate::config::Changes;
use crate::lines::{BurstOut, Impair, Wait};
use crate::protections::BitRate;

/// What is between the switch and the guest. What is not said is as it was, and for a new port nothing.
#[derive(Debug, Args)]
#[command(next_help_heading = "Lines")]
pub(super) struct LineArgs {
    /// How much the guest gets at most, in bits a second, as in 200M or 1G: more than that waits for its turn; "none" for no limit.
    #[arg(long, value_name = "RATE", value_parser = or_none::<BitRate>)]
    limit_out: Option<Maybe<BitRate>>,
    /// How many bytes of that may come at once, 1514 to 1073741824; "none" for those of 2 ms.
    #[arg(long, value_name = "BYTES", value_parser = or_none::<BurstOut>)]
    burst_out: Option<Maybe<BurstOut>>,
    /// How long a frame may wait for its turn, as in 50ms; beyond, it is dropped. "none" for 50 ms or two of the largest frames.
    #[arg(long, value_name = "TIME", value_parser = or_none::<Wait>)]
    queue_out: Option<Maybe<Wait>>,
    /// Makes a bad network of both directions, for tests: loss=1%, delay=20ms±5ms, reorder=5%, duplicate=0.1%, corrupt=0.01%, rate=10M, seed=7, as
    /// many of these as there are to be, with commas between; "none" for a good one.
    #[arg(long, value_name = "WHAT", value_parser = or_none::<Impair>)]
    impair: Option<Maybe<Impair>>,
    /// The same for what the guest sends; goes before --impair.
    #[arg(long, value_name = "WHAT", value_parser = or_none::<Impair>)]
    impair_in: Option<Maybe<Impair>>,
    /// The same for what the guest gets; goes before --impair.
    #[arg(long, value_name = "WHAT", value_parser = or_none::<Impair>)]
    impair_out: Option<Maybe<Impair>>,
    /// The same as --impair none.
    #[arg(long, conflicts_with_all = ["impair", "impair_in", "impair_out"])]
    no_impair: bool,
}

impl LineArgs {
    /// The keys of the configuration file that change.
    pub(super) fn changes(self) -> Changes {
        // What belongs to a limit goes with it.
        let is_unlimited = matches!(self.limit_out, Some(Maybe(None)));
        let with_it = || is_unlimited.then_some(Value::Null);
        let both = if self.no_impair { Some(Maybe(None)) } else { self.impair };
        let said = [
            ("limit_out", self.limit_out.map(|Maybe(rate)| json!(rate))),
            ("burst_out", self.burst_out.map(|Maybe(burst)| json!(burst)).or_else(with_it)),
            ("queue_out", self.queue_out.map(|Maybe(wait)| json!(wait)).or_else(with_it)),
            ("impair_in", self.impair_in.or(both.clone()).map(|Maybe(impair)| json!(impair))),
            ("impair_out", self.impair_out.or(both).map(|Maybe(impair)| json!(impair))),
        ];
        said.into_iter().filter_map(|(key, value): (_, Option<Value>)| Some((key.to_owned(), value?))).collect()
    }
}
