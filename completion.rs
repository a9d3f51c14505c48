// SPDX-License-Identifier: GPL-2.0

//! Step 4 of a request: the result goes back.
//!
//! Files may do less than they are asked to. The C driver sends the rest of a short read round
//! again but takes a short write for a success; here both are continued until they are done or
//! come to nothing, which is an error that the submitter sees. An error that may pass (`ENOMEM`,
//! `EAGAIN`, `EINTR`) is one only when it has not passed after a while: until then the operation is
//! [tried again](crate::retry).

#![forbid(unsafe_code)]

use crate::{
    aio::request,
    blk_mq::{
        CompletedRequest,
        Op,
        Status, //
    },
    command,
    device::LoopDevice,
    kern::time,
    retry::Transient, //
};
use kernel::{
    prelude::*,
    time::Delta, //
};

/// Ends a request with what its operation came to, or sends the rest of it round again.
///
/// Any context, hard interrupts included.
pub(crate) fn complete(mut rq: CompletedRequest<LoopDevice>, result: Result<u32>) {
    request::finish(&mut rq);
    command::leave(&rq);
    let transfers = matches!(rq.op(), Op::Read | Op::Write);
    match result {
        // A worker that may wait takes it next time.
        _ if transfers && command::would_wait(&rq, result) => rq.requeue(),
        Ok(done) if transfers && done < rq.len() => short(rq, done),
        Ok(_) => end(rq, Status::OK),
        Err(error) if transfers && command::refuses_direct(&rq, error) => rq.requeue(),
        Err(error) => match Transient::of(error) {
            // A flush may have failed with what became of the writeback, which no other flush is
            // told of.
            Some(Transient::Busy) if rq.op() == Op::Flush => fail(rq, error),
            Some(reason) => retry(rq, reason, error),
            None => fail(rq, error),
        },
    }
}

/// Continues a transfer of which `done` bytes are done, at the next whole block: what direct I/O
/// may continue with. Without a whole block there is nothing to go on with, as at the end of a file
/// that was cut off; what a read did not find is zeroes, not what was in the memory before.
fn short(mut rq: CompletedRequest<LoopDevice>, done: u32) {
    let whole = rq.whole_blocks(done);
    if whole != 0 {
        rq.data().driver().retries.reset();
        return rq.requeue_rest(whole);
    }
    if rq.op() == Op::Read {
        rq.zero_fill();
    }
    end(rq, Status::IOERR);
}

/// Tries an operation again after a delay, or fails the request after enough retries.
fn retry(rq: CompletedRequest<LoopDevice>, reason: Transient, error: Error) {
    let no_memory = reason == Transient::Memory;
    match rq.data().driver().retries.next(reason, time::now_ms()) {
        Some(delay) => request::retry(rq, Delta::from_millis(delay.into()), no_memory),
        None => {
            if no_memory {
                command::warn_of_no_memory(&rq);
            }
            fail(rq, error);
        }
    }
}

/// Fails a request with the status that stands for `error`.
fn fail(mut rq: CompletedRequest<LoopDevice>, error: Error) {
    let status = match rq.op() {
        // A file system has used up what its owner may have; `ENOSPC` is what a device can say.
        _ if error == EDQUOT => Status::from(ENOSPC),
        // The submitter asks for what may not be supported, and does without.
        Op::Discard | Op::WriteZeroes if error == EOPNOTSUPP => {
            rq.set_quiet();
            Status::from(error)
        }
        // fsync() of the device would take it for success.
        _ if error == EOPNOTSUPP => Status::IOERR,
        _ => Status::from(error),
    };
    end(rq, status);
}

fn end(rq: CompletedRequest<LoopDevice>, status: Status) {
    rq.data().driver().reset();
    rq.end(status);
}
