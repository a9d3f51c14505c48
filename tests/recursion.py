#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A loop device never stands on itself, even while LOOP_CTL_REMOVE is looking at it: removing a
device that is open fails with EBUSY, but takes it out of sight for a moment. A device that stands on
itself waits for itself at the first read, and cannot be detached any more."""
import os
import threading
from lib import *


@check("a device is not attached to itself while somebody tries to remove it")
def not_to_itself():
    device = free_device()
    number = int(device.removeprefix("/dev/loop"))
    done = threading.Event()

    def remove():
        while not done.is_set():
            assert control(CTL_REMOVE, number) in ("-EBUSY", "-ENODEV")

    with Fd(device) as fd, Fd(device) as backing:
        removers = [threading.Thread(target=remove) for _ in range(2)]
        for remover in removers:
            remover.start()
        try:
            outcomes = {fd.ioctl(SET_FD, backing.fd) for _ in range(20000)}
        finally:
            done.set()
            for remover in removers:
                remover.join()
        equal("LOOP_SET_FD", outcomes, {"-EBADF"})


run_checks()
