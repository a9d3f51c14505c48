// SPDX-License-Identifier: GPL-2.0

//! The backing file of a device: attaches it, exchanges it, detaches it.

use super::{
    super::{
        backing::{
            self,
            Backing,
            Opened,
            Prepared, //
        },
        flags::Flags,
        geometry::SECTOR_SIZE,
        settings::Settings,
        sysfs, //
    },
    reread_partitions,
    Binding,
    LoopDevice, //
};
use crate::{
    blk_mq::{
        sysfs::Group,
        GenDisk,
        Mode,
        OpenMutex, //
    },
    kern::{
        bdev::BlockDevice,
        file::BackingFile,
        module::ModuleRef,
        uapi::LoopConfig, //
    },
};
use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

impl LoopDevice {
    /// Prepares `file` for LOOP_CONFIGURE. May sleep; the caller holds no lock.
    fn prepare(
        &self,
        name: &CStr,
        file: ARef<File>,
        mode: Mode,
        config: &LoopConfig,
    ) -> Result<Prepared> {
        self.validate(&file)?;
        let mut settings = Settings::from_configure(&config.info)?;
        let block_size = match config.block_size {
            0 => SECTOR_SIZE,
            size => size,
        };
        let opened = Opened::new(file)?;
        let Opened { file, caps, .. } = &opened;
        if !mode.is_write() || !file.accepts_writes() {
            settings.flags.set(Flags::READ_ONLY, true);
        }
        if self.prefers_direct && caps.can_direct(file, settings.offset) {
            settings.flags.set(Flags::DIRECT_IO, true);
        }
        opened.prepare(name, settings, block_size)
    }

    /// Binds the device to a file: LOOP_CONFIGURE. May sleep.
    ///
    /// A failure leaves the device as it was. The file system of the file may block for any time,
    /// so it is called before the claim, which other callers wait for uninterruptibly, and before
    /// `state`, which openers wait for.
    pub(crate) fn configure(
        &self,
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        config: &LoopConfig,
    ) -> Result {
        let file = backing::candidate(config.fd)?;
        if !self.is_unbound() {
            return Err(EBUSY);
        }
        // Fails with `EBUSY` for a device with an exclusive owner before it syncs the file.
        drop(disk.claim_for(bdev, mode)?);
        let prepared = self.prepare(disk.name(), file, mode, config);
        // Another LOOP_CONFIGURE may have bound the device, and holds its claim until it has
        // scanned for partitions. Fail at once instead of waiting for that.
        if !self.is_unbound() {
            return Err(EBUSY);
        }
        // The device must not change under an exclusive owner, such as a file system.
        let _claim = disk.claim_for(bdev, mode)?;
        let mut state = self.lock_killable()?;
        let unbound = state.unbound()?;
        let Prepared {
            backing,
            mut settings,
            target,
            block_size,
            capacity,
        } = prepared?;
        self.queue.make_workers(disk.name())?;
        let module = ModuleRef::get()?;
        let Backing { file, caps, .. } = &backing;
        let mut limits = disk.update_limits();
        caps.apply(&mut limits, file, &settings, block_size);
        // No request has a target yet, so the queue need not be frozen.
        limits.commit()?;

        // From here on nothing fails.
        let scans = self.always_scans || settings.flags.contains(Flags::PARTSCAN);
        settings.flags.set(Flags::PARTSCAN, scans);
        self.queue.tunables.reset();
        self.queue.reset_stats();
        self.queue.take_refusals();
        let uevents = disk.suppress_uevents();
        disk.force_media_change();
        disk.set_ro(settings.flags.contains(Flags::READ_ONLY));
        if disk.publish(target).is_err() {
            // Cannot happen, because `detach` removes the target before the device is unbound.
            pr_err!("{}: an unbound device has a target\n", disk.name());
        }
        self.set_size(disk, capacity);
        unbound.bind(Binding {
            backing,
            settings,
            _module: module,
        });
        if scans {
            disk.suppress_partition_scan(false);
        }
        state.publish_snapshot();
        if let Ok(binding) = state.bound() {
            trace_attached(disk, binding);
        }
        self.create_attributes(disk);
        drop(uevents);
        drop(state);
        sysfs::notify_state(disk);
        // Needs no lock: the caller has the device open, so the device stays attached.
        scan_and_notify(disk, scans);
        Ok(())
    }

    /// Binds a read-only device to another file of the same size: LOOP_CHANGE_FD. May sleep.
    ///
    /// Fails with `EINVAL` for a device that is not read-only, and for a file of another size. A
    /// failure leaves the device as it was.
    pub(crate) fn change_fd(&self, disk: &GenDisk<Self>, fd: u32) -> Result {
        let file = backing::candidate(fd)?;
        if self.backing_file().is_none() {
            return Err(ENXIO);
        }
        let opened = Opened::new(file)?;
        let mut state = self.lock_killable()?;
        let binding = state.bound_mut()?;
        if !binding.settings.flags.contains(Flags::READ_ONLY) {
            return Err(EINVAL);
        }
        self.validate(&opened.file)?;
        let size = |file: &File| backing::capacity(file, &binding.settings);
        if size(&opened.file) != size(&binding.backing.file) {
            return Err(EINVAL);
        }
        let settings = binding.settings.clone();
        let Prepared {
            backing,
            settings,
            target,
            block_size,
            ..
        } = opened.prepare(disk.name(), settings, disk.logical_block_size())?;
        let Backing { file, caps, .. } = &backing;
        // Taken after the last call to a file system of a backing file, and held until the snapshot
        // has the new file: see `validate`.
        let validation = self.lock_validation(file)?;
        self.validate(file)?;
        // Notifies a file system on the device before requests are served from the new file.
        let uevents = disk.suppress_uevents();
        disk.force_media_change();
        drop(uevents);
        let mut limits = disk.update_limits();
        caps.apply(&mut limits, file, &settings, block_size);
        let mut frozen = disk.freeze();
        // Cannot fail: the limits of a file do not contradict each other, and the block size does
        // not change.
        limits.commit()?;
        let old_target = frozen.replace(target);
        self.queue.take_refusals();
        drop(frozen);
        // Drop pages that were read from the old file since the media change.
        disk.drop_cached();
        let scans = settings.flags.contains(Flags::PARTSCAN);
        binding.settings = settings;
        let old_backing = core::mem::replace(&mut binding.backing, backing);
        trace_attached(disk, binding);
        // Drop the last file reference outside `state`: `fput()` may take `open_mutex` of a loop
        // device, which nests outside it.
        drop(state);
        drop(validation);
        drop(old_target);
        drop(old_backing);
        scan_and_notify(disk, scans);
        Ok(())
    }

