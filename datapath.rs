// SPDX-License-Identifier: GPL-2.0

//! The data path: one request, in the order of its life.
//!
//! 1. [`queue`] - the block layer dispatches the request;
//! 2. [`route`] - the one decision: who serves it, by which I/O method;
//! 3. [`worker`] - it waits for a worker, unless its submitter serves it;
//! 4. [`transfer`] - it becomes an operation on the backing file, or a bio for the block device
//!    that the backing file is;
//! 5. [`completion`] - the operation is over: the request ends, or a worker goes on with it.
//!
//! What requests need of their device is in [`target`], and what user space can switch in
//! [`tunables`]. A request carries its route and its state in [`progress`].
//! [`backoff`] and [`retry`] keep count of failures.

#![forbid(unsafe_code)]

pub(crate) mod backoff;
mod completion;
mod progress;
mod queue;
mod retry;
mod route;
pub(crate) mod target;
mod transfer;
pub(crate) mod tunables;
pub(crate) mod worker;
