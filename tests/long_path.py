#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""backing_file shows a path of any length that a file can have, without a warning of the kernel:
sysfs warns about a page that is full to the last byte, as if more had been written."""
import errno
import os
from lib import *


@check("backing_file of the longest possible path")
def longest_path():
    # No system call takes the whole path, so the directories are made step by step.
    for length in (4093, 4094, 4095):
        directory, path = os.open(SCRATCH, os.O_RDONLY), SCRATCH
        while len(path) + 202 < length:
            name = "d" * 200
            try:
                os.mkdir(name, dir_fd=directory)
            except FileExistsError:
                pass
            directory = os.open(name, os.O_RDONLY, dir_fd=directory)
            path += "/" + name
        name = "f" * (length - len(path) - 1)
        backing = os.open(name, os.O_RDWR | os.O_CREAT, dir_fd=directory)
        os.ftruncate(backing, 1 << 20)
        device = free_device()
        with Fd(device) as fd:
            equal("LOOP_SET_FD", fd.ioctl(SET_FD, backing), 0)
        try:
            with open(f"/sys/block/{device[5:]}/loop/backing_file", encoding="utf-8") as file:
                assert file.read() == f"{path}/{name}\n", f"not the path of {length} bytes"
        except OSError as error:
            equal("errno", errno.errorcode[error.errno], "ENAMETOOLONG")
        with Fd(device) as fd:
            equal("LOOP_CLR_FD", fd.ioctl(CLR_FD), 0)
        os.unlink(name, dir_fd=directory)


run_checks()
