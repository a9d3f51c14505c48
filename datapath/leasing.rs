// SPDX-License-Identifier: GPL-2.0

//! Leasing: the leases of a backing file, and the requests that bypass the file while they are
//! held.
//!
//! While the leases are held, the file system keeps the written blocks of the file where they are,
//! so a request for such blocks is submitted as a bio to the disk of the file system, at the places
//! that the [extent map](super::extents) has. Other tasks that want to change the file break a
//! lease, and wait until it is released. The rules:
//!
//! - **The map is right while it is used.** A request enters [a gate](Leasing::users) before it
//!   looks up blocks, and leaves it when its bio is over. Before a lease is released, and before
//!   blocks are [freed](Leasing::change), the map stops having them, and requests that have entered
//!   are waited for. These wait for the disk alone.
//! - **A breaker of the delegation does not wait**, because it may only be about to open the file,
//!   and not allow to wait (`O_NONBLOCK`). Instead requests that have entered count as direct I/O
//!   in flight, for which a file system waits before it frees or moves blocks.
//! - **No other task writes to the file.** A lease excludes later writers only; so one is not used
//!   while there are other ones. Hence the page cache of the file has no dirty pages but those of
//!   this device, which [suspends](Leasing::suspend) the map for them, and reads may ignore it. A
//!   write drops the pages that it makes stale.
//! - **No block is written both ways at a time.** A part of a request goes through the file only if
//!   the map has none of its blocks, and the map learns no block while a direct write through the
//!   file is in flight. If the map is not used any more, a write through the file first
//!   [waits](Leasing::file_part) for the requests that have used it. Where the file system
//!   falls back to its page cache, it may read a block, change a part of it, and write it back.
//! - **A flush of the disk is enough only if the file system has nothing to make durable**: if two
//!   `fdatasync()` have succeeded, one after the other, that began after the last change through
//!   the file was over ([`Leasing::is_synced`]). Writes through the file allocate blocks and make
//!   them valid. (One is not enough: ext4 with fast commits may find that another task commits,
//!   wait for that, and miss a change that came too late for it.)
//! - **No request waits for a lease.** They are taken and released by a work item. Until then
//!   requests go through the file.
//!
//! Lock order: `flushing` of the flusher, `leases`, `changes_blocks`,
//! [`LoopQueue::direct_io`](super::target::LoopQueue), the gates.

use super::extents::{
    Extents,
    Knowledge,
    Run, //
};
use crate::kern::{
    bdev::BlockDevice,
    compat::EOPNOTSUPP,
    file::{
        BackingFile,
        ErrseqCursor, //
    },
    gate::{
        ClosedGate,
        Gate, //
    },
    lease::{
        BlockFile,
        Holder,
        Lease,
        Type, //
    },
    task, //
    time, //
    workqueue::{
        flush,
        flush_delayed,
        system_unbound, //
    },
};
use kernel::{
    block::SECTOR_SHIFT,
    new_mutex,
    prelude::*,
    static_lock_class,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Full,
                Relaxed, //
            },
            Atomic, //
        },
        Arc,
        Mutex,
        MutexGuard, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    },
    workqueue::{
        impl_has_delayed_work,
        impl_has_work,
        new_delayed_work,
        new_work,
        system_freezable,
        DelayedWork,
        Work,
        WorkItem, //
    },
};

/// The first part of a request.
pub(super) enum Part {
    /// It is on the disk.
    Mapped(Extent),
    /// The map has nothing of it: this many bytes.
    Other(u32),
    /// The map is not used.
    Unusable,
}

/// The place of a part of a request on the disk.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// The sector, of 512 bytes.
    pub(super) sector: u64,
    /// The length of the part, in bytes.
    pub(super) bytes: u32,
    /// The version of the map that it is from.
    version: u32,
}

/// The state of the leases of a backing file, for user space.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    /// No request could have used them yet.
    Idle,
    /// They are held.
    Held,
    /// Another task has the file open for writing, or has just changed it.
    Foreign,
    /// The file system has no leases now, or the file cannot be synced.
    Refused,
}

/// The leases that are held.
type Leases = Option<[Pin<KBox<Lease<Leasing>>>; 2]>;

