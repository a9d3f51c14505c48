// SPDX-License-Identifier: GPL-2.0

//! Queue limits, frozen queues, and what may change only while a queue is frozen.
//!
//! Lock order: limits ([`GenDisk::update_limits`]), then [`IoCell`]'s writer, which
//! [`GenDisk::publish`] takes alone, then frozen ([`GenDisk::freeze`]). While a
//! queue is frozen nothing may enter a file system, send a uevent or wait for I/O of that queue;
//! allocations do no I/O (`memalloc_noio_save()` is in force).
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    disk::{
        DiskOperations,
        GenDisk, //
    },
    Request, //
};
use crate::kern::ffi;
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic, //
        },
        Mutex,
        MutexGuard, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// A value that requests read without a lock and that changes only while there are no requests.
///
/// # Invariants
///
/// - `value` is written by the holder of `writer` alone, and only while the queue is frozen, or while
///   `present` is false and the queue was seen without requests since it is. `writer` is held from
///   where `present` becomes false until then.
/// - While `present` is true, `value` is `Some`.
#[pin_data]
pub(super) struct IoCell<V> {
    present: Atomic<bool>,
    value: UnsafeCell<Option<V>>,
    #[pin]
    writer: Mutex<()>,
}

// SAFETY: Readers get `&V` on any CPU, writers move `V` between CPUs; the type's invariants keep
// them apart.
unsafe impl<V: Send + Sync> Sync for IoCell<V> {}

impl<V> IoCell<V> {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            present: Atomic::new(false),
            value: UnsafeCell::new(None),
            writer <- new_mutex!((), "IoCell::writer"),
        })
    }

    /// # Safety
    ///
    /// For as long as the reference lives there must be a request on the queue of this cell, with a tag
    /// that it had before this call, and a full barrier between: the tag set's SRCU read lock, or the
    /// handing over of the request to another task.
    pub(super) unsafe fn get(&self) -> Option<&V> {
        // ORDERING: Pairs with the release store that follows the write of `value`.
        if !self.present.load(Acquire) {
            return None;
        }
        // SAFETY: `present` is true. By the type invariant nobody writes before the queue is frozen or
        // seen without tags, for which the request would have to be gone.
        unsafe { &*self.value.get() }.as_ref()
    }
}

impl<T: DiskOperations> GenDisk<T> {
    /// Gives requests something to be served from, where they had nothing.
    ///
    /// Needs no frozen queue, as no request can be looking at it. May sleep. Hands `io` back when
    /// there is something already.
    pub(crate) fn publish(&self, io: T::Io) -> Result<(), T::Io> {
        let cell = &self.context().io;
        let _writer = cell.writer.lock();
        if cell.present.load(Relaxed) {
            return Err(io);
        }
        // SAFETY: `writer` is held. `present` is false, so by the type invariant no request has a
        // reference to `value`.
        // INVARIANT: `value` is `Some` before `present` is true.
        unsafe { *cell.value.get() = Some(io) };
        cell.present.store(true, Release);
        Ok(())
    }

    /// Leaves requests nothing to be served from, and returns what they had. May sleep.
    ///
    /// For a queue that nobody uses: there are no requests then, which can be seen without the
    /// expense of freezing the queue; if there are some after all, it is frozen.
    pub(crate) fn retract(&self) -> Option<T::Io> {
        let cell = &self.context().io;
        let writer = cell.writer.lock();
        cell.present.store(false, Relaxed);
        // SAFETY: The queue of a `GenDisk` is valid.
        if unsafe { ffi::rnull_loop_queue_has_requests(self.queue()) } {
            return self.freeze_as(writer).take_io();
        }
        // SAFETY: `writer` is held. There was no request, so nobody has a reference to `value`, and
        // those that came since see that `present` is false.
        unsafe { &mut *cell.value.get() }.take()
    }

