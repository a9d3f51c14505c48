// SPDX-License-Identifier: GPL-2.0

//! Block devices.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::ffi;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
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
/// A reference points at a valid `struct block_device` whose disk is not released: it is open, or
/// it is that of a disk that somebody keeps.
#[repr(transparent)]
pub(crate) struct BlockDevice(Opaque<bindings::block_device>);

// SAFETY: The reference count is that of `bd_device`, whose release frees the block device. The device of
// a disk is released with it, and that of a partition has a reference to its disk.
unsafe impl AlwaysRefCounted for BlockDevice {
    fn inc_ref(&self) {
        // SAFETY: By the type invariant the block device is valid.
        unsafe { bindings::get_device(&raw mut (*self.raw()).bd_device) };
    }

    unsafe fn dec_ref(this: NonNull<Self>) {
        let raw = this.cast::<bindings::block_device>().as_ptr();
        // SAFETY: By the function's requirements there is a reference, which this drops.
        unsafe { bindings::put_device(&raw mut (*raw).bd_device) };
    }
}

impl BlockDevice {
    /// # Safety
    ///
    /// `raw` must be null, or a valid block device with a reference that becomes that of the result.
    pub(crate) unsafe fn from_owned(raw: *mut bindings::block_device) -> Option<ARef<Self>> {
        // SAFETY: By the function's requirements; the type is transparent.
        NonNull::new(raw).map(|raw| unsafe { ARef::from_raw(raw.cast()) })
    }

    /// # Safety
    ///
    /// `raw` must satisfy the invariants of [`BlockDevice`] for `'a`.
    pub(crate) unsafe fn from_raw<'a>(raw: *mut bindings::block_device) -> &'a Self {
        // SAFETY: By the function's requirements; the type is transparent.
        unsafe { &*raw.cast::<Self>() }
    }

    pub(crate) fn raw(&self) -> *mut bindings::block_device {
        self.0.get()
    }

    /// The disk that this is, or is a partition of.
    pub(crate) fn disk(&self) -> *mut bindings::gendisk {
        // SAFETY: By the type invariant it is valid; `bd_disk` does not change.
        unsafe { (*self.raw()).bd_disk }
    }

    /// The major number of the disk that this is, or is a partition of.
    pub(crate) fn disk_major(&self) -> u32 {
        // SAFETY: By the type invariant the disk is valid; its number does not change.
        unsafe { (*self.disk()).major as u32 }
    }

    /// Writes back what is cached: `sync_blockdev()`. May sleep.
    pub(crate) fn sync(&self) -> Result {
        // SAFETY: By the type invariant.
        to_result(unsafe { bindings::sync_blockdev(self.raw()) })
    }

    /// Drops what is cached and clean, also what somebody is reading just now. What a file system
    /// holds on to stays. May sleep.
    pub(crate) fn invalidate(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::invalidate_bdev(self.raw()) };
        // The above leaves pages that are locked or in use; this waits for them.
        // SAFETY: By the type invariant; the mapping of a block device lives as long. What cannot
        // be dropped makes it fail, and stays.
        unsafe { bindings::invalidate_inode_pages2((*self.raw()).bd_mapping) };
    }

    /// The longest write of zeroes, in sectors of 512 bytes; 0 when there is none.
    pub(crate) fn max_write_zeroes_sectors(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { ffi::rnull_loop_bdev_write_zeroes_sectors(self.raw()) }
    }

    /// The granularity of discards, in bytes.
    pub(crate) fn discard_granularity(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { ffi::rnull_loop_bdev_discard_granularity(self.raw()) }
    }

    /// Whether seeks are slow.
    pub(crate) fn is_rotational(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { ffi::rnull_loop_bdev_rot(self.raw()) }
    }

    /// The logical block size, in bytes.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { ffi::rnull_loop_bdev_logical_block_size(self.raw()) }
    }

    /// The alignment that memory for direct I/O must have, as a mask.
    pub(crate) fn dma_alignment(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { ffi::rnull_loop_bdev_dma_alignment(self.raw()) }
    }

    /// Whether bios to it may be told not to wait: `bdev_nowait()`.
    pub(crate) fn has_nowait(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { ffi::rnull_loop_bdev_nowait(self.raw()) }
    }

    /// The longest bio that is not split for its length, in bytes.
    pub(crate) fn max_bytes(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { ffi::rnull_loop_bdev_max_bytes(self.raw()) }
    }

    /// Returns whether direct I/O of `len` bytes at `pos` bytes would be carried out: the device is
    /// as long, it is in whole logical blocks and, for a write, the device is neither read-only nor
    /// swap space. May have changed when this returns.
    pub(crate) fn can_access(&self, write: bool, pos: u64, len: u32) -> bool {
        // SAFETY: By the type invariant.
        unsafe { ffi::rnull_loop_bdev_admits(self.raw(), write, pos, len) }
    }

    /// Keeps exclusive openers away until the claim is dropped: `bd_prepare_to_claim()`.
    ///
    /// Waits for a claim under way. May sleep. Fails with `EBUSY` when somebody holds the device
    /// exclusively.
    pub(crate) fn claim(&self) -> Result<Claim<'_>> {
        // SAFETY: By the type invariant; the holder is an address that only this module uses and
        // that the block layer compares, but does not follow.
        to_result(unsafe {
            bindings::bd_prepare_to_claim(self.raw(), self.holder(), core::ptr::null())
        })?;
        // INVARIANT: The claim is ours now.
        Ok(Claim(self))
    }

    /// Who claims: any address that is not null and no other claimer's will do.
    fn holder(&self) -> *mut c_void {
        static HOLDER: u8 = 0;
        core::ptr::from_ref(&HOLDER).cast_mut().cast()
    }
}

/// A claim to a block device.
///
/// # Invariants
///
/// `bd_prepare_to_claim()` succeeded for the device and was not undone.
#[must_use = "the claim ends when this is dropped"]
pub(crate) struct Claim<'a>(&'a BlockDevice);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, with the holder that claimed.
        unsafe { bindings::bd_abort_claiming(self.0.raw(), self.0.holder()) };
    }
}
