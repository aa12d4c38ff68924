//! The configuration file: TOML in, a checked [`Config`] or an error with file, line, column and key out.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use crate::config::Config;
use crate::host::Host;
use crate::wording::plain;

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("cannot read the configuration file {file:?}: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {key}{message}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
        /// The key and `: `, or nothing where there is none.
        key: String,
        /// What is wrong, and what to do.
        message: String,
    },
}

/// Reads a configuration file for `host`.
///
/// # Errors
/// When the file can't be read, is not what a configuration file is, or its declarations don't go together.
pub fn read(file: &Path, host: &Host) -> Result<Config, FileError> {
    let text = std::fs::read_to_string(file).map_err(|source| FileError::Read { file: file.to_owned(), source })?;
    parse(&text, file, host)
}

/// Parses the text of a configuration file; `file` is for messages only.
///
/// # Errors
/// When the text is not what a configuration file is, or its declarations don't go together.
pub fn parse(text: &str, file: &Path, host: &Host) -> Result<Config, FileError> {
    let at = |span: Range<usize>, key: String, message: &str| {
        let (line, column) = position(text, span.start);
        let key = if key.is_empty() { key } else { format!("{key}: ") };
        FileError::Content { file: file.to_owned(), line, column, key, message: plain(message).replace('\n', "; ") }
    };
    let document = DeTable::parse(text).map_err(|error| at(error.span().unwrap_or_default(), String::new(), error.message()))?;
    let config = Config::deserialize(toml::Deserializer::from(document.clone())).map_err(|error| {
        let span = error.span().unwrap_or_default();
        at(span.clone(), key_at(document.get_ref(), span.start), error.message())
    })?;
    let config = config.with_default_network();
    config.check(host).map_err(|conflict| {
        let key = conflict.key();
        at(span_of(document.get_ref(), &key), key.join(".").trim_end_matches('.').to_owned(), &conflict.to_string())
    })?;
    Ok(config)
}

/// Line and column of a byte of the text, both counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The dotted key whose name or value begins at `offset`, or that of the innermost table around it.
fn key_at(table: &DeTable<'_>, offset: usize) -> String {
    for (key, value) in table {
        if key.span().contains(&offset) || value.span().contains(&offset) || nested_contains(value.get_ref(), offset) {
            let inner = value.get_ref().as_table().map(|table| key_at(table, offset)).unwrap_or_default();
            return if inner.is_empty() { key.get_ref().to_string() } else { format!("{}.{inner}", key.get_ref()) };
        }
    }
    String::new()
}

/// The span of a table covers its header only, so what is inside has to be asked.
fn nested_contains(value: &DeValue<'_>, offset: usize) -> bool {
    value.as_table().is_some_and(|table| !key_at(table, offset).is_empty())
}

