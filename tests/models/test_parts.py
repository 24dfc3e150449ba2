"""Code in a model's folder is refused before anything runs, and files that lack tensors, or hold too many, are said to."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.models.code import refuse_code
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.models.parts import load_parts
from pytest_diffusion.verdicts.errors import ModelError, SettingsError


@pytest.fixture
def folder(tmp_path, demo_pipeline):
    demo_pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


FORGED = {
    "a Python file": lambda folder: (folder / "unet" / "my_unet.py").write_text("raise SystemExit\n"),
    "a pipeline of its own": lambda folder: (folder / "pipeline.py").write_text("raise SystemExit\n"),
    "a part from another library": lambda folder: edit(folder / "model_index.json", lambda index: index.update(unet=["os", "system"])),
    "a part from a file beside it": lambda folder: edit(folder / "model_index.json", lambda index: index.update(unet=["my_unet", "Net"])),
    "a part by a path": lambda folder: edit(folder / "model_index.json", lambda index: index.update(unet=["diffusers", "models.Unet"])),
    "a part of three": lambda folder: edit(folder / "model_index.json", lambda index: index.update(unet=["diffusers", "a.b", "C"])),
    "a pipeline class by module": lambda folder: edit(folder / "model_index.json", lambda index: index.update(_class_name=["my", "Pipe"])),
    "a class by module": lambda folder: edit(folder / "unet" / "config.json", lambda config: config.update(_class_name=["a", "B"])),
    "an auto_map": lambda folder: edit(
        folder / "text_encoder" / "config.json", lambda config: config.update(auto_map={"AutoModel": "m.M"})
    ),
    "an auto_map further in": lambda folder: edit(
        folder / "tokenizer" / "tokenizer_config.json", lambda one: one.update(a=[{"auto_map": 1}])
    ),
}


@pytest.mark.parametrize("forged", FORGED)
def test_code_in_a_folder_is_refused(folder, forged):
    FORGED[forged](folder)
    with pytest.raises(SettingsError, match=r"^--diffusion-model: .*Nothing of it was run.*--diffusion-trust-remote-code\.$") as error:
        resolve(options={"model": str(folder)}, ini={})
    assert "\n" not in str(error.value)
    trusted, _ = resolve(options={"model": str(folder), "trust_remote_code": "true"}, ini={})
    assert trusted.trust_remote_code


def test_sound_folders_are_not_refused(folder):
    resolve(options={"model": str(folder)}, ini={})
    # A safety checker is named by the pipeline that brings it.
    edit(folder / "model_index.json", lambda index: index.update(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]))
    refuse_code("--diffusion-model", folder)


def test_trust_is_not_a_files_to_give(tmp_path):
    (tmp_path / "own.toml").write_text("[settings]\ntrust_remote_code = true\n")
    with pytest.raises(SettingsError, match="may not set trust_remote_code"):
        resolve(options={"model": "demo", "thresholds": [str(tmp_path / "own.toml")]}, ini={})


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_a_part_that_lacks_tensors_is_refused(folder, part):
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    lost = sorted(tensors)[: len(tensors) // 3]
    save_file({name: tensor for name, tensor in tensors.items() if name not in lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{part} lacks {len(lost)} of \d+ tensors .*random numbers would take their place") as error:
        load_pipeline(Settings(model=str(folder), device="cpu"))
    assert "--diffusion-device" not in str(error.value)


def test_stray_tensors_are_counted(folder):
    file = next((folder / "unet").glob("*.safetensors"))
    save_file({**load_file(file), "lora_A.weight": torch.zeros(2), "lora_B.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    pipeline = load_pipeline(Settings(model=str(folder), device="cpu"))
    assert pipeline.load_report.unused == {"unet": ["lora_A.weight", "lora_B.weight"]}
    assert pipeline.load_report.text == "unet: 2 unused (lora_A.weight, lora_B.weight)"


def test_a_sound_checkpoint_uses_all_of_its_files(folder, demo_pipeline):
    parts, report = load_parts(folder)
    assert report.count == 0
    assert report.text == "no tensor is missing, and all are used (text_encoder, unet, vae)"
    for name, part in parts.items():
        for key, tensor in getattr(demo_pipeline, name).state_dict().items():
            assert torch.equal(part.state_dict()[key].float(), tensor), (name, key)
