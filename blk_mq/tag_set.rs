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
    Submitter, //
};
use crate::kern::ffi;
use core::{
    marker::PhantomData,
    pin::pin,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    types::Opaque, //
};

/// `struct blk_mq_ops` of a driver `T`.
struct Vtable<T>(PhantomData<T>);

impl<T: Operations> Vtable<T> {
    /// Dispatches one request to the driver.
    ///
    /// # Safety
    ///
    /// Called by `queue_rq` and `queue_rqs` below: `rq` belongs to a queue made by `Disk` for
    /// requests of `T`, is not started, and waits for this driver. The tag set's SRCU read lock is
    /// held.
    unsafe fn dispatch(
        rq: NonNull<bindings::request>,
        submitter: Pin<&Submitter>,
    ) -> Result<(), Refused<T>> {
        // SAFETY: By the function's requirements the `queuedata` of the queue is a `Context<T>`. It
        // is freed after the readers of the tag set's SRCU are gone (`Live::drop`), so not before
        // this function returns, even if the request ends and the disk is removed before.
        let device = unsafe { &(*(*(*rq.as_ptr()).q).queuedata.cast::<Context<T>>()).device };
        // SAFETY: `init_hctx` stored a pointer into that `Context<T>`.
        let hw = unsafe { &*(*(*rq.as_ptr()).mq_hctx).driver_data.cast::<T::HwData>() };
        // SAFETY: By the function's requirements.
        let rq = unsafe { IdleRequest::<T>::from_raw(rq) };
        T::queue_rq(device, hw, rq, submitter)
    }

    /// # Safety
    ///
    /// Called by blk-mq alone, with the tag set's SRCU read lock held: `bd` is valid, and the request
    /// in it belongs to a queue made by `Disk` for `T`, is not started, and waits for this driver.
    unsafe extern "C" fn queue_rq(
        _hctx: *mut bindings::blk_mq_hw_ctx,
        bd: *const bindings::blk_mq_queue_data,
    ) -> bindings::blk_status_t {
        // SAFETY: By the function's requirements `bd` is valid and names a request.
        let rq = unsafe { NonNull::new_unchecked((*bd).rq) };
        // SAFETY: This is `->queue_rq`, and the request is valid.
        let submitter = unsafe { Submitter::current((*rq.as_ptr()).q, false) };
        let submitter = pin!(submitter);
        // SAFETY: By the function's requirements.
        match unsafe { Self::dispatch(rq, submitter.as_ref()) } {
            Ok(()) => ffi::BLK_STS_OK,
            Err(refused) => refused.into_status(),
        }
    }

    /// Dispatches the requests of a plug: one call instead of one for each request.
    ///
    /// # Safety
    ///
    /// Called by blk-mq alone, with the tag set's SRCU read lock held: the requests of `list` belong
    /// to a queue made by `Disk` for `T`, are not started, and wait for this driver.
    unsafe extern "C" fn queue_rqs(list: *mut bindings::rq_list) {
        // SAFETY: By the function's requirements the list is valid, and so are its requests.
        let Some(first) = (unsafe { (*list).head.as_ref() }) else {
            return;
        };
        // SAFETY: This is `->queue_rqs`.
        let submitter = unsafe { Submitter::current(first.q, true) };
        let submitter = pin!(submitter);
        // SAFETY: By the function's requirements `list` is valid and ours.
        while let Some(rq) = NonNull::new(unsafe { (*list).head }) {
            // As `rq_list_pop()` has it.
            // SAFETY: As above: a list of requests, linked by `rq_next` and ended by null.
            unsafe {
                (*list).head = (*rq.as_ptr()).__bindgen_anon_1.rq_next;
                (*rq.as_ptr()).__bindgen_anon_1.rq_next = core::ptr::null_mut();
                if (*list).head.is_null() {
                    (*list).tail = core::ptr::null_mut();
                }
            }
            // SAFETY: By the function's requirements.
            if let Err(refused) = unsafe { Self::dispatch(rq, submitter.as_ref()) } {
                // SAFETY: The request was not taken, so it is still ours to end.
                unsafe { bindings::blk_mq_end_request(rq.as_ptr(), refused.into_status()) };
            }
        }
    }

    /// # Safety
    ///
    /// Called by blk-mq alone: `rq` was given to `blk_mq_complete_request_remote()` by its last owner.
    unsafe extern "C" fn complete(rq: *mut bindings::request) {
        // SAFETY: By the function's requirements, `rq` being a valid request.
        unsafe { request::end_completed::<T>(NonNull::new_unchecked(rq)) };
    }

