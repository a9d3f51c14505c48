// SPDX-License-Identifier: GPL-2.0

//! Tag sets: the hardware contexts of a disk and the requests in them.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    request::{
        self,
        Context,
        IdleRequest,
        Operations,
        Pdu,
        Refused, //
    },
    submitter::Submitter, //
};
use crate::kern::{
    compat,
    ffi, //
};
use core::{
    marker::PhantomData,
    pin::pin,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// The `struct blk_mq_ops` of a driver `T`.
struct Vtable<T>(PhantomData<T>);

impl<T: Operations> Vtable<T> {
    /// Dispatches one request to the driver.
    ///
    /// # Safety
    ///
    /// Called by `queue_rq` and `queue_rqs` below: `rq` belongs to a queue made by `Disk` for
    /// requests of `T`, is not started, and has no owner but this driver. The tag set's SRCU read
    /// lock is held.
    unsafe fn dispatch(
        rq: NonNull<bindings::request>,
        submitter: Pin<&Submitter>,
    ) -> Result<(), Refused<T>> {
        // SAFETY: By the function's requirements the request is valid, and so is its queue.
        let queuedata = unsafe { (*(*rq.as_ptr()).q).queuedata };
        // SAFETY: The `queuedata` of a queue made by `Disk` is a `Context<T>`. It is freed after
        // the readers of the tag set's SRCU are gone (`Live::drop`), so after this function
        // returns, even if the request ends and the disk is removed before that.
        let context = unsafe { &*queuedata.cast::<Context<T>>() };
        // SAFETY: By the function's requirements the request is dispatched and not started, and has
        // no other owner.
        let rq = unsafe { IdleRequest::<T>::from_raw(rq) };
        T::queue_rq(&context.device, rq, submitter)
    }

    /// Dispatches one request: `->queue_rq`.
    ///
    /// # Safety
    ///
    /// Called by blk-mq alone, with the tag set's SRCU read lock held: `bd` is valid, and its
    /// request belongs to a queue made by `Disk` for `T`, and is not started.
    unsafe extern "C" fn queue_rq(
        _hctx: *mut bindings::blk_mq_hw_ctx,
        bd: *const bindings::blk_mq_queue_data,
    ) -> bindings::blk_status_t {
        // SAFETY: By the function's requirements `bd` is valid.
        let rq = unsafe { (*bd).rq };
        // SAFETY: By the function's requirements `bd` has a request.
        let rq = unsafe { NonNull::new_unchecked(rq) };
        // SAFETY: By the function's requirements the request is valid.
        let queue = unsafe { (*rq.as_ptr()).q };
        // SAFETY: This is `->queue_rq` for the queue, and `submitter` is dropped at its end.
        let submitter = unsafe { Submitter::current(queue, false) };
        let submitter = pin!(submitter);
        // SAFETY: By the function's requirements. blk-mq uses the request again only if it is
        // refused.
        match unsafe { Self::dispatch(rq, submitter.as_ref()) } {
            Ok(()) => ffi::BLK_STS_OK,
            Err(refused) => refused.into_status(),
        }
    }

    /// Dispatches the requests of a plug: `->queue_rqs`. One call instead of one for each request.
    ///
    /// # Safety
    ///
    /// Called by blk-mq alone, with the tag set's SRCU read lock held: `list` is valid, and its
    /// requests belong to one queue, made by `Disk` for `T`, and are not started.
    unsafe extern "C" fn queue_rqs(list: *mut bindings::rq_list) {
        // SAFETY: By the function's requirements `list` is valid.
        let Some(first) = NonNull::new(unsafe { (*list).head }) else {
            return;
        };
        // SAFETY: By the function's requirements the requests of `list` are valid.
        let queue = unsafe { (*first.as_ptr()).q };
        // SAFETY: This is `->queue_rqs` for the queue, and `submitter` is dropped at its end.
        let submitter = unsafe { Submitter::current(queue, true) };
        let submitter = pin!(submitter);
        // SAFETY: By the function's requirements `list` is valid, and changed by this call alone.
        while let Some(rq) = unsafe { pop(list) } {
            // SAFETY: By the function's requirements. The request is on no list any more.
            if let Err(refused) = unsafe { Self::dispatch(rq, submitter.as_ref()) } {
                // SAFETY: The driver has refused the request, so this function owns it.
                unsafe { bindings::blk_mq_end_request(rq.as_ptr(), refused.into_status()) };
            }
        }
    }

    /// Ends a completed request: `->complete`.
    ///
    /// # Safety
    ///
    /// Called by `rnull_loop_complete_request()` or blk-mq alone, once for a request that its last
    /// owner has completed.
    unsafe extern "C" fn complete(rq: *mut bindings::request) {
        // SAFETY: By the function's requirements `rq` is a valid request.
        let rq = unsafe { NonNull::new_unchecked(rq) };
        // SAFETY: By the function's requirements `rq` is completed, and this is the only call.
        unsafe { request::end_completed::<T>(rq) };
    }

    /// Sets a hardware context up: `->init_hctx`.
    ///
    /// # Safety
    ///
    /// Called by blk-mq alone: `hctx` is valid and new, and belongs to a queue made by `Disk` for
    /// `T`.
    unsafe extern "C" fn init_hctx(
        hctx: *mut bindings::blk_mq_hw_ctx,
        _tag_set_data: *mut c_void,
        _index: c_uint,
    ) -> c_int {
        // SAFETY: By the function's requirements `hctx` is valid, and so is its queue.
        let queuedata = unsafe { (*(*hctx).queue).queuedata };
        // SAFETY: The `queuedata` of a queue made by `Disk` is a `Context<T>`. It is set before the
        // hardware contexts are made.
        let context = unsafe { &*queuedata.cast::<Context<T>>() };
        // SAFETY: By the function's requirements `hctx` is valid, and nothing uses it yet. The key
        // is registered, and is dropped with the context, after the queue and its hardware contexts
        // are gone.
        unsafe { bindings::blk_mq_hctx_set_fq_lock_class(hctx, context.flush_class.as_ptr()) };
        0
    }

    /// Makes the PDU of a request: `->init_request`.
    ///
    /// # Safety
    ///
    /// Called by blk-mq alone: `rq` is followed by `cmd_size` bytes that nothing else uses yet.
    unsafe extern "C" fn init_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx_idx: c_uint,
        _node: c_int,
    ) -> c_int {
        // SAFETY: By the function's requirements the PDU follows the request, in the same
        // allocation (`blk_mq_rq_to_pdu()`).
        let pdu = unsafe { rq.add(1) }.cast::<Pdu<T>>();
        const { assert!(align_of::<Pdu<T>>() <= align_of::<bindings::request>()) };
        // SAFETY: `cmd_size` is that of a `Pdu<T>`, and the assertion shows that the end of a
        // request is aligned for it. Nothing else uses that memory, and it never moves.
        match unsafe { compat::raw_try_init(pdu, Pdu::<T>::new()) } {
            Ok(()) => 0,
            Err(never) => match never {},
        }
    }

    /// Drops the PDU of a request: `->exit_request`.
    ///
    /// # Safety
    ///
    /// Called by blk-mq alone: `init_request` has succeeded for `rq`, which is not used any more.
    unsafe extern "C" fn exit_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx_idx: c_uint,
    ) {
        // SAFETY: The PDU follows the request, in the same allocation (`blk_mq_rq_to_pdu()`).
        let pdu = unsafe { rq.add(1) }.cast::<Pdu<T>>();
        // SAFETY: By the function's requirements `init_request` has made the PDU, and nothing uses
        // it after this call.
        unsafe { core::ptr::drop_in_place(pdu) };
    }

    const OPS: bindings::blk_mq_ops = bindings::blk_mq_ops {
        queue_rq: Some(Self::queue_rq),
        queue_rqs: Some(Self::queue_rqs),
        complete: Some(Self::complete),
        init_hctx: Some(Self::init_hctx),
        init_request: Some(Self::init_request),
        exit_request: Some(Self::exit_request),
        ..pin_init::zeroed()
    };
}

