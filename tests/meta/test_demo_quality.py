"""The demo is good enough to be a sound subject: measured by its classifier on 250 prompts drawn with a seed of their own."""

import sys
from pathlib import Path

import pytest

from tests.nightly import nightly

pytestmark = [pytest.mark.filterwarnings("ignore"), nightly("a minute; the demo's weights do not change, and `make demo` judges them")]


def test_the_demo_reaches_its_targets(demo_settings, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    from evaluate_demo import evaluate

    figures = evaluate(demo_settings, num_prompts=250)
    sys.modules.pop("evaluate_demo")
    assert figures["one_object_right"] >= 0.98
    assert figures["two_objects_right"] >= 0.90
    assert figures["two_objects_in_order"] >= 0.80
    assert figures["vae_psnr"] >= 32
    assert figures["noun_iou"] >= 0.6
    assert figures["entropy_falls"] >= 0.95
    assert figures["ood_auroc_lowest"] >= 0.95
