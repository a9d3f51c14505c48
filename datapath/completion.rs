// SPDX-License-Identifier: GPL-2.0

//! Completion: the operation of a request is over.
//!
//! A file may transfer less than it is asked to. The C driver requeues the rest of a short read but
//! takes a short write for a success. Here both continue until they are complete or make no
//! progress, which is an error that the submitter sees. A transient error (`ENOMEM`, `EAGAIN`,
//! `EINTR`) is [retried](super::retry) for a limited time. A write without space may
//! [wait](super::space) for it.

use super::{
    progress::{
        Bypass,
        IoMethod, //
    },
    retry::{
        Retries,
        Transient, //
    },
    space,
    stats::{
        self,
        Counter, //
    },
    target::LoopQueue,
    transfer,
    worker, //
};
use crate::{
    aio::request,
    blk_mq::{
        Op,
        StartedRequest,
        Status, //
    },
    kern::{
        compat::{
            EDQUOT,
            EOPNOTSUPP, //
        },
        time, //
    },
};
use kernel::{
    prelude::*,
    sync::atomic::ordering::Relaxed,
    time::Delta, //
};

/// The outcome of an operation.
enum Outcome {
    /// It has done all of the request.
    Done,
    /// It has done this many bytes, less than the request.
    Short(u32),
    /// It was non-blocking, and would have blocked, needed memory that there was not, or was
    /// interrupted by a signal of the submitter.
    WouldBlock,
    /// The file refuses direct I/O of the request.
    DirectRefused,
    /// It has failed because the file system is full, and user space wants it to wait.
    NoSpace,
    /// It has failed for a reason that may pass.
    Transient(Transient, Error),
    /// It has failed.
    Failed(Error),
}

impl Outcome {
    fn of(rq: &StartedRequest<LoopQueue>, result: Result<u32>) -> Self {
        let transfer = matches!(rq.op(), Op::Read | Op::Write);
        let nowait = rq.progress().nowait;
        match result {
            Ok(bytes) if transfer && bytes < rq.len() => Self::Short(bytes),
            Ok(_) => Self::Done,
            // `EOPNOTSUPP`: the file, or the way to the lower device, does not know `IOCB_NOWAIT`
            // or `REQ_NOWAIT`.
            Err(EAGAIN | EOPNOTSUPP | EINTR | ENOMEM) if nowait => Self::WouldBlock,
            Err(error) if refuses_direct(rq, error) => Self::DirectRefused,
            Err(error) if waits_for_space(rq, error) => Self::NoSpace,
            Err(error) => match Transient::of(error) {
                // A flush may have reported a writeback error, which no other flush reports again.
                Some(Transient::Busy) if rq.op() == Op::Flush => Self::Failed(error),
                Some(reason) => Self::Transient(reason, error),
                None => Self::Failed(error),
            },
        }
    }
}

/// Ends a request whose operation is over, or continues it. Any context, including hard IRQ.
pub(super) fn operation_done(mut rq: StartedRequest<LoopQueue>, result: Result<u32>) {
    request::free_bvecs(&mut rq);
    if let Some(&bytes) = result.as_ref().ok().filter(|_| transfer::leaves_stale(&rq)) {
        rq.progress_mut().bypass = Bypass::Stale(bytes);
        return worker::clean(rq);
    }
    if matches!(rq.progress().bypass, Bypass::No | Bypass::File) {
        rq.backend().note_change(&rq);
    }
    transfer::release(&mut rq);
    let outcome = Outcome::of(&rq, result);
    record_nowait(&mut rq, &outcome);
    rq.progress_mut().lacked_memory = false;
    match outcome {
        Outcome::Done => rq.end(Status::OK),
        Outcome::Short(bytes) => resume(rq, bytes),
        Outcome::WouldBlock => {
            stats::count_requeue(&rq, Counter::WouldBlock);
            worker::defer(rq);
        }
        Outcome::DirectRefused => {
            stats::count_requeue(&rq, Counter::DirectRefused);
            rq.progress_mut().direct_refused = true;
            worker::defer(rq);
        }
        Outcome::NoSpace => {
            stats::count_requeue(&rq, Counter::RetrySpace);
            space::wait(rq);
        }
        Outcome::Transient(reason, error) => retry(rq, reason, error),
        Outcome::Failed(error) => fail(rq, error),
    }
}

/// Records whether a non-blocking operation has succeeded. A bio of an extent, or of an atomic
/// write, may be a part of the request.
fn record_nowait(rq: &mut StartedRequest<LoopQueue>, outcome: &Outcome) {
    if !rq.progress().nowait || rq.op() == Op::Flush {
        return;
    }
    let backoff = rq.backend().backoff(rq.op());
    let may_be_part = rq.is_atomic() || matches!(rq.progress().route.method, IoMethod::Extent(_));
    match outcome {
        Outcome::WouldBlock => backoff.failed(),
        Outcome::Short(_) if !may_be_part => backoff.failed(),
        _ => backoff.succeeded(),
    }
}

