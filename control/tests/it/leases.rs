//! Addresses for guests: given, kept, taken back, and there again after a crash.

use std::net::Ipv4Addr;
use std::time::Instant;

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Client, kind};
use crate::weft::{PATIENCE, Weft};

/// A network whose addresses are known beforehand.
const LAB: &str = "[networks.default]\nsubnet = \"10.78.9.0/24\"\n[ports.vm1]\n[ports.vm2]\n";

fn option(message: &Message, code: OptionCode) -> Option<&DhcpOption> {
    message.opts().get(code)
}

/// Waits until `lease list` is like this.
#[track_caller]
fn wait_for_leases(weft: &Weft, like: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        let leases = weft.json(&["lease", "list"]).as_array().unwrap().clone();
        if like(&leases) {
            return leases;
        }
        assert!(Instant::now() < until, "{leases:?}");
    }
}

#[test]
fn a_guest_gets_an_address_a_way_out_and_a_resolver() {
    let weft = Weft::start_with_config(LAB);
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    guest.hostname = Some("Web".to_owned());
    let ack = guest.lease();
    let gateway = Ipv4Addr::new(10, 78, 9, 1);
    assert_eq!(guest.address, Ipv4Addr::new(10, 78, 9, 10));
    assert_eq!(option(&ack, OptionCode::Router), Some(&DhcpOption::Router(vec![gateway])));
    assert_eq!(option(&ack, OptionCode::DomainNameServer), Some(&DhcpOption::DomainNameServer(vec![gateway])));
    assert_eq!(option(&ack, OptionCode::SubnetMask), Some(&DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0))));
    assert_eq!(option(&ack, OptionCode::InterfaceMtu), Some(&DhcpOption::InterfaceMtu(1500)));
    assert_eq!(option(&ack, OptionCode::DomainName), Some(&DhcpOption::DomainName("weft.internal".to_owned())));
    assert!(guest.ping_gateway());

    let leases = weft.json(&["lease", "list"]);
    let lease = &leases[0];
    assert_eq!((&lease["address"], &lease["port"], &lease["hostname"]), (&json!("10.78.9.10"), &json!("vm1"), &json!("web")));
    assert_eq!((&lease["state"], &lease["fixed"], &lease["mac"]), (&json!("leased"), &json!(false), &json!("02:00:00:00:00:01")));
    assert!(lease["seconds_left"].as_u64().unwrap() > 43_000);
    let network = weft.json(&["network", "show", "default"]);
    assert_eq!((&network["subnet"], &network["gateway"]), (&json!("10.78.9.0/24"), &json!("10.78.9.1")));
    assert_eq!((&network["dhcp"]["free"], &network["dhcp"]["counters"]["leases"]), (&json!(244), &json!(1)));
    assert_eq!(weft.json(&["port", "show", "vm1"])["counters"]["drops"], json!({}));
    let shown = weft.run(&["lease", "list"]).stdout;
    assert!(shown.contains("10.78.9.10") && shown.contains("web"), "{shown}");

    guest.release();
    wait_for_leases(&weft, <[Value]>::is_empty);
}

#[test]
fn leases_are_there_after_a_crash() {
    let weft = Weft::start_with_config(LAB);
    let (mut first, mut second) = (Client::plug(&weft.at("vm1.sock"), 1), Client::plug(&weft.at("vm2.sock"), 2));
    first.lease();
    second.lease();
    let addresses = [first.address, second.address];
    let before = weft.json(&["lease", "list"]);
    let (_, dir) = weft.stop(Signal::KILL);
    let config = dir.path().join("weft.toml").to_str().unwrap().to_owned();
    let weft = Weft::start_in(dir, &["--config", &config]);
    let after = weft.json(&["lease", "list"]);
    let essence = |leases: &Value| {
        let keys = |lease: &Value| ["address", "mac", "port", "hostname"].map(|key| lease[key].clone());
        leases.as_array().unwrap().iter().map(keys).collect::<Vec<_>>()
    };
    assert_eq!(essence(&after), essence(&before));
    // One that doesn't know that anything happened, one that starts again, and one that is new.
    let mut second = Client::plug(&weft.at("vm2.sock"), 2);
    let ack = second.reboot(addresses[1]).unwrap();
    assert_eq!((kind(&ack), ack.yiaddr()), (MessageType::Ack, addresses[1]));
    let mut stranger = Client::plug(&weft.at("vm1.sock"), 3);
    stranger.lease();
    assert!(!addresses.contains(&stranger.address), "{} was given twice", stranger.address);
}

