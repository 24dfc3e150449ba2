"""The comparison with a baseline through the real command: candidates on disk, adapters, saved baselines, reports, workers."""

import copy
import json
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.variants import noise
from pytest_diffusion.cli import main
from pytest_diffusion.demo import reference_images
from tests.families.models import build
from tests.models.original_keys import checkpoint
from tests.nightly import nightly

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ("--diffusion-steps=4", "--diffusion-max-samples=32")


@pytest.fixture(scope="module")
def candidates(tmp_path_factory, demo_pipeline):
    """Folders of changed demos."""
    folder = tmp_path_factory.mktemp("candidates")
    for name, part, amount in (("damaged", "unet", 0.1), ("slightly", "unet", 0.001), ("decoder", "vae.decoder", 0.2)):
        changed = copy.deepcopy(demo_pipeline)
        noise(part, amount)(changed, 0)
        changed.save_pretrained(folder / name)
    demo_pipeline.save_pretrained(folder / "copy")
    return folder


@pytest.fixture
def gate(pytester, shared_cache):
    def run(model="demo", baseline="demo", *extra, lenses="paired"):
        options = [f"--diffusion-model={model}"] if model else []
        options += [f"--diffusion-baseline={baseline}"] if baseline else []
        options += [f"--diffusion-lenses={lenses}"] if lenses else []
        result = pytester.runpytest(*options, "--diffusion-thresholds=demo", f"--diffusion-cache-dir={shared_cache}", *extra)
        path = pytester.path / "diffusion-report.json"
        report = json.loads(path.read_text()) if path.is_file() else {"verdicts": []}
        return result, report, {one["check"]: one for one in report["verdicts"]}

    return run


@pytest.mark.parametrize("lenses", ["paired", ""])
def test_equal_models_are_told_at_once_and_nothing_is_drawn(gate, candidates, lenses):
    result, report, verdicts = gate(candidates / "copy", "demo", lenses=lenses)
    assert result.ret == 0
    assert report["gate"] == "open"
    assert verdicts["paired_parts"]["outcome"] == "pass"
    result.stdout.fnmatch_lines(["*same: nothing differs: weights, configurations, tokenizers and scheduler are equal bit by bit*"])
    assert report["run"].get("generated", 0) == 0
    assert "samples" not in report["run"]
    if not lenses:
        assert {one["outcome"] for one in verdicts.values()} == {"pass", "skipped"}
        assert verdicts["fid"]["message"].startswith("nothing differs from the baseline")


def test_what_is_asked_for_by_name_is_judged_although_nothing_differs(gate):
    result, _, verdicts = gate("demo", "demo", lenses="paired,schedule")
    assert result.ret == 0
    assert verdicts["log_snr_first"]["outcome"] == "pass"


def test_a_damaged_candidate_is_refused_before_any_image_is_drawn(gate, candidates):
    result, report, verdicts = gate(candidates / "damaged", "demo")
    assert result.ret == 1
    assert report["gate"] == "closed"
    result.stdout.fnmatch_lines(
        ["fail *paired_denoising_loss *worse: change of denoising loss on noised reference images is * % *allowed at most 10*"]
    )
    assert verdicts["paired_denoising_loss"]["measurement"]["relation"] == "worse"
    assert verdicts["paired_guards"]["message"] == "the gate is closed by denoising_loss already; no image was drawn."
    assert "pairs" not in report["run"]
    assert report["run"]["baseline"]["differs"] == ["unet"]


def test_a_damaged_decoder_is_named(gate, candidates):
    result, _, verdicts = gate(candidates / "decoder", "demo")
    assert result.ret == 1
    assert verdicts["paired_reconstruction_loss"]["outcome"] == "fail"
    assert verdicts["paired_text_encoder_loss"]["outcome"] == "skipped"


def test_few_pairs_cannot_tell_and_the_gate_is_closed(gate, candidates):
    result, report, verdicts = gate(candidates / "slightly", "demo", *QUICK)
    assert result.ret == 1
    assert report["run"]["pairs"] == 32
    assert verdicts["paired_clip_score"]["outcome"] == "inconclusive"
    assert "More than 32 pairs would be needed: raise --diffusion-max-samples" in verdicts["paired_clip_score"]["message"]
    assert verdicts["paired_drift"]["outcome"] == "reported"
    assert verdicts["paired_guards"]["outcome"] == "pass"
    # All pairs' scores are in the report.
    series = verdicts["paired_clip_score"]["measurement"]["series"]
    assert len(series["candidate"]) == len(series["baseline"]) == 32


