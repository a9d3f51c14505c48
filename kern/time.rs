// SPDX-License-Identifier: GPL-2.0

//! The time of the monotonic clock as a small number.
//!
//! C header: [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use kernel::bindings;

/// Returns the time of the monotonic clock, in milliseconds. The number wraps after 49 days, so
/// wrapping differences of less than that are right. Any context but NMI.
pub(crate) fn now_ms() -> u32 {
    // SAFETY: `ktime_get()` only requires a context other than NMI, where this driver has no code.
    let nanoseconds = unsafe { bindings::ktime_get() };
    // CAST: The cast truncates, so that the number wraps.
    (nanoseconds / 1_000_000) as u32
}