#[test]
fn an_address_can_be_kept_for_a_client_and_for_a_port() {
    let weft = Weft::start_with_config(LAB);
    let added = weft.json(&["lease", "add", "default", "10.78.9.5", "--mac", "02:00:00:00:00:01", "--hostname", "printer"]);
    assert_eq!((&added["state"], &added["fixed"]), (&json!("reserved"), &json!(true)));
    weft.json(&["lease", "add", "default", "10.78.9.6", "--client-id", "00:77:65:66:74"]);
    weft.json(&["port", "add", "db", "--address", "10.78.9.7"]);

    let mut printer = Client::plug(&weft.at("vm1.sock"), 1);
    assert_eq!(
        (printer.lease().yiaddr(), printer.look_up("printer", RecordType::A)),
        (printer.address, vec!["10.78.9.5".to_owned()])
    );
    let mut named = Client::plug(&weft.at("vm2.sock"), 2);
    let me = DhcpOption::ClientIdentifier(b"\0weft".to_vec());
    assert_eq!(named.ask(MessageType::Discover, &[me]).unwrap().yiaddr(), Ipv4Addr::new(10, 78, 9, 6));
    let mut db = Client::plug(&weft.at("db.sock"), 3);
    assert_eq!(db.lease().yiaddr(), Ipv4Addr::new(10, 78, 9, 7));

    assert!(
        weft.refused(&["lease", "add", "default", "10.78.9.5", "--mac", "02:00:00:00:00:09"])
            .contains("keeps 10.78.9.5 for somebody")
    );
    assert!(weft.refused(&["lease", "add", "default", "10.79.0.5", "--mac", "02:00:00:00:00:09"]).contains("10.78.9.0/24"));
    assert!(weft.refused(&["lease", "remove", "default", "10.78.9.99"]).contains("no lease of 10.78.9.99"));
    assert!(weft.refused(&["lease", "remove", "default", "10.78.9.7"]).contains("keeps 10.78.9.7 for port \"db\""));
    weft.json(&["lease", "remove", "default", "10.78.9.5"]);
    wait_for_leases(&weft, |leases| leases.iter().all(|lease| lease["address"] != "10.78.9.5"));
    weft.json(&["port", "remove", "db"]);
    wait_for_leases(&weft, |leases| leases.iter().all(|lease| lease["fixed"] == false || lease["address"] != "10.78.9.7"));
}

#[test]
fn an_address_that_somebody_has_is_kept_from_when_that_lease_ends() {
    let weft = Weft::start_with_config(LAB);
    let mut holder = Client::plug(&weft.at("vm1.sock"), 1);
    holder.lease();
    let words = ["lease", "add", "default", "10.78.9.10", "--mac", "02:00:00:00:00:02"];
    let said = weft.run(&words).stdout;
    assert!(
        said.starts_with("10.78.9.10 is kept for 02:00:00:00:00:02, as soon as the lease of 02:00:00:00:00:01 ends"),
        "{said}"
    );
    let held = weft.json(&["lease", "list"])[0].clone();
    assert_eq!((&held["client"], &held["fixed"]), (&json!("02:00:00:00:00:01"), &json!(false)));
    assert_eq!((&held["state"], &held["kept_for"]), (&json!("leased"), &json!("02:00:00:00:00:02")));
    let mut heir = Client::plug(&weft.at("vm2.sock"), 2);
    heir.hostname = Some("heir".to_owned());
    heir.lease();
    assert_eq!(heir.address, Ipv4Addr::new(10, 78, 9, 11), "it gets another until then");
    holder.release();
    wait_for_leases(&weft, |leases| leases.iter().all(|lease| lease["mac"] != "02:00:00:00:00:01"));
    heir.lease();
    assert_eq!(heir.address, Ipv4Addr::new(10, 78, 9, 10));
    let leases = wait_for_leases(&weft, |leases| leases.len() == 1);
    assert_eq!((&leases[0]["address"], &leases[0]["hostname"]), (&json!("10.78.9.10"), &json!("heir")));
    assert_eq!((&leases[0]["fixed"], &leases[0]["kept_for"]), (&json!(true), &Value::Null));
}

