//! Captures, mirrors and traces, as an operator and a client see them.

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::process::{Child, Stdio};

use rustix::fs::{CWD, FileType, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use weft_guest::Guest;

use crate::weft::{PATIENCE, Weft, command, eventually};

const CONFIG: &str = "[networks.default]\nmode = \"private\"\nmulticast = \"flood\"\n[ports.vm1]\n[ports.vm2]\n[ports.ids]\n";
const MAC1: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MAC2: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[0x88, 0xb5]].concat();
    frame.resize(len, 7);
    frame
}

fn plug(weft: &Weft, port: &str) -> Guest {
    let guest = Guest::builder(weft.at(&format!("{port}.sock"))).connect().unwrap();
    eventually("coming up", || weft.json(&["port", "show", port])["state"] == "up");
    guest
}

/// `weft capture`, when it has begun.
fn capture(weft: &Weft, args: &[&str]) -> Child {
    let mut child = command();
    child.arg("--run-dir").arg(weft.run_dir()).arg("capture").args(args);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 5];
    child.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"weft:");
    child
}

/// Blocks of a pcapng file of this machine: type and body.
fn blocks(file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
    let (mut blocks, mut at) = (Vec::new(), 0);
    while at < file.len() {
        let len = word(at + 4) as usize;
        assert_eq!(word(at + len - 4) as usize, len, "the length stands on both sides");
        blocks.push((word(at), file[at + 8..at + len - 4].to_vec()));
        at += len;
    }
    blocks
}

/// Interface, length on the wire and bytes of each frame.
fn frames(file: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let packets = blocks(file).into_iter().filter(|(kind, _)| *kind == 6);
    let word = |body: &[u8], at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
    packets.map(|(_, body)| (word(&body, 0), word(&body, 16), body[20..20 + word(&body, 12) as usize].to_vec())).collect()
}

/// The counters of an interface at the end of a file: isb_ifrecv, isb_ifdrop, isb_filteraccept.
fn statistics(file: &[u8], interface: u32) -> [u64; 3] {
    let is_it = |(kind, body): &(u32, Vec<u8>)| *kind == 5 && body[..4] == interface.to_ne_bytes();
    let (_, body) = blocks(file).into_iter().find(is_it).expect("statistics are there");
    let mut counts = [0; 3];
    let mut at = 12;
    loop {
        let word = |at: usize| u16::from_ne_bytes(body[at..at + 2].try_into().unwrap());
        match word(at) {
            0 => return counts,
            code @ 4..=6 => counts[usize::from(code) - 4] = u64::from_ne_bytes(body[at + 4..at + 12].try_into().unwrap()),
            _ => {}
        }
        at += 4 + usize::from(word(at + 2)).next_multiple_of(4);
    }
}

#[test]
fn a_capture_ends_with_its_limit_or_with_its_reader_and_is_complete() {
    let weft = Weft::start_with_config(CONFIG);
    let (mut a, mut b) = (plug(&weft, "vm1"), plug(&weft, "vm2"));
    let limited = capture(&weft, &["vm1", "vm2", "-w", "-", "--count", "4", "--snaplen", "30"]);
    let path = weft.dir.path().join("out.pcapng");
    let until_told = capture(&weft, &["vm1", "--json", "-w", path.to_str().unwrap(), "-f", "greater 100 and ether proto 0x88b5"]);
    for len in [60, 200] {
        a.send(&frame(MAC2, MAC1, len)).unwrap();
        assert!(b.receive(PATIENCE).unwrap().is_some());
    }
    let output = limited.wait_with_output().unwrap();
    assert!(output.status.success());
    let expected: Vec<_> = [60_u32, 200].iter().flat_map(|len| [(0, *len), (1, *len)]).collect();
    let seen = frames(&output.stdout);
    assert_eq!(
        seen.iter().map(|(interface, len, _)| (*interface, *len)).collect::<Vec<_>>(),
        expected,
        "ports are in order of their names"
    );
    assert!(seen.iter().all(|(.., bytes)| *bytes == frame(MAC2, MAC1, 30)));
    assert_eq!(statistics(&output.stdout, 0), [2, 0, 2]);
    kill_process(Pid::from_raw(until_told.id() as i32).unwrap(), Signal::INT).unwrap();
    let told = until_told.wait_with_output().unwrap();
    let file = std::fs::read(&path).unwrap();
    let said: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!((told.status.success(), said), (true, json!({ "frames": 1, "bytes": file.len() })));
    assert_eq!(frames(&file), [(0, 200, frame(MAC2, MAC1, 200))]);
    assert_eq!(statistics(&file, 0), [2, 0, 1]);
}

