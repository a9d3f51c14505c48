// SPDX-License-Identifier: GPL-2.0

//! All loop devices: which number stands for which, and who stands on whom.

use super::{
    device::LoopDevice,
    sysfs, //
};
use crate::{
    blk_mq::{
        sysfs::Group,
        Disk,
        DiskOptions,
        DiskRef,
        Probe,
        RegisteredDisk,
        TagSet, //
    },
    datapath::{
        target::LoopQueue,
        worker::{
            Worker,
            Workers, //
        },
    },
    kern::{
        mutex::LockKillable,
        task, //
    },
};
use kernel::{
    new_mutex, pr_warn_once,
    prelude::*,
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

/// The longest request unless user space asks for longer ones (`max_sectors_kb`), in sectors of 512
/// bytes: 1280 KiB, as it has always been.
const MAX_SECTORS: u32 = 2560;

/// The longest that it may ask for: 32 MiB.
const MAX_HW_SECTORS: u32 = 32 << 11;

/// How many segments a request has at most: 1 MiB of single pages. As the backing file, or the disk
/// below, splits what it cannot take at once, there is no other limit.
const MAX_SEGMENTS: u16 = 256;

/// How many hardware contexts a device has at most when nobody says: each has its own requests, and
/// from here on memory is worth more than CPUs that do not meet.
const MAX_HW_QUEUES: u32 = 8;

/// How devices are made.
pub(crate) struct Parameters {
    /// How their names begin; the number follows.
    pub(crate) prefix: &'static str,
    /// How many bits of a minor number count partitions.
    pub(crate) part_shift: u32,
    /// How many devices there may be by opening device nodes, if there is a limit.
    pub(crate) max_loop: Option<u32>,
    /// How many requests a hardware context has.
    pub(crate) hw_queue_depth: u32,
    /// How many hardware contexts a device has; 0 is one per CPU.
    pub(crate) nr_hw_queues: u32,
}

/// A device that is there for all to see; fields are dropped in the order of their declaration.
struct Listed {
    tunables: Option<Group>,
    disk: RegisteredDisk<LoopDevice>,
}

impl Listed {
    /// Deletes the disk, see [`RegisteredDisk::delete`].
    fn delete(self) -> DiskRef<LoopDevice> {
        drop(self.tunables);
        self.disk.delete()
    }
}

impl core::ops::Deref for Listed {
    type Target = RegisteredDisk<LoopDevice>;

    fn deref(&self) -> &RegisteredDisk<LoopDevice> {
        &self.disk
    }
}

/// A number that is taken.
struct Entry {
    index: u32,
    /// The disk, unless it is being added or removed.
    disk: Option<Listed>,
}

/// All loop devices of a module that is loaded.
#[pin_data]
pub(crate) struct Registry {
    parameters: Parameters,
    /// The major number of the devices, once it is known.
    major: Atomic<u32>,
    /// Sorted by index. A leaf: no other lock is taken under it.
    #[pin]
    table: Mutex<KVec<Entry>>,
    /// Devices that were removed while there were references to their disks. Taken before all other
    /// locks.
    #[pin]
    removed: Mutex<KVec<DiskRef<LoopDevice>>>,
    /// The lock that all devices share, see [`LoopDevice`].
    validation: Arc<Mutex<()>>,
}

global_lock! {
    // SAFETY: Initialized in the module initializer before first use.
    pub(crate) unsafe(uninit) static REGISTRY: Mutex<Phase> = Phase::Loading;
}

/// The progress of loading and unloading the module.
pub(crate) enum Phase {
    /// It may still fail to load.
    Loading,
    /// It is loaded.
    Loaded(Arc<Registry>),
    /// It failed to load, or is being unloaded.
    Gone,
}

/// Returns the registry, for callers that have no reference to it. Fails with `ENODEV` when the
/// module failed to load.
///
/// Waits while the module is loading: a caller must not have anything of it open when that fails,
/// and should not see that it came a moment too early. May sleep.
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
    /// Where `index` is in the table, or where it would be.
    fn search(table: &[Entry], index: u32) -> Result<usize, usize> {
        table.binary_search_by_key(&index, |entry| entry.index)
    }

    /// Adds the device `index`, or the first number that is free: LOOP_CTL_ADD.
    ///
    /// `EEXIST` when the number is taken. May sleep.
    pub(crate) fn add(&self, index: Option<u32>) -> Result<u32> {
        let index = self.reserve(index)?;
        let added = self.make_disk(index);
        let mut table = self.table.lock();
        if let Ok(at) = Self::search(&table, index) {
            match added {
                Ok(disk) => {
                    if let Some(entry) = table.get_mut(at) {
                        entry.disk = Some(disk);
                    }
                }
                Err(error) => {
                    // It is there: the search found it.
                    let _ = table.remove(at);
                    return Err(error);
                }
            }
        }
        Ok(index)
    }

    /// Takes a number.
    fn reserve(&self, index: Option<u32>) -> Result<u32> {
        let mut table = self.table.lock_killable()?;
        let index = index.unwrap_or_else(|| {
            // Sorted, so all numbers before the first gap stand where they are.
            let gap = table
                .iter()
                .enumerate()
                .find(|(at, entry)| *at != entry.index as usize);
            gap.map_or(table.len(), |(at, _)| at) as u32
        });
        let Err(at) = Self::search(&table, index) else {
            return Err(EEXIST);
        };
        {
            // Reclaim that does I/O could block the callers for other devices, which need the lock.
            let _noio = task::IoWorkerScope::enter();
            table.reserve(1, GFP_KERNEL)?;
        }
        let entry = Entry { index, disk: None };
        // There is room for one.
        table
            .insert_within_capacity(at, entry)
            .map_err(|_| ENOMEM)?;
        Ok(index)
    }

    fn make_disk(&self, index: u32) -> Result<Listed> {
        let Parameters {
            prefix,
            part_shift,
            hw_queue_depth,
            nr_hw_queues,
            ..
        } = self.parameters;
        let nr_hw_queues = match nr_hw_queues {
            0 => task::num_online_cpus().min(MAX_HW_QUEUES),
            n => n,
        };
        let tags = KBox::pin_init(TagSet::new(nr_hw_queues, hw_queue_depth), GFP_KERNEL)?;
        let scans = part_shift != 0;
        let minors = 1_u32.checked_shl(part_shift).ok_or(EINVAL)?;
        let queue = LoopQueue::new(index)?;
        let flusher = Worker::flusher()?;
        let disk = Disk::new(
            tags,
            LoopDevice::new(queue.clone(), scans, self.validation.clone())?,
            queue,
            || Workers::new(flusher.clone()),
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
        )?
        .add()?;
        let tunables = Group::create(&disk, c"rnull_loop", sysfs::TUNABLES);
        Ok(Listed {
            // The device works without.
            tunables: tunables.ok(),
            disk,
        })
    }

    /// Removes the device `index`: LOOP_CTL_REMOVE.
    ///
    /// `ENODEV` when there is none, `EBUSY` when it is in use. May sleep.
    pub(crate) fn remove(&self, index: Option<u32>) -> Result {
        let Some(index) = index else {
            pr_warn_once!("deleting an unspecified loop device is not supported.\n");
            return Err(EINVAL);
        };
        // Nobody else finds it from here on.
        let disk = {
            let mut table = self.table.lock_killable()?;
            let entry = Self::search(&table, index)
                .ok()
                .and_then(|at| table.get_mut(at));
            entry.and_then(|entry| entry.disk.take()).ok_or(ENODEV)?
        };
        let deleted = disk.device().delete(&disk);
        let kept = match deleted {
            Ok(()) => {
                self.free_removed(disk.delete());
                None
            }
            Err(_) => Some(disk),
        };
        let mut table = self.table.lock();
        if let Ok(at) = Self::search(&table, index) {
            match kept {
                Some(disk) => {
                    if let Some(entry) = table.get_mut(at) {
                        entry.disk = Some(disk);
                    }
                }
                // It is there: the search found it.
                None => drop(table.remove(at)),
            }
        }
        deleted
    }

    /// Frees a removed disk, or keeps it while there are other references to it, for which module
    /// exit waits. Frees disks that were kept before, likewise.
    fn free_removed(&self, disk: DiskRef<LoopDevice>) {
        let mut removed = self.removed.lock();
        removed.retain(|disk| disk.is_shared());
        if disk.is_shared() {
            // Without memory for that, waits now. As in `reserve`, reclaim must do no I/O.
            let _noio = task::IoWorkerScope::enter();
            let _ = removed.push(disk, GFP_KERNEL);
        }
    }

    /// Finds a device that is not bound, or adds one: LOOP_CTL_GET_FREE. May sleep.
    ///
    /// Whoever asks may find it taken a moment later, and asks again.
    pub(crate) fn get_free(&self) -> Result<u32> {
        let table = self.table.lock_killable()?;
        let free = table.iter().find(|entry| {
            let disk = entry.disk.as_ref();
            disk.is_some_and(|disk| disk.device().is_unbound())
        });
        if let Some(entry) = free {
            return Ok(entry.index);
        }
        drop(table);
        self.add(None)
    }
}

