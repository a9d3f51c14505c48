// SPDX-License-Identifier: GPL-2.0

//! Workers: the tasks that serve requests, except those that their submitters serve.
//!
//! Each hardware context has several workers, so that a request that blocks delays few others:
//!
//! - the **nowait worker** blocks only on the tags and the controllers of the lower device. It
//!   serves requests of all cgroups;
//! - a few **blocking workers**. All requests of a cgroup use the same one of a hardware context,
//!   so that a throttled cgroup delays few others, and sequential I/O mostly stays in order;
//! - the **cleaner** drops stale pages of the file's page cache, and ends the writes that have
//!   bypassed it. These still hold what other requests wait for;
//! - the **slow worker** serves discards and writes of zeroes.
//!
//! The **flusher** of the device serves the flushes of all hardware contexts.

use super::{
    progress::WorkerKind,
    route,
    target::LoopQueue,
    transfer, //
};
use crate::{
    blk_mq::{
        self,
        cgroup::{
            self,
            ChargeScope, //
        },
        Op,
        Request,
        RequestList,
        StartedRequest, //
    },
    kern::{
        file::BackingFile,
        task,
        workqueue::Affinity, //
    },
};
use core::iter::Peekable;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};

/// The requests that a worker serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Transfers data, by the route of each request.
    Transfer,
    /// Discards and zeroes.
    Slow,
    /// Flushes, for all requests at once.
    Flush,
}

/// Requests that a worker has taken.
type Batch = Peekable<blk_mq::Batch<LoopQueue>>;

/// A list that takes requests without a lock, and a work item that empties it.
#[pin_data]
pub(crate) struct Worker {
    role: Role,
    requests: RequestList<LoopQueue>,
    /// The [`task::sleep_count`] of the submitter that queued the worker last.
    last_sleep_count: Atomic<usize>,
    #[pin]
    work: Work<Worker>,
}

impl_has_work! {
    impl HasWork<Self> for Worker { self.work }
}

impl Worker {
    /// Makes a worker without requests. May sleep.
    fn new(role: Role) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                role,
                requests: RequestList::new(),
                last_sleep_count: Atomic::new(0),
                work <- new_work!("Worker::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes the flusher of a device. May sleep.
    pub(crate) fn flusher() -> Result<Arc<Self>> {
        Self::new(Role::Flush)
    }

    /// Passes a request to the worker, and queues the worker unless it has requests already. The
    /// request may end before this returns, so the caller keeps `queue` in another way. Any
    /// context, including hard IRQ.
    fn submit(self: &Arc<Self>, queue: &LoopQueue, rq: StartedRequest<LoopQueue>) {
        if self.requests.push(rq) {
            queue.enqueue(self.clone(), self.affinity());
        }
    }

    /// Returns where the worker should run for the current submitter.
    ///
    /// A submitter that slept since it last queued the worker is synchronous: its CPU is about to
    /// become idle, so the worker runs there, because waking another CPU takes longer. Otherwise
    /// the worker runs on any CPU, and the submitter continues.
    ///
    /// The flusher always uses the same workqueue, which runs a work item on one CPU at a time.
    fn affinity(&self) -> Affinity {
        if self.role == Role::Flush {
            return Affinity::PerCpu;
        }
        if !task::is_current() || task::is_realtime() || task::is_on_isolated_cpu() {
            return Affinity::Unbound;
        }
        let sleep_count = task::sleep_count();
        if self.last_sleep_count.load(Relaxed) == sleep_count {
            return Affinity::Unbound;
        }
        self.last_sleep_count.store(sleep_count, Relaxed);
        Affinity::PerCpu
    }
}

/// Serves requests one by one, each by `submit`.
///
/// The plug passes the requests to the lower device in batches, too. It is finished before the next
/// batch is taken, so that no request is held back in it.
fn serve(batch: Batch, submit: impl Fn(StartedRequest<LoopQueue>)) {
    task::with_plug(|| {
        for rq in batch {
            let scope = charge(&rq);
            submit(rq);
            drop(scope);
            task::cond_resched();
        }
    });
}

/// Serves flushes: one `fdatasync()` for all of them makes all writes durable that were
/// acknowledged before.
fn flush(mut batch: Batch) {
    let Some(first) = batch.peek() else { return };
    let _scope = charge(first);
    let target = first.backend();
    // A sync may clear the flag by which the page cache reports a failed writeback to a transfer
    // that uses the page cache, so there must be no such transfer at the same time.
    let gate = &first.device().direct_io;
    let result = match &target.leasing {
        Some(leasing) => leasing.sync(&target.wb_err),
        None => {
            gate.enter_blocking();
            let result = target.file.fdatasync(&target.wb_err);
            gate.leave();
            result
        }
    };
    for rq in batch {
        rq.operation_done(result.map(|()| 0));
    }
}

impl WorkItem for Worker {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let _scope = task::IoWorkerScope::enter();
        loop {
            let mut batch = this.requests.take_all().peekable();
            if batch.peek().is_none() {
                break;
            }
            match this.role {
                Role::Transfer => serve(batch, transfer::submit),
                Role::Slow => serve(batch, transfer::submit_slow),
                Role::Flush => flush(batch),
            }
        }
    }
}