#[test]
fn a_kept_name_is_nobody_elses() {
    let weft = Weft::start_with_config(LAB);
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    guest.hostname = Some("web".to_owned());
    guest.lease();
    let refused =
        |name| weft.refused(&["lease", "add", "default", "10.78.9.50", "--mac", "02:00:00:00:00:09", "--hostname", name]);
    assert!(refused("web").contains("web of network \"default\" is 10.78.9.10 already"));
    assert!(refused("gateway").contains("gateway can't be a host's name"));
}

#[test]
fn addresses_can_be_kept_in_a_subnet_that_weft_chose() {
    let weft = Weft::start();
    let subnet = weft.json(&["network", "show", "default"])["subnet"].as_str().unwrap().to_owned();
    let address = |last: u8| subnet.replace(".0/24", &format!(".{last}"));
    weft.json(&["port", "add", "db", "--address", &address(7)]);
    weft.json(&["lease", "add", "default", &address(5), "--mac", "02:00:00:00:00:01"]);
    assert_eq!(weft.json(&["config", "show"])["networks"]["default"]["subnet"], subnet, "what is shown can be read back");
    let (mut one, mut db) = (Client::plug(&weft.at("vm1.sock"), 1), Client::plug(&weft.at("db.sock"), 3));
    assert_eq!((one.lease().yiaddr().to_string(), db.lease().yiaddr().to_string()), (address(5), address(7)));
}

#[test]
fn a_network_gets_services_and_loses_them_without_a_guest_being_disturbed() {
    let weft = Weft::start_with_config("[networks.default]\nmode = \"private\"\n[ports.vm1]\n");
    let mut guest = Client::plug(&weft.at("vm1.sock"), 1);
    assert_eq!(weft.json(&["network", "show", "default"])["dhcp"], Value::Null);
    assert!(weft.refused(&["lease", "add", "default", "10.78.9.5", "--mac", "02:00:00:00:00:01"]).contains("no DHCP"));
    weft.reload(LAB);
    guest.lease();
    assert!(guest.ping_gateway());
    let private = "[networks.default]\nmode = \"private\"\nsubnet = \"10.78.9.0/24\"\n[ports.vm1]\n";
    weft.reload(private);
    let ack = guest.reboot(guest.address).unwrap();
    assert_eq!(
        (kind(&ack), option(&ack, OptionCode::Router), option(&ack, OptionCode::DomainNameServer)),
        (MessageType::Ack, None, None)
    );
    weft.reload(&LAB.replace("10.78.9.0/24", "10.78.10.0/24"));
    let nak = guest.reboot(guest.address).unwrap();
    assert_eq!(kind(&nak), MessageType::Nak, "the address is of another subnet now");
    guest.lease();
    assert_eq!(guest.address.octets()[2], 10);
    assert_eq!(weft.json(&["port", "show", "vm1"])["connections"], 1);
}

#[test]
fn leases_of_networks_with_the_same_addresses_are_apart_and_go_with_their_network() {
    let weft = Weft::start_with_config(LAB);
    weft.json(&["network", "add", "lab", "--subnet", "10.78.9.0/24"]);
    weft.json(&["port", "add", "web", "--network", "lab"]);
    let (mut first, mut second) = (Client::plug(&weft.at("vm1.sock"), 1), Client::plug(&weft.at("web.sock"), 2));
    first.lease();
    second.lease();
    assert_eq!(first.address, second.address);
    assert_eq!(weft.json(&["lease", "list", "--network", "lab"])[0]["port"], "web");
    drop(second);
    weft.json(&["port", "remove", "web"]);
    weft.json(&["network", "remove", "lab"]);
    weft.json(&["network", "add", "lab", "--subnet", "10.78.9.0/24"]);
    let leases = wait_for_leases(&weft, |leases| leases.len() == 1);
    assert_eq!(leases[0]["network"], "default");
}

