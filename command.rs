// SPDX-License-Identifier: GPL-2.0

//! Step 3 of a request: it becomes an operation on the backing file.

#![forbid(unsafe_code)]

use crate::{
    aio::{
        request::{
            self,
            FileBacked,
            Haste, //
        },
        Caching,
        Wait, //
    },
    backoff::Backoff,
    blk_mq::{
        CompletedRequest,
        LimitsUpdate,
        Op,
        Request,
        StartedRequest, //
    },
    device::LoopDevice,
    geometry,
    kern::{
        bdev::BlockDevice,
        file::{
            BackingFile,
            ErrorCursor,
            Fallocate,
            Kind, //
        },
    },
    retry::Retries, //
};
use kernel::{
    block::SECTOR_SHIFT,
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
    /// Which failures to write the file back flushes have reported. Others sync by the same file: who has
    /// it attached, and writes that are durable by themselves.
    pub(crate) reported: ErrorCursor,
    /// How reads and writes go to the file.
    pub(crate) caching: Caching,
    /// The blocks of direct I/O to the file, in bytes, if those of the device are smaller.
    pub(crate) direct_block: Option<u32>,
    /// Whether writes are refused.
    pub(crate) read_only: bool,
    /// Which operations on holes have not turned out to be unsupported.
    pub(crate) holes: HoleSupport,
    /// Whether the file can be told not to wait.
    pub(crate) nowait: bool,
    /// True once the log tells that there was no memory for a request.
    pub(crate) warned: Atomic<bool>,
    /// Whether reads without waiting work.
    pub(crate) reads: Backoff,
    /// Whether writes do.
    pub(crate) writes: Backoff,
}

/// The driver's part of a request: how far it has come.
pub(crate) struct Progress {
    /// True once direct I/O of the request was refused, so that it goes through the page cache.
    refused: Atomic<bool>,
    /// True while the request has freeze protection of the file.
    protected: Atomic<bool>,
    /// True while the request is inside the device's [gate of direct
    /// writes](LoopDevice::direct_writes).
    inside: Atomic<bool>,
    /// Its retries.
    pub(crate) retries: Retries,
}

impl Progress {
    /// The part of a request that has not begun.
    pub(crate) fn new() -> Self {
        Self {
            refused: Atomic::new(false),
            protected: Atomic::new(false),
            inside: Atomic::new(false),
            retries: Retries::new(),
        }
    }

    /// The request ends; the next one in its place has not begun.
    pub(crate) fn reset(&self) {
        self.refused.store(false, Relaxed);
        self.retries.reset();
    }
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
    type Data = Progress;

    fn file(target: &Target) -> &File {
        &target.file
    }

    fn block_device(target: &Target) -> Option<&BlockDevice> {
        target.block_device()
    }

    fn direct_block(rq: &Request<Self>) -> Option<u32> {
        let target = rq.io().filter(|target| target.way(rq).is_direct())?;
        target.direct_block
    }
}

/// How a read or a write gets to the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Past the file, to the block device that it is, as it is.
    Remap,
    /// By direct I/O.
    Direct,
    /// Through the page cache.
    Buffered,
    /// Through the page cache, on a device whose other requests go past it: see [`transfer_apart`].
    Apart,
}

impl Way {
    /// Returns whether data goes past the page cache of the file.
    fn is_direct(self) -> bool {
        matches!(self, Self::Remap | Self::Direct)
    }
}

/// Carries out a read or a write, see [`transfer_by`].
pub(crate) fn transfer(
    rq: StartedRequest<LoopDevice>,
    wait: Wait,
) -> Result<(), StartedRequest<LoopDevice>> {
    let way = rq.io().map_or(Way::Buffered, |target| target.way(&rq));
    // A worker waits for tags of the device below, as all after it would, or until its controller of costs
    // (`blk-iocost`) or of writeback lets the request pass, which others after it would not.
    let bio_wait = if way == Way::Remap {
        Wait::Allowed
    } else {
        wait
    };
    transfer_by(rq, way, wait, bio_wait)
}

