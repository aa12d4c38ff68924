use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::host::Host;
use crate::plan::{Step, steps};

fn config(text: &str) -> Config {
    toml::from_str(&format!("[networks.default]\n{text}")).unwrap()
}

fn impairment(text: &str) -> Impairment {
    text.parse::<Impair>().unwrap().0
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_port_of_which_nothing_is_said_has_no_lines() {
    assert_eq!(PortConfig::default().lines(), Lines::NONE);
}

#[test]
fn impairments_are_read_in_any_order_and_with_any_sign() {
    let expected =
        Impairment { loss: Chance::from_millionths(10_000), delay: millis(20), jitter: millis(5), ..Impairment::default() };
    for text in ["loss=1%,delay=20ms±5ms", "delay=20ms+-5ms,loss=1.0%", "loss = 1 %, delay = 20 ms +/- 5000us"] {
        assert_eq!(impairment(text), expected, "{text}");
    }
    let all = impairment("loss=0.0001%,delay=1.5s,reorder=5%,duplicate=100%,corrupt=0.25%,rate=10M,seed=7");
    let expected = Impairment {
        loss: Chance::from_millionths(1),
        duplicate: Chance::from_millionths(Chance::ALWAYS),
        corrupt: Chance::from_millionths(2_500),
        rate: Some(10_000_000),
        delay: millis(1500),
        jitter: Duration::ZERO,
        reorder: Chance::from_millionths(50_000),
        seed: Some(7),
    };
    assert_eq!(all, expected);
}

#[test]
fn what_is_no_impairment_is_refused_with_what_it_should_be() {
    for (text, part) in [
        ("", "KEY=VALUE"),
        ("loss", "KEY=VALUE"),
        ("loss=1", "percentage"),
        ("loss=101%", "percentage"),
        ("loss=-1%", "percentage"),
        ("loss=0.00001%", "0.0001%"),
        ("loss=1%,loss=2%", "twice"),
        ("lost=1%", "the keys are"),
        ("delay=20", "20ms±5ms"),
        ("delay=61s", "at most 60s"),
        ("delay=20ms±", "20ms±5ms"),
        ("delay=5ms±20ms", "less by more"),
        ("reorder=5%", "takes a delay"),
        ("rate=10", "bits a second"),
        ("seed=-1", "whole number"),
    ] {
        let error = text.parse::<Impair>().unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    for text in ["", "5", "ms", "1.ms", ".5ms", "1m", "61s", "0.5ns", "-1ms", "99999999999s"] {
        assert!(text.parse::<Wait>().unwrap_err().to_string().contains("50ms"), "{text}");
    }
}

#[test]
fn a_shaped_port_has_a_queue_and_a_burst_that_fit_its_rate() {
    let shape = |text: &str| toml::from_str::<PortConfig>(text).unwrap().lines().to_guest.shape.unwrap();
    let expected = Shape { limit: Limit { bits: 1_000_000_000, burst: 250_000 }, queue: millis(50) };
    assert_eq!(shape("limit_out = \"1G\""), expected);
    let expected = Shape { limit: Limit { bits: 200_000_000, burst: 70_000 }, queue: Duration::from_micros(2500) };
    assert_eq!(shape("limit_out = \"200M\"\nburst_out = 70000\nqueue_out = \"2.5ms\""), expected);
}

#[test]
fn what_is_declared_can_be_written_and_read_back() {
    let declared = config(
        "[ports.a]\nlimit_out = \"200M\"\nburst_out = 20000\nqueue_out = \"0.5s\"\nimpair_in = \"loss=1%\"\nimpair_out = \"delay=20ms+-5ms,seed=3\"",
    );
    let written = toml::to_string(&declared).unwrap();
    assert_eq!(toml::from_str::<Config>(&written).unwrap(), declared);
    assert!(written.contains("impair_out = \"delay=20ms±5ms,seed=3\"") && written.contains("queue_out = \"500ms\""), "{written}");
}

#[test]
fn what_belongs_to_a_limit_is_refused_without_one() {
    for (text, key) in [("burst_out = 20000", "burst_out"), ("queue_out = \"1ms\"", "queue_out")] {
        let refusal = config(&format!("[ports.a]\n{text}")).check(&Host::new(Path::new("/run/weft"), "test")).unwrap_err();
        assert!(refusal.to_string().contains("limit_out") && refusal.to_string().contains(key), "{refusal}");
        assert_eq!(refusal.key(), ["ports", "a", key]);
    }
}

#[test]
fn a_guest_stays_connected_when_only_its_lines_change() {
    let (old, new) =
        (config("[ports.a]\n[ports.b]"), config("[ports.a]\nlimit_out = \"1G\"\nimpair_in = \"loss=1%\"\n[ports.b]"));
    let name: Name = "a".parse().unwrap();
    assert_eq!(steps(&old, &new), [Step::ProtectPort(name.clone(), new.ports[&name].clone())]);
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(
        chances in prop::array::uniform4(0..=1_000_000_u32),
        delay in 1..60_000_000_000_u64,
        jitter in prop::num::u64::ANY,
        rate in prop::option::of(1_000..1_000_000_000_000_u64),
        seed in prop::option::of(any::<u64>()),
    ) {
        let [loss, duplicate, corrupt, reorder] = chances.map(Chance::from_millionths);
        let (delay, jitter) = (Duration::from_nanos(delay), Duration::from_nanos(jitter % (delay + 1)));
        let impair = Impair(Impairment { loss, duplicate, corrupt, rate, delay, jitter, reorder, seed });
        prop_assert_eq!(impair.to_string().parse::<Impair>(), Ok(impair));
    }

    #[test]
    fn no_text_makes_anything_panic(text in "[a-z0-9=%,.±+ -]{0,40}") {
        let _ = (text.parse::<Impair>(), text.parse::<Wait>());
    }
}
