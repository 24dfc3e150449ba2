"""The fingerprint of a pipeline: a hash of everything that determines its samples, except the scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pytest_diffusion.config.cache import checksum_of
from pytest_diffusion.models.capabilities import modules
from pytest_diffusion.models.memory import whole_state_dict


def fingerprint(pipeline: Any) -> str:
    """Hash of the weights, configurations and vocabularies of all parts except the scheduler: 16 hex digits."""
    return checksum_of(_decisive(pipeline), size=8)


def _decisive(pipeline: Any) -> Iterator[Any]:
    """Texts and bytes of everything that determines a sample, in a fixed order."""
    yield type(pipeline).__name__
    for name, part in sorted(modules(pipeline).items()):
        yield f"{name}:{config_text(getattr(part, 'config', None))}"
        for key, tensor in sorted(whole_state_dict(part).items()):
            yield f"{key}:{tensor.dtype}:{tuple(tensor.shape)}"
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    settings = {key: value for key, value in dict(getattr(pipeline, "config", {})).items() if isinstance(value, str | int | float | bool)}
    yield config_text(settings)
    for name, part in sorted((getattr(pipeline, "components", None) or {}).items()):
        if hasattr(part, "get_vocab"):
            yield f"{name}:{part.model_max_length}:{sorted(part.get_vocab().items())}"


def config_text(config: Any) -> str:
    """A configuration as stable text, without paths and versions that do not change a sample."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    kept = {key: values[key] for key in sorted(values) if not key.startswith("_") and key not in ("transformers_version", "name_or_path")}
    return repr(kept)
