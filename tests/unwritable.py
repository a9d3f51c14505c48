#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A file that was opened for writing but refuses all writes is attached read-only, so that a file
system on the device is mounted read-only instead of losing its writes."""
import fcntl
import os
from lib import *

NOISE = bytes(range(256)) * 4096
BETTER = "the C driver attaches the file read-write"


def write_to(descriptor):
    os.pwrite(descriptor, NOISE, 0)
    return descriptor


def attach_to(command, file):
    """Attaches an open file to a free device, and returns the open device, with its name as
    `path`."""
    fd = Fd(free_device())
    fd.path = os.readlink(f"/proc/self/fd/{fd.fd}")
    argument = Config(fd=file) if command == CONFIGURE else file
    equal("attach", fd.ioctl(command, argument), 0)
    return fd


def attached_read_only(file):
    for command in SET_FD, CONFIGURE:
        with attach_to(command, file) as fd:
            equal("ro", sysfs(fd.path, "ro"), "1")
            equal("flags", status(fd).flags, READ_ONLY)
            equal("content", os.pread(fd.fd, len(NOISE), 0) == NOISE, True)
            with Fd(fd.path) as user:
                try:
                    os.pwrite(user.fd, bytes(512), 0)
                    os.fsync(user.fd)
                    raise AssertionError("the device was written")
                except PermissionError:
                    pass
        detach(fd.path)
    equal("the file", os.pread(file, len(NOISE), 0) == NOISE, True)


def attached_writable(file):
    with attach_to(CONFIGURE, file) as fd:
        equal("ro", sysfs(fd.path, "ro"), "0")
        os.pwrite(fd.fd, bytes(512), 0)
        os.fsync(fd.fd)
    detach(fd.path)
    equal("the file", os.pread(file, 512, 0), bytes(512))


def memfd(*seals):
    file = write_to(os.memfd_create("image", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC))
    for seal in seals:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seal)
    return file


# <linux/fcntl.h>
F_SEAL_FUTURE_WRITE = 0x10

for name, seal in ("F_SEAL_WRITE", fcntl.F_SEAL_WRITE), ("F_SEAL_FUTURE_WRITE", F_SEAL_FUTURE_WRITE):

    @check(f"a memfd with {name} is attached read-only", better=BETTER)
    def sealed(seal=seal):
        file = memfd(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, seal)
        attached_read_only(file)
        os.close(file)


@check("a memfd whose size is sealed is attached read-write")
def sealed_size():
    file = memfd(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    attached_writable(file)
    os.close(file)


def with_attribute(kind, letter):
    """Attaches a file whose attribute was set by `chattr` after it was opened."""
    run(f"mkfs.{kind}", "-q", image(320, "lower"))
    place = mounted(f"{SCRATCH}/lower", "place", "-o", "loop")
    path = image(1, "place/image")
    with Fd(path) as file:
        write_to(file.fd)
        run("chattr", f"+{letter}", path)
        try:
            attached_read_only(file.fd)
        finally:
            run("chattr", f"-{letter}", path)
        attached_writable(file.fd)
    run("umount", place)


for kind in "ext4", "xfs":
    for letter, name in ("i", "an immutable"), ("a", "an append-only"):

        @check(f"{name} file on {kind} is attached read-only", better=BETTER)
        def attribute(kind=kind, letter=letter):
            with_attribute(kind, letter)


@check("an active swap file is attached read-only", better=BETTER)
def swap_file():
    run("mkfs.ext4", "-q", image(48, "lower"))
    place = mounted(f"{SCRATCH}/lower", "place", "-o", "loop")
    path = f"{place}/swap"
    run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=8", "status=none")
    os.chmod(path, 0o600)
    run("mkswap", path)
    with Fd(path) as file:
        run("swapon", path)
        try:
            with attach_to(CONFIGURE, file.fd) as fd:
                equal("ro", sysfs(fd.path, "ro"), "1")
            detach(fd.path)
        finally:
            run("swapoff", path)
    run("umount", place)


@check("a read-only block device is attached read-only", better=BETTER)
def block_device():
    with attach(image()) as base:
        write_to(base.fd)
        os.fsync(base.fd)
        run("blockdev", "--setro", base.path)
        attached_read_only(base.fd)
        run("blockdev", "--setrw", base.path)
        attached_writable(base.fd)
    detach(base.path)


run_checks()
