// SPDX-License-Identifier: GPL-2.0

//! Asynchronous I/O to files from inside the kernel.
//!
//! Whoever has memory described by bio_vecs and wants it read from or written to an open file gives
//! a [`Transfer`] to [`Iocb::submit`] and is called back when it is over: at once, when the file
//! could do it at once, or later, from whatever context the file's device completes it in. Nothing
//! is copied and nothing is allocated: the memory goes to the file's `read_iter` or `write_iter` as
//! an `iov_iter`, the state of the operation lies in an [`Iocb`] that the caller provides.
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

/// Which way the data goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the file to memory.
    Read,
    /// From memory to the file.
    Write,
}

/// How the file is to do it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Through the page cache, before the call returns.
    Buffered,
    /// Past the page cache, asynchronously where the file can.
    Direct,
}

/// What an operation may do before it is under way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Sleep on whatever the file needs.
    Allowed,
    /// Nothing that takes long: where it would have to, it fails with `EAGAIN`, or `EOPNOTSUPP` where
    /// the file cannot say. `IOCB_NOWAIT`; through the page cache, also `IOCB_NOIO`.
    Forbidden,
}

/// What to transfer.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    /// Which way.
    pub(crate) direction: Direction,
    /// How.
    pub(crate) caching: Caching,
    /// Whether to wait.
    pub(crate) wait: Wait,
    /// Whether what is written must be durable when it is over: `IOCB_DSYNC`. It fails, too, where something
    /// else of the file fails to be written back meanwhile and cannot be told apart.
    pub(crate) durable: bool,
    /// Where in the file, in bytes.
    pub(crate) position: i64,
    /// With which I/O priority.
    pub(crate) ioprio: u16,
}

impl Transfer {
    fn flags(&self) -> c_int {
        let mut flags = 0;
        if self.caching == Caching::Direct {
            flags |= bindings::IOCB_DIRECT as c_int;
        }
        if self.durable {
            flags |= ffi::IOCB_DSYNC;
        }
        if self.wait == Wait::Forbidden {
            flags |= ffi::IOCB_NOWAIT;
            if self.caching == Caching::Buffered {
                flags |= bindings::IOCB_NOIO as c_int;
            }
        }
        flags
    }
}

/// What is told of the end of an operation.
pub(crate) trait Completion {
    /// The operation of `iocb` is over: `result` is the number of bytes done or a negative errno.
    ///
    /// Called once for every submission that is [`Submitted::Queued`], before or after
    /// [`Iocb::submit`] returns, from any context, hard interrupts included.
    ///
    /// # Safety
    ///
    /// `iocb` must have been submitted with this `Completion`, and its operation must be over.
    unsafe fn complete(iocb: *mut Iocb, result: isize);
}

/// What became of a submission.
pub(crate) enum Submitted {
    /// It is under way, or over: [`Completion::complete`] tells.
    Queued,
    /// It is over, with that result, and nobody else is told.
    Done(isize),
}

/// The state of one operation: `struct kiocb`.
#[repr(transparent)]
pub(crate) struct Iocb(Opaque<bindings::kiocb>);

impl Iocb {
    /// Begins the transfer of `memory` between itself and `file`.
    ///
    /// May sleep, see [`Wait`]. For a write the caller has freeze protection of the file
    /// ([`start_write`](crate::kern::file::BackingFile::start_write)) until it is over.
    ///
    /// # Safety
    ///
    /// - `this` is pinned, valid until `C::complete` is called for it and until this function
    ///   returns, and has no other operation under way.
    /// - `file` has the operation asked for, and stays open for as long.
    /// - `memory` describes valid memory, and the bio_vecs and that memory stay for as long.
    pub(crate) unsafe fn submit<C: Completion>(
        this: *mut Self,
        file: &File,
        transfer: Transfer,
        memory: &BvecSpan,
    ) -> Submitted {
        let kiocb = this.cast::<bindings::kiocb>();
        let failures = transfer.durable.then(|| ErrseqCursor::from_now(file));
        // SAFETY: By the function's requirements `this` is valid and has no operation under way.
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
            // SAFETY: `kiocb` is set up, the rest is by the function's requirements.
            Direction::Read => unsafe { read(file, kiocb, memory) },
            // SAFETY: As above.
            Direction::Write => unsafe { write(file, kiocb, memory) },
        };
        if ret == -(bindings::EIOCBQUEUED as isize) {
            return Submitted::Queued;
        }
        // A page that was not written back is clean, and the file tells of it once: to this write, or to
        // whoever else synced the file meanwhile.
        match failures.map(|failures| failures.advance(file)) {
            Some(Err(error)) if ret >= 0 => Submitted::Done(error.to_errno() as isize),
            _ => Submitted::Done(ret),
        }
    }
}

/// # Safety
///
/// As of [`Iocb::submit`]; `kiocb` is set up.
unsafe fn read(file: &File, kiocb: *mut bindings::kiocb, memory: &BvecSpan) -> isize {
    // SAFETY: The file is open, so it has operations.
    let Some(read_iter) = (unsafe { (*(*file.as_ptr()).f_op).read_iter }) else {
        return EINVAL.to_errno() as isize;
    };
    let iter = memory.iter(bindings::ITER_DEST);
    // SAFETY: By the function's requirements.
    unsafe { read_iter(kiocb, iter.get()) }
}

/// # Safety
///
/// As of [`Iocb::submit`]; `kiocb` is set up.
unsafe fn write(file: &File, kiocb: *mut bindings::kiocb, memory: &BvecSpan) -> isize {
    // SAFETY: `kiocb` is ours until `write_iter` is called.
    unsafe { (*kiocb).ki_flags |= bindings::IOCB_WRITE as c_int };
    // SAFETY: The file is open, so it has operations.
    let Some(write_iter) = (unsafe { (*(*file.as_ptr()).f_op).write_iter }) else {
        return EINVAL.to_errno() as isize;
    };
    let iter = memory.iter(bindings::ITER_SOURCE);
    // SAFETY: By the function's requirements.
    unsafe { write_iter(kiocb, iter.get()) }
}

/// `->ki_complete`: the operation went on when `submit` returned, and is over now.
///
/// # Safety
///
/// Called once by the file, for a kiocb that [`Iocb::submit`] gave it with the same `C`.
unsafe extern "C" fn callback<C: Completion>(kiocb: *mut bindings::kiocb, ret: c_long) {
    // SAFETY: By the function's requirements the operation is over; an `Iocb` is a `struct kiocb`,
    // and `submit` got `EIOCBQUEUED`, so this is the one call of `complete`.
    unsafe { C::complete(kiocb.cast(), ret) };
}
