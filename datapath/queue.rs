// SPDX-License-Identifier: GPL-2.0

//! Queue: the block layer dispatches a request, and [`route`] decides which task serves it.
//!
//! [`LoopQueue`] itself is in `datapath/target.rs`.

use super::{
    completion,
    progress::{
        Progress,
        Server, //
    },
    route,
    stats,
    target::{
        LoopQueue,
        Target, //
    },
    transfer, //
};
use crate::{
    aio::request::FileIoPdu,
    blk_mq::{
        IdleRequest,
        Op,
        Operations,
        Refused,
        StartedRequest,
        Status,
        Submitter, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

impl Operations for LoopQueue {
    type RequestData = FileIoPdu<Progress>;
    type Backend = Target;

    fn new_request_data() -> impl PinInit<Self::RequestData> {
        FileIoPdu::new(Progress::new())
    }

    fn queue_rq(
        queue: &Arc<Self>,
        rq: IdleRequest<Self>,
        submitter: Pin<&Submitter>,
    ) -> Result<(), Refused<Self>> {
        // A request needs a target, which the device keeps between LOOP_CLR_FD and the last close,
        // whose writeback must reach the file.
        let requeued = rq.is_requeued();
        let mut rq = match rq.start() {
            Ok(rq) => rq,
            // The device had no opener when it lost its target, so there are no writes to flush.
            Err(rq) if rq.op() == Op::Flush => {
                rq.end(Status::OK);
                return Ok(());
            }
            Err(rq) => return Err(rq.refuse(Status::IOERR)),
        };
        if queue.is_exceeded_by(&rq) || rq.backend().read_only && rq.op().is_write() {
            stats::count_error(&rq, Status::IOERR);
            rq.end(Status::IOERR);
            return Ok(());
        }
        if !requeued {
            *rq.progress_mut() = Progress::new();
        }
        let Some(workers) = queue.workers(&rq) else {
            rq.end(Status::IOERR);
            return Ok(());
        };
        let route = route::route(&rq, &submitter, workers);
        rq.progress_mut().route = route;
        workers.stats.count(&rq, route);
        match route.server {
            Server::Submitter => {
                submitter.save_io_context();
                transfer::submit(rq);
            }
            Server::Worker(kind) => workers.submit(queue, kind, rq),
        }
        Ok(())
    }

    fn operation_done(rq: StartedRequest<Self>, result: Result<u32>) {
        completion::operation_done(rq, result);
    }
}
