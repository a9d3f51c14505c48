// SPDX-License-Identifier: GPL-2.0

//! The workers of a device, and the workqueues that run them.
//!
//! Many devices get few requests, so the first attach makes only the workers of the CPU that it
//! runs on, and the workqueue for work on any CPU. The first request on another CPU makes the
//! workers of that CPU. The workqueue for work on the CPU of its submitter is made when a worker
//! would use it first.

use super::{
    stats::Stats,
    worker::{
        Worker,
        Workers, //
    },
};
use crate::kern::{
    task,
    workqueue::{
        self,
        Affinity,
        OwnedQueue, //
    },
};
use kernel::{
    cpu::CpuId,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        SetOnce, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        RawWorkItem,
        Work,
        WorkItem, //
    },
};

/// The workers of a device, and their workqueues, which go with the device, because destroying a
/// workqueue waits for its work.
///
/// Devices do not share workqueues: a workqueue runs a limited number of workers at a time, so
/// devices whose workers block would stop the others, or deadlock with a device above them.
pub(super) struct Service {
    per_cpu: Arc<PerCpuQueue>,
    unbound: OwnedQueue,
    /// The workers of each CPU; with more CPUs, several share theirs.
    workers: KVec<SetOnce<KBox<Workers>>>,
    flusher: Arc<Worker>,
}

impl Service {
    /// The maximum number of CPUs that have workers of their own.
    const MAX_CPUS: u32 = 8;

    /// Makes the workers of this CPU, and a workqueue called `name`. May sleep.
    pub(super) fn new(name: &CStr) -> Result<Self> {
        let count = Self::MAX_CPUS.min(task::num_online_cpus());
        let flusher = Worker::flusher()?;
        let mut workers = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for _ in 0..count {
            workers.push(SetOnce::new(), GFP_KERNEL)?;
        }
        let service = Self {
            per_cpu: PerCpuQueue::new(name)?,
            unbound: OwnedQueue::new(name, Affinity::Unbound)?,
            workers,
            flusher,
        };
        let slot = service
            .slot_of(CpuId::current().as_u32() as usize)
            .ok_or(EINVAL)?;
        slot.populate(Workers::new(service.flusher.clone(), GFP_KERNEL)?);
        Ok(service)
    }

    fn slot_of(&self, cpu: usize) -> Option<&SetOnce<KBox<Workers>>> {
        self.workers.get(cpu.checked_rem(self.workers.len())?)
    }

    /// Returns the workers of a CPU. Without memory for them, returns the workers of another CPU,
    /// because any worker can serve any request. Any context, including hard IRQ.
    pub(super) fn workers_of(&self, cpu: usize) -> Option<&Workers> {
        let slot = self.slot_of(cpu)?;
        match slot.as_ref() {
            Some(workers) => Some(workers),
            None => self.new_workers(slot),
        }
    }

    #[cold]
    fn new_workers<'a>(&'a self, slot: &'a SetOnce<KBox<Workers>>) -> Option<&'a Workers> {
        if let Ok(workers) = Workers::new(self.flusher.clone(), GFP_NOWAIT) {
            // If another task does the same now, its workers are used from the next request on.
            slot.populate(workers);
        }
        let made = slot.as_ref().or_else(|| self.made().next());
        made.map(|workers| &**workers)
    }

    fn made(&self) -> impl Iterator<Item = &KBox<Workers>> + Clone {
        self.workers.iter().filter_map(SetOnce::as_ref)
    }

    pub(super) fn stats(&self) -> impl Iterator<Item = &Stats> + Clone {
        self.made().map(|workers| &workers.stats)
    }

    /// Queues a worker, unless it is queued already. Any context, including hard IRQ.
    pub(super) fn enqueue<W>(&self, worker: W, affinity: Affinity)
    where
        W: RawWorkItem<0> + Send + 'static,
    {
        let per_cpu = match affinity {
            Affinity::PerCpu => self.per_cpu.get(),
            Affinity::Unbound => None,
        };
        drop(per_cpu.unwrap_or(&self.unbound).enqueue(worker));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The work item runs code of the module: use after free if the module were unloaded before.
        workqueue::flush(&*self.per_cpu);
    }
}

/// A workqueue for work on the CPU that queues it, made on first use.
///
/// A work item makes it, because a request must not: deadlock, if the task that holds a lock of
/// workqueues or of CPU hotplug waits for the request.
#[pin_data]
struct PerCpuQueue {
    name: CString,
    queue: SetOnce<OwnedQueue>,
    #[pin]
    make: Work<PerCpuQueue>,
}

impl_has_work! {
    impl HasWork<Self> for PerCpuQueue { self.make }
}

impl PerCpuQueue {
    fn new(name: &CStr) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                name: name.try_into()?,
                queue: SetOnce::new(),
                make <- new_work!("PerCpuQueue::make"),
            }),
            GFP_KERNEL,
        )
    }

    /// Returns the workqueue, or queues the work item that makes it. Any context, including hard
    /// IRQ.
    fn get(self: &Arc<Self>) -> Option<&OwnedQueue> {
        let queue = self.queue.as_ref();
        if queue.is_none() {
            // The work item may be queued already.
            drop(workqueue::system_unbound().enqueue(self.clone()));
        }
        queue
    }
}

impl WorkItem for PerCpuQueue {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if this.queue.as_ref().is_some() {
            return;
        }
        // Memory reclaim must not wait for a loop device: its workers may be frozen for a suspend,
        // which waits for the lock of workqueues that this call holds.
        let _scope = task::IoWorkerScope::enter();
        // Without memory, the next request tries again.
        if let Ok(queue) = OwnedQueue::new(&this.name, Affinity::PerCpu) {
            this.queue.populate(queue);
        }
    }
}
