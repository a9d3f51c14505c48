// SPDX-License-Identifier: GPL-2.0

//! Requests that go on to another block device as they are: one bio each.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use crate::kern::{
    bvec::BvecSpan,
    ffi, //
};
use kernel::{
    bindings,
    prelude::*,
    types::Opaque, //
};

/// What is told of the end of a bio.
pub(crate) trait BioCompletion {
    /// The bio is over, with that result. Called once, from any context.
    ///
    /// # Safety
    ///
    /// `bio` must have been submitted with this `BioCompletion`, and be over.
    unsafe fn complete(bio: *mut Bio, result: Result);
}

/// A bio that belongs to a request: `struct bio`.
#[repr(transparent)]
pub(crate) struct Bio(Opaque<bindings::bio>);

impl Bio {
    /// The flags that the bio of a request inherits: the operation, `REQ_FUA`, and hints.
    ///
    /// The block layer merges bios with different hints into one request, which has those of one of
    /// them. So a hint is inherited only if the lower device may not fail the bio because of it:
    /// those of scheduling (`REQ_SYNC`, `REQ_IDLE`, `REQ_PRIO`), throttling (`REQ_META`,
    /// `REQ_SWAP`, `REQ_BACKGROUND`) and caching order or delay a bio. `REQ_FUA` has requests of
    /// its own.
    ///
    /// Not inherited are flags that let the lower device fail the bio: `REQ_RAHEAD` (device-mapper
    /// fails such bios while it is suspended) and `REQ_FAILFAST_*`, which the block layer sets with
    /// it. A read may be merged behind read-ahead and would fail with it, and this device would log
    /// an error for every read-ahead that is dropped. Nor are flags that only the submitter can
    /// handle: `REQ_NOWAIT`, `REQ_POLLED`, `REQ_ATOMIC`, `REQ_INTEGRITY`.
    const KEPT: bindings::blk_opf_t = ffi::REQ_OP_MASK
        | ffi::REQ_SYNC
        | ffi::REQ_META
        | ffi::REQ_PRIO
        | ffi::REQ_FUA
        | ffi::REQ_BACKGROUND
        | ffi::REQ_IDLE
        | ffi::REQ_SWAP;

    /// Submits a bio that does what `rq` asks for with `memory`, at `sector` (of 512 bytes) of `bdev`.
    ///
    /// It is charged to the control group of the request's first bio, and has its priority and write
    /// hints. With `nowait` it ends with `EAGAIN` where it would have to wait or to be split, and with
    /// `EOPNOTSUPP` when the device does not know that; else this may sleep.
    ///
    /// `C::complete` may be called before this returns, which touches none of its arguments after it
    /// has submitted the bio.
    ///
    /// # Safety
    ///
    /// - `this` is pinned, and valid and not in use until `C::complete` is called for it.
    /// - `rq` is a valid read or write that is not completed before that, and `memory` describes memory
    ///   of it that stays for as long.
    /// - `bdev` is open until then, and until this function has returned.
    pub(crate) unsafe fn submit<C: BioCompletion>(
        this: *mut Self,
        rq: *mut bindings::request,
        bdev: *mut bindings::block_device,
        sector: u64,
        memory: &BvecSpan,
        nowait: bool,
    ) {
        let bio = this.cast::<bindings::bio>();
        // SAFETY: By the function's requirements `bio` is not in use, and `rq` has bios. The bio
        // looks for no control group of its own, as it has no device yet; it gets that of the other.
        unsafe {
            let opf = (*rq).cmd_flags & Self::KEPT | if nowait { ffi::REQ_NOWAIT } else { 0 };
            bindings::bio_init(bio, core::ptr::null_mut(), core::ptr::null_mut(), 0, opf);
            let source = (*rq).bio;
            (*bio).bi_bdev = bdev;
            (*bio).bi_flags |= 1 << bindings::BIO_CLONED;
            (*bio).bi_ioprio = (*source).bi_ioprio;
            (*bio).bi_write_hint = (*source).bi_write_hint;
            (*bio).bi_write_stream = (*source).bi_write_stream;
            (*bio).bi_io_vec = memory.bvecs.cast_mut();
            (*bio).bi_iter = bindings::bvec_iter {
                bi_sector: sector,
                bi_size: memory.count as c_uint,
                bi_idx: 0,
                bi_offset: memory.offset as c_uint,
            };
            (*bio).bi_end_io = Some(Self::end_io::<C>);
            ffi::rnull_loop_bio_clone_blkg_association(bio, source);
            bindings::submit_bio_noacct(bio);
        }
    }

    /// `->bi_end_io`.
    ///
    /// # Safety
    ///
    /// Called once by the block layer, for a bio of [`submit`](Self::submit) with the same `C`.
    unsafe extern "C" fn end_io<C: BioCompletion>(bio: *mut bindings::bio) {
        // SAFETY: By the function's requirements the bio is over.
        let status = unsafe { (*bio).bi_status };
        // SAFETY: As above; it was set up by `bio_init()` and is not used any more.
        unsafe { bindings::bio_uninit(bio) };
        // SAFETY: The function reads a table and takes any status.
        let errno = unsafe { bindings::blk_status_to_errno(status) };
        // SAFETY: By the function's requirements; a `Bio` is a `struct bio`.
        unsafe { C::complete(bio.cast(), kernel::error::to_result(errno)) };
    }
}
