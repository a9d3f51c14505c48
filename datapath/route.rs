// SPDX-License-Identifier: GPL-2.0

//! Route: the one decision about which task serves a request, and by which I/O method.
//!
//! A blocking worker can serve every read or write. The shorter routes are allowed where they make
//! no difference but in time. If one of them turns out to be impossible, the request is deferred to
//! a blocking worker, and [`reroute`] chooses the I/O method anew.
//!
//! # The submitter
//!
//! Serving a request in the context of its submitter saves two context switches. Without rules it
//! would overflow stacks and re-enter file systems. The rules about the submitter, which may be any
//! task, are at the head of `blk_mq/submitter.rs`. The rules about the request:
//!
//! - **Remapped requests**: No file system code runs, so any task may submit. The lower device may
//!   still throttle (`io.cost`); then the submitter sleeps. A non-blocking bio cannot be split, so
//!   a worker serves long requests.
//!   The bio of an [extent](super::leasing) is such a request.
//! - **Reads of a file, through its page cache**: Copied if the page cache has all of it. No I/O is
//!   started, and no file system code runs but what releases a page that another reader wanted to
//!   be dropped (`RWF_DONTCACHE`), which does not block. So any task may copy. Not for network and
//!   stacked file systems, which look at the data first.
//! - **All other requests to a file** are served by a worker, because the submitter may be in
//!   another file system, or hold a request that is on no list (`blk_mq/submitter.rs`).
//!
//! # The nowait worker
//!
//! Reads that a file can serve without blocking, and all remapped requests, so that they never
//! wait behind a request that blocks. Writes to a file nearly always block, if only for the next
//! time stamp.
//!
//! User space can forbid these routes for each device, see [`tunables`](super::tunables).

use super::{
    leasing::Part,
    progress::{
        IoMethod,
        Route,
        Server,
        WorkerKind, //
    },
    target::{
        LoopQueue,
        Target, //
    },
    worker::Workers, //
};
use crate::{
    aio::Caching,
    blk_mq::{
        Op,
        StartedRequest,
        Submitter, //
    },
    kern::file::BackingFile,
};

/// The maximum length of a read from the page cache by its submitter, in bytes, which may hold
/// locks while it copies.
const MAX_CACHED: u32 = 256 << 10;

/// Returns the route of a request that `submitter` dispatches. Called once for each dispatch,
/// because each call counts as a chance of [`Backoff`](super::backoff::Backoff). Does not sleep.
pub(super) fn route(
    rq: &StartedRequest<LoopQueue>,
    submitter: &Submitter,
    workers: &Workers,
) -> Route {
    match rq.op() {
        Op::Read | Op::Write => route_transfer(rq, submitter, workers),
        Op::Flush if flushes_disk(rq) && submitter.may_flush() => Route {
            server: Server::Submitter,
            method: IoMethod::Remap,
        },
        Op::Flush => Route {
            server: Server::Worker(WorkerKind::Flusher),
            method: IoMethod::Buffered,
        },
        Op::Discard | Op::WriteZeroes | Op::Other => Route {
            server: Server::Worker(WorkerKind::Slow),
            method: IoMethod::Buffered,
        },
    }
}

/// Returns whether a flush only has to flush the disk: nothing is cached in memory, and there is no
/// error to report.
fn flushes_disk(rq: &StartedRequest<LoopQueue>) -> bool {
    let (target, tunables) = (rq.backend(), &rq.device().tunables);
    let is_enough = match &target.leasing {
        Some(leasing) => tunables.extents.is_on() && leasing.is_settled(),
        None => {
            tunables.remap.is_on() && target.block_device().is_some() && !target.file.is_cached()
        }
    };
    tunables.inline.is_on()
        && target.caching == Caching::Direct
        && !rq.progress().must_block
        && is_enough
        && takes_nowait_bio(target, 0)
        && target.wb_err.check(&target.file).is_ok()
}

