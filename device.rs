// SPDX-License-Identifier: GPL-2.0

//! One loop device: its states and every change of state.
//!
//! Lock order, outermost first; the block layer takes the disk's `open_mutex` before all of them:
//!
//! 1. [`Registry::validation_killable`](registry::Registry::validation_killable), global;
//! 2. [`LoopDevice::state`];
//! 3. the limits of the queue ([`GenDisk::update_limits`]);
//! 4. the frozen queue ([`GenDisk::freeze`]).
//!
//! The table of [`registry`] and [`LoopDevice::attributes`] are leaves: no lock is taken under them.
//! Under `state` no partition is scanned, as that takes the disk's `open_mutex`. Readers of sysfs
//! attributes take `state`, so the attributes are neither added nor removed under it. What must not
//! be done while the queue is frozen stands in `blk_mq/limits.rs`.

#![forbid(unsafe_code)]

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
        ffi::{
            LoopConfig,
            LoopInfo64, //
        },
        file::BackingFile,
        module::ModuleRef,
        mutex::LockKillable,
        sysfs::Group,
        workqueue::OwnedQueue, //
    },
    registry,
    settings::Settings,
    state::State,
    sysfs,
    worker::Worker, //
};
use kernel::{
    fs::File,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc,
        Mutex,
        MutexGuard,
        SetOnce, //
    },
    workqueue, //
};

/// What a device is bound to.
pub(crate) struct Binding {
    /// The file.
    pub(crate) backing: Backing,
    /// What the device is set to.
    pub(crate) settings: Settings,
    // A bound device is in use even when nobody has it open.
    _module: ModuleRef,
}

/// One loop device.
#[pin_data]
pub(crate) struct LoopDevice {
    /// Its number.
    pub(crate) index: u32,
    /// Whether all devices scan for partitions (`max_part`).
    always_scans: bool,
    #[pin]
    state: Mutex<State<Binding>>,
    /// `/sys/block/loopN/loop`, while the device is bound.
    #[pin]
    attributes: Mutex<Option<Group>>,
    /// Whether `state` is `Unbound`, for those who look without the lock.
    unbound: Atomic<bool>,
    /// Where workers run: made when the device is bound for the first time, gone with the device,
    /// so that no lock is held when it is destroyed.
    queue: SetOnce<OwnedQueue>,
}

/// The state of a device, locked. Keeps [`LoopDevice::is_unbound`] true to it.
struct StateGuard<'a> {
    device: &'a LoopDevice,
    guard: MutexGuard<'a, State<Binding>>,
}

impl core::ops::Deref for StateGuard<'_> {
    type Target = State<Binding>;

    fn deref(&self) -> &State<Binding> {
        &self.guard
    }
}

impl core::ops::DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State<Binding> {
        &mut self.guard
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        self.device.unbound.store(self.guard.is_unbound(), Relaxed);
    }
}

