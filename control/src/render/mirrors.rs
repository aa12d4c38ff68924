//! Mirrors.

use comfy_table::Cell;

use super::{Style, finish, number, table};
use crate::capture::Direction;
use crate::mirror_handler::MirrorLine;
use crate::values::Name;

pub(crate) fn mirrors(style: Style, lines: &[MirrorLine]) -> String {
    if lines.is_empty() {
        return "There are no mirrors. Add one with: weft mirror add NAME --from PORT --to PORT\n".to_owned();
    }
    let mut table = table(style, &["NAME", "FROM", "WHAT", "TO", "FRAMES", "LOST", "STATE"]);
    for MirrorLine { name, settings, frames, lost, problem } in lines {
        let direction = match settings.direction {
            Direction::In => Some("in".to_owned()),
            Direction::Out => Some("out".to_owned()),
            Direction::Both => None,
        };
        let vlan = settings.vlan.as_ref().map(|vlan| format!("VLAN {vlan}"));
        let filter = Some(String::from(settings.filter.clone())).filter(|text| !text.is_empty());
        let what: Vec<_> = [direction, vlan, filter].into_iter().flatten().collect();
        table.add_row([
            Cell::new(name),
            Cell::new(settings.from.iter().map(Name::as_str).collect::<Vec<_>>().join(",")),
            Cell::new(if what.is_empty() { "everything".to_owned() } else { what.join(", ") }),
            Cell::new(&settings.to),
            number(*frames),
            number(*lost),
            Cell::new(problem.as_deref().unwrap_or("on")),
        ]);
    }
    finish(&table)
}
