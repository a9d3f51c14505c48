// SPDX-License-Identifier: GPL-2.0

//! `/dev/loop-control`: adds, removes and finds devices.

use super::registry;
use crate::kern::{
    compat::ENOSYS,
    uapi, //
};
use kernel::{
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceRegistration, //
    },
    prelude::*,
};

/// An open `/dev/loop-control`.
pub(crate) struct Control;

#[vtable]
impl MiscDevice for Control {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        // Waits while the module may still fail to load, because a file that is open then would use
        // the module after it is freed.
        registry::registry()?;
        Ok(KBox::new(Control, GFP_KERNEL)?)
    }

    fn ioctl(_this: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        // User space passes an `int`; a negative number stands for no particular device.
        let index = u32::try_from(arg as i32).ok();
        let registry = registry::registry()?;
        match cmd {
            uapi::LOOP_CTL_ADD => registry.add(index).map(|index| index as isize),
            uapi::LOOP_CTL_REMOVE => registry.remove(index).map(|()| 0),
            uapi::LOOP_CTL_GET_FREE => registry.get_free(0).map(|index| index as isize),
            uapi::LOOP_CTL_ATTACH => {
                let config = super::ioctl::read(arg)?;
                registry.attach(&config).map(|index| index as isize)
            }
            _ => Err(ENOSYS),
        }
    }
}
