//! Virtual machines: QEMU under emulation, with the kernel and initramfs that `tests/e2e/setup` prepares.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Process, find_program, print_log};
use crate::wait::wait_for;

/// A boot takes two to three seconds of one core. Several guests at a time on two shared cores take several times that.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const RUN_LIMIT: Duration = Duration::from_secs(30);
const MEMORY_MIB: u32 = 256;

/// What to boot.
#[derive(Clone, Debug)]
pub struct GuestBuilder {
    name: String,
    socket: PathBuf,
    listens: bool,
    reconnect_ms: Option<u32>,
    queues: u32,
    mac: String,
    ip: Option<String>,
    device_flags: Vec<String>,
    plug: Option<Vec<String>>,
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    name: String,
    process: Process,
    channel: RefCell<Channel>,
    console: PathBuf,
    // Dropped after the process that uses it.
    _dir: TempDir,
}

/// What a command in the guest came to.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it printed, both streams.
    pub text: String,
}

impl GuestBuilder {
    /// The guest's QEMU listens on the socket, and the switch connects.
    pub fn listens(mut self) -> Self {
        self.listens = true;
        self
    }

    /// QEMU connects again this long after it lost the switch. Without it a lost connection stays lost.
    pub fn reconnect_ms(mut self, ms: u32) -> Self {
        self.reconnect_ms = Some(ms);
        self
    }

    /// This many queue pairs, with a processor for each so that the driver uses them all.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// The address of eth0, as in `10.0.0.1/24`.
    pub fn ip(mut self, ip: &str) -> Self {
        self.ip = Some(ip.to_owned());
        self
    }

    /// One more property of the `virtio-net-pci` device, as in `mrg_rxbuf=off`.
    pub fn device_flag(mut self, flag: &str) -> Self {
        self.device_flags.push(flag.to_owned());
        self
    }

    /// Memory and network card exactly as these arguments say, in place of what the builder would make up.
    pub fn plug(mut self, qemu_args: Vec<String>) -> Self {
        self.plug = Some(qemu_args);
        self
    }

    /// Starts it and waits until it takes commands.
    pub fn boot(self) -> Guest {
        let guest = self.start();
        guest.await_ready();
        guest
    }

    /// Starts it and returns at once, so that several boot at the same time: [`Guest::await_ready`] comes next.
    pub fn start(self) -> Guest {
        let dir = tempfile::Builder::new().prefix("weft-guest-").tempdir_in("/tmp").expect("/tmp takes a folder");
        let console = dir.path().join("console.log");
        let log = dir.path().join("qemu.log");
        let channel_path = dir.path().join("channel.sock");
        // We listen and QEMU connects, so that not one byte of the guest's is sent before somebody hears it.
        let listener = UnixListener::bind(&channel_path).expect("a socket in our own folder can be bound");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");

        let args = self.qemu_args(&console, &channel_path);
        let mut process =
            Process::spawn(&format!("QEMU of guest {}", self.name), &find_program("qemu-system-x86_64"), &args, &log);
        let stream = wait_for("QEMU to open the command channel", BOOT_LIMIT, || {
            process.assert_alive();
            match listener.accept() {
                Ok((stream, _)) => Some(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) => panic!("the command channel of guest {} failed: {error}", self.name),
            }
        });
        Guest { name: self.name, process, channel: RefCell::new(Channel::new(stream)), console, _dir: dir }
    }

