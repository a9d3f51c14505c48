// SPDX-License-Identifier: GPL-2.0

//! Block device majors.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use kernel::{
    bindings,
    prelude::*, //
};

/// The callback of a major that makes disks on demand: `->probe`.
pub(crate) trait Probe {
    /// Makes the disk for `minor`, or none. Called when a device node is opened and no disk has its
    /// number. May sleep. `major_names_lock` is held, so this must not register or unregister a
    /// major: deadlock.
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
    /// Registers major `number` as `name`, or for 0 a major that is free.
    ///
    /// May sleep. Fails with `EBUSY` if another driver has the major, or if none is free.
    pub(crate) fn register<P: Probe>(number: u32, name: &'static CStr) -> Result<Self> {
        // SAFETY: `name` is static and NUL-terminated. `probe` is static until the major is
        // unregistered, before the module goes.
        let ret =
            unsafe { bindings::__register_blkdev(number, name.as_char_ptr(), Some(probe::<P>)) };
        // `__register_blkdev()` returns 0, or the major that it has chosen.
        let number = match u32::try_from(ret) {
            Ok(0) => number,
            Ok(found) => found,
            Err(_) => return Err(Error::from_errno(ret)),
        };
        // INVARIANT: It is registered now.
        Ok(Self { number, name })
    }

    /// Returns the number of the major.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Major {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the major is registered with this name.
        unsafe { bindings::unregister_blkdev(self.number, self.name.as_char_ptr()) };
    }
}

/// # Safety
///
/// Called by the block layer alone, for a device number of a major registered with `P`.
unsafe extern "C" fn probe<P: Probe>(dev: bindings::dev_t) {
    P::probe(dev & ((1 << bindings::MINORBITS) - 1));
}
