//! What a configuration takes from the host that it is for: where sockets are, and addresses for guests without one.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use weft_switch::MacAddr;

use crate::config::{Config, PortConfig};
use crate::values::Name;

/// File name of the control socket in the run directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The host's part in a configuration's meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    run_dir: PathBuf,
    identity: String,
    /// The guests of the default network reach what listens on the loopback, as the command line says.
    access: bool,
}

impl Host {
    /// This host, with the run directory `run_dir`.
    #[must_use]
    pub fn this(run_dir: &Path) -> Self {
        // All three outlive weft and, but for the last, a reboot. Containers often lack the first two.
        let sources = ["/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/hostname"];
        let identity = sources.iter().find_map(|file| std::fs::read_to_string(file).ok().filter(|text| !text.trim().is_empty()));
        Self::new(run_dir, identity.unwrap_or_default().trim())
    }

    /// A host with the given run directory and identity.
    #[must_use]
    pub fn new(run_dir: &Path, identity: &str) -> Self {
        Self { run_dir: run_dir.to_owned(), identity: identity.to_owned(), access: false }
    }

    /// The same host, whose loopback the guests of the default network reach if `access` says so.
    #[must_use]
    pub fn with_access(self, access: bool) -> Self {
        Self { access, ..self }
    }

    /// True if the guests of this network reach the loopback, whatever is declared about it.
    #[must_use]
    pub fn offers_access(&self, network: &Name) -> bool {
        self.access && network.as_str() == Config::DEFAULT_NETWORK
    }

    /// The run directory.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Where the control socket is.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join(CONTROL_SOCKET)
    }

    /// Where the socket of a port is.
    #[must_use]
    pub fn socket(&self, name: &Name, port: &PortConfig) -> PathBuf {
        port.socket.as_ref().map_or_else(|| self.run_dir.join(format!("{name}.sock")), |socket| socket.below(&self.run_dir))
    }

    /// The address of a port's guest.
    #[must_use]
    pub fn mac(&self, name: &Name, port: &PortConfig) -> MacAddr {
        port.mac.map_or_else(|| self.derived_mac(&port.network, name), crate::values::PortMac::address)
    }

    /// A locally administered address that is the same after every restart, and another one on every host.
    ///
    /// The machine ID must not leave the host (machine-id(5)); 40 bits of a SHA-256 don't give it away.
    fn derived_mac(&self, network: &Name, port: &Name) -> MacAddr {
        Self::hashed_mac(&["weft guest address", &self.identity, network.as_str(), port.as_str()])
    }

    /// The address of a network's gateway, made in the same way.
    #[must_use]
    pub fn gateway_mac(&self, network: &Name) -> MacAddr {
        Self::hashed_mac(&["weft gateway address", &self.identity, network.as_str()])
    }

    fn hashed_mac(parts: &[&str]) -> MacAddr {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
            hash.update([0]);
        }
        let digest = hash.finalize();
        MacAddr([0x02, digest[0], digest[1], digest[2], digest[3], digest[4]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host::new(Path::new("/run/weft"), "0123456789abcdef0123456789abcdef")
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_guest_keeps_its_address_over_restarts() {
        // Spelled out: an address that changes with a new version of weft would be a new network card to the guest.
        let mac = host().mac(&name("vm1"), &PortConfig::default());
        assert_eq!(mac.to_string(), "02:f7:1e:7b:8e:95");
    }

    #[test]
    fn derived_addresses_differ_between_ports_networks_and_hosts() {
        let elsewhere = PortConfig { network: name("lab"), ..PortConfig::default() };
        let vm1 = host().mac(&name("vm1"), &PortConfig::default());
        assert_ne!(vm1, host().mac(&name("vm2"), &PortConfig::default()));
        assert_ne!(vm1, host().mac(&name("vm1"), &elsewhere));
        assert_ne!(vm1, Host::new(Path::new("/run/weft"), "other").mac(&name("vm1"), &PortConfig::default()));
        assert!(!vm1.is_multicast());
        assert_ne!(host().gateway_mac(&name("default")), host().gateway_mac(&name("lab")));
        assert_ne!(host().gateway_mac(&name("default")), vm1);
    }

    #[test]
    fn a_relative_socket_is_below_the_run_directory() {
        let with = |socket: &str| PortConfig { socket: Some(socket.parse().unwrap()), ..PortConfig::default() };
        assert_eq!(host().socket(&name("a"), &PortConfig::default()), Path::new("/run/weft/a.sock"));
        assert_eq!(host().socket(&name("a"), &with("x/y.sock")), Path::new("/run/weft/x/y.sock"));
        assert_eq!(host().socket(&name("a"), &with("/tmp/y.sock")), Path::new("/tmp/y.sock"));
    }
}
