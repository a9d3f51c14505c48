#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Several threads change everything about a device at once, while others read and write it and
verify the data; devices are attached, detached and their file systems unmounted as fast as
possible; the module is unloaded while others open its devices. No acknowledged write is lost, no
stale data is read, nothing hangs. See programs/race.c."""
import threading
from lib import *

# Slow kernels do less in the same time.
SECONDS = (8 if SLOW else 4) * ROUNDS
IMAGE = 16
LIBC.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
DISKS = [f"/dev/ram{number}" for number in range(4)]


def race(mode, device, *backings):
    """Runs the program, and counts its operations."""
    output = run(PROGRAM, str(SEED), str(SECONDS), mode, device, *backings, timeout=10 * SECONDS + 120)
    for line in output.splitlines():
        what, number = line.split()
        count(what, int(number))


def place(kind, disk=DISKS[0], size=IMAGE):
    """Makes an empty image in a file system of a kind, or clears a disk; returns its path."""
    if kind == "block":
        run("blkdiscard", DISKS[1])
        return DISKS[1]
    run(f"mkfs.{kind}", "-q", "-f" if kind == "xfs" else "-F", disk)
    mounted(disk, kind)
    path = image(size, f"{kind}/image")
    run("sfdisk", "-q", path, input="label: dos\nstart=64,size=512\nstart=1024,size=512\n")
    return path


def io_against_everything(kind, flags):
    path = place(kind)
    with attach(path, flags=flags) as fd:
        device = fd.path
    race("io", device, path)
    assert not is_bound(device), "the device is still bound"


for where in "ext4", "xfs", "block":
    for direct in DIRECT_IO, 0:
        check(
            f"I/O against everything else: {where}, {'direct' if direct else 'buffered'}, seed {SEED}"
        )(lambda where=where, direct=direct: io_against_everything(where, direct))


@check(f"attach and detach against each other and I/O, seed {SEED}")
def attach_and_detach():
    path = place("ext4")
    device = free_device()
    race("attach", device, path)
    settle()
    wait_for(lambda: not is_bound(device))
    run("umount", f"{SCRATCH}/ext4")


def change_and_read(flags):
    # A disk with slow reads, so that some are in flight.
    with open(f"/sys/block/{os.path.basename(DISKS[0])}/size", encoding="ascii") as size:
        run("dmsetup", "create", "--noudevsync", "slow", "--table", f"0 {size.read().strip()} delay {DISKS[0]} 0 2")
    run("dmsetup", "mknodes")
    paths = [place("ext4", "/dev/mapper/slow", 2 * IMAGE), image(2 * IMAGE, "ext4/other")]
    with attach(paths[0], os.O_RDONLY, os.O_RDONLY, flags=flags | READ_ONLY) as fd:
        device = fd.path
    race("change", device, *paths)
    wait_for(lambda: not is_bound(device))
    run("umount", f"{SCRATCH}/ext4")
    run("dmsetup", "remove", "--noudevsync", "slow")


for direct in DIRECT_IO, 0:
    check(
        f"changes of file and offset against readers and everything else, {'direct' if direct else 'buffered'}, seed {SEED}"
    )(lambda direct=direct: change_and_read(direct))


def mount(source, target, kind):
    result = LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, None)
    assert result == 0, f"mount {source}: {os.strerror(ctypes.get_errno())}"


def unmount(target):
    assert LIBC.umount(target.encode()) == 0, f"umount {target}: {os.strerror(ctypes.get_errno())}"


@check("class 13: umount of a file system on an image, and at once of the image's file system")
def unmount_both():
    outer, inner = f"{SCRATCH}/outer", f"{SCRATCH}/inner"
    os.makedirs(outer)
    os.makedirs(inner)
    run("mkfs.ext4", "-q", "-F", DISKS[0])
    mount(DISKS[0], outer, "ext4")
    run("mkfs.ext4", "-q", "-F", image(8, "outer/image"))
    unmount(outer)
    for _ in range(50 * ROUNDS if SLOW else 1000):
        mount(DISKS[0], outer, "ext4")
        with attach(f"{outer}/image", flags=AUTOCLEAR | DIRECT_IO) as fd:
            mount(fd.path, inner, "ext4")
        with open(f"{inner}/file", "wb") as file:
            file.write(os.urandom(65536))
        unmount(inner)
        unmount(outer)
        count("cycles", 1)


def may_fail(function, *errors):
    try:
        return function()
    except OSError as error:
        assert errno.errorcode[error.errno] in errors, error
        return None


@check("the module is unloaded and loaded while others open its devices")
def unload_and_load():
    over = threading.Event()

    def keep_opening(path):
        while not over.is_set():
            fd = may_fail(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC), "ENOENT", "ENXIO", "ENODEV")
            if fd is not None:
                os.close(fd)
            time.sleep(0.01)

    threads = [
        threading.Thread(target=keep_opening, args=(path,))
        for path in ("/dev/loop0", "/dev/loop1", "/dev/loop-control")
    ]
    for thread in threads:
        thread.start()
    module = "rnull-loop.ko" if DRIVER == "rnull_loop" else None
    unloaded = 0
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            if subprocess.run(["rmmod", DRIVER], capture_output=True, check=False).returncode == 0:
                unloaded += 1
                if module:
                    run("insmod", f"{os.path.dirname(os.path.abspath(__file__))}/../{module}")
                else:
                    run("modprobe", DRIVER)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert unloaded, "the module could never be unloaded"
    count("cycles", unloaded)


def main():
    """Runs the cases without udev, which would take most of the time."""
    global PROGRAM
    os.makedirs(SCRATCH, exist_ok=True)
    run("modprobe", "brd", "rd_nr=4", f"rd_size={320 << 10}")
    # The scratch directory is removed with each case.
    PROGRAM = program("race", "-pthread")
    os.rename(PROGRAM, "/tmp/race")
    PROGRAM = "/tmp/race"
    stop_udev()
    run_checks()


main()
