#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A write that the file takes only in part or not at all, because its file system is full, fails
with ENOSPC: no lost data is acknowledged. The C driver reports success for a short write."""
import errno
import itertools
import mmap
import os
import subprocess
from lib import *

ROOM = 16 << 20
BETTER = "the C driver reports success for a short write"


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def crowded(kind, direct):
    """Attaches a device of 64 MiB to a sparse file on a file system of 16 MiB."""
    place = f"{SCRATCH}/place"
    os.mkdir(place)
    if kind == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", place)
    else:
        with open(f"{SCRATCH}/disk", "wb") as file:
            file.truncate(ROOM)
        run("mkfs.ext4", "-q", "-m0", "-b4096", "-O^has_journal", f"{SCRATCH}/disk")
        run("mount", "-o", "loop", f"{SCRATCH}/disk", place)
    return attach(image(64, "place/image"), flags=DIRECT_IO if direct else 0)


def done(fd):
    """Detaches and unmounts, so that losses in writeback show, too."""
    fd.close()
    detach(fd.path)
    run("umount", f"{SCRATCH}/place")


def block(size, number):
    return number.to_bytes(8, "little") * (size // 8)


def fill(path, size, start=1):
    """Writes blocks until one fails; returns the acknowledged numbers and the error."""
    memory = mmap.mmap(-1, size)
    with Fd(path, os.O_RDWR | os.O_DIRECT) as fd:
        for number in itertools.count(start):
            memory[:] = block(size, number)
            try:
                equal("written", os.pwrite(fd.fd, memory, number * size), size)
            except OSError as error:
                return range(start, number), errno.errorcode[error.errno]


def present(path, size, numbers):
    with open(path, "rb") as file:
        for number in numbers:
            file.seek(number * size)
            assert file.read(size) == block(size, number), f"block {number} was acknowledged"


def honest(kind, direct, size):
    fd = crowded(kind, direct)
    numbers, error = fill(fd.path, size)
    equal("error", error, "ENOSPC")
    got = len(numbers) * size
    assert ROOM // 2 < got <= ROOM, f"{got} bytes acknowledged on a file system of {ROOM}"
    present(f"{SCRATCH}/place/image", size, numbers)
    present(fd.path, size, numbers)
    done(fd)


for fs, dio, bytes_ in itertools.product(("ext4", "tmpfs"), (True, False), (4096, 60 << 10)):
    # A request of several blocks of the file system, for some of which there is room.
    cut = bytes_ > 4096 and not (fs == "ext4" and dio)
    check(
        f"{fs}, {'direct' if dio else 'buffered'}, blocks of {bytes_ >> 10} KiB",
        better=BETTER if cut else None,
    )(lambda fs=fs, dio=dio, bytes_=bytes_: honest(fs, dio, bytes_))


# The page cache of a block device reports every error of its writeback as EIO.
@check("fsync reports an error of the device's writeback")
def fsync_tells():
    for direct in True, False:
        fd = crowded("tmpfs", direct)
        os.write(fd.fd, b"x" * (32 << 20))
        try:
            os.fsync(fd.fd)
            raise AssertionError(f"fsync succeeded, direct I/O {direct}")
        except OSError as error:
            assert error.errno in (errno.EIO, errno.ENOSPC), error
        done(fd)
        os.rmdir(f"{SCRATCH}/place")


@check("a discard frees space")
def room_again():
    fd = crowded("ext4", True)
    numbers, error = fill(fd.path, 4096)
    equal("error", error, "ENOSPC")
    run("blkdiscard", fd.path)
    again, error = fill(fd.path, 4096)
    equal("error", error, "ENOSPC")
    assert len(again) > len(numbers) // 2, f"{len(again)} blocks, {len(numbers)} before"
    present(fd.path, 4096, again)
    done(fd)


run_checks()
