// SPDX-License-Identifier: GPL-2.0

//! Requests of the block layer that are served from files.
//!
//! A driver whose requests carry a [`FileIoPdu`] passes a started request to [`submit`], for
//! asynchronous I/O to a file, or to [`remap`], which submits it to a lower device as a bio. When
//! the operation is over, [`Operations::operation_done`] gets the request back, with the number of
//! bytes done or an error.
//!
//! # Examples
//!
//! A read, served by a worker in an [`IoWorkerScope`](crate::kern::task::IoWorkerScope):
//!
//! ```ignore
//! let (position, bytes) = (rq.position(), rq.len());
//! request::submit(rq, position, bytes, Caching::Direct, Wait::Allowed);
//!
//! // In the `impl Operations` of the driver:
//! fn operation_done(mut rq: StartedRequest<Self>, result: Result<u32>) {
//!     request::free_bvecs(&mut rq);
//!     match result {
//!         Ok(bytes) if bytes == rq.len() => rq.end(Status::OK),
//!         Ok(_) => rq.end(Status::IOERR),
//!         Err(error) => rq.end(Status::from(error)),
//!     }
//! }
//! ```

use super::{
    Caching,
    Completion,
    Direction,
    Iocb,
    Submitted,
    Transfer,
    Wait, //
};
use crate::{
    blk_mq::{
        Bio,
        BioCompletion,
        InFlight,
        Op,
        Operations,
        StartedRequest, //
    },
    kern::{
        bdev::BlockDevice,
        bvec::BvecSpan,
        compat,
        ffi, //
    },
};
use core::mem::ManuallyDrop;
use kernel::{
    bindings,
    fs::File,
    pr_err_once,
    prelude::*,
    types::Opaque, //
};

/// The operation of a request: a `struct kiocb` or a `struct bio`, each at the beginning.
#[repr(C)]
union Operation {
    _iocb: ManuallyDrop<Iocb>,
    _bio: ManuallyDrop<Bio>,
}

/// The PDU of drivers that use [`submit`] and [`remap`]: the memory of the operation, and the
/// driver's own part `D`.
#[repr(C)]
pub(crate) struct FileIoPdu<D> {
    // The first field, so that a pointer to it is one to the PDU.
    operation: Opaque<Operation>,
    /// The bio_vecs of a request that was merged from several bios.
    bvecs: KVec<bindings::bio_vec>,
    driver: D,
}

// SAFETY: `driver` is `Send`. The operation and the bio_vecs are bound to no CPU and no task: the
// owner of the request uses them, or the operation that it submitted, which may end in any context.
unsafe impl<D: Send> Send for FileIoPdu<D> {}
// SAFETY: A shared reference gives access to `driver` alone, which is `Sync`.
unsafe impl<D: Sync> Sync for FileIoPdu<D> {}

impl<D> FileIoPdu<D> {
    /// Makes a PDU without an operation, with the driver's part.
    pub(crate) fn new(driver: D) -> impl PinInit<Self> {
        pin_init::init!(Self {
            operation: Opaque::uninit(),
            bvecs: KVec::new(),
            driver,
        })
    }

    /// Returns the driver's part.
    pub(crate) fn driver(&self) -> &D {
        &self.driver
    }

    /// Returns the driver's part, to change it.
    pub(crate) fn driver_mut(self: Pin<&mut Self>) -> &mut D {
        &mut self.fields().driver
    }

    fn fields(self: Pin<&mut Self>) -> &mut Self {
        // SAFETY: `driver_mut` gives access to `driver` alone, and the functions of this file do
        // not move `operation`, the field that must stay in place.
        unsafe { self.get_unchecked_mut() }
    }
}

/// A driver whose requests are served from files.
pub(crate) trait FileBacked: Operations<RequestData = FileIoPdu<Self::Data>> {
    /// The driver's own part of a request.
    type Data: Send + Sync;

    /// Returns the file of a backend. It stays open for as long as the backend exists.
    fn file(backend: &Self::Backend) -> &File;

    /// Returns the block device that the file is, if it is one.
    fn block_device(backend: &Self::Backend) -> Option<&BlockDevice>;

