import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pytest_diffusion.data.images import rgb_pixels
from pytest_diffusion.data.references import load_reference, pair_prompts
from pytest_diffusion.verdicts.errors import ModelError, SetupError


def save(path, size=(40, 40), mode="RGB", level=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level,) * len(mode)).save(path)


def test_folders_of_any_mode_nested_and_resized(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "deep" / "b.png", size=(64, 48), mode="L")
    save(tmp_path / "deep" / "c.png", size=(20, 20), mode="RGBA")
    (tmp_path / "notes.txt").write_text("not an image")
    reference = load_reference(str(tmp_path), height=32, width=32, limit=100)
    assert reference.images.shape == (3, 3, 32, 32)
    assert reference.images.dtype == torch.uint8
    assert reference.sizes == {"40x40": 1, "64x48": 1, "20x20": 1}


def test_a_corrupt_file_is_named(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ModelError, match=r"b\.png cannot be read as an image"):
        load_reference(str(tmp_path), height=32, width=32, limit=100)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no images"):
        load_reference(str(tmp_path), height=32, width=32, limit=100)


def test_a_callable_may_give_floats_or_uint8(tmp_path, monkeypatch):
    (tmp_path / "my_reference.py").write_text(
        "import torch\ndef floats():\n    return torch.full((2, 3, 8, 8), 0.5)\ndef wrong():\n    return torch.full((2, 3, 8, 8), 127.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reference("my_reference:floats", height=8, width=8, limit=9).images.unique().tolist() == [128]
    with pytest.raises(SetupError, match=r"floats between 127 and 127; expected \[0, 1\]"):
        load_reference("my_reference:wrong", height=8, width=8, limit=9)
    sys.modules.pop("my_reference")


def test_statistics_need_no_images(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(2), sigma=np.eye(2))
    reference = load_reference(str(tmp_path / "s.npz"), height=8, width=8, limit=9)
    assert reference.images is None
    assert reference.statistics is not None


def load(source, limit=100):
    return load_reference(str(source), height=8, width=8, limit=limit)


def write_pairs(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_pairs_of_prompts_and_images(tmp_path):
    for name, level in (("a.png", 10), ("in/b.png", 200)):
        save(tmp_path / name, size=(8, 8), level=level)
    rows = [{"prompt": "dark", "image": "a.png"}, {"prompt": "bright", "image": "in/b.png"}]
    pairs = write_pairs(tmp_path / "pairs.jsonl", rows)
    reference = load(pairs)
    assert reference.prompts == ["dark", "bright"]
    assert reference.images[:, 0, 0, 0].tolist() == [10, 200]
    assert pair_prompts(str(pairs)) == ["dark", "bright"]
    table = tmp_path / "pairs.csv"
    table.write_text('image,caption\na.png,dark\nin/b.png,"bright, very"\n')
    assert load(table).prompts == ["dark", "bright, very"]
    assert load(table, limit=1).prompts == ["dark"]
    unpaired = write_pairs(tmp_path / "images.jsonl", [{"image": "a.png"}])
    assert load(unpaired).prompts is None
    assert pair_prompts(str(unpaired)) is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"prompt": "x"}'], r"pairs\.jsonl, line 1 has no 'image'"),
        (['{"image": "a.png"}', '{"image": "lost.png"}'], r"pairs\.jsonl, line 2: lost\.png cannot be read as an image"),
        (['{"image": '], r"pairs\.jsonl, line 1 is not valid JSON"),
        (["[]"], r"pairs\.jsonl, line 1 has no 'image'"),
        ([""], "holds no images"),
    ],
)
def test_broken_pairs_are_named_by_line(tmp_path, rows, message):
    save(tmp_path / "a.png")
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "pairs.jsonl")


def test_arrays_of_images(tmp_path):
    pixels = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    np.savez(tmp_path / "adm.npz", arr_0=pixels, mu=np.zeros(3), sigma=np.eye(3))
    reference = load(tmp_path / "adm.npz")
    assert np.array_equal(reference.images.permute(0, 2, 3, 1).numpy(), pixels)
    np.savez(tmp_path / "floats.npz", arr_0=np.full((1, 8, 8, 3), 3.0))
    with pytest.raises(ModelError, match="floats between 3 and 3"):
        load(tmp_path / "floats.npz")
    np.savez(tmp_path / "pickled.npz", arr_0=np.array([object()]))
    with pytest.raises(ModelError, match=r"cannot be read as an \.npz of plain arrays"):
        load(tmp_path / "pickled.npz")


