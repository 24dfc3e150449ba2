"""Checkpoint files with the original keys: the same weights as the pipeline that they were made from, with and without all parts."""

import copy
import types

import pytest
import torch
from safetensors.torch import save_file

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.parts import compare_parts
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.models.single_file import load_single_file
from pytest_diffusion.verdicts.errors import ModelError
from tests.families.models import build
from tests.models.original_keys import checkpoint, flux_keys

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def parent(request, tmp_path_factory):
    """A family's pipeline, and its folder."""
    folder = tmp_path_factory.mktemp(request.param) / "parent"
    build(request.param).save_pretrained(folder)
    return load_pipeline(Settings(model=str(folder), device="cpu")), folder


def changed(parent):
    """A fine-tune: another UNet, and the parent's other parts."""
    pipeline = copy.deepcopy(parent)
    with torch.no_grad():
        for weight in pipeline.unet.parameters():
            weight *= 1.01
    return pipeline


def load(path, **rest):
    return load_pipeline(Settings(model=str(path), device="cpu", **rest))


@pytest.mark.parametrize(("with_vae", "with_text"), [(True, True), (False, True), (True, False), (False, False)])
def test_the_weights_are_those_of_the_file_and_the_rest_the_baselines(parent, tmp_path, with_vae, with_text):
    pipeline, folder = parent
    tuned = changed(pipeline)
    save_file(checkpoint(tuned, with_vae=with_vae, with_text=with_text), tmp_path / "tuned.safetensors")
    found = load(tmp_path / "tuned.safetensors", baseline=str(folder))
    assert type(found) is type(pipeline)
    parts = compare_parts(found, tuned)
    assert [part.name for part in parts.parts if part.changed or part.faults] == [], parts.text
    assert compare_parts(found, pipeline).differing == ["unet"]


def test_a_configuration_beside_the_file_serves_too(parent, tmp_path):
    import shutil

    pipeline, folder = parent
    save_file(checkpoint(changed(pipeline), with_vae=False, with_text=False), tmp_path / "tuned.safetensors")
    with pytest.raises(
        ModelError, match=r"holds a denoiser without a VAE and a text encoder\. Give a checkpoint with all parts, a folder tuned\.config"
    ):
        load(tmp_path / "tuned.safetensors")
    shutil.copytree(folder, tmp_path / "tuned.config")
    assert compare_parts(load(tmp_path / "tuned.safetensors"), pipeline).differing == ["unet"]
    for weights in (tmp_path / "tuned.config" / "vae").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelError, match=r"the checkpoint lacks a VAE and a text encoder, and .*vae holds no weights in safetensors"):
        load(tmp_path / "tuned.safetensors")


def test_a_file_that_lacks_tensors_is_refused(parent, tmp_path):
    pipeline, folder = parent
    state = checkpoint(pipeline)
    del state["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(ModelError, match=r"--diffusion-model: .*cut\.safetensors"):
        load(tmp_path / "cut.safetensors", baseline=str(folder))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_flux_file_has_the_transformer_and_the_rest_is_the_baselines(tmp_path, monkeypatch, prefix):
    """As the released files are. diffusers splits the rows of the single blocks at the width of the released model, 3,072."""
    from diffusers.loaders import single_file_model, single_file_utils

    build("flux").save_pretrained(tmp_path / "parent")
    pipeline = load(tmp_path / "parent")
    tuned = copy.deepcopy(pipeline)
    with torch.no_grad():
        for weight in tuned.transformer.parameters():
            weight *= 1.01
    save_file({prefix + key: tensor for key, tensor in flux_keys(tuned.transformer).items()}, tmp_path / "tuned.safetensors")
    released, width = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers, pipeline.transformer.inner_dim
    constants = tuple(width if value == 3072 else value for value in released.__code__.co_consts)
    assert width in constants
    narrow = types.FunctionType(released.__code__.replace(co_consts=constants), released.__globals__)
    monkeypatch.setitem(single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"], "checkpoint_mapping_fn", narrow)
    found = load(tmp_path / "tuned.safetensors", baseline=str(tmp_path / "parent"))
    parts = compare_parts(found, tuned)
    assert [part.name for part in parts.parts if part.changed or part.faults] == [], parts.text
    assert compare_parts(found, pipeline).differing == ["transformer"]


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight", (320, 768), "StableDiffusionPipeline"),
        ("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias", (8,), "StableDiffusionXLPipeline"),
    ],
)
def test_without_a_folder_the_class_is_inferred_from_the_keys(tmp_path, monkeypatch, key, shape, expected):
    import diffusers

    called = {}
    monkeypatch.setattr(
        getattr(diffusers, expected), "from_single_file", classmethod(lambda cls, path, **kwargs: called.update(path=path, **kwargs))
    )
    path = tmp_path / "whole.safetensors"
    save_file({key: torch.zeros(shape), "first_stage_model.a": torch.zeros(1), "cond_stage_model.a": torch.zeros(1)}, path)
    load_single_file(str(path))
    assert called == {"path": str(path)}
