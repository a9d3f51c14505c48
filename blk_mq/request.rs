// SPDX-License-Identifier: GPL-2.0

//! Requests whose state is their type, and the trait of the driver that serves them.
//!
//! ```text
//! IdleRequest ── refuse() ──> Refused                     the block layer ends it
//!     │ start()
//!     v                    end(status)
//! StartedRequest ────────────────────────> ended          one owner
//!     │      ^    ├─ requeue_later(): idle again
//!     │      │    └─ end_without_bios(): ended, and its bios may be submitted again
//!     │      │ Operations::operation_done()
//!     v      │
//! InFlight, InFlight                                      the starter and the operation
//! ```
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    bio_list::BioList,
    queue::QueueContext,
    submitter::Submitter,
    trace, //
};
use crate::kern::{
    compat,
    ffi, //
};
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

/// The status with which a request ends: `blk_status_t`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(bindings::blk_status_t);

impl Status {
    /// Success.
    pub(crate) const OK: Self = Self(ffi::BLK_STS_OK);
    /// An I/O error.
    pub(crate) const IOERR: Self = Self(ffi::BLK_STS_IOERR);
}

impl From<Error> for Status {
    /// Returns the status of an error that submitters can distinguish (`ENOSPC`, `EOPNOTSUPP`,
    /// ...), or else an I/O error, as `errno_to_blk_status()` does.
    ///
    /// A status by which the block layer, device-mapper or zoned devices mean something else than
    /// a failed request becomes an I/O error, too.
    fn from(error: Error) -> Self {
        // SAFETY: The function reads a table and accepts any number.
        match unsafe { bindings::errno_to_blk_status(error.to_errno()) } {
            ffi::BLK_STS_RESOURCE
            | ffi::BLK_STS_DEV_RESOURCE
            | ffi::BLK_STS_AGAIN
            | ffi::BLK_STS_DM_REQUEUE
            | ffi::BLK_STS_ZONE_OPEN_RESOURCE
            | ffi::BLK_STS_ZONE_ACTIVE_RESOURCE => Self::IOERR,
            status => Self(status),
        }
    }
}

/// The operation of a request: `enum req_op`, as far as request-based disks of files need it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Transfers data from the device to memory.
    Read,
    /// Transfers data from memory to the device.
    Write,
    /// Makes all writes durable that were acknowledged before.
    Flush,
    /// Frees a range.
    Discard,
    /// Zeroes a range.
    WriteZeroes,
    /// Any other operation.
    Other,
}

impl Op {
    fn from_flags(flags: bindings::blk_opf_t) -> Self {
        match flags & ffi::REQ_OP_MASK {
            bindings::req_op_REQ_OP_READ => Self::Read,
            bindings::req_op_REQ_OP_WRITE => Self::Write,
            bindings::req_op_REQ_OP_FLUSH => Self::Flush,
            bindings::req_op_REQ_OP_DISCARD => Self::Discard,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Self::WriteZeroes,
            _ => Self::Other,
        }
    }

    /// Returns whether the operation changes the content of the device: `op_is_write()`, except
    /// that a flush, which carries no data, does not count.
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }
}

