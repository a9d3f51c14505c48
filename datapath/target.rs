// SPDX-License-Identifier: GPL-2.0

//! The state that requests need of their device.
//!
//! - [`LoopQueue`] lives as long as the device;
//! - [`Target`] is there while the device is bound, and changes only while no request is in flight.

use super::{
    backoff::Backoff,
    leasing::{
        LeasedFile,
        Part, //
    },
    progress::Progress,
    service::Service,
    space::{
        FailingWrites,
        SpaceQueue, //
    },
    stats::{
        self,
        Stats, //
    },
    tunables::{
        Defaults,
        Tunables, //
    },
    worker::Workers, //
};
use crate::{
    aio::{
        request::FileBacked,
        Caching, //
    },
    blk_mq::{
        LimitsUpdate,
        Op,
        Request,
        StartedRequest, //
    },
    kern::{
        bdev::BlockDevice,
        file::{
            ErrseqCursor,
            Fallocate, //
        },
        gate::Gate,
        workqueue::Affinity, //
    },
};
use core::fmt;
use kernel::{
    fs::File,
    pr_err_once,
    prelude::*,
    static_lock_class,
    sync::{
        aref::ARef,
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc,
        SetOnce, //
    },
    workqueue::RawWorkItem, //
};

/// The data half of a loop device.
#[pin_data]
pub(crate) struct LoopQueue {
    /// The number of the device.
    pub(crate) index: u32,
    /// The length of the device for requests, in bytes: that of the disk or, while LOOP_SET_STATUS
    /// moves the device, the shorter one of the old and the new length.
    length: Atomic<u64>,
    /// The workers and their workqueues, made when the device is bound for the first time, because
    /// many devices never are. Some are made later, see [`Service`].
    service: SetOnce<Service>,
    /// The tunables of the device.
    pub(crate) tunables: Tunables,
    /// Entered by direct writes and flushes and, if the file has larger blocks than the device, by
    /// direct reads; closed by transfers through the page cache of the backing file of a device
    /// with direct I/O.
    #[pin]
    pub(crate) direct_io: Gate,
    /// The largest alignment, in bytes, with which direct I/O was refused; 0 for none.
    refused: Atomic<u32>,
    /// The writes that wait for space.
    pub(super) space: SpaceQueue,
}

impl LoopQueue {
    /// Makes the data half of a device that is not bound, whose disk is named `prefix` and `index`.
    /// May sleep.
    pub(crate) fn new(prefix: &'static str, index: u32, defaults: Defaults) -> Result<Arc<Self>> {
        let space = SpaceQueue::new(prefix, index)?;
        Arc::pin_init(
            try_pin_init!(Self {
                index,
                length: Atomic::new(0),
                service: SetOnce::new(),
                tunables: Tunables::new(defaults),
                direct_io <- Gate::new(c"LoopQueue::direct_io", static_lock_class!()),
                refused: Atomic::new(0),
                space,
            }),
            GFP_KERNEL,
        )
    }

    /// Makes the workers of the device, unless it has them. `name` is that of the disk. May sleep;
    /// the caller excludes other callers. Fails with `ENOMEM`.
    pub(crate) fn make_workers(&self, name: &CStr) -> Result {
        if self.service.as_ref().is_none() {
            self.service.populate(Service::new(name)?);
        }
        Ok(())
    }

    /// Sets whether writes wait for space. If not, writes that wait are tried once more, and fail
    /// if the file system is still full. Any context.
    pub(crate) fn set_waits_for_space(&self, on: bool) {
        self.tunables.enospc.set(on);
        if !on {
            self.space.release();
        }
    }

    /// Returns whether a write waits while the file system of the backing file is full. Any
    /// context.
    pub(super) fn waits_for_space(&self) -> bool {
        self.tunables.enospc.is_on() && !self.space.is_failing()
    }

