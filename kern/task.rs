// SPDX-License-Identifier: GPL-2.0

//! The current task: its I/O scope, its plug, its scheduling and its privileges.
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

/// A scope in which the current task serves I/O that memory reclaim may wait for. Its allocations
/// start no I/O (`PF_MEMALLOC_NOIO`), and its writes are only throttled for the device that they
/// are written to (`PF_LOCAL_THROTTLE`).
///
/// # Invariants
///
/// `old` are the flags of the current task before the scope. The value stays on that task.
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
        // SAFETY: The current task is valid, and only the task itself changes its flags.
        let old = unsafe { (*task).flags };
        // SAFETY: As above.
        unsafe { (*task).flags = old | Self::FLAGS };
        // INVARIANT: `old` was read above; `NotThreadSafe` keeps the value on this task.
        Self {
            old,
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for IoWorkerScope {
    fn drop(&mut self) {
        let task = Task::current_raw();
        // Other flags may have changed since, and are kept.
        // SAFETY: The current task is valid, and only the task itself changes its flags. By the
        // type invariants it is the task that entered the scope.
        unsafe { (*task).flags = ((*task).flags & !Self::FLAGS) | (self.old & Self::FLAGS) };
    }
}

/// Runs `submit` with a plug, so that the block layer dispatches its requests in batches:
/// `blk_start_plug()`. Only runs `submit` if the task has a plug already.
///
/// When the task sleeps, the scheduler flushes the plug first.
pub(crate) fn with_plug<R>(submit: impl FnOnce() -> R) -> R {
    let plug = Opaque::<bindings::blk_plug>::uninit();
    // SAFETY: `plug` is valid for writes. It stays in place on this stack until it is finished
    // below, also if `submit` panics, because a panic does not unwind.
    unsafe { bindings::blk_start_plug(plug.get()) };
    let result = submit();
    // SAFETY: The same task started `plug` above.
    unsafe { bindings::blk_finish_plug(plug.get()) };
    result
}

/// Lets the scheduler run another task, in kernels that do not preempt kernel code, and lets RCU
/// tasks grace periods end: `cond_resched_tasks_rcu_qs()`. May sleep.
pub(crate) fn cond_resched() {
    // SAFETY: The function takes no pointers, and only switches tasks while preemption and
    // interrupts are enabled. Its one precondition is that the caller is in no RCU read-side
    // critical section. That follows from "May sleep", which is all that the `kernel` crate demands
    // of the callers of such functions, too.
    unsafe { ffi::rnull_loop_cond_resched() };
}

/// Returns whether another task should run on this CPU: `need_resched()`. Any context.
pub(crate) fn need_resched() -> bool {
    // SAFETY: The helper has no preconditions: it reads a flag of the current task.
    unsafe { ffi::rnull_loop_need_resched() }
}

/// Returns whether the current task is being killed: `fatal_signal_pending()`.
pub(crate) fn is_killed() -> bool {
    // SAFETY: The helper has no preconditions: it reads the signals of the current task.
    unsafe { ffi::rnull_loop_is_killed() }
}

/// Returns whether the code runs for the current task, and not in an interrupt: `in_task()`. Any
/// context.
pub(crate) fn is_current() -> bool {
    // SAFETY: The helper has no preconditions: it reads the preemption counter of this CPU.
    unsafe { ffi::rnull_loop_in_task() }
}

/// Returns a number that changes whenever the current task sleeps, and that hardly ever equals the
/// number of another task. Any context.
pub(crate) fn sleep_count() -> usize {
    // CAST: `nvcsw` is a word.
    id() ^ (sleeps() as usize).rotate_right(16)
}

/// Returns how often other tasks have taken the CPU from the current one. Any context.
pub(crate) fn preemptions() -> u64 {
    // SAFETY: The current task is valid, and only its own calls of `__schedule()` change `nivcsw`.
    (unsafe { (*Task::current_raw()).nivcsw }) as u64
}

/// Returns how often the current task has slept. Any context.
pub(crate) fn sleeps() -> u64 {
    // SAFETY: The current task is valid, and only its own calls of `__schedule()` change `nvcsw`.
    (unsafe { (*Task::current_raw()).nvcsw }) as u64
}

/// Returns a number that is that of the current task alone, while it exists. Any context.
pub(crate) fn id() -> usize {
    Task::current_raw().addr()
}

/// Returns how long the online CPUs have been idle, the sum of all, in nanoseconds. Any context.
pub(crate) fn idle_time_ns() -> u64 {
    // SAFETY: The helper has no preconditions: it reads statistics of the scheduler.
    unsafe { ffi::rnull_loop_idle_time_ns() }
}

/// Returns whether the current task has a real-time or deadline priority, so that it may keep other
/// tasks from its CPU for any time: `rt_or_dl_task()`. Any context.
pub(crate) fn is_realtime() -> bool {
    // SAFETY: The current task is valid. C code reads `prio` as a plain word, too.
    unsafe { (*Task::current_raw()).prio < bindings::MAX_RT_PRIO as c_int }
}

/// Returns whether the CPU of the current task is isolated by `isolcpus=` or a cpuset, so that work
/// should run on another CPU. Any context.
pub(crate) fn is_on_isolated_cpu() -> bool {
    // SAFETY: The helper has no preconditions: it reads a CPU mask under `rcu_read_lock()`.
    unsafe { ffi::rnull_loop_on_isolated_cpu() }
}

/// Returns the number of online CPUs. Any context.
pub(crate) fn num_online_cpus() -> u32 {
    // SAFETY: The helper has no preconditions: it reads an atomic counter.
    unsafe { ffi::rnull_loop_num_online_cpus() }
}

/// Returns whether the current task has `CAP_SYS_ADMIN` in the initial user namespace: `capable()`.
pub(crate) fn is_admin() -> bool {
    // SAFETY: `capable()` only requires a capability that exists.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as c_int) }
}
