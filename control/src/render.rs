//! Answers as tables for people. Programs get JSON, which does not come through here.

mod mirrors;
mod multicast;
mod ways;

use std::fmt::Display;

use comfy_table::{Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, presets};

pub(crate) use self::mirrors::mirrors;
pub(crate) use self::multicast::multicast;
pub(crate) use self::ways::{forwards, mappings, nat};
use crate::api::{
    Counters, DhcpInfo, DnsInfo, FdbLine, LeaseLine, LineInfo, NetworkInfo, PortInfo, ProtectionInfo, StationInfo, Stats, Status,
    VlanCounterLine, VlanLine, VlanRole, WorkerInfo,
};
use crate::fdb::{AtMaxMacs, FdbFull};
use crate::multicast::MulticastMode;
use crate::vlans::DEFAULT_VLAN;

/// Colours are for terminals, and not for people who said no (no-color.org).
pub(crate) fn wants_colours(is_terminal: bool) -> bool {
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A number of things: `1 port`, `2 ports`.
pub(crate) fn counted<N: Copy + Display + From<u8> + PartialEq>(number: N, thing: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// How tables are drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// With colours.
    pub(crate) colours: bool,
    /// Long values are wrapped to the width of the terminal; else a line stays a line, for `grep` and the like.
    pub(crate) wrapped: bool,
}

pub(crate) fn ports(style: Style, ports: &[PortInfo]) -> String {
    if ports.is_empty() {
        return "There are no ports. Add one with: weft port add NAME\n".to_owned();
    }
    let mut table = table(style, &["PORT", "NETWORK", "STATE", "MAC", "QUEUES", "SOCKET"]);
    for port in ports {
        table.add_row([
            Cell::new(&port.name),
            Cell::new(&port.network),
            state_cell(style, &state(port)),
            Cell::new(port.mac),
            number(port.queues),
            Cell::new(port.socket.display()),
        ]);
    }
    finish(&table)
}

/// Where a port stands, and why it does nothing there.
fn state(port: &PortInfo) -> String {
    match (&port.loop_with, port.monitors.is_empty()) {
        (Some(other), _) => format!("{}, paused: in a loop with {other}", port.state),
        (None, false) => format!("{}, monitor: gets copies only", port.state),
        (None, true) => port.state.clone(),
    }
}

pub(crate) fn port(style: Style, port: &PortInfo) -> String {
    let rings = port.rings.iter().map(|ring| {
        let direction = if ring.index % 2 == 0 { "to guest" } else { "from guest" };
        let disabled = if ring.enabled { "" } else { ", disabled" };
        format!("{} ({direction}): {}{disabled}", ring.index, counted(ring.size, "descriptor"))
    });
    let mut rows = vec![
        ("Port", port.name.to_string()),
        ("Network", port.network.to_string()),
        ("VLAN", port.vlan.as_ref().map_or_else(|| "none, tags are carried as they are".to_owned(), vlan_role)),
        ("Protections", or_none(protections(&port.protections).join("\n"))),
        ("Lines", or_none(lines(&port.lines).join("\n"))),
        ("State", state(port)),
        ("Socket", format!("{} ({} listens)", port.socket.display(), if port.client { "the guest" } else { "weft" })),
        ("MAC", port.mac.to_string()),
        ("MTU", port.mtu.to_string()),
        ("Queues", port.queues.to_string()),
        ("MAC addresses", stations(&port.stations)),
        ("Connections", port.connections.to_string()),
        ("Features", or_none(port.features.join(", "))),
        ("Rings", or_none(rings.collect::<Vec<_>>().join("\n"))),
    ];
    rows.extend(port.guest_mtu.map(|mtu| ("Guest's MTU", mtu.to_string())));
    let ago = port.last_stop_seconds.map(|seconds| format!(", {} ago", duration(seconds))).unwrap_or_default();
    rows.extend(port.last_stop.as_ref().map(|reason| ("Last stop", format!("{reason}{ago}"))));
    rows.extend(counter_rows(&port.counters));
    pairs(style, rows)
}

pub(crate) fn networks(style: Style, networks: &[NetworkInfo]) -> String {
    if networks.is_empty() {
        return "There are no networks. Add one with: weft network add NAME\n".to_owned();
    }
    let mut table = table(style, &["NETWORK", "MODE", "SUBNET", "PORTS", "MACS", "AGEING", "MTU"]);
    for network in networks {
        table.add_row([
            Cell::new(&network.name),
            Cell::new(network.mode),
            Cell::new(network.subnet.as_deref().unwrap_or("-")),
            number(network.ports.len()),
            number(network.fdb_entries),
            Cell::new(format!("{} s", network.ageing_seconds)).set_alignment(CellAlignment::Right),
            number(network.mtu),
        ]);
    }
    finish(&table)
}

pub(crate) fn network(style: Style, network: &NetworkInfo) -> String {
    let ports = network.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let fdb = &network.fdb;
    let mut rows = vec![("Network", network.name.to_string()), ("Mode", network.mode.to_string()), ("Ports", or_none(ports))];
    rows.extend(network.subnet.clone().map(|subnet| ("Subnet", subnet)));
    if let (Some(address), Some(mac)) = (network.gateway, network.gateway_mac) {
        rows.push(("Gateway", format!("{address} ({mac})")));
        rows.push(("DHCP", network.dhcp.as_ref().map_or_else(|| "off".to_owned(), dhcp)));
        rows.push(("DNS", network.dns.as_ref().map_or_else(|| "off".to_owned(), dns)));
        rows.push(("Host access", if network.host_access { "on" } else { "off" }.to_owned()));
    }
    rows.extend([
        ("MTU", network.mtu.to_string()),
        ("Multicast", multicast_mode(network)),
        ("Ageing", format!("{} s", network.ageing_seconds)),
        ("MAC addresses", mac_addresses(network)),
        ("Learned", fdb.learned.to_string()),
        ("Moved", fdb.moved.to_string()),
        ("Evicted", fdb.evicted.to_string()),
        ("Expired", fdb.expired.to_string()),
        (
            "Not learned",
            format!("{} frames from stations without room, {} with a static entry's address", fdb.refused, fdb.claimed),
        ),
        ("Held", format!("{}, for moving too often", counted_times(fdb.flapped))),
    ]);
    let is_usual = network.default_vlan == DEFAULT_VLAN && network.vlan_names.is_empty();
    if !is_usual {
        rows.push(("Default VLAN", network.default_vlan.to_string()));
        rows.push(("Names of VLANs", or_none(network.vlan_names.to_string())));
    }
    let text = pairs(style, rows);
    if network.vlans.is_empty() {
        return text;
    }
    let counters = if network.vlan_counters.is_empty() {
        String::new()
    } else {
        format!("\nWhat has come into them:\n{}", vlan_counters(style, &network.vlan_counters))
    };
    format!("{text}\n{}{counters}", vlans(style, &network.vlans))
}

/// To whom frames for groups go, and who asks.
fn multicast_mode(network: &NetworkInfo) -> String {
    let mode = network.multicast.name();
    if network.multicast == MulticastMode::Flood {
        return mode.to_owned();
    }
    let asks = match network.querier {
        true => format!("asks every {} s", network.query_interval_seconds),
        false => "does not ask".to_owned(),
    };
    format!("{mode}, {asks}{}", if network.fast_leave { ", fast leave" } else { "" })
}

fn mac_addresses(network: &NetworkInfo) -> String {
    let fixed = if network.fdb_static > 0 { format!(", and {} static", network.fdb_static) } else { String::new() };
    let full = if network.fdb_full == FdbFull::Evict { String::new() } else { format!(", then {}", network.fdb_full.name()) };
    format!("{} of {}{full}{fixed}", network.fdb_entries, network.fdb_capacity)
}

fn counted_times(times: u64) -> String {
    if times == 1 { "once".to_owned() } else { format!("{times} times") }
}

/// How many stations are behind a port, and may be.
fn stations(info: &StationInfo) -> String {
    let StationInfo { count, max, at_max, moved, refused } = info;
    let others = match at_max {
        Some(AtMaxMacs::Drop) => ", others are dropped",
        Some(AtMaxMacs::Forward) => ", others are not learned",
        None => "",
    };
    let max = max.map(|max| format!(" of at most {max}{others} ({refused} frames)")).unwrap_or_default();
    let moved = if *moved > 0 { format!(", {moved} came from other ports") } else { String::new() };
    format!("{count}{max}{moved}")
}

/// What a port's guest may send, a line for each of what is limited.
fn protections(info: &ProtectionInfo) -> Vec<String> {
    let ProtectionInfo { untrusted, macs, ips, allow, isolated, isolation_group, .. } = info;
    let mut lines = Vec::new();
    lines.extend(untrusted.then(|| "untrusted".to_owned()));
    let joined = |parts: Vec<String>| parts.join(", ");
    lines.extend(macs.as_ref().map(|macs| format!("MAC locked to {}", joined(macs.iter().map(ToString::to_string).collect()))));
    lines.extend(ips.as_ref().map(|ips| {
        let leased = std::iter::once("what is leased to it".to_owned());
        format!("IP locked to {}", joined(leased.chain(ips.iter().map(ToString::to_string)).collect()))
    }));
    lines.extend((!allow.is_all()).then(|| format!("may be beside a host: {allow}")));
    lines.extend(isolated.then(|| "isolated".to_owned()));
    lines.extend(isolation_group.map(|group| format!("isolated, but from group {group}")));
    let storms = [("broadcast", info.storm_broadcast), ("multicast", info.storm_multicast), ("unknown", info.storm_unknown)];
    lines.extend(storms.into_iter().filter_map(|(what, rate)| {
        let unit = if matches!(rate?, crate::protections::StormRate::Frames(_)) { " frames" } else { "" };
        Some(format!("{what} at most {}{unit} a second", rate?))
    }));
    let burst = info.burst_in.unwrap_or_default();
    lines.extend(info.limit_in.map(|rate| format!("at most {rate} bits a second, bursts of {burst} bytes")));
    lines
}

/// What is between the switch and a port's guest, a line for each of it.
fn lines(info: &LineInfo) -> Vec<String> {
    let LineInfo { limit_out, burst_out, queue_out, impair_in, impair_out } = info;
    let mut lines = Vec::new();
    lines.extend(limit_out.zip(*queue_out).map(|(rate, queue)| {
        let burst = burst_out.unwrap_or_default();
        format!("to guest: {rate} bits a second, bursts of {burst} bytes, waiting {queue} at most")
    }));
    lines.extend(impair_out.map(|impair| format!("to guest: {impair}")));
    lines.extend(impair_in.map(|impair| format!("from guest: {impair}")));
    lines
}

/// What a port is to VLANs: `access 100 (tenant-a)`.
fn vlan_role(role: &VlanRole) -> String {
    let VlanRole { role, vlan, name, trunk, native, by_default } = role;
    let vlan = vlan.map(|vlan| format!(" {vlan}")).unwrap_or_default();
    let name = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let trunk = trunk.as_ref().map(|vlans| format!(" {}", or_none(vlans.clone()))).unwrap_or_default();
    let native = native.map(|native| format!(", native {native}")).unwrap_or_default();
    let by_default = if *by_default { ", by default" } else { "" };
    format!("{role}{vlan}{name}{trunk}{native}{by_default}")
}

/// Who is a member of which VLAN: `U` without a tag, `T` with one.
fn vlans(style: Style, lines: &[VlanLine]) -> String {
    let ports: std::collections::BTreeSet<_> = lines.iter().flat_map(|line| line.untagged.iter().chain(&line.tagged)).collect();
    let header = ["VLAN", "NAME"].into_iter().map(str::to_owned).chain(ports.iter().map(ToString::to_string));
    let mut table = table(style, &header.collect::<Vec<_>>());
    for line in lines {
        let kind = if line.service { "s" } else { "" };
        let numbers = if line.first == line.last { line.first.to_string() } else { format!("{}-{}", line.first, line.last) };
        let default = if line.default { " (default)" } else { "" };
        let mut cells = vec![Cell::new(format!("{kind}{numbers}{default}")), Cell::new(line.name.as_deref().unwrap_or("-"))];
        cells.extend(ports.iter().map(|port| match (line.untagged.contains(port), line.tagged.contains(port)) {
            (true, _) => Cell::new("U"),
            (false, true) => Cell::new("T"),
            (false, false) => Cell::new("-"),
        }));
        table.add_row(cells);
    }
    format!("{}U: member, without a tag. T: member, with a tag. s: a service VLAN (802.1ad).\n", finish(&table))
}

/// What has come into VLANs.
fn vlan_counters(style: Style, lines: &[VlanCounterLine]) -> String {
    let mut table = table(style, &["VLAN", "NAME", "FRAMES", "BYTES", "MULTICAST", "BROADCAST"]);
    for line in lines {
        let kind = if line.service { "s" } else { "" };
        let mut cells = vec![Cell::new(format!("{kind}{}", line.vlan)), Cell::new(line.name.as_deref().unwrap_or("-"))];
        cells.extend([line.frames, line.bytes, line.multicast, line.broadcast].map(number));
        table.add_row(cells);
    }
    finish(&table)
}

fn dhcp(info: &DhcpInfo) -> String {
    let counters = happened(&info.counters);
    format!("{}, {} free, for {}{counters}", info.range, info.free, duration(info.lease_seconds))
}

fn dns(info: &DnsInfo) -> String {
    let servers = or_none(info.servers.join(", "));
    let count = |name| info.counters.get(name).copied().unwrap_or_default();
    let (asked, failed) = (count("attempts"), count("upstream_failures"));
    // Now and then one is lost.
    let silent = if failed > asked / 2 { format!(" ({failed} of {asked} questions without an answer)") } else { String::new() };
    format!("{}, asks {servers}{silent}, {} kept{}", info.domain, counted(info.cached, "answer"), happened(&info.counters))
}

/// What is not zero, each on a line of its own.
fn happened(counters: &std::collections::BTreeMap<String, u64>) -> String {
    counters.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("\n{name}: {count}")).collect()
}