#[test]
fn clients_that_are_killed_leave_nothing_behind_and_wrong_questions_are_answered() {
    let weft = Weft::start_with_config(CONFIG);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", weft.json(&["status"])["pid"])).unwrap().count();
    let threads = || std::fs::read_dir(format!("/proc/{}/task", weft.json(&["status"])["pid"])).unwrap().count();
    let before = (descriptors(), threads());
    for _ in 0..20 {
        let mut child = capture(&weft, &["vm1", "-w", "-"]);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    eventually("going back to what was there before", || descriptors() <= before.0 && threads() <= before.1);
    for (args, expected) in [
        (&["nobody", "-w", "-"][..], "port \"nobody\" is not there"),
        (&["-w", "-", "--network", "nowhere"], "network \"nowhere\" is not there"),
        (&["vm1", "-w", "-", "--vlan", "red"], "VLAN red is not among the network's vlans"),
        (&["vm1", "-w", "-", "-f", "tcp[13]"], "is not among the words of a filter"),
        (&["vm1", "-w", "/nowhere/file"], "cannot write to \"/nowhere/file\""),
    ] {
        let mut refused = command();
        let output = refused.arg("--run-dir").arg(weft.run_dir()).arg("capture").args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(expected), "{args:?}: {said}");
    }
}