    /// Returns the granularity of a request that is served in parts, in bytes, if it is larger than
    /// a logical block of the disk.
    fn io_granularity(rq: &StartedRequest<Self>) -> Option<u32>;
}

// SAFETY: The `Iocb` is in the PDU, which never moves and outlives the request.
unsafe impl<T: FileBacked> Completion for InFlight<T> {
    fn into_iocb(self) -> *mut Iocb {
        // The operation is the first field of the PDU.
        self.into_data().cast_mut().cast()
    }

    unsafe fn from_iocb(iocb: *mut Iocb) -> Self {
        // SAFETY: By the function's requirements the pointer comes from `into_data`, and is taken
        // back once.
        unsafe { Self::from_data(iocb.cast::<FileIoPdu<T::Data>>()) }
    }

    fn complete(self, result: isize) {
        self.finish(bytes_or_error(result));
    }
}

// SAFETY: As of `Completion`, for the `Bio` in the PDU.
unsafe impl<T: FileBacked> BioCompletion for InFlight<T> {
    fn into_bio(self) -> *mut Bio {
        // The operation is the first field of the PDU.
        self.into_data().cast_mut().cast()
    }

    unsafe fn from_bio(bio: *mut Bio) -> Self {
        // SAFETY: By the function's requirements the pointer comes from `into_data`, and is taken
        // back once.
        unsafe { Self::from_data(bio.cast::<FileIoPdu<T::Data>>()) }
    }

    fn complete(self, result: Result) {
        // `remap` and `flush` have passed the result of a success to `into_in_flight`.
        if let Err(error) = result {
            self.finish(Err(error));
        }
    }
}

/// Returns the number of bytes done, or the error, for the return value of a file operation.
fn bytes_or_error(result: isize) -> Result<u32> {
    match u32::try_from(result) {
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(i32::try_from(result).map_or(EIO, Error::from_errno)),
    }
}

/// Reads or writes the first `bytes` bytes of the data of `rq` at `position` bytes in the file.
///
/// [`Operations::operation_done`] is called once, before or after this returns. The file may do
/// less than all of the request, and so may this function, if there is no memory for an array of
/// its bio_vecs. May sleep; with [`Wait::Forbidden`], the operation itself is non-blocking.
pub(crate) fn submit<T: FileBacked>(
    rq: StartedRequest<T>,
    position: u64,
    bytes: u32,
    caching: Caching,
    wait: Wait,
) {
    if let Start::Done(rq, result) = start(rq, position, bytes, caching, wait) {
        rq.operation_done(result);
    }
}

/// Reads or writes the data of `rq` at `position` bytes in the file through its page cache, and
/// returns the request with the number of bytes done or an error; `None` if a broken file completes
/// the request asynchronously. May sleep.
pub(crate) fn transfer_buffered<T: FileBacked>(
    rq: StartedRequest<T>,
    position: u64,
) -> Option<(StartedRequest<T>, Result<u32>)> {
    let bytes = rq.len();
    match start(rq, position, bytes, Caching::Buffered, Wait::Allowed) {
        // The kiocb has no `ki_complete`, so the file must not return `-EIOCBQUEUED`.
        Start::InFlight => {
            pr_err_once!("a file does not complete synchronous I/O\n");
            None
        }
        Start::Done(rq, result) => Some((rq, result)),
    }
}

/// The state of an operation after [`start`].
enum Start<T: FileBacked> {
    /// It is in flight, or over: `operation_done` is called with its result.
    InFlight,
    /// It is over, or was not started; `operation_done` is not called.
    Done(StartedRequest<T>, Result<u32>),
}

