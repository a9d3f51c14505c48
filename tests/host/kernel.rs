// SPDX-License-Identifier: GPL-2.0

//! As much of the `kernel` crate as the pure logic of the module needs, for the host.

/// `kernel::prelude`.
pub mod prelude {
    /// An error number.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Error(i32);

    pub type Result<T = (), E = Error> = core::result::Result<T, E>;

    pub const ENXIO: Error = Error(6);
    pub const EBUSY: Error = Error(16);
    pub const EINVAL: Error = Error(22);
    pub const EOVERFLOW: Error = Error(75);
}
