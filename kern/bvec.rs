// SPDX-License-Identifier: GPL-2.0

//! Arrays of bio_vecs.
//!
//! C header: [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use kernel::{
    bindings,
    prelude::*,
    types::Opaque, //
};

/// The memory of an I/O operation: `count` bytes, which begin `offset` bytes into the first of
/// `segments` bio_vecs.
pub(crate) struct BvecSpan {
    pub(crate) bvecs: *const bindings::bio_vec,
    pub(crate) segments: usize,
    pub(crate) offset: usize,
    pub(crate) count: usize,
}

impl BvecSpan {
    /// Returns the first `bytes` bytes of the memory, or all of it if it is shorter.
    pub(crate) fn first(self, bytes: u32) -> Self {
        Self {
            count: self.count.min(bytes as usize),
            ..self
        }
    }

    /// Makes a `struct iov_iter` of the memory, for `ITER_SOURCE` or `ITER_DEST`. It is valid as
    /// long as the bio_vecs are.
    pub(crate) fn iter(&self, direction: c_uint) -> Opaque<bindings::iov_iter> {
        let iter = Opaque::<bindings::iov_iter>::uninit();
        // SAFETY: `iter` is valid for writes. The call stores the pointer to the bio_vecs, but does
        // not follow it.
        unsafe {
            bindings::iov_iter_bvec(iter.get(), direction, self.bvecs, self.segments, self.count)
        };
        // SAFETY: `iter` was initialized by the call above, and has no other user yet.
        unsafe { (*iter.get()).iov_offset = self.offset };
        iter
    }
}
