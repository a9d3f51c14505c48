// SPDX-License-Identifier: GPL-2.0

//! Writes that wait for space: the file system of the backing file is full (`ENOSPC`), or the owner
//! of the file has no quota left (`EDQUOT`), and user space wants writes to wait instead of to fail
//! (`rnull_loop/enospc`).
//!
//! They wait without a limit of time, so a waiting write must hold nothing that other tasks wait
//! for. Its operation is over, and has released what it had acquired. A requeued request would
//! still have a tag, so that a few waiting writes would stop all reads of the device; it would keep
//! its queue from being frozen; and a flush of the block layer may wait for it. So the request ends
//! without its bios ([`StartedRequest::end_without_bios`]). The bios are on a list of the device,
//! and are submitted again after the delays of [`Retries`].
//!
//! - As long as the file is full, a few of them are tried each time, because each may be expensive.
//!   When none has failed since the last time, all are.
//! - A task that makes writes fail again, or detaches the device, has all of them tried at once.
//! - A task that freezes the queue does not wait for them. They are submitted after the thaw.
//!
//! Three works serve them, because the first must never sleep for long: a task that freezes the
//! queue waits for requests that are not on the list yet.

use super::{
    completion,
    retry::{
        Retries,
        Transient, //
    },
    target::LoopQueue, //
};
use crate::{
    blk_mq::{
        BioList,
        RequestList,
        StartedRequest,
        Status, //
    },
    kern::{
        task, time,
        workqueue::{
            flush,
            flush_delayed,
            system_unbound, //
        },
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Full,
                Relaxed, //
            },
            Atomic, //
        },
        Arc,
        Mutex, //
    },
    time::msecs_to_jiffies,
    workqueue::{
        impl_has_delayed_work,
        impl_has_work,
        new_delayed_work,
        new_work,
        system_freezable,
        DelayedWork,
        Work,
        WorkItem, //
    },
};

/// The bios that wait, and when they are tried again.
struct Waiting {
    bios: BioList,
    retries: Retries,
    /// True from the first write that waits until the file is known to have space.
    is_full: bool,
    /// True if a write has failed since the last retry, and the time of the last failure, in
    /// milliseconds, see [`time::uptime_ms`].
    has_failed: bool,
    failed: u64,
    /// True while the next retry is scheduled.
    is_scheduled: bool,
    /// True if the log has a line that writes wait, and none that they do not.
    is_logged: bool,
    /// The time of that line, in milliseconds, see [`time::uptime_ms`]; 0 for none.
    logged: u64,
}

impl Waiting {
    fn new() -> Self {
        Self {
            bios: BioList::new(),
            retries: Retries::new(),
            is_full: false,
            has_failed: false,
            failed: 0,
            is_scheduled: false,
            is_logged: false,
            logged: 0,
        }
    }

    /// Notes that the writes that have waited need not wait any more.
    fn end(&mut self) {
        self.is_full = false;
        self.has_failed = false;
        self.retries.reset();
    }
}

/// The writes of a device that wait for space.
#[pin_data]
struct SpaceWaiters {
    /// The name of the disk: a prefix, and the number.
    prefix: &'static str,
    index: u32,
    /// Requests whose bios are not on the list yet.
    requests: RequestList<LoopQueue>,
    #[pin]
    waiting: Mutex<Waiting>,
    /// Adds the bios of requests to the list.
    #[pin]
    collect: Work<SpaceWaiters, 0>,
    /// Tries some of them.
    #[pin]
    retry: DelayedWork<SpaceWaiters, 1>,
    /// Tries all of them.
    #[pin]
    release: Work<SpaceWaiters, 2>,
    /// The number of guards that make writes fail instead.
    failing: Atomic<u32>,
    /// 1 from the first write that waits: before, the works need not be run or waited for.
    used: Atomic<u32>,
}

impl_has_work! {
    impl HasWork<Self, 0> for SpaceWaiters { self.collect }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for SpaceWaiters { self.retry }
}

impl_has_work! {
    impl HasWork<Self, 2> for SpaceWaiters { self.release }
}

impl SpaceWaiters {
    /// The number of bios that are tried at once as long as the file is full.
    const TRIED: usize = 16;

    /// The shortest time from one line in the log to the next, in milliseconds.
    const LOG_INTERVAL: u64 = 30_000;

    /// The time without a failure after which the file has space, in milliseconds. A write that is
    /// tried may take long to fail.
    const QUIET: u64 = 2_000;

    /// Schedules the next retry.
    fn schedule(self: &Arc<Self>, waiting: &mut Waiting) {
        if waiting.is_scheduled {
            return;
        }
        // There always is one.
        let Some(delay) = waiting.retries.next(Transient::Space, time::now_ms()) else {
            return;
        };
        waiting.is_scheduled = true;
        let delay = msecs_to_jiffies(delay);
        let _ = system_freezable().enqueue_delayed::<_, 1>(self.clone(), delay);
    }

    /// Logs that writes wait, and how to go on.
    fn log_full(&self, waiting: &mut Waiting) {
        let now = time::uptime_ms();
        if waiting.logged != 0 && now.saturating_sub(waiting.logged) < Self::LOG_INTERVAL {
            return;
        }
        waiting.logged = now;
        waiting.is_logged = true;
        pr_warn!(
            "{0}{1}: the file system of the backing file is full: writes wait until it has space; \"echo error >/sys/block/{0}{1}/rnull_loop/enospc\" makes them fail\n",
            self.prefix,
            self.index
        );
    }

    /// Logs that writes do not wait any more, if there is a line that they do.
    fn log_end(&self, waiting: &mut Waiting, reason: &str) {
        if core::mem::replace(&mut waiting.is_logged, false) {
            pr_info!("{}{}: {}\n", self.prefix, self.index, reason);
        }
    }

