// SPDX-License-Identifier: GPL-2.0

//! Disks: set up first, visible then.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h),
//! [`block/genhd.c`](srctree/block/genhd.c)

use super::{
    limits::{
        IoCell,
        Revision, //
    },
    Operations,
    TagSet, //
};
use crate::kern::{
    bdev::{
        BlockDevice,
        Claim, //
    },
    ffi, //
};
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    device::Device,
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    fmt, new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        LockClassKey,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// How a block device is open: `blk_mode_t`.
#[derive(Clone, Copy)]
pub(crate) struct Mode(bindings::blk_mode_t);

impl Mode {
    /// Whether it is open for writing: `BLK_OPEN_WRITE`.
    pub(crate) fn is_write(self) -> bool {
        self.0 & ffi::BLK_OPEN_WRITE != 0
    }

    /// Whether the opener holds it exclusively: `BLK_OPEN_EXCL`.
    pub(crate) fn is_exclusive(self) -> bool {
        self.0 & ffi::BLK_OPEN_EXCL != 0
    }
}

/// What a driver does with its disks; mirrors `struct block_device_operations`.
pub(crate) trait DiskOperations: Operations {
    /// Somebody opens the disk or a partition. May sleep; called under the disk's `open_mutex`.
    fn open(disk: &GenDisk<Self>, mode: Mode) -> Result;

    /// Somebody closes the disk or its last partition. May sleep; `disk` proves `open_mutex`.
    fn release(disk: &OpenMutex<'_, Self>);

    /// An ioctl that the block layer does not know, on the disk or (`bdev`) on a partition of it.
    /// May sleep; no locks held.
    fn ioctl(
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        cmd: u32,
        arg: usize,
    ) -> Result<c_int>;

    /// The same, from a 32-bit program.
    fn compat_ioctl(
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        cmd: u32,
        arg: usize,
    ) -> Result<c_int>;

    /// Brings the limits in line with what requests have found out, by [`Request::disable_discard`]
    /// and the like. Called from a worker some time later, however many requests there were. May
    /// sleep; no locks held.
    ///
    /// [`Request::disable_discard`]: super::Request::disable_discard
    fn revise_limits(disk: &GenDisk<Self>);
}

/// What a queue and its disk carry for the driver: `queuedata` and `private_data`.
pub(super) struct QueueContext<T: Operations> {
    pub(super) device: Arc<T>,
    pub(super) io: Pin<KBox<IoCell<T::Io>>>,
    pub(super) revision: Pin<KBox<Revision<T>>>,
    /// How many [`UeventsSuppressed`] there are.
    uevents_suppressed: Pin<KBox<Mutex<usize>>>,
    /// The class of `mq_flush_lock`, for lockdep: a request may end while the disk below, maybe one of
    /// the same driver, holds its own.
    pub(super) flush_class: Pin<KBox<LockClassKey>>,
    /// One for each hardware context; never moved, as those point to them.
    pub(super) hw: KVec<T::HwData>,
}

/// What is to be known of a disk when it is made.
pub(crate) struct DiskOptions<'a> {
    /// The major number.
    pub(crate) major: u32,
    /// The minor number of the whole disk.
    pub(crate) first_minor: u32,
    /// How many minors the disk and its partitions have; with 1, partitions get numbers elsewhere.
    pub(crate) minors: u32,
    /// The name, at most 31 bytes.
    pub(crate) name: fmt::Arguments<'a>,
    /// Whether the kernel looks for partitions by itself.
    pub(crate) scan_partitions: bool,
    /// The longest request, in sectors of 512 bytes, unless user space asks for longer ones.
    pub(crate) max_sectors: u32,
    /// The longest that it may ask for, likewise.
    pub(crate) max_hw_sectors: u32,
    /// How many segments a request has at most. They may be of any size.
    pub(crate) max_segments: u16,
}

