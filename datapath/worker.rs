// SPDX-License-Identifier: GPL-2.0

//! Workers: the tasks that serve requests, except those that their submitters serve.
//!
//! Each CPU has several workers for the requests that are made on it, so that a request that blocks
//! delays few others; with many CPUs, several share theirs:
//!
//! - the **helper** serves requests that their submitter could serve, on another CPU, while that is
//!   faster ([`offload`](super::offload)). It polls for the next request, so that it need not be
//!   woken;
//! - the **nowait worker** blocks only on the tags and the controllers of the lower device. It
//!   serves requests of all cgroups;
//! - a few **blocking workers**. All requests of a cgroup use the same one of a CPU, unless there
//!   was no memory to make it, so that a throttled cgroup delays few others, and sequential I/O
//!   mostly stays in order;
//! - the **cleaner** drops stale pages of the file's page cache, and ends the writes that have
//!   bypassed it. These still hold what other requests wait for;
//! - the **slow worker** serves discards and writes of zeroes.
//!
//! The **flusher** of the device serves the flushes of all CPUs.

use super::{
    offload::{
        Load,
        Offload, //
    },
    progress::WorkerKind,
    route,
    stats::{
        self,
        Counter,
        Stats, //
    },
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
        StartedRequest,
        Status, //
    },
    kern::{
        file::BackingFile,
        task,
        time,
        workqueue::Affinity, //
    },
};
use core::iter::Peekable;
use kernel::{
    alloc::Flags,
    new_mutex,
    prelude::*,
    processor::cpu_relax,
    sync::{
        atomic::{
            ordering::{
                Full,
                Relaxed, //
            },
            Atomic, //
        },
        Arc,
        Mutex,
        SetOnce, //
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
    /// That of the requests, if the worker is the helper, which polls before it sleeps.
    offload: Option<Arc<Offload>>,
    /// True while the worker will look for requests again, so that it need not be queued.
    polling: Atomic<bool>,
    /// The number of times that the helper had slept or lost its CPU when it last looked.
    switches: Atomic<u64>,
    /// The [`task::sleep_count`] of the submitter that queued the worker last.
    last_sleep_count: Atomic<usize>,
    /// Held by the flusher while it serves flushes. A worker of two workqueues may run more than
    /// once at a time, and a second sync would find nothing to flush while the first is not over:
    /// lost write.
    #[pin]
    flushing: Mutex<()>,
    #[pin]
    work: Work<Worker>,
}

impl_has_work! {
    impl HasWork<Self> for Worker { self.work }
}

impl Worker {
    /// The longest time that a worker polls, in nanoseconds.
    const POLL: u64 = 40_000;

    /// Makes a worker without requests. May sleep if `flags` allow that.
    fn new(role: Role, offload: Option<Arc<Offload>>, flags: Flags) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                role,
                requests: RequestList::new(),
                offload,
                polling: Atomic::new(false),
                switches: Atomic::new(0),
                last_sleep_count: Atomic::new(0),
                flushing <- new_mutex!((), "Worker::flushing"),
                work <- new_work!("Worker::work"),
            }),
            flags,
        )
    }

    /// Makes the flusher of a device. May sleep.
    pub(super) fn flusher() -> Result<Arc<Self>> {
        Self::new(Role::Flush, None, GFP_KERNEL)
    }

    /// Passes a request to the worker, and queues the worker unless it has requests already. The
    /// request may end before this returns, so the caller keeps `queue` in another way. Any
    /// context, including hard IRQ.
    fn submit(self: &Arc<Self>, queue: &LoopQueue, rq: StartedRequest<LoopQueue>) {
        // ORDERING: The full barrier of `push` pairs with that of `poll`.
        if self.requests.push(rq) && !self.polling.load(Relaxed) {
            queue.enqueue(self.clone(), self.affinity());
        }
    }

    /// Returns where the worker should run for the current submitter.
    ///
    /// A submitter that slept since it last queued the worker is synchronous: its CPU is about to
    /// become idle, so the worker runs there, because waking another CPU takes longer. Otherwise
    /// the worker runs on any CPU, and the submitter continues.
    fn affinity(&self) -> Affinity {
        if self.offload.is_some() {
            return Affinity::Unbound;
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
    stats::count(first, Counter::FlushSync);
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

impl Worker {
    /// Notes for [`Offload`] if the helper has lost its CPU or slept since the last call.
    fn note_switches(&self) {
        let Some(offload) = &self.offload else { return };
        let switches = task::sleeps().saturating_add(task::preemptions());
        if self.switches.load(Relaxed) != switches {
            self.switches.store(switches, Relaxed);
            offload.note_preemption();
        }
    }

    /// Polls for requests; returns false if there are none, so that the worker has to be queued for
    /// the next one.
    fn poll(&self) -> bool {
        if self.offload.is_none() {
            return false;
        }
        let end = time::now_ns().saturating_add(Self::POLL);
        while self.requests.is_empty() && time::now_ns() < end && !task::need_resched() {
            cpu_relax();
        }
        // ORDERING: A request that is pushed without queueing the worker is found here.
        self.polling.xchg(false, Full);
        let found = !self.requests.is_empty();
        self.polling.store(found, Relaxed);
        found
    }
}

impl WorkItem for Worker {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let _scope = task::IoWorkerScope::enter();
        this.polling.store(this.offload.is_some(), Relaxed);
        loop {
            this.note_switches();
            // Before the requests are taken, so that the next sync is for all that wait.
            let _flushing = (this.role == Role::Flush).then(|| this.flushing.lock());
            let mut batch = this.requests.take_all().peekable();
            if batch.peek().is_none() {
                if this.poll() {
                    continue;
                }
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

/// The load of the machine, and the current task.
struct CurrentLoad;

impl Load for CurrentLoad {
    fn now(&self) -> u64 {
        time::now_ns()
    }

    fn idle(&self) -> u64 {
        task::idle_time_ns()
    }

    fn task(&self) -> usize {
        task::id()
    }

    fn sleeps(&self) -> u64 {
        task::sleeps()
    }

    fn preemptions(&self) -> u64 {
        task::preemptions()
    }
}

/// The workers of a CPU.
pub(crate) struct Workers {
    pub(super) stats: Stats,
    offload: Arc<Offload>,
    helper: Arc<Worker>,
    nowait: Arc<Worker>,
    root: Arc<Worker>,
    /// Each is made when it is needed first, because on most devices none is.
    cgroups: [SetOnce<Arc<Worker>>; Self::CGROUP_WORKERS],
    cleaner: Arc<Worker>,
    slow: Arc<Worker>,
    flusher: Arc<Worker>,
}

impl Workers {
    /// The number of blocking workers for all cgroups but the root.
    const CGROUP_WORKERS: usize = 7;

    /// Makes the workers of a CPU, for a device with that flusher. May sleep if `flags` allow that.
    pub(super) fn new(flusher: Arc<Worker>, flags: Flags) -> Result<KBox<Self>> {
        let blocking = move || Worker::new(Role::Transfer, None, flags);
        let offload = Arc::new(Offload::new(), flags)?;
        // In place, because the stack may be deep.
        KBox::init(
            try_init!(Self {
                stats: Stats::new(),
                helper: Worker::new(Role::Transfer, Some(offload.clone()), flags)?,
                offload,
                nowait: blocking()?,
                root: blocking()?,
                cgroups: [const { SetOnce::new() }; Self::CGROUP_WORKERS],
                cleaner: blocking()?,
                slow: Worker::new(Role::Slow, None, flags)?,
                flusher,
            }? Error),
            flags,
        )
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
            WorkerKind::Helper => &self.helper,
            WorkerKind::Nowait => &self.nowait,
            WorkerKind::Blocking => self.blocking(&rq),
            WorkerKind::Cleaner => &self.cleaner,
            WorkerKind::Slow => &self.slow,
            WorkerKind::Flusher => &self.flusher,
        };
        worker.submit(queue, rq);
    }

    /// Returns whether the helper serves the next request that the current task could serve. Does
    /// not sleep.
    pub(super) fn should_offload(&self) -> bool {
        self.offload.is_on(&CurrentLoad)
    }

    /// Returns the blocking worker of a request's cgroup. Without memory for it, returns another
    /// one: any can serve any request. Any context, including hard IRQ.
    fn blocking(&self, rq: &Request<LoopQueue>) -> &Arc<Worker> {
        let id = cgroup::id(rq);
        if id == 0 {
            return &self.root;
        }
        // The addresses of cgroups differ at least in the bits above those of a cache line.
        let Some(slot) = self.cgroups.get((id / 64) % Self::CGROUP_WORKERS) else {
            return &self.root;
        };
        if slot.as_ref().is_none() {
            if let Ok(worker) = Worker::new(Role::Transfer, None, GFP_NOWAIT) {
                // If another task is about to do the same, its worker is used from the next request
                // on.
                slot.populate(worker);
            }
        }
        // Rather not that of the root, whose requests do not wait for the limits of cgroups.
        let mut others = self.cgroups.iter().filter_map(SetOnce::as_ref);
        slot.as_ref()
            .or_else(|| others.next())
            .unwrap_or(&self.root)
    }
}

/// Passes a write that has left stale pages to the cleaner. Any context, including hard IRQ.
pub(super) fn clean(rq: StartedRequest<LoopQueue>) {
    submit(WorkerKind::Cleaner, rq);
}

/// Defers a transfer or a flush to a worker that may block. Any context, including hard IRQ.
pub(super) fn defer(mut rq: StartedRequest<LoopQueue>) {
    let kind = match rq.op() {
        Op::Flush => {
            // It waits, so that no error means that it would block.
            rq.progress_mut().nowait = false;
            WorkerKind::Flusher
        }
        _ => {
            let route = route::reroute(&rq);
            rq.progress_mut().route = route;
            stats::count_route(&rq, route);
            WorkerKind::Blocking
        }
    };
    submit(kind, rq);
}

/// Passes a request to a worker of the CPU that it was made on. Any context, including hard IRQ.
fn submit(kind: WorkerKind, rq: StartedRequest<LoopQueue>) {
    // The request may end before the worker is queued, so the queue is kept.
    let queue = rq.get_queue();
    match queue.device().workers(&rq) {
        Some(workers) => workers.submit(queue.device(), kind, rq),
        None => rq.end(Status::IOERR),
    }
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
