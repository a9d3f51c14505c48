#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Files that cannot be attached are refused with the C driver's errors (losetup acts upon them:
EBUSY and EAGAIN make it try again, EINVAL makes it fall back to LOOP_SET_FD). Afterwards the device
is unchanged: no loop/ in sysfs, writable, 512-byte blocks, the file closed, ready for the next
attach."""
import os
import socket
import subprocess
from lib import *

# A descriptor that is not open.
CLOSED = 1000


def configure(device, backing, block_size=0, mode=os.O_RDWR, **info):
    """Sends LOOP_CONFIGURE with a file descriptor."""
    config = Config(fd=backing, block_size=block_size, info=Info(**info))
    with Fd(device, mode) as fd:
        outcome = fd.ioctl(CONFIGURE, config)
    return outcome


def set_fd(device, backing):
    with Fd(device) as fd:
        return fd.ioctl(SET_FD, backing)


def state(device):
    """Returns the state that a refused LOOP_CONFIGURE must not alter."""
    names = "loop/backing_file", "ro", "size", "queue/logical_block_size", "queue/write_cache"
    return {name: sysfs(device, name) for name in names}


def usable(device):
    """Checks that the device can be attached."""
    with Fd(image(1, "good")) as good:
        equal("attach afterwards", set_fd(device, good.fd), 0)
    equal("size", sysfs(device, "size"), "2048")
    equal("ro", sysfs(device, "ro"), "0")
    detach(device)


def refused(error, backing, **arguments):
    """Checks that LOOP_CONFIGURE refuses the file, and LOOP_SET_FD, too, if it needs no
    arguments."""
    device = free_device()
    before = state(device)
    equal("LOOP_CONFIGURE", configure(device, backing, **arguments), error)
    equal("state", state(device), before)
    if not arguments:
        equal("LOOP_SET_FD", set_fd(device, backing), error)
        equal("state", state(device), before)
    usable(device)


@check("an unbound device: ENXIO")
def unbound():
    with Fd(free_device()) as fd:
        equal("CLR_FD", fd.ioctl(CLR_FD), "-ENXIO")
        equal("GET_STATUS64", fd.ioctl(GET_STATUS64, Info()), "-ENXIO")
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info()), "-ENXIO")


@check("GET_STATUS64 with a null pointer: EINVAL, before the device's state is checked")
def status_to_nowhere():
    with Fd(free_device()) as fd:
        equal("GET_STATUS64", fd.ioctl(GET_STATUS64, 0), "-EINVAL")
        # No lock is held any more.
        equal("GET_STATUS64", fd.ioctl(GET_STATUS64, Info()), "-ENXIO")


@check("structures at invalid addresses: EFAULT")
def bad_pointers():
    device = free_device()
    with Fd(device) as fd:
        equal("CONFIGURE", fd.ioctl(CONFIGURE, 8), "-EFAULT")
    with Fd(image()) as backing, Fd(device) as fd:
        equal("SET_FD", fd.ioctl(SET_FD, backing.fd), 0)
        equal("GET_STATUS64", fd.ioctl(GET_STATUS64, 8), "-EFAULT")
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, 8), "-EFAULT")
    detach(device)


@check("an unknown command: EINVAL")
def unknown_command():
    with Fd(free_device()) as fd:
        equal("0x4C7F", fd.ioctl(0x4C7F), "-EINVAL")
        equal("0x4C7F", fd.ioctl(0x4C7F), "-EINVAL")


@check("closed and negative descriptors: EBADF, in any state of the device")
def closed_descriptor():
    refused("-EBADF", CLOSED)
    refused("-EBADF", 0xFFFFFFFF)
    device = free_device()
    with Fd(image()) as backing:
        equal("attach", set_fd(device, backing.fd), 0)
    equal("LOOP_SET_FD, bound", set_fd(device, CLOSED), "-EBADF")
    equal("LOOP_CONFIGURE, bound", configure(device, CLOSED), "-EBADF")
    detach(device)


@check("a path descriptor: EBADF")
def path_descriptor():
    with Fd(image(), os.O_PATH) as backing:
        refused("-EBADF", backing.fd)


@check("a directory: EINVAL")
def directory():
    with Fd(SCRATCH, os.O_RDONLY | os.O_DIRECTORY) as backing:
        refused("-EINVAL", backing.fd)


@check("a socket: EINVAL")
def a_socket():
    with socket.socket(socket.AF_UNIX) as backing:
        refused("-EINVAL", backing.fileno())


@check("a pipe: EINVAL")
def pipe():
    ends = os.pipe()
    for end in ends:
        refused("-EINVAL", end)
        os.close(end)


@check("a character device: EINVAL")
def character_device():
    for path in "/dev/null", "/dev/zero", "/dev/loop-control":
        with Fd(path) as backing:
            refused("-EINVAL", backing.fd)


@check("a file without read_iter: EINVAL")
def no_read_iter():
    with Fd("/proc/kmsg", os.O_RDONLY) as backing:
        refused("-EINVAL", backing.fd)
    with Fd("/proc/self/mem", os.O_RDWR) as backing:
        refused("-EINVAL", backing.fd)


@check("a file without write_iter: EINVAL when open for writing, otherwise read-only")
def no_write_iter():
    with Fd("/proc/version", os.O_RDWR) as backing:
        refused("-EINVAL", backing.fd)
    device = free_device()
    with Fd("/proc/version", os.O_RDONLY) as backing:
        equal("LOOP_SET_FD", set_fd(device, backing.fd), 0)
    equal("ro", sysfs(device, "ro"), "1")
    detach(device)


@check("offset and sizelimit beyond LLONG_MAX: EOVERFLOW")
def overflow():
    with Fd(image()) as backing:
        refused("-EOVERFLOW", backing.fd, offset=1 << 63)
        refused("-EOVERFLOW", backing.fd, sizelimit=1 << 63)
        refused("-EOVERFLOW", backing.fd, offset=512, sizelimit=(1 << 64) - 1)


@check("encryption: EINVAL")
def encryption():
    with Fd(image()) as backing:
        for kind in 1, 2, 18:
            refused("-EINVAL", backing.fd, encrypt_type=kind)
        refused("-EINVAL", backing.fd, encrypt_key_size=33)


@check("unknown flags: EINVAL")
def flags():
    with Fd(image()) as backing:
        for flag in 2, 32, 1 << 31, 0xFFFFFFFF:
            refused("-EINVAL", backing.fd, flags=flag)


@check(
    "invalid block sizes: EINVAL",
    better="the C driver leaves the device read-only, its events suppressed and the file's gfp mask changed",
)
def block_sizes():
    with Fd(image(), os.O_RDONLY) as backing:
        for size in 1, 256, 511, 513, 4095, 1536, 131072, 0x20000400, 0xFFFFFFFF:
            refused("-EINVAL", backing.fd, block_size=size)


@check("block sizes from 512 to a page")
def good_block_sizes():
    with Fd(image()) as backing:
        for size in 512, 1024, 2048, 4096:
            device = free_device()
            equal(f"block size {size}", configure(device, backing.fd, block_size=size), 0)
            equal("queue", sysfs(device, "queue/logical_block_size"), str(size))
            detach(device)


@check("a bound device: EBUSY")
def bound():
    device = free_device()
    with Fd(image()) as backing, Fd(image(2, "other")) as other:
        equal("first", set_fd(device, backing.fd), 0)
        equal("LOOP_SET_FD", set_fd(device, other.fd), "-EBUSY")
        equal("LOOP_CONFIGURE", configure(device, other.fd), "-EBUSY")
    equal("size", sysfs(device, "size"), "2048")
    equal("file", sysfs(device, "loop/backing_file"), f"{SCRATCH}/image")
    detach(device)


@check("a device that another opener holds exclusively: EBUSY")
def exclusive():
    device = free_device()
    with Fd(image()) as backing:
        with Fd(device, os.O_RDWR | os.O_EXCL) as owner:
            equal("other", set_fd(device, backing.fd), "-EBUSY")
            equal("owner", owner.ioctl(SET_FD, backing.fd), 0)
    detach(device)


@check("no claim is left behind")
def claim_given_back():
    device = free_device()
    for backing in CLOSED, 0xFFFFFFFF:
        equal("LOOP_SET_FD", set_fd(device, backing), "-EBADF")
    with Fd(SCRATCH, os.O_RDONLY) as backing:
        equal("LOOP_SET_FD", set_fd(device, backing.fd), "-EINVAL")
    with Fd(device, os.O_RDWR | os.O_EXCL):
        pass


@check("a device on itself: EBADF")
def itself():
    device = free_device()
    with Fd(device) as backing:
        equal("LOOP_SET_FD", set_fd(device, backing.fd), "-EBADF")
    equal("loop/", sysfs(device, "loop/backing_file"), None)
    usable(device)


@check("the lowest device of a stack on the highest one: EBUSY")
def cycle():
    below = image(2)
    devices = []
    for _ in range(3):
        devices.append(free_device())
        with Fd(below) as backing:
            equal("attach", set_fd(devices[-1], backing.fd), 0)
        below = devices[-1]
    with Fd(below) as backing:
        equal("lowest on highest", set_fd(devices[0], backing.fd), "-EBUSY")
    for device in reversed(devices):
        detach(device)


@check("a device on an unbound one: EINVAL")
def on_unbound():
    device = free_device()
    number = int(device[9:])
    with Fd(f"/dev/loop{number + 1}") as backing:
        refused("-EINVAL", backing.fd)


@check("a refused file is closed")
def file_let_go():
    place = f"{SCRATCH}/place"
    os.mkdir(place)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    with Fd(image(1, "place/image")) as backing:
        refused("-EINVAL", backing.fd, flags=2)
        refused("-EOVERFLOW", backing.fd, offset=1 << 63)
        refused("-EINVAL", backing.fd, encrypt_type=1)
    subprocess.run(["umount", place], check=True)


@check(
    "a file refused for its block size is closed",
    better="the C driver does not restore what it has set",
)
def file_let_go_late():
    place = f"{SCRATCH}/place"
    os.mkdir(place)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    with Fd(image(1, "place/image"), os.O_RDONLY) as backing:
        refused("-EINVAL", backing.fd, block_size=256)
    subprocess.run(["umount", place], check=True)


@check("CLR_FD again through the same descriptor: ENXIO")
def clear_twice():
    device = free_device()
    with Fd(image()) as backing, Fd(device) as fd:
        equal("SET_FD", fd.ioctl(SET_FD, backing.fd), 0)
        # udev may have the device open for a moment; then it stays bound, and CLR_FD returns 0
        # again.
        subprocess.run(["udevadm", "settle"], check=True)
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
        equal("CLR_FD", fd.ioctl(CLR_FD), "-ENXIO")
        equal("GET_STATUS64", fd.ioctl(GET_STATUS64, Info()), "-ENXIO")
    wait_for(lambda: not is_bound(device))


run_checks()