/// The reference to a disk that `__blk_mq_alloc_disk()` gave. Dropping it frees the disk, once no
/// other reference is left.
///
/// The last reference must be this one: releasing a disk reads its `fops`, which are part of the
/// module, and other holders of references, such as openers that have not noticed yet that the disk
/// is gone, or tasks that are to be throttled for it (`current->throttle_disk`), hold no reference
/// to the module. So module exit drops all `DiskRef`s, and waits here. It is this thread that
/// releases the disk then, and no code of the module runs in the release: with a `free_disk` that
/// counts live disks, module exit could not know whether the last call of it has returned.
///
/// # Invariants
///
/// `raw` was made by `__blk_mq_alloc_disk()`, and is not freed. It was not added, or deleted since,
/// except while a [`RegisteredDisk`] owns this. `queuedata` and `private_data` are one
/// `QueueContext<T>` made by `KBox::into_raw()`.
pub(crate) struct DiskRef<T: DiskOperations> {
    raw: NonNull<bindings::gendisk>,
    _driver: PhantomData<T>,
}

// SAFETY: Any thread may use and free a disk; its context is `Send + Sync`.
unsafe impl<T: DiskOperations> Send for DiskRef<T> {}
// SAFETY: All methods that take `&self` are those of `GenDisk`, which is `Sync`, or read counters.
unsafe impl<T: DiskOperations> Sync for DiskRef<T> {}

impl<T: DiskOperations> DiskRef<T> {
    /// Returns whether there are other references to the disk. Once false, it stays false: nothing
    /// finds a disk that was not added, or was deleted.
    pub(crate) fn is_shared(&self) -> bool {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { ffi::rnull_loop_disk_is_shared(self.raw.as_ptr()) }
    }
}

impl<T: DiskOperations> Drop for DiskRef<T> {
    fn drop(&mut self) {
        let start = Instant::<Monotonic>::now();
        let mut told = false;
        while self.is_shared() {
            if !told && start.elapsed() >= Delta::from_secs(10) {
                told = true;
                pr_warn!("{}: removed, but still in use: waiting\n", self.name());
            }
            fsleep(Delta::from_millis(1));
        }
        // SAFETY: By the type invariant.
        let context = unsafe { (*self.raw.as_ptr()).private_data }.cast::<QueueContext<T>>();
        // SAFETY: By the type invariant this value holds a reference, and it ends here. It is the
        // last one, so this releases the disk and the queue, in this thread.
        unsafe { bindings::put_disk(self.raw.as_ptr()) };
        // SAFETY: By the type invariant `context` comes from `KBox::into_raw()`; disk and queue,
        // which used it, are gone.
        drop(unsafe { KBox::from_raw(context) });
    }
}

impl<T: DiskOperations> Deref for DiskRef<T> {
    type Target = GenDisk<T>;

    fn deref(&self) -> &GenDisk<T> {
        // SAFETY: By the type invariant the disk satisfies the invariants of `GenDisk`.
        unsafe { GenDisk::from_raw(self.raw.as_ptr()) }
    }
}

/// A disk that is not registered: only its maker knows of it. Fields are dropped in the order of
/// their declaration: releasing a disk that was never added needs its tag set.
///
/// # Invariants
///
/// The disk and its queue were made for `tags`, and the disk was not added.
pub(crate) struct Disk<T: DiskOperations> {
    disk: DiskRef<T>,
    tags: Pin<KBox<TagSet<T>>>,
}