/// Decides how a worker that may block serves a transfer, or the rest of one, after an operation
/// that would have blocked, was short or was refused. Any context, including hard IRQ.
pub(super) fn reroute(rq: &StartedRequest<LoopQueue>) -> Route {
    Route::blocking(method(rq.backend(), rq))
}

fn route_transfer(
    rq: &StartedRequest<LoopQueue>,
    submitter: &Submitter,
    workers: &Workers,
) -> Route {
    let target = rq.backend();
    let method = method(target, rq);
    if rq.progress().must_block || matches!(method, IoMethod::BufferedAlone) {
        return Route::blocking(method);
    }
    let try_nowait = target.backoff(rq.op()).should_try();
    if try_nowait && rq.device().tunables.inline.is_on() {
        if let Some(method) = submitter_method(target, method, rq, submitter) {
            let is_bio = !matches!(method, IoMethod::Cached);
            let server = if is_bio && !rq.is_swap() && workers.should_offload() {
                Server::Worker(WorkerKind::Helper)
            } else {
                Server::Submitter
            };
            return Route { server, method };
        }
    }
    let kind = if worker_tries_nowait(target, method, rq, try_nowait) {
        WorkerKind::Nowait
    } else {
        WorkerKind::Blocking
    };
    Route {
        server: Server::Worker(kind),
        method,
    }
}

/// Returns the I/O method of a read or a write.
///
/// Pages in the cache of a block device may be newer than the device, and a device that has become
/// shorter or read-only must fail in its own way, so such requests are not remapped. An atomic
/// write has no other way: the worker drops its pages first.
fn method(target: &Target, rq: &StartedRequest<LoopQueue>) -> IoMethod {
    if target.caching == Caching::Buffered {
        return IoMethod::Buffered;
    }
    if rq.progress().direct_refused || target.is_split_block(rq) {
        return IoMethod::BufferedAlone;
    }
    let tunables = &rq.device().tunables;
    match target.block_device() {
        Some(bdev)
            if tunables.remap.is_on()
                && (rq.is_atomic() || !target.file.is_cached())
                && target.can_access(bdev, rq) =>
        {
            IoMethod::Remap
        }
        None => match target.first_part(rq) {
            Part::Mapped(extent) => IoMethod::Extent(extent),
            Part::Other(_) | Part::Unusable => IoMethod::Direct,
        },
        _ => IoMethod::Direct,
    }
}

/// Returns the I/O method by which the submitter may serve a read or a write; the module
/// documentation gives the reasons.
fn submitter_method(
    target: &Target,
    method: IoMethod,
    rq: &StartedRequest<LoopQueue>,
    submitter: &Submitter,
) -> Option<IoMethod> {
    match (method, rq.op()) {
        (IoMethod::Remap | IoMethod::Extent(_), _) => {
            (takes_nowait_bio(target, rq.len()) && submitter.may_submit()).then_some(method)
        }
        (IoMethod::Buffered, Op::Read) => (target.cached_reads
            && rq.len() <= MAX_CACHED
            && target.file.is_cached()
            && submitter.has_stack())
        .then_some(IoMethod::Cached),
        _ => None,
    }
}

/// Returns whether a worker serves a read or a write without blocking on the file.
fn worker_tries_nowait(
    target: &Target,
    method: IoMethod,
    rq: &StartedRequest<LoopQueue>,
    try_nowait: bool,
) -> bool {
    match (method, rq.op()) {
        (IoMethod::Remap | IoMethod::Extent(_), _) => true,
        (IoMethod::Direct | IoMethod::Buffered, Op::Read) => {
            try_nowait && file_takes_nowait(target, rq)
        }
        _ => false,
    }
}

/// Returns whether the block device takes a request as a non-blocking bio.
fn takes_nowait_bio(target: &Target, len: u32) -> bool {
    let lower = target.lower.as_deref();
    lower.is_some_and(|bdev| bdev.takes_nowait(len))
}

/// Returns whether the file supports non-blocking I/O, and user space allows it.
fn file_takes_nowait(target: &Target, rq: &StartedRequest<LoopQueue>) -> bool {
    target.nowait && rq.device().tunables.nowait.is_on()
}
