"""Two reports: figures whose protocols agree, with the margins of the thresholds file."""

import pytest

from pytest_diffusion.config.margins import Margin, Margins
from pytest_diffusion.gate.unpaired import compare_measurements
from pytest_diffusion.verdicts.verdict import Measurement

MARGINS = Margins(
    {
        "fid": Margin(share=0.1, source="test"),
        "clip_score": Margin(margin=0.5, source="test"),
        "kid": Margin(kind="reported", source="test"),
    }
)


def one(value, half=0.1, *, name="figure", **protocol):
    return Measurement(value, name, interval=(value - half, value + half), num_samples=100, protocol=protocol)


def word(name, candidate, baseline, margins=MARGINS):
    (found,) = compare_measurements({name: candidate}, {name: baseline}, margins)
    return found.measurement.relation, found.outcome


@pytest.mark.parametrize(
    ("name", "candidate", "baseline", "relation", "outcome"),
    [
        ("fid", 20.0, 20.0, "same", "pass"),
        ("fid", 25.0, 20.0, "worse", "fail"),
        ("fid", 15.0, 20.0, "better", "pass"),
        ("fid", 22.0, 20.0, "cannot tell", "inconclusive"),
        ("clip_score", 30.0, 31.0, "worse", "fail"),
        ("clip_score", 31.0, 30.0, "better", "pass"),
        ("kid", 5.0, 1.0, "", "reported"),
        ("other", 5.0, 1.0, "", "reported"),
    ],
)
def test_a_change_is_held_against_its_margin(name, candidate, baseline, relation, outcome):
    assert word(name, one(candidate), one(baseline)) == (relation, outcome)


def test_equivalence_forbids_both_directions():
    margins = Margins({"fid": Margin(share=0.1, kind="equivalence", source="test")})
    assert word("fid", one(15.0), one(20.0), margins)[0] == "worse"
    assert word("fid", one(20.0), one(20.0), margins)[0] == "same"


def test_figures_measured_otherwise_are_not_compared():
    (found,) = compare_measurements({"fid": one(1.0, extractor="a")}, {"fid": one(1.0, extractor="b")}, MARGINS)
    assert found.outcome == "skipped"
    assert "extractor is 'a' on one side and 'b' on the other" in found.message
    # Versions may differ, and figures of pairs are no figures of a run.
    found = compare_measurements(
        {"fid": one(1.0, versions="1"), "paired_fid": one(1.0)}, {"fid": one(1.0, versions="2"), "paired_fid": one(2.0)}, MARGINS
    )
    assert [verdict.check for verdict in found] == ["against_fid"]


def test_the_family_is_controlled():
    # Each is 2.0 standard errors beyond its margin: enough alone, not among three.
    margins = Margins({name: Margin(margin=0.0, source="test") for name in ("clip_score", "precision", "coverage")})
    alone = {"clip_score": one(-2.0 * 2**0.5 * 0.5, 0.98)}
    assert word("clip_score", alone["clip_score"], one(0.0, 0.98), margins)[0] == "worse"
    three = dict.fromkeys(("clip_score", "precision", "coverage"), alone["clip_score"])
    three["precision"] = three["coverage"] = one(0.0, 0.98)
    found = {verdict.check: verdict for verdict in compare_measurements(three, dict.fromkeys(three, one(0.0, 0.98)), margins)}
    assert found["against_clip_score"].measurement.relation == "cannot tell"


def test_a_figure_of_another_unit_has_no_margin_of_the_same_name():
    """`denoising_loss` of the checklist is a share, the paired one is in per cent."""
    margins = Margins({"denoising_loss": Margin(margin=10.0, source="test")})
    assert word("denoising_loss", one(0.9, 0.01), one(0.1, 0.01), margins) == ("", "reported")
