// SPDX-License-Identifier: GPL-2.0

//! The task that dispatches requests to a driver, and the I/O that the driver may do in its
//! context.
//!
//! A driver of stacked disks can submit to the lower device in the context of the submitter, which
//! saves a worker. But the submitter may be any task, in any of these states:
//!
//! - **It may be submitting a bio** (`current->bio_list`). The block layer keeps bios that the
//!   driver submits on that list until the task's submission returns. That submission may wait for
//!   the tag of a request that the driver needs the bios for: deadlock. (A task that waits for a
//!   tag dispatches requests of other tasks.) So the list is hidden, and the driver's bios are
//!   submitted at once.
//! - **It may hold requests in a plug** (`current->plug`). The block layer walks the plug while it
//!   dispatches the requests, so nothing may be added to it, and it is hidden as well. A hidden
//!   plug is not flushed when the task sleeps. If it has requests for other queues, plugged or
//!   cached (these hold a reference to the usage counter of their queue), the driver may wait for
//!   them: deadlock. So submission is refused. It is also refused if the plug has callbacks
//!   (`plug->cb_list`), as of md, because the stripes that they release are hidden, too.
//! - **It may hold a request that is on no list.** `blk_add_rq_to_plug()` flushes a full plug
//!   before it adds the new request, which has a tag and a reference to the usage counter of its
//!   queue. If that queue is being frozen and the driver waits until it thaws, each waits for the
//!   other: deadlock. Bios of a file system wait for frozen queues even with `IOCB_NOWAIT`, so no
//!   file system is called while the task has a plug. If the caller of `blk_add_rq_to_plug()` is
//!   `blk_mq_submit_bio()`, the task has a `bio_list`, and submission is refused. If it is
//!   `blk_execute_rq_nowait()`, the task has none; bios with `REQ_NOWAIT` are submitted, because
//!   they fail instead of blocking.
//! - **It may be in a file system or in memory reclaim.** Another file system would take the state
//!   of those in the task (`journal_info`, the scopes of allocations) for its own.
//! - **It may have little stack left**, not least because of stacked devices.
//!
//! [`Submitter`] checks all of these. The driver's bios must have `REQ_NOWAIT`, so that they wait
//! neither for tags nor for a frozen queue, which may need the hidden requests. The lower device
//! may still throttle them; then the submitter sleeps.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h),
//! [`include/linux/blk_plug.h`](srctree/include/linux/blk_plug.h) (`struct blk_plug`),
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

/// The stack that must be left, in bytes, to call a file system and the drivers below it: half of
/// the stack of x86-64, and several times what a read of a block of ext4 or XFS needs.
const STACK: usize = 8 << 10;

/// The current task, which dispatches requests to a driver.
///
/// # Invariants
///
/// - This is made and dropped in one call of `->queue_rq` or `->queue_rqs` for `queue`, by `task`,
///   the current one.
/// - While `saved` is `Some`, it is the I/O context that the task had before, and with `batch`,
///   `plug` is the task's plug.
pub(crate) struct Submitter {
    task: *mut bindings::task_struct,
    /// The queue that the requests are on.
    queue: *mut bindings::request_queue,
    /// True in `->queue_rqs`, whose list may have one request.
    batch: bool,
    saved: Cell<Option<Saved>>,
    plug: Opaque<bindings::blk_plug>,
    _pinned: PhantomPinned,
    _not_send: NotThreadSafe,
}

/// The I/O context that a task had before [`Submitter::save_io_context`].
#[derive(Clone, Copy)]
struct Saved {
    bio_list: *mut bindings::bio_list,
    plug: *mut bindings::blk_plug,
    /// `PF_MEMALLOC_NOIO`, if it was set.
    noio: u32,
    #[cfg(CONFIG_TASK_IO_ACCOUNTING)]
    read_bytes: u64,
    #[cfg(CONFIG_TASK_IO_ACCOUNTING)]
    write_bytes: u64,
}

