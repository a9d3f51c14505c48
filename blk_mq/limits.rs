// SPDX-License-Identifier: GPL-2.0

//! Queue limits, frozen queues, and the changes that need a frozen queue.
//!
//! Lock order: limits ([`GenDisk::update_limits`]), then the backend's `writer`, which
//! [`GenDisk::publish`] takes alone, then frozen ([`GenDisk::freeze`]). While a task has a queue
//! frozen, it must not call a file system, send a uevent or wait for I/O of that queue: deadlock.
//! Its allocations do no I/O (`memalloc_noio_save()` is in force).
//!
//! User space changes limits, too (`/sys/block/*/queue/`). Like an update of the driver, such a
//! change copies the limits, freezes the queue, and then replaces all limits. A request that finds
//! discards or writes of zeroes unsupported disables them without a lock
//! ([`disable_discard`](super::Request::disable_discard)). If it does so between the copy and the
//! replacement, the replacement enables the operation again. Later changes enable discards again as
//! well, because each change computes their maximum length anew. In both cases the next request
//! fails, and disables the operation again.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    backend::Writer,
    disk::{
        DiskOperations,
        GenDisk, //
    },
    request::Operations, //
};
use crate::kern::{
    atomic::AtomicWrites,
    ffi, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    types::NotThreadSafe, //
};

/// The backend of the requests of a disk of `T`.
type Backend<T> = <<T as DiskOperations>::Queue as Operations>::Backend;

impl<T: DiskOperations> GenDisk<T> {
    /// Publishes the backend of requests; returns `backend` if they have one. May sleep.
    ///
    /// Needs no frozen queue, because no request uses the backend before it is published.
    pub(crate) fn publish(&self, backend: Backend<T>) -> Result<(), Backend<T>> {
        self.queue_context().backend.fill(backend)
    }

    /// Removes the backend of requests, and returns it. May sleep.
    ///
    /// For a disk without openers. Such a disk usually has no requests; to check that costs less
    /// than to freeze the queue. If there may be requests, the queue is frozen.
    pub(crate) fn unpublish(&self) -> Option<Backend<T>> {
        let mut writer = self.queue_context().backend.lock();
        // SAFETY: The value is taken below.
        unsafe { writer.hide() };
        // SAFETY: By the invariants of `GenDisk` the queue is valid.
        if unsafe { ffi::rnull_loop_queue_has_requests(self.queue()) } {
            let mut frozen = self.freeze_as(writer);
            // SAFETY: The value is hidden, and the queue was frozen since.
            return unsafe { frozen.writer.take() };
        }
        // SAFETY: The value is hidden, and the queue has been seen without requests since.
        unsafe { writer.take() }
    }

    /// Freezes the queue until the guard is dropped, which waits for all requests:
    /// `blk_mq_freeze_queue()`. May sleep.
    ///
    /// # Examples
    ///
    /// ```ignore
    /// // The lock of the limits comes before the frozen queue.
    /// let mut limits = disk.update_limits();
    /// limits.set_block_size(4096);
    /// let mut frozen = disk.freeze();
    /// limits.commit()?;
    /// if let Some(backend) = frozen.backend() {
    ///     backend.block_size = 4096;
    /// }
    /// // The queue thaws.
    /// drop(frozen);
    /// ```
    pub(crate) fn freeze(&self) -> FrozenQueue<'_, T> {
        self.freeze_as(self.queue_context().backend.lock())
    }

    /// Freezes the queue for the writer of its backend.
    fn freeze_as<'a>(&'a self, writer: Writer<'a, Backend<T>>) -> FrozenQueue<'a, T> {
        // SAFETY: By the invariants of `GenDisk` the queue is valid.
        let memflags = unsafe { ffi::rnull_loop_freeze_queue(self.queue()) };
        // INVARIANT: The queue is frozen now, and `writer` is that of its backend.
        FrozenQueue {
            disk: self,
            memflags,
            writer,
        }
    }

    /// Begins a change of the queue's limits: `queue_limits_start_update()`. May sleep. See the
    /// example of [`freeze`](Self::freeze).
    pub(crate) fn update_limits(&self) -> LimitsUpdate<'_> {
        // SAFETY: By the invariants of `GenDisk` the queue is valid.
        let limits = unsafe { ffi::rnull_loop_limits_start_update(self.queue()) };
        // INVARIANT: The call above has taken `limits_lock` and returned a copy of the limits. The
        // disk is valid for the lifetime of `self`.
        LimitsUpdate {
            disk: NonNull::from(self).cast(),
            limits,
            _disk: PhantomData,
            _not_send: NotThreadSafe,
        }
    }
}

