"""Files of references, read with care: they come from elsewhere, may be huge when unpacked, and may be no files at all."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pytest_diffusion.verdicts.errors import SetupError

MAX_PIXELS = 2**26
"""Pixels of the largest image that is unpacked, 8192x8192: a file of a few kilobytes may claim to hold billions."""
BLOCK = 64
"""Images that are unpacked and resized at a time."""
_OPTION = "--diffusion-reference"


def open_image(file: Path, label: str) -> Image.Image:
    """The image of a regular file, unpacked. Raises SetupError, with the label, for anything else and for too many pixels."""
    if not file.is_file():
        raise SetupError(
            f"{_OPTION}: {label} cannot be read as an image: {'it is no regular file' if file.exists() else 'it does not exist'}."
        )
    try:
        with Image.open(file) as image:
            require_size(image.size, label)
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SetupError(f"{_OPTION}: {label} cannot be read as an image: {error}") from error


def require_size(size: tuple[int, int], label: str) -> None:
    """Raise SetupError for an image with too many pixels to be unpacked."""
    if size[0] * size[1] > MAX_PIXELS:
        side = int(MAX_PIXELS**0.5)
        raise SetupError(f"{_OPTION}: {label} has {size[0]}x{size[1]} pixels; at most {side}x{side} are read. Scale it down first.")


def image_blocks(path: Path, limit: int) -> Iterator[NDArray[Any]]:
    """The first `limit` images of the array with four axes in an `.npz`, a few at a time; nothing where there is no such array.

    Only the rows that are needed are unpacked. Raises ValueError for pickled arrays, and what a damaged file raises.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith(".npy"):
                continue
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, is_fortran, dtype = read(member)
                if dtype.hasobject:
                    raise ValueError(f"the array {name!r} is pickled, and could run code")
                if len(shape) != 4:
                    continue
                if is_fortran:
                    raise ValueError(f"the array {name!r} is stored column by column: save it with numpy.ascontiguousarray")
                left, size = min(limit, shape[0]), int(np.prod(shape[1:])) * dtype.itemsize
                while left > 0:
                    count = min(left, BLOCK)
                    yield np.frombuffer(member.read(count * size), dtype=dtype).reshape(count, *shape[1:]).copy()
                    left -= count
                return


@contextmanager
def _room_for_images() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise SetupError(
            f"{_OPTION}: the images, at the samples' size, cannot be kept in {folder}: {error}. Let TMPDIR name a folder with more room."
        ) from error


class ImageRows:
    """Images of one size, written to a temporary file as they come and mapped into memory at the end, so that many large ones fit."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="pytest-diffusion-")
        self.count = 0
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> ImageRows:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()  # what is mapped stays

    def add(self, image: torch.Tensor) -> None:
        """One more image, uint8 (3, H, W)."""
        self._shape = tuple(image.shape)
        with _room_for_images():
            self._file.write(image.contiguous().numpy().tobytes())
        self.count += 1

    def mapped(self) -> torch.Tensor:
        """All images, uint8 (N, 3, H, W), mapped from the file. Changes to them are not written."""
        with _room_for_images():
            self._file.flush()
        rows: NDArray[np.uint8] = np.memmap(self._file, dtype=np.uint8, mode="c", shape=(self.count, *self._shape))
        return torch.from_numpy(rows)
