// SPDX-License-Identifier: GPL-2.0

//! The loop driver: makes a block device of a file or of another block device.
//!
//! `docs/architecture.md` follows a read and an ioctl through the code. To read the code alone,
//! begin with `datapath/queue.rs` for requests, and with `control/ioctl.rs` for user space.
//!
//! The modules are listed from the highest level to the lowest. Two wings define what a loop device
//! does, and contain no `unsafe` code:
//!
//! - [`control`] - from user space to a device: ioctls, sysfs, `/dev/loop-control`;
//! - [`datapath`] - one request, in the order of its life: queue, route, worker, transfer,
//!   completion.
//!
//! Three abstractions call the kernel, and have no logic of loop devices:
//!
//! - [`aio`] - asynchronous I/O to files from inside the kernel;
//! - [`blk_mq`] - the block layer: requests whose type is their state, disks, limits, frozen
//!   queues;
//! - [`kern`] - files, block devices, tasks, workqueues, gates, mutexes, misc devices, module
//!   parameters, where the `kernel` crate lacks them; the uAPI of loop devices.

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
    datapath::tunables::{
        Defaults,
        Tunables, //
    },
    kern::{
        ffi, miscdevice,
        module::module_version,
        parameter::{
            module_parameters,
            Bool,
            Choice,
            Integer, //
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

module_version!("0.2");

module_parameters! {
    max_loop: Integer = Integer::new(kern::ffi::DEFAULT_DEVICES, i32::MIN),
        "Number of loop devices made at load. If given and not 0, opening a node makes a device only if its number is less. Default: CONFIG_BLK_DEV_LOOP_MIN_COUNT, or 8 without the C driver; no limit";
    max_part: Integer = Integer::new(0, i32::MIN),
        "Maximum number of partitions per loop device. If positive, all devices are scanned for partitions. Default: 0";
    hw_queue_depth: Integer = Integer::new(128, 1),
        "Queue depth: number of requests per device. Default: 128";
    nr_hw_queues: Integer = Integer::new(0, 0),
        "Number of hardware queues per device, which share its requests. Default: 0, which is one";
    dio: Choice = Choice::new(&["off", "auto"]),
        "Whether a file that is attached without a word about direct I/O uses it if it can: off or auto. Default: off";
    inline: Bool = Bool::new(true),
        "Whether the submitters of requests may serve them; the default of rnull_loop/inline of each device. Default: Y";
    remap: Bool = Bool::new(true),
        "Whether requests to a block device may be passed on to it; the default of rnull_loop/remap of each device. Default: Y";
    nowait: Bool = Bool::new(true),
        "Whether I/O to a file may be tried without blocking first; the default of rnull_loop/nowait of each device. Default: Y";
    dontcache: Bool = Bool::new(false),
        "Whether I/O through the page cache of a file leaves nothing behind there; the default of rnull_loop/dontcache of each device. Default: N";
    extents: Bool = Bool::new(true),
        "Whether requests to image files on ext4 and XFS may bypass the file system; the default of rnull_loop/extents of each device. Default: Y";
    enospc: Choice = Choice::new(&Tunables::ENOSPC),
        "What a write does while the file system of the image is full: error or wait; the default of rnull_loop/enospc of each device. Default: error";
    standalone: Bool = Bool::new(false),
        "Work beside another loop driver: devices are /dev/loopr*, the control device is /dev/loopr-control";
}

/// The names and numbers of the module. With `standalone` it leaves those of the C driver to
/// another loop driver. The names of disks still begin with "loop", because `losetup` and `lsblk`
/// recognize loop devices by that.
struct Names {
    /// The prefix of disk names.
    disk: &'static str,
    /// The name of the control device.
    control: &'static CStr,
    /// The minor number of the control device.
    control_minor: u32,
    /// The name of the major.
    major: &'static CStr,
    /// The major number; 0 for any free one.
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

/// The registrations of the loaded module. Fields are dropped in the order of their declaration:
/// the control device and the major first, so that no task can add devices while they are removed.
struct LoopModule {
    _control: Pin<KBox<miscdevice::Registration<Control>>>,
    _major: Major,
    _devices: Devices,
}

/// Returns the parameters of devices with `names`, and the number of devices to make at load, from
/// the module parameters. Fails with `EINVAL` for more partitions or devices than there are minors.
fn parameters(names: &Names) -> Result<(Parameters, u32)> {
    let part_shift = geometry::part_shift(max_part.value())?;
    // User space reads `max_part` from sysfs to compute the minor numbers of devices.
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
        prefers_direct: dio.index() != 0,
        tunables: Defaults {
            inline: inline.is_on(),
            remap: remap.is_on(),
            extents: extents.is_on(),
            nowait: nowait.is_on(),
            dontcache: dontcache.is_on(),
            enospc: enospc.index() != 0,
        },
    };
    Ok((parameters, count))
}

/// Logs the reason if the module cannot be loaded beside another loop driver; returns `error`.
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
        // Before the major, because the kernel logs a major that is taken as an error of its own.
        let control = miscdevice::Registration::new(names.control, names.control_minor);
        let control = KBox::pin_init(control, GFP_KERNEL).map_err(log_busy)?;
        // From here on an opener of a device node without a disk waits for `publish`, as does an
        // opener of the control device already.
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
