// SPDX-License-Identifier: GPL-2.0

//! Step 3 of a request: it becomes an operation on the backing file.

#![forbid(unsafe_code)]

use crate::{
    aio::{
        request::{
            self,
            FileBacked, //
        },
        Caching, //
    },
    blk_mq::{
        Op,
        StartedRequest, //
    },
    device::LoopDevice,
    kern::{
        cgroup::ChargeScope,
        file::{
            BackingFile,
            Fallocate, //
        },
    },
};
use kernel::{
    fs::File,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
    },
};

/// What requests need of the device they are for.
pub(crate) struct Target {
    /// The file.
    pub(crate) file: ARef<File>,
    /// Where the device begins in the file, in bytes.
    pub(crate) offset: u64,
    /// How reads and writes go to the file.
    pub(crate) caching: Caching,
    /// Whether writes are refused.
    pub(crate) read_only: bool,
    /// Which operations on holes have not turned out to be unsupported.
    pub(crate) holes: HoleSupport,
}

/// Which operations on holes a file system is believed to support. It can be asked by trying alone.
pub(crate) struct HoleSupport {
    punch: Atomic<bool>,
    zero: Atomic<bool>,
}

impl HoleSupport {
    /// All or none of them.
    pub(crate) fn new(supported: bool) -> Self {
        Self {
            punch: Atomic::new(supported),
            zero: Atomic::new(supported),
        }
    }

    fn of(&self, mode: Fallocate) -> &Atomic<bool> {
        match mode {
            Fallocate::PunchHole => &self.punch,
            Fallocate::ZeroRange => &self.zero,
        }
    }

    /// Whether `mode` may work.
    pub(crate) fn has(&self, mode: Fallocate) -> bool {
        self.of(mode).load(Relaxed)
    }
}

impl FileBacked for LoopDevice {
    fn file(target: &Target) -> &File {
        &target.file
    }
}

/// Carries out a request and completes it, or sees to it that it is completed. May sleep.
pub(crate) fn execute(rq: StartedRequest<LoopDevice>) {
    let _scope = ChargeScope::enter(&rq);
    let Some(target) = rq.io() else {
        return rq.complete(Err(EIO));
    };
    // `queue_rq` lets no request through that ends beyond the device, whose size is that of a file.
    let Some(position) = rq.position().checked_add(target.offset) else {
        return rq.complete(Err(EFBIG));
    };
    match rq.op() {
        Op::Read | Op::Write => {
            let caching = target.caching;
            request::submit(rq, position, caching);
        }
        Op::Flush => {
            let result = target.file.sync();
            rq.complete(result.map(|()| 0));
        }
        Op::Discard => change_holes(rq, position, Fallocate::PunchHole),
        // Blocks are freed unless the submitter wants to keep them, or the file cannot do it.
        Op::WriteZeroes if rq.keeps_blocks() || !target.holes.has(Fallocate::PunchHole) => {
            change_holes(rq, position, Fallocate::ZeroRange);
        }
        Op::WriteZeroes => change_holes(rq, position, Fallocate::PunchHole),
        Op::Other => rq.complete(Err(EOPNOTSUPP)),
    }
}

/// Frees or zeroes the range of a request in the file.
fn change_holes(rq: StartedRequest<LoopDevice>, position: u64, mode: Fallocate) {
    let Some(target) = rq.io() else {
        return rq.complete(Err(EIO));
    };
    let result = if target.holes.has(mode) {
        target.file.fallocate(mode, position, u64::from(rq.len()))
    } else {
        Err(EOPNOTSUPP)
    };
    if result == Err(EOPNOTSUPP) {
        // It cannot be known before it is tried. The limits have to say so before the request
        // ends: its submitter looks at them to see whether writing zeroes is worth a try.
        target.holes.of(mode).store(false, Relaxed);
        match mode {
            Fallocate::PunchHole => rq.disable_discard(),
            Fallocate::ZeroRange => rq.disable_write_zeroes(),
        }
    }
    rq.complete(result.map(|()| 0));
}