/// A frozen queue: it has no requests until this is dropped.
///
/// # Invariants
///
/// This thread has frozen the queue, and `rnull_loop_freeze_queue()` has returned `memflags`.
/// `writer` is that of the queue's backend.
pub(crate) struct FrozenQueue<'a, T: DiskOperations> {
    disk: &'a GenDisk<T>,
    memflags: c_uint,
    writer: Writer<'a, Backend<T>>,
}

impl<T: DiskOperations> FrozenQueue<'_, T> {
    /// Returns the backend of requests, to change it.
    pub(crate) fn backend(&mut self) -> Option<&mut Backend<T>> {
        // SAFETY: By the type invariant the queue is frozen for as long as `self` lives.
        unsafe { self.writer.get_mut() }
    }

    /// Replaces the backend of requests, and returns the old one.
    pub(crate) fn replace(&mut self, backend: Backend<T>) -> Option<Backend<T>> {
        // SAFETY: By the type invariant the queue is frozen.
        unsafe { self.writer.replace(backend) }
    }
}

impl<T: DiskOperations> Drop for FrozenQueue<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the queue is frozen, with these `memflags`. The guard in
        // `writer` is not `Send`, so this is the thread that has frozen it.
        unsafe { ffi::rnull_loop_unfreeze_queue(self.disk.queue(), self.memflags) };
    }
}

/// A change of the limits of a queue that is not in force yet. Dropping it discards the change.
///
/// # Invariants
///
/// `disk` is valid for `'a`, this thread holds the `limits_lock` of its queue, and `limits` is a
/// copy of its limits, changed by the methods below.
#[must_use = "`commit` brings the change into force"]
pub(crate) struct LimitsUpdate<'a> {
    disk: NonNull<bindings::gendisk>,
    limits: bindings::queue_limits,
    _disk: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

