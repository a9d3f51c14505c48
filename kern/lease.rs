// SPDX-License-Identifier: GPL-2.0

//! Leases of files: while one is held, a file system asks before the blocks of the file change.
//!
//! A task that is about to do what a lease excludes is a *breaker*. The kernel calls the holder of
//! the lease, which releases it at once, or the breaker waits until it is released. Two types of
//! leases together cover all changes of the places of written blocks on ext4 and XFS:
//!
//! | change | what excludes it |
//! | --- | --- |
//! | open for writing, `truncate()` | [`Type::Delegation`] |
//! | `chmod()`, `chown()`, `utimes()`, `setxattr()` | [`Type::Delegation`] |
//! | `link()`, `rename()`, `unlink()` | [`Type::Delegation`] |
//! | `write()`, `fallocate()`, `ftruncate()`, a shared mapping | [`BlockFile::has_other_writers`] |
//! | defragmentation, `FICLONE` into the file | [`BlockFile::has_other_writers`] |
//! | XFS: `FICLONE` of the file, dedupe, exchange-range, online repair | [`Type::Layout`] |
//!
//! Those in the middle need a descriptor that is open for writing.
//!
//! C headers: [`include/linux/filelock.h`](srctree/include/linux/filelock.h),
//! [`fs/locks.c`](srctree/fs/locks.c)

use super::{
    bdev::BlockDevice,
    ffi,
    file::{
        BackingFile,
        DirectAlignment,
        PrivateFile, //
    },
    trace::declare_trace, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
    fs::File,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    types::Opaque, //
};

declare_trace! {
    /// A lease is taken.
    ///
    /// # Safety
    ///
    /// `file` is open.
    unsafe fn lease_taken(file: *mut bindings::file, layout: bool);

    /// A lease is being broken.
    ///
    /// # Safety
    ///
    /// `file` is open.
    unsafe fn lease_broken(file: *mut bindings::file, layout: bool);
}

/// The type of a lease.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    /// Broken by changes of the file's attributes and names, and by opening it for writing:
    /// `FL_DELEG`.
    Delegation,
    /// Broken by changes of the places of the file's blocks, on file systems that export them to
    /// clients of pNFS: `FL_LAYOUT`.
    Layout,
}

/// The holder of leases.
pub(crate) trait Holder: Send + Sync + 'static {
    /// Called when a lease is broken. Returns true to release it at once, so that the breaker goes
    /// on; otherwise the breaker waits, and the holder drops the lease soon, in another task. A
    /// spinlock is held: must not sleep.
    fn lease_broken(self: Arc<Self>, ty: Type) -> bool;
}

/// A lease of a file, which is released when this is dropped. Dropping it may sleep.
///
/// # Invariants
///
/// `owner` is the owner of at most one lease, that of `file`, and of no lease when this is gone.
#[repr(C)]
#[pin_data(PinnedDrop)]
pub(crate) struct Lease<H: Holder> {
    // The first field, so that a pointer to it is one to the lease.
    #[pin]
    owner: Opaque<ffi::rnull_loop_lease_owner>,
    file: ARef<File>,
    ty: Type,
    holder: Arc<H>,
}

// SAFETY: The fields are `Send`, but for `owner`, which is bound to no task.
unsafe impl<H: Holder> Send for Lease<H> {}

impl<H: Holder> Lease<H> {
    /// Takes a lease of `file` for `holder`. The lease does not exclude those that have the file
    /// open for writing already. May sleep.
    ///
    /// Fails with `EAGAIN` while a breaker waits or the inode is locked, and with `EINVAL` if the
    /// file system has no leases.
    pub(crate) fn take(file: ARef<File>, ty: Type, holder: Arc<H>) -> Result<Pin<KBox<Self>>> {
        let lease = KBox::pin_init(
            pin_init!(Self {
                owner: Opaque::new(ffi::rnull_loop_lease_owner {
                    broken: Some(Self::broken),
                }),
                file,
                ty,
                holder,
            }),
            GFP_KERNEL,
        )?;
        let layout = ty == Type::Layout;
        let file = lease.file.as_ptr();
        // SAFETY: The file is open. The owner is pinned, and stays valid until the lease is
        // released, at the latest when `lease` is dropped.
        to_result(unsafe { ffi::rnull_loop_lease_take(file, layout, lease.owner.get()) })?;
        // SAFETY: The file is open.
        unsafe { lease_taken(file, layout) };
        Ok(lease)
    }