/// The operations of a driver on its requests; implemented by the type of the device that requests
/// are for.
///
/// Mirrors `struct blk_mq_ops`.
pub(crate) trait Operations: Send + Sync + Sized + 'static {
    /// The driver's part of each request (the PDU). Made once for each tag, not for each request:
    /// a request that is not [requeued](IdleRequest::is_requeued) finds what the last one has left.
    /// It owns nothing while a request is requeued, because a requeued request may, hardly ever,
    /// not be recognized.
    type RequestData: Send + Sync;

    /// The backend from which requests are served; see [`StartedRequest::backend`].
    type Backend: Send + Sync;

    /// Makes the driver's part of a request. May sleep.
    fn new_request_data() -> impl PinInit<Self::RequestData>;

    /// Takes a request: `->queue_rq`, and for each of several `->queue_rqs`.
    ///
    /// `device` outlives the call, even if the request ends before it returns. Called in the
    /// context of any submitter, which `submitter` describes, with the tag set's SRCU read lock
    /// held. May sleep, but must not wait for anything that needs requests of this queue to be
    /// dispatched. The block layer ends a refused request.
    ///
    /// # Examples
    ///
    /// A device that can only be flushed:
    ///
    /// ```ignore
    /// let rq = rq.start().map_err(|rq| rq.refuse(Status::IOERR))?;
    /// match rq.op() {
    ///     Op::Flush => rq.end(Status::OK),
    ///     _ => rq.end(Status::from(EOPNOTSUPP)),
    /// }
    /// Ok(())
    /// ```
    fn queue_rq(
        device: &Arc<Self>,
        rq: IdleRequest<Self>,
        submitter: Pin<&Submitter>,
    ) -> Result<(), Refused<Self>>;

    /// Takes a request back whose operation is over: the driver ends it, requeues it, or begins
    /// another operation. It must not just drop the request, because that calls this again.
    ///
    /// `result` is the number of bytes done, or an error. Any context, including hard IRQ.
    fn operation_done(rq: StartedRequest<Self>, result: Result<u32>);
}

/// The `queuedata` of a queue whose requests `T` serves.
pub(super) type Context<T> = QueueContext<T, <T as Operations>::Backend>;

/// The memory behind each `struct request` of a [`TagSet`](super::TagSet).
#[pin_data]
pub(super) struct Pdu<T: Operations> {
    /// The number of [`InFlight`] that name the request.
    owners: Atomic<u32>,
    /// The result of the operation in flight: the number of bytes done, or a negative errno. Of a
    /// completed request, the status instead.
    result: Atomic<i64>,
    /// The next request of a [`RequestList`](super::RequestList). Used by the list that owns the
    /// request.
    pub(super) next: UnsafeCell<*mut bindings::request>,
    /// The driver's part.
    #[pin]
    data: T::RequestData,
}

// SAFETY: `data` is `Send + Sync`, the atomics are `Sync`, and only the one owner of the request
// uses `next`.
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

/// A request of a driver `T`, in any state.
///
/// # Invariants
///
/// A reference to a `Request<T>` points at a request that was set up for a tag set made by
/// [`TagSet<T>`](super::TagSet) (its own, a scheduler's, or a queue's flush request), dispatched,
/// and not ended, on a queue made by [`Disk`](super::Disk); so its PDU is an initialized `Pdu<T>`.
/// Until the request ends there is a reference to the queue's usage counter: its own or, for a
/// flush request, that of the request that it was made for.
#[repr(transparent)]
pub(crate) struct Request<T: Operations>(Opaque<bindings::request>, PhantomData<T>);

impl<T: Operations> Request<T> {
    fn raw(&self) -> *mut bindings::request {
        self.0.get()
    }

    /// Returns the request of a PDU: `blk_mq_rq_from_pdu()`.
    ///
    /// # Safety
    ///
    /// `pdu` must be the PDU of a request.
    unsafe fn raw_from_pdu(pdu: *mut Pdu<T>) -> NonNull<bindings::request> {
        // SAFETY: A PDU directly follows its request (`blk_mq_rq_to_pdu()`), so stepping back by
        // one request stays inside the allocation, and the result is not null.
        unsafe { NonNull::new_unchecked(pdu.cast::<bindings::request>().sub(1)) }
    }

    /// Returns the request of a driver's part.
    ///
    /// # Safety
    ///
    /// `data` must be the field `data` of the PDU of a request.
    unsafe fn from_data(data: *const T::RequestData) -> NonNull<bindings::request> {
        // SAFETY: By the function's requirements `data` is that field of a `Pdu<T>`.
        let pdu = unsafe { kernel::container_of!(data.cast_mut(), Pdu<T>, data) };
        // SAFETY: By the function's requirements `pdu` is the PDU of a request.
        unsafe { Self::raw_from_pdu(pdu) }
    }

