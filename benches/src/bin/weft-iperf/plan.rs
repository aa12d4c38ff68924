//! What is measured: who talks to whom, through what, and how.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Setting {
    /// Two guests that are network namespaces, at native speed
    Native,
    /// Two QEMU guests under emulation
    Qemu,
    /// A guest that is a network namespace, and the host
    NativeHost,
    /// A QEMU guest under emulation, and the host
    QemuHost,
}

/// What carries the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BackEnd {
    /// weft: a private network of two guests, or its NAT between one and the host
    Weft,
    /// DPDK testpmd, two vhost ports wired together, TSO offered
    TestpmdTso,
    /// DPDK testpmd, two vhost ports wired together
    Testpmd,
    /// Open vSwitch with DPDK, a learning bridge
    OvsDpdk,
    /// Open vSwitch with DPDK, a learning bridge, userspace TSO switched on
    OvsDpdkTso,
    /// passt, vhost-user
    Passt,
    /// QEMU's own user networking
    Slirp,
    /// The same library between a namespace and the host
    Slirp4netns,
    /// A veth pair and no switch at all: the kernel's own limit
    Veth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    /// TCP connections, one after the other, each for a request and an answer of a byte
    Crr,
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Direction {
    /// From the first guest, to the second or to the host
    Forward,
    /// From the second guest or the host, to the first guest
    Back,
    /// Both at once
    Both,
}

/// What is measured in one turn, in every direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Load {
    pub(crate) protocol: Protocol,
    pub(crate) streams: u16,
    /// Bytes of payload of each datagram; as many as iperf3 thinks fit unless given.
    pub(crate) datagram: Option<u16>,
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Case {
    #[serde(flatten)]
    pub(crate) load: Load,
    pub(crate) direction: Direction,
}

/// One table: its columns are back-ends, its lines are cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct Table {
    pub(crate) setting: Setting,
    pub(crate) mtu: u16,
}

/// Everything that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) tables: Vec<Table>,
    pub(crate) back_ends: Vec<BackEnd>,
    pub(crate) loads: Vec<Load>,
    pub(crate) directions: Vec<Direction>,
    pub(crate) rounds: u32,
    pub(crate) duration: Duration,
}

impl Setting {
    /// What can be measured there; the first is what the others are compared with.
    pub(crate) fn back_ends(self) -> &'static [BackEnd] {
        match self {
            Self::Native => {
                &[BackEnd::Weft, BackEnd::TestpmdTso, BackEnd::Testpmd, BackEnd::OvsDpdk, BackEnd::OvsDpdkTso, BackEnd::Veth]
            }
            Self::Qemu => &[BackEnd::Weft, BackEnd::OvsDpdk],
            Self::NativeHost => &[BackEnd::Weft, BackEnd::Passt, BackEnd::Slirp4netns, BackEnd::Veth],
            Self::QemuHost => &[BackEnd::Weft, BackEnd::Passt, BackEnd::Slirp],
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Native => "two guests at native speed",
            Self::Qemu => "two QEMU guests (emulated)",
            Self::NativeHost => "a guest at native speed and the host",
            Self::QemuHost => "a QEMU guest (emulated) and the host",
        }
    }
}

impl BackEnd {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("every back-end has a name").get_name().to_owned()
    }

    /// Why it has no figures for this MTU.
    pub(crate) fn does_not_apply(self, mtu: u16) -> Option<&'static str> {
        match self {
            Self::OvsDpdk | Self::OvsDpdkTso if mtu > 9_702 => Some("its ports take frames of 9.7 KB at most"),
            Self::Slirp if mtu > 1500 => Some("it has no setting for the MTU"),
            _ => None,
        }
    }
}

impl Plan {
    /// The back-ends of a table, in its order.
    pub(crate) fn back_ends_of(&self, table: Table) -> impl Iterator<Item = BackEnd> {
        table.setting.back_ends().iter().copied().filter(|back_end| self.back_ends.contains(back_end))
    }

