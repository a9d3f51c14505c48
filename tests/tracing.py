# SPDX-License-Identifier: GPL-2.0
"""Events of the kernel while a function runs, recorded by its tracing."""
import contextlib
import os
from lib import Fd, dd, read_all, settle, sysfs, wait_for, write_text

TRACING = "/sys/kernel/tracing"


@contextlib.contextmanager
def probe(name, definition=None):
    """Makes an event kprobes/NAME, which records the calls of the kernel function NAME, or of that
    in the definition, with its arguments."""
    # To truncate the file would remove all probes.
    with Fd(f"{TRACING}/kprobe_events", os.O_WRONLY) as file:
        os.write(file.fd, f"p:{name} {definition or name}\n".encode())
        try:
            yield
        finally:
            os.write(file.fd, f"-:{name}\n".encode())


def traced(event, function, *arguments):
    """Calls a function, and returns the records of an event during the call, a line each."""
    enable = f"{TRACING}/events/{event}/enable"
    settle()
    write_text(f"{TRACING}/trace", "")
    write_text(enable, 1)
    try:
        function(*arguments)
    finally:
        write_text(enable, 0)
    mark = f" {os.path.basename(event)}: "
    with open(f"{TRACING}/trace", encoding="utf-8", errors="replace") as file:
        return [line.strip() for line in file if mark in line]


def traced_on(disk, event, function, *arguments):
    """Works like traced() for an event of the block layer, and returns the records about a disk, as
    lists of words from the operation to the task."""
    mark = f" {event}: {sysfs(disk, 'dev').replace(':', ',')} "
    records = traced(f"block/{event}", function, *arguments)
    return [record.split(mark)[1].split() for record in records if mark in record]


def submitters(disk, operation, function, *arguments):
    """Calls a function, and returns the tasks that have submitted 4 KiB bios of an operation (R, W)
    to the disk, such as [dd]."""
    events = traced_on(disk, "block_bio_queue", function, *arguments)
    return [words[4] for words in events if words[0].startswith(operation) and words[3] == "8"]


def bypassed(device, disk):
    """Returns whether a task that reads the device submits to the disk itself. Reads of a file are
    submitted by workers."""
    tasks = submitters(disk, "R", dd, f"if={device}", "of=/dev/null", "bs=4k", "count=64", "skip=99",
                       "iflag=direct")  # fmt: skip
    return len(tasks) == 64 and not any(task.startswith("[kworker/") for task in tasks)


def bypass(device, disk):
    """Reads the device until requests bypass the file."""

    def bypasses():
        read_all(device)
        return bypassed(device, disk)

    wait_for(bypasses, 20)
