// SPDX-License-Identifier: GPL-2.0

//! Disks, which are set up first, and visible afterwards.
//!
//! C headers: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h),
//! [`block/genhd.c`](srctree/block/genhd.c)

use super::{
    backend::BackendCell,
    queue::Revalidation,
    request::{
        Context,
        Operations, //
    },
    sysfs::AttributeGroup,
    tag_set::TagSet,
    trace, //
};
use crate::kern::{
    bdev::{
        BlockDevice,
        Claim, //
    },
    compat,
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
    fmt,
    fs::File,
    new_mutex,
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

/// The mode in which a block device is open: `blk_mode_t`.
#[derive(Clone, Copy)]
pub(crate) struct Mode(bindings::blk_mode_t);

impl Mode {
    /// The mode of an [`OpenBlockDevice`](crate::kern::bdev::OpenBlockDevice).
    pub(crate) const READ_WRITE: Self = Self(ffi::BLK_OPEN_READ | ffi::BLK_OPEN_WRITE);

    /// Returns whether the block device is open for writing: `BLK_OPEN_WRITE`.
    pub(crate) fn is_write(self) -> bool {
        self.0 & ffi::BLK_OPEN_WRITE != 0
    }

    /// Returns whether the opener is the exclusive owner: `BLK_OPEN_EXCL`.
    pub(crate) fn is_exclusive(self) -> bool {
        self.0 & ffi::BLK_OPEN_EXCL != 0
    }
}

/// The operations of a driver on its disks; implemented by the type that a disk stands for.
///
/// Mirrors `struct block_device_operations`.
pub(crate) trait DiskOperations: Send + Sync + Sized + 'static {
    /// The device that requests of the disk are for.
    type Queue: Operations;

    /// The directory of attributes in sysfs that each disk has.
    const ATTRIBUTES: &'static AttributeGroup<Self>;

    /// Opens the disk or a partition of it. May sleep; the disk's `open_mutex` is held.
    fn open(disk: &GenDisk<Self>, mode: Mode) -> Result;

    /// Closes the disk or a partition of it; called for each close. May sleep; the disk's
    /// `open_mutex` is held, of which `disk` is proof.
    fn release(disk: &OpenMutex<'_, Self>);

    /// Carries out an ioctl that the block layer does not handle, on `bdev`, which is the disk or a
    /// partition of it. May sleep; no locks held.
    fn ioctl(
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        cmd: u32,
        arg: usize,
    ) -> Result<c_int>;

    /// Carries out an ioctl of a 32-bit program, as [`ioctl`](Self::ioctl) does.
    fn compat_ioctl(
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        cmd: u32,
        arg: usize,
    ) -> Result<c_int>;

    /// Adapts the disk to changes that requests have found. Called from a workqueue some time after
    /// [`Request::queue_revalidation`](super::Request::queue_revalidation), once for all requests
    /// since the last call. May sleep; no locks held.
    fn revalidate(disk: &GenDisk<Self>);
}

/// The `private_data` of a disk.
pub(super) struct DiskContext<T: DiskOperations> {
    device: Arc<T>,
    /// The `queuedata` of the queue; never moved, because the queue points to it.
    pub(super) queue: KBox<Context<T::Queue>>,
    /// The number of [`UeventsSuppressed`]; `None` from when the disk is deleted.
    uevents_suppressed: Pin<KBox<Mutex<Option<usize>>>>,
}

impl<T: DiskOperations> DiskContext<T> {
    /// Makes the context of a disk of `device`, whose queue is for `queue`.
    fn new(device: Arc<T>, queue: Arc<T::Queue>) -> Result<KBox<Self>> {
        let queue = Context::<T::Queue> {
            device: queue,
            backend: KBox::pin_init(BackendCell::new(), GFP_KERNEL)?,
            revalidation: KBox::pin_init(Revalidation::new(revalidate::<T>), GFP_KERNEL)?,
            flush_class: KBox::pin_init(LockClassKey::new_dynamic(), GFP_KERNEL)?,
        };
        let context = Self {
            device,
            queue: KBox::new(queue, GFP_KERNEL)?,
            uevents_suppressed: KBox::pin_init(
                new_mutex!(Some(0), "DiskContext::uevents_suppressed"),
                GFP_KERNEL,
            )?,
        };
        Ok(KBox::new(context, GFP_KERNEL)?)
    }
}

/// The parameters of a new disk.
pub(crate) struct DiskOptions<'a> {
    /// The major number.
    pub(crate) major: u32,
    /// The minor number of the whole disk.
    pub(crate) first_minor: u32,
    /// The number of minors of the disk and its partitions; with 1, partitions have extended device
    /// numbers (`BLOCK_EXT_MAJOR`).
    pub(crate) minors: u32,
    /// The name, at most 31 bytes.
    pub(crate) name: fmt::Arguments<'a>,
    /// True if the kernel scans for partitions by itself.
    pub(crate) scan_partitions: bool,
    /// The maximum length of a request, in sectors of 512 bytes, until user space sets another one.
    pub(crate) max_sectors: u32,
    /// The maximum of the lengths that user space may set, in sectors of 512 bytes.
    pub(crate) max_hw_sectors: u32,
    /// The maximum number of segments of a request. They may be of any size.
    pub(crate) max_segments: u16,
}

