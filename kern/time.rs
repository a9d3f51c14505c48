// SPDX-License-Identifier: GPL-2.0

//! The time since the boot: as a number of milliseconds, which costs next to nothing to read, and
//! of nanoseconds.
//!
//! C headers: [`include/linux/jiffies.h`](srctree/include/linux/jiffies.h),
//! [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use kernel::bindings;

/// Returns the time since the boot in milliseconds, in steps of a jiffy. Any context.
pub(crate) fn uptime_ms() -> u64 {
    // SAFETY: The variable is a word that C code reads without a lock, too; it is never gone.
    let jiffies = unsafe { (&raw const bindings::jiffies).read_volatile() };
    // SAFETY: The function only computes.
    unsafe { bindings::jiffies64_to_msecs(jiffies as u64) }
}

/// Returns the time as [`uptime_ms`] does, as a number that wraps after 49 days, so that wrapping
/// differences of less than that are right. Any context.
pub(crate) fn now_ms() -> u32 {
    // CAST: The cast truncates, so that the number wraps.
    uptime_ms() as u32
}

/// Returns the time of the monotonic clock in nanoseconds. Any context but NMI.
pub(crate) fn now_ns() -> u64 {
    // SAFETY: `ktime_get()` only requires a context other than NMI, where this driver has no code.
    let nanoseconds = unsafe { bindings::ktime_get() };
    // CAST: The clock began with the boot.
    nanoseconds as u64
}
