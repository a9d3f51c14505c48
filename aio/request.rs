// SPDX-License-Identifier: GPL-2.0

//! Requests of the block layer that are served from files.
//!
//! A driver whose requests carry a [`Slot`] hands a started request to [`submit`], for asynchronous
//! I/O to a file, or to [`remap`], to another block device as it is; it is completed with the number
//! of bytes done, or the error, when that is over.

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
        CompletedRequest,
        InFlight,
        Op,
        Operations,
        Request,
        StartedRequest, //
    },
    kern::{
        bdev::BlockDevice,
        bvec::Memory,
        ffi, //
    },
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem::ManuallyDrop, //
};
use kernel::{
    bindings,
    fs::File,
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    },
    time::Delta,
    types::Opaque, //
};

/// How many bio_vecs of a merged request a slot has room for. More are allocated, or, when memory
/// is short, the request is served in parts.
const INLINE: usize = 8;

/// What carries out a request: one or the other, both at the beginning.
#[repr(C)]
union Operation {
    _iocb: ManuallyDrop<Iocb>,
    _bio: ManuallyDrop<Bio>,
}

/// The PDU of drivers that use [`submit`] and [`remap`]: what a request needs for I/O to a file,
/// and the driver's own part `D`.
///
/// # Invariants
///
/// The fields are used by the owner of the request alone, and by the operation it submitted.
#[repr(C)]
pub(crate) struct Slot<D> {
    // First, so that a pointer to it is one to the slot.
    operation: Opaque<Operation>,
    inline: Opaque<[bindings::bio_vec; INLINE]>,
    overflow: UnsafeCell<KVec<bindings::bio_vec>>,
    /// How many bytes the bio was to transfer.
    bytes: Atomic<u32>,
    /// Whether the operation was not to wait.
    hasty: Atomic<bool>,
    /// Whether an operation that was not to wait would have had to.
    must_wait: Atomic<bool>,
    /// Whether there was no memory for the operation, the last time.
    no_memory: Atomic<bool>,
    driver: D,
}

// SAFETY: By the type invariant there is one user at a time, who may be on any CPU.
unsafe impl<D: Send> Send for Slot<D> {}
// SAFETY: As above; `driver` is shared as it allows.
unsafe impl<D: Sync> Sync for Slot<D> {}

impl<D> Slot<D> {
    /// A slot that is not in use, with the driver's part.
    pub(crate) fn new(driver: D) -> impl PinInit<Self> {
        pin_init::init!(Self {
            operation: Opaque::uninit(),
            inline: Opaque::uninit(),
            overflow: UnsafeCell::new(KVec::new()),
            bytes: Atomic::new(0),
            hasty: Atomic::new(false),
            must_wait: Atomic::new(false),
            no_memory: Atomic::new(false),
            driver,
        })
    }

    /// The driver's part.
    pub(crate) fn driver(&self) -> &D {
        &self.driver
    }

    /// Returns whether the request is to be submitted by a task that may sleep, as a non-blocking
    /// operation would have blocked.
    pub(crate) fn must_wait(&self) -> bool {
        self.must_wait.load(Relaxed)
    }

    /// Has the request submitted by a task that may wait.
    pub(crate) fn set_must_wait(&self) {
        self.must_wait.store(true, Relaxed);
    }

    /// Whether the request goes round again since there was no memory for its operation.
    pub(crate) fn lacked_memory(&self) -> bool {
        self.no_memory.load(Relaxed)
    }

    fn begin(&self, wait: Wait) {
        self.hasty.store(wait == Wait::Forbidden, Relaxed);
    }
}

/// A driver whose requests are served from files.
pub(crate) trait FileBacked: Operations<RequestData = Slot<Self::Data>> {
    /// The driver's own part of a request.
    type Data: Send + Sync;

    /// The file to serve requests from. It is part of what requests need of the device, so it
    /// stays open while there is one.
    fn file(io: &Self::Io) -> &File;

    /// The block device that the file is, likewise.
    fn block_device(io: &Self::Io) -> Option<&BlockDevice>;

    /// The blocks of direct I/O to the file, in bytes, if a request needs them and they are larger
    /// than those of the disk.
    fn direct_block(rq: &Request<Self>) -> Option<u32>;
}

/// Ends of operations on requests of `T`.
struct RequestCompletion<T>(PhantomData<T>);

