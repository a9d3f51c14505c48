// SPDX-License-Identifier: GPL-2.0

//! Transfer: a request becomes an operation on the backing file.

use super::{
    leasing::Extent,
    progress::{
        Bypass,
        IoMethod, //
    },
    stats::{
        self,
        Counter, //
    },
    target::{
        alignment,
        LoopQueue, //
    },
};
use crate::{
    aio::{
        request,
        Caching,
        Wait, //
    },
    blk_mq::{
        Op,
        StartedRequest, //
    },
    kern::{
        compat::EOPNOTSUPP,
        file::{
            BackingFile,
            ErrseqCursor,
            Fallocate, //
        },
        gate::Gate, //
    },
};
use kernel::{
    block::SECTOR_SHIFT,
    fs::File,
    prelude::*, //
};

/// Serves a read or a write by its route. May sleep; if the route is non-blocking, the operation
/// itself is non-blocking.
///
/// [`completion`](super::completion) gets the request back, also if it would block.
pub(super) fn submit(mut rq: StartedRequest<LoopQueue>) {
    if let Bypass::Stale(bytes) = rq.progress().bypass {
        return drop_stale(rq, bytes);
    }
    let route = rq.progress().route;
    if rq.op() == Op::Flush {
        rq.progress_mut().nowait = true;
        return request::flush(rq);
    }
    let (wait, is_atomic) = (route.wait(), rq.is_atomic());
    let way = match acquire(&mut rq, route.method, wait) {
        Ok(way) => way,
        Err(error) => {
            let progress = rq.progress_mut();
            // An atomic write whose pages are in use is retried after a delay.
            progress.nowait = error == EAGAIN && (wait == Wait::Forbidden || !is_atomic);
            if progress.bypass == Bypass::No {
                progress.bypass = Bypass::Unstarted;
            }
            return rq.operation_done(Err(error));
        }
    };
    let io_wait = match way {
        Way::Bio { .. } => route.bio_wait(),
        _ => wait,
    };
    rq.progress_mut().nowait = io_wait == Wait::Forbidden;
    let position = rq.backend().position_of(&rq);
    match way {
        Way::Bio { sector, bytes } => {
            rq.trace_submitted("bio", sector << SECTOR_SHIFT, bytes);
            request::remap(rq, sector, bytes, io_wait);
        }
        Way::File { caching, bytes } => {
            rq.trace_submitted(caching.name(), position, bytes);
            ask_for_extent(&rq, caching, position);
            request::submit(rq, position, bytes, caching, io_wait);
        }
        Way::FileAlone => {
            rq.trace_submitted("buffered", position, rq.len());
            submit_alone(rq, position);
        }
    }
}

/// The way of a transfer, or of its first `bytes` bytes, that has acquired what it needs.
enum Way {
    /// As a bio, at this sector (of 512 bytes).
    Bio { sector: u64, bytes: u32 },
    /// Through the file.
    File { caching: Caching, bytes: u32 },
    /// As for [`IoMethod::BufferedAlone`].
    FileAlone,
}

/// Acquires what a transfer holds until [`release`], and returns its way. Fails with `EAGAIN` if it
/// must be routed anew, or if it would block and must not.
///
/// A remapped write does not invalidate the page cache of the block device, and does not fail if
/// the block device is read-only. If it has pages or is read-only now, but was not when the route
/// was chosen, the write uses direct I/O instead, by a worker that may block.
///
/// An atomic write fails with `EINVAL` on every way but that of a bio to the block device: a file
/// may split it, and takes atomic writes from user space alone (`generic_atomic_write_valid()`).
fn acquire(rq: &mut StartedRequest<LoopQueue>, method: IoMethod, wait: Wait) -> Result<Way> {
    if rq.is_atomic() && !matches!(method, IoMethod::Remap) {
        return Err(EINVAL);
    }
    let acquired = match rq.op() {
        Op::Write => acquire_for_write(rq, method, wait),
        _ => acquire_for_read(rq, method, wait),
    };
    if !acquired {
        return Err(EAGAIN);
    }
    let bytes = rq.len();
    let file = |caching| Ok(Way::File { caching, bytes });
    let sector = rq.backend().position_of(rq) >> SECTOR_SHIFT;
    match method {
        IoMethod::Remap if can_remap(rq) => Ok(Way::Bio { sector, bytes }),
        IoMethod::Remap if wait == Wait::Forbidden => Err(EAGAIN),
        IoMethod::Remap if rq.is_atomic() => {
            drop_pages_of_atomic(rq)?;
            Ok(Way::Bio { sector, bytes })
        }
        IoMethod::Remap => {
            release(rq);
            acquire(rq, IoMethod::Direct, wait)
        }
        IoMethod::Extent(extent) => acquire_extent(rq, extent, wait),
        IoMethod::Direct if rq.op() == Op::Write => acquire_file_write(rq),
        IoMethod::Direct => file(Caching::Direct),
        IoMethod::Buffered if rq.backend().dontcache && rq.device().tunables.dontcache.is_on() => {
            file(Caching::DontCache)
        }
        IoMethod::Buffered => file(Caching::Buffered),
        IoMethod::Cached => file(Caching::Cached),
        IoMethod::BufferedAlone => Ok(Way::FileAlone),
    }
}

