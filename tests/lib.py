#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Shared by the Python tests: the ABI, devices, images and RAM disks, cgroups, and the clean-up
after each case. New tests use it instead of lib.sh.

As a program: lib.py COMMAND NUMBER sends a command, such as LOOP_CTL_REMOVE, to /dev/loop-control,
or to the control node that the environment names as CONTROL.
"""
import collections
import contextlib
import ctypes
import errno
import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import ktap

SET_FD, CLR_FD = 0x4C00, 0x4C01
SET_STATUS, GET_STATUS = 0x4C02, 0x4C03
SET_STATUS64, GET_STATUS64 = 0x4C04, 0x4C05
CHANGE_FD, SET_CAPACITY, SET_DIRECT_IO = 0x4C06, 0x4C07, 0x4C08
SET_BLOCK_SIZE, CONFIGURE = 0x4C09, 0x4C0A
CTL_ADD, CTL_REMOVE, CTL_GET_FREE = 0x4C80, 0x4C81, 0x4C82
READ_ONLY, AUTOCLEAR, PARTSCAN, DIRECT_IO = 1, 4, 8, 16

# The options by which fio verifies its writes, and fails at the first difference. Overlapping
# writes in flight take effect in any order (docs/differences.md), so fio must not submit any.
VERIFIED = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--serialize_overlap=1"]

# The RAM disks and their uses. XFS needs at least 300 MiB.
RAM = {"ext4": "/dev/ram0", "xfs": "/dev/ram1", "block": "/dev/ram2"}
RAM_MIB = 320
MKFS = {"ext4": ["-b", "4096", "-E", "lazy_itable_init=0,nodiscard"], "xfs": ["-K", "-i", "exchange=1"]}

CGROUPS = "/sys/fs/cgroup"
# The names of udev and its workers, for pgrep.
UDEV = r"systemd-udevd|\(udev-worker\)"
LIBC = ctypes.CDLL(None, use_errno=True)
DRIVER = "rnull_loop" if os.path.exists("/sys/module/rnull_loop") else "loop"


class Info(ctypes.Structure):
    """struct loop_info64"""

    _fields_ = [
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("sizelimit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_uint8 * 32),
        ("init", ctypes.c_uint64 * 2),
    ]


class OldInfo(ctypes.Structure):
    """struct loop_info"""

    _fields_ = [
        ("number", ctypes.c_int),
        ("device", ctypes.c_ulong),
        ("inode", ctypes.c_ulong),
        ("rdevice", ctypes.c_ulong),
        ("offset", ctypes.c_int),
        ("encrypt_type", ctypes.c_int),
        ("encrypt_key_size", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_uint8 * 32),
        ("init", ctypes.c_ulong * 2),
        ("reserved", ctypes.c_char * 4),
    ]


class Config(ctypes.Structure):
    """struct loop_config"""

    _fields_ = [
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", Info),
        ("reserved", ctypes.c_uint64 * 8),
    ]


assert ctypes.sizeof(Info) == 232 and ctypes.sizeof(Config) == 304


class Fd:
    """An open file, which is closed at the end of a `with`, or when nothing refers to it any more."""

    fd = -1

    def __init__(self, path, flags=os.O_RDWR):
        self.fd = os.open(path, flags | os.O_CLOEXEC)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()

    def fileno(self):
        return self.fd

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def ioctl(self, command, argument=0):
        """Returns the result of the ioctl, or minus the name of its error, such as -EBUSY."""
        if isinstance(argument, ctypes.Structure):
            value = ctypes.byref(argument)
        else:
            value = ctypes.c_ulong(argument)
        result = LIBC.ioctl(self.fd, ctypes.c_ulong(command), value)
        number = ctypes.get_errno()
        # Numbers that are internal to the kernel have no name.
        return result if result >= 0 else f"-{errno.errorcode.get(number, number)}"


class Log:
    """The lines of the kernel's log since the object was made."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)

    def lines(self, part=""):
        """Returns the lines with a part that are new since the last call."""
        found = []
        while True:
            try:
                line = os.read(self.fd, 8192).decode()
            except BlockingIOError:
                return [line for line in found if part in line]
            found.append(line)


def control(command, number=0):
    """Sends a command to /dev/loop-control."""
    with Fd(os.environ.get("CONTROL", "/dev/loop-control")) as fd:
        return fd.ioctl(command, number)


def free_device():
    """Returns the path of a device that is not bound."""
    number = control(CTL_GET_FREE)
    assert isinstance(number, int), f"CTL_GET_FREE: {number}"
    path = f"/dev/loop{number}"
    wait_for(lambda: os.path.exists(path))
    return path