/// The registry of the module; all devices are removed when it is dropped.
pub(crate) struct Devices(Arc<Registry>);

impl Devices {
    /// A registry without devices. May sleep.
    pub(crate) fn new(parameters: Parameters) -> Result<Self> {
        let validation = Arc::pin_init(new_mutex!((), "LoopDevice::validation"), GFP_KERNEL)?;
        let registry = Arc::pin_init(
            pin_init!(Registry {
                parameters,
                major: Atomic::new(0),
                table <- new_mutex!(KVec::new(), "Registry::table"),
                removed <- new_mutex!(KVec::new(), "Registry::removed"),
                validation,
            }),
            GFP_KERNEL,
        )?;
        Ok(Self(registry))
    }

    /// Ends the wait of callers of [`registry`]: the devices will have the number `major`, and
    /// nothing fails to load any more; or loading has failed, and the callers are refused.
    ///
    /// They hold the lock of all misc devices, or of all majors: once the control device is
    /// registered, no misc device is registered or unregistered before this, and no major is once
    /// that of the devices is.
    pub(crate) fn publish(&self, major: Option<u32>) {
        *REGISTRY.lock() = match major {
            Some(major) => {
                self.0.major.store(major, Relaxed);
                Phase::Loaded(self.0.clone())
            }
            None => Phase::Gone,
        };
    }