impl LoopDevice {
    /// A device that is not bound. May sleep.
    pub(crate) fn new(index: u32, always_scans: bool) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                index,
                always_scans,
                state <- new_mutex!(State::Unbound, "LoopDevice::state"),
                attributes <- new_mutex!(None, "LoopDevice::attributes"),
                unbound: Atomic::new(true),
                queue: SetOnce::new(),
            }),
            GFP_KERNEL,
        )
    }

    fn lock(&self) -> StateGuard<'_> {
        StateGuard {
            device: self,
            guard: self.state.lock(),
        }
    }

    /// As `lock`; fails with `EINTR` when a fatal signal comes first.
    fn lock_killable(&self) -> Result<StateGuard<'_>> {
        Ok(StateGuard {
            device: self,
            guard: self.state.lock_killable()?,
        })
    }

    /// Whether the device is not bound, or was not a moment ago. Any context.
    pub(crate) fn is_unbound(&self) -> bool {
        self.unbound.load(Relaxed)
    }

    /// The file of a bound device; `ENXIO` for another, `EINTR` when a fatal signal comes first.
    pub(crate) fn backing_file(&self) -> Result<ARef<File>> {
        Ok(self.lock_killable()?.bound()?.backing.file.clone())
    }

    /// Lets `show` look at the binding, if there is one. May sleep.
    pub(crate) fn with_binding<R>(&self, show: impl FnOnce(&Binding) -> Result<R>) -> Result<R> {
        show(self.lock_killable()?.binding().ok_or(ENXIO)?)
    }

    /// Lets a worker run. Any context.
    pub(crate) fn enqueue(&self, worker: Arc<Worker>) {
        // Requests find a target only when `configure` made the queue before. A worker that is
        // queued already needs nothing.
        let _ = match self.queue.as_ref() {
            Some(queue) => queue.enqueue(worker),
            None => workqueue::system_unbound().enqueue(worker),
        };
    }

    /// Makes the device ready to run workers. The caller holds `state`.
    fn make_queue(&self) -> Result {
        if self.queue.as_ref().is_none() {
            self.queue.populate(OwnedQueue::new(self.index)?);
        }
        Ok(())
    }

    /// Somebody opens the device: it must be neither on its way out nor gone. As `configure` holds
    /// the lock, nobody sees a device that is half set up.
    pub(crate) fn open(&self) -> Result {
        if self.lock_killable()?.may_open() {
            Ok(())
        } else {
            Err(ENXIO)
        }
    }

    /// The device is about to be removed; `EBUSY` when it is in use.
    pub(crate) fn delete(&self, disk: &GenDisk<Self>) -> Result {
        let mut state = self.lock_killable()?;
        if disk.openers() > 0 {
            return Err(EBUSY);
        }
        state.delete()
    }

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
        let file = backing::candidate(config.fd)?;
        // An exclusive owner must not find another device under its feet.
        let _claim = if mode.is_exclusive() {
            None
        } else {
            Some(bdev.claim()?)
        };
        // Asks the file system, which may sleep on anything: before any lock is taken.
        let traits = Traits::of(&file);
        let registry = registry::registry()?;
        let validation = match backing::as_loop(&file) {
            Some(_) => Some(registry.validation_killable()?),
            None => None,
        };
        let valid = backing::validate(&file, self);
        let mut state = self.lock_killable()?;
        if !state.is_unbound() {
            return Err(EBUSY);
        }
        valid?;
        let mut settings = settings_of(config)?;
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
        if !traits.can_direct(&file, block_size, settings.offset) {
            settings.flags.set(Flags::DIRECT_IO, false);
        }
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
        drop(state);
        drop(validation);
        // The caller has the device open, so it is not detached meanwhile.
        self.show_attributes(disk);
        drop(uevents);
        disk.notify_change();
        if scans {
            self.reread_partitions(disk);
        }
        Ok(())
    }

    /// Adds the directory of attributes. Without `state`: readers take that, and where adding
    /// fails, it waits for readers.
    fn show_attributes(&self, disk: &GenDisk<Self>) {
        match Group::create(disk, c"loop", sysfs::ATTRIBUTES) {
            Ok(group) => *self.attributes.lock() = Some(group),
            // The device works without.
            Err(error) => pr_warn!(
                "loop{}: no attributes in sysfs (rc={})\n",
                self.index,
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
        disk.notify_change();
        disk.force_media_change();
        // Partitions that were added by hand (BLKPG) go, too.
        if let Err(error) = disk.reread_partitions() {
            self.warn_partitions(error);
        }
        disk.suppress_partition_scan(!self.always_scans);
        let binding = self.lock().unbind();
        drop(target);
        drop(binding);
    }

    /// Looks for partitions on a bound device. No locks held.
    fn reread_partitions(&self, disk: &GenDisk<Self>) {
        if let Err(error) = disk.lock_open().reread_partitions() {
            self.warn_partitions(error);
        }
    }

    fn warn_partitions(&self, error: Error) {
        pr_warn!(
            "loop{}: partition scan failed (rc={})\n",
            self.index,
            error.to_errno()
        );
    }

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
        let resized = (old.offset, old.sizelimit) != (new.offset, new.sizelimit);
        let scans = !old.flags.contains(Flags::PARTSCAN) && new.flags.contains(Flags::PARTSCAN);
        if resized {
            // What is cached belongs to other places of the file. What cannot be written back is
            // reported to those who wrote it.
            let _ = disk.part0().sync();
            disk.part0().invalidate();
        }
        let Backing { file, traits, .. } = &binding.backing;
        if !traits.can_direct(file, disk.logical_block_size(), new.offset) {
            new.flags.set(Flags::DIRECT_IO, false);
        }
        if let Some(target) = disk.freeze().io() {
            target.offset = new.offset;
            target.caching = backing::caching(new.flags);
        }
        binding.settings = new;
        if scans {
            disk.suppress_partition_scan(false);
        }
        if resized {
            self.resize(disk, binding);
        }
        drop(state);
        if scans {
            self.reread_partitions(disk);
        }
        Ok(())
    }

    /// Takes over the size of the file, and tells user space.
    fn resize(&self, disk: &GenDisk<Self>, binding: &Binding) {
        let capacity = backing::capacity(&binding.backing.file, &binding.settings);
        if !disk.set_capacity_and_notify(capacity) {
            disk.notify_change();
        }
    }
}

/// What LOOP_CONFIGURE asks for, or what is wrong with it.
fn settings_of(config: &LoopConfig) -> Result<Settings> {
    let flags = Flags::configured(config.info.lo_flags)?;
    Settings::new(&config.info, flags)
}
