#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Each memory allocation and each copy from or to user space that the driver or its callees make in
an operation fails once. The operation succeeds nevertheless or fails with ENOMEM (EFAULT), leaves
the device as before or as after, leaks nothing, and works the next time. Reads and writes never
fail for lack of memory: they wait.

Needs a kernel with fault injection. /proc/thread-self/fail-nth makes the Nth allocation of the task
fail. A filter excludes allocations without the module on the stack."""
import contextlib
import fcntl
import glob
import mmap
import random
import stat
import struct
from lib import *

KNOBS = "/sys/kernel/debug"
KINDS = "failslab", "fail_page_alloc"
MODULE = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/rnull-loop.ko"
EVERYWHERE, NOWHERE = (0, (1 << 64) - 1), (0, 1)
DISKS = [f"/dev/ram{number}" for number in range(32)]
BLKDISCARD, PUNCH_HOLE = 0x1277, 3
# The initial limit of faults, from which the kernel counts down.
PLENTY = 1 << 30
# The number of faults of an operation that makes more allocations than that.
MOST = 40 * ROUNDS
random.seed(SEED)


def set_knob(name, value, kinds=KINDS):
    for kind in kinds:
        write_text(f"{KNOBS}/{kind}/{name}", value)


def module_text():
    """Returns the range of addresses of the module's code."""
    with open("/proc/kallsyms", encoding="ascii") as file:
        lines = [line.split() for line in file if line.endswith("[rnull_loop]\n")]
    addresses = [int(line[0], 16) for line in lines if line[1] in "tT"]
    return min(addresses), max(addresses) + 4096


def kernel_text(function):
    """Returns the range of addresses of a function of the kernel."""
    with open("/proc/kallsyms", encoding="ascii") as file:
        lines = [line.split() for line in file]
    symbols = sorted((int(line[0], 16), line[2]) for line in lines if line[1] in "tT")
    start = next(address for address, name in symbols if name == function)
    return start, next(address for address, _ in symbols if address > start)


def select(allocations, copies):
    """Selects the ranges of addresses whose callees may fail."""
    for kinds, (start, end) in ((KINDS, allocations), (["fail_usercopy"], copies)):
        set_knob("require-start", hex(start), kinds)
        set_knob("require-end", hex(end), kinds)
        set_knob("stacktrace-depth", 32, kinds)
        set_knob("verbose", 0, kinds)


def prepare():
    """Makes small and blocking allocations fail, too; but not those of kmemleak, which would
    disable itself."""
    for path in glob.glob("/sys/kernel/slab/*/failslab"):
        if "kmemleak" not in path:
            write_text(path, "1")
    set_knob("cache-filter", "Y", ["failslab"])
    set_knob("ignore-gfp-wait", "N")
    set_knob("min-order", 0, ["fail_page_alloc"])
    set_knob("times", PLENTY)
    select(module_text(), module_text())


def with_fault(nth, operation):
    """Returns the operation's result, and the number of allocations left until the one that
    fails."""
    with Fd("/proc/thread-self/fail-nth") as knob:
        os.pwrite(knob.fd, b"%d" % nth, 0)
        try:
            outcome = operation()
        finally:
            left = int(os.pread(knob.fd, 32, 0))
            os.pwrite(knob.fd, b"0", 0)
    return outcome, left


def each_fault(operation, after, before=lambda: None, most=MOST):
    """Calls an operation many times, and each time fails another allocation, or those of a random
    choice if there are many. `after` gets the result."""
    before()
    outcome, left = with_fault(10**9, operation)
    after(outcome)
    total = 10**9 - left
    assert outcome not in ("-ENOMEM", "-EIO"), f"without a fault: {outcome}"
    for nth in sorted(random.sample(range(1, total + 1), min(most, total))):
        before()
        outcome, left = with_fault(nth, operation)
        try:
            after(outcome)
        except Exception as error:
            raise AssertionError(f"allocation {nth} of {total} failed: {outcome}: {error}") from error
        count("faults", not left)
    return total


def done_or_no_memory(outcome):
    assert outcome in ("-ENOMEM", "-EFAULT") or not isinstance(outcome, str), outcome


def partitions(device):
    return len(glob.glob(f"/sys/block/{os.path.basename(device)}/loop*p*"))


