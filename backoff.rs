// SPDX-License-Identifier: GPL-2.0

//! When not to try what keeps failing.

#![forbid(unsafe_code)]

use kernel::sync::atomic::{
    ordering::Relaxed,
    Atomic, //
};

/// Whether to try something that costs little when it works and is in vain when it does not.
///
/// As long as it works four times out of five it is always tried, and else once in a while, until it
/// works again. Users on several CPUs may lose each other's counts, which changes nothing but the
/// number of tries.
pub(crate) struct Backoff {
    credit: Atomic<u32>,
    left_out: Atomic<u32>,
}

impl Backoff {
    /// The most credit there can be: failures that come all at once are forgiven.
    const MOST: u32 = 64;
    /// What a failure costs; a success earns 1.
    const COST: u32 = 4;
    /// How many chances are left out when there is no credit left.
    const LEFT_OUT: u32 = 32;

    /// Nothing has failed yet.
    pub(crate) fn new() -> Self {
        Self {
            credit: Atomic::new(Self::MOST),
            left_out: Atomic::new(0),
        }
    }

    /// Whether to try now. Any context.
    pub(crate) fn is_due(&self) -> bool {
        match self.left_out.load(Relaxed).checked_sub(1) {
            None => true,
            Some(left) => {
                self.left_out.store(left, Relaxed);
                false
            }
        }
    }

    /// It worked. Any context.
    pub(crate) fn worked(&self) {
        let credit = self.credit.load(Relaxed);
        if credit < Self::MOST {
            self.credit.store(credit.saturating_add(1), Relaxed);
        }
    }

    /// It was in vain. Any context.
    pub(crate) fn failed(&self) {
        let credit = self.credit.load(Relaxed).saturating_sub(Self::COST);
        self.credit.store(credit, Relaxed);
        if credit == 0 {
            self.left_out.store(Self::LEFT_OUT, Relaxed);
        }
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_backoff))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    /// How many chances are left out before the next try.
    fn left_out(backoff: &Backoff) -> u32 {
        let mut count = 0;
        while !backoff.is_due() {
            count += 1;
        }
        count
    }

    #[test]
    fn what_always_fails_is_hardly_tried() {
        let backoff = Backoff::new();
        for _ in 1..Backoff::MOST / Backoff::COST {
            backoff.failed();
            assert_eq!(left_out(&backoff), 0);
        }
        for _ in 0..3 {
            backoff.failed();
            assert_eq!(left_out(&backoff), Backoff::LEFT_OUT);
        }
    }

    #[test]
    fn what_mostly_works_is_always_tried() {
        let backoff = Backoff::new();
        for _ in 0..100 {
            backoff.failed();
            assert_eq!(left_out(&backoff), 0);
            for _ in 0..Backoff::COST {
                backoff.worked();
            }
        }
    }

    #[test]
    fn success_makes_up_for_failures() {
        let backoff = Backoff::new();
        for _ in 0..100 {
            backoff.failed();
        }
        assert_eq!(left_out(&backoff), Backoff::LEFT_OUT);
        for _ in 0..=Backoff::COST {
            backoff.worked();
        }
        backoff.failed();
        assert_eq!(left_out(&backoff), 0);
    }
}
