#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Bugs that loop drivers have had, as far as no other test covers them. The numbers are those of
docs/robustness.md, which names the tests of the others."""
import contextlib
import functools
import mmap
import stat
import subprocess
import threading
import time
from lib import *

RWF_NOWAIT, BLKFLSBUF = 8, 0x1261
PAGE = 4096


def references():
    """Returns the reference count of the module."""
    with open(f"/sys/module/{DRIVER}/refcnt", encoding="ascii") as file:
        return int(file.read())


def equal_references(wanted):
    """Waits until the count has the value, because udev may hold a reference for a moment."""
    wait_for(lambda: references() == wanted)


def file_system(kind="ext4", mib=48):
    """Returns a mounted file system, which is itself on a loop device, and that device."""
    run(f"mkfs.{kind}", "-q", image(mib, "lower"))
    fd = attach(f"{SCRATCH}/lower")
    return mounted(fd.path, "place"), fd


def page_of(value):
    memory = mmap.mmap(-1, PAGE)
    memory.write(bytes([value]) * PAGE)
    return memory


def direct(path):
    return Fd(path, os.O_RDWR | os.O_DIRECT)


@check("class 6: open attributes fail with ENODEV after their device was unbound or removed")
def open_attributes():
    for _ in range(3 * ROUNDS):
        equal("ADD", control(CTL_ADD, 111), 111)
        settle()
        with Fd(image()) as file, Fd("/dev/loop111") as fd:
            equal("SET_FD", fd.ioctl(SET_FD, file.fd), 0)
            settle()
            bound = Fd("/sys/block/loop111/loop/backing_file", os.O_RDONLY)
            size = Fd("/sys/block/loop111/size", os.O_RDONLY)
            equal("CLR_FD", fd.ioctl(CLR_FD), 0)
        wait_for(lambda: not is_bound("loop111"))
        wait_for(lambda: control(CTL_REMOVE, 111) == 0)
        for attribute in bound, size:
            try:
                raise AssertionError(f"read {os.pread(attribute.fd, 100, 0)}")
            except OSError as error:
                equal("errno", error.errno, errno.ENODEV)
            attribute.close()


@check("class 7: dropping all caches does not affect a bound device")
def caches_dropped():
    path = numbered_image()
    for _ in range(5 * ROUNDS):
        with attach(path) as fd:
            device = fd.path
        settle()
        write_text("/proc/sys/vm/drop_caches", 3)
        with Fd(device) as fd:
            equal("sector", number_at(fd, 77), 77)
        write_text("/proc/sys/vm/drop_caches", 2)
        detach(device)


@check("class 8: failed calls leave no reference to the module, the file or the device")
def nothing_left():
    lower = mounted("tmpfs", "place", "-t", "tmpfs")
    path = image(1, "place/image")
    device = free_device()
    settle()
    before = references()
    with Fd(path) as file, Fd(device) as fd:
        opened = references()
        for config in (
            Config(fd=1000),
            Config(fd=fd.fd),
            Config(fd=file.fd, info=Info(flags=2)),
            Config(fd=file.fd, info=Info(offset=1 << 63)),
            Config(fd=file.fd, info=Info(encrypt_type=1)),
        ):
            assert str(fd.ioctl(CONFIGURE, config)).startswith("-E")
            equal_references(opened)
        equal("CHANGE_FD", fd.ioctl(CHANGE_FD, file.fd), "-ENXIO")
        equal("SET_FD", fd.ioctl(SET_FD, file.fd), 0)
        equal_references(opened + 1)
        for call in (SET_FD, file.fd), (CHANGE_FD, file.fd), (SET_BLOCK_SIZE, 513):
            assert str(fd.ioctl(*call)).startswith("-E")
        equal_references(opened + 1)
    with Fd(device, os.O_RDWR | os.O_EXCL):
        pass
    detach(device)
    equal_references(before)
    run("umount", lower)


@check("class 17: writes wait for a frozen file system below, and go on after the thaw")
def frozen_below():
    place, lower = file_system()
    path = image(4, "place/image")
    for flags in 0, DIRECT_IO:
        with attach(path, flags=flags) as fd, direct(fd.path) as user:
            # The second write is in place, which may need no worker.
            for value in 1, 2:
                run("fsfreeze", "-f", place)
                writer = threading.Thread(
                    target=os.pwritev, args=(user.fd, [page_of(value), page_of(value)], 8192)
                )
                try:
                    writer.start()
                    writer.join(0.4)
                    assert writer.is_alive(), "written to a frozen file system"
                finally:
                    run("fsfreeze", "-u", place)
                writer.join(20)
                assert not writer.is_alive(), "the write does not continue"
                with open(path, "rb") as file:
                    file.seek(8192)
                    equal("the file", file.read(8192), bytes([value]) * 8192)
        detach(fd.path)
    # This would wait if the freeze protection of a write were still held.
    run("fsfreeze", "-f", place)
    run("fsfreeze", "-u", place)
    run("umount", place)
    lower.close()


@contextlib.contextmanager
def frozen(place):
    run("fsfreeze", "-f", place)
    try:
        yield
    finally:
        run("fsfreeze", "-u", place)


def frozen_holes(kind, mib):
    place, lower = file_system(kind, mib)
    path = numbered_image(1, "place/image")
    with attach(path) as fd, direct(fd.path) as user:
        settle()
        # REQ_OP_DISCARD, REQ_OP_WRITE_ZEROES with and without REQ_NOUNMAP.
        commands = ["blkdiscard", "-f"], ["blkdiscard", "-f", "-z"], ["fallocate", "-p"]
        for at, command in enumerate(commands):
            command = [*command, "-o", str(at << 16), "-l", str(1 << 16), fd.path]
            with frozen(place):
                change = subprocess.Popen(command)  # pylint: disable=consider-using-with
                time.sleep(1)
                equal(f"{command}: status while frozen", change.poll(), None)
                # The worker that waits for the thaw holds no lock of the file, and serves no other
                # request.
                memory = page_of(255)
                equal("read while frozen", os.preadv(user.fd, [memory], 3 << 16), PAGE)
                equal("sector", int.from_bytes(memory[:8], "little"), 3 << 7)
                os.fsync(user.fd)
            equal(f"{command}: status", change.wait(20), 0)
        with open(path, "rb") as file:
            equal("the file", file.read(3 << 16), bytes(3 << 16))
    detach(fd.path)
    run("umount", place)
    lower.close()


# With the C driver ext4 reports a bug of the kernel, and XFS may hang.
if DRIVER == "rnull_loop":
    for arguments in ("ext4", 48), ("xfs", 320):
        check(f"class 17: discards and zeroing wait for the thaw of {arguments[0]}")(
            functools.partial(frozen_holes, *arguments)
        )


@check("class 17: a write by a device node in a frozen file system waits, because it changes the node's times")
def frozen_node():
    place, lower = file_system()
    with attach(image()) as base:
        node = f"{place}/node"
        os.mknod(node, 0o600 | stat.S_IFBLK, os.stat(base.path).st_rdev)
        with attach(node) as fd, direct(fd.path) as user:
            settle()
            with frozen(place):
                writer = threading.Thread(target=os.pwritev, args=(user.fd, [page_of(9)], 0))
                writer.start()
                writer.join(1)
                waits = writer.is_alive()
            writer.join(20)
            assert waits and not writer.is_alive()
        detach(fd.path)
    detach(base.path)
    run("umount", place)
    lower.close()


@check("class 24: an exclusive open waits for a short claim instead of failing")
def short_claims():
    with attach(image()) as fd:
        settle()
        stop, outcomes = threading.Event(), set()

        def claims():
            while not stop.is_set():
                outcomes.add(fd.ioctl(SET_BLOCK_SIZE, 512))
                outcomes.add(fd.ioctl(SET_FD, fd.fd))

        claimer = threading.Thread(target=claims)
        claimer.start()
        try:
            for _ in range(500 * ROUNDS):
                with Fd(fd.path, os.O_RDWR | os.O_EXCL):
                    pass
        finally:
            stop.set()
            claimer.join()
        assert outcomes <= {0, "-EBUSY", "-EBADF"} and 0 in outcomes, outcomes
        count("operations", 500 * ROUNDS)


@check(
    "class 29: fsync of a device that was detached succeeds",
    better="the C driver fails the flush, which the former write cache calls for",
)
def unbound_fsync():
    with attach(image()) as fd:
        device = fd.path
        os.pwrite(fd.fd, b"x", 0)
    detach(device)
    with Fd(device) as fd:
        os.fsync(fd.fd)


def with_nowait(fd, mib):
    """Writes and reads scattered pages with RWF_NOWAIT, without pages in the page cache of the
    device."""
    settle()
    equal("BLKFLSBUF", fd.ioctl(BLKFLSBUF), 0)
    order = random.Random(SEED).sample(range(mib << 8), 128)
    for number, page in enumerate(order):
        equal("written", os.pwritev(fd.fd, [page_of(number)], page * PAGE, RWF_NOWAIT), PAGE)
    for number, page in enumerate(order):
        memory = page_of(255)
        equal("read", os.preadv(fd.fd, [memory], page * PAGE, RWF_NOWAIT), PAGE)
        equal("data", memory[:], bytes([number]) * PAGE)
    count("operations", 2 * len(order))


@check(f"class 36: RWF_NOWAIT does not fail with EAGAIN at holes and uncached data, seed {SEED}")
def nowait():
    place, lower = file_system()
    for flags in 0, DIRECT_IO:
        path = image(16, "place/image")
        with attach(path, flags=flags) as fd, direct(fd.path) as user:
            with_nowait(user, 16)
            os.fsync(user.fd)
            write_text("/proc/sys/vm/drop_caches", 3)
            memory = page_of(255)
            equal("uncached", os.preadv(user.fd, [memory], 0, RWF_NOWAIT), PAGE)
            # Requests for a block device are remapped to bios.
            with attach(fd.path, flags=flags) as high, direct(high.path) as top:
                with_nowait(top, 16)
            detach(high.path)
        detach(fd.path)
    run("umount", place)
    lower.close()


@check("class 36: RWF_NOWAIT waits for a suspended disk")
def nowait_standing():
    with attach(image(16)) as base:
        run("dmsetup", "create", "below", "--table", f"0 {16 << 11} linear {base.path} 0")
        settle()
        with attach("/dev/mapper/below", flags=DIRECT_IO) as fd, direct(fd.path) as user:
            settle()
            # Without pages in the page cache of the device.
            equal("BLKFLSBUF", fd.ioctl(BLKFLSBUF), 0)
            for vector, data in ((os.pwritev, page_of(7)), (os.preadv, page_of(255))):
                run("dmsetup", "suspend", "--nolockfs", "below")
                resume = threading.Timer(0.5, run, ["dmsetup", "resume", "below"])
                resume.start()
                start = time.monotonic()
                try:
                    equal("transferred", vector(user.fd, [data], 5 * PAGE, RWF_NOWAIT), PAGE)
                finally:
                    resume.join()
                assert time.monotonic() - start > 0.4, "did not wait"
            equal("data", data[:], page_of(7)[:])
        detach(fd.path)
        run("dmsetup", "remove", "--retry", "below")
    detach(base.path)


@check("class 36: read-ahead that the lower device may drop causes no error and no line in the log")
def readahead_standing():
    with attach(numbered_image()) as base:
        run("dmsetup", "create", "below", "--table", f"0 {1 << 11} linear {base.path} 0")
        settle()
        with attach("/dev/mapper/below", flags=DIRECT_IO) as fd:
            settle()
            equal("BLKFLSBUF", fd.ioctl(BLKFLSBUF), 0)
            run("dmesg", "--clear")
            run("dmsetup", "suspend", "--nolockfs", "below")
            try:
                os.posix_fadvise(fd.fd, 0, 1 << 18, os.POSIX_FADV_WILLNEED)
                # Read-ahead has reached the lower device, and waits there.
                time.sleep(0.5)
            finally:
                run("dmsetup", "resume", "below")
            equal("sector", number_at(fd, 77), 77)
            errors = [line for line in run("dmesg").splitlines() if "I/O error" in line]
            equal("errors", errors, [])
        detach(fd.path)
        run("dmsetup", "remove", "--retry", "below")
    detach(base.path)


run_checks()
