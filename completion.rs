// SPDX-License-Identifier: GPL-2.0

//! Step 4 of a request: the result goes back.
//!
//! Files may do less than they are asked to. The C driver sends the rest of a short read round
//! again but takes a short write for a success; here both are continued until they are done or
//! come to nothing, which is an error that the submitter sees. That memory is short for a while is
//! none: what could not be done for want of it is done later.

#![forbid(unsafe_code)]

use crate::{
    aio::request,
    blk_mq::{
        CompletedRequest,
        Op,
        Status, //
    },
    command,
    device::LoopDevice, //
};
use kernel::prelude::*;

/// Ends a request with what its operation came to, or sends the rest of it round again.
///
/// Any context, hard interrupts included.
pub(crate) fn complete(mut rq: CompletedRequest<LoopDevice>, result: Result<u32>) {
    request::finish(&mut rq);
    let transfers = matches!(rq.op(), Op::Read | Op::Write);
    match result {
        // A worker that may wait takes it next time.
        _ if transfers && command::would_wait(&rq, result) => rq.requeue(),
        Ok(done) if transfers && done < rq.len() => short(rq, done),
        Ok(_) => rq.end(Status::OK),
        Err(error) if error == ENOMEM => request::retry(rq),
        Err(error) => rq.end(Status::from(error)),
    }
}

/// Continues a transfer of which `done` bytes are done, at the next whole block: what direct I/O
/// may continue with. Without a whole block there is nothing to go on with, as at the end of a file
/// that was cut off; what a read did not find is zeroes, not what was in the memory before.
fn short(mut rq: CompletedRequest<LoopDevice>, done: u32) {
    let whole = rq.whole_blocks(done);
    if whole != 0 {
        return rq.requeue_rest(whole);
    }
    if rq.op() == Op::Read {
        rq.zero_fill();
    }
    rq.end(Status::IOERR);
}
