// SPDX-License-Identifier: GPL-2.0

//! Step 2 of a request: it waits for the worker of its hardware context.

#![forbid(unsafe_code)]

use crate::{
    blk_mq::{
        RequestList,
        StartedRequest, //
    },
    command,
    device::LoopDevice,
    kern::task, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};

/// The worker of one hardware context: a list that takes requests without a lock, and a work item
/// that empties it.
#[pin_data]
pub(crate) struct Worker {
    requests: RequestList<LoopDevice>,
    #[pin]
    work: Work<Worker>,
}

impl_has_work! {
    impl HasWork<Self> for Worker { self.work }
}

impl Worker {
    /// A worker with nothing to do. May sleep.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                requests: RequestList::new(),
                work <- new_work!("Worker::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Leaves a request to the worker. Does not sleep.
    ///
    /// Wakes the worker only when it has run out of requests; one that has not takes this one with
    /// the others.
    pub(crate) fn submit(self: &Arc<Self>, device: &LoopDevice, rq: StartedRequest<LoopDevice>) {
        if self.requests.push(rq) {
            device.enqueue(self.clone());
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
            // What the files submit goes to their devices in batches as well. The plug is finished
            // before the next batch is taken, so nothing waits in it for others.
            task::with_plug(|| {
                for rq in batch {
                    command::execute(rq);
                    task::cond_resched();
                }
            });
        }
    }
}