pub(crate) fn leases(style: Style, lines: &[LeaseLine]) -> String {
    if lines.is_empty() {
        return "No address is leased.\n".to_owned();
    }
    let mut table = table(style, &["NETWORK", "ADDRESS", "STATE", "CLIENT", "PORT", "HOSTNAME", "ENDS IN"]);
    for line in lines {
        let text = |text: &Option<String>| Cell::new(text.as_deref().unwrap_or("-"));
        let state = match &line.kept_for {
            Some(other) => format!("{}, kept for {other}", line.state),
            None if line.fixed && line.state == "leased" => "leased, fixed".to_owned(),
            None => line.state.clone(),
        };
        table.add_row([
            Cell::new(&line.network),
            Cell::new(line.address),
            Cell::new(state),
            text(&line.client),
            text(&line.port),
            text(&line.hostname),
            number(line.seconds_left.map_or_else(|| "-".to_owned(), duration)),
        ]);
    }
    finish(&table)
}

pub(crate) fn fdb(style: Style, lines: &[FdbLine]) -> String {
    if lines.is_empty() {
        return "No MAC address has been learned yet.\n".to_owned();
    }
    let mut table = table(style, &["NETWORK", "VLAN", "MAC", "PORT", "KIND", "AGE", "MOVES"]);
    for line in lines {
        let age = number(line.age_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s")));
        let held = line.held_seconds.map(|seconds| format!(", held for {seconds} s")).unwrap_or_default();
        let kind = Cell::new(format!("{}{held}", line.kind));
        let vlan = number(line.vlan.as_deref().unwrap_or("-"));
        let (mac, port) = (Cell::new(line.mac), Cell::new(&line.port));
        table.add_row([Cell::new(&line.network), vlan, mac, port, kind, age, number(line.moves)]);
    }
    finish(&table)
}

pub(crate) fn status(style: Style, status: &Status) -> String {
    let config = match (&status.config_file, &status.saved_file) {
        (Some(file), _) => file.display().to_string(),
        (None, Some(file)) => format!("built in; changes are kept in {}", file.display()),
        (None, None) => "built in".to_owned(),
    };
    let networks = status
        .networks
        .iter()
        .map(|network| format!("{} ({}, {})", network.name, network.mode, counted(network.ports.len(), "port")));
    let whole = pairs(
        style,
        vec![
            ("weft", format!("{} (process {})", status.version, status.pid)),
            ("Health", health(status)),
            ("Running for", duration(status.uptime_seconds)),
            ("Run directory", status.run_dir.display().to_string()),
            ("Configuration", config),
            ("Ports", format!("{}, {} of them up", status.ports, status.ports_up)),
            ("Networks", or_none(networks.collect::<Vec<_>>().join("\n"))),
        ],
    );
    format!("{whole}\n{}", workers(style, &status.workers, None))
}

fn health(status: &Status) -> String {
    let worker = (!status.healthy).then_some("bad: a worker has died, see the log");
    let problems: Vec<_> = worker.into_iter().chain(status.problems.iter().map(String::as_str)).collect();
    if problems.is_empty() { "good".to_owned() } else { problems.join("\n") }
}

/// Totals since the ports were added and the workers started; with `before`, what passed per second since then.
pub(crate) fn stats(style: Style, now: &Stats, before: Option<&Stats>) -> String {
    let elapsed_ms = before.map_or(1000, |before| now.uptime_ms.saturating_sub(before.uptime_ms).max(1));
    let ports = port_stats(style, now, before, elapsed_ms);
    // Before there were workers to be told of, there was one.
    if now.workers.is_empty() {
        return ports;
    }
    format!("{ports}\n{}", workers(style, &now.workers, before.map(|before| (before.workers.as_slice(), elapsed_ms))))
}

fn port_stats(style: Style, now: &Stats, before: Option<&Stats>, elapsed_ms: u64) -> String {
    let unit = if before.is_some() { "/s" } else { "" };
    let header = ["PORT", "NETWORK", "FROM GUEST frames", "bytes", "TO GUEST frames", "bytes", "DROPS"];
    let header =
        header.map(|title| if title.ends_with("s") || title == "DROPS" { format!("{title}{unit}") } else { title.to_owned() });
    let mut table = table(style, &header);
    for port in &now.ports {
        let old = before.and_then(|before| before.ports.iter().find(|old| old.name == port.name));
        // A port that was removed and added began at zero again.
        let rate = |of: fn(&Counters) -> u64| {
            per_second(of(&port.counters).saturating_sub(old.map_or(0, |old| of(&old.counters))), elapsed_ms)
        };
        table.add_row([
            Cell::new(&port.name),
            Cell::new(&port.network),
            number(rate(|counters| counters.from_guest_frames)),
            number(rate(|counters| counters.from_guest_bytes)),
            number(rate(|counters| counters.to_guest_frames)),
            number(rate(|counters| counters.to_guest_bytes)),
            number(rate(|counters| counters.drops.values().sum())),
        ]);
    }
    finish(&table)
}

/// Totals since the workers started; with `before` and how long ago that was, what they did since then.
fn workers(style: Style, now: &[WorkerInfo], before: Option<(&[WorkerInfo], u64)>) -> String {
    let [rounds, sleeps] = if before.is_some() { ["ROUNDS/s", "SLEEPS/s"] } else { ["ROUNDS", "SLEEPS"] };
    let mut table = table(style, &["WORKER", "PROCESSOR", "POLLING", "RINGS", rounds, "BUSY", sleeps, "STATE"]);
    let (before, elapsed_ms) = before.unwrap_or((&[], 1000));
    for worker in now {
        let old = before.iter().find(|old| old.number == worker.number);
        let since = |of: fn(&WorkerInfo) -> u64| of(worker).saturating_sub(old.map_or(0, of));
        let rounds = since(|worker| worker.rounds);
        table.add_row([
            number(worker.number),
            number(worker.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string())),
            Cell::new(polling(worker)),
            number(worker.rings),
            number(per_second(rounds, elapsed_ms)),
            number(percent(since(|worker| worker.busy_rounds), rounds)),
            number(per_second(since(|worker| worker.sleeps), elapsed_ms)),
            Cell::new(if worker.asleep { "asleep" } else { "awake" }),
        ]);
    }
    finish(&table)
}