    /// Waits until no request is left and keeps new ones out until the guard is dropped:
    /// `blk_mq_freeze_queue()`. May sleep.
    pub(crate) fn freeze(&self) -> FrozenQueue<'_, T> {
        self.freeze_as(self.context().io.writer.lock())
    }

    fn freeze_as<'a>(&'a self, writer: MutexGuard<'a, ()>) -> FrozenQueue<'a, T> {
        // SAFETY: The queue of a `GenDisk` is valid.
        let memflags = unsafe { ffi::rnull_loop_freeze_queue(self.queue()) };
        // INVARIANT: It is frozen now.
        FrozenQueue {
            disk: self,
            memflags,
            _writer: writer,
        }
    }

    /// Begins a change of the queue's limits. May sleep.
    pub(crate) fn update_limits(&self) -> LimitsUpdate<'_, T> {
        // SAFETY: The queue of a `GenDisk` is valid.
        let limits = unsafe { ffi::rnull_loop_limits_start_update(self.queue()) };
        // INVARIANT: The call above took the lock.
        LimitsUpdate {
            disk: self,
            limits,
            _not_send: NotThreadSafe,
        }
    }
}

/// A queue without requests, and without new ones until this is dropped.
///
/// # Invariants
///
/// The queue is frozen by this thread, which holds the cell's `writer`.
pub(crate) struct FrozenQueue<'a, T: DiskOperations> {
    disk: &'a GenDisk<T>,
    memflags: c_uint,
    _writer: MutexGuard<'a, ()>,
}

impl<T: DiskOperations> FrozenQueue<'_, T> {
    /// What requests are served from.
    pub(crate) fn io(&mut self) -> Option<&mut T::Io> {
        // SAFETY: By the type invariant there are no requests, hence no readers, and this thread is
        // the one writer.
        unsafe { &mut *self.disk.context().io.value.get() }.as_mut()
    }

    /// Gives requests something else to be served from, and returns what they had.
    pub(crate) fn replace_io(&mut self, io: T::Io) -> Option<T::Io> {
        let cell = &self.disk.context().io;
        // SAFETY: As in `io`.
        let old = unsafe { &mut *cell.value.get() }.replace(io);
        // INVARIANT: `value` is `Some`.
        cell.present.store(true, Release);
        old
    }

    /// Leaves requests nothing to be served from.
    fn take_io(&mut self) -> Option<T::Io> {
        let cell = &self.disk.context().io;
        cell.present.store(false, Relaxed);
        // SAFETY: As in `io`.
        // INVARIANT: `present` is false already.
        unsafe { &mut *cell.value.get() }.take()
    }
}

impl<T: DiskOperations> Drop for FrozenQueue<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this undoes what `freeze` did, on the same thread.
        unsafe { ffi::rnull_loop_unfreeze_queue(self.disk.queue(), self.memflags) };
    }
}

/// A change of the limits of a queue that is not in force yet. Dropping it forgets the change.
///
/// # Invariants
///
/// This thread holds the queue's `limits_lock`.
#[must_use = "a change of limits comes into force by `commit`"]
pub(crate) struct LimitsUpdate<'a, T: DiskOperations> {
    disk: &'a GenDisk<T>,
    limits: bindings::queue_limits,
    _not_send: NotThreadSafe,
}

impl<T: DiskOperations> LimitsUpdate<'_, T> {
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
        let queue = this.disk.queue();
        // SAFETY: The queue is valid and by the type invariant its lock is held, which this
        // releases; `this` is not dropped.
        to_result(unsafe { bindings::queue_limits_commit_update(queue, &mut this.limits) })?;
        // SAFETY: The disk of a `GenDisk` is valid.
        unsafe { ffi::rnull_loop_inherit_stable_writes(this.disk.raw()) };
        Ok(())
    }
}

impl<T: DiskOperations> Drop for LimitsUpdate<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held; this releases it.
        unsafe { ffi::rnull_loop_limits_cancel_update(self.disk.queue()) };
    }
}

