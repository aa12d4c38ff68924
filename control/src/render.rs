//! Answers as tables for people. Programs get JSON, which does not come through here.

use std::fmt::Display;

use comfy_table::{Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, presets};

use crate::api::{Counters, FdbLine, NetworkInfo, PortInfo, Stats, Status};

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
            state_cell(style, &port.state),
            Cell::new(port.mac),
            number(port.queues),
            Cell::new(port.socket.display()),
        ]);
    }
    finish(&table)
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
        ("State", port.state.clone()),
        ("Socket", format!("{} ({} listens)", port.socket.display(), if port.client { "the guest" } else { "weft" })),
        ("MAC", port.mac.to_string()),
        ("MTU", port.mtu.to_string()),
        ("Queues", port.queues.to_string()),
        ("Connections", port.connections.to_string()),
        ("Features", or_none(port.features.join(", "))),
        ("Rings", or_none(rings.collect::<Vec<_>>().join("\n"))),
    ];
    rows.extend(port.guest_mtu.map(|mtu| ("Guest's MTU", mtu.to_string())));
    rows.extend(port.last_stop.clone().map(|reason| ("Last stop", reason)));
    rows.extend(counter_rows(&port.counters));
    pairs(style, rows)
}

pub(crate) fn networks(style: Style, networks: &[NetworkInfo]) -> String {
    if networks.is_empty() {
        return "There are no networks. Add one with: weft network add NAME\n".to_owned();
    }
    let mut table = table(style, &["NETWORK", "MODE", "PORTS", "MACS", "AGEING", "MTU"]);
    for network in networks {
        table.add_row([
            Cell::new(&network.name),
            Cell::new(network.mode),
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
    pairs(
        style,
        vec![
            ("Network", network.name.to_string()),
            ("Mode", network.mode.to_string()),
            ("Ports", or_none(ports)),
            ("MTU", network.mtu.to_string()),
            ("Ageing", format!("{} s", network.ageing_seconds)),
            ("MAC addresses", format!("{} of {}", network.fdb_entries, network.fdb_capacity)),
            ("Learned", fdb.learned.to_string()),
            ("Moved", fdb.moved.to_string()),
            ("Evicted", fdb.evicted.to_string()),
            ("Expired", fdb.expired.to_string()),
        ],
    )
}

pub(crate) fn fdb(style: Style, lines: &[FdbLine]) -> String {
    if lines.is_empty() {
        return "No MAC address has been learned yet.\n".to_owned();
    }
    let mut table = table(style, &["NETWORK", "MAC", "PORT", "AGE"]);
    for line in lines {
        let age = Cell::new(format!("{} s", line.age_seconds)).set_alignment(CellAlignment::Right);
        table.add_row([Cell::new(&line.network), Cell::new(line.mac), Cell::new(&line.port), age]);
    }
    finish(&table)
}

pub(crate) fn status(style: Style, status: &Status) -> String {
    let config = status.config_file.as_ref().map_or_else(|| "built in".to_owned(), |file| file.display().to_string());
    let networks = status
        .networks
        .iter()
        .map(|network| format!("{} ({}, {})", network.name, network.mode, counted(network.ports.len(), "port")));
    let workers = status.workers.iter().map(|worker| {
        let (rounds, sleeps) = (counted(worker.rounds, "round"), counted(worker.sleeps, "time"));
        format!("{rounds}, {} of them with frames, {sleeps} asleep", worker.busy_rounds)
    });
    pairs(
        style,
        vec![
            ("weft", format!("{} (process {})", status.version, status.pid)),
            ("Health", if status.healthy { "good".to_owned() } else { "bad: a worker has died, see the log".to_owned() }),
            ("Running for", duration(status.uptime_seconds)),
            ("Run directory", status.run_dir.display().to_string()),
            ("Configuration", config),
            ("Ports", format!("{}, {} of them up", status.ports, status.ports_up)),
            ("Networks", or_none(networks.collect::<Vec<_>>().join("\n"))),
            ("Workers", or_none(workers.collect::<Vec<_>>().join("\n"))),
        ],
    )
}

/// Totals since the ports were added; with `before`, what passed per second since then.
pub(crate) fn stats(style: Style, now: &Stats, before: Option<&Stats>) -> String {
    let unit = if before.is_some() { "/s" } else { "" };
    let header = ["PORT", "NETWORK", "FROM GUEST frames", "bytes", "TO GUEST frames", "bytes", "DROPS"];
    let header =
        header.map(|title| if title.ends_with("s") || title == "DROPS" { format!("{title}{unit}") } else { title.to_owned() });
    let mut table = table(style, &header);
    let elapsed_ms = before.map_or(1000, |before| now.uptime_ms.saturating_sub(before.uptime_ms).max(1));
    for port in &now.ports {
        let old = before.and_then(|before| before.ports.iter().find(|old| old.name == port.name));
        // A port that was removed and added began at zero again.
        let rate = |of: fn(&Counters) -> u64| {
            let passed = of(&port.counters).saturating_sub(old.map_or(0, |old| of(&old.counters)));
            u64::try_from(u128::from(passed) * 1000 / u128::from(elapsed_ms)).unwrap_or(u64::MAX)
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

fn counter_rows(counters: &Counters) -> Vec<(&'static str, String)> {
    let passed = |frames, bytes| format!("{}, {}", counted::<u64>(frames, "frame"), counted::<u64>(bytes, "byte"));
    let drops = counters.drops.iter().map(|(reason, count)| format!("{reason}: {count}"));
    vec![
        ("From guest", passed(counters.from_guest_frames, counters.from_guest_bytes)),
        ("To guest", passed(counters.to_guest_frames, counters.to_guest_bytes)),
        ("Interrupts", counters.notifications.to_string()),
        ("Dropped", or_none(drops.collect::<Vec<_>>().join("\n"))),
    ]
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

fn duration(seconds: u64) -> String {
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

    const PLAIN: Style = Style { colours: false, wrapped: false };

    fn stats_at(uptime_ms: u64, frames: u64) -> Stats {
        let counters = Counters { from_guest_frames: frames, ..Counters::default() };
        Stats { uptime_ms, ports: vec![PortStats { name: "vm1".parse().unwrap(), network: "n".parse().unwrap(), counters }] }
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
