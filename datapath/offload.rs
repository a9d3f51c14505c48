// SPDX-License-Identifier: GPL-2.0

//! Offload: whether requests that their submitter could serve are served by a worker on another
//! CPU.
//!
//! A submitter with many requests in flight, to a disk that is faster than its CPU, spends that CPU
//! on serving them. If another CPU is idle, both together serve more. But if the submitter waits
//! for each request, a worker only costs context switches. The driver cannot tell these cases apart
//! beforehand, because each request is over before the next one is submitted. So when CPUs have
//! been idle it tries: it measures how long requests take with and without the worker, and keeps to
//! the faster way. The worker polls, so it takes a CPU for itself. It stops as soon as other tasks
//! need that CPU, or the submitter waits.
//!
//! One record for the workers of each CPU. Several tasks may update it at the same time: then a
//! measurement may be wrong, and the next one corrects it.

use kernel::sync::atomic::{
    ordering::Relaxed,
    Atomic, //
};

/// The facts that the decision depends on, besides the requests.
pub(super) trait Load {
    /// Returns the time, in nanoseconds.
    fn now(&self) -> u64;

    /// Returns how long the CPUs have been idle, the sum of all, in nanoseconds.
    fn idle(&self) -> u64;

    /// Returns a number that is that of the current task alone.
    fn task(&self) -> usize;

    /// Returns how often the current task has slept.
    fn sleeps(&self) -> u64;

    /// Returns how often other tasks have taken the CPU from the current one.
    fn preemptions(&self) -> u64;
}

/// The phases of the decision. A number stands for each of them in [`Offload::phase`].
mod phase {
    /// Submitters serve their requests.
    pub(super) const OFF: u32 = 0;
    /// The same. It is watched how long a submitter that could need help takes, and whether CPUs
    /// are idle.
    pub(super) const WATCH: u32 = 1;
    /// The worker serves requests, and has not been measured yet: it has to wake up.
    pub(super) const START: u32 = 2;
    /// The worker serves requests, and is measured.
    pub(super) const TRY: u32 = 3;
    /// The worker serves requests.
    pub(super) const ON: u32 = 4;
}

/// The record of the workers of a CPU.
pub(super) struct Offload {
    /// One of the [phases](phase).
    phase: Atomic<u32>,
    /// The number of requests in this window.
    count: Atomic<u32>,
    /// The time of the beginning of this window, in nanoseconds, the [`Load::task`] then, and its
    /// [`Load::sleeps`] and [`Load::preemptions`].
    begin: Atomic<u64>,
    task: Atomic<usize>,
    sleeps: Atomic<u64>,
    preempted: Atomic<u64>,
    /// The time of the beginning of this phase, in nanoseconds, the [`Load::idle`] then, and the
    /// number of windows since then.
    since: Atomic<u64>,
    idle: Atomic<u64>,
    windows: Atomic<u64>,
    /// The length of a window without the worker, in nanoseconds.
    before: Atomic<u64>,
    /// The number of times that other tasks have taken the CPU of the worker or of the submitter in
    /// this phase.
    preemptions: Atomic<u32>,
    /// The time of the next try, in nanoseconds.
    next: Atomic<u64>,
    /// The pause after the next try, in nanoseconds.
    pause: Atomic<u64>,
}

impl Offload {
    /// The number of requests that are measured together.
    const WINDOW: u32 = 64;

    /// The longest time of a window in which a worker could help, in nanoseconds: it would sleep
    /// between requests that are further apart.
    const FAST: u64 = Self::WINDOW as u64 * 200_000;

    /// The shortest time of a measurement, in nanoseconds.
    const MEASURE: u64 = 10_000_000;

    /// The time after which preemptions are counted anew while the worker serves requests, in
    /// nanoseconds, and the number of those in that time that are left to tasks of the kernel.
    const PERIOD: u64 = 100_000_000;
    const FEW: u32 = 5;

    /// The time after which the worker is measured again, in nanoseconds.
    const AGAIN: u64 = 2_000_000_000;

    /// The pauses between tries, in nanoseconds.
    const FIRST_PAUSE: u64 = 100_000_000;
    const LONGEST_PAUSE: u64 = 1_600_000_000;