/// Starts to read or write the data of `rq`, see [`submit`].
fn start<T: FileBacked>(
    mut rq: StartedRequest<T>,
    position: u64,
    bytes: u32,
    caching: Caching,
    wait: Wait,
) -> Start<T> {
    let direction = match rq.op() {
        Op::Read => Direction::Read,
        Op::Write => Direction::Write,
        _ => return Start::Done(rq, Err(EINVAL)),
    };
    let Ok(position) = i64::try_from(position) else {
        return Start::Done(rq, Err(EFBIG));
    };
    let span = match map_bvecs(&mut rq) {
        Ok(span) => span.first(bytes),
        Err(error) => return Start::Done(rq, Err(error)),
    };
    let transfer = Transfer {
        direction,
        caching,
        wait,
        durable: direction == Direction::Write && rq.is_fua(),
        position,
        ioprio: rq.ioprio(),
    };
    // This function and the operation each have an owner: the file may use the bio_vecs until it
    // returns, even if the operation is over before that.
    let (starter, completer) = rq.into_in_flight(Err(EIO));
    let file = T::file(starter.backend());
    // SAFETY: The request stays in flight until both owners are gone: `starter` after `submit` has
    // returned, and `completer` when `complete` is called. As long as it is in flight,
    // - the backend stays, and so does its file;
    // - the memory of the request stays, and so do the bio_vecs, which are those of its bios or in
    //   its PDU;
    // - the PDU stays, which has the `Iocb`. `rq` was the only owner, so no other operation is in
    //   flight.
    match unsafe { super::submit(completer, file, transfer, &span) } {
        // Drops `starter`: the last owner calls `operation_done`.
        Submitted::Queued => Start::InFlight,
        Submitted::Done(completer, result) => {
            // SAFETY: Both owners come from the call of `into_in_flight` above.
            let rq = unsafe { StartedRequest::rejoin(starter, completer) };
            Start::Done(rq, bytes_or_error(result))
        }
    }
}

/// Submits the first `bytes` bytes of `rq`, a read or a write, as a bio to the
/// [block device](FileBacked::block_device) of its backend, at `sector` (of 512 bytes).
///
/// [`Operations::operation_done`] is called once, before or after this returns. May sleep; with
/// [`Wait::Forbidden`], neither for tags nor until a frozen queue thaws.
pub(crate) fn remap<T: FileBacked>(mut rq: StartedRequest<T>, sector: u64, bytes: u32, wait: Wait) {
    let bdev = T::block_device(rq.backend()).map(BlockDevice::raw);
    let (Some(bdev), Op::Read | Op::Write) = (bdev, rq.op()) else {
        return rq.operation_done(Err(EINVAL));
    };
    let span = match map_bvecs(&mut rq) {
        Ok(span) => span.first(bytes),
        Err(error) => return rq.operation_done(Err(error)),
    };
    // CAST: A part of a request is no longer than the request.
    let bytes = span.count as u32;
    let nowait = wait == Wait::Forbidden;
    let raw = rq.as_ptr();
    // This function and the bio each have an owner: the block layer uses the block device until
    // `Bio::submit` returns. If the bio were the only owner and ended before that, the backend
    // could be replaced and its file closed: use after free.
    let (starter, completer) = rq.into_in_flight(Ok(bytes));
    // SAFETY: The request stays in flight until both owners are gone: `starter` below, and
    // `completer` when `complete` is called.
    // - The request is a read or a write, and `span` describes memory of it. `rq` was the only
    //   owner, so the `Bio` is not in use.
    // - The file of the backend keeps `bdev` open, and the backend stays while the request is in
    //   flight.
    unsafe { Bio::submit(completer, raw, bdev, sector, &span, nowait) };
    // The last owner calls `operation_done`.
    drop(starter);
}

/// Submits `rq`, a flush, as a bio to the [block device](FileBacked::block_device) of its backend.
///
/// [`Operations::operation_done`] is called once, before or after this returns. Waits neither for
/// tags nor until a frozen queue thaws.
pub(crate) fn flush<T: FileBacked>(rq: StartedRequest<T>) {
    let bdev = T::block_device(rq.backend()).map(BlockDevice::raw);
    let (Some(bdev), Op::Flush) = (bdev, rq.op()) else {
        return rq.operation_done(Err(EINVAL));
    };
    // Both own the request until the block layer does not use the block device any more, see
    // `remap`.
    let (starter, completer) = rq.into_in_flight(Ok(0));
    // SAFETY: The request stays in flight until both owners are gone: `starter` below, and
    // `completer` when `complete` is called. `rq` was the only owner, so the `Bio` is not in use.
    // The file of the backend keeps `bdev` open, and the backend stays while the request is in
    // flight.
    unsafe { Bio::submit_flush(completer, bdev) };
    // The last owner calls `operation_done`.
    drop(starter);
}

