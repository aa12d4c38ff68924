//! The command line, and what it asks for.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use weft_benches::load::options::{Options, Pace, Payload, Rings, Until};

/// Bytes at the end of a frame on a wire.
const FCS_LEN: usize = 4;
/// Payload of a segment where the MTU is 1500 and TCP has no options.
const SEGMENT_LEN: u16 = 1460;

/// Sends frames through a vhost-user switch and reports how many arrive.
///
/// Each SOCKET is a port of the switch; weft-load plugs a guest of its own into it. With two, frames go from the first to the
/// second; with more, every guest sends to every other in turn.
#[derive(Debug, Parser)]
#[command(name = "weft-load", version)]
#[command(after_help = "\
weft-load ends with an error if nothing arrives, if a closed loop loses a frame, or if --check finds a frame that is not what was sent.

Pin it and the switch to different cores (taskset -c 0 weft-load …): it polls and takes a core for itself. \
If few of its looks find nothing to do, it was the bottleneck, and the switch can do more.")]
pub(crate) struct Arguments {
    /// The sockets of the guests' ports, two or more
    #[arg(required = true, num_args = 2.., value_name = "SOCKET")]
    sockets: Vec<PathBuf>,
    /// The sockets are ours: listen, and let the switch connect
    #[arg(long)]
    listen: bool,

    /// Frame sizes in bytes, the 4 bytes of FCS and tags included; each is a run of its own
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512, 1518], help_heading = "Frames",
          value_parser = clap::value_parser!(u16).range(64..=9022))]
    sizes: Vec<u16>,
    /// Send TCP frames of LEN bytes (no FCS) that leave checksum and segmentation to the switch, in segments of 1460 bytes
    #[arg(long, value_name = "LEN", conflicts_with = "sizes", help_heading = "Frames",
          value_parser = RangedU64ValueParser::<u32>::new().range(1515..=65553))]
    tso: Option<u32>,
    /// Stations (MAC addresses) behind each port; frames go from each to each in turn
    #[arg(long, default_value_t = 1, help_heading = "Frames", value_parser = clap::value_parser!(u16).range(1..))]
    stations: u16,
    /// Send UDP over IPv4, in this many flows that differ in address and port; with --tso, flows of TCP
    #[arg(long, value_name = "FLOWS", help_heading = "Frames", value_parser = RangedU64ValueParser::<u32>::new().range(1..=1_000_000))]
    flows: Option<u32>,
    /// Put an 802.1Q tag into each frame, with these VLANs in turn
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Frames",
          value_parser = clap::value_parser!(u16).range(1..=4094))]
    vlan: Vec<u16>,
    /// All guests but the first are behind trunks, and the switch puts this tag on what it sends there: they introduce themselves with it
    #[arg(long, value_name = "VLAN", help_heading = "Frames", value_parser = clap::value_parser!(u16).range(1..=4094))]
    trunk: Option<u16>,
    /// Number every frame, fill it with a pattern, and compare every byte of what arrives
    #[arg(long, help_heading = "Frames")]
    check: bool,

    /// Seconds for each size
    #[arg(long, default_value_t = 2.0, help_heading = "Pace", value_parser = seconds)]
    seconds: f64,
    /// Stop when each guest that sends has sent this many frames, instead of after a time
    #[arg(long, value_name = "FRAMES", conflicts_with = "seconds", help_heading = "Pace",
          value_parser = clap::value_parser!(u64).range(1..))]
    frames: Option<u64>,
    /// Send in both directions at once (two sockets)
    #[arg(long, help_heading = "Pace")]
    both: bool,
    /// Keep at most this many frames under way in each direction, so that none may be lost; with more than two sockets, in all
    #[arg(long, value_name = "FRAMES", help_heading = "Pace", value_parser = clap::value_parser!(u32).range(1..))]
    closed: Option<u32>,
    /// Send one frame at a time and report how long each takes one way (two sockets)
    #[arg(long, conflicts_with_all = ["both", "closed", "check"], help_heading = "Pace")]
    latency: bool,

    /// Descriptors of each ring; a power of two unless --packed
    #[arg(long, default_value_t = 1024, help_heading = "Rings", value_parser = clap::value_parser!(u16).range(2..=32768))]
    ring_size: u16,
    /// Queue pairs of each guest, used in turn
    #[arg(long, value_name = "PAIRS", default_value_t = 1, help_heading = "Rings", value_parser = clap::value_parser!(u16).range(1..=128))]
    queues: u16,
    /// Packed rings; the switch must offer them
    #[arg(long, help_heading = "Rings")]
    packed: bool,
    /// Negotiate IN_ORDER; the switch must offer it
    #[arg(long, help_heading = "Rings")]
    in_order: bool,
    /// Don't negotiate mergeable receive buffers
    #[arg(long, help_heading = "Rings")]
    no_mergeable: bool,
    /// Send each frame in this many descriptors
    #[arg(long, value_name = "DESCRIPTORS", default_value_t = 1, help_heading = "Rings", value_parser = clap::value_parser!(u16).range(1..))]
    chain: u16,
    /// Put the descriptors of each frame that is sent into an indirect table
    #[arg(long, help_heading = "Rings")]
    indirect: bool,
    /// Spread the buffers over this much guest memory, each at a page picked at random, so that address translation shows;
    /// bytes, or with a suffix: 512M, 1G
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Rings")]
    spread: Option<u64>,

    /// Print JSON, one object for each size, with all that was asked and found
    #[arg(long)]
    pub(crate) json: bool,
}

