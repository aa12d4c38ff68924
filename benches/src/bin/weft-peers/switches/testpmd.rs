//! DPDK's testpmd with vhost ports that are wired together: what it costs to move frames in and out of guests with DPDK,
//! without any switching in between.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Bench, DPDK_MEMORY_MIB, Kind, Started, Switch, SwitchError, find_program, first_line};
use crate::process::Program;
use crate::scenario::Scenario;

const START_LIMIT: Duration = Duration::from_secs(30);
/// It prints this when it forwards.
const READY: &str = "Press enter to exit";

/// An installed testpmd.
pub(crate) struct Testpmd {
    binary: PathBuf,
}

impl Testpmd {
    /// # Errors
    /// A sentence, when it is not installed.
    pub(crate) fn find() -> Result<Switch, String> {
        let binary = find_program("dpdk-testpmd").ok_or("dpdk-testpmd is not installed; benches/peers/setup installs it")?;
        let version = first_line(Path::new("dpkg-query"), &["--show", "--showformat=${Version}", "dpdk-dev"]);
        let version = version.split(['-', '~']).next().unwrap_or_default().to_owned();
        let about = ["DPDK", version.as_str(), "testpmd, vhost ports wired together: no switching"];
        let about = about.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ");
        Ok(Switch { name: "testpmd".to_owned(), about, kind: Box::new(Self { binary }) })
    }
}

impl Kind for Testpmd {
    fn takes_part(&self, scenario: &Scenario) -> bool {
        scenario.wire
    }

    fn start(&self, scenario: &Scenario, dir: &Path, bench: &Bench) -> Result<Started, SwitchError> {
        let log = dir.join("testpmd.log");
        let sockets: Vec<_> = (0..scenario.ports).map(|port| dir.join(format!("p{port}.sock"))).collect();
        // Its first core takes commands, the second forwards.
        let lcores = format!("0@{},1@{}", bench.load_core, bench.switch_core);
        let memory = DPDK_MEMORY_MIB.to_string();
        // Line by line, or what it says would stay in its buffer.
        let mut args: Vec<OsString> = vec!["-oL".into(), self.binary.clone().into()];
        args.extend(["--lcores", &lcores, "-m", &memory].map(OsString::from));
        args.extend(["--no-pci", "--in-memory", "--single-file-segments", "--no-telemetry"].map(OsString::from));
        for (port, socket) in sockets.iter().enumerate() {
            args.extend(["--vdev".into(), format!("net_vhost{port},iface={},queues=1", socket.display()).into()]);
        }
        args.extend(["--", "--forward-mode=io", "--nb-cores=1", "--total-num-mbufs=32768"].map(OsString::from));
        args.extend(["--rxd=1024", "--txd=1024", "--no-mlockall", "--disable-link-check"].map(OsString::from));
        let program = Program {
            name: "testpmd",
            path: Path::new("stdbuf"),
            args,
            env: Vec::new(),
            cores: vec![bench.load_core, bench.switch_core],
            isolated: true,
            log: log.clone(),
        };
        let mut process = program.start()?;
        let forwards = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains(READY));
        process.wait_until("testpmd to forward", START_LIMIT, &bench.interrupt, forwards)?;
        Ok(Started { processes: vec![process], sockets, switch_connects: false })
    }
}
