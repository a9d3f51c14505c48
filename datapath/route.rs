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
//! - **Requests to a file, in a batch**: A worker serves them while the submitter has a plug,
//!   because the submitter may then hold a request that is on no list; `blk_mq/submitter.rs`
//!   explains the deadlock.
//! - **Reads of a file**: Only for user tasks, and only while the disk has no exclusive owner.
//!   Otherwise we would re-enter a file system while the task holds the locks and the
//!   `journal_info` of another one. (A file system may be mounted just after the check; the
//!   requests in flight were then submitted by other tasks. A loop device on top of this one is no
//!   exclusive owner, but its saved I/O context is detected.) The I/O is non-blocking.
//! - **Writes to a file**: The result of a write depends on the task: its limits, privileges and
//!   signals. Only writes for which none of these matters are submitted, and they are non-blocking:
//!   a file system fails a write over blocks that are not allocated yet. FUA writes may block on
//!   the journal.
//! - **cgroups**: I/O to a file is charged to the current task, so the cgroup of the request must
//!   be that of the task. They differ where a scheduler, or a lack of tags, makes a task dispatch
//!   the requests of others.
//! - **Signals**: A fatal signal of the submitter must not fail the request, which may not be its
//!   own: on `EINTR` the request is deferred to a worker.
//! - **Buffered reads**: Page-cache hits start no I/O. The submitter of a read that fills the page
//!   cache of a block device holds `invalidate_lock`, and reading a backing block device takes the
//!   same lock class of another inode.
//! - **Buffered writes**: Always by a worker, because they wait in `balance_dirty_pages()`.
//!
//! # The nowait worker
//!
//! Reads that a file can serve without blocking, and all remapped requests, so that they never
//! wait behind a request that blocks. Writes to a file nearly always block, if only for the next
//! time stamp.
//!
//! User space can forbid these routes for each device, see [`tunables`](super::tunables).

use super::{
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
};
use crate::{
    aio::Caching,
    blk_mq::{
        cgroup,
        Op,
        StartedRequest,
        Submitter, //
    },
    kern::file::BackingFile, //
};

/// Returns the route of a request that `submitter` dispatches. Called once for each dispatch,
/// because each call counts as a chance of [`Backoff`](super::backoff::Backoff). Does not sleep.
pub(super) fn route(rq: &StartedRequest<LoopQueue>, submitter: &Submitter) -> Route {
    match rq.op() {
        Op::Read | Op::Write => route_transfer(rq, submitter),
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

/// Decides how a worker that may block serves a transfer, or the rest of one, after an operation
/// that would have blocked, was short or was refused. Any context, including hard IRQ.
pub(super) fn reroute(rq: &StartedRequest<LoopQueue>) -> Route {
    Route::blocking(method(rq.backend(), rq))
}

fn route_transfer(rq: &StartedRequest<LoopQueue>, submitter: &Submitter) -> Route {
    let target = rq.backend();
    let method = method(target, rq);
    if rq.progress().must_block || method == IoMethod::BufferedAlone {
        return Route::blocking(method);
    }
    let try_nowait = target.backoff(rq.op()).should_try();
    let server = if try_nowait && submitter_may_serve(target, method, rq, submitter) {
        Server::Submitter
    } else if worker_tries_nowait(target, method, rq, try_nowait) {
        Server::Worker(WorkerKind::Nowait)
    } else {
        Server::Worker(WorkerKind::Blocking)
    };
    Route { server, method }
}

/// Returns the I/O method of a read or a write.
///
/// Pages in the cache of a block device may be newer than the device, and a device that has become
/// shorter or read-only must fail in its own way, so such requests are not remapped.
fn method(target: &Target, rq: &StartedRequest<LoopQueue>) -> IoMethod {
    if target.caching == Caching::Buffered {
        return IoMethod::Buffered;
    }
    if rq.progress().direct_refused || target.is_split_block(rq) {
        return IoMethod::BufferedAlone;
    }
    match target.block_device() {
        Some(bdev)
            if rq.device().tunables.remap.is_on()
                && !target.file.is_cached()
                && target.can_access(bdev, rq) =>
        {
            IoMethod::Remap
        }
        _ => IoMethod::Direct,
    }
}

/// Returns whether the submitter may serve a read or a write; the module documentation gives the
/// reasons.
fn submitter_may_serve(
    target: &Target,
    method: IoMethod,
    rq: &StartedRequest<LoopQueue>,
    submitter: &Submitter,
) -> bool {
    if !rq.device().tunables.inline.is_on() {
        return false;
    }
    match (method, rq.op()) {
        (IoMethod::Remap, _) => takes_nowait_bio(target, rq) && submitter.may_submit(),
        (IoMethod::BufferedAlone, _) | (IoMethod::Buffered, Op::Write) => false,
        (IoMethod::Direct | IoMethod::Buffered, op) => {
            file_takes_nowait(target, rq)
                && !rq.disk_has_holder()
                && submitter.may_enter_file_system()
                && cgroup::is_of_current(rq)
                && match op {
                    Op::Read => !target.file.changes_atime() && !shares_lock_class(target, rq),
                    _ => !rq.is_fua() && target.file.write_is_task_independent(target.end_of(rq)),
                }
        }
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
        (IoMethod::Remap, _) => true,
        (IoMethod::Direct | IoMethod::Buffered, Op::Read) => {
            try_nowait && file_takes_nowait(target, rq)
        }
        _ => false,
    }
}

/// Returns whether the submitter of a read may hold a lock of a class that reading the file takes:
/// `invalidate_lock` of a block device.
fn shares_lock_class(target: &Target, rq: &StartedRequest<LoopQueue>) -> bool {
    target.block_device().is_some() && rq.fills_page_cache()
}

/// Returns whether the block device takes a request as a non-blocking bio.
fn takes_nowait_bio(target: &Target, rq: &StartedRequest<LoopQueue>) -> bool {
    target
        .block_device()
        .is_some_and(|bdev| bdev.has_nowait() && rq.len() <= bdev.max_bytes())
}

/// Returns whether the file supports non-blocking I/O, and user space allows it.
fn file_takes_nowait(target: &Target, rq: &StartedRequest<LoopQueue>) -> bool {
    target.nowait && rq.device().tunables.nowait.is_on()
}