    /// Returns the PDU of a request, which directly follows it: `blk_mq_rq_to_pdu()`.
    fn raw_pdu(rq: NonNull<Self>) -> *mut Pdu<T> {
        rq.as_ptr().wrapping_add(1).cast()
    }

    pub(super) fn pdu(&self) -> &Pdu<T> {
        // SAFETY: By the type invariant the PDU is an initialized `Pdu<T>`. It is dropped only with
        // its tag set, scheduler or queue, which outlive all requests in flight.
        unsafe { &*Self::raw_pdu(NonNull::from(self)) }
    }

    fn context(&self) -> &Context<T> {
        // SAFETY: By the type invariant the request belongs to a queue made by `Disk`, whose
        // `queuedata` is a `Context<T>` for as long as there are requests.
        unsafe { &*(*self.queue()).queuedata.cast::<Context<T>>() }
    }

    fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type invariant the request is valid; `q` does not change.
        unsafe { (*self.raw()).q }
    }

    fn cmd_flags(&self) -> bindings::blk_opf_t {
        // SAFETY: By the type invariant the request is valid. While a driver has it, its flags are
        // changed only by `blk_update_request()`, whose caller owns the request.
        unsafe { (*self.raw()).cmd_flags }
    }

    /// Returns the operation of the request: `req_op()`.
    pub(crate) fn op(&self) -> Op {
        Op::from_flags(self.cmd_flags())
    }

    /// Returns whether a write must be durable when it ends: `REQ_FUA`.
    pub(crate) fn is_fua(&self) -> bool {
        self.cmd_flags() & ffi::REQ_FUA != 0
    }

    /// Returns whether a write is done in whole or not at all, even after a power cut:
    /// `REQ_ATOMIC`. Each bio of such a request is an atomic write of its own.
    pub(crate) fn is_atomic(&self) -> bool {
        self.cmd_flags() & ffi::REQ_ATOMIC != 0
    }

    /// Returns whether the request is swap I/O: `REQ_SWAP`.
    pub(crate) fn is_swap(&self) -> bool {
        self.cmd_flags() & ffi::REQ_SWAP != 0
    }

    /// Returns whether a [`Op::WriteZeroes`] must keep its blocks allocated: `REQ_NOUNMAP`.
    pub(crate) fn is_nounmap(&self) -> bool {
        self.cmd_flags() & ffi::REQ_NOUNMAP != 0
    }

    /// Returns the CPU that the request was made on: `blk_mq_rq_cpu()`.
    pub(crate) fn cpu(&self) -> usize {
        // SAFETY: By the type invariant the request was dispatched, so it has a software queue.
        unsafe { bindings::blk_mq_rq_cpu(self.raw()) as usize }
    }

    /// Takes a reference to the usage counter of the queue, which keeps the queue and all that
    /// belongs to it after the request has ended. Any context, including hard IRQ.
    pub(crate) fn get_queue(&self) -> QueueRef<T> {
        // SAFETY: By the type invariant there is a reference to the queue's usage counter, so
        // another one may be taken.
        unsafe { ffi::rnull_loop_queue_get(self.queue()) };
        // INVARIANT: Taken above.
        QueueRef {
            queue: self.queue(),
            _driver: PhantomData,
            _not_send: NotThreadSafe,
        }
    }

    /// Returns the position of the request on the device, in bytes: `blk_rq_pos()`. Meaningless for
    /// [`Op::Flush`].
    pub(crate) fn position(&self) -> u64 {
        // SAFETY: By the type invariant the request is valid. While a driver has it, its position
        // is changed only by `blk_update_request()`, whose caller owns the request.
        let sector: u64 = unsafe { (*self.raw()).__sector };
        sector << kernel::block::SECTOR_SHIFT
    }

    /// Returns the length of the request, or of what is left of it, in bytes: `blk_rq_bytes()`.
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: As in `position`.
        unsafe { (*self.raw()).__data_len }
    }

    /// Returns the I/O priority of the request: `req_get_ioprio()`.
    pub(crate) fn ioprio(&self) -> u16 {
        // SAFETY: By the type invariant the request is valid, and so is its bio if it has one: the
        // owner of the request ends its bios, or they end after the request.
        unsafe { (*self.raw()).bio.as_ref() }.map_or(0, |bio| bio.bi_ioprio)
    }

    /// Rounds `bytes` down to whole logical blocks of the disk.
    pub(crate) fn whole_blocks(&self, bytes: u32) -> u32 {
        // SAFETY: By the type invariant the queue is valid. The field is an aligned word. It does
        // not change while a started request is in flight: a change needs a frozen queue, or an
        // empty backend cell.
        let block = unsafe {
            core::ptr::read_volatile(&raw const (*self.queue()).limits.logical_block_size)
        };
        bytes - bytes.checked_rem(block).unwrap_or(bytes)
    }

    /// Returns the device that the request is for.
    pub(crate) fn device(&self) -> &Arc<T> {
        &self.context().device
    }

    /// Returns the name of the disk, such as `loop0`.
    pub(crate) fn disk_name(&self) -> &CStr {
        // SAFETY: By the type invariant the request and its queue are valid; a queue whose requests
        // a driver serves has a disk. This only computes an address inside it.
        let name = unsafe { &raw const (*(*self.queue()).disk).disk_name };
        // SAFETY: The name is NUL-terminated, lives as long as the disk, and does not change.
        unsafe { CStr::from_char_ptr(name.cast()) }
    }

    /// Traces the route of the request.
    pub(crate) fn trace_routed(&self, route: &'static str) {
        // SAFETY: By the type invariant the request is valid. The string is.
        unsafe { trace::request_routed(self.raw(), route.as_ptr(), route.len()) };
    }

    /// Traces that an operation has not done all of the request.
    pub(crate) fn trace_requeued(&self, reason: &'static str) {
        // SAFETY: As in `trace_routed`.
        unsafe { trace::request_requeued(self.raw(), reason.as_ptr(), reason.len()) };
    }

    /// Traces that the first `bytes` bytes of the request are submitted by `method`, to `position`
    /// (in bytes).
    pub(crate) fn trace_submitted(&self, method: &'static str, position: u64, bytes: u32) {
        let (word, len) = (method.as_ptr(), method.len());
        // SAFETY: As in `trace_routed`.
        unsafe { trace::request_submitted(self.raw(), word, len, position, bytes) };
    }

    /// Returns the raw request, for the abstractions that read its bios.
    pub(crate) fn as_ptr(&self) -> *mut bindings::request {
        self.raw()
    }

    /// Returns the driver's part of the request.
    pub(crate) fn data(&self) -> &T::RequestData {
        &self.pdu().data
    }

    /// Disables discards of the queue until the next change of its limits:
    /// `blk_queue_disable_discard()`.
    ///
    /// Takes no lock, so a concurrent change of the limits may enable discards again, see
    /// `blk_mq/limits.rs`. Then the next discard fails, and the driver disables them again. Any
    /// context.
    pub(crate) fn disable_discard(&self) {
        // SAFETY: By the type invariant the queue is valid.
        unsafe { ffi::rnull_loop_disable_discard(self.queue()) };
    }

    /// Disables writes of zeroes, as [`disable_discard`](Self::disable_discard) does for discards:
    /// `blk_queue_disable_write_zeroes()`. A change of the limits that begins later keeps them
    /// disabled, unless it sets their length.
    ///
    /// Called before the failed request ends, because `blkdev_issue_write_zeroes()` then reads the
    /// limit to tell why the request has failed.
    pub(crate) fn disable_write_zeroes(&self) {
        // SAFETY: By the type invariant the queue is valid.
        unsafe { ffi::rnull_loop_disable_write_zeroes(self.queue()) };
    }

    /// Queues work that calls [`DiskOperations::revalidate`](super::DiskOperations::revalidate).
    /// Any context, including hard IRQ.
    pub(crate) fn queue_revalidation(&self) {
        self.context().revalidation.queue();
    }
}