impl<T: FileBacked> Completion for RequestCompletion<T> {
    unsafe fn complete(iocb: *mut Iocb, result: isize) {
        // SAFETY: `submit` gave the `Iocb` of a slot, which is its first field, and left an owner
        // of the request behind for this function, which is called once.
        let rq = unsafe { InFlight::<T>::from_data(iocb.cast::<Slot<T::Data>>()) };
        rq.complete(outcome(result));
    }
}

impl<T: FileBacked> BioCompletion for RequestCompletion<T> {
    unsafe fn complete(bio: *mut Bio, result: Result) {
        // SAFETY: `remap` gave the `Bio` of a slot, which is its first field, and left an owner of
        // the request behind for this function, which is called once.
        let rq = unsafe { InFlight::<T>::from_data(bio.cast::<Slot<T::Data>>()) };
        let bytes = rq.data().bytes.load(Relaxed);
        rq.complete(result.map(|()| bytes));
    }
}

/// The number of bytes done, or the error.
fn outcome(result: isize) -> Result<u32> {
    match u32::try_from(result) {
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(i32::try_from(result).map_or(EIO, Error::from_errno)),
    }
}

/// Reads or writes the data of `rq` at `position` bytes into the file, and completes it with the
/// number of bytes done or an error.
///
/// The file may do less than all of the request, as files do, and so may this function, when memory
/// is short; see [`Operations::complete`]. May sleep, but with [`Wait::Forbidden`] as little as the
/// file makes it; the request, or what is left of it, is handed back where it would have to wait, and
/// where it finds out too late for that, it is completed and [`haste`] says so.
pub(crate) fn submit<T: FileBacked>(
    rq: StartedRequest<T>,
    position: u64,
    caching: Caching,
    wait: Wait,
) -> Result<(), StartedRequest<T>> {
    match begin(rq, position, caching, wait) {
        Begun::Queued => Ok(()),
        Begun::Done(rq, result) => done(rq, result, wait),
    }
}

/// Reads or writes the data of `rq` at `position` bytes into the file through its page cache, and
/// returns the request with the number of bytes done or an error. May sleep.
pub(crate) fn transfer_cached<T: FileBacked>(
    rq: StartedRequest<T>,
    position: u64,
) -> Option<(StartedRequest<T>, Result<u32>)> {
    match begin(rq, position, Caching::Buffered, Wait::Allowed) {
        // A kiocb without `ki_complete` is synchronous.
        Begun::Queued => None,
        Begun::Done(rq, result) => Some((rq, result)),
    }
}

/// The outcome of [`begin`].
enum Begun<T: FileBacked> {
    /// The operation is under way, or over: the request is completed at its end.
    Queued,
    /// The operation is over, or was not begun, with that result.
    Done(StartedRequest<T>, Result<u32>),
}

/// Begins to read or write the data of `rq`, see [`submit`].
fn begin<T: FileBacked>(
    rq: StartedRequest<T>,
    position: u64,
    caching: Caching,
    wait: Wait,
) -> Begun<T> {
    let direction = match rq.op() {
        Op::Read => Direction::Read,
        Op::Write => Direction::Write,
        _ => return Begun::Done(rq, Err(EINVAL)),
    };
    let Ok(position) = i64::try_from(position) else {
        return Begun::Done(rq, Err(EFBIG));
    };
    let memory = match describe(&rq) {
        Ok(memory) => memory,
        Err(error) => return Begun::Done(rq, Err(error)),
    };
    let transfer = Transfer {
        direction,
        caching,
        wait,
        durable: direction == Direction::Write && rq.is_durable(),
        position,
        ioprio: rq.ioprio(),
    };
    rq.data().begin(wait);
    // One owner for this function, one for `RequestCompletion`: the file may use `memory` for as
    // long as `submit` has not returned, even when the operation is over before.
    let (submitter, completer) = rq.into_in_flight();
    let Some(io) = submitter.io() else {
        completer.complete(Err(EIO));
        return Begun::Queued;
    };
    let data = completer.into_data();
    let iocb = data.cast_mut().cast::<Iocb>();
    // SAFETY:
    // - The slot is in the PDU, which is pinned and outlives the request's time in flight; the
    //   request had one owner, so no other operation uses the slot.
    // - The file is part of what the request needs of its device, which stays while the request is
    //   in flight; a file without the operation fails the request.
    // - The bio_vecs are in the request's bios or its slot, and describe memory of its submitter;
    //   all of it stays until the request is completed, for which both owners must be gone.
    let submitted =
        unsafe { Iocb::submit::<RequestCompletion<T>>(iocb, T::file(io), transfer, &memory) };
    let Submitted::Done(result) = submitted else {
        return Begun::Queued;
    };
    // SAFETY: `RequestCompletion` was not told and will not be, so this takes back its owner.
    let completer = unsafe { InFlight::<T>::from_data(data) };
    // SAFETY: They are the two from above.
    let rq = unsafe { StartedRequest::rejoin(submitter, completer) };
    Begun::Done(rq, outcome(result))
}

