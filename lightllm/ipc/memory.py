"""Anonymous shared memory: a mapped region without a name.

Knows how to make a region that other processes reach only through an inherited file descriptor. Because it
has no name in any file system, the kernel frees it with its last descriptor: nothing can leak when processes
are killed. It knows nothing of what is stored in it (see `ring` and `lightllm.metrics.board`).
"""

import contextlib
import mmap
import os
import tempfile


class Segment:
    """Bytes behind a file descriptor, zero at first, mapped as `bytes_` and, 8 bytes a word, as `words`.

    Aligned 8-byte stores through `words` are single machine stores on x86-64 and arm64, so another process
    reads the old value or the new one, never a mixture.
    """

    def __init__(self, fd: int) -> None:
        """Maps the whole region behind `fd` and takes ownership of it. Raises OSError or ValueError."""
        os.set_inheritable(fd, False)
        self.fd = fd
        self.bytes_ = mmap.mmap(fd, os.fstat(fd).st_size)
        self._view = memoryview(self.bytes_)
        self.words = self._view.cast("Q")

    @classmethod
    def create(cls, size: int, label: str = "lightllm") -> "Segment":
        """A fresh region of `size` bytes, a multiple of 8. `label` shows up in /proc/PID/maps only."""
        fd = _anonymous_file(label)
        try:
            os.ftruncate(fd, size)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def doubles(self, start: int = 0) -> "memoryview[float]":
        """The region from byte `start` (a multiple of 8) as float64; release it before `close`."""
        return self._view[start:].cast("d")

    def close(self) -> None:
        """Unmaps and closes the descriptor; a second call does nothing."""
        if self.fd < 0:
            return
        self.words.release()
        self._view.release()
        with contextlib.suppress(BufferError):  # a view someone still holds keeps the mapping until it dies
            self.bytes_.close()
        os.close(self.fd)
        self.fd = -1


def _anonymous_file(label: str) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(label, os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp(prefix=label)
    os.unlink(path)
    return fd
