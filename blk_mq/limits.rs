// SPDX-License-Identifier: GPL-2.0

//! Queue limits, frozen queues, and what may change only while a queue is frozen.
//!
//! Lock order: limits ([`GenDisk::update_limits`]), then the backend's writer, which
//! [`GenDisk::publish`] takes alone, then frozen ([`GenDisk::freeze`]). While a queue is frozen, its
//! owner must not call a file system, send a uevent or wait for I/O of that queue. Its allocations
//! do no I/O (`memalloc_noio_save()` is in force).
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    disk::{
        DiskOperations,
        GenDisk, //
    },
    request::Operations, //
};
use crate::kern::ffi;
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::MutexGuard,
    types::NotThreadSafe, //
};

/// The backend of the requests of a disk of `T`.
type Backend<T> = <<T as DiskOperations>::Queue as Operations>::Backend;

impl<T: DiskOperations> GenDisk<T> {
    /// Gives requests a backend; returns `backend` if they have one. May sleep.
    ///
    /// Needs no frozen queue, because no request uses a backend that is not there.
    pub(crate) fn publish(&self, backend: Backend<T>) -> Result<(), Backend<T>> {
        self.queue_context().backend.fill(backend)
    }

    /// Takes the backend of requests away, and returns it. May sleep.
    ///
    /// For a disk without openers. Such a disk has no requests, which costs less to check than to
    /// freeze the queue. If there are requests all the same, the queue is frozen.
    pub(crate) fn unpublish(&self) -> Option<Backend<T>> {
        let cell = &self.queue_context().backend;
        let writer = cell.lock();
        cell.hide(&writer);
        // SAFETY: The queue of a `GenDisk` is valid.
        if unsafe { ffi::rnull_loop_queue_has_requests(self.queue()) } {
            return self.freeze_as(writer).take();
        }
        // SAFETY: `writer` is held, and the value is hidden. The queue has been seen without
        // requests since.
        unsafe { cell.value_mut() }.take()
    }

    /// Waits until no request is left and keeps new ones out until the guard is dropped:
    /// `blk_mq_freeze_queue()`. May sleep.
    pub(crate) fn freeze(&self) -> FrozenQueue<'_, T> {
        self.freeze_as(self.queue_context().backend.lock())
    }

    fn freeze_as<'a>(&'a self, writer: MutexGuard<'a, ()>) -> FrozenQueue<'a, T> {
        // SAFETY: The queue of a `GenDisk` is valid.
        let memflags = unsafe { ffi::rnull_loop_freeze_queue(self.queue()) };
        // INVARIANT: The queue is frozen now, and `writer` is held.
        FrozenQueue {
            disk: self,
            memflags,
            writer,
        }
    }

    /// Begins a change of the queue's limits. May sleep.
    pub(crate) fn update_limits(&self) -> LimitsUpdate<'_> {
        // SAFETY: The queue of a `GenDisk` is valid.
        let limits = unsafe { ffi::rnull_loop_limits_start_update(self.queue()) };
        // INVARIANT: The call above took the lock.
        LimitsUpdate {
            disk: NonNull::from(self).cast(),
            limits,
            _disk: PhantomData,
            _not_send: NotThreadSafe,
        }
    }
}

/// A queue that has no requests and gets none until this is dropped.
///
/// # Invariants
///
/// The queue is frozen by this thread, which holds the `writer` of its backend.
pub(crate) struct FrozenQueue<'a, T: DiskOperations> {
    disk: &'a GenDisk<T>,
    memflags: c_uint,
    writer: MutexGuard<'a, ()>,
}

impl<T: DiskOperations> FrozenQueue<'_, T> {
    /// Returns the backend of requests.
    pub(crate) fn backend(&mut self) -> Option<&mut Backend<T>> {
        self.slot().as_mut()
    }

    /// Gives requests another backend, and returns the one that they had.
    pub(crate) fn replace(&mut self, backend: Backend<T>) -> Option<Backend<T>> {
        let old = self.slot().replace(backend);
        self.disk.queue_context().backend.show(&self.writer);
        old
    }

    /// Takes the backend, which is [hidden](super::backend::BackendCell::hide) already.
    fn take(&mut self) -> Option<Backend<T>> {
        self.slot().take()
    }

    fn slot(&mut self) -> &mut Option<Backend<T>> {
        // SAFETY: By the type invariant the queue is frozen and `writer` is held for as long as
        // `self` lives.
        unsafe { self.disk.queue_context().backend.value_mut() }
    }
}

