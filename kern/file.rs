// SPDX-License-Identifier: GPL-2.0

//! Open files as the backing store of a driver.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::{
    bdev::BlockDevice,
    ffi, //
};
use core::ptr::NonNull;
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
    rbtree::{
        Entry,
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        aref::ARef,
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        global_lock, //
    },
};

/// The type of the file that an inode is.
pub(crate) enum Kind<'a> {
    /// A regular file.
    Regular,
    /// A block device.
    Block(&'a BlockDevice),
    /// A directory, a socket, a character device, ...
    Other,
}

/// The alignment of direct I/O to a file.
#[derive(Clone, Copy)]
pub(crate) struct DirectAlignment {
    /// The alignment of positions and lengths, in bytes.
    pub(crate) block: u32,
    /// The alignment of memory, as a mask.
    pub(crate) memory: u32,
}

/// A position in the sequence of a file's writeback errors: a sampled `errseq_t`. Errors before it
/// have been reported to the owner of the cursor.
///
/// Each `struct file` has such a cursor (`f_wb_err`), but all tasks that sync through that `struct
/// file` share it: only the first sync reports an error.
///
/// # Examples
///
/// ```ignore
/// // A write through the page cache that reports the failure of its own writeback.
/// let cursor = ErrseqCursor::from_now(file);
/// write_to_page_cache(file, position, len)?;
/// file.write_back(position, len)?;
/// // Another sync may have reported the error before `write_back`.
/// cursor.check(file)?;
/// ```
pub(crate) struct ErrseqCursor(Atomic<u32>);

impl ErrseqCursor {
    /// Returns a cursor at the current end of the sequence, for a write that syncs its own data
    /// through this `struct file`.
    ///
    /// The cursor does not report an earlier error, even if no opener has seen that error, as a
    /// cursor of `errseq_sample()` would. Nor is such an error marked as seen, as by
    /// `errseq_check_and_advance()`, because later openers of the file would miss it.
    ///
    /// While an error is unseen, an equal error does not change the `errseq_t`. The equal error is
    /// not lost: the sync through this `struct file` reports it, unless another sync has reported
    /// it before. That other sync has marked it as seen, which changes the `errseq_t`, so the
    /// cursor reports it.
    pub(crate) fn from_now(file: &File) -> Self {
        // SAFETY: An open file has a mapping, so `wb_err` is valid for reads. C code may change it
        // at the same time: then the cursor is before or behind the new error.
        let now = unsafe { (&raw const (*mapping(file)).wb_err).read_volatile() };
        Self(Atomic::new(now))
    }

    /// Fails if there is an error behind the cursor. Does not mark the error as seen, because later
    /// openers of the file would miss it.
    ///
    /// Does not notice an error that is equal to an unseen one. The next sync of the file reports
    /// both.
    pub(crate) fn check(&self, file: &File) -> Result {
        // SAFETY: An open file has a mapping; this only computes an address inside it.
        let wb_err = unsafe { &raw mut (*mapping(file)).wb_err };
        // SAFETY: `wb_err` is valid; the call accesses it atomically.
        to_result(unsafe { bindings::errseq_check(wb_err, self.0.load(Relaxed)) })
    }

    /// Fails if there is an error behind the cursor, marks the error as seen, and moves the cursor
    /// behind it. The caller excludes other callers, because two of them might both report one
    /// error.
    pub(crate) fn advance(&self, file: &File) -> Result {
        let mut since = self.0.load(Relaxed);
        // SAFETY: An open file has a mapping; this only computes an address inside it.
        let wb_err = unsafe { &raw mut (*mapping(file)).wb_err };
        // SAFETY: `wb_err` is valid; the call accesses it atomically. `since` is valid for reads
        // and writes.
        let result = to_result(unsafe { bindings::errseq_check_and_advance(wb_err, &mut since) });
        self.0.store(since, Relaxed);
        result
    }
}

/// The identity of a file: `st_dev`, `st_ino` and `st_rdev`. Device numbers have the encoding of
/// the 64-bit `dev_t` of user space.
pub(crate) struct Identity {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) rdev: u64,
}

