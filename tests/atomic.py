#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Atomic writes of a device whose backing file is a block device that has them: the limits are
those of the disk at the place of the device, a write reaches the disk as one atomic write, and a
write that cannot is refused. Where it would be split, or go through a page cache, a power cut would
tear it."""
import contextlib
import errno
import glob
import mmap
import os
import re
import subprocess
from lib import *
from tracing import traced, traced_on

RWF_ATOMIC = 0x40
BETTER = "the C driver has no atomic writes"
KIB = 1024
# The limits of scsi_debug by default: units of 1 KiB to 64 KiB, aligned to 1 KiB.
NONE = (0, 0, 0, 0)


@contextlib.contextmanager
def disk(*parameters):
    """Yields a SCSI disk of 64 MiB with atomic writes."""
    run("modprobe", "scsi_debug", "dev_size_mb=64", "delay=0", "atomic_wr=1", *parameters)
    try:
        wait_for(lambda: os.path.exists(found()))
        settle()
        yield found()
    finally:
        release()
        settle()
        wait_for(is_unloaded, 20)


def found():
    names = glob.glob("/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*")
    return f"/dev/{os.path.basename(names[0])}" if names else "/dev/none"


def is_unloaded():
    return subprocess.run(["rmmod", "scsi_debug"], check=False, capture_output=True).returncode == 0


def limits(device):
    """Returns the shortest and the longest unit, the maximum of a request, and the boundary."""
    names = "unit_min_bytes", "unit_max_bytes", "max_bytes", "boundary_bytes"
    return tuple(int(sysfs(device, f"queue/atomic_write_{name}")) for name in names)


def units(smallest, largest):
    return smallest, largest, largest, 0


def opened(device):
    return Fd(device, os.O_RDWR | os.O_DIRECT)


def pattern(length, byte):
    memory = mmap.mmap(-1, length)
    memory.write(bytes([byte]) * length)
    return memory


def write(fd, position, length, byte=1):
    """Writes atomically; returns the length or minus the name of the error."""
    try:
        return os.pwritev(fd.fd, [pattern(length, byte)], position, RWF_ATOMIC)
    except OSError as error:
        return f"-{errno.errorcode[error.errno]}"


def read(path, position, length):
    with opened(path) as fd:
        memory = mmap.mmap(-1, length)
        equal("read", os.preadv(fd.fd, [memory], position), length)
        return memory[:]


def commands(function, *arguments):
    """Calls a function, and returns the commands that have written to the disk: whether they are
    atomic, the first block and the number of blocks."""
    written = []
    for record in traced("scsi/scsi_dispatch_cmd_start", function, *arguments):
        raw = bytes.fromhex(re.search(r"raw=([0-9a-f ]+)", record)[1])
        if raw[0] == 0x9C:
            written.append((True, int.from_bytes(raw[2:10], "big"), int.from_bytes(raw[12:14], "big")))
        elif raw[0] == 0x2A:
            written.append((False, int.from_bytes(raw[2:6], "big"), int.from_bytes(raw[7:9], "big")))
        elif raw[0] == 0x8A:
            written.append((False, int.from_bytes(raw[2:10], "big"), int.from_bytes(raw[10:14], "big")))
    return written


def reaches(device, below, position=0, start=0, length=None):
    """Checks that an atomic write, by default of the longest unit, reaches the disk as such."""
    length = length or limits(device)[1]
    with opened(device) as fd:
        wrote = commands(lambda: equal("written", write(fd, position, length), length))
    equal("commands", wrote, [(True, (start + position) // 512, length // 512)])
    equal("data", read(below, start + position, length), bytes([1]) * length)


def refuses(device, position, length, *wanted):
    """Checks that an atomic write fails, and does not reach the disk."""
    with opened(device) as fd:
        wrote = commands(lambda: contained(wanted or ("-EINVAL",), write(fd, position, length)))
    equal("commands", wrote, [])


def contained(wanted, got):
    assert got in wanted, f"got {got!r}, wanted one of {wanted}"


@check("the limits are those of the disk, and writes reach it", better=BETTER)
def whole_disk():
    with disk() as below, attached(below, True) as device:
        equal("limits of the disk", limits(below)[:2], (1 * KIB, 64 * KIB))
        equal("limits", limits(device), units(1 * KIB, 64 * KIB))
        for length in 1 * KIB, 4 * KIB, 64 * KIB:
            reaches(device, below, 1 << 20, length=length)
        tune(device, "inline", 0)
        reaches(device, below, 1 << 21)
        refuses(device, 0, 128 * KIB)
        refuses(device, 0, 512)


@check("a disk without atomic writes, or an image on one, has none")
def without():
    with disk("atomic_wr=0") as below, attached(below, True) as device:
        equal("limits", limits(device), NONE)
    with attached(image(1), True) as device:
        equal("limits", limits(device), NONE)


@check("an image on a disk with atomic writes has none")
def image_on_disk():
    with disk() as below:
        run("mkfs.ext4", "-q", *MKFS["ext4"], below)
        file = image(8, f"{mounted(below, 'outer')}/image")
        with attached(file, True) as device:
            equal("limits", limits(device), NONE)
            refuses(device, 0, 4096, "-ENOTSUP")


@check("an offset lowers the limits by its alignment, or disables atomic writes", better=BETTER)
def offsets():
    with disk() as below:
        for offset, wanted in (
            (1 << 20, units(1 * KIB, 64 * KIB)),
            (68 * KIB, units(1 * KIB, 4 * KIB)),
            (1 * KIB, units(1 * KIB, 1 * KIB)),
            (3 * 512, NONE),
        ):
            with attached(below, True, "-o", str(offset)) as device:
                equal(f"limits at {offset}", limits(device), wanted)
                if wanted == NONE:
                    refuses(device, 0, 4096, "-ENOTSUP")
                else:
                    reaches(device, below, 64 * KIB, offset)


@check("LOOP_SET_STATUS to another offset changes the limits", better=BETTER)
def moved():
    with disk() as below, attach(below, flags=DIRECT_IO) as fd:
        equal("limits", limits(fd.path), units(1 * KIB, 64 * KIB))
        for offset, wanted in (512, NONE), (4096, units(1 * KIB, 4 * KIB)), (0, units(1 * KIB, 64 * KIB)):
            equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(offset=offset)), 0)
            equal(f"limits at {offset}", limits(fd.path), wanted)
        reaches(fd.path, below)


@check("a partition, and one that is not aligned", better=BETTER)
def partition():
    with disk() as below:
        run("sfdisk", "-q", below, input="label: dos\nstart=2048,size=2048\nstart=4097,size=2048\n")
        wait_for(lambda: os.path.exists(f"{below}2"))
        settle()
        with attached(f"{below}1", True) as device:
            equal("limits", limits(device), units(1 * KIB, 64 * KIB))
            reaches(device, below, 64 * KIB, 1 << 20)
        with attached(f"{below}2", True) as device:
            equal("limits", limits(device), NONE)


@check("blocks of the device are not longer than units", better=BETTER)
def larger_blocks():
    with disk() as below, attach(below, flags=DIRECT_IO, block_size=4096) as fd:
        equal("limits", limits(fd.path), units(4 * KIB, 64 * KIB))
        equal("SET_BLOCK_SIZE", fd.ioctl(SET_BLOCK_SIZE, 512), 0)
        equal("limits", limits(fd.path), units(1 * KIB, 64 * KIB))


@check("a size limit refuses what exceeds it", better=BETTER)
def size_limit():
    with disk() as below, attached(below, True, "--sizelimit", str(24 * KIB)) as device:
        equal("limits", limits(device), units(1 * KIB, 64 * KIB))
        refuses(device, 16 * KIB, 16 * KIB)
        reaches(device, below, 16 * KIB, length=8 * KIB)


@check("without direct I/O there are none, with it again; none after the detach", better=BETTER)
def direct_io():
    with disk() as below:
        with attach(below) as fd:
            device = fd.path
            equal("limits", limits(device), NONE)
            equal("SET_DIRECT_IO", fd.ioctl(SET_DIRECT_IO, 1), 0)
            equal("limits", limits(device), units(1 * KIB, 64 * KIB))
            with opened(device) as early:
                equal("SET_DIRECT_IO", fd.ioctl(SET_DIRECT_IO, 0), 0)
                equal("limits", limits(device), NONE)
                equal("refused", write(early, 0, 4096), "-EINVAL")
            equal("SET_DIRECT_IO", fd.ioctl(SET_DIRECT_IO, 1), 0)
        detach(device)
        equal("limits", limits(device), NONE)


@check("LOOP_CHANGE_FD takes the limits of the other file", better=BETTER)
def changed():
    with disk() as below, attach(below, os.O_RDONLY, flags=DIRECT_IO | READ_ONLY) as fd:
        equal("limits", limits(fd.path), units(1 * KIB, 64 * KIB))
        other = image(64)
        for path, wanted in (other, NONE), (below, units(1 * KIB, 64 * KIB)):
            with Fd(path, os.O_RDONLY) as file:
                equal("CHANGE_FD", fd.ioctl(CHANGE_FD, file.fd), 0)
            equal(f"limits of {path}", limits(fd.path), wanted)


@check("a device on a device has the limits of the disk", better=BETTER)
def nested():
    with disk() as below, attached(below, True, "-o", str(8 * KIB)) as middle:
        with attached(middle, True, "-o", str(4 * KIB)) as device:
            equal("limits", limits(device), units(1 * KIB, 4 * KIB))
            reaches(device, below, 64 * KIB, 12 * KIB)


@check("without remapping, atomic writes are refused", better=BETTER)
def no_remap():
    with disk() as below, attached(below, True) as device:
        tune(device, "remap", 0)
        refuses(device, 64 * KIB, 64 * KIB)
        tune(device, "remap", 1)
        reaches(device, below)


@check("a disk that has become read-only gets none", better=BETTER)
def read_only():
    with disk() as below, attached(below, True) as device:
        run("blockdev", "--setro", below)
        try:
            refuses(device, 0, 4096)
        finally:
            run("blockdev", "--setrw", below)
        reaches(device, below)


@check("pages of the disk are written back and dropped, not torn", better=BETTER)
def cached_pages():
    with disk() as below, attached(below, True) as device:
        with Fd(below) as cached, opened(device) as fd:
            for byte in range(1, 5):
                # Dirty pages around and below the write, and clean ones far away.
                os.pwrite(cached.fd, bytes([100 + byte]) * (24 * KIB), 0)
                os.pread(cached.fd, 4096, 1 << 20)
                wrote = commands(lambda: equal("written", write(fd, 8 * KIB, 8 * KIB, byte), 8 * KIB))
                contained(wrote, (True, 16, 16))
                edge, middle = bytes([100 + byte]) * (8 * KIB), bytes([byte]) * (8 * KIB)
                equal("cached data", os.pread(cached.fd, 24 * KIB, 0), edge + middle + edge)
                os.fsync(cached.fd)
                equal("data", read(device, 0, 24 * KIB), edge + middle + edge)


@check("merged atomic writes reach the disk one by one", better=BETTER)
def merged():
    with disk() as below, attached(below, True) as device:
        write_text(f"/sys/block/{os.path.basename(device)}/queue/scheduler", "none")

        def load():
            run("fio", "--name=atomic", f"--filename={device}", "--ioengine=libaio", "--direct=1", "--atomic=1",
                "--rw=write", "--bs=4k", "--size=4m", "--iodepth=16", "--iodepth_batch_submit=16",
                "--iodepth_batch_complete_min=16", *VERIFIED)  # fmt: skip

        assert traced_on(device, "block_bio_backmerge", load), "nothing was merged"
        lower = traced_on(below, "block_bio_queue", load)
        writes = [words for words in lower if words[0].startswith("W")]
        equal("lengths of bios", {words[3] for words in writes}, {"8"})
        equal("bios", len(writes), 1024)
        equal("errors", sum(int(value) for name, value in stats(device) if name.startswith("error")), 0)


def stats(device):
    return [line.split() for line in sysfs(device, "rnull_loop/stats").splitlines()]


@check("under load, with readers of the disk that fill its page cache", better=BETTER)
def load_with_readers():
    with disk() as below, attached(below, True) as device:
        with background("sh", "-c", f"while :; do cat {below} >/dev/null; done"):
            run("fio", "--name=atomic", f"--filename={device}", "--ioengine=libaio", "--direct=1", "--atomic=1",
                "--rw=randwrite", "--bs=8k", "--size=16m", "--iodepth=8",
                f"--loops={ROUNDS}", *VERIFIED)  # fmt: skip
        count("bytes_verified", ROUNDS * 16 << 20)


run_checks()
