#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Errors of the backing file mean what they say at the device: an error that may pass is tried again, for
a bounded time; quota is space; and no status that is reserved for the block layer leaves the driver."""
import concurrent.futures
import errno
import fuse
import mmap
import os
import subprocess
import threading
import time
from lib import *

PAGE = 4096
MIB = 4


class Device:
    """A device on a FUSE file, open for direct I/O."""

    def __init__(self, flags, name="fuse"):
        self.server = fuse.Server(MIB, name)
        with attach(self.server.path, flags=flags) as fd:
            self.path = fd.path
            settle()
            self.fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        self.memory = mmap.mmap(-1, PAGE)

    def read(self, page):
        return os.preadv(self.fd, [self.memory], page * PAGE)

    def write(self, page, value=1):
        self.memory[:] = bytes([value]) * PAGE
        return os.pwritev(self.fd, [self.memory], page * PAGE)

    def sync(self, page=0):
        """Writes, so that there is something to sync, and syncs."""
        self.write(page)
        os.fsync(self.fd)

    def close(self):
        os.close(self.fd)
        detach(self.path)
        # FUSE keeps what it could not write.
        subprocess.run(["umount", self.server.place], check=False)


def error_of(function, *arguments):
    """The name of the error with which a call fails, or None."""
    try:
        function(*arguments)
        return None
    except OSError as error:
        return errno.errorcode[error.errno]


class Log:
    """The lines of the kernel's log since it was made."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)

    def lines(self, part):
        found = []
        while True:
            try:
                line = os.read(self.fd, 8192).decode()
            except BlockingIOError:
                return [line for line in found if part in line]
            found.append(line)


def modes():
    for flags in DIRECT_IO, 0:
        yield flags, "direct" if flags else "buffered"


def passing(error, flags):
    device = Device(flags)
    for operation in fuse.READ, fuse.WRITE:
        device.server.fail(operation, error, every=3)
    for page in range(20):
        device.write(page, page + 1)
    os.fsync(device.fd)
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as caches:
        caches.write("3")
    for page in range(20):
        equal("read", device.read(page), PAGE)
        equal("data", device.memory[:], bytes([page + 1]) * PAGE)
    for operation in fuse.WRITE, fuse.READ:
        assert device.server.failed(operation) > 1, "the file has not failed"
    count("faults", device.server.failed(fuse.READ) + device.server.failed(fuse.WRITE))
    device.close()


for name in "EAGAIN", "EINTR":
    for dio, how in modes():
        check(
            f"{name} of the file now and then is not seen, {how}",
            better="passes it on, or makes EIO of it",
        )(lambda error=getattr(errno, name), dio=dio: passing(error, dio))


def bounded(device, error, operation):
    """How a call fails while the file has an error, the number of tries, and how it fails afterwards."""
    call = {fuse.READ: device.read, fuse.WRITE: device.write}[operation]
    device.server.fail(operation, error)
    outcome = error_of(call, 5), device.server.failed(operation)
    device.server.fail(operation, 0)
    return *outcome, error_of(call, 5)


@check("EAGAIN and EINTR of the file for ever are EIO after a bounded number of tries", better="are passed on")
def lasting():
    cases = [
        (Device(DIRECT_IO, f"fuse-{error}-{operation}"), error, operation)
        for error in (errno.EAGAIN, errno.EINTR)
        for operation in (fuse.READ, fuse.WRITE)
    ]
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        for error, tries, afterwards in pool.map(lambda case: bounded(*case), cases):
            equal("errors", (error, afterwards), ("EIO", None))
            assert 3 <= tries <= 40, f"{tries} tries"
    for device, _, _ in cases:
        device.close()


@check("a quota that is used up is ENOSPC", better="EIO")
def quota():
    device = Device(DIRECT_IO)
    device.server.fail(fuse.WRITE, errno.EDQUOT)
    equal("error", error_of(device.write, 1), "ENOSPC")
    device.server.fail(fuse.WRITE, 0)
    equal("afterwards", error_of(device.write, 1), None)
    device.close()


# What BLK_STS_DEV_RESOURCE, DM_REQUEUE, ZONE_ACTIVE_RESOURCE and ZONE_OPEN_RESOURCE stand for.
RESERVED = errno.EBUSY, errno.EREMCHG, errno.EOVERFLOW, errno.ETOOMANYREFS


@check("what means something else to the block layer is EIO")
def reserved():
    device = Device(DIRECT_IO)
    for error in RESERVED:
        for operation, call in (fuse.READ, device.read), (fuse.WRITE, device.write), (fuse.FSYNC, device.sync):
            device.server.fail(operation, error)
            equal(f"{errno.errorcode[error]} of operation {operation}", error_of(call, 1), "EIO")
            device.server.fail(operation, 0)
    device.close()


@check("a flush that fails is told of, whatever the error: it is not known what was written back")
def failing_flush():
    device = Device(DIRECT_IO)
    for error in errno.EOPNOTSUPP, errno.EAGAIN, errno.EINTR:
        device.server.fail(fuse.FSYNC, error, every=1)
        equal(errno.errorcode[error], error_of(device.sync), "EIO")
        device.server.fail(fuse.FSYNC, 0)
        equal("afterwards", error_of(device.sync), None)
    device.close()


@check("discards and zeroing that turn out to be unsupported are quiet in the log")
def quiet():
    device = Device(DIRECT_IO)
    device.server.fail(fuse.FALLOCATE, errno.EOPNOTSUPP)
    log = Log()
    # The block layer takes a discard that is not supported for done, and writes zeroes by itself.
    run("blkdiscard", "-l", "1M", device.path)
    run("blkdiscard", "-z", "-l", "1M", device.path)
    equal("failed", device.server.failed(fuse.FALLOCATE), 2)
    equal("log", log.lines("error, dev loop"), [])
    device.close()


@check("ENOMEM of the file for ever is EIO after two minutes, with one line in the log", better="EIO at once")
def no_memory():
    devices = [Device(flags, f"fuse-{how}") for flags, how in modes()]
    log, errors = Log(), []
    waiting = []
    for device in devices:
        for operation in fuse.READ, fuse.WRITE:
            device.server.fail(operation, errno.ENOMEM)
    for call in [call for device in devices for call in (device.read, device.write)]:
        waiting.append(threading.Thread(target=lambda call=call: errors.append(error_of(call, 7))))
        waiting[-1].start()
    start = time.monotonic()
    waiting[0].join(100)
    assert waiting[0].is_alive(), "a read fails though there may be memory again"
    for thread in waiting:
        thread.join(120)
        assert not thread.is_alive(), f"waits for {time.monotonic() - start} s"
    equal("errors", errors, ["EIO"] * 4)
    equal("lines", len(log.lines("no memory")), 2)
    for device in devices:
        for operation in fuse.READ, fuse.WRITE:
            device.server.fail(operation, 0)
        equal("afterwards", error_of(device.read, 7), None)
        equal("afterwards", error_of(device.write, 7), None)
        device.close()


run_checks()
