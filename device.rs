// SPDX-License-Identifier: GPL-2.0

//! One loop device: its states and every change of state.
//!
//! - [`attachment`] - how it comes by its file, by another one, and gets rid of it;
//! - [`adjustment`] - what else may change while it has one.
//!
//! Lock order, outermost first; the block layer takes the disk's `open_mutex` before all of them,
//! and a claim ([`BlockDevice::claim`](crate::kern::bdev::BlockDevice::claim)) comes before that:
//!
//! 1. [`LoopDevice::state`];
//! 2. [`Registry::validation_of`](crate::registry::Registry::validation_of), global;
//! 3. the limits of the queue ([`GenDisk::update_limits`]);
//! 4. the frozen queue ([`GenDisk::freeze`]).
//!
//! The table of [`registry`](crate::registry), [`LoopDevice::attributes`] and [`LoopDevice::shown`]
//! are leaves: no lock is taken under them, as are those inside the abstractions. LOOP_CONFIGURE
//! calls the file system of the backing file before it takes any of these locks, because that may
//! block for any time. Under `state` no partition is scanned, as that takes the disk's
//! `open_mutex`. Attributes are removed without `state`, as their readers may take a while. What
//! must not be done while the queue is frozen stands in `blk_mq/limits.rs`.

#![forbid(unsafe_code)]

mod adjustment;
mod attachment;

use crate::{
    backing::Backing,
    blk_mq::GenDisk,
    kern::{
        gate::Gate,
        module::ModuleRef,
        mutex::LockKillable,
        sysfs::Group,
        workqueue::{
            OwnedQueue,
            Place, //
        },
    },
    settings::Settings,
    state::State,
    switches::Switches,
    worker::Worker, //
};
use kernel::{
    fs::File,
    new_mutex,
    new_spinlock,
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
        SetOnce,
        SpinLock, //
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

/// What those see of a bound device who cannot wait for `state`: somebody may hold it for as long as
/// a file system takes.
pub(crate) struct Shown {
    /// The file.
    pub(crate) file: ARef<File>,
    /// What the device is set to.
    pub(crate) settings: Settings,
    /// Whether it is `Bound`, and not being run down.
    bound: bool,
}

impl Shown {
    fn of(state: &State<Binding>) -> Option<Self> {
        state.binding().map(|binding| Self {
            file: binding.backing.file.clone(),
            settings: binding.settings.clone(),
            bound: !state.is_rundown(),
        })
    }
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
    /// What `state` was when it was last unlocked, for those who look without the lock. A spinlock,
    /// so that a reader is not preempted while it holds it, and delays ioctls for as long.
    #[pin]
    shown: SpinLock<Option<Shown>>,
    /// Whether `state` is `Unbound`, likewise.
    unbound: Atomic<bool>,
    /// How long the device is for requests, in bytes: see [`length`](Self::length).
    length: Atomic<u64>,
    /// Where workers run, here or anywhere: made when the device is bound for the first time, gone with
    /// the device, so that no lock is held when they are destroyed.
    queues: SetOnce<(OwnedQueue, OwnedQueue)>,
    /// Serves flushes of all hardware contexts.
    pub(crate) flusher: Arc<Worker>,
    /// Which ways requests may take.
    pub(crate) switches: Switches,
    /// Direct writes pass it; transfers through the page cache of a device with direct I/O close
    /// it.
    #[pin]
    pub(crate) direct_writes: Gate,
    /// The largest alignment, in bytes, with which direct I/O was refused; 0 for none.
    refused: Atomic<u32>,
}

/// The state of a device, locked. Keeps what is seen without the lock true to it.
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
    /// Lets those who look without the lock see what has changed so far.
    fn show(&self) {
        self.device.unbound.store(self.guard.is_unbound(), Relaxed);
        let new = Shown::of(&self.guard);
        let old = core::mem::replace(&mut *self.device.shown.lock(), new);
        // Not under the spinlock, as it may be the last reference to the file.
        drop(old);
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        if self.changed {
            self.show();
        }
    }
}

impl LoopDevice {
    /// A device that is not bound. May sleep.
    pub(crate) fn new(index: u32, always_scans: bool) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                index,
                always_scans,
                state <- new_mutex!(State::Unbound, "LoopDevice::state"),
                attributes <- new_mutex!(None, "LoopDevice::attributes"),
                shown <- new_spinlock!(None, "LoopDevice::shown"),
                unbound: Atomic::new(true),
                length: Atomic::new(0),
                queues: SetOnce::new(),
                flusher: Worker::flusher()?,
                switches: Switches::new(),
                direct_writes <- Gate::new(),
                refused: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    fn lock(&self) -> StateGuard<'_> {
        StateGuard {
            device: self,
            guard: self.state.lock(),
            changed: false,
        }
    }

    /// As `lock`; fails with `EINTR` when a fatal signal comes first.
    fn lock_killable(&self) -> Result<StateGuard<'_>> {
        Ok(StateGuard {
            device: self,
            guard: self.state.lock_killable()?,
            changed: false,
        })
    }

    /// How long the device is for requests, in bytes: as long as the disk, or, while LOOP_SET_STATUS moves
    /// it, as long as the shorter of what it was and what it is going to be. Any context.
    pub(crate) fn length(&self) -> u64 {
        self.length.load(Relaxed)
    }

    /// Whether the device is not bound, or was not a moment ago. Any context.
    pub(crate) fn is_unbound(&self) -> bool {
        self.unbound.load(Relaxed)
    }

    /// The file of a bound device. Does not sleep.
    pub(crate) fn backing_file(&self) -> Option<ARef<File>> {
        let shown = self.shown.lock();
        let shown = shown.as_ref().filter(|shown| shown.bound)?;
        Some(shown.file.clone())
    }

    /// Lets `show`, which must not sleep, look at a device that is bound, or being run down;
    /// `ENXIO` for others.
    pub(crate) fn with_shown<R>(&self, show: impl FnOnce(&Shown) -> Result<R>) -> Result<R> {
        show(self.shown.lock().as_ref().ok_or(ENXIO)?)
    }

    /// Lets a worker run. Any context.
    pub(crate) fn enqueue(&self, worker: Arc<Worker>, place: Place) {
        // Requests find a target only when `configure` made the queues before. A worker that is
        // queued already needs nothing.
        let _ = match (self.queues.as_ref(), place) {
            (Some((here, _)), Place::Here) => here.enqueue(worker),
            (Some((_, anywhere)), Place::Anywhere) => anywhere.enqueue(worker),
            (None, _) => workqueue::system_unbound().enqueue(worker),
        };
    }

    /// Makes the device ready to run workers. The caller holds `state`.
    fn make_queues(&self, disk: &GenDisk<Self>) -> Result {
        if self.queues.as_ref().is_none() {
            let make = |place| OwnedQueue::new(disk.name(), place);
            self.queues
                .populate((make(Place::Here)?, make(Place::Anywhere)?));
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
}
