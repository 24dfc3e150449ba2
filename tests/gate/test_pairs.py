"""Paired samples look by look, on models whose scores are known."""

from dataclasses import replace

import pytest
import torch

from pytest_diffusion.config.margins import Margin, Margins
from pytest_diffusion.gate.figures import SET_FIGURES, clusters_of, set_look
from pytest_diffusion.gate.looks import Rules
from pytest_diffusion.gate.pairs import looks_at, run_pairs
from pytest_diffusion.gate.side import Rows, SavedSide
from pytest_diffusion.maths.diversity import vendi_score
from pytest_diffusion.maths.frechet import frechet_distance
from pytest_diffusion.maths.kernel import kernel_distance
from pytest_diffusion.maths.manifold import density_coverage, precision_recall
from pytest_diffusion.maths.sequential import Plan
from pytest_diffusion.verdicts.errors import SettingsError, SetupError

COUNT = 256
MARGINS = Margins({"good": Margin(margin=0.2, source="test"), "cost": Margin(margin=0.2, source="test")})


def rows(shift=0.0, *, count=COUNT, features=None, cost=0.0):
    noise = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = {"good": noise + shift, "cost": noise + cost}
    whole = torch.ones(count, dtype=torch.bool)
    return Rows(scores, features, whole, ~whole, [str(index) for index in range(count)])


def run(candidate, baseline, *, most=COUNT, margins=MARGINS, **rest):
    rules = Rules(margins, {"good": 1, "cost": -1}, Plan(COUNT), family=2)
    said = []
    found = run_pairs(
        SavedSide("candidate", candidate),
        SavedSide("baseline", baseline),
        rules,
        prompts=None,
        seeds=list(range(COUNT)),
        clusters=None,
        most=most,
        say=said.append,
        **rest,
    )
    return found, said


def test_equal_models_are_the_same_before_all_pairs_are_used():
    found, said = run(rows(), rows())
    assert {name: one.word for name, one in found.decided.items()} == {"good": "same", "cost": "same"}
    assert found.pairs < COUNT
    assert found.planned == COUNT
    assert not found.is_closed
    assert said[0].startswith("after 16 pairs: 0 of 2 figures are decided; not yet: good, cost")


def test_it_stops_where_one_is_worse():
    found, _ = run(rows(-1.0, cost=0.2), rows())
    assert found.decided["good"].word == "worse"
    assert found.is_closed
    assert found.pairs <= 64
    assert run(rows(cost=1.0), rows())[0].decided["cost"].word == "worse"
    assert run(rows(cost=-1.0), rows())[0].decided["cost"].word == "better"


def test_what_cannot_be_told_uses_all_pairs():
    found, _ = run(rows(-0.2), rows())
    assert found.decided["good"].word == "cannot tell"
    assert found.pairs == COUNT
    assert run(rows(-0.2), rows(), most=64)[0].pairs == 64


def test_floors_are_asked_once_and_hold():
    asked = []

    def floors(count):
        asked.append(count)
        return {"good": 0.5}

    found, _ = run(rows(-1.0), rows(), floors=floors)
    assert asked == [16]
    assert found.decided["good"].word == "cannot tell"
    assert "differ by 0.5 on this machine" in found.decided["good"].reason
    assert found.decided["good"].floor == 0.5


def test_a_score_that_one_side_lacks_is_not_compared():
    lacking = replace(rows(), scores={"good": rows().scores["good"]})
    assert set(run(rows(), lacking)[0].decided) == {"good"}


def test_a_saved_side_holds_so_many_samples():
    with pytest.raises(SettingsError, match="baseline holds 16 samples, and 32 are asked for; save it with more"):
        run(rows(), rows(count=16))


@pytest.fixture
def sets():
    generator = torch.Generator().manual_seed(1)
    baseline, reference = torch.randn(200, 6, generator=generator), torch.randn(150, 6, generator=generator)
    return baseline + 0.3 * torch.randn(200, 6, generator=generator), baseline, reference


