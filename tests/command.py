#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""dist/rnull-loop, the command of administrators: its figures are those of sysfs, its explanations
name the cause, an attach is complete when it returns, and an error is one line."""
import importlib.machinery
import importlib.util
import pty
import re
import select
import tempfile
import termios
from lib import *
from tracing import bypass

COMMAND = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../dist/rnull-loop")
OWN = DRIVER == "rnull_loop"
MIB = 4


def loaded():
    """Returns the command as a module: to start Python for each call would take too long."""
    loader = importlib.machinery.SourceFileLoader("rnull_loop_command", COMMAND)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


MODULE = loaded()


def call(*arguments):
    """Calls the command in a process of its own, and returns its status and its outputs."""

    def inside():
        for number, file in enumerate(files, 1):
            os.dup2(file.fileno(), number)
        sys.argv = [COMMAND, *arguments]
        os._exit(exit_status(MODULE.main))

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        files = out, err
        status = os.waitpid(forked(inside), 0)[1]
        texts = [file.seek(0) or file.read() for file in files]
    assert "Traceback" not in texts[0] + texts[1], texts
    return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), *texts)


def exit_status(function):
    try:
        code = function()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    return code


def output(*arguments):
    """Returns the output of a command that must succeed without messages."""
    result = call(*arguments)
    equal(f"{arguments}", (result.returncode, result.stderr), (0, ""))
    return result.stdout


def value(*arguments):
    return json.loads(output(*arguments, "--json"))


def refuse(wanted, *arguments, code=1):
    """Checks that a command fails with one line that contains a text."""
    result = call(*arguments)
    equal(f"{arguments}", (result.returncode, result.stdout), (code, ""))
    line = result.stderr
    assert line.startswith("rnull-loop: ") and line.count("\n") == 1 and wanted in line, line


def explained(device):
    """Returns the reasons that keep a device from being faster, each with its command, without the
    one that each device of the C driver has."""
    found = value("explain", device)["findings"]
    return {finding["reason"]: finding["command"] for finding in found if finding["reason"] != "C driver"}


def rows(*arguments):
    """Returns the words of each row of the table that status prints."""
    return [line.split() for line in output("status", *arguments).splitlines() if re.match("/dev/loop[0-9]", line)]


@check("without a device, status is a sentence")
def none_attached():
    lines = output("status").splitlines()
    assert "rnull_loop " + (sysfs_version() or "") in lines[0] if OWN else "C driver (a module)" in lines[0], lines
    assert lines[1].startswith("No loop device is attached"), lines
    equal("devices", value("status")["devices"], [])
    assert "No loop device" in output("top", "-n", "1", "-d", "0.1")
    equal("top", value("top", "-n", "1", "-d", "0.1")["devices"], [])


def sysfs_version():
    with contextlib.suppress(OSError), open("/sys/module/rnull_loop/version", encoding="ascii") as file:
        return file.read().strip()
    return None


@check("status has the values of sysfs")
def values():
    path = image(MIB)
    with attach(path, flags=READ_ONLY | PARTSCAN, offset=4096, sizelimit=1 << 20) as fd:
        (device,) = value("status")["devices"]
        for key, name in (
            ("backing_file", "loop/backing_file"),
            ("offset", "loop/offset"),
            ("sizelimit", "loop/sizelimit"),
            ("autoclear", "loop/autoclear"),
            ("partscan", "loop/partscan"),
            ("direct_io", "loop/dio"),
            ("read_only", "ro"),
            ("block_size", "queue/logical_block_size"),
            ("extents_state", "rnull_loop/extents_state"),
        ):
            number = int(device[key]) if isinstance(device[key], bool) else device[key]
            equal(key, number if number is None else str(number), sysfs(fd.path, name))
        equal("size", device["size"], int(sysfs(fd.path, "size")) * 512)
        tunables = {name: number if (number := sysfs(fd.path, f"rnull_loop/{name}")) is None else number == "1"
                    for name in ("inline", "remap", "extents", "nowait")}  # fmt: skip
        equal("tunables", device["tunables"], tunables)
        equal("driver", device["driver"], DRIVER)
        row = [fd.path, "1M", "buffered", "-" if not OWN else rows()[0][3], "ro,partscan"]
        equal("row", rows()[0], [*row, "no", "direct", "I/O", path])


@check("status lists the attached devices by number, and others by name or --all")
def several():
    devices = [attach(image(1, f"image{number}")) for number in range(3)]
    paths = [fd.path for fd in devices]
    equal("attached", [row[0] for row in rows()], sorted(paths, key=lambda path: int(path[9:])))
    number = control(CTL_ADD, 200)
    listed = [row[0] for row in rows("--all")]
    assert f"/dev/loop{number}" in listed and set(paths) < set(listed), listed
    for argument in "200", "loop200", "/dev/loop200":
        equal(argument, rows(argument), [["/dev/loop200", *["-"] * 6]])
    wait_for(lambda: control(CTL_REMOVE, number) == number - 200)


@check("explain: buffered mode")
def buffered():
    with attached(written("ext4", MIB), False) as device:
        command = explained(device)["no direct I/O"]
        equal("command", command, f"losetup --direct-io=on {device}")
        assert f"\n    {command}\n" in output("explain", device)
        run(*command.split())
        assert "no direct I/O" not in explained(device)


@check("explain: nothing, while requests bypass the file system of an image")
def extents():
    with attached(written("ext4", MIB), True) as device:
        if not OWN:
            assert "C driver" in output("explain", device)
            equal("row", rows()[0][2:7], ["direct", "-", "-", "C", "driver"])
            return
        bypass(device, RAM["ext4"])
        equal("found", explained(device), {})
        assert "Nothing keeps it" in output("explain", device)
        equal("row", rows()[0][2], "extents")
        # The device has served requests of other routes before.
        share = value("status")["devices"][0]["fast_share"]
        assert 0 < share <= 1 and rows()[0][3] == f"{100 * share:.0f}%", share


@check("explain: the unwritten blocks of a sparse image, and a copy by its command")
def sparse():
    file = backing("ext4", MIB)
    noise(file, 1)
    device = output("attach", "--direct-io=on", file).strip()
    if not OWN:
        return
    # Reads of holes.
    read_until(device, "in use, but unwritten blocks")
    for _ in range(2):
        dd(f"if={device}", "of=/dev/null", "bs=4k", "skip=256", "count=512", "iflag=direct")
    found = explained(device)
    assert "through the file" in found, sysfs(device, "rnull_loop/stats")
    equal("limited by", value("status")["devices"][0]["limited_by"], ["unwritten blocks"])
    environment = os.environ | {"PATH": f"{os.path.dirname(COMMAND)}:{os.environ['PATH']}"}
    run("bash", "-c", f"{found['in use, but unwritten blocks']} && sync", env=environment)
    with attached(file, True) as device:
        bypass(device, RAM["ext4"])
        equal("found", explained(device), {})


@check("explain: a block device, with remap on and off")
def block_device():
    with attached(backing("block"), True) as device:
        dd(f"if={device}", "of=/dev/null", "bs=4k", "count=100", "iflag=direct")
        equal("found", explained(device), {})
        equal("method", rows()[0][2], "remap" if OWN else "direct")
        if OWN:
            tune(device, "remap", 0)
            equal("limited by", value("status")["devices"][0]["limited_by"], ["remap off"])
            run("bash", "-c", explained(device)["remap off"])
            equal("found", explained(device), {})


@check("explain: tunables and a scheduler")
def settings():
    with attached(written("ext4", MIB), True) as device:
        for name in ("inline", "extents", "nowait") if OWN else ():
            tune(device, name, 0)
            reason = "off" if name == "extents" else f"{name} off"
            run("bash", "-c", explained(device)[reason])
            equal(name, sysfs(device, f"rnull_loop/{name}"), "1")
        write_text(f"/sys/block/{device[5:]}/queue/scheduler", "mq-deadline")
        assert "scheduler mq-deadline" in value("status")["devices"][0]["limited_by"]
        run("bash", "-c", explained(device)["scheduler"])
        assert "scheduler" not in explained(device)


@check("explain: blocks that are smaller than those of direct I/O")
def small_blocks():
    if not OWN:
        skip("the C driver gives its device the larger blocks")
    low = attach(image(64, "disk"), block_size=4096)
    run("mkfs.ext4", "-q", low.path)
    path = f"{mounted(low.path, 'place')}/image"
    with open(path, "wb") as file:
        file.write(bytes(MIB << 20))
        os.fsync(file.fileno())
    with attached(path, True) as device:
        dd(f"if={device}", "of=/dev/null", "bs=512", "count=8", "skip=1", "iflag=direct")
        command = explained(device)["block size"]
        equal("command", command, f"losetup --sector-size 4096 {device}")
        run(*command.split())


@check("explain: requests that have failed")
def failures():
    place = f"{SCRATCH}/small"
    os.mkdir(place)
    run("mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", place)
    with attached(image(MIB, "small/image"), False) as device:
        command = ["dd", "if=/dev/zero", f"of={device}", "bs=1M", "oflag=direct"]
        subprocess.run(command, check=False, capture_output=True)
        if OWN:
            equal("command", explained(device)["error_nospc"], f"df {place}/image")
            assert any(text.endswith("errors") for text in value("status")["devices"][0]["limited_by"])


@check("stats are those of sysfs, or their changes")
def stats():
    with attached(backing("block"), True) as device:
        if not OWN:
            refuse("the C driver", "stats", device)
            return
        settle()
        read_all(device)
        equal("text", output("stats", device).strip(), sysfs(device, "rnull_loop/stats"))
        equal("JSON", value("stats", device), {line.split()[0]: int(line.split()[1])
                                               for line in sysfs(device, "rnull_loop/stats").splitlines()})  # fmt: skip
        equal("changes", set(value("stats", "-d", "0.2", device).values()), {0})
        load = ("dd", f"if={device}", "of=/dev/null", "bs=4k", "iflag=direct")
        with background("bash", "-c", f"while {' '.join(load)} 2>/dev/null; do :; done"):
            assert value("stats", "-d", "1", device)["submitter_remap"] > 0


@check("top shows the busiest device first")
def activity():
    with attached(image(MIB, "idle"), True) as idle, attached(image(MIB, "busy"), True) as busy:
        load = f"while dd if={busy} of=/dev/null bs=4k iflag=direct status=none; do :; done"
        with background("bash", "-c", load):
            blocks = output("top", "-n", "2", "-d", "1").strip().split("\n\n")
            found = value("top", "-n", "1", "-d", "1")["devices"]
    equal("blocks", len(blocks), 2)
    for block in blocks:
        equal("order", [line.split()[0] for line in block.splitlines()], ["DEVICE", busy, idle])
    equal("order", [device["device"] for device in found], [busy, idle])
    assert found[0]["reads_per_second"] > 0 and found[0]["latency_ms"] is not None, found
    # The counters of requests and of sectors do not change at the same time.
    assert 4000 < found[0]["read_bytes_per_second"] / found[0]["reads_per_second"] < 4200, found
    equal("idle", found[1]["reads_per_second"], 0)


@check("attach takes the options of losetup")
def options():
    path = image(MIB)
    device = output("attach", "-r", "-b", "4096", "-o", "1M", "--sizelimit", "2M", "--direct-io=on", path).strip()
    wanted = {"ro": "1", "queue/logical_block_size": "4096", "loop/offset": str(1 << 20),
              "loop/sizelimit": str(2 << 20), "size": str(2 << 11), "loop/dio": "1"}  # fmt: skip
    equal("device", {name: sysfs(device, name) for name in wanted}, wanted)
    equal("losetup", run("losetup", "-j", path, "-nO", "NAME"), device)
    equal("detach", value("detach", device), {"device": device, "state": "detached", "users": []})
    assert not is_bound(device)
    assert device == value("attach", path)["device"] and sysfs(device, "ro") == "0"


@check("attach makes a device read-only if its file cannot be written")
def unwritable():
    place = f"{SCRATCH}/place"
    os.mkdir(place)
    run("mount", "-t", "tmpfs", "tmpfs", place)
    path = image(MIB, "place/image")
    run("mount", "-o", "remount,ro", place)
    result = call("attach", path)
    equal("read-only", sysfs(result.stdout.strip(), "ro"), "1")
    assert result.returncode == 0 and "cannot be opened for writing" in result.stderr, result


@check("resize follows the file, with partitions that are in use")
def resized():
    path = numbered_image(4)
    run("sfdisk", "-q", path, input="start=2048,size=2048\n")
    first, second = (output("attach", "-P", path).strip() for _ in range(2))
    os.truncate(path, 8 << 20)
    run("sfdisk", "-q", "--no-reread", "-N", "1", path, input="start=2048,size=8192\n")
    with Fd(f"{first}p1"):
        found = value("resize", path)
        equal("found", found, [{"device": device, "size": 8 << 20} for device in (first, second)])
        for device in first, second:
            equal("partition", sysfs(device, f"{os.path.basename(device)}p1/size"), "8192")
    os.truncate(path, 6 << 20)
    equal("output", output("resize", first), f"{first} has 6M\n")
    equal("the other one", sysfs(second, "size"), str(8 << 11))
    refuse("is not attached", "resize", image(1, "other"))
    refuse("no such loop device", "resize", "loop999")


@check("attach -P returns when the partitions can be used")
def partitions():
    path = numbered_image(8)
    run("sfdisk", "-q", path, input="start=2048,size=2048\nstart=8192,size=2048\n")
    for _ in range(10):
        device = output("attach", "-P", path).strip()
        for part, first in ("p1", 2048), ("p2", 8192):
            with Fd(device + part) as fd:
                equal(part, number_at(fd, 0), first)
            assert "ID_PART_ENTRY_NUMBER" in run("udevadm", "info", device + part)
        output("detach", device)


@check("attach -P waits for the nodes without udev, and reports those that are missing")
def partitions_without_udev():
    path = numbered_image(8)
    run("sfdisk", "-q", path, input="start=2048,size=2048\n")
    # In a mount namespace of its own, where the nodes of new devices do not appear.
    script = """
        mount -t tmpfs run /run
        mkdir /tmp/dev && cp -a /dev/loop* /tmp/dev/ && mount --bind /tmp/dev /dev
        exec "$0" attach -P "$1"
    """
    device = free_device()
    command = ["unshare", "-m", "bash", "-euc", script, COMMAND, path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree("/tmp/dev")
    equal("status", (result.returncode, result.stdout), (1, ""))
    assert f"{device}p1 does not exist after 10 s; {device} stays attached" in result.stderr, result.stderr


@check("attach -P tries again if udev closes its connection")
def udev_hangs_up():
    path = numbered_image(8)
    run("sfdisk", "-q", path, input="start=2048,size=2048\n")
    os.mkdir(f"{SCRATCH}/bin")
    udevadm = f"{SCRATCH}/bin/udevadm"
    # Fails the first time, as udevadm does then.
    write_text(udevadm, f"#!/bin/sh\nmkdir {SCRATCH}/called 2>/dev/null || exec {shutil.which('udevadm')} \"$@\"\nexit 1\n")
    os.chmod(udevadm, 0o755)
    environment = {**os.environ, "PATH": f"{SCRATCH}/bin:{os.environ['PATH']}"}
    device = run(COMMAND, "attach", "-P", path, env=environment)
    assert os.path.isdir(f"{SCRATCH}/called")
    assert "ID_PART_ENTRY_NUMBER" in run("udevadm", "info", f"{device}p1")


@check("attaches in parallel take different devices")
def in_parallel():
    commands = []
    for number in range(8):
        path = image(1, f"image{number}")
        commands.append(subprocess.Popen([COMMAND, "attach", path], stdout=subprocess.PIPE, text=True))
    devices = [command.communicate(timeout=120)[0].strip() for command in commands]
    equal("files", [sysfs(device, "loop/backing_file") for device in devices],
          [f"{SCRATCH}/image{number}" for number in range(8)])  # fmt: skip
    equal("different", len(set(devices)), 8)


@check("detach of a device in use is deferred, and names the mount")
def in_use():
    device = output("attach", image(MIB)).strip()
    run("mkfs.ext4", "-q", device)
    place = mounted(device, "a place")
    found = value("detach", device)
    equal("detach", found, {"device": device, "state": "deferred", "users": [f"mounted on {place}"]})
    assert f"in use (mounted on {place})" in output("detach", device)
    assert is_bound(device) and "autoclear" in rows()[0][4]
    run("umount", place)
    wait_for(lambda: not is_bound(device))
    refuse("not attached", "detach", device)


@check("detach of a device that a task has open is deferred")
def open_elsewhere():
    with attach(image(MIB)) as fd:
        assert f"{fd.path} is in use (open)" in output("detach", fd.path)
    wait_for(lambda: not is_bound(fd.path))


@check("errors are one line, and tell what to do")
def errors():
    for command in "status", "explain", "stats", "detach":
        refuse("no such loop device", command, "/dev/loop999")
        refuse("not the name of a loop device", command, "/dev/sda\n\033[31m")
    free = free_device()
    refuse("not attached", "detach", free)
    refuse("not attached", "explain", free)
    refuse("No such file", "attach", f"{SCRATCH}/missing")
    refuse("neither a file nor a block device", "attach", "/dev/null")
    for line in "", "nothing", "top -n 0", "top -d x", "attach -b 1000 x", "detach":
        arguments = line.split()
        result = call(*arguments)
        equal(f"{arguments}", result.returncode, 2)
        assert result.stderr.startswith("usage: ") and "Traceback" not in result.stderr
    with open("/dev/full", "wb") as full:
        result = subprocess.run([COMMAND, "status"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    equal("full", (result.returncode, result.stderr), (1, "rnull-loop: output: No space left on device\n"))


@check("each command has --help")
def helps():
    for command in [], *[[name] for name in ("status", "top", "explain", "stats", "attach", "detach")]:
        assert output(*command, "--help").startswith("usage: rnull-loop")


@check("names of files cannot affect the terminal")
def names():
    name = "a \033[2J name\nwith \u202e, \u00e9, 'quotes' and {braces}"
    path = os.fsencode(image(1, name)) + b"\xff"
    os.rename(path[:-1], path)
    device = output("attach", os.fsdecode(path)).strip()
    equal("JSON", os.fsencode(value("status")["devices"][0]["backing_file"]), path)
    for arguments in ["status"], ["top", "-n", "1", "-d", "0.1"], ["explain", device]:
        text = output(*arguments)
        assert all(line.isprintable() for line in text.splitlines()), text
    row = output("status").splitlines()[-1]
    assert row.endswith(r"a \x1b[2J name\x0awith \xe2\x80\xae, é, 'quotes' and {braces}\xff"), row
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert r"\xe9" in run(COMMAND, "status", env=environment)
    os.unlink(path)
    assert output("status").rstrip().endswith(" (deleted)")


@check("users without privileges see the same, and are told what they may not do")
def unprivileged():
    with attached(image(MIB), False) as device:
        path = image(1, "other")
        settle()
        wanted = value("status")

        def inside():
            results = [call(*arguments) for arguments in (["status", "--json"], ["detach", device], ["attach", path])]
            return [(result.returncode, result.stdout, result.stderr) for result in results]

        shown, *refused = as_nobody(inside)
    equal("status", json.loads(shown[1])["devices"], wanted["devices"])
    for code, text, message in refused:
        lines = message.splitlines()
        assert code == 1 and not text and "run rnull-loop as root" in lines[-1], message


@check("devices may vanish while they are read")
def vanishing():
    path = image()

    def churn():
        while True:
            control(CTL_ADD, 300)
            with contextlib.suppress(OSError), Fd("/dev/loop300") as fd, Fd(path) as file:
                fd.ioctl(CONFIGURE, Config(fd=file.fd))
                fd.ioctl(CLR_FD)
            control(CTL_REMOVE, 300)

    def removed():
        """loop300 is removed"""
        # The process may have been killed before it detached the device.
        with contextlib.suppress(OSError), Fd("/dev/loop300") as fd:
            fd.ioctl(CLR_FD)
        control(CTL_REMOVE, 300)
        return not os.path.exists("/sys/block/loop300")

    process, met = forked(churn), set()
    for _ in range(10):
        met.add(len(value("status", "--all")["devices"]))
        value("top", "-n", "1", "-d", "0.01")
        for command in "status", "explain", "stats", "detach":
            met.add((command, call(command, "300").returncode))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    wait_for(removed)
    print(f"# met: {sorted(map(str, met))}", flush=True)


@check("300 devices")
def many():
    path, first = image(), 1000
    stop_udev()
    devices = []
    for number in range(first, first + 300):
        equal("ADD", control(CTL_ADD, number), number)
        devices.append(Fd(f"/dev/loop{number}"))
        with Fd(path) as file:
            equal("CONFIGURE", devices[-1].ioctl(CONFIGURE, Config(fd=file.fd)), 0)
    start = time.monotonic()
    equal("rows", [row[0] for row in rows()], [f"/dev/loop{number}" for number in range(first, first + 300)])
    print(f"# status of 300 devices took {time.monotonic() - start:.1f} s", flush=True)
    equal("top", len(value("top", "-n", "1", "-d", "0.1")["devices"]), 300)
    for fd in devices:
        equal("CLR_FD", fd.ioctl(CLR_FD), 0)
        fd.close()
    for number in range(first, first + 300):
        equal("REMOVE", control(CTL_REMOVE, number), 0)


def in_terminal(*arguments, act=None, lines=24, columns=60, **variables):
    """Runs a command in a terminal, calls act() with the process and the other end of the terminal
    when it has printed a table, and returns its status, its output, and whether it has restored the
    settings of the terminal."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (lines, columns))
    before = termios.tcgetattr(slave)
    environment = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm"} | variables
    process = subprocess.Popen([COMMAND, *arguments], env=environment, preexec_fn=lambda: os.login_tty(slave))
    text, end = b"", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.1)[0]:
            text += os.read(master, 65536)
        if act and b"FILE" in text and text.endswith(b"\033[J"):
            act(process, master)
            act = None
    process.kill()
    restored = termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)
    return process.wait(), text.decode(), restored


