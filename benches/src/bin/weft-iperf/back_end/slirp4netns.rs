//! slirp4netns: libslirp, which is also QEMU's user networking, between a namespace and the host, without emulation.

use std::time::Duration;

use super::{Running, first_line};
use crate::child::{Child, ChildError, Nursery, find_program};

const START_LIMIT: Duration = Duration::from_secs(20);

pub(super) fn look_for(nursery: &Nursery) -> Result<String, String> {
    match find_program("slirp4netns") {
        Some(path) => Ok(first_line(nursery, &path.display().to_string(), &["--version"])),
        None => Err("slirp4netns is not here; benches/iperf/setup installs it".to_owned()),
    }
}

/// Makes the namespace that `guest` holds a guest of this host, with an interface named `eth0`.
pub(crate) fn start(guest: &Child, mtu: u16, on_host: &Nursery) -> Result<Running, ChildError> {
    let (pid, mtu) = (guest.pid().to_string(), format!("--mtu={mtu}"));
    let mut slirp = on_host.start("slirp4netns", &["slirp4netns", "--configure", &mtu, "--disable-dns", &pid, "eth0"])?;
    let inside = on_host.inside(guest);
    slirp.wait_for("slirp4netns to set the guest's interface up", START_LIMIT, || {
        let addresses = inside.run("ip", &["ip", "-4", "address", "show", "dev", "eth0"], START_LIMIT);
        addresses.is_ok_and(|text| text.contains("10.0.2.")).then_some(())
    })?;
    Ok(Running { children: vec![slirp], ..Running::default() })
}
