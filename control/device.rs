// SPDX-License-Identifier: GPL-2.0

//! One loop device: its state and every change of it.
//!
//! - [`attachment`] - attaches, exchanges and detaches the backing file;
//! - [`reconfiguration`] - the status of a bound device, and changes of its settings;
//! - [`validation`] - the check whether a file may be the backing file.
//!
//! Lock order, outermost first. The block layer takes the disk's `open_mutex` before all of them,
//! and a claim ([`BlockDevice::claim`](crate::kern::bdev::BlockDevice::claim)) comes before that:
//!
//! 1. [`LoopDevice::state`];
//! 2. [`LoopDevice::validation`], one for all devices;
//! 3. the limits of the queue ([`GenDisk::update_limits`]);
//! 4. the frozen queue ([`GenDisk::freeze`]).
//!
//! [`LoopDevice::attributes`] and [`LoopDevice::snapshot`] are leaves: no lock is taken under them.
//! So are the locks inside the abstractions, and the table of [`registry`](super::registry), under
//! which only a snapshot is locked. LOOP_CONFIGURE calls the file system of the backing file before
//! it takes any of these locks, because the file system may block for any time. No partition is
//! scanned under `state`, because the scan takes the disk's `open_mutex`. Attributes are removed
//! without `state`, because the removal waits for their readers. `blk_mq/limits.rs` lists what must
//! not be done while the queue is frozen.

mod attachment;
mod reconfiguration;
mod validation;

use super::{
    backing::Backing,
    geometry,
    settings::Settings,
    state::State, //
};
use crate::{
    blk_mq::{
        sysfs::Group,
        GenDisk,
        OpenMutex, //
    },
    datapath::{
        leasing::Leasing,
        target::LoopQueue, //
    },
    kern::{
        compat::smp_wmb,
        module::ModuleRef,
        mutex::LockKillable, //
    },
};
use kernel::{
    fs::File,
    new_mutex, new_spinlock,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::Full,
            Atomic, //
        },
        Arc,
        Mutex,
        MutexGuard,
        SpinLock, //
    },
};

/// The binding of a device to a backing file.
struct Binding {
    /// The backing file.
    backing: Backing,
    /// The settings of the device.
    settings: Settings,
    // A bound device keeps the module loaded, also without an opener.
    _module: ModuleRef,
}

/// A snapshot of a [`Binding`].
pub(super) struct Snapshot {
    /// The backing file.
    pub(super) file: ARef<File>,
    /// The settings of the device.
    pub(super) settings: Settings,
    /// The leases of the backing file.
    pub(super) leasing: Option<Arc<Leasing>>,
}

impl Snapshot {
    fn of(binding: &Binding) -> Self {
        Self {
            file: binding.backing.file.clone(),
            settings: binding.settings.clone(),
            leasing: binding.backing.leasing.clone(),
        }
    }
}

/// The control half of a loop device.
#[pin_data]
pub(crate) struct LoopDevice {
    /// The data half.
    pub(crate) queue: Arc<LoopQueue>,
    /// True if all devices scan for partitions: `max_part`.
    always_scans: bool,
    /// True if a device uses direct I/O whenever its file can: `dio=auto`.
    prefers_direct: bool,
    #[pin]
    state: Mutex<State<Binding>>,
    /// A snapshot for readers that must not block on `state`, which may be held across file system
    /// calls. A spinlock, so that a reader cannot be preempted while it holds the lock, which would
    /// delay ioctls.
    #[pin]
    snapshot: SpinLock<State<Snapshot>>,
    /// 1 if user space has read the name of the state since `is_state_polled` looked last.
    state_is_read: Atomic<u32>,
    /// `/sys/block/loopN/loop`, while the device is bound.
    #[pin]
    attributes: Mutex<Option<Group>>,
    /// Held while a bound device gets another loop device as its backing file: two such changes at
    /// the same time could complete a cycle that neither detects. One lock for all devices:
    /// `loop_validate_mutex`.
    validation: Arc<Mutex<()>>,
}

/// The locked state of a device. Publishes a new snapshot when it is unlocked, if the state may
/// have changed.
struct StateGuard<'a> {
    device: &'a LoopDevice,
    guard: MutexGuard<'a, State<Binding>>,
    changed: bool,
}

impl core::ops::Deref for StateGuard<'_> {
    type Target = State<Binding>;

    fn deref(&self) -> &State<Binding> {
        &self.guard
    }
}

impl core::ops::DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State<Binding> {
        self.changed = true;
        &mut self.guard
    }
}

