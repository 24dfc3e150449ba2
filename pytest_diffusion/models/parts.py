"""The parts of a checkpoint, loaded one by one, with a report of what their files lack and what they hold too much."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.verdicts.errors import ModelError

_LIBRARIES = ("diffusers", "transformers")
_BUFFERS = re.compile(r"(position_ids|num_batches_tracked|attn\.bias|attn\.masked_bias)$")
"""Buffers that older versions stored and that are computed today: they change no sample."""
_SHOWN = 3


@dataclass(frozen=True)
class LoadReport:
    """Tensors of a checkpoint's files that no part uses, by part. None is missing, or the checkpoint would have been refused."""

    parts: tuple[str, ...] = ()
    """Parts whose files were compared with what they need."""
    unused: dict[str, list[str]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of tensors that no part uses."""
        return sum(map(len, self.unused.values()))

    @property
    def text(self) -> str:
        """The report in one sentence."""
        if not self.count:
            return f"no tensor is missing, and all are used ({', '.join(self.parts)})"
        return "; ".join(f"{part}: {len(names)} unused ({_listed(names)})" for part, names in self.unused.items())


def load_parts(folder: Path, *, only: Collection[str] | None = None) -> tuple[dict[str, Any], LoadReport]:
    """Modules of diffusers and transformers that a folder's index names, by name, and the report on their files.

    With `only`, no others than these.

    Raises ModelError for a part whose files lack tensors: the libraries would fill them with random numbers.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts: dict[str, Any] = {}
    unused: dict[str, list[str]] = {}
    for name, entry in index.items():
        made = _class_of(entry) if only is None or name in only else None
        if made is None:
            continue
        part, found = made.from_pretrained(folder / name, output_loading_info=True, use_safetensors=True)
        lacking = sorted({*map(str, found["missing_keys"]), *(str(key[0]) for key in found["mismatched_keys"])})
        if lacking := [key for key in lacking if not _BUFFERS.search(key)]:
            raise ModelError(
                f"{folder / name} lacks {len(lacking)} of {len(part.state_dict())} tensors ({_listed(lacking)}); "
                "random numbers would take their place. Save the model again."
            )
        if stray := sorted(key for key in map(str, found["unexpected_keys"]) if not _BUFFERS.search(key)):
            unused[name] = stray
        parts[name] = part
    return parts, LoadReport(tuple(parts), unused)


def _class_of(entry: Any) -> Any | None:
    """The class of an entry of the index, if it is a module of one of the two libraries."""
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in _LIBRARIES:
        return None
    made = getattr(importlib.import_module(entry[0]), str(entry[1]), None)
    return made if isinstance(made, type) and issubclass(made, torch.nn.Module) and hasattr(made, "from_pretrained") else None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