/// A reference to the usage counter of a queue. Until it is dropped, the queue is neither frozen
/// nor taken down.
///
/// # Invariants
///
/// `queue` was made by [`Disk`](super::Disk) for requests of `T`, and this value holds a reference
/// to its usage counter.
pub(crate) struct QueueRef<T: Operations> {
    queue: *mut bindings::request_queue,
    _driver: PhantomData<T>,
    // Freezing the queue waits for this reference, so it must not be kept for long.
    _not_send: NotThreadSafe,
}

impl<T: Operations> QueueRef<T> {
    /// Returns the device that requests of the queue are for.
    pub(crate) fn device(&self) -> &Arc<T> {
        // SAFETY: By the type invariant `queuedata` is a `Context<T>`, which stays with the queue.
        unsafe { &(*(*self.queue).queuedata.cast::<Context<T>>()).device }
    }
}

impl<T: Operations> Drop for QueueRef<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this value holds the reference.
        unsafe { ffi::rnull_loop_queue_put(self.queue) };
    }
}

/// A request that was dispatched to the driver and is not started.
///
/// When dropped, it ends with an I/O error.
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

    /// Returns whether the request was [requeued](StartedRequest::requeue_later): `RQF_DONTPREP`.
    pub(crate) fn is_requeued(&self) -> bool {
        // SAFETY: By the type invariant the request is valid and not started, so that nothing
        // changes its flags.
        unsafe { (*self.raw()).rq_flags & ffi::RQF_DONTPREP != 0 }
    }

    /// Refuses the request: the block layer ends it with `status`.
    pub(crate) fn refuse(self, status: Status) -> Refused<T> {
        Refused { rq: self, status }
    }

    /// Starts the request: from here on its timeout runs, and the driver must end it. Returns the
    /// request as it was if the queue has no backend.
    ///
    /// The backend stays until the request ends: taking it away needs a
    /// [`FrozenQueue`](super::FrozenQueue), or a queue without requests.
    pub(crate) fn start(self) -> Result<StartedRequest<T>, Self> {
        // SAFETY: The request lives as long as this reference. Without a scheduler, it got its tag
        // before the tag set's SRCU read lock was taken, under which it is dispatched. With one, it
        // gets the tag under that lock, but then a queue is never seen without requests, and it is
        // not frozen while it has this one.
        if unsafe { self.context().backend.get() }.is_none() {
            return Err(self);
        }
        let rq = ManuallyDrop::new(self).0;
        // SAFETY: By the type invariant the request is not started, and `self` was consumed.
        unsafe { bindings::blk_mq_start_request(rq.cast().as_ptr()) };
        // INVARIANT: It is started now, it has no other owner, and the backend is present.
        Ok(StartedRequest(rq))
    }

    /// Ends the request without an operation.
    pub(crate) fn end(self, status: Status) {
        let rq = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is not started, and `self` was consumed.
        unsafe { start_and_complete(&rq, status) };
    }
}

