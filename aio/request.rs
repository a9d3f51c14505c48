// SPDX-License-Identifier: GPL-2.0

//! Requests of the block layer that are served by asynchronous I/O to a file.
//!
//! A driver whose requests carry a [`Slot`] hands a started request to [`submit`]; it is completed
//! with the number of bytes done, or the error, when the file is done with it.

use super::{
    Caching,
    Completion,
    Direction,
    Iocb,
    Memory,
    Transfer, //
};
use crate::{
    blk_mq::{
        CompletedRequest,
        InFlight,
        Op,
        Operations,
        Request,
        StartedRequest, //
    },
    kern::ffi, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::code::EINVAL,
    fs::File,
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

/// How many bio_vecs of a merged request a slot has room for. More are allocated, or, when memory
/// is short, the request is served in parts.
const INLINE: usize = 8;

/// How long to wait for memory when not even a part of a request can be served.
const RETRY_DELAY: Delta = Delta::from_millis(10);

/// What a request needs for I/O to a file: the PDU of drivers that use [`submit`].
///
/// # Invariants
///
/// The fields are used by the owner of the request alone, and by the operation it submitted.
#[repr(C)]
pub(crate) struct Slot {
    iocb: UnsafeCell<Iocb>,
    inline: Opaque<[bindings::bio_vec; INLINE]>,
    overflow: UnsafeCell<KVec<bindings::bio_vec>>,
}

// SAFETY: By the type invariant there is one user at a time, who may be on any CPU.
unsafe impl Send for Slot {}
// SAFETY: As above.
unsafe impl Sync for Slot {}

impl Slot {
    /// A slot that is not in use.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init::init!(Self {
            iocb: UnsafeCell::new(Iocb::new()),
            inline: Opaque::uninit(),
            overflow: UnsafeCell::new(KVec::new()),
        })
    }
}

/// A driver whose requests are served from files.
pub(crate) trait FileBacked: Operations<RequestData = Slot> {
    /// The file to serve requests from. It is part of what requests need of the device, so it
    /// stays open while there is one.
    fn file(io: &Self::Io) -> &File;
}

/// Ends of operations on requests of `T`.
struct RequestCompletion<T>(PhantomData<T>);

impl<T: FileBacked> Completion for RequestCompletion<T> {
    unsafe fn complete(iocb: *mut Iocb, result: isize) {
        // SAFETY: `submit` gave the `Iocb` of a slot, which is its first field, and left an owner
        // of the request behind for this function, which is called once.
        let rq = unsafe { InFlight::<T>::from_data(iocb.cast::<Slot>()) };
        rq.complete(match u32::try_from(result) {
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(i32::try_from(result).map_or(EIO, Error::from_errno)),
        });
    }
}

/// Reads or writes the data of `rq` at `position` bytes into the file, and completes it with the
/// number of bytes done or an error.
///
/// The file may do less than all of the request, as files do, and so may this function, when memory
/// is short; see [`Operations::complete`]. May sleep.
pub(crate) fn submit<T: FileBacked>(rq: StartedRequest<T>, position: u64, caching: Caching) {
    let direction = match rq.op() {
        Op::Read => Direction::Read,
        Op::Write => Direction::Write,
        _ => return rq.complete(Err(EINVAL)),
    };
    let Ok(position) = i64::try_from(position) else {
        return rq.complete(Err(EFBIG));
    };
    let Some(memory) = describe(&rq) else {
        fsleep(RETRY_DELAY);
        return rq.requeue();
    };
    let transfer = Transfer {
        direction,
        caching,
        position,
        ioprio: rq.ioprio(),
    };
    // One owner for this function, one for `RequestCompletion`: the file may use `memory` for as
    // long as `submit` has not returned, even when the operation is over before.
    let (submitter, completer) = rq.into_in_flight();
    let Some(io) = submitter.io() else {
        return completer.complete(Err(EIO));
    };
    let iocb = completer.into_data().cast_mut().cast::<Iocb>();
    // SAFETY:
    // - The slot is in the PDU, which is pinned and outlives the request's time in flight; the
    //   request had one owner, so no other operation uses the slot.
    // - The file is part of what the request needs of its device, which stays while the request is
    //   in flight; a file without the operation fails the request.
    // - The bio_vecs are in the request's bios or its slot, and describe memory of its submitter;
    //   all of it stays until the request is completed, for which both owners must be gone.
    unsafe { Iocb::submit::<RequestCompletion<T>>(iocb, T::file(io), transfer, &memory) };
}

/// Gives back the memory that a request needed while it was in flight.
pub(crate) fn finish<T: FileBacked>(rq: &mut CompletedRequest<T>) {
    // SAFETY: `rq` is the one owner of the request, and its operation is over.
    let overflow = unsafe { &mut *rq.data().overflow.get() };
    if overflow.capacity() != 0 {
        *overflow = KVec::new();
    }
}

/// Describes the memory of a request: all of it, or a part at its beginning when memory for the
/// description is short, or `None` when there is not even that.
fn describe<T: FileBacked>(rq: &StartedRequest<T>) -> Option<Memory> {
    // SAFETY: The request is valid and ours.
    let segments = unsafe { ffi::rnull_loop_rq_nr_bvec(rq.as_ptr()) } as usize;
    let count = rq.len() as usize;
    // SAFETY: The request is valid and ours; reads and writes have bios.
    let (bio, biotail) = unsafe { ((*rq.as_ptr()).bio, (*rq.as_ptr()).biotail) };
    if bio == biotail {
        // SAFETY: The one bio of the request is valid until the request ends.
        let bio = unsafe { NonNull::new(bio)?.as_ref() };
        return Some(Memory {
            // It may begin anywhere, even in the middle of a bio_vec, if it was split off another.
            // SAFETY: `bi_idx` is an index into the bio's array.
            bvecs: unsafe { bio.bi_io_vec.add(bio.bi_iter.bi_idx as usize) },
            offset: bio.bi_iter.bi_offset as usize,
            segments,
            count,
        });
    }
    let (bvecs, room) = room_for(rq, segments);
    // SAFETY: There is room for that many.
    let copied = unsafe { ffi::rnull_loop_rq_copy_bvecs(rq.as_ptr(), bvecs, room as c_uint) };
    let copied = copied as usize;
    Some(Memory {
        bvecs,
        segments: copied,
        offset: 0,
        count: if copied == segments {
            count
        } else {
            // SAFETY: The helper filled in `copied` of them.
            whole_blocks(rq, unsafe { core::slice::from_raw_parts(bvecs, copied) })?
        },
    })
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
        // Workers allocate without I/O (`IoWorkerScope`). One that fails is no reason to complain.
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
    let whole = rq.whole_blocks(bytes);
    (whole != 0).then_some(whole as usize)
}