/// The first reference to a disk. Dropping it waits until no other reference is left, and frees the
/// disk.
///
/// This reference must be the last one. The release of a disk reads its `fops`, which are part of
/// the module, and other holders of references hold no reference to the module: openers that find
/// the disk dead, and tasks that are throttled for it (`current->throttle_disk`). So module exit
/// drops all `DiskRef`s and waits here, and this thread releases the disks. No code of the module
/// runs in the release: with a `free_disk` that counts live disks, module exit could not know
/// whether its last call has returned.
///
/// # Invariants
///
/// `__blk_mq_alloc_disk()` has made `raw`, which is not freed yet. The disk was never added, or is
/// deleted, except while a [`Disk`] owns this. `private_data` is a `DiskContext<T>` made
/// by `KBox::into_raw()`, and `queuedata` is its field `queue`.
pub(crate) struct DiskRef<T: DiskOperations> {
    raw: NonNull<bindings::gendisk>,
    // Not `PhantomData<T>`: this value may move even if a `T` may not.
    _driver: PhantomData<fn(T)>,
}

// SAFETY: Any thread may use and free a disk; its context is `Send + Sync`.
unsafe impl<T: DiskOperations> Send for DiskRef<T> {}
// SAFETY: The methods that take `&self` are those of `GenDisk`, which is `Sync`, and one that reads
// counters.
unsafe impl<T: DiskOperations> Sync for DiskRef<T> {}

