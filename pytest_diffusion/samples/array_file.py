"""The file of a store's images: a numpy array whose header has a fixed size, written in pieces at their places."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEADER = 128
"""Bytes before the first pixel: numpy pads the header of a four-axis array to this size."""


_BINARY: int = getattr(os, "O_BINARY", 0)
"""Windows changes line ends without it."""


def shape_of(found: bytes) -> tuple[int, ...] | None:
    """The shape in the header of an array's file; None where it cannot be read."""
    try:
        file = io.BytesIO(found)
        np.lib.format.read_magic(file)
        shape: tuple[int, ...] = np.lib.format.read_array_header_1_0(file)[0]
    except Exception:
        return None  # numpy reads the header as Python text, and a damaged one raises whatever the parser says
    return shape


def header(shape: Sequence[int]) -> bytes:
    """The header of an array of bytes of a shape. Raises ValueError where numpy writes another size."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
    if len(buffer.getvalue()) != HEADER:
        raise ValueError(f"numpy wrote a header of {len(buffer.getvalue())} bytes; expected {HEADER}.")
    return buffer.getvalue()


def _write_at(file: int, data: bytes | memoryview, offset: int) -> int:
    """Write at a place, and return how many bytes were written; in two calls where the system has no `pwrite`, as Windows."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, offset)
    os.lseek(file, offset, os.SEEK_SET)
    return os.write(file, data)


class ArrayFile:
    """An array of images, uint8 (N, 3, H, W), on disk: its header and its length tell for how many there is room."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def room(self, shape: Sequence[int]) -> int:
        """Images of this shape for which there is room by header and by length; 0 where the two do not agree."""
        try:
            with self.path.open("rb") as file:
                found, size = shape_of(file.read(HEADER)), os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return 0
        return found[0] if found is not None and found[1:] == tuple(shape) and size == HEADER + math.prod(found) else 0

    def make_room(self, count: int, shape: Sequence[int]) -> bool:
        """Set header and length; disk space is used only when pixels are written. Says whether the header was damaged."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | _BINARY, 0o644)
        try:
            head, held, found = header((count, *shape)), os.fstat(file).st_size, os.read(file, HEADER)
            if found != head:
                _write_at(file, head, 0)
            if held != (size := HEADER + count * math.prod(shape)):
                os.ftruncate(file, size)
            return bool(held) and shape_of(found) is None
        finally:
            os.close(file)

    def write(self, first: int, pixels: NDArray[np.uint8]) -> None:
        """Write images at their place, and wait until the disk has them."""
        file = os.open(self.path, os.O_WRONLY | _BINARY)
        try:
            view, offset = pixels.data.cast("B"), HEADER + first * pixels[0].nbytes
            while view:  # as many calls as the system needs
                written = _write_at(file, view, offset)
                view, offset = view[written:], offset + written
            os.fsync(file)
        finally:
            os.close(file)

    def bytes_of(self, indices: range, shape: Sequence[int]) -> Iterator[bytes]:
        """The bytes of images of this shape, piece by piece."""
        size = math.prod(shape)
        left = len(indices) * size
        with self.path.open("rb") as file:
            file.seek(HEADER + indices.start * size)
            while left > 0 and (piece := file.read(min(left, 1 << 24))):
                yield piece
                left -= len(piece)
