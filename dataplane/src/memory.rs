//! The memory that a guest shares: mapped whole, checked once, translated often.
//!
//! A [`GuestMemory`] never changes. A new memory table makes a new one, which shares the mappings that stayed; the old one
//! is unmapped when the last ring that was set up on it is gone.
//!
//! Nothing in here trusts what stands in guest memory, and nothing holds a Rust reference into it: the guest may
//! write at any time. Only raw pointers come out.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{FileOffset, MmapRegion};

use crate::sys::GuardedRange;

/// The most regions of one guest. QEMU asks for this with `GET_MAX_MEM_SLOTS`; each DIMM that is plugged in takes one.
pub(crate) const MAX_REGIONS: usize = 256;
/// The most memory that one guest may share, in bytes: 1 TiB. It bounds address space, not memory in use.
pub(crate) const MAX_MEMORY_LEN: u64 = 1 << 40;

/// The most address space for all guests, in bytes: 96 TiB of the 128 that a process has.
const MAX_MAPPED_LEN: u64 = 96 << 40;
/// `HUGETLBFS_MAGIC` of statfs(2).
const HUGETLBFS: i64 = 0x9584_58f6;
const PAGE_LEN: u64 = 4096;

/// What is mapped for all guests, in bytes.
static MAPPED_LEN: AtomicU64 = AtomicU64::new(0);

/// One region as the front-end describes it (vhost-user, "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionSpec {
    /// First guest-physical address.
    pub(crate) guest: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// First address in the front-end's own address space.
    pub(crate) user: u64,
    /// Where the region starts in its file.
    pub(crate) file_offset: u64,
}

/// Why a region can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("memory region at {0:#x} has no bytes, or its end lies beyond the address space")]
    BadRange(u64),
    #[error("memory region at {0:#x} overlaps another one")]
    Overlap(u64),
    #[error("more than {MAX_REGIONS} memory regions")]
    TooManyRegions,
    #[error("more than {} GiB of memory", MAX_MEMORY_LEN >> 30)]
    TooMuch,
    #[error("memory region at {guest:#x} needs {needed} bytes of its file, which has {file_len}")]
    FileTooShort { guest: u64, needed: u64, file_len: u64 },
    #[error("memory region at {0:#x} is no memfd, and no file on tmpfs or hugetlbfs: start the guest with memory-backend-memfd")]
    NotMemory(u64),
    #[error("memory region at {guest:#x}: its file of {file_len} bytes does not end with a huge page")]
    PartOfHugePage { guest: u64, file_len: u64 },
    #[error("no address space for more guests: {} TiB are in use", MAX_MAPPED_LEN >> 40)]
    NoAddressSpace,
    #[error("no memory region at {0:#x}")]
    NoSuchRegion(u64),
    #[error("cannot map memory region at {guest:#x}: {source}")]
    Map { guest: u64, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("too many memory regions over all ports: the limit is {}", crate::sys::MAX_RANGES)]
    TableFull,
}

/// A guest's memory: its regions, sorted by guest-physical address, without overlaps.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestMemory {
    regions: Vec<Region>,
}

#[derive(Clone, Debug)]
struct Region {
    spec: RegionSpec,
    /// Where `spec.guest` is mapped.
    host: *mut u8,
    mapping: Arc<Mapping>,
}

/// A piece of guest memory that is contiguous in our address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) ptr: *mut u8,
    pub(crate) len: usize,
}

impl Segment {
    pub(crate) const EMPTY: Self = Self { ptr: std::ptr::null_mut(), len: 0 };
}

/// A region, as far as it takes to find a buffer in it. Valid as long as the memory that it comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    guest: u64,
    len: u64,
    host: *mut u8,
}

impl Default for Window {
    /// A window that nothing lies in.
    fn default() -> Self {
        Self { guest: 0, len: 0, host: std::ptr::null_mut() }
    }
}

impl Window {
    /// Where the `len` bytes at a guest-physical address are, if they all lie in this region.
    #[inline(always)]
    pub(crate) fn piece(&self, address: u64, len: u32) -> Option<*mut u8> {
        let offset = address.wrapping_sub(self.guest);
        if offset >= self.len || u64::from(len) > self.len - offset {
            return None;
        }
        // SAFETY: `offset` is below `len`, and all `len` bytes from `host` on are mapped.
        Some(unsafe { self.host.add(offset as usize) })
    }
}

// SAFETY: as for `Segment`.
unsafe impl Send for Window {}

