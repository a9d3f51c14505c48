// SPDX-License-Identifier: GPL-2.0

//! Abstractions that the `kernel` crate lacks: one file per C subsystem, each written as if it were
//! to move to `rust/kernel/`.
//!
//! Nothing here has logic of loop devices. [`uapi`] and constants of [`ffi`] are their uAPI.

pub(crate) mod atomic;
pub(crate) mod bdev;
pub(crate) mod bvec;
pub(crate) mod compat;
pub(crate) mod counters;
pub(crate) mod ffi;
pub(crate) mod file;
pub(crate) mod gate;
pub(crate) mod lease;
pub(crate) mod miscdevice;
pub(crate) mod module;
pub(crate) mod mutex;
pub(crate) mod parameter;
pub(crate) mod task;
pub(crate) mod time;
pub(crate) mod trace;
pub(crate) mod uapi;
pub(crate) mod workqueue;
