//! Tables for people: in a terminal, and in Markdown.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table as Grid, presets};

use crate::net::Measured;
use crate::plan::{BackEnd, Case, Plan, Table};
use crate::results::{Missing, Outcome, Results, Target};

/// How a table looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Terminal,
    Markdown,
}

/// Everything that was found.
pub(crate) fn render(results: &Results, plan: &Plan, style: Style) -> String {
    let mut text = heading("TCP and UDP between real stacks", 1, style);
    let _ = writeln!(
        text,
        "Gbit/s that arrived, {} of {} s; in brackets how many times as fast the first column is, round by round. \
         UDP is sent as fast as it goes, with the share that was lost. → is from the first guest, ← to it, ⇄ both at once (the sum).\n",
        if results.rounds == 1 { "one round".to_owned() } else { format!("medians of {} rounds", results.rounds) },
        results.seconds
    );
    let _ = writeln!(text, "{}; TCP congestion control: {}.\n", results.machine, results.congestion);
    for contender in &results.contenders {
        let _ = writeln!(text, "- {}: {}", contender.back_end.name(), contender.about);
    }
    for missing in results.missing.iter().filter(|missing| missing.table.is_none()) {
        let _ = writeln!(text, "- {}", missing_line(missing));
    }
    for &table in &plan.tables {
        text.push_str(&table_text(results, plan, table, style));
    }
    if !results.targets.is_empty() {
        text.push_str(&heading("Targets", 2, style));
        for target in &results.targets {
            let _ = writeln!(text, "- {}", target_line(target));
        }
    }
    text
}

fn table_text(results: &Results, plan: &Plan, table: Table, style: Style) -> String {
    let has_figures = |back_end: &BackEnd| plan.cases().any(|case| results.find(table, case, *back_end).is_some());
    let columns: Vec<BackEnd> = plan.back_ends_of(table).filter(has_figures).collect();
    let mut text = heading(&table.title(), 2, style);
    if !columns.is_empty() {
        let mut grid = Grid::new();
        grid.load_style(if style == Style::Markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_HORIZONTAL_ONLY });
        grid.set_header(["".to_owned()].into_iter().chain(columns.iter().map(|back_end| back_end.name())));
        for case in plan.cases() {
            let cell = |&back_end: &BackEnd| results.find(table, case, back_end).map_or_else(|| "–".to_owned(), cell_text);
            grid.add_row([case.to_string()].into_iter().chain(columns.iter().map(cell)));
        }
        for column in grid.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let _ = writeln!(text, "{grid}");
    }
    let of_table = |missing: &&Missing| missing.table == Some(table);
    for missing in results.missing.iter().filter(of_table) {
        let _ = writeln!(text, "\n{}", missing_line(missing));
    }
    text
}

fn cell_text(outcome: &Outcome) -> String {
    let mut text = rate_text(outcome.speed);
    if let Some(lost) = outcome.lost_percent {
        let _ = write!(text, ", {lost:.0} % lost");
    }
    if let Some(ratio) = outcome.first_is_faster.filter(|_| outcome.table.setting.back_ends()[0] != outcome.back_end) {
        let _ = write!(text, " ({} ×)", rate_text(ratio));
    }
    text
}

/// Three figures that mean something.
fn rate_text(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

/// What is missing, and why.
pub(crate) fn missing_line(missing: &Missing) -> String {
    let verb = if missing.failed { "failed" } else { "is left out" };
    let load = missing.load.map_or_else(String::new, |load| format!(" ({load})"));
    format!("{} {verb}{load}: {}", missing.back_end.name(), missing.reason)
}

fn target_line(target: &Target) -> String {
    let verdict = if target.found >= target.wanted { "reached" } else { "MISSED" };
    format!("{}: {:.2} ×, wanted {} × — {verdict}", target.what, target.found, target.wanted)
}

fn heading(title: &str, level: usize, style: Style) -> String {
    match style {
        Style::Markdown => format!("{}{} {title}\n\n", if level > 1 { "\n" } else { "" }, "#".repeat(level)),
        Style::Terminal => format!("\n=== {title}\n\n"),
    }
}

/// One line of progress.
pub(crate) fn progress(table: Table, round: u32, back_end: BackEnd, case: Case, measured: &Measured) -> String {
    let mut text = format!("round {round}, {}, {}: {case}: ", table.title(), back_end.name());
    let unit = if measured.rate.gbit_per_second.is_some() { "Gbit/s" } else { "a second" };
    let _ = write!(text, "{} {unit}", rate_text(measured.rate.speed()));
    if let Some(lost) = measured.rate.lost_percent {
        let _ = write!(text, ", {lost:.0} % lost");
    }
    if let Some(retransmits) = measured.rate.retransmits {
        let _ = write!(text, ", {retransmits} sent again");
    }
    if let Some(cores) = measured.back_end_cores {
        let _ = write!(text, ", back-end on {cores:.2} cores");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::ValueEnum as _;

    use super::*;
    use crate::results::tests::{CASE, LOAD, TABLE, example};

    #[test]
    fn a_table_has_rates_ratios_and_reasons() {
        let mut results = example();
        let reason = "it is not installed".to_owned();
        results.missing.push(Missing { table: Some(TABLE), load: None, back_end: BackEnd::OvsDpdk, reason, failed: false });
        let plan = Plan {
            tables: vec![TABLE],
            back_ends: BackEnd::value_variants().to_vec(),
            loads: vec![LOAD],
            directions: vec![CASE.direction],
            rounds: 3,
            duration: Duration::from_secs(1),
        };
        let text = render(&results, &plan, Style::Markdown);
        let words: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("| TCP, 1 stream → | 8.00 | 4.00 (2.00 ×) | 0.80 (10.0 ×) |"), "{text}");
        assert!(text.contains("ovs-dpdk is left out: it is not installed"), "{text}");
        assert!(text.contains("weft against testpmd: 10.00 ×, wanted 6 × — reached"), "{text}");
    }

    #[test]
    fn small_rates_keep_their_figures() {
        assert_eq!([0.0072, 0.213, 3.456, 17.84, 212.3].map(rate_text), ["0.0072", "0.21", "3.46", "17.8", "212"]);
    }
}
