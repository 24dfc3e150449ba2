"""`--diffusion-selftest` from the command line to the report, and a thresholds file from that report."""

import json

import pytest

from pytest_diffusion.cli import main
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.gate.suggestions import Suggested, SuggestedLimit
from pytest_diffusion.verdicts.errors import SettingsError

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = "[paired]\npairs = 16\nreferences = 32\n"


def run(pytester, shared_cache, *arguments):
    pytester.makefile(".toml", own=SMALL)
    found = pytester.runpytest_subprocess(
        "--diffusion-model=demo",
        "--diffusion-thresholds=demo",
        "--diffusion-thresholds=own.toml",
        "--diffusion-steps=4",
        f"--diffusion-cache-dir={shared_cache}",
        *arguments,
        "diffusion::selftest",
    )
    path = pytester.path / "diffusion-report.partial.json"
    return found, json.loads((path if path.is_file() else pytester.path / "diffusion-report.json").read_text())


def test_what_is_required_and_missed_closes_the_gate(pytester, shared_cache):
    found, report = run(pytester, shared_cache, "--diffusion-selftest-require=denoiser_noise:0.2,shift_factor")
    assert found.ret != 0
    found.stdout.fnmatch_lines(
        [
            "*shift_factor: it does not fit this model: its VAE has no shift factor.*",
            "damage *comparison with the parent*",
            "noise of 20 % in the denoiser's weights*worse: denoising_loss*images*1 of 1*",
            "sound: weights rounded to bfloat16*",
            "Self-test (quick) of demo*",
        ]
    )
    test = report["run"]["selftest"]
    assert test["rows"][0]["damage"] == "denoiser_noise"
    assert test["not_applicable"]["lora_twice"] == "it has no adapter"
    assert len(test["trials"]) >= 12
    page = next(pytester.path.glob("diffusion-report*.html")).read_text()
    assert "what this gate catches on this model" in page


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--diffusion-selftest=fast", "expected quick, full, or a number of seconds"),
        ("--diffusion-selftest=0", "expected quick, full, or a number of seconds"),
        ("--diffusion-selftest-require=denoiser_nois", "--diffusion-selftest-require: the damage is 'denoiser_nois'"),
        ("--diffusion-selftest-require=,", "expected names, separated by commas"),
    ],
)
def test_wrong_values_are_refused_before_a_model_is_loaded(pytester, argument, sentence):
    found = pytester.runpytest("--diffusion-model=demo", "--diffusion-lenses=schedule", argument)
    assert found.ret != 0
    assert sentence in found.stdout.str() + found.stderr.str()
    assert "log_snr_first" not in found.stdout.str()


def report_with(folder, **selftest):
    from pytest_diffusion.config.settings import Settings
    from pytest_diffusion.report.contents import Report
    from pytest_diffusion.verdicts.gate import Decision

    facts = {"selftest": selftest} if selftest else {}
    path = folder / "report.json"
    path.write_text(json.dumps(Report([], Settings(), "pytest", Decision("open", 0), facts=facts).to_json()))
    return path


TEST = {"level": "full", "model": "demo", "created": "2026-11-26T12:00:00", "is_copy": False}


def test_a_thresholds_file_follows_from_a_report(tmp_path, capsys):
    margins = [
        vars(Suggested("clip_score", 0.09, 0.1, 0.01, 0.06, "int8_weights", ["denoiser_noise 0.05"], 700)),
        vars(Suggested("brightness", 0.002, 0.1, 0.01, 0.06, "int8_weights", [], 700, direction=0)),
        vars(Suggested("denoising_loss", 10.0, 10.0, 0.0, 0.3, "int8_weights", [], 64, kept=True)),
    ]
    limits = [vars(SuggestedLimit("fid", "at_most", 25.0, 33.0, 20.0, 24.0, "int8_weights", ["few_bits 4"], 1000, 500, "demo-judge"))]
    report, own = report_with(tmp_path, **TEST, suggested=margins, suggested_limits=limits), tmp_path / "own.toml"
    assert main(["thresholds", "suggest", str(report), "--to", str(own)]) == 0
    found = load_thresholds([str(own)])
    assert found.margins.of("clip_score").margin == 0.09
    assert "measured on demo on 2026-11-26: sound changes up to 0.06 (int8_weights)" in found.margins.of("clip_score").source
    assert "beyond it: denoiser_noise 0.05" in found.margins.of("clip_score").source
    assert found.margins.of("brightness").kind == "equivalence"
    assert found.margins.of("denoising_loss") == load_thresholds([]).margins.of("denoising_loss")
    fid = found.for_check("fid")
    assert (fid.at_most, fid.min_samples, fid.min_reference, fid.extractor) == (25.0, 1000, 500, "demo-judge")
    assert main(["thresholds", "suggest", str(report), "--to", str(own)]) == 2
    assert "is there already; name a new file" in capsys.readouterr().err
    assert main(["thresholds", "suggest", str(report)]) == 0
    assert capsys.readouterr().out == own.read_text()


def test_a_report_that_says_too_little_is_refused(tmp_path, capsys):
    assert main(["thresholds", "suggest", str(report_with(tmp_path))]) == 2
    assert "holds no self-test; run pytest with --diffusion-selftest=full" in capsys.readouterr().err
    assert main(["thresholds", "suggest", str(report_with(tmp_path, **TEST, suggested=[]))]) == 2
    assert "too few sound changes" in capsys.readouterr().err
    assert main(["thresholds", "suggest", str(tmp_path / "none.json")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_settings_errors_are_ours():
    from pytest_diffusion.config.settings import resolve

    with pytest.raises(SettingsError, match="--diffusion-selftest"):
        resolve(options={"model": "demo", "selftest": "soon"}, ini={})
    assert resolve(options={"model": "demo", "selftest": "600"}, ini={})[0].selftest == "600"
