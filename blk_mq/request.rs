// SPDX-License-Identifier: GPL-2.0

//! Requests whose state is their type.
//!
//! ```text
//! IdleRequest ── refuse() ──> Refused                       the block layer ends it
//!     │ start()
//! StartedRequest ── complete(result) ──────────────┐        sole owner
//!     │ into_in_flight()   ↑ rejoin()              │
//! InFlight, InFlight ── the last one is dropped ───┤        submitter and callback
//!                                                  v
//!                                       CompletedRequest ── end(status)
//!                                                        └─ requeue(): idle again
//! ```
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    disk::QueueContext,
    Op,
    Operations,
    Status, //
};
use crate::kern::ffi;
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Full,
                Relaxed, //
            },
            Atomic, //
        },
        Arc, //
    },
    time::Delta,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// What lies behind every `struct request` of a [`TagSet`](super::TagSet).
#[pin_data]
pub(super) struct Pdu<T: Operations> {
    /// How many [`InFlight`] there are.
    owners: Atomic<u32>,
    /// The outcome: bytes done, or a negative errno. Written by an owner of the request, read when
    /// it is completed.
    result: Atomic<i64>,
    /// The next request of a [`RequestList`](super::RequestList); used by the list that owns the
    /// request, and by nobody while none does.
    pub(super) next: UnsafeCell<*mut bindings::request>,
    /// The driver's part.
    #[pin]
    data: T::RequestData,
}

// SAFETY: `data` is `Send + Sync`, the atomics are, and `next` is touched by the one owner of the
// request alone, who may be on any CPU.
unsafe impl<T: Operations> Sync for Pdu<T> {}

impl<T: Operations> Pdu<T> {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            owners: Atomic::new(0),
            result: Atomic::new(0),
            next: UnsafeCell::new(core::ptr::null_mut()),
            data <- T::new_request_data(),
        })
    }
}

/// A request of a driver `T`, in whatever state.
///
/// # Invariants
///
/// A reference to a `Request<T>` points at a request that was set up for a tag set made by
/// [`TagSet<T>`](super::TagSet) (its own, a scheduler's, or a queue's flush request), handed out, and
/// not ended, on a queue made by [`Disk<T>`](super::Disk); so its PDU is an initialized `Pdu<T>`, and
/// there is a reference to the queue's usage counter until it ends: its own or, of a flush request, that
/// of the request it was made for.
#[repr(transparent)]
pub(crate) struct Request<T: Operations>(Opaque<bindings::request>, PhantomData<T>);

impl<T: Operations> Request<T> {
    fn raw(&self) -> *mut bindings::request {
        self.0.get()
    }

    /// The request that a PDU belongs to: `blk_mq_rq_from_pdu()`.
    ///
    /// # Safety
    ///
    /// `pdu` must be the PDU of a request.
    unsafe fn raw_from_pdu(pdu: *mut Pdu<T>) -> NonNull<bindings::request> {
        // SAFETY: A PDU follows its request at once (`blk_mq_rq_to_pdu()`), so stepping back by one
        // request stays inside the allocation, and the result is not null.
        unsafe { NonNull::new_unchecked(pdu.cast::<bindings::request>().sub(1)) }
    }

    /// The request that a driver's part belongs to.
    ///
    /// # Safety
    ///
    /// `data` must be the field `data` of the PDU of a request.
    unsafe fn from_data(data: *const T::RequestData) -> NonNull<bindings::request> {
        // SAFETY: By the function's requirements.
        let pdu = unsafe { kernel::container_of!(data.cast_mut(), Pdu<T>, data) };
        // SAFETY: As above.
        unsafe { Self::raw_from_pdu(pdu) }
    }

    pub(super) fn pdu(&self) -> &Pdu<T> {
        // SAFETY: The PDU follows the request (`blk_mq_rq_to_pdu()`). By the type invariant it is
        // an initialized `Pdu<T>`, and it is dropped only with its tag set, scheduler or queue, which
        // outlive all requests in flight.
        unsafe { &*self.raw().add(1).cast::<Pdu<T>>() }
    }

