// SPDX-License-Identifier: GPL-2.0

//! Time as a number, for what is kept in an atomic.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use kernel::bindings;

/// Returns the time of the monotonic clock in milliseconds, which wraps after 49 days: differences
/// of less are right. Any context but NMI.
pub(crate) fn now_ms() -> u32 {
    // SAFETY: `ktime_get()` has no preconditions outside NMI.
    let nanoseconds = unsafe { bindings::ktime_get() };
    // CAST: It is to wrap.
    (nanoseconds / 1_000_000) as u32
}
