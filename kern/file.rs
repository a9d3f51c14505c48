// SPDX-License-Identifier: GPL-2.0

//! Open files, as a driver that does I/O to them sees them.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::{
    bdev::BlockDevice,
    ffi,
    task::IoWorkerScope, //
};
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::{
        File,
        LocalFile, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        global_lock, //
    },
};

/// What kind of file an inode stands for.
pub(crate) enum Kind<'a> {
    /// A regular file.
    Regular,
    /// A block device.
    Block(&'a BlockDevice),
    /// A directory, a socket, a character device, ...
    Other,
}

/// What direct I/O to a file must keep to.
#[derive(Clone, Copy)]
pub(crate) struct DirectAlignment {
    /// The unit of offsets and lengths, in bytes.
    pub(crate) block: u32,
    /// The alignment of memory, as a mask.
    pub(crate) memory: u32,
}

/// Up to where failures to write a file back have been reported to somebody: `errseq_t`.
///
/// A `struct file` has one of its own, but each is told of a failure once, whoever syncs by it.
pub(crate) struct ErrorCursor(Atomic<u32>);

impl ErrorCursor {
    /// Returns a cursor at the present end, which reports later failures, for a write that syncs
    /// its own data through this `struct file`.
    ///
    /// Unlike `errseq_sample()` it does not go back to a failure that no opener has been told of,
    /// and unlike `errseq_check_and_advance()` it does not mark such a failure as seen, which would
    /// hide it from later openers. While a failure is unseen, an equal one does not change the
    /// `errseq_t`; but then the sync through this `struct file` reports it, or another sync does
    /// and marks it as seen, which is a change.
    pub(crate) fn from_now(file: &File) -> Self {
        // SAFETY: An open file has a mapping. What fails at the same time is reported or not.
        let now = unsafe { (&raw const (*(*file.as_ptr()).f_mapping).wb_err).read_volatile() };
        Self(Atomic::new(now))
    }

    /// Fails if something has failed that was not reported here. Does not mark it as seen, which
    /// would hide it from later openers of the file.
    ///
    /// A failure that is equal to an unseen one is not noticed. The next sync of the file reports
    /// both.
    pub(crate) fn check(&self, file: &File) -> Result {
        // SAFETY: An open file has a mapping.
        to_result(unsafe {
            bindings::errseq_check(
                &raw mut (*(*file.as_ptr()).f_mapping).wb_err,
                self.0.load(Relaxed),
            )
        })
    }

    /// Fails if something has failed that was not reported here, and reports it. For one user at a time.
    pub(crate) fn advance(&self, file: &File) -> Result {
        let mut since = self.0.load(Relaxed);
        // SAFETY: An open file has a mapping, and `since` is valid for writes.
        let result = to_result(unsafe {
            bindings::errseq_check_and_advance(
                &raw mut (*(*file.as_ptr()).f_mapping).wb_err,
                &mut since,
            )
        });
        self.0.store(since, Relaxed);
        result
    }
}

/// What identifies a file: `st_dev`, `st_ino` and `st_rdev`, device numbers in the encoding of user
/// space's 64-bit `dev_t`.
pub(crate) struct Identity {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) rdev: u64,
}

