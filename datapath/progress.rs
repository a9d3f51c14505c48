// SPDX-License-Identifier: GPL-2.0

//! The part of a request that the driver keeps while it serves the request.

use super::{
    leasing::Extent,
    retry::Retries, //
};
use crate::aio::Wait;

/// The task that serves a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// The submitter, in the call of `->queue_rq`. Must not block on the file.
    Submitter,
    /// A worker.
    Worker(WorkerKind),
}

/// A worker of a CPU, or of the device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerKind {
    /// The worker of a CPU that helps a submitter there from another CPU. As the nowait worker, it
    /// does not block on the file.
    Helper,
    /// The worker of a CPU that does not block on the file. A remapped request may block on the
    /// lower device, see [`Route::bio_wait`].
    Nowait,
    /// The worker of a CPU for the request's cgroup, which may block.
    Blocking,
    /// The worker of a CPU that drops stale pages of the file's page cache. It waits neither for
    /// other requests nor for the thaw of a file system: these may wait for the requests that it
    /// serves.
    Cleaner,
    /// The worker of a CPU for operations that are slow by nature.
    Slow,
    /// The worker of the device for flushes.
    Flusher,
}

/// The I/O method of a read or a write: the way of its data.
#[derive(Clone, Copy)]
pub(super) enum IoMethod {
    /// As a bio to the block device that the backing file is, past the file and its page cache.
    Remap,
    /// As a bio to the disk of the file's file system, at the place of the blocks.
    Extent(Extent),
    /// By direct I/O to the file.
    Direct,
    /// Through the page cache of the file.
    Buffered,
    /// A read from the page cache of the file, which must have all of it.
    Cached,
    /// Through the page cache of a file whose other requests bypass it, while no direct write is in
    /// flight.
    BufferedAlone,
}

impl IoMethod {
    /// Returns whether data bypasses the page cache of the file.
    pub(super) fn is_direct(self) -> bool {
        matches!(self, Self::Remap | Self::Extent(_) | Self::Direct)
    }
}

/// The use of the extent map by a request, which has entered to
/// [use](super::leasing::Leasing::users) it, or to
/// [write](super::leasing::Leasing::enter_file_write) to the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bypass {
    /// None. The request has not entered.
    No,
    /// None. The operation was not started.
    Unstarted,
    /// A direct write goes through the file.
    File,
    /// The request is submitted as a bio to the places of its blocks.
    Bio,
    /// A write has done this many bytes, but the page cache of the file may have stale pages.
    Stale(u32),
    /// The page cache of the file has no stale pages.
    Done,
}

/// The server and the I/O method of a request.
#[derive(Clone, Copy)]
pub(super) struct Route {
    /// The task that serves it.
    pub(super) server: Server,
    /// The I/O method. Meaningless for requests that are neither reads nor writes.
    pub(super) method: IoMethod,
}

impl Route {
    /// Makes a route for a blocking worker, which can serve every read or write.
    pub(super) fn blocking(method: IoMethod) -> Self {
        Self {
            server: Server::Worker(WorkerKind::Blocking),
            method,
        }
    }

    /// Returns whether the server may wait for other transfers of the device, and for the file.
    pub(super) fn wait(self) -> Wait {
        match self.server {
            Server::Submitter | Server::Worker(WorkerKind::Helper | WorkerKind::Nowait) => {
                Wait::Forbidden
            }
            Server::Worker(_) => Wait::Allowed,
        }
    }

    /// Returns whether the server may block on the block device that a bio is submitted to.
    ///
    /// All workers may. They wait for a tag, which the requests behind this one need as well, or
    /// for a controller of the lower device (`blk-iocost`, writeback throttling).
    pub(super) fn bio_wait(self) -> Wait {
        match self.server {
            Server::Submitter => Wait::Forbidden,
            Server::Worker(_) => Wait::Allowed,
        }
    }
}

/// The driver's part of a request: its route, and how far it has come.
///
/// The memory belongs to the tag. So [`queue_rq`](super::queue) resets it when a request is
/// dispatched for the first time. A request that is requeued keeps it; only the route is chosen
/// again.
pub(crate) struct Progress {
    /// The route that was chosen when the request was dispatched or deferred.
    pub(super) route: Route,
    /// True if the operation in flight is non-blocking.
    pub(super) nowait: bool,
    /// True if the request must be served by a task that may block, because a non-blocking
    /// operation would have blocked or has failed.
    pub(super) must_block: bool,
    /// True if the last operation failed because there was no memory.
    pub(super) lacked_memory: bool,
    /// True if direct I/O of the request was refused, so that it uses the page cache.
    pub(super) direct_refused: bool,
    /// True if the request holds freeze protection of the file.
    pub(super) holds_write: bool,
    /// True if the request is inside the gate of
    /// [direct I/O](super::target::LoopQueue::direct_io).
    pub(super) in_gate: bool,
    /// The use of the extent map.
    pub(super) bypass: Bypass,
    /// The retries since the request last made progress.
    pub(super) retries: Retries,
}

impl Progress {
    /// Makes the part of a request that was not dispatched yet.
    pub(super) fn new() -> Self {
        Self {
            route: Route::blocking(IoMethod::Buffered),
            nowait: false,
            must_block: false,
            lacked_memory: false,
            direct_refused: false,
            holds_write: false,
            in_gate: false,
            bypass: Bypass::No,
            retries: Retries::new(),
        }
    }
}
