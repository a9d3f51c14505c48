#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Requests take the right route to the file: in the context of the submitter where that makes no
difference, by a worker everywhere else. Tracing shows the submitter of bios to the disk below: the
event block_bio_queue names the task. Probes on read functions show requests that bypass them."""
import contextlib
import mmap
import os
import shutil
import stat
import subprocess
import time
from typing import NamedTuple
from lib import *
from tracing import bypass, probe, traced, traced_on

if DRIVER != "rnull_loop":
    skip_all("the C driver has only one route, by its workers")
# A direct write waits for a page that udev reads at the moment, and a task that sleeps leaves the
# requests in its plug to a worker of the block layer.
stop_udev()
COUNT, WRITES, MIB = 16, 128, 16
# The source of writes, and their first block.
DATA = f"{SCRATCH}/data"
WRITTEN = 512


class Bound(NamedTuple):
    """A bound device, its backing file, and the disk below."""

    device: str
    file: str
    disk: str


class Submitters(NamedTuple):
    """The numbers of bios, or of calls: those by the task itself, and those by workers."""

    own: int
    workers: int


def written(kind):
    """Makes a file with written blocks in a file system."""
    file = backing(kind, MIB)
    noise(file, MIB)
    return file


@contextlib.contextmanager
def bound(kind, direct=True):
    """Attaches a RAM disk ("block"), or a file on a file system, which requests bypass with direct
    I/O."""
    file = backing(kind) if kind == "block" else written(kind)
    with attached(file, direct) as device:
        equal("dio", sysfs(device, "loop/dio"), "1" if direct else "0")
        settle()
        if direct:
            bypass(device, RAM[kind])
        yield Bound(device, file, RAM[kind])


def submitted(disk, operation, sectors, function, *arguments):
    """Calls a function, and counts the bios of that operation (R, W) and size to the disk."""
    tasks = [
        words[4]
        for words in traced_on(disk, "block_bio_queue", function, *arguments)
        # Such as RS 2048 + 8 [dd].
        if words[0].startswith(operation) and words[3] == str(sectors)
    ]
    tasks = [task for task in tasks if not task.startswith(("[jbd2/", "[xfsaild/"))]
    workers = sum(task.startswith("[kworker/") for task in tasks)
    return Submitters(len(tasks) - workers, workers)


def calls(name, function, *arguments):
    """Calls a function, and counts the calls of a probed kernel function by dd and by workers."""
    records = traced(f"kprobes/{name}", function, *arguments)
    own = sum(record.startswith("dd-") for record in records)
    return Submitters(own, sum(record.startswith("kworker/") for record in records))


def reads(path, block=64):
    dd(f"if={path}", "of=/dev/null", "bs=4k", f"count={COUNT}", f"skip={block}", "iflag=direct")


def writes(device, *prefix):
    """Writes the data to the device, by a dd that the commands of the prefix start."""
    run(*prefix, "dd", f"if={DATA}", f"of={device}", "bs=4k", f"count={WRITES}", f"seek={WRITTEN}",
        "oflag=direct", "conv=notrunc", "status=none")  # fmt: skip


def content(path, block, count):
    """Returns blocks that dd reads by direct I/O."""
    command = ["dd", f"if={path}", "bs=4k", f"skip={block}", f"count={count}", "iflag=direct", "status=none"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def by_task(bios, number=COUNT):
    equal("bios by the task and by workers", bios, (number, 0))


def by_workers(bios, number=COUNT):
    """Checks that workers have submitted all bios. A file system on the device, or the one below,
    may submit more."""
    assert bios.own == 0 and bios.workers >= number, f"bios: {bios}"


for kind in "ext4", "xfs":

    @check(f"direct reads of the raw device are submitted by the reader: {kind}")
    def raw_reads(kind=kind):
        with bound(kind) as on:
            by_task(submitted(on.disk, "R", 8, reads, on.device))


    @check(f"direct writes to the raw device are submitted by the writer: {kind}")
    def raw_writes(kind=kind):
        with bound(kind) as on:
            noise(DATA, 1)
            by_task(submitted(on.disk, "W", 8, writes, on.device), WRITES)
            arrived(on.file)


for tunable, kind in ("inline", "ext4"), ("inline", "block"), ("extents", "ext4"), ("extents", "xfs"):

    @check(f"{tunable}=0: reads and writes are submitted by workers: {kind}")
    def without(tunable=tunable, kind=kind):
        with bound(kind) as on:
            by_task(submitted(on.disk, "R", 8, reads, on.device))
            tune(on.device, tunable, 0)
            by_workers(submitted(on.disk, "R", 8, reads, on.device))
            noise(DATA, 1)
            by_workers(submitted(on.disk, "W", 8, writes, on.device), WRITES)
            arrived(on.file)
            tune(on.device, tunable, 1)
            bypass(on.device, on.disk)
            by_task(submitted(on.disk, "R", 8, reads, on.device))


@check("nowait=0: a file is read without IOCB_NOWAIT")
def without_nowait():
    """The flags of the kiocb, the first argument, are behind four words."""
    with bound("ext4") as on, probe("ext4_file_read_iter", "ext4_file_read_iter flags=+32($arg1):x32"):
        tune(on.device, "extents", 0)
        for value in 1, 0:
            tune(on.device, "nowait", value)
            records = traced("kprobes/ext4_file_read_iter", reads, on.device)
            flags = [int(record.split("flags=")[1], 16) for record in records]
            equal("reads", len(flags), COUNT)
            # RWF_NOWAIT
            equal(f"non-blocking reads, nowait={value}", sum(bool(flag & 8) for flag in flags), COUNT * value)


def batch(kib, *devices, operation="read", rounds=1):
    """Submits requests in one plug, with gaps so that they do not merge."""
    run("fio", "--name=batch", f"--filename={':'.join(devices)}", "--file_service_type=roundrobin:1",
        "--ioengine=libaio", "--direct=1", f"--iodepth={COUNT}", f"--iodepth_batch={COUNT}",
        "--iodepth_low=1", f"--iodepth_batch_complete_min={COUNT}", f"--rw={operation}:48k",
        f"--bs={kib}k", "--offset=0", f"--io_size={rounds * COUNT * kib}k", "--size=16m",
        "--output-format=terse")  # fmt: skip


for kind in "ext4", "block":

    @check(f"a batch is submitted at once: {kind}")
    def batches(kind=kind):
        with bound(kind) as on:
            by_task(submitted(on.disk, "R", 32, batch, 16, on.device))
            by_task(submitted(on.disk, "W", 32, lambda: batch(16, on.device, operation="write")))


@check("a batch for a file is submitted by workers")
def batches_for_file():
    """The flush of a plug may be for a request that is on no list yet, so it must not enter a file
    system."""
    with bound("ext4") as on:
        tune(on.device, "extents", 0)
        by_workers(submitted(on.disk, "R", 8, batch, 4, on.device))
        by_workers(submitted(on.disk, "R", 32, batch, 16, on.device))
        bios = submitted(on.disk, "W", 8, lambda: batch(4, on.device, operation="write", rounds=8))
        by_workers(bios, COUNT * 8)


@check("a plug with other devices' requests defers them to workers")
def batches_for_two():
    """The plug also holds requests of another device, which must not wait for this one's."""
    with bound("ext4") as on, bound("xfs") as other:
        bios = submitted(on.disk, "R", 8, lambda: batch(4, on.device, other.device, rounds=2))
        equal("bios by the task and by workers", bios, (0, COUNT))


