// SPDX-License-Identifier: GPL-2.0

//! Asynchronous I/O to files from inside the kernel.
//!
//! [`submit`] starts a [`Transfer`] between an open file and memory that bio_vecs describe. The
//! file carries it out before the call returns, or calls [`Completion::complete`] when it is over,
//! in any context. Nothing is copied or allocated here: the file's `read_iter` or `write_iter` gets
//! the memory as an `iov_iter`, and the caller provides the [`Iocb`], the state of the operation.
//!
//! This file knows neither requests nor loop devices. [`request`] binds it to the block layer.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h) (`struct kiocb`),
//! [`include/linux/uio.h`](srctree/include/linux/uio.h)

pub(crate) mod request;

use crate::kern::{
    bvec::BvecSpan,
    ffi,
    file::ErrseqCursor, //
};
use kernel::{
    bindings,
    fs::File,
    prelude::*,
    types::Opaque, //
};

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the file to memory.
    Read,
    /// From memory to the file.
    Write,
}

/// The use of the page cache by a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Through the page cache, before the call returns.
    Buffered,
    /// As [`Buffered`](Self::Buffered), but pages that the transfer has added to the page cache are
    /// dropped when they are clean: `IOCB_DONTCACHE`. The file must
    /// [support](crate::kern::file::BackingFile::has_dontcache) it.
    DontCache,
    /// Past the page cache, and asynchronously if the file can: `IOCB_DIRECT`.
    Direct,
    /// From the page cache alone, for reads: the operation is non-blocking, and does not call the
    /// file system if its page cache [is local](crate::kern::file::BackingFile::has_local_cache)
    /// and a read does not change the access time.
    Cached,
}

impl Caching {
    /// Returns the word for it in tracepoints.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::DontCache => "dontcache",
            Self::Direct => "direct",
            Self::Cached => "cached",
        }
    }
}

/// The blocking mode of a submission.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It may block on anything that the operation needs.
    Allowed,
    /// It is non-blocking: an operation that would block fails with `EAGAIN`, and with `EOPNOTSUPP`
    /// if the file does not support that. `IOCB_NOWAIT`; through the page cache, also `IOCB_NOIO`.
    Forbidden,
}

/// The parameters of a transfer.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    /// The direction.
    pub(crate) direction: Direction,
    /// The use of the page cache.
    pub(crate) caching: Caching,
    /// The blocking mode.
    pub(crate) wait: Wait,
    /// True if a write must be durable when it is over: `IOCB_DSYNC`. Such a write also fails on an
    /// unrelated writeback error of the file, because the two cannot be distinguished.
    pub(crate) durable: bool,
    /// The position in the file, in bytes.
    pub(crate) position: i64,
    /// The I/O priority.
    pub(crate) ioprio: u16,
}

impl Transfer {
    fn flags(&self) -> c_int {
        let mut flags = 0;
        if self.caching == Caching::Direct {
            flags |= bindings::IOCB_DIRECT as c_int;
        }
        if self.caching == Caching::DontCache {
            flags |= ffi::IOCB_DONTCACHE;
        }
        if self.durable {
            flags |= ffi::IOCB_DSYNC;
        }
        if self.wait == Wait::Forbidden || self.caching == Caching::Cached {
            flags |= ffi::IOCB_NOWAIT;
            if self.caching != Caching::Direct {
                flags |= bindings::IOCB_NOIO as c_int;
            }
        }
        flags
    }
}

/// The state of one operation: `struct kiocb`.
#[repr(transparent)]
pub(crate) struct Iocb(Opaque<bindings::kiocb>);

/// The owner of an [`Iocb`], which goes with the operation and gets its result.
///
/// # Safety
///
/// [`into_iocb`](Self::into_iocb) returns an `Iocb` that is pinned, and stays valid until
/// [`from_iocb`](Self::from_iocb) is called.
pub(crate) unsafe trait Completion: Send + Sized {
    /// Turns the owner into its `Iocb`.
    fn into_iocb(self) -> *mut Iocb;

    /// Takes the owner of an `Iocb` back.
    ///
    /// # Safety
    ///
    /// `iocb` must come from [`into_iocb`](Self::into_iocb), and is taken back once.
    unsafe fn from_iocb(iocb: *mut Iocb) -> Self;

    /// Takes the result of the operation, which is over: the number of bytes done, or a negative
    /// errno.
    ///
    /// Called once for each submission that is [`Submitted::Queued`], before or after [`submit`]
    /// returns. Any context, including hard IRQ.
    fn complete(self, result: isize);
}

/// The state of an operation after its submission.
pub(crate) enum Submitted<C> {
    /// It is in flight, or over: [`Completion::complete`] is called with its result.
    Queued,
    /// It is over, with this result; [`Completion::complete`] is not called.
    Done(C, isize),
}