/// The leases of the backing file of a device.
#[pin_data]
pub(crate) struct Leasing {
    file: BlockFile,
    extents: Extents,
    /// The state of the map. In the lower half the reasons not to use it: [`BROKEN`](Self::BROKEN),
    /// [`UNLEASED`](Self::UNLEASED), and the number of tasks that have
    /// [suspended](Self::suspend) it. In the upper half the version, which changes before requests
    /// that use the map are waited for.
    state: Atomic<u64>,
    /// Entered by requests that use the map.
    #[pin]
    users: Gate,
    /// Entered by direct writes through the file; closed while the map learns.
    #[pin]
    file_writes: Gate,
    /// Entered by syncs of the file, and by all else that writes back its page cache, which takes
    /// the report of an error; closed by requests that use the page cache.
    #[pin]
    syncs: Gate,
    /// True if a request could have used the leases.
    asked: Atomic<bool>,
    /// The reason why the leases are not held: a [`Status`].
    reason: Atomic<u32>,
    /// The time of the last request that went through the file because its blocks are unmapped, in
    /// milliseconds, see [`time::uptime_ms`]; 0 for none.
    unmapped: Atomic<u64>,
    /// True if the device is being detached.
    stopped: Atomic<bool>,
    /// True if a work item was ever queued. No lease was held before.
    started: Atomic<bool>,
    /// The number of changes of the file through the file system that are over.
    changes: Atomic<u64>,
    /// The number of these when the last successful sync began, and when the one before that began,
    /// which both syncs have made durable.
    begun: Atomic<u64>,
    synced: Atomic<u64>,
    /// True if a sync that no request waited for has failed.
    failed: Atomic<bool>,
    /// True if requests may have bypassed the file since the last flush of the disk, though the
    /// leases are not held any more.
    unflushed: Atomic<bool>,
    /// The time of the last successful sync, in milliseconds, see [`time::uptime_ms`].
    checked: Atomic<u64>,
    /// True if the times of the file have to be updated, because of writes that bypassed it.
    written: Atomic<bool>,
    /// A block whose place was unknown to a request, plus 1; 0 for none.
    wanted: Atomic<u64>,
    /// The number of changes when the map has last learned.
    seen: Atomic<u64>,
    /// The time before which the map learns nothing that writes make unknown again, and that before
    /// which requests do not ask, in milliseconds, see [`time::uptime_ms`].
    next_learning: Atomic<u64>,
    next_look: Atomic<u64>,
    /// The alignment of requests in the file, in bytes; `u32::MAX` if they may not bypass it.
    alignment: Atomic<u32>,
    /// The time before which the leases are not tried again, and that at which they were taken, in
    /// milliseconds, see [`time::uptime_ms`].
    retry: Atomic<u64>,
    taken: Atomic<u64>,
    /// The pause after the next failure, in milliseconds.
    pause: Atomic<u64>,
    /// True if [`take_loss`](Self::take_loss) has returned that there are too many extents, and
    /// that the leases are refused.
    told_fragmented: Atomic<bool>,
    told_refused: Atomic<bool>,
    #[pin]
    leases: Mutex<Leases>,
    /// Held while the map learns, and while blocks are freed.
    #[pin]
    changes_blocks: Mutex<()>,
    /// The number of calls of [`begin_dio`](BlockFile::begin_dio) that have not been ended.
    dio: Atomic<u32>,
    #[pin]
    work: Work<Leasing>,
    /// Lets those continue. Takes no lock that a breaker may hold.
    #[pin]
    end_dio: Work<Leasing, 2>,
    /// Updates the times of the file.
    #[pin]
    update: DelayedWork<Leasing, 1>,
}

impl_has_work! {
    impl HasWork<Self> for Leasing { self.work }
}

impl_has_work! {
    impl HasWork<Self, 2> for Leasing { self.end_dio }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for Leasing { self.update }
}

impl Leasing {
    /// A reason in `state`: a lease was broken, or the leases must be taken anew.
    const BROKEN: u64 = 1;

    /// A reason in `state`: the leases are not held.
    const UNLEASED: u64 = 2;

    /// One more task that has suspended the map, in `state`.
    const SUSPENDED: u64 = 4;

    /// One more version, in `state`.
    const VERSION: u64 = 1 << 32;

    /// The time from a write to the update of the times of the file, and the longest time from one
    /// sync of the file to a flush that syncs it again, in milliseconds.
    const UPDATE: u32 = 2_000;

    /// The number of chunks of the map that are learned at once.
    const AHEAD: u64 = 16;

    /// The pause after writes have waited for what they will make unknown again: how many times as
    /// long as that took, and the longest one, in milliseconds.
    const LEARNING_PAUSE: u64 = 100;
    const LONGEST_LEARNING_PAUSE: u64 = 30_000;

    /// The time from one look at blocks that are not learned in that pause to the next, in
    /// milliseconds.
    const LOOK: u64 = 20;

    /// The pauses after which the leases are tried again, in milliseconds.
    const FIRST_PAUSE: u64 = 100;
    const LONGEST_PAUSE: u64 = 4_000;