def table(path):
    run("sfdisk", "-q", path, input="label: dos\nstart=64,size=512\nstart=1024,size=512\n")


class Place:
    """A file system with images, which must not be in use at the end of the `with`."""

    def __init__(self):
        # A new disk, because a failed case may have left one in use.
        disk = DISKS.pop()
        run("mkfs.ext4", "-q", "-b4096", "-Elazy_itable_init=0,nodiscard", disk)
        self.directory = mounted(disk, "place")
        self.images = [image(2, f"place/{name}") for name in ("one", "two")]
        for path in self.images:
            # All blocks are allocated, because ext4 does not survive all failures of an allocation.
            with open(path, "r+b") as file:
                file.write(bytes(2 << 20))
                os.fsync(file.fileno())
            table(path)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            run("umount", self.directory)


def io_works(fd):
    """Checks that the device is neither frozen nor empty."""
    block = mmap.mmap(-1, 4096)
    block[:] = os.urandom(4096)
    with Fd(fd.path, os.O_RDWR | os.O_DIRECT | os.O_SYNC) as device:
        os.pwrite(device.fd, block, 1 << 20)
        got = mmap.mmap(-1, 4096)
        equal("bytes read", os.preadv(device.fd, [got], 1 << 20), 4096)
    assert got[:] == block[:], "read something else"


def is_configured(fd):
    return fd.ioctl(GET_STATUS64, Info()) == 0


def clear(fd):
    """Detaches the device, which has no other opener."""
    equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    fd.close()
    with Fd(fd.path, os.O_RDONLY | os.O_EXCL) as again:
        equal("bound", is_configured(again), False)
    equal("partitions after detach", partitions(fd.path), 0)
    equal("attributes after detach", sysfs(fd.path, "loop/backing_file"), None)


def usable(path, call=None):
    """Checks that the device can be attached without a fault, sends events, and works."""
    fd = Fd(path)
    fd.path = path
    with Events() as events:
        equal("attach afterwards", call(fd), 0)
        assert any(event["ACTION"] == "change" for event in events.of(path)), "no event of the attach"
        io_works(fd)
        clear(fd)
        assert any("DISK_MEDIA_CHANGE" in event for event in events.of(path)), "no event of the detach"


def renew(path):
    """Replaces the device by a new one, because some memory of the first attach stays allocated."""
    number = int(path.removeprefix("/dev/loop"))
    equal("LOOP_CTL_REMOVE", control(CTL_REMOVE, number), 0)
    equal("LOOP_CTL_ADD", control(CTL_ADD, number), number)


def attaching(call, scans=False):
    """Attaches by `call`, which gets the device and the file, with each fault."""
    with Place() as place, Fd(place.images[0]) as backing:
        path = free_device()
        opened = []

        def before():
            renew(path)
            opened[:] = [Fd(path)]
            opened[0].path = path

        def after(outcome):
            done_or_no_memory(outcome)
            equal("bound", is_configured(opened[0]), outcome == 0)
            if outcome == 0:
                io_works(opened[0])
                clear(opened[0])
            else:
                opened[0].close()
                equal("ro", sysfs(path, "ro"), "0")
                equal("block size", sysfs(path, "queue/logical_block_size"), "512")
                equal("size", sysfs(path, "size"), "0")
                equal("partitions", partitions(path), 0)
            usable(path, lambda fd: call(fd, backing))

        each_fault(lambda: call(opened[0], backing), after, before)
        if scans:
            fd = Fd(path)
            equal("attach", call(fd, backing), 0)
            equal("partitions", partitions(path), 2)
            fd.path = path
            clear(fd)


def configuring(block_size=0, **info):
    return lambda fd, file: fd.ioctl(
        CONFIGURE, Config(fd=file.fd, block_size=block_size, info=Info(**info))
    )


for title, call, parts in (
    ("LOOP_SET_FD", lambda fd, file: fd.ioctl(SET_FD, file.fd), False),
    ("LOOP_CONFIGURE", configuring(), False),
    ("LOOP_CONFIGURE, direct I/O", configuring(flags=DIRECT_IO), False),
    ("LOOP_CONFIGURE, partitions", configuring(flags=PARTSCAN), True),
    ("LOOP_CONFIGURE, blocks of 4096 bytes", configuring(4096), False),
):
    check(f"{title}, seed {SEED}")(lambda call=call, parts=parts: attaching(call, parts))