impl LimitsUpdate<'_> {
    /// Sets the logical block size, the physical block size and the minimum I/O size, in bytes.
    pub(crate) fn set_block_size(&mut self, bytes: u32) {
        self.limits.logical_block_size = bytes;
        self.limits.physical_block_size = bytes;
        self.limits.io_min = bytes;
    }

    /// Sets the physical block size, which is written without a read of old data, and the minimum
    /// I/O size, in bytes.
    pub(crate) fn set_physical_block_size(&mut self, bytes: u32) {
        self.limits.physical_block_size = bytes;
        self.limits.io_min = bytes;
    }

    /// Sets the alignment of memory, as a mask.
    pub(crate) fn set_dma_alignment(&mut self, mask: u32) {
        self.limits.dma_alignment = mask;
    }

    /// Sets whether a write needs a flush to be durable: `BLK_FEAT_WRITE_CACHE`.
    pub(crate) fn set_write_cache(&mut self, on: bool) {
        self.set_feature(ffi::BLK_FEAT_WRITE_CACHE, on);
    }

    /// Sets whether a write with `REQ_FUA` is durable without a flush: `BLK_FEAT_FUA`. Has no
    /// effect without a write cache.
    pub(crate) fn set_fua(&mut self, on: bool) {
        self.set_feature(ffi::BLK_FEAT_FUA, on);
    }

    /// Sets whether memory must not change while it is written: `BLK_FEAT_STABLE_WRITES`. A file
    /// system reads this when it is mounted.
    pub(crate) fn set_stable_writes(&mut self, on: bool) {
        self.set_feature(ffi::BLK_FEAT_STABLE_WRITES, on);
    }

    /// Sets whether seeks are slow: `BLK_FEAT_ROTATIONAL`.
    pub(crate) fn set_rotational(&mut self, on: bool) {
        self.set_feature(ffi::BLK_FEAT_ROTATIONAL, on);
    }

    /// Sets the limits of atomic writes; `None` for none: `BLK_FEAT_ATOMIC_WRITES`.
    ///
    /// The block layer merges requests of atomic writes only up to the longest unit.
    pub(crate) fn set_atomic_writes(&mut self, limits: Option<AtomicWrites>) {
        self.set_feature(ffi::BLK_FEAT_ATOMIC_WRITES, limits.is_some());
        let (unit_min, unit_max, boundary) = limits.map_or((0, 0, 0), |limits| {
            (limits.unit_min, limits.unit_max, limits.boundary)
        });
        self.limits.atomic_write_hw_unit_min = unit_min;
        self.limits.atomic_write_hw_unit_max = unit_max;
        self.limits.atomic_write_hw_max = unit_max;
        self.limits.atomic_write_hw_boundary = boundary;
    }

    /// Sets the number of write streams that bios may have, and their granularity in bytes.
    pub(crate) fn set_write_streams(&mut self, max: u16, granularity: u32) {
        self.limits.max_write_streams = max;
        self.limits.write_stream_granularity = granularity;
    }

    fn set_feature(&mut self, feature: bindings::blk_features_t, on: bool) {
        if on {
            self.limits.features |= feature;
        } else {
            self.limits.features &= !feature;
        }
    }

    /// Sets the maximum length of a discard, in sectors of 512 bytes (0: no discards), and the
    /// granularity, in bytes.
    pub(crate) fn set_discard(&mut self, max_sectors: u32, granularity: u32) {
        self.limits.max_hw_discard_sectors = max_sectors;
        self.limits.discard_granularity = if max_sectors == 0 { 0 } else { granularity };
    }

    /// Sets the maximum length of a write of zeroes, in sectors of 512 bytes (0: none).
    pub(crate) fn set_write_zeroes(&mut self, max_sectors: u32) {
        self.limits.max_write_zeroes_sectors = max_sectors;
    }

    /// Brings the change into force: `queue_limits_commit_update()`.
    ///
    /// The caller sees to it that no request depends on the limits: the queue is frozen, or
    /// requests have no backend. Enables discards that a request has disabled, unless
    /// [`set_discard`](Self::set_discard) has set their length to 0.
    ///
    /// Fails with `EINVAL` if the limits contradict each other; then nothing has changed.
    pub(crate) fn commit(self) -> Result {
        let mut this = ManuallyDrop::new(self);
        let queue = this.queue();
        // SAFETY:
        // - By the type invariant the queue is valid, and `limits` is a changed copy of its limits.
        // - By the type invariant this thread holds `limits_lock`, which the call releases even if
        //   it fails. `this` is not dropped, so the lock is released once.
        // - The caller keeps requests away. The block layer would split or refuse a request by old
        //   or new limits, which are plain integers, and by which no memory is sized.
        to_result(unsafe { bindings::queue_limits_commit_update(queue, &mut this.limits) })?;
        // SAFETY: By the type invariant the disk is valid, and so is the mapping of its `part0`,
        // whose flag is changed atomically.
        unsafe { ffi::rnull_loop_inherit_stable_writes(this.disk.as_ptr()) };
        Ok(())
    }

    fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type invariant the disk is valid; its queue does not change.
        unsafe { (*self.disk.as_ptr()).queue }
    }
}

impl Drop for LimitsUpdate<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the queue is valid, and this thread holds its
        // `limits_lock`, which the call releases.
        unsafe { ffi::rnull_loop_limits_cancel_update(self.queue()) };
    }
}
