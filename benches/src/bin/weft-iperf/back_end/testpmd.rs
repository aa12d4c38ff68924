//! DPDK's testpmd with two vhost ports wired together: no switching at all, two copies.

use std::thread::available_parallelism;
use std::time::Duration;

use super::{DPDK_MEBIBYTES, Plug, Running, dpdk_memory, first_line};
use crate::child::{ChildError, Nursery, find_program};

const START_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn look_for(nursery: &Nursery) -> Result<String, String> {
    find_program("dpdk-testpmd").ok_or("dpdk-testpmd is not here; benches/iperf/setup installs it")?;
    let version = first_line(nursery, "dpkg-query", &["--show", "--showformat=${Version}", "dpdk-dev"]);
    Ok(format!("DPDK {version} testpmd"))
}

pub(super) fn start(tso: bool, nursery: &Nursery) -> Result<Running, ChildError> {
    let (hugepages, memory) = dpdk_memory();
    let plugs = ["vm1", "vm2"].map(|port| Plug { socket: nursery.path(&format!("{port}.sock")), guest_listens: false });
    let program = find_program("dpdk-testpmd").unwrap_or_else(|| "dpdk-testpmd".into()).display().to_string();
    // Its threads run wherever there is room, as those of weft do: pinned, the one that never sleeps would fight with the guests.
    let last = available_parallelism().map_or(0, |count| count.get() - 1);
    let lcores = format!("--lcores=0@(0-{last}),1@(0-{last})");
    // Line by line, or what it says would stay in its buffer.
    let mut words: Vec<String> =
        ["stdbuf", "-oL", &program, &lcores, "-m", &DPDK_MEBIBYTES.to_string()].map(str::to_owned).to_vec();
    words.extend(memory);
    words.extend(["--no-pci", "--no-telemetry"].map(str::to_owned));
    for (index, plug) in plugs.iter().enumerate() {
        let vdev = format!("net_vhost{index},iface={},queues=1,tso={}", plug.socket.display(), u8::from(tso));
        words.extend(["--vdev".to_owned(), vdev]);
    }
    words.extend(["--", "--nb-cores=1", "--forward-mode=io", "--no-mlockall", "--total-num-mbufs=65536"].map(str::to_owned));
    words.extend(["--rxd=1024", "--txd=1024", "--disable-link-check"].map(str::to_owned));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut testpmd = nursery.start("testpmd", &words)?;
    testpmd.wait_for_log("Press enter to exit", START_LIMIT)?;
    Ok(Running { children: vec![testpmd], plugs: plugs.to_vec(), _hugepages: hugepages })
}
