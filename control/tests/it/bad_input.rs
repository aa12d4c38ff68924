//! What can't be done is refused with an error that names the thing and the way out, and nothing is half-applied.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use crate::weft::{Weft, run};

#[test]
fn a_port_that_is_not_there_is_refused_with_those_that_are() {
    let weft = Weft::start();
    for args in [["port", "show", "vm9"].as_slice(), &["port", "remove", "vm9"], &["qemu-args", "vm9"], &["libvirt-xml", "vm9"]] {
        assert_eq!(weft.refused(args), "weft: port \"vm9\" is not there; there are: vm1, vm2\n");
    }
}

#[test]
fn a_network_that_is_not_there_is_refused_with_those_that_are() {
    let weft = Weft::start();
    for args in [
        ["network", "show", "lab"].as_slice(),
        &["network", "remove", "lab"],
        &["fdb", "list", "--network", "lab"],
        &["fdb", "flush", "--network", "lab"],
    ] {
        assert_eq!(weft.refused(args), "weft: network \"lab\" is not there; there are: default\n");
    }
    let message = weft.refused(&["port", "add", "web", "--network", "lab"]);
    assert_eq!(message, "weft: port \"web\" names network \"lab\", which is not there; there are: default\n");
}

#[test]
fn a_name_that_is_taken_is_refused() {
    let weft = Weft::start();
    assert!(weft.refused(&["port", "add", "vm1"]).contains("port \"vm1\" is there already"));
    assert!(weft.refused(&["network", "add", "default"]).contains("network \"default\" is there already"));
}

#[test]
fn a_name_that_is_no_file_name_is_refused() {
    let weft = Weft::start();
    for name in ["../x", "a/b", ".x", "a b", "", "a,b", "ü"] {
        for args in [["port", "add", name], ["network", "add", name]] {
            let ran = weft.run(&args);
            assert_eq!(ran.status, 2, "{name:?} gave {:?}", ran.stdout);
            assert!(ran.stderr.contains("can't be a name") || ran.stderr.contains("value is required"), "{}", ran.stderr);
        }
    }
}

#[test]
fn a_port_named_like_the_control_socket_is_refused() {
    let weft = Weft::start();
    assert!(weft.refused(&["port", "add", "control"]).contains("control socket"));
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let weft = Weft::start();
    let path = format!("/tmp/{}.sock", "x".repeat(110));
    let ran = weft.run(&["port", "add", "web", "--socket", &path]);
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("has 120 bytes; a Unix socket takes at most 107"), "{}", ran.stderr);
}

#[test]
fn a_socket_path_that_is_too_long_below_the_run_directory_is_refused() {
    let weft = Weft::start_with_config("");
    weft.reload(&format!("[ports.web]\nsocket = \"{}\"\n", "x".repeat(107)));
    let log = weft.log();
    assert!(log.contains("cannot add port \"web\"") && log.contains("a Unix socket takes at most"), "{log}");
}

#[test]
fn a_run_directory_whose_sockets_would_be_too_long_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let run_dir = parent.path().join("x".repeat(100));
    let ran = run(&["run", "--run-dir", run_dir.to_str().unwrap()]);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("--run-dir"), "{}", ran.stderr);
}

#[test]
fn a_socket_on_which_somebody_listens_is_refused_and_left_alone() {
    let weft = Weft::start();
    let path = weft.dir.path().join("taken.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let message = weft.refused(&["port", "add", "web", "--socket", path.to_str().unwrap()]);
    assert!(message.contains("already listens") && message.contains("taken.sock"), "{message}");
    assert!(path.exists());
    drop(listener);
}

#[test]
fn a_file_where_the_socket_should_be_is_refused_and_left_alone() {
    let weft = Weft::start();
    let path = weft.dir.path().join("file.sock");
    std::fs::write(&path, "precious").unwrap();
    let message = weft.refused(&["port", "add", "web", "--socket", path.to_str().unwrap()]);
    assert!(message.contains("is not a socket"), "{message}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_socket_in_a_directory_that_is_missing_is_refused() {
    let weft = Weft::start();
    let path = weft.dir.path().join("missing/web.sock");
    let message = weft.refused(&["port", "add", "web", "--socket", path.to_str().unwrap()]);
    let directory = weft.dir.path().join("missing");
    assert!(message.contains("missing/web.sock"), "{message}");
    assert!(message.ends_with(&format!("; create the directory {directory:?} first\n")), "{message}");
    std::fs::create_dir(directory).unwrap();
    weft.json(&["port", "add", "web", "--socket", path.to_str().unwrap()]);
}

#[test]
fn an_address_that_another_guest_of_the_network_has_is_refused() {
    let weft = Weft::start();
    let mac = weft.json(&["port", "show", "vm1"])["mac"].as_str().unwrap().to_owned();
    let message = weft.refused(&["port", "add", "web", "--mac", &mac]);
    assert!(message.contains("the same MAC address") && message.contains("\"vm1\""), "{message}");
}

#[test]
fn a_socket_that_another_port_has_is_refused() {
    let weft = Weft::start();
    let message = weft.refused(&["port", "add", "web", "--socket", weft.at("vm1.sock").to_str().unwrap()]);
    assert!(message.contains("the same socket") && message.contains("\"vm1\""), "{message}");
}

#[test]
fn a_network_with_ports_can_not_be_removed() {
    let weft = Weft::start();
    assert_eq!(
        weft.refused(&["network", "remove", "default"]),
        "weft: network \"default\" still has ports: vm1, vm2; remove them first\n"
    );
}

#[test]
fn values_out_of_range_are_wrong_usage() {
    let weft = Weft::start();
    for args in [
        ["port", "add", "web", "--queues", "17"],
        ["port", "add", "web", "--queues", "0"],
        ["port", "add", "web", "--mac", "ff:ff:ff:ff:ff:ff"],
        ["port", "add", "web", "--mac", "nonsense"],
        ["port", "add", "web", "--socket", ""],
        ["network", "add", "lab", "--mtu", "67"],
        ["network", "add", "lab", "--ageing", "9"],
        ["network", "add", "lab", "--mode", "bridge"],
        ["qemu-args", "vm1", "--memory", "1", "--json"],
    ] {
        let ran = weft.run(&args);
        assert_eq!(ran.status, 2, "{args:?} gave {:?}", ran.stderr);
        assert_ne!(ran.stderr, "");
    }
}

#[test]
fn a_socket_path_that_is_none_is_wrong_usage_and_told_once() {
    for path in ["", "/tmp/", "/tmp/web\n.sock"] {
        let ran = run(&["port", "add", "web", "--socket", path]);
        assert_eq!(ran.status, 2, "{path:?} gave {:?}", ran.stderr);
        assert_eq!(ran.stderr.matches("can't be a socket path").count(), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains("--socket"), "{}", ran.stderr);
    }
}

#[test]
fn a_run_directory_without_its_parent_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let ran = run(&["run", "--run-dir", parent.path().join("a/b").to_str().unwrap()]);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("create that first"), "{}", ran.stderr);
}