    fn new(file: BlockFile) -> Result<Arc<Self>> {
        // The file may have grown since the caller has checked its size.
        let size = file.size().min(LeasedFile::MAX_SIZE);
        let extents = Extents::new(size >> file.block_bits())?;
        Arc::pin_init(
            pin_init!(Self {
                file,
                extents,
                state: Atomic::new(Self::UNLEASED),
                users <- Gate::new(c"Leasing::users", static_lock_class!()),
                file_writes <- Gate::new(c"Leasing::file_writes", static_lock_class!()),
                syncs <- Gate::new(c"Leasing::syncs", static_lock_class!()),
                asked: Atomic::new(false),
                reason: Atomic::new(Status::Idle as u32),
                unmapped: Atomic::new(0),
                stopped: Atomic::new(false),
                started: Atomic::new(false),
                // Before the device was attached, the file may have been changed.
                changes: Atomic::new(1),
                begun: Atomic::new(0),
                synced: Atomic::new(0),
                failed: Atomic::new(false),
                unflushed: Atomic::new(false),
                checked: Atomic::new(0),
                written: Atomic::new(false),
                wanted: Atomic::new(0),
                seen: Atomic::new(0),
                next_learning: Atomic::new(0),
                next_look: Atomic::new(0),
                alignment: Atomic::new(u32::MAX),
                retry: Atomic::new(0),
                taken: Atomic::new(0),
                pause: Atomic::new(Self::FIRST_PAUSE),
                told_fragmented: Atomic::new(false),
                told_refused: Atomic::new(false),
                leases <- new_mutex!(None, "Leasing::leases"),
                changes_blocks <- new_mutex!((), "Leasing::changes_blocks"),
                dio: Atomic::new(0),
                work <- new_work!("Leasing::work"),
                end_dio <- new_work!("Leasing::end_dio"),
                update <- new_delayed_work!("Leasing::update"),
            }),
            GFP_KERNEL,
        )
    }

    /// Sets the size of the file, in bytes. Does not sleep.
    pub(crate) fn set_size(&self, size: u64) {
        // The last part of a file is not in the map: if the file system has to zero the rest of its
        // block, that must not happen past a request.
        self.extents.set_blocks(size >> self.file.block_bits());
    }

    /// Returns the state of the leases. Does not sleep.
    pub(crate) fn status(&self) -> Status {
        match self.reason.load(Relaxed) {
            _ if self.is_held() => Status::Held,
            reason if reason == Status::Foreign as u32 => Status::Foreign,
            reason if reason == Status::Refused as u32 => Status::Refused,
            _ => Status::Idle,
        }
    }

    /// Returns whether a request went through the file in the last seconds, because it was for
    /// holes, or for blocks without valid data. Does not sleep.
    pub(crate) fn has_unmapped(&self) -> bool {
        const RECENT: u64 = 5_000;
        let unmapped = self.unmapped.load(Relaxed);
        unmapped != 0 && time::uptime_ms().saturating_sub(unmapped) < RECENT
    }

    /// Returns whether the extents of the file were too many for the map. Does not sleep.
    pub(crate) fn is_fragmented(&self) -> bool {
        self.extents.is_full()
    }

