// SPDX-License-Identifier: GPL-2.0

//! A gate that any number of users enter, until a task closes it and waits for the users inside.
//!
//! C header: [`include/linux/wait_bit.h`](srctree/include/linux/wait_bit.h) (`wait_var_event()`)

use super::ffi;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::Full,
            Atomic, //
        },
        LockClassKey,
        Mutex,
        MutexGuard, //
    },
};

/// A gate. Users enter and leave it in any context; a task that may sleep closes it.
///
/// Unlike a reader-writer semaphore, a user may leave on another CPU and in another context than it
/// entered, and is turned away instead of put to sleep while the gate is closed.
///
/// # Examples
///
/// ```ignore
/// // A user, in any context.
/// if gate.enter() {
///     write_past_the_page_cache();
///     gate.leave();
/// }
///
/// // A task that may sleep.
/// let closed = gate.close();
/// // No user is inside, and none can enter.
/// drop(closed);
/// ```
#[pin_data]
pub(crate) struct Gate {
    /// The number of users inside, plus `CLOSED` while the gate is closed.
    users: Atomic<i32>,
    /// Held by the task that has closed the gate.
    #[pin]
    closer: Mutex<()>,
}

impl Gate {
    /// The number that is added to `users` while the gate is closed. It exceeds any number of
    /// users.
    const CLOSED: i32 = 1 << 30;

    /// Makes an open gate. `name` and `key` are those of its lock class: a task may close gates of
    /// different classes one inside the other.
    pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            users: Atomic::new(0),
            closer <- Mutex::new((), name, key),
        })
    }

    /// Enters the gate; returns false while it is closed. Each user that has entered must
    /// [leave](Self::leave). Any context, including hard IRQ.
    pub(crate) fn enter(&self) -> bool {
        // ORDERING: A user that finds the gate open is visible to the next task that closes it. All
        // that the previous such task did is visible to the user.
        if self.users.fetch_add(1, Full) < Self::CLOSED {
            return true;
        }
        self.leave();
        false
    }

    /// Enters the gate; waits while it is closed. May sleep.
    pub(crate) fn enter_blocking(&self) {
        if !self.enter() {
            // Only the holder of this lock closes the gate, so the gate is open now.
            let _guard = self.closer.lock();
            self.users.fetch_add(1, Full);
        }
    }

    /// Leaves the gate. Any context, including hard IRQ.
    pub(crate) fn leave(&self) {
        // ORDERING: All that the user did happens before the closing task continues. The count
        // changes before `wake_up_var()` looks for waiters.
        if self.users.fetch_sub(1, Full) == Self::CLOSED + 1 {
            // SAFETY: `wake_up_var()` uses the address of the count as a key, and does not follow
            // it. The count was changed by a full barrier above.
            unsafe { ffi::rnull_loop_wake_up_count(self.users.as_ptr().cast()) };
        }
    }

    /// Returns whether no user is inside, or is about to find that it is closed. Any context.
    pub(crate) fn is_idle(&self) -> bool {
        // ORDERING: What the caller did before is visible to users that enter from here on.
        self.users.fetch_add(0, Full) == 0
    }

    /// Closes the gate until the guard is dropped. Waits for the users inside, and for other tasks
    /// that have closed the gate. May sleep.
    pub(crate) fn close(&self) -> ClosedGate<'_> {
        let guard = self.closer.lock();
        self.users.fetch_add(Self::CLOSED, Full);
        // SAFETY: `users` is an `i32` that is only accessed by atomic operations, so C code may use
        // it as an `atomic_t`. `self` keeps it while the call waits.
        unsafe { ffi::rnull_loop_wait_for_count(self.users.as_ptr().cast(), Self::CLOSED) };
        // INVARIANT: `CLOSED` was added above, and no user is inside.
        ClosedGate {
            gate: self,
            _guard: guard,
        }
    }
}

/// A closed gate without users inside. Dropping it opens the gate.
///
/// # Invariants
///
/// `gate.users` includes `CLOSED`, added by the holder of `closer`.
#[must_use = "the gate opens again when this is dropped"]
pub(crate) struct ClosedGate<'a> {
    gate: &'a Gate,
    _guard: MutexGuard<'a, ()>,
}

impl Drop for ClosedGate<'_> {
    fn drop(&mut self) {
        // ORDERING: All that this task did is visible to users that enter from here on.
        self.gate.users.fetch_sub(Gate::CLOSED, Full);
    }
}
