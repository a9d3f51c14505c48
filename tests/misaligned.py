#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Direct I/O from and to memory at every multiple of 512 bytes in a page, in vectors of uneven
pieces, in requests larger than the queue's limit: the data read is the data written, and it is at
the right place in the image. A split request may start in the middle of a segment; a driver that
started at the segment's beginning once corrupted file systems (a7297a6a3a33)."""
import itertools
import mmap
import os
from lib import *

PAGE = 4096
SIZE = 8 << 20


def pattern(length, seed):
    """Returns bytes that differ from sector to sector."""
    return b"".join(
        (b"%08x%08x" % (seed, number)) * 32 for number in range(length // 512)
    )


def memory(length, offset):
    """Returns memory that begins `offset` bytes into a page."""
    return memoryview(mmap.mmap(-1, length + 2 * PAGE))[offset : offset + length]


def pieces(view, sizes):
    """Cuts memory into pieces of the given sizes, repeatedly."""
    result, start = [], 0
    for size in itertools.cycle(sizes):
        if start == len(view):
            return result
        result.append(view[start : start + size])
        start += len(result[-1])


def round_trip(device, offset, length, position, sizes, seed):
    """Writes a pattern in pieces from memory at `offset`, and reads it in other pieces to other
    memory."""
    data = pattern(length, seed)
    out, back = memory(length, offset), memory(length, (offset + 1024) % PAGE)
    out[:] = data
    with Fd(device, os.O_RDWR | os.O_DIRECT) as fd:
        equal("written", os.pwritev(fd.fd, pieces(out, sizes), position), length)
        equal("read", os.preadv(fd.fd, pieces(back, sizes[::-1]), position), length)
    assert bytes(back) == data, f"read other data: {offset} {length} {position} {sizes}"
    return position, data


def run(direct, limit):
    path = image(SIZE >> 20)
    with attach(path, flags=DIRECT_IO if direct else 0) as fd:
        device = fd.path
    equal("dio", sysfs(device, "loop/dio"), str(int(direct)))
    with open(f"/sys/block/{os.path.basename(device)}/queue/max_sectors_kb", "w") as file:
        file.write(str(limit))
    for seed, (offset, sizes) in enumerate(
        itertools.product(range(0, PAGE, 512), ([PAGE], [512, 3584], [1536, 512, 7680], [65536]))
    ):
        length = (512, 66048, 131072, 262144)[seed % 4]
        # pwritev() takes at most 1024 pieces.
        where, data = round_trip(device, offset, length, seed * 4096 + 512, sizes, seed)
        with open(path, "rb") as file:
            file.seek(where)
            assert file.read(len(data)) == data, f"the image has other data: {offset} {sizes}"
    detach(device)


for mode, kib in itertools.product((True, False), (4, 20, 1280)):
    check(f"direct I/O {'on' if mode else 'off'}, requests of at most {kib} KiB")(
        lambda mode=mode, kib=kib: run(mode, kib)
    )
run_checks()
