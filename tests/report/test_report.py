import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pytest_diffusion import scheduler_checks
from pytest_diffusion.checks import all_checks
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.report.advice import duration, first_lines, meaning
from pytest_diffusion.report.contents import Report, worst_first
from pytest_diffusion.report.figures import draw
from pytest_diffusion.report.html import render
from pytest_diffusion.report.markdown import summary
from pytest_diffusion.report.write import ReportFiles
from pytest_diffusion.verdicts.gate import Course, decide
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Limits, Measurement, Verdict, judge, skipped

LIMITS = Limits(at_most=30.0, source="Heusel et al.", where="thresholds/default.toml [fid]")


def verdicts():
    made = [
        judge("precision", Measurement(0.9, interval=(0.8, 0.95)), Limits(at_least=0.6, source="s"), lens="metrics", title="Precision"),
        judge("fid", Measurement(41.2, interval=(40, 42), hint="<b>bold</b>"), LIMITS, lens="metrics", title="FID <script>"),
        skipped("vae_psnr", "no VAE", lens="latent", title="Round trip"),
        judge("kid", Measurement(29.0, interval=(27, 31)), LIMITS, lens="metrics", title="KID"),
    ]
    return [Entry(verdict, f"diffusion::{verdict.check}", 0.1) for verdict in made]


def report(entries=None, **settings):
    return Report.of(
        decide(verdicts() if entries is None else entries, Course(exit_status=1)),
        Settings(model="<img src=x>", **settings),
        command="pytest --diffusion-model='<img src=x>'",
    )


def test_worst_first():
    assert [entry.verdict.check for entry in worst_first(verdicts())] == ["fid", "kid", "vae_psnr", "precision"]


def test_the_summary_s_picture_has_the_nearest_figures_worst_first():
    text = summary(report())
    chart = text[text.index("```mermaid") : text.index("```", text.index("```mermaid") + 3)]
    # fid 41.2 ± 1 lies far beyond 30; kid 29 ± 2 half an interval inside 30; precision 0.9, whose interval begins at 0.8, three inside 0.6.
    assert 'x-axis ["fid", "kid", "precision"]' in chart
    bars = [float(number) for number in re.search(r"bar \[(.*)\]", chart)[1].split(", ")]
    assert bars == pytest.approx([-3, 0.5, 3], abs=0.05)
    assert "```mermaid" not in summary(report([]))


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, name, value) for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_is_self_contained_and_escaped():
    page = render(report())
    assert page.count("<script") == 1  # our own, which the policy names by its hash
    assert "<img src=x>" not in page
    assert "FID &lt;script&gt;" in page
    links = Links()
    links.feed(page)
    assert all(value.startswith(("#", "data:")) for _, _, value in links.found)
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", page)
    assert "The gate is closed." in page
    assert "prefers-color-scheme: dark" in page


def test_json_is_all_of_it_and_strict():
    text = json.dumps(report().to_json(), allow_nan=False)
    loaded = json.loads(text)
    assert loaded["counts"] == {"fail": 1, "inconclusive": 1, "skipped": 1, "pass": 1}
    assert Verdict.from_json(loaded["verdicts"][0]).measurement.value == 41.2
    assert loaded["verdicts"][0]["mode"] == loaded["verdicts"][0]["lens"] == "metrics"


def test_a_report_is_read_back_as_it_was_written():
    written = report(lenses=("metrics",), thresholds=("sd15", "mine.toml"))
    loaded = Report.from_json(json.loads(json.dumps(written.to_json(), allow_nan=False)))
    assert loaded == written
    assert render(loaded) == render(written)
    with pytest.raises(ValueError, match="the report has schema 99; this version reads 1 and 2"):
        Report.from_json({**written.to_json(), "schema": 99})


def test_numbers_that_are_none_come_back_as_numbers():
    measured = Measurement(float("inf"), interval=(float("-inf"), float("inf")), series={"values": [float("nan"), 1.0, float("-inf")]})
    verdict = judge("fid", measured, Limits(at_least=0.0, source="s"))
    loaded = Verdict.from_json(json.loads(json.dumps(verdict.to_json(), allow_nan=False)))
    assert loaded.measurement.value == float("inf")
    assert loaded.measurement.interval == (float("-inf"), float("inf"))
    assert str(loaded.measurement.series["values"]) == "[nan, 1.0, -inf]"
    assert loaded.limits == verdict.limits


def test_markdown_escapes_pipes_and_tags():
    text = summary(report())
    assert "| fail | fid |" in text
    assert "<b>" not in text


def test_written_beside_each_other(tmp_path):
    made = report(report="deep/r.html")
    assert ReportFiles(tmp_path / made.settings.report).write(made) == [
        str(tmp_path / "deep" / "r.html"),
        str(tmp_path / "deep" / "r.json"),
    ]
    assert json.loads((tmp_path / "deep" / "r.json").read_text()) == made.to_json()
    assert list((tmp_path / "deep").glob("*.part")) == []


SERIES = {
    "log_snr_first": {"log_snr": {"linear": [9.0, 0.0, -10.0], "this model": [7.0, 0.0, float("-inf")]}},
    "log_snr_midway": {"falls": {"linear": 11.0, "this model": 8.0}},
    "fid_infinity": {"infinity": 20.0, "sizes": [62, 125, 250], "distances": [90.0, 50.0, 30.0]},
    "clip_score": {"scores": [80.0, 90.0], "other": [10.0, 20.0]},
    "attention_not_uniform": {"entropy": {"up_blocks.0": [0.9, 0.8]}, "timesteps": [951.0, 51.0]},
    "slerp_smooth": {"steps": [1.0, 1.2], "slerp_norms": [16.0, 16.0, 16.0], "lerp_norms": [16.0, 12.0, 16.0]},
    "ood_auroc": {"scores": {"held-out references": [0.1, 0.2], "noise": [1.0, 0.0]}},
}


