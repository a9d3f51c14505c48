// SPDX-License-Identifier: GPL-2.0

//! Module parameters with a lower bound, which user space can read in `/sys/module/*/parameters`.
//! The parameters of the `module!` macro have no bound and cannot be read.
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

/// The type of a parameter.
///
/// # Safety
///
/// `OPS` must be valid for a `struct kernel_param` whose `arg` points to a static value of `Self`.
pub(crate) unsafe trait Parameter: Sync {
    /// The name of the type, for `modinfo`.
    const TYPE: &'static str;
    /// The operations that set and show the parameter.
    const OPS: &'static bindings::kernel_param_ops;
}

/// A number.
// The value comes first, because `param_get_int()` reads an `int` at `arg`.
#[repr(C)]
pub(crate) struct Integer {
    value: Atomic<i32>,
    given: Atomic<bool>,
    min: i32,
}

impl Integer {
    /// Makes a number that is `default` unless user space gives another one, of at least `min`.
    pub(crate) const fn new(default: i32, min: i32) -> Self {
        Self {
            value: Atomic::new(default),
            given: Atomic::new(false),
            min,
        }
    }

    /// Returns the value.
    pub(crate) fn value(&self) -> i32 {
        self.value.load(Relaxed)
    }

    /// Returns whether user space gave the value.
    pub(crate) fn is_given(&self) -> bool {
        self.given.load(Relaxed)
    }

    /// Replaces the value, which user space reads in sysfs.
    pub(crate) fn show(&self, value: i32) {
        self.value.store(value, Relaxed);
    }

    /// `->set`: sets the parameter to the number in a string. Fails with `EINVAL` if the string is
    /// no number, or if the number is less than the minimum.
    ///
    /// # Safety
    ///
    /// `given` must be a NUL-terminated string, and the `arg` of `parameter` must point to a static
    /// `Integer`.
    unsafe extern "C" fn set(
        given: *const c_char,
        parameter: *const bindings::kernel_param,
    ) -> c_int {
        from_result(|| {
            let mut value = 0;
            // SAFETY: By the function's requirements `given` is a NUL-terminated string. `value` is
            // valid for writes.
            to_result(unsafe { bindings::kstrtoint(given, 0, &mut value) })?;
            // SAFETY: By the function's requirements `arg` points to a static `Integer`.
            let this = unsafe { &*(*parameter).__bindgen_anon_1.arg.cast::<Self>() };
            if value < this.min {
                return Err(EINVAL);
            }
            this.value.store(value, Relaxed);
            this.given.store(true, Relaxed);
            Ok(0)
        })
    }
}

// SAFETY: `set` expects an `Integer` at `arg`, and a string, which is never null without
// `KERNEL_PARAM_OPS_FL_NOARG`. `param_get_int()` expects an `int` at `arg`, and an `Integer` begins
// with one, because it is `repr(C)`.
unsafe impl Parameter for Integer {
    const TYPE: &'static str = "int";
    const OPS: &'static bindings::kernel_param_ops = &bindings::kernel_param_ops {
        set: Some(Self::set),
        get: Some(bindings::param_get_int),
        ..pin_init::zeroed()
    };
}

/// A parameter that is on or off.
#[repr(transparent)]
pub(crate) struct Bool(Atomic<bool>);

impl Bool {
    /// Makes a parameter with a default.
    pub(crate) const fn new(default: bool) -> Self {
        Self(Atomic::new(default))
    }

    /// Returns whether the parameter is on.
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }
}

// SAFETY: Both operations expect a `bool` at `arg`, and a `Bool` is a transparent wrapper of one.
// `param_set_bool()` writes it without an atomic operation, but only before the module is
// initialized: sysfs does not allow writes (`perm` in `Entry::new`).
unsafe impl Parameter for Bool {
    const TYPE: &'static str = "bool";
    const OPS: &'static bindings::kernel_param_ops = &bindings::kernel_param_ops {
        // A parameter that is given without a value is on.
        flags: bindings::KERNEL_PARAM_OPS_FL_NOARG as c_uint,
        set: Some(bindings::param_set_bool),
        get: Some(bindings::param_get_bool),
        ..pin_init::zeroed()
    };
}

/// A parameter that is one of several words.
pub(crate) struct Choice {
    words: &'static [&'static str],
    index: Atomic<usize>,
}

