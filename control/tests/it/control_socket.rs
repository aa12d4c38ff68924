//! Clients of the control socket that behave badly: the switch goes on, and so do the others.

use std::io::{BufRead, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::weft::{Connection, PATIENCE, Weft};

fn assert_serves(weft: &Weft) {
    assert!(weft.connect().call("status", &json!({}))["result"]["healthy"].as_bool().unwrap());
}

#[test]
fn malformed_json_gets_an_error_and_the_connection_goes_on() {
    let weft = Weft::start();
    let mut connection = weft.connect();
    for line in ["{", "\u{0}", "nonsense", "{\"jsonrpc\":"] {
        connection.send(line);
        let answer = connection.receive();
        assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(-32_700), &Value::Null), "{answer}");
    }
    connection.stream.get_mut().write_all(b"\xff\xfe\n").unwrap();
    assert_eq!(connection.receive()["error"]["code"], -32_700);
    assert!(connection.call("port.list", &json!({}))["result"].is_array());
}

#[test]
fn a_request_that_is_too_long_gets_an_error_and_the_connection_ends() {
    let weft = Weft::start();
    let mut connection = weft.connect();
    let long = json!({ "jsonrpc": "2.0", "id": 1, "method": "port.show", "params": { "name": "x".repeat(70_000) } }).to_string();
    connection.send(&long);
    let answer = connection.receive();
    assert_eq!(answer["error"]["code"], -32_003, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("65536"));
    assert!(connection.is_closed());
    assert_serves(&weft);
}

#[test]
fn a_request_of_the_greatest_length_is_taken() {
    let weft = Weft::start();
    let mut connection = weft.connect();
    let request = |padding: usize| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"port.list","x":"{}"}}"#, "x".repeat(padding));
    let padding = 65_535 - request(0).len();
    connection.send(&request(padding));
    assert!(connection.receive()["result"].is_array());
    connection.send(&request(padding + 1));
    assert_eq!(connection.receive()["error"]["code"], -32_003);
}

#[test]
fn an_endless_line_is_cut_off() {
    let weft = Weft::start();
    let mut connection = weft.connect();
    let until = Instant::now() + PATIENCE;
    while connection.stream.get_mut().write_all(&[b'x'; 4096]).is_ok() {
        assert!(Instant::now() < until, "weft reads for ever");
    }
    assert_serves(&weft);
}

#[test]
fn a_client_that_stops_reading_is_dropped() {
    let weft = Weft::start();
    let mut connection = weft.connect();
    let request = json!({ "jsonrpc": "2.0", "id": "x".repeat(60_000), "method": "no.such" }).to_string() + "\n";
    let until = Instant::now() + PATIENCE;
    while connection.stream.get_mut().write_all(request.as_bytes()).is_ok() {
        assert!(Instant::now() < until, "weft keeps answers for ever");
    }
    assert!(weft.log().contains("does not read its answers"), "{}", weft.log());
    assert_serves(&weft);
}

