// SPDX-License-Identifier: GPL-2.0

//! Loop devices: a file, or a block device, becomes a block device.
//!
//! # From user space to a device
//!
//! - [`control`] - `/dev/loop-control`, devices are added, removed and found;
//! - [`registry`] - all devices;
//! - [`ioctl`] - `LOOP_*`, what user space passes becomes a call to a device;
//! - [`device`] - one device and every change of its [`state`];
//! - [`backing`] - the file behind it;
//! - [`sysfs`] - `/sys/block/loopN/loop/*`;
//! - [`settings`], [`flags`], [`geometry`] - what can be said without a kernel.
//!
//! # One request, in the order of its life
//!
//! 1. [`queue`] - the block layer hands it over;
//! 2. [`worker`] - it waits for the worker of its hardware context;
//! 3. [`command`] - it becomes an operation on the backing file;
//! 4. [`completion`] - the result goes back.
//!
//! # How the kernel is called
//!
//! The files above say what a loop device does and contain no `unsafe`; the compiler sees to it.
//! All of that is in the abstractions, which know nothing of loop devices:
//!
//! - [`blk_mq`] - tag sets, requests whose state is their type, disks, limits, frozen queues;
//! - [`aio`] - asynchronous I/O to files from inside the kernel;
//! - [`kern`] - files, block devices, control groups, tasks, workqueues, sysfs.

mod aio;
mod backing;
mod blk_mq;
mod command;
mod completion;
mod control;
mod device;
mod flags;
mod geometry;
mod ioctl;
mod kern;
mod queue;
mod registry;
mod settings;
mod state;
mod sysfs;
mod worker;

use crate::{
    blk_mq::Major,
    control::Control,
    kern::miscdevice,
    registry::{
        Devices,
        OnDemand,
        Parameters, //
    },
};
use kernel::{
    bindings,
    prelude::*, //
};

module! {
    type: LoopModule,
    name: "rnull_loop",
    authors: ["rnull_loop developers"],
    description: "Loopback device support",
    license: "GPL",
    alias: ["block-major-7-*", "char-major-10-237", "devname:loop-control"],
    params: {
        max_loop: i32 {
            default: i32::MIN,
            description: "Number of loop devices made at load; given, also the most there can be by opening nodes. Default: 8, no limit",
        },
        max_part: i32 {
            default: 0,
            description: "Maximum number of partitions per loop device; given, all devices are scanned. Default: 0",
        },
        hw_queue_depth: i32 {
            default: 128,
            description: "Queue depth for each hardware queue. Default: 128",
        },
        nr_hw_queues: i32 {
            default: 0,
            description: "Number of hardware queues of a device, 0: one per CPU. Default: 0",
        },
    },
}

/// The value of `max_loop` that says that nobody gave one.
const NOT_GIVEN: i32 = i32::MIN;

/// How many devices there are when nobody says: what the C driver is configured to.
const DEFAULT_DEVICES: u32 = bindings::CONFIG_BLK_DEV_LOOP_MIN_COUNT;

/// What the module registers; fields are dropped in the order of their declaration: first nobody
/// can ask for devices any more, then the devices go.
struct LoopModule {
    _control: Pin<KBox<miscdevice::Registration<Control>>>,
    _major: Major,
    _devices: Devices,
}

/// The parameters of the module, and how many devices to make at once; `EINVAL` for values that
/// make no sense.
fn parameters() -> Result<(Parameters, u32)> {
    let part_shift = geometry::part_shift(*module_parameters::max_part.value_ref())?;
    let max_loop = match *module_parameters::max_loop.value_ref() {
        NOT_GIVEN => None,
        given => Some(geometry::max_loop(given, part_shift)?),
    };
    let hw_queue_depth = u32::try_from(*module_parameters::hw_queue_depth.value_ref())?;
    if hw_queue_depth == 0 {
        return Err(EINVAL);
    }
    let parameters = Parameters {
        part_shift,
        max_loop: max_loop.filter(|&max| max != 0),
        hw_queue_depth,
        nr_hw_queues: u32::try_from(*module_parameters::nr_hw_queues.value_ref())?,
    };
    Ok((parameters, max_loop.unwrap_or(DEFAULT_DEVICES)))
}

/// Says in the log why the module cannot be loaded.
fn explain(error: Error) -> Error {
    if error == EBUSY {
        pr_err!(
            "another loop driver is loaded or built in: it holds major 7 and /dev/loop-control\n"
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
        let (parameters, count) = parameters()?;
        let devices = Devices::new(parameters)?;
        // First, for of a major that is taken the kernel has a line in the log of its own.
        let control = miscdevice::Registration::new(c"loop-control", bindings::LOOP_CTRL_MINOR);
        let control = KBox::pin_init(control, GFP_KERNEL).map_err(explain)?;
        let major = Major::register::<OnDemand>(bindings::LOOP_MAJOR, c"loop").map_err(explain)?;
        devices.publish();
        devices.add(count);
        pr_info!("module loaded\n");
        Ok(Self {
            _control: control,
            _major: major,
            _devices: devices,
        })
    }
}
