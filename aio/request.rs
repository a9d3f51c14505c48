// SPDX-License-Identifier: GPL-2.0

//! Requests of the block layer that are served from files.
//!
//! A driver whose requests carry a [`FileIoPdu`] passes a started request to [`submit`], for
//! asynchronous I/O to a file, or to [`remap`], which sends it to another block device as a bio.
//! When that is over, [`Operations::operation_done`] gets the request back, with the number of bytes
//! done or an error.

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
        Request,
        StartedRequest, //
    },
    kern::{
        bdev::BlockDevice,
        bvec::BvecSpan,
        ffi, //
    },
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop, //
};
use kernel::{
    bindings,
    fs::File,
    prelude::*,
    types::Opaque, //
};

/// The number of bio_vecs of a merged request that a PDU has room for. A larger array is allocated
/// or, if there is no memory, the request is served in parts.
const INLINE: usize = 8;

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
    inline: Opaque<[bindings::bio_vec; INLINE]>,
    overflow: KVec<bindings::bio_vec>,
    /// The length of the bio, in bytes.
    bio_bytes: u32,
    driver: D,
}

// SAFETY: The operation in flight may be on any CPU, and so may the owner of the bio_vecs; each is
// used by the owner of the request alone, or by the operation that it submitted.
unsafe impl<D: Send> Send for FileIoPdu<D> {}
// SAFETY: Through a shared reference `driver` can be used, which is `Sync`, and `bio_bytes` read.
unsafe impl<D: Sync> Sync for FileIoPdu<D> {}

