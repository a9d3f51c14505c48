#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Data written to a device before its last close is in the image afterwards, with or without fsync:
the page cache of the device is written back before the file is closed. The C driver loses the data
when LOOP_CLR_FD comes from the only opener: its last close writes back to a device without a
file."""
import os
from lib import *

# More than the kernel writes back at once.
SIZE = 4 << 20
BETTER = "the last close writes back when the C driver has closed the file"


def arrived(path, data):
    with open(path, "rb") as file:
        got = file.read(len(data))
    wrong = sum(got[start : start + 4096] != data[start : start + 4096] for start in range(0, len(data), 4096))
    equal("pages that were lost", wrong, 0)


def written(flags):
    path = image(SIZE >> 20)
    data = os.urandom(SIZE)
    fd = attach(path, flags=flags)
    device = fd.path
    # udev has closed the device: from here on there is one opener.
    os.system("udevadm settle")
    equal("written", os.write(fd.fd, data), SIZE)
    return path, data, device, fd


@check("write, LOOP_CLR_FD, close: buffered", better=BETTER)
def clear_buffered():
    path, data, device, fd = written(0)
    equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    fd.close()
    wait_for(lambda: not is_bound(device))
    arrived(path, data)


@check("write, LOOP_CLR_FD, close: direct", better=BETTER)
def clear_direct():
    path, data, device, fd = written(DIRECT_IO)
    equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    fd.close()
    wait_for(lambda: not is_bound(device))
    arrived(path, data)


@check("write, close with autoclear")
def autoclear():
    path, data, device, fd = written(AUTOCLEAR)
    fd.close()
    wait_for(lambda: not is_bound(device))
    arrived(path, data)


@check("write, close, LOOP_CLR_FD from another opener")
def clear_later():
    path, data, device, fd = written(DIRECT_IO)
    fd.close()
    detach(device)
    arrived(path, data)


@check("write, LOOP_CLR_FD with another opener, fsync, both close")
def two_openers():
    path, data, device, fd = written(0)
    other = Fd(device)
    equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    fd.close()
    os.fsync(other.fd)
    other.close()
    wait_for(lambda: not is_bound(device))
    arrived(path, data)


@check("fsync through a descriptor that outlived the attachment succeeds")
def stale_fsync():
    device = free_device()
    with Fd(device) as early:
        other = attach(image())
        equal("CLR_FD", other.ioctl(CLR_FD), 0)
        other.close()
        os.fsync(early.fd)
    wait_for(lambda: not is_bound(device))


run_checks()