    pub(super) fn context(&self) -> &QueueContext<T> {
        // SAFETY: By the type invariant the request belongs to a queue made by `Disk<T>`, whose
        // `queuedata` is a `QueueContext<T>` for as long as there are requests.
        unsafe { &*(*(*self.raw()).q).queuedata.cast::<QueueContext<T>>() }
    }

    pub(super) fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type invariant the request is valid; `q` does not change.
        unsafe { (*self.raw()).q }
    }

    fn cmd_flags(&self) -> bindings::blk_opf_t {
        // SAFETY: By the type invariant the request is valid; in the hands of a driver nobody
        // changes its flags but `blk_update_request()`, whose caller owns the request.
        unsafe { (*self.raw()).cmd_flags }
    }

    /// What the request asks for.
    pub(crate) fn op(&self) -> Op {
        Op::from_flags(self.cmd_flags())
    }

    /// Whether a write must be durable when it ends: `REQ_FUA`.
    pub(crate) fn is_durable(&self) -> bool {
        self.cmd_flags() & ffi::REQ_FUA != 0
    }

    /// Whether a write makes room in memory: `REQ_SWAP`.
    pub(crate) fn is_swap(&self) -> bool {
        self.cmd_flags() & ffi::REQ_SWAP != 0
    }

    /// Whether somebody holds the disk or a partition of it exclusively, as mounted file systems
    /// and stacked devices do: `bd_holders`. Other users, such as loop devices, are not seen. May have
    /// changed when this returns.
    pub(crate) fn disk_is_held(&self) -> bool {
        // SAFETY: By the type invariant the queue is valid, and belongs to a disk that stays while
        // it has requests, with its `part0`.
        unsafe {
            core::ptr::read_volatile(&raw const (*(*(*self.queue()).disk).part0).bd_holders) != 0
        }
    }

    /// Whether a read fills a page cache, whose locks its submitter holds then.
    pub(crate) fn fills_cache(&self) -> bool {
        // SAFETY: By the type invariant the request and its bios are valid; a read has memory.
        self.op() == Op::Read && unsafe { ffi::rnull_loop_rq_fills_cache(self.raw()) }
    }

    /// Keeps the queue and what belongs to it, whatever becomes of the request.
    pub(crate) fn keep_queue(&self) -> QueueRef<T> {
        // SAFETY: By the type invariant the request is valid, and there is a reference to the queue's
        // usage counter while it is, so another one may be had.
        unsafe { ffi::rnull_loop_queue_get(self.queue()) };
        // SAFETY: By the type invariant the request was handed out by a tag set of `T`, whose
        // `init_hctx` stored a pointer into the queue's `QueueContext<T>`.
        let hw = unsafe { (*(*self.raw()).mq_hctx).driver_data }.cast::<T::HwData>();
        // INVARIANT: As said.
        QueueRef {
            queue: self.queue(),
            hw,
            _not_send: NotThreadSafe,
        }
    }

    /// Whether a [`Op::WriteZeroes`] must keep its blocks allocated: `REQ_NOUNMAP`.
    pub(crate) fn keeps_blocks(&self) -> bool {
        self.cmd_flags() & ffi::REQ_NOUNMAP != 0
    }

    /// Where the request begins on the device, in bytes. Means nothing for [`Op::Flush`].
    pub(crate) fn position(&self) -> u64 {
        // SAFETY: As in `cmd_flags`.
        let sector: u64 = unsafe { (*self.raw()).__sector };
        sector << kernel::block::SECTOR_SHIFT
    }

    /// How long the request is, or what is left of it, in bytes.
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: As in `cmd_flags`.
        unsafe { (*self.raw()).__data_len }
    }

    /// The I/O priority of its submitter: `req_get_ioprio()`.
    pub(crate) fn ioprio(&self) -> u16 {
        // SAFETY: By the type invariant the request is valid, and so is its bio if it has one: bios
        // are ended after, or by the owner of, their request.
        unsafe { (*self.raw()).bio.as_ref() }.map_or(0, |bio| bio.bi_ioprio)
    }

    /// How many of `bytes` bytes are in whole logical blocks of the disk.
    pub(crate) fn whole_blocks(&self, bytes: u32) -> u32 {
        // SAFETY: By the type invariant the queue is valid; the block size does not change
        // under a request in flight, as a change needs a frozen queue, or no request to be served.
        let block = unsafe {
            core::ptr::read_volatile(&raw const (*self.queue()).limits.logical_block_size)
        };
        bytes - bytes.checked_rem(block).unwrap_or(bytes)
    }

    /// The device that the request is for.
    pub(crate) fn device(&self) -> &Arc<T> {
        &self.context().device
    }

    /// The raw request, for the abstractions that read its bios.
    pub(crate) fn as_ptr(&self) -> *mut bindings::request {
        self.raw()
    }

    /// The driver's part of the request.
    pub(crate) fn data(&self) -> &T::RequestData {
        &self.pdu().data
    }

    /// What the request needs of the device, or `None` when the device has nothing to serve it
    /// from.
    ///
    /// Takes no lock: it cannot change under a request, which holds the queue's usage counter, as
    /// changing it takes a [`FrozenQueue`](super::limits::FrozenQueue). (It can *appear*, by
    /// [`GenDisk::publish`](super::GenDisk::publish).)
    pub(crate) fn io(&self) -> Option<&T::Io> {
        // SAFETY: `self` is a request of that queue, and it lives as long as the reference.
        unsafe { self.context().io.get() }
    }
}

