//! Two stations and what lies between them, ready to be measured.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weft_tests::Guest;

use crate::back_end::{Plug, Programs, Running, slirp4netns};
use crate::child::{Child, ChildError, Nursery};
use crate::measure::{self, MeasureError, Rate};
use crate::plan::{BackEnd, Case, Protocol, Setting, Table};
use crate::stop::InVain;

/// The first of two guests, and the second.
const GUESTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
/// A guest that talks to the host, where passt and QEMU put it.
pub(crate) const HOST_GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The host as that guest sees it.
pub(crate) const HOST_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// iperf3's usual port, for a server that has its stack for itself.
const PORT: u16 = 5201;
const READY_LIMIT: Duration = Duration::from_secs(30);
/// A command in an emulated guest.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
/// How a Linux driver posts its buffers: passt is twice to ten times faster with them than with large ones.
const LINUX_BUFFERS: [&str; 4] = ["--buffer-len", "4096", "--ring-size", "256"];

/// Why there is nothing to measure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error("no free port: {0}")]
    Port(#[source] std::io::Error),
    #[error("the QEMU guest failed: {0}")]
    Qemu(String),
}

/// What nets are made with.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) programs: Programs,
    /// `weft-guest-tap`.
    pub(crate) guest_tap: PathBuf,
    /// `weft-crr`.
    pub(crate) crr: PathBuf,
    /// Of every TCP sender.
    pub(crate) congestion: String,
}

/// Where a program runs.
enum Station {
    Host,
    Namespace(Child),
    Qemu(Guest),
}

/// What a run came to, and what it cost.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) rate: Rate,
    /// Cores that the back-end kept busy, if it is a process of its own.
    pub(crate) back_end_cores: Option<f64>,
}

/// Two stations that reach each other.
pub(crate) struct Net<'a> {
    workshop: &'a Workshop,
    nursery: Nursery,
    // From here on the order is the one in which things end: what uses something goes before it.
    server_processes: Vec<Child>,
    client: Station,
    back_end: Running,
    server: Station,
    target: Ipv4Addr,
    port: u16,
}