#[test]
fn a_run_directory_that_can_not_be_written_is_refused() {
    // Not even root makes directories in /sys.
    let ran = run(&["run", "--run-dir", "/sys/weft-test"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("/sys/weft-test") && ran.stderr.contains("--run-dir"), "{}", ran.stderr);
}

#[test]
fn without_a_switch_a_command_says_where_it_looked() {
    let parent = tempfile::tempdir().unwrap();
    let ran = run(&["--run-dir", parent.path().to_str().unwrap(), "status"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains(parent.path().to_str().unwrap()) && ran.stderr.contains("weft run"), "{}", ran.stderr);
}

#[test]
fn a_run_directory_that_can_not_be_looked_into_is_told_apart_from_a_weft_of_another_user() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::set_permissions(parent.path(), Permissions::from_mode(0o600)).unwrap();
    if parent.path().join(".").exists() {
        eprintln!("root looks into every directory");
        return;
    }
    let ran = run(&["--run-dir", parent.path().join("run").to_str().unwrap(), "status"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("no permission to look into") && ran.stderr.contains("sudo"), "{}", ran.stderr);
}

#[test]
fn a_bad_configuration_file_is_refused_with_line_and_column() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("weft.toml");
    let too_long = format!("[ports.a]\nsocket = \"{}\"\n", "x".repeat(108));
    let cases = [
        ("[ports.a]\nspeed = 1\n", ":2:1: ports.a.speed: there is no key"),
        ("[ports.a]\nqueues = 17\n", ":2:10: ports.a.queues: 17 is out of range"),
        (
            "[ports.a]\nnetwork = \"lab\"\n",
            ":2:11: ports.a.network: port \"a\" names network \"lab\", which is not there; there are: default",
        ),
        ("[networks.n]\nmode = \"bridge\"\n", ":2:8: networks.n.mode: mode \"bridge\" is not there yet"),
        (too_long.as_str(), ":2:10: ports.a.socket: socket path \"xxx"),
        ("[ports.a\n", ":1:9: "),
    ];
    for (text, expected) in cases {
        std::fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap();
        let run_dir = parent.path().join("run");
        for args in [["config", "check", path].as_slice(), &["run", "--config", path, "--run-dir", run_dir.to_str().unwrap()]] {
            let ran = run(args);
            assert_eq!(ran.status, 1, "{text:?} was taken by {args:?}");
            assert!(ran.stderr.contains(&format!("{path}{expected}")), "{}", ran.stderr);
        }
        assert!(!run_dir.exists());
    }
    std::fs::write(&file, "[ports.a]\n").unwrap();
    assert_eq!(run(&["config", "check", file.to_str().unwrap()]).status, 0);
}

#[test]
fn a_bad_file_at_a_reload_changes_nothing() {
    let weft = Weft::start_with_config("[ports.a]\n");
    let before = weft.json(&["config", "show"]);
    weft.reload("[ports.a]\nqueues = 17\n");
    assert_eq!(weft.json(&["config", "show"]), before);
    assert!(weft.log().contains("weft.toml:2:10: ports.a.queues"), "{}", weft.log());
}

#[test]
fn a_reload_that_fails_half_way_is_taken_back() {
    let weft = Weft::start_with_config("[ports.a]\n[ports.b]\n");
    let before = weft.json(&["config", "show"]);
    let file = weft.dir.path().join("file.sock");
    std::fs::write(&file, "").unwrap();
    // Removing "a" and adding "c" work, and then "d" does not.
    weft.reload(&format!("[networks.default]\n[networks.lab]\n[ports.b]\n[ports.c]\n[ports.d]\nsocket = {file:?}\n"));
    assert_eq!(weft.json(&["config", "show"]), before);
    assert!(weft.at("a.sock").exists() && !weft.at("c.sock").exists());
    assert!(weft.log().contains("cannot add port \"d\""), "{}", weft.log());
}
