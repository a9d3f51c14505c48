#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""With enospc=wait, a write to an image whose file system is full waits for space: no data is lost,
other requests are served meanwhile, and no task waits for such a write that cannot end it."""
import contextlib
import errno
import fcntl
import fuse
import itertools
import mmap
import os
import signal
import subprocess
import time
from lib import *

BLOCK = 64 << 10
MIB = 24
BLKZEROOUT = 0x127F
HOSTS = ("ext4", "xfs", "tmpfs")


def host(kind, size="64M"):
    """Makes a sparse image that is larger than its file system, and returns its path."""
    if kind != "tmpfs":
        return backing(kind, 1024)
    place = f"{SCRATCH}/tmpfs"
    os.makedirs(place)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    return image(1024, f"{place}/image")


def fill(path):
    """Fills the file system of an image with another file, and returns the path of that file."""
    filler = f"{os.path.dirname(path)}/filler"
    size, step = 0, 256 << 20
    with open(filler, "wb") as file:
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), size, step)
                size += step
            except OSError as error:
                equal("fallocate", error.errno, errno.ENOSPC)
                step //= 2
    return filler


@contextlib.contextmanager
def full(kind, direct, mode="wait"):
    """Attaches an image whose first MiB is written to a file system that is full; yields the path
    of the device and that of the other file."""
    path = host(kind)
    noise(path, 1)
    with attached(path, direct) as device:
        filler = fill(path)
        tune(device, "enospc", mode)
        yield device, filler


def block(number):
    return number.to_bytes(8, "little") * (BLOCK // 8)


def numbers():
    return range((1 << 20) // BLOCK, (MIB << 20) // BLOCK)


def write(device, flags=os.O_DIRECT):
    """Writes blocks behind the first MiB, and makes them durable; exits with the number of an
    error."""
    memory = mmap.mmap(-1, BLOCK)
    try:
        with Fd(device, os.O_RDWR | flags) as fd:
            for number in numbers():
                memory[:] = block(number)
                equal("written", os.pwrite(fd.fd, memory, number * BLOCK), BLOCK)
            os.fsync(fd.fd)
    except OSError as error:
        os._exit(error.errno)


def check_data(path):
    with open(path, "rb") as file:
        for number in numbers():
            file.seek(number * BLOCK)
            assert file.read(BLOCK) == block(number), f"block {number}"


def stat(device, name):
    return int(dict(map(str.split, sysfs(device, "rnull_loop/stats").splitlines()))[name])


def retries(device):
    return stat(device, "retry_nospc")


def waiting(device, function, *arguments):
    """Calls a function in another process, and returns its id when its writes wait."""
    before = retries(device)
    pid = forked(function, *arguments)
    # More than once, so that the write has been tried again.
    wait_for(lambda: retries(device) > before + 2, 20)
    equal("the writer", os.waitpid(pid, os.WNOHANG), (0, 0))
    return pid


def result(pid, seconds=20):
    """Returns the exit code of a process, or minus the number of its signal, within a time."""
    found = []

    def ended():
        """the process ends"""
        got, status = os.waitpid(pid, os.WNOHANG)
        if got:
            found.append(os.waitstatus_to_exitcode(status))
        return found

    wait_for(ended, seconds)
    return found[0]


def goes_on(pid, filler):
    os.unlink(filler)
    equal("the writer", result(pid), 0)


def read(device, count=8):
    """Reads the first MiB, past the page cache."""
    with Fd(device, os.O_RDONLY | os.O_DIRECT) as fd:
        for number in range(count):
            os.preadv(fd.fd, [mmap.mmap(-1, BLOCK)], number * BLOCK)


def within(function, *arguments, seconds=10):
    """Calls a function in another process, which must succeed within a time."""
    equal(function.__name__, result(forked(function, *arguments), seconds), 0)


def released(pid, device):
    """Checks that a writer has failed, that nothing waits any more, and that the device works."""
    equal("the writer", result(pid), errno.ENOSPC)
    before = retries(device)
    equal("another writer", result(forked(write, device)), errno.ENOSPC)
    equal("retries", retries(device), before)
    within(read, device)


@check("the default is to fail; other values are refused")
def default():
    with full("ext4", True, "error") as (device, filler):
        equal("the writer", result(forked(write, device)), errno.ENOSPC)
        equal("retries", retries(device), 0)
        for value in "wait", "error":
            tune(device, "enospc", value)
            for bad in "0", "1", "", "Wait", "wait ", "errors":
                with contextlib.suppress(OSError):
                    tune(device, "enospc", bad)
                    assert not bad, f"{bad!r} is accepted"
                equal(f"after {bad!r}", sysfs(device, "rnull_loop/enospc"), value)
        tune(device, "enospc", "wait")
        os.unlink(filler)
    with attached(image(1), False) as again:
        equal("device", again, device)
        equal("after an attach", sysfs(again, "rnull_loop/enospc"), "error")


def waits(kind, direct):
    with full(kind, direct) as (device, filler):
        pid = waiting(device, write, device)
        within(read, device)
        goes_on(pid, filler)
        path = sysfs(device, "loop/backing_file")
        check_data(device)
        settled = retries(device)
        time.sleep(1.5)
        equal("retries", retries(device), settled)
    check_data(path)


for host_, direct_ in itertools.product(HOSTS, (True, False)):
    check(f"a write waits, reads do not: {host_}, {'direct' if direct_ else 'buffered'}")(
        lambda kind=host_, direct=direct_: waits(kind, direct)
    )


@check("writes to the page cache of the device, and fsync, wait")
def buffered():
    with full("tmpfs", False) as (device, filler):
        pid = waiting(device, write, device, 0)
        within(read, device)
        goes_on(pid, filler)
        check_data(sysfs(device, "loop/backing_file"))


@check("a write that is durable by itself waits, and no flush waits for it")
def durable():
    def rewrite():
        with Fd(device, os.O_RDWR | os.O_DIRECT) as fd:
            os.pwrite(fd.fd, mmap.mmap(-1, BLOCK), 0)
            os.fsync(fd.fd)

    for kind in "ext4", "xfs":
        with full(kind, True) as (device, filler):
            pid = waiting(device, write, device, os.O_DIRECT | os.O_DSYNC)
            # The block layer must not flush for it: no request would get the result.
            flushes, before = stat(device, "flush_sync"), retries(device)
            wait_for(lambda: retries(device) > before + 3)
            equal("flushes", stat(device, "flush_sync"), flushes)
            for _ in range(5):
                within(rewrite)
            goes_on(pid, filler)
            check_data(device)


@check("zeroes that need blocks wait")
def zeroes():
    def zero():
        with Fd(device) as fd:
            fcntl.ioctl(fd.fd, BLKZEROOUT, (32 << 20).to_bytes(8, "little") + (16 << 20).to_bytes(8, "little"))

    with full("ext4", True) as (device, filler):
        pid = waiting(device, zero)
        within(read, device)
        goes_on(pid, filler)


@check("more writes wait than the device has requests, and reads are served")
def many():
    with full("tmpfs", True) as (device, filler):
        command = "--name=many", f"--filename={device}", "--rw=randwrite", "--bs=4k", "--size=16M", "--offset=1M"
        command += "--ioengine=libaio", "--direct=1", "--iodepth=512", "--do_verify=1", *VERIFIED
        with background("fio", *command) as process:
            wait_for(lambda: retries(device) > 300, 20)
            within(read, device)
            os.unlink(filler)
            equal("fio", process.wait(30), 0)


@check("a file system on the device waits, and loses nothing")
def file_system():
    def store():
        with open(f"{place}/file", "wb") as file:
            for number in range(512):
                file.write(block(number))
            file.flush()
            os.fsync(file.fileno())

    for kind in "ext4", "xfs":
        path = host("tmpfs", "256M")
        device = run("losetup", "-f", "--show", "--direct-io=on", path)
        run(f"mkfs.{kind}", "-q", *MKFS[kind], device)
        place = mounted(device, "place")
        with open(f"{place}/old", "wb") as file:
            file.write(block(7))
            os.fsync(file.fileno())
        filler = fill(path)
        tune(device, "enospc", "wait")
        pid = waiting(device, store)
        with Fd(f"{place}/old", os.O_RDONLY | os.O_DIRECT) as fd:
            equal("old", os.preadv(fd.fd, [mmap.mmap(-1, BLOCK)], 0), BLOCK)
        goes_on(pid, filler)
        run("umount", place)
        run(f"fsck.{kind}", "-n", device)
        mounted(device, "place")
        with open(f"{place}/file", "rb") as file:
            for number in range(512):
                assert file.read(BLOCK) == block(number), f"block {number}"
        run("umount", place)
        detach(device)
        run("umount", os.path.dirname(path))
        os.rmdir(os.path.dirname(path))


@check("switching to error makes waiting writes fail")
def switch():
    for kind in HOSTS:
        with full(kind, True) as (device, filler):
            pid = waiting(device, write, device)
            tune(device, "enospc", "error")
            released(pid, device)
            os.unlink(filler)


@check("a detach makes waiting writes fail")
def detached():
    path = host("tmpfs")
    for buffers in os.O_DIRECT, 0:
        fd = attach(path, flags=DIRECT_IO)
        filler = fill(path)
        tune(fd.path, "enospc", "wait")
        pid = waiting(fd.path, write, fd.path, buffers)
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
        assert is_bound(fd.path), "detached while it is open"
        equal("enospc", sysfs(fd.path, "rnull_loop/enospc"), "error")
        # The page cache of a block device reports all errors as EIO.
        assert result(pid) in (errno.ENOSPC, errno.EIO)
        fd.close()
        wait_for(lambda: not is_bound(fd.path))
        os.unlink(filler)


@check("a writer that is killed ends when the device is detached")
def killed():
    path = host("ext4")
    fd = attach(path, flags=DIRECT_IO)
    fill(path)
    tune(fd.path, "enospc", "wait")
    pid = waiting(fd.path, write, fd.path)
    os.kill(pid, signal.SIGKILL)
    device = fd.path
    fd.close()
    run("losetup", "-d", device, timeout=10)
    equal("the writer", result(pid), -signal.SIGKILL)
    wait_for(lambda: not is_bound(device))


@check("changes of the device do not wait for waiting writes")
def changes():
    def ioctl(name, command, argument):
        with Fd(device) as fd:
            equal(name, fd.ioctl(command, argument), 0)

    with full("ext4", True) as (device, filler):
        pid = waiting(device, write, device)
        within(ioctl, "SET_STATUS64", SET_STATUS64, Info(file_name=b"name"))
        within(ioctl, "SET_CAPACITY", SET_CAPACITY, 0)
        within(ioctl, "SET_DIRECT_IO off", SET_DIRECT_IO, 0)
        within(ioctl, "SET_DIRECT_IO on", SET_DIRECT_IO, 1)
        within(ioctl, "SET_BLOCK_SIZE", SET_BLOCK_SIZE, 4096)
        queue = f"/sys/block/{os.path.basename(device)}/queue"
        old = sysfs(device, "queue/nr_requests")
        within(write_text, f"{queue}/scheduler", "mq-deadline")
        within(write_text, f"{queue}/scheduler", "none")
        within(write_text, f"{queue}/nr_requests", old)
        before = retries(device)
        wait_for(lambda: retries(device) > before)
        within(read, device)
        goes_on(pid, filler)
        check_data(device)


@check("a move of the device makes waiting writes fail, and later ones wait again")
def moved():
    def move():
        with Fd(device) as fd:
            equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(offset=1 << 20)), 0)

    with full("ext4", True) as (device, filler):
        pid = waiting(device, write, device)
        within(move)
        equal("the writer", result(pid), errno.ENOSPC)
        pid = waiting(device, write, device)
        goes_on(pid, filler)
        check_data(device)


@check("a change that waits for writes to the page cache of the device can be killed")
def killable():
    def resize():
        with Fd(device) as fd:
            equal("SET_CAPACITY", fd.ioctl(SET_CAPACITY), 0)

    def new_blocks():
        with Fd(device) as fd:
            equal("SET_BLOCK_SIZE", fd.ioctl(SET_BLOCK_SIZE, 4096), 0)

    def detach_by_losetup():
        run("losetup", "-d", device)

    for change in resize, new_blocks:
        with full("ext4", True) as (device, filler):
            os.truncate(sysfs(device, "loop/backing_file"), 2 << 30)
            pid = waiting(device, write, device, 0)
            changer = forked(change)
            time.sleep(1)
            equal(f"{change.__name__} ends", os.waitpid(changer, os.WNOHANG), (0, 0))
            os.kill(changer, signal.SIGKILL)
            equal(change.__name__, result(changer), -signal.SIGKILL)
            equal("blocks", sysfs(device, "queue/logical_block_size"), "512")
            changer = forked(change)
            time.sleep(1)
            # Opens the device, which the change does not keep from that.
            within(detach_by_losetup)
            assert result(pid) in (errno.ENOSPC, errno.EIO)
            equal(change.__name__, result(changer), 0)
            wait_for(lambda: not is_bound(device))
            os.unlink(filler)
            fd = Fd(device)
            with Fd(image(1)) as file:
                # The end of the case detaches it.
                equal("SET_FD", fd.ioctl(SET_FD, file.fd), 0)
            fd.close()


@check("a file whose owner has no quota left")
def quota():
    server = fuse.Server(MIB)
    with attached(server.path, False) as device:
        tune(device, "enospc", "wait")
        server.fail(fuse.WRITE, errno.EDQUOT)
        pid = waiting(device, write, device)
        server.fail(fuse.WRITE, 0)
        equal("the writer", result(pid), 0)
        check_data(device)
    subprocess.run(["umount", server.place], check=False)


@check("the log has a line when writes wait, and one when they go on")
def log():
    def lines():
        return [line for line in run("dmesg", "-t").splitlines() if f" {os.path.basename(device)}: " in line]

    number = control(CTL_ADD, 77)
    device = f"/dev/loop{number}"
    path = host("tmpfs")
    wait_for(lambda: os.path.exists(device))
    run("losetup", device, path)
    filler = fill(path)
    tune(device, "enospc", "wait")
    old = len(lines())
    pid = waiting(device, write, device)
    got = lines()[old:]
    assert len(got) == 1 and "is full: writes wait" in got[0], got
    assert f"echo error >/sys/block/loop{number}/rnull_loop/enospc" in got[0], got
    goes_on(pid, filler)
    wait_for(lambda: len(lines()) > old + 1)
    got = lines()[old + 1 :]
    assert len(got) == 1 and "has space again" in got[0], got
    detach(device)
    equal("removed", control(CTL_REMOVE, number), 0)


if DRIVER != "rnull_loop":
    skip_all("the C driver has no such choice")
stop_udev()
run_checks()
