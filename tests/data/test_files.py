"""References come from elsewhere: files that are none, that unpack to gigabytes, or that are nested without end."""

import io
import os
import resource
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pytest_diffusion.data.files import BLOCK, MAX_PIXELS, ImageRows, image_blocks, open_image, require_size
from pytest_diffusion.data.prompts import read_prompts
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.verdicts.errors import SetupError


def load(path):
    return load_reference(str(path), height=8, width=8, limit=100)


def images(folder, count):
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")


def bomb(path, side):
    """A grey PNG of side x side zeros, whose file is a thousandth of its pixels."""
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(side + 1)) for _ in range(side)) + packed.flush()

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_an_image_that_unpacks_to_gigabytes_is_refused_unpacked(tmp_path):
    images(tmp_path / "set", 5)
    bomb(tmp_path / "set" / "bomb.png", 8300)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SetupError, match=r"bomb\.png has 8300x8300 pixels; at most 8192x8192 are read"):
        load(tmp_path / "set")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"
    assert MAX_PIXELS == 8192 * 8192


def test_a_pipe_is_no_image(tmp_path):
    images(tmp_path / "set", 5)
    os.mkfifo(tmp_path / "set" / "pipe.png")
    with pytest.raises(SetupError, match=r"pipe\.png cannot be read as an image: it is no regular file"):
        load(tmp_path / "set")
    with pytest.raises(SetupError, match="nowhere cannot be read as an image: it does not exist"):
        open_image(tmp_path / "nowhere", "nowhere")


def first_images(path, limit):
    return np.concatenate(list(image_blocks(path, limit)))


def test_only_the_images_that_are_needed_are_unpacked(tmp_path):
    whole = np.arange(7 * 4 * 5 * 3, dtype=np.uint8).reshape(7, 4, 5, 3)
    np.savez(tmp_path / "a.npz", labels=np.zeros((10, 2)), arr_0=whole)
    np.testing.assert_array_equal(first_images(tmp_path / "a.npz", 3), whole[:3])
    np.testing.assert_array_equal(first_images(tmp_path / "a.npz", 99), whole)
    np.savez(tmp_path / "b.npz", mu=np.zeros(3))
    assert list(image_blocks(tmp_path / "b.npz", 3)) == []
    # An array that claims a million images of which two are there is read as far as is needed, and then no further.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 64, 64, 3)})
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(2 * 64 * 64 * 3))
    assert first_images(tmp_path / "c.npz", 2).shape == (2, 64, 64, 3)
    np.savez(tmp_path / "d.npz", arr_0=np.asfortranarray(np.zeros((2, 3, 4, 3), dtype=np.uint8)))
    with pytest.raises(ValueError, match="stored column by column"):
        first_images(tmp_path / "d.npz", 2)
    np.savez(tmp_path / "e.npz", arr_0=np.full((2, 2, 2, 2), None, dtype=object))
    with pytest.raises(ValueError, match="is pickled"):
        first_images(tmp_path / "e.npz", 2)


def test_images_come_in_blocks_and_lie_in_a_file(tmp_path, monkeypatch):
    """Ten thousand large images of an archive, or of a function, do not lie in memory."""
    mapped, own = [], ImageRows.mapped
    monkeypatch.setattr(ImageRows, "mapped", lambda rows: mapped.append(own(rows)) or mapped[-1])
    count = 2 * BLOCK + 3
    whole = np.random.default_rng(0).integers(0, 255, (count, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", whole)
    blocks = list(image_blocks(tmp_path / "a.npz", count - 1))
    assert [len(block) for block in blocks] == [BLOCK, BLOCK, 2]
    reference = load_reference(str(tmp_path / "a.npz"), height=6, width=5, limit=count - 1)
    assert reference.sizes == {"5x6": count - 1}
    np.testing.assert_array_equal(reference.images.numpy(), whole[:-1].transpose(0, 3, 1, 2))
    assert len(mapped) == 1


def test_a_full_temporary_folder_is_not_the_images_fault(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", np.zeros((9, 8, 8, 3), dtype=np.uint8))

    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr("pytest_diffusion.data.files.tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(SetupError, match=r"the images, at the samples' size, cannot be kept in .*No space left.*Let TMPDIR name"):
        load(tmp_path / "a.npz")


def test_rows_of_images_are_mapped():
    made = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with ImageRows() as rows:
        for image in made:
            rows.add(image)
        found = rows.mapped()
    assert torch.equal(found, made)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a red circle\na blue square\n", "has the columns 'a red circle'; expected some of .*Is its header line missing"),
        ("a.csv", "prompt;image\na;b\n", "separated by ';': use commas"),
        ("a.jsonl", "\n\n", "holds no prompts"),
        ("a.jsonl", "[" * 100_000, "line 1 is nested too deeply"),
        ("a.jsonl", '{"prompt": "' + "a" * 1_000_001 + '"}', "line 1 has 1000015 characters; at most 1000000 are read"),
        ("a.jsonl", '{"prompt": 3}', "line 1 has no 'prompt'"),
    ],
)
def test_files_of_prompts_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SetupError, match=message):
        read_prompts(str(tmp_path / name))


def test_the_largest_image_is_read():
    require_size((8192, 8192), "at the bound")
    with pytest.raises(SetupError, match="beyond has 8193x8192 pixels"):
        require_size((8193, 8192), "beyond")