/// A reference to the usage counter of a queue, which is neither frozen nor taken down before this is
/// dropped.
///
/// # Invariants
///
/// `queue` was made by [`Disk<T>`](super::Disk), `hw` belongs to one of its hardware contexts, and this
/// value holds a reference to its usage counter.
pub(crate) struct QueueRef<T: Operations> {
    queue: *mut bindings::request_queue,
    hw: *const T::HwData,
    // A frozen queue waits for this: it is not to be kept.
    _not_send: NotThreadSafe,
}

impl<T: Operations> QueueRef<T> {
    /// The device that the queue is for.
    pub(crate) fn device(&self) -> &Arc<T> {
        // SAFETY: By the type invariant `queuedata` is a `QueueContext<T>`, which stays with the queue.
        unsafe { &(*(*self.queue).queuedata.cast::<QueueContext<T>>()).device }
    }

    /// The driver's part of the hardware context of the request that this came from.
    pub(crate) fn hw(&self) -> &T::HwData {
        // SAFETY: By the type invariant it is part of a `QueueContext<T>`, which stays with the queue.
        unsafe { &*self.hw }
    }
}

impl<T: Operations> Drop for QueueRef<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to give back.
        unsafe { ffi::rnull_loop_queue_put(self.queue) };
    }
}

/// A request that the driver was handed and has not started.
///
/// When dropped, it is started and completed with an I/O error: to the block layer, it was taken.
///
/// # Invariants
///
/// The request is not started, the block layer waits for the driver to start or refuse it, and this
/// is the only value that names it.
pub(crate) struct IdleRequest<T: Operations>(NonNull<Request<T>>);

impl<T: Operations> IdleRequest<T> {
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`Request`] and of [`IdleRequest`].
    pub(super) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: By the function's requirements.
        Self(rq.cast())
    }

    /// Leaves the request to the block layer, which ends it with `status`.
    pub(crate) fn refuse(self, status: Status) -> Refused<T> {
        Refused { rq: self, status }
    }

    /// Starts the request: from here on its timeout runs, and the driver must end it.
    pub(crate) fn start(self) -> StartedRequest<T> {
        let rq = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is not started, and `self` was consumed.
        unsafe { start_raw(rq.0) }
    }
}