def sysfs(device, name):
    """Returns an attribute of the device in sysfs, or None."""
    try:
        with Fd(f"/sys/block/{os.path.basename(device)}/{name}", os.O_RDONLY) as file:
            return os.read(file.fd, 4096).decode().rstrip("\n")
    except OSError as error:
        # The attribute does not exist, or is being removed.
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return None
        raise


def is_bound(device):
    return sysfs(device, "loop/backing_file") is not None


def attach(path, mode=os.O_RDWR, device_mode=os.O_RDWR, block_size=0, **info):
    """Attaches a file to a free device, and returns the open device, with its name as `path`."""
    device = free_device()
    fd = Fd(device, device_mode)
    fd.path = device
    with Fd(path, mode) as file:
        config = Config(fd=file.fd, block_size=block_size, info=Info(**info))
        equal("LOOP_CONFIGURE", fd.ioctl(CONFIGURE, config), 0)
    return fd


def attach_partitioned(path, *partitions, **arguments):
    """Writes a DOS table of partitions to an image, each by its start and size in sectors, attaches
    it like attach(), and returns when the partitions exist."""
    table = "".join(f"start={start},size={size}\n" for start, size in partitions)
    run("sfdisk", "-q", path, input=f"label: dos\n{table}")
    fd = attach(path, flags=PARTSCAN, **arguments)
    wait_for(lambda: os.path.exists(f"{fd.path}p{len(partitions)}"))
    settle()
    return fd


def detach(device):
    """Sends LOOP_CLR_FD, and waits until the device is unbound."""
    with Fd(device) as fd:
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
    wait_for(lambda: not is_bound(device))


@contextlib.contextmanager
def attached(path, direct, *options):
    """Attaches a file by losetup, yields the path of the device, and detaches it. After a failure,
    the clean-up of the case does."""
    device = run("losetup", "-f", "--show", f"--direct-io={'on' if direct else 'off'}", *options, path)
    yield device
    detach(device)


def wait_for(condition, seconds=10):
    """Waits until the condition is true. The time limit is longer on slow kernels."""
    seconds *= 4 if SLOW else 1
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition.__doc__ or condition}")
        time.sleep(0.05)


def read_all(device):
    dd(f"if={device}", "of=/dev/null", "bs=1M", "iflag=direct")


def extents_state(device):
    return sysfs(device, "rnull_loop/extents_state")


def read_until(device, wanted, seconds=20):
    """Reads the device, which makes the driver learn the extents, until these are in a state."""
    wait_for(lambda: read_all(device) or extents_state(device) == wanted, seconds)


def equal(what, got, wanted):
    assert got == wanted, f"{what}: got {got!r}, wanted {wanted!r}"


def image(mib=1, name="image"):
    """Makes an image file of zeroes in the scratch directory, or at an absolute path, and returns
    its path."""
    path = os.path.join(SCRATCH, name)
    with open(path, "wb") as file:
        file.truncate(mib << 20)
    return path


def numbered_image(mib=1, name="image", first=0):
    """Makes an image whose every sector begins with its number, counted from `first`."""
    path = image(mib, name)
    with open(path, "r+b") as file:
        file.write(b"".join((first + n).to_bytes(512, "little") for n in range(mib << 11)))
    return path


def backing(kind, mib=1):
    """Makes a backing on a RAM disk, and returns its path: the disk itself with its old content
    ("block"), or a new sparse file on a file system ("ext4", "xfs")."""
    if not os.path.exists("/sys/module/brd"):
        run("modprobe", "brd", f"rd_nr={len(RAM)}", f"rd_size={RAM_MIB << 10}")
    if kind == "block":
        return RAM[kind]
    place = f"{KEPT}/{kind}"
    if not os.path.ismount(place):
        os.makedirs(place, exist_ok=True)
        run(f"mkfs.{kind}", "-q", *MKFS[kind], RAM[kind])
        run("mount", RAM[kind], place)
    return image(mib, f"{place}/image")


def number_at(fd, sector):
    """Returns the number at the beginning of a sector, see numbered_image()."""
    return int.from_bytes(os.pread(fd.fd, 512, sector * 512)[:8], "little")


def status(fd):
    info = Info()
    equal("GET_STATUS64", fd.ioctl(GET_STATUS64, info), 0)
    return info


def run(*command, **arguments):
    """Runs a program that must succeed, and returns its output."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, **arguments)
    assert result.returncode == 0, f"{command}: {result.returncode}: {result.stdout}{result.stderr}"
    return result.stdout.strip()


def dd(*operands):
    run("dd", *operands, "status=none")


def noise(path, mib):
    """Fills the beginning of a file with random data."""
    dd("if=/dev/urandom", f"of={path}", "bs=1M", f"count={mib}", "conv=notrunc,fsync")


def written(kind, mib):
    """Makes a backing file as backing() does, full of random data, and returns its path."""
    file = backing(kind, mib)
    noise(file, mib)
    return file


@contextlib.contextmanager
def background(*command):
    """Runs a program in the background, and kills it at the end unless it has ended."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def write_text(path, text):
    """Writes a setting of the kernel."""
    with open(path, "w", encoding="ascii") as file:
        file.write(str(text))


