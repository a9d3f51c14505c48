# SPDX-License-Identifier: GPL-2.0
"""The cases of `make bench`, and their targets. No code runs here."""

from collections import namedtuple
from dataclasses import asdict, dataclass
from itertools import product

# The way a loop device is made. A `mode` of None is the mode of the case. `off` are the tunables of
# the device that are switched off.
Configuration = namedtuple("Configuration", "driver mode off", defaults=(None, ()))

CONFIGURATIONS = {
    "raw": Configuration(None),
    "loop": Configuration("loop"),
    "rnull_loop": Configuration("rnull_loop"),
    # The configurations that the series of 2014 compared, as far as this driver can imitate them.
    "loop-buffered": Configuration("loop", "buffered"),
    "loop-direct": Configuration("loop", "direct"),
    "blk-mq": Configuration("rnull_loop", "buffered", ("inline", "nowait")),
    "blk-mq-aio": Configuration("rnull_loop", "direct"),
    # The gain of each tunable: one after the other is switched on.
    "blocking": Configuration("rnull_loop", off=("inline", "remap", "extents", "nowait")),
    "nowait": Configuration("rnull_loop", off=("inline", "remap", "extents")),
    "remap": Configuration("rnull_loop", off=("inline",)),
}
ALL = ("raw", "loop", "rnull_loop")
LOOPS = ("loop", "rnull_loop")
OF_2014 = ("loop-buffered", "loop-direct", "blk-mq", "blk-mq-aio")
OF_ROUTES = ("raw", "loop", "blocking", "nowait", "remap", "rnull_loop")


@dataclass(frozen=True)
class Case:
    """One load on one stack of devices, for every target in turn.

    `work` is one of fio's, or fsync (randwrite with an fsync after each), or attach. `once`: the
    image is read from end to end once, from the disk. `cached`: the image is in the page cache
    before. `user_cache`: fio uses the page cache of the loop device."""

    work: str
    depth: int = 1
    jobs: int = 2
    block: str = "4k"
    engine: str = "libaio"
    disk: str = "ram"  # ram, null_blk, virtio
    backing: str = "ext4"  # a file on ext4 or xfs, or the block device itself: bdev
    mode: str = "direct"  # of the loop device: direct, buffered
    image: str = "filled"  # filled, sparse
    user: str = "device"  # the loop device, or ext4, xfs or squashfs on it
    cached: bool = False
    once: bool = False
    user_cache: bool = False
    cgroups: bool = False  # each job in a cgroup of its own
    cpus: int = 2
    stretch: int = 1  # runs that many times as long as other cases, because I/Os are slow
    targets: tuple = ALL
    together: str = ""  # cases with the same name share an attached device in each turn
    guard: bool = False  # guards against a regression of an earlier version
    # The targets of rnull_loop: its rate as a share of the raw one, as a multiple of the C
    # driver's, and the largest number of context switches per I/O.
    of_raw: float | None = None
    of_c: float | None = 1.0
    switches: float | None = None

    @property
    def name(self):
        stack = [self.disk, self.backing] + ([self.mode] if self.together != "2014" else [])
        stack += [self.image] if self.image != "filled" else []
        stack += [f"{self.user}-on-it"] if self.user != "device" else []
        stack = [self.together] + stack if self.together else stack
        return "-".join(stack) + " " + "-".join(self.load())

    def load(self):
        if self.work == "attach":
            return ["attach"]
        words = [self.work, self.block] + ([f"qd{self.depth}"] if self.engine != "psync" else []) + [f"j{self.jobs}"]
        words += [self.engine] if self.engine != "libaio" else []
        words += ["cached"] * self.cached + ["cold"] * self.once + ["cgroups"] * self.cgroups
        return words + ["1cpu"] * (self.cpus == 1)

    @property
    def round(self):
        return self.together and (self.together, self.disk, self.backing, self.mode) or self.name

    def describe(self):
        return asdict(self)


