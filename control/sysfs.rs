// SPDX-License-Identifier: GPL-2.0

//! `/sys/block/loopN/loop/*`: what a device is bound to; and `/sys/block/loopN/rnull_loop/*`, which is
//! this driver's own: its [`tunables`](crate::datapath::tunables).
//!
//! Documentation: `Documentation/ABI/testing/sysfs-block-loop`

use super::{
    device::{
        LoopDevice,
        Snapshot, //
    },
    flags::Flags, //
};
use crate::{
    blk_mq::sysfs::{
        Attribute,
        DeviceAttribute,
        MutableAttribute,
        Page, //
    },
    datapath::tunables::Tunables, //
};
use core::fmt::Write;
use kernel::prelude::*;

/// The files of the directory `loop`.
pub(crate) const ATTRIBUTES: &[DeviceAttribute<LoopDevice>] = &[
    DeviceAttribute::new::<BackingFile>(),
    DeviceAttribute::new::<Offset>(),
    DeviceAttribute::new::<SizeLimit>(),
    DeviceAttribute::new::<Autoclear>(),
    DeviceAttribute::new::<PartScan>(),
    DeviceAttribute::new::<Dio>(),
];

/// The files of the directory `rnull_loop`.
pub(crate) const TUNABLES: &[DeviceAttribute<LoopDevice>] = &[
    DeviceAttribute::new_mutable::<Inline>(),
    DeviceAttribute::new_mutable::<Remap>(),
    DeviceAttribute::new_mutable::<Nowait>(),
];

macro_rules! attributes {
    ($($(#[$doc:meta])* $name:ident, $file:literal: $show:expr;)*) => {$(
        $(#[$doc])*
        struct $name;

        impl Attribute<LoopDevice> for $name {
            const NAME: &'static CStr = $file;

            fn show(device: &LoopDevice, page: &mut Page<'_>) -> Result {
                let show: fn(&Snapshot, &mut Page<'_>) -> Result = $show;
                device.with_snapshot(|snapshot| show(snapshot, page))
            }
        }
    )*};
}

attributes! {
    /// The absolute path of the file.
    BackingFile, c"backing_file": |snapshot, page| {
        page.write_path(&snapshot.file)?;
        line(page, "")
    };
    /// Where the device begins in the file, in bytes.
    Offset, c"offset": |snapshot, page| line(page, snapshot.settings.offset);
    /// How long the device is at most, in bytes; 0 is no limit.
    SizeLimit, c"sizelimit": |snapshot, page| line(page, snapshot.settings.sizelimit);
    /// Whether it is detached when it is closed.
    Autoclear, c"autoclear": |snapshot, page| flag(snapshot, page, Flags::AUTOCLEAR);
    /// Whether the kernel looks for partitions.
    PartScan, c"partscan": |snapshot, page| flag(snapshot, page, Flags::PARTSCAN);
    /// Whether I/O goes past the page cache of the file.
    Dio, c"dio": |snapshot, page| flag(snapshot, page, Flags::DIRECT_IO);
}

macro_rules! tunables {
    ($($(#[$doc:meta])* $name:ident, $file:literal: $field:ident;)*) => {$(
        $(#[$doc])*
        struct $name;

        impl Attribute<LoopDevice> for $name {
            const NAME: &'static CStr = $file;

            fn show(device: &LoopDevice, page: &mut Page<'_>) -> Result {
                line(page, u8::from(device.queue.tunables.$field.is_on()))
            }
        }

        impl MutableAttribute<LoopDevice> for $name {
            fn store(device: &LoopDevice, value: &[u8]) -> Result {
                device.queue.tunables.$field.set(Tunables::parse(value)?);
                Ok(())
            }
        }
    )*};
}

tunables! {
    /// Whether requests may be submitted in the context of their submitters.
    Inline, c"inline": inline;
    /// Whether requests for a block device may be passed on as they are.
    Remap, c"remap": remap;
    /// Whether files may be asked for what they can do without waiting.
    Nowait, c"nowait": nowait;
}

/// Shows whether a flag is set.
fn flag(snapshot: &Snapshot, page: &mut Page<'_>, flag: Flags) -> Result {
    line(page, u8::from(snapshot.settings.flags.contains(flag)))
}

/// Ends a line with `value`.
fn line(page: &mut Page<'_>, value: impl core::fmt::Display) -> Result {
    writeln!(page, "{value}").map_err(|_| ENAMETOOLONG)
}
