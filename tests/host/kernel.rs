// SPDX-License-Identifier: GPL-2.0

//! As much of the `kernel` crate as the pure logic of the module needs, for the host.

/// `kernel::prelude`.
pub mod prelude {
    /// An error number.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Error(i32);

    #[allow(non_camel_case_types)]
    pub type c_ulong = u64;

    pub type Result<T = (), E = Error> = core::result::Result<T, E>;

    pub const ENXIO: Error = Error(6);
    pub const EBUSY: Error = Error(16);
    pub const EINVAL: Error = Error(22);
    pub const EOVERFLOW: Error = Error(75);
}

/// `kernel::transmute`.
pub mod transmute {
    /// # Safety
    ///
    /// As in the kernel.
    pub unsafe trait FromBytes {}

    /// # Safety
    ///
    /// As in the kernel.
    pub unsafe trait AsBytes {}
}

/// `kernel::build_assert`.
pub mod build_assert {
    pub use crate::static_assert;
}

/// `static_assert!`.
#[macro_export]
macro_rules! static_assert {
    ($condition:expr) => {
        const _: () = assert!($condition);
    };
}