impl<T: Operations> Drop for IdleRequest<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the request is not started, and its only owner ends here.
        unsafe { start_and_complete(self, Status::IOERR) };
    }
}

/// # Safety
///
/// `rq` must not be started, and its owner must not use it afterwards.
unsafe fn start_and_complete<T: Operations>(rq: &Request<T>, status: Status) {
    // SAFETY: By the function's requirements the request is not started.
    unsafe { bindings::blk_mq_start_request(rq.raw()) };
    // SAFETY: It is started now, and its owner does not use it afterwards.
    unsafe { complete_raw(rq, status) };
}

/// A request that the driver did not take. When dropped instead of returned, it ends as an
/// [`IdleRequest`] does.
pub(crate) struct Refused<T: Operations> {
    rq: IdleRequest<T>,
    status: Status,
}

impl<T: Operations> Refused<T> {
    /// Gives the request up: the caller has the block layer end it with the returned status.
    pub(super) fn into_status(self) -> bindings::blk_status_t {
        let _rq = ManuallyDrop::new(self.rq);
        self.status.0
    }
}

/// A request that the driver owns and serves.
///
/// When dropped, its operation is over with `EIO`, so that `?` and early returns cannot lose it.
///
/// # Invariants
///
/// The request is started and not completed, the backend of its queue has been present since it was
/// dispatched, and this is the only value that names the request.
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

    /// Returns the backend that the request is served from. Takes no lock, because the backend
    /// changes only while no request is in flight.
    pub(crate) fn backend(&self) -> &T::Backend {
        // SAFETY: By the type invariant the request is in flight and `get` has returned a value for
        // it since it was dispatched; the reference does not outlive `self`.
        unsafe { self.context().backend.get_present() }
    }

    /// Returns the driver's part of the request, to change it.
    pub(crate) fn data_mut(&mut self) -> Pin<&mut T::RequestData> {
        // SAFETY: By the type invariant the PDU is initialized. No other value names the request,
        // so nothing else has a reference to the field while `self` is borrowed.
        let data = unsafe { &mut (*Request::raw_pdu(self.0)).data };
        // SAFETY: A PDU never moves.
        unsafe { Pin::new_unchecked(data) }
    }

    /// Ends the request, all of it that is left, with `status`. Any context, including hard IRQ.
    pub(crate) fn end(self, status: Status) {
        let rq = ManuallyDrop::new(self);
        // SAFETY: By the type invariant the request is started, and its only owner was consumed.
        unsafe { complete_raw(&rq, status) };
    }

    /// Reports that the operation of the request is over: calls [`Operations::operation_done`].
    ///
    /// `result` is the number of bytes done, or an error.
    pub(crate) fn operation_done(self, result: Result<u32>) {
        T::operation_done(self, result);
    }

    /// Requeues the request: it is dispatched again after `delay`, or sooner along with others. Any
    /// context, including hard IRQ.
    pub(crate) fn requeue_later(self, delay: Delta) {
        let queue = self.get_queue();
        let rq = ManuallyDrop::new(self);
        // Keeps what the driver has noted of the request, and the block layer from merging other
        // bios into it, which would inherit that.
        // SAFETY: By the type invariant the request is started, and its only owner was consumed, so
        // this may change the flags. If the timeout handler changes them at the same time, one of
        // the changes may be lost: then the driver does not recognize the request, or the timer
        // runs once more.
        unsafe { (*rq.raw()).rq_flags |= ffi::RQF_DONTPREP };
        // SAFETY: By the type invariant the request is started, and its only owner was consumed.
        unsafe { bindings::blk_mq_requeue_request(rq.raw(), false) };
        let milliseconds = compat::as_millis_ceil(delay).max(0) as c_ulong;
        // SAFETY: `queue` keeps the queue, even if the request has ended. Before the queue goes, it
        // is frozen, for which its requeue list must be empty.
        unsafe { bindings::blk_mq_delay_kick_requeue_list(queue.queue, milliseconds) };
    }

    /// Ends the request, and adds its bios, as far as they are not done, to the end of `bios`:
    /// `blk_steal_bios()`. Any context, including hard IRQ.
    ///
    /// Its tag is free then, and it does not count for a task that freezes the queue. A flush that
    /// the block layer has for the request is not lost: each bio keeps `REQ_PREFLUSH` and
    /// `REQ_FUA`, so that the block layer flushes anew when it is submitted again. `status` must be
    /// an error, which no submitter gets, but by which the block layer does not flush now: no bio
    /// would get the result of that flush, which may be the only report of a lost write.
    pub(crate) fn end_without_bios(self, bios: &mut BioList, status: Status) {
        // `blk_steal_bios()` is documented for requests without a part that is done. Bios that are
        // done have ended, and are not bios of the request any more. One that is done in part has
        // been advanced, as if its beginning had been split off, and its rest is submitted.
        // SAFETY: By the type invariant the request is started, and `self` is its only owner, so
        // nothing else uses its bios. They have not ended, and belong to the list from here on.
        unsafe { bindings::blk_steal_bios(bios.as_mut_ptr(), self.raw()) };
        self.end(status);
    }

    /// Splits the ownership in two, for an operation that one side submits and another completes.
    ///
    /// When both owners are gone, [`Operations::operation_done`] is called, with the result that
    /// one of them has [given](InFlight::finish), or else with `result`.
    ///
    /// # Examples
    ///
    /// ```ignore
    /// let (starter, completer) = rq.into_in_flight(Err(EIO));
    /// // The operation owns `completer`. It calls `done` once, in any context.
    /// start_operation(starter.backend(), completer.into_data(), done::<T>);
    /// // The backend stays until here, even if the operation is over.
    /// drop(starter);
    ///
    /// unsafe fn done<T: Operations>(data: *const T::RequestData, result: Result<u32>) {
    ///     // SAFETY: `data` comes from `into_data`, and this is called once for it.
    ///     unsafe { InFlight::<T>::from_data(data) }.finish(result);
    /// }
    /// ```
    pub(crate) fn into_in_flight(self, result: Result<u32>) -> (InFlight<T>, InFlight<T>) {
        self.pdu().owners.store(2, Relaxed);
        self.pdu().set_result(result);
        let rq = self.into_raw().cast();
        // INVARIANT: `owners` counts the two, and `self` is consumed.
        (InFlight(rq), InFlight(rq))
    }

    /// Joins the two owners again, neither of which will learn a result.
    ///
    /// # Safety
    ///
    /// Both must come from the same call of [`into_in_flight`](Self::into_in_flight).
    pub(crate) unsafe fn rejoin(one: InFlight<T>, other: InFlight<T>) -> Self {
        let _other = ManuallyDrop::new(other);
        // INVARIANT: By the function's requirements there was no third owner.
        Self(ManuallyDrop::new(one).0)
    }

    /// Ends the first `bytes` bytes of the request with success: `blk_update_request()`. Any
    /// context, including hard IRQ.
    ///
    /// Fails with `EINVAL`, and does nothing, unless `bytes` is less than [`len`](Request::len) and
    /// a multiple of the logical block size.
    pub(crate) fn advance(&mut self, bytes: u32) -> Result {
        if bytes >= self.len() || bytes != self.whole_blocks(bytes) {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariant the request is started, and `self` is its only owner. It is
        // longer than `bytes`, so a part of it is left, and it does not end.
        unsafe { bindings::blk_update_request(self.raw(), ffi::BLK_STS_OK, bytes) };
        Ok(())
    }

    /// Keeps the block layer from logging that the request fails: `RQF_QUIET`.
    pub(crate) fn set_quiet(&mut self) {
        // SAFETY: By the type invariant the request is started, and `self` is its only owner, so it
        // may change the flags. The timeout handler of the block layer may do so at the same time,
        // and one of the changes may be lost: then a failure is logged, or the timer runs once
        // more.
        unsafe { (*self.raw()).rq_flags |= ffi::RQF_QUIET };
    }

    /// Fills the memory of a read with zeroes: `zero_fill_bio()`. Any context.
    pub(crate) fn zero_fill(&mut self) {
        // SAFETY: By the type invariant the request is started, and `self` is its only owner, so it
        // may write the memory of the bios.
        unsafe { ffi::rnull_loop_rq_zero_fill(self.raw()) };
    }
}

