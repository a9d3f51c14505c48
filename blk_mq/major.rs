// SPDX-License-Identifier: GPL-2.0

//! Block device majors.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use kernel::{
    bindings,
    prelude::*, //
};

/// What makes a device when a device node of a major is opened and no disk has its number.
pub(crate) trait Probe {
    /// Makes the disk for `minor`, if it likes. May sleep; called with the lock of all majors held,
    /// so it must not register or unregister a major.
    fn probe(minor: u32);
}

/// A registered major.
///
/// # Invariants
///
/// `number` and `name` were registered by `__register_blkdev()` and are not unregistered yet.
pub(crate) struct Major {
    number: u32,
    name: &'static CStr,
}

impl Major {
    /// Registers major `number` as `name`, or with 0 any that is free.
    ///
    /// May sleep. Fails with `EBUSY` when another driver has it, or when none is free.
    pub(crate) fn register<P: Probe>(number: u32, name: &'static CStr) -> Result<Self> {
        // SAFETY: `name` is static and NUL-terminated, and `probe` has the type asked for.
        let ret =
            unsafe { bindings::__register_blkdev(number, name.as_char_ptr(), Some(probe::<P>)) };
        // What was asked for, or, for 0, what was found.
        let number = match u32::try_from(ret) {
            Ok(0) => number,
            Ok(found) => found,
            Err(_) => return Err(Error::from_errno(ret)),
        };
        // INVARIANT: It is registered now.
        Ok(Self { number, name })
    }

    /// The number.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Major {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this undoes what `register` did.
        unsafe { bindings::unregister_blkdev(self.number, self.name.as_char_ptr()) };
    }
}

/// # Safety
///
/// Called by the block layer alone, for a device number of a major registered with `P`.
unsafe extern "C" fn probe<P: Probe>(dev: bindings::dev_t) {
    P::probe(dev & ((1 << bindings::MINORBITS) - 1));
}