/// Continues a transfer that has done `bytes` bytes at the next whole block, where direct I/O may
/// continue.
///
/// A blocking transfer of less than a block makes no progress, as at the end of a truncated file.
/// Then the part of a read that was not found reads as zeroes, not as the old content of the
/// memory.
fn resume(mut rq: StartedRequest<LoopQueue>, bytes: u32) {
    stats::count_requeue(&rq, Counter::Short);
    let whole = rq.whole_blocks(bytes);
    if whole != 0 {
        let progress = rq.progress_mut();
        progress.retries.reset();
        // Another rest may be in whole blocks of direct I/O.
        progress.direct_refused = false;
        if let Err(error) = rq.advance(whole) {
            return fail(rq, error);
        }
    } else if !rq.progress().nowait {
        if rq.op() == Op::Read {
            rq.zero_fill();
        }
        return fail(rq, EIO);
    }
    worker::defer(rq);
}

/// Returns whether `error` means that the file refuses direct I/O of a request. An atomic write has
/// no other way, so it fails.
fn refuses_direct(rq: &StartedRequest<LoopQueue>, error: Error) -> bool {
    let target = rq.backend();
    matches!(rq.op(), Op::Read | Op::Write)
        && !rq.is_atomic()
        && rq.progress().route.method.is_direct()
        // The block layer has no error of its own for a bio that is not in whole blocks: these may
        // have become larger since the request was dispatched.
        && (matches!(error, EINVAL | EOPNOTSUPP) || target.is_misaligned_to_lower(rq))
}

/// Returns whether `error` means that a write waits for space.
fn waits_for_space(rq: &StartedRequest<LoopQueue>, error: Error) -> bool {
    matches!(error, ENOSPC | EDQUOT)
        && matches!(rq.op(), Op::Write | Op::WriteZeroes)
        && rq.device().waits_for_space()
}

/// Requeues a request after a delay, or fails it after enough retries.
fn retry(mut rq: StartedRequest<LoopQueue>, reason: Transient, error: Error) {
    let no_memory = reason == Transient::Memory;
    let progress = rq.progress_mut();
    let Some(delay) = progress.retries.next(reason, time::now_ms()) else {
        return fail(rq, error);
    };
    progress.must_block = true;
    progress.lacked_memory = no_memory;
    let counter = if no_memory {
        Counter::RetryMemory
    } else {
        Counter::RetryBusy
    };
    stats::count_requeue(&rq, counter);
    rq.requeue_later(Delta::from_millis(delay.into()));
}

/// Logs that an operation on the backing file fails, at most once a minute for each file. The
/// block layer logs only the status of the request.
fn warn(rq: &StartedRequest<LoopQueue>, error: Error) {
    const PAUSE: u64 = 60_000;
    let (now, target) = (time::uptime_ms(), rq.backend());
    let last = target.warned.load(Relaxed);
    if last != 0 && now.saturating_sub(last) < PAUSE
        || target.warned.cmpxchg(last, now.max(1), Relaxed).is_err()
    {
        return;
    }
    let (name, op) = (rq.disk_name(), name_of(rq.op()));
    if error == ENOMEM {
        let seconds = Retries::MAX_MEMORY / 1000;
        pr_err!("{name}: no memory for a {op} of the backing file for {seconds} s; it fails\n");
        return;
    }
    let errno = error.to_errno();
    if rq.op() == Op::Flush {
        pr_err!("{name}: a sync of the backing file fails (rc={errno})\n");
    } else {
        let position = target.position_of(rq);
        pr_err!("{name}: a {op} of the backing file at byte {position} fails (rc={errno})\n");
    }
}

/// Returns the word for an operation in the log.
fn name_of(op: Op) -> &'static str {
    match op {
        Op::Read => "read",
        Op::Write => "write",
        Op::Flush => "sync",
        Op::Discard => "discard",
        Op::WriteZeroes => "write of zeroes",
        Op::Other => "request",
    }
}

/// Ends a request with the status of `error`.
pub(super) fn fail(mut rq: StartedRequest<LoopQueue>, error: Error) {
    let is_optional = matches!(rq.op(), Op::Discard | Op::WriteZeroes);
    if !(is_optional && error == EOPNOTSUPP) {
        warn(&rq, error);
    }
    let status = match rq.op() {
        // The owner of the file is out of quota; a device can only report `ENOSPC`.
        _ if error == EDQUOT => Status::from(ENOSPC),
        // The submitter asks for an optional operation, and does without.
        _ if is_optional && error == EOPNOTSUPP => {
            rq.set_quiet();
            Status::from(error)
        }
        // fsync() of the device would ignore `EOPNOTSUPP`.
        _ if error == EOPNOTSUPP => Status::IOERR,
        _ => Status::from(error),
    };
    stats::count_error(&rq, status);
    rq.end(status);
}
