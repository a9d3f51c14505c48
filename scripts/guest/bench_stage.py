# SPDX-License-Identifier: GPL-2.0
"""The devices and files of `make bench`: disks with images, the drivers, loop devices."""

import fcntl
import os
import re
import struct
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
DISK_MIB, IMAGE_MIB, SPARSE_MIB = 768, 128, 256
# The size of the file in a file system on the loop device.
INNER_MIB = 64

LOOP_CONFIGURE, LOOP_CLR_FD, LOOP_CTL_GET_FREE = 0x4C0A, 0x4C01, 0x4C82
LO_FLAGS_DIRECT_IO = 16


def run(*command):
    """Runs a command that must succeed. An error contains its standard error."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def wait_for(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds} s for {what}")
        time.sleep(0.005)


def no_udev():
    """Stops udev, because it opens each device after it was open for writing, and would be measured,
    too."""
    for process in Path("/proc").glob("[0-9]*/comm"):
        if process.read_text().strip() in ("systemd-udevd", "(udev-worker)"):
            run("udevadm", "control", "--exit")
            return


class Drivers:
    """The drivers. Both are loaded at a time, unless `alone`: then loading one unloads the other."""

    def __init__(self, alone):
        self.alone, self.loaded = alone, set()

    def load(self, driver):
        if driver in self.loaded:
            return
        if self.alone:
            self.unload_all()
        if driver == "loop":
            run("modprobe", "loop")
        else:
            run("insmod", REPO / "rnull-loop.ko", *([] if self.alone else ["standalone=1"]))
        self.loaded.add(driver)
        wait_for(lambda: Path(self.device(driver)).exists(), self.device(driver))

    def unload(self, driver):
        run("rmmod", driver)
        self.loaded.remove(driver)

    def unload_all(self):
        for driver in list(self.loaded):
            self.unload(driver)

    def name(self, driver):
        return "loop" if self.alone or driver == "loop" else "loopr"

    def device(self, driver):
        return f"/dev/{self.name(driver)}0"

    def control(self, driver):
        return f"/dev/{self.name(driver)}-control"


@contextmanager
def attached(device, file, mode, off=()):
    """Attaches a loop device to a file, and detaches it at the end."""
    settings = Path("/sys/block", Path(device).name, "loop")
    run("losetup", f"--direct-io={'on' if mode == 'direct' else 'off'}", device, file)
    try:
        if (settings / "dio").read_text().strip() != str(int(mode == "direct")):
            raise RuntimeError(f"{device} on {file} does not do {mode} I/O")
        for switch in off:
            (settings.parent / "rnull_loop" / switch).write_text("0")
        yield device
    finally:
        run("losetup", "-d", device)
        wait_for(lambda: not settings.exists(), f"{device} to be detached")


@contextmanager
def mounted(device, where, *options):
    where.mkdir(parents=True, exist_ok=True)
    run("mount", *options, device, where)
    try:
        yield where
    finally:
        run("umount", where)


def attach_and_detach(control, file, mode, times):
    """Does the ioctls of losetup's `-f` and `-d`, without its processes; returns the seconds of it."""
    name = re.sub("-control$", "", control)
    flags = LO_FLAGS_DIRECT_IO if mode == "direct" else 0
    backing = os.open(file, os.O_RDWR)
    config = struct.pack("=II52xI176x64x", backing, 0, flags)
    began = time.monotonic()
    for _ in range(times):
        opened = os.open(control, os.O_RDWR)
        number = fcntl.ioctl(opened, LOOP_CTL_GET_FREE)
        os.close(opened)
        device = os.open(f"{name}{number}", os.O_RDWR)
        fcntl.ioctl(device, LOOP_CONFIGURE, config)
        fcntl.ioctl(device, LOOP_CLR_FD)
        os.close(device)
        wait_for(lambda: not os.path.exists(f"/sys/block/{Path(name).name}{number}/loop"), "detaching")
    took = time.monotonic() - began
    os.close(backing)
    return took


def drop(path):
    """Writes back and drops the page cache of a file or device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def fill(path, mib):
    run("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={mib}", "oflag=direct", "conv=fsync", "status=none")


class Stage:
    """A disk with the files that cases need. An image is made when the first case needs it."""

    def __init__(self, disk, backing):
        self.undo = ExitStack()
        self.backing, self.device = backing, self.make_disk(disk)
        self.images = {}
        if backing == "bdev":
            return
        # A RAM disk allocates a page when it is written for the first time.
        fill(self.device, DISK_MIB)
        if backing == "ext4":
            run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", self.device)
        else:
            run("mkfs.xfs", "-q", "-f", "-K", self.device)
        self.directory = self.undo.enter_context(mounted(self.device, Path("/mnt/bench")))

    def make_disk(self, disk):
        if disk == "virtio":
            if not Path("/dev/vda").exists():
                raise RuntimeError("there is no disk /dev/vda for the virtio cases: scripts/vm --disk FILE")
            return "/dev/vda"
        if disk == "ram":
            run("modprobe", "brd", "rd_nr=1", f"rd_size={DISK_MIB << 10}")
            self.undo.callback(run, "rmmod", "brd")
            return "/dev/ram0"
        run("modprobe", "null_blk", "nr_devices=1", "memory_backed=1", f"gb={-(-DISK_MIB // 1024)}")
        self.undo.callback(run, "rmmod", "null_blk")
        wait_for(Path("/dev/nullb0").exists, "/dev/nullb0")
        return "/dev/nullb0"

    def close(self):
        self.undo.close()

    def image(self, case, drivers):
        """Returns the backing file for a case; a sparse one is new each time."""
        kind = case.user if case.user != "device" else case.image
        if kind == "sparse":
            path = self.directory / "sparse"
            path.unlink(missing_ok=True)
            run("truncate", "-s", f"{SPARSE_MIB}M", path)
            return path
        if self.backing == "bdev":
            # The disk has room for one image.
            if kind not in self.images:
                self.images = {kind: Path(self.device)}
                self.make(kind, self.device, drivers)
        elif kind not in self.images:
            self.images[kind] = self.directory / kind
            self.make(kind, self.images[kind], drivers)
        return self.images[kind]

    def make(self, kind, path, drivers):
        if kind == "filled":
            fill(path, IMAGE_MIB)
        elif kind in ("ext4", "xfs"):
            self.make_fs(kind, path, drivers)
        else:
            self.make_squashfs(path)
        drop(path)

    def make_fs(self, kind, path, drivers):
        size = f"{INNER_MIB + 64}M"
        if self.backing != "bdev":
            run("fallocate", "-l", size, path)
        if kind == "ext4":
            options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
            run("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", options, path, size)
        else:
            # Otherwise it wants 300 MiB.
            run("mkfs.xfs", "-q", "-f", "-K", "--unsupported", "-d", f"size={size}", path)
        drivers.load("loop")
        with attached(drivers.device("loop"), path, "direct") as device:
            with mounted(device, Path("/mnt/inner")) as inner:
                fill(inner / "file", INNER_MIB)

    def make_squashfs(self, path):
        """Makes an image without compression, so that decompression is not measured."""
        tree = self.directory / "tree"
        tree.mkdir()
        # squashfs would turn zeroes into holes.
        run("dd", "if=/dev/urandom", f"of={tree}/file", "bs=1M", f"count={INNER_MIB}", "status=none")
        run("mksquashfs", tree, path, "-noappend", "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX")
        run("rm", "-r", tree)
