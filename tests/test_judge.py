"""Figures of other tools, judged by the same limits as those of a run."""

import json

import pytest

from pytest_diffusion.cli import main

LIMITS = '[fid]\nat_most = 20.0\nmin_samples = 1000\nsource = "ours"\n'
FID = {"value": 12.0, "interval": [11.0, 13.0], "num_samples": 5000, "num_reference": 5000, "extractor": "inception"}


@pytest.fixture
def judged(tmp_path, capsys):
    def run(figures, limits=LIMITS):
        (tmp_path / "limits.toml").write_text(limits)
        path = tmp_path / "figures.json"
        path.write_text(figures if isinstance(figures, str) else json.dumps(figures))
        code = main(["judge", str(path), "--thresholds", str(tmp_path / "limits.toml"), "--json", str(tmp_path / "out.json")])
        return code, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("change", "code", "outcome", "gate"),
    [
        ({}, 0, "pass", "open"),
        ({"value": 25.0, "interval": [24.0, 26.0]}, 1, "fail", "closed"),
        ({"value": 20.0, "interval": [19.0, 21.0]}, 1, "inconclusive", "closed"),
        ({"num_samples": 500}, 1, "undersampled", "closed"),
        ({"value": float("nan")}, 1, "fail", "closed"),
        ({"value": 25.0, "interval": [24.0, float("inf")]}, 1, "fail", "closed"),
    ],
)
def test_the_outcomes_are_those_of_a_run(judged, tmp_path, change, code, outcome, gate):
    found, said = judged({"fid": {**FID, **change}})
    assert found == code, said
    assert said.startswith(f"{outcome} ")
    assert f"gate: {gate}" in said
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["gate"], written["exit_code"], written["verdicts"][0]["outcome"]) == (gate, code, outcome)


def test_a_limit_without_a_figure_and_figures_without_a_limit_open_no_gate(judged):
    code, said = judged({"kid": {**FID, "value": 0.5, "interval": [0.4, 0.6]}})
    assert code == 1
    assert "missing      fid" in said
    code, said = judged({"my_score": {**FID}}, '[gate]\ninconclusive = "warn"\n')
    assert code == 1
    assert "Nothing was judged" in said
    assert "gate: empty" in said


def test_a_figure_without_chance_is_called_exact(judged):
    limits = '[log_snr_last]\nat_most = 0.0\nsource = "ours"\n'
    assert judged({"log_snr_last": {"value": -5.0, "exact": True}}, limits)[0] == 0
    assert judged({"log_snr_last": {"value": 5.0, "exact": True}}, limits)[0] == 1


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"fid": {"value": 12.0, "num_samples": 5000}}, "has no interval: a figure of samples needs its 95 % interval"),
        ({"fid": {"value": 12.0, "interval": [11, 13]}}, "has no num_samples"),
        ({"fid": {**FID, "exact": True}}, "has an interval and is called exact"),
        ({"fid": {**FID, "interval": [13, 14]}}, "the value 12 does not lie in its interval"),
        ({"fid": {**FID, "interval": [13]}}, "expected two numbers"),
        ({"fid": {**FID, "num_samples": 2.5}}, "expected a whole number"),
        ({"fid": {**FID, "num_samples": 0}}, "expected a whole number of at least 1"),
        ({"fid": {**FID, "value": "12"}}, "value is '12'; expected a number"),
        ({"fid": {**FID, "samples": 3}}, "the entry is 'samples'"),
        ({"fid": 12.0}, "expected an object with value"),
        ({}, "holds no figures"),
        ({"fid": {**FID, "value": float("inf")}}, "the value inf does not lie in its interval"),
        ('{"fid": {"value": 25}, "fid": {"value": 12}}', "a key stands there twice"),
        ({"fid\x1b[31m": FID}, "is no name of a check"),
        ({"fid": {**FID, "value": 10**400}}, "value is too large"),
        ("[" * 100_000, "is no JSON file"),
        ("[1]", "holds no figures"),
        ("{", "is no JSON file"),
    ],
)
def test_a_bad_file_is_told_in_one_line(judged, figures, message):
    code, said = judged(figures)
    assert code == 2
    assert message in said
    assert said.count("\n") == 1


def test_a_report_is_judged_again_by_other_limits(judged, tmp_path, capsys):
    verdict = {"check": "fid", "outcome": "reported", "message": "", "nodeid": "diffusion::fid"}
    measured = {"value": 12.0, "interval": [11.0, 13.0], "num_samples": 5000, "num_reference": 5000, "protocol": {"extractor": "inception"}}
    report = {
        "schema": 2,
        "gate": "open",
        "exit_code": 0,
        "settings": {},
        "command": "",
        "run": {},
        "versions": {},
        "notes": [],
        "created": "",
    }
    sound = {**verdict, "measurement": measured}
    code, said = judged({**report, "verdicts": [sound]})
    assert code == 0, said
    assert said.startswith("pass ")
    # What had no figure in that run has none now.
    broken = {**verdict, "check": "kid", "outcome": "broken", "message": "no CLIP", "nodeid": "diffusion::kid"}
    code, said = judged({**report, "verdicts": [sound, broken]})
    assert code != 0
    assert "gate: closed" in said
    code, said = judged({**report, "verdicts": [sound], "expected": ["fid", "cmmd"]})
    assert code == 1
    assert "gate: partial" in said
    assert main(["judge", str(tmp_path / "nowhere.json"), "--thresholds", "default"]) == 2
    assert "nowhere.json does not exist" in capsys.readouterr().err
    assert judged({"schema": 2, "verdicts": []})[0] == 2
