import json
import re
from html.parser import HTMLParser

import pytest

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.report.figures import draw
from pytest_diffusion.report.html import render
from pytest_diffusion.report.order import gate, worst_first
from pytest_diffusion.report.write import markdown, report_data, write_reports
from pytest_diffusion.verdicts.verdict import Limits, Measurement, Verdict, judge, skipped

LIMITS = Limits(at_most=30.0, source="Heusel et al.", where="thresholds/default.toml [fid]")


def verdicts():
    made = [
        judge("precision", Measurement(0.9, interval=(0.8, 0.95)), Limits(at_least=0.6, source="s"), mode="metrics", title="Precision"),
        judge("fid", Measurement(41.2, interval=(40, 42), hint="<b>bold</b>"), LIMITS, mode="metrics", title="FID <script>"),
        skipped("vae_psnr", "no VAE", mode="latent", title="Round trip"),
        judge("kid", Measurement(29.0, interval=(27, 31)), LIMITS, mode="metrics", title="KID"),
    ]
    return [{**verdict.to_json(), "nodeid": f"diffusion::{verdict.check}", "seconds": 0.1} for verdict in made]


def data(**settings):
    return report_data(
        Settings(model="<img src=x>", **settings), verdicts(), [], {}, command="pytest --diffusion-model='<img src=x>'", exit_status=1
    )


def test_worst_first():
    assert [verdict["check"] for verdict in worst_first(verdicts())] == ["fid", "kid", "vae_psnr", "precision"]
    assert gate(verdicts(), exit_status=0) == "closed"
    assert gate(verdicts()[:1], exit_status=0) == "open"
    assert gate(verdicts()[:1], exit_status=2) == "closed"
    assert gate(verdicts()[2:3], exit_status=0) == "empty"


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, name, value) for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_is_self_contained_and_escaped():
    page = render(data())
    assert "<script" not in page
    assert "<img src=x>" not in page
    assert "FID &lt;script&gt;" in page
    links = Links()
    links.feed(page)
    assert all(value.startswith(("#", "data:")) for _, _, value in links.found)
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", page)
    assert "The gate is closed." in page
    assert "prefers-color-scheme: dark" in page


def test_json_is_all_of_it_and_strict():
    text = json.dumps(data(), allow_nan=False)
    loaded = json.loads(text)
    assert loaded["counts"] == {"fail": 1, "inconclusive": 1, "skipped": 1, "pass": 1}
    kept = {name: value for name, value in loaded["verdicts"][0].items() if name not in ("nodeid", "seconds")}
    assert Verdict.from_json(kept).measurement.value == 41.2


def test_markdown_escapes_pipes_and_tags():
    text = markdown(data())
    assert "| fail | fid |" in text
    assert "<b>" not in text


def test_written_beside_each_other(tmp_path):
    written = write_reports(Settings(report="deep/r.html"), verdicts(), [], {}, command="pytest", folder=tmp_path, exit_status=1)
    assert written == [str(tmp_path / "deep" / "r.html"), str(tmp_path / "deep" / "r.json")]


SERIES = {
    "log_snr_first": {"log_snr": {"linear": [9.0, 0.0, -10.0], "this model": [7.0, 0.0, "-inf"]}},
    "log_snr_midway": {"falls": {"linear": 11.0, "this model": 8.0}},
    "fid": {"sizes": [62, 125, 250], "distances": [90.0, 50.0, 30.0]},
    "clip_score": {"scores": [80.0, 90.0], "other": [10.0, 20.0]},
    "attention_not_uniform": {"entropy": {"up_blocks.0": [0.9, 0.8]}, "timesteps": [951.0, 51.0]},
    "slerp_smooth": {"steps": [1.0, 1.2], "slerp_norms": [16.0, 16.0, 16.0], "lerp_norms": [16.0, 12.0, 16.0]},
    "ood_auroc": {"scores": {"held-out references": [0.1, 0.2], "noise": [1.0, 0.0]}},
}


@pytest.mark.parametrize("check", SERIES)
def test_plots_follow_the_page(check):
    svg = draw(check, SERIES[check])
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "<metadata" not in svg
    assert all(name.startswith(f"{check}-") for name in re.findall(r'id="([^"]+)"', svg))


def test_nan_in_a_series_takes_nothing_with_it():
    nan = ["nan", "nan"]
    assert draw("attention_not_uniform", {"entropy": {"up_blocks.0": nan}, "timesteps": [951.0, 51.0]}).startswith("<svg")
    assert draw("ood_auroc", {"scores": {"noise": nan}}) == ""
    broken = [{**verdicts()[0], "check": "fid", "measurement": {**verdicts()[0]["measurement"], "series": {"sizes": [1], "distances": []}}}]
    page = render(report_data(Settings(), broken, [], {}, command="pytest", exit_status=0))
    assert "The plot of fid could not be drawn" in page


def test_a_check_without_a_plot_has_none():
    assert draw("fid", {}) == ""
    assert draw("kid", {"x": 1}) == ""
