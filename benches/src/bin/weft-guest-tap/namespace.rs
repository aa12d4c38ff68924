//! The network namespace that is the guest.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};

/// Which namespace.
#[derive(Clone, Debug)]
pub(crate) enum Namespace {
    /// A new one. It ends with the last process in it.
    New,
    /// One that `ip netns` made.
    Named(String),
}

/// Why the namespace can't be entered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    #[error("a new network namespace can't be made: {0}; run this as root")]
    Unshare(#[source] io::Error),
    #[error("there is no network namespace {0}: make it with `ip netns add {0}`")]
    Missing(String),
    #[error("the network namespace {name} can't be entered: {source}; run this as root")]
    Enter { name: String, source: io::Error },
}

impl Namespace {
    /// Moves this process there. It must have one thread only.
    pub(crate) fn enter(&self) -> Result<(), NamespaceError> {
        match self {
            Self::New => unshare(CloneFlags::CLONE_NEWNET).map_err(|error| NamespaceError::Unshare(error.into())),
            Self::Named(name) => {
                let enter = |source| NamespaceError::Enter { name: name.clone(), source };
                let file = match File::open(Path::new("/run/netns").join(name)) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NamespaceError::Missing(name.clone())),
                    Err(error) => return Err(enter(error)),
                };
                setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| enter(error.into()))
            }
        }
    }
}
