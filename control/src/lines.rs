//! Lines of ports as they are declared: how fast frames may go to a guest, and what a bad network does to them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use weft_switch::guard::Limit;
use weft_switch::line::{Chance, Impairment, LineSettings, Lines, Shape};

use crate::api::LineInfo;
use crate::config::PortConfig;
use crate::conflict::Conflict;
use crate::protections::{BitRate, as_text};
use crate::values::{Bounded, Name, ValueError, excerpt};
use crate::vlans::{number_or_text, schema};

/// Bytes that may go to a guest at once: from those of a usual frame to a gibibyte.
pub type BurstOut = Bounded<1514, 1_073_741_824>;
const _: () = assert!(BurstOut::MAX as u64 == Limit::MAX_BURST && Shape::MIN_BURST == 1514);

/// How long something waits, as in `500us`, `20ms` or `1.5s`: no longer than a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(Duration);

/// What a bad network does, as in `loss=1%,delay=20ms±5ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Impair(Impairment);

/// Units of time with how many nanoseconds they have, the longest ones first.
const UNITS: [(&str, u64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];
/// A percent, in millionths.
const PERCENT: u64 = 10_000;

/// A decimal number times `scale`, if that is whole.
fn decimal(text: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| {
        (!text.is_empty() && text.len() <= 9 && text.bytes().all(|digit| digit.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let (whole, parts): (u64, u64) = (digits(whole)?, digits(fraction)?);
    let of = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let parts = parts.checked_mul(scale)?;
    parts.is_multiple_of(of).then_some(())?;
    whole.checked_mul(scale)?.checked_add(parts / of)
}

/// The decimal number of which [`decimal`] makes this.
fn decimal_text(number: u64, scale: u64) -> String {
    let (whole, mut parts) = (number / scale, number % scale);
    let mut text = whole.to_string();
    let mut unit = scale;
    while parts > 0 {
        parts *= 10;
        text += if unit == scale { "." } else { "" };
        text += &(parts / scale).to_string();
        (parts, unit) = (parts % scale, unit / 10);
    }
    text
}

impl Wait {
    const MAX: Duration = Duration::from_secs(60);

    fn time(self) -> Duration {
        self.0
    }
}

impl FromStr for Wait {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // Those with a letter in front of the `s` first.
        let nanos = UNITS.iter().rev().find_map(|(unit, scale)| decimal(text.strip_suffix(unit)?.trim_end(), *scale));
        let time = nanos.map(Duration::from_nanos).filter(|time| *time <= Self::MAX);
        time.map(Self).ok_or_else(|| ValueError::Wait(excerpt(text)))
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No truncation: a minute at most.
        let nanos = self.0.as_nanos() as u64;
        let (unit, scale) = UNITS.iter().find(|(_, scale)| nanos >= *scale).unwrap_or(&UNITS[1]);
        write!(formatter, "{}{unit}", decimal_text(nanos, *scale))
    }
}

fn chance(text: &str) -> Option<Chance> {
    let millionths = decimal(text.strip_suffix('%')?.trim_end(), PERCENT)?;
    let millionths = u32::try_from(millionths).ok().filter(|millionths| *millionths <= Chance::ALWAYS)?;
    Some(Chance::from_millionths(millionths))
}

/// A time, and how much it may be more or less.
fn delay(text: &str) -> Option<(Duration, Duration)> {
    let (delay, jitter) = ["±", "+-", "+/-"]
        .iter()
        .find_map(|sign| text.split_once(sign))
        .map_or((text, None), |(delay, jitter)| (delay, Some(jitter)));
    let time = |text: &str| text.trim().parse().ok().map(Wait::time);
    Some((time(delay)?, jitter.map_or(Some(Duration::ZERO), time)?))
}

impl FromStr for Impair {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = |why| ValueError::Impair { text: excerpt(text), why };
        let mut impairment = Impairment::default();
        let mut seen = Vec::new();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| error("each part is KEY=VALUE"))?;
            let (key, value) = (key.trim(), value.trim());
            if seen.contains(&key) {
                return Err(error("a key is there twice"));
            }
            seen.push(key);
            let share = || chance(value).ok_or_else(|| error("a share is a percentage, as in 1% or 0.05%, in steps of 0.0001%"));
            match key {
                "loss" => impairment.loss = share()?,
                "duplicate" => impairment.duplicate = share()?,
                "corrupt" => impairment.corrupt = share()?,
                "reorder" => impairment.reorder = share()?,
                "delay" => {
                    let both = delay(value);
                    (impairment.delay, impairment.jitter) =
                        both.ok_or_else(|| error("a delay is a time of at most 60s, as in 20ms or 20ms±5ms"))?;
                }
                "rate" => impairment.rate = Some(value.parse::<BitRate>()?.bits()),
                "seed" => impairment.seed = Some(value.parse().map_err(|_| error("a seed is a whole number below 2^64"))?),
                _ => return Err(error("the keys are loss, delay, reorder, duplicate, corrupt, rate and seed")),
            }
        }
        if impairment.jitter > impairment.delay {
            return Err(error("a delay may not be less by more than there is of it"));
        }
        if impairment.reorder > Chance::NEVER && impairment.delay.is_zero() {
            return Err(error("reorder takes a delay: frames overtake those that are delayed"));
        }
        Ok(Self(impairment))
    }
}