impl StateGuard<'_> {
    /// Publishes a snapshot of the state as it is now.
    fn publish_snapshot(&mut self) {
        self.changed = false;
        let new = self.guard.map(Snapshot::of);
        let old = core::mem::replace(&mut *self.device.snapshot.lock(), new);
        // Dropped outside the spinlock, because it may have the last reference to the file.
        drop(old);
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        if self.changed {
            self.publish_snapshot();
        }
    }
}

impl LoopDevice {
    /// Makes a device that is not bound. May sleep.
    pub(crate) fn new(
        queue: Arc<LoopQueue>,
        always_scans: bool,
        prefers_direct: bool,
        validation: Arc<Mutex<()>>,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                queue,
                always_scans,
                prefers_direct,
                state <- new_mutex!(State::Unbound, "LoopDevice::state"),
                snapshot <- new_spinlock!(State::Unbound, "LoopDevice::snapshot"),
                state_is_read: Atomic::new(0),
                attributes <- new_mutex!(None, "LoopDevice::attributes"),
                validation,
            }),
            GFP_KERNEL,
        )
    }

    /// Locks the state. May sleep.
    fn lock(&self) -> StateGuard<'_> {
        StateGuard {
            device: self,
            guard: self.state.lock(),
            changed: false,
        }
    }

    /// Locks the state. May sleep. Fails with `EINTR` on a fatal signal.
    fn lock_killable(&self) -> Result<StateGuard<'_>> {
        Ok(StateGuard {
            device: self,
            guard: self.state.lock_killable()?,
            changed: false,
        })
    }

    /// Returns whether the device is unbound, which may have changed when this returns. Does not
    /// sleep.
    pub(crate) fn is_unbound(&self) -> bool {
        self.snapshot.lock().is_unbound()
    }

    /// Returns the name of the state for user space, which may poll for another one from now on.
    /// Does not sleep.
    pub(super) fn read_state_name(&self) -> &'static str {
        // ORDERING: The task that changes the state finds this, or the new name is read below.
        self.state_is_read.xchg(1, Full);
        self.snapshot.lock().name()
    }

    /// Returns whether user space may poll for the state that the caller has just set. Does not
    /// sleep.
    pub(super) fn is_state_polled(&self) -> bool {
        // ORDERING: See `read_state_name`.
        self.state_is_read.xchg(0, Full) != 0
    }

    /// Returns the backing file of a bound device. Does not sleep.
    pub(crate) fn backing_file(&self) -> Option<ARef<File>> {
        let snapshot = self.snapshot.lock();
        Some(snapshot.bound().ok()?.file.clone())
    }

    /// Calls `read`, which must not sleep, with the snapshot of a device that is bound or being
    /// torn down. Fails with `ENXIO` for other devices. Does not sleep.
    pub(super) fn with_snapshot<R>(&self, read: impl FnOnce(&Snapshot) -> Result<R>) -> Result<R> {
        read(self.snapshot.lock().binding().ok_or(ENXIO)?)
    }

    /// Checks that the device may be opened. Fails with `ENXIO` while it is being torn down or
    /// removed. May sleep.
    ///
    /// LOOP_CONFIGURE holds `state`, so that no opener finds a device that is half set up.
    pub(crate) fn open(&self) -> Result {
        if self.lock_killable()?.may_open() {
            Ok(())
        } else {
            Err(ENXIO)
        }
    }

    /// Sets the size of the disk and that for requests, in sectors of 512 bytes, without an event.
    /// Does not sleep.
    fn set_size(&self, disk: &GenDisk<Self>, capacity: u64) {
        self.queue.set_length(geometry::bytes(capacity));
        // Pairs with the barrier of the tag set's SRCU lock: a request that the block layer has
        // checked against the new size is compared with the new length.
        smp_wmb();
        disk.set_capacity(capacity);
    }

    /// Keeps the device unbound and closed until it is removed. Fails with `EBUSY` if it is bound
    /// or open. May sleep.
    pub(crate) fn delete(&self, disk: &GenDisk<Self>) -> Result {
        let mut state = self.lock_killable()?;
        if disk.openers() > 0 {
            return Err(EBUSY);
        }
        state.delete()
    }
}

/// Removes all partitions, and adds those of the partition table if the disk scans for them. Logs a
/// failure and returns false then: a partition is open, so all stay, or the table cannot be read.
/// May sleep.
fn reread_partitions(disk: &OpenMutex<'_, LoopDevice>) -> bool {
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