def written(cache):
    """Finished shards of a cache, with the time at which each was written."""
    return {path: path.stat().st_mtime_ns for path in cache.glob("samples/*/shards/*.json")}


@nightly("a minute for three comparisons")
def test_a_killed_comparison_goes_on_and_finds_the_same(gate, candidates, pytester):
    options = (f"--diffusion-model={candidates / 'slightly'}", "--diffusion-baseline=demo", "--diffusion-lenses=paired", *QUICK)
    own = ("--diffusion-thresholds=demo", f"--diffusion-cache-dir={pytester.path / 'own'}")
    with subprocess.Popen([sys.executable, "-m", "pytest", *options, *own], cwd=pytester.path, stdout=subprocess.DEVNULL) as process:
        while not written(pytester.path / "own") and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = written(pytester.path / "own")
    _, _, verdicts = gate(candidates / "slightly", "demo", *QUICK, *own)
    assert written(pytester.path / "own").items() > kept.items()  # what is finished is not made again
    _, _, undisturbed = gate(candidates / "slightly", "demo", *QUICK)
    scores = [found["paired_clip_score"]["measurement"]["series"] for found in (verdicts, undisturbed)]
    assert scores[0] == scores[1]


@nightly("a minute of pairs; tests/gate judges margins")
def test_margins_of_the_users_own_open_the_gate(gate, candidates, tmp_path):
    wide = tmp_path / "wide.toml"
    names = ("clip_score", "alignment", "brightness", "contrast", "saturation", "sharpness", "precision")
    # Figures of second moments need two samples for each of the 64 features.
    reported = "".join(f'[paired.{name}]\nkind = "reported"\nsource = "a test"\n' for name in ("fid", "vendi_score"))
    wide.write_text("[paired]\npairs = 32\n" + reported + "".join(f'[paired.{name}]\nspreads = 9\nsource = "a test"\n' for name in names))
    result, report, verdicts = gate(candidates / "slightly", "demo", *QUICK, f"--diffusion-thresholds={wide}")
    assert result.ret == 0, report["reasons"]
    assert verdicts["paired_precision"]["measurement"]["relation"] == "same"
    assert verdicts["paired_precision"]["limits"]["origin"] == "file"
    # The pairs of each worker of xdist are those of one store.
    result, report, verdicts = gate(
        candidates / "slightly", "demo", *QUICK, f"--diffusion-thresholds={wide}", "-n", "2", "--dist", "loadgroup"
    )
    assert result.ret == 0
    assert verdicts["paired_precision"]["measurement"]["relation"] == "same"


@nightly("half a minute; .ci/run gates an adapter")
def test_an_adapter_on_the_baseline(gate, tmp_path, demo_pipeline):
    state = {}
    for name, module in demo_pipeline.unet.named_modules():
        if name.endswith("attn2.to_q"):
            key = "lora_unet_" + name.replace(".", "_")
            state[f"{key}.lora_down.weight"] = torch.randn(4, module.in_features, generator=torch.Generator().manual_seed(0))
            state[f"{key}.lora_up.weight"] = torch.randn(module.out_features, 4, generator=torch.Generator().manual_seed(1)) * 2
            state[f"{key}.alpha"] = torch.tensor(4.0)
    save_file(state, tmp_path / "strong.safetensors")
    save_file({key: value * 0 if "up" in key else value for key, value in state.items()}, tmp_path / "zeros.safetensors")
    result, report, verdicts = gate("", "demo", f"--diffusion-lora={tmp_path / 'strong.safetensors'}")
    assert result.ret == 1
    assert verdicts["paired_lora"]["outcome"] == "pass"
    assert verdicts["paired_denoising_loss"]["outcome"] == "fail"
    assert report["settings"]["model"] == report["settings"]["baseline"] == "demo"
    assert "unet: an adapter on 7 layers" in verdicts["paired_parts"]["message"]
    result, _, _ = gate("", "demo", f"--diffusion-lora={tmp_path / 'zeros.safetensors'}", "-k", "lora")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["fail *paired_lora *worse: * The adapter does nothing: all its weights are zero, or its scale is.*"])