/// Removes the first request of a list, and returns it: `rq_list_pop()`.
///
/// # Safety
///
/// `list` is valid, its requests are valid and linked by `rq_next`, and nothing else uses its links
/// during the call.
unsafe fn pop(list: *mut bindings::rq_list) -> Option<NonNull<bindings::request>> {
    // SAFETY: By the function's requirements the list is valid, and nothing else uses it.
    let list = unsafe { &mut *list };
    let rq = NonNull::new(list.head)?;
    // SAFETY: By the function's requirements the first request is valid, and has a link that
    // nothing else uses.
    let next = unsafe { &mut (*rq.as_ptr()).__bindgen_anon_1.rq_next };
    list.head = core::mem::replace(next, core::ptr::null_mut());
    if list.head.is_null() {
        list.tail = core::ptr::null_mut();
    }
    Some(rq)
}

/// The tags and the requests of a disk, in one or more hardware contexts.
///
/// # Invariants
///
/// `blk_mq_alloc_tag_set()` has set `inner` up, with the operations of `T` and room for a `Pdu<T>`
/// behind each request, and it is not freed yet.
#[pin_data(PinnedDrop)]
pub(crate) struct TagSet<T: Operations> {
    #[pin]
    inner: Opaque<bindings::blk_mq_tag_set>,
    _driver: PhantomData<T>,
}