    /// Tells the holder that its lease is being broken. Returns true to release it.
    ///
    /// # Safety
    ///
    /// Called by the helpers with the owner of a lease that was taken and is not released.
    unsafe extern "C" fn broken(owner: *mut ffi::rnull_loop_lease_owner) -> bool {
        // SAFETY: By the function's requirements this is the first field of a valid `Lease<H>`,
        // whose release waits for the spinlock that the caller holds.
        let lease = unsafe { &*owner.cast::<Self>() };
        // SAFETY: The lease has the file, which is open.
        unsafe { lease_broken(lease.file.as_ptr(), lease.ty == Type::Layout) };
        lease.holder.clone().lease_broken(lease.ty)
    }
}

#[pinned_drop]
impl<H: Holder> PinnedDrop for Lease<H> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The file is open. If the owner has no lease, the call does nothing.
        unsafe { ffi::rnull_loop_lease_release(self.file.as_ptr(), self.owner.get()) };
    }
}

/// A regular file on a file system that keeps written blocks where they are while leases of the
/// file are held.
pub(crate) struct BlockFile {
    file: PrivateFile,
    /// The operations of the file's mapping, and the address where they are.
    a_ops: (
        *const bindings::address_space_operations,
        *const *const bindings::address_space_operations,
    ),
    bdev: NonNull<bindings::block_device>,
    block_bits: u32,
    direct: DirectAlignment,
}

// SAFETY: `a_ops` and `bdev` belong to the file, which any thread may use.
unsafe impl Send for BlockFile {}
// SAFETY: As above.
unsafe impl Sync for BlockFile {}

impl BlockFile {
    /// Makes the file. Returns the private file if its file system may move blocks. May sleep.
    ///
    /// ext4 and XFS keep blocks, unless the data of the file is encrypted, verified or journaled.
    /// Not in this list: btrfs and f2fs, which move blocks; stacked and network file systems, which
    /// have no block device.
    pub(crate) fn new(file: PrivateFile) -> Result<Self, PrivateFile> {
        let raw = file.file().as_ptr();
        // SAFETY: An open file has a mapping; this only computes an address inside it.
        let a_ops = unsafe { &raw const (*(*raw).f_mapping).a_ops };
        // SAFETY: The mapping is valid. C code changes the field as a plain word, too.
        let a_ops = (unsafe { a_ops.read_volatile() }, a_ops);
        // SAFETY: The file is open.
        if !unsafe { ffi::rnull_loop_file_keeps_blocks(raw) } {
            return Err(file);
        }
        // A file system that reports no alignment does not support direct I/O to this file.
        let alignment = file.file().direct_alignment();
        let Some(direct) = alignment.filter(|alignment| alignment.block != 0) else {
            return Err(file);
        };
        // SAFETY: The file is open, so its super block is valid.
        let Some(bdev) = NonNull::new(unsafe { ffi::rnull_loop_file_bdev(raw) }) else {
            return Err(file);
        };
        // SAFETY: The file is open, so its inode is valid. ext4 and XFS do not change `i_blkbits`.
        let block_bits = unsafe { ffi::rnull_loop_file_block_bits(raw) };
        Ok(Self {
            file,
            a_ops,
            bdev,
            block_bits,
            direct,
        })
    }

    /// Returns the alignment of direct I/O that the file system has reported, when this was made.
    pub(crate) fn direct_alignment(&self) -> DirectAlignment {
        self.direct
    }

