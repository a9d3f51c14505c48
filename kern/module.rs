// SPDX-License-Identifier: GPL-2.0

//! References to this module.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use super::compat;
use kernel::{
    bindings,
    prelude::*, //
};

/// A reference to this module, which keeps the module from being unloaded.
///
/// # Invariants
///
/// The value owns one reference to this module.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// Takes a reference: `try_module_get()`. Fails with `ENODEV` if the module is being unloaded.
    /// Any context.
    pub(crate) fn get() -> Result<Self> {
        // SAFETY: The pointer is that of this module, whose memory is valid while its code runs.
        if unsafe { bindings::try_module_get(compat::THIS_MODULE) } {
            // INVARIANT: The call has taken the reference that the value owns.
            Ok(Self(()))
        } else {
            Err(ENODEV)
        }
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value owns a reference, which this releases.
        unsafe { bindings::module_put(compat::THIS_MODULE) };
    }
}

/// Gives the module a version, which `modinfo` and `/sys/module/NAME/version` show:
/// `MODULE_VERSION()`.
macro_rules! module_version {
    ($version:literal) => {
        const _: () = {
            use $crate::kern::parameter;

            const PARTS: &[&str] = &["version=", $version];
            #[link_section = ".modinfo"]
            #[used(compiler)]
            static VERSION_INFO: [u8; parameter::length(PARTS)] = parameter::join(PARTS);
        };
    };
}

pub(crate) use module_version;