impl<T: DiskOperations> DiskRef<T> {
    /// Makes a disk that is not added.
    ///
    /// # Safety
    ///
    /// The caller keeps `tags` until the disk is released, or is added and deleted.
    unsafe fn new(
        tags: &TagSet<T::Queue>,
        mut context: KBox<DiskContext<T>>,
        options: DiskOptions<'_>,
    ) -> Result<Self> {
        let queuedata: *mut Context<T::Queue> = &mut *context.queue;
        let mut limits = bindings::queue_limits {
            max_user_sectors: options.max_sectors,
            max_hw_sectors: options.max_hw_sectors,
            max_segments: options.max_segments,
            max_segment_size: u32::MAX,
            ..pin_init::zeroed()
        };
        // SAFETY: The tag set is set up. By the function's requirements it stays until the queue
        // has stopped using it. The limits are valid for the call, and the lock class is static.
        let raw = from_err_ptr(unsafe {
            bindings::__blk_mq_alloc_disk(
                tags.raw(),
                &mut limits,
                queuedata.cast(),
                kernel::static_lock_class!().as_ptr(),
            )
        })?;
        // SAFETY: `__blk_mq_alloc_disk()` returns an error pointer or a disk, and never null.
        let mut raw = unsafe { NonNull::new_unchecked(raw) };
        // SAFETY: There are no requests before the disk is added, and `Live` cancels the
        // revalidation after the disk is deleted, and before it is released.
        unsafe { context.queue.revalidation.set_disk(raw) };
        // SAFETY: The disk is new, and nothing else can find it.
        let disk = unsafe { raw.as_mut() };
        disk.private_data = KBox::into_raw(context).cast();
        // INVARIANT: The disk was made above, and has its context. It is not added.
        let this = Self {
            raw,
            _driver: PhantomData,
        };
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

    /// Returns whether there are other references to the disk, which is not added. Once false, this
    /// stays false, because only an added disk can be found.
    pub(crate) fn is_shared(&self) -> bool {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { ffi::rnull_loop_disk_is_shared(self.raw.as_ptr()) }
    }
}

impl<T: DiskOperations> Drop for DiskRef<T> {
    fn drop(&mut self) {
        let start = Instant::<Monotonic>::now();
        let mut warned = false;
        while self.is_shared() {
            if !warned && start.elapsed() >= Delta::from_secs(10) {
                warned = true;
                pr_warn!("{}: removed, but still in use: waiting\n", self.name());
            }
            fsleep(Delta::from_millis(1));
        }
        // SAFETY: By the type invariant the disk is valid.
        let context = unsafe { (*self.raw.as_ptr()).private_data }.cast::<DiskContext<T>>();
        // SAFETY: By the type invariant this value holds a reference, which ends here. It is the
        // last one, so the call releases the disk and the queue, in this thread.
        unsafe { bindings::put_disk(self.raw.as_ptr()) };
        // SAFETY: By the type invariant `context` comes from `KBox::into_raw()`. The disk and the
        // queue, which used it, are released.
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

/// A guard that deletes a disk when it is dropped.
///
/// # Invariants
///
/// The disk is added and not deleted. The disk, its context and its tag set are valid.
struct Live<T: DiskOperations>(NonNull<bindings::gendisk>, PhantomData<fn(T)>);

// SAFETY: Any thread may delete a disk.
unsafe impl<T: DiskOperations> Send for Live<T> {}
// SAFETY: No method takes `&self`.
unsafe impl<T: DiskOperations> Sync for Live<T> {}

impl<T: DiskOperations> Drop for Live<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the disk and its context are valid.
        let disk = unsafe { GenDisk::<T>::from_raw(self.0.as_ptr()) };
        *disk.context().uevents_suppressed.lock() = None;
        // SAFETY: By the type invariant the disk is added and not deleted.
        unsafe { bindings::del_gendisk(self.0.as_ptr()) };
        disk.queue_context().revalidation.cancel();
        // No request can be made any more, but a call of `->queue_rq`, which uses the context and
        // the tag set, may not have returned yet.
        // SAFETY: By the type invariant the disk is valid, and so is its queue.
        let tag_set = unsafe { (*(*self.0.as_ptr()).queue).tag_set };
        // SAFETY: By the type invariant the tag set is valid.
        unsafe { bindings::blk_mq_wait_quiesce_done(tag_set) };
        // The end of the last request may not have returned, either.
        // SAFETY: May be called in any context that may sleep.
        unsafe { ffi::rnull_loop_flush_completions() };
    }
}

/// A disk that is visible to user space. Dropping it deletes the disk, even while it is open, waits
/// for other references, and frees it. Fields are dropped in the order of their declaration.
///
/// # Invariants
///
/// The disk and its queue were made for `tags`, and the disk is added and not deleted. `live` is a
/// guard of the same disk.
pub(crate) struct Disk<T: DiskOperations> {
    live: Live<T>,
    disk: DiskRef<T>,
    tags: Pin<KBox<TagSet<T::Queue>>>,
}

impl<T: DiskOperations> Disk<T> {
    /// Adds the disk of `device`, whose requests have the tags of `tags` and are for `queue`.
    ///
    /// May sleep; `T::open` and the attributes may be called before this returns. Fails with
    /// `EINVAL` for a name that is too long, with `ENOMEM`, and as `device_add_disk()` does, with
    /// `EEXIST` or `EBUSY` for numbers or a name in use.
    pub(crate) fn add(
        tags: Pin<KBox<TagSet<T::Queue>>>,
        device: Arc<T>,
        queue: Arc<T::Queue>,
        options: DiskOptions<'_>,
    ) -> Result<Self> {
        let context = DiskContext::new(device, queue)?;
        // SAFETY: `tags` goes with the disk. On failure the disk is released before the parameter
        // `tags`, which is dropped after local variables.
        let disk = unsafe { DiskRef::new(&tags, context, options) }?;
        let raw = disk.raw;
        let groups: &'static [_; 2] = const { &[Some(T::ATTRIBUTES), None] };
        // CAST: A reference to an `AttributeGroup`, which is a transparent wrapper, is a pointer to
        // the C type, and `None` is null. The block layer takes a mutable pointer to the first, but
        // does not change them.
        let groups = groups.as_ptr().cast_mut().cast();
        // SAFETY: The disk is set up, and was not added yet. The groups are static and end with
        // null. By their type invariant their attributes are for disks of `T`.
        to_result(unsafe {
            bindings::device_add_disk(core::ptr::null_mut(), raw.as_ptr(), groups)
        })?;
        // INVARIANT: The disk was made for `tags`, and is added now.
        Ok(Self {
            live: Live(raw, PhantomData),
            disk,
            tags,
        })
    }

