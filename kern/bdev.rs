// SPDX-License-Identifier: GPL-2.0

//! Block devices.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    atomic::AtomicWrites,
    ffi, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};

/// A block device: a disk or a partition.
///
/// # Invariants
///
/// A reference points at a valid `struct block_device` whose disk is not released, because the
/// block device is open, or because a reference to it or to its disk is held.
#[repr(transparent)]
pub(crate) struct BlockDevice(Opaque<bindings::block_device>);

// SAFETY: A block device is bound to no task: any task may use and release a reference.
unsafe impl Send for BlockDevice {}
// SAFETY: C code protects what it changes in a block device, and the methods only read the rest.
unsafe impl Sync for BlockDevice {}

// SAFETY: The reference count is that of `bd_device`: only its release drops the inode that
// contains the block device. For a whole disk that release is the release of the disk; a partition
// holds a reference to its disk until its own release.
unsafe impl AlwaysRefCounted for BlockDevice {
    fn inc_ref(&self) {
        // SAFETY: By the type invariant the block device is valid, so its device has a reference.
        unsafe { bindings::get_device(&raw mut (*self.raw()).bd_device) };
    }

    unsafe fn dec_ref(this: NonNull<Self>) {
        let raw = this.cast::<bindings::block_device>().as_ptr();
        // SAFETY: By the function's requirements the caller owns a reference, which this drops.
        unsafe { bindings::put_device(&raw mut (*raw).bd_device) };
    }
}

impl BlockDevice {
    /// Takes over a reference to a block device; `None` for a null pointer.
    ///
    /// # Safety
    ///
    /// `raw` must be null, or a valid block device with a reference that becomes that of the
    /// result.
    pub(crate) unsafe fn from_owned(raw: *mut bindings::block_device) -> Option<ARef<Self>> {
        // SAFETY: By the function's requirements the block device is valid, and its reference is
        // given to the result; `Self` is a transparent wrapper.
        NonNull::new(raw).map(|raw| unsafe { ARef::from_raw(raw.cast()) })
    }

    /// Borrows a block device.
    ///
    /// # Safety
    ///
    /// `raw` must satisfy the invariants of [`BlockDevice`] for `'a`.
    pub(crate) unsafe fn from_raw<'a>(raw: *mut bindings::block_device) -> &'a Self {
        // SAFETY: By the function's requirements `raw` is valid for `'a`; `Self` is a transparent
        // wrapper around an `Opaque`, so C code may change it.
        unsafe { &*raw.cast::<Self>() }
    }

    /// Returns the `struct block_device`.
    pub(crate) fn raw(&self) -> *mut bindings::block_device {
        self.0.get()
    }

    /// Returns the disk that the block device is, or is a partition of.
    pub(crate) fn disk(&self) -> *mut bindings::gendisk {
        // SAFETY: By the type invariant the block device is valid; `bd_disk` does not change.
        unsafe { (*self.raw()).bd_disk }
    }

    /// Returns the major number of the disk that the block device is, or is a partition of.
    pub(crate) fn disk_major(&self) -> u32 {
        // SAFETY: By the type invariant the disk is valid; its major number does not change.
        unsafe { (*self.disk()).major as u32 }
    }

    /// Writes back the page cache of the block device. Fails with `EINTR` on a fatal signal. Errors
    /// are reported to the openers that wrote the data, by their `fsync()`. May sleep.
    pub(crate) fn write_back(&self) -> Result {
        // SAFETY: By the type invariant the block device is valid.
        to_result(unsafe { ffi::rnull_loop_bdev_sync_killable(self.raw()) })
    }

    /// Makes completed writes durable: `blkdev_issue_flush()`. May sleep.
    pub(crate) fn flush(&self) -> Result {
        // SAFETY: By the type invariant the block device is valid. The call requires that it is
        // open.
        to_result(unsafe { bindings::blkdev_issue_flush(self.raw()) })
    }

