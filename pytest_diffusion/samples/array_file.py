"""The file of a store's images: a numpy array whose header has a fixed size, written in pieces at their places."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

HEADER = 128
"""Bytes before the first pixel: numpy pads the header of a four-axis array to this size."""


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


def write_at(file: int, pixels: NDArray[np.uint8], offset: int) -> None:
    """Write pixels at an offset of an open file, however many calls the system needs."""
    view = pixels.data.cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
