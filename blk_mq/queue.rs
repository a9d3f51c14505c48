// SPDX-License-Identifier: GPL-2.0

//! The driver's part of a request queue: its `queuedata`.

use super::backend::BackendCell;
use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Release, //
            },
            Atomic, //
        },
        Arc,
        LockClassKey, //
    },
    types::Opaque, //
};

/// The `queuedata` of a queue: the driver's device `D`, and the backend `B` of its requests.
pub(super) struct QueueContext<D, B> {
    pub(super) device: Arc<D>,
    pub(super) backend: Pin<KBox<BackendCell<B>>>,
    pub(super) revalidation: Pin<KBox<Revalidation>>,
    /// The lock class of `mq_flush_lock`. Each queue has its own, because a request may end while
    /// the lower device, which may be one of the same driver, holds its own `mq_flush_lock`.
    pub(super) flush_class: Pin<KBox<LockClassKey>>,
}

/// Work that revalidates a disk. A request cannot change limits itself, because it would wait until
/// the queue is frozen, and that would wait for the request: deadlock.
///
/// # Invariants
///
/// `work` is initialized. While it runs, `disk` is null or a valid disk.
#[pin_data]
pub(super) struct Revalidation {
    #[pin]
    work: Opaque<bindings::work_struct>,
    disk: Atomic<*mut bindings::gendisk>,
    run: unsafe fn(NonNull<bindings::gendisk>),
}

// SAFETY: Any thread may queue and cancel work.
unsafe impl Send for Revalidation {}
// SAFETY: All methods that take `&self` may be called by any thread at any time.
unsafe impl Sync for Revalidation {}

impl Revalidation {
    /// Makes work that calls `run` with the disk.
    pub(super) fn new(run: unsafe fn(NonNull<bindings::gendisk>)) -> impl PinInit<Self> {
        // INVARIANT: The work is initialized, and `disk` is null.
        pin_init!(Self {
            work <- Opaque::ffi_init(|slot: *mut bindings::work_struct| {
                // SAFETY: `slot` is valid for writes and pinned, and is the `work` of a
                // `Revalidation`, which `work_fn` expects. The name and the lock class are static.
                unsafe {
                    bindings::init_work_with_key(
                        slot,
                        Some(Self::work_fn),
                        false,
                        c"Revalidation::work".as_char_ptr(),
                        kernel::static_lock_class!().as_ptr(),
                    )
                };
            }),
            disk: Atomic::new(core::ptr::null_mut()),
            run,
        })
    }

    /// Revalidates the disk: the function of the work.
    ///
    /// # Safety
    ///
    /// Called by the workqueue alone, for the work of a `Revalidation`.
    unsafe extern "C" fn work_fn(work: *mut bindings::work_struct) {
        // SAFETY: By the function's requirements `work` is the field of a `Revalidation`.
        let this = unsafe { kernel::container_of!(Opaque::cast_from(work), Self, work) };
        // SAFETY: The `Revalidation` is valid until this returns: `cancel` waits for this before it
        // is dropped, unless no request was made on the disk, so that the work was never queued.
        let this = unsafe { &*this };
        // ORDERING: Pairs with the release store of `set_disk`.
        if let Some(disk) = NonNull::new(this.disk.load(Acquire)) {
            // SAFETY: By the type invariant the disk is valid while the work runs.
            unsafe { (this.run)(disk) };
        }
    }

    /// Sets the disk.
    ///
    /// # Safety
    ///
    /// No request has been made on `disk` yet. The disk must stay valid for `run` until
    /// [`cancel`](Self::cancel) is called, when no request can be made any more.
    pub(super) unsafe fn set_disk(&self, disk: NonNull<bindings::gendisk>) {
        // INVARIANT: By the function's requirements the disk is valid until `cancel`, after which
        // no request queues the work.
        // ORDERING: Pairs with the acquire load of `work_fn`.
        self.disk.store(disk.as_ptr(), Release);
    }

    /// Queues the work, unless it is queued already. Any context, including hard IRQ.
    pub(super) fn queue(&self) {
        // SAFETY: By the type invariant the work is initialized. The kernel never destroys the
        // workqueue.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_dfl_wq,
                self.work.get(),
            )
        };
    }

    /// Waits for the work. Called when no request can queue it any more. May sleep.
    pub(super) fn cancel(&self) {
        // SAFETY: By the type invariant the work is initialized.
        unsafe { bindings::cancel_work_sync(self.work.get()) };
    }
}
