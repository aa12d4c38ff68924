//! The state directory: where weft keeps what outlives it.

use std::io;
use std::path::{Path, PathBuf};

/// Its name below a run directory that was chosen.
pub(crate) const IN_RUN_DIR: &str = "state";

/// Where the state directory is. The first of these that is set: `option` (`--state-dir`), `WEFT_STATE_DIR`, `STATE_DIRECTORY` (systemd.exec(5)); else,
/// below the run directory if that was chosen (`--run-dir`, `WEFT_RUN_DIR`), so that two switches don't share it; else `/var/lib/weft` for root,
/// `$XDG_STATE_HOME/weft` and `~/.local/state/weft` for others.
///
/// # Errors
/// When the path can't be made absolute.
pub fn find(option: Option<&Path>, run_dir: &Path, run_dir_was_chosen: bool) -> io::Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let said = option.map(Path::to_owned).or_else(|| variable("WEFT_STATE_DIR")).or_else(|| variable("STATE_DIRECTORY"));
    let usual = || match () {
        () if run_dir_was_chosen => run_dir.join(IN_RUN_DIR),
        () if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/weft"),
        () => variable("XDG_STATE_HOME")
            .map(|home| home.join("weft"))
            .or_else(|| variable("HOME").map(|home| home.join(".local/state/weft")))
            .unwrap_or_else(|| run_dir.join(IN_RUN_DIR)),
    };
    std::path::absolute(said.unwrap_or_else(usual))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_comes_first_and_a_chosen_run_directory_second() {
        let run_dir = Path::new("/run/somewhere");
        assert_eq!(find(Some(Path::new("/srv/weft")), run_dir, true).unwrap(), Path::new("/srv/weft"));
        assert_eq!(find(None, run_dir, true).unwrap(), Path::new("/run/somewhere/state"));
        assert!(find(Some(Path::new("state")), run_dir, false).unwrap().is_absolute());
        assert!(!find(None, run_dir, false).unwrap().starts_with(run_dir));
    }
}
