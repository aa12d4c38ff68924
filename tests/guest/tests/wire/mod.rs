//! DPDK's vhost library as a back-end: testpmd, which joins two of its ports and passes every frame on as it is.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use weft_tests::process::{Process, find_program};
use weft_tests::wait::wait_until;

const START_LIMIT: Duration = Duration::from_secs(60);

/// testpmd with two vhost ports, which listens on a socket for each.
pub(crate) struct Wire {
    // Ended before the folder of its sockets goes away.
    _process: Process,
    directory: tempfile::TempDir,
}

impl Wire {
    pub(crate) fn start(queue_pairs: usize) -> Self {
        let directory = tempfile::Builder::new().prefix("weft-dpdk-").tempdir_in("/tmp").unwrap();
        let log = directory.path().join("testpmd.log");
        let mut args = vec!["-oL".to_owned(), find_program("dpdk-testpmd").display().to_string()];
        args.extend(
            ["--lcores=0@(0-1),1@(0-1)", "--no-pci", "--no-huge", "-m", "192", "--no-shconf", "--no-telemetry"]
                .map(str::to_owned),
        );
        for port in 0..2 {
            let socket = directory.path().join(format!("{port}.sock"));
            args.extend(["--vdev".to_owned(), format!("net_vhost{port},iface={},queues={queue_pairs}", socket.display())]);
        }
        args.extend(["--", "-i", "--no-mlockall", "--disable-link-check", "--total-num-mbufs=8192"].map(str::to_owned));
        // Without this, testpmd says that it forwards and then throws away what it finds in its rings, before it does.
        args.push("--no-flush-rx".to_owned());
        args.extend(["--forward-mode=io".to_owned(), format!("--rxq={queue_pairs}"), format!("--txq={queue_pairs}")]);
        let mut process = Process::spawn("testpmd", &find_program("stdbuf"), &args, &log);
        let says = |process: &mut Process, what: &str| {
            wait_until(&format!("testpmd to say {what:?}"), START_LIMIT, || {
                process.assert_alive();
                process.log().contains(what)
            });
        };
        says(&mut process, "testpmd> ");
        writeln!(process.stdin(), "start").unwrap();
        says(&mut process, "io packet forwarding");
        Self { _process: process, directory }
    }

    pub(crate) fn socket(&self, port: usize) -> PathBuf {
        self.directory.path().join(format!("{port}.sock"))
    }
}