impl<T: Operations> Drop for IdleRequest<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the request is not started, and its only owner ends here.
        drop(unsafe { start_raw(self.0) });
    }
}

/// # Safety
///
/// `rq` must satisfy the invariants of [`IdleRequest`], and its owner must not use it afterwards.
unsafe fn start_raw<T: Operations>(rq: NonNull<Request<T>>) -> StartedRequest<T> {
    // SAFETY: By the function's requirements the request is valid and not started.
    unsafe { bindings::blk_mq_start_request(rq.cast().as_ptr()) };
    // INVARIANT: It is started now, and has no other owner.
    StartedRequest(rq)
}

/// A request that the driver did not take. When dropped instead of returned, it ends as an
/// [`IdleRequest`] does.
pub(crate) struct Refused<T: Operations> {
    rq: IdleRequest<T>,
    status: Status,
}

impl<T: Operations> Refused<T> {
    /// Gives the request up: the caller sees to it that the block layer ends it with this status.
    pub(super) fn into_status(self) -> bindings::blk_status_t {
        let _rq = ManuallyDrop::new(self.rq);
        self.status.0
    }
}

/// A request in the hands of the driver, which owns it alone.
///
/// When dropped, it is completed with an I/O error, so that `?` and early returns cannot lose it.
///
/// # Invariants
///
/// The request is started and not completed, and this is the only value that names it.
pub(crate) struct StartedRequest<T: Operations>(NonNull<Request<T>>);

// SAFETY: The block layer lets any thread complete a request, and `T::RequestData` is `Send`.
unsafe impl<T: Operations> Send for StartedRequest<T> {}

impl<T: Operations> StartedRequest<T> {
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`Request`] and of [`StartedRequest`].
    pub(super) unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: By the function's requirements.
        Self(rq.cast())
    }

    pub(super) fn into_raw(self) -> NonNull<bindings::request> {
        ManuallyDrop::new(self).0.cast()
    }

    /// Completes the request with `result`: the number of bytes done, or an error.
    ///
    /// [`Operations::complete`] decides what that means.
    pub(crate) fn complete(self, result: Result<u32>) {
        self.pdu().set_result(result);
        let rq = ManuallyDrop::new(self);
        // SAFETY: The request is started, and its only owner was consumed.
        unsafe { complete_raw(&rq) };
    }

    /// Splits the ownership in two, for an operation that one side submits and another completes:
    /// the request is completed when both are gone.
    pub(crate) fn into_in_flight(self) -> (InFlight<T>, InFlight<T>) {
        self.pdu().owners.store(2, Relaxed);
        self.pdu().set_result(Err(EIO));
        let rq = self.into_raw().cast();
        // INVARIANT: `owners` counts the two, and `self` is consumed.
        (InFlight(rq), InFlight(rq))
    }

    /// Joins the two owners again, of whom neither will complete the request.
    ///
    /// # Safety
    ///
    /// Both must come from the same call of [`into_in_flight`](Self::into_in_flight).
    pub(crate) unsafe fn rejoin(one: InFlight<T>, other: InFlight<T>) -> Self {
        let _other = ManuallyDrop::new(other);
        // INVARIANT: By the function's requirements there was no third owner.
        Self(ManuallyDrop::new(one).0)
    }

    /// Takes note that the first `bytes` bytes are done; the rest is left.
    ///
    /// `bytes` must be less than [`len`](Request::len) and a multiple of the logical block size, else
    /// nothing is done.
    pub(crate) fn advance(&mut self, bytes: u32) {
        if bytes < self.len() && bytes == self.whole_blocks(bytes) {
            // SAFETY: By the type invariant the request is ours, and it is longer than `bytes`, so
            // that something is left of it.
            unsafe { bindings::blk_update_request(self.raw(), ffi::BLK_STS_OK, bytes) };
        }
    }
}