    fn qemu_args(&self, console: &Path, channel: &Path) -> Vec<String> {
        let images = image_dir();
        let mut kernel_line = format!("console=ttyS0 quiet panic=-1 mitigations=off weft.name={}", self.name);
        if let Some(ip) = &self.ip {
            kernel_line.push_str(&format!(" weft.ip={ip}"));
        }
        [
            // KVM is never chosen: a node that opens is no proof that a guest gets anywhere on it.
            &["-accel", "tcg", "-M", "q35", "-cpu", "max", "-nodefaults", "-no-user-config", "-display", "none"][..],
            &["-kernel", &images.join("vmlinuz").display().to_string()],
            &["-initrd", &images.join("initrd").display().to_string()],
            &["-append", &kernel_line],
            &["-serial", &format!("file:{}", console.display())],
            &["-chardev", &format!("socket,id=channel,path={}", channel.display()), "-serial", "chardev:channel"],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .chain(self.plug.clone().unwrap_or_else(|| self.plug_args()))
        .collect()
    }

    /// Memory and network card.
    fn plug_args(&self) -> Vec<String> {
        let mut net = format!("socket,id=net,path={}", self.socket.display());
        if self.listens {
            net.push_str(",server=on,wait=off");
        }
        if let Some(ms) = self.reconnect_ms {
            net.push_str(&format!(",reconnect-ms={ms}"));
        }
        let mut device = format!("virtio-net-pci,netdev=net,mac={},rombar=0", self.mac);
        let mut netdev = "vhost-user,id=net,chardev=net".to_owned();
        if self.queues > 1 {
            netdev.push_str(&format!(",queues={}", self.queues));
            // An interrupt for each ring, one for the control ring, and one for changes of the configuration.
            device.push_str(&format!(",mq=on,vectors={}", 2 * self.queues + 2));
        }
        for flag in &self.device_flags {
            device.push(',');
            device.push_str(flag);
        }
        [
            "-m",
            &MEMORY_MIB.to_string(),
            // The switch maps the guest's memory, so it has to be shared.
            "-object",
            &format!("memory-backend-memfd,id=mem,size={MEMORY_MIB}M,share=on"),
            "-numa",
            "node,memdev=mem",
            "-chardev",
            &net,
            "-smp",
            &self.queues.to_string(),
            "-netdev",
            &netdev,
            "-device",
            &device,
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

impl Guest {
    /// A guest whose network card is plugged into `socket`.
    pub fn builder(name: &str, socket: &Path) -> GuestBuilder {
        // Any address will do that is local, no multicast, and differs from guest to guest.
        let tail = name.bytes().fold(0x1505_u32, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte));
        let [a, b, c, d] = tail.to_be_bytes();
        GuestBuilder {
            name: name.to_owned(),
            socket: socket.to_owned(),
            listens: false,
            reconnect_ms: None,
            queues: 1,
            mac: format!("02:77:{a:02x}:{b:02x}:{c:02x}:{d:02x}"),
            ip: None,
            device_flags: Vec::new(),
            plug: None,
        }
    }

    /// Waits until it takes commands.
    pub fn await_ready(&self) {
        let line = self.channel.borrow_mut().line(BOOT_LIMIT);
        match line {
            Ok(line) if line == "ready" => {}
            other => panic!("guest {} is not ready after {BOOT_LIMIT:?}: {other:?}", self.name),
        }
    }

    /// Runs one shell line inside, and panics when it fails.
    pub fn run(&self, command: &str) -> String {
        let output = self.try_run(command, RUN_LIMIT);
        assert!(output.status == 0, "in guest {}, `{command}` ended with {}:\n{}", self.name, output.status, output.text);
        output.text
    }

    /// Runs one shell line inside, whatever comes of it, as long as it ends within `limit`.
    pub fn try_run(&self, command: &str, limit: Duration) -> Output {
        self.channel
            .borrow_mut()
            .run(command, limit)
            .unwrap_or_else(|error| panic!("in guest {}, `{command}` gave no answer in {limit:?}: {error}", self.name))
    }

    /// `reboot -f` inside, and the next boot awaited. QEMU and its connection to the switch stay.
    pub fn reboot(&self) {
        self.channel.borrow_mut().send("reboot -f").expect("the command channel takes a command");
        self.await_ready();
    }

    /// `kill -9` of its QEMU.
    pub fn kill9(mut self) {
        self.process.kill9();
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id of its QEMU.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_log(&format!("console of guest {}", self.name), &self.console);
        }
    }
}

/// The guest's second serial port, where its init script takes commands (the protocol is described there).
#[derive(Debug)]
struct Channel {
    stream: BufReader<UnixStream>,
    sent: u64,
}

impl Channel {
    fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(false).expect("a socket can be made blocking");
        Channel { stream: BufReader::new(stream), sent: 0 }
    }

    fn run(&mut self, command: &str, limit: Duration) -> std::io::Result<Output> {
        self.send(command)?;
        let line = self.line(limit)?;
        let words: Vec<&str> = line.split(' ').collect();
        let &["done", id, status, length] = words.as_slice() else {
            return Err(std::io::Error::other(format!("not an answer: {line:?}")));
        };
        assert_eq!(id, self.sent.to_string(), "the answer belongs to another command");
        let mut text = vec![0; length.parse().map_err(std::io::Error::other)?];
        self.stream.read_exact(&mut text)?;
        Ok(Output { status: status.parse().map_err(std::io::Error::other)?, text: String::from_utf8_lossy(&text).into_owned() })
    }

    fn send(&mut self, command: &str) -> std::io::Result<()> {
        assert!(!command.contains('\n'), "a command is one line: {command:?}");
        self.sent += 1;
        self.stream.get_mut().write_all(format!("run {} {command}\n", self.sent).as_bytes())
    }

    fn line(&mut self, limit: Duration) -> std::io::Result<String> {
        self.stream.get_mut().set_read_timeout(Some(limit))?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// The folder with the guests' kernel and initramfs.
fn image_dir() -> PathBuf {
    let dir = std::env::var_os("WEFT_E2E_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/e2e"), PathBuf::from);
    assert!(dir.join("initrd").is_file(), "no guest to boot in {}: run tests/e2e/setup first", dir.display());
    dir
}
