#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The kernel's events, upon which udev, udisks and systemd act, are sent once each, and in the
order of the changes: without an event a disk is not noticed, and with too many it is probed again
and again. Lost and doubled events were bugs of the C driver more than once (e7bc0010ceb4,
bb430b694226, 267ec4d7223a).

udev is stopped, because it sends events of its own and scans partitions again."""
import os
import subprocess
import threading
import time
from lib import *

class DiskEvents(Events):
    """The kernel's events of a disk and its partitions from now on."""

    def __init__(self, device):
        super().__init__()
        self.name = os.path.basename(device)

    def take(self):
        """Returns the events since the last call, as ACTION NAME [MORE]. An event is sent before
        the call that causes it returns, so there is no need to wait."""
        self.sequence, events = [], []
        for event in self.all():
            name = os.path.basename(event["DEVPATH"])
            disk = event["DEVPATH"].removeprefix("/devices/virtual/block/").split("/")[0]
            if event["SUBSYSTEM"] != "block" or disk != self.name:
                continue
            self.sequence.append(int(event["DISKSEQ"]))
            what = name if event["DEVTYPE"] == "disk" else name.removeprefix(self.name)
            more = [key for key in ("RESIZE", "DISK_MEDIA_CHANGE") if event.get(key) == "1"]
            equal("major", event["MAJOR"] == "7", event["DEVTYPE"] == "disk")
            events.append(" ".join([event["ACTION"], what.replace(self.name, "disk"), *more]))
        return events

    def changed(self, action="change"):
        """Waits for an event of the disk, to act upon it at once."""
        self.socket.settimeout(20)
        # Runs before any later change of the device.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        message = b""
        while not message.startswith(f"{action}@/devices/virtual/block/{self.name}\0".encode()):
            message = self.socket.recv(65536)
        self.socket.setblocking(False)

    def finds_partition(self, device):
        """Returns whether the second partition exists for an opener that acts upon an event."""
        self.changed()
        with Fd(device, os.O_RDONLY):
            return os.path.exists(f"/sys/block/{self.name}/{self.name}p2")

    def expect(self, what, *events):
        equal(f"events of {what}", self.take(), list(events))

    def expect_detach(self, *removed):
        """Checks that each partition is removed once, and that the medium of the disk is reported
        as gone. The C driver sends one more event of the disk."""
        events = self.take()
        partitions = [event for event in events if "disk" not in event]
        equal("partitions of detach", partitions, list(removed))
        equal("media changes of detach", events.count(MEDIA), 1)
        more = len(events) - len(removed) - 1
        equal("other events of detach", events.count("change disk"), more)
        assert more <= 1, events


ADDED = ("add p1", "add p2")
REMOVED = ("remove p1", "remove p2")
MEDIA = "change disk DISK_MEDIA_CHANGE"


def partitioned(name="image", mib=8):
    path = image(mib, name)
    table = b"label: dos\nstart=2048, size=4096\nstart=8192, size=2048\n"
    subprocess.run(["sfdisk", "-q", path], input=table, check=True)
    return path


def listen():
    """Returns a free device and its events from now on."""
    device = free_device()
    return device, DiskEvents(device)


def configure(fd, path, mode=os.O_RDWR, block_size=0, **info):
    with Fd(path, mode) as backing:
        config = Config(fd=backing.fd, block_size=block_size, info=Info(**info))
        return fd.ioctl(CONFIGURE, config)


def change_fd(fd, path, mode=os.O_RDONLY):
    with Fd(path, mode) as backing:
        return fd.ioctl(CHANGE_FD, backing.fd)


def clear(fd):
    equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    fd.close()


@check("attach and detach")
def attach_detach():
    device, events = listen()
    for path in image(1), image(0, "empty"), partitioned("partitioned"):
        with Fd(device) as fd:
            equal("CONFIGURE", configure(fd, path), 0)
            events.expect("attach", "change disk")
            equal("CLR_FD", fd.ioctl(CLR_FD), 0)
            events.expect("CLR_FD, before the last close")
        events.expect_detach()


