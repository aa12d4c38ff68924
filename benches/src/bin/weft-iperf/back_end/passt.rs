//! passt in its vhost-user mode: one guest, and the host behind the guest's gateway.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Plug, Running};
use crate::child::{ChildError, Nursery, find_program};
use crate::net::{HOST_GATEWAY, HOST_GUEST};

const START_LIMIT: Duration = Duration::from_secs(20);

/// The program, and what it is.
pub(super) fn look_for(built: &Path, nursery: &Nursery) -> Result<(PathBuf, String), String> {
    let candidates = [Some(built.join("passt")), find_program("passt")];
    for path in candidates.into_iter().flatten().filter(|path| path.is_file()) {
        let program = path.display().to_string();
        let help = nursery.run("passt-help", &[&program, "--help"], START_LIMIT).unwrap_or_default();
        if help.contains("--vhost-user") {
            // It tells its version to a terminal only; setup has written it down.
            let version = fs::read_to_string(path.with_extension("version")).unwrap_or_default();
            let about = format!("passt {}, vhost-user", version.trim());
            return Ok((path, about));
        }
    }
    Err("no passt with vhost-user is here: Debian 12 has one from 2023, which lacks it, and none in backports; benches/iperf/setup \
         builds the one of Debian 13 from its source package"
        .to_owned())
}

/// A socket is there before anybody listens on it. The kernel's table has flags in the fourth column, and the path in the last.
fn is_listening(process: u32, socket: &str) -> bool {
    const ACCEPTS: &str = "00010000";
    let table = fs::read_to_string(format!("/proc/{process}/net/unix")).unwrap_or_default();
    table.lines().any(|line| line.split_whitespace().nth(3) == Some(ACCEPTS) && line.ends_with(socket))
}

pub(super) fn start(built: &Path, mtu: u16, nursery: &Nursery) -> Result<Running, ChildError> {
    let program = look_for(built, nursery).map_or_else(|_| "passt".into(), |(path, _)| path).display().to_string();
    let socket = nursery.path("vm1.sock");
    let (socket_word, mtu) = (socket.display().to_string(), mtu.to_string());
    let (guest, gateway) = (HOST_GUEST.to_string(), HOST_GATEWAY.to_string());
    // As another user it could not open its socket in our folder.
    let place = ["--foreground", "--runas", "0", "--vhost-user", "--socket", &socket_word];
    let network = ["--ipv4-only", "--address", &guest, "--netmask", "24", "--gateway", &gateway, "--mtu", &mtu];
    // Which is the gateway by itself only on a host with a default route.
    let host = ["--map-host-loopback", &gateway];
    let nothing_in = ["--tcp-ports", "none", "--udp-ports", "none"];
    let mut passt = nursery.start("passt", &[&[program.as_str()], &place[..], &network, &host, &nothing_in].concat())?;
    let process = passt.pid();
    passt.wait_for("passt to listen", START_LIMIT, || is_listening(process, &socket_word).then_some(()))?;
    Ok(Running { children: vec![passt], plugs: vec![Plug { socket, guest_listens: false }], _hugepages: None })
}