/// Where a key's value is, or that of the innermost part of the key that is there.
fn span_of(table: &DeTable<'_>, key: &[&str]) -> Range<usize> {
    let Some((first, rest)) = key.split_first() else { return 0..0 };
    let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == first) else {
        return 0..0;
    };
    let deeper = value.get_ref().as_table().map_or(0..0, |table| span_of(table, rest));
    match deeper {
        Range { start: 0, .. } if value.get_ref().is_table() => name.span(),
        Range { start: 0, .. } => value.span(),
        inner => inner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Config, String> {
        let host = Host::new(Path::new("/run/weft"), "test");
        parse(text, Path::new("weft.toml"), &host).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_can_be_said() {
        let text = r#"
            [workers]
            count = 4
            cpus = "2-5"
            polling = "always"

            [networks.lab]
            mode = "private"
            ageing_seconds = 60
            fdb_capacity = 1024
            mtu = 9000

            [networks.office]
            mode = "nat"
            subnet = "10.78.0.0/16"
            gateway = "10.78.0.254"
            dhcp = "10.78.1.0-10.78.1.255"
            lease_seconds = 3600
            dns = "192.0.2.1,192.0.2.2:5353"
            domain = "office.example"
            leases = [
                { address = "10.78.0.9", mac = "02:00:00:00:00:09", hostname = "printer" },
                { address = "10.78.0.10", client_id = "ff:00:01" },
            ]

            [ports.db]
            network = "office"
            address = "10.78.0.8"

            [ports.web]
            network = "lab"
            socket = "/run/vm/web.sock"
            client = true
            queues = 4
            mac = "02:00:00:00:00:01"
        "#;
        let config = parse_text(text).unwrap();
        let again = parse_text(&toml::to_string_pretty(&config).unwrap()).unwrap();
        assert_eq!(config, again, "what is shown can be read back");
        assert_eq!(config.networks.len(), 2);
        assert_eq!(config.ports.len(), 2);
        assert_eq!(config.workers.settings().cpus, [2, 3, 4, 5]);
    }

    #[test]
    fn a_file_that_declares_no_network_has_the_default_one_and_no_ports_of_its_own() {
        let config = parse_text("").unwrap();
        assert!(config.ports.is_empty());
        assert!(parse_text("[ports.a]").unwrap().networks.contains_key(&"default".parse().unwrap()));
    }

    #[test]
    fn errors_say_where_what_and_what_to_do() {
        let cases = [
            (
                "[ports.a]\nspeed = 1\n",
                "weft.toml:2:1: ports.a.speed: there is no key \"speed\" here (those that there are: network, socket,",
            ),
            (
                "nonsense = 1\n",
                "weft.toml:1:1: nonsense: there is no key \"nonsense\" here (those that there are: workers, networks, ports, mirrors)",
            ),
            (
                "[ports.a]\n  queues = 17\n",
                "weft.toml:2:12: ports.a.queues: 17 is out of range: give a whole number from 1 to 16",
            ),
            (
                "ports.a.queues = \"x\"\n",
                "weft.toml:1:18: ports.a.queues: the text \"x\" can't stand here: give a whole number from 1 to 16",
            ),
            ("[ports.\"a/b\"]\n", "weft.toml:1:8: ports.a/b: \"a/b\" can't be a name"),
            ("[networks.n]\nmode = \"bridge\"\n", "weft.toml:2:8: networks.n.mode: mode \"bridge\" is not there yet"),
            (
                "[networks.n]\nsubnet = \"10.77.0.1/24\"\n",
                "weft.toml:2:10: networks.n.subnet: 10.77.0.1/24 is not the first address of its subnet: write 10.77.0.0/24",
            ),
            (
                "[networks.n]\nsubnet = \"10.77.0.0/24\"\ngateway = \"10.78.0.1\"\n",
                "weft.toml:3:11: networks.n.gateway: network \"n\": the gateway's address 10.78.0.1 is not the address of a host",
            ),
            ("[networks.n]\ndhcp = \"10.77.0.9\"\n", "weft.toml:2:8: networks.n.dhcp: \"10.77.0.9\" is not a range of addresses"),
            (
                "[networks.n]\nmtu = 9000\ndhcp = \"10.77.0.9-10.77.0.19\"\n",
                "weft.toml:1:11: networks.n.subnet: network \"n\" has a range for DHCP, but no subnet: give it one",
            ),
            ("[networks.n]\ndns = \"dns.example\"\n", "weft.toml:2:7: networks.n.dns: \"dns.example\" names no DNS servers"),
            (
                "[networks.n]\nleases = [{ address = \"10.77.0.9\" }]\n",
                "weft.toml:2:10: networks.n.leases: an address is kept for one client: give either a MAC address or",
            ),
            ("[networks.n]\nmtu = 67\n", "weft.toml:2:7: networks.n.mtu: 67 is out of range"),
            (
                "[ports.a]\nmac = \"ff:ff:ff:ff:ff:ff\"\n",
                "weft.toml:2:7: ports.a.mac: ff:ff:ff:ff:ff:ff can't be a guest's address",
            ),
            (
                "# é\n[ports.a]\nnetwork = \"b\"\n",
                "weft.toml:3:11: ports.a.network: port \"a\" names network \"b\", which is not there",
            ),
            (
                "[networks.b]\n[ports.a]\n",
                "weft.toml:2:8: ports.a.network: port \"a\" names network \"default\", which is not there",
            ),
            ("[ports.a\n", "weft.toml:1:9: "),
            ("[ports.a]\n[ports.a]\n", "weft.toml:2:8: "),
            (
                "[ports.b]\nsocket = \"a.sock\"\n[ports.a]\n",
                "weft.toml:2:10: ports.b.socket: ports \"a\" and \"b\" have the same socket",
            ),
            ("[workers]\ncount = 65\n", "weft.toml:2:9: workers.count: 65 is out of range: give a whole number from 1 to 64"),
            ("[workers]\ncpus = \"5-2\"\n", "weft.toml:2:8: workers.cpus: the range 5-2 is the wrong way round: write 2-5"),
            (
                "[workers]\ncpus = 2\n",
                "weft.toml:2:8: workers.cpus: the number 2 can't stand here: give processors in quotes, as in \"2,3\"",
            ),
            ("[workers]\ncpus = [2, 3]\n", "weft.toml:2:8: workers.cpus: a list can't stand here: give processors in quotes"),
            (
                "[workers]\npolling = \"on\"\n",
                "weft.toml:2:11: workers.polling: \"on\" is no polling mode; there are: adaptive, always, never",
            ),
            ("[ports.control]\n", "weft.toml:1:8: ports.control.socket: the socket of port \"control\" would be"),
        ];
        for (text, expected) in cases {
            let message = parse_text(text).unwrap_err();
            assert!(message.starts_with(expected), "{text:?} gave\n  {message}\nexpected\n  {expected}");
            assert!(!message.contains('\n'), "{message:?} has several lines");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let host = Host::new(Path::new("/run/weft"), "test");
        let message = read(Path::new("/nowhere/weft.toml"), &host).unwrap_err().to_string();
        assert!(message.contains("/nowhere/weft.toml"), "{message}");
    }
}
