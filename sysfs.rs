// SPDX-License-Identifier: GPL-2.0

//! `/sys/block/loopN/loop/*`: what a device is bound to; and `/sys/block/loopN/rnull_loop/*`, which is
//! this driver's own: its [`switches`](crate::switches).
//!
//! Documentation: `Documentation/ABI/testing/sysfs-block-loop`

#![forbid(unsafe_code)]

use crate::{
    device::{
        LoopDevice,
        Shown, //
    },
    flags::Flags,
    kern::sysfs::{
        Attribute,
        DeviceAttribute,
        MutableAttribute,
        Page, //
    },
    switches::Switches, //
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
pub(crate) const SWITCHES: &[DeviceAttribute<LoopDevice>] = &[
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
                let show: fn(&Shown, &mut Page<'_>) -> Result = $show;
                device.with_shown(|shown| show(shown, page))
            }
        }
    )*};
}

attributes! {
    /// The absolute path of the file.
    BackingFile, c"backing_file": |shown, page| {
        page.write_path(&shown.file)?;
        line(page, "")
    };
    /// Where the device begins in the file, in bytes.
    Offset, c"offset": |shown, page| line(page, shown.settings.offset);
    /// How long the device is at most, in bytes; 0 is no limit.
    SizeLimit, c"sizelimit": |shown, page| line(page, shown.settings.sizelimit);
    /// Whether it is detached when it is closed.
    Autoclear, c"autoclear": |shown, page| flag(shown, page, Flags::AUTOCLEAR);
    /// Whether the kernel looks for partitions.
    PartScan, c"partscan": |shown, page| flag(shown, page, Flags::PARTSCAN);
    /// Whether I/O goes past the page cache of the file.
    Dio, c"dio": |shown, page| flag(shown, page, Flags::DIRECT_IO);
}

macro_rules! switches {
    ($($(#[$doc:meta])* $name:ident, $file:literal: $field:ident;)*) => {$(
        $(#[$doc])*
        struct $name;

        impl Attribute<LoopDevice> for $name {
            const NAME: &'static CStr = $file;

            fn show(device: &LoopDevice, page: &mut Page<'_>) -> Result {
                line(page, u8::from(device.switches.$field.is_on()))
            }
        }

        impl MutableAttribute<LoopDevice> for $name {
            fn store(device: &LoopDevice, value: &[u8]) -> Result {
                device.switches.$field.set(Switches::parse(value)?);
                Ok(())
            }
        }
    )*};
}

switches! {
    /// Whether requests may be submitted in the context of their submitters.
    Inline, c"inline": inline;
    /// Whether requests for a block device may be passed on as they are.
    Remap, c"remap": remap;
    /// Whether files may be asked for what they can do without waiting.
    Nowait, c"nowait": nowait;
}

/// Shows whether a flag is set.
fn flag(shown: &Shown, page: &mut Page<'_>, flag: Flags) -> Result {
    line(page, u8::from(shown.settings.flags.contains(flag)))
}

/// Ends a line with `value`.
fn line(page: &mut Page<'_>, value: impl core::fmt::Display) -> Result {
    writeln!(page, "{value}").map_err(|_| ENAMETOOLONG)
}
