#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""LOOP_CHANGE_FD gives a read-only device in use another file of the same size, as installers do to
release a medium. From then on the device reads the new file, without stale data, and the old file
is closed. A refused change has no effect."""
import mmap
import os
import subprocess
import threading
from lib import *

# The number of the first sector of the second image.
OTHER = 1 << 32


def attach_reader(path, device_mode=os.O_RDONLY, **arguments):
    fd = attach(path, mode=os.O_RDONLY, device_mode=device_mode, **arguments)
    equal("ro", sysfs(fd.path, "ro"), "1")
    return fd


def change(fd, path, flags=os.O_RDONLY):
    with Fd(path, flags) as backing:
        return fd.ioctl(CHANGE_FD, backing.fd)


def sequence(fd):
    return int(sysfs(fd.path, "diskseq"))


def state(fd):
    """Returns the state that a refused change must not alter."""
    names = "loop/backing_file", "loop/dio", "loop/offset", "ro", "size", "diskseq"
    return {name: sysfs(fd.path, name) for name in names}


def serves_the_new(flags):
    one, two = numbered_image(2), numbered_image(2, "two", OTHER)
    with attach_reader(one, flags=flags, offset=4096) as fd, Fd(fd.path, os.O_RDONLY) as other:
        for reader in fd, other:
            equal("sectors", [number_at(reader, n) for n in (0, 100, 4087)], [8, 108, 4095])
        before = sequence(fd)
        equal("CHANGE_FD", change(fd, two), 0)
        for reader in fd, other:
            sectors = [number_at(reader, n) - OTHER for n in (0, 100, 4087)]
            equal("sectors", sectors, [8, 108, 4095])
        info = status(fd)
        equal("inode", info.inode, os.stat(two).st_ino)
        equal("offset", info.offset, 4096)
        equal("flags", info.flags, READ_ONLY | flags)
        equal("file", sysfs(fd.path, "loop/backing_file"), two)
        equal("ro", sysfs(fd.path, "ro"), "1")
        assert sequence(fd) > before
        equal("back", change(fd, one), 0)
        equal("sector", number_at(fd, 100), 108)


@check("the device reads the new file, and stays read-only: buffered")
def buffered():
    serves_the_new(0)


@check("the device reads the new file, and stays read-only: direct")
def direct():
    serves_the_new(DIRECT_IO)


@check("a file open for writing does not make the device writable")
def stays_read_only():
    with attach_reader(image(), device_mode=os.O_RDWR) as fd:
        equal("CHANGE_FD", change(fd, image(1, "two"), os.O_RDWR), 0)
        equal("flags", status(fd).flags, READ_ONLY)
        equal("ro", sysfs(fd.path, "ro"), "1")
        try:
            os.pwrite(fd.fd, bytes(512), 0)
            raise AssertionError("it can be written")
        except PermissionError:
            pass


@check("a file opened with O_DIRECT switches on direct I/O, another file changes nothing")
def direct_descriptor():
    with attach_reader(image()) as fd:
        equal("CHANGE_FD", change(fd, image(1, "two"), os.O_RDONLY | os.O_DIRECT), 0)
        equal("flags", status(fd).flags, READ_ONLY | DIRECT_IO)
        equal("CHANGE_FD", change(fd, f"{SCRATCH}/image"), 0)
        equal("flags", status(fd).flags, READ_ONLY | DIRECT_IO)


@check("a file without direct I/O switches it off")
def no_direct():
    one = numbered_image()
    os.mkdir(f"{SCRATCH}/tree")
    os.rename(numbered_image(1, "two", OTHER), f"{SCRATCH}/tree/two")
    squashfs = f"{SCRATCH}/squashfs"
    run("mksquashfs", f"{SCRATCH}/tree", squashfs, "-quiet", "-no-progress")
    place = mounted(squashfs, "place", "-o", "loop")
    with attach_reader(one, flags=DIRECT_IO) as fd:
        equal("flags", status(fd).flags, READ_ONLY | DIRECT_IO)
        equal("CHANGE_FD", change(fd, f"{place}/two"), 0)
        equal("flags", status(fd).flags, READ_ONLY)
        equal("sector", number_at(fd, 7), OTHER + 7)


@check("the old file is closed, and the new one kept open")
def old_one_let_go():
    places = [mounted("tmpfs", name, "-t", "tmpfs") for name in ("old", "new")]
    paths = [numbered_image(1, "old/image"), numbered_image(1, "new/image", OTHER)]
    with attach_reader(paths[0]) as fd:
        equal("CHANGE_FD", change(fd, paths[1]), 0)
        run("umount", places[0])
        assert subprocess.run(["umount", places[1]], check=False, capture_output=True).returncode
        equal("sector", number_at(fd, 5), OTHER + 5)
        settle()
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    run("umount", places[1])


@check("a mounted squashfs goes on with the new file, when the old one is gone")
def mounted_squashfs():
    tree = "/usr/lib/udev/rules.d"
    places = [mounted("tmpfs", name, "-t", "tmpfs") for name in ("old", "new")]
    paths = [f"{place}/image" for place in places]
    run("mksquashfs", tree, paths[0], "-quiet", "-no-progress")
    run("cp", *paths)
    with attach_reader(paths[0]) as fd:
        mounted(fd.path, "mounted", "-o", "ro")
        os.listdir(f"{SCRATCH}/mounted")
        equal("CHANGE_FD", change(fd, paths[1]), 0)
        run("umount", places[0])
        write_text("/proc/sys/vm/drop_caches", "3")
        run("diff", "-r", tree, f"{SCRATCH}/mounted")
        run("umount", f"{SCRATCH}/mounted")


@check("a mounted ext4 is notified of the change, and shuts down")
def mounted_ext4():
    paths = [image(8), f"{SCRATCH}/two"]
    run("mkfs.ext4", "-q", "-d", "/usr/lib/udev/rules.d", paths[0])
    run("cp", *paths)
    with attach_reader(paths[0]) as fd:
        place = mounted(fd.path, "mounted", "-o", "ro,noload")
        file = next(entry.path for entry in os.scandir(place) if entry.is_file())
        with open(file, "rb") as rules:
            assert rules.read()
        equal("CHANGE_FD", change(fd, paths[1]), 0)
        try:
            with open(file, "rb") as rules:
                rules.read()
            raise AssertionError(f"{file} can be read")
        except OSError as error:
            equal("error", errno.errorcode[error.errno], "EIO")
        run("umount", place)
        run("e2fsck", "-fn", fd.path)


@check("partitions are scanned again with PARTSCAN, and only then")
def partitions():
    for name, table in ("one", "start=64,size=64"), ("two", "start=64,size=64\nstart=256,size=128"):
        run("sfdisk", "-q", image(1, name), input=f"label: dos\n{table}\n")

    def found(fd):
        name = os.path.basename(fd.path)
        return sorted(n for n in os.listdir(f"/sys/block/{name}") if n.startswith(f"{name}p"))

    for flags, before, after in (PARTSCAN, 1, 2), (0, 0, 0):
        with attach_reader(f"{SCRATCH}/one", flags=flags) as fd:
            equal("partitions", len(found(fd)), before)
            settle()
            equal("CHANGE_FD", change(fd, f"{SCRATCH}/two"), 0)
            equal("partitions", len(found(fd)), after)
            if after:
                name = os.path.basename(fd.path)
                equal("size", sysfs(fd.path, f"{name}p2/size"), "128")
        detach(fd.path)


@check("the new file can be a block device, and the next one any file")
def block_device():
    with attach(numbered_image(1, "below", OTHER)) as below, attach_reader(numbered_image()) as fd:
        equal("CHANGE_FD", change(fd, below.path), 0)
        equal("sector", number_at(fd, 9), OTHER + 9)
        equal("file", sysfs(fd.path, "loop/backing_file"), below.path)
        equal("rdevice", status(fd).rdevice, os.fstat(below.fd).st_rdev)
        equal("CHANGE_FD", change(fd, f"{SCRATCH}/image"), 0)
        equal("sector", number_at(fd, 9), 9)


@check("the sizes of the devices are compared: offset and size limit count")
def sizes_compared():
    with attach_reader(numbered_image(2), offset=4096, sizelimit=8192) as fd:
        equal("larger", change(fd, numbered_image(3, "two", OTHER)), 0)
        equal("sector", number_at(fd, 0), OTHER + 8)
        equal("size", sysfs(fd.path, "size"), "16")
        before = state(fd)
        with open(f"{SCRATCH}/short", "wb") as file:
            file.truncate(4096 + 8191)
        equal("shorter", change(fd, f"{SCRATCH}/short"), "-EINVAL")
        equal("state", state(fd), before)


@check("a change event is sent")
def event():
    two = image(1, "two")
    with attach_reader(image()) as fd, Events() as events:
        settle()
        events.of(fd.path)
        equal("CHANGE_FD", change(fd, two), 0)
        found = [(event["ACTION"], event["DISKSEQ"]) for event in events.of(fd.path)]
        equal("events", found, [("change", sysfs(fd.path, "diskseq"))])


@check("a refused change sends no event", better="the C driver sends change events")
def no_event():
    with attach_reader(image()) as fd, Events() as events:
        settle()
        events.of(fd.path)
        equal("other size", change(fd, image(2, "two")), "-EINVAL")
        equal("directory", change(fd, SCRATCH), "-EINVAL")
        equal("events", events.of(fd.path), [])


@check("events are sent again after a refusal")
def events_after_refusal():
    with attach_reader(image()) as fd, Events() as events:
        equal("other size", change(fd, image(2, "two")), "-EINVAL")
        settle()
        events.of(fd.path)
        equal("CHANGE_FD", change(fd, image(1, "three")), 0)
        equal("events", [event["ACTION"] for event in events.of(fd.path)], ["change"])


@check("errors in this order: EBADF, EINVAL for the kind of file, ENXIO, EINVAL for the rest")
def errors():
    good, other = image(), image(2, "other")
    pipe = os.pipe()
    with Fd(free_device()) as fd, Fd(good) as backing:
        equal("closed, unbound", fd.ioctl(CHANGE_FD, 1000), "-EBADF")
        equal("-1, unbound", fd.ioctl(CHANGE_FD, 0xFFFFFFFF), "-EBADF")
        equal("/proc/kmsg, unbound", change(fd, "/proc/kmsg"), "-EINVAL")
        equal("/proc/version, unbound", change(fd, "/proc/version", os.O_RDWR), "-EINVAL")
        equal("a file, unbound", fd.ioctl(CHANGE_FD, backing.fd), "-ENXIO")
        equal("a pipe, unbound", fd.ioctl(CHANGE_FD, pipe[0]), "-ENXIO")
        equal("a directory, unbound", change(fd, SCRATCH), "-EINVAL")
        equal("itself, unbound", fd.ioctl(CHANGE_FD, fd.fd), "-ENXIO")
    with attach(good) as fd:
        equal("closed, writable", fd.ioctl(CHANGE_FD, 1000), "-EBADF")
        equal("a file, writable", change(fd, image(1, "third")), "-EINVAL")
        equal("itself, writable", fd.ioctl(CHANGE_FD, fd.fd), "-EINVAL")
    detach(fd.path)
    with attach_reader(good) as fd, Fd(f"/dev/loop{control(CTL_GET_FREE)}") as unbound:
        before = state(fd)
        equal("closed", fd.ioctl(CHANGE_FD, 1000), "-EBADF")
        equal("itself", fd.ioctl(CHANGE_FD, fd.fd), "-EBADF")
        equal("on an unbound one", fd.ioctl(CHANGE_FD, unbound.fd), "-EINVAL")
        equal("a pipe", fd.ioctl(CHANGE_FD, pipe[0]), "-EINVAL")
        equal("/dev/zero", change(fd, "/dev/zero"), "-EINVAL")
        equal("a path descriptor", change(fd, good, os.O_PATH), "-EBADF")
        equal("other size", change(fd, other), "-EINVAL")
        equal("state", state(fd), before)
        equal("the same file", change(fd, good), 0)
        settle()
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
        equal("in rundown", change(fd, good), "-ENXIO")
    for end in pipe:
        os.close(end)


@check("the file cannot be a device stacked on this one: EBADF")
def cycle():
    with attach_reader(image()) as low, attach_reader(low.path) as middle:
        with attach_reader(middle.path) as high:
            for above in middle, high:
                equal("CHANGE_FD", change(low, above.path), "-EBADF")
            equal("CHANGE_FD", change(middle, high.path), "-EBADF")
            equal("down the stack", change(high, low.path), 0)


@check("neither privilege nor claim is needed: any opener may change the file")
def anyone():
    one, two = image(), image(1, "two")
    with attach_reader(one) as fd, Fd(fd.path, os.O_RDONLY | os.O_EXCL) as _, Fd(two) as backing:
        equal("CHANGE_FD", as_nobody(lambda: fd.ioctl(CHANGE_FD, backing.fd)), 0)
        equal("file", sysfs(fd.path, "loop/backing_file"), two)


@check("a refused file is closed")
def file_let_go():
    place = mounted("tmpfs", "place", "-t", "tmpfs")
    with attach_reader(image()) as fd, attach(image(1, "other")) as writable:
        path = image(2, "place/image")
        equal("other size", change(fd, path), "-EINVAL")
        equal("directory", change(fd, place), "-EINVAL")
        equal("writable", change(writable, path), "-EINVAL")
    with Fd(free_device()) as unbound:
        equal("unbound", change(unbound, path), "-ENXIO")
    run("umount", place)


@check("concurrent readers get one file or the other, and no error")
def under_reads():
    paths = [numbered_image(), numbered_image(1, "two", OTHER)]
    wrong, done, read = [], threading.Event(), [0]

    def reader(device, flags):
        with Fd(device, os.O_RDONLY | flags) as fd:
            buffer = mmap.mmap(-1, 4096)
            sector = 0
            while not done.is_set():
                sector = (sector + 88) % 2040
                if os.preadv(fd.fd, [buffer], sector // 8 * 4096) != 4096:
                    wrong.append("short")
                number = int.from_bytes(buffer[:8], "little")
                if number not in (sector // 8 * 8, OTHER + sector // 8 * 8):
                    wrong.append(number)
                read[0] += 1

    for flags in 0, DIRECT_IO:
        with attach_reader(paths[0], flags=flags) as fd:
            modes = 0, os.O_DIRECT
            readers = [threading.Thread(target=reader, args=(fd.path, mode)) for mode in modes]
            for thread in readers:
                thread.start()
            for turn in range(20):
                wait_for(lambda count=read[0]: read[0] > count + 4)
                equal("CHANGE_FD", change(fd, paths[(turn + 1) % 2]), 0)
            done.set()
            for thread in readers:
                thread.join()
            done.clear()
        detach(fd.path)
    equal("wrong", wrong, [])


@check(
    "no data of the old file stays in the page cache of the device, even with busy readers",
    better="the C driver drops the page cache before it changes the file; data read in between stays",
)
def nothing_stale():
    paths = [numbered_image(), numbered_image(1, "two", OTHER)]
    done = threading.Event()

    def reader(device):
        with Fd(device, os.O_RDONLY) as fd:
            while not done.is_set():
                os.posix_fadvise(fd.fd, 0, 0, os.POSIX_FADV_DONTNEED)
                for place in range(0, 1 << 20, 1 << 14):
                    os.pread(fd.fd, 4096, place)

    with attach_reader(paths[0]) as fd:
        readers = [threading.Thread(target=reader, args=(fd.path,)) for _ in range(4)]
        for thread in readers:
            thread.start()
        try:
            for turn in range(60):
                equal("CHANGE_FD", change(fd, paths[(turn + 1) % 2]), 0)
                first = OTHER * ((turn + 1) % 2)
                stale = [n for n in range(0, 2048, 32) if number_at(fd, n) != first + n]
                equal("stale sectors", stale, [])
        finally:
            done.set()
            for thread in readers:
                thread.join()


@check(
    "no data of the old file stays in the page cache of a partition",
    better="the C driver drops only the page cache of the whole disk",
)
def nothing_stale_of_a_partition():
    paths = [numbered_image(), numbered_image(1, "two", OTHER)]
    run("sfdisk", "-q", paths[1], input="label: dos\nstart=64,size=64\n")
    readers = {"mode": os.O_RDONLY, "device_mode": os.O_RDONLY}
    with (
        attach_partitioned(paths[0], (64, 64), **readers) as fd,
        Fd(f"{fd.path}p1", os.O_RDONLY) as partition,
    ):
        for first in 0, OTHER, 0:
            equal("sector 1", number_at(partition, 1), first + 65)
            equal("CHANGE_FD", change(fd, paths[not first]), 0)


@check(
    "the limits are those of the new file",
    better="the C driver keeps the limits of the old file",
)
def limits():
    tree = f"{SCRATCH}/tree"
    os.mkdir(tree)
    os.rename(image(1, "two"), f"{tree}/two")
    run("mksquashfs", tree, f"{SCRATCH}/squashfs", "-quiet", "-no-progress")
    place = mounted(f"{SCRATCH}/squashfs", "place", "-o", "loop")
    with attach_reader(image()) as fd, attach(image(1, "three")) as slow:
        with open(f"/sys/block/{os.path.basename(slow.path)}/queue/rotational", "w") as file:
            file.write("1")
        names = "discard_max_bytes", "rotational"
        before = [sysfs(fd.path, f"queue/{name}") for name in names]
        assert before[0] != "0" and before[1] == "0", before
        # A file of squashfs has no fallocate().
        equal("CHANGE_FD", change(fd, f"{place}/two"), 0)
        equal("discard", sysfs(fd.path, "queue/discard_max_bytes"), "0")
        equal("CHANGE_FD", change(fd, slow.path), 0)
        equal("rotational", sysfs(fd.path, "queue/rotational"), "1")
        equal("CHANGE_FD", change(fd, f"{SCRATCH}/image"), 0)
        equal("limits", [sysfs(fd.path, f"queue/{name}") for name in names], before)
        device = fd.path
    detach(device)
    run("umount", place)


@check("a device is stacked on another one while its file keeps changing")
def stacked_meanwhile():
    # loop_validate_file() once used a file that was being released (3ce6e1f662a9).
    paths = [numbered_image(), numbered_image(1, "two", OTHER)]
    done, failures = threading.Event(), []

    def swap(fd):
        turn = 0
        while not done.is_set():
            turn += 1
            if change(fd, paths[turn % 2]) != 0:
                failures.append("CHANGE_FD")

    with attach_reader(paths[0]) as low:
        swapper = threading.Thread(target=swap, args=(low,))
        swapper.start()
        try:
            for _ in range(15):
                with attach_reader(low.path) as high:
                    assert number_at(high, 9) in (9, OTHER + 9)
                    equal("CHANGE_FD onto it", change(low, high.path), "-EBADF")
                detach(high.path)
        finally:
            done.set()
            swapper.join()
    equal("failures", failures, [])


run_checks()