impl<T: DiskOperations> Request<T> {
    /// Says that discards do not work after all: at once by `blk_queue_disable_discard()`, which
    /// is made for the request path and needs neither lock nor freeze, but is undone by the next
    /// change of limits; for good by [`DiskOperations::revise_limits`]. Any context.
    pub(crate) fn disable_discard(&self) {
        // SAFETY: The queue of a request is valid.
        unsafe { ffi::rnull_loop_disable_discard(self.queue()) };
        self.context().revision.begin();
    }

    /// Has [`DiskOperations::revise_limits`] called by a worker. Any context.
    pub(crate) fn revise_limits(&self) {
        self.context().revision.begin();
    }

    /// As [`disable_discard`](Self::disable_discard), for writes of zeroes. To be called before
    /// the failed request ends, so that its submitter sees why.
    pub(crate) fn disable_write_zeroes(&self) {
        // SAFETY: The queue of a request is valid.
        unsafe { ffi::rnull_loop_disable_write_zeroes(self.queue()) };
        self.context().revision.begin();
    }
}

/// Has [`DiskOperations::revise_limits`] called by a worker, as a request cannot wait until its
/// queue is frozen.
///
/// # Invariants
///
/// `work` is initialized, and runs only while `disk` satisfies the invariants of [`GenDisk`].
#[pin_data]
pub(super) struct Revision<T> {
    #[pin]
    work: Opaque<bindings::work_struct>,
    disk: Atomic<*mut bindings::gendisk>,
    _driver: PhantomData<fn(T)>,
}

// SAFETY: Work may be queued and cancelled by any thread.
unsafe impl<T> Send for Revision<T> {}
// SAFETY: As above.
unsafe impl<T> Sync for Revision<T> {}

impl<T: DiskOperations> Revision<T> {
    pub(super) fn new() -> impl PinInit<Self> {
        // INVARIANT: There is no disk, and no request that could begin this.
        pin_init!(Self {
            work <- Opaque::ffi_init(|slot: *mut bindings::work_struct| {
                // SAFETY: `slot` is valid for writes and pinned, the name and the lock class are
                // static, and `run` expects the work of a `Revision<T>`.
                unsafe {
                    bindings::init_work_with_key(
                        slot,
                        Some(Self::run),
                        false,
                        c"Revision::work".as_char_ptr(),
                        kernel::static_lock_class!().as_ptr(),
                    )
                };
            }),
            disk: Atomic::new(core::ptr::null_mut()),
            _driver: PhantomData,
        })
    }

    /// # Safety
    ///
    /// Called by the workqueue alone, for the work of a `Revision<T>`.
    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        // SAFETY: By the function's requirements; the work does not outlive what it is in.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(work), Self, work) };
        // SAFETY: By the type invariant the disk is valid while the work runs; a request began it,
        // so the disk was set before.
        T::revise_limits(unsafe { GenDisk::from_raw(this.disk.load(Acquire)) });
    }
}

impl<T> Revision<T> {
    /// # Safety
    ///
    /// No request has been made on `disk` yet. It must satisfy the invariants of [`GenDisk`] until
    /// [`cancel`](Self::cancel) is called, when none can be made any more.
    pub(super) unsafe fn set_disk(&self, disk: NonNull<bindings::gendisk>) {
        // INVARIANT: By the function's requirements.
        self.disk.store(disk.as_ptr(), Release);
    }

    /// Any context.
    fn begin(&self) {
        // SAFETY: By the type invariant the work is initialized; the queue is one of the kernel's.
        // Work that waits already will do.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_dfl_wq,
                self.work.get(),
            )
        };
    }

    /// Sees to it that the worker neither runs nor will. May sleep.
    pub(super) fn cancel(&self) {
        // SAFETY: By the type invariant the work is initialized.
        unsafe { bindings::cancel_work_sync(self.work.get()) };
    }
}
