// SPDX-License-Identifier: GPL-2.0

//! Step 1 of a request: the block layer hands it over, and it is decided who serves it.

#![forbid(unsafe_code)]

use crate::{
    aio::request::{
        FileBacked,
        Slot, //
    },
    blk_mq::{
        CompletedRequest,
        IdleRequest,
        Op,
        Operations,
        Refused,
        Status,
        Submitter, //
    },
    command::{
        self,
        Progress,
        Target, //
    },
    completion,
    device::LoopDevice,
    inline,
    worker::Workers, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

impl Operations for LoopDevice {
    type RequestData = Slot<<Self as FileBacked>::Data>;
    type HwData = Workers;
    type Io = Target;

    fn new_request_data() -> impl PinInit<Self::RequestData> {
        Slot::new(Progress::new())
    }

    fn new_hw_data() -> Result<Workers> {
        Workers::new()
    }

    fn queue_rq(
        device: &Arc<Self>,
        workers: &Workers,
        rq: IdleRequest<Self>,
        submitter: Pin<&Submitter>,
    ) -> Result<(), Refused<Self>> {
        // The last close and its write-back may come after LOOP_CLR_FD: what counts is whether
        // there is a file, not whether the device is still bound.
        let Some(target) = rq.io() else {
            // Nobody had it open when it lost its file, so nothing has been written since.
            if rq.op() == Op::Flush {
                rq.start().complete(Ok(0));
                return Ok(());
            }
            rq.data().driver().reset();
            return Err(rq.refuse(Status::IOERR));
        };
        if command::exceeds_device(&rq) || target.read_only && rq.op().is_write() {
            // It may have been tried before the device became shorter.
            rq.data().driver().reset();
            return Err(rq.refuse(Status::IOERR));
        }
        // The answer counts as a chance to try, so it is asked for once.
        let due = matches!(rq.op(), Op::Read | Op::Write) && target.backoff(&rq).is_due();
        if let Err(rq) = inline::submit(rq.start(), submitter, due) {
            workers.submit(device, rq, due);
        }
        Ok(())
    }

    fn complete(rq: CompletedRequest<Self>, result: Result<u32>) {
        completion::complete(rq, result);
    }
}
