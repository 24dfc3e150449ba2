"""The file of images where the system has no `pwrite`, as Windows: the same bytes."""

import os

import numpy as np
import pytest

from pytest_diffusion.samples.array_file import ArrayFile

SHAPE = (3, 8, 8)


@pytest.mark.parametrize("has_pwrite", [True, False])
def test_images_are_written_at_their_places(tmp_path, monkeypatch, has_pwrite):
    if not has_pwrite:
        monkeypatch.delattr(os, "pwrite", raising=False)
        monkeypatch.delattr(os, "pread", raising=False)
    images = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
    file = ArrayFile(tmp_path / "images.npy")
    assert file.make_room(4, SHAPE) is False
    file.write(2, images[2:4])
    file.write(0, images[:2])
    # More room keeps what is there; the header is written anew.
    assert file.make_room(6, SHAPE) is False
    file.write(4, images[4:])
    assert file.room(SHAPE) == 6
    assert np.array_equal(np.load(tmp_path / "images.npy"), images)
    assert b"".join(file.bytes_of(range(1, 3), SHAPE)) == images[1:3].tobytes()


def test_a_damaged_header_is_told_and_mended(tmp_path):
    file = ArrayFile(tmp_path / "images.npy")
    file.make_room(2, SHAPE)
    with (tmp_path / "images.npy").open("r+b") as damaged:
        damaged.write(b"\0" * 16)
    assert file.room(SHAPE) == 0
    assert file.make_room(2, SHAPE) is True
    assert file.room(SHAPE) == 2
