//! Hugepages for those peers that can't do without: reserved when there are too few, and given back.

use std::fs;
use std::io;

const TOTAL: &str = "/proc/sys/vm/nr_hugepages";
const MEMINFO: &str = "/proc/meminfo";

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HugepagesError {
    #[error("{path}: {source}")]
    File { path: &'static str, source: io::Error },
    #[error("{MEMINFO} does not tell {0}")]
    Untold(&'static str),
    #[error(
        "{wanted} free hugepages are needed and {free} are there; run this as root, or reserve them with `sysctl vm.nr_hugepages={total}`"
    )]
    NotAllowed { wanted: u64, free: u64, total: u64 },
    #[error(
        "{wanted} free hugepages are needed, and the kernel could only make it {free}: too little memory is free in one piece"
    )]
    TooFew { wanted: u64, free: u64 },
}

/// Hugepages that were added to the machine's. Given back when this goes away.
#[derive(Debug)]
pub(crate) struct Hugepages {
    added: u64,
}

impl Hugepages {
    /// Makes sure that `mebibytes` of hugepages are free.
    pub(crate) fn reserve(mebibytes: u64) -> Result<Self, HugepagesError> {
        let before = Count::read()?;
        let wanted = (mebibytes * 1024).div_ceil(before.size_kib);
        let missing = wanted.saturating_sub(before.free);
        if missing == 0 {
            return Ok(Self { added: 0 });
        }
        let total = before.total + missing;
        if fs::write(TOTAL, total.to_string()).is_err() {
            return Err(HugepagesError::NotAllowed { wanted, free: before.free, total });
        }
        let after = Count::read()?;
        // Held from here on, so that whatever came is given back when it is not enough.
        let held = Self { added: after.total.saturating_sub(before.total) };
        if after.free < wanted {
            drop(held);
            return Err(HugepagesError::TooFew { wanted, free: after.free });
        }
        Ok(held)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if self.added == 0 {
            return;
        }
        // Others may have changed the number since: take away what was added, don't restore what was.
        let returned = Count::read()
            .and_then(|now| fs::write(TOTAL, now.total.saturating_sub(self.added).to_string()).map_err(in_file(TOTAL)));
        if let Err(error) = returned {
            eprintln!("weft-peers: {} hugepages were not given back: {error}", self.added);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Count {
    total: u64,
    free: u64,
    size_kib: u64,
}

impl Count {
    fn read() -> Result<Self, HugepagesError> {
        Self::parse(&fs::read_to_string(MEMINFO).map_err(in_file(MEMINFO))?)
    }

    fn parse(meminfo: &str) -> Result<Self, HugepagesError> {
        let value = |name: &'static str| -> Result<u64, HugepagesError> {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.ok_or(HugepagesError::Untold(name))
        };
        let total = value("HugePages_Total")?;
        // Somebody has been promised the reserved ones, and has not touched them yet.
        let free = value("HugePages_Free")?.saturating_sub(value("HugePages_Rsvd")?);
        Ok(Self { total, free, size_kib: value("Hugepagesize")? })
    }
}

fn in_file(path: &'static str) -> impl Fn(io::Error) -> HugepagesError {
    move |source| HugepagesError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_read() {
        let text = "MemTotal: 1 kB\nHugePages_Total:     640\nHugePages_Free:      128\nHugePages_Rsvd:        8\nHugepagesize:       2048 kB\n";
        assert_eq!(Count::parse(text).unwrap(), Count { total: 640, free: 120, size_kib: 2048 });
    }

    #[test]
    fn a_kernel_without_hugepages_is_told_apart() {
        let error = Count::parse("MemTotal: 1 kB\n").unwrap_err();
        assert_eq!(error.to_string(), "/proc/meminfo does not tell HugePages_Total");
    }
}
