// SPDX-License-Identifier: GPL-2.0

//! The parts of the `kernel` crate that the module's pure logic needs, for the host.

/// `kernel::prelude`.
pub mod prelude {
    /// An error number.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Error(i32);

    #[allow(non_camel_case_types)]
    pub type c_ulong = u64;

    pub type Result<T = (), E = Error> = core::result::Result<T, E>;

    pub const EINTR: Error = Error(4);
    pub const EIO: Error = Error(5);
    pub const ENXIO: Error = Error(6);
    pub const EAGAIN: Error = Error(11);
    pub const ENOMEM: Error = Error(12);
    pub const EBUSY: Error = Error(16);
    pub const EINVAL: Error = Error(22);
    pub const ENOSPC: Error = Error(28);
    pub const EOVERFLOW: Error = Error(75);
    pub const EOPNOTSUPP: Error = Error(95);
    pub const ERESTARTSYS: Error = Error(512);
    pub const ERESTARTNOINTR: Error = Error(513);
    pub const ERESTARTNOHAND: Error = Error(514);
    pub const ERESTART_RESTARTBLOCK: Error = Error(516);
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

/// `kernel::sync`.
pub mod sync {
    pub mod atomic {
        use core::sync::atomic::{
            AtomicBool,
            AtomicU32,
            Ordering, //
        };

        pub mod ordering {
            pub struct Relaxed;
        }

        /// A type with an atomic counterpart.
        pub trait Value: Copy {
            type Repr;
            fn new(value: Self) -> Self::Repr;
            fn load(repr: &Self::Repr) -> Self;
            fn store(repr: &Self::Repr, value: Self);
        }

        macro_rules! values {
            ($($value:ty: $atomic:ty),*) => {$(
                impl Value for $value {
                    type Repr = $atomic;

                    fn new(value: Self) -> $atomic {
                        <$atomic>::new(value)
                    }

                    fn load(repr: &$atomic) -> Self {
                        repr.load(Ordering::Relaxed)
                    }

                    fn store(repr: &$atomic, value: Self) {
                        repr.store(value, Ordering::Relaxed);
                    }
                }
            )*};
        }

        values!(bool: AtomicBool, u32: AtomicU32);

        pub struct Atomic<T: Value>(T::Repr);

        impl<T: Value> Atomic<T> {
            pub fn new(value: T) -> Self {
                Self(T::new(value))
            }

            pub fn load(&self, _: ordering::Relaxed) -> T {
                T::load(&self.0)
            }

            pub fn store(&self, value: T, _: ordering::Relaxed) {
                T::store(&self.0, value);
            }
        }
    }
}