// SAFETY: a segment is an address; it owns nothing, and whoever follows it has to show that the memory is still mapped.
unsafe impl Send for Segment {}

// The order matters: the guard is given up before the region is unmapped.
#[derive(Debug)]
struct Mapping {
    guard: GuardedRange,
    _region: MmapRegion,
    #[allow(dead_code, reason = "held for its end")]
    budget: Budget,
}

/// A share of the address space for guests.
#[derive(Debug)]
struct Budget(u64);

impl Budget {
    fn take(len: u64) -> Option<Self> {
        // Made first, so that it is given back if there is not enough.
        let budget = Self(len);
        (MAPPED_LEN.fetch_add(len, Ordering::Relaxed) + len <= MAX_MAPPED_LEN).then_some(budget)
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        MAPPED_LEN.fetch_sub(self.0, Ordering::Relaxed);
    }
}

// SAFETY: `host` points into `mapping`, which is shared memory that any thread may touch through raw pointers; all other
// fields are Send and Sync. Nobody makes references into it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl GuestMemory {
    /// This memory and one more region. `fd` must be a memfd or a file on tmpfs or hugetlbfs, whose pages come without
    /// anybody else's consent. Where it may be the last reference to memory, the caller keeps another one: closing that takes long.
    pub(crate) fn with_region(&self, spec: RegionSpec, fd: Arc<File>) -> Result<Self, MemoryError> {
        self.check_fits(&spec)?;
        let region = Region::map(spec, fd)?;
        let mut regions = self.regions.clone();
        let place = regions.partition_point(|other| other.spec.guest < spec.guest);
        regions.insert(place, region);
        Ok(Self { regions })
    }

    /// This memory without the region that `spec` describes; its file offset does not matter (vhost-user, `REM_MEM_REG`).
    pub(crate) fn without_region(&self, spec: &RegionSpec) -> Result<Self, MemoryError> {
        let same = |other: &RegionSpec| (other.guest, other.len, other.user) == (spec.guest, spec.len, spec.user);
        let place = self.regions.iter().position(|region| same(&region.spec)).ok_or(MemoryError::NoSuchRegion(spec.guest))?;
        let mut regions = self.regions.clone();
        regions.remove(place);
        Ok(Self { regions })
    }

    /// True if nothing is shared.
    pub(crate) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// True once a file behind this memory was shortened and we noticed.
    pub(crate) fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.guard.is_lost())
    }

    /// Where `len` bytes at a guest-physical address are, if they lie within one region.
    pub(crate) fn at_guest(&self, address: u64, len: u64) -> Option<*mut u8> {
        let region = self.region_at(address)?;
        region.host_at(address - region.spec.guest, len)
    }

    /// Where `len` bytes at an address of the front-end's own address space are, if they lie within one region.
    pub(crate) fn at_user(&self, address: u64, len: u64) -> Option<*mut u8> {
        let offset_in = |region: &Region| address.checked_sub(region.spec.user).filter(|&offset| offset < region.spec.len);
        self.regions
            .iter()
            .find_map(|region| Some((region, offset_in(region)?)))
            .and_then(|(region, offset)| region.host_at(offset, len))
    }

    /// Appends the pieces that make up `len` bytes at a guest-physical address: several when they span adjoining
    /// regions. `false`, with `pieces` unchanged, when a byte of them is not there.
    pub(crate) fn pieces_at_guest(&self, address: u64, len: u32, pieces: &mut Vec<Segment>) -> bool {
        let before = pieces.len();
        let (mut address, mut left) = (address, u64::from(len));
        loop {
            let Some(region) = self.region_at(address) else {
                pieces.truncate(before);
                return false;
            };
            let offset = address - region.spec.guest;
            let here = left.min(region.spec.len - offset);
            // SAFETY: `offset < spec.len`, and all `spec.len` bytes from `host` on are mapped.
            let ptr = unsafe { region.host.add(offset as usize) };
            pieces.push(Segment { ptr, len: here as usize });
            left -= here;
            if left == 0 {
                return true;
            }
            // No overflow: `check_fits` keeps every region's end within 64 bits.
            address += here;
        }
    }

    /// The region in which a pointer lies that came from here.
    pub(crate) fn window_around(&self, ptr: *const u8) -> Window {
        let is_in = |region: &&Region| (ptr as u64).wrapping_sub(region.host as u64) < region.spec.len;
        let window = |region: &Region| Window { guest: region.spec.guest, len: region.spec.len, host: region.host };
        self.regions.iter().find(is_in).map(window).unwrap_or_default()
    }

    fn region_at(&self, address: u64) -> Option<&Region> {
        let after = self.regions.partition_point(|region| region.spec.guest <= address);
        let region = &self.regions[after.checked_sub(1)?];
        (address - region.spec.guest < region.spec.len).then_some(region)
    }

    fn check_fits(&self, spec: &RegionSpec) -> Result<(), MemoryError> {
        if self.regions.len() == MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        let in_range = |start: u64| start.checked_add(spec.len).is_some();
        if spec.len == 0 || !in_range(spec.guest) || !in_range(spec.user) || !in_range(spec.file_offset) {
            return Err(MemoryError::BadRange(spec.guest));
        }
        let len: u64 = self.regions.iter().map(|region| region.spec.len).sum();
        if spec.len > MAX_MEMORY_LEN || len + spec.len > MAX_MEMORY_LEN {
            return Err(MemoryError::TooMuch);
        }
        let overlap = |one: u64, other: u64, other_len: u64| one < other + other_len && other < one + spec.len;
        let clash = |other: &RegionSpec| overlap(spec.guest, other.guest, other.len) || overlap(spec.user, other.user, other.len);
        if self.regions.iter().any(|region| clash(&region.spec)) {
            return Err(MemoryError::Overlap(spec.guest));
        }
        Ok(())
    }
}