def changing(operation, back=lambda fd, place: None, **arguments):
    """Changes a bound device with each fault; `back` undoes the change where necessary."""
    with Place() as place:
        fd = attach(place.images[0], **arguments)

        def after(outcome):
            done_or_no_memory(outcome)
            back(fd, place)
            if not arguments:
                io_works(fd)
            assert os.pread(fd.fd, 4096, 0)[510:512] == b"\x55\xaa", "the first block is lost"

        each_fault(lambda: operation(fd, place), after)
        again = operation(fd, place)
        assert not isinstance(again, str), f"without a fault: {again}"
        clear(fd)


def change_fd(fd, place):
    with Fd(place.images[1], os.O_RDONLY) as file:
        return fd.ioctl(CHANGE_FD, file.fd)


@check(f"LOOP_CHANGE_FD, seed {SEED}")
def changing_fd():
    changing(change_fd, flags=READ_ONLY)
    changing(change_fd, flags=READ_ONLY | PARTSCAN)


@check(f"LOOP_SET_STATUS64, LOOP_GET_STATUS64, seed {SEED}")
def changing_status():
    def undo(fd, _):
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info()), 0)

    changing(lambda fd, _: fd.ioctl(SET_STATUS64, Info(sizelimit=3 << 19)), undo)
    changing(lambda fd, _: fd.ioctl(SET_STATUS64, Info(offset=1024)), undo)
    changing(lambda fd, _: fd.ioctl(SET_STATUS64, Info(flags=PARTSCAN)))
    changing(lambda fd, _: fd.ioctl(GET_STATUS64, Info()))


@check(f"LOOP_SET_CAPACITY, LOOP_SET_DIRECT_IO, LOOP_SET_BLOCK_SIZE, seed {SEED}")
def changing_limits():
    def grow(_, place):
        with open(place.images[0], "r+b") as file:
            file.truncate(file.seek(0, os.SEEK_END) + 4096)

    def buffered(fd, _):
        equal("SET_DIRECT_IO", fd.ioctl(SET_DIRECT_IO, 0), 0)

    def small(fd, _):
        equal("SET_BLOCK_SIZE", fd.ioctl(SET_BLOCK_SIZE, 512), 0)

    changing(lambda fd, _: fd.ioctl(SET_CAPACITY), grow)
    changing(lambda fd, _: fd.ioctl(SET_DIRECT_IO, 1), buffered)
    changing(lambda fd, _: fd.ioctl(SET_BLOCK_SIZE, 4096), small)


@check(f"LOOP_CLR_FD, close, open, seed {SEED}")
def detaching():
    with Place() as place:
        bound = []
        flags = DIRECT_IO | PARTSCAN

        def before():
            bound[:] = [attach(place.images[0], flags=flags)]

        def detached():
            outcome = bound[0].ioctl(CLR_FD)
            if outcome == 0:
                bound[0].close()
            return outcome

        def after(outcome):
            done_or_no_memory(outcome)
            if outcome:
                clear(bound[0])
            usable(bound[0].path, lambda fd: configuring(flags=flags)(fd, file))

        with Fd(place.images[0]) as file:
            each_fault(detached, after, before)

        def opened():
            try:
                with Fd(bound[0].path, os.O_RDONLY):
                    return 0
            except OSError as error:
                return "-" + errno.errorcode[error.errno]

        before()
        each_fault(opened, done_or_no_memory)
        clear(bound[0])


def text_of(path):
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        return "-" + errno.errorcode[error.errno]


def switch_on(path):
    try:
        with open(path, "wb", buffering=0) as file:
            return file.write(b"wait\n" if path.endswith("/enospc") else b"1\n")
    except OSError as error:
        return "-" + errno.errorcode[error.errno]


@check(f"attributes and tunables in sysfs, seed {SEED}")
def attributes():
    with Place() as place:
        fd = attach(place.images[0])
        directory = f"/sys/block/{os.path.basename(fd.path)}"
        for path in glob.glob(f"{directory}/loop/*") + glob.glob(f"{directory}/rnull_loop/*"):
            each_fault(lambda path=path: text_of(path), done_or_no_memory)
            if os.stat(path).st_mode & stat.S_IWUSR:
                each_fault(lambda path=path: switch_on(path), done_or_no_memory)
        clear(fd)


