"""The two models part by part: which differ, by how much, and what is broken in the candidate alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_diffusion.config.cache import checksum_of
from pytest_diffusion.models.capabilities import image_size, is_text_conditioned, modules
from pytest_diffusion.models.fingerprint import config_text, tokenizer_text
from pytest_diffusion.models.levels import prediction_type_of
from pytest_diffusion.models.memory import whole_state_dict
from pytest_diffusion.verdicts.errors import SettingsError

_SHOWN = 3


@dataclass(frozen=True)
class Part:
    """One part of a pipeline in both models."""

    name: str
    is_same: bool
    """Whether nothing differs: tensors bit by bit, configuration and class."""
    change: float | None = None
    """Norm of the difference of the tensors that both have, as a share of the baseline's norm; None without tensors."""
    changed: int = 0
    tensors: int = 0
    """How many tensors differ, and how many there are."""
    notes: list[str] = field(default_factory=list)
    """What else differs: class, configuration, dtype, vocabulary, keys, shapes."""
    faults: list[str] = field(default_factory=list)
    """What is broken in the candidate and not in the baseline: tensors that are not finite, or constant."""
    largest: list[tuple[str, float]] = field(default_factory=list)
    """The modules that changed most, with their relative change."""
    areas: list[str] = field(default_factory=list)
    """The outermost modules that changed: of a VAE, its encoder or its decoder."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Parts:
    """All parts of both models."""

    parts: list[Part]

    @property
    def differing(self) -> list[str]:
        """Names of the parts that differ."""
        return [part.name for part in self.parts if not part.is_same]

    @property
    def faults(self) -> list[str]:
        """What is broken in the candidate alone, by part."""
        return [f"{part.name}: {fault}" for part in self.parts for fault in part.faults]

    @property
    def text(self) -> str:
        """In one sentence, which parts differ and by how much."""
        if not self.differing:
            return "nothing differs: weights, configurations, tokenizers and scheduler are equal bit by bit"
        return "; ".join(_said(part) for part in self.parts if not part.is_same)

    def is_same(self, *names: str) -> bool:
        """Whether none of these parts differs."""
        return not set(names) & set(self.differing)


def compare_parts(candidate: Any, baseline: Any) -> Parts:
    """Both pipelines, part by part; the scheduler and the call's class count as parts."""
    ours, theirs = _components(candidate), _components(baseline)
    found = []
    for name in dict.fromkeys([*theirs, *ours]):
        if name not in ours or name not in theirs:
            found.append(Part(name, False, notes=[f"only the {'candidate' if name in ours else 'baseline'} has it"]))
        elif isinstance(ours[name], torch.nn.Module) and isinstance(theirs[name], torch.nn.Module):
            found.append(_module(name, ours[name], theirs[name]))
        else:
            notes = _differences(ours[name], theirs[name])
            found.append(Part(name, not notes, notes=notes))
    notes = [f"{type(candidate).__name__} in place of {type(baseline).__name__}"] if type(candidate) is not type(baseline) else []
    notes += _config_notes(_switches(candidate), _switches(baseline))
    return Parts([*found, Part("pipeline", not notes, notes=notes)])


def part_hashes(pipeline: Any) -> dict[str, str]:
    """A hash of each part: class, configuration, tensors and vocabulary; and of the pipeline's class."""
    return {
        **{name: checksum_of(_content(part), size=8) for name, part in _components(pipeline).items()},
        "pipeline": f"{type(pipeline).__name__} {_switches(pipeline)}",
    }


def compare_hashes(candidate: Any, known: Mapping[str, str]) -> Parts:
    """Which parts of the candidate differ from those whose hashes are known; by how much cannot be said."""
    own = part_hashes(candidate)
    note = "its hash differs; the baseline's weights are not at hand to say by how much"
    return Parts(
        [
            Part(name, own.get(name) == known.get(name), notes=[] if own.get(name) == known.get(name) else [note])
            for name in {**known, **own}
        ]
    )


