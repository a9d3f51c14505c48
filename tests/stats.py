#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The statistics of a device tell how its requests were served: each request counts where it
should, and nowhere else."""
import contextlib
import errno
import fuse
import mmap
import os
import re
import time
from lib import *
from tracing import bypass

BLOCK = 4096
MIB = 4
COUNT = 10


def stats(device):
    lines = sysfs(device, "rnull_loop/stats").splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}


@contextlib.contextmanager
def counts(device, **wanted):
    """Checks that the statistics change by these numbers, and no others."""
    before = stats(device)
    yield
    after = stats(device)
    changes = {name: value - before[name] for name, value in after.items() if value != before[name]}
    equal("counted", changes, wanted)


def opened(device):
    return Fd(device, os.O_RDWR | os.O_DIRECT)


def read(device, count=COUNT, first=0, length=BLOCK):
    with opened(device) as fd:
        for block in range(first, first + count):
            os.preadv(fd.fd, [mmap.mmap(-1, length)], block * BLOCK)


def write(device, count=COUNT, first=0):
    with opened(device) as fd:
        for block in range(first, first + count):
            os.pwrite(fd.fd, mmap.mmap(-1, BLOCK), block * BLOCK)


def flush(device):
    """Flushes, if there is anything to flush: a write comes before."""
    with opened(device) as fd:
        os.fsync(fd.fd)


@check("a device that was never attached has none")
def none():
    number = control(CTL_ADD, 77)
    equal("statistics", stats(f"loop{number}"), {})
    equal("removed", control(CTL_REMOVE, number), 0)


@check("a block device")
def block_device():
    with attached(backing("block"), True) as device:
        with counts(device, submitter_remap=COUNT):
            read(device)
        with counts(device, submitter_remap=COUNT, flush_bio=1):
            write(device)
            flush(device)
        tune(device, "inline", 0)
        with counts(device, nowait_remap=COUNT):
            read(device)
        with counts(device, nowait_remap=1, flush_file=1, flush_sync=1):
            write(device, 1)
            flush(device)
        tune(device, "remap", 0)
        with counts(device, nowait_direct=COUNT):
            read(device)
        tune(device, "nowait", 0)
        with counts(device, blocking_direct=2 * COUNT):
            read(device)
            write(device)


@check("the extents of an image")
def extents():
    file = written("ext4", MIB)
    with attached(file, True) as device:
        # The leases may be in use before the map has learned the blocks.
        bypass(device, RAM["ext4"])
        with counts(device, submitter_extent=2 * COUNT):
            read(device)
            write(device)
        tune(device, "inline", 0)
        with counts(device, nowait_extent=COUNT):
            read(device)
        tune(device, "inline", 1)
        tune(device, "extents", 0)
        with counts(device, nowait_direct=COUNT, blocking_direct=COUNT):
            read(device)
            write(device)


@check("a read of which the map has a part")
def part():
    file = written("ext4", MIB)
    run("fallocate", "-p", "-o", str(1 << 20), "-l", str(1 << 20), file)
    with attached(file, True) as device:
        read_until(device, "in use, but unwritten blocks")
        with counts(device, submitter_extent=1, short=1, blocking_direct=1):
            read(device, 1, (1 << 20) // BLOCK - 1, 2 * BLOCK)


@check("the page cache of an image")
def page_cache():
    file = written("ext4", MIB)
    with attached(file, False) as device:
        dd(f"if={file}", "of=/dev/null", "bs=1M")
        with counts(device, submitter_cached=COUNT):
            read(device)
        with counts(device, blocking_buffered=COUNT, flush_file=1, flush_sync=1):
            write(device)
            flush(device)
        dd(f"of={file}", "oflag=nocache", "conv=notrunc,fdatasync", "count=0")
        with counts(device, nowait_buffered=1, would_block=1, blocking_buffered=1):
            read(device, 1)
        tune(device, "inline", 0)
        with counts(device, nowait_buffered=1):
            read(device, 1)


@check("requests beside the others of their device")
def alone():
    low = attach(image(64, "disk"), block_size=BLOCK)
    run("mkfs.ext4", "-q", low.path)
    path = f"{mounted(low.path, 'place')}/image"
    with open(path, "wb") as file:
        file.write(bytes(MIB << 20))
        os.fsync(file.fileno())
    with attached(path, True) as device:
        with counts(device, blocking_alone=1):
            read(device, 1, 0, 512)


@check("discards and zeroes")
def discards():
    with attached(written("xfs", MIB), True) as device:
        with counts(device, discard_zero=2):
            run("blkdiscard", "-f", "-l", "1M", device)
            run("blkdiscard", "-f", "-z", "-l", "1M", device)


@check("errors")
def errors():
    place = f"{SCRATCH}/place"
    os.mkdir(place)
    run("mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", place)
    file = image(MIB, "place/image")
    with attached(file, False) as device:
        before = stats(device)
        with contextlib.suppress(OSError):
            write(device, 1024)
        equal("no space", stats(device)["error_nospc"] - before["error_nospc"], 1)
        os.truncate(file, 0)
        with contextlib.suppress(OSError):
            read(device, 1)
        equal("I/O errors", stats(device)["error_io"] - before["error_io"], 1)


@check("writes that wait for space")
def waiting():
    place = mounted("tmpfs", "place", "-t", "tmpfs", "-o", "size=1M")
    with attached(image(MIB, "place/image"), True) as device:
        tune(device, "enospc", "wait")
        before = stats(device)
        pid = forked(write, device, 300)
        wait_for(lambda: stats(device)["retry_nospc"] - before["retry_nospc"] > 2)
        equal("errors", stats(device)["error_nospc"], 0)
        run("mount", "-o", "remount,size=8M", place)
        equal("status of the writer", os.waitpid(pid, 0)[1], 0)
        equal("errors", stats(device)["error_nospc"], 0)


@contextlib.contextmanager
def served():
    """Yields the server of a FUSE file, and a device on the file with direct I/O."""
    server = fuse.Server(MIB)
    with attached(server.path, True) as device:
        yield server, device
    run("umount", server.place)


def grows(device, counter, function, *arguments):
    """Calls a function until a counter has grown."""
    before = stats(device)[counter]
    wait_for(lambda: function(*arguments) or stats(device)[counter] > before, 120)


@check("retries, and direct I/O that is refused")
def retries():
    with served() as (server, device):
        for error, counter in (
            (errno.EAGAIN, "retry_busy"),
            (errno.ENOMEM, "retry_memory"),
            (errno.EINVAL, "direct_refused"),
        ):
            server.fail(fuse.READ, error, every=2)
            grows(device, counter, read, device, 1)
            server.fail(fuse.READ, 0)
        equal("errors", sum(value for name, value in stats(device).items() if name.startswith("error_")), 0)


@check("operations that are not supported")
def unsupported():
    with served() as (server, device):
        server.fail(fuse.FALLOCATE, errno.EOPNOTSUPP)
        with counts(device, discard_zero=1, error_notsupp=1):
            run("blkdiscard", "-f", "-l", "1M", device)


def load(device, seconds):
    """Returns the command for a load of random reads."""
    fio = "fio", "--name=load", "--thread", "--ioengine=libaio", "--direct=1", "--iodepth=32", "--bs=4k"
    return *fio, f"--filename={device}", "--rw=randread", "--time_based", f"--runtime={seconds}"


for kind, counter in ("block", "helper_remap"), ("xfs", "helper_extent"):

    @check(f"requests of one task that a worker on another CPU submits: {counter}")
    def helped(kind=kind, counter=counter):
        if os.cpu_count() < 2:
            skip("there is one CPU")
        file = written(kind, MIB)
        with attached(file, True) as device:
            bypass(device, RAM[kind])
            grows(device, counter, run, *load(device, 1))


@check("requests whose extents are lost while they wait for a worker")
def lost():
    file = written("ext4", MIB)
    with attached(file, True) as device:
        tune(device, "inline", 0)

        def foreign():
            with open(file, "r+b"):
                time.sleep(0.1)
            read_until(device, "in use")

        with background(*load(device, 600)):
            grows(device, "extent_lost", foreign)


@check("they begin anew at each attach")
def reset():
    file = written("xfs", MIB)
    with attached(file, False) as device:
        read(device)
        assert any(stats(device).values())
    with attached(file, False) as again:
        equal("device", again, device)
        equal("counted", {name for name, value in stats(again).items() if value}, set())


@check("each name is in the documents")
def documented():
    with attached(image(), False) as device:
        names = stats(device)
    for document in "docs/abi/sysfs-block-rnull_loop", "dist/rnull_loop.4":
        with open(f"{os.path.dirname(__file__)}/../{document}", encoding="ascii") as file:
            text = file.read().replace("\\", "")
        missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
        equal(f"missing in {document}", missing, [])


if DRIVER != "rnull_loop":
    skip_all("the C driver has no statistics")
stop_udev()
run_checks()