impl<T: Operations> Drop for StartedRequest<T> {
    fn drop(&mut self) {
        // INVARIANT: The new value takes the place of this one.
        T::operation_done(Self(self.0), Err(EIO));
    }
}

/// Completes a request, which ends it on this CPU.
///
/// `blk_mq_complete_request()` would end the requests of a disk with one hardware context in a
/// softirq, for which a task has to wake ksoftirqd. That is done here only within the ends of many
/// other requests: each device of a stack ends a request within the end of one of the device below.
///
/// # Safety
///
/// `rq` must be started and not completed, and its owner must not use it afterwards.
unsafe fn complete_raw<T: Operations>(rq: &Request<T>, status: Status) {
    // SAFETY: By the function's requirements the request is valid.
    unsafe { trace::request_completed(rq.raw(), status.0) };
    #[cfg(CONFIG_FAIL_IO_TIMEOUT)]
    // SAFETY: By the invariants of `Request` the queue is valid.
    if unsafe { ffi::rnull_loop_should_fake_timeout(rq.queue()) } {
        return;
    }
    rq.pdu().result.store(status.0.into(), Relaxed);
    // SAFETY: By the function's requirements the request is started and not completed, and its
    // owner does not use it afterwards.
    unsafe { ffi::rnull_loop_complete_request(rq.raw()) };
}

