use std::path::Path;

use super::*;
use crate::config::NetworkConfig;
use crate::host::Host;
use crate::plan::{Step, steps};

fn config(text: &str) -> Config {
    toml::from_str(&format!("[networks.default]\n{text}")).unwrap()
}

fn port(text: &str) -> PortConfig {
    toml::from_str(text).unwrap()
}

fn check(text: &str) -> Result<(), Conflict> {
    config(text).check(&Host::new(Path::new("/run/weft"), "test"))
}

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

#[test]
fn a_port_of_which_nothing_is_said_has_no_protections() {
    assert_eq!(PortConfig::default().protections(MAC), Protections::NONE);
}

#[test]
fn an_untrusted_guest_is_locked_to_its_addresses_is_no_server_and_can_not_storm() {
    let protections = port("untrusted = true").protections(MAC);
    let storm = Some(Volume::Frames(1000));
    let expected = Protections {
        macs: Some(vec![MAC]),
        ips: Some(IpLock { listed: Vec::new(), leased: true }),
        dhcp_server: false,
        router: false,
        storm: StormLimits { broadcast: storm, multicast: storm, unknown: storm },
        ..Protections::NONE
    };
    assert_eq!(protections, expected);
}

#[test]
fn what_is_said_beside_untrusted_goes_first() {
    let text = r#"
        untrusted = true
        lock_mac = false
        allow_ip = ["192.0.2.1", "2001:db8::1"]
        allow = "router"
        storm_broadcast = "off"
        storm_multicast = "2MB"
        storm_unknown = 50
    "#;
    let protections = port(text).protections(MAC);
    let listed = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    assert_eq!((protections.macs, protections.ips), (None, Some(IpLock { listed, leased: true })));
    assert_eq!((protections.dhcp_server, protections.router), (false, true));
    let storm = StormLimits { broadcast: None, multicast: Some(Volume::Bytes(2_000_000)), unknown: Some(Volume::Frames(50)) };
    assert_eq!(protections.storm, storm);
}

#[test]
fn locked_ip_addresses_make_no_server_and_locked_macs_say_nothing_of_it() {
    let parts = |text| {
        let Protections { dhcp_server, router, .. } = port(text).protections(MAC);
        (dhcp_server, router)
    };
    assert_eq!(parts("lock_ip = true"), (false, false));
    assert_eq!(parts("lock_mac = true"), (true, true));
    assert_eq!(parts("allow = \"none\""), (false, false));
    assert_eq!(parts("lock_ip = true\nallow = \"dhcp-server,router\""), (true, true));
}

#[test]
fn isolation_and_limits_are_as_declared() {
    let protections = port("isolated = true\nlimit_in = \"1G\"").protections(MAC);
    assert_eq!(protections.isolation, Isolation::Isolated);
    assert_eq!(protections.limit_in, Some(Limit { bits: 1_000_000_000, burst: 1_250_000 }));
    let protections = port("isolation_group = 7\nlimit_in = 2000000\nburst_in = 70000").protections(MAC);
    assert_eq!(protections.isolation, Isolation::Group(7));
    assert_eq!(protections.limit_in, Some(Limit { bits: 2_000_000, burst: 70_000 }));
}

#[test]
fn rates_are_read_and_written_in_the_same_words() {
    for text in ["1", "999", "1k", "1500", "2M", "3G", "1B", "20kB", "1000G", "off"] {
        assert_eq!(text.parse::<StormRate>().unwrap().to_string(), text);
    }
    for text in ["1k", "1500", "200M", "1G", "1000G"] {
        assert_eq!(text.parse::<BitRate>().unwrap().to_string(), text);
        assert_eq!(format!("{text}bit").parse::<BitRate>().unwrap().to_string(), text);
    }
    for text in ["", "0", "-1", "+1", "1.5k", "1kk", "B", "1KB", "1001G", "18446744073709551615G", "Off"] {
        let error = text.parse::<StormRate>().unwrap_err().to_string();
        assert!(error.contains(&format!("{text:?}")) && error.contains("as in 1000"), "{error}");
    }
    for text in ["", "0", "999", "1001G", "1g", "1Gbits", "off"] {
        assert!(text.parse::<BitRate>().unwrap_err().to_string().contains("200M"));
    }
    for text in ["none", "dhcp-server", "router", "dhcp-server,router"] {
        assert_eq!(text.parse::<AllowedParts>().unwrap().to_string(), text);
    }
    for text in ["", "dhcp", "none,router", "router,"] {
        assert!(text.parse::<AllowedParts>().unwrap_err().to_string().contains("dhcp-server, router"));
    }
}