impl Choice {
    /// Makes a parameter that is the first of `words`, unless user space gives another one.
    pub(crate) const fn new(words: &'static [&'static str]) -> Self {
        Self {
            words,
            index: Atomic::new(0),
        }
    }

    /// Returns the position of the chosen word.
    pub(crate) fn index(&self) -> usize {
        self.index.load(Relaxed)
    }

    /// `->set`: sets the parameter to the word in a string. Fails with `EINVAL` for any other
    /// string.
    ///
    /// # Safety
    ///
    /// `given` must be a NUL-terminated string, and the `arg` of `parameter` must point to a static
    /// `Choice`.
    unsafe extern "C" fn set(
        given: *const c_char,
        parameter: *const bindings::kernel_param,
    ) -> c_int {
        from_result(|| {
            // SAFETY: By the function's requirements `given` is a NUL-terminated string.
            let given = unsafe { CStr::from_char_ptr(given) }.to_bytes();
            // SAFETY: By the function's requirements `arg` points to a static `Choice`.
            let this = unsafe { &*(*parameter).__bindgen_anon_1.arg.cast::<Self>() };
            let index = this.words.iter().position(|word| word.as_bytes() == given);
            this.index.store(index.ok_or(EINVAL)?, Relaxed);
            Ok(0)
        })
    }

    /// `->get`: writes the word and a newline to a buffer, and returns their length.
    ///
    /// # Safety
    ///
    /// `buffer` must be valid for writes of a page, and the `arg` of `parameter` must point to a
    /// static `Choice` whose words are shorter.
    unsafe extern "C" fn get(
        buffer: *mut c_char,
        parameter: *const bindings::kernel_param,
    ) -> c_int {
        // SAFETY: By the function's requirements `arg` points to a static `Choice`.
        let this = unsafe { &*(*parameter).__bindgen_anon_1.arg.cast::<Self>() };
        let Some(word) = this.words.get(this.index()) else {
            return 0;
        };
        let buffer = buffer.cast::<u8>();
        // SAFETY: By the function's requirements the buffer is longer than the word.
        unsafe { core::ptr::copy_nonoverlapping(word.as_ptr(), buffer, word.len()) };
        // SAFETY: As above.
        unsafe { buffer.add(word.len()).write(b'\n') };
        // CAST: A word is shorter than a page.
        (word.len() + 1) as c_int
    }
}

// SAFETY: Both operations expect a `Choice` at `arg`. `set` also expects a string, which is never
// null without `KERNEL_PARAM_OPS_FL_NOARG`; and `get` a page, which the caller of `->get` passes.
// The words are much shorter than that.
unsafe impl Parameter for Choice {
    const TYPE: &'static str = "charp";
    const OPS: &'static bindings::kernel_param_ops = &bindings::kernel_param_ops {
        set: Some(Self::set),
        get: Some(Self::get),
        ..pin_init::zeroed()
    };
}

/// A `struct kernel_param`, for the `__param` section.
#[repr(transparent)]
pub(crate) struct Entry(bindings::kernel_param);

// SAFETY: Rust code does not access an entry. C code only reads it, and calls its operations under
// `kernel_param_lock()`.
unsafe impl Sync for Entry {}

impl Entry {
    /// Makes the entry of the parameter `value`, which all users may read in sysfs, and which
    /// cannot be written there. `name` was made by [`join`].
    pub(crate) const fn new<P: Parameter>(name: &'static [u8], value: &'static P) -> Self {
        assert!(matches!(name.last(), Some(0)));
        Self(bindings::kernel_param {
            name: name.as_ptr(),
            mod_: super::compat::THIS_MODULE,
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

/// Returns the length of the string that [`join`] makes of `parts`, in bytes.
pub(crate) const fn length(parts: &[&str]) -> usize {
    let (mut length, mut part) = (1, 0);
    while part < parts.len() {
        length += parts[part].len();
        part += 1;
    }
    length
}

/// Concatenates `parts` and a NUL. To be evaluated when the module is compiled.
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

/// Defines statics that are parameters of the module, each with a description for `modinfo`.
//
// Since rustc 1.95, plain `#[used]` gives each static a section of its own, and modpost reads only
// one `.modinfo`. So use `#[used(compiler)]`, as `module!` does.
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