/// An operation was over at once.
fn done<T: FileBacked>(
    mut rq: StartedRequest<T>,
    result: Result<u32>,
    wait: Wait,
) -> Result<(), StartedRequest<T>> {
    if wait == Wait::Forbidden {
        match result {
            Err(error) if is_would_wait(error) || error == ENOMEM => return Err(left(rq)),
            // What is in the page cache is done; the rest is not there.
            Ok(bytes) if bytes < rq.len() => {
                let whole = rq.whole_blocks(bytes);
                if whole != 0 {
                    rq.advance(whole);
                }
                return Err(left(rq));
            }
            _ => {}
        }
    }
    rq.complete(result);
    Ok(())
}

/// What is left of a request must wait.
fn left<T: FileBacked>(rq: StartedRequest<T>) -> StartedRequest<T> {
    rq.data().set_must_wait();
    rq
}

/// Tries an operation again after `delay` by a task that may sleep; with `no_memory` because there
/// was no memory for it. Any context.
pub(crate) fn retry<T: FileBacked>(rq: CompletedRequest<T>, delay: Delta, no_memory: bool) {
    rq.data().set_must_wait();
    rq.data().no_memory.store(no_memory, Relaxed);
    rq.requeue_later(delay);
}

/// Passes `rq`, a read or a write, on to the device's [block device](FileBacked::block_device), where
/// it begins at `sector` (of 512 bytes), and completes it as [`submit`] does.
///
/// May sleep; with [`Wait::Forbidden`], not for tags or a frozen queue.
pub(crate) fn remap<T: FileBacked>(
    rq: StartedRequest<T>,
    sector: u64,
    wait: Wait,
) -> Result<(), StartedRequest<T>> {
    let bdev = rq.io().and_then(T::block_device).map(BlockDevice::raw);
    let (Some(bdev), Op::Read | Op::Write) = (bdev, rq.op()) else {
        rq.complete(Err(EINVAL));
        return Ok(());
    };
    let memory = match describe(&rq) {
        Ok(memory) => memory,
        Err(error) => return done(rq, Err(error), wait),
    };
    rq.data().begin(wait);
    // CAST: A part of a request is no longer than the request.
    rq.data().bytes.store(memory.count as u32, Relaxed);
    let nowait = wait == Wait::Forbidden;
    let raw = rq.as_ptr();
    // One owner for this function, one for `RequestCompletion`: the bio may be over, and what the
    // request needs of its device exchanged and closed, while the block layer still uses the block
    // device.
    let (submitter, completer) = rq.into_in_flight();
    let bio = completer.into_data().cast_mut().cast::<Bio>();
    // SAFETY:
    // - The slot is in the PDU, which is pinned and outlives the request's time in flight; the
    //   request had one owner, so no other operation uses the slot.
    // - The request is a valid read or write, and completed by `RequestCompletion`; `memory`
    //   describes memory of its submitter, which stays as long. `bdev` is part of what requests need
    //   of their device, which stays while there are some: at least until `submitter` is dropped.
    unsafe { Bio::submit::<RequestCompletion<T>>(bio, raw, bdev, sector, &memory, nowait) };
    drop(submitter);
    Ok(())
}

/// Whether an operation that was not to wait says that it would have had to, or that whoever submitted it
/// was killed, which is nothing to the request.
fn is_would_wait(error: Error) -> bool {
    error == EAGAIN || error == EOPNOTSUPP || error == EINTR
}

/// What became of an operation that was not to wait.
pub(crate) enum Haste {
    /// It was one that may.
    None,
    /// It was carried out, or failed in earnest.
    Worked,
    /// It would have had to wait.
    InVain,
}

