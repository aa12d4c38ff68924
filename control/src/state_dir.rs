//! The state directory: where weft keeps what outlives it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Its name below a run directory that was chosen.
pub(crate) const IN_RUN_DIR: &str = "state";

/// What stands in it would not be weft's own word: whoever can write there says what weft is to do at its next start.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another user's.
    #[error("the state directory {path:?} belongs to another user ({owner}): change its owner, or choose another --state-dir")]
    Foreign {
        /// The state directory.
        path: PathBuf,
        /// The user ID.
        owner: u32,
    },
    /// Anybody can write there.
    #[error("everybody can write to the state directory {0:?}: `chmod o-w` it, or choose another --state-dir")]
    Open(PathBuf),
    /// The operating system refused.
    #[error("cannot look at the state directory {path:?}: {source}")]
    Io {
        /// The state directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Checks that nobody but weft's user and root has had a say in what is in a state directory. One that is not there is fine.
///
/// # Errors
/// When somebody may have.
pub fn check(path: &Path) -> Result<(), StateDirError> {
    match std::fs::metadata(path) {
        Ok(metadata) => check_owner(path, metadata.uid(), metadata.mode(), rustix::process::geteuid().as_raw()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StateDirError::Io { path: path.to_owned(), source }),
    }
}

fn check_owner(path: &Path, owner: u32, mode: u32, user: u32) -> Result<(), StateDirError> {
    if owner != 0 && owner != user {
        return Err(StateDirError::Foreign { path: path.to_owned(), owner });
    }
    if mode & 0o002 != 0 { Err(StateDirError::Open(path.to_owned())) } else { Ok(()) }
}

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
    fn what_others_may_have_written_is_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        check(dir.path()).unwrap();
        check(&dir.path().join("not there yet")).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(check(dir.path()), Err(StateDirError::Open(path)) if path == dir.path()));
        let owned = |owner, user| check_owner(dir.path(), owner, 0o700, user);
        assert!(matches!(owned(1001, 1000), Err(StateDirError::Foreign { owner: 1001, .. })));
        assert!(matches!(owned(1001, 0), Err(StateDirError::Foreign { owner: 1001, .. })));
        assert!(owned(1000, 1000).is_ok() && owned(0, 1000).is_ok());
    }

    #[test]
    fn what_is_said_comes_first_and_a_chosen_run_directory_second() {
        let run_dir = Path::new("/run/somewhere");
        assert_eq!(find(Some(Path::new("/srv/weft")), run_dir, true).unwrap(), Path::new("/srv/weft"));
        assert_eq!(find(None, run_dir, true).unwrap(), Path::new("/run/somewhere/state"));
        assert!(find(Some(Path::new("state")), run_dir, false).unwrap().is_absolute());
        assert!(!find(None, run_dir, false).unwrap().starts_with(run_dir));
    }
}
