// SPDX-License-Identifier: GPL-2.0

//! The backing file of a device, and the capabilities that it reports when it is attached.

use super::{
    flags::Flags,
    geometry::{
        self,
        SECTOR_SIZE, //
    },
    settings::Settings, //
};
use crate::{
    aio::Caching,
    blk_mq::LimitsUpdate,
    datapath::{
        backoff::Backoff,
        leasing::{
            LeasedFile,
            Leasing, //
        },
        target::{
            HoleSupport,
            Target, //
        },
    },
    kern::{
        file::{
            self,
            BackingFile,
            DirectAlignment,
            Kind,
            NoIoMapping,
            PrivateFile, //
        },
        lease::BlockFile,
    },
};
use kernel::{
    fs::File,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::Atomic,
        Arc, //
    }, //
};

/// Returns the file of a descriptor that user space passes to LOOP_CONFIGURE or LOOP_CHANGE_FD.
///
/// Fails with `EBADF` for a descriptor that is not open. Fails with `EINVAL` for a file that does
/// not support reads, or is open for writing and does not support writes:
/// `loop_check_backing_file()`.
pub(super) fn candidate(fd: u32) -> Result<ARef<File>> {
    let file = file::from_fd(fd)?;
    if !file.has_read() || (file.is_writable() && !file.has_write()) {
        return Err(EINVAL);
    }
    Ok(file)
}

/// A file that a device may be bound to.
pub(super) struct Opened {
    /// The file that requests use.
    pub(super) file: ARef<File>,
    /// Keeps the file of user space open, unless `file` is that or `leasing` keeps it.
    private: Option<PrivateFile>,
    /// The leasing of the file, if it can be leased.
    leasing: Option<LeasedFile>,
    /// The capabilities of the file.
    pub(super) caps: BackingCaps,
}

impl Opened {
    /// Opens the file that user space has passed again, if that is possible, and asks it for its
    /// capabilities. May sleep: calls the file system, so the caller holds no lock that I/O may
    /// need. Fails with `ENOMEM`.
    pub(super) fn new(original: ARef<File>) -> Result<Self> {
        let private = PrivateFile::open(original);
        let file = match &private {
            Ok(private) => private.file(),
            Err(original) => original,
        }
        .clone();
        let (private, blocks) = match private.map(BlockFile::new) {
            Ok(Ok(blocks)) if blocks.size() <= LeasedFile::MAX_SIZE => (None, Some(blocks)),
            Ok(Ok(blocks)) => (Some(blocks.into_private()), None),
            Ok(Err(private)) => (Some(private), None),
            Err(_) => (None, None),
        };
        let direct = blocks.as_ref().map(BlockFile::direct_alignment);
        Ok(Self {
            caps: BackingCaps::of(&file, direct),
            file,
            private,
            leasing: blocks.map(LeasedFile::new).transpose()?,
        })
    }

    /// Prepares the file for the device `name` with `settings`, which lose the flag for direct I/O
    /// if that is not possible. `block_size` is that of the device, in bytes. May sleep. Fails with
    /// `ENOMEM`.
    ///
    /// The page cache of the file is written back, and dropped for direct I/O. I/O past it could
    /// miss dirty pages, or be overwritten by their writeback. A writeback error is reported to the
    /// writers by their own file descriptors, and by flushes of the device. Clean pages slow direct
    /// I/O down: while a file has any, its direct writes complete through a workqueue.
    pub(super) fn prepare(
        self,
        name: &CStr,
        mut settings: Settings,
        block_size: u32,
    ) -> Result<Prepared> {
        let Self {
            file,
            private,
            leasing,
            caps,
        } = self;
        if file.is_direct() {
            settings.flags.set(Flags::DIRECT_IO, true);
        }
        caps.update_dio(name, &file, &mut settings);
        if let Some(leasing) = &leasing {
            leasing.set_alignment(bypass_alignment(&settings, block_size));
        }
        // Made before the file is synced, so that flushes of the device report errors of that sync.
        let target = caps.target(file.clone(), leasing, &settings, block_size);
        if target.leasing.is_none() || file.is_cached() {
            let _ = file.fsync();
        } else {
            // The file system has nothing to write back, but a sync would flush its disk.
            file.skip_errors();
        }
        if settings.flags.contains(Flags::DIRECT_IO) {
            file.drop_page_cache();
        }
        Ok(Prepared {
            capacity: capacity(&file, &settings),
            backing: Backing::new(file, private, target.leasing.as_ref(), caps)?,
            target,
            settings,
            block_size,
        })
    }
}

