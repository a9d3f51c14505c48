// SPDX-License-Identifier: GPL-2.0

//! Tracepoints. `trace.h` defines those of the module. One that is off costs a `nop`.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

/// Returns whether a tracepoint is on, by its name. Any context.
macro_rules! is_traced {
    ($name:ident) => {{
        #[cfg(CONFIG_TRACEPOINTS)]
        ::kernel::macros::paste! {
            // SAFETY: The key is in a tracepoint that C code defines.
            unsafe {
                ::kernel::jump_label::static_branch_unlikely!(
                    $crate::kern::ffi::[<__tracepoint_ $name>],
                    ::kernel::bindings::tracepoint,
                    key
                )
            }
        }
        #[cfg(not(CONFIG_TRACEPOINTS))]
        false
    }};
}
pub(crate) use is_traced;

/// Declares the Rust entry points of tracepoints of the module. (The kernel crate's macro of this
/// name finds only tracepoints that the bindings of the kernel have.)
macro_rules! declare_trace {
    ($($(#[$attr:meta])* $vis:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {$(
        $(#[$attr])*
        #[inline(always)]
        $vis unsafe fn $name($($arg: $ty),*) {
            #[cfg(CONFIG_TRACEPOINTS)]
            if $crate::kern::trace::is_traced!($name) {
                ::kernel::macros::paste! {
                    // SAFETY: By the function's requirements the arguments are valid.
                    unsafe { $crate::kern::ffi::[<rust_do_trace_ $name>]($($arg),*) };
                }
            }
            #[cfg(not(CONFIG_TRACEPOINTS))]
            let _ = ($($arg,)*);
        }
    )*};
}
pub(crate) use declare_trace;