/// Enters to bypass the file with the first part of a transfer.
fn acquire_extent(rq: &mut StartedRequest<LoopQueue>, extent: Extent, wait: Wait) -> Result<Way> {
    let leasing = rq.backend().leasing.as_ref().ok_or(EAGAIN)?;
    if !rq.device().tunables.extents.is_on() {
        // User space has turned it off while the leases were being taken.
        leasing.renew();
    }
    // The file system must make the blocks valid before a write to them is durable.
    if rq.is_fua() && !leasing.is_synced() {
        match wait {
            Wait::Forbidden => return Err(EAGAIN),
            Wait::Allowed => leasing.sync_changes()?,
        }
    }
    if !enter(leasing.users(), wait) {
        return Err(EAGAIN);
    }
    let admitted = leasing.admits(rq.op() == Op::Write, extent);
    rq.progress_mut().bypass = Bypass::Bio;
    if !admitted {
        stats::count(rq, Counter::ExtentLost);
        return Err(EAGAIN);
    }
    Ok(Way::Bio {
        sector: extent.sector,
        bytes: extent.bytes,
    })
}

/// Enters to write the first part of a request to the file by direct I/O, if the extent map has
/// none of it. May sleep.
fn acquire_file_write(rq: &mut StartedRequest<LoopQueue>) -> Result<Way> {
    let mut bytes = rq.len();
    if let Some(leasing) = &rq.backend().leasing {
        leasing.enter_file_write();
        let Some(part) = leasing.file_part(rq.backend().position_of(rq), bytes) else {
            leasing.leave_file_write();
            return Err(EAGAIN);
        };
        bytes = part;
        rq.progress_mut().bypass = Bypass::File;
    }
    Ok(Way::File {
        caching: Caching::Direct,
        bytes,
    })
}

/// Asks for the leases, or for the places of blocks, for the next direct transfer.
fn ask_for_extent(rq: &StartedRequest<LoopQueue>, caching: Caching, position: u64) {
    if let (Some(leasing), Caching::Direct) = (&rq.backend().leasing, caching) {
        if rq.device().tunables.extents.is_on() {
            leasing.poke(position, rq.len().into());
            if let Some(loss) = leasing.take_loss() {
                let name = rq.disk_name();
                pr_notice!("{name}: requests cannot bypass the file system of the image: {loss}\n");
            }
        }
    }
}

/// Writes back and drops the pages of an atomic write in the page cache of the block device, as a
/// direct write does. May sleep. Fails with `EAGAIN` if another task uses one of them, and with
/// `EINVAL` if the block device does not take the write any more.
fn drop_pages_of_atomic(rq: &StartedRequest<LoopQueue>) -> Result {
    let target = rq.backend();
    let (position, len) = (target.position_of(rq), rq.len().into());
    let bdev = target.block_device().ok_or(EINVAL)?;
    if !target.can_access(bdev, rq) {
        return Err(EINVAL);
    }
    target.file.write_back(position, len)?;
    target.file.drop_cached(position, len).map_err(|_| EAGAIN)
}

/// Returns whether a write that is over, past the file, may have left stale pages in the page cache
/// of the file. Any context.
///
/// Another task may have read them while the write was in flight. Other writes to a block device
/// are not remapped if it has pages.
pub(super) fn leaves_stale(rq: &StartedRequest<LoopQueue>) -> bool {
    let target = rq.backend();
    let is_cached = match (&target.leasing, rq.progress().bypass) {
        (Some(leasing), Bypass::Bio) => leasing.is_cached(),
        (None, Bypass::No) => rq.is_atomic() && target.file.is_cached(),
        _ => false,
    };
    rq.op() == Op::Write && is_cached
}