impl Region {
    fn map(spec: RegionSpec, fd: Arc<File>) -> Result<Self, MemoryError> {
        let guest = spec.guest;
        let map_error = |source: Box<dyn std::error::Error + Send + Sync>| MemoryError::Map { guest, source };
        let stat = rustix::fs::fstat(&fd).map_err(|error| map_error(error.into()))?;
        let file_system = rustix::fs::fstatfs(&fd).map_err(|error| map_error(error.into()))?;
        // The width of these fields differs between architectures.
        #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
        let (kind, file_len, block) = (file_system.f_type as i64, stat.st_size as u64, stat.st_blksize as u64);
        let end = spec.file_offset + spec.len;
        if end > file_len {
            return Err(MemoryError::FileTooShort { guest, needed: end, file_len });
        }
        // Huge pages are mapped and unmapped whole, so the mapping begins and ends with one.
        let page = if kind & 0xffff_ffff == HUGETLBFS { block.max(PAGE_LEN) } else { PAGE_LEN };
        let start = spec.file_offset - spec.file_offset % page;
        let len = (end - start).next_multiple_of(page);
        if page > PAGE_LEN && start + len > file_len {
            return Err(MemoryError::PartOfHugePage { guest, file_len });
        }
        let budget = Budget::take(len).ok_or(MemoryError::NoAddressSpace)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let region = MmapRegion::build(Some(FileOffset::from_arc(fd, start)), len as usize, protection, flags)
            .map_err(|error| map_error(error.into()))?;
        let guard = GuardedRange::new(region.as_ptr(), len as usize).ok_or(MemoryError::TableFull)?;
        // SAFETY: the mapping has `len` bytes, of which the region begins `file_offset - start` after its first.
        let host = unsafe { region.as_ptr().add((spec.file_offset - start) as usize) };
        Ok(Self { spec, host, mapping: Arc::new(Mapping { guard, _region: region, budget }) })
    }

    fn host_at(&self, offset: u64, len: u64) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        // SAFETY: `offset` is within the `spec.len` bytes that are mapped from `host` on.
        (end <= self.spec.len).then(|| unsafe { self.host.add(offset as usize) })
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn file(len: u64) -> Arc<File> {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        Arc::new(fd.into())
    }

    fn spec(guest: u64, len: u64, user: u64) -> RegionSpec {
        RegionSpec { guest, len, user, file_offset: 0 }
    }

    fn memory() -> GuestMemory {
        // Two regions that adjoin in guest addresses and a third one that stands apart.
        [spec(0x1000, 0x1000, 0x70_1000), spec(0x2000, 0x2000, 0x70_2000), spec(0x9000, 0x1000, 0x70_9000)]
            .into_iter()
            .fold(GuestMemory::default(), |memory, spec| memory.with_region(spec, file(spec.len)).unwrap())
    }

    fn lengths(memory: &GuestMemory, address: u64, len: u32) -> Option<Vec<usize>> {
        let mut pieces = Vec::new();
        memory.pieces_at_guest(address, len, &mut pieces).then(|| pieces.iter().map(|piece| piece.len).collect())
    }

