#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A task that waits for a busy device can be killed: in every ioctl, in open, and in
LOOP_CTL_REMOVE. Loop devices on stuck file systems are common, and unkillable processes keep
systems from shutting down. A killed call has changed nothing and holds nothing.

The device is busy with a LOOP_SET_STATUS64 that changes its size: it waits for a write to a file on
a frozen file system."""
import mmap
import os
from lib import *

SECONDS = 20


def state_of(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


class Child:
    """A process that calls a function, and the result of the function."""

    def __init__(self, function):
        self.outcome = None
        self.waiting = 0
        self.reading, writing = os.pipe()
        self.pid = forked(lambda: os.write(writing, json.dumps(function()).encode()))
        os.close(writing)

    def ended(self):
        """the process ends"""
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.pid = 0
            with os.fdopen(self.reading) as file:
                self.outcome = file.read()
        return not self.pid

    def blocks(self):
        """the process blocks"""
        assert not self.ended(), f"did not block: {self.outcome}"
        # Not only for a moment.
        self.waiting = self.waiting + 1 if state_of(self.pid) == "D" else 0
        return self.waiting >= 4

    def kill(self, what, at_once=None):
        """Kills the process while it blocks; it may also return `at_once` instead, if that is
        given."""
        wait_for(lambda: at_once and self.ended() or self.blocks(), SECONDS)
        if not self.pid:
            equal(f"{what}: returned", self.outcome, json.dumps(at_once))
            return
        os.kill(self.pid, signal.SIGKILL)
        try:
            wait_for(self.ended, SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{what} cannot be killed") from error
        equal(f"{what}: returned", self.outcome, "")


class Busy:
    """A device that is being changed until the end of the `with`."""

    def __init__(self):
        disk = image(16, "disk")
        run("mkfs.ext4", "-q", disk)
        self.place = mounted(disk, "place", "-o", "loop")
        self.path = image(1, "place/image")

    def __enter__(self):
        self.fd = attach(self.path)
        self.device = self.fd.path
        # A second opener, so that LOOP_CLR_FD does not come from the only one.
        self.reader = Fd(self.device, os.O_RDONLY)
        settle()
        run("fsfreeze", "-f", self.place)
        self.writer = Child(self.write)
        wait_for(self.writer.blocks, SECONDS)
        self.changer = Child(lambda: self.fd.ioctl(SET_STATUS64, Info(sizelimit=1 << 19)))
        wait_for(self.changer.blocks, SECONDS)
        return self

    def __exit__(self, *_):
        run("fsfreeze", "-u", self.place)
        wait_for(self.changer.ended, SECONDS)
        wait_for(self.writer.ended, SECONDS)

    def write(self):
        memory = mmap.mmap(-1, 65536)
        memory[:] = b"data" * 16384
        with Fd(self.device, os.O_RDWR | os.O_DIRECT) as fd:
            return os.pwrite(fd.fd, memory, 0)

    def usable(self):
        """Checks that the change is done, and that a killed call has left nothing."""
        equal("SET_STATUS64", self.changer.outcome, "0")
        info = status(self.fd)
        equal("settings", (info.offset, info.sizelimit, info.flags), (0, 1 << 19, 0))
        equal("size", sysfs(self.device, "size"), "1024")
        equal("block size", sysfs(self.device, "queue/logical_block_size"), "512")
        with open(self.path, "rb") as file:
            equal("data", file.read(65536) == b"data" * 16384, True)
        number = int(self.device.removeprefix("/dev/loop"))
        equal("REMOVE", control(CTL_REMOVE, number), "-EBUSY")
        # No claim is left behind.
        with Fd(self.device, os.O_RDWR | os.O_EXCL):
            pass
        self.reader.close()
        settle()
        equal("CLR_FD", self.fd.ioctl(CLR_FD), 0)
        self.fd.close()
        wait_for(lambda: not is_bound(self.device))
        # The file is closed.
        run("umount", self.place)


def killed(what, call, at_once=None):
    """Declares a case: a call that finds a busy device is killed."""

    def case():
        with Busy() as busy:
            Child(lambda: call(busy)).kill(what, at_once)
        busy.usable()

    check(f"{what} on a busy device can be killed")(case)


def with_file(busy, command):
    with Fd(busy.path, os.O_RDONLY) as file:
        if command == CONFIGURE:
            return busy.fd.ioctl(CONFIGURE, Config(fd=file.fd))
        return busy.fd.ioctl(command, file.fd)


def remove(busy):
    return control(CTL_REMOVE, int(busy.device.removeprefix("/dev/loop")))


# These two can see without the lock that the device is bound.
killed("SET_FD", lambda busy: with_file(busy, SET_FD), "-EBUSY")
killed("CONFIGURE", lambda busy: with_file(busy, CONFIGURE), "-EBUSY")
killed("CHANGE_FD", lambda busy: with_file(busy, CHANGE_FD))
killed("CLR_FD", lambda busy: busy.reader.ioctl(CLR_FD))
killed("GET_STATUS", lambda busy: busy.reader.ioctl(GET_STATUS, OldInfo()))
killed("GET_STATUS64", lambda busy: busy.reader.ioctl(GET_STATUS64, Info()))
killed("SET_STATUS", lambda busy: busy.fd.ioctl(SET_STATUS, OldInfo(flags=AUTOCLEAR)))
killed("SET_STATUS64", lambda busy: busy.fd.ioctl(SET_STATUS64, Info(flags=AUTOCLEAR)))
killed("SET_CAPACITY", lambda busy: busy.fd.ioctl(SET_CAPACITY))
killed("SET_DIRECT_IO", lambda busy: busy.fd.ioctl(SET_DIRECT_IO, 1))
killed("SET_BLOCK_SIZE", lambda busy: busy.fd.ioctl(SET_BLOCK_SIZE, 4096))
killed("open", lambda busy: Fd(busy.device, os.O_RDONLY).close())
killed("LOOP_CTL_REMOVE", remove)


@check("the file of a killed LOOP_CHANGE_FD is closed")
def file_let_go():
    own = mounted("tmpfs", "own", "-t", "tmpfs")
    path = image(1, "own/image")

    def change(busy):
        with Fd(path) as file:
            return busy.fd.ioctl(CHANGE_FD, file.fd)

    with Busy() as busy:
        Child(lambda: change(busy)).kill("CHANGE_FD")
        run("umount", own)
    busy.usable()


@check(
    "LOOP_CONFIGURE of a busy device fails at once",
    better="the C driver takes the lock before it sees that the device is bound",
)
def configure():
    with Busy() as busy:
        child = Child(lambda: with_file(busy, CONFIGURE))
        try:
            wait_for(child.ended, 3)
        except AssertionError:
            child.kill("CONFIGURE")
    busy.usable()
    equal("CONFIGURE", child.outcome, '"-EBUSY"')


@check("a task that waits for another device's LOOP_CLR_FD can be killed, and all go on")
def chain():
    with Busy() as busy, attach(image()) as other:
        first = Child(lambda: busy.reader.ioctl(CLR_FD))
        wait_for(first.blocks, SECONDS)
        # In the C driver it waits for a lock that the first one holds.
        second = Child(lambda: other.ioctl(CLR_FD))
        wait_for(lambda: second.ended() or second.blocks(), SECONDS)
        if second.ended():
            equal("CLR_FD", second.outcome, "0")
        else:
            second.kill("CLR_FD")
            equal("flags", status(other).flags, 0)
        first.kill("CLR_FD")
    busy.usable()


@check(
    "an unknown ioctl of a busy device fails at once",
    better="the C driver takes the lock before it looks at the command",
)
def unknown():
    with Busy() as busy:
        child = Child(lambda: busy.fd.ioctl(0x4C7F))
        try:
            wait_for(child.ended, 3)
        except AssertionError:
            child.kill("an unknown ioctl")
    busy.usable()
    equal("an unknown ioctl", child.outcome, '"-EINVAL"')


@check("sysfs attributes of a busy device are read without blocking, as losetup -a needs")
def sysfs_of_busy():
    names = "backing_file", "offset", "sizelimit", "autoclear", "partscan", "dio"
    with Busy() as busy:
        looker = Child(lambda: [sysfs(busy.device, f"loop/{name}") for name in names])
        try:
            wait_for(looker.ended, 5)
        except AssertionError:
            # The next reader may find the file only after the change.
            looker.kill("a reader of sysfs")
    busy.usable()
    equal("sysfs", looker.outcome, json.dumps([busy.path, "0", "0", "0", "0", "0"]))


@check("other devices are found, attached and detached while one is busy")
def others():
    def attach_other():
        other = attach(image())
        settle()
        return other.path, other.ioctl(CLR_FD)

    with Busy() as busy:
        child = Child(attach_other)
        try:
            wait_for(child.ended, SECONDS)
        except AssertionError:
            child.kill("another device's caller")
        path, outcome = json.loads(child.outcome)
        assert path != busy.device
        equal("CLR_FD", outcome, 0)
        wait_for(lambda: not is_bound(path))
    busy.usable()


class Suspended:
    """A mapped device that completes no I/O until the end of the `with`."""

    def __init__(self, name):
        self.name = name
        self.path = f"/dev/mapper/{name}"
        self.base = attach(image(32, f"{name}-base"))
        run("dmsetup", "create", name, "--table", f"0 {32 << 11} linear {self.base.path} 0")
        settle()

    def __enter__(self):
        run("dmsetup", "suspend", "--nolockfs", self.name)

    def __exit__(self, *_):
        run("dmsetup", "resume", self.name)

    def remove(self):
        run("dmsetup", "remove", "--retry", self.name)
        self.base.close()
        detach(self.base.path)


def stacked():
    """Attaches a loop device to another one, and detaches both; returns the results."""
    low = attach(image(1, "low"))
    high = attach(low.path)
    settle()
    return [high.ioctl(CLR_FD), low.ioctl(CLR_FD)]


def ends(child, what):
    """Waits until the process ends by itself, and returns its result."""
    try:
        wait_for(child.ended, SECONDS)
    except AssertionError:
        child.kill(what)
    return child.outcome


@check(
    "a device that is being attached to a slow file can be opened and attached to another",
    better="in the C driver the second caller waits for the claim of the first, and cannot be killed",
)
def slow_file():
    slow = Suspended("slow-disk")
    run("mkfs.ext4", "-q", slow.path)
    place = mounted(slow.path, "place")
    path, other = image(1, "place/image"), image(1, "other")
    os.sync()
    device = free_device()

    def attach_to(path):
        with Fd(path) as file:
            return fd.ioctl(SET_FD, file.fd)

    with open(path, "r+b") as file:
        file.write(b"dirty" * 4096)
    with Fd(device) as fd:
        with slow:
            first = Child(lambda: attach_to(path))
            wait_for(first.blocks, SECONDS)
            equal("an opener", ends(Child(lambda: Fd(device).close()), "an opener"), "null")
            outcome = ends(Child(lambda: attach_to(other)), "the second caller")
            equal("the second caller", outcome, "0")
            assert not first.ended()
        wait_for(first.ended, SECONDS)
    equal("the first caller", first.outcome, '"-EBUSY"')
    equal("file", sysfs(device, "loop/backing_file"), other)
    detach(device)
    run("umount", place)
    slow.remove()


def slow_scan():
    slow_sync, slow_read = Suspended("slow-sync"), Suspended("slow-read")
    for slow in (slow_sync, slow_read):
        run("mkfs.ext4", "-q", slow.path)
        # A sync of a clean file does no I/O.
        mounted(slow.path, slow.name, "-o", "nobarrier")
    dirty, uncached = image(1, "slow-sync/image"), numbered_image(1, "slow-read/image")
    os.sync()
    write_text("/proc/sys/vm/drop_caches", "1")
    device = free_device()

    def attach_to(path, **info):
        with Fd(path) as file:
            return fd.ioctl(CONFIGURE, Config(fd=file.fd, info=Info(**info)))

    with open(dirty, "r+b") as file:
        file.write(b"dirty" * 4096)
    with Fd(device) as fd:
        with slow_read:
            with slow_sync:
                loser = Child(lambda: attach_to(dirty))
                wait_for(loser.blocks, SECONDS)
                winner = Child(lambda: attach_to(uncached, flags=PARTSCAN))
                wait_for(lambda: is_bound(device), SECONDS)
                wait_for(winner.blocks, SECONDS)
            equal("the loser", ends(loser, "the loser"), '"-EBUSY"')
            assert not winner.ended()
        wait_for(winner.ended, SECONDS)
    equal("the winner", winner.outcome, "0")
    detach(device)
    for slow in (slow_sync, slow_read):
        run("umount", f"{SCRATCH}/{slow.name}")
        slow.remove()


# In the C driver the second caller waits for the claim of the first before it reads the file.
if DRIVER != "loop":
    check("a device that is attached is busy at once, also while its slow file is scanned")(slow_scan)


GLOBAL = "the C driver holds a global lock while it waits"


@check("attaching a device to a slow loop device delays no other device", better=GLOBAL)
def slow_loop_device():
    slow = Suspended("slow-device")
    low = attach(slow.path)
    # Another device than LOOP_CTL_GET_FREE returns, because it stays free until the file is synced.
    number = control(CTL_ADD, 200)
    settle()
    # After a failure the lower device can be detached.
    with low, Fd(f"/dev/loop{number}") as fd:
        # A flush of the lower device writes it back.
        os.pwrite(low.fd, b"dirty" * 4096, 0)
        with slow:
            caller = Child(lambda: fd.ioctl(SET_FD, low.fd))
            wait_for(caller.blocks, SECONDS)
            outcome = ends(Child(stacked), "the caller for another device")
            equal("the caller for another device", outcome, "[0, 0]")
            assert not caller.ended()
        wait_for(caller.ended, SECONDS)
        equal("the caller", caller.outcome, "0")
        settle()
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    wait_for(lambda: control(CTL_REMOVE, number) == 0)
    detach(low.path)
    slow.remove()


def waiting_delays_no_other(what, call):
    @check(f"{what} that waits for a busy device delays no other device", better=GLOBAL)
    def case():
        low = attach(image(1, "lower"))
        with low, Busy() as busy:
            waiter = Child(lambda: call(busy, low))
            wait_for(waiter.blocks, SECONDS)
            try:
                outcome = ends(Child(stacked), "the caller for another device")
                equal("the caller for another device", outcome, "[0, 0]")
            finally:
                waiter.kill(what)
        busy.usable()
        detach(low.path)


waiting_delays_no_other("LOOP_CLR_FD", lambda busy, _: busy.reader.ioctl(CLR_FD))
waiting_delays_no_other("LOOP_CHANGE_FD", lambda busy, low: busy.fd.ioctl(CHANGE_FD, low.fd))


@check("requests of a killed task do not fail")
def requests():
    size = 32 << 20
    disk = image(64, "disk")
    run("mkfs.ext4", "-q", disk)
    mounted(disk, "place", "-o", "loop")

    def read(path, started):
        buffer = mmap.mmap(-1, size)
        reader = os.open(path, os.O_RDONLY | os.O_DIRECT)
        os.write(started, b"x")
        while True:
            os.preadv(reader, [buffer], 0)

    with attach(image(32, "place/image")) as fd:
        run("dmesg", "--clear")
        for turn in range(20):
            ready, writing = os.pipe()
            pid = forked(read, fd.path, writing)
            os.read(ready, 1)
            os.close(ready)
            os.close(writing)
            time.sleep(0.05 + turn % 10 / 200)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        errors = [line for line in run("dmesg").splitlines() if "I/O error" in line]
        equal("errors", errors, [])


run_checks()
