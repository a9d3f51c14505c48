// SPDX-License-Identifier: GPL-2.0

//! Backoff from an optional operation that keeps failing.

use kernel::sync::atomic::{
    ordering::Relaxed,
    Atomic, //
};

/// The record of an operation that is an optimization if it succeeds, and wasted time if it fails.
///
/// As long as at least four of five tries succeed, every chance is tried. Otherwise one of 33
/// chances is tried, until tries succeed again. An update is a load and a store, so concurrent
/// updates may be lost; that only changes the number of tries.
pub(crate) struct Backoff {
    /// The number of successes in store, which pay for failures.
    credit: Atomic<u32>,
    /// The number of chances to skip before the next try.
    skip: Atomic<u32>,
}

impl Backoff {
    /// The maximum credit. It pays for a burst of failures.
    const MAX_CREDIT: u32 = 64;
    /// The price of a failure in credit. A success earns 1.
    const COST: u32 = 4;
    /// The number of chances that are skipped after a failure that leaves no credit.
    const SKIPPED: u32 = 32;

    /// Makes a record without failures.
    pub(crate) fn new() -> Self {
        Self {
            credit: Atomic::new(Self::MAX_CREDIT),
            skip: Atomic::new(0),
        }
    }

    /// Returns whether to try now. Each call counts as a chance. Any context.
    pub(crate) fn should_try(&self) -> bool {
        match self.skip.load(Relaxed).checked_sub(1) {
            None => true,
            Some(left) => {
                self.skip.store(left, Relaxed);
                false
            }
        }
    }

    /// Records a try that succeeded. Any context.
    pub(crate) fn succeeded(&self) {
        let credit = self.credit.load(Relaxed);
        if credit < Self::MAX_CREDIT {
            self.credit.store(credit.saturating_add(1), Relaxed);
        }
    }

    /// Records a try that failed. Any context.
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

    /// Returns the number of chances that are skipped before the next try.
    fn skip(backoff: &Backoff) -> u32 {
        let mut count = 0;
        while !backoff.should_try() {
            count += 1;
        }
        count
    }

    #[test]
    fn constant_failures_skip_most_chances() {
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
    fn rare_failures_skip_no_chance() {
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
    fn successes_pay_for_failures() {
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