def test_modes_of_images():
    deep = Image.fromarray(np.array([[0, 65535], [32768, 257]], dtype=np.uint16))
    assert rgb_pixels(deep)[0][..., 0].tolist() == [[0, 255], [128, 1]]
    glass = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    pixels, transparent = rgb_pixels(glass)
    assert transparent
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert not rgb_pixels(Image.new("RGBA", (2, 2), (255, 0, 0, 255)))[1]
    for mode in ("1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB"):
        assert rgb_pixels(Image.new(mode, (3, 2)))[0].shape == (2, 3, 3)
    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.info["exif"] = exif.tobytes()
    assert rgb_pixels(turned)[0].shape[:2] in ((4, 2), (2, 4))
    with pytest.raises(ValueError, match="floats with an unknown range"):
        rgb_pixels(Image.new("F", (2, 2)))


def test_transparent_images_are_counted(tmp_path):
    save(tmp_path / "a.png", mode="RGB")
    save(tmp_path / "b.png", mode="RGBA", level=100)
    reference = load(tmp_path)
    assert reference.alpha == (1,)
    assert reference.label(1).endswith("b.png")
    assert reference.cmyk == ()
    Image.new("CMYK", (8, 8)).save(tmp_path / "c.jpg")
    assert load(tmp_path).cmyk == (2,)


def test_a_folder_that_datasets_can_stream(tmp_path):
    pytest.importorskip("datasets")
    for index in range(3):
        save(tmp_path / "train" / f"{index}.png", level=50 * index)
    rows = [{"file_name": f"{index}.png", "text": f"level {index}"} for index in range(3)]
    write_pairs(tmp_path / "train" / "metadata.jsonl", rows)
    reference = load_reference(f"hf:{tmp_path}[train]", height=8, width=8, limit=2)
    assert reference.images.shape == (2, 3, 8, 8)
    assert reference.prompts == ["level 0", "level 1"]
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_reference(f"hf:{tmp_path}[nowhere]", height=8, width=8, limit=2)


def test_captions_may_hold_line_breaks(tmp_path):
    save(tmp_path / "a.png")
    strange = "a cat\u2028on a\u0085mat"
    (tmp_path / "p.jsonl").write_text(json.dumps({"image": "a.png", "prompt": strange}, ensure_ascii=False), encoding="utf-8")
    assert load(tmp_path / "p.jsonl").prompts == [strange]
    (tmp_path / "p.csv").write_text('image,prompt\na.png,"a cat\non a mat"\na.png,a\u0085dog\n', encoding="utf-8")
    assert load(tmp_path / "p.csv").prompts == ["a cat\non a mat", "a\u0085dog"]


def masked(folder, *, mask=None, words="dog", prompt="a dog on grass", size=(64, 48)):
    """A row of a reference with a mask: a picture that is bright exactly where its mask is."""
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    pixels[8:24, 40:60] = 255
    Image.fromarray(pixels).convert("RGB").save(folder / "image.png")
    (Image.fromarray(pixels) if mask is None else mask).save(folder / "mask.png")
    row = {"image": "image.png", "prompt": prompt, "mask": "mask.png", "words": words}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return load_reference(str(folder / "rows.jsonl"), height=32, width=32, limit=10)


def test_a_mask_is_cropped_as_its_image_is(tmp_path):
    reference = masked(tmp_path)
    bright = reference.images[0, 0] > 127
    assert reference.masks.shape == (1, 32, 32)
    assert bright.sum() > 50
    assert (reference.masks[0] == bright).all()


def test_a_mask_is_turned_as_its_image_is(tmp_path):
    own = masked(tmp_path).masks[0]
    for name in ("image.png", "mask.png"):
        stored = Image.open(tmp_path / name).transpose(Image.Transpose.ROTATE_90)
        exif = stored.getexif()
        exif[0x0112] = 6  # the camera was held so that a viewer must turn the picture back
        stored.save(tmp_path / name, exif=exif)
    turned = load_reference(str(tmp_path / "rows.jsonl"), height=32, width=32, limit=10)
    assert (turned.masks[0] == own).all()
    assert (turned.masks[0] == (turned.images[0, 0] > 127)).all()


def test_a_mask_that_cannot_be_its_images_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"the mask of image\.png is 48x48, its image 64x48: they need the same shape"):
        masked(tmp_path, mask=Image.new("L", (48, 48)))
    with pytest.raises(ModelError, match=r"image\.png: the word 'cat' is not in its prompt 'a dog on grass'"):
        masked(tmp_path, words="cat")
