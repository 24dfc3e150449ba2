"""The pictures of a run: each figure's own images where the features know them, and none where they are somebody else's."""

import json

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")
RUN = ("--diffusion-model=demo", "--diffusion-num-samples=64", "--diffusion-steps=2", "--diffusion-lenses=metrics")
NAMES = ("precision", "recall", "memorisation", "same_resolution")


def series(pytester, *arguments):
    pytester.runpytest(*RUN, "-k", " or ".join(NAMES), *arguments)
    written = json.loads((pytester.path / "diffusion-report.json").read_text(encoding="utf-8"))
    return {entry["check"]: (entry["measurement"] or {}).get("series") for entry in written["verdicts"]}, written["run"]


def test_a_run_shows_the_strangest_the_most_alike_and_both_sides(pytester):
    found, _ = series(pytester)
    for name in ("precision", "recall", "memorisation"):
        assert [len(found[name][key]) for key in ("images", "nearest", "captions")] == [8, 8, 8], name
    assert len(found["same_resolution"]["real"]) == len(found["same_resolution"]["generated"]) == 8
    distances = [float(text.removeprefix("distance ")) for text in found["precision"]["captions"]]
    assert distances == sorted(distances, reverse=True)
    page = (pytester.path / "diffusion-report.html").read_text(encoding="utf-8")
    for title in ("Real above, generated below", "farthest from every reference image", "farthest from every sample", "most like an image"):
        assert title in page


def test_features_of_a_users_own_draw_nothing_and_show_nothing(pytester):
    pytester.makeconftest(
        """
        import pytest, torch

        @pytest.fixture(scope="session")
        def diffusion_features():
            return torch.randn(200, 4, generator=torch.Generator().manual_seed(0))

        @pytest.fixture(scope="session")
        def diffusion_reference_features():
            return torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
        """
    )
    pytester.runpytest(*RUN, "-k", "precision or recall or memorisation", "--diffusion-reference=demo")
    written = json.loads((pytester.path / "diffusion-report.json").read_text(encoding="utf-8"))
    measured = {entry["check"]: entry["measurement"] for entry in written["verdicts"] if entry["measurement"]}
    assert {"precision", "recall", "memorisation"} <= set(measured)
    assert all(one["series"] == {} for one in measured.values())
    assert written["run"].get("generated", 0) == 0
    # Nothing of it was held against the reference that was named.
    assert [entry["check"] for entry in written["verdicts"] if entry["outcome"] == "missing"] == ["reference"]
