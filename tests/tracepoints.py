#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The tracepoints of the driver: each event of a request, a device or a lease has the names and the
numbers that it should."""
import contextlib
import mmap
import os
import re
from lib import *
from tracing import TRACING

BLOCK = 4096
EVENTS = f"{TRACING}/events/rnull_loop"


def recorded(function, *arguments):
    """Calls a function, and returns the events of the driver during the call: pairs of a name and
    the rest."""
    settle()
    write_text(f"{TRACING}/trace", "")
    enables = [f"{EVENTS}/enable", f"{TRACING}/events/block/block_bio_remap/enable"]
    for enable in enables:
        write_text(enable, 1)
    try:
        function(*arguments)
    finally:
        for enable in enables:
            write_text(enable, 0)
    with open(f"{TRACING}/trace", encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if not line.startswith("#")]
    return [re.search(r" (\w+): (.*)", line.rstrip()).groups() for line in lines]


def number(device):
    return sysfs(device, "dev").replace(":", ",")


def of(events, device):
    """Returns the events of a device, without its number."""
    start = number(device) + " "
    return [(name, text.removeprefix(start)) for name, text in events if text.startswith(start)]


def identity(file):
    status = os.stat(file)
    return f"file={os.major(status.st_dev)},{os.minor(status.st_dev)}:{status.st_ino}"


def read(device, block, length=BLOCK):
    with Fd(device, os.O_RDONLY | os.O_DIRECT) as fd:
        os.preadv(fd.fd, [mmap.mmap(-1, length)], block * BLOCK)


@check("a read of a block device: routed, remapped, completed")
def remapped():
    file = backing("block")
    with attached(file, True, "--offset", "8192") as device:
        events = recorded(read, device, 5)
        equal("events", of(events, device), [
            ("request_routed", "RS 40 4096 submitter_remap"),
            ("request_submitted", "RS 40 4096 bio position=28672"),
            ("request_completed", "RS 40 4096 [0]"),
        ])  # fmt: skip
        remaps = [text for name, text in events if name == "block_bio_remap"]
        equal("remapped", remaps, [f"{number(file)} RS 56 + 8 <- ({number(device)}) 40"])


@check("a write by direct I/O, and a flush")
def direct():
    with attached(backing("xfs", 4), True) as device:
        tune(device, "extents", 0)

        def flushed():
            with Fd(device, os.O_RDWR | os.O_DIRECT) as fd:
                os.pwrite(fd.fd, mmap.mmap(-1, BLOCK), 2 * BLOCK)
                os.fsync(fd.fd)

        equal("events", of(recorded(flushed), device), [
            ("request_routed", "WS 16 4096 blocking_direct"),
            ("request_submitted", "WS 16 4096 direct position=8192"),
            ("request_completed", "WS 16 4096 [0]"),
            ("request_routed", "FF 0 0 flush_file"),
            ("request_completed", "FF 0 0 [0]"),
        ])  # fmt: skip


@check("a read that would block is requeued, with the reason")
def requeued():
    file = backing("ext4", 4)
    noise(file, 4)
    with attached(file, False) as device:
        dd(f"of={file}", "oflag=nocache", "conv=notrunc,fdatasync", "count=0")
        equal("events", of(recorded(read, device, 0), device), [
            ("request_routed", "RS 0 4096 nowait_buffered"),
            ("request_submitted", "RS 0 4096 buffered position=0"),
            ("request_requeued", "RS 0 4096 would_block"),
            ("request_routed", "RS 0 4096 blocking_buffered"),
            ("request_submitted", "RS 0 4096 buffered position=0"),
            ("request_completed", "RS 0 4096 [0]"),
        ])  # fmt: skip


@check("the rest of a request has its own sector and length")
def rest():
    file = backing("ext4", 4)
    noise(file, 4)
    run("fallocate", "-p", "-o", str(1 << 20), "-l", str(1 << 20), file)
    with attached(file, True) as device:
        read_until(device, "in use, but unwritten blocks")
        events = of(recorded(read, device, 255, 2 * BLOCK), device)
        events = [(name, text) for name, text in events if name != "request_submitted"]
        equal("events", events, [
            ("request_routed", "RS 2040 8192 submitter_extent"),
            ("request_requeued", "RS 2040 8192 short"),
            ("request_routed", "RS 2048 4096 blocking_direct"),
            ("request_completed", "RS 2048 4096 [0]"),
        ])  # fmt: skip


@check("a discard, and an error")
def failed():
    file = image(4)
    with attached(file, False) as device:
        events = of(recorded(run, "blkdiscard", "-f", "-l", "64K", device), device)
        equal("discard", events, [
            ("request_routed", "DS 0 65536 discard_zero"),
            ("request_completed", "DS 0 65536 [0]"),
        ])  # fmt: skip
        os.truncate(file, 0)

        def fails():
            with contextlib.suppress(OSError):
                read(device, 1)

        equal("last event", of(recorded(fails), device)[-1], ("request_completed", "RS 8 4096 [-5]"))


@check("a device is attached, changed and detached")
def attachment():
    first, second = image(1, "first"), image(1, "second")
    paths = []

    def life():
        device = attach(first, os.O_RDONLY, offset=4096, sizelimit=65536)
        paths.append(device.path)
        with open(second, "rb") as file:
            device.ioctl(CHANGE_FD, file.fileno())
        device.close()
        detach(paths[0])

    events = [event for event in recorded(life) if event[0].startswith("device_")]
    dev = number(paths[0])
    equal("events", events, [
        ("device_attached", f"{dev} {identity(first)} offset=4096 sizelimit=65536 flags=0x1"),
        ("device_attached", f"{dev} {identity(second)} offset=4096 sizelimit=65536 flags=0x1"),
        ("device_detached", dev),
    ])  # fmt: skip


@check("leases are taken and broken")
def leases():
    file = backing("xfs", 4)
    noise(file, 4)

    def used():
        with attached(file, True) as device:
            read_until(device, "in use")
            with open(file, "r+b"):
                wait_for(lambda: extents_state(device) == "foreign writer")

    events = [event for event in recorded(used) if event[0].startswith("lease_")]
    name = identity(file)
    equal("taken", events[:2], [("lease_taken", f"{name} layout"), ("lease_taken", f"{name} delegation")])
    equal("broken", events[2:3], [("lease_broken", f"{name} delegation")])


@check("each tracepoint is in the manual page")
def documented():
    names = [name for name in os.listdir(EVENTS) if os.path.isdir(f"{EVENTS}/{name}")]
    assert len(names) >= 8, names
    with open(f"{os.path.dirname(__file__)}/../dist/rnull_loop.4", encoding="ascii") as file:
        text = file.read().replace("\\", "")
    equal("missing", [name for name in names if not re.search(rf"\b{name}\b", text)], [])


if DRIVER != "rnull_loop":
    skip_all("the C driver has no tracepoints")
stop_udev()
run_checks()
