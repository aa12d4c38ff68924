//! The comparison as a drawing: for each scenario and size one bar a switch, with the figure and the ratio beside it.

use svg::node::element::{Group, Line, Rectangle, Text, Title};
use svg::{Document, Node};

use crate::comparison::{Comparison, Outcome, ScenarioInfo, Spread};
use crate::render::ratio;
use crate::scenario::Figure;

const WIDTH: f64 = 920.0;
const MARGIN: f64 = 24.0;
/// Where names end and bars begin.
const BARS_AT: f64 = 210.0;
/// The longest bar. Beside it there is room for the figures.
const BAR_MAX: f64 = 440.0;
const BAR_HEIGHT: f64 = 20.0;
const BAR_STEP: f64 = 26.0;
const GROUP_GAP: f64 = 12.0;
const TITLE_STEP: f64 = 40.0;
/// The first is what the others are compared with.
const COLOURS: [&str; 5] = ["#0f766e", "#c2703d", "#64748b", "#7c5cbf", "#a3a33a"];
const INK: &str = "#1f2937";
const FAINT: &str = "#6b7280";

/// A drawing that grows downwards.
struct Chart<'a> {
    comparison: &'a Comparison,
    bars: Group,
    y: f64,
}

/// The drawing as SVG.
pub(crate) fn svg(comparison: &Comparison) -> String {
    let mut chart = Chart { comparison, bars: Group::new(), y: MARGIN };
    for scenario in &comparison.scenarios {
        chart.scenario(scenario);
    }
    let first = comparison.switches.first().map_or("the first", |switch| switch.name.as_str());
    chart.y += TITLE_STEP / 2.0;
    chart.text(
        MARGIN,
        &format!("×: against {first}, in the same round. Thin line: from the lowest to the highest round."),
        FAINT,
        "12",
        "start",
    );
    let height = chart.y + MARGIN;
    let background = Rectangle::new().set("width", WIDTH).set("height", height).set("fill", "#ffffff");
    let document = Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .set("font-family", "system-ui, sans-serif")
        .add(Title::new("weft and other switches"))
        .add(background)
        .add(chart.bars);
    format!("{document}\n")
}

impl Chart<'_> {
    fn scenario(&mut self, scenario: &ScenarioInfo) {
        let results: Vec<_> = self.comparison.results_of(scenario).collect();
        let most = results.iter().filter_map(|result| figure(scenario.figure, result)).map(|spread| spread.max);
        let most = most.fold(f64::MIN_POSITIVE, f64::max);
        let direction = match scenario.figure {
            Figure::Rate => "frames per second: longer is better",
            Figure::Latency => "median time: shorter is better",
        };
        self.y += TITLE_STEP / 2.0;
        self.text(MARGIN, &scenario.title, INK, "16", "start");
        self.text(WIDTH - MARGIN, direction, FAINT, "12", "end");
        self.y += TITLE_STEP / 2.0;
        let mut size = None;
        for result in results {
            if size != Some(result.size) {
                self.y += GROUP_GAP;
                self.text(MARGIN, &format!("{} B", result.size), INK, "14", "start");
                size = Some(result.size);
            }
            self.bar(scenario.figure, result, most);
        }
    }

    /// One line: name, bar, from … to, figures.
    fn bar(&mut self, kind: Figure, result: &Outcome, most: f64) {
        let Some(spread) = figure(kind, result) else { return };
        let length = |value: f64| BAR_MAX * value / most;
        let index = self.comparison.switches.iter().position(|switch| switch.name == result.switch).unwrap_or_default();
        let top = self.y - BAR_HEIGHT * 0.75;
        self.text(BARS_AT - 8.0, &result.switch, INK, "13", "end");
        let bar = Rectangle::new()
            .set("x", BARS_AT)
            .set("y", top)
            .set("width", rounded(length(spread.median)))
            .set("height", BAR_HEIGHT)
            .set("fill", COLOURS[index % COLOURS.len()]);
        let middle = top + BAR_HEIGHT / 2.0;
        let range = Line::new()
            .set("x1", rounded(BARS_AT + length(spread.min)))
            .set("x2", rounded(BARS_AT + length(spread.max)))
            .set("y1", middle)
            .set("y2", middle)
            .set("stroke", INK)
            .set("stroke-width", 1.5);
        self.add(bar);
        self.add(range);
        let end = BARS_AT + length(spread.max).max(length(spread.median)) + 8.0;
        self.text(end, &label(kind, result, spread), INK, "13", "start");
        self.y += BAR_STEP;
    }

    fn text(&mut self, x: f64, text: &str, colour: &str, size: &str, anchor: &str) {
        let text = Text::new(text).set("x", rounded(x)).set("y", self.y).set("fill", colour);
        self.add(text.set("font-size", size).set("text-anchor", anchor));
    }

    fn add(&mut self, node: impl Node) {
        self.bars.append(node);
    }
}

fn figure(kind: Figure, result: &Outcome) -> Option<Spread> {
    match kind {
        Figure::Rate => Some(result.frames_per_second),
        Figure::Latency => result.p50_ns,
    }
}

fn label(kind: Figure, result: &Outcome, spread: Spread) -> String {
    let figures = match kind {
        Figure::Rate => format!("{:.1} M/s · {:.0} Gbit/s", spread.median / 1e6, result.gbit_per_second),
        Figure::Latency => format!("{:.0} ns", spread.median),
    };
    [figures, ratio(result.ratio.map(|ratio| ratio.median))].join(" · ")
}

/// A tenth of a pixel is enough.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::tests::example;

    #[test]
    fn every_result_has_a_bar_with_its_figure_and_ratio() {
        let drawing = svg(&example());
        // One more is the background.
        assert_eq!(drawing.matches("<rect").count(), 4 + 1, "{drawing}");
        assert!(drawing.contains("8.0 M/s · 4 Gbit/s · 0.50 ×") && drawing.contains("450 ns · 1.50 ×"), "{drawing}");
    }

    #[test]
    fn the_median_bar_is_as_long_as_its_value_says() {
        let drawing = svg(&example());
        let widths: Vec<f64> = drawing
            .match_indices("<rect")
            .filter_map(|(at, _)| drawing[at..].split_once("width=\"")?.1.split('"').next()?.parse().ok())
            .skip(1)
            .collect();
        // 16, 8 of at most 20 million; 300, 450 of at most 450 ns.
        assert_eq!(widths, [0.8, 0.4, 2.0 / 3.0, 1.0].map(|part| rounded(part * BAR_MAX)));
    }

    #[test]
    fn names_can_not_break_out_of_the_drawing() {
        let mut comparison = example();
        comparison.scenarios[0].title = "<script>".to_owned();
        assert!(!svg(&comparison).contains("<script>"));
    }
}