    /// Returns a reason why requests do not bypass the file, or only for some of its blocks, that
    /// may last; each reason once. Any context.
    pub(super) fn take_loss(&self) -> Option<&'static str> {
        let lost = |flag: &Atomic<bool>| !flag.load(Relaxed) && !flag.xchg(true, Relaxed);
        if self.is_fragmented() && lost(&self.told_fragmented) {
            Some("it has too many extents")
        } else if self.status() == Status::Refused && lost(&self.told_refused) {
            Some("it has no leases, or cannot be synced")
        } else {
            None
        }
    }

    /// Returns the block device that requests with places are submitted to.
    pub(crate) fn block_device(&self) -> &BlockDevice {
        self.file.block_device()
    }

    /// Returns the blocks of `len` bytes from `pos`: the first one, and their number.
    fn blocks(&self, pos: u64, len: u64) -> (u64, u64) {
        let bits = self.file.block_bits();
        let first = pos >> bits;
        let end = pos.saturating_add(len).div_ceil(1 << bits);
        (first, end.saturating_sub(first))
    }

    /// Returns the version of the map if it may be used.
    fn version(&self) -> Option<u32> {
        // ORDERING: What was known before the leases were taken is not found, and what is found
        // later may be newer.
        let state = self.state.load(Acquire);
        // CAST: The two halves.
        (state as u32 == 0).then_some((state / Self::VERSION) as u32)
    }

    /// Returns whether the leases are held, and none is being broken.
    fn is_held(&self) -> bool {
        self.state.load(Relaxed) & (Self::BROKEN | Self::UNLEASED) == 0
    }

    /// Adds or removes a reason not to use the map. Returns whether the reason was there before.
    /// Any context.
    fn set_reason(&self, reason: u64, on: bool) -> bool {
        let mut state = self.state.load(Relaxed);
        loop {
            let new = if on { state | reason } else { state & !reason };
            // ORDERING: The map is cleared before it is used. A request that finds it usable after
            // that has entered before, see `file_part`.
            match self.state.cmpxchg(state, new, Full) {
                Ok(_) => return state & reason != 0,
                Err(now) => state = now,
            }
        }
    }

    /// Returns the first part of `len` bytes from `pos`. A place is used by a request that has
    /// entered [`users`](Self::users), if it is [admitted](Self::admits). Any context.
    pub(super) fn part(&self, pos: u64, len: u32) -> Part {
        let Some(version) = self.version() else {
            return Part::Unusable;
        };
        let bits = self.file.block_bits();
        let in_block = pos & ((1 << bits) - 1);
        // CAST: The number is no larger than `len`.
        let bytes =
            |count: u64| (count << bits).saturating_sub(in_block).min(u64::from(len)) as u32;
        let (first, count) = self.blocks(pos, len.into());
        match self.extents.run(first, count) {
            Run::Mapped { place, count } => {
                let sector =
                    (place << (bits - SECTOR_SHIFT)).saturating_add(in_block >> SECTOR_SHIFT);
                Part::Mapped(Extent {
                    sector,
                    bytes: bytes(count),
                    version,
                })
            }
            Run::Other { count } => Part::Other(bytes(count)),
        }
    }

    /// Returns whether a request that has entered [`users`](Self::users) may use an extent: whether
    /// it is still right. Releases the leases if the file system does not allow to bypass it any
    /// more. Any context.
    pub(super) fn admits(self: &Arc<Self>, write: bool, extent: Extent) -> bool {
        if !self.file.allows(write) {
            self.renew();
        } else if write {
            self.note_write();
        }
        // ORDERING: This load follows the full barrier of `Gate::enter`, see `file_part`.
        self.version() == Some(extent.version)
    }

    /// Returns the gate of the requests that use the map. A request enters it before it looks up
    /// blocks, and leaves it when its bio is over. It is closed while others wait for these
    /// requests. Any context.
    pub(super) fn users(&self) -> &Gate {
        &self.users
    }

    /// Enters for a direct write through the file: the map learns none of its blocks until it
    /// [leaves](Self::leave_file_write). May sleep.
    pub(super) fn enter_file_write(&self) {
        self.file_writes.enter_blocking();
    }

    /// Returns the number of bytes at `pos` that a write of `len` bytes may write to the file, once
    /// it has [entered](Self::enter_file_write) for that; `None` if it has to bypass the file.
    /// Waits for the requests that use the map if the next ones may not. May sleep.
    pub(super) fn file_part(&self, pos: u64, len: u32) -> Option<u32> {
        match self.part(pos, len) {
            Part::Mapped(_) => None,
            Part::Other(bytes) => Some(bytes),
            Part::Unusable => {
                // ORDERING: The full barrier of `is_idle` pairs with that of `Gate::enter`: a
                // request that has found the map usable after it has entered is seen here.
                if !self.users.is_idle() {
                    self.drain();
                }
                Some(len)
            }
        }
    }

    /// Leaves when the write is over, and [noted](Self::note_change). Any context, including hard
    /// IRQ.
    pub(super) fn leave_file_write(&self) {
        self.file_writes.leave();
    }

    /// Waits for the requests that may have used the map as it was before. May sleep.
    fn drain(&self) {
        // ORDERING: A request that finds the old version is waited for, and others see what was
        // changed before.
        self.state.fetch_add(Self::VERSION, Full);
        drop(self.users.close());
    }

    /// Notes that a request is about to bypass the file with a write.
    fn note_write(self: &Arc<Self>) {
        // ORDERING: `release` finds the note, or the writer finds the lease broken.
        if !self.written.load(Relaxed) && !self.written.xchg(true, Full) {
            self.update_later();
        }
    }

    /// Updates the times of the file in a while. Not during hibernation, when the file system must
    /// not change. Any context.
    fn update_later(self: &Arc<Self>) {
        let delay = msecs_to_jiffies(Self::UPDATE);
        let _ = system_freezable().enqueue_delayed::<_, 1>(self.clone(), delay);
    }

    /// Returns whether the page cache of the file has pages, which a write that bypasses it may
    /// have made stale. Any context.
    pub(super) fn is_cached(&self) -> bool {
        self.file.file().is_cached()
    }

    /// Drops the pages that a write has made stale. May sleep.
    ///
    /// A page may be dirty because another block of it was zeroed through the page cache. Writing
    /// it back writes that block alone.
    pub(super) fn drop_cached(self: &Arc<Self>, pos: u64, len: u64) {
        let drop_pages = || self.file.drop_cached(pos, len);
        let written_back = || self.file.file().write_back(pos, len);
        if drop_pages()
            .or_else(|_| written_back().and_then(|()| drop_pages()))
            .is_err()
        {
            // Taking the leases writes back and drops all pages.
            self.renew();
        }
    }

    /// Suspends the map until the guard is dropped, and waits for the requests that use it. May
    /// sleep.
    pub(super) fn suspend(&self) -> Suspended<'_> {
        self.state.fetch_add(Self::SUSPENDED, Full);
        self.drain();
        Suspended(self)
    }

    /// Keeps the driver from syncing the file until the guard is dropped. May sleep.
    pub(super) fn close_syncs(&self) -> ClosedGate<'_> {
        self.syncs.close()
    }

    /// Frees or zeroes `len` bytes from `pos` in the file by `change`. May sleep.
    pub(super) fn change(&self, pos: u64, len: u64, change: impl FnOnce() -> Result) -> Result {
        // The map must not learn a place that is about to be freed.
        let _guard = self.changes_blocks.lock();
        let (first, count) = self.blocks(pos, len);
        let suspended = self.suspend();
        self.extents.remove(first, count);
        drop(suspended);
        let result = change();
        // Before the map can learn of the change.
        self.note_change(pos, len);
        // A part of a block is zeroed through the page cache, and other blocks share its page.
        self.syncs.enter_blocking();
        for edge in [pos, pos.saturating_add(len).saturating_sub(1)] {
            if self.is_cached() {
                let _ = self.file.file().write_back(edge, 1);
                let _ = self.file.drop_cached(edge, 1);
            }
        }
        self.syncs.leave();
        result
    }

    /// Notes that an operation on `len` bytes from `pos` through the file is over, before the
    /// submitter learns of it. Any context, including hard IRQ.
    pub(super) fn note_change(&self, pos: u64, len: u64) {
        // ORDERING: A flush that is submitted after the end of the operation finds the change, and
        // so does a request that finds the places of the blocks.
        self.changes.fetch_add(1, Full);
        let (first, count) = self.blocks(pos, len);
        self.extents.forget(first, count);
    }

    /// Returns whether all changes of the file through the file system are durable, so that a flush
    /// of the disk makes all writes durable. Any context.
    pub(super) fn is_synced(&self) -> bool {
        self.synced.load(Relaxed) == self.changes.load(Relaxed)
    }

    /// Returns whether a flush of the disk is all that a flush of the device has to do now. Any
    /// context.
    pub(super) fn is_settled(&self) -> bool {
        // A file system that was shut down must be noticed.
        let age = time::uptime_ms().saturating_sub(self.checked.load(Relaxed));
        self.is_held()
            && self.is_synced()
            && age < Self::UPDATE.into()
            && !self.failed.load(Relaxed)
    }

    /// Makes all writes durable that are over. May sleep. The caller excludes other calls, and
    /// other users of `wb_err`.
    pub(super) fn sync(self: &Arc<Self>, wb_err: &ErrseqCursor) -> Result {
        let file = self.file.file();
        if !self.is_settled() {
            if let Err(error) = self.sync_file(|| file.fdatasync(wb_err)) {
                self.renew();
                return Err(error);
            }
        }
        if self.failed.xchg(false, Relaxed) {
            return Err(EIO);
        }
        file.writeback_error(wb_err)?;
        // ext4 with fast commits may not have flushed the disk.
        // ORDERING: See `release`.
        let is_leased = self.state.load(Acquire) & Self::UNLEASED == 0;
        if !self.unflushed.xchg(false, Relaxed) && !is_leased {
            return Ok(());
        }
        self.block_device()
            .flush()
            .inspect_err(|_| self.unflushed.store(true, Relaxed))
    }

    /// Makes the changes of the file durable. May sleep.
    pub(super) fn sync_changes(&self) -> Result {
        let file = self.file.file();
        for _ in 0..2 {
            // A writeback error is reported by the next flush.
            self.sync_file(|| file.fdatasync(&file.wb_err_cursor()))?;
            if self.is_synced() {
                break;
            }
        }
        Ok(())
    }

    /// Makes the changes of the file durable, though no request waits for that. An error is
    /// reported by the next flush: the file system may not report it again. May sleep.
    fn sync_unasked(&self) -> Result {
        self.sync_changes()
            .inspect_err(|_| self.failed.store(true, Relaxed))
    }

    /// Makes the changes of the file durable by `sync`, an `fdatasync()`.
    fn sync_file(&self, sync: impl FnOnce() -> Result) -> Result {
        self.syncs.enter_blocking();
        // The sync that began with that number is over.
        let durable = self.begun.load(Acquire);
        let changes = self.changes.load(Relaxed);
        let result = sync();
        self.syncs.leave();
        result?;
        raise(&self.synced, durable);
        raise(&self.begun, changes);
        self.checked.store(time::uptime_ms(), Relaxed);
        Ok(())
    }

    /// Updates the times of the file if requests have bypassed it with writes, and releases the
    /// leases if its file system refuses writes now. Returns false if the file system is frozen.
    /// May sleep.
    fn update_time(self: &Arc<Self>) -> bool {
        let file = self.file.file();
        if !self.written.load(Relaxed) {
            return true;
        }
        if !file.try_start_write() {
            return false;
        }
        self.written.store(false, Relaxed);
        match self.file.check_write() {
            Ok(()) => self.file.update_time(),
            Err(_) => self.renew(),
        }
        file.end_write();
        true
    }

    /// Asks for the leases, or for the places of `len` bytes from `pos`, which a request could have
    /// used. Any context.
    pub(super) fn poke(self: &Arc<Self>, pos: u64, len: u64) {
        if self.is_held() {
            let (first, count) = self.blocks(pos, len);
            let Some(block) = self.extents.unknown(first, count) else {
                // If not, the map has learned the blocks since the request was routed.
                if self.extents.has_unmapped(first, count) {
                    self.unmapped.store(time::uptime_ms().max(1), Relaxed);
                }
                return;
            };
            if time::uptime_ms() < self.next_look.load(Relaxed)
                || self.wanted.xchg(block.saturating_add(1), Relaxed) != 0
            {
                return;
            }
        } else if self.is_due() {
            self.asked.store(true, Relaxed);
        } else {
            return;
        }
        self.enqueue();
    }

    /// Sets the alignment of requests in the file, in bytes; `None` if they may not bypass it. The
    /// leases are taken anew if it changes. No request is in flight.
    pub(crate) fn set_alignment(self: &Arc<Self>, alignment: Option<u32>) {
        let alignment = alignment.unwrap_or(u32::MAX);
        let changed = self.alignment.xchg(alignment, Relaxed) != alignment;
        if changed && self.started.load(Relaxed) {
            self.renew();
        }
    }

    /// Releases the leases, and takes them anew: the caller has changed how the file is used. Any
    /// context.
    pub(crate) fn renew(self: &Arc<Self>) {
        self.set_reason(Self::BROKEN, true);
        self.enqueue();
    }

    fn enqueue(self: &Arc<Self>) {
        self.started.store(true, Relaxed);
        let _ = system_unbound().enqueue::<_, 0>(self.clone());
    }

    /// Returns whether the leases may be tried again.
    fn is_due(&self) -> bool {
        time::uptime_ms() >= self.retry.load(Relaxed)
    }

    /// Sets the time of the next try, later each time.
    fn set_back(&self) {
        let pause = self.pause.load(Relaxed);
        self.retry
            .store(time::uptime_ms().saturating_add(pause), Relaxed);
        self.pause
            .store(Self::LONGEST_PAUSE.min(pause.saturating_mul(2)), Relaxed);
    }

    /// Releases the leases.
    fn release(self: &Arc<Self>, leases: &mut MutexGuard<'_, Leases>) {
        self.set_reason(Self::BROKEN, true);
        // Soon, and before requests in flight are over: XFS exchanges the blocks of files without
        // waiting for direct I/O (XFS_IOC_SWAPEXT), but not if their times have changed.
        self.update_time();
        self.drain();
        self.unflushed.store(true, Relaxed);
        // Others may write to the file, so that a flush has to reach its file system.
        self.changes.fetch_add(1, Full);
        // ORDERING: A flush that finds the leases released finds `unflushed`, too.
        self.set_reason(Self::UNLEASED, true);
        **leases = None;
    }

    /// Takes the leases. Fails if the file has other writers, or cannot be synced.
    fn take(self: &Arc<Self>) -> Result<[Pin<KBox<Lease<Self>>>; 2]> {
        // A request is served in parts of whole logical blocks.
        if self.alignment.load(Relaxed) > 1 << self.file.block_bits() {
            return Err(EINVAL);
        }
        if self.file.has_other_writers() {
            return Err(EBUSY);
        }
        // A task that frees blocks would make all that follows be in vain.
        drop(self.changes_blocks.try_lock().ok_or(EAGAIN)?);
        let file = self.file.file();
        if !self.file.allows(file.is_writable()) {
            return Err(EOPNOTSUPP);
        }
        // A sync would take the report of an error from later openers of the file.
        file.skip_seen_errors()?;
        // Breakers do not wait for this one.
        self.sync_unasked()?;
        // The delegation comes last: it is refused while the inode is locked, as by a task that
        // looked for a lease of the layout before there was one, and is about to share blocks.
        let layout = Lease::take(file.clone(), Type::Layout, self.clone())?;
        let leases = [layout, self.take_delegation()?];
        if self.file.has_other_writers() {
            return Err(EBUSY);
        }
        // Another task may have changed the file before the delegation was there.
        self.changes.fetch_add(1, Full);
        self.sync_unasked()?;
        file.drop_page_cache();
        let _guard = self.changes_blocks.try_lock().ok_or(EAGAIN)?;
        self.extents.clear(task::cond_resched);
        self.next_learning.store(0, Relaxed);
        self.next_look.store(0, Relaxed);
        self.seen.store(self.changes.load(Relaxed), Relaxed);
        // Others may have made the file shorter.
        self.set_size(self.file.size());
        Ok(leases)
    }

    /// Takes the delegation. Requests that go through the file lock the inode now and then, not
    /// least the one that has asked for the leases; so tries again for a moment.
    fn take_delegation(self: &Arc<Self>) -> Result<Pin<KBox<Lease<Self>>>> {
        const TRIES: u64 = 50;
        for number in 1..TRIES {
            match Lease::take(self.file.file().clone(), Type::Delegation, self.clone()) {
                // Different pauses, lest they keep time with the requests.
                Err(EAGAIN) => fsleep(Delta::from_micros((500 + 97 * number % 1_900) as i64)),
                result => return result,
            }
            if self.stopped.load(Relaxed) || self.state.load(Relaxed) & Self::BROKEN != 0 {
                break;
            }
        }
        Err(EAGAIN)
    }

    /// Learns the places of blocks that requests have asked for, and of those behind them.
    fn learn(&self) {
        while let Some(first) = self.wanted.xchg(0, Relaxed).checked_sub(1) {
            if !self.learn_from(first) {
                let next = time::uptime_ms().saturating_add(Self::LOOK);
                self.next_look.store(next, Relaxed);
                // Requests ask again.
                self.wanted.store(0, Relaxed);
            }
        }
    }

    /// Learns the places of blocks from `first`. Returns false if it has to wait.
    ///
    /// Direct writes through the file wait meanwhile, and those to holes make their blocks unknown
    /// again. So while there are such writes, blocks that are not all written yet are learned only
    /// now and then, and so are those that were known before.
    fn learn_from(&self, first: u64) -> bool {
        let changes = self.changes.load(Relaxed);
        let has_writes = self.seen.xchg(changes, Relaxed) != changes;
        for ahead in 0..Self::AHEAD {
            let block = first.saturating_add(ahead * Extents::CHUNK);
            let must_repeat = match self.extents.knowledge(block) {
                Knowledge::All => continue,
                Knowledge::Part => has_writes,
                Knowledge::None => has_writes && !self.seems_written(block),
            };
            let begin = time::now_ns();
            if must_repeat && time::uptime_ms() < self.next_learning.load(Relaxed) {
                return ahead != 0;
            }
            if !self.learn_chunk(block) {
                break;
            }
            if must_repeat {
                let took = time::now_ns().saturating_sub(begin);
                let pause = took.saturating_mul(Self::LEARNING_PAUSE) / 1_000_000;
                let pause = pause.min(Self::LONGEST_LEARNING_PAUSE);
                self.next_learning
                    .store(time::uptime_ms().saturating_add(pause), Relaxed);
                break;
            }
            if self.wanted.load(Relaxed) != 0 {
                break;
            }
            task::cond_resched();
        }
        true
    }

    /// Returns whether some blocks around `block` all have places. May sleep.
    fn seems_written(&self, block: u64) -> bool {
        // The file system writes back the page cache before it returns a place.
        if !self.syncs.enter() {
            return false;
        }
        let written = self
            .extents
            .sample(block)
            .all(|block| self.file.place(block).is_some());
        self.syncs.leave();
        written
    }

    /// Learns the places of the blocks around `block`. Returns false if it must stop.
    fn learn_chunk(&self, block: u64) -> bool {
        // If blocks are being freed, a request will ask again.
        let Some(_guard) = self.changes_blocks.try_lock().filter(|_| self.is_held()) else {
            return false;
        };
        let _closed = self.file_writes.close();
        // The file system writes back the page cache before it returns a place.
        if !self.syncs.enter() {
            return false;
        }
        let learned = self.extents.learn(block, |block| self.file.place(block));
        self.syncs.leave();
        learned.is_ok()
    }

    /// Takes the leases, and uses the map from then on.
    fn acquire(self: &Arc<Self>, leases: &mut MutexGuard<'_, Leases>) {
        match self.take() {
            Ok(taken) => {
                **leases = Some(taken);
                self.taken.store(time::uptime_ms(), Relaxed);
                self.set_reason(Self::UNLEASED, false);
            }
            Err(error) => {
                let reason = match error {
                    EBUSY | EAGAIN => Status::Foreign,
                    _ => Status::Refused,
                };
                self.reason.store(reason as u32, Relaxed);
                if error == EBUSY {
                    // It costs little to look for other writers again.
                    self.pause.store(Self::FIRST_PAUSE, Relaxed);
                }
                self.set_back();
            }
        }
    }

    /// Releases the leases for good. May sleep.
    fn stop(self: &Arc<Self>) {
        // No request can start the leasing any more.
        if !self.started.load(Relaxed) {
            return;
        }
        self.stopped.store(true, Relaxed);
        self.release(&mut self.leases.lock());
        // Nothing queues the works any more, but for a run of the delayed one that began before
        // `stopped` was set.
        let leasing: &Self = self;
        flush_delayed(leasing);
        flush_delayed(leasing);
        flush::<_, 0>(leasing);
        flush::<_, 2>(leasing);
    }
}

