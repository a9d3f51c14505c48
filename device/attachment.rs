// SPDX-License-Identifier: GPL-2.0

//! How a device comes by a file, by another one, and gets rid of it.

#![forbid(unsafe_code)]

use super::{
    Binding,
    LoopDevice, //
};
use crate::{
    backing::{
        self,
        Backing,
        Traits, //
    },
    blk_mq::{
        GenDisk,
        Mode,
        OpenMutex, //
    },
    flags::Flags,
    geometry::SECTOR_SIZE,
    kern::{
        bdev::BlockDevice,
        file::BackingFile,
        module::ModuleRef,
        sysfs::Group,
        uapi::LoopConfig, //
    },
    registry,
    settings::Settings,
    sysfs, //
};
use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

/// A file that somebody wants a device to be bound to.
struct Candidate {
    file: ARef<File>,
    traits: Traits,
}

impl Candidate {
    /// The file behind a descriptor; see [`backing::candidate`].
    ///
    /// Asks its file system, which may sleep on anything: to be called before any lock is taken.
    fn new(fd: u32) -> Result<Self> {
        let file = backing::candidate(fd)?;
        let traits = Traits::of(&file);
        Ok(Self { file, traits })
    }
}

impl LoopDevice {
    /// LOOP_CONFIGURE: binds the device to a file.
    ///
    /// Whatever fails, fails before anything of the device has changed.
    pub(crate) fn configure(
        &self,
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        config: &LoopConfig,
    ) -> Result {
        let Candidate { file, traits } = Candidate::new(config.fd)?;
        // An exclusive owner must not find another device under its feet.
        let _claim = bdev.claim_unless(mode.is_exclusive())?;
        let registry = registry::registry()?;
        let validation = registry.validation_of(&file)?;
        let valid = backing::validate(&file, self);
        let mut state = self.lock_killable()?;
        if !state.is_unbound() {
            return Err(EBUSY);
        }
        valid?;
        let mut settings = Settings::configured(&config.info)?;
        if !file.is_writable() || !mode.is_write() || !file.has_write() {
            settings.flags.set(Flags::READ_ONLY, true);
        }
        if file.is_direct() {
            settings.flags.set(Flags::DIRECT_IO, true);
        }
        let block_size = match config.block_size {
            0 => traits.default_block_size(settings.flags),
            size => size,
        };
        traits.settle_direct(&file, block_size, &mut settings);
        self.make_queue()?;
        let backing = Backing::new(file, traits)?;
        let Backing { file, traits, .. } = &backing;
        let mut limits = disk.update_limits();
        traits.apply(&mut limits, file, settings.flags, block_size);
        // Nothing is served yet, so the queue need not be frozen.
        limits.commit()?;

        // From here on nothing fails.
        let scans = self.always_scans || settings.flags.contains(Flags::PARTSCAN);
        settings.flags.set(Flags::PARTSCAN, scans);
        // What is dirty in the page cache would be missed by, or overwrite, what goes past it. An
        // error is told to those who wrote it, through their own descriptors.
        let _ = file.sync();
        let uevents = disk.suppress_uevents();
        disk.force_media_change();
        disk.set_read_only(settings.flags.contains(Flags::READ_ONLY));
        // A target that is there already would be that of a device that is not unbound.
        let _ = disk.publish(traits.target(file.clone(), &settings));
        disk.set_capacity_and_notify(backing::capacity(file, &settings));
        state.bind(Binding {
            backing,
            settings,
            _module: ModuleRef::get(),
        })?;
        if scans {
            disk.suppress_partition_scan(false);
        }
        state.show();
        self.show_attributes(disk);
        drop(state);
        drop(validation);
        drop(uevents);
        // The caller has the device open, so it is not detached meanwhile.
        self.announce(disk, scans);
        Ok(())
    }

