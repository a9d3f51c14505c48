// SPDX-License-Identifier: GPL-2.0

//! Statistics: how the requests of a device were served since it was attached, for
//! `/sys/block/loopN/rnull_loop/stats`.
//!
//! The workers of each CPU have [`Stats`] of their own, so that CPUs do not contend for counters.
//! A request that succeeds at once counts once. `docs/abi/sysfs-block-rnull_loop` explains the
//! names.

use super::{
    progress::{
        IoMethod,
        Route,
        Server,
        WorkerKind, //
    },
    target::LoopQueue, //
};
use crate::{
    blk_mq::{
        Op,
        StartedRequest,
        Status, //
    },
    kern::{
        compat::EOPNOTSUPP,
        counters::Counters, //
    },
};
use core::fmt;
use kernel::prelude::*;

macro_rules! counters {
    ($($(#[$doc:meta])* $counter:ident, $name:literal;)*) => {
        /// A counter of a device.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Counter {
            $($(#[$doc])* $counter,)*
        }

        /// The name of each counter, in their order.
        const NAMES: &[&str] = &[$($name),*];
    };
}

counters! {
    /// A transfer that its submitter has passed to the block device that the file is.
    SubmitterRemap, "submitter_remap";
    /// A transfer, or a part of it, that its submitter has passed to the disk of the file system.
    SubmitterExtent, "submitter_extent";
    /// A read that its submitter has tried to copy from the page cache of the file.
    SubmitterCached, "submitter_cached";
    /// As [`SubmitterRemap`](Self::SubmitterRemap), by the helper.
    HelperRemap, "helper_remap";
    /// As [`SubmitterExtent`](Self::SubmitterExtent), by the helper.
    HelperExtent, "helper_extent";
    /// As [`SubmitterRemap`](Self::SubmitterRemap), by the nowait worker.
    NowaitRemap, "nowait_remap";
    /// As [`SubmitterExtent`](Self::SubmitterExtent), by the nowait worker.
    NowaitExtent, "nowait_extent";
    /// A non-blocking transfer by direct I/O to the file.
    NowaitDirect, "nowait_direct";
    /// A non-blocking transfer through the page cache of the file.
    NowaitBuffered, "nowait_buffered";
    /// As [`SubmitterRemap`](Self::SubmitterRemap), by a blocking worker.
    BlockingRemap, "blocking_remap";
    /// As [`SubmitterExtent`](Self::SubmitterExtent), by a blocking worker.
    BlockingExtent, "blocking_extent";
    /// A transfer by direct I/O to the file.
    BlockingDirect, "blocking_direct";
    /// A transfer through the page cache of the file.
    BlockingBuffered, "blocking_buffered";
    /// A transfer through the page cache of a file whose other requests bypass it.
    BlockingAlone, "blocking_alone";
    /// A discard or a write of zeroes.
    Slow, "discard_zero";
    /// A flush that its submitter has passed to the disk.
    FlushBio, "flush_bio";
    /// A flush that the flusher serves.
    FlushFile, "flush_file";
    /// A sync of the file, for one or more flushes.
    FlushSync, "flush_sync";
    /// A non-blocking operation that would have blocked.
    WouldBlock, "would_block";
    /// An operation that has done a part of its request.
    Short, "short";
    /// A request for an extent that the map did not have any more.
    ExtentLost, "extent_lost";
    /// A request of which the file has refused direct I/O.
    DirectRefused, "direct_refused";
    /// An operation that is retried because there was no memory.
    RetryMemory, "retry_memory";
    /// An operation that is retried because the file was busy.
    RetryBusy, "retry_busy";
    /// A write that waits for space, each time that the file has refused it.
    RetrySpace, "retry_nospc";
    /// A request that has failed because the file, or its file system, is full.
    ErrorNoSpace, "error_nospc";
    /// A request that is not supported.
    ErrorUnsupported, "error_notsupp";
    /// A request that has failed for another reason.
    ErrorIo, "error_io";
}

impl Counter {
    /// Returns the name of the counter.
    fn name(self) -> &'static str {
        NAMES.get(self as usize).copied().unwrap_or_default()
    }

    /// Returns the counter of transfers by a route.
    fn of(route: Route) -> Self {
        match (route.server, route.method) {
            (Server::Submitter, IoMethod::Remap) => Self::SubmitterRemap,
            (Server::Submitter, IoMethod::Extent(_)) => Self::SubmitterExtent,
            (Server::Submitter, _) => Self::SubmitterCached,
            (Server::Worker(WorkerKind::Helper), IoMethod::Remap) => Self::HelperRemap,
            (Server::Worker(WorkerKind::Helper), _) => Self::HelperExtent,
            (Server::Worker(WorkerKind::Nowait), IoMethod::Remap) => Self::NowaitRemap,
            (Server::Worker(WorkerKind::Nowait), IoMethod::Extent(_)) => Self::NowaitExtent,
            (Server::Worker(WorkerKind::Nowait), IoMethod::Direct) => Self::NowaitDirect,
            (Server::Worker(WorkerKind::Nowait), _) => Self::NowaitBuffered,
            (Server::Worker(_), IoMethod::Remap) => Self::BlockingRemap,
            (Server::Worker(_), IoMethod::Extent(_)) => Self::BlockingExtent,
            (Server::Worker(_), IoMethod::Direct) => Self::BlockingDirect,
            (Server::Worker(_), IoMethod::BufferedAlone) => Self::BlockingAlone,
            (Server::Worker(_), _) => Self::BlockingBuffered,
        }
    }
}

/// The counters of a CPU.
pub(super) struct Stats(Counters<{ NAMES.len() }>);

impl Stats {
    /// Makes counters that are 0.
    pub(super) fn new() -> Self {
        Self(Counters::new())
    }

    /// Counts a request that was routed. Any context, including hard IRQ.
    pub(super) fn count(&self, rq: &StartedRequest<LoopQueue>, route: Route) {
        let counter = match rq.op() {
            Op::Read | Op::Write => Counter::of(route),
            Op::Flush if route.server == Server::Submitter => Counter::FlushBio,
            Op::Flush => Counter::FlushFile,
            Op::Discard | Op::WriteZeroes | Op::Other => Counter::Slow,
        };
        self.add(counter);
        rq.trace_routed(counter.name());
    }

    fn add(&self, counter: Counter) {
        self.0.increment(counter as usize);
    }

    /// Sets all counters to 0. Any context.
    pub(super) fn reset(&self) {
        self.0.reset();
    }
}

/// Counts `counter` for a request. Any context, including hard IRQ.
pub(super) fn count(rq: &StartedRequest<LoopQueue>, counter: Counter) {
    if let Some(workers) = rq.device().workers(rq) {
        workers.stats.add(counter);
    }
}

/// Counts a request of which an operation has not done all, for the reason `counter`. Any context,
/// including hard IRQ.
pub(super) fn count_requeue(rq: &StartedRequest<LoopQueue>, counter: Counter) {
    count(rq, counter);
    rq.trace_requeued(counter.name());
}

/// Counts a request that was deferred. Any context, including hard IRQ.
pub(super) fn count_route(rq: &StartedRequest<LoopQueue>, route: Route) {
    if let Some(workers) = rq.device().workers(rq) {
        workers.stats.count(rq, route);
    }
}

/// Counts a request that fails with `status`. Any context, including hard IRQ.
pub(super) fn count_error(rq: &StartedRequest<LoopQueue>, status: Status) {
    let counter = if status == Status::from(ENOSPC) {
        Counter::ErrorNoSpace
    } else if status == Status::from(EOPNOTSUPP) {
        Counter::ErrorUnsupported
    } else {
        Counter::ErrorIo
    };
    count(rq, counter);
}

/// Writes a line `name value` for each counter: the sum of those of all CPUs.
pub(super) fn show<'a>(
    all: impl Iterator<Item = &'a Stats> + Clone,
    out: &mut impl fmt::Write,
) -> fmt::Result {
    for (index, name) in NAMES.iter().enumerate() {
        let counters = all.clone().map(|stats| stats.0.get(index));
        let sum = counters.fold(0_u64, u64::wrapping_add);
        writeln!(out, "{name} {sum}")?;
    }
    Ok(())
}