impl Holder for Leasing {
    fn lease_broken(self: Arc<Self>, ty: Type) -> bool {
        let at_once = ty == Type::Delegation;
        self.set_reason(Self::BROKEN, true);
        // ORDERING: As in `file_part`: a request that has found the map usable is seen here.
        if at_once && !self.users.is_idle() {
            self.file.begin_dio();
            self.dio.fetch_add(1, Full);
            let _ = system_unbound().enqueue::<_, 2>(self.clone());
        }
        self.enqueue();
        at_once
    }
}

impl WorkItem for Leasing {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // Requests of this device may wait for the locks.
        let _scope = task::IoWorkerScope::enter();
        let mut leases = this.leases.lock();
        if this.stopped.load(Relaxed) {
            return;
        }
        let broken = this.state.load(Acquire) & Self::BROKEN != 0;
        if broken && leases.is_some() {
            this.release(&mut leases);
            let age = time::uptime_ms().saturating_sub(this.taken.load(Relaxed));
            if age > Self::LONGEST_PAUSE {
                this.pause.store(Self::FIRST_PAUSE, Relaxed);
            }
            this.reason.store(Status::Foreign as u32, Relaxed);
            this.set_back();
        }
        if broken {
            // A breaker that comes later breaks leases that are taken later.
            this.set_reason(Self::BROKEN, false);
        }
        if this.asked.xchg(false, Relaxed) && leases.is_none() && this.is_due() {
            this.acquire(&mut leases);
        }
        drop(leases);
        this.learn();
    }
}