/// Starts the transfer between `file` and the memory of `span`.
///
/// May sleep, see [`Wait`]. For a write, the caller holds freeze protection of the file
/// ([`start_write`](crate::kern::file::BackingFile::start_write)) until the operation is over.
///
/// # Safety
///
/// Until this function returns and, if the submission is [`Submitted::Queued`], until
/// [`Completion::complete`] is called:
///
/// - `file` stays open;
/// - `span` describes memory that stays valid, and so do its bio_vecs.
///
/// The `Iocb` of `owner` has no other operation in flight. It stays valid until this function
/// returns, even if the owner is taken back before.
pub(crate) unsafe fn submit<C: Completion>(
    owner: C,
    file: &File,
    transfer: Transfer,
    span: &BvecSpan,
) -> Submitted<C> {
    let iocb = owner.into_iocb();
    let kiocb = iocb.cast::<bindings::kiocb>();
    let wb_err = transfer.durable.then(|| ErrseqCursor::from_now(file));
    // SAFETY: By the requirements of `Completion` the `Iocb`, which is a `struct kiocb`, is valid.
    // By the function's requirements it has no operation in flight.
    unsafe {
        kiocb.write(bindings::kiocb {
            ki_filp: file.as_ptr(),
            ki_pos: transfer.position,
            ki_complete: (transfer.caching == Caching::Direct).then_some(callback::<C>),
            ki_flags: transfer.flags(),
            ki_ioprio: transfer.ioprio,
            ..pin_init::zeroed()
        })
    };
    let ret = match transfer.direction {
        // SAFETY: `kiocb` was set up above; the rest is required of this function, too.
        Direction::Read => unsafe { read(file, transfer.caching, kiocb, span) },
        // SAFETY: As above.
        Direction::Write => unsafe { write(file, kiocb, span) },
    };
    if ret == -(bindings::EIOCBQUEUED as isize) {
        return Submitted::Queued;
    }
    // SAFETY: `iocb` comes from `into_iocb` above. The file did not return `-EIOCBQUEUED`, so it
    // does not call `callback`, and the owner is taken back once.
    let owner = unsafe { C::from_iocb(iocb) };
    // A page whose writeback failed is clean, and a `struct file` reports the error once: to this
    // write, or to another sync that used the `struct file` since the write began. So the write has
    // a cursor of its own.
    match wb_err.map(|wb_err| wb_err.advance(file)) {
        Some(Err(error)) if ret >= 0 => Submitted::Done(owner, error.to_errno() as isize),
        _ => Submitted::Done(owner, ret),
    }
}

/// Calls `->read_iter` of a file; returns `-EINVAL` if the file has none. Copies from the page
/// cache for [`Caching::Cached`].
///
/// # Safety
///
/// The requirements of [`submit`] hold, and it has set `kiocb` up.
unsafe fn read(
    file: &File,
    caching: Caching,
    kiocb: *mut bindings::kiocb,
    span: &BvecSpan,
) -> isize {
    if caching == Caching::Cached {
        let iter = span.iter(bindings::ITER_DEST);
        // SAFETY: By the function's requirements `kiocb` is set up for this file, and the memory
        // that `iter` describes is valid. Its flags keep the call from everything but the page
        // cache, which any file with a mapping has.
        return unsafe { bindings::filemap_read(kiocb, iter.get(), 0) };
    }
    // SAFETY: An open file has operations, which stay while it is open.
    let Some(read_iter) = (unsafe { (*(*file.as_ptr()).f_op).read_iter }) else {
        return EINVAL.to_errno() as isize;
    };
    let iter = span.iter(bindings::ITER_DEST);
    // SAFETY: By the function's requirements `kiocb` is set up for this file, and stays valid until
    // the operation is over, as does the memory that `iter` describes.
    unsafe { read_iter(kiocb, iter.get()) }
}

/// Calls `->write_iter` of a file; returns `-EINVAL` if the file has none.
///
/// # Safety
///
/// The requirements of [`submit`] hold, and it has set `kiocb` up.
unsafe fn write(file: &File, kiocb: *mut bindings::kiocb, span: &BvecSpan) -> isize {
    // SAFETY: By the function's requirements `kiocb` is valid; the file does not use it before
    // `write_iter` is called.
    unsafe { (*kiocb).ki_flags |= bindings::IOCB_WRITE as c_int };
    // SAFETY: An open file has operations, which stay while it is open.
    let Some(write_iter) = (unsafe { (*(*file.as_ptr()).f_op).write_iter }) else {
        return EINVAL.to_errno() as isize;
    };
    let iter = span.iter(bindings::ITER_SOURCE);
    // SAFETY: By the function's requirements `kiocb` is set up for this file, and stays valid until
    // the operation is over, as does the memory that `iter` describes.
    unsafe { write_iter(kiocb, iter.get()) }
}

/// Calls `C::complete` when an asynchronous operation is over: `->ki_complete`.
///
/// # Safety
///
/// Called once by the file, for a kiocb that [`submit`] passed to it with the same `C`.
unsafe extern "C" fn callback<C: Completion>(kiocb: *mut bindings::kiocb, ret: c_long) {
    // SAFETY: By the function's requirements `kiocb` is the `Iocb` of an owner of type `C`. A file
    // that calls this returns `-EIOCBQUEUED`, so `submit` does not take the owner back, and this is
    // the one call for it.
    unsafe { C::from_iocb(kiocb.cast()) }.complete(ret);
}
