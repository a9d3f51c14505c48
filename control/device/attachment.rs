// SPDX-License-Identifier: GPL-2.0

//! Attaching a device to a file, changing the file, and detaching the device.

use super::{
    super::{
        backing::{
            self,
            Backing,
            BackingCaps, //
        },
        flags::Flags,
        geometry::SECTOR_SIZE,
        settings::Settings,
        sysfs, //
    },
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
    datapath::target::Target,
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

/// A file, and all that a device needs to be bound to it.
struct Prepared {
    backing: Backing,
    settings: Settings,
    target: Target,
    block_size: u32,
    /// The size of the device, in sectors of 512 bytes.
    capacity: u64,
}

impl Prepared {
    /// Asks the file system of `file`, and writes back the page cache of the file. May sleep.
    fn new(device: &LoopDevice, file: ARef<File>, mode: Mode, config: &LoopConfig) -> Result<Self> {
        device.validate(&file)?;
        let mut settings = Settings::from_configure(&config.info)?;
        let caps = BackingCaps::of(&file);
        if !mode.is_write() || !file.accepts_writes() {
            settings.flags.set(Flags::READ_ONLY, true);
        }
        if file.is_direct() {
            settings.flags.set(Flags::DIRECT_IO, true);
        }
        let block_size = match config.block_size {
            0 => SECTOR_SIZE,
            size => size,
        };
        caps.update_dio(&file, &mut settings);
        // Made before the file is synced, so that flushes of the device report errors of that sync.
        let target = caps.target(file.clone(), &settings, block_size);
        sync_cache(&file, &settings);
        let capacity = backing::capacity(&file, &settings);
        Ok(Self {
            backing: Backing::new(file, caps)?,
            settings,
            target,
            block_size,
            capacity,
        })
    }
}

impl LoopDevice {
    /// LOOP_CONFIGURE: binds the device to a file.
    ///
    /// Whatever fails, fails before anything of the device has changed. The file system of the file
    /// may block for any time, so it is called before the claim, which other callers wait for
    /// uninterruptibly, and before `state`, which openers wait for.
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
        // `EBUSY` for a device that has an exclusive owner comes before the file is touched.
        drop(disk.claim_for(bdev, mode)?);
        let prepared = Prepared::new(self, file, mode, config);
        // Another LOOP_CONFIGURE that came first may hold its claim while it scans for partitions.
        if !self.is_unbound() {
            return Err(EBUSY);
        }
        // An exclusive owner must not find another device under its feet.
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
        self.queue.make_workqueues(disk.name())?;
        let Backing { file, caps, .. } = &backing;
        let mut limits = disk.update_limits();
        caps.apply(&mut limits, file, settings.flags, block_size);
        // No request has a target yet, so the queue need not be frozen.
        limits.commit()?;

        // From here on nothing fails.
        let scans = self.always_scans || settings.flags.contains(Flags::PARTSCAN);
        settings.flags.set(Flags::PARTSCAN, scans);
        self.queue.tunables.reset();
        self.queue.take_refusals();
        let uevents = disk.suppress_uevents();
        disk.force_media_change();
        disk.set_read_only(settings.flags.contains(Flags::READ_ONLY));
        if disk.publish(target).is_err() {
            // Only a device that is not unbound has a target.
            pr_err!("{}: an unbound device has a target\n", disk.name());
        }
        self.resize(disk, capacity);
        unbound.bind(Binding {
            backing,
            settings,
            _module: ModuleRef::get(),
        });
        if scans {
            disk.suppress_partition_scan(false);
        }
        state.publish_snapshot();
        self.create_attributes(disk);
        drop(uevents);
        drop(state);
        // The caller has the device open, so it is not detached meanwhile.
        scan_and_notify(disk, scans);
        Ok(())
    }

    /// LOOP_CHANGE_FD: binds a read-only device to another file of the same size.
    ///
    /// Whatever fails, fails before anything of the device has changed.
    pub(crate) fn change_fd(&self, disk: &GenDisk<Self>, fd: u32) -> Result {
        let file = backing::candidate(fd)?;
        if self.backing_file().is_none() {
            return Err(ENXIO);
        }
        let caps = BackingCaps::of(&file);
        let mut state = self.lock_killable()?;
        let binding = state.bound_mut()?;
        if !binding.settings.flags.contains(Flags::READ_ONLY) {
            return Err(EINVAL);
        }
        self.validate(&file)?;
        let size = |file: &File| backing::capacity(file, &binding.settings);
        if size(&file) != size(&binding.backing.file) {
            return Err(EINVAL);
        }
        let mut settings = binding.settings.clone();
        if file.is_direct() {
            settings.flags.set(Flags::DIRECT_IO, true);
        }
        let block_size = disk.logical_block_size();
        caps.update_dio(&file, &mut settings);
        let backing = Backing::new(file, caps)?;
        let Backing { file, caps, .. } = &backing;
        let target = caps.target(file.clone(), &settings, block_size);
        sync_cache(file, &settings);
        // Taken after the last call to a file system of a backing file, and held until the snapshot
        // has the new file: see `validate`.
        let validation = self.lock_validation(file)?;
        self.validate(file)?;
        // A file system on the device hears of it before it is served from another file.
        let uevents = disk.suppress_uevents();
        disk.force_media_change();
        drop(uevents);
        let mut limits = disk.update_limits();
        caps.apply(&mut limits, file, settings.flags, block_size);
        let mut frozen = disk.freeze();
        // What a file adds contradicts nothing, and the block size is the present one.
        limits.commit()?;
        let old_target = frozen.replace(target);
        self.queue.take_refusals();
        drop(frozen);
        // What was read of the old file meanwhile.
        disk.drop_cached();
        let scans = settings.flags.contains(Flags::PARTSCAN);
        binding.settings = settings;
        let old_backing = core::mem::replace(&mut binding.backing, backing);
        // The last reference to a file is not to be dropped under a lock that its release may want.
        drop(state);
        drop(validation);
        drop(old_target);
        drop(old_backing);
        scan_and_notify(disk, scans);
        Ok(())
    }

    /// Adds the directory of attributes. Whoever waits for `state` to open the device finds it.
    fn create_attributes(&self, disk: &GenDisk<Self>) {
        match Group::create(disk, c"loop", sysfs::ATTRIBUTES) {
            Ok(group) => *self.attributes.lock() = Some(group),
            // The device works without.
            Err(error) => pr_warn!(
                "{}: no attributes in sysfs (rc={})\n",
                disk.name(),
                error.to_errno()
            ),
        }
    }

    /// LOOP_CLR_FD: detaches the device when it is closed for the last time.
    pub(crate) fn clear(&self, disk: &GenDisk<Self>) -> Result {
        let mut state = self.lock_killable()?;
        state
            .bound_mut()?
            .settings
            .flags
            .set(Flags::AUTOCLEAR, true);
        if disk.openers() == 1 {
            // The caller is the last; nobody else shall come in.
            state.run_down();
        }
        Ok(())
    }

    /// Somebody closes the device; the last one detaches it if that was asked for.
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

    /// `Rundown` becomes `Unbound`: nobody has the device open, and nobody can open it.
    fn detach(&self, disk: &OpenMutex<'_, Self>) {
        let mut limits = disk.update_limits();
        limits.set_block_size(SECTOR_SIZE);
        // I/O that comes from now on finds nothing; what was under way is over.
        let target = disk.unpublish();
        // The defaults do not contradict each other.
        let _ = limits.commit();
        disk.invalidate();
        let attributes = self.attributes.lock().take();
        drop(attributes);
        // udev waits for this event (DISK_MEDIA_CHANGE) to see that the device is free. Whoever
        // opens it then waits for the end of this.
        disk.force_media_change();
        // Partitions that were added by hand (BLKPG) go, too.
        reread_partitions(disk);
        disk.suppress_partition_scan(!self.always_scans);
        let binding = self.lock().unbind();
        drop(target);
        drop(binding);
    }
}

