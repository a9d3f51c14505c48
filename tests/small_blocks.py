#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Direct I/O to a file whose disk has larger blocks than the device: requests in whole blocks
bypass the page cache of the file, the others use it, and both see each other's data. A later
refusal of direct I/O does not end the use of the device."""
import errno
import mmap
import os
import random
import subprocess
import threading
import time
from lib import *

BETTER = "the C driver has no direct I/O then"
BLOCK = 4096
SECTOR = 512
MIB = 8


def disk(name="disk", mib=64, block_size=BLOCK):
    """Returns a disk with large blocks: a device that stays open, buffered."""
    return attach(image(mib, name), block_size=block_size)


def backing(kind, low):
    """Returns a file of a kind on a disk, or the disk itself, filled with zeroes."""
    if kind == "block":
        return low.path
    run(*(["mkfs.minix", "-3"] if kind == "minix" else [f"mkfs.{kind}", "-q"]), low.path)
    path = f"{mounted(low.path, 'place', '-t', kind)}/image"
    with open(path, "wb") as file:
        file.write(bytes(MIB << 20))
        os.fsync(file.fileno())
    return path


def dio(device):
    return sysfs(device, "loop/dio")


class Owner(threading.Thread):
    """Writes and reads sectors of its own, and verifies each read."""

    def __init__(self, path, runs, seed, until):
        super().__init__()
        self.path, self.until = path, until
        # (first sector, number of sectors)
        self.runs = runs
        self.random = random.Random(seed)
        self.error, self.transfers = None, 0

    def run(self):
        try:
            self.load()
        except BaseException as error:  # pylint: disable=broad-except
            self.error = error

    def load(self):
        written = {}
        with Fd(self.path, os.O_RDWR | os.O_DIRECT) as fd:
            memory = mmap.mmap(-1, max(length for _, length in self.runs) * SECTOR)
            while time.monotonic() < self.until:
                first, length = self.random.choice(self.runs)
                view = memoryview(memory)[: length * SECTOR]
                if first in written and self.random.random() < 0.5:
                    # All of the run, or only the first half, which uses the page cache.
                    view = view[: SECTOR * self.random.choice((length, (length + 1) // 2))]
                    equal("read", os.preadv(fd.fd, [view], first * SECTOR), len(view))
                    wanted = written[first]
                    assert bytes(view) == wanted * len(view), f"{first}+{length}: {bytes(view)[:8]}, wanted {wanted}"
                else:
                    written[first] = bytes([self.random.randrange(256)])
                    view[:] = written[first] * len(view)
                    equal("written", os.pwritev(fd.fd, [view], first * SECTOR), len(view))
                self.transfers += 1
            for first, value in written.items():
                length = dict(self.runs)[first]
                view = memoryview(memory)[: length * SECTOR]
                os.preadv(fd.fd, [view], first * SECTOR)
                assert bytes(view) == value * len(view), f"at the end, {first}+{length}"
        self.written = written


def mixed_load(path, below, seconds=8):
    """Runs owners of single sectors beside owners of whole blocks, and a reader of the file."""
    sectors, per_block = (MIB << 20) // SECTOR, BLOCK // SECTOR
    blocks = range(0, sectors, per_block)
    until = time.monotonic() + seconds
    owners = []
    # Each odd block belongs to one owner. In each even block three other owners have sectors.
    whole = [(first, per_block) for first in blocks if first // per_block % 2]
    for number in range(3):
        owners.append(Owner(path, whole[number::3], SEED + number, until))
    for number in range(3):
        runs = [(first + 2 * number, 1 + number % 2) for first in blocks if not first // per_block % 2]
        owners.append(Owner(path, runs, SEED + 10 + number, until))
    for owner in owners:
        owner.start()
    while time.monotonic() < until:
        # The reader's read-ahead fills the page cache of the file.
        with open(below, "rb") as file:
            while file.read(1 << 20):
                pass
    for owner in owners:
        owner.join()
        if owner.error:
            raise owner.error
    count("transfers", sum(owner.transfers for owner in owners))
    assert all(owner.transfers for owner in owners), [owner.transfers for owner in owners]
    with open(below, "rb") as file:
        for owner in owners:
            for first, value in owner.written.items():
                file.seek(first * SECTOR)
                assert file.read(SECTOR) == value * SECTOR, f"the file, sector {first}"


def coherent(kind):
    # XFS needs a disk of this size.
    with disk(mib=320) as low:
        path = backing(kind, low)
        with attach(path, flags=DIRECT_IO, sizelimit=MIB << 20) as fd:
            equal("dio", dio(fd.path), "1")
            equal("block size", sysfs(fd.path, "queue/logical_block_size"), "512")
            equal("physical block size", sysfs(fd.path, "queue/physical_block_size"), "4096")
            settle()
            mixed_load(fd.path, path)
            equal("dio", dio(fd.path), "1")
            device = fd.path
        detach(device)
        if kind != "block":
            run("umount", f"{SCRATCH}/place")


for fs in "ext4", "xfs", "block":
    check(f"verified I/O of single sectors beside whole blocks, {fs}, seed {SEED}", better=BETTER)(
        lambda fs=fs: coherent(fs)
    )


@check("a read through the page cache leaves no stale data beside a write in flight", better=BETTER)
def in_flight():
    with disk() as low:
        run("modprobe", "dm-delay")
        sectors = 64 << 11
        # Writes take 0.3 seconds.
        table = f"0 {sectors} delay {low.path} 0 0 {low.path} 0 300"
        run("dmsetup", "create", "slow", "--table", table)
        settle()
        with attach("/dev/mapper/slow", flags=DIRECT_IO) as fd, Fd(fd.path, os.O_RDWR | os.O_DIRECT) as user:
            settle()
            for value in range(1, 6):
                writer = threading.Thread(target=direct_bytes, args=(user, BLOCK, BLOCK, value))
                writer.start()
                time.sleep(0.1)
                # Its read-ahead covers the block that is being written.
                direct_bytes(user, 0, SECTOR)
                writer.join()
                equal("read", set(direct_bytes(user, BLOCK + SECTOR, SECTOR)), {value})
            device = fd.path
        detach(device)
        run("dmsetup", "remove", "--retry", "slow")


def read_in_cgroup(device, position, length):
    """Reads by direct I/O in a cgroup of its own, and so by another worker."""
    code = f"""if True:
        import mmap, os
        fd = os.open("{device}", os.O_RDONLY | os.O_DIRECT)
        os.preadv(fd, [mmap.mmap(-1, {length})], {position})"""
    with cgroup("+io") as group:
        # A reader that blocks cannot be waited for.
        reader = subprocess.Popen(in_cgroup(group, "python3", "-c", code))
        wait_for(lambda: reader.poll() is not None, 20)
        equal("reader", reader.returncode, 0)


@check("writes wait while the file system below is frozen, another cgroup can read", better=BETTER)
def frozen():
    with disk() as low:
        path = backing("ext4", low)
        place = f"{SCRATCH}/place"
        with attach(path, flags=DIRECT_IO) as fd, Fd(fd.path, os.O_RDWR | os.O_DIRECT) as user:
            settle()
            run("fsfreeze", "-f", place)
            waiting = [
                threading.Thread(target=direct_bytes, args=(user, BLOCK, BLOCK, 1)),
                threading.Thread(target=direct_bytes, args=(user, 3 * BLOCK, SECTOR, 2)),
            ]
            try:
                for thread in waiting:
                    thread.start()
                time.sleep(0.5)
                for length in SECTOR, BLOCK:
                    read_in_cgroup(fd.path, 8 * BLOCK, length)
                assert all(thread.is_alive() for thread in waiting), "written to a frozen file system"
            finally:
                run("fsfreeze", "-u", place)
            for thread in waiting:
                thread.join(20)
                assert not thread.is_alive(), "hangs after the thaw"
            equal("block", set(direct_bytes(user, BLOCK, BLOCK)), {1})
            equal("sector", set(direct_bytes(user, 3 * BLOCK, SECTOR)), {2})
            device = fd.path
        detach(device)
        run("umount", place)


@check("a FAT image with sectors of 512 bytes mounts", better=BETTER)
def fat():
    with disk() as low:
        path = backing("ext4", low)
        run("mkfs.vfat", "-S", "512", path)
        noise = os.urandom(3 << 20)
        for _ in range(2):
            with attach(path, flags=DIRECT_IO) as fd:
                equal("dio", dio(fd.path), "1")
                place = mounted(fd.path, "fat")
                if os.path.exists(f"{place}/file"):
                    with open(f"{place}/file", "rb") as file:
                        assert file.read() == noise
                else:
                    with open(f"{place}/file", "wb") as file:
                        file.write(noise)
                run("umount", place)
                device = fd.path
            detach(device)
        run("fsck.vfat", "-n", path)
        run("umount", f"{SCRATCH}/place")


@check("with an offset that is not in whole blocks, blocks are small and direct I/O is off", better="the C driver has large blocks")
def offset():
    with disk() as low:
        path = backing("ext4", low)
        with attach(path, flags=DIRECT_IO, offset=512) as fd:
            equal("dio", dio(fd.path), "0")
            equal("block size", sysfs(fd.path, "queue/logical_block_size"), "512")
            device = fd.path
        detach(device)
        run("umount", f"{SCRATCH}/place")


def direct_bytes(direct, position, length, value=None):
    """Reads, or writes a value, by direct I/O."""
    memory = mmap.mmap(-1, length)
    if value is None:
        equal("read", os.preadv(direct.fd, [memory], position), length)
        return memory[:]
    memory[:] = bytes([value]) * length
    return equal("written", os.pwritev(direct.fd, [memory], position), length)


@check("a read across the end of a truncated file fails, and what the file lacks reads as zeroes", better=BETTER)
def truncated():
    """The rest behind the end of the file begins inside a block of direct I/O."""
    with disk(mib=320) as low:
        path = backing("xfs", low)
        with attach(path, flags=DIRECT_IO) as fd, Fd(fd.path, os.O_RDWR | os.O_DIRECT) as user:
            settle()
            direct_bytes(user, 0, 2 * BLOCK, 7)
            os.truncate(path, BLOCK + SECTOR + 100)
            memory = mmap.mmap(-1, 4 * BLOCK)
            memory[:] = b"\xff" * len(memory)
            try:
                raise AssertionError(f"read {os.preadv(user.fd, [memory], 0)} bytes")
            except OSError as error:
                equal("error", errno.errorcode[error.errno], "EIO")
            equal("before the end", set(memory[: BLOCK + SECTOR]), {7})
            assert set(memory[BLOCK + SECTOR :]) <= {0, 7}, "the memory has its old content"
            equal("dio", dio(fd.path), "1")
            device = fd.path
        detach(device)
        run("umount", f"{SCRATCH}/place")


@check("the disk below is replaced by one with larger blocks, as pvmove does", better="the C driver fails requests in smaller blocks")
def replaced():
    with disk("small", block_size=512) as old, disk("large") as new:
        table = "0 {} linear {} 0"
        sectors = 64 << 11
        run("dmsetup", "create", "below", "--table", table.format(sectors, old.path))
        settle()
        run("mkfs.ext4", "-q", "-b", "4096", "/dev/mapper/below")
        path = f"{mounted('/dev/mapper/below', 'place')}/image"
        with open(path, "wb") as file:
            file.write(bytes(MIB << 20))
        with attach(path, flags=DIRECT_IO) as fd, Fd(fd.path, os.O_RDWR | os.O_DIRECT) as user:
            settle()
            equal("dio", dio(fd.path), "1")
            direct_bytes(user, 512, 1024, 7)
            run("fsfreeze", "-f", f"{SCRATCH}/place")
            run("dd", f"if={old.path}", f"of={new.path}", "bs=1M", "conv=fsync")
            run("dmsetup", "suspend", "below")
            run("dmsetup", "load", "below", "--table", table.format(sectors, new.path))
            run("dmsetup", "resume", "below")
            run("fsfreeze", "-u", f"{SCRATCH}/place")
            equal("read", set(direct_bytes(user, 512, 1024)), {7})
            direct_bytes(user, 1024, 1024, 8)
            equal("read", set(direct_bytes(user, 512, 512)), {7})
            equal("read", set(direct_bytes(user, 1024, 1024)), {8})
            wait_for(lambda: sysfs(fd.path, "queue/physical_block_size") == "4096")
            equal("dio", dio(fd.path), "1")
            equal("block size", sysfs(fd.path, "queue/logical_block_size"), "512")
            mixed_load(fd.path, path, 3)
            device = fd.path
        detach(device)
        run("umount", f"{SCRATCH}/place")
        run("dmsetup", "remove", "--retry", "below")


# The lab's own kernels lack it.
if not subprocess.run(["modprobe", "-q", "minix"], check=False).returncode:
    check("a file system that refuses all direct I/O is served through the page cache", better="the C driver fails each request")(
        lambda: refused()  # pylint: disable=unnecessary-lambda
    )


def refused():
    with disk(block_size=512) as low:
        path = backing("minix", low)
        with attach(path, flags=DIRECT_IO) as fd, Fd(fd.path, os.O_RDWR | os.O_DIRECT) as user:
            direct_bytes(user, 4096, 8192, 9)
            equal("read", set(direct_bytes(user, 4096, 8192)), {9})
            wait_for(lambda: dio(fd.path) == "0")
            equal("read", set(direct_bytes(user, 4096, 8192)), {9})
            device = fd.path
        detach(device)
        run("umount", f"{SCRATCH}/place")


run_checks()
