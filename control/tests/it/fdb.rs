//! Static entries and limits of the forwarding database, as an operator sees them.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::json;
use weft_guest::Guest;

use crate::weft::{PATIENCE, Weft};

const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame with an EtherType for local experiments (IEEE 802-2014, 9.2.4).
fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xb5], &[0; 46]].concat()
}

/// Plugs a guest into a port, and waits until frames can pass.
fn plug(weft: &Weft, port: &str) -> Guest {
    let guest = Guest::builder(weft.at(&format!("{port}.sock"))).connect().unwrap();
    let until = Instant::now() + PATIENCE;
    while weft.json(&["port", "show", port])["state"] != "up" {
        assert!(Instant::now() < until, "{port} does not come up");
    }
    guest
}

#[test]
fn an_address_in_two_places_stays_in_one_and_everybody_can_see_it() {
    let weft =
        Weft::start_with_config("[networks.default]\nmode = \"private\"\nmulticast = \"flood\"\n[ports.vm1]\n[ports.vm2]\n");
    let (mut a, mut b) = (plug(&weft, "vm1"), plug(&weft, "vm2"));
    let both = frame(BROADCAST, [2, 0, 0, 0, 0, 9]);
    for _ in 0..8 {
        a.send(&both).unwrap();
        assert_eq!(b.receive(PATIENCE).unwrap().as_ref(), Some(&both));
        b.send(&both).unwrap();
        assert_eq!(a.receive(PATIENCE).unwrap().as_ref(), Some(&both));
    }
    weft.wait_for_log("02:00:00:00:00:09 moves between ports too often");
    let line = &weft.json(&["fdb", "list"])[0];
    assert!(line["held_seconds"].as_u64().unwrap() <= 30, "{line}");
    assert_eq!((&line["moves"], &line["kind"]), (&5.into(), &"dynamic".into()), "{line}");
    assert!(weft.run(&["fdb", "list"]).stdout.contains("dynamic, held for "));
    let network = weft.json(&["network", "show", "default"]);
    assert_eq!((&network["fdb"]["moved"], &network["fdb"]["flapped"]), (&5.into(), &1.into()));
    let moved: u64 =
        ["vm1", "vm2"].map(|port| weft.json(&["port", "show", port])["stations"]["moved"].as_u64().unwrap()).iter().sum();
    assert_eq!(moved, 5);
}

#[test]
fn a_guest_with_too_many_addresses_is_limited_while_it_is_there() {
    let weft =
        Weft::start_with_config("[networks.default]\nmode = \"private\"\nmulticast = \"flood\"\n[ports.vm1]\n[ports.vm2]\n");
    let (mut a, mut b) = (plug(&weft, "vm1"), plug(&weft, "vm2"));
    let send = |guest: &mut Guest, last| guest.send(&frame(BROADCAST, [2, 0, 0, 0, 0, last])).unwrap();
    for last in 1..=3 {
        send(&mut a, last);
        assert!(b.receive(PATIENCE).unwrap().is_some());
    }
    assert_eq!(weft.json(&["port", "show", "vm1"])["stations"]["count"], 3);
    let set = weft.json(&["port", "set", "vm1", "--max-macs", "2", "--at-max-macs", "drop"]);
    assert_eq!((&set["stations"]["count"], &set["connections"], &set["state"]), (&2.into(), &1.into(), &"up".into()));
    send(&mut a, 9);
    send(&mut a, 3);
    assert_eq!(b.receive(PATIENCE).unwrap(), Some(frame(BROADCAST, [2, 0, 0, 0, 0, 3])));
    let port = weft.json(&["port", "show", "vm1"]);
    assert_eq!((&port["counters"]["drops"]["mac_limit"], &port["stations"]["refused"]), (&1.into(), &1.into()));
}

#[test]
fn a_static_entry_is_added_listed_kept_and_removed() {
    let weft = Weft::start();
    let added = weft.json(&["fdb", "add", "02:00:00:00:00:09", "--port", "vm1"]);
    assert_eq!((&added["network"], &added["kind"], &added["vlan"]), (&"default".into(), &"static".into(), &json!(null)));
    let listed = json!([{
        "network": "default", "vlan": null, "mac": "02:00:00:00:00:09", "port": "vm1", "kind": "static",
        "age_seconds": null, "moves": 0, "held_seconds": null
    }]);
    assert_eq!(weft.json(&["fdb", "list"]), listed);
    let table = weft.run(&["fdb", "list"]).stdout;
    assert!(table.contains("KIND") && table.contains("MOVES") && table.contains("static"), "{table}");
    assert_eq!(weft.json(&["fdb", "flush"])["entries"], 0);
    assert_eq!(weft.json(&["network", "show", "default"])["fdb_static"], 1);
    assert!(weft.run(&["network", "show", "default"]).stdout.contains("and 1 static"));
    assert!(weft.run(&["config", "show"]).stdout.contains("[[networks.default.fdb]]"));

    let (_, dir) = weft.stop(Signal::TERM);
    let weft = Weft::start_in(dir, &[]);
    assert_eq!(weft.json(&["fdb", "list"]), listed, "it is there after a restart");
    assert_eq!(weft.json(&["fdb", "remove", "02:00:00:00:00:09"])["network"], "default");
    assert_eq!(weft.json(&["fdb", "list"]), json!([]));
    let again = weft.run(&["fdb", "remove", "02:00:00:00:00:09"]);
    assert_eq!(again.status, 1);
    assert!(again.stderr.contains("weft fdb list"), "{}", again.stderr);
}

