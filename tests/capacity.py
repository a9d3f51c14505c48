#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""LOOP_SET_CAPACITY reads the size of the file again: after an image has grown or shrunk, the size
of the device follows, even while it is in use, and a change event reports it."""
import os
import threading
from lib import *

MIB = 2048


def resize(path, mib):
    os.truncate(path, mib << 20)


def sectors(fd):
    return int(sysfs(fd.path, "size"))


def set_capacity(fd):
    equal("SET_CAPACITY", fd.ioctl(SET_CAPACITY), 0)
    return sectors(fd)


def grows_and_shrinks(flags):
    path = numbered_image(2)
    with attach(path, flags=flags) as fd:
        resize(path, 4)
        equal("size before", sectors(fd), 2 * MIB)
        equal("size", set_capacity(fd), 4 * MIB)
        equal("written at the end", os.pwrite(fd.fd, b"tail" * 128, (4 << 20) - 512), 512)
        os.fsync(fd.fd)
        with open(path, "rb") as file:
            file.seek(-512, os.SEEK_END)
            equal("the file's end", file.read(), b"tail" * 128)
        equal("sector", number_at(fd, 2 * MIB - 1), 2 * MIB - 1)
        resize(path, 1)
        equal("size", set_capacity(fd), MIB)
        equal("sector", number_at(fd, MIB - 1), MIB - 1)
        equal("read behind the end", os.pread(fd.fd, 512, 1 << 20), b"")
        resize(path, 0)
        equal("size", set_capacity(fd), 0)
        resize(path, 3)
        equal("size", set_capacity(fd), 3 * MIB)
        equal("sector", number_at(fd, 2 * MIB + 1), 0)


@check("the size follows a file that grows and shrinks: buffered")
def buffered():
    grows_and_shrinks(0)


@check("the size follows a file that grows and shrinks: direct")
def direct():
    grows_and_shrinks(DIRECT_IO)


@check("offset and size limit stay in effect")
def offset_and_limit():
    path = image(2)
    with attach(path, offset=1 << 20, sizelimit=2 << 20) as fd:
        for mib, wanted in (2, MIB), (3, 2 * MIB), (8, 2 * MIB), (1, 0), (0, 0), (2, MIB):
            resize(path, mib)
            equal(f"size with {mib} MiB", set_capacity(fd), wanted)
        os.truncate(path, (1 << 20) + 1023)
        equal("size with half a sector", set_capacity(fd), 1)
        info = status(fd)
        equal("offset and limit", (info.offset, info.sizelimit), (1 << 20, 2 << 20))


@check("the size of a loop device below is taken over")
def loop_below():
    path = image(2)
    with attach(path) as low, attach(low.path) as high:
        resize(path, 3)
        equal("high", set_capacity(high), 2 * MIB)
        equal("low", set_capacity(low), 3 * MIB)
        equal("high", set_capacity(high), 3 * MIB)
        os.pwrite(high.fd, b"tail" * 128, (3 << 20) - 512)
        os.fsync(high.fd)
        with open(path, "rb") as file:
            file.seek(-512, os.SEEK_END)
            equal("the file's end", file.read(), b"tail" * 128)


@check("the size of a device-mapper device below is taken over")
def mapper_below():
    with attach(image(4)) as base:
        run("dmsetup", "create", "below", "--table", f"0 {MIB} linear {base.path} 0")
        try:
            settle()
            with attach("/dev/mapper/below") as fd:
                equal("size", sectors(fd), MIB)
                for size in 3 * MIB, 2 * MIB:
                    run("dmsetup", "reload", "below", "--table", f"0 {size} linear {base.path} 0")
                    run("dmsetup", "resume", "below")
                    equal("size", set_capacity(fd), size)
                device = fd.path
            detach(device)
        finally:
            run("dmsetup", "remove", "--retry", "below")


@check("a mounted file system grows with its image")
def while_mounted():
    path = image(8)
    run("mkfs.ext4", "-q", path)
    with attach(path) as fd:
        place = mounted(fd.path, "mounted")
        with open(f"{place}/noise", "wb") as file:
            noise = os.urandom(1 << 20)
            file.write(noise)
        resize(path, 16)
        equal("size", set_capacity(fd), 16 * MIB)
        run("resize2fs", fd.path)
        assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize > 12 << 20
        with open(f"{place}/more", "wb") as file:
            file.write(noise * 6)
        with open(f"{place}/noise", "rb") as file:
            equal("noise", file.read() == noise, True)
        run("umount", place)
        run("e2fsck", "-fn", fd.path)


@check(
    "data that was truncated is not read when the file is as long again",
    better="the C driver leaves it in the page cache of the device",
)
def cut_off():
    path = numbered_image(2)
    with attach(path) as fd:
        equal("sector", number_at(fd, 3 * MIB // 2), 3 * MIB // 2)
        for mib in 1, 2:
            resize(path, mib)
            equal("size", set_capacity(fd), mib * MIB)
        equal("sector", number_at(fd, 3 * MIB // 2), 0)


@check(
    "data appended in the page of the old end is read, and not overwritten",
    better="the C driver leaves zeroes in the page cache of the device, and writes them back with the page",
)
def appended():
    path = image(1)
    end = (1 << 20) + 512
    os.truncate(path, end)
    with attach(path) as fd:
        for write in False, True:
            equal("sector", number_at(fd, MIB), 0)
            if write:
                os.pwrite(fd.fd, b"last" * 128, 1 << 20)
            with open(path, "r+b") as file:
                file.seek(end)
                file.write(b"more" * 896)
            set_capacity(fd)
            if not write:
                equal("appended", os.pread(fd.fd, 3584, end) == b"more" * 896, True)
                os.pwrite(fd.fd, b"last" * 128, 1 << 20)
            os.fsync(fd.fd)
            with open(path, "rb") as file:
                file.seek(1 << 20)
                equal("file", file.read() == b"last" * 128 + b"more" * 896, True)
            os.truncate(path, 1 << 20)
            os.truncate(path, end)
            set_capacity(fd)


@check("an unchanged size does not block, even if the image's file system is frozen")
def frozen():
    disk = image(16, "disk")
    run("mkfs.ext4", "-q", disk)
    place = mounted(disk, "place", "-o", "loop")
    with attach(image(1, "place/image")) as fd:
        settle()
        run("fsfreeze", "-f", place)
        writer = threading.Thread(target=os.fsync, args=(fd.fd,))
        caller = threading.Thread(target=lambda: equal("size", set_capacity(fd), MIB))
        try:
            os.pwrite(fd.fd, b"data" * 1024, 0)
            writer.start()
            writer.join(0.4)
            assert writer.is_alive(), "written to a frozen file system"
            caller.start()
            caller.join(10)
            assert not caller.is_alive(), "LOOP_SET_CAPACITY waits"
        finally:
            run("fsfreeze", "-u", place)
        writer.join()
    detach(fd.path)
    run("umount", place)


@check("a change event is sent, with RESIZE only for a new size")
def event():
    path = image(2)
    with attach(path) as fd, Events() as events:
        settle()
        events.of(fd.path)
        resize(path, 3)
        for wanted in "1", None:
            set_capacity(fd)
            found = [(event["ACTION"], event.get("RESIZE")) for event in events.of(fd.path)]
            equal("events", found, [("change", wanted)])


@check("the argument is ignored, and a partition's node works, too")
def argument():
    path = image(2)
    with attach_partitioned(path, (64, 64)) as fd:
        with Fd(f"{fd.path}p1") as partition:
            for mib, argument in (3, 8), (4, (1 << 64) - 1), (5, 1 << 63):
                resize(path, mib)
                equal("SET_CAPACITY", partition.ioctl(SET_CAPACITY, argument), 0)
                equal("size", sectors(fd), mib * MIB)


@check("a claim of another opener does not matter")
def claimed():
    path = image(2)
    with attach(path) as fd, Fd(fd.path, os.O_RDONLY | os.O_EXCL):
        resize(path, 3)
        equal("size", set_capacity(fd), 3 * MIB)


run_checks()