def tune(device, tunable, value):
    """Sets a tunable of a device of rnull_loop."""
    write_text(f"/sys/block/{os.path.basename(device)}/rnull_loop/{tunable}", value)


@contextlib.contextmanager
def cgroup(controllers):
    """Makes a cgroup with controllers, such as "+io +memory", yields its directory, and kills its
    processes at the end."""
    write_text(f"{CGROUPS}/cgroup.subtree_control", controllers)
    group = f"{CGROUPS}/rnull_loop_test"
    os.mkdir(group)
    try:
        yield group
    finally:
        write_text(f"{group}/cgroup.kill", 1)
        wait_for(lambda: _is_removed(group), 30)


def _is_removed(group):
    """Removes a cgroup, and returns whether that worked: its last process may still be exiting."""
    with contextlib.suppress(OSError):
        os.rmdir(group)
    return not os.path.exists(group)


def in_cgroup(group, *command):
    """Returns the command line that runs a command in a cgroup."""
    return "bash", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "-", group, *command


def settle():
    """Waits until udev has no event left, so that only the test has devices open."""
    run("udevadm", "settle")


def udev_runs():
    """Returns whether udev runs, or one of its workers, which may live on for a moment."""
    return subprocess.run(["pgrep", "-x", UDEV], check=False, stdout=subprocess.DEVNULL).returncode == 0


def stop_udev():
    """Stops udev, because it would open each of many devices. It is started again after the
    test."""
    settle()
    run("udevadm", "control", "--exit")
    try:
        wait_for(lambda: not udev_runs(), 15)
    except AssertionError:
        # Seen once. A task that waits in the kernel survives this, too.
        print("# udev did not exit: " + run("ps", "-eo", "stat,wchan:32,args").replace("\n", "\n# "))
        subprocess.run(["pkill", "-KILL", "-x", UDEV], check=False)
        wait_for(lambda: not udev_runs(), 15)
    # dmsetup would wait for udev.
    os.environ["DM_DISABLE_UDEV"] = "1"


def mounted(source, name, *options):
    """Mounts a file system in the scratch directory, and returns the mount point."""
    place = f"{SCRATCH}/{name}"
    os.makedirs(place, exist_ok=True)
    run("mount", *options, source, place)
    return place


