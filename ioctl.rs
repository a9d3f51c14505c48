// SPDX-License-Identifier: GPL-2.0

//! `LOOP_*` ioctls: what user space passes is decoded here, and done by the device.

#![forbid(unsafe_code)]

use crate::{
    blk_mq::{
        DiskOperations,
        GenDisk,
        Mode,
        OpenMutex, //
    },
    device::LoopDevice,
    kern::{
        bdev::BlockDevice,
        ffi::{
            self,
            LoopConfig,
            LoopInfo64, //
        },
        task, //
    },
};
use kernel::{
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

impl DiskOperations for LoopDevice {
    fn open(disk: &GenDisk<Self>, _mode: Mode) -> Result {
        disk.device().open()
    }

    fn release(disk: &OpenMutex<'_, Self>) {
        disk.device().release(disk);
    }

    fn ioctl(
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        cmd: u32,
        arg: usize,
    ) -> Result<c_int> {
        let device = disk.device();
        match cmd {
            ffi::LOOP_SET_FD => {
                // As LOOP_CONFIGURE with nothing asked for.
                let mut config = LoopConfig::default();
                config.fd = arg as u32;
                device.configure(disk, bdev, mode, &config)?;
            }
            ffi::LOOP_CONFIGURE => device.configure(disk, bdev, mode, &read(arg)?)?,
            ffi::LOOP_CLR_FD => device.clear(disk)?,
            ffi::LOOP_GET_STATUS64 => {
                // Before anything else, as ever.
                if arg == 0 {
                    return Err(EINVAL);
                }
                write(arg, &device.status()?)?;
            }
            ffi::LOOP_SET_STATUS64 => {
                may_change(mode)?;
                device.set_status(disk, &read::<LoopInfo64>(arg)?)?;
            }
            _ => return Err(EINVAL),
        }
        Ok(0)
    }

    fn compat_ioctl(
        disk: &GenDisk<Self>,
        bdev: &BlockDevice,
        mode: Mode,
        cmd: u32,
        arg: usize,
    ) -> Result<c_int> {
        match cmd {
            // Their structures are the same for 32-bit programs, and so are pointers to them.
            ffi::LOOP_SET_FD
            | ffi::LOOP_CONFIGURE
            | ffi::LOOP_CLR_FD
            | ffi::LOOP_GET_STATUS64
            | ffi::LOOP_SET_STATUS64 => Self::ioctl(disk, bdev, mode, cmd, arg & u32::MAX as usize),
            _ => Err(ENOIOCTLCMD),
        }
    }
}

/// Checks that the caller may change what others see: by how it opened the device, or by right.
fn may_change(mode: Mode) -> Result {
    if mode.is_write() || task::is_admin() {
        Ok(())
    } else {
        Err(EPERM)
    }
}

fn read<T: FromBytes>(arg: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(arg), size_of::<T>())
        .reader()
        .read()
}

fn write<T: AsBytes>(arg: usize, value: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(arg), size_of::<T>())
        .writer()
        .write(value)
}
