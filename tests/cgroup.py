#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""I/O through a loop device is charged to the cgroup of the submitter: the I/O to the disk below,
and the pages of the image's page cache. Direct I/O keeps the submitter's priority. A throttled
cgroup delays no other. If the driver's workers did the I/O in their own cgroup, every task could
escape its limits.

Needs a scratch disk at /dev/vda."""
import os
from pathlib import Path
from lib import *
from tracing import traced_on

DISK = "/dev/vda"
if not Path(DISK).is_block_device():
    skip_all(f"needs a scratch disk at {DISK}: scripts/vm --disk FILE")
CONTROLLERS = "+io +memory"
# The size of a transfer.
BLOCK = 64 << 10


def image_on_disk():
    """Makes an image on a file system on the disk, with all blocks allocated. The file system is
    mounted again, because the writeback of an inode is charged to the cgroup that dirtied it
    first."""
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", DISK)
    path = f"{mounted(DISK, 'outer')}/image"
    run("fallocate", "-l", "32M", path)
    noise(path, 32)
    run("umount", DISK)
    mounted(DISK, "outer")
    return path


def on_image(direct):
    """Attaches a new image, see attached()."""
    return attached(image_on_disk(), direct)


def moved(group, what, disk):
    """Returns the number of bytes that the cgroup has read from a disk ("rbytes") or written to it
    ("wbytes")."""
    with open(f"{group}/io.stat", encoding="ascii") as file:
        for line in file:
            device, *fields = line.split()
            if device == sysfs(disk, "dev"):
                return int(dict(field.split("=") for field in fields).get(what, 0))
    return 0


def at_least(what, got, wanted):
    assert got >= wanted, f"{what}: {got}, wanted {wanted} at least"


def read_in(group, device, count):
    command = ["dd", f"if={device}", "of=/dev/null", "iflag=direct", "bs=64k", f"count={count}", "status=none"]
    run(*in_cgroup(group, *command))


def write_in(group, path, count, *operands):
    command = ["dd", "if=/dev/zero", f"of={path}", "bs=64k", f"count={count}", *operands, "status=none"]
    run(*in_cgroup(group, *command))


def reading(group, device):
    """Reads, and checks that it is charged."""
    read_in(group, device, 64)
    equal("read from the device", moved(group, "rbytes", device), 64 * BLOCK)
    at_least("read from the disk", moved(group, "rbytes", DISK), 64 * BLOCK)


@check("direct I/O is charged to its cgroup")
def direct_io():
    with on_image(direct=True) as device, cgroup(CONTROLLERS) as group:
        reading(group, device)
        write_in(group, device, 128, "oflag=direct", "conv=fsync")
        equal("written to the device", moved(group, "wbytes", device), 128 * BLOCK)
        at_least("written to the disk", moved(group, "wbytes", DISK), 128 * BLOCK)


@check("I/O that fills the image's page cache is charged to its cgroup")
def buffered():
    """Writes are not checked here: the file system charges their writeback to the cgroup that
    changed the inode's times first, which is that of the worker."""
    with on_image(direct=False) as device, cgroup(CONTROLLERS) as group:
        reading(group, device)


@check("the image's page cache is charged to the cgroup that fills it")
def cache():
    with on_image(direct=False) as device, cgroup(CONTROLLERS) as group:
        read_in(group, device, 128)
        with open(f"{group}/memory.stat", encoding="ascii") as file:
            memory = dict(line.split() for line in file)
        at_least("cache of the group", int(memory["file"]), 128 * BLOCK)


@check("writeback of a file system on the device is charged to its cgroup")
def file_system():
    """The writeback of a file system on the device is charged to the writer, too."""

    def is_charged():
        """the writeback is charged to the writer"""
        run("sync")
        return moved(group, "wbytes", DISK) >= 128 * BLOCK

    with on_image(direct=True) as device:
        run("mkfs.ext4", "-q", device)
        place = mounted(device, "inner")
        with cgroup(CONTROLLERS) as group:
            write_in(group, f"{place}/file", 128)
            wait_for(is_charged, 30)
            run("umount", place)


def throttled(direct):
    """Reads beside a cgroup with a limit on its reads from the disk, which delays no other."""
    with on_image(direct) as device, cgroup(CONTROLLERS) as group:
        # From here on the disk has a record of the cgroup. Otherwise the write to io.max may make
        # one while it holds a lock of the queue, which lockdep reports (a fault of the kernel).
        read_in(group, device, 1)
        limit = f"{group}/io.max"
        write_text(limit, f"{sysfs(DISK, 'dev')} rbps=65536")
        load = ["fio", "--name=held", f"--filename={device}", "--ioengine=libaio", "--direct=1", "--iodepth=16",
                "--rw=read", "--bs=64k", "--size=16m", "--output-format=terse"]  # fmt: skip
        with background(*in_cgroup(group, *load)) as job:
            wait_for(lambda: moved(group, "rbytes", device) >= 16 * BLOCK)
            run("timeout", str(80 if SLOW else 20), "dd", f"if={device}", "of=/dev/null", "iflag=direct", "bs=64k",
                "skip=256", "count=256", "status=none")  # fmt: skip
            # As many as in 128 s; there are twice as many.
            read = moved(group, "rbytes", DISK)
            assert read <= 128 * BLOCK, f"the cgroup is not throttled: {read}"
            write_text(limit, f"{sysfs(DISK, 'dev')} rbps=max")
            equal("fio", job.wait(), 0)


for name, mode in ("on", True), ("off", False):

    @check(f"a throttled cgroup delays no other, direct I/O {name}")
    def not_delayed(mode=mode):
        throttled(mode)


@check("requests that another task dispatches for an I/O scheduler are charged to their cgroup")
def scheduled():
    """With an I/O scheduler, a task dispatches requests of other tasks, too: they are not charged
    to it."""
    with on_image(direct=True) as device:
        # Reads 64 MiB, by two jobs.
        load = ["fio", "--name=reads", f"--filename={device}", "--ioengine=libaio", "--direct=1", "--iodepth=32",
                "--iodepth_batch=8", "--rw=randread", "--bs=4k", "--size=32m", "--numjobs=2",
                "--thread", "--group_reporting", "--output-format=terse"]  # fmt: skip
        settle()
        queue = f"/sys/block/{os.path.basename(device)}/queue"
        write_text(f"{queue}/scheduler", "mq-deadline")
        write_text(f"{queue}/nr_requests", 8)
        # From here on, the mapping of the file's blocks is cached.
        run(*load)
        with cgroup(CONTROLLERS) as group:
            with background(*load) as other:
                run(*in_cgroup(group, *load))
                equal("fio", other.wait(), 0)
            below = moved(group, "rbytes", DISK)
            at_least("read from the device", moved(group, "rbytes", device), 64 << 20)
            equal("read from the disk", below, moved(group, "rbytes", device))


def priority(number, level, shown):
    """Checks that the disk's requests have the priority of the reader."""
    with on_image(direct=True) as device:
        requests = traced_on(
            DISK, "block_rq_issue", run, "ionice", "-c", number, "-n", level,
            "dd", f"if={device}", "of=/dev/null", "iflag=direct", "bs=4k", "count=16", "status=none",
        )  # fmt: skip
        equal(f"requests with {shown}", sum(shown in words for words in requests), 16)


@check("direct I/O keeps a priority of the real-time class")
def real_time():
    priority("1", "3", "rt,0,3")


@check("direct I/O keeps a priority of the best-effort class")
def best_effort():
    priority("2", "7", "be,0,7")


run_checks()
