// SPDX-License-Identifier: GPL-2.0

//! The multi-queue block layer, as a driver of request-based disks sees it.
//!
//! A driver implements [`Operations`] (what happens to a request) and [`DiskOperations`] (what
//! happens to its disk) for the type that stands for one of its devices, makes a [`TagSet`] and a
//! [`Disk`], sets the disk up and [adds](Disk::add) it.
//!
//! Three rules are kept by types instead of comments:
//!
//! - **A request is what its type says.** [`IdleRequest`] → [`StartedRequest`] → two [`InFlight`]
//!   → [`CompletedRequest`]; every step consumes the one before, so a request can be neither ended
//!   twice nor touched after it was given away. One that is dropped ends with an I/O error.
//! - **A disk is visible only when it is complete.** [`Disk`] is not registered, and
//!   [`RegisteredDisk`] is.
//! - **What a request needs of its device may change only while none is in flight.**
//!   [`Operations::Io`] is read through a request and changed through a [`FrozenQueue`](limits::FrozenQueue), so the
//!   request path needs neither a lock nor a reference count.
//!
//! C headers: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h),
//! [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

mod bio;
mod disk;
mod limits;
mod list;
mod major;
mod request;
mod submitter;
mod tag_set;

pub(crate) use self::{
    bio::{
        Bio,
        BioCompletion, //
    },
    disk::{
        Disk,
        DiskOperations,
        DiskOptions,
        DiskRef,
        GenDisk,
        Mode,
        OpenMutex,
        RegisteredDisk, //
    },
    limits::{
        FrozenQueue,
        LimitsUpdate, //
    },
    list::RequestList,
    major::{
        Major,
        Probe, //
    },
    request::{
        CompletedRequest,
        IdleRequest,
        InFlight,
        Refused,
        Request,
        StartedRequest, //
    },
    submitter::Submitter,
    tag_set::TagSet,
};

use crate::kern::ffi;
use kernel::{
    bindings,
    prelude::*,
    sync::Arc, //
};

/// How a request ended: a `blk_status_t`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(bindings::blk_status_t);

impl Status {
    /// Success.
    pub(crate) const OK: Self = Self(ffi::BLK_STS_OK);
    /// An I/O error.
    pub(crate) const IOERR: Self = Self(ffi::BLK_STS_IOERR);
}

impl From<Error> for Status {
    /// Keeps what a submitter can tell apart (`ENOSPC`, `EOPNOTSUPP`, ...); the rest becomes an I/O
    /// error, as `errno_to_blk_status()` has it, and so does a status that means something else to
    /// the block layer, device-mapper or zoned devices than that the request has failed.
    fn from(error: Error) -> Self {
        // SAFETY: The function reads a table and takes any number.
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

/// What a request asks for: `enum req_op`, as far as request-based disks of files know it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Data from the device to memory.
    Read,
    /// Data from memory to the device.
    Write,
    /// Everything written and acknowledged before becomes durable.
    Flush,
    /// The range is not needed any more.
    Discard,
    /// The range shall read as zeroes.
    WriteZeroes,
    /// Anything else.
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

    /// Whether the operation changes what the device holds: `op_is_write()`, but a flush, which
    /// carries no data, does not count.
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }
}

/// What a driver does with requests; implemented by the type of its devices.
///
/// Mirrors `struct blk_mq_ops`.
pub(crate) trait Operations: Send + Sync + Sized + 'static {
    /// The driver's part of every request (the PDU); made once per tag, not once per request.
    type RequestData: Send + Sync;

    /// The driver's part of every hardware context.
    type HwData: Send + Sync;

    /// What a request needs of its device; see [`Request::io`].
    type Io: Send + Sync;

    /// Makes the driver's part of one request. May sleep.
    fn new_request_data() -> impl PinInit<Self::RequestData>;

    /// Makes the driver's part of one hardware context. May sleep.
    fn new_hw_data() -> Result<Self::HwData>;

    /// Takes a request: `->queue_rq`, and for each of several `->queue_rqs`.
    ///
    /// `device` and `hw` outlive the call, whatever becomes of the request. Called in the context of any
    /// submitter, which `submitter` knows more of, with the tag set's SRCU read lock held: may sleep,
    /// but not wait for anything that needs requests of this queue to be handed over. A refused
    /// request is ended by the block layer.
    fn queue_rq(
        device: &Arc<Self>,
        hw: &Self::HwData,
        rq: IdleRequest<Self>,
        submitter: Pin<&Submitter>,
    ) -> Result<(), Refused<Self>>;

    /// Ends a request, or sends it round again: `->complete`.
    ///
    /// `result` is what the owner of the request gave with it: the number of bytes done, or an
    /// error. Called from any context, hard interrupts included, on a CPU near the submitter's.
    fn complete(rq: CompletedRequest<Self>, result: Result<u32>);
}
