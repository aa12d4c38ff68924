//! weft as it comes: one private network, two ports.

use std::path::Path;
use std::time::Duration;

use super::{Plug, Running, first_line};
use crate::child::{ChildError, Nursery};

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
    let run_dir = nursery.path("run");
    let (binary, run_dir_word) = (binary.display().to_string(), run_dir.display().to_string());
    // With --json it prints its status as soon as it runs.
    let mut daemon = nursery.start("weft", &[&binary, "--json", "--run-dir", &run_dir_word, "run"])?;
    daemon.wait_for_log("\"healthy\":", START_LIMIT)?;
    let plugs = ["vm1", "vm2"].map(|port| Plug { socket: run_dir.join(format!("{port}.sock")), guest_listens: false });
    Ok(Running { children: vec![daemon], plugs: plugs.to_vec(), _hugepages: None })
}
