// SPDX-License-Identifier: GPL-2.0

//! The file behind a loop device: what it may be, how large it is, what it can do.

#![forbid(unsafe_code)]

use crate::{
    aio::Caching,
    backoff::Backoff,
    blk_mq::{
        GenDisk,
        LimitsUpdate, //
    },
    command::{
        HoleSupport,
        Target, //
    },
    device::LoopDevice,
    flags::Flags,
    geometry::{
        self,
        SECTOR_SIZE, //
    },
    kern::file::{
        self,
        BackingFile,
        DirectAlignment,
        Kind,
        NoIoMapping, //
    },
    settings::Settings, //
};
use kernel::{
    bindings::LOOP_MAJOR,
    fs::File,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::Atomic, //
    }, //
};

/// The file that LOOP_CONFIGURE was given, not attached yet.
///
/// Fails with `EBADF` for a descriptor that is not open, and with `EINVAL` for a file that cannot
/// be read, or not written though it is open for writing: `loop_check_backing_file()`.
pub(crate) fn candidate(fd: u32) -> Result<ARef<File>> {
    let file = file::from_fd(fd)?;
    if !file.has_read() || (file.is_writable() && !file.has_write()) {
        return Err(EINVAL);
    }
    Ok(file)
}

/// The loop device that `file` is, or is a partition of.
pub(crate) fn as_loop(file: &File) -> Option<&LoopDevice> {
    match file.kind() {
        Kind::Block(bdev) => Some(GenDisk::of(bdev)?.device()),
        _ => None,
    }
}

/// Checks that `file` may be the backing file of `device`: `loop_validate_file()`.
///
/// A device must not be its own backing file, through however many loop devices in between
/// (`EBADF`), nor stand on one that has none or that is another loop driver's (`EINVAL`); and the
/// file must have blocks (`EINVAL`).
///
/// A cycle needs a device that is bound to `device`. While `device` is unbound there is none: a
/// backing file keeps its loop device open, so that it stays bound. So LOOP_CONFIGURE calls this
/// without a lock. LOOP_CHANGE_FD to a loop device holds
/// [`Registry::validation_of`](crate::registry::Registry::validation_of) from this call until the
/// new file is published, as two of them could complete a cycle that neither sees. The files in
/// between are read one by one, each from the snapshot of its device.
pub(crate) fn validate(file: &ARef<File>, device: &LoopDevice) -> Result {
    let mut below = file.clone();
    while let Some(other) = as_loop(&below) {
        if core::ptr::eq(other, device) {
            return Err(EBADF);
        }
        below = other.backing_file().ok_or(EINVAL)?;
    }
    match file.kind() {
        // Of another loop driver, with `standalone`: it may well stand on this device, and neither
        // driver could see that.
        Kind::Block(bdev) if as_loop(file).is_none() && bdev.disk_major() == LOOP_MAJOR => {
            Err(EINVAL)
        }
        Kind::Regular | Kind::Block(_) => Ok(()),
        Kind::Other => Err(EINVAL),
    }
}

/// What is known of a file from the time it was asked, before it was attached.
pub(crate) struct Traits {
    /// What direct I/O to it must keep to.
    direct: DirectAlignment,
    /// The most sectors of 512 bytes to discard or zero at once; 0 when there are no holes.
    max_discard_sectors: u32,
    /// The granularity of holes, in bytes.
    discard_granularity: u32,
    /// Whether the disk below seeks.
    rotational: bool,
    /// Whether single writes can be made durable. Else the block layer makes a write and a flush of
    /// them.
    durable_writes: bool,
}

impl Traits {
    /// Asks a file. May sleep, and calls into its file system: no lock that I/O may need is held.
    pub(crate) fn of(file: &File) -> Self {
        let device = match file.kind() {
            Kind::Block(bdev) => Some(bdev.into()),
            _ => file.fs_device(),
        };
        let (max_discard_sectors, discard_granularity) = discard_limits(file);
        Self {
            direct: direct_alignment(file),
            max_discard_sectors,
            discard_granularity,
            rotational: device.is_some_and(|bdev| bdev.is_rotational()),
            durable_writes: file.honours_dsync(),
        }
    }

    /// Whether I/O to `file` can go past its page cache: `lo_can_use_dio()`.
    pub(crate) fn can_direct(&self, file: &File, offset: u64) -> bool {
        file.can_direct() && geometry::fits_direct(offset, self.direct.block)
    }

    /// Takes direct I/O from `settings` where a device with that offset cannot do it:
    /// `loop_update_dio()`.
    pub(crate) fn settle_direct(&self, file: &File, settings: &mut Settings) {
        if !self.can_direct(file, settings.offset) {
            settings.flags.set(Flags::DIRECT_IO, false);
        }
    }

    /// Takes over what direct I/O to `file` must keep to now, since it was refused for a request
    /// whose position and length are multiples of `refused` bytes. Returns false when direct I/O
    /// does not work at all: `file` accepts that alignment, or larger blocks would not go with the
    /// offset. May sleep.
    pub(crate) fn set_direct(&mut self, direct: DirectAlignment, refused: u64) -> bool {
        let old = core::mem::replace(&mut self.direct, direct);
        refused < u64::from(direct.block) || direct.memory > old.memory
    }

