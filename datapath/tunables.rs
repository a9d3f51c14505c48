// SPDX-License-Identifier: GPL-2.0

//! The choices of user space in `/sys/block/loopN/rnull_loop/*`: the optional routes of requests,
//! the use of the page cache, and whether writes wait for space.
//!
//! The routes only make requests faster. User space may forbid one to measure or to test it, or to
//! avoid it. All may be changed at any time. When the device is attached they have their defaults,
//! which are module parameters.

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

/// The values of all tunables.
#[derive(Clone, Copy)]
pub(crate) struct Defaults {
    /// That of `inline`.
    pub(crate) inline: bool,
    /// That of `remap`.
    pub(crate) remap: bool,
    /// That of `extents`.
    pub(crate) extents: bool,
    /// That of `nowait`.
    pub(crate) nowait: bool,
    /// That of `dontcache`.
    pub(crate) dontcache: bool,
    /// That of `enospc`.
    pub(crate) enospc: bool,
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
    /// True if transfers through the page cache of the backing file leave nothing behind in it.
    pub(crate) dontcache: Tunable,
    /// True if writes wait while the file system of the backing file is full.
    pub(crate) enospc: Tunable,
    defaults: Defaults,
}

impl Tunables {
    /// The values of `enospc` for user space: off, and on.
    pub(crate) const ENOSPC: [&str; 2] = ["error", "wait"];

    /// Makes tunables with their defaults.
    pub(crate) fn new(defaults: Defaults) -> Self {
        Self {
            inline: Tunable::new(defaults.inline),
            remap: Tunable::new(defaults.remap),
            extents: Tunable::new(defaults.extents),
            nowait: Tunable::new(defaults.nowait),
            dontcache: Tunable::new(defaults.dontcache),
            enospc: Tunable::new(defaults.enospc),
            defaults,
        }
    }

    /// Sets all tunables to their defaults.
    pub(crate) fn reset(&self) {
        self.inline.set(self.defaults.inline);
        self.remap.set(self.defaults.remap);
        self.extents.set(self.defaults.extents);
        self.nowait.set(self.defaults.nowait);
        self.dontcache.set(self.defaults.dontcache);
        self.enospc.set(self.defaults.enospc);
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

    /// Parses a value of `enospc` that user space has written. Fails with `EINVAL` for any other
    /// value.
    pub(crate) fn parse_enospc(value: &[u8]) -> Result<bool> {
        let index = Self::ENOSPC
            .iter()
            .position(|name| name.as_bytes() == value);
        index.map(|index| index != 0).ok_or(EINVAL)
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_tunables))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn reset_restores_defaults() {
        let tunables = Tunables::new(Defaults {
            inline: true,
            remap: true,
            extents: false,
            nowait: false,
            dontcache: false,
            enospc: true,
        });
        assert!(tunables.remap.is_on() && !tunables.extents.is_on() && tunables.enospc.is_on());
        tunables.remap.set(false);
        tunables.extents.set(true);
        tunables.enospc.set(false);
        assert!(tunables.inline.is_on() && !tunables.remap.is_on());
        tunables.reset();
        assert!(tunables.remap.is_on() && !tunables.extents.is_on() && tunables.enospc.is_on());
    }

    #[test]
    fn only_zero_and_one_are_values() {
        assert_eq!(Tunables::parse(b"1").ok(), Some(true));
        assert_eq!(Tunables::parse(b"0").ok(), Some(false));
        for value in [&b""[..], b"2", b"01", b"on", b"1 "] {
            assert!(Tunables::parse(value).is_err());
        }
    }

    #[test]
    fn enospc_has_two_names() {
        assert_eq!(Tunables::parse_enospc(b"error").ok(), Some(false));
        assert_eq!(Tunables::parse_enospc(b"wait").ok(), Some(true));
        for value in [&b""[..], b"0", b"1", b"err", b"waiting", b"wait "] {
            assert!(Tunables::parse_enospc(value).is_err());
        }
    }
}
