//! Ways out and in.

use comfy_table::Cell;

use super::{Style, counted, duration, finish, number, or_none, pairs, table};
use crate::api::{ForwardLine, MappingLine, NatInfo, NatPort};
use crate::values::Name;

pub(crate) fn forwards(style: Style, lines: &[ForwardLine]) -> String {
    if lines.is_empty() {
        return "Nothing is forwarded. Add a forward with: weft forward add NETWORK tcp:8080 GUEST:80\n".to_owned();
    }
    let mut table = table(style, &["NETWORK", "FROM", "TO", "GUEST", "STATE"]);
    for line in lines {
        let reason = line.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let guest = line.guest.map_or_else(|| "-".to_owned(), |guest| guest.to_string());
        table.add_row([
            Cell::new(&line.network),
            Cell::new(line.from),
            Cell::new(&line.to),
            Cell::new(guest),
            Cell::new(format!("{}{reason}", line.state)),
        ]);
    }
    finish(&table)
}

pub(crate) fn mappings(style: Style, lines: &[MappingLine]) -> String {
    if lines.is_empty() {
        return "No guest is connected with the outside.\n".to_owned();
    }
    let mut table = table(
        style,
        &["NETWORK", "PORT", "PROTOCOL", "GUEST", "OUTSIDE", "FAR END", "AGE", "FROM GUEST bytes", "TO GUEST bytes"],
    );
    for line in lines {
        table.add_row([
            Cell::new(&line.network),
            Cell::new(line.port.as_ref().map_or("-", Name::as_str)),
            Cell::new(if line.forwarded { format!("{}, forwarded", line.protocol) } else { line.protocol.clone() }),
            Cell::new(line.inside),
            number(line.outside.map_or_else(|| "-".to_owned(), |port| port.to_string())),
            Cell::new(line.remote),
            number(duration(line.age_seconds)),
            number(line.from_guest_bytes),
            number(line.to_guest_bytes),
        ]);
    }
    finish(&table)
}

pub(crate) fn nat(style: Style, nat: &NatInfo) -> String {
    let ports = nat.ports.iter().map(|(name, port)| {
        let NatPort { tcp, udp, icmp, from_guest_bytes, to_guest_bytes } = port;
        let (out, inward) = (counted::<u64>(*from_guest_bytes, "byte"), counted::<u64>(*to_guest_bytes, "byte"));
        format!("{name}: {tcp} TCP, {udp} UDP, {icmp} ICMP; {out} out, {inward} in")
    });
    pairs(
        style,
        vec![
            ("Network", nat.network.to_string()),
            ("Host access", if nat.host_access { "on" } else { "off" }.to_owned()),
            ("Ping", nat.ping_refused.clone().unwrap_or_else(|| "works".to_owned())),
            ("TCP connections", format!("{} of {}", nat.tcp, nat.tcp_max)),
            ("UDP and ICMP", format!("{} and {} of {}", nat.udp, nat.icmp, nat.udp_and_icmp_max)),
            ("Idle TCP is asked after", duration(nat.tcp_established_seconds)),
            ("Half-open TCP ends after", duration(nat.tcp_transitory_seconds)),
            ("Idle UDP ends after", duration(nat.udp_seconds)),
            ("Idle ICMP ends after", duration(nat.icmp_seconds)),
            ("Ports", or_none(ports.collect::<Vec<_>>().join("\n"))),
        ],
    )
}
