//! The TAP interface: made, given its addresses, and told which work it may leave to us.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::str::FromStr;

use tun_rs::{DeviceBuilder, Layer, SyncDevice};
use weft_guest::feature;

/// Length of the virtio-net header that a TAP puts before a frame, and expects there.
pub(crate) const TAP_HEADER_LEN: usize = 10;

/// How the interface is to be.
#[derive(Clone, Debug)]
pub(crate) struct TapSetup {
    pub(crate) name: String,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) mtu: u16,
    pub(crate) tx_queue_len: u32,
}

/// An address with the length of its prefix, as `ip` wants it.
#[derive(Clone, Debug)]
pub(crate) struct Address(String);

/// Why there is no interface.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapError {
    #[error("the TAP interface {name} can't be made: {source}; that needs root and /dev/net/tun")]
    Make { name: String, source: io::Error },
    #[error("the TAP interface {name} can't be set up ({what}): {source}")]
    SetUp { name: String, what: &'static str, source: io::Error },
    #[error("{0} can't be run: {1}; benches/iperf/setup installs it")]
    Program(&'static str, #[source] io::Error),
    #[error("`{command}` failed: {text}")]
    Refused { command: String, text: String },
}

/// An interface that lives as long as this value.
pub(crate) struct Tap {
    /// Non-blocking. One read or write is one frame behind its header.
    pub(crate) file: File,
    _device: SyncDevice,
}

impl TapSetup {
    /// Makes the interface in the namespace of this process and brings it up. The stack may leave to us what the
    /// negotiated features say that the device does.
    pub(crate) fn make(&self, features: u64) -> Result<Tap, TapError> {
        let failed = |what: &'static str| move |source| TapError::SetUp { name: self.name.clone(), what, source };
        let device = DeviceBuilder::new()
            .layer(Layer::L2)
            .name(&self.name)
            .mtu(self.mtu)
            .enable(false)
            .with(|options| {
                options.offload(true).tx_queue_len(self.tx_queue_len);
                if let Some(mac) = self.mac {
                    options.mac_addr(mac);
                }
            })
            .build_sync()
            .map_err(|source| TapError::Make { name: self.name.clone(), source })?;
        self.withdraw_offloads(features)?;
        for Address(address) in &self.addresses {
            // Duplicate address detection would hold an IPv6 address back for two seconds.
            let no_detection: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            set_up("ip", &[&["address", "add", address, "dev", &self.name], no_detection].concat())?;
        }
        device.enabled(true).map_err(failed("link up"))?;
        device.set_nonblocking(true).map_err(failed("non-blocking"))?;
        let file = device.as_fd().try_clone_to_owned().map_err(failed("a second descriptor"))?;
        Ok(Tap { file: File::from(file), _device: device })
    }

    /// The interface was made with every offload that the kernel has. Those that the back-end doesn't take are switched off.
    fn withdraw_offloads(&self, features: u64) -> Result<(), TapError> {
        let offloads = [
            (feature::CSUM, "tx-checksum-ip-generic"),
            (feature::HOST_TSO, "tcp-segmentation-offload"),
            (HOST_USO, "tx-udp-segmentation"),
        ];
        // Both versions of IP or neither, because the interface has one switch for both.
        let missing = offloads.iter().filter(|&&(bits, _)| features & bits != bits);
        let words: Vec<&str> = missing.flat_map(|&(_, name)| [name, "off"]).collect();
        if words.is_empty() { Ok(()) } else { set_up("ethtool", &[&["-K", &self.name], &words[..]].concat()) }
    }
}

/// Runs one of the programs that set up interfaces.
fn set_up(program: &'static str, args: &[&str]) -> Result<(), TapError> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| TapError::Program(program, error))?;
    if output.status.success() {
        return Ok(());
    }
    let command = format!("{program} {}", args.join(" "));
    Err(TapError::Refused { command, text: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

/// The guest may send UDP datagrams that stand for several.
pub(crate) const HOST_USO: u64 = 1 << virtio_bindings::virtio_net::VIRTIO_NET_F_HOST_USO;
/// The guest takes UDP datagrams that stand for several.
pub(crate) const GUEST_USO: u64 =
    (1 << virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_USO4) | (1 << virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_USO6);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = || format!("{text} is not an address with the length of its prefix, as in 10.0.0.1/24");
        let (ip, prefix_len) = text.split_once('/').ok_or_else(wanted)?;
        let ip: IpAddr = ip.parse().map_err(|_| wanted())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| wanted())?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        if prefix_len > longest { Err(wanted()) } else { Ok(Self(text.to_owned())) }
    }
}

/// Reads a MAC address.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    let mac: Option<[u8; 6]> = bytes.ok().and_then(|bytes| bytes.try_into().ok());
    match mac {
        Some(mac) if mac[0] & 1 == 0 => Ok(mac),
        Some(_) => Err(format!("{text} is a group address")),
        None => Err(format!("{text} is no MAC address such as 02:00:00:00:00:01")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_prefix_that_fits() {
        assert!("10.0.0.1/24".parse::<Address>().is_ok());
        assert!("fd00::1/64".parse::<Address>().is_ok());
        for wrong in ["10.0.0.1", "10.0.0.1/33", "10.0.0/24", "fd00::1/129", "/24"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn mac_addresses_are_six_bytes_of_one_station() {
        assert_eq!(parse_mac("02:00:00:00:00:0a"), Ok([2, 0, 0, 0, 0, 10]));
        for wrong in ["02:00:00:00:00", "01:00:00:00:00:01", "02:00:00:00:00:0g", ""] {
            assert!(parse_mac(wrong).is_err(), "{wrong}");
        }
    }
}