impl<T: DiskOperations> Disk<T> {
    /// Makes the disk of `device`, which serves the requests of `tags`.
    ///
    /// May sleep. Fails with `EINVAL` for a name that is too long, and with `ENOMEM`.
    pub(crate) fn new(
        tags: Pin<KBox<TagSet<T>>>,
        device: Arc<T>,
        options: DiskOptions<'_>,
    ) -> Result<Self> {
        let io = KBox::pin_init(IoCell::new(), GFP_KERNEL)?;
        let mut hw = KVec::new();
        for _ in 0..tags.nr_hw_queues() {
            hw.push(T::new_hw_data()?, GFP_KERNEL)?;
        }
        let context = QueueContext {
            device,
            io,
            revision: KBox::pin_init(Revision::new(), GFP_KERNEL)?,
            uevents_suppressed: KBox::pin_init(
                new_mutex!(0, "QueueContext::uevents_suppressed"),
                GFP_KERNEL,
            )?,
            flush_class: KBox::pin_init(LockClassKey::new_dynamic(), GFP_KERNEL)?,
            hw,
        };
        let context = KBox::new(context, GFP_KERNEL)?;
        let mut limits = bindings::queue_limits {
            max_user_sectors: options.max_sectors,
            max_hw_sectors: options.max_hw_sectors,
            max_segments: options.max_segments,
            max_segment_size: u32::MAX,
            ..pin_init::zeroed()
        };
        let context = KBox::into_raw(context);
        // SAFETY: The tag set is set up and outlives the use of it (see `Disk` and
        // `RegisteredDisk`), the limits are valid for the call, and the lock class is static.
        let raw = from_err_ptr(unsafe {
            bindings::__blk_mq_alloc_disk(
                tags.raw(),
                &mut limits,
                context.cast(),
                kernel::static_lock_class!().as_ptr(),
            )
        })
        .inspect_err(|_| {
            // SAFETY: `context` comes from `into_raw` above, and no disk has it.
            drop(unsafe { KBox::from_raw(context) });
        })?;
        // SAFETY: `__blk_mq_alloc_disk()` returns an error or a disk.
        let mut raw = unsafe { NonNull::new_unchecked(raw) };
        // SAFETY: The disk is new, and nobody else knows of it.
        unsafe { raw.as_mut() }.private_data = context.cast();
        // SAFETY: `context` comes from `into_raw` above. There are no requests before the disk is
        // added, and `Live` cancels the revision before the disk goes.
        unsafe { (*context).revision.set_disk(raw) };
        // INVARIANT: As above.
        let mut this = Self {
            disk: DiskRef {
                raw,
                _driver: PhantomData,
            },
            tags,
        };
        // SAFETY: The disk is valid, and nobody else knows of it.
        let disk = unsafe { this.disk.raw.as_mut() };
        disk.fops = Fops::<T>::table();
        disk.major = options.major.try_into()?;
        disk.first_minor = options.first_minor.try_into()?;
        disk.minors = options.minors.try_into()?;
        disk.events = bindings::DISK_EVENT_MEDIA_CHANGE as u16;
        disk.event_flags = bindings::DISK_EVENT_FLAG_UEVENT as u16;
        let mut name =
            kernel::str::NullTerminatedFormatter::new(&mut disk.disk_name).ok_or(EINVAL)?;
        fmt::Write::write_fmt(&mut name, options.name).map_err(|_| EINVAL)?;
        this.suppress_partition_scan(!options.scan_partitions);
        Ok(this)
    }

    /// Registers the disk: from here on everybody can open it.
    ///
    /// May sleep; `T::open` may be called before this returns. Fails with what
    /// `device_add_disk()` returns, `EEXIST` or `EBUSY` for numbers or a name that are taken.
    pub(crate) fn add(self) -> Result<RegisteredDisk<T>> {
        let raw = self.disk.raw;
        // SAFETY: By the type invariant the disk is set up and not added.
        to_result(unsafe {
            bindings::device_add_disk(core::ptr::null_mut(), raw.as_ptr(), core::ptr::null_mut())
        })?;
        // INVARIANT: It is added now.
        Ok(RegisteredDisk {
            live: Live(raw, PhantomData),
            disk: self.disk,
            tags: self.tags,
        })
    }
}

impl<T: DiskOperations> Deref for Disk<T> {
    type Target = GenDisk<T>;

    fn deref(&self) -> &GenDisk<T> {
        &self.disk
    }
}

/// Deletes a disk when it is dropped.
///
/// # Invariants
///
/// The disk was added, and is not deleted; it, its context and its tag set are valid.
struct Live<T: DiskOperations>(NonNull<bindings::gendisk>, PhantomData<T>);

// SAFETY: Any thread may delete a disk.
unsafe impl<T: DiskOperations> Send for Live<T> {}
// SAFETY: There are no methods that take `&self`.
unsafe impl<T: DiskOperations> Sync for Live<T> {}

