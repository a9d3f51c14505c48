// SPDX-License-Identifier: GPL-2.0

//! Step 2 of a request, the short way: it is submitted in the context of its submitter.
//!
//! That spares two switches of context, and is allowed only where nobody could tell the difference.
//! A variant without these rules was merged into the C driver in 2025 and reverted: it overflowed
//! stacks, and entered file systems from inside others. What is asked of the submitter, which any
//! task may be, stands in [`Submitter`]; what is asked of the request here:
//!
//! - **Requests for another block device** go on as bios, as those of device-mapper do. No file system
//!   is entered, so it does not matter who submits, but that the device below may throttle (`io.cost`) whose
//!   I/O it is, and who submits waits. A bio that does not wait cannot be split, so long ones are left
//!   to workers.
//! - **Files** are left to workers while the submitter has a plug: its flush may be for a request
//!   that is on no list yet, of a queue that the file system would wait for. A request of a batch
//!   goes to a worker.
//! - **Reads of a file** are submitted for tasks of user space alone, and while nobody holds the device:
//!   a file system on top of it would find itself inside another one, with its own locks and its
//!   own state in the task. (It may be mounted just after that was checked; then the requests under
//!   way came from somebody else. One on a loop device that stands on this one is no holder of this
//!   one, but that device's isolation is seen.) File systems are told not to wait; what is not at hand
//!   is left to workers.
//! - **Writes to a file** depend on who writes: limits, privileges, signals. Only those that do not,
//!   over blocks that are there, are submitted; file systems refuse the rest when told not to wait.
//!   Not those that must be durable at once, for which they may wait for the journal.
//! - **Files** do I/O in the name of the task: what another control group has asked for, and a scheduler or
//!   a lack of tags makes this task hand over, is left to workers.
//! - **Whoever submits may be killed**, which is nothing to a request that may not even be its own: what
//!   the file refuses for that (`EINTR`) is left to workers.
//! - **Buffered reads** take what is in the page cache and start no I/O. Those of a block device take the
//!   lock that who fills the page cache of another block device holds already. Buffered writes are left to
//!   workers, as they wait for memory to be written back.
//!
//! It can be switched off for each device: `/sys/block/loopN/rnull_loop/inline`.

#![forbid(unsafe_code)]

use crate::{
    aio::Wait,
    blk_mq::{
        Op,
        Request,
        StartedRequest,
        Submitter, //
    },
    command::{
        self,
        Target,
        Way, //
    },
    device::LoopDevice,
    kern::{
        cgroup,
        file::BackingFile, //
    }, //
};
use kernel::prelude::*;

/// Submits a read or a write, or hands it back; without trying if none is `due`. May sleep; see
/// [`Operations::queue_rq`](crate::blk_mq::Operations::queue_rq).
pub(crate) fn submit(
    rq: StartedRequest<LoopDevice>,
    submitter: Pin<&Submitter>,
    due: bool,
) -> Result<(), StartedRequest<LoopDevice>> {
    let Some(target) = rq.io().filter(|_| rq.device().switches.inline.is_on()) else {
        return Err(rq);
    };
    if !matches!(rq.op(), Op::Read | Op::Write) || command::must_wait(&rq) {
        return Err(rq);
    }
    let way = target.way(&rq);
    if !due || !target.allows(way, &rq, &submitter) {
        return Err(rq);
    }
    submitter.isolate();
    command::transfer_by(rq, way, Wait::Forbidden, Wait::Forbidden)
}

impl Target {
    /// Whether a request is from the page cache of a block device, so that who submits it is likely to hold
    /// a lock of it, and reading this file takes the same lock of another one.
    fn shares_locks_with(&self, rq: &Request<LoopDevice>) -> bool {
        self.block_device().is_some() && rq.fills_cache()
    }

    /// Whether a request may go this way in this context.
    fn allows(&self, way: Way, rq: &Request<LoopDevice>, submitter: &Submitter) -> bool {
        match (way, rq.op()) {
            (Way::Remap, _) => self.remaps_without_waiting(rq) && submitter.may_submit(),
            (Way::Apart, _) | (Way::Buffered, Op::Write) => false,
            (_, op) => {
                self.has_nowait(rq)
                    && !rq.disk_is_held()
                    && submitter.may_enter_file_system()
                    && cgroup::is_of_current(rq)
                    && match op {
                        Op::Read => !self.file.changes_atime() && !self.shares_locks_with(rq),
                        _ => !rq.is_durable() && self.file.write_is_anonymous(self.end_of(rq)),
                    }
            }
        }
    }
}