    /// Deletes the disk without waiting for other references. May sleep.
    pub(crate) fn delete(self) -> DiskRef<T> {
        let Self { live, disk, tags } = self;
        drop(live);
        // `del_gendisk()` has taken the queue's hardware contexts down, so nothing needs the tag
        // set any more.
        drop(tags);
        disk
    }
}

impl<T: DiskOperations> Deref for Disk<T> {
    type Target = GenDisk<T>;

    fn deref(&self) -> &GenDisk<T> {
        &self.disk
    }
}

/// A disk of driver `T`.
///
/// # Invariants
///
/// A reference points at a disk that [`Disk::add`] has made and that is not freed. So its
/// `private_data` is a `DiskContext<T>`, and its queue is valid.
#[repr(transparent)]
pub(crate) struct GenDisk<T: DiskOperations>(Opaque<bindings::gendisk>, PhantomData<T>);

// SAFETY: Any thread may call the methods below at any time.
unsafe impl<T: DiskOperations> Sync for GenDisk<T> {}

impl<T: DiskOperations> GenDisk<T> {
    /// # Safety
    ///
    /// `raw` must satisfy the invariants of [`GenDisk`] for `'a`.
    pub(crate) unsafe fn from_raw<'a>(raw: *mut bindings::gendisk) -> &'a Self {
        // SAFETY: By the function's requirements; `GenDisk` is transparent.
        unsafe { &*raw.cast::<Self>() }
    }

    /// Returns the disk that `bdev` is, or is a partition of, if it is a disk of driver `T`.
    pub(crate) fn of(bdev: &BlockDevice) -> Option<&Self> {
        let disk = bdev.disk();
        // SAFETY: The disk of a `BlockDevice` is valid; its `fops` do not change.
        let fops = unsafe { (*disk).fops };
        let is_of_driver = core::ptr::eq(fops, Fops::<T>::table());
        // SAFETY: Only `DiskRef::new` sets these `fops`, after `private_data`, and the disk is
        // valid for as long as `bdev`.
        is_of_driver.then(|| unsafe { Self::from_raw(disk) })
    }

    /// Traces that the device is bound to a file, or to another one. `offset` and `sizelimit` are
    /// in bytes.
    pub(crate) fn trace_attached(&self, file: &File, offset: u64, sizelimit: u64, flags: u32) {
        // SAFETY: By the type invariant the disk is valid, and the file is open.
        unsafe { trace::device_attached(self.raw(), file.as_ptr(), offset, sizelimit, flags) };
    }

    /// Traces that the device is not bound to a file any more.
    pub(crate) fn trace_detached(&self) {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { trace::device_detached(self.raw()) };
    }

    pub(super) fn raw(&self) -> *mut bindings::gendisk {
        self.0.get()
    }

    pub(super) fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type invariant the disk is valid; its queue does not change.
        unsafe { (*self.raw()).queue }
    }