    /// Drops the clean pages in the page cache of the block device. Waits for pages that are
    /// locked, because they are being read, or under writeback. Buffers that a file system holds
    /// stay. May sleep.
    pub(crate) fn invalidate(&self) {
        // SAFETY: By the type invariant the block device is valid.
        unsafe { bindings::invalidate_bdev(self.raw()) };
        // `invalidate_bdev()` skips pages that are locked, mapped or otherwise in use. This call
        // waits for them and unmaps them. It returns an error if pages stay, which is ignored.
        // SAFETY: By the type invariant the block device is valid. Its mapping is part of the same
        // inode, so it lives as long. Pages with other users are safe: the call locks each page,
        // and keeps it if it is dirty or if its buffers cannot be released.
        unsafe { bindings::invalidate_inode_pages2((*self.raw()).bd_mapping) };
    }

    /// Returns the length of the longest write of zeroes, in sectors of 512 bytes; 0 if writes of
    /// zeroes are not supported.
    pub(crate) fn max_write_zeroes_sectors(&self) -> u32 {
        // SAFETY: By the type invariant the block device is valid.
        unsafe { ffi::rnull_loop_bdev_write_zeroes_sectors(self.raw()) }
    }

    /// Returns the granularity of discards, in bytes.
    pub(crate) fn discard_granularity(&self) -> u32 {
        // SAFETY: By the type invariant the block device is valid.
        unsafe { ffi::rnull_loop_bdev_discard_granularity(self.raw()) }
    }

    /// Returns whether the disk is rotational: `bdev_rot()`.
    pub(crate) fn is_rotational(&self) -> bool {
        // SAFETY: By the type invariant the block device is valid.
        unsafe { ffi::rnull_loop_bdev_rot(self.raw()) }
    }

    /// Returns the logical block size, in bytes.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: By the type invariant the block device is valid.
        unsafe { ffi::rnull_loop_bdev_logical_block_size(self.raw()) }
    }

    /// Returns the alignment of memory for direct I/O, as a mask.
    pub(crate) fn dma_alignment(&self) -> u32 {
        // SAFETY: By the type invariant the block device is valid.
        unsafe { ffi::rnull_loop_bdev_dma_alignment(self.raw()) }
    }

    /// Returns the limits of atomic writes of the block device at `offset` bytes, for blocks of
    /// `block_size` bytes; `None` if it has no atomic writes there.
    pub(crate) fn atomic_writes(&self, offset: u64, block_size: u32) -> Option<AtomicWrites> {
        // SAFETY: By the type invariant the block device is valid.
        if !unsafe { ffi::rnull_loop_bdev_can_atomic_write(self.raw()) } {
            return None;
        }
        // The limits may change meanwhile. Then the block layer refuses what they do not allow.
        let limits = AtomicWrites {
            // SAFETY: As above.
            unit_min: unsafe { ffi::rnull_loop_bdev_atomic_unit_min(self.raw()) },
            // SAFETY: As above.
            unit_max: unsafe { ffi::rnull_loop_bdev_atomic_unit_max(self.raw()) },
            // SAFETY: As above.
            boundary: unsafe { ffi::rnull_loop_bdev_atomic_boundary(self.raw()) },
        };
        // SAFETY: As above.
        let start = unsafe { ffi::rnull_loop_bdev_start(self.raw()) };
        limits.at(start.checked_add(offset)?, block_size)
    }

    /// Returns the number of write streams, and their granularity in bytes.
    pub(crate) fn write_streams(&self) -> (u16, u32) {
        // SAFETY: By the type invariant the block device is valid, so its queue is. The fields are
        // aligned words, which C code changes as such.
        unsafe {
            let limits = &raw const (*(*self.raw()).bd_queue).limits;
            (
                core::ptr::read_volatile(&raw const (*limits).max_write_streams),
                core::ptr::read_volatile(&raw const (*limits).write_stream_granularity),
            )
        }
    }

    /// Returns whether the block device takes a non-blocking bio (`REQ_NOWAIT`) of `len` bytes,
    /// without splitting it for its length.
    pub(crate) fn takes_nowait(&self, len: u32) -> bool {
        // SAFETY: By the type invariant the block device is valid.
        unsafe { ffi::rnull_loop_bdev_takes_nowait(self.raw(), len) }
    }

    /// Returns whether the block device would carry out direct I/O of `len` bytes at `pos` bytes:
    /// the range is inside the device and in whole logical blocks and, for a write, the device is
    /// neither read-only nor swap space. The answer may be stale when this returns.
    pub(crate) fn can_access(&self, write: bool, pos: u64, len: u32) -> bool {
        // SAFETY: By the type invariant the block device is valid.
        unsafe { ffi::rnull_loop_bdev_can_access(self.raw(), write, pos, len) }
    }

    /// Excludes exclusive openers until the claim is dropped: `bd_prepare_to_claim()`.
    ///
    /// Waits for other claims in progress. May sleep. Fails with `EBUSY` if the block device has an
    /// exclusive opener.
    pub(crate) fn claim(&self) -> Result<Claim<'_>> {
        // SAFETY: By the type invariant the block device is valid. The holder is not null, and the
        // block layer only compares it. Holder operations are optional.
        to_result(unsafe {
            bindings::bd_prepare_to_claim(self.raw(), self.holder(), core::ptr::null())
        })?;
        // INVARIANT: The call above succeeded.
        Ok(Claim(self))
    }

    /// Returns the holder of claims: the address of a static of this module, which no other claimer
    /// uses.
    fn holder(&self) -> *mut c_void {
        static HOLDER: u8 = 0;
        core::ptr::from_ref(&HOLDER).cast_mut().cast()
    }
}

