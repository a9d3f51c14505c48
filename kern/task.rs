// SPDX-License-Identifier: GPL-2.0

//! What the current task may set for itself.
//!
//! C headers: [`include/linux/sched.h`](srctree/include/linux/sched.h),
//! [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::ffi;
use kernel::{
    bindings,
    prelude::*,
    task::Task,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// While this lives, the current task serves I/O that memory reclaim may wait for: its allocations
/// start no I/O, and its writes are throttled by the device written to alone.
///
/// # Invariants
///
/// `old` are the flags of the current task before; the value stays on its task.
#[must_use = "the scope ends when this is dropped"]
pub(crate) struct IoWorkerScope {
    old: u32,
    _not_send: NotThreadSafe,
}

impl IoWorkerScope {
    const FLAGS: u32 = bindings::PF_LOCAL_THROTTLE | bindings::PF_MEMALLOC_NOIO;

    /// Sets `PF_LOCAL_THROTTLE` and `PF_MEMALLOC_NOIO`.
    pub(crate) fn enter() -> Self {
        let task = Task::current_raw();
        // SAFETY: The current task is valid, and its flags are changed by itself alone.
        let old = unsafe { (*task).flags };
        // SAFETY: As above.
        unsafe { (*task).flags = old | Self::FLAGS };
        // INVARIANT: Read above, on this task.
        Self {
            old,
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for IoWorkerScope {
    fn drop(&mut self) {
        let task = Task::current_raw();
        // SAFETY: The current task is valid, and its flags are changed by itself alone; by the type
        // invariant it is the task that entered. Flags that others set meanwhile are kept.
        unsafe { (*task).flags = ((*task).flags & !Self::FLAGS) | (self.old & Self::FLAGS) };
    }
}

/// Runs `submit` with a plug, so that the block requests it makes are handed over in batches:
/// `blk_start_plug()`. Does nothing more when the task has a plug already.
///
/// When the task sleeps, what is plugged goes on first.
pub(crate) fn with_plug<R>(submit: impl FnOnce() -> R) -> R {
    let plug = Opaque::<bindings::blk_plug>::uninit();
    // SAFETY: `plug` is on this stack, does not move, and is finished below; the crate does not
    // unwind.
    unsafe { bindings::blk_start_plug(plug.get()) };
    let result = submit();
    // SAFETY: Started above by the same task.
    unsafe { bindings::blk_finish_plug(plug.get()) };
    result
}

/// Lets others run, where the kernel would not see to it by itself. May sleep.
pub(crate) fn cond_resched() {
    // SAFETY: The caller may sleep; a violation is reported, and breaks nothing here.
    unsafe { ffi::rnull_loop_cond_resched() };
}

/// A number that is the same again when the same task asks and has not slept meanwhile, and hardly ever
/// else. Any context.
pub(crate) fn sleep_count() -> usize {
    let task = Task::current_raw();
    // SAFETY: The current task is valid, and its own switches are counted by itself alone.
    let slept = unsafe { (*task).nvcsw };
    task.addr() ^ slept.rotate_right(16)
}

/// Whether the current task may keep others from its CPU for as long as it likes: `rt_or_dl_task()`.
/// Any context.
pub(crate) fn is_realtime() -> bool {
    // SAFETY: The current task is valid.
    unsafe { (*Task::current_raw()).prio < bindings::MAX_RT_PRIO as c_int }
}

/// Returns whether the CPU of the current task is isolated, by `isolcpus=` or a cpuset: work that
/// may run elsewhere is not to run there. Any context.
pub(crate) fn is_on_isolated_cpu() -> bool {
    // SAFETY: Reads a mask of CPUs.
    unsafe { ffi::rnull_loop_on_isolated_cpu() }
}

/// How many CPUs are online now.
pub(crate) fn num_online_cpus() -> u32 {
    // SAFETY: Reads a counter.
    unsafe { ffi::rnull_loop_num_online_cpus() }
}

/// Whether the current task has `CAP_SYS_ADMIN`.
pub(crate) fn is_admin() -> bool {
    // SAFETY: The capability exists.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as c_int) }
}
