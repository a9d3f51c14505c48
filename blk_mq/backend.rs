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
/// - `value` is written by the holder of `writer` alone, and only while the queue is frozen, or
///   while `present` is false and the queue has been seen without requests since it became false.
///   The writer holds `writer` from the time `present` becomes false until that write.
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
    /// set's SRCU read lock, or that of passing the request to another task.
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
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.writer.lock()
    }

    /// Fills an empty cell; returns `value` if the cell is not empty. May sleep.
    pub(super) fn fill(&self, value: V) -> Result<(), V> {
        let _writer = self.writer.lock();
        if self.present.load(Relaxed) {
            return Err(value);
        }
        // SAFETY: `writer` is held. `present` is false, so by the type invariant no request has a
        // reference to `value`.
        // INVARIANT: `value` is `Some` before `present` is true.
        unsafe { *self.value.get() = Some(value) };
        self.present.store(true, Release);
        Ok(())
    }

    /// Keeps requests that are dispatched from here on from finding the value.
    pub(super) fn hide(&self, _writer: &MutexGuard<'_, ()>) {
        self.present.store(false, Relaxed);
    }

    /// Returns the place of the value, to write it.
    ///
    /// # Safety
    ///
    /// The caller holds `writer` for as long as the reference lives. For that time the queue is
    /// frozen, or the value is [hidden](Self::hide) and the queue has been seen without requests
    /// since.
    #[expect(clippy::mut_from_ref)]
    pub(super) unsafe fn value_mut(&self) -> &mut Option<V> {
        // SAFETY: By the function's requirements no request reads it, and there is one writer.
        unsafe { &mut *self.value.get() }
    }

    /// Lets requests find the value again, which must be `Some`.
    pub(super) fn show(&self, _writer: &MutexGuard<'_, ()>) {
        self.present.store(true, Release);
    }
}
