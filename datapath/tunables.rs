// SPDX-License-Identifier: GPL-2.0

//! The optional routes of requests, which user space can forbid in
//! `/sys/block/loopN/rnull_loop/*`: to measure or to test a route, or to avoid it.
//!
//! These routes only make requests faster. User space may forbid and allow them at any time. All
//! are allowed again when the device is attached.

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
    /// Makes a tunable that is on.
    fn new() -> Self {
        Self(Atomic::new(true))
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
    /// True if non-blocking I/O to the backing file may be tried.
    pub(crate) nowait: Tunable,
}

impl Tunables {
    /// Makes tunables that are all on.
    pub(crate) fn new() -> Self {
        Self {
            inline: Tunable::new(),
            remap: Tunable::new(),
            nowait: Tunable::new(),
        }
    }

    /// Turns all tunables on.
    pub(crate) fn reset(&self) {
        for tunable in [&self.inline, &self.remap, &self.nowait] {
            tunable.set(true);
        }
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
    fn reset_turns_all_tunables_on() {
        let tunables = Tunables::new();
        tunables.remap.set(false);
        assert!(tunables.inline.is_on() && !tunables.remap.is_on());
        tunables.reset();
        assert!(tunables.remap.is_on());
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
