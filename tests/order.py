#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The order of the checks of every ioctl, in every state of a device: with several reasons for an
error, programs act upon the first one. And permissions: a descriptor open for writing or
CAP_SYS_ADMIN allows everything; without both, some ioctls are still allowed."""
import os
from lib import *

NAMES = {
    SET_FD: "SET_FD",
    CLR_FD: "CLR_FD",
    SET_STATUS: "SET_STATUS",
    GET_STATUS: "GET_STATUS",
    SET_STATUS64: "SET_STATUS64",
    GET_STATUS64: "GET_STATUS64",
    CHANGE_FD: "CHANGE_FD",
    SET_CAPACITY: "SET_CAPACITY",
    SET_DIRECT_IO: "SET_DIRECT_IO",
    SET_BLOCK_SIZE: "SET_BLOCK_SIZE",
    CONFIGURE: "CONFIGURE",
    0x4C7F: "unknown",
}
CLOSED, BAD_POINTER = 1000, 8


def config(fd, block_size=0, **info):
    return Config(fd=fd, block_size=block_size, info=Info(**info))


def expect(fd, where, *rows):
    """Sends each row's command with its argument, and expects its result."""
    for command, argument, wanted in rows:
        shown = type(argument).__name__ if isinstance(argument, ctypes.Structure) else argument
        equal(f"{where}: {NAMES[command]} {shown}", fd.ioctl(command, argument), wanted)


def not_bound(file):
    """Returns the results of all ioctls but those that attach, without a file."""
    return (
        (CLR_FD, 0, "-ENXIO"),
        (GET_STATUS, 0, "-EINVAL"),
        (GET_STATUS, BAD_POINTER, "-ENXIO"),
        (GET_STATUS, OldInfo(), "-ENXIO"),
        (GET_STATUS64, 0, "-EINVAL"),
        (GET_STATUS64, BAD_POINTER, "-ENXIO"),
        (GET_STATUS64, Info(), "-ENXIO"),
        (SET_STATUS, BAD_POINTER, "-EFAULT"),
        (SET_STATUS, OldInfo(offset=-1), "-ENXIO"),
        (SET_STATUS64, BAD_POINTER, "-EFAULT"),
        (SET_STATUS64, Info(), "-ENXIO"),
        (SET_STATUS64, Info(offset=1 << 63, encrypt_type=1), "-ENXIO"),
        (CHANGE_FD, CLOSED, "-EBADF"),
        (CHANGE_FD, file, "-ENXIO"),
        (SET_CAPACITY, 0, "-ENXIO"),
        (SET_DIRECT_IO, 0, "-ENXIO"),
        (SET_DIRECT_IO, 1, "-ENXIO"),
        (SET_BLOCK_SIZE, 512, "-ENXIO"),
        (SET_BLOCK_SIZE, 513, "-ENXIO"),
        (0x4C7F, 0, "-EINVAL"),
    )


@check("unbound: every ioctl")
def unbound():
    with Fd(image()) as file, Fd(free_device()) as fd:
        expect(fd, "unbound", *not_bound(file.fd))


@check("between LOOP_CLR_FD and the last close: every ioctl, and open")
def rundown():
    with Fd(image()) as file, Fd(image(1, "other")) as other:
        with attach(f"{SCRATCH}/image") as fd:
            device = fd.path
            settle()
            equal("CLR_FD", fd.ioctl(CLR_FD), 0)
            expect(fd, "rundown", *not_bound(other.fd))
            expect(
                fd,
                "rundown",
                (SET_FD, CLOSED, "-EBADF"),
                (SET_FD, file.fd, "-EBUSY"),
                (SET_FD, fd.fd, "-EBUSY"),
                (CONFIGURE, config(file.fd, flags=2), "-EBUSY"),
            )
            for flags in os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_EXCL:
                try:
                    Fd(device, flags).close()
                    raise AssertionError("it can be opened")
                except OSError as error:
                    equal("open", errno.errorcode[error.errno], "ENXIO")
            number = int(device.removeprefix("/dev/loop"))
            equal("REMOVE", control(CTL_REMOVE, number), "-EBUSY")
            equal("still bound", is_bound(device), True)
        wait_for(lambda: not is_bound(device))
        with Fd(device) as fd:
            expect(fd, "afterwards", *not_bound(other.fd))
            expect(fd, "afterwards", (SET_FD, file.fd, 0), (CLR_FD, 0, 0))