impl<T: DiskOperations> Drop for Live<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the disk is added and not deleted.
        unsafe { bindings::del_gendisk(self.0.as_ptr()) };
        // SAFETY: By the type invariant the disk and its context are valid.
        unsafe { GenDisk::<T>::from_raw(self.0.as_ptr()) }
            .context()
            .revision
            .cancel();
        // No request can be made any more, but a call of `->queue_rq` may still be on its way out;
        // it uses the context and the tag set.
        // SAFETY: By the type invariant the queue and its tag set are valid.
        unsafe { bindings::blk_mq_wait_quiesce_done((*(*self.0.as_ptr()).queue).tag_set) };
    }
}

/// A disk that is visible to user space. Dropping it deletes it, even while it is open, and frees
/// it, which waits for other references. Fields are dropped in the order of their declaration.
///
/// # Invariants
///
/// As of [`Disk`], but the disk was added, and not deleted yet. `live` names the same disk.
pub(crate) struct RegisteredDisk<T: DiskOperations> {
    live: Live<T>,
    disk: DiskRef<T>,
    tags: Pin<KBox<TagSet<T>>>,
}

impl<T: DiskOperations> RegisteredDisk<T> {
    /// Deletes the disk, but does not wait for other references. May sleep.
    pub(crate) fn delete(self) -> DiskRef<T> {
        let Self { live, disk, tags } = self;
        drop(live);
        // `del_gendisk()` took the queue's hardware contexts down, so nothing needs the tag set any
        // more.
        drop(tags);
        disk
    }
}

impl<T: DiskOperations> Deref for RegisteredDisk<T> {
    type Target = GenDisk<T>;

    fn deref(&self) -> &GenDisk<T> {
        &self.disk
    }
}

/// A disk of driver `T`, registered or not.
///
/// # Invariants
///
/// A reference points at a disk made by [`Disk::new`] that is not freed, so its `private_data` and
/// the `queuedata` of its queue are one `QueueContext<T>`.
#[repr(transparent)]
pub(crate) struct GenDisk<T: DiskOperations>(Opaque<bindings::gendisk>, PhantomData<T>);

// SAFETY: The methods below may be called by any thread at any time.
unsafe impl<T: DiskOperations> Sync for GenDisk<T> {}

impl<T: DiskOperations> GenDisk<T> {
    /// # Safety
    ///
    /// `raw` must satisfy the invariants of [`GenDisk`] for `'a`.
    pub(crate) unsafe fn from_raw<'a>(raw: *mut bindings::gendisk) -> &'a Self {
        // SAFETY: By the function's requirements; `GenDisk` is transparent.
        unsafe { &*raw.cast::<Self>() }
    }

    /// The disk that `bdev` is, or is a partition of, if it is one of driver `T`.
    pub(crate) fn of(bdev: &BlockDevice) -> Option<&Self> {
        let disk = bdev.disk();
        // SAFETY: The disk of a `BlockDevice` is valid; its `fops` do not change.
        let ours = core::ptr::eq(unsafe { (*disk).fops }, Fops::<T>::table());
        // SAFETY: Only `Disk::new` gives these `fops` to a disk, and does it first of all.
        ours.then(|| unsafe { Self::from_raw(disk) })
    }

    pub(super) fn raw(&self) -> *mut bindings::gendisk {
        self.0.get()
    }