impl fmt::Display for Impair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Impairment { loss, duplicate, corrupt, rate, delay, jitter, reorder, seed } = self.0;
        let share = |key: &str, chance: Chance| {
            (chance > Chance::NEVER).then(|| format!("{key}={}%", decimal_text(chance.millionths().into(), PERCENT)))
        };
        let more_or_less = if jitter.is_zero() { String::new() } else { format!("±{}", Wait(jitter)) };
        let parts = [
            share("loss", loss),
            (!delay.is_zero()).then(|| format!("delay={}{more_or_less}", Wait(delay))),
            share("reorder", reorder),
            share("duplicate", duplicate),
            share("corrupt", corrupt),
            rate.map(|rate| format!("rate={}", BitRate::of_bits(rate))),
            seed.map(|seed| format!("seed={seed}")),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        // What does nothing is something, too: it can be read again.
        formatter.write_str(if parts.is_empty() { "loss=0%" } else { "" })?;
        formatter.write_str(&parts.join(","))
    }
}

impl PortConfig {
    /// What is between the switch and the guest.
    #[must_use]
    pub fn lines(&self) -> Lines {
        let shape = self.limit_out.map(|limit| {
            let bits = limit.bits();
            let burst = self.burst_out.map_or_else(|| Shape::usual_burst(bits), |burst| burst.value().into());
            let queue = self.queue_out.map_or_else(|| Shape::usual_queue(bits), Wait::time);
            Shape { limit: Limit { bits, burst }, queue }
        });
        let impairment = |declared: Option<Impair>| declared.map(|Impair(impairment)| impairment);
        Lines {
            from_guest: LineSettings { shape: None, impairment: impairment(self.impair_in) },
            to_guest: LineSettings { shape, impairment: impairment(self.impair_out) },
        }
    }

    /// Checks what goes together.
    pub(crate) fn check_lines(&self, port: &Name) -> Result<(), Conflict> {
        let given = [("burst_out", self.burst_out.is_some()), ("queue_out", self.queue_out.is_some())];
        match given.into_iter().find(|(_, is_given)| *is_given && self.limit_out.is_none()) {
            Some((key, _)) => Err(Conflict::NeedsLimitOut { port: port.clone(), key }),
            None => Ok(()),
        }
    }
}

impl LineInfo {
    /// What is said of a port's lines.
    pub(crate) fn new(port: &PortConfig) -> Self {
        let shape = port.lines().to_guest.shape;
        Self {
            limit_out: port.limit_out,
            burst_out: shape.map(|shape| shape.limit.burst),
            queue_out: shape.map(|shape| Wait(shape.queue)),
            impair_in: port.impair_in,
            impair_out: port.impair_out,
        }
    }
}

as_text! {
    Wait: "a time, as in \"50ms\"", {
        "description": "A time of at most a minute, as in \"500us\", \"50ms\" or \"1.5s\".",
        "type": "string",
        "pattern": "^[0-9]+(\\.[0-9]+)? ?(ns|us|ms|s)$",
    };
    Impair: "what a bad network does, as in \"loss=1%,delay=20ms±5ms\"", {
        "description": "What a bad network does, as in \"loss=1%,delay=20ms±5ms\": loss, delay with jitter, reorder, duplicate, corrupt, rate, seed.",
        "type": "string",
    };
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
