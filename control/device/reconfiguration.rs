// SPDX-License-Identifier: GPL-2.0

//! The status of a bound device, and changes of its settings.

use super::{
    super::{
        backing::{
            self,
            Backing, //
        },
        flags::Flags,
        geometry::{
            self,
            SECTOR_SIZE, //
        },
        settings::Settings, //
    },
    reread_partitions,
    Binding,
    LoopDevice, //
};
use crate::{
    aio::Caching,
    blk_mq::{
        FrozenQueue,
        GenDisk,
        LimitsUpdate,
        Mode, //
    },
    kern::{
        bdev::BlockDevice,
        file::{
            BackingFile,
            Kind, //
        },
        uapi::LoopInfo64, //
    },
};
use kernel::prelude::*;

impl LoopDevice {
    /// Returns the settings of the device and the identity of its backing file: LOOP_GET_STATUS64.
    /// May sleep.
    pub(crate) fn status(&self) -> Result<LoopInfo64> {
        let state = self.lock_killable()?;
        let binding = state.bound()?;
        let mut info = binding.settings.info(self.queue.index);
        let file = binding.backing.file.clone();
        // Outside `state`, because the file system may block for any time.
        drop(state);
        let identity = file.identity()?;
        info.lo_device = identity.dev;
        info.lo_inode = identity.ino;
        info.lo_rdevice = identity.rdev;
        Ok(info)
    }

    /// Returns whether LOOP_SET_STATUS64 with `info` moves the device. Fails as that does. Does
    /// not sleep.
    fn is_moved_by(&self, info: &LoopInfo64) -> Result<bool> {
        let old = self.snapshot.lock().bound()?.settings.clone();
        Ok(old.changed_by(info)?.is_elsewhere_than(&old))
    }

    /// Changes the offset, the size limit, the name and flags: LOOP_SET_STATUS64. May sleep.
    ///
    /// If the device moves, writes that wait for space fail, as they would without waiting: later
    /// they would be made at another place of the file.
    pub(crate) fn set_status(&self, disk: &GenDisk<Self>, info: &LoopInfo64) -> Result {
        let moves = self.is_moved_by(info)?;
        let _failing = moves.then(|| self.queue.fail_without_space());
        let mut state = self.lock_killable()?;
        let binding = state.bound_mut()?;
        let old = &binding.settings;
        let mut new = old.changed_by(info)?;
        let moved = new.is_elsewhere_than(old);
        let scans = !old.flags.contains(Flags::PARTSCAN) && new.flags.contains(Flags::PARTSCAN);
        let Backing { file, caps, .. } = &binding.backing;
        caps.update_dio(disk.name(), file, &mut new);
        sync_cache_on_mode_change(binding, &new);
        let capacity = moved.then(|| backing::capacity(file, &new));
        if let Some(capacity) = capacity {
            disk.write_back()?;
            disk.drop_cached();
            // The block layer has checked waiting requests against the old size. They must not
            // exceed the new one either.
            let length = geometry::bytes(capacity.min(disk.capacity()));
            self.queue.set_length(length);
        }
        let Backing { file, caps, .. } = &binding.backing;
        let mut limits = disk.update_limits();
        caps.apply_direct(&mut limits, file, &new, disk.logical_block_size());
        // Cannot fail: direct I/O can only go off here, and the offset contradicts no limit.
        apply_settings(disk, binding, limits, new)?;
        if scans {
            disk.suppress_partition_scan(false);
        }
        if let Some(capacity) = capacity {
            // A task that acts upon the event must find the new offset, and no pages that were read
            // at the old one since the cache was dropped.
            state.publish_snapshot();
            disk.drop_cached();
            self.update_capacity(disk, capacity);
        }
        drop(state);
        if scans {
            reread_partitions(&disk.lock_open());
        }
        Ok(())
    }