impl<T: Operations> Drop for StartedRequest<T> {
    fn drop(&mut self) {
        self.pdu().set_result(Err(EIO));
        // SAFETY: The request is started, and its only owner ends here.
        unsafe { complete_raw(self) };
    }
}

impl<T: Operations> Pdu<T> {
    fn set_result(&self, result: Result<u32>) {
        let raw = match result {
            Ok(bytes) => i64::from(bytes),
            Err(error) => i64::from(error.to_errno()),
        };
        self.result.store(raw, Relaxed);
    }

    fn result(&self) -> Result<u32> {
        let raw = self.result.load(Relaxed);
        // `set_result` stores nothing outside these two ranges.
        match u32::try_from(raw) {
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(i32::try_from(raw).map_or(EIO, Error::from_errno)),
        }
    }
}

/// Hands a request to the completion side of the block layer.
///
/// # Safety
///
/// `rq` must be started and not completed, and nobody may use it afterwards.
unsafe fn complete_raw<T: Operations>(rq: &Request<T>) {
    #[cfg(CONFIG_FAIL_IO_TIMEOUT)]
    // SAFETY: The queue of a request is valid.
    if unsafe { ffi::rnull_loop_should_fake_timeout(rq.queue()) } {
        return;
    }
    // SAFETY: By the function's requirements.
    if !unsafe { bindings::blk_mq_complete_request_remote(rq.raw()) } {
        // SAFETY: The block layer has nothing against its being completed here, at once.
        unsafe { complete_here::<T>(NonNull::from(rq).cast()) };
    }
}

/// # Safety
///
/// `rq` must have been given to `blk_mq_complete_request_remote()` by its last owner.
pub(super) unsafe fn complete_here<T: Operations>(rq: NonNull<bindings::request>) {
    // SAFETY: By the function's requirements it is started, completed, and has no owner.
    let rq = unsafe { CompletedRequest::<T>::from_raw(rq) };
    let result = rq.pdu().result();
    T::complete(rq, result);
}

/// One of the two owners of a request whose operation is under way.
///
/// # Invariants
///
/// The request is started and not completed; `owners` in its PDU counts the values of this type
/// that name it, and no [`StartedRequest`] does.
#[must_use = "the request is completed when both owners are gone"]
pub(crate) struct InFlight<T: Operations>(NonNull<Request<T>>);

// SAFETY: The block layer lets any thread complete a request, and `T::RequestData` is `Send + Sync`.
unsafe impl<T: Operations> Send for InFlight<T> {}

impl<T: Operations> InFlight<T> {
    /// Gives up this owner with the outcome of the operation: the number of bytes done, or an
    /// error.
    ///
    /// The owner that learns the outcome calls this; the other one is just dropped.
    pub(crate) fn complete(self, result: Result<u32>) {
        self.pdu().set_result(result);
    }

    /// Turns the owner into a pointer to the driver's part of the request, which
    /// [`from_data`](Self::from_data) turns back.
    pub(crate) fn into_data(self) -> *const T::RequestData {
        let this = ManuallyDrop::new(self);
        core::ptr::from_ref(this.data())
    }

    /// Takes back an owner.
    ///
    /// # Safety
    ///
    /// `data` must come from [`into_data`](Self::into_data), which is taken back once.
    pub(crate) unsafe fn from_data(data: *const T::RequestData) -> Self {
        // SAFETY: `into_data` took it from the PDU of a request.
        // INVARIANT: This takes the place of the owner that `into_data` consumed.
        Self(unsafe { Request::<T>::from_data(data) }.cast())
    }
}

impl<T: Operations> Drop for InFlight<T> {
    fn drop(&mut self) {
        // ORDERING: What this owner did to the request happens before what the last one does.
        if self.pdu().owners.fetch_sub(1, Full) == 1 {
            // SAFETY: By the type invariant the request is started, and its last owner ends here.
            unsafe { complete_raw(self) };
        }
    }
}

