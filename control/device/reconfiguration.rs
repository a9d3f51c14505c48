// SPDX-License-Identifier: GPL-2.0

//! The changes of a bound device, and its status.

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
    attachment,
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
use kernel::{
    prelude::*,
    sync::{
        barrier::{
            smp_mb,
            Write, //
        }, //
    }, //
};

impl LoopDevice {
    /// LOOP_GET_STATUS64: what the device is bound to.
    pub(crate) fn status(&self) -> Result<LoopInfo64> {
        let state = self.lock_killable()?;
        let binding = state.bound()?;
        let mut info = binding.settings.info(self.queue.index);
        let file = binding.backing.file.clone();
        // The file system may take its time.
        drop(state);
        let identity = file.identity()?;
        info.lo_device = identity.dev;
        info.lo_inode = identity.ino;
        info.lo_rdevice = identity.rdev;
        Ok(info)
    }

    /// LOOP_SET_STATUS64: other offset, limit, name and flags.
    pub(crate) fn set_status(&self, disk: &GenDisk<Self>, info: &LoopInfo64) -> Result {
        let mut state = self.lock_killable()?;
        let binding = state.bound_mut()?;
        let old = &binding.settings;
        let mut new = Settings::new(info, old.flags.updated(info.lo_flags))?;
        let moved = (old.offset, old.sizelimit) != (new.offset, new.sizelimit);
        let scans = !old.flags.contains(Flags::PARTSCAN) && new.flags.contains(Flags::PARTSCAN);
        let Backing { file, caps, .. } = &binding.backing;
        caps.update_dio(file, &mut new);
        sync_cache_on_mode_change(binding, &new);
        let capacity = moved.then(|| backing::capacity(file, &new));
        if let Some(capacity) = capacity {
            disk.write_back();
            disk.drop_cached();
            // Requests that the present size lets through are to keep to the new one, too.
            let length = geometry::bytes(capacity.min(disk.capacity()));
            self.queue.set_length(length);
        }
        apply_settings(disk, binding, None, new)?;
        if scans {
            disk.suppress_partition_scan(false);
        }
        if let Some(capacity) = capacity {
            // Who hears of it is to find the new place, and not what was read meanwhile from the old one.
            state.publish_snapshot();
            disk.drop_cached();
            self.update_capacity(disk, capacity);
        }
        drop(state);
        if scans {
            attachment::reread_partitions(&disk.lock_open());
        }
        Ok(())
    }

    /// LOOP_SET_CAPACITY: takes over the size that the file has now.
    pub(crate) fn set_capacity(&self, disk: &GenDisk<Self>) -> Result {
        let state = self.lock_killable()?;
        let binding = state.bound()?;
        let capacity = backing::capacity(&binding.backing.file, &binding.settings);
        if capacity > disk.capacity() {
            // The last page may end beyond the present end, and would be written back with zeroes there.
            disk.write_back();
        }
        self.update_capacity(disk, capacity);
        Ok(())
    }

    /// Takes over a size, in sectors of 512 bytes, and tells user space.
    fn update_capacity(&self, disk: &GenDisk<Self>, capacity: u64) {
        let old = disk.capacity();
        self.resize(disk, capacity);
        if capacity != old {
            // A reader that acts upon the event must not find pages that were read with the old end.
            // This may take as long as a read of the file. Events are not suppressed meanwhile,
            // because the events of other senders would be lost.
            disk.drop_cached();
        }
        // As `set_capacity_and_notify()` has it: a device that was or becomes empty is not resized.
        if capacity != old && capacity != 0 && old != 0 {
            disk.notify_resize();
        } else {
            disk.notify_change();
        }
    }

    /// Sets the size, in sectors of 512 bytes, without an event.
    pub(super) fn resize(&self, disk: &GenDisk<Self>, capacity: u64) {
        self.queue.set_length(geometry::bytes(capacity));
        // Pairs with the barrier of the tag set's SRCU lock: a request that the new size lets through is
        // compared with the new length.
        smp_mb(Write);
        disk.set_capacity(capacity);
    }

