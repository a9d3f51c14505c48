#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A loop device never stands on itself, even while LOOP_CTL_REMOVE is looking at it: removing a
device that is open fails with EBUSY, but takes it out of sight for a moment. A device that stands on
itself waits for itself at the first read, and cannot be detached any more."""
import ctypes
import os
import struct
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


PARTITIONS = "partitions have another major, by which it knows its own kind"


def change_to(choose):
    """What LOOP_CHANGE_FD answers for a partitioned device: `choose` gets it and its partition,
    and gives the descriptor to ask and the one to change to."""
    path = image()
    with attach(path, device_mode=os.O_RDONLY) as fd:
        # All of it, so that the sizes are the same.
        add_partition(fd, 1, 0, 1 << 20)
        wait_for(lambda: os.path.exists(f"{fd.path}p1"))
        with Fd(f"{fd.path}p1", os.O_RDONLY) as partition:
            asked, backing = choose(fd, partition)
            settle()
            # Whoever read the device while it stands on itself would wait for ever.
            run("udevadm", "control", "--stop-exec-queue")
            try:
                outcome = asked.ioctl(CHANGE_FD, backing.fd)
                if outcome == 0:
                    with Fd(path, os.O_RDONLY) as file:
                        equal("back", fd.ioctl(CHANGE_FD, file.fd), 0)
            finally:
                run("udevadm", "control", "--start-exec-queue")
        equal("the file", sysfs(fd.path, "loop/backing_file"), path)
    return outcome


@check("a device is not put on a partition of itself", better=PARTITIONS)
def not_to_its_partition():
    equal("CHANGE_FD", change_to(lambda fd, partition: (fd, partition)), "-EBADF")


@check("nor on itself by the node of its partition", better="it compares numbers of nodes")
def not_by_its_partition():
    equal("CHANGE_FD", change_to(lambda fd, partition: (partition, fd)), "-EBADF")


@check("nor on another that stands on its partition", better=PARTITIONS)
def not_by_another():
    others = []

    def choose(fd, _):
        others.append(attach(f"{fd.path}p1", mode=os.O_RDONLY, device_mode=os.O_RDONLY))
        return fd, others[0]

    try:
        equal("CHANGE_FD", change_to(choose), "-EBADF")
    finally:
        others[0].close()


@check("but on a partition of another it can stand")
def on_another():
    path = numbered_image()
    with attach(path) as low:
        add_partition(low, 1, 1 << 16, 1 << 19)
        wait_for(lambda: os.path.exists(f"{low.path}p1"))
        with attach(f"{low.path}p1") as fd:
            equal("size", sysfs(fd.path, "size"), "1024")
            equal("sector", number_at(fd, 5), 128 + 5)


@check("both may be read through their caches")
def through_both_caches():
    # Not read ahead, but because a write has left the rest of the page: lockdep has seen the lock of the
    # one cache taken under that of the other.
    with attach(numbered_image()) as low, attach(low.path) as high:
        run("blockdev", "--setbsz", "512", high.path)
        os.pwrite(high.fd, bytes(512), 0)
        equal("sector", number_at(high, 5), 5)


run_checks()