/// A file is about to be read and written as `settings` say.
///
/// What is dirty in its page cache would be missed by, or overwrite, what goes past it. An error is
/// told to those who wrote it, by their own descriptors or by flushes of the device. What is clean would be in the way:
/// while there is anything, direct writes complete by way of a workqueue.
fn sync_cache(file: &File, settings: &Settings) {
    let _ = file.sync();
    if settings.flags.contains(Flags::DIRECT_IO) {
        file.drop_page_cache();
    }
}

/// Tells user space that a device has other content, and looks for partitions if it is to.
///
/// User space hears of the device before it hears of its partitions: udev lets them inherit what it
/// finds out of it, and has begun with that when the caller closes the device. An opener that acts
/// upon the event finds the partitions, as opening waits for `open_mutex`. No locks held.
///
/// The block layer sends the event itself when it has found a partition table. It is not suppressed
/// in favour of one sent before: the events of all other senders would be lost for as long as the
/// scan reads the device. After a table without partitions, which looks like none, it is sent
/// twice.
fn scan_and_notify(disk: &GenDisk<LoopDevice>, scans: bool) {
    let disk = disk.lock_open();
    let notified = scans && reread_partitions(&disk) && disk.has_partitions();
    if !notified {
        disk.notify_change();
    }
}

/// Looks for partitions, or for their absence. False when those of before are left, as one is open.
pub(super) fn reread_partitions(disk: &OpenMutex<'_, LoopDevice>) -> bool {
    disk.reread_partitions()
        .inspect_err(|error| {
            pr_warn!(
                "{}: partition scan failed (rc={})\n",
                disk.name(),
                error.to_errno()
            );
        })
        .is_ok()
}