    /// Adds the directory of attributes to sysfs. May sleep. Caller holds `state`, so that an
    /// opener, which waits for `state`, finds the directory.
    fn create_attributes(&self, disk: &GenDisk<Self>) {
        match Group::create(disk, sysfs::BINDING_GROUP) {
            Ok(group) => *self.attributes.lock() = Some(group),
            // The device works without them.
            Err(error) => pr_warn!(
                "{}: no attributes in sysfs (rc={})\n",
                disk.name(),
                error.to_errno()
            ),
        }
    }

    /// Makes the last close detach the device: LOOP_CLR_FD.
    ///
    /// Writes do not wait for space any more, because the last close would wait for them. They are
    /// released before `state` is locked, which a task may hold that waits for them.
    pub(crate) fn clr_fd(&self, disk: &GenDisk<Self>) -> Result {
        let _failing = self.queue.fail_without_space();
        let mut state = self.lock_killable()?;
        let flags = &mut state.bound_mut()?.settings.flags;
        flags.set(Flags::AUTOCLEAR, true);
        self.queue.set_waits_for_space(false);
        // If the caller is the only opener, keep new ones out.
        if disk.openers() == 1 {
            state.run_down();
            drop(state);
            sysfs::notify_state(disk);
        }
        Ok(())
    }

    /// Handles a close of the device. The last one detaches a device that has `AUTOCLEAR`, or is in
    /// `Rundown` already. May sleep.
    pub(crate) fn release(&self, disk: &OpenMutex<'_, Self>) {
        if disk.openers() > 0 {
            return;
        }
        let mut state = self.lock();
        let autoclear = state
            .bound()
            .is_ok_and(|binding| binding.settings.flags.contains(Flags::AUTOCLEAR));
        if autoclear {
            state.run_down();
        }
        let rundown = state.is_rundown();
        drop(state);
        if rundown {
            self.detach(disk);
        }
    }

    /// Turns `Rundown` into `Unbound`. The device has no openers, and cannot be opened. May sleep.
    fn detach(&self, disk: &OpenMutex<'_, Self>) {
        // Before the disk can be deleted.
        self.queue.flush_space();
        let mut limits = disk.update_limits();
        limits.set_block_size(SECTOR_SIZE);
        limits.set_atomic_writes(None);
        limits.set_write_streams(0, 0);
        // From here on requests find no target, and none is in flight.
        let target = disk.unpublish();
        if limits.commit().is_err() {
            // Cannot happen, because the default limits do not contradict each other.
            pr_err!("{}: cannot set the default limits\n", disk.name());
        }
        disk.invalidate();
        let attributes = self.attributes.lock().take();
        drop(attributes);
        // By this event (DISK_MEDIA_CHANGE) udev learns that the device is free. An opener that
        // acts upon it waits for `open_mutex`, and thus until the device is unbound.
        disk.force_media_change();
        // Also removes partitions that user space has added (BLKPG).
        reread_partitions(disk);
        disk.suppress_partition_scan(!self.always_scans);
        let binding = self.lock().unbind();
        disk.trace_detached();
        sysfs::notify_state(disk);
        // Outside `state`, see `change_fd`.
        drop(target);
        drop(binding);
    }
}

fn trace_attached(disk: &GenDisk<LoopDevice>, binding: &Binding) {
    let Settings {
        offset,
        sizelimit,
        flags,
        ..
    } = binding.settings;
    disk.trace_attached(&binding.backing.file, offset, sizelimit, flags.as_raw());
}

/// Scans for partitions if `scans`, and sends a `KOBJ_CHANGE` event of the disk, whose content has
/// changed. May sleep; the caller holds no lock.
///
/// The event of the disk comes before those of its partitions, because udev gives them properties
/// that it finds on the disk. It comes before the caller can close the device. An opener that acts
/// upon it finds the partitions, because opening waits for `open_mutex`.
///
/// If the scan finds a partition table, the block layer sends the event. Uevents are not suppressed
/// to send it before the scan instead, because the events of all other senders would be lost while
/// the scan reads the device. A table without partitions cannot be distinguished from a missing
/// table, so after such a table the event is sent twice.
fn scan_and_notify(disk: &GenDisk<LoopDevice>, scans: bool) {
    let disk = disk.lock_open();
    let notified = scans && reread_partitions(&disk) && disk.has_partitions();
    if !notified {
        disk.notify_change();
    }
}
