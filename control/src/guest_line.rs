//! How to start a guest on a port: QEMU's arguments and libvirt's XML.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::api::PortInfo;

/// How much memory a guest has, as QEMU writes it: `512M`, `1G`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory(String);

/// The text is no amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no amount of memory: write a number with M or G, as in 512M or 1G")]
pub struct ParseMemoryError(String);

/// Which QEMU it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QemuAge {
    /// 9.2 and later know `reconnect-ms`.
    #[default]
    Current,
    /// Before that there was `reconnect`, in whole seconds; it was deprecated then.
    Before9_2,
}

/// The arguments that plug a QEMU guest into the port, with memory that weft can see.
#[must_use]
pub fn qemu_args(port: &PortInfo, memory: &Memory, age: QemuAge) -> Vec<String> {
    let name = port.name.as_str();
    let socket = qemu_value(&port.socket);
    let connection = match (port.client, age) {
        (true, _) => "server=on,wait=off",
        (false, QemuAge::Current) => "reconnect-ms=500",
        (false, QemuAge::Before9_2) => "reconnect=1",
    };
    let (netdev_queues, device_queues) = match port.queues {
        1 => (String::new(), String::new()),
        // Two vectors a pair, one for configuration changes, one for the control queue.
        queues => (format!(",queues={queues}"), format!(",mq=on,vectors={}", 2 * queues + 2)),
    };
    [
        "-m",
        &memory.0,
        "-object",
        &format!("memory-backend-memfd,id=mem,size={memory},share=on"),
        "-numa",
        "node,memdev=mem",
        "-chardev",
        &format!("socket,id=chr-{name},path={socket},{connection}"),
        "-netdev",
        &format!("vhost-user,id=net-{name},chardev=chr-{name}{netdev_queues}"),
        "-device",
        &format!("virtio-net-pci,netdev=net-{name},mac={}{device_queues}", port.mac),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// A whole command that can be pasted into a shell. It has no disk: that is the reader's.
#[must_use]
pub fn qemu_command(port: &PortInfo, memory: &Memory) -> String {
    let (program, machine): (_, &[&str]) = match std::env::consts::ARCH {
        "aarch64" => ("qemu-system-aarch64", &["-machine", "virt"]),
        "riscv64" => ("qemu-system-riscv64", &["-machine", "virt"]),
        _ => ("qemu-system-x86_64", &[]),
    };
    // KVM where it can be used, else emulation.
    let start = [&[program], machine, &["-accel", "kvm", "-accel", "tcg"]].concat();
    let words: Vec<_> = start.into_iter().map(str::to_owned).chain(qemu_args(port, memory, QemuAge::Current)).collect();
    shell_words(&words)
}

/// Words as one line of shell. Only what a shell would change is quoted, so that `$(weft qemu-args …)`, which splits
/// at blanks and knows no quotes, works too unless a path is very odd.
#[must_use]
pub fn shell_words(words: &[String]) -> String {
    let plain =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./,:=+@%".contains(&byte));
    let quoted = words.iter().map(|word| match plain(word) {
        true => Cow::Borrowed(word.as_str()),
        // The only word that can't be quoted has a NUL in it, and neither a name nor a socket path does.
        false => shlex::try_quote(word).unwrap_or_default(),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The interface of a libvirt domain; what the domain needs beside it stands in a comment.
#[must_use]
pub fn libvirt_xml(port: &PortInfo) -> String {
    // libvirt's mode is what QEMU does on the socket.
    let source = match port.client {
        true => format!("<source type='unix' path='{}' mode='server'/>", xml(&port.socket)),
        false => format!(
            "<source type='unix' path='{}' mode='client'>\n    <reconnect enabled='yes' timeout='1'/>\n  </source>",
            xml(&port.socket)
        ),
    };
    let driver = if port.queues > 1 { format!("  <driver queues='{}'/>\n", port.queues) } else { String::new() };
    format!(
        "<!-- Port {name} of weft. The domain's memory must be shared with weft; beside <devices> it needs:\n\
         \x20 <memoryBacking>\n    <source type='memfd'/>\n    <access mode='shared'/>\n  </memoryBacking>\n-->\n\
         <interface type='vhostuser'>\n  <mac address='{mac}'/>\n  {source}\n  <model type='virtio'/>\n{driver}</interface>\n",
        // A comment can't contain two hyphens in a row (XML 1.0, section 2.5).
        name = port.name.as_str().replace("--", "- -"),
        mac = port.mac,
    )
}

impl Default for Memory {
    fn default() -> Self {
        Self("1G".to_owned())
    }
}

impl FromStr for Memory {
    type Err = ParseMemoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_suffix(['M', 'G']).unwrap_or_default();
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u32>().is_ok_and(|number| number > 0);
        if is_number { Ok(Self(text.to_owned())) } else { Err(ParseMemoryError(text.to_owned())) }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// In QEMU's option syntax a comma ends a value, and two of them are one.
fn qemu_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn xml(path: &Path) -> String {
    let text = path.display().to_string();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Counters;

    fn port() -> PortInfo {
        PortInfo {
            name: "vm1".parse().unwrap(),
            network: "default".parse().unwrap(),
            vlan: None,
            protections: crate::api::ProtectionInfo::default(),
            lines: crate::api::LineInfo::default(),
            socket: "/run/weft/vm1.sock".into(),
            client: false,
            queues: 1,
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500,
            state: "listening".to_owned(),
            monitors: Vec::new(),
            loop_with: None,
            last_stop: None,
            last_stop_seconds: None,
            connections: 0,
            features: Vec::new(),
            guest_mtu: None,
            rings: Vec::new(),
            stations: crate::api::StationInfo::default(),
            counters: Counters::default(),
        }
    }

    fn line(port: &PortInfo, age: QemuAge) -> String {
        shell_words(&qemu_args(port, &Memory::default(), age))
    }

    #[test]
    fn a_guest_connects_and_comes_back() {
        assert_eq!(
            line(&port(), QemuAge::Current),
            "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \
             -chardev socket,id=chr-vm1,path=/run/weft/vm1.sock,reconnect-ms=500 \
             -netdev vhost-user,id=net-vm1,chardev=chr-vm1 \
             -device virtio-net-pci,netdev=net-vm1,mac=02:00:00:00:00:01"
        );
        assert!(line(&port(), QemuAge::Before9_2).contains(",reconnect=1"));
    }

    #[test]
    fn a_guest_that_listens_does_not_wait_for_weft() {
        let line = line(&PortInfo { client: true, ..port() }, QemuAge::Current);
        assert!(line.contains(",server=on,wait=off") && !line.contains("reconnect"), "{line}");
    }

    #[test]
    fn several_queues_need_options_on_both_halves() {
        let line = line(&PortInfo { queues: 4, ..port() }, QemuAge::Current);
        assert!(line.contains("chardev=chr-vm1,queues=4 ") && line.contains(",mq=on,vectors=10"), "{line}");
    }

    #[test]
    fn odd_paths_survive_the_shell_and_qemu() {
        let odd = PortInfo { socket: "/tmp/it's, a dir/vm1.sock".into(), ..port() };
        let words = shlex::split(&line(&odd, QemuAge::Current)).unwrap();
        assert!(words.contains(&"socket,id=chr-vm1,path=/tmp/it's,, a dir/vm1.sock,reconnect-ms=500".to_owned()), "{words:?}");
        let odd = PortInfo { socket: "/tmp/<a>&'b'/vm1.sock".into(), ..port() };
        assert!(libvirt_xml(&odd).contains("path='/tmp/&lt;a&gt;&amp;&apos;b&apos;/vm1.sock'"));
    }

    #[test]
    fn libvirt_is_told_what_qemu_does_on_the_socket() {
        assert!(
            libvirt_xml(&port()).contains("mode='client'")
                && libvirt_xml(&port()).contains("<reconnect enabled='yes' timeout='1'/>")
        );
        let client = PortInfo { client: true, queues: 2, ..port() };
        assert!(libvirt_xml(&client).contains("mode='server'/>") && libvirt_xml(&client).contains("<driver queues='2'/>"));
    }

    #[test]
    fn memory_is_a_number_with_a_unit() {
        assert!(["512M", "1G"].iter().all(|text| text.parse::<Memory>().is_ok()));
        assert!(["", "G", "1", "0G", "-1G", "+1G", "1G,x", "1T"].iter().all(|text| text.parse::<Memory>().is_err()));
    }
}
