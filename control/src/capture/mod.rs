//! Captures: frames of some ports, as a pcapng file, to whoever asked for them or to a file of a mirror.
//!
//! A client that asks for a capture gets one line as an answer, and from then on its connection carries the file: bytes to the client, until it closes its own direction or
//! goes, a limit is reached, or the ports are gone. So weft opens no file for it, and what the client may write is what its own user may. The file of a mirror is another matter: the
//! daemon opens it, with its own rights, because it is declared by whoever may declare the switch.
//!
//! Each capture has a thread, which writes. A client that does not read keeps its thread waiting, and nobody else; frames are lost then, and counted.

mod file;
mod pcapng;
mod thread;

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;
use weft_dataplane::{Capture, CaptureStopper, WatchSettings};
use weft_switch::filter::{Filter, ParseFilterError};
use weft_switch::vlan::VlanId;

use self::pcapng::Interface;
pub(crate) use self::pcapng::Passing;
use self::thread::{Limits, Recording};
use crate::refusal::Refusal;
use crate::rpc::RpcError;
use crate::switch::Switch;
use crate::values::Name;
use crate::vlans::VlanRef;

/// What is done with a connection that is not for requests any more; with what it was not sent yet.
pub type Streaming = Box<dyn FnOnce(UnixStream, Vec<u8>) + Send>;

/// How long weft waits for captures to be written to their end when it stops.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which way frames pass a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From its guest into the switch.
    In,
    /// Out of the switch to its guest.
    Out,
    /// Either.
    #[default]
    Both,
}

impl Direction {
    /// True for what is usual.
    #[must_use]
    pub fn is_both(&self) -> bool {
        *self == Self::Both
    }
}

/// Which frames are meant, in the words of pcap-filter(7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct FilterText(Filter);

impl TryFrom<String> for FilterText {
    type Error = ParseFilterError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl std::str::FromStr for FilterText {
    type Err = ParseFilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl From<FilterText> for String {
    fn from(FilterText(filter): FilterText) -> Self {
        filter.text().to_owned()
    }
}

impl FilterText {
    /// True if all frames are meant.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_all()
    }

    pub(crate) fn filter(&self) -> &Filter {
        &self.0
    }
}

/// What is to be captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CaptureAsked {
    /// The ports; all of them, or all of the network, if none is given.
    pub ports: Vec<Name>,
    /// All ports of this network, instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// `in` for what guests send, `out` for what they get, `both` if nothing is said.
    pub direction: Direction,
    /// Only what is in this VLAN, whether or not it has a tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanRef>,
    /// Which frames, in the words of pcap-filter(7); all if nothing is said.
    pub filter: FilterText,
    /// At most so many bytes of each frame; all of them if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snap_len: Option<u32>,
    /// The capture ends after so many frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The capture ends after so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// The capture ends before the file has more bytes than that, its statistics not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// A capture that has begun. What comes on this connection after the line with the answer is a pcapng file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaptureStarted {
    /// Its ports, in the order of its interfaces.
    pub ports: Vec<Name>,
}

/// The captures that are being written.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    /// How many there are.
    running: Arc<AtomicUsize>,
}