/// Carries out a read or a write this way and sees to it that it is completed; or hands it, or what
/// is left of it, back where it would have to wait and must not: for other transfers of the device
/// (`wait`), or for the file or the lower device (`io_wait`). May sleep.
pub(crate) fn transfer_by(
    rq: StartedRequest<LoopDevice>,
    way: Way,
    wait: Wait,
    io_wait: Wait,
) -> Result<(), StartedRequest<LoopDevice>> {
    let Some(target) = rq.io() else {
        rq.complete(Err(EIO));
        return Ok(());
    };
    // Nothing that ends beyond the device gets here ([`exceeds_device`]), and the device is part of a file; so
    // this does not fail.
    let Some(position) = rq.position().checked_add(target.offset) else {
        rq.complete(Err(EFBIG));
        return Ok(());
    };
    let Some(way) = prepare(&rq, target, way, wait) else {
        rq.data().set_must_wait();
        tried(&rq, false);
        return Err(rq);
    };
    let result = match way {
        Way::Remap => request::remap(rq, position >> SECTOR_SHIFT, io_wait),
        Way::Direct => request::submit(rq, position, Caching::Direct, io_wait),
        Way::Buffered => request::submit(rq, position, Caching::Buffered, io_wait),
        Way::Apart => {
            transfer_apart(rq, position);
            Ok(())
        }
    };
    result.inspect_err(|rq| {
        leave(rq);
        tried(rq, false);
    })
}

/// Takes what a transfer needs until [`leave`], and returns the way that it goes; `None` if that
/// would have to wait and must not.
fn prepare(rq: &Request<LoopDevice>, target: &Target, way: Way, wait: Wait) -> Option<Way> {
    if !enter(rq, target, way, wait) {
        leave(rq);
        return None;
    }
    if way == Way::Remap && rq.op() == Op::Write && target.file.is_cached() {
        // A page came after the way was chosen, and is not invalidated by a bio. Another way has
        // rules of its own: a worker that may wait chooses anew.
        leave(rq);
        if wait == Wait::Forbidden {
            return None;
        }
        return prepare(rq, target, Way::Direct, wait);
    }
    Some(way)
}

/// Gets freeze protection for a write to the file, and enters the gate of direct writes for one
/// past the page cache; returns false if it would have to wait and must not. A read needs neither:
/// it leaves nothing behind, neither in the file nor in its page cache.
///
/// Freeze protection comes first, so that inside the gate no request waits for a thaw of the file's
/// own file system, for which reads through the page cache would wait, too. (A stacked file system
/// may still wait for the one below it.)
fn enter(rq: &Request<LoopDevice>, target: &Target, way: Way, wait: Wait) -> bool {
    let may_wait = wait == Wait::Allowed;
    if rq.op() != Op::Write {
        return may_wait || way != Way::Apart;
    }
    let progress = rq.data().driver();
    if way != Way::Remap {
        if may_wait {
            target.file.start_write();
        } else if !target.file.try_start_write() {
            return false;
        }
        progress.protected.store(true, Relaxed);
    }
    if way.is_direct() {
        let gate = &rq.device().direct_writes;
        if may_wait {
            gate.enter_waiting();
        } else if !gate.enter() {
            return false;
        }
        progress.inside.store(true, Relaxed);
    }
    may_wait || way != Way::Apart
}

/// Gives back what [`prepare`] took. Any context, including hard IRQ.
pub(crate) fn leave(rq: &Request<LoopDevice>) {
    let progress = rq.data().driver();
    if progress.inside.load(Relaxed) {
        progress.inside.store(false, Relaxed);
        rq.device().direct_writes.leave();
    }
    if progress.protected.load(Relaxed) {
        progress.protected.store(false, Relaxed);
        if let Some(target) = rq.io() {
            target.file.end_write();
        }
    }
}