PLOTS = {check.name: check.plot for check in all_checks() if check.plot is not None}


@pytest.mark.parametrize("check", SERIES)
def test_plots_follow_the_page(check):
    svg = draw(check, PLOTS[check], SERIES[check])
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "<metadata" not in svg
    assert all(name.startswith(f"{check}-") for name in re.findall(r'id="([^"]+)"', svg))


def with_series(check, series):
    return Entry(replace(verdicts()[0].verdict, check=check, measurement=Measurement(1.0, series=series)), f"diffusion::{check}")


def test_nan_in_a_series_takes_nothing_with_it():
    nan = [float("nan")] * 2
    entropy = {"entropy": {"up_blocks.0": nan}, "timesteps": [951.0, 51.0]}
    assert draw("attention_not_uniform", PLOTS["attention_not_uniform"], entropy).startswith("<svg")
    assert draw("ood_auroc", PLOTS["ood_auroc"], {"scores": {"noise": nan}}) == ""
    page = render(report([with_series("fid_infinity", {"sizes": [1], "distances": []})]))
    assert "The plot of fid_infinity could not be drawn" in page


def test_pictures_stand_where_their_check_declares_them():
    series = {**SERIES["clip_score"], "images": ["data:image/png;base64,AA"], "captions": ["a <b>red</b> circle (90)"]}
    page = render(report([with_series("clip_score", series)]))
    assert "Worst samples by CLIP score" in page
    assert "a &lt;b&gt;red&lt;/b&gt; circle (90)" in page
    gallery = {"title": "Samples", "rows": [["data:image/png;base64,BB"]], "captions": ["seed 0"], "note": "", "is_strip": False}
    page = render(replace(report(), facts={"gallery": gallery}))
    assert 'src="data:image/png;base64,BB"' in page


def test_the_first_screen_answers_what_a_release_manager_asks():
    entries = [Entry(judge("fid", Measurement(30.0, interval=(28.0, 32.0), num_samples=500), Limits(at_most=50.0)), "diffusion::fid", 75.0)]
    entries.append(Entry(skipped("kid", "no reference"), "diffusion::kid", 1.0))
    decision = decide(entries, Course(expected=("fid", "kid", "precision")))
    settings = Settings(model="m", baseline="parent", reference="photos", thresholds=("mine.toml",))
    found = dict(first_lines(Report.of(decision, settings, command="pytest", facts={"generated": 500, "seconds": 76.0})))
    assert found["Compared with"] == "the model parent, the limits of mine.toml, the images of photos"
    assert found["How sure"].startswith("fid is the nearest to its limit, 19.6 standard errors inside; with other seeds, fewer than 0.1 %")
    assert found["Cost"] == "1 min 16 s, 500 samples were drawn"
    assert found["Not looked at"] == "checks: 1 with nothing to measure, 1 not run"


def test_each_outcome_says_what_to_do_next():
    declared = next(check for check in all_checks() if check.name == "fid")
    verdicts = {
        limit: judge("fid", Measurement(30.0, interval=(28.0, 32.0), num_samples=500), Limits(at_most=limit)) for limit in (50, 31, 20)
    }
    told = {verdict.outcome: meaning(verdict, declared) for verdict in verdicts.values()}
    assert told["pass"] == f"It finds {declared.sees}. It does not see {declared.blind_to}."
    assert "Next: draw more samples" in told["inconclusive"]
    assert "--diffusion-baseline says which part did it" in told["fail"]
    assert meaning(verdicts[50], None) == ""


def test_the_only_script_is_named_by_its_hash():
    page = render(report())
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in page


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (2.34, "2.34 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_the_report_names_no_check():
    """Plots, pictures and texts are declared at the checks."""
    # "runs" is a plain word too, which the history needs.
    names = ({check.name for check in all_checks()} | set(scheduler_checks())) - {"runs"}
    root = Path(__file__).parents[2]
    for file in [*(root / "pytest_diffusion" / "report").glob("*.py"), *(root / "templates").glob("*.j2")]:
        words = set(re.findall(r"\w+", file.read_text(encoding="utf-8")))
        assert not words & names, file


def test_texts_that_a_conftest_adds_are_sections():
    page = render(replace(report(), extra={"Approved <by>": "Ada & Grace"}))
    assert "<h2>Approved &lt;by&gt;</h2>" in page
    assert "Ada &amp; Grace" in page


@pytest.mark.parametrize(("weights", "joined"), [("a", True), ("b", False)])
def test_a_partial_run_of_other_weights_joins_no_report(tmp_path, weights, joined):
    expected = ("fid", "kid")
    whole = decide([entry for entry in verdicts() if entry.verdict.check in expected], Course(expected=expected))
    partial = decide([entry for entry in verdicts() if entry.verdict.check == "fid"], Course(expected=expected))
    shared = {"command": "pytest", "expected": list(expected)}
    ReportFiles(tmp_path / "r.html").write(Report.of(whole, Settings(model="m"), facts={"weights": "a"}, **shared))
    ReportFiles(tmp_path / "r.html").write(Report.of(partial, Settings(model="m"), facts={"weights": weights}, **shared))
    assert (tmp_path / "r.partial.json").exists() != joined
    assert len(json.loads((tmp_path / "r.json").read_text())["verdicts"]) == 2


def test_only_what_was_measured_is_called_reported():
    kid = judge("kid", Measurement(1.0), None, lens="metrics")
    for verdict, said in ((kid, True), (skipped("kid", "no reference", lens="metrics"), False)):
        page = render(Report.of(decide([Entry(verdict, "diffusion::kid")], Course()), Settings(model="m"), command="pytest"))
        assert ("reported only" in page) == said