impl WorkItem<2> for Leasing {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let begun = this.dio.xchg(0, Full);
        this.drain();
        for _ in 0..begun {
            this.file.end_dio();
        }
    }
}

impl WorkItem<1> for Leasing {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let _scope = task::IoWorkerScope::enter();
        if !this.update_time() && !this.stopped.load(Relaxed) {
            this.update_later();
        }
    }
}

/// Raises a number to `value`, if it is less.
fn raise(number: &Atomic<u64>, value: u64) {
    let mut old = number.load(Relaxed);
    while old < value {
        match number.cmpxchg(old, value, Full) {
            Ok(_) => break,
            Err(now) => old = now,
        }
    }
}

/// The suspended map of a file. It is used again when this is dropped.
#[must_use = "the map is used again when this is dropped"]
pub(super) struct Suspended<'a>(&'a Leasing);

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        // A write that goes through the file because the map is suspended may be to a block that
        // the map has.
        let _closed = self.0.file_writes.close();
        self.0.state.fetch_sub(Leasing::SUSPENDED, Full);
    }
}

/// The owner of the leasing of a target. Dropping it releases the leases, and may sleep.
pub(crate) struct LeasedFile(Arc<Leasing>);

impl LeasedFile {
    /// The size of the largest file that is leased, in bytes: 16 TiB, whose extent map takes 8 MiB
    /// before anything is known.
    pub(crate) const MAX_SIZE: u64 = 16 << 40;

    /// Makes the leasing of a file, which no request may bypass until an
    /// [alignment](Leasing::set_alignment) is set. May sleep. Fails with `ENOMEM`.
    pub(crate) fn new(file: BlockFile) -> Result<Self> {
        Leasing::new(file).map(Self)
    }
}

impl core::ops::Deref for LeasedFile {
    type Target = Arc<Leasing>;

    fn deref(&self) -> &Arc<Leasing> {
        &self.0
    }
}

impl Drop for LeasedFile {
    fn drop(&mut self) {
        self.0.stop();
    }
}