/// Carries out and completes a read or a write through the page cache of a file whose other
/// requests go past it, since it is not in whole blocks of direct I/O, or since direct I/O of it
/// was refused. May sleep.
///
/// While pages are in the cache, a direct write beside them could leave them stale (they are read
/// before it and invalidated in vain while they are dirty), or be overwritten by their writeback.
/// So no direct write is in flight meanwhile, and when one comes again, the cache is clean and
/// empty.
fn transfer_apart(rq: StartedRequest<LoopDevice>, position: u64) {
    let (write, len) = (rq.op().is_write(), u64::from(rq.len()));
    // The request may be over before the gate is open again.
    let queue = rq.keep_queue();
    let closed = queue.device().direct_writes.close();
    // Bios to a block device do not invalidate its page cache.
    drop_cache(&rq);
    let failures = rq.io().map(|target| ErrorCursor::from_now(&target.file));
    let Some((rq, mut result)) = request::transfer_cached(rq, position) else {
        return;
    };
    if let (true, Some(target), Some(failures)) = (write, rq.io(), failures) {
        let written = target.file.write_back(position, len);
        // The page cache reports a failure of writeback once. A sync of the file or a direct read
        // may have taken the report for this write.
        let written = written.and_then(|()| failures.check(&target.file));
        result = result.and_then(|bytes| written.map(|()| bytes));
    }
    drop_cache(&rq);
    drop(closed);
    if result.is_ok() && rq.data().driver().refused.load(Relaxed) {
        rq.device()
            .refuse_direct(geometry::alignment(position, len));
        rq.revise_limits();
    }
    rq.complete(result);
}

fn drop_cache(rq: &Request<LoopDevice>) {
    if let Some(target) = rq.io().filter(|target| target.file.is_cached()) {
        target.file.drop_cache();
    }
}

/// Returns whether `error` says that the file refuses direct I/O of this request, which goes
/// through the page cache then. Any context, including hard IRQ.
pub(crate) fn refuses_direct(rq: &CompletedRequest<LoopDevice>, error: Error) -> bool {
    let was_direct =
        |target: &&Target| target.caching == Caching::Direct && !target.is_split_block(rq);
    let Some(target) = rq.io().filter(was_direct) else {
        return false;
    };
    // The block layer has no error of its own for a bio that is not in whole blocks, as these may
    // have become larger since the request was dispatched.
    let refused = error == EINVAL || error == EOPNOTSUPP || target.exceeds_blocks(rq);
    refused && !rq.data().driver().refused.xchg(true, Relaxed)
}

/// Takes note of whether a request could be carried out without waiting.
fn tried(rq: &Request<LoopDevice>, worked: bool) {
    let Some(target) = rq.io() else { return };
    let backoff = target.backoff(rq);
    if worked {
        backoff.worked();
    } else {
        backoff.failed();
    }
}

/// Logs, once while the device has this file, that a request fails since there was no memory for it
/// for minutes. Any context, including hard IRQ.
pub(crate) fn warn_of_no_memory(rq: &CompletedRequest<LoopDevice>) {
    let Some(target) = rq.io() else { return };
    if !target.warned.xchg(true, Relaxed) {
        pr_err!(
            "loop device {}: no memory for an operation on the backing file for {} s, it fails\n",
            rq.device().index,
            Retries::MAX_MEMORY / 1000
        );
    }
}

/// Whether a worker should try to carry out a read or a write without waiting, before it is left to
/// one that may wait. Writes to files would have to wait too often, if only for the next time
/// stamp, and reads of files have been in vain of late unless they are `due`.
pub(crate) fn is_worth_a_try(rq: &Request<LoopDevice>, due: bool) -> bool {
    let Some(target) = rq.io() else { return false };
    match (target.way(rq), rq.op()) {
        _ if must_wait(rq) => false,
        (Way::Apart, _) => false,
        (Way::Remap, _) => true,
        (_, Op::Read) => due && target.has_nowait(rq),
        _ => false,
    }
}

/// Whether a request ends beyond its device.
///
/// The block layer looks at that before it waits for a queue that is frozen, and not afterwards. In the
/// meantime the device may have got another place in the file, where the request would reach what was
/// never the device's.
pub(crate) fn exceeds_device(rq: &Request<LoopDevice>) -> bool {
    rq.op() != Op::Flush && rq.position().saturating_add(u64::from(rq.len())) > rq.device().length()
}

/// Whether a request has been found to wait.
pub(crate) fn must_wait(rq: &Request<LoopDevice>) -> bool {
    rq.data().must_wait()
}

/// Whether `result` says that a request would have had to wait and must not.
pub(crate) fn would_wait(rq: &CompletedRequest<LoopDevice>, result: Result<u32>) -> bool {
    match request::haste(rq, result) {
        Haste::None => false,
        Haste::Worked => {
            tried(rq, true);
            false
        }
        Haste::InVain => {
            tried(rq, false);
            true
        }
    }
}

