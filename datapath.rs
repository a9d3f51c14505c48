// SPDX-License-Identifier: GPL-2.0

//! The data path: one request, in the order of its life.
//!
//! - [`queue`] - the block layer dispatches the request;
//! - [`route`] - the one decision: the task that serves the request, and the I/O method;
//! - [`worker`] - the request waits for a worker, unless its submitter serves it;
//! - [`transfer`] - the request becomes an operation on the backing file, or a bio for the block
//!   device that the backing file is;
//! - [`completion`] - the operation is over: the request ends, or a worker continues it.
//!
//! Two files have the state of requests: [`target`] that of the device, [`progress`] that of one
//! request. [`service`] has the workers of a device, [`space`] the writes that wait for space.
//! [`leasing`] bypasses the file system of the backing file. Five are pure logic, without a kernel:
//! [`extents`] are the places of blocks, [`offload`] measures whether another CPU helps,
//! [`tunables`] are what user space allows in `/sys/block/loopN/rnull_loop`, [`backoff`] and
//! [`retry`] count failures.

#![forbid(unsafe_code)]

pub(crate) mod backoff;
mod completion;
mod extents;
pub(crate) mod leasing;
mod offload;
mod progress;
mod queue;
mod retry;
mod route;
mod service;
mod space;
mod stats;
pub(crate) mod target;
mod transfer;
pub(crate) mod tunables;
pub(crate) mod worker;