@check("LOOP_SET_FD")
def set_fd():
    device, events = listen()
    with Fd(device) as fd, Fd(image()) as backing:
        equal("SET_FD", fd.ioctl(SET_FD, backing.fd), 0)
        events.expect("attach", "change disk")
        clear(fd)
    events.expect_detach()


@check("AUTOCLEAR: the same events at the last close")
def autoclear():
    device, events = listen()
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, partitioned(), flags=AUTOCLEAR | PARTSCAN), 0)
        with Fd(device, os.O_RDONLY):
            events.take()
        events.expect("a close that is not the last one")
    events.expect_detach(*REMOVED)


@check("attach with partitions: each is added once, after the event of the disk")
def partitions():
    device, events = listen()
    for _ in range(3):
        with Fd(device) as fd:
            equal("CONFIGURE", configure(fd, partitioned(), flags=PARTSCAN), 0)
            got = events.take()
            equal("last events of attach", got[-2:], list(ADDED))
            equal("events before", set(got[:-2]), {"change disk"})
            clear(fd)
        events.expect_detach(*REMOVED)


@check(
    "attach with partitions: one event of the disk",
    better="the C driver sends two",
)
def partitions_first():
    device, events = listen()
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, partitioned(), flags=PARTSCAN), 0)
        events.expect("attach", "change disk", *ADDED)


def partitions_there():
    device, events = listen()
    path, there = partitioned(), []
    for _ in range(20):
        listener = threading.Thread(target=lambda: there.append(events.finds_partition(device)))
        listener.start()
        with Fd(device) as fd:
            equal("CONFIGURE", configure(fd, path, flags=PARTSCAN), 0)
            listener.join()
            clear(fd)
        events.take()
    equal("p2 exists", there, [True] * 20)


# With the C driver it depends on timing.
if DRIVER == "rnull_loop":
    check("an opener that acts upon the event of an attach finds the partitions")(partitions_there)


@check(
    "detach: one event of the disk",
    better="the C driver sends two",
)
def one_at_detach():
    device, events = listen()
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, partitioned(), flags=PARTSCAN), 0)
        events.take()
        clear(fd)
    events.expect("detach", MEDIA, *REMOVED)


@check("attach with PARTSCAN, but no partition table")
def no_table():
    device, events = listen()
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, image(4), flags=PARTSCAN), 0)
        events.expect("attach", "change disk")
        clear(fd)
    events.expect_detach()


@check("PARTSCAN set later, as systemd does: one scan")
def partscan_later():
    device, events = listen()
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, partitioned()), 0)
    events.expect("attach", "change disk")
    with Fd(device) as fd:
        events.expect("opening it again")
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(flags=PARTSCAN)), 0)
        events.expect("PARTSCAN", "change disk", *ADDED)
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(flags=PARTSCAN)), 0)
        events.expect("PARTSCAN again")
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(flags=0)), 0)
        events.expect("PARTSCAN cleared")
    with Fd(device) as fd:
        events.expect("opening it once more")
        clear(fd)
    events.expect_detach(*REMOVED)


@check("partitions added by partx are removed at detach")
def partx():
    device, events = listen()
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, partitioned()), 0)
        events.expect("attach", "change disk")
        subprocess.run(["partx", "-a", device], check=True)
        events.expect("partx -a", *ADDED)
        clear(fd)
    events.expect_detach(*REMOVED)


@check("another offset or limit: one event each, with RESIZE if the size changes")
def offset_and_limit():
    device, events = listen()
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, image(4)), 0)
        events.expect("attach", "change disk")
        for what, info, wanted in (
            ("nothing new", Info(), ()),
            ("offset", Info(offset=512), ("change disk RESIZE",)),
            ("sizelimit", Info(offset=512, sizelimit=8192), ("change disk RESIZE",)),
            ("the same part", Info(offset=1024, sizelimit=8192), ("change disk",)),
            ("a file name", Info(offset=1024, sizelimit=8192, file_name=b"name"), ()),
            ("beyond the end", Info(offset=1 << 30), ("change disk",)),
            ("everything", Info(), ("change disk",)),
        ):
            equal(f"SET_STATUS64: {what}", fd.ioctl(SET_STATUS64, info), 0)
            events.expect(what, *wanted)


