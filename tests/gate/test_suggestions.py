"""Margins and limits from trials whose changes are known, and the pairs that they need, by simulation."""

import math
from dataclasses import replace

import pytest
import torch

from pytest_diffusion.config.margins import Margins
from pytest_diffusion.gate.suggestions import pairs_needed, suggest_limits, suggest_margins
from pytest_diffusion.gate.trial import Figure, Trial

SOUND = ("bfloat16_weights", "int8_weights", "other_batches")


def figure(change, error, *, name="clip_score", direction=1, margin=1.0, pairs=100):
    return Figure(name, "same", change, error, pairs, margin, direction)


def sound(changes, error=0.0, **rest):
    return [Trial(name, 0.0, 0, True, figures=[figure(change, error, **rest)]) for name, change in zip(SOUND, changes, strict=True)]


def suggested(trials, floors=None, *, is_copy=True):
    return suggest_margins(trials, floors or {}, Margins(), is_copy=is_copy)


def test_a_margin_is_half_again_as_large_as_the_largest_sound_change():
    damaged = [Trial("noise", 0.05, 0, figures=[figure(-0.5, 0.01)]), Trial("noise", 0.02, 0, figures=[figure(-0.05, 0.01)])]
    (found,) = suggested([*sound((0.3, -0.02, -0.04), 0.01), *damaged], {"clip_score": 0.001})
    # What is better needs no room: the largest loss is 0.04, with 1.645 errors.
    assert (found.by, found.current) == ("other_batches", 1.0)
    assert found.largest == pytest.approx(0.04 + 1.645 * 0.01)
    assert found.margin == pytest.approx(0.085)
    assert found.seen == ["noise 0.05"]


def test_the_floor_counts_where_it_is_larger():
    (found,) = suggested(sound((0.0, 0.0, -0.01)), {"clip_score": 0.2})
    assert found.margin == pytest.approx(0.3)


def test_either_direction_counts_for_figures_without_one():
    (found,) = suggested(sound((0.3, -0.02, -0.04), direction=0))
    assert found.margin == pytest.approx(0.45)
    assert found.direction == 0


def test_nothing_follows_from_few_sound_changes_or_from_unpaired_ones():
    assert suggested(sound((0.1, 0.1, 0.1))[:2]) == []
    unpaired = Trial("other_seeds", 0.0, 0, True, figures=[figure(-3.0, 0.1)])
    assert suggested([*sound((0.0, 0.0, -0.1))[:2], unpaired]) == []
    idle = [replace(one, note="changes nothing") for one in sound((0.0, 0.0, -0.1))[:1]]
    assert suggested([*idle, *sound((0.0, 0.0, -0.1))[1:]]) == []
    (found,) = suggested([*sound((0.0, 0.0, -0.1)), unpaired])
    assert found.by == "other_batches"
    assert suggested(sound((0.0, 0.0, 0.0))) == []


def test_the_losses_of_a_gate_of_fine_tunes_keep_a_margin_that_copies_cannot_justify():
    own = {"name": "denoising_loss", "direction": -1, "margin": 10.0}
    (kept,) = suggested(sound((0.1, 0.3, 0.2), **own), is_copy=False)
    assert (kept.margin, kept.kept) == (10.0, True)
    (close,) = suggested(sound((0.1, 6.0, 0.2), **own), is_copy=False)
    assert (close.margin, close.kept) == (10.0, True)
    (narrow,) = suggested(sound((0.1, 0.3, 0.2), **own), is_copy=True)
    assert (narrow.margin, narrow.kept) == (pytest.approx(0.45), False)
    (wide,) = suggested(sound((0.1, 20.0, 0.2), **own), is_copy=False)
    assert (wide.margin, wide.kept) == (pytest.approx(30.0), False)


def test_so_many_pairs_show_a_sound_variant_to_be_the_same_in_nine_of_ten_runs():
    spread, change, margin = 1.0, -0.02, 0.1
    needed = pairs_needed(figure(change, spread / 10), margin, Margins(alpha=0.05))
    generator = torch.Generator().manual_seed(0)
    draws = change + spread * torch.randn(4000, needed, generator=generator)
    low = draws.mean(1) - 1.645 * draws.std(1) / math.sqrt(needed)
    assert float((low > -margin).float().mean()) == pytest.approx(0.9, abs=0.02)
    assert pairs_needed(figure(-0.2, 0.1), margin, Margins()) is None
    assert pairs_needed(figure(0.0, 0.0), margin, Margins()) == 1


def verdict(value, half, **rest):
    return {"check": "fid", "outcome": "pass", "value": value, "interval": [value - half, value + half], "num_samples": 1000, **rest}


def asked(name, value, half=1.0, *, is_sound=True, **rest):
    return Trial(name, 0.0, 0, is_sound, absolute=[verdict(value, half, **rest)])


def test_a_limit_lies_a_quarter_beyond_the_worst_sound_interval():
    parent = [verdict(20.0, 1.0, at_most=33.0, extractor="inception", min_reference=500)]
    trials = [asked(name, value) for name, value in zip(SOUND, (20.0, 23.0, 21.0), strict=True)]
    trials += [asked("noise", 40.0, 2.0, is_sound=False), asked("less", 25.5, 1.0, is_sound=False)]
    (found,) = suggest_limits(parent, trials)
    assert (found.worst, found.by, found.parent, found.current) == (24.0, "int8_weights", 20.0, 33.0)
    assert found.limit == 25.0
    assert found.seen == ["noise"]
    assert (found.samples, found.min_reference, found.extractor) == (1000, 500, "inception")


def test_a_limit_from_below_lies_below():
    parent = [{**verdict(0.95, 0.01), "at_least": 0.9}]
    trials = [asked(name, value, 0.01) for name, value in zip(SOUND, (0.95, 0.93, 0.96), strict=True)]
    trials.append(asked("noise", 0.6, 0.01, is_sound=False))
    (found,) = suggest_limits(parent, trials)
    assert found.worst == pytest.approx(0.92)
    assert found.limit == pytest.approx(0.912)
    assert found.seen == ["noise"]


def test_counts_that_all_sound_models_share_keep_their_limits():
    parent = [{**verdict(0.0, 0.0), "at_most": 0.0}]
    assert suggest_limits(parent, [asked(name, 0.0, 0.0) for name in SOUND]) == []
    assert suggest_limits([verdict(1.0, 1.0, at_most=3.0)], [asked(name, 1.0) for name in SOUND[:2]]) == []
