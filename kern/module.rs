// SPDX-License-Identifier: GPL-2.0

//! References to this module.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use kernel::{
    bindings,
    ModuleMetadata, //
};

/// A reference to this module, which keeps the module from being unloaded.
///
/// # Invariants
///
/// The value owns one reference to this module.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// Takes a reference. The caller runs under another one, as under that of an open device. Any
    /// context.
    pub(crate) fn get() -> Self {
        // SAFETY: This code is part of the module, so the module is loaded while it runs.
        // INVARIANT: The call takes the reference that the value owns.
        unsafe { bindings::__module_get(crate::LocalModule::THIS_MODULE.as_ptr()) };
        Self(())
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the value owns a reference, which this releases.
        unsafe { bindings::module_put(crate::LocalModule::THIS_MODULE.as_ptr()) };
    }
}