/// A block device that the kernel has open for reading and writing.
///
/// # Invariants
///
/// `bdev_file_open_by_dev()` has returned the file, which is not closed.
pub(crate) struct OpenBlockDevice(NonNull<bindings::file>);

impl OpenBlockDevice {
    /// Opens a block device by its major and minor number: `bdev_file_open_by_dev()`. May sleep.
    ///
    /// Fails with `ENXIO` if there is none, with `EPERM` if the caller's cgroup may not use it, and
    /// with the errors of its driver.
    pub(crate) fn open(major: u32, minor: u32) -> Result<Self> {
        let mode = ffi::BLK_OPEN_READ | ffi::BLK_OPEN_WRITE;
        let dev = major << bindings::MINORBITS | minor;
        // SAFETY: The call takes any number. Without a holder there are no holder operations.
        let file = from_err_ptr(unsafe {
            bindings::bdev_file_open_by_dev(dev, mode, core::ptr::null_mut(), core::ptr::null())
        })?;
        // INVARIANT: The call above has returned the file.
        NonNull::new(file).map(Self).ok_or(ENXIO)
    }

    /// Returns the block device.
    pub(crate) fn get(&self) -> &BlockDevice {
        // SAFETY: By the type invariant the file is that of an open block device, which stays open
        // for as long as `self`.
        unsafe { BlockDevice::from_raw(bindings::file_bdev(self.0.as_ptr())) }
    }
}

impl Drop for OpenBlockDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the file is not closed, and it is not used after this.
        unsafe { bindings::bdev_fput(self.0.as_ptr()) };
    }
}

/// A claim to a block device.
///
/// # Invariants
///
/// `bd_prepare_to_claim()` succeeded for the block device, and `bd_abort_claiming()` was not called
/// since.
#[must_use = "the claim ends when this is dropped"]
pub(crate) struct Claim<'a>(&'a BlockDevice);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the claim is in progress, with the same holder.
        unsafe { bindings::bd_abort_claiming(self.0.raw(), self.0.holder()) };
    }
}