@check("a descriptor that was open before the device was detached: every ioctl")
def outlived():
    with Fd(image()) as file:
        device = free_device()
        # With two openers, LOOP_CLR_FD keeps the device bound until both have closed it.
        with attach(f"{SCRATCH}/image") as fd, Fd(device) as early:
            equal("device", fd.path, device)
            equal("CLR_FD", fd.ioctl(CLR_FD), 0)
            equal("CLR_FD", early.ioctl(CLR_FD), 0)
            equal("GET_STATUS64", fd.ioctl(GET_STATUS64, Info()), 0)
            equal("flags", status(early).flags, AUTOCLEAR)
        wait_for(lambda: not is_bound(device))
        with Fd(device) as fd:
            expect(fd, "detached", *not_bound(file.fd))


@check("attaching an unbound device: descriptor, kind, claim, state, file, flags, settings, blocks")
def attaching():
    device = free_device()
    bad = {"flags": 2, "offset": 1 << 63, "encrypt_type": 1}
    pipe = os.pipe()[0]
    with Fd(image()) as file, Fd(SCRATCH, os.O_RDONLY) as directory, Fd(device) as fd:
        with Fd("/proc/kmsg", os.O_RDONLY) as no_read_iter:
            settle()
            expect(
                fd,
                "unbound",
                (CONFIGURE, 0, "-EFAULT"),
                (CONFIGURE, BAD_POINTER, "-EFAULT"),
                (CONFIGURE, config(CLOSED, **bad), "-EBADF"),
                (CONFIGURE, config(no_read_iter.fd, **bad), "-EINVAL"),
                (CONFIGURE, config(fd.fd, **bad), "-EBADF"),
                (CONFIGURE, config(pipe, offset=1 << 63), "-EINVAL"),
                (CONFIGURE, config(file.fd, flags=2, offset=1 << 63), "-EINVAL"),
                (CONFIGURE, config(file.fd, encrypt_type=1, offset=1 << 63), "-EINVAL"),
                (CONFIGURE, config(file.fd, 513, offset=1 << 63), "-EOVERFLOW"),
                (SET_FD, CLOSED, "-EBADF"),
                (SET_FD, no_read_iter.fd, "-EINVAL"),
            )
            with Fd(device, os.O_RDWR | os.O_EXCL):
                expect(
                    fd,
                    "claimed",
                    (CONFIGURE, BAD_POINTER, "-EFAULT"),
                    (CONFIGURE, config(CLOSED), "-EBADF"),
                    (CONFIGURE, config(no_read_iter.fd), "-EINVAL"),
                    (CONFIGURE, config(fd.fd), "-EBUSY"),
                    (CONFIGURE, config(directory.fd), "-EINVAL"),
                    (CONFIGURE, config(pipe), "-EBUSY"),
                    (CONFIGURE, config(file.fd, 513, **bad), "-EBUSY"),
                    (SET_FD, CLOSED, "-EBADF"),
                    (SET_FD, no_read_iter.fd, "-EINVAL"),
                    (SET_FD, pipe, "-EBUSY"),
                )
            equal("SET_FD", fd.ioctl(SET_FD, file.fd), 0)
            expect(
                fd,
                "bound",
                (CONFIGURE, BAD_POINTER, "-EFAULT"),
                (CONFIGURE, config(CLOSED, **bad), "-EBADF"),
                (CONFIGURE, config(no_read_iter.fd, **bad), "-EINVAL"),
                (CONFIGURE, config(directory.fd, **bad), "-EINVAL"),
                (CONFIGURE, config(pipe, **bad), "-EBUSY"),
                (CONFIGURE, config(fd.fd, **bad), "-EBUSY"),
                (SET_FD, pipe, "-EBUSY"),
                (SET_FD, fd.fd, "-EBUSY"),
            )
    os.close(pipe)


@check("the descriptor to attach is truncated to 32 bits")
def descriptor_cut():
    with Fd(image()) as file:
        for junk in 1 << 32, 1 << 63:
            with Fd(free_device()) as fd:
                equal("SET_FD", fd.ioctl(SET_FD, file.fd | junk), 0)
                equal("SET_FD", fd.ioctl(SET_FD, CLOSED | junk), "-EBADF")
                equal("CLR_FD", fd.ioctl(CLR_FD), 0)
            wait_for(lambda: not is_bound(free_device()))
        with attach(f"{SCRATCH}/image", mode=os.O_RDONLY) as fd:
            equal("CHANGE_FD", fd.ioctl(CHANGE_FD, file.fd | 1 << 32), 0)


