// SPDX-License-Identifier: GPL-2.0

//! `/dev/loop-control`: devices are added, removed and found.

use super::registry;
use crate::kern::ffi;
use kernel::{
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    prelude::*,
};

/// One open `/dev/loop-control`.
pub(crate) struct Control;

#[vtable]
impl MiscDevice for Control {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        // Waits while the module may still fail to load; nobody must have this open then.
        registry::registry()?;
        Ok(KBox::new(Control, GFP_KERNEL)?)
    }

    fn ioctl(_this: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        // User space passes an `int`; a negative number is none in particular.
        let index = u32::try_from(arg as i32).ok();
        let registry = registry::registry()?;
        match cmd {
            ffi::LOOP_CTL_ADD => registry.add(index).map(|index| index as isize),
            ffi::LOOP_CTL_REMOVE => registry.remove(index).map(|()| 0),
            ffi::LOOP_CTL_GET_FREE => registry.get_free().map(|index| index as isize),
            _ => Err(ENOSYS),
        }
    }
}
