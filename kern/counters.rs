// SPDX-License-Identifier: GPL-2.0

//! Counters that any context adds to.

use kernel::sync::atomic::{
    ordering::Relaxed,
    Atomic, //
};

/// `N` counters.
pub(crate) struct Counters<const N: usize>([Atomic<u64>; N]);

impl<const N: usize> Counters<N> {
    /// Makes counters that are 0.
    pub(crate) const fn new() -> Self {
        Self([const { Atomic::new(0) }; N])
    }

    /// Adds 1 to the counter with number `index`, if there is one. Any context, including hard IRQ.
    pub(crate) fn increment(&self, index: usize) {
        if let Some(counter) = self.0.get(index) {
            counter.add(1, Relaxed);
        }
    }

    /// Returns the counter with number `index`; 0 if there is none. Any context.
    pub(crate) fn get(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |counter| counter.load(Relaxed))
    }

    /// Sets all counters to 0. Any context.
    pub(crate) fn reset(&self) {
        for counter in &self.0 {
            // `Atomic::store` calls a function for each counter.
            // SAFETY: The pointer is valid and aligned, as `as_ptr()` guarantees. The store of an
            // aligned word is that of `WRITE_ONCE()`, so it is no data race.
            unsafe { counter.as_ptr().write_volatile(0) };
        }
    }
}
