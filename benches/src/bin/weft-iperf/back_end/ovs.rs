//! Open vSwitch with DPDK: a learning bridge with two vhost-user ports, everything of it in a folder of its own.

use std::path::Path;
use std::time::Duration;

use super::{DPDK_MEBIBYTES, Plug, Running, dpdk_memory, first_line};
use crate::child::{Child, ChildError, Nursery, find_program};

const START_LIMIT: Duration = Duration::from_secs(60);
const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

pub(super) fn look_for(nursery: &Nursery) -> Result<String, String> {
    let is_here = Path::new(DAEMON).is_file() && Path::new(SCHEMA).is_file() && find_program("ovs-vsctl").is_some();
    if !is_here {
        return Err("Open vSwitch with DPDK is not here; benches/iperf/setup installs it".to_owned());
    }
    Ok(first_line(nursery, DAEMON, &["--version"]).replace("ovs-vswitchd (Open vSwitch)", "Open vSwitch"))
}

/// Guests listen: Open vSwitch has no other way that its manual recommends.
pub(super) fn start(tso: bool, nursery: &Nursery) -> Result<Running, ChildError> {
    let (hugepages, memory) = dpdk_memory();
    let ovs = Ovs { nursery, remote: format!("unix:{}", nursery.path("db.sock").display()) };
    let database = ovs.database()?;
    ovs.configure(&memory, tso)?;
    // In a namespace of its own, because it makes interfaces even when nobody asked for them.
    let daemon = ovs.start("ovs-vswitchd", &["unshare", "--net", DAEMON, &ovs.remote, "--no-chdir"])?;
    let plugs = ["vm1", "vm2"].map(|port| Plug { socket: nursery.path(&format!("{port}.sock")), guest_listens: true });
    ovs.add_ports(&plugs)?;
    Ok(Running { children: vec![daemon, database], plugs: plugs.to_vec(), _hugepages: hugepages })
}

struct Ovs<'a> {
    nursery: &'a Nursery,
    remote: String,
}

impl Ovs<'_> {
    fn database(&self) -> Result<Child, ChildError> {
        let file = self.nursery.path("conf.db").display().to_string();
        self.start("ovsdb-tool", &["ovsdb-tool", "create", &file, SCHEMA])?.finish(START_LIMIT)?;
        let listen = format!("--remote=p{}", self.remote);
        let mut server = self.start("ovsdb-server", &["ovsdb-server", &file, &listen, "--no-chdir"])?;
        let socket = self.nursery.path("db.sock");
        server.wait_for("ovsdb-server to listen", START_LIMIT, || socket.exists().then_some(()))?;
        Ok(server)
    }

    fn configure(&self, memory: &[String], tso: bool) -> Result<(), ChildError> {
        let extra = format!("other_config:dpdk-extra=\"--no-pci --no-telemetry {}\"", memory.join(" "));
        let amount = format!("other_config:dpdk-socket-mem={DPDK_MEBIBYTES}");
        let tso = format!("other_config:userspace-tso-enable={tso}");
        self.vsctl(&["--no-wait", "init", "--", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true", &extra, &amount, &tso])
    }

    fn add_ports(&self, plugs: &[Plug]) -> Result<(), ChildError> {
        self.vsctl(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
        for (index, plug) in plugs.iter().enumerate() {
            let (name, path) = (format!("p{index}"), format!("options:vhost-server-path=\"{}\"", plug.socket.display()));
            self.vsctl(&["add-port", "br0", &name, "--", "set", "Interface", &name, "type=dpdkvhostuserclient", &path])?;
        }
        Ok(())
    }

    /// Waits until ovs-vswitchd has done what is said.
    fn vsctl(&self, words: &[&str]) -> Result<(), ChildError> {
        let (db, timeout) = (format!("--db={}", self.remote), format!("--timeout={}", START_LIMIT.as_secs()));
        let words = [&["ovs-vsctl", &db, &timeout], words].concat();
        self.start("ovs-vsctl", &words)?.finish(START_LIMIT).map(drop)
    }

    fn start(&self, name: &str, words: &[&str]) -> Result<Child, ChildError> {
        let dir = self.nursery.dir.display();
        let folders = ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"].map(|variable| format!("{variable}={dir}"));
        let env: Vec<&str> = ["env"].into_iter().chain(folders.iter().map(String::as_str)).collect();
        self.nursery.start(name, &[&env, words].concat())
    }
}