/// Ends a completed request: `->complete`. Any context, including hard IRQ.
///
/// # Safety
///
/// `rq` must have been passed to `rnull_loop_complete_request()` by [`complete_raw`], and is ended
/// once.
pub(super) unsafe fn end_completed<T: Operations>(rq: NonNull<bindings::request>) {
    // SAFETY: By the function's requirements the request is valid until the call below.
    let status = unsafe { rq.cast::<Request<T>>().as_ref() }
        .pdu()
        .result
        .load(Relaxed);
    // CAST: `complete_raw` stored a `blk_status_t`.
    let status = status as bindings::blk_status_t;
    // SAFETY: By the function's requirements the request may be ended.
    unsafe { bindings::blk_mq_end_request(rq.as_ptr(), status) };
}

/// One of the two owners of a request whose operation is in flight; see the example of
/// [`StartedRequest::into_in_flight`].
///
/// # Invariants
///
/// The request is started and not completed, and the backend of its queue has been present since it
/// was dispatched. `owners` in its PDU counts the values of this type that name it, and no
/// [`StartedRequest`] does.
#[must_use = "the operation is over when both owners are gone"]
pub(crate) struct InFlight<T: Operations>(NonNull<Request<T>>);

// SAFETY: The block layer lets any thread complete a request, and `T::RequestData` is `Send +
// Sync`.
unsafe impl<T: Operations> Send for InFlight<T> {}

