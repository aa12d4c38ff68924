//! Guests without a kernel: DPDK's testpmd with virtio-user ports.
//!
//! testpmd is driven through its own prompt. It needs no hugepages here (`--no-huge` takes its memory from a memfd,
//! which is what a vhost-user back-end needs), hence no root either.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Process, find_program};
use crate::wait::{wait_for, wait_until};

const PROMPT: &str = "testpmd> ";
const START_LIMIT: Duration = Duration::from_secs(60);
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How long frames may be under way between two looks at the counters.
const QUIET: Duration = Duration::from_millis(200);

/// One virtio-user port.
#[derive(Clone, Debug)]
pub struct VirtioUser {
    socket: PathBuf,
    listens: bool,
    mac: String,
    options: String,
}

impl VirtioUser {
    /// A port that connects to `socket`.
    pub fn new(socket: &Path, mac: &str) -> Self {
        VirtioUser { socket: socket.to_owned(), listens: false, mac: mac.to_owned(), options: String::new() }
    }

    /// The port listens on its socket, and the switch connects.
    pub fn listens(mut self) -> Self {
        self.listens = true;
        self
    }

    /// More options of the driver, as in `mrg_rxbuf=0,in_order=0`.
    pub fn options(mut self, options: &str) -> Self {
        options.clone_into(&mut self.options);
        self
    }

    fn vdev(&self, index: usize) -> String {
        let mut vdev = format!("net_virtio_user{index},path={},queues=1,queue_size=1024,mac={}", self.socket.display(), self.mac);
        if self.listens {
            vdev.push_str(",server=1");
        }
        if !self.options.is_empty() {
            vdev.push(',');
            vdev.push_str(&self.options);
        }
        vdev
    }
}

/// What a port of testpmd has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received from the switch.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames sent to the switch.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that arrived damaged, found no buffer, or could not be sent.
    pub errors: u64,
}

/// A running testpmd.
pub struct Testpmd {
    process: Process,
    port_count: usize,
    // Dropped after the process that uses it.
    _dir: TempDir,
}

impl Testpmd {
    /// Starts it with `ports` and, behind `--`, its own `args`; returns when it takes commands. It does not forward yet.
    pub fn start(ports: &[VirtioUser], args: &[&str]) -> Testpmd {
        let dir = tempfile::Builder::new().prefix("weft-testpmd-").tempdir_in("/tmp").expect("/tmp takes a folder");
        let log = dir.path().join("testpmd.log");
        // Line by line, or what it says would stay in its buffer. Both threads may run on either core: the one that
        // forwards never sleeps, and pinned it would fight with whatever the test has put there.
        let mut all: Vec<String> = ["-oL", &find_program("dpdk-testpmd").display().to_string()]
            .into_iter()
            .chain(["--lcores=0@(0-1),1@(0-1)", "--no-pci", "--no-huge", "-m", "192", "--no-shconf", "--no-telemetry"])
            // Drivers choose no code for AVX-512 by themselves; they do it only where a test asks and the processor has it.
            .chain(["--force-max-simd-bitwidth=512"])
            .map(str::to_owned)
            .collect();
        for (index, port) in ports.iter().enumerate() {
            all.extend(["--vdev".to_owned(), port.vdev(index)]);
        }
        all.extend(["--", "-i", "--no-mlockall", "--total-num-mbufs=8192"].map(str::to_owned));
        all.extend(args.iter().map(|&arg| arg.to_owned()));

        let mut process = Process::spawn("testpmd", &find_program("stdbuf"), &all, &log);
        wait_until("testpmd to show its prompt", START_LIMIT, || {
            process.assert_alive();
            process.log().contains(PROMPT)
        });
        Testpmd { process, port_count: ports.len(), _dir: dir }
    }

    /// Gives it a command, and returns what it printed until its next prompt.
    pub fn command(&mut self, command: &str) -> String {
        let before = self.process.log().len();
        writeln!(self.process.stdin(), "{command}").expect("testpmd takes commands while it lives");
        wait_for(&format!("testpmd to finish `{command}`"), COMMAND_LIMIT, || {
            self.process.assert_alive();
            let log = self.process.log();
            let answer = log.get(before..)?;
            let end = answer.find(PROMPT)?;
            Some(answer[..end].to_owned())
        })
    }

    /// What every port has counted since the start.
    pub fn stats(&mut self) -> Vec<PortStats> {
        let text = self.command("show port stats all");
        let ports = parse_stats(&text);
        assert_eq!(ports.len(), self.port_count, "statistics of all ports in:\n{text}");
        ports
    }

    /// Waits until all ports together have received `frames`.
    pub fn await_received(&mut self, frames: u64, limit: Duration) {
        wait_until(&format!("testpmd to receive {frames} frames"), limit, || {
            self.stats().iter().map(|port| port.received).sum::<u64>() >= frames
        });
    }

    /// Stops sending, takes in what is still under way, and returns the final counters.
    pub fn drain(&mut self) -> Vec<PortStats> {
        self.command("stop");
        self.command("set fwd rxonly");
        self.command("start");
        let mut last = self.stats();
        let mut since = std::time::Instant::now();
        wait_until("frames to come to rest in testpmd", COMMAND_LIMIT, || {
            let now = self.stats();
            if now != last {
                last = now;
                since = std::time::Instant::now();
            }
            since.elapsed() > QUIET
        });
        self.command("stop");
        last
    }

    /// Whatever it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl fmt::Debug for Testpmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Testpmd").field("process", &self.process).finish_non_exhaustive()
    }
}

/// Reads the blocks that `show port stats all` prints, one per port.
fn parse_stats(text: &str) -> Vec<PortStats> {
    text.split("NIC statistics for port")
        .skip(1)
        .map(|block| {
            let value = |name: &str| -> u64 {
                let rest = &block[block.find(name).unwrap_or_else(|| panic!("no {name} in:\n{block}")) + name.len()..];
                let number = rest.split_whitespace().next().unwrap_or_default();
                number.parse().unwrap_or_else(|_| panic!("{name} is {number:?} in:\n{block}"))
            };
            PortStats {
                received: value("RX-packets:"),
                received_bytes: value("RX-bytes:"),
                sent: value("TX-packets:"),
                sent_bytes: value("TX-bytes:"),
                errors: ["RX-missed:", "RX-errors:", "RX-nombuf:", "TX-errors:"].into_iter().map(value).sum(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_per_port() {
        let block = |port: u32, received: u64, sent: u64| {
            format!(
                "  ######## NIC statistics for port {port}  ########\n  RX-packets: {received}   RX-missed: 0   RX-bytes:  64\n  \
                 RX-errors: 1\n  RX-nombuf:  2         \n  TX-packets: {sent}      TX-errors: 3          TX-bytes:  9\n"
            )
        };
        let text = block(0, 7, 5) + &block(1, 5, 7);
        let expected = |received, sent| PortStats { received, received_bytes: 64, sent, sent_bytes: 9, errors: 6 };
        assert_eq!(parse_stats(&text), [expected(7, 5), expected(5, 7)]);
    }
}