    /// The same for one round: each begins with another one, so that none always profits from what came before it.
    pub(crate) fn turns(&self, table: Table, round: u32) -> Vec<BackEnd> {
        let applies = |back_end: &BackEnd| back_end.does_not_apply(table.mtu).is_none();
        let mut turns: Vec<BackEnd> = self.back_ends_of(table).filter(applies).collect();
        if !turns.is_empty() {
            let first = round as usize % turns.len();
            turns.rotate_left(first);
        }
        turns
    }

    /// Every line of a table.
    pub(crate) fn cases(&self) -> impl Iterator<Item = Case> {
        self.loads.iter().flat_map(|&load| self.cases_of(load))
    }

    /// The lines that belong to one load.
    pub(crate) fn cases_of(&self, load: Load) -> impl Iterator<Item = Case> {
        let applies = move |direction: &&Direction| load.protocol != Protocol::Crr || **direction == Direction::Forward;
        self.directions.iter().filter(applies).map(move |&direction| Case { load, direction })
    }
}

impl Table {
    pub(crate) fn title(self) -> String {
        format!("{}, MTU {}", self.setting.title(), self.mtu)
    }
}

impl Load {
    /// Every combination, in the order of a table.
    pub(crate) fn all(protocols: &[Protocol], streams: &[u16], datagrams: &[u16]) -> Vec<Self> {
        let sizes = |protocol| match protocol {
            Protocol::Udp if !datagrams.is_empty() => datagrams.iter().copied().map(Some).collect(),
            _ => vec![None],
        };
        let of_one = |protocol| {
            let of_size = move |datagram| streams.iter().map(move |&streams| Self { protocol, streams, datagram });
            sizes(protocol).into_iter().flat_map(of_size)
        };
        protocols.iter().copied().flat_map(of_one).collect()
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Crr => {
                let plural = if self.streams == 1 { "" } else { "s" };
                return write!(f, "TCP connections a second, {} client{plural}", self.streams);
            }
        };
        let plural = if self.streams == 1 { "" } else { "s" };
        let size = self.datagram.map_or_else(String::new, |bytes| format!(" of {bytes} B"));
        write!(f, "{protocol}{size}, {} stream{plural}", self.streams)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Forward => "→",
            Direction::Back => "←",
            Direction::Both => "⇄",
        };
        write!(f, "{} {direction}", self.load)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            tables: Vec::new(),
            back_ends: BackEnd::value_variants().to_vec(),
            loads: Load::all(&[Protocol::Tcp, Protocol::Udp, Protocol::Crr], &[1, 8], &[64]),
            directions: vec![Direction::Forward, Direction::Back],
            rounds: 3,
            duration: Duration::from_secs(1),
        }
    }

    #[test]
    fn every_round_begins_with_another_back_end() {
        let table = Table { setting: Setting::QemuHost, mtu: 1500 };
        assert_eq!(plan().turns(table, 0), [BackEnd::Weft, BackEnd::Passt, BackEnd::Slirp]);
        assert_eq!(plan().turns(table, 1), [BackEnd::Passt, BackEnd::Slirp, BackEnd::Weft]);
        assert_eq!(plan().turns(Table { mtu: 65_520, ..table }, 1), [BackEnd::Passt, BackEnd::Weft]);
    }

    #[test]
    fn cases_are_named_as_people_say_it() {
        let names: Vec<String> = plan().cases().map(|case| case.to_string()).collect();
        let of_streams = ["TCP, 1 stream", "TCP, 8 streams", "UDP of 64 B, 1 stream", "UDP of 64 B, 8 streams"];
        let both_ways = of_streams.iter().flat_map(|name| ["→", "←"].map(|arrow| format!("{name} {arrow}")));
        let of_clients = ["1 client →", "8 clients →"].map(|clients| format!("TCP connections a second, {clients}"));
        assert_eq!(names, both_ways.chain(of_clients).collect::<Vec<_>>());
    }
}
