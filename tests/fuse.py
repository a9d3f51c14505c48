# SPDX-License-Identifier: GPL-2.0
"""A FUSE file system with one file in memory, which fails or delays operations on request."""
import ctypes
import errno
import mmap
import os
import struct
import time
from lib import LIBC, SCRATCH, run, wait_for

LOOKUP, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 1, 3, 4, 14, 15, 16, 17, 18, 20
FLUSH, INIT, OPENDIR, RELEASEDIR, FORGET, INTERRUPT, DESTROY = 25, 26, 27, 29, 2, 36, 38
BATCH_FORGET, FALLOCATE = 42, 43


class _Fault(ctypes.Structure):
    """The fault of one operation; shared with the server."""

    _fields_ = [
        ("error", ctypes.c_uint32),
        ("every", ctypes.c_uint32),
        ("delay_ms", ctypes.c_uint32),
        ("calls", ctypes.c_uint32),
        ("failed", ctypes.c_uint32),
    ]


class Server:
    """The file system, mounted in the scratch directory; its file is `path`."""

    def __init__(self, mib, name="fuse"):
        run("modprobe", "fuse")
        self.place = f"{SCRATCH}/{name}"
        self.path = f"{self.place}/image"
        os.makedirs(self.place, exist_ok=True)
        shared = mmap.mmap(-1, ctypes.sizeof(_Fault) * 64)
        self._faults = (_Fault * 64).from_buffer(shared)
        self.size = mib << 20
        self._fd = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        if LIBC.mount(b"test", self.place.encode(), b"fuse.test", 6, options.encode()):
            raise OSError(ctypes.get_errno(), "mount of FUSE")
        if not os.fork():
            try:
                # The server must not keep open what the test closes.
                os.closerange(3, self._fd)
                os.closerange(self._fd + 1, 4096)
                self._serve()
            finally:
                os._exit(0)
        os.close(self._fd)
        wait_for(lambda: os.path.exists(self.path))

    def fail(self, operation, error, every=1):
        """Fails each call of an operation, or every Nth one, with an error; 0 is none."""
        self._faults[operation].every = every
        self._faults[operation].error = error

    def delay(self, operation, milliseconds):
        """Delays each call of an operation."""
        self._faults[operation].delay_ms = milliseconds

    def failed(self, operation):
        """Returns the number of failed calls of an operation."""
        return self._faults[operation].failed

    def _serve(self):
        self._data = bytearray(self.size)
        while True:
            try:
                request = os.read(self._fd, 1 << 21)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return
            _, operation, unique, node = struct.unpack_from("IIQQ", request)
            if operation in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            error, body = self._answer(operation, node, request[40:])
            try:
                os.write(self._fd, struct.pack("IiQ", 16 + len(body), -error, unique) + body)
            except OSError as failure:
                # The caller has been killed.
                if failure.errno != errno.ENOENT:
                    raise

    def _answer(self, operation, node, body):
        """Returns the error and the body of an answer."""
        fault = self._faults[operation]
        fault.calls += 1
        if fault.delay_ms:
            time.sleep(fault.delay_ms / 1000)
        if fault.error and fault.calls % fault.every == 0:
            fault.failed += 1
            return fault.error, b""
        handler = getattr(self, f"_do_{operation}", None)
        if handler:
            return handler(node, body)
        return (0, b"") if operation in (RELEASE, FLUSH, RELEASEDIR, FSYNC, DESTROY) else (errno.ENOSYS, b"")

    def _attributes(self, node):
        mode, size = (0o40755, 0) if node == 1 else (0o100666, self.size)
        return struct.pack("6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _do_26(self, _node, body):
        # The accepted features of the kernel: big writes, asynchronous reads.
        flags = struct.unpack_from("4I", body)[3] & (1 | 1 << 5)
        return 0, struct.pack("4I2H2I2H2I", 7, 31, 1 << 17, flags, 64, 48, 1 << 17, 1, 32, 0, 0, 0) + bytes(24)

    def _do_1(self, _node, body):
        if body.rstrip(b"\0") != b"image":
            return errno.ENOENT, b""
        return 0, struct.pack("4Q2I", 2, 0, 3600, 3600, 0, 0) + self._attributes(2)

    def _do_3(self, node, _body):
        return 0, struct.pack("QII", 3600, 0, 0) + self._attributes(node)

    _do_4 = _do_3

    def _do_14(self, _node, _body):
        # FOPEN_DIRECT_IO: the kernel caches nothing, so that each error reaches the caller.
        return 0, struct.pack("QII", 1, 1, 0)

    def _do_27(self, _node, _body):
        return 0, struct.pack("QII", 1, 0, 0)

    def _do_15(self, _node, body):
        _, offset, size = struct.unpack_from("QQI", body)
        return 0, bytes(self._data[offset : offset + size])

    def _do_16(self, _node, body):
        _, offset, size = struct.unpack_from("QQI", body)
        self._data[offset : offset + size] = body[40 : 40 + size]
        return 0, struct.pack("II", size, 0)

    def _do_17(self, _node, _body):
        return 0, struct.pack("5Q4I6I", 1 << 20, 1 << 19, 1 << 19, 100, 50, 4096, 255, 4096, 0, *[0] * 6)

    def _do_43(self, _node, body):
        _, offset, size = struct.unpack_from("3Q", body)
        self._data[offset : offset + size] = bytes(size)
        return 0, b""
