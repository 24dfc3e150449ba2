"""Which other seeds a model was drawn with."""

import numpy as np

from pytest_diffusion.samples.other_seeds import other_seeds
from pytest_diffusion.samples.store import SampleStore


def stored(root, **identity):
    store = SampleStore(root, identity)
    record = {"batch_size": 1, "seeds": [0], "prompts": None, "finite": [True]}
    store.write(range(1), np.zeros((1, 3, 8, 8), dtype=np.uint8), record, count=1)
    return store.folder


def test_seeds_of_the_same_weights_are_found(tmp_path):
    own = stored(tmp_path, weights="a", seed=0, steps=10)
    assert other_seeds(own) == []
    stored(tmp_path, weights="a", seed=0, steps=20)
    stored(tmp_path, weights="a", seed=7, steps=10)
    stored(tmp_path, weights="a", seed=3, steps=20)
    stored(tmp_path, weights="b", seed=5, steps=10)
    assert other_seeds(own) == [3, 7]


def test_what_cannot_be_read_is_left_aside(tmp_path):
    own = stored(tmp_path, weights="a", seed=0)
    other = stored(tmp_path, weights="a", seed=1)
    (other / "manifest.json").write_text("{")
    (other.parent / "notes.txt").write_text("a file")
    (stored(tmp_path, weights="a", seed=2) / "manifest.json").write_text('{"weights": "a", "seed": "two"}')
    assert other_seeds(own) == []
    (own / "manifest.json").unlink()
    assert other_seeds(own) == []
