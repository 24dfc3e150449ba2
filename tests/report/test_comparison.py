"""What the report says of a comparison: the sentences, the table, the picture of all figures, and the plots."""

import pytest

from pytest_diffusion.gate.plots import change_by_look, loss_by_band
from pytest_diffusion.report.compared import comparison_table, comparison_text, worst_changes_first
from pytest_diffusion.report.comparison import forest, parts_of
from pytest_diffusion.report.html import _section
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Measurement, judge

FACTS = {"baseline": {"name": "parent", "differs": ["unet"], "alpha": 0.05}, "pairs": 128, "pairs_planned": 1000}


def change(name, relation, value=0.0, *, margin=1.0, limits=None, **series):
    one = Measurement(
        value,
        f"change of {name}",
        interval=(value - 0.5, value + 0.5),
        num_samples=128,
        relation=relation,
        own_limits=limits or Limits(at_least=-margin, source="a test"),
        series={"margin": margin, "floor": 0.1, **series},
    )
    return judge(f"paired_{name}", one, None, lens="paired")


WORSE, SAME, OPEN = (
    change("clip_score", "worse", -3.0),
    change("alignment", "same"),
    change("fid", "cannot tell", limits=Limits(at_most=1.0)),
)


def test_the_first_screen_says_what_was_found_and_what_it_cost():
    lines = comparison_text([SAME, WORSE, OPEN], FACTS)
    assert lines[0] == "Against parent: worse (clip_score worse; fid not decided; alignment same)."
    assert lines[1:3] == ["They differ in unet.", "Drawn: 128 of at most 1000 pairs, 872 saved by an early decision."]
    assert lines[3] == "The chance that a candidate within all its margins is called worse is at most 5 %."
    assert comparison_text([SAME], FACTS)[0] == "Against parent: no worse (alignment same)."
    assert comparison_text([SAME, OPEN], FACTS)[0].startswith("Against parent: cannot tell")
    assert comparison_text([SAME], {"baseline": {"name": "parent"}, "identical": True}) == [
        "Against parent: same. Nothing differs, so no image was drawn."
    ]
    assert comparison_text([SAME], {}) == []


def test_what_was_learned_and_forgotten_is_said():
    learned, forgot = change("denoising_loss", "better", -20.0), change("retention_loss", "worse", 30.0)
    sentence = "It learned what the reference shows, and forgot some of the retention set."
    assert sentence in comparison_text([learned, forgot], FACTS)
    assert sentence not in comparison_text([learned, SAME], FACTS)


def test_figures_of_slices_and_of_own_scorers_are_drawn():
    slices = [{"slice": "purple", "figure": "clip_score", "change": -3.0, "interval": [-4.0, -2.0], "margin": 1.0, "word": "worse"}]
    by_slice = Measurement(1, "slices", relation="worse", own_limits=Limits(at_most=0, source="a test"), series={"slices": slices})
    looks = [[16, -0.1, 0.1], [32, -0.2, 0.1]]
    for verdict in (judge("paired_scores_by_slice", by_slice, None, lens="paired"), change("my_score", "same", looks=looks)):
        section = _section("paired", "Against the baseline", [Entry(verdict)])
        assert "<svg" in section.plots[verdict.check]


def test_the_table_begins_with_the_worst():
    assert [one.check for one in worst_changes_first([SAME, OPEN, WORSE])] == ["paired_clip_score", "paired_fid", "paired_alignment"]
    table = comparison_table([SAME, WORSE])
    assert "| clip_score | -3  | -3.5 to -2.5 | at least -1 | worse |" in table
    assert table.index("clip_score") < table.index("alignment")


def test_the_picture_has_every_judged_figure_with_its_word():
    drawn = forest([SAME, WORSE, OPEN, judge("paired_drift", Measurement(0.1), None, lens="paired")])
    for word in ("clip_score", "alignment", "fid", "worse", "cannot tell"):
        assert word in drawn
    assert "drift" not in drawn
    assert forest([]) == ""


def test_parts_come_from_their_check():
    part = {"name": "unet", "is_same": False}
    found = judge(
        "paired_parts", Measurement(0.0, relation="same", own_limits=Limits(at_most=0), series={"parts": [part]}), None, lens="paired"
    )
    assert parts_of([SAME, found]) == [part]
    assert parts_of([SAME]) == []


@pytest.mark.parametrize(
    ("plot", "series"),
    [
        (loss_by_band, {"bands": [[6.0, 1.0, 0.1], [0.0, 2.0, 0.2]]}),
        (change_by_look, {"looks": [[16, 0.1, 0.2], [32, 0.1, 0.1]], "margin": 0.5}),
    ],
)
def test_plots_draw_their_series_or_nothing(plot, series):
    axes = plot(series).axes[0]
    assert axes.get_xlabel()
    assert len(axes.lines) >= 1
    assert plot({}) is None