    /// Takes the bios to try now.
    fn take_some(self: &Arc<Self>) -> BioList {
        let mut waiting = self.waiting.lock();
        waiting.is_scheduled = false;
        if core::mem::replace(&mut waiting.has_failed, false) {
            // Once more after these, to find out whether they have failed.
            self.schedule(&mut waiting);
            return waiting.bios.take_first(Self::TRIED);
        }
        if waiting.is_full && time::uptime_ms().saturating_sub(waiting.failed) < Self::QUIET {
            self.schedule(&mut waiting);
            return BioList::new();
        }
        if core::mem::replace(&mut waiting.is_full, false) {
            self.log_end(
                &mut waiting,
                "the backing file has space again: no write waits",
            );
        }
        waiting.end();
        core::mem::replace(&mut waiting.bios, BioList::new())
    }

    /// Takes all bios, because writes need not wait any more.
    fn take_all(&self) -> BioList {
        let mut waiting = self.waiting.lock();
        if waiting.is_full {
            self.log_end(&mut waiting, "writes do not wait for space any more");
        }
        waiting.end();
        core::mem::replace(&mut waiting.bios, BioList::new())
    }
}

/// Submits bios again. May sleep.
fn submit(bios: BioList) {
    // Requests of this device may wait for memory.
    let _scope = task::IoWorkerScope::enter();
    task::with_plug(|| bios.submit());
}

impl WorkItem<0> for SpaceWaiters {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let mut waiting = this.waiting.lock();
        for rq in this.requests.take_all() {
            // Under the lock, so that `take_all` finds the bios if this is out of date.
            if !rq.device().waits_for_space() {
                completion::fail(rq, ENOSPC);
                continue;
            }
            rq.end_without_bios(&mut waiting.bios, Status::from(ENOSPC));
            waiting.has_failed = true;
            waiting.failed = time::uptime_ms();
        }
        if !waiting.has_failed {
            return;
        }
        waiting.is_full = true;
        if !waiting.is_logged {
            this.log_full(&mut waiting);
        }
        this.schedule(&mut waiting);
    }
}

impl WorkItem<1> for SpaceWaiters {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        submit(this.take_some());
    }
}

impl WorkItem<2> for SpaceWaiters {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        submit(this.take_all());
    }
}

/// Makes a write wait for space. Any context, including hard IRQ.
pub(super) fn wait(rq: StartedRequest<LoopQueue>) {
    // The request may end before the work is queued, so the queue is kept.
    let queue = rq.get_queue();
    let waiters = &queue.device().space.0;
    // ORDERING: `SpaceQueue::is_used` finds this, or `collect` finds that writes must not wait.
    waiters.used.xchg(1, Full);
    if waiters.requests.push(rq) {
        let _ = system_unbound().enqueue::<_, 0>(waiters.clone());
    }
}

/// While this exists, writes fail instead of waiting for space.
#[must_use = "writes wait again when this is dropped"]
pub(crate) struct FailingWrites<'a>(&'a SpaceQueue);

impl Drop for FailingWrites<'_> {
    fn drop(&mut self) {
        self.0 .0.failing.fetch_sub(1, Relaxed);
    }
}

/// The owner of the waiting writes of a device. Dropping it may sleep.
pub(crate) struct SpaceQueue(Arc<SpaceWaiters>);

impl SpaceQueue {
    /// Makes an empty queue of the disk that is named `prefix` and `index`. May sleep.
    pub(super) fn new(prefix: &'static str, index: u32) -> Result<Self> {
        let waiters = Arc::pin_init(
            pin_init!(SpaceWaiters {
                prefix,
                index,
                requests: RequestList::new(),
                waiting <- new_mutex!(Waiting::new(), "SpaceWaiters::waiting"),
                collect <- new_work!("SpaceWaiters::collect"),
                retry <- new_delayed_work!("SpaceWaiters::retry"),
                release <- new_work!("SpaceWaiters::release"),
                failing: Atomic::new(0),
                used: Atomic::new(0),
            }),
            GFP_KERNEL,
        )?;
        Ok(Self(waiters))
    }

    /// Returns whether writes fail instead of waiting. Any context.
    pub(super) fn is_failing(&self) -> bool {
        self.0.failing.load(Relaxed) != 0
    }

    /// Makes writes fail, see [`LoopQueue::fail_without_space`].
    pub(super) fn fail(&self) -> FailingWrites<'_> {
        self.0.failing.fetch_add(1, Relaxed);
        self.release();
        self.flush();
        FailingWrites(self)
    }

    /// Returns whether a write of the device has ever waited. If not, each later one finds what the
    /// caller did before. Any context.
    fn is_used(&self) -> bool {
        // ORDERING: See `wait`.
        self.0.used.fetch_add(0, Full) != 0
    }

    /// Tries all waiting writes at once. The caller has made writes fail. Any context.
    pub(super) fn release(&self) {
        if !self.is_used() {
            return;
        }
        let _ = system_unbound().enqueue::<_, 2>(self.0.clone());
    }

    /// Waits for the works of a device without openers, and thus without writes: they have
    /// submitted bios, and may not have returned from that. May sleep.
    pub(super) fn flush(&self) {
        if !self.is_used() {
            return;
        }
        let waiters: &SpaceWaiters = &self.0;
        flush::<_, 0>(waiters);
        // Twice, because the first run schedules another one if a write has failed before.
        flush_delayed(waiters);
        flush_delayed(waiters);
        flush::<_, 2>(waiters);
    }
}

impl Drop for SpaceQueue {
    fn drop(&mut self) {
        self.flush();
    }
}
