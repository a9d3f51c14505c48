#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Every ioctl from a 32-bit program, and the same from a 64-bit program: only the old status
structure differs, whose fields are narrower in 32 bits. A 32-bit LOOP_SET_STATUS once skipped the
permission check of the 64-bit one. The program is programs/ioctl.c."""
import os
from lib import *

# The addresses of a program's structure. Every other argument is passed to the ioctl as it is.
PLACES = "low", "high"
_built = {}


class Caller:
    """Calls from programs of 32 or 64 bits."""

    def __init__(self, bits):
        self.bits = bits
        # Outside the scratch directory, which is removed at the end of the case.
        self.program = f"/tmp/ioctl{bits}"
        if bits not in _built:
            os.rename(program("ioctl", f"-m{bits}"), self.program)
            _built[bits] = True

    def lines(self, fd, command, *arguments, user=None, also=()):
        output = run(
            self.program,
            *(str(argument) for argument in (fd.fileno(), command) + arguments),
            pass_fds=(fd.fileno(), *also),
            user=user,
        )
        return output.split("\n")

    def call(self, fd, command, *arguments, **options):
        """Returns the result of the ioctl, or minus the name of its error."""
        result = self.lines(fd, command, *arguments, **options)[0]
        return result if result.startswith("-") else int(result)

    def status(self, fd, command=GET_STATUS, where="high"):
        result, *fields = self.lines(fd, command, where)
        equal("status", result, "0")
        return dict(field.split("=", 1) for field in fields)

    def attached(self, path, **fields):
        """Attaches a file to a free device by LOOP_CONFIGURE of the program, and returns the
        device."""
        device = free_device()
        fd = Fd(device)
        fd.path = device
        with Fd(path) as backing:
            words = [f"{name}={value}" for name, value in fields.items()]
            arguments = ("high", f"fd={backing.fd}", *words)
            equal("CONFIGURE", self.call(fd, CONFIGURE, *arguments, also=(backing.fd,)), 0)
        return fd


def check_both(description):
    """Declares a case for programs of 32 and 64 bits."""

    def add(function):
        for bits in 32, 64:
            check(f"{bits} bits: {description}")(lambda bits=bits: function(Caller(bits)))
        return function

    return add


def check_32(description):
    return lambda function: check(f"32 bits: {description}")(lambda: function(Caller(32)))


@check_both("attach, query, change and detach")
def all_commands(caller):
    one, two = numbered_image(2), numbered_image(2, "two", 1 << 32)
    with Fd(free_device()) as fd:
        with Fd(one) as file:
            equal("SET_FD", caller.call(fd, SET_FD, file.fd, also=(file.fd,)), 0)
        equal("sector", number_at(fd, 5), 5)
        equal("SET_DIRECT_IO", caller.call(fd, SET_DIRECT_IO, 1), 0)
        equal("flags", status(fd).flags, DIRECT_IO)
        equal("SET_DIRECT_IO", caller.call(fd, SET_DIRECT_IO, 0), 0)
        equal("flags", status(fd).flags, 0)
        settle()
        equal("SET_BLOCK_SIZE", caller.call(fd, SET_BLOCK_SIZE, 4096), 0)
        device = f"loop{status(fd).number}"
        equal("block size", sysfs(device, "queue/logical_block_size"), "4096")
        equal("SET_BLOCK_SIZE 0", caller.call(fd, SET_BLOCK_SIZE, 0), 0)
        equal("block size", sysfs(device, "queue/logical_block_size"), "512")
        os.truncate(one, 3 << 20)
        equal("SET_CAPACITY", caller.call(fd, SET_CAPACITY), 0)
        equal("size", sysfs(device, "size"), "6144")
        os.truncate(one, 2 << 20)
        equal("CLR_FD", caller.call(fd, CLR_FD), 0)
    wait_for(lambda: not is_bound(device))
    fd = caller.attached(one, flags=READ_ONLY, offset=1024, block_size=1024)
    with fd, Fd(two) as file:
        equal("block size", sysfs(fd.path, "queue/logical_block_size"), "1024")
        equal("CHANGE_FD", caller.call(fd, CHANGE_FD, file.fd, also=(file.fd,)), 0)
        equal("sector", number_at(fd, 5), (1 << 32) + 7)


@check_both("the control node")
def control_node(caller):
    with Fd("/dev/loop-control") as fd:
        equal("ADD", caller.call(fd, CTL_ADD, 120), 120)
        settle()
        equal("ADD again", caller.call(fd, CTL_ADD, 120), "-EEXIST")
        equal("REMOVE", caller.call(fd, CTL_REMOVE, 120), 0)
        equal("REMOVE again", caller.call(fd, CTL_REMOVE, 120), "-ENODEV")
        equal("REMOVE -1", caller.call(fd, CTL_REMOVE, 0xFFFFFFFF), "-EINVAL")
        number = caller.call(fd, CTL_ADD, 0xFFFFFFFF)
        assert isinstance(number, int) and number >= 8, number
        settle()
        equal("REMOVE", caller.call(fd, CTL_REMOVE, number), 0)
        equal("GET_FREE", caller.call(fd, CTL_GET_FREE), control(CTL_GET_FREE))
        equal("unknown", caller.call(fd, 0x4C83), "-ENOSYS")


@check_both("GET_STATUS and GET_STATUS64 report the same, at any address of the structure")
def looks(caller):
    path = image(4)
    fields = {"offset": (1 << 31) - 512, "sizelimit": 512, "flags": AUTOCLEAR, "name": "n" * 64}
    with caller.attached(path, **fields) as fd:
        file = os.stat(path)
        for command in GET_STATUS, GET_STATUS64:
            for where in PLACES:
                now = caller.status(fd, command, where)
                equal("number", now["number"], fd.path.removeprefix("/dev/loop"))
                equal("device", now["device"], str(file.st_dev))
                equal("inode", now["inode"], str(file.st_ino))
                equal("rdevice", now["rdevice"], "0")
                equal("offset", now["offset"], str(fields["offset"]))
                equal("flags", now["flags"], str(AUTOCLEAR))
                equal("name", now["name"], "n" * 63)
        equal("size limit", status(fd).sizelimit, 512)


@check_both("SET_STATUS and SET_STATUS64, at any address of the structure")
def changes(caller):
    with caller.attached(numbered_image(), sizelimit=4096) as fd:
        for command in SET_STATUS64, SET_STATUS:
            for where in PLACES:
                words = "offset=1024", "flags=0xffffffff", "name=other"
                # udev's reads after the change may stay in the page cache of the C driver.
                settle()
                equal("set", caller.call(fd, command, where, *words), 0)
                now = status(fd)
                equal("settings", (now.offset, now.sizelimit), (1024, 0))
                equal("flags", now.flags, AUTOCLEAR | PARTSCAN)
                equal("name", now.file_name, b"other")
                equal("sector", number_at(fd, 5), 7)
                equal("set", caller.call(fd, command, where), 0)
                now = status(fd)
                equal("settings", (now.offset, now.flags, now.file_name), (0, PARTSCAN, b""))
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(sizelimit=4096)), 0)
        equal("SET_STATUS", caller.call(fd, SET_STATUS, "high", "encrypt_type=18"), 0)
        equal("the size limit is gone", status(fd).sizelimit, 0)
        equal("encrypted", caller.call(fd, SET_STATUS64, "high", "encrypt_type=18"), "-EINVAL")
        equal("negative", caller.call(fd, SET_STATUS, "high", "offset=-1"), "-EOVERFLOW")
        too_large = "offset=0x8000000000000000"
        equal("too large", caller.call(fd, SET_STATUS64, "high", too_large), "-EOVERFLOW")
        large = "sizelimit=0x7fffffffffffffff"
        equal("large", caller.call(fd, SET_STATUS64, "high", large), 0)
        equal("size limit", status(fd).sizelimit, (1 << 63) - 1)


@check_both("errors are the same: pointers, descriptors, states")
def errors(caller):
    with Fd(free_device()) as fd:
        for command in GET_STATUS, GET_STATUS64:
            equal("NULL, unbound", caller.call(fd, command, 0), "-EINVAL")
            equal("unbound", caller.call(fd, command, 8), "-ENXIO")
        for command in SET_STATUS, SET_STATUS64, CONFIGURE:
            equal("NULL", caller.call(fd, command, 0), "-EFAULT")
            equal("bad pointer", caller.call(fd, command, 0xFFFFE000), "-EFAULT")
        for command in SET_STATUS, SET_STATUS64:
            equal("unbound", caller.call(fd, command, "high"), "-ENXIO")
        for command in CLR_FD, SET_CAPACITY, SET_DIRECT_IO, SET_BLOCK_SIZE:
            equal("unbound", caller.call(fd, command), "-ENXIO")
        for command in SET_FD, CHANGE_FD:
            equal("closed", caller.call(fd, command, 1000), "-EBADF")
            equal("-1", caller.call(fd, command, 0xFFFFFFFF), "-EBADF")
        equal("closed", caller.call(fd, CONFIGURE, "high", "fd=1000"), "-EBADF")
    with caller.attached(image()) as fd:
        for command in GET_STATUS, GET_STATUS64, SET_STATUS, SET_STATUS64:
            equal("bad pointer", caller.call(fd, command, 8), "-EFAULT")
            equal("kernel's", caller.call(fd, command, 0xFFFFF000), "-EFAULT")
        equal("NULL", caller.call(fd, GET_STATUS, 0), "-EINVAL")
        equal("block size", caller.call(fd, SET_BLOCK_SIZE, 513), "-EINVAL")
        equal("bound", caller.call(fd, SET_FD, fd.fd), "-EBUSY")
        equal("not read-only", caller.call(fd, CHANGE_FD, fd.fd), "-EINVAL")


@check_both("the same permissions are needed")
def rights(caller):
    with caller.attached(image()) as fd, Fd(fd.path, os.O_RDONLY) as reader:
        settle()
        for command in SET_STATUS, SET_STATUS64:
            equal("nobody", caller.call(reader, command, "high", user=65534), "-EPERM")
            equal("nobody, bad pointer", caller.call(reader, command, 8, user=65534), "-EPERM")
            equal("nobody, writing", caller.call(fd, command, "high", user=65534), 0)
            equal("root", caller.call(reader, command, "high"), 0)
        for command in SET_CAPACITY, SET_DIRECT_IO, SET_BLOCK_SIZE:
            equal("nobody", caller.call(reader, command, user=65534), "-EPERM")
            equal("nobody, writing", caller.call(fd, command, user=65534), 0)
            equal("root", caller.call(reader, command), 0)
        # Capabilities in a user namespace of one's own do not count.
        for command in SET_STATUS, SET_STATUS64, SET_CAPACITY, SET_DIRECT_IO, SET_BLOCK_SIZE:
            outcome = in_own_namespace(lambda: caller.call(reader, command, 8))
            equal("namespace", outcome, "-EPERM")
        for command in GET_STATUS, GET_STATUS64:
            equal("nobody looks", caller.call(reader, command, "high", user=65534), 0)


@check_32("an unknown command is ENOTTY")
def unknown(caller):
    with Fd(free_device()) as fd:
        for command in 0x4C7F, 0x4C0B, 0x4CFF, 0x4C80, 0x1234:
            equal(hex(command), caller.call(fd, command), "-ENOTTY")


@check("64 bits: an unknown command is EINVAL")
def unknown_64():
    with Fd(free_device()) as fd:
        for command in 0x4C7F, 0x4C0B, 0x4CFF, 0x4C80, 0x1234:
            equal(hex(command), Caller(64).call(fd, command), "-EINVAL")


@check_both("GET_STATUS of an offset that does not fit: EOVERFLOW")
def offset_overflow(caller):
    with caller.attached(image()) as fd:
        for offset in 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1:
            equal("set", caller.call(fd, SET_STATUS64, "high", f"offset={offset}"), 0)
            equal("get", caller.call(fd, GET_STATUS, "high"), "-EOVERFLOW")
            equal("offset", caller.status(fd, GET_STATUS64)["offset"], str(offset))
        equal("set", caller.call(fd, SET_STATUS64, "high", f"offset={(1 << 31) - 1}"), 0)
        equal("offset", caller.status(fd)["offset"], str((1 << 31) - 1))


@check_32("GET_STATUS of an inode number that does not fit: EOVERFLOW")
def inode_overflow(caller):
    # With xino, the upper bits of an inode number of overlayfs identify its layer.
    layers = [mounted("tmpfs", name, "-t", "tmpfs") for name in ("one", "two")]
    image(1, "two/image")
    options = f"xino=on,lowerdir={layers[0]}:{layers[1]}"
    place = mounted("overlay", "place", "-t", "overlay", "-o", options)
    path = f"{place}/image"
    inode = os.stat(path).st_ino
    assert inode >> 32, f"inode {inode} is not large"
    with attach(path, mode=os.O_RDONLY) as fd:
        equal("GET_STATUS", caller.call(fd, GET_STATUS, "high"), "-EOVERFLOW")
        equal("GET_STATUS64", caller.status(fd, GET_STATUS64)["inode"], str(inode))
        equal("64 bits", Caller(64).status(fd)["inode"], str(inode))
        device = fd.path
    detach(device)
    for name in "place", "two", "one":
        run("umount", f"{SCRATCH}/{name}")


@check_32("GET_STATUS of device numbers that do not fit: EOVERFLOW")
def device_overflow(caller):
    equal("ADD", control(CTL_ADD, 300), 300)
    settle()
    with Fd(image(8)) as file, Fd("/dev/loop300") as low:
        equal("SET_FD", low.ioctl(SET_FD, file.fd), 0)
        run("mkfs.ext4", "-q", "/dev/loop300")
        # A minor number above 255 makes a device number wider than 16 bits: first as rdevice,
        with attach("/dev/loop300") as fd:
            equal("rdevice", caller.call(fd, GET_STATUS, "high"), "-EOVERFLOW")
            rdevice = Caller(64).status(fd)["rdevice"]
            equal("64 bits", rdevice, str(os.stat("/dev/loop300").st_rdev))
        detach(fd.path)
        # then as device.
        place = mounted("/dev/loop300", "place")
        with attach(image(1, "place/image")) as fd:
            equal("device", caller.call(fd, GET_STATUS, "high"), "-EOVERFLOW")
            device = Caller(64).status(fd)["device"]
            equal("64 bits", device, str(os.stat(f"{place}/image").st_dev))
        detach(fd.path)
        run("umount", place)
        settle()
        equal("CLR_FD", low.ioctl(CLR_FD), 0)
    wait_for(lambda: control(CTL_REMOVE, 300) == 0)


@check_32("generic ioctls of block devices work")
def generic(caller):
    with caller.attached(image()) as fd:
        # BLKFLSBUF and BLKRRPART, which needs PARTSCAN
        equal("BLKFLSBUF", caller.call(fd, 0x1261), 0)
        equal("BLKRRPART", caller.call(fd, 0x125F), "-EINVAL")


run_checks()
