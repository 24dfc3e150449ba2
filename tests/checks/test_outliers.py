"""The outlier checks count what they say that they count."""

from types import SimpleNamespace

import pytest
import torch

from pytest_diffusion.checks.outliers import ood_auroc, ood_false_alarms


def stand_in(p_values):
    return SimpleNamespace(held_out=torch.zeros(len(p_values), 3, 4, 4), num_fitted=100, p_values=lambda: torch.tensor(p_values))


def test_a_reference_is_flagged_at_five_per_cent_and_below():
    measured = ood_false_alarms(None, None, stand_in([0.01, 0.04, 0.05, 0.0501, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9]))
    assert measured.value == pytest.approx(0.3)
    assert (measured.num_samples, measured.num_reference) == (10, 100)


def test_each_kind_is_held_against_the_references():
    scores = {
        "held-out references": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "noise": torch.tensor([5.0, 6.0]),
        "flat": torch.tensor([2.5, 0.5]),
    }
    outliers = SimpleNamespace(scores=lambda: scores, num_fitted=9)
    measured = ood_auroc(None, None, outliers)
    assert measured.value == 1
    assert measured.series["auroc"] == {"noise": 1.0, "flat": pytest.approx(0.25)}
    assert "noise 1.000" in measured.hint
    assert "flat 0.250" in measured.hint
