// SPDX-License-Identifier: GPL-2.0

//! The names that differ between the kernel series that the module supports. The newest one has
//! them, or short forms of them, itself. The part of an older series goes with that series.
//!
//! `Kbuild` sets the configuration `series_MAJOR_MINOR`.

pub(crate) use names::*;

/// Linux 7.3.
#[cfg(not(series_7_2))]
mod names {
    use kernel::{
        bindings,
        prelude::*,
        sync::barrier,
        time::Delta,
        ModuleMetadata, //
    };

    pub(crate) use kernel::error::code::{
        EDQUOT,
        ENAMETOOLONG,
        ENOSYS,
        EOPNOTSUPP, //
    };
    pub(crate) use pin_init::raw_try_init;

    /// The pointer to this module.
    pub(crate) const THIS_MODULE: *mut bindings::module = crate::LocalModule::THIS_MODULE.as_ptr();

    /// Orders writes before it, for other CPUs, before writes after it.
    pub(crate) fn smp_wmb() {
        barrier::smp_mb(barrier::Write);
    }

    /// Returns the length of a time in milliseconds, rounded up.
    pub(crate) fn as_millis_ceil(time: Delta) -> i64 {
        time.as_millis_ceil()
    }

    /// Returns the position, in bytes, in the bio_vec that an iterator is at.
    pub(crate) fn bvec_offset(iter: &bindings::bvec_iter) -> c_uint {
        iter.bi_offset
    }

    /// Makes an iterator over `size` bytes for a disk from `sector` (of 512 bytes), in memory from
    /// `offset`, in bytes, in the first bio_vec.
    pub(crate) fn bvec_iter(sector: u64, size: c_uint, offset: c_uint) -> bindings::bvec_iter {
        bindings::bvec_iter {
            bi_sector: sector,
            bi_size: size,
            bi_idx: 0,
            bi_offset: offset,
        }
    }
}

/// Linux 7.2.
#[cfg(series_7_2)]
mod names {
    use core::{
        mem::transmute,
        num::NonZeroI32, //
    };
    use kernel::{
        bindings,
        prelude::*,
        sync::barrier,
        time::Delta,
        types::Opaque, //
    };

    pub(crate) use barrier::smp_wmb;

    /// Makes an error for which the crate has no name. `code` is positive, as in the C headers.
    const fn error(code: u32) -> Error {
        assert!(code > 0 && code < bindings::MAX_ERRNO);
        let Some(number) = NonZeroI32::new(-(code as c_int)) else {
            return EINVAL;
        };
        // SAFETY: `Error` is one `NonZeroI32`, which has its size and so its layout, and holds a
        // negative error code; the assertion below the function checks that. The code is in range
        // by the assertion above.
        unsafe { transmute::<NonZeroI32, Error>(number) }
    }

    const _: () = assert!(matches!(error(bindings::EINVAL), EINVAL));

    pub(crate) const EDQUOT: Error = error(bindings::EDQUOT);
    pub(crate) const ENAMETOOLONG: Error = error(bindings::ENAMETOOLONG);
    pub(crate) const ENOSYS: Error = error(bindings::ENOSYS);
    pub(crate) const EOPNOTSUPP: Error = error(bindings::EOPNOTSUPP);

    extern "C" {
        /// A `struct module`, which the kernel's build system makes.
        static __this_module: Opaque<u8>;
    }

    pub(crate) const THIS_MODULE: *mut bindings::module =
        (&raw const __this_module).cast_mut().cast();

    /// Initializes `slot`.
    ///
    /// # Safety
    ///
    /// `slot` must be valid for writes, and not move until it is dropped. If this fails, `slot` is
    /// not initialized.
    pub(crate) unsafe fn raw_try_init<T, E>(
        slot: *mut T,
        init: impl PinInit<T, E>,
    ) -> Result<(), E> {
        // SAFETY: By the function's requirements.
        unsafe { init.__pinned_init(slot) }
    }

    pub(crate) fn as_millis_ceil(time: Delta) -> i64 {
        const NANOS: i64 = 1_000_000;
        time.as_nanos().saturating_add(NANOS - 1) / NANOS
    }

    pub(crate) fn bvec_offset(iter: &bindings::bvec_iter) -> c_uint {
        iter.bi_bvec_done
    }

    pub(crate) fn bvec_iter(sector: u64, size: c_uint, offset: c_uint) -> bindings::bvec_iter {
        bindings::bvec_iter {
            bi_sector: sector,
            bi_size: size,
            bi_idx: 0,
            bi_bvec_done: offset,
        }
    }
}
