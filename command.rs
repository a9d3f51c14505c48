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
        LimitsUpdate,
        Op,
        Request,
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

    /// Takes from `limits` what has turned out to be unsupported.
    pub(crate) fn restrict(&self, limits: &mut LimitsUpdate<'_, LoopDevice>) {
        if !self.punch.load(Relaxed) {
            limits.set_discard(0, 0);
        }
        if !self.zero.load(Relaxed) {
            limits.set_write_zeroes(0);
        }
    }

    fn of(&self, mode: Fallocate) -> &Atomic<bool> {
        match mode {
            Fallocate::PunchHole => &self.punch,
            Fallocate::ZeroRange => &self.zero,
        }
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
    match rq.op() {
        Op::Read | Op::Write => {
            let caching = target.caching;
            match target.position_of(&rq) {
                Ok(position) => request::submit(rq, position, caching),
                Err(error) => rq.complete(Err(error)),
            }
        }
        // Has no position: it is for all that was written.
        Op::Flush => {
            let result = target.file.sync();
            rq.complete(result.map(|()| 0));
        }
        Op::Discard | Op::WriteZeroes => {
            let result = target.change_holes(&rq);
            rq.complete(result.map(|()| 0));
        }
        Op::Other => rq.complete(Err(EOPNOTSUPP)),
    }
}

impl Target {
    /// Where a request begins in the file, in bytes.
    fn position_of(&self, rq: &Request<LoopDevice>) -> Result<u64> {
        // The block layer lets nothing through that ends beyond the device, whose size is that of
        // a file; so this does not fail.
        rq.position().checked_add(self.offset).ok_or(EFBIG)
    }

    /// Frees or zeroes the range of a request in the file.
    fn change_holes(&self, rq: &Request<LoopDevice>) -> Result {
        // Zeroes may be holes, unless the submitter wants to keep the blocks.
        if rq.op() == Op::Discard || !rq.keeps_blocks() {
            let result = self.try_fallocate(rq, Fallocate::PunchHole);
            if rq.op() == Op::Discard || result != Err(EOPNOTSUPP) {
                return result;
            }
        }
        self.try_fallocate(rq, Fallocate::ZeroRange)
    }

    /// Calls the file system, unless it has said before that it does not know `mode`.
    ///
    /// Whether it does cannot be known before it is tried. When it does not, the limits have to
    /// say so before the request ends: its submitter looks at them to see what went wrong.
    fn try_fallocate(&self, rq: &Request<LoopDevice>, mode: Fallocate) -> Result {
        let supported = self.holes.of(mode);
        if !supported.load(Relaxed) {
            return Err(EOPNOTSUPP);
        }
        let position = self.position_of(rq)?;
        let result = self.file.fallocate(mode, position, u64::from(rq.len()));
        if result == Err(EOPNOTSUPP) {
            supported.store(false, Relaxed);
            match mode {
                Fallocate::PunchHole => rq.disable_discard(),
                Fallocate::ZeroRange => rq.disable_write_zeroes(),
            }
        }
        result
    }
}
