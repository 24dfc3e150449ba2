"""Loading from the hub, over a server on loopback that speaks its protocol: success, cut connections, and refusals."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from PIL import Image
from safetensors.torch import load_file, save_file

from pytest_diffusion.data.hub import hub_failure, why
from pytest_diffusion.demo import reference_captions, reference_images, weights_folder
from tests.data.loopback_hub import LoopbackHub

REFUSED = {"team/gated": (403, "GatedRepo"), "team/private": (401, "RepoNotFound"), "datasets/team/gated": (403, "GatedRepo")}


@pytest.fixture
def hub(tmp_path):
    scenes = tmp_path / "scenes"
    (scenes / "train").mkdir(parents=True)
    lines = []
    for index, (image, caption) in enumerate(zip(reference_images(6), reference_captions(6), strict=True)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(scenes / "train" / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": caption}))
    (scenes / "train" / "metadata.jsonl").write_text("\n".join(lines))
    half = tmp_path / "half"
    shutil.copytree(weights_folder(), half)
    (half / "unet" / "config.json").unlink()
    clip = tmp_path / "clip"
    shutil.copytree(weights_folder() / "clip", clip)
    # The hub's client keeps what it received in pieces of 10 MB: only of a larger file is there something to go on from.
    tensors = load_file(clip / "model.safetensors")
    save_file({**tensors, "padding": torch.zeros(3, 2**21)}, clip / "model.safetensors", {"format": "pt"})
    folders = {
        "team/demo": weights_folder(),
        "team/clip": clip,
        "team/half": half,
        "datasets/team/scenes": scenes,
    }
    with LoopbackHub(
        folders, REFUSED, cut=("team/clip/model.safetensors", "team/demo/unet/diffusion_pytorch_model.safetensors")
    ).running() as server:
        yield server


def environment(tmp_path, url):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **own, "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}


def test_a_model_a_clip_and_a_data_set_come_from_the_hub(hub, tmp_path):
    """Connections are cut once in the middle of two files; the download goes on from there."""
    command = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
        *("--diffusion-model=team/demo", "--diffusion-clip-model=team/clip", "--diffusion-reference=hf:team/scenes"),
        *("--diffusion-num-samples=5", "--diffusion-steps=1", "--diffusion-features=pixels", "--diffusion-cache-dir=cache"),
        *("-k", "unused_tensors or clip_score or reference_images"),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path, hub.url), capture_output=True, text=True, check=False)
    report = json.loads((tmp_path / "diffusion-report.json").read_text())
    outcomes = {verdict["check"]: verdict["outcome"] for verdict in report["verdicts"]}
    assert (outcomes["unused_tensors"], outcomes["reference_images"]) == ("pass", "pass"), done.stdout
    assert outcomes["clip_score"] in ("undersampled", "reported"), done.stdout
    assert (report["run"]["samples"], report["run"]["generated"]) == (5, 5)
    asked = [(path.rpartition("/")[2], part) for method, path, part in hub.asked if method == "GET" and path.startswith("/team/clip/")]
    assert [part for name, part in asked if name == "model.safetensors"] == ["", "bytes=10485760-"], "the download was not resumed"
    assert hub.cut == []


def test_each_refusal_has_its_own_remedy(hub, tmp_path):
    script = """
        import json, sys
        from pytest_diffusion.config.settings import Settings
        from pytest_diffusion.features.clip import load_clip
        from pytest_diffusion.data.references import load_reference
        from pytest_diffusion.models.load import load_pipeline
        ways = {
            "model": lambda name: load_pipeline(Settings(model=name)),
            "clip": load_clip,
            "reference": lambda name: load_reference("hf:" + name, height=32, width=32, limit=5),
        }
        said = []
        for way, name in json.loads(sys.argv[1]):
            try:
                ways[way](name)
                said.append("loaded")
            except Exception as error:
                said.append(type(error).__name__ + ": " + str(error))
        print("SAID", json.dumps(said))
        """
    asked = [
        *(("model", "team/gated"), ("model", "team/private"), ("model", "team/none"), ("model", "team/half")),
        *(("clip", "team/gated"), ("clip", "team/none"), ("reference", "team/none"), ("reference", "team/gated")),
    ]
    command = [sys.executable, "-c", textwrap.dedent(script), json.dumps(asked)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path, hub.url), capture_output=True, text=True, check=False)
    assert "SAID" in done.stdout, done.stderr
    said = json.loads(done.stdout.partition("SAID")[2])
    expected = [
        "SetupError: --diffusion-model: team/gated cannot be loaded: it is gated",
        "SetupError: --diffusion-model: team/private cannot be loaded: the hub has no such repository, or it is private",
        "SetupError: --diffusion-model: team/none cannot be loaded: the hub has no such repository, or it is private",
        "ModelError: --diffusion-model: team/half cannot be loaded: OSError: Error no file named config.json found",
        "SetupError: --diffusion-clip-model: team/gated cannot be loaded: it is gated",
        "SetupError: --diffusion-clip-model: team/none cannot be loaded: the hub has no such repository",
        "SetupError: --diffusion-reference: hf:team/none cannot be loaded: Dataset 'team/none' doesn't exist on the Hub",
        "SetupError: --diffusion-reference: hf:team/gated cannot be loaded: Dataset 'team/gated' is a gated dataset",
    ]
    for text, start in zip(said, expected, strict=True):
        assert text.startswith(start), text


def test_what_the_client_says_comes_before_what_its_transport_says():
    plain = ValueError("of no hub\nand more")
    assert (hub_failure(plain), why(plain), why(KeyError())) == ("", "of no hub", "KeyError")
    lost = ConnectionResetError("reset")
    lost.__cause__ = OfflineModeIsEnabled("off")
    assert "HF_HUB_OFFLINE" in hub_failure(lost)
    general = OSError("cannot be loaded")
    general.__cause__ = TimeoutError()
    assert hub_failure(general).startswith("the hub cannot be reached (TimeoutError)")
    missing = LocalEntryNotFoundError("not in the cache")
    assert hub_failure(missing) == ""
    missing.__cause__ = TimeoutError()
    assert hub_failure(missing).startswith("the hub cannot be reached")
    assert hub_failure(EntryNotFoundError("model.bin is not there")).endswith("needed: model.bin is not there")