#[test]
fn what_is_declared_can_be_written_and_read_back() {
    let declared = config(
        r#"
        [ports.a]
        untrusted = true
        allow_mac = ["02:00:00:00:00:02"]
        allow_ip = ["192.0.2.1"]
        allow = "dhcp-server"
        lock_ip = true
        isolation_group = 3
        storm_broadcast = 1500
        storm_unknown = "off"
        limit_in = "1G"
        burst_in = 2500000
        "#,
    );
    let written = toml::to_string(&declared).unwrap();
    assert_eq!(toml::from_str::<Config>(&written).unwrap(), declared);
    assert!(written.contains("storm_broadcast = \"1500\"") && written.contains("limit_in = \"1G\""), "{written}");
}

#[test]
fn declarations_that_contradict_each_other_are_refused_with_a_way_out() {
    let macs = (0..17).map(|last| format!("\"02:00:00:00:01:{last:02}\"")).collect::<Vec<_>>().join(",");
    let many = format!("lock_mac = true\nallow_mac = [{macs}]");
    for (text, part) in [
        ("allow_mac = [\"02:00:00:00:00:02\"]", "give it lock_mac as well"),
        ("allow_ip = [\"192.0.2.1\"]", "give it lock_ip as well"),
        ("untrusted = true\nlock_ip = false\nallow_ip = [\"192.0.2.1\"]", "give it lock_ip as well"),
        (&many, "at most 16 fit"),
        ("isolated = true\nisolation_group = 1", "leave one away"),
        ("burst_in = 100000", "give it limit_in as well"),
        ("limit_in = \"1G\"\nburst_in = 100000", "give 250000 bytes at least"),
    ] {
        let refusal = check(&format!("[ports.a]\n{text}")).unwrap_err();
        assert!(refusal.to_string().contains(part) && refusal.to_string().contains("\"a\""), "{refusal}");
        assert_eq!(refusal.key()[..2], ["ports", "a"]);
    }
}

#[test]
fn a_port_may_be_locked_to_leases_only_where_it_can_get_one() {
    let locked = "[ports.a]\nlock_ip = true";
    assert_eq!(check(locked), Ok(()));
    assert!(matches!(check(&format!("dhcp = \"off\"\n{locked}")), Err(Conflict::LockedOut { .. })));
    assert!(matches!(check(&format!("mode = \"private\"\n{locked}")), Err(Conflict::LockedOut { .. })));
    assert_eq!(check(&format!("mode = \"private\"\n{locked}\nallow_ip = [\"192.0.2.1\"]")), Ok(()));
    // The gateway, and DHCP with it, is in the default VLAN.
    assert!(matches!(check(&format!("{locked}\nvlan = 100")), Err(Conflict::LockedOut { .. })));
    assert_eq!(check(&format!("{locked}\nvlan = 1")), Ok(()));
}

#[test]
fn a_guest_stays_connected_when_only_its_protections_change() {
    let old = config("[ports.a]\nqueues = 2\n[ports.b]");
    let new = config("[ports.a]\nqueues = 2\nuntrusted = true\n[ports.b]");
    let changed = new.ports.iter().find(|(_, port)| port.untrusted).unwrap();
    assert_eq!(steps(&old, &new), [Step::ProtectPort(changed.0.clone(), changed.1.clone())]);
    let more = config("[ports.a]\nqueues = 1\nuntrusted = true\n[ports.b]");
    assert!(matches!(&steps(&old, &more)[..], [Step::RemovePort(_), Step::AddPort(_, _)]));
    let mut now = old.clone();
    steps(&old, &new).into_iter().for_each(|step| now.record(step));
    assert_eq!(now, new);
    assert_eq!(now.networks.values().next(), Some(&NetworkConfig::default()));
}