    /// Makes writes fail instead of waiting for space until the guard is dropped, and tries those
    /// that wait: when this returns they are requests, for which a frozen queue waits. May sleep.
    pub(crate) fn fail_without_space(&self) -> FailingWrites<'_> {
        self.space.fail()
    }

    /// Waits until the works of writes that have waited for space are over. The device has no
    /// opener. May sleep.
    pub(crate) fn flush_space(&self) {
        self.space.flush();
    }

    /// Sets the statistics to 0. Any context.
    pub(crate) fn reset_stats(&self) {
        if let Some(service) = self.service.as_ref() {
            service.stats().for_each(Stats::reset);
        }
    }

    /// Writes the statistics, as lines of a name and a number; none before the device is attached
    /// for the first time.
    pub(crate) fn show_stats(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let service = self.service.as_ref();
        service.map_or(Ok(()), |service| stats::show(service.stats(), out))
    }

    /// Returns the workers of the CPU that a request was made on.
    ///
    /// A started request has a target, and a device with a target has workers, so `None` cannot
    /// happen.
    pub(super) fn workers(&self, rq: &StartedRequest<Self>) -> Option<&Workers> {
        let workers = self
            .service
            .as_ref()
            .and_then(|service| service.workers_of(rq.cpu()));
        if workers.is_none() {
            pr_err_once!("a request of a device without workers\n");
        }
        workers
    }

    /// Queues a worker, unless it is queued already. Any context, including hard IRQ.
    pub(super) fn enqueue<W>(&self, worker: W, affinity: Affinity)
    where
        W: RawWorkItem<0> + Send + 'static,
    {
        // Workers are made by the service.
        if let Some(service) = self.service.as_ref() {
            service.enqueue(worker, affinity);
        }
    }

    /// Sets the length of the device for requests, in bytes. Any context.
    pub(crate) fn set_length(&self, length: u64) {
        self.length.store(length, Relaxed);
    }

    /// Returns whether a request ends beyond the device.
    ///
    /// The block layer checks that before a bio waits for a frozen queue, and not again after the
    /// thaw. While the queue was frozen, the device may have moved in the backing file. The request
    /// must not reach data of the file outside of the device.
    pub(super) fn is_exceeded_by(&self, rq: &Request<Self>) -> bool {
        let end = rq.position().saturating_add(u64::from(rq.len()));
        rq.op() != Op::Flush && end > self.length.load(Relaxed)
    }

    /// Records that the backing file has refused direct I/O of a request whose position and length
    /// are multiples of `alignment` bytes, and that its page cache has served the request. Any
    /// context.
    pub(super) fn record_refusal(&self, alignment: u64) {
        let alignment = u32::try_from(alignment).unwrap_or(u32::MAX);
        if alignment > self.refused.load(Relaxed) {
            self.refused.store(alignment, Relaxed);
        }
    }

    /// Returns the alignment of the refusals since the last call, in bytes; 0 for none.
    pub(crate) fn take_refusals(&self) -> u32 {
        self.refused.xchg(0, Relaxed)
    }
}

/// The backend of requests: a backing file, and how requests are served from it.
pub(crate) struct Target {
    /// The backing file.
    pub(crate) file: ARef<File>,
    /// The position of the device in the file, in bytes.
    pub(crate) offset: u64,
    /// The writeback errors of the file that flushes have reported. The device has a cursor of its
    /// own, because other tasks and FUA writes sync the file through the same `struct file`.
    pub(crate) wb_err: ErrseqCursor,
    /// The way that reads and writes use the file.
    pub(crate) caching: Caching,
    /// The block size of direct I/O to the file, in bytes, if it is larger than that of the device.
    pub(crate) direct_block: Option<u32>,
    /// True if writes fail.
    pub(crate) read_only: bool,
    /// The `fallocate()` modes that the file supports.
    pub(crate) holes: HoleSupport,
    /// True if submitters may read from the page cache of the file.
    pub(crate) cached_reads: bool,
    /// True if the file supports non-blocking I/O.
    pub(crate) nowait: bool,
    /// True if transfers can leave nothing behind in the page cache of the file.
    pub(crate) dontcache: bool,
    /// The time of the last line in the log about a failed operation, in milliseconds, see
    /// [`time::uptime_ms`](crate::kern::time::uptime_ms); 0 for none.
    pub(crate) warned: Atomic<u64>,
    /// The leases of the file, if its file system keeps blocks where they are.
    pub(crate) leasing: Option<LeasedFile>,
    /// The block device that bios are submitted to: that which the file is or, with leases, that of
    /// its file system. The file keeps it open.
    pub(crate) lower: Option<ARef<BlockDevice>>,
    /// The record of non-blocking reads.
    pub(crate) reads: Backoff,
    /// The record of non-blocking writes.
    pub(crate) writes: Backoff,
}

impl Target {
    /// Returns the position of a request in the file, in bytes.
    ///
    /// Does not overflow: a request does not exceed its device
    /// ([`is_exceeded_by`](LoopQueue::is_exceeded_by)), which is part of a file.
    pub(super) fn position_of(&self, rq: &Request<LoopQueue>) -> u64 {
        rq.position().saturating_add(self.offset)
    }

    /// Returns the block device that the file is, if it is one.
    pub(super) fn block_device(&self) -> Option<&BlockDevice> {
        self.lower.as_deref().filter(|_| self.leasing.is_none())
    }

    /// Returns the place of the first part of a request on the disk, see
    /// [`Leasing::part`](super::leasing::Leasing::part), or how many bytes have none.
    pub(super) fn first_part(&self, rq: &StartedRequest<LoopQueue>) -> Part {
        let Some(leasing) = &self.leasing else {
            return Part::Unusable;
        };
        leasing.part(self.position_of(rq), rq.len())
    }

