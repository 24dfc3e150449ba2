"""The fingerprint of a pipeline: a hash of everything that determines its samples, except the scheduler.

Weights and configurations are not all: the scale of a LoRA or of an image prompt is an attribute of a layer or of its attention
processor. So every plain value among the attributes of layers, processors and the pipeline counts.
"""

from __future__ import annotations

import json
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
        for path, module in part.named_modules():
            yield f"{path}:{_attributes(module)}:{_processor(module)}"
        for key, tensor in sorted(whole_state_dict(part).items()):
            yield f"{key}:{tensor.dtype}:{tuple(tensor.shape)}"
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    settings = {key: value for key, value in dict(getattr(pipeline, "config", {})).items() if isinstance(value, str | int | float | bool)}
    yield config_text(settings)
    yield _attributes(pipeline)
    for name, part in sorted((getattr(pipeline, "components", None) or {}).items()):
        if hasattr(part, "get_vocab"):
            yield f"{name}:{tokenizer_text(part)}"


def tokenizer_text(tokenizer: Any) -> str:
    """All of a tokenizer that decides its numbers: vocabulary, length, special tokens, side and rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Every call sets how it pads and cuts.
    rules = {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("padding", "truncation")} if backend else {}
    special = sorted((key, str(value)) for key, value in (getattr(tokenizer, "special_tokens_map", None) or {}).items())
    return (
        f"{tokenizer.model_max_length}:{getattr(tokenizer, 'padding_side', '')}:{special}:{sorted(tokenizer.get_vocab().items())}:{rules}"
    )


_RUNNING = ("training", "gradient_checkpointing", "name_or_path")
"""Attributes that change no sample."""
_ADAPTERS = ("_active_adapter", "_disable_adapters", "merged_adapters")
"""Attributes of peft's layers that change samples though their names are private."""


def _attributes(thing: Any) -> str:
    """The plain values among an object's public attributes, as stable text."""
    values = {key: value for key, value in vars(thing).items() if key in _ADAPTERS or not key.startswith("_")}
    return repr({key: _plain(value) for key, value in sorted(values.items()) if key not in _RUNNING and _is_plain(value)})


def _processor(module: torch.nn.Module) -> str:
    """Class and plain values of an attention processor; one that is a module has its own turn."""
    processor = getattr(module, "processor", None)
    if processor is None or isinstance(processor, torch.nn.Module) or not hasattr(processor, "__dict__"):
        return ""
    return f"{type(processor).__name__} {_attributes(processor)}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def _plain(value: Any) -> Any:
    """A plain value with its sets and tables in a fixed order."""
    if isinstance(value, dict):
        return sorted((repr(key), _plain(item)) for key, item in value.items())
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def config_text(config: Any) -> str:
    """A configuration as stable text, without paths and versions that do not change a sample."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    kept = {key: values[key] for key in sorted(values) if not key.startswith("_") and key not in ("transformers_version", "name_or_path")}
    return repr(kept)