/// The workers of a hardware context.
pub(crate) struct Workers {
    nowait: Arc<Worker>,
    root: Arc<Worker>,
    cgroups: [Arc<Worker>; Self::CGROUP_WORKERS],
    cleaner: Arc<Worker>,
    slow: Arc<Worker>,
    flusher: Arc<Worker>,
}

impl Workers {
    /// The number of blocking workers for all cgroups but the root.
    const CGROUP_WORKERS: usize = 7;

    /// Makes the workers of a hardware context of a device with that flusher. May sleep.
    pub(crate) fn new(flusher: Arc<Worker>) -> Result<Self> {
        let blocking = || Worker::new(Role::Transfer);
        Ok(Self {
            nowait: Worker::new(Role::Transfer)?,
            root: blocking()?,
            cgroups: [
                blocking()?,
                blocking()?,
                blocking()?,
                blocking()?,
                blocking()?,
                blocking()?,
                blocking()?,
            ],
            cleaner: Worker::new(Role::Transfer)?,
            slow: Worker::new(Role::Slow)?,
            flusher,
        })
    }

    /// Passes a request to a worker. The request may end before this returns, so the caller keeps
    /// `self` and `queue` in another way. Any context, including hard IRQ.
    pub(super) fn submit(
        &self,
        queue: &LoopQueue,
        kind: WorkerKind,
        rq: StartedRequest<LoopQueue>,
    ) {
        let worker = match kind {
            WorkerKind::Nowait => &self.nowait,
            WorkerKind::Blocking => self.blocking(&rq),
            WorkerKind::Cleaner => &self.cleaner,
            WorkerKind::Slow => &self.slow,
            WorkerKind::Flusher => &self.flusher,
        };
        worker.submit(queue, rq);
    }

    /// Returns the blocking worker of a request's cgroup.
    fn blocking(&self, rq: &Request<LoopQueue>) -> &Arc<Worker> {
        match cgroup::id(rq) {
            0 => &self.root,
            // The addresses of cgroups differ at least in the bits above those of a cache line. The
            // index is in range; but any blocking worker can serve any request.
            id => self
                .cgroups
                .get((id / 64) % Self::CGROUP_WORKERS)
                .unwrap_or(&self.root),
        }
    }
}

/// Passes a write that has left stale pages to the cleaner. Any context, including hard IRQ.
pub(super) fn clean(rq: StartedRequest<LoopQueue>) {
    let queue = rq.get_queue();
    queue.hw().submit(queue.device(), WorkerKind::Cleaner, rq);
}

/// Defers a transfer or a flush to a worker that may block. Any context, including hard IRQ.
pub(super) fn defer(mut rq: StartedRequest<LoopQueue>) {
    let kind = match rq.op() {
        Op::Flush => WorkerKind::Flusher,
        _ => {
            rq.progress_mut().route = route::reroute(&rq);
            WorkerKind::Blocking
        }
    };
    // The request may end before the worker is queued, so the queue is kept.
    let queue = rq.get_queue();
    queue.hw().submit(queue.device(), kind, rq);
}

/// Charges the I/O and the memory that a worker needs for a request to the cgroup of the request.
///
/// The memory is not charged if the cgroup may have none left and its tasks wait for this request:
/// the request has failed before because there was no memory, or is swap I/O. (The C driver charges
/// the memory for swapping out to the task that swaps, and the OOM killer may kill that task for
/// it.)
fn charge(rq: &StartedRequest<LoopQueue>) -> Option<ChargeScope> {
    ChargeScope::enter(rq, !rq.progress().lacked_memory && !rq.is_swap())
}
