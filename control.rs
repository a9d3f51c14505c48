// SPDX-License-Identifier: GPL-2.0

//! The control path: from user space to a device.
//!
//! - [`loop_control`] - `/dev/loop-control` adds, removes and finds devices;
//! - [`registry`] - all devices;
//! - [`ioctl`] - `LOOP_*`: an argument from user space becomes a call to a device;
//! - [`device`] - one device, and every change of its [`state`];
//! - [`backing`] - the file behind it;
//! - [`sysfs`] - `/sys/block/loopN/loop/*` and `/sys/block/loopN/rnull_loop/*`;
//! - [`state`], [`settings`], [`flags`], [`geometry`], [`legacy_info`] - pure logic, without a
//!   kernel.

#![forbid(unsafe_code)]

mod backing;
pub(crate) mod device;
mod flags;
pub(crate) mod geometry;
mod ioctl;
mod legacy_info;
pub(crate) mod loop_control;
pub(crate) mod registry;
mod settings;
pub(crate) mod state;
mod sysfs;
