#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""/sys/block/loopN of a device, for each kind of backing, has the values of the C driver: tools
read sizes, limits and caches from there, and adapt to them. The group loop/ exists only while a
device is bound. No value of one binding appears in the next."""
import contextlib
import glob
import mmap
import os
import resource
import signal
import stat
import subprocess
import time
from lib import *

# The values of a device without a file, except those that differ between machines, and times.
UNBOUND = {
    "alignment_offset": "0",
    "capability": "0",
    "discard_alignment": "0",
    "events": "media_change",
    "events_async": "",
    "events_poll_msecs": "-1",
    "ext_range": "256",
    "hidden": "0",
    "partscan": "0",
    "range": "1",
    "removable": "0",
    "ro": "0",
    "size": "0",
    "queue/add_random": "0",
    "queue/atomic_write_max_bytes": "0",
    "queue/atomic_write_unit_max_bytes": "0",
    "queue/chunk_sectors": "0",
    "queue/dax": "0",
    "queue/discard_granularity": "0",
    "queue/discard_max_bytes": "0",
    "queue/discard_max_hw_bytes": "0",
    "queue/dma_alignment": "511",
    "queue/fua": "0",
    "queue/hw_sector_size": "512",
    "queue/io_poll": "0",
    "queue/iostats": "1",
    "queue/logical_block_size": "512",
    "queue/max_discard_segments": "1",
    "queue/max_hw_sectors_kb": "1280",
    "queue/max_integrity_segments": "0",
    "queue/max_sectors_kb": "1280",
    "queue/max_segment_size": "65536",
    "queue/max_segments": "128",
    "queue/minimum_io_size": "512",
    "queue/nomerges": "0",
    "queue/nr_requests": "128",
    "queue/nr_zones": "0",
    "queue/optimal_io_size": "0",
    "queue/physical_block_size": "512",
    "queue/read_ahead_kb": "128",
    "queue/rotational": "0",
    "queue/rq_affinity": "1",
    "queue/stable_writes": "0",
    "queue/virt_boundary_mask": "0",
    "queue/write_cache": "write through",
    "queue/write_zeroes_max_bytes": "0",
    "queue/zone_append_max_bytes": "0",
    "queue/zoned": "none",
}
# Better values than those of the C driver (docs/differences.md): only the disk below splits
# requests, and a block device below makes single writes durable.
OWN = DRIVER == "rnull_loop"
if OWN:
    UNBOUND |= {
        "queue/max_hw_sectors_kb": "32768",
        "queue/max_segment_size": "4294967295",
        "queue/max_segments": "256",
    }
DURABLE = {"queue__fua": "1"} if OWN else {}
# The largest discard of a file: all sectors whose bytes fit 32 bits.
LARGEST = str(0xFFFFFFFF >> 9 << 9)
BLKDISCARD = 0x1277
GROUP = ("autoclear", "backing_file", "dio", "offset", "partscan", "sizelimit")


def everything(device):
    """Returns all readable values in the device's directory, without times and counters."""
    top, found = f"/sys/block/{os.path.basename(device)}", {}
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.relpath(f"{directory}/{name}", top)
            if not path.startswith(("power/", "trace/")) and path not in ("stat", "inflight", "rnull_loop/stats"):
                try:
                    found[path] = sysfs(device, path)
                except OSError as error:
                    found[path] = str(error)
    return found


def expect(what, device, **changes):
    """Checks that the device has the values of an unbound one, but for the changes: `queue__x` is
    queue/x."""
    wanted = UNBOUND | {name.replace("__", "/"): value for name, value in changes.items()}
    got = {name: sysfs(device, name) for name in wanted}
    different = [f"{n} is {got[n]!r}, not {wanted[n]!r}" for n in wanted if got[n] != wanted[n]]
    assert not different, f"{what}: {', '.join(different)}"


def sized(size, dio="0", **changes):
    """Returns the values of a bound device of that size, with a file that can be synced."""
    return {
        "size": str(size >> 9),
        "loop__offset": "0",
        "loop__sizelimit": "0",
        "loop__autoclear": "0",
        "loop__partscan": "0",
        "loop__dio": dio,
        "queue__write_cache": "write back",
    } | changes


def discard(granularity, largest=LARGEST):
    return {
        "queue__discard_granularity": str(granularity),
        "queue__discard_max_bytes": largest,
        "queue__discard_max_hw_bytes": largest,
        "queue__write_zeroes_max_bytes": largest,
    }


