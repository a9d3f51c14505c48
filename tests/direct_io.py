#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""LOOP_SET_DIRECT_IO switches between the page cache of the file and direct I/O while the device is
in use: no write is lost, no stale data is read, and a file without direct I/O is refused."""
import os
import subprocess
from lib import *


def direct(fd):
    """Returns whether direct I/O is on. All interfaces report the same."""
    on = bool(status(fd).flags & DIRECT_IO)
    equal("loop/dio", sysfs(fd.path, "loop/dio"), str(int(on)))
    return on


def switch(fd, argument):
    equal(f"SET_DIRECT_IO {argument}", fd.ioctl(SET_DIRECT_IO, argument), 0)
    return direct(fd)


def move(fd, offset):
    # udev's reads during the change may stay in the page cache of the C driver.
    settle()
    equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(offset=offset)), 0)


@check("direct I/O is switched on and off, and an unchanged value is no error")
def on_and_off():
    with attach(numbered_image()) as fd:
        equal("at first", direct(fd), False)
        for argument, wanted in (0, False), (1, True), (1, True), (0, False), (0, False), (2, True):
            equal("direct I/O", switch(fd, argument), wanted)
            equal("sector", number_at(fd, 77), 77)


@check("every argument except 0 switches it on")
def arguments():
    with attach(image()) as fd:
        for argument in 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1:
            equal("on", switch(fd, argument), True)
            equal("off", switch(fd, 0), False)


@check("a misaligned offset: EINVAL, and direct I/O stays off")
def misaligned_offset():
    with attach(numbered_image(), offset=513) as fd:
        equal("SET_DIRECT_IO", fd.ioctl(SET_DIRECT_IO, 1), "-EINVAL")
        equal("direct I/O", direct(fd), False)
        equal("off", switch(fd, 0), False)
        move(fd, 512)
        equal("on", switch(fd, 1), True)
        equal("sector", number_at(fd, 5), 6)
        move(fd, 513)
        equal("dropped", direct(fd), False)
        move(fd, 512)
        equal("does not come back by itself", direct(fd), False)
        equal("sector", number_at(fd, 5), 6)


LARGE_BLOCKS = "the C driver wants blocks as large as those of the disk"


@check("blocks may be smaller than those of the disk below", better=LARGE_BLOCKS)
def small_blocks():
    with attach(numbered_image(), block_size=4096) as low:
        with attach(low.path, block_size=512) as high:
            equal("on", switch(high, 1), True)
            equal("sector", number_at(high, 5), 5)
            equal("off", switch(high, 0), False)
            equal("SET_BLOCK_SIZE", high.ioctl(SET_BLOCK_SIZE, 4096), 0)
            equal("on", switch(high, 1), True)
            equal("sector", number_at(high, 5), 5)


@check("blocks may be smaller than those of the disk below the file's file system", better=LARGE_BLOCKS)
def small_blocks_of_file_system():
    with attach(image(32), block_size=4096) as low:
        run("mkfs.ext4", "-q", low.path)
        mounted(low.path, "place")
        with attach(numbered_image(1, "place/image")) as high:
            equal("on", switch(high, 1), True)
            equal("sector", number_at(high, 5), 5)
            equal("SET_BLOCK_SIZE", high.ioctl(SET_BLOCK_SIZE, 4096), 0)
            equal("direct I/O", direct(high), True)
            equal("sector", number_at(high, 5), 5)
            device = high.path
        detach(device)
        run("umount", f"{SCRATCH}/place")


@check("a file without direct I/O: EINVAL")
def impossible():
    with attach("/proc/version", mode=os.O_RDONLY) as fd:
        equal("SET_DIRECT_IO", fd.ioctl(SET_DIRECT_IO, 1), "-EINVAL")
        equal("direct I/O", direct(fd), False)


@check("other writes to the file are read after the switch to direct I/O, synced or not")
def file_written():
    path = image(32)
    run("mkfs.ext4", "-q", path)
    place = mounted(path, "place", "-o", "loop")
    below = numbered_image(4, "place/image")
    with attach(below) as fd:
        equal("sector", number_at(fd, 9), 9)
        with open(below, "r+b") as file:
            file.seek(100 * 512)
            file.write((12345).to_bytes(512, "little"))
        equal("on", switch(fd, 1), True)
        equal("sector", number_at(fd, 100), 12345)
        device = fd.path
    detach(device)
    run("umount", place)


@check("writes before, between and after switches are in the file")
def nothing_lost():
    path = image(8)
    with attach(path) as fd:
        for turn in range(16):
            os.pwrite(fd.fd, bytes([turn + 1]) * (1 << 18), turn << 18)
            switch(fd, (turn + 1) % 2)
        os.fsync(fd.fd)
        for turn in range(16):
            wanted = bytes([turn + 1]) * (1 << 18)
            equal("read", os.pread(fd.fd, 1 << 18, turn << 18) == wanted, True)
        with open(path, "rb") as file:
            for turn in range(16):
                equal("file", file.read(1 << 18) == bytes([turn + 1]) * (1 << 18), True)


def under_fio(*options):
    path = image(32)
    with attach(path) as fd:
        fio = subprocess.Popen(
            ["fio", "--name=switched", f"--filename={fd.path}", "--size=8m", "--rw=randwrite"]
            + ["--bs=4k", *VERIFIED]
            + ["--runtime=5", "--time_based", "--verify_backlog=256", "--output-format=terse"]
            + list(options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        turns = 0
        while fio.poll() is None:
            turns += 1
            switch(fd, turns % 2)
        output = fio.communicate()[0]
        equal(f"fio's status: {output}", fio.returncode, 0)
        assert turns > 20, f"only {turns} switches"
        fields = output.splitlines()[-1].split(";")
        assert int(fields[46]) > 1000, f"fio wrote {fields[46]} KiB"


@check("verified I/O goes on while direct I/O is switched on and off: direct to the device")
def under_direct_fio():
    under_fio("--direct=1", "--ioengine=libaio", "--iodepth=16")


@check("verified I/O goes on while direct I/O is switched on and off: through the device's page cache")
def under_buffered_fio():
    under_fio("--direct=0", "--ioengine=psync", "--fsync=32")


@check("it works with a mounted file system, whose claim does not matter")
def while_mounted():
    path = image(8)
    run("mkfs.ext4", "-q", path)
    with attach(path) as fd:
        place = mounted(fd.path, "mounted")
        noise = os.urandom(1 << 20)
        for name in "one", "two", "three":
            with open(f"{place}/{name}", "wb") as file:
                file.write(noise)
            switch(fd, name != "two")
        write_text("/proc/sys/vm/drop_caches", "3")
        for name in "one", "two", "three":
            with open(f"{place}/{name}", "rb") as file:
                equal(name, file.read() == noise, True)
        run("umount", place)
        run("e2fsck", "-fn", fd.path)


@check("a read-only device can be switched, also by a partition's node")
def read_only():
    path = image()
    run("sfdisk", "-q", path, input="label: dos\nstart=64,size=64\n")
    with attach(path, mode=os.O_RDONLY, flags=PARTSCAN) as fd:
        wait_for(lambda: os.path.exists(f"{fd.path}p1"))
        with Fd(f"{fd.path}p1", os.O_RDONLY) as partition:
            equal("SET_DIRECT_IO", partition.ioctl(SET_DIRECT_IO, 1), 0)
            equal("direct I/O", direct(fd), True)


@check("no event is sent, and the size stays the same")
def no_event():
    with attach(image()) as fd, Events() as events:
        settle()
        events.of(fd.path)
        switch(fd, 1)
        switch(fd, 0)
        equal("events", events.of(fd.path), [])
        equal("size", sysfs(fd.path, "size"), "2048")


run_checks()