/// Drops the pages that a write of `bytes` bytes has made stale, and ends the operation. May sleep.
fn drop_stale(mut rq: StartedRequest<LoopQueue>, bytes: u32) {
    let target = rq.backend();
    let position = target.position_of(&rq);
    match &target.leasing {
        Some(leasing) => leasing.drop_cached(position, bytes.into()),
        // Pages that stay are dirty, with newer data, or in use by a task that reads them.
        None => drop(target.file.drop_cached(position, bytes.into())),
    }
    rq.progress_mut().bypass = Bypass::Done;
    rq.operation_done(Ok(bytes));
}

/// Returns whether a transfer may still be remapped.
fn can_remap(rq: &StartedRequest<LoopQueue>) -> bool {
    if rq.op() != Op::Write {
        return true;
    }
    let target = rq.backend();
    let bdev = target.block_device();
    !target.file.is_cached() && bdev.is_some_and(|bdev| target.can_access(bdev, rq))
}

/// Enters the gate of direct I/O for a direct read of a file whose page cache other requests may
/// use ([`submit_alone`]); returns false if that would block and must not.
///
/// A direct read waits for writeback. If a writeback of such a request has failed, the read would
/// fail instead of that request, whose data would be lost without an error.
fn acquire_for_read(rq: &mut StartedRequest<LoopQueue>, method: IoMethod, wait: Wait) -> bool {
    let shares_cache = rq.backend().direct_block.is_some();
    !matches!(method, IoMethod::Direct) || !shares_cache || enter_direct_io(rq, wait)
}

/// Acquires freeze protection for a write to the file, and enters the gate of direct I/O for a
/// write past the page cache; returns false if that would block and must not.
///
/// Freeze protection comes first, so that no request inside the gate waits for a thaw of the file's
/// own file system. Buffered reads would wait for it, too. (A stacked file system may still wait
/// for the one below it.)
fn acquire_for_write(rq: &mut StartedRequest<LoopQueue>, method: IoMethod, wait: Wait) -> bool {
    if !matches!(method, IoMethod::Remap) {
        if !start_write(&rq.backend().file, wait) {
            return false;
        }
        rq.progress_mut().holds_write = true;
    }
    !matches!(method, IoMethod::Remap | IoMethod::Direct) || enter_direct_io(rq, wait)
}

fn start_write(file: &File, wait: Wait) -> bool {
    match wait {
        Wait::Forbidden => file.try_start_write(),
        Wait::Allowed => {
            file.start_write();
            true
        }
    }
}

fn enter_direct_io(rq: &mut StartedRequest<LoopQueue>, wait: Wait) -> bool {
    let entered = enter(&rq.device().direct_io, wait);
    rq.progress_mut().in_gate = entered;
    entered
}

/// Enters a gate; returns false if that would block and must not.
fn enter(gate: &Gate, wait: Wait) -> bool {
    match wait {
        Wait::Forbidden => gate.enter(),
        Wait::Allowed => {
            gate.enter_blocking();
            true
        }
    }
}

/// Releases what [`acquire`] acquired. Any context, including hard IRQ.
pub(super) fn release(rq: &mut StartedRequest<LoopQueue>) {
    if let Some(leasing) = &rq.backend().leasing {
        match rq.progress().bypass {
            Bypass::No | Bypass::Unstarted => {}
            Bypass::File => leasing.leave_file_write(),
            Bypass::Bio | Bypass::Stale(_) | Bypass::Done => leasing.users().leave(),
        }
    }
    rq.progress_mut().bypass = Bypass::No;
    if rq.progress().in_gate {
        rq.device().direct_io.leave();
        rq.progress_mut().in_gate = false;
    }
    if rq.progress().holds_write {
        rq.backend().file.end_write();
        rq.progress_mut().holds_write = false;
    }
}