def blocks(size):
    return {
        "queue__logical_block_size": str(size),
        "queue__physical_block_size": str(size),
        "queue__hw_sector_size": str(size),
        "queue__minimum_io_size": str(size),
    }


READ_ONLY_DEVICE = {"ro": "1", "queue__write_cache": "write through", "queue__fua": "0"}


def each_way(path, size, limits, durable):
    """Checks the values of a device for a file or block device that is attached in each way.
    Discards are not smaller than blocks."""
    shown = sized(size, loop__backing_file=path) | limits | durable
    large = blocks(4096) | ({"queue__discard_granularity": "4096"} if limits else {})
    for what, arguments, changes in (
        ("buffered", {}, {}),
        ("read-only", {"flags": READ_ONLY}, READ_ONLY_DEVICE),
        ("a file open for reading", {"mode": os.O_RDONLY}, READ_ONLY_DEVICE),
        ("direct", {"flags": DIRECT_IO}, {"loop__dio": "1"}),
        ("opened for direct I/O", {"mode": os.O_RDWR | os.O_DIRECT}, {"loop__dio": "1"}),
        ("blocks of 4096", {"block_size": 4096}, large),
        ("both", {"block_size": 4096, "flags": DIRECT_IO}, large | {"loop__dio": "1"}),
        ("buffered again", {}, {}),
    ):
        device = free_device()
        with Fd(device) as fd:
            equal("CONFIGURE", configure(fd, path, **arguments), 0)
            expect(what, device, **(shown | changes))
        unbound_again(device)


def configure(fd, path, mode=os.O_RDWR, block_size=0, **info):
    with Fd(path, mode) as backing:
        config = Config(fd=backing.fd, block_size=block_size, info=Info(**info))
        return fd.ioctl(CONFIGURE, config)


def unbound_again(device):
    """Detaches. Values that the next attach sets may stay until then: limits, cache, read-only."""
    before = int(sysfs(device, "diskseq"))
    detach(device)
    # The last close, which may be udev's, counts diskseq after it has removed the attributes.
    wait_for(lambda: int(sysfs(device, "diskseq")) > before)
    stays = ("ro", "queue/write_cache", "queue/fua", "queue/rotational")
    stays += tuple(name.replace("__", "/") for name in discard(0))
    for name, value in UNBOUND.items():
        if name not in stays:
            equal(f"{name} after detach", sysfs(device, name), value)
    equal("diskseq after detach", int(sysfs(device, "diskseq")), before + 1)
    assert not os.path.exists(f"/sys/block/{device[5:]}/loop")


@contextlib.contextmanager
def new_device(number):
    """Adds a device, and removes it at the end: some values in queue/ outlast the file."""
    path = f"/dev/loop{number}"
    equal("ADD", control(CTL_ADD, number), number)
    wait_for(lambda: os.path.exists(path))
    yield path
    wait_for(lambda: control(CTL_REMOVE, number) == 0)
    assert not os.path.exists(f"/sys/block/loop{number}")


def make_file_system(below):
    """Makes a file system on a device, mounts it, and returns the path of an image in it."""
    place = f"{SCRATCH}/ext4"
    os.mkdir(place)
    subprocess.run(["mkfs.ext4", "-q", below], check=True)
    subprocess.run(["mount", below, place], check=True)
    return image(1, "ext4/image")


def ram_disks():
    """Makes two disks that can neither discard nor write zeroes."""
    subprocess.run(["modprobe", "brd", "rd_nr=2", "rd_size=16384"], check=True)
    wait_for(lambda: os.path.exists("/dev/ram1"))


def no_ram_disks():
    """Removes the disks."""
    subprocess.run(["umount", "-ql", f"{SCRATCH}/ext4"], check=False, stderr=subprocess.DEVNULL)
    # udev may have one open for a moment.
    rmmod = ["rmmod", "brd"]
    wait_for(lambda: not subprocess.run(rmmod, check=False, stderr=subprocess.DEVNULL).returncode)


