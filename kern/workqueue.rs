// SPDX-License-Identifier: GPL-2.0

//! An owned workqueue.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    prelude::*,
    workqueue::Queue, //
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

impl OwnedQueue {
    /// Makes a workqueue named `name` whose work runs on any CPU and rests while the system
    /// sleeps. May sleep.
    ///
    /// It has no rescuer (`WQ_MEM_RECLAIM`): its work calls file systems, and some of them wait for
    /// workqueues without one (XFS out of space: `xfs_flush_inodes()`), which the kernel warns of.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        // SAFETY: The format string is NUL-terminated and agrees with its one argument.
        let ptr = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_FREEZABLE,
                0,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: `ptr` comes from `alloc_workqueue()`.
        Ok(Self(NonNull::new(ptr).ok_or(ENOMEM)?))
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant the queue is valid for as long as `self` is.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the queue is not destroyed yet, and `self` ends here.
        // Waits for the work on it.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
