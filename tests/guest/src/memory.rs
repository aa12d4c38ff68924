//! The guest's memory: files that the back-end maps too.
//!
//! The back-end has its own mapping of the same pages, in another thread or another process. So every access here is
//! volatile or atomic, through `vm-memory`, and nothing is ever borrowed from guest memory.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Add;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// An address as the guest's driver writes it into descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestAddr(pub u64);

/// An address in the front-end's own address space, as `SET_VRING_ADDR` wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserAddr(pub u64);

impl Add<u64> for GuestAddr {
    type Output = Self;

    fn add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl Add<u64> for UserAddr {
    type Output = Self;

    fn add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// Where one region lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// Its address for the guest.
    pub guest: GuestAddr,
    /// Its address for the front-end. Nothing need be mapped there: it is only ever translated.
    pub user: UserAddr,
    /// Its size in bytes, whole pages.
    pub size: u64,
    /// Where it starts in its file, in bytes, whole pages.
    pub mmap_offset: u64,
}

impl RegionLayout {
    /// A region of `size` bytes at `guest`, with a user address that differs from it, at the start of its file.
    #[must_use]
    pub fn at(guest: u64, size: u64) -> Self {
        Self { guest: GuestAddr(guest), user: UserAddr(0x7000_0000_0000 + guest), size, mmap_offset: 0 }
    }
}

/// Regions of shared memory, each in a file of its own.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

struct Region {
    layout: RegionLayout,
    mapping: MmapRegion<()>,
}

impl GuestMemory {
    /// Makes and maps the regions. With `sealed`, the files can neither shrink nor grow.
    ///
    /// # Errors
    /// When the operating system gives no memory file or mapping.
    pub fn new(layouts: &[RegionLayout], sealed: bool) -> io::Result<Self> {
        let regions = layouts.iter().map(|&layout| Region::new(layout, sealed)).collect::<io::Result<_>>()?;
        Ok(Self { regions })
    }

    /// Number of regions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// True without any region.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Where region `index` lies.
    #[must_use]
    pub fn layout(&self, index: usize) -> RegionLayout {
        self.regions[index].layout
    }

    /// Region `index` as messages describe it.
    #[must_use]
    pub fn message(&self, index: usize) -> VhostUserMemoryRegion {
        let RegionLayout { guest, user, size, mmap_offset } = self.layout(index);
        VhostUserMemoryRegion::new(guest.0, size, user.0, mmap_offset)
    }

    /// The file behind region `index`.
    ///
    /// # Panics
    /// When there is no such region.
    #[must_use]
    pub fn file(&self, index: usize) -> &File {
        self.regions[index].mapping.file_offset().expect("every region has a file").file()
    }

    /// Cuts the file behind region `index` to `len` bytes. Touching what was cut off ends the process with SIGBUS,
    /// so the guest must stay away from it from then on.
    ///
    /// # Errors
    /// When the file is sealed.
    pub fn truncate_file(&self, index: usize, len: u64) -> io::Result<()> {
        Ok(ftruncate(self.file(index), len)?)
    }

    /// The front-end's address of a byte of guest memory.
    ///
    /// # Panics
    /// When there is no such byte.
    #[must_use]
    pub fn user_address(&self, address: GuestAddr) -> UserAddr {
        let (region, offset) = self.locate(address);
        region.layout.user + offset as u64
    }

    /// Writes bytes; they may cross adjoining regions.
    ///
    /// # Panics
    /// When the guest has no memory there.
    pub fn write(&self, address: GuestAddr, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (region, offset) = self.locate(address + done as u64);
            done += region.mapping.as_volatile_slice().write(&bytes[done..], offset).expect("the place is inside the region");
        }
    }

    /// Reads bytes; they may cross adjoining regions.
    ///
    /// # Panics
    /// When the guest has no memory there.
    pub fn read(&self, address: GuestAddr, bytes: &mut [u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (region, offset) = self.locate(address + done as u64);
            done += region.mapping.as_volatile_slice().read(&mut bytes[done..], offset).expect("the place is inside the region");
        }
    }