impl<T: Operations> InFlight<T> {
    /// Returns the backend, as [`StartedRequest::backend`] does.
    pub(crate) fn backend(&self) -> &T::Backend {
        // SAFETY: As in `StartedRequest::backend`.
        unsafe { self.context().backend.get_present() }
    }

    /// Gives up this owner with the result of the operation: the number of bytes done, or an error.
    ///
    /// The owner that learns the result calls this. The other one is just dropped, and so may be
    /// this one if the result is that of [`StartedRequest::into_in_flight`].
    pub(crate) fn finish(self, result: Result<u32>) {
        self.pdu().set_result(result);
    }

    /// Turns the owner into a pointer to the driver's part of the request, which
    /// [`from_data`](Self::from_data) turns back.
    pub(crate) fn into_data(self) -> *const T::RequestData {
        let pdu = Request::raw_pdu(ManuallyDrop::new(self).0);
        // SAFETY: The PDU of a request is valid; this only computes an address inside it.
        unsafe { &raw const (*pdu).data }
    }

    /// Takes back an owner.
    ///
    /// # Safety
    ///
    /// `data` must come from [`into_data`](Self::into_data), and is taken back once.
    pub(crate) unsafe fn from_data(data: *const T::RequestData) -> Self {
        // SAFETY: By the function's requirements `data` is the driver's part of a request.
        // INVARIANT: This takes the place of the owner that `into_data` consumed.
        Self(unsafe { Request::<T>::from_data(data) }.cast())
    }
}

impl<T: Operations> Drop for InFlight<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the PDU is valid. Other owners access this field by shared
        // references alone.
        let owners = unsafe { &(*Request::raw_pdu(self.0)).owners };
        // ORDERING: What this owner did to the request happens before what the last one does.
        if owners.fetch_sub(1, Full) == 1 {
            let result = self.pdu().result();
            // INVARIANT: By the type invariant the request is started, and its last owner ends
            // here.
            T::operation_done(StartedRequest(self.0), result);
        }
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

deref_to_request!(IdleRequest, StartedRequest, InFlight);