@check("a reader that acts upon the event of another offset finds it in sysfs, and its data")
def offset_there():
    device, events = listen()
    found = []

    def look():
        events.changed()
        found.append((sysfs(device, "loop/offset"), number_at(fd, 0)))

    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, numbered_image(4)), 0)
        events.take()
        for number in range(1, 21):
            listener = threading.Thread(target=look)
            listener.start()
            equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(offset=number << 9)), 0)
            listener.join()
            equal("found", found.pop(), (str(number << 9), number))


@check("LOOP_SET_CAPACITY: one event, with RESIZE if the size changes")
def capacity():
    device, events = listen()
    path = image(4)
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, path), 0)
        events.expect("attach", "change disk")
        for what, size, wanted in (
            ("grown", 8 << 20, "change disk RESIZE"),
            ("the same", 8 << 20, "change disk"),
            ("shrunk", 1 << 20, "change disk RESIZE"),
            ("less than a sector more", (1 << 20) + 511, "change disk"),
            ("emptied", 0, "change disk"),
            ("filled", 1 << 20, "change disk"),
        ):
            os.truncate(path, size)
            events.expect(f"truncate, {what}")
            equal("SET_CAPACITY", fd.ioctl(SET_CAPACITY), 0)
            events.expect(what, wanted)
            equal("size", sysfs(device, "size"), str(size >> 9))


@check(
    "a reader that acts upon the event of another size finds data appended in the page of the old end",
    better="the C driver leaves zeroes in the page cache of the device",
)
def appended_there():
    device, events = listen()
    path, found = image(1), []
    end = (1 << 20) + 512
    os.truncate(path, end)

    def look():
        events.changed()
        found.append(os.pread(fd.fd, 512, end))

    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, path), 0)
        for _ in range(20):
            equal("old end", os.pread(fd.fd, 512, end - 512), bytes(512))
            with open(path, "r+b") as file:
                file.seek(end)
                file.write(b"more" * 128)
            events.take()
            listener = threading.Thread(target=look)
            listener.start()
            equal("SET_CAPACITY", fd.ioctl(SET_CAPACITY), 0)
            listener.join()
            equal("found", found.pop(), b"more" * 128)
            os.truncate(path, end)
            equal("SET_CAPACITY", fd.ioctl(SET_CAPACITY), 0)


@check("LOOP_SET_CAPACITY: events of others are not lost while it waits for a read")
def others_during_capacity():
    base = attach(image(32, "base"))
    device, events = listen()

    def dm(*command):
        run("dmsetup", *command, "slow")

    def table(mib):
        return "--table", f"0 {mib << 11} linear {base.path} 0"

    dm("create", *table(16))
    settle()
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, "/dev/mapper/slow"), 0)
        settle()
        dm("reload", *table(32))
        dm("suspend", "--nolockfs")
        dm("resume")
        dm("suspend", "--nolockfs")
        try:
            events.take()
            reader = threading.Thread(target=lambda: os.pread(fd.fd, 4096, 8 << 20))
            reader.start()
            time.sleep(0.5)
            changer = threading.Thread(target=lambda: fd.ioctl(SET_CAPACITY))
            changer.start()
            wait_for(lambda: sysfs(device, "size") == str(32 << 11))
            write_text(f"/sys/block/{events.name}/uevent", "change 01234567-0123-0123-0123-0123456789ab SENT=1")
        finally:
            dm("resume")
        reader.join()
        changer.join()
        equal("events", [event.get("SYNTH_ARG_SENT") for event in events.all()].count("1"), 1)
        settle()
        clear(fd)
    wait_for(lambda: not is_bound(device))
    dm("remove", "--retry")
    base.close()
    detach(base.path)


