//! Who wants which groups.

use comfy_table::Cell;

use super::{Style, duration, finish, number, or_none, table};
use crate::multicast::{MulticastInfo, MulticastMode, QuerierLine};
use crate::values::Name;

pub(crate) fn multicast(style: Style, infos: &[MulticastInfo]) -> String {
    let mut queriers = table(style, &["NETWORK", "VLAN", "FAMILY", "QUERIER", "ROUTERS", "UNSETTLED"]);
    for info in infos {
        for line in &info.queriers {
            queriers.add_row([
                Cell::new(&info.network),
                number(line.vlan.as_deref().unwrap_or("-")),
                Cell::new(&line.family),
                Cell::new(querier(line)),
                Cell::new(list(&line.routers)),
                Cell::new(list(&line.unsettled)),
            ]);
        }
    }
    let mut members = table(style, &["NETWORK", "VLAN", "GROUP", "PORT", "PROTOCOL", "LEFT"]);
    for info in infos {
        for line in &info.members {
            members.add_row([
                Cell::new(&info.network),
                number(line.vlan.as_deref().unwrap_or("-")),
                Cell::new(line.group),
                Cell::new(&line.port),
                Cell::new(&line.protocol),
                number(duration(line.left_seconds)),
            ]);
        }
    }
    let mut text = String::new();
    for info in infos.iter().filter(|info| info.multicast == MulticastMode::Flood) {
        text += &format!("Multicast of network {} goes to everybody.\n", info.network);
    }
    if infos.iter().any(|info| !info.queriers.is_empty()) {
        text += &finish(&queriers);
        text.push('\n');
    }
    if infos.iter().any(|info| !info.members.is_empty()) {
        return text + &finish(&members);
    }
    text + "Nobody has asked for a group.\n"
}

fn querier(line: &QuerierLine) -> String {
    match (line.address, &line.port) {
        (Some(address), Some(port)) => format!("{address}, behind {port}"),
        (Some(address), None) => format!("weft, as {address}"),
        (None, _) => "nobody: all is flooded".to_owned(),
    }
}

fn list(ports: &[Name]) -> String {
    or_none(ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}
