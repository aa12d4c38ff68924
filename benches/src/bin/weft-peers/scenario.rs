//! What is compared: the table of scenarios. Another one is another line of it.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

/// One thing that every switch is asked to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// What it is called on the command line and in JSON.
    pub(crate) name: &'static str,
    /// What it is, for a reader.
    pub(crate) title: &'static str,
    /// Ports of the switch, each with one guest of `weft-load`.
    pub(crate) ports: usize,
    /// What `weft-load` is told besides sockets, sizes and seconds.
    pub(crate) load: &'static [&'static str],
    /// What each weft's configuration says of its ports; of those beyond these, nothing.
    pub(crate) weft_ports: &'static [&'static str],
    /// What is told every weft besides its configuration, after `weft run`.
    pub(crate) weft: &'static [&'static str],
    /// More words for `ovs-vsctl` when its ports are there; they are p0, p1 and so on.
    pub(crate) ovs: &'static [&'static str],
    /// True when a plain wire between the ports does the same, so that testpmd can take part.
    pub(crate) wire: bool,
    /// These sizes alone, in bytes with FCS; all that were asked for if none is named.
    pub(crate) sizes: &'static [u16],
    /// What is compared.
    pub(crate) figure: Figure,
}

/// The figure that says who is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    /// Frames a second: more is better.
    Rate,
    /// The median of the one-way times: less is better.
    Latency,
}

const PLAIN: Scenario = Scenario {
    name: "plain",
    title: "Two ports, one flow",
    ports: 2,
    load: &[],
    weft_ports: &[],
    weft: &[],
    ovs: &[],
    wire: true,
    sizes: &[],
    figure: Figure::Rate,
};

/// All of them, in the order in which they are run and shown.
pub(crate) const TABLE: &[Scenario] = &[
    PLAIN,
    Scenario { name: "flows", title: "1,000 flows, 1,000 addresses behind each port", load: &["--stations", "1000"], ..PLAIN },
    Scenario { name: "ports", title: "16 ports, each to all others", ports: 16, wire: false, ..PLAIN },
    Scenario {
        name: "vlan",
        title: "From an access port to a trunk: a tag is put on",
        load: &["--trunk", "7"],
        weft_ports: &["vlan = 7", "trunk = \"7\""],
        ovs: &["set", "port", "p0", "tag=7", "--", "set", "port", "p1", "vlan_mode=trunk", "trunks=7"],
        wire: false,
        ..PLAIN
    },
    Scenario {
        name: "latency",
        title: "One way, one frame at a time",
        load: &["--latency"],
        sizes: &[64],
        figure: Figure::Latency,
        ..PLAIN
    },
];

impl Scenario {
    /// For the command line, which lists and checks them.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        let values = TABLE.iter().map(|scenario| PossibleValue::new(scenario.name).help(scenario.title));
        PossibleValuesParser::new(values).map(|name| Self::find(&name).expect("the parser knows no other names"))
    }

    pub(crate) fn find(name: &str) -> Option<Self> {
        TABLE.iter().find(|scenario| scenario.name == name).copied()
    }

    /// The sizes to run, when `asked` were asked for.
    pub(crate) fn sizes<'a>(&'a self, asked: &'a [u16]) -> &'a [u16] {
        if self.sizes.is_empty() { asked } else { self.sizes }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_can_be_found_by_it() {
        assert_eq!(TABLE.iter().map(|scenario| scenario.name).collect::<HashSet<_>>().len(), TABLE.len());
        for scenario in TABLE {
            assert_eq!(Scenario::find(scenario.name).unwrap().title, scenario.title);
        }
    }

    #[test]
    fn every_scenario_can_be_run() {
        for scenario in TABLE {
            assert!(scenario.ports >= 2, "{}: frames need somewhere to go", scenario.name);
            assert!(scenario.weft_ports.len() <= scenario.ports, "{}", scenario.name);
            assert!(scenario.sizes.iter().all(|size| (64..=2040).contains(size)), "{}", scenario.name);
            let times = scenario.load.contains(&"--latency");
            assert_eq!(times, scenario.figure == Figure::Latency, "{}: only --latency gives times", scenario.name);
        }
    }

    #[test]
    fn a_scenario_with_sizes_of_its_own_ignores_those_that_were_asked_for() {
        assert_eq!(PLAIN.sizes(&[64, 128]), [64, 128]);
        assert_eq!(Scenario { sizes: &[512], ..PLAIN }.sizes(&[64, 128]), [512]);
    }
}
