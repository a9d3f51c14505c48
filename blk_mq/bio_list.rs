// SPDX-License-Identifier: GPL-2.0

//! Bios that were taken from requests, to be submitted to the same disk again.
//!
//! C header: [`include/linux/bio.h`](srctree/include/linux/bio.h)

use crate::kern::{
    ffi,
    task, //
};
use core::ptr::NonNull;
use kernel::bindings;

/// A list of bios of a disk: `struct bio_list`. They hold no tag and no reference to the usage
/// counter of the queue, so that neither other requests nor a task that freezes the queue waits for
/// them. Bios that are left when this is dropped end with an I/O error.
///
/// # Invariants
///
/// `0` is empty, or a null-terminated chain linked by `bi_next`, of bios that were submitted to the
/// block layer and have not ended. Nothing but the list uses them.
pub(crate) struct BioList(bindings::bio_list);

// SAFETY: The block layer lets any thread submit and end a bio.
unsafe impl Send for BioList {}

impl BioList {
    /// Makes an empty list.
    pub(crate) const fn new() -> Self {
        // INVARIANT: The chain is empty.
        Self(bindings::bio_list {
            head: core::ptr::null_mut(),
            tail: core::ptr::null_mut(),
        })
    }

    /// Returns the list for C code, which adds bios at its end: it must own them, and they must not
    /// have ended.
    pub(super) fn as_mut_ptr(&mut self) -> *mut bindings::bio_list {
        &raw mut self.0
    }

    /// Takes the first bio, which the caller submits, ends or adds to a list.
    fn pop(&mut self) -> Option<NonNull<bindings::bio>> {
        let bio = NonNull::new(self.0.head)?;
        // SAFETY: By the type invariant the bio is valid, and nothing else uses its link.
        let next = unsafe { &mut (*bio.as_ptr()).bi_next };
        // INVARIANT: The list gives up its first bio, and keeps the rest.
        self.0.head = core::mem::replace(next, core::ptr::null_mut());
        if self.0.head.is_null() {
            self.0.tail = core::ptr::null_mut();
        }
        Some(bio)
    }

    /// Takes the first bios, at most `count`.
    pub(crate) fn take_first(&mut self, count: usize) -> Self {
        let mut taken = Self::new();
        for bio in core::iter::from_fn(|| self.pop()).take(count) {
            // INVARIANT: `pop` has made this function the owner of the bio, and has cleared its
            // link. The chain ends with it.
            match NonNull::new(taken.0.tail) {
                // SAFETY: By the type invariant the last bio is valid, and nothing else uses its
                // link.
                Some(tail) => unsafe { (*tail.as_ptr()).bi_next = bio.as_ptr() },
                None => taken.0.head = bio.as_ptr(),
            }
            taken.0.tail = bio.as_ptr();
        }
        taken
    }

    /// Submits all bios: they become requests again. May sleep: for tags, and until a frozen queue
    /// thaws. The driver waits for this before it deletes the disk, because the last bio may have
    /// ended, and its submitter may have closed the disk, before this returns.
    pub(crate) fn submit(mut self) {
        while let Some(bio) = self.pop() {
            // SAFETY: By the type invariant the bio was submitted before, so it is complete, and
            // has not ended. `pop` has made this function its owner, and has cleared its link. Its
            // submitter keeps the disk open until it ends.
            unsafe { bindings::submit_bio_noacct(bio.as_ptr()) };
            task::cond_resched();
        }
    }
}

impl Drop for BioList {
    fn drop(&mut self) {
        while let Some(bio) = self.pop() {
            // SAFETY: By the type invariant the bio has not ended, and `pop` has made this function
            // its owner.
            unsafe { (*bio.as_ptr()).bi_status = ffi::BLK_STS_IOERR };
            // SAFETY: As above.
            unsafe { bindings::bio_endio(bio.as_ptr()) };
        }
    }
}
