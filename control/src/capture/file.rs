//! The files of mirrors, which weft opens with its own rights.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::pcapng;

/// Why nothing can be written to a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("cannot open {path}: {source}", path = .path.display())]
    Open { path: std::path::PathBuf, source: io::Error },
    #[error("{} is not a file: choose another path", .0.display())]
    NoFile(std::path::PathBuf),
    #[error("{} has something else in it than a capture, which shall stay: choose another path, or remove the file", .0.display())]
    SomethingElse(std::path::PathBuf),
}

/// A file to append to: a new one, an empty one, or one that has captures in it already. Never waits for the other end of a pipe.
pub(super) fn open(path: &Path) -> Result<File, FileError> {
    let failed = |source| FileError::Open { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let waits_for_nobody = OFlags::NONBLOCK | OFlags::NOCTTY;
    options.read(true).append(true).create(true).custom_flags(waits_for_nobody.bits().cast_signed());
    let mut file = options.open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(FileError::NoFile(path.to_owned()));
    }
    let mut head = Vec::new();
    (&mut file).take(pcapng::MAGIC.len() as u64).read_to_end(&mut head).map_err(failed)?;
    if head.is_empty() || head == pcapng::MAGIC { Ok(file) } else { Err(FileError::SomethingElse(path.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_written_to_and_only_those_of_captures() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let said = |path: &Path| open(path).unwrap_err().to_string();
        assert!(open(&at("new")).is_ok() && open(&at("new")).is_ok());
        std::fs::write(at("capture"), [&pcapng::MAGIC[..], &[0; 24]].concat()).unwrap();
        assert!(open(&at("capture")).is_ok());
        for other in ["vm\n", "\n\r\r"] {
            std::fs::write(at("other"), other).unwrap();
            assert!(said(&at("other")).contains("has something else in it"));
            assert_eq!(std::fs::read(at("other")).unwrap(), other.as_bytes());
        }
        // With nobody at its other end, a pipe would be waited for.
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(said(&at("pipe")).contains("is not a file"));
        assert!(said(Path::new("/dev/null")).contains("is not a file"));
        assert!(said(dir.path()).contains("cannot open"));
    }
}