impl Drop for Captures {
    /// Their ends are written while there is time. Whoever does not read is left behind.
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.running.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A capture into a file, until it is dropped.
#[derive(Debug)]
pub(crate) struct FileCapture {
    pub(crate) stopper: CaptureStopper,
    ended: Arc<OnceLock<String>>,
}

impl FileCapture {
    /// Why it has ended, if it did so by itself.
    pub(crate) fn ended(&self) -> Option<&String> {
        self.ended.get()
    }
}

impl Drop for FileCapture {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
struct Running(Arc<AtomicUsize>);

impl Captures {
    fn count_one(&self) -> Running {
        self.running.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(&self.running))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Switch {
    pub(crate) fn start_capture(&mut self, asked: &CaptureAsked) -> Result<CaptureStarted, RpcError> {
        if asked.network.is_some() && !asked.ports.is_empty() {
            return Err(RpcError::bad_params("name ports, or a network whose ports are meant, and not both"));
        }
        let ports = self.ports_asked(asked)?;
        let vlan = asked.vlan.as_ref().map(|vlan| self.vlan_of_ports(&ports, vlan)).transpose()?;
        let watch = self.watch_settings(&ports, asked.direction, vlan, asked.filter.filter());
        let snap_len = asked.snap_len.filter(|len| *len > 0);
        let capture = self.dataplane.capture(watch, snap_len.map_or(usize::MAX, |len| len as usize)).map_err(Refusal::from)?;
        let recording = self.recording(capture, &ports, snap_len, asked.filter.filter());
        let limits = Limits { count: asked.count, time: asked.seconds.map(Duration::from_secs), bytes: asked.max_bytes };
        let running = self.captures.count_one();
        self.streaming = Some(Box::new(move |stream, unsent| {
            let spawned = std::thread::Builder::new().name("weft-capture".to_owned()).spawn(move || {
                let _running = running;
                recording.stream(&stream, &unsent, &limits);
            });
            if let Err(error) = spawned {
                warn!("a capture can't have a thread: {error}");
            }
        }));
        Ok(CaptureStarted { ports })
    }

    /// Has frames written to a file, with weft's own rights. Behind what is in it already, which are captures.
    pub(crate) fn capture_to_file(
        &mut self,
        (file, name): (&std::path::Path, &Name),
        (ports, watch): (&[Name], WatchSettings),
        max_bytes: u64,
    ) -> Result<FileCapture, String> {
        let opened = file::open(file).map_err(|error| error.to_string())?;
        let filter = watch.filter.clone();
        let capture = self.dataplane.capture(watch, usize::MAX).map_err(|error| error.to_string())?;
        let stopper = capture.stopper();
        let recording = self.recording(capture, ports, None, &filter);
        let limits = Limits { bytes: Some(max_bytes), ..Limits::default() };
        let (running, name, shown) = (self.captures.count_one(), name.clone(), file.to_owned());
        let ended = Arc::new(OnceLock::new());
        let end = Arc::clone(&ended);
        let write = move || {
            let _running = running;
            let why = match recording.write_to(opened, &limits) {
                Ok(false) => return,
                Ok(true) => format!("ended: {} is as large as it may be", shown.display()),
                Err(error) => format!("ended: cannot write to {}: {error}", shown.display()),
            };
            warn!("mirror \"{name}\" {why}");
            // Nobody else says so.
            let _ = end.set(why);
        };
        std::thread::Builder::new().name("weft-capture".to_owned()).spawn(write).map_err(|error| error.to_string())?;
        Ok(FileCapture { stopper, ended })
    }

    fn recording(&self, capture: Capture, ports: &[Name], snap_len: Option<u32>, filter: &Filter) -> Recording {
        let interface = |name: &Name| Interface {
            name: name.to_string(),
            description: format!("network {}", self.config.ports[name].network),
            mac: self.ports[name].mac,
            filter: filter.text().to_owned(),
            snap_len,
        };
        Recording { capture, interfaces: ports.iter().map(interface).collect() }
    }

    /// The ports that are meant.
    fn ports_asked(&self, asked: &CaptureAsked) -> Result<Vec<Name>, Refusal> {
        if let Some(name) = asked.ports.iter().find(|name| !self.ports.contains_key(*name)) {
            return Err(self.no_port(name));
        }
        if let Some(network) = asked.network.as_ref().filter(|name| !self.config.networks.contains_key(*name)) {
            return Err(self.no_network(network));
        }
        let is_meant = |name: &Name| {
            let network = &self.config.ports[name].network;
            let by_network = asked.network.as_ref().map(|wanted| wanted == network);
            asked.ports.contains(name) || by_network.unwrap_or(asked.ports.is_empty())
        };
        let ports: Vec<Name> =
            self.ports.keys().filter(|name| self.config.ports.contains_key(*name) && is_meant(name)).cloned().collect();
        if ports.is_empty() { Err(Refusal::NothingToCapture) } else { Ok(ports) }
    }

    /// A VLAN by the name or number that it has on the network of the first of some ports.
    pub(crate) fn vlan_of_ports(&self, ports: &[Name], vlan: &VlanRef) -> Result<VlanId, Refusal> {
        let network = ports.iter().find_map(|name| self.config.networks.get(&self.config.ports.get(name)?.network));
        match network {
            Some(network) => network.vlans.resolve(vlan).map_err(|vlan| Refusal::NoSuchVlan { vlan }),
            None => Err(Refusal::NothingToCapture),
        }
    }

    pub(crate) fn watch_settings(
        &self,
        ports: &[Name],
        direction: Direction,
        vlan: Option<VlanId>,
        filter: &Filter,
    ) -> WatchSettings {
        WatchSettings {
            ports: ports.iter().filter_map(|name| self.ports.get(name)).map(|port| port.id).collect(),
            inward: direction != Direction::Out,
            outward: direction != Direction::In,
            vlan,
            filter: filter.clone(),
        }
    }
}