    pub(super) fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type invariant the disk is valid; its queue does not change.
        unsafe { (*self.raw()).queue }
    }

    pub(super) fn context(&self) -> &QueueContext<T> {
        // SAFETY: By the type invariant.
        unsafe { &*(*self.raw()).private_data.cast::<QueueContext<T>>() }
    }

    /// The device that the disk stands for.
    pub(crate) fn device(&self) -> &Arc<T> {
        &self.context().device
    }

    /// The disk as a block device: `part0`.
    pub(crate) fn part0(&self) -> &BlockDevice {
        // SAFETY: By the type invariant the disk is valid, and `part0` lives as long.
        unsafe { BlockDevice::from_raw((*self.raw()).part0) }
    }

    /// The disk in the device model: `disk_to_dev()`.
    pub(crate) fn dev(&self) -> ARef<Device> {
        // SAFETY: By the type invariant the disk is valid, and its device has been initialized.
        unsafe { Device::get_device(ffi::rnull_loop_disk_to_dev(self.raw())) }
    }

    /// Its name: `loop0`.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: By the type invariant the disk is valid; its name does not change, and is
        // NUL-terminated.
        unsafe { CStr::from_char_ptr((&raw const (*self.raw()).disk_name).cast()) }
    }

    /// How many openers the disk has: `disk_openers()`.
    pub(crate) fn openers(&self) -> u32 {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { ffi::rnull_loop_disk_openers(self.raw()) }
    }

    /// The logical block size of the disk, in bytes.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: By the type invariant the queue is valid; a change that comes at the same time
        // is seen or not.
        unsafe { core::ptr::read_volatile(&raw const (*self.queue()).limits.logical_block_size) }
    }

    /// Calls `visit` with the disk, and then with each of its partitions that stays meanwhile. May sleep.
    fn for_each_part(&self, visit: impl Fn(&BlockDevice)) {
        let mut partno = 0;
        // SAFETY: By the type invariant the disk is valid.
        let next = |partno| unsafe { ffi::rnull_loop_get_part(self.raw(), partno) };
        // SAFETY: The helper returns a block device with a reference, or null.
        while let Some(part) = unsafe { BlockDevice::from_kept(next(&mut partno)) } {
            visit(&part);
            partno += 1;
        }
    }

    /// Writes back what is cached of the disk and of its partitions, which have caches of their own. What
    /// cannot be written is reported to those who wrote it. May sleep.
    pub(crate) fn write_back(&self) {
        self.for_each_part(|part| {
            let _ = part.sync();
        });
    }

    /// Drops what is cached and clean of the disk and of its partitions: [`BlockDevice::invalidate`]. May
    /// sleep.
    pub(crate) fn drop_cached(&self) {
        self.for_each_part(BlockDevice::invalidate);
    }

    /// Keeps exclusive openers of the disk and of its partitions away until the claim is dropped.
    ///
    /// The caller has `bdev` open as `mode` says, and may hold the disk exclusively already; see
    /// [`BlockDevice::claim`].
    pub(crate) fn claim_for(&self, bdev: &BlockDevice, mode: Mode) -> Result<Option<Claim<'_>>> {
        if mode.is_exclusive() && core::ptr::eq(bdev, self.part0()) {
            return Ok(None);
        }
        self.part0().claim().map(Some)
    }

    /// The size of the disk, in sectors of 512 bytes: `get_capacity()`.
    pub(crate) fn capacity(&self) -> u64 {
        // SAFETY: By the type invariant the disk is valid, and `part0` lives as long; a change that comes
        // at the same time is seen or not.
        unsafe { core::ptr::read_volatile(&raw const (*(*self.raw()).part0).bd_nr_sectors) }
    }

    /// Sets the size, in sectors of 512 bytes, and logs a change. Sends no event. Any context.
    pub(crate) fn set_capacity(&self, sectors: u64) {
        let old = self.capacity();
        // SAFETY: By the type invariant the disk is valid.
        unsafe { bindings::set_capacity(self.raw(), sectors) };
        if sectors != old {
            pr_info!(
                "{}: detected capacity change from {} to {}\n",
                self.name(),
                old,
                sectors
            );
        }
    }

    /// Makes the disk read-only, or not, for its openers to come.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { bindings::set_disk_ro(self.raw(), read_only) };
    }

    /// Says that the disk has other content now: a uevent, a new `diskseq`, and no cached data.
    /// May sleep.
    pub(crate) fn force_media_change(&self) {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { bindings::disk_force_media_change(self.raw()) };
    }

    /// Sets the size to 0 and drops what is cached: `invalidate_disk()`. May sleep.
    pub(crate) fn invalidate(&self) {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { bindings::invalidate_disk(self.raw()) };
    }

    /// Sends a `KOBJ_CHANGE` event, unless events are suppressed. May sleep.
    pub(crate) fn notify_change(&self) {
        self.send_change(None);
    }

    /// As [`notify_change`](Self::notify_change), but says that the size is another, as
    /// `set_capacity_and_notify()` does.
    pub(crate) fn notify_resize(&self) {
        self.send_change(Some(c"RESIZE=1"));
    }

    fn send_change(&self, variable: Option<&CStr>) {
        let mut variables = [
            variable.map_or(core::ptr::null_mut(), |text| text.as_char_ptr().cast_mut()),
            core::ptr::null_mut(),
        ];
        // SAFETY: By the type invariant the disk is valid, and so is its device's kobject. The list
        // of variables, which are not changed, is ended by null. An event that cannot be sent is
        // lost, as in C.
        unsafe {
            bindings::kobject_uevent_env(
                &raw mut (*ffi::rnull_loop_disk_to_dev(self.raw())).kobj,
                bindings::kobject_action_KOBJ_CHANGE,
                variables.as_mut_ptr(),
            )
        };
    }

    /// Drops uevents of the disk, and those of partitions that are added, until the guard is
    /// dropped; whoever causes them. Events of partitions that are there, or go, are sent. May sleep;
    /// a leaf: no lock is taken under it.
    pub(crate) fn suppress_uevents(&self) -> UeventsSuppressed<'_, T> {
        let mut count = self.context().uevents_suppressed.lock();
        *count = count.saturating_add(1);
        // SAFETY: By the type invariant the disk is valid. The lock keeps other guards away; the
        // kernel itself writes bits of that word without one, as with drivers in C.
        unsafe { ffi::rnull_loop_set_uevent_suppress(self.raw(), true) };
        // INVARIANT: Counted above.
        UeventsSuppressed(self)
    }

    /// Switches looking for partitions by the kernel off or on: `GD_SUPPRESS_PART_SCAN`.
    pub(crate) fn suppress_partition_scan(&self, on: bool) {
        // SAFETY: By the type invariant the disk is valid; `state` is changed by atomic bit
        // operations alone.
        unsafe {
            let state = &raw mut (*self.raw()).state;
            let bit = bindings::GD_SUPPRESS_PART_SCAN as c_ulong;
            if on {
                bindings::set_bit(bit, state);
            } else {
                bindings::clear_bit(bit, state);
            }
        }
    }

    /// Takes the lock under which the disk is opened and closed. May sleep.
    ///
    /// Must come before all locks of the driver; see [`DiskOperations::open`].
    pub(crate) fn lock_open(&self) -> OpenMutex<'_, T> {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { bindings::mutex_lock(&raw mut (*self.raw()).open_mutex) };
        // INVARIANT: Taken by this value.
        OpenMutex {
            disk: self,
            ours: true,
            _not_send: NotThreadSafe,
        }
    }
}