/// A backing file that is ready to be used, and all else that a device is bound with.
pub(super) struct Prepared {
    pub(super) backing: Backing,
    pub(super) settings: Settings,
    pub(super) target: Target,
    /// The logical block size of the device, in bytes.
    pub(super) block_size: u32,
    /// The size of the device, in sectors of 512 bytes.
    pub(super) capacity: u64,
}

/// The capabilities of a backing file, as it reported them before it was attached.
pub(super) struct BackingCaps {
    /// The alignment of direct I/O.
    direct: DirectAlignment,
    /// The largest discard or zeroing, in sectors of 512 bytes; 0 if the file has no holes.
    max_discard_sectors: u32,
    /// The granularity of holes, in bytes.
    discard_granularity: u32,
    /// True if seeks on the lower device are slow.
    rotational: bool,
    /// True if the file can make a single write durable (`IOCB_DSYNC`), so that the queue has FUA.
    honours_dsync: bool,
}

impl BackingCaps {
    /// Asks a file for its capabilities, but for the alignment of direct I/O if that is known. May
    /// sleep: calls the file system.
    fn of(file: &File, direct: Option<DirectAlignment>) -> Self {
        let device = match file.kind() {
            Kind::Block(bdev) => Some(bdev.into()),
            _ => file.fs_device(),
        };
        let (max_discard_sectors, discard_granularity) = discard_limits(file);
        Self {
            direct: direct.unwrap_or_else(|| direct_alignment(file)),
            max_discard_sectors,
            discard_granularity,
            rotational: device.is_some_and(|bdev| bdev.is_rotational()),
            honours_dsync: file.honours_dsync(),
        }
    }

    /// Returns whether a device at `offset` bytes can use direct I/O to `file`: `lo_can_use_dio()`.
    pub(super) fn can_direct(&self, file: &File, offset: u64) -> bool {
        file.can_direct() && geometry::fits_direct(offset, self.direct.block)
    }

    /// Clears the flag for direct I/O, with a line in the log, if the device `name` cannot use it:
    /// `loop_update_dio()`.
    pub(super) fn update_dio(&self, name: &CStr, file: &File, settings: &mut Settings) {
        if !settings.flags.contains(Flags::DIRECT_IO) || self.can_direct(file, settings.offset) {
            return;
        }
        settings.flags.set(Flags::DIRECT_IO, false);
        let reason = if file.can_direct() {
            "the offset is not in whole blocks of direct I/O"
        } else {
            "the backing file does not support it"
        };
        pr_notice!("{name}: direct I/O is off: {reason}\n");
    }

    /// Sets the alignment of direct I/O that the file reports now, after it has refused a request
    /// whose position and length are multiples of `refused` bytes. Returns false if direct I/O does
    /// not work at all, because the file reports that alignment as sufficient.
    pub(super) fn set_direct(&mut self, direct: DirectAlignment, refused: u64) -> bool {
        let old = core::mem::replace(&mut self.direct, direct);
        refused < u64::from(direct.block) || direct.memory > old.memory
    }

    /// Returns the block size of direct I/O, in bytes, if the device uses direct I/O and has
    /// smaller blocks.
    pub(super) fn larger_direct_block(&self, flags: Flags, block_size: u32) -> Option<u32> {
        Some(self.direct.block)
            .filter(|&block| flags.contains(Flags::DIRECT_IO) && block > block_size)
    }

    /// Sets the limits of a device on `file`: `loop_update_limits()`.
    pub(super) fn apply(
        &self,
        limits: &mut LimitsUpdate<'_>,
        file: &File,
        settings: &Settings,
        block_size: u32,
    ) {
        limits.set_block_size(block_size);
        self.apply_direct(limits, file, settings, block_size);
        let cached = file.has_fsync() && !settings.flags.contains(Flags::READ_ONLY);
        limits.set_write_cache(cached);
        limits.set_fua(cached && self.honours_dsync);
        // Only direct I/O needs stable pages, because buffered I/O copies them. But direct I/O may
        // be switched on under a file system, which reads this limit only when it is mounted.
        limits.set_stable_writes(file.wants_stable_writes());
        limits.set_rotational(self.rotational);
        limits.set_discard(self.max_discard_sectors, self.discard_granularity);
        limits.set_write_zeroes(self.max_discard_sectors);
    }