def _content(part: Any) -> Iterator[Any]:
    config = {key: value for key, value in _as_dict(getattr(part, "config", None)).items() if key not in _UNREAD}
    yield f"{type(part).__name__} {config_text(config)}"
    if isinstance(part, torch.nn.Module):
        for key, tensor in sorted(whole_state_dict(part).items()):
            yield f"{key}:{tensor.dtype}:{tuple(tensor.shape)}"
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    elif hasattr(part, "get_vocab"):
        yield tokenizer_text(part)
    elif getattr(part, "alphas_cumprod", None) is not None:
        yield torch.as_tensor(part.alphas_cumprod).double().numpy().data


def require_comparable(candidate: Any, baseline: Any, settings: Any) -> None:
    """Raise SettingsError, in one sentence, for two models between which nothing can be paired."""
    if is_text_conditioned(candidate) != is_text_conditioned(baseline):
        takes = "takes prompts" if is_text_conditioned(candidate) else "takes no prompts"
        raise SettingsError(
            f"--diffusion-baseline: {type(baseline).__name__} and {type(candidate).__name__} cannot be compared, since only one of them "
            f"is conditioned on text: the candidate {takes}."
        )
    sizes = [image_size(pipeline, settings) for pipeline in (candidate, baseline)]
    if sizes[0] != sizes[1]:
        shown = [f"{width}x{height}" for height, width in sizes]
        raise SettingsError(
            f"--diffusion-baseline: the candidate draws images of {shown[0]}, the baseline of {shown[1]}; "
            "name one size for both with --diffusion-height and --diffusion-width."
        )


def _components(pipeline: Any) -> dict[str, Any]:
    parts = dict(getattr(pipeline, "components", None) or {"scheduler": pipeline.scheduler, **modules(pipeline)})
    return {
        name: getattr(part, "_orig_mod", part)
        for name, part in parts.items()
        if part is not None and not isinstance(part, bool | int | float | str)
    }


def _switches(pipeline: Any) -> dict[str, Any]:
    """The plain values of a pipeline's own configuration, such as `force_zeros_for_empty_prompt`."""
    values = dict(getattr(pipeline, "config", None) or {})
    return {key: value for key, value in sorted(values.items()) if isinstance(value, bool | int | float | str) and not key.startswith("_")}


def _differences(ours: Any, theirs: Any) -> list[str]:
    """What differs between two parts without weights: tokenizers, schedulers, feature extractors."""
    notes = []
    if type(ours) is not type(theirs):
        notes.append(f"{type(ours).__name__} in place of {type(theirs).__name__}")
    if hasattr(ours, "get_vocab") and hasattr(theirs, "get_vocab"):
        one, other = ours.get_vocab(), theirs.get_vocab()
        if one != other:
            moved = sum(one.get(token) != place for token, place in other.items())
            notes.append(f"{moved} of {len(other)} tokens have another number or are missing, {len(set(one) - set(other))} are new")
        if ours.model_max_length != theirs.model_max_length:
            notes.append(f"model_max_length is {ours.model_max_length}, was {theirs.model_max_length}")
        if not notes and tokenizer_text(ours) != tokenizer_text(theirs):
            notes.append("its special tokens or its rules differ")
        return notes
    notes += _config_notes(getattr(ours, "config", None), getattr(theirs, "config", None))
    if hasattr(ours, "set_timesteps") and hasattr(theirs, "set_timesteps"):
        one, other = prediction_type_of(ours), prediction_type_of(theirs)
        if one != other and not any("prediction_type" in note for note in notes):
            notes.append(f"prediction_type is {one}, was {other}")
        own, others = getattr(ours, "alphas_cumprod", None), getattr(theirs, "alphas_cumprod", None)
        if own is not None and others is not None and not torch.equal(torch.as_tensor(own), torch.as_tensor(others)) and not notes:
            notes.append("its noise schedule has other values")
    return notes