def inner(device):
    """Mounts a new file system with a file on the device, and returns both paths."""
    # Keeps the blocks of the image allocated.
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", device)
    # Without the reads of ext4lazyinit.
    place = mounted(device, "inner", "-o", "noinit_itable,no_prefetch_block_bitmaps")
    noise(f"{place}/file", 4)
    return place, f"{place}/file"


@check("I/O of a file system on the device is submitted by its task, with extents=0 by workers")
def mounted_on_file():
    with bound("ext4") as on:
        place, file = inner(on.device)
        bypass(on.device, on.disk)
        by_task(submitted(on.disk, "R", 8, reads, file))
        tune(on.device, "extents", 0)
        by_workers(submitted(on.disk, "R", 8, reads, file))
        run("umount", place)


@check("I/O of a file system on the device is remapped to a block device")
def mounted_on_block_device():
    """Bios enter no file system, so any task may submit."""
    with bound("block") as on:
        place, file = inner(on.device)
        equal("bios", sum(submitted(on.disk, "R", 8, reads, file)), COUNT)
        with probe("blkdev_read_iter"):
            what = "reads of the block device as a file"
            equal(what, calls("blkdev_read_iter", reads, file), (0, 0))
            tune(on.device, "remap", 0)
            equal(what, calls("blkdev_read_iter", reads, file), (0, COUNT))
        run("umount", place)


@check("requests for a block device are remapped, with remap=0 it is read as a file")
def remapped():
    """A read of the loop device is itself a read of a block device as a file. A read of the backing
    device is another one, unless the request is remapped to a bio."""
    with bound("block") as on, probe("blkdev_read_iter"):
        equal("remapped", calls("blkdev_read_iter", reads, on.device), (COUNT, 0))
        tune(on.device, "inline", 0)
        equal("remapped by workers", calls("blkdev_read_iter", reads, on.device), (COUNT, 0))
        by_workers(submitted(on.disk, "R", 8, reads, on.device))
        tune(on.device, "remap", 0)
        equal("as a file, by workers", calls("blkdev_read_iter", reads, on.device), (COUNT, COUNT))


@check("a block device in the page cache is read as a file")
def cached_block_device():
    """A block device with pages in its page cache must be read through it."""
    with bound("block") as on, probe("blkdev_read_iter"):
        dd("if=/dev/zero", f"of={on.disk}", "bs=4k", "count=64", "seek=64", "conv=notrunc")
        got = calls("blkdev_read_iter", reads, on.device)
        # Some are read twice: dirty pages are written back first, by a worker that may block.
        assert sum(got) >= 2 * COUNT, f"{got}, wanted {2 * COUNT} together"
        assert content(on.device, 64, 64) == bytes(64 << 12), "read something else"


