// SPDX-License-Identifier: GPL-2.0

//! Requests that are remapped to a lower device: one bio each.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use crate::kern::{
    bvec::BvecSpan,
    compat,
    ffi,
    trace::is_traced, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// A bio that belongs to a request: `struct bio`.
#[repr(transparent)]
pub(crate) struct Bio(Opaque<bindings::bio>);

/// The owner of a [`Bio`], which goes with it and gets its result.
///
/// # Safety
///
/// [`into_bio`](Self::into_bio) returns a `Bio` that is pinned, and stays valid until
/// [`from_bio`](Self::from_bio) is called.
pub(crate) unsafe trait BioCompletion: Send + Sized {
    /// Turns the owner into its `Bio`.
    fn into_bio(self) -> *mut Bio;

    /// Takes the owner of a `Bio` back.
    ///
    /// # Safety
    ///
    /// `bio` must come from [`into_bio`](Self::into_bio), and is taken back once.
    unsafe fn from_bio(bio: *mut Bio) -> Self;

    /// Takes the result of the bio, which is over. Called once for each bio. Any context, including
    /// hard IRQ.
    fn complete(self, result: Result);
}

impl Bio {
    /// The flags that a bio inherits from its request: the operation, `REQ_FUA`, and hints.
    ///
    /// The block layer merges bios with different hints into one request, which has the hints of
    /// one of them. So a hint is inherited only if it merely orders or delays a bio: hints for
    /// schedulers (`REQ_SYNC`, `REQ_IDLE`, `REQ_PRIO`), for throttling and for caches (`REQ_META`,
    /// `REQ_SWAP`, `REQ_BACKGROUND`). A request with `REQ_FUA` is never merged, and all bios of one
    /// with `REQ_ATOMIC` have this flag.
    ///
    /// Two kinds of flags are left out. The first lets the lower device fail the bio: `REQ_RAHEAD`
    /// (device-mapper fails such bios while it is suspended) and `REQ_FAILFAST_*`, which the block
    /// layer sets with it. A read that is merged behind read-ahead would fail with it, and this
    /// device would log an error for each read-ahead that the lower device drops. The second kind
    /// only the submitter can handle: `REQ_NOWAIT`, `REQ_POLLED`, `REQ_INTEGRITY`.
    const KEPT: bindings::blk_opf_t = ffi::REQ_OP_MASK
        | ffi::REQ_SYNC
        | ffi::REQ_META
        | ffi::REQ_PRIO
        | ffi::REQ_FUA
        | ffi::REQ_ATOMIC
        | ffi::REQ_BACKGROUND
        | ffi::REQ_IDLE
        | ffi::REQ_SWAP;