impl Arguments {
    /// The runs asked for: the size that each is known by, and its options.
    pub(crate) fn runs(&self) -> Vec<(u32, Options)> {
        let run = |size: u32, frame_len: usize, payload| (size, self.options(frame_len, payload));
        match (self.tso, self.flows) {
            (Some(len), _) => vec![run(len, len as usize, Payload::Tcp { segment_len: SEGMENT_LEN })],
            (None, flows) => {
                let payload = if flows.is_some() { Payload::Udp } else { Payload::Plain };
                self.sizes.iter().map(|&size| run(size.into(), usize::from(size) - FCS_LEN, payload)).collect()
            }
        }
    }

    fn options(&self, frame_len: usize, payload: Payload) -> Options {
        Options {
            sockets: self.sockets.clone(),
            listen: self.listen,
            frame_len,
            payload,
            until: match self.frames {
                Some(frames) => Until::Frames(frames),
                None => Until::Elapsed(Duration::from_secs_f64(self.seconds)),
            },
            pace: match (self.latency, self.closed) {
                (true, _) => Pace::OneAtATime,
                (false, Some(frames)) => Pace::Closed(frames),
                (false, None) => Pace::Open,
            },
            both_ways: self.both,
            stations: self.stations,
            flows: self.flows.unwrap_or(1),
            vlans: self.vlan.clone(),
            trunk: self.trunk,
            check: self.check,
            rings: Rings {
                size: self.ring_size,
                queues: self.queues,
                packed: self.packed,
                in_order: self.in_order,
                mergeable: !self.no_mergeable,
                indirect: self.indirect,
                chain: self.chain,
                spread: self.spread,
            },
        }
    }
}

/// A time that a run can last.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=1e6).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds, from 0.001 to 1000000".to_owned()),
    }
}

/// A number of bytes, perhaps with K, M, G or T behind it.
fn bytes(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no number of bytes, as 4096, 512M or 1G"))?;
    let bytes = number.checked_shl(shift).filter(|bytes| bytes >> shift == number && *bytes <= 1 << 40);
    bytes.ok_or_else(|| format!("{text} is more than 1T"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        let words = std::iter::once("weft-load").chain(line.split_whitespace());
        Arguments::try_parse_from(words).map_err(|error| error.to_string())
    }

    /// The first mistake that is found in a command line.
    fn mistake(line: &str) -> String {
        match parse(line) {
            Err(error) => error,
            Ok(arguments) => {
                let mut outcomes = arguments.runs().into_iter().map(|(_, options)| options.validate());
                outcomes.find_map(Result::err).expect("a mistake is found").to_string()
            }
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_size_is_a_run() {
        let sizes: Vec<_> = parse("a b").unwrap().runs().into_iter().map(|(size, options)| (size, options.frame_len)).collect();
        assert_eq!(sizes, [(64, 60), (512, 508), (1518, 1514)]);
        let runs = parse("a b --tso 65549 --flows 3").unwrap().runs();
        assert_eq!((runs.len(), runs[0].0, runs[0].1.frame_len, runs[0].1.flows), (1, 65549, 65549, 3));
        assert_eq!(parse("a b --flows 3").unwrap().runs()[0].1.payload, Payload::Udp);
    }

    #[test]
    fn choices_that_contradict_each_other_are_named() {
        for (line, expected) in [
            ("a", "2 values required"),
            ("a a", "the socket a is named twice"),
            ("a b --sizes 63", "63 is not in 64..=9022"),
            ("a b --tso 9000 --sizes 64", "'--tso <LEN>' cannot be used with '--sizes"),
            ("a b --tso 65550", "it may have 65549"),
            ("a b --tso 1515 --vlan 7", "takes more than 1518 bytes"),
            ("a b --latency --check", "'--latency' cannot be used with '--check'"),
            ("a b --latency --both", "'--latency' cannot be used with '--both'"),
            ("a b --frames 5 --seconds 5", "'--frames <FRAMES>' cannot be used with '--seconds"),
            ("a b c --latency", "between two sockets, not between 3"),
            ("a b c --both", "every guest sends to every other anyway"),
            ("a b --ring-size 1000", "--ring-size 1000 is no power of two"),
            ("a b --chain 3", "--chain 3 does not divide the ring's 1024 descriptors"),
            ("a b --packed --ring-size 1000 --chain 3", "--chain 3 does not divide the ring's 1000 descriptors"),
            ("a b --ring-size 32 --chain 33 --indirect", "is more than the ring's 32 descriptors"),
            ("a b --chain 128", "more descriptors than it has bytes"),
            ("a b --closed 1025", "more than the 1024 receive buffers"),
            ("a b --closed 1024 --sizes 9018", "more than the 204 receive buffers"),
            ("a b --spread 1M", "has no room for 8388608 bytes of buffers"),
            ("a b --spread 1X", "is no number of bytes"),
            ("a b --spread 99999T", "is more than 1T"),
            ("a b --vlan 4095", "4095 is not in 1..=4094"),
        ] {
            let found = mistake(line);
            assert!(found.contains(expected), "{line:?}: {found}");
        }
    }

    #[test]
    fn what_goes_together_is_taken() {
        for line in [
            "a b --packed --ring-size 999 --chain 3 --in-order",
            "a b --chain 5 --indirect",
            "a b --closed 2048 --queues 2 --both",
            "a b c d --closed 64 --check --frames 10000000000",
            "a b --spread 1G --tso 65549 --no-mergeable",
            "a b --tso 65553 --vlan 1,4094",
            "a b --spread 8M",
        ] {
            let runs = parse(line).unwrap().runs();
            assert!(runs.iter().all(|(_, options)| options.validate() == Ok(())), "{line:?}");
        }
    }

    #[test]
    fn bytes_may_have_a_suffix() {
        assert_eq!(
            ["4096", "4K", "512M", "1G", "1T"].map(|text| bytes(text).unwrap()),
            [4096, 4096, 512 << 20, 1 << 30, 1 << 40]
        );
    }
}