    /// Notes that an operation through the file is over, see
    /// [`Leasing::note_change`](super::leasing::Leasing::note_change).
    pub(super) fn note_change(&self, rq: &StartedRequest<LoopQueue>) {
        if let Some(leasing) = self.leasing.as_ref().filter(|_| rq.op().is_write()) {
            leasing.note_change(self.position_of(rq), rq.len().into());
        }
    }

    /// Returns whether a request is not in whole blocks of direct I/O, on a device whose blocks are
    /// smaller.
    pub(super) fn is_split_block(&self, rq: &Request<LoopQueue>) -> bool {
        self.direct_block
            .is_some_and(|block| self.is_misaligned(rq, block))
    }

    /// Returns whether a request is not in whole logical blocks of the block device that bios are
    /// submitted to.
    pub(super) fn is_misaligned_to_lower(&self, rq: &Request<LoopQueue>) -> bool {
        self.lower
            .as_deref()
            .is_some_and(|bdev| self.is_misaligned(rq, bdev.logical_block_size()))
    }

    /// Returns whether a request is not in whole logical blocks of the block device that the file
    /// is.
    pub(super) fn is_misaligned_to_device(&self, rq: &Request<LoopQueue>) -> bool {
        self.block_device()
            .is_some_and(|bdev| self.is_misaligned(rq, bdev.logical_block_size()))
    }

    /// Returns whether the block device that the file is takes a request, see
    /// [`BlockDevice::can_access`].
    pub(super) fn can_access(&self, bdev: &BlockDevice, rq: &Request<LoopQueue>) -> bool {
        bdev.can_access(rq.op().is_write(), self.position_of(rq), rq.len())
    }

    /// Returns whether a request is not in whole blocks of `block` bytes of the file.
    fn is_misaligned(&self, rq: &Request<LoopQueue>, block: u32) -> bool {
        alignment(self.position_of(rq), u64::from(rq.len())) < u64::from(block)
    }

    /// Returns the record of non-blocking operations of the kind of a request.
    pub(super) fn backoff(&self, op: Op) -> &Backoff {
        match op {
            Op::Read => &self.reads,
            _ => &self.writes,
        }
    }
}

/// Returns the largest power of two, in bytes, of which both a position and a length, in bytes, are
/// multiples.
pub(super) fn alignment(position: u64, len: u64) -> u64 {
    1 << (position | len).trailing_zeros().min(u64::BITS - 1)
}

impl FileBacked for LoopQueue {
    type Data = Progress;

    fn file(target: &Target) -> &File {
        &target.file
    }

    fn block_device(target: &Target) -> Option<&BlockDevice> {
        target.lower.as_deref()
    }

    fn io_granularity(rq: &StartedRequest<Self>) -> Option<u32> {
        let target = rq.backend();
        target
            .direct_block
            .filter(|_| rq.progress().route.method.is_direct())
    }
}

impl StartedRequest<LoopQueue> {
    /// Returns the driver's part of the request.
    pub(super) fn progress(&self) -> &Progress {
        self.data().driver()
    }

    /// Returns the driver's part of the request, to change it.
    pub(super) fn progress_mut(&mut self) -> &mut Progress {
        self.data_mut().driver_mut()
    }
}

/// The `fallocate()` modes that have not failed with `EOPNOTSUPP` yet. Whether a file system
/// supports a mode is only known when it was tried.
pub(crate) struct HoleSupport {
    punch: Atomic<bool>,
    zero: Atomic<bool>,
}

impl HoleSupport {
    /// Makes a record where all modes, or none, are supported.
    pub(crate) fn new(supported: bool) -> Self {
        Self {
            punch: Atomic::new(supported),
            zero: Atomic::new(supported),
        }
    }

    /// Returns whether `mode` is supported.
    pub(super) fn supports(&self, mode: Fallocate) -> bool {
        self.of(mode).load(Relaxed)
    }

    /// Records that `mode` is not supported. Returns whether it was before.
    pub(super) fn remove(&self, mode: Fallocate) -> bool {
        self.of(mode).xchg(false, Relaxed)
    }

    fn of(&self, mode: Fallocate) -> &Atomic<bool> {
        match mode {
            Fallocate::PunchHole => &self.punch,
            Fallocate::ZeroRange => &self.zero,
        }
    }

    /// Removes unsupported modes from `limits`.
    pub(crate) fn restrict(&self, limits: &mut LimitsUpdate<'_>) {
        if !self.supports(Fallocate::PunchHole) {
            limits.set_discard(0, 0);
        }
        if !self.supports(Fallocate::ZeroRange) {
            limits.set_write_zeroes(0);
        }
    }
}

#[kernel::macros::kunit_tests(rnull_loop_target)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_that_of_both() {
        assert_eq!(alignment(0, 4096), 4096);
        assert_eq!(alignment(512, 4096), 512);
        assert_eq!(alignment(8192, 12288), 4096);
        assert_eq!(alignment(0, 0), 1 << 63);
    }
}