def quick():
    """Returns the cases that have a target or are guards."""
    ram = [
        Case("randread", 1, of_raw=0.60),
        Case("randwrite", 1, of_raw=0.50),
        Case("randread", 32, of_raw=0.80, switches=0.1),
        Case("randwrite", 32, of_raw=0.80, switches=0.1),
        Case("fsync", 1, jobs=1, of_raw=0.40),
        Case("read", 4, jobs=1, block="128k", of_raw=0.95),
        *mounted("ext4"),
        Case("randread", 1, mode="buffered", cached=True, of_c=3.0),
        Case("randread", 32, mode="buffered", cached=True, of_c=2.0),
        Case("read", 1, jobs=4, block="128k", engine="psync", mode="buffered", user="squashfs",
             once=True, user_cache=True, targets=LOOPS, guard=True),
        Case("read", 1, jobs=1, block="128k", engine="psync", mode="buffered", once=True,
             user_cache=True, guard=True),
        Case("randwrite", 32, image="sparse", targets=LOOPS, guard=True),
        Case("randread", 1, jobs=1, guard=True),
        Case("randread", 32, jobs=1, guard=True),
        Case("randread", 4, jobs=8, cgroups=True, targets=LOOPS, guard=True),
        Case("attach", jobs=1, targets=LOOPS, guard=True),
    ]
    rest = [
        *mounted("xfs"),
        Case("randread", 32, backing="bdev", of_raw=0.90, switches=0.1),
        Case("randread", 1, disk="virtio", of_raw=0.90),
        Case("randread", 32, disk="virtio", of_raw=0.97),
        Case("fsync", 1, jobs=1, disk="virtio", stretch=3, of_raw=0.90),
    ]
    one_cpu = [Case("randread", 32, cpus=1, guard=True)]
    loads = [("ram", work, 1) for work in ("randread", "randwrite", "read", "write")]
    loads += [("ram", "randread", 4), ("virtio", "randread", 1)]
    return in_order(ram + [case_of_2014(*load) for load in loads] + rest + one_cpu)


def mounted(kind):
    """Returns the cases of a file system on an image in another file system of that kind."""
    load = {"backing": kind, "user": kind, "targets": LOOPS}
    return [
        Case("randread", 1, of_c=4.0, **load),
        Case("randread", 32, of_c=1.6, **load),
        Case("randwrite", 32, of_c=1.4, **load),
        Case("fsync", 1, jobs=1, **load),
        Case("randread", 1, mode="buffered", cached=True, **load),
        Case("randread", 32, mode="buffered", cached=True, **load),
        Case("randwrite", 32, mode="buffered", **load),
    ]


def in_order(cases):
    """Sorts cases so that a disk is prepared once for all its cases."""
    order = ("ram", "null_blk", "virtio")
    return sorted(cases, key=lambda case: (order.index(case.disk), case.backing, bool(case.together)))


def case_of_2014(disk, work, jobs):
    """Returns a case of commit b5dd2f6047ca and the mails before it; it has no target."""
    return Case(work, 64, jobs, disk=disk, together="2014", targets=OF_2014, of_c=None)


def cases_of_routes():
    """Yields the cases in which the routes of requests differ most."""
    for work, depth, changes in (
        ("randread", 1, {}), ("randread", 32, {}), ("randwrite", 1, {}), ("randwrite", 32, {}),
        ("randread", 1, {"backing": "bdev"}), ("randread", 32, {"backing": "bdev"}),
        ("randread", 1, {"mode": "buffered", "cached": True}), ("randread", 32, {"mode": "buffered", "cached": True}),
    ):
        yield Case(work, depth, together="routes", targets=OF_ROUTES, of_c=None, **changes)


def full():
    """Returns the quick cases and the whole matrix, without these meaningless cases:

    - psync with more than one I/O in flight: it waits for each;
    - a sparse block device: it has no holes;
    - reads of a sparse file: nothing is read from the disk;
    - a sparse file under ext4 on the loop device: ext4 allocates blocks where it likes;
    - ext4 on a loop device with a buffered image, and psync or two jobs: the layers below and the
      device itself show the difference;
    - the raw backing beside ext4 on the loop device: it has no equivalent without a loop device."""
    cases = {case.name: case for case in quick()}
    for disk, work, jobs in product(("ram", "virtio"), ("randread", "randwrite", "read", "write"), (1, 4)):
        case = case_of_2014(disk, work, jobs)
        cases.setdefault(case.name, case)
    cases |= {case.name: case for case in cases_of_routes()}
    axes = product(
        ("ram", "null_blk", "virtio"), ("bdev", "ext4", "xfs"), ("filled", "sparse"), ("direct", "buffered"),
        ("device", "ext4"), ("libaio", "io_uring", "psync"), ("randread", "randwrite", "read", "write", "fsync"),
        (1, 32), (1, 2, 4),
    )
    for disk, backing, image, mode, user, engine, work, depth, jobs in axes:
        if engine == "psync" and depth > 1:
            continue
        if image == "sparse" and (backing == "bdev" or work.endswith("read") or user == "ext4"):
            continue
        if user == "ext4" and mode == "buffered" and (engine == "psync" or jobs == 2):
            continue
        case = Case(
            work, depth, jobs, "128k" if work in ("read", "write") else "4k", engine, disk, backing, mode, image,
            user, targets=ALL if user == "device" else LOOPS,
        )
        cases.setdefault(case.name, case)
    return in_order(cases.values())