@check(f"LOOP_CTL_ADD, LOOP_CTL_REMOVE, LOOP_CTL_GET_FREE, seed {SEED}")
def controlling():
    number, first = 77, free_device()

    def there():
        return os.path.exists(f"/sys/block/loop{number}")

    def added(outcome):
        # device_add_disk() does not report a missing name for lack of memory, and fails later
        # without it.
        if outcome != "-EINVAL":
            done_or_no_memory(outcome)
        equal("there", there(), outcome == number)
        if outcome != number:
            equal("LOOP_CTL_ADD afterwards", control(CTL_ADD, number), number)
        equal("LOOP_CTL_REMOVE", control(CTL_REMOVE, number), 0)

    def removed(outcome):
        done_or_no_memory(outcome)
        if outcome == 0:
            equal("there", there(), False)
        else:
            equal("LOOP_CTL_REMOVE afterwards", control(CTL_REMOVE, number), 0)

    # Other tasks may see a device before its addition has failed.
    with subprocess.Popen("while :; do cat /proc/diskstats; done", shell=True, stdout=subprocess.DEVNULL) as others:
        try:
            each_fault(lambda: control(CTL_ADD, number), added)
        finally:
            others.kill()
    each_fault(
        lambda: control(CTL_REMOVE, number),
        removed,
        lambda: equal("LOOP_CTL_ADD", control(CTL_ADD, number), number),
    )
    each_fault(lambda: control(CTL_GET_FREE), done_or_no_memory)
    equal("the first free device", free_device(), first)