    /// Returns the size of the file, in bytes. Any context.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: The file is open. ext4 and XFS keep the size in the inode.
        let size = unsafe { ffi::rnull_loop_i_size_read(self.file().as_ptr()) };
        // CAST: A size is not negative.
        size as u64
    }

    /// Returns the private file.
    pub(crate) fn into_private(self) -> PrivateFile {
        self.file
    }

    /// Returns the file.
    pub(crate) fn file(&self) -> &ARef<File> {
        self.file.file()
    }

    /// Returns whether another task may write to the file, or map it for writing, without breaking
    /// a lease that the caller holds.
    pub(crate) fn has_other_writers(&self) -> bool {
        let (file, original) = (self.file.file(), self.file.original());
        // SAFETY: The file is open.
        let is_shared = unsafe { ffi::rnull_loop_file_is_shared(original.as_ptr()) };
        let own = c_int::from(file.is_writable()) + c_int::from(original.is_writable());
        // SAFETY: The file is open.
        is_shared || unsafe { ffi::rnull_loop_file_has_writers(file.as_ptr(), own) }
    }

    /// Returns whether data on the disk is still that of the file, and for a write, whether the
    /// file system still allows writes that need not be durable at once. Any context.
    pub(crate) fn allows(&self, write: bool) -> bool {
        // SAFETY: The file is open.
        let writable = || unsafe { ffi::rnull_loop_file_is_changeable(self.file().as_ptr()) };
        // `chattr +j` exchanges the operations, without breaking a lease.
        // SAFETY: The file keeps its mapping.
        let a_ops = unsafe { self.a_ops.1.read_volatile() };
        // fs-verity may be enabled for a file that is open for reading alone.
        // SAFETY: The file keeps its inode. C code reads the flags as a plain word, too.
        let flags =
            unsafe { (&raw const (*(*self.file().as_ptr()).f_inode).i_flags).read_volatile() };
        core::ptr::eq(self.a_ops.0, a_ops)
            && flags & bindings::S_VERITY == 0
            && (!write || writable())
    }

    /// Returns the binary logarithm of the size of blocks, in bytes.
    pub(crate) fn block_bits(&self) -> u32 {
        self.block_bits
    }

    /// Returns the block device of the file system: `s_bdev`.
    pub(crate) fn block_device(&self) -> &BlockDevice {
        // SAFETY: `bdev` is the block device of the file's super block. ext4 and XFS keep it open
        // until the super block goes, and the file keeps that.
        unsafe { BlockDevice::from_raw(self.bdev.as_ptr()) }
    }

    /// Returns the place of a block on [`block_device`](Self::block_device); `None` for a hole, and
    /// for a block without valid data or that several files share: `bmap()`. May sleep.
    pub(crate) fn place(&self, block: u64) -> Option<u64> {
        let mut place = block;
        // SAFETY: The file is open, so its inode is valid.
        let inode = unsafe { (*self.file().as_ptr()).f_inode };
        // SAFETY: The inode is valid, and `place` is valid for reads and writes.
        let result = to_result(unsafe { bindings::bmap(inode, &mut place) });
        result.ok().map(|()| place).filter(|&place| place != 0)
    }

    /// Drops the pages of `len` bytes from `pos` in the page cache of the file, which the disk has
    /// newer data of. Fails with `EBUSY` if a page stays: a dirty one, or one whose buffers the
    /// file system cannot release. May sleep.
    pub(crate) fn drop_cached(&self, pos: u64, len: u64) -> Result {
        self.file().drop_cached(pos, len)
    }

    /// Fails with the error with which the file system refuses all writes, as ext4 does after it
    /// has found an error in its metadata; XFS never does that. The file is open for writing, and
    /// the caller [has](BackingFile::start_write) freeze protection. May sleep.
    pub(crate) fn check_write(&self) -> Result {
        // SAFETY: The file is open for writing, and has `write_iter`, as all files of the two file
        // systems. The caller has freeze protection.
        to_result(unsafe { ffi::rnull_loop_file_check_write(self.file().as_ptr()) })
    }

    /// Makes tasks that are about to free or move blocks of the file wait, as for direct I/O that
    /// is in flight: `inode_dio_begin()`. Those that find a lease gone after this call wait. Any
    /// context.
    pub(crate) fn begin_dio(&self) {
        // SAFETY: The file is open.
        unsafe { ffi::rnull_loop_file_dio_begin(self.file().as_ptr()) };
    }

    /// Lets these tasks continue. Each call ends one of [`begin_dio`](Self::begin_dio). Any
    /// context.
    pub(crate) fn end_dio(&self) {
        // SAFETY: The file is open.
        unsafe { ffi::rnull_loop_file_dio_end(self.file().as_ptr()) };
    }

    /// Sets the times of the file to now, as writes to it would have done: `file_update_time()`.
    /// May sleep; waits for the thaw of a frozen file system.
    pub(crate) fn update_time(&self) {
        // SAFETY: The file is open. Failures are ignored, as the times are then.
        unsafe { bindings::file_update_time(self.file().as_ptr()) };
    }
}
