#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The disk below a file system without barriers refuses flushes: a flush of a device on an image
there fails, instead of being tried for ever."""
import contextlib
import errno
import fuse
import mmap
import subprocess
from lib import *

if DRIVER != "rnull_loop":
    skip_all("the C driver does not flush the disk itself")
if subprocess.run(["modprobe", "-a", "nvmet", "nvme-loop"], capture_output=True, check=False).returncode:
    skip_all("there is no nvme-loop")
CONFIG = "/sys/kernel/config/nvmet"
SUBSYSTEM, PORT = f"{CONFIG}/subsystems/test", f"{CONFIG}/ports/1"
DISK = "/dev/nvme0n1"


@contextlib.contextmanager
def nvme(path):
    """Makes an NVMe disk of a file, which refuses a flush if the file refuses an fsync."""
    if not os.path.ismount("/sys/kernel/config"):
        run("mount", "-t", "configfs", "none", "/sys/kernel/config")
    space = f"{SUBSYSTEM}/namespaces/1"
    os.makedirs(space)
    os.mkdir(PORT)
    for file, text in (
        (f"{SUBSYSTEM}/attr_allow_any_host", 1),
        (f"{space}/buffered_io", 1),
        (f"{space}/device_path", path),
        (f"{space}/enable", 1),
        (f"{PORT}/addr_trtype", "loop"),
    ):
        write_text(file, text)
    os.symlink(SUBSYSTEM, f"{PORT}/subsystems/test")
    write_text("/dev/nvme-fabrics", "transport=loop,nqn=test")
    wait_for(lambda: os.path.exists(DISK))
    try:
        yield
    finally:
        release()
        remove()


def remove():
    """Removes the NVMe disk."""
    write_text("/sys/class/nvme/nvme0/delete_controller", 1)
    os.unlink(f"{PORT}/subsystems/test")
    for directory in PORT, f"{SUBSYSTEM}/namespaces/1", SUBSYSTEM:
        os.rmdir(directory)


def sync(device):
    """Writes and syncs; returns the error."""
    try:
        with Fd(device, os.O_RDWR | os.O_DIRECT) as fd:
            os.pwritev(fd.fd, [mmap.mmap(-1, 4096)], 0)
            os.fsync(fd.fd)
    except OSError as error:
        return error.errno
    return 0


@check("a flush that the disk refuses fails")
def refused():
    # udev would probe the disk, whose reads the server has to answer.
    stop_udev()
    server = fuse.Server(32)
    with nvme(server.path):
        run("mkfs.ext4", "-q", DISK)
        place = mounted(DISK, "place", "-o", "nobarrier")
        file = image(4, f"{place}/image")
        noise(file, 4)
        with attached(file, True) as device:
            read_until(device, "in use")
            equal("sync", sync(device), 0)
            server.fail(fuse.FSYNC, errno.EOPNOTSUPP)
            pid = forked(lambda: equal("sync", sync(device), errno.EIO))
            try:
                wait_for(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
                assert server.failed(fuse.FSYNC), "no flush was refused"
            finally:
                server.fail(fuse.FSYNC, 0)
                equal("status of the task that syncs", os.waitpid(pid, 0)[1], 0)
            equal("sync", sync(device), 0)


run_checks()