    /// Adds the first `count` devices. One that cannot be made is missing, as in C.
    pub(crate) fn add(&self, count: u32) {
        for index in 0..count {
            match self.0.add(Some(index)) {
                // Whoever opened its node was faster.
                Ok(_) | Err(EEXIST) => (),
                Err(error) => pr_warn!("cannot add device {} (rc={})\n", index, error.to_errno()),
            }
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // Nobody can ask for devices any more: nodes and control were unregistered before.
        *REGISTRY.lock() = Phase::Gone;
        let table = core::mem::take(&mut *self.0.table.lock());
        let mut removed = core::mem::take(&mut *self.0.removed.lock());
        // All disks are deleted before the first wait for references to one of them.
        for disk in table.into_iter().filter_map(|entry| entry.disk) {
            // Without memory for that, waits now.
            let _ = removed.push(disk.delete(), GFP_KERNEL);
        }
        drop(removed);
    }
}

/// Makes devices when their nodes are opened.
pub(crate) struct OnDemand;

impl Probe for OnDemand {
    fn probe(minor: u32) {
        let Ok(registry) = registry() else { return };
        let shift = registry.parameters.part_shift;
        let index = minor.checked_shr(shift).unwrap_or(minor);
        if registry.parameters.max_loop.is_some_and(|max| index >= max) {
            return;
        }
        // The opener finds out whether there is a disk now.
        let _ = registry.add(Some(index));
    }
}