@check("an unbound device that never had a file")
def unbound():
    with new_device(60):
        expect("unbound", "loop60")
        assert not os.path.exists("/sys/block/loop60/loop")
        equal("dev", sysfs("loop60", "dev"), "7:60")
        for path in "/sys/block/loop60", "/sys/dev/block/7:60":
            equal(path, os.path.realpath(path), "/sys/devices/virtual/block/loop60")
        equal("bdi", os.path.basename(os.path.realpath("/sys/block/loop60/bdi")), "7:60")
        sequence = sysfs("loop60", "diskseq")
        wanted = f"MAJOR=7\nMINOR=60\nDEVNAME=loop60\nDEVTYPE=disk\nDISKSEQ={sequence}"
        equal("uevent", sysfs("loop60", "uevent"), wanted)
        equal("inflight", sysfs("loop60", "inflight").split(), ["0", "0"])
        equal("stat", set(sysfs("loop60", "stat").split()), {"0"})


@check("a file on tmpfs")
def on_tmpfs():
    path = image(4)
    each_way(path, 4 << 20, discard(os.statvfs(path).f_bsize), {})


@check("a file on ext4")
def on_ext4():
    ram_disks()
    try:
        path = make_file_system("/dev/ram0")
        each_way(path, 1 << 20, discard(os.statvfs(path).f_bsize), {})
    finally:
        no_ram_disks()


@check("a block device that cannot write zeroes")
def on_ram_disk():
    ram_disks()
    try:
        each_way("/dev/ram1", 16 << 20, {}, DURABLE)
    finally:
        no_ram_disks()


@check("a block device that can write zeroes")
def on_loop():
    with attach(image(4)) as below:
        each_way(below.path, 4 << 20, discard(os.statvfs(SCRATCH).f_bsize), DURABLE)


@check("direct I/O reports larger blocks below as physical blocks", better="the C driver needs blocks of that size itself")
def large_blocks_below():
    with attach(image(4), block_size=4096) as below:
        size, limits = 4 << 20, discard(4096) | DURABLE
        direct = {"loop__dio": "1"} | dict.fromkeys(
            ("queue__physical_block_size", "queue__minimum_io_size"), "4096"
        )
        for arguments, changes in (
            ({}, {}),
            ({"flags": DIRECT_IO}, direct),
            ({"flags": DIRECT_IO, "block_size": 512}, direct),
            ({"flags": DIRECT_IO, "block_size": 4096}, {"loop__dio": "1"} | blocks(4096)),
            (
                {"flags": DIRECT_IO, "offset": 512},
                {"loop__offset": "512", "size": "8191"},
            ),
        ):
            with attach(below.path, **arguments) as fd:
                expect(f"{arguments}", fd.path, **(sized(size) | limits | changes))


@check("a device on a rotational device is rotational")
def rotational():
    with new_device(60) as below, new_device(61) as above:
        with Fd(below) as fd:
            equal("CONFIGURE", configure(fd, image(16)), 0)
        assert set_queue("loop60", "rotational", "1")
        inner = make_file_system(below)
        for path, wanted in (inner, "1"), (image(1), "0"), (below, "1"):
            if path == below:
                subprocess.run(["umount", f"{SCRATCH}/ext4"], check=True)
            with Fd(above) as fd:
                equal("CONFIGURE", configure(fd, path), 0)
            equal(f"rotational on {path}", sysfs(above, "queue/rotational"), wanted)
            detach(above)
        detach(below)


@check("a read-only file without a size")
def on_proc():
    with attach("/proc/version", mode=os.O_RDONLY) as fd:
        wanted = sized(0, loop__backing_file="/proc/version") | READ_ONLY_DEVICE
        expect("/proc/version", fd.path, **wanted)


@check("loop/ shows the current offset, sizelimit and flags")
def group_follows():
    path = image(4)
    with attach(path, offset=1 << 20, sizelimit=1 << 20, flags=PARTSCAN) as fd:
        wanted = {"loop__offset": "1048576", "loop__sizelimit": "1048576", "loop__partscan": "1"}
        limits = discard(os.statvfs(path).f_bsize)
        expect("attach", fd.path, partscan="1", **(sized(1 << 20) | limits | wanted))
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(flags=AUTOCLEAR, offset=513)), 0)
        wanted = {"loop__offset": "513", "loop__partscan": "1", "loop__autoclear": "1"}
        expect("SET_STATUS64", fd.path, partscan="1", **(sized((4 << 20) - 1024) | limits | wanted))


