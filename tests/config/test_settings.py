import json

import pytest

from pytest_diffusion.config.options import OPTIONS
from pytest_diffusion.config.settings import Settings, override, resolve
from pytest_diffusion.verdicts.errors import SettingsError


def test_order_is_marker_option_ini_thresholds_default(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text("[settings]\nnum_samples = 11\nsteps = 12\nseed = 13\n")
    settings, _ = resolve(options={"num_samples": "31", "thresholds": [str(path)]}, ini={"num_samples": "21", "steps": "22"})
    assert (settings.num_samples, settings.steps, settings.seed, settings.height) == (31, 22, 13, None)
    assert settings.sources == {"num_samples": "option", "steps": "ini", "seed": str(path), "thresholds": "option"}
    assert override(settings, {"num_samples": 41}).num_samples == 41
    assert override(settings, {"num_samples": 41}).sources["num_samples"] == "marker"


def test_demo_brings_its_own_material():
    settings, thresholds = resolve(options={"model": "demo"}, ini={})
    assert (settings.reference, settings.prompts, settings.features, settings.clip_model) == ("demo",) * 4
    assert thresholds.files == ("thresholds/default.toml", "thresholds/demo.toml")


def test_another_model_does_not():
    settings, _ = resolve(options={"model": "owner/name"}, ini={})
    assert (settings.reference, settings.features, settings.num_samples) == (None, "inception", 10_000)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("num_samples", "many", "--diffusion-num-samples is 'many': expected a number"),
        ("num_samples", "0", "at least 1"),
        ("steps", "-3", "at least 1"),
        ("height", "100", "multiple of 8"),
        ("guidance_scale", "-1", "at least 0"),
        ("guidance_scale", "nan", "at least 0"),
        ("seed", "-1", "at least 0"),
        ("effort", "0.5", "from 1 to 1000"),
        ("effort", "nan", "from 1 to 1000"),
        ("lenses", "metrics,latents", "Did you mean 'latent'"),
        ("lenses", ",", "expected any of"),
        ("dtype", "half", "expected one of: bfloat16, float16, float32"),
        ("device", "gpu", "expected one of: cpu, cuda, mps, xpu"),
        ("report", "report.pdf", "ends in .html"),
        ("thresholds", ["sd16"], "Did you mean 'sd15'"),
        ("model", "dmeo", "expected 'demo', analytic:NAME, a diffusers folder"),
        ("model", "./nowhere", "the folder ./nowhere does not exist"),
        ("model", "weights.ckpt", "not a .safetensors file; pickled checkpoints can run code"),
        ("model", "weights.safetensors", "the file weights.safetensors does not exist"),
        ("model", "no_such_package.models:make", "no module named 'no_such_package'"),
        ("model", "json:not an identifier", "expected package.module:name"),
        ("reference", "./no-images", "does not exist; expected 'demo', an image folder"),
        ("reference", "stats.npz", "the file stats.npz does not exist"),
        ("prompts", "prompts.txt", "the file prompts.txt does not exist"),
        ("features", "inceptoin", "Did you mean 'inception'"),
        ("features", "clip:", "expected clip:PATH_OR_ID"),
        ("clip_model", "/no/such/clip", "the folder /no/such/clip does not exist"),
        ("scheduler", "no_such_package:Euler", "no module named"),
        ("scheduler", "DDIMSchedular", "Did you mean 'DDIMScheduler'"),
    ],
)
def test_wrong_values_are_one_line(option, text, message):
    with pytest.raises(SettingsError) as error:
        resolve(options={option: text}, ini={})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_ini_values_name_the_ini():
    with pytest.raises(SettingsError, match="ini diffusion_steps is 'ten': expected a number"):
        resolve(options={}, ini={"steps": "ten"})


def test_folders_are_looked_into(tmp_path):
    with pytest.raises(SettingsError, match=r"has no model_index.json"):
        resolve(options={"model": str(tmp_path)}, ini={})
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "P", "scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(SettingsError, match=r"names the part 'scheduler', but .* does not exist"):
        resolve(options={"model": str(tmp_path)}, ini={})
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{beta_start: 1}")
    with pytest.raises(SettingsError, match=r"scheduler_config.json is not valid JSON"):
        resolve(options={"model": str(tmp_path)}, ini={})
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("[]")
    with pytest.raises(SettingsError, match="holds list; expected a JSON object"):
        resolve(options={"model": str(tmp_path)}, ini={})


def test_empty_and_binary_prompt_files(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n")
    with pytest.raises(SettingsError, match="is empty"):
        resolve(options={"prompts": str(path)}, ini={})
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not UTF-8 text"):
        resolve(options={"prompts": str(path)}, ini={})


def test_a_marker_brings_the_settings_of_its_thresholds():
    changed = override(Settings(steps=50, sources={"seed": "option"}), {"model": "demo", "num_samples": 7})
    assert (changed.thresholds, changed.features, changed.num_samples, changed.steps) == (("demo",), "demo", 7, 20)
    with pytest.raises(SettingsError, match="nosuch"):
        override(Settings(), {"thresholds": "nosuch"})


def test_marker_with_unknown_argument():
    with pytest.raises(SettingsError, match=r"@pytest.mark.diffusion: setting is 'nsamples'"):
        override(Settings(), {"nsamples": 3})


def test_every_setting_has_an_option_and_help():
    names = {option.name for option in OPTIONS}
    assert names == set(Settings.__dataclass_fields__) - {"sources"}
    assert all(option.help for option in OPTIONS)


def test_a_preset_of_a_comparison_lies_on_top_of_the_models_own():
    settings, thresholds = resolve(options={"model": "demo", "thresholds": ["quantised"]}, ini={})
    assert settings.thresholds == ("demo", "quantised")
    assert settings.prompts == "demo"
    assert thresholds.margins.by_figure["denoising_loss"].kind == "equivalence"
    assert resolve(options={"model": "demo", "thresholds": ["sd15", "quantised"]}, ini={})[0].thresholds == ("sd15", "quantised")
