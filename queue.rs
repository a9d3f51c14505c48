// SPDX-License-Identifier: GPL-2.0

//! Step 1 of a request: the block layer hands it over.

#![forbid(unsafe_code)]

use crate::{
    aio::request::Slot,
    blk_mq::{
        CompletedRequest,
        IdleRequest,
        Operations,
        Refused,
        Status, //
    },
    command::Target,
    completion,
    device::LoopDevice,
    worker::Worker, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

impl Operations for LoopDevice {
    type RequestData = Slot;
    type HwData = Arc<Worker>;
    type Io = Target;

    fn new_request_data() -> impl PinInit<Slot> {
        Slot::new()
    }

    fn new_hw_data() -> Result<Arc<Worker>> {
        Worker::new()
    }

    fn queue_rq(
        device: &Arc<Self>,
        worker: &Arc<Worker>,
        rq: IdleRequest<Self>,
        _last: bool,
    ) -> Result<(), Refused<Self>> {
        // The last close and its write-back may come after LOOP_CLR_FD: what counts is whether
        // there is a file, not whether the device is still bound.
        let Some(target) = rq.io() else {
            return Err(rq.refuse(Status::IOERR));
        };
        if target.read_only && rq.op().is_write() {
            return Err(rq.refuse(Status::IOERR));
        }
        worker.submit(device, rq.start());
        Ok(())
    }

    fn complete(rq: CompletedRequest<Self>, result: Result<u32>) {
        completion::complete(rq, result);
    }
}
