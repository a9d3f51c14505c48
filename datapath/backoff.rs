// SPDX-License-Identifier: GPL-2.0

//! When not to try what keeps failing.

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
    skip: Atomic<u32>,
}

impl Backoff {
    /// The most credit there can be: failures that come all at once are forgiven.
    const MAX_CREDIT: u32 = 64;
    /// What a failure costs; a success earns 1.
    const COST: u32 = 4;
    /// How many chances are left out when there is no credit left.
    const SKIPPED: u32 = 32;

    /// Nothing has failed yet.
    pub(crate) fn new() -> Self {
        Self {
            credit: Atomic::new(Self::MAX_CREDIT),
            skip: Atomic::new(0),
        }
    }

    /// Whether to try now. Any context.
    pub(crate) fn should_try(&self) -> bool {
        match self.skip.load(Relaxed).checked_sub(1) {
            None => true,
            Some(left) => {
                self.skip.store(left, Relaxed);
                false
            }
        }
    }

    /// It worked. Any context.
    pub(crate) fn succeeded(&self) {
        let credit = self.credit.load(Relaxed);
        if credit < Self::MAX_CREDIT {
            self.credit.store(credit.saturating_add(1), Relaxed);
        }
    }

    /// It was in vain. Any context.
    pub(crate) fn failed(&self) {
        let credit = self.credit.load(Relaxed).saturating_sub(Self::COST);
        self.credit.store(credit, Relaxed);
        if credit == 0 {
            self.skip.store(Self::SKIPPED, Relaxed);
        }
    }
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_backoff))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;

    /// How many chances are left out before the next try.
    fn skip(backoff: &Backoff) -> u32 {
        let mut count = 0;
        while !backoff.should_try() {
            count += 1;
        }
        count
    }

    #[test]
    fn what_always_fails_is_hardly_tried() {
        let backoff = Backoff::new();
        for _ in 1..Backoff::MAX_CREDIT / Backoff::COST {
            backoff.failed();
            assert_eq!(skip(&backoff), 0);
        }
        for _ in 0..3 {
            backoff.failed();
            assert_eq!(skip(&backoff), Backoff::SKIPPED);
        }
    }

    #[test]
    fn what_mostly_works_is_always_tried() {
        let backoff = Backoff::new();
        for _ in 0..100 {
            backoff.failed();
            assert_eq!(skip(&backoff), 0);
            for _ in 0..Backoff::COST {
                backoff.succeeded();
            }
        }
    }

    #[test]
    fn success_makes_up_for_failures() {
        let backoff = Backoff::new();
        for _ in 0..100 {
            backoff.failed();
        }
        assert_eq!(skip(&backoff), Backoff::SKIPPED);
        for _ in 0..=Backoff::COST {
            backoff.succeeded();
        }
        backoff.failed();
        assert_eq!(skip(&backoff), 0);
    }
}
