// SPDX-License-Identifier: GPL-2.0

//! `LOOP_*` ioctls: what user space passes is decoded here, and done by the device.

use super::{
    device::LoopDevice,
    legacy_info::LegacyInfo, //
};
use crate::{
    blk_mq::{
        DiskOperations,
        GenDisk,
        Mode,
        OpenMutex, //
    },
    datapath::target::LoopQueue,
    kern::{
        bdev::BlockDevice,
        ffi,
        task,
        uapi::{
            CompatLoopInfo,
            LoopConfig,
            LoopInfo,
            LoopInfo64, //
        }, //
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
    type Queue = LoopQueue;

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
            ffi::LOOP_CHANGE_FD => device.change_fd(disk, arg as u32)?,
            ffi::LOOP_CLR_FD => device.clear(disk)?,
            ffi::LOOP_GET_STATUS => get_status::<LoopInfo>(device, arg)?,
            ffi::LOOP_SET_STATUS => set_status::<LoopInfo>(disk, mode, arg)?,
            ffi::LOOP_GET_STATUS64 => {
                check_address(arg)?;
                write(arg, &device.status()?)?;
            }
            ffi::LOOP_SET_STATUS64 => {
                may_change(mode)?;
                device.set_status(disk, &read::<LoopInfo64>(arg)?)?;
            }
            ffi::LOOP_SET_CAPACITY => {
                may_change(mode)?;
                device.set_capacity(disk)?;
            }
            ffi::LOOP_SET_DIRECT_IO => {
                may_change(mode)?;
                device.set_direct_io(disk, arg != 0)?;
            }
            ffi::LOOP_SET_BLOCK_SIZE => {
                may_change(mode)?;
                // Callers pass an `int`, whose other half of the register may hold anything.
                device.set_block_size(disk, bdev, mode, arg as u32)?;
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
        // `compat_ptr()`; numbers have no more bits either.
        let arg = arg & u32::MAX as usize;
        match cmd {
            ffi::LOOP_GET_STATUS => get_status::<CompatLoopInfo>(disk.device(), arg)?,
            ffi::LOOP_SET_STATUS => set_status::<CompatLoopInfo>(disk, mode, arg)?,
            // Their structures are the same for 32-bit programs.
            ffi::LOOP_SET_FD
            | ffi::LOOP_CONFIGURE
            | ffi::LOOP_CHANGE_FD
            | ffi::LOOP_CLR_FD
            | ffi::LOOP_GET_STATUS64
            | ffi::LOOP_SET_STATUS64
            | ffi::LOOP_SET_CAPACITY
            | ffi::LOOP_SET_DIRECT_IO
            | ffi::LOOP_SET_BLOCK_SIZE => return Self::ioctl(disk, bdev, mode, cmd, arg),
            _ => return Err(ENOIOCTLCMD),
        }
        Ok(0)
    }

    fn revalidate(disk: &GenDisk<Self>) {
        disk.device().revalidate_dio(disk);
    }
}

/// LOOP_GET_STATUS, in one of its forms.
fn get_status<T: LegacyInfo + AsBytes>(device: &LoopDevice, arg: usize) -> Result {
    check_address(arg)?;
    write(arg, &T::from_info64(&device.status()?)?)
}

/// LOOP_SET_STATUS, in one of its forms.
fn set_status<T: LegacyInfo + FromBytes>(
    disk: &GenDisk<LoopDevice>,
    mode: Mode,
    arg: usize,
) -> Result {
    may_change(mode)?;
    let info = read::<T>(arg)?.to_info64();
    disk.device().set_status(disk, &info)
}

/// What asks for the status without an address has an error of its own, before all others.
fn check_address(arg: usize) -> Result {
    if arg == 0 {
        Err(EINVAL)
    } else {
        Ok(())
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