#[test]
fn a_static_entry_that_can_not_be_is_refused_and_one_of_a_port_goes_with_it() {
    let weft = Weft::start();
    for (args, part) in [
        (&["--port", "nobody"][..], "nobody"),
        (&["--port", "vm1", "--network", "lab"], "lab"),
        (&["--port", "vm1", "--vlan", "20"], "not a member of VLAN 20"),
    ] {
        let ran = weft.run(&[&["fdb", "add", "02:00:00:00:00:09"], args].concat());
        assert!(ran.status == 1 && ran.stderr.contains(part), "{}", ran.stderr);
    }
    assert_eq!(weft.run(&["fdb", "add", "01:00:00:00:00:09", "--port", "vm1"]).status, 2, "a group");
    weft.json(&["fdb", "add", "02:00:00:00:00:09", "--port", "vm1"]);
    let twice = weft.run(&["fdb", "add", "02:00:00:00:00:09", "--port", "vm2"]);
    assert!(twice.status == 1 && twice.stderr.contains("another entry"), "{}", twice.stderr);
    weft.json(&["port", "remove", "vm1"]);
    assert_eq!(weft.json(&["fdb", "list"]), json!([]));
    weft.json(&["port", "add", "vm1"]);
    assert_eq!(weft.json(&["fdb", "list"]), json!([]));
}

#[test]
fn an_address_may_have_an_entry_in_each_vlan_and_moves_with_its_port() {
    let weft = Weft::start();
    weft.json(&["network", "set", "default", "--vlans", "blue=20"]);
    weft.json(&["port", "add", "trunk", "--trunk", "10,blue"]);
    let mac = "02:00:00:00:00:09";
    for vlan in ["10", "blue"] {
        weft.json(&["fdb", "add", mac, "--port", "trunk", "--vlan", vlan]);
    }
    let vlans =
        || -> Vec<_> { weft.json(&["fdb", "list"]).as_array().unwrap().iter().map(|line| line["vlan"].clone()).collect() };
    assert_eq!(vlans(), ["10", "20"]);
    assert!(weft.run(&["fdb", "remove", mac]).stderr.contains("--vlan"));
    weft.json(&["fdb", "remove", mac, "--vlan", "blue"]);
    assert_eq!(vlans(), ["10"]);
    // Such a port is removed and added for this, and gets another number.
    weft.json(&["port", "add", "other"]);
    weft.connect().call("port.set", &json!({ "name": "trunk", "settings": { "queues": 2 } }));
    assert_eq!(vlans(), ["10"]);
    assert_eq!(weft.json(&["fdb", "list"])[0]["port"], "trunk");
}

#[test]
fn limits_are_given_changed_and_shown() {
    let weft = Weft::start();
    let added = weft.json(&["port", "add", "tenant", "--max-macs", "2", "--at-max-macs", "drop"]);
    assert_eq!((&added["stations"]["max"], &added["stations"]["at_max"]), (&2.into(), &"drop".into()));
    let shown = weft.run(&["port", "show", "tenant"]).stdout;
    assert!(shown.contains("0 of at most 2, others are dropped"), "{shown}");
    let changed = weft.json(&["port", "set", "tenant", "--max-macs", "none", "--at-max-macs", "none"]);
    assert_eq!((&changed["stations"]["max"], &changed["stations"]["count"]), (&json!(null), &0.into()));
    let alone = weft.run(&["port", "set", "tenant", "--at-max-macs", "drop"]);
    assert!(alone.status == 1 && alone.stderr.contains("max_macs"), "{}", alone.stderr);
    assert_eq!(weft.json(&["network", "show", "default"])["fdb_full"], "evict");
    assert_eq!(weft.json(&["network", "set", "default", "--fdb-full", "drop"])["fdb_full"], "drop");
    let counts = &weft.json(&["network", "show", "default"])["fdb"];
    assert_eq!((&counts["refused"], &counts["claimed"], &counts["flapped"]), (&0.into(), &0.into(), &0.into()));
}

#[test]
fn a_configuration_file_has_static_entries_and_a_bad_one_is_refused_by_its_place() {
    let config = "[networks.default]\n[ports.vm1]\n[[networks.default.fdb]]\nmac = \"02:00:00:00:00:09\"\nport = \"vm1\"\n";
    let weft = Weft::start_with_config(config);
    assert_eq!(weft.json(&["fdb", "list"])[0]["mac"], "02:00:00:00:00:09");
    weft.reload("[networks.default]\n[ports.vm1]\n");
    assert_eq!(weft.json(&["fdb", "list"]), json!([]));
    weft.reload(&config.replace("port = \"vm1\"", "port = \"vm7\""));
    let problem = weft.json(&["status"])["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("vm7") && problem.contains("02:00:00:00:00:09"), "{problem}");
}
