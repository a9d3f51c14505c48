// SPDX-License-Identifier: GPL-2.0

//! What may change while a device is bound, and what it is set to.

#![forbid(unsafe_code)]

use super::{
    attachment,
    Binding,
    LoopDevice, //
};
use crate::{
    aio::Caching,
    backing::{
        self,
        Backing, //
    },
    blk_mq::{
        FrozenQueue,
        GenDisk,
        LimitsUpdate,
        Mode, //
    },
    flags::Flags,
    geometry::{
        self,
        SECTOR_SIZE, //
    },
    kern::{
        bdev::BlockDevice,
        file::{
            BackingFile,
            Kind, //
        },
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
        traits.settle_direct(file, &mut new);
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
        let old = disk.capacity();
        self.resize(disk, capacity);
        if capacity != old {
            // A reader that acts upon the event must not find pages that were read with the old
            // end. That may take as long as a read of the file. Events are not suppressed for as
            // long, as those of other senders would be lost.
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
        self.length.store(geometry::bytes(capacity), Relaxed);
        // Pairs with the barrier of the tag set's SRCU lock: a request that the new size lets through is
        // compared with the new length.
        smp_mb(Write);
        disk.set_capacity(capacity);
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
        if on && !traits.can_direct(file, new.offset) {
            return Err(EINVAL);
        }
        settle_cache(binding, &new);
        let mut limits = disk.update_limits();
        traits.apply_direct(&mut limits, new.flags, disk.logical_block_size());
        adopt(disk, binding, Some(limits), new)
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
        let binding = state.bound()?;
        if size == disk.logical_block_size() {
            return Ok(());
        }
        let new = binding.settings.clone();
        let Backing { file, traits, .. } = &binding.backing;
        let size = match size {
            0 => SECTOR_SIZE,
            size => size,
        };
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
    pub(crate) fn revise_limits(disk: &GenDisk<Self>) {
        disk.device().revise_direct(disk);
        let mut limits = disk.update_limits();
        let mut frozen = disk.freeze();
        // The device may be bound to nothing, or to another file, by now.
        if let Some(target) = frozen.io() {
            target.holes.restrict(&mut limits);
            // Nothing contradicts a limit of 0.
            let _ = limits.commit();
        }
    }

    /// Takes note that the file has refused direct I/O of a request whose position and length are
    /// multiples of `alignment` bytes, and that the page cache has served it. Any context.
    pub(crate) fn refuse_direct(&self, alignment: u64) {
        let alignment = u32::try_from(alignment).unwrap_or(u32::MAX);
        if alignment > self.refused.load(Relaxed) {
            self.refused.store(alignment, Relaxed);
        }
    }

    /// Forgets what another file has refused. No request is served.
    pub(super) fn forget_refusals(&self) {
        self.refused.store(0, Relaxed);
    }

    /// Asks the file again what direct I/O must keep to, if it was refused: the disk below a file
    /// system may have been replaced by one with larger blocks, as pvmove does. Direct I/O ends
    /// where the file refuses what it says that it accepts.
    fn revise_direct(&self, disk: &GenDisk<Self>) {
        let refused = self.refused.xchg(0, Relaxed);
        let Some(file) = self.backing_file().filter(|_| refused != 0) else {
            return;
        };
        // The file system may take its time.
        let direct = backing::direct_alignment(&file);
        let mut state = self.lock();
        let Ok(binding) = state.bound() else { return };
        let mut new = binding.settings.clone();
        let caching = backing::caching(new.flags);
        if !core::ptr::eq(&*file, &*binding.backing.file) || caching == Caching::Buffered {
            return;
        }
        let works = binding.backing.traits.set_direct(direct, refused.into());
        let Backing { file, traits, .. } = &binding.backing;
        if works {
            traits.settle_direct(file, &mut new);
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
        settle_cache(binding, &new);
        let mut limits = disk.update_limits();
        binding
            .backing
            .traits
            .apply_direct(&mut limits, new.flags, disk.logical_block_size());
        // The alignment is one that the file's own device has.
        let _ = adopt(disk, binding, Some(limits), new);
    }
}

/// Writes back and drops what is in the page cache of the file when direct I/O begins or ends.
/// Pages may come again while requests go on, see [`freeze`].
fn settle_cache(binding: &Binding, new: &Settings) {
    let file = &binding.backing.file;
    if backing::caching(binding.settings.flags) != backing::caching(new.flags) {
        // Errors are told to those who wrote it, by their own descriptors or by flushes of the device.
        let _ = file.sync();
        file.drop_cache();
    }
}

/// Freezes the queue for a change to `new`.
///
/// Direct writes to a block device do not invalidate pages that others have read beside them. When
/// direct I/O ends, such pages count from then on, so the page cache must be empty while the queue
/// is frozen. It is not emptied there: the owner of a page may wait for memory, and swapping out
/// for this queue. Gives up when others fill the cache again and again.
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
        file.drop_cache();
    }
    disk.freeze()
}

/// Brings limits and settings into force, between two requests; nothing has changed when the limits
/// are impossible (`EINVAL`).
fn adopt(
    disk: &GenDisk<LoopDevice>,
    binding: &mut Binding,
    limits: Option<LimitsUpdate<'_, LoopDevice>>,
    new: Settings,
) -> Result {
    let mut frozen = freeze(disk, binding, &new);
    // A device that is bound has a target.
    let target = frozen.io().ok_or(ENXIO)?;
    if let Some(mut limits) = limits {
        target.holes.restrict(&mut limits);
        limits.commit()?;
    }
    target.offset = new.offset;
    target.direct_block = binding
        .backing
        .traits
        .larger_direct_block(new.flags, disk.logical_block_size());
    target.caching = backing::caching(new.flags);
    binding.settings = new;
    Ok(())
}
