// SPDX-License-Identifier: GPL-2.0

//! A lock-free list of requests: any number of producers, one consumer that takes all.

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

/// Requests that wait for a worker. Owns them; linked through their PDUs, so nothing is allocated.
///
/// Mirrors [`include/linux/llist.h`](srctree/include/linux/llist.h).
///
/// # Invariants
///
/// `head` is null or the first of a null-terminated chain of started requests, linked by `next` of
/// their PDUs, newest first, all owned by this list.
pub(crate) struct RequestList<T: Operations> {
    // Requests may be sent to other threads, and the list hands each out once, so it may be shared.
    head: Atomic<*mut bindings::request>,
    _driver: PhantomData<fn(T)>,
}

impl<T: Operations> RequestList<T> {
    /// An empty list.
    pub(crate) fn new() -> Self {
        // INVARIANT: Null is an empty chain.
        Self {
            head: Atomic::new(core::ptr::null_mut()),
            _driver: PhantomData,
        }
    }

    /// Adds a request, and tells whether the list was empty before.
    ///
    /// Any context. Whoever finds the list empty must see to it that it is emptied.
    pub(crate) fn push(&self, rq: StartedRequest<T>) -> bool {
        let next = rq.pdu().next.get();
        let rq = rq.into_raw().as_ptr();
        let mut head = self.head.load(Relaxed);
        loop {
            // SAFETY: `next` is in the PDU of a request that this function owns until the exchange
            // below succeeds.
            unsafe { *next = head };
            // ORDERING: The link and the request are complete before they can be found.
            // INVARIANT: `rq` is a started request, followed by the chain so far.
            match self.head.cmpxchg(head, rq, Full) {
                Ok(_) => return head.is_null(),
                Err(now) => head = now,
            }
        }
    }

    /// Takes all requests, in the order in which they were added.
    pub(crate) fn take_all(&self) -> Batch<T> {
        // INVARIANT: The empty chain is left behind.
        let mut newest = self.head.xchg(core::ptr::null_mut(), Full);
        let mut oldest = core::ptr::null_mut();
        while !newest.is_null() {
            // SAFETY: By the type invariant `newest` is a started request; the exchange above made
            // this function the owner of the chain.
            let rq = unsafe { &*newest.cast::<Request<T>>() };
            // SAFETY: As above, so its link is ours.
            let next = unsafe { core::ptr::replace(rq.pdu().next.get(), oldest) };
            oldest = newest;
            newest = next;
        }
        // INVARIANT: The chain was turned round, and has no other owner.
        Batch(oldest, PhantomData)
    }
}

impl<T: Operations> Drop for RequestList<T> {
    fn drop(&mut self) {
        drop(self.take_all());
    }
}

/// Requests taken from a [`RequestList`], oldest first. What is left at the end is failed.
///
/// # Invariants
///
/// Null, or the first of a null-terminated chain of started requests, all owned by this value.
pub(crate) struct Batch<T: Operations>(*mut bindings::request, PhantomData<fn(T)>);

impl<T: Operations> Iterator for Batch<T> {
    type Item = StartedRequest<T>;

    fn next(&mut self) -> Option<StartedRequest<T>> {
        let raw = NonNull::new(self.0)?;
        // SAFETY: By the type invariant it is a started request that no other value names.
        let rq = unsafe { StartedRequest::<T>::from_raw(raw) };
        // SAFETY: As above, so its link is ours.
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
