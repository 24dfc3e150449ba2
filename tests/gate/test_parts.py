"""The parts of two models: what differs, by how much, and what is broken."""

import copy

import pytest
import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.parts import compare_hashes, compare_parts, part_hashes, require_comparable
from pytest_diffusion.verdicts.errors import SettingsError
from tests.families.models import build


@pytest.fixture
def candidate(demo_pipeline):
    return copy.deepcopy(demo_pipeline)


def part(parts, name):
    return next(one for one in parts.parts if one.name == name)


def test_a_copy_differs_in_nothing(candidate, demo_pipeline):
    parts = compare_parts(candidate, demo_pipeline)
    assert parts.differing == parts.faults == []
    assert parts.text.startswith("nothing differs")
    assert compare_hashes(candidate, part_hashes(demo_pipeline)).differing == []


def test_changed_weights_are_measured_and_named(candidate, demo_pipeline):
    with torch.no_grad():
        candidate.unet.conv_in.weight *= 1.1
    found = part(compare_parts(candidate, demo_pipeline), "unet")
    assert (found.changed, found.tensors) == (1, len(demo_pipeline.unet.state_dict()))
    assert found.largest[0][0] == "conv_in.weight"
    assert found.largest[0][1] == pytest.approx(0.1, rel=1e-4)
    whole = sum(float(tensor.double().square().sum()) for tensor in demo_pipeline.unet.state_dict().values()) ** 0.5
    assert found.change == pytest.approx(0.1 * float(demo_pipeline.unet.conv_in.weight.detach().double().norm()) / whole, rel=1e-4)
    assert compare_parts(candidate, demo_pipeline).differing == ["unet"]
    hashed = compare_hashes(candidate, part_hashes(demo_pipeline))
    assert hashed.differing == ["unet"]
    assert "its hash differs" in hashed.text


@pytest.mark.parametrize(("value", "fault"), [(float("nan"), "has 1 values that are not finite"), (None, "is constant (0)")])
def test_broken_tensors_are_faults(candidate, demo_pipeline, value, fault):
    with torch.no_grad():
        if value is None:
            candidate.vae.encoder.conv_in.weight.zero_()
        else:
            candidate.vae.encoder.conv_in.weight.flatten()[3] = value
    parts = compare_parts(candidate, demo_pipeline)
    assert parts.faults == [f"vae: encoder.conv_in.weight {fault}"]
    assert parts.differing == ["vae"]
    # What is broken in both is not the candidate's fault, and no difference.
    assert compare_parts(candidate, candidate).faults == compare_parts(candidate, candidate).differing == []


def test_other_configurations_vocabularies_and_dtypes_are_told(candidate, demo_pipeline):
    candidate.scheduler.register_to_config(prediction_type="v_prediction")
    candidate.vae.register_to_config(scaling_factor=1.0)
    candidate.text_encoder.to(torch.bfloat16)
    candidate.tokenizer.model_max_length = 8
    parts = compare_parts(candidate, demo_pipeline)
    assert set(parts.differing) == {"scheduler", "vae", "text_encoder", "tokenizer"}
    assert "prediction_type is 'v_prediction', was 'epsilon'" in part(parts, "scheduler").notes
    assert "scaling_factor is 1.0, was" in part(parts, "vae").notes[0]
    assert "dtype changed from float32 to bfloat16" in part(parts, "text_encoder").notes
    assert part(parts, "tokenizer").notes == ["model_max_length is 8, was 16"] or "model_max_length is 8" in parts.text
    assert set(compare_hashes(candidate, part_hashes(demo_pipeline)).differing) >= {"scheduler", "vae", "text_encoder", "tokenizer"}


def test_missing_new_and_reshaped_tensors_are_told(candidate, demo_pipeline):
    candidate.unet.conv_in = torch.nn.Conv2d(9, 32, 3)
    candidate.unet.extra = torch.nn.Linear(2, 2)
    del candidate.unet.conv_norm_out
    text = "; ".join(part(compare_parts(candidate, demo_pipeline), "unet").notes)
    assert "2 tensors are missing (conv_norm_out.bias, conv_norm_out.weight)" in text
    assert "2 tensors are new (extra.bias, extra.weight)" in text
    assert "conv_in.weight has shape (32, 9, 3, 3), was" in text


def test_what_cannot_be_paired_is_refused(demo_pipeline):
    with pytest.raises(SettingsError, match="only one of them is conditioned on text: the candidate takes no prompts"):
        require_comparable(build("ddpm"), demo_pipeline, Settings())
    with pytest.raises(SettingsError, match="the candidate draws images of 64x64, the baseline of 32x32; name one size for both"):
        require_comparable(build("sd15"), demo_pipeline, Settings())
    require_comparable(build("sd15"), demo_pipeline, Settings(height=64, width=64))


def test_special_tokens_and_switches_of_the_pipeline_count():
    """SDXL's two tokenizers differ by the padding token alone, and a switch decides what an empty negative prompt means."""
    parent, other = build("sdxl"), build("sdxl")
    assert compare_parts(other, parent).differing == []
    other.tokenizer_2.pad_token = parent.tokenizer.pad_token
    other.register_to_config(force_zeros_for_empty_prompt=not parent.config.force_zeros_for_empty_prompt)
    assert set(compare_parts(other, parent).differing) == {"tokenizer_2", "pipeline"}
    assert set(compare_hashes(other, part_hashes(parent)).differing) == {"tokenizer_2", "pipeline"}
