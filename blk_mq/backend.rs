// SPDX-License-Identifier: GPL-2.0

//! A value that requests read without a lock and that changes only while no request reads it.
//!
//! The writers are in [`limits`](super::limits), which knows when a queue is frozen.

use core::cell::UnsafeCell;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic, //
        },
        Mutex,
        MutexGuard, //
    },
};

/// A cell that requests read while they are in flight.
///
/// # Invariants
///
/// - `present` and `value` are written by the owner of the [`Writer`] alone. `value` is written
///   only while the queue is frozen, or while `present` is false and the queue has been seen
///   without requests since it became false. The writer is locked from when `present` becomes
///   false until that write.
/// - While `present` is true, `value` is `Some`.
#[pin_data]
pub(super) struct BackendCell<V> {
    present: Atomic<bool>,
    value: UnsafeCell<Option<V>>,
    #[pin]
    writer: Mutex<()>,
}

// SAFETY: Readers get `&V` on any CPU, and writers move `V` between CPUs, so `V` is `Send + Sync`.
// The type's invariants keep readers and writers apart.
unsafe impl<V: Send + Sync> Sync for BackendCell<V> {}

impl<V> BackendCell<V> {
    /// Makes an empty cell.
    pub(super) fn new() -> impl PinInit<Self> {
        // INVARIANT: `present` is false.
        pin_init!(Self {
            present: Atomic::new(false),
            value: UnsafeCell::new(None),
            writer <- new_mutex!((), "BackendCell::writer"),
        })
    }

    /// Returns the value, or `None` for an empty cell.
    ///
    /// # Safety
    ///
    /// For as long as the reference lives, there must be a request on the queue of this cell, with
    /// a tag that it had before this call. A full barrier must lie between the two: that of the tag
    /// set's SRCU read lock, or that of passing the request to another task. On a queue with a
    /// scheduler, which is never seen without requests, a request without a tag will do.
    pub(super) unsafe fn get(&self) -> Option<&V> {
        // ORDERING: Pairs with the release store that follows the write of `value`.
        if !self.present.load(Acquire) {
            return None;
        }
        // SAFETY: `present` is true. By the type invariant `value` is written only after the queue
        // is frozen or seen without requests, which is not before the request of the caller has
        // ended.
        unsafe { &*self.value.get() }.as_ref()
    }

    /// Returns the value without a check.
    ///
    /// # Safety
    ///
    /// As of [`get`](Self::get); and `get` must have returned a value for the same request since it
    /// was dispatched.
    pub(super) unsafe fn get_present(&self) -> &V {
        // SAFETY: By the function's requirements `get` has returned a value for the same request.
        // As in `get`, `value` is not written before that request has ended.
        let value = unsafe { &*self.value.get() };
        // SAFETY: `get` has returned the value, and `value` was not written since, so it is `Some`.
        unsafe { value.as_ref().unwrap_unchecked() }
    }

    /// Locks out other writers. May sleep.
    pub(super) fn lock(&self) -> Writer<'_, V> {
        // INVARIANT: The lock is that of this cell.
        Writer {
            cell: self,
            _guard: self.writer.lock(),
        }
    }

    /// Fills an empty cell; returns `value` if the cell is not empty. May sleep.
    pub(super) fn fill(&self, value: V) -> Result<(), V> {
        let mut writer = self.lock();
        if self.present.load(Relaxed) {
            return Err(value);
        }
        // SAFETY: `present` is false, so by the invariants of the cell no request has a reference
        // to `value`.
        unsafe { writer.replace(value) };
        Ok(())
    }
}

/// The exclusive right to write a cell.
///
/// # Invariants
///
/// The guard is that of the cell's `writer`.
pub(super) struct Writer<'a, V> {
    cell: &'a BackendCell<V>,
    _guard: MutexGuard<'a, ()>,
}

impl<V> Writer<'_, V> {
    /// Keeps requests that are dispatched from here on from finding the value.
    ///
    /// # Safety
    ///
    /// The value is [taken](Self::take) before this writer is dropped.
    pub(super) unsafe fn hide(&mut self) {
        self.cell.present.store(false, Relaxed);
    }

    /// Returns the value, to change it.
    ///
    /// # Safety
    ///
    /// For as long as the reference lives, the queue is frozen.
    pub(super) unsafe fn get_mut(&mut self) -> Option<&mut V> {
        // SAFETY: By the function's requirements no request reads the value. This is the only
        // writer, and it is borrowed for as long as the reference lives.
        unsafe { &mut *self.cell.value.get() }.as_mut()
    }

    /// Replaces the value, and returns the old one.
    ///
    /// # Safety
    ///
    /// The queue is frozen, or no request has found the value of the cell since it was last empty.
    pub(super) unsafe fn replace(&mut self, value: V) -> Option<V> {
        // SAFETY: By the function's requirements no request reads the value, and this is the only
        // writer.
        let old = unsafe { (*self.cell.value.get()).replace(value) };
        // INVARIANT: The value is `Some`.
        self.cell.present.store(true, Release);
        old
    }

    /// Empties the cell, and returns its value.
    ///
    /// # Safety
    ///
    /// The value is [hidden](Self::hide). Since then the queue was frozen, or has been seen without
    /// requests.
    pub(super) unsafe fn take(&mut self) -> Option<V> {
        // SAFETY: By the function's requirements no request reads the value, and this is the only
        // writer.
        unsafe { (*self.cell.value.get()).take() }
    }
}
