// SPDX-License-Identifier: GPL-2.0

//! The `LOOP_*` ioctls: decodes the arguments from user space, and calls the device.

use super::{
    device::LoopDevice,
    legacy_info::LegacyInfo,
    sysfs, //
};
use crate::{
    blk_mq::{
        sysfs::AttributeGroup,
        DiskOperations,
        GenDisk,
        Mode,
        OpenMutex, //
    },
    datapath::target::LoopQueue,
    kern::{
        bdev::BlockDevice,
        task,
        uapi::{
            self,
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

    const ATTRIBUTES: &'static AttributeGroup<Self> = sysfs::TUNABLES_GROUP;

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
            uapi::LOOP_SET_FD => {
                // As LOOP_CONFIGURE with zeroes in all other fields.
                let mut config = LoopConfig::default();
                config.fd = arg as u32;
                device.configure(disk, bdev, mode, &config)?;
            }
            uapi::LOOP_CONFIGURE => device.configure(disk, bdev, mode, &read(arg)?)?,
            uapi::LOOP_CHANGE_FD => device.change_fd(disk, arg as u32)?,
            uapi::LOOP_CLR_FD => device.clr_fd(disk)?,
            uapi::LOOP_GET_STATUS => get_status::<LoopInfo>(device, arg)?,
            uapi::LOOP_SET_STATUS => set_status::<LoopInfo>(disk, mode, arg)?,
            uapi::LOOP_GET_STATUS64 => {
                check_address(arg)?;
                write(arg, &device.status()?)?;
            }
            uapi::LOOP_SET_STATUS64 => {
                may_change(mode)?;
                device.set_status(disk, &read::<LoopInfo64>(arg)?)?;
            }
            uapi::LOOP_SET_CAPACITY => {
                may_change(mode)?;
                device.set_capacity(disk)?;
            }
            uapi::LOOP_SET_DIRECT_IO => {
                may_change(mode)?;
                device.set_direct_io(disk, arg != 0)?;
            }
            uapi::LOOP_SET_BLOCK_SIZE => {
                may_change(mode)?;
                // User space passes an `int`, so the upper half of the register is undefined.
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
        // `compat_ptr()`. Arguments that are numbers have 32 bits, too.
        let arg = arg & u32::MAX as usize;
        match cmd {
            uapi::LOOP_GET_STATUS => get_status::<CompatLoopInfo>(disk.device(), arg)?,
            uapi::LOOP_SET_STATUS => set_status::<CompatLoopInfo>(disk, mode, arg)?,
            // The structures of these ioctls are the same for 32-bit programs.
            uapi::LOOP_SET_FD
            | uapi::LOOP_CONFIGURE
            | uapi::LOOP_CHANGE_FD
            | uapi::LOOP_CLR_FD
            | uapi::LOOP_GET_STATUS64
            | uapi::LOOP_SET_STATUS64
            | uapi::LOOP_SET_CAPACITY
            | uapi::LOOP_SET_DIRECT_IO
            | uapi::LOOP_SET_BLOCK_SIZE => return Self::ioctl(disk, bdev, mode, cmd, arg),
            _ => return Err(ENOIOCTLCMD),
        }
        Ok(0)
    }

    fn revalidate(disk: &GenDisk<Self>) {
        disk.device().revalidate(disk);
    }
}

/// Serves LOOP_GET_STATUS with a `struct loop_info` of type `T`.
fn get_status<T: LegacyInfo + AsBytes>(device: &LoopDevice, arg: usize) -> Result {
    check_address(arg)?;
    write(arg, &T::from_info64(&device.status()?)?)
}

/// Serves LOOP_SET_STATUS with a `struct loop_info` of type `T`.
fn set_status<T: LegacyInfo + FromBytes>(
    disk: &GenDisk<LoopDevice>,
    mode: Mode,
    arg: usize,
) -> Result {
    may_change(mode)?;
    let info = read::<T>(arg)?.to_info64();
    disk.device().set_status(disk, &info)
}

/// Checks the address for the status of a device. Fails with `EINVAL` for a null pointer, before
/// any other error of the ioctl, as in C.
fn check_address(arg: usize) -> Result {
    if arg == 0 {
        Err(EINVAL)
    } else {
        Ok(())
    }
}

/// Checks that the caller may change settings of the device: it has opened the device for writing,
/// or has `CAP_SYS_ADMIN`. Fails with `EPERM`.
fn may_change(mode: Mode) -> Result {
    if mode.is_write() || task::is_admin() {
        Ok(())
    } else {
        Err(EPERM)
    }
}

/// Reads a value from user space. May sleep. Fails with `EFAULT`.
pub(super) fn read<T: FromBytes>(arg: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(arg), size_of::<T>())
        .reader()
        .read()
}

/// Writes a value to user space. May sleep. Fails with `EFAULT`.
fn write<T: AsBytes>(arg: usize, value: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(arg), size_of::<T>())
        .writer()
        .write(value)
}