@check("on a terminal, a table fits, and has colours unless NO_COLOR is set")
def terminal():
    name = "a long name " * 15 + "\u6f22\u5b57.img"
    with attached(image(MIB, name), False):
        for columns in 70, 100, 40:
            code, text, _ = in_terminal("status", columns=columns, NO_COLOR="1")
            equal("status", code, 0)
            row = text.splitlines()[-1]
            assert len(row) <= columns and "\033" not in text, text
            assert columns < 70 or "..." in row and row.endswith(".img"), row
        assert "\033[33mbuffered" in in_terminal("status", columns=100)[1]
        assert "\033" not in output("status") and name in output("status")


@check("top restores the terminal when it quits by q, Ctrl-C or a count")
def quits():
    files = [attach(image(1, f"image{number}")) for number in range(12)]
    for what, act, wanted, arguments in (
        ("q", lambda _, terminal: os.write(terminal, b"q"), 0, []),
        ("Ctrl-C", lambda _, terminal: os.write(terminal, b"\x03"), 0, []),
        ("SIGTERM", lambda process, _: process.terminate(), 143, []),
        ("a count", None, 0, ["-n", "2"]),
    ):
        code, text, restored = in_terminal("top", "-d", "0.5", *arguments, act=act, lines=10, columns=100)
        equal(f"top, {what}", (code, restored), (wanted, True))
        assert text.startswith("\033[?1049h\033[?25l") and text.endswith("\033[?25h\033[?1049l"), text
        assert "and 5 more" in text, text
    del files


run_checks()
