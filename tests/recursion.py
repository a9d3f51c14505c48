#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A loop device never stands on itself, even while LOOP_CTL_REMOVE is looking at it: removing a
device that is open fails with EBUSY, but takes it out of sight for a moment. A device that stands on
itself waits for itself at the first read, and cannot be detached any more."""
import ctypes
import os
import struct
import subprocess
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


def add_partition(fd, number, start, length):
    """BLKPG_ADD_PARTITION, in bytes: also one that no partition table could have."""
    partition = struct.pack("@qqi128x", start, length, number)
    memory = ctypes.create_string_buffer(partition)
    command = struct.pack("@iiiP", 1, 0, len(partition), ctypes.addressof(memory))
    argument = ctypes.create_string_buffer(command)
    equal("BLKPG", fd.ioctl(0x1269, ctypes.addressof(argument)), 0)


@check(
    "a device is not put on a partition of itself",
    better="partitions have another major, by which it knows its own kind",
)
def not_to_its_partition():
    path = image()
    with attach(path, device_mode=os.O_RDONLY) as fd:
        partition = f"{fd.path}p1"
        # All of it, so that the sizes are the same.
        add_partition(fd, 1, 0, 1 << 20)
        wait_for(lambda: os.path.exists(partition))
        subprocess.run(["udevadm", "settle"], check=True)
        # Whoever read the device while it stands on itself would wait for ever.
        subprocess.run(["udevadm", "control", "--stop-exec-queue"], check=True)
        try:
            with Fd(partition, os.O_RDONLY) as backing:
                outcome = fd.ioctl(CHANGE_FD, backing.fd)
            if outcome == 0:
                with Fd(path, os.O_RDONLY) as backing:
                    equal("back", fd.ioctl(CHANGE_FD, backing.fd), 0)
        finally:
            subprocess.run(["udevadm", "control", "--start-exec-queue"], check=True)
        equal("CHANGE_FD", outcome, "-EBADF")


run_checks()