def copies(on, path, block=64):
    """Checks who copies from the page cache of the file: the reader without a call of the file
    system, a worker by one."""
    with open(on.file, "rb") as file:
        file.read()
    with probe("ext4_file_read_iter"):
        reads(path, block)
        equal("calls for cached reads", calls("ext4_file_read_iter", reads, path, block), own(path, 0))
        tune(on.device, "inline", 0)
        equal("inline=0", calls("ext4_file_read_iter", reads, path, block), own(path, COUNT))


def own(path, workers):
    """Returns calls by dd and by workers; a file of a file system is read by dd, too."""
    return (0 if path.startswith("/dev/") else COUNT, workers)


@check("buffered reads of cached data are done by the reader")
def buffered():
    with bound("ext4", direct=False) as on:
        copies(on, on.device)


@check("buffered reads of cached data are done by the reader: a file system on the device")
def buffered_below_file_system():
    with bound("ext4", direct=False) as on:
        place, file = inner(on.device)
        run("sync")
        copies(on, file)
        run("umount", place)


@check("reads leave the access time of the image, because its page cache is read in any context")
def access_time():
    file = written("ext4")
    os.utime(file, (1, 1))
    for direct in True, False:
        with attached(file, direct) as device:
            reads(device)
        equal("access time", os.stat(file).st_atime, 1)


@check("buffered reads of uncached data are deferred to a worker")
def buffered_from_disk():
    """Uncached data is read by a worker that may block."""
    with bound("ext4", direct=False) as on:
        run("sync")
        write_text("/proc/sys/vm/drop_caches", 3)
        bios = traced_on(on.disk, "block_bio_queue", reads, on.device)
        readers = [words[-1] for words in bios if words[0].startswith("R")]
        assert "[dd]" not in readers, f"the reader submitted to the disk: {bios}"
        assert any(reader.startswith("[kworker") for reader in readers), f"bios: {bios}"


def arrived(file):
    """Checks that the image has the written data."""
    with open(DATA, "rb") as data:
        assert content(file, WRITTEN, WRITES) == data.read(WRITES << 12), "the image has other data"


for kind, extents in ("ext4", 1), ("xfs", 1), ("ext4", 0), ("xfs", 0):

    @check(f"a limit on the size of files does not apply to writes to the device: {kind}, extents={extents}")
    def limit(kind=kind, extents=extents):
        """Beyond the limit the file system would fail the write of the submitter, and send it a
        signal."""
        with bound(kind) as on:
            tune(on.device, "extents", extents)
            noise(DATA, 1)
            writes(on.device, "prlimit", "--fsize=1048576")
        arrived(on.file)


for extents in 1, 0:

    @check(f"a set-user-ID file keeps its mode: extents={extents}")
    def privileged(extents=extents):
        """A write drops the privileges of a file (set-user-ID), unless its writer is privileged, as
        workers are."""
        file = written("ext4")
        os.chmod(file, 0o4755)
        with attached(file, True) as device:
            bypass(device, RAM["ext4"])
            tune(device, "extents", extents)
            noise(DATA, 1)
            node = f"{SCRATCH}/node"
            os.mknod(node, 0o600 | stat.S_IFBLK, os.stat(device).st_rdev)
            shutil.chown(node, "nobody")
            writes(node, "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
            equal("mode of the image", oct(os.stat(file).st_mode & 0o7777), "0o4755")
        arrived(file)


def moved_bytes(what):
    """Returns the number of bytes that this process has read or written, as the kernel counts
    them."""
    with open("/proc/self/io", encoding="ascii") as file:
        return int(dict(line.split(": ") for line in file)[f"{what}_bytes"])


def accounted(kind, what, tunable):
    """Transferred bytes are counted once, in the submitter's context or not."""
    move = os.preadv if what == "read" else os.pwritev
    memory = memoryview(mmap.mmap(-1, 65536))
    with bound(kind) as on:
        if tunable:
            tune(on.device, tunable, 0)

        def transfer(size, count):
            for number in range(count):
                equal("bytes", move(fd.fd, [memory[:size]], number * size), size)

        with Fd(on.device, os.O_RDWR | os.O_DIRECT) as fd:
            transfer(4096, 8)
            before = moved_bytes(what)
            transfer(4096, 64)
            transfer(65536, 16)
            equal("counted bytes", moved_bytes(what) - before, 64 * 4096 + 16 * 65536)


for what in "read", "write":
    for kind, tunable, how in (
        ("ext4", None, "ext4"),
        ("block", None, "a block device"),
        ("block", "remap", "a block device as a file"),
        ("ext4", "inline", "ext4 by workers"),
        ("ext4", "extents", "ext4 as a file"),
    ):

        @check(f"transferred bytes are counted once: {what}, {how}")
        def counted(kind=kind, what=what, tunable=tunable):
            accounted(kind, what, tunable)


run_checks()
