#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Permissions, beyond the single ioctls of order.py and compat.py: the capability that counts, and
its user namespace (capabilities in one's own namespace do not count), the modes of nodes and of
sysfs, and that a file opened for reading is never written through a device."""
import glob
import mmap
import stat
from lib import *

BLKROSET, BLKFLSBUF, BLKRRPART, BLKRASET = 0x125D, 0x1261, 0x125F, 0x1262
BLKDISCARD, BLKZEROOUT, BLKPG = 0x1277, 0x127F, 0x1269
CAP_SYS_ADMIN = 21
PR_SET_KEEPCAPS = 8
BAD_POINTER = 8
MS_SYNC = 4
MMAP = LIBC.mmap
MMAP.restype = ctypes.c_void_p
MMAP.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]

# Ioctls that need a descriptor open for writing or CAP_SYS_ADMIN; order.py tests each of them.
CHANGES = (
    (SET_STATUS, BAD_POINTER),
    (SET_STATUS64, BAD_POINTER),
    (SET_CAPACITY, 0),
    (SET_DIRECT_IO, 1),
    (SET_BLOCK_SIZE, 4096),
)
# The results with permission: the pointers are bad.
ALLOWED = ["-EFAULT", "-EFAULT", 0, 0, 0]
REFUSED = ["-EPERM"] * len(CHANGES)


def with_capabilities(mask, function):
    """Works like as_nobody(), but with the capabilities of a mask."""

    def inside():
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        low, high = mask & 0xFFFFFFFF, mask >> 32
        data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
        equal("capset", LIBC.capset(header, data), 0)
        return function()

    LIBC.prctl(PR_SET_KEEPCAPS, 1)
    try:
        return as_nobody(inside)
    finally:
        LIBC.prctl(PR_SET_KEEPCAPS, 0)


WEAK = {"nobody": as_nobody, "root of a namespace of its own": in_own_namespace}


def attempt(function, *arguments):
    """Returns 0, or minus the name of the error."""
    try:
        function(*arguments)
        return 0
    except OSError as error:
        return "-" + errno.errorcode[error.errno]


def attempt_open(path, flags):
    return attempt(lambda: os.close(os.open(path, flags)))


def content(path):
    with open(path, "rb") as file:
        return file.read()


def changes(fd):
    return [fd.ioctl(*row) for row in CHANGES]


@check("capabilities in a user namespace of one's own do not count")
def namespace():
    with attach(image()) as fd, Fd(fd.path, os.O_RDONLY) as reader:
        settle()
        equal("reading", in_own_namespace(lambda: changes(reader)), REFUSED)
        equal("flags", status(fd).flags, 0)
        equal("block size", sysfs(fd.path, "queue/logical_block_size"), "512")
        equal("writing", in_own_namespace(lambda: changes(fd)), ALLOWED)


@check("CAP_SYS_ADMIN suffices, and no other capability does")
def capability():
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        everything = (2 << int(file.read())) - 1
    admin = 1 << CAP_SYS_ADMIN
    with attach(image()) as fd, Fd(fd.path, os.O_RDONLY) as reader:
        settle()
        outcome = with_capabilities(everything & ~admin, lambda: changes(reader))
        equal("all others", outcome, REFUSED)
        equal("it alone", with_capabilities(admin, lambda: changes(reader)), ALLOWED)


@check("only root and the disk group may open nodes")
def nodes():
    path = image(2)
    run("sfdisk", "-q", path, input="label: dos\nstart=64,size=64\n")
    # A new device, whose mode has not been changed, and a bound one.
    equal("ADD", control(CTL_ADD, 110), 110)
    settle()
    with attach(path, flags=PARTSCAN) as fd:
        wait_for(lambda: os.path.exists(f"{fd.path}p1"))
        settle()
        for node in "/dev/loop-control", "/dev/loop110", fd.path, f"{fd.path}p1":
            mode = os.stat(node)
            equal(f"{node}: others", stat.S_IMODE(mode.st_mode) & 0o7117, 0)
            equal(f"{node}: owner", mode.st_uid, 0)
            for who, as_who in WEAK.items():
                for flags in os.O_RDONLY, os.O_RDWR, os.O_WRONLY:
                    outcome = as_who(lambda: attempt_open(node, flags))
                    equal(f"{node}, {who}", outcome, "-EACCES")
    equal("REMOVE", control(CTL_REMOVE, 110), 0)


@check("the kernel requests only its own mode of a node, 0600")
def kernel_modes():
    for place in glob.glob("/sys/block/loop*") + ["/sys/class/misc/loop-control"]:
        with open(f"{place}/uevent", encoding="ascii") as file:
            assert "DEVMODE" not in file.read(), place


@check("without privilege, no node can be made, and a path descriptor of one is useless")
def no_way_around():
    os.chmod(SCRATCH, 0o777)
    device = free_device()
    with Fd(device, os.O_PATH) as fd:
        for who, as_who in WEAK.items():
            make = lambda: attempt(
                os.mknod, f"{SCRATCH}/node", stat.S_IFBLK | 0o600, os.stat(device).st_rdev
            )
            equal(f"mknod, {who}", as_who(make), "-EPERM")
            equal(f"GET_STATUS64, {who}", as_who(lambda: fd.ioctl(GET_STATUS64, Info())), "-EBADF")
            again = lambda: attempt_open(f"/proc/self/fd/{fd.fd}", os.O_RDONLY)
            equal(f"opening it, {who}", as_who(again), "-EACCES")


def files_below(*patterns):
    return [path for pattern in patterns for path in glob.glob(pattern) if os.path.isfile(path)]


@check("sysfs: only root may write, and attributes of the binding are read-only even for root")
def attributes():
    module = f"/sys/module/{DRIVER}"
    with attach(image()) as fd:
        place = f"/sys/block/{os.path.basename(fd.path)}"
        bound = files_below(f"{place}/loop/*")
        parameters = files_below(f"{module}/parameters/*")
        assert len(bound) >= 6 and parameters, (bound, parameters)
        for path in bound + parameters:
            equal(path, stat.S_IMODE(os.stat(path).st_mode), 0o444)
        settings = files_below(f"{place}/*", f"{place}/queue/*", f"{place}/rnull_loop/*")
        for path in settings + bound + parameters:
            equal(path, stat.S_IMODE(os.stat(path).st_mode) & 0o022, 0)
        everything = settings + bound + parameters + [f"{module}/uevent"]
        for who, as_who in WEAK.items():
            outcomes = as_who(lambda: [attempt_open(path, os.O_WRONLY) for path in everything])
            equal(who, set(outcomes), {"-EACCES"})


@check("a descriptor open for writing does not grant what the block layer reserves for root")
def block_layer():
    argument = ctypes.c_uint64 * 2
    whole = argument(0, 4096)
    zero = ctypes.addressof(ctypes.c_int(0))
    with attach(image()) as fd, Fd(fd.path, os.O_RDONLY) as reader:
        address = ctypes.addressof(whole)
        for who, as_who in WEAK.items():
            rows = (BLKROSET, zero), (BLKFLSBUF, 0), (BLKRRPART, 0), (BLKRASET, 8), (BLKPG, zero)
            outcome = as_who(lambda: [fd.ioctl(*row) for row in rows])
            equal(who, outcome, ["-EACCES"] * len(rows))
            rows = (BLKDISCARD, address), (BLKZEROOUT, address)
            equal(who, as_who(lambda: [reader.ioctl(*row) for row in rows]), ["-EBADF"] * 2)
            equal(who, as_who(lambda: [fd.ioctl(*row) for row in rows]), [0, 0])


@check("a file open only for writing can be read through a device, as with the C driver")
def write_only():
    with attach(numbered_image(), mode=os.O_WRONLY) as fd:
        equal("sector", number_at(fd, 5), 5)
        equal("ro", sysfs(fd.path, "ro"), "0")


def write_directly(fd):
    with mmap.mmap(-1, 4096) as page:
        page.write(b"x" * 4096)
        direct = os.open(f"/proc/self/fd/{fd.fd}", os.O_RDWR | os.O_DIRECT)
        try:
            os.pwrite(direct, page, 0)
        finally:
            os.close(direct)


def try_to_write(fd):
    """Tries every way to change the content of a device; returns the results."""
    whole = (ctypes.c_uint64 * 2)(0, 4096)
    return [
        attempt(os.pwrite, fd.fd, b"x" * 512, 0),
        attempt(write_directly, fd),
        fd.ioctl(BLKDISCARD, ctypes.addressof(whole)),
        fd.ioctl(BLKZEROOUT, ctypes.addressof(whole)),
        attempt(lambda: mmap.mmap(fd.fd, 4096).close()),
        attempt(os.posix_fallocate, fd.fd, 0, 4096),
    ]


def never_written(fd, path):
    """Tries to write to a device of a file that was opened for reading, as root and without
    privilege."""
    before = content(path)

    def tries(what):
        for who, as_who in {"root": lambda function: function(), **WEAK}.items():
            outcome = as_who(lambda: try_to_write(fd))
            equal(f"{what}, {who}: succeeded", [n for n in outcome if n == 0], [])
        equal(f"{what}: the file", content(path), before)

    tries("attached")
    off = ctypes.c_int(0)
    equal("BLKROSET 0", fd.ioctl(BLKROSET, ctypes.addressof(off)), 0)
    equal("ro", sysfs(fd.path, "ro"), "1")
    tries("BLKROSET 0")
    equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(flags=0)), 0)
    tries("SET_STATUS64")
    equal("SET_DIRECT_IO", fd.ioctl(SET_DIRECT_IO, 1), 0)
    tries("SET_DIRECT_IO")
    settle()
    equal("SET_BLOCK_SIZE", fd.ioctl(SET_BLOCK_SIZE, 4096), 0)
    tries("SET_BLOCK_SIZE")
    equal("SET_CAPACITY", fd.ioctl(SET_CAPACITY), 0)
    tries("SET_CAPACITY")
    # A file that is open for writing does not make the device writable.
    other = numbered_image(1, "writable")
    with Fd(other) as file:
        equal("CHANGE_FD", fd.ioctl(CHANGE_FD, file.fd), 0)
    same = content(other)
    equal("BLKROSET 0", fd.ioctl(BLKROSET, ctypes.addressof(off)), 0)
    tries("CHANGE_FD")
    equal("the other file", content(other), same)
    equal("flags", status(fd).flags & READ_ONLY, READ_ONLY)


@check("a file opened for reading is never written: attached by root")
def read_only_by_root():
    path = numbered_image()
    with attach(path, mode=os.O_RDONLY) as fd:
        never_written(fd, path)


@check("a file opened for reading is never written: attached without privilege, with an inherited descriptor")
def read_only_by_nobody():
    path = numbered_image()
    for who, as_who in WEAK.items():
        fd = Fd(free_device())
        fd.path = os.readlink(f"/proc/self/fd/{fd.fd}")
        with fd, Fd(path, os.O_RDONLY) as file:
            equal(f"{who}: CONFIGURE", as_who(lambda: fd.ioctl(CONFIGURE, Config(fd=file.fd))), 0)
            never_written(fd, path)
        detach(fd.path)


@check("a writable file is never written: attached by a device opened for reading, or with LO_FLAGS_READ_ONLY")
def read_only_device():
    path = numbered_image()
    for arguments in {"device_mode": os.O_RDONLY}, {"flags": READ_ONLY}:
        with attach(path, **arguments) as reader, Fd(reader.path) as fd:
            fd.path = reader.path
            never_written(fd, path)
        detach(fd.path)


@check("a file opened for reading is never written: through memory mapped for writing before the attach")
def mapped_before():
    path = numbered_image()
    before = content(path)
    # This device was not read-only before, and a read-only one stays so until the next attach.
    with attach(path) as fd:
        device = fd.path
    detach(device)
    equal("GET_FREE", free_device(), device)
    with Fd(device) as fd:
        address = MMAP(None, 8192, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd.fd, 0)
        assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
        with Fd(path, os.O_RDONLY) as file:
            equal("CONFIGURE", fd.ioctl(CONFIGURE, Config(fd=file.fd)), 0)
        equal("ro", sysfs(device, "ro"), "1")
        ctypes.memset(address, ord("x"), 8192)
        equal("msync", LIBC.msync(ctypes.c_void_p(address), ctypes.c_size_t(8192), MS_SYNC), -1)
        equal("error", errno.errorcode[ctypes.get_errno()], "EIO")
        equal("the file", content(path), before)
        LIBC.munmap(ctypes.c_void_p(address), ctypes.c_size_t(8192))
    detach(device)
    equal("the file, detached", content(path), before)


run_checks()
