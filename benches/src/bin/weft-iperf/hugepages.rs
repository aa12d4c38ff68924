//! Hugepages for DPDK: added to the machine's when too few are free, and taken away again.

use std::fs;
use std::io;

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

/// Hugepages that were added. They go away with this.
#[derive(Debug)]
pub(crate) struct Hugepages {
    added: u64,
}

impl Hugepages {
    /// Makes sure that this much is free. `None` if it can't be had.
    pub(crate) fn of_mebibytes(wanted: u64) -> io::Result<Option<Self>> {
        let before = State::read()?;
        let Some(state) = before else { return Ok(None) };
        let missing = (wanted * 1024).div_ceil(state.page_kib).saturating_sub(state.free);
        if missing == 0 {
            return Ok(Some(Self { added: 0 }));
        }
        if fs::write(COUNT, (state.total + missing).to_string()).is_err() {
            return Ok(None);
        }
        // The kernel takes as many as it finds room for, without a word.
        let after = State::read()?.unwrap_or(state);
        let held = Self { added: after.total.saturating_sub(state.total) };
        Ok((held.added >= missing).then_some(held))
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if self.added == 0 {
            return;
        }
        // Not back to what there was, but less by what was added: others may have changed the number meanwhile.
        let given_back = State::read().and_then(|state| {
            let total = state.map_or(0, |state| state.total);
            fs::write(COUNT, total.saturating_sub(self.added).to_string())
        });
        if let Err(error) = given_back {
            eprintln!("weft-iperf: {} hugepages are left reserved, take them from {COUNT} by hand: {error}", self.added);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    total: u64,
    free: u64,
    page_kib: u64,
}

impl State {
    fn read() -> io::Result<Option<Self>> {
        Ok(Self::parse(&fs::read_to_string("/proc/meminfo")?))
    }

    /// `None` from a kernel without hugepages.
    fn parse(meminfo: &str) -> Option<Self> {
        let field =
            |name: &str| meminfo.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        Some(Self { total: field("HugePages_Total:")?, free: field("HugePages_Free:")?, page_kib: field("Hugepagesize:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        let meminfo = "MemFree: 1 kB\nHugePages_Total:     640\nHugePages_Free:      128\nHugepagesize:       2048 kB\n";
        assert_eq!(State::parse(meminfo), Some(State { total: 640, free: 128, page_kib: 2048 }));
        assert_eq!(State::parse("MemFree: 1 kB\n"), None);
    }
}