/// Looks at the `result` of a request. If it would have had to wait, or was done in part, it
/// [must](Slot::must_wait) from here on.
pub(crate) fn haste<T: FileBacked>(rq: &CompletedRequest<T>, result: Result<u32>) -> Haste {
    let slot = rq.data();
    let haste = match (slot.hasty.load(Relaxed), result) {
        (false, _) => Haste::None,
        (true, Err(error)) if is_would_wait(error) => Haste::InVain,
        (true, _) => Haste::Worked,
    };
    let short = result.is_ok_and(|bytes| bytes < rq.len());
    slot.must_wait
        .store(short || matches!(haste, Haste::InVain), Relaxed);
    haste
}

/// Gives back what a request needed while it was in flight.
pub(crate) fn finish<T: FileBacked>(rq: &mut CompletedRequest<T>) {
    rq.data().no_memory.store(false, Relaxed);
    // SAFETY: `rq` is the one owner of the request, and its operation is over.
    let overflow = unsafe { &mut *rq.data().overflow.get() };
    if overflow.capacity() != 0 {
        *overflow = KVec::new();
    }
}

/// Describes the memory of a request: all of it, or a part at its beginning when memory for the
/// description is short. Fails with `ENOMEM` when there is not even that, and with `EIO` for a
/// request without a bio.
fn describe<T: FileBacked>(rq: &StartedRequest<T>) -> Result<Memory> {
    let count = rq.len() as usize;
    // SAFETY: The request is valid and ours; reads and writes have bios.
    let (bio, biotail) = unsafe { ((*rq.as_ptr()).bio, (*rq.as_ptr()).biotail) };
    if bio == biotail {
        // SAFETY: The one bio of the request is valid until the request ends.
        let bio = unsafe { bio.as_ref() }.ok_or(EIO)?;
        // It may begin anywhere, even in the middle of a bio_vec, if it was split off another.
        // SAFETY: `bi_idx` is an index into the bio's array.
        let bvecs = unsafe { bio.bi_io_vec.add(bio.bi_iter.bi_idx as usize) };
        let offset = bio.bi_iter.bi_offset as usize;
        // SAFETY: As above; a read or a write has data, so there is a first bio_vec.
        let first = unsafe { (*bvecs).bv_len } as usize;
        return Ok(Memory {
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
    let (bvecs, room) = room_for(rq, segments);
    // SAFETY: There is room for that many.
    let copied = unsafe { ffi::rnull_loop_rq_copy_bvecs(rq.as_ptr(), bvecs, room as c_uint) };
    let copied = copied as usize;
    Ok(Memory {
        bvecs,
        segments: copied,
        offset: 0,
        count: if copied == segments {
            count
        } else {
            // SAFETY: The helper filled in `copied` of them.
            whole_blocks(rq, unsafe { core::slice::from_raw_parts(bvecs, copied) }).ok_or(ENOMEM)?
        },
    })
}

/// How many bio_vecs the memory of a request is in.
fn segments<T: FileBacked>(rq: &Request<T>) -> usize {
    // SAFETY: The request is valid and ours.
    unsafe { ffi::rnull_loop_rq_nr_bvec(rq.as_ptr()) as usize }
}

/// Finds room for `wanted` bio_vecs, or at least for some.
fn room_for<T: FileBacked>(
    rq: &StartedRequest<T>,
    wanted: usize,
) -> (*mut bindings::bio_vec, usize) {
    let slot = rq.data();
    if wanted > INLINE {
        // SAFETY: `rq` is the one owner of the request, and it has no operation under way.
        let overflow = unsafe { &mut *slot.overflow.get() };
        // Who submits allocates without I/O (`IoWorkerScope`, `Submitter::isolate`). One that fails is
        // no reason to complain.
        if let Ok(vec) = KVec::with_capacity(wanted, GFP_KERNEL | __GFP_NOWARN) {
            *overflow = vec;
            return (overflow.as_mut_ptr(), wanted);
        }
    }
    (slot.inline.get().cast(), INLINE.min(wanted))
}

/// How many bytes `bvecs`, the first of a request, hold in whole blocks; `None` for no block.
fn whole_blocks<T: FileBacked>(rq: &Request<T>, bvecs: &[bindings::bio_vec]) -> Option<usize> {
    // A part of a request is shorter than its `len`, which fits.
    let bytes = bvecs
        .iter()
        .map(|bvec| bvec.bv_len)
        .fold(0, u32::wrapping_add);
    let block = T::direct_block(rq).unwrap_or(1).max(1);
    let whole = rq.whole_blocks(bytes);
    let whole = whole - whole % block;
    (whole != 0).then_some(whole as usize)
}
