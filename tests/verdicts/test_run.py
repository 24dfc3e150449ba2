"""What a run leaves survives the way from worker to controller and into the JSON report."""

import json
import math

import pytest

from pytest_diffusion.verdicts.run import Carried, Entry
from pytest_diffusion.verdicts.verdict import Limits, Measurement, judge, skipped

PASSED = judge("kid", Measurement(0.5), Limits(at_most=1.0))
FAILED = judge("fid", Measurement(math.inf, series={"a": [1.0]}), Limits(at_most=1.0, source="me"))
SKIPPED = skipped("vae_psnr", "no VAE", lens="latent")


def through_json(sent):
    return type(sent).from_json(json.loads(json.dumps(sent.to_json(), allow_nan=False)))


def test_an_entry_keeps_its_test_and_its_seconds():
    for verdict in (PASSED, FAILED, SKIPPED):
        entry = Entry(verdict, f"diffusion::{verdict.check}", 1.5)
        assert through_json(entry) == entry
    assert Entry.from_json(PASSED.to_json()) == Entry(PASSED) == Entry(PASSED, "", 0.0)


@pytest.mark.parametrize(("nodeid", "expected"), [("diffusion::fid", True), ("tests/test_mine.py::test_fid", False), ("", False)])
def test_an_entry_is_of_the_checklist_or_of_a_test_of_ones_own(nodeid, expected):
    assert Entry(PASSED, nodeid).is_of_checklist is expected


def test_what_a_test_report_carries_arrives_whole():
    numbers, figures = [{"name": "n", "value": 1.0, "unit": ""}], [{"name": "f", "image": "data:"}]
    sent = Carried([PASSED, FAILED, SKIPPED], numbers, figures, {"device": "cpu"})
    assert through_json(sent) == sent
    assert through_json(Carried()) == Carried([], [], [], {})
