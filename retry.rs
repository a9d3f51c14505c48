// SPDX-License-Identifier: GPL-2.0

//! Retries of operations that failed for a transient reason: their delays, and their end.

#![forbid(unsafe_code)]

use kernel::{
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    },
};

/// A reason for which an operation that was allowed to sleep fails and may succeed later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transient {
    /// There was no memory: `ENOMEM`.
    Memory,
    /// The file was busy, or a signal interrupted its server: `EAGAIN`, `EINTR`.
    Busy,
}

impl Transient {
    /// The reason that `error` stands for, if it is one.
    pub(crate) fn of(error: Error) -> Option<Self> {
        const INTERRUPTED: [Error; 5] = [
            EINTR,
            ERESTARTSYS,
            ERESTARTNOINTR,
            ERESTARTNOHAND,
            ERESTART_RESTARTBLOCK,
        ];
        if error == ENOMEM {
            Some(Self::Memory)
        } else if error == EAGAIN || INTERRUPTED.contains(&error) {
            Some(Self::Busy)
        } else {
            None
        }
    }
}

/// The retries of one request since it last made progress.
///
/// For one user at a time, the owner of the request.
pub(crate) struct Retries {
    count: Atomic<u32>,
    /// When the first of them was due, in milliseconds of a clock that may wrap.
    since: Atomic<u32>,
}

impl Retries {
    /// The delay before the first retry, in milliseconds. Each further delay is twice as long.
    const FIRST_DELAY: u32 = 10;
    /// The number of times that the delay doubles: up to 640 ms.
    const DOUBLINGS: u32 = 6;
    /// The number of retries at least. A retry may itself take long, as where it waits for a thaw.
    const MIN_COUNT: u32 = 16;
    /// The time for which there are retries while the file is busy, in milliseconds. Their number
    /// follows from the delays; it is larger where retries of other requests of the queue make them
    /// come sooner.
    const MAX_BUSY: u32 = 7_000;
    /// The time for which there are retries for want of memory, in milliseconds.
    pub(crate) const MAX_MEMORY: u32 = 120_000;

    /// No retry yet.
    pub(crate) fn new() -> Self {
        Self {
            count: Atomic::new(0),
            since: Atomic::new(0),
        }
    }

    /// Forgets the retries so far, as the request has made progress or ends. Any context.
    pub(crate) fn reset(&self) {
        self.count.store(0, Relaxed);
    }

    /// Returns the delay before the next retry in milliseconds, or `None` when there have been
    /// enough. `now` is the time in milliseconds. Any context.
    pub(crate) fn next(&self, reason: Transient, now: u32) -> Option<u32> {
        let count = self.count.load(Relaxed);
        if count == 0 {
            self.since.store(now, Relaxed);
        }
        let elapsed = now.wrapping_sub(self.since.load(Relaxed));
        let most = match reason {
            Transient::Memory => Self::MAX_MEMORY,
            Transient::Busy => Self::MAX_BUSY,
        };
        if elapsed >= most && count >= Self::MIN_COUNT {
            return None;
        }
        self.count.store(count.saturating_add(1), Relaxed);
        Some(Self::FIRST_DELAY << count.min(Self::DOUBLINGS))
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_retry))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn transient_errors_are_known() {
        assert_eq!(Transient::of(ENOMEM), Some(Transient::Memory));
        assert_eq!(Transient::of(EAGAIN), Some(Transient::Busy));
        assert_eq!(Transient::of(EINTR), Some(Transient::Busy));
        assert_eq!(Transient::of(ERESTARTSYS), Some(Transient::Busy));
        for error in [EIO, ENOSPC, EINVAL, EOPNOTSUPP, EBUSY] {
            assert_eq!(Transient::of(error), None);
        }
    }

    #[test]
    fn a_busy_file_is_tried_a_bounded_number_of_times() {
        let retries = Retries::new();
        let (mut now, mut count) = (0, 0);
        while let Some(delay) = retries.next(Transient::Busy, now) {
            now += delay;
            count += 1;
        }
        assert_eq!((now, count), (10 + 20 + 40 + 80 + 160 + 320 + 10 * 640, 16));
        // Not fewer where each takes long, and not for ever.
        assert_eq!(retries.next(Transient::Busy, now), None);
        retries.reset();
        for _ in 0..Retries::MIN_COUNT {
            now += 10_000;
            assert!(retries.next(Transient::Busy, now).is_some());
        }
        assert_eq!(retries.next(Transient::Busy, now), None);
        retries.reset();
        assert_eq!(retries.next(Transient::Busy, now), Some(10));
    }

    #[test]
    fn memory_is_waited_for_until_the_time_is_over() {
        let retries = Retries::new();
        let start = u32::MAX - 50;
        for tick in 0..1000 {
            let now = start.wrapping_add(tick);
            assert!(retries.next(Transient::Memory, now).is_some());
        }
        let last = start.wrapping_add(Retries::MAX_MEMORY);
        assert_eq!(
            retries.next(Transient::Memory, last.wrapping_sub(1)),
            Some(640)
        );
        assert_eq!(retries.next(Transient::Memory, last), None);
        // Not after one retry that took long.
        retries.reset();
        assert_eq!(retries.next(Transient::Memory, 0), Some(10));
        assert_eq!(
            retries.next(Transient::Memory, Retries::MAX_MEMORY),
            Some(20)
        );
    }
}