@nightly("a minute for two comparisons")
def test_a_saved_baseline_with_another_number_of_threads(gate, candidates, tmp_path, shared_cache, capsys):
    path = tmp_path / "demo.diffusion"
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        code = main(["baseline", "save", "demo", "--to", str(path), *QUICK, f"--diffusion-cache-dir={tmp_path / 'elsewhere'}"])
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    assert "32 samples of 32x32, steps 4, guidance 4.0, seed 0" in capsys.readouterr().out
    assert main(["baseline", "show", str(path)]) == 0
    assert "denoising_loss on 256 images" in capsys.readouterr().out
    result, report, verdicts = gate(candidates / "damaged", path, *QUICK)
    assert result.ret == 1
    assert verdicts["paired_denoising_loss"]["measurement"]["relation"] == "worse"
    result, report, verdicts = gate(candidates / "slightly", path, *QUICK)
    assert report["run"]["pairs"] == 32
    assert verdicts["paired_drift"]["message"] == "the baseline was saved without its images."
    result, report, verdicts = gate(candidates / "copy", path, *QUICK)
    assert (result.ret, report["gate"]) == (0, "open")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--diffusion-baseline=nowhere/else/at-all"], "*--diffusion-baseline: the folder nowhere/else/at-all does not exist*"),
        (["--diffusion-baseline=old.diffusion"], "*--diffusion-baseline: the file old.diffusion does not exist*"),
        (["--diffusion-baseline=demo", "--diffusion-lora=none.safetensors"], "*--diffusion-lora: none.safetensors does not exist*"),
        (
            ["--diffusion-baseline=demo", "--diffusion-lora=x:0"],
            "*--diffusion-lora is 'x:0': expected FOLDER_OR_FILE or FOLDER_OR_FILE:SCALE*",
        ),
        (["--diffusion-lenses=paired"], "*--diffusion-lenses: paired compares with a baseline; name it with --diffusion-baseline*"),
        (["--diffusion-max-samples=64"], "*--diffusion-max-samples is used with --diffusion-baseline alone*"),
        (
            ["--diffusion-baseline=demo", "--diffusion-scorer=dinov2:x"],
            "*compares with pictures of a subject; give them with --diffusion-subject*",
        ),
        (["--diffusion-baseline=demo", "--diffusion-scorer=nothing"], "*--diffusion-scorer is 'nothing'; expected one of: *"),
        (["--diffusion-baseline=demo", "--diffusion-retention=nowhere/at/all"], "*--diffusion-retention: *nowhere/at/all*"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_loaded(pytester, arguments, message):
    result = pytester.runpytest("--diffusion-model=demo", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_models_that_cannot_be_paired_are_one_sentence(gate, tmp_path):
    build("ddpm").save_pretrained(tmp_path / "ddpm")
    result, report, verdicts = gate(tmp_path / "ddpm", "demo")
    assert result.ret == 10
    assert report["gate"] == "closed"
    assert "only one of them is conditioned on text: the candidate takes no prompts" in verdicts["paired_parts"]["message"]


def test_code_that_changes_the_samples_of_equal_weights_is_seen(gate, pytester):
    (pytester.path / "conftest.py").write_text(
        textwrap.dedent(
            """
            import pytest
            from benchmarks.variants import channels_swapped
            @pytest.fixture(scope="session")
            def diffusion_pipeline(diffusion_settings):
                from pytest_diffusion.models.load import load_pipeline
                pipeline = load_pipeline(diffusion_settings)
                channels_swapped(pipeline, 0)
                return pipeline
            """
        )
    )
    result, _, verdicts = gate("demo", "demo")
    assert result.ret == 1
    assert "what your own code does with them cannot be seen" in verdicts["paired_parts"]["message"]
    assert verdicts["paired_reconstruction_loss"]["outcome"] == "fail"


def test_a_users_own_test_has_the_pairs(gate, pytester, candidates):
    pytester.makepyfile(
        """
        def test_mine(diffusion_pairs, diffusion_baseline_pipeline, diffusion_baseline_samples, diffusion_denoising):
            assert diffusion_pairs.pairs == len(diffusion_baseline_samples.images) == 32
            assert diffusion_baseline_samples.prompts == diffusion_pairs.prompts
            assert diffusion_denoising.decided.word == "same"
            assert diffusion_baseline_pipeline.unet is not None
        """
    )
    result, _, _ = gate(candidates / "slightly", "demo", *QUICK, "-k", "mine")
    result.assert_outcomes(passed=1, deselected=17)


def test_two_reports_without_a_model(gate, tmp_path, capsys):
    """The exit code gates; figures of other protocols are left aside."""
    kept = tmp_path / "old.json"
    _, report, _ = gate(
        "demo", "", "--diffusion-num-samples=64", "--diffusion-steps=4", "-k", "fid or clip_score or vendi", lenses="metrics"
    )
    kept.write_text(json.dumps(report))
    assert main(["compare", str(kept), str(kept), "--thresholds", "demo"]) == 1  # two samples of 64 cannot tell
    out = capsys.readouterr().out
    assert "cannot tell: change of " in out
    assert "Unpaired: the two runs drew their samples apart" in out
    worse = json.loads(json.dumps(report))
    for one in worse["verdicts"]:
        if one["check"] == "fid":
            one["measurement"]["value"] += 400
            one["measurement"]["interval"] = [end + 400 for end in one["measurement"]["interval"]]
    (tmp_path / "new.json").write_text(json.dumps(worse))
    assert main(["compare", str(kept), str(tmp_path / "new.json"), "--thresholds", "demo", "--markdown", str(tmp_path / "table.md")]) == 1
    assert "worse: change of Fréchet distance is 400" in capsys.readouterr().out
    assert "| fid | 400" in (tmp_path / "table.md").read_text()
    wide = tmp_path / "wide.toml"
    wide.write_text("".join(f'[paired.{name}]\nmargin = 1000\nsource = "a test"\n' for name in ("fid", "clip_score", "vendi_score")))
    assert main(["compare", str(kept), str(kept), "--thresholds", str(wide)]) == 0
    capsys.readouterr()
    (tmp_path / "bad.json").write_text("{}")
    assert main(["compare", str(kept), str(tmp_path / "bad.json")]) == 2
    assert "is no report.json of a finished run" in capsys.readouterr().err
    assert main(["compare", str(kept), str(tmp_path / "none.json")]) == 2


def test_a_report_as_the_baseline(gate, tmp_path, pytester):
    kept = tmp_path / "old.json"
    quick = ("--diffusion-num-samples=64", "--diffusion-steps=4", "-k", "fid or clip_score or vendi")
    _, report, _ = gate("demo", "", *quick, lenses="metrics")
    kept.write_text(json.dumps(report))
    wide = tmp_path / "wide.toml"
    wide.write_text("".join(f'[paired.{name}]\nmargin = 1000\nsource = "a test"\n' for name in ("fid", "clip_score", "vendi_score")))
    _, report, verdicts = gate("demo", kept, *quick, f"--diffusion-thresholds={wide}", "--diffusion-report=new.html", lenses="metrics")
    verdicts = {one["check"]: one for one in json.loads((pytester.path / "new.json").read_text())["verdicts"]}
    assert verdicts["against_fid"]["measurement"]["relation"] == "same"
    assert verdicts["against_fid"]["outcome"] == "pass"
    assert "paired_guards" not in verdicts
    assert "paired" not in verdicts  # the promise was kept
    kept.write_text("{}")
    result = pytester.runpytest("--diffusion-model=demo", f"--diffusion-baseline={kept}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--diffusion-baseline: * is no report.json of a finished run: *"])


AT_NIGHT = nightly("pairs of a model of its own; tests/families has its checks")
FAMILIES = {
    "sdxl": ("--diffusion-prompts=prompts.txt",),
    "sd3": ("--diffusion-prompts=prompts.txt",),
    "ddpm": (),
    "dit": (),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=AT_NIGHT if name != "dit" else []) for name in FAMILIES])
