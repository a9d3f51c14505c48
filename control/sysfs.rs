// SPDX-License-Identifier: GPL-2.0

//! The attributes of a device in sysfs.
//!
//! - `/sys/block/loopN/loop/*` - the binding of the device, see
//!   `Documentation/ABI/testing/sysfs-block-loop`;
//! - `/sys/block/loopN/rnull_loop/*` - its [`tunables`](crate::datapath::tunables), which only this
//!   driver has.

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
    datapath::{
        leasing::{
            Leasing,
            Status, //
        },
        tunables::Tunables, //
    },
    kern::compat::ENAMETOOLONG,
};
use core::fmt::Write;
use kernel::prelude::*;

/// The attributes in the directory `loop`.
pub(crate) const ATTRIBUTES: &[DeviceAttribute<LoopDevice>] = &[
    DeviceAttribute::new::<BackingFile>(),
    DeviceAttribute::new::<Offset>(),
    DeviceAttribute::new::<SizeLimit>(),
    DeviceAttribute::new::<Autoclear>(),
    DeviceAttribute::new::<PartScan>(),
    DeviceAttribute::new::<Dio>(),
];

/// The attributes in the directory `rnull_loop`.
pub(crate) const TUNABLES: &[DeviceAttribute<LoopDevice>] = &[
    DeviceAttribute::new_mutable::<Inline>(),
    DeviceAttribute::new_mutable::<Remap>(),
    DeviceAttribute::new_mutable::<Extents>(),
    DeviceAttribute::new::<ExtentsState>(),
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
    /// The absolute path of the backing file.
    BackingFile, c"backing_file": |snapshot, page| {
        page.write_path(&snapshot.file)?;
        line(page, "")
    };
    /// The position of the device in the backing file, in bytes.
    Offset, c"offset": |snapshot, page| line(page, snapshot.settings.offset);
    /// The maximum size of the device, in bytes; 0 for no limit.
    SizeLimit, c"sizelimit": |snapshot, page| line(page, snapshot.settings.sizelimit);
    /// The autoclear flag: 1 if the last close detaches the device.
    Autoclear, c"autoclear": |snapshot, page| flag(snapshot, page, Flags::AUTOCLEAR);
    /// The partition scan flag: 1 if the kernel scans the device for partitions.
    PartScan, c"partscan": |snapshot, page| flag(snapshot, page, Flags::PARTSCAN);
    /// The direct I/O flag: 1 if I/O bypasses the page cache of the backing file.
    Dio, c"dio": |snapshot, page| flag(snapshot, page, Flags::DIRECT_IO);
}

macro_rules! tunables {
    ($($(#[$doc:meta])* $name:ident, $file:literal: $field:ident $(, $changed:expr)?;)*) => {$(
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
                $($changed(device);)?
                Ok(())
            }
        }
    )*};
}

tunables! {
    /// The permission to serve requests in the context of their submitters.
    Inline, c"inline": inline;
    /// The permission to remap requests to a backing block device.
    Remap, c"remap": remap;
    /// The permission to remap requests to the disk of the backing file's file system.
    Extents, c"extents": extents, release_leases;
    /// The permission to use non-blocking I/O to the backing file.
    Nowait, c"nowait": nowait;
}

/// Releases the leases of the backing file, which are taken anew if that is allowed.
fn release_leases(device: &LoopDevice) {
    // An unbound device has none.
    let _ = device.with_snapshot(|snapshot| {
        snapshot.leasing.as_ref().map(Leasing::renew);
        Ok(())
    });
}

/// The effect of the permission `extents` now.
struct ExtentsState;

impl Attribute<LoopDevice> for ExtentsState {
    const NAME: &'static CStr = c"extents_state";

    fn show(device: &LoopDevice, page: &mut Page<'_>) -> Result {
        let extents = device.queue.tunables.extents.is_on();
        device.with_snapshot(|snapshot| {
            let direct = snapshot.settings.flags.contains(Flags::DIRECT_IO);
            let state = match &snapshot.leasing {
                None => "file system",
                Some(_) if !direct => "no direct I/O",
                Some(_) if !extents => "off",
                Some(leasing) => match leasing.status() {
                    Status::Held if leasing.is_fragmented() => "in use, but fragmented",
                    Status::Held if leasing.has_unmapped() => "in use, but unwritten blocks",
                    Status::Held => "in use",
                    Status::Idle => "idle",
                    Status::Foreign => "foreign writer",
                    Status::Refused => "refused",
                },
            };
            line(page, state)
        })
    }
}

/// Writes 1 if `flag` is set, and 0 otherwise.
fn flag(snapshot: &Snapshot, page: &mut Page<'_>, flag: Flags) -> Result {
    line(page, u8::from(snapshot.settings.flags.contains(flag)))
}

/// Writes `value` and a newline. Fails with `ENAMETOOLONG` if the page is full.
fn line(page: &mut Page<'_>, value: impl core::fmt::Display) -> Result {
    writeln!(page, "{value}").map_err(|_| ENAMETOOLONG)
}
