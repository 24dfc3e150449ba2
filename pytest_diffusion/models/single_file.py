"""A pipeline from one checkpoint file with the original keys; what it lacks comes from a folder of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.sources import model_source
from pytest_diffusion.models.parts import load_parts
from pytest_diffusion.verdicts.errors import ModelError

_CLASSES = {
    "xl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sd35": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}
_VAE, _TEXT = ("first_stage_model", "vae"), ("cond_stage_model", "conditioner", "text_encoders")
"""How the keys of these parts begin."""
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def load_single_file(value: str, *, settings: Settings | None = None) -> Any:
    """A pipeline from one checkpoint file.

    Its configuration is the folder `<name>.config` beside it, else the baseline where that is a folder of diffusers, else it comes from
    the hub. Parts that the file lacks (a VAE, text encoders) come from the same folder. Raises ModelError where they are nowhere.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint

    path = Path(value)
    folder = _folder_beside(path) or _baseline_folder(settings)
    lacking = _lacking(path)
    if folder is None:
        if lacking:
            raise ModelError(
                f"{path} holds a denoiser without {' and '.join(lacking)}. Give a checkpoint with all parts, a folder {path.stem}.config "
                "of diffusers beside it that has them, or the model that it was trained from as --diffusion-baseline."
            )
        kind = infer_diffusers_model_type(load_single_file_checkpoint(str(path)))
        name = next((value for prefix, value in _CLASSES.items() if kind.startswith(prefix)), "StableDiffusionPipeline")
        return getattr(diffusers, name).from_single_file(str(path))
    name = str(json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name"))
    parts, _ = load_parts(folder, only=_parts_of(lacking, folder))
    pipeline = getattr(diffusers, name).from_single_file(str(path), config=str(folder), local_files_only=True, **parts)
    _require_whole(pipeline, path)
    return pipeline


def _folder_beside(path: Path) -> Path | None:
    folder = path.with_suffix(".config")
    return folder if (folder / "model_index.json").is_file() else None


def _baseline_folder(settings: Settings | None) -> Path | None:
    """The baseline's folder of diffusers, where it is one: a fine-tune has the configuration of its parent."""
    return model_source(settings.baseline).folder(settings.baseline) if settings is not None and settings.baseline is not None else None


def _lacking(path: Path) -> list[str]:
    """What a checkpoint lacks besides its denoiser: a VAE, text encoders."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        begins = {key.partition(".")[0] for key in opened.keys()}
    return [what for what, names in (("a VAE", _VAE), ("a text encoder", _TEXT)) if not begins & set(names)]


def _parts_of(lacking: list[str], folder: Path) -> list[str]:
    """Names of the parts of a folder that the file lacks."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    names = [*(["vae"] if "a VAE" in lacking else []), *(_TEXT_PARTS if "a text encoder" in lacking else ())]
    found = [name for name in names if isinstance(index.get(name), list) and index[name][0]]
    for name in found:
        if not any((folder / name).glob("*.safetensors")):
            raise ModelError(f"the checkpoint lacks {' and '.join(lacking)}, and {folder / name} holds no weights in safetensors.")
    return found


def _require_whole(pipeline: Any, path: Path) -> None:
    """Raise ModelError for a part with tensors that the file did not have: diffusers leaves them empty."""
    for name, part in pipeline.components.items():
        empty = [key for key, tensor in part.state_dict().items() if tensor.is_meta] if hasattr(part, "state_dict") else []
        if empty:
            raise ModelError(f"{path} lacks {len(empty)} tensors of {name} ({', '.join(empty[:3])}).")