@check("reserved fields of LOOP_CONFIGURE are ignored")
def reserved():
    with Fd(image()) as file, Fd(free_device()) as fd:
        structure = config(file.fd)
        for number in range(8):
            structure.reserved[number] = (1 << 64) - 1
        info = structure.info
        info.number, info.device, info.inode, info.rdevice = 99, 1, 2, 3
        info.crypt_name, info.init[0], info.encrypt_key[0] = b"cipher", 1, 1
        equal("CONFIGURE", fd.ioctl(CONFIGURE, structure), 0)
        now = status(fd)
        equal("inode", now.inode, os.fstat(file.fd).st_ino)
        equal("crypt", (now.crypt_name, now.init[0], now.encrypt_key[0]), (b"", 0, 0))
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)


@check("every key size up to 32 is accepted")
def key_sizes():
    with Fd(image()) as file, Fd(free_device()) as fd:
        equal("CONFIGURE", fd.ioctl(CONFIGURE, config(file.fd, encrypt_key_size=32)), 0)
        for size, wanted in (0, 0), (1, 0), (32, 0), (33, "-EINVAL"), (1 << 31, "-EINVAL"):
            info = Info(encrypt_key_size=size)
            equal(f"SET_STATUS64 {size}", fd.ioctl(SET_STATUS64, info), wanted)


@check("all settable flags together, and the largest offset and size limit, are accepted")
def limits():
    largest = (1 << 63) - 1
    with Fd(image()) as file, Fd(free_device()) as fd:
        flags = READ_ONLY | AUTOCLEAR | PARTSCAN | DIRECT_IO
        settings = config(file.fd, flags=flags, offset=largest, sizelimit=largest)
        equal("CONFIGURE", fd.ioctl(CONFIGURE, settings), 0)
        now = status(fd)
        equal("settings", (now.offset, now.sizelimit), (largest, largest))
        # An odd offset rules out direct I/O.
        equal("flags", now.flags, READ_ONLY | AUTOCLEAR | PARTSCAN)
        equal("size", sysfs(f"loop{now.number}", "size"), "0")
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(offset=largest + 1)), "-EOVERFLOW")


NEEDS_PERMISSION = (
    (SET_STATUS, 0),
    (SET_STATUS, BAD_POINTER),
    (SET_STATUS64, 0),
    (SET_STATUS64, BAD_POINTER),
    (SET_CAPACITY, 0),
    (SET_DIRECT_IO, 0),
    (SET_DIRECT_IO, 1),
    (SET_BLOCK_SIZE, 512),
    (SET_BLOCK_SIZE, 513),
)


@check("EPERM without CAP_SYS_ADMIN and a descriptor open for writing, before any other error")
def no_permission():
    def answers(fd):
        return as_nobody(lambda: [fd.ioctl(*row) for row in NEEDS_PERMISSION])

    device = free_device()
    with Fd(device, os.O_RDONLY) as reader:
        equal("unbound", set(answers(reader)), {"-EPERM"})
        settle()
        with Fd(device, os.O_RDWR | os.O_EXCL):
            equal("claimed", set(answers(reader)), {"-EPERM"})
    with attach(image()) as fd, Fd(fd.path, os.O_RDONLY) as reader:
        equal("bound", set(answers(reader)), {"-EPERM"})
        equal("flags", status(fd).flags, 0)
    detach(fd.path)


@check("a descriptor open for writing needs no CAP_SYS_ADMIN")
def by_mode():
    rows = (
        (SET_STATUS, OldInfo(offset=512), 0),
        (SET_STATUS, BAD_POINTER, "-EFAULT"),
        (SET_STATUS64, Info(), 0),
        (SET_STATUS64, BAD_POINTER, "-EFAULT"),
        (SET_CAPACITY, 0, 0),
        (SET_DIRECT_IO, 1, 0),
        (SET_DIRECT_IO, 0, 0),
        (SET_BLOCK_SIZE, 4096, 0),
        (SET_BLOCK_SIZE, 513, "-EINVAL"),
    )
    with attach(image()) as fd:
        settle()
        outcome = as_nobody(lambda: [fd.ioctl(*row[:2]) for row in rows])
        equal("nobody, writing", outcome, [row[2] for row in rows])
        with Fd(fd.path, os.O_RDONLY) as reader:
            equal("block size", fd.ioctl(SET_BLOCK_SIZE, 512), 0)
            expect(reader, "root, reading", *rows)


