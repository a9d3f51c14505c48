// SPDX-License-Identifier: GPL-2.0

//! The parts of the `kernel` crate that the module's pure logic needs, for the host.

/// `kernel::prelude`.
pub mod prelude {
    pub use crate::alloc::{
        KVVec,
        KVec,
        GFP_KERNEL, //
    };

    /// An error number.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Error(i32);

    impl From<core::num::TryFromIntError> for Error {
        fn from(_: core::num::TryFromIntError) -> Self {
            EINVAL
        }
    }

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

/// `kernel::alloc`, as far as the prelude has it.
pub mod alloc {
    use crate::prelude::Result;

    pub struct Flags;
    pub const GFP_KERNEL: Flags = Flags;

    pub struct KVec<T>(Vec<T>);
    pub type KVVec<T> = KVec<T>;

    impl<T> KVec<T> {
        pub fn with_capacity(capacity: usize, _: Flags) -> Result<Self> {
            Ok(Self(Vec::with_capacity(capacity)))
        }

        pub fn push(&mut self, value: T, _: Flags) -> Result {
            self.0.push(value);
            Ok(())
        }
    }

    impl<T> core::ops::Deref for KVec<T> {
        type Target = [T];

        fn deref(&self) -> &[T] {
            &self.0
        }
    }

    impl<'a, T> IntoIterator for &'a KVec<T> {
        type Item = &'a T;
        type IntoIter = core::slice::Iter<'a, T>;

        fn into_iter(self) -> Self::IntoIter {
            self.iter()
        }
    }
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

/// `kernel::ioctl`.
pub mod ioctl {
    pub const fn _IOW<T>(ty: u32, nr: u32) -> u32 {
        1 << 30 | (size_of::<T>() as u32) << 16 | ty << 8 | nr
    }
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
    pub struct SetOnce<T>(std::sync::OnceLock<T>);

    impl<T> SetOnce<T> {
        pub const fn new() -> Self {
            Self(std::sync::OnceLock::new())
        }

        pub fn as_ref(&self) -> Option<&T> {
            self.0.get()
        }

        pub fn populate(&self, value: T) -> bool {
            self.0.set(value).is_ok()
        }
    }

    pub mod atomic {
        use core::sync::atomic::{
            AtomicBool,
            AtomicU32,
            AtomicU64,
            AtomicUsize,
            Ordering, //
        };

        pub mod ordering {
            pub struct Acquire;
            pub struct Full;
            pub struct Relaxed;
        }

        /// A type with an atomic counterpart.
        pub trait Value: Copy {
            type Repr;
            fn new(value: Self) -> Self::Repr;
            fn load(repr: &Self::Repr) -> Self;
            fn store(repr: &Self::Repr, value: Self);
            fn replace(repr: &Self::Repr, old: Self, new: Self) -> Result<Self, Self>;
        }

        macro_rules! values {
            ($($value:ty: $atomic:ty),*) => {$(
                impl Value for $value {
                    type Repr = $atomic;

                    fn new(value: Self) -> $atomic {
                        <$atomic>::new(value)
                    }

                    fn load(repr: &$atomic) -> Self {
                        repr.load(Ordering::Acquire)
                    }

                    fn store(repr: &$atomic, value: Self) {
                        repr.store(value, Ordering::Relaxed);
                    }

                    fn replace(repr: &$atomic, old: Self, new: Self) -> Result<Self, Self> {
                        repr.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                    }
                }
            )*};
        }

        values!(bool: AtomicBool, u32: AtomicU32, u64: AtomicU64, usize: AtomicUsize);

        pub struct Atomic<T: Value>(T::Repr);

        impl<T: Value> Atomic<T> {
            pub fn new(value: T) -> Self {
                Self(T::new(value))
            }

            pub fn load<Order>(&self, _: Order) -> T {
                T::load(&self.0)
            }

            pub fn store(&self, value: T, _: ordering::Relaxed) {
                T::store(&self.0, value);
            }

            pub fn xchg(&self, value: T, order: ordering::Relaxed) -> T {
                let old = self.load(order);
                self.store(value, ordering::Relaxed);
                old
            }

            pub fn cmpxchg(&self, old: T, new: T, _: ordering::Relaxed) -> Result<T, T> {
                T::replace(&self.0, old, new)
            }
        }

        impl Atomic<u32> {
            pub fn fetch_add(&self, value: u32, _: ordering::Full) -> u32 {
                self.0.fetch_add(value, Ordering::SeqCst)
            }
        }
    }
}