/// Encodes a device number for user space: `huge_encode_dev()`.
fn encode_dev(dev: bindings::dev_t) -> u64 {
    let major = dev >> bindings::MINORBITS;
    let minor = dev & ((1 << bindings::MINORBITS) - 1);
    u64::from((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Returns the file of a descriptor of the current process. Only for ioctls, which pass the
/// descriptor as their argument.
///
/// Fails with `EBADF` if the descriptor is not open.
pub(crate) fn from_fd(fd: u32) -> Result<ARef<File>> {
    let file = LocalFile::fget(fd)?;
    // SAFETY: The callers are ioctls, as the documentation of this function demands. An ioctl gets
    // its own file by `fdget()`, so no `fdget_pos()` is active on this thread.
    Ok(unsafe { LocalFile::assume_no_fdget_pos(file) })
}

/// Writes the absolute path of `file` to `buf`, and returns its length: `file_path()`. Does not
/// sleep.
///
/// Fails with `ENAMETOOLONG` if the path does not fit.
pub(crate) fn path(file: &File, buf: &mut [u8]) -> Result<usize> {
    let size = c_int::try_from(buf.len())?;
    // SAFETY: The file is open, and `buf` has room for `size` bytes.
    let path = unsafe { bindings::file_path(file.as_ptr(), buf.as_mut_ptr().cast(), size) };
    let path = from_err_ptr(path)?;
    // SAFETY: `file_path()` returned no error, so `path` is a NUL-terminated string inside `buf`,
    // which is borrowed exclusively.
    let len = unsafe { CStr::from_char_ptr(path) }.to_bytes().len();
    // SAFETY: The `len` bytes at `path` are inside `buf`, so `buf` has room for them; `copy` allows
    // the two ranges to overlap.
    unsafe { core::ptr::copy(path.cast::<u8>(), buf.as_mut_ptr(), len) };
    Ok(len)
}

/// Extends [`File`] with the operations and the capabilities of a backing file.
pub(crate) trait BackingFile {
    /// Returns whether the file supports reads: `f_op->read_iter`.
    fn has_read(&self) -> bool;
    /// Returns whether the file supports writes: `f_op->write_iter`.
    fn has_write(&self) -> bool;
    /// Returns whether the file supports flushes: `f_op->fsync`.
    fn has_fsync(&self) -> bool;
    /// Returns whether the file supports [`fallocate`](Self::fallocate): `f_op->fallocate`.
    fn has_fallocate(&self) -> bool;
    /// Returns whether the file is open for writing: `FMODE_WRITE`.
    fn is_writable(&self) -> bool;
    /// Returns whether writes to the file can succeed: it is open for writing, supports writes, and
    /// has not become write-protected since it was opened. The answer may be stale when this
    /// returns.
    fn accepts_writes(&self) -> bool;
    /// Returns whether `O_DIRECT` is set for the file.
    fn is_direct(&self) -> bool;
    /// Returns whether the file supports direct I/O: `FMODE_CAN_ODIRECT`.
    fn can_direct(&self) -> bool;
    /// Returns whether the file supports non-blocking I/O (`IOCB_NOWAIT`): `FMODE_NOWAIT`.
    fn has_nowait(&self) -> bool;
    /// Returns whether transfers can leave nothing behind in the page cache of the file
    /// (`IOCB_DONTCACHE`): `FOP_DONTCACHE`.
    fn has_dontcache(&self) -> bool;
    /// Returns whether the page cache of the file holds pages. Any context.
    fn is_cached(&self) -> bool;
    /// Returns whether a read that finds its data in the page cache of the file enters no file
    /// system, not even to change the access time.
    fn has_local_cache(&self) -> bool;
    /// Returns whether `IOCB_DSYNC` is certain to make a write to the file durable.
    fn honours_dsync(&self) -> bool;
    /// Returns whether memory must not change while it is written to the file, because a checksum
    /// or a parity is computed from it: `mapping_stable_writes()`, `bdev_stable_writes()`.
    fn wants_stable_writes(&self) -> bool;
    /// Returns the type of the file.
    fn kind(&self) -> Kind<'_>;
    /// Returns the block device of the file's file system: `s_bdev`. `None` if the file system has
    /// none, or if the file is a block device itself.
    fn fs_device(&self) -> Option<ARef<BlockDevice>>;
    /// Returns the size of the file, in bytes: of a block device as in its inode, of other files as
    /// the file system reports it. May sleep.
    fn size(&self) -> Result<u64>;
    /// Returns the alignment of direct I/O to the file, if the file system reports it
    /// (`STATX_DIOALIGN`). May sleep.
    fn direct_alignment(&self) -> Option<DirectAlignment>;
    /// Returns the block size of the file's file system, in bytes: `statfs()`. May sleep.
    fn fs_block_size(&self) -> Result<u32>;
    /// Returns the identity of the file: `stat()`. May sleep.
    fn identity(&self) -> Result<Identity>;
    /// Makes the data and the metadata of the file durable: `fsync()`. May sleep.
    fn fsync(&self) -> Result;
    /// Makes the data of the file durable, and the metadata that reading it needs: `fdatasync()`.
    /// May sleep. The caller excludes other users of `wb_err`.
    ///
    /// Fails on a writeback error behind `wb_err`, even if another sync of this `struct file` has
    /// reported that error already, and advances `wb_err`. A writeback error `ENOMEM` becomes
    /// `EIO`, because callers retry on `ENOMEM`, but no other sync would report the lost data.
    ///
    /// On overlayfs, writeback errors are recorded in the mapping of the underlying file, so an
    /// error that another sync has reported is missed.
    fn fdatasync(&self, wb_err: &ErrseqCursor) -> Result;
    /// Fails on a writeback error behind `wb_err`, as [`fdatasync`](Self::fdatasync) does, without
    /// a sync. The caller excludes other users of `wb_err`.
    fn writeback_error(&self, wb_err: &ErrseqCursor) -> Result;
    /// Returns a cursor behind the writeback errors that this `struct file` has reported:
    /// `f_wb_err`.
    fn wb_err_cursor(&self) -> ErrseqCursor;
    /// Fails if no opener of the file has seen its last writeback error. Otherwise
    /// [skips](Self::skip_errors) it: the device reports it, by a cursor of its own.
    fn skip_seen_errors(&self) -> Result;
    /// Does what a sync does that has nothing to write: from here on, syncs through this `struct
    /// file` and the waits of direct I/O do not report the writeback errors of the past. Does not
    /// sleep.
    fn skip_errors(&self);
    /// Drops the page cache of the file, also pages that are mapped: `invalidate_inode_pages2()`.
    /// Waits for pages that are locked or under writeback. May sleep.
    ///
    /// Dirty pages stay, unless the file system writes them back in `->launder_folio` (btrfs, FUSE,
    /// NFS). Pages whose buffers the file system cannot release stay, too.
    fn drop_page_cache(&self);
    /// Drops the pages of `len` bytes from `pos` in the page cache of the file, also pages that are
    /// mapped: `invalidate_inode_pages2_range()`. Waits for pages that are locked or under
    /// writeback. May sleep. Fails with `EBUSY` if pages stay, because they are dirty or in use.
    fn drop_cached(&self, pos: u64, len: u64) -> Result;
    /// Takes freeze protection: the file's file system is not frozen until
    /// [`end_write`](Self::end_write). Waits for the thaw of a frozen file system. May sleep.
    fn start_write(&self);
    /// Takes freeze protection as [`start_write`](Self::start_write) does, but returns false if
    /// that would block. Any context.
    fn try_start_write(&self) -> bool;
    /// Releases the freeze protection of one [`start_write`](Self::start_write), also one of
    /// another task. Any context, including hard IRQ.
    fn end_write(&self);
    /// Writes back the dirty pages of `len` bytes from `pos` in the page cache of the file, and
    /// waits for the writeback: `filemap_write_and_wait_range()`. Does not make the data durable.
    /// May sleep.
    fn write_back(&self, pos: u64, len: u64) -> Result;
    /// Changes the allocation of `len` bytes from `pos`: `vfs_fallocate()`. Waits for the thaw of a
    /// frozen file system. May sleep.
    ///
    /// Also fails for a file that has become immutable, append-only or swap space since it was
    /// opened: `f_op->fallocate` itself checks for none of them.
    fn fallocate(&self, mode: Fallocate, pos: u64, len: u64) -> Result;
}

/// A mode of `fallocate()` that keeps the size of the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallocate {
    /// Frees the range, which then reads as zeroes: `FALLOC_FL_PUNCH_HOLE`.
    PunchHole,
    /// Makes the range read as zeroes and keeps it allocated: `FALLOC_FL_ZERO_RANGE`.
    ZeroRange,
}

/// Returns the operations of a file.
fn ops(file: &File) -> &bindings::file_operations {
    // SAFETY: An open file has operations, which are static and belong to a module that the file
    // keeps loaded.
    unsafe { &*(*file.as_ptr()).f_op }
}

/// Returns the mapping of a file's data: `f_mapping`.
fn mapping(file: &File) -> *mut bindings::address_space {
    // SAFETY: The file is open, so it is valid. Its mapping does not change while it is open.
    unsafe { (*file.as_ptr()).f_mapping }
}

/// Returns the inode of a file's data: `f_mapping->host`.
fn host(file: &File) -> *mut bindings::inode {
    // SAFETY: An open file has a mapping, whose host does not change.
    unsafe { (*mapping(file)).host }
}

/// Returns whether the mode of a file has `flag`, which is set by `open()` alone.
fn mode_has(file: &File, flag: bindings::fmode_t) -> bool {
    // SAFETY: The file is open, so `f_mode` is valid. C code reads it as a plain word, too.
    unsafe { (*file.as_ptr()).f_mode & flag != 0 }
}

/// Asks the file system for the attributes of `mask` (`STATX_*`). With `checked`, a security module
/// may deny the access. May sleep.
fn stat(file: &File, mask: u32, checked: bool) -> Result<bindings::kstat> {
    let mut stat: bindings::kstat = pin_init::zeroed();
    // SAFETY: The file is open, so it is valid and has a path.
    let path = unsafe { ffi::rnull_loop_file_path(file.as_ptr()) };
    to_result(if checked {
        // SAFETY: The path is valid while the file is open; `stat` is valid for writes.
        unsafe { bindings::vfs_getattr(path, &mut stat, mask, bindings::AT_STATX_SYNC_AS_STAT) }
    } else {
        // SAFETY: The path is valid while the file is open; `stat` is valid for writes.
        unsafe { bindings::vfs_getattr_nosec(path, &mut stat, mask, 0) }
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

    fn has_fsync(&self) -> bool {
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

    fn has_dontcache(&self) -> bool {
        // SAFETY: The file is open.
        unsafe { ffi::rnull_loop_file_has_dontcache(self.as_ptr()) }
    }

    fn is_cached(&self) -> bool {
        // SAFETY: An open file has a mapping, so `nrpages` is valid for reads. C code may change it
        // at the same time: then either number will do.
        unsafe { core::ptr::read_volatile(&raw const (*(*self.as_ptr()).f_mapping).nrpages) != 0 }
    }

    fn has_local_cache(&self) -> bool {
        // SAFETY: The file is open.
        unsafe { ffi::rnull_loop_file_has_local_cache(self.as_ptr()) }
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
        // SAFETY: The file is open, so its inode is valid; the type of an inode does not change.
        match u32::from(unsafe { (*inode).i_mode }) & bindings::S_IFMT {
            bindings::S_IFREG => Kind::Regular,
            bindings::S_IFBLK => {
                // SAFETY: The data of an open device node belongs to an inode of the block device,
                // which is open as long as the file, so for the lifetime of `self`.
                Kind::Block(unsafe { BlockDevice::from_raw(bindings::I_BDEV(inode)) })
            }
            _ => Kind::Other,
        }
    }

    fn fs_device(&self) -> Option<ARef<BlockDevice>> {
        // SAFETY: The file is open, so its inode and the super block of its inode are valid.
        let bdev = unsafe { ffi::rnull_loop_get_sb_bdev(self.as_ptr()) };
        // SAFETY: The helper returns a valid block device with a reference for the caller, or null.
        unsafe { BlockDevice::from_owned(bdev) }
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
        // A file system that reports zeroes does not support direct I/O to this file.
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

    fn fsync(&self) -> Result {
        // SAFETY: The file is open.
        to_result(unsafe { bindings::vfs_fsync(self.as_ptr(), 0) })
    }

    fn fdatasync(&self, wb_err: &ErrseqCursor) -> Result {
        // SAFETY: The file is open.
        let result = to_result(unsafe { bindings::vfs_fsync(self.as_ptr(), 1) });
        self.writeback_error(wb_err).and(result)
    }

    fn writeback_error(&self, wb_err: &ErrseqCursor) -> Result {
        wb_err.advance(self).map_err(|error| match error {
            ENOMEM => EIO,
            error => error,
        })
    }

    fn wb_err_cursor(&self) -> ErrseqCursor {
        // SAFETY: The file is open, so `f_wb_err` is valid for reads. A sync may change it at the
        // same time: then the cursor is before or behind the error which that sync reports.
        let wb_err = unsafe { (&raw const (*self.as_ptr()).f_wb_err).read_volatile() };
        ErrseqCursor(Atomic::new(wb_err))
    }

    fn skip_seen_errors(&self) -> Result {
        // SAFETY: An open file has a mapping; this only computes an address inside it.
        let wb_err = unsafe { &raw mut (*mapping(self)).wb_err };
        // A sample is 0 if the error is unseen.
        // SAFETY: `wb_err` is valid; the calls access it atomically.
        to_result(unsafe { bindings::errseq_check(wb_err, bindings::errseq_sample(wb_err)) })?;
        self.skip_errors();
        Ok(())
    }

    fn skip_errors(&self) {
        // SAFETY: The file is open.
        let _ = unsafe { bindings::file_check_and_advance_wb_err(self.as_ptr()) };
    }

    fn drop_page_cache(&self) {
        // The call would visit what it remembers of pages that are gone.
        if !self.is_cached() {
            return;
        }
        // SAFETY: An open file has a mapping, which lives as long as the file is open. Pages with
        // other users are safe: the call locks and unmaps each page, and keeps it if it is dirty or
        // if its buffers cannot be released. Then it returns an error, which is ignored.
        unsafe { bindings::invalidate_inode_pages2((*self.as_ptr()).f_mapping) };
    }

    fn drop_cached(&self, pos: u64, len: u64) -> Result {
        let last = pos.saturating_add(len).saturating_sub(1);
        // CAST: The number of a page of a file fits.
        let page = |pos: u64| (pos >> bindings::PAGE_SHIFT) as usize;
        // SAFETY: An open file has a mapping, which lives as long as the file is open. Pages with
        // other users are safe: the call locks and unmaps each page.
        to_result(unsafe {
            bindings::invalidate_inode_pages2_range(mapping(self), page(pos), page(last))
        })
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
        // SAFETY: The file is open, so its super block is valid. A call without freeze protection
        // is a bug of the caller that breaks freezing, but accesses no invalid memory.
        unsafe { ffi::rnull_loop_file_end_write(self.as_ptr()) };
    }

    fn write_back(&self, pos: u64, len: u64) -> Result {
        let last = pos.saturating_add(len).saturating_sub(1);
        let (first, last) = (pos.try_into()?, last.try_into()?);
        // SAFETY: An open file has a mapping, which lives as long as the file is open.
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

/// A regular file that was opened again, so that no other task has this `struct file`. Reads of it
/// do not change the access time.
pub(crate) struct PrivateFile {
    file: ARef<File>,
    /// The `struct file` that it was opened from, which holds the locks of its owner.
    original: ARef<File>,
}

impl PrivateFile {
    /// Opens a file again for the same access and by the same credentials, and takes over the
    /// reference to the original. Returns the original if it is not a regular file, or cannot be
    /// opened: a security module may refuse it. May sleep.
    pub(crate) fn open(original: ARef<File>) -> Result<Self, ARef<File>> {
        if !matches!(original.kind(), Kind::Regular) {
            return Err(original);
        }
        // SAFETY: The file is open.
        let file = from_err_ptr(unsafe { ffi::rnull_loop_file_reopen(original.as_ptr()) });
        let Some(file) = file.ok().and_then(NonNull::new) else {
            return Err(original);
        };
        Ok(Self {
            // SAFETY: `dentry_open()` returns an open file with a reference for the caller. No task
            // has it in its table of descriptors.
            file: unsafe { ARef::from_raw(file.cast()) },
            original,
        })
    }

    /// Returns the file that no other task has.
    pub(crate) fn file(&self) -> &ARef<File> {
        &self.file
    }

    /// Returns the file that it was opened from.
    pub(crate) fn original(&self) -> &File {
        &self.original
    }
}

/// A mapping whose GFP mask was changed.
pub(crate) struct NoIoEntry {
    /// The number of [`NoIoMapping`] for the mapping.
    users: usize,
    /// The mask before the change.
    old: bindings::gfp_t,
}

global_lock! {
    /// The mappings whose masks were changed, by the address of the mask; `None` before the first.
    // SAFETY: Initialized in the module initializer before first use.
    pub(crate) unsafe(uninit) static NO_IO_MAPPINGS: Mutex<Option<RBTree<usize, NoIoEntry>>> = None;
}

/// A restriction of page cache allocations for a file: while this lives, they start no I/O and
/// enter no file system. Otherwise reclaim could deadlock on a device that is served from the file.
/// Several devices may restrict the same file.
///
/// # Invariants
///
/// `NO_IO_MAPPINGS` has an entry for the file's mapping, which counts this value.
pub(crate) struct NoIoMapping(ARef<File>);

impl NoIoMapping {
    /// Clears `__GFP_IO` and `__GFP_FS` in the GFP mask of the file's mapping.
    ///
    /// May sleep. Fails with `ENOMEM`.
    pub(crate) fn new(file: ARef<File>) -> Result<Self> {
        let mask = Self::mask(&file);
        // Before the lock, which other devices need: deadlock, if an allocation under it waited for
        // their I/O.
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let mut mappings = NO_IO_MAPPINGS.lock();
        match mappings
            .get_or_insert_with(RBTree::new)
            .entry(mask as usize)
        {
            Entry::Occupied(mut entry) => {
                let entry = entry.get_mut();
                entry.users = entry.users.saturating_add(1);
            }
            Entry::Vacant(entry) => {
                // SAFETY: `file` keeps its mapping, so the mask is valid for reads. C code accesses
                // it as a plain word, too.
                let old = unsafe { mask.read_volatile() };
                entry.insert(NoIoEntry { users: 1, old }, node);
                // SAFETY: `file` keeps its mapping, so the mask is valid for writes. The lock
                // excludes other writers of this module.
                unsafe { mask.write_volatile(old & !(ffi::__GFP_IO | ffi::__GFP_FS)) };
            }
        }
        // INVARIANT: The entry was added or incremented above.
        Ok(Self(file))
    }

    /// Returns the address of the GFP mask of a file's mapping.
    fn mask(file: &File) -> *mut bindings::gfp_t {
        // SAFETY: An open file has a mapping, so the address is inside one object.
        unsafe { &raw mut (*(*file.as_ptr()).f_mapping).gfp_mask }
    }
}

impl Drop for NoIoMapping {
    fn drop(&mut self) {
        let mask = Self::mask(&self.0);
        let mut mappings = NO_IO_MAPPINGS.lock();
        let mappings = mappings.as_mut();
        // By the type invariant there is an entry.
        let Some(mut entry) = mappings.and_then(|mappings| mappings.find_mut(&(mask as usize)))
        else {
            return;
        };
        let NoIoEntry { users, old } = entry.get_mut();
        *users = users.saturating_sub(1);
        if *users == 0 {
            // SAFETY: The file keeps its mapping, so the mask is valid for writes. The lock
            // excludes other writers of this module.
            unsafe { mask.write_volatile(*old) };
            entry.remove();
        }
    }
}
