// SPDX-License-Identifier: GPL-2.0

//! What may change while a device is bound, and what it is set to.

#![forbid(unsafe_code)]

use super::{
    attachment,
    Binding,
    LoopDevice, //
};
use crate::{
    backing::{
        self,
        Backing, //
    },
    blk_mq::{
        GenDisk,
        LimitsUpdate,
        Mode, //
    },
    flags::Flags,
    geometry,
    kern::{
        bdev::BlockDevice,
        file::BackingFile,
        uapi::LoopInfo64, //
    },
    settings::Settings, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::ordering::Relaxed,
        barrier::{
            smp_mb,
            Write, //
        }, //
    }, //
};

impl LoopDevice {
    /// LOOP_GET_STATUS64: what the device is bound to.
    pub(crate) fn status(&self) -> Result<LoopInfo64> {
        let mut state = self.lock_killable()?;
        let binding = state.bound()?;
        let mut info = binding.settings.info(self.index);
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
        let binding = state.bound()?;
        let old = &binding.settings;
        let mut new = Settings::new(info, old.flags.updated(info.lo_flags))?;
        let moved = (old.offset, old.sizelimit) != (new.offset, new.sizelimit);
        let scans = !old.flags.contains(Flags::PARTSCAN) && new.flags.contains(Flags::PARTSCAN);
        let Backing { file, traits, .. } = &binding.backing;
        traits.settle_direct(file, disk.logical_block_size(), &mut new);
        settle_cache(binding, &new);
        let capacity = moved.then(|| backing::capacity(file, &new));
        if let Some(capacity) = capacity {
            disk.write_back();
            disk.drop_cached();
            // Requests that the present size lets through are to keep to the new one, too.
            let length = geometry::bytes(capacity.min(disk.capacity()));
            self.length.store(length, Relaxed);
        }
        adopt(disk, binding, None, new)?;
        if scans {
            disk.suppress_partition_scan(false);
        }
        if let Some(capacity) = capacity {
            // Who hears of it is to find the new place, and not what was read meanwhile from the old one.
            state.show();
            disk.drop_cached();
            self.adopt_capacity(disk, capacity);
        }
        drop(state);
        if scans {
            attachment::reread_partitions(&disk.lock_open());
        }
        Ok(())
    }

    /// LOOP_SET_CAPACITY: takes over the size that the file has now.
    pub(crate) fn set_capacity(&self, disk: &GenDisk<Self>) -> Result {
        let mut state = self.lock_killable()?;
        let binding = state.bound()?;
        let capacity = backing::capacity(&binding.backing.file, &binding.settings);
        if capacity > disk.capacity() {
            // The last page may end beyond the present end, and would be written back with zeroes there.
            disk.write_back();
        }
        self.adopt_capacity(disk, capacity);
        Ok(())
    }

    /// Takes over a size, in sectors of 512 bytes, and tells user space.
    fn adopt_capacity(&self, disk: &GenDisk<Self>, capacity: u64) {
        let changes = capacity != disk.capacity();
        if !self.resize(disk, capacity) {
            disk.notify_change();
        }
        if changes {
            // What was read meanwhile with the old end.
            disk.drop_cached();
        }
    }

    /// Sets the size, in sectors of 512 bytes; whether user space has been told.
    pub(super) fn resize(&self, disk: &GenDisk<Self>, capacity: u64) -> bool {
        self.length.store(geometry::bytes(capacity), Relaxed);
        // Pairs with the barrier of the tag set's SRCU lock: a request that the new size lets through is
        // compared with the new length.
        smp_mb(Write);
        disk.set_capacity_and_notify(capacity)
    }

    /// LOOP_SET_DIRECT_IO: whether I/O goes past the page cache of the file. `EINVAL` where it
    /// cannot.
    pub(crate) fn set_direct_io(&self, disk: &GenDisk<Self>, on: bool) -> Result {
        let mut state = self.lock_killable()?;
        let binding = state.bound()?;
        let mut new = binding.settings.clone();
        if on == new.flags.contains(Flags::DIRECT_IO) {
            return Ok(());
        }
        new.flags.set(Flags::DIRECT_IO, on);
        let Backing { file, traits, .. } = &binding.backing;
        if on && !traits.can_direct(file, disk.logical_block_size(), new.offset) {
            return Err(EINVAL);
        }
        settle_cache(binding, &new);
        let mut limits = disk.update_limits();
        limits.set_dma_alignment(traits.dma_alignment(new.flags));
        adopt(disk, binding, Some(limits), new)
    }

    /// LOOP_SET_BLOCK_SIZE: another logical block size, in bytes; 0 is the default. `EINVAL` for
    /// one that no device can have.
    ///
    /// Direct I/O ends where it does not go with that.
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
        let binding = state.bound()?;
        if size == disk.logical_block_size() {
            return Ok(());
        }
        let mut new = binding.settings.clone();
        let Backing { file, traits, .. } = &binding.backing;
        let size = match size {
            0 => traits.default_block_size(new.flags),
            size => size,
        };
        traits.settle_direct(file, size, &mut new);
        settle_cache(binding, &new);
        disk.write_back();
        disk.drop_cached();
        let mut limits = disk.update_limits();
        traits.apply(&mut limits, file, new.flags, size);
        adopt(disk, binding, Some(limits), new)?;
        // What was read in blocks of the old size meanwhile.
        disk.drop_cached();
        Ok(())
    }

    /// What requests have found out that the file cannot do becomes a limit of the device.
    ///
    /// Called from a worker of the block layer, without locks, after
    /// [`Request::disable_discard`](crate::blk_mq::Request::disable_discard) and the like.
    pub(crate) fn restrict_limits(disk: &GenDisk<Self>) {
        let mut limits = disk.update_limits();
        let mut frozen = disk.freeze();
        // The device may be bound to nothing, or to another file, by now.
        if let Some(target) = frozen.io() {
            target.holes.restrict(&mut limits);
            // Nothing contradicts a limit of 0.
            let _ = limits.commit();
        }
    }
}

/// What is left in the page cache of the file from the time of direct I/O, or without, is not to be found in
/// the other's. That of a block device may be old, where others have read it beside direct writes; those
/// that are under way just now are not waited for.
fn settle_cache(binding: &Binding, new: &Settings) {
    let file = &binding.backing.file;
    if backing::caching(binding.settings.flags) != backing::caching(new.flags) {
        // Errors are told to those who wrote it, by their own descriptors or by flushes of the device.
        let _ = file.sync();
        file.drop_cache();
    }
}

/// Brings limits and settings into force, between two requests; nothing has changed when the limits
/// are impossible (`EINVAL`).
fn adopt(
    disk: &GenDisk<LoopDevice>,
    binding: &mut Binding,
    limits: Option<LimitsUpdate<'_, LoopDevice>>,
    new: Settings,
) -> Result {
    let mut frozen = disk.freeze();
    // A device that is bound has a target.
    let target = frozen.io().ok_or(ENXIO)?;
    if let Some(mut limits) = limits {
        target.holes.restrict(&mut limits);
        limits.commit()?;
    }
    target.offset = new.offset;
    target.caching = backing::caching(new.flags);
    binding.settings = new;
    Ok(())
}
