//! Multicast, as an operator sees it.

use weft_guest::Guest;

use crate::weft::{Weft, eventually};

/// A report of 239.1.2.3 in IGMPv2, from 10.0.0.1.
const REPORT: [u8; 42] = [
    1, 0, 0x5e, 1, 2, 3, 2, 0, 0, 0, 0, 1, 8, 0, // Ethernet
    0x45, 0, 0, 28, 0, 0, 0, 0, 1, 2, 0xbe, 0xdb, 10, 0, 0, 1, 239, 1, 2, 3, // IPv4
    0x16, 0, 0xf8, 0xfa, 239, 1, 2, 3,
];

#[test]
fn who_wants_which_group_is_listed() {
    let weft = Weft::start_with_config("[networks.default]\nmode = \"private\"\n[ports.vm1]\n");
    assert!(weft.run(&["multicast", "list"]).stdout.contains("Nobody has asked for a group."));
    let mut guest = Guest::builder(weft.at("vm1.sock")).connect().unwrap();
    eventually("the question", || weft.json(&["multicast", "list"])[0]["counters"]["queries_sent"].as_u64() >= Some(2));
    guest.send(&REPORT).unwrap();
    let list = || weft.json(&["multicast", "list", "default"])[0].clone();
    eventually("the report", || list()["counters"]["reports"] == 1);
    let list = list();
    let member = &list["members"][0];
    assert_eq!((&member["group"], &member["port"], &member["protocol"]), (&"239.1.2.3".into(), &"vm1".into(), &"IGMPv2".into()));
    assert!(member["left_seconds"].as_u64().unwrap() > 200, "{member}");
    let querier = &list["queriers"][0];
    assert_eq!((&querier["family"], &querier["address"], querier["port"].is_null()), (&"ipv4".into(), &"0.0.0.0".into(), true));
    let text = weft.run(&["multicast", "list"]).stdout;
    assert!(text.contains("weft, as 0.0.0.0") && text.contains("239.1.2.3  vm1   IGMPv2"), "{text}");
}

#[test]
fn settings_are_given_changed_and_shown() {
    let weft = Weft::start();
    weft.run(&["network", "add", "lab", "--mode", "private", "--multicast", "flood", "--query-interval", "30", "--no-querier"]);
    let lab = || weft.json(&["config", "show"])["networks"]["lab"].clone();
    assert_eq!(
        (&lab()["multicast"], &lab()["query_interval_seconds"], &lab()["querier"]),
        (&"flood".into(), &30.into(), &false.into())
    );
    assert!(weft.run(&["multicast", "list", "lab"]).stdout.contains("Multicast of network lab goes to everybody."));
    weft.run(&["network", "set", "lab", "--multicast", "snoop", "--querier", "--fast-leave", "--query-interval", "60"]);
    assert_eq!(weft.json(&["network", "show", "lab"])["multicast"], "snoop");
    assert_eq!(
        (&lab()["query_interval_seconds"], &lab()["querier"], &lab()["fast_leave"]),
        (&60.into(), &true.into(), &true.into())
    );
}

#[test]
fn who_asks_is_changed_and_shown() {
    let weft = Weft::start();
    assert!(weft.run(&["network", "show", "default"]).stdout.contains("snoop, asks every 125 s\n"));
    let changed = weft.json(&["network", "set", "default", "--no-querier", "--fast-leave", "--query-interval", "60"]);
    assert_eq!(
        (&changed["querier"], &changed["fast_leave"], &changed["query_interval_seconds"]),
        (&false.into(), &true.into(), &60.into())
    );
    assert!(weft.run(&["network", "show", "default"]).stdout.contains("snoop, does not ask, fast leave\n"));
    weft.run(&["network", "set", "default", "--querier", "--vlans", "red=10", "--default-vlan", "red"]);
    let shown = weft.run(&["network", "show", "default"]).stdout;
    assert!(shown.contains("asks every 60 s, fast leave") && shown.contains("red=10"), "{shown}");
}
