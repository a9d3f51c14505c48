#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""LOOP_SET_STATUS and LOOP_GET_STATUS with the old structure, which old programs and busybox still
use: values that fit work as in the 64-bit structure, others fail with EOVERFLOW. compat.py tests
the structure of 32-bit programs."""
import os
from lib import *

assert ctypes.sizeof(OldInfo) == 168


def old_status(fd):
    info = OldInfo()
    equal("GET_STATUS", fd.ioctl(GET_STATUS, info), 0)
    return info


@check("GET_STATUS reports the file, the number and the settings")
def tells():
    path = image(4)
    fields = {"offset": 512, "sizelimit": 1 << 20, "flags": PARTSCAN | AUTOCLEAR}
    with attach(path, file_name=b"x" * 64, **fields) as fd:
        info, file = old_status(fd), os.stat(path)
        equal("number", info.number, int(fd.path[9:]))
        equal("device", info.device, file.st_dev)
        equal("inode", info.inode, file.st_ino)
        equal("rdevice", info.rdevice, 0)
        equal("offset", info.offset, 512)
        equal("flags", info.flags, PARTSCAN | AUTOCLEAR)
        equal("name", info.name, b"x" * 63)
        equal("encryption", (info.encrypt_type, info.encrypt_key_size), (0, 0))
        equal("key", bytes(info.encrypt_key), bytes(32))
        equal("init", list(info.init), [0, 0])


@check("GET_STATUS writes the whole structure, and no more")
def all_of_it():
    with attach(image()) as fd:
        buffer = (ctypes.c_uint8 * 256)(*[0xA5] * 256)
        address = ctypes.addressof(buffer)
        equal("GET_STATUS", fd.ioctl(GET_STATUS, address), 0)
        equal("hole", bytes(buffer[4:8]), bytes(4))
        equal("the end", bytes(buffer[160:168]), bytes(8))
        equal("behind it", bytes(buffer[168:]), b"\xa5" * 88)


@check("GET_STATUS reports the number of a backing block device")
def tells_block_device():
    with attach(image(4)) as below, attach(below.path) as fd:
        equal("rdevice", old_status(fd).rdevice, os.fstat(below.fd).st_rdev)


@check("GET_STATUS of an offset that does not fit: EOVERFLOW, before the pointer is used")
def offset_overflow():
    with attach(image()) as fd:
        for offset in (1 << 31) - 1, (1 << 31) - 512:
            equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(offset=offset)), 0)
            equal("offset", old_status(fd).offset, offset)
        for offset in 1 << 31, 1 << 32, (1 << 32) + 512, (1 << 63) - 1:
            equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(offset=offset)), 0)
            info = OldInfo(number=77)
            equal("GET_STATUS", fd.ioctl(GET_STATUS, info), "-EOVERFLOW")
            equal("structure", info.number, 77)
            equal("GET_STATUS with a bad pointer", fd.ioctl(GET_STATUS, 8), "-EOVERFLOW")
            equal("GET_STATUS64", status(fd).offset, offset)


@check("GET_STATUS: a null pointer is EINVAL, an unbound device ENXIO, a bad pointer EFAULT, in this order")
def get_errors():
    device = free_device()
    with Fd(device) as fd:
        equal("NULL, unbound", fd.ioctl(GET_STATUS, 0), "-EINVAL")
        equal("unbound", fd.ioctl(GET_STATUS, OldInfo()), "-ENXIO")
        equal("bad pointer, unbound", fd.ioctl(GET_STATUS, 8), "-ENXIO")
    with attach(image()) as fd:
        equal("NULL", fd.ioctl(GET_STATUS, 0), "-EINVAL")
        equal("bad pointer", fd.ioctl(GET_STATUS, 8), "-EFAULT")
        equal("afterwards", old_status(fd).flags, 0)


@check("SET_STATUS sets offset, flags and name, and resets the size limit")
def sets():
    with attach(numbered_image(2), sizelimit=1 << 20) as fd:
        info = OldInfo(offset=4096, flags=0x7FFFFFFF, name=b"y" * 64, number=5, inode=9, device=7)
        equal("SET_STATUS", fd.ioctl(SET_STATUS, info), 0)
        now = status(fd)
        equal("offset", now.offset, 4096)
        equal("size limit", now.sizelimit, 0)
        equal("flags", now.flags, AUTOCLEAR | PARTSCAN)
        equal("name", now.file_name, b"y" * 63)
        equal("number", now.number, int(fd.path[9:]))
        equal("inode", now.inode, os.stat(f"{SCRATCH}/image").st_ino)
        equal("size", sysfs(fd.path, "size"), str(4096 - 8))
        equal("sector", number_at(fd, 5), 13)
        equal("SET_STATUS", fd.ioctl(SET_STATUS, OldInfo(offset=512)), 0)
        equal("flags", status(fd).flags, PARTSCAN)
        equal("sector", number_at(fd, 5), 6)


@check("SET_STATUS ignores the encryption fields")
def encryption():
    with attach(image()) as fd:
        for kind, size in (1, 0), (18, 0), (-1, 0), (0, 33), (0, -1), (99, 99):
            info = OldInfo(encrypt_type=kind, encrypt_key_size=size, offset=512)
            equal(f"SET_STATUS {kind}, {size}", fd.ioctl(SET_STATUS, info), 0)
            equal("offset", status(fd).offset, 512)
            equal("SET_STATUS", fd.ioctl(SET_STATUS, OldInfo()), 0)


@check("SET_STATUS with a negative offset: EOVERFLOW, and nothing changes")
def negative_offset():
    with attach(numbered_image(), offset=512, sizelimit=1 << 19) as fd:
        for offset in -1, -512, -(1 << 31):
            info = OldInfo(offset=offset, flags=AUTOCLEAR | PARTSCAN, name=b"bad")
            equal("SET_STATUS", fd.ioctl(SET_STATUS, info), "-EOVERFLOW")
            now = status(fd)
            equal("settings", (now.offset, now.sizelimit, now.flags), (512, 1 << 19, 0))
            equal("name", now.file_name, b"")
            equal("sector", number_at(fd, 5), 6)


@check("SET_STATUS: a bad pointer is EFAULT, an unbound device ENXIO, in this order")
def set_errors():
    with Fd(free_device()) as fd:
        equal("NULL, unbound", fd.ioctl(SET_STATUS, 0), "-EFAULT")
        equal("bad pointer, unbound", fd.ioctl(SET_STATUS, 8), "-EFAULT")
        equal("unbound", fd.ioctl(SET_STATUS, OldInfo()), "-ENXIO")
        equal("negative, unbound", fd.ioctl(SET_STATUS, OldInfo(offset=-1)), "-ENXIO")
    with attach(image()) as fd:
        equal("NULL", fd.ioctl(SET_STATUS, 0), "-EFAULT")
        equal("bad pointer", fd.ioctl(SET_STATUS, 8), "-EFAULT")
        equal("afterwards", status(fd).flags, 0)


@check("SET_STATUS works on a mounted device, and its AUTOCLEAR detaches at umount")
def while_mounted():
    path = image(8)
    run("mkfs.ext4", "-q", path)
    with attach(path) as fd:
        place = mounted(fd.path, "mounted")
        equal("SET_STATUS", fd.ioctl(SET_STATUS, OldInfo(flags=AUTOCLEAR)), 0)
        device = fd.path
    run("umount", place)
    wait_for(lambda: not is_bound(device))


@check("the result of GET_STATUS can be passed to SET_STATUS")
def round_trip():
    with attach(numbered_image(), offset=1024, flags=PARTSCAN, file_name=b"name") as fd:
        info = old_status(fd)
        equal("SET_STATUS", fd.ioctl(SET_STATUS, info), 0)
        equal("the same", bytes(old_status(fd)), bytes(info))
        equal("sector", number_at(fd, 0), 2)


run_checks()
