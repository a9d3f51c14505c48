// SPDX-License-Identifier: GPL-2.0

//! Step 2 of a request, the safe way: it waits for a worker.
//!
//! Each hardware context has several, so that what takes long is in nobody's way:
//!
//! - one that waits for nothing but tags and controllers of the device below, for reads that may be at hand
//!   and what goes on to a block device, of whatever control group;
//! - one for each of a few lanes, which waits for what the first one has left, or for what is known to
//!   wait. A control group always takes the same lane of a hardware context, so one that is throttled
//!   holds up few others, and what reads or writes in order mostly does so in order;
//! - one for what is slow by nature: discards, zeroes.
//!
//! The whole device has one for flushes: many become one `fdatasync()`.

#![forbid(unsafe_code)]

use crate::{
    aio::Wait,
    blk_mq::{
        Op,
        Request,
        RequestList,
        StartedRequest, //
    },
    command,
    device::LoopDevice,
    kern::{
        cgroup::{
            self,
            ChargeScope, //
        },
        file::BackingFile,
        task,
        workqueue::Place, //
    },
};
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

/// What a worker does with its requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    /// Reads and writes, without waiting.
    Try,
    /// Reads and writes.
    Wait,
    /// Discards and the like.
    Slow,
    /// Flushes, all at once.
    Flush,
}

/// A list that takes requests without a lock, and a work item that empties it.
#[pin_data]
pub(crate) struct Worker {
    task: Task,
    requests: RequestList<LoopDevice>,
    /// Who last woke it, see [`task::wakefulness`].
    waker: Atomic<usize>,
    #[pin]
    work: Work<Worker>,
}

impl_has_work! {
    impl HasWork<Self> for Worker { self.work }
}

impl Worker {
    /// A worker with nothing to do. May sleep.
    fn new(task: Task) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                task,
                requests: RequestList::new(),
                waker: Atomic::new(0),
                work <- new_work!("Worker::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// A worker for flushes. May sleep.
    pub(crate) fn flusher() -> Result<Arc<Self>> {
        Self::new(Task::Flush)
    }

    /// Leaves a request to the worker. Does not sleep.
    ///
    /// Wakes the worker only when it has run out of requests; one that has not takes this one with
    /// the others. `device` outlives the call.
    pub(crate) fn submit(self: &Arc<Self>, device: &LoopDevice, rq: StartedRequest<LoopDevice>) {
        if self.requests.push(rq) {
            device.enqueue(self.clone(), self.place());
        }
    }

    /// Where to run for the current submitter.
    ///
    /// Who sleeps between two requests waits for them, so that this CPU will be free; to wake another
    /// one would take longer. Who does not goes on meanwhile.
    ///
    /// The flusher stays with one workqueue, which sees to it that it runs once at a time.
    fn place(&self) -> Place {
        if self.task == Task::Flush {
            return Place::Here;
        }
        if task::is_realtime() || task::is_on_isolated_cpu() {
            return Place::Anywhere;
        }
        let waker = task::wakefulness();
        if self.waker.load(Relaxed) == waker {
            return Place::Anywhere;
        }
        self.waker.store(waker, Relaxed);
        Place::Here
    }

    fn serve(&self, rq: StartedRequest<LoopDevice>) {
        let _scope = charge(&rq);
        match self.task {
            Task::Slow | Task::Flush => command::execute_slow(rq),
            Task::Wait => drop(command::transfer(rq, Wait::Allowed)),
            Task::Try => {
                if let Err(rq) = command::transfer(rq, Wait::Forbidden) {
                    leave(rq);
                }
            }
        }
    }

    /// Makes durable what was written before any of the flushes: one `fdatasync()` for all.
    fn flush(&self, flushes: impl Iterator<Item = StartedRequest<LoopDevice>>) {
        let mut flushes = flushes.peekable();
        let Some(first) = flushes.peek() else { return };
        let _scope = charge(first);
        let result = first
            .io()
            .map_or(Err(EIO), |target| target.file.sync_data(&target.reported));
        for rq in flushes {
            rq.complete(result.map(|()| 0));
        }
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
            if this.task == Task::Flush {
                this.flush(batch);
                continue;
            }
            // What the files submit goes to their devices in batches as well. The plug is finished
            // before the next batch is taken, so nothing waits in it for others.
            task::with_plug(|| {
                for rq in batch {
                    this.serve(rq);
                    task::cond_resched();
                }
            });
        }
    }
}

/// The workers of a hardware context.
pub(crate) struct Workers {
    first: Arc<Worker>,
    lanes: KVec<Arc<Worker>>,
    slow: Arc<Worker>,
}

impl Workers {
    /// How many lanes there are: one for the root, the others for all other control groups.
    const LANES: usize = 8;

    /// Workers with nothing to do. May sleep.
    pub(crate) fn new() -> Result<Self> {
        let mut lanes = KVec::with_capacity(Self::LANES, GFP_KERNEL)?;
        for _ in 0..Self::LANES {
            lanes.push(Worker::new(Task::Wait)?, GFP_KERNEL)?;
        }
        Ok(Self {
            first: Worker::new(Task::Try)?,
            lanes,
            slow: Worker::new(Task::Slow)?,
        })
    }

    /// Leaves a request to a worker, to the one that does not wait if it is `due` to try that. Does
    /// not sleep. `self` and `device` outlive the call.
    pub(crate) fn submit(&self, device: &LoopDevice, rq: StartedRequest<LoopDevice>, due: bool) {
        let worker = match rq.op() {
            Op::Flush => &device.flusher,
            Op::Read | Op::Write if command::is_worth_a_try(&rq, due) => &self.first,
            Op::Read | Op::Write => self.lane(&rq),
            Op::Discard | Op::WriteZeroes | Op::Other => &self.slow,
        };
        worker.submit(device, rq);
    }

    /// The lane of a request's control group.
    fn lane(&self, rq: &Request<LoopDevice>) -> &Arc<Worker> {
        let lane = match cgroup::id(rq) {
            0 => 0,
            // Their addresses differ in the bits above those of a cache line at the latest.
            id => 1 + (id / 64) % (Self::LANES - 1),
        };
        self.lanes.get(lane).unwrap_or(&self.first)
    }
}

/// Has what a worker does for a request charged to who is behind it.
///
/// Not the memory, where the control group may have none left and its tasks wait for this request: it has
/// failed for that before, or swaps out. The C driver charges what it needs to swap out to who swaps, who
/// may be killed for want of it.
fn charge(rq: &Request<LoopDevice>) -> Option<ChargeScope> {
    ChargeScope::enter(rq, !rq.data().lacked_memory() && !rq.is_swap())
}

/// Leaves a request that would have had to wait to who may.
fn leave(rq: StartedRequest<LoopDevice>) {
    // The request may be over before it is seen to that the lane runs.
    let queue = rq.keep_queue();
    queue.hw().lane(&rq).submit(queue.device(), rq);
}