    #[test]
    fn a_buffer_may_span_adjoining_regions_and_nothing_else() {
        let memory = memory();
        assert_eq!(lengths(&memory, 0x1000, 0x1000), Some(vec![0x1000]));
        assert_eq!(lengths(&memory, 0x1ff0, 0x20), Some(vec![0x10, 0x10]));
        assert_eq!(lengths(&memory, 0x1000, 0x3000), Some(vec![0x1000, 0x2000]));
        for (address, len) in [(0x1000, 0x3001), (0xfff, 1), (0x4000, 1), (0x9fff, 2), (u64::MAX, 1), (u64::MAX, u32::MAX)] {
            assert_eq!(lengths(&memory, address, len), None, "{len:#x} bytes at {address:#x}");
        }
    }

    #[test]
    fn a_ring_must_lie_within_one_region() {
        let memory = memory();
        assert!(memory.at_guest(0x1000, 0x1000).is_some() && memory.at_user(0x70_1000, 0x1000).is_some());
        assert!(memory.at_guest(0x1ff0, 0x20).is_none() && memory.at_user(0x70_1ff0, 0x20).is_none());
        assert!(memory.at_user(0x1000, 1).is_none() && memory.at_user(0x70_9000, u64::MAX).is_none());
    }

    #[test]
    fn regions_that_make_no_sense_are_refused() {
        let memory = memory();
        let refused = |spec| memory.with_region(spec, file(0x1000)).unwrap_err();
        assert!(matches!(refused(spec(0xa000, 0, 0)), MemoryError::BadRange(0xa000)));
        assert!(matches!(refused(spec(0xa000, u64::MAX, 0)), MemoryError::BadRange(_)));
        assert!(matches!(refused(spec(u64::MAX, 0x1000, 0)), MemoryError::BadRange(_)));
        assert!(matches!(refused(spec(0xfff, 2, 0)), MemoryError::Overlap(_)));
        assert!(matches!(refused(spec(0xa000, 0x1000, 0x70_1fff)), MemoryError::Overlap(_)));
        assert!(matches!(refused(spec(0xa000, 0x1001, 0)), MemoryError::FileTooShort { .. }));
        assert!(matches!(refused(spec(1 << 41, MAX_MEMORY_LEN, 0)), MemoryError::TooMuch));
        let beyond = RegionSpec { file_offset: 0x1000, ..spec(0xa000, 0x1000, 0) };
        assert!(matches!(refused(beyond), MemoryError::FileTooShort { .. }));
    }

    #[test]
    fn a_region_far_into_its_file_takes_no_more_address_space_than_it_has() {
        let offset = 1 << 45;
        let spec = RegionSpec { guest: 0, len: 0x1000, user: 0, file_offset: offset + 0x123 };
        let memory = GuestMemory::default().with_region(spec, file(offset + 0x10_0000)).unwrap();
        assert_eq!(memory.regions[0].mapping.budget.0, 0x2000);
        // SAFETY: the first byte of a live mapping, which nobody else touches.
        assert_eq!(unsafe { memory.at_guest(0, 0x1000).unwrap().read_volatile() }, 0);
    }

    #[test]
    fn a_region_can_be_taken_away_and_the_rest_stays() {
        let memory = memory().without_region(&spec(0x2000, 0x2000, 0x70_2000)).unwrap();
        assert!(memory.at_guest(0x1000, 1).is_some() && memory.at_guest(0x2000, 1).is_none());
        assert!(matches!(memory.without_region(&spec(0x9000, 0x1001, 0x70_9000)), Err(MemoryError::NoSuchRegion(_))));
    }

    #[test]
    fn memory_whose_file_is_shortened_reads_as_zeros_and_counts_as_lost() {
        crate::sys::install_signal_handlers().unwrap();
        let fd = file(0x4000);
        let memory = GuestMemory::default().with_region(spec(0, 0x4000, 0), Arc::clone(&fd)).unwrap();
        let ptr = memory.at_guest(0x3000, 8).unwrap();
        // SAFETY: eight bytes of a live mapping, which nobody else touches.
        unsafe { ptr.write_volatile(7) };
        assert!(!memory.is_lost());
        ftruncate(&fd, 0x1000).unwrap();
        // SAFETY: as above; the signal handler puts other memory there.
        assert_eq!(unsafe { ptr.read_volatile() }, 0);
        assert!(memory.is_lost());
    }
}
