// SPDX-License-Identifier: GPL-2.0

//! The cgroups to which a request is charged.
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

/// Returns a number that identifies the blkcg of the first bio of `rq`; 0 for the root. Any
/// context, including hard IRQ.
pub(crate) fn id<T: Operations>(rq: &Request<T>) -> usize {
    // SAFETY: A `Request` is valid, and so are its bios.
    unsafe { ffi::rnull_loop_rq_blkcg_css(rq.as_ptr()) }.addr()
}

/// A scope in which I/O and memory of the current worker are charged to the cgroups of a request.
///
/// # Invariants
///
/// The current kernel thread is associated with a blkcg. If `memcg` is `Some`, this value holds a
/// reference to it, and the thread charges memory to it, instead of to `old` as before. The value
/// stays on its thread.
#[must_use = "the scope ends when this is dropped"]
pub(crate) struct ChargeScope {
    memcg: Option<NonNull<bindings::cgroup_subsys_state>>,
    old: *mut bindings::mem_cgroup,
    _not_send: NotThreadSafe,
}

impl ChargeScope {
    /// Enters the blkcg of the first bio of `rq` and, if `with_memory`, the memcg that belongs to
    /// it. Returns `None` for the root, to which I/O and memory are charged anyway.
    ///
    /// Called by a kernel thread, outside any other such scope.
    pub(crate) fn enter<T: Operations>(rq: &Request<T>, with_memory: bool) -> Option<Self> {
        // SAFETY: A `Request` is valid, and so are its bios.
        let blkcg = unsafe { ffi::rnull_loop_rq_blkcg_css(rq.as_ptr()) };
        if blkcg.is_null() {
            return None;
        }
        // SAFETY: The bio keeps `blkcg`, and the association takes a reference of its own. For any
        // task but a kernel thread, the call does nothing.
        unsafe { ffi::rnull_loop_kthread_associate_blkcg(blkcg) };
        // SAFETY: As above, the bio keeps `blkcg`.
        let memcg = with_memory.then(|| unsafe { ffi::rnull_loop_memcg_css(blkcg) });
        let memcg = memcg.and_then(NonNull::new);
        let old = memcg.map_or(core::ptr::null_mut(), |css| {
            // SAFETY: The helper above has returned `css`, of a memcg, with a reference, which is
            // held until `drop`.
            unsafe { ffi::rnull_loop_set_active_memcg(css.as_ptr()) }
        });
        // INVARIANT: By the calls above.
        Some(Self {
            memcg,
            old,
            _not_send: NotThreadSafe,
        })
    }
}

impl Drop for ChargeScope {
    fn drop(&mut self) {
        // SAFETY: Null ends the association of the current thread.
        unsafe { ffi::rnull_loop_kthread_associate_blkcg(core::ptr::null_mut()) };
        if let Some(css) = self.memcg {
            // SAFETY: By the type invariant memory of this thread was charged to `old` before.
            unsafe { ffi::rnull_loop_restore_active_memcg(self.old) };
            // SAFETY: By the type invariant this value holds the reference, and it ends here.
            unsafe { ffi::rnull_loop_css_put(css.as_ptr()) };
        }
    }
}