    /// Updates the size of the device to that of the file: LOOP_SET_CAPACITY. May sleep.
    pub(crate) fn set_capacity(&self, disk: &GenDisk<Self>) -> Result {
        let (file, settings) = {
            let snapshot = self.snapshot.lock();
            let bound = snapshot.bound()?;
            (bound.file.clone(), bound.settings.clone())
        };
        if backing::capacity(&file, &settings) > disk.capacity() {
            // Before `state` is locked, which openers wait for: a write may wait for space in the
            // backing file, until another opener detaches the device. Under the lock, only pages
            // are written back that have become dirty since.
            disk.write_back()?;
        }
        // Drop the last file reference outside `state`, see `change_fd`.
        drop(file);
        let state = self.lock_killable()?;
        let binding = state.bound()?;
        let Backing { file, leasing, .. } = &binding.backing;
        let capacity = backing::capacity(file, &binding.settings);
        if let (Some(leasing), Ok(size)) = (leasing, file.size()) {
            leasing.set_size(size);
        }
        if capacity > disk.capacity() {
            // The last page of the cache may extend beyond the old end, with zeroes there. With the
            // new size, its writeback would overwrite data of the file with them.
            disk.write_back()?;
        }
        self.update_capacity(disk, capacity);
        Ok(())
    }

    /// Sets the size, in sectors of 512 bytes, and sends an event: `loop_set_size()`. May sleep.
    fn update_capacity(&self, disk: &GenDisk<Self>, capacity: u64) {
        let old = disk.capacity();
        self.set_size(disk, capacity);
        if capacity != old {
            // A reader that acts upon the event must not find pages that were read with the old
            // end. Dropping them may block for as long as a read of the file. Events are not
            // suppressed for that time, because the events of other senders would be lost.
            disk.drop_cached();
        }
        // As in `set_capacity_and_notify()`, a change from or to 0 is not a resize.
        if capacity != old && capacity != 0 && old != 0 {
            disk.notify_resize();
        } else {
            disk.notify_change();
        }
    }

    /// Switches direct I/O on or off: LOOP_SET_DIRECT_IO. Fails with `EINVAL` if the file or the
    /// offset of the device does not allow direct I/O. May sleep.
    pub(crate) fn set_direct_io(&self, disk: &GenDisk<Self>, on: bool) -> Result {
        let mut state = self.lock_killable()?;
        let binding = state.bound_mut()?;
        let mut new = binding.settings.clone();
        if on == new.flags.contains(Flags::DIRECT_IO) {
            return Ok(());
        }
        new.flags.set(Flags::DIRECT_IO, on);
        let Backing { file, caps, .. } = &binding.backing;
        if on && !caps.can_direct(file, new.offset) {
            return Err(EINVAL);
        }
        sync_cache_on_mode_change(binding, &new);
        let mut limits = disk.update_limits();
        caps.apply_direct(&mut limits, file, &new, disk.logical_block_size());
        apply_settings(disk, binding, limits, new)
    }

    /// Sets the logical block size, in bytes; 0 for the default: LOOP_SET_BLOCK_SIZE. Fails with
    /// `EINVAL` for a size that the block layer does not support. May sleep.
    pub(crate) fn set_block_size(
        &self,
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        size: u32,
    ) -> Result {
        // The block size must not change under an exclusive owner, such as a file system.
        drop(disk.claim_for(bdev, mode)?);
        if size != disk.logical_block_size() && self.backing_file().is_some() {
            // Before the claim and `state`, see `set_capacity`.
            disk.write_back()?;
        }
        let _claim = disk.claim_for(bdev, mode)?;
        let mut state = self.lock_killable()?;
        let binding = state.bound_mut()?;
        if size == disk.logical_block_size() {
            return Ok(());
        }
        let new = binding.settings.clone();
        let Backing { file, caps, .. } = &binding.backing;
        let size = match size {
            0 => SECTOR_SIZE,
            size => size,
        };
        disk.write_back()?;
        disk.drop_cached();
        let mut limits = disk.update_limits();
        caps.apply(&mut limits, file, &new, size);
        apply_settings(disk, binding, limits, new)?;
        // Drop pages that were read in blocks of the old size since.
        disk.drop_cached();
        Ok(())
    }

    /// Adapts the limits of the device to what requests have found out about the file.
    ///
    /// Called from a workqueue of the block layer, without locks. May sleep.
    pub(crate) fn revalidate(&self, disk: &GenDisk<Self>) {
        self.revalidate_dio(disk);
        let mut limits = disk.update_limits();
        let mut frozen = disk.freeze();
        // The device may be unbound, or bound to another file, since the request.
        if let Some(target) = frozen.backend() {
            target.holes.restrict(&mut limits);
            if limits.commit().is_err() {
                // Cannot happen, because a limit of 0 contradicts no other limit.
                pr_err!("{}: cannot disable operations\n", disk.name());
            }
        }
    }