    fn context(&self) -> &DiskContext<T> {
        // SAFETY: By the type invariant the disk is valid; its `private_data` does not change.
        let context = unsafe { (*self.raw()).private_data };
        // SAFETY: By the type invariant `private_data` is a `DiskContext<T>`, which lives as long
        // as the disk.
        unsafe { &*context.cast::<DiskContext<T>>() }
    }

    pub(super) fn queue_context(&self) -> &Context<T::Queue> {
        &self.context().queue
    }

    /// Returns the device that the disk stands for.
    pub(crate) fn device(&self) -> &Arc<T> {
        &self.context().device
    }

    /// Returns the disk as a block device: `part0`.
    pub(crate) fn part0(&self) -> &BlockDevice {
        // SAFETY: By the type invariant the disk is valid; its `part0` does not change.
        let part0 = unsafe { (*self.raw()).part0 };
        // SAFETY: `part0` of a disk is valid for as long as the disk.
        unsafe { BlockDevice::from_raw(part0) }
    }

    /// Returns the device of the disk: `disk_to_dev()`.
    fn dev_raw(&self) -> *mut bindings::device {
        // SAFETY: By the type invariant the disk is valid; this only computes an address inside it.
        unsafe { ffi::rnull_loop_disk_to_dev(self.raw()) }
    }

    /// Returns a reference to the device of the disk.
    pub(crate) fn dev(&self) -> ARef<Device> {
        // SAFETY: The device of a valid disk is valid, and `__blk_mq_alloc_disk()` has initialized
        // its reference count.
        unsafe { Device::get_device(self.dev_raw()) }
    }

