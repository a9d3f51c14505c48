#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""LOOP_SET_BLOCK_SIZE changes the size of the logical blocks of a bound device. All interfaces
report the same size, no data is lost or stale, a device in use keeps its size, and an invalid size
changes nothing."""
import mmap
import os
import subprocess
from lib import *

SIZES = [512 << n for n in range(8)]
WRONG = [1, 256, 511, 513, 1023, 1234, 1536, 4095, 4097, 131072, 1 << 31, 0xFFFFFFFF]


def block_size(fd, physical=None):
    """Returns the block size. All attributes agree, except that direct I/O may have larger physical
    blocks."""
    size = int(run("blockdev", "--getss", fd.path))
    equal("logical_block_size", sysfs(fd.path, "queue/logical_block_size"), str(size))
    for name in "physical_block_size", "minimum_io_size":
        equal(name, sysfs(fd.path, f"queue/{name}"), str(physical or size))
    return size


def set_size(fd, size, physical=None):
    equal(f"SET_BLOCK_SIZE {size}", fd.ioctl(SET_BLOCK_SIZE, size), 0)
    return block_size(fd, physical)


def same_in_file(path, place, data):
    with open(path, "rb") as file:
        file.seek(place)
        equal(f"the file at {place} holds what was written", file.read(len(data)) == data, True)


def content_after(flags):
    """Reads and writes by direct I/O with blocks of every size."""
    path = numbered_image(2)
    with attach(path, flags=flags) as fd, Fd(fd.path, os.O_RDWR | os.O_DIRECT) as direct:
        for turn, size in enumerate(SIZES + SIZES[::-1]):
            equal("block size", set_size(fd, size), size)
            buffer = mmap.mmap(-1, size)
            equal("read", os.preadv(direct.fd, [buffer], size), size)
            equal("number", int.from_bytes(buffer[:8], "little"), size >> 9)
            place = (1 << 20) + size * (turn % 4)
            buffer[:] = bytes([turn + 1]) * size
            equal("written", os.pwritev(direct.fd, [buffer], place), size)
            same_in_file(path, place, buffer[:])
            if size > 512:
                try:
                    os.preadv(direct.fd, [memoryview(buffer)[:512]], 0)
                    raise AssertionError(f"512 bytes were read of blocks of {size}")
                except OSError as error:
                    equal("less than a block", errno.errorcode[error.errno], "EINVAL")


@check("blocks larger than a page through the page cache, after the device was closed")
def cached():
    path = numbered_image(2)
    fd = attach(path)
    for size in 8192, 65536, 512:
        equal("block size", set_size(fd, size), size)
        # The page cache keeps its own block size until the last close.
        settle()
        fd.close()
        device, fd = fd.path, Fd(fd.path)
        fd.path = device
        equal("sector", number_at(fd, 3), 3)
        os.pwrite(fd.fd, bytes([7]) * 700, (1 << 20) + size)
        os.fsync(fd.fd)
        same_in_file(path, (1 << 20) + size, bytes([7]) * 700)
    fd.close()


@check("512 bytes to 64 KiB, with the data in its place: buffered")
def buffered():
    content_after(0)


@check("512 bytes to 64 KiB, with the data in its place: direct")
def direct():
    content_after(DIRECT_IO)


@check("dirty pages are written back first")
def dirty():
    path = image(4)
    with attach(path) as fd:
        for turn, size in enumerate((1024, 2048, 4096, 512) * 2):
            data = bytes([turn + 1]) * (1 << 19)
            os.pwrite(fd.fd, data, turn << 19)
            equal("block size", set_size(fd, size), size)
            same_in_file(path, turn << 19, data)


@check("no stale data is read afterwards")
def stale():
    path = numbered_image()
    with attach(path) as fd:
        equal("sector", number_at(fd, 5), 5)
        with open(path, "r+b") as file:
            file.seek(5 * 512)
            file.write((777).to_bytes(512, "little"))
        equal("block size", set_size(fd, 1024), 1024)
        equal("sector", number_at(fd, 5), 777)


@check("an invalid size: EINVAL, and nothing changes")
def wrong():
    path = numbered_image()
    with attach(path, flags=DIRECT_IO) as fd:
        for good in 4096, 512:
            equal("block size", set_size(fd, good), good)
            for size in WRONG:
                equal(f"{size}", fd.ioctl(SET_BLOCK_SIZE, size), "-EINVAL")
                equal("block size", block_size(fd), good)
                equal("flags", status(fd).flags, DIRECT_IO)
                # The queue is not frozen any more.
                equal("sector", number_at(fd, 9), 9)


@check("invalid and valid sizes in turn, with I/O in between")
def in_turn():
    with attach(numbered_image()) as fd:
        for size, now in (4096, 4096), (2048, 2048), (1234, 2048), (1024, 1024), (512, 512):
            outcome = fd.ioctl(SET_BLOCK_SIZE, size)
            equal(f"{size}", outcome, 0 if size == now else "-EINVAL")
            equal("block size", block_size(fd), now)
            equal("sector", number_at(fd, 9), 9)
            os.pwrite(fd.fd, (9).to_bytes(512, "little"), 9 * 512)
            os.fsync(fd.fd)


@check("the argument is truncated to 32 bits")
def cut():
    with attach(image()) as fd:
        for size in 1024, 4096, 512:
            equal("block size", set_size(fd, size | 1 << 32), size)
            equal("block size", set_size(fd, size | 1 << 63), size)
            equal("wrong", fd.ioctl(SET_BLOCK_SIZE, 1 << 40 | 513), "-EINVAL")
            equal("block size", block_size(fd), size)
        equal("block size", set_size(fd, 2048), 2048)
        equal("0 in 32 bits", set_size(fd, 7 << 32), 512)


@check("0 is the default: 512, with direct I/O too", better="with direct I/O the C driver uses the file's alignment")
def default():
    with attach(image(), block_size=4096) as low:
        with attach(low.path) as high:
            equal("buffered", set_size(high, 4096), 4096)
            equal("buffered", set_size(high, 0), 512)
            equal("buffered", set_size(high, 4096), 4096)
            equal("SET_DIRECT_IO", high.ioctl(SET_DIRECT_IO, 1), 0)
            equal("direct", set_size(high, 8192), 8192)
            equal("direct", set_size(high, 0, 4096), 512)
            equal("flags", status(high).flags, DIRECT_IO)


@check("direct I/O stays on with blocks smaller than the file's, and no data is lost", better="the C driver ends direct I/O")
def direct_stays():
    path = numbered_image()
    with attach(path, block_size=4096) as low:
        with attach(low.path, block_size=4096, flags=DIRECT_IO) as high:
            equal("flags", status(high).flags, DIRECT_IO)
            os.pwrite(high.fd, (99).to_bytes(4096, "little"), 8 * 4096)
            equal("block size", set_size(high, 512, 4096), 512)
            equal("flags", status(high).flags, DIRECT_IO)
            equal("loop/dio", sysfs(high.path, "loop/dio"), "1")
            equal("sector", number_at(high, 64), 99)
            with Fd(high.path, os.O_RDWR | os.O_DIRECT) as fd:
                buffer = mmap.mmap(-1, 512)
                buffer[:8] = (33).to_bytes(8, "little")
                equal("written", os.pwritev(fd.fd, [buffer], 33 * 512), 512)
            equal("before", number_at(high, 32), 32)
            equal("written", number_at(high, 33), 33)
            equal("block size", set_size(high, 4096), 4096)
            equal("flags", status(high).flags, DIRECT_IO)
    with open(path, "rb") as file:
        file.seek(64 * 512)
        equal("the file", int.from_bytes(file.read(8), "little"), 99)


@check("claimed by another opener: EBUSY; the owner of the claim may change it")
def claimed():
    with attach(image()) as fd:
        settle()
        with Fd(fd.path, os.O_RDWR | os.O_EXCL) as owner:
            equal("other", fd.ioctl(SET_BLOCK_SIZE, 4096), "-EBUSY")
            equal("other, as it is", fd.ioctl(SET_BLOCK_SIZE, 512), "-EBUSY")
            equal("other, wrong", fd.ioctl(SET_BLOCK_SIZE, 513), "-EBUSY")
            equal("block size", block_size(fd), 512)
            equal("owner", owner.ioctl(SET_BLOCK_SIZE, 4096), 0)
            equal("block size", block_size(fd), 4096)
            equal("owner, wrong", owner.ioctl(SET_BLOCK_SIZE, 513), "-EINVAL")
            equal("owner", owner.ioctl(SET_BLOCK_SIZE, 512), 0)
        equal("afterwards", set_size(fd, 1024), 1024)


@check("mounted: EBUSY")
def while_mounted():
    path = image(8)
    run("mkfs.ext4", "-q", path)
    with attach(path) as fd:
        place = mounted(fd.path, "mounted")
        equal("SET_BLOCK_SIZE", fd.ioctl(SET_BLOCK_SIZE, 4096), "-EBUSY")
        equal("block size", block_size(fd), 512)
        run("umount", place)
        equal("block size", set_size(fd, 4096), 4096)


@check("with a partition of it mounted, or by a partition's node while the whole disk is claimed: EBUSY")
def partitions():
    path = image(8)
    with attach_partitioned(path, (2048, 8192)) as fd:
        run("mkfs.ext2", "-q", f"{fd.path}p1")
        place = mounted(f"{fd.path}p1", "mounted")
        equal("the whole", fd.ioctl(SET_BLOCK_SIZE, 1024), "-EBUSY")
        run("umount", place)
        with Fd(f"{fd.path}p1") as partition:
            settle()
            with Fd(fd.path, os.O_RDONLY | os.O_EXCL):
                equal("the partition", partition.ioctl(SET_BLOCK_SIZE, 1024), "-EBUSY")
            equal("the partition", partition.ioctl(SET_BLOCK_SIZE, 1024), 0)
            equal("block size", block_size(fd), 1024)


@check(
    "by a partition's node with another partition mounted: EBUSY",
    better="the C driver claims only the partition, and the block size of a mounted file system's device changes",
)
def sibling():
    path = image(16)
    with attach_partitioned(path, (2048, 8192), (12288, 8192)) as fd:
        run("mkfs.ext2", "-q", f"{fd.path}p1")
        place = mounted(f"{fd.path}p1", "mounted")
        settle()
        for flags in 0, os.O_EXCL:
            with Fd(f"{fd.path}p2", os.O_RDWR | flags) as partition:
                equal("the sibling", partition.ioctl(SET_BLOCK_SIZE, 4096), "-EBUSY")
        equal("block size", block_size(fd), 512)
        run("umount", place)


@check(
    "dirty pages of a partition are written back with the old block size",
    better="the C driver writes back only the page cache of the whole disk",
)
def cached_partition():
    path = image(2)
    with attach_partitioned(path, (64, 63)) as fd, Fd(f"{fd.path}p1") as partition:
        os.pwrite(partition.fd, b"new!" * 128, 512)
        equal("SET_BLOCK_SIZE", fd.ioctl(SET_BLOCK_SIZE, 4096), 0)
        os.fsync(partition.fd)
    with open(path, "rb") as file:
        file.seek(65 * 512)
        equal("the file", file.read(512) == b"new!" * 128, True)


@check("no claim is left behind after success or failure")
def claim_given_back():
    with attach(image()) as fd:
        settle()
        for size in 4096, 4096, 513, 0:
            fd.ioctl(SET_BLOCK_SIZE, size)
            with Fd(fd.path, os.O_RDWR | os.O_EXCL):
                pass
        settle()
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
        equal("SET_BLOCK_SIZE", fd.ioctl(SET_BLOCK_SIZE, 4096), "-ENXIO")
        device = fd.path
    wait_for(lambda: not is_bound(device))
    with Fd(device, os.O_RDWR | os.O_EXCL):
        pass


@check("unbound: ENXIO, but EBUSY when the device is claimed")
def unbound():
    device = free_device()
    with Fd(device) as fd:
        for size in 0, 512, 513, 4096:
            equal(f"{size}", fd.ioctl(SET_BLOCK_SIZE, size), "-ENXIO")
        settle()
        with Fd(device, os.O_RDWR | os.O_EXCL) as owner:
            equal("other", fd.ioctl(SET_BLOCK_SIZE, 4096), "-EBUSY")
            equal("owner", owner.ioctl(SET_BLOCK_SIZE, 4096), "-ENXIO")


@check("the next image has blocks of 512 bytes")
def next_one():
    path = image()
    with attach(path) as fd:
        device = fd.path
        equal("block size", set_size(fd, 4096), 4096)
    detach(device)
    equal("unbound", sysfs(device, "queue/logical_block_size"), "512")
    with attach(path) as fd:
        equal("device", fd.path, device)
        equal("block size", block_size(fd), 512)


@check("verified I/O goes on while the size changes back and forth")
def under_fio():
    with attach(image(32), flags=DIRECT_IO) as fd:
        fio = subprocess.Popen(
            ["fio", "--name=blocks", f"--filename={fd.path}", "--size=8m", "--rw=randwrite"]
            + ["--bs=4k", *VERIFIED]
            + ["--direct=1", "--ioengine=libaio", "--iodepth=16", "--runtime=4", "--time_based"]
            + ["--verify_backlog=256"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        turns, changed = 0, 0
        while fio.poll() is None:
            turns += 1
            outcome = fd.ioctl(SET_BLOCK_SIZE, SIZES[turns % 4])
            assert outcome in (0, "-EBUSY"), outcome
            changed += outcome == 0
        equal(f"fio's status: {fio.communicate()[0]}", fio.returncode, 0)
        assert changed > 5, f"changed {changed} times"


run_checks()
