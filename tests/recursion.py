#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A loop device is never stacked on itself, even during a LOOP_CTL_REMOVE: the removal of an open
device fails with EBUSY, but hides the device for a moment. A device stacked on itself would wait
for itself at the first read, and could not be detached any more. A tall stack works."""
import ctypes
import glob
import os
import struct
import threading
from lib import *


@check("a device is not attached to itself during attempts to remove it")
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
    """Calls BLKPG_ADD_PARTITION, in bytes, also for a partition that no partition table could
    have."""
    partition = struct.pack("@qqi128x", start, length, number)
    memory = ctypes.create_string_buffer(partition)
    command = struct.pack("@iiiP", 1, 0, len(partition), ctypes.addressof(memory))
    argument = ctypes.create_string_buffer(command)
    equal("BLKPG", fd.ioctl(0x1269, ctypes.addressof(argument)), 0)


PARTITIONS = "partitions have another major, so the C driver does not take them for loop devices"


def change_to(choose):
    """Returns the result of LOOP_CHANGE_FD for a partitioned device. `choose` gets the device and
    its partition, and returns the descriptor to send it to and the one to change to."""
    path = image()
    with attach(path, device_mode=os.O_RDONLY) as fd:
        # The whole device, so that the sizes are equal.
        add_partition(fd, 1, 0, 1 << 20)
        wait_for(lambda: os.path.exists(f"{fd.path}p1"))
        with Fd(f"{fd.path}p1", os.O_RDONLY) as partition:
            asked, backing = choose(fd, partition)
            settle()
            # A reader of a device stacked on itself would wait for ever.
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


@check("a device is not stacked on its own partition", better=PARTITIONS)
def not_to_its_partition():
    equal("CHANGE_FD", change_to(lambda fd, partition: (fd, partition)), "-EBADF")


@check("a device is not stacked on itself by its partition's node", better="the C driver compares numbers of nodes")
def not_by_its_partition():
    equal("CHANGE_FD", change_to(lambda fd, partition: (partition, fd)), "-EBADF")


@check("a device is not stacked on another one on its own partition", better=PARTITIONS)
def not_by_another():
    others = []

    def choose(fd, _):
        others.append(attach(f"{fd.path}p1", mode=os.O_RDONLY, device_mode=os.O_RDONLY))
        return fd, others[0]

    try:
        equal("CHANGE_FD", change_to(choose), "-EBADF")
    finally:
        others[0].close()


@check("a device can be stacked on a partition of another one")
def on_another():
    path = numbered_image()
    with attach(path) as low:
        add_partition(low, 1, 1 << 16, 1 << 19)
        wait_for(lambda: os.path.exists(f"{low.path}p1"))
        with attach(f"{low.path}p1") as fd:
            equal("size", sysfs(fd.path, "size"), "1024")
            equal("sector", number_at(fd, 5), 128 + 5)


@check("both devices of a stack can be read through their page caches")
def through_both_caches():
    # The read is no read-ahead, but completes a page after a partial write: lockdep sees the
    # invalidate_lock of one page cache taken under that of the other.
    with attach(numbered_image()) as low, attach(low.path) as high:
        run("blockdev", "--setbsz", "512", high.path)
        os.pwrite(high.fd, bytes(512), 0)
        equal("sector", number_at(high, 5), 5)


# The last case, because it stops udev.
@check("very many devices on one another can be read, written and flushed")
def tall_stack():
    # The end of a request of the lowest device ends one of each device above it, and the kernel's
    # stack has no room for all of them.
    stop_udev()
    path = numbered_image()
    before, stack = set(glob.glob("/dev/loop[0-9]*")), [path]
    try:
        # The C driver syncs each device below for each attach, in workers.
        for _ in range(200 if DRIVER == "rnull_loop" else 30):
            stack.append(run("losetup", "-f", "--show", "--direct-io=on", stack[-1]))
        top = stack[-1]
        run("cmp", path, top)
        write = ["dd", "if=/dev/urandom", f"of={top}", "bs=64k", "count=8", "status=none"]
        run(*write, "oflag=direct", "conv=fsync")
        fio = ["--ioengine=libaio", "--direct=1", "--iodepth=16", "--rw=randwrite", "--fsync=8"]
        run("fio", "--name=load", f"--filename={top}", *fio, *VERIFIED, "--size=1m")
        run("cmp", path, top)
    finally:
        for device in reversed(stack[1:]):
            run("losetup", "-d", device)
        for device in set(glob.glob("/dev/loop[0-9]*")) - before:
            control(CTL_REMOVE, int(device.removeprefix("/dev/loop")))


run_checks()
