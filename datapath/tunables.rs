// SPDX-License-Identifier: GPL-2.0

//! The optional routes of requests, which user space can forbid in
//! `/sys/block/loopN/rnull_loop/*`: to measure or to test a route, or to avoid it.
//!
//! These routes only make requests faster. User space may forbid and allow them at any time. When
//! the device is attached, all are allowed again, unless a module parameter forbids it.

use kernel::{
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    },
};

/// A tunable that is on or off.
pub(crate) struct Tunable(Atomic<bool>);

impl Tunable {
    fn new(on: bool) -> Self {
        Self(Atomic::new(on))
    }

    /// Returns whether the tunable is on. Any context.
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Turns the tunable on or off. Requests that are dispatched or deferred from here on heed it.
    /// Any context.
    pub(crate) fn set(&self, on: bool) {
        self.0.store(on, Relaxed);
    }
}

/// The tunables of a device.
pub(crate) struct Tunables {
    /// True if the submitter of a request may serve it.
    pub(crate) inline: Tunable,
    /// True if requests may be remapped to the block device that the backing file is.
    pub(crate) remap: Tunable,
    /// True if requests may be remapped to the disk of the backing file's file system.
    pub(crate) extents: Tunable,
    /// True if non-blocking I/O to the backing file may be tried.
    pub(crate) nowait: Tunable,
    /// The default of `extents`.
    default_extents: bool,
}

impl Tunables {
    /// Makes tunables with their defaults: on, but for `extents`.
    pub(crate) fn new(extents: bool) -> Self {
        Self {
            inline: Tunable::new(true),
            remap: Tunable::new(true),
            extents: Tunable::new(extents),
            nowait: Tunable::new(true),
            default_extents: extents,
        }
    }

    /// Sets all tunables to their defaults.
    pub(crate) fn reset(&self) {
        for tunable in [&self.inline, &self.remap, &self.nowait] {
            tunable.set(true);
        }
        self.extents.set(self.default_extents);
    }

    /// Parses a value that user space has written: `0` or `1`. Fails with `EINVAL` for any other
    /// value.
    pub(crate) fn parse(value: &[u8]) -> Result<bool> {
        match value {
            b"0" => Ok(false),
            b"1" => Ok(true),
            _ => Err(EINVAL),
        }
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_tunables))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn reset_restores_defaults() {
        let tunables = Tunables::new(false);
        tunables.remap.set(false);
        tunables.extents.set(true);
        assert!(tunables.inline.is_on() && !tunables.remap.is_on());
        tunables.reset();
        assert!(tunables.remap.is_on() && !tunables.extents.is_on());
        assert!(Tunables::new(true).extents.is_on());
    }

    #[test]
    fn only_zero_and_one_are_values() {
        assert_eq!(Tunables::parse(b"1").ok(), Some(true));
        assert_eq!(Tunables::parse(b"0").ok(), Some(false));
        for value in [&b""[..], b"2", b"01", b"on", b"1 "] {
            assert!(Tunables::parse(value).is_err());
        }
    }
}