/// Uevents of a disk are dropped while this lives.
///
/// # Invariants
///
/// Counted in the disk's `uevents_suppressed`.
#[must_use = "events come again at once when this is dropped"]
pub(crate) struct UeventsSuppressed<'a, T: DiskOperations>(&'a GenDisk<T>);

impl<T: DiskOperations> Drop for UeventsSuppressed<'_, T> {
    fn drop(&mut self) {
        let mut count = self.0.context().uevents_suppressed.lock();
        *count = count.saturating_sub(1);
        if *count == 0 {
            // SAFETY: The disk of a reference is valid; the lock is as in `suppress_uevents`.
            unsafe { ffi::rnull_loop_set_uevent_suppress(self.0.raw(), false) };
        }
    }
}

/// Proof that the `open_mutex` of a disk is held.
///
/// # Invariants
///
/// This thread holds the lock while the value lives; with `ours` the value has to release it.
pub(crate) struct OpenMutex<'a, T: DiskOperations> {
    disk: &'a GenDisk<T>,
    ours: bool,
    _not_send: NotThreadSafe,
}

impl<T: DiskOperations> OpenMutex<'_, T> {
    /// Drops all partitions, and reads the partition table: `bdev_disk_changed()`. If there is one,
    /// the block layer sends a `KOBJ_CHANGE` event of the disk before it adds partitions. May
    /// sleep. Fails with `EBUSY` while a partition is open.
    pub(crate) fn reread_partitions(&self) -> Result {
        // SAFETY: The disk of a reference is valid, and by the type invariant the lock is held.
        to_result(unsafe { bindings::bdev_disk_changed(self.disk.raw(), false) })
    }

    /// Returns whether the disk has partitions.
    pub(crate) fn has_partitions(&self) -> bool {
        // SAFETY: The disk of a reference is valid. By the type invariant the lock is held, under
        // which partitions are added and dropped.
        unsafe { ffi::rnull_loop_disk_has_partitions(self.disk.raw()) }
    }
}

