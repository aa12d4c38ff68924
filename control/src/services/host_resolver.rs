//! The host's own resolvers, as its resolver configuration names them at the moment.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{info, warn};
use weft_switch::dns::parse_resolv_conf;

use crate::addressing::server_list;

/// How often it is looked at whether the file has changed, at most. It is looked at when somebody asks, so an idle switch doesn't.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Follows a file in the format of resolv.conf(5).
#[derive(Debug)]
pub(super) struct HostResolver {
    file: PathBuf,
    servers: Vec<SocketAddr>,
    /// What tells one version of the file from another: the file behind all links, and when it was written.
    version: Option<Version>,
    looked: Option<Instant>,
}

type Version = (u64, u64, i64, i64, u64);

impl HostResolver {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), servers: Vec::new(), version: None, looked: None }
    }

    /// The servers, in the order of the file.
    pub(super) fn servers(&mut self) -> &[SocketAddr] {
        let now = Instant::now();
        if self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_INTERVAL) {
            let first = self.looked.replace(now).is_none();
            self.look(first);
        }
        &self.servers
    }

    fn look(&mut self, first: bool) {
        let version =
            std::fs::metadata(&self.file).map(|file| (file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.size())).ok();
        if version == self.version && !first {
            return;
        }
        self.version = version;
        self.servers = match std::fs::read_to_string(&self.file) {
            Ok(text) => parse_resolv_conf(&text),
            Err(error) => {
                warn!("cannot read {}, so guests can resolve the names of their network only: {error}", self.file.display());
                Vec::new()
            }
        };
        if !self.servers.is_empty() {
            info!("names are asked of {}, as {} says", server_list(&self.servers), self.file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_are_those_of_the_file_as_it_is_now() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        let mut resolver = HostResolver::new(&file);
        assert_eq!(resolver.servers(), []);
        for (text, expected) in
            [("nameserver 192.0.2.1\n", Some("192.0.2.1:53")), ("", None), ("nameserver ::1\n", Some("[::1]:53"))]
        {
            // As those do who write such files: another one in its place.
            let new = directory.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(&new, &file).unwrap();
            resolver.looked = Instant::now().checked_sub(LOOK_INTERVAL);
            assert_eq!(resolver.servers().first().map(ToString::to_string).as_deref(), expected);
        }
    }
}
