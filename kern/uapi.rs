// SPDX-License-Identifier: GPL-2.0

//! The numbers and the structures of the ioctls of loop devices.
//!
//! C headers: [`include/uapi/linux/loop.h`](srctree/include/uapi/linux/loop.h),
//! [`include/linux/compat.h`](srctree/include/linux/compat.h)

use super::ffi::{
    loop_config,
    loop_info,
    OldDev, //
};
pub(crate) use super::ffi::{
    loop_info64,
    LOOP_CHANGE_FD,
    LOOP_CLR_FD,
    LOOP_CONFIGURE,
    LOOP_CTL_ADD,
    LOOP_CTL_GET_FREE,
    LOOP_CTL_REMOVE,
    LOOP_GET_STATUS,
    LOOP_GET_STATUS64,
    LOOP_MAJOR,
    LOOP_SET_BLOCK_SIZE,
    LOOP_SET_CAPACITY,
    LOOP_SET_DIRECT_IO,
    LOOP_SET_FD,
    LOOP_SET_STATUS,
    LOOP_SET_STATUS64, //
};
use core::{
    mem::offset_of,
    ops::{
        Deref,
        DerefMut, //
    },
};
use kernel::{
    build_assert::static_assert,
    ioctl::_IOW,
    prelude::*, //
};

/// A structure that may be copied from and to user space as bytes.
///
/// # Invariants
///
/// `T` consists of integers and arrays of integers, without padding.
#[derive(Default)]
#[repr(transparent)]
pub(crate) struct Plain<T>(T);

impl<T> Deref for Plain<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Plain<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// Attaches a file to a free device, and returns the number of the device: an ioctl of
/// `/dev/loop-control` that only this driver has. The argument is a [`LoopConfig`].
pub(crate) const LOOP_CTL_ATTACH: u32 = _IOW::<LoopConfig>(b'L' as u32, 0xa0);

/// The length of a name, its NUL included: `LO_NAME_SIZE`.
pub(crate) const NAME_SIZE: usize = 64;

/// The maximum length of a key, in bytes: `LO_KEY_SIZE`.
pub(crate) const KEY_SIZE: usize = 32;

/// Returns the length of the padding between a field of `size` bytes at `begin` and the next field,
/// at `next`, in bytes.
const fn gap(begin: usize, size: usize, next: usize) -> usize {
    next - begin - size
}

// Defines `struct loop_info` or its compat form, which only differ in types and padding.
macro_rules! old_info {
    ($(#[$doc:meta])* $name:ident {
        dev: $dev:ty,
        long: $long:ty,
        after_number: $after_number:expr,
        after_device: $after_device:expr,
        after_rdevice: $after_rdevice:expr,
        after_key: $after_key:expr,
        at_end: $at_end:expr,
    }) => {
        $(#[$doc])*
        ///
        /// The padding consists of fields, so that it is initialized before it is copied to user
        /// space.
        #[repr(C)]
        pub(crate) struct $name {
            pub(crate) lo_number: i32,
            after_number: [u8; $after_number],
            pub(crate) lo_device: $dev,
            after_device: [u8; $after_device],
            pub(crate) lo_inode: $long,
            pub(crate) lo_rdevice: $dev,
            after_rdevice: [u8; $after_rdevice],
            pub(crate) lo_offset: i32,
            pub(crate) lo_encrypt_type: i32,
            pub(crate) lo_encrypt_key_size: i32,
            pub(crate) lo_flags: i32,
            pub(crate) lo_name: [u8; NAME_SIZE],
            pub(crate) lo_encrypt_key: [u8; KEY_SIZE],
            after_key: [u8; $after_key],
            pub(crate) lo_init: [$long; 2],
            pub(crate) reserved: [u8; 4],
            at_end: [u8; $at_end],
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    lo_number: 0,
                    after_number: [0; $after_number],
                    lo_device: 0,
                    after_device: [0; $after_device],
                    lo_inode: 0,
                    lo_rdevice: 0,
                    after_rdevice: [0; $after_rdevice],
                    lo_offset: 0,
                    lo_encrypt_type: 0,
                    lo_encrypt_key_size: 0,
                    lo_flags: 0,
                    lo_name: [0; NAME_SIZE],
                    lo_encrypt_key: [0; KEY_SIZE],
                    after_key: [0; $after_key],
                    lo_init: [0; 2],
                    reserved: [0; 4],
                    at_end: [0; $at_end],
                }
            }
        }

        // The size is the sum of the sizes of all fields, so there is no other padding.
        static_assert!(
            size_of::<$name>()
                == 5 * size_of::<i32>()
                    + 2 * size_of::<$dev>()
                    + 3 * size_of::<$long>()
                    + NAME_SIZE
                    + KEY_SIZE
                    + 4
                    + $after_number
                    + $after_device
                    + $after_rdevice
                    + $after_key
                    + $at_end
        );
    };
}