    /// The blocks of direct I/O, in bytes, where there is any and those of the device are smaller.
    pub(crate) fn larger_direct_block(&self, flags: Flags, block_size: u32) -> Option<u32> {
        Some(self.direct.block)
            .filter(|&block| flags.contains(Flags::DIRECT_IO) && block > block_size)
    }

    /// Sets what the file can do as the limits of its device: `loop_update_limits()`.
    pub(crate) fn apply(
        &self,
        limits: &mut LimitsUpdate<'_, LoopDevice>,
        file: &File,
        flags: Flags,
        block_size: u32,
    ) {
        limits.set_block_size(block_size);
        self.apply_direct(limits, flags, block_size);
        let cached = file.has_sync() && !flags.contains(Flags::READ_ONLY);
        limits.set_write_cache(cached);
        limits.set_fua(cached && self.durable_writes);
        // Buffered I/O copies, but may become direct under a file system that is mounted.
        limits.set_stable_writes(file.wants_stable_writes());
        limits.set_rotational(self.rotational);
        limits.set_discard(self.max_discard_sectors, self.discard_granularity);
        limits.set_write_zeroes(self.max_discard_sectors);
    }

    /// Sets the limits that follow from direct I/O: the alignment of memory, as the file gets the
    /// memory of requests as it is, and the size of blocks that do not go through the page cache.
    pub(crate) fn apply_direct(
        &self,
        limits: &mut LimitsUpdate<'_, LoopDevice>,
        flags: Flags,
        block_size: u32,
    ) {
        let direct = flags.contains(Flags::DIRECT_IO);
        let memory = if direct { self.direct.memory } else { 0 };
        limits.set_dma_alignment(memory.max(SECTOR_SIZE - 1));
        let larger = self.larger_direct_block(flags, block_size);
        limits.set_physical_block_size(larger.unwrap_or(block_size));
    }

    /// What requests need to be served from `file` with `settings`.
    pub(crate) fn target(&self, file: ARef<File>, settings: &Settings, block_size: u32) -> Target {
        Target {
            offset: settings.offset,
            direct_block: self.larger_direct_block(settings.flags, block_size),
            reported: file.error_cursor(),
            caching: caching(settings.flags),
            read_only: settings.flags.contains(Flags::READ_ONLY),
            holes: HoleSupport::new(self.max_discard_sectors != 0),
            nowait: file.has_nowait(),
            warned: Atomic::new(false),
            reads: Backoff::new(),
            writes: Backoff::new(),
            file,
        }
    }
}

/// How reads and writes go to the file of a device with `flags`.
pub(crate) fn caching(flags: Flags) -> Caching {
    if flags.contains(Flags::DIRECT_IO) {
        Caching::Direct
    } else {
        Caching::Buffered
    }
}

/// The size of a device on `file`, in sectors of 512 bytes; 0 when the file does not say.
pub(crate) fn capacity(file: &File, settings: &Settings) -> u64 {
    file.size().map_or(0, |size| {
        geometry::capacity(size, settings.offset, settings.sizelimit)
    })
}

/// Returns the alignment of direct I/O: that of the file system, or else of its disk. May sleep.
pub(crate) fn direct_alignment(file: &File) -> DirectAlignment {
    if let Some(alignment) = file.direct_alignment() {
        return DirectAlignment {
            memory: alignment.memory.min(const { PAGE_SIZE as u32 - 1 }),
            ..alignment
        };
    }
    match file.fs_device() {
        Some(bdev) => DirectAlignment {
            block: bdev.logical_block_size(),
            memory: bdev.dma_alignment(),
        },
        None => DirectAlignment {
            block: SECTOR_SIZE,
            memory: SECTOR_SIZE - 1,
        },
    }
}

/// How much can be discarded at once, in sectors of 512 bytes, and with which granularity in bytes:
/// `loop_get_discard_config()`.
///
/// Discards punch holes, which read as zeroes; on a block device that takes writes of zeroes.
fn discard_limits(file: &File) -> (u32, u32) {
    match file.kind() {
        Kind::Block(bdev) => (bdev.max_write_zeroes_sectors(), bdev.discard_granularity()),
        _ if !file.has_fallocate() => (0, 0),
        _ => file
            .fs_block_size()
            .map_or((0, 0), |size| (u32::MAX / SECTOR_SIZE, size)),
    }
}

/// A file that is attached, and what it takes to keep it so.
pub(crate) struct Backing {
    /// What is known of the file.
    pub(crate) traits: Traits,
    // Dropped before the file.
    _no_io: NoIoMapping,
    /// The file.
    pub(crate) file: ARef<File>,
}

impl Backing {
    /// Attaches `file`. May sleep. Fails with `ENOMEM`.
    pub(crate) fn new(file: ARef<File>, traits: Traits) -> Result<Self> {
        Ok(Self {
            traits,
            _no_io: NoIoMapping::new(file.clone())?,
            file,
        })
    }
}
