"""Adapters in the formats in which they travel: the same change of weights, whatever the keys."""

import json

import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

from pytest_diffusion.config.parsers import split_lora
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.verdicts.errors import ModelError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
TARGETS = ["to_q", "to_v"]
RANK = 4


def trained_unet(scale=0.05):
    """The demo with an adapter whose weights are not zero."""
    pipeline = load_pipeline(Settings(model="demo", device="cpu"))
    torch.manual_seed(0)
    pipeline.unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS), "mine")
    with torch.no_grad():
        for name, weight in pipeline.unet.named_parameters():
            if "lora_B" in name:
                weight.copy_(scale * torch.randn(weight.shape))
    return pipeline


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A folder with the same adapter by the keys of diffusers, kohya and peft."""
    folder = tmp_path_factory.mktemp("adapters")
    pipeline = trained_unet()
    state = peft.utils.get_peft_model_state_dict(pipeline.unet, adapter_name="mine")
    type(pipeline).save_lora_weights(folder / "diffusers", unet_lora_layers=state)
    kohya = convert_state_dict_to_kohya({f"unet.{key}": value for key, value in state.items()})
    save_file({key: value.contiguous() for key, value in kohya.items()}, folder / "kohya.safetensors")
    other = peft.get_peft_model(
        load_pipeline(Settings(model="demo", device="cpu")).unet, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS)
    )
    # Twice the scale with half the weights is the same change.
    halved = {f"base_model.model.{key}": value / (2 if "lora_B" in key else 1) for key, value in state.items()}
    peft.set_peft_model_state_dict(other, halved)
    config = other.peft_config["default"]
    config.base_model_name_or_path = None
    (folder / "peft").mkdir()
    save_file({key: value.contiguous() for key, value in halved.items()}, folder / "peft" / "adapter_model.safetensors")
    (folder / "peft" / "adapter_config.json").write_text(json.dumps({"lora_alpha": config.lora_alpha, "r": config.r}))
    return folder


def adapted(path):
    return load_pipeline(Settings(model="demo", device="cpu", lora=str(path)))


@pytest.mark.parametrize("name", ["diffusers", "diffusers/pytorch_lora_weights.safetensors", "kohya.safetensors", "peft"])
def test_every_format_gives_the_same_change(adapters, name):
    change = adapted(adapters / name).lora_change
    reference = trained_unet()
    expected = [module for module in reference.unet.modules() if hasattr(module, "lora_A")]
    changed = sum(float(module.get_delta_weight("mine").double().square().sum()) for module in expected)
    whole = sum(float(module.get_base_layer().weight.detach().double().square().sum()) for module in expected)
    assert change.layers == len(expected)
    assert change.relative == pytest.approx((changed / whole) ** 0.5, rel=1e-5)


def test_the_scale_scales(adapters):
    whole, half = adapted(adapters / "diffusers").lora_change, adapted(f"{adapters / 'diffusers'}:0.5").lora_change
    assert half.relative == pytest.approx(whole.relative / 2, rel=1e-5)


def test_an_adapter_of_zeros_changes_nothing(tmp_path, adapters):
    state = load_file(adapters / "kohya.safetensors")
    save_file({key: torch.zeros_like(value) if "lora_up" in key else value for key, value in state.items()}, tmp_path / "zeros.safetensors")
    assert adapted(tmp_path / "zeros.safetensors").lora_change.relative == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"some.weight": torch.zeros(2)}, "holds no adapter: none of its 1 keys names a LoRA"),
        (
            {"unet.nowhere.lora_A.weight": torch.zeros(4, 8), "unet.nowhere.lora_B.weight": torch.zeros(8, 4)},
            "does not fit StableDiffusionPipeline",
        ),
        (None, "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "bad.safetensors"
    if content is None:
        path.write_bytes(b"no tensors")
    else:
        save_file(content, path)
    with pytest.raises(ModelError, match=message) as error:
        adapted(path)
    assert str(error.value).startswith("--diffusion-lora: ")
    assert "\n" not in str(error.value)


def test_a_folder_must_hold_one_adapter(tmp_path):
    with pytest.raises(ModelError, match="holds 0 adapters"):
        adapted(tmp_path)
    (tmp_path / "old.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickled adapters can run code"):
        adapted(tmp_path / "old.bin")


def test_a_path_may_have_a_colon():
    assert split_lora("a/b.safetensors") == ("a/b.safetensors", 1.0)
    assert split_lora("a/b:0.7") == ("a/b", 0.7)
    assert split_lora("C:/models/x") == ("C:/models/x", 1.0)


def test_an_adapter_that_fits_only_in_part_is_refused(tmp_path, adapters):
    state = load_file(adapters / "diffusers" / "pytorch_lora_weights.safetensors")
    moved = {key.replace("mid_block.attentions.0", "mid_block.attentions.7"): value for key, value in state.items()}
    assert set(moved) != set(state)
    save_file(moved, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match=r"--diffusion-lora: .*part.safetensors"):
        adapted(tmp_path / "part.safetensors")


def test_the_scale_that_a_training_script_keeps_in_the_metadata_is_honoured(tmp_path):
    pipeline = trained_unet()
    state = peft.utils.get_peft_model_state_dict(pipeline.unet, adapter_name="mine")
    changes = []
    for alpha in (RANK, 1):
        config = {**pipeline.unet.peft_config["mine"].to_dict(), "lora_alpha": alpha}
        type(pipeline).save_lora_weights(tmp_path / str(alpha), unet_lora_layers=state, unet_lora_adapter_metadata=config)
        changes.append(adapted(tmp_path / str(alpha)).lora_change.relative)
    assert changes[1] == pytest.approx(changes[0] / RANK, rel=1e-5)
