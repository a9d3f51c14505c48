// SPDX-License-Identifier: GPL-2.0

//! The tracepoints of requests and disks.
//!
//! C header: `kern/trace.h`

use crate::kern::trace::declare_trace;
use kernel::{
    bindings,
    prelude::*, //
};

declare_trace! {
    /// A request was routed.
    ///
    /// # Safety
    ///
    /// `rq` is valid, and has a disk. There are `len` bytes at `word`.
    pub(super) unsafe fn request_routed(
        rq: *mut bindings::request,
        word: *const c_char,
        len: usize,
    );

    /// An operation has not done all of a request.
    ///
    /// # Safety
    ///
    /// As for [`request_routed`].
    pub(super) unsafe fn request_requeued(
        rq: *mut bindings::request,
        word: *const c_char,
        len: usize,
    );

    /// The first `bytes` bytes of a request are submitted, to `position` (in bytes).
    ///
    /// # Safety
    ///
    /// As for [`request_routed`].
    pub(super) unsafe fn request_submitted(
        rq: *mut bindings::request,
        word: *const c_char,
        len: usize,
        position: u64,
        bytes: u32,
    );

    /// A request ends.
    ///
    /// # Safety
    ///
    /// `rq` is valid, and has a disk.
    pub(super) unsafe fn request_completed(
        rq: *mut bindings::request,
        status: bindings::blk_status_t,
    );

    /// A device is bound to a file, or to another one. `offset` and `sizelimit` are in bytes.
    ///
    /// # Safety
    ///
    /// `disk` is valid, and `file` is open.
    pub(super) unsafe fn device_attached(
        disk: *mut bindings::gendisk,
        file: *mut bindings::file,
        offset: u64,
        sizelimit: u64,
        flags: u32,
    );

    /// A device is not bound to a file any more.
    ///
    /// # Safety
    ///
    /// `disk` is valid.
    pub(super) unsafe fn device_detached(disk: *mut bindings::gendisk);
}