def _module(name: str, ours: torch.nn.Module, theirs: torch.nn.Module) -> Part:
    notes = [f"{type(ours).__name__} in place of {type(theirs).__name__}"] if type(ours) is not type(theirs) else []
    notes += _config_notes(getattr(ours, "config", None), getattr(theirs, "config", None))
    (own, layers), (other, others) = _without_adapter(ours), _without_adapter(theirs)
    if layers != others:
        notes.append(f"an adapter on {layers} layers" if layers else f"without the adapter on {others} layers")
    for what, missing in (("missing", sorted(set(other) - set(own))), ("new", sorted(set(own) - set(other)))):
        if missing:
            notes.append(f"{len(missing)} tensors are {what} ({', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''})")
    faults, squares, norms = list[str](), dict[str, float](), dict[str, float]()
    changed, dtypes = 0, set[str]()
    for key in (key for key in other if key in own):
        one, two = own[key], other[key]
        if one.shape != two.shape:
            notes.append(f"{key} has shape {tuple(one.shape)}, was {tuple(two.shape)}")
            continue
        if one.dtype != two.dtype:
            dtypes.add(f"{two.dtype} to {one.dtype}".replace("torch.", ""))
        faults += _faults(key, one, two)
        one, two = one.detach().cpu(), two.detach().cpu()
        module = ".".join(key.split(".")[:2])
        norms[module] = norms.get(module, 0.0) + float(two.double().square().sum())
        if one.dtype == two.dtype and torch.equal(_bits(one), _bits(two)):
            continue
        difference = float((one.double() - two.double()).square().sum())
        changed += difference != 0  # also where it is not a number
        squares[module] = squares.get(module, 0.0) + difference
    for key in sorted(key for key, tensor in whole_state_dict(ours).items() if key not in other and tensor.is_floating_point()):
        tensor = whole_state_dict(ours)[key]
        if not bool(tensor.isfinite().all()):
            faults.append(f"{key} has {int((~tensor.isfinite()).sum())} values that are not finite")
    notes += [f"dtype changed from {text}" for text in sorted(dtypes)]
    total = sum(norms.values())
    change = (sum(squares.values()) / total) ** 0.5 if total > 0 else 0.0
    relative = {module: (square / norms[module]) ** 0.5 if norms[module] else float("inf") for module, square in squares.items() if square}
    largest = sorted(relative.items(), key=lambda item: -item[1])[:_SHOWN]
    return Part(
        name,
        not notes and not changed,
        change,
        changed,
        len(other),
        notes,
        faults,
        largest,
        sorted({module.partition(".")[0] for module in relative}),
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, (n,), uint8: unlike its numbers, they are equal to themselves where they are not a number."""
    return tensor.contiguous().flatten().view(torch.uint8)


def _without_adapter(module: torch.nn.Module) -> tuple[dict[str, torch.Tensor], int]:
    """A module's tensors by the names that they have without an adapter, and the number of layers that have one."""
    state = whole_state_dict(module)
    plain = {key.replace(".base_layer.", "."): tensor for key, tensor in state.items() if ".lora_" not in key}
    return plain, sum(".base_layer.weight" in key for key in state)


def _faults(key: str, ours: torch.Tensor, theirs: torch.Tensor) -> list[str]:
    if not ours.is_floating_point():
        return []
    if not bool(ours.isfinite().all()) and bool(theirs.isfinite().all()):
        return [f"{key} has {int((~ours.isfinite()).sum())} values that are not finite"]
    if ours.numel() > 1 and bool((ours == ours.flatten()[0]).all()) and not bool((theirs == theirs.flatten()[0]).all()):
        return [f"{key} is constant ({float(ours.flatten()[0]):.3g})"]
    return []


def _config_notes(ours: Any, theirs: Any) -> list[str]:
    one, other = _as_dict(ours), _as_dict(theirs)
    keys = [key for key in {**other, **one} if not key.startswith("_") and one.get(key) != other.get(key) and key not in _UNREAD]
    return [f"{key} is {one.get(key)!r}, was {other.get(key)!r}" for key in keys[: 2 * _SHOWN]]


_UNREAD = ("transformers_version", "name_or_path", "torch_dtype", "dtype")


def _as_dict(config: Any) -> Mapping[str, Any]:
    return config.to_dict() if hasattr(config, "to_dict") else dict(config or {})


def _said(part: Part) -> str:
    texts = list(part.notes)
    if part.changed:
        most = ", ".join(f"{name} {100 * change:.2g} %" for name, change in part.largest)
        texts.insert(
            0, f"{part.changed} of {part.tensors} tensors changed, by {100 * (part.change or 0):.2g} % of their norm (most: {most})"
        )
    return f"{part.name}: {', '.join(texts)}"
