#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Errors of the backing file have the right meaning at the device: a transient error is retried for
a limited time; quota is reported as ENOSPC; and no status that is reserved for the block layer
leaves the driver."""
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
        # FUSE keeps dirty data that it could not write back.
        subprocess.run(["umount", self.server.place], check=False)


def error_of(function, *arguments):
    """Returns the name of the error with which a call fails, or None."""
    try:
        function(*arguments)
        return None
    except OSError as error:
        return errno.errorcode[error.errno]


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
    write_text("/proc/sys/vm/drop_caches", "3")
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
            f"occasional {name} of the file does not reach the submitter, {how}",
            better="the C driver passes it on, or reports EIO",
        )(lambda error=getattr(errno, name), dio=dio: passing(error, dio))


def bounded(device, error, operation):
    """Returns the error of a call while the file fails, the number of tries, and the error
    afterwards."""
    call = {fuse.READ: device.read, fuse.WRITE: device.write}[operation]
    device.server.fail(operation, error)
    outcome = error_of(call, 5), device.server.failed(operation)
    device.server.fail(operation, 0)
    return *outcome, error_of(call, 5)


@check("permanent EAGAIN and EINTR of the file are EIO after a limited number of tries", better="the C driver passes them on")
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


@check("EDQUOT of the file is ENOSPC", better="the C driver reports EIO")
def quota():
    device = Device(DIRECT_IO)
    device.server.fail(fuse.WRITE, errno.EDQUOT)
    equal("error", error_of(device.write, 1), "ENOSPC")
    device.server.fail(fuse.WRITE, 0)
    equal("afterwards", error_of(device.write, 1), None)
    device.close()


# The errors of BLK_STS_DEV_RESOURCE, DM_REQUEUE, ZONE_ACTIVE_RESOURCE and ZONE_OPEN_RESOURCE.
RESERVED = errno.EBUSY, errno.EREMCHG, errno.EOVERFLOW, errno.ETOOMANYREFS


@check("errors with another meaning in the block layer are EIO")
def reserved():
    device = Device(DIRECT_IO)
    for error in RESERVED:
        for operation, call in (fuse.READ, device.read), (fuse.WRITE, device.write), (fuse.FSYNC, device.sync):
            device.server.fail(operation, error)
            equal(f"{errno.errorcode[error]} of operation {operation}", error_of(call, 1), "EIO")
            device.server.fail(operation, 0)
    device.close()


@check("a failed flush is reported with any error, because the state of the writeback is unknown")
def failing_flush():
    device = Device(DIRECT_IO)
    for error in errno.EOPNOTSUPP, errno.EAGAIN, errno.EINTR:
        device.server.fail(fuse.FSYNC, error, every=1)
        equal(errno.errorcode[error], error_of(device.sync), "EIO")
        device.server.fail(fuse.FSYNC, 0)
        equal("afterwards", error_of(device.sync), None)
    device.close()


@check("unsupported discards and zeroing are not logged")
def quiet():
    device = Device(DIRECT_IO)
    device.server.fail(fuse.FALLOCATE, errno.EOPNOTSUPP)
    log = Log()
    # The block layer ignores an unsupported discard, and writes zeroes itself.
    run("blkdiscard", "-l", "1M", device.path)
    run("blkdiscard", "-z", "-l", "1M", device.path)
    equal("failed", device.server.failed(fuse.FALLOCATE), 2)
    equal("log", log.lines("error, dev loop"), [])
    device.close()


@check("permanent ENOMEM of the file is EIO after two minutes, with one line in the log", better="the C driver reports EIO at once")
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
    assert waiting[0].is_alive(), "a read failed early, although memory might have been freed"
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