/// Frees the array of bio_vecs that the operation of `rq` needed. Any context.
pub(crate) fn free_bvecs<T: FileBacked>(rq: &mut StartedRequest<T>) {
    let bvecs = &mut rq.data_mut().fields().bvecs;
    if bvecs.capacity() != 0 {
        *bvecs = KVec::new();
    }
}

/// Returns the memory of a request: all of it, or that of its first bio if there is no memory for
/// an array of all its bio_vecs, or if the writes are atomic.
///
/// Each bio of an atomic request is a write of its own, and is known to fit into one request of the
/// lower device, because its submitter kept to the limits of atomic writes. Several of them may be
/// longer than the lower device allows, or have gaps in memory where it does not, and it must not
/// split them.
///
/// Fails with `ENOMEM` if the first bio is not in whole blocks of the file, and with `EIO` for a
/// request without a bio.
fn map_bvecs<T: FileBacked>(rq: &mut StartedRequest<T>) -> Result<BvecSpan> {
    // SAFETY: The request is valid, and `rq` owns it.
    let (first, last) = unsafe { ((*rq.as_ptr()).bio, (*rq.as_ptr()).biotail) };
    let is_merged = first != last;
    if is_merged && !rq.is_atomic() {
        if let Some(span) = gather_bvecs(rq) {
            return Ok(span);
        }
    }
    // SAFETY: `first` is null or the first bio of the request, which stays until the request ends.
    let bio = unsafe { first.as_ref() }.ok_or(EIO)?;
    let count = if is_merged {
        whole_blocks(rq, bio.bi_iter.bi_size).ok_or(ENOMEM)?
    } else {
        rq.len()
    };
    let count = count as usize;
    // A bio that was split off another one may begin at any byte of any bio_vec.
    // SAFETY: A read or a write has data, so `bi_idx` is an index into the bio's array.
    let bvecs = unsafe { bio.bi_io_vec.add(bio.bi_iter.bi_idx as usize) };
    let offset = compat::bvec_offset(&bio.bi_iter) as usize;
    // SAFETY: As above, so `bvecs` points at a bio_vec.
    let bytes = unsafe { (*bvecs).bv_len } as usize;
    Ok(BvecSpan {
        bvecs,
        segments: if bytes.checked_sub(offset) >= Some(count) {
            1
        } else {
            // SAFETY: The bio is valid, and has data.
            unsafe { ffi::rnull_loop_bio_nr_bvec(first) as usize }
        },
        offset,
        count,
    })
}

/// Returns the memory of all bios of a request, in an array that [`free_bvecs`] frees; `None` if
/// there is no memory for the array.
fn gather_bvecs<T: FileBacked>(rq: &mut StartedRequest<T>) -> Option<BvecSpan> {
    // SAFETY: A `StartedRequest` is valid, and so are its bios.
    let segments = unsafe { ffi::rnull_loop_rq_nr_bvec(rq.as_ptr()) };
    // The allocation does no I/O, because the caller is in an `IoWorkerScope` or has called
    // `Submitter::save_io_context`. If it fails, the request is served in parts, so a warning would
    // be misleading.
    let mut bvecs = KVec::with_capacity(segments as usize, GFP_KERNEL | __GFP_NOWARN).ok()?;
    // SAFETY: `bvecs` has room for `segments` bio_vecs, and `rq` owns the request.
    let copied =
        unsafe { ffi::rnull_loop_rq_copy_bvecs(rq.as_ptr(), bvecs.as_mut_ptr(), segments) };
    let span = BvecSpan {
        bvecs: bvecs.as_ptr(),
        segments: copied as usize,
        offset: 0,
        count: rq.len() as usize,
    };
    rq.data_mut().fields().bvecs = bvecs;
    Some(span)
}

/// Returns the number of bytes in whole blocks among the first `bytes` bytes of a request; `None`
/// for less than a block.
fn whole_blocks<T: FileBacked>(rq: &StartedRequest<T>, bytes: u32) -> Option<u32> {
    let block = T::io_granularity(rq).unwrap_or(1).max(1);
    let whole = rq.whole_blocks(bytes);
    let whole = whole - whole % block;
    (whole != 0).then_some(whole)
}