impl Workshop {
    /// Starts everything for one column of a table.
    pub(crate) fn build(&self, table: Table, back_end: BackEnd, nursery: Nursery) -> Result<Net<'_>, NetError> {
        if table.setting == Setting::NativeHost {
            return self.build_host(table.mtu, back_end, nursery);
        }
        let running = self.programs.start(back_end, table.setting, table.mtu, &nursery)?;
        let plugs = running.plugs.clone();
        let (client, server, target) = match (table.setting, back_end) {
            (Setting::Native, BackEnd::Veth) => {
                let holders = [holder("guest1", &nursery)?, holder("guest2", &nursery)?];
                veth_pair(table.mtu, [(&holders[0], GUESTS[0]), (&holders[1], GUESTS[1])], &nursery)?;
                let [one, two] = holders.map(Station::Namespace);
                (one, two, GUESTS[1])
            }
            (Setting::Native, _) => {
                let one = self.native("guest1", &plugs[0], GUESTS[0], table.mtu, &[], &nursery)?;
                let two = self.native("guest2", &plugs[1], GUESTS[1], table.mtu, &[], &nursery)?;
                (one, two, GUESTS[1])
            }
            (Setting::Qemu, _) => {
                let guests = [("vm1", GUESTS[0]), ("vm2", GUESTS[1])];
                let [one, two] = [0, 1].map(|index| qemu_start(guests[index].0, Some(&plugs[index]), guests[index].1));
                let [one, two] = [one?, two?];
                (qemu_ready(one, table.mtu)?, qemu_ready(two, table.mtu)?, GUESTS[1])
            }
            (Setting::QemuHost | Setting::NativeHost, _) => {
                let guest = qemu_ready(qemu_start("vm1", plugs.first(), HOST_GUEST)?, table.mtu)?;
                (guest, Station::Host, HOST_GATEWAY)
            }
        };
        let port = if matches!(server, Station::Host) { free_port()? } else { PORT };
        let (back_end, server_processes) = (running, Vec::new());
        let mut net = Net { workshop: self, nursery, server_processes, client, back_end, server, target, port };
        net.serve()?;
        Ok(net)
    }

    /// A guest at native speed, and a host that is a namespace as well: whatever this machine is set to does not matter, and nobody's
    /// ports are in the way.
    fn build_host(&self, mtu: u16, back_end: BackEnd, nursery: Nursery) -> Result<Net<'_>, NetError> {
        let host = holder("host", &nursery)?;
        let on_host = nursery.inside(&host);
        on_host.run("ip", &["ip", "link", "set", "lo", "up"], READY_LIMIT)?;
        // A namespace can't have a congestion control of its own for all sockets, back-ends' among them, but its routes can.
        for local in ["127.0.0.1", "127.0.0.0/8"] {
            let route =
                ["ip", "route", "replace", "local", local, "dev", "lo", "table", "local", "proto", "kernel", "scope", "host"];
            let how = ["src", "127.0.0.1", "congctl", self.congestion.as_str()];
            on_host.run("ip", &[&route[..], &how].concat(), READY_LIMIT)?;
        }
        let (running, client) = match back_end {
            BackEnd::Veth => {
                let guest = holder("guest1", &nursery)?;
                veth_pair(mtu, [(&guest, HOST_GUEST), (&host, HOST_GATEWAY)], &nursery)?;
                (Running::default(), Station::Namespace(guest))
            }
            BackEnd::Slirp4netns => {
                let guest = holder("guest1", &nursery)?;
                (slirp4netns::start(&guest, mtu, &on_host)?, Station::Namespace(guest))
            }
            _ => {
                let running = self.programs.start(back_end, Setting::NativeHost, mtu, &on_host)?;
                let guest = self.native("guest1", &running.plugs[0], HOST_GUEST, mtu, &LINUX_BUFFERS, &nursery)?;
                (running, guest)
            }
        };
        let server = Station::Namespace(host);
        let (back_end, server_processes) = (running, Vec::new());
        let mut net =
            Net { workshop: self, nursery, server_processes, client, back_end, server, target: HOST_GATEWAY, port: PORT };
        net.serve()?;
        Ok(net)
    }

    /// A guest that is a network namespace.
    fn native(
        &self,
        name: &str,
        plug: &Plug,
        address: Ipv4Addr,
        mtu: u16,
        options: &[&str],
        nursery: &Nursery,
    ) -> Result<Station, ChildError> {
        let (program, socket) = (self.guest_tap.display().to_string(), plug.socket.display().to_string());
        let (address, mtu) = (format!("{address}/24"), mtu.to_string());
        let listen: &[&str] = if plug.guest_listens { &["--listen"] } else { &[] };
        let words = [&[&program, &socket, "--address", &address, "--mtu", &mtu][..], listen, options].concat();
        let mut guest = nursery.start(name, &words)?;
        guest.wait_for_log("ready: ", READY_LIMIT)?;
        Ok(Station::Namespace(guest))
    }
}

impl Net<'_> {
    /// Measures one line of a table.
    pub(crate) fn measure(&self, case: Case, duration: Duration) -> Result<Measured, NetError> {
        let words = match case.load.protocol {
            Protocol::Crr => self.crr_words(case, duration),
            _ => measure::client_words(self.target, self.port, case, duration, &self.workshop.congestion),
        };
        let (busy_before, start) = (self.back_end_seconds(), Instant::now());
        let text = match &self.client {
            Station::Qemu(guest) => in_qemu(|| guest.try_run(&words.join(" "), measure::limit(duration)).text)?,
            client => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                self.start_at(client, "client", &words)?.output(measure::limit(duration))?.1
            }
        };
        let busy = (self.back_end_seconds() - busy_before) / start.elapsed().as_secs_f64();
        let back_end_cores = (!self.back_end.children.is_empty()).then_some(busy);
        let rate = if case.load.protocol == Protocol::Crr { Rate::parse_crr(&text)? } else { Rate::parse(&text)? };
        Ok(Measured { rate, back_end_cores })
    }

    fn crr_words(&self, case: Case, duration: Duration) -> Vec<String> {
        let target = SocketAddrV4::new(self.target, self.port + 1);
        measure::crr_words(&self.workshop.crr, target, case, duration)
    }

    fn back_end_seconds(&self) -> f64 {
        self.back_end.children.iter().map(Child::cpu_seconds).sum()
    }

    /// Starts iperf3's server.
    fn serve(&mut self) -> Result<(), NetError> {
        let port = self.port.to_string();
        if let Station::Qemu(guest) = &self.server {
            in_qemu(|| guest.run(&format!("iperf3 --server --daemon --port {port}")))?;
            let listens = || in_qemu(|| guest.run("netstat -ltn").contains(&format!(":{port} "))).map(|is| is.then_some(()));
            return match self.nursery.stop.wait_for(COMMAND_LIMIT, || listens().transpose()) {
                Ok(listening) => listening,
                Err(InVain::Stopped) => Err(ChildError::Stopped.into()),
                Err(InVain::TooLate) => Err(NetError::Qemu("iperf3 does not listen".to_owned())),
            };
        }
        // The host's own is nobody else's to reach.
        let bind: &[&str] = if matches!(self.server, Station::Host) { &["--bind", "127.0.0.1"] } else { &[] };
        let words = [&["iperf3", "--server", "--forceflush", "--port", &port], bind].concat();
        let mut process = self.start_at(&self.server, "iperf3-server", &words)?;
        process.wait_for_log("Server listening", READY_LIMIT)?;
        self.server_processes.push(process);
        let address = SocketAddrV4::new(if bind.is_empty() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST }, self.port + 1);
        let words = [self.workshop.crr.display().to_string(), "serve".to_owned(), address.to_string()];
        let mut process = self.start_at(&self.server, "crr-server", &words.each_ref().map(String::as_str))?;
        process.wait_for_log("ready", READY_LIMIT)?;
        self.server_processes.push(process);
        Ok(())
    }

    fn start_at(&self, station: &Station, name: &str, words: &[&str]) -> Result<Child, ChildError> {
        match station {
            Station::Namespace(holder) => self.nursery.inside(holder).start(name, words),
            Station::Host | Station::Qemu(_) => self.nursery.start(name, words),
        }
    }
}

