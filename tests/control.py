#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""/dev/loop-control: LOOP_CTL_ADD, LOOP_CTL_REMOVE and LOOP_CTL_GET_FREE, which losetup, udisks and
container tools use, return the index of the device or the C driver's errors."""
import os
from lib import *


def bind(device):
    fd = Fd(device)
    with Fd(image()) as backing:
        equal("LOOP_SET_FD", fd.ioctl(SET_FD, backing.fd), 0)
    return fd


@check("ADD makes the requested device, and REMOVE removes it")
def add_and_remove():
    equal("ADD 100", control(CTL_ADD, 100), 100)
    assert os.path.isdir("/sys/block/loop100")
    wait_for(lambda: os.path.exists("/dev/loop100"))
    equal("its number", os.stat("/dev/loop100").st_rdev, os.makedev(7, 100))
    equal("ADD 100 again", control(CTL_ADD, 100), "-EEXIST")
    settle()
    equal("REMOVE 100", control(CTL_REMOVE, 100), 0)
    assert not os.path.exists("/sys/block/loop100")
    equal("REMOVE 100 again", control(CTL_REMOVE, 100), "-ENODEV")


@check("ADD of a negative number makes any device")
def add_any():
    number = control(CTL_ADD, -1 & (1 << 64) - 1)
    assert isinstance(number, int) and number >= 0, number
    settle()
    equal("REMOVE", control(CTL_REMOVE, number), 0)


@check("REMOVE refuses a negative number")
def remove_negative():
    equal("REMOVE -1", control(CTL_REMOVE, -1 & (1 << 64) - 1), "-EINVAL")


@check("REMOVE refuses a device that is bound or open")
def remove_busy():
    equal("ADD 101", control(CTL_ADD, 101), 101)
    wait_for(lambda: os.path.exists("/dev/loop101"))
    with Fd("/dev/loop101"):
        equal("open", control(CTL_REMOVE, 101), "-EBUSY")
    fd = bind("/dev/loop101")
    fd.close()
    equal("bound", control(CTL_REMOVE, 101), "-EBUSY")
    with Fd("/dev/loop101") as fd:
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    wait_for(lambda: not is_bound("loop101"))
    wait_for(lambda: control(CTL_REMOVE, 101) == 0)


@check("GET_FREE returns the lowest unbound device, and makes one if there is none")
def get_free():
    fds = []
    for number in range(10):
        equal("GET_FREE", control(CTL_GET_FREE), number)
        wait_for(lambda: os.path.exists(f"/dev/loop{number}"))
        fds.append(bind(f"/dev/loop{number}"))
    equal("CLR_FD", fds[3].ioctl(CLR_FD), 0)
    for fd in fds:
        fd.close()
    wait_for(lambda: not is_bound("loop3"))
    equal("GET_FREE", control(CTL_GET_FREE), 3)


@check("an unknown command: ENOSYS")
def unknown():
    equal("0x4C83", control(0x4C83), "-ENOSYS")
    equal("0x5401", control(0x5401), "-ENOSYS")


@check("the control node is misc device 237")
def node():
    equal("number", os.stat("/dev/loop-control").st_rdev, os.makedev(10, 237))


run_checks()
