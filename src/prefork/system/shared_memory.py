"""Memory that one process shares with its children, in parts: each child can write to one part, and read them all.

Each part is a file of its own (memfd_create(2)). In one file, a child could move its writable mapping over any page of
the others (remap_file_pages(2), mremap(2)), despite mprotect(2). See `scoreboard.py` for what the parts hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import mmap
import os
from collections.abc import Sequence

from ..core.count_table import Cells
from .descriptors import Descriptor

WORD = 8
PAGE_WORDS = mmap.PAGESIZE // WORD
# asm-generic/mman.h; the mmap module has some of them from Python 3.13 on.
_MAP_FIXED, _MAP_NORESERVE, _MADV_REMOVE, _PROT_NONE = 0x10, 0x4000, 9, 0
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class SharedMemory:
    """Parts of `words` words each, in whole pages, one after the other in `cells`. Its maker can write all of it.

    A child calls `become_writer` before it runs untrusted code. No descriptor stays open by which a part could be
    mapped again or truncated. Without memfd (Linux 3.17, some sandboxes) or /proc there is one mapping, which every
    child can write. Raises OSError (ENOMEM) if there is no memory.
    """

    def __init__(self, words: Sequence[int]) -> None:
        self._starts = [0, *itertools.accumulate(words)][:-1]
        self._words = list(words)
        self._size = sum(words) * WORD
        self._readable = 0
        self._writable = _map(self._size, _PROT_NONE, mmap.MAP_PRIVATE | _MAP_NORESERVE)
        try:
            self._map_parts()
        except OSError:
            self.close()
            self._readable = 0
            self._writable = _map(self._size, _READ_WRITE, mmap.MAP_SHARED | _MAP_NORESERVE)
        self.cells: Cells = _cells(self._writable, self._size)

    def start(self, part: int) -> int:
        """Return the index of a part's first word in `cells`."""
        return self._starts[part]

    def clear(self, part: int) -> None:
        """Set all words of a part to zero, and return its memory to the system."""
        start, size = self._starts[part] * WORD, self._words[part] * WORD
        if _libc().madvise(self._writable + start, size, _MADV_REMOVE) != 0:
            ctypes.memset(self._writable + start, 0, size)

    def become_writer(self, part: int) -> Cells:
        """Keep only the right to write to this part, for good, and return the part, from index 0. Call it in a child.

        Afterwards `cells` is read-only. Earlier references to it are unmapped: to touch one crashes the process.
        """
        start, size = self._starts[part] * WORD, self._words[part] * WORD
        own = _cells(self._writable + start, size)
        if self._readable:
            _unmap(self._writable, start)
            _unmap(self._writable + start + size, self._size - start - size)
            self.cells = _cells(self._readable, self._size)
        return own

    def close(self) -> None:
        for address in (self._writable, self._readable):
            if address:
                _unmap(address, self._size)

    def _map_parts(self) -> None:
        self._readable = _map(self._size, _PROT_NONE, mmap.MAP_PRIVATE | _MAP_NORESERVE)
        for start, words in zip(self._starts, self._words, strict=True):
            with contextlib.closing(_make_file(words * WORD)) as file:
                # A mapping of a writable descriptor could be made writable again, so open a read-only one.
                path = f"/proc/self/fd/{file.fileno()}"
                with contextlib.closing(Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))) as reading:
                    flags = mmap.MAP_SHARED | _MAP_FIXED
                    _map(words * WORD, _READ_WRITE, flags, file.fileno(), self._writable + start * WORD)
                    _map(words * WORD, mmap.PROT_READ, flags, reading.fileno(), self._readable + start * WORD)


def whole_pages(words: int) -> int:
    return -(-words // PAGE_WORDS) * PAGE_WORDS


def _make_file(size: int) -> Descriptor:
    """Make a memory file. Its size is final once its descriptors are closed.

    If it could shrink, reading beyond its end would kill every process that does.
    """
    if not hasattr(os, "memfd_create"):
        raise OSError("no memfd")
    file = Descriptor(os.memfd_create("prefork-scoreboard", os.MFD_CLOEXEC))
    try:
        os.ftruncate(file.fileno(), size)
    except OSError:
        file.close()
        raise
    return file


@functools.cache
def _libc() -> ctypes.CDLL:
    # Not the mmap module, because its objects keep a duplicate of the descriptor and so could map the file again.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _map(size: int, protection: int, flags: int, fd: int = -1, address: int | None = None) -> int:
    anonymous = mmap.MAP_ANONYMOUS if fd < 0 else 0
    mapped: int | None = _libc().mmap(address, size, protection, flags | anonymous, fd, 0)
    if mapped is None or mapped == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "shared memory")
    return mapped


def _unmap(address: int, size: int) -> None:
    if size:
        _libc().munmap(address, size)


def _cells(address: int, size: int) -> Cells:
    return (ctypes.c_int64 * (size // WORD)).from_address(address)
