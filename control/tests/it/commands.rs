//! What the commands print, for people and for programs.

use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::weft::{PATIENCE, Weft, command, run};

#[test]
fn a_port_can_be_added_shown_and_removed() {
    let weft = Weft::start();
    let added = weft.json(&["port", "add", "web", "--queues", "2", "--mac", "02:00:00:00:00:01"]);
    assert_eq!(added["name"], "web");
    assert_eq!(added["state"], "listening");
    assert_eq!(added["socket"], weft.at("web.sock").to_str().unwrap());
    assert!(weft.at("web.sock").exists());
    assert_eq!(weft.json(&["port", "show", "web"])["mac"], "02:00:00:00:00:01");
    assert_eq!(weft.json(&["port", "remove", "web"]), serde_json::json!({ "name": "web" }));
    assert!(!weft.at("web.sock").exists());
    assert_eq!(weft.run(&["port", "show", "web"]).status, 1);
}

#[test]
fn a_port_can_wait_for_its_guest_to_listen() {
    let weft = Weft::start();
    let added = weft.json(&["port", "add", "web", "--client"]);
    assert_eq!(added["state"], "connecting");
    assert!(!weft.at("web.sock").exists());
    assert!(weft.run(&["qemu-args", "web"]).stdout.contains("server=on,wait=off"));
}

#[test]
fn it_is_shown_why_and_when_a_guest_went() {
    let weft = Weft::start();
    drop(std::os::unix::net::UnixStream::connect(weft.at("vm1.sock")).unwrap());
    let until = std::time::Instant::now() + PATIENCE;
    let port = loop {
        let port = weft.json(&["port", "show", "vm1"]);
        if !port["last_stop"].is_null() {
            break port;
        }
        assert!(std::time::Instant::now() < until, "{port}");
    };
    assert!(port["last_stop_seconds"].as_u64().is_some_and(|seconds| seconds <= PATIENCE.as_secs()), "{port}");
    let shown = weft.run(&["port", "show", "vm1"]).stdout;
    assert!(shown.lines().any(|line| line.contains("Last stop") && line.ends_with(" ago")), "{shown}");
}

