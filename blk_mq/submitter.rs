// SPDX-License-Identifier: GPL-2.0

//! The task that hands requests over, and what a driver may do in its context.
//!
//! A driver that stands on other block devices can submit to them at once, in the context of
//! whoever submitted to it, and spare itself a worker. That task may be anywhere, though:
//!
//! - **It may be submitting already** (`current->bio_list`). Then the bios of a driver are kept until
//!   that submission returns; and it may not return before the driver's requests are done, if what it
//!   waits for is a tag of theirs. (Who waits for a tag hands over what others have left behind.) So
//!   the list is put out of sight, and the driver's bios go on at once.
//! - **It may hold requests back** (`current->plug`). The block layer walks that list while it
//!   hands requests over, so nothing may be added to it; it is put out of sight as well, and then
//!   not handed over when the task sleeps. If there are requests for other queues in it, or some in
//!   store that hold another queue open, what the driver waits for might wait for those: that is
//!   refused. So is a plug with callbacks (`plug->cb_list`), as of md: the stripes that they
//!   release are out of sight too.
//! - **It may hold a request that is on no list.** `blk_add_rq_to_plug()` flushes a full plug
//!   before it adds the new request, which has a tag and a reference to the usage counter of its
//!   queue. If that queue is being frozen and the driver waits for it, both wait for ever. So no
//!   file system is entered while the task has a plug: their bios wait for frozen queues even with
//!   `IOCB_NOWAIT`. `blk_mq_submit_bio()` is in that place with `bio_list` set, and nothing is
//!   submitted there; `blk_execute_rq_nowait()` is without one, where bios with `REQ_NOWAIT` are
//!   submitted, as these fail instead of waiting.
//! - **It may be in a file system or in memory reclaim**, whose state in the task
//!   (`journal_info`, the scopes of allocations) another file system would take for its own.
//! - **It may have used up its stack**, not least by devices that stand on each other.
//!
//! [`Submitter`] answers for all of these. What is submitted must not wait for tags or for a frozen
//! queue (`REQ_NOWAIT`) unless all that is out of sight belongs to the driver's own queue; the throttling
//! of the device below may make it wait even so.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h) (`struct blk_plug`),
//! [`block/blk-core.c`](srctree/block/blk-core.c)

