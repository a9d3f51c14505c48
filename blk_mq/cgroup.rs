// SPDX-License-Identifier: GPL-2.0

//! Work on behalf of a control group.
//!
//! C headers: [`include/linux/blk-cgroup.h`](srctree/include/linux/blk-cgroup.h),
//! [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use super::request::{
    Operations,
    Request, //
};
use crate::kern::ffi;
use core::ptr::NonNull;
use kernel::{
    bindings,
    types::NotThreadSafe, //
};

/// What tells the block cgroup of the first bio of `rq` from others; 0 for the root's.
pub(crate) fn id<T: Operations>(rq: &Request<T>) -> usize {
    // SAFETY: The request is valid, and so are its bios.
    unsafe { ffi::rnull_loop_rq_blkcg_css(rq.as_ptr()) }.addr()
}

/// Whether I/O that the current task, which is no kernel thread, submits counts for the block cgroup that the
/// first bio of `rq` counts for.
pub(crate) fn is_of_current<T: Operations>(rq: &Request<T>) -> bool {
    // SAFETY: The request is valid, and so are its bios.
    unsafe { ffi::rnull_loop_rq_is_of_current_blkcg(rq.as_ptr()) }
}

/// While this lives, what the current worker does is charged to the control group of a request.
///
/// # Invariants
///
/// The current kernel thread is associated with a block cgroup, and, with `memcg`, charges memory
/// to that cgroup instead of to `old`. The value stays on its thread.
#[must_use = "the scope ends when this is dropped"]
pub(crate) struct ChargeScope {
    memcg: Option<NonNull<bindings::cgroup_subsys_state>>,
    old: *mut bindings::mem_cgroup,
    _not_send: NotThreadSafe,
}

impl ChargeScope {
    /// Enters the control groups of the first bio of `rq`, that of memory only if `with_memory`; `None`
    /// when it is the root's.
    ///
    /// To be called by a kernel thread, outside any other such scope.
    pub(crate) fn enter<T: Operations>(rq: &Request<T>, with_memory: bool) -> Option<Self> {
        // SAFETY: The request is valid, and so are its bios.
        let blkcg = unsafe { ffi::rnull_loop_rq_blkcg_css(rq.as_ptr()) };
        if blkcg.is_null() {
            return None;
        }
        // SAFETY: `blkcg` is kept by the bio, and the association takes a reference of its own.
        // For a thread that is no kernel thread this does nothing.
        unsafe { ffi::rnull_loop_kthread_associate_blkcg(blkcg) };
        // SAFETY: As above.
        let memcg = with_memory.then(|| unsafe { ffi::rnull_loop_memcg_css(blkcg) });
        let memcg = memcg.and_then(NonNull::new);
        let old = memcg.map_or(core::ptr::null_mut(), |css| {
            // SAFETY: The reference to `css` is held until `drop`.
            unsafe { ffi::rnull_loop_set_active_memcg(css.as_ptr()) }
        });
        // INVARIANT: As the calls above left it.
        Some(Self {
            memcg,
            old,
            _not_send: NotThreadSafe,
        })
    }
}

impl Drop for ChargeScope {
    fn drop(&mut self) {
        // SAFETY: A null cgroup ends the association of this thread.
        unsafe { ffi::rnull_loop_kthread_associate_blkcg(core::ptr::null_mut()) };
        if let Some(css) = self.memcg {
            // SAFETY: By the type invariant `old` was in force before, on this thread.
            unsafe { ffi::rnull_loop_restore_active_memcg(self.old) };
            // SAFETY: `enter` got this reference, and it is dropped once.
            unsafe { ffi::rnull_loop_css_put(css.as_ptr()) };
        }
    }
}