@check("attaching, detaching and queries need no privilege")
def anyone():
    with Fd(image()) as file, Fd(image(1, "other")) as other:
        device = free_device()
        with Fd(device, os.O_RDONLY) as fd:
            settle()
            rows = (
                (GET_STATUS, OldInfo()),
                (GET_STATUS64, Info()),
                (CHANGE_FD, other.fd),
                (0x4C7F, 0),
                (CLR_FD, 0),
            )
            equal("SET_FD", as_nobody(lambda: fd.ioctl(SET_FD, file.fd)), 0)
            equal("flags", status(fd).flags, READ_ONLY)
            settle()
            outcome = as_nobody(lambda: [fd.ioctl(*row) for row in rows])
            equal("nobody, reading", outcome, [0, 0, 0, "-EINVAL", 0])
        wait_for(lambda: not is_bound(device))
        with Fd(device, os.O_RDONLY) as fd:
            equal("CONFIGURE", as_nobody(lambda: fd.ioctl(CONFIGURE, config(file.fd))), 0)
            equal("CLR_FD", as_nobody(lambda: fd.ioctl(CLR_FD)), 0)


@check("the ioctls work by a partition's node, too")
def by_partition():
    path = image(2)
    run("sfdisk", "-q", path, input="label: dos\nstart=64,size=64\n")
    with attach(path, flags=PARTSCAN) as fd:
        wait_for(lambda: os.path.exists(f"{fd.path}p1"))
        with Fd(f"{fd.path}p1") as partition, Fd(image(1, "other")) as other:
            expect(
                partition,
                "partition",
                (SET_FD, other.fd, "-EBUSY"),
                (CHANGE_FD, other.fd, "-EINVAL"),
                (GET_STATUS, OldInfo(), 0),
                (SET_STATUS64, Info(file_name=b"by partition"), 0),
                (SET_CAPACITY, 0, 0),
                (SET_DIRECT_IO, 1, 0),
                (SET_BLOCK_SIZE, 513, "-EINVAL"),
                (SET_BLOCK_SIZE, 512, 0),
                (0x4C7F, 0, "-EINVAL"),
                (CLR_FD, 0, 0),
            )
            now = status(partition)
            equal("name", now.file_name, b"by partition")
            equal("flags", now.flags, PARTSCAN | AUTOCLEAR | DIRECT_IO)
        device = fd.path
    wait_for(lambda: not is_bound(device))


@check("the control node cannot be opened without privilege, but an open one can be used")
def control_node():
    def opened():
        try:
            os.open("/dev/loop-control", os.O_RDWR)
            return "opened"
        except PermissionError:
            return "-EACCES"

    equal("by nobody", as_nobody(opened), "-EACCES")
    with Fd("/dev/loop-control") as fd:
        outcome = as_nobody(lambda: fd.ioctl(CTL_GET_FREE))
        assert isinstance(outcome, int), outcome


@check("the numbers of LOOP_CTL_ADD and _REMOVE are truncated to 32 bits, and end at the last minor")
def control_numbers():
    equal("ADD", control(CTL_ADD, 300 | 1 << 32), 300)
    settle()
    equal("ADD", control(CTL_ADD, 300), "-EEXIST")
    equal("REMOVE", control(CTL_REMOVE, 300 | 1 << 40), 0)
    equal("REMOVE", control(CTL_REMOVE, 300), "-ENODEV")
    equal("REMOVE INT_MAX", control(CTL_REMOVE, (1 << 31) - 1), "-ENODEV")
    equal("REMOVE INT_MIN", control(CTL_REMOVE, 1 << 31), "-EINVAL")
    equal("REMOVE -1", control(CTL_REMOVE, 0xFFFFFFFF), "-EINVAL")
    last = (1 << 20) - 1
    equal("ADD the last minor", control(CTL_ADD, last), last)
    settle()
    equal("REMOVE the last minor", control(CTL_REMOVE, last), 0)
    for number in last + 1, last + 2, (1 << 31) - 1:
        equal(f"ADD {number}", control(CTL_ADD, number), "-EINVAL")
        equal(f"REMOVE {number}", control(CTL_REMOVE, number), "-ENODEV")


run_checks()
