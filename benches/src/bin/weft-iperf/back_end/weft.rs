//! weft: two ports on its default network, or one and the host behind its NAT.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Plug, Running, first_line};
use crate::child::{ChildError, Nursery};
use crate::net::HOST_GATEWAY;

const START_LIMIT: Duration = Duration::from_secs(15);

pub(super) fn look_for(binary: &Path, nursery: &Nursery) -> Result<String, String> {
    if !binary.is_file() {
        return Err(format!(
            "{} is not there; build it with `cargo build --release -p weft`, or say --weft PATH",
            binary.display()
        ));
    }
    Ok(first_line(nursery, &binary.display().to_string(), &["--version"]))
}

pub(super) fn start(binary: &Path, nursery: &Nursery) -> Result<Running, ChildError> {
    start_with(binary, &[], nursery)
}

/// A network where passt has it, whose guests reach the host's loopback.
pub(super) fn start_nat(binary: &Path, mtu: u16, nursery: &Nursery) -> Result<Running, ChildError> {
    let path = nursery.path("weft.toml");
    let network = format!(
        "[networks.default]\nsubnet = \"10.0.2.0/24\"\ngateway = \"{HOST_GATEWAY}\"\nmtu = {mtu}\nhost_access = true\n\n\
         [ports.vm1]\n[ports.vm2]\n"
    );
    fs::write(&path, network).map_err(|source| ChildError::File { path: path.clone(), source })?;
    start_with(binary, &["--config", &path.display().to_string()], nursery)
}

fn start_with(binary: &Path, options: &[&str], nursery: &Nursery) -> Result<Running, ChildError> {
    let run_dir = nursery.path("run");
    let (binary, run_dir_word) = (binary.display().to_string(), run_dir.display().to_string());
    // With --json it prints its status as soon as it runs.
    let words = [&[&binary, "--json", "--run-dir", &run_dir_word, "run"], options].concat();
    let mut daemon = nursery.start("weft", &words)?;
    daemon.wait_for_log("\"healthy\":", START_LIMIT)?;
    let plugs = ["vm1", "vm2"].map(|port| Plug { socket: run_dir.join(format!("{port}.sock")), guest_listens: false });
    Ok(Running { children: vec![daemon], plugs: plugs.to_vec(), _hugepages: None })
}
