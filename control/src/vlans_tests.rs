use std::path::Path;

use super::*;
use crate::host::Host;
use crate::plan::{Step, steps};

fn config(text: &str) -> Config {
    toml::from_str(text).unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn refusal(text: &str) -> String {
    config(text).check(&Host::new(Path::new("/run/weft"), "test")).unwrap_err().to_string()
}

fn id(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

const TENANTS: &str = r#"
    [networks.lab]
    vlans = { tenant-a = 100, tenant-b = 200 }
    default_vlan = 7
    [ports.a]
    network = "lab"
    vlan = "tenant-a"
    [ports.b]
    network = "lab"
    vlan = 200
    [ports.all]
    network = "lab"
    trunk = "10-12,tenant-a,tenant-b,300"
    native = 10
    [ports.customer]
    network = "lab"
    qinq = 300
    [ports.plain]
    network = "lab"
"#;

#[test]
fn roles_are_declared_by_number_and_by_name() {
    let config = config(TENANTS);
    assert_eq!(config.check(&Host::new(Path::new("/run/weft"), "test")), Ok(()));
    let role = |port| config.role(&name(port)).unwrap();
    assert_eq!(role("a"), Some(PortRole::Access(id(100))));
    assert_eq!(role("b"), Some(PortRole::Access(id(200))));
    let trunk = Trunk { allowed: "10-12,100,200,300".parse().unwrap(), native: Some(id(10)) };
    assert_eq!(role("all"), Some(PortRole::Trunk(trunk)));
    assert_eq!(role("customer"), Some(PortRole::Qinq(id(300))));
    assert_eq!(role("plain"), None);
    let roles = config.roles_of(&name("lab")).unwrap();
    assert!(roles.contains(&(name("plain"), PortRole::Access(id(7)))));
}

#[test]
fn what_is_declared_can_be_written_and_read_back() {
    let declared = config(TENANTS);
    let text = toml::to_string(&declared).unwrap();
    assert_eq!(config(&text), declared, "{text}");
    let json = serde_json::to_string(&declared).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), declared, "{json}");
}

#[test]
fn a_network_whose_ports_have_no_roles_has_no_vlans() {
    let config = config("[networks.lab]\nvlans = { a = 100 }\n[ports.x]\nnetwork = \"lab\"\n");
    assert_eq!((config.roles_of(&name("lab")), config.vlan_lines(&name("lab"))), (None, Vec::new()));
}

#[test]
fn the_matrix_has_a_line_for_vlans_of_which_the_same_is_to_be_said() {
    let lines = config(TENANTS).vlan_lines(&name("lab"));
    let text = |line: &VlanLine| {
        let join = |ports: &[Name]| ports.iter().map(Name::as_str).collect::<Vec<_>>().join(",");
        let (kind, name) = (if line.service { "s" } else { "" }, line.name.as_deref().unwrap_or("-"));
        format!("{kind}{}-{} {name} {} U:{} T:{}", line.first, line.last, line.default, join(&line.untagged), join(&line.tagged))
    };
    assert_eq!(
        lines.iter().map(text).collect::<Vec<_>>(),
        [
            "7-7 - true U:plain T:",
            "10-10 - false U:all T:",
            "11-12 - false U: T:all",
            "100-100 tenant-a false U:a T:all",
            "200-200 tenant-b false U:b T:all",
            "300-300 - false U: T:all",
            "s300-300 - false U:customer T:all",
        ]
    );
}

#[test]
fn what_does_not_go_together_is_refused_with_what_to_do() {
    let network = "[networks.default]\nvlans = { a = 100 }\n[ports.x]\n";
    for (text, expected) in [
        ("vlan = 5\ntrunk = 6", "has several: leave all but one away"),
        ("vlan = 5\nqinq = 6", "has several: leave all but one away"),
        ("native = 5", "port \"x\" has a native VLAN, but is no trunk"),
        ("vlan = 5\nnative = 5", "port \"x\" has a native VLAN, but is no trunk"),
        ("vlan = \"b\"", "port \"x\" names VLAN \"b\", which network \"default\" does not have among its vlans; there are: a"),
        ("trunk = \"a,100\"", "port \"x\" has VLAN 100 twice in its trunk, once as \"a\""),
        ("vlan = 5\naddress = \"10.77.0.9\"", "is not in VLAN 1, where the gateway and DHCP of network \"default\" are"),
    ] {
        let message = refusal(&format!("{network}{text}"));
        assert!(message.contains(expected), "{text} gave {message}");
    }
    let message = refusal("[networks.lab]\nvlans = { a = 100, b = 100 }\n");
    assert_eq!(message, "network \"lab\" calls VLAN 100 \"a\" and \"b\": leave one away");
    let message = refusal("[networks.lab]\ndefault_vlan = \"a\"\n");
    assert_eq!(message, "the default VLAN of network \"lab\" is \"a\", which is not among its vlans; there are: none");
}

#[test]
fn an_address_may_be_kept_in_the_default_vlan() {
    let network = "[networks.default]\ndefault_vlan = 5\nsubnet = \"10.77.0.0/24\"\n[ports.y]\nvlan = 6\n[ports.x]\naddress = \"10.77.0.9\"\n";
    for role in ["", "vlan = 5", "trunk = \"5,6\"", "trunk = \"6\"\nnative = 5"] {
        assert_eq!(config(&format!("{network}{role}")).check(&Host::new(Path::new("/run/weft"), "test")), Ok(()), "{role}");
    }
}

#[test]
fn values_that_are_no_vlans_are_refused_with_what_to_do() {
    for (text, expected) in [
        ("0", "there is no VLAN 0"),
        ("4095", "there is no VLAN 4095"),
        ("-5", "write numbers from 1 to 4094"),
        ("100-199", "write numbers from 1 to 4094"),
        ("a b", "can't be a name"),
        ("", "write numbers from 1 to 4094"),
    ] {
        let message = text.parse::<VlanRef>().unwrap_err().to_string();
        assert!(message.contains(expected), "{text:?} gave {message}");
    }
    for (text, expected) in [
        ("10,5-15", "VLAN 10 is there twice"),
        ("a,b,a", "VLAN \"a\" is there twice"),
        ("10,,20", "write numbers from 1 to 4094"),
        ("", "write numbers from 1 to 4094"),
    ] {
        let message = text.parse::<VlanRefs>().unwrap_err().to_string();
        assert!(message.contains(expected), "{text:?} gave {message}");
    }
    for (text, expected) in [
        ("a", "gives no VLAN a name"),
        ("a=0", "there is no VLAN 0"),
        ("1a=5", "let it start with a letter"),
        ("a=5,a=6", "VLAN \"a\" is there twice"),
    ] {
        let message = text.parse::<VlanNames>().unwrap_err().to_string();
        assert!(message.contains(expected), "{text:?} gave {message}");
    }
}

#[test]
fn a_port_is_plugged_anew_when_the_name_of_its_vlan_means_another() {
    let old = config(TENANTS);
    let new = config(&TENANTS.replace("tenant-a = 100", "tenant-a = 101"));
    let lab = (name("lab"), new.networks[&name("lab")].clone());
    let port = |port: &str| (name(port), new.ports[&name(port)].clone());
    let ((all, all_port), (a, a_port)) = (port("all"), port("a"));
    let expected = [
        Step::RemovePort(a.clone()),
        Step::RemovePort(all.clone()),
        Step::ChangeNetwork(lab.0, lab.1),
        Step::AddPort(a, a_port),
        Step::AddPort(all, all_port),
    ];
    assert_eq!(steps(&old, &new), expected);
}
