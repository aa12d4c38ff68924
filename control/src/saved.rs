//! What a weft without a configuration file keeps of its configuration: all of it, after each change that came by the control socket.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use tracing::info;

use crate::config::{Config, WorkersConfig};
use crate::config_file::{self, FileError};
use crate::host::Host;

/// File name in the state directory. Its content is that of a configuration file.
pub const SAVED_FILE: &str = "config.toml";

/// A configuration can't be kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write the configuration to {file:?}: {source}; make room there, or start weft with a --state-dir that it can write to"
)]
pub struct SaveError {
    /// The file.
    pub file: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

/// Where a configuration is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedConfig {
    file: PathBuf,
    /// What is kept of the workers: not what the command line says about them.
    workers: WorkersConfig,
}

impl SavedConfig {
    /// The configuration that was kept in `state_dir`, or the built-in one if none was.
    ///
    /// # Errors
    /// When there is a file that can't be used.
    pub fn load(state_dir: &Path, host: &Host) -> Result<(Self, Config), FileError> {
        let file = state_dir.join(SAVED_FILE);
        let config = match config_file::read(&file, host) {
            Ok(config) => {
                info!("the configuration is as it was left, in {}; to begin anew, remove that file", file.display());
                config
            }
            Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Config::built_in(),
            Err(error) => return Err(error),
        };
        Ok((Self { file, workers: config.workers.clone() }, config))
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Keeps a configuration.
    ///
    /// # Errors
    /// When it can't be written. The one that was kept before stays.
    pub fn save(&self, config: &Config) -> Result<(), SaveError> {
        self.write(config).map_err(|source| SaveError { file: self.file.clone(), source })
    }

    /// Whenever it is interrupted, either the old file is there or the new one.
    fn write(&self, config: &Config) -> io::Result<()> {
        let kept = Config { workers: self.workers.clone(), ..config.clone() };
        let text = toml::to_string_pretty(&kept).map_err(io::Error::other)?;
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut new = NamedTempFile::new_in(dir)?;
        new.write_all(text.as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(&self.file)?;
        std::fs::File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WorkerOverrides;
    use crate::values::WorkerCount;

    fn load(dir: &Path) -> Result<(SavedConfig, Config), FileError> {
        SavedConfig::load(dir, &Host::new(Path::new("/run/weft"), "test"))
    }

    #[test]
    fn what_was_kept_is_there_again_but_for_what_the_command_line_said() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("not/there/yet");
        let (saved, mut config) = load(&state_dir).unwrap();
        assert_eq!(config, Config::built_in());
        config.ports.remove(&"vm2".parse().unwrap());
        let overrides = WorkerOverrides { count: Some(WorkerCount::of::<4>()), ..WorkerOverrides::default() };
        saved.save(&config.clone().with_overrides(&overrides)).unwrap();
        assert_eq!(load(&state_dir).unwrap(), (saved, config));
    }

    #[test]
    fn a_file_that_is_no_configuration_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(SAVED_FILE), "nonsense = 1").unwrap();
        let message = load(dir.path()).unwrap_err().to_string();
        assert!(message.contains("config.toml:1:1"), "{message}");
    }
}
