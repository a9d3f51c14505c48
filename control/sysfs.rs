// SPDX-License-Identifier: GPL-2.0

//! The attributes of a device in sysfs.
//!
//! - `/sys/block/loopN/loop/*` - the binding of the device, see
//!   `Documentation/ABI/testing/sysfs-block-loop`;
//! - `/sys/block/loopN/rnull_loop/*` - its [`tunables`](crate::datapath::tunables), its state and
//!   its statistics, which only this driver has.

use super::{
    device::{
        LoopDevice,
        Snapshot, //
    },
    flags::Flags, //
};
use crate::{
    blk_mq::{
        sysfs::{
            notify,
            Attribute,
            AttributeGroup,
            AttributeList,
            DeviceAttribute,
            MutableAttribute,
            Page, //
        },
        GenDisk, //
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

const BINDING: &[DeviceAttribute<LoopDevice>] = &[
    DeviceAttribute::new::<BackingFile>(),
    DeviceAttribute::new::<Offset>(),
    DeviceAttribute::new::<SizeLimit>(),
    DeviceAttribute::new::<Autoclear>(),
    DeviceAttribute::new::<PartScan>(),
    DeviceAttribute::new::<Dio>(),
];

const BINDING_LIST: &AttributeList<LoopDevice, { BINDING.len() + 1 }> =
    &AttributeList::new(BINDING);

/// The directory of the attributes of a bound device.
pub(super) const BINDING_GROUP: &AttributeGroup<LoopDevice> =
    &AttributeGroup::new(c"loop", BINDING_LIST);

/// The name of the directory of the attributes that only this driver has.
const TUNABLES_NAME: &CStr = c"rnull_loop";

const TUNABLES: &[DeviceAttribute<LoopDevice>] = &[
    DeviceAttribute::new_mutable::<Inline>(),
    DeviceAttribute::new_mutable::<Remap>(),
    DeviceAttribute::new_mutable::<Extents>(),
    DeviceAttribute::new::<ExtentsState>(),
    DeviceAttribute::new_mutable::<Nowait>(),
    DeviceAttribute::new_mutable::<DontCache>(),
    DeviceAttribute::new_mutable::<Enospc>(),
    DeviceAttribute::new::<State>(),
    DeviceAttribute::new::<Stats>(),
];

const TUNABLES_LIST: &AttributeList<LoopDevice, { TUNABLES.len() + 1 }> =
    &AttributeList::new(TUNABLES);

/// That directory.
pub(super) const TUNABLES_GROUP: &AttributeGroup<LoopDevice> =
    &AttributeGroup::new(TUNABLES_NAME, TUNABLES_LIST);

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
    /// The choice to leave nothing behind in the page cache of the backing file.
    DontCache, c"dontcache": dontcache;
}

/// Releases the leases of the backing file, which are taken anew if that is allowed.
fn release_leases(device: &LoopDevice) {
    // An unbound device has none.
    let _ = device.with_snapshot(|snapshot| {
        snapshot.leasing.as_ref().map(Leasing::renew);
        Ok(())
    });
}

/// The choice whether writes wait while the file system of the backing file is full.
struct Enospc;

impl Attribute<LoopDevice> for Enospc {
    const NAME: &'static CStr = c"enospc";

    fn show(device: &LoopDevice, page: &mut Page<'_>) -> Result {
        let [error, wait] = Tunables::ENOSPC;
        let waits = device.queue.tunables.enospc.is_on();
        line(page, if waits { wait } else { error })
    }
}

impl MutableAttribute<LoopDevice> for Enospc {
    fn store(device: &LoopDevice, value: &[u8]) -> Result {
        // Without `state`, which a task may hold that waits for such a write.
        let waits = Tunables::parse_enospc(value)?;
        device.queue.set_waits_for_space(waits);
        Ok(())
    }
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

/// The state of the device. Its changes wake tasks that poll the file.
struct State;

impl Attribute<LoopDevice> for State {
    const NAME: &'static CStr = c"state";

    fn show(device: &LoopDevice, page: &mut Page<'_>) -> Result {
        line(page, device.read_state_name())
    }
}

/// Wakes tasks that poll the state of a device. May sleep.
///
/// Poll reports a change to a task that has read the file before. If none has since the last
/// change, nothing is done, because each notification takes a work item.
pub(super) fn notify_state(disk: &GenDisk<LoopDevice>) {
    if disk.device().is_state_polled() {
        notify(disk, TUNABLES_NAME, State::NAME);
    }
}

/// The statistics of the device.
struct Stats;

impl Attribute<LoopDevice> for Stats {
    const NAME: &'static CStr = c"stats";

    fn show(device: &LoopDevice, page: &mut Page<'_>) -> Result {
        device.queue.show_stats(page).map_err(|_| ENAMETOOLONG)
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