/// Carries out and completes what is neither a read nor a write nor a flush. May sleep.
pub(crate) fn execute_slow(rq: StartedRequest<LoopDevice>) {
    let Some(target) = rq.io() else {
        return rq.complete(Err(EIO));
    };
    let result = match rq.op() {
        Op::Discard | Op::WriteZeroes => {
            // A page of a block device may hold other blocks than those that are zeroed. File
            // systems see to that by themselves; the freeze protection that fallocate() takes would
            // have to come before the gate.
            let shares_pages = target.block_device().and(target.direct_block).is_some();
            let gate = &rq.device().direct_writes;
            let _closed = shares_pages.then(|| gate.close());
            target.change_holes(&rq)
        }
        _ => Err(EOPNOTSUPP),
    };
    rq.complete(result.map(|()| 0));
}

impl Target {
    /// Where a request begins in the file, in bytes.
    fn position_of(&self, rq: &Request<LoopDevice>) -> Result<u64> {
        // As in `transfer`.
        rq.position().checked_add(self.offset).ok_or(EFBIG)
    }

    /// Where a request ends in the file, in bytes.
    pub(crate) fn end_of(&self, rq: &Request<LoopDevice>) -> u64 {
        self.position_of(rq).map_or(u64::MAX, |position| {
            position.saturating_add(u64::from(rq.len()))
        })
    }

    pub(crate) fn block_device(&self) -> Option<&BlockDevice> {
        match self.file.kind() {
            Kind::Block(bdev) => Some(bdev),
            _ => None,
        }
    }

    /// How a read or a write gets to the file.
    ///
    /// What is in the page cache of a block device must be heeded, and a device that has become
    /// shorter or read-only says so in its own way.
    pub(crate) fn way(&self, rq: &Request<LoopDevice>) -> Way {
        if self.caching == Caching::Buffered {
            return Way::Buffered;
        }
        if rq.data().driver().refused.load(Relaxed) || self.is_split_block(rq) {
            return Way::Apart;
        }
        match self.block_device() {
            Some(bdev)
                if rq.device().switches.remap.is_on()
                    && !self.file.is_cached()
                    && self.position_of(rq).is_ok_and(|position| {
                        bdev.admits(rq.op().is_write(), position, rq.len())
                    }) =>
            {
                Way::Remap
            }
            _ => Way::Direct,
        }
    }

    /// Returns whether a request is not in whole blocks of direct I/O, on a device whose blocks are
    /// smaller.
    fn is_split_block(&self, rq: &Request<LoopDevice>) -> bool {
        self.direct_block
            .is_some_and(|block| self.splits(rq, block))
    }

    /// Returns whether a request is not in whole blocks of the block device that the file is.
    fn exceeds_blocks(&self, rq: &Request<LoopDevice>) -> bool {
        self.block_device()
            .is_some_and(|bdev| self.splits(rq, bdev.logical_block_size()))
    }

    /// Returns whether a request is not in whole blocks of `block` bytes of the file.
    fn splits(&self, rq: &Request<LoopDevice>, block: u32) -> bool {
        self.position_of(rq).is_ok_and(|position| {
            geometry::alignment(position, u64::from(rq.len())) < u64::from(block)
        })
    }

    /// Whether a request can go on to the block device and be told not to wait.
    pub(crate) fn remaps_without_waiting(&self, rq: &Request<LoopDevice>) -> bool {
        self.block_device()
            .is_some_and(|bdev| bdev.has_nowait() && rq.len() <= bdev.max_bytes())
    }

    /// Whether the file can, and may, be told not to wait.
    pub(crate) fn has_nowait(&self, rq: &Request<LoopDevice>) -> bool {
        self.nowait && rq.device().switches.nowait.is_on()
    }

    /// Whether it is worth while to try without waiting.
    pub(crate) fn backoff(&self, rq: &Request<LoopDevice>) -> &Backoff {
        match rq.op() {
            Op::Read => &self.reads,
            _ => &self.writes,
        }
    }

    /// Frees or zeroes the range of a request in the file.
    fn change_holes(&self, rq: &Request<LoopDevice>) -> Result {
        // A block device has no parts of blocks to free. The submitter writes zeroes instead.
        if self.exceeds_blocks(rq) {
            return Err(EOPNOTSUPP);
        }
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
