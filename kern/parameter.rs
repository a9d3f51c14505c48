// SPDX-License-Identifier: GPL-2.0

//! Parameters of the module that are checked when they are given, and that user space can read in
//! `/sys/module/*/parameters`. Those of the `module!` macro are neither.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use kernel::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    },
};

/// What a parameter can be.
///
/// # Safety
///
/// `OPS` must be right for a `struct kernel_param` whose `arg` points at a static value of `Self`.
pub(crate) unsafe trait Parameter: Sync {
    /// The name of the type, for `modinfo`.
    const TYPE: &'static str;
    /// How it is set and shown.
    const OPS: &'static bindings::kernel_param_ops;
}

/// A number.
// The value comes first, as that is where `param_get_int()` looks for it.
#[repr(C)]
pub(crate) struct Integer {
    value: Atomic<i32>,
    given: Atomic<bool>,
    least: i32,
}

impl Integer {
    /// A number that is `default` until another is given, which must not be less than `least`.
    pub(crate) const fn new(default: i32, least: i32) -> Self {
        Self {
            value: Atomic::new(default),
            given: Atomic::new(false),
            least,
        }
    }

    /// The value.
    pub(crate) fn value(&self) -> i32 {
        self.value.load(Relaxed)
    }

    /// Whether somebody gave the value.
    pub(crate) fn is_given(&self) -> bool {
        self.given.load(Relaxed)
    }

    /// Shows another value from now on.
    pub(crate) fn show(&self, value: i32) {
        self.value.store(value, Relaxed);
    }

    /// # Safety
    ///
    /// Called for a parameter that [`Parameter`] describes alone, with a NUL-terminated string.
    unsafe extern "C" fn set(
        given: *const c_char,
        parameter: *const bindings::kernel_param,
    ) -> c_int {
        from_result(|| {
            let mut value = 0;
            // SAFETY: By the function's requirements `given` is a string; `value` is valid for
            // writes.
            to_result(unsafe { bindings::kstrtoint(given, 0, &mut value) })?;
            // SAFETY: By the function's requirements `arg` points at a static `Integer`.
            let this = unsafe { &*(*parameter).__bindgen_anon_1.arg.cast::<Self>() };
            if value < this.least {
                return Err(EINVAL);
            }
            this.value.store(value, Relaxed);
            this.given.store(true, Relaxed);
            Ok(0)
        })
    }
}

// SAFETY: `set` expects an `Integer`, and `param_get_int()` an `int`, which an `Integer` begins with.
unsafe impl Parameter for Integer {
    const TYPE: &'static str = "int";
    const OPS: &'static bindings::kernel_param_ops = &bindings::kernel_param_ops {
        set: Some(Self::set),
        get: Some(bindings::param_get_int),
        ..pin_init::zeroed()
    };
}

/// A switch.
#[repr(transparent)]
pub(crate) struct Switch(Atomic<bool>);

impl Switch {
    /// A switch that is off unless somebody turns it on.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(false))
    }

    /// Whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }
}

// SAFETY: Both operations expect a `bool`, which a `Switch` is; parameters that nobody can write
// through sysfs are set before the module uses them.
unsafe impl Parameter for Switch {
    const TYPE: &'static str = "bool";
    const OPS: &'static bindings::kernel_param_ops = &bindings::kernel_param_ops {
        // Given without a value it is on.
        flags: bindings::KERNEL_PARAM_OPS_FL_NOARG as c_uint,
        set: Some(bindings::param_set_bool),
        get: Some(bindings::param_get_bool),
        ..pin_init::zeroed()
    };
}

/// A `struct kernel_param` where the kernel looks for it.
#[repr(transparent)]
pub(crate) struct Entry(bindings::kernel_param);

// SAFETY: The kernel serializes access; nothing of this module uses it.
unsafe impl Sync for Entry {}

impl Entry {
    /// The entry of the parameter `value`, which anybody may read and nobody may write. The name is
    /// one that [`join`] made.
    pub(crate) const fn new<P: Parameter>(name: &'static [u8], value: &'static P) -> Self {
        assert!(matches!(name.last(), Some(0)));
        Self(bindings::kernel_param {
            name: name.as_ptr(),
            mod_: <crate::LocalModule as kernel::ModuleMetadata>::THIS_MODULE.as_ptr(),
            ops: P::OPS,
            perm: 0o444,
            level: -1,
            flags: 0,
            __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
                arg: core::ptr::from_ref(value).cast_mut().cast(),
            },
        })
    }
}

/// The length of `parts` one after another with a NUL at the end, in bytes.
pub(crate) const fn length(parts: &[&str]) -> usize {
    let (mut length, mut part) = (1, 0);
    while part < parts.len() {
        length += parts[part].len();
        part += 1;
    }
    length
}

/// `parts` one after another, with a NUL at the end. To be evaluated when the module is compiled.
pub(crate) const fn join<const N: usize>(parts: &[&str]) -> [u8; N] {
    let (mut joined, mut end, mut part) = ([0; N], 0, 0);
    while part < parts.len() {
        let bytes = parts[part].as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            joined[end] = bytes[at];
            end += 1;
            at += 1;
        }
        part += 1;
    }
    joined
}

/// Makes statics that are parameters of the module, each with a description for `modinfo`.
//
// `#[used]` alone would, since rustc 1.95, give the statics a section of their own, of which
// modpost reads one. `module!` says `compiler`, too.
macro_rules! module_parameters {
    ($($name:ident: $type:ty = $value:expr, $description:literal;)*) => {$(
        #[doc = $description]
        #[expect(non_upper_case_globals, reason = "the name of a parameter")]
        static $name: $type = $value;

        const _: () = {
            use $crate::kern::parameter;

            const NAME: &str = stringify!($name);
            const TYPE: &[&str] =
                &["parmtype=", NAME, ":", <$type as parameter::Parameter>::TYPE];
            const DESCRIPTION: &[&str] = &["parm=", NAME, ":", $description];
            static NAME_BYTES: [u8; parameter::length(&[NAME])] = parameter::join(&[NAME]);

            #[link_section = "__param"]
            #[used(compiler)]
            static ENTRY: parameter::Entry = parameter::Entry::new(&NAME_BYTES, &$name);

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static TYPE_INFO: [u8; parameter::length(TYPE)] = parameter::join(TYPE);

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static DESCRIPTION_INFO: [u8; parameter::length(DESCRIPTION)] =
                parameter::join(DESCRIPTION);
        };
    )*};
}

pub(crate) use module_parameters;