impl<T: DiskOperations> Drop for FrozenQueue<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this undoes what `freeze` did, on the same thread.
        unsafe { ffi::rnull_loop_unfreeze_queue(self.disk.queue(), self.memflags) };
    }
}

/// A change of the limits of a queue that is not in force yet. Dropping it discards the change.
///
/// # Invariants
///
/// `disk` is valid for `'a`, and this thread holds the `limits_lock` of its queue.
#[must_use = "a change of limits comes into force by `commit`"]
pub(crate) struct LimitsUpdate<'a> {
    disk: NonNull<bindings::gendisk>,
    limits: bindings::queue_limits,
    _disk: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

impl LimitsUpdate<'_> {
    /// Sets the logical and physical block size and the least I/O, in bytes.
    pub(crate) fn set_block_size(&mut self, bytes: u32) {
        self.limits.logical_block_size = bytes;
        self.limits.physical_block_size = bytes;
        self.limits.io_min = bytes;
    }

    /// Sets the block size that is written without reading first, and the least I/O, in bytes.
    pub(crate) fn set_physical_block_size(&mut self, bytes: u32) {
        self.limits.physical_block_size = bytes;
        self.limits.io_min = bytes;
    }

    /// Sets the alignment that memory must have, as a mask.
    pub(crate) fn set_dma_alignment(&mut self, mask: u32) {
        self.limits.dma_alignment = mask;
    }

    /// Says whether written data needs a flush to be durable.
    pub(crate) fn set_write_cache(&mut self, on: bool) {
        self.set_feature(ffi::BLK_FEAT_WRITE_CACHE, on);
    }

    /// Says whether a write itself can be durable (`REQ_FUA`), without a flush. Means nothing without
    /// a write cache.
    pub(crate) fn set_fua(&mut self, on: bool) {
        self.set_feature(ffi::BLK_FEAT_FUA, on);
    }

    /// Says whether memory must not change while it is written. A file system asks when it is mounted.
    pub(crate) fn set_stable_writes(&mut self, on: bool) {
        self.set_feature(ffi::BLK_FEAT_STABLE_WRITES, on);
    }

    /// Says whether seeks are slow.
    pub(crate) fn set_rotational(&mut self, on: bool) {
        self.set_feature(ffi::BLK_FEAT_ROTATIONAL, on);
    }

    fn set_feature(&mut self, feature: bindings::blk_features_t, on: bool) {
        if on {
            self.limits.features |= feature;
        } else {
            self.limits.features &= !feature;
        }
    }

    /// Sets the longest discard in sectors of 512 bytes (0: none), and its granularity in bytes.
    pub(crate) fn set_discard(&mut self, max_sectors: u32, granularity: u32) {
        self.limits.max_hw_discard_sectors = max_sectors;
        self.limits.discard_granularity = if max_sectors == 0 { 0 } else { granularity };
    }

    /// Sets the longest write of zeroes, in sectors of 512 bytes (0: none).
    pub(crate) fn set_write_zeroes(&mut self, max_sectors: u32) {
        self.limits.max_write_zeroes_sectors = max_sectors;
    }

    /// Brings the change into force. The queue should have no requests: it is frozen, or its
    /// requests have nothing to be served from.
    ///
    /// Fails with `EINVAL` when the limits contradict each other; then nothing has changed.
    pub(crate) fn commit(self) -> Result {
        let mut this = ManuallyDrop::new(self);
        let queue = this.queue();
        // SAFETY: The queue is valid. By the type invariant its lock is held, which this releases;
        // `this` is not dropped.
        to_result(unsafe { bindings::queue_limits_commit_update(queue, &mut this.limits) })?;
        // SAFETY: By the type invariant the disk is valid.
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
        // SAFETY: By the type invariant the lock is held; this releases it.
        unsafe { ffi::rnull_loop_limits_cancel_update(self.queue()) };
    }
}
