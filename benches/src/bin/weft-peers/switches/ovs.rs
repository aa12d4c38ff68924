//! Open vSwitch with DPDK, run by hand out of a temporary directory: a bridge with MAC learning, as it comes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Bench, DPDK_MEMORY_MIB, Kind, Started, Switch, SwitchError, first_line};
use crate::process::{Process, Program};
use crate::scenario::Scenario;

const START_LIMIT: Duration = Duration::from_secs(30);
/// In a network namespace of its own, so the name meets no other.
const BRIDGE: &str = "br0";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Open vSwitch's programs, installed or unpacked somewhere.
#[derive(Clone, Debug)]
pub(crate) struct Ovs {
    vswitchd: PathBuf,
    ovsdb_server: PathBuf,
    ovsdb_tool: PathBuf,
    vsctl: PathBuf,
    schema: PathBuf,
}

/// One Open vSwitch that is being started.
struct Start<'a> {
    programs: &'a Ovs,
    dir: &'a Path,
    bench: &'a Bench,
}

impl Ovs {
    /// The installed one, or else the one that was unpacked below `unpacked`.
    ///
    /// # Errors
    /// A sentence, when it is not there.
    pub(crate) fn find(unpacked: &Path) -> Result<Switch, String> {
        let found = Self::below(Path::new("/")).or_else(|| Self::below(unpacked));
        let ovs = found.ok_or("Open vSwitch with DPDK is not installed; benches/peers/setup fetches it")?;
        let version = first_line(&ovs.vswitchd, &["--version"]);
        let version = version.split_whitespace().last().unwrap_or_default();
        let about = format!("Open vSwitch {version} with {}", ovs.dpdk());
        Ok(Switch { name: "ovs-dpdk".to_owned(), about, kind: Box::new(ovs) })
    }

    fn below(root: &Path) -> Option<Self> {
        let file = |path: &str| Some(root.join(path.trim_start_matches('/'))).filter(|path| path.is_file());
        Some(Self {
            vswitchd: file("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")?,
            ovsdb_server: file("/usr/sbin/ovsdb-server")?,
            ovsdb_tool: file("/usr/bin/ovsdb-tool")?,
            vsctl: file("/usr/bin/ovs-vsctl")?,
            schema: file(SCHEMA)?,
        })
    }

    fn dpdk(&self) -> String {
        let output = std::process::Command::new(&self.vswitchd).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().find(|line| line.starts_with("DPDK")).unwrap_or("DPDK").trim().to_owned()
    }
}

impl Kind for Ovs {
    fn start(&self, scenario: &Scenario, dir: &Path, bench: &Bench) -> Result<Started, SwitchError> {
        let start = Start { programs: self, dir, bench };
        let mut database = start.database()?;
        let core_mask = |core: usize| format!("{:#x}", 1_u128 << core);
        let dpdk = [
            "dpdk-init=true".to_owned(),
            r#"dpdk-extra="--no-pci --in-memory --single-file-segments""#.to_owned(),
            format!("dpdk-socket-mem={DPDK_MEMORY_MIB}"),
            format!("dpdk-lcore-mask={}", core_mask(bench.load_core)),
            format!("pmd-cpu-mask={}", core_mask(bench.switch_core)),
        ];
        let other_config = dpdk.iter().map(|setting| format!("other_config:{setting}"));
        let settings = ["--no-wait", "init", "--", "set", "Open_vSwitch", "."].map(str::to_owned);
        start.vsctl(&settings.into_iter().chain(other_config).collect::<Vec<_>>(), &mut [&mut database])?;

        let mut vswitchd = start.vswitchd()?;
        let sockets: Vec<_> = (0..scenario.ports).map(|port| dir.join(format!("p{port}.sock"))).collect();
        start.vsctl(&ports(&sockets, scenario.ovs), &mut [&mut vswitchd, &mut database])?;
        Ok(Started { processes: vec![vswitchd, database], sockets, switch_connects: true })
    }
}

/// What makes a bridge and its ports.
fn ports(sockets: &[PathBuf], more: &[&str]) -> Vec<String> {
    let mut words: Vec<_> = ["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev"].map(str::to_owned).to_vec();
    for (port, socket) in sockets.iter().enumerate() {
        let path = format!("options:vhost-server-path=\"{}\"", socket.display());
        words.extend(["--", "add-port", BRIDGE, &format!("p{port}")].map(str::to_owned));
        words.extend(["--", "set", "Interface", &format!("p{port}"), "type=dpdkvhostuserclient", &path].map(str::to_owned));
    }
    if !more.is_empty() {
        words.push("--".to_owned());
    }
    words.extend(more.iter().map(|&word| word.to_owned()));
    words
}

impl Start<'_> {
    fn database(&self) -> Result<Process, SwitchError> {
        let file = self.dir.join("conf.db");
        let create = vec!["create".into(), file.clone().into(), self.programs.schema.clone().into()];
        let tool = self.program("ovsdb-tool", &self.programs.ovsdb_tool, create).start()?;
        tool.finish(START_LIMIT, &self.bench.interrupt, || Ok(()))?;
        let socket = self.dir.join("db.sock");
        let remote = format!("--remote=punix:{}", socket.display());
        let mut server = self.program("ovsdb-server", &self.programs.ovsdb_server, vec![file.into(), remote.into()]).start()?;
        server.wait_until("ovsdb-server to listen", START_LIMIT, &self.bench.interrupt, || socket.exists())?;
        Ok(server)
    }

    fn vswitchd(&self) -> Result<Process, SwitchError> {
        let args = vec![self.remote(""), "--no-chdir".into()];
        // DPDK and Open vSwitch put the threads that move frames onto the core for it by themselves.
        let program = self.program("ovs-vswitchd", &self.programs.vswitchd, args);
        Ok(Program { isolated: true, ..program }.start()?)
    }

    /// Runs ovs-vsctl, which waits until ovs-vswitchd has done what it says.
    fn vsctl(&self, words: &[String], needed: &mut [&mut Process]) -> Result<(), SwitchError> {
        let mut args = vec![self.remote("--db="), format!("--timeout={}", START_LIMIT.as_secs()).into()];
        args.extend(words.iter().map(Into::into));
        let process = self.program("ovs-vsctl", &self.programs.vsctl, args).start()?;
        let alive = || needed.iter_mut().try_for_each(|process| process.check_alive());
        Ok(process.finish(START_LIMIT, &self.bench.interrupt, alive)?)
    }

    fn remote(&self, option: &str) -> OsString {
        format!("{option}unix:{}", self.dir.join("db.sock").display()).into()
    }

    fn program<'a>(&'a self, name: &'a str, path: &'a Path, args: Vec<OsString>) -> Program<'a> {
        let dirs = ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"];
        Program {
            name,
            path,
            args,
            env: dirs.map(|variable| (variable, self.dir.to_owned())).to_vec(),
            cores: vec![self.bench.load_core],
            isolated: false,
            log: self.dir.join(format!("{name}.log")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_added_to_the_bridge_and_given_its_socket() {
        let words = ports(&["/tmp/a".into(), "/tmp/b".into()], &["set", "port", "p0", "tag=7"]).join(" ");
        assert!(words.contains("-- add-port br0 p1 -- set Interface p1 type=dpdkvhostuserclient"), "{words}");
        assert!(words.contains(r#"options:vhost-server-path="/tmp/b" -- set port p0 tag=7"#), "{words}");
    }

    #[test]
    fn what_is_not_unpacked_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Ovs::below(dir.path()).is_none());
    }
}