old_info! {
    /// `struct loop_info`: the predecessor of [`LoopInfo64`].
    OldInfo {
        dev: OldDev,
        long: c_ulong,
        after_number: gap(0, size_of::<i32>(), offset_of!(loop_info, lo_device)),
        after_device: gap(
            offset_of!(loop_info, lo_device),
            size_of::<OldDev>(),
            offset_of!(loop_info, lo_inode),
        ),
        after_rdevice: gap(
            offset_of!(loop_info, lo_rdevice),
            size_of::<OldDev>(),
            offset_of!(loop_info, lo_offset),
        ),
        after_key: gap(
            offset_of!(loop_info, lo_encrypt_key),
            KEY_SIZE,
            offset_of!(loop_info, lo_init),
        ),
        at_end: gap(offset_of!(loop_info, reserved), 4, size_of::<loop_info>()),
    }
}

static_assert!(size_of::<OldInfo>() == size_of::<loop_info>());
static_assert!(offset_of!(OldInfo, lo_inode) == offset_of!(loop_info, lo_inode));
static_assert!(offset_of!(OldInfo, lo_offset) == offset_of!(loop_info, lo_offset));
static_assert!(offset_of!(OldInfo, lo_name) == offset_of!(loop_info, lo_name));
static_assert!(offset_of!(OldInfo, reserved) == offset_of!(loop_info, reserved));

/// `compat_dev_t`.
#[cfg(target_arch = "x86_64")]
type CompatDev = u16;
#[cfg(not(target_arch = "x86_64"))]
type CompatDev = u32;

old_info! {
    /// `struct compat_loop_info`: the [`OldInfo`] of 32-bit programs.
    CompatInfo {
        dev: CompatDev,
        long: u32,
        after_number: 0,
        after_device: size_of::<u32>() - size_of::<CompatDev>(),
        after_rdevice: size_of::<u32>() - size_of::<CompatDev>(),
        after_key: 0,
        at_end: 0,
    }
}

static_assert!(size_of::<CompatInfo>() == 140);

// Defines types that may be copied from and to user space, each with the sum of its field sizes.
macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident = $raw:ident, $size:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) type $name = Plain<$raw>;

        // SAFETY: `$raw` consists of integers and arrays of integers, so all bit patterns are
        // valid.
        unsafe impl kernel::transmute::FromBytes for $name {}
        // SAFETY: `$raw` consists of integers and arrays of integers, which are initialized. It has
        // no padding: its size is the sum of the sizes of its fields, as asserted below, or where
        // it is defined.
        unsafe impl kernel::transmute::AsBytes for $name {}

        static_assert!(size_of::<$name>() == $size);
    )*};
}

plain! {
    /// `struct loop_info64`.
    LoopInfo64 = loop_info64, 5 * 8 + 4 * 4 + 64 + 64 + 32 + 2 * 8;
    /// `struct loop_config`.
    LoopConfig = loop_config, 2 * 4 + 232 + 8 * 8;
    /// `struct loop_info`.
    LoopInfo = OldInfo, size_of::<loop_info>();
    /// `struct compat_loop_info`.
    CompatLoopInfo = CompatInfo, 140;
}
