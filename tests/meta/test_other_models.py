"""The same command on other models: real SD 1.5 configurations at reduced width, and a text-free pixel model."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.nightly import nightly

ZOO = Path(__file__).parents[1] / "data" / "zoo" / "stable-diffusion-v1-5"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def narrow_sd15(tmp_path_factory):
    """Stable Diffusion 1.5 as configured at its release, an eighth as wide, random weights, the demo's tokenizer."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from pytest_diffusion.demo import weights_folder

    def config(name):
        return {key: value for key, value in json.loads((ZOO / f"{name}.json").read_text()).items() if not key.startswith("_")}

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(weights_folder() / "tokenizer")
    unet = {**config("unet"), "block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 64, "sample_size": 8}
    vae = {**config("vae"), "block_out_channels": [32, 32, 32, 32], "sample_size": 64}
    text = {
        **config("text_encoder"),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**vae),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**unet),
        scheduler=PNDMScheduler.from_config(json.loads((ZOO / "scheduler_config.json").read_text())),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "narrow-sd15"
    pipeline.save_pretrained(folder)
    return folder


def outcomes(path):
    data = json.loads(path.read_text())
    return data, {verdict["check"]: verdict for verdict in data["verdicts"]}


@nightly("two minutes; tests/families runs random weights of other kinds")
def test_random_weights_run_to_the_end_and_fail_what_they_must(pytester, shared_cache, narrow_sd15, tmp_path):
    from PIL import Image

    from pytest_diffusion.demo import reference_images

    images = tmp_path / "images"
    images.mkdir()
    for index, image in enumerate(reference_images(220)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((64, 64)).save(images / f"{index:04d}.png")
    (pytester.path / "narrow_sd15_features.py").write_text(
        "import torch\ndef pooled(images):\n    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)\n"
    )
    (pytester.path / "small.toml").write_text(
        "[fid]\nmin_samples = 16\nmin_reference = 100\n"
        "[precision]\nmin_samples = 16\nmin_reference = 100\n[recall]\nmin_samples = 16\nmin_reference = 100\n"
    )
    (pytester.path / "prompts.txt").write_text("a red circle\na blue square\n")
    result = pytester.runpytest(
        f"--diffusion-model={narrow_sd15}",
        f"--diffusion-reference={images}",
        "--diffusion-prompts=prompts.txt",
        "--diffusion-features=narrow_sd15_features:pooled",
        "--diffusion-clip-model=demo",
        "--diffusion-num-samples=24",
        "--diffusion-steps=3",
        "--diffusion-thresholds=sd15",
        "--diffusion-thresholds=small.toml",
        f"--diffusion-cache-dir={shared_cache}",
        "-o",
        "pythonpath=.",
    )
    assert result.ret == 1
    data, verdicts = outcomes(pytester.path / "diffusion-report.json")
    crashed = [verdict["message"] for verdict in verdicts.values() if "could not be measured" in verdict["message"]]
    assert crashed == []
    assert "errors" not in result.parseoutcomes()
    assert data["run"]["thresholds"] == ["thresholds/default.toml", "thresholds/sd15.toml", "small.toml"]
    assert {name for name, verdict in verdicts.items() if verdict["lens"] == "schedule" and verdict["outcome"] == "fail"} == set()
    for check in ("vae_psnr", "precision", "recall"):
        assert verdicts[check]["outcome"] == "fail", verdicts[check]["message"]
    for check in ("finite_images", "same_seed", "batch_invariance", "attention_is_cross", "attention_rows_sum", "log_snr_first"):
        assert verdicts[check]["outcome"] == "pass", verdicts[check]["message"]
    assert verdicts["clip_score"]["outcome"] != "pass"
    assert verdicts["attention_sharpens"]["outcome"] != "pass"


def test_the_preset_is_chosen_by_capability(pytester, narrow_sd15):
    pytester.runpytest(f"--diffusion-model={narrow_sd15}", "--diffusion-lenses=schedule").assert_outcomes(passed=7, skipped=1)
    data, _ = outcomes(pytester.path / "diffusion-report.json")
    assert data["run"]["thresholds"] == ["thresholds/default.toml", "thresholds/sd15.toml"]


def test_a_pixel_model_skips_what_it_does_not_have(pytester, shared_cache, pixel_pipeline, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    pixel_pipeline.save_pretrained(pytester.path / "pixels")
    result = pytester.runpytest(
        "--diffusion-model=./pixels", "--diffusion-num-samples=8", "--diffusion-steps=3", f"--diffusion-cache-dir={shared_cache}"
    )
    data, verdicts = outcomes(pytester.path / "diffusion-report.json")
    by_outcome = {}
    for name, verdict in verdicts.items():
        by_outcome.setdefault((verdict["lens"], verdict["outcome"]), set()).add(name)
    assert data["run"]["thresholds"] == ["thresholds/default.toml", "thresholds/ddpm.toml"]
    assert by_outcome["always", "pass"] == {"same_seed", "batch_invariance", "seeds_differ", "unused_tensors"}
    assert by_outcome["always", "skipped"] == {"guidance_effect", "guidance_linearity", "prompt_sensitivity"}
    assert {outcome for mode, outcome in by_outcome if mode in ("attention", "latent")} == {"skipped"}
    assert by_outcome["metrics", "pass"] == {"finite_images", "constant_images", "duplicate_images"}
    assert len(by_outcome["schedule", "pass"]) == 7
    assert "not conditioned on text" in verdicts["attention_sharpens"]["message"]
    assert "has no VAE" in verdicts["latent_std"]["message"] or "no reference" in verdicts["latent_std"]["message"]
    assert "no reference images are given" in verdicts["fid"]["message"]
    assert "torch-fidelity" in verdicts["inception_score"]["message"]
    assert result.ret == 0


def test_an_extractor_that_is_missing_leaves_no_gap(pytester, shared_cache, pixel_pipeline, tmp_path, monkeypatch):
    """With a reference the FID was asked for: without its extractor the gate stays closed."""
    from PIL import Image

    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    pixel_pipeline.save_pretrained(pytester.path / "pixels")
    (tmp_path / "images").mkdir()
    for index in range(5):
        Image.new("RGB", (16, 16), (40 * index, 0, 0)).save(tmp_path / "images" / f"{index}.png")
    result = pytester.runpytest(
        "--diffusion-model=./pixels",
        "--diffusion-num-samples=8",
        "--diffusion-steps=3",
        f"--diffusion-reference={tmp_path / 'images'}",
        f"--diffusion-cache-dir={shared_cache}",
        "-k",
        "fid",
    )
    assert result.ret == 10
    result.stdout.fnmatch_lines(
        [
            "*fid_infinity could not be measured, for the same reason as fid.",
            "broken*2 checks (fid, fid_infinity)*could not be measured*pip install 'pytest-diffusion?inception?'*",
            "gate: closed",
        ]
    )