    /// Returns the name of the disk, such as `loop0`.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: By the type invariant the disk is valid; this only computes an address inside it.
        let name = unsafe { &raw const (*self.raw()).disk_name };
        // SAFETY: The name is NUL-terminated, lives as long as the disk, and does not change.
        unsafe { CStr::from_char_ptr(name.cast()) }
    }

    /// Returns the number of openers of the disk: `disk_openers()`.
    pub(crate) fn openers(&self) -> u32 {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { ffi::rnull_loop_disk_openers(self.raw()) }
    }

    /// Returns the logical block size of the disk, in bytes. May have changed when this returns.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: By the type invariant the queue is valid. The field is an aligned word, so this
        // reads the old or the new size of a concurrent change.
        unsafe { core::ptr::read_volatile(&raw const (*self.queue()).limits.logical_block_size) }
    }

    /// Calls `visit` with the disk and with each of its partitions, in the order of their numbers,
    /// until it fails. Partitions that are added or removed at the same time may be left out. May
    /// sleep.
    fn for_each_part(&self, visit: impl Fn(&BlockDevice) -> Result) -> Result {
        let mut partno = 0;
        // SAFETY: By the type invariant the disk is valid.
        let next = |partno| unsafe { ffi::rnull_loop_get_part(self.raw(), partno) };
        // SAFETY: `next` returns a block device with a reference, or null.
        while let Some(part) = unsafe { BlockDevice::from_owned(next(&mut partno)) } {
            visit(&part)?;
            partno += 1;
        }
        Ok(())
    }

    /// Writes back the page caches of the disk and of each partition:
    /// [`BlockDevice::write_back`]. Fails with `EINTR` on a fatal signal, because the driver may
    /// take any time to serve a write. May sleep.
    pub(crate) fn write_back(&self) -> Result {
        self.for_each_part(BlockDevice::write_back)
    }

    /// Drops the clean pages of the page caches of the disk and of each partition:
    /// [`BlockDevice::invalidate`]. May sleep.
    pub(crate) fn drop_cached(&self) {
        // Does not fail.
        let _ = self.for_each_part(|part| {
            part.invalidate();
            Ok(())
        });
    }

    /// Keeps exclusive openers of the disk and of its partitions away until the claim is dropped;
    /// see [`BlockDevice::claim`].
    ///
    /// The caller has `bdev` open in `mode`. Returns `None` if that makes it the exclusive owner of
    /// the disk already.
    pub(crate) fn claim_for(&self, bdev: &BlockDevice, mode: Mode) -> Result<Option<Claim<'_>>> {
        if mode.is_exclusive() && core::ptr::eq(bdev, self.part0()) {
            return Ok(None);
        }
        self.part0().claim().map(Some)
    }

    /// Returns the size of the disk, in sectors of 512 bytes: `get_capacity()`. May have changed
    /// when this returns.
    pub(crate) fn capacity(&self) -> u64 {
        // SAFETY: By the type invariant the disk is valid, and so is its `part0`. As in
        // `get_capacity()`, a concurrent change is visible or not.
        unsafe { core::ptr::read_volatile(&raw const (*(*self.raw()).part0).bd_nr_sectors) }
    }

    /// Sets the size, in sectors of 512 bytes, and logs a change, without a uevent: the log has at
    /// most 10 such lines in 5 seconds, as that of `set_capacity_and_notify()`. Any context.
    pub(crate) fn set_capacity(&self, sectors: u64) {
        let old = self.capacity();
        // SAFETY: By the type invariant the disk is valid.
        unsafe { bindings::set_capacity(self.raw(), sectors) };
        if sectors != old {
            // SAFETY: By the type invariant the disk is valid.
            unsafe { ffi::rnull_loop_log_capacity(self.raw(), old) };
        }
    }

    /// Makes the disk read-only or writable: `set_disk_ro()`. A change sends a uevent. May sleep.
    pub(crate) fn set_ro(&self, read_only: bool) {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { bindings::set_disk_ro(self.raw(), read_only) };
    }

    /// Reports that the disk has other content: sends a uevent, changes the `diskseq`, marks the
    /// disk dead for an exclusive owner, and drops the clean pages of its page cache. May sleep.
    pub(crate) fn force_media_change(&self) {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { bindings::disk_force_media_change(self.raw()) };
    }

    /// Drops the clean pages of the page cache, forgets writeback errors, and sets the size to 0:
    /// `invalidate_disk()`. May sleep.
    pub(crate) fn invalidate(&self) {
        // SAFETY: By the type invariant the disk is valid.
        unsafe { bindings::invalidate_disk(self.raw()) };
    }

    /// Sends a `KOBJ_CHANGE` uevent, unless uevents are suppressed. May sleep.
    pub(crate) fn notify_change(&self) {
        self.send_change(None);
    }

    /// Sends the `KOBJ_CHANGE` uevent of a new size (`RESIZE=1`), as `set_capacity_and_notify()`
    /// does, unless uevents are suppressed. May sleep.
    pub(crate) fn notify_resize(&self) {
        self.send_change(Some(c"RESIZE=1"));
    }

    fn send_change(&self, variable: Option<&CStr>) {
        let mut variables = [
            variable.map_or(core::ptr::null_mut(), |text| text.as_char_ptr().cast_mut()),
            core::ptr::null_mut(),
        ];
        // SAFETY: The device of a valid disk is valid; this only computes an address inside it.
        let kobj = unsafe { &raw mut (*self.dev_raw()).kobj };
        // SAFETY: The kobject is valid. The list of variables ends with null, and the call changes
        // neither the list nor the variables. As in C, an event that cannot be sent is lost.
        unsafe {
            bindings::kobject_uevent_env(
                kobj,
                bindings::kobject_action_KOBJ_CHANGE,
                variables.as_mut_ptr(),
            )
        };
    }

    /// Drops all uevents of the disk, and of partitions that are added, until the guard is dropped.
    /// Uevents of existing partitions, and of partitions that are removed, are sent. Has no effect
    /// on a disk that is being deleted. May sleep. No lock is taken under the one that this takes.
    pub(crate) fn suppress_uevents(&self) -> UeventsSuppressed<'_, T> {
        let mut count = self.context().uevents_suppressed.lock();
        if let Some(count) = &mut *count {
            *count = count.saturating_add(1);
            // SAFETY: The count is `Some`, and its lock is held.
            unsafe { self.set_uevent_suppress(true) };
        }
        // INVARIANT: Counted above, unless the disk is being deleted.
        UeventsSuppressed(self)
    }

    /// Sets the `uevent_suppress` bit of the disk's kobject.
    ///
    /// # Safety
    ///
    /// The lock of `uevents_suppressed` is held, and the count is `Some`.
    unsafe fn set_uevent_suppress(&self, on: bool) {
        // SAFETY: By the type invariant the disk is valid. The call reads and writes a word of the
        // kobject.
        // - The lock excludes other calls.
        // - The kernel writes other bits of the word without a lock, so a bit may be lost. Memory
        //   safety depends on `state_in_sysfs` alone: a disk with this bit set would be deleted
        //   twice. The bit is set before the disk is added. It is cleared by `del_gendisk()`, which
        //   does not begin before the count is `None`, and so not before this call returns. The
        //   other bits decide whether an event is sent.
        unsafe { ffi::rnull_loop_set_uevent_suppress(self.raw(), on) };
    }

    /// Forbids the kernel to scan for partitions, or allows it: `GD_SUPPRESS_PART_SCAN`. Any
    /// context.
    pub(crate) fn suppress_partition_scan(&self, on: bool) {
        // SAFETY: By the type invariant the disk is valid; this only computes an address inside it.
        let state = unsafe { &raw mut (*self.raw()).state };
        let bit = bindings::GD_SUPPRESS_PART_SCAN as c_ulong;
        if on {
            // SAFETY: `state` is valid, and is changed by atomic bit operations alone.
            unsafe { bindings::set_bit(bit, state) };
        } else {
            // SAFETY: `state` is valid, and is changed by atomic bit operations alone.
            unsafe { bindings::clear_bit(bit, state) };
        }
    }

    /// Returns the `open_mutex` of the disk.
    fn open_mutex(&self) -> *mut bindings::mutex {
        // SAFETY: By the type invariant the disk is valid; this only computes an address inside it.
        unsafe { &raw mut (*self.raw()).open_mutex }
    }

    /// Takes the lock under which the disk is opened and closed. May sleep.
    ///
    /// Must be taken before all locks of the driver, because [`DiskOperations::open`] is called
    /// under it.
    pub(crate) fn lock_open(&self) -> OpenMutex<'_, T> {
        // SAFETY: By the type invariant the disk is valid, and so is its mutex.
        unsafe { bindings::mutex_lock(self.open_mutex()) };
        // INVARIANT: The lock is taken above, and this value releases it.
        OpenMutex {
            disk: self,
            unlocks: true,
            _not_send: NotThreadSafe,
        }
    }
}