def test_figures_of_sets_are_those_of_maths(sets):
    candidate, baseline, reference = sets
    found = {name: set_look(name, candidate, baseline, reference, None) for name in SET_FIGURES}
    expected = {
        "fid": lambda values: frechet_distance(values, reference),
        "kid": lambda values: 1000 * kernel_distance(values, reference),
        "precision": lambda values: precision_recall(values, reference, k=3).precision,
        "coverage": lambda values: density_coverage(values, reference, k=5).coverage,
        "vendi_score": vendi_score,
    }
    for name, figure in expected.items():
        assert found[name].candidate == pytest.approx(figure(candidate), rel=1e-6), name
        assert found[name].baseline == pytest.approx(figure(baseline), rel=1e-6), name
        assert found[name].difference.value == pytest.approx(figure(candidate) - figure(baseline), abs=1e-6), name


@pytest.mark.parametrize("name", SET_FIGURES)
def test_the_paired_error_is_the_spread_of_the_difference(name):
    """Two models that share their noise: over new seeds, the difference spreads as its error says, and less than unpaired."""
    generator = torch.Generator().manual_seed(2)
    reference = torch.randn(300, 4, generator=generator)
    differences, errors, alone = [], [], []
    for _ in range(150):
        noise = torch.randn(200, 4, generator=generator)
        candidate, baseline = 1.35 * noise + 0.4, 1.25 * noise + 0.35
        look = set_look(name, candidate, baseline, reference, None, rare=False)
        differences.append(look.difference.value)
        errors.append(look.difference.standard_error)
        alone.append(look.baseline)
    spread = float(torch.tensor(differences).std())
    ratio = float(torch.tensor(errors).mean()) / spread
    # Leaving out one sample at a time makes the error of coverage too large, never too small.
    assert 0.75 <= ratio <= (2.0 if name == "coverage" else 1.25), ratio
    if name in ("fid", "kid", "vendi_score"):
        assert spread < 0.75 * float(torch.tensor(alone).std()) * 2**0.5


def test_statistics_serve_the_frechet_distance_alone(sets):
    from pytest_diffusion.maths.feature_statistics import FeatureStatistics

    candidate, baseline, reference = sets
    ours, theirs = (replace(rows(count=200), features=values) for values in (candidate, baseline))
    names = set(looks_at(ours, theirs, None, FeatureStatistics.from_features(reference))) - {"good", "cost"}
    assert names == {"fid", "vendi_score"}
    assert set(looks_at(ours, theirs, None, reference)) - {"good", "cost"} == set(SET_FIGURES)
    assert set(looks_at(ours, theirs, None, None)) - {"good", "cost"} == {"vendi_score"}


def test_prompts_are_clusters_where_there_are_enough():
    many = [f"prompt {index % 30}" for index in range(90)]
    assert clusters_of(many) == many
    assert clusters_of(["one", "two"] * 40) is None
    assert clusters_of(None) is None


@pytest.mark.parametrize(("count", "is_known"), [(15, False), (16, True)])
def test_second_moments_need_two_samples_for_each_feature(count, is_known):
    features = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    for name in ("fid", "vendi_score"):
        look = set_look(name, 1.1 * features, features, features.flip(0), None)
        assert (look.difference.standard_error < float("inf")) == is_known
    assert set_look("precision", 1.1 * features, features, features.flip(0), None).difference.standard_error < float("inf")


@pytest.mark.parametrize(("broken", "is_refused"), [(8, False), (9, True)])
def test_a_baseline_of_which_more_than_half_is_broken_is_refused(broken, is_refused):
    baseline = replace(rows(), constant=torch.arange(COUNT) < broken)
    if not is_refused:
        assert run(rows(), baseline)[0].decided["good"].word == "same"
        return
    with pytest.raises(SetupError, match="baseline is broken itself: 9 of its first 16 samples have one colour; nothing was compared"):
        run(rows(), baseline)