impl Submitter {
    /// Returns the current task, which dispatches one request of `queue`, or a `batch` of them.
    ///
    /// # Safety
    ///
    /// Called by `->queue_rq` or `->queue_rqs` for `queue`; the result is dropped before that
    /// returns.
    pub(super) unsafe fn current(queue: *mut bindings::request_queue, batch: bool) -> Self {
        // INVARIANT: By the function's requirements; `saved` is `None`.
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

    /// Returns the flags of the task.
    fn flags(&self) -> c_uint {
        // SAFETY: By the type invariant this is the current task, which is valid. It alone changes
        // its flags.
        unsafe { (*self.task).flags }
    }

    /// Returns the bio list of the task, as it was before
    /// [`save_io_context`](Self::save_io_context).
    fn bio_list(&self) -> *mut bindings::bio_list {
        match self.saved.get() {
            Some(saved) => saved.bio_list,
            // SAFETY: By the type invariant this is the current task, which is valid. It alone uses
            // its list.
            None => unsafe { (*self.task).bio_list },
        }
    }

    /// Returns the plug of the task, as it was before [`save_io_context`](Self::save_io_context).
    fn plug(&self) -> *mut bindings::blk_plug {
        match self.saved.get() {
            Some(saved) => saved.plug,
            // SAFETY: By the type invariant this is the current task, which is valid. It alone uses
            // its plug.
            None => unsafe { (*self.task).plug },
        }
    }

    /// Returns whether the submission that the task is in has more bios to submit: the rest of a
    /// bio that was split. The rest is on the first of two lists. Bios that a bio-based driver has
    /// left for later are on the second list, and are submitted after those of the driver.
    fn has_pending_bios(&self) -> bool {
        // SAFETY: The list of the current task is on its stack, and valid while the field is set.
        unsafe { self.bio_list().as_ref() }.is_some_and(|list| !list.head.is_null())
    }

    /// Returns whether the task's plug hides anything that this submission could wait for: requests
    /// for other queues than this one, plugged or cached, callbacks, or (with a bio list) the
    /// request that is about to be added to the plug.
    fn plug_has_other_queues(&self) -> bool {
        // SAFETY: The plug of the current task is valid while the field is set.
        let Some(plug) = (unsafe { self.plug().as_ref() }) else {
            return false;
        };
        plug.multiple_queues
            || !self.bio_list().is_null()
            || !core::ptr::eq(plug.cb_list.next, &plug.cb_list)
            || [plug.mq_list.head, plug.cached_rqs.head]
                .into_iter()
                // SAFETY: The requests of a plug are valid, plugged or cached.
                .filter_map(|rq| unsafe { rq.as_ref() })
                // Without `multiple_queues`, all requests of a list are for the same queue.
                .any(|rq| rq.q != self.queue)
    }

    /// Returns whether bios for a lower device may be submitted in this context, once it is
    /// [saved](Self::save_io_context). Workers of workqueues, such as those of the block layer, are
    /// refused, because they must not sleep when the lower device throttles.
    pub(crate) fn may_submit(&self) -> bool {
        self.flags() & bindings::PF_WQ_WORKER == 0
            && self.has_stack()
            && !self.has_pending_bios()
            && !self.plug_has_other_queues()
    }

    /// Returns whether a flush for a lower device may be submitted in this context, as
    /// [`may_submit`](Self::may_submit) does for other bios. Workers may submit it: it has no
    /// cgroup, and is not throttled.
    pub(crate) fn may_flush(&self) -> bool {
        self.has_stack() && !self.has_pending_bios() && !self.plug_has_other_queues()
    }

    /// Returns whether enough stack is left to call drivers, or to copy from the page cache.
    pub(crate) fn has_stack(&self) -> bool {
        let here = 0_u8;
        // SAFETY: By the type invariant this is the current task, which is valid. Its stack stays.
        let stack = unsafe { (*self.task).stack }.addr();
        core::ptr::from_ref(&here).addr().wrapping_sub(stack) >= STACK
    }

    /// Saves the I/O context of the task, and makes it safe to submit I/O until this is dropped.
    ///
    /// The bio list and the plug of the task are hidden, and its allocations start no I/O. Its I/O
    /// is not counted (`task_io_accounting`), because it was counted when it was submitted to this
    /// device. I/O of a batch is collected in a plug of its own.
    pub(crate) fn save_io_context(self: Pin<&Self>) {
        if self.saved.get().is_some() {
            return;
        }
        let task = self.task;
        // SAFETY: A task with `PF_BLOCK_TS` has a plug. The call clears the flag, by which the
        // scheduler would access the plug while it is hidden.
        unsafe { ffi::rnull_loop_plug_invalidate_ts() };
        // INVARIANT: The task has this context, which `drop` restores.
        self.saved.set(Some(Saved {
            bio_list: self.bio_list(),
            plug: self.plug(),
            noio: self.flags() & bindings::PF_MEMALLOC_NOIO,
            #[cfg(CONFIG_TASK_IO_ACCOUNTING)]
            // SAFETY: By the type invariant this is the current task, which is valid. It alone
            // changes its counters.
            read_bytes: unsafe { (*task).ioac.read_bytes },
            #[cfg(CONFIG_TASK_IO_ACCOUNTING)]
            // SAFETY: As above.
            write_bytes: unsafe { (*task).ioac.write_bytes },
        }));
        // SAFETY: By the type invariant this is the current task, which is valid. It alone uses its
        // list, and the block layer accepts a task without one.
        unsafe { (*task).bio_list = core::ptr::null_mut() };
        // SAFETY: As above, for the plug.
        unsafe { (*task).plug = core::ptr::null_mut() };
        // SAFETY: As above, for the flags.
        unsafe { (*task).flags |= bindings::PF_MEMALLOC_NOIO };
        // SAFETY: By the type invariant this is in a call of `->queue_rq` or `->queue_rqs` for the
        // queue, whose tag set has `BLK_MQ_F_BLOCKING`. So the caller holds the tag set's SRCU read
        // lock, which `drop` shows again before the call returns.
        unsafe { ffi::rnull_loop_queue_hide_srcu(self.queue) };
        if self.batch {
            // SAFETY: `self` is pinned, and `drop` finishes the plug.
            // INVARIANT: The task has no plug, so `plug` becomes its plug.
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
            // SAFETY: By the type invariant `plug` is the plug of the current task.
            unsafe { bindings::blk_finish_plug(self.plug.get()) };
        }
        // SAFETY: `save_io_context` has hidden the SRCU read lock, which the caller of `->queue_rq`
        // or `->queue_rqs` holds.
        unsafe { ffi::rnull_loop_queue_show_srcu(self.queue) };
        let task = self.task;
        // SAFETY: By the type invariant this is the current task, which is valid. It alone uses its
        // list, and `saved` has the list that it had, which is on the stack of a caller.
        unsafe { (*task).bio_list = saved.bio_list };
        // SAFETY: As above, for the plug.
        unsafe { (*task).plug = saved.plug };
        let flags = (self.flags() & !bindings::PF_MEMALLOC_NOIO) | saved.noio;
        // SAFETY: As above, for the flags.
        unsafe { (*task).flags = flags };
        #[cfg(CONFIG_TASK_IO_ACCOUNTING)]
        // SAFETY: As above, for a counter.
        unsafe {
            (*task).ioac.read_bytes = saved.read_bytes;
        }
        #[cfg(CONFIG_TASK_IO_ACCOUNTING)]
        // SAFETY: As above.
        unsafe {
            (*task).ioac.write_bytes = saved.write_bytes;
        }
    }
}