/// A virtual wire between two namespaces.
fn veth_pair(mtu: u16, [one, two]: [(&Child, Ipv4Addr); 2], nursery: &Nursery) -> Result<(), ChildError> {
    let ip = |holder: &Child, words: &str| {
        let words: Vec<&str> = ["ip"].into_iter().chain(words.split_whitespace()).collect();
        nursery.inside(holder).run("ip", &words, READY_LIMIT)
    };
    ip(one.0, &format!("link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", two.0.pid()))?;
    for (holder, address) in [one, two] {
        ip(holder, &format!("address add {address}/24 dev eth0"))?;
        ip(holder, "link set eth0 up")?;
    }
    Ok(())
}

/// A process that does nothing but keep a namespace.
fn holder(name: &str, nursery: &Nursery) -> Result<Child, ChildError> {
    let ours = fs::read_link("/proc/self/ns/net").ok();
    let mut holder = nursery.start(name, &["unshare", "--net", "sleep", "infinity"])?;
    let link = format!("/proc/{}/ns/net", holder.pid());
    holder.wait_for("a network namespace", READY_LIMIT, || {
        let its = fs::read_link(&link).ok();
        (its.is_some() && its != ours).then_some(())
    })?;
    Ok(holder)
}

/// Starts a QEMU guest on a plug, or on QEMU's own user networking, and doesn't wait for it.
fn qemu_start(name: &str, plug: Option<&Plug>, address: Ipv4Addr) -> Result<Guest, NetError> {
    let builder = Guest::builder(name, plug.map_or(Path::new(""), |plug| &plug.socket)).ip(&format!("{address}/24"));
    let builder = match plug {
        None => {
            let own = ["-m", "256", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,rombar=0"];
            builder.plug(own.map(str::to_owned).to_vec())
        }
        Some(plug) if plug.guest_listens => builder.listens(),
        Some(_) => builder,
    };
    in_qemu(|| builder.start())
}

fn qemu_ready(guest: Guest, mtu: u16) -> Result<Station, NetError> {
    in_qemu(|| {
        guest.await_ready();
        guest.run(&format!("ip link set eth0 mtu {mtu}"))
    })?;
    Ok(Station::Qemu(guest))
}

/// What is done with a QEMU guest. Its harness is made for tests and panics when something fails.
fn in_qemu<T>(act: impl FnOnce() -> T) -> Result<T, NetError> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        NetError::Qemu(text.unwrap_or_else(|| "for a reason that it does not tell".to_owned()))
    })
}

/// A port of the host's that nobody listens on.
fn free_port() -> Result<u16, NetError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(NetError::Port)?;
    Ok(listener.local_addr().map_err(NetError::Port)?.port())
}
