// SPDX-License-Identifier: GPL-2.0

//! The flags of a device, `LO_FLAGS_*`, and the ioctls that set and clear them.
//!
//! C header: [`include/uapi/linux/loop.h`](srctree/include/uapi/linux/loop.h)

use kernel::prelude::*;

/// A set of `LO_FLAGS_*`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flags(u32);

impl Flags {
    /// Writes to the device fail: `LO_FLAGS_READ_ONLY`.
    pub(crate) const READ_ONLY: Self = Self(1);
    /// The last close detaches the device: `LO_FLAGS_AUTOCLEAR`.
    pub(crate) const AUTOCLEAR: Self = Self(4);
    /// The kernel scans the device for partitions: `LO_FLAGS_PARTSCAN`.
    pub(crate) const PARTSCAN: Self = Self(8);
    /// I/O bypasses the page cache of the backing file: `LO_FLAGS_DIRECT_IO`.
    pub(crate) const DIRECT_IO: Self = Self(16);

    /// The flags that LOOP_CONFIGURE may set: `LOOP_CONFIGURE_SETTABLE_FLAGS`.
    const CONFIGURE_SETTABLE: Self = Self(1 | 4 | 8 | 16);
    /// The flags that LOOP_SET_STATUS may set: `LOOP_SET_STATUS_SETTABLE_FLAGS`.
    const SET_STATUS_SETTABLE: Self = Self(4 | 8);
    /// The flags that LOOP_SET_STATUS may clear: `LOOP_SET_STATUS_CLEARABLE_FLAGS`.
    const SET_STATUS_CLEARABLE: Self = Self(4);

    /// Returns the flags of LOOP_CONFIGURE. Fails with `EINVAL` if it may not set all of them.
    pub(crate) fn from_configure(raw: u32) -> Result<Self> {
        if raw & !Self::CONFIGURE_SETTABLE.0 != 0 {
            return Err(EINVAL);
        }
        Ok(Self(raw))
    }

    /// Returns these flags after LOOP_SET_STATUS with `raw`; ignores flags that it may not change.
    pub(crate) fn updated(self, raw: u32) -> Self {
        Self((self.0 & !Self::SET_STATUS_CLEARABLE.0) | (raw & Self::SET_STATUS_SETTABLE.0))
    }

    /// Returns the flags as `LO_FLAGS_*`.
    pub(crate) fn as_raw(self) -> u32 {
        self.0
    }

    /// Returns whether all of `flags` are set.
    pub(crate) fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Sets or clears `flags`.
    pub(crate) fn set(&mut self, flags: Self, on: bool) {
        if on {
            self.0 |= flags.0;
        } else {
            self.0 &= !flags.0;
        }
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_flags))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn configure_accepts_known_flags_only() {
        assert_eq!(Flags::from_configure(0).map(Flags::as_raw).ok(), Some(0));
        assert_eq!(Flags::from_configure(29).map(Flags::as_raw).ok(), Some(29));
        for raw in [2, 32, 64, 1 << 31, u32::MAX] {
            assert!(Flags::from_configure(raw).is_err());
        }
    }

    #[test]
    fn set_status_changes_autoclear_and_adds_partscan() {
        assert_eq!(Flags::default().updated(u32::MAX).as_raw(), 4 | 8);
        let all = Flags::CONFIGURE_SETTABLE;
        assert_eq!(all.updated(0).as_raw(), 1 | 8 | 16);
        assert_eq!(all.updated(4).as_raw(), 1 | 4 | 8 | 16);
    }

    #[test]
    fn set_sets_and_clears() {
        let mut flags = Flags::default();
        flags.set(Flags::DIRECT_IO, true);
        assert!(flags.contains(Flags::DIRECT_IO));
        assert!(!flags.contains(Flags::READ_ONLY));
        flags.set(Flags::DIRECT_IO, false);
        assert_eq!(flags.as_raw(), 0);
    }
}