    /// # Safety
    ///
    /// Called by blk-mq alone: `hctx` is valid and new, and belongs to a queue made by `Disk` for
    /// `T`.
    unsafe extern "C" fn init_hctx(
        hctx: *mut bindings::blk_mq_hw_ctx,
        _tag_set_data: *mut c_void,
        index: c_uint,
    ) -> c_int {
        from_result(|| {
            // SAFETY: By the function's requirements `queuedata` is a `Context<T>`: it is set before
            // the hardware contexts are made.
            let context = unsafe { &*(*(*hctx).queue).queuedata.cast::<Context<T>>() };
            let hw = context.hw.get(index as usize).ok_or(EINVAL)?;
            // SAFETY: By the function's requirements `hctx` is valid, and nobody uses it yet.
            unsafe { (*hctx).driver_data = core::ptr::from_ref(hw).cast_mut().cast() };
            // SAFETY: As above; the key is registered, and is dropped with the context, after the
            // last request of the queue.
            unsafe { bindings::blk_mq_hctx_set_fq_lock_class(hctx, context.flush_class.as_ptr()) };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Called by blk-mq alone: `rq` is followed by `cmd_size` bytes that nothing else uses yet.
    unsafe extern "C" fn init_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx_idx: c_uint,
        _node: c_int,
    ) -> c_int {
        // SAFETY: The PDU follows the request (`blk_mq_rq_to_pdu()`).
        let pdu = unsafe { rq.add(1) }.cast::<Pdu<T>>();
        const { assert!(align_of::<Pdu<T>>() <= align_of::<bindings::request>()) };
        // SAFETY: There is room for a `Pdu<T>` (`cmd_size`), aligned as the assertion shows, not in
        // use yet, and it never moves.
        match unsafe { pin_init::raw_try_init(pdu, Pdu::<T>::new()) } {
            Ok(()) => 0,
            Err(never) => match never {},
        }
    }

    /// # Safety
    ///
    /// Called by blk-mq alone: `init_request` succeeded for `rq`, and `rq` is not used any more.
    unsafe extern "C" fn exit_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx_idx: c_uint,
    ) {
        // SAFETY: `init_request` made a `Pdu<T>` behind the request, and nothing uses it after this
        // call.
        unsafe { core::ptr::drop_in_place(rq.add(1).cast::<Pdu<T>>()) };
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

/// The requests of a disk, in one or more hardware contexts.
///
/// # Invariants
///
/// `inner` was set up by `blk_mq_alloc_tag_set()` with the operations of `T` and room for a
/// `Pdu<T>` behind each request, and is not freed yet.
#[pin_data(PinnedDrop)]
pub(crate) struct TagSet<T: Operations> {
    #[pin]
    inner: Opaque<bindings::blk_mq_tag_set>,
    _driver: PhantomData<T>,
}

// SAFETY: A tag set may be used and freed by any thread.
unsafe impl<T: Operations> Send for TagSet<T> {}
// SAFETY: There is no method that changes it through a shared reference.
unsafe impl<T: Operations> Sync for TagSet<T> {}

impl<T: Operations> TagSet<T> {
    /// Makes a tag set with `nr_hw_queues` hardware contexts (at most one per possible CPU) of
    /// `depth` requests each (at most 10240, and fewer when memory is short).
    ///
    /// For a disk that passes requests on to other disks, and schedules nothing unless told to.
    /// May sleep. Fails with `EINVAL` for a depth of 0, and with `ENOMEM`.
    pub(crate) fn new(nr_hw_queues: u32, depth: u32) -> impl PinInit<Self, Error> {
        // INVARIANT: `inner` is set up by `blk_mq_alloc_tag_set()`, or `new` fails.
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
                        // Drivers may submit to file systems in the submitter's context, where
                        // those sleep.
                        flags: bindings::BLK_MQ_F_BLOCKING
                            | bindings::BLK_MQ_F_STACKING
                            | bindings::BLK_MQ_F_NO_SCHED_BY_DEFAULT,
                        ..pin_init::zeroed()
                    })
                };
                // SAFETY: `slot` was filled in above, is pinned, and lives until `drop` frees it.
                to_result(unsafe { bindings::blk_mq_alloc_tag_set(slot) })
            }),
            _driver: PhantomData,
        })
    }

    /// How many hardware contexts there are.
    pub(super) fn nr_hw_queues(&self) -> u32 {
        // SAFETY: By the type invariant the tag set is set up; the number does not change.
        unsafe { (*self.raw()).nr_hw_queues }
    }

    pub(super) fn raw(&self) -> *mut bindings::blk_mq_tag_set {
        self.inner.get()
    }
}

#[pinned_drop]
impl<T: Operations> PinnedDrop for TagSet<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the tag set is set up. Its disk, which owns it, drops it
        // when no request can be made any more.
        unsafe { bindings::blk_mq_free_tag_set(self.inner.get()) };
    }
}