/// A guard that keeps uevents of a disk from being sent.
///
/// # Invariants
///
/// `uevents_suppressed` of the disk counts this value, unless the disk is being deleted.
#[must_use = "uevents are sent again when this is dropped"]
pub(crate) struct UeventsSuppressed<'a, T: DiskOperations>(&'a GenDisk<T>);

impl<T: DiskOperations> Drop for UeventsSuppressed<'_, T> {
    fn drop(&mut self) {
        let mut count = self.0.context().uevents_suppressed.lock();
        if let Some(count) = &mut *count {
            *count = count.saturating_sub(1);
            if *count == 0 {
                // SAFETY: The count is `Some`, and its lock is held.
                unsafe { self.0.set_uevent_suppress(false) };
            }
        }
    }
}

/// Proof that the `open_mutex` of a disk is held.
///
/// # Invariants
///
/// This thread holds the lock while the value lives.
pub(crate) struct OpenMutex<'a, T: DiskOperations> {
    disk: &'a GenDisk<T>,
    /// True if dropping the value releases the lock.
    unlocks: bool,
    _not_send: NotThreadSafe,
}

impl<T: DiskOperations> OpenMutex<'_, T> {
    /// Drops all partitions, and reads the partition table: `bdev_disk_changed()`. If there is one,
    /// the block layer sends a `KOBJ_CHANGE` uevent of the disk before it adds partitions. May
    /// sleep. Fails with `EBUSY` while a partition is open.
    pub(crate) fn reread_partitions(&self) -> Result {
        // SAFETY: By the invariants of `GenDisk` the disk is valid. By the type invariant the lock
        // is held, as the call requires.
        to_result(unsafe { bindings::bdev_disk_changed(self.disk.raw(), false) })
    }

    /// Returns whether the disk has partitions.
    pub(crate) fn has_partitions(&self) -> bool {
        // SAFETY: By the invariants of `GenDisk` the disk is valid. By the type invariant the lock
        // is held, under which partitions are added and removed.
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
        if self.unlocks {
            // SAFETY: By the type invariant this thread holds the lock, and `lock_open` has taken
            // it.
            unsafe { bindings::mutex_unlock(self.disk.open_mutex()) };
        }
    }
}