/// What a worker does that finds no frames: `adaptive, 50 µs`.
fn polling(worker: &WorkerInfo) -> String {
    let spin = worker.spin_us.map(|spin_us| format!(", {spin_us} µs"));
    format!("{}{}", worker.polling, spin.unwrap_or_default())
}

fn per_second(passed: u64, elapsed_ms: u64) -> u64 {
    u64::try_from(u128::from(passed) * 1000 / u128::from(elapsed_ms)).unwrap_or(u64::MAX)
}

/// A part of a whole; of nothing there is no part.
fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", part as f64 * 100.0 / whole.max(1) as f64)
}

fn counter_rows(counters: &Counters) -> Vec<(&'static str, String)> {
    let passed = |frames, bytes, multicast, broadcast| {
        let groups = [(multicast, "multicast"), (broadcast, "broadcast")].into_iter().filter(|(count, _)| *count > 0);
        let groups: String = groups.map(|(count, kind)| format!(", {count} {kind}")).collect();
        format!("{}, {}{groups}", counted::<u64>(frames, "frame"), counted::<u64>(bytes, "byte"))
    };
    let drops = counters.drops.iter().map(|(reason, count)| format!("{reason}: {count}"));
    vec![
        ("From guest", {
            let Counters { from_guest_frames, from_guest_bytes, from_guest_multicast, from_guest_broadcast, .. } = counters;
            passed(*from_guest_frames, *from_guest_bytes, *from_guest_multicast, *from_guest_broadcast)
        }),
        ("To guest", {
            let Counters { to_guest_frames, to_guest_bytes, to_guest_multicast, to_guest_broadcast, .. } = counters;
            passed(*to_guest_frames, *to_guest_bytes, *to_guest_multicast, *to_guest_broadcast)
        }),
        ("Interrupts", counters.notifications.to_string()),
        ("Dropped", or_none(drops.collect::<Vec<_>>().join("\n"))),
    ]
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn number(value: impl ToString) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

fn state_cell(style: Style, state: &str) -> Cell {
    let cell = Cell::new(state);
    let colour = match state {
        "up" => Color::Green,
        "stopped" => Color::Red,
        _ => Color::Yellow,
    };
    if style.colours { cell.fg(colour) } else { cell }
}

fn table<T: ToString>(style: Style, header: &[T]) -> Table {
    let mut table = plain_table(style);
    table.set_header(header.iter().map(ToString::to_string));
    table
}

fn pairs(style: Style, rows: Vec<(&'static str, String)>) -> String {
    let mut table = plain_table(style);
    table.add_rows(rows.into_iter().map(|(name, value)| [Cell::new(name), Cell::new(value)]));
    if style.wrapped {
        // Lists of features are long. In the tables above, half an address or path would be of no use.
        table.set_content_arrangement(ContentArrangement::Dynamic).set_constraints([ColumnConstraint::ContentWidth]);
    }
    finish(&table)
}

fn plain_table(style: Style) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !style.wrapped {
        table.force_no_tty();
    }
    if style.colours {
        table.enforce_styling();
    }
    table
}

fn finish(table: &Table) -> String {
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PortStats;
    use crate::values::PollingMode;

    const PLAIN: Style = Style { colours: false, wrapped: false };

    fn stats_at(uptime_ms: u64, frames: u64) -> Stats {
        let counters = Counters { from_guest_frames: frames, ..Counters::default() };
        let port = PortStats { name: "vm1".parse().unwrap(), network: "n".parse().unwrap(), counters };
        Stats { uptime_ms, ports: vec![port], workers: Vec::new() }
    }

    fn worker_at(rounds: u64, busy_rounds: u64, sleeps: u64) -> WorkerInfo {
        WorkerInfo { number: 1, rings: 3, rounds, busy_rounds, sleeps, spin_us: Some(50), ..WorkerInfo::default() }
    }

    /// The columns of the last line.
    fn last_row(text: &str) -> Vec<&str> {
        text.lines().last().unwrap().split("  ").map(str::trim).filter(|column| !column.is_empty()).collect()
    }

    #[test]
    fn resolvers_that_do_not_answer_are_said_to_be_silent() {
        let info = |asked, failed| DnsInfo {
            domain: "weft.internal".to_owned(),
            servers: vec!["192.0.2.1".to_owned()],
            cached: 0,
            counters: [("attempts", asked), ("upstream_failures", failed)].map(|(name, count)| (name.to_owned(), count)).into(),
        };
        assert!(dns(&info(3, 3)).contains("asks 192.0.2.1 (3 of 3 questions without an answer), "), "{}", dns(&info(3, 3)));
        assert!(!dns(&info(3, 1)).contains("without an answer"));
        assert!(!dns(&info(0, 0)).contains("without an answer"));
    }

    #[test]
    fn rates_are_per_second_whatever_the_interval() {
        let text = stats(PLAIN, &stats_at(3000, 500), Some(&stats_at(1000, 100)));
        assert!(text.contains("frames/s") && text.contains(" 200 "), "{text}");
        let text = stats(PLAIN, &stats_at(3000, 500), None);
        assert!(!text.contains("/s") && text.contains(" 500 "), "{text}");
    }

    #[test]
    fn a_port_that_began_at_zero_again_has_no_negative_rate() {
        let text = stats(PLAIN, &stats_at(2000, 5), Some(&stats_at(1000, 100)));
        assert!(text.contains(" 0 "), "{text}");
    }

    #[test]
    fn a_worker_is_shown_with_what_it_is_and_what_it_did() {
        let worker = WorkerInfo { cpu: Some(17), ..worker_at(1000, 123, 7) };
        let text = workers(PLAIN, std::slice::from_ref(&worker), None);
        assert_eq!(last_row(&text), ["1", "17", "adaptive, 50 µs", "3", "1000", "12.3 %", "7", "awake"]);
        let other = WorkerInfo { cpu: None, polling: PollingMode::Never, spin_us: None, asleep: true, ..worker };
        let text = workers(PLAIN, &[other], None);
        assert_eq!(last_row(&text), ["1", "any", "never", "3", "1000", "12.3 %", "7", "asleep"]);
    }

    #[test]
    fn a_watched_worker_is_as_busy_as_it_was_in_the_interval() {
        let at = |uptime_ms, worker| Stats { workers: vec![worker], ..stats_at(uptime_ms, 0) };
        let before = at(1000, worker_at(1_000_000, 0, 500));
        let text = stats(PLAIN, &at(3000, worker_at(1_000_400, 300, 520)), Some(&before));
        assert!(text.contains("ROUNDS/s") && text.contains("SLEEPS/s"), "{text}");
        assert_eq!(last_row(&text)[4..], ["200", "75.0 %", "10", "awake"], "{text}");
        let text = stats(PLAIN, &before, Some(&before));
        assert_eq!(last_row(&text)[4..], ["0", "0.0 %", "0", "awake"], "{text}");
    }

    #[test]
    fn a_year_of_work_fits_into_a_hundred_columns() {
        let year = 365 * 86_400;
        let worker = WorkerInfo { cpu: Some(1023), ..worker_at(year * 10_000_000, year * 10_000_000, year * 20_000) };
        let counters = Counters {
            from_guest_frames: year * 1_000_000,
            from_guest_bytes: year * 1_000_000_000,
            to_guest_frames: year * 1_000_000,
            to_guest_bytes: year * 1_000_000_000,
            ..Counters::default()
        };
        let mut after = Stats { workers: vec![WorkerInfo { number: 63, ..worker }], ..stats_at(year * 1000, 0) };
        after.ports[0].counters = counters;
        for before in [None, Some(&stats_at(0, 0))] {
            let text = stats(PLAIN, &after, before);
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{} columns:\n{text}", line.chars().count());
            }
        }
    }

    #[test]
    fn colours_appear_only_where_they_are_wanted() {
        let cell = |colours| {
            let style = Style { colours, wrapped: false };
            let mut table = plain_table(style);
            table.add_row([state_cell(style, "up")]);
            finish(&table).contains('\u{1b}')
        };
        assert!(cell(true));
        assert!(!cell(false));
    }

    #[test]
    fn one_thing_has_no_plural() {
        assert_eq!([0_usize, 1, 2].map(|number| counted(number, "port")), ["0 ports", "1 port", "2 ports"]);
    }

    #[test]
    fn durations_read_like_durations() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(61), "1 min 1 s");
        assert_eq!(duration(3661), "1 h 1 min");
        assert_eq!(duration(90_000), "1 d 1 h");
    }
}
