// SPDX-License-Identifier: GPL-2.0

//! The check that a file may be the backing file of a device.

use super::LoopDevice;
use crate::{
    blk_mq::GenDisk,
    kern::{
        file::{
            BackingFile,
            Kind, //
        },
        mutex::LockKillable,
        uapi::LOOP_MAJOR, //
    },
};
use kernel::{
    fs::File,
    prelude::*,
    sync::{
        aref::ARef,
        MutexGuard, //
    },
};

/// Returns the loop device that `file` is, or is a partition of.
fn as_loop(file: &File) -> Option<&LoopDevice> {
    match file.kind() {
        Kind::Block(bdev) => Some(GenDisk::of(bdev)?.device()),
        _ => None,
    }
}

impl LoopDevice {
    /// Checks that `file` may be the backing file of this device: `loop_validate_file()`.
    ///
    /// Fails with `EBADF` if `file` is this device, or a loop device on top of it, with any number
    /// of loop devices in between. Fails with `EINVAL` if `file`, or one in between, is a loop
    /// device that is not bound, if `file` is a device of another loop driver, and if it is neither
    /// a regular file nor a block device.
    ///
    /// A cycle needs a device that is bound to this one. While this device is unbound there is
    /// none: a backing file keeps its loop device open, and thus bound. So LOOP_CONFIGURE calls
    /// this without a lock. LOOP_CHANGE_FD to a loop device holds
    /// [`lock_validation`](Self::lock_validation) from this call until it has published the new
    /// file. Each file in between comes from the snapshot of its device.
    pub(super) fn validate(&self, file: &ARef<File>) -> Result {
        let mut lower = file.clone();
        while let Some(other) = as_loop(&lower) {
            if core::ptr::eq(other, self) {
                return Err(EBADF);
            }
            lower = other.backing_file().ok_or(EINVAL)?;
        }
        match file.kind() {
            // A device of another loop driver (beside `standalone`) may have this device as its
            // lower device, and neither driver would detect the cycle.
            Kind::Block(bdev) if as_loop(file).is_none() && bdev.disk_major() == LOOP_MAJOR => {
                Err(EINVAL)
            }
            Kind::Regular | Kind::Block(_) => Ok(()),
            Kind::Other => Err(EINVAL),
        }
    }

    /// Excludes LOOP_CHANGE_FD of other devices to a loop device, if `file` is one. May sleep.
    /// Fails with `EINTR` on a fatal signal. Caller holds `state`.
    ///
    /// No file system of a backing file is called under this lock. But the device that changes
    /// drains its requests, and a file system mounted on it is notified of the change.
    pub(super) fn lock_validation(&self, file: &File) -> Result<Option<MutexGuard<'_, ()>>> {
        match as_loop(file) {
            Some(_) => Ok(Some(self.validation.lock_killable()?)),
            None => Ok(None),
        }
    }
}
