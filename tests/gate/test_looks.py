"""Better, same, worse and cannot tell: each from a closed case, and the error rate of a family by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from pytest_diffusion.config.margins import Margin, Margins
from pytest_diffusion.gate.figures import score_look
from pytest_diffusion.gate.looks import Look, Rules
from pytest_diffusion.maths.sequential import Plan
from pytest_diffusion.maths.statistics import Estimate

PLAN = Plan(256)


def look(value, error=0.01, *, pairs=256, baseline=10.0, spread=1.0):
    return Look(pairs, Estimate(value, error, pairs - 1), baseline + value, baseline, spread)


def rules(direction=1, kind="not_worse", *, size=0.1, family=1, floors=None, **sizes):
    margin = Margin(**(sizes or {"margin": size}), kind=kind, source="test")
    return Rules(Margins({"score": margin}), {"score": direction}, PLAN, floors or {}, family)


def decided(rule, *looks):
    return rule.decide({"score": list(looks)})["score"]


@pytest.mark.parametrize(
    ("direction", "kind", "value", "word"),
    [
        (1, "not_worse", 0.0, "same"),
        (1, "not_worse", 0.5, "better"),
        (1, "not_worse", -0.5, "worse"),
        (1, "not_worse", -0.1, "cannot tell"),
        (-1, "not_worse", -0.5, "better"),
        (-1, "not_worse", 0.5, "worse"),
        (-1, "not_worse", 0.1, "cannot tell"),
        (1, "equivalence", 0.5, "worse"),
        (1, "equivalence", -0.5, "worse"),
        (-1, "equivalence", 0.0, "same"),
        (0, "not_worse", 0.5, "worse"),
        (0, "not_worse", -0.5, "worse"),
        (0, "not_worse", 0.05, "same"),
        (1, "equivalence", 0.1, "cannot tell"),
        (1, "equivalence", -0.1, "cannot tell"),
    ],
)
def test_the_word_follows_direction_and_kind(direction, kind, value, word):
    assert decided(rules(direction, kind), look(value)).word == word


def test_margins_may_be_shares_and_spreads():
    assert decided(rules(spreads=0.2), look(0.0, spread=3.0)).margin == pytest.approx(0.6)
    assert decided(rules(share=0.02), look(0.0, baseline=-50.0)).margin == pytest.approx(1.0)


def test_a_figure_without_a_margin_is_only_measured():
    found = Rules(Margins(), {}, PLAN).decide({"score": [look(-5.0)]})["score"]
    assert found.word == ""
    assert found.margin is None
    assert found.interval[0] < -5 < found.interval[1]


def test_scorers_without_a_table_have_the_margin_of_all_scorers():
    margins = Margins({"scorer": Margin(spreads=0.1, source="test"), "kid": Margin(kind="reported", source="test")})
    assert margins.of("mine") is not None
    assert margins.of("kid") is None


def test_early_looks_are_strict():
    assert decided(rules(), look(-0.16, pairs=256)).word == "worse"
    assert decided(rules(), look(-0.16, pairs=16)).word == "cannot tell"
    low, high = decided(rules(), look(0.0, pairs=64)).interval
    assert high - low > 3 * (np.diff(decided(rules(), look(0.0, pairs=256)).interval)[0]) / 2


def test_what_was_shown_to_be_the_same_stays_so_unless_it_is_worse():
    first, wide = look(0.0, 0.005, pairs=128), look(-0.08, 0.02)
    assert decided(rules(), first).word == "same"
    assert decided(rules(), wide).word == "cannot tell"
    assert decided(rules(), first, wide).word == "same"
    assert decided(rules(), first, look(-0.5, 0.02)).word == "worse"
    # And a p-value once small stays small.
    assert decided(rules(), look(-0.5, 0.01, pairs=128), look(-0.12, 0.02)).word == "worse"


def test_a_floor_above_the_margin_decides_nothing():
    found = decided(rules(floors={"score": 0.2}), look(-0.5))
    assert found.word == "cannot tell"
    assert found.reason == "two sound builds of the baseline differ by 0.2 on this machine, which is more than the margin"
    assert rules(floors={"score": 0.2}).is_over({"score": found})
    assert decided(rules(floors={"score": 0.05}), look(-0.5)).word == "worse"
    assert decided(rules(floors={"score": math.nan}), look(0.0)).word == "cannot tell"


def test_a_larger_family_needs_stronger_evidence():
    near = look(-0.1 - 0.01 * 2.0, 0.01)
    assert decided(rules(family=1), near).word == "worse"
    assert decided(rules(family=30), near).word == "cannot tell"


def test_a_run_is_over_when_one_is_worse_or_all_are_decided():
    rule = rules()
    same, open_one, worse = (decided(rule, one) for one in (look(0.0), look(-0.1), look(-0.5)))
    assert rule.is_over({"one": same, "two": same})
    assert not rule.is_over({"one": same, "two": open_one})
    assert rule.is_over({"one": worse, "two": open_one})
    assert rule.is_over({"one": replace(same, word="", margin=None)})


@pytest.mark.parametrize("kind", ["not_worse", "equivalence"])
def test_a_figure_that_is_equal_in_every_pair_is_the_same_whatever_its_margin(kind):
    """The saturation of a model of grey images: all values are 0, and so is a margin in standard deviations of them."""
    assert decided(rules(0, kind, spreads=0.25), look(0.0, 0.0, spread=0.0)).word == "same"
    assert decided(rules(0, kind, spreads=0.25), look(0.001, 0.0, spread=0.0)).word == "worse"


def test_one_pair_alone_decides_nothing():
    alone = Look(16, Estimate(-5.0, math.inf, 0), 5.0, 10.0, 0.0)
    found = decided(rules(), alone)
    assert found.word == "cannot tell"
    assert found.interval == (-math.inf, math.inf)
    assert decided(rules(), Look(16, Estimate(-5.0, 0.0, 15), 5.0, 10.0, 0.0)).word == "worse"  # no error at all


@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_a_family_at_its_margins_is_seldom_called_worse(tails):
    """Four figures, each exactly at its margin, prompts that repeat, looks and early stops as in the gate."""
    rng, runs, wrong, wrong_same = np.random.default_rng(5), 150, 0, 0
    names = ["one", "two", "three", "four"]
    margins = Margins({name: Margin(margin=0.2, source="test") for name in names})
    rule = Rules(margins, dict.fromkeys(names, 1), PLAN, family=len(names))
    prompts = [index % 60 for index in range(256)]
    for _ in range(runs):

        def draw(*shape):
            return rng.standard_normal(shape) if tails == "normal" else rng.standard_t(3, shape) / math.sqrt(3)

        noise = (draw(4, 256) + draw(4, 60)[:, prompts] + draw(1, 256)) / math.sqrt(3)
        baseline, histories = torch.zeros(256) + torch.tensor([1.0, -1.0]).repeat(128) / 2, {}
        for count in PLAN.looks(256):
            for index, name in enumerate(names):
                shift = -0.2 if index else -0.4  # the first one lies at twice its margin
                change = torch.tensor(noise[index, :count] + shift)
                histories.setdefault(name, []).append(score_look(baseline[:count] + change, baseline[:count], prompts[:count]))
            found = rule.decide(histories)
            at_margin = {name: found[name].word for name in names[1:]}
            if "worse" in at_margin.values():
                wrong += 1
                break
        wrong_same += found["one"].word in ("same", "better")
    assert wrong <= binom.ppf(0.95, runs, 0.05)
    assert wrong_same == 0