@check("block size, direct I/O and read-only: no event")
def silent():
    device, events = listen()
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, image(4)), 0)
        events.expect("attach", "change disk")
        for command, argument in (
            (SET_BLOCK_SIZE, 4096),
            (SET_BLOCK_SIZE, 512),
            (SET_DIRECT_IO, 1),
            (SET_DIRECT_IO, 0),
            (GET_STATUS64, Info()),
        ):
            equal(hex(command), fd.ioctl(command, argument), 0)
        events.expect("settings")


@check("LOOP_CHANGE_FD: one event of the disk")
def changed_file():
    device, events = listen()
    other = image(1, "other")
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, image(1), flags=READ_ONLY), 0)
        before = int(sysfs(device, "diskseq"))
        events.take()
        equal("CHANGE_FD", change_fd(fd, other), 0)
        events.expect("CHANGE_FD", "change disk")
        equal("diskseq", sysfs(device, "diskseq"), str(before + 1))
        equal("diskseq in the event", events.sequence, [before + 1])


def change_partitions():
    """Returns the events of a LOOP_CHANGE_FD to a file with other partitions."""
    device, events = listen()
    other = partitioned("other")
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, partitioned(), flags=READ_ONLY | PARTSCAN), 0)
        events.take()
        equal("CHANGE_FD", change_fd(fd, other), 0)
        return events.take()


@check("an event of another process during the partition scan of an attach is not lost")
def others_during_scan():
    device, events = listen()
    path = partitioned()
    with cgroup("+io") as group:
        # One read a second: the scan needs more.
        write_text(f"{group}/io.max", f"{sysfs(device, 'dev')} riops=1")
        with subprocess.Popen(in_cgroup(group, "losetup", "--partscan", device, path)) as scanner:
            wait_for(lambda: sysfs(device, "loop/backing_file"))
            time.sleep(0.5)
            write_text(f"/sys/block/{events.name}/uevent", "change 01234567-0123-0123-0123-0123456789ab SENT=1")
            equal("the scan's end", scanner.poll(), None)
            equal("losetup", scanner.wait(), 0)
        equal("events", [event.get("SYNTH_ARG_SENT") for event in events.all()].count("1"), 1)
        detach(device)


@check("LOOP_CHANGE_FD with PARTSCAN: partitions are replaced")
def changed_partitions():
    events = change_partitions()
    equal("event of the disk before those of new partitions", "change disk" in events[:3], True)
    equal("partitions", [event for event in events if "disk" not in event], [*REMOVED, *ADDED])


@check(
    "LOOP_CHANGE_FD with PARTSCAN: one event of the disk, before those of its new partitions",
    better="the C driver sends two",
)
def changed_partitions_once():
    equal("events", change_partitions(), [*REMOVED, "change disk", *ADDED])


@check("refused ioctls send no event")
def refused():
    device, events = listen()
    other, path = image(2, "other"), image(1)
    with Fd(device) as fd:
        for command in SET_CAPACITY, CLR_FD, SET_DIRECT_IO, SET_BLOCK_SIZE:
            equal(hex(command), fd.ioctl(command), "-ENXIO")
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info()), "-ENXIO")
        equal("flags", configure(fd, path, flags=2), "-EINVAL")
        equal("offset", configure(fd, path, offset=1 << 63), "-EOVERFLOW")
        equal("encryption", configure(fd, path, encrypt_type=1), "-EINVAL")
        equal("directory", configure(fd, SCRATCH, os.O_RDONLY), "-EINVAL")
        equal("bad file", fd.ioctl(CONFIGURE, Config(fd=1000)), "-EBADF")
        events.expect("refusals of an unbound device")
        equal("CONFIGURE", configure(fd, path), 0)
        events.expect("attach", "change disk")
        equal("CONFIGURE", configure(fd, other), "-EBUSY")
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(encrypt_type=1, offset=512)), "-EINVAL")
        equal("SET_STATUS64", fd.ioctl(SET_STATUS64, Info(offset=1 << 63)), "-EOVERFLOW")
        equal("SET_BLOCK_SIZE", fd.ioctl(SET_BLOCK_SIZE, 1000), "-EINVAL")
        equal("CHANGE_FD", fd.ioctl(CHANGE_FD, 1000), "-EBADF")
        equal("SET_FD", fd.ioctl(SET_FD, 1000), "-EBADF")
        events.expect("refusals of a bound device")


