"""Files of tensors in the cache, sealed by a checksum over all that they hold: two runs write the same bytes."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pytest_diffusion.config.cache import StoreWarning, checksum_of, written_whole
from pytest_diffusion.config.published import fetched
from pytest_diffusion.config.remote import NoAnswer

_KEY = "pytest-diffusion"


class Sealed(NamedTuple):
    """What a file holds: tensors by name, and what it says about them (plain JSON)."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]


def seal_of(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> str:
    """Checksum of names, dtypes, shapes and bytes of tensors, and of all that is said about them."""
    return checksum_of(_parts(tensors, about))


def write_sealed(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Write a file of tensors; a cache that is full or may not be written does not stop the run."""
    whole = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
    # One entry, since safetensors does not keep several in order.
    metadata = {_KEY: json.dumps({"about": about, "seal": seal_of(whole, about)}, sort_keys=True)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        with written_whole(path) as part:
            save_file(whole, part, metadata=metadata)
    except (OSError, SafetensorError):
        pass


def read_sealed(path: Path, what: str) -> Sealed | None:
    """What a file holds; None where there is none, and with a warning where it is damaged. `what` names it in the warning."""
    if not path.exists() and not _fetch(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if _KEY not in (file.metadata() or {}):
                return None  # of an earlier version
            known = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if known["seal"] == seal_of(tensors, known["about"]):
            return Sealed(tensors, known["about"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        pass
    warnings.warn(f"{path} is damaged; its {what} are computed again.", StoreWarning, stacklevel=3)
    return None


def _fetch(path: Path) -> bool:
    """Copy a file from the store behind its folder; whether there was one."""
    with suppress(OSError, NoAnswer):
        if (data := fetched(path)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have the file in its memory.
            with written_whole(path, publishes=False) as part:
                part.write_bytes(data)
    return path.exists()


def _parts(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> Iterator[Any]:
    yield json.dumps(about, sort_keys=True)
    for name, tensor in sorted(tensors.items()):
        yield f"{name}:{tensor.dtype}:{tuple(tensor.shape)}"
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