#[test]
fn a_connection_that_captures_is_for_nothing_else_and_ends_with_weft() {
    let weft = Weft::start_with_config(CONFIG);
    let mut client = weft.connect();
    let answer = client.call("capture.start", &json!({ "ports": ["vm2"] }));
    assert_eq!(answer["result"]["ports"], json!(["vm2"]), "{answer}");
    client.send(r#"{"jsonrpc":"2.0","id":9,"method":"status"}"#);
    // Nor does it count among the clients.
    assert_eq!(weft.json(&["status"])["healthy"], true);
    let (status, _dir) = weft.stop(Signal::TERM);
    assert!(status.success());
    let mut file = Vec::new();
    // Nobody may have read what was asked last; then that is how the connection ends, behind all that came.
    let end = client.stream.read_to_end(&mut file);
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    assert_eq!(blocks(&file).iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [0x0a0d_0d0a, 1, 5]);
    client.stream.get_ref().shutdown(Shutdown::Both).ok();
}

#[test]
fn mirrors_come_and_go_and_are_in_the_configuration() {
    let weft = Weft::start_with_config(CONFIG);
    let (mut a, mut b, mut ids) = (plug(&weft, "vm1"), plug(&weft, "vm2"), plug(&weft, "ids"));
    let file = weft.dir.path().join("mirror.pcapng");
    let path = file.to_str().unwrap();
    weft.run(&["mirror", "add", "watch", "--from", "vm1", "--to", "ids", "--direction", "in"]);
    weft.run(&["mirror", "add", "kept", "--from", "vm1,vm2", "--to", path, "--filter", "ether src 02:00:00:00:00:01"]);
    let sent = frame(MAC2, MAC1, 77);
    a.send(&sent).unwrap();
    assert_eq!(b.receive(PATIENCE).unwrap().as_ref(), Some(&sent));
    assert_eq!(ids.receive(PATIENCE).unwrap().as_ref(), Some(&sent));
    eventually("counting", || {
        let frames: Vec<Value> =
            weft.json(&["mirror", "list"]).as_array().unwrap().iter().map(|line| line["frames"].clone()).collect();
        frames == [2, 1]
    });
    assert!(weft.run(&["mirror", "list"]).stdout.contains("ether src 02:00:00:00:00:01"));
    let shown = weft.json(&["config", "show"]);
    assert_eq!(shown["mirrors"]["watch"], json!({ "from": ["vm1"], "to": "ids", "direction": "in" }));
    ids.send(&frame([0xff; 6], MAC2, 60)).unwrap();
    eventually("dropping", || weft.json(&["port", "show", "ids"])["counters"]["drops"]["monitor_port"] == 1);
    for (args, expected) in [
        (["mirror", "add", "watch", "--from", "vm1", "--to", "ids"], "mirror \"watch\" is there already"),
        (["mirror", "add", "x", "--from", "vm1", "--to", "vm1"], "can't be both ends of it"),
        (["mirror", "add", "x", "--from", "vm9", "--to", "ids"], "there is no port \"vm9\""),
        (["mirror", "add", "x", "--from", "vm1", "--to", "x.pcap"], "as in ./x.pcap"),
        // Whichever comes first by its name, it is the new one that can't be.
        (["mirror", "add", "a", "--from", "vm1", "--to", path], "mirror \"a\" can't be: mirror \"kept\" writes to that file"),
        (["mirror", "add", "x", "--from", "vm1", "--to", path], "mirror \"kept\" writes to that file"),
        (["mirror", "add", "x", "--from", "vm1", "--to", "/nowhere/file"], "cannot open /nowhere/file"),
    ] {
        let said = weft.refused(&args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    weft.run(&["mirror", "remove", "watch"]);
    ids.send(&frame([0xff; 6], [2, 0, 0, 0, 0, 3], 60)).unwrap();
    assert!(a.receive(PATIENCE).unwrap().is_some(), "it is a port like others again");
    // A mirror goes with the last of its ports.
    let said = weft.run(&["port", "remove", "vm1"]).stderr;
    assert!(!said.contains("mirror"), "{said}");
    let said = weft.run(&["port", "remove", "vm2"]).stderr;
    assert!(said.contains("mirror kept went with port vm2"), "{said}");
    assert_eq!(weft.json(&["mirror", "list"]), json!([]));
    eventually("the end of the file", || blocks(&std::fs::read(&file).unwrap()).iter().any(|(kind, _)| *kind == 5));
    let kept = std::fs::read(&file).unwrap();
    // On the way in, on the way out.
    let own: Vec<_> = frames(&kept).into_iter().filter(|(.., bytes)| *bytes == sent).map(|(interface, ..)| interface).collect();
    assert_eq!(own, [0, 1]);
}

#[test]
fn a_mirror_writes_to_files_of_captures_and_waits_for_nobody() {
    let weft = Weft::start_with_config(CONFIG);
    let (pipe, other) = (weft.dir.path().join("pipe"), weft.dir.path().join("other"));
    mknodat(CWD, &pipe, FileType::Fifo, 0o600.into(), 0).unwrap();
    std::fs::write(&other, "something else").unwrap();
    for (file, expected) in [(&pipe, "is not a file"), (&other, "has something else in it")] {
        let said = weft.refused(&["mirror", "add", "x", "--from", "vm1", "--to", file.to_str().unwrap()]);
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(std::fs::read(&other).unwrap(), b"something else");
    assert_eq!(weft.json(&["mirror", "list"]), json!([]));
}

#[test]
fn a_mirror_that_has_ended_is_a_problem() {
    let weft = Weft::start_with_config(CONFIG);
    let (mut a, _b) = (plug(&weft, "vm1"), plug(&weft, "vm2"));
    let file = weft.dir.path().join("small.pcapng");
    weft.run(&["mirror", "add", "small", "--from", "vm1", "--to", file.to_str().unwrap(), "--max-size", "1"]);
    for _ in 0..200 {
        a.send(&frame(MAC2, MAC1, 9000)).unwrap();
    }
    eventually("the end", || weft.json(&["mirror", "list"])[0]["problem"].as_str().is_some_and(|why| why.starts_with("ended: ")));
    assert!(std::fs::metadata(&file).unwrap().len() <= 1 << 20 | 4096);
    let status = weft.run(&["status"]).stdout;
    assert!(status.contains("mirror \"small\": ended: "), "{status}");
    assert!(weft.run(&["mirror", "list"]).stdout.contains("is as large as it may be"));
}

#[test]
fn a_port_that_copies_go_to_says_so_and_whose_guest_is_cut_off() {
    let weft = Weft::start_with_config(CONFIG);
    let _ids = plug(&weft, "ids");
    let said = weft.run(&["mirror", "add", "watch", "--from", "vm1", "--to", "ids"]).stderr;
    assert!(said.contains("a guest is on port ids"), "{said}");
    assert_eq!(weft.json(&["port", "show", "ids"])["monitors"], json!(["watch"]));
    for args in [&["port", "list"][..], &["port", "show", "ids"]] {
        let shown = weft.run(args).stdout;
        assert!(shown.contains("up, monitor: gets copies only"), "{shown}");
    }
    // It is the first mirror that cuts it off, and a port without a guest loses none.
    let quiet = |args: &[&str]| assert!(!weft.run(args).stderr.contains("a guest is on"), "{args:?}");
    quiet(&["mirror", "add", "more", "--from", "vm2", "--to", "ids"]);
    weft.run(&["mirror", "remove", "watch"]);
    weft.run(&["mirror", "remove", "more"]);
    quiet(&["mirror", "add", "back", "--from", "ids", "--to", "vm1"]);
}

#[test]
fn a_capture_that_is_refused_or_ends_early_says_so_and_leaves_files_alone() {
    let weft = Weft::start_with_config(CONFIG);
    let file = weft.dir.path().join("kept.pcapng");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "an earlier one").unwrap();
    for args in [&["capture", "vm9", "-w", path][..], &["capture", "vm1", "-w", path, "--vlan", "red"]] {
        weft.refused(args);
    }
    let both = weft.connect().call("capture.start", &json!({ "ports": ["vm1"], "network": "default" }));
    assert!(both["error"]["message"].as_str().unwrap().contains("and not both"), "{both}");
    assert_eq!(std::fs::read(&file).unwrap(), b"an earlier one");
    let early = capture(&weft, &["vm1", "-w", path]);
    weft.run(&["port", "remove", "vm1"]);
    let output = early.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("its ports are gone"), "{said}");
    assert_eq!(blocks(&std::fs::read(&file).unwrap()).last().map(|(kind, _)| *kind), Some(5));
    let full = capture(&weft, &["vm2", "-w", "/dev/full"]).wait_with_output().unwrap();
    assert!(String::from_utf8(full.stderr).unwrap().contains("cannot write to \"/dev/full\""));
}

#[test]
fn a_trace_says_where_a_frame_would_go_and_why() {
    let weft = Weft::start_with_config(CONFIG);
    let (mut a, mut b) = (plug(&weft, "vm1"), plug(&weft, "vm2"));
    b.send(&frame([0xff; 6], MAC2, 60)).unwrap();
    assert!(a.receive(PATIENCE).unwrap().is_some());
    let text = weft.run(&["trace", "vm1", "--dst", "02:00:00:00:00:02", "--src", "02:00:00:00:00:01"]).stdout;
    for said in ["learn: 02:00:00:00:00:01 is new", "decide: 02:00:00:00:00:02 is behind port vm2", "It goes to port vm2."] {
        assert!(text.contains(said), "{text}");
    }
    let whole = weft.json(&["trace", "vm1", "--frame", "01:80:c2:00:00:00 020000000001 88b5"]);
    assert_eq!((&whole["drops"], &whole["receivers"]), (&json!([{ "port": "vm1", "reason": "link_local" }]), &json!([])));
    assert_eq!(weft.json(&["trace", "vm1", "--udp", "53"])["receivers"], json!([{ "port": "vm2", "tag": null }]));
    assert!(weft.refused(&["trace", "vm1", "--frame", "xy"]).contains("is no hexadecimal digit"));
    for dump in ["0000   ff ff ff ff ff ff 02 00", "00000000: ffff ffff ffff 0200", "00000000  ff ff ff ff ff ff"] {
        assert!(weft.refused(&["trace", "vm1", "--frame", dump]).contains("a dump with offsets"), "{dump}");
    }
    assert!(weft.run(&["trace", "vm1", "--frame", "0000 5e00 0101 0200 0000 0001 88b5"]).stdout.contains("nobody knows where"));
    assert_eq!(weft.json(&["port", "show", "vm1"])["counters"]["from_guest_frames"], 0);
    assert_eq!(weft.json(&["fdb", "list"]).as_array().unwrap().len(), 1);
    weft.run(&["network", "set", "default", "--vlans", "red=10"]);
    weft.run(&["port", "add", "web", "--trunk", "red"]);
    let drops = |vlan| weft.json(&["trace", "web", "--vlan", vlan])["drops"][0]["reason"].clone();
    assert_eq!([drops("red"), drops("11"), drops("4095")], ["no_other_port", "vlan_not_allowed", "reserved_vlan"]);
    assert!(weft.refused(&["trace", "web", "--vlan", "blue"]).contains("VLAN blue is not among"));
    weft.run(&["port", "add", "edge", "--trunk", "red", "--native", "7", "--untrusted", "--allow-ip", "10.1.2.4"]);
    let priority = weft.run(&["trace", "edge", "--vlan", "0", "--src-ip", "10.1.2.3"]).stdout;
    assert!(priority.contains("what is inside, from 10.1.2.3: ip_not_allowed"), "{priority}");
    weft.run(&["port", "set", "edge", "--lock-ip=false"]);
    let priority = weft.run(&["trace", "edge", "--vlan", "0"]).stdout;
    assert!(priority.contains("it belongs to VLAN 7: its tag names none and is taken off"), "{priority}");
    let unknown = weft.run(&["trace", "web", "--tcp", "https"]);
    assert!(unknown.stderr.contains("names are not looked up"), "{}", unknown.stderr);
    let beyond = weft.run(&["trace", "web", "--vlan", "4196"]);
    assert!(beyond.status == 2 && beyond.stderr.contains("a tag names VLANs from 0 to 4095"), "{}", beyond.stderr);
}
