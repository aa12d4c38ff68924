use std::path::Path;

use super::*;
use crate::config::PortConfig;
use crate::plan::{Step, steps};

fn config(text: &str) -> Config {
    toml::from_str(text).unwrap()
}

fn host() -> Host {
    Host::new(Path::new("/run/weft"), "test")
}

const PORTS: &str = r#"
[networks.default]
vlans = { blue = 20 }
[ports.plain]
[ports.access]
vlan = "blue"
[ports.trunk]
trunk = "10,20"
[ports.native]
trunk = "10"
native = 30
[ports.customer]
qinq = 300
"#;

fn vlan(port: &str, vlan: &str) -> Result<String, String> {
    let config = config(&format!("{PORTS}[[networks.default.fdb]]\nmac = \"02:00:00:00:00:01\"\nport = \"{port}\"\n{vlan}"));
    let checked = config.check(&host()).map_err(|conflict| conflict.to_string());
    let name = "default".parse().unwrap();
    checked.map(|()| config.static_entries(&name).map(|(vlan, _, _)| vlan.to_string()).collect())
}

#[test]
fn an_entry_is_in_the_vlan_of_its_port_unless_it_names_one() {
    for (port, said, expected) in [
        ("plain", "", Ok("1")),
        ("plain", "vlan = 1", Ok("1")),
        ("plain", "vlan = 20", Err("port \"plain\" is not a member of VLAN 20")),
        ("access", "", Ok("20")),
        ("access", "vlan = \"blue\"", Ok("20")),
        ("access", "vlan = \"red\"", Err("VLAN red is not among the network's vlans")),
        ("trunk", "", Err("give the entry a vlan")),
        ("trunk", "vlan = 10", Ok("10")),
        ("trunk", "vlan = 30", Err("not a member")),
        ("native", "", Ok("30")),
        ("native", "vlan = 10", Ok("10")),
        ("customer", "", Ok("s300")),
        ("customer", "vlan = 300", Ok("s300")),
        ("nobody", "", Err("port \"nobody\" is not on that network")),
    ] {
        match (vlan(port, said), expected) {
            (Ok(vlan), Ok(expected)) => assert_eq!(vlan, expected, "{port} {said}"),
            (Err(refusal), Err(part)) => assert!(refusal.contains(part), "{port} {said}: {refusal}"),
            (found, expected) => panic!("{port} {said}: {found:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn entries_that_contradict_each_other_are_refused_with_a_way_out() {
    let entry = |mac: &str, port: &str| format!("[[networks.default.fdb]]\nmac = \"{mac}\"\nport = \"{port}\"\n");
    let ports = "[networks.default]\n[ports.a]\n[ports.b]\n[networks.other]\n[ports.c]\nnetwork = \"other\"\n";
    let gateway = host().gateway_mac(&"default".parse().unwrap()).to_string();
    let many: String = (0..9).map(|last| entry(&format!("02:00:00:00:01:0{last}"), "a")).collect();
    for (text, part) in [
        (format!("{ports}{}{}", entry("02:00:00:00:00:01", "a"), entry("02:00:00:00:00:01", "b")), "another entry in that VLAN"),
        (format!("{ports}{}", entry("02:00:00:00:00:01", "c")), "not on that network"),
        (format!("{ports}{}", entry(&gateway, "a")), "the gateway's address"),
        (format!("{}{many}", ports.replacen("[networks.default]", "[networks.default]\nfdb_capacity = 16", 1)), "at most 8"),
    ] {
        let refusal = config(&text).check(&host()).unwrap_err();
        assert!(refusal.to_string().contains(part), "{refusal}");
        assert_eq!(refusal.key(), ["networks", "default", "fdb"]);
    }
    let refusal = config("[networks.default]\n[ports.a]\nat_max_macs = \"drop\"").check(&host()).unwrap_err();
    assert!(refusal.to_string().contains("max_macs"), "{refusal}");
}

#[test]
fn what_is_declared_can_be_written_and_read_back() {
    let text = format!(
        "{PORTS}max_macs = 4\nat_max_macs = \"drop\"\n[networks.other]\nfdb_full = \"forward\"\n[[networks.default.fdb]]\nmac = \"02:00:00:00:00:01\"\nport = \"trunk\"\nvlan = 10\n"
    );
    let declared = config(&text);
    assert_eq!(declared.check(&host()), Ok(()));
    assert_eq!(toml::from_str::<Config>(&toml::to_string(&declared).unwrap()).unwrap(), declared);
    let limit = declared.ports[&"customer".parse::<Name>().unwrap()].protections(MacAddr::BROADCAST).stations.unwrap();
    assert_eq!((limit.stations, limit.beyond), (4, AtLimit::Drop));
    assert_eq!(declared.networks[&"other".parse::<Name>().unwrap()].fdb().when_full, Some(AtLimit::Forward));
    assert_eq!(PortConfig::default().protections(MacAddr::BROADCAST).stations, None);
}

#[test]
fn no_guest_is_disturbed_by_a_static_entry_or_a_limit() {
    let old = config("[networks.default]\n[ports.a]");
    let entry = config("[networks.default]\n[ports.a]\n[[networks.default.fdb]]\nmac = \"02:00:00:00:00:01\"\nport = \"a\"");
    assert!(matches!(&steps(&old, &entry)[..], [Step::ChangeNetwork(..)]));
    let limit = config("[networks.default]\n[ports.a]\nmax_macs = 3");
    assert!(matches!(&steps(&old, &limit)[..], [Step::ProtectPort(..)]));
}
