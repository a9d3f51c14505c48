// SPDX-License-Identifier: GPL-2.0

//! The multi-queue block layer, as a driver of request-based disks sees it.
//!
//! A driver implements [`Operations`] for the type of the device that its requests are for, and
//! [`DiskOperations`] for the type of the device that a disk stands for. It makes a [`TagSet`], and
//! [adds](Disk::add) a [`Disk`].
//!
//! Three rules are kept by types instead of comments:
//!
//! - **The type of a request is its state.** [`IdleRequest`] → [`StartedRequest`] ⇄ two
//!   [`InFlight`]. Each step consumes the one before, so a request is neither ended twice nor used
//!   by a former owner. A request that is dropped is over with `EIO`.
//! - **A disk is visible only when it is complete.** [`Disk::add`] takes everything that a disk
//!   needs, and there is no disk that is not added.
//! - **The backend of a queue changes only while no request uses it.** [`Operations::Backend`] is
//!   read through a started request and changed through a [`FrozenQueue`], so the request path
//!   needs neither a lock nor a reference count.
//!
//! The files, each of which uses only those above it. ([`Disk`] also names the module as the owner
//! of its operations, which `module!` defines in the crate root.)
//!
//! ```text
//! trace                               the tracepoints
//! bio  bio_list                       a bio, bios that were taken from requests
//! submitter  major  backend           the submitting task, a major number, the cell
//! queue                               the `queuedata` of a queue
//! request                             requests, their states, and the trait of their driver
//! list  cgroup  tag_set               lists of requests, their cgroup, their tags
//! disk                                disks, and the trait of their driver
//! limits  sysfs                       frozen queues and limits, attributes of a disk
//! ```
//!
//! # Examples
//!
//! ```ignore
//! // The requests are for `queue`, an `Arc` of a type with `Operations`.
//! // The disk stands for `device`, an `Arc` of a type with `DiskOperations`.
//! let tags = KBox::pin_init(TagSet::new(1, 128), GFP_KERNEL)?;
//! // Visible to user space until `disk` is dropped.
//! let options = DiskOptions { name: fmt!("example0"), ..options };
//! let disk = Disk::add(tags, device, queue, options)?;
//! // Requests that are dispatched from here on find the backend.
//! disk.publish(backend).map_err(|_| EBUSY)?;
//! ```
//!
//! C headers: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h),
//! [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

mod backend;
mod bio;
mod bio_list;
pub(crate) mod cgroup;
mod disk;
mod limits;
mod list;
mod major;
mod queue;
mod request;
mod submitter;
pub(crate) mod sysfs;
mod tag_set;
mod trace;

pub(crate) use self::{
    bio::{
        Bio,
        BioCompletion, //
    },
    bio_list::BioList,
    disk::{
        Disk,
        DiskOperations,
        DiskOptions,
        DiskRef,
        GenDisk,
        Mode,
        OpenMutex, //
    },
    limits::{
        FrozenQueue,
        LimitsUpdate, //
    },
    list::{
        Batch,
        RequestList, //
    },
    major::{
        Major,
        Probe, //
    },
    request::{
        IdleRequest,
        InFlight,
        Op,
        Operations,
        Refused,
        Request,
        StartedRequest,
        Status, //
    },
    submitter::Submitter,
    tag_set::TagSet,
};