#[test]
fn subnets_that_can_not_be_are_refused_with_a_way_out() {
    let weft = Weft::start();
    // Whatever this host reaches by a route of its own.
    let routes = std::fs::read_to_string("/proc/net/route").unwrap();
    let numbers = routes.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    let known =
        numbers.map(|word| Ipv4Addr::from(u32::from_str_radix(word, 16).unwrap().to_ne_bytes())).find(|to| to.octets()[0] > 0);
    match known {
        Some(known) => {
            let [a, b, c, _] = known.octets();
            let message = weft.refused(&["network", "add", "lab", "--subnet", &format!("{a}.{b}.{c}.0/24")]);
            assert!(message.contains("overlaps with") && message.contains(" is free"), "{message}");
        }
        None => eprintln!("this host has no route but the default one, so overlapping was not tried"),
    }
    let message = weft.refused(&["network", "add", "lab", "--subnet", "10.78.9.0/24", "--gateway", "10.79.0.1"]);
    assert!(message.contains("10.79.0.1 is not the address of a host in 10.78.9.0/24"), "{message}");
    assert!(weft.refused(&["network", "add", "lab", "--gateway", "10.79.0.1"]).contains("no subnet: give it one"));
    let chosen =
        [weft.json(&["network", "add", "a"]), weft.json(&["network", "add", "b"]), weft.json(&["network", "show", "default"])];
    let mut subnets: Vec<_> = chosen.iter().map(|network| network["subnet"].as_str().unwrap().to_owned()).collect();
    subnets.sort();
    subnets.dedup();
    assert_eq!(subnets.len(), 3, "each network has a subnet of its own");
}

#[test]
fn a_subnet_that_weft_chose_is_the_same_after_a_restart() {
    let subnet = |weft: &Weft, name: &str| weft.json(&["network", "show", name])["subnet"].as_str().unwrap().to_owned();
    let weft = Weft::start_with_config("[networks.a]\n[networks.b]\n");
    let (a, b) = (subnet(&weft, "a"), subnet(&weft, "b"));
    assert_ne!(a, b);
    let (_, dir) = weft.stop(Signal::KILL);
    // What the other one had is free now, and would be chosen first.
    std::fs::write(dir.path().join("weft.toml"), "[networks.b]\n").unwrap();
    let config = dir.path().join("weft.toml").to_str().unwrap().to_owned();
    let weft = Weft::start_in(dir, &["--config", &config]);
    assert_eq!(subnet(&weft, "b"), b);
}

#[test]
fn a_state_directory_that_can_not_be_is_named() {
    let weft = Weft::start_with_config("[networks.default]\nmode = \"private\"\n");
    assert!(!weft.at("state").exists(), "nothing is kept where there is nothing to keep");
    std::fs::write(weft.at("state"), "in the way").unwrap();
    let message = weft.refused(&["network", "add", "lab"]);
    assert!(message.contains("cannot make the state directory") && message.contains("--state-dir"), "{message}");
    std::fs::remove_file(weft.at("state")).unwrap();
    weft.json(&["network", "add", "lab"]);
    assert!(weft.at("state/leases.redb").exists());
}

#[test]
fn a_name_goes_with_its_lease() {
    let weft = Weft::start_with_config(LAB);
    let (mut web, mut other) = (Client::plug(&weft.at("vm1.sock"), 1), Client::plug(&weft.at("vm2.sock"), 2));
    web.hostname = Some("web".to_owned());
    web.lease();
    other.lease();
    assert_eq!(other.look_up("web.weft.internal", RecordType::A), [web.address.to_string()]);
    assert_eq!(other.look_up("vm2", RecordType::A), [other.address.to_string()], "a guest without a name has its port's");
    web.release();
    wait_for_leases(&weft, |leases| leases.len() == 1);
    assert_eq!(other.resolve("web.weft.internal", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
}