    /// Submits a bio that carries out `rq` with the memory of `span`, at `sector` (of 512 bytes) of
    /// `bdev`.
    ///
    /// The bio is charged to the blkcg of the request's first bio, and has the I/O priority and the
    /// write hints of that bio. With `nowait` it is non-blocking: it ends with `EAGAIN` if it would
    /// block or would have to be split, and with `EOPNOTSUPP` if the lower device does not support
    /// `REQ_NOWAIT`. May sleep; with `nowait`, only where the lower device throttles the bio.
    ///
    /// [`BioCompletion::complete`] may be called before this returns. After the bio is submitted,
    /// this function uses none of its arguments.
    ///
    /// # Safety
    ///
    /// - The `Bio` of `owner` is not in use.
    /// - `rq` is a valid read or write, and is not completed before `complete` is called. `span`
    ///   describes memory of it, and that memory and the bio_vecs stay valid for as long.
    /// - `bdev` is open until then, and until this function returns.
    pub(crate) unsafe fn submit<C: BioCompletion>(
        owner: C,
        rq: *mut bindings::request,
        bdev: *mut bindings::block_device,
        sector: u64,
        span: &BvecSpan,
        nowait: bool,
    ) {
        let bio = owner.into_bio().cast::<bindings::bio>();
        // SAFETY: By the function's requirements `rq` is valid.
        let kept = unsafe { (*rq).cmd_flags } & Self::KEPT;
        let opf = kept | if nowait { ffi::REQ_NOWAIT } else { 0 };
        // SAFETY: As above.
        let source = unsafe { (*rq).bio };
        // SAFETY: By the requirements of `BioCompletion` the bio is valid, and by those of this
        // function it is not in use. Without a block device, `bio_init()` looks up no blkcg;
        // without an array, it needs no bio_vecs.
        unsafe { bindings::bio_init(bio, core::ptr::null_mut(), core::ptr::null_mut(), 0, opf) };
        // SAFETY: By the function's requirements `rq` is a read or a write, so it has a bio, which
        // stays until `rq` is completed. The caller owns `rq`, so nothing changes the bio.
        let inherited = unsafe { &*source };
        // SAFETY: `bio` was initialized above, and is not in use before it is submitted below.
        let fields = unsafe { &mut *bio };
        fields.bi_bdev = bdev;
        fields.bi_flags |= 1 << bindings::BIO_CLONED;
        fields.bi_ioprio = inherited.bi_ioprio;
        fields.bi_write_hint = inherited.bi_write_hint;
        fields.bi_write_stream = inherited.bi_write_stream;
        fields.bi_io_vec = span.bvecs.cast_mut();
        fields.bi_iter = compat::bvec_iter(sector, span.count as c_uint, span.offset as c_uint);
        fields.bi_end_io = Some(Self::end_io::<C>);
        // SAFETY: Both bios are valid. `bio` has a block device, whose queue the blkg is for, and
        // no blkg yet.
        unsafe { ffi::rnull_loop_bio_clone_blkg_association(bio, source) };
        if is_traced!(block_bio_remap) {
            // SAFETY: Both are valid, and `rq` has a disk.
            unsafe { ffi::rnull_loop_trace_bio_remap(bio, rq) };
        }
        // SAFETY: `bio` is complete: its block device is open, `bi_io_vec` and `bi_iter` describe
        // memory that stays until the bio ends, and then `end_io` is called.
        unsafe { bindings::submit_bio_noacct(bio) };
    }

    /// Submits a bio that flushes `bdev`. It is non-blocking; writeback throttling does not apply
    /// to it. Does not sleep, unless the lower device throttles the current task.
    ///
    /// [`BioCompletion::complete`] may be called before this returns. After the bio is submitted,
    /// this function uses none of its arguments.
    ///
    /// # Safety
    ///
    /// - The `Bio` of `owner` is not in use.
    /// - `bdev` is open until `complete` is called, and until this function returns.
    pub(crate) unsafe fn submit_flush<C: BioCompletion>(
        owner: C,
        bdev: *mut bindings::block_device,
    ) {
        let bio = owner.into_bio().cast::<bindings::bio>();
        let opf = bindings::req_op_REQ_OP_WRITE
            | ffi::REQ_PREFLUSH
            | ffi::REQ_SYNC
            | ffi::REQ_IDLE
            | ffi::REQ_NOWAIT;
        // SAFETY: By the requirements of `BioCompletion` the bio is valid, and by those of this
        // function it is not in use, and `bdev` is open. A flush needs no bio_vecs.
        unsafe { bindings::bio_init(bio, bdev, core::ptr::null_mut(), 0, opf) };
        // SAFETY: `bio` was initialized above, and is not in use before it is submitted below.
        unsafe { (*bio).bi_end_io = Some(Self::end_io::<C>) };
        // SAFETY: `bio` is complete: its block device is open, it has no data, and when it ends,
        // `end_io` is called.
        unsafe { bindings::submit_bio_noacct(bio) };
    }

    /// Passes the result of a bio that is over to its owner: `->bi_end_io`.
    ///
    /// # Safety
    ///
    /// Called once by the block layer, for a bio of [`submit`](Self::submit) with the same `C`.
    unsafe extern "C" fn end_io<C: BioCompletion>(bio: *mut bindings::bio) {
        // SAFETY: By the function's requirements the bio is valid, and the block layer does not use
        // it any more.
        let status = unsafe { (*bio).bi_status };
        // SAFETY: As above; `submit` has initialized it with `bio_init()`.
        unsafe { bindings::bio_uninit(bio) };
        let result = match status {
            0 => Ok(()),
            // SAFETY: The function reads a table and accepts any status.
            _ => to_result(unsafe { bindings::blk_status_to_errno(status) }),
        };
        // SAFETY: By the function's requirements the bio is the `Bio` of an owner of type `C`, and
        // this is called once for it.
        let owner = unsafe { C::from_bio(bio.cast()) };
        owner.complete(result);
    }
}