def forked(function, *arguments):
    """Calls a function in another process, and returns the id of the process. Its status is 0, or 1
    after an exception, which is printed."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        function(*arguments)
        status = 0
    except BaseException:  # pylint: disable=broad-except
        print("# " + traceback.format_exc().rstrip().replace("\n", "\n# "), flush=True)
    finally:
        os._exit(status)


def as_nobody(function):
    """Returns the result of a function in a process without privileges."""

    def inside():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os.write(writing, json.dumps(function()).encode())

    reading, writing = os.pipe()
    pid = forked(inside)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    equal("status of the process", os.waitpid(pid, 0)[1], 0)
    return json.loads(text)


def in_own_namespace(function):
    """Works like as_nobody(), but as root with all capabilities in a user namespace of its own."""

    def inside():
        # CLONE_NEWUSER; PR_SET_DUMPABLE, because otherwise the process may not write its own maps
        uid = os.getuid()
        LIBC.prctl(4, 1)
        equal("unshare", LIBC.unshare(0x10000000), 0)
        for name, text in ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        equal("user", os.getuid(), 0)
        with open("/proc/self/status", encoding="ascii") as file:
            effective = next(line for line in file if line.startswith("CapEff:"))
        # CAP_SYS_ADMIN
        assert int(effective.split()[1], 16) >> 21 & 1, effective
        return function()

    return as_nobody(inside)


def program(name, *flags):
    """Builds tests/programs/NAME.c, and returns the path of the program."""
    path = f"{SCRATCH}/{name}"
    source = f"{os.path.dirname(os.path.abspath(__file__))}/programs/{name}.c"
    run("gcc-14", "-O2", "-Wall", "-Wextra", "-Werror", "-static", *flags, "-o", path, source)
    return path


class Events:
    """The kernel's events of block devices since the object was made."""

    def __init__(self):
        # 15: NETLINK_KOBJECT_UEVENT, group 1: from the kernel
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
        self.socket.bind((0, 1))
        self.socket.setblocking(False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def all(self):
        """Returns the variables of the events since the last call."""
        found = []
        while True:
            try:
                lines = self.socket.recv(65536).decode().split("\0")
            except BlockingIOError:
                return found
            found.append(dict(line.split("=", 1) for line in lines if "=" in line))

    def of(self, device):
        """Returns the events of one device since the last call."""
        name = os.path.basename(device)
        return [event for event in self.all() if event.get("DEVNAME") == name]


# The seed of everything random in a test, which shows it in the descriptions of its cases; and the
# number of repetitions, as a multiple of the number that suits a run of all tests.
SEED = int(os.environ.get("SEED", random.getrandbits(30)))
ROUNDS = int(os.environ.get("ROUNDS", 1))

# Set on the lab's own kernels, whose checks make everything several times slower.
SLOW = os.uname().release.endswith(("-debug", "-kcsan"))

# The directory of a case, and that of the file systems on RAM disks, which last until the test
# ends: state.sh leaves out mounts whose path begins with the first.
SCRATCH = f"/tmp/{os.path.basename(sys.argv[0])}.scratch"
KEPT = f"{SCRATCH}.kept"
_checks = []
_counts = collections.Counter()


def count(what, number):
    """Adds to a count of the case (operations, faults, bytes, ...), for the summary of
    scripts/soak."""
    _counts[what] += number


def check(description, better=""):
    """Declares a function as a case; `better` is the reason why the C driver is known to fail
    it."""

    def add(function):
        _checks.append((ktap.Case(description, better if DRIVER == "loop" else ""), function))
        return function

    return add


class Skip(Exception):
    """Ends a case that is skipped."""


def skip(reason):
    """Skips the case."""
    raise Skip(reason)


def skip_all(reason):
    """Skips the whole test."""
    _end()
    sys.exit(ktap.skip_all(reason))


def _state(command, *arguments, **options):
    """Runs state.sh."""
    script = f"{os.path.dirname(os.path.abspath(__file__))}/state.sh"
    command = ["bash", script, command, *arguments]
    return subprocess.run(command, text=True, check=False, stdout=subprocess.PIPE, **options)


def _restore(before, *scratch):
    """Restores a state, and returns a report of what could not be restored."""
    result = _state("restore", *scratch, input=before)
    return result.stdout or ("state.sh failed" if result.returncode else "")


def _unmount_below(directory):
    """Unmounts the file systems below a directory, the last mounted first."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        places = [line.split()[1] for line in mounts]
    for place in reversed(places):
        if place.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", place], check=False)


def release():
    """Detaches all devices, and unmounts the file systems that a case has mounted."""
    subprocess.run(["losetup", "-D"], check=False)
    _unmount_below(SCRATCH)


def _clean():
    """Removes what a case has left, restores its settings, and returns a report of what it could
    not restore."""
    release()
    shutil.rmtree(SCRATCH, ignore_errors=True)
    if os.path.isdir(KEPT):
        subprocess.run(["find", KEPT, "-mindepth", "2", "-delete"], check=False)
    return _restore(_BEFORE_CASES, SCRATCH)


def _end():
    """Removes what the test has left, and restores the state before it."""
    _clean()
    _unmount_below(KEPT)
    shutil.rmtree(KEPT, ignore_errors=True)
    for line in _restore(_BEFORE).splitlines():
        print(f"# left behind: {line}", flush=True)


def _result(function):
    """Runs a case, cleans up, and returns the arguments of ktap.report()."""
    os.makedirs(SCRATCH, exist_ok=True)
    start = time.monotonic()
    log = ""
    try:
        function()
        result, note = "passed", f"{round((time.monotonic() - start) * 1000)} ms"
    except Skip as reason:
        result, note = "skipped", str(reason)
    except Exception:  # pylint: disable=broad-except
        result, note, log = "failed", "", traceback.format_exc()
    finally:
        # The traceback has kept files open, and a device that is open is not detached.
        if log:
            gc.collect()
        left = _clean()
    return ("left", "", log + left) if left else (result, note, log)


def _terminate(*_):
    """Ends the test, which cleans up; timeout(1) may send the signal twice."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.exit(143)


def run_checks():
    """Runs all cases, or $SOME of them, prints KTAP, and exits with kselftest's status."""
    signal.signal(signal.SIGTERM, _terminate)
    cases, results = ktap.chosen(_checks, SEED), []
    ktap.begin(len(cases))
    try:
        for number, (case, function) in enumerate(cases, 1):
            results.append(ktap.report(number, case, *_result(function)))
    finally:
        _end()
    sys.exit(ktap.end(results, _counts))


if __name__ != "__main__":
    _BEFORE, _BEFORE_CASES = (_state("show", *scratch).stdout for scratch in ((), (SCRATCH,)))
    assert _BEFORE and _BEFORE_CASES, "state.sh shows nothing"
else:
    outcome = control(globals()[sys.argv[1].removeprefix("LOOP_")], int(sys.argv[2]))
    print(outcome)
    sys.exit(isinstance(outcome, str))