#[test]
fn a_relative_socket_is_meant_from_where_the_command_is_typed() {
    let weft = Weft::start();
    let here = tempfile::tempdir().unwrap();
    let output = command()
        .args(["port", "add", "web", "--socket", "web.sock", "--run-dir"])
        .arg(weft.run_dir())
        .current_dir(here.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(here.path().join("web.sock").exists());
}

#[test]
fn a_network_can_be_added_used_and_removed() {
    let weft = Weft::start();
    let added = weft.json(&["network", "add", "lab", "--mode", "private", "--ageing", "60", "--mtu", "9000"]);
    assert_eq!((&added["ageing_seconds"], &added["mtu"]), (&60.into(), &9000.into()));
    let port = weft.json(&["port", "add", "web", "--network", "lab"]);
    assert_eq!((&port["network"], &port["mtu"]), (&"lab".into(), &9000.into()));
    assert_eq!(weft.json(&["network", "show", "lab"])["ports"], serde_json::json!(["web"]));
    assert!(weft.refused(&["network", "remove", "lab"]).contains("web"));
    weft.json(&["port", "remove", "web"]);
    weft.json(&["network", "remove", "lab"]);
    assert_eq!(weft.json(&["network", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn every_question_has_an_answer_for_people_and_one_for_programs() {
    let weft = Weft::start();
    let has = |args: &[&str], keys: &[&str]| {
        let people = weft.run(args);
        assert_eq!(people.status, 0, "{args:?}: {}", people.stderr);
        assert!(!people.stdout.contains('\u{1b}'), "{args:?} has colours, and there is no terminal");
        assert!(!people.stdout.is_empty() && !people.stdout.starts_with('{'));
        let programs = weft.json(args);
        let object = programs.get(0).unwrap_or(&programs);
        for key in keys {
            assert!(object.get(key).is_some(), "{args:?} lacks {key}: {programs}");
        }
    };
    has(&["status"], &["version", "pid", "run_dir", "uptime_seconds", "healthy", "ports", "ports_up", "networks", "workers"]);
    has(&["stats"], &["uptime_ms", "ports", "workers"]);
    has(&["port", "list"], &["name", "network", "socket", "client", "queues", "mac", "mtu", "state", "counters"]);
    has(&["port", "show", "vm1"], &["name", "connections", "features", "rings", "last_stop", "guest_mtu"]);
    has(&["network", "list"], &["name", "mode", "ports", "fdb_entries", "fdb"]);
    has(&["network", "show", "default"], &["ageing_seconds", "fdb_capacity", "mtu"]);
    has(&["fdb", "list"], &[]);
    has(&["fdb", "flush"], &["entries"]);
    has(&["config", "show"], &["workers", "networks", "ports"]);
    has(&["libvirt-xml", "vm1"], &["xml"]);
    let words = weft.json(&["qemu-args", "vm1", "--memory", "512M"]);
    assert!(words.as_array().unwrap().contains(&"memory-backend-memfd,id=mem,size=512M,share=on".into()));
}

#[test]
fn the_configuration_that_is_shown_can_be_used_as_a_file() {
    let weft = Weft::start();
    weft.json(&["network", "add", "lab", "--ageing", "60"]);
    weft.json(&["port", "add", "web", "--network", "lab", "--mac", "02:00:00:00:00:01", "--queues", "4"]);
    let shown = weft.run(&["config", "show"]).stdout;
    let again = Weft::start_with_config(&shown);
    assert_eq!(again.json(&["config", "show"]), weft.json(&["config", "show"]));
}

#[test]
fn the_configuration_that_is_shown_has_the_subnets_that_weft_chose() {
    let weft = Weft::start();
    weft.json(&["network", "add", "lab"]);
    weft.json(&["network", "add", "quiet", "--mode", "private"]);
    let shown = weft.json(&["config", "show"]);
    for name in ["default", "lab"] {
        assert_eq!(shown["networks"][name]["subnet"], weft.json(&["network", "show", name])["subnet"], "{shown}");
    }
    assert_eq!(shown["networks"]["quiet"]["subnet"], Value::Null);
}

#[test]
fn the_line_that_starts_a_guest_is_complete() {
    let weft = Weft::start();
    let text = weft.run(&["port", "add", "web"]).stdout;
    let line = text.lines().find(|line| line.contains("qemu-system")).expect("there is no line to paste");
    let words = shlex::split(line).unwrap();
    let socket = weft.at("web.sock");
    for part in ["share=on", "memdev=mem", "vhost-user", "virtio-net-pci", socket.to_str().unwrap()] {
        assert!(words.iter().any(|word| word.contains(part)), "{line} lacks {part}");
    }
}

#[test]
fn the_arguments_of_a_guest_survive_a_shell_that_splits_at_blanks() {
    let weft = Weft::start();
    let text = weft.run(&["qemu-args", "vm1"]).stdout;
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(Value::from(words), weft.json(&["qemu-args", "vm1"]));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let weft = Weft::start();
    for args in [["port", "list"].as_slice(), &["api", "schema"], &["man"], &["completions", "bash"]] {
        let mut child = command()
            .arg("--run-dir")
            .arg(weft.run_dir())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn watched_statistics_are_one_line_of_json_each() {
    use std::io::{BufRead, BufReader};
    let weft = Weft::start();
    let mut child =
        command().args(["stats", "--watch", "--json", "--run-dir"]).arg(weft.run_dir()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let stats: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(stats["ports"].as_array().unwrap().len(), 2);
    }
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0), "the pipe is closed, and it goes on");
}

#[test]
fn wrong_usage_is_told_apart_from_a_refusal() {
    for args in [["no-such-command"].as_slice(), &["port"], &["port", "add"], &["status", "--no-such-option"]] {
        assert_eq!(run(args).status, 2, "{args:?}");
    }
    for args in [["--help"].as_slice(), &["--version"], &["port", "add", "--help"]] {
        assert_eq!(run(args).status, 0, "{args:?}");
    }
}

#[test]
fn manuals_completions_and_the_schema_need_no_switch() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("share/man1");
    assert_eq!(run(&["man", "--dir", pages.to_str().unwrap()]).status, 0);
    let page = std::fs::read_to_string(pages.join("weft-port-add.1")).unwrap();
    assert!(page.contains("\nweft port add [OPTIONS] <NAME>\n") && page.contains("\"weft 0."), "{page}");
    assert!(run(&["man"]).stdout.contains(".TH weft 1"));
    assert!(run(&["completions", "bash"]).stdout.contains("weft"));
    let schema: Value = serde_json::from_str(&run(&["api", "schema"]).stdout).unwrap();
    assert!(schema["methods"]["port.add"]["params"].is_object());
}

#[test]
fn the_script_in_the_manual_works() {
    let docs = include_str!("../../../docs/control-api.md");
    let script = docs.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(script.lines().count() <= 11, "ten lines were promised");
    let weft = Weft::start();
    let Ok(output) = Command::new("python3").args(["-c", script]).env("WEFT_RUN_DIR", weft.run_dir()).output() else {
        eprintln!("there is no python3 here to try the script with");
        return;
    };
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), weft.at("web.sock").to_str().unwrap(), "{output:?}");
    assert_eq!(weft.json(&["port", "show", "web"])["queues"], 2);
}

#[test]
fn vlans_are_given_by_number_and_by_name_and_shown() {
    let weft = Weft::start();
    weft.json(&["network", "add", "lab", "--mode", "private", "--vlans", "tenant-a=100,tenant-b=200", "--default-vlan", "7"]);
    let port = |name: &str, role: &[&str]| weft.json(&[&["port", "add", name, "--network", "lab"], role].concat());
    assert_eq!(port("plain", &[])["vlan"], Value::Null);
    let web = port("web", &["--vlan", "tenant-a"]);
    assert_eq!(
        (&web["vlan"]["role"], &web["vlan"]["vlan"], &web["vlan"]["name"]),
        (&"access".into(), &100.into(), &"tenant-a".into())
    );
    let all = port("all", &["--trunk", "10-12,tenant-a,tenant-b", "--native", "10"]);
    assert_eq!((&all["vlan"]["trunk"], &all["vlan"]["native"]), (&"10-12,100,200".into(), &10.into()));
    port("customer", &["--qinq", "300"]);
    // The first role has made it so.
    let plain = weft.json(&["port", "show", "plain"]);
    assert_eq!((&plain["vlan"]["vlan"], &plain["vlan"]["by_default"]), (&7.into(), &true.into()));
    let shown = weft.run(&["port", "show", "plain"]).stdout;
    assert!(shown.contains("access 7, by default"), "{shown}");
    assert!(weft.run(&["port", "show", "all"]).stdout.contains("trunk 10-12,100,200, native 10"));
    let lines = weft.json(&["network", "show", "lab"])["vlans"].clone();
    let firsts: Vec<_> = lines.as_array().unwrap().iter().map(|line| line["first"].as_u64().unwrap()).collect();
    assert_eq!(firsts, [7, 10, 11, 100, 200, 300]);
    let matrix = weft.run(&["network", "show", "lab"]).stdout;
    let row =
        |start: &str| matrix.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_default().split_whitespace();
    assert_eq!(row("VLAN").collect::<Vec<_>>(), ["VLAN", "NAME", "all", "customer", "plain", "web"]);
    assert_eq!(row("100").collect::<Vec<_>>(), ["100", "tenant-a", "T", "-", "-", "U"]);
    assert_eq!(row("7").collect::<Vec<_>>(), ["7", "(default)", "-", "-", "-", "U", "-"]);
    assert_eq!(row("s300").collect::<Vec<_>>(), ["s300", "-", "-", "U", "-", "-"]);
    // What is shown can be run.
    let config = weft.run(&["config", "show"]).stdout;
    for line in ["vlan = \"tenant-a\"", "trunk = \"10-12,tenant-a,tenant-b\"", "native = 10", "qinq = 300", "default_vlan = 7"] {
        assert!(config.lines().any(|shown| shown == line), "{line} is not in:\n{config}");
    }
}

#[test]
fn protections_are_given_changed_and_shown() {
    let weft = Weft::start();
    let added =
        weft.json(&["port", "add", "tenant", "--mac", "02:00:00:00:00:01", "--untrusted", "--limit-in", "1G", "--isolated"]);
    let protections = &added["protections"];
    assert_eq!((&protections["macs"], &protections["ips"]), (&json!(["02:00:00:00:00:01"]), &json!([])));
    assert_eq!((&protections["allow"], &protections["storm_unknown"]), (&"none".into(), &"1k".into()));
    assert_eq!((&protections["limit_in"], &protections["burst_in"]), (&"1G".into(), &1_250_000.into()));
    assert_eq!((&protections["untrusted"], &protections["isolated"]), (&true.into(), &true.into()));
    let changed = weft.json(&[
        "port",
        "set",
        "tenant",
        "--allow-ip",
        "192.0.2.1,2001:db8::1",
        "--allow-mac",
        "02:00:00:00:00:02",
        "--allow",
        "router",
        "--limit-in",
        "none",
        "--isolated=false",
        "--isolation-group",
        "7",
        "--storm-broadcast",
        "off",
        "--storm-multicast",
        "2MB",
    ]);
    let protections = &changed["protections"];
    assert_eq!(protections["macs"], json!(["02:00:00:00:00:01", "02:00:00:00:00:02"]));
    assert_eq!((&protections["ips"], &protections["allow"]), (&json!(["192.0.2.1", "2001:db8::1"]), &"router".into()));
    assert_eq!((&protections["limit_in"], &protections["isolated"]), (&Value::Null, &false.into()));
    assert_eq!((&protections["isolation_group"], &protections["storm_broadcast"]), (&7.into(), &Value::Null));
    let shown = weft.run(&["port", "show", "tenant"]).stdout;
    for line in [
        "untrusted",
        "MAC locked to 02:00:00:00:00:01, 02:00:00:00:00:02",
        "IP locked to what is leased to it, 192.0.2.1, 2001:db8::1",
        "may be beside a host: router",
        "isolated, but from group 7",
        "multicast at most 2MB a second",
        "unknown at most 1k frames a second",
    ] {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    // What is shown can be run.
    let config = weft.run(&["config", "show"]).stdout;
    for line in ["untrusted = true", "isolation_group = 7", "allow = \"router\"", "storm_multicast = \"2MB\""] {
        assert!(config.lines().any(|shown| shown == line), "{line} is not in:\n{config}");
    }
    weft.json(&["port", "set", "tenant", "--untrusted=false", "--allow-mac", "", "--allow-ip", "", "--isolation-group", "none"]);
    let refused = weft.run(&["port", "set", "tenant", "--allow-ip", "192.0.2.1"]);
    assert!(refused.status == 1 && refused.stderr.contains("give it lock_ip as well"), "{}", refused.stderr);
    let refused = weft.run(&["port", "set", "tenant", "--lock-ip", "--allow-ip", "192.0.2.1,192.0.2.0/24"]);
    assert!(refused.stderr.contains("\"192.0.2.0/24\" is no IP address: write each"), "{}", refused.stderr);
    assert_eq!(weft.run(&["port", "set", "nobody", "--untrusted"]).status, 1);
}

#[test]
fn vlans_that_do_not_go_together_are_refused() {
    let weft = Weft::start();
    for (options, expected) in [
        (&["--vlan", "4095"][..], "there is no VLAN 4095: they have numbers from 1 to 4094"),
        (&["--trunk", "20-10"], "the range 20-10 is the wrong way round: write 10-20"),
        (&["--native", "5"], "--trunk"),
        (&["--vlan", "5", "--qinq", "6"], "cannot be used with"),
        (&["--vlan", "tenant-a"], "which network \"default\" does not have among its vlans; there are: none"),
        (&["--vlan", "5", "--address", "10.77.0.9"], "where the gateway and DHCP of network \"default\" are"),
    ] {
        let outcome = weft.run(&[&["port", "add", "web"], options].concat());
        assert!(outcome.status != 0 && outcome.stderr.contains(expected), "{options:?} gave {}", outcome.stderr);
    }
    assert!(weft.json(&["port", "list"]).as_array().unwrap().iter().all(|port| port["name"] != "web"));
}