#[test]
fn half_a_line_and_silence_hurt_nobody() {
    let weft = Weft::start();
    let mut half: Vec<Connection> = (0..10).map(|_| weft.connect()).collect();
    for connection in &mut half {
        connection.stream.get_mut().write_all(br#"{"jsonrpc":"2.0","id":1,"#).unwrap();
    }
    assert_serves(&weft);
    for connection in &mut half {
        connection.stream.get_mut().write_all(b"\"method\":\"port.list\"}\n").unwrap();
        assert!(connection.receive()["result"].is_array());
    }
}

#[test]
fn a_client_that_vanishes_in_the_middle_leaves_nothing_behind() {
    let weft = Weft::start();
    // Three times as many as there can be at once: a place that is not given back would be missed.
    for _ in 0..192 {
        let mut connection = weft.connect();
        connection.stream.get_mut().write_all(b"{\"jsonrpc\"").unwrap();
    }
    assert_serves(&weft);
}

#[test]
fn one_client_too_many_is_turned_away_until_another_leaves() {
    let weft = Weft::start();
    let mut clients: Vec<Connection> = (0..64).map(|_| weft.connect()).collect();
    let mut late = weft.connect_silently();
    assert_eq!(late.receive()["error"]["code"], -32_004);
    assert!(late.is_closed());
    assert!(weft.run(&["status"]).stderr.contains("64 clients are connected already"));
    let leaver = clients.pop().unwrap();
    leaver.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    assert!({ leaver }.is_closed());
    assert_serves(&weft);
}

#[test]
fn clients_for_whom_there_is_no_descriptor_are_served_when_there_is_one() {
    let weft = Weft::start();
    weft.limit_descriptors(2);
    let first: Vec<Connection> = (0..2).map(|_| weft.connect()).collect();
    let mut late = weft.connect_silently();
    late.send(r#"{"jsonrpc":"2.0","id":1,"method":"hello","params":{"protocol":1}}"#);
    drop(first);
    assert_eq!(late.receive()["result"]["protocol"], 1);
}

#[test]
fn requests_in_one_piece_are_answered_in_their_order() {
    let weft = Weft::start();
    let mut connection = weft.connect();
    let request = |id: usize| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"port.list\"}}\n");
    let all: String = (0..100).map(request).collect();
    connection.stream.get_mut().write_all(all.as_bytes()).unwrap();
    connection.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    for id in 0..100 {
        assert_eq!(connection.receive()["id"], id);
    }
    assert!(connection.is_closed());
}

#[test]
fn a_flood_of_requests_does_not_hold_up_others() {
    let weft = Weft::start();
    let stream = weft.connect().stream.into_inner();
    let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream.try_clone().unwrap();
    let flood =
        std::thread::spawn(move || while writer.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n").is_ok() {});
    let drain = std::thread::spawn(move || while reader.read_line(&mut String::new()).is_ok_and(|count| count > 0) {});
    let began = Instant::now();
    for _ in 0..20 {
        assert_serves(&weft);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "twenty requests took {:?}", began.elapsed());
    stream.shutdown(Shutdown::Both).unwrap();
    flood.join().unwrap();
    drain.join().unwrap();
}

#[test]
fn a_client_with_another_protocol_version_gets_a_clear_error() {
    let weft = Weft::start();
    let mut connection = weft.connect_silently();
    let answer = connection.call("hello", &json!({ "protocol": 999 }));
    assert_eq!(answer["error"]["code"], -32_001);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("protocol 1") && message.contains("999"), "{message}");
    assert_eq!(connection.call("port.remove", &json!({ "name": "vm1" }))["error"]["code"], -32_002);
    assert!(weft.at("vm1.sock").exists());
}

#[test]
fn refusals_can_be_told_apart_by_programs() {
    let weft = Weft::start();
    let mut connection = weft.connect();
    let mut kind = |method: &str, params: Value| {
        let answer = connection.call(method, &params);
        assert_eq!(answer["error"]["code"], 1, "{answer}");
        answer["error"]["data"]["kind"].as_str().unwrap().to_owned()
    };
    assert_eq!(kind("port.show", json!({ "name": "x" })), "not_there");
    assert_eq!(kind("port.add", json!({ "name": "vm1" })), "exists");
    assert_eq!(kind("network.remove", json!({ "name": "default" })), "in_use");
    assert_eq!(kind("port.add", json!({ "name": "x", "settings": { "network": "x" } })), "conflict");
    assert_eq!(kind("port.add", json!({ "name": "x", "settings": { "socket": "/nowhere/x.sock" } })), "failed");
}

#[test]
fn a_notification_is_carried_out_without_an_answer() {
    let weft = Weft::start();
    let mut connection = weft.connect();
    connection.send(r#"{"jsonrpc":"2.0","method":"port.add","params":{"name":"web"}}"#);
    let answer = connection.call("port.show", &json!({ "name": "web" }));
    assert_eq!(answer["result"]["name"], "web", "the first answer belongs to the second request: {answer}");
}