/// Serves a read or a write through the page cache of a file whose other requests bypass it:
/// because the request is not in whole blocks of direct I/O, or because direct I/O of it was
/// refused. May sleep.
///
/// A page in the cache also holds data beside that of the request. A direct write of such data
/// would leave the page stale, because a dirty page is not invalidated, and the writeback of the
/// page would overwrite the direct write (lost write). So the gate of direct I/O is closed until
/// the cache is clean and empty again.
fn submit_alone(rq: StartedRequest<LoopQueue>, position: u64) {
    let (write, len) = (rq.op().is_write(), u64::from(rq.len()));
    // The request may end before the gate is open again, so the queue is kept.
    let queue = rq.get_queue();
    let closed = queue.device().direct_io.close();
    let leasing = rq.backend().leasing.as_deref().cloned();
    let suspended = leasing.as_ref().map(|leasing| leasing.suspend());
    let unsynced = leasing.as_ref().map(|leasing| leasing.close_syncs());
    // Bios to a block device do not invalidate its page cache.
    rq.backend().file.drop_page_cache();
    let errors = ErrseqCursor::from_now(&rq.backend().file);
    let Some((rq, mut result)) = request::transfer_buffered(rq, position) else {
        return;
    };
    if write {
        let file = &rq.backend().file;
        let written = file.write_back(position, len);
        // The page cache reports a writeback error once, and a sync of the file or a direct read
        // may have taken the report for this write.
        let written = written.and_then(|()| errors.check(file));
        result = result.and_then(|bytes| written.map(|()| bytes));
    }
    rq.backend().file.drop_page_cache();
    // Before the map can have the blocks.
    rq.backend().note_change(&rq);
    drop(unsynced);
    drop(suspended);
    drop(closed);
    // When the device is detached, the file is released.
    drop(leasing);
    if result.is_ok() && rq.progress().direct_refused {
        rq.device().record_refusal(alignment(position, len));
        rq.queue_revalidation();
    }
    rq.operation_done(result);
}

/// Serves a discard or a write of zeroes; other operations fail. May sleep.
pub(super) fn submit_slow(rq: StartedRequest<LoopQueue>) {
    let result = match rq.op() {
        Op::Discard | Op::WriteZeroes => free_or_zero(&rq),
        _ => Err(EOPNOTSUPP),
    };
    rq.operation_done(result.map(|()| 0));
}

/// Frees or zeroes the range of a request in the file. May sleep.
fn free_or_zero(rq: &StartedRequest<LoopQueue>) -> Result {
    let target = rq.backend();
    // A block device cannot free parts of its blocks. The submitter writes zeroes instead.
    if target.is_misaligned_to_device(rq) {
        return Err(EOPNOTSUPP);
    }
    // A page of a block device may hold other blocks than the zeroed ones, so direct writes must
    // not be in flight. File systems take care of that themselves; and vfs_fallocate() takes freeze
    // protection, which would have to come before the gate.
    let shares_pages = target.block_device().and(target.direct_block).is_some();
    let gate = &rq.device().direct_io;
    let _closed = shares_pages.then(|| gate.close());
    if rq.op() == Op::Discard {
        return fallocate(rq, Fallocate::PunchHole);
    }
    // Zeroes may be holes, unless the submitter wants to keep the blocks.
    if !rq.is_nounmap() {
        let result = fallocate(rq, Fallocate::PunchHole);
        if result != Err(EOPNOTSUPP) {
            return result;
        }
    }
    fallocate(rq, Fallocate::ZeroRange)
}

/// Calls `fallocate()` for the range of a request, unless the file is known not to support `mode`.
///
/// The limit of the queue is set to 0 before the request ends, because
/// `blkdev_issue_write_zeroes()` then reads the limit to tell why the request has failed. The
/// revalidation keeps it at 0; it waits until no request is in flight.
fn fallocate(rq: &StartedRequest<LoopQueue>, mode: Fallocate) -> Result {
    let target = rq.backend();
    if !target.holes.supports(mode) {
        return Err(EOPNOTSUPP);
    }
    let position = target.position_of(rq);
    let len = u64::from(rq.len());
    let change = || target.file.fallocate(mode, position, len);
    let result = match &target.leasing {
        Some(leasing) => leasing.change(position, len, change),
        None => change(),
    };
    if result == Err(EOPNOTSUPP) {
        let is_new = target.holes.remove(mode);
        match mode {
            Fallocate::PunchHole => rq.disable_discard(),
            Fallocate::ZeroRange => rq.disable_write_zeroes(),
        }
        if is_new && mode == Fallocate::PunchHole {
            let name = rq.disk_name();
            pr_notice!("{name}: the backing file cannot free blocks; discards are off now\n");
        }
        rq.queue_revalidation();
    }
    result
}