impl<T: DiskOperations> Deref for OpenMutex<'_, T> {
    type Target = GenDisk<T>;

    fn deref(&self) -> &GenDisk<T> {
        self.disk
    }
}

impl<T: DiskOperations> Drop for OpenMutex<'_, T> {
    fn drop(&mut self) {
        if self.ours {
            // SAFETY: By the type invariant the lock is held, and ours to release.
            unsafe { bindings::mutex_unlock(&raw mut (*self.disk.raw()).open_mutex) };
        }
    }
}

/// `struct block_device_operations` of a driver `T`.
struct Fops<T>(PhantomData<T>);

impl<T: DiskOperations> Fops<T> {
    /// # Safety
    ///
    /// Called by the block layer alone, for a disk whose `fops` are these, under its `open_mutex`.
    unsafe extern "C" fn open(disk: *mut bindings::gendisk, mode: bindings::blk_mode_t) -> c_int {
        // SAFETY: By the function's requirements; only `Disk::new` hands these `fops` out.
        let disk = unsafe { GenDisk::<T>::from_raw(disk) };
        from_result(|| T::open(disk, Mode(mode)).map(|()| 0))
    }

    /// # Safety
    ///
    /// As of `open`.
    unsafe extern "C" fn release(disk: *mut bindings::gendisk) {
        // SAFETY: As in `open`.
        let disk = unsafe { GenDisk::<T>::from_raw(disk) };
        // INVARIANT: By the function's requirements the lock is held; the caller releases it.
        T::release(&OpenMutex {
            disk,
            ours: false,
            _not_send: NotThreadSafe,
        });
    }

    /// # Safety
    ///
    /// Called by the block layer alone, for an open block device of a disk whose `fops` are these.
    unsafe extern "C" fn ioctl(
        bdev: *mut bindings::block_device,
        mode: bindings::blk_mode_t,
        cmd: c_uint,
        arg: c_ulong,
    ) -> c_int {
        // SAFETY: By the function's requirements.
        let (disk, bdev) = unsafe { Self::from_bdev(bdev) };
        from_result(|| T::ioctl(disk, bdev, Mode(mode), cmd, arg))
    }

    /// # Safety
    ///
    /// As of `ioctl`.
    unsafe extern "C" fn compat_ioctl(
        bdev: *mut bindings::block_device,
        mode: bindings::blk_mode_t,
        cmd: c_uint,
        arg: c_ulong,
    ) -> c_int {
        // SAFETY: By the function's requirements.
        let (disk, bdev) = unsafe { Self::from_bdev(bdev) };
        from_result(|| T::compat_ioctl(disk, bdev, Mode(mode), cmd, arg))
    }

    /// # Safety
    ///
    /// As of `ioctl`; `'a` must end with the call.
    unsafe fn from_bdev<'a>(
        bdev: *mut bindings::block_device,
    ) -> (&'a GenDisk<T>, &'a BlockDevice) {
        // SAFETY: The block device is open, so it and its disk are valid; the disk's `fops` are
        // these, which only `Disk::new` hands out.
        unsafe {
            (
                GenDisk::from_raw((*bdev).bd_disk),
                BlockDevice::from_raw(bdev),
            )
        }
    }

    /// The table, which is the same, and at the same place, for all disks of `T`.
    ///
    /// Not inlined, so that there is one copy of the constant.
    #[inline(never)]
    fn table() -> &'static bindings::block_device_operations {
        const { &Self::FOPS }
    }

    const FOPS: bindings::block_device_operations = bindings::block_device_operations {
        owner: <crate::LocalModule as kernel::ModuleMetadata>::THIS_MODULE.as_ptr(),
        open: Some(Self::open),
        release: Some(Self::release),
        ioctl: Some(Self::ioctl),
        compat_ioctl: Some(Self::compat_ioctl),
        ..pin_init::zeroed()
    };
}
