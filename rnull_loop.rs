// SPDX-License-Identifier: GPL-2.0

//! The loop driver: a file, or a block device, becomes a block device.
//!
//! Two wings say what a loop device does, and contain no `unsafe` code:
//!
//! - [`control`] - from user space to a device: ioctls, sysfs, `/dev/loop-control`;
//! - [`datapath`] - one request, in the order of its life: queue, route, worker, transfer,
//!   completion.
//!
//! Three abstractions say how the kernel is called, and know nothing of loop devices:
//!
//! - [`blk_mq`] - the block layer: requests whose type is their state, disks, limits, frozen queues;
//! - [`aio`] - asynchronous I/O to files from inside the kernel;
//! - [`kern`] - files, block devices, tasks, workqueues: what the `kernel` crate lacks.
//!
//! Each file uses only files of its own level and of those below: `control`, `datapath`, `aio`,
//! `blk_mq`, `kern`.

mod aio;
mod blk_mq;
mod control;
mod datapath;
mod kern;

use crate::{
    blk_mq::Major,
    control::{
        geometry,
        loop_control::Control,
        registry::{
            self,
            Devices,
            OnDemand,
            Parameters, //
        },
    },
    kern::{
        ffi, miscdevice,
        parameter::{
            module_parameters,
            Integer,
            Switch, //
        },
    },
};
use kernel::prelude::*;

module! {
    type: LoopModule,
    name: "rnull_loop",
    authors: ["rnull_loop developers"],
    description: "Loopback device support",
    license: "GPL",
    alias: ["block-major-7-*", "char-major-10-237", "devname:loop-control"],
}

module_parameters! {
    max_loop: Integer = Integer::new(kern::ffi::DEFAULT_DEVICES, i32::MIN),
        "Number of loop devices made at load; given, also the most there can be by opening nodes. Default: 8, no limit";
    max_part: Integer = Integer::new(0, i32::MIN),
        "Maximum number of partitions per loop device; given, all devices are scanned. Default: 0";
    hw_queue_depth: Integer = Integer::new(128, 1),
        "Queue depth for each hardware queue. Default: 128";
    nr_hw_queues: Integer = Integer::new(0, 0),
        "Number of hardware queues of a device, 0: one per CPU, at most 8. Default: 0";
    standalone: Switch = Switch::new(),
        "Work beside another loop driver: devices are /dev/loopr*, made by /dev/loopr-control";
}

/// What the module is known by: `standalone`, it leaves the names and numbers of loop devices to
/// another driver. Its own still begin with "loop", by which `losetup` and `lsblk` know them.
struct Names {
    /// How the names of disks begin.
    disk: &'static str,
    /// The control device.
    control: &'static CStr,
    /// The minor number of the control device.
    control_minor: u32,
    /// The name of the major.
    major: &'static CStr,
    /// The major, 0 for any that is free.
    major_number: u32,
}

const NAMES: Names = Names {
    disk: "loop",
    control: c"loop-control",
    control_minor: ffi::LOOP_CTRL_MINOR,
    major: c"loop",
    major_number: ffi::LOOP_MAJOR,
};

const STANDALONE_NAMES: Names = Names {
    disk: "loopr",
    control: c"loopr-control",
    control_minor: ffi::MISC_DYNAMIC_MINOR,
    major: c"loopr",
    major_number: 0,
};

/// What the module registers; fields are dropped in the order of their declaration: first nobody
/// can ask for devices any more, then the devices go.
struct LoopModule {
    _control: Pin<KBox<miscdevice::Registration<Control>>>,
    _major: Major,
    _devices: Devices,
}

/// How the parameters of the module say that devices are made, with `names`, and how many at once;
/// `EINVAL` for values that make no sense together.
fn parameters(names: &Names) -> Result<(Parameters, u32)> {
    let part_shift = geometry::part_shift(max_part.value())?;
    // User space reads how many minors the partitions of a device have.
    if part_shift != 0 {
        max_part.show(geometry::max_partitions(part_shift));
    }
    let count = geometry::max_loop(max_loop.value(), part_shift)?;
    let parameters = Parameters {
        prefix: names.disk,
        part_shift,
        max_loop: Some(count).filter(|&max| max_loop.is_given() && max != 0),
        hw_queue_depth: u32::try_from(hw_queue_depth.value())?,
        nr_hw_queues: u32::try_from(nr_hw_queues.value())?,
    };
    Ok((parameters, count))
}

/// Says in the log why the module cannot be loaded.
fn log_busy(error: Error) -> Error {
    if error == EBUSY && !standalone.is_on() {
        pr_err!(
            "another loop driver is loaded or built in: it holds major 7 and /dev/loop-control; standalone=1 works beside it\n"
        );
    }
    error
}

impl kernel::Module for LoopModule {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: `init` runs once per load, and nothing that uses this is registered yet.
        unsafe { registry::REGISTRY.init() };
        // SAFETY: As above.
        unsafe { kern::file::NO_IO_MAPPINGS.init() };
        let names = if standalone.is_on() {
            STANDALONE_NAMES
        } else {
            NAMES
        };
        let (parameters, count) = parameters(&names)?;
        let devices = Devices::new(parameters)?;
        // First, for of a major that is taken the kernel has a line in the log of its own.
        let control = miscdevice::Registration::new(names.control, names.control_minor);
        let control = KBox::pin_init(control, GFP_KERNEL).map_err(log_busy)?;
        // From here on an opener of a node waits until it is known whether the module can be
        // loaded.
        let major = Major::register::<OnDemand>(names.major_number, names.major);
        devices.publish(major.as_ref().ok().map(Major::number));
        let major = major.map_err(log_busy)?;
        devices.add(count);
        pr_info!("module loaded\n");
        Ok(Self {
            _control: control,
            _major: major,
            _devices: devices,
        })
    }
}
