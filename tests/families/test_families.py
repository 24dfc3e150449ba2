"""The checklist on every family, loaded from a folder by the real command: what applies is judged, the rest skipped with the reason."""

import json

import numpy as np
import pytest

from pytest_diffusion.demo import reference_images
from pytest_diffusion.verdicts.verdict import JUDGED
from tests.families.models import FAMILIES, build
from tests.nightly import nightly

pytestmark = pytest.mark.filterwarnings("ignore")
WITHOUT_TEXT = {"dit", "ddpm"}
WITHOUT_GUIDANCE = {"lcm", "turbo", "flux"}
OPTIONS = {"turbo": ["--diffusion-guidance-scale=0"], "flux": ["--diffusion-height=64", "--diffusion-width=64"]}
LIKE_ANOTHER = {"sd15", "sd21", "lcm", "turbo", "pixart", "sd3"}
"""Like the demo (a Stable Diffusion of its own), SDXL, or Flux."""
AT_NIGHT = nightly("half a minute to a minute; a family of its kind runs always")
LATENT = {
    "vae_psnr",
    "vae_ssim",
    "latent_std",
    "pipeline_decodes",
    "latent_scale",
    "latent_shift",
    "latent_channels",
    "slerp_smooth",
    "slerp_drift",
    "slerp_detour",
    "slerp_curvature",
    "ood_auroc",
    "ood_false_alarms",
}


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Images as arrays that the harness resizes to each model's size: 48, or 20 for PixArt, whose smallest size is 256 pixels."""
    folder = tmp_path_factory.mktemp("references")
    for count in (20, 48):
        np.savez(folder / f"{count}.npz", arr_0=reference_images(count).permute(0, 2, 3, 1).numpy())
    return folder


@pytest.mark.parametrize("name", [pytest.param(name, marks=AT_NIGHT if name in LIKE_ANOTHER else []) for name in FAMILIES])
def test_a_family(pytester, shared_cache, references, tmp_path, name):
    build(name).save_pretrained(tmp_path / name)
    (pytester.path / "prompts.txt").write_text("a photo of a red car\na photo of a blue dog\n")
    result = pytester.runpytest(
        f"--diffusion-model={tmp_path / name}",
        "--diffusion-lenses=schedule,attention,latent",
        f"--diffusion-reference={references / ('20.npz' if name == 'pixart' else '48.npz')}",
        "--diffusion-prompts=prompts.txt",
        "--diffusion-clip-model=demo",
        "--diffusion-num-samples=16",
        "--diffusion-steps=4",
        f"--diffusion-cache-dir={shared_cache}",
        *OPTIONS.get(name, []),
    )
    verdicts = {one["check"]: one for one in json.loads((pytester.path / "diffusion-report.json").read_text())["verdicts"]}
    outcome = {check: one["outcome"] for check, one in verdicts.items()}
    message = {check: one["message"] for check, one in verdicts.items()}
    assert [text for check, text in message.items() if f"{check} could not be measured" in text] == []
    assert "errors" not in result.parseoutcomes()
    assert {check for check, one in verdicts.items() if one["lens"] == "schedule" and one["outcome"] == "fail"} == set()
    assert outcome["same_seed"] == outcome["batch_invariance"] == outcome["seeds_differ"] == "pass"
    attention = {check for check, one in verdicts.items() if one["lens"] == "attention"}
    if name in WITHOUT_TEXT:
        assert {outcome.pop("attention"), *(outcome[check] for check in attention - {"attention"})} == {"missing", "skipped"}
        assert "not conditioned on text" in message["attention_is_cross"]
    else:
        # What does not depend on trained weights holds; the rest is measured, whatever random weights show.
        assert outcome["attention_is_cross"] == outcome["attention_rows_sum"] == "pass"
        assert outcome["prompt_sensitivity"] in JUDGED
        assert outcome["attention_is_conditional"] == ("skipped" if name in WITHOUT_GUIDANCE else "pass")
        assert {outcome[check] for check in ("attention_not_uniform", "attention_compact")} <= JUDGED
        for check in ("attention_noun_specific", "attention_sharpens"):
            assert "name the layers that show it in your model" in message[check]
        assert "the columns mask and words" in message["attention_localises"]
        assert ("joint attention" in message["attention_is_cross"]) == (name in {"sd3", "flux"})
    if name == "ddpm":
        assert {outcome[check] for check in LATENT} == {"skipped"}
        assert "has no VAE" in message["vae_psnr"]
    else:
        reported = {"pipeline_decodes", "latent_shift", "latent_channels", *(["latent_scale"] if name in WITHOUT_GUIDANCE else [])}
        assert {outcome[check] for check in LATENT - reported} <= JUDGED
        for check in (one for one in reported - {"pipeline_decodes"} if outcome[one] not in JUDGED):
            assert "reported and not judged" in message[check] or "hardly depends on an offset of the latents" in message[check]
        assert outcome["vae_psnr"] == "fail"
        assert outcome["pipeline_decodes"] == ("skipped" if name == "dit" else "pass"), message["pipeline_decodes"]
        assert outcome["latent_scale"] != "pass" or outcome["latent_channels"] != "pass", "random weights know no latents"
