// SPDX-License-Identifier: GPL-2.0

//! Workqueues that a driver owns.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::ffi;
use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*,
    workqueue::{
        HasDelayedWork,
        HasWork,
        Queue,
        RawWorkItem,
        Work, //
    },
};

/// A workqueue that is destroyed when it is dropped.
///
/// # Invariants
///
/// `self.0` was returned by `alloc_workqueue()`, and is not destroyed yet.
pub(crate) struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Any thread may destroy a workqueue.
unsafe impl Send for OwnedQueue {}
// SAFETY: Any thread may queue work at any time; workqueues have their own locks.
unsafe impl Sync for OwnedQueue {}

/// The CPUs that work may run on.
#[derive(Clone, Copy)]
pub(crate) enum Affinity {
    /// The CPU that queues the work, which saves waking another one; a CPU nearby if that CPU is
    /// isolated.
    PerCpu,
    /// Any CPU.
    Unbound,
}

impl OwnedQueue {
    /// Makes a workqueue named `name`, which is frozen while the system is suspended. May sleep.
    /// Fails with `ENOMEM`.
    ///
    /// It has no rescuer (`WQ_MEM_RECLAIM`), because its work calls file systems. Some of them wait
    /// for workqueues without a rescuer (XFS out of space: `xfs_flush_inodes()`), and the kernel
    /// warns of that (`check_flush_dependency()`).
    pub(crate) fn new(name: &CStr, affinity: Affinity) -> Result<Self> {
        let flags = match affinity {
            // Work may copy much data. It must not delay other work on the CPU for that long.
            Affinity::PerCpu => bindings::wq_flags_WQ_PERCPU | bindings::wq_flags_WQ_CPU_INTENSIVE,
            Affinity::Unbound => bindings::wq_flags_WQ_UNBOUND,
        };
        // SAFETY: The format is a NUL-terminated string with one `%s`, for which `name` is a
        // NUL-terminated string. The call copies the result.
        let ptr = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                flags | bindings::wq_flags_WQ_FREEZABLE,
                0,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: `ptr` was returned by `alloc_workqueue()`.
        Ok(Self(NonNull::new(ptr).ok_or(ENOMEM)?))
    }

    /// Queues `work`, unless it is queued already: `queue_work_on()`. Any context, including hard
    /// IRQ.
    pub(crate) fn enqueue<W>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<0> + Send + 'static,
    {
        let queue = self.0.as_ptr();
        // SAFETY: `__enqueue` requires that the closure returns false only if the work is in a
        // workqueue already: so does `queue_work_on()`. `W` is `'static` and `Send`, so the work
        // may run at any time on any thread. For `queue_work_on()`, the queue is valid by the type
        // invariant, the CPU is one that exists, and `__enqueue` guarantees that `work` is valid
        // for as long as the workqueue uses it.
        unsafe {
            work.__enqueue(|work| {
                bindings::queue_work_on(ffi::rnull_loop_housekeeping_cpu(), queue, work)
            })
        }
    }
}

/// Returns the kernel's workqueue for work on any CPU: `system_dfl_wq`.
pub(crate) fn system_unbound() -> &'static Queue {
    // SAFETY: The kernel has made the workqueue at boot, and never destroys it.
    unsafe { Queue::from_raw(bindings::system_dfl_wq) }
}

/// Waits until a work item is neither queued nor running, unless it is queued again meanwhile:
/// `flush_work()`. May sleep.
pub(crate) fn flush<T: HasWork<T, ID>, const ID: u64>(item: &T) {
    // SAFETY: `item` is valid, so this computes the address of its work item, which is valid, too.
    let work = unsafe { Work::raw_get(T::raw_get_work(core::ptr::from_ref(item).cast_mut())) };
    // SAFETY: `work` is valid and initialized, and `item` keeps it.
    unsafe { bindings::flush_work(work) };
}

/// Runs a delayed work item now if its time has not come, and waits until it is over:
/// `flush_delayed_work()`. May sleep.
pub(crate) fn flush_delayed<T: HasDelayedWork<T, ID>, const ID: u64>(item: &T) {
    // SAFETY: `item` is valid, so this computes the address of its work item, which is valid, too.
    let work = unsafe { Work::raw_get(T::raw_get_work(core::ptr::from_ref(item).cast_mut())) };
    // SAFETY: By the requirements of `HasDelayedWork` this is the field `work`, the first one, of a
    // `struct delayed_work`, which is valid and initialized, and which `item` keeps.
    unsafe { bindings::flush_delayed_work(work.cast()) };
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // The call waits for the work of the queue. It would deadlock if that work dropped `self`.
        // SAFETY: By the type invariant the queue is not destroyed yet. `self` ends here, so no
        // more work is queued.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