use crate::kern::ffi;
use core::{
    cell::Cell,
    marker::PhantomPinned, //
};
use kernel::{
    bindings,
    prelude::*,
    task::Task,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// How much stack must be left, in bytes, to call a file system and the drivers below it: half of
/// what x86-64 has, and several times what reading a block of ext4 or XFS takes.
const STACK: usize = 8 << 10;

/// The current task, which hands requests over to a driver.
///
/// # Invariants
///
/// - This is made and dropped in one call of `->queue_rq` or `->queue_rqs`, by `task`, the current one.
/// - While `saved` is `Some`, it is what the task had before, and with `batch`, `plug` is the
///   task's plug.
pub(crate) struct Submitter {
    task: *mut bindings::task_struct,
    /// The queue that the requests are on.
    queue: *mut bindings::request_queue,
    /// Whether several requests are handed over.
    batch: bool,
    saved: Cell<Option<Saved>>,
    plug: Opaque<bindings::blk_plug>,
    _pinned: PhantomPinned,
    _not_send: NotThreadSafe,
}

/// What a task had before it was isolated.
#[derive(Clone, Copy)]
struct Saved {
    bio_list: *mut bindings::bio_list,
    plug: *mut bindings::blk_plug,
    noio: u32,
    #[cfg(CONFIG_TASK_IO_ACCOUNTING)]
    io: (u64, u64),
}

impl Submitter {
    /// The current task, which hands over one request of `queue` or a `batch`.
    ///
    /// # Safety
    ///
    /// To be called by `->queue_rq` or `->queue_rqs`, and dropped before that returns.
    pub(super) unsafe fn current(queue: *mut bindings::request_queue, batch: bool) -> Self {
        // INVARIANT: By the function's requirements; nothing is isolated.
        Self {
            task: Task::current_raw(),
            queue,
            batch,
            saved: Cell::new(None),
            plug: Opaque::uninit(),
            _pinned: PhantomPinned,
            _not_send: NotThreadSafe,
        }
    }

    /// The lists of the task, as they were before [`isolate`](Self::save_io_context).
    fn lists(&self) -> (*mut bindings::bio_list, *mut bindings::blk_plug) {
        match self.saved.get() {
            Some(saved) => (saved.bio_list, saved.plug),
            None => {
                let task = self.task;
                // SAFETY: The current task is valid, and these fields are its own alone.
                unsafe { ((*task).bio_list, (*task).plug) }
            }
        }
    }

    /// Whether a submission is under way that has more bios to submit: of the same level, as those
    /// that a driver of bios leaves for later are sorted behind ours.
    fn has_pending_bios(&self) -> bool {
        // SAFETY: The list of the current task lies on its stack, and is valid while it is set.
        unsafe { self.lists().0.as_ref() }.is_some_and(|list| !list.head.is_null())
    }

    /// Returns whether the task's plug may hold what this submission would wait for: requests for
    /// other queues than this one, held back or in store, callbacks, or the request that is about
    /// to be added.
    fn plug_has_other_queues(&self) -> bool {
        let (bio_list, plug) = self.lists();
        // SAFETY: The plug of the current task is valid while it is set.
        let Some(plug) = (unsafe { plug.as_ref() }) else {
            return false;
        };
        plug.multiple_queues
            || !bio_list.is_null()
            || !core::ptr::eq(plug.cb_list.next, &plug.cb_list)
            || [plug.mq_list.head, plug.cached_rqs.head]
                .into_iter()
                // SAFETY: Requests held back or in store are valid, and have a queue.
                .filter_map(|rq| unsafe { rq.as_ref() })
                // Those of a list are for the same queue, but for `multiple_queues`.
                .any(|rq| rq.q != self.queue)
    }

    /// Whether I/O to another block device may be submitted in this context, once it is
    /// [saved](Self::save_io_context). Workers of the block layer are not to wait, not even for throttling.
    pub(crate) fn may_submit(&self) -> bool {
        // SAFETY: The current task is valid, and these fields are its own alone.
        let (flags, stack) = unsafe { ((*self.task).flags, (*self.task).stack.addr()) };
        let here = core::ptr::from_ref(&flags).addr();
        flags & bindings::PF_WQ_WORKER == 0
            && here.wrapping_sub(stack) >= STACK
            && !self.has_pending_bios()
            && !self.plug_has_other_queues()
    }

    /// Returns whether file systems may be called in this context, once it is
    /// [saved](Self::save_io_context): by a task of user space that has no plug, is in no file system,
    /// not in reclaim, and not isolated by another device, which stands on this one.
    pub(crate) fn may_enter_file_system(&self) -> bool {
        // SAFETY: The current task is valid, and these fields are its own alone.
        let (flags, journal) = unsafe { ((*self.task).flags, (*self.task).journal_info) };
        let busy = bindings::PF_KTHREAD
            | bindings::PF_MEMALLOC
            | bindings::PF_MEMALLOC_NOFS
            | bindings::PF_MEMALLOC_NOIO
            | bindings::PF_EXITING;
        // What isolation itself set does not count.
        let flags = match self.saved.get() {
            Some(saved) => (flags & !bindings::PF_MEMALLOC_NOIO) | saved.noio,
            None => flags,
        };
        flags & busy == 0 && journal.is_null() && self.lists().1.is_null() && self.may_submit()
    }

    /// Makes it safe to submit I/O: until the requests are handed over, the lists
    /// of the task are out of sight, its allocations start no I/O, and what it reads and writes is
    /// not counted as its own, as that was counted when it submitted to this device.
    ///
    /// What a batch submits goes on together.
    pub(crate) fn save_io_context(self: Pin<&Self>) {
        if self.saved.get().is_some() {
            return;
        }
        let task = self.task;
        // SAFETY: A task that notes that its plug keeps a time (`PF_BLOCK_TS`) has a plug. When the task is
        // preempted, the scheduler makes that plug forget it: so not with the plug out of sight.
        unsafe { ffi::rnull_loop_plug_invalidate_ts() };
        // SAFETY: The current task is valid, and these fields are its own alone.
        // INVARIANT: They are kept, and given back by `drop`, on the same task.
        unsafe {
            self.saved.set(Some(Saved {
                bio_list: core::mem::replace(&mut (*task).bio_list, core::ptr::null_mut()),
                plug: core::mem::replace(&mut (*task).plug, core::ptr::null_mut()),
                noio: (*task).flags & bindings::PF_MEMALLOC_NOIO,
                #[cfg(CONFIG_TASK_IO_ACCOUNTING)]
                io: ((*task).ioac.read_bytes, (*task).ioac.write_bytes),
            }));
            (*task).flags |= bindings::PF_MEMALLOC_NOIO;
        }
        // SAFETY: By the type invariant this is in a call of `->queue_rq` for this queue, whose tag set may
        // block, so the block layer holds its SRCU lock; `drop` shows that again before the call returns.
        unsafe { ffi::rnull_loop_queue_hide_srcu(self.queue) };
        if self.batch {
            // SAFETY: `self` is pinned, and `drop` finishes the plug before it goes.
            unsafe { bindings::blk_start_plug(self.plug.get()) };
        }
    }
}

impl Drop for Submitter {
    fn drop(&mut self) {
        let Some(saved) = self.saved.get() else {
            return;
        };
        if self.batch {
            // SAFETY: By the type invariant it is the plug of this task.
            unsafe { bindings::blk_finish_plug(self.plug.get()) };
        }
        // SAFETY: `save_io_context` hid it.
        unsafe { ffi::rnull_loop_queue_show_srcu(self.queue) };
        let task = self.task;
        // SAFETY: The current task is valid, and these fields are its own alone; by the type
        // invariant it is the task that was isolated.
        unsafe {
            (*task).bio_list = saved.bio_list;
            (*task).plug = saved.plug;
            (*task).flags = ((*task).flags & !bindings::PF_MEMALLOC_NOIO) | saved.noio;
        }
        #[cfg(CONFIG_TASK_IO_ACCOUNTING)]
        // SAFETY: As above.
        unsafe {
            ((*task).ioac.read_bytes, (*task).ioac.write_bytes) = saved.io;
        }
    }
}