def memory(size, fill):
    """Returns pages with random content, or empty ones, in small pieces."""
    pages = mmap.mmap(-1, size)
    if fill:
        pages[:] = random.randbytes(size)
    view = memoryview(pages)
    piece = max(512, size // 256)
    return pages, [view[at : at + piece] for at in range(0, size, piece)]


def transfer_sizes(path):
    """Reads and writes in all sizes, and flushes."""
    with Fd(path, os.O_RDWR | os.O_DIRECT) as fd:
        for size in 512, 4096, 65536, 1 << 20:
            data, pieces = memory(size, True)
            into, places = memory(size, False)

            def erase(into=into, size=size):
                into[:] = bytes(size)

            def same(outcome, size=size, data=data, into=into):
                equal("bytes", outcome, size)
                assert into[:] == data[:], "read something else"
                count("bytes_verified", size)

            def written(outcome, size=size, same=same, places=places):
                equal("bytes", outcome, size)
                same(os.preadv(fd.fd, places, 0))

            each_fault(lambda pieces=pieces: os.pwritev(fd.fd, pieces, 0), written, erase)
            each_fault(lambda places=places: os.preadv(fd.fd, places, 0), same, erase)
        each_fault(lambda: os.fsync(fd.fd), lambda outcome: equal("fsync", outcome, None))


def transfers(device_below, direct):
    with Place() as place:
        fd = attach_below(place, device_below, direct)
        transfer_sizes(fd.path)
        clear(fd)


for below in False, True:
    for dio in False, True:
        check(
            f"reads, writes and flushes: {'disk' if below else 'file'}, "
            f"{'direct' if dio else 'buffered'}, seed {SEED}"
        )(lambda below=below, dio=dio: transfers(below, dio))


def attach_below(place, device_below, direct):
    """Attaches a device to a file, or to a disk with 2 MiB allocated: a RAM disk fails writes for
    lack of memory."""
    path = place.images[0]
    if device_below:
        path = "/dev/ram0"
        with Fd(path) as disk:
            os.pwrite(disk.fd, bytes(2 << 20), 0)
            os.fsync(disk.fd)
    return attach(path, flags=direct and DIRECT_IO)


@contextlib.contextmanager
def short_of_memory():
    """Makes one allocation in five fail, in workers as well."""
    set_knob("times", PLENTY)
    set_knob("probability", 20)
    try:
        yield
    finally:
        set_knob("probability", 0)
    faults = sum(PLENTY - int(text_of(f"{KNOBS}/{kind}/times")) for kind in KINDS)
    assert faults, "no allocation was made to fail"
    count("faults", faults)


def load(device_below, direct):
    """Runs a verified load while one allocation in five fails, in workers as well. Its requests are
    merged, so that the driver has to allocate."""
    with Place() as place:
        fd = attach_below(place, device_below, direct)
        with short_of_memory():
            run("fio", "--name=load", f"--filename={fd.path}", "--ioengine=libaio", "--direct=1",
                "--iodepth=32", "--iodepth_batch=16", "--rw=write", "--bsrange=4k-64k", "--size=2m",
                f"--loops={3 * ROUNDS}",
                *VERIFIED, "--fsync=16",
                f"--randseed={SEED}", timeout=120)  # fmt: skip
        count("bytes_verified", 3 * ROUNDS * 2 << 20)
        clear(fd)


for below in False, True:
    for dio in False, True:
        check(
            f"load: {'disk' if below else 'file'}, {'direct' if dio else 'buffered'}, seed {SEED}"
        )(lambda below=below, dio=dio: load(below, dio))


def discard(fd, start, size):
    fcntl.ioctl(fd.fd, BLKDISCARD, struct.pack("QQ", start, size))


def zero(fd, start, size):
    """Punches a hole. BLKZEROOUT wants to keep the blocks, which tmpfs cannot do: after the first
    failure the device would not be asked again."""
    result = LIBC.fallocate(fd.fd, PUNCH_HOLE, ctypes.c_long(start), ctypes.c_long(size))
    assert result == 0, f"fallocate: {os.strerror(ctypes.get_errno())}"


@check(f"discards and zeroes, seed {SEED}")
def holes():
    # ext4 reports errors when it lacks memory for punching a hole; tmpfs does not.
    directory = f"{SCRATCH}/tmpfs"
    os.mkdir(directory)
    run("mount", "-t", "tmpfs", "tmpfs", directory)
    fd = attach(image(2, "tmpfs/image"))
    wanted = bytearray(random.randbytes(1 << 20))
    os.pwrite(fd.fd, wanted, 0)
    os.fsync(fd.fd)
    with short_of_memory():
        for _ in range(100 * ROUNDS):
            start, end = (block << 12 for block in sorted(random.sample(range(257), 2)))
            random.choice((discard, zero))(fd, start, end - start)
            wanted[start:end] = bytes(end - start)
            if random.random() < 0.5:
                wanted[start:end] = random.randbytes(end - start)
                equal("bytes", os.pwrite(fd.fd, wanted[start:end], start), end - start)
                os.fsync(fd.fd)
    run("blockdev", "--flushbufs", fd.path)
    assert os.pread(fd.fd, 1 << 20, 0) == wanted, "read something else"
    count("bytes_verified", 1 << 20)
    clear(fd)
    run("umount", directory)


def load_module(file):
    """Calls finit_module()."""
    if LIBC.syscall(313, file.fd, b"max_loop=2", 0) == 0:
        return 0
    return "-" + errno.errorcode[ctypes.get_errno()]


def unload():
    run("rmmod", "rnull_loop")


@check(f"loading the module, seed {SEED}")
def loading():
    def loaded(outcome):
        done_or_no_memory(outcome)
        if outcome == 0:
            unload()
        left = [
            path
            for path in ("/sys/module/rnull_loop", "/dev/loop-control", *glob.glob("/sys/block/loop*"))
            if os.path.exists(path)
        ]
        with open("/proc/devices", encoding="ascii") as file:
            left += [line.strip() for line in file if line.rstrip().endswith(" loop")]
        equal("leftovers", left, [])

    unload()
    # The module's code has no address yet.
    select(EVERYWHERE, NOWHERE)
    # The kernel warns if it has no memory for the fields of a tracepoint.
    for knob, address in zip(("reject-start", "reject-end"), kernel_text("event_define_fields")):
        set_knob(knob, hex(address))
    with Fd(MODULE, os.O_RDONLY) as file:
        try:
            each_fault(lambda: load_module(file), loaded)
        finally:
            equal("load", load_module(file), 0)
            select(module_text(), module_text())


def main():
    """Runs the cases without udev, which would open the device after every change."""
    if not os.path.exists("/proc/thread-self/fail-nth") or not os.path.exists(f"{KNOBS}/failslab"):
        skip_all("the kernel has no fault injection")
    run("modprobe", "brd", f"rd_nr={len(DISKS)}", "rd_size=32768")
    stop_udev()
    prepare()
    run_checks()


main()