@check("the attributes of loop/: names, modes and lines")
def group_files():
    path = image(1, "a name with spaces, \n and \u00e9")
    with attach(path) as fd:
        group = f"/sys/block/{fd.path[5:]}/loop"
        equal("names", sorted(os.listdir(group)), sorted(GROUP))
        for name in GROUP:
            mode = os.stat(f"{group}/{name}").st_mode
            wanted = (True, 0o444)
            equal(f"mode of {name}", (stat.S_ISREG(mode), stat.S_IMODE(mode)), wanted)
            with open(f"{group}/{name}", encoding="utf-8") as file:
                wanted = path if name == "backing_file" else "0"
                equal(name, file.read(), wanted + "\n")
        os.rename(path, f"{SCRATCH}/other")
        equal("renamed", sysfs(fd.path, "loop/backing_file"), f"{SCRATCH}/other")
        # An open attribute does not keep the group.
        held = Fd(f"{group}/backing_file", os.O_RDONLY)
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    wait_for(lambda: not is_bound(fd.path))
    try:
        os.read(held.fd, 100)
        raise AssertionError("an attribute of a removed group could be read")
    except OSError as error:
        equal("read", error.errno, errno.ENODEV)
    held.close()


@check("changed settings of a bound device are visible at once")
def settings_follow():
    path, other = image(4), image(4, "other")
    with attach(path) as fd:
        limits, shown = discard(os.statvfs(path).f_bsize), sized(4 << 20)
        subprocess.run(["udevadm", "settle"], check=True)
        for command, argument, changes in (
            (SET_BLOCK_SIZE, 2048, blocks(2048)),
            (SET_BLOCK_SIZE, 65536, blocks(65536) | {"queue__discard_granularity": "65536"}),
            (SET_BLOCK_SIZE, 0, blocks(512)),
            (SET_DIRECT_IO, 1, {"loop__dio": "1"}),
            (SET_DIRECT_IO, 0, {"loop__dio": "0"}),
        ):
            equal(hex(command), fd.ioctl(command, argument), 0)
            expect(f"{hex(command)} {argument}", fd.path, **(shown | limits | changes))
        os.truncate(path, 6 << 20)
        equal("SET_CAPACITY", fd.ioctl(SET_CAPACITY), 0)
        expect("SET_CAPACITY", fd.path, **(sized(6 << 20) | limits))
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    wait_for(lambda: not is_bound(fd.path))
    os.truncate(path, 4 << 20)
    with attach(path, flags=READ_ONLY) as fd, Fd(other, os.O_RDONLY) as backing:
        sequence = int(sysfs(fd.path, "diskseq"))
        equal("CHANGE_FD", fd.ioctl(CHANGE_FD, backing.fd), 0)
        wanted = sized(4 << 20, loop__backing_file=other) | limits | READ_ONLY_DEVICE
        expect("CHANGE_FD", fd.path, **wanted)
        equal("diskseq", sysfs(fd.path, "diskseq"), str(sequence + 1))


def refusals(device, **arguments):
    """Checks that a refused attach changes nothing."""
    path = image(1, "refused")
    for mode in os.O_RDWR, os.O_RDONLY:
        before = everything(device)
        with Fd(device) as fd:
            got = configure(fd, path, mode, **arguments)
            assert isinstance(got, str), f"{arguments}: {got}"
        now = everything(device)
        changed = {name for name in before | now if before.get(name) != now.get(name)}
        equal(f"changed by {arguments}", changed, set())


@check("a refused attach changes nothing")
def refused():
    device = free_device()
    for arguments in {"flags": 2}, {"offset": 1 << 63}, {"encrypt_type": 1}:
        refusals(device, **arguments)
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, image(1)), 0)
    refusals(device)
    detach(device)


@check(
    "an attach refused for its block size changes nothing",
    better="the C driver counts diskseq, and makes the device read-only if the file is",
)
def refused_block_size():
    refusals(free_device(), block_size=1000)


@check("stat and inflight count requests")
def counted():
    with attach(image(4), flags=DIRECT_IO) as fd:
        subprocess.run(["udevadm", "settle"], check=True)
        with Fd(fd.path, os.O_RDWR | os.O_DIRECT) as direct:
            before = [int(field) for field in sysfs(fd.path, "stat").split()]
            buffer = mmap.mmap(-1, 65536)
            equal("read", os.preadv(direct.fd, [buffer], 0), 65536)
            equal("write", os.pwritev(direct.fd, [memoryview(buffer)[:8192]], 1 << 20), 8192)
            os.fsync(direct.fd)
            area = (ctypes.c_uint64 * 2)(2 << 20, 1 << 20)
            equal("BLKDISCARD", LIBC.ioctl(direct.fd, BLKDISCARD, area), 0)
            now = [int(field) for field in sysfs(fd.path, "stat").split()]
    done = [after - first for after, first in zip(now, before)]
    equal("reads, and their sectors", (done[0], done[2]), (1, 128))
    # A flush is a write without sectors.
    equal("writes, and their sectors", (done[4], done[6]), (2, 16))
    equal("discards, and their sectors", (done[11], done[13]), (1, 2048))
    equal("flushes", done[15], 1)
    equal("in flight", now[8], 0)
    equal("inflight", sysfs(fd.path, "inflight").split(), ["0", "0"])


