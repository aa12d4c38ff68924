//! The switches that are compared: how each is found, and started for one measurement.

mod ovs;
mod testpmd;
mod weft;

use std::io;
use std::path::{Path, PathBuf};

use crate::process::{Interrupt, Process, ProcessError};
use crate::scenario::Scenario;

pub(crate) use ovs::Ovs;
pub(crate) use testpmd::Testpmd;
pub(crate) use weft::{Weft, WeftArgument};

/// Memory of DPDK's, in MiB: what Open vSwitch asks for by itself.
pub(crate) const DPDK_MEMORY_MIB: u64 = 1024;

/// What every measurement needs.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Moves frames, and does nothing else.
    pub(crate) switch_core: usize,
    /// Makes and takes frames. What a peer does besides moving frames happens here as well.
    pub(crate) load_core: usize,
    pub(crate) interrupt: Interrupt,
}

/// One of those that are compared.
pub(crate) struct Switch {
    /// What it is called in tables.
    pub(crate) name: String,
    /// What it is, with its version.
    pub(crate) about: String,
    pub(crate) kind: Box<dyn Kind>,
}

/// How one kind of switch is started.
pub(crate) trait Kind {
    /// Starts it in `dir` as `scenario` wants it; returns when it takes guests.
    fn start(&self, scenario: &Scenario, dir: &Path, bench: &Bench) -> Result<Started, SwitchError>;

    /// Whether it can do what the scenario asks for.
    fn takes_part(&self, _scenario: &Scenario) -> bool {
        true
    }
}

/// What [`Kind::start`] has started.
#[derive(Debug)]
pub(crate) struct Started {
    /// In the order in which they are ended.
    pub(crate) processes: Vec<Process>,
    /// One for each port.
    pub(crate) sockets: Vec<PathBuf>,
    /// The switch connects to them, and whoever makes the load listens.
    pub(crate) switch_connects: bool,
}

/// Why a switch could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwitchError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

impl Started {
    /// # Errors
    /// When one of its processes has ended.
    pub(crate) fn check_alive(&mut self) -> Result<(), ProcessError> {
        self.processes.iter_mut().try_for_each(Process::check_alive)
    }
}

/// The path of `program`, looked for where an ordinary user's PATH does not lead as well.
fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// The first line that a program prints for `args`; empty if it prints none.
fn first_line(program: &Path, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).stdin(std::process::Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}
