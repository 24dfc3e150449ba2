"""Features of samples and of references, kept in the cache so that a second gate extracts nothing."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pytest_diffusion.features.clip import Clip
from pytest_diffusion.features.extractors import Extractor, Features, tensors_hash
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.samples.store import Samples, StoreWarning

Extract = Callable[[torch.Tensor], Features]


def stored_features(samples: Samples, extractor: Extract) -> Features:
    """Features of the samples, read from the store or extracted and written there; more samples extend the file."""
    return _kept_features(samples.folder, samples.images, extractor)


def stored_reference_features(images: torch.Tensor, extractor: Extract, root: Path) -> Features:
    """Features of reference images uint8 (M, 3, H, W), kept under `root` by the content of the images."""
    digest = hashlib.blake2b(json.dumps(list(images.shape)).encode(), digest_size=10)
    for image in images:
        digest.update(image.contiguous().numpy().data)
    return _kept_features(root / "references" / digest.hexdigest(), images, extractor)


def stored_embeds(images: Any, clip: Any) -> torch.Tensor:
    """CLIP embeddings (N, D) of samples or of a reference: from the cache where there is one, else computed."""
    if not isinstance(clip, Clip) or (not isinstance(images, Samples) and clip.cache is None):
        embeds: torch.Tensor = clip.image_embeds(images.images)
        return embeds
    extractor = Extractor(f"clip-score:{clip.identity}", lambda batch: (clip.image_embeds(batch), None), resize=clip.resize)
    if isinstance(images, Samples):
        return stored_features(images, extractor).values
    assert clip.cache is not None
    return stored_reference_features(images.images, extractor, clip.cache).values


def _kept_features(folder: Path | None, images: torch.Tensor, extractor: Extract) -> Features:
    if folder is None or not isinstance(extractor, Extractor) or extractor.is_own_code:
        return extractor(images)
    path = folder / f"features-{hashlib.blake2b(extractor.name.encode(), digest_size=6).hexdigest()}.safetensors"
    tensors = _read(path, extractor, images)
    have = len(tensors["values"]) if tensors else 0
    if have < len(images):
        fresh = extractor(images[have:])
        new = {"values": fresh.values} | ({"probabilities": fresh.probabilities} if fresh.probabilities is not None else {})
        tensors = {name: torch.cat([tensors[name], rows]) if have else rows for name, rows in new.items()}
        _write(path, tensors, extractor, images)
    else:
        _touch(path)
    values = tensors["values"][: len(images)]
    probabilities = tensors["probabilities"][: len(images)] if "probabilities" in tensors else None
    features = Features(values, probabilities, extractor.name, extractor.protocol)
    # Of fewer samples than features the covariance is never formed.
    return replace(features, statistics=_kept_statistics(path, features)) if len(values) > values.shape[1] else features


def _kept_statistics(path: Path, features: Features) -> FeatureStatistics:
    """Mean and covariance of the first N features, from the file beside them or computed and written there."""
    file = path.with_name(f"statistics-{path.stem.removeprefix('features-')}-{tensors_hash({'values': features.values})}.npz")
    try:
        kept = FeatureStatistics.load(file)
        if kept.protocol == features.protocol and kept.count == len(features.values):
            return kept
    except (OSError, ValueError):
        pass  # load turns whatever a damaged file raises into one of these
    statistics = FeatureStatistics.from_features(features.values, protocol=features.protocol)
    try:
        statistics.save(file)
    except OSError:
        pass  # the samples are what costs; a full or read-only cache is no reason to stop
    return statistics


def _read(path: Path, extractor: Extractor, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The kept tensors, or nothing where the file is missing, damaged, of another extractor or of other images."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError):
        metadata, tensors = {}, {}
    if metadata.get("checksum") != tensors_hash(tensors) or metadata.get("extractor") != extractor.name:
        warnings.warn(f"{path} is damaged; its features are extracted again.", StoreWarning, stacklevel=2)
        return {}
    # Not the folder but the images decide: whoever changed them keeps the folder's name.
    shared = min(len(images), len(tensors["values"]))
    return tensors if _checksums(images[:shared]) == json.loads(metadata.get("images", "[]"))[:shared] else {}


def _checksums(images: torch.Tensor) -> list[str]:
    """One checksum for each image, so that a longer set can be told to begin as a shorter one does."""
    return [hashlib.blake2b(image.contiguous().numpy().data, digest_size=8).hexdigest() for image in images]


def _touch(path: Path) -> None:
    """Remember the use of a file: `pytest-diffusion cache prune` goes by it."""
    try:
        os.utime(path)
    except OSError:
        pass  # a read-only cache is a cache too


def _write(path: Path, tensors: dict[str, torch.Tensor], extractor: Extractor, images: torch.Tensor) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    whole = {name: rows.contiguous() for name, rows in tensors.items()}
    metadata = {"extractor": extractor.name, "checksum": tensors_hash(whole), "images": json.dumps(_checksums(images))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, part, metadata=metadata)
        part.replace(path)
    except (OSError, SafetensorError):
        part.unlink(missing_ok=True)  # a full or read-only cache is no reason to stop
