//! Whether a change outlives weft, and who hears of it when it does not.

use rustix::process::Signal;
use serde_json::json;

use crate::weft::Weft;

#[test]
fn a_change_that_cannot_be_kept_is_made_and_everybody_hears_of_it() {
    let weft = Weft::start();
    // In the way of the file, even for root.
    let file = weft.at("state/config.toml");
    std::fs::create_dir(&file).unwrap();
    let ran = weft.run(&["port", "add", "web"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("Port web is there"), "{}", ran.stdout);
    assert!(ran.stderr.contains("not kept") && ran.stderr.contains("--state-dir"), "{}", ran.stderr);
    assert!(weft.run(&["--json", "port", "remove", "vm2"]).stderr.contains("not kept"), "programs hear of it, too");
    let status = weft.json(&["status"]);
    assert!(status["problems"][0].as_str().unwrap().contains("--state-dir"), "{status}");
    assert!(weft.run(&["status"]).stdout.contains("--state-dir"));
    let answer = weft.connect().call("port.add", &json!({ "name": "db" }));
    assert_eq!((&answer["result"]["name"], &answer["warnings"][0]["kind"]), (&json!("db"), &json!("not_kept")), "{answer}");

    std::fs::remove_dir(&file).unwrap();
    weft.wait_for_log("is kept for the next start by now");
    assert_eq!(weft.json(&["status"])["problems"], json!([]));
    let (_, dir) = weft.stop(Signal::TERM);
    let weft = Weft::start_in(dir, &[]);
    assert_eq!(weft.json(&["port", "show", "web"])["name"], "web");
}

#[test]
fn a_change_that_the_configuration_file_does_not_have_is_said_to_go_with_the_next_reload() {
    let config = "[ports.vm1]\n";
    let weft = Weft::start_with_config(config);
    let ran = weft.run(&["port", "add", "web"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("weft.toml") && ran.stderr.contains("weft config show"), "{}", ran.stderr);
    assert_eq!(weft.run(&["port", "list"]).stderr, "", "who only looks has changed nothing");
    let answer = weft.connect().call("port.remove", &json!({ "name": "web" }));
    assert_eq!(answer["warnings"][0]["kind"], "until_restart", "{answer}");
    // A reload is no change of anybody's.
    weft.reload(&format!("{config}[ports.vm2]\n"));
    assert_eq!(weft.connect().call("port.list", &json!({})).get("warnings"), None);
}

#[test]
fn a_reload_that_was_of_no_use_is_in_the_status_until_one_is() {
    let weft = Weft::start_with_config("[ports.vm1]\n");
    assert_eq!(weft.json(&["status"])["problems"], json!([]));
    weft.reload("[ports.vm1]\nqueues = 17\n");
    let problem = weft.json(&["status"])["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("weft.toml:2:10: ports.vm1.queues: 17 is out of range"), "{problem}");
    assert!(weft.run(&["status"]).stdout.contains("17 is out of range"));
    weft.reload("[workers]\ncount = 2\n");
    let problem = weft.json(&["status"])["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("takes a restart"), "{problem}");
    weft.reload("[ports.vm1]\nqueues = 2\n");
    assert_eq!(weft.json(&["status"])["problems"], json!([]));
}

#[test]
fn a_subnet_that_weft_has_chosen_stays_when_another_network_is_to_have_the_same() {
    let weft = Weft::start();
    let chosen = weft.json(&["network", "show", "default"])["subnet"].as_str().unwrap().to_owned();
    weft.run(&["network", "add", "lab", "--subnet", &chosen]);
    let (_, dir) = weft.stop(Signal::TERM);
    let weft = Weft::start_in(dir, &[]);
    for network in ["default", "lab"] {
        assert_eq!(weft.json(&["network", "show", network])["subnet"], chosen, "{network}");
    }
}