    /// LOOP_CHANGE_FD: binds a read-only device to another file of the same size.
    ///
    /// Whatever fails, fails before anything of the device has changed.
    pub(crate) fn change_fd(&self, disk: &GenDisk<Self>, fd: u32) -> Result {
        let Candidate { file, traits } = Candidate::new(fd)?;
        let registry = registry::registry()?;
        let validation = registry.validation_of(&file)?;
        let valid = backing::validate(&file, self);
        let mut state = self.lock_killable()?;
        let binding = state.bound()?;
        if !binding.settings.flags.contains(Flags::READ_ONLY) {
            return Err(EINVAL);
        }
        valid?;
        let size = |file: &File| backing::capacity(file, &binding.settings);
        if size(&file) != size(&binding.backing.file) {
            return Err(EINVAL);
        }
        let mut settings = binding.settings.clone();
        if file.is_direct() {
            settings.flags.set(Flags::DIRECT_IO, true);
        }
        let block_size = disk.logical_block_size();
        traits.settle_direct(&file, block_size, &mut settings);
        let backing = Backing::new(file, traits)?;
        let Backing { file, traits, .. } = &backing;
        // As in `configure`.
        let _ = file.sync();
        let mut limits = disk.update_limits();
        traits.apply(&mut limits, file, settings.flags, block_size);
        let target = traits.target(file.clone(), &settings);
        let mut frozen = disk.freeze();
        limits.commit()?;
        let old_target = frozen.replace_io(target);
        drop(frozen);
        let scans = settings.flags.contains(Flags::PARTSCAN);
        binding.settings = settings;
        let old_backing = core::mem::replace(&mut binding.backing, backing);
        // The last reference to a file is not to be dropped under a lock that its release may want.
        drop(state);
        drop(validation);
        drop(old_target);
        drop(old_backing);
        let uevents = disk.suppress_uevents();
        disk.force_media_change();
        drop(uevents);
        self.announce(disk, scans);
        Ok(())
    }

    /// Tells user space that the device has other content, and looks for partitions if it is to.
    ///
    /// Partitions are there when user space hears of the device, and it hears of the device before
    /// it hears of them, as of a disk that appears: udev lets them inherit what it finds out of it.
    /// No locks held.
    fn announce(&self, disk: &GenDisk<Self>, scans: bool) {
        if !scans {
            return disk.notify_change();
        }
        let disk = disk.lock_open();
        let uevents = disk.suppress_uevents();
        self.reread_partitions(&disk);
        drop(uevents);
        disk.notify_change();
        disk.announce_partitions();
    }

    /// Adds the directory of attributes. Whoever waits for `state` to open the device finds it.
    fn show_attributes(&self, disk: &GenDisk<Self>) {
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
        // Devices that look for their own kind below them must not miss this.
        let registry = registry::registry()?;
        let _validation = registry.validation_killable()?;
        let mut state = self.lock_killable()?;
        state.bound()?.settings.flags.set(Flags::AUTOCLEAR, true);
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
        let mut frozen = disk.freeze();
        // I/O that comes from now on finds nothing; what was under way is over.
        let target = frozen.take_io();
        // The defaults do not contradict each other.
        let _ = limits.commit();
        drop(frozen);
        disk.invalidate();
        let attributes = self.attributes.lock().take();
        drop(attributes);
        // Partitions that were added by hand (BLKPG) go, too.
        self.reread_partitions(disk);
        disk.suppress_partition_scan(!self.always_scans);
        let binding = self.lock().unbind();
        // Nobody can open the device yet, but whoever hears of this will find it unbound. udev
        // waits for this event (DISK_MEDIA_CHANGE) to reset who may use the device.
        disk.force_media_change();
        drop(target);
        drop(binding);
    }

    /// Looks for partitions, or for their absence.
    pub(super) fn reread_partitions(&self, disk: &OpenMutex<'_, Self>) {
        if let Err(error) = disk.reread_partitions() {
            pr_warn!(
                "{}: partition scan failed (rc={})\n",
                disk.name(),
                error.to_errno()
            );
        }
    }
}