def test_other_families(pytester, shared_cache, tmp_path, name):
    """Random weights: a change of them is seen part by part, in the loss of the family's own kind, and in pairs of samples."""
    parent = build(name)
    parent.save_pretrained(tmp_path / "parent")
    part = "unet" if hasattr(parent, "unet") else "transformer"
    noise(part, 0.02)(parent, 0)
    parent.save_pretrained(tmp_path / "candidate")
    (pytester.path / "prompts.txt").write_text("a photo of a red car\na photo of a blue dog\n")
    np.savez(tmp_path / "reference.npz", arr_0=reference_images(24).permute(0, 2, 3, 1).numpy())
    (tmp_path / "few.toml").write_text("[paired]\npairs = 16\nreferences = 24\n")
    result = pytester.runpytest(
        f"--diffusion-model={tmp_path / 'candidate'}",
        f"--diffusion-baseline={tmp_path / 'parent'}",
        "--diffusion-lenses=paired",
        f"--diffusion-reference={tmp_path / 'reference.npz'}",
        "--diffusion-features=pixels",
        "--diffusion-clip-model=demo",
        "--diffusion-steps=2",
        "--diffusion-max-samples=16",
        f"--diffusion-thresholds={tmp_path / 'few.toml'}",
        f"--diffusion-cache-dir={shared_cache}",
        *FAMILIES[name],
    )
    report = json.loads((pytester.path / "diffusion-report.json").read_text())
    verdicts = {one["check"]: one for one in report["verdicts"]}
    assert "errors" not in result.parseoutcomes()
    assert [one["message"] for one in verdicts.values() if one["outcome"] == "broken"] == []
    assert report["run"]["baseline"]["differs"] == [part]
    loss = verdicts["paired_denoising_loss"]
    assert loss["outcome"] in ("pass", "fail", "inconclusive")
    assert len(loss["measurement"]["series"]["bands"]) == 5
    if loss["outcome"] != "fail":
        assert report["run"]["pairs"] == 16
        assert verdicts["paired_brightness"]["measurement"]["num_samples"] == 16
        assert ("paired_clip_score" in {one for one in verdicts if verdicts[one]["measurement"]}) == (name in ("sdxl", "sd3"))
    assert "reference" not in verdicts  # something was held against it


