// SPDX-License-Identifier: GPL-2.0

//! References to this module.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use kernel::{
    bindings,
    ModuleMetadata, //
};

/// Keeps this module from being unloaded.
///
/// # Invariants
///
/// Holds one reference to this module.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// Takes a reference. To be called by code that some reference protects already, as that of an
    /// open device does.
    pub(crate) fn get() -> Self {
        // SAFETY: This code runs, so the module is there.
        // INVARIANT: The call takes the reference.
        unsafe { bindings::__module_get(crate::LocalModule::THIS_MODULE.as_ptr()) };
        Self(())
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this reference is ours.
        unsafe { bindings::module_put(crate::LocalModule::THIS_MODULE.as_ptr()) };
    }
}