    /// LOOP_SET_DIRECT_IO: whether I/O goes past the page cache of the file. `EINVAL` where it
    /// cannot.
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
        caps.apply_direct(&mut limits, new.flags, disk.logical_block_size());
        apply_settings(disk, binding, Some(limits), new)
    }

    /// LOOP_SET_BLOCK_SIZE: another logical block size, in bytes; 0 is the default. `EINVAL` for
    /// one that no device can have.
    pub(crate) fn set_block_size(
        &self,
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        size: u32,
    ) -> Result {
        // Nobody must find other blocks under a file system.
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
        disk.write_back();
        disk.drop_cached();
        let mut limits = disk.update_limits();
        caps.apply(&mut limits, file, new.flags, size);
        apply_settings(disk, binding, Some(limits), new)?;
        // What was read in blocks of the old size meanwhile.
        disk.drop_cached();
        Ok(())
    }

    /// Asks the file again for the alignment of direct I/O, if it was refused: the disk below a file
    /// system may have been replaced by one with larger blocks, as pvmove does. If the file refuses
    /// what it says that it accepts, direct I/O is switched off.
    ///
    /// Called from a workqueue of the block layer, without locks.
    pub(crate) fn revalidate_dio(&self, disk: &GenDisk<Self>) {
        let refused = self.queue.take_refusals();
        let Some(file) = self.backing_file().filter(|_| refused != 0) else {
            return;
        };
        // The file system may take its time.
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
            caps.update_dio(file, &mut new);
        } else {
            new.flags.set(Flags::DIRECT_IO, false);
        }
        pr_notice!(
            "{}: the file refused direct I/O; {}\n",
            disk.name(),
            if new.flags.contains(Flags::DIRECT_IO) {
                "requests in smaller blocks go through the page cache"
            } else {
                "it is off now"
            }
        );
        sync_cache_on_mode_change(binding, &new);
        let mut limits = disk.update_limits();
        binding
            .backing
            .caps
            .apply_direct(&mut limits, new.flags, disk.logical_block_size());
        // The alignment is one that the file's own device has.
        let _ = apply_settings(disk, binding, Some(limits), new);
    }
}

/// Writes back and drops the page cache of the file when direct I/O begins or ends. Pages may come
/// again while requests go on, see [`freeze`].
fn sync_cache_on_mode_change(binding: &Binding, new: &Settings) {
    let file = &binding.backing.file;
    if backing::caching(binding.settings.flags) != backing::caching(new.flags) {
        // Errors are told to those who wrote it, by their own descriptors or by flushes of the device.
        let _ = file.sync();
        file.drop_page_cache();
    }
}

/// Freezes the queue for a change to `new`.
///
/// Direct writes to a block device do not invalidate pages that others have read beside them. When
/// direct I/O ends, such pages count from then on, so the page cache must be empty while the queue
/// is frozen. It is not emptied there: the owner of a page may wait for memory, and swapping out for
/// this queue. Gives up when others fill the cache again and again.
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

/// Brings limits and settings into force, between two requests; nothing has changed when the limits
/// are impossible (`EINVAL`).
fn apply_settings(
    disk: &GenDisk<LoopDevice>,
    binding: &mut Binding,
    limits: Option<LimitsUpdate<'_>>,
    new: Settings,
) -> Result {
    let mut frozen = freeze(disk, binding, &new);
    // A device that is bound has a target.
    let target = frozen.backend().ok_or(ENXIO)?;
    if let Some(mut limits) = limits {
        target.holes.restrict(&mut limits);
        limits.commit()?;
    }
    target.offset = new.offset;
    target.direct_block = binding
        .backing
        .caps
        .larger_direct_block(new.flags, disk.logical_block_size());
    target.caching = backing::caching(new.flags);
    binding.settings = new;
    Ok(())
}
