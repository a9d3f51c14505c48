// SPDX-License-Identifier: GPL-2.0

//! Which ways requests may take, for those who measure them, test them, or do without one.
//!
//! All are right; the ones switched off here are shorter. They may be changed at any time, and are on
//! again whenever the device is attached.

use kernel::{
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    },
};

/// One of them.
pub(crate) struct Switch(Atomic<bool>);

impl Switch {
    fn new() -> Self {
        Self(Atomic::new(true))
    }

    /// Whether it is on. Any context.
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Tunables it. Requests that are under way go on as they are.
    pub(crate) fn set(&self, on: bool) {
        self.0.store(on, Relaxed);
    }
}

/// The tunables of a device.
pub(crate) struct Tunables {
    /// Whether requests may be submitted in the context of their submitters.
    pub(crate) inline: Switch,
    /// Whether requests for a block device may be passed on as they are.
    pub(crate) remap: Switch,
    /// Whether files may be asked for what they can do without waiting.
    pub(crate) nowait: Switch,
}

impl Tunables {
    /// All on.
    pub(crate) fn new() -> Self {
        Self {
            inline: Switch::new(),
            remap: Switch::new(),
            nowait: Switch::new(),
        }
    }

    /// Tunables all on.
    pub(crate) fn reset(&self) {
        for switch in [&self.inline, &self.remap, &self.nowait] {
            switch.set(true);
        }
    }

    /// What user space says; `EINVAL` for anything but 0 and 1.
    pub(crate) fn parse(value: &[u8]) -> Result<bool> {
        match value {
            b"0" => Ok(false),
            b"1" => Ok(true),
            _ => Err(EINVAL),
        }
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_switches))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn switches_are_on_after_a_reset() {
        let tunables = Tunables::new();
        tunables.remap.set(false);
        assert!(tunables.inline.is_on() && !tunables.remap.is_on());
        tunables.reset();
        assert!(tunables.remap.is_on());
    }

    #[test]
    fn a_switch_is_zero_or_one() {
        assert_eq!(Tunables::parse(b"1").ok(), Some(true));
        assert_eq!(Tunables::parse(b"0").ok(), Some(false));
        for value in [&b""[..], b"2", b"01", b"on", b"1 "] {
            assert!(Tunables::parse(value).is_err());
        }
    }
}
