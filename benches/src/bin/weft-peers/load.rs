//! `weft-load` as a child: what it is told, and what it reports.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::process::{Process, ProcessError, Program, Tail};
use crate::scenario::Scenario;
use crate::switches::{Bench, Started};

/// How long connecting and introducing everybody may take, for each size.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// What it reports for one size. It may say more.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Report {
    pub(crate) size: u16,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Those that the rate counts, when it does not count all.
    pub(crate) received_in_time: Option<u64>,
    pub(crate) seconds: f64,
    pub(crate) looks: u64,
    pub(crate) idle_looks: u64,
    pub(crate) latency: Option<Latency>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Latency {
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("what weft-load reports can't be read: {source}{log}")]
    Unreadable { source: serde_json::Error, log: Tail },
    #[error("weft-load reports {reported:?} when {asked:?} bytes were asked for{log}")]
    OtherSizes { asked: Vec<u16>, reported: Vec<u16>, log: Tail },
}

/// Where `weft-load` is, and how long it sends.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) binary: PathBuf,
    pub(crate) seconds: f64,
}

impl Load {
    /// Sends frames of all sizes through a switch.
    pub(crate) fn run(
        &self,
        scenario: &Scenario,
        sizes: &[u16],
        switch: &mut Started,
        dir: &Path,
        bench: &Bench,
    ) -> Result<Vec<Report>, LoadError> {
        let log = dir.join("weft-load.log");
        let program = Program {
            name: "weft-load",
            path: &self.binary,
            args: self.args(scenario, sizes, &switch.sockets, switch.switch_connects),
            env: Vec::new(),
            cores: vec![bench.load_core],
            isolated: false,
            log: log.clone(),
        };
        let process: Process = program.start()?;
        let limit = (CONNECT_LIMIT + Duration::from_secs_f64(self.seconds)) * sizes.len() as u32;
        process.finish(limit, &bench.interrupt, || switch.check_alive())?;
        let reports = parse(&std::fs::read_to_string(&log).unwrap_or_default());
        let reports = reports.map_err(|source| LoadError::Unreadable { source, log: Tail::of(&log) })?;
        let reported: Vec<_> = reports.iter().map(|report| report.size).collect();
        if reported != sizes {
            return Err(LoadError::OtherSizes { asked: sizes.to_vec(), reported, log: Tail::of(&log) });
        }
        Ok(reports)
    }

    fn args(&self, scenario: &Scenario, sizes: &[u16], sockets: &[PathBuf], listen: bool) -> Vec<OsString> {
        let sizes: Vec<_> = sizes.iter().map(ToString::to_string).collect();
        let mut args: Vec<OsString> = vec!["--json".into(), "--sizes".into(), sizes.join(",").into()];
        args.extend(["--seconds".into(), self.seconds.to_string().into()]);
        if listen {
            args.push("--listen".into());
        }
        args.extend(scenario.load.iter().map(Into::into));
        args.extend(sockets.iter().map(Into::into));
        args
    }
}

impl Report {
    pub(crate) fn frames_per_second(&self) -> f64 {
        self.received_in_time.unwrap_or(self.received) as f64 / self.seconds
    }

    /// With the FCS, as all sizes here.
    pub(crate) fn gbit_per_second(&self) -> f64 {
        self.frames_per_second() * f64::from(self.size) * 8.0 / 1e9
    }

    /// How often the generator found nothing to do. Near zero means that the switch was not the bottleneck.
    pub(crate) fn load_waited_percent(&self) -> f64 {
        100.0 * self.idle_looks as f64 / self.looks.max(1) as f64
    }

    pub(crate) fn lost_percent(&self) -> f64 {
        100.0 * self.sent.saturating_sub(self.received) as f64 / self.sent.max(1) as f64
    }
}

/// One object a line; other lines are messages.
fn parse(text: &str) -> Result<Vec<Report>, serde_json::Error> {
    text.lines().filter(|line| line.starts_with('{')).map(serde_json::from_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        r#"{"sent":1100,"received":1000,"seconds":0.5,"looks":10,"idle_looks":4,"latency":null,"size":64,"new":1}"#;

    #[test]
    fn reports_are_read_among_messages() {
        let reports = parse(&format!("a warning\n{LINE}\n")).unwrap();
        assert_eq!(reports.len(), 1);
        let report = &reports[0];
        assert_eq!((report.frames_per_second(), report.gbit_per_second()), (2000.0, 2000.0 * 64.0 * 8.0 / 1e9));
        assert_eq!((report.load_waited_percent(), report.lost_percent().round()), (40.0, 9.0));
    }

    #[test]
    fn what_came_late_does_not_count_for_the_rate() {
        let reports = parse(&LINE.replace(r#""looks""#, r#""received_in_time":900,"looks""#)).unwrap();
        assert_eq!(reports[0].frames_per_second(), 1800.0);
    }

    #[test]
    fn a_report_that_lacks_something_is_refused() {
        assert!(parse(r#"{"sent":1100}"#).unwrap_err().to_string().contains("missing field"));
    }

    #[test]
    fn the_load_is_told_what_the_scenario_says() {
        let load = Load { binary: "weft-load".into(), seconds: 0.5 };
        let scenario = Scenario { load: &["--stations", "9"], ..Scenario::find("plain").unwrap() };
        let args = load.args(&scenario, &[64, 512], &["a".into(), "b".into()], true);
        assert_eq!(args.join(" ".as_ref()), "--json --sizes 64,512 --seconds 0.5 --listen --stations 9 a b");
    }
}