/// `huge_encode_dev()`: `new_encode_dev()` of major and minor.
fn encode_dev(dev: bindings::dev_t) -> u64 {
    let major = dev >> bindings::MINORBITS;
    let minor = dev & ((1 << bindings::MINORBITS) - 1);
    u64::from((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The file behind a descriptor of the current process.
///
/// Fails with `EBADF`. To be called by a system call that got the descriptor as an argument other
/// than the file it is a call on, as ioctls do.
pub(crate) fn from_fd(fd: u32) -> Result<ARef<File>> {
    let file = LocalFile::fget(fd)?;
    // SAFETY: The callers are ioctls, which hold no `fdget_pos()` reference to `file`; the
    // documentation of the function names them as its users.
    Ok(unsafe { LocalFile::assume_no_fdget_pos(file) })
}

/// Writes the absolute path of `file` to `buf`, and returns its length. Does not sleep.
///
/// Fails with `ENAMETOOLONG`.
pub(crate) fn path(file: &File, buf: &mut [u8]) -> Result<usize> {
    let size = c_int::try_from(buf.len())?;
    // SAFETY: The file is open, and `buf` has room for `size` bytes.
    let path = unsafe { bindings::file_path(file.as_ptr(), buf.as_mut_ptr().cast(), size) };
    let path = from_err_ptr(path)?;
    // The path stands at the end of `buf`, with a NUL behind it.
    // SAFETY: As said, so it is a string inside `buf`, which nobody else changes.
    let len = unsafe { CStr::from_char_ptr(path) }.to_bytes().len();
    // SAFETY: Both lie inside `buf`; they may overlap.
    unsafe { core::ptr::copy(path.cast::<u8>(), buf.as_mut_ptr(), len) };
    Ok(len)
}

/// What a driver that does I/O to a file asks it.
pub(crate) trait BackingFile {
    /// Whether the file can be read: `f_op->read_iter`.
    fn has_read(&self) -> bool;
    /// Whether the file's operations know writing: `f_op->write_iter`.
    fn has_write(&self) -> bool;
    /// Whether the file's operations know flushing: `f_op->fsync`.
    fn has_sync(&self) -> bool;
    /// Whether the file's operations know holes: `f_op->fallocate`.
    fn has_fallocate(&self) -> bool;
    /// Whether it is open for writing: `FMODE_WRITE`.
    fn is_writable(&self) -> bool;
    /// Returns whether writes to it can succeed: it is open for writing, its operations know writing, and
    /// it has not been protected against writes since it was opened. Later protection is not seen.
    fn accepts_writes(&self) -> bool;
    /// Whether it was opened for direct I/O: `O_DIRECT`.
    fn is_direct(&self) -> bool;
    /// Whether it can do direct I/O: `FMODE_CAN_ODIRECT`.
    fn can_direct(&self) -> bool;
    /// Whether reads and writes of it may be told not to wait: `FMODE_NOWAIT`.
    fn has_nowait(&self) -> bool;
    /// Whether there is anything in its page cache.
    fn is_cached(&self) -> bool;
    /// Whether reading it changes its access time, for which its file system may have to wait.
    fn changes_atime(&self) -> bool;
    /// Whether a write in place that ends at `end` bytes is the same whoever writes: nobody is
    /// refused, or told, and no privilege of the file goes.
    fn write_is_anonymous(&self, end: u64) -> bool;
    /// Whether a write to it that must be durable (`IOCB_DSYNC`) is, for certain.
    fn honours_dsync(&self) -> bool;
    /// Whether memory must not change while it is written to it, as what is below makes checksums or
    /// parity of it: `mapping_stable_writes()`, `bdev_stable_writes()`.
    fn wants_stable_writes(&self) -> bool;
    /// What kind of file it is.
    fn kind(&self) -> Kind<'_>;
    /// The block device that its file system lives on.
    fn fs_device(&self) -> Option<ARef<BlockDevice>>;
    /// Its size in bytes: a block device's from its inode, another file's from the file system.
    /// May sleep.
    fn size(&self) -> Result<u64>;
    /// What direct I/O to it must keep to, if the file system says. May sleep.
    fn direct_alignment(&self) -> Option<DirectAlignment>;
    /// The block size of its file system, in bytes: `statfs()`. May sleep.
    fn fs_block_size(&self) -> Result<u32>;
    /// What identifies it: `stat()`. May sleep.
    fn identity(&self) -> Result<Identity>;
    /// Makes everything written durable: `fsync()`. May sleep.
    fn sync(&self) -> Result;
    /// Makes the data written durable, and what it takes to find it again: `fdatasync()`. May sleep.
    ///
    /// An earlier write that failed since `reported`, which this advances, is an error, whoever has heard
    /// of it from this file already: but never `ENOMEM`, which tells of nothing but that, and may be tried
    /// again. (Not so on overlayfs, whose files have a mapping that hears of no failure.)
    fn sync_data(&self, reported: &ErrorCursor) -> Result;
    /// Where failed writes are that this file has not reported.
    fn error_cursor(&self) -> ErrorCursor;
    /// Drops its page cache, but for what cannot be written back or is in use. May sleep.
    fn drop_cache(&self);
    /// Keeps the file's file system from being frozen until [`end_write`](Self::end_write), which
    /// any context may call; waits while it is frozen. May sleep.
    fn start_write(&self);
    /// As [`start_write`](Self::start_write), but returns false where that would wait. Any context.
    fn try_start_write(&self) -> bool;
    /// Undoes [`start_write`](Self::start_write), once. Any context, including hard IRQ.
    fn end_write(&self);
    /// Writes back the dirty pages of `len` bytes from `pos` in its page cache, and waits for it.
    /// Does not make it durable. May sleep.
    fn write_back(&self, pos: u64, len: u64) -> Result;
    /// Changes the allocation of `len` bytes from `pos`: `vfs_fallocate()`, with a mode of
    /// `FALLOC_FL_*`. May sleep, and sleeps until the thaw while the file system is frozen.
    ///
    /// Also fails for a file that has become immutable, append-only or swap space since it was
    /// opened: `f_op->fallocate` itself checks for none of them.
    fn fallocate(&self, mode: Fallocate, pos: u64, len: u64) -> Result;
}

/// A mode of `fallocate()` that keeps the size of the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallocate {
    /// Frees the range, which reads as zeroes then: `FALLOC_FL_PUNCH_HOLE`.
    PunchHole,
    /// Makes the range read as zeroes and keeps it allocated: `FALLOC_FL_ZERO_RANGE`.
    ZeroRange,
}

/// The operations of a file.
fn ops(file: &File) -> &bindings::file_operations {
    // SAFETY: An open file has operations, which stay while it is open.
    unsafe { &*(*file.as_ptr()).f_op }
}

/// The inode that the file's data belongs to: `f_mapping->host`.
fn host(file: &File) -> *mut bindings::inode {
    // SAFETY: An open file has a mapping with a host, which stay while it is open.
    unsafe { (*(*file.as_ptr()).f_mapping).host }
}

fn mode_has(file: &File, flag: bindings::fmode_t) -> bool {
    // SAFETY: The file is open; these flags are set when it is opened, and stay.
    unsafe { (*file.as_ptr()).f_mode & flag != 0 }
}

/// Asks the file system for what `mask` (of `STATX_*`) names.
fn stat(file: &File, mask: u32, checked: bool) -> Result<bindings::kstat> {
    let mut stat: bindings::kstat = pin_init::zeroed();
    // SAFETY: The file is open, so its path is valid; `stat` is valid for writes.
    to_result(unsafe {
        let path = ffi::rnull_loop_file_path(file.as_ptr());
        if checked {
            bindings::vfs_getattr(path, &mut stat, mask, bindings::AT_STATX_SYNC_AS_STAT)
        } else {
            bindings::vfs_getattr_nosec(path, &mut stat, mask, 0)
        }
    })?;
    Ok(stat)
}

impl BackingFile for File {
    fn has_read(&self) -> bool {
        ops(self).read_iter.is_some()
    }

    fn has_write(&self) -> bool {
        ops(self).write_iter.is_some()
    }

    fn has_sync(&self) -> bool {
        ops(self).fsync.is_some()
    }

    fn has_fallocate(&self) -> bool {
        ops(self).fallocate.is_some()
    }

    fn is_writable(&self) -> bool {
        mode_has(self, ffi::FMODE_WRITE)
    }

    fn accepts_writes(&self) -> bool {
        // SAFETY: The file is open.
        let refuses = unsafe { ffi::rnull_loop_file_refuses_writes(self.as_ptr()) };
        self.is_writable() && self.has_write() && !refuses
    }

    fn is_direct(&self) -> bool {
        self.flags() & bindings::O_DIRECT != 0
    }

    fn can_direct(&self) -> bool {
        mode_has(self, ffi::FMODE_CAN_ODIRECT)
    }

    fn has_nowait(&self) -> bool {
        mode_has(self, ffi::FMODE_NOWAIT)
    }

    fn is_cached(&self) -> bool {
        // SAFETY: An open file has a mapping. The number may change at any time.
        unsafe { core::ptr::read_volatile(&raw const (*(*self.as_ptr()).f_mapping).nrpages) != 0 }
    }

    fn changes_atime(&self) -> bool {
        // SAFETY: The file is open.
        unsafe { !ffi::rnull_loop_atime_settled(self.as_ptr()) }
    }

    fn write_is_anonymous(&self, end: u64) -> bool {
        let Ok(end) = i64::try_from(end) else {
            return false;
        };
        // SAFETY: The file is open.
        unsafe { ffi::rnull_loop_write_is_anonymous(self.as_ptr(), end) }
    }

    fn honours_dsync(&self) -> bool {
        // SAFETY: The file is open.
        unsafe { ffi::rnull_loop_file_honours_dsync(self.as_ptr()) }
    }

    fn wants_stable_writes(&self) -> bool {
        // SAFETY: The file is open.
        unsafe { ffi::rnull_loop_file_stable_writes(self.as_ptr()) }
    }

    fn kind(&self) -> Kind<'_> {
        let inode = host(self);
        // SAFETY: The inode of an open file is valid; its type does not change.
        match u32::from(unsafe { (*inode).i_mode }) & bindings::S_IFMT {
            bindings::S_IFREG => Kind::Regular,
            bindings::S_IFBLK => {
                // SAFETY: The inode is that of a block device, which stays while the file is open.
                Kind::Block(unsafe { BlockDevice::from_raw(bindings::I_BDEV(inode)) })
            }
            _ => Kind::Other,
        }
    }

    fn fs_device(&self) -> Option<ARef<BlockDevice>> {
        // SAFETY: The inode of an open file is valid, and so is its super block.
        let bdev = unsafe { ffi::rnull_loop_get_sb_bdev(self.as_ptr()) };
        // SAFETY: The helper returns it with a reference, or null.
        unsafe { BlockDevice::from_kept(bdev) }
    }

    fn size(&self) -> Result<u64> {
        let size = match self.kind() {
            // SAFETY: The file is open.
            Kind::Block(_) => unsafe { ffi::rnull_loop_i_size_read(self.as_ptr()) },
            _ => stat(self, bindings::STATX_SIZE, false)?.size,
        };
        Ok(u64::try_from(size)?)
    }

    fn direct_alignment(&self) -> Option<DirectAlignment> {
        let stat = stat(self, bindings::STATX_DIOALIGN, true).ok()?;
        // A file system that reports zeroes cannot do direct I/O to this file.
        if stat.result_mask & bindings::STATX_DIOALIGN == 0 {
            return None;
        }
        Some(DirectAlignment {
            block: stat.dio_offset_align,
            memory: stat.dio_mem_align.checked_sub(1)?,
        })
    }

    fn fs_block_size(&self) -> Result<u32> {
        let mut size = 0;
        // SAFETY: The file is open, and `size` is valid for writes.
        to_result(unsafe { ffi::rnull_loop_fs_block_size(self.as_ptr(), &mut size) })?;
        Ok(size)
    }

    fn identity(&self) -> Result<Identity> {
        let stat = stat(self, bindings::STATX_INO, true)?;
        Ok(Identity {
            dev: encode_dev(stat.dev),
            ino: stat.ino,
            rdev: encode_dev(stat.rdev),
        })
    }

    fn sync(&self) -> Result {
        // SAFETY: The file is open.
        to_result(unsafe { bindings::vfs_fsync(self.as_ptr(), 0) })
    }

    fn sync_data(&self, reported: &ErrorCursor) -> Result {
        // SAFETY: The file is open.
        let result = to_result(unsafe { bindings::vfs_fsync(self.as_ptr(), 1) });
        match reported.advance(self) {
            Err(error) if error == ENOMEM => Err(EIO),
            Err(error) => Err(error),
            Ok(()) => result,
        }
    }

    fn error_cursor(&self) -> ErrorCursor {
        // SAFETY: The file is open. What syncs of it change meanwhile is seen or not.
        let reported = unsafe { (&raw const (*self.as_ptr()).f_wb_err).read_volatile() };
        ErrorCursor(Atomic::new(reported))
    }

    fn drop_cache(&self) {
        // SAFETY: An open file has a mapping. What cannot be dropped makes it fail, and stays.
        unsafe { bindings::invalidate_inode_pages2((*self.as_ptr()).f_mapping) };
    }

    fn start_write(&self) {
        // SAFETY: The file is open.
        unsafe { ffi::rnull_loop_file_start_write(self.as_ptr()) };
    }

    fn try_start_write(&self) -> bool {
        // SAFETY: The file is open.
        unsafe { ffi::rnull_loop_file_start_write_trylock(self.as_ptr()) }
    }

    fn end_write(&self) {
        // SAFETY: The file is open; by the function's requirements a start is undone.
        unsafe { ffi::rnull_loop_file_end_write(self.as_ptr()) };
    }

    fn write_back(&self, pos: u64, len: u64) -> Result {
        let last = pos.saturating_add(len).saturating_sub(1);
        let (first, last) = (pos.try_into()?, last.try_into()?);
        // SAFETY: An open file has a mapping.
        to_result(unsafe {
            bindings::filemap_write_and_wait_range((*self.as_ptr()).f_mapping, first, last)
        })
    }

    fn fallocate(&self, mode: Fallocate, pos: u64, len: u64) -> Result {
        let mode = match mode {
            Fallocate::PunchHole => ffi::FALLOC_FL_PUNCH_HOLE,
            Fallocate::ZeroRange => ffi::FALLOC_FL_ZERO_RANGE,
        } | ffi::FALLOC_FL_KEEP_SIZE;
        let (pos, len) = (pos.try_into()?, len.try_into()?);
        // SAFETY: The file is open.
        to_result(unsafe { bindings::vfs_fallocate(self.as_ptr(), mode as c_int, pos, len) })
    }
}

/// A mapping whose mask was changed, and for how many [`NoIoMapping`].
pub(crate) struct NoIoUse {
    mapping: usize,
    users: usize,
    old: bindings::gfp_t,
}

global_lock! {
    // SAFETY: Initialized in the module initializer before first use.
    pub(crate) unsafe(uninit) static NO_IO_MAPPINGS: Mutex<KVec<NoIoUse>> = KVec::new();
}

/// While this lives, memory for the page cache of a file is got without I/O and without entering
/// file systems, as reclaim may be waiting for a device that is served from the file. Any number of
/// devices may be served from one file.
///
/// # Invariants
///
/// The file's mapping is in `NO_IO_MAPPINGS`, where this value is counted.
pub(crate) struct NoIoMapping(ARef<File>);

impl NoIoMapping {
    /// Takes `__GFP_IO` and `__GFP_FS` from the mask of the file's mapping.
    ///
    /// May sleep. Fails with `ENOMEM`.
    pub(crate) fn new(file: ARef<File>) -> Result<Self> {
        let mask = Self::mask(&file);
        let mapping = mask as usize;
        let mut table = NO_IO_MAPPINGS.lock();
        if let Some(known) = table.iter_mut().find(|known| known.mapping == mapping) {
            known.users = known.users.saturating_add(1);
        } else {
            // SAFETY: The mask of a mapping that `file` keeps; a plain word in C too.
            let old = unsafe { mask.read_volatile() };
            let users = 1;
            let new = NoIoUse {
                mapping,
                users,
                old,
            };
            // Reclaim that does I/O could block the callers for other devices, which need the lock.
            let _noio = IoWorkerScope::enter();
            table.push(new, GFP_KERNEL)?;
            // SAFETY: As above; the lock keeps other devices away.
            unsafe { mask.write_volatile(old & !(ffi::__GFP_IO | ffi::__GFP_FS)) };
        }
        // INVARIANT: Counted above.
        Ok(Self(file))
    }

    /// The mask of a file's mapping, which also identifies it.
    fn mask(file: &File) -> *mut bindings::gfp_t {
        // SAFETY: An open file has a mapping; this only computes an address inside it.
        unsafe { &raw mut (*(*file.as_ptr()).f_mapping).gfp_mask }
    }
}

impl Drop for NoIoMapping {
    fn drop(&mut self) {
        let mask = Self::mask(&self.0);
        let mut table = NO_IO_MAPPINGS.lock();
        table.retain(|known| {
            if known.mapping == mask as usize {
                known.users = known.users.saturating_sub(1);
                if known.users == 0 {
                    // SAFETY: The mask of a mapping that the file keeps; nobody wants it changed.
                    unsafe { mask.write_volatile(known.old) };
                }
            }
            known.users != 0
        });
        // Nobody drops a static.
        if table.is_empty() {
            *table = KVec::new();
        }
    }
}