// SAFETY: A tag set may be used and freed by any thread.
unsafe impl<T: Operations> Send for TagSet<T> {}
// SAFETY: No method changes the tag set through a shared reference.
unsafe impl<T: Operations> Sync for TagSet<T> {}

impl<T: Operations> TagSet<T> {
    /// Makes a tag set of `depth` requests (at most 10240, and fewer if there is no memory for
    /// all), which `nr_hw_queues` hardware contexts (at most one per possible CPU) share.
    ///
    /// For a stacked disk, which has no I/O scheduler unless user space sets one. May sleep. Fails
    /// with `EINVAL` for a number or a depth of 0, and with `ENOMEM`.
    pub(crate) fn new(nr_hw_queues: u32, depth: u32) -> impl PinInit<Self, Error> {
        // With one context, sharing would only make an I/O scheduler allocate at once as many
        // requests as it can ever have.
        let shared = match nr_hw_queues {
            1 => 0,
            _ => bindings::BLK_MQ_F_TAG_HCTX_SHARED,
        };
        // INVARIANT: `blk_mq_alloc_tag_set()` sets `inner` up, or `new` fails.
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::blk_mq_tag_set| {
                // SAFETY: `slot` is valid for writes.
                unsafe {
                    slot.write(bindings::blk_mq_tag_set {
                        ops: &Vtable::<T>::OPS,
                        nr_hw_queues,
                        queue_depth: depth,
                        numa_node: bindings::NUMA_NO_NODE,
                        cmd_size: const { size_of::<Pdu<T>>() as u32 },
                        // A driver may call file systems in `->queue_rq`, and they may sleep.
                        flags: bindings::BLK_MQ_F_BLOCKING
                            | bindings::BLK_MQ_F_STACKING
                            | bindings::BLK_MQ_F_NO_SCHED_BY_DEFAULT
                            | shared,
                        ..pin_init::zeroed()
                    })
                };
                // SAFETY: `slot` is filled in and pinned, and stays valid until `drop` frees it.
                to_result(unsafe { bindings::blk_mq_alloc_tag_set(slot) })
            }),
            _driver: PhantomData,
        })
    }

    pub(super) fn raw(&self) -> *mut bindings::blk_mq_tag_set {
        self.inner.get()
    }
}

#[pinned_drop]
impl<T: Operations> PinnedDrop for TagSet<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the tag set is set up and not freed. The disk that owns it
        // drops it after its queue was taken down, so no request is left.
        unsafe { bindings::blk_mq_free_tag_set(self.inner.get()) };
    }
}
