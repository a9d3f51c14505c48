#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""LOOP_CTL_ATTACH attaches a file to a free device in one step, so that tasks which attach at the
same time do not get the same device."""
import os
import select
from lib import *

ATTACH = 0x41304CA0


def attach_free(path, mode=os.O_RDWR, block_size=0, **info):
    """Returns the number of the device, or minus the name of an error."""
    with Fd("/dev/loop-control") as fd, Fd(path, mode) as file:
        return fd.ioctl(ATTACH, Config(fd=file.fd, block_size=block_size, info=Info(**info)))


def node(number):
    return f"/dev/loop{number}"


@check("a file is attached to a free device")
def one():
    file = numbered_image()
    number = attach_free(file, offset=4096, sizelimit=8192, block_size=1024)
    device = node(number)
    equal("file", sysfs(device, "loop/backing_file"), file)
    equal("offset", sysfs(device, "loop/offset"), "4096")
    equal("size", sysfs(device, "size"), "16")
    equal("block size", sysfs(device, "queue/logical_block_size"), "1024")
    with Fd(device) as fd:
        equal("data", number_at(fd, 3), 8 + 3)
        equal("status", status(fd).offset, 4096)
    detach(device)


@check("a file that is open for reading makes a read-only device")
def read_only():
    device = node(attach_free(image(), os.O_RDONLY))
    equal("read-only", sysfs(device, "ro"), "1")
    detach(device)


@check("partitions are scanned")
def partitions():
    file = image(4)
    run("sfdisk", "-q", file, input="label: dos\nstart=2048,size=2048\n")
    device = node(attach_free(file, flags=PARTSCAN))
    assert sysfs(device, f"{os.path.basename(device)}p1/size") == "2048"
    detach(device)


@check("tasks that attach at the same time get different devices")
def parallel():
    files = [image(1, f"image{number}") for number in range(16)]
    result, writing = os.pipe()
    ready, start = os.pipe()

    def run_one(file):
        os.close(start)
        os.read(ready, 1)
        number = attach_free(file)
        os.write(writing, f"{number} {file}\n".encode())

    pids = [forked(run_one, file) for file in files]
    os.close(ready)
    os.close(start)
    for pid in pids:
        equal("status", os.waitpid(pid, 0)[1], 0)
    os.close(writing)
    with os.fdopen(result) as lines:
        pairs = [line.split(maxsplit=1) for line in lines.read().splitlines()]
    equal("devices", len({number for number, _ in pairs}), len(files))
    for number, file in pairs:
        equal("file", sysfs(node(number), "loop/backing_file"), file)
        detach(node(number))


@check("a device with an exclusive owner is not taken")
def claimed():
    device = free_device()
    with Fd(device, os.O_RDWR | os.O_EXCL):
        other = node(attach_free(image()))
        assert other != device
        equal("state", is_bound(device), False)
        detach(other)


@check("errors leave no device attached")
def errors():
    bound = [name for name in os.listdir("/sys/block") if is_bound(name)]
    file = image()
    equal("autoclear", attach_free(file, flags=AUTOCLEAR), "-EINVAL")
    equal("unknown flag", attach_free(file, flags=1 << 10), "-EINVAL")
    equal("block size", attach_free(file, block_size=1000), "-EINVAL")
    with Fd("/dev/loop-control") as fd:
        equal("no file", fd.ioctl(ATTACH, Config(fd=999)), "-EBADF")
        equal("address", fd.ioctl(ATTACH, 8), "-EFAULT")
    with Fd("/dev/zero") as zero, Fd("/dev/loop-control") as fd:
        equal("character device", fd.ioctl(ATTACH, Config(fd=zero.fd)), "-EINVAL")
    equal("bound", [name for name in os.listdir("/sys/block") if is_bound(name)], bound)


class Poll:
    """The changes of rnull_loop/state of a device."""

    def __init__(self, device):
        self.file = open(f"/sys/block/{os.path.basename(device)}/rnull_loop/state", encoding="ascii")
        self.poll = select.poll()
        self.poll.register(self.file, select.POLLPRI)
        self.now()

    def now(self):
        self.file.seek(0)
        return self.file.read().rstrip()

    def until(self, state):
        """Waits for events, and reads only after one."""
        for _ in range(10):
            assert self.poll.poll(10_000), f"no event of {state}"
            if self.now() == state:
                return
        raise AssertionError(f"not {state}")

    def is_quiet(self):
        return not self.poll.poll(200)


@check("rnull_loop/state tells of an attach and of a detach, and can be polled")
def states():
    device = free_device()
    state = Poll(device)
    equal("before", state.now(), "unbound")
    with Fd(device) as fd, Fd(image()) as file:
        equal("LOOP_CONFIGURE", fd.ioctl(CONFIGURE, Config(fd=file.fd)), 0)
        state.until("bound")
        assert state.is_quiet()
        equal("LOOP_CLR_FD", fd.ioctl(CLR_FD), 0)
        state.until("rundown")
    state.until("unbound")
    assert state.is_quiet()


@check("a detach that is deferred leaves the state, until the last close")
def deferred():
    fd = attach(image())
    state = Poll(fd.path)
    with Fd(fd.path) as other:
        equal("LOOP_CLR_FD", other.ioctl(CLR_FD), 0)
    equal("state", state.now(), "bound")
    equal("autoclear", sysfs(fd.path, "loop/autoclear"), "1")
    fd.close()
    state.until("unbound")


if DRIVER != "rnull_loop":
    skip_all("the C driver has neither")
# It opens devices.
stop_udev()
run_checks()
