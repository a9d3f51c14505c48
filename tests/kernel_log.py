#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The driver tells an administrator in the kernel's log when a device is not what it seems to be,
once, by its name; and the manual page has each line."""
import contextlib
import errno
import fuse
import glob
import mmap
import os
import re
from lib import *

BLOCK = 4096
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def messages(log, device):
    """Returns the lines of the driver about a device, without its name."""
    start = f"rnull_loop: {os.path.basename(device)}: "
    lines = [line.split(";", 1)[1].split("\n", 1)[0] for line in log.lines(start)]
    return [line.removeprefix(start) for line in lines if "capacity change" not in line]


def transfer(device, block, write=False):
    with Fd(device, os.O_RDWR | os.O_DIRECT) as fd, contextlib.suppress(OSError):
        if write:
            os.pwrite(fd.fd, mmap.mmap(-1, BLOCK), block * BLOCK)
        else:
            os.preadv(fd.fd, [mmap.mmap(-1, BLOCK)], block * BLOCK)


@check("changes of the size: at most 10 lines in 5 seconds")
def sizes():
    path, log, began = image(1), Log(), time.monotonic()
    for _ in range(100):
        with attached(path, False):
            pass
    periods = (time.monotonic() - began) // 5 + 2
    lines = log.lines("detected capacity change from 0 to 2048")
    assert 0 < len(lines) <= 10 * periods, f"{len(lines)} lines in {periods} periods"


@check("a file that fails: one line in a minute")
def failing():
    server = fuse.Server(4)
    with attached(server.path, True) as device:
        server.fail(fuse.WRITE, errno.ENXIO)
        log = Log()
        for block in 3, 4, 5:
            transfer(device, block, write=True)
        equal("lines", messages(log, device), ["a write of the backing file at byte 12288 fails (rc=-6)"])
        server.fail(fuse.WRITE, 0)
    run("umount", server.place)


@check("a file that has become shorter, and one whose file system is full")
def short_and_full():
    place = f"{SCRATCH}/place"
    os.mkdir(place)
    run("mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", place)
    first, second = image(4, "place/first"), image(4, "place/second")
    log = Log()
    with attached(first, False) as device:
        os.truncate(first, 0)
        transfer(device, 1)
        equal("short", messages(log, device), ["a read of the backing file at byte 4096 fails (rc=-5)"])
    with attached(second, False) as device:
        for block in range(300):
            transfer(device, block, write=True)
        lines = messages(log, device)
        equal("full", [re.sub("byte [0-9]+", "byte N", line) for line in lines],
              ["a write of the backing file at byte N fails (rc=-28)"])  # fmt: skip


@check("direct I/O that was asked for, and is not used")
def dropped():
    low = attach(image(64, "disk"), block_size=BLOCK)
    run("mkfs.ext4", "-q", low.path)
    path = f"{mounted(low.path, 'place')}/image"
    image(1, path)
    log = Log()
    with attach(path, offset=512, flags=DIRECT_IO) as fd:
        equal("used", sysfs(fd.path, "loop/dio"), "0")
        equal("lines", messages(log, fd.path), ["direct I/O is off: the offset is not in whole blocks of direct I/O"])
    detach(fd.path)
    with attached(path, True) as device:
        equal("used", sysfs(device, "loop/dio"), "1")
        equal("lines", messages(log, device), [])


@check("discards that the file does not support")
def discards():
    server = fuse.Server(4)
    with attached(server.path, True) as device:
        server.fail(fuse.FALLOCATE, errno.EOPNOTSUPP)
        log = Log()
        run("blkdiscard", "-l", "1M", device)
        wait_for(lambda: sysfs(device, "queue/discard_max_bytes") == "0")
        equal("lines", messages(log, device), ["the backing file cannot free blocks; discards are off now"])
    run("umount", server.place)


@check("an image whose file system gives no leases")
def refused():
    disk = backing("block")
    run("mkfs.ext4", "-q", "-e", "remount-ro", disk)
    place = mounted(disk, "place")
    file = image(4, "place/image")
    noise(file, 4)
    with attached(file, True) as device:
        read_until(device, "in use")
        log = Log()
        write_text(f"/sys/fs/ext4/{os.path.basename(disk)}/trigger_fs_error", "test")
        wait_for(lambda: transfer(device, 0, write=True) or extents_state(device) == "refused", 20)
        read_all(device)
        lines = messages(log, device)
        lost = "requests cannot bypass the file system of the image: it has no leases, or cannot be synced"
        equal("lines", [line for line in lines if "fails" not in line], [lost])
    run("umount", place)


@check("each line is in the manual page")
def documented():
    with open(f"{ROOT}/dist/rnull_loop.4", encoding="ascii") as file:
        manual = re.sub(r'["\\]', "", file.read())
    missing = []
    sources = glob.glob(f"{ROOT}/*.rs") + glob.glob(f"{ROOT}/*/**/*.rs", recursive=True)
    for source in sources:
        with open(source, encoding="utf-8") as file:
            texts = re.findall(r'pr_\w+!\(\s*"((?:[^"\\]|\\.)*)"', file.read())
        for text in texts:
            words = max(re.split(r"\{[^}]*\}|\\n|;", text), key=len).strip(" :()")
            if words not in manual:
                missing.append(f"{os.path.basename(source)}: {words}")
    equal("missing", missing, [])


if DRIVER != "rnull_loop":
    skip_all("the C driver has other lines")
stop_udev()
run_checks()
