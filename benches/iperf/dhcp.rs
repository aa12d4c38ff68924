//! The DHCP clients of real systems, each in a namespace that is a guest of a running weft; and a real TCP that asks its DNS.
//!
//! They need root. By hand: `cargo build --release -p weft -p weft-benches && cargo test --release -p weft-benches --test dhcp_clients -- --ignored
//! --test-threads=1`, after `tests/e2e/setup`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use weft_tests::Weft;
use weft_tests::process::Process;
use weft_tests::wait::wait_until;

/// The longest that a client takes, with all its probing and waiting.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);
/// What a client calls when something has changed: it sets the address up as a distribution would, and says what has happened.
const SCRIPT: &str = "#!/bin/sh
case $1$reason in
bound | renew | BOUND | RENEW | REBIND | REBOOT)
    ip addr flush dev $interface
    ip addr add ${ip:-$new_ip_address}/24 dev $interface
    ip route replace default via ${router:-$new_routers}
    ;;
esac
echo $1$reason >>${0%/*}/events
";
/// The same for a client that sets the address up by itself.
const WITNESS: &str = "#!/bin/sh\necho $reason >>${0%/*}/events\n";
/// Waits until something has happened.
const AWAIT: &str = "await() { until grep -qiE \"$1\" $DIR/events; do sleep 0.1; done; }";
/// `dhclient` renews after two seconds, whatever the server says.
const DHCLIENT_CONF: &str = "supersede dhcp-renewal-time 2;\nsupersede dhcp-rebinding-time 30;\n";
/// The gateway answers, and is where the default route leads.
const CHECK: &str = "ping -c 1 -W 2 10.78.9.1 && ip route show default | grep 10.78.9.1";
const CLIENTS: usize = 1000;

/// A weft with one network, and a folder for the clients.
struct Bench {
    weft: Weft,
    dir: TempDir,
}

impl Bench {
    fn start(network: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let write = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("a file can be written in a folder of our own");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode can be set");
        };
        write("script", SCRIPT, 0o755);
        write("witness", WITNESS, 0o755);
        write("events", "", 0o666);
        write("dhclient.conf", DHCLIENT_CONF, 0o644);
        write("weft.toml", &format!("[networks.default]\n{network}\n[ports.vm1]\n"), 0o644);
        let config = dir.path().join("weft.toml").display().to_string();
        Self { weft: Weft::start_with(&["--config", &config]), dir }
    }

    fn small() -> Self {
        Self::start("subnet = \"10.78.9.0/24\"")
    }

    /// Runs a shell line in a guest, with `$DIR` for the folder, and returns what it printed; it must succeed.
    fn run(&self, options: &[&str], line: &str) -> String {
        let socket = self.weft.socket("vm1");
        let line = format!("set -ex; export DIR={}; {AWAIT}; {line}", self.dir.path().display());
        let args = [&[socket.to_str().expect("a path of ours")][..], options, &["--", "sh", "-c", &line]].concat();
        let log = PathBuf::from(self.dir.path()).join("guest.log");
        let _ = fs::remove_file(&log);
        let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
        let guest = Process::spawn("weft-guest-tap", Path::new(env!("CARGO_BIN_EXE_weft-guest-tap")), &args, &log);
        // The last thing that it says.
        wait_until("the guest's command to end", CLIENT_LIMIT, || guest.log().contains(" refused by the stack"));
        let text = guest.log();
        let status = guest.terminate(CLIENT_LIMIT);
        assert!(status.success(), "{status}:\n{text}");
        text
    }

    fn count(&self, what: &str) -> u64 {
        self.weft.json(&["network", "show", "default"])["dhcp"]["counters"][what].as_u64().expect("a number")
    }

    /// Which client has which address.
    fn leases(&self) -> BTreeMap<String, String> {
        let leases = self.weft.json(&["lease", "list"]);
        let text = |lease: &Value, key: &str| lease[key].as_str().expect("a text").to_owned();
        let leases = leases.as_array().expect("a list").iter();
        leases.filter(|lease| lease["state"] == "leased").map(|lease| (text(lease, "mac"), text(lease, "address"))).collect()
    }
}

#[test]
#[ignore = "needs root"]
fn udhcpc_gets_renews_and_releases_a_lease() {
    let bench = Bench::small();
    // USR1 makes it renew, USR2 release.
    bench.run(
        &[],
        &format!(
            "busybox udhcpc -f -i eth0 -s $DIR/script & pid=$!; await bound; {CHECK}; kill -USR1 $pid; await renew; {CHECK}; \
             : >$DIR/events; kill -USR2 $pid; await deconfig; kill $pid"
        ),
    );
    assert_eq!((bench.count("leases"), bench.count("releases"), bench.leases().len()), (2, 1, 0));
}

#[test]
#[ignore = "needs root"]
fn dhclient_gets_renews_and_releases_a_lease() {
    let bench = Bench::small();
    let client = "dhclient -4 -v -cf $DIR/dhclient.conf -sf $DIR/script -lf $DIR/leases -pf $DIR/pid";
    bench.run(&[], &format!("{client} eth0; {CHECK}; await renew; {CHECK}; {client} -r eth0"));
    assert!(bench.count("leases") >= 2, "it was renewed");
    assert_eq!((bench.count("releases"), bench.leases().len()), (1, 0));
}

#[test]
#[ignore = "needs root"]
fn dhcpcd_gets_renews_and_releases_a_lease() {
    let bench = Bench::small();
    // What it keeps stays in this namespace; the state of the machine's own is not touched.
    let line = format!(
        "mount -t tmpfs none /run; mount -t tmpfs none /var/lib/dhcpcd; {AWAIT}; dhcpcd -4 -t 30 -c $DIR/witness eth0; \
         await bound; {CHECK}; dhcpcd -4 -n eth0; await \"renew|rebind\"; dhcpcd -4 -k eth0"
    );
    bench.run(&[], &format!("unshare --mount sh -exc '{line}'"));
    assert!(bench.count("leases") >= 2, "it was renewed");
    assert_eq!((bench.count("releases"), bench.leases().len()), (1, 0));
}

#[test]
#[ignore = "needs root"]
fn systemd_networkd_gets_and_releases_a_lease() {
    let bench = Bench::small();
    // All that it knows of the machine is in this namespace; a read-only /sys tells it not to wait for udev.
    let line = format!(
        "mount -t tmpfs none /run; mount -t tmpfs none /etc/systemd/network; mount -t sysfs -o ro none /sys; \
         mkdir -p /run/systemd/netif/leases /run/systemd/netif/links /run/systemd/netif/lldp; \
         chown -R systemd-network:systemd-network /run/systemd/netif; \
         printf \"[Match]\\nName=eth0\\n[Network]\\nDHCP=ipv4\\n\" >/etc/systemd/network/eth0.network; \
         /lib/systemd/systemd-networkd & pid=$!; \
         for _ in $(seq 100); do ip route show default | grep -q 10.78.9.1 && break; sleep 0.1; done; {CHECK}; kill $pid; wait $pid"
    );
    bench.run(&[], &format!("unshare --mount sh -exc '{line}'"));
    assert_eq!((bench.count("releases"), bench.leases().len()), (1, 0));
}

#[test]
#[ignore = "needs root"]
fn names_are_resolved_over_tcp_as_well() {
    let bench = Bench::small();
    // RFC 1035, section 4: length, header, and the question for the address of gateway.weft.internal.
    let query = r"\000\047\000\001\001\000\000\001\000\000\000\000\000\000\007gateway\004weft\010internal\000\000\001\000\001";
    for options in [&["--address", "10.78.9.5/24"][..], &["--address", "10.78.9.5/24", "--no-csum"]] {
        let text =
            bench.run(options, &format!("printf '{query}' | busybox nc -w 5 10.78.9.1 53 | od -An -v -tu1 | tr -s ' \\n' ' '"));
        assert!(text.contains(" 0 4 10 78 9 1"), "{text}");
    }
    let dns = &bench.weft.json(&["network", "show", "default"])["dns"]["counters"];
    assert_eq!((dns["queries"].as_u64(), dns["local"].as_u64()), (Some(2), Some(2)));
}

#[test]
#[ignore = "needs root"]
fn a_thousand_clients_keep_their_leases_over_a_crash() {
    // A port has as many addresses as are left for others.
    let mut bench = Bench::start("subnet = \"10.78.0.0/16\"\ndhcp = \"10.78.1.0-10.78.16.255\"");
    let perfdhcp = format!("perfdhcp -4 -l eth0 -r 200 -R {CLIENTS} -n {CLIENTS} -W 2000000 10.78.0.1");
    let address = ["--address", "10.78.0.5/16"];
    let report = bench.run(&address, &perfdhcp);
    println!("{report}");
    assert!(report.contains("sent packets: 1000") && report.matches("drops: 0").count() == 2, "{report}");
    let before = bench.leases();
    assert_eq!(before.len(), CLIENTS);
    bench.weft.kill9();
    bench.weft.start_again();
    assert_eq!(bench.leases(), before);
    bench.run(&address, &perfdhcp);
    assert_eq!(bench.leases(), before, "who asks again gets what he had");
}
