//! The back-ends: found on this machine, started, and gone again.

mod ovs;
mod passt;
pub(crate) mod slirp4netns;
mod testpmd;
mod weft;

use std::path::PathBuf;

use crate::child::{Child, ChildError, Nursery, find_program};
use crate::hugepages::Hugepages;
use crate::plan::{BackEnd, Setting};

/// Memory that a DPDK process gets, in mebibytes.
const DPDK_MEBIBYTES: u64 = 512;
/// More than that, so that it finds enough in whole pages.
const DPDK_RESERVE_MEBIBYTES: u64 = DPDK_MEBIBYTES + 128;

/// Where a guest plugs in.
#[derive(Clone, Debug)]
pub(crate) struct Plug {
    pub(crate) socket: PathBuf,
    pub(crate) guest_listens: bool,
}

/// A running back-end.
#[derive(Debug, Default)]
pub(crate) struct Running {
    /// The process that moves frames comes first.
    pub(crate) children: Vec<Child>,
    pub(crate) plugs: Vec<Plug>,
    /// Given back when the processes that use them are gone.
    _hugepages: Option<Hugepages>,
}

/// The programs that back-ends are made of, as far as they are here.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) weft: PathBuf,
    /// Where `benches/iperf/setup` puts what it builds.
    pub(crate) built: PathBuf,
}

impl Programs {
    /// What a back-end is, with its version.
    ///
    /// # Errors
    /// Why it can't take part, in words for a person.
    pub(crate) fn look_for(&self, back_end: BackEnd, nursery: &Nursery) -> Result<String, String> {
        match back_end {
            BackEnd::Weft => weft::look_for(&self.weft, nursery),
            BackEnd::Testpmd | BackEnd::TestpmdTso => testpmd::look_for(nursery),
            BackEnd::OvsDpdk | BackEnd::OvsDpdkTso => ovs::look_for(nursery),
            BackEnd::Passt => passt::look_for(&self.built, nursery).map(|(_, about)| about),
            BackEnd::Slirp => match find_program("qemu-system-x86_64") {
                Some(path) => Ok(first_line(nursery, &path.display().to_string(), &["--version"])),
                None => Err("qemu-system-x86_64 is not here; benches/iperf/setup installs it".to_owned()),
            },
            BackEnd::Slirp4netns => slirp4netns::look_for(nursery),
            BackEnd::Veth => Ok("the kernel's own pair of virtual interfaces".to_owned()),
        }
    }

    /// Starts one for two guests, or for one and the host.
    pub(crate) fn start(&self, back_end: BackEnd, setting: Setting, mtu: u16, nursery: &Nursery) -> Result<Running, ChildError> {
        match back_end {
            BackEnd::Weft if matches!(setting, Setting::NativeHost | Setting::QemuHost) => {
                weft::start_nat(&self.weft, mtu, nursery)
            }
            BackEnd::Weft => weft::start(&self.weft, nursery),
            BackEnd::TestpmdTso => testpmd::start(true, nursery),
            BackEnd::Testpmd => testpmd::start(false, nursery),
            BackEnd::OvsDpdkTso => ovs::start(true, nursery),
            BackEnd::OvsDpdk => ovs::start(false, nursery),
            BackEnd::Passt => passt::start(&self.built, mtu, nursery),
            // QEMU has the first in itself, the second is the kernel's, and the third needs a guest to begin with.
            BackEnd::Slirp | BackEnd::Veth | BackEnd::Slirp4netns => Ok(Running::default()),
        }
    }
}

/// Hugepages for a DPDK process if the machine has them, or else ordinary ones, which cost it some speed.
fn dpdk_memory() -> (Option<Hugepages>, Vec<String>) {
    let hugepages = Hugepages::of_mebibytes(DPDK_RESERVE_MEBIBYTES).ok().flatten();
    let words: &[&str] = if hugepages.is_some() {
        &["--in-memory", "--single-file-segments"]
    } else {
        eprintln!("weft-iperf: no hugepages can be had, so DPDK does without");
        &["--no-huge", "--no-shconf"]
    };
    (hugepages, words.iter().map(|&word| word.to_owned()).collect())
}

/// What a program says first, as it does when asked for its version. Empty if it says nothing.
fn first_line(nursery: &Nursery, program: &str, args: &[&str]) -> String {
    let words = [&[program], args].concat();
    let text = nursery.run("version", &words, std::time::Duration::from_secs(20)).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}
