// SPDX-License-Identifier: GPL-2.0

//! A lock-free list of requests, with any number of producers and a consumer that takes all.

use super::request::{
    Operations,
    Request,
    StartedRequest, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    sync::atomic::{
        ordering::{
            Full,
            Relaxed, //
        },
        Atomic, //
    },
};

/// A list of requests that wait for a worker. It owns them, and links them through their PDUs, so
/// nothing is allocated.
///
/// Mirrors [`include/linux/llist.h`](srctree/include/linux/llist.h).
///
/// # Invariants
///
/// `head` is null, or the first of a null-terminated chain of started requests, linked by `next` of
/// their PDUs, newest first. The list owns them all.
///
/// # Examples
///
/// ```ignore
/// // The producer, in any context. `worker` is an `Arc` of a work item.
/// if worker.requests.push(rq) {
///     let _ = queue.enqueue(worker.clone());
/// }
///
/// // The work item.
/// for rq in worker.requests.take_all() {
///     serve(rq);
/// }
/// ```
pub(crate) struct RequestList<T: Operations> {
    // The list may be sent and shared, because requests may be sent to other threads, and the list
    // returns each of them once.
    head: Atomic<*mut bindings::request>,
    _driver: PhantomData<fn(T)>,
}

impl<T: Operations> RequestList<T> {
    /// Makes an empty list.
    pub(crate) fn new() -> Self {
        // INVARIANT: Null is an empty chain.
        Self {
            head: Atomic::new(core::ptr::null_mut()),
            _driver: PhantomData,
        }
    }

    /// Adds a request, and returns whether the list was empty. If it was, the caller makes a
    /// consumer take the requests. Any context, including hard IRQ.
    pub(crate) fn push(&self, rq: StartedRequest<T>) -> bool {
        let next = rq.pdu().next.get();
        let rq = rq.into_raw().as_ptr();
        let mut head = self.head.load(Relaxed);
        loop {
            // SAFETY: `next` is the link of a request that this function owns until the exchange
            // below succeeds, so nothing else uses it.
            unsafe { *next = head };
            // ORDERING: The link and the request are written before a consumer can find them.
            // INVARIANT: `rq` is a started request, followed by the chain so far.
            match self.head.cmpxchg(head, rq, Full) {
                Ok(_) => return head.is_null(),
                Err(now) => head = now,
            }
        }
    }

    /// Returns whether there are no requests. Any context, including hard IRQ.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Relaxed).is_null()
    }

    /// Takes all requests, in the order in which they were added. Any context, including hard IRQ.
    pub(crate) fn take_all(&self) -> Batch<T> {
        // INVARIANT: Null is an empty chain.
        // ORDERING: The links and the requests are read after they were found.
        let mut newest = self.head.xchg(core::ptr::null_mut(), Full);
        let mut oldest = core::ptr::null_mut();
        while !newest.is_null() {
            // SAFETY: By the type invariant `newest` is a started request. The exchange above has
            // made this function its owner.
            let rq = unsafe { &*newest.cast::<Request<T>>() };
            // SAFETY: As above, so nothing else uses its link.
            let next = unsafe { core::ptr::replace(rq.pdu().next.get(), oldest) };
            oldest = newest;
            newest = next;
        }
        // INVARIANT: The chain is reversed, and has no other owner.
        Batch(oldest, PhantomData)
    }
}

impl<T: Operations> Drop for RequestList<T> {
    fn drop(&mut self) {
        drop(self.take_all());
    }
}

/// Requests taken from a [`RequestList`], oldest first. Requests that are left when this is dropped
/// are over with `EIO`.
///
/// # Invariants
///
/// The pointer is null, or the first of a null-terminated chain of started requests, linked by
/// `next` of their PDUs. This value owns them all.
pub(crate) struct Batch<T: Operations>(*mut bindings::request, PhantomData<fn(T)>);

impl<T: Operations> Iterator for Batch<T> {
    type Item = StartedRequest<T>;

    fn next(&mut self) -> Option<StartedRequest<T>> {
        let raw = NonNull::new(self.0)?;
        // SAFETY: By the type invariant it is a started request that no other value names.
        let rq = unsafe { StartedRequest::<T>::from_raw(raw) };
        // SAFETY: `rq` owns the request, so nothing else uses its link.
        // INVARIANT: `self` gives up the first request and keeps the rest.
        self.0 = unsafe { *rq.pdu().next.get() };
        Some(rq)
    }
}

impl<T: Operations> Drop for Batch<T> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}