    /// Makes a record without measurements: submitters serve their requests.
    pub(super) fn new() -> Self {
        Self {
            phase: Atomic::new(phase::OFF),
            count: Atomic::new(0),
            begin: Atomic::new(0),
            task: Atomic::new(0),
            sleeps: Atomic::new(0),
            preempted: Atomic::new(0),
            since: Atomic::new(0),
            idle: Atomic::new(0),
            windows: Atomic::new(0),
            before: Atomic::new(0),
            preemptions: Atomic::new(0),
            next: Atomic::new(0),
            pause: Atomic::new(Self::FIRST_PAUSE),
        }
    }

    /// Returns whether the worker serves the next request of the current task. Does not sleep.
    pub(super) fn is_on(&self, load: &impl Load) -> bool {
        if add(&self.count, 1) >= Self::WINDOW {
            self.end_window(load);
        }
        self.phase.load(Relaxed) >= phase::START
    }

    /// Notes that another task needs the CPU of the worker. Any context.
    pub(super) fn note_preemption(&self) {
        add(&self.preemptions, 1);
    }

    /// Ends a window, and begins the next one.
    fn end_window(&self, load: &impl Load) {
        let now = load.now();
        let length = now.saturating_sub(self.begin.xchg(now, Relaxed));
        let (task, sleeps) = (load.task(), load.sleeps());
        let slept = sleeps.wrapping_sub(self.sleeps.xchg(sleeps, Relaxed));
        let slept = match self.task.xchg(task, Relaxed) {
            before if before == task => slept,
            _ => Self::WINDOW.into(),
        };
        let preempted = load.preemptions();
        if self.preempted.xchg(preempted, Relaxed) != preempted {
            add(&self.preemptions, 1);
        }
        self.count.store(0, Relaxed);
        let windows = self.windows.load(Relaxed).saturating_add(1);
        self.windows.store(windows, Relaxed);
        let took = now.saturating_sub(self.since.load(Relaxed));
        let is_measured = took >= Self::MEASURE;
        let is_bound = length <= Self::FAST && slept <= u64::from(Self::WINDOW / 8);
        // A submitter that sleeps half of the time waits for the worker.
        let waits = length > Self::FAST || slept > u64::from(Self::WINDOW / 2);
        match self.phase.load(Relaxed) {
            phase::OFF if is_bound && now >= self.next.load(Relaxed) => {
                self.enter(phase::WATCH, now, load.idle());
            }
            phase::OFF => (),
            phase::WATCH if !is_bound => self.leave(now),
            phase::WATCH if is_measured => {
                let idle = load.idle().saturating_sub(self.idle.load(Relaxed));
                if idle < took / 2 {
                    self.leave(now);
                } else {
                    self.before.store(took / windows, Relaxed);
                    self.enter(phase::START, now, 0);
                }
            }
            phase::WATCH => (),
            _ if waits => self.leave(now),
            phase::START => self.enter(phase::TRY, now, 0),
            phase::TRY if is_measured => {
                // The difference must be more than noise.
                if took / windows < self.before.load(Relaxed) / 10 * 9 {
                    self.next.store(now.saturating_add(Self::AGAIN), Relaxed);
                    self.enter(phase::ON, now, 0);
                } else {
                    self.leave(now);
                }
            }
            phase::TRY => (),
            _ if took < Self::PERIOD => (),
            _ if self.preemptions.load(Relaxed) > Self::FEW => self.leave(now),
            _ => {
                self.pause.store(Self::FIRST_PAUSE, Relaxed);
                if now < self.next.load(Relaxed) {
                    self.enter(phase::ON, now, 0);
                } else {
                    self.enter(phase::WATCH, now, load.idle());
                }
            }
        }
    }

    fn enter(&self, phase: u32, now: u64, idle: u64) {
        self.since.store(now, Relaxed);
        self.idle.store(idle, Relaxed);
        self.windows.store(0, Relaxed);
        self.preemptions.store(0, Relaxed);
        self.phase.store(phase, Relaxed);
    }

    /// Leaves all to the submitters, and sets the time of the next try.
    fn leave(&self, now: u64) {
        let pause = self.pause.load(Relaxed);
        self.next.store(now.saturating_add(pause), Relaxed);
        self.pause
            .store(Self::LONGEST_PAUSE.min(pause.saturating_mul(2)), Relaxed);
        self.enter(phase::OFF, now, 0);
    }
}

/// Adds to a number, and returns the sum. Other tasks may do so at the same time: then one of them
/// is missed.
fn add(number: &Atomic<u32>, count: u32) -> u32 {
    let sum = number.load(Relaxed).saturating_add(count);
    number.store(sum, Relaxed);
    sum
}