@check("valid settings of queue/ take effect, and others are refused")
def settable():
    with new_device(61) as device:
        with Fd(device) as fd:
            equal("CONFIGURE", configure(fd, image(4)), 0)
            for name, value, outcome in SETTABLE:
                before = chosen(sysfs(device, f"queue/{name}"))
                taken = set_queue("loop61", name, value)
                equal(f"{name}={value} taken", taken, outcome is not None)
                now = chosen(sysfs(device, f"queue/{name}"))
                equal(f"{name} after {value}", now, outcome or before)
                # I/O still works.
                os.pwrite(fd.fd, b"x" * 4096, 8192)
                os.fsync(fd.fd)
        detach(device)


LARGEST_KB = int(UNBOUND["queue/max_hw_sectors_kb"])
# An attribute of queue/, the value written, and the value then read; None if it is refused.
SETTABLE = (
    ("read_ahead_kb", "512", "512"),
    ("max_sectors_kb", "64", "64"),
    ("max_sectors_kb", str(LARGEST_KB), str(LARGEST_KB)),
    ("max_sectors_kb", str(LARGEST_KB + 1), str(LARGEST_KB)),
    ("nr_requests", "64", "64"),
    ("nr_requests", "129", None),
    ("nomerges", "2", "2"),
    ("iostats", "0", "0"),
    ("rotational", "1", "1"),
    ("write_cache", "write through", "write through"),
    ("scheduler", "mq-deadline", "mq-deadline"),
    ("scheduler", "not-there", None),
    ("discard_max_bytes", "1048576", "1048576"),
    ("scheduler", "none", "none"),
)


def chosen(text):
    """Returns the value, or the one in brackets if there are several choices."""
    return text.strip().split("[")[-1].split("]")[0]


def set_queue(device, name, value):
    """Writes an attribute; returns whether it was accepted."""
    with Fd(f"/sys/block/{device}/queue/{name}", os.O_WRONLY) as file:
        try:
            os.write(file.fd, value.encode())
            return True
        except OSError as error:
            equal(f"{name}={value}", error.errno, errno.EINVAL)
            return False


def renew_devices():
    """Replaces all devices by new ones, because read-ahead never shrinks after a larger value."""
    for device in glob.glob("/sys/block/loop*"):
        number = int(device.removeprefix("/sys/block/loop"))
        wait_for(lambda n=number: control(CTL_REMOVE, n) == 0)
        equal("ADD", control(CTL_ADD, number), number)


renew_devices()


@check("an ioctl does not wait for a preempted reader")
def preempted_reader():
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        skip("needs two CPUs")

    def read():
        os.sched_setaffinity(0, cpus[-1:])
        with Fd(f"/sys/block/{os.path.basename(fd.path)}/loop/backing_file", os.O_RDONLY) as file:
            while True:
                os.pread(file.fd, 4096, 0)

    def occupy():
        os.sched_setaffinity(0, cpus[-1:])
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass

    def sleeps():
        return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw

    slept = 0
    with attach(image(name="n" * 200)) as fd, Fd(fd.path):
        reader = forked(read)
        os.sched_setaffinity(0, cpus[:-1])
        try:
            for _ in range(30):
                time.sleep(0.1)
                occupier = forked(occupy)
                while os.waitpid(occupier, os.WNOHANG) == (0, 0):
                    before = sleeps()
                    # LOOP_CLR_FD only sets a flag, because there is another opener.
                    equal("CLR_FD", fd.ioctl(CLR_FD), 0)
                    slept += sleeps() - before
        finally:
            os.sched_setaffinity(0, cpus)
            os.kill(reader, signal.SIGKILL)
            os.waitpid(reader, 0)
    equal("sleeps in LOOP_CLR_FD", slept, 0)


run_checks()