/// A request whose operation is over.
///
/// When dropped, it ends with an I/O error.
///
/// # Invariants
///
/// The request is started and completed but not ended, and this is the only value that names it.
pub(crate) struct CompletedRequest<T: Operations>(NonNull<Request<T>>);

impl<T: Operations> CompletedRequest<T> {
    /// # Safety
    ///
    /// `rq` must satisfy the invariants of [`Request`] and of [`CompletedRequest`].
    unsafe fn from_raw(rq: NonNull<bindings::request>) -> Self {
        // INVARIANT: By the function's requirements.
        Self(rq.cast())
    }

    /// Ends the request: all of it that is left, with one status.
    pub(crate) fn end(self, status: Status) {
        let rq = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request may be ended, and `self` was consumed.
        unsafe { bindings::blk_mq_end_request(rq.raw(), status.0) };
    }

    /// Sends all of the request round again.
    pub(crate) fn requeue(self) {
        let rq = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is ours, and `self` was consumed.
        unsafe { bindings::blk_mq_requeue_request(rq.raw(), true) };
    }

    /// Sends all of the request round again after `delay`, or sooner along with others. Any
    /// context.
    pub(crate) fn requeue_later(self, delay: Delta) {
        let queue = self.keep_queue();
        let rq = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is ours, and `self` was consumed.
        unsafe { bindings::blk_mq_requeue_request(rq.raw(), false) };
        let milliseconds = delay.as_millis_ceil().max(0) as c_ulong;
        // SAFETY: The queue stays for `queue`, whatever has become of the request; and what was set
        // off here is over before it goes, which is after it was frozen.
        unsafe { bindings::blk_mq_delay_kick_requeue_list(queue.queue, milliseconds) };
    }

    /// Takes note that the first `bytes` bytes are done, and sends the rest round again.
    ///
    /// `bytes` must be less than [`len`](Request::len) and a multiple of the logical block size;
    /// anything else ends the request with an I/O error.
    pub(crate) fn requeue_rest(self, bytes: u32) {
        if bytes >= self.len() || bytes != self.whole_blocks(bytes) {
            return;
        }
        let rq = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is ours, and it is longer than `bytes`, so that
        // something is left of it.
        unsafe { bindings::blk_update_request(rq.raw(), ffi::BLK_STS_OK, bytes) };
        // SAFETY: As above; `self` was consumed.
        unsafe { bindings::blk_mq_requeue_request(rq.raw(), true) };
    }

    /// Keeps the block layer from logging that the request fails: `RQF_QUIET`.
    pub(crate) fn set_quiet(&mut self) {
        // SAFETY: By the type invariant the request is ours, and so are its flags.
        unsafe { (*self.raw()).rq_flags |= ffi::RQF_QUIET };
    }

    /// Fills the memory of a read with zeroes.
    pub(crate) fn zero_fill(&mut self) {
        // SAFETY: By the type invariant the request and its bios are ours.
        unsafe { ffi::rnull_loop_rq_zero_fill(self.raw()) };
    }
}

impl<T: Operations> Drop for CompletedRequest<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the request may be ended, and `self`, which names it alone,
        // ends here.
        unsafe { bindings::blk_mq_end_request(self.raw(), Status::IOERR.0) };
    }
}

macro_rules! deref_to_request {
    ($($state:ident),*) => {$(
        impl<T: Operations> Deref for $state<T> {
            type Target = Request<T>;

            fn deref(&self) -> &Request<T> {
                // SAFETY: By the type invariant the request is valid for as long as `self` is, and
                // it satisfies the invariants of `Request`.
                unsafe { self.0.as_ref() }
            }
        }
    )*};
}

deref_to_request!(IdleRequest, StartedRequest, InFlight, CompletedRequest);