    /// Sets the limits that depend on direct I/O and on the offset: the alignment of memory,
    /// because the file gets the memory of requests as it is, the size of blocks that bypass the
    /// page cache, and what only a bio to a block device passes on: atomic writes and streams.
    pub(super) fn apply_direct(
        &self,
        limits: &mut LimitsUpdate<'_>,
        file: &File,
        settings: &Settings,
        block_size: u32,
    ) {
        let direct = settings.flags.contains(Flags::DIRECT_IO);
        let memory = if direct { self.direct.memory } else { 0 };
        limits.set_dma_alignment(memory.clamp(SECTOR_SIZE - 1, const { PAGE_SIZE as u32 - 1 }));
        let larger = self.larger_direct_block(settings.flags, block_size);
        limits.set_physical_block_size(larger.unwrap_or(block_size));
        let bdev = match file.kind() {
            Kind::Block(bdev) if direct => Some(bdev),
            _ => None,
        };
        let atomic = bdev.and_then(|bdev| bdev.atomic_writes(settings.offset, block_size));
        limits.set_atomic_writes(atomic);
        let (streams, granularity) = bdev.map_or((0, 0), |bdev| bdev.write_streams());
        limits.set_write_streams(streams, granularity);
    }

    /// Makes the target of requests that are served from `file` with `settings`.
    fn target(
        &self,
        file: ARef<File>,
        leasing: Option<LeasedFile>,
        settings: &Settings,
        block_size: u32,
    ) -> Target {
        let lower = match file.kind() {
            Kind::Block(bdev) => Some(bdev.into()),
            _ => leasing
                .as_ref()
                .map(|leasing| leasing.block_device().into()),
        };
        Target {
            leasing,
            lower,
            offset: settings.offset,
            direct_block: self.larger_direct_block(settings.flags, block_size),
            wb_err: file.wb_err_cursor(),
            caching: caching(settings.flags),
            read_only: settings.flags.contains(Flags::READ_ONLY),
            holes: HoleSupport::new(self.max_discard_sectors != 0),
            nowait: file.has_nowait(),
            dontcache: file.has_dontcache(),
            cached_reads: file.has_local_cache(),
            warned: Atomic::new(0),
            reads: Backoff::new(),
            writes: Backoff::new(),
            file,
        }
    }
}

/// Returns the alignment in the file, in bytes, of the requests of a device that may bypass the
/// file; `None` if they may not.
pub(super) fn bypass_alignment(settings: &Settings, block_size: u32) -> Option<u32> {
    let direct = caching(settings.flags) == Caching::Direct;
    let aligned = settings.offset % u64::from(block_size.max(1)) == 0;
    (direct && aligned).then_some(block_size)
}

/// Returns how a device with `flags` uses its backing file.
pub(super) fn caching(flags: Flags) -> Caching {
    if flags.contains(Flags::DIRECT_IO) {
        Caching::Direct
    } else {
        Caching::Buffered
    }
}

/// Returns the size of a device on `file`, in sectors of 512 bytes; 0 if the file does not report
/// its size.
pub(super) fn capacity(file: &File, settings: &Settings) -> u64 {
    file.size().map_or(0, |size| {
        geometry::capacity(size, settings.offset, settings.sizelimit)
    })
}

/// Returns the alignment of direct I/O to `file`: that which the file reports, or else that of the
/// lower device of its file system. May sleep.
pub(super) fn direct_alignment(file: &File) -> DirectAlignment {
    if let Some(alignment) = file.direct_alignment() {
        return alignment;
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

/// Returns the largest discard, in sectors of 512 bytes, and the granularity of discards, in bytes:
/// `loop_get_discard_config()`.
///
/// A discard of the device punches a hole, which reads as zeroes. A block device does that by a
/// write of zeroes, so its limit is that of such writes.
fn discard_limits(file: &File) -> (u32, u32) {
    match file.kind() {
        Kind::Block(bdev) => (bdev.max_write_zeroes_sectors(), bdev.discard_granularity()),
        _ if !file.has_fallocate() => (0, 0),
        _ => file
            .fs_block_size()
            .map_or((0, 0), |size| (u32::MAX / SECTOR_SIZE, size)),
    }
}

/// The backing file of a device.
pub(super) struct Backing {
    /// The capabilities of the file.
    pub(super) caps: BackingCaps,
    // Dropped before the file.
    _no_io: NoIoMapping,
    _private: Option<PrivateFile>,
    /// The file.
    pub(super) file: ARef<File>,
    /// The leases of the file, which the target owns.
    pub(super) leasing: Option<Arc<Leasing>>,
}

impl Backing {
    /// Attaches `file`, whose page cache is from now on allocated without I/O. May sleep. Fails
    /// with `ENOMEM`.
    fn new(
        file: ARef<File>,
        private: Option<PrivateFile>,
        leasing: Option<&LeasedFile>,
        caps: BackingCaps,
    ) -> Result<Self> {
        Ok(Self {
            caps,
            _private: private,
            leasing: leasing.map(|leasing| (**leasing).clone()),
            _no_io: NoIoMapping::new(file.clone())?,
            file,
        })
    }
}
