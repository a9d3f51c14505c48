#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""With rnull_loop/dontcache=1, I/O through the page cache of the image leaves nothing behind there,
where the file system can do that; elsewhere it makes no difference. Data is right in any case."""
import os
from lib import *
from tracing import traced

MIB = 4


def cached(file):
    """Returns the number of pages of a file in the page cache."""
    return int(run("fincore", "-nbo", "PAGES", file))


def drop(file):
    dd(f"of={file}", "oflag=nocache", "conv=notrunc,fdatasync", "count=0")


def read(device):
    dd(f"if={device}", "of=/dev/null", "bs=64k", "iflag=direct")


def write(device, source):
    dd(f"if={source}", f"of={device}", "bs=64k", "oflag=direct", "conv=fsync")


def same(first, second):
    with open(first, "rb") as one, open(second, "rb") as two:
        assert one.read() == two.read(), "other data"


for kind in "ext4", "xfs":

    @check(f"reads leave nothing behind: {kind}")
    def reads(kind=kind):
        file = backing(kind, MIB)
        noise(file, MIB)
        with attached(file, False) as device:
            drop(file)
            equal("cached before", cached(file), 0)
            read(device)
            equal("cached with dontcache=0", cached(file), MIB * 256)
            drop(file)
            tune(device, "dontcache", 1)
            read(device)
            assert cached(file) < 64, f"{cached(file)} pages"
            same(device, file)

    @check(f"writes leave nothing behind when they are written back: {kind}")
    def writes(kind=kind):
        file, source = backing(kind, MIB), f"{SCRATCH}/source"
        noise(source, MIB)
        with attached(file, False) as device:
            drop(file)
            tune(device, "dontcache", 1)
            write(device, source)
            wait_for(lambda: cached(file) < 64)
            same(device, source)
        drop(file)
        same(file, source)

    @check(f"pages that another task reads stay: {kind}")
    def shared(kind=kind):
        file = backing(kind, MIB)
        noise(file, MIB)
        with attached(file, False) as device:
            tune(device, "dontcache", 1)
            with open(file, "rb") as other:
                other.read()
            read(device)
            equal("cached", cached(file), MIB * 256)


@check("a file system without it: tmpfs")
def other():
    file, source = image(MIB), f"{SCRATCH}/source"
    noise(source, MIB)
    with attached(file, False) as device:
        tune(device, "dontcache", 1)
        write(device, source)
        same(device, source)
    same(file, source)


@check("tracepoints tell of it")
def told():
    file = backing("xfs", MIB)
    with attached(file, False) as device:
        drop(file)
        tune(device, "dontcache", 1)
        events = traced("rnull_loop/request_submitted", read, device)
        # Read-ahead may have the next pages ready for the submitter.
        assert any(" dontcache " in event for event in events), events[:3]
        assert not any(" buffered " in event for event in events), events[:3]


if DRIVER != "rnull_loop":
    skip_all("the C driver has no such choice")
stop_udev()
run_checks()
