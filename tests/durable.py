#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A durable write (FUA) to the device is durable below: a disk with FUA gets such a write, and a
disk without FUA gets a flush before the write completes. Other writes cause neither. Tracing shows
the requests to the disk below, a null_blk with a write cache: "WFS" is a durable write, "FF" a
flush."""
import contextlib
import os
import subprocess
from pathlib import Path
from typing import NamedTuple
from lib import *
from tracing import probe, traced, traced_on

CONFIGFS, DISK = "/sys/kernel/config", "/dev/nullb_test"
WRITES = 8


def load_module(*command):
    """Loads a module, and returns whether there is one."""
    return subprocess.run(["modprobe", *command], check=False).returncode == 0


if DRIVER != "rnull_loop":
    skip_all("the C driver has no FUA")
if not load_module("null_blk", "nr_devices=0"):
    skip_all("there is no null_blk")


@contextlib.contextmanager
def null_blk(fua):
    """Makes a disk in memory, with a write cache, and removes it at the end."""
    if not os.path.ismount(CONFIGFS):
        run("mount", "-t", "configfs", "configfs", CONFIGFS)
    item = f"{CONFIGFS}/nullb/{os.path.basename(DISK)}"
    os.mkdir(item)
    try:
        # XFS needs at least 300 MiB; only written blocks take memory.
        settings = {"size": 320, "memory_backed": 1, "cache_size": 16, "fua": fua, "power": 1}
        for name, value in settings.items():
            write_text(f"{item}/{name}", value)
        wait_for(Path(DISK).is_block_device)
        equal("cache of the disk", sysfs(DISK, "queue/write_cache"), "write back")
        equal("FUA of the disk", sysfs(DISK, "queue/fua"), str(fua))
        settle()
        yield
    finally:
        # After a failure, the disk may still be in use.
        release()
        write_text(f"{item}/power", 0)
        os.rmdir(item)


@contextlib.contextmanager
def bound(kind, direct, fua):
    """Attaches the disk ("block"), or a file on a file system on it, and yields the device."""
    with null_blk(fua):
        file = DISK
        if kind != "block":
            run(f"mkfs.{kind}", "-q", DISK)
            file = f"{mounted(DISK, 'outer')}/image"
            noise(file, 16)
            run("sync")
        with attached(file, direct) as device:
            equal("FUA of the device", sysfs(device, "queue/fua"), "1" if kind in ("block", "xfs") else "0")
            settle()
            yield device


class Requests(NamedTuple):
    """Requests to the disk: the number of writes of 4 KiB, of those with FUA, and of flushes; the
    operation of the last request that is no read."""

    data: int
    durable: int
    flushes: int
    last: str


def issued(function, *arguments):
    """Calls a function, and returns the requests to the disk."""
    # The first words are such as WFS 4096.
    requests = [words[:2] for words in traced_on(DISK, "block_rq_issue", function, *arguments)]
    data = [operation for operation, size in requests if operation.startswith("W") and size == "4096"]
    return Requests(
        data=len(data),
        durable=sum("F" in operation for operation in data),
        flushes=sum(operation.startswith("FF") for operation, _ in requests),
        last=next((operation for operation, _ in reversed(requests) if not operation.startswith("R")), ""),
    )


def write_each(device, flags="direct"):
    dd("if=/dev/urandom", f"of={device}", "bs=4k", f"count={WRITES}", "seek=64", f"oflag={flags}", "conv=notrunc")


def plain_writes(device):
    got = issued(write_each, device)
    assert got.data >= WRITES, f"too few writes arrived: {got}"
    equal("durable writes and flushes", (got.durable, got.flushes), (0, 0))


def to_block(remap, fua):
    with bound("block", True, fua) as device:
        tune(device, "remap", remap)
        plain_writes(device)
        got = issued(write_each, device, "direct,dsync")
        equal("writes", got.data, WRITES)
        if fua:
            equal("durable writes", got.durable, WRITES)
        else:
            # The block layer splits a durable write in two; O_DSYNC of a block device adds a flush.
            equal("durable writes", got.durable, 0)
            assert got.flushes >= 2 * WRITES, f"too few flushes: {got}"
            equal("last request", got.last[:2], "FF")


for remap in 1, 0:
    for fua in 1, 0:

        @check(f"durable writes to a block device, its FUA {fua}, remap={remap}")
        def block(remap=remap, fua=fua):
            to_block(remap, fua)


def to_file(kind, direct, fua):
    """Writes to a file, whose file system chooses FUA or a flush; O_DSYNC adds a flush, as
    above."""
    if kind == "btrfs" and not load_module("btrfs"):
        skip("there is no btrfs")
    with bound(kind, direct, fua) as device:
        got = issued(write_each, device, "direct,dsync")
        assert got.data >= WRITES, f"too few writes arrived: {got}"
        assert got.durable + got.flushes >= 2 * WRITES, f"too few durable writes and flushes: {got}"
        if not fua:
            equal("durable writes", got.durable, 0)


for name, direct in ("on", True), ("off", False):
    for fua in 1, 0:
        for kind in "xfs", "ext4", "btrfs":

            @check(f"durable writes to a file on {kind}, FUA of the disk {fua}, direct I/O {name}")
            def file_on_disk(kind=kind, direct=direct, fua=fua):
                to_file(kind, direct, fua)


@check("commits of a file system on the device are durable below")
def inner_file_system():
    """A file system on the device commits its transactions with a durable write."""
    with bound("block", True, 1) as device:
        run("mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard", device)
        place = mounted(device, "inner")
        got = issued(dd, "if=/dev/urandom", f"of={place}/file", "bs=4k", "count=4", "conv=fsync")
        assert got.durable, f"no durable write: {got}"
        assert got.flushes, f"no flush: {got}"
        run("umount", place)


@check("a flush is an fdatasync of the file")
def data_alone():
    """A flush calls fdatasync(): it syncs the data, and only the metadata that is needed to read
    it."""
    with bound("ext4", True, 1) as device, probe("durable_sync", "ext4_sync_file datasync=$arg4:s32"):
        tune(device, "extents", 0)
        calls = traced(
            "kprobes/durable_sync", dd, "if=/dev/urandom", f"of={device}", "bs=4k", "count=1",
            "oflag=direct", "conv=fsync,notrunc",
        )  # fmt: skip
        equal("calls, 1: with datasync", [call.split("datasync=")[1] for call in calls], ["1"])


run_checks()
