// SPDX-License-Identifier: GPL-2.0

//! All loop devices, by their numbers.

use super::{
    device::LoopDevice,
    flags::Flags, //
};
use crate::{
    blk_mq::{
        Disk,
        DiskOptions,
        DiskRef,
        GenDisk,
        Mode,
        Probe,
        TagSet, //
    },
    datapath::{
        target::LoopQueue,
        tunables::Defaults, //
    },
    kern::{
        bdev::OpenBlockDevice,
        mutex::LockKillable,
        task,
        uapi::LoopConfig, //
    },
};
use kernel::{
    new_mutex, pr_warn_once,
    prelude::*,
    rbtree::{
        Entry,
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        global_lock,
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

/// The maximum length of a request, in sectors of 512 bytes, unless user space allows longer ones
/// (`max_sectors_kb`): 1280 KiB, as in the C driver.
const MAX_SECTORS: u32 = 2560;

/// The maximum length that user space may allow, in sectors of 512 bytes: 32 MiB.
const MAX_HW_SECTORS: u32 = 32 << 11;

/// The maximum number of segments of a request: 1 MiB of single pages. There are no other limits,
/// because the backing file, or the lower device, splits operations that are too large for it.
const MAX_SEGMENTS: u16 = 256;

/// The parameters of all devices.
pub(crate) struct Parameters {
    /// The prefix of disk names; the number follows.
    pub(crate) prefix: &'static str,
    /// The number of bits of a minor number that number the partitions.
    pub(crate) part_shift: u32,
    /// The limit for numbers of devices that are made by opening their nodes, if there is one.
    pub(crate) max_loop: Option<u32>,
    /// The number of requests of a device.
    pub(crate) hw_queue_depth: u32,
    /// The number of hardware contexts of a device, which share its requests; 0 for one, because
    /// each costs 18 KiB with 8 CPUs, most of it for files in debugfs.
    pub(crate) nr_hw_queues: u32,
    /// True if devices use direct I/O whenever their files can.
    pub(crate) prefers_direct: bool,
    /// The defaults of tunables.
    pub(crate) tunables: Defaults,
}

/// All loop devices of the module.
#[pin_data]
pub(crate) struct Registry {
    parameters: Parameters,
    /// The major number of the devices; 0 until it is registered.
    major: Atomic<u32>,
    /// The device of each number in use; `None` while it is being added or removed. The only lock
    /// that is taken under this one is the snapshot of a device.
    #[pin]
    table: Mutex<RBTree<u32, Option<Disk<LoopDevice>>>>,
    /// Removed devices whose disks had other references then. The outermost lock: it is held while
    /// disks are freed.
    #[pin]
    removed: Mutex<KVec<DiskRef<LoopDevice>>>,
    /// The lock that all devices share: [`LoopDevice::validation`].
    validation: Arc<Mutex<()>>,
}

global_lock! {
    // SAFETY: Initialized in the module initializer before first use.
    pub(crate) unsafe(uninit) static REGISTRY: Mutex<Phase> = Phase::Loading;
}

/// The progress of loading and unloading the module.
pub(crate) enum Phase {
    /// The module may still fail to load.
    Loading,
    /// The module is loaded.
    Loaded(Arc<Registry>),
    /// The module failed to load, or is being unloaded.
    Gone,
}

/// Returns the registry. Fails with `ENODEV` if the module failed to load, or is being unloaded.
///
/// Waits while the module is loading. An opener must not succeed before, because a module that
/// fails to load is freed even if its files are open: use after free. It must not fail either,
/// because the devices are about to exist. May sleep.
pub(crate) fn registry() -> Result<Arc<Registry>> {
    loop {
        match &*REGISTRY.lock() {
            Phase::Loading => (),
            Phase::Loaded(registry) => return Ok(registry.clone()),
            Phase::Gone => return Err(ENODEV),
        }
        fsleep(Delta::from_millis(1));
    }
}

impl Registry {
    /// Adds the device `index`, or that of the first free number: LOOP_CTL_ADD.
    ///
    /// Fails with `EEXIST` if the number is in use. May sleep.
    pub(crate) fn add(&self, index: Option<u32>) -> Result<u32> {
        let index = self.reserve(index)?;
        let disk = self.make_disk(index).inspect_err(|_| {
            self.table.lock().remove(&index);
        })?;
        self.list(index, disk);
        Ok(index)
    }

    /// Makes a device visible to other callers under its number, which is reserved.
    fn list(&self, index: u32, disk: Disk<LoopDevice>) {
        match self.table.lock().get_mut(&index) {
            Some(device) => *device = Some(disk),
            // Cannot happen, because only the task that has reserved the number removes it.
            None => pr_err!("the number {} is not reserved\n", index),
        }
    }

    /// Reserves `index`, or the first free number, and returns it. Fails with `EEXIST` if it is in
    /// use, and with `EINTR` on a fatal signal. May sleep.
    fn reserve(&self, index: Option<u32>) -> Result<u32> {
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let mut table = self.table.lock_killable()?;
        let index = index.unwrap_or_else(|| {
            // Each number before the first gap is its own position.
            let used = (0_u32..).zip(table.keys());
            used.take_while(|(position, index)| position == *index)
                .count() as u32
        });
        match table.entry(index) {
            Entry::Vacant(entry) => {
                entry.insert(None, node);
                Ok(index)
            }
            Entry::Occupied(_) => Err(EEXIST),
        }
    }

    /// Makes and registers the disk of the unbound device `index`. May sleep.
    fn make_disk(&self, index: u32) -> Result<Disk<LoopDevice>> {
        let Parameters {
            prefix,
            part_shift,
            hw_queue_depth,
            nr_hw_queues,
            prefers_direct,
            tunables,
            ..
        } = self.parameters;
        let tags = TagSet::new(nr_hw_queues.max(1), hw_queue_depth);
        let tags = KBox::pin_init(tags, GFP_KERNEL)?;
        let scans = part_shift != 0;
        let minors = 1_u32.checked_shl(part_shift).ok_or(EINVAL)?;
        let queue = LoopQueue::new(prefix, index, tunables)?;
        Disk::add(
            tags,
            LoopDevice::new(
                queue.clone(),
                scans,
                prefers_direct,
                self.validation.clone(),
            )?,
            queue,
            DiskOptions {
                major: self.major.load(Relaxed),
                first_minor: index.checked_mul(minors).ok_or(EINVAL)?,
                minors,
                name: fmt!("{prefix}{index}"),
                scan_partitions: scans,
                max_sectors: MAX_SECTORS,
                max_hw_sectors: MAX_HW_SECTORS,
                max_segments: MAX_SEGMENTS,
            },
        )
    }

    /// Removes the device `index`: LOOP_CTL_REMOVE.
    ///
    /// Fails with `EINVAL` without an index, with `ENODEV` if there is no such device, and with
    /// `EBUSY` while the device is in use. May sleep.
    pub(crate) fn remove(&self, index: Option<u32>) -> Result {
        let Some(index) = index else {
            pr_warn_once!("deleting an unspecified loop device is not supported.\n");
            return Err(EINVAL);
        };
        // From here on no other caller finds the disk.
        let disk = {
            let mut table = self.table.lock_killable()?;
            let device = table.get_mut(&index);
            device.and_then(Option::take).ok_or(ENODEV)?
        };
        let deleted = disk.device().delete(&disk);
        if deleted.is_ok() {
            self.free_removed(disk.delete());
            self.table.lock().remove(&index);
        } else {
            self.list(index, disk);
        }
        deleted
    }

    /// Frees a removed disk, or keeps it while it has other references; module exit waits for them.
    /// Also frees disks that were kept before and have no other reference now. May sleep.
    fn free_removed(&self, disk: DiskRef<LoopDevice>) {
        let mut removed = self.removed.lock();
        removed.retain(|disk| disk.is_shared());
        if disk.is_shared() {
            // Without memory the disk is dropped here, which waits for the other references.
            // Reclaim must start no I/O, because all removals wait for this lock.
            let _noio = task::IoWorkerScope::enter();
            let _ = removed.push(disk, GFP_KERNEL);
        }
    }

    /// Returns the number of an unbound device, not less than `first`, and adds one if there is
    /// none: LOOP_CTL_GET_FREE. May sleep.
    ///
    /// Another task may bind the device before the caller does; the caller then asks again.
    pub(crate) fn get_free(&self, first: u32) -> Result<u32> {
        let table = self.table.lock_killable()?;
        let mut devices = table.iter();
        let free = devices.find(|(index, device)| {
            let device = device.as_ref().filter(|_| **index >= first);
            device.is_some_and(|disk| disk.device().is_unbound())
        });
        if let Some((index, _)) = free {
            return Ok(*index);
        }
        drop(table);
        self.add(None)
    }

    /// Binds a free device to a file, and returns its number: LOOP_CTL_ATTACH. May sleep.
    ///
    /// Other tasks that look for a free device at the same time get other ones. Fails as
    /// [`LoopDevice::configure`], and with `EINVAL` for `LO_FLAGS_AUTOCLEAR`, because the caller
    /// does not have the device open, so it would be detached at once.
    pub(crate) fn attach(&self, config: &LoopConfig) -> Result<u32> {
        if Flags::from_configure(config.info.lo_flags)?.contains(Flags::AUTOCLEAR) {
            return Err(EINVAL);
        }
        let mut first = 0;
        loop {
            let index = self.get_free(first)?;
            match self.attach_to(index, config) {
                // Another task has bound it, has removed it, or is its exclusive owner.
                Err(EBUSY | ENXIO) => first = index.checked_add(1).ok_or(EBUSY)?,
                result => return result.map(|()| index),
            }
            if task::is_killed() {
                return Err(EINTR);
            }
        }
    }

    fn attach_to(&self, index: u32, config: &LoopConfig) -> Result {
        let major = self.major.load(Relaxed);
        let bdev = OpenBlockDevice::open(major, index << self.parameters.part_shift)?;
        let disk = GenDisk::<LoopDevice>::of(bdev.get()).ok_or(ENXIO)?;
        disk.device()
            .configure(disk, bdev.get(), Mode::READ_WRITE, config)
    }
}

/// The owner of the registry. Dropping it removes all devices.
pub(crate) struct Devices(Arc<Registry>);

impl Devices {
    /// Makes a registry without devices. May sleep. Fails with `ENOMEM`.
    pub(crate) fn new(parameters: Parameters) -> Result<Self> {
        let validation = Arc::pin_init(new_mutex!((), "LoopDevice::validation"), GFP_KERNEL)?;
        let registry = Arc::pin_init(
            pin_init!(Registry {
                parameters,
                major: Atomic::new(0),
                table <- new_mutex!(RBTree::new(), "Registry::table"),
                removed <- new_mutex!(KVec::new(), "Registry::removed"),
                validation,
            }),
            GFP_KERNEL,
        )?;
        Ok(Self(registry))
    }

    /// Ends the wait of callers of [`registry`]. With a `major`, that of all devices, they get the
    /// registry, and the module must not fail to load any more. Without one the module has failed
    /// to load, and they fail with `ENODEV`.
    ///
    /// The waiting callers hold `misc_mtx` or `major_names_lock`. So once the control device is
    /// registered, no misc device may be registered or unregistered before this call, and once the
    /// major is registered, no major: deadlock.
    pub(crate) fn publish(&self, major: Option<u32>) {
        *REGISTRY.lock() = match major {
            Some(major) => {
                self.0.major.store(major, Relaxed);
                Phase::Loaded(self.0.clone())
            }
            None => Phase::Gone,
        };
    }

    /// Adds the first `count` devices. Logs a failure and continues; the C driver ignores it. May
    /// sleep.
    pub(crate) fn add(&self, count: u32) {
        for index in 0..count {
            match self.0.add(Some(index)) {
                // An opener of its node may have added it already.
                Ok(_) | Err(EEXIST) => (),
                Err(error) => pr_warn!("cannot add device {} (rc={})\n", index, error.to_errno()),
            }
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // No task can ask for devices any more, because the control device and the major were
        // unregistered before, or never registered.
        *REGISTRY.lock() = Phase::Gone;
        let mut table = core::mem::take(&mut *self.0.table.lock());
        let mut removed = core::mem::take(&mut *self.0.removed.lock());
        // Deletes all disks before it waits for other references to any of them.
        for disk in table.values_mut().filter_map(Option::take) {
            // Without memory the disk is dropped here, which waits for the other references.
            let _ = removed.push(disk.delete(), GFP_KERNEL);
        }
        drop(removed);
    }
}

/// The probe of the major: adds a device when its node is opened.
pub(crate) struct OnDemand;

impl Probe for OnDemand {
    fn probe(minor: u32) {
        let Ok(registry) = registry() else { return };
        let shift = registry.parameters.part_shift;
        let index = minor.checked_shr(shift).unwrap_or(minor);
        if registry.parameters.max_loop.is_some_and(|max| index >= max) {
            return;
        }
        // The block layer looks for the disk afterwards, and fails the open without one.
        let _ = registry.add(Some(index));
    }
}