    /// Reads `len` bytes.
    ///
    /// # Panics
    /// When the guest has no memory there.
    #[must_use]
    pub fn bytes(&self, address: GuestAddr, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes);
        bytes
    }

    /// Fills `len` bytes with zeros.
    ///
    /// # Panics
    /// When the guest has no memory there.
    pub fn clear(&self, address: GuestAddr, len: usize) {
        self.write(address, &vec![0; len]);
    }

    /// Stores an aligned 16-bit number atomically.
    ///
    /// # Panics
    /// When the guest has no memory there, or the address is odd.
    #[inline]
    pub fn store_u16(&self, address: GuestAddr, value: u16, order: Ordering) {
        self.store(address, value.to_le(), order);
    }

    /// Loads an aligned 16-bit number atomically.
    ///
    /// # Panics
    /// When the guest has no memory there, or the address is odd.
    #[inline]
    #[must_use]
    pub fn load_u16(&self, address: GuestAddr, order: Ordering) -> u16 {
        u16::from_le(self.load(address, order))
    }

    /// Stores an aligned 32-bit number atomically.
    ///
    /// # Panics
    /// When the guest has no memory there, or the address is not aligned.
    pub fn store_u32(&self, address: GuestAddr, value: u32, order: Ordering) {
        self.store(address, value.to_le(), order);
    }

    /// Loads an aligned 32-bit number atomically.
    ///
    /// # Panics
    /// When the guest has no memory there, or the address is not aligned.
    #[inline]
    #[must_use]
    pub fn load_u32(&self, address: GuestAddr, order: Ordering) -> u32 {
        u32::from_le(self.load(address, order))
    }

    /// `len` bytes of one region, to be found once for many accesses.
    ///
    /// # Panics
    /// When they are not all inside one region.
    pub(crate) fn slice(&self, address: GuestAddr, len: usize) -> VolatileSlice<'_> {
        let (region, offset) = self.locate(address);
        region.mapping.get_slice(offset, len).expect("the range is inside the region")
    }

    #[inline]
    fn load<T: AtomicAccess>(&self, address: GuestAddr, order: Ordering) -> T {
        let (region, offset) = self.locate(address);
        let value = region.mapping.as_volatile_slice().load(offset, order);
        value.expect("the place is aligned and inside the region")
    }

    #[inline]
    fn store<T: AtomicAccess>(&self, address: GuestAddr, value: T, order: Ordering) {
        let (region, offset) = self.locate(address);
        let stored = region.mapping.as_volatile_slice().store(value, offset, order);
        stored.expect("the place is aligned and inside the region");
    }

    #[inline]
    fn locate(&self, address: GuestAddr) -> (&Region, usize) {
        for region in &self.regions {
            let offset = address.0.wrapping_sub(region.layout.guest.0);
            if offset < region.layout.size {
                return (region, usize::try_from(offset).expect("a region fits the address space"));
            }
        }
        panic!("the guest has no memory at {:#x}", address.0);
    }
}

impl Region {
    fn new(layout: RegionLayout, sealed: bool) -> io::Result<Self> {
        let file = File::from(memfd_create("weft-guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        ftruncate(&file, layout.mmap_offset + layout.size)?;
        if sealed {
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        }
        let size = usize::try_from(layout.size).map_err(io::Error::other)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, layout.mmap_offset), size).map_err(io::Error::other)?;
        Ok(Self { layout, mapping })
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layout.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cross_adjoining_regions() {
        let memory = GuestMemory::new(&[RegionLayout::at(0x1000, 0x1000), RegionLayout::at(0x2000, 0x1000)], true).unwrap();
        memory.write(GuestAddr(0x1ffd), b"across");
        assert_eq!(memory.bytes(GuestAddr(0x1ffd), 6), b"across");
        assert_eq!(memory.bytes(GuestAddr(0x2000), 3), b"oss");
    }

    #[test]
    fn a_sealed_file_keeps_its_size() {
        let memory = GuestMemory::new(&[RegionLayout::at(0, 0x2000)], true).unwrap();
        assert!(memory.truncate_file(0, 0x1000).is_err());
    }
}