    /// Asks the file again for the alignment of direct I/O if it has refused requests, because the
    /// lower device of its file system may have been replaced by one with larger blocks (pvmove).
    /// Switches direct I/O off if the file refuses an alignment that it reports as sufficient. May
    /// sleep.
    fn revalidate_dio(&self, disk: &GenDisk<Self>) {
        let refused = self.queue.take_refusals();
        let Some(file) = self.backing_file().filter(|_| refused != 0) else {
            return;
        };
        // Outside `state`, because the file system may block for any time.
        let direct = backing::direct_alignment(&file);
        let mut state = self.lock();
        let Ok(binding) = state.bound_mut() else {
            return;
        };
        let mut new = binding.settings.clone();
        let caching = backing::caching(new.flags);
        if !core::ptr::eq(&*file, &*binding.backing.file) || caching == Caching::Buffered {
            return;
        }
        let works = binding.backing.caps.set_direct(direct, refused.into());
        let Backing { file, caps, .. } = &binding.backing;
        if works {
            caps.update_dio(disk.name(), file, &mut new);
        } else {
            new.flags.set(Flags::DIRECT_IO, false);
        }
        sync_cache_on_mode_change(binding, &new);
        let mut limits = disk.update_limits();
        let Backing { file, caps, .. } = &binding.backing;
        caps.apply_direct(&mut limits, file, &new, disk.logical_block_size());
        let direct = new.flags.contains(Flags::DIRECT_IO);
        // Fails if the alignment that the file reports makes no valid limits. Then limits and
        // settings stay.
        let applied = apply_settings(disk, binding, limits, new);
        pr_notice!(
            "{}: the backing file refused direct I/O; {}\n",
            disk.name(),
            match (applied, direct) {
                (Err(_), _) => "it reports an alignment that is not supported",
                (Ok(()), true) => "requests in smaller blocks use the page cache",
                (Ok(()), false) => "direct I/O is off now",
            }
        );
    }
}

/// Writes back and drops the page cache of the file if `new` switches direct I/O on or off.
/// Requests in flight may fill it again, see [`freeze`]. May sleep.
fn sync_cache_on_mode_change(binding: &Binding, new: &Settings) {
    let file = &binding.backing.file;
    if backing::caching(binding.settings.flags) != backing::caching(new.flags) {
        // Errors are reported to the writers by their own file descriptors, and by flushes of the
        // device.
        let _ = file.fsync();
        file.drop_page_cache();
    }
}

/// Freezes the queue for a change to `new`. May sleep.
///
/// Direct writes to a block device do not invalidate pages that other tasks read at the same time.
/// When direct I/O ends, requests would be served from these stale pages, so the page cache must be
/// empty while the queue is frozen. It is dropped before that, because its pages may be locked by a
/// task that waits for memory, and thus for swap-out to this device: deadlock. Gives up after some
/// tries, if other tasks fill the cache each time.
fn freeze<'a>(
    disk: &'a GenDisk<LoopDevice>,
    binding: &Binding,
    new: &Settings,
) -> FrozenQueue<'a, LoopDevice> {
    const TRIES: u32 = 8;
    let file = &binding.backing.file;
    let direct_ends = backing::caching(binding.settings.flags) == Caching::Direct
        && backing::caching(new.flags) == Caching::Buffered
        && matches!(file.kind(), Kind::Block(_));
    for _ in 0..TRIES {
        let frozen = disk.freeze();
        if !direct_ends || !file.is_cached() {
            return frozen;
        }
        drop(frozen);
        file.drop_page_cache();
    }
    disk.freeze()
}

/// Applies limits and settings while no request is in flight. Fails with `EINVAL` if the limits
/// contradict each other; then limits and settings stay. May sleep.
fn apply_settings(
    disk: &GenDisk<LoopDevice>,
    binding: &mut Binding,
    mut limits: LimitsUpdate<'_>,
    new: Settings,
) -> Result {
    let mut frozen = freeze(disk, binding, &new);
    // Cannot fail, because a bound device has a target.
    let target = frozen.backend().ok_or(ENXIO)?;
    target.holes.restrict(&mut limits);
    limits.commit()?;
    target.offset = new.offset;
    target.direct_block = binding
        .backing
        .caps
        .larger_direct_block(new.flags, disk.logical_block_size());
    let caching = backing::caching(new.flags);
    if let Some(leasing) = &binding.backing.leasing {
        // With the page cache, the file may have newer data than the disk.
        leasing.set_alignment(backing::bypass_alignment(&new, disk.logical_block_size()));
    }
    target.caching = caching;
    binding.settings = new;
    Ok(())
}
