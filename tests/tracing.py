# SPDX-License-Identifier: GPL-2.0
"""Events of the kernel while a function runs, recorded by its tracing."""
import contextlib
import os
from lib import Fd, settle, sysfs, write_text

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
