"""Rows of images in pieces: made once, kept whole, believed only where they are of these images."""

import threading

import pytest
import torch

from pytest_diffusion.config.cache import StoreWarning
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.features.image_scores import ImageScorer
from pytest_diffusion.features.pieces import Pieces
from pytest_diffusion.features.store import feature_pieces, score_pieces, stored_scores
from pytest_diffusion.samples.store import Samples

COUNT = 10


def noise(count):
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def is_alone(monkeypatch):
    """Of several workers the second would begin in the middle."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


class Rows:
    """Twice the number of each image, in pieces of four; and which pieces were computed."""

    def __init__(self, folder, *, about="these", fails_at=None):
        self.made, self._about, self._fails_at = [], about, fails_at
        self.pieces = Pieces(folder / "rows.safetensors", self.make, lambda rows: {"of": [self._about] * len(rows)}, "rows", 4)

    def make(self, rows):
        if rows.start == self._fails_at:
            raise KeyboardInterrupt
        self.made.append((rows.start, rows.stop))
        return {"values": 2 * torch.arange(rows.start, rows.stop, dtype=torch.float64)}

    def values(self, count=COUNT):
        return self.pieces.rows(count, say=print)["values"].tolist()


WANTED = [2.0 * index for index in range(COUNT)]


def test_rows_are_computed_once_and_extended(tmp_path):
    first = Rows(tmp_path)
    assert first.values() == WANTED
    assert first.made == [(0, 4), (4, 8), (8, 10)]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.safetensors"]
    again = Rows(tmp_path)
    assert again.values(7) == WANTED, "more than were asked for"
    assert again.values(13) == [2.0 * index for index in range(13)]
    assert again.made == [(10, 12), (12, 13)]


def test_a_run_that_is_stopped_goes_on(tmp_path):
    stopped = Rows(tmp_path, fails_at=8)
    with pytest.raises(KeyboardInterrupt):
        stopped.values()
    resumed = Rows(tmp_path)
    assert resumed.values() == WANTED
    assert resumed.made == [(8, 10)]


def test_rows_of_other_images_are_not_believed(tmp_path):
    Rows(tmp_path, about="others").values()
    assert Rows(tmp_path).values() == WANTED
    own = Rows(tmp_path)
    assert own.values() == WANTED
    assert own.made == []
    halfway = Rows(tmp_path, about="others", fails_at=4)
    with pytest.raises(KeyboardInterrupt):
        halfway.values()
    (tmp_path / "rows.safetensors").unlink()
    mended = Rows(tmp_path)
    assert mended.values() == WANTED
    assert (0, 4) in mended.made


def test_a_damaged_piece_is_computed_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Rows(tmp_path, fails_at=4).values()
    path = tmp_path / "rows" / "0000000-0000004.safetensors"
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    mended = Rows(tmp_path)
    with pytest.warns(StoreWarning, match="damaged; its rows are computed again"):
        assert mended.values() == WANTED


def test_several_share_the_work(tmp_path):
    both, found = [Rows(tmp_path), Rows(tmp_path)], []
    threads = [threading.Thread(target=lambda one=one: found.append(one.values(200))) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[2.0 * index for index in range(200)]] * 2
    assert len(both[0].made) + len(both[1].made) < 100, "not all of it twice"


def test_what_cannot_be_written_is_computed(tmp_path):
    (tmp_path / "rows").write_text("a file where the folder should be")
    own = Rows(tmp_path)
    assert own.values() == WANTED


def test_a_shard_computed_where_it_was_made_is_not_computed_again(tmp_path):
    demo_extractor, images, asked = load_extractor("demo"), noise(8), []
    own = demo_extractor.run

    def counted(batch):
        asked.append(len(batch))
        return own(batch)

    extractor = type(demo_extractor)(demo_extractor.name, counted)
    feature_pieces(tmp_path, extractor, images[4:8], first=4, size=4).keep(range(4, 8))
    kept = feature_pieces(tmp_path, extractor, images, size=4).rows(8, say=print)
    assert asked == [4, 4]
    assert torch.equal(kept["values"][4:], demo_extractor(images[4:8]).values)
    assert torch.equal(kept["values"][:4], demo_extractor(images[:4]).values)


def scorer(version="1", weights="w"):
    def run(images, prompts):
        scorer.calls += 1
        return {"size": torch.tensor([len(prompt) + float(image.float().mean()) for image, prompt in zip(images, prompts, strict=True)])}

    return ImageScorer(("size",), run, version=version, weights=weights)


def test_scores_are_kept_by_images_prompts_and_scorer(tmp_path):
    images, texts = noise(8), [f"prompt {index % 3}" for index in range(8)]
    samples = Samples(images, texts, list(range(8)), torch.ones(8, dtype=torch.bool), tmp_path, 0, 4)
    scorer.calls = 0
    first = stored_scores(samples, scorer(), texts, 6)["size"]
    assert stored_scores(samples, scorer(), texts, 6)["size"].equal(first)
    assert (len(first), scorer.calls) == (6, 2)
    assert not stored_scores(samples, scorer(), ["other", *texts[1:]], 6)["size"].equal(first)
    stored_scores(samples, scorer(version="2"), texts, 6)
    assert scorer.calls == 6
    stored_scores(samples, scorer(weights=""), texts, 6)
    stored_scores(samples, scorer(weights=""), texts, 6)
    assert scorer.calls == 8, "a scorer that does not say which one it is is asked each time"
    score_pieces(tmp_path, scorer(version="3"), images[4:], texts[4:], first=4, size=4).keep(range(4, 8))
    stored_scores(samples, scorer(version="3"), texts, 8)
    assert scorer.calls == 10
