#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Leased extents: while the driver holds leases of an image, its requests go to the disk of the file
system, past the image. A task that frees or moves blocks of the image waits until no request does so
any more. No data is lost, and no block that is not the image's is written."""
import contextlib
import fcntl
import mmap
import random
import struct
from lib import *
from tracing import bypass, bypassed, probe, submitters, traced, traced_on

if DRIVER != "rnull_loop":
    skip_all("the C driver has no leases")
BLOCK, MIB = 4096, 16
BLOCKS = MIB * 256
KINDS = "ext4", "xfs"
FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436


def allocated(kind):
    """Makes an image whose blocks are all written."""
    file = backing(kind, MIB)
    noise(file, MIB)
    return file


def disk_of(file):
    """Returns the disk of a file system."""
    return run("findmnt", "-no", "SOURCE", "-T", file)


@contextlib.contextmanager
def bound(kind, *options):
    """Attaches an image with direct I/O, and waits until requests bypass the file."""
    file = allocated(kind)
    with attached(file, True, *options) as device:
        settle()
        bypass(device, RAM[kind])
        yield device, file


def hammer(device, blocks):
    """Writes random blocks, until it is killed."""
    buffer = mmap.mmap(-1, BLOCK)
    buffer[:] = b"wrong place!    " * (BLOCK // 16)
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    while True:
        # The file system may be full.
        with contextlib.suppress(OSError):
            os.pwritev(fd, [buffer], random.randrange(blocks) * BLOCK)


class Load:
    """A process that writes random blocks of a device, and reads them back, until it is stopped."""

    def __init__(self, device, blocks=range(BLOCKS)):
        self.device, self.blocks = device, blocks
        self.result, writing = os.pipe()
        stopping, self.stop = os.pipe()
        self.pid = forked(self.run, writing, stopping)
        os.close(writing)
        os.close(stopping)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def content(self, block, turn):
        return struct.pack("<QQ", block, turn) * (BLOCK // 16)

    def run(self, writing, stopping):
        os.close(self.result)
        os.close(self.stop)
        os.set_blocking(stopping, False)
        buffer = mmap.mmap(-1, BLOCK)
        turns = {}
        fd = os.open(self.device, os.O_RDWR | os.O_DIRECT)
        turn = 0
        while True:
            turn += 1
            block = random.choice(self.blocks)
            buffer[:] = self.content(block, turn)
            equal("written", os.pwritev(fd, [buffer], block * BLOCK), BLOCK)
            turns[block] = turn
            block = random.choice(list(turns)) if turn % 64 == 0 else block
            equal("read", os.preadv(fd, [buffer], block * BLOCK), BLOCK)
            assert buffer[:] == self.content(block, turns[block]), f"block {block}: not what was written"
            if turn % 256 == 0:
                os.fsync(fd)
            with contextlib.suppress(BlockingIOError):
                os.read(stopping, 1)
                break
        with os.fdopen(writing, "w") as file:
            json.dump(turns, file)

    def finish(self):
        """Stops the process, and returns the contents of the blocks that it has written."""
        os.write(self.stop, b"x")
        os.close(self.stop)
        with os.fdopen(self.result) as file:
            text = file.read()
        pid, self.pid = self.pid, 0
        equal("status of the writer", os.waitpid(pid, 0)[1], 0)
        return {int(block): self.content(int(block), turn) for block, turn in json.loads(text).items()}


def free_space(file):
    """Returns the free space of a file's file system in bytes."""
    free = os.statvfs(os.path.dirname(file))
    return free.f_bavail * free.f_frsize


def has(path, contents):
    """Checks blocks of a file or device, past its page cache."""
    buffer = mmap.mmap(-1, BLOCK)
    with Fd(path, os.O_RDONLY | os.O_DIRECT) as fd:
        for block, content in contents.items():
            os.preadv(fd.fd, [buffer], block * BLOCK)
            assert buffer[:] == content, f"{path}: block {block} has other data"


for kind in KINDS:

    @check(f"requests bypass the image when its blocks are written: {kind}")
    def bypasses(kind=kind):
        with bound(kind) as (device, file):
            equal("state", extents_state(device), "in use")
            with Load(device) as load:
                time.sleep(4 if SLOW else 0.5)
                contents = load.finish()
            assert len(contents) > 20
            has(device, contents)
            has(file, contents)
        has(file, contents)

    @check(f"no block of a written image is reported as unwritten while the map learns it: {kind}")
    def learned_meanwhile(kind=kind):
        file = allocated(kind)
        for _ in range(10):
            with attached(file, True) as device:
                read = f"if={device}", "of=/dev/null", "bs=4k", "iflag=direct"
                for pid in [forked(dd, *read) for _ in range(8)]:
                    equal("status of a reader", os.waitpid(pid, 0)[1], 0)
                equal("state", extents_state(device), "in use")

    @check(f"a sparse image is filled, and its blocks are learned: {kind}")
    def sparse(kind=kind):
        file = backing(kind, MIB)
        with attached(file, True) as device:
            with Load(device) as load:
                time.sleep(1)
                contents = load.finish()
            has(device, contents)
            noise(device, MIB)
            bypass(device, RAM[kind])
            with Load(device) as load:
                time.sleep(0.5)
                contents = load.finish()
            has(device, contents)
        has(file, contents)

    @check(f"while writes fill a sparse image, few of its blocks are looked up: {kind}")
    def fills(kind=kind):
        writes = 4000
        file = backing(kind, 256)
        with attached(file, True) as device, probe("bmap"):
            lookups = traced(
                "kprobes/bmap", run, "fio", "--name=fill", f"--filename={device}", "--direct=1",
                "--ioengine=libaio", "--iodepth=16", "--numjobs=2", "--rw=randwrite", "--bs=4k",
                f"--number_ios={writes // 2}",
            )  # fmt: skip
            # The driver looks up for a share of the time, and a slow kernel takes long for a write.
            assert SLOW or len(lookups) < 6 * writes, f"{len(lookups)} lookups"

    @check(f"a file system on the device: {kind}")
    def mounted_on(kind=kind):
        with bound(kind) as (device, file):
            run("mkfs.ext4", "-q", device)
            place = mounted(device, "place")
            noise(f"{place}/file", 4)
            dd(f"if={place}/file", f"of={SCRATCH}/copy")
            run("umount", place)
            place = mounted(device, "place")
            run("cmp", f"{place}/file", f"{SCRATCH}/copy")
            run("umount", place)
        place = mounted(file, "place", "-o", "loop,ro")
        run("cmp", f"{place}/file", f"{SCRATCH}/copy")
        run("umount", place)


def opened(file, device):
    with Fd(file, os.O_RDWR):
        assert not bypassed(device, disk_of(file))
        time.sleep(0.2)
        equal("state", extents_state(device), "foreign writer")


def opened_at_once(file, device):
    """truncate(1) opens the file like this."""
    with Fd(file, os.O_RDWR | os.O_NONBLOCK):
        pass


def renamed(file, device):
    os.rename(file, f"{file}-2")
    os.rename(f"{file}-2", file)


def linked(file, device):
    os.link(file, f"{file}-2")
    os.unlink(f"{file}-2")


def mapped(file, device):
    with Fd(file) as fd:
        with mmap.mmap(fd.fd, BLOCK * BLOCKS) as memory:
            fd.close()
            assert not bypassed(device, disk_of(file))
            time.sleep(0.2)
            equal("state", extents_state(device), "foreign writer")


def second_device(file, device):
    with attached(file, True) as other:
        read_all(other)
        equal("state", extents_state(device), "foreign writer")


def frozen(file, device):
    place = os.path.dirname(file)
    run("fsfreeze", "-f", place)
    time.sleep(0.5)
    run("fsfreeze", "-u", place)


def remounted(file, device):
    place = os.path.dirname(file)
    assert subprocess.run(["mount", "-o", "remount,ro", place], check=False, capture_output=True).returncode


def cloned(file, device):
    with Fd(file, os.O_RDONLY) as source, Fd(f"{file}-2", os.O_RDWR | os.O_CREAT) as target:
        fcntl.ioctl(target.fd, FICLONE, source.fd)


def clone_target(file, device):
    """Nothing else writes to the last block."""
    other, last = f"{file}-3", (MIB << 20) - BLOCK
    dd("if=/dev/urandom", f"of={other}", "bs=4k", "count=1")
    os.sync()
    with Fd(other, os.O_RDONLY) as source, Fd(file) as target:
        fcntl.ioctl(target.fd, FICLONERANGE, struct.pack("<qQQQ", source.fd, 0, BLOCK, last))
    with open(other, "rb") as source:
        has(device, {BLOCKS - 1: source.read()})


def deduped(file, device):
    """Blocks that another file has, too, become shared. Nothing writes to the last ones."""
    other = f"{file}-4"
    last = (MIB << 20) - BLOCK
    dd(f"if={file}", f"of={other}", "bs=4k", f"skip={BLOCKS - 1}")
    os.sync()
    with Fd(file, os.O_RDONLY) as source, Fd(other) as target:
        argument = bytearray(struct.pack("<QQHHIqQQiI", last, BLOCK, 1, 0, 0, target.fd, 0, 0, 0, 0))
        fcntl.ioctl(source.fd, FIDEDUPERANGE, argument)
        equal("dedupe", struct.unpack("<QQHHIqQQiI", argument)[7:9], (BLOCK, 0))


def exchanged(file, device):
    """The blocks of the image become those of another file, which has the same data."""
    other = f"{file}-5"
    dd(f"if={file}", f"of={other}", "bs=4k", f"skip={BLOCKS - 1}")
    os.sync()
    run("xfs_io", "-c", f"exchangerange -s 0 -d {(MIB << 20) - BLOCK} -l {BLOCK} {other}", file)


def durable(file, device):
    """The writes of the image must be durable at once, for a while."""
    run("chattr", "+S", file)
    time.sleep(0.3)
    tasks = submitters(disk_of(file), "W", dd, "if=/dev/zero", f"of={device}", "bs=4k", "count=1",
                       f"seek={BLOCKS - 1}", "oflag=direct")  # fmt: skip
    assert "[dd]" not in tasks, f"the writer has submitted to the disk: {tasks}"
    run("chattr", "-S", file)


BREAKERS = {
    "open for writing": opened,
    "open with O_NONBLOCK": opened_at_once,
    "truncate": lambda file, _: os.truncate(file, (MIB << 20) + BLOCK),
    "chmod": lambda file, _: os.chmod(file, 0o640),
    "utimes": lambda file, _: os.utime(file, (1, 1)),
    "setxattr": lambda file, _: os.setxattr(file, "user.test", b"x"),
    "rename": renamed,
    "link, unlink": linked,
    "a shared mapping": mapped,
    "a second loop device": second_device,
    "fsfreeze": frozen,
    "remount,ro": remounted,
    "chattr +S": durable,
}
BREAKERS_OF = {
    "ext4": {
        "chattr +j": lambda file, _: (run("chattr", "+j", file), time.sleep(0.3), run("chattr", "-j", file)),
        "e4defrag": lambda file, _: run("e4defrag", file),
    },
    "xfs": {
        "xfs_fsr": lambda file, _: run("xfs_fsr", file),
        "FICLONE of the image": cloned,
        "FICLONE to the image": clone_target,
        "FIDEDUPERANGE of the image": deduped,
        "XFS_IOC_EXCHANGE_RANGE": exchanged,
        "online repair": lambda file, _: run("xfs_io", "-x", "-c", "repair -R bmapbtd", file),
    },
}

for kind in KINDS:
    for what, breaker in {**BREAKERS, **BREAKERS_OF[kind]}.items():

        @check(f"{what}: {kind}")
        def broken(kind=kind, breaker=breaker):
            with bound(kind) as (device, file):
                with Load(device, range(BLOCKS - 1)) as load:
                    for _ in range(3):
                        time.sleep(0.2)
                        breaker(file, device)
                    contents = load.finish()
                has(device, contents)
                has(file, contents)
                # Shared blocks have no places.
                if breaker not in (cloned, clone_target, deduped):
                    bypass(device, RAM[kind])
                    has(device, contents)
            has(file, contents)

    @check(f"blocks that another task has freed are not written: {kind}")
    def freed(kind=kind):
        with bound(kind) as (device, file):
            canary = f"{file}-canary"
            # All but the freed blocks and a few others are taken.
            run("fallocate", "-l", str(free_space(file) - (16 << 20)), f"{file}-filler")
            with Load(device, range(BLOCKS // 2)) as load:
                half = MIB << 19
                run("fallocate", "-p", "-o", str(half), "-l", str(half), file)
                size = free_space(file) - (4 << 20)
                run("bash", "-c", f"yes canary | head -c {size} >{canary}")
                os.sync()
                before = run("md5sum", canary)
                with Load(device, range(BLOCKS // 2, BLOCKS // 2 + 64)) as upper:
                    time.sleep(0.5)
                    contents = {**load.finish(), **upper.finish()}
            write_text("/proc/sys/vm/drop_caches", "3")
            equal("other file", run("md5sum", canary), before)
            has(device, contents)
        has(file, contents)


@check("an image that becomes immutable is not written: ext4")
def immutable():
    """XFS refuses to open such a file for writing, but not to write it."""
    with bound("ext4") as (device, file):
        with open(device, "rb") as content:
            before = {7: content.read(8 * BLOCK)[7 * BLOCK :]}
        run("chattr", "+i", file)
        try:
            with Fd(device, os.O_RDWR | os.O_DIRECT) as fd, contextlib.suppress(OSError):
                os.pwritev(fd.fd, [mmap.mmap(-1, BLOCK)], 7 * BLOCK)
                raise AssertionError("the write did not fail")
        finally:
            run("chattr", "-i", file)
        has(file, before)
        noise(device, MIB)
        bypass(device, RAM["ext4"])


for kind in KINDS:

    @check(f"the modification time follows: {kind}")
    def modified(kind=kind):
        with bound(kind) as (device, file):
            with Fd(device, os.O_RDWR | os.O_DIRECT) as fd:
                time.sleep(3)
                os.utime(file, (1, 1))
                bypass(device, RAM[kind])
                equal("time", os.stat(file).st_mtime, 1)
                os.pwritev(fd.fd, [mmap.mmap(-1, BLOCK)], 0)
                wait_for(lambda: os.stat(file).st_mtime > 1, 5)
                os.utime(file, (1, 1))
                bypass(device, RAM[kind])
                os.pwritev(fd.fd, [mmap.mmap(-1, BLOCK)], 0)
                # An opener must find it soon, not only after the two seconds of the delayed update:
                # xfs_fsr exchanges the blocks of a file whose times stay as they were.
                with Fd(file, os.O_RDWR):
                    wait_for(lambda: os.stat(file).st_mtime > 1, 1)
                os.utime(file, (1, 1))
                bypass(device, RAM[kind])
                os.pwritev(fd.fd, [mmap.mmap(-1, BLOCK)], 0)
                os.fsync(fd.fd)
                wait_for(lambda: os.stat(file).st_mtime > 1, 5)
                os.utime(file, (1, 1))
                bypass(device, RAM[kind])
                os.pwritev(fd.fd, [mmap.mmap(-1, BLOCK)], 0)
        assert os.stat(file).st_mtime > 1, "not at detach"

    @check(f"blocks that the device frees under writes are not written: {kind}")
    def freed_by_device(kind=kind):
        """Another file takes the blocks that discards free, while requests are still in flight."""
        with bound(kind) as (device, file):
            canary, size = f"{file}-canary", 0
            half = BLOCKS // 2

            def discard():
                while True:
                    run("blkdiscard", "-l", str(MIB << 19), device)

            with Load(device, range(half, BLOCKS - 1)) as load:
                writer = forked(hammer, device, half)
                discarder = forked(discard)
                deadline = time.monotonic() + 4
                with open(canary, "wb") as target:
                    while time.monotonic() < deadline:
                        with contextlib.suppress(OSError):
                            size += target.write(b"canary!\n" * 8192)
                            target.flush()
                for pid in writer, discarder:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                contents = load.finish()
            os.sync()
            write_text("/proc/sys/vm/drop_caches", "3")
            with open(canary, "rb") as target:
                data = target.read()
            assert data == (b"canary!\n" * (len(data) // 8 + 1))[: len(data)], "the other file has other data"
            has(device, contents)
        has(file, contents)

    @check(f"an offset that is not in whole blocks: {kind}")
    def odd_offset(kind=kind):
        """A request must not be served in parts that are no whole blocks of the device."""
        file = backing(kind, MIB)
        with attached(file, True, "--offset", "512", "--sector-size", str(BLOCK)) as device:
            with Load(device, range(BLOCKS - 2)) as load:
                time.sleep(2)
                contents = load.finish()
            has(device, contents)
            equal("state", extents_state(device), "refused")

    @check(f"the last block of an image that was made shorter: {kind}")
    def shortened(kind=kind):
        """A write behind the end makes the image longer again, and keeps what was written before."""
        file = allocated(kind)
        end = 4 << 20
        with attached(file, True) as device:
            bypass(device, RAM[kind])
            os.truncate(file, end + 512)
            time.sleep(0.5)
            for _ in range(20):
                dd(f"if={device}", "of=/dev/null", "bs=64k", "count=32", "iflag=direct")
                time.sleep(0.05)
            written = mmap.mmap(-1, 512)
            written[:] = b"x" * 512
            with Fd(device, os.O_RDWR | os.O_DIRECT) as fd:
                equal("written", os.pwritev(fd.fd, [written], end + 2048), 512)
                os.fsync(fd.fd)
                equal("written", os.pwritev(fd.fd, [written], end + (1 << 20)), 512)
                os.fsync(fd.fd)
                got = mmap.mmap(-1, 512)
                os.preadv(fd.fd, [got], end + 2048)
                equal("read", got[:], written[:])
        with open(file, "rb") as content:
            content.seek(end + 2048)
            equal("in the image", content.read(512), written[:])


@contextlib.contextmanager
def own_fs(kind, *options, disk=RAM["block"]):
    """Makes a file system, and yields an image in it whose blocks are all written."""
    force = "-f" if kind == "xfs" else "-F"
    run(f"mkfs.{kind}", "-q", force, *options, *MKFS[kind], disk)
    place = mounted(disk, "own")
    file = image(MIB, f"{place}/image")
    noise(file, MIB)
    yield file
    subprocess.run(["umount", "-l", place], check=True)


def attach_and_detach(file):
    with attached(file, True):
        pass


SLOW_SECONDS = 3
SLOW_DISK, FAILING_DISK = f"delay {RAM['block']} 0 0 {RAM['block']} 0 {SLOW_SECONDS * 1000}", "error"


@contextlib.contextmanager
def changing_disk():
    """Yields a disk, and a function that sets its target; without one the disk works."""
    subprocess.run(["modprobe", "-a", "dm-mod", "dm-delay"], check=False)
    backing("block")
    sectors = run("blockdev", "--getsz", RAM["block"])

    def table(target):
        return f"0 {sectors} {target or 'linear ' + RAM['block'] + ' 0'}"

    def change(target=""):
        # The file system is not frozen.
        run("dmsetup", "suspend", "--nolockfs", "changing")
        run("dmsetup", "reload", "changing", "--table", table(target))
        run("dmsetup", "resume", "changing")

    run("dmsetup", "create", "changing", "--table", table(""))
    yield f"/dev/dm-{os.minor(os.stat('/dev/mapper/changing').st_rdev)}", change
    wait_for(lambda: not subprocess.run(["dmsetup", "remove", "changing"], check=False).returncode, 10)


@contextlib.contextmanager
def slow_write(kind):
    """Yields a device, its image, and a function that returns the time in seconds since a write to
    the last block of the device has begun, which takes SLOW_SECONDS."""
    with changing_disk() as (disk, change), own_fs(kind, disk=disk) as file, attached(file, True) as device:
        read_until(device, "in use")
        read_all(device)
        change(SLOW_DISK)
        began = time.monotonic()
        pid = forked(dd, "if=/dev/zero", f"of={device}", "bs=4k", "count=1", f"seek={BLOCKS - 1}", "oflag=direct")
        time.sleep(1)
        yield device, file, lambda: time.monotonic() - began
        change()
        equal("status of the writer", os.waitpid(pid, 0)[1], 0)


for kind in KINDS:

    @check(f"a task that frees blocks waits for the requests in flight: {kind}")
    def waits(kind=kind):
        """A task that only opens the image does not."""
        with slow_write(kind) as (_, file, elapsed), Fd(file, os.O_RDWR | os.O_NONBLOCK) as fd:
            opened = elapsed()
            os.ftruncate(fd.fd, BLOCK)
            freed = elapsed()
        assert opened < SLOW_SECONDS, f"the image was opened after {opened} s"
        assert freed >= SLOW_SECONDS, f"blocks were freed after {freed} s"

    @check(f"a discard of the device waits for the requests in flight: {kind}")
    def discard_waits(kind=kind):
        with slow_write(kind) as (device, _, elapsed):
            run("blkdiscard", "-o", str((BLOCKS - 1) * BLOCK), "-l", str(BLOCK), device)
            freed = elapsed()
        assert freed >= SLOW_SECONDS, f"blocks were freed after {freed} s"

    @check(f"leases are taken again after another task's write has failed: {kind}")
    def failed_write(kind=kind):
        """No flush of a read-only device sees the error."""
        with changing_disk() as (disk, change), own_fs(kind, disk=disk) as file, attached(file, True, "-r") as device:
            read_until(device, "in use")
            with Fd(file, os.O_RDWR) as fd:
                change(FAILING_DISK)
                try:
                    os.pwrite(fd.fd, bytes(BLOCK), 0)
                    os.fdatasync(fd.fd)
                    raise AssertionError("the write did not fail")
                except OSError:
                    pass
                finally:
                    change()
            read_until(device, "in use")


    @check(f"a write that was lost before the attach fails no read, and leases are taken: {kind}")
    def lost_before(kind=kind):
        if udev_runs():
            # It would read the device at once.
            stop_udev()
        with changing_disk() as (disk, change), own_fs(kind, disk=disk) as file, Fd(file, os.O_RDONLY) as held:
            with Fd(file, os.O_RDWR) as fd:
                os.pwrite(fd.fd, bytes(BLOCK), 0)
                change(FAILING_DISK)
                # Unlike a sync, it reports no error, and writes no metadata.
                run("xfs_io", "-c", f"sync_range -w 0 {BLOCK}", file)
                time.sleep(0.5)
                change()
            os.posix_fadvise(held.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with attached(file, True, "-r") as device:
                tune(device, "nowait", 0)
                tune(device, "extents", 0)
                dd(f"if={device}", "of=/dev/null", "bs=4k", "count=1", "skip=1", "iflag=direct")
                tune(device, "extents", 1)
                read_until(device, "in use")

    @check(f"the attach of an image without cached pages does not flush the disk: {kind}")
    def no_flush(kind=kind):
        # It has a write cache.
        with attached(backing("block"), False) as disk, own_fs(kind, disk=disk) as file:
            with Fd(file, os.O_RDONLY) as fd:
                os.posix_fadvise(fd.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for cached in False, True:
                if cached:
                    dd(f"if={file}", "of=/dev/null", "bs=1M")
                bios = traced_on(disk, "block_bio_queue", attach_and_detach, file)
                flushes = [words for words in bios if "F" in words[0]]
                equal("cached, flushed", (cached, bool(flushes)), (cached, cached))


@check("an error in the metadata of ext4 stops the writes")
def fs_error():
    backing("block")
    with own_fs("ext4", "-e", "remount-ro") as file, attached(file, True) as device:
        bypass(device, RAM["block"])
        write_text(f"/sys/fs/ext4/{os.path.basename(RAM['block'])}/trigger_fs_error", "test")

        def fails():
            try:
                with Fd(device, os.O_RDWR | os.O_DIRECT) as fd:
                    os.pwritev(fd.fd, [mmap.mmap(-1, BLOCK)], 0)
            except OSError:
                return True
            return False

        wait_for(fails, 10)
        read_until(device, "refused", 10)


for kind, options, grow in (
    ("ext4", (), ("resize2fs", RAM["block"])),
    ("xfs", ("-d", "size=300m"), ("xfs_growfs", f"{SCRATCH}/own")),
):

    @check(f"the file system grows: {kind}")
    def grown(kind=kind, options=options, grow=grow):
        backing("block")
        with own_fs(kind, *options) as file, attached(file, True) as device:
            bypass(device, RAM["block"])
            with Load(device) as load:
                run(*grow)
                time.sleep(0.3)
                contents = load.finish()
            has(file, contents)

    @check(f"the file system is shut down: {kind}")
    def shut_down(kind=kind):
        backing("block")
        with own_fs(kind) as file, attached(file, True) as device:
            bypass(device, RAM["block"])
            with Load(device) as load:
                time.sleep(0.2)
                contents = load.finish()
            with Fd(device, os.O_RDWR) as fd:
                os.fsync(fd.fd)
            with Fd(os.path.dirname(file), os.O_RDONLY) as directory:
                # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: without writing the journal.
                fcntl.ioctl(directory.fd, 0x8004587D, struct.pack("<I", 2))
            with contextlib.suppress(AssertionError):
                dd("if=/dev/zero", f"of={device}", "bs=4k", "count=16", f"seek={BLOCKS // 2}", "oflag=direct")
        place = mounted(RAM["block"], "own")
        contents = {block: data for block, data in contents.items() if not BLOCKS // 2 <= block < BLOCKS // 2 + 16}
        has(f"{place}/image", contents)


@check("the state of the extents names the reason")
def reasons():
    if udev_runs():
        # It would read the device at once.
        stop_udev()
    file = backing("ext4", MIB)
    with attached(file, False) as device:
        read_all(device)
        equal("buffered", extents_state(device), "no direct I/O")
    with attached(file, True) as device:
        equal("unused", extents_state(device), "idle")
        wait_for(lambda: read_all(device) or extents_state(device).startswith("in use"), 20)
        read_until(device, "in use, but unwritten blocks")
        tune(device, "extents", 0)
        equal("off", extents_state(device), "off")
        tune(device, "extents", 1)
        with Fd(file, os.O_RDWR):
            read_until(device, "foreign writer")
        noise(device, MIB)
        read_until(device, "in use", 30)
    with attached(backing("block"), True) as device:
        read_all(device)
        equal("a block device", extents_state(device), "file system")


run_checks()