@check("a refused LOOP_CHANGE_FD sends no event", better="the C driver sends one for most errors")
def refused_change():
    device, events = listen()
    other, path = image(2, "other"), image(1)
    with Fd(device) as fd:
        equal("unbound", change_fd(fd, path), "-ENXIO")
        events.expect("CHANGE_FD, unbound")
        equal("CONFIGURE", configure(fd, path), 0)
        events.take()
        equal("writable", change_fd(fd, path), "-EINVAL")
        events.expect("CHANGE_FD, writable")
        clear(fd)
    with Fd(device) as fd:
        equal("CONFIGURE", configure(fd, path, flags=READ_ONLY), 0)
        events.take()
        equal("other size", change_fd(fd, other), "-EINVAL")
        events.expect("CHANGE_FD, other size")


@check(
    "an attach refused for its block size sends no event, and suppresses none of the next attach",
    better="the C driver leaves the events suppressed",
)
def refused_block_size():
    device, events = listen()
    with Fd(device) as fd:
        before = sysfs(device, "diskseq")
        equal("CONFIGURE", configure(fd, image(), block_size=1000), "-EINVAL")
        events.expect("refused attach")
        equal("diskseq", sysfs(device, "diskseq"), before)
        # A requested event in sysfs is sent.
        write_text(f"/sys/block/{events.name}/uevent", "change")
        events.expect("uevent", "change disk")
        equal("CONFIGURE", configure(fd, image()), 0)
        events.expect("attach", "change disk")


@check("the events carry the disk's sequence number, which grows with each attach and detach")
def sequence():
    device, events = listen()
    path = partitioned()
    last = int(sysfs(device, "diskseq"))
    for _ in range(2):
        with Fd(device) as fd:
            equal("CONFIGURE", configure(fd, path, flags=PARTSCAN), 0)
            now = int(sysfs(device, "diskseq"))
            assert now > last, f"diskseq is {now} after {last}"
            events.take()
            equal("DISKSEQ of attach", set(events.sequence), {now})
            last = now
            clear(fd)
        now = int(sysfs(device, "diskseq"))
        assert now > last, f"diskseq is {now} after {last}"
        events.take()
        assert set(events.sequence) <= {last, now}, f"DISKSEQ of detach: {events.sequence}"
        last = now


@check("LOOP_CTL_ADD and LOOP_CTL_REMOVE")
def add_remove():
    events = DiskEvents("/dev/loop50")
    equal("ADD", control(CTL_ADD, 50), 50)
    events.expect("ADD", "add disk")
    equal("ADD", control(CTL_ADD, 50), "-EEXIST")
    events.expect("ADD again")
    with Fd("/dev/loop50"):
        equal("REMOVE", control(CTL_REMOVE, 50), "-EBUSY")
    events.expect("REMOVE while open")
    equal("REMOVE", control(CTL_REMOVE, 50), 0)
    events.expect("REMOVE", "remove disk")
    equal("REMOVE", control(CTL_REMOVE, 50), "-ENODEV")
    events.expect("REMOVE again")


@check(
    "a task that acts upon the event of a new disk finds its tunables",
    better="the C driver has none",
)
def tunables_there():
    events, found = DiskEvents("/dev/loop50"), []

    def look():
        events.changed("add")
        found.append(os.path.exists("/sys/block/loop50/rnull_loop/enospc"))

    for _ in range(20):
        listener = threading.Thread(target=look)
        listener.start()
        equal("ADD", control(CTL_ADD, 50), 50)
        listener.join()
        equal("REMOVE", control(CTL_REMOVE, 50), 0)
        events.take()
    equal("found", found, [True] * 20)


stop_udev()
run_checks()
