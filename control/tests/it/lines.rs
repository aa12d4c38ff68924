//! Shaping and impairment, as an operator asks for them.

use serde_json::{Value, json};

use crate::weft::Weft;

#[test]
fn lines_are_given_changed_and_shown() {
    let weft = Weft::start();
    let added = weft.json(&["port", "add", "web", "--limit-out", "200M", "--impair", "loss=1%,delay=20ms±5ms"]);
    let expected = json!({
        "limit_out": "200M", "burst_out": 50_000, "queue_out": "50ms",
        "impair_in": "loss=1%,delay=20ms±5ms", "impair_out": "loss=1%,delay=20ms±5ms",
    });
    assert_eq!(added["lines"], expected);
    let shown = weft.run(&["port", "show", "web"]).stdout;
    for line in [
        "to guest: 200M bits a second, bursts of 50000 bytes, waiting 50ms at most",
        "to guest: loss=1%,delay=20ms±5ms",
        "from guest: loss=1%,delay=20ms±5ms",
    ] {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    // One direction goes before both, and what is not said stays.
    let arguments = ["--impair", "none", "--impair-in", "delay=1ms+-1ms,reorder=5%,seed=7", "--queue-out", "20ms"];
    let changed = weft.json(&[&["port", "set", "web"][..], &arguments].concat());
    let lines = &changed["lines"];
    assert_eq!((&lines["impair_in"], &lines["impair_out"]), (&"delay=1ms±1ms,reorder=5%,seed=7".into(), &Value::Null));
    assert_eq!((&lines["limit_out"], &lines["queue_out"]), (&"200M".into(), &"20ms".into()));
    // What is shown can be run.
    let config = weft.run(&["config", "show"]).stdout;
    for line in ["limit_out = \"200M\"", "queue_out = \"20ms\"", "impair_in = \"delay=1ms±1ms,reorder=5%,seed=7\""] {
        assert!(config.lines().any(|shown| shown == line), "{line} is not in:\n{config}");
    }
    // What belongs to a limit goes with it.
    let arguments = ["--no-impair", "--limit-out", "none"];
    let changed = weft.json(&[&["port", "set", "web"][..], &arguments].concat());
    assert!(changed["lines"].as_object().unwrap().values().all(Value::is_null), "{changed}");
}

#[test]
fn what_makes_no_line_is_refused_with_a_way_out() {
    let weft = Weft::start();
    for (arguments, expected) in [
        (&["--impair", "loss=1"][..], "a share is a percentage"),
        (&["--impair-out", "reorder=1%"], "reorder takes a delay"),
        (&["--impair-in", "rate=fast"], "as in 200M"),
        (&["--limit-out", "10"], "from 1k to 1000G"),
        (&["--limit-out", "1G", "--burst-out", "10"], "1514"),
        (&["--queue-out", "1h", "--limit-out", "1G"], "at most 60s"),
        (&["--burst-out", "20000"], "give it limit_out as well"),
        (&["--no-impair", "--impair", "none"], "cannot be used with"),
    ] {
        let outcome = weft.run(&[&["port", "add", "web"], arguments].concat());
        assert!(outcome.status != 0 && outcome.stderr.contains(expected), "{arguments:?} gave {}", outcome.stderr);
    }
    assert!(weft.json(&["port", "list"]).as_array().unwrap().iter().all(|port| port["name"] != "web"));
}