def test_one_checkpoint_file_against_its_parent(pytester, shared_cache, tmp_path):
    """The file has a UNet alone; its other parts and its configuration are the baseline's."""
    parent = build("sd15")
    parent.save_pretrained(tmp_path / "parent")
    noise("unet", 0.5)(parent, 0)
    save_file(checkpoint(parent, with_vae=False, with_text=False), tmp_path / "tuned.safetensors")
    result = pytester.runpytest(
        f"--diffusion-model={tmp_path / 'tuned.safetensors'}",
        f"--diffusion-baseline={tmp_path / 'parent'}",
        "--diffusion-clip-model=demo",
        f"--diffusion-cache-dir={shared_cache}",
        "-k",
        "paired_parts",
    )
    result.stdout.fnmatch_lines(["pass *paired_parts *same: unet: * tensors changed, by * of their norm*"])


def test_scorers_of_the_users_own_are_checks_of_their_own(gate, pytester, candidates):
    (pytester.path / "my_scorers.py").write_text("def darkness(images, prompts):\n    return 255 - images.float().mean((1, 2, 3))\n")
    pytester.syspathinsert()
    _, report, verdicts = gate(candidates / "slightly", "demo", *QUICK, "--diffusion-scorer=my_scorers:darkness", "--diffusion-scorer=clip")
    found = verdicts["paired_darkness"]
    assert found["measurement"]["num_samples"] == 32
    assert found["limits"]["where"] == "thresholds/default.toml [paired.scorer]"
    assert len(found["measurement"]["series"]["candidate"]) == 32
    assert report["gate"] == "closed"


@nightly("half a minute for two comparisons")
def test_more_pairs_go_on_from_those_that_were_drawn(gate, candidates):
    _, report, _ = gate(candidates / "decoder", "demo", "--diffusion-steps=3", "--diffusion-max-samples=16", "-k", "guards or parts")
    assert "pairs" not in report["run"]  # refused before anything was drawn
    drawn = []
    for most in (16, 32):
        _, report, _ = gate(candidates / "slightly", "demo", "--diffusion-steps=3", f"--diffusion-max-samples={most}")
        drawn.append(report["run"]["pairs"])
    assert drawn == [16, 32]


def test_a_broken_baseline_says_nothing_of_the_candidate(gate, pytester):
    (pytester.path / "conftest.py").write_text(
        textwrap.dedent(
            """
            import pytest
            @pytest.fixture(scope="session")
            def diffusion_baseline_pipeline(diffusion_settings):
                import torch
                from pytest_diffusion.models.load import load_pipeline
                pipeline = load_pipeline(diffusion_settings)
                with torch.no_grad():
                    pipeline.vae.decoder.conv_out.weight.zero_()
                    pipeline.vae.decoder.conv_out.bias.zero_()
                return pipeline
            """
        )
    )
    result, _, verdicts = gate("demo", "demo", *QUICK, "-k", "guards or clip")
    assert "demo is broken itself: 16 of its first 16 samples have one colour; nothing was compared" in verdicts["paired_guards"]["message"]
    assert result.ret == 10
