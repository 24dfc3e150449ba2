"""Features of stored samples, kept beside them so that a second gate extracts nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import torch
from safetensors.torch import load_file, save_file

from pytest_diffusion.adapters.features import Features
from pytest_diffusion.samples.store import Samples


def stored_features(samples: Samples, extractor: Callable[[torch.Tensor], Features]) -> Features:
    """Features of the samples, read from the store or extracted and written there."""
    name = getattr(extractor, "name", None)
    if samples.folder is None or name is None or getattr(extractor, "is_own_code", True):
        return extractor(samples.images)
    path = samples.folder / f"features-{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}.safetensors"
    if path.is_file():
        kept = load_file(path)
        if len(kept["values"]) == len(samples.images):
            return Features(kept["values"], kept.get("probabilities"), name)
    features = extractor(samples.images)
    tensors = {"values": features.values.contiguous()}
    if features.probabilities is not None:
        tensors["probabilities"] = features.probabilities.contiguous()
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, part)
    part.replace(path)
    return features
