// SPDX-License-Identifier: GPL-2.0

//! Retries of operations that failed for a transient reason: their delays and their number.

use kernel::prelude::*;

/// The reason of a failure of a blocking operation that may succeed later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transient {
    /// There was no memory: `ENOMEM`.
    Memory,
    /// The file was busy, or a signal interrupted the task that served the request: `EAGAIN`,
    /// `EINTR` and the codes that restart a system call.
    Busy,
    /// The file system was full, and user space wants writes to wait: `ENOSPC`, `EDQUOT`. These
    /// are not transient for other requests, see [`space`](super::space).
    Space,
}

impl Transient {
    /// Returns the transient reason of `error`, if it has one for every request.
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

/// The retries of one request since it last made progress; or those of all writes of a device that
/// wait for space.
pub(crate) struct Retries {
    count: u32,
    /// The time of the first retry, in milliseconds of a clock that may wrap. Meaningless while
    /// `count` is 0.
    since: u32,
}

impl Retries {
    /// The delay before the first retry, in milliseconds. Each further delay is twice as long.
    const FIRST_DELAY: u32 = 10;
    /// The number of times that the delay doubles: up to 640 ms.
    const DOUBLINGS: u32 = 6;
    /// The minimum number of retries. One retry may take longer than the times below, as when it
    /// waits for a thaw. The delays of so many retries are 7030 ms in total, so a smaller
    /// `MAX_BUSY` has no effect without a smaller count, unless retries of other requests end the
    /// delays early.
    const MIN_COUNT: u32 = 16;
    /// The time during which a request is retried while the file is busy, in milliseconds. The
    /// delays limit the number of retries in that time; it is larger if retries of other requests
    /// of the queue end the delays early.
    const MAX_BUSY: u32 = 7_000;
    /// The time during which a request is retried while there is no memory, in milliseconds.
    pub(crate) const MAX_MEMORY: u32 = 120_000;

    /// Makes a record without retries.
    pub(crate) fn new() -> Self {
        Self { count: 0, since: 0 }
    }

    /// Forgets all retries, because the request has made progress. Any context.
    pub(crate) fn reset(&mut self) {
        self.count = 0;
    }

    /// Returns the delay before the next retry in milliseconds, or `None` when there have been
    /// enough. `now` is the time in milliseconds. Any context.
    pub(crate) fn next(&mut self, reason: Transient, now: u32) -> Option<u32> {
        if self.count == 0 {
            self.since = now;
        }
        let elapsed = now.wrapping_sub(self.since);
        let is_over = match reason {
            Transient::Memory => elapsed >= Self::MAX_MEMORY,
            Transient::Busy => elapsed >= Self::MAX_BUSY,
            Transient::Space => false,
        };
        if is_over && self.count >= Self::MIN_COUNT {
            return None;
        }
        let delay = Self::FIRST_DELAY << self.count.min(Self::DOUBLINGS);
        self.count = self.count.saturating_add(1);
        Some(delay)
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_retry))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    #[test]
    fn transient_errors_have_a_reason() {
        assert_eq!(Transient::of(ENOMEM), Some(Transient::Memory));
        assert_eq!(Transient::of(EAGAIN), Some(Transient::Busy));
        assert_eq!(Transient::of(EINTR), Some(Transient::Busy));
        assert_eq!(Transient::of(ERESTARTSYS), Some(Transient::Busy));
        for error in [EIO, ENOSPC, EINVAL, EBUSY] {
            assert_eq!(Transient::of(error), None);
        }
    }

    #[test]
    fn retries_of_a_busy_file_are_limited() {
        let mut retries = Retries::new();
        let (mut now, mut count) = (0, 0);
        while let Some(delay) = retries.next(Transient::Busy, now) {
            now += delay;
            count += 1;
        }
        assert_eq!((now, count), (10 + 20 + 40 + 80 + 160 + 320 + 10 * 640, 16));
        // Retries that take long are as many, and end.
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
    fn retries_without_space_do_not_end() {
        let mut retries = Retries::new();
        assert_eq!(retries.next(Transient::Space, 0), Some(10));
        for now in 1..1000 {
            assert!(retries.next(Transient::Space, now * 1_000_000).is_some());
        }
        assert_eq!(retries.next(Transient::Space, u32::MAX), Some(640));
    }

    #[test]
    fn retries_without_memory_end_after_their_time() {
        let mut retries = Retries::new();
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
        // One retry that takes long does not end them.
        retries.reset();
        assert_eq!(retries.next(Transient::Memory, 0), Some(10));
        assert_eq!(
            retries.next(Transient::Memory, Retries::MAX_MEMORY),
            Some(20)
        );
    }
}