impl<D> FileIoPdu<D> {
    /// Makes a PDU without an operation, with the driver's part.
    pub(crate) fn new(driver: D) -> impl PinInit<Self> {
        pin_init::init!(Self {
            operation: Opaque::uninit(),
            inline: Opaque::uninit(),
            overflow: KVec::new(),
            bio_bytes: 0,
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
        // SAFETY: The callers move neither `operation` nor `inline`, the fields that are pinned.
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

/// The completion of operations on requests of `T`.
struct RequestCompletion<T>(PhantomData<T>);

impl<T: FileBacked> Completion for RequestCompletion<T> {
    unsafe fn complete(iocb: *mut Iocb, result: isize) {
        // SAFETY: `start` submitted the `Iocb` of a PDU, which is its first field, and left an owner
        // of the request for this function, which is called once.
        let rq = unsafe { InFlight::<T>::from_data(iocb.cast::<FileIoPdu<T::Data>>()) };
        rq.complete(bytes_or_error(result));
    }
}

impl<T: FileBacked> BioCompletion for RequestCompletion<T> {
    unsafe fn complete(bio: *mut Bio, result: Result) {
        // SAFETY: `remap` submitted the `Bio` of a PDU, which is its first field, and left an owner
        // of the request for this function, which is called once.
        let rq = unsafe { InFlight::<T>::from_data(bio.cast::<FileIoPdu<T::Data>>()) };
        let bytes = rq.data().bio_bytes;
        rq.complete(result.map(|()| bytes));
    }
}

/// Returns the number of bytes done, or the error, that the return value of a file operation means.
fn bytes_or_error(result: isize) -> Result<u32> {
    match u32::try_from(result) {
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(i32::try_from(result).map_or(EIO, Error::from_errno)),
    }
}

/// Reads or writes the data of `rq` at `position` bytes in the file.
///
/// [`Operations::operation_done`] is called once, before or after this returns. The file may do less
/// than all of the request, and so may this function, if there is no memory. May sleep; with
/// [`Wait::Forbidden`] as little as the file allows.
pub(crate) fn submit<T: FileBacked>(
    rq: StartedRequest<T>,
    position: u64,
    caching: Caching,
    wait: Wait,
) {
    if let Start::Done(rq, result) = start(rq, position, caching, wait) {
        rq.operation_done(result);
    }
}

/// Reads or writes the data of `rq` at `position` bytes in the file through its page cache, and
/// returns the request with the number of bytes done or an error. May sleep.
pub(crate) fn transfer_buffered<T: FileBacked>(
    rq: StartedRequest<T>,
    position: u64,
) -> Option<(StartedRequest<T>, Result<u32>)> {
    match start(rq, position, Caching::Buffered, Wait::Allowed) {
        // A file that returns `-EIOCBQUEUED` for a kiocb without `ki_complete` is broken.
        Start::InFlight => None,
        Start::Done(rq, result) => Some((rq, result)),
    }
}

/// The state of an operation after [`start`].
enum Start<T: FileBacked> {
    /// It is in flight, or over: `operation_done` is called at its end.
    InFlight,
    /// It is over, or was not started, with this result.
    Done(StartedRequest<T>, Result<u32>),
}

/// Starts to read or write the data of `rq`, see [`submit`].
fn start<T: FileBacked>(
    mut rq: StartedRequest<T>,
    position: u64,
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
        Ok(span) => span,
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
    // One owner for this function, one for `RequestCompletion`: the file may use the bio_vecs until
    // `Iocb::submit` returns, even if the operation is over before that.
    let (submitter, completer) = rq.into_in_flight();
    let data = completer.into_data();
    let iocb = data.cast_mut().cast::<Iocb>();
    let file = T::file(submitter.backend());
    // SAFETY:
    // - The `Iocb` is in the PDU, which is pinned and outlives the request's time in flight; the
    //   request had one owner, so no other operation uses it.
    // - The file is part of the backend, which stays while the request is in flight; a file without
    //   the operation fails the request.
    // - The bio_vecs are those of the request's bios or in its PDU, and describe memory of its
    //   submitter. All of it stays until the request is over, for which both owners must be gone.
    let submitted = unsafe { Iocb::submit::<RequestCompletion<T>>(iocb, file, transfer, &span) };
    let Submitted::Done(result) = submitted else {
        return Start::InFlight;
    };
    // SAFETY: `RequestCompletion` was not called and will not be, so this takes its owner back.
    let completer = unsafe { InFlight::<T>::from_data(data) };
    // SAFETY: Both come from the call of `into_in_flight` above.
    let rq = unsafe { StartedRequest::rejoin(submitter, completer) };
    Start::Done(rq, bytes_or_error(result))
}

/// Submits `rq`, a read or a write, as a bio to the [block device](FileBacked::block_device) of its
/// backend, at `sector` (of 512 bytes).
///
/// [`Operations::operation_done`] is called once, before or after this returns. May sleep; with
/// [`Wait::Forbidden`] not for tags or a frozen queue.
pub(crate) fn remap<T: FileBacked>(mut rq: StartedRequest<T>, sector: u64, wait: Wait) {
    let bdev = T::block_device(rq.backend()).map(BlockDevice::raw);
    let (Some(bdev), Op::Read | Op::Write) = (bdev, rq.op()) else {
        return rq.operation_done(Err(EINVAL));
    };
    let span = match map_bvecs(&mut rq) {
        Ok(span) => span,
        Err(error) => return rq.operation_done(Err(error)),
    };
    // CAST: A part of a request is no longer than the request.
    rq.data_mut().fields().bio_bytes = span.count as u32;
    let nowait = wait == Wait::Forbidden;
    let raw = rq.as_ptr();
    // One owner for this function, one for `RequestCompletion`: the block layer still uses the block
    // device when the bio may be over, and the backend be replaced and its file closed.
    let (submitter, completer) = rq.into_in_flight();
    let bio = completer.into_data().cast_mut().cast::<Bio>();
    // SAFETY:
    // - The `Bio` is in the PDU, which is pinned and outlives the request's time in flight; the
    //   request had one owner, so no other operation uses it.
    // - The request is a valid read or write that ends after `RequestCompletion` was called; `span`
    //   describes memory of its submitter, which stays as long.
    // - `bdev` is part of the backend, which stays while the request is in flight: at least until
    //   `submitter` is dropped.
    unsafe { Bio::submit::<RequestCompletion<T>>(bio, raw, bdev, sector, &span, nowait) };
    drop(submitter);
}

/// Frees the array of bio_vecs that the operation of `rq` needed. Any context.
pub(crate) fn free_bvecs<T: FileBacked>(rq: &mut StartedRequest<T>) {
    let overflow = &mut rq.data_mut().fields().overflow;
    if overflow.capacity() != 0 {
        *overflow = KVec::new();
    }
}

/// Returns the memory of a request: all of it, or a part at its beginning if there is no memory for
/// an array of its bio_vecs.
///
/// Fails with `ENOMEM` if there is no memory for even a part, and with `EIO` for a request without a
/// bio.
fn map_bvecs<T: FileBacked>(rq: &mut StartedRequest<T>) -> Result<BvecSpan> {
    let count = rq.len() as usize;
    // SAFETY: The request is valid and ours; reads and writes have bios.
    let (bio, biotail) = unsafe { ((*rq.as_ptr()).bio, (*rq.as_ptr()).biotail) };
    if bio == biotail {
        // SAFETY: The one bio of the request is valid until the request ends.
        let bio = unsafe { bio.as_ref() }.ok_or(EIO)?;
        // A bio that was split off another may begin anywhere, even inside a bio_vec.
        // SAFETY: `bi_idx` is an index into the bio's array.
        let bvecs = unsafe { bio.bi_io_vec.add(bio.bi_iter.bi_idx as usize) };
        let offset = bio.bi_iter.bi_offset as usize;
        // SAFETY: As above; a read or a write has data, so there is a first bio_vec.
        let first = unsafe { (*bvecs).bv_len } as usize;
        return Ok(BvecSpan {
            bvecs,
            segments: if first.checked_sub(offset) >= Some(count) {
                1
            } else {
                segments(rq)
            },
            offset,
            count,
        });
    }
    let segments = segments(rq);
    let (bvecs, room) = bvec_array(rq, segments);
    // SAFETY: There is room for `room` bio_vecs, and the request is ours.
    let copied = unsafe { ffi::rnull_loop_rq_copy_bvecs(rq.as_ptr(), bvecs, room as c_uint) };
    let copied = copied as usize;
    let count = if copied == segments {
        count
    } else {
        // SAFETY: The helper filled in `copied` of them.
        whole_blocks(rq, unsafe { core::slice::from_raw_parts(bvecs, copied) }).ok_or(ENOMEM)?
    };
    Ok(BvecSpan {
        bvecs,
        segments: copied,
        offset: 0,
        count,
    })
}

/// Returns the number of bio_vecs that the memory of a request is in.
fn segments<T: FileBacked>(rq: &Request<T>) -> usize {
    // SAFETY: The request is valid and ours.
    unsafe { ffi::rnull_loop_rq_nr_bvec(rq.as_ptr()) as usize }
}

/// Returns an array for `wanted` bio_vecs, or for fewer if there is no memory, and its length.
fn bvec_array<T: FileBacked>(
    rq: &mut StartedRequest<T>,
    wanted: usize,
) -> (*mut bindings::bio_vec, usize) {
    let pdu = rq.data_mut().fields();
    if wanted > INLINE {
        // The submitter allocates without I/O (`IoWorkerScope`, `Submitter::save_io_context`). Without
        // memory the request is served in parts, so there is no need for a warning.
        if let Ok(vec) = KVec::with_capacity(wanted, GFP_KERNEL | __GFP_NOWARN) {
            pdu.overflow = vec;
            return (pdu.overflow.as_mut_ptr(), wanted);
        }
    }
    (pdu.inline.get().cast(), INLINE.min(wanted))
}

/// Returns the number of bytes in whole blocks that `bvecs`, the first of a request, hold; `None`
/// for less than a block.
fn whole_blocks<T: FileBacked>(
    rq: &StartedRequest<T>,
    bvecs: &[bindings::bio_vec],
) -> Option<usize> {
    // A part of a request is shorter than its `len`, which fits.
    let bytes = bvecs
        .iter()
        .map(|bvec| bvec.bv_len)
        .fold(0, u32::wrapping_add);
    let block = T::io_granularity(rq).unwrap_or(1).max(1);
    let whole = rq.whole_blocks(bytes);
    let whole = whole - whole % block;
    (whole != 0).then_some(whole as usize)
}