/// Calls [`DiskOperations::revalidate`] for a disk.
///
/// # Safety
///
/// `disk` must satisfy the invariants of `GenDisk<T>` for the call.
unsafe fn revalidate<T: DiskOperations>(disk: NonNull<bindings::gendisk>) {
    // SAFETY: By the function's requirements.
    let disk = unsafe { GenDisk::from_raw(disk.as_ptr()) };
    T::revalidate(disk);
}

/// The `struct block_device_operations` of a driver `T`.
struct Fops<T>(PhantomData<T>);

impl<T: DiskOperations> Fops<T> {
    /// Calls [`DiskOperations::open`]: `->open`.
    ///
    /// # Safety
    ///
    /// Called by the block layer alone, for a disk whose `fops` are these, under its `open_mutex`.
    unsafe extern "C" fn open(disk: *mut bindings::gendisk, mode: bindings::blk_mode_t) -> c_int {
        // SAFETY: By the function's requirements the disk is valid during the call. Only
        // `DiskRef::new` sets these `fops`.
        let disk = unsafe { GenDisk::<T>::from_raw(disk) };
        from_result(|| T::open(disk, Mode(mode)).map(|()| 0))
    }

    /// Calls [`DiskOperations::release`]: `->release`.
    ///
    /// # Safety
    ///
    /// Called by the block layer alone, for a disk whose `fops` are these, under its `open_mutex`.
    unsafe extern "C" fn release(disk: *mut bindings::gendisk) {
        // SAFETY: By the function's requirements the disk is valid during the call. Only
        // `DiskRef::new` sets these `fops`.
        let disk = unsafe { GenDisk::<T>::from_raw(disk) };
        // INVARIANT: By the function's requirements the lock is held; the caller releases it.
        T::release(&OpenMutex {
            disk,
            unlocks: false,
            _not_send: NotThreadSafe,
        });
    }

    /// Calls [`DiskOperations::ioctl`]: `->ioctl`.
    ///
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

    /// Calls [`DiskOperations::compat_ioctl`]: `->compat_ioctl`.
    ///
    /// # Safety
    ///
    /// Called by the block layer alone, for an open block device of a disk whose `fops` are these.
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

    /// Returns the disk of a block device, and the block device.
    ///
    /// # Safety
    ///
    /// `bdev` must be open for `'a`, and must be of a disk whose `fops` are these.
    unsafe fn from_bdev<'a>(
        bdev: *mut bindings::block_device,
    ) -> (&'a GenDisk<T>, &'a BlockDevice) {
        // SAFETY: By the function's requirements `bdev` is open, so it and its disk are valid.
        let bdev = unsafe { BlockDevice::from_raw(bdev) };
        // SAFETY: As above. Only `DiskRef::new` sets these `fops`.
        let disk = unsafe { GenDisk::from_raw(bdev.disk()) };
        (disk, bdev)
    }

    /// Returns the table, which has the same address for all disks of `T`.
    ///
    /// Never inlined, so that there is one copy of the constant.
    #[inline(never)]
    fn table() -> &'static bindings::block_device_operations {
        const { &Self::FOPS }
    }

    const FOPS: bindings::block_device_operations = bindings::block_device_operations {
        owner: compat::THIS_MODULE,
        open: Some(Self::open),
        release: Some(Self::release),
        ioctl: Some(Self::ioctl),
        compat_ioctl: Some(Self::compat_ioctl),
        ..pin_init::zeroed()
    };
}