#[cfg_attr(not(test), kernel::macros::kunit_tests(rnull_loop_offload))]
#[cfg_attr(test, cfg(test))]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// A submitter for which a request takes some nanoseconds, with and without the worker.
    struct Submitter {
        now: Cell<u64>,
        requests: Cell<u64>,
        alone: u64,
        offloaded: u64,
        /// True if it sleeps after each request that the worker serves.
        waits: bool,
        /// True if other tasks use all other CPUs.
        busy: bool,
    }

    impl Load for Submitter {
        fn now(&self) -> u64 {
            self.now.get()
        }

        fn idle(&self) -> u64 {
            if self.busy {
                0
            } else {
                self.now.get()
            }
        }

        fn task(&self) -> usize {
            7
        }

        fn sleeps(&self) -> u64 {
            if self.waits {
                self.requests.get()
            } else {
                0
            }
        }

        fn preemptions(&self) -> u64 {
            3
        }
    }

    impl Submitter {
        fn new(alone: u64, offloaded: u64) -> Self {
            Self {
                now: Cell::new(0),
                requests: Cell::new(0),
                alone,
                offloaded,
                waits: false,
                busy: false,
            }
        }

        /// Submits requests, and returns the percentage of those that the worker serves.
        fn submit(&self, offload: &Offload, count: u64) -> u64 {
            let mut offloaded = 0;
            for _ in 0..count {
                let on = offload.is_on(self);
                let time = if on { self.offloaded } else { self.alone };
                self.now.set(self.now.get() + time);
                if on {
                    self.requests.set(self.requests.get() + 1);
                    offloaded += 1;
                }
            }
            offloaded * 100 / count
        }
    }

    #[test]
    fn a_faster_worker_is_used() {
        let offload = Offload::new();
        let submitter = Submitter::new(15_000, 9_000);
        submitter.submit(&offload, 20_000);
        assert!(submitter.submit(&offload, 1_000_000) >= 99);
    }

    #[test]
    fn a_wrong_measurement_is_corrected() {
        let offload = Offload::new();
        let mut submitter = Submitter::new(20_000, 12_000);
        submitter.submit(&offload, 2_000);
        assert_eq!(submitter.submit(&offload, 2_000), 100);
        submitter.alone = 9_000;
        submitter.submit(&offload, 200_000);
        assert!(submitter.submit(&offload, 1_000_000) <= 3);
    }

    #[test]
    fn a_slower_worker_is_tried_rarely() {
        let offload = Offload::new();
        let submitter = Submitter::new(15_000, 40_000);
        submitter.submit(&offload, 200_000);
        assert!(submitter.submit(&offload, 1_000_000) <= 1);
    }

    #[test]
    fn a_submitter_that_waits_serves_its_requests() {
        let offload = Offload::new();
        let mut submitter = Submitter::new(15_000, 9_000);
        submitter.waits = true;
        assert_eq!(submitter.submit(&offload, 100_000), 0);
    }

    #[test]
    fn a_slow_submitter_is_not_helped() {
        let offload = Offload::new();
        let submitter = Submitter::new(300_000, 9_000);
        assert_eq!(submitter.submit(&offload, 100_000), 0);
    }

    #[test]
    fn busy_cpus_are_left_alone() {
        let offload = Offload::new();
        let mut submitter = Submitter::new(15_000, 9_000);
        submitter.busy = true;
        assert_eq!(submitter.submit(&offload, 100_000), 0);
    }

    #[test]
    fn the_worker_stops_when_others_need_its_cpu() {
        let offload = Offload::new();
        let mut submitter = Submitter::new(15_000, 9_000);
        submitter.submit(&offload, 100_000);
        submitter.busy = true;
        for _ in 0..100 {
            submitter.submit(&offload, 1_000);
            offload.note_preemption();
        }
        assert_eq!(submitter.submit(&offload, 100_000), 0);
    }

    #[test]
    fn a_change_of_the_load_is_noticed() {
        let offload = Offload::new();
        let mut submitter = Submitter::new(15_000, 9_000);
        submitter.submit(&offload, 100_000);
        submitter.waits = true;
        assert_eq!(submitter.submit(&offload, 100_000), 0);
        submitter.waits = false;
        submitter.submit(&offload, 200_000);
        assert!(submitter.submit(&offload, 100_000) >= 95);
        submitter.offloaded = 250_000;
        assert!(submitter.submit(&offload, 10_000) <= 2);
    }
}
