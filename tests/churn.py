#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Several processes add, bind, read, open, unbind and remove the same few devices at random. Every
result is allowed by the ABI, each process reads its own image from a device it has bound, and at
the end all devices can be removed. Open racing with release was CVE-2018-5344, and ADD, REMOVE and
open have deadlocked (990e78116d38, 1c500ad70638)."""
import errno
import os
import random
from lib import *

NUMBERS = range(200, 204)
PROCESSES = 6
SECONDS = 8
# The errors that a race may cause.
KNOWN = {"-EBUSY", "-ENXIO", "-ENODEV", "-EEXIST", "-EBADF", "-EINVAL"}


def known(what, outcome):
    assert not isinstance(outcome, str) or outcome in KNOWN, f"{what}: {outcome}"
    return outcome


def open_device(number):
    """Opens the device; returns None if it does not exist or must not be opened."""
    try:
        return Fd(f"/dev/loop{number}")
    except OSError as error:
        assert error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EBUSY), error
        return None


def bind_and_read(number, path, content):
    fd = open_device(number)
    if not fd:
        return 0
    with fd, Fd(path) as backing:
        if known("SET_FD", fd.ioctl(SET_FD, backing.fd)) != 0:
            return 0
        equal("read", os.pread(fd.fd, 4096, 0), content)
        # Another process may have sent it before; the device stays bound until this one closes it.
        equal("CLR_FD", fd.ioctl(CLR_FD) in (0, "-ENXIO"), True)
    return 1


def act(dice, number, path, content):
    """Does one random operation; returns 1 if it has bound and read a device."""
    deed = dice.randrange(6)
    if deed == 0:
        known("ADD", control(CTL_ADD, number))
    elif deed == 1:
        known("REMOVE", control(CTL_REMOVE, number))
    elif deed == 2:
        fd = open_device(number)
        if fd:
            with fd:
                known("GET_STATUS64", fd.ioctl(GET_STATUS64, Info()))
    elif deed == 3:
        sysfs(f"loop{number}", "loop/backing_file")
    else:
        return bind_and_read(number, path, content)
    return 0


def process(seed):
    """Does random operations for a while; an exception reports a failure."""
    dice = random.Random(seed)
    path = image(1, f"image{seed}")
    content = bytes([seed]) * 4096
    with open(path, "r+b") as file:
        file.write(content)
    end, bound = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        bound += act(dice, dice.choice(NUMBERS), path, content)
    assert bound, "never got a device"


@check(f"{PROCESSES} processes for {SECONDS} s")
def churn():
    children = [forked(process, seed) for seed in range(1, PROCESSES + 1)]
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    equal("statuses of the processes", statuses, [0] * PROCESSES)
    for number in NUMBERS:
        wait_for(lambda: control(CTL_REMOVE, number) in (0, "-ENODEV"))
        assert not os.path.exists(f"/sys/block/loop{number}")


run_checks()
