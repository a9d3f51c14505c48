// SPDX-License-Identifier: GPL-2.0

//! An owned workqueue.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::ffi;
use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*,
    workqueue::RawWorkItem, //
};

/// A workqueue of our own.
///
/// # Invariants
///
/// `self.0` was returned by `alloc_workqueue()` and is not destroyed yet.
pub(crate) struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Any thread may queue work on it and destroy it.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above.
unsafe impl Sync for OwnedQueue {}

/// Where work runs.
#[derive(Clone, Copy)]
pub(crate) enum Affinity {
    /// On the CPU that it is queued on, which saves waking another one; or nearby if that is
    /// isolated.
    PerCpu,
    /// On any CPU.
    Unbound,
}

impl OwnedQueue {
    /// Makes a workqueue named `name` whose work rests while the system sleeps. May sleep.
    ///
    /// It has no rescuer (`WQ_MEM_RECLAIM`): its work calls file systems, and some of them wait for
    /// workqueues without one (XFS out of space: `xfs_flush_inodes()`), which the kernel warns of.
    pub(crate) fn new(name: &CStr, place: Affinity) -> Result<Self> {
        let place = match place {
            // It may have much to copy, for which other work on the CPU should not have to wait.
            Affinity::PerCpu => bindings::wq_flags_WQ_PERCPU | bindings::wq_flags_WQ_CPU_INTENSIVE,
            Affinity::Unbound => bindings::wq_flags_WQ_UNBOUND,
        };
        // SAFETY: The format string is NUL-terminated and agrees with its one argument.
        let ptr = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                place | bindings::wq_flags_WQ_FREEZABLE,
                0,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: `ptr` comes from `alloc_workqueue()`.
        Ok(Self(NonNull::new(ptr).ok_or(ENOMEM)?))
    }

    /// Queues `work`, unless it is queued already: `queue_work_on()`. Any context.
    pub(crate) fn enqueue<W>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<0> + Send + 'static,
    {
        let queue = self.0.as_ptr();
        // SAFETY: The closure returns false only if the work is in a workqueue already. By the type
        // invariant the queue is valid, and `__enqueue` promises that `work` is, for as long as
        // `queue_work_on()` and the workqueue use it.
        unsafe {
            work.__enqueue(|work| {
                bindings::queue_work_on(ffi::rnull_loop_housekeeping_cpu(), queue, work)
            })
        }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the queue is not destroyed yet, and `self` ends here.
        // Waits for the work on it, so it must not be that work that drops this.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
